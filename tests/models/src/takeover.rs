//! Takeover and leases: real membership machines, a few faults at any moment.
//!
//! A model begins with a cluster whose founding, joining and first minutes were driven in order. From there on all
//! schedules are tried that the bounds allow.
//!
//! *Time* moves in steps of a third of the lease ([`UNIT`]), the longest heartbeat interval; a timer that is due within
//! a step fires at its end. All true clocks agree (drift is the simulator's part), but no node's reading can be compared
//! with another's. There is no slack: what may end at an instant ends exactly then.
//!
//! *Messages* that one step of a machine sends to one node travel together. Two ways to schedule them:
//!
//! * [`Delivery::Prompt`]: everything arrives at once and in order, but for what a fault changes. Faults are counted, so
//!   that the space is finite: delay-bounded scheduling (Emmi, Qadeer and Rakamarić, POPL 2011).
//! * [`Delivery::Free`]: each arrives at any later time, in any order, or never; a link holds a few, the oldest are lost.

mod story;
mod world;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clap::Args;
use membership_multicast::Input as RoomInput;
use membership_proto::{
    Bootstrap, Cluster, Config, Dest, Domains, GroupWish, Input, Kind, NodeInfo, Output, Plant,
    witness::{Epoch, Keeper, Question},
};
use membership_types::{Drift, GroupName, Instant, Machine, NodeId, Rng, ViewId};
use stateright::{Model, Property};

pub use self::world::World;
pub(crate) use self::world::{Node, Said};
use self::world::{Packet, Place, Reply, mark_of};
use crate::{
    mark::{CLOCK_BITS, Marker, NOON},
    room::Room,
};

/// One step of time, in nanoseconds.
pub const UNIT: u64 = 100_000_000;
/// The lease is so many steps long.
const LEASE: u64 = 3;
/// What is longer ago than this many steps makes no difference any more.
const FAR: u64 = 5 * LEASE;
/// The groups that all nodes are in; the first is led by the first node, the other one by the last.
const GROUPS: [&str; 2] = ["a", "b"];

/// When messages arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// At once and in order.
    Prompt,
    /// Whenever they like; this many may be under way on a link.
    Free {
        /// How many.
        capacity: usize,
    },
}

/// How often each kind of fault may strike in one run.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// How often links break: one direction, or all of a node.
    #[arg(long, default_value_t = 0)]
    pub cuts: u8,
    /// How many messages come late or never.
    #[arg(long, default_value_t = 0)]
    pub holds: u8,
    /// How many nodes die.
    #[arg(long, default_value_t = 0)]
    pub crashes: u8,
    /// How often a node gets proof of a death.
    #[arg(long, default_value_t = 0)]
    pub proofs: u8,
    /// How many nodes start again.
    #[arg(long, default_value_t = 0)]
    pub restarts: u8,
    /// How often a node stands still for a while.
    #[arg(long, default_value_t = 0)]
    pub stalls: u8,
    /// How often a leader steps down.
    #[arg(long, default_value_t = 0)]
    pub step_downs: u8,
    /// How many nodes leave.
    #[arg(long, default_value_t = 0)]
    pub leaves: u8,
    /// How often a node ceases to reach the witness.
    #[arg(long, default_value_t = 0)]
    pub mutes: u8,
    /// How often the witness loses its memory.
    #[arg(long, default_value_t = 0)]
    pub forgets: u8,
    /// How many messages members of the first group multicast; without any it does not.
    #[arg(long, default_value_t = 0)]
    pub words: u8,
}

