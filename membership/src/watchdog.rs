//! The opposite of a busy application that must not get its node removed: a live heartbeat of a dead application.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use membership_types::Instant;

use crate::{clock, node::Shared};

/// When the application last said that it lives.
pub(crate) struct Pats {
    limit: std::time::Duration,
    last: AtomicU64,
    /// The control thread sleeps until the next one.
    late: AtomicBool,
}

impl Pats {
    /// The start counts as a pat.
    pub(crate) fn new(limit: std::time::Duration) -> Self {
        Self { limit, last: AtomicU64::new(clock::now_ns()), late: AtomicBool::new(false) }
    }

    /// When the application will be late.
    pub(crate) fn due(&self) -> Instant {
        // SeqCst, here and below: of a pat and the look that finds the application late at least one sees the other.
        Instant::from_nanos(self.last.load(Ordering::SeqCst)).after(self.limit)
    }

    /// Whether the application is late. For the control thread, which is woken by the next pat if it is.
    pub(crate) fn is_late(&self) -> bool {
        self.late.store(true, Ordering::SeqCst);
        let late = self.due() <= clock::now();
        if !late {
            self.late.store(false, Ordering::SeqCst);
        }
        late
    }

    pub(crate) fn limit(&self) -> std::time::Duration {
        self.limit
    }
}

/// By which an application says that it lives: see [`NodeBuilder::watchdog`](crate::NodeBuilder::watchdog). Clones are the same.
#[derive(Clone)]
pub struct Watchdog(pub(crate) Arc<Shared>);

impl Watchdog {
    /// The application lives. Cheap: a read of the clock and a store. Call it from what would stand still if the application
    /// did, and not from a timer of its own.
    pub fn pat(&self) {
        let Some(pats) = &self.0.pats else { return };
        pats.last.store(clock::now_ns(), Ordering::SeqCst);
        if pats.late.load(Ordering::SeqCst) {
            self.0.wake.notify_one();
        }
    }
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("limit", &self.0.pats.as_ref().map(Pats::limit)).finish()
    }
}
