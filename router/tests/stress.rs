//! Servers die and come back all the time, clients pipeline: every response must still be its own request's.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::*;
use membership_types::Rng;

const FOR: Duration = Duration::from_secs(3);

/// Cuts connections and kills and restarts servers at random until told to stop. Returns how often, and the servers,
/// which live on.
fn trouble(
    seed: u64,
    stop: Arc<AtomicBool>,
    mut servers: Vec<FakeServer>,
    start: impl Fn(std::net::SocketAddr) -> FakeServer + Send + 'static,
) -> thread::JoinHandle<(u64, Vec<FakeServer>)> {
    thread::spawn(move || {
        let mut rng = Rng::seeded(seed);
        let mut kills = 0;
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(rng.between(1, 30)));
            let at = rng.below(servers.len() as u64) as usize;
            if rng.chance(500) {
                servers[at].cut();
            } else {
                servers[at].kill();
                thread::sleep(Duration::from_millis(rng.between(0, 20)));
                servers[at] = start(servers[at].addr);
            }
            kills += 1;
        }
        (kills, servers)
    })
}

fn http_server(addr: std::net::SocketAddr) -> FakeServer {
    FakeServer::start_at(addr, |peer| {
        let mut rng = Rng::seeded(peer.number as u64);
        while let Some(request) = peer.request() {
            let nonce =
                request.head.lines().find_map(|line| line.strip_prefix("X-Nonce: ")).unwrap().to_owned();
            if rng.chance(20) {
                return; // dies with the request in hand
            }
            let body = format!("{nonce}/{}", request.body.len());
            if rng.chance(200) {
                let (left, right) = body.split_at(body.len() / 2);
                let chunks =
                    format!("{:x}\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\n\r\n", left.len(), right.len());
                peer.send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
            } else {
                peer.respond(&body);
            }
        }
    })
}

