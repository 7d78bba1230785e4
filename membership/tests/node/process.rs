//! Nodes in processes of their own, which can be killed and stopped.
//!
//! The test program starts itself again: a child runs only the test [`member`], which does nothing in the parent.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use membership::{Bootstrap, NodeId, Rendezvous, What};
use membership_types::trace::{Event, Record, Source, VERSION};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Scratch, judge, metric};

const LEASE: Duration = Duration::from_millis(1000);
/// Instead of a number of founders: the node only joins.
const JOIN: u16 = 0;

/// Runs in children: a member of the group `g` that prints its events, until its standard input ends.
#[tokio::test]
async fn member() {
    let Ok(name) = std::env::var("MEMBER_NAME") else { return };
    let var = |key: &str| std::env::var(key).expect("the parent gives it");
    // Memory that the kernel has to free once this process is killed.
    let held = vec![1_u8; std::env::var("MEMBER_MIB").map_or(0, |mib| mib.parse().expect("a number")) << 20];
    std::hint::black_box(&held);
    let bootstrap = match var("MEMBER_EXPECT").parse().expect("a number") {
        JOIN => Bootstrap::Join,
        count => Bootstrap::Expect(count),
    };
    let builder = membership::Node::builder()
        .name(name)
        .lease(LEASE)
        .rendezvous(Rendezvous::File(var("MEMBER_DIR").into()))
        .bootstrap(bootstrap)
        .rejoin(var("MEMBER_REJOIN") == "yes")
        .children_act(std::env::var_os("MEMBER_WRAPS").is_some())
        .trace(var("MEMBER_TRACE"));
    let node = builder.start().await.expect("starts");
    let group = node.join("g", None).await.expect("runs");
    let mut events = group.events();
    let leaver = node.clone();
    let watcher = node.clone();
    tokio::spawn(async move {
        let mut last = 0;
        loop {
            let count = metric(&watcher, "phalanx_neighbours");
            if count != last {
                println!("\n{}", json!({ "event": "neighbours", "count": count }));
                last = count;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let runtime = tokio::runtime::Handle::current();
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.is_ok_and(|line| line == "panic") {
                let _panicked = thread::spawn(|| panic!("on purpose")).join();
            }
        }
        runtime.block_on(leaver.leave());
    });
    while let Some(event) = events.next().await {
        let mut line = match &event.what {
            What::View(view) => {
                json!({ "event": "view", "members": view.members.iter().map(|m| &*m.name).collect::<Vec<_>>() })
            }
            What::Leading { token, .. } => json!({ "event": "leading", "token": token.get() }),
            What::NotLeading { why, until_ns, .. } => {
                json!({ "event": "not_leading", "why": why.as_str(), "until_ns": until_ns })
            }
            What::Blocked { why } => json!({ "event": "blocked", "why": why }),
            What::Started { .. } => json!({ "event": "started", "id": event.node.to_string() }),
            other => json!({ "event": format!("{other:?}").split(['(', ' ']).next() }),
        };
        line["at_ns"] = json!(event.at_ns);
        // After the line that the test framework has begun.
        println!("\n{line}");
    }
}

/// A child that is a member.
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<Value>,
    /// All that was read so far.
    pub seen: Vec<Value>,
    trace: PathBuf,
}

impl Process {
    fn start(dir: &Path, name: &str, expect: u16, rejoin: bool) -> Self {
        Self::start_with(dir, name, expect, rejoin, None)
    }

    /// The same with something more in its environment.
    fn start_with(dir: &Path, name: &str, expect: u16, rejoin: bool, more: Option<(&str, &str)>) -> Self {
        Self::start_as("process::member", dir, name, expect, rejoin, more)
    }

