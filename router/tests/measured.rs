//! What a router counts and measures.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{thread, time::Duration};

use common::*;
use router::{Config, Measured, Surroundings};

fn measured(router: &Router) -> Measured {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(router.handle.measured())
}

#[test]
fn http_requests_are_counted_by_service_partition_and_server() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let slow = FakeServer::start(|peer| {
        while peer.request().is_some() {
            thread::sleep(Duration::from_millis(60));
            peer.respond("slow");
        }
    });
    let text = http(&[&[a.addr], &[b.addr]]);
    let router = Router::with(&text, 2, |_| {});
    for at in 0..40 {
        assert_eq!(router.client().post(&format!("k{at}"), "0123456789").status, 200);
    }
    let all = measured(&router);
    let one = &all.services[0];
    assert_eq!((all.workers, all.silent, all.services.len()), (2, 0, 1));
    assert_eq!((one.requests, one.latency.count(), one.waiting), (40, 40, 0));
    assert_eq!((one.partitions.len(), one.partitions.iter().sum::<u64>()), (16, 40));
    assert!(one.partitions.iter().filter(|requests| **requests > 0).count() > 8, "{:?}", one.partitions);
    let len = post("k1", "0123456789").len() as u64;
    assert!((40 * len..=40 * (len + 1)).contains(&one.received), "{} of {len} each", one.received);
    assert!(one.sent > 40 * 50, "{}", one.sent);
    let servers: Vec<_> = all.servers.iter().map(|server| (server.addr, server.requests)).collect();
    let seen = |server: &FakeServer| (server.addr, server.seen().len() as u64);
    let mut expected = vec![seen(&a), seen(&b)];
    expected.sort();
    assert_eq!(servers, expected);
    for server in &all.servers {
        assert_eq!((server.latency.count(), server.in_flight, server.failures), (server.requests, 0, 0));
        assert!(server.idle > 0, "{server:?}");
    }

    // Another configuration goes on counting; another map of partitions is counted anew.
    let other = http(&[&[slow.addr]]).replace("partitions = 16", "partitions = 4");
    let surroundings = Surroundings::default();
    router.handle.reload(&Config::parse(&other, "t".as_ref(), surroundings).unwrap()).unwrap();
    assert_eq!(router.client().get("k").body, "slow");
    let all = measured(&router);
    let one = &all.services[0];
    assert_eq!((one.requests, one.latency.count()), (41, 41));
    assert_eq!((one.partitions.len(), one.partitions.iter().sum::<u64>()), (4, 1));
    let server = all.servers.iter().find(|server| server.addr == slow.addr).unwrap();
    let took = server.latency.quantile(1.0).unwrap();
    // Told in buckets, and from when its thread woke: a little early at most.
    assert!((55..300).contains(&took.as_millis()), "{took:?}");
    assert!(one.latency.quantile(0.5).unwrap() < took, "{one:?}");
}

#[test]
fn a_request_that_nobody_answers_is_measured_too_and_its_server_has_failed() {
    let router = Router::with(&http(&[&[nobody()]]), 1, |limits| limits.wait = Duration::from_millis(100));
    let mut client = router.client();
    client.send(post("k", "x"));
    eventually("it waits", || measured(&router).services[0].waiting == 1);
    assert_eq!(client.response().status, 503);
    let all = measured(&router);
    assert_eq!(
        (all.services[0].unavailable, all.services[0].latency.count(), all.services[0].waiting),
        (1, 1, 0)
    );
    assert!(all.services[0].latency.quantile(1.0).unwrap() > Duration::from_millis(90));
    assert!(all.servers[0].failures >= 1 && all.servers[0].latency.count() == 0, "{:?}", all.servers);
}

#[test]
fn redis_commands_are_measured_whole_and_their_keys_one_by_one() {
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            let text = match args[0].as_str() {
                "MGET" => format!("*{}\r\n{}", args.len() - 1, "$1\r\nx\r\n".repeat(args.len() - 1)),
                _ => "$1\r\nx\r\n".into(),
            };
            peer.send(&text);
        }
    });
    let other = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            peer.send(&format!("*{}\r\n{}", args.len() - 1, "$1\r\nx\r\n".repeat(args.len() - 1)));
        }
    });
    let router = Router::start(&redis(&[&[server.addr], &[server.addr, other.addr]]));
    let keys: Vec<String> = (0..10).map(|at| format!("k{at}")).collect();
    let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let mut client = router.client();
    for _ in 0..3 {
        assert!(client.command(&mget).starts_with("*10\r\n"));
    }
    let all = measured(&router);
    let one = &all.services[0];
    assert_eq!((one.requests, one.latency.count(), one.partitions.iter().sum::<u64>()), (3, 3, 30));
    let parts: u64 = all.servers.iter().map(|server| server.requests).sum();
    let answered: u64 = all.servers.iter().map(|server| server.latency.count()).sum();
    assert_eq!((parts, answered), (6, 6), "a part for each of two RACS");
    assert_eq!(one.received, 3 * command(&mget).len() as u64);
}
