//! From one view to the next: real multicast machines, and every order in which their frames may come.
//!
//! A model begins in a view that all members have installed. Membership's next views are agreed and come to each member
//! at any time, an overtaken one perhaps not at all; members say a few things; one may die; connections may break, and
//! what is under way on them is lost. Frames between two members keep their order. Time has no meaning here but that an
//! acknowledgement may be due.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use membership_multicast::{Class, Config, Frame, Input, Message, Multicast, Output, Plant, View};
use membership_types::{GroupName, Instant, Lineage, Machine, NodeId, ViewId};
use stateright::{Model, Property};

use crate::{mark::Marker, search::Story};

const LINEAGE: Lineage = Lineage::new(7, 7);
/// The id of the first view.
const FIRST: u64 = 10;
const NOW: Instant = Instant::from_nanos(1);
const ACK_AFTER: Duration = Duration::from_millis(20);

/// The bounds of a model.
#[derive(Clone, Debug)]
pub struct Flush {
    /// The views that membership agrees on, each by its members in rank order. All of the first are in it when the
    /// model begins.
    pub views: Vec<Vec<usize>>,
    /// Who says what, each in this order, at any time.
    pub words: Vec<(usize, Class)>,
    /// Who may die at any time; must not be in the last view, since that could never be closed.
    pub mortal: Option<usize>,
    /// How often a connection may break.
    pub breaks: u8,
    /// Every message is sent in two pieces.
    pub pieces: bool,
    /// Members are told that all was handed in at any time, not after each frame.
    pub lazy: bool,
    /// Members go on until who is new is there, for as long as that takes; else they close at once.
    pub patient: bool,
    /// A deliberate bug in every member; only where built with the feature `plant`.
    pub plant: Option<Plant>,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The next frame from one member to another arrives.
    Deliver(usize, usize),
    /// Membership tells a member the next view, or that it is out.
    Tell(usize),
    /// Membership tells a member the view after the next.
    Skip(usize),
    /// A member says its next word.
    Say(usize),
    /// All that came to a member was handed in.
    Drain(usize),
    /// A member's acknowledgement is due.
    Acknowledge(usize),
    /// A member dies.
    Crash(usize),
    /// What a dead member sent to another is lost.
    Lose(usize, usize),
    /// The connection between two members breaks, and there is a new one.
    Break(usize, usize),
}

/// A message by its sender and its number there.
type Mid = (usize, usize);

#[derive(Clone)]
struct Place {
    machine: Arc<Multicast>,
    mark: u64,
    up: bool,
    /// How far membership has told it the views.
    told: usize,
    /// How many of its words it has said.
    said: usize,
    /// Something was handed in since it was told that this was all.
    dirty: bool,
    /// The view that it is in.
    view: Option<u64>,
    /// What it delivered there, in order.
    delivered: Vec<(Mid, Class)>,
    /// The view that it was in when it was out, and what it held then: of each rank, and up to which place.
    out: Option<(u64, Vec<u64>, u64)>,
}

#[derive(Clone, Hash, PartialEq, Eq)]
enum Item {
    Frame(Frame),
    Linked,
}

/// What has been seen in the run so far.
#[derive(Clone, Default, Hash)]
struct Seen {
    /// In which view each message was sent, and the number of its last fragment there.
    sent: BTreeMap<Mid, (u64, u64)>,
    /// Which message has which place in a view.
    places: BTreeMap<(u64, u64), Mid>,
    /// What those delivered in a view who went on from it, and the order of what is ordered.
    closed: BTreeMap<u64, (BTreeSet<Mid>, Vec<Mid>)>,
    /// What was safe to anybody in a view.
    safe: BTreeMap<u64, BTreeSet<Mid>>,
    /// Who installed a view: from which, and together with whom.
    installed: BTreeMap<(u64, usize), (u64, Vec<NodeId>)>,
}

/// A state of the model.
#[derive(Clone)]
pub struct World {
    places: Vec<Place>,
    /// What is under way from one member to another, by `from * members + to`.
    links: Vec<Arc<VecDeque<Item>>>,
    link_marks: Vec<u64>,
    breaks: u8,
    seen: Arc<Seen>,
    seen_mark: u64,
    /// The first property that does not hold.
    broken: Option<&'static str>,
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let mark = |w: &Self| Marker::timeless().of(w);
        mark(self) == mark(other)
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { places, links: _, link_marks, breaks, seen: _, seen_mark, broken } = self;
        (link_marks, breaks, seen_mark, broken).hash(state);
        for Place { machine: _, mark, up, told, said, dirty, view, delivered, out } in places {
            (mark, up, told, said, dirty, view, delivered, out).hash(state);
        }
    }
}