    /// The same, of a child that runs this test.
    pub fn start_as(
        test: &str,
        dir: &Path,
        name: &str,
        expect: u16,
        rejoin: bool,
        more: Option<(&str, &str)>,
    ) -> Self {
        let trace = dir.join(format!("{name}.jsonl"));
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .env("MEMBER_NAME", name)
            .env("MEMBER_DIR", dir.join("meet"))
            .env("MEMBER_EXPECT", expect.to_string())
            .env("MEMBER_REJOIN", if rejoin { "yes" } else { "no" })
            .env("MEMBER_TRACE", &trace)
            .envs(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok).filter(|line| line.starts_with('{')) {
                let value = serde_json::from_str(&line).expect("JSON");
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Self { name: name.to_owned(), child, lines, seen: Vec::new(), trace }
    }

    /// Reads on until an event fits.
    pub fn wait(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if fits(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("not in time: {what} at {}: {:#?}", self.name, self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{} ended before {what}: {:#?}", self.name, self.seen)
                }
            }
        }
    }

    pub fn wait_for(&mut self, event: &str) -> Value {
        self.wait(event, |line| line["event"] == event)
    }

    /// Waits until it leads for the first time, perhaps long ago.
    fn wait_lead(&mut self) {
        if self.seen.iter().all(|line| line["event"] != "leading") {
            self.wait_for("leading");
        }
    }

    fn wait_members(&mut self, names: &[&str]) {
        self.wait("a view", |line| line["event"] == "view" && line["members"] == json!(names));
    }

    /// Waits until it watches the processes of so many others.
    fn wait_neighbours(&mut self, count: u64) {
        let met = |line: &Value| line["event"] == "neighbours" && line["count"] == count;
        if !self.seen.iter().any(met) {
            self.wait("others are watched", met);
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_ref().expect("open"), "{line}").expect("it reads");
    }

    /// The incarnations that it told of.
    fn ids(&self) -> Vec<NodeId> {
        let started = self.seen.iter().filter(|line| line["event"] == "started");
        started.map(|line| line["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")).collect()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Ends its input: it leaves.
    pub fn leave(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("our own child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // For tests that fail; otherwise it has ended already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Founders, who rank by slot: so the core has all of them from the first view on.
fn founders(dir: &Path, count: u16) -> Vec<Process> {
    founders_with(dir, count, None)
}

/// The same with something more in their environment.
fn founders_with(dir: &Path, count: u16, more: Option<(&str, &str)>) -> Vec<Process> {
    let mut processes = Vec::new();
    for number in 0..count {
        let mut process = Process::start_with(dir, &format!("p{number}"), count, true, more);
        // It has its slot by then.
        process.wait_for("started");
        processes.push(process);
    }
    let names: Vec<String> = processes.iter().map(|p| p.name.clone()).collect();
    for process in &mut processes {
        process.wait("a view of all", |line| {
            let members = line["members"].as_array().into_iter().flatten();
            line["event"] == "view" && members.count() == names.len()
        });
    }
    processes
}

/// Who leads, and who is next.
fn ranks(process: &Process) -> Vec<String> {
    let last = process.seen.iter().rfind(|line| line["event"] == "view").expect("it saw a view");
    last["members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

/// Takes the processes of these names out of the list, in this order.
fn by_rank(mut processes: Vec<Process>) -> Vec<Process> {
    let ranks = ranks(&processes[0]);
    processes.sort_by_key(|process| ranks.iter().position(|name| *name == process.name));
    processes
}

/// What the harness adds to the traces: who was killed.
pub fn crash(seq: u64, process: &Process) -> Record {
    let id = *process.ids().last().expect("it started");
    let event = Event::Crash { p: id.into(), how: "killed".into() };
    Record { v: VERSION, src: Source::Harness, seq, t: membership::clock::now_ns(), event }
}

pub fn traces(processes: &[Process]) -> Vec<PathBuf> {
    processes.iter().map(|p| p.trace.clone()).collect()
}

#[test]
fn when_a_leader_is_killed_the_next_rank_leads_because_the_death_is_proved() {
    let scratch = Scratch::new();
    let mut processes = by_rank(founders(scratch.path(), 3));
    processes[0].wait_lead();
    // Who does not watch it yet would have to wait out its lease.
    for process in &mut processes[1..] {
        process.wait_neighbours(2);
    }
    processes[0].kill();
    let died = crash(1, &processes[0]);
    processes[1].wait_for("leading");
    for process in &mut processes[1..] {
        process.leave();
    }
    let text = std::fs::read_to_string(&processes[1].trace).expect("a trace");
    assert!(
        text.lines().any(|line| line.contains("\"ev\":\"Proof\"")),
        "the death was proved, and not waited out"
    );
    judge(&traces(&processes), vec![died]);
}

/// Nobody waits until the memory of the dead is freed. A busy machine may delay us, but not every time.
#[test]
fn when_a_big_leader_is_killed_the_others_agree_on_that_before_the_kernel_says_that_it_is_gone() {
    let mut late = Vec::new();
    for _ in 0..12 {
        let scratch = Scratch::new();
        let mut processes = by_rank(founders_with(scratch.path(), 3, Some(("MEMBER_MIB", "512"))));
        processes[0].wait_lead();
        processes[1].wait_neighbours(2);
        let victim = Pid::from_child(&processes[0].child);
        let pidfd = pidfd_open(victim, PidfdFlags::empty()).expect("our own child");
        processes[0].signal(Signal::KILL);
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
        let gone = membership::clock::now_ns();
        assert_eq!(ended, Ok(1), "it ends");
        let died = crash(1, &processes[0]);
        processes[0].kill();
        let rest = [processes[1].name.clone(), processes[2].name.clone()];
        let without = |line: &Value| line["event"] == "view" && line["members"] == json!(rest);
        let agreed = processes[1].wait("a view without it", without)["at_ns"].as_u64().expect("a time");
        for process in &mut processes[1..] {
            process.leave();
        }
        judge(&traces(&processes), vec![died]);
        let text: String =
            processes[1..].iter().map(|p| std::fs::read_to_string(&p.trace).expect("a trace")).collect();
        if agreed < gone && text.contains("\"how\":\"exiting\"") {
            return;
        }
        late.push(agreed.saturating_sub(gone));
    }
    panic!("they agreed late each time, by so many ns: {late:?}");
}

/// Its children, of which nobody knows when they are gone, may still act.
#[test]
fn the_death_of_a_wrapper_proves_nothing_where_others_may_act_for_it() {
    let scratch = Scratch::new();
    let mut processes = by_rank(founders_with(scratch.path(), 3, Some(("MEMBER_WRAPS", "yes"))));
    for process in &mut processes[1..] {
        process.wait_neighbours(2);
    }
    let rest = [processes[1].name.clone(), processes[2].name.clone()];
    processes[0].kill();
    let died = crash(1, &processes[0]);
    processes[1].wait_members(&[&rest[0], &rest[1]]);
    for process in &mut processes[1..] {
        process.leave();
    }
    let text: String =
        processes[1..].iter().map(|p| std::fs::read_to_string(&p.trace).expect("a trace")).collect();
    assert!(!text.contains("\"ev\":\"Proof\""), "{text}");
    judge(&traces(&processes), vec![died]);
}

#[test]
fn a_leader_that_was_stopped_says_first_that_it_does_not_lead_any_more_and_joins_again() {
    let scratch = Scratch::new();
    let mut processes = by_rank(founders(scratch.path(), 3));
    let names: Vec<String> = processes.iter().map(|p| p.name.clone()).collect();
    processes[0].wait_lead();
    processes[0].signal(Signal::STOP);
    let leads = processes[1].wait_for("leading");
    let before = processes[0].seen.len();
    processes[0].signal(Signal::CONT);
    processes[0].wait_for("Removed");
    let of_group =
        |line: &&Value| ["view", "leading", "not_leading", "Out"].iter().any(|e| line["event"] == *e);
    let first = processes[0].seen[before..].iter().find(of_group).expect("something of the group");
    assert_eq!(first["event"], "not_leading", "{:#?}", processes[0].seen);
    assert_eq!(first["why"], "lease");
    assert!(first["until_ns"].as_u64() <= leads["at_ns"].as_u64(), "both led at once: {first} {leads}");
    processes[0].wait_for("started");
    processes[0].wait_members(&[&names[1], &names[2], &names[0]]);
    assert_eq!(processes[0].ids().len(), 2, "a fresh incarnation");
    for process in &mut processes {
        process.leave();
    }
    judge(&traces(&processes), Vec::new());
}

#[test]
fn a_node_without_a_majority_is_blocked_says_so_and_goes_on_when_the_others_come_back() {
    let scratch = Scratch::new();
    let mut processes = founders(scratch.path(), 3);
    for process in &processes[1..] {
        process.signal(Signal::STOP);
    }
    let blocked = processes[0].wait_for("blocked");
    assert!(blocked["why"].as_str().is_some_and(|why| why.contains("majority")), "{blocked}");
    for process in &processes[1..] {
        process.signal(Signal::CONT);
    }
    processes[0].wait_for("Unblocked");
    for process in &mut processes {
        process.leave();
    }
    judge(&traces(&processes), Vec::new());
}

#[test]
fn a_panic_anywhere_in_the_process_ends_leadership_and_the_node_joins_again() {
    let scratch = Scratch::new();
    let mut processes = by_rank(founders(scratch.path(), 2));
    let names: Vec<String> = processes.iter().map(|p| p.name.clone()).collect();
    processes[0].wait_lead();
    processes[0].say("panic");
    processes[0].wait_for("not_leading");
    processes[1].wait_for("leading");
    processes[0].wait_for("started");
    processes[0].wait_members(&[&names[1], &names[0]]);
    for process in &mut processes {
        process.leave();
    }
    judge(&traces(&processes), Vec::new());
}

#[test]
fn a_removed_node_that_is_not_to_rejoin_stops() {
    let scratch = Scratch::new();
    let mut processes = founders(scratch.path(), 3);
    let mut last = Process::start(scratch.path(), "last", JOIN, false);
    last.wait("admitted", |line| line["event"] == "view");
    last.signal(Signal::STOP);
    let three = |line: &Value| {
        line["event"] == "view" && line["members"].as_array().is_some_and(|members| members.len() == 3)
    };
    processes[0].wait("four", |line| line["event"] == "view" && !three(line));
    processes[0].wait("three", three);
    last.signal(Signal::CONT);
    last.wait_for("Removed");
    last.wait_for("Ended");
    for process in &mut processes {
        process.leave();
    }
    judge(&traces(&processes), Vec::new());
}
