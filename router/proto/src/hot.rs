//! Which keys are asked for most? A few counters for each partition, whatever the number of keys.
//!
//! Source: Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams",
//! ICDT 2005 (Space-Saving); the sketches of several workers are added up as in Agarwal et al., "Mergeable
//! Summaries", PODS 2012. A key that has more than one in [`KEYS`] of its partition's requests is always among
//! those that are kept, and what is counted for it is too much by what [`HotKey::over`] says, at most.

use alloc::{boxed::Box, vec, vec::Vec};
use core::cmp::Reverse;

use crate::{KeyHash, PartitionId};

/// A key that stands for many requests each time is hot only once it was seen so often.
const SEEN: u64 = 4;
/// Keys that are counted at once for each partition.
pub const KEYS: usize = 16;
/// Services with more partitions have several of them share a sketch: so the sketches of one worker have a MiB at most.
pub const SKETCHES: usize = 1024;
/// So many bytes of a key are shown.
pub const SHOWN: usize = 32;

/// The first bytes of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    bytes: [u8; SHOWN],
    len: u8,
    cut: bool,
}

impl Prefix {
    /// Of this key.
    pub fn of(key: &[u8]) -> Self {
        let mut prefix = Self { cut: key.len() > SHOWN, ..Self::default() };
        let len = key.len().min(SHOWN);
        prefix.bytes[..len].copy_from_slice(&key[..len]);
        prefix.len = len as u8;
        prefix
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }

    /// Whether the key goes on.
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

/// One key that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotKey {
    /// Where it lies.
    pub partition: PartitionId,
    /// What stands for it: where keys are hidden, nothing else is known.
    pub hash: KeyHash,
    /// Its first bytes, where they may be known.
    pub prefix: Option<Prefix>,
    /// How many requests there were for it lately: not more than this.
    pub count: u64,
    /// How many of these may have been for other keys.
    pub over: u64,
    /// How often it was looked at: where each time stands for many requests, one says nothing.
    pub seen: u64,
}

impl HotKey {
    /// How many requests there were for it lately: not fewer than this, where each of them was looked at.
    pub fn at_least(&self) -> u64 {
        self.count - self.over
    }

    /// Whether that is exact, or an estimate from enough of its requests.
    fn is_known(&self) -> bool {
        self.seen >= SEEN.min(self.at_least())
    }
}

/// The sketch of one partition, or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sketch {
    keys: Vec<HotKey>,
    /// All that was counted.
    total: u64,
    /// A key that is not among them was counted so often at most.
    floor: u64,
}

impl Sketch {
    fn note(&mut self, partition: PartitionId, key: &[u8], weight: u64, show: bool) {
        let hash = KeyHash::of(key);
        self.total += weight;
        if let Some(known) = self.keys.iter_mut().find(|known| known.hash == hash) {
            known.count += weight;
            known.seen += 1;
            return;
        }
        let prefix = show.then(|| Prefix::of(key));
        if self.keys.len() < KEYS {
            let (count, over) = (self.floor + weight, self.floor);
            self.keys.push(HotKey { partition, hash, prefix, count, over, seen: 1 });
            return;
        }
        // The one with the fewest makes room, and leaves its count behind: nobody knows which of them were the new one's.
        let fewest = self.keys.iter_mut().min_by_key(|known| known.count).expect("there are some");
        let over = fewest.count;
        *fewest = HotKey { partition, hash, prefix, count: over + weight, over, seen: 1 };
        self.floor = self.floor.max(over);
    }

    fn halve(&mut self) {
        for key in &mut self.keys {
            let at_least = key.at_least() / 2;
            key.count = key.count.div_ceil(2);
            key.over = key.count - at_least;
            key.seen = key.seen.div_ceil(2);
        }
        self.keys.retain(|key| key.count > 1 || key.over == 0 && key.count > 0);
        self.total /= 2;
        self.floor = self.floor.div_ceil(2);
    }

    fn merge(&mut self, other: &Self) {
        for known in &mut self.keys {
            if !other.keys.iter().any(|key| key.hash == known.hash) {
                known.count += other.floor;
                known.over += other.floor;
            }
        }
        for key in &other.keys {
            match self.keys.iter_mut().find(|known| known.hash == key.hash) {
                Some(known) => {
                    known.count += key.count;
                    known.over += key.over;
                    known.seen += key.seen;
                }
                None => self.keys.push(HotKey {
                    count: key.count + self.floor,
                    over: key.over + self.floor,
                    ..*key
                }),
            }
        }
        self.total += other.total;
        self.floor += other.floor;
    }
}

