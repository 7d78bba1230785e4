//! The coordinator's office: what the winner of the highest ballot does.
//!
//! * `ask.rs`: what nodes ask of it: to be admitted, to be in groups, to leave.
//! * `authority.rs`: how long it may believe that nobody has replaced it, and the leases that it passes on.
//! * `behind.rs`: who must leave a group because others wait for it.
//! * `flaps.rs`: who came and went too often, and waits.
//! * `level.rs`: which kinds of commands everybody understands.
//! * `propose.rs`: one entry at a time from queue to commit.
//! * `removal.rs`: who is silent, and when a node may be removed (the one rule for every way to cease leading).
//! * `tell.rs`: who is told what.
//!
//! An office is held under one ballot; everything that it counted dies with it.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    string::String,
    sync::Arc,
    vec::Vec,
};
use core::{net::SocketAddr, time::Duration};

use membership_types::{Ballot, GroupName, Instant, LogIndex, NodeId, ViewId};

use crate::{
    acceptor::Acceptor,
    ctx::Ctx,
    entry::{Command, Entry},
    msg::{Heartbeat, Hello, Update},
    plant::Plant,
    quorum::{Core, Deaths},
    view::Why,
};

mod ask;
mod authority;
mod behind;
mod flaps;
mod level;
mod propose;
mod removal;
mod tell;

pub(crate) use removal::Removal;

/// How many commands of others may wait for the next entry; beyond that they are dropped, and their senders repeat them.
const QUEUE_LIMIT: usize = 100_000;

/// What the coordinator knows of another node.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Peer {
    /// Where it is.
    addr: Option<SocketAddr>,
    /// From when on silence counts, if the node never answered: our start in office, or its admission.
    since: Instant,
    /// When we last heard from it.
    heard_at: Instant,
    /// The node's clock in its latest heartbeat; a grant answers it.
    heard: Option<Instant>,
    /// Our clock in the latest grant that it says it heard.
    answered: Option<Instant>,
    /// Our clock in the latest grant by which it bound itself to us.
    rooted: Option<Instant>,
    /// Our clock in the latest grant that it answered for its founder slot.
    slot_answered: Option<Instant>,
    /// Its answer for its slot was one of those of a majority before.
    confirmed: bool,
    /// No lease that we gave it lasts longer than this, on our clock.
    granted_until: Instant,
    /// How far it was told what concerns it, if we know.
    told: Option<LogIndex>,
    /// The last entry that it stored under our ballot, and our clock in the proposal that it answered.
    accepted: (LogIndex, Instant),
    /// How far it has committed, if it keeps the log.
    commit: Option<LogIndex>,
    /// What exactly half of a core may have decided while it was in the other half: no lease before it has stored that.
    must_store: LogIndex,
    /// Up to where its data directory has set view ids aside.
    floor: ViewId,
    /// Its latest wish in our queue.
    queued_op: u64,
    /// The groups that it observes.
    observes: BTreeSet<GroupName>,
    /// The feature level that it understands, as far as it said so.
    level: u16,
    /// Before that it is not sent the whole state again.
    next_state: Instant,
}

impl Peer {
    pub(crate) fn new(since: Instant) -> Self {
        Self {
            addr: None,
            since,
            heard_at: since,
            heard: None,
            answered: None,
            rooted: None,
            slot_answered: None,
            confirmed: false,
            granted_until: Instant::ZERO,
            told: None,
            accepted: (LogIndex::ZERO, Instant::ZERO),
            commit: None,
            must_store: LogIndex::ZERO,
            floor: ViewId::NONE,
            queued_op: 0,
            observes: BTreeSet::new(),
            level: 0,
            next_state: Instant::ZERO,
        }
    }
}

/// The entry that is being agreed.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Proposal {
    index: LogIndex,
    entry: Arc<Entry>,
    /// Begun by a predecessor.
    adopted: bool,
    /// Not proposed yet: those whom it removes may not have stopped.
    held: bool,
}

/// This lineage is about to end: nobody gets a lease any more.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Dissolving {
    into: membership_types::Lineage,
    /// When every lease has lapsed.
    ready_at: Instant,
}

/// What a core member says of itself with its promise.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Promiser {
    /// Its clock, to be echoed by the first grant.
    pub(crate) clock: Instant,
    /// Our clock in the question that it answered.
    pub(crate) asked: Instant,
    /// Our clock in the question by which it bound itself to us.
    pub(crate) bound: Option<Instant>,
    /// Did it answer for its founder slot?
    pub(crate) slot: bool,
    /// Was that ever one of those of a majority?
    pub(crate) confirmed: bool,
    /// Up to where its data directory has set view ids aside.
    pub(crate) floor: ViewId,
    /// How far it has committed.
    pub(crate) commit: LogIndex,
    /// How far it has been told what concerns it.
    pub(crate) seen: LogIndex,
    /// What is needed to tell it more.
    pub(crate) hello: Option<Hello>,
}

