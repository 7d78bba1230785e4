//! The node: what its owner asks of it, and what its handles and threads share. How it is configured: `node/builder.rs`.

mod builder;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use membership_proto::SharedView;
use membership_sync::Reader;
use membership_types::{GroupName, Lineage, LogIndex, NodeId, Weight};
use pubsub::Topics;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

pub use self::builder::NodeBuilder;
use crate::{
    admin::Extensions,
    bulk::Bulk,
    channel::{Deliveries, Mailbox, Posted},
    error::{GroupError, JoinError},
    event::{Events, Names, NodeBus, NodeSubscription, Said, Standing, Topic, View, What},
    group::{DRAIN, Membership, MembershipInner, Observer, ObserverInner},
    labels::Labels,
    metrics::Metrics,
    rendezvous::Registrar,
    replica,
    secret::{SecretError, Wallet},
    status::{GroupStatus, Status},
    trace::Tracer,
    watchdog::{Pats, Watchdog},
    witness::{Reached, Stores, Witness},
};

/// How many changes a reader of events may be behind before it gets a gap.
const BACKLOG: std::num::NonZeroUsize = std::num::NonZeroUsize::new(8192).expect("not zero");

/// A running node: the handle by which it is used. Clones are the same node.
///
/// When the last handle (this, [`Membership`]s and [`Observer`]s) is dropped, the node leaves the cluster and stops, as
/// long as the process lives for that. [`Node::leave`] waits for it.
///
/// # Examples
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// let node = membership::Node::builder().name("tower").start().await?;
/// node.joined().await?;
/// let group = node.join("atc", None).await?;
/// let leadership = group.until_leader().await?;
/// while leadership.is_current() {
///     // act, with leadership.token() on every effect
/// }
/// node.leave().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

/// What every handle keeps alive.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    /// The control thread sees the end of this queue when the last handle is gone.
    pub(crate) commands: mpsc::Sender<Command>,
    handles: Mutex<BTreeMap<GroupName, Handles>>,
    next_handle: AtomicU64,
}

#[derive(Default)]
struct Handles {
    member: Weak<MembershipInner>,
    observer: Weak<ObserverInner>,
}

/// What handles and the node's threads share.
pub(crate) struct Shared {
    pub(crate) cluster: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) data_dir: Option<PathBuf>,
    /// The witness, as it is configured, and how this node found it.
    pub(crate) witness_at: Option<Witness>,
    pub(crate) witness: Arc<Mutex<Reached>>,
    /// What this node keeps as a witness for others, if it has a data directory.
    pub(crate) stores: Option<Stores>,
    pub(crate) name: Arc<str>,
    pub(crate) join_timeout: Duration,
    pub(crate) labels: BTreeMap<String, String>,
    /// The founding rule, in words.
    pub(crate) bootstrap: String,
    /// For whom the guarantees hold: the cluster, or each lineage alone.
    pub(crate) guarantees: &'static str,
    /// If the node writes a trace; for what applications do.
    pub(crate) tracer: OnceLock<Tracer>,
    /// Gone once the node has stopped.
    pub(crate) bus: Mutex<Option<NodeBus>>,
    pub(crate) status: Reader<Status>,
    pub(crate) names: Names,
    pub(crate) labels_of_nodes: Labels,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) bulk: Bulk,
    /// What proves that this node belongs to the cluster.
    pub(crate) wallet: Wallet,
    pub(crate) extensions: Extensions,
    /// One for each client of the admin API that may follow the events.
    pub(crate) streams: Arc<Semaphore>,
    /// If the application is watched.
    pub(crate) pats: Option<Pats>,
    /// What this node keeps for others that look for their cluster, if it has an admin API.
    pub(crate) registrar: Arc<Mutex<Registrar>>,
    /// Handles that were dropped, for the control thread to notice.
    pub(crate) dropped: Mutex<Vec<(GroupName, u64)>>,
    pub(crate) wake: Notify,
    /// For the admin API, which keeps no node alive.
    pub(crate) commands: OnceLock<mpsc::WeakSender<Command>>,
    /// True once the control thread has finished.
    pub(crate) finished: watch::Sender<bool>,
}

/// What handles ask of the control thread.
pub(crate) enum Command {
    Join {
        group: GroupName,
        endpoint: Option<Box<str>>,
        handle: u64,
        mailbox: Option<Posted>,
    },
    Leave {
        group: GroupName,
        done: oneshot::Sender<()>,
    },
    StepDown {
        group: GroupName,
        done: oneshot::Sender<()>,
    },
    /// How the state of a group stands, that is kept on disk.
    State {
        group: GroupName,
        standing: replica::Standing,
    },
    /// An operator, who asks from this address, gives up this lineage, as it is written, for a new one. Answered with that.
    ForceNew {
        lineage: String,
        from: IpAddr,
        done: oneshot::Sender<Result<Lineage, String>>,
    },
    /// Which groups the log has, where this node keeps it.
    Groups {
        wanted: Wanting,
        done: oneshot::Sender<Option<Kept>>,
    },
    Observe {
        group: GroupName,
        handle: u64,
    },
    Stop,
}

