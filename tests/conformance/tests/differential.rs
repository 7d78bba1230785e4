//! Other parsers read what the router passes on. `cargo run --release -p conformance -- 1000000 SEED` does the same for longer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use conformance::{compare, payloads, peers, reading::Reading};
use membership_types::Rng;

/// All peers. A machine may lack some, but not one that has promised to have them.
fn all() -> Vec<peers::Peer> {
    let (peers, missing) = peers::start();
    for why in &missing {
        println!("SKIPPED: {why}");
    }
    assert!(missing.is_empty() || std::env::var_os("PHALANX_REQUIRE_SERVERS").is_none(), "{missing:?}");
    peers
}

#[test]
fn what_goes_on_is_read_by_others_as_it_was_read_by_the_router() {
    let peers = all();
    let mut rng = Rng::seeded(7);
    let mut streams = payloads::classics();
    streams.extend((0..3000).map(|_| payloads::draw(&mut rng)));
    let outcome = compare(&peers, &streams);
    println!("{outcome}");
    assert!(outcome.disagreements.is_empty(), "{outcome}");
    assert!(
        outcome.requests > 5000 && outcome.refused > 5000,
        "the test must have tested something: {outcome}"
    );
    for (peer, counts) in &outcome.peers {
        assert!(counts.same > 1000 && counts.same > counts.stricter, "{peer} hardly takes part: {outcome}");
    }
}

#[test]
fn the_comparison_finds_what_a_trusting_proxy_would_pass_on() {
    // The same streams, untouched. Where a peer's reading is not the router's, passing them on would have been a hole.
    let peers = all();
    let mut holes = 0;
    for stream in payloads::classics().iter().take(400) {
        let reading = Reading::of(stream);
        let requests: Vec<_> = reading.requests().collect();
        for peer in &peers {
            let answer = peer.ask(stream, true);
            let same = answer.read.iter().zip(&requests).all(|(peer, router)| peer == *router);
            holes += u64::from(!same || answer.read.len() > requests.len());
        }
    }
    println!("{holes} holes");
    assert!(holes > 20, "{holes}");
}
