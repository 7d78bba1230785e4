//! What a router counts and measures.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

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
    let mut client = router.client();
    let asked = Instant::now();
    assert_eq!(client.get("k").body, "slow");
    let waited = asked.elapsed();
    let all = measured(&router);
    let one = &all.services[0];
    assert_eq!((one.requests, one.latency.count()), (41, 41));
    assert_eq!((one.partitions.len(), one.partitions.iter().sum::<u64>()), (4, 1));
    let server = all.servers.iter().find(|server| server.addr == slow.addr).unwrap();
    let took = server.latency.quantile(1.0).unwrap();
    // Told by the end of its bucket, half as much again at most, and from when its thread woke: a little early at most.
    let most = waited * 3 / 2 + Duration::from_millis(20);
    assert!(took >= Duration::from_millis(55) && took <= most, "{took:?}, and the client waited {waited:?}");
    assert!(one.latency.quantile(0.5).unwrap() < took, "{one:?}");
}

#[test]
fn a_request_that_nobody_answers_is_measured_too_and_its_server_has_failed() {
    let router = Router::with(&http(&[&[nobody()]]), 1, |limits| limits.wait = Duration::from_secs(2));
    let mut client = router.client();
    client.send(post("k", "x"));
    eventually("it waits", || measured(&router).services[0].waiting == 1);
    assert_eq!(client.response().status, 503);
    let all = measured(&router);
    assert_eq!(
        (all.services[0].unavailable, all.services[0].latency.count(), all.services[0].waiting),
        (1, 1, 0)
    );
    assert!(all.services[0].latency.quantile(1.0).unwrap() > Duration::from_millis(1900));
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
    let router = Router::with(&redis(&[&[server.addr], &[server.addr, other.addr]]), 1, patient);
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

/// What was counted of this server's answers, without what never came.
fn classes(router: &Router, server: &FakeServer) -> Vec<(&'static str, u64)> {
    let stats = router.server_stats(server.addr);
    stats.responses.iter().flat_map(|one| one.by_class().filter(|(_, count)| *count > 0)).collect()
}

#[test]
fn answers_are_counted_by_what_they_say() {
    // The path is the status.
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let status = request.head.split(['/', ' ']).nth(2).unwrap();
            peer.send(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    for shared in ["", "\npipeline = 4"] {
        let text = http(&[&[server.addr]]).replace("\nservers", &format!("{shared}\nservers"));
        let router = Router::start(&text);
        let mut client = router.client();
        for status in [200, 201, 302, 404, 404, 500, 503, 599] {
            client.send(format!("GET /{status} HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n"));
            assert_eq!(client.response().status, status);
        }
        assert_eq!(classes(&router, &server), [("2xx", 2), ("3xx", 1), ("4xx", 2), ("5xx", 3)]);
        let stats = &router.server_stats(server.addr).responses[0];
        assert_eq!((&*stats.service, stats.of("4xx"), stats.by_class().count()), ("s", 2, 5));
    }

    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            match args[0].as_str() {
                "GET" => peer.send("$1\r\nx\r\n"),
                "MULTI" => peer.send("+OK\r\n"),
                "EXEC" => peer.send("-EXECABORT Transaction discarded\r\n"),
                "WATCH" | "UNWATCH" => peer.send("+OK\r\n"),
                _ => peer.send("-LOADING Redis is loading the dataset in memory\r\n"),
            }
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    for args in
        [&["GET", "k"][..], &["GET", "k"], &["SET", "k", "x"], &["PING"], &["MULTI"], &["SET", "k", "x"]]
    {
        client.command(args);
    }
    assert_eq!(
        classes(&router, &server),
        [("ok", 2), ("error", 1)],
        "what the router answers itself is not counted"
    );
    assert!(client.command(&["EXEC"]).starts_with("-EXECABORT"));
    assert_eq!(classes(&router, &server), [("ok", 2), ("error", 2)], "a transaction has one answer");
    // These have a connection of their own.
    client.command(&["WATCH", "k"]);
    client.command(&["SET", "k", "x"]);
    assert_eq!(classes(&router, &server), [("ok", 3), ("error", 3)]);

    let server = FakeServer::start(|peer| {
        while let Some(text) = peer.text() {
            let bad = text.starts_with("set");
            peer.send(if bad { "SERVER_ERROR out of memory storing object\r\n" } else { "END\r\n" });
        }
    });
    let router = Router::start(&memcached(&[&[server.addr]]));
    let mut client = router.client();
    assert_eq!(client.ask("get k\r\n"), "END\r\n");
    client.send("set k 0 0 1\r\nx\r\nset k 0 0 1 noreply\r\nx\r\nget k\r\n");
    assert!(client.line().starts_with("SERVER_ERROR") && client.line().starts_with("END"));
    assert_eq!(classes(&router, &server), [("ok", 2), ("error", 2)]);
}

#[test]
fn answers_are_counted_for_each_service_that_asks_and_no_more_once_it_is_gone() {
    let server = FakeServer::echo("a");
    let one = http(&[&[server.addr]]);
    let both = format!("{one}\n{}", one.replace("name = \"s\"", "name = \"t\""));
    let router = Router::start(&both);
    let serving = router.handle.serving();
    for (service, times) in [("s", 2), ("t", 3)] {
        let listen = serving.iter().find(|serving| serving.service == service).unwrap().listen;
        let mut client = Client::connect(listen);
        (0..times).for_each(|_| assert_eq!(client.get("k").status, 200));
    }
    let counted = || {
        let stats = router.server_stats(server.addr).responses;
        let mut all: Vec<_> = stats.into_iter().map(|one| (one.service.clone(), one.of("2xx"))).collect();
        all.sort();
        all
    };
    assert_eq!(counted(), [("s".to_owned(), 2), ("t".to_owned(), 3)]);
    router.handle.reload(&Config::parse(&one, "t".as_ref(), Surroundings::default()).unwrap()).unwrap();
    assert_eq!(counted(), [("s".to_owned(), 2)]);
}
