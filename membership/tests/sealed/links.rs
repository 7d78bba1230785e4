//! Who does not hold the key gets nothing; who sits between two nodes can disturb them and nothing else.

use std::{net::SocketAddr, time::Duration};

use membership::{Bootstrap, Class, Delivered, Deliveries, Membership, Node, NodeBuilder, Rendezvous};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    harness::{Place, leave, metric, one_view, quiet, secret, within},
    proxy::{Mischief, Proxy},
};

async fn until(what: &str, holds: impl Fn() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn counted(node: &Node, name: &str, at_least: u64) {
    until(name, || metric(node, name) >= at_least).await;
}

/// A node that only joins, through an address.
fn joiner(name: &str, through: SocketAddr) -> NodeBuilder {
    quiet(name).rendezvous(Rendezvous::Static(vec![through.to_string()])).bootstrap(Bootstrap::Join)
}

fn without_key(name: &str, through: SocketAddr) -> NodeBuilder {
    Node::builder()
        .name(name)
        .panic_hook(false)
        .rendezvous(Rendezvous::Static(vec![through.to_string()]))
        .bootstrap(Bootstrap::Join)
}

#[tokio::test]
async fn who_has_another_key_or_none_is_refused_by_both_sides_and_gets_nothing() {
    let place = Place::new();
    let node = place.node("a").await;
    within("founded", node.joined()).await.expect("alone");
    let before = node.status().view.clone();
    for stranger in
        [joiner("wrong", node.listen_addr()).secret(secret(9)), without_key("none", node.listen_addr())]
    {
        let stranger = stranger.start().await.expect("starts");
        counted(&stranger, "phalanx_authentications_failed", 1).await;
        assert!(stranger.status().view.is_none());
        leave([stranger]).await;
    }
    counted(&node, "phalanx_authentications_failed", 2).await;
    for line in
        ["phalanx_links_sealed{by=\"secret\"} 1", "phalanx_connections_refused_total{reason=\"unknown_key\"}"]
    {
        until(line, || node.extensions().metrics_text().contains(line)).await;
    }
    assert_eq!((node.status().view.clone(), metric(&node, "phalanx_links")), (before, 0));
    place.judge([node]).await;
}

#[tokio::test]
async fn a_node_without_a_key_refuses_one_that_has_one_and_says_so() {
    let node = quiet("warm up").start().await.expect("starts");
    leave([node]).await;
    let open = Node::builder().name("open").panic_hook(false).start().await.expect("starts");
    let sealed = joiner("sealed", open.listen_addr()).start().await.expect("starts");
    counted(&sealed, "phalanx_authentications_failed", 1).await;
    counted(&open, "phalanx_authentications_failed", 1).await;
    assert_eq!(metric(&open, "phalanx_links") + metric(&sealed, "phalanx_links"), 0);
    leave([sealed, open]).await;
}

/// Two members, of which the second reaches the first, and is reached, through proxies.
async fn pair(place: &Place) -> ([Proxy; 2], Vec<(Membership, Deliveries)>) {
    let (to_a, listen_a) = Proxy::listen().await;
    let (to_b, listen_b) = Proxy::listen().await;
    let a = place.builder("a").advertise(to_a.addr).start().await.expect("starts");
    to_a.lead_to(listen_a, a.listen_addr());
    let b = place.builder("b").advertise(to_b.addr).start().await.expect("starts");
    to_b.lead_to(listen_b, b.listen_addr());
    one_view(&[a.clone(), b.clone()]).await;
    let mut members = Vec::new();
    for node in [a, b] {
        members.push(node.join_multicast("g", None).await.expect("runs"));
    }
    for (_, deliveries) in &mut members {
        within("both are members", async {
            loop {
                if let Delivered::View { view, .. } = deliveries.next().await.expect("a member")
                    && view.members.len() == 2
                {
                    break;
                }
            }
        })
        .await;
    }
    ([to_a, to_b], members)
}

async fn delivered(deliveries: &mut Deliveries, text: &str) {
    let arrival = async {
        loop {
            match deliveries.next().await.expect("a member") {
                Delivered::Message(message) => {
                    assert_eq!(message.payload, text.as_bytes(), "nothing else was ever sent");
                    break;
                }
                Delivered::View { .. } => {}
                _ => panic!("something else was delivered"),
            }
        }
    };
    within("a message is delivered", arrival).await;
}

#[tokio::test]
async fn what_is_changed_repeated_moved_or_cut_on_the_way_changes_nothing_but_counters() {
    let place = Place::new();
    let (proxies, mut members) = pair(&place).await;
    let nodes: Vec<Node> = members.iter().map(|(member, _)| member.node().clone()).collect();
    let view = nodes[0].status().view.clone();
    let bad = |name| nodes.iter().map(|node| metric(node, name)).sum::<u64>();
    // Repeating first: on a connection that was disturbed already it would count as any other corrupt record.
    let kinds =
        [Mischief::Repeat, Mischief::Repeat, Mischief::Flip, Mischief::Swap, Mischief::Cut, Mischief::Flip];
    for (round, mischief) in kinds.into_iter().enumerate() {
        let before = (bad("phalanx_corrupt_records"), bad("phalanx_replays"));
        // Of whatever comes next: heartbeats, or messages of the group.
        proxies.iter().for_each(|proxy| proxy.does(mischief));
        until("the record went by", || proxies.iter().any(Proxy::is_done)).await;
        proxies.iter().for_each(|proxy| proxy.does(Mischief::None));
        let text = format!("message {round}");
        members[round % 2].0.multicast(Class::Safe, text.clone()).await.expect("a member");
        for (_, deliveries) in &mut members {
            delivered(deliveries, &text).await;
        }
        match mischief {
            Mischief::Flip | Mischief::Swap => {
                until("it is counted", || bad("phalanx_corrupt_records") > before.0).await;
            }
            Mischief::Repeat => until("it is counted", || bad("phalanx_replays") > before.1).await,
            _ => {}
        }
    }
    assert_eq!(bad("phalanx_garbage"), 0, "nothing of it was ever parsed");
    assert_eq!(nodes[0].status().view, view, "nobody was removed");
    place.judge(nodes).await;
}

#[tokio::test]
async fn a_record_made_longer_than_it_is_does_not_silence_a_connection_for_good() {
    let place = Place::new();
    let (proxies, mut members) = pair(&place).await;
    let nodes: Vec<Node> = members.iter().map(|(member, _)| member.node().clone()).collect();
    proxies[0].does(Mischief::Stretch);
    until("the record went by", || proxies[0].is_done()).await;
    members[0].0.multicast(Class::Safe, "after").await.expect("a member");
    // It may have cost a view, for a lease is not longer than such a silence; never a wrong message.
    for (_, deliveries) in &mut members {
        delivered(deliveries, "after").await;
    }
    one_view(&nodes).await;
    place.judge(nodes).await;
}

#[tokio::test]
async fn recorded_connections_and_forgeries_get_nobody_in_and_nodes_go_on() {
    let place = Place::new();
    let (proxies, mut members) = pair(&place).await;
    let nodes: Vec<Node> = members.iter().map(|(member, _)| member.node().clone()).collect();
    let view = nodes[0].status().view.clone();
    let recorded = proxies[0].recorded().into_iter().chain(proxies[1].recorded());
    let recorded: Vec<Vec<u8>> = recorded.collect();
    assert!(!recorded.is_empty(), "the two have met through the proxies");
    let links: Vec<u64> = nodes.iter().map(|node| metric(node, "phalanx_links")).collect();
    // To whom it was sent, and to the other one.
    for node in &nodes {
        for bytes in &recorded {
            assert!(
                say(node.listen_addr(), bytes).await.len() <= 512,
                "an answer that nobody can read, at most"
            );
        }
    }
    for name in ["phalanx_replays", "phalanx_handshakes_rejected"] {
        // The one to whom it was sent knows it, the other one finds that it said so itself.
        until(name, || nodes.iter().any(|node| metric(node, name) > 0)).await;
    }
    // Bytes of all kinds, after a head that is right.
    let head = &recorded[0][..17];
    for n in 0..200_u16 {
        let body: Vec<u8> = (0..n * 7).map(|byte| (byte ^ n) as u8).collect();
        let bytes = [head, &(n * 7).to_be_bytes(), &body].concat();
        assert!(say(nodes[0].listen_addr(), &bytes).await.len() <= 19, "a reason, at most");
    }
    counted(&nodes[0], "phalanx_authentications_failed", 200).await;
    assert_eq!(nodes[0].status().view, view, "nobody was removed, nobody came");
    for (node, links) in nodes.iter().zip(links) {
        assert!(metric(node, "phalanx_links") <= links, "no connection of a stranger counts");
    }
    members[1].0.multicast(Class::Safe, "still here").await.expect("a member");
    for (_, deliveries) in &mut members {
        delivered(deliveries, "still here").await;
    }
    place.judge(nodes).await;
}

/// Sends bytes and the end of them. Gives what is answered.
async fn say(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("the node listens");
    // It may close before all is written.
    let _cut_short = stream.write_all(bytes).await;
    let _gone = stream.shutdown().await;
    let mut answer = Vec::new();
    let _reset = within("the node closes the connection", stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn strangers_who_are_silent_hold_up_nobody_who_has_the_key() {
    let place = Place::new();
    let node = place.node("a").await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(node.listen_addr()).await.expect("listens"));
    }
    counted(&node, "phalanx_strangers_displaced", 1).await;
    let other = joiner("b", node.listen_addr()).start().await.expect("starts");
    one_view(&[node.clone(), other.clone()]).await;
    counted(&node, "phalanx_handshakes_timed_out", 1).await;
    drop(crowd);
    leave([other]).await;
    place.judge([node]).await;
}
