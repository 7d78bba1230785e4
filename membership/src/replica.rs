//! A service as a replicated state machine: every member applies the same commands in the same order.
//!
//! With a data directory (`keeper.rs`) what was applied is also on disk: `ledger.rs` decides what that means for the group,
//! `store.rs` is the files.

pub(crate) mod keeper;
pub(crate) mod ledger;
pub(crate) mod store;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use membership_multicast::Class;
use membership_types::{
    NodeId,
    trace::{self, Event as TraceEvent, Group},
};
use tokio::sync::{Semaphore, oneshot, watch};

use self::keeper::{Keeper, Progress};
use crate::{
    channel::{Delivered, Deliveries, SendError, StateRequest},
    error::{GroupError, NotMember},
    event::View,
    group::Membership,
    node::{Node, lock},
};

/// A state that follows from the commands that were applied to it, and from nothing else: no clock, no random numbers, no
/// order of a hash map.
pub trait ReplicatedState: Send + 'static {
    /// What whoever proposed a command is told.
    type Answer: Send + 'static;

    /// Applies a command of some member.
    fn apply(&mut self, from: NodeId, command: &[u8]) -> Self::Answer;

    /// The whole state, for a member that is new, and for the disk.
    fn snapshot(&self) -> Bytes;

    /// A copy of the state as it is now, of which another thread makes the [snapshot](Self::snapshot) while commands go on to be
    /// applied to this one. Nothing is applied here while the copy is made, and the group waits when that takes long: where
    /// a snapshot takes more than a moment, give something that is copied faster (a clone, or what shares its parts with
    /// the state). What is not overridden makes the snapshot at once. At most four such copies are there at a time for members that
    /// are new, and one for the disk.
    fn copy(&self) -> Copied {
        let snapshot = self.snapshot();
        Box::new(move || snapshot)
    }

    /// Takes over a snapshot, in pieces as they came.
    ///
    /// # Errors
    /// What is wrong with it, in words: this member then leaves the group rather than to go on with something else.
    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String>;

    /// Nobody has the group's state any more: those who had it are gone, and this member was still waiting for it. True if
    /// what this member holds is to be the state from now on; it counts at the group's first member only.
    fn lost(&mut self) -> bool {
        false
    }

    /// A fingerprint of the state, for nodes that write a trace: all members that begin a view must have the same, and
    /// `phalanx check` looks whether they do. It must follow from the state alone. Default none: nothing is recorded.
    fn fingerprint(&self) -> Option<u64> {
        None
    }

    /// A view was installed: for states that depend on who is there. All members apply it at the same place among the
    /// commands.
    fn installed(&mut self, view: &View) {
        let _ = view;
    }
}

/// What makes a snapshot of a state that was [copied](ReplicatedState::copy).
pub type Copied = Box<dyn FnOnce() -> Bytes + Send>;

/// The command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It was not sent, and is not applied now or later.
    #[error("not proposed: {0}")]
    NotSent(#[from] SendError),
    /// This incarnation of the node ended, or it had to leave the group for a while, before the command came back: the others may have applied it, or may not.
    #[error("the command's fate is not known: this node was cut off meanwhile")]
    Unknown,
}

/// The group was not joined; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// The group cannot be used.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The data directory cannot be used, or what is in it.
    #[error("{0}")]
    DataDir(String),
}

