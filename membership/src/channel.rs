//! Messages between the members of a group, as applications see them: what they multicast, and what is delivered.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use membership_multicast::Class;
use membership_types::{GroupName, NodeId, ViewId};
use tokio::sync::{Notify, oneshot};

use crate::{bulk::Bulk, event::View, node::lock};

/// The largest message.
pub(crate) const LARGEST: usize = 64 << 20;
/// Bytes that wait to be sent, or to be taken; beyond that senders wait.
const WAITING: usize = 4 << 20;
/// What a message costs besides its bytes.
const COST: usize = 128;

/// A message of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The view in which it was sent and is delivered.
    pub view: ViewId,
    /// The sender.
    pub from: NodeId,
    /// Its class.
    pub class: Class,
    /// Its place in the view's one order, from 1; `None` for class fifo, and where the view was closed before the message
    /// got one.
    pub seq: Option<u64>,
    /// The bytes.
    pub payload: Bytes,
}

/// What a member of a group is told, in the one order in which it holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Delivered {
    /// A view is installed: whoever came along from the last one has been delivered the same messages until here.
    View {
        /// The view.
        view: Arc<View>,
        /// Those who came along from the same view as this member did, in rank order; for who is new: nobody.
        came_along: Vec<NodeId>,
    },
    /// A message.
    Message(Message),
    /// The view closes. What is multicast from here on is sent in the next one.
    Block,
    /// A member that is new needs the group's state, as it is after everything that was delivered before this.
    StateRequest(StateRequest),
    /// The group's state: it takes the place of what this member holds, and what is delivered next follows it.
    StateReceived(Vec<Bytes>),
    /// Nobody in this view has the group's state: its last holder is gone. The group has no leader until its first member
    /// decides: see [`Membership::keep_state`](crate::Membership::keep_state).
    StateLost {
        /// The view.
        view: ViewId,
    },
    /// Everything is delivered that somebody waits for. Not seen by readers.
    #[doc(hidden)]
    Fence(Fence),
    /// This node is no member any more.
    Out {
        /// It left on request; otherwise the node comes back as a new, junior member, and a [`Delivered::View`] follows.
        left: bool,
    },
}

/// The answer to whoever waits for a fence: true if it holds.
#[derive(Clone, Debug)]
pub struct Fence(Arc<Mutex<Option<oneshot::Sender<bool>>>>);

