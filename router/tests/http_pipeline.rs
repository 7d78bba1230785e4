//! Reads that share a connection to their server: each client gets the answer to its own request, whatever servers
//! and other clients do.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::*;
use membership_types::Rng;

/// A service whose RACS pipeline up to `most` requests.
fn pipelined(most: usize, more: &str, racs: &[&[SocketAddr]]) -> String {
    let text = service("http", &format!("key = \"header:x-key\"\n{more}"), racs);
    text.replace("\nservers", &format!("\npipeline = {most}\nservers"))
}

/// A router that takes no server for hung, however crowded this machine is.
fn unhurried(config: &str) -> Router {
    Router::with(config, 1, |limits| limits.hedge_after = PATIENCE)
}

fn request(method: &str, nonce: &str) -> String {
    format!("{method} /{nonce} HTTP/1.1\r\nHost: h\r\nX-Key: {nonce}\r\n\r\n")
}

/// The nonce in a request's target, and its method.
fn asked(head: &str) -> (&str, &str) {
    let mut words = head.split(' ');
    (words.next().unwrap(), words.next().unwrap().strip_prefix('/').unwrap())
}

/// What an honest server answers.
fn answer(head: &str) -> String {
    let (method, nonce) = asked(head);
    let body = if method == "HEAD" { "" } else { nonce };
    format!("HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\nContent-Length: {}\r\n\r\n{body}", nonce.len())
}

fn honest() -> FakeServer {
    FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            peer.send(&answer(&request.head));
        }
    })
}

/// Sends a request and takes its answer, which must be its own; `None` if the connection ends before.
fn try_ask(client: &mut Client, method: &str, nonce: &str) -> Option<Response> {
    client.stream.write_all(request(method, nonce).as_bytes()).ok()?;
    let response = client.try_response_to(method)?;
    if response.status == 200 {
        assert_eq!(response.field("x-nonce"), Some(nonce), "an answer to another request");
        assert!(method == "HEAD" || response.body.ends_with(nonce), "{}", response.body);
    }
    Some(response)
}

fn ask(client: &mut Client, nonce: &str) -> Response {
    try_ask(client, "GET", nonce).expect("an answer")
}

/// Asks from so many clients at once, so many times each, and gives the answers that were not 200.
fn ask_all(router: &Router, clients: usize, times: usize) -> Vec<Response> {
    thread::scope(|scope| {
        let each = |id| {
            let mut client = router.client();
            let mut odd = vec![];
            for n in 0..times {
                let response = ask(&mut client, &format!("{id}-{n}"));
                if response.status != 200 {
                    odd.push(response);
                }
            }
            odd
        };
        let threads: Vec<_> = (0..clients).map(|id| scope.spawn(move || each(id))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn server_stats(router: &Router, addr: SocketAddr) -> router::ServerStats {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let measured = runtime.block_on(router.handle.measured());
    measured.servers.into_iter().find(|server| server.addr == addr).unwrap()
}

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
        let stats = server_stats(&router, server.addr);
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
        thread::sleep(Duration::from_millis(20));
        assert_eq!(ask(&mut other, "mine").body, "mine", "behind {head}");
        let status = curious.try_response_to(method).unwrap().status;
        assert!(head.starts_with(&status.to_string()));
        assert_eq!(ask(&mut curious, "next").status, 200);
        let stats = router.stats();
        assert!(stats.retried <= 1 && stats.unavailable == 0, "{stats:?} after {head}");
        assert_eq!(server_stats(&router, server.addr).failures, 0);
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

/// Has so many clients, more than may be sent again, wait behind one that asks for `bad`, and checks that each of them gets its
/// answer. Returns the one.
fn crowd_behind(router: &Router, many: usize, bad: &str) -> Client {
    let mut all: Vec<Client> = (0..many).map(|_| router.client()).collect();
    ask(&mut all[0], "first");
    let mut one = router.client();
    one.send(request("GET", bad));
    thread::sleep(Duration::from_millis(5));
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
        let mut one = crowd_behind(&router, 125, "bad");
        if let Some(status) = status {
            assert_eq!(one.try_response().expect("an answer").status, status, "{text}");
        }
        if status == Some(200) {
            assert_eq!(
                server_stats(&router, server.addr).failures,
                0,
                "an answer may end with its connection"
            );
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
    let _one = crowd_behind(&router, 200, "endless");
    let failures = server_stats(&router, server.addr).failures;
    // Once for its silence, once at the end of the wait; a crowded machine may be silent by itself.
    assert!(failures <= 6, "{failures}");
}

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
fn an_answer_that_nobody_asked_for_ends_the_connection() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            peer.send(&answer(&request.head));
            if peer.number == 0 {
                thread::sleep(Duration::from_millis(20));
                peer.send("HTTP/1.1 200 OK\r\nX-Nonce: poison\r\nContent-Length: 6\r\n\r\npoison");
                peer.request();
                return;
            }
        }
    });
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    let mut client = router.client();
    ask(&mut client, "first");
    thread::sleep(Duration::from_millis(100));
    for n in 0..10 {
        ask(&mut client, &format!("n{n}"));
    }
    assert_eq!(server.connections(), 2);
    assert_eq!(router.stats().retried, 0, "it ended before anybody was sent there");
}

#[test]
fn a_server_that_says_that_it_closes_does_so_without_harm() {
    let server = FakeServer::start(|peer| {
        for left in (0..150).rev() {
            let Some(request) = peer.request() else { return };
            let text = answer(&request.head);
            peer.send(&if left == 0 { text.replacen("\r\n", "\r\nConnection: close\r\n", 1) } else { text });
        }
    });
    let router = unhurried(&pipelined(32, "", &[&[server.addr]]));
    assert!(ask_all(&router, 8, 300).is_empty());
    let stats = server_stats(&router, server.addr);
    assert_eq!((stats.failures, stats.avoided_by), (0, 0), "to close is no failure");
    assert!(server.connections() >= 16, "{}", server.connections());
}

#[test]
fn a_killed_server_costs_no_read_and_a_failing_one_is_avoided() {
    let (mut dying, well) = (honest(), honest());
    let router = unhurried(&pipelined(32, "", &[&[dying.addr, well.addr]]));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for id in 0..8 {
            let (router, stop) = (&router, &stop);
            scope.spawn(move || {
                let mut client = router.client();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    assert_eq!(ask(&mut client, &format!("{id}-{n}")).status, 200);
                }
            });
        }
        thread::sleep(Duration::from_millis(100));
        let mut before = 0;
        for _ in 0..5 {
            dying.kill();
            assert!(dying.seen().len() > before);
            thread::sleep(Duration::from_millis(100));
            dying = FakeServer::start_at(dying.addr, |peer| {
                while let Some(request) = peer.request() {
                    peer.send(&answer(&request.head));
                }
            });
            before = 0;
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
    assert!(ask_all(&router, 8, 50).is_empty());
    assert!(!silent.seen().is_empty() && !well.seen().is_empty());
    hung.store(true, Ordering::SeqCst);
    let start = Instant::now();
    assert!(ask_all(&router, 8, 50).is_empty());
    assert!(start.elapsed() < PATIENCE / 5, "{:?}", start.elapsed());
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
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            if request.head.starts_with("GET /slow") {
                thread::sleep(Duration::from_secs(3));
            }
            peer.send(&answer(&request.head));
        }
    });
    let router = Router::start(&pipelined(32, "", &[&[server.addr]]));
    assert!(ask_all(&router, 4, 20).is_empty());
    let mut slow = router.client();
    slow.send(request("GET", "slow"));
    thread::sleep(Duration::from_millis(2));
    let start = Instant::now();
    assert!(ask_all(&router, 4, 5).is_empty());
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    assert_eq!(slow.response().body, "slow");
}

