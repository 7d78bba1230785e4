//! Key ranges: sorted lower bounds, compared byte by byte; each range ends where the next begins.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::num::NonZeroU32;

use super::{PartitionId, PmapError, RacsId};

/// One range as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeSpec {
    /// The lowest key of the range; the first range has the empty key.
    pub from: Vec<u8>,
    /// Who holds it.
    pub racs: RacsId,
    /// What the partition is called.
    pub name: String,
}

/// Partitions that are ranges of keys in byte order, which keeps neighbouring keys together.
///
/// A look-up is a binary search over the bounds' first eight bytes, which lie densely in memory; only bounds
/// that share those eight bytes with the key are compared in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// First eight bytes of each bound, big-endian, padded with zeros: ordered as the bounds are.
    prefixes: Box<[u64]>,
    ranges: Box<[RangeSpec]>,
    len: NonZeroU32,
}

impl Ranges {
    /// The map of these ranges; `racs_count` is how many RACS there are.
    ///
    /// # Errors
    /// No range, a gap (the first bound is not empty), an overlap (not sorted), a duplicate bound or name, or
    /// a range assigned to a RACS that does not exist.
    pub fn new(ranges: Vec<RangeSpec>, racs_count: u32) -> Result<Self, PmapError> {
        let len = u32::try_from(ranges.len()).map_err(|_| PmapError::TooMany)?;
        let len = NonZeroU32::new(len).ok_or(PmapError::Empty)?;
        if !ranges[0].from.is_empty() {
            return Err(PmapError::Gap { first: text(&ranges[0].from) });
        }
        for (before, pair) in ranges.windows(2).enumerate() {
            let index = before + 1;
            let (previous, from) = (&pair[0].from, &pair[1].from);
            if previous == from {
                return Err(PmapError::Duplicate { index, from: text(from) });
            }
            if previous > from {
                return Err(PmapError::Overlap { index, from: text(from), previous: text(previous) });
            }
        }
        if let Some(partition) = ranges.iter().position(|range| range.racs.get() >= racs_count) {
            let racs = ranges[partition].racs.get();
            return Err(PmapError::UnknownRacs { partition, racs, count: racs_count });
        }
        let mut names: Vec<&str> = ranges.iter().map(|range| range.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(PmapError::DuplicateName { name: pair[0].into() });
        }
        let prefixes = ranges.iter().map(|range| prefix(&range.from)).collect();
        Ok(Self { prefixes, ranges: ranges.into_boxed_slice(), len })
    }

    /// How many ranges there are.
    pub const fn len(&self) -> NonZeroU32 {
        self.len
    }

    pub(super) fn locate(&self, key: &[u8]) -> PartitionId {
        let wanted = prefix(key);
        let end = self.prefixes.partition_point(|&bound| bound <= wanted);
        // All bounds before `end` are at most the key, except those with the key's own prefix that go on
        // above it.
        let mut at = end - 1; // bound 0 is the empty key, whose prefix is 0
        if self.prefixes[at] == wanted && self.ranges[at].from.as_slice() > key {
            let first_above = self.ranges[..at].partition_point(|range| range.from.as_slice() <= key);
            at = first_above - 1; // range 0 starts at the empty key, which is above nothing
        }
        PartitionId::new(at as u32)
    }

    pub(super) fn racs(&self, partition: PartitionId) -> RacsId {
        self.ranges[partition.index()].racs
    }

    pub(super) fn by_name(&self, name: &str) -> Option<PartitionId> {
        let at = self.ranges.iter().position(|range| range.name == name)?;
        Some(PartitionId::new(at as u32))
    }

    pub(super) fn name(&self, partition: PartitionId) -> &str {
        &self.ranges[partition.index()].name
    }
}

fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec};
    use membership_types::Rng;

    fn ranges(bounds: &[&[u8]]) -> Result<Ranges, PmapError> {
        let specs = bounds.iter().enumerate().map(|(at, from)| RangeSpec {
            from: from.to_vec(),
            racs: RacsId::new(at as u32 % 2),
            name: at.to_string(),
        });
        Ranges::new(specs.collect(), 2)
    }

    #[test]
    fn a_key_lies_in_the_range_whose_bound_is_the_last_not_above_it() {
        let map = ranges(&[b"", b"B", b"Boston", b"Bostonia", b"Bostonian", b"C"]).unwrap();
        for (key, at) in [
            ("", 0),
            ("A", 0),
            ("B", 1),
            ("Bost", 1),
            ("Boston", 2),
            ("Bostoni", 2),
            ("Bostonia", 3),
            ("Bostonial", 3),
            ("Bostonian", 4),
            ("Bostonians", 4),
            ("Bz", 4),
            ("C", 5),
            ("zebra", 5),
        ] {
            assert_eq!(map.locate(key.as_bytes()).get(), at, "{key}");
        }
        assert_eq!(map.locate(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff").get(), 5);
    }

    #[test]
    fn zero_bytes_and_short_bounds_are_told_apart() {
        // The prefixes of "", "\0" and "\0\0" are equal numbers: only the full comparison tells them apart.
        let map = ranges(&[b"", b"\0", b"\0\0", b"\0\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\0\x01"]).unwrap();
        for (key, at) in [(0, 0), (1, 1), (2, 2), (3, 2), (7, 2), (8, 3), (9, 3)] {
            assert_eq!(map.locate(&[0; 9][..key]).get(), at, "{key} zeros");
        }
        assert_eq!(map.locate(b"\0\0\0\0\0\0\0\0\x01").get(), 4);
    }

    #[test]
    fn the_search_agrees_with_a_linear_one() {
        let mut rng = Rng::seeded(7);
        let mut word = |max| -> Vec<u8> {
            let len = rng.below(max);
            (0..len).map(|_| *rng.pick(b"\0\x01a\xff").unwrap()).collect()
        };
        for _ in 0..200 {
            let mut bounds: Vec<Vec<u8>> = (0..30).map(|_| word(12)).collect();
            bounds.push(vec![]);
            bounds.sort();
            bounds.dedup();
            let slices: Vec<&[u8]> = bounds.iter().map(Vec::as_slice).collect();
            let map = ranges(&slices).unwrap();
            for _ in 0..50 {
                let key = word(14);
                let linear = bounds.iter().rposition(|bound| *bound <= key).unwrap();
                assert_eq!(map.locate(&key).get() as usize, linear, "{key:?} in {bounds:?}");
            }
        }
    }

    #[test]
    fn gaps_overlaps_and_duplicates_are_refused_with_the_remedy() {
        assert_eq!(ranges(&[]).unwrap_err(), PmapError::Empty);
        assert_eq!(ranges(&[b"A", b"B"]).unwrap_err(), PmapError::Gap { first: "A".into() });
        assert_eq!(
            ranges(&[b"", b"C", b"B"]).unwrap_err(),
            PmapError::Overlap { index: 2, from: "B".into(), previous: "C".into() }
        );
        assert_eq!(
            ranges(&[b"", b"B", b"B"]).unwrap_err(),
            PmapError::Duplicate { index: 2, from: "B".into() }
        );
        let error = ranges(&[b"", b"B", b"B"]).unwrap_err().to_string();
        assert_eq!(error, "ranges 1 and 2 both start at \"B\", so range 1 is empty: remove one");
    }
}
