//! The demo: leaders die, and no read fails.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::Proc;

#[test]
fn leaders_die_and_no_read_fails() {
    let _stage = stage();
    let mut demo = Proc::start(&["demo", "--for", "8s", "--kill-every", "2s"]);
    let ready = demo.until_event("ready");
    let router = ready["router"].as_str().expect("an address");
    let mut stream = TcpStream::connect(router).expect("the router listens");
    stream.write_all(b"GET /items/7 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for header in ["x-phalanx-partition:", "x-phalanx-server:", "x-phalanx-epoch:"] {
        assert!(answer.to_lowercase().contains(header), "{header} is missing: {answer}");
    }
    let admin = ready["admin"].as_str().expect("an admin API");
    for (command, key) in [("status", "id"), ("view", "members")] {
        let output = common::run(&[command, "--admin", admin, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", common::stderr(&output));
        assert!(common::stdout(&output).contains(key), "{}", common::stdout(&output));
    }
    demo.until_event("killed");
    let summary = demo.until_event("summary");
    assert_eq!(summary["failed_reads"], 0, "{summary}");
    assert_eq!(summary["wrong_partition"], 0, "{summary}");
    assert_eq!(summary["violations"], 0, "{summary}");
    assert!(summary["kills"].as_u64() >= Some(1), "{summary}");
    assert!(summary["reads"].as_u64() >= Some(100), "{summary}");
    assert_eq!(demo.end(), Some(0));
}

/// One demo at a time is load enough.
static STAGE: Mutex<()> = Mutex::new(());

fn stage() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No sign of trouble on standard error.
fn assert_orderly(output: &Output) {
    let text = common::stderr(output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for trouble in ["blocked", "begins anew", "invalid", "standard output"] {
        assert!(!text.contains(trouble), "{text}");
    }
}

/// A demo of whose members no busy machine takes the lease, which they would complain of.
fn calm_demo(args: &[&str]) -> Command {
    let mut demo = common::phalanx();
    demo.arg("demo").args(args).env("PHALANX_LEASE", "3s");
    demo
}

/// A demo in a process group of its own, as a shell starts it, and the rest of its output. It is ready.
fn ready_demo() -> (Child, BufReader<ChildStdout>) {
    let mut command = calm_demo(&["--for", "60s", "--kill-every", "1h"]);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = command.spawn().expect("the binary can be started");
    let mut out = BufReader::new(demo.stdout.take().expect("it is piped"));
    let mut line = String::new();
    while !line.starts_with("ready") {
        line.clear();
        assert!(out.read_line(&mut line).expect("it speaks") > 0, "it ends before it is ready");
    }
    (demo, out)
}

#[test]
fn ctrl_c_ends_it_in_order() {
    let _stage = stage();
    let (demo, mut out) = ready_demo();
    // A terminal sends it to the whole group.
    let status = Command::new("kill").args(["-INT", "--", &format!("-{}", demo.id())]).status();
    assert!(status.expect("kill can be run").success());
    let mut text = String::new();
    out.read_to_string(&mut text).expect("it speaks");
    let output = demo.wait_with_output().expect("it ends");
    assert_orderly(&output);
    assert!(text.contains(" 0 violations."), "{text}");
}

#[test]
fn it_ends_when_nobody_reads_any_more() {
    let _stage = stage();
    let (demo, out) = ready_demo();
    drop(out);
    let closed = Instant::now();
    let output = demo.wait_with_output().expect("it ends");
    assert!(closed.elapsed() < Duration::from_secs(40), "it goes on to its end");
    assert_orderly(&output);
}

#[test]
fn its_end_in_time_looks_like_one() {
    let _stage = stage();
    let mut demo = calm_demo(&["--for", "1s", "--kill-every", "1h"]);
    assert_orderly(&demo.stdin(Stdio::null()).output().expect("the binary can be started"));
}
