//! Where requests without a key go.

use core::{net::IpAddr, num::NonZeroU32};

use crate::{key::KeyHash, pmap::PartitionId, racs::Access};

/// What is done with a request in which no extractor finds a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoKey {
    /// It is refused.
    #[default]
    Reject,
    /// It goes to the partition that its client's address hashes to: always the same one.
    Source,
    /// A read goes to any partition, drawn anew each time. An update is refused: nobody could say afterwards
    /// which partition has it.
    Scatter,
    /// It goes to this partition.
    Partition(PartitionId),
}

impl NoKey {
    /// The partition among `count`; `None` if the request is refused. `random` is 64 fresh random bits.
    pub fn partition(
        self,
        access: Access,
        source: IpAddr,
        random: u64,
        count: NonZeroU32,
    ) -> Option<PartitionId> {
        match self {
            Self::Reject => None,
            Self::Source => {
                // One client has one address, whichever way its packets come in.
                let hash = match source.to_canonical() {
                    IpAddr::V4(address) => KeyHash::of(&address.octets()),
                    IpAddr::V6(address) => KeyHash::of(&address.octets()),
                };
                Some(PartitionId::new(hash.slot(count)))
            }
            Self::Scatter if access == Access::Update => None,
            Self::Scatter => {
                let spread = u128::from(random) * u128::from(count.get());
                Some(PartitionId::new((spread >> 64) as u32))
            }
            Self::Partition(partition) => Some(partition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use membership_types::Rng;

    const SIX: NonZeroU32 = NonZeroU32::new(6).unwrap();

    #[test]
    fn a_source_keeps_its_partition_and_sources_share_them_all() {
        let at = |source: &str| {
            let source = source.parse().unwrap();
            NoKey::Source.partition(Access::Update, source, 0, SIX).unwrap().get() as usize
        };
        assert_eq!(at("192.0.2.7"), at("::ffff:192.0.2.7"), "the same client on another listener");
        let mut hits = [0; 6];
        for host in 0..=255 {
            hits[at(&alloc::format!("10.0.0.{host}"))] += 1;
        }
        assert!(hits.iter().all(|&hits| hits > 15), "{hits:?}");
    }

    #[test]
    fn reads_scatter_and_updates_do_not() {
        let (mut rng, mut hits) = (Rng::seeded(3), [0; 6]);
        let source = "::1".parse().unwrap();
        for _ in 0..600 {
            let to = NoKey::Scatter.partition(Access::Read, source, rng.next_u64(), SIX).unwrap();
            hits[to.get() as usize] += 1;
        }
        assert!(hits.iter().all(|&hits| hits > 60), "{hits:?}");
        assert_eq!(NoKey::Scatter.partition(Access::Read, source, u64::MAX, SIX), Some(PartitionId::new(5)));
        assert_eq!(NoKey::Scatter.partition(Access::Update, source, 7, SIX), None);
        assert_eq!(NoKey::Reject.partition(Access::Read, source, 7, SIX), None);
        let fixed = NoKey::Partition(PartitionId::new(2));
        assert_eq!(fixed.partition(Access::Update, source, 7, SIX), Some(PartitionId::new(2)));
    }
}
