//! One round: a cluster of its own, a storm of faults, a calm, and the checker's verdict on what all have written.

mod calm;
mod faults;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use membership_types::{
    Rng,
    trace::{Event, Process, Record, Source},
};
use rustix::process::Signal;

use self::faults::{Action, Awaited, Due};
use crate::{
    Shared,
    client::Client,
    hosts::{Hosts, address},
    keys, now_ns,
    plan::{Plan, Role},
    proc::{Counts, Proc, Said},
    tally::{Reign, Tally},
};

/// How long a process may take to say that it has started, or to leave.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a wrapper ends with that has lost the lead, and one whose command ended by TERM.
const LOST: i32 = 5;
const TERMINATED: i32 = 143;
const KILLED: i32 = 137;

pub struct Round<'a> {
    plan: Plan,
    rng: Rng,
    shared: &'a Shared,
    hosts: &'a mut Hosts,
    dir: PathBuf,
    said: Sender<Said>,
    heard: Receiver<Said>,
    counts: Arc<Counts>,
    procs: BTreeMap<usize, Proc>,
    next: usize,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    fault: u64,
    traces: Vec<PathBuf>,
    records: Vec<(u64, Event)>,
    reigns: Vec<Reign>,
    awaited: Option<Awaited>,
    views: BTreeSet<u64>,
    sent: u64,
    next_send: u64,
    /// Who began to lead under which token, by lineage.
    titles: BTreeMap<(String, u64), Process>,
    client: Option<Client>,
    /// The node numbers of the founder slots, which belong to their addresses.
    slots: BTreeSet<u64>,
    /// Two hosts that never reach each other again.
    apart: Option<(usize, usize)>,
    /// The ending parts them into halves.
    undecided: bool,
    /// What went wrong that no trace tells.
    wrong: Vec<String>,
    tally: &'a mut Tally,
}

impl<'a> Round<'a> {
    pub fn new(
        plan: Plan,
        rng: Rng,
        shared: &'a Shared,
        hosts: &'a mut Hosts,
        dir: &Path,
        tally: &'a mut Tally,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("rendezvous")).with_context(|| format!("creating {}", dir.display()))?;
        let (said, heard) = channel();
        Ok(Self {
            plan,
            rng,
            shared,
            hosts,
            dir: dir.to_owned(),
            said,
            heard,
            counts: Arc::default(),
            procs: BTreeMap::new(),
            next: 1,
            queue: BinaryHeap::new(),
            order: 0,
            fault: 0,
            traces: Vec::new(),
            records: Vec::new(),
            reigns: Vec::new(),
            awaited: None,
            views: BTreeSet::new(),
            sent: 0,
            next_send: 0,
            titles: BTreeMap::new(),
            client: None,
            slots: BTreeSet::new(),
            apart: None,
            undecided: false,
            wrong: Vec::new(),
            tally,
        })
    }

    /// Plays the round. What went wrong, as text; nothing if all is well or it was told to stop.
    pub fn play(mut self) -> anyhow::Result<Vec<String>> {
        let began = now_ns();
        keys::make(&self.plan, &self.dir)?;
        for place in 0..self.plan.nodes {
            self.start(place)?;
        }
        // Most rounds begin with a whole group, the others while it is being founded.
        let whole = self.rng.chance(800);
        if whole {
            let sees_all = |p: &Proc, r: &Self| p.sees == r.plan.count(p.role);
            let all = |r: &Self| r.procs.values().filter(|p| sees_all(p, r)).count() == r.plan.nodes;
            if !self.run_until(self.after(self.b1() + self.b9()), all)? && !self.shared.stopping() {
                self.wrong.push("the first view of all did not come in time".into());
            }
        }
        if self.plan.burn > 0 {
            self.burn()?;
            self.end()?;
            return if self.shared.stopping() { Ok(Vec::new()) } else { self.judge(began) };
        }
        if self.plan.count(Role::Clone) > 0 {
            self.client = Some(Client::start(self.hosts.outside()?, self.clones())?);
        }
        let end = self.after(self.plan.storm);
        let every = self.plan.fault_every;
        while now_ns() < end && !self.shared.stopping() {
            let pause = every.mul_f64(0.2 + self.rng.below(1600) as f64 / 1000.0);
            self.run_until(self.after(pause).min(end), |_| false)?;
            let mut rng = self.rng.split();
            let kind = self.plan.some_kind(&mut rng);
            let under_way: BTreeSet<u64> = self.queue.iter().map(|Reverse(due)| due.fault).collect();
            if under_way.len() < 3 && now_ns() < end {
                self.inject(kind, &mut rng)?;
            }
        }
        if !self.shared.stopping() {
            self.calm()?;
        }
        self.end()?;
        if self.shared.stopping() {
            return Ok(Vec::new());
        }
        self.judge(began)
    }

