//! Reads that share a connection to a server that dies, hangs or lies: each client gets the answer to its own request,
//! or is told that there is none.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/pipelined.rs"]
mod pipelined;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{journal::*, *};
use membership_types::Rng;
use pipelined::*;

/// A server that spoils the connection it was asked on first, by what it says there to the ninth GET.
fn spoils(spoilt: &'static str) -> FakeServer {
    FakeServer::start(move |peer| {
        let mut count = 0;
        while let Some(request) = peer.request() {
            count += usize::from(request.head.starts_with("GET"));
            if peer.number == 0 && count == 9 {
                peer.send(spoilt);
                if !spoilt.ends_with("breaks off") {
                    thread::sleep(Duration::from_millis(100));
                }
                return;
            }
            peer.send(&answer(&request.head));
        }
    })
}

#[test]
fn whatever_is_odd_ends_the_shared_connection_and_nobody_notices() {
    for spoilt in [
        "",
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nends with the connection",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbreaks off",
        "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
    ] {
        let server = spoils(spoilt);
        let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
        let odd = ask_all(&router, 8, 10);
        assert!(odd.is_empty(), "{odd:?} after {spoilt:?}");
        let stats = router.stats();
        assert!((1..=8).contains(&stats.retried) && stats.unavailable == 0, "{stats:?} after {spoilt:?}");
        assert!(server.connections() > 1);
    }
}

/// A router that lets many share, and bears that they all connect at once.
fn crowded(server: &FakeServer, response: Duration, hedge_after: Duration) -> Router {
    Router::with(&pipelined(256, "", &[&[server.addr]]), 1, |limits| {
        (limits.connect, limits.response, limits.hedge_after) = (PATIENCE, response, hedge_after);
    })
}

/// Has so many clients, more than may be sent again, wait at a server behind one that asks for `bad`, and checks that
/// each of them gets its answer. Returns the one.
fn crowd_behind(router: &Router, server: &FakeServer, many: usize, bad: &str) -> Client {
    let mut all: Vec<Client> = (0..many).map(|_| router.client()).collect();
    ask(&mut all[0], "first");
    let mut one = router.client();
    one.send(request("GET", bad));
    server.await_request(&format!("/{bad}"));
    for (n, client) in all.iter_mut().enumerate() {
        client.send(request("GET", &n.to_string()));
    }
    for (n, client) in all.iter_mut().enumerate() {
        let response = client.response();
        assert_eq!((response.status, response.body), (200, n.to_string()), "behind {bad}");
    }
    one
}

#[test]
fn one_odd_answer_costs_those_behind_it_nothing() {
    for (text, status) in [
        ("HTTP/1.1 200 OK\r\nX-Nonce: bad\r\n\r\nuntil the end", Some(200)),
        ("HTTP/1.1 200 OK\r\nX y: z\r\nContent-Length: 0\r\n\r\n", Some(502)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbreaks off", None),
        ("", None),
    ] {
        let server = FakeServer::start(move |peer| {
            while let Some(request) = peer.request() {
                if asked(&request.head).1 == "bad" {
                    thread::sleep(Duration::from_millis(300));
                    peer.send(text);
                    return;
                }
                peer.send(&answer(&request.head));
            }
        });
        let router = crowded(&server, PATIENCE, PATIENCE);
        let mut one = crowd_behind(&router, &server, 125, "bad");
        if let Some(status) = status {
            assert_eq!(one.try_response().expect("an answer").status, status, "{text}");
        }
        if status == Some(200) {
            assert_eq!(router.server_stats(server.addr).failures, 0, "an answer may end with its connection");
        }
    }
}

#[test]
fn one_that_never_ends_costs_those_behind_it_no_answer() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            if asked(&request.head).1 == "endless" {
                thread::sleep(Duration::from_secs(9));
                return;
            }
            peer.send(&answer(&request.head));
        }
    });
    let router = crowded(&server, Duration::from_millis(1500), router::Limits::default().hedge_after);
    let _one = crowd_behind(&router, &server, 200, "endless");
    let failures = router.server_stats(server.addr).failures;
    // Once for its silence, once at the end of the wait; a crowded machine may be silent by itself.
    assert!(failures <= 6, "{failures}");
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_connection() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            peer.send(&answer(&request.head));
            if peer.number == 0 {
                thread::sleep(Duration::from_millis(20));
                peer.send("HTTP/1.1 200 OK\r\nX-Nonce: poison\r\nContent-Length: 6\r\n\r\npoison");
                peer.request();
                peer.note("hung up".into());
                return;
            }
        }
    });
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    let mut client = router.client();
    ask(&mut client, "first");
    eventually("the router hangs up", || server.seen().contains(&"hung up".into()));
    for n in 0..10 {
        ask(&mut client, &format!("n{n}"));
    }
    assert_eq!(server.connections(), 2);
    assert_eq!(router.stats().retried, 0, "it ended before anybody was sent there");
}

