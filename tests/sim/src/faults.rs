//! What goes wrong, and when it is mended.

mod kind;
mod links;

use membership_types::trace::{Event, Source};

pub use self::kind::{Kind, UnknownKind};
use crate::{
    network::Cut,
    process::Life,
    world::{Action, Ambush, Heirs, Strike, World},
};

/// The phases in which [`Kind::KillInPhase`] strikes.
pub(crate) const PHASES: [&str; 9] = [
    "candidate",
    "adopting",
    "proposing",
    "changing-core",
    "removing",
    "dissolving",
    "coordinating",
    "founding",
    "leaving",
];

/// How long a process is stopped, and what tells that it was.
fn pauses(lease: u64) -> [(u64, &'static str); 5] {
    [
        (lease / 3, "a process is stopped for a part of a lease"),
        (lease / 2, "a process is stopped for half a lease"),
        (lease, "a process is stopped for about a lease"),
        (3 * lease, "a process is stopped for three leases"),
        (10 * lease, "a process is stopped for ten leases"),
    ]
}

/// A time, for people.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}

fn list(places: &[usize]) -> String {
    if places.is_empty() {
        return "-".into();
    }
    places.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

impl World {
    /// Injects one fault: of this kind, or of one that this run has.
    pub(crate) fn inject(&mut self, kind: Option<Kind>) {
        self.script.begin(&mut self.rng);
        let kind = kind.or_else(|| self.rng.pick(&self.params.kinds).copied());
        let Some(kind) = kind else { return };
        let wanted = self.script.drawn(self.now, kind);
        let struck = wanted && self.strike(kind);
        if struck {
            *self.faults.entry(kind).or_insert(0) += 1;
        }
        if struck || !wanted && self.script.struck_there() {
            *self.drawn.entry(kind).or_insert(0) += 1;
        }
        self.script.end(&mut self.rng, struck);
    }

    /// For whoever reads what a fault did.
    fn note(&mut self, note: impl FnOnce() -> String) {
        let fault = self.script.current();
        self.script.note(fault, note);
    }

    /// Injects this kind of fault. False if nothing was there to be hit.
    fn strike(&mut self, kind: Kind) -> bool {
        let lease = self.params.lease.as_nanos() as u64;
        match kind {
            Kind::Crash => {
                let Some(p) = self.target() else { return false };
                // Now and then the next one goes with it.
                let count = if self.rng.chance(150) { 2 } else { 1 };
                self.crash_and_restart(p, lease);
                for _ in 1..count {
                    if let Some(p) = self.target() {
                        self.crash_and_restart(p, lease);
                    }
                }
            }
            Kind::KillInPhase => {
                let phase = *self.rng.pick(&PHASES).expect("not empty");
                self.lie_in_wait(phase, 6 * lease, Strike::Kill);
            }
            Kind::SplitInPhase => {
                let phase = *self.rng.pick(&PHASES).expect("not empty");
                self.lie_in_wait(phase, 6 * lease, Strike::Split);
            }
            Kind::MuteHeir => {
                let up = self.up();
                let Some(p) = up.into_iter().find(|p| self.processes[*p].cluster.is_coordinator()) else {
                    return false;
                };
                self.lie_in_wait("candidate", 2 * lease, Strike::Mute);
                self.crash_and_restart(p, lease);
            }
            Kind::SplitCore => {
                let up = self.up();
                let of_core = |w: &Self, p: usize| w.processes[p].cluster.is_coordinator();
                let Some(a) = up.into_iter().find(|p| of_core(self, *p)) else { return false };
                let core = self.processes[a].cluster.core().to_vec();
                let others: Vec<usize> = self
                    .up()
                    .into_iter()
                    .filter(|p| *p != a && core.contains(&self.processes[*p].id))
                    .collect();
                let Some(c) = self.rng.pick(&others).copied() else { return false };
                let (a, c) = (self.processes[a].place, self.processes[c].place);
                self.note(|| format!("place {a} | place {c} for {}", seconds(4 * lease)));
                self.cut_both(a, c, Cut::Lose, 4 * lease);
                self.lie_in_wait("changing-core", 4 * lease, Strike::Split);
            }
            Kind::ForceNew => {
                if self.rng.chance(600) {
                    // Long enough for the operator to come while it lasts.
                    let places = self.places();
                    let side: Vec<bool> = places.iter().map(|_| self.rng.chance(600)).collect();
                    self.split_by(&places, &side, 8 * lease, Cut::Lose);
                } else {
                    for p in self.up() {
                        if self.rng.chance(500) {
                            self.crash_and_restart(p, lease);
                        }
                    }
                }
                self.note(|| "an operator forces a lineage where somebody is blocked".into());
                let after = self.rng.between(3 * lease, 6 * lease);
                self.push(self.now + after, Action::Force);
            }
            Kind::WitnessGone => {
                let length = self.some_length(lease);
                let all = self.rng.chance(600);
                let Some(p) = self.target().filter(|_| self.params.witness) else { return false };
                if all {
                    self.note(|| format!("nobody reaches the witness for {}", seconds(length)));
                    self.witness.gone_until = self.now + length;
                } else {
                    self.note_process(p, || format!("does not reach the witness for {}", seconds(length)));
                    self.witness.cut.insert(self.processes[p].place, self.now + length);
                }
                self.mark("the witness is out of reach");
            }
            Kind::WitnessForgets => {
                if !self.params.witness {
                    return false;
                }
                let mut after = 0;
                if self.rng.chance(700) {
                    let places = self.places();
                    let side: Vec<bool> = places.iter().map(|_| self.rng.chance(500)).collect();
                    self.split_by(&places, &side, 12 * lease, Cut::Lose);
                    after = self.rng.between(lease, 4 * lease);
                }
                self.note(|| format!("the witness loses its memory after {}", seconds(after)));
                self.push(self.now + after, Action::Forget);
            }
            Kind::RestartAll => {
                if !self.rng.chance(if self.params.durable { 700 } else { 250 }) {
                    return false;
                }
                for p in self.up() {
                    self.crash_and_restart(p, lease);
                }
            }
            Kind::Pause => {
                let Some(p) = self.target() else { return false };
                let (length, mark) = *self.rng.pick(&pauses(lease)).expect("not empty");
                // Around these lengths protocols break: a little more or less makes the difference.
                let length = length - length / 20 + self.rng.below(length / 10);
                self.note_process(p, || format!("stopped for {}", seconds(length)));
                self.mark(mark);
                self.pause(p, length);
            }
            Kind::PauseAll => {
                let length = self.some_length(lease);
                self.note(|| format!("all stopped for {}", seconds(length)));
                for p in self.up() {
                    let more = self.rng.below(1 + lease / 50);
                    self.pause(p, length + more);
                }
                self.mark("every process is stopped at once");
            }
            Kind::Break => {
                let Some((a, b)) = self.pair() else { return false };
                self.lose_in_flight(a, b);
                let length = self.rng.below(60_000_000);
                self.note(|| format!("place {a} | place {b} for {}", seconds(length)));
                self.cut_both(a, b, Cut::Lose, length);
            }
            Kind::Delay => {
                let Some((a, b)) = self.pair() else { return false };
                let by = self.rng.between(lease / 20, lease + lease / 2);
                let length = self.rng.between(lease / 2, 5 * lease);
                let one_way = self.rng.chance(500);
                let arrow = if one_way { "->" } else { "<->" };
                self.note(|| {
                    format!("place {a} {arrow} place {b} slower by {} for {}", seconds(by), seconds(length))
                });
                self.slow(a, b, by, length);
                if !one_way {
                    self.slow(b, a, by, length);
                }
            }
            Kind::OneWay => {
                let Some(p) = self.target() else { return false };
                let length = self.some_length(lease);
                let how = self.some_cut();
                let place = self.processes[p].place;
                let others: Vec<usize> = self.places().into_iter().filter(|o| *o != place).collect();
                let hit: Vec<usize> = if self.rng.chance(500) {
                    others
                } else {
                    self.rng.pick(&others).copied().into_iter().collect()
                };
                let deaf = self.rng.chance(500);
                self.note_process(p, || {
                    let (heard, others) =
                        (if deaf { "does not hear" } else { "is not heard by" }, list(&hit));
                    format!("{heard} places {others} for {}, what is said {}", seconds(length), how.name())
                });
                for other in hit {
                    let (from, to) = if deaf { (other, place) } else { (place, other) };
                    self.cut(from, to, how, length);
                }
            }
            Kind::Partition => self.split(),
            Kind::Partial => {
                let length = self.some_length(lease);
                let pairs = self.rng.between(1, 3);
                if pairs == 1 && self.places().len() > 2 {
                    self.mark("two processes are cut from each other and a third one reaches both");
                }
                for _ in 0..pairs {
                    if let Some((a, b)) = self.pair() {
                        let how = self.some_cut();
                        self.note(|| {
                            format!(
                                "place {a} | place {b} for {}, what is said {}",
                                seconds(length),
                                how.name()
                            )
                        });
                        self.cut_both(a, b, how, length);
                    }
                }
            }
            Kind::Isolate => {
                let Some(p) = self.target() else { return false };
                let length = self.some_length(lease);
                let how = self.some_cut();
                let place = self.processes[p].place;
                self.note_process(p, || {
                    format!("cut off for {}, what is said {}", seconds(length), how.name())
                });
                for other in self.places() {
                    if other != place {
                        self.cut_both(place, other, how, length);
                    }
                }
            }
            Kind::JoinStorm => {
                let free: Vec<usize> = (self.params.nodes..self.params.nodes + self.params.extra)
                    .filter(|m| self.process_on(*m).is_none())
                    .collect();
                if free.is_empty() {
                    return false;
                }
                for machine in free {
                    self.push(self.now, Action::Start { machine });
                    let stay = self.rng.between(lease, 10 * lease);
                    self.note(|| format!("n{machine} starts and stays for {}", seconds(stay)));
                    self.push(self.now + stay, Action::Retire { machine });
                }
            }
            Kind::Replace => {
                let Some(p) = self.target() else { return false };
                // A founder slot is an address, and is taken to have one living process at a time.
                if self.processes[p].info.slot.is_some() {
                    return false;
                }
                self.note_process(p, || "moves away, and a new process takes its address".into());
                self.replace(p);
            }
            Kind::Leave => {
                let Some(p) = self.target() else { return false };
                let machine = self.processes[p].machine;
                // Before it happens, while it can be seen who that is.
                self.note_process(p, || "leaves".into());
                self.leave(p);
                let back = self.now + self.rng.between(lease / 10, 3 * lease);
                let after = back - self.now;
                self.note(|| format!("and comes back after {}", seconds(after)));
                self.push(back, Action::Start { machine });
            }
            Kind::Suspend => {
                let Some(p) = self.target() else { return false };
                let (length, _) = *self.rng.pick(&pauses(lease)).expect("not empty");
                let host = self.processes[p].host;
                self.note_process(p, || format!("and all on its host suspended for {}", seconds(length)));
                self.mark("a host is suspended, and its timers are late");
                for q in self.up().into_iter().filter(|q| self.processes[*q].host == host).collect::<Vec<_>>()
                {
                    self.processes[q].suspended_at = Some(self.now);
                    self.pause(q, length);
                }
            }
            Kind::WallClock => {
                let Some(p) = self.target() else { return false };
                let host = self.processes[p].host;
                for _ in 0..self.rng.between(1, 5) {
                    let by = if self.rng.chance(500) { 3600 } else { -3600 };
                    *self.walls.entry(host).or_default() += by;
                    for q in
                        self.up().into_iter().filter(|q| self.processes[*q].host == host).collect::<Vec<_>>()
                    {
                        let (p, kind, par) = (self.processes[q].id.into(), "rt_jump".into(), Some(by as f64));
                        self.record(Source::Harness, Event::Clock { p, kind, par });
                    }
                }
                self.note_process(p, || "on a host whose wall clock jumps".into());
                self.mark("a wall clock jumps");
            }
            Kind::Corrupt => {
                let Some(p) = self.target() else { return false };
                let (length, place) = (self.some_length(lease), self.processes[p].place);
                self.note_process(p, || {
                    format!("has links that change what is said, for {}", seconds(length))
                });
                for other in self.places() {
                    if other != place {
                        self.garble(other, place, length);
                        self.garble(place, other, length);
                    }
                }
            }
            Kind::DiskFull => {
                let Some(p) = self.target().filter(|p| self.processes[*p].info.keeps_floor) else {
                    return false;
                };
                let length = self.some_length(lease);
                self.note_process(p, || format!("has a full disk for {}", seconds(length)));
                self.disks_full.insert(self.processes[p].machine, self.now + length);
            }
            Kind::FlipFlop => return self.flip_flop(lease),
            Kind::Lossy => {
                let Some(p) = self.target() else { return false };
                let length = self.some_length(lease);
                let place = self.processes[p].place;
                self.note_process(p, || format!("loses 80 % for {}", seconds(length)));
                self.mark("a process loses four fifths of everything");
                for other in self.places() {
                    if other != place {
                        self.lose_most(other, place, length);
                        self.lose_most(place, other, length);
                    }
                }
            }
            Kind::Topology => return self.reshape(lease),
            Kind::Jam => {
                let Some(p) = self.target() else { return false };
                let (place, all) = (self.processes[p].place, self.rng.chance(400));
                let length = self.some_length(lease);
                self.note_process(p, || {
                    let whose = if all { "and everybody else" } else { "alone" };
                    format!("{whose} is jammed for {}", seconds(length))
                });
                let places = self.places();
                for a in &places {
                    for b in places.iter().filter(|b| *b != a && (all || *a == place || **b == place)) {
                        self.cut(*a, *b, Cut::Hold, length);
                    }
                }
                self.mark(if all {
                    "the whole network is jammed and released"
                } else {
                    "the links of a process are jammed and released"
                });
            }
            Kind::KillSuccessors => {
                let coordinates = |w: &Self, p: &usize| w.processes[*p].cluster.is_coordinator();
                let Some(p) = self.up().into_iter().find(|p| coordinates(self, p)) else { return false };
                let more = self.rng.between(1, 3);
                self.note(|| format!("and so are its next {more} successors"));
                self.crash_and_restart(p, lease);
                let fault = self.script.current();
                self.heirs = Some(Heirs { left: more, killed: 1, until: self.now + 8 * lease, fault });
            }
            Kind::LoseRack => return self.lose_rack(lease),
            Kind::LeaveStorm => {
                let up = self.up();
                let leavers: Vec<usize> = up.into_iter().filter(|_| self.rng.chance(600)).collect();
                if leavers.len() < 2 {
                    return false;
                }
                self.mark("several processes leave at the same instant");
                for p in leavers {
                    let machine = self.processes[p].machine;
                    self.note_process(p, || "leaves".into());
                    self.leave(p);
                    let back = self.now + self.rng.between(lease / 10, 4 * lease);
                    if machine < self.params.nodes {
                        self.push(back, Action::Start { machine });
                    }
                }
            }
            Kind::Flap => {
                let machines = (self.params.nodes + self.params.extra) as u64;
                let machine = self.rng.below(machines) as usize;
                let left = self.rng.between(8, 24);
                self.note(|| format!("n{machine} comes and goes, {left} times"));
                self.mark("a process comes and goes again and again");
                self.push(self.now, Action::Flap { machine, left });
            }
        }
        true
    }

    /// Some processes die together: those of one host where there are several hosts, else any.
    fn lose_rack(&mut self, lease: u64) -> bool {
        let up = self.up();
        let Some(p) = self.target() else { return false };
        let host = self.processes[p].host;
        let mut rack: Vec<usize> = up.iter().copied().filter(|q| self.processes[*q].host == host).collect();
        if rack.len() < 2 || rack.len() == up.len() {
            let size = self.rng.between(2, (up.len() as u64 / 2).max(2)) as usize;
            let at = up.iter().position(|q| *q == p).unwrap_or(0);
            rack = up.iter().cycle().skip(at).take(size.min(up.len().saturating_sub(1))).copied().collect();
        }
        if rack.len() < 2 {
            return false;
        }
        self.mark("several processes die at the same instant");
        for p in rack {
            self.crash_and_restart(p, lease);
        }
        true
    }

    /// A process that comes and goes does the one or the other.
    pub(crate) fn flap(&mut self, machine: usize, left: u64) {
        let lease = self.params.lease.as_nanos() as u64;
        let stays = machine < self.params.nodes;
        match self.process_on(machine) {
            Some(p) if left > 0 && !self.calm || !stays => {
                if self.rng.chance(500) {
                    self.crash(p, "killed");
                } else {
                    self.leave(p);
                }
            }
            None if left > 0 && !self.calm || stays => self.start(machine),
            _ => {}
        }
        if left > 0 && !self.calm {
            let next = self.rng.between(lease / 4, 3 * lease / 2);
            self.push(self.now + next, Action::Flap { machine, left: left - 1 });
        }
    }

    /// From now on nobody hears the process, which hears everybody, for two leases.
    pub(crate) fn mute(&mut self, p: usize) {
        let lease = self.params.lease.as_nanos() as u64;
        let place = self.processes[p].place;
        for other in self.places().into_iter().filter(|other| *other != place) {
            self.cut(place, other, Cut::Lose, 2 * lease);
        }
        self.mark("a candidate is not heard once it has asked");
    }

    fn lie_in_wait(&mut self, phase: &'static str, patience: u64, strike: Strike) {
        let what = match strike {
            Strike::Kill => "kills the first",
            Strike::Split => "splits the network around the first",
            Strike::Mute => "mutes the first",
        };
        self.note(|| format!("{what} that is {phase} within {}", seconds(patience)));
        let fault = self.script.current();
        self.ambush = Some(Ambush { phase, until: self.now + patience, strike, fault });
    }

    fn note_process(&mut self, p: usize, what: impl FnOnce() -> String) {
        let fault = self.script.current();
        if fault.is_some() {
            let who = self.who(p);
            self.script.note(fault, || format!("{who} {}", what()));
        }
    }

    /// A process, for people.
    pub(crate) fn who(&self, p: usize) -> String {
        let process = &self.processes[p];
        let mut text = format!("n{}", process.machine);
        if process.place != process.machine {
            text.push_str(&format!(" at place {}", process.place));
        }
        if process.cluster.is_coordinator() {
            text.push_str(" (coordinator)");
        } else if !process.app.leads.is_empty() {
            text.push_str(" (leader)");
        }
        text
    }

    fn crash_and_restart(&mut self, p: usize, lease: u64) {
        let machine = self.processes[p].machine;
        self.note_process(p, || "killed".into());
        self.crash(p, "killed");
        if machine < self.params.nodes && self.rng.chance(850) {
            let back = self.now + self.rng.between(1_000_000, 3 * lease);
            let after = back - self.now;
            self.note(|| format!("n{machine} starts again after {}", seconds(after)));
            self.push(back, Action::Start { machine });
        }
    }

    /// Somebody who runs; often the coordinator or a leader.
    pub(crate) fn target(&mut self) -> Option<usize> {
        let up = self.up();
        let coordinators: Vec<usize> =
            up.iter().copied().filter(|p| self.processes[*p].cluster.is_coordinator()).collect();
        let leaders: Vec<usize> =
            up.iter().copied().filter(|p| !self.processes[*p].app.leads.is_empty()).collect();
        let pool = match self.rng.below(100) {
            0..35 if !coordinators.is_empty() => coordinators,
            35..60 if !leaders.is_empty() => leaders,
            _ => up,
        };
        self.rng.pick(&pool).copied()
    }

    fn pair(&mut self) -> Option<(usize, usize)> {
        let places = self.places();
        let a = *self.rng.pick(&places)?;
        let b = *self.rng.pick(&places)?;
        (a != b).then_some((a, b))
    }

    /// Around the lengths at which protocols break: a little less or more than a lease, and long ones.
    fn some_length(&mut self, lease: u64) -> u64 {
        let base = *self
            .rng
            .pick(&[lease / 3, lease / 2, lease, lease, 2 * lease, 3 * lease, 8 * lease])
            .expect("not empty");
        base + self.rng.below(base / 4 + 1)
    }

    fn pause(&mut self, p: usize, length: u64) {
        self.stop(p);
        self.push(self.now + length, Action::Resume { p });
    }

    /// Stops a process where it stands.
    pub(crate) fn stop(&mut self, p: usize) {
        if !self.processes[p].is_up() {
            return;
        }
        if !self.processes[p].app.leads.is_empty() {
            self.mark("a leader is stopped");
        }
        self.processes[p].life = Life::Paused;
        let process = self.processes[p].id.into();
        self.record(Source::Harness, Event::Pause { p: process });
    }
}