/// The bounds of a model.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// How many nodes there are, all of them in the core.
    pub nodes: usize,
    /// When messages arrive.
    pub delivery: Delivery,
    /// Which faults there are.
    pub budget: Budget,
    /// How many steps of time a run takes; 0 for no end: then states merge whenever they came about.
    pub horizon: u64,
    /// How many rounds of ballots candidates may use up: those that a lost core keeps from winning try for ever.
    pub rounds: u64,
    /// Is there a witness?
    pub witness: bool,
    /// A deliberate bug in every node; only where built with the feature `plant`.
    pub plant: Option<Plant>,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The n-th message under way arrives.
    Deliver(usize),
    /// The n-th message under way is late: it arrives at any time, or never.
    Hold(usize),
    /// The next timers fire.
    Advance,
    /// From now on nothing goes from one node to another.
    Cut(usize, usize),
    /// From now on nothing goes to or from a node.
    Isolate(usize),
    /// From now on nothing goes between the first node with this one and all others.
    Split(usize),
    /// All links carry again.
    Heal,
    /// A node dies.
    Crash(usize),
    /// A node gets proof that another one is dead.
    Prove(usize, usize),
    /// A dead node starts again, as a new one.
    Restart(usize),
    /// A node stands still.
    Stall(usize),
    /// It goes on.
    Resume(usize),
    /// A node steps down as leader of a group.
    StepDown(usize, usize),
    /// A node leaves the cluster.
    Leave(usize),
    /// The n-th answer of the witness arrives.
    Answer(usize),
    /// The n-th answer of the witness is late: it arrives at any time, or never.
    HoldAnswer(usize),
    /// From now on a node does not reach the witness.
    Mute(usize),
    /// The witness loses its memory.
    Forget,
    /// A member multicasts a message.
    Say(usize),
}

/// Two nodes acted for one group at the same instant.
pub const LEADERS: &str = "one acting leader of a group";
/// A node acted for a group although it was committed that another one leads.
pub const OVERRULED: &str = "nobody acts against what is committed";
/// Two coordinators believed at the same instant that nobody had replaced them.
pub const AUTHORITY: &str = "one coordinator with authority";
/// Somebody acted under a token below one that had been used.
pub const TOKENS: &str = "tokens grow";
/// Cluster views do not form one sequence.
pub const HISTORY: &str = "one history of cluster views";
/// A node installed a view that is not above its last.
pub const IDS: &str = "ids grow";
/// Two nodes know different members, or another token, of one group view.
pub const RANKS: &str = "one list of members per group view";
/// Two nodes committed different entries at one index.
pub const LOG: &str = "a committed entry stays";

/// A leader acts for a group that multicasts before its view is installed behind it.
pub const UNCLOSED: &str = "who leads has closed all views before";
/// Two members that go from one view to the same next one delivered different messages in it.
pub const SAME_SET: &str = "the same messages between two views";
/// They delivered ordered ones in different orders.
pub const SAME_ORDER: &str = "one order";
/// A safe message was delivered that some member who goes on never delivers.
pub const SAFE: &str = "what is safe to one is safe to all";
/// A message was delivered in a view other than the one in which it was sent, or twice.
pub const FOREIGN: &str = "only messages of the view, once";
/// A member goes on without having delivered its own message.
pub const OWN: &str = "a sender delivers its own";

pub(crate) fn group(n: usize) -> GroupName {
    GroupName::new(GROUPS[n]).expect("a good name")
}

pub(crate) fn clock(place: usize, step: u64) -> Instant {
    Instant::from_nanos(((place as u64 + 1) << CLOCK_BITS) + NOON + step * UNIT)
}

fn info(place: usize, incarnation: u64) -> NodeInfo {
    NodeInfo {
        id: NodeId::new(place as u32, incarnation),
        name: format!("n{place}").into(),
        addr: ([127, 0, 0, 1], 1000 + place as u16).into(),
        eligible: true,
        slot: None,
        keeps_floor: false,
        domains: Domains::default(),
        load_weight: None,
    }
}

fn members(view: &membership_proto::ClusterView) -> Vec<NodeId> {
    view.members.iter().map(|m| m.id).collect()
}