/// Where the state of a group is, as far as this member knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// In the memory of the group's members, and nowhere else: it is lost when all of them have gone.
    Memory,
    /// Nowhere any more: those who had it in memory are gone, and this member was still waiting for it. See
    /// [`ReplicatedState::lost`].
    Lost,
    /// This member does not have it yet, for this reason. Nothing is applied until then.
    Waiting {
        /// What is waited for, and what can be done about it.
        why: String,
    },
    /// On disk, and here.
    Kept {
        /// How many of the directories that count are in the group's view.
        here: usize,
        /// How many there are. Commands are answered only while more than half of them are here.
        of: usize,
        /// Are they?
        enough: bool,
    },
    /// This member has given up, for this reason, and leaves the group.
    Refused {
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// A member of a group of equal states. Clones are the same member; it leaves the group when the last one is dropped.
///
/// # Examples
/// ```no_run
/// use membership::{Node, NodeId, Replica, ReplicatedState};
///
/// #[derive(Default)]
/// struct Counter(u64);
///
/// impl ReplicatedState for Counter {
///     type Answer = u64;
///     fn apply(&mut self, _from: NodeId, command: &[u8]) -> u64 {
///         self.0 += command.len() as u64;
///         self.0
///     }
///     fn snapshot(&self) -> bytes::Bytes {
///         bytes::Bytes::copy_from_slice(&self.0.to_le_bytes())
///     }
///     fn restore(&mut self, snapshot: &[bytes::Bytes]) -> Result<(), String> {
///         let bytes: [u8; 8] = snapshot.concat().try_into().map_err(|_| "a counter has eight bytes")?;
///         self.0 = u64::from_le_bytes(bytes);
///         Ok(())
///     }
/// }
///
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder().start().await?;
/// let counter = Replica::join(&node, "counter", None, Counter::default()).await?;
/// let total = counter.propose("four").await?; // every member holds the command now
/// let seen = counter.read(|counter| counter.0); // what this member has applied
/// # Ok(()) }
/// ```
pub struct Replica<S: ReplicatedState> {
    shared: Arc<Shared<S>>,
}

struct Shared<S: ReplicatedState> {
    membership: Membership,
    state: Mutex<S>,
    /// Tells this member's commands from others', over all incarnations of the node.
    mark: u64,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting<S>>>,
    /// Copies of the state for members that are new.
    copies: Arc<Semaphore>,
    /// The state was just received: it may be that of the middle of a view.
    fresh: AtomicBool,
    /// What is on disk, if anything is to be.
    progress: watch::Sender<Progress>,
}

/// Who proposed a command, and waits for its answer.
type Waiting<S> = oneshot::Sender<Result<<S as ReplicatedState>::Answer, ProposeError>>;

impl<S: ReplicatedState> Clone for Replica<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Bytes before each command: who proposed it, and its number there.
const HEAD: usize = 16;
/// So many copies of a state are there for members that are new: who asks while there are so many asks again, or elsewhere.
const COPIES: usize = 4;
/// Before what members that keep the state on disk say to each other: nobody proposes under this.
const NOBODY: u64 = 0;

/// How to become a member. Nothing happens until [`join`](ReplicaBuilder::join).
#[derive(Clone)]
pub struct ReplicaBuilder {
    node: Node,
    group: String,
    endpoint: Option<String>,
    data_dir: Option<PathBuf>,
    directories: u64,
    accept: bool,
}

impl ReplicaBuilder {
    /// For a member of this group on this node.
    pub fn new(node: &Node, group: &str) -> Self {
        let (node, group) = (node.clone(), group.to_owned());
        Self { node, group, endpoint: None, data_dir: None, directories: 1, accept: false }
    }

    /// Where this member serves.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// A directory of this member's own, in which it keeps the state: a command is answered once a majority of the group's
    /// directories has it on disk, and survives the loss of power at all members. Give all members one, each its own;
    /// never copy one for another member. Default none: the state lives as long as a member does that has it.
    ///
    /// After everybody was down, nobody goes on before a majority of the directories is there, the newest among them: until
    /// then [`Replica::standing`] says what is waited for.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// With how many directories the group is meant to begin: where all that are there are empty, nobody begins with an empty
    /// state before more than half of so many are there. So who starts first with a new disk does not pass over the
    /// others. Default 1.
    pub fn directories(mut self, count: u64) -> Self {
        self.directories = count;
        self
    }

    /// An operator's order: go on with what this directory has (and others that are there now), although a majority of the
    /// directories that hold the group's state is missing. What only those have is given up; where they come back, they are
    /// refused. Not needed, and of no effect, where a majority is there.
    pub fn accept_stale_state(mut self, accept: bool) -> Self {
        self.accept = accept;
        self
    }

    /// Makes the node a member of the group. `state` is what every member begins with: what is in the directory takes its place,
    /// and where there are members already, theirs.
    ///
    /// Must be called within a tokio runtime: commands are applied on a task of it.
    ///
    /// # Errors
    /// [`ReplicaError`]; nothing was changed.
    pub async fn join<S: ReplicatedState>(self, mut state: S) -> Result<Replica<S>, ReplicaError> {
        let Self { node, group, endpoint, data_dir, directories, accept } = self;
        let mark = crate::start::random().map_err(|_| GroupError::Stopped)?.max(NOBODY + 1);
        let mut keeper = None;
        if let Some(path) = data_dir {
            let who = (node.inner.shared.cluster.clone(), group.clone(), node.inner.shared.name.to_string());
            let opened = tokio::task::spawn_blocking(move || {
                let keeper = Keeper::open(&path, who, (directories, accept), &mut state)?;
                Ok((keeper, state))
            });
            let opened = opened.await.map_err(|e| ReplicaError::DataDir(e.to_string()))?;
            let (opened, restored) = opened.map_err(ReplicaError::DataDir)?;
            (keeper, state) = (Some(opened), restored);
        }
        let (membership, deliveries) = node.join_with(&group, endpoint, true, keeper.is_none()).await?;
        let progress = Progress::new(keeper.is_some());
        let shared = Arc::new(Shared {
            membership,
            state: Mutex::new(state),
            mark,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            copies: Arc::new(Semaphore::new(COPIES)),
            fresh: AtomicBool::new(false),
            progress: watch::Sender::new(progress),
        });
        tokio::spawn(follow(Arc::downgrade(&shared), deliveries, keeper));
        Ok(Replica { shared })
    }
}

impl<S: ReplicatedState> Replica<S> {
    /// Makes the node a member of the group, with the endpoint where it serves. `state` is what every member begins with:
    /// where there are members already, theirs takes its place. It is kept in memory; [`ReplicaBuilder`] has more to choose from.
    ///
    /// Must be called within a tokio runtime: commands are applied on a task of it.
    ///
    /// # Errors
    /// [`GroupError`]; nothing was changed.
    pub async fn join(
        node: &Node,
        group: &str,
        endpoint: Option<String>,
        state: S,
    ) -> Result<Self, GroupError> {
        let builder = ReplicaBuilder { endpoint, ..ReplicaBuilder::new(node, group) };
        let joined = builder.join(state).await;
        joined.map_err(|error| match error {
            ReplicaError::Group(error) => error,
            ReplicaError::DataDir(_) => unreachable!("there is none"),
        })
    }

    /// The membership: its views, its events, and whether this member leads.
    pub fn membership(&self) -> &Membership {
        &self.shared.membership
    }

    /// Has all members apply a command. Gives what this member's state answered, once all members hold the command: it
    /// survives as long as any of them does. With a [data directory](ReplicaBuilder::data_dir) also once a majority of the
    /// directories has it on disk: it survives as long as a majority of those does. Waits until this member has the group's
    /// state: see [`standing`](Replica::standing).
    ///
    /// Cancel-safe: after a dropped future the command may be applied, or may not.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn propose(&self, command: impl AsRef<[u8]>) -> Result<S::Answer, ProposeError> {
        let command = command.as_ref();
        if !self.shared.is_whole() && !self.shared.until_whole().await {
            return Err(SendError::NotMember.into());
        }
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut message = BytesMut::with_capacity(HEAD + command.len());
        message.put_u64_le(self.shared.mark);
        message.put_u64_le(number);
        message.put_slice(command);
        let (answered, answer) = oneshot::channel();
        let waits = Waits { shared: &self.shared, number };
        lock(&self.shared.waiting).insert(number, answered);
        self.shared.membership.multicast(Class::Safe, message).await?;
        let answer = answer.await.unwrap_or(Err(ProposeError::Unknown));
        drop(waits);
        answer
    }

    /// Looks at this member's state. It may lack what others have applied: see [`caught_up`](Replica::caught_up).
    pub fn read<T>(&self, look: impl FnOnce(&S) -> T) -> T {
        look(&lock(&self.shared.state))
    }

    /// Waits until this member has applied everything that anybody can have been told to be done by now: what is
    /// [read](Replica::read) then is linearizable. False if that cannot be known.
    ///
    /// With a data directory what is read then is also on the disks of a majority.
    pub async fn caught_up(&self) -> bool {
        self.shared.is_whole() && self.shared.membership.caught_up().await && self.shared.on_disk().await
    }

    /// As [`caught_up`](Replica::caught_up), but waits until it can be known: a member that has just come gets the state
    /// first. Cancel-safe.
    ///
    /// # Errors
    /// [`NotMember`] once the node has left the group or stopped.
    pub async fn until_caught_up(&self) -> Result<(), NotMember> {
        loop {
            // Once it is over, the membership says why.
            let _whole = self.shared.until_whole().await;
            self.shared.membership.until_caught_up().await?;
            if self.shared.on_disk().await {
                return Ok(());
            }
        }
    }

    /// Where the group's state is, as far as this member knows. Changes are told as [`What::State`](crate::What::State).
    pub fn standing(&self) -> Standing {
        self.shared.progress.borrow().standing.clone()
    }
}

