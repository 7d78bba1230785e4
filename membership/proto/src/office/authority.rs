//! How long the coordinator may believe that nobody has replaced it, and the leases that it passes on.
//!
//! Authority is the root of every lease. A core member that answers a grant is bound by it: it promises to nobody
//! else for that long. So while a quorum of the core is bound to us, no other ballot can be won, and whoever holds a
//! lease from us, which ends no later than our authority, has not been removed. A new core comes into force only once
//! its own binding covers every lease given before.

use alloc::vec::Vec;
use core::time::Duration;

use membership_types::{Instant, LogIndex, NodeId};

use super::{Office, Peer};
use crate::{
    acceptor::Acceptor,
    ctx::Ctx,
    msg::{ClusterMsg, Grant},
    plant::Plant,
    quorum::{Core, Deaths, Share, share},
    witness::Warrant,
};

/// Most cores are smaller.
const FEW: usize = 8;

impl Office {
    /// Until when we have authority; in the past if we have none.
    ///
    /// While an entry that changes the core is under way it is the earlier of the two cores' bounds; under
    /// `expect(n)` a majority of the slots must have answered as well.
    pub(crate) fn authority(&self, ctx: &Ctx, acceptor: &Acceptor, deaths: &Deaths) -> Instant {
        let core: &[NodeId] =
            if ctx.planted(Plant::AuthorityFromOldCore) { &self.first_core } else { &acceptor.state.core };
        let (lineage, warrant) = (acceptor.state.lineage, acceptor.state.warrant);
        let mut until = self.authority_of(ctx, deaths, Core { lineage, members: core, warrant });
        if let Some(next) = self.next_core_of(acceptor)
            && !ctx.planted(Plant::AuthorityFromOldCore)
        {
            until = until.min(self.authority_of(ctx, deaths, next));
        }
        if let Some(wanted) = &self.wanted {
            let support = self.authority_of(ctx, deaths, Core::to_be(lineage, wanted));
            if support > ctx.now && !ctx.planted(Plant::AuthorityFromOldCore) {
                until = until.min(support);
            }
        }
        let without_us = self.authority_without_us(ctx, core);
        if until - without_us <= ctx.config.heartbeat.min(ctx.lease() / 10) * 2 {
            until = until.min(without_us);
        }
        if acceptor.state.terms.slots > 0 {
            until = until.min(self.authority_of_slots(ctx, acceptor));
        }
        until
    }

    /// Until when a quorum of the core is bound to us once we have left it. Leases end no later, if that is hardly sooner than they
    /// could: so we, or anybody else of the core, can leave at once, and the others need not bind themselves anew before that.
    fn authority_without_us(&self, ctx: &Ctx, core: &[NodeId]) -> Instant {
        let mut ends = [Instant::ZERO; FEW];
        let others = core.iter().filter(|id| **id != ctx.me());
        let Some(ends) = ends.get_mut(..others.clone().count()) else { return Instant::ZERO };
        for (end, id) in ends.iter_mut().zip(others) {
            let rooted = self.peers.get(id).and_then(|p| p.rooted);
            *end = rooted.map_or(Instant::ZERO, |sent| sent.after(ctx.holder_lease()));
        }
        ends.sort_unstable_by(|a, b| b.cmp(a));
        // Where nobody else is in it, nobody is waited for.
        ends.get(ends.len() / 2).copied().unwrap_or(Instant::MAX)
    }

    /// Until when we promise to nobody: authority may have been longer when leases were given than it is now.
    pub(crate) fn binds_until(&self, ctx: &Ctx, acceptor: &Acceptor, deaths: &Deaths) -> Instant {
        self.authority(ctx, acceptor, deaths).max(self.given_until)
    }

    /// The lease that our own node takes from this office: authority as it is now.
    pub(crate) fn own_lease(&mut self, ctx: &Ctx, acceptor: &Acceptor, deaths: &Deaths) -> Instant {
        let authority = self.authority(ctx, acceptor, deaths);
        self.given_until = self.given_until.max(authority);
        authority
    }

    /// Is a quorum of this core bound to us for as long as any lease that rests on this office? Else the next
    /// coordinator, which hears only from this core, might take over while such a lease still lasts.
    pub(super) fn is_covered_by(&self, ctx: &Ctx, deaths: &Deaths, core: Core<'_>) -> bool {
        let until = self.authority_of(ctx, deaths, core);
        until > ctx.now && until >= self.given_until
    }

