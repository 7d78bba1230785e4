//! Answers on a shared connection that are large, or long in coming: they come whole, and hold up nobody.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/pipelined.rs"]
mod pipelined;

use std::{
    io::Read,
    thread,
    time::{Duration, Instant},
};

use common::*;
use pipelined::*;

#[test]
fn the_first_part_of_what_is_long_in_coming_is_shown_at_once() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            if asked(&request.head).1 == "events" {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
                thread::sleep(Duration::from_secs(4));
                peer.send("0\r\n\r\n");
            } else {
                peer.send(&answer(&request.head));
            }
        }
    });
    let router = Router::start(&pipelined(8, "", &[&[server.addr]]));
    let mut client = router.client();
    let start = Instant::now();
    client.send(request("GET", "events"));
    assert!(read_head(&mut client.reader).unwrap().contains("chunked"));
    let mut part = [0; 10];
    client.reader.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"5\r\nfirst\r\n");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Answers `/big-...` with so many bytes, in chunks if `/big-c...`.
fn big(len: usize) -> FakeServer {
    FakeServer::start(move |peer| {
        while let Some(request) = peer.request() {
            let (_, nonce) = asked(&request.head);
            let head = format!("HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\n");
            if nonce.starts_with("big-c") {
                peer.send(&format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
                let body = large(nonce, len);
                for chunk in body.as_bytes().chunks(100_000) {
                    peer.send(&format!("{:x}\r\n", chunk.len()));
                    peer.send_bytes(chunk);
                    peer.send("\r\n");
                }
                peer.send("0\r\n\r\n");
            } else if nonce.starts_with("big") {
                peer.send(&format!("{head}Content-Length: {len}\r\n\r\n{}", large(nonce, len)));
            } else {
                peer.send(&answer(&request.head));
            }
        }
    })
}

#[test]
fn large_answers_come_whole_and_in_their_places() {
    for (len, shared) in [(50_000, true), (300_000, true), (3_000_000, false)] {
        let server = big(len);
        let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
        thread::scope(|scope| {
            for id in 0..4 {
                let router = &router;
                scope.spawn(move || {
                    let mut client = router.client();
                    for n in 0..10 {
                        let nonce = format!("big-{}{id}-{n}", if n % 2 == 0 { "c" } else { "" });
                        client.send(request("GET", &nonce));
                        let response = client.response();
                        assert_eq!(response.field("x-nonce"), Some(&*nonce));
                        assert!(response.body == large(&nonce, len), "{len} bytes");
                        ask(&mut client, &format!("small{id}-{n}"));
                    }
                });
            }
        });
        assert_eq!(server.connections() == 1, shared, "{len}: {} connections", server.connections());
        assert_eq!(router.stats().unavailable, 0);
    }
}

#[test]
fn a_slow_reader_of_a_large_answer_holds_up_nobody() {
    for len in [900_000, 40_000_000] {
        let server = big(len);
        let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
        ask(&mut router.client(), "first");
        let mut slow = router.client();
        socket2::SockRef::from(&slow.stream).set_recv_buffer_size(64 << 10).unwrap();
        slow.send(request("GET", "big-slow"));
        server.await_request("/big-slow");
        let start = Instant::now();
        assert!(ask_all(&router, 8, 50).is_empty());
        assert!(start.elapsed() < PATIENCE / 5, "{:?}", start.elapsed());
        let response = slow.response();
        assert!(response.body == large("big-slow", len), "it gets all of it in the end");
        assert_eq!(ask(&mut slow, "next").status, 200);
        assert_eq!(router.stats().unavailable, 0);
    }
}

#[test]
fn no_more_is_kept_for_clients_than_their_service_may() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let nonce = asked(&request.head).1;
            thread::sleep(Duration::from_millis(if peer.number == 0 && nonce == "big-0" { 300 } else { 0 }));
            let body = if nonce.starts_with("big") { large(nonce, 900_000) } else { nonce.to_owned() };
            peer.send(&format!(
                "HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        }
    });
    let router = Router::with(&pipelined(64, "", &[&[server.addr]]), 1, |limits| {
        (limits.hedge_after, limits.unread_in_all) = (PATIENCE, 2 << 20);
    });
    ask(&mut router.client(), "first");
    let mut clients: Vec<Client> = (0..20).map(|_| router.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(request("GET", &format!("big-{n}")));
        if n == 0 {
            server.await_request("/big-0");
        }
    }
    // Whoever is behind what would be too much has a connection of its own, at its client's pace.
    eventually("most are elsewhere", || server.connections() > 10);
    for (n, client) in clients.iter_mut().enumerate() {
        assert!(client.response().body == large(&format!("big-{n}"), 900_000), "all of it comes");
    }
    assert_eq!(router.stats().unavailable, 0);
}

#[test]
fn an_answer_that_comes_in_drops_is_shown_as_it_comes_and_holds_up_nobody() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            if request.head.starts_with("GET /events") {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for n in 0..200 {
                    peer.send(&format!("3\r\n{n:03}\r\n"));
                    thread::sleep(Duration::from_millis(10));
                }
                peer.send("0\r\n\r\n");
            } else {
                peer.send(&answer(&request.head));
            }
        }
    });
    let router = Router::start(&pipelined(32, "", &[&[server.addr]]));
    ask(&mut router.client(), "first");
    let mut listener = router.client();
    listener.send(request("GET", "events"));
    server.await_request("/events");
    let start = Instant::now();
    assert!(ask_all(&router, 4, 20).is_empty());
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    assert!(read_head(&mut listener.reader).unwrap().contains("chunked"));
    assert!(start.elapsed() < Duration::from_millis(1800), "not only when it is whole");
    let mut rest = String::new();
    let expected: String = (0..200).map(|n| format!("3\r\n{n:03}\r\n")).collect::<String>() + "0\r\n\r\n";
    let mut buffer = [0; 1024];
    while rest.len() < expected.len() {
        let len = listener.reader.read(&mut buffer).unwrap();
        assert!(len > 0);
        rest += std::str::from_utf8(&buffer[..len]).unwrap();
    }
    assert_eq!(rest, expected);
    assert_eq!(ask(&mut listener, "next").status, 200);
}

#[test]
fn an_answer_that_breaks_off_once_its_client_has_a_part_is_broken_for_it_and_for_nobody_else() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            if request.head.starts_with("GET /broken") {
                peer.send(&format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n{}",
                    large("half", 250_000)
                ));
                thread::sleep(Duration::from_millis(5));
                return;
            }
            peer.send(&answer(&request.head));
        }
    });
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    ask(&mut router.client(), "first");
    thread::scope(|scope| {
        let other = scope.spawn(|| ask_all(&router, 4, 50));
        let mut client = router.client();
        client.send(request("GET", "broken"));
        assert!(client.try_response().is_none(), "it must not take half of it for all");
        assert!(other.join().unwrap().is_empty());
    });
}
