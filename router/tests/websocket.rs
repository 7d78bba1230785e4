//! Connections that go over from HTTP to another protocol.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    thread,
    time::Duration,
};

use common::{Client, FakeServer, Peer, Router, eventually, grouped, http, read_response, service, view};
use tls::Authority;

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const TAKEN: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nconnection: upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A frame with a text of fewer than 126 bytes; what clients send is masked.
fn frame(text: &[u8], masked: bool) -> Vec<u8> {
    let mut frame = vec![0x81, text.len() as u8 | if masked { 0x80 } else { 0 }];
    let mask = [7, 77, 177, 0];
    if masked {
        frame.extend_from_slice(&mask);
    }
    frame.extend(text.iter().enumerate().map(|(at, byte)| if masked { byte ^ mask[at % 4] } else { *byte }));
    frame
}

fn read_frame(reader: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    reader.read_exact(&mut head).ok()?;
    assert_eq!(head[0], 0x81);
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        reader.read_exact(&mut mask).ok()?;
    }
    let mut text = vec![0; usize::from(head[1] & 0x7f)];
    reader.read_exact(&mut text).ok()?;
    Some(text.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect())
}

/// Greets, then says everything again.
fn chat(peer: &mut Peer, name: &str) {
    if peer.head().is_none() {
        return;
    }
    let greeting = [TAKEN.as_bytes(), &frame(name.as_bytes(), false)].concat();
    let _ = peer.stream.write_all(&greeting);
    while let Some(text) = read_frame(&mut peer.reader) {
        if peer.stream.write_all(&frame(&text, false)).is_err() {
            return;
        }
    }
    let _ = peer.stream.write_all(&frame(b"bye", false));
    let _ = peer.stream.shutdown(Shutdown::Write);
}

fn server(name: &'static str) -> FakeServer {
    FakeServer::start(move |peer| chat(peer, name))
}

