//! Of a view, whom a node meets to have proofs of their deaths.
//!
//! Not everybody: of a hundred processes that start on one host each would make a hundred exchanges at the very moment when leases
//! are due. The seniors need proofs of everybody's death, since they act on them. Where no senior is on a host, the coordinator is
//! told by others there: of each node a few are its watchers.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use membership_proto::ClusterView;
use membership_types::NodeId;

/// In views of so many all meet all.
const FEW: usize = 16;
/// Where there are more they begin one after the other, so long for each.
const EACH_OF_MORE: Duration = Duration::from_millis(5);
/// Who of a view meets everybody: the default core.
pub(super) const SENIORS: usize = 5;
/// So many others of one host that come next in rank meet each other, before and after.
const EACH_SIDE: usize = 3;

/// Over how long the nodes of this view spread the beginning of what they do for it.
pub(super) fn spread(view: &ClusterView) -> Duration {
    EACH_OF_MORE * (view.members.len().saturating_sub(FEW) as u32)
}

/// Whom `me` meets. In one view the same for both sides. That nodes share a host is only guessed here, from their addresses: who
/// is met has to show it.
pub(super) fn to_meet(view: &ClusterView, me: NodeId) -> BTreeSet<NodeId> {
    let host =
        |addr: IpAddr| if addr.is_loopback() { IpAddr::from([127, 0, 0, 1]) } else { addr.to_canonical() };
    let all = &view.members;
    let Some(rank) = all.iter().position(|node| node.id == me) else { return BTreeSet::new() };
    let own = host(all[rank].addr.ip());
    let here: Vec<NodeId> =
        all.iter().filter(|node| host(node.addr.ip()) == own).map(|node| node.id).collect();
    let at = here.iter().position(|node| *node == me).unwrap_or(0);
    let in_turn = here.iter().cycle().skip(at + here.len().saturating_sub(EACH_SIDE)).take(2 * EACH_SIDE + 1);
    let seniors = if rank < SENIORS || all.len() <= FEW { all.len() } else { SENIORS };
    let seniors = all.iter().take(seniors).map(|node| node.id);
    seniors.chain(in_turn.copied()).filter(|node| *node != me).collect()
}

#[cfg(test)]
mod tests {
    use membership_proto::NodeInfo;
    use membership_types::ViewId;

    use super::*;

    /// So many nodes on each of these hosts, and their ranks go round.
    fn view(hosts: &[&str], each: u16) -> ClusterView {
        let places = (0..each).flat_map(|port| hosts.iter().map(move |host| (*host, port + 1)));
        let node = |(n, (host, port)): (u32, (&str, u16))| NodeInfo {
            id: NodeId::new(n, 1),
            name: "n".into(),
            addr: (host.parse::<IpAddr>().expect("an address"), port).into(),
            eligible: true,
            slot: None,
            keeps_floor: false,
            domains: Default::default(),
            load_weight: None,
        };
        ClusterView { id: ViewId::new(9), prev: ViewId::NONE, members: (0..).zip(places).map(node).collect() }
    }

    #[test]
    fn both_sides_agree_and_each_has_watchers_on_its_host() {
        let hosts = ["127.0.0.1", "10.0.0.1", "10.0.0.2", "::1"];
        for (many, each) in [(1, 1), (1, 2), (1, 7), (1, 100), (2, 3), (3, 40), (4, 30)] {
            let view = view(&hosts[..many], each);
            let met = |node: &NodeInfo| to_meet(&view, node.id);
            let host =
                |node: &NodeInfo| if node.addr.ip().is_loopback() { None } else { Some(node.addr.ip()) };
            for (rank, a) in view.members.iter().enumerate() {
                let of_a = met(a);
                assert!(!of_a.contains(&a.id));
                let here = view.members.iter().filter(|b| b.id != a.id && host(b) == host(a));
                let (here, watchers) = (here.clone().count(), here.filter(|b| of_a.contains(&b.id)).count());
                assert!(watchers >= here.min(2 * EACH_SIDE), "{watchers} of {here}");
                for (other, b) in view.members.iter().enumerate().filter(|(_, b)| b.id != a.id) {
                    assert_eq!(of_a.contains(&b.id), met(b).contains(&a.id), "{rank} and {other}");
                    assert!(of_a.contains(&b.id) || rank.min(other) >= SENIORS && view.members.len() > FEW);
                }
                assert!(rank < SENIORS || of_a.len() <= (SENIORS + 2 * EACH_SIDE).max(FEW));
            }
        }
        let alone = view(&["10.0.0.1"], 1);
        assert!(to_meet(&alone, NodeId::new(7, 7)).is_empty(), "who is not in it meets nobody");
    }
}
