//! Multicast in a run: the connections between processes, and what their applications say to each other.
//!
//! A connection keeps frames in order and loses none while it lasts. It breaks when a link between its ends is cut so
//! that it loses what is sent, or when a fault says so; what is under way is lost then, and both ends are told of the
//! next one.

use std::time::Duration;

use bytes::Bytes;
use membership_multicast::{Class, Config, Frame, Input, Multicast, Output, Transfer, View};
use membership_proto::{GroupView, GroupWish, Input as ClusterInput, Kind, Part};
use membership_types::{
    GroupName, Machine, NodeId, ViewId,
    trace::{Event, Group, Source, lin},
};

use crate::{
    Map,
    network::Fate,
    process::{GROUPS, Incoming, Room, State},
    world::{Action, World},
};

/// The number of a group.
pub(crate) fn index_of(group: &GroupName) -> usize {
    group.as_str()[1..].parse().expect("groups are g0, g1, and so on")
}

/// The connections between pairs of processes.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    /// How often the connection was made anew, and whether it is broken now.
    wires: Map<(usize, usize), Wire>,
    /// When the last frame of a direction arrives.
    last: Map<(usize, usize), u64>,
    /// The same for what others overtake.
    last_later: Map<(usize, usize), u64>,
}

/// Is it a part of a state?
fn is_part(incoming: &Incoming) -> bool {
    matches!(incoming, Incoming::Frame { frame: Frame::Transfer(Transfer::Chunk { .. }), .. })
}

#[derive(Clone, Copy, Debug, Default)]
struct Wire {
    epoch: u64,
    broken: bool,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Wires {
    /// Is the connection still the one of this epoch?
    pub(crate) fn is_open(&self, a: usize, b: usize, epoch: u64) -> bool {
        let wire = self.wires.get(&pair(a, b)).copied().unwrap_or_default();
        !wire.broken && wire.epoch == epoch
    }

    fn epoch(&self, a: usize, b: usize) -> Option<u64> {
        let wire = self.wires.get(&pair(a, b)).copied().unwrap_or_default();
        (!wire.broken).then_some(wire.epoch)
    }

    /// When a frame that would arrive at `at` does: not before those sent earlier.
    fn in_order(&mut self, from: usize, to: usize, at: u64) -> u64 {
        let last = self.last.entry((from, to)).or_insert(0);
        *last = at.max(*last + 1);
        *last
    }

    /// The same for parts of a state, which what is sent later may overtake.
    fn in_its_order(&mut self, from: usize, to: usize, at: u64, incoming: &Incoming) -> u64 {
        if !is_part(incoming) {
            return self.in_order(from, to, at);
        }
        let before = self.last.get(&(from, to)).copied().unwrap_or(0);
        let last = self.last_later.entry((from, to)).or_insert(0);
        *last = at.max(before + 1).max(*last + 1);
        *last
    }
}

impl World {
    /// A process's application wants to be in a group.
    pub(crate) fn join(&mut self, p: usize, group: GroupName, endpoint: Option<Box<str>>) {
        let kind = self.kind_of(&group);
        if kind == Kind::Multicast {
            self.open_room(p, index_of(&group));
            // Who left and comes back is a new member, whether it heard in between that it was out or not.
            self.step(p, Incoming::Room(index_of(&group), Input::Out));
        }
        self.step(p, Incoming::Cluster(ClusterInput::Wish(GroupWish::Join { group, endpoint, kind })));
    }

    fn kind_of(&self, group: &GroupName) -> Kind {
        if self.params.multicast[index_of(group)] { Kind::Multicast } else { Kind::Plain }
    }

