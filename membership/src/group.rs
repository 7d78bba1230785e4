//! What a node is to a group: a member that may lead, or an observer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use membership_multicast::Class;
use membership_proto::WhyNot;
use membership_types::{
    GroupName, Lineage, Token,
    trace::{self, Event as TraceEvent, Group},
};
use pubsub::{Delivery, Topics, TryNextError};
use tokio::sync::oneshot;

use crate::{
    channel::{Mailbox, SendError},
    clock,
    error::NotMember,
    event::{Event, Events, Lead, Said, Topic, View, Views, What},
    node::{Command, Node},
};

/// How long leaving waits for others to hold what was multicast, in however many groups.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);

/// The node's membership in one group. Clones are the same membership.
///
/// It outlives incarnations of the node: one that was removed joins the group again, as its junior. When the last handle
/// is dropped the node leaves the group; [`Membership::leave`] waits for that.
#[derive(Clone)]
pub struct Membership {
    pub(crate) inner: Arc<MembershipInner>,
}

pub(crate) struct MembershipInner {
    node: Node,
    group: GroupName,
    pub(crate) handle: u64,
    /// It was told to leave, and not to join since.
    pub(crate) left: AtomicBool,
    mailbox: Option<Arc<Mailbox>>,
}

impl MembershipInner {
    pub(crate) fn new(node: Node, group: GroupName, handle: u64, mailbox: Option<Arc<Mailbox>>) -> Arc<Self> {
        Arc::new(Self { node, group, handle, left: AtomicBool::new(false), mailbox })
    }

    /// Waits until all members hold what was multicast, but no longer than that.
    pub(crate) async fn drained(&self, until: tokio::time::Instant) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.drained(until).await;
        }
    }
}

impl MembershipInner {
    pub(crate) fn try_multicast(&self, class: Class, payload: Bytes) -> Result<(), SendError> {
        self.mailbox.as_ref().ok_or(SendError::Plain)?.try_send(class, payload)
    }

    /// Whether this member may lead.
    pub(crate) fn set_ready(&self, ready: bool) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.set_ready(ready);
        }
    }
}

impl Drop for MembershipInner {
    fn drop(&mut self) {
        self.node.inner.handle_dropped(&self.group, self.handle);
    }
}

