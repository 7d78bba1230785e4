//! The processes under test: what they print, what they are told, and when they are gone.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use membership_types::{NodeId, trace::Process};
use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit},
};
use serde_json::Value;

use crate::plan::Role;

/// What a process says, by its number; `None` once it says nothing any more.
pub type Said = (usize, Option<Value>);

/// How many files a process may open at most, from its /proc/…/limits; `None` where there is no limit.
fn hard_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What all processes were counted to say.
#[derive(Default)]
pub struct Counts {
    pub messages: AtomicU64,
}

/// A process under test; killed when dropped.
pub struct Proc {
    child: Child,
    stdin: Option<ChildStdin>,
    pub name: String,
    pub place: usize,
    pub role: Role,
    pub trace: PathBuf,
    pub log: PathBuf,
    /// Its incarnation, once it has told.
    pub id: Option<Process>,
    pub stopped_at: Option<u64>,
    /// It was told to leave, or told us that it ends.
    pub leaving: bool,
    /// It has, or had, hardly any memory.
    pub squeezed: bool,
    /// What it may open, if that is less than it was given.
    pub files: Option<Rlimit>,
    /// It was told to.
    pub leaving_by_us: bool,
    /// It has said that it has no majority, and not that it has one again.
    pub blocked: bool,
    /// Since when it leads.
    pub leads: Option<u64>,
    /// Members in its latest view.
    pub sees: usize,
    /// The latest instant of which it told.
    pub heard: u64,
}

impl Proc {
    /// Starts `command` as the process of this number.
    pub fn start(
        mut command: Command,
        who: usize,
        (place, role): (usize, Role),
        name: String,
        dir: &Path,
        said: &Sender<Said>,
        counts: &Arc<Counts>,
    ) -> anyhow::Result<Self> {
        let (trace, log) = (dir.join(format!("{name}.jsonl")), dir.join(format!("{name}.log")));
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let proc = Self {
            child,
            stdin,
            name,
            place,
            role,
            trace,
            log,
            id: None,
            stopped_at: None,
            leaving: false,
            leaving_by_us: false,
            squeezed: false,
            files: None,
            blocked: false,
            leads: None,
            sees: 0,
            heard: 0,
        };
        if let Some(stdin) = &proc.stdin {
            // Who is stopped reads nothing: we do not wait for it.
            rustix::io::ioctl_fionbio(stdin, true)?;
        }
        let lines = BufReader::new(stdout.context("it is piped")?).lines();
        let (said, counts) = (said.clone(), Arc::clone(counts));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.starts_with("{\"at_ns\"") && line.contains("\"event\":\"message\"") {
                    counts.messages.fetch_add(1, Ordering::Relaxed);
                } else if let Ok(event) = serde_json::from_str::<Value>(&line)
                    && said.send((who, Some(event))).is_err()
                {
                    return;
                }
            }
            // Nobody listens at the end of a round.
            let _gone = said.send((who, None));
        });
        Ok(proc)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; it is our child and not waited for yet, so its number is still its own.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signalling {}", self.name))
    }

    /// From now on it can open nothing more than it has, or else again what it could.
    pub fn set_files(&mut self, none: bool) -> anyhow::Result<()> {
        let pid = Some(Pid::from_child(&self.child));
        let limit = |new| prlimit(pid, Resource::Nofile, new).context("prlimit");
        if none {
            let has = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count() as u64;
            // Not everybody may raise again what it lowers: the hard limit stays.
            let maximum = hard_limit(&std::fs::read_to_string(format!("/proc/{}/limits", self.pid()))?);
            let before = limit(Rlimit { current: Some(has), maximum })?;
            self.files.get_or_insert(before);
        } else if let Some(before) = self.files.take() {
            limit(before)?;
        }
        Ok(())
    }

    /// A line for it to read, which is dropped where it reads too slowly. False if it does not read, or not any more.
    pub fn say(&mut self, line: &str) -> bool {
        if self.role != Role::Member {
            return false;
        }
        let Some(stdin) = &mut self.stdin else { return false };
        // Less than a pipe takes at once, so it takes all or nothing.
        match stdin.write_all(format!("{line}\n").as_bytes()) {
            Ok(()) => true,
            Err(error) => Errno::from_io_error(&error) == Some(Errno::AGAIN),
        }
    }

    /// What it ended with, once it has; waits so long. A signal counts as 128 and its number.
    pub fn ended(&mut self, wait: Duration) -> anyhow::Result<Option<i32>> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let by_signal = status.signal().map_or(-1, |signal| 128 + signal);
                return Ok(Some(status.code().unwrap_or(by_signal)));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes in what it said.
    pub fn hear(&mut self, event: &Value) {
        let at = event["at_ns"].as_u64().unwrap_or_default();
        self.heard = self.heard.max(at);
        match event["event"].as_str().unwrap_or_default() {
            "started" => {
                let id = event["id"].as_str().and_then(|id| id.parse::<NodeId>().ok());
                self.id = id.map(Process::from).or(self.id);
                (self.sees, self.blocked) = (0, false);
            }
            "view" => {
                self.sees = event["members"].as_array().map_or(0, Vec::len);
            }
            "removed" | "dissolved" | "start_over" => self.sees = 0,
            "blocked" => self.blocked = true,
            "unblocked" => self.blocked = false,
            "ended" => self.leaving = true,
            "leading" => self.leads = Some(at),
            "not_leading" => self.leads = None,
            _ => {}
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
