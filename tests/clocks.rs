//! Clocks that are set while nodes run: by libfaketime, which stands between a process and its C library.

mod common;

use std::{
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, assert_no_overlap, needs};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// How long a clock stays as it was set, at least: ten heartbeats.
const PAUSE: Duration = Duration::from_millis(500);
const HEARTBEAT: &str = "50ms";
/// A lease that ends while a clock stays as it was set.
const SHORT: &str = "500ms";
/// A lease that a busy machine takes from nobody, and far shorter than what wall clocks jump by.
const LONG: &str = "3s";
/// There is one cluster: nobody begins another one where a busy machine keeps it from finding the others, or a majority.
const FOUNDS: &str = "alone-after=3s";
const JOINS: &str = "join";

/// A member whose clocks are what the file says, if there is the library for that.
fn start(dir: &Dir, name: &str, wall_only: bool, bootstrap: &str) -> Option<Proc> {
    if !needs(Path::new(LIBRARY).is_file(), "libfaketime is not installed") {
        return None;
    }
    let clock = dir.file(&clock_of(name));
    if !Path::new(&clock).is_file() {
        dir.write(&clock_of(name), "+0");
    }
    let rendezvous = format!("file:{}", dir.file("rdv"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
    command.args(["--json", "join", "g", "--no-stdin", "--name", name, "--rendezvous", &rendezvous]);
    let lease = if wall_only { LONG } else { SHORT };
    command.args(["--lease", lease, "--heartbeat", HEARTBEAT, "--bootstrap", bootstrap, "--give-up", "1h"]);
    command.args(["--trace", &dir.file(&format!("{name}.jsonl"))]);
    command.env("LD_PRELOAD", LIBRARY).env("FAKETIME_TIMESTAMP_FILE", clock);
    // Read again with every look at the clock.
    command
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", if wall_only { "1" } else { "0" });
    Some(Proc::of(command))
}

fn clock_of(name: &str) -> String {
    format!("{name}.clock")
}

/// Three members, the first of which leads.
fn three(dir: &Dir, wall_only: bool) -> Option<Vec<Proc>> {
    let mut all = Vec::new();
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        all.push(start(dir, name, wall_only, if n == 0 { FOUNDS } else { JOINS })?);
        for proc in &mut all {
            proc.until_members(n + 1);
        }
    }
    Some(all)
}

/// How often anybody came to lead, and views were made, and leases lost.
fn happened(all: &mut [Proc]) -> usize {
    let counts = ["leading", "not_leading", "view", "blocked", "removed"];
    let of = |proc: &mut Proc| {
        proc.drain().iter().filter(|e| counts.contains(&e["event"].as_str().unwrap_or_default())).count()
    };
    all.iter_mut().map(of).sum()
}

/// How many members its latest view has.
fn sees(proc: &mut Proc) -> usize {
    let mut views = proc.drain().iter().filter(|e| e["event"] == "view");
    views.next_back().and_then(|e| e["members"].as_array()).map_or(0, Vec::len)
}

fn judged(dir: &Dir) {
    let files = ["a", "b", "c"].map(|name| dir.file(&format!("{name}.jsonl")));
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let checked = common::run(&[&["check"], &files[..]].concat());
    assert!(checked.status.success(), "{}", common::stdout(&checked));
}

fn end(mut all: Vec<Proc>, dir: &Dir) {
    assert_no_overlap(&mut all.iter_mut().collect::<Vec<_>>(), &[]);
    while let Some(mut proc) = all.pop() {
        proc.signal("TERM");
        assert_eq!(proc.end(), Some(0));
    }
    judged(dir);
}

#[test]
fn a_wall_clock_that_jumps_changes_nothing() {
    let dir = Dir::new();
    let Some(mut all) = three(&dir, true) else { return };
    sleep(PAUSE);
    let before = happened(&mut all);
    for by in ["+3600", "-3600", "+0", "+3600", "-86400", "+86400", "+0"] {
        dir.write(&clock_of("a"), by);
        dir.write(&clock_of("c"), &by.replace('+', "#").replace('-', "+").replace('#', "-"));
        sleep(PAUSE);
    }
    assert_eq!(happened(&mut all), before, "{:#?}", all[0].drain());
    // And whoever comes while clocks are wrong.
    dir.write(&clock_of("a"), "-3600");
    let leader = all.remove(0);
    leader.signal("KILL");
    let killed = Instant::now();
    all[0].until_event("leading");
    assert!(killed.elapsed() < 10 * PAUSE);
    drop(leader);
    let more = start(&dir, "a", true, JOINS).expect("as before");
    all.push(more);
    for proc in &mut all {
        proc.until_members(3);
    }
    for mut proc in all {
        proc.signal("TERM");
        assert_eq!(proc.end(), Some(0));
    }
}

/// Leases are by another clock, which the library does not know; but timers are by this one.
#[test]
fn a_monotonic_clock_that_jumps_makes_no_two_leaders() {
    let dir = Dir::new();
    let Some(mut all) = three(&dir, false) else { return };
    for by in ["+30", "+0 x1.05", "+30 x2", "+0"] {
        dir.write(&clock_of("a"), by);
        sleep(4 * PAUSE);
    }
    let deadline = Instant::now() + PATIENCE;
    while !all.iter_mut().all(|proc| sees(proc) == 3) {
        assert!(Instant::now() < deadline, "they do not come together again");
        sleep(PAUSE);
    }
    end(all, &dir);
}
