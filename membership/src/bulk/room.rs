//! A group at this node: its machine, and what its application wants of it and is told.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use membership_multicast::{Class, Input, Multicast, View as RoomView};
use membership_types::{GroupName, Instant, Machine, NodeId, Token, ViewId};

use super::whom::Peers;
use crate::{
    channel::{Delivered, Fence, Mailbox},
    event::{Member, View},
    metrics::Tally,
};

/// A group at this node, or one that others said something about.
pub(super) struct Room {
    pub(super) key: u32,
    pub(super) group: GroupName,
    pub(super) machine: Multicast,
    pub(super) mailbox: Option<Arc<Mailbox>>,
    /// Views that membership told of, and that are not installed.
    pub(super) views: VecDeque<Arc<View>>,
    /// The view that is installed, for a membership that goes on where another one ended.
    pub(super) current: Option<Arc<View>>,
    /// The others of the newest view.
    pub(super) peers: Peers,
    /// What is to be handed to the application.
    pub(super) delivered: Vec<Delivered>,
    /// What came from the application and is to be sent.
    pub(super) batch: VecDeque<(Class, Bytes)>,
    /// A view was installed, which the application is told before membership is, and so before the node leads in it.
    pub(super) to_tell: Option<ViewId>,
    /// Whoever waits until this view, up to this place, is delivered.
    pub(super) fences: VecDeque<(ViewId, u64, Fence)>,
    /// Whoever waits until there is something to be waited for: a lease, and the group's state.
    pub(super) early: Vec<Fence>,
    /// The application holds what every member begins with.
    pub(super) initial: bool,
    pub(super) dirty: bool,
    pub(super) held: bool,
    pub(super) throttled: bool,
    pub(super) due: Option<Instant>,
}

impl Room {
    /// Nobody here is in the group, as far as was told: others said something about it, at most.
    pub(super) fn is_idle(&self) -> bool {
        self.mailbox.is_none() && self.peers.all().is_empty()
    }

    /// What the application wants besides sending.
    pub(super) fn take_wishes(&mut self, mailbox: &Mailbox, now: Instant, held: bool) {
        let mut gave = false;
        while let Some((to, id, bytes, last)) = mailbox.take_state(|to| self.machine.unsent_to(to)) {
            gave = true;
            self.machine.handle(now, Input::State { to, id, bytes, last });
        }
        if gave {
            mailbox.has_room();
        }
        for (to, id) in mailbox.take_given_up() {
            self.machine.handle(now, Input::NoState { to, id });
        }
        let (fences, keep) = mailbox.take_wishes();
        if keep {
            self.machine.handle(now, Input::Keep);
        }
        // With a lease the node is a member for whoever is one; so it holds what anybody promised.
        let place = self.machine.places().filter(|_| !held && self.machine.is_whole());
        let waited = std::mem::take(&mut self.early).into_iter().map(|fence| (fence, true));
        for (fence, waits) in waited.chain(fences).filter(|(fence, _)| !fence.is_abandoned()) {
            match place {
                Some((view, held_to, _)) => self.fences.push_back((view, held_to, fence)),
                None if waits => self.early.push(fence),
                None => fence.pass(false),
            }
        }
    }

    pub(super) fn pass_fences(&mut self) {
        while let Some((view, place, _)) = self.fences.front() {
            let passed = match self.machine.places() {
                Some((now, _, delivered)) => now > *view || now == *view && delivered >= *place,
                None => false,
            };
            let over = self.machine.places().is_none();
            if !passed && !over {
                return;
            }
            if let Some((_, _, fence)) = self.fences.pop_front() {
                match self.mailbox {
                    Some(_) if passed => self.delivered.push(Delivered::Fence(fence)),
                    _ => fence.pass(false),
                }
            }
        }
    }

    pub(super) fn tell(&mut self, what: Delivered) {
        if self.mailbox.is_some() {
            self.delivered.push(what);
        }
    }

    /// Hands what the application wants to send to the machine, as far as there is room. Was that anything, and may more wait?
    pub(super) fn take_from(&mut self, mailbox: &Mailbox, now: Instant, tally: &mut Tally) -> (bool, bool) {
        let mut took = false;
        let room = self.machine.room();
        if room > 0 && mailbox.take_all(room, &mut self.batch) {
            for (class, payload) in self.batch.drain(..) {
                took = true;
                tally.sent(class, payload.len());
                self.machine.handle(now, Input::Multicast(class, payload));
            }
            return (took, false);
        }
        while self.machine.has_room() {
            let Some((class, payload)) = mailbox.take() else { return (took, false) };
            took = true;
            tally.sent(class, payload.len());
            self.machine.handle(now, Input::Multicast(class, payload));
        }
        (took, true)
    }

    /// The view as membership told of it. One that was left out, because it was overtaken, is made up from the others.
    pub(super) fn installed(&mut self, view: &RoomView) -> Arc<View> {
        while self.views.front().is_some_and(|v| v.id < view.id) && self.views.len() > 1 {
            self.views.pop_front();
        }
        if let Some(known) = self.views.iter().find(|v| v.id == view.id) {
            return Arc::clone(known);
        }
        let known = |node: NodeId| {
            let mut all = self.views.iter().flat_map(|v| v.members.iter());
            all.rfind(|m| m.node == node).cloned()
        };
        let unknown = |node: NodeId| Member { node, name: node.to_string().into(), endpoint: None };
        let members: Vec<Member> =
            view.members.iter().map(|node| known(*node).unwrap_or_else(|| unknown(*node))).collect();
        let same_reign = |v: &&Arc<View>| {
            v.token.view() <= view.id && v.leader().map(|l| l.node) == view.members.first().copied()
        };
        let token = self.views.iter().find(same_reign).map_or_else(|| Token::new(view.id), |v| v.token);
        Arc::new(View {
            group: self.group.clone(),
            lineage: view.lineage,
            id: view.id,
            prev: ViewId::NONE,
            token,
            members,
        })
    }
}
