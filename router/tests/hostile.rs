//! Servers that break every rule, around honest clients that share their connections: nobody ever gets what belongs to
//! another.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::*;
use membership_types::Rng;

#[test]
fn a_server_that_answers_a_request_it_did_not_take_gets_no_other_on_that_connection() {
    // Small windows, so that what is sent stays partly with the router: head and body ride together, the server answers
    // the first bytes, and what it never got must not become the beginning of somebody else's request.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.set_recv_buffer_size(128).unwrap();
    listener.set_tcp_mss(200).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(16).unwrap();
    let listener = std::net::TcpListener::from(listener);
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let counts = connections.clone();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            counts.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || {
                use std::io::Write;
                let mut first = [0; 4];
                while stream.read_exact(&mut first).is_ok() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                    if &first == b"POST" {
                        // Not a byte more until the next request could have come.
                        thread::sleep(Duration::from_millis(200));
                    }
                    let mut rest = vec![0; 1 << 16];
                    let mut seen = first.to_vec();
                    while !seen.ends_with(b"\r\n\r\n") && !seen.ends_with(b"END") {
                        let Ok(len @ 1..) = stream.read(&mut rest) else { return };
                        seen.extend_from_slice(&rest[..len]);
                    }
                }
            });
        }
    });
    let router = Router::start(&http(&[&[addr]]));
    let mut client = router.client();
    // The head and the whole body fit into one buffer, and not into the windows.
    let fill = "f".repeat(30_000);
    let body = format!("{}END", "b".repeat(2_000));
    let head = format!("POST /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Fill: {fill}\r\n");
    client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.response().status, 200);
    let mut other = router.client();
    assert_eq!(other.get("k").body, "ok");
    assert_eq!(connections.load(Ordering::SeqCst), 2, "the connection is in doubt");
}

#[test]
fn what_a_server_says_after_its_response_ends_its_connection() {
    // Long after the response, long before the next request: each of these must be seen before the connection is used
    // again.
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let body = String::from_utf8(request.body).unwrap();
            peer.respond(&body);
            thread::sleep(Duration::from_millis(5));
            peer.respond(&format!("again {body}"));
            peer.note("said".into());
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for n in 0..20 {
        let read = n % 2 == 0;
        let response = if read { client.get("k") } else { client.post("k", &n.to_string()) };
        assert_eq!(response.body, if read { String::new() } else { n.to_string() });
        eventually("it has said more", || server.seen().len() == 2 * (n + 1));
    }
    assert_eq!(server.connections(), 20);
}

