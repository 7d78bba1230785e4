//! The one file that names `std` or `loom`: the cells take their atomics, locks and memory from here.

/// For the values inside a [`Snapshot`](crate::Snapshot): a part of the interface, so `std`'s in both builds.
pub(crate) use std::sync::Arc as ValueArc;

#[cfg(not(loom))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, atomic};

#[cfg(loom)]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};

#[cfg(not(loom))]
pub(crate) use crate::lease_page::LeasePage;

/// The model's stand-in for the page: what matters there is the atomic, not where it lies.
#[cfg(loom)]
pub(crate) struct LeasePage(atomic::AtomicU64);

#[cfg(loom)]
impl LeasePage {
    pub(crate) fn wiped_on_fork(until: u64) -> Result<Self, crate::LeaseMemoryError> {
        Ok(Self(atomic::AtomicU64::new(until)))
    }

    pub(crate) fn kept_on_fork(until: u64) -> Result<Self, crate::LeaseMemoryError> {
        Self::wiped_on_fork(until)
    }

    pub(crate) fn until(&self) -> &atomic::AtomicU64 {
        &self.0
    }
}