impl Takeover {
    fn node(&self, place: usize, incarnation: u64, bootstrap: Bootstrap, now: Instant) -> Node {
        let lease = Duration::from_nanos(LEASE * UNIT);
        let mut config =
            Config::new(info(place, incarnation), bootstrap, lease).expect("a good configuration");
        config.terms.drift = Drift::per_mille(0);
        config.heartbeat = Duration::from_nanos(UNIT);
        config.step = Duration::from_nanos(UNIT);
        config.terms.witness = self.witness;
        let config = config.checked().expect("a good configuration");
        #[allow(unused_mut, reason = "planting needs it")]
        let mut cluster = Cluster::new(config, now, Rng::frozen(), ViewId::NONE);
        #[cfg(feature = "plant")]
        cluster.plant(self.plant);
        Node { cluster, leads: BTreeMap::new(), lease: Instant::ZERO, room: None }
    }

    /// A founded cluster, all nodes in it, in the core, and in both groups; nothing is under way.
    fn founded(&self) -> World {
        let patience = Duration::from_secs(3600);
        let mut world = World {
            step: 0,
            end: 0,
            places: Vec::new(),
            flight: Vec::new(),
            cut: 0,
            budget: Budget::default(),
            keeper: Keeper::new(Epoch::new(1)),
            replies: Vec::new(),
            torn: 0,
            mute: 0,
            seen: Arc::default(),
            seen_mark: 0,
            broken: None,
        };
        #[cfg(feature = "plant")]
        self.plant_in(&mut world.keeper);
        for place in 0..self.nodes {
            let (bootstrap, started) = match place {
                0 => (Bootstrap::AloneAfter(patience), clock(0, 0).before(patience)),
                _ => (Bootstrap::Join, clock(place, world.step)),
            };
            let node = Arc::new(self.node(place, 1, bootstrap, started));
            let place_of = Place { node, mark: 0, up: true, stalled: false, told: 0, restarts: 0, said: 0 };
            world.places.push(place_of);
            self.look_for_others(&mut world, place);
            self.drive(&mut world, |w| w.places.iter().all(|p| p.sees(place + 1)));
            self.feed(&mut world, place, Input::Wish(self.join(0)));
            self.drive(&mut world, |w| w.has_group(0, place + 1));
        }
        for place in (0..self.nodes).rev() {
            self.feed(&mut world, place, Input::Wish(self.join(1)));
            self.drive(&mut world, |w| w.has_group(1, self.nodes - place));
        }
        let all = self.nodes;
        self.drive(&mut world, |w| w.places.iter().all(|p| p.node.cluster.core().len() == all));
        // Long enough for all traces of the founding to fade.
        let until = world.step + 2 * FAR;
        self.drive(&mut world, |w| w.step >= until && w.flight.is_empty());
        // The model's time begins here.
        world.end = if self.horizon == 0 { u64::MAX } else { world.step + self.horizon };
        world.budget = self.budget;
        world
    }

    #[cfg(feature = "plant")]
    fn plant_in(&self, keeper: &mut Keeper) {
        keeper.overwrites = self.plant == Some(Plant::RecordTwice);
    }

    /// The witness is asked. Who only looks has its answer at once: what is in it is no more than advice.
    fn ask_witness(&self, world: &mut World, place: usize, question: Question) {
        if world.mute & (1 << place) != 0 {
            return;
        }
        let claims = question.claim.is_some();
        let answer = world.keeper.answer(question);
        if claims && world.end > 0 {
            let to = world.places[place].node.cluster.id();
            world.replies.push(Reply { place, to, answer, held: false });
        } else {
            self.feed(world, place, Input::Witness(answer));
        }
    }

    fn answer(&self, world: &mut World, n: usize) {
        let Reply { place, to, answer, .. } = world.replies.remove(n);
        if world.places[place].up && world.places[place].node.cluster.id() == to {
            self.feed(world, place, Input::Witness(answer));
        }
    }

    /// Everything arrives, and time passes, until the condition holds.
    fn drive(&self, world: &mut World, done: impl Fn(&World) -> bool) {
        for _ in 0..10_000 {
            if done(world) && world.flight.is_empty() {
                return;
            }
            match world.flight.is_empty() {
                false => self.deliver(world, 0),
                true => self.advance(world),
            }
        }
        panic!("the cluster does not come about");
    }

