//! The door of a partition: requests enter and leave, a mover freezes it and learns when the last has left.

use std::ops::Deref;

use crate::shim::atomic::{AtomicUsize, Ordering};

/// The lowest bit of the state: nobody may enter. The bits above count who is inside.
const FROZEN: usize = 1;
/// One request inside.
const ONE: usize = 2;

/// Counts the requests inside a partition, and lets nobody in while it is frozen.
///
/// A change of owner freezes the gate, waits until it has drained, flips the owner and thaws. Entering and
/// leaving are one atomic step each on one shared word, without lock or allocation.
///
/// # Examples
/// ```no_run
/// use membership_sync::PartitionGate;
///
/// let gate = PartitionGate::open();
/// let request = gate.enter().expect("open");
/// assert!(!gate.freeze(), "a request is inside");
/// assert!(gate.enter().is_none(), "frozen: wait in the queue");
/// drop(request);
/// assert!(gate.is_drained(), "now the owner may change");
/// gate.thaw();
/// assert!(gate.enter().is_some());
/// ```
pub struct PartitionGate {
    state: AtomicUsize,
    on_drained: Option<Box<dyn Fn() + Send + Sync>>,
}

impl PartitionGate {
    /// An open gate with nobody inside.
    pub fn open() -> Self {
        Self { state: AtomicUsize::new(0), on_drained: None }
    }

    /// An open gate that calls `on_drained` when the last request has left while it is frozen.
    ///
    /// It is called by the guard that leaves, on that thread, once for every
    /// [`freeze`](PartitionGate::freeze) that answered false and was not thawed before. It must not block or
    /// panic: wake the mover, which then asks [`is_drained`](PartitionGate::is_drained) (by then the gate may
    /// have been thawed and frozen anew).
    pub fn notifying(on_drained: impl Fn() + Send + Sync + 'static) -> Self {
        Self { state: AtomicUsize::new(0), on_drained: Some(Box::new(on_drained)) }
    }

    /// Lets a request in, unless the gate is frozen. The request is inside until the guard is dropped.
    #[inline]
    pub fn enter(&self) -> Option<Inside<&Self>> {
        Self::enter_by(self)
    }

    /// As [`enter`](PartitionGate::enter), with a guard that keeps an `Arc<PartitionGate>`, or whatever leads
    /// to the gate: for requests that outlive the borrow.
    #[inline]
    pub fn enter_by<G: Deref<Target = Self>>(gate: G) -> Option<Inside<G>> {
        // A compare-and-swap loop, and not an addition that is taken back where the gate was frozen: nobody
        // is ever counted who was not let in, so a drained gate is drained for good.
        // Acquire: who enters sees what was written before `thaw`, the new owner above all.
        // Relaxed on failure: a refused request learns nothing but that it has to wait.
        let let_in = |state: usize| (state & FROZEN == 0).then(|| state + ONE);
        match gate.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, let_in) {
            Ok(_) => Some(Inside { gate }),
            Err(_) => None,
        }
    }

    /// Lets nobody in any more. True if nobody is inside either: then the gate is drained, and nobody is
    /// told.
    ///
    /// Freezing a frozen gate changes nothing and answers the same question again.
    pub fn freeze(&self) -> bool {
        // Acquire: if nobody is inside, what was done inside happened before. It pairs with the release of
        // each guard, since all steps on the word are read-modify-writes and so continue one release
        // sequence.
        self.state.fetch_or(FROZEN, Ordering::Acquire) & !FROZEN == 0
    }

    /// Lets requests in again.
    pub fn thaw(&self) {
        // Release: what was written while the gate was frozen happens before whatever enters.
        self.state.fetch_and(!FROZEN, Ordering::Release);
    }

    /// Whether the gate is frozen and nobody is inside: true stays true until it is thawed.
    pub fn is_drained(&self) -> bool {
        // Acquire: as in `freeze`.
        self.state.load(Ordering::Acquire) == FROZEN
    }

    /// Whether nobody is inside right now. Of an open gate the next instant may say otherwise.
    pub fn is_empty(&self) -> bool {
        // Acquire: as in `freeze`.
        self.state.load(Ordering::Acquire) & !FROZEN == 0
    }
}

impl Default for PartitionGate {
    fn default() -> Self {
        Self::open()
    }
}

/// A request inside a [`PartitionGate`]; dropping it leaves.
#[must_use = "dropping the guard leaves the partition at once"]
pub struct Inside<G: Deref<Target = PartitionGate>> {
    gate: G,
}

impl<G: Deref<Target = PartitionGate>> Drop for Inside<G> {
    #[inline]
    fn drop(&mut self) {
        // Release: what was done inside happens before the freezer's look at an empty gate.
        // Acquire: if we are the last, what the others did inside happens before the notification.
        let before = self.gate.state.fetch_sub(ONE, Ordering::AcqRel);
        if before == ONE | FROZEN
            && let Some(on_drained) = &self.gate.on_drained
        {
            on_drained();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn counting() -> (PartitionGate, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let gate = PartitionGate::notifying(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (gate, calls)
    }

    #[test]
    fn an_empty_gate_is_drained_when_frozen_and_nobody_is_told() {
        let (gate, calls) = counting();
        assert!(gate.is_empty() && !gate.is_drained());
        assert!(gate.freeze());
        assert!(gate.is_drained());
        assert_eq!(calls.load(Ordering::Relaxed), 0, "the caller was told by the answer");
    }

    #[test]
    fn the_last_of_several_to_leave_a_frozen_gate_tells() {
        let (gate, calls) = counting();
        let (a, b) = (gate.enter(), gate.enter());
        assert!(!gate.freeze());
        drop(a);
        assert!(!gate.is_drained() && calls.load(Ordering::Relaxed) == 0);
        drop(b);
        assert!(gate.is_drained() && calls.load(Ordering::Relaxed) == 1);
        assert!(gate.freeze(), "asked again, drained again");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_open_gate_that_empties_tells_nobody() {
        let (gate, calls) = counting();
        drop(gate.enter());
        let inside = gate.enter();
        assert!(!gate.freeze());
        gate.thaw();
        drop(inside);
        assert_eq!(calls.load(Ordering::Relaxed), 0, "thawed before it drained");
    }

    #[test]
    fn a_frozen_gate_refuses_and_a_thawed_one_lets_in() {
        let gate = PartitionGate::default();
        gate.freeze();
        assert!(gate.enter().is_none());
        assert!(gate.is_drained(), "a refused request was never inside");
        gate.thaw();
        assert!(gate.enter().is_some());
    }

    #[test]
    fn a_guard_may_own_its_gate() {
        // A request in a pipeline outlives the stack frame that let it in, and even the mover.
        let gate = Arc::new(PartitionGate::open());
        let inside = PartitionGate::enter_by(Arc::clone(&gate)).expect("open");
        assert!(!gate.freeze());
        let weak = Arc::downgrade(&gate);
        drop(gate);
        assert!(weak.upgrade().is_some_and(|gate| !gate.is_drained()));
        drop(inside);
        assert!(weak.upgrade().is_none());
    }
}
