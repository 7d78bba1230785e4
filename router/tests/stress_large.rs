//! Large bodies in both directions while servers die and come back: what arrives is the beginning of what was sent, for
//! the one who it was sent to, and all of it unless the connection broke.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/trouble.rs"]
mod trouble;

use std::{fmt::Write as _, io::Write as _, net::SocketAddr, sync::Arc};

use common::{journal::*, *};
use membership_types::Rng;
use trouble::*;

/// A text of which every piece says whose it is and where it belongs.
fn pattern(whose: &str, len: usize) -> String {
    const LINE: usize = 256;
    let mut text = String::with_capacity(len + LINE);
    while text.len() < len {
        let at = text.len();
        write!(text, "{whose}@{at} ").unwrap();
        let fill = LINE - (text.len() - at);
        text.extend(std::iter::repeat_n('.', fill));
    }
    text.truncate(len);
    text
}

/// From 100 KiB to 3 MiB; most of them are small.
fn length(rng: &mut Rng) -> usize {
    let most = if rng.chance(50) { 3 << 20 } else { 200 << 10 };
    rng.between(100 << 10, most) as usize
}

fn is_beginning(got: &[u8], whose: &str, len: usize) -> bool {
    got.len() <= len && pattern(whose, got.len()).as_bytes() == got
}

/// Answers with as much as the request asks for; dies before or within its answer now and then.
fn http_server(addr: SocketAddr, journal: &Arc<Journal>) -> FakeServer {
    let journal = journal.clone();
    FakeServer::start_at(addr, move |peer| {
        let mut rng = Rng::seeded(peer.number as u64 ^ 0xB16);
        while let Some(head) = peer.head() {
            let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let (nonce, back) = (field("X-Nonce: "), field("X-Back: ").parse().unwrap());
            let (len, mut body) = (field("X-Len: ").parse().unwrap(), Received::default());
            let whole = body.read(&mut peer.reader, &head, false).is_some();
            if !is_beginning(&body.bytes, nonce, len) || whole && body.bytes.len() != len {
                journal.wrong(format!("{nonce} came with {} bytes of another's body", body.bytes.len()));
            }
            if !whole {
                return;
            }
            if !head.starts_with("GET ") {
                journal.ran(nonce);
            }
            if rng.chance(50) {
                return;
            }
            let text = pattern(&format!("{nonce}/back"), back);
            let text = if rng.chance(500) {
                let (left, right) = text.split_at(rng.between(1, back as u64 - 1) as usize);
                let (first, second) = (left.len(), right.len());
                let chunks = format!("{first:x}\r\n{left}\r\n{second:x}\r\n{right}\r\n0\r\n\r\n");
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")
            } else {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {back}\r\n\r\n{text}")
            };
            if rng.chance(50) {
                peer.send(&text[..rng.below(text.len() as u64) as usize]);
                return;
            }
            peer.send(&text);
        }
    })
}

/// Sends one request after the other. Counts answers that were whole, that broke off, and those of the router.
fn http_client(rng: &mut Rng, id: u64, field: &Field<3>) {
    let (mut client, mut number) = (Client::connect(field.addr), 0);
    while !field.is_over() {
        number += 1;
        let (nonce, back) = (format!("{id}.{number}"), length(rng));
        let kind = rng.below(3);
        let len = if kind == 0 { 0 } else { length(rng) };
        let head = format!(
            "Host: h\r\nX-Key: {}\r\nX-Nonce: {nonce}\r\nX-Len: {len}\r\nX-Back: {back}\r\n",
            rng.below(1000)
        );
        let text = match kind {
            0 => format!("GET /x HTTP/1.1\r\n{head}\r\n"),
            1 => {
                let body = pattern(&nonce, len);
                format!("POST /x HTTP/1.1\r\n{head}Content-Length: {len}\r\n\r\n{body}")
            }
            _ => {
                let body = pattern(&nonce, len);
                let (left, right) = body.split_at(rng.between(1, len as u64 - 1) as usize);
                let (first, second) = (left.len(), right.len());
                let chunks = format!("{first:x}\r\n{left}\r\n{second:x}\r\n{right}\r\n0\r\n\r\n");
                format!("PUT /x HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n{chunks}")
            }
        };
        // Where its server dies the router answers early.
        let sent = client.stream.write_all(text.as_bytes()).is_ok();
        let head = read_head(&mut client.reader);
        let status = head.as_deref().map_or("", |head| &head[9..12]);
        let mut body = Received::default();
        let whole = match &head {
            Some(head) => body.read(&mut client.reader, head, true).is_some(),
            None => false,
        };
        if status == "200" {
            assert!(is_beginning(&body.bytes, &format!("{nonce}/back"), back), "another's answer");
            assert!(!whole || body.bytes.len() == back, "{nonce}: {} of {back}", body.bytes.len());
        }
        let told = match (status, whole) {
            ("200", true) => Told::Done,
            ("503", true) => Told::Nothing,
            ("" | "200" | "502" | "503", _) => Told::Unknown,
            (other, _) => panic!("status {other}"),
        };
        field.counts.add(match (status, whole) {
            ("200", true) => 0,
            ("200" | "", _) => 1,
            _ => 2,
        });
        field.answers.add(0);
        if kind > 0 {
            field.journal.told(&nonce, told);
        }
        if !sent || told != Told::Done {
            client = Client::connect(field.addr);
        }
    }
}

