//! Key bytes to a number: the one hash that places keys, fixed for ever.
//!
//! The hash is **XXH3-64, seed 0**, as the xxHash project specifies it (vectors below): a few nanoseconds for
//! the short keys that routing sees, with an avalanche good enough to cut ranges out of its top bits. It is
//! no defence against chosen keys; whoever may choose keys may already choose which partition to load.

use core::num::NonZeroU32;

use xxhash_rust::xxh3::xxh3_64;

/// The 64-bit number that stands for a key in hash-slot partition maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of these key bytes: XXH3-64 with seed 0.
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reduces the hash to a slot in `0..slots`: the high half of `hash * slots`.
    ///
    /// So slot `s` holds one contiguous range of hashes, and doubling `slots` splits every slot in two.
    pub const fn slot(self, slots: NonZeroU32) -> u32 {
        ((self.0 as u128 * slots.get() as u128) >> 64) as u32
    }
}

/// The part of a Redis key that is hashed, by the rule of Redis Cluster.
///
/// If the key has a `{`, and a `}` after that first `{`, with at least one byte between them, only the bytes
/// between the first `{` and the next `}` count; otherwise the whole key does. So `{user1}.a` and `{user1}.b`
/// live in one partition, and `foo{}{bar}` is hashed whole.
pub fn tagged(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else { return key };
    let after = &key[open + 1..];
    match memchr::memchr(b'}', after) {
        None | Some(0) => key,
        Some(close) => &after[..close],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_hash_is_the_one_the_xxhash_project_publishes() {
        // The project's sanity buffer and its vectors for XXH3-64 with seed 0, one for each of its code
        // paths.
        let mut generator: u64 = 2_654_435_761;
        let buffer: Vec<u8> = (0..2367)
            .map(|_| {
                let byte = (generator >> 56) as u8;
                generator = generator.wrapping_mul(11_400_714_785_074_694_797);
                byte
            })
            .collect();
        for (len, hash) in [
            (0, 0x2d06_8005_38d3_94c2),
            (1, 0xc44b_dff4_074e_ecdb),
            (6, 0x27b5_6a84_cd2d_7325),
            (12, 0xa713_daf0_dfbb_77e7),
            (24, 0xa3fe_70bf_9d35_10eb),
            (48, 0x397d_a259_ecba_1f11),
            (80, 0xbcde_fbbb_2c47_c90a),
            (195, 0xcd94_217e_e362_ec3a),
            (403, 0xcdeb_804d_65c6_dea4),
            (512, 0x617e_4959_9013_cb6b),
            (2048, 0xdd59_e2c3_a5f0_38e0),
            (2367, 0xcb37_aeb9_e5d3_61ed),
        ] {
            assert_eq!(KeyHash::of(&buffer[..len]).get(), hash, "{len} bytes");
        }
    }

    #[test]
    fn golden_slots() {
        // These decide where data lies: a change here moves every key of every running service.
        for (key, of_16384, of_64) in [
            (&b""[..], 2881, 11),
            (b"a", 14769, 57),
            (b"abc", 7723, 30),
            (b"user1000", 11279, 44),
            (b"foo", 10971, 42),
            (b"inventory/42", 3763, 14),
            (b"\x00\xff\r\n", 7882, 30),
            (&[b'x'; 300], 10612, 41),
        ] {
            let hash = KeyHash::of(key);
            assert_eq!(hash.slot(NonZeroU32::new(16384).unwrap()), of_16384, "{key:?}");
            assert_eq!(hash.slot(NonZeroU32::new(64).unwrap()), of_64, "{key:?}");
        }
    }

    #[test]
    fn slots_stay_in_range_at_both_ends() {
        for slots in [1, 2, 3, 64, 16384, u32::MAX] {
            let slots = NonZeroU32::new(slots).unwrap();
            assert_eq!(KeyHash(0).slot(slots), 0);
            assert_eq!(KeyHash(u64::MAX).slot(slots), slots.get() - 1);
        }
    }

    #[test]
    fn tags_as_redis_cluster_defines_them() {
        for (key, hashed) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("plain", "plain"),
            ("", ""),
            ("{", "{"),
            ("}{", "}{"),
            ("}a{b", "}a{b"),
            ("}{a}", "a"),
            ("{}", "{}"),
            ("{a", "{a"),
        ] {
            assert_eq!(tagged(key.as_bytes()), hashed.as_bytes(), "{key}");
        }
    }
}
