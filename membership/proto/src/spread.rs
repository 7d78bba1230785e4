//! Which nodes sit in the core: the seniors, but spread over failure domains where nodes say in which they are.

use alloc::{boxed::Box, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::view::NodeInfo;

/// What a node shares with others that may fail together with it; nothing where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Domains {
    /// The data centre, or availability zone.
    pub zone: Option<Box<str>>,
    /// The rack.
    pub rack: Option<Box<str>>,
    /// The power unit.
    pub power: Option<Box<str>>,
}

impl Domains {
    /// Are both in one rack?
    pub(crate) fn shares_rack(&self, other: &Self) -> bool {
        self.zone == other.zone && self.rack.is_some() && self.rack == other.rack
    }

    /// Does one power unit feed both?
    pub(crate) fn shares_power(&self, other: &Self) -> bool {
        self.zone == other.zone && self.power.is_some() && self.power == other.power
    }

    /// How many kinds of domain two nodes share.
    fn shared(&self, other: &Self) -> u32 {
        let same = |a: &Option<Box<str>>, b: &Option<Box<str>>| a.is_some() && a == b;
        // Racks and power units are named inside a zone.
        u32::from(same(&self.zone, &other.zone))
            + u32::from(self.shares_rack(other))
            + u32::from(self.shares_power(other))
    }
}

/// How much is shared among these: every pair counts for each kind of domain that both are in. 0 is best.
fn crowding(nodes: &[&NodeInfo]) -> u32 {
    let pairs = nodes.iter().enumerate().flat_map(|(at, a)| nodes[at + 1..].iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| a.domains.shared(&b.domains)).sum()
}

/// Do no two of these share anything? Then no others are spread better.
pub(crate) fn is_even<'a>(nodes: impl Iterator<Item = &'a NodeInfo>) -> bool {
    let says = |node: &&NodeInfo| node.domains != Domains::default();
    crowding(&nodes.filter(says).collect::<Vec<_>>()) == 0
}

/// The candidate (given by rank) that shares least with the chosen; of equals the most senior.
pub(crate) fn next<'a>(chosen: &[&NodeInfo], candidates: &[&'a NodeInfo]) -> Option<&'a NodeInfo> {
    let shared = |c: &NodeInfo| chosen.iter().map(|n| c.domains.shared(&n.domains)).sum::<u32>();
    candidates.iter().copied().min_by_key(|c| shared(c))
}

/// The first core of these founders, given by rank: in the order of their ranks.
pub(crate) fn first<'a>(founders: &'a [NodeInfo], size: usize) -> Vec<&'a NodeInfo> {
    let mut left: Vec<&NodeInfo> = founders.iter().filter(|n| n.eligible).collect();
    let mut chosen: Vec<&'a NodeInfo> = Vec::new();
    while chosen.len() < size
        && let Some(node) = next(&chosen, &left)
    {
        left.retain(|n| n.id != node.id);
        chosen.push(node);
    }
    let rank = |node: &NodeInfo| founders.iter().position(|n| n.id == node.id);
    chosen.sort_by_key(|n| rank(n));
    chosen
}

/// If one member of a full core (given by rank) should make room for one of these candidates: who for whom. Whoever is
/// `kept` stays.
pub(crate) fn swap<'a>(
    core: &[&'a NodeInfo],
    candidates: &[&'a NodeInfo],
    kept: impl Fn(&NodeInfo) -> bool,
) -> Option<(&'a NodeInfo, &'a NodeInfo)> {
    let now = crowding(core);
    if now == 0 {
        return None;
    }
    // Of those who are in the same domains only the most senior one would be taken, and there may be thousands.
    let mut kinds: Vec<&'a NodeInfo> = Vec::new();
    for candidate in candidates {
        if !kinds.iter().any(|kind| kind.domains == candidate.domains) {
            kinds.push(candidate);
        }
    }
    let candidates = &kinds;
    let pairs = core
        .iter()
        .rev()
        .filter(|m| !kept(m))
        .flat_map(|out| candidates.iter().map(move |into| (*out, *into)));
    let after = |(out, into): &(&NodeInfo, &NodeInfo)| {
        let with: Vec<&NodeInfo> = core.iter().copied().filter(|m| m.id != out.id).chain([*into]).collect();
        crowding(&with)
    };
    // The first of equals: the most junior member goes, the most senior candidate comes.
    pairs
        .map(|pair| (after(&pair), pair))
        .filter(|(c, _)| *c < now)
        .min_by_key(|(c, _)| *c)
        .map(|(_, pair)| pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use core::net::SocketAddr;
    use membership_types::NodeId;

    /// `a1` is in zone a and rack a1; `-` is nowhere.
    fn nodes(places: &[&str]) -> Vec<NodeInfo> {
        let node = |(at, place): (usize, &&str)| {
            let rack = (*place != "-").then(|| (*place).into());
            let zone = (*place != "-").then(|| place[..1].into());
            NodeInfo {
                id: NodeId::new(at as u32, 1),
                name: format!("n{at}").into(),
                addr: SocketAddr::from(([10, 0, 0, at as u8], 1)),
                eligible: true,
                slot: None,
                keeps_floor: false,
                domains: Domains { zone, rack, power: None },
                load_weight: None,
            }
        };
        places.iter().enumerate().map(node).collect()
    }

    fn ids(nodes: &[&NodeInfo]) -> Vec<u32> {
        nodes.iter().map(|n| n.id.node()).collect()
    }

    #[test]
    fn without_labels_the_seniors_sit_in_the_core() {
        assert_eq!(ids(&first(&nodes(&["-", "-", "-", "-"]), 3)), [0, 1, 2]);
    }

    #[test]
    fn a_core_takes_one_of_each_zone_before_a_second_one() {
        assert_eq!(ids(&first(&nodes(&["a1", "a1", "a2", "b1", "c1"]), 3)), [0, 3, 4]);
        assert_eq!(ids(&first(&nodes(&["a1", "a1", "a2", "b1", "c1"]), 4)), [0, 2, 3, 4]);
    }

    #[test]
    fn a_crowded_member_makes_room_and_a_spread_core_stays() {
        let all = nodes(&["a1", "a1", "a2", "b1"]);
        let core: Vec<&NodeInfo> = all[..3].iter().collect();
        let (out, into) = swap(&core, &[&all[3]], |n| n.id == all[0].id).expect("better");
        assert_eq!((out.id.node(), into.id.node()), (1, 3));
        let better: Vec<&NodeInfo> = [&all[0], &all[2], &all[3]].into();
        assert!(swap(&better, &[&all[1]], |_| false).is_none());
    }
}
