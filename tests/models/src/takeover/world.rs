//! A state of the model: what each node knows, what is under way, what was seen; and what must hold in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use membership_multicast::Frame;
use membership_proto::{
    Cluster, Msg,
    state::State,
    witness::{Answer, Keeper},
};
use membership_types::{GroupName, Instant, Lineage, NodeId, Token, ViewId};

use super::{
    AUTHORITY, Budget, Delivery, FAR, HISTORY, LEADERS, LOG, OVERRULED, RANKS, TOKENS, Takeover, UNCLOSED,
    UNIT, clock, group,
};
use crate::{
    mark::Marker,
    room::{Room, Words},
};

/// So many messages wait for a node that stands still, from each other one; more are lost.
const STALLED_TAKES: usize = 4;

/// What the witness says to a node that claimed a core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reply {
    pub(super) place: usize,
    pub(super) to: NodeId,
    pub(super) answer: Answer,
    pub(super) held: bool,
}

/// A node and what its application may do.
#[derive(Clone)]
pub(crate) struct Node {
    pub(super) cluster: Cluster,
    /// The tokens under which it may act, by group.
    pub(super) leads: BTreeMap<GroupName, Token>,
    /// Until when.
    pub(crate) lease: Instant,
    /// Its part in the first group, if that multicasts.
    pub(crate) room: Option<Room>,
}

#[derive(Clone)]
pub(super) struct Place {
    pub(super) node: Arc<Node>,
    pub(super) mark: u64,
    pub(super) up: bool,
    pub(super) stalled: bool,
    /// Whose deaths it was told of.
    pub(super) told: u16,
    pub(super) restarts: u64,
    /// How many messages its nodes have multicast.
    pub(super) said: u8,
}

/// What one node says to another.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Said {
    Msg(Msg),
    Frame(Lineage, Frame),
}

/// Messages that were sent together.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) from: NodeId,
    /// Where it was sent from, and to.
    pub(super) link: (usize, usize),
    pub(super) to: NodeId,
    pub(super) msgs: Arc<Vec<Said>>,
    pub(super) mark: u64,
    pub(super) held: bool,
}

/// What has been seen in the run so far.
#[derive(Clone, Default, Hash)]
pub(super) struct Seen {
    /// Cluster views: what came before each, and who is in it.
    views: BTreeMap<ViewId, (ViewId, Vec<NodeId>)>,
    /// Group views: token and members.
    groups: BTreeMap<(GroupName, ViewId), (Token, Vec<NodeId>)>,
    /// What was committed, by index.
    log: BTreeMap<u64, u64>,
    /// The highest token that anybody acted under, and who.
    tokens: BTreeMap<GroupName, (Token, NodeId)>,
    words: Words,
}

/// A state of the model.
#[derive(Clone)]
pub struct World {
    /// How many steps of time are over.
    pub(super) step: u64,
    /// After how many the run ends; 0 while the cluster is founded.
    pub(super) end: u64,
    pub(super) places: Vec<Place>,
    pub(super) flight: Vec<Packet>,
    /// Links that carry nothing: bit `from * nodes + to`.
    pub(super) cut: u64,
    pub(super) budget: Budget,
    pub(super) keeper: Keeper,
    pub(super) replies: Vec<Reply>,
    /// Links on which frames were lost: there is a new connection once they carry again.
    pub(super) torn: u64,
    /// Nodes that do not reach the witness: bit `node`.
    pub(super) mute: u64,
    pub(super) seen: Arc<Seen>,
    pub(super) seen_mark: u64,
    /// The first property that does not hold.
    pub(super) broken: Option<&'static str>,
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let mark = |w: &Self| Marker::timeless().of(w);
        mark(self) == mark(other)
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            step,
            end,
            places,
            flight,
            cut,
            budget,
            keeper,
            replies,
            torn,
            mute,
            seen: _,
            seen_mark,
            broken,
        } = self;
        let left = (*end < u64::MAX).then(|| end - step);
        (left, cut, budget, seen_mark, broken).hash(state);
        (keeper, replies, mute, torn).hash(state);
        for place in places {
            (place.mark, place.up, place.stalled, place.told, place.said).hash(state);
        }
        // What is under way in order stays in order; what is late has none.
        for packet in flight.iter().filter(|p| !p.held) {
            packet.mark.hash(state);
        }
        let mut late: Vec<u64> = flight.iter().filter(|p| p.held).map(|p| p.mark).collect();
        late.sort_unstable();
        late.hash(state);
    }
}

pub(super) fn mark_of(node: &Node, step: u64) -> u64 {
    Marker::at(step * UNIT, FAR * UNIT).of(&(&node.cluster, &node.leads, node.lease, &node.room))
}

impl Packet {
    pub(super) fn has_frames(&self) -> bool {
        self.msgs.iter().any(|said| matches!(said, Said::Frame(..)))
    }

    pub(super) fn mark_at(&self, step: u64) -> u64 {
        Marker::at(step * UNIT, FAR * UNIT).of(&(self.from, self.link, self.to, &self.msgs))
    }
}

impl Place {
    pub(super) fn sees(&self, nodes: usize) -> bool {
        self.node.cluster.view().is_some_and(|v| v.members.len() == nodes)
    }

    /// The groups for which it acts at this instant.
    pub(super) fn acts(&self, now: Instant) -> impl Iterator<Item = (&GroupName, Token)> {
        let acts = self.up && now < self.node.lease;
        self.node.leads.iter().filter(move |_| acts).map(|(name, token)| (name, *token))
    }
}

impl World {
    pub(crate) fn id(&self, place: usize) -> NodeId {
        self.places[place].node.cluster.id()
    }

    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    pub(crate) fn is_up(&self, place: usize) -> bool {
        self.places[place].up
    }

