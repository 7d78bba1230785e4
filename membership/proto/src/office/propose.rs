//! One entry at a time, from queue to commit.
//!
//! Whatever arrived while the previous entry was being agreed goes into the next: removals whose condition holds,
//! then wishes in order of arrival, then a change of the core.

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use membership_types::{Ballot, Instant, LogIndex, NodeId, ViewId};

use super::{Office, Peer, Proposal};
use crate::{
    acceptor::{Acceptor, Offer},
    ctx::{Ctx, MOST_BYTES, release},
    entry::{Command, Entry},
    floor,
    msg::ClusterMsg,
    plant::Plant,
    quorum::{Core, Deaths, Share, share},
    spread,
    state::State,
    view::{NodeInfo, Why},
    witness::Epoch,
};

/// How many entries are decided at most before others get their turn, where this node decides alone; what is left follows with
/// the next heartbeat.
const IN_A_ROW: usize = 64;

/// Where there are more members than this it is asked now and then, and not with every message, whether the core can be spread
/// better; where more are admitted at once, those who come next wait for longer.
const MANY: usize = 50;

/// How many commands of those that wait go into one entry.
const MOST_COMMANDS: usize = 4096;

impl Office {
    /// A node stored an entry under a ballot.
    pub(crate) fn on_accepted(
        &mut self,
        ctx: &Ctx,
        from: NodeId,
        ballot: Ballot,
        index: LogIndex,
        echo: Instant,
    ) {
        if ballot != self.ballot {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.heard_at = ctx.now;
            peer.accepted = peer.accepted.max((index, echo));
        }
    }

    /// Carries agreement on as far as it goes now. True if anything was committed.
    pub(crate) fn pump(&mut self, ctx: &mut Ctx, acceptor: &mut Acceptor, deaths: &Deaths) -> bool {
        let mut committed = false;
        // Who decides alone, and changes its mind each time, must not do so for ever at one instant.
        for _ in 0..IN_A_ROW {
            if self.proposal.is_none() {
                let Some(entry) = self.next_entry(ctx, acceptor, deaths) else { break };
                let index = acceptor.state.index.next();
                self.proposal = Some(Proposal { index, entry: Arc::new(entry), adopted: false, held: true });
            }
            if !self.propose(ctx, acceptor, deaths) || !self.is_decided(ctx, acceptor, deaths) {
                break;
            }
            self.commit(ctx, acceptor, deaths);
            committed = true;
        }
        committed
    }

    /// Sends the entry out if that has not been done and may be done. False if it may not.
    fn propose(&mut self, ctx: &mut Ctx, acceptor: &mut Acceptor, deaths: &Deaths) -> bool {
        let Some(proposal) = &self.proposal else { return false };
        if !proposal.held {
            return true;
        }
        let mut entry = proposal.entry.clone();
        if !self.may_be_proposed(ctx, deaths, &entry) {
            ctx.mark("an adopted removal is waited out again");
            return false;
        }
        if !self.ids_are_set_aside(ctx, acceptor, deaths, &entry) {
            let Some(raise) = self.raise_alone(ctx, acceptor) else { return false };
            entry = raise;
        }
        let Some(proposal) = &self.proposal else { return false };
        let index = proposal.index;
        if acceptor.offer(ctx, self.ballot, index, entry) != Offer::Accepted {
            return false;
        }
        if let Some(proposal) = &mut self.proposal {
            proposal.held = false;
        }
        self.send_proposal(ctx, acceptor, |_| true);
        true
    }