/// Two members that go from one view to the same next one delivered different messages in it.
pub const SAME_SET: &str = "the same messages between two views";
/// They delivered ordered ones in different orders, or one place went to two messages.
pub const SAME_ORDER: &str = "one order";
/// A safe message was delivered that some member did not hold, or that one who goes on never delivers.
pub const SAFE: &str = "safe only when all hold it";
/// A message was delivered in a view other than the one in which it was sent, or twice, or out of its sender's order.
pub const FOREIGN: &str = "only messages of the view, once, in their sender's order";
/// A member goes on without having delivered its own message.
pub const OWN: &str = "a sender delivers its own";
/// A member installed a view that is not agreed, not newer, or not its own; or company that did not come along.
pub const VIEWS: &str = "views as agreed, with those who came along";
/// Nothing more can happen, and somebody has not installed the last view or lacks a message of it.
pub const STUCK: &str = "all is done when nothing is left to do";

fn id(place: usize) -> NodeId {
    NodeId::new(place as u32, 1)
}

impl Flush {
    fn members(&self) -> usize {
        self.views.iter().flatten().max().map_or(0, |m| m + 1)
    }

    fn view(&self, n: usize) -> View {
        let members = self.views[n].iter().map(|m| id(*m)).collect();
        View { id: ViewId::new(FIRST + n as u64), lineage: LINEAGE, members, begins: false }
    }

    fn first(&self) -> World {
        let all = self.members();
        let mut world = World {
            places: Vec::new(),
            links: vec![Arc::default(); all * all],
            link_marks: vec![0; all * all],
            breaks: self.breaks,
            seen: Arc::default(),
            seen_mark: 0,
            broken: None,
        };
        for place in 0..all {
            let mut config = Config::new(id(place), GroupName::new("g").expect("a good name"));
            config.ack_after = ACK_AFTER;
            config.behind_after = Duration::from_secs(3600);
            config.meet_within = if self.patient { config.behind_after } else { Duration::ZERO };
            config.fragment = if self.pieces { 1 } else { 64 };
            #[allow(unused_mut, reason = "planting needs it")]
            let mut machine = Multicast::new(config, NOW, 0);
            #[cfg(feature = "plant")]
            machine.plant(self.plant);
            // Who joins later has not heard of the views before its first.
            let told = self.views.iter().position(|v| v.contains(&place)).unwrap_or(0);
            world.places.push(Place {
                mark: Marker::timeless().of(&machine),
                machine: Arc::new(machine),
                up: true,
                told: told.saturating_sub(1),
                said: 0,
                dirty: false,
                view: None,
                delivered: Vec::new(),
                out: None,
            });
        }
        for place in self.views[0].clone() {
            self.feed(&mut world, place, Input::View(self.view(0)));
        }
        while let Some(link) = world.links.iter().position(|l| !l.is_empty()) {
            self.deliver(&mut world, link / all, link % all);
        }
        for place in 0..all {
            self.feed(&mut world, place, Input::Drained);
        }
        assert!(world.links.iter().all(|l| l.is_empty()), "nothing is under way when the model begins");
        world
    }

    fn deliver(&self, world: &mut World, from: usize, to: usize) {
        let Some(item) = world.pop(from, to) else { return };
        let input = match item {
            Item::Frame(frame) => Input::Frame(id(from), LINEAGE, frame),
            Item::Linked => Input::Linked(id(from)),
        };
        self.feed(world, to, input);
    }

    /// Hands something in, and says that this was all unless members are lazy.
    fn feed(&self, world: &mut World, place: usize, input: Input) {
        if !world.places[place].up {
            return;
        }
        let drains = matches!(input, Input::Drained);
        self.run(world, place, |machine| machine.handle(NOW, input));
        world.places[place].dirty = self.lazy && !drains;
        if !self.lazy && !drains {
            self.run(world, place, |machine| machine.handle(NOW, Input::Drained));
        }
    }

