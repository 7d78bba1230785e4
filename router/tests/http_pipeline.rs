//! Reads that share a connection to their server: which do, how many, and where their answers end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/pipelined.rs"]
mod pipelined;

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::*;
use pipelined::*;

#[test]
fn clients_share_one_connection_and_each_gets_its_own_answers() {
    let (a, b) = (honest(), honest());
    let router = unhurried(&pipelined(64, "expose = true", &[&[a.addr], &[b.addr]]));
    assert!(ask_all(&router, 16, 200).is_empty());
    assert_eq!((a.connections(), b.connections()), (1, 1));
    let stats = router.stats();
    assert_eq!((stats.requests, stats.retried, stats.unavailable), (3200, 0, 0));
    assert_eq!(stats.latency.count(), 3200);
    for server in [&a, &b] {
        let stats = router.server_stats(server.addr);
        assert_eq!((stats.requests as usize, stats.in_flight, stats.failures), (server.seen().len(), 0, 0));
        assert_eq!(stats.latency.count() as usize, server.seen().len());
    }
    let response = ask(&mut router.client(), "x");
    assert!(response.field("x-phalanx-server").is_some() && response.field("x-phalanx-partition").is_some());
}

#[test]
fn requests_that_could_be_mistaken_take_connections_of_their_own() {
    let server = honest();
    let router = unhurried(&pipelined(8, "", &[&[server.addr]]));
    ask(&mut router.client(), "first");
    assert_eq!(server.connections(), 1);
    let mut client = router.client();
    for text in [
        "POST /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 1\r\n\r\nx",
        "POST /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n",
        "GET /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 1\r\n\r\nx",
        "OPTIONS /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n",
        "GET /n HTTP/1.0\r\nX-Key: k\r\nConnection: keep-alive\r\n\r\n",
        "GET /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nIf-None-Match: \"x\"\r\n\r\n",
        "GET /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nif-modified-since: x\r\n\r\n",
        "GET /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nIF_MATCH: x\r\n\r\n",
        "GET /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nRange: bytes=0-\r\n\r\n",
        &format!("GET /n HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Long: {}\r\n\r\n", "l".repeat(9000)),
    ] {
        client.send(text);
        assert_eq!(client.response().body, "n", "{text}");
        // One connection beside the shared one serves them all, one after the other.
        assert_eq!(server.connections(), 2, "{text}");
    }
    try_ask(&mut client, "HEAD", "n").unwrap();
    assert_eq!(server.connections(), 2, "HEAD");
}

#[test]
fn what_comes_where_no_body_may_be_is_nobodys_answer() {
    for (method, head) in [
        ("HEAD", "200 OK\r\nContent-Length: 63"),
        ("GET", "204 No Content"),
        ("GET", "204 No Content\r\nContent-Length: 63"),
        ("GET", "205 Reset Content\r\nContent-Length: 0"),
        ("GET", "304 Not Modified\r\nContent-Length: 63"),
    ] {
        let server = FakeServer::start(move |peer| {
            while let Some(request) = peer.request() {
                if asked(&request.head).1 == "stored" {
                    // What a stranger has stored there.
                    let poison = "HTTP/1.1 200 OK\r\nX-Nonce: poison\r\nContent-Length: 6\r\n\r\npoison";
                    thread::sleep(Duration::from_millis(100));
                    peer.send(&format!("HTTP/1.1 {head}\r\nX-Nonce: stored\r\n\r\n{poison}"));
                } else {
                    peer.send(&answer(&request.head));
                }
            }
        });
        let router = unhurried(&pipelined(8, "", &[&[server.addr]]));
        let (mut curious, mut other) = (router.client(), router.client());
        ask(&mut curious, "first");
        curious.send(request(method, "stored"));
        server.await_request("/stored");
        assert_eq!(ask(&mut other, "mine").body, "mine", "behind {head}");
        let status = curious.try_response_to(method).unwrap().status;
        assert!(head.starts_with(&status.to_string()));
        assert_eq!(ask(&mut curious, "next").status, 200);
        let stats = router.stats();
        assert!(stats.retried <= 1 && stats.unavailable == 0, "{stats:?} after {head}");
        assert_eq!(router.server_stats(server.addr).failures, 0);
    }
}

