//! A service as a replicated state machine: every member applies the same commands in the same order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use membership_multicast::Class;
use membership_types::NodeId;
use tokio::sync::oneshot;

use crate::{
    channel::{Delivered, Deliveries, SendError},
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

    /// The whole state, for a member that is new.
    fn snapshot(&self) -> Bytes;

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

    /// A view was installed: for states that depend on who is there. All members apply it at the same place among the
    /// commands.
    fn installed(&mut self, view: &View) {
        let _ = view;
    }
}

/// The command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It was not sent, and is not applied now or later.
    #[error("not proposed: {0}")]
    NotSent(#[from] SendError),
    /// This incarnation of the node ended before the command came back: the others may have applied it, or may not.
    #[error("the command's fate is not known: this node was cut off meanwhile")]
    Unknown,
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

impl<S: ReplicatedState> Replica<S> {
    /// Makes the node a member of the group, with the endpoint where it serves. `state` is what every member begins with:
    /// where there are members already, theirs takes its place.
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
        let mark = crate::start::random().map_err(|_| GroupError::Stopped)?;
        let (membership, deliveries) = node.join_with_state(group, endpoint).await?;
        let shared = Arc::new(Shared {
            membership,
            state: Mutex::new(state),
            mark,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        });
        tokio::spawn(follow(Arc::downgrade(&shared), deliveries));
        Ok(Self { shared })
    }

    /// The membership: its views, its events, and whether this member leads.
    pub fn membership(&self) -> &Membership {
        &self.shared.membership
    }

    /// Has all members apply a command. Gives what this member's state answered, once all members hold the command: it
    /// survives as long as any of them does.
    ///
    /// Cancel-safe: after a dropped future the command may be applied, or may not.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may have been applied.
    pub async fn propose(&self, command: impl AsRef<[u8]>) -> Result<S::Answer, ProposeError> {
        let command = command.as_ref();
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
    pub async fn caught_up(&self) -> bool {
        self.shared.membership.caught_up().await
    }

    /// As [`caught_up`](Replica::caught_up), but waits until it can be known: a member that has just come gets the state
    /// first. Cancel-safe.
    ///
    /// # Errors
    /// [`NotMember`] once the node has left the group or stopped.
    pub async fn until_caught_up(&self) -> Result<(), NotMember> {
        self.shared.membership.until_caught_up().await
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

/// Applies what is delivered, until the member is out or nobody holds it.
async fn follow<S: ReplicatedState>(shared: std::sync::Weak<Shared<S>>, mut deliveries: Deliveries) {
    while let Some(delivered) = deliveries.next().await {
        let Some(shared) = shared.upgrade() else { return };
        match delivered {
            Delivered::Message(message) => shared.apply(message.from, message.payload),
            Delivered::View { view, .. } => lock(&shared.state).installed(&view),
            Delivered::StateRequest(request) => {
                let snapshot = lock(&shared.state).snapshot();
                // Whether it arrives is up to the other one.
                tokio::spawn(async move {
                    if let Err(error) = request.finish(snapshot).await {
                        tracing::debug!(%error, "a state is not given to its end");
                    }
                });
            }
            Delivered::StateReceived(pieces) => {
                let restored = lock(&shared.state).restore(&pieces);
                if let Err(why) = restored {
                    let group = shared.membership.group();
                    tracing::error!(%group, why, "a snapshot cannot be restored: this member leaves the group");
                    let membership = shared.membership.clone();
                    drop(shared);
                    return membership.leave().await;
                }
            }
            Delivered::StateLost { .. } => {
                let goes_on = lock(&shared.state).lost();
                if goes_on {
                    shared.membership.keep_state();
                }
            }
            Delivered::Out { .. } => {
                for (_, waiting) in lock(&shared.waiting).drain() {
                    let _gone = waiting.send(Err(ProposeError::Unknown));
                }
            }
            _ => {}
        }
    }
    if let Some(shared) = shared.upgrade() {
        lock(&shared.waiting).clear();
    }
}

impl<S: ReplicatedState> Shared<S> {
    fn apply(&self, from: NodeId, mut message: Bytes) {
        if message.len() < HEAD {
            tracing::warn!(%from, group = %self.membership.group(), "a message is no command: it is left out");
            return;
        }
        let (mark, number) = (message.get_u64_le(), message.get_u64_le());
        let answer = lock(&self.state).apply(from, &message);
        if mark == self.mark
            && let Some(waiting) = lock(&self.waiting).remove(&number)
        {
            let _gone = waiting.send(Ok(answer));
        }
    }
}