    fn run(&self, world: &mut World, place: usize, step: impl FnOnce(&mut Multicast)) {
        let machine = Arc::make_mut(&mut world.places[place].machine);
        step(machine);
        let mut outputs = Vec::new();
        while let Some(output) = machine.poll_output() {
            outputs.push(output);
        }
        world.places[place].mark = Marker::timeless().of(&*world.places[place].machine);
        let closes = outputs.iter().any(|o| matches!(o, Output::Install { .. }));
        let mut fragments = self.fragments_before(world, place);
        for output in outputs {
            match output {
                Output::Send(to, frame) => world.push(place, to.node() as usize, Item::Frame(frame)),
                Output::SendAll(all, frame) => {
                    if let Frame::Data(data) = &frame
                        && data.last
                    {
                        fragments += 1;
                        let number = (data.view.get(), data.number);
                        world.see(|seen| seen.sent.insert((place, fragments), number));
                    }
                    for to in all.iter().filter(|to| **to != id(place)) {
                        world.push(place, to.node() as usize, Item::Frame(frame.clone()));
                    }
                }
                Output::Deliver(message) => self.on_deliver(world, place, &message, closes),
                Output::Install { view, came_along } => self.on_install(world, place, &view, &came_along),
                // No member keeps a state here.
                Output::StateRequest { .. }
                | Output::Given(_)
                | Output::StateReceived(_)
                | Output::StateLost(_)
                | Output::Ready(_)
                | Output::Block(_)
                | Output::Behind(_)
                | Output::Trace(_)
                | Output::Mark(_) => {}
            }
        }
    }

    /// How many messages a member had sent.
    fn fragments_before(&self, world: &World, place: usize) -> usize {
        world.seen.sent.range((place, 0)..(place + 1, 0)).count()
    }

    fn on_deliver(&self, world: &mut World, place: usize, message: &Message, closes: bool) {
        let mid = (usize::from(message.payload[0]), usize::from(message.payload[1]));
        let view = message.view.get();
        let Some(sent) = world.seen.sent.get(&mid).copied() else { return world.breaks(FOREIGN) };
        let n = (view - FIRST) as usize;
        let list = &self.views[n];
        let here = &world.places[place];
        // All that its sender sent in this view before it was delivered before it.
        let earlier =
            world.seen.sent.iter().filter(|(m, (v, _))| m.0 == mid.0 && m.1 < mid.1 && *v == view).count();
        let delivered = here.delivered.iter().filter(|(m, _)| m.0 == mid.0).count();
        let fits = here.view == Some(view) && sent.0 == view && list.contains(&mid.0) && earlier == delivered;
        if !fits {
            world.breaks(FOREIGN);
        }
        if let Some(at) = message.place
            && let known = world.see(|seen| *seen.places.entry((view, at)).or_insert(mid))
            && known != mid
        {
            world.breaks(SAME_ORDER);
        }
        if message.class == Class::Safe {
            let rank = list.iter().position(|m| *m == mid.0);
            let holds = |place: &Place| {
                let machine = &place.machine;
                let now = machine.installed().map(|v| v.id.get()).zip(machine.holds());
                let now = now.map(|(view, (held, seq))| (view, held, seq));
                let holds = now.iter().chain(&place.out).any(|(v, held, seq)| {
                    let placed = message.place.is_some_and(|at| *seq >= at);
                    *v == view && placed && rank.is_some_and(|rank| held[rank] >= sent.1)
                });
                holds || place.delivered.iter().any(|(m, _)| *m == mid)
            };
            let gone_on = world.seen.closed.get(&view).map(|(set, _)| set.contains(&mid));
            let all_hold = list.iter().all(|m| holds(&world.places[*m]) || gone_on == Some(true));
            if gone_on == Some(false) || !closes && !all_hold {
                world.breaks(SAFE);
            }
            world.see(|seen| seen.safe.entry(view).or_default().insert(mid));
        }
        world.places[place].delivered.push((mid, message.class));
    }

