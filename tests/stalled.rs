//! Whoever reads what a process prints may stall: a terminal after Ctrl-S, a full pipe. Nothing else stands still for it.

mod common;

use std::{
    fs,
    io::{PipeReader, PipeWriter, Write, pipe},
    path::Path,
    process::{Child, Command},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, catches_term, phalanx};

/// A pipe that is full, and stays so while its end for reading is kept.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    let mut filler = writer.try_clone().expect("another handle");
    spawn(move || while filler.write_all(&[b'\n'; 4096]).is_ok() {});
    sleep(Duration::from_millis(300));
    (reader, writer)
}

/// Killed when dropped.
struct Running(Child);

impl Running {
    fn of(command: &mut Command) -> Self {
        Self(command.spawn().expect("the binary can be started"))
    }

    fn term(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill can be run").success());
    }

    /// Its exit code, if it ends in time.
    fn ends_within(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().expect("it is our child") {
                return status.code();
            }
            sleep(Duration::from_millis(10));
        }
        panic!("process {} does not end", self.0.id());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} never came");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reader_that_stalls_takes_no_lead_away_and_signals_are_heeded() {
    let dir = Dir::new();
    let (_reader, out) = full();
    let file = dir.file("beats");
    let script = format!("trap 'exit 7' TERM; while :; do echo >> {file}; sleep 0.05; done");
    let mut command = phalanx();
    command.args(["run", "--exclusive", "--json", "--lease", "3s", "--group", "g"]);
    command.args(["--rendezvous", &dir.rendezvous()]);
    let mut run = Running::of(command.args(["--", "sh", "-c", &script]).stdout(out));
    let beats = || fs::metadata(&file).map_or(0, |file| file.len());
    // A beat takes 50 ms, and the lease is 3 s: so they go on for more than two of them.
    until("beats", || beats() > 130);
    run.term();
    assert_eq!(run.ends_within(Duration::from_secs(30)), Some(7));
    let last = beats();
    sleep(Duration::from_millis(300));
    assert_eq!(beats(), last, "nothing is left behind");
}

#[test]
fn a_member_whose_reader_stalls_leaves_when_it_is_told_and_says_what_is_lost() {
    let dir = Dir::new();
    for command in [&["join", "g", "--no-stdin"][..], &["watch", "g"], &["agent"]] {
        let (_reader, out) = full();
        let said = dir.file("said");
        let log = fs::File::create(Path::new(&said)).expect("a file");
        let mut process = phalanx();
        process.args(command).args(["--rendezvous", &dir.rendezvous()]).stdout(out).stderr(log);
        let mut process = Running::of(&mut process);
        until("a process that heeds signals", || catches_term(process.0.id()));
        sleep(Duration::from_secs(2));
        process.term();
        assert_eq!(process.ends_within(Duration::from_secs(30)), Some(1), "{command:?}");
        let said = fs::read_to_string(&said).expect("text");
        assert!(said.contains("standard output: nobody reads it"), "{command:?}: {said}");
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_node() {
    let dir = Dir::new();
    let (_reader, log) = full();
    let mut command = phalanx();
    command.args(["join", "g", "--json", "--no-stdin", "--name", "a", "--log", "trace", "--lease", "2s"]);
    command.args(["--rendezvous", &dir.rendezvous()]).stderr(log);
    let mut a = Proc::of(command);
    a.until_event("leading");
    let mut b = Proc::join("g", "b", &dir.rendezvous(), &["--lease", "2s"]);
    b.until_members(2);
    sleep(Duration::from_secs(6));
    assert!(!b.drain().iter().any(|e| e["event"] == "leading"), "a stays: {:#?}", b.seen);
    a.signal("TERM");
    assert_eq!(a.end(), Some(0));
    b.until_event("leading");
}

#[test]
fn a_member_that_waits_for_its_reader_heeds_signals() {
    let dir = Dir::new();
    let (_reader, out) = full();
    // More than waits anywhere for the reader.
    let lines = dir.write("lines", &format!("send {}\n", "x".repeat(2000)).repeat(10_000));
    let mut process = phalanx();
    process.args(["join", "g", "--rendezvous", &dir.rendezvous()]).stdout(out);
    let mut process = Running::of(process.stdin(fs::File::open(&lines).expect("it is there")));
    sleep(Duration::from_secs(4));
    assert!(process.0.try_wait().expect("it is our child").is_none(), "not all is printed: it waits");
    process.term();
    assert_eq!(process.ends_within(Duration::from_secs(30)), Some(1));
}