    /// Many want the processors, and nothing else is wrong.
    fn burn(&mut self) -> anyhow::Result<()> {
        let processors = thread::available_parallelism()?.get();
        let cold = Arc::new(AtomicBool::new(false));
        let fires: Vec<_> = (0..processors * self.plan.burn)
            .map(|_| {
                let cold = Arc::clone(&cold);
                thread::spawn(move || while !cold.load(Relaxed) {})
            })
            .collect();
        let over = self.run_until(self.after(self.plan.storm), |_| false);
        cold.store(true, Relaxed);
        for fire in fires {
            // It only burns.
            let _burnt = fire.join();
        }
        over.map(|_| ())
    }

    fn after(&self, time: Duration) -> u64 {
        now_ns() + time.as_nanos() as u64
    }

    fn leases(&self, count: f64) -> Duration {
        self.plan.lease.mul_f64(count)
    }

    /// The bounds of liveness. Some waits of those who seek a cluster do not follow the lease.
    fn b1(&self) -> Duration {
        self.leases(20.0).max(Duration::from_secs(10))
    }

    fn b6(&self) -> Duration {
        self.leases(6.0).max(Duration::from_secs(3))
    }

    fn b9(&self) -> Duration {
        self.leases(60.0).max(Duration::from_secs(20))
    }

    fn record(&mut self, event: Event) {
        self.records.push((now_ns(), event));
    }

    fn later(&mut self, after: Duration, action: Action) {
        let (at, order, fault) = (self.after(after), self.order, self.fault);
        self.order += 1;
        self.queue.push(Reverse(Due { at, order, fault, action }));
    }

    fn start(&mut self, place: usize) -> anyhow::Result<()> {
        let who = self.next;
        self.next += 1;
        let host = self.plan.hosts[place];
        let at = |place: usize| format!("{}:{}", address(self.plan.hosts[place]), 7000 + place);
        let role = self.plan.roles[place];
        let mut command = self.hosts.command(host, &self.shared.phalanx);
        let lease = format!("{}ms", self.plan.lease.as_millis());
        command.args(["--json", "--die-with-parent", "--log", &self.shared.level]);
        match role {
            Role::Member => {
                command.args(["join", role.group()]);
                if self.plan.plain {
                    command.arg("--plain");
                }
            }
            Role::Clone => {
                let directories = self.plan.count(role).to_string();
                command.args(["inventory", "--group", role.group(), "--directories", &directories]);
                command.args(["--serve", &self.serves(place).to_string()]);
            }
            Role::Exclusive => {
                command.args(["run", "--exclusive", "--group", role.group()]);
            }
        }
        // One name for each place: the checker knows a node, and its founder slot, by the number that follows from it.
        command.args(["--name", &keys::name(place), "--listen", &at(place)]);
        command.args(["--lease", &lease, "--join-timeout", "8760h"]);
        command.args(["--label", &format!("zone=z{}", host % 3), "--label", &format!("rack=r{host}")]);
        keys::give(&self.plan, &self.dir, place, &mut command);
        if self.plan.durable && place < self.plan.nodes {
            command.arg("--data-dir").arg(self.dir.join(format!("data-{place}")));
        }
        if self.plan.expect {
            let list: Vec<String> = (0..self.plan.nodes).map(at).collect();
            command.args(["--rendezvous", &format!("static:{}", list.join(","))]);
            let expect = format!("expect={}", self.plan.nodes);
            command.args(["--bootstrap", if place < self.plan.nodes { &expect } else { "join" }]);
        } else {
            let dir = self.dir.join("rendezvous");
            command.args([
                "--rendezvous",
                &format!("file:{}", dir.display()),
                "--bootstrap",
                "alone-after=1s",
            ]);
        }
        let name = format!("n{place}-{who}");
        command.arg("--trace").arg(self.dir.join(format!("{name}.jsonl")));
        if role == Role::Exclusive {
            command.args(["--", &self.shared.storm, "--act"]).arg(self.acts());
        }
        let proc = Proc::start(command, who, (place, role), name, &self.dir, &self.said, &self.counts)?;
        self.traces.push(proc.trace.clone());
        self.procs.insert(who, proc);
        self.tally.processes += 1;
        Ok(())
    }