    fn on_install(&self, world: &mut World, place: usize, view: &View, came_along: &[NodeId]) {
        let number = view.id.get();
        let agreed = (number - FIRST) as usize;
        let here = &world.places[place];
        let newer = here.view.is_none_or(|v| v < number);
        if !newer || *view != self.view(agreed) || !self.views[agreed].contains(&place) {
            world.breaks(VIEWS);
        }
        let here = &mut world.places[place];
        let delivered = std::mem::take(&mut here.delivered);
        let before = here.view.replace(number);
        let company = (before.unwrap_or(0), came_along.to_vec());
        // Everybody in our company who installed this view came from where we come from, with the same company; and
        // whoever says that we were in its company is right.
        let agrees = |(other, theirs): (usize, &(u64, Vec<NodeId>))| {
            let ours = came_along.contains(&id(other)) || theirs.1.contains(&id(place));
            !ours || *theirs == company
        };
        let others = world.seen.installed.range((number, 0)..(number + 1, 0));
        if !others.into_iter().all(|((_, other), theirs)| agrees((*other, theirs))) {
            world.breaks(VIEWS);
        }
        world.see(|seen| seen.installed.insert((number, place), company));
        let Some(before) = before else { return };
        let set: BTreeSet<Mid> = delivered.iter().map(|(mid, _)| *mid).collect();
        let order: Vec<Mid> =
            delivered.iter().filter(|(_, c)| c.is_sequenced()).map(|(mid, _)| *mid).collect();
        let own = world.seen.sent.iter().filter(|(m, (v, _))| m.0 == place && *v == before);
        if !own.into_iter().all(|(mid, _)| set.contains(mid)) {
            world.breaks(OWN);
        }
        if world.seen.safe.get(&before).is_some_and(|safe| !safe.is_subset(&set)) {
            world.breaks(SAFE);
        }
        let known =
            world.see(|seen| seen.closed.entry(before).or_insert((set.clone(), order.clone())).clone());
        if known.0 != set {
            world.breaks(SAME_SET);
        } else if known.1 != order {
            world.breaks(SAME_ORDER);
        }
    }

    /// What a member will say next.
    fn next_word(&self, world: &World, place: usize) -> Option<Class> {
        let own = self.words.iter().filter(|(who, _)| *who == place);
        own.map(|(_, class)| *class).nth(world.places[place].said)
    }

    fn acknowledgement_due(machine: &Multicast) -> bool {
        machine.poll_timeout().is_some_and(|at| at <= NOW.after(ACK_AFTER))
    }

    /// What must happen sooner or later.
    fn work(&self, world: &World, actions: &mut Vec<Action>) {
        let all = self.members();
        for (link, items) in world.links.iter().enumerate() {
            let (from, to) = (link / all, link % all);
            if !items.is_empty() && world.places[to].up {
                actions.push(Action::Deliver(from, to));
                if !world.places[from].up {
                    actions.push(Action::Lose(from, to));
                }
            }
        }
        for (place, p) in world.places.iter().enumerate().filter(|(_, p)| p.up) {
            if p.told + 1 < self.views.len() {
                actions.push(Action::Tell(place));
                if p.told + 2 < self.views.len() && self.views[p.told + 1].contains(&place) {
                    actions.push(Action::Skip(place));
                }
            }
            if self.next_word(world, place).is_some() {
                actions.push(Action::Say(place));
            }
            if p.dirty {
                actions.push(Action::Drain(place));
            }
            if Self::acknowledgement_due(&p.machine) {
                actions.push(Action::Acknowledge(place));
            }
        }
    }

    /// Nothing is left to do: is all done?
    fn is_done(&self, world: &World) -> bool {
        let mut work = Vec::new();
        self.work(world, &mut work);
        if !work.is_empty() {
            return true;
        }
        let last = FIRST + self.views.len() as u64 - 1;
        let sent = world.seen.sent.iter().filter(|(_, (view, _))| *view == last);
        let sent: BTreeSet<Mid> = sent.map(|(mid, _)| *mid).collect();
        self.views.last().into_iter().flatten().all(|m| {
            let place = &world.places[*m];
            let has = |mid: &Mid| place.delivered.iter().any(|(d, _)| d == mid);
            place.view == Some(last) && sent.iter().all(has) && place.machine.backlog() == 0
        })
    }
}

impl World {
    fn push(&mut self, from: usize, to: usize, item: Item) {
        if !self.places[to].up {
            return;
        }
        let link = from * self.places.len() + to;
        Arc::make_mut(&mut self.links[link]).push_back(item);
        self.link_marks[link] = Marker::timeless().of(&*self.links[link]);
    }

    fn pop(&mut self, from: usize, to: usize) -> Option<Item> {
        let link = from * self.places.len() + to;
        let item = Arc::make_mut(&mut self.links[link]).pop_front();
        self.link_marks[link] = Marker::timeless().of(&*self.links[link]);
        item
    }

    fn clear(&mut self, from: usize, to: usize) {
        let link = from * self.places.len() + to;
        self.links[link] = Arc::default();
        self.link_marks[link] = Marker::timeless().of(&*self.links[link]);
    }