/// What a hostile server says to a request, in one write. What is left over holds the nonce of a request that was
/// answered: if anybody else ever reads it, the router has mixed them up.
fn lies(nonce: &str) -> Vec<String> {
    let size = nonce.len();
    let ok = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{nonce}");
    let chunk = format!("{size:x}\r\n{nonce}\r\n");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{nonce}");
    vec![
        // More than one response, or more than was announced.
        format!("{ok}{ok}"),
        format!("{ok}\r\n"),
        format!("{ok}{}", &ok[..9]),
        format!("{ok}HTTP/1.1 100 Continue\r\n\r\n"),
        format!("{ok}HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
        head(&format!("Content-Length: {}", size - 3)),
        head("Content-Length: 0"),
        head("Content-Length: 0\r\nConnection: keep-alive"),
        format!("HTTP/1.1 204 No Content\r\n\r\n{ok}"),
        format!("HTTP/1.1 204 No Content\r\nContent-Length: {}\r\n\r\n{ok}", ok.len()),
        format!("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
        format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {size}\r\n\r\n{nonce}"),
        format!("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
        format!("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: {size}\r\n\r\n{nonce}{ok}"),
        // Less than was announced.
        head(&format!("Content-Length: {}", size + 5)),
        head("Content-Length: 1048576"),
        // Two framings, or none that is known.
        head(&format!("Content-Length: {size}\r\nContent-Length: {size}")),
        head(&format!("Content-Length: {size}\r\nContent-Length: 0")),
        head(&format!("Content-Length: {size}, {size}")),
        head(&format!("Content-Length: +{size}")),
        head(&format!("Content-Length : {size}")),
        head(&format!("X: y\r\n Content-Length: {size}")),
        head(&format!("X: y\nContent-Length: {size}")),
        head(&format!("X: y\rContent-Length: {size}")),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{chunk}0\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{chunk}0\r\n\r\n"),
        format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
        // Chunks.
        format!("{chunked}{chunk}0\r\n\r\n{ok}"),
        format!("{chunked}{chunk}0\r\nX: y\r\n\r\n0\r\n\r\n"),
        format!("{chunked}{chunk}0\r\nContent-Length: 7\r\n\r\n{ok}"),
        format!("{chunked}{chunk}{chunk}zz\r\n"),
        format!("{chunked}{chunk}-1\r\n\r\n"),
        format!("{chunked}{size:x}\n{nonce}\n0\n\n{ok}"),
        format!("{chunked}fffff\r\n{nonce}"),
        format!("{chunked}0{size:x}\r\n{nonce}\r\n0\r\n\r\n"),
        format!("{chunked}{size:x};x={}\r\n{nonce}\r\n0\r\n\r\n", "y".repeat(300)),
        // News before the response: some that nobody asked for, some with a body, too many of them.
        format!("{}{ok}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(3)),
        format!("{}{ok}", "HTTP/1.1 102 Processing\r\n\r\n".repeat(20)),
        format!("HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n{ok}"),
        format!("HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{ok}"),
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{ok}"),
        // No response at all.
        format!("HTTP/2.0 200 OK\r\nContent-Length: {size}\r\n\r\n{nonce}"),
        format!("\r\n\r\n{ok}"),
        format!("{nonce}\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n".into(),
        String::new(),
    ]
}

/// A server that lies to every other request, and goes on as if nothing had been.
fn liar() -> FakeServer {
    FakeServer::start(|peer| {
        let mut rng = Rng::seeded(peer.number as u64);
        while let Some(head) = peer.head() {
            let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let nonce = field("X-Nonce: ").unwrap_or_default();
            let mut body = vec![0; field("Content-Length: ").map_or(0, |len| len.parse().unwrap())];
            let early = rng.chance(300);
            if !early && peer.reader.read_exact(&mut body).is_err() {
                return;
            }
            match rng.below(4) {
                0 | 1 => peer.respond(&nonce),
                2 => {
                    let lies = lies(&nonce);
                    peer.send(&lies[rng.below(lies.len() as u64) as usize]);
                }
                _ => {
                    let lies = lies(&nonce);
                    let lie = &lies[rng.below(lies.len() as u64) as usize];
                    peer.send(&lie[..rng.below(lie.len() as u64 + 1) as usize]);
                    return;
                }
            }
            if early && peer.reader.read_exact(&mut body).is_err() {
                return;
            }
        }
    })
}

#[test]
fn whatever_servers_answer_nobody_gets_what_was_meant_for_another() {
    let servers = [liar(), liar(), liar()];
    let config =
        service("http", "key = \"header:x-key\"\nupdates = \"any\"", &[&servers.each_ref().map(|s| s.addr)]);
    let router = Router::with(&config, 1, |limits| {
        limits.response = Duration::from_millis(100);
        limits.stall = Duration::from_millis(100);
        limits.avoid = Duration::from_millis(1);
    });
    let stop = Arc::new(AtomicBool::new(false));
    let counts = Arc::new(Counts::default());
    let clients: Vec<_> = (0..16)
        .map(|id| {
            let (stop, counts, addr) = (stop.clone(), counts.clone(), router.addr());
            thread::spawn(move || honest(id, addr, &stop, &counts))
        })
        .collect();
    let enough = || counts.get().iter().all(|count| *count > 500);
    for_at_least(Duration::from_secs(4), enough);
    stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let [good, bad] = counts.get();
    println!("{good} whole responses, {bad} that were refused or broke off");
    assert!(enough(), "the test must have tested something: {good} {bad}");
}

/// Asks for one nonce after the other. Counts whole responses, and those that were not.
fn honest(id: u64, addr: std::net::SocketAddr, stop: &AtomicBool, counts: &Counts<2>) {
    let (mut rng, mut number) = (Rng::seeded(id), 0);
    while !stop.load(Ordering::SeqCst) {
        let mut client = Client::connect(addr);
        loop {
            number += 1;
            let nonce = format!("<{id}.{number}>");
            let (method, body) = *rng.pick(&[("GET", 0), ("HEAD", 0), ("POST", 3), ("POST", 9000)]).unwrap();
            let length = if body > 0 { format!("Content-Length: {body}\r\n") } else { String::new() };
            let head = format!("{method} /x HTTP/1.1\r\nHost: h\r\nX-Key: {number}\r\nX-Nonce: {nonce}\r\n");
            client.send(format!("{head}{length}\r\n{}", "b".repeat(body)));
            let mut response = client.try_response_to(method);
            while response.as_ref().is_some_and(|response| matches!(response.status, 102 | 103)) {
                response = client.try_response_to(method);
            }
            let Some(response) = response else {
                counts.add(1);
                break;
            };
            match response.status {
                200 | 204 | 304 => {
                    // Parts of it, or it more than once, but nothing else.
                    let text = response.body.replace(&nonce, "");
                    assert!(nonce.starts_with(&text), "{:?} for {nonce}", response);
                    counts.add(0);
                }
                502 | 503 | 408 => counts.add(1),
                other => panic!("status {other}"),
            }
            if response.field("connection") == Some("close") {
                break;
            }
        }
    }
}

#[test]
fn who_speaks_http2_is_told_in_http_1_and_nothing_reaches_a_server() {
    let server = FakeServer::echo("a");
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    // The preface, SETTINGS, and a frame that could be anything: all of it is there before the answer is.
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x01\x05\0\0\0\x01GET /");
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (400, Some("close")));
    assert!(
        response.head.starts_with("HTTP/1.1 400 ")
            && response.json()["error"].as_str().unwrap().contains("HTTP/2")
    );
    assert!(client.is_closed());
    assert!(server.seen().is_empty());
    // Whoever only offers it is served as if it had not.
    let mut client = router.client();
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n{offer}\r\n"));
    assert_eq!(client.response().status, 200);
    assert!(
        !server.seen()[0].to_lowercase().contains("h2c")
            && !server.seen()[0].to_lowercase().contains("http2")
    );
}