    fn open_room(&mut self, p: usize, group: usize) {
        let is_plain = self.is_plain(p);
        let process = &mut self.processes[p];
        if process.rooms.get(group).is_some() {
            return;
        }
        let mut config = Config::new(process.id, self.names[group].clone());
        config.window = 3_000;
        config.fragment = 300;
        config.trace = true;
        config.behind_after = 10 * self.params.lease;
        config.patience = 2 * config.behind_after;
        // Some are of a build that closes at once.
        config.relay_above = if is_plain { usize::MAX } else { self.params.relay_above };
        config.meet_within = if p % 5 == 4 { Duration::ZERO } else { 2 * self.params.lease };
        let state = self.params.stateful[group].then(State::default);
        let mut machine = Multicast::new(config, process.clock.local(self.now), 0);
        if state.is_some() {
            machine.keep_state(true);
        }
        #[cfg(feature = "plant")]
        machine.plant(self.plant.and_then(crate::Plant::of_multicast));
        let room = Room { machine, draining: false, throttled: false, held: false, state };
        process.rooms.insert(group, room);
        process.moved |= 2 << group;
    }

    /// Is a process of a build that takes nothing that is passed on?
    fn is_plain(&self, p: usize) -> bool {
        self.params.plain && p % 4 == 3
    }

    /// Others wait for a process: it leaves the group, and comes back after a while.
    pub(crate) fn step_out(&mut self, p: usize, group: GroupName) {
        let process = &mut self.processes[p];
        if !process.app.wants.remove(&group) {
            return;
        }
        if let Some(room) = process.rooms.get_mut(index_of(&group)) {
            room.throttled = false;
        }
        process.next.push_back(Incoming::Room(index_of(&group), Input::Throttle(false)));
        let wish = GroupWish::Leave { group: group.clone() };
        process.next.push_back(Incoming::Cluster(ClusterInput::Wish(wish)));
        let at = self.now + self.rng.between(1, 5) * self.params.lease.as_nanos() as u64;
        self.push(at, Action::Rejoin { p, group });
    }

    /// Who stepped out comes back.
    pub(crate) fn rejoin(&mut self, p: usize, group: GroupName) {
        if self.processes[p].is_up() && self.processes[p].app.wants.insert(group.clone()) {
            self.join(p, group, None);
        }
    }

    /// Membership tells a process a view of a group with multicast.
    pub(crate) fn room_view(&mut self, p: usize, view: &GroupView, part: Part) {
        let group = index_of(&view.group);
        let input = match part {
            Part::Observer | Part::Left => {
                // Whatever it has not got to does not count any more.
                let stale = |i: &Incoming| matches!(i, Incoming::Room(g, Input::View(_)) if *g == group);
                self.processes[p].next.retain(|incoming| !stale(incoming));
                Input::Out
            }
            Part::Member => {
                let members = view.members.iter().map(|m| m.node).collect();
                Input::View(View {
                    id: view.id,
                    lineage: view.lineage,
                    members,
                    begins: view.prev == ViewId::NONE,
                })
            }
        };
        if part == Part::Member {
            self.open_room(p, group);
        }
        self.processes[p].next.push_back(Incoming::Room(group, input));
        // What connections say: there are some with the first member only, which tells the others.
        let is_first = |node: NodeId| view.members.first().is_some_and(|first| first.node == node);
        let met = |node: NodeId| is_first(node) || is_first(self.processes[p].id);
        let members: Vec<NodeId> = view.members.iter().map(|m| m.node).filter(|node| met(*node)).collect();
        for member in members.into_iter().filter(|_| part == Part::Member) {
            if self.index_of(member).is_some_and(|q| self.is_plain(q)) {
                let plain = Input::Plain(member);
                self.processes[p].next.push_back(Incoming::Room(group, plain));
            }
        }
    }

    /// Something for one of a process's rooms. False if the process is gone after it.
    pub(crate) fn step_room(&mut self, p: usize, incoming: Incoming) -> bool {
        match incoming {
            Incoming::Room(group, input) => self.feed_room(p, group, input),
            Incoming::Frame { from, group, lineage, frame } => {
                self.feed_room(p, group, Input::Frame(from, lineage, frame))
            }
            Incoming::Linked(peer) => (0..GROUPS).all(|group| self.feed_room(p, group, Input::Linked(peer))),
            Incoming::Drained(group) => {
                if let Some(room) = self.processes[p].rooms.get_mut(group) {
                    room.draining = false;
                }
                self.feed_room(p, group, Input::Drained)
            }
            Incoming::Cluster(_) | Incoming::Timers => true,
        }
    }

