//! Processes whose links are sealed under a key.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use common::{Dir, Proc, phalanx, run, stderr, stdout};

fn key() -> String {
    let output = run(&["secret"]);
    assert!(output.status.success());
    stdout(&output)
}

fn write(file: &str, text: &str, mode: u32) {
    // At once, for it may be read at any time.
    let fresh = format!("{file}.fresh");
    fs::write(&fresh, text).expect("written");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).expect("set");
    fs::rename(&fresh, file).expect("moved");
}

/// `join` for so long that its log tells whether it came in.
fn try_join(dir: &Dir, more: &[&str]) -> (Option<i32>, String) {
    let mut command: Command = phalanx();
    command.args(["join", "g", "--no-stdin", "--bootstrap", "join", "--join-timeout", "2s"]);
    command.args(["--once", "--rendezvous", &dir.rendezvous()]).args(more).stdin(Stdio::null());
    let output = command.output().expect("the binary can be started");
    (output.status.code(), stderr(&output))
}

#[test]
fn every_key_is_another_one_and_json_says_the_same() {
    let (one, two) = (key(), key());
    assert!(one != two && one.trim().len() == 64, "{one}{two}");
    let json: serde_json::Value = serde_json::from_str(&stdout(&run(&["secret", "--json"]))).expect("JSON");
    assert_eq!(json["secret"].as_str().map(str::len), Some(64));
}

#[test]
fn a_file_that_is_no_secret_is_refused_and_never_shown() {
    let dir = Dir::new();
    let file = dir.file("secret");
    for (text, mode, says) in [
        (key(), 0o644, "chmod 600"),
        ("tiny-password".into(), 0o600, "line 1"),
        (String::new(), 0o600, "no key"),
    ] {
        write(&file, &text, mode);
        let output = run(&["join", "g", "--no-stdin", "--secret-file", &file]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says) && said.contains(&file), "{said}");
        assert!(text.is_empty() || !said.contains(text.trim()), "{said}");
    }
}

#[test]
fn a_secret_lets_a_node_listen_everywhere_but_not_its_admin_api() {
    let dir = Dir::new();
    let file = dir.file("secret");
    write(&file, &key(), 0o600);
    let with = |more: &[&str]| {
        let output = run(&[&["join", "g", "--no-stdin", "--secret-file", &file], more].concat());
        assert_eq!(output.status.code(), Some(2));
        stderr(&output)
    };
    assert!(with(&["--listen", "0.0.0.0:0"]).contains("--advertise"), "what is asked next");
    let said = with(&["--admin", "0.0.0.0:0"]);
    assert!(said.contains("--admin") && said.contains("--insecure"), "{said}");
}

#[test]
fn keys_are_replaced_on_hup_and_who_has_none_stays_outside() {
    let dir = Dir::new();
    let (old, new) = (key(), key());
    let (file, late_file) = (dir.file("secret"), dir.file("late"));
    write(&file, &old, 0o600);
    let sealed = ["--secret-file", &*file];
    let mut members = ["a", "b"].map(|name| {
        let mut proc = Proc::join("g", name, &dir.rendezvous(), &sealed);
        proc.until_event("view");
        proc
    });
    members[0].until_members(2);
    let (code, said) = try_join(&dir, &[]);
    assert!(code == Some(3) && said.contains("requires a secret"), "{code:?} {said}");
    write(&late_file, &new, 0o600);
    let (code, said) = try_join(&dir, &["--secret-file", &late_file]);
    assert!(code == Some(3) && said.contains("does not have the key"), "{code:?} {said}");
    write(&file, &format!("{old}{new}"), 0o600);
    members.iter().for_each(|member| member.signal("HUP"));
    let late = Proc::join("g", "late", &dir.rendezvous(), &["--secret-file", &late_file]);
    // It is let in with the new key; but nobody connects to it with that one yet.
    write(&file, &format!("{new}{old}"), 0o600);
    members.iter().for_each(|member| member.signal("HUP"));
    for member in &mut members {
        let view = member.until_members(3);
        assert_eq!(
            view["prev"],
            member.seen.iter().rev().filter(|e| e["event"] == "view").nth(1).expect("one")["view"]
        );
    }
    drop(late);
}

#[test]
fn wrappers_read_keys_again_and_what_they_run_goes_on() {
    let (old, new) = (key(), key());
    for wrapper in [&["run", "--group", "g"][..], &["lock", "g"]] {
        let dir = Dir::new();
        let (file, late_file) = (dir.file("secret"), dir.file("late"));
        write(&file, &old, 0o600);
        write(&late_file, &new, 0o600);
        let rendezvous = dir.rendezvous();
        let settings = ["--rendezvous", &rendezvous, "--secret-file", &file, "--", "sleep", "600"];
        let mut wrapper = Proc::start(&[wrapper, &settings].concat());
        wrapper.until_event("leading");
        write(&file, &format!("{old}{new}"), 0o600);
        wrapper.signal("HUP");
        // With the new key alone: whoever has not read it refuses this one.
        let mut late = Proc::join("g", "late", &rendezvous, &["--secret-file", &late_file]);
        late.until_members(2);
        wrapper.until_members(2);
    }
}
