//! The one clock: `CLOCK_BOOTTIME`, which goes on while the machine is suspended.
//!
//! Leases, events and traces all read it, so a suspended machine finds its lease expired, and times of processes on
//! one host compare.

use std::time::{SystemTime, UNIX_EPOCH};

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
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    wall.saturating_sub(START_OF_2020).saturating_sub(now_ns() / 1_000_000_000)
}

#[cfg(test)]
mod tests {
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