impl Membership {
    /// The group.
    pub fn group(&self) -> &GroupName {
        &self.inner.group
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// The last view that is known, while the node is a member. Made for the call.
    pub fn view(&self) -> Option<Arc<View>> {
        self.inner.node.inner.shared.view_of(&self.inner.group, |standing| standing.member)
    }

    /// The group's events, and the node's own, in the one order in which they happened: the current state first, then
    /// every change.
    ///
    /// After losing its lease a leader finds [`What::NotLeading`] before any other event of the group.
    pub fn events(&self) -> Events {
        self.inner.node.inner.shared.events(Topics::of([Topic::Node, Topic::Group(self.inner.group.clone())]))
    }

    /// The group's views: the current one first, then every change.
    pub fn views(&self) -> Views {
        Views::new(self.events())
    }

    /// Waits until this node leads the group, and returns the [`Leadership`] to act under.
    ///
    /// Rank 0 leads; rank is order of joining. Cancel-safe: dropping the future gives nothing up.
    ///
    /// # Errors
    /// [`NotMember`] once the node left the group or stopped. A removal is no error: the node rejoins (unless it was told
    /// not to), and may lead later.
    pub async fn until_leader(&self) -> Result<Leadership, NotMember> {
        let mut events = self.inner.node.inner.shared.follow(&self.inner.group).ok_or(NotMember::Stopped)?;
        loop {
            if self.inner.left.load(Ordering::Acquire) {
                return Err(NotMember::Left);
            }
            let said = match events.next().await {
                None => return Err(NotMember::Stopped),
                Some(Delivery::Gap { .. } | Delivery::Current { topic: Topic::Node, .. }) => continue,
                Some(Delivery::Change { topic: Topic::Node, .. }) => continue,
                Some(Delivery::Current { event, .. } | Delivery::Change { event, .. }) => event,
            };
            if let Some(lead) = said.lead()
                && lead.reign().cell.is_current(lead.reign().token.get(), clock::now_ns)
            {
                return Ok(Leadership { membership: self.clone(), lead: lead.clone() });
            }
        }
    }

    /// Gives up the first rank: the node stops leading at once, goes to the last rank, and goes on as a member. Returns
    /// when a view says so, or when the node has stopped.
    ///
    /// Cancel-safe: once it is asked for, which is at once unless hundreds of commands wait, a dropped future steps down all the
    /// same.
    pub async fn step_down(&self) {
        let (done, told) = oneshot::channel();
        let group = self.inner.group.clone();
        // Where the node has stopped, the command comes back: dropped here, so that nobody waits for it.
        drop(self.inner.node.inner.commands.send(Command::StepDown { group, done }).await);
        let _told = told.await;
    }

    /// Multicasts a message to all members, this one among them: it is delivered in the view in which it is sent, to all who
    /// go on from there together or to none of them. Waits while others have not taken what was sent before.
    ///
    /// Returns once the message is accepted, not when it is delivered: take it from the [`Deliveries`](crate::Deliveries) for
    /// that. A message that was accepted is lost only with this incarnation of the node, or where it has to leave the group for
    /// a while (`Out` without `left`). Before the first view, and
    /// while a view closes, it waits for the next one. Cancel-safe: a dropped future has sent all or nothing.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent.
    pub async fn multicast(&self, class: Class, payload: impl Into<Bytes>) -> Result<(), SendError> {
        self.mailbox()?.send(class, payload.into()).await
    }

    /// As [`multicast`](Membership::multicast), but does not wait.
    ///
    /// # Errors
    /// [`SendError`], [`SendError::Full`] among them; nothing was sent.
    pub fn try_multicast(&self, class: Class, payload: impl Into<Bytes>) -> Result<(), SendError> {
        self.mailbox()?.try_send(class, payload.into())
    }

    /// After [`Delivered::StateLost`](crate::Delivered::StateLost), at the group's first member: what this application holds
    /// is the group's state from now on, and the others get it. Nothing happens if somebody turns out to have the state.
    pub fn keep_state(&self) {
        if let Some(mailbox) = &self.inner.mailbox {
            mailbox.keep_state();
        }
    }

    /// Waits until everything is delivered to this member that anybody can have been promised by now, in any member's name:
    /// who then asks what this member's application has made of its messages gets an answer that no promise contradicts
    /// (a linearizable read, if promises rest on messages of class safe). False if that cannot be known, because the node has
    /// no lease, is no member, or has not the group's state.
    ///
    /// It is over once the reader of the [`Deliveries`](crate::Deliveries) asks for what comes next. Cancel-safe.
    pub async fn caught_up(&self) -> bool {
        match &self.inner.mailbox {
            Some(mailbox) => mailbox.fence().await,
            None => false,
        }
    }

    /// As [`caught_up`](Membership::caught_up), but waits until it can be known: for a lease, a view, and the group's state.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`NotMember`] once the node has left the group or stopped, where the group was joined without its messages, and where the
    /// [`Deliveries`](crate::Deliveries) were dropped.
    pub async fn until_caught_up(&self) -> Result<(), NotMember> {
        let Some(mailbox) = &self.inner.mailbox else { return Err(NotMember::Left) };
        if mailbox.until_fence().await {
            return Ok(());
        }
        Err(if self.inner.left.load(Ordering::Acquire) {
            NotMember::Left
        } else if mailbox.has_ended() {
            NotMember::Stopped
        } else {
            NotMember::Unread
        })
    }

    /// Was the group joined for its messages, too? See [`Node::join_multicast`].
    pub fn is_multicast(&self) -> bool {
        self.inner.mailbox.is_some()
    }

    fn mailbox(&self) -> Result<&Arc<Mailbox>, SendError> {
        self.inner.mailbox.as_ref().ok_or(SendError::Plain)
    }

    /// Leaves the group: the node stops leading it at once. What was multicast before is waited for first, for a second at
    /// most. Returns when a view without the node is known, or when the
    /// node has stopped.
    ///
    /// A node that is not in the group's view yet is admitted first: bound the wait where that may never happen.
    /// Cancel-safe: a dropped future leaves all the same, and waits no longer for what was multicast. To be a member again,
    /// [`Node::join`].
    pub async fn leave(&self) {
        self.inner.left.store(true, Ordering::Release);
        let unasked = Unasked(&self.inner);
        self.inner.drained(tokio::time::Instant::now() + DRAIN).await;
        if let Some(mailbox) = &self.inner.mailbox {
            mailbox.refuse(Some(SendError::NotMember));
        }
        let (done, told) = oneshot::channel();
        let group = self.inner.group.clone();
        // Where the node has stopped, the command comes back: dropped here, so that nobody waits for it.
        drop(self.inner.node.inner.commands.send(Command::Leave { group, done }).await);
        std::mem::forget(unasked);
        let _told = told.await;
    }
}

/// Leaving that was given up before it was asked for: it is asked for as if the last handle were gone.
struct Unasked<'a>(&'a MembershipInner);

