//! A panic, and the orderly end of the process, end every lease of this process first.
//!
//! Whoever unwinds, or runs exit handlers, is no leader any more; the other threads of the process may go on for long.

use std::{
    panic,
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
};

use membership_sync::NodeLease;

use crate::node::lock;

static LEASES: Mutex<Vec<(u64, NodeLease)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);
static HOOK: Once = Once::new();

/// A lease that a panic ends, until this is dropped.
pub(crate) struct Guarded(u64);

impl Guarded {
    pub(crate) fn new(lease: NodeLease) -> Self {
        HOOK.call_once(install);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&LEASES).push((number, lease));
        Self(number)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        lock(&LEASES).retain(|(number, _)| *number != self.0);
    }
}

fn install() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        revoke_all();
        before(info);
    }));
    // SAFETY: the handler is a plain function that does not unwind; `atexit` may be called at any time.
    #[allow(unsafe_code, reason = "the standard library has no exit handler")]
    let refused = unsafe { libc::atexit(at_exit) };
    if refused != 0 {
        tracing::warn!("the C library takes no exit handler: a lease lasts until the process is gone");
    }
}

extern "C" fn at_exit() {
    revoke_all();
}

fn revoke_all() {
    // Nothing panics while it holds this lock, so a panic never finds its own thread holding it.
    for (_, lease) in lock(&LEASES).iter() {
        lease.revoke();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_guarded_leases_and_spares_others() {
        let lease = || NodeLease::new().expect("a page");
        let (guarded, other, released) = (lease(), lease(), lease());
        for lease in [&guarded, &other, &released] {
            lease.extend(100);
        }
        let _guard = Guarded::new(guarded.clone());
        drop(Guarded::new(released.clone()));
        let panicked = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(panicked.is_err());
        assert_eq!((guarded.until(), other.until(), released.until()), (0, 100, 100));
    }
}