#[test]
fn http_responses_stay_with_their_requests_while_servers_die() {
    let seed = 0x5EED;
    let any = "127.0.0.1:0".parse().unwrap();
    let servers: Vec<FakeServer> = (0..4).map(|_| http_server(any)).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    let router =
        Router::with(&http(&[&addrs[..2], &addrs[2..]]), 2, |limits| limits.wait = Duration::from_secs(2));
    let stop = Arc::new(AtomicBool::new(false));
    let trouble = trouble(seed, stop.clone(), servers, http_server);
    let counts: Arc<[AtomicU64; 4]> = Arc::default();
    let clients: Vec<_> = (0..6u64)
        .map(|id| {
            let (stop, counts, addr) = (stop.clone(), counts.clone(), router.addr());
            thread::spawn(move || {
                let mut rng = Rng::seeded(seed + id);
                let mut nonce = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    let mut client = Client::connect(addr);
                    for _ in 0..rng.between(1, 20) {
                        // A pipeline of reads and updates, with bodies of either framing.
                        let mut expected = vec![];
                        let mut batch = String::new();
                        for _ in 0..rng.between(1, 8) {
                            nonce += 1;
                            let tag = format!("{id}.{nonce}");
                            let body = "b".repeat(rng.below(300) as usize);
                            let head = format!("Host: h\r\nX-Key: {}\r\nX-Nonce: {tag}\r\n", rng.below(1000));
                            let (read, len) = match rng.below(3) {
                                0 => {
                                    batch += &format!("GET /x HTTP/1.1\r\n{head}\r\n");
                                    (true, 0)
                                }
                                1 => {
                                    batch += &format!("POST /x HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len());
                                    (false, body.len())
                                }
                                _ => {
                                    let chunk = format!("{:x}\r\n{body}\r\n", body.len()).repeat(usize::from(!body.is_empty()));
                                    batch += &format!("PUT /x HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n");
                                    (false, body.len())
                                }
                            };
                            expected.push((read, format!("{tag}/{len}")));
                        }
                        client.send(&batch);
                        let mut whole = true;
                        for (read, body) in expected {
                            // A response that was under way when its server died breaks off, and its connection too.
                            let Some(response) = client.try_response() else {
                                whole = false;
                                break;
                            };
                            match response.status {
                                200 => {
                                    assert_eq!(response.body, body, "seed {seed}: a response of another request");
                                    counts[usize::from(!read)].fetch_add(1, Ordering::SeqCst);
                                }
                                502 if !read => drop(counts[2].fetch_add(1, Ordering::SeqCst)),
                                503 | 502 => drop(counts[3].fetch_add(1, Ordering::SeqCst)),
                                other => panic!("seed {seed}: status {other}"),
                            }
                        }
                        if !whole {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    let start = Instant::now();
    thread::sleep(FOR);
    stop.store(true, Ordering::SeqCst);
    let (kills, _servers) = trouble.join().unwrap();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let [reads, updates, unknown, failed] = [0, 1, 2, 3].map(|at| counts[at].load(Ordering::SeqCst));
    println!(
        "{kills} kills, {reads} reads, {updates} updates, {unknown} unknown, {failed} failed, {:?}",
        start.elapsed()
    );
    assert!(kills > 50 && reads > 500 && updates > 500 && unknown > 0, "the test must have tested something");
    assert!(failed < (reads + updates) / 5, "most requests must get through");
}

fn redis_server(addr: std::net::SocketAddr) -> FakeServer {
    FakeServer::start_at(addr, |peer| {
        let mut rng = Rng::seeded(peer.number as u64);
        while let Some(args) = peer.command() {
            if rng.chance(5) {
                return;
            }
            let text = match args[0].as_str() {
                "MGET" => args[1..].iter().fold(format!("*{}\r\n", args.len() - 1), |text, key| {
                    text + &format!("${}\r\n{key}\r\n", key.len())
                }),
                _ => format!("${}\r\n{}\r\n", args.last().unwrap().len(), args.last().unwrap()),
            };
            if rng.chance(10) {
                peer.send(&text[..text.len() / 2]);
                thread::sleep(Duration::from_micros(200));
                peer.send(&text[text.len() / 2..]);
            } else {
                peer.send(&text);
            }
        }
    })
}

#[test]
fn redis_replies_stay_with_their_commands_while_servers_die() {
    let seed = 0xCAFE;
    let any = "127.0.0.1:0".parse().unwrap();
    let servers: Vec<FakeServer> = (0..4).map(|_| redis_server(any)).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    let router =
        Router::with(&redis(&[&addrs[..2], &addrs[2..]]), 2, |limits| limits.wait = Duration::from_secs(2));
    let stop = Arc::new(AtomicBool::new(false));
    let trouble = trouble(seed, stop.clone(), servers, redis_server);
    let counts: Arc<[AtomicU64; 3]> = Arc::default();
    let clients: Vec<_> = (0..6u64)
        .map(|id| {
            let (stop, counts, addr) = (stop.clone(), counts.clone(), router.addr());
            thread::spawn(move || {
                let mut rng = Rng::seeded(seed + id);
                let mut nonce = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    let mut client = Client::connect(addr);
                    for _ in 0..rng.between(1, 20) {
                        let mut batch = String::new();
                        let mut expected = vec![];
                        for _ in 0..rng.between(1, 60) {
                            nonce += 1;
                            let tag = format!("{id}.{nonce}");
                            match rng.below(3) {
                                0 => {
                                    batch += &command(&["GET", &tag]);
                                    expected.push((1, vec![tag]));
                                }
                                1 => {
                                    batch += &command(&["SET", &rng.below(1000).to_string(), &tag]);
                                    expected.push((1, vec![tag]));
                                }
                                _ => {
                                    let keys: Vec<String> = (0..5).map(|n| format!("{tag}.{n}")).collect();
                                    let args: Vec<&str> = std::iter::once("MGET")
                                        .chain(keys.iter().map(String::as_str))
                                        .collect();
                                    batch += &command(&args);
                                    expected.push((5, keys));
                                }
                            }
                        }
                        client.send(&batch);
                        if rng.chance(20) {
                            break; // goes away with replies on their way
                        }
                        for (elements, texts) in expected {
                            let reply = client.reply();
                            if reply.starts_with('-') {
                                let known = reply.starts_with("-TRYAGAIN phalanx")
                                    || reply.contains("outcome unknown");
                                assert!(known, "{reply}");
                                counts[1].fetch_add(1, Ordering::SeqCst);
                                continue;
                            }
                            let mut rest = reply.as_str();
                            if elements == 5 {
                                rest = rest.strip_prefix("*5\r\n").unwrap();
                            }
                            for text in &texts {
                                let good = format!("${}\r\n{text}\r\n", text.len());
                                rest = match rest.strip_prefix(&good) {
                                    Some(rest) => rest,
                                    // The part of a dead server carries an error for each of its keys.
                                    None if elements == 5 && rest.starts_with("-TRYAGAIN") => {
                                        rest.split_once("\r\n").unwrap().1
                                    }
                                    None => panic!(
                                        "seed {seed}: {reply:?} is another command's reply, not {texts:?}'s"
                                    ),
                                };
                            }
                            assert_eq!(rest, "");
                            counts[0].fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            })
        })
        .collect();
    thread::sleep(FOR);
    stop.store(true, Ordering::SeqCst);
    let (kills, _servers) = trouble.join().unwrap();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let [good, failed, _] = [0, 1, 2].map(|at| counts[at].load(Ordering::SeqCst));
    println!("{kills} kills, {good} replies, {failed} errors");
    assert!(kills > 50 && good > 5_000 && failed > 0, "the test must have tested something");
}