impl Fence {
    pub(crate) fn pass(&self, holds: bool) {
        if let Some(done) = lock(&self.0).take() {
            let _gone = done.send(holds);
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        lock(&self.0).as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// A member needs the group's state. While a clone of this lives the member is told that its state is being made, and waits for
/// a minute before it asks elsewhere, or here again, for the same. Dropped without [`finish`](StateRequest::finish), it
/// asks sooner, and for a later state.
#[derive(Clone, Debug)]
pub struct StateRequest(Arc<Asked>);

#[derive(Debug)]
struct Asked {
    to: NodeId,
    id: u64,
    mailbox: Arc<Mailbox>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.mailbox.give_up(self.to, self.id);
    }
}

impl StateRequest {
    pub(crate) fn new(to: NodeId, id: u64, mailbox: Arc<Mailbox>) -> Self {
        Self(Arc::new(Asked { to, id, mailbox }))
    }

    /// Who needs it.
    pub fn from(&self) -> NodeId {
        self.0.to
    }

    /// Gives a piece of the state; waits while much of it is under way.
    ///
    /// The state is the one at the request: what is delivered meanwhile does not belong to it. Cancel-safe: a dropped
    /// future has given all of the piece or nothing.
    ///
    /// # Errors
    /// [`SendError::NotMember`]. That the asker is gone is no error: there is just nobody any more who takes it.
    pub async fn send(&self, piece: impl Into<Bytes>) -> Result<(), SendError> {
        self.0.mailbox.give(self.0.to, self.0.id, piece.into(), false).await
    }

    /// As [`send`](StateRequest::send), for the last piece.
    ///
    /// # Errors
    /// [`SendError::NotMember`].
    pub async fn finish(self, piece: impl Into<Bytes>) -> Result<(), SendError> {
        self.0.mailbox.give(self.0.to, self.0.id, piece.into(), true).await
    }
}

/// The message is not sent, now or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The node has left the group, or has stopped.
    #[error("the node is no member of the group any more")]
    NotMember,
    /// The membership has views and leaders only.
    #[error("the group was made without multicast, or joined so: see Node::join_multicast")]
    Plain,
    /// The message is larger than 64 MiB.
    #[error("a message of {size} bytes exceeds the limit of 64 MiB")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// Others have not taken yet what was sent before.
    #[error("too much waits for others; try again later")]
    Full,
}

/// What the application of a member and the bulk thread exchange.
pub(crate) struct Mailbox {
    pub(crate) group: GroupName,
    /// The members keep a common state.
    pub(crate) state: bool,
    bulk: Bulk,
    outgoing: Mutex<Outgoing>,
    /// There is room for senders again, or an end of sending.
    room: Notify,
    incoming: Mutex<Incoming>,
    arrived: Notify,
    /// The bulk thread was told to look here.
    called: AtomicBool,
    /// The application may lead.
    ready: AtomicBool,
}

#[derive(Default)]
struct Outgoing {
    queue: VecDeque<(Class, Bytes)>,
    bytes: usize,
    /// Pieces of state for others.
    states: VecDeque<(NodeId, u64, Bytes, bool)>,
    /// Requests for it that are dealt with, to the end or not. Bounded by those that were told.
    given_up: Vec<(NodeId, u64)>,
    /// Who waits until everything was delivered that may be known elsewhere, and whether also for the day when that can be
    /// known.
    fences: Vec<(oneshot::Sender<bool>, bool)>,
    /// The application's state is to be the group's.
    keep: bool,
    /// Why nothing can be sent.
    refused: Option<SendError>,
    /// Somebody waits until everything sent is everywhere.
    drain: bool,
    /// How many messages were sent, and how many of them are everywhere as far as is known.
    sent: u64,
    everywhere: u64,
}

#[derive(Default)]
struct Incoming {
    queue: VecDeque<Delivered>,
    bytes: usize,
    /// Nothing comes any more.
    ended: bool,
    /// Nobody takes anything any more.
    abandoned: bool,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Mailbox {
    pub(crate) fn new(group: GroupName, state: bool, ready: bool, bulk: Bulk) -> Arc<Self> {
        Arc::new(Self {
            group,
            state,
            bulk,
            outgoing: Mutex::default(),
            room: Notify::new(),
            incoming: Mutex::default(),
            arrived: Notify::new(),
            called: AtomicBool::new(false),
            ready: AtomicBool::new(ready),
        })
    }

    fn call(self: &Arc<Self>) {
        if !self.called.swap(true, Ordering::AcqRel) {
            self.bulk.ready(Arc::clone(self));
        }
    }

    // ---- for applications -------------------------------------------------------------------------------------------

    pub(crate) async fn send(self: &Arc<Self>, class: Class, payload: Bytes) -> Result<(), SendError> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_send(class, payload.clone()) {
                Err(SendError::Full) => room.await,
                outcome => return outcome,
            }
        }
    }

    pub(crate) fn try_send(self: &Arc<Self>, class: Class, payload: Bytes) -> Result<(), SendError> {
        let size = payload.len();
        if size > LARGEST {
            return Err(SendError::TooLarge { size });
        }
        {
            let mut outgoing = lock(&self.outgoing);
            if let Some(refused) = outgoing.refused {
                return Err(refused);
            }
            if outgoing.bytes > 0 && outgoing.bytes + size > WAITING {
                return Err(SendError::Full);
            }
            outgoing.bytes += size + COST;
            outgoing.sent += 1;
            outgoing.queue.push_back((class, payload));
        }
        self.call();
        Ok(())
    }

