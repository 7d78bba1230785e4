//! Hash slots: the key's hash is reduced to one of n partitions, and a table says who holds each.

use alloc::{boxed::Box, vec::Vec};
use core::num::NonZeroU32;

use super::{PartitionId, PmapError, RacsId, parse_number};
use crate::key::KeyHash;

/// n partitions named `0` to `n-1`, each a contiguous share of the hash space, and the RACS of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Slots {
    owners: Box<[RacsId]>,
    len: NonZeroU32,
}

impl Slots {
    /// The most partitions that a map may have: 4 MiB of table.
    pub const MAX: u32 = 1 << 20;

    /// The map in which `owners[p]` holds partition `p`; `racs_count` is how many RACS there are.
    ///
    /// # Errors
    /// No partition, too many, or one that is assigned to a RACS that does not exist.
    pub fn new(owners: Vec<RacsId>, racs_count: u32) -> Result<Self, PmapError> {
        let len =
            u32::try_from(owners.len()).ok().filter(|&len| len <= Self::MAX).ok_or(PmapError::TooMany)?;
        let len = NonZeroU32::new(len).ok_or(PmapError::Empty)?;
        if let Some(partition) = owners.iter().position(|owner| owner.get() >= racs_count) {
            return Err(PmapError::UnknownRacs {
                partition,
                racs: owners[partition].get(),
                count: racs_count,
            });
        }
        Ok(Self { owners: owners.into_boxed_slice(), len })
    }

    /// How many partitions there are.
    pub const fn len(&self) -> NonZeroU32 {
        self.len
    }

    pub(super) fn locate(&self, key: &[u8]) -> PartitionId {
        PartitionId::new(KeyHash::of(key).slot(self.len))
    }

    pub(super) fn racs(&self, partition: PartitionId) -> RacsId {
        self.owners[partition.index()]
    }

    pub(super) fn by_name(&self, name: &str) -> Option<PartitionId> {
        parse_number(name).filter(|&number| number < self.len.get()).map(PartitionId::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec};

    use crate::pmap::{Epoch, Pmap};

    fn ids(ids: &[u32]) -> Vec<RacsId> {
        ids.iter().copied().map(RacsId::new).collect()
    }

    #[test]
    fn every_key_has_one_partition_and_every_partition_a_racs() {
        let pmap = Pmap::slots(Epoch::FIRST, Slots::new(ids(&[0, 1, 1, 0, 2]), 3).unwrap());
        let mut hit = [0u32; 5];
        for key in 0..2000 {
            let partition = pmap.locate(key.to_string().as_bytes());
            hit[partition.get() as usize] += 1;
            assert!(pmap.racs(partition).get() < 3);
        }
        assert!(hit.iter().all(|&n| (300..500).contains(&n)), "{hit:?}");
    }

    #[test]
    fn names_are_the_numbers_and_nothing_else() {
        let pmap = Pmap::slots(Epoch::FIRST, Slots::new(ids(&[0; 12]), 1).unwrap());
        assert_eq!(pmap.by_name("11"), Some(PartitionId::new(11)));
        assert_eq!(pmap.name(PartitionId::new(11)).to_string(), "11");
        for not in ["12", "", "-1", "+1", "01", "00", "1 ", "x", "4294967296"] {
            assert_eq!(pmap.by_name(not), None, "{not:?}");
        }
        assert_eq!(pmap.by_name("0"), Some(PartitionId::new(0)));
    }

    #[test]
    fn a_map_that_cannot_work_is_refused() {
        assert_eq!(Slots::new(vec![], 1).unwrap_err(), PmapError::Empty);
        assert_eq!(
            Slots::new(ids(&[0, 3]), 3).unwrap_err(),
            PmapError::UnknownRacs { partition: 1, racs: 3, count: 3 }
        );
        assert_eq!(
            Slots::new(vec![RacsId::new(0); Slots::MAX as usize + 1], 1).unwrap_err(),
            PmapError::TooMany
        );
    }
}