    /// Tells a node where the others are.
    fn look_for_others(&self, world: &mut World, place: usize) {
        let addresses = (0..self.nodes).filter(|p| *p != place).map(|p| info(p, 0).addr).collect();
        self.feed(world, place, Input::Rendezvous { addresses, complete: true });
    }

    fn deliver(&self, world: &mut World, n: usize) {
        let packet = world.flight.remove(n);
        let place = packet.link.1;
        for said in packet.msgs.iter() {
            if world.places[place].up && world.places[place].node.cluster.id() == packet.to {
                match said.clone() {
                    Said::Msg(msg) => self.feed(world, place, Input::Message { from: packet.from, msg }),
                    Said::Frame(lineage, frame) => {
                        self.feed_room(world, place, RoomInput::Frame(packet.from, lineage, frame));
                    }
                }
            }
        }
    }

    pub(crate) fn feed(&self, world: &mut World, place: usize, input: Input) {
        self.run(world, place, |cluster, now| cluster.handle(now, input));
    }

    /// Time goes on to the end of the step in which something is due.
    fn advance(&self, world: &mut World) {
        let due = |(place, p): (usize, &Place)| {
            let room = p.node.room.as_ref().and_then(Room::poll_timeout);
            let at = p.node.cluster.poll_timeout().into_iter().chain(room).min()?;
            (p.up && !p.stalled).then(|| (at - clock(place, 0)).as_nanos() as u64)
        };
        let Some(at) = world.places.iter().enumerate().filter_map(due).min() else { return };
        world.step = at.div_ceil(UNIT).max(world.step + 1);
        for place in 0..world.places.len() {
            let now = clock(place, world.step);
            let p = &world.places[place];
            if p.up && !p.stalled && p.node.cluster.poll_timeout().is_some_and(|at| at <= now) {
                self.run(world, place, |cluster, now| cluster.handle_timeout(now));
            }
            let p = &world.places[place];
            if p.up && !p.stalled {
                self.look_at_room(world, place);
            }
        }
        let step = world.step;
        for place in &mut world.places {
            place.mark = mark_of(&place.node, step);
        }
        for packet in &mut world.flight {
            packet.mark = packet.mark_at(step);
        }
        world.judge();
    }

    /// One step of a machine, and what it puts out.
    fn run(&self, world: &mut World, place: usize, step: impl FnOnce(&mut Cluster, Instant)) {
        let now = clock(place, world.step);
        let node = Arc::make_mut(&mut world.places[place].node);
        let last_view = node.cluster.view().map(|v| v.id);
        let committed = node.cluster.committed().map(|s| s.index);
        step(&mut node.cluster, now);
        let mut sent: Vec<(usize, NodeId, Vec<Said>)> = Vec::new();
        let mut views = Vec::new();
        let mut found = false;
        let mut asked = Vec::new();
        while let Some(output) = Arc::make_mut(&mut world.places[place].node).cluster.poll_output() {
            match output {
                Output::Send(dest, msg) => {
                    let to = match dest {
                        Dest::Node(id, _) => world.places.iter().position(|p| p.node.cluster.id() == id),
                        Dest::Addr(addr) => Some(usize::from(addr.port()) - 1000),
                    };
                    let Some(to) = to.filter(|to| *to < world.places.len()) else { continue };
                    let id = world.places[to].node.cluster.id();
                    match sent.iter_mut().find(|(t, _, _)| *t == to) {
                        Some((_, _, msgs)) => msgs.push(Said::Msg(msg)),
                        None => sent.push((to, id, vec![Said::Msg(msg)])),
                    }
                }
                Output::ClusterView(view) => {
                    found |= last_view.is_none();
                    if last_view.is_some_and(|last| view.id <= last) {
                        world.breaks(IDS);
                    }
                    world.see_view(view.id, view.prev, members(&view));
                }
                Output::View(view, part) if view.id != ViewId::NONE => {
                    let list = view.members.iter().map(|m| m.node).collect();
                    world.see_group(view.group.clone(), view.id, (view.token, list));
                    if view.kind == Kind::Multicast {
                        views.push((view, part));
                    }
                }
                Output::Lease(until) => Arc::make_mut(&mut world.places[place].node).lease = until,
                Output::Leading { group, token, .. } => {
                    Arc::make_mut(&mut world.places[place].node).leads.insert(group, token);
                }
                Output::NotLeading { group, .. } => {
                    Arc::make_mut(&mut world.places[place].node).leads.remove(&group);
                }
                Output::Ended(_) => {
                    world.places[place].up = false;
                }
                Output::AskWitness(question) => asked.push(question),
                _ => {}
            }
        }
        let from = world.places[place].node.cluster.id();
        for (to, id, msgs) in sent {
            world.send(
                self,
                Packet { from, link: (place, to), to: id, msgs: msgs.into(), mark: 0, held: false },
            );
        }
        let node = world.places[place].node.clone();
        if let Some(state) = node.cluster.committed().filter(|s| Some(s.index) != committed) {
            world.see_log(state.index.get(), Marker::timeless().of(state));
            for view in state.groups() {
                world.see_group(
                    view.group.clone(),
                    view.id,
                    (view.token, view.members.iter().map(|m| m.node).collect()),
                );
            }
        }
        if found {
            // It has no use for addresses any more.
            self.feed(world, place, Input::Rendezvous { addresses: Vec::new(), complete: true });
        }
        for question in asked {
            self.ask_witness(world, place, question);
        }
        for (view, part) in views {
            self.room_view(world, place, &view, part);
        }
        if world.places[place].up {
            self.look_at_room(world, place);
        }
        let p = &mut world.places[place];
        p.mark = mark_of(&p.node, world.step);
        world.judge();
    }

