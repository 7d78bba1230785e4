//! The world: true time, one queue of what happens next, and everything that exists.

mod ambush;
mod ending;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use membership_proto::{
    Bootstrap, Cluster, Config, Dest, Domains, End, Floor, Forced, GroupWish, Input, Kind as GroupKind, Msg,
    NodeInfo, Output,
    witness::{Epoch, Keeper, Question},
};
use membership_types::{
    GroupName, Instant, Lineage, Machine, NodeId, Rng, Token, ViewId,
    trace::{Event, Group, Process as P, Source},
};

pub(crate) use self::ambush::{Ambush, Heirs, Strike};
use crate::{
    Map,
    clock::Clock,
    faults::Kind,
    network::{Cut, Fate, Network},
    params::Params,
    plant::Plant,
    process::{App, ByGroup, GROUPS, Incoming, Life, Process},
    queue::Queue,
    recorder::Recorder,
    rooms::{Wires, index_of},
    scenario::Story,
    script::Script,
};

/// What happens at some instant.
#[derive(Debug)]
pub(crate) enum Action {
    /// A machine without a process gets one.
    Start { machine: usize },
    /// Something reaches a process.
    Deliver { p: usize, input: Incoming },
    /// A frame of a group's multicast reaches a process, unless the connection broke meanwhile.
    Frame { from: usize, to: usize, epoch: u64, incoming: Incoming },
    /// A process that stepped out of a group comes back to it.
    Rejoin { p: usize, group: GroupName },
    /// Two processes try to connect again.
    Connect { a: usize, b: usize },
    /// A message reaches whoever listens at an address.
    DeliverAt { addr: SocketAddr, from: NodeId, msg: Msg },
    /// A process's timer.
    Wake { p: usize },
    /// What a process had written is on its disk.
    Synced { p: usize, floor: Floor },
    /// An application looks around and acts.
    App { p: usize },
    /// A link is mended.
    Heal { from: usize, to: usize },
    /// A link is cut for a while.
    Cut { from: usize, to: usize, how: Cut, length: u64 },
    /// A process that comes and goes does so, this many times more.
    Flap { machine: usize, left: u64 },
    /// A stopped process goes on.
    Resume { p: usize },
    /// The network splits around a process that was in the middle of something.
    SplitAround { p: usize, fault: Option<usize> },
    /// A process is not heard any more.
    Mute { p: usize, fault: Option<usize> },
    /// A machine of a join storm goes away.
    Retire { machine: usize },
    /// An operator forces a lineage, if somebody is blocked.
    Force,
    /// A question reaches the witness.
    Witness { p: usize, question: Question },
    /// The witness loses its memory.
    Forget,
    /// The next fault.
    Fault,
    /// A client asks around who leads.
    Ask,
}

/// The witness, and who reaches it.
pub(crate) struct Witness {
    keeper: Keeper,
    pub(crate) gone_until: u64,
    /// Places that do not reach it, and until when.
    pub(crate) cut: BTreeMap<usize, u64>,
}

/// What went over a link that was cut, and waits for it.
struct Held {
    from: usize,
    to: usize,
    action: Action,
}

pub(crate) struct World {
    pub(crate) now: u64,
    queue: Queue<Action>,
    pub(crate) params: Params,
    pub(crate) rng: Rng,
    seeds: Rng,
    pub(crate) network: Network,
    pub(crate) processes: Vec<Process>,
    by_id: Map<NodeId, usize>,
    listening: Map<SocketAddr, usize>,
    held: VecDeque<Held>,
    pub(crate) recorder: Recorder,
    /// What the resource of each group has seen: the highest token, and its lineage.
    resources: ByGroup<(Token, Lineage)>,
    /// The names of all groups that a run may have, and of their resources.
    pub(crate) names: [GroupName; GROUPS],
    resource_names: [Arc<str>; GROUPS],
    /// Faults that were injected.
    pub(crate) faults: BTreeMap<Kind, u64>,
    /// The same, and those that were left out.
    pub(crate) drawn: BTreeMap<Kind, u64>,
    pub(crate) script: Script,
    pub(crate) marks: BTreeSet<&'static str>,
    pub(crate) views: u64,
    pub(crate) events: u64,
    /// Strike the next process that is seen in this phase, until then.
    pub(crate) ambush: Option<Ambush>,
    pub(crate) heirs: Option<Heirs>,
    /// No fault is injected any more.
    pub(crate) calm: bool,
    /// Since when.
    pub(crate) calm_ns: u64,
    pub(crate) plant: Option<Plant>,
    /// Two places that never reach each other again.
    apart: Option<(usize, usize)>,
    /// Places that are never mended.
    outcast: BTreeSet<usize>,
    next_place: usize,
    /// What the data directory of each machine remembers.
    disks: BTreeMap<usize, Floor>,
    disks_hang_until: u64,
    /// Until when the disk of a machine is full.
    pub(crate) disks_full: BTreeMap<usize, u64>,
    /// By how many seconds the wall clock of a host is wrong.
    pub(crate) walls: BTreeMap<usize, i64>,
    pub(crate) witness: Witness,
    /// The connections between processes over which they multicast.
    pub(crate) wires: Wires,
    /// States that take long to make.
    pub(crate) in_the_making: Vec<(usize, Incoming)>,
    last_killed_leader: Option<u64>,
    /// How many events there were in the present window of time.
    window: (u64, u64),
    /// When machines kept each other busy without end; the run stops there.
    pub(crate) livelock: Option<u64>,
    /// What the run tells, if it is a story.
    pub(crate) story: Option<Story>,
}

