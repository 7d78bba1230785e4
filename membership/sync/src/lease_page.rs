//! One page of memory for the lease, which a forked child finds wiped to zero.
#![allow(unsafe_code, reason = "a mapping is made, wiped on fork, and unmapped: no safe interface offers it")]

use std::{
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::LeaseMemoryError;

/// A private page that holds one atomic, at its start.
pub(crate) struct LeasePage {
    until: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the page is owned by this value alone, stays mapped as long as it, and holds an atomic only.
unsafe impl Send for LeasePage {}
// SAFETY: as above; through `&LeasePage` there is only the `&AtomicU64`, which threads may share.
unsafe impl Sync for LeasePage {}

impl LeasePage {
    /// A page that a forked child finds zeroed (`MADV_WIPEONFORK`).
    pub(crate) fn wiped_on_fork(until: u64) -> Result<Self, LeaseMemoryError> {
        let page = Self::map()?;
        // SAFETY: the range is exactly the mapping that `page` owns; the advice changes only what a later
        // fork copies. On an error `page` unmaps it.
        unsafe { rustix::mm::madvise(page.until.as_ptr().cast(), page.len, Advice::LinuxWipeOnFork) }
            .map_err(|error| LeaseMemoryError::WipeOnFork(error.into()))?;
        page.until().store(until, Ordering::Relaxed); // nobody else knows the page yet
        Ok(page)
    }

    /// A page that a forked child inherits as it was.
    pub(crate) fn kept_on_fork(until: u64) -> Result<Self, LeaseMemoryError> {
        let page = Self::map()?;
        page.until().store(until, Ordering::Relaxed); // as above
        Ok(page)
    }

    fn map() -> Result<Self, LeaseMemoryError> {
        let len = rustix::param::page_size();
        // SAFETY: without an address hint the kernel maps fresh memory and touches no other. Private and
        // anonymous is also what MADV_WIPEONFORK asks for.
        let page = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|error| LeaseMemoryError::Map(error.into()))?;
        let until = NonNull::new(page.cast()).expect("without a hint the kernel never maps address zero");
        Ok(Self { until, len })
    }

    /// The atomic in the page.
    pub(crate) fn until(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped, readable and writable until `self` is dropped, aligned to its own size,
        // and zeroed, which is a valid `AtomicU64`. Nobody accesses it but through this reference.
        unsafe { self.until.as_ref() }
    }
}

impl Drop for LeasePage {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our mapping, and no reference from `until` outlives `self`. An error
        // could only mean that the range is wrong; leaking a page is then the lesser harm.
        let _ = unsafe { rustix::mm::munmap(self.until.as_ptr().cast(), self.len) };
    }
}
