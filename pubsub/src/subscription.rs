//! One subscriber's side: what waits for it, and how it takes it.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use crate::bus::Shared;

/// What a [`Subscription`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery<K, E> {
    /// The value that a topic had when the subscription began, or when it caught up after a
    /// [`Gap`](Self::Gap).
    Current {
        /// The topic.
        topic: K,
        /// Its value.
        event: E,
    },
    /// A later publication.
    Change {
        /// The topic.
        topic: K,
        /// What was published.
        event: E,
    },
    /// The subscriber was too slow, and changes were dropped. The current values follow: take them for the
    /// whole state, and forget a topic that is not among them.
    Gap {
        /// How many changes were dropped since the last delivery.
        missed: u64,
        /// How many [`Current`](Self::Current)s follow: one for each topic that has a value. A further gap
        /// may come before the last of them was taken; then its own replace them.
        current: usize,
    },
}

/// Why there is nothing to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TryNextError {
    /// Nothing is waiting. Something may come.
    #[error("nothing is waiting")]
    Empty,
    /// The bus is gone and everything was taken. Nothing will come.
    #[error("the bus is gone")]
    Closed,
}

/// Yields the current values of its topics, then every change. Dropping it frees what it holds.
pub struct Subscription<K: Ord + Clone, E: Clone> {
    id: u64,
    scope: Scope<K>,
    queue: Arc<Queue<K, E>>,
    /// Weak: a subscription does not keep the bus open.
    bus: Weak<Shared<K, E>>,
}

/// Where the bus finds a subscription.
pub(crate) enum Scope<K> {
    /// Sorted, each once.
    Named(Box<[K]>),
    Matching,
}

impl<K: Ord + Clone, E: Clone> Subscription<K, E> {
    pub(crate) fn new(id: u64, scope: Scope<K>, queue: Arc<Queue<K, E>>, bus: Weak<Shared<K, E>>) -> Self {
        Self { id, scope, queue, bus }
    }

    /// Waits for the next delivery; `None` once the bus is gone and everything was taken.
    ///
    /// Cancel-safe: a dropped future has taken nothing.
    pub async fn next(&mut self) -> Option<Delivery<K, E>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Takes the next delivery if there is one, without waiting.
    ///
    /// # Errors
    /// [`TryNextError`] if there is none: none yet, or none any more.
    pub fn try_next(&mut self) -> Result<Delivery<K, E>, TryNextError> {
        match self.take(None) {
            Poll::Ready(Some(delivery)) => Ok(delivery),
            Poll::Ready(None) => Err(TryNextError::Closed),
            Poll::Pending => Err(TryNextError::Empty),
        }
    }

    /// As [`Subscription::next`], for hand-written futures. The waker of the last call is the one that is
    /// woken.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivery<K, E>>> {
        self.take(Some(cx.waker()))
    }

    fn take(&mut self, waker: Option<&Waker>) -> Poll<Option<Delivery<K, E>>> {
        match self.queue.pop(waker) {
            Popped::Delivery(delivery) => Poll::Ready(Some(delivery)),
            Popped::Empty => Poll::Pending,
            Popped::Closed => Poll::Ready(None),
            Popped::Missed => {
                // Without a bus, its destructor is filling our queue right now and will then wake us.
                let Some(bus) = self.bus.upgrade() else { return Poll::Pending };
                let state = bus.lock();
                let gap = self.queue.catch_up(|| state.current_for(self.id, &self.scope));
                Poll::Ready(Some(gap.expect("only we and the end of the bus catch up")))
            }
        }
    }
}

impl<K: Ord + Clone, E: Clone> Drop for Subscription<K, E> {
    fn drop(&mut self) {
        if let Some(bus) = self.bus.upgrade() {
            bus.unsubscribe(self.id, &self.scope);
        }
    }
}

impl<K: Ord + Clone, E: Clone> fmt::Debug for Subscription<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What waits for one subscriber.
pub(crate) struct Queue<K, E> {
    limit: NonZeroUsize,
    pending: Mutex<Pending<K, E>>,
}

struct Pending<K, E> {
    deliveries: VecDeque<Delivery<K, E>>,
    /// How many of them are changes: never more than the limit.
    changes: usize,
    /// Not zero from an overflow until the subscriber catches up. Then `deliveries` is empty.
    missed: u64,
    waker: Option<Waker>,
    closed: bool,
}

/// What is left to do after a push, without a lock.
pub(crate) struct Pushed<K, E> {
    pub(crate) waker: Option<Waker>,
    pub(crate) fallen: VecDeque<Delivery<K, E>>,
}

enum Popped<K, E> {
    Delivery(Delivery<K, E>),
    /// There is a gap: catch up, then pop again.
    Missed,
    Empty,
    Closed,
}

impl<K, E> Queue<K, E> {
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        let pending =
            Pending { deliveries: VecDeque::new(), changes: 0, missed: 0, waker: None, closed: false };
        Self { limit, pending: Mutex::new(pending) }
    }

    /// The values with which the subscription begins.
    pub(crate) fn start(&self, current: Vec<Delivery<K, E>>) {
        self.lock().deliveries = current.into();
    }

    /// Adds a change, or counts it as missed. Gives whom to wake, and what fell out of an overflowing queue,
    /// to be dropped without a lock.
    pub(crate) fn push(&self, change: impl FnOnce() -> Delivery<K, E>) -> Pushed<K, E> {
        let mut pending = self.lock();
        let mut fallen = VecDeque::new();
        if pending.missed > 0 {
            pending.missed += 1;
        } else if pending.changes == self.limit.get() {
            // Current values among them are no loss: newer ones will follow the gap.
            fallen = std::mem::take(&mut pending.deliveries);
            pending.missed = pending.changes as u64 + 1;
            pending.changes = 0;
        } else {
            pending.deliveries.push_back(change());
            pending.changes += 1;
        }
        Pushed { waker: pending.waker.take(), fallen }
    }

    /// If something was missed: gives the gap, to be delivered before all else, and queues the current
    /// values. Called under the bus's lock, so that nothing is published between the values and the changes
    /// after them.
    pub(crate) fn catch_up(&self, current: impl FnOnce() -> Vec<Delivery<K, E>>) -> Option<Delivery<K, E>> {
        let mut pending = self.lock();
        if pending.missed == 0 {
            return None;
        }
        pending.deliveries = current().into();
        Some(Delivery::Gap { missed: std::mem::take(&mut pending.missed), current: pending.deliveries.len() })
    }

    /// Nothing will be pushed any more; `gap` is what [`Queue::catch_up`] gave at last. Gives whom to wake.
    pub(crate) fn close(&self, gap: Option<Delivery<K, E>>) -> Option<Waker> {
        let mut pending = self.lock();
        if let Some(gap) = gap {
            pending.deliveries.push_front(gap);
        }
        pending.closed = true;
        pending.waker.take()
    }

    fn pop(&self, waker: Option<&Waker>) -> Popped<K, E> {
        let mut pending = self.lock();
        if let Some(delivery) = pending.deliveries.pop_front() {
            pending.changes -= usize::from(matches!(delivery, Delivery::Change { .. }));
            return Popped::Delivery(delivery);
        }
        if pending.closed {
            return Popped::Closed;
        }
        if let Some(waker) = waker {
            match &mut pending.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        if pending.missed > 0 { Popped::Missed } else { Popped::Empty }
    }

    fn lock(&self) -> MutexGuard<'_, Pending<K, E>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