    /// Until when a quorum of this core is bound to us.
    pub(super) fn authority_of(&self, ctx: &Ctx, deaths: &Deaths, core: Core<'_>) -> Instant {
        let bound = |id: NodeId| {
            if id == ctx.me() {
                return ctx.now.after(ctx.holder_lease());
            }
            let rooted = self.peers.get(&id).and_then(|p| p.rooted);
            rooted.map_or(Instant::ZERO, |sent| sent.after(ctx.holder_lease()))
        };
        // Asked at every step of a coordinator. Mostly nobody is dead and nobody is being removed: then nothing is known against any
        // half, and who supports us for how long does not matter.
        let nothing_known = deaths.is_empty() && self.removing.is_empty();
        if core.members.len() <= FEW && (nothing_known || core.members.len() % 2 == 1) {
            let mut ends = [Instant::ZERO; FEW];
            for (count, id) in core.members.iter().enumerate() {
                let (end, mut at) = (bound(*id), count);
                while at > 0 && ends[at - 1] < end {
                    ends[at] = ends[at - 1];
                    at -= 1;
                }
                ends[at] = end;
            }
            return if core.members.is_empty() { Instant::ZERO } else { ends[core.members.len() / 2] };
        }
        // Cores of the usual size cost no allocation.
        let mut few = [(Instant::ZERO, NodeId::new(0, 0)); FEW];
        let mut many = Vec::new();
        let ends = match few.get_mut(..core.members.len()) {
            Some(few) => few,
            None => {
                many.resize(core.members.len(), few[0]);
                &mut many[..]
            }
        };
        for (end, id) in ends.iter_mut().zip(core.members) {
            *end = (bound(*id), *id);
        }
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let Some(&(majority, _)) = ends.get(ends.len() / 2) else { return Instant::ZERO };
        if ends.len() % 2 == 1 {
            return majority;
        }
        let half = ends.len() / 2;
        let (end_of_half, _) = ends[half - 1];
        if end_of_half <= majority {
            return majority;
        }
        let (with, without): (Vec<_>, Vec<_>) =
            core.members.iter().partition(|&&id| ends[..half].iter().any(|(_, h)| *h == id));
        let fresh = |id: NodeId| self.peers.get(&id).and_then(|p| p.rooted);
        if self.half_may_go_on(ctx, deaths, core, &with, &without, fresh) { end_of_half } else { majority }
    }

    /// The rule S2 for exactly half of a core, for a coordinator in office.
    ///
    /// `fresh` tells which of our clock readings a member's latest answer echoes.
    pub(super) fn half_may_go_on(
        &self,
        ctx: &Ctx,
        deaths: &Deaths,
        core: Core<'_>,
        with: &[NodeId],
        without: &[NodeId],
        fresh: impl Fn(NodeId) -> Option<Instant>,
    ) -> bool {
        deaths.let_half_go_on(with, without)
            || self.is_alone(ctx, deaths, with, without, fresh) && core.prefers(ctx, with)
    }

    /// Have all leases of the others lapsed, and did everybody of this half answer since?
    fn is_alone(
        &self,
        ctx: &Ctx,
        deaths: &Deaths,
        with: &[NodeId],
        without: &[NodeId],
        fresh: impl Fn(NodeId) -> Option<Instant>,
    ) -> bool {
        let Some(lapsed_at) = self.lapsed_at(ctx, deaths, without) else { return false };
        with.iter().all(|id| *id == ctx.me() || fresh(*id).is_some_and(|sent| sent >= lapsed_at))
    }