    /// Have enough data directories set the ids aside that this entry needs? If not, they are asked to.
    fn ids_are_set_aside(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        deaths: &Deaths,
        entry: &Entry,
    ) -> bool {
        let state = &acceptor.state;
        let needed = state.ids_for(entry).filter(|_| state.may_make_views(entry));
        let bound = if state.terms.slots == 0 {
            // Those who are gone, or about to go, are not waited for.
            let stays = |id: &NodeId| !deaths.contains(*id) && !self.removing.contains_key(id);
            let keepers = state.core.iter().filter(|id| stays(id)).filter_map(|id| state.view.node(*id));
            let floor = |id| {
                if id == ctx.me() {
                    Some(ctx.floor_in(state.lineage))
                } else {
                    Some(self.peers.get(&id)?.floor)
                }
            };
            floor::bound(
                keepers.filter(|n| n.keeps_floor).filter_map(|n| floor(n.id)).collect(),
                state.core.len(),
            )
        } else if state.terms.durable {
            let slots = usize::from(state.terms.slots);
            let own = ctx.config.me.slot.map(|slot| (slot, ctx.floor_in(state.lineage)));
            let noted = self.slot_floors.iter().map(|(slot, (_, floor))| (*slot, *floor));
            let mut floors: BTreeMap<u16, ViewId> = noted.collect();
            floors.extend(own);
            // A slot of which nothing is known has set nothing aside.
            let mut floors: Vec<ViewId> = floors.into_values().collect();
            floors.resize(slots.max(floors.len()), ViewId::NONE);
            // Whoever acts in another lineage has a majority of the slots, which has one with any half of them.
            floor::bound(floors, slots.saturating_sub(1))
        } else {
            None
        };
        let lacks = needed.filter(|needed| bound.is_some_and(|bound| bound < *needed));
        let lacks = lacks.filter(|_| !ctx.planted(Plant::UseIdsNotSetAside));
        let news = lacks.is_some() && self.lacks_ids.is_none();
        self.lacks_ids = lacks;
        if news {
            ctx.mark("an entry waits until its view ids are set aside");
            self.ask_to_set_aside(ctx, acceptor);
        }
        lacks.is_none()
    }

    /// An entry that waits for ids gives way to the command that raises them, if that makes no view and so waits for none. It may be
    /// what the entry waits for: before ids are above what a directory has for another lineage it sets nothing aside for this one.
    fn raise_alone(&mut self, ctx: &mut Ctx, acceptor: &Acceptor) -> Option<Arc<Entry>> {
        let raised = self.commands().filter_map(|command| match command {
            Command::Raise(above) => Some(*above),
            _ => None,
        });
        let raise = Command::Raise(raised.max()?);
        let entry = Arc::new(Entry { commands: [raise].into(), ..Entry::default() });
        if acceptor.state.may_make_views(&entry) {
            return None;
        }
        // Nobody has it yet; one that is adopted is in somebody's log.
        let waiting = self.proposal.take_if(|proposal| !proposal.adopted)?;
        ctx.mark("view ids are raised before the entry that waits for them");
        let asked = |c: &&Command| matches!(c, Command::Admit(_) | Command::Group { .. });
        // What else was in it follows anew from what is known.
        waiting.entry.commands.iter().filter(asked).rev().for_each(|c| self.queue.push_front(c.clone()));
        self.queue.retain(|command| !matches!(command, Command::Raise(_)));
        self.lacks_ids = None;
        self.proposal = Some(Proposal { entry: entry.clone(), ..waiting });
        Some(entry)
    }

    /// Asks those who keep floors to raise them, where an entry waits for that.
    pub(super) fn ask_to_set_aside(&self, ctx: &mut Ctx, acceptor: &Acceptor) {
        let Some(view) = self.lacks_ids else { return };
        let state = &acceptor.state;
        for node in &state.view.members {
            if node.id == ctx.me() {
                ctx.set_aside_above(state.lineage, self.ballot, view, state.last_view);
            } else if node.keeps_floor && (node.slot.is_some() || state.core.contains(&node.id)) {
                ctx.send(
                    node,
                    state.lineage,
                    ClusterMsg::SetAside { ballot: self.ballot, view, given: state.last_view },
                );
            }
        }
    }

    /// The conditions under which an entry may be proposed, checked for adopted entries too.
    fn may_be_proposed(&self, ctx: &Ctx, deaths: &Deaths, entry: &Entry) -> bool {
        entry.commands.iter().all(|command| match command {
            Command::Remove(node, _) => {
                let ready = |r: &super::Removal| r.is_ready(ctx, deaths, *node);
                *node == ctx.me() || self.removing.get(node).is_none_or(ready)
            }
            Command::Dissolve(_) => self.dissolving.as_ref().is_none_or(|d| ctx.now >= d.ready_at),
            _ => true,
        })
    }

