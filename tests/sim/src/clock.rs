//! A node's own clock: it runs a little fast or slow.

use membership_types::Instant;

const MILLION: u64 = 1_000_000;

/// Maps the run's one true time to a node's reading of its interval clock, and back. Both begin at 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What the clock counts in a million nanoseconds.
    rate: u64,
}

impl Clock {
    /// A clock that runs fast by so many parts per million, or slow, where that is negative.
    pub(crate) fn new(ppm: i64) -> Self {
        Self { rate: MILLION.saturating_add_signed(ppm) }
    }

    /// What the clock reads at a true time.
    pub(crate) fn local(&self, global: u64) -> Instant {
        Instant::from_nanos(scale(global, self.rate, MILLION))
    }

    /// The first true time at which the clock reads at least `local`.
    pub(crate) fn global(&self, local: Instant) -> u64 {
        let mut global = scale(local.as_nanos(), MILLION, self.rate);
        while self.local(global) < local && global < u64::MAX {
            global += 1;
        }
        global
    }
}

/// `n * by / of`, rounded down; in 64 bits, since this is asked at every step of a run.
fn scale(n: u64, by: u64, of: u64) -> u64 {
    (n / of).saturating_mul(by).saturating_add(n % of * by / of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_met_early() {
        for ppm in [-5000, -1, 0, 3, 5000] {
            let clock = Clock::new(ppm);
            for local in [1, 77_000_000, 77_000_001, 78_123_457, 1_077_000_000, 3_600_000_000_000_001] {
                let local = Instant::from_nanos(local);
                let global = clock.global(local);
                assert!(clock.local(global) >= local);
                assert!(clock.local(global - 1) < local, "{ppm} {local}");
            }
        }
    }

    #[test]
    fn what_has_no_end_has_none_on_any_clock() {
        for ppm in [-5000, 0, 5000] {
            assert!(Clock::new(ppm).global(Instant::MAX) > u64::MAX / 1000 * 995);
        }
    }

    #[test]
    fn readings_are_exact() {
        for (n, by, of) in [(12_345_678_901_234_567, 1_004_999, MILLION), (999_999, MILLION, 995_001)] {
            let exact = u128::from(n) * u128::from(by) / u128::from(of);
            assert_eq!(u128::from(scale(n, by, of)), exact);
        }
    }
}
