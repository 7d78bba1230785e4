//! A node's own clock: it starts anywhere and runs a little fast or slow.

use membership_types::Instant;

/// Maps the run's one true time to a node's reading of its interval clock, and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: u64,
    base: u64,
    /// Parts per million by which it runs fast (or slow, where negative).
    ppm: i64,
}

impl Clock {
    /// A clock that reads `base` nanoseconds at the true time `start`.
    pub(crate) fn new(start: u64, base: u64, ppm: i64) -> Self {
        Self { start, base, ppm }
    }

    /// What the clock reads at a true time.
    pub(crate) fn local(&self, global: u64) -> Instant {
        let elapsed = i128::from(global) - i128::from(self.start);
        let measured = elapsed * i128::from(1_000_000 + self.ppm) / 1_000_000;
        let reading = i128::from(self.base) + measured;
        Instant::from_nanos(u64::try_from(reading.max(0)).unwrap_or(u64::MAX))
    }

    /// The first true time at which the clock reads at least `local`.
    pub(crate) fn global(&self, local: Instant) -> u64 {
        let measured = i128::from(local.as_nanos()) - i128::from(self.base);
        let elapsed = (measured * 1_000_000).div_euclid(i128::from(1_000_000 + self.ppm));
        let mut global = u64::try_from((i128::from(self.start) + elapsed).max(0)).unwrap_or(u64::MAX);
        while self.local(global) < local && global < u64::MAX {
            global += 1;
        }
        global
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_met_early() {
        for ppm in [-5000, -1, 0, 3, 5000] {
            let clock = Clock::new(1_000, 77_000_000, ppm);
            for local in [77_000_000, 77_000_001, 78_123_457, 1_077_000_000] {
                let local = Instant::from_nanos(local);
                let global = clock.global(local);
                assert!(clock.local(global) >= local);
                assert!(global <= 1_000 || clock.local(global - 1) < local, "{ppm} {local}");
            }
        }
    }
}
