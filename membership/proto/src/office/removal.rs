//! Who is silent, and when a node may be removed.
//!
//! One rule for every way in which a node ceases to lead: the entry is proposed only after (a) its death is proved,
//! or (b) it said that it stopped (a leaving node stops before it asks), or (c) it is given no lease any more and
//! every one that it may hold has lapsed.

use alloc::vec::Vec;
use core::net::SocketAddr;

use membership_types::{
    Instant, NodeId,
    trace::{Event, Process},
};

use super::Office;
use crate::{
    acceptor::Acceptor, ctx::Ctx, entry::Command, msg::ClusterMsg, plant::Plant, quorum::Deaths,
    spread::Domains, view::Why,
};

/// A node that gets no lease any more and will be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Removal {
    why: Why,
    /// When every lease that it may hold has lapsed.
    pub(super) ready_at: Instant,
    /// It said that it stopped.
    stopped: bool,
}

impl Removal {
    /// May the removal be proposed?
    pub(super) fn is_ready(&self, ctx: &Ctx, deaths: &Deaths, node: NodeId) -> bool {
        matches!(self.why, Why::Left)
            || deaths.contains(node)
            || self.stopped
            || ctx.now >= self.ready_at
            || ctx.planted(Plant::RemoveWithoutStop)
    }

    /// Has a newer process its address?
    pub(super) fn is_of_a_replaced(&self) -> bool {
        self.why == Why::Replaced
    }

    /// When its last lease lapsed, if it has: from then on nothing calls the removal off.
    pub(super) fn lapsed_at(&self, now: Instant) -> Option<Instant> {
        (now >= self.ready_at).then_some(self.ready_at)
    }
}

impl Office {
    /// No lease for this node any more; it will be removed. Reasons only grow stronger.
    pub(crate) fn remove(&mut self, ctx: &mut Ctx, deaths: &Deaths, node: NodeId, why: Why) {
        let granted = self.peers.get(&node).map_or(Instant::ZERO, |p| p.granted_until);
        let ready_at = granted.max(self.horizon).max(ctx.now);
        let why = if deaths.contains(node) { Why::Dead } else { why };
        match self.removing.get_mut(&node) {
            Some(removal) if matches!(why, Why::Dead | Why::Left) => removal.why = why,
            Some(_) => {}
            None => {
                self.removing.insert(node, Removal { why, ready_at, stopped: false });
                if why != Why::Left {
                    ctx.trace(|p| Event::Suspect { p, q: Process::from(node), why: why.as_str().into() });
                }
            }
        }
    }

    /// A death was proved.
    pub(crate) fn on_death(&mut self, ctx: &mut Ctx, deaths: &Deaths, node: NodeId) {
        if self.peers.contains_key(&node) {
            self.remove(ctx, deaths, node, Why::Dead);
        }
    }

    /// A node that is to be removed acts until then at most.
    pub(crate) fn not_removed_before(&mut self, node: NodeId, at: Instant) {
        if let Some(removal) = self.removing.get_mut(&node) {
            removal.ready_at = removal.ready_at.max(at);
        }
    }

    /// A node said that it stopped acting for every group.
    pub(crate) fn on_stopped(&mut self, from: NodeId) {
        if let Some(removal) = self.removing.get_mut(&from) {
            removal.stopped = true;
        }
    }

    /// A suspicion ends when the node shows that it hears us, unless its leases have been waited out already (from
    /// then on others may act on its absence) or an entry that removes it is under way and cannot be taken back.
    pub(super) fn unsuspect(&mut self, ctx: &mut Ctx, node: NodeId) {
        let Some(removal) = self.removing.get(&node) else { return };
        let Some(peer) = self.peers.get(&node) else { return };
        let answered = peer.answered.is_some_and(|at| ctx.now - at <= ctx.lease());
        let removes = |c: &Command| matches!(c, Command::Remove(id, _) if *id == node);
        let under_way = self.proposal.as_ref().is_some_and(|p| p.entry.commands.iter().any(removes));
        let in_time = ctx.now < removal.ready_at && !under_way || ctx.planted(Plant::CallOffLate);
        if removal.why == Why::Silent && in_time && answered {
            self.removing.remove(&node);
            ctx.trace(|p| Event::Unsuspect { p, q: node.into() });
            ctx.mark("a suspicion is withdrawn");
        }
    }