/// Of which groups somebody wants to know.
pub(crate) enum Wanting {
    One(GroupName),
    /// Those after this one by name, at most so many.
    After(Option<GroupName>, usize),
}

/// Groups as of an index of the log.
pub(crate) struct Kept {
    pub(crate) index: LogIndex,
    pub(crate) views: Vec<SharedView>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole after every statement, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn subscribe(&self, topics: Topics<Topic>) -> Option<NodeSubscription> {
        lock(&self.bus).as_ref().map(|bus| bus.subscribe_within(BACKLOG, topics))
    }

    /// The node's own events and those of one group.
    pub(crate) fn follow(&self, group: &GroupName) -> Option<NodeSubscription> {
        self.subscribe(Topics::of([Topic::Node, Topic::Group(group.clone())]))
    }

    pub(crate) fn events(&self, topics: Topics<Topic>) -> Events {
        Events::new(self.subscribe(topics), self.names.clone())
    }

    /// The last view of a group that is known, if the node stands in the group as asked for.
    pub(crate) fn view_of(&self, group: &GroupName, is: impl Fn(&Standing) -> bool) -> Option<Arc<View>> {
        let bus = lock(&self.bus).clone()?;
        let said = bus.current(&Topic::Group(group.clone()))?;
        let view = said.standing().filter(|standing| is(standing))?.view.clone()?;
        Some(Arc::new(self.names.view(&view)))
    }

    pub(crate) fn full_status(&self) -> Arc<Status> {
        let bus = lock(&self.bus).clone();
        let group = |(topic, said): (&Topic, &Arc<Said>)| match topic {
            Topic::Group(group) => Some((group.clone(), Arc::clone(said))),
            Topic::Node => None,
        };
        // The bus is not held up by what is made of it.
        let all: Vec<_> = bus.map_or_else(Vec::new, |bus| bus.collect(group));
        let status = |(group, said): (GroupName, Arc<Said>)| Some((group, self.status_of(said.standing()?)));
        let groups: BTreeMap<_, _> = all.into_iter().filter_map(status).collect();
        Arc::new(Status { groups: Arc::new(groups), ..Status::clone(&self.status()) })
    }

    fn status_of(&self, standing: &Standing) -> GroupStatus {
        GroupStatus {
            view: standing.view.as_ref().map(|view| Arc::new(self.names.view(view))),
            member: standing.member,
            leading: standing.told_lead().map(|lead| lead.reign().token),
            state: standing.kept().map(|(kept, _)| kept.clone()),
        }
    }

    /// As of the last change of anything but groups, and without them.
    pub(crate) fn status(&self) -> Arc<Status> {
        let mut reader = self.status.clone();
        reader.load();
        Arc::clone(reader.cached())
    }
}

impl Inner {
    /// A membership or an observer has no handle any more.
    pub(crate) fn handle_dropped(&self, group: &GroupName, handle: u64) {
        let mut handles = lock(&self.handles);
        let unused = |h: &Handles| h.member.strong_count() == 0 && h.observer.strong_count() == 0;
        if handles.get(group).is_some_and(unused) {
            handles.remove(group);
        }
        drop(handles);
        lock(&self.shared.dropped).push((group.clone(), handle));
        self.shared.wake.notify_one();
    }
}

fn check_endpoint(endpoint: Option<&str>) -> Result<(), GroupError> {
    let size = endpoint.map_or(0, str::len);
    if size > Node::MAX_ENDPOINT { Err(GroupError::Endpoint { size }) } else { Ok(()) }
}

impl Node {
    /// The longest endpoint of a member, in bytes.
    pub const MAX_ENDPOINT: usize = 1024;

    /// A configuration with usual values: see [`NodeBuilder`].
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    pub(crate) fn new(shared: Arc<Shared>, commands: mpsc::Sender<Command>) -> Self {
        let handles = Mutex::default();
        Self { inner: Arc::new(Inner { shared, commands, handles, next_handle: AtomicU64::new(1) }) }
    }

    /// The id of the node's present incarnation.
    pub fn id(&self) -> NodeId {
        self.inner.shared.status().id
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.shared.name
    }

    /// Where the node listens.
    pub fn listen_addr(&self) -> SocketAddr {
        self.inner.shared.listen
    }

    /// The address by which others reach it.
    pub fn advertise_addr(&self) -> SocketAddr {
        self.inner.shared.advertise
    }

