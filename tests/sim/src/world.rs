//! The world: true time, one queue of what happens next, and everything that exists.

mod ambush;
mod apps;
mod ending;
mod lives;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use membership_proto::{
    Dest, End, Floor, Input, Kind as GroupKind, Msg, Output,
    witness::{Epoch, Keeper, Question},
};
use membership_types::{
    GroupName, Instant, Lineage, Machine, NodeId, Rng, Token,
    trace::{Event, Process as P, Source},
};

pub(crate) use self::ambush::{Ambush, Heirs, Strike};
use crate::{
    Map,
    faults::Kind,
    network::{Cut, Fate, Network},
    params::Params,
    plant::Plant,
    process::{ByGroup, GROUPS, Incoming, Process},
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
    /// An application looks around, as it does now and then.
    App { p: usize },
    /// It acts once more: at the last moment of a lease, or when its process goes on.
    Act { p: usize },
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
            Action::Act { p } => self.act(p),
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

    // ---- one step of one process ------------------------------------------------------------------------------------

    /// Hands something to a process, and whatever follows from it inside.
    pub(crate) fn step(&mut self, p: usize, input: Incoming) {
        // What it was about to do when it was killed in the middle of a step it never does.
        if self.processes[p].is_gone() {
            return;
        }
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
                    self.push(at.saturating_sub(1), Action::Act { p });
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
            if let (End::Dissolved { .. }, Some(next)) = (end, self.processes.last_mut()) {
                next.cluster.goes_over();
            }
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
}