/// Nobody waits for the answer any more.
struct Waits<'a, S: ReplicatedState> {
    shared: &'a Shared<S>,
    number: u64,
}

impl<S: ReplicatedState> Drop for Waits<'_, S> {
    fn drop(&mut self) {
        lock(&self.shared.waiting).remove(&self.number);
    }
}

/// What a member does next.
enum Next {
    Delivered(Delivered),
    Disk(keeper::Said),
    /// What could not be said may be said now.
    Again,
    Over,
}

async fn next<S: ReplicatedState>(deliveries: &mut Deliveries, keeper: Option<&mut Keeper<S>>) -> Next {
    let delivered = |delivered: Option<Delivered>| delivered.map_or(Next::Over, Next::Delivered);
    let Some(keeper) = keeper else { return delivered(deliveries.next().await) };
    let (takes, talks) = (!keeper.is_behind(), keeper.has_unsaid());
    tokio::select! {
        biased;
        said = keeper.heard() => Next::Disk(said),
        next = deliveries.next(), if takes => delivered(next),
        () = tokio::time::sleep(keeper::AGAIN), if talks => Next::Again,
    }
}

/// Applies what is delivered, until the member is out or nobody holds it.
async fn follow<S: ReplicatedState>(
    shared: std::sync::Weak<Shared<S>>,
    mut deliveries: Deliveries,
    mut keeper: Option<Keeper<S>>,
) {
    loop {
        let next = next(&mut deliveries, keeper.as_mut()).await;
        let Some(shared) = shared.upgrade() else { return };
        let outcome = match (&mut keeper, next) {
            (_, Next::Over) => break,
            (Some(keeper), next) => keeper.step(&shared, next).await,
            (None, Next::Delivered(delivered)) => {
                let outcome = shared.on_delivered(delivered);
                if let Ok(Some(standing)) = &outcome {
                    shared.tell(standing.clone()).await;
                }
                outcome.map(drop)
            }
            (None, _) => Ok(()),
        };
        if let Err(why) = outcome {
            let group = shared.membership.group();
            tracing::error!(%group, why, "this member leaves the group");
            shared.tell(Standing::Refused { why }).await;
            let membership = shared.membership.clone();
            shared.fail_all();
            drop(shared);
            return membership.leave().await;
        }
    }
    if let Some(shared) = shared.upgrade() {
        lock(&shared.waiting).clear();
        shared.progress.send_modify(|progress| progress.over = true);
    }
}

