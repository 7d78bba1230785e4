//! The examples run to their ends.

use std::{path::PathBuf, process::Command};

/// Where cargo puts the examples of the profile that this test was built with.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
    profile.join("examples").join(name)
}

fn runs_to_its_end(name: &str, says: &str) {
    let output = Command::new(example(name)).output().expect("cargo builds examples with the tests");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(says), "{text}");
}

#[test]
fn leader_election() {
    runs_to_its_end("leader_election", "all towers are off duty");
}

#[test]
fn replicated_counter() {
    runs_to_its_end("replicated_counter", "west begins with 18 in all");
}

#[test]
fn routed_counter() {
    runs_to_its_end("routed_counter", "the day is over");
}

#[test]
fn observe_views() {
    runs_to_its_end("observe_views", "the desk is closed");
}

#[test]
fn follow_one_request() {
    runs_to_its_end("follow_one_request", "That is all.");
}