/// The keys of a service that are asked for most, by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotKeys {
    /// Those that nobody asked for take no room.
    sketches: Box<[Option<Box<Sketch>>]>,
    partitions: usize,
}

impl HotKeys {
    /// For a service with so many partitions.
    pub fn new(partitions: usize) -> Self {
        Self { sketches: vec![None; partitions.min(SKETCHES)].into(), partitions }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Counts a request for a key, which stands for `weight` of them. Where the key may not be shown nothing of it is kept.
    pub fn note(&mut self, partition: PartitionId, key: &[u8], weight: u64, show: bool) {
        let at = self.place(partition);
        if let Some(sketch) = self.sketches.get_mut(at) {
            sketch.get_or_insert_default().note(partition, key, weight, show);
        }
    }

    fn place(&self, partition: PartitionId) -> usize {
        partition.get() as usize % self.sketches.len().max(1)
    }

    /// Lets half of what was counted be forgotten. Done once a minute, what is counted is of the last minutes. Keys
    /// of which hardly anything is left are dropped, so from then on a count may be too low by two.
    pub fn halve(&mut self) {
        for slot in &mut self.sketches {
            if let Some(sketch) = slot {
                sketch.halve();
            }
            slot.take_if(|sketch| sketch.keys.is_empty());
        }
    }

    /// Adds what another worker has counted. One that goes by another map is left out.
    pub fn merge(&mut self, other: &Self) {
        if self.partitions == 0 {
            self.clone_from(other);
        } else if self.partitions == other.partitions {
            for (slot, more) in self.sketches.iter_mut().zip(&other.sketches) {
                let Some(more) = more else { continue };
                slot.get_or_insert_default().merge(more);
            }
        }
    }

    /// All requests that were counted lately.
    pub fn total(&self) -> u64 {
        self.sketches.iter().flatten().map(|sketch| sketch.total).sum()
    }

    /// All that were counted for this partition; `None` where it shares its sketch with others.
    pub fn total_of(&self, partition: PartitionId) -> Option<u64> {
        if self.partitions > SKETCHES {
            return None;
        }
        self.sketches
            .get(self.place(partition))
            .map(|sketch| sketch.as_ref().map_or(0, |sketch| sketch.total))
    }

    /// The keys with the most requests, most first: as many as asked for, of those that may be more than noise.
    pub fn top(&self, most: usize) -> Vec<HotKey> {
        let all = self.sketches.iter().flatten().flat_map(|sketch| &sketch.keys);
        sorted(all.copied().collect(), most)
    }

    /// The same for one partition.
    pub fn top_of(&self, partition: PartitionId, most: usize) -> Vec<HotKey> {
        let sketch = self.sketches.get(self.place(partition)).and_then(Option::as_ref);
        let keys = sketch.into_iter().flat_map(|sketch| &sketch.keys);
        sorted(keys.filter(|key| key.partition == partition).copied().collect(), most)
    }
}

/// By what is certain: a count that is all inherited says nothing of the key that has it.
fn sorted(mut keys: Vec<HotKey>, most: usize) -> Vec<HotKey> {
    // A key that came last has its own requests alone for certain; those that mean something have more than half.
    keys.retain(|key| key.at_least() > key.over && key.is_known());
    keys.sort_by_key(|key| (Reverse(key.at_least()), key.partition.get(), key.hash.get()));
    keys.truncate(most);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::BTreeMap, format, string::String};
    use proptest::prelude::*;

    const P: PartitionId = PartitionId::new(3);

    fn counted(keys: &HotKeys) -> Vec<HotKey> {
        keys.sketches.iter().flatten().flat_map(|sketch| sketch.keys.iter().copied()).collect()
    }

    /// Checks every bound that the papers promise against exact counts.
    fn check(keys: &HotKeys, exact: &BTreeMap<String, u64>, slack: u64) {
        let total: u64 = exact.values().sum();
        assert_eq!(keys.total(), total);
        let all = counted(keys);
        for (key, count) in exact {
            let hash = KeyHash::of(key.as_bytes());
            match all.iter().find(|known| known.hash == hash) {
                Some(known) => {
                    assert!(known.at_least() <= *count && *count <= known.count, "{key}: {count}, {known:?}");
                    assert!(known.over <= total / KEYS as u64 + slack, "{known:?} of {total}");
                }
                None => {
                    assert!(*count <= total / KEYS as u64 + slack, "{key}, {count} of {total}, is missing")
                }
            }
        }
    }

