//! Who is told what.
//!
//! A node is told of the log only what concerns it: cluster views, changes of the core, the views of groups that it
//! is in or observes, and that its wishes were applied. What it is told forms a chain ([`Update`]`::prev`), so that a
//! gap shows; then it says where it stands ([`Hello`]) and is told the rest.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};

use membership_types::{GroupName, Lineage, LogIndex, NodeId, ViewId};

use super::{Office, Peer};
use crate::{
    acceptor::Acceptor,
    ctx::Ctx,
    msg::{ClusterMsg, Full, Hello, Update},
    plant::Plant,
    state::Change,
    view::{ClusterDelta, GroupView, SharedView, Why},
};

/// The most bytes of group views in one message.
const PART_BYTES: usize = 2 << 20;

impl Office {
    /// Tells everyone whom a committed change concerns.
    pub(super) fn tell(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, change: &Change) {
        let joined = change.cluster.iter().flat_map(|d| &d.joined);
        for info in joined {
            if info.id != ctx.me() {
                let mut peer = self.peers.remove(&info.id).unwrap_or_else(|| Peer::new(ctx.now));
                peer.addr = Some(info.addr);
                for group in self.joining.remove(&info.id).unwrap_or_default() {
                    self.observers.entry(group.clone()).or_default().insert(info.id);
                    peer.observes.insert(group);
                }
                self.peers.insert(info.id, peer);
            }
        }
        let left: Vec<_> = change.cluster.iter().flat_map(|d| d.left.clone()).collect();
        for (node, why) in &left {
            if let Some(addr) = self.forget(*node) {
                self.flaps.note(ctx, addr);
            }
            // The dead read nothing.
            if *node != ctx.me() && *why != Why::Dead && !ctx.planted(Plant::TellNobody) {
                let (view, index) = (acceptor.state.view.id, change.index);
                ctx.reply(*node, acceptor.state.lineage, ClusterMsg::Removed { view, index, why: *why });
            }
        }
        let newcomers: BTreeSet<NodeId> = change
            .cluster
            .iter()
            .flat_map(|d| &d.joined)
            .map(|n| n.id)
            .filter(|id| *id != ctx.me())
            .collect();
        for node in self.concerned(acceptor, change, &newcomers) {
            if newcomers.contains(&node) {
                self.tell_all(ctx, acceptor, node);
            } else if node == ctx.me() {
                let founded = change.cluster.iter().flat_map(|d| &d.joined).any(|n| n.id == node);
                let update = if founded {
                    self.full_update(acceptor, node, &ctx.observes)
                } else {
                    self.update(acceptor, node, LogIndex::ZERO, change)
                };
                self.to_self.push_back(update);
            } else if let Some(prev) = self.peers.get(&node).and_then(|p| p.told) {
                let update = self.update(acceptor, node, prev, change);
                self.send_update(ctx, acceptor, node, update);
            }
        }
    }

    /// Whom the change concerns, the coordinator's own node included. First those who begin to act with this: leaders, then
    /// newcomers.
    fn concerned(&self, acceptor: &Acceptor, change: &Change, newcomers: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            if change.cluster.is_some() || change.core.is_some() || acceptor.state.dissolved.is_some() {
                acceptor.state.view.members.iter().map(|n| n.id).collect()
            } else {
                let mut nodes: BTreeSet<NodeId> = change.wished.clone();
                for (view, before) in &change.groups {
                    nodes.extend(before);
                    nodes.extend(view.members.iter().map(|m| m.node));
                    nodes.extend(self.observers.get(&view.group).into_iter().flatten());
                }
                // Our own node observes too, and hears of everything.
                nodes.insert(self.ballot.node);
                nodes.into_iter().collect()
            };
        let leaders: BTreeSet<NodeId> = change.groups.iter().filter_map(|(view, _)| view.leader()).collect();
        nodes.sort_by_key(|id| (!leaders.contains(id), !newcomers.contains(id)));
        nodes
    }

    fn update(&self, acceptor: &Acceptor, node: NodeId, prev: LogIndex, change: &Change) -> Update {
        let own = node == self.ballot.node;
        let concerns = |view: &SharedView, before: &[NodeId]| {
            own || before.contains(&node)
                || view.contains(node)
                || self.observers.get(&view.group).is_some_and(|o| o.contains(&node))
        };
        Update {
            ballot: self.ballot,
            prev,
            index: change.index,
            full: None,
            deltas: change.cluster.iter().map(|d| (change.index, d.clone())).collect(),
            core: change.core.clone(),
            groups: change.groups.iter().filter(|(v, b)| concerns(v, b)).map(|(v, _)| v.clone()).collect(),
            wishes_done: acceptor.state.last_op(node),
            dissolved: dissolved(acceptor),
        }
    }

