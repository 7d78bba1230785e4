//! The one clock: `CLOCK_BOOTTIME`, which goes on while the machine is suspended.
//!
//! Leases, events and traces all read it, so a suspended machine finds its lease expired, and times of processes on
//! one host compare.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use membership_types::Instant;
use rustix::time::{ClockId, clock_gettime};

/// 2020-01-01T00:00:00Z, in seconds since 1970: from here on view ids of new lineages count seconds.
const START_OF_2020: u64 = 1_577_836_800;

/// The time since this machine booted, in nanoseconds.
#[inline]
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The same, as the protocol's type.
#[inline]
pub fn now() -> Instant {
    Instant::from_nanos(now_ns())
}

/// Seconds since the start of 2020, by the wall clock, at the moment at which this machine booted.
pub(crate) fn booted_s() -> u64 {
    booted(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Duration::from_nanos(now_ns()))
}

/// The same, from what both clocks say. What is left of a second is left out of the difference, and not of each: a
/// process that was started later could be a second before another one, and its lineage begin with the same ids.
fn booted(wall: Duration, up: Duration) -> u64 {
    wall.saturating_sub(up).as_secs().saturating_sub(START_OF_2020)
}

#[cfg(test)]
mod tests {
    use super::{Duration, START_OF_2020, booted};

    #[test]
    fn all_processes_know_the_same_time_of_booting() {
        let at = Duration::new(START_OF_2020 + 1_000_000, 400_000_000);
        for ms in 0..3000 {
            let up = Duration::from_millis(ms);
            assert_eq!(booted(at + up, up), 1_000_000, "after {ms} ms");
        }
        assert_eq!(booted(Duration::ZERO, Duration::from_secs(9)), 0, "a wall clock that was never set");
    }

    #[test]
    fn the_clock_never_goes_back() {
        let mut last = super::now();
        for _ in 0..1000 {
            let now = super::now();
            assert!(now >= last);
            last = now;
        }
        assert!(super::booted_s() > 0, "somebody boots before 2020");
    }
}
