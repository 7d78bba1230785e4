//! The giver's part of the transfer of state (`state.rs`): what is sent, to whom, and what the application was asked for.

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};

use core::time::Duration;

use bytes::Bytes;
use membership_types::{Instant, NodeId, ViewId};

use crate::{
    frame::{Frame, Transfer},
    machine::{Multicast, Output},
};

/// How many chunks are under way.
const UNDER_WAY: u64 = 64;

/// A state that we send.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Giving {
    /// The receiver's latest request.
    id: u64,
    /// Ours to the application.
    request: u64,
    view: ViewId,
    taken: Box<[u64]>,
    /// What the receiver has not confirmed, and the number of the first of them.
    chunks: VecDeque<Bytes>,
    first: u64,
    /// The last one that was sent.
    sent: u64,
    /// The application has given everything.
    ended: bool,
    /// When something was last said to the receiver.
    said: Instant,
}

impl Giving {
    /// Is it the application's turn?
    fn is_being_made(&self) -> bool {
        !self.ended && self.sent + 1 - self.first >= self.chunks.len() as u64
    }

    /// If it is: when something was last said to the receiver.
    pub(crate) fn is_being_made_since(&self) -> Option<Instant> {
        self.is_being_made().then_some(self.said)
    }
}

impl Multicast {
    /// How many bytes of a state wait to be sent to a member: whoever gives it should wait while that is much.
    pub fn unsent_to(&self, member: NodeId) -> u64 {
        let giving = self.keeper.as_ref().and_then(|k| k.giving.get(&member));
        giving.map_or(0, |g| g.chunks.iter().map(|c| c.len() as u64).sum())
    }

    /// What was asked in a view that is installed only now.
    pub(crate) fn answer_deferred(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        for (member, (id, base, from)) in core::mem::take(&mut keeper.asked) {
            self.on_ask(member, id, base, from);
        }
    }

    pub(crate) fn on_ask(&mut self, member: NodeId, id: u64, base: ViewId, from: u64) {
        let now = self.now;
        let Some(keeper) = &mut self.keeper else { return };
        if let Some(giving) = keeper.giving.get_mut(&member).filter(|g| g.id == id)
            && from >= giving.first
        {
            // Its connection broke.
            giving.sent = from - 1;
            return self.give_from_the_label(member);
        }
        // What is being made for an earlier request is as good.
        let fits = |g: &&mut Giving| g.view >= base && g.first == 1 && from == 1;
        if let Some(giving) = keeper.giving.get_mut(&member).filter(fits) {
            (giving.id, giving.sent) = (id, 0);
            self.mark("a state that is being made answers a later request");
            return self.give_from_the_label(member);
        }
        if from > 1 {
            // It has some of another one, which is not here any more: it soon asks for a whole one.
            return;
        }
        let is_behind = self.current.as_ref().is_none_or(|c| c.view.id < base);
        if is_behind {
            keeper.asked.insert(member, (id, base, from));
            return;
        }
        let Some(current) = self.current.as_ref().filter(|c| c.view.contains(member)) else { return };
        if !keeper.whole {
            return self.push(Output::Send(member, Frame::Transfer(Transfer::Refuse { id })));
        }
        let (view, taken) = (current.view.id, current.store.taken());
        keeper.requests += 1;
        let request = keeper.requests;
        let giving = Giving {
            id,
            request,
            view,
            taken: taken.into(),
            chunks: VecDeque::new(),
            first: 1,
            sent: 0,
            ended: false,
            said: now,
        };
        keeper.giving.insert(member, giving);
        self.give_from_the_label(member);
        self.push(Output::StateRequest { to: member, id: request });
    }

    fn give_from_the_label(&mut self, member: NodeId) {
        let now = self.now;
        let Some(giving) = self.keeper.as_mut().and_then(|k| k.giving.get_mut(&member)) else { return };
        giving.said = now;
        let (id, view, taken) = (giving.id, giving.view, giving.taken.to_vec());
        self.push(Output::Send(member, Frame::Transfer(Transfer::Label { id, view, taken })));
        self.give(member);
    }

    /// The application does not give a state that was asked for: so nobody is told any more that it is being made.
    pub(crate) fn on_no_state(&mut self, member: NodeId, id: u64) {
        let Some(keeper) = &mut self.keeper else { return };
        if keeper.giving.get(&member).is_some_and(|g| g.request == id && !g.ended) {
            keeper.giving.remove(&member);
        }
    }

    /// The application gives more of a state that was asked for.
    pub(crate) fn on_state(&mut self, member: NodeId, id: u64, mut bytes: Bytes, last: bool) {
        let most = self.config.fragment;
        let Some(keeper) = &mut self.keeper else { return };
        let Some(giving) = keeper.giving.get_mut(&member).filter(|g| g.request == id && !g.ended) else {
            return;
        };
        while !bytes.is_empty() {
            giving.chunks.push_back(bytes.split_to(bytes.len().min(most)));
        }
        if last {
            giving.ended = true;
            // The end is a chunk of its own.
            giving.chunks.push_back(Bytes::new());
        }
        self.give(member);
    }

    /// Sends chunks, while there is room under way.
    fn give(&mut self, member: NodeId) {
        let now = self.now;
        loop {
            let Some(giving) = self.keeper.as_mut().and_then(|k| k.giving.get_mut(&member)) else { return };
            let index = giving.sent + 1 - giving.first;
            if index >= UNDER_WAY {
                return;
            }
            let Some(payload) = giving.chunks.get(index as usize).cloned() else { return };
            giving.sent += 1;
            giving.said = now;
            let last = giving.ended && index as usize + 1 == giving.chunks.len();
            let chunk = Transfer::Chunk { id: giving.id, number: giving.sent, last, payload };
            self.push(Output::Send(member, Frame::Transfer(chunk)));
        }
    }

    /// The receiver has this and all chunks before it.
    pub(crate) fn on_got(&mut self, member: NodeId, id: u64, number: u64) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some(giving) = keeper.giving.get_mut(&member).filter(|g| g.id == id) else { return };
        while giving.first <= number.min(giving.sent) {
            giving.chunks.pop_front();
            giving.first += 1;
        }
        if giving.ended && giving.chunks.is_empty() {
            keeper.giving.remove(&member);
        } else {
            self.give(member);
            self.push(Output::Given(member));
        }
    }

    /// Those for whom a state is being made, and who have heard nothing for so long, are told that it is.
    pub(crate) fn say_what_is_being_made(&mut self, again: Duration) {
        let now = self.now;
        let Some(keeper) = &mut self.keeper else { return };
        let mut made = Vec::new();
        for (member, giving) in keeper.giving.iter_mut().filter(|(_, g)| g.is_being_made()) {
            if now >= giving.said.after(again) {
                giving.said = now;
                made.push((*member, giving.id));
            }
        }
        for (member, id) in made {
            self.mark("a giver says that the state is being made");
            self.push(Output::Send(member, Frame::Transfer(Transfer::Making { id })));
        }
    }
}
