//! Processes that show certificates to each other.

#[path = "../membership/tests/node/authority.rs"]
mod authority;
mod common;

use authority::{Authority, Files};
use common::{Dir, Proc, run, stderr};

fn flags(files: &Files) -> Vec<String> {
    let all = [("--tls-ca", &files.ca), ("--tls-cert", &files.cert), ("--tls-key", &files.key)];
    all.into_iter().flat_map(|(flag, file)| [flag.to_owned(), file.display().to_string()]).collect()
}

fn join(dir: &Dir, name: &str, files: &Files, more: &[&str]) -> Proc {
    let flags = flags(files);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Proc::join("g", name, &format!("file:{}", dir.file("rdv")), &flags)
}

#[test]
fn processes_with_certificates_listen_beyond_loopback_and_take_new_ones_on_hup() {
    let dir = Dir::new();
    let (old, new) = (Authority::new(), Authority::new());
    let files = |name: &str| Files::new(dir.path(), name);
    for name in ["a", "b"] {
        files(name).write(&[&old, &new], &old.sign(&[name]));
    }
    // Certificates are credentials: no --insecure.
    let mut a = join(&dir, "a", &files("a"), &["--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:0"]);
    let mut b = join(&dir, "b", &files("b"), &[]);
    let view = a.until_members(2)["view"].clone();
    assert_eq!(b.until_members(2)["view"], view);
    for (name, proc) in [("a", &a), ("b", &b)] {
        files(name).write(&[&new], &new.sign(&[name]));
        proc.signal("HUP");
    }
    // Only who read the new files lets the next one in.
    files("c").write(&[&new], &new.sign(&["c"]));
    let mut c = join(&dir, "c", &files("c"), &["--bootstrap", "join"]);
    for proc in [&mut a, &mut b, &mut c] {
        proc.until_members(3);
    }
    for mut proc in [c, b, a] {
        proc.signal("TERM");
        assert_eq!(proc.end(), Some(0));
    }
}

#[test]
fn certificates_that_cannot_work_are_refused_by_flag_and_file() {
    let dir = Dir::new();
    let authority = Authority::new();
    let files = Files::new(dir.path(), "n");
    files.write(&[&authority], &authority.sign(&["m"]));
    let flags = flags(&files);
    let all: Vec<&str> = ["join", "g", "--no-stdin", "--name", "n"]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    let cert = files.cert.display().to_string();
    let secret = ["--secret-file", &cert];
    for (args, says) in [
        (all.clone(), vec!["--tls-cert", &*cert, "subject alternative names"]),
        (all[..7].to_vec(), vec!["--tls-cert", "belong together"]),
        ([&all[..], &secret].concat(), vec!["--secret-file", "--tls-"]),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        for word in says {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
    }
}
