//! An explicit table: the keys that have a partition of their own, and one partition for all others.

use alloc::{boxed::Box, string::String, vec, vec::Vec};
use core::num::NonZeroU32;

use super::{PartitionId, PmapError, RacsId};
use crate::key::KeyHash;

/// One key as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct TableEntry {
    /// The key, whole.
    pub key: Vec<u8>,
    /// Who holds it.
    pub racs: RacsId,
    /// What the partition is called.
    pub name: String,
}

/// A partition for each key that is listed, and a last one for every key that is not: so each key has exactly
/// one owner here too, and a tenant nobody has heard of goes where its operator said.
///
/// A look-up hashes the key and compares it with the one or two keys whose hashes lead to the same place.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    entries: Box<[TableEntry]>,
    default: RacsId,
    len: NonZeroU32,
    /// An entry's position plus one, at its hash's place or as near behind it as there was room; 0 is nobody.
    /// At least half of the places are empty, so searches end soon.
    places: Box<[u32]>,
}

impl Table {
    /// What the partition of all keys that are not listed is called.
    pub const DEFAULT: &str = "default";

    /// The map of these keys, and of `default` for all others; `racs_count` is how many RACS there are.
    ///
    /// # Errors
    /// A duplicate key or name, or a key assigned to a RACS that does not exist.
    pub fn new(entries: Vec<TableEntry>, default: RacsId, racs_count: u32) -> Result<Self, PmapError> {
        // A power of two that is at least twice as much, and still an index of 32 bits.
        let count = u32::try_from(entries.len()).ok().filter(|&count| count < 1 << 30);
        let count = count.ok_or(PmapError::TooMany)?;
        let owners = entries.iter().map(|entry| entry.racs).chain([default]);
        if let Some((partition, racs)) = owners.enumerate().find(|(_, racs)| racs.get() >= racs_count) {
            return Err(PmapError::UnknownRacs { partition, racs: racs.get(), count: racs_count });
        }
        let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        names.push(Self::DEFAULT);
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(PmapError::DuplicateName { name: pair[0].into() });
        }
        let places = vec![0; (2 * entries.len()).next_power_of_two().max(2)].into();
        let len = NonZeroU32::MIN.saturating_add(count);
        let mut table = Self { entries: entries.into_boxed_slice(), default, len, places };
        for index in 0..table.entries.len() {
            match table.search(&table.entries[index].key) {
                Ok(_) => {
                    let key = String::from_utf8_lossy(&table.entries[index].key).into_owned();
                    return Err(PmapError::DuplicateKey { index, key });
                }
                Err(place) => table.places[place] = index as u32 + 1,
            }
        }
        Ok(table)
    }

    /// How many partitions there are: one for each key, and the last.
    pub const fn len(&self) -> NonZeroU32 {
        self.len
    }

    pub(super) fn locate(&self, key: &[u8]) -> PartitionId {
        PartitionId::new(self.search(key).unwrap_or(self.entries.len()) as u32)
    }

    pub(super) fn racs(&self, partition: PartitionId) -> RacsId {
        match self.entries.get(partition.index()) {
            Some(entry) => entry.racs,
            None if partition.index() == self.entries.len() => self.default,
            None => panic!("a partition of another map"),
        }
    }

    pub(super) fn by_name(&self, name: &str) -> Option<PartitionId> {
        let at = self.entries.iter().position(|entry| entry.name == name);
        at.or((name == Self::DEFAULT).then_some(self.entries.len())).map(|at| PartitionId::new(at as u32))
    }

    pub(super) fn name(&self, partition: PartitionId) -> &str {
        self.entries.get(partition.index()).map_or(Self::DEFAULT, |entry| &entry.name)
    }

    /// The position of this key's entry, or the place where it would be noted.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let mask = self.places.len() - 1;
        let mut place = KeyHash::of(key).get() as usize & mask;
        loop {
            match self.places[place] {
                0 => return Err(place),
                entry if self.entries[entry as usize - 1].key == key => return Ok(entry as usize - 1),
                _ => place = (place + 1) & mask,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use membership_types::Rng;

    fn table(keys: &[&[u8]]) -> Result<Table, PmapError> {
        let entries = keys.iter().enumerate().map(|(at, key)| TableEntry {
            key: key.to_vec(),
            racs: RacsId::new(at as u32 % 2),
            name: at.to_string(),
        });
        Table::new(entries.collect(), RacsId::new(2), 3)
    }

    #[test]
    fn listed_keys_have_their_partition_and_all_others_share_the_last() {
        let map = table(&[b"eu", b"us", b"", b"\xff\0"]).unwrap();
        for (key, at) in
            [(&b"eu"[..], 0), (b"us", 1), (b"", 2), (b"\xff\0", 3), (b"e", 4), (b"euu", 4), (b"EU", 4)]
        {
            assert_eq!(map.locate(key).get(), at, "{key:?}");
        }
        assert_eq!(map.len().get(), 5);
        assert_eq!([0, 1, 2, 3, 4].map(|at| map.racs(PartitionId::new(at)).get()), [0, 1, 0, 1, 2]);
        assert_eq!(map.by_name("default"), Some(PartitionId::new(4)));
        assert_eq!(map.name(PartitionId::new(4)), "default");
        assert_eq!(map.by_name("1"), Some(PartitionId::new(1)));
        assert_eq!(map.by_name("us"), None);
        let nobody = table(&[]).unwrap();
        assert_eq!(nobody.locate(b"anything").get(), 0);
        assert_eq!(nobody.racs(PartitionId::new(0)).get(), 2);
    }

    #[test]
    fn the_search_agrees_with_a_linear_one() {
        let mut rng = Rng::seeded(11);
        for size in [1, 2, 3, 63, 64, 65, 1000] {
            let mut keys: Vec<Vec<u8>> = (0..size)
                .map(|_| (0..rng.below(6)).map(|_| *rng.pick(b"\0a\xff").unwrap()).collect())
                .collect();
            keys.sort();
            keys.dedup();
            let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let map = table(&slices).unwrap();
            for _ in 0..500 {
                let key: Vec<u8> = (0..rng.below(7)).map(|_| *rng.pick(b"\0a\xff").unwrap()).collect();
                let linear = keys.iter().position(|other| *other == key).unwrap_or(keys.len());
                assert_eq!(map.locate(&key).get() as usize, linear, "{key:?} in {keys:?}");
            }
        }
    }

    #[test]
    fn tables_that_cannot_work_are_refused() {
        assert_eq!(
            table(&[b"eu", b"us", b"eu"]).unwrap_err(),
            PmapError::DuplicateKey { index: 2, key: "eu".into() }
        );
        let entry = |name: &str, racs| TableEntry {
            key: name.as_bytes().to_vec(),
            racs: RacsId::new(racs),
            name: name.into(),
        };
        let new = |entries, default| Table::new(entries, RacsId::new(default), 1).unwrap_err();
        assert_eq!(
            new(vec![entry("a", 0), entry("b", 1)], 0),
            PmapError::UnknownRacs { partition: 1, racs: 1, count: 1 }
        );
        assert_eq!(new(vec![entry("a", 0)], 1), PmapError::UnknownRacs { partition: 1, racs: 1, count: 1 });
        assert_eq!(new(vec![entry("default", 0)], 0), PmapError::DuplicateName { name: "default".into() });
    }
}
