//! Time as the cores see it: nanoseconds on the node's own interval clock, and how far that clock may err.

use core::{
    fmt,
    hash::{Hash, Hasher},
    ops::Sub,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A reading of one node's interval clock, in nanoseconds.
///
/// In processes it is `CLOCK_BOOTTIME`, which goes on while the machine is suspended; in the simulator it
/// is the node's own drifting clock. Readings of different machines are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(u64);

/// As the one kind of number that nothing else is hashed as, so that a hasher can tell times from counts: to a model
/// checker, states that differ by the time of day alone are one.
impl Hash for Instant {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_i128(self.0.into());
    }
}

impl Instant {
    /// The clock's zero; before everything.
    pub const ZERO: Self = Self(0);
    /// Later than everything.
    pub const MAX: Self = Self(u64::MAX);

    /// The reading of `ns` nanoseconds.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// The reading in nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// `self + d`, or [`Instant::MAX`] where that would overflow.
    #[inline]
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(d)))
    }

    /// `self - d`, or [`Instant::ZERO`] where that would be negative.
    #[inline]
    #[must_use]
    pub fn before(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(d)))
    }
}

/// How long after `rhs` this reading is; zero if it is not later.
impl Sub for Instant {
    type Output = Duration;
    #[inline]
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(rhs.0))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

#[inline]
fn saturating_nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// The bound on clock drift, rho: over a true interval of t, a clock measures between t(1-rho) and t(1+rho).
///
/// Durations on the wire are the holder's. The root of every chain of leases starts at `L(1-rho)`, see
/// [`Drift::holder`]; a granter waits `(1+rho)/(1-rho)` times what it gave, see [`Drift::granter_waits`]. So a
/// granter whose clock is fast never believes a lease over that a holder with a slow clock still trusts.
///
/// Source: Gray and Cheriton, "Leases", SOSP 1989, section 5 (bounded drift instead of bounded skew).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Drift {
    per_mille: u32,
}

impl Drift {
    /// Half a percent: far above what crystal oscillators do (0.02 %), below what a broken clock does.
    pub const DEFAULT: Self = Self { per_mille: 5 };

    /// A bound of `per_mille` thousandths, at most 100 (a tenth).
    pub const fn per_mille(per_mille: u32) -> Self {
        assert!(per_mille <= 100, "a drift bound above a tenth is no clock");
        Self { per_mille }
    }

    /// What a holder may trust of a lease of length `full`: `full * (1 - rho)`, rounded down.
    #[inline]
    pub fn holder(self, full: Duration) -> Duration {
        self.scale(full, 1000 - self.per_mille, 1000, 0)
    }

    /// How long a granter waits for a duration that it gave: `given * (1 + rho) / (1 - rho)`, rounded up.
    #[inline]
    pub fn granter_waits(self, given: Duration) -> Duration {
        let d = 1000 - self.per_mille;
        self.scale(given, 1000 + self.per_mille, d, d - 1)
    }

    /// The longest duration to give so that [`Drift::granter_waits`] of it does not exceed `limit`.
    #[inline]
    pub fn giveable(self, limit: Duration) -> Duration {
        self.scale(limit, 1000 - self.per_mille, 1000 + self.per_mille, 0)
    }

    /// `full * (1 + rho)`, rounded up: how long a true interval of `full` may look on a fast clock.
    #[inline]
    pub fn stretched(self, full: Duration) -> Duration {
        self.scale(full, 1000 + self.per_mille, 1000, 999)
    }

    #[inline]
    fn scale(self, d: Duration, num: u32, den: u32, round: u32) -> Duration {
        // 64 bits are enough for seven months, and much faster.
        let small = u64::try_from(d.as_nanos()).ok().and_then(|ns| ns.checked_mul(num.into()));
        if let Some(scaled) = small.and_then(|ns| ns.checked_add(round.into())) {
            return Duration::from_nanos(scaled / u64::from(den));
        }
        let ns = (d.as_nanos() * u128::from(num) + u128::from(round)) / u128::from(den);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_granter_with_a_fast_clock_outwaits_a_holder_with_a_slow_one() {
        let rho = Drift::DEFAULT;
        for ms in [1, 50, 300, 1000, 60_000] {
            let given = rho.holder(Duration::from_millis(ms));
            // True time that each takes, in units of 1/1000: the holder's clock runs at 995, the granter's at 1005.
            let holder_true = given.as_nanos() * 1000 / 995;
            let granter_true = rho.granter_waits(given).as_nanos() * 1000 / 1005;
            assert!(granter_true + 1 >= holder_true, "{ms} ms: {granter_true} < {holder_true}");
            assert!(holder_true <= u128::from(ms) * 1_000_000);
        }
    }

    #[test]
    fn what_is_giveable_is_waited_out_within_the_limit() {
        let rho = Drift::DEFAULT;
        for ns in [0, 1, 7, 995, 1_000_003, 1_000_000_000] {
            let limit = Duration::from_nanos(ns);
            assert!(rho.granter_waits(rho.giveable(limit)) <= limit, "{ns}");
        }
    }

    #[test]
    fn long_times_are_scaled_as_short_ones_are() {
        let rho = Drift::DEFAULT;
        for ns in [u64::MAX / 1006, u64::MAX / 1005, u64::MAX / 1005 + 1, u64::MAX / 1004, u64::MAX / 2] {
            let exact = (u128::from(ns) * 1005).div_ceil(1000);
            assert_eq!(rho.stretched(Duration::from_nanos(ns)).as_nanos(), exact, "{ns}");
        }
    }

    #[test]
    fn readings_saturate_instead_of_wrapping() {
        let late = Instant::from_nanos(u64::MAX - 1);
        assert_eq!(late.after(Duration::from_secs(1)), Instant::MAX);
        assert_eq!(Instant::from_nanos(1).before(Duration::from_secs(1)), Instant::ZERO);
        assert_eq!(Instant::from_nanos(1) - late, Duration::ZERO);
        assert_eq!(Instant::ZERO.after(Duration::MAX), Instant::MAX);
    }
}