    fn send_update(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, node: NodeId, mut update: Update) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let is_all = cut_to_fit(&mut update);
        // Who has got a part of it says what it knows, and is told more.
        peer.told = is_all.then_some(update.index);
        let prev = if ctx.planted(Plant::ChainBroken) { LogIndex::ZERO } else { update.prev };
        let update = Update { prev, ..update };
        if let Some(info) = acceptor.state.view.node(node) {
            ctx.send(info, acceptor.state.lineage, ClusterMsg::Update(Box::new(update)));
        }
    }

    /// Tells a node everything: a newcomer, or one who missed too much.
    pub(super) fn tell_all(&mut self, ctx: &mut Ctx, acceptor: &Acceptor, node: NodeId) {
        let observes = self.peers.get(&node).map(|p| p.observes.clone()).unwrap_or_default();
        let update = self.full_update(acceptor, node, &observes);
        self.send_update(ctx, acceptor, node, update);
    }

    /// The whole of what concerns a node, for one that starts from nothing.
    pub(crate) fn full_update(
        &self,
        acceptor: &Acceptor,
        node: NodeId,
        observes: &BTreeSet<GroupName>,
    ) -> Update {
        let state = &acceptor.state;
        let mut groups: Vec<SharedView> = state.groups_of(node).cloned().collect();
        for name in observes {
            let view = state.group(name).filter(|v| !v.contains(node));
            groups.extend(view.cloned());
        }
        Update {
            ballot: self.ballot,
            prev: LogIndex::ZERO,
            index: state.index,
            full: Some(Full { terms: state.terms.clone(), view: state.view.clone(), at: state.view_at }),
            deltas: Vec::new(),
            core: Some(state.core.clone()),
            groups,
            wishes_done: state.last_op(node),
            dissolved: dissolved(acceptor),
        }
    }

    /// A node says where it stands; it is told the rest.
    pub(super) fn on_hello(
        &mut self,
        ctx: &mut Ctx,
        acceptor: &Acceptor,
        from: NodeId,
        seen: LogIndex,
        hello: Hello,
    ) {
        if acceptor.state.view.id == ViewId::NONE {
            return; // The first view is not decided yet; there is nothing to tell.
        }
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let dropped: Vec<GroupName> = core::mem::take(&mut peer.observes).into_iter().collect();
        peer.observes = hello.observes.iter().cloned().collect();
        for group in dropped {
            self.forget_observer(&group, from);
        }
        for group in &hello.observes {
            self.observers.entry(group.clone()).or_default().insert(from);
        }
        let update = self.rest_for(acceptor, from, seen, &hello);
        if update.says_nothing_after(seen) {
            if let Some(peer) = self.peers.get_mut(&from) {
                peer.told = Some(seen);
            }
        } else {
            self.send_update(ctx, acceptor, from, update);
        }
    }

    /// What a node that has seen everything up to `seen` lacks.
    pub(crate) fn rest_for(
        &self,
        acceptor: &Acceptor,
        node: NodeId,
        seen: LogIndex,
        hello: &Hello,
    ) -> Update {
        let state = &acceptor.state;
        let observes: BTreeSet<GroupName> = hello.observes.iter().cloned().collect();
        let logged =
            if seen == LogIndex::ZERO || seen > state.index { None } else { acceptor.entries_after(seen) };
        let mut update = self.full_update(acceptor, node, &observes);
        let known: BTreeMap<&GroupName, ViewId> = hello.groups.iter().map(|(name, id)| (name, *id)).collect();
        let told: BTreeSet<&GroupName> = update.groups.iter().map(|view| &view.group).collect();
        // Groups that the node knows, and that are gone, or that it has left.
        let mut others = Vec::new();
        for (name, id) in known.iter().filter(|(name, _)| !told.contains(*name)) {
            let none = || Arc::new(GroupView::empty((*name).clone(), state.lineage, ViewId::NONE));
            let view = state.group(name).cloned().unwrap_or_else(none);
            if view.id != *id {
                others.push(view);
            }
        }
        update.groups.extend(others);
        update.groups.retain(|view| known.get(&view.group) != Some(&view.id));
        let Some(logged) = logged else { return update }; // Too long ago, or nothing seen at all.
        let (mut deltas, mut core) = (Vec::new(), None);
        for entry in logged {
            deltas.extend(entry.cluster.iter().map(|d| (entry.index, ClusterDelta::clone(d))));
            core = entry.entry.core.clone().or(core);
        }
        Update { prev: seen, full: None, deltas, core, ..update }
    }

    /// Tells a node the present view of one group, outside the chain.
    pub(super) fn tell_group(&self, ctx: &mut Ctx, acceptor: &Acceptor, node: NodeId, group: &GroupName) {
        let state = &acceptor.state;
        let view = state.group(group).cloned();
        let view =
            view.unwrap_or_else(|| Arc::new(GroupView::empty(group.clone(), state.lineage, ViewId::NONE)));
        let Some(told) = self.peers.get(&node).and_then(|p| p.told) else { return };
        let update = Update {
            ballot: self.ballot,
            prev: told,
            index: told,
            full: None,
            deltas: Vec::new(),
            core: None,
            groups: [view].into(),
            wishes_done: state.last_op(node),
            dissolved: None,
        };
        if let Some(info) = state.view.node(node) {
            ctx.send(info, state.lineage, ClusterMsg::Update(Box::new(update)));
        }
    }
}

/// Leaves out groups where there are more than fit into a message. False if it did: then what is left does not say that this is
/// all up to its index, nor that wishes about groups were applied.
fn cut_to_fit(update: &mut Update) -> bool {
    let mut bytes = 0;
    let fits = update.groups.iter().take_while(|view| {
        bytes += view.weight();
        bytes <= PART_BYTES
    });
    // One view at least.
    let fits = fits.count().max(1);
    if fits >= update.groups.len() {
        return true;
    }
    update.groups.truncate(fits);
    update.index =
        if update.full.is_some() { LogIndex::new(update.index.get().saturating_sub(1)) } else { update.prev };
    update.wishes_done = 0;
    false
}

fn dissolved(acceptor: &Acceptor) -> Option<(Lineage, ViewId)> {
    acceptor.state.dissolved.map(|into| (into, acceptor.state.last_view))
}