    /// Where a clone serves.
    fn serves(&self, place: usize) -> SocketAddr {
        (address(self.plan.hosts[place]), 8000 + place as u16).into()
    }

    fn clones(&self) -> Vec<SocketAddr> {
        let places = (0..self.plan.nodes).filter(|place| self.plan.roles[*place] == Role::Clone);
        places.map(|place| self.serves(place)).collect()
    }

    /// Where commands act.
    fn acts(&self) -> PathBuf {
        self.dir.join("acts")
    }

    /// Does what is due and listens, until then or until `done`. True if it is done.
    fn run_until(&mut self, until: u64, done: impl Fn(&Self) -> bool) -> anyhow::Result<bool> {
        loop {
            if done(self) {
                return Ok(true);
            }
            let now = now_ns();
            if now >= until || self.shared.stopping() {
                return Ok(false);
            }
            if self.queue.peek().is_some_and(|Reverse(due)| due.at <= now)
                && let Some(Reverse(due)) = self.queue.pop()
            {
                self.act(due)?;
                continue;
            }
            if now >= self.next_send {
                self.send();
            }
            let next = self.queue.peek().map_or(until, |Reverse(due)| due.at);
            let next = next.min(until).min(self.next_send).min(now + 50_000_000);
            match self.heard.recv_timeout(Duration::from_nanos(next.saturating_sub(now))) {
                Ok(said) => self.hear(said)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("we hold a sender ourselves"),
            }
        }
    }

    /// Somebody says something to the group.
    fn send(&mut self) {
        self.next_send = self.after(self.plan.send_every);
        let mut procs: Vec<&mut Proc> = self.procs.values_mut().filter(|p| p.role == Role::Member).collect();
        if procs.is_empty() || self.plan.plain {
            return;
        }
        self.sent += 1;
        let n = self.sent as usize;
        let word = ["send", "send-safe", "send-fifo"][n % 3];
        let at = n % procs.len();
        // Who is gone is told apart when its output ends.
        let _reads = procs[at].say(&format!("{word} {n}"));
    }