    fn send_proposal(&self, ctx: &mut Ctx, acceptor: &Acceptor, to: impl Fn(NodeId) -> bool) {
        let Some(proposal) = &self.proposal else { return };
        for node in self.log_keepers(ctx, acceptor) {
            if !to(node) {
                continue;
            }
            let Some(info) = acceptor.state.view.node(node) else { continue };
            let append = ClusterMsg::Append {
                ballot: self.ballot,
                index: proposal.index,
                entry: proposal.entry.clone(),
                sent: ctx.now,
            };
            ctx.send(info, acceptor.state.lineage, append);
        }
    }

    /// Everyone else who keeps the log: the core, the core to be, and those who learn.
    fn log_keepers(&self, ctx: &Ctx, acceptor: &Acceptor) -> Vec<NodeId> {
        let next = self.proposal.as_ref().and_then(|p| p.entry.core.as_ref());
        let mut nodes: Vec<NodeId> = acceptor
            .state
            .core
            .iter()
            .chain(next.into_iter().flatten())
            .chain(&self.learners)
            .copied()
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|id| *id != ctx.me());
        nodes
    }

    fn is_decided(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths) -> bool {
        let Some(proposal) = &self.proposal else { return false };
        let index = proposal.index;
        let core = Core::in_force(&acceptor.state);
        let has = |id: NodeId| id == ctx.me() || self.peers.get(&id).is_some_and(|p| p.accepted.0 >= index);
        match share(core.members, has) {
            Share::Majority => true,
            Share::Half { with, without } => {
                let fresh = |id: NodeId| self.peers.get(&id).map(|p| p.accepted.1);
                let decided = self.half_may_go_on(ctx, deaths, core, &with, &without, fresh);
                if decided {
                    ctx.mark("half of a core decides an entry");
                    let others = self.peers.iter_mut().filter(|(id, _)| without.contains(id));
                    others.for_each(|(_, peer)| peer.must_store = index);
                }
                decided
            }
            Share::Minority => false,
        }
    }

    fn commit(&mut self, ctx: &mut Ctx, acceptor: &mut Acceptor, deaths: &Deaths) {
        let keepers = self.log_keepers(ctx, acceptor);
        let Some(proposal) = self.proposal.take() else { return };
        let change = acceptor.commit(ctx, proposal.entry);
        self.tell(ctx, acceptor, &change);
        for node in keepers {
            if let Some(info) = acceptor.state.view.node(node) {
                let commit = ClusterMsg::Commit { ballot: self.ballot, index: change.index };
                ctx.send(info, acceptor.state.lineage, commit);
            }
        }
        if change.core.is_some() {
            ctx.mark("the core changes");
        }
        for core in change.core.iter().flatten() {
            self.learners.remove(core);
        }
        self.watch_authority(ctx, acceptor, deaths);
    }

    /// What to propose next, if there is anything.
    fn next_entry(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths) -> Option<Entry> {
        let state = &acceptor.state;
        if state.dissolved.is_some() || self.stuck.is_some() {
            return None;
        }
        if let Some(dissolving) = &self.dissolving {
            let commands = [Command::Dissolve(dissolving.into)];
            return (ctx.now >= dissolving.ready_at)
                .then(|| Entry { commands: commands.into(), ..Entry::default() });
        }
        let early = self.awaits_the_fallen(ctx, acceptor, deaths);
        let mut removals = self.ready_removals(ctx, deaths);
        removals.retain(|(id, _)| !early || self.fallen != Some(*id));
        // Who hears no quorum may be deaf itself: then the silence of others proves nothing, and a core of its choice
        // would lock everybody else out.
        let heard = self.authority_of(ctx, deaths, Core::in_force(state)) > ctx.now;
        if !heard {
            removals.retain(|(_, why)| *why != Why::Silent);
        }
        let core = self.next_core(ctx, acceptor, deaths, heard, &mut removals);
        let mut commands: Vec<Command> =
            removals.iter().map(|(id, why)| Command::Remove(*id, *why)).collect();
        commands.extend(self.raised_level(ctx, acceptor));
        if !commands.is_empty() || core.is_some() || !self.gathers(ctx, acceptor) {
            self.take_from_queue(&mut commands);
        }
        let admits = commands.iter().filter(|command| matches!(command, Command::Admit(_))).count();
        if admits > 0 {
            // Of very many that start at once the rest is still about to come.
            let beats = if admits > MANY { 5 } else { 2 };
            self.admit_at = Some(ctx.now.after(ctx.config.heartbeat * beats));
        }
        if commands.is_empty() && core.is_none() {
            return None;
        }
        self.cut_since = None;
        let epoch = core.as_ref().and_then(|_| self.epoch_for_core(ctx, state));
        // It is kept for a while, and mostly short.
        commands.shrink_to_fit();
        let entry = Entry { commands, core, epoch };
        if !state.has_ids_for(&entry) {
            self.stuck = Some("view ids are used up: this lineage can make no further view".into());
            return None;
        }
        Some(entry)
    }

    /// As much of what waits as an entry may have: it is one message.
    fn take_from_queue(&mut self, commands: &mut Vec<Command>) {
        let (mut count, mut bytes) = (0, 0);
        for command in &self.queue {
            bytes += command.weight();
            if count > 0 && (count == MOST_COMMANDS || bytes > MOST_BYTES) {
                break;
            }
            count += 1;
        }
        commands.extend(self.queue.drain(..count));
        release(&mut self.queue);
    }

    /// The core after these removals, if it changes. Takes back removals of core members that cannot be made up for
    /// yet: an entry that changes the core is proposed only while a quorum of the core is bound to us (`heard`), and once
    /// each new member has confirmed the log so far and a quorum of the new core is bound to us too.
    fn next_core(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        deaths: &Deaths,
        heard: bool,
        removals: &mut Vec<(NodeId, Why)>,
    ) -> Option<Vec<NodeId>> {
        let state = &acceptor.state;
        let goes = |id: &NodeId, removals: &[(NodeId, Why)]| removals.iter().any(|(r, _)| r == id);
        // Mostly nobody comes or goes; this is asked with every message, and there may be thousands of others.
        let anew = self.wants_fresh_warrant(ctx, state);
        let stays = removals.is_empty() && !anew && is_by_rank(state);
        if stays && is_full(state) {
            if spread::is_even(state.core.iter().filter_map(|id| state.view.node(*id))) {
                self.wanted = None;
                return None;
            }
            if state.view.members.len() > MANY && self.wanted.is_none() {
                if ctx.now < self.next_spread {
                    return None;
                }
                self.next_spread = ctx.now.after(ctx.config.heartbeat / 2);
            }
        }
        let mut others = self.candidates_for_core(ctx, acceptor, deaths);
        if stays && others.is_empty() {
            self.wanted = None;
            return None;
        }
        let mut stay: Vec<NodeId> = state.core.iter().filter(|id| !goes(id, removals)).copied().collect();
        if stay.is_empty() && others.iter().all(|node| goes(&node.id, removals)) {
            // All leave: who lets the others go goes last. (See `Member::is_last_to_leave`.)
            let all = removals.len();
            removals.retain(|(id, why)| *id != ctx.me() || *why != Why::Left);
            if removals.len() < all {
                ctx.mark("a coordinator lets all others go before it leaves");
                stay.push(ctx.me());
            }
        }
        let mut filled: Vec<&NodeInfo> = stay.iter().filter_map(|id| state.view.node(*id)).collect();
        others.retain(|node| !goes(&node.id, removals));
        while filled.len() < usize::from(state.terms.core_size)
            && let Some(node) = spread::next(&filled, &others)
        {
            others.retain(|other| other.id != node.id);
            if self.is_up_to_date(ctx, acceptor, node.id) {
                filled.push(node);
            } else if self.learners.insert(node.id) {
                self.feed(ctx, acceptor, node.id);
            }
        }
        // Those who came later may be elsewhere: one member at a time makes room for them.
        if filled.len() == state.core.len()
            && let Some((out, into)) = spread::swap(&filled, &others, |node| node.id == ctx.me())
        {
            if self.is_up_to_date(ctx, acceptor, into.id) {
                ctx.mark("the core is spread anew");
                filled.retain(|node| node.id != out.id);
                filled.push(into);
            } else if self.learners.insert(into.id) {
                self.feed(ctx, acceptor, into.id);
            }
        }
        let mut filled: Vec<NodeId> = filled.into_iter().map(|node| node.id).collect();
        // By rank, so that the senior of the core is the senior of its nodes.
        filled.sort_by_key(|id| state.view.rank_of(*id));
        let wanted_before = self.wanted.take();
        for next in [filled, stay] {
            if next == state.core && !anew {
                return None;
            }
            if next.is_empty() || !heard {
                continue;
            }
            let core = Core::to_be(state.lineage, &next);
            if self.is_covered_by(ctx, deaths, core) {
                if next == state.core {
                    ctx.mark("the same core is put in force anew for the witness");
                }
                return Some(next);
            }
            if self.wanted.is_none() && self.authority_of(ctx, deaths, core) > ctx.now {
                self.wanted = Some(next);
            }
        }
        if let Some(wanted) = self.wanted.clone()
            && wanted_before != self.wanted
        {
            // Its members bind themselves anew when they answer this; no need to wait for their next heartbeats.
            for node in wanted {
                self.grant(ctx, acceptor, deaths, node, true);
            }
        }
        if removals.iter().any(|(id, _)| state.core.contains(id)) {
            ctx.mark("the removal of a core member waits for a new core");
            removals.retain(|(id, _)| !state.core.contains(id));
        }
        None
    }

    /// The epoch under which halves of a core that is proposed now will be recorded. That of a memory which is lost meanwhile
    /// does no harm: nothing is ever recorded under it again.
    fn epoch_for_core(&self, ctx: &Ctx, state: &State) -> Option<Epoch> {
        let known = ctx.witness.epoch.or(state.warrant.map(|warrant| warrant.epoch));
        known.filter(|_| state.terms.witness)
    }

    /// Can no half of the core in force be recorded any more, or only one, although the witness answers? With an odd number of
    /// members there are no halves.
    fn wants_fresh_warrant(&self, ctx: &Ctx, state: &State) -> bool {
        let lacks = |epoch| match state.warrant {
            Some(warrant) => warrant.epoch != epoch || ctx.is_claimed(state.lineage, warrant),
            None => true,
        };
        state.terms.witness && state.core.len().is_multiple_of(2) && ctx.witness.epoch.is_some_and(lacks)
    }

    /// Has a node everything that is committed?
    fn is_up_to_date(&self, ctx: &Ctx, acceptor: &Acceptor, node: NodeId) -> bool {
        let index = acceptor.state.index;
        let has = |p: &Peer| p.accepted.0 == index || p.commit.is_some_and(|c| c >= index);
        node == ctx.me() || self.peers.get(&node).is_some_and(has)
    }

    /// Living, eligible nodes outside the core, by rank.
    fn candidates_for_core<'a>(
        &self,
        ctx: &Ctx,
        acceptor: &'a Acceptor,
        deaths: &Deaths,
    ) -> Vec<&'a NodeInfo> {
        let state = &acceptor.state;
        let lives = |id: NodeId| {
            id == ctx.me()
                || !deaths.contains(id)
                    && !self.removing.contains_key(&id)
                    && self
                        .peers
                        .get(&id)
                        .and_then(|p| p.answered)
                        .is_some_and(|at| ctx.now - at <= ctx.lease())
        };
        state
            .view
            .members
            .iter()
            .filter(|n| n.eligible && !state.core.contains(&n.id) && lives(n.id))
            .collect()
    }

    /// Sends the state to one who is to join the core, or who is behind.
    fn feed(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, node: NodeId) {
        let known = self.peers.get(&node).and_then(|p| p.commit).unwrap_or(LogIndex::ZERO);
        self.catch_up(ctx, acceptor, node, known);
    }

    /// A log keeper lacks what is after `commit`.
    pub(crate) fn catch_up(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, node: NodeId, commit: LogIndex) {
        let lineage = acceptor.state.lineage;
        let Some(info) = acceptor.state.view.node(node) else { return };
        if acceptor.log_after(commit).is_none()
            && let Some(peer) = self.peers.get_mut(&node)
        {
            // A large state is on its way for a while, and others wait behind it: it is not sent again meanwhile.
            if ctx.now < peer.next_state {
                return;
            }
            let mib = u32::try_from(acceptor.state.weight() >> 20).unwrap_or(u32::MAX);
            if mib > 0 {
                peer.next_state = ctx.now.after(ctx.config.heartbeat.saturating_mul(mib));
            }
        }
        if let Some(tail) = acceptor.tail_after(commit) {
            ctx.send(info, lineage, ClusterMsg::CatchUp { ballot: self.ballot, tail });
        }
        if let Some(proposal) = self.proposal.as_ref().filter(|p| !p.held) {
            let append = ClusterMsg::Append {
                ballot: self.ballot,
                index: proposal.index,
                entry: proposal.entry.clone(),
                sent: ctx.now,
            };
            ctx.send(info, lineage, append);
        }
    }

    /// Brings learners up to date, and forgets those who do not answer any more.
    pub(super) fn feed_learners(&mut self, ctx: &mut Ctx, acceptor: &Acceptor) {
        let state = &acceptor.state;
        let gone = |id: &NodeId, office: &Self| office.removing.contains_key(id) || !state.view.contains(*id);
        let drop: Vec<NodeId> = self.learners.iter().filter(|id| gone(id, self)).copied().collect();
        for id in drop {
            self.learners.remove(&id);
        }
        for id in self.learners.clone() {
            let commit = self.peers.get(&id).and_then(|p| p.commit);
            if commit.is_none_or(|c| c < state.index) {
                self.feed(ctx, acceptor, id);
            }
        }
        // Core members that missed a commit, or more; or that have no log yet, because the founding did not reach them. And who is
        // not in the core any more, perhaps without knowing.
        let behind = |(id, p): (&NodeId, &Peer)| {
            let needs = if state.core.contains(id) { state.index } else { p.must_store };
            let heard = ctx.now - p.heard_at < ctx.config.heartbeat * 3;
            (heard && needs > LogIndex::ZERO && p.commit.is_none_or(|c| c < needs)).then_some(*id)
        };
        let behind: Vec<NodeId> = self.peers.iter().filter_map(behind).collect();
        for id in behind {
            self.feed(ctx, acceptor, id);
        }
    }

    /// Sends the proposal again to those who have not answered; to all, if only half of the core can decide it and
    /// that half must answer anew.
    pub(super) fn repeat_proposal(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths) {
        let Some(proposal) = &self.proposal else { return };
        if proposal.held || self.is_decided(ctx, acceptor, deaths) {
            return;
        }
        let Some(proposal) = &self.proposal else { return };
        let index = proposal.index;
        let stuck_at_half = matches!(
            share(&acceptor.state.core, |id| {
                id == ctx.me() || self.peers.get(&id).is_some_and(|p| p.accepted.0 >= index)
            }),
            Share::Half { .. }
        );
        self.send_proposal(ctx, acceptor, |id| {
            stuck_at_half || self.peers.get(&id).is_none_or(|p| p.accepted.0 < index)
        });
    }
}

/// Has the core as many members as it should have?
fn is_full(state: &State) -> bool {
    state.core.len() >= usize::from(state.terms.core_size)
}

/// Are all of the core in the view, and in its order?
fn is_by_rank(state: &State) -> bool {
    let mut members = state.view.members.iter();
    state.core.iter().all(|id| members.any(|node| node.id == *id))
}