fn is_reset(client: &mut Client) -> bool {
    let mut all = Vec::new();
    client.reader.read_to_end(&mut all).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn open(addr: SocketAddr) -> Client {
    let mut client = Client::connect(addr);
    client.send(ASK);
    assert_eq!(client.response().status, 101);
    client
}

#[test]
fn websocket_frames_pass_both_ways_and_each_side_ends_when_it_likes() {
    let server = server("hello");
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = Client::connect(router.addr());
    // The first frame does not wait for the answer.
    client.send([ASK.as_bytes(), &frame(b"early", true)].concat());
    let taken = client.response();
    assert_eq!(taken.status, 101);
    assert_eq!((taken.field("connection"), taken.field("upgrade")), (Some("Upgrade"), Some("websocket")));
    assert_eq!(taken.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(taken.field("x-phalanx-server"), Some(&*server.addr.to_string()));
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"hello");
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"early");
    for text in [&b"one"[..], b"", b"GET / HTTP/1.1\r\n\r\n"] {
        client.send(frame(text, true));
        assert_eq!(read_frame(&mut client.reader).unwrap(), text);
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"bye");
    assert!(client.is_closed());
    let [head] = &server.seen()[..] else { panic!("one request") };
    assert!(head.contains("\r\nSec-WebSocket-Key: dGhl") && !head.contains("keep-alive"), "{head}");
    assert!(head.ends_with("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), "{head}");
    eventually("nobody is left", || router.stats().clients == 0);
    // The connection was the tunnel's alone.
    open(router.addr());
    assert_eq!(server.connections(), 2);
}

#[test]
fn what_follows_the_request_reaches_the_server_only_when_it_has_agreed() {
    let server = FakeServer::start(|peer| {
        let _ = peer.head();
        peer.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let early = peer.reader.read(&mut [0]);
        let nothing = early.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        peer.note(format!("nothing yet: {nothing}"));
        peer.send(TAKEN);
        peer.stream.set_read_timeout(None).unwrap();
        let mut rest = String::new();
        let _ = peer.reader.read_to_string(&mut rest);
        peer.note(rest);
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = Client::connect(router.addr());
    let hidden = "GET /hidden HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n";
    client.send(format!("{ASK}{hidden}"));
    assert_eq!(client.response().status, 101);
    client.stream.shutdown(Shutdown::Write).unwrap();
    eventually("it has all", || server.seen().len() == 3);
    assert_eq!(server.seen()[1..], ["nothing yet: true", hidden]);
}

#[test]
fn a_server_that_stays_with_http_is_a_server_of_http() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            match request.head.contains("Upgrade") {
                true => peer.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 5\r\n\r\nother"),
                false => peer.respond("plain"),
            }
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = Client::connect(router.addr());
    // What follows is then the next request.
    client.send(format!("{ASK}GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n"));
    let refused = client.response();
    assert_eq!((refused.status, &*refused.body), (426, "other"));
    assert_eq!(client.response().body, "plain");
    assert_eq!(client.get("k").body, "plain");
    assert_eq!(server.connections(), 1, "and such a connection serves others");
}

#[test]
fn a_switch_that_was_not_asked_for_reaches_nobody() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket, other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let server = FakeServer::start(move |peer| {
            while peer.head().is_some() {
                peer.send(answer);
            }
        });
        let router = Router::start(&http(&[&[server.addr]]));
        let mut client = Client::connect(router.addr());
        client.send(ASK);
        let told = client.response();
        assert_eq!(told.status, 502, "{answer:?}");
        assert!(told.body.contains("outcome unknown"), "{}", told.body);
        // Nobody asked at all.
        assert_eq!(client.get("k").status, 502, "{answer:?}");
        let upgrades = server.seen().iter().filter(|head| head.contains("websocket")).count();
        assert_eq!(upgrades, 1, "it was delivered, so it is not sent again");
    }
}

#[test]
fn requests_that_leave_doubt_are_refused_and_offers_of_http2_are_ignored() {
    let server = FakeServer::echo("s");
    let router = Router::start(&http(&[&[server.addr]]));
    let line = |method: &str, version: &str, fields: &str| {
        format!("{method} / HTTP/{version}\r\nHost: h\r\nX-Key: k\r\n{fields}\r\n")
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for request in [
        line("POST", "1.1", &format!("{upgrade}Content-Length: 0\r\n")),
        line("HEAD", "1.1", upgrade),
        line("GET", "1.1", &format!("{upgrade}Content-Length: 2\r\n")) + "ab",
        line("GET", "1.1", &format!("{upgrade}Transfer-Encoding: chunked\r\n")) + "0\r\n\r\n",
        line("GET", "1.1", &format!("{upgrade}Upgrade: other\r\n")),
        line("GET", "1.1", "Connection: Upgrade\r\nUpgrade: websocket, other\r\n"),
        line("GET", "1.1", "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n"),
        line("GET", "1.1", "Connection: Upgrade\r\nUpgrade: web socket\r\n"),
        line("GET", "1.1", "Connection: Upgrade\r\nUpgrade: /\r\n"),
        line("GET", "1.1", &format!("{upgrade}Connection: close\r\n")),
    ] {
        let mut client = router.client();
        client.send(&request);
        let refused = client.response();
        assert_eq!((refused.status, refused.field("connection")), (501, Some("close")), "{request:?}");
        assert!(client.is_closed());
    }
    assert!(server.seen().is_empty());
    for request in [
        line("GET", "1.1", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"),
        line("GET", "1.1", "Upgrade: websocket\r\n"),
        line("GET", "1.1", "Connection: Upgrade\r\n"),
        line("GET", "1.0", &format!("{upgrade}Connection: keep-alive\r\n")),
    ] {
        let mut client = router.client();
        client.send(&request);
        assert_eq!(client.response().status, 200, "{request:?}");
        let head = server.seen().pop().unwrap().to_ascii_lowercase();
        assert!(!head.contains("upgrade") && !head.contains("http2"), "{head}");
    }
}

#[test]
fn http2_with_prior_knowledge_is_refused_in_words_that_its_clients_show() {
    let server = FakeServer::echo("s");
    let router = Router::start(&http(&[&[server.addr]]));
    // The preface and the SETTINGS frame with which curl 7.88 begins.
    let preface =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64\
                    \x00\x04\x02\x00\x00\x00\x00\x02\x00\x00\x00\x00";
    let mut client = router.client();
    client.send(preface);
    let refused = client.response();
    assert_eq!((refused.status, refused.field("connection")), (400, Some("close")));
    assert!(refused.body.contains("HTTP/2") && refused.body.contains("use HTTP/1.1"), "{}", refused.body);
    assert!(client.is_closed());
    let mut client = router.client();
    client.send("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n");
    let refused = client.response();
    assert_eq!(refused.status, 501);
    assert!(refused.body.contains("CONNECT is not served"), "{}", refused.body);
    assert!(server.seen().is_empty());
}

#[test]
fn a_tunnel_belongs_to_the_leader_and_is_cut_when_another_one_leads() {
    let (old, new) = (server("old"), server("new"));
    let router = Router::start(&grouped("http", "key = \"header:x-key\""));
    let all = [old.addr, new.addr];
    router.handle.update_group("g", &view(1, Some(0), &all)).unwrap();
    let mut client = open(router.addr());
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"old");
    router.handle.update_group("g", &view(1, None, &all)).unwrap();
    client.send(frame(b"still here", true));
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"still here");
    router.handle.update_group("g", &view(2, Some(1), &all)).unwrap();
    assert!(is_reset(&mut client));
    assert_eq!(read_frame(&mut open(router.addr()).reader).unwrap(), b"new");
}

#[test]
fn silent_tunnels_end_and_a_router_that_stops_waits_for_the_others_as_long_as_it_is_told() {
    let server = server("hello");
    let router = Router::with(&http(&[&[server.addr]]), 1, |limits| {
        limits.tunnel = Duration::from_secs(2);
        limits.idle = Duration::from_millis(400); // which is not for tunnels
    });
    let mut silent = open(router.addr());
    let mut busy = open(router.addr());
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(500));
        busy.send(frame(b"x", true));
    }
    assert!(is_reset(&mut silent));
    let handle = router.handle.clone();
    // Less than silence may last: so that it is cut for this reason, not for that.
    let stopping = thread::spawn(move || handle.shutdown(Duration::from_millis(1500)));
    thread::sleep(Duration::from_millis(100));
    busy.send(frame(b"y", true));
    for text in [&b"hello"[..], b"x", b"x", b"x", b"x", b"x", b"y"] {
        assert_eq!(read_frame(&mut busy.reader).unwrap(), text);
    }
    assert!(is_reset(&mut busy));
    stopping.join().unwrap();
}

#[test]
fn much_passes_under_tls_too() {
    let (authority, server) = (Authority::new(), server("hello"));
    let more = format!("key = \"header:x-key\"\ntls = {}", authority.sign("a", &["a.example"]));
    let router = Router::start(&service("http", &more, &[&[server.addr]]));
    let mut client = authority.connect(router.addr(), "a.example");
    client.send(ASK);
    assert_eq!(read_response(&mut client.reader, "GET").unwrap().status, 101);
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"hello");
    let text = [b'z'; 125];
    let frames = frame(&text, true).repeat(3000);
    for _ in 0..4 {
        client.send(&frames);
        for _ in 0..3000 {
            assert_eq!(read_frame(&mut client.reader).unwrap(), text);
        }
    }
    client.session().conn.send_close_notify();
    client.session().flush().unwrap();
    assert_eq!(read_frame(&mut client.reader).unwrap(), b"bye");
    assert_eq!(client.rest().unwrap(), b"", "an end that is one");
}