    /// Nothing more is given of a state.
    fn give_up(self: &Arc<Self>, to: NodeId, id: u64) {
        {
            let mut outgoing = lock(&self.outgoing);
            if outgoing.refused.is_some() {
                return;
            }
            outgoing.given_up.push((to, id));
        }
        self.call();
    }

    /// Gives a piece of state.
    async fn give(self: &Arc<Self>, to: NodeId, id: u64, piece: Bytes, last: bool) -> Result<(), SendError> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut outgoing = lock(&self.outgoing);
                if let Some(refused) = outgoing.refused {
                    return Err(refused);
                }
                if outgoing.states.is_empty() {
                    outgoing.states.push_back((to, id, piece, last));
                    drop(outgoing);
                    self.call();
                    return Ok(());
                }
            }
            room.await;
        }
    }

    /// Waits until everything is delivered that any other member may have promised to anybody by now. False if that cannot
    /// be known: the node has no lease, or not the group's state.
    pub(crate) async fn fence(self: &Arc<Self>) -> bool {
        self.ask_fence(false).await.unwrap_or(false)
    }

    /// As [`fence`](Mailbox::fence), but waits also until it can be known. False if it never can: the node is no member any
    /// more, or nobody takes what is delivered.
    pub(crate) async fn until_fence(self: &Arc<Self>) -> bool {
        loop {
            match self.ask_fence(true).await {
                Some(true) => return true,
                Some(false) => {} // The incarnation ended, or the view: the next one is asked.
                None => return false,
            }
        }
    }

    /// Nothing is sent or delivered any more.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.outgoing).refused == Some(SendError::NotMember)
    }

    /// `None` if nothing can be sent any more, or nobody takes anything: who waits for that drops what it was given.
    async fn ask_fence(self: &Arc<Self>, waits: bool) -> Option<bool> {
        let (done, passed) = oneshot::channel();
        if lock(&self.incoming).abandoned {
            return None;
        }
        {
            let mut outgoing = lock(&self.outgoing);
            if outgoing.refused == Some(SendError::NotMember) {
                return None;
            }
            outgoing.fences.push((done, waits));
        }
        self.call();
        Some(passed.await.unwrap_or(false))
    }

    pub(crate) fn keep_state(self: &Arc<Self>) {
        lock(&self.outgoing).keep = true;
        self.call();
    }

    /// Whether the application may lead: until then no view is reported as installed.
    pub(crate) fn set_ready(self: &Arc<Self>, ready: bool) {
        if self.ready.swap(ready, Ordering::AcqRel) != ready {
            self.call();
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Waits until all members hold everything that was sent, or nothing can be sent any more, or the time is over.
    pub(crate) async fn drained(self: &Arc<Self>, until: tokio::time::Instant) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut outgoing = lock(&self.outgoing);
                // Mostly nothing is on its way, and the bulk thread need not be asked.
                if outgoing.refused.is_some() || outgoing.everywhere == outgoing.sent {
                    return;
                }
                if !std::mem::replace(&mut outgoing.drain, true) {
                    drop(outgoing);
                    self.call();
                }
            }
            if tokio::time::timeout_at(until, room).await.is_err() {
                return;
            }
            if !lock(&self.outgoing).drain {
                return;
            }
        }
    }

    // ---- for the bulk thread ----------------------------------------------------------------------------------------

    /// The bulk thread looks: whoever calls from now on calls again.
    pub(crate) fn heard(&self) {
        self.called.store(false, Ordering::Release);
    }

    /// Takes the next piece of state, unless too much of that waits for its receiver.
    pub(crate) fn take_state(&self, unsent_to: impl Fn(NodeId) -> u64) -> Option<(NodeId, u64, Bytes, bool)> {
        let mut outgoing = lock(&self.outgoing);
        let (to, ..) = outgoing.states.front()?;
        if unsent_to(*to) > WAITING as u64 { None } else { outgoing.states.pop_front() }
    }

    /// Takes the requests for state for which nothing more is given.
    pub(crate) fn take_given_up(&self) -> Vec<(NodeId, u64)> {
        let mut outgoing = lock(&self.outgoing);
        // The last piece may still wait.
        if outgoing.states.is_empty() { std::mem::take(&mut outgoing.given_up) } else { Vec::new() }
    }

    /// Takes who asks for a fence (and waits until there can be one), and whether the application's state is to be the
    /// group's.
    pub(crate) fn take_wishes(&self) -> (Vec<(Fence, bool)>, bool) {
        let mut outgoing = lock(&self.outgoing);
        let keep = std::mem::take(&mut outgoing.keep);
        let fences = std::mem::take(&mut outgoing.fences);
        let fence = |done| Fence(Arc::new(Mutex::new(Some(done))));
        (fences.into_iter().map(|(done, waits)| (fence(done), waits)).collect(), keep)
    }

    /// Takes the next message to be sent.
    pub(crate) fn take(&self) -> Option<(Class, Bytes)> {
        let mut outgoing = lock(&self.outgoing);
        let next = outgoing.queue.pop_front()?;
        outgoing.bytes -= next.1.len() + COST;
        Some(next)
    }

    /// Takes everything that waits to be sent, if it is no more than `limit` bytes.
    pub(crate) fn take_all(&self, limit: u64, into: &mut VecDeque<(Class, Bytes)>) -> bool {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.bytes as u64 > limit {
            return false;
        }
        outgoing.bytes = 0;
        if into.is_empty() {
            std::mem::swap(&mut outgoing.queue, into);
        } else {
            into.append(&mut outgoing.queue);
        }
        true
    }

    /// Somebody may be waiting for room.
    pub(crate) fn has_room(&self) {
        self.room.notify_waiters();
    }

    /// Everything sent is everywhere: whoever waits for that is told.
    pub(crate) fn is_drained(&self) {
        let mut outgoing = lock(&self.outgoing);
        if !outgoing.queue.is_empty() {
            return;
        }
        outgoing.everywhere = outgoing.sent;
        if std::mem::take(&mut outgoing.drain) {
            drop(outgoing);
            self.room.notify_waiters();
        }
    }

    /// From now on nothing can be sent, or (with `None`) it can.
    pub(crate) fn refuse(&self, why: Option<SendError>) {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.refused != Some(SendError::NotMember) && outgoing.refused != why {
            outgoing.refused = why;
            if why == Some(SendError::NotMember) {
                outgoing.fences.clear();
            }
            if why.is_some() {
                outgoing.states.clear();
                outgoing.given_up.clear();
                outgoing.queue.clear();
                outgoing.bytes = 0;
            }
            drop(outgoing);
            self.room.notify_waiters();
        }
    }

    /// Hands over what is delivered. True if no more should come until that is taken.
    pub(crate) fn deliver(&self, batch: &mut Vec<Delivered>) -> bool {
        let mut incoming = lock(&self.incoming);
        if incoming.abandoned || incoming.ended {
            batch.clear();
            return false;
        }
        for what in batch.drain(..) {
            if incoming.bytes > WAITING
                && what.is_plain_view()
                && let Some(last) = incoming.queue.back_mut().filter(|last| last.is_plain_view())
            {
                *last = what;
                continue;
            }
            incoming.bytes += what.cost();
            incoming.queue.push_back(what);
        }
        let full = incoming.bytes > WAITING;
        drop(incoming);
        self.arrived.notify_one();
        full
    }

    /// Has too much been delivered that is not taken yet?
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.incoming).bytes > WAITING
    }

    /// Nothing comes any more, and nothing can be sent.
    pub(crate) fn end(&self) {
        self.refuse(Some(SendError::NotMember));
        lock(&self.incoming).ended = true;
        self.arrived.notify_one();
    }
}

