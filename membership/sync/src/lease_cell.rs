//! Whether this node leads a group right now: a token per group, under one lease per node.
//!
//! # The claim
//!
//! [`LeaderCell::is_current`] is true only if there was one instant, no later than its reading of the clock,
//! at which the token was set and the lease unexpired. And once a stop was published (a release store, a
//! message), no later question is answered with true.
//!
//! # Why it holds
//!
//! One thread, the control thread, writes tokens and lease ends; what follows is its program order. The
//! reader loads the token (T1), the lease end (U), the token again (T2), then reads the clock (C).
//!
//! - *An old token is never combined with a later lease.* The control thread stops before it extends. If U
//!   reads an end written after that stop, U's acquire pairs with the release of `extend`, so T2 finds the
//!   token cleared, or a later one.
//! - *A new token is never combined with an earlier, longer lease.* If T1 reads a token that was set after
//!   the lease was shortened, T1's acquire pairs with the release of `lead`, so U reads the shorter end.
//! - So if T1 and T2 read the same `lead`, the end that U read (or a later one) was in force together with
//!   the token, from the later of their two writes on. Both were written before C, and C < U.
//! - If T1 and T2 read two `lead`s of the same token (a reign goes on after a gap), then the second one
//!   happened between T1 and T2, and `lead` asks for an unexpired lease: that is the instant.
//!
//! A pause between the answer and the act stays possible. Only the token survives it: every external effect
//! carries it.

use std::io;

use crate::shim::{
    Arc, LeasePage,
    atomic::{AtomicU64, Ordering},
};

/// In a lease: no lease, for ever. It is what the kernel leaves in a wiped page, so that a forked child is as
/// good as revoked, whatever it calls.
const REVOKED: u64 = 0;
/// In a lease: none yet. It ended one nanosecond after boot.
const NEVER: u64 = 1;
/// In a cell: not leading. View ids, and so tokens, begin above it.
const NOT_LEADING: u64 = 0;