/// How an office was won; see `takeover.rs`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Won {
    /// The ballot.
    pub(crate) ballot: Ballot,
    /// Until when members may hold leases that predecessors gave.
    pub(crate) horizon: Instant,
    /// The undecided entry that must be finished first.
    pub(crate) undecided: Option<Arc<Entry>>,
    /// The half of the core without which the other half went on alone.
    pub(crate) without: Vec<NodeId>,
    /// The predecessor, if its authority lapsed and its death is not proved, and when it was heard last.
    pub(crate) lapsed: Option<(NodeId, Instant)>,
    /// Who promised.
    pub(crate) promisers: BTreeMap<NodeId, Promiser>,
    /// Who stored an undecided entry under an older ballot; only for a planted bug.
    pub(crate) stored: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Office {
    pub(crate) ballot: Ballot,
    since: Instant,
    horizon: Instant,
    peers: BTreeMap<NodeId, Peer>,
    observers: BTreeMap<GroupName, BTreeSet<NodeId>>,
    queue: VecDeque<Command>,
    /// Nodes were admitted a moment ago: those who come now wait until then, and are admitted together.
    admit_at: Option<Instant>,
    proposal: Option<Proposal>,
    removing: BTreeMap<NodeId, Removal>,
    /// Nodes that are being brought up to date so that they may join the core.
    learners: BTreeSet<NodeId>,
    /// The end of our own last stall, if we had one.
    stall_end: Option<Instant>,
    /// Since when a silent node could be removed, while others that are overdue are waited for.
    cut_since: Option<Instant>,
    /// The predecessor, where it fell silent, until it is known who fell with it.
    fallen: Option<NodeId>,
    dissolving: Option<Dissolving>,
    /// Observed groups of nodes that are not admitted yet.
    joining: BTreeMap<NodeId, Vec<GroupName>>,
    /// Since when all members understand more than the level agreed on.
    understood_since: Option<Instant>,
    /// What authority was when we last looked, to see it rise.
    authority_seen: Instant,
    /// No lease that rests on this office, our own included, lasts longer than this.
    given_until: Instant,
    /// The core that we are about to propose. Leases end no later than its support from now on, so that its support
    /// comes to cover all that were given.
    wanted: Option<Vec<NodeId>>,
    /// Before that it is not asked whether the core can be spread better, where there are many members.
    next_spread: Instant,
    complaints: behind::Complaints,
    /// Who held each founder slot last, and up to where its data directory has set view ids aside, in the view or not.
    slot_floors: BTreeMap<u16, (NodeId, ViewId)>,
    /// Ids up to here wait for that.
    lacks_ids: Option<ViewId>,
    flaps: flaps::Flaps,
    /// Since when most others are overdue: we may be the one who does not hear.
    doubt_since: Option<Instant>,
    /// The core at the beginning, for one planted bug.
    first_core: Vec<NodeId>,
    pub(crate) next_tick: Instant,
    /// Updates for this very node, to be applied by it.
    pub(crate) to_self: VecDeque<Update>,
    /// Why nothing can be agreed any more, if that is so.
    pub(crate) stuck: Option<String>,
}

/// A higher ballot is in force: the office is lost.
#[derive(Debug, PartialEq)]
pub(crate) struct Deposed(pub(crate) Ballot);