/// A mailbox on the way to the control thread. Where that has ended before, nothing is sent or delivered by it any more.
pub(crate) struct Posted(Option<Arc<Mailbox>>);

impl Posted {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self(Some(mailbox))
    }

    pub(crate) fn arrives(mut self) -> Option<Arc<Mailbox>> {
        self.0.take()
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if let Some(mailbox) = &self.0 {
            mailbox.end();
        }
    }
}

impl Delivered {
    /// A view with which nobody came along. Two in a row are of a group without messages, in which nothing waits for who takes
    /// nothing: where too much waits already, the later one takes the place of the other.
    fn is_plain_view(&self) -> bool {
        matches!(self, Self::View { came_along, .. } if came_along.is_empty())
    }

    fn cost(&self) -> usize {
        match self {
            Self::Message(message) => message.payload.len() + COST,
            Self::StateReceived(pieces) => pieces.iter().map(Bytes::len).sum::<usize>() + COST,
            _ => COST,
        }
    }
}

/// What a member is told: its views, and the messages in them. Whoever has it must take what comes: where more than some
/// MiB wait, the other members wait, too, and after a while the group goes on without this member. (In a group without messages
/// nobody waits, and views are left out that are overtaken.)
///
/// Dropping it does no harm: from then on nothing is kept for it.
pub struct Deliveries {
    mailbox: Arc<Mailbox>,
    taken: VecDeque<Delivered>,
}