    fn is_free(&self) -> bool {
        matches!(self.delivery, Delivery::Free { .. })
    }

    fn apply(&self, world: &mut World, action: Action) {
        match action {
            Action::Deliver(n) => self.deliver(world, n),
            Action::Hold(n) => {
                world.budget.holds -= 1;
                world.flight[n].held = true;
            }
            Action::Advance => self.advance(world),
            Action::Cut(from, to) => {
                world.budget.cuts -= 1;
                world.cut |= self.link(from, to);
            }
            Action::Isolate(place) => {
                world.budget.cuts -= 1;
                for other in (0..self.nodes).filter(|o| *o != place) {
                    world.cut |= self.link(place, other) | self.link(other, place);
                }
            }
            Action::Split(with) => {
                world.budget.cuts -= 1;
                for n in (1..self.nodes).filter(|n| *n != with) {
                    for half in [0, with] {
                        world.cut |= self.link(half, n) | self.link(n, half);
                    }
                }
            }
            Action::Heal => {
                (world.cut, world.mute) = (0, 0);
                self.connect(world);
            }
            Action::Crash(place) => {
                world.budget.crashes -= 1;
                let p = &mut world.places[place];
                p.up = false;
                p.stalled = false;
                p.told = 0;
                world.flight.retain(|packet| packet.link.1 != place);
            }
            Action::Prove(place, dead) => {
                world.budget.proofs -= 1;
                world.places[place].told |= 1 << dead;
                let node = world.places[dead].node.cluster.id();
                self.feed(world, place, Input::ProvedDead { node, how: "pidfd" });
            }
            Action::Restart(place) => {
                world.budget.restarts -= 1;
                let restarts = world.places[place].restarts + 1;
                let node =
                    Arc::new(self.node(place, 1 + restarts, Bootstrap::Join, clock(place, world.step)));
                let said = world.places[place].said;
                world.places[place] =
                    Place { node, mark: 0, up: true, stalled: false, told: 0, restarts, said };
                world.flight.retain(|packet| packet.link.1 != place);
                for other in &mut world.places {
                    other.told &= !(1 << place);
                }
                for n in 0..GROUPS.len() {
                    self.feed(world, place, Input::Wish(self.join(n)));
                }
                self.look_for_others(world, place);
            }
            Action::Stall(place) => {
                world.budget.stalls -= 1;
                world.places[place].stalled = true;
            }
            Action::Resume(place) => {
                world.places[place].stalled = false;
                self.run(world, place, |cluster, now| cluster.handle_timeout(now));
                self.connect(world);
            }
            Action::StepDown(place, n) => {
                world.budget.step_downs -= 1;
                self.feed(world, place, Input::Wish(GroupWish::StepDown { group: group(n) }));
            }
            Action::Leave(place) => {
                world.budget.leaves -= 1;
                self.feed(world, place, Input::LeaveCluster);
            }
            Action::Answer(n) => self.answer(world, n),
            Action::HoldAnswer(n) => {
                world.budget.holds -= 1;
                world.replies[n].held = true;
            }
            Action::Mute(place) => {
                world.budget.mutes -= 1;
                world.mute |= 1 << place;
            }
            Action::Forget => {
                world.budget.forgets -= 1;
                world.keeper = Keeper::new(Epoch::new(2 + u64::from(world.budget.forgets)));
                #[cfg(feature = "plant")]
                self.plant_in(&mut world.keeper);
            }
            Action::Say(place) => {
                world.budget.words -= 1;
                self.say(world, place);
            }
        }
    }

