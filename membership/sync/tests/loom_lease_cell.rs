//! Every interleaving of one question with the control thread's steps. Run as the crate's documentation says.
#![cfg(loom)]

use loom::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};
use membership_sync::{LeaderCell, NodeLease};

/// A lease that ends at `until`, and a cell under it.
fn leased(until: u64) -> (NodeLease, Arc<LeaderCell>) {
    let lease = NodeLease::new().expect("the model has memory");
    lease.extend(until);
    (lease.clone(), Arc::new(LeaderCell::new(lease)))
}

/// An old token is never combined with a later lease.
///
/// Found when weakened: Relaxed instead of Release in `extend`; Relaxed instead of Acquire at the load of the
/// lease end; the second load of the token left out; `extend` before `stop` in the control thread.
#[test]
fn a_lapsed_leader_that_stopped_is_not_revived_by_the_next_lease() {
    loom::model(|| {
        let (lease, cell) = leased(10);
        let clock = Arc::new(AtomicU64::new(0));
        cell.lead(5);
        let reader = thread::spawn({
            let (cell, clock) = (cell.clone(), clock.clone());
            move || {
                let read_at = Cell::new(0);
                let now = || {
                    let now = clock.load(Ordering::Acquire);
                    read_at.set(now);
                    now
                };
                let current = cell.is_current(5, now);
                assert!(!current || read_at.get() < 10, "token 5 was cleared before the lease went past 10");
            }
        });
        clock.store(10, Ordering::Release); // the lease lapses; token 5 is still set
        cell.stop();
        lease.extend(20);
        reader.join().unwrap();
    });
}

/// A new token is never combined with an earlier, longer lease.
///
/// Found when weakened: Relaxed instead of Release in `lead`; Relaxed instead of Acquire at the first load of
/// the token.
#[test]
fn a_reign_that_begins_under_a_shortened_lease_ends_with_it() {
    loom::model(|| {
        let (lease, cell) = leased(10);
        let reader = thread::spawn({
            let cell = cell.clone();
            move || assert!(!cell.is_current(5, || 7), "before token 5 was set, the lease ended at 6")
        });
        lease.shorten(6);
        cell.lead(5);
        reader.join().unwrap();
    });
}

/// Who hears "stopped", from whomever, finds the node stopped.
///
/// No ordering inside the cell carries this: the clearing comes before the message, and the message's own
/// release and acquire publish it. Found when weakened: the message sent before `stop`; Relaxed instead of
/// Release at the message; `stop` without the clearing.
#[test]
fn whoever_heard_that_the_leader_stopped_finds_it_stopped() {
    loom::model(|| {
        let (_lease, cell) = leased(10);
        let stopped = Arc::new(AtomicBool::new(false));
        cell.lead(5);
        let reader = thread::spawn({
            let (cell, stopped) = (cell.clone(), stopped.clone());
            move || {
                if stopped.load(Ordering::Acquire) {
                    assert!(!cell.is_current(5, || 0));
                    assert_eq!(cell.current(|| 0), None);
                }
            }
        });
        cell.stop();
        stopped.store(true, Ordering::Release);
        reader.join().unwrap();
    });
}

/// A panic hook ends the lease from another thread, whatever the control thread is doing.
///
/// Found when weakened: a load and a store instead of the read-modify-write in `change`.
#[test]
fn a_revocation_is_not_undone_by_an_extension_under_way() {
    loom::model(|| {
        let (lease, cell) = leased(10);
        cell.lead(5);
        let hook = thread::spawn({
            let (lease, cell) = (lease.clone(), cell.clone());
            move || {
                lease.revoke();
                assert!(!cell.is_current(5, || 0));
            }
        });
        lease.extend(20);
        hook.join().unwrap();
        assert!(!cell.is_current(5, || 0));
        assert!(!lease.extend(30));
    });
}

/// A reign may go on under its token after a gap; the gap itself stays closed.
///
/// The node leads until 10, lapses, stops, gets a lease until 30 at time 20 and leads again. An answer of
/// true with the clock between 10 and 20 would be the old token under the new lease.
///
/// Found when weakened: Relaxed instead of Release in `extend`; Relaxed instead of Acquire at the load of the
/// lease end; `extend` before `stop` in the control thread.
#[test]
fn the_gap_in_a_reign_is_nobodys() {
    loom::model(|| {
        let (lease, cell) = leased(10);
        let clock = Arc::new(AtomicU64::new(0));
        cell.lead(5);
        let reader = thread::spawn({
            let (cell, clock) = (cell.clone(), clock.clone());
            move || {
                let read_at = Cell::new(0);
                let now = || {
                    let now = clock.load(Ordering::Acquire);
                    read_at.set(now);
                    now
                };
                let current = cell.is_current(5, now);
                assert!(!current || read_at.get() < 10 || read_at.get() >= 20, "true within the gap");
            }
        });
        clock.store(10, Ordering::Release);
        cell.stop();
        clock.store(20, Ordering::Release);
        lease.extend(30);
        cell.lead(5);
        reader.join().unwrap();
    });
}