/// 100 ms.
const LIVELOCK_WINDOW: u64 = 100_000_000;
/// More events than this in one window are no use to anybody: in all, or for each machine where there are many.
const LIVELOCK_EVENTS: u64 = 200_000;
const LIVELOCK_EVENTS_EACH: u64 = 2_000;

/// The start of simulated wall-clock time, in seconds since 2020.
const EPOCH_S: u64 = 200_000_000;
/// So few that they run out often.
const ID_BLOCK: u64 = 16;
/// The longest time that an ordinary write takes.
const DISK_NS: u64 = 20_000_000;

pub(crate) fn address(machine: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (machine >> 8) as u8, machine as u8], 7000))
}

/// Where there are more machines than this, only the first few are in groups: of more who answer each other there would be no end.
const MANY: usize = 12;
const FEW: usize = 7;

fn group(index: usize) -> GroupName {
    GroupName::new(&format!("g{index}")).expect("a valid name")
}

impl World {
    pub(crate) fn new(mut rng: Rng, params: Params, recorder: Recorder, plant: Option<Plant>) -> Self {
        let network = Network::new(params.manners.clone(), rng.split());
        let seeds = rng.split();
        let next_place = params.nodes + params.extra;
        let mut world = Self {
            now: 1_000_000,
            queue: Queue::new(),
            params,
            rng,
            seeds,
            network,
            processes: Vec::new(),
            by_id: Map::default(),
            listening: Map::default(),
            held: VecDeque::new(),
            recorder,
            resources: ByGroup::default(),
            names: std::array::from_fn(group),
            resource_names: std::array::from_fn(|g| format!("r-{}", group(g)).into()),
            faults: BTreeMap::new(),
            drawn: BTreeMap::new(),
            script: Script::default(),
            marks: BTreeSet::new(),
            views: 0,
            events: 0,
            ambush: None,
            heirs: None,
            calm: false,
            calm_ns: 0,
            plant,
            apart: None,
            outcast: BTreeSet::new(),
            next_place,
            disks: BTreeMap::new(),
            disks_hang_until: 0,
            disks_full: BTreeMap::new(),
            walls: BTreeMap::new(),
            witness: Witness { keeper: Keeper::new(Epoch::new(1)), gone_until: 0, cut: BTreeMap::new() },
            wires: Wires::default(),
            in_the_making: Vec::new(),
            last_killed_leader: None,
            window: (0, 0),
            livelock: None,
            story: None,
        };
        #[cfg(feature = "plant")]
        world.plant_in_witness();
        world.record_cfg();
        world
    }

    fn record_cfg(&mut self) {
        let lease = self.params.lease.as_nanos() as u64;
        let bounds = [("B1", 8 * lease), ("B6", 8 * lease), ("B9", 8 * lease), ("k", 1), ("c", 2), ("m", 4)];
        let cfg = membership_types::trace::Cfg {
            lease,
            rho: 0.005,
            hb: self.params.heartbeat.as_nanos() as u64,
            bootstrap: Some(if self.params.slots > 0 { "expect" } else { "alone-after" }.into()),
            slots: (0..u64::from(self.params.slots)).collect(),
            core: Some(u64::from(self.params.core_size)),
            durable: self.params.durable,
            witness: self.params.witness,
            bounds: bounds.into_iter().map(|(name, ns)| (name.to_string(), ns)).collect(),
        };
        self.record(Source::Harness, Event::Cfg(cfg));
    }

