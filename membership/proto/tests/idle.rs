//! What it costs to be in very many groups of which nothing is wanted: nothing.

use std::{collections::VecDeque, time::Duration};

use membership_proto::{
    Bootstrap, Cluster, Config, Dest, Domains, GroupWish, Input, Kind, NodeInfo, Output, Part,
};
use membership_types::{GroupName, Instant, Machine, NodeId, Rng, ViewId};

const NODES: usize = 3;

fn id(node: usize) -> NodeId {
    NodeId::new(node as u32, 100 + node as u64)
}

fn cluster(now: Instant) -> Vec<Cluster> {
    let node = |n: usize| {
        let info = NodeInfo {
            id: id(n),
            name: format!("n{n}").into(),
            addr: ([10, 0, 0, n as u8], 7000).into(),
            eligible: true,
            slot: Some(n as u16),
            keeps_floor: false,
            domains: Domains::default(),
            load_weight: None,
        };
        let config = Config::new(info, Bootstrap::Expect(NODES as u16), Duration::from_secs(1));
        Cluster::new(config.expect("within the ranges"), now, Rng::seeded(n as u64), ViewId::NONE)
    };
    (0..NODES).map(node).collect()
}

/// What was sent, in messages and bytes, and how many views members were told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    messages: usize,
    bytes: usize,
    views: usize,
}

/// Lets time pass in steps of 2 ms. Messages arrive in the step in which they are sent.
fn pass(nodes: &mut [Cluster], now: &mut Instant, length: Duration) -> Cost {
    let mut cost = Cost::default();
    let end = now.after(length);
    while *now < end {
        let mut sent = VecDeque::new();
        for (from, node) in nodes.iter_mut().enumerate() {
            node.handle_timeout(*now);
            while let Some(output) = node.poll_output() {
                match output {
                    Output::Send(Dest::Node(to, _), msg) => sent.push_back((from, to.node() as usize, msg)),
                    Output::Send(Dest::Addr(addr), msg) => {
                        let octet = addr.to_string().split(['.', ':']).nth(3).and_then(|n| n.parse().ok());
                        sent.push_back((from, octet.expect("an address of ours"), msg));
                    }
                    Output::View(_, Part::Member) => cost.views += 1,
                    _ => {}
                }
            }
        }
        for (from, to, msg) in sent {
            cost.messages += 1;
            cost.bytes += rmp_serde::to_vec_named(&msg).expect("every message can be encoded").len();
            nodes[to].handle(*now, Input::Message { from: id(from), msg });
        }
        *now = now.after(Duration::from_millis(2));
    }
    cost
}

/// What ten seconds cost when all nodes have been in so many groups for a while.
fn idle(groups: usize) -> Cost {
    let mut now = Instant::from_nanos(1_000_000);
    let mut nodes = cluster(now);
    for node in &mut nodes {
        let addresses = (0..NODES).map(|n| ([10, 0, 0, n as u8], 7000).into()).collect();
        node.handle(now, Input::Rendezvous { addresses, complete: true });
    }
    pass(&mut nodes, &mut now, Duration::from_secs(5));
    for g in 0..groups {
        for node in &mut nodes {
            let group = GroupName::new(&format!("g{g}")).expect("a name");
            node.handle(now, Input::Wish(GroupWish::Join { group, endpoint: None, kind: Kind::Plain }));
        }
    }
    let joining = pass(&mut nodes, &mut now, Duration::from_secs(5));
    assert!(joining.views >= groups * NODES, "all are in all groups: {joining:?}");
    let state = nodes[0].committed().expect("it keeps the log");
    assert!(state.groups().count() == groups && state.groups().all(|view| view.members.len() == NODES));
    pass(&mut nodes, &mut now, Duration::from_secs(10))
}

#[test]
fn ten_thousand_idle_groups_cause_no_messages_and_make_none_longer() {
    let (none, many) = (idle(0), idle(10_000));
    assert!(none.messages > 100, "nodes that live have heartbeats: {none:?}");
    assert_eq!((many.messages, many.views), (none.messages, 0));
    // Ids and counters have grown, and with them what numbers take on the wire: a few bytes for each message.
    let more = many.bytes.saturating_sub(none.bytes);
    assert!(more <= 16 * none.messages, "{none:?} became {many:?}");
}