    fn feed_room(&mut self, p: usize, group: usize, input: Input) -> bool {
        let process = &mut self.processes[p];
        let now = process.clock.local(self.now);
        process.moved |= 2 << group;
        let Some(room) = process.rooms.get_mut(group) else { return true };
        let held = now >= process.app.lease;
        if std::mem::replace(&mut room.held, held) != held {
            room.machine.handle(now, Input::Hold(held));
            if !self.drain_room(p, group) {
                return false;
            }
        }
        let Some(room) = self.processes[p].rooms.get_mut(group) else { return true };
        let is_work = !matches!(input, Input::Drained);
        room.machine.handle(now, input);
        if is_work && !std::mem::replace(&mut room.draining, true) {
            let pause = if self.rng.chance(500) { 0 } else { self.rng.below(1_500_000) };
            let input = Incoming::Drained(group);
            self.push(self.now + pause, Action::Deliver { p, input });
        }
        self.drain_room(p, group)
    }

    pub(crate) fn room_timers(&mut self, p: usize) -> bool {
        (0..GROUPS).all(|group| {
            let process = &mut self.processes[p];
            let Some(room) = process.rooms.get_mut(group) else { return true };
            room.machine.handle_timeout(process.clock.local(self.now));
            self.drain_room(p, group)
        })
    }

    /// Carries out what a room's machine wants. False if the process is gone.
    fn drain_room(&mut self, p: usize, group: usize) -> bool {
        while let Some(output) = self.processes[p].rooms.get_mut(group).and_then(|r| r.machine.poll_output())
        {
            if !self.burns_down(p) {
                return false;
            }
            self.carry_out_room(p, group, output);
        }
        true
    }

    fn carry_out_room(&mut self, p: usize, group: usize, output: Output) {
        let id = self.processes[p].id;
        match output {
            Output::Send(to, frame) => self.send_frame(p, to, group, frame),
            Output::SendAll(all, frame) => {
                let mut frame = Some(frame);
                let mut others = all.into_iter().filter(|to| *to != id).peekable();
                while let Some(to) = others.next() {
                    let last = others.peek().is_none();
                    let frame = if last { frame.take() } else { frame.clone() };
                    frame.into_iter().for_each(|frame| self.send_frame(p, to, group, frame));
                }
            }
            Output::Deliver(message) => {
                if let Some(state) = self.state_of(p, group) {
                    state.apply(&message);
                }
                // What is said is answered now and then, so that one thing follows from another.
                if !self.calm && message.from != id && self.rng.chance(60) {
                    self.say(p, group);
                }
            }
            Output::Install { view, .. } => self.show_state(p, group, &view),
            Output::Ready(view) => {
                let input = ClusterInput::Installed { group: self.names[group].clone(), view };
                self.processes[p].next.push_back(Incoming::Cluster(input));
            }
            Output::StateRequest { to, id } => self.give_state(p, group, to, id),
            Output::StateReceived(chunks) => {
                let received = State::from_bytes(&chunks.concat()).expect("as it was given");
                if let Some(state) = self.state_of(p, group) {
                    *state = received;
                }
                self.mark("a state is received");
            }
            Output::StateLost(_) => {
                // After a while somebody decides that what there is must do.
                let at = self.now + self.rng.between(1, 4) * self.params.lease.as_nanos() as u64;
                self.push(at, Action::Deliver { p, input: Incoming::Room(group, Input::Keep) });
            }
            Output::Trace(event) => {
                if matches!(&event, Event::Install { .. }) {
                    self.views += 1;
                }
                self.record(Source::Process(id.into()), event);
            }
            Output::Mark(what) => self.mark(what),
            Output::Behind(node) => {
                let input = ClusterInput::Behind { group: self.names[group].clone(), node };
                self.processes[p].next.push_back(Incoming::Cluster(input));
            }
            Output::Block(_) | Output::Given(_) => {}
        }
    }

