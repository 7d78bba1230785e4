//! Servers die and come back all the time, clients pipeline: every response must still be its own request's, and no
//! update be carried out twice.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/trouble.rs"]
mod trouble;

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use common::{journal::*, *};
use membership_types::Rng;
use trouble::*;

/// Of all that is asked at most so small a part is refused, and of updates at most so small a part is unknown. Trouble comes
/// after so many answers ([`Setup::pace`]), so neither depends on how busy this machine is.
///
/// What is refused are commands that share a connection that fails with far more others than may be sent again; HTTP requests
/// do not share one here, and hardly any is refused. Updates are unknown that were under way, on all of the connection.
fn most_get_through(outcome: &Outcome<4>, refused_part: u64, unknown_part: u64) {
    let ([reads, updates, failed, not_done], [done, nothing, unknown]) = (outcome.counts, outcome.updates);
    let text = format!(
        "{} kills; {reads} reads, {failed} refused; {updates} updates, {not_done} refused, {unknown} unknown",
        outcome.kills
    );
    println!("{text}");
    assert_eq!((done as u64, nothing as u64), (updates, not_done), "{text}");
    assert!((failed + not_done) * refused_part < reads + updates, "{text}");
    assert!(unknown > 0 && unknown as u64 * unknown_part < updates, "{text}");
}

/// What is found fault with, and what is not.
#[test]
fn an_update_that_ran_too_often_or_not_at_all_is_found() {
    for (times, told, good) in [
        (0, Told::Done, false),
        (1, Told::Done, true),
        (2, Told::Done, false),
        (0, Told::Nothing, true),
        (1, Told::Nothing, false),
        (0, Told::Unknown, true),
        (1, Told::Unknown, true),
        (2, Told::Unknown, false),
    ] {
        let journal = Journal::default();
        (0..times).for_each(|_| journal.ran("a"));
        journal.told("a", told);
        assert_eq!(journal.judge().is_ok(), good, "{times} times, {told:?}");
        (0..2).for_each(|_| journal.ran("nobody was told"));
        assert!(journal.judge().is_err());
    }
    let journal = Journal::default();
    journal.wrong("half a body".into());
    assert!(journal.judge().unwrap_err().contains("half a body"));
}

fn http_server(addr: SocketAddr, journal: &Arc<Journal>) -> FakeServer {
    let journal = journal.clone();
    FakeServer::start_at(addr, move |peer| {
        let mut rng = Rng::seeded(peer.number as u64);
        while let Some(request) = peer.request() {
            let nonce =
                request.head.lines().find_map(|line| line.strip_prefix("X-Nonce: ")).unwrap().to_owned();
            let chunked = request.head.contains("chunked");
            if request.trailers != trailers(chunked, &nonce) {
                journal.wrong(format!("{nonce} has the trailers {:?}", request.trailers));
            }
            if !request.head.starts_with("GET ") {
                journal.ran(&nonce);
            }
            if rng.chance(20) {
                return; // dies with the request in hand
            }
            let body = format!("{nonce}/{}", request.body.len());
            if rng.chance(200) {
                let (left, right) = body.split_at(body.len() / 2);
                let (first, second) = (left.len(), right.len());
                let chunks =
                    format!("{first:x}\r\n{left}\r\n{second:x}\r\n{right}\r\n0\r\nX-Sum: {nonce}\r\n\r\n");
                peer.send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
            } else {
                peer.respond(&body);
            }
        }
    })
}

/// What is behind the last chunk where there are chunks.
fn trailers(chunked: bool, nonce: &str) -> String {
    if chunked { format!("X-Sum: {nonce}\r\n") } else { String::new() }
}

struct HttpRequest {
    text: String,
    read: bool,
    nonce: String,
    /// The body of its response.
    answer: String,
}

