//! Which RACS holds which hash slot: a consistent-hash ring, so that adding a RACS moves its share and no
//! more.

use hashring::HashRing;
use router_proto::{KeyHash, RacsId};

/// Points that each RACS has on the ring: the more, the more even its share (at 100 within about a tenth).
const POINTS: u32 = 100;

/// One point of a RACS on the ring.
///
/// The ring hashes it through `std::hash::Hash`, whose treatment of text and of `usize` is not fixed for
/// ever; that of `u64` and `u32` is. The RACS stands by the hash of its name, so that the order in the file
/// does not matter.
#[derive(Clone, Copy, Hash)]
struct Point {
    racs: u64,
    replica: u32,
}

/// The owner of each of `slots` slots among the RACS of these names (at least one, all different).
pub(crate) fn owners(slots: u32, racs: &[&str]) -> Vec<RacsId> {
    let hashes: Vec<u64> = racs.iter().map(|name| KeyHash::of(name.as_bytes()).get()).collect();
    let mut ring = HashRing::new();
    let points = hashes.iter().flat_map(|&racs| (0..POINTS).map(move |replica| Point { racs, replica }));
    ring.batch_add(points.collect());
    (0..slots)
        .map(|slot| {
            let point = ring.get(&slot).expect("there is a RACS, so the ring has points");
            let at = hashes.iter().position(|&hash| hash == point.racs).expect("the ring has only these");
            RacsId::new(u32::try_from(at).expect("fewer than 2^32 RACS"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(slots: u32, racs: &[&str]) -> Vec<usize> {
        let owners = owners(slots, racs);
        (0..racs.len()).map(|at| owners.iter().filter(|owner| owner.get() as usize == at).count()).collect()
    }

    #[test]
    fn golden_placement() {
        // A change here moves partitions of running services to servers that do not have their data.
        let text: String =
            owners(64, &["a", "b", "c"]).iter().map(|owner| ["a", "b", "c"][owner.get() as usize]).collect();
        assert_eq!(text, "accbababbaccabbcabcabbabaacbcbabbaacacbbccbabbcbababaaaaccaccbcb");
    }

    #[test]
    fn shares_are_even_and_the_order_of_the_file_does_not_matter() {
        let names = ["inventory-a", "inventory-b", "inventory-c", "inventory-d"];
        let forward = shares(16384, &names);
        assert!(forward.iter().all(|share| (3400..4800).contains(share)), "{forward:?}");
        let mut reversed = names;
        reversed.reverse();
        let mut backward = shares(16384, &reversed);
        backward.reverse();
        assert_eq!(forward, backward);
    }

    #[test]
    fn a_new_racs_takes_its_share_and_moves_nothing_else() {
        let before = owners(4096, &["a", "b", "c"]);
        let after = owners(4096, &["a", "b", "c", "d"]);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(_, after)| after.get() == 3));
        assert!((800..1300).contains(&moved.count()));
    }
}