impl Drop for Unasked<'_> {
    fn drop(&mut self) {
        self.0.node.inner.handle_dropped(&self.0.group, self.0.handle);
    }
}

/// The right to act for a group, as long as it lasts. Ask [`Leadership::is_current`] before every effect, and let the
/// [`token`](Leadership::token) go with it. It keeps the membership: who drops all other handles stays a member.
#[derive(Clone)]
pub struct Leadership {
    membership: Membership,
    lead: Lead,
}

/// How a leadership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The token that it had.
    pub token: Token,
    /// Why it ended; `None` where nobody can tell: the node has stopped, or has left the group before somebody asked.
    pub why: Option<WhyNot>,
    /// `CLOCK_BOOTTIME` in nanoseconds after which nothing could be done under the token, where that is known.
    pub until_ns: Option<u64>,
}

impl Leadership {
    /// Does this node lead the group, at this instant, under this leadership's token?
    ///
    /// A read of the local clock and of three words of memory, no I/O: cheap enough for every request. Between the
    /// answer and the act a pause is possible; only the token, checked by whoever carries the effect out, survives it.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.lead.reign().cell.is_current(self.lead.reign().token.get(), clock::now_ns)
    }

    /// Until when it lasts at least, in nanoseconds of `CLOCK_BOOTTIME`, while it is current: for others that act on its
    /// behalf, and must end by themselves if this process is stopped. Ask again and again: every heartbeat moves it.
    pub fn until_ns(&self) -> Option<u64> {
        self.lead.reign().cell.current_until(self.lead.reign().token.get(), clock::now_ns)
    }

    /// The fencing token, while the leadership is current.
    #[inline]
    pub fn token(&self) -> Option<Token> {
        self.is_current().then_some(self.lead.reign().token)
    }

    /// As [`token`](Leadership::token), for an effect that is carried out now: where the node writes a trace it says that the
    /// application acts, so that `phalanx check` can tell whether anybody else did at that time.
    pub fn act(&self, what: &'static str) -> Option<Token> {
        let Some(tracer) = self.membership.inner.node.inner.shared.tracer.get() else { return self.token() };
        // Nobody else records anything meanwhile, so what began before this is recorded before it, and what ends this after it.
        let mut pen = tracer.pen();
        let token = self.token()?;
        pen.record_own(|me| {
            let (g, lin) = (Group::from(self.group()), Some(trace::lin(self.lineage())));
            Some(TraceEvent::LeadAct { p: me.into(), g, lin, tok: token.into(), op: what.into() })
        });
        Some(token)
    }

    /// The lineage, which goes with every token: resources refuse an equal token of another lineage.
    pub fn lineage(&self) -> Lineage {
        self.lead.reign().lineage
    }

    /// The group.
    pub fn group(&self) -> &GroupName {
        self.membership.group()
    }

    /// Waits until the leadership is lost.
    ///
    /// For work that must stop by itself; it is told by the control thread, a moment later than
    /// [`is_current`](Leadership::is_current) becomes false. A lapse of the lease ends a leadership, even where the reign
    /// goes on under the same token: ask [`Membership::until_leader`] again. Cancel-safe.
    pub async fn lost(&self) -> Lost {
        let token = self.lead.reign().token;
        let unknown = Lost { token, why: None, until_ns: None };
        let inner = &self.membership.inner;
        let Some(mut events) = inner.node.inner.shared.follow(&inner.group) else { return unknown };
        let mut is_known = false;
        loop {
            let next = match events.try_next() {
                Ok(next) => Some(next),
                // All that is current was told, and the group is not part of it: it was left, and is forgotten by now.
                Err(TryNextError::Empty) if !is_known => return unknown,
                Err(_) => events.next().await,
            };
            let said = match next {
                None => return unknown,
                Some(Delivery::Gap { .. }) => {
                    is_known = false;
                    continue;
                }
                Some(Delivery::Current { topic: Topic::Node, .. }) => continue,
                Some(Delivery::Change { topic: Topic::Node, .. }) => continue,
                Some(Delivery::Current { event, .. } | Delivery::Change { event, .. }) => event,
            };
            is_known = true;
            if !said.lead().is_some_and(|lead| lead.is_same(&self.lead)) {
                return self.how(&said).unwrap_or(unknown);
            }
        }
    }

    fn how(&self, said: &Said) -> Option<Lost> {
        let ours = self.lead.reign().token;
        let ended = |event: &Event| match event.what {
            What::NotLeading { token, why, until_ns, .. } if token == ours => {
                Some(Lost { token, why: Some(why), until_ns: Some(until_ns) })
            }
            _ => None,
        };
        let earlier = || {
            let end = said.standing()?.last_end().filter(|end| end.token == ours)?;
            Some(Lost { token: ours, why: Some(end.why), until_ns: Some(end.until_ns) })
        };
        said.event.as_deref().and_then(ended).or_else(earlier)
    }
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leadership")
            .field("group", self.group())
            .field("lead", &self.lead)
            .finish_non_exhaustive()
    }
}