    proptest! {
        #[test]
        fn counts_are_bounds_and_no_frequent_key_is_missed(
            stream in proptest::collection::vec((0..40u32, 1..5u64), 0..600), cut in 0..600usize, skew in 1..40u32,
        ) {
            let (mut one, mut first, mut second) = (HotKeys::new(8), HotKeys::new(8), HotKeys::new(8));
            let mut exact = BTreeMap::<String, u64>::new();
            for (at, (key, weight)) in stream.iter().enumerate() {
                // Some keys come far more often than others.
                let key = format!("key-{}", key % (1 + (at as u32 * 7) % skew));
                one.note(P, key.as_bytes(), *weight, true);
                let part = if at < cut { &mut first } else { &mut second };
                part.note(P, key.as_bytes(), *weight, false);
                *exact.entry(key).or_default() += weight;
            }
            check(&one, &exact, 0);
            // The same, counted by two workers.
            first.merge(&second);
            check(&first, &exact, 2);
            prop_assert!(counted(&one).len() <= KEYS && counted(&first).len() <= 2 * KEYS);
        }

        #[test]
        fn halving_keeps_bounds_to_within_what_is_dropped(stream in proptest::collection::vec(0..30u32, 0..400), every in 10..200usize) {
            let mut keys = HotKeys::new(8);
            let mut exact = BTreeMap::<u32, f64>::new();
            for (at, key) in stream.iter().enumerate() {
                keys.note(P, &key.to_be_bytes(), 1, false);
                *exact.entry(*key).or_default() += 1.0;
                if at % every == every - 1 {
                    keys.halve();
                    exact.values_mut().for_each(|count| *count /= 2.0);
                }
            }
            for known in counted(&keys) {
                let (_, count) = exact.iter().find(|(key, _)| KeyHash::of(&key.to_be_bytes()) == known.hash).unwrap();
                prop_assert!(known.at_least() as f64 <= *count && *count <= known.count as f64 + 2.0, "{known:?}, {count}");
            }
        }
    }

    #[test]
    fn what_few_ask_for_is_forgotten_and_takes_no_room_then() {
        let mut keys = HotKeys::new(4);
        (0..100).for_each(|_| keys.note(P, b"hot", 1, true));
        assert_eq!(
            (keys.total(), keys.total_of(P), keys.total_of(PartitionId::new(0))),
            (100, Some(100), Some(0))
        );
        (0..12).for_each(|_| keys.halve());
        assert_eq!((counted(&keys).len(), keys), (0, HotKeys::new(4)));
    }

    #[test]
    fn noise_is_not_told_as_news() {
        let mut keys = HotKeys::new(4);
        (0..10_000u32).for_each(|at| keys.note(P, &at.to_be_bytes(), 1, true));
        assert_eq!(keys.top(10), [], "each was asked for once");
        (0..2_000).for_each(|_| keys.note(P, b"hot", 1, true));
        let [hot] = keys.top(10)[..] else { panic!("{:?}", keys.top(10)) };
        assert_eq!((hot.hash, hot.prefix.unwrap().bytes()), (KeyHash::of(b"hot"), &b"hot"[..]));
        assert_eq!(hot.at_least(), 2_000);
        // One that stands for many was met by chance; four of them were not.
        let mut keys = HotKeys::new(4);
        (0..3).for_each(|_| keys.note(P, b"often", 64, true));
        assert_eq!(keys.top(10), []);
        keys.note(P, b"often", 64, true);
        assert_eq!(keys.top(10)[0].at_least(), 256);
    }

    #[test]
    fn hidden_keys_are_not_kept_and_long_ones_are_cut() {
        let mut keys = HotKeys::new(4);
        keys.note(P, b"private", 1, false);
        (0..2).for_each(|_| keys.note(P, &[b'x'; 100], 1, true));
        let [long, hidden] = keys.top(10)[..] else { unreachable!() };
        assert_eq!((hidden.prefix, hidden.hash), (None, KeyHash::of(b"private")));
        assert_eq!((long.prefix.unwrap().bytes(), long.prefix.unwrap().is_cut()), (&[b'x'; SHOWN][..], true));
    }

    #[test]
    fn memory_is_bounded_however_many_partitions_there_are() {
        let mut keys = HotKeys::new(1 << 20);
        for at in 0..100_000u32 {
            keys.note(PartitionId::new(at * 10), &at.to_be_bytes(), 1, true);
        }
        assert!(counted(&keys).len() <= SKETCHES * KEYS && KEYS * size_of::<HotKey>() * SKETCHES <= 3 << 19);
        let far = PartitionId::new(999_999);
        (0..1_000).for_each(|_| keys.note(far, b"hot", 1, true));
        assert_eq!((keys.top(1)[0].partition, keys.top_of(far, 9).len(), keys.total_of(far)), (far, 1, None));
        // No partition at all, as before there is a map.
        HotKeys::default().note(P, b"k", 1, true);
    }
}