    // ---- state ------------------------------------------------------------------------------------------------------

    fn state_of(&mut self, p: usize, group: usize) -> Option<&mut State> {
        self.processes[p].rooms.get_mut(group)?.state.as_mut()
    }

    /// The application says with what state it begins a view.
    fn show_state(&mut self, p: usize, group: usize, view: &View) {
        let id = self.processes[p].id;
        let Some(state) = self.state_of(p, group) else { return };
        // What was just received may reflect messages of this very view.
        if std::mem::take(&mut state.fresh) {
            return;
        }
        let digest = format!("{:016x}{:016x}", state.chain, state.sum).into();
        let lin = lin(view.lineage);
        let event = Event::AppState {
            p: id.into(),
            g: Group::from(&self.names[group]),
            lin,
            vid: view.id.get(),
            digest,
        };
        self.record(Source::Process(id.into()), event);
    }

    /// The application gives its state: as of now, although that takes a while, sometimes a long one, and sometimes comes to
    /// nothing.
    fn give_state(&mut self, p: usize, group: usize, to: NodeId, id: u64) {
        let Some(state) = self.state_of(p, group) else { return };
        let mut bytes = state.to_bytes();
        if self.is_wild() && self.rng.chance(50) {
            self.mark("an application does not give its state");
            self.processes[p].next.push_back(Incoming::Room(group, Input::NoState { to, id }));
            return;
        }
        let length = if self.rng.chance(300) { self.rng.below(40_000) } else { 0 };
        bytes.resize(16 + length as usize, 7);
        let bytes = Bytes::from(bytes);
        let mut cut = self.rng.below(bytes.len() as u64 + 1) as usize;
        let mut at = self.now;
        if self.is_wild() && self.rng.chance(100) {
            // Longer than a joiner waits for who says nothing, and sometimes than for who is at work; in calm it comes at last.
            self.mark("an application takes long to make its state");
            at += self.rng.between(5, 60) * self.params.lease.as_nanos() as u64;
            let input = Input::State { to, id, bytes: bytes.clone(), last: true };
            self.in_the_making.push((p, Incoming::Room(group, input)));
            cut = 0; // Nothing of it comes before all of it does.
        }
        for (part, last) in [(bytes.slice(..cut), false), (bytes.slice(cut..), true)] {
            at += if self.rng.chance(500) { 0 } else { self.rng.below(50_000_000) };
            let input = Input::State { to, id, bytes: part, last };
            self.push(at, Action::Deliver { p, input: Incoming::Room(group, input) });
        }
    }

    // ---- frames -----------------------------------------------------------------------------------------------------

    fn send_frame(&mut self, p: usize, to: NodeId, group: usize, frame: Frame) {
        let from = self.processes[p].id;
        let Some(to) = self.index_of(to).filter(|q| !self.processes[*q].is_gone()) else { return };
        let Some(epoch) = self.wires.epoch(p, to) else { return };
        let (here, there) = (self.processes[p].place, self.processes[to].place);
        let frame = self.frame_through_the_codec(frame);
        let room = self.processes[p].rooms.get(group);
        let Some(lineage) = room.and_then(|room| room.machine.lineage()) else { return };
        let incoming = Incoming::Frame { from, group, lineage, frame };
        let action = |incoming| Action::Frame { from: p, to, epoch, incoming };
        match self.network.send_in_order(self.now, here, there) {
            Fate::Lost | Fate::Changed => self.break_wire(p, to),
            Fate::Held => self.hold(here, there, action(incoming)),
            Fate::Arrives(at, _) => {
                let late = is_part(&incoming) && self.rng.chance(200);
                let at = if late { at + self.rng.below(20_000_000) } else { at };
                let at = self.wires.in_its_order(p, to, at, &incoming);
                self.push(at, action(incoming));
            }
        }
    }

    fn frame_through_the_codec(&mut self, frame: Frame) -> Frame {
        if !self.rng.chance(30) {
            return frame;
        }
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let back = Frame::decode(Bytes::from(bytes)).expect("every frame can be decoded");
        assert!(back == frame, "a frame changes on the wire: {frame:?} became {back:?}");
        back
    }