fn http_request(rng: &mut Rng, nonce: String) -> HttpRequest {
    let body = "b".repeat(rng.below(300) as usize);
    let len = body.len();
    let head = format!("Host: h\r\nX-Key: {}\r\nX-Nonce: {nonce}\r\n", rng.below(1000));
    let (text, read, sent) = match rng.below(3) {
        0 => (format!("GET /x HTTP/1.1\r\n{head}\r\n"), true, 0),
        1 => {
            let text = format!("POST /x HTTP/1.1\r\n{head}Content-Length: {len}\r\n\r\n{body}");
            (text, false, len)
        }
        _ => {
            let chunk = if len > 0 { format!("{len:x}\r\n{body}\r\n") } else { String::new() };
            let end = format!("0\r\nX-Sum: {nonce}\r\n\r\n");
            let text = format!("PUT /x HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n{chunk}{end}");
            (text, false, len)
        }
    };
    HttpRequest { text, read, answer: format!("{nonce}/{sent}"), nonce }
}

/// Sends pipelines of requests and judges each response. Counts reads and updates that were answered; reads that were
/// not, and updates of which the client was told that they were not carried out.
fn http_client(rng: &mut Rng, id: u64, field: &Field<4>) {
    let (mut nonce, counts, journal) = (0u64, &field.counts, &field.journal);
    while !field.is_over() {
        let mut client = Client::connect(field.addr);
        let mut whole = true;
        for _ in 0..rng.between(1, 20) {
            let requests: Vec<_> = (0..rng.between(1, 8))
                .map(|_| {
                    nonce += 1;
                    http_request(rng, format!("{id}.{nonce}"))
                })
                .collect();
            client.send(requests.iter().map(|request| request.text.as_str()).collect::<String>());
            for request in &requests {
                // A response that was under way when its server died breaks off, and its connection too.
                let response = if whole { client.try_response() } else { None };
                whole = response.is_some();
                if let Some(response) = &response
                    && response.status == 200
                {
                    assert_eq!(response.body, request.answer, "a response of another request");
                    let chunked = response.head.contains("chunked");
                    assert_eq!(response.trailers, trailers(chunked, &request.nonce));
                }
                let told = match response.map_or(0, |response| response.status) {
                    200 => Told::Done,
                    503 => Told::Nothing,
                    0 | 502 => Told::Unknown,
                    other => panic!("status {other}"),
                };
                field.answers.add(0);
                match (request.read, told) {
                    (read, Told::Done) => counts.add(usize::from(!read)),
                    (true, _) => counts.add(2),
                    (false, Told::Nothing) => counts.add(3),
                    (false, Told::Unknown) => {}
                }
                if !request.read {
                    journal.told(&request.nonce, told);
                }
            }
            if !whole {
                break;
            }
        }
    }
}