impl Deliveries {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, taken: VecDeque::new() }
    }

    /// Waits for what is delivered next; `None` once the node has left the group or stopped, and everything was taken.
    ///
    /// Cancel-safe: a dropped future has taken nothing. Works in any async runtime.
    pub async fn next(&mut self) -> Option<Delivered> {
        loop {
            if let Some(next) = self.try_next() {
                return Some(next);
            }
            if self.is_over() {
                return None;
            }
            self.mailbox.arrived.notified().await;
        }
    }

    /// Takes what is delivered next, if there is something already.
    pub fn try_next(&mut self) -> Option<Delivered> {
        if self.taken.is_empty() {
            let was_full = {
                let mut incoming = lock(&self.mailbox.incoming);
                std::mem::swap(&mut incoming.queue, &mut self.taken);
                std::mem::take(&mut incoming.bytes) > WAITING
            };
            if was_full {
                self.mailbox.call();
            }
        }
        loop {
            match self.taken.pop_front()? {
                // Who takes the next thing has dealt with everything before it.
                Delivered::Fence(fence) => fence.pass(true),
                other => return Some(other),
            }
        }
    }

    fn is_over(&self) -> bool {
        let incoming = lock(&self.mailbox.incoming);
        incoming.ended && incoming.queue.is_empty()
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        {
            let mut incoming = lock(&self.mailbox.incoming);
            incoming.abandoned = true;
            incoming.queue = VecDeque::new();
            incoming.bytes = 0;
        }
        self.mailbox.call();
    }
}

#[cfg(test)]
mod tests {
    use membership_types::{Lineage, Token};

    use super::*;

    fn view(group: &GroupName, id: u64, came_along: Vec<NodeId>) -> Delivered {
        let (group, id) = (group.clone(), ViewId::new(id));
        let (lineage, token) = (Lineage::new(1, 1), Token::new(id));
        let view = View { group, lineage, id, prev: ViewId::NONE, token, members: Vec::new() };
        Delivered::View { view: Arc::new(view), came_along }
    }

    #[test]
    fn who_takes_no_views_of_a_group_without_messages_is_kept_a_bounded_number_and_the_last() {
        const MOST: usize = WAITING / COST + 1;
        let group = GroupName::new("g").expect("a name");
        for (came_along, kept) in [(Vec::new(), MOST), (vec![NodeId::new(1, 1)], 2 * MOST)] {
            let mailbox = Mailbox::new(group.clone(), false, true, Bulk::default());
            let mut deliveries = Deliveries::new(Arc::clone(&mailbox));
            for id in 1..=2 * MOST as u64 {
                mailbox.deliver(&mut vec![view(&group, id, came_along.clone())]);
            }
            let mut ids = Vec::new();
            while let Some(Delivered::View { view, .. }) = deliveries.try_next() {
                ids.push(view.id.get());
            }
            assert_eq!(ids.len(), kept, "{came_along:?}");
            assert!(ids.is_sorted() && ids.last() == Some(&(2 * MOST as u64)));
        }
    }
}