impl Office {
    /// Takes office: announces the ballot to every node, and begins to finish what was undecided.
    pub(crate) fn take(ctx: &mut Ctx, acceptor: &mut Acceptor, deaths: &Deaths, won: Won) -> Self {
        let now = ctx.now;
        let mut office = Self {
            ballot: won.ballot,
            since: now,
            horizon: won.horizon,
            peers: BTreeMap::new(),
            observers: BTreeMap::new(),
            queue: VecDeque::new(),
            admit_at: None,
            proposal: None,
            removing: BTreeMap::new(),
            learners: BTreeSet::new(),
            stall_end: None,
            cut_since: None,
            fallen: None,
            dissolving: None,
            joining: BTreeMap::new(),
            understood_since: None,
            authority_seen: Instant::ZERO,
            given_until: Instant::ZERO,
            wanted: None,
            next_spread: Instant::ZERO,
            complaints: behind::Complaints::default(),
            slot_floors: BTreeMap::new(),
            lacks_ids: None,
            flaps: flaps::Flaps::default(),
            doubt_since: None,
            first_core: acceptor.state.core.clone(),
            next_tick: now.after(ctx.config.heartbeat / 2),
            to_self: VecDeque::new(),
            stuck: None,
        };
        // What half of an even core has decided, the other half may lack, whoever is in office since: with leases it could go on by
        // a proof. What we have committed may be such a decision, and what we found undecided.
        let state = &acceptor.state;
        let maybe_decided = won.undecided.is_some() && state.core.len().is_multiple_of(2);
        for node in &state.view.members {
            if node.id != ctx.me() {
                let must_store = if maybe_decided && state.core.contains(&node.id) {
                    state.index.next()
                } else {
                    state.maybe_unknown_to(node.id)
                };
                office.peers.insert(node.id, Peer { addr: Some(node.addr), must_store, ..Peer::new(now) });
                office.note_slot_floor(acceptor, node.id, ViewId::NONE);
            }
        }
        let bound = won.promisers.values().any(|promiser| promiser.bound.is_some());
        let promised: BTreeSet<NodeId> = won.promisers.keys().copied().collect();
        for (node, promiser) in won.promisers {
            office.meet(ctx, acceptor, node, promiser);
        }
        if let Some((node, heard)) = won.lapsed
            && let Some(peer) = office.peers.get_mut(&node)
        {
            // It was silent before we came: one interval to answer us is all that it gets.
            peer.since = heard;
            office.fallen = Some(node);
        }
        for node in won.without {
            office.remove(ctx, deaths, node, Why::Silent);
        }
        for (node, _) in deaths.iter() {
            if office.peers.contains_key(&node) {
                office.remove(ctx, deaths, node, Why::Dead);
            }
        }
        if ctx.planted(Plant::CountOldAcks) {
            for id in &won.stored {
                if let Some(peer) = office.peers.get_mut(id) {
                    peer.accepted = (acceptor.state.index.next(), now);
                }
            }
        }
        if let Some(entry) = won.undecided {
            office.adopt(ctx, acceptor, deaths, entry);
        }
        let living: Vec<NodeId> =
            acceptor.state.core.iter().filter(|id| !deaths.contains(**id)).copied().collect();
        office.wanted = (living != acceptor.state.core).then_some(living);
        let peers: Vec<_> = office.peers.keys().copied().collect();
        for node in peers {
            if bound && acceptor.state.core.contains(&node) && !promised.contains(&node) {
                continue; // Its promise is on its way.
            }
            let answer = office.waits_for(acceptor, node);
            office.grant(ctx, acceptor, deaths, node, answer);
        }
        office.authority_seen = office.authority(ctx, acceptor, deaths);
        office
    }

