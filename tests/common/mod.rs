//! Processes of the binary under test, and what they print.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn phalanx() -> Command {
    Command::new(env!("CARGO_BIN_EXE_phalanx"))
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Output {
    phalanx().args(args).stdin(Stdio::null()).output().expect("the binary can be started")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A directory of its own for each test, removed at its end.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("phalanx-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("a file in the temporary directory");
        self.file(name)
    }

    pub fn rendezvous(&self) -> String {
        format!("file:{}", self.0.display())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // What stays behind is in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running command with `--json`; killed when dropped.
pub struct Proc {
    child: Child,
    pub stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    /// All that was read so far.
    pub seen: Vec<Value>,
}

impl Proc {
    pub fn start(args: &[&str]) -> Self {
        Self::start_of(Path::new(env!("CARGO_BIN_EXE_phalanx")), args)
    }

    /// The same, of another build.
    pub fn start_of(binary: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(["--json"]).args(args);
        Self::of(command)
    }

    /// The same, with so many open files: at first, and at most.
    pub fn start_with_files((soft, hard): (u32, u32), args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_phalanx"), "--json"]).args(args);
        Self::of(command)
    }

    /// The same, of a command that has its arguments.
    pub fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line)
                    && to.send(event).is_err()
                {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, seen: Vec::new() }
    }

    /// A member of the group, which ends by signals only.
    pub fn join(group: &str, name: &str, rendezvous: &str, more: &[&str]) -> Self {
        let args = ["join", group, "--no-stdin", "--name", name, "--rendezvous", rendezvous];
        Self::start(&[&args, more].concat())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// At once: no other program is started for it, which takes a busy machine a while.
    pub fn signal(&self, name: &str) {
        let signal = match name {
            "CONT" => Signal::CONT,
            "HUP" => Signal::HUP,
            "INT" => Signal::INT,
            "KILL" => Signal::KILL,
            "STOP" => Signal::STOP,
            "TERM" => Signal::TERM,
            other => panic!("no test has sent {other} so far"),
        };
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        writeln!(stdin, "{line}").expect("the process reads");
    }

    /// The next event that matches.
    pub fn until(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if matches(&event) {
                        return event;
                    }
                }
                Err(error) => panic!("waiting for {what}: {error}; seen {:#?}", self.seen),
            }
        }
    }

    pub fn until_event(&mut self, name: &str) -> Value {
        self.until(name, |event| event["event"] == name)
    }

    /// The first event of this name: among what was read already, else the next one. What comes after it is not read yet.
    pub fn first_event(&mut self, name: &str) -> Value {
        let known = self.seen.iter().find(|event| event["event"] == name).cloned();
        known.unwrap_or_else(|| self.until_event(name))
    }

    /// Since when it leads, if it leads by what it printed last: who led a lineage that dissolved does not.
    pub fn leads_since(&mut self) -> Option<u64> {
        let is_of_reign = |event: &&Value| event["event"] == "leading" || event["event"] == "not_leading";
        let last = self.drain().iter().rfind(is_of_reign)?;
        if last["event"] == "leading" { last["at_ns"].as_u64() } else { None }
    }

    /// The view with this many members.
    pub fn until_members(&mut self, n: usize) -> Value {
        self.until(&format!("{n} members"), |e| {
            e["event"] == "view" && e["members"].as_array().map(Vec::len) == Some(n)
        })
    }

    /// Everything printed so far, without waiting.
    pub fn drain(&mut self) -> &[Value] {
        while let Ok(event) = self.lines.try_recv() {
            self.seen.push(event);
        }
        &self.seen
    }

    /// Waits for its end; the exit code.
    pub fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "process {} does not end", self.pid());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does the process handle TERM by now?
pub fn catches_term(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 << 14 != 0)
}

/// The intervals in which processes led a group, from all that they printed: none may overlap.
pub fn assert_no_overlap(all: &mut [&mut Proc], killed: &[(usize, u64)]) {
    let mut reigns: Vec<(u64, u64, usize)> = Vec::new();
    for (who, proc) in all.iter_mut().enumerate() {
        let mut open = None;
        for event in proc.drain() {
            if event["event"] == "leading" {
                open = event["at_ns"].as_u64();
            } else if event["event"] == "not_leading" {
                let from = open.take().expect("not_leading follows leading");
                reigns.push((from, event["until_ns"].as_u64().expect("until_ns"), who));
            }
        }
        let end = killed.iter().find(|(k, _)| *k == who).map_or(u64::MAX, |(_, at)| *at);
        reigns.extend(open.map(|from| (from, end, who)));
    }
    reigns.sort_unstable();
    for pair in reigns.windows(2) {
        assert!(pair[0].1 <= pair[1].0 || pair[0].2 == pair[1].2, "reigns overlap: {pair:?}");
    }
}

/// Is what a test needs there? If not, says why the test is skipped, or fails where everything must be there.
pub fn needs(is_there: bool, why: &str) -> bool {
    let required = ["CI", "PHALANX_REQUIRE_SERVERS"].iter().any(|name| std::env::var_os(name).is_some());
    assert!(is_there || !required, "{why}, and CI or PHALANX_REQUIRE_SERVERS is set");
    if !is_there {
        println!("SKIPPED: {why}");
    }
    is_there
}

/// Is this program installed? If not, as above.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Users who are not root have no directories of servers in their PATH.
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs.any(|dir| dir.join(program).is_file());
    needs(found, &format!("{program} is not installed"))
}