    /// Links that lost frames and carry again have new connections.
    fn connect(&self, world: &mut World) {
        for (a, b) in (0..self.nodes).flat_map(|a| (a + 1..self.nodes).map(move |b| (a, b))) {
            let both = self.link(a, b) | self.link(b, a);
            let stalled = world.places[a].stalled || world.places[b].stalled;
            if world.torn & both == 0 || world.cut & both != 0 || stalled {
                continue;
            }
            world.torn &= !both;
            // What is under way on the old connection is lost with it.
            for packet in world.flight.iter_mut().filter(|p| [(a, b), (b, a)].contains(&p.link)) {
                let of_cluster = |said: &&Said| matches!(said, Said::Msg(_));
                packet.msgs = Arc::new(packet.msgs.iter().filter(of_cluster).cloned().collect());
                packet.mark = packet.mark_at(world.step);
            }
            world.flight.retain(|packet| !packet.msgs.is_empty());
            for (to, from) in [(a, b), (b, a)] {
                let id = world.id(from);
                self.feed_room(world, to, RoomInput::Linked(id));
            }
        }
    }

    fn join(&self, n: usize) -> GroupWish {
        let kind = if n == 0 && self.budget.words > 0 { Kind::Multicast } else { Kind::Plain };
        GroupWish::Join { group: group(n), endpoint: None, kind }
    }

    fn link(&self, from: usize, to: usize) -> u64 {
        1 << (from * self.nodes + to)
    }
}