    /// A core member has promised: what it said with that saves a heartbeat.
    fn meet(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, node: NodeId, promiser: Promiser) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.heard = peer.heard.max(Some(promiser.clock));
        peer.floor = peer.floor.max(promiser.floor);
        peer.confirmed |= promiser.confirmed;
        self.note_slot_floor(acceptor, node, promiser.floor);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if promiser.bound.is_some() {
            peer.rooted = peer.rooted.max(promiser.bound);
            peer.answered = peer.answered.max(Some(promiser.asked));
            peer.commit = peer.commit.max(Some(promiser.commit));
            if promiser.slot {
                peer.slot_answered = peer.slot_answered.max(Some(promiser.asked));
            }
        }
        if let Some(hello) = promiser.hello {
            self.on_hello(ctx, acceptor, node, promiser.seen, hello);
        }
    }

    /// A core member's promise comes when those of others have sufficed.
    pub(crate) fn on_late_promise(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        deaths: &Deaths,
        node: NodeId,
        promiser: Promiser,
    ) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.heard.is_none()) else { return };
        peer.heard_at = ctx.now;
        self.meet(ctx, acceptor, node, promiser);
        let answer = self.waits_for(acceptor, node);
        self.grant(ctx, acceptor, deaths, node, answer);
    }

    /// Should the node answer our first grant at once? So it should if we cannot tell it anything yet, or need it to be bound
    /// to us.
    fn waits_for(&self, acceptor: &Acceptor, node: NodeId) -> bool {
        let in_core = acceptor.state.core.contains(&node);
        self.peers.get(&node).is_some_and(|p| p.told.is_none() || in_core && p.rooted.is_none())
    }

    /// Finishes the predecessor's undecided entry under this ballot before anything new.
    ///
    /// What the entry removes may have been granted leases since it was proposed (by a coordinator in between that
    /// never saw the entry), so the conditions for proposing it are awaited again.
    fn adopt(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths, entry: Arc<Entry>) {
        for command in &entry.commands {
            match command {
                Command::Remove(node, why @ (Why::Silent | Why::Replaced)) => {
                    self.remove(ctx, deaths, *node, *why);
                }
                Command::Dissolve(into) => {
                    ctx.mark("a winner finishes a dissolution");
                    self.dissolving = Some(Dissolving { into: *into, ready_at: self.horizon });
                }
                _ => {}
            }
        }
        self.proposal =
            Some(Proposal { index: acceptor.state.index.next(), entry, adopted: true, held: true });
    }

    /// A node's heartbeat.
    pub(crate) fn on_heartbeat(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &mut Acceptor,
        deaths: &Deaths,
        from: NodeId,
        beat: Heartbeat,
    ) -> Result<(), Deposed> {
        if beat.ballot > self.ballot {
            return Err(Deposed(beat.ballot));
        }
        let Some(peer) = self.peers.get_mut(&from) else {
            self.turn_away(ctx, acceptor, from, beat.seen);
            return Ok(());
        };
        let now = ctx.now;
        peer.heard_at = now;
        peer.heard = peer.heard.max(Some(beat.sent));
        let first_log = peer.commit.is_none() && beat.commit.is_some();
        peer.commit = peer.commit.max(beat.commit);
        peer.floor = peer.floor.max(beat.floor);
        peer.confirmed |= beat.confirmed;
        if ctx.config.raise_after.is_some() {
            peer.level = beat.level;
        }
        if beat.ballot == self.ballot {
            peer.answered = peer.answered.max(beat.echo);
            if beat.rooted && beat.commit.is_some() {
                peer.rooted = peer.rooted.max(beat.echo);
            }
            if beat.slot {
                peer.slot_answered = peer.slot_answered.max(beat.echo);
            }
        }
        // A newcomer shows at once that it hears us, so that the core need not wait for it.
        let newcomer = peer.answered.is_none();
        self.note_slot_floor(acceptor, from, beat.floor);
        self.raise_above(ctx, acceptor, beat.foreign);
        if let Some(hello) = beat.hello {
            self.on_hello(ctx, acceptor, from, beat.seen, hello);
        }
        self.unsuspect(ctx, from);
        self.watch_authority(ctx, acceptor, deaths);
        self.grant(ctx, acceptor, deaths, from, first_log || newcomer);
        Ok(())
    }

    /// This lineage is the younger of two: it ends, and its nodes go over.
    pub(crate) fn dissolve(&mut self, ctx: &mut Ctx, into: membership_types::Lineage) {
        if self.dissolving.is_none() {
            let ready_at = self.lapses_at().max(ctx.now);
            ctx.mark("the younger of two lineages dissolves");
            self.dissolving = Some(Dissolving { into, ready_at });
            self.queue.clear();
        }
    }

    /// May this node's own leadership go on under this office?
    pub(crate) fn is_dissolving(&self) -> bool {
        self.dissolving.is_some()
    }

    /// Is a node going to be removed? It gets no lease any more.
    pub(crate) fn is_removing(&self, node: NodeId) -> bool {
        self.removing.contains_key(&node)
    }

    /// What the office is busy with, for those who inject faults at the worst moment.
    pub(crate) fn phase_name(&self) -> &'static str {
        match &self.proposal {
            _ if self.dissolving.is_some() => "dissolving",
            Some(p) if p.adopted => "adopting",
            Some(p) if p.entry.core.is_some() => "changing-core",
            Some(_) => "proposing",
            None if !self.removing.is_empty() => "removing",
            None => "coordinating",
        }
    }

    /// Our own loop did not run for longer than it should have.
    pub(crate) fn stalled(&mut self, now: Instant) {
        self.stall_end = Some(now);
        self.doubt_since = None;
    }

    /// Takes over what an office knew that the same node held under a lower ballot; not what waited in it: who asked for that asks
    /// again. (Wishes count in their order, and the first ones may have been taken into an entry that is in nobody's log.)
    pub(crate) fn inherit(&mut self, before: Self) {
        self.flaps = before.flaps;
        // Its own node may still act by a lease of that one, so nobody else can win before that is over.
        self.given_until = self.given_until.max(before.given_until);
        self.joining = before.joining;
        for (slot, (holder, floor)) in before.slot_floors {
            let known = self.slot_floors.entry(slot).or_insert((holder, floor));
            if known.0 == holder {
                known.1 = floor.max(known.1);
            }
        }
    }

    /// Until when anybody may hold a lease that rests on this office.
    pub(crate) fn granted_until(&self, ctx: &Ctx, acceptor: &Acceptor, deaths: &Deaths) -> Instant {
        self.lapses_at().max(self.binds_until(ctx, acceptor, deaths))
    }

    /// The end of the last lease that others may hold, by this office or its predecessors.
    pub(crate) fn lapses_at(&self) -> Instant {
        self.given_to(|_| true).max(self.horizon)
    }

    /// The end of the last lease that this office gave to others, as far as they are some of these.
    pub(crate) fn given_to(&self, to: impl Fn(NodeId) -> bool) -> Instant {
        let given = self.peers.iter().filter(|(id, _)| to(**id)).map(|(_, peer)| peer.granted_until);
        given.max().unwrap_or(Instant::ZERO)
    }

    /// The regular round: silence, repetitions.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx, acceptor: &mut Acceptor, deaths: &Deaths) {
        if ctx.now < self.next_tick {
            return;
        }
        self.next_tick = ctx.now.after(ctx.config.heartbeat / 2);
        self.suspect_the_silent(ctx, deaths);
        self.watch_level(ctx, acceptor);
        self.repeat_stops(ctx, acceptor);
        self.repeat_proposal(ctx, acceptor, deaths);
        self.raise_above(ctx, acceptor, ctx.foreign_floor(acceptor.state.lineage));
        self.ask_to_set_aside(ctx, acceptor);
        self.feed_learners(ctx, acceptor);
    }

    /// Has no quorum of the core been bound to us for longer than any of its members can have been bound?
    pub(crate) fn is_deserted(&self, ctx: &Ctx, acceptor: &Acceptor, deaths: &Deaths) -> bool {
        let until = self.authority_of(ctx, deaths, Core::in_force(&acceptor.state)).max(self.since);
        let over = until.after(ctx.granter_lease());
        // What was said to us while we were stopped is heard first; but who is late again and again waits a lease at most.
        let listened = self.stall_end.map_or(Instant::ZERO, |end| end.after(ctx.config.heartbeat * 3));
        ctx.now >= over.max(listened.min(over.after(ctx.lease())))
    }

    /// When something may happen without input, besides the tick.
    pub(crate) fn deadline(&self, ctx: &Ctx) -> Instant {
        let removals = self.removing.values().map(|r| r.ready_at).filter(|at| *at > ctx.now).min();
        let dissolve = self.dissolving.as_ref().map(|d| d.ready_at).filter(|at| *at > ctx.now);
        let cut = self.cut_since.map(|at| at.after(self.cut_window(ctx))).filter(|at| *at > ctx.now);
        let admit = self.admit_at.filter(|at| *at > ctx.now && !self.queue.is_empty());
        [removals, dissolve, cut, admit]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Instant::MAX)
            .min(self.next_tick)
    }

    fn cut_window(&self, ctx: &Ctx) -> Duration {
        ctx.config.heartbeat * 2
    }

    /// Ids up to this one are, or may be, of another lineage.
    fn raise_above(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, id: ViewId) {
        let raises = |command: &Command| matches!(command, Command::Raise(above) if *above >= id);
        if id > acceptor.state.last_view && !self.commands().any(raises) {
            ctx.mark("view ids are raised above those of another lineage");
            self.enqueue(Command::Raise(id));
        }
    }

    /// What a member says of its data directory counts for its founder slot, unless the slot has a newer holder, in the view or
    /// waiting to come into it: that one's directory may be another.
    fn note_slot_floor(&mut self, acceptor: &Acceptor, node: NodeId, floor: ViewId) {
        let view = &acceptor.state.view;
        let Some(slot) = view.node(node).and_then(|info| info.slot) else { return };
        let replaced = self.removing.get(&node).is_some_and(Removal::is_of_a_replaced);
        let latest = view.members.iter().rev().find(|info| info.slot == Some(slot));
        if replaced || latest.is_none_or(|info| info.id != node) {
            return;
        }
        let floor = match self.slot_floors.get(&slot) {
            Some((holder, known)) if *holder == node => floor.max(*known),
            Some((holder, _)) if self.is_waiting_for_admission(*holder) => return,
            _ => floor,
        };
        self.slot_floors.insert(slot, (node, floor));
    }

    /// What waits to be decided, in an entry or for one.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.proposal.iter().flat_map(|p| &p.entry.commands).chain(&self.queue)
    }

    #[cfg(test)]
    pub(crate) fn floor_of_slot(&self, slot: u16) -> Option<ViewId> {
        self.slot_floors.get(&slot).map(|(_, floor)| *floor)
    }

    fn enqueue(&mut self, command: Command) {
        if self.queue.len() < QUEUE_LIMIT {
            self.queue.push_back(command);
        }
    }
}
