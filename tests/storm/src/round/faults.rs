//! Faults: what is done to whom, and what follows at its time.

use std::{cmp::Ordering, collections::BTreeSet, time::Duration};

use membership_types::{
    Rng,
    trace::{Event, LinkState},
};
use rustix::process::Signal;

use super::Round;
use crate::{
    hosts::{Harm, Link},
    now_ns,
    plan::{EXTRA, Kind, Role},
};

/// What is to be done at its time.
pub(super) enum Action {
    Start(usize),
    Continue(usize),
    Heal(Vec<Link>),
    /// The next way of a link that is cut now this way, now that way.
    Flap {
        links: [Vec<Link>; 2],
        times: u64,
    },
    Feed(usize),
    Loosen(usize),
    Open(usize),
    Retire(usize),
    /// A leader is killed, and so many of its successors.
    KillOn {
        more: u64,
    },
}

pub(super) struct Due {
    pub(super) at: u64,
    pub(super) order: u64,
    /// Which fault it is of.
    pub(super) fault: u64,
    pub(super) action: Action,
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
pub(super) struct Awaited {
    pub(super) cause: String,
    pub(super) who: usize,
    /// Whose group it led.
    pub(super) role: Role,
    pub(super) at: u64,
}

impl Round<'_> {
    /// Who leads, as far as is known: the latest one that said so.
    pub(super) fn leader(&self) -> Option<usize> {
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

    pub(super) fn used_hosts(&self) -> Vec<usize> {
        let hosts: BTreeSet<usize> = self.plan.hosts[..self.plan.nodes].iter().copied().collect();
        hosts.into_iter().collect()
    }

    pub(super) fn all_hosts(&self) -> Vec<usize> {
        let hosts: BTreeSet<usize> = self.plan.hosts.iter().copied().collect();
        hosts.into_iter().collect()
    }

    fn await_next(&mut self, who: usize, cause: &str) {
        if self.leader() == Some(who) {
            let role = self.procs[&who].role;
            self.awaited = Some(Awaited { cause: cause.into(), who, role, at: now_ns() });
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

    pub(super) fn inject(&mut self, kind: Kind, rng: &mut Rng) -> anyhow::Result<()> {
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
            Kind::Squeeze => match self.some_running(rng) {
                Some(who) => {
                    let more = *rng.pick(&[256, 1024, 4096]).unwrap_or(&1024) << 10;
                    self.squeeze(who, more, self.leases(10.0))?
                }
                None => false,
            },
            Kind::Files => match self.some_running(rng) {
                Some(who) => {
                    let length = self.some_length(rng);
                    if let Some(proc) = self.procs.get_mut(&who) {
                        proc.set_files(true)?;
                        if let Some(p) = proc.id {
                            self.record(Event::Lack { p, what: "files".into() });
                        }
                    }
                    self.later(length, Action::Open(who));
                    true
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
    pub(super) fn between(&self, side: &[usize]) -> Vec<Link> {
        let others: Vec<usize> = self.all_hosts().into_iter().filter(|h| !side.contains(h)).collect();
        let pairs = side.iter().flat_map(|a| others.iter().map(move |b| (*a, *b)));
        pairs.flat_map(|(a, b)| [(Harm::Cut, a, b), (Harm::Cut, b, a)]).collect()
    }

    fn kill_and_restart(&mut self, who: usize, rng: &mut Rng, cause: &str) -> anyhow::Result<bool> {
        // Where all are killed it may have ended with another one.
        let Some(place) = self.procs.get(&who).map(|proc| proc.place) else { return Ok(false) };
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

    pub(super) fn pause(&mut self, who: usize) -> anyhow::Result<()> {
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        let at = now_ns();
        proc.stopped_at = Some(at);
        proc.signal(Signal::STOP)?;
        if let Some(p) = proc.id {
            self.record(Event::Pause { p });
        }
        Ok(())
    }

    pub(super) fn go_on(&mut self, who: usize) -> anyhow::Result<()> {
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

    pub(super) fn tell(&mut self, links: &[Link], state: Option<LinkState>) {
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

    fn squeeze(&mut self, who: usize, more: u64, length: Duration) -> anyhow::Result<bool> {
        let Some(quotas) = &self.shared.quotas else { return Ok(false) };
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(false) };
        quotas.squeeze(&format!("w{who}"), proc.pid(), more)?;
        proc.squeezed = true;
        if let Some(p) = proc.id {
            self.record(Event::Lack { p, what: "memory".into() });
        }
        self.later(length, Action::Loosen(who));
        Ok(true)
    }

    pub(super) fn retire(&mut self, who: usize) -> anyhow::Result<()> {
        let by_signal = self.order.is_multiple_of(2);
        let Some(proc) = self.procs.get_mut(&who) else { return Ok(()) };
        proc.leaving_by_us = true;
        if !std::mem::replace(&mut proc.leaving, true) && (by_signal || !proc.say("leave")) {
            proc.signal(Signal::TERM)?;
        }
        Ok(())
    }

    pub(super) fn act(&mut self, due: Due) -> anyhow::Result<()> {
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
            Action::Loosen(who) => {
                if let Some(quotas) = &self.shared.quotas {
                    quotas.loosen(&format!("w{who}"))?;
                }
            }
            Action::Open(who) => {
                if let Some(proc) = self.procs.get_mut(&who) {
                    proc.set_files(false)?;
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
}