    /// A frame that a cut link held arrives.
    pub(crate) fn release_frame(&mut self, at: u64, action: Action) {
        let at = match &action {
            Action::Frame { from, to, incoming, .. } => self.wires.in_its_order(*from, *to, at, incoming),
            _ => at,
        };
        self.push(at, action);
    }

    /// A connection breaks; some time later its ends try again.
    pub(crate) fn break_wire(&mut self, a: usize, b: usize) {
        let wire = self.wires.wires.entry(pair(a, b)).or_default();
        if wire.broken {
            return;
        }
        wire.epoch += 1;
        wire.broken = true;
        let pause = self.rng.between(1_000_000, self.params.lease.as_nanos() as u64 / 2);
        self.push(self.now + pause, Action::Connect { a, b });
    }

    pub(crate) fn break_wires_between(&mut self, here: usize, there: usize) {
        let on = |place: usize| -> Vec<usize> {
            (0..self.processes.len())
                .filter(|p| self.processes[*p].place == place && !self.processes[*p].is_gone())
                .collect()
        };
        for (a, b) in
            on(here).into_iter().flat_map(|a| on(there).into_iter().map(move |b| (a, b))).collect::<Vec<_>>()
        {
            if a != b {
                self.break_wire(a, b);
            }
        }
    }

    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        if self.processes[a].is_gone() || self.processes[b].is_gone() {
            return;
        }
        let (here, there) = (self.processes[a].place, self.processes[b].place);
        if self.network.is_cut(here, there) || self.network.is_cut(there, here) {
            let pause = self.rng.between(1_000_000, self.params.lease.as_nanos() as u64 / 2);
            self.push(self.now + pause, Action::Connect { a, b });
            return;
        }
        self.wires.wires.entry(pair(a, b)).or_default().broken = false;
        for (to, peer) in [(a, b), (b, a)] {
            let input = Incoming::Linked(self.processes[peer].id);
            let at = self.now + self.rng.below(2_000_000);
            let at = self.wires.in_order(peer, to, at);
            self.push(at, Action::Deliver { p: to, input });
        }
    }

    // ---- applications -----------------------------------------------------------------------------------------------

    /// The application says something in its groups, or stops listening for a while.
    pub(crate) fn talk(&mut self, p: usize) {
        for group in 0..GROUPS {
            if !self.processes[p].is_up() {
                return;
            }
            let Some(room) = self.processes[p].rooms.get(group) else { continue };
            let throttle = match room.throttled {
                true if self.calm || self.rng.chance(300) => Some(false),
                false if self.is_wild() && self.rng.chance(20) => Some(true),
                _ => None,
            };
            if let Some(on) = throttle {
                if let Some(room) = self.processes[p].rooms.get_mut(group) {
                    room.throttled = on;
                }
                self.step(p, Incoming::Room(group, Input::Throttle(on)));
            }
            let wants = self.processes[p].app.wants.contains(&self.names[group]);
            let words = if self.rng.chance(60) { self.rng.below(self.params.burst) } else { 0 };
            for _ in 0..words {
                if wants && self.processes[p].is_up() {
                    self.say(p, group);
                }
            }
        }
    }

    fn say(&mut self, p: usize, group: usize) {
        let Some(room) = self.processes[p].rooms.get(group) else { return };
        if !room.machine.has_room() {
            self.mark("a sender waits for others");
            return;
        }
        let length = if self.rng.chance(100) { self.rng.below(1_500) } else { self.rng.below(40) };
        let payload: Bytes = (0..length).map(|_| self.rng.next_u64() as u8).collect();
        let class = *self.rng.pick(&[Class::Fifo, Class::Ordered, Class::Safe]).expect("not empty");
        let input = Incoming::Room(group, Input::Multicast(class, payload));
        let alive = self.processes[p].is_up();
        if alive {
            self.processes[p].next.push_back(input);
            self.push(self.now, Action::Wake { p });
        }
    }
}