    /// The zone of a node of the present cluster view, if it has a label `zone` or `dc`; of both, it is `DC/ZONE`.
    pub fn zone_of(&self, node: NodeId) -> Option<Arc<str>> {
        self.inner.shared.labels_of_nodes.of(node).zone
    }

    /// How much of the load of its groups a node of the present cluster view takes beside others, by its label
    /// `weight`; 1 if it does not say. Those who send members requests choose by it; who leads does not depend on it.
    pub fn weight_of(&self, node: NodeId) -> Weight {
        self.inner.shared.labels_of_nodes.of(node).weight
    }

    /// Where the admin API listens, if there is one.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.inner.shared.admin
    }

    /// By which the application says that it lives, if [`NodeBuilder::watchdog`] asks for that; otherwise it does nothing. It
    /// does not keep the node.
    pub fn watchdog(&self) -> Watchdog {
        Watchdog(Arc::clone(&self.inner.shared))
    }

    /// What callers add to the admin API: routes and metrics.
    pub fn extensions(&self) -> &Extensions {
        &self.inner.shared.extensions
    }

    /// How things stand at this node.
    ///
    /// It is put together for the call: with very many groups, ask a [`Membership`] for its view instead.
    pub fn status(&self) -> Arc<Status> {
        self.inner.shared.full_status()
    }

    /// The node's own events, without those of groups: the current state first, then every change.
    pub fn events(&self) -> Events {
        self.inner.shared.events(Topic::Node.into())
    }

    /// The node's events and those of every group that it is in or observes, in the one order in which they happened.
    pub fn all_events(&self) -> Events {
        self.inner.shared.events(Topics::all())
    }

    /// Waits until the node is in a view, at most the configured join timeout from now on.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`JoinError`]; after a timeout the node goes on trying.
    pub async fn joined(&self) -> Result<(), JoinError> {
        self.wait_joined(self.inner.shared.join_timeout).await
    }

    /// As [`Node::joined`], with a timeout of its own. Needs a tokio runtime with timers.
    ///
    /// # Errors
    /// [`JoinError`]; after a timeout the node goes on trying.
    pub async fn wait_joined(&self, timeout: Duration) -> Result<(), JoinError> {
        let mut events = self.events();
        let mut why = None;
        let seen = async {
            loop {
                match events.next().await.map(|e| e.what) {
                    None => return Err(JoinError::Stopped),
                    Some(What::ClusterView(_)) => return Ok(()),
                    Some(What::Refused { why: reason }) => why = Some(reason),
                    Some(_) => {}
                }
            }
        };
        match tokio::time::timeout(timeout, seen).await {
            Ok(result) => result,
            Err(_) => Err(JoinError::Timeout { waited: timeout, why }),
        }
    }

    /// Makes the node a member of a group, with the endpoint where it serves. The membership outlives incarnations of
    /// the node. Returns at once; the first view comes when the cluster has agreed on it.
    ///
    /// Of one node there is at most one member in a group: joining again gives the same membership, with the new
    /// endpoint. Cancel-safe.
    ///
    /// # Errors
    /// [`GroupError`]; nothing was changed.
    pub async fn join(&self, group: &str, endpoint: Option<String>) -> Result<Membership, GroupError> {
        let group = GroupName::new(group)?;
        check_endpoint(endpoint.as_deref())?;
        let permit = self.inner.commands.reserve().await.map_err(|_| GroupError::Stopped)?;
        let mut handles = lock(&self.inner.handles);
        let known = handles.entry(group.clone()).or_default();
        let member = known.member.upgrade().unwrap_or_else(|| {
            let fresh = MembershipInner::new(self.clone(), group.clone(), self.next_handle(), None);
            known.member = Arc::downgrade(&fresh);
            fresh
        });
        member.left.store(false, Ordering::Release);
        let (endpoint, handle) = (endpoint.map(Into::into), member.handle);
        // Under the lock, so that commands have the order of the handles.
        permit.send(Command::Join { group, endpoint, handle, mailbox: None });
        Ok(Membership { inner: member })
    }

    /// As [`Node::join`], for a group whose members send each other messages: [`Membership::multicast`] sends, and what is
    /// delivered to this member comes from the [`Deliveries`], views among it.
    ///
    /// The first member of a group decides whether it has multicast. In one without, views are delivered, and sending
    /// fails with [`SendError::Plain`](crate::SendError::Plain).
    ///
    /// # Errors
    /// [`GroupError`]; nothing was changed.
    pub async fn join_multicast(
        &self,
        group: &str,
        endpoint: Option<String>,
    ) -> Result<(Membership, Deliveries), GroupError> {
        self.join_with(group, endpoint, false, true).await
    }

    /// As [`Node::join_multicast`], for a group whose members keep a common state, which follows from what was delivered to
    /// them. Who comes to the group later gets it from another member ([`Delivered::StateRequest`](crate::Delivered),
    /// [`Delivered::StateReceived`](crate::Delivered)), and leads only once it has it.
    ///
    /// What the application holds now must be what every member begins with. [`Replica`](crate::Replica) makes use of this.
    ///
    /// # Errors
    /// [`GroupError`]; nothing was changed.
    pub async fn join_with_state(
        &self,
        group: &str,
        endpoint: Option<String>,
    ) -> Result<(Membership, Deliveries), GroupError> {
        self.join_with(group, endpoint, true, true).await
    }

    /// `ready`: it may lead as soon as there is a view; otherwise once it says so.
    pub(crate) async fn join_with(
        &self,
        group: &str,
        endpoint: Option<String>,
        state: bool,
        ready: bool,
    ) -> Result<(Membership, Deliveries), GroupError> {
        let group = GroupName::new(group)?;
        check_endpoint(endpoint.as_deref())?;
        let permit = self.inner.commands.reserve().await.map_err(|_| GroupError::Stopped)?;
        // Declared before the guard: if all other handles were dropped meanwhile this is the last one, whose end takes the lock.
        let before;
        let mut handles = lock(&self.inner.handles);
        let known = handles.entry(group.clone()).or_default();
        before = known.member.upgrade();
        if before.as_ref().is_some_and(|member| !member.left.load(Ordering::Acquire)) {
            return Err(GroupError::InUse(group));
        }
        let mailbox = Mailbox::new(group.clone(), state, ready, self.inner.shared.bulk.clone());
        let handle = self.next_handle();
        let member = MembershipInner::new(self.clone(), group.clone(), handle, Some(Arc::clone(&mailbox)));
        known.member = Arc::downgrade(&member);
        let posted = Some(Posted::new(Arc::clone(&mailbox)));
        permit.send(Command::Join { group, endpoint: endpoint.map(Into::into), handle, mailbox: posted });
        if self.inner.commands.is_closed() {
            // Perhaps it lies in a queue that nobody looks at any more.
            mailbox.end();
        }
        Ok((Membership { inner: member }, Deliveries::new(mailbox)))
    }

    /// Follows a group's views without being in it. Observing outlives incarnations of the node. Returns at once; the
    /// first view comes as soon as the node is in a cluster.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`GroupError`]; nothing was changed.
    pub async fn observe(&self, group: &str) -> Result<Observer, GroupError> {
        let group = GroupName::new(group)?;
        let permit = self.inner.commands.reserve().await.map_err(|_| GroupError::Stopped)?;
        let mut handles = lock(&self.inner.handles);
        let known = handles.entry(group.clone()).or_default();
        let observer = known.observer.upgrade().unwrap_or_else(|| {
            let fresh = ObserverInner::new(self.clone(), group.clone(), self.next_handle());
            known.observer = Arc::downgrade(&fresh);
            fresh
        });
        permit.send(Command::Observe { group, handle: observer.handle });
        Ok(Observer { inner: observer })
    }

    /// Reads the file of [`NodeBuilder::secret_file`], or those of [`NodeBuilder::tls_ca`] and so on, again. Connections that exist go
    /// on; new ones use, and accept, what is in them now. Reads files: call it where that may wait.
    ///
    /// # Errors
    /// [`SecretError`] says what is wrong with the file; the keys that were in use stay in use.
    pub fn reload_secret(&self) -> Result<(), SecretError> {
        self.inner.shared.wallet.reload()
    }

    /// Leaves all groups and the cluster, and stops: returns when the cluster has let the node go, or after three leases
    /// (at least two seconds) without that. What was multicast before is waited for first, for a second at most.
    ///
    /// Cancel-safe: a dropped future leaves all the same, though perhaps later, with the last handle.
    pub async fn leave(&self) {
        let members: Vec<Arc<MembershipInner>> =
            lock(&self.inner.handles).values().filter_map(|h| h.member.upgrade()).collect();
        // One end for all: while one is waited for, the others go on as well.
        let until = tokio::time::Instant::now() + DRAIN;
        for member in members {
            member.drained(until).await;
        }
        // An error says that the control thread has finished already.
        let _finished = self.inner.commands.send(Command::Stop).await;
        self.stopped().await;
    }

    /// Waits until the node has stopped, for whatever reason.
    pub async fn stopped(&self) {
        let mut finished = self.inner.shared.finished.subscribe();
        // It fails when the sender is gone, which the handle that we hold prevents.
        let _closed = finished.wait_for(|finished| *finished).await;
    }

    fn next_handle(&self) -> u64 {
        self.inner.next_handle.fetch_add(1, Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name())
            .field("listen", &self.listen_addr())
            .finish_non_exhaustive()
    }
}