    /// A node is silent once it has echoed no grant given within the lease, counted from the latest of: its last
    /// echo, our own start in office, the end of our own last stall.
    pub(super) fn suspect_the_silent(&mut self, ctx: &mut Ctx, deaths: &Deaths) {
        let mut silent = Vec::new();
        for (node, peer) in &self.peers {
            if self.removing.contains_key(node) {
                continue;
            }
            let mut last = peer.answered.max(self.stall_end).unwrap_or(Instant::ZERO).max(peer.since);
            if ctx.planted(Plant::DeafIsAlive) {
                last = last.max(peer.heard_at);
            }
            // A predecessor whose authority lapsed was silent towards us before; it has one interval to answer.
            let heard_of_us = ctx.now >= self.since.after(ctx.config.heartbeat);
            if ctx.now - last > ctx.lease() && heard_of_us {
                if ctx.now - peer.heard_at < ctx.config.heartbeat * 2 {
                    ctx.mark("a deaf node that speaks is suspected");
                }
                silent.push(*node);
            }
        }
        if self.is_in_doubt(ctx, silent.len()) {
            return;
        }
        for node in silent {
            self.remove(ctx, deaths, node, Why::Silent);
        }
    }

    /// If most others fall silent at once, it may be us who does not hear. For one more lease nobody is accused; if that is
    /// how it stays, a majority of the core still decides whether we are right.
    fn is_in_doubt(&mut self, ctx: &mut Ctx, silent: usize) -> bool {
        let others = self.peers.keys().filter(|id| !self.removing.contains_key(*id)).count();
        if 2 * silent <= others || silent < 2 {
            self.doubt_since = None;
            return false;
        }
        let since = *self.doubt_since.get_or_insert(ctx.now);
        if since == ctx.now {
            ctx.mark("a coordinator doubts that most others are gone");
        }
        ctx.now < since.after(ctx.lease())
    }

    /// The predecessor fell silent, and perhaps a whole rack or power unit with it: then it goes with them, in one view. So it does if
    /// it shares that with two others or more, and none of those has spoken since we came, who were told of us at once. Is it too
    /// early to tell? (No lease of theirs is left: those that the predecessor gave have lapsed, and we gave them none.)
    pub(super) fn awaits_the_fallen(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths) -> bool {
        let Some(fallen) = self.fallen.filter(|id| self.removing.contains_key(id)) else { return false };
        let view = &acceptor.state.view;
        let Some(first) = view.node(fallen) else { return false };
        let speaks = |id: &NodeId| {
            *id == ctx.me() || self.peers.get(id).is_none_or(|p| p.heard.is_some() || p.answered.is_some())
        };
        let mut mates: Vec<NodeId> = Vec::new();
        for shares in [Domains::shares_rack, Domains::shares_power] {
            let same = view.members.iter().filter(|n| n.id != fallen && shares(&n.domains, &first.domains));
            let same: Vec<NodeId> = same.map(|node| node.id).collect();
            if same.len() >= 2 && !same.iter().any(speaks) {
                mates.extend(same);
            }
        }
        if mates.is_empty() {
            self.fallen = None;
            return false;
        }
        if ctx.now < self.since.after(self.cut_window(ctx)) {
            return true;
        }
        self.fallen = None;
        ctx.mark("those who fell with a coordinator go with it");
        for node in mates {
            self.remove(ctx, deaths, node, Why::Silent);
        }
        false
    }

    /// Those whose removal may be proposed now. Silence is held for one cut, so that several nodes that fell silent
    /// together leave in one view; a proof or a leave closes the cut at once.
    pub(super) fn ready_removals(&mut self, ctx: &mut Ctx, deaths: &Deaths) -> Vec<(NodeId, Why)> {
        let mut ready: Vec<(NodeId, Why)> = Vec::new();
        let mut only_silence = true;
        for (node, removal) in &self.removing {
            if removal.is_ready(ctx, deaths, *node) {
                let why = if deaths.contains(*node) { Why::Dead } else { removal.why };
                only_silence &= why == Why::Silent;
                ready.push((*node, why));
            }
        }
        if ready.is_empty() {
            self.cut_since = None;
            return ready;
        }
        let since = *self.cut_since.get_or_insert(ctx.now);
        let overdue = ctx.config.heartbeat * 2;
        let others_fade = self.removing.len() > ready.len()
            || self
                .peers
                .iter()
                .any(|(id, p)| !self.removing.contains_key(id) && ctx.now - p.heard_at > overdue);
        if only_silence && others_fade && ctx.now < since.after(self.cut_window(ctx)) {
            ctx.mark("silence is held for a cut");
            ready.clear();
        }
        if ready.len() > 1 {
            ctx.mark("several nodes leave in one view");
        }
        ready
    }

    /// Asks a node that speaks but must go to stop, until it says so or is waited out.
    pub(super) fn repeat_stops(&mut self, ctx: &mut Ctx, acceptor: &Acceptor) {
        for (node, removal) in &self.removing {
            if removal.why == Why::Replaced && !removal.stopped {
                ctx.reply(*node, acceptor.state.lineage, ClusterMsg::Stop);
            }
        }
    }

    /// Forgets a node that is no member any more, and says where it was.
    pub(super) fn forget(&mut self, node: NodeId) -> Option<SocketAddr> {
        self.removing.remove(&node);
        self.learners.remove(&node);
        let peer = self.peers.remove(&node)?;
        for group in &peer.observes {
            self.forget_observer(group, node);
        }
        peer.addr
    }
}