#[test]
fn no_more_than_were_allowed_are_under_way_on_one_connection() {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (most2, now2) = (most.clone(), now.clone());
    let server = FakeServer::start(move |peer| {
        // Looks at what has come before it answers.
        let mut buffer = [0; 65536];
        while let Ok(len @ 1..) = peer.stream.read(&mut buffer) {
            thread::sleep(Duration::from_millis(3));
            let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
            let heads: Vec<&str> = text.split_inclusive("\r\n\r\n").collect();
            most2.fetch_max(heads.len(), Ordering::SeqCst);
            now2.fetch_add(heads.len(), Ordering::SeqCst);
            heads.iter().for_each(|head| peer.send(&answer(head)));
        }
    });
    let router = unhurried(&pipelined(4, "", &[&[server.addr]]));
    assert!(ask_all(&router, 24, 20).is_empty());
    let most = most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} at once");
    assert!(server.connections() > 1, "the others have connections of their own");
    assert_eq!(now.load(Ordering::SeqCst), 480);
}

#[test]
fn chunked_answers_and_those_without_body_end_where_they_end() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let (_, nonce) = asked(&request.head);
            let head = format!("HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\n");
            let text = match nonce.len() % 4 {
                0 => {
                    format!("HTTP/1.1 404 Not Found\r\nX-Nonce: {nonce}\r\nContent-Length: 0\r\n\r\n")
                }
                1 => format!(
                    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{head}Content-Length: {}\r\n\r\n{nonce}",
                    nonce.len()
                ),
                _ => {
                    let (left, right) = nonce.split_at(1);
                    let tail = "0\r\nX-Trailer: t\r\n\r\n";
                    format!(
                        "{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{left}\r\n{:x}\r\n{right}\r\n{tail}",
                        right.len()
                    )
                }
            };
            // Cut anywhere.
            let at = nonce.len() * 11 % text.len();
            peer.send(&text[..at]);
            peer.send(&text[at..]);
        }
    });
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    let odd = ask_all(&router, 8, 120);
    assert!(odd.iter().all(|response| response.status == 404) && !odd.is_empty());
    assert_eq!(server.connections(), 1);
    assert_eq!(router.stats().retried, 0);
}

#[test]
fn a_client_that_goes_over_to_another_process_keeps_its_connection() {
    use router::handover::{Handover, Predecessor};
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            if asked(&request.head).1 == "later" {
                thread::sleep(Duration::from_millis(1200));
            }
            peer.send(&answer(&request.head));
        }
    });
    let text = pipelined(8, "", &[&[server.addr]]);
    let old = unhurried(&text);
    let mut client = old.client();
    ask(&mut client, "first");
    let path = std::env::temp_dir().join(format!("pipeline-handover-{}", std::process::id()));
    let handover = Handover::prepare(&path).unwrap();
    let handle = old.handle.clone();
    let waits = thread::spawn(move || handover.wait(&handle));
    let mut found = None;
    eventually("it is found", || {
        found = Predecessor::find(&path).unwrap();
        found.is_some()
    });
    let mut new = found.unwrap();
    let mut next = Handover::prepare(&path).unwrap();
    let surroundings = router::Surroundings { follows_groups: true, ..router::Surroundings::default() };
    let config = router::Config::parse(&text, "t".as_ref(), surroundings).unwrap();
    let fresh = new.start(&config, router::Options::new().workers(1)).unwrap();
    client.send(request("GET", "later"));
    thread::sleep(Duration::from_millis(200));
    new.relieve(&fresh, &mut next).unwrap();
    let successor = waits.join().unwrap();
    let handle = old.handle.clone();
    let taking = thread::spawn(move || successor.take(&handle, Duration::from_secs(5)));
    let response = client.response();
    assert_eq!((&*response.body, response.field("connection")), ("later", None));
    ask(&mut client, "next");
    taking.join().unwrap();
    fresh.shutdown(Duration::ZERO);
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_reload_begins_and_ends_to_pipeline() {
    let server = honest();
    let text = |most| {
        let text = pipelined(16, "", &[&[server.addr]]);
        if most == 0 { text.replace("pipeline = 16\n", "") } else { text }
    };
    let router = unhurried(&text(0));
    let parse =
        |text: &str| router::Config::parse(text, "t".as_ref(), router::Surroundings::default()).unwrap();
    let mut client = router.client();
    ask(&mut client, "own");
    router.handle.reload(&parse(&text(16))).unwrap();
    ask(&mut client, "shared");
    assert!(ask_all(&router, 8, 20).is_empty());
    assert_eq!(server.connections(), 2, "the one from before, and the shared one");
    router.handle.reload(&parse(&text(0))).unwrap();
    ask(&mut client, "own again");
    assert_eq!(server.connections(), 2);
}