#[test]
fn where_nothing_may_be_sent_again_all_wait_for_the_server_as_ever() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            thread::sleep(Duration::from_millis(150));
            peer.send(&answer(&request.head));
        }
    });
    let router = Router::with(&pipelined(200, "", &[&[server.addr]]), 1, |limits| {
        limits.lane_rest = Duration::ZERO;
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

/// A body that names its request from end to end.
fn large(nonce: &str, len: usize) -> String {
    let mut body = format!("{nonce} ").repeat(len / (nonce.len() + 1) + 1);
    body.truncate(len);
    body
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
        thread::sleep(Duration::from_millis(5));
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
            thread::sleep(Duration::from_millis(20));
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
    thread::sleep(Duration::from_millis(5));
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

/// Answers in order, in whatever pieces; dies, hangs up, or speaks nonsense now and then.
fn troubled(addr: SocketAddr) -> FakeServer {
    FakeServer::start_at(addr, |peer| {
        let mut rng = Rng::seeded(peer.number as u64 ^ 0xFEED);
        while let Some(request) = peer.request() {
            let (method, nonce) = asked(&request.head);
            let head = format!("HTTP/1.1 200 OK\r\nX-Nonce: {nonce}\r\n");
            let body = if rng.chance(20) { large(nonce, 70_000) } else { String::new() } + nonce;
            let text = if method == "HEAD" {
                format!("{head}Content-Length: 5\r\n\r\n")
            } else if rng.chance(300) {
                format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
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
    let mut servers: Vec<FakeServer> = (0..4).map(|_| troubled("127.0.0.1:0".parse().unwrap())).collect();
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
            scope.spawn(move || {
                let mut rng = Rng::seeded(id);
                let mut client = router.client();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let nonce = format!("{id}.{n}");
                    if rng.chance(30) {
                        // An update between the reads, which never takes the shared connection.
                        client.send(format!("POST /{nonce} HTTP/1.1\r\nHost: h\r\nX-Key: {nonce}\r\nContent-Length: 2\r\n\r\nup"));
                        match client.try_response() {
                            Some(response) if response.status == 200 => assert!(response.body.ends_with(&nonce)),
                            Some(_) => {}
                            None => client = router.client(),
                        }
                        continue;
                    }
                    let method = if rng.chance(200) { "HEAD" } else { "GET" };
                    match try_ask(&mut client, method, &nonce) {
                        Some(response) if response.status == 200 => good.fetch_add(1, Ordering::SeqCst),
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
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            thread::sleep(Duration::from_millis(rng.between(5, 60)));
            let at = rng.below(4) as usize;
            if rng.chance(500) {
                servers[at].cut();
            } else {
                servers[at].kill();
                thread::sleep(Duration::from_millis(rng.between(0, 20)));
                servers[at] = troubled(servers[at].addr);
            }
            kills += 1;
        }
        stop.store(true, Ordering::SeqCst);
    });
    let (good, odd, cut) = (good.into_inner(), odd.into_inner(), cut.into_inner());
    println!("{kills} kills, {good} answers, {odd} refused, {cut} broken off; {:?}", router.stats());
    assert!(kills > 30 && good > 2_000 && router.stats().retried > 20, "the test must have tested something");
    assert!(odd + cut < good / 5, "most must get through");
}