#[test]
fn large_http_bodies_are_their_own_while_servers_die() {
    let setup = Setup { seed: 0xB0D1, config: http, start: http_server, pace: 3 };
    let outcome = setup.run(http_client, |&[whole, broken, _]| whole > 100 && broken > 0);
    println!("{} kills, {:?}, updates {:?}", outcome.kills, outcome.counts, outcome.updates);
}

/// Takes values whose beginning says whose they are, and answers with as many bytes as the command's key says.
fn redis_server(addr: SocketAddr, journal: &Arc<Journal>) -> FakeServer {
    let journal = journal.clone();
    FakeServer::start_at(addr, move |peer| {
        let mut rng = Rng::seeded(peer.number as u64 ^ 0xB16);
        while let Some(args) = peer.command() {
            let (back, mut nonce) = args[1].split_once('.').unwrap();
            if args[0] == "SET" {
                nonce = args[2].split_once('@').unwrap().0;
                if !is_beginning(args[2].as_bytes(), nonce, args[2].len()) {
                    journal.wrong(format!("{nonce} came with another's value"));
                }
                journal.ran(nonce);
            }
            if rng.chance(50) {
                return;
            }
            let back: usize = back.parse().unwrap();
            let text = format!("${back}\r\n{}\r\n", pattern(&format!("{nonce}/back"), back));
            if rng.chance(50) {
                peer.send(&text[..rng.below(text.len() as u64) as usize]);
                return;
            }
            peer.send(&text);
        }
    })
}

/// As [`http_client`].
fn redis_client(rng: &mut Rng, id: u64, field: &Field<3>) {
    let (mut client, mut number) = (Client::connect(field.addr), 0);
    while !field.is_over() {
        number += 1;
        let (nonce, back, update) = (format!("{id}-{number}"), length(rng), rng.chance(500));
        let text = if update {
            let value = pattern(&nonce, length(rng));
            command(&["SET", &format!("{back}.{}", rng.below(1000)), &value])
        } else {
            command(&["GET", &format!("{back}.{nonce}")])
        };
        let sent = client.stream.write_all(text.as_bytes()).is_ok();
        let reply = client.try_reply();
        let (told, count) = match reply.as_deref() {
            None => (Told::Unknown, 1),
            Some(text) if text.starts_with("-TRYAGAIN phalanx: ") => (Told::Nothing, 2),
            Some(text) if text.starts_with("-ERR phalanx: outcome unknown") => (Told::Unknown, 2),
            Some(text) => {
                let value = text.strip_prefix(&format!("${back}\r\n")).unwrap().strip_suffix("\r\n").unwrap();
                assert!(
                    value.len() == back && is_beginning(value.as_bytes(), &format!("{nonce}/back"), back)
                );
                (Told::Done, 0)
            }
        };
        field.counts.add(count);
        field.answers.add(0);
        if update {
            field.journal.told(&nonce, told);
        }
        if !sent || reply.is_none() {
            client = Client::connect(field.addr);
        }
    }
}

#[test]
fn large_redis_values_are_their_own_while_servers_die() {
    let setup = Setup { seed: 0xB0D2, config: redis, start: redis_server, pace: 3 };
    let outcome = setup.run(redis_client, |&[whole, _, refused]| whole > 100 && refused > 0);
    println!("{} kills, {:?}, updates {:?}", outcome.kills, outcome.counts, outcome.updates);
}
