//! Fingerprints of machines in which times count only by how long ago, or how soon, they are.

use std::hash::{Hash, Hasher};

/// Node i's clock stands at `(i + 1) << CLOCK_BITS` plus [`NOON`] when a model begins: clocks of different nodes have
/// nothing in common, and each reading shows whose it is.
pub const CLOCK_BITS: u32 = 44;
/// Where in its range a clock begins, so that what was long before fits in too.
pub const NOON: u64 = 1 << (CLOCK_BITS - 1);

/// Folds what it is given into 64 bits; times as distances from now.
///
/// It relies on instants being the only numbers that are hashed as `i128`; see `membership_types::Instant`.
pub struct Marker {
    state: u64,
    /// How long ago the clocks began; `None` where time has no meaning at all.
    now: Option<u64>,
    /// What is longer ago than this is just long ago, what is farther ahead is just far.
    far: u64,
}

impl Marker {
    /// Where time has no meaning.
    pub fn timeless() -> Self {
        Self { state: 0x51_7c_c1_b7_27_22_0a_95, now: None, far: 0 }
    }

    /// At `now` nanoseconds after the clocks began.
    pub fn at(now: u64, far: u64) -> Self {
        Self { now: Some(now), far, ..Self::timeless() }
    }

    /// The mark of a value.
    pub fn of(mut self, value: &impl Hash) -> u64 {
        value.hash(&mut self);
        self.finish()
    }
}

impl Hasher for Marker {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 59));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let word = u128::from(self.state ^ word ^ 0x9e37_79b9_7f4a_7c15);
        let product = word.wrapping_mul(0xd6e8_feb8_6659_fd93_a076_1d64_78bd_642f);
        self.state = (product as u64) ^ ((product >> 64) as u64).rotate_left(23);
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_u16(&mut self, n: u16) {
        self.write_u64(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    /// An instant.
    fn write_i128(&mut self, reading: i128) {
        let Some(now) = self.now else { return };
        let reading = reading as u64;
        let (owner, far) = (reading >> CLOCK_BITS, self.far as i64);
        let distance = match owner {
            0 => -far,
            _ if owner > 1000 => far,
            _ => {
                let since_start = (reading & ((1 << CLOCK_BITS) - 1)) as i64 - NOON as i64;
                (since_start - now as i64).clamp(-far, far)
            }
        };
        self.write_u64(distance as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use membership_types::Instant;

    #[test]
    fn times_count_by_their_distance_alone() {
        let clock =
            |node: u64, at: i64| Instant::from_nanos((node + 1) << CLOCK_BITS | (NOON as i64 + at) as u64);
        let mark = |now, at| Marker::at(now, 1000).of(&(7_u64, clock(0, at), clock(3, at)));
        assert_eq!(mark(100, 150), mark(300, 350));
        assert_ne!(mark(100, 150), mark(100, 151));
        assert_eq!(mark(5000, 100), mark(5000, -7), "both are long ago");
        assert_eq!(Marker::at(9, 1000).of(&Instant::ZERO), Marker::at(9, 1000).of(&clock(0, -5000)));
        assert_eq!(Marker::at(9, 1000).of(&Instant::MAX), Marker::at(9, 1000).of(&clock(2, 5000)));
        assert_ne!(Marker::at(9, 1000).of(&7_u64), Marker::at(9, 1000).of(&8_u64));
    }
}