    pub(crate) fn record(&mut self, src: Source, event: Event) {
        self.recorder.record(self.now, src, event);
    }

    /// May things go wrong, and applications change their minds? Not in a story: there everything is told.
    pub(crate) fn is_wild(&self) -> bool {
        !self.calm && self.story.is_none()
    }

    pub(crate) fn mark(&mut self, what: &'static str) {
        self.marks.insert(what);
    }

    pub(crate) fn push(&mut self, at: u64, action: Action) {
        self.queue.push(at.max(self.now), action);
    }

    /// Runs until the given true time.
    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some((at, action)) = self.queue.pop_until(end) {
            self.now = at;
            self.events += 1;
            if self.is_livelock() {
                break;
            }
            self.perform(action);
        }
        self.now = end;
    }

    /// So much in so little time means that machines keep each other busy for nothing.
    fn is_livelock(&mut self) -> bool {
        let window = self.now / LIVELOCK_WINDOW;
        if window != self.window.0 {
            self.window = (window, 0);
        }
        self.window.1 += 1;
        let each = LIVELOCK_EVENTS_EACH * self.params.nodes as u64;
        if self.window.1 > LIVELOCK_EVENTS.max(each) {
            self.livelock = Some(self.now);
        }
        self.livelock.is_some()
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { machine } => self.start(machine),
            Action::Deliver { p, input } => self.deliver(p, input),
            Action::DeliverAt { addr, from, msg } => {
                if let Some(p) = self.listening.get(&addr).copied() {
                    self.deliver(p, Incoming::Cluster(Input::Message { from, msg }));
                }
            }
            Action::Frame { from, to, epoch, incoming } => {
                if self.wires.is_open(from, to, epoch) {
                    self.deliver(to, incoming);
                }
            }
            Action::Rejoin { p, group } => self.rejoin(p, group),
            Action::Connect { a, b } => self.connect(a, b),
            Action::Wake { p } => {
                if self.processes[p].wake_at.is_some_and(|at| at <= self.now) {
                    self.processes[p].wake_at = None;
                }
                if self.processes[p].is_up() {
                    self.step(p, Incoming::Timers);
                }
            }
            Action::Synced { p, floor } => self.synced(p, floor),
            Action::App { p } => self.run_app(p),
            Action::Heal { from, to } => {
                let apart = self.apart.is_some_and(|pair| pair == (from, to) || pair == (to, from));
                if !apart && !self.outcast.contains(&from) && !self.outcast.contains(&to) {
                    self.heal(from, to);
                }
            }
            Action::Cut { from, to, how, length } => {
                if !self.calm {
                    self.cut(from, to, how, length);
                }
            }
            Action::Flap { machine, left } => self.flap(machine, left),
            Action::Resume { p } => self.resume(p),
            Action::SplitAround { p, fault } => {
                if !self.calm {
                    self.script.set_current(fault);
                    self.split_around(p);
                    self.script.set_current(None);
                }
            }
            Action::Mute { p, fault } => {
                if !self.calm {
                    self.script.set_current(fault);
                    self.mute(p);
                    self.script.set_current(None);
                }
            }
            Action::Retire { machine } => {
                if let Some(p) = self.process_on(machine) {
                    if self.rng.chance(500) {
                        self.crash(p, "killed");
                    } else {
                        self.leave(p);
                    }
                }
            }
            Action::Fault => {
                if !self.calm {
                    self.inject(None);
                    let pause = self.rng.between(self.params.fault_every / 4, 2 * self.params.fault_every);
                    self.push(self.now + pause, Action::Fault);
                }
            }
            Action::Ask => self.ask_who_leads(),
            Action::Force => self.force(),
            Action::Witness { p, question } => self.ask_witness(p, question),
            Action::Forget => self.forget_records(),
        }
    }

    // ---- processes -------------------------------------------------------------------------------------------------

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

    fn may_be_in_groups(&self, machine: usize) -> bool {
        self.params.nodes <= MANY || machine < FEW
    }

    /// The groups that processes of this machine want: always the same ones.
    fn wanted(&self, machine: usize) -> App {
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

    fn spawn(&mut self, machine: usize, place: usize, app: App, highest: ViewId, forced: Option<Forced>) {
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
    fn ask_witness(&mut self, p: usize, question: Question) {
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

    fn forget_records(&mut self) {
        if !self.calm {
            self.witness.keeper = Keeper::new(Epoch::new(self.rng.next_u64()));
            #[cfg(feature = "plant")]
            self.plant_in_witness();
        }
    }

    #[cfg(feature = "plant")]
    fn plant_in_witness(&mut self) {
        let twice = Plant::Membership(membership_proto::Plant::RecordTwice);
        self.witness.keeper.overwrites = self.plant == Some(twice);
    }

    /// An operator finds somebody blocked, and forces a new lineage from there.
    fn force(&mut self) {
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
    fn prove(&mut self, to: usize, dead: NodeId) {
        let delay = if self.rng.chance(930) || self.story.is_some() {
            self.rng.between(50_000, 2_000_000)
        } else {
            self.rng.below(2 * self.params.lease.as_nanos() as u64)
        };
        let how = if delay.is_multiple_of(3) { "pidfd" } else { "exiting" };
        let input = Incoming::Cluster(Input::ProvedDead { node: dead, how });
        self.push(self.now + delay, Action::Deliver { p: to, input });
    }

    fn gone(&mut self, p: usize, how: &str) {
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

    fn resume(&mut self, p: usize) {
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
            self.push(self.now, Action::App { p });
        }
    }

    /// The clock by which timers run stood still while the host slept: they have still to wait for what was left then, unless
    /// something else makes the process look at the time.
    fn wake_late(&mut self, p: usize, asleep_since: u64) {
        let process = &mut self.processes[p];
        let Some(due) = process.due() else { return };
        let left = process.clock.global(due).saturating_sub(asleep_since);
        let at = self.now + left.max(1);
        (process.wake_at, process.wake_due) = (Some(at), due);
        self.push(at, Action::Wake { p });
    }

    /// A write comes to its end, unless the process died first.
    fn synced(&mut self, p: usize, floor: Floor) {
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

    fn deliver(&mut self, p: usize, input: Incoming) {
        match self.processes[p].life {
            Life::Up => self.step(p, input),
            Life::Paused => self.processes[p].inbox.push_back(input),
            Life::Gone => {}
        }
    }

    // ---- one step of one process ------------------------------------------------------------------------------------

    /// Hands something to a process, and whatever follows from it inside.
    pub(crate) fn step(&mut self, p: usize, input: Incoming) {
        // Mostly nothing waits.
        let next = &mut self.processes[p].next;
        let mut first = Some(input);
        if !next.is_empty() {
            next.extend(first.take());
        }
        while let Some(input) = first.take().or_else(|| self.processes[p].next.pop_front()) {
            let now = self.processes[p].clock.local(self.now);
            let alive = match input {
                Incoming::Cluster(input) => {
                    if let Input::Message { from, .. } = &input {
                        self.meet(p, *from);
                    }
                    let process = &mut self.processes[p];
                    process.moved |= 1;
                    process.cluster.handle(now, input);
                    self.drain_cluster(p)
                }
                Incoming::Timers => {
                    let process = &mut self.processes[p];
                    process.moved = u8::MAX;
                    process.cluster.handle_timeout(now);
                    self.drain_cluster(p) && self.room_timers(p)
                }
                other => self.step_room(p, other),
            };
            if !alive {
                return;
            }
        }
        if self.processes[p].fuse.take().is_some() {
            self.crash(p, "killed after a step");
            self.restart_later(p);
            return;
        }
        self.schedule(p);
    }

    /// A process hears another one for the first time: that has shown its key.
    fn meet(&mut self, p: usize, from: NodeId) {
        if let Some(q) = self.by_id.get(&from).copied()
            && self.processes[p].met.insert(q)
        {
            let p = P::from(self.processes[p].id);
            self.record(Source::Process(p), Event::Auth { p, q: from.into(), name: None });
        }
    }

    /// Carries out what the membership machine wants. False if the process is gone.
    fn drain_cluster(&mut self, p: usize) -> bool {
        self.spring_ambush(p);
        while let Some(output) = self.processes[p].cluster.poll_output() {
            if !self.burns_down(p) {
                return false;
            }
            self.carry_out(p, output);
            if self.processes[p].is_gone() {
                return false;
            }
        }
        true
    }

    /// A process that is to be killed in the middle of something comes one effect nearer to it. False if that was it.
    pub(crate) fn burns_down(&mut self, p: usize) -> bool {
        match &mut self.processes[p].fuse {
            Some(0) => {
                self.processes[p].fuse = None;
                self.crash(p, "killed in the middle of a step");
                self.restart_later(p);
                return false;
            }
            Some(fuse) => *fuse -= 1,
            None => {}
        }
        true
    }

    fn restart_later(&mut self, p: usize) {
        let machine = self.processes[p].machine;
        if machine < self.params.nodes {
            let back = self.rng.between(1_000_000, 3 * self.params.lease.as_nanos() as u64);
            self.push(self.now + back, Action::Start { machine });
        }
    }

    fn schedule(&mut self, p: usize) {
        let process = &mut self.processes[p];
        let Some(due) = process.due() else { return };
        // Mostly: what is due later on its clock is not due earlier.
        if process.wake_at.is_some() && due >= process.wake_due {
            return;
        }
        let at = process.clock.global(due).max(self.now + 1);
        if process.wake_at.is_none_or(|w| at < w) {
            (process.wake_at, process.wake_due) = (Some(at), due);
            self.push(at, Action::Wake { p });
        }
    }

    fn carry_out(&mut self, p: usize, output: Output) {
        let id = self.processes[p].id;
        match output {
            Output::Send(dest, msg) => self.send(p, dest, msg),
            Output::Trace(event) => {
                let event = self.in_true_time(p, event);
                if matches!(&event, Event::Install { .. }) {
                    self.views += 1;
                }
                if let Event::Proof { q, how, .. } = &event {
                    let host = self.processes[p].host;
                    let elsewhere = self.processes.iter().any(|v| P::from(v.id) == *q && v.host != host);
                    let attested = elsewhere && how.starts_with("attested");
                    self.processes[p].attested = attested;
                    if attested {
                        self.mark("a death is attested to another host");
                    }
                }
                self.record(Source::Process(id.into()), event);
            }
            Output::Mark(what) => {
                self.mark(what);
                if what == "takeover after a proof of death" && self.processes[p].attested {
                    self.mark("takeover after a death on another host was attested");
                }
            }
            Output::Lease(until) => {
                self.processes[p].app.lease = until;
                // Now and then the application acts at the last possible moment.
                if !self.processes[p].app.leads.is_empty() && self.rng.chance(60) {
                    let at = self.processes[p].clock.global(until);
                    self.push(at.saturating_sub(1), Action::App { p });
                }
            }
            Output::Leading { group, token, .. } => {
                self.processes[p].app.leads.insert(index_of(&group), token);
                if self.rng.chance(300) {
                    self.act(p);
                }
            }
            Output::NotLeading { group, .. } => {
                self.processes[p].app.leads.remove(index_of(&group));
            }
            Output::ClusterView(view) => {
                let lineage = self.processes[p].cluster.lineage();
                if let Some(story) = &mut self.story {
                    story.installed(lineage, view.id);
                }
                let host = self.processes[p].host;
                for node in view.members {
                    let dead = self.by_id.get(&node.id).map(|q| &self.processes[*q]);
                    if dead.is_some_and(|d| d.crashed && d.host == host) {
                        self.prove(p, node.id);
                    }
                }
            }
            Output::Ended(end) => self.ended(p, &end),
            Output::View(view, part) if view.kind == GroupKind::Multicast => self.room_view(p, &view, part),
            Output::StepOut { group } => self.step_out(p, group),
            Output::SetAside(floor) => {
                // Mostly a few milliseconds; now and then what all disks hang on is out of order for a while.
                let lease = self.params.lease.as_nanos() as u64;
                if self.is_wild() && self.rng.chance(150) {
                    self.disks_hang_until = self.now + self.rng.between(lease, 20 * lease);
                }
                let delay = self.rng.between(100_000, DISK_NS);
                self.push(self.now + delay, Action::Synced { p, floor });
            }
            Output::AskWitness(question) => {
                let delay = self.rng.between(100_000, 20_000_000);
                self.push(self.now + delay, Action::Witness { p, question });
            }
            // What operators do then.
            Output::Refused(why) if why.contains("feature level") => {
                self.ended(p, &End::StartOver { why: "upgraded" });
            }
            Output::Blocked(_)
            | Output::Unblocked
            | Output::View(..)
            | Output::Refused(_)
            | Output::Change { .. } => {}
            Output::NotForced(_) => self.mark("an operator's force is refused"),
        }
    }

    /// The machine's incarnation is over; whoever did not leave for good begins a new one in the same process.
    fn ended(&mut self, p: usize, end: &End) {
        let process = &self.processes[p];
        let (machine, place) = (process.machine, process.place);
        let highest = process.cluster.highest();
        let app = process.app.clone();
        match end {
            End::Left => self.mark("a node leaves and is let go"),
            End::Removed { .. } => self.mark("a removed node is told so"),
            End::Dissolved { .. } => self.mark("a node goes over to another lineage"),
            End::Forced(_) => self.mark("a node founds a forced lineage"),
            End::StartOver { .. } => self.mark("a node begins anew"),
        }
        self.gone(p, &format!("ended: {end:?}"));
        let listens = place == machine;
        if *end != End::Left && listens {
            let forced = if let End::Forced(forced) = end { Some(forced.clone()) } else { None };
            self.spawn(machine, place, app, highest, forced);
        }
    }

    /// Clock readings in a process's records, as true times.
    fn in_true_time(&self, p: usize, mut event: Event) -> Event {
        let clock = &self.processes[p].clock;
        match &mut event {
            Event::Grant { until, .. } | Event::LeadEnd { until: Some(until), .. } => {
                *until = clock.global(Instant::from_nanos(*until));
            }
            _ => {}
        }
        event
    }

    // ---- messages ---------------------------------------------------------------------------------------------------

    fn send(&mut self, p: usize, dest: Dest, msg: Msg) {
        let (from, place) = (self.processes[p].id, self.processes[p].place);
        let to = match dest {
            Dest::Node(id, _) => self.by_id.get(&id).copied(),
            Dest::Addr(addr) => self.listening.get(&addr).copied(),
        };
        let Some(to) = to.filter(|q| !self.processes[*q].is_gone()) else { return };
        let to_place = self.processes[to].place;
        let msg = self.through_the_codec(msg);
        let fate = self.network.send(self.now, place, to_place);
        let action = |msg: Msg| match dest {
            Dest::Node(..) => {
                Action::Deliver { p: to, input: Incoming::Cluster(Input::Message { from, msg }) }
            }
            Dest::Addr(addr) => Action::DeliverAt { addr, from, msg },
        };
        match fate {
            Fate::Lost => {}
            Fate::Changed => {
                self.mark("what was changed on the way closes its connection");
                self.lose_in_flight(place, to_place);
            }
            Fate::Held => {
                let action = action(msg);
                self.held.push_back(Held { from: place, to: to_place, action });
            }
            Fate::Arrives(at, again) => {
                let doubled = again.map(|at| (at, action(msg.clone())));
                self.push(at, action(msg));
                if let Some((at, action)) = doubled {
                    self.push(at, action);
                }
            }
        }
    }

    /// Some messages are really encoded and decoded, so that what the wire does is not assumed.
    fn through_the_codec(&mut self, msg: Msg) -> Msg {
        if !self.rng.chance(15) {
            return msg;
        }
        let bytes = rmp_serde::to_vec_named(&msg).expect("every message can be encoded");
        let back: Msg = rmp_serde::from_slice(&bytes).expect("every message can be decoded");
        assert!(back == msg, "a message changes on the wire: {msg:?} became {back:?}");
        back
    }

    /// A cut link holds something until it heals.
    pub(crate) fn hold(&mut self, from: usize, to: usize, action: Action) {
        self.held.push_back(Held { from, to, action });
    }

    pub(crate) fn index_of(&self, id: NodeId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// What a link held while it was cut arrives after all.
    pub(crate) fn release_held(&mut self, from: usize, to: usize) {
        let held = std::mem::take(&mut self.held);
        for item in held {
            if item.from == from && item.to == to {
                self.mark("messages held by a cut link arrive late");
                let at = self.network.arrival(self.now, from, to);
                self.release_frame(at, item.action);
            } else {
                self.held.push_back(item);
            }
        }
    }

    /// Connections between two places break: what is under way between them is lost.
    pub(crate) fn lose_in_flight(&mut self, a: usize, b: usize) {
        let Self { queue, processes, by_id, listening, .. } = self;
        let place = |p: usize| processes[p].place;
        let sender = |id: &NodeId| by_id.get(id).map(|p| place(*p));
        let lost = queue.retain(|action| {
            let ends = match action {
                Action::Deliver { p, input: Incoming::Cluster(Input::Message { from, .. }) } => {
                    (sender(from), Some(place(*p)))
                }
                Action::DeliverAt { addr, from, .. } => {
                    (sender(from), listening.get(addr).map(|p| place(*p)))
                }
                _ => (None, None),
            };
            ends != (Some(a), Some(b)) && ends != (Some(b), Some(a))
        });
        if lost > 0 {
            self.mark("a connection breaks with messages under way");
        }
        self.break_wires_between(a, b);
    }

    // ---- applications -----------------------------------------------------------------------------------------------

    fn run_app(&mut self, p: usize) {
        if !self.processes[p].is_up() {
            return;
        }
        self.act(p);
        self.talk(p);
        if self.is_wild() && self.rng.chance(25) {
            self.change_mind(p);
        }
        let lease = self.params.lease.as_nanos() as u64;
        let next = self.rng.between(lease / 6, lease / 2);
        self.push(self.now + next, Action::App { p });
    }

    /// Does, for every group that it leads, what only the leader may: each time it checks first.
    fn act(&mut self, p: usize) {
        let process = &self.processes[p];
        let (id, lineage) = (process.id, process.cluster.lineage());
        if process.clock.local(self.now) >= process.app.lease {
            return;
        }
        let Some(lineage) = lineage else { return };
        for group in 0..GROUPS {
            let Some(token) = self.processes[p].app.leads.get(group).copied() else { continue };
            let g = Group::from(&self.names[group]);
            let lin = Some(membership_types::trace::lin(lineage));
            let act = Event::LeadAct {
                p: id.into(),
                g: g.clone(),
                lin: lin.clone(),
                tok: token.into(),
                op: "w".into(),
            };
            self.record(Source::Process(id.into()), act);
            let seen = self.resources.get(group).copied();
            let ok = seen.is_none_or(|(t, l)| token > t || token == t && lineage == l);
            if ok {
                self.resources.insert(group, (token, lineage));
            } else {
                self.mark("a resource refuses a token");
            }
            let r = Arc::clone(&self.resource_names[group]);
            let effect =
                Event::Effect { r: r.clone(), g, lin, tok: token.into(), p: id.into(), op: "w".into(), ok };
            self.record(Source::Resource(r), effect);
        }
    }

    /// The application steps down, leaves a group, or joins it again.
    fn change_mind(&mut self, p: usize) {
        if !self.may_be_in_groups(self.processes[p].machine) {
            return;
        }
        let groups: Vec<GroupName> = (0..self.params.groups).map(group).collect();
        let Some(group) = self.rng.pick(&groups).cloned() else { return };
        let leads = self.processes[p].app.leads.get(index_of(&group)).is_some();
        let member = self.processes[p].app.wants.contains(&group);
        let wish = match (member, leads, self.rng.below(3)) {
            (true, true, 0..2) | (true, false, 0) => GroupWish::StepDown { group },
            (true, ..) => {
                self.processes[p].app.wants.remove(&group);
                GroupWish::Leave { group }
            }
            (false, ..) => {
                self.processes[p].app.wants.insert(group.clone());
                return self.join(p, group, None);
            }
        };
        self.step(p, Incoming::Cluster(Input::Wish(wish)));
    }

    /// A client asks a process that acts as leader; it is told the token.
    fn ask_who_leads(&mut self) {
        let acting: Vec<(P, Token, Lineage)> = self
            .processes
            .iter()
            .filter(|p| p.is_up() && p.clock.local(self.now) < p.app.lease)
            .filter_map(|p| Some((p.id.into(), *p.app.leads.get(0)?, p.cluster.lineage()?)))
            .collect();
        if let Some((p, token, lineage)) = self.rng.pick(&acting).copied() {
            let c: Arc<str> = "1".into();
            let lin = Some(membership_types::trace::lin(lineage));
            let answer =
                Event::WhoLeads { c: c.clone(), g: Group::from(&self.names[0]), lin, p, tok: token.into() };
            self.record(Source::Client(c), answer);
        }
        let next = self.rng.between(100_000_000, 900_000_000);
        self.push(self.now + next, Action::Ask);
    }
}
