//! The one shape of every protocol in Phalanx.

use crate::Instant;

/// A protocol as a value: time and input go in, effects come out.
///
/// No socket, clock, task, lock or global randomness is inside, so the same code runs under tokio, in the
/// simulator and under a model checker. The contract between a machine and whoever drives it:
///
/// 1. One mutation ([`handle`](Machine::handle) or [`handle_timeout`](Machine::handle_timeout)), then
///    [`poll_output`](Machine::poll_output) until `None`, then the next mutation.
/// 2. `now` never goes back.
/// 3. After each drain ask [`poll_timeout`](Machine::poll_timeout) again: each answer replaces the one before.
/// 4. Outputs are carried out in their order. An output that says something happened is true when it is
///    polled; what it allows ends at the times that it names.
pub trait Machine {
    /// What may come in.
    type Input;
    /// What may come out.
    type Output;

    /// Applies one input at `now`. Hostile input becomes an output or nothing, never a panic.
    fn handle(&mut self, now: Instant, input: Self::Input);

    /// Fires every timer due at or before `now`; an early or repeated call changes nothing.
    fn handle_timeout(&mut self, now: Instant);

    /// Takes the next effect. Drain to `None` before the next mutation.
    fn poll_output(&mut self) -> Option<Self::Output>;

    /// When to call [`handle_timeout`](Machine::handle_timeout) if nothing else comes; `None` for never.
    fn poll_timeout(&self) -> Option<Instant>;
}
