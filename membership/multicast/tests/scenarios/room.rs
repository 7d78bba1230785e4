//! Members, and what travels between them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use membership_multicast::{Class, Config, Frame, Input, MANY, Multicast, Output, View};
use membership_types::{GroupName, Instant, Lineage, Machine, NodeId, ViewId};

pub(crate) const LINEAGE: Lineage = Lineage::new(7, 7);

pub(crate) fn id(n: u32) -> NodeId {
    NodeId::new(n, 1)
}

pub(crate) fn view(number: u64, members: &[u32]) -> View {
    let members = members.iter().map(|n| id(*n)).collect();
    View { id: ViewId::new(number), lineage: LINEAGE, members, begins: false }
}

/// What a member's application saw: views and messages, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    View(u64, Vec<u32>),
    Message(String),
    State(String),
    Lost(u64),
}

pub(crate) fn told(text: &str) -> Seen {
    Seen::Message(text.into())
}

/// Members, and the frames under way between them: in order on each link, which can be held up.
pub(crate) struct Room {
    pub(crate) members: BTreeMap<u32, Multicast>,
    pub(crate) seen: BTreeMap<u32, Vec<Seen>>,
    pub(crate) links: BTreeMap<(u32, u32), VecDeque<Frame>>,
    pub(crate) held_up: Vec<(u32, u32)>,
    /// Whom the application was asked to give the state to.
    pub(crate) requests: Vec<(u32, NodeId, u64)>,
    /// Who says of whom that it stays behind.
    pub(crate) behind: Vec<(u32, u32)>,
    /// The last view in which each may act.
    pub(crate) ready: BTreeMap<u32, u64>,
    pub(crate) now: Instant,
    /// How often somebody was told how a view was closed.
    pub(crate) cuts: usize,
    /// In views with more members the first one passes on what the others say.
    pub(crate) relay_above: usize,
    #[cfg(feature = "plant")]
    pub(crate) plant: Option<membership_multicast::Plant>,
}

impl Room {
    /// All are members of view 10.
    pub(crate) fn new(members: &[u32]) -> Self {
        Self::with(members, false)
    }

    /// As [`new`](Room::new); with a state in common, all of them have it.
    pub(crate) fn with(members: &[u32], state: bool) -> Self {
        Self::begin(members, state, MANY)
    }

    /// As [`new`](Room::new); what they say about closings is passed on, however few they are.
    pub(crate) fn relayed(members: &[u32]) -> Self {
        Self::begin(members, false, 1)
    }

    fn begin(members: &[u32], state: bool, relay_above: usize) -> Self {
        let mut room = Self {
            members: BTreeMap::new(),
            seen: BTreeMap::new(),
            links: BTreeMap::new(),
            held_up: Vec::new(),
            requests: Vec::new(),
            behind: Vec::new(),
            ready: BTreeMap::new(),
            now: Instant::from_nanos(1),
            cuts: 0,
            relay_above,
            #[cfg(feature = "plant")]
            plant: None,
        };
        for n in members {
            room.add(*n, state);
        }
        for n in members {
            room.feed(*n, Input::View(View { begins: true, ..view(10, members) }));
        }
        room.run();
        room.seen.clear();
        room
    }

    pub(crate) fn add(&mut self, n: u32, state: bool) {
        let mut config = Config::new(id(n), GroupName::new("g").unwrap());
        config.fragment = 4;
        config.relay_above = self.relay_above;
        if state {
            config.window = 1 << 10;
        }
        let mut member = Multicast::new(config, self.now, 0);
        #[cfg(feature = "plant")]
        member.plant(self.plant);
        if state {
            member.keep_state(true);
        }
        self.members.insert(n, member);
    }

    /// One of them has a bug.
    #[cfg(feature = "plant")]
    pub(crate) fn plant(&mut self, n: u32, plant: membership_multicast::Plant) {
        self.members.get_mut(&n).unwrap().plant(Some(plant));
    }

    /// The application answers the requests for its state.
    pub(crate) fn give(&mut self, state: &'static str) {
        for (n, to, id) in std::mem::take(&mut self.requests) {
            self.feed(n, Input::State { to, id, bytes: Bytes::from_static(state.as_bytes()), last: true });
        }
        self.run();
    }