/// Follows a group's views without being in it. Clones are the same observer; when the last is dropped, observing ends.
///
/// What an observer knows is a hint: by the time it is read, the group may have a newer view.
#[derive(Clone)]
pub struct Observer {
    pub(crate) inner: Arc<ObserverInner>,
}

pub(crate) struct ObserverInner {
    node: Node,
    group: GroupName,
    pub(crate) handle: u64,
}

impl ObserverInner {
    pub(crate) fn new(node: Node, group: GroupName, handle: u64) -> Arc<Self> {
        Arc::new(Self { node, group, handle })
    }
}

impl Drop for ObserverInner {
    fn drop(&mut self) {
        self.node.inner.handle_dropped(&self.group, self.handle);
    }
}

impl Observer {
    /// The group.
    pub fn group(&self) -> &GroupName {
        &self.inner.group
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// The last view that is known, until the node has stopped. Made for the call.
    pub fn view(&self) -> Option<Arc<View>> {
        self.inner.node.inner.shared.view_of(&self.inner.group, |_| true)
    }

    /// The group's views: the current one first, then every change. A group without members has a view with the id
    /// [`ViewId::NONE`](membership_types::ViewId::NONE), or an empty one.
    pub fn views(&self) -> Views {
        Views::new(self.events())
    }

    /// The group's events, and the node's own, in the one order in which they happened: the current state first.
    pub fn events(&self) -> Events {
        self.inner.node.inner.shared.events(Topics::of([Topic::Node, Topic::Group(self.inner.group.clone())]))
    }
}
