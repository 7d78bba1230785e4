//! The seeded generator that cores are handed: everything random in a protocol comes from here.

/// What the state grows by at each draw.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: small, fast, statistically sound, and equal in every process for equal seeds.
///
/// Not for secrets; shells draw those from the operating system.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rng {
    state: u64,
    step: u64,
}

impl Rng {
    /// The generator of this seed.
    pub const fn seeded(seed: u64) -> Self {
        Self { state: seed, step: STEP }
    }

    /// A generator that draws 0 for ever, for model checkers: chance must not tell states apart.
    pub const fn frozen() -> Self {
        Self { state: 0, step: 0 }
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(self.step);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; `bound` must not be 0. The bias is below `bound / 2^64`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no number");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high);
        low + self.below((high - low).saturating_add(1))
    }

    /// True `per_mille` times in a thousand.
    #[inline]
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of the items, or `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len() as u64) as usize) }
    }

    /// A generator for a part of the work, so that what one part draws does not shift the others' draws.
    pub fn split(&mut self) -> Self {
        Self { state: self.next_u64(), step: self.step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_vector_of_seed_zero() {
        // The published first outputs of SplitMix64 for seed 0.
        let mut rng = Rng::seeded(0);
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn draws_stay_in_range() {
        let mut rng = Rng::seeded(7);
        for bound in 1..200 {
            assert!(rng.below(bound) < bound);
            let n = rng.between(bound, bound + 3);
            assert!((bound..=bound + 3).contains(&n));
        }
        assert_eq!(rng.pick::<u8>(&[]), None);
    }

    #[test]
    fn a_frozen_one_draws_nothing_but_zeros() {
        let mut rng = Rng::frozen();
        assert_eq!((rng.next_u64(), rng.between(3, 9), rng.split()), (0, 3, Rng::frozen()));
        assert_eq!(rng, Rng::frozen());
    }
}
