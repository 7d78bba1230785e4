//! How processes begin and end: starts, crashes, proofs of them, leaving, and what comes back late.

use std::collections::{BTreeSet, VecDeque};

use membership_proto::{
    Bootstrap, Cluster, Config, Domains, Floor, Forced, Input, NodeInfo,
    witness::{Epoch, Keeper, Question},
};
use membership_types::{
    Instant, NodeId, ViewId,
    trace::{Event, Process as P, Source},
};

use super::{Action, DISK_NS, EPOCH_S, FEW, ID_BLOCK, MANY, World, address, group};
#[cfg(feature = "plant")]
use crate::plant::Plant;
use crate::{
    clock::Clock,
    process::{App, ByGroup, GROUPS, Incoming, Life, Process},
};

impl World {
    /// The process that listens at a machine's address, if there is one.
    pub(crate) fn process_on(&self, machine: usize) -> Option<usize> {
        self.listening.get(&address(machine)).copied()
    }

    /// All that run.
    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.processes.len()).filter(|p| self.processes[*p].is_up()).collect()
    }

    /// All places where something is.
    pub(crate) fn places(&self) -> Vec<usize> {
        self.processes.iter().filter(|p| !p.is_gone()).map(|p| p.place).collect()
    }

    /// Starts a process on a machine that has none.
    pub(crate) fn start(&mut self, machine: usize) {
        if self.process_on(machine).is_none() {
            let app = self.wanted(machine);
            self.spawn(machine, machine, app, ViewId::NONE, None);
        }
    }

    pub(super) fn may_be_in_groups(&self, machine: usize) -> bool {
        self.params.nodes <= MANY || machine < FEW
    }

    /// The groups that processes of this machine want: always the same ones.
    pub(super) fn wanted(&self, machine: usize) -> App {
        let mut app = App::default();
        if !self.may_be_in_groups(machine) {
            return app;
        }
        for g in 0..self.params.groups {
            if machine.is_multiple_of(g + 1) || machine < 2 {
                app.wants.insert(group(g));
            } else {
                app.observes.insert(group(g));
            }
        }
        app
    }

    pub(super) fn spawn(
        &mut self,
        machine: usize,
        place: usize,
        app: App,
        highest: ViewId,
        forced: Option<Forced>,
    ) {
        let old = self.params.old.remove(&machine);
        let params = &self.params;
        let inc = self.seeds.next_u64() >> 20;
        let id = NodeId::new(machine as u32, inc);
        let founder = machine < params.nodes;
        let slot = (machine < usize::from(params.slots)).then_some(machine as u16);
        let eligible = !params.ineligible.contains(&machine) && (founder || (machine * 7 + 3) % 10 < 7);
        let zone = self.params.zones.filter(|_| founder || machine.is_multiple_of(2));
        let named = |kind: &str, count: Option<usize>| Some(format!("{kind}{}", machine % count?).into());
        let (rack, power) = (named("r", params.racks), named("p", params.powers));
        let domains = Domains { zone: named("z", zone), rack, power };
        let info = NodeInfo {
            id,
            name: format!("n{machine}").into(),
            addr: address(machine),
            eligible,
            slot,
            keeps_floor: params.durable && slot.is_some(),
            domains,
            load_weight: None,
        };
        let bootstrap = match (slot, founder) {
            (Some(_), _) => Bootstrap::Expect(params.slots),
            (None, true) if params.slots == 0 => Bootstrap::AloneAfter(params.alone_after),
            _ => Bootstrap::Join,
        };
        let mut config = Config::new(info.clone(), bootstrap, params.lease).expect("within the ranges");
        config.heartbeat = params.heartbeat;
        config.terms.core_size = params.core_size;
        config.terms.slots = params.slots;
        config.terms.witness = params.witness;
        config.epoch_s = EPOCH_S;
        if params.durable {
            // Set back at every start: only what is on disk tells what was given before.
            config.epoch_s -= 1000 * self.processes.len() as u64;
            config.id_block = ID_BLOCK;
            config.id_bits = 2;
        }
        let host = self.params.hosts.get(machine).copied().unwrap_or(1000 + machine);
        config.epoch_s = config.epoch_s.saturating_add_signed(self.walls.get(&host).copied().unwrap_or(0));
        config.trace = true;
        config.raise_after = Some(params.raise_after);
        if old {
            config.level = 0;
        }
        let ppm = self.seeds.between(0, 2 * params.drift_ppm) as i64 - params.drift_ppm as i64;
        // All clocks of one host agree; wall clocks start near each other.
        let clock = Clock::new(ppm);
        let now = clock.local(self.now);
        let rng = self.seeds.split();
        #[allow(unused_mut, reason = "planting needs it")]
        let mut cluster = Cluster::new(config, now, rng, highest);
        if info.keeps_floor {
            cluster = cluster.with_floor(self.disks.get(&machine).copied());
        }
        #[cfg(feature = "plant")]
        cluster.plant(self.plant.and_then(Plant::of_membership));
        let _ = self.plant;
        if let Some(forced) = forced {
            cluster = cluster.with_forced(forced);
        }
        let p = self.processes.len();
        let wants = app.wants.clone();
        let observes = app.observes.clone();
        let app = App { wants, observes, ..App::default() };
        self.processes.push(Process {
            id,
            machine,
            place,
            host,
            info,
            clock,
            cluster,
            app,
            life: Life::Up,
            crashed: false,
            suspended_at: None,
            met: BTreeSet::new(),
            attested: false,
            inbox: VecDeque::new(),
            next: VecDeque::new(),
            rooms: ByGroup::default(),
            dues: [None; 1 + GROUPS],
            moved: u8::MAX,
            wake_at: None,
            wake_due: Instant::ZERO,
            fuse: None,
        });
        self.by_id.insert(id, p);
        if place == machine {
            self.listening.insert(address(machine), p);
        }
        self.record(Source::Harness, Event::Start { p: id.into() });
        let rendezvous = (0..self.params.nodes).map(address).collect();
        self.step(p, Incoming::Cluster(Input::Rendezvous { addresses: rendezvous, complete: true }));
        for group in self.processes[p].app.wants.clone() {
            let endpoint = Some(format!("10.1.0.{machine}:80").into());
            self.join(p, group, endpoint);
        }
        for group in self.processes[p].app.observes.clone() {
            self.step(p, Incoming::Cluster(Input::Observe { group, begin: true }));
        }
        let first = self.rng.below(self.params.lease.as_nanos() as u64 / 2);
        self.push(self.now + first, Action::App { p });
    }

    /// A question reaches the witness. It may do what it is asked, and nobody hears what came of it.
    pub(super) fn ask_witness(&mut self, p: usize, question: Question) {
        let place = self.processes[p].place;
        let cut = self.witness.cut.get(&place).is_some_and(|until| self.now < *until);
        if cut || self.now < self.witness.gone_until || self.calm && self.outcast.contains(&place) {
            return;
        }
        let (lineage, core, claims) = (question.lineage, question.core, question.claim.is_some());
        let answer = self.witness.keeper.answer(question);
        if let Some(half) = answer.record.as_ref().filter(|_| claims) {
            let half = half.iter().map(|id| P::from(*id)).collect();
            let (lin, core) = (membership_types::trace::lin(lineage), core.get());
            let epoch = answer.epoch.to_string();
            self.record(Source::Harness, Event::Witness { lin, core, epoch, half });
        }
        if claims && self.rng.chance(150) && self.is_wild() {
            self.mark("the witness records a half, and its answer is lost");
            return;
        }
        let late = self.is_wild() && self.rng.chance(100);
        let longest = if late { 3 * self.params.lease.as_nanos() as u64 } else { 20_000_000 };
        let delay = self.rng.between(100_000, longest);
        let input = Incoming::Cluster(Input::Witness(answer));
        self.push(self.now + delay, Action::Deliver { p, input });
    }

    pub(super) fn forget_records(&mut self) {
        if !self.calm {
            self.witness.keeper = Keeper::new(Epoch::new(self.rng.next_u64()));
            #[cfg(feature = "plant")]
            self.plant_in_witness();
        }
    }

    #[cfg(feature = "plant")]
    pub(super) fn plant_in_witness(&mut self) {
        let twice = Plant::Membership(membership_proto::Plant::RecordTwice);
        self.witness.keeper.overwrites = self.plant == Some(twice);
    }

    /// An operator finds somebody blocked, and forces a new lineage from there.
    pub(super) fn force(&mut self) {
        let blocked = |p: &usize| {
            let process = &self.processes[*p];
            process.cluster.view().is_some()
                && process.cluster.lease_until().is_none()
                && process.place == process.machine
        };
        let blocked: Vec<usize> = self.up().into_iter().filter(blocked).collect();
        if let Some(p) = self.rng.pick(&blocked).copied() {
            let (id, op, who) = (self.processes[p].id, "force-new".into(), "127.0.0.1".into());
            self.record(Source::Process(id.into()), Event::Admin { p: id.into(), op, who });
            self.step(p, Incoming::Cluster(Input::ForceNew));
        }
    }

    /// A process dies. Others on its host will have proof of that.
    pub(crate) fn crash(&mut self, p: usize, how: &'static str) {
        if self.processes[p].is_gone() {
            return;
        }
        if !self.processes[p].app.leads.is_empty() {
            if self
                .last_killed_leader
                .is_some_and(|at| self.now - at < 2 * self.params.lease.as_nanos() as u64)
            {
                self.mark("two leaders die in a row");
            }
            self.last_killed_leader = Some(self.now);
        }
        match self.processes[p].cluster.phase_name() {
            "seeking" => self.mark("a joiner dies"),
            "candidate" => self.mark("a candidate dies"),
            "adopting" => self.mark("a winner dies before it finished its predecessor's entry"),
            "proposing" => self.mark("a coordinator dies while an entry is agreed"),
            "changing-core" => self.mark("a coordinator dies while the core changes"),
            "removing" => self.mark("a coordinator dies while it waits for leases to lapse"),
            "dissolving" => self.mark("a coordinator dies while its lineage dissolves"),
            "coordinating" => self.mark("an idle coordinator dies"),
            "founding" => self.mark("a founder dies before the first view"),
            "leaving" => self.mark("a leaving node dies"),
            _ => {}
        }
        self.gone(p, how);
        self.processes[p].crashed = true;
        let (dead, host) = (self.processes[p].id, self.processes[p].host);
        for other in 0..self.processes.len() {
            if !self.processes[other].is_gone() && self.processes[other].host == host {
                self.prove(other, dead);
            }
        }
    }

    /// Proof of a death reaches a process on the same host: mostly at once, sometimes late.
    pub(super) fn prove(&mut self, to: usize, dead: NodeId) {
        let delay = if self.rng.chance(930) || self.story.is_some() {
            self.rng.between(50_000, 2_000_000)
        } else {
            self.rng.below(2 * self.params.lease.as_nanos() as u64)
        };
        let how = if delay.is_multiple_of(3) { "pidfd" } else { "exiting" };
        let input = Incoming::Cluster(Input::ProvedDead { node: dead, how });
        self.push(self.now + delay, Action::Deliver { p: to, input });
    }

    pub(super) fn gone(&mut self, p: usize, how: &str) {
        let process = &mut self.processes[p];
        process.life = Life::Gone;
        process.inbox.clear();
        process.app.leads.clear();
        let (addr, id) = (process.addr(), process.id);
        if self.listening.get(&addr) == Some(&p) {
            self.listening.remove(&addr);
        }
        self.record(Source::Harness, Event::Crash { p: id.into(), how: how.to_owned().into() });
    }

    /// A new process takes over the address of one that goes on running elsewhere.
    pub(crate) fn replace(&mut self, p: usize) {
        let machine = self.processes[p].machine;
        if self.process_on(machine) != Some(p) {
            return;
        }
        self.mark("an address moves while its old process runs on");
        let place = self.next_place;
        self.next_place += 1;
        self.processes[p].place = place;
        // It is another host now, as far as proofs go.
        self.processes[p].host = 5000 + place;
        self.listening.remove(&address(machine));
        self.start(machine);
    }

    pub(crate) fn leave(&mut self, p: usize) {
        if self.processes[p].is_up() {
            self.step(p, Incoming::Cluster(Input::LeaveCluster));
        }
    }

    pub(super) fn resume(&mut self, p: usize) {
        if self.processes[p].life != Life::Paused {
            return;
        }
        self.processes[p].life = Life::Up;
        let id = self.processes[p].id;
        self.record(Source::Harness, Event::Resume { p: id.into() });
        let inbox = std::mem::take(&mut self.processes[p].inbox);
        let suspended_at = self.processes[p].suspended_at.take();
        let timer_first = self.rng.chance(500) && suspended_at.is_none();
        if timer_first {
            self.step(p, Incoming::Timers);
        }
        if let Some(asleep_since) = suspended_at {
            self.wake_late(p, asleep_since);
        }
        for input in inbox {
            if self.processes[p].is_up() {
                self.step(p, input);
            }
        }
        if !timer_first && suspended_at.is_none() && self.processes[p].is_up() {
            self.step(p, Incoming::Timers);
        }
        if self.processes[p].is_up() {
            self.push(self.now, Action::Act { p });
        }
    }

    /// The clock by which timers run stood still while the host slept: they have still to wait for what was left then, unless
    /// something else makes the process look at the time.
    pub(super) fn wake_late(&mut self, p: usize, asleep_since: u64) {
        let process = &mut self.processes[p];
        let Some(due) = process.due() else { return };
        let left = process.clock.global(due).saturating_sub(asleep_since);
        let at = self.now + left.max(1);
        (process.wake_at, process.wake_due) = (Some(at), due);
        self.push(at, Action::Wake { p });
    }

    /// A write comes to its end, unless the process died first.
    pub(super) fn synced(&mut self, p: usize, floor: Floor) {
        let full = self.disks_full.get(&self.processes[p].machine).is_some_and(|until| self.now < *until);
        if full {
            self.mark("a full disk takes nothing");
        }
        if (full || self.now < self.disks_hang_until) && !self.processes[p].is_gone() {
            return self.push(self.now + DISK_NS, Action::Synced { p, floor });
        }
        let process = &self.processes[p];
        let disk = self.disks.get(&process.machine).map_or(ViewId::NONE, |disk| disk.view);
        // The last write of a process that is dead may have come through, or not; one from before another cannot.
        let hangs = full || self.now < self.disks_hang_until;
        if process.is_gone()
            && (hangs || self.queue.planned().is_multiple_of(2) || self.process_on(process.machine).is_some())
        {
            return;
        }
        if floor.view >= disk {
            self.disks.insert(process.machine, floor);
        }
        self.deliver(p, Incoming::Cluster(Input::IsSetAside(floor)));
    }

    pub(super) fn deliver(&mut self, p: usize, input: Incoming) {
        match self.processes[p].life {
            Life::Up => self.step(p, input),
            Life::Paused => self.processes[p].inbox.push_back(input),
            Life::Gone => {}
        }
    }
}
