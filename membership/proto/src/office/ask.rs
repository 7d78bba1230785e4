//! What nodes ask of the coordinator: to be admitted, to be in groups, to observe them, to leave.

use alloc::{string::String, vec::Vec};

use membership_types::{GroupName, LogIndex, NodeId, ViewId};

use super::{Office, QUEUE_LIMIT};
use crate::{
    acceptor::Acceptor,
    ctx::{Ctx, Dest, Output},
    entry::{Command, GroupWish},
    msg::{ClusterMsg, Join, Msg},
    plant::Plant,
    quorum::Deaths,
    view::{NodeInfo, Why},
    witness,
};

impl Office {
    /// A node wants to be admitted.
    pub(crate) fn on_join(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        deaths: &Deaths,
        from: NodeId,
        join: Join,
    ) {
        let id = join.info.id;
        if id != from && !ctx.planted(Plant::RelayJoins) || id == ctx.me() {
            return;
        }
        if self.peers.contains_key(&id) {
            self.tell_all(ctx, acceptor, id);
            return;
        }
        if let Some((view, why)) = acceptor.state.removal_of(id) {
            let index = acceptor.state.index;
            ctx.reply(id, acceptor.state.lineage, ClusterMsg::Removed { view, index, why });
            return;
        }
        if join.lease != acceptor.state.terms.lease {
            let text = alloc::format!(
                "the cluster's lease is {:?} and this node's {:?}: start it with the cluster's",
                acceptor.state.terms.lease,
                join.lease
            );
            return refuse(ctx, &join.info, text);
        }
        if let Some(text) = witness::disagreement(join.witness, acceptor.state.terms.witness) {
            return refuse(ctx, &join.info, text.into());
        }
        if let Some(text) = self.lacks_level(acceptor, join.level) {
            ctx.mark("a node is refused because it does not understand what was agreed on");
            return refuse(ctx, &join.info, text);
        }
        let addr = join.info.addr;
        let predecessors: Vec<NodeId> = acceptor
            .state
            .view
            .members
            .iter()
            .filter(|n| n.addr == addr && n.id != id && n.id != ctx.me())
            .map(|n| n.id)
            .collect();
        for node in predecessors {
            ctx.mark("a newer process takes over an address");
            self.remove(ctx, deaths, node, Why::Replaced);
        }
        let terms = &acceptor.state.terms;
        if terms.slots > 0 && terms.durable && join.info.slot.is_some() {
            if !join.info.keeps_floor {
                let text = "the founders of this cluster have data directories and this node, which has a founder slot, \
                            has none: start it with --data-dir";
                return refuse(ctx, &join.info, text.into());
            }
            // Its directory may be another one than the slot had before.
            let lineage = acceptor.state.lineage;
            let floor = join.floor.map_or(ViewId::NONE, |floor| floor.counts_in(lineage));
            self.slot_floors.extend(join.info.slot.map(|slot| (slot, (id, floor))));
            // What it has set aside for another lineage stays so until it is admitted: more of that would count for nothing, too.
            let would_count = join.floor.is_none_or(|floor| floor.lineage == lineage);
            if let Some(view) = self.lacks_ids.filter(|view| would_count && floor < *view) {
                ctx.send(
                    &join.info,
                    lineage,
                    ClusterMsg::SetAside { ballot: self.ballot, view, given: acceptor.state.last_view },
                );
            }
        }
        if self.flaps.must_wait(ctx, join.info.addr) {
            ctx.mark("a node that comes and goes is kept waiting");
            return;
        }
        if self.is_waiting_for_admission(id) || self.dissolving.is_some() {
            return;
        }
        // What was set aside for this very lineage is not used elsewhere.
        let foreign = join.floor.filter(|floor| floor.lineage != acceptor.state.lineage);
        let highest = join.highest.max(foreign.map_or(ViewId::NONE, |floor| floor.view));
        self.raise_above(ctx, acceptor, highest);
        self.enqueue(Command::Admit(join.info));
        for (op, wish) in join.wishes {
            self.enqueue(Command::Group { node: id, op, wish });
        }
        self.joining.insert(id, join.observes);
    }

    /// A node's wishes about groups; those that are queued or applied already are skipped.
    pub(crate) fn on_wishes(&mut self, acceptor: &Acceptor, from: NodeId, wishes: Vec<(u64, GroupWish)>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let mut last = peer.queued_op.max(acceptor.state.last_op(from));
        let mut fresh = Vec::new();
        for (op, wish) in wishes {
            if op == last + 1 {
                last = op;
                fresh.push(Command::Group { node: from, op, wish });
            }
        }
        if self.queue.len() + fresh.len() <= QUEUE_LIMIT {
            peer.queued_op = last;
            self.queue.extend(fresh);
        }
    }

    /// A wish of the coordinator's own node. Nobody says it again: it always has room, and the next one counts for all before.
    pub(crate) fn own_wish(&mut self, ctx: &Ctx, op: u64, wish: GroupWish) {
        self.queue.push_back(Command::Group { node: ctx.me(), op, wish });
    }

    /// A node leaves of its own will; it has stopped acting.
    pub(crate) fn on_leave(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, deaths: &Deaths, from: NodeId) {
        if self.peers.contains_key(&from) || from == ctx.me() {
            self.remove(ctx, deaths, from, Why::Left);
        } else {
            self.turn_away(ctx, acceptor, from, LogIndex::ZERO);
        }
    }

    /// A node begins or ends to observe a group.
    pub(crate) fn on_observe(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        from: NodeId,
        group: GroupName,
        begin: bool,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if begin {
            peer.observes.insert(group.clone());
            self.observers.entry(group.clone()).or_default().insert(from);
            self.tell_group(ctx, acceptor, from, &group);
        } else {
            peer.observes.remove(&group);
            self.forget_observer(&group, from);
        }
    }

    pub(super) fn is_waiting_for_admission(&self, id: NodeId) -> bool {
        self.commands().any(|command| matches!(command, Command::Admit(info) if info.id == id))
    }

    /// May what is queued wait for more like it? So it is while it is all about nodes that are to be admitted, and others
    /// were a moment ago: many that start at once come in few views.
    pub(super) fn gathers(&mut self, ctx: &Ctx, acceptor: &Acceptor) -> bool {
        let Some(until) = self.admit_at else { return false };
        if ctx.now >= until {
            self.admit_at = None;
            return false;
        }
        self.queue.iter().all(|command| match command {
            Command::Admit(_) | Command::Raise(_) => true,
            Command::Group { node, .. } => !acceptor.state.view.contains(*node),
            _ => false,
        })
    }

    pub(super) fn forget_observer(&mut self, group: &GroupName, node: NodeId) {
        if let Some(nodes) = self.observers.get_mut(group) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.observers.remove(group);
            }
        }
    }

    /// One who is no member (any more) gets one explicit answer.
    pub(super) fn turn_away(&self, ctx: &mut Ctx, acceptor: &Acceptor, from: NodeId, seen: LogIndex) {
        let state = &acceptor.state;
        if ctx.planted(Plant::TellNobody) {
            return;
        }
        let fate = state.removal_of(from);
        if fate.is_some() || seen <= state.index && seen > LogIndex::ZERO {
            let (view, why) = fate.unwrap_or((state.view.id, Why::Silent));
            ctx.reply(from, state.lineage, ClusterMsg::Removed { view, index: state.index, why });
        }
    }
}

/// One that asks to be admitted never is, as it is configured.
fn refuse(ctx: &mut Ctx, info: &NodeInfo, why: String) {
    ctx.push(Output::Send(Dest::Node(info.id, Some(info.addr)), Msg::Refused(why)));
}