    fn see<T>(&mut self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let result = change(Arc::make_mut(&mut self.seen));
        self.seen_mark = Marker::timeless().of(&*self.seen);
        result
    }

    fn breaks(&mut self, property: &'static str) {
        self.broken.get_or_insert(property);
    }
}

impl Model for Flush {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.first()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        self.work(world, actions);
        if let Some(place) = self.mortal
            && world.places[place].up
        {
            actions.push(Action::Crash(place));
        }
        if world.breaks > 0 {
            let all = self.members();
            let up = |n: &usize| world.places[*n].up;
            let pairs = (0..all).flat_map(|a| (a + 1..all).map(move |b| (a, b)));
            let lossy = |(a, b): &(usize, usize)| {
                up(a)
                    && up(b)
                    && !(world.links[a * all + b].is_empty() && world.links[b * all + a].is_empty())
            };
            actions.extend(pairs.filter(lossy).map(|(a, b)| Action::Break(a, b)));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Deliver(from, to) => self.deliver(&mut world, from, to),
            Action::Tell(place) | Action::Skip(place) => {
                let told = world.places[place].told + if matches!(action, Action::Tell(_)) { 1 } else { 2 };
                world.places[place].told = told;
                if self.views[told].contains(&place) {
                    self.feed(&mut world, place, Input::View(self.view(told)));
                } else {
                    let here = &mut world.places[place];
                    here.out =
                        here.view.take().zip(here.machine.holds()).map(|(v, (held, seq))| (v, held, seq));
                    world.places[place].delivered.clear();
                    self.feed(&mut world, place, Input::Out);
                }
            }
            Action::Say(place) => {
                let class = self.next_word(&world, place)?;
                world.places[place].said += 1;
                let payload = [place as u8, world.places[place].said as u8];
                self.feed(&mut world, place, Input::Multicast(class, Bytes::copy_from_slice(&payload)));
            }
            Action::Drain(place) => self.feed(&mut world, place, Input::Drained),
            Action::Acknowledge(place) => {
                self.run(&mut world, place, |machine| machine.handle_timeout(NOW.after(ACK_AFTER)));
            }
            Action::Crash(place) => {
                world.places[place].up = false;
                world.places[place].dirty = false;
                for from in 0..self.members() {
                    world.clear(from, place);
                }
            }
            Action::Lose(from, to) => world.clear(from, to),
            Action::Break(a, b) => {
                world.breaks -= 1;
                for (from, to) in [(a, b), (b, a)] {
                    world.clear(from, to);
                    world.push(from, to, Item::Linked);
                }
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAME_SET, |_, w: &World| w.broken != Some(SAME_SET)),
            Property::always(SAME_ORDER, |_, w: &World| w.broken != Some(SAME_ORDER)),
            Property::always(SAFE, |_, w: &World| w.broken != Some(SAFE)),
            Property::always(FOREIGN, |_, w: &World| w.broken != Some(FOREIGN)),
            Property::always(OWN, |_, w: &World| w.broken != Some(OWN)),
            Property::always(VIEWS, |_, w: &World| w.broken != Some(VIEWS)),
            Property::always(STUCK, |model: &Self, w: &World| model.is_done(w)),
            Property::sometimes("the last view is installed", |model: &Self, w: &World| {
                let last = FIRST + model.views.len() as u64 - 1;
                w.places.iter().any(|p| p.view == Some(last))
            }),
            Property::sometimes("something is delivered after that", |model: &Self, w: &World| {
                let last = FIRST + model.views.len() as u64 - 1;
                w.places.iter().any(|p| p.view == Some(last) && !p.delivered.is_empty())
            }),
        ]
    }
}

impl Story for Flush {
    fn show(&self, world: &World) -> Option<String> {
        let waits = world.places.iter().map(|p| p.machine.waits_for());
        let waits = waits.enumerate().filter_map(|(n, text)| text.map(|text| format!("{n} waits: {text}")));
        Some(waits.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
    }

    fn tell(&self, world: &World, action: &Action) -> String {
        match action {
            Action::Deliver(from, to) => {
                let link = &world.links[from * self.members() + to];
                let what = match link.front() {
                    Some(Item::Frame(frame)) => format!("{frame:?}"),
                    _ => "a new connection".into(),
                };
                format!("to {to} from {from}: {what}")
            }
            action => format!("{action:?}"),
        }
    }
}