    /// It gives none.
    pub(crate) fn give_nothing(&mut self) {
        for (n, to, id) in std::mem::take(&mut self.requests) {
            self.feed(n, Input::NoState { to, id });
        }
    }

    pub(crate) fn feed(&mut self, n: u32, input: Input) {
        let member = self.members.get_mut(&n).unwrap();
        member.handle(self.now, input);
        while let Some(output) = member.poll_output() {
            match output {
                Output::Send(to, frame) => {
                    self.cuts += usize::from(matches!(frame, Frame::Cut(_)));
                    self.links.entry((n, to.node())).or_default().push_back(frame);
                }
                Output::SendAll(all, frame) => {
                    for to in all.iter().filter(|to| **to != id(n)) {
                        self.links.entry((n, to.node())).or_default().push_back(frame.clone());
                    }
                }
                Output::Deliver(message) => {
                    let text = String::from_utf8(message.payload.to_vec()).unwrap();
                    self.seen.entry(n).or_default().push(Seen::Message(text));
                }
                Output::Install { view, came_along } => {
                    let with = came_along.iter().map(|m| m.node()).collect();
                    self.seen.entry(n).or_default().push(Seen::View(view.id.get(), with));
                }
                Output::StateRequest { to, id } => self.requests.push((n, to, id)),
                Output::StateReceived(chunks) => {
                    let state = String::from_utf8(chunks.concat()).unwrap();
                    self.seen.entry(n).or_default().push(Seen::State(state));
                }
                Output::StateLost(view) => self.seen.entry(n).or_default().push(Seen::Lost(view.get())),
                Output::Ready(view) => {
                    self.ready.insert(n, view.get());
                }
                Output::Behind(node) => self.behind.push((n, node.node())),
                Output::Block(_) | Output::Given(_) | Output::Trace(_) | Output::Mark(_) => {}
            }
        }
    }

    pub(crate) fn say(&mut self, n: u32, class: Class, text: &'static str) {
        self.feed(n, Input::Multicast(class, Bytes::from_static(text.as_bytes())));
        self.feed(n, Input::Drained);
    }

    pub(crate) fn hold_up(&mut self, from: u32, to: u32) {
        self.held_up.push((from, to));
    }

    pub(crate) fn let_go(&mut self) {
        self.held_up.clear();
        self.run();
    }

    pub(crate) fn kill(&mut self, n: u32) {
        self.members.remove(&n);
        self.links.retain(|(from, to), _| *from != n && *to != n);
    }

    /// Carries all frames that may move, and tells everybody when all are handed in, until nothing moves.
    pub(crate) fn run(&mut self) {
        loop {
            let moving = |(link, frames): (&(u32, u32), &VecDeque<Frame>)| {
                (!frames.is_empty() && !self.held_up.contains(link)).then_some(*link)
            };
            let next = self.links.iter().find_map(moving);
            if let Some((from, to)) = next {
                let frame = self.links.get_mut(&(from, to)).unwrap().pop_front().unwrap();
                if self.members.contains_key(&to) {
                    self.feed(to, Input::Frame(id(from), LINEAGE, frame));
                }
                continue;
            }
            let all: Vec<u32> = self.members.keys().copied().collect();
            for n in all {
                self.feed(n, Input::Drained);
            }
            let moves = self.links.iter().any(|(link, f)| !f.is_empty() && !self.held_up.contains(link));
            if !moves {
                return;
            }
        }
    }

    /// Time passes at one member.
    pub(crate) fn wait(&mut self, n: u32, time: Duration) {
        self.now = self.now.after(time);
        self.members.get_mut(&n).unwrap().handle_timeout(self.now);
        self.feed(n, Input::Drained);
        self.run();
    }

    /// Time passes at all of them, a second at a time.
    pub(crate) fn wait_all(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.now = self.now.after(Duration::from_secs(1));
            let now = self.now;
            let all: Vec<u32> = self.members.keys().copied().collect();
            for n in all {
                let member = self.members.get_mut(&n).unwrap();
                if member.poll_timeout().is_some_and(|at| at <= now) {
                    member.handle_timeout(now);
                }
                self.feed(n, Input::Drained);
            }
            self.run();
        }
    }

    pub(crate) fn seen(&self, n: u32) -> &[Seen] {
        self.seen.get(&n).map_or(&[], Vec::as_slice)
    }
}