    pub(crate) fn place_of(&self, id: NodeId) -> Option<usize> {
        self.places.iter().position(|p| p.node.cluster.id() == id)
    }

    pub(crate) fn node_mut(&mut self, place: usize) -> &mut Node {
        Arc::make_mut(&mut self.places[place].node)
    }

    pub(crate) fn remark(&mut self, place: usize) {
        let p = &mut self.places[place];
        p.mark = mark_of(&p.node, self.step);
    }

    pub(crate) fn next_word(&mut self, place: usize) -> u8 {
        self.places[place].said += 1;
        self.places[place].said
    }

    pub(crate) fn words<T>(&mut self, change: impl FnOnce(&mut Words) -> T) -> T {
        let result = change(&mut Arc::make_mut(&mut self.seen).words);
        self.seen_mark = Marker::timeless().of(&*self.seen);
        result
    }

    /// Frames go from one place to a node at another.
    pub(crate) fn post(
        &mut self,
        model: &Takeover,
        from: usize,
        (to, id): (usize, NodeId),
        msgs: Arc<Vec<Said>>,
    ) {
        let packet = Packet { from: self.id(from), link: (from, to), to: id, msgs, mark: 0, held: false };
        self.send(model, packet);
    }

    pub(super) fn send(&mut self, model: &Takeover, mut packet: Packet) {
        let (from, to) = packet.link;
        let waiting = || self.flight.iter().filter(|p| p.link == packet.link).count();
        let full = self.places[to].stalled && waiting() >= STALLED_TAKES;
        if self.cut & model.link(from, to) != 0 || !self.places[to].up || full {
            if packet.has_frames() {
                self.torn |= model.link(from, to);
            }
            return;
        }
        if let Delivery::Free { capacity } = model.delivery
            && self.end > 0
        {
            let on_link = |p: &Packet| p.link == packet.link;
            if self.flight.iter().filter(|p| on_link(p)).count() >= capacity
                && let Some(oldest) = self.flight.iter().position(on_link)
            {
                self.flight.remove(oldest);
            }
        }
        packet.mark = packet.mark_at(self.step);
        self.flight.push(packet);
    }

    pub(crate) fn breaks(&mut self, property: &'static str) {
        self.broken.get_or_insert(property);
    }

    pub(super) fn has_group(&self, n: usize, members: usize) -> bool {
        let states = self.places.iter().filter_map(|p| p.node.cluster.committed());
        let newest = states.max_by_key(|s| s.index);
        newest.and_then(|s| s.group(&group(n))).is_some_and(|v| v.members.len() == members)
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Seen) -> bool) -> bool {
        let holds = change(Arc::make_mut(&mut self.seen));
        self.seen_mark = Marker::timeless().of(&*self.seen);
        holds
    }

    pub(super) fn see_view(&mut self, id: ViewId, prev: ViewId, members: Vec<NodeId>) {
        let fits = self.change(|seen| {
            if let Some(known) = seen.views.get(&id) {
                return *known == (prev, members);
            }
            let skips = seen.views.range(..id).next_back().is_some_and(|(before, _)| *before > prev);
            let skipped = seen.views.range(id..).next().is_some_and(|(_, (p, _))| *p < id);
            seen.views.insert(id, (prev, members));
            !skips && !skipped
        });
        if !fits {
            self.breaks(HISTORY);
        }
    }

    pub(super) fn see_group(&mut self, group: GroupName, id: ViewId, view: (Token, Vec<NodeId>)) {
        let same =
            self.change(|seen| *seen.groups.entry((group, id)).or_insert_with(|| view.clone()) == view);
        if !same {
            self.breaks(RANKS);
        }
    }

    pub(super) fn see_log(&mut self, index: u64, mark: u64) {
        let same = self.change(|seen| *seen.log.entry(index).or_insert(mark) == mark);
        if !same {
            self.breaks(LOG);
        }
    }

    /// What must hold at every instant.
    pub(super) fn judge(&mut self) {
        let mut leaders: BTreeSet<GroupName> = BTreeSet::new();
        let mut broken = None;
        let mut news: Vec<(GroupName, Token, NodeId)> = Vec::new();
        let newest: Option<&State> =
            self.places.iter().filter_map(|p| p.node.cluster.committed()).max_by_key(|s| s.index);
        let mut authorities = 0;
        for (n, place) in self.places.iter().enumerate() {
            let now = clock(n, self.step);
            let id = place.node.cluster.id();
            if place.up && place.node.cluster.authority().is_some_and(|until| until > now) {
                authorities += 1;
            }
            for (group, token) in place.acts(now) {
                if !leaders.insert(group.clone()) {
                    broken = Some(LEADERS);
                }
                let leader = newest.and_then(|s| s.group(group)).map(|v| (v.leader(), v.token));
                if leader != Some((Some(id), token)) && broken.is_none() {
                    broken = Some(OVERRULED);
                }
                let room = place.node.room.as_ref().filter(|_| *group == self::group(0));
                if room.is_some_and(|room| room.installed().is_none_or(|view| view < token.view())) {
                    broken = broken.or(Some(UNCLOSED));
                }
                match self.seen.tokens.get(group) {
                    Some(known) if *known == (token, id) => {}
                    Some((highest, _)) if *highest >= token => broken = broken.or(Some(TOKENS)),
                    _ => news.push((group.clone(), token, id)),
                }
            }
        }
        if authorities > 1 {
            broken = broken.or(Some(AUTHORITY));
        }
        if !news.is_empty() {
            self.change(|seen| {
                seen.tokens.extend(news.into_iter().map(|(group, token, id)| (group, (token, id))));
                true
            });
        }
        if let Some(broken) = broken {
            self.breaks(broken);
        }
    }
}