#[test]
fn http_responses_stay_with_their_requests_while_servers_die() {
    let setup = Setup { seed: 0x5EED, config: http, start: http_server, pace: 25 };
    let outcome = setup.run(http_client, |&[reads, updates, ..]| reads > 500 && updates > 500);
    most_get_through(&outcome, 20, 8);
}
fn redis_server(addr: SocketAddr, journal: &Arc<Journal>) -> FakeServer {
    let journal = journal.clone();
    FakeServer::start_at(addr, move |peer| {
        let mut rng = Rng::seeded(peer.number as u64);
        while let Some(args) = peer.command() {
            if args[0] == "SET" {
                journal.ran(&args[2]);
            }
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

/// Sends pipelines of commands and judges each reply. Counts replies to reads and to updates; reads that failed, and
/// updates of which the client was told that they were not carried out.
fn redis_client(rng: &mut Rng, id: u64, field: &Field<4>) {
    let (mut nonce, counts) = (0u64, &field.counts);
    while !field.is_over() {
        let mut client = Client::connect(field.addr);
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
            for (text, texts) in &commands {
                let update = text.contains("SET");
                let reply = client.reply();
                let told = if reply.starts_with("-TRYAGAIN phalanx: ") {
                    Told::Nothing
                } else if reply.starts_with("-ERR phalanx: outcome unknown") {
                    Told::Unknown
                } else {
                    assert!(is_reply(&reply, texts), "{reply:?} is another command's, not {texts:?}'s");
                    Told::Done
                };
                field.answers.add(0);
                match (update, told) {
                    (_, Told::Done) => counts.add(usize::from(update)),
                    (false, _) => counts.add(2),
                    (true, Told::Nothing) => counts.add(3),
                    (true, Told::Unknown) => {}
                }
                if update {
                    field.journal.told(&texts[0], told);
                }
            }
        }
    }
}

#[test]
fn redis_replies_stay_with_their_commands_while_servers_die() {
    let setup = Setup { seed: 0xCAFE, config: redis, start: redis_server, pace: 100 };
    let outcome = setup.run(redis_client, |&[reads, updates, ..]| reads > 3_000 && updates > 1_000);
    most_get_through(&outcome, 6, 2);
}

fn memcached_server(addr: SocketAddr, journal: &Arc<Journal>) -> FakeServer {
    let journal = journal.clone();
    FakeServer::start_at(addr, move |peer| {
        let mut rng = Rng::seeded(peer.number as u64);
        while let Some(text) = peer.text() {
            let reply = match text.split_once('|') {
                Some((line, nonce)) => {
                    journal.ran(nonce);
                    if line.starts_with("ms ") { format!("HD O{nonce}\r\n") } else { "STORED\r\n".into() }
                }
                None => values(text.split(' ').skip(1)),
            };
            if rng.chance(5) {
                return;
            }
            if rng.chance(10) {
                peer.send(&reply[..reply.len() / 2]);
                thread::sleep(Duration::from_micros(200));
                peer.send(&reply[reply.len() / 2..]);
            } else {
                peer.send(&reply);
            }
        }
    })
}

/// What each key has is its own name.
fn values<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    keys.map(|key| format!("VALUE {key} 0 {}\r\n{key}\r\n", key.len())).collect::<String>() + "END\r\n"
}

/// A random command, whether it is an update, and its reply.
fn memcached_command(rng: &mut Rng, nonce: &str) -> (String, bool, String) {
    let (key, len) = (rng.below(1000), nonce.len());
    match rng.below(4) {
        0 => (format!("get {nonce}\r\n"), false, values([nonce].into_iter())),
        1 => {
            let keys: Vec<String> = (0..5).map(|n| format!("{nonce}.{n}")).collect();
            (format!("get {}\r\n", keys.join(" ")), false, values(keys.iter().map(String::as_str)))
        }
        2 => (format!("set {key} 0 0 {len}\r\n{nonce}\r\n"), true, "STORED\r\n".into()),
        _ => (format!("ms {key} {len} O{nonce}\r\n{nonce}\r\n"), true, format!("HD O{nonce}\r\n")),
    }
}

/// As [`redis_client`].
fn memcached_client(rng: &mut Rng, id: u64, field: &Field<4>) {
    let (mut nonce, counts) = (0u64, &field.counts);
    while !field.is_over() {
        let mut client = Client::connect(field.addr);
        for _ in 0..rng.between(1, 20) {
            let commands: Vec<_> = (0..rng.between(1, 60))
                .map(|_| {
                    nonce += 1;
                    let nonce = format!("{id}.{nonce}");
                    (memcached_command(rng, &nonce), nonce)
                })
                .collect();
            client.send(commands.iter().map(|((text, ..), _)| text.as_str()).collect::<String>());
            if rng.chance(20) {
                break; // goes away with replies on their way
            }
            for ((_, update, expected), nonce) in &commands {
                let reply = client.text();
                let told = if reply.starts_with("SERVER_ERROR phalanx: outcome unknown") {
                    Told::Unknown
                } else if reply.starts_with("SERVER_ERROR phalanx: ")
                    && reply.ends_with("nothing was done\r\n")
                {
                    Told::Nothing
                } else {
                    assert_eq!(reply, *expected, "another command's reply");
                    Told::Done
                };
                field.answers.add(0);
                match (*update, told) {
                    (update, Told::Done) => counts.add(usize::from(update)),
                    (false, _) => counts.add(2),
                    (true, Told::Nothing) => counts.add(3),
                    (true, Told::Unknown) => {}
                }
                if *update {
                    field.journal.told(nonce, told);
                }
            }
        }
    }
}

#[test]
fn memcached_replies_stay_with_their_commands_while_servers_die() {
    let setup = Setup { seed: 0xBEEF, config: memcached, start: memcached_server, pace: 100 };
    let outcome = setup.run(memcached_client, |&[reads, updates, ..]| reads > 3_000 && updates > 1_000);
    most_get_through(&outcome, 6, 2);
}