impl Model for Takeover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.founded()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        let (places, budget) = (&world.places, &world.budget);
        let up = |n: usize| places[n].up;
        let reachable = |p: &Packet| !places[p.link.1].stalled;
        let next = world.flight.iter().position(|p| !p.held && reachable(p));
        for (n, packet) in world.flight.iter().enumerate() {
            if reachable(packet) && (self.is_free() || packet.held || Some(n) == next) {
                actions.push(Action::Deliver(n));
            }
        }
        if let Some(next) = next
            && budget.holds > 0
            && !self.is_free()
            && !world.flight[next].has_frames()
        {
            actions.push(Action::Hold(next));
        }
        let replied = |r: &Reply| !places[r.place].stalled;
        let next_reply = world.replies.iter().position(|r| !r.held && replied(r));
        for (n, reply) in world.replies.iter().enumerate() {
            if replied(reply) && (reply.held || Some(n) == next_reply) {
                actions.push(Action::Answer(n));
            }
        }
        if let Some(next) = next_reply.filter(|_| budget.holds > 0) {
            actions.push(Action::HoldAnswer(next));
        }
        let quiet = next.is_none() && next_reply.is_none() || self.is_free();
        if quiet && world.step < world.end {
            actions.push(Action::Advance);
        }
        if quiet && (world.cut != 0 || world.mute != 0) {
            actions.push(Action::Heal);
        }
        if budget.forgets > 0 && self.witness {
            actions.push(Action::Forget);
        }
        if budget.mutes > 0 && self.witness {
            actions
                .extend((0..self.nodes).filter(|n| up(*n) && world.mute & (1 << n) == 0).map(Action::Mute));
        }
        if budget.cuts > 0 && self.nodes == 4 {
            actions.extend((1..4).map(Action::Split));
        }
        for n in 0..self.nodes {
            if !up(n) {
                if budget.restarts > 0 {
                    actions.push(Action::Restart(n));
                }
                if budget.proofs > 0 {
                    let told = |m: &usize| {
                        *m != n && up(*m) && !places[*m].stalled && places[*m].told & (1 << n) == 0
                    };
                    actions.extend((0..self.nodes).filter(told).map(|m| Action::Prove(m, n)));
                }
                continue;
            }
            if places[n].stalled {
                actions.push(Action::Resume(n));
            } else if budget.stalls > 0 {
                actions.push(Action::Stall(n));
            }
            if budget.crashes > 0 {
                actions.push(Action::Crash(n));
            }
            if budget.cuts > 0 {
                actions.push(Action::Isolate(n));
                let whole = |m: &usize| *m != n && world.cut & self.link(n, *m) == 0;
                actions.extend((0..self.nodes).filter(whole).map(|m| Action::Cut(n, m)));
            }
            if budget.step_downs > 0 && !places[n].stalled {
                let leads = |g: &usize| places[n].node.leads.contains_key(&group(*g));
                actions.extend((0..GROUPS.len()).filter(leads).map(|g| Action::StepDown(n, g)));
            }
            if budget.leaves > 0 && !places[n].stalled {
                actions.push(Action::Leave(n));
            }
            if budget.words > 0 && !places[n].stalled && places[n].node.room.is_some() {
                actions.push(Action::Say(n));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        self.apply(&mut world, action);
        Some(world)
    }

    fn within_boundary(&self, world: &World) -> bool {
        let rounds = world.places.iter().filter_map(|p| p.node.cluster.promised()).map(|b| b.round);
        rounds.max().is_none_or(|round| round <= 1 + self.rounds)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LEADERS, |_, w: &World| w.broken != Some(LEADERS)),
            Property::always(OVERRULED, |_, w: &World| w.broken != Some(OVERRULED)),
            Property::always(AUTHORITY, |_, w: &World| w.broken != Some(AUTHORITY)),
            Property::always(TOKENS, |_, w: &World| w.broken != Some(TOKENS)),
            Property::always(HISTORY, |_, w: &World| w.broken != Some(HISTORY)),
            Property::always(IDS, |_, w: &World| w.broken != Some(IDS)),
            Property::always(RANKS, |_, w: &World| w.broken != Some(RANKS)),
            Property::always(LOG, |_, w: &World| w.broken != Some(LOG)),
            Property::always(UNCLOSED, |_, w: &World| w.broken != Some(UNCLOSED)),
            Property::always(SAME_SET, |_, w: &World| w.broken != Some(SAME_SET)),
            Property::always(SAME_ORDER, |_, w: &World| w.broken != Some(SAME_ORDER)),
            Property::always(SAFE, |_, w: &World| w.broken != Some(SAFE)),
            Property::always(FOREIGN, |_, w: &World| w.broken != Some(FOREIGN)),
            Property::always(OWN, |_, w: &World| w.broken != Some(OWN)),
            Property::sometimes("another node takes over", |_, w: &World| {
                w.places.iter().enumerate().any(|(n, p)| {
                    n > 0 && p.up && p.node.cluster.authority().is_some_and(|until| until > clock(n, w.step))
                })
            }),
            Property::sometimes("another node leads", |_, w: &World| {
                w.places.iter().enumerate().any(|(n, p)| {
                    let first = group(0);
                    n > 0 && p.acts(clock(n, w.step)).any(|(g, _)| *g == first)
                })
            }),
        ]
    }
}
