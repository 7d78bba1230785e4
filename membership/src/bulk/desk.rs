//! The way to the bulk thread and back: what waits for it, and what it has told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use membership_proto::Kind;
use membership_sync::NodeLease;
use membership_types::{GroupName, NodeId, ViewId};
use tokio::{sync::Notify, time::timeout};

use super::{FAREWELL, VIEWS};
use crate::{
    channel::Mailbox,
    event::View,
    handshake::{Hello, Met},
    node::lock,
};

/// How many connections that were made to us wait for the thread. (A process may have few files open in a test.)
const ACCEPTED: usize = if cfg!(test) { 4 } else { 1024 };

/// The way to the bulk thread and back. A cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Bulk(pub(super) Arc<Desk>);

#[derive(Default)]
pub(super) struct Desk {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) wake: Notify,
    pub(super) told: Mutex<Told>,
    pub(super) tell: Notify,
    pub(super) finished: Notify,
    /// A group waits for the node to have a lease again.
    pub(super) held: AtomicBool,
}

/// What waits for the bulk thread. Bounded by the groups and the memberships of the node.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) begin: Option<(Hello, NodeLease)>,
    pub(super) addresses: Option<BTreeMap<NodeId, SocketAddr>>,
    pub(super) groups: BTreeMap<GroupName, News>,
    pub(super) ready: Vec<Arc<Mailbox>>,
    pub(super) accepted: Vec<Accepted>,
    pub(super) again: bool,
    pub(super) stop: bool,
    /// The thread has had something to do with groups.
    busy: bool,
}

/// A connection that was made to us, after the introduction, and what came in on it since.
pub(super) struct Accepted {
    pub(super) stream: std::net::TcpStream,
    pub(super) met: Met,
}

/// What happened to a group, in this order.
#[derive(Default)]
pub(super) struct News {
    /// The node is no member any more: did it ask for that?
    pub(super) out: Option<bool>,
    /// A membership begins.
    pub(super) open: Option<Arc<Mailbox>>,
    pub(super) views: VecDeque<(Arc<View>, Kind)>,
}

/// What waits for the control thread. Bounded by the groups.
#[derive(Default)]
pub(crate) struct Told {
    /// The views that are installed, each by this incarnation.
    pub(crate) installed: BTreeMap<GroupName, (NodeId, ViewId)>,
    /// Members who stay behind.
    pub(crate) behind: BTreeSet<(GroupName, NodeId)>,
}

impl Bulk {
    // ---- for the control thread -------------------------------------------------------------------------------------

    /// An incarnation begins; whatever was to be told about the last one is over.
    pub(crate) fn begin(&self, me: Hello, lease: NodeLease) {
        let mut inbox = lock(&self.0.inbox);
        inbox.groups.retain(|_, news| news.open.is_some() || news.out == Some(true));
        for news in inbox.groups.values_mut() {
            news.views.clear();
        }
        inbox.accepted.clear();
        inbox.begin = Some((Hello { bulk: true, ..me }, lease));
        *lock(&self.0.told) = Told::default();
        self.0.wake.notify_one();
    }

    /// Where the nodes of the cluster are reached.
    pub(crate) fn set_addresses(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        let mut inbox = lock(&self.0.inbox);
        inbox.addresses = Some(addresses);
        // Who multicasts nothing needs none: they wait until that begins.
        if inbox.busy {
            self.0.wake.notify_one();
        }
    }

    /// A membership begins, whose application wants the group's messages.
    pub(crate) fn open(&self, group: GroupName, mailbox: Arc<Mailbox>) {
        let mut inbox = lock(&self.0.inbox);
        inbox.groups.entry(group).or_default().open = Some(mailbox);
        self.0.wake.notify_one();
    }

    /// A view of a group in which this node is.
    pub(crate) fn view(&self, view: Arc<View>, kind: Kind) {
        let mut inbox = lock(&self.0.inbox);
        let views = &mut inbox.groups.entry(view.group.clone()).or_default().views;
        if views.len() == VIEWS {
            views.pop_front(); // Overtaken.
        }
        views.push_back((view, kind));
        self.0.wake.notify_one();
    }

    /// The node is no member of the group any more, or begins as a new one.
    pub(crate) fn out(&self, group: GroupName, left: bool) {
        let mut inbox = lock(&self.0.inbox);
        let news = inbox.groups.entry(group).or_default();
        news.views.clear();
        news.out = Some(left || news.out == Some(true));
        self.0.wake.notify_one();
    }

    /// The node's lease goes on.
    pub(crate) fn lease_extended(&self) {
        if self.0.held.swap(false, Ordering::AcqRel) {
            lock(&self.0.inbox).again = true;
            self.0.wake.notify_one();
        }
    }

    /// A connection was made to us for this thread. False if too many wait already: it is closed.
    pub(crate) fn accept(&self, stream: std::net::TcpStream, met: Met) -> bool {
        let mut inbox = lock(&self.0.inbox);
        let fits = inbox.accepted.len() < ACCEPTED;
        if fits {
            inbox.accepted.push(Accepted { stream, met });
            self.0.wake.notify_one();
        }
        fits
    }

    /// Ends the thread, and with it all that it delivers.
    pub(crate) fn end(&self) {
        lock(&self.0.inbox).stop = true;
        self.0.wake.notify_one();
    }

    /// As [`end`](Bulk::end), and waits a moment until what waits has been written.
    pub(crate) async fn stop(&self) {
        self.end();
        if timeout(2 * FAREWELL, self.0.finished.notified()).await.is_err() {
            tracing::debug!("the bulk thread is cut off");
        }
    }

    /// For the bulk thread: all that waits.
    pub(super) fn take(&self) -> Inbox {
        let mut inbox = lock(&self.0.inbox);
        let taken = std::mem::take(&mut *inbox);
        let groups = !taken.groups.is_empty() || !taken.ready.is_empty();
        inbox.busy = taken.busy || groups || !taken.accepted.is_empty();
        taken
    }

    /// Waits until there is something to be [taken](Bulk::take_told). Cancel-safe.
    pub(crate) async fn tells(&self) {
        self.0.tell.notified().await;
    }

    pub(crate) fn take_told(&self) -> Told {
        std::mem::take(&mut lock(&self.0.told))
    }

    // ---- for applications -------------------------------------------------------------------------------------------

    /// A mailbox wants to be looked at.
    pub(crate) fn ready(&self, mailbox: Arc<Mailbox>) {
        lock(&self.0.inbox).ready.push(mailbox);
        self.0.wake.notify_one();
    }
}