    fn hear(&mut self, (who, event): Said) -> anyhow::Result<()> {
        let Some(event) = event else { return self.silent(who) };
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        let (was, role) = (proc.id, proc.role);
        proc.hear(&event);
        let at = event["at_ns"].as_u64().unwrap_or_default();
        match event["event"].as_str().unwrap_or_default() {
            "started" if was.is_none() => {
                if let Some(p) = proc.id {
                    if proc.place < self.plan.nodes {
                        self.slots.insert(p.0);
                    }
                    self.record(Event::Start { p });
                }
            }
            "view" => {
                self.views.extend(event["view"].as_u64());
            }
            "leading" => {
                let lineage = event["lineage"].as_str().unwrap_or_default().to_owned();
                if let (Some(token), Some(p)) = (event["token"].as_u64(), self.procs[&who].id) {
                    self.titles.insert((lineage.clone(), token), p);
                }
                self.reigns.push(Reign { who, role, lineage, from: at, until: None });
                if let Some(awaited) = self.awaited.take_if(|a| a.role == role && a.who != who && a.at < at) {
                    self.tally.took(&awaited.cause, (at - awaited.at) as f64 / 1e6);
                }
                self.awaited.take_if(|a| a.who == who);
            }
            "not_leading" => self.close(who, event["until_ns"].as_u64().unwrap_or(at)),
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, who: usize, until: u64) {
        if let Some(reign) = self.reigns.iter_mut().rev().find(|r| r.who == who && r.until.is_none()) {
            reign.until = Some(until);
        }
    }

    /// A process says nothing any more.
    fn silent(&mut self, who: usize) -> anyhow::Result<()> {
        let Some(mut proc) = self.procs.remove(&who) else { return Ok(()) };
        let code = proc.ended(PATIENCE)?;
        if proc.squeezed && code == Some(KILLED) {
            // The kernel did it, for want of memory.
            self.gone(&proc, "SIGKILL");
            self.close(who, proc.heard);
            self.tally.out_of_memory += 1;
            if proc.place < self.plan.nodes {
                self.later(Duration::from_millis(50), Action::Start(proc.place));
            }
            return Ok(());
        }
        // A command that has lost its lead ends with its wrapper; one that is told to end does so by that signal.
        let lost = proc.role == Role::Exclusive && code == Some(LOST);
        let told = proc.role == Role::Exclusive && proc.leaving && matches!(code, Some(1 | TERMINATED));
        // Nothing can be started without a descriptor.
        let lost = lost || proc.role == Role::Exclusive && proc.files.is_some() && code == Some(1);
        if lost && proc.place < self.plan.nodes && !proc.leaving_by_us {
            self.later(Duration::from_millis(50), Action::Start(proc.place));
        }
        if !lost && !told && (code != Some(0) || !proc.leaving) {
            self.wrong.push(format!(
                "{} ended by itself with {code:?}: see {}",
                proc.name,
                proc.log.display()
            ));
            self.gone(&proc, "ended by itself");
        }
        self.close(who, proc.heard);
        Ok(())
    }

    /// Tells the checker of a process whose trace breaks off.
    fn gone(&mut self, proc: &Proc, how: &str) {
        // What it had written, or told us last; one of the two may be an incarnation ahead.
        let ids: BTreeSet<Process> = last_source(&proc.trace).into_iter().chain(proc.id).collect();
        for p in ids {
            self.record(Event::Crash { p, how: how.to_owned().into() });
        }
    }

    fn kill(&mut self, who: usize) -> anyhow::Result<()> {
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        proc.signal(Signal::KILL)?;
        if proc.ended(PATIENCE)?.is_none() {
            bail!("{} does not end when it is killed", proc.name);
        }
        // All that it said.
        let mut later = Vec::new();
        loop {
            let said = self.heard.recv_timeout(PATIENCE).context("the output of the dead does not end")?;
            match said {
                (other, None) if other == who => break,
                said if said.0 == who => self.hear(said)?,
                said => later.push(said),
            }
        }
        if let Some(proc) = self.procs.remove(&who) {
            self.gone(&proc, "SIGKILL");
            // What it would have noticed nobody can tell.
            self.close(who, proc.stopped_at.map_or(proc.heard, |at| at.min(proc.heard)));
        }
        for said in later {
            self.hear(said)?;
        }
        Ok(())
    }
}

/// Whose record is the last whole one of a trace.
fn last_source(trace: &Path) -> Option<Process> {
    let lines = BufReader::new(fs::File::open(trace).ok()?).lines();
    let sources = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Record>(&line).ok());
    match sources.last()?.src {
        Source::Process(p) => Some(p),
        _ => None,
    }
}
