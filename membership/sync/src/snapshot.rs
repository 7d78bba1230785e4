//! The newest of a series of immutable values: written by one, read by many at the price of one load.

use std::{ops::Deref, sync::PoisonError};

use crate::shim::{
    Arc, Mutex, MutexGuard, ValueArc,
    atomic::{AtomicU64, Ordering},
};

/// Publishes immutable values, one after the other. There is one publisher; [`Reader`]s are many.
///
/// # Examples
/// ```no_run
/// use membership_sync::Snapshot;
/// use std::sync::Arc;
///
/// let mut routes = Snapshot::new(Arc::new(vec!["a"]));
/// let mut reader = routes.reader(); // one per thread
/// assert_eq!(reader.load(), &["a"]);
///
/// routes.publish(Arc::new(vec!["a", "b"]));
/// assert_eq!(reader.load(), &["a", "b"]);
/// assert_eq!(reader.version(), routes.version());
/// ```
pub struct Snapshot<T> {
    shared: Arc<Shared<T>>,
    /// What `shared` says too; the publisher need not ask.
    version: u64,
}

struct Shared<T> {
    /// The version in `newest`; a hint whether to take the lock.
    version: AtomicU64,
    newest: Mutex<Versioned<T>>,
}

struct Versioned<T> {
    version: u64,
    value: ValueArc<T>,
}

// By hand: a derive would ask for `T: Clone`.
impl<T> Clone for Versioned<T> {
    fn clone(&self) -> Self {
        Self { version: self.version, value: ValueArc::clone(&self.value) }
    }
}

impl<T> Snapshot<T> {
    /// Starts with `value`, as version 0.
    pub fn new(value: ValueArc<T>) -> Self {
        let newest = Mutex::new(Versioned { version: 0, value });
        Self { shared: Arc::new(Shared { version: AtomicU64::new(0), newest }), version: 0 }
    }

    /// Replaces the value and gives its version: one more than the last.
    ///
    /// Whoever hears of the publication, however indirectly, loads this value or a newer one. The old value
    /// is freed with the last reader that holds it, on that reader's thread.
    pub fn publish(&mut self, value: ValueArc<T>) -> u64 {
        self.version += 1;
        let mut newest = self.shared.lock();
        let old = std::mem::replace(&mut newest.value, value);
        newest.version = self.version;
        // Relaxed, but under the lock: a reader that loads this version takes the lock after us, because the
        // lock orders its critical section against ours, and before ours it could not have read what we had
        // not written. What the value refers to, the lock publishes.
        self.shared.version.store(self.version, Ordering::Relaxed);
        drop(newest);
        drop(old); // outside the lock: freeing a large table must not make readers wait
        self.version
    }

    /// The version of the last published value.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A reader, which starts with the newest value. Clone it for further threads.
    pub fn reader(&self) -> Reader<T> {
        Reader { cached: self.shared.lock().clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Versioned<T>> {
        // Nothing in a critical section can panic half-way: a poisoned lock guards a whole value.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the newest value of a [`Snapshot`]. One per thread: it keeps what it last read.
///
/// A reader that is kept but not asked keeps an old value alive. It outlives the publisher.
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    cached: Versioned<T>,
}

impl<T> Reader<T> {
    /// The newest value: never older than one that this reader returned before.
    ///
    /// One relaxed load when nothing has changed; otherwise a short lock and a counter.
    #[inline]
    pub fn load(&mut self) -> &T {
        // Relaxed: the version is only compared. An equal one says that the cached value, which came through
        // the lock, is still the newest that happened before this load; any other leads to the lock.
        if self.shared.version.load(Ordering::Relaxed) != self.cached.version {
            self.refresh();
        }
        &self.cached.value
    }

    /// The value that was last loaded, to keep while the reader goes on.
    pub fn cached(&self) -> &ValueArc<T> {
        &self.cached.value
    }

    /// The version of the value that was last loaded.
    pub fn version(&self) -> u64 {
        self.cached.version
    }

    #[cold]
    fn refresh(&mut self) {
        // Value and version together, from under the lock: what the lock holds only grows newer.
        let newest = self.shared.lock().deref().clone();
        self.cached = newest; // drops the old value outside the lock
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), cached: self.cached.clone() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_reader_keeps_what_it_loaded_until_it_asks_again() {
        let mut snapshot = Snapshot::new(Arc::new(1));
        let mut reader = snapshot.reader();
        assert_eq!((snapshot.publish(Arc::new(2)), reader.version(), **reader.cached()), (1, 0, 1));
        assert_eq!((*reader.load(), reader.version()), (2, 1));
    }

    #[test]
    fn a_new_reader_starts_with_the_newest_value() {
        let mut snapshot = Snapshot::new(Arc::new(1));
        snapshot.publish(Arc::new(2));
        let reader = snapshot.reader();
        assert_eq!((reader.version(), **reader.cached()), (1, 2));
    }

    #[test]
    fn an_old_value_is_freed_with_its_last_reader() {
        // A table of routes may be large: it must not live on because a publisher or a list refers to it.
        let first = Arc::new(1);
        let mut snapshot = Snapshot::new(Arc::clone(&first));
        let mut reader = snapshot.reader();
        snapshot.publish(Arc::new(2));
        assert_eq!(Arc::strong_count(&first), 2, "ours and the reader's");
        reader.load();
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn a_reader_outlives_the_publisher() {
        let snapshot = Snapshot::new(Arc::new(7));
        let mut reader = snapshot.reader().clone();
        drop(snapshot);
        assert_eq!(*reader.load(), 7);
    }

    #[test]
    fn racing_readers_see_whole_values_that_never_go_back() {
        const LAST: u64 = 20_000;
        let mut snapshot = Snapshot::new(Arc::new((0, 0)));
        thread::scope(|scope| {
            for _ in 0..2 {
                let mut reader = snapshot.reader();
                scope.spawn(move || {
                    let mut seen = 0;
                    while seen < LAST {
                        let (a, b) = *reader.load();
                        assert_eq!((a, b), (reader.version(), reader.version()));
                        assert!(a >= seen, "went back from {seen} to {a}");
                        seen = a;
                    }
                });
            }
            for n in 1..=LAST {
                snapshot.publish(Arc::new((n, n)));
            }
        });
    }
}
