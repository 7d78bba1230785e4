//! One round: a cluster of its own, a storm of faults, a calm, and the checker's verdict on what all have written.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fs,
    io::{BufRead, BufReader, BufWriter, Write as _},
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
    trace::{Cfg, Event, LinkState, Process, Record, Source},
};
use rustix::process::Signal;

use crate::{
    Shared,
    hosts::{Harm, Hosts, Link, address},
    now_ns,
    plan::{EXTRA, Ending, Kind, Plan},
    proc::{Counts, Proc, Said},
    tally::{Reign, Tally, failovers, overlaps},
};

/// How long a process may take to say that it has started, or to leave.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done at its time.
enum Action {
    Start(usize),
    Continue(usize),
    Heal(Vec<Link>),
    /// The next way of a link that is cut now this way, now that way.
    Flap {
        links: [Vec<Link>; 2],
        times: u64,
    },
    Feed(usize),
    Retire(usize),
    /// A leader is killed, and so many of its successors.
    KillOn {
        more: u64,
    },
}

struct Due {
    at: u64,
    order: u64,
    /// Which fault it is of.
    fault: u64,
    action: Action,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A leader was hit, and nobody else leads yet.
struct Awaited {
    cause: String,
    who: usize,
    at: u64,
}

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
    /// The node numbers of the founder slots, which belong to their addresses.
    slots: BTreeSet<u64>,
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
            slots: BTreeSet::new(),
            undecided: false,
            wrong: Vec::new(),
            tally,
        })
    }

    /// Plays the round. What went wrong, as text; nothing if all is well or it was told to stop.
    pub fn play(mut self) -> anyhow::Result<Vec<String>> {
        let began = now_ns();
        if self.plan.sealed {
            let mut keys = Rng::seeded(self.plan.seed ^ 0x5ea1);
            let key: String = (0..4).map(|_| format!("{:016x}", keys.next_u64())).collect();
            let file = self.dir.join("secret");
            fs::write(&file, key)?;
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        }
        for place in 0..self.plan.nodes {
            self.start(place)?;
        }
        // Most rounds begin with a whole group, the others while it is being founded.
        let whole = self.rng.chance(800);
        if whole {
            let nodes = self.plan.nodes;
            let all = |r: &Self| r.procs.values().filter(|p| p.sees == nodes).count() == nodes;
            if !self.run_until(self.after(self.b1() + self.b9()), all)? && !self.shared.stopping() {
                self.wrong.push("the first view of all did not come in time".into());
            }
        }
        if self.plan.burn > 0 {
            self.burn()?;
            self.end()?;
            return if self.shared.stopping() { Ok(Vec::new()) } else { self.judge(began) };
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
        let mut command = self.hosts.command(host, &self.shared.phalanx);
        let lease = format!("{}ms", self.plan.lease.as_millis());
        command.args(["--json", "--die-with-parent", "--log", &self.shared.level, "join", "g"]);
        command.args(["--listen", &at(place), "--lease", &lease, "--join-timeout", "8760h"]);
        if self.plan.plain {
            command.arg("--plain");
        }
        if self.plan.sealed {
            command.arg("--secret-file").arg(self.dir.join("secret"));
        } else {
            command.arg("--insecure");
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
        let proc = Proc::start(command, who, place, &self.dir, &self.said, &self.counts)?;
        self.traces.push(proc.trace.clone());
        self.procs.insert(who, proc);
        self.tally.processes += 1;
        Ok(())
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
        let mut procs: Vec<&mut Proc> = self.procs.values_mut().collect();
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
        let was = proc.id;
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
                self.reigns.push(Reign { who, lineage, from: at, until: None });
                if let Some(awaited) = self.awaited.take_if(|a| a.who != who && a.at < at) {
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
        if code != Some(0) || !proc.leaving {
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

    /// Who leads, as far as is known: the latest one that said so.
    fn leader(&self) -> Option<usize> {
        let leading = self.procs.iter().filter_map(|(who, p)| Some((p.leads?, *who)));
        leading.max().map(|(_, who)| who)
    }

    fn some_running(&self, rng: &mut Rng) -> Option<usize> {
        let running: Vec<usize> = self
            .procs
            .iter()
            .filter(|(_, p)| p.stopped_at.is_none() && !p.leaving)
            .map(|(w, _)| *w)
            .collect();
        rng.pick(&running).copied()
    }

    /// A place of the plan's own nodes, not of a join storm.
    fn some_host(&self, rng: &mut Rng) -> usize {
        self.plan.hosts[rng.below(self.plan.nodes as u64) as usize]
    }

    fn used_hosts(&self) -> Vec<usize> {
        let hosts: BTreeSet<usize> = self.plan.hosts[..self.plan.nodes].iter().copied().collect();
        hosts.into_iter().collect()
    }

    fn all_hosts(&self) -> Vec<usize> {
        let hosts: BTreeSet<usize> = self.plan.hosts.iter().copied().collect();
        hosts.into_iter().collect()
    }

    fn await_next(&mut self, who: usize, cause: &str) {
        if self.leader() == Some(who) {
            self.awaited = Some(Awaited { cause: cause.into(), who, at: now_ns() });
        }
    }

    fn some_length(&self, rng: &mut Rng) -> Duration {
        match rng.below(4) {
            0 => self.leases(0.5 + rng.below(10) as f64 / 10.0),
            1 => self.leases(1.5 + rng.below(30) as f64 / 10.0),
            2 => self.leases(5.0 + rng.below(100) as f64 / 10.0),
            _ => self.leases(0.1 + rng.below(4) as f64 / 10.0),
        }
    }

    fn inject(&mut self, kind: Kind, rng: &mut Rng) -> anyhow::Result<()> {
        self.fault += 1;
        let done = match kind {
            Kind::Kill | Kind::KillLeader => {
                let who = if kind == Kind::Kill { self.some_running(rng) } else { self.leader() };
                match who {
                    Some(who) => self.kill_and_restart(who, rng, &kind.name())?,
                    None => false,
                }
            }
            Kind::KillRow => {
                self.act_kill_on(rng.between(1, 2), rng)?;
                true
            }
            Kind::KillAll => {
                let all: Vec<usize> = self.procs.keys().copied().collect();
                for who in all {
                    self.kill_and_restart(who, rng, "kill-all")?;
                }
                true
            }
            Kind::Stop | Kind::StopLeader => {
                let who = if kind == Kind::Stop { self.some_running(rng) } else { self.leader() };
                let length = self.leases(*rng.pick(&[0.5, 1.0, 3.0, 10.0]).unwrap_or(&1.0));
                match who.filter(|who| self.procs[who].stopped_at.is_none()) {
                    Some(who) => {
                        self.stop(who, length)?;
                        true
                    }
                    None => false,
                }
            }
            Kind::StopAll => {
                let length = self.leases(*rng.pick(&[0.5, 1.0, 3.0, 10.0]).unwrap_or(&1.0));
                let all: Vec<usize> =
                    self.procs.iter().filter(|(_, p)| p.stopped_at.is_none()).map(|(who, _)| *who).collect();
                for who in all {
                    self.stop(who, length)?;
                }
                true
            }
            Kind::OneWay | Kind::Flap => {
                let host = self.some_host(rng);
                let others: Vec<usize> = self.used_hosts().into_iter().filter(|h| *h != host).collect();
                let hit: Vec<usize> =
                    if rng.chance(500) { others } else { rng.pick(&others).copied().into_iter().collect() };
                let deaf: Vec<Link> = hit.iter().map(|o| (Harm::Cut, *o, host)).collect();
                let mute: Vec<Link> = hit.iter().map(|o| (Harm::Cut, host, *o)).collect();
                let length = self.some_length(rng);
                if kind == Kind::OneWay {
                    self.harm(if rng.chance(500) { deaf } else { mute }, length, &kind)?;
                } else {
                    self.act(Due {
                        at: 0,
                        order: 0,
                        fault: self.fault,
                        action: Action::Flap { links: [deaf, mute], times: rng.between(3, 6) },
                    })?;
                }
                !hit.is_empty()
            }
            Kind::Partial => {
                let hosts = self.used_hosts();
                let mut links = Vec::new();
                for _ in 0..rng.between(1, 3) {
                    if let (Some(a), Some(b)) = (rng.pick(&hosts), rng.pick(&hosts))
                        && a != b
                    {
                        links.extend([(Harm::Cut, *a, *b), (Harm::Cut, *b, *a)]);
                    }
                }
                let length = self.some_length(rng);
                !links.is_empty() && {
                    self.harm(links, length, &kind)?;
                    true
                }
            }
            Kind::Split => {
                let hosts = self.all_hosts();
                let side: Vec<usize> = hosts.iter().copied().filter(|_| rng.chance(500)).collect();
                let links = self.between(&side);
                let length = self.some_length(rng);
                !links.is_empty() && {
                    self.harm(links, length, &kind)?;
                    true
                }
            }
            Kind::Isolate | Kind::IsolateLeader => {
                let host = if kind == Kind::Isolate {
                    Some(self.some_host(rng))
                } else {
                    self.leader().map(|who| self.plan.hosts[self.procs[&who].place])
                };
                let length = self.some_length(rng);
                let links = host.map(|host| self.between(&[host])).unwrap_or_default();
                !links.is_empty() && {
                    self.harm(links, length, &kind)?;
                    true
                }
            }
            Kind::Loss => {
                let host = self.some_host(rng);
                let links = self.between(&[host]).into_iter().map(|(_, a, b)| (Harm::Loss, a, b)).collect();
                let length = self.some_length(rng);
                self.harm(links, length, &kind)?;
                true
            }
            Kind::Starve => match self.some_running(rng) {
                Some(who) => {
                    let percent = *rng.pick(&[5, 10, 20]).unwrap_or(&20);
                    self.starve(who, percent, self.leases(10.0))?
                }
                None => false,
            },
            Kind::JoinStorm => {
                for place in self.plan.nodes..self.plan.nodes + EXTRA {
                    if self.procs.values().all(|p| p.place != place) {
                        self.start(place)?;
                        let stay = self.leases(1.0 + rng.below(80) as f64 / 10.0);
                        self.later(stay, Action::Retire(self.next - 1));
                    }
                }
                true
            }
            Kind::Leave => match self.some_running(rng) {
                Some(who) => {
                    let place = self.procs[&who].place;
                    self.await_next(who, "leave");
                    self.retire(who)?;
                    if place < self.plan.nodes {
                        let back = self.leases(rng.between(1, 30) as f64 / 10.0);
                        self.later(back, Action::Start(place));
                    }
                    true
                }
                None => false,
            },
            Kind::StepDown => match self.leader() {
                Some(who) => {
                    if self.procs[&who].sees > 1 {
                        self.await_next(who, "step-down");
                    }
                    self.procs.get_mut(&who).is_some_and(|p| p.say("step-down"))
                }
                None => false,
            },
        };
        if done {
            *self.tally.faults.entry(kind).or_default() += 1;
            self.shared.log(&kind.name());
        }
        Ok(())
    }

    /// All links between these hosts and the others, both ways.
    fn between(&self, side: &[usize]) -> Vec<Link> {
        let others: Vec<usize> = self.all_hosts().into_iter().filter(|h| !side.contains(h)).collect();
        let pairs = side.iter().flat_map(|a| others.iter().map(move |b| (*a, *b)));
        pairs.flat_map(|(a, b)| [(Harm::Cut, a, b), (Harm::Cut, b, a)]).collect()
    }

    fn kill_and_restart(&mut self, who: usize, rng: &mut Rng, cause: &str) -> anyhow::Result<bool> {
        let place = self.procs[&who].place;
        self.await_next(who, cause);
        self.kill(who)?;
        if place < self.plan.nodes {
            let back = if rng.chance(200) { 0.0 } else { rng.between(1, 40) as f64 / 10.0 };
            let back = self.leases(back);
            self.later(back, Action::Start(place));
        }
        Ok(true)
    }

    fn act_kill_on(&mut self, more: u64, rng: &mut Rng) -> anyhow::Result<()> {
        if let Some(who) = self.leader() {
            self.kill_and_restart(who, rng, "kill-row")?;
            if more > 0 {
                // In the midst of the takeover, or just after it.
                let pause = self.leases(rng.between(1, 20) as f64 / 10.0);
                self.later(pause, Action::KillOn { more: more - 1 });
            }
        } else if more > 0 {
            self.later(self.leases(0.5), Action::KillOn { more: more - 1 });
        }
        Ok(())
    }

    fn stop(&mut self, who: usize, length: Duration) -> anyhow::Result<()> {
        let cause = format!("stop of {} leases", length.as_secs_f64() / self.plan.lease.as_secs_f64());
        self.await_next(who, &cause);
        self.pause(who)?;
        self.later(length, Action::Continue(who));
        Ok(())
    }

    fn pause(&mut self, who: usize) -> anyhow::Result<()> {
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        let at = now_ns();
        proc.stopped_at = Some(at);
        proc.signal(Signal::STOP)?;
        if let Some(p) = proc.id {
            self.record(Event::Pause { p });
        }
        Ok(())
    }

    fn go_on(&mut self, who: usize) -> anyhow::Result<()> {
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        if proc.stopped_at.take().is_some() {
            let p = proc.id;
            // Before it can do anything.
            if let Some(p) = p {
                self.records.push((now_ns(), Event::Resume { p }));
            }
            self.procs[&who].signal(Signal::CONT)?;
            self.awaited.take_if(|awaited| awaited.who == who);
        }
        Ok(())
    }

    fn tell(&mut self, links: &[Link], state: Option<LinkState>) {
        for (harm, from, to) in links {
            let broken = if *harm == Harm::Cut { LinkState::Cut } else { LinkState::Loss };
            let event =
                Event::Link { a: *from as u64, b: *to as u64, state: state.unwrap_or(broken), par: None };
            self.record(event);
        }
    }

    fn harm(&mut self, links: Vec<Link>, length: Duration, kind: &Kind) -> anyhow::Result<()> {
        self.tell(&links, None);
        if let Some(who) = self.leader() {
            let host = self.plan.hosts[self.procs[&who].place];
            if links.iter().any(|(harm, a, b)| *harm == Harm::Cut && (*a == host || *b == host)) {
                self.await_next(who, &kind.name());
            }
        }
        self.hosts.harm(&links)?;
        self.later(length, Action::Heal(links));
        Ok(())
    }

    fn starve(&mut self, who: usize, percent: u64, length: Duration) -> anyhow::Result<bool> {
        let Some(quotas) = &self.shared.quotas else { return Ok(false) };
        let proc = &self.procs[&who];
        quotas.starve(&format!("w{who}"), proc.pid(), percent)?;
        if let Some(p) = proc.id {
            self.record(Event::Starve { p, quota: percent as f64 / 100.0 });
        }
        self.later(length, Action::Feed(who));
        Ok(true)
    }

    fn retire(&mut self, who: usize) -> anyhow::Result<()> {
        let by_signal = self.order.is_multiple_of(2);
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        if !std::mem::replace(&mut proc.leaving, true) && (by_signal || !proc.say("leave")) {
            proc.signal(Signal::TERM)?;
        }
        Ok(())
    }

    fn act(&mut self, due: Due) -> anyhow::Result<()> {
        let fault = std::mem::replace(&mut self.fault, due.fault);
        match due.action {
            Action::Start(place) => {
                let taken = self.procs.values().any(|p| p.place == place);
                if taken {
                    self.later(Duration::from_millis(50), Action::Start(place));
                } else {
                    self.start(place)?;
                }
            }
            Action::Continue(who) => self.go_on(who)?,
            Action::Heal(links) => {
                let whole = self.hosts.heal(&links)?;
                self.tell(&whole, Some(LinkState::Ok));
            }
            Action::Flap { links, times } => {
                self.tell(&links[0], None);
                self.hosts.harm(&links[0])?;
                let more = self.rng.below(20) as f64 / 10.0;
                let length = self.leases(0.7 + more);
                self.later(length, Action::Heal(links[0].clone()));
                if times > 0 {
                    let [a, b] = links;
                    self.later(length, Action::Flap { links: [b, a], times: times - 1 });
                }
            }
            Action::Feed(who) => {
                if let Some(quotas) = &self.shared.quotas {
                    quotas.feed(&format!("w{who}"))?;
                }
            }
            Action::Retire(who) => self.retire(who)?,
            Action::KillOn { more } => {
                let mut rng = self.rng.split();
                self.act_kill_on(more, &mut rng)?;
            }
        }
        self.fault = fault;
        Ok(())
    }

    /// Mends everything, but for what the ending leaves broken, and waits until all must agree.
    fn calm(&mut self) -> anyhow::Result<()> {
        for Reverse(due) in std::mem::take(&mut self.queue).into_vec() {
            match due.action {
                Action::Feed(_) | Action::Retire(_) => self.act(due)?,
                _ => {}
            }
        }
        let whole = self.hosts.heal_all()?;
        self.tell(&whole, Some(LinkState::Ok));
        let stopped: Vec<usize> = self.procs.keys().copied().collect();
        for who in stopped {
            self.go_on(who)?;
        }
        let gone = |r: &Self| r.procs.values().all(|p| !p.leaving);
        if !self.run_until(self.after(PATIENCE), gone)? && !self.shared.stopping() {
            self.kill_slow_leavers()?;
        }
        for place in 0..self.plan.nodes {
            if self.procs.values().all(|p| p.place != place) {
                self.start(place)?;
            }
        }
        let told = |r: &Self| r.procs.values().all(|p| p.id.is_some());
        if !self.run_until(self.after(PATIENCE), told)? && !self.shared.stopping() {
            self.wrong.push("a process does not say that it has started".into());
        }
        // The faults at the end fall on a cluster that is whole, or nearly.
        self.run_until(self.after(self.leases(5.0)), |_| false)?;
        let outcast = self.break_for_good()?;
        let lasts = self.b9() + self.leases(4.0) + Duration::from_secs(1);
        for attempt in 1..=3 {
            // Whoever has just rejoined has told of it by then.
            self.run_until(self.after(self.leases(1.0)), |_| false)?;
            self.shared.stall.store(0, Relaxed);
            let living = self.procs.iter().filter(|(who, _)| !outcast.contains(who));
            let core: Vec<Process> = living.filter_map(|(_, p)| p.id).collect();
            let at = self.records.len();
            self.record(Event::Gst { core, apart: Vec::new() });
            self.run_until(self.after(lasts), |_| false)?;
            let stall = Duration::from_nanos(self.shared.stall.load(Relaxed));
            if self.shared.stopping() || stall < self.plan.lease / 3 {
                break;
            }
            // Nothing can be said of how long processes take that do not run.
            self.shared.log(&format!("the machine stood still for {stall:?} in the calm: attempt {attempt}"));
            self.records.remove(at);
            self.tally.calms_not_judged += 1;
        }
        if self.plan.expect && !self.undecided {
            for proc in outcast.iter().filter_map(|who| self.procs.get(who)) {
                if proc.leads.is_some() && proc.stopped_at.is_none() && !self.shared.stopping() {
                    self.wrong.push(format!("{} is cut off from most, and leads", proc.name));
                }
            }
        }
        Ok(())
    }

    fn kill_slow_leavers(&mut self) -> anyhow::Result<()> {
        let slow: Vec<usize> = self.procs.iter().filter(|(_, p)| p.leaving).map(|(who, _)| *who).collect();
        for who in slow {
            let proc = &self.procs[&who];
            self.wrong.push(format!("{} does not leave: see {}", proc.name, proc.log.display()));
            self.kill(who)?;
        }
        Ok(())
    }

    /// Who is not among those that must get along.
    fn break_for_good(&mut self) -> anyhow::Result<BTreeSet<usize>> {
        let mut rng = self.rng.split();
        let all: Vec<usize> = self.procs.keys().copied().collect();
        // Often the one whose loss hurts most.
        let leader = self.leader().filter(|_| rng.chance(500));
        let Some(who) = leader.or_else(|| rng.pick(&all).copied()) else { return Ok(BTreeSet::new()) };
        let host = self.plan.hosts[self.procs[&who].place];
        let mut side = vec![host];
        match self.plan.ending {
            Ending::AllWell => return Ok(BTreeSet::new()),
            Ending::OneDown => {
                self.kill(who)?;
                return Ok(BTreeSet::new());
            }
            Ending::OneStopped => {
                self.pause(who)?;
                return Ok(BTreeSet::from([who]));
            }
            Ending::MostDown => {
                for who in all.iter().take(all.len() / 2 + 1) {
                    self.kill(*who)?;
                }
                return Ok(BTreeSet::new());
            }
            Ending::MinorityCutOff => {
                let on = |side: &[usize]| {
                    self.procs.values().filter(|p| side.contains(&self.plan.hosts[p.place])).count()
                };
                for host in self.all_hosts() {
                    let more: Vec<usize> = side.iter().copied().chain([host]).collect();
                    if !side.contains(&host) && 2 * on(&more) < self.procs.len() {
                        side = more;
                    }
                }
            }
            Ending::OneIsolated | Ending::OneDeaf | Ending::OneMute => {}
        }
        let mut links = self.between(&side);
        match self.plan.ending {
            Ending::OneDeaf => links.retain(|(_, _, to)| *to == host),
            Ending::OneMute => links.retain(|(_, from, _)| *from == host),
            _ => {}
        }
        let of_side = |p: &Proc| side.contains(&self.plan.hosts[p.place]);
        let mut outcast: BTreeSet<usize> =
            self.procs.iter().filter(|(_, p)| of_side(p)).map(|(who, _)| *who).collect();
        match (2 * outcast.len()).cmp(&self.procs.len()) {
            Ordering::Less => {}
            // Then it is the others that are cut off.
            Ordering::Greater => outcast = all.into_iter().filter(|who| !outcast.contains(who)).collect(),
            // One half may go on, or none.
            Ordering::Equal => (outcast, self.undecided) = (all.into_iter().collect(), true),
        }
        self.tell(&links, None);
        self.hosts.harm(&links)?;
        Ok(outcast)
    }

    /// All leave.
    fn end(&mut self) -> anyhow::Result<()> {
        let stalled = Duration::from_nanos(self.shared.worst.load(Relaxed));
        self.tally.longest_stall_ms = self.tally.longest_stall_ms.max(stalled.as_secs_f64() * 1e3);
        self.awaited = None;
        let whole = self.hosts.heal_all()?;
        self.tell(&whole, Some(LinkState::Ok));
        let all: Vec<usize> = self.procs.keys().copied().collect();
        if self.shared.stopping() {
            self.procs.clear();
            return Ok(());
        }
        for who in all {
            self.go_on(who)?;
            self.retire(who)?;
        }
        if !self.run_until(self.after(PATIENCE), |r| r.procs.is_empty())? && !self.shared.stopping() {
            self.kill_slow_leavers()?;
        }
        Ok(())
    }

    fn judge(mut self, began: u64) -> anyhow::Result<Vec<String>> {
        let mut out = BufWriter::new(fs::File::create(self.dir.join("harness.jsonl"))?);
        let cfg = Event::Cfg(self.terms()?);
        let last = (now_ns(), Event::End {});
        let events = [(began, cfg)].into_iter().chain(std::mem::take(&mut self.records)).chain([last]);
        for (seq, (t, event)) in (1..).zip(events) {
            serde_json::to_writer(&mut out, &Record { v: 1, src: Source::Harness, seq, t, event })?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        drop(out);
        self.traces.insert(0, self.dir.join("harness.jsonl"));
        let mut wrong = std::mem::take(&mut self.wrong);
        match checker::check_files(&self.traces) {
            Ok(report) => {
                self.tally.judge(&report);
                if report.failed() {
                    let text = report.to_string();
                    let told = |line: &&str| line.contains(" fail ") || line.starts_with([' ', 'i']);
                    wrong.extend(text.lines().filter(told).map(str::to_owned));
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
        wrong.extend(overlaps(&mut self.reigns, self.plan.expect));
        for entry in
            fs::read_dir(&self.dir)?.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "log"))
        {
            let text = fs::read_to_string(entry.path())?;
            if text.contains("panicked at") {
                wrong.push(format!("a panic: see {}", entry.path().display()));
            }
        }
        self.tally.views += self.views.len() as u64;
        self.tally.messages += self.counts.messages.load(Relaxed);
        self.tally.failovers += failovers(&self.reigns);
        Ok(wrong)
    }

    /// The terms of the run: what the nodes say, with the bounds that hold on this machine.
    fn terms(&self) -> anyhow::Result<Cfg> {
        let first = |path: &PathBuf| {
            let line = BufReader::new(fs::File::open(path).ok()?).lines().next()?.ok()?;
            match serde_json::from_str::<Record>(&line).ok()?.event {
                Event::Cfg(cfg) => Some(cfg),
                _ => None,
            }
        };
        let mut cfg = self.traces.iter().find_map(first).context("no trace begins with its terms")?;
        if self.plan.expect {
            cfg.slots = self.slots.iter().copied().collect();
        }
        let bounds = [("B1", self.b1()), ("B6", self.b6()), ("B9", self.b9())];
        cfg.bounds = bounds.map(|(name, time)| (name.to_owned(), time.as_nanos() as u64)).into();
        for (name, leases) in [("B2", 4.0), ("B4", 8.0), ("delta", 1.0)] {
            let time = self.leases(leases).max(Duration::from_secs(2));
            cfg.bounds.insert(name.to_owned(), time.as_nanos() as u64);
        }
        Ok(cfg)
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
