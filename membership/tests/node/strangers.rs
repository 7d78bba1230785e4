//! Whatever connects to a node: it is refused, counted, and the node goes on.

use std::{net::SocketAddr, time::Duration};

use membership::{Bootstrap, Node, Rendezvous};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Place, metric, quiet, view, within};

/// Sends bytes, and waits until the node has closed the connection. Gives what it answered.
async fn send(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.expect("the node listens");
    // It may close before all is written.
    let _cut_short = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _reset = within("the node closes the connection", stream.read_to_end(&mut answer)).await;
    answer
}

/// A first message as one that is not sealed: magic word, version, manner, no key, length.
fn message(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("short").to_be_bytes();
    [b"PHALANX\x02\x00", &[0; 8][..], &length, body].concat()
}

async fn counted(node: &Node, name: &str, at_least: u64) {
    within(name, async {
        while metric(node, name) < at_least {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The node is there, and others can still join it.
async fn still_works(place: &Place, node: &Node) {
    let member = node.join("g", None).await.expect("runs");
    let other = place.node("late").await;
    let guest = other.join("g", None).await.expect("runs");
    within("both", view(&mut guest.views(), |v| v.members.len() == 2)).await;
    within("leaving", other.leave()).await;
    within("alone again", view(&mut member.views(), |v| v.members.len() == 1)).await;
}

#[tokio::test]
async fn garbage_and_oversized_frames_close_the_connection_and_nothing_else() {
    let place = Place::new();
    let node = place.node("a").await;
    let addr = node.listen_addr();
    assert!(send(addr, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.is_empty());
    assert!(send(addr, &message(&[0; 0xffff])).await.is_empty());
    assert!(send(addr, &message(&[0xc1; 8])).await.is_empty());
    counted(&node, "phalanx_garbage", 3).await;
    let other_version = send(addr, b"PHALANX\x07").await;
    assert!(other_version.starts_with(b"PHALANX\x02"), "it learns which one: {other_version:?}");
    counted(&node, "phalanx_handshakes_rejected", 1).await;
    still_works(&place, &node).await;
    place.judge([node]).await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_both_sides() {
    let place = Place::new();
    let node = place.node("a").await;
    let list = Rendezvous::Static(vec![node.listen_addr().to_string()]);
    let stranger = quiet("b").cluster("other").rendezvous(list).bootstrap(Bootstrap::Join);
    let stranger = stranger.start().await.expect("starts");
    counted(&node, "phalanx_handshakes_rejected", 1).await;
    counted(&stranger, "phalanx_handshakes_rejected", 1).await;
    assert!(stranger.status().view.is_none());
    still_works(&place, &node).await;
    within("leaving", stranger.leave()).await;
    place.judge([node]).await;
}

#[tokio::test]
async fn who_connects_and_stays_silent_is_closed_and_many_of_them_displace_each_other() {
    let place = Place::new();
    let node = place.node("a").await;
    let addr = node.listen_addr();
    let mut silent = TcpStream::connect(addr).await.expect("listens");
    let mut nothing = [0];
    assert_eq!(within("closed", silent.read(&mut nothing)).await.expect("closed in order"), 0);
    counted(&node, "phalanx_handshakes_timed_out", 1).await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(addr).await.expect("listens"));
    }
    counted(&node, "phalanx_strangers_displaced", 1).await;
    still_works(&place, &node).await;
    drop(crowd);
    place.judge([node]).await;
}

#[tokio::test]
async fn a_peer_that_turns_to_garbage_after_its_introduction_is_cut_off() {
    // A node that is let in must not be able to do more harm than a stranger.
    let place = Place::new();
    let node = place.node("a").await;
    // The introduction of a node, as the protocol has it: a map with named fields.
    let hello = [
        &b"\x81\xa5Hello\x86"[..],
        b"\xa7cluster\xa7default",
        b"\xa4node\x92\x01\x02",
        b"\xa4name\xa3bad",
        b"\xa4addr\x81\xa2V4\x92\x94\x7f\x00\x00\x01\x09",
        b"\xa7lineage\xc0",
        b"\xa4near\xc0",
    ]
    .concat();
    let bytes = [&message(&hello)[..], &5_u32.to_be_bytes(), b"\x00\x01\x02\x03\x04"].concat();
    let answer = send(node.listen_addr(), &bytes).await;
    assert!(answer.starts_with(b"PHALANX\x02\x00") && answer.len() > 19, "it introduces itself: {answer:?}");
    counted(&node, "phalanx_garbage", 1).await;
    still_works(&place, &node).await;
    place.judge([node]).await;
}
