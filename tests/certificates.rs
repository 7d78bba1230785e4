//! Processes that show certificates to each other.

#[path = "../membership/tests/node/authority.rs"]
mod authority;
mod common;

use authority::{Authority, Files};
use common::{Dir, Proc, phalanx, run, stderr};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

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

/// Clients' certificates are the router's business, and read again as those of nodes are.
#[test]
fn a_router_reads_the_certificates_of_services_again_on_hup_and_names_what_it_cannot_use() {
    let dir = Dir::new();
    let files = Files::new(dir.path(), "s");
    let authority = Authority::new();
    files.write(&[&authority], &authority.sign(&["s.example"]));
    let config = dir.write(
        "router.toml",
        &format!(
            "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\n\
             tls = {{ cert = {:?}, key = {:?} }}\n[service.pmap]\nstyle = \"slots\"\npartitions = 8\n\
             [[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:1\"]\n",
            files.cert, files.key
        ),
    );
    let checked = run(&["router", "--check", "--config", &config]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    let mut router = phalanx()
        .args(["router", "--config", &config])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let mut line = String::new();
    BufReader::new(router.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
    assert!(line.contains("is served on"), "{line}");
    std::fs::write(&files.key, "no key").expect("it is ours");
    let pid = router.id().to_string();
    let tell = |signal: &str| {
        let told = Command::new("kill").args([signal, &pid]).status();
        assert!(told.expect("kill can be run").success());
    };
    tell("-HUP");
    let log = BufReader::new(router.stderr.take().expect("it is piped"));
    let said = log.lines().map_while(Result::ok).find(|line| line.contains("s.key.pem"));
    assert!(
        said.is_some_and(|line| line.contains("no private key") && line.contains("what was read before"))
    );
    let checked = run(&["router", "--check", "--config", &config]);
    assert_eq!(checked.status.code(), Some(2));
    assert!(stderr(&checked).contains("s.key.pem: there is no private key"), "{}", stderr(&checked));
    tell("-TERM");
    assert_eq!(router.wait().expect("it is ours").code(), Some(0));
}
