//! Servers die and come back all the time, clients pipeline: every response must still be its own request's.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use common::*;
use membership_types::Rng;

const FOR: Duration = Duration::from_secs(3);

/// Cuts connections and kills and restarts servers at random until told to stop; counts how often.
fn trouble(
    seed: u64,
    stop: Arc<AtomicBool>,
    kills: Arc<Counts<1>>,
    mut servers: Vec<FakeServer>,
    start: impl Fn(std::net::SocketAddr) -> FakeServer + Send + 'static,
) -> thread::JoinHandle<Vec<FakeServer>> {
    thread::spawn(move || {
        let mut rng = Rng::seeded(seed);
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
            kills.add(0);
        }
        servers
    })
}

/// Runs `client` on several threads with trouble all the while, until the time is up and what they have counted is
/// `enough`. Returns that, and how often there was trouble.
fn under_trouble<const N: usize>(
    seed: u64,
    config: impl Fn(&[&[std::net::SocketAddr]]) -> String,
    start: impl Fn(std::net::SocketAddr) -> FakeServer + Send + 'static,
    client: impl Fn(&mut Rng, u64, std::net::SocketAddr, &AtomicBool, &Counts<N>) + Send + Sync + 'static,
    enough: impl Fn(&[u64; N]) -> bool,
) -> [u64; N] {
    let servers: Vec<FakeServer> = (0..4).map(|_| start("127.0.0.1:0".parse().unwrap())).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
    let config = config(&[&addrs[..2], &addrs[2..]]);
    let router = Router::with(&config, 2, |limits| limits.wait = Duration::from_secs(2));
    let stop = Arc::new(AtomicBool::new(false));
    let (kills, counts) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let trouble = trouble(seed, stop.clone(), kills.clone(), servers, start);
    let client = Arc::new(client);
    let clients: Vec<_> = (0..6u64)
        .map(|id| {
            let (stop, client, counts, addr) = (stop.clone(), client.clone(), counts.clone(), router.addr());
            thread::spawn(move || client(&mut Rng::seeded(seed + id), id, addr, &stop, &counts))
        })
        .collect();
    for_at_least(FOR, || kills.get()[0] > 50 && enough(&counts.get()));
    stop.store(true, Ordering::SeqCst);
    let _servers = trouble.join().unwrap();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (counts, [kills]) = (counts.get(), kills.get());
    assert!(kills > 50 && enough(&counts), "the test must have tested something: {kills} kills, {counts:?}");
    counts
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

/// A random request; whether it is a read, and the body of its response.
fn http_request(rng: &mut Rng, tag: &str) -> (String, bool, String) {
    let body = "b".repeat(rng.below(300) as usize);
    let len = body.len();
    let head = format!("Host: h\r\nX-Key: {}\r\nX-Nonce: {tag}\r\n", rng.below(1000));
    match rng.below(3) {
        0 => (format!("GET /x HTTP/1.1\r\n{head}\r\n"), true, format!("{tag}/0")),
        1 => {
            let text = format!("POST /x HTTP/1.1\r\n{head}Content-Length: {len}\r\n\r\n{body}");
            (text, false, format!("{tag}/{len}"))
        }
        _ => {
            let chunk = if len > 0 { format!("{len:x}\r\n{body}\r\n") } else { String::new() };
            let text = format!("PUT /x HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n");
            (text, false, format!("{tag}/{len}"))
        }
    }
}

/// Sends pipelines of requests and judges each response. Counts reads, updates, unknown updates, failures.
fn http_client(rng: &mut Rng, id: u64, addr: std::net::SocketAddr, stop: &AtomicBool, counts: &Counts<4>) {
    let mut nonce = 0u64;
    while !stop.load(Ordering::SeqCst) {
        let mut client = Client::connect(addr);
        'connection: for _ in 0..rng.between(1, 20) {
            let requests: Vec<_> = (0..rng.between(1, 8))
                .map(|_| {
                    nonce += 1;
                    http_request(rng, &format!("{id}.{nonce}"))
                })
                .collect();
            client.send(requests.iter().map(|(text, ..)| text.as_str()).collect::<String>());
            for (_, read, body) in &requests {
                // A response that was under way when its server died breaks off, and its connection too.
                let Some(response) = client.try_response() else { break 'connection };
                match response.status {
                    200 => {
                        assert_eq!(response.body, *body, "a response of another request");
                        counts.add(usize::from(!read));
                    }
                    502 if !read => counts.add(2),
                    502 | 503 => counts.add(3),
                    other => panic!("status {other}"),
                }
            }
        }
    }
}

#[test]
fn http_responses_stay_with_their_requests_while_servers_die() {
    let enough = |&[reads, updates, unknown, _]: &[u64; 4]| reads > 500 && updates > 500 && unknown > 0;
    let [reads, updates, unknown, failed] = under_trouble(0x5EED, http, http_server, http_client, enough);
    println!("{reads} reads, {updates} updates, {unknown} unknown, {failed} failed");
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

/// A random command, and the texts of its reply: one, or five in an array.
fn redis_command(rng: &mut Rng, tag: &str) -> (String, Vec<String>) {
    match rng.below(3) {
        0 => (command(&["GET", tag]), vec![tag.into()]),
        1 => (command(&["SET", &rng.below(1000).to_string(), tag]), vec![tag.into()]),
        _ => {
            let keys: Vec<String> = (0..5).map(|n| format!("{tag}.{n}")).collect();
            let args: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
            (command(&args), keys)
        }
    }
}

/// Whether this is the reply that has these texts. The part of a dead server carries an error for each of its
/// keys.
fn is_reply(reply: &str, texts: &[String]) -> bool {
    let array = texts.len() > 1;
    let header = if array { format!("*{}\r\n", texts.len()) } else { String::new() };
    let Some(mut rest) = reply.strip_prefix(&header) else { return false };
    for text in texts {
        let good = format!("${}\r\n{text}\r\n", text.len());
        rest = match (rest.strip_prefix(&good), rest.split_once("\r\n")) {
            (Some(rest), _) => rest,
            (None, Some((error, rest))) if array && error.starts_with("-TRYAGAIN") => rest,
            _ => return false,
        };
    }
    rest.is_empty()
}

/// Sends pipelines of commands and judges each reply. Counts replies and errors.
fn redis_client(rng: &mut Rng, id: u64, addr: std::net::SocketAddr, stop: &AtomicBool, counts: &Counts<2>) {
    let mut nonce = 0u64;
    while !stop.load(Ordering::SeqCst) {
        let mut client = Client::connect(addr);
        for _ in 0..rng.between(1, 20) {
            let commands: Vec<_> = (0..rng.between(1, 60))
                .map(|_| {
                    nonce += 1;
                    redis_command(rng, &format!("{id}.{nonce}"))
                })
                .collect();
            client.send(commands.iter().map(|(text, _)| text.as_str()).collect::<String>());
            if rng.chance(20) {
                break; // goes away with replies on their way
            }
            for (_, texts) in &commands {
                let reply = client.reply();
                if reply.starts_with("-TRYAGAIN phalanx: ")
                    || reply.starts_with("-ERR phalanx: outcome unknown")
                {
                    counts.add(1);
                } else {
                    assert!(is_reply(&reply, texts), "{reply:?} is another command's, not {texts:?}'s");
                    counts.add(0);
                }
            }
        }
    }
}

#[test]
fn redis_replies_stay_with_their_commands_while_servers_die() {
    let enough = |&[good, failed]: &[u64; 2]| good > 5_000 && failed > 0;
    let [good, failed] = under_trouble(0xCAFE, redis, redis_server, redis_client, enough);
    println!("{good} replies, {failed} errors");
}