    /// Halves that lack nothing but the word of the witness.
    pub(crate) fn lone_halves(
        &self,
        ctx: &Ctx,
        acceptor: &Acceptor,
        deaths: &Deaths,
    ) -> Vec<(Option<Warrant>, Vec<NodeId>)> {
        if !ctx.config.terms.witness {
            return Vec::new();
        }
        let rooted = |id: NodeId| self.peers.get(&id).and_then(|p| p.rooted);
        let bound = |id: NodeId| {
            id == ctx.me() || rooted(id).is_some_and(|sent| sent.after(ctx.holder_lease()) > ctx.now)
        };
        let cores = [Some(Core::in_force(&acceptor.state)), self.next_core_of(acceptor)];
        let lone = |core: Core<'_>| match share(core.members, bound) {
            Share::Half { with, without }
                if !deaths.let_half_go_on(&with, &without)
                    && self.is_alone(ctx, deaths, &with, &without, rooted) =>
            {
                Some((core.warrant, with))
            }
            _ => None,
        };
        cores.into_iter().flatten().filter_map(lone).collect()
    }

    /// The core that the entry under way puts in force.
    fn next_core_of<'a>(&'a self, acceptor: &Acceptor) -> Option<Core<'a>> {
        let proposal = self.proposal.as_ref()?;
        let (lineage, members) = (acceptor.state.lineage, proposal.entry.core.as_ref()?);
        Some(Core { lineage, members, warrant: proposal.entry.warrant(proposal.index) })
    }

    /// When the last lease of these nodes lapsed, if all have: each is being removed for good, and waited out.
    fn lapsed_at(&self, ctx: &Ctx, deaths: &Deaths, nodes: &[NodeId]) -> Option<Instant> {
        nodes.iter().try_fold(Instant::ZERO, |latest, id| {
            let lapsed = self.removing.get(id)?.lapsed_at(ctx.now);
            // The dead hold nothing.
            if deaths.contains(*id) { Some(latest) } else { lapsed.map(|at| at.max(latest)) }
        })
    }

    /// Until when enough founder slots have answered: a majority, or exactly half of them by nodes whose answers were
    /// among those of a majority before. Another lineage has had neither meanwhile: `ARCHITECTURE.md` argues that.
    fn authority_of_slots(&self, ctx: &Ctx, acceptor: &Acceptor) -> Instant {
        let slots = usize::from(acceptor.state.terms.slots);
        let majority = self.majority_of_slots(ctx, acceptor);
        if !slots.is_multiple_of(2) {
            return majority;
        }
        let confirmed = |id: NodeId| {
            if id == ctx.me() { ctx.confirmed } else { self.peers.get(&id).is_some_and(|p| p.confirmed) }
        };
        majority.max(self.slots_until(ctx, acceptor, slots / 2 - 1, confirmed))
    }

    /// Until when a majority of the founder slots has answered.
    fn majority_of_slots(&self, ctx: &Ctx, acceptor: &Acceptor) -> Instant {
        self.slots_until(ctx, acceptor, usize::from(acceptor.state.terms.slots) / 2, |_| true)
    }

    /// Is our own answer for our slot one of those of a majority?
    pub(crate) fn confirms_us(&self, ctx: &Ctx, acceptor: &Acceptor) -> bool {
        let holds = acceptor.state.terms.slots > 0 && ctx.config.me.slot.is_some() && ctx.is_ripe();
        holds && self.majority_of_slots(ctx, acceptor) > ctx.now
    }

    /// Until when founder slots answer, as far as their holders are some of these: that of the slot before which so many others
    /// answer for longer.
    fn slots_until(
        &self,
        ctx: &Ctx,
        acceptor: &Acceptor,
        before: usize,
        of: impl Fn(NodeId) -> bool,
    ) -> Instant {
        let slots = usize::from(acceptor.state.terms.slots);
        // Asked as often as authority is.
        let mut few = [Instant::ZERO; FEW];
        let mut many = Vec::new();
        let ends = match few.get_mut(..slots) {
            Some(few) => few,
            None => {
                many.resize(slots, Instant::ZERO);
                &mut many[..]
            }
        };
        for node in &acceptor.state.view.members {
            let Some(slot) = node.slot.filter(|_| of(node.id)) else { continue };
            let answered = if node.id == ctx.me() {
                ctx.is_ripe().then_some(ctx.now)
            } else {
                self.peers.get(&node.id).and_then(|p| p.slot_answered)
            };
            if let (Some(end), Some(at)) = (ends.get_mut(usize::from(slot)), answered) {
                *end = at.after(ctx.holder_lease()).max(*end);
            }
        }
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(before).copied().unwrap_or(Instant::ZERO)
    }

    /// Answers a node's latest heartbeat with what is left of our authority.
    ///
    /// The node counts the lease from the sending of that heartbeat. It is cut so that, waited out with drift, it
    /// ends with our authority and not after it.
    pub(super) fn grant(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        deaths: &Deaths,
        to: NodeId,
        answer: bool,
    ) {
        let authority = self.authority(ctx, acceptor, deaths);
        let removing = self.removing.contains_key(&to) && !ctx.planted(Plant::LeaseForTheRemoved);
        let withheld = removing || self.dissolving.is_some();
        let in_core = acceptor.state.core.contains(&to);
        // Asked for every node: the slots are counted for those only that answer for one.
        let answers =
            |peer: &Peer| peer.slot_answered.is_some_and(|at| at.after(ctx.holder_lease()) > ctx.now);
        let slot = acceptor.state.terms.slots > 0
            && self.peers.get(&to).is_some_and(answers)
            && self.majority_of_slots(ctx, acceptor) > ctx.now;
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let lacks = match peer.commit {
            Some(commit) => commit < peer.must_store,
            None => in_core || peer.must_store > LogIndex::ZERO,
        };
        let mut lease = Duration::ZERO;
        if authority > ctx.now && !withheld && !lacks && peer.heard.is_some() {
            lease = ctx.config.terms.drift.giveable(authority - ctx.now);
            peer.granted_until = peer.granted_until.max(authority);
            self.given_until = self.given_until.max(authority);
            if ctx.planted(Plant::GrantNotChained) {
                lease = ctx.holder_lease();
            }
        }
        let grant = Grant {
            ballot: self.ballot,
            sent: ctx.now,
            echo: peer.heard,
            lease,
            index: peer.told,
            wishes_done: acceptor.state.last_op(to),
            answer,
            slot,
        };
        let Some(info) = acceptor.state.view.node(to) else { return };
        ctx.send(info, acceptor.state.lineage, ClusterMsg::Grant(grant));
    }

    /// Passes new authority on at once if there was none, or hardly any.
    pub(super) fn watch_authority(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths) {
        let authority = self.authority(ctx, acceptor, deaths);
        let was = core::mem::replace(&mut self.authority_seen, authority);
        if authority > ctx.now && was < ctx.now.after(ctx.config.heartbeat) && authority > was {
            let waiting: Vec<NodeId> =
                self.peers.iter().filter(|(_, p)| p.heard.is_some()).map(|(id, _)| *id).collect();
            for node in waiting {
                self.grant(ctx, acceptor, deaths, node, false);
            }
        }
    }
}