/// Gives a member that is new a copy of the state, which is made here and now, and what goes before it.
fn give(
    copies: &Arc<Semaphore>,
    request: StateRequest,
    before: Option<Bytes>,
    copied: impl FnOnce() -> Copied,
) {
    let Ok(permit) = Arc::clone(copies).try_acquire_owned() else {
        return tracing::debug!(to = %request.from(), "too many states are given at a time: it asks again");
    };
    let copied = copied();
    // Whether it arrives is up to the other one.
    tokio::spawn(async move {
        let _one_of_few = permit;
        // Why it panicked is in the log.
        let Ok(snapshot) = tokio::task::spawn_blocking(copied).await else { return };
        let given = async {
            if let Some(before) = before {
                request.send(before).await?;
            }
            request.finish(snapshot).await
        };
        if let Err(error) = given.await {
            tracing::debug!(%error, "a state is not given to its end");
        }
    });
}

impl<S: ReplicatedState> Shared<S> {
    /// Without a data directory. Gives where the state is, if that changes. The error says why this member cannot go on.
    fn on_delivered(&self, delivered: Delivered) -> Result<Option<Standing>, String> {
        match delivered {
            Delivered::Message(message) => {
                if let Some((mark, number, command)) = self.command(message.from, message.payload) {
                    if mark == NOBODY {
                        return Err(
                            "other members keep this group's state on disk: give this one a data directory, \
                                    too (or none to any of them)"
                                .into(),
                        );
                    }
                    let answer = lock(&self.state).apply(message.from, &command);
                    self.answer(mark, number, answer);
                }
            }
            Delivered::View { view, .. } => {
                lock(&self.state).installed(&view);
                self.show(&view);
            }
            Delivered::StateRequest(request) => {
                give(&self.copies, request, None, || lock(&self.state).copy());
            }
            Delivered::StateReceived(pieces) => {
                let restored = lock(&self.state).restore(&pieces);
                restored.map_err(|why| format!("a snapshot cannot be restored: {why}"))?;
                self.fresh.store(true, Ordering::Relaxed);
                return Ok((!self.is_whole()).then_some(Standing::Memory));
            }
            Delivered::StateLost { .. } => {
                let goes_on = lock(&self.state).lost();
                if goes_on {
                    self.membership.keep_state();
                }
                return Ok((!goes_on).then_some(Standing::Lost));
            }
            Delivered::Out { .. } => {
                self.fail_all();
                return Ok((!self.is_whole()).then_some(Standing::Memory));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Says in the trace, if the node writes one, with what state this member begins a view, if it has the group's.
    fn show(&self, view: &View) {
        let fresh = self.fresh.swap(false, Ordering::Relaxed);
        let Some(tracer) = self.membership.node().inner.shared.tracer.get() else { return };
        let digest = if fresh || !self.is_whole() { None } else { lock(&self.state).fingerprint() };
        let Some(digest) = digest else { return };
        tracer.pen().record_own(|me| {
            // Later incarnations have no part in it.
            view.rank_of(me).map(|_| TraceEvent::AppState {
                p: me.into(),
                g: Group::from(&view.group),
                lin: trace::lin(view.lineage),
                vid: view.id.get(),
                digest: format!("{digest:016x}").into(),
            })
        });
    }

    /// Who proposed a command, its number there, and the command.
    fn command(&self, from: NodeId, mut message: Bytes) -> Option<(u64, u64, Bytes)> {
        if message.len() < HEAD {
            tracing::warn!(%from, group = %self.membership.group(), "a message is no command: it is left out");
            return None;
        }
        Some((message.get_u64_le(), message.get_u64_le(), message))
    }

    /// Who waits for the answer to a command, if this member proposed it.
    fn who_waits(&self, mark: u64, number: u64) -> Option<Waiting<S>> {
        if mark == self.mark { lock(&self.waiting).remove(&number) } else { None }
    }

    fn answer(&self, mark: u64, number: u64, answer: S::Answer) {
        if let Some(waiting) = self.who_waits(mark, number) {
            let _gone = waiting.send(Ok(answer));
        }
    }

    /// What was proposed so far may be applied or not.
    fn fail_all(&self) {
        for (_, waiting) in lock(&self.waiting).drain() {
            let _gone = waiting.send(Err(ProposeError::Unknown));
        }
    }
}