/// The memory for a lease could not be had. Nothing was allocated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseMemoryError {
    /// The kernel gave no page at all: the process is at a limit of memory or of mappings.
    #[error("no page of memory for the lease: raise ulimit -v or vm.max_map_count")]
    Map(#[source] io::Error),
    /// The kernel does not wipe pages on fork: Linux before 4.14, or a sandbox. A program that never forks
    /// without exec loses nothing with [`NodeLease::kept_on_fork`].
    #[error("the kernel refused to wipe the lease's page on fork (MADV_WIPEONFORK, Linux 4.14)")]
    WipeOnFork(#[source] io::Error),
}

/// Until when this node may believe that it has not been removed. One per node and incarnation.
///
/// A cheap handle: clones share one lease. The end is in nanoseconds of `CLOCK_BOOTTIME`. The control thread
/// alone extends and shortens; any thread may [revoke](NodeLease::revoke). The lease lies in memory that a
/// forked child finds wiped: there it is revoked.
#[derive(Clone)]
pub struct NodeLease {
    page: Arc<LeasePage>,
}

impl NodeLease {
    /// A lease that has not begun.
    ///
    /// # Errors
    /// [`LeaseMemoryError`] if the kernel gives no page, or none that is wiped on fork.
    pub fn new() -> Result<Self, LeaseMemoryError> {
        Ok(Self { page: Arc::new(LeasePage::wiped_on_fork(NEVER)?) })
    }

    /// As [`NodeLease::new`], for kernels that do not wipe pages: a child that is forked without exec
    /// believes for the rest of the lease that it is this node. For programs that never fork so.
    ///
    /// # Errors
    /// [`LeaseMemoryError::Map`] if the kernel gives no page.
    pub fn kept_on_fork() -> Result<Self, LeaseMemoryError> {
        Ok(Self { page: Arc::new(LeasePage::kept_on_fork(NEVER)?) })
    }

    /// The end, in nanoseconds of `CLOCK_BOOTTIME`; 0 once revoked, and in a forked child.
    pub fn until(&self) -> u64 {
        // Relaxed: a lone number for status pages. Who acts under the lease asks a `LeaderCell`.
        self.page.until().load(Ordering::Relaxed)
    }

    /// Moves the end to `until`, unless it is later already. False if the lease was revoked: then nothing
    /// changes any more, and the node has to join anew, with a new lease.
    ///
    /// For the control thread. Stop the groups whose leadership has lapsed *before* extending.
    pub fn extend(&self, until: u64) -> bool {
        // Release: whoever reads this end sees every `stop` that came before it; see the claim above.
        self.change(Ordering::Release, |end| end.max(until))
    }

    /// Moves the end to `until`, unless it is earlier already. False if the lease was revoked.
    ///
    /// For the control thread: authority may come to depend on a further, shorter grant. A question that is
    /// being answered meanwhile may still be answered by the longer end.
    pub fn shorten(&self, until: u64) -> bool {
        // Relaxed: whoever reads the shorter end and answers true could have answered so by the longer one.
        // To a token that is set after this, `lead` releases it; an `extend` before it stays released,
        // because a read-modify-write continues its release sequence.
        self.change(Ordering::Relaxed, |end| end.min(until.max(NEVER)))
    }

    /// Ends the lease for ever. For every way out: a panic hook, `exit`, removal.
    ///
    /// From any thread: the control thread cannot undo it by an extension that was under way.
    pub fn revoke(&self) {
        // Relaxed: the value is final, so whoever learns of the revocation in any way that happens after it
        // reads it by coherence. Nobody concludes anything else from reading it. A swap, so that this step
        // too reads and writes, and an extension comes wholly before it or wholly after.
        self.page.until().swap(REVOKED, Ordering::Relaxed);
    }

    /// Replaces the end in one step, so that a revocation from another thread is never overwritten.
    fn change(&self, success: Ordering, to: impl Fn(u64) -> u64) -> bool {
        // Relaxed on failure: the loaded end is only compared and replaced.
        let change = |end| (end != REVOKED).then(|| to(end));
        self.page.until().fetch_update(success, Ordering::Relaxed, change).is_ok()
    }
}

/// What application threads ask before they act for one group. Share it in an `Arc`.
///
/// Reading is wait-free: three loads and the clock. The control thread alone calls [`lead`](LeaderCell::lead)
/// and [`stop`](LeaderCell::stop).
///
/// # Examples
/// ```no_run
/// # fn main() -> Result<(), membership_sync::LeaseMemoryError> {
/// use membership_sync::{LeaderCell, NodeLease};
///
/// let boottime = || 1_000; // nanoseconds of CLOCK_BOOTTIME
/// let lease = NodeLease::new()?;
/// let cell = LeaderCell::new(lease.clone());
///
/// lease.extend(2_000);
/// cell.lead(17);
/// assert!(cell.is_current(17, boottime));
/// assert!(!cell.is_current(17, || 2_000), "the lease has lapsed");
///
/// cell.stop();
/// assert_eq!(cell.current(boottime), None);
/// # Ok(()) }
/// ```
pub struct LeaderCell {
    lease: NodeLease,
    token: AtomicU64,
}

impl LeaderCell {
    /// A cell that does not lead, under `lease`.
    pub fn new(lease: NodeLease) -> Self {
        Self { lease, token: AtomicU64::new(NOT_LEADING) }
    }

    /// Whether this node leads under `token` now, by `clock` (nanoseconds of `CLOCK_BOOTTIME`).
    ///
    /// False once the lease lapsed or was revoked, after [`stop`](LeaderCell::stop), and for every other
    /// token.
    #[inline]
    pub fn is_current(&self, token: u64, clock: impl Fn() -> u64) -> bool {
        token != NOT_LEADING && self.token() == token && self.confirm(token, clock)
    }

    /// The token under which this node leads now, if it does.
    #[inline]
    pub fn current(&self, clock: impl Fn() -> u64) -> Option<u64> {
        let token = self.token();
        (token != NOT_LEADING && self.confirm(token, clock)).then_some(token)
    }

    /// Until when this node leads under `token` as far as is known now, if it does: for whoever watches over others that
    /// act for it. As [`is_current`](LeaderCell::is_current), but it gives the end that the claim is about.
    pub fn current_until(&self, token: u64, clock: impl Fn() -> u64) -> Option<u64> {
        if token == NOT_LEADING || self.token() != token {
            return None;
        }
        self.confirmed(token, clock)
    }

    /// Begins to lead under `token`, or goes on doing so after a gap.
    ///
    /// For the control thread, while the lease is unexpired, and after the stop of the reign before. A token
    /// comes back only as long as its reign lasts: nobody else led in between.
    ///
    /// # Panics
    /// If `token` is 0, which stands for "not leading".
    pub fn lead(&self, token: u64) {
        assert_ne!(token, NOT_LEADING, "token 0 stands for not leading");
        // Release: whoever reads this token sees the lease as it is now, and not as it was before it was
        // shortened; see the claim above.
        self.token.store(token, Ordering::Release);
    }

    /// Ends leadership of the group, and gives the token that was set, if any.
    ///
    /// For the control thread. When this has returned, send "stopped": nobody who hears of it, however
    /// indirectly, is told by this cell that it still leads.
    pub fn stop(&self) -> Option<u64> {
        // Relaxed: the clearing comes before the message in program order, and whatever publishes the message
        // publishes the clearing; before a later lease, `extend` releases it.
        let token = self.token.swap(NOT_LEADING, Ordering::Relaxed);
        (token != NOT_LEADING).then_some(token)
    }

    /// T1 of the claim above.
    #[inline]
    fn token(&self) -> u64 {
        // Acquire: the lease end is loaded after this, and is no older than the token; pairs with `lead`.
        self.token.load(Ordering::Acquire)
    }

    /// U, T2 and C of the claim above: whether `token`, which was just loaded, is backed by the lease.
    #[inline]
    fn confirm(&self, token: u64, clock: impl Fn() -> u64) -> bool {
        self.confirmed(token, clock).is_some()
    }

    /// The same, and U.
    #[inline]
    fn confirmed(&self, token: u64, clock: impl Fn() -> u64) -> Option<u64> {
        // Acquire: the token is loaded again after this, and is no older than the end; pairs with `extend`.
        let until = self.lease.page.until().load(Ordering::Acquire);
        // Acquire: keeps the clock, which is no atomic, behind the load.
        (self.token.load(Ordering::Acquire) == token && clock() < until).then_some(until)
    }
}

#[cfg(all(test, not(loom)))]
#[allow(unsafe_code, reason = "a test forks")]
mod tests {
    use super::*;

    fn led(token: u64, until: u64) -> (NodeLease, LeaderCell) {
        let lease = NodeLease::new().expect("the kernel wipes pages on fork");
        let cell = LeaderCell::new(lease.clone());
        assert!(lease.extend(until));
        cell.lead(token);
        (lease, cell)
    }

    #[test]
    fn a_leader_is_current_until_the_nanosecond_at_which_its_lease_ends() {
        let (_lease, cell) = led(5, 100);
        assert!(cell.is_current(5, || 99));
        assert_eq!(cell.current_until(5, || 99), Some(100));
        assert_eq!((cell.current_until(5, || 100), cell.current_until(4, || 99)), (None, None));
        assert!(!cell.is_current(5, || 100));
        assert_eq!((cell.current(|| 99), cell.current(|| 100)), (Some(5), None));
    }

    #[test]
    fn a_token_of_another_reign_or_zero_is_never_current() {
        let (_lease, cell) = led(5, 100);
        assert!(!cell.is_current(4, || 1));
        assert!(!cell.is_current(6, || 1));
        assert_eq!(cell.stop(), Some(5));
        assert_eq!(cell.stop(), None);
        assert!(!cell.is_current(0, || 1), "nobody leads under no token");
    }

    #[test]
    fn a_reign_goes_on_under_its_token_after_a_gap() {
        // The lease lapsed, nobody else took over, and renewals came back: same view, same token.
        let (lease, cell) = led(5, 100);
        assert_eq!(cell.stop(), Some(5));
        lease.extend(200);
        assert!(!cell.is_current(5, || 150), "stopped before it was extended");
        cell.lead(5);
        assert!(cell.is_current(5, || 150));
    }

    #[test]
    fn extending_never_shortens_and_shortening_never_extends() {
        let lease = NodeLease::new().expect("the kernel wipes pages on fork");
        lease.extend(100);
        lease.extend(50);
        assert_eq!(lease.until(), 100);
        lease.shorten(200);
        assert_eq!(lease.until(), 100);
        lease.shorten(50);
        assert_eq!(lease.until(), 50);
        assert!(lease.shorten(0), "shortened to nothing is not revoked");
        assert!(lease.extend(60));
    }

    #[test]
    fn a_revoked_lease_stays_revoked() {
        let (lease, cell) = led(5, 100);
        lease.revoke();
        assert!(!lease.extend(200));
        assert!(!lease.shorten(200));
        assert_eq!(lease.until(), 0);
        assert!(!cell.is_current(5, || 0));
    }

    #[test]
    fn a_forked_child_finds_no_lease_and_cannot_get_one() {
        // A fork copies the token and the handle. Without the wiped page two processes would act as leader.
        let (lease, cell) = led(5, 100);
        // SAFETY: between fork and _exit the child only loads and stores atomics: no allocation, no lock.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork failed");
        if child == 0 {
            let none = lease.until() == 0 && !cell.is_current(5, || 1);
            let none_to_come = !lease.extend(200) && !cell.is_current(5, || 1);
            // SAFETY: ends the child without running any destructor or exit handler of the parent's.
            unsafe { libc::_exit(if none && none_to_come { 0 } else { 1 }) }
        }
        let mut status = 0;
        // SAFETY: `child` is our own unreaped child, and `status` lives through the call.
        let reaped = unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!((reaped, status), (child, 0), "the child exits with 0");
        assert!(cell.is_current(5, || 99), "the parent's lease is untouched");
    }

    #[test]
    fn a_lease_kept_on_fork_works_alike_in_its_own_process() {
        let lease = NodeLease::kept_on_fork().expect("a page");
        let cell = LeaderCell::new(lease.clone());
        lease.extend(100);
        cell.lead(5);
        assert!(cell.is_current(5, || 99));
    }
}
