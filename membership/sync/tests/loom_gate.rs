//! Every interleaving of requests with a change of owner. Run as the crate's documentation says.
#![cfg(loom)]

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use membership_sync::PartitionGate;

/// A request: works inside, if it is let in. All its accesses are relaxed, so that only the gate orders them.
fn request(gate: &PartitionGate, at_work: &AtomicBool) {
    if let Some(inside) = gate.enter() {
        at_work.store(true, Ordering::Relaxed);
        at_work.store(false, Ordering::Relaxed);
        drop(inside);
    }
}

/// A partition never flips while a request for it is still inside.
///
/// Found when weakened: Relaxed instead of Release where a guard leaves; Relaxed instead of Acquire in
/// `freeze`, or in `is_drained`; the count read before the bit is set; in `enter`, a look at the bit and then
/// an addition.
#[test]
fn a_gate_never_reports_drained_while_a_request_is_at_work() {
    loom::model(|| {
        let gate = Arc::new(PartitionGate::open());
        let at_work = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let requests: Vec<_> = (0..2)
            .map(|n| {
                let (gate, at_work) = (gate.clone(), at_work.clone());
                thread::spawn(move || request(&gate, &at_work[n]))
            })
            .collect();
        let nobody_works = || at_work.iter().all(|flag| !flag.load(Ordering::Relaxed));
        if gate.freeze() {
            assert!(nobody_works(), "frozen and drained");
        } else if gate.is_drained() {
            assert!(nobody_works(), "drained later");
        }
        for request in requests {
            request.join().unwrap();
        }
        assert!(gate.is_drained(), "everybody has left, and nobody could enter");
    });
}

/// Exactly one notification where the freezer has to wait, none where it need not; it comes after all work.
///
/// Found when weakened: Release instead of AcqRel where a guard leaves (the notified does not see the other's
/// work end); a second look at the state after leaving instead of the value before it (two notifications).
#[test]
fn the_freezer_is_told_once_that_the_last_has_left() {
    loom::model(|| {
        let told = Arc::new(AtomicUsize::new(0));
        let at_work = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let gate = Arc::new(PartitionGate::notifying({
            let (told, at_work) = (told.clone(), at_work.clone());
            move || {
                assert!(
                    at_work.iter().all(|flag| !flag.load(Ordering::Relaxed)),
                    "told while one is at work"
                );
                told.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let requests: Vec<_> = (0..2)
            .map(|n| {
                let (gate, at_work) = (gate.clone(), at_work.clone());
                thread::spawn(move || request(&gate, &at_work[n]))
            })
            .collect();
        let drained_at_once = gate.freeze();
        for request in requests {
            request.join().unwrap();
        }
        assert_eq!(told.load(Ordering::Relaxed), usize::from(!drained_at_once));
    });
}

/// Who enters a thawed gate sees the new owner.
///
/// Found when weakened: Relaxed instead of Release in `thaw`; Relaxed instead of Acquire in `enter`.
#[test]
fn whoever_enters_after_the_flip_sees_the_new_owner() {
    loom::model(|| {
        let gate = Arc::new(PartitionGate::open());
        let owner = Arc::new(AtomicUsize::new(1));
        assert!(gate.freeze());
        let request = thread::spawn({
            let (gate, owner) = (gate.clone(), owner.clone());
            move || {
                if let Some(_inside) = gate.enter() {
                    assert_eq!(owner.load(Ordering::Relaxed), 2);
                }
            }
        });
        owner.store(2, Ordering::Relaxed);
        gate.thaw();
        request.join().unwrap();
    });
}