/// A server that says with so many answers on a connection that it closes, and does.
fn closes_after(answers: usize) -> FakeServer {
    FakeServer::start(move |peer| {
        for left in (0..answers).rev() {
            let Some(request) = peer.request() else { return };
            let text = answer(&request.head);
            peer.send(&if left == 0 {
                text.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
            } else {
                text
            });
        }
    })
}

#[test]
fn a_server_that_says_that_it_closes_does_so_without_harm() {
    let server = closes_after(150);
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    assert!(ask_all(&router, 8, 300).is_empty());
    let stats = router.server_stats(server.addr);
    assert_eq!((stats.failures, stats.avoided_by), (0, 0), "to close is no failure");
    assert!(server.connections() >= 16, "{}", server.connections());
}

#[test]
fn a_server_that_closes_and_leaves_many_gets_little_twice() {
    let server = closes_after(120);
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    let start = Instant::now();
    assert!(ask_all(&router, 32, 200).is_empty());
    let (retried, seconds) = (router.stats().retried, 1 + start.elapsed().as_secs());
    assert!(retried > 0, "nothing was left");
    assert!(retried <= 6400 / 10 + 31 * seconds, "{retried} in {seconds} s");
}

#[test]
fn a_server_that_is_killed_again_and_again_costs_no_read() {
    let (mut dying, well) = (honest(), honest());
    let router = unhurried(&pipelined(32, "", &[&[dying.addr, well.addr]]));
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // With one server left half of them have connections of their own.
        for id in 0..64 {
            let (router, stop, answered) = (&router, &stop, &answered);
            scope.spawn(move || {
                let mut client = router.client();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let response = ask(&mut client, &format!("{id}-{n}"));
                    assert_eq!(response.status, 200, "{response:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..5 {
            // A tenth of what was sent once may be sent again: all that a server can take with it.
            let enough = answered.load(Ordering::SeqCst) + 1500;
            eventually("enough is answered", || answered.load(Ordering::SeqCst) >= enough);
            dying.kill();
            assert!(!dying.seen().is_empty());
            thread::sleep(Duration::from_millis(100));
            dying = honest_at(dying.addr);
            eventually("it is used again", || !dying.seen().is_empty());
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(router.stats().unavailable, 0);
}

/// A server that stops to answer on all its connections while it is `hung`.
fn moody(hung: &Arc<AtomicBool>) -> FakeServer {
    let hung = Arc::clone(hung);
    FakeServer::start(move |peer| {
        while let Some(request) = peer.request() {
            while hung.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            peer.send(&answer(&request.head));
        }
    })
}

#[test]
fn a_silent_server_holds_its_requests_for_milliseconds() {
    let hung = Arc::new(AtomicBool::new(false));
    let (silent, well) = (moody(&hung), honest());
    let router = Router::start(&pipelined(32, "", &[&[silent.addr, well.addr]]));
    let took = || {
        let start = Instant::now();
        assert!(ask_all(&router, 8, 50).is_empty());
        start.elapsed()
    };
    let before = took();
    assert!(!silent.seen().is_empty() && !well.seen().is_empty());
    hung.store(true, Ordering::SeqCst);
    let meanwhile = took();
    assert!(meanwhile < before + PATIENCE / 5, "{meanwhile:?}, and {before:?} before");
    assert!(router.stats().retried > 0);
    let before = silent.seen().len();
    hung.store(false, Ordering::SeqCst);
    let mut client = router.client();
    eventually("it is used again", || {
        ask(&mut client, "x");
        silent.seen().len() > before + 8
    });
}

#[test]
fn one_that_takes_long_does_not_hold_up_those_behind_it() {
    let held = Arc::new(Mutex::new(()));
    let gate = held.clone();
    let server = FakeServer::start(move |peer| {
        while let Some(request) = peer.request() {
            if request.head.starts_with("GET /slow") {
                drop(gate.lock().unwrap());
            }
            peer.send(&answer(&request.head));
        }
    });
    let router = Router::start(&pipelined(32, "", &[&[server.addr]]));
    let took = |times| {
        let start = Instant::now();
        assert!(ask_all(&router, 4, times).is_empty());
        start.elapsed()
    };
    let before = took(20);
    let guard = held.lock().unwrap();
    let mut slow = router.client();
    slow.send(request("GET", "slow"));
    server.await_request("/slow");
    let meanwhile = took(5);
    assert!(meanwhile < before + Duration::from_millis(2500), "{meanwhile:?}, and {before:?} before");
    drop(guard);
    assert_eq!(slow.response().body, "slow");
}

#[test]
fn where_nothing_may_be_sent_again_all_wait_for_the_server_as_ever() {
    // Silent at first for longer than any server may be, but not before all are there.
    let server = FakeServer::start(|peer| {
        let mut pause = 800;
        while let Some(request) = peer.request() {
            thread::sleep(Duration::from_millis(pause));
            peer.send(&answer(&request.head));
            pause = 150;
        }
    });
    let router = Router::with(&pipelined(200, "", &[&[server.addr]]), 1, |limits| {
        limits.lane_rest = Duration::ZERO;
        limits.hedge_after = Duration::from_millis(500);
    });
    // A hundred may be sent again in any case: these use them up.
    let mut clients: Vec<Client> = (0..120).map(|_| router.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(request("GET", &n.to_string()));
    }
    let start = Instant::now();
    for (n, client) in clients.iter_mut().enumerate() {
        let response = client.response();
        assert_eq!((response.status, response.body), (200, n.to_string()));
    }
    let retried = router.stats().retried;
    assert!((100..120).contains(&retried), "{retried} sent again");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20) && took > Duration::from_millis(300), "{took:?}");
}

/// Answers in order, in whatever pieces; dies, hangs up, or speaks nonsense now and then.
fn troubled(addr: SocketAddr, journal: &Arc<Journal>) -> FakeServer {
    let journal = journal.clone();
    FakeServer::start_at(addr, move |peer| {
        let mut rng = Rng::seeded(peer.number as u64 ^ 0xFEED);
        while let Some(request) = peer.request() {
            let (method, nonce) = asked(&request.head);
            if method == "POST" {
                journal.ran(nonce);
                if rng.chance(100) {
                    return; // and nobody knows
                }
            }
            let head = format!("HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\n");
            let body = if rng.chance(20) { large(nonce, 70_000) } else { String::new() } + nonce;
            let text = if method == "HEAD" {
                format!("{head}Content-Length: 5\r\n\r\n")
            } else if rng.chance(300) {
                format!(
                    "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\nX-Sum: {nonce}\r\n\r\n",
                    body.len()
                )
            } else {
                format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
            };
            match rng.below(2000) {
                0..5 => return,
                5..10 => peer.send("HTTP/1.1 200 OK\r\nContent-Le"),
                10..15 => peer.send("nonsense\r\n\r\n"),
                15..20 => peer.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"),
                20..25 => {
                    peer.send(&text.replacen("\r\n", "\r\nConnection: close\r\n", 1));
                    return;
                }
                25..28 => thread::sleep(Duration::from_millis(60)),
                _ => {
                    let at = rng.below(text.len() as u64) as usize;
                    peer.send(&text[..at]);
                    if rng.chance(20) {
                        thread::sleep(Duration::from_micros(300));
                    }
                    peer.send(&text[at..]);
                    continue;
                }
            }
            if rng.chance(500) {
                return;
            }
            // Whatever it was, it was no answer; the next one would be another request's.
            thread::sleep(Duration::from_millis(5));
            return;
        }
    })
}

#[test]
fn answers_stay_with_their_requests_while_servers_die_and_lie() {
    let journal = Arc::new(Journal::default());
    let mut servers: Vec<FakeServer> = (0..4).map(|_| troubled(nobody(), &journal)).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    let router = Router::with(&pipelined(32, "", &[&addrs[..2], &addrs[2..]]), 2, |limits| {
        limits.lane_rest = Duration::from_millis(5); // or they would hardly share
    });
    let (stop, good, odd, cut) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut kills = 0;
    thread::scope(|scope| {
        for id in 0..12 {
            let (router, stop, good, odd, cut) = (&router, &stop, &good, &odd, &cut);
            let journal = &journal;
            scope.spawn(move || {
                let mut rng = Rng::seeded(id);
                let mut client = router.client();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let nonce = format!("{id}.{n}");
                    if rng.chance(100) {
                        // An update between the reads, which never takes the shared connection.
                        client.send(format!("POST /{nonce} HTTP/1.1\r\nHost: h\r\nX-Key: {nonce}\r\nContent-Length: 2\r\n\r\nup"));
                        let response = client.try_response();
                        let told = match response.as_ref().map(|response| response.status) {
                            Some(200) => Told::Done,
                            Some(503) => Told::Nothing,
                            Some(_) | None => Told::Unknown,
                        };
                        assert!(told != Told::Done || response.as_ref().unwrap().body.ends_with(&nonce));
                        journal.told(&nonce, told);
                        if response.is_none() {
                            client = router.client();
                        }
                        continue;
                    }
                    let method = if rng.chance(200) { "HEAD" } else { "GET" };
                    match try_ask(&mut client, method, &nonce) {
                        Some(response) if response.status == 200 => {
                            let chunked = response.field("transfer-encoding").is_some();
                            assert_eq!(response.trailers == format!("X-Sum: {nonce}\r\n"), chunked);
                            good.fetch_add(1, Ordering::SeqCst)
                        }
                        Some(response) => {
                            assert!(matches!(response.status, 408 | 502 | 503), "{response:?}");
                            odd.fetch_add(1, Ordering::SeqCst)
                        }
                        None => {
                            client = router.client();
                            cut.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                    if rng.chance(5) {
                        // Goes away with a request under way.
                        client.send(request("GET", "gone"));
                        client = router.client();
                    }
                }
            });
        }
        let mut rng = Rng::seeded(7);
        let begun = Instant::now();
        // On a busy machine until it has come to something, and with no more trouble for each answer.
        let is_enough =
            |kills| kills > 30 && good.load(Ordering::SeqCst) > 2_500 && router.stats().retried > 20;
        while begun.elapsed() < Duration::from_secs(3) || !is_enough(kills) && begun.elapsed() < 6 * PATIENCE
        {
            let before = good.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(rng.between(5, 60)));
            eventually("some are answered", || good.load(Ordering::SeqCst) >= before + 20);
            let at = rng.below(4) as usize;
            if rng.chance(500) {
                servers[at].cut();
            } else {
                servers[at].kill();
                thread::sleep(Duration::from_millis(rng.between(0, 20)));
                servers[at] = troubled(servers[at].addr, &journal);
            }
            kills += 1;
        }
        stop.store(true, Ordering::SeqCst);
    });
    let (good, odd, cut) = (good.into_inner(), odd.into_inner(), cut.into_inner());
    println!("{kills} kills, {good} answers, {odd} refused, {cut} broken off");
    assert!(kills > 30 && good > 2_000 && router.stats().retried > 20, "the test must have tested something");
    assert!(odd + cut < good / 5, "most must get through");
    let [done, .., unknown] = journal.judge().unwrap();
    assert!(done > 100 && unknown > 0, "{done} updates done, {unknown} unknown");
}
