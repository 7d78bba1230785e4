//! TLS towards clients, spoken by a TLS library of its own right.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{Client, FakeServer, PATIENCE, Router, command, eventually, post, read_response, service};
use rustls::{HandshakeKind, ProtocolVersion};
use tls::{Authority, TlsClient, first_in};

fn http(tls: &str, racs: &[&[SocketAddr]]) -> String {
    service("http", &format!("key = \"header:x-key\"\nexpose = true\ntls = {tls}"), racs)
}

fn one(authority: &Authority, server: &FakeServer) -> Router {
    Router::start(&http(&authority.sign("a", &["a.example"]), &[&[server.addr]]))
}

#[test]
fn requests_go_through_both_versions_and_the_protocol_is_agreed_on() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    for (tls12, version) in [(true, ProtocolVersion::TLSv1_2), (false, ProtocolVersion::TLSv1_3)] {
        let mut config = authority.client_config(tls12);
        config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
        let mut client = TlsClient::connect(router.addr(), "a.example", &Arc::new(config)).unwrap();
        assert_eq!(client.session().conn.protocol_version(), Some(version));
        assert_eq!(client.session().conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        for round in 0..3 {
            assert_eq!(client.get("k").body, "s:");
            client.send(post("k", &format!("body {round}")));
            assert_eq!(read_response(&mut client.reader, "POST").unwrap().body, format!("s:body {round}"));
        }
        // Both sides say that they are done: nobody can have cut anything off.
        client.send("GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nConnection: close\r\n\r\n");
        assert!(client.rest().unwrap().ends_with(b"s:"));
    }
}

#[test]
fn who_speaks_only_http2_is_told_so_in_the_handshake() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let mut config = authority.client_config(false);
    config.alpn_protocols = vec![b"h2".into()];
    let error = TlsClient::connect(router.addr(), "a.example", &Arc::new(config)).err().unwrap();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    eventually("it is counted", || router.stats().handshakes_failed == 1 && router.stats().clients == 0);
}

#[test]
fn the_name_asked_for_chooses_the_certificate() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let pairs = [
        authority.sign("first", &["first.example"]),
        authority.sign("wild", &["*.shop.example"]),
        authority.sign("exact", &["a.shop.example"]),
    ];
    let router = Router::start(&http(&format!("[{}]", pairs.join(", ")), &[&[server.addr]]));
    let shown = |name: &str| {
        let mut client = authority.connect(router.addr(), name);
        assert_eq!(client.get("k").body, "s:");
        client.shown()
    };
    assert_eq!(shown("first.example"), first_in(&authority.files("first").0));
    assert_eq!(shown("b.shop.example"), first_in(&authority.files("wild").0));
    assert_eq!(shown("a.shop.example"), first_in(&authority.files("exact").0));
    let error = TlsClient::connect(router.addr(), "other.example", &Arc::new(authority.client_config(false)));
    // The default is shown, and it is not what this client wants.
    assert!(error.err().unwrap().to_string().contains("not valid for name"));
    let mut nameless = authority.client_config(false);
    nameless.enable_sni = false;
    let mut client = TlsClient::connect(router.addr(), "first.example", &Arc::new(nameless)).unwrap();
    assert_eq!(client.shown(), first_in(&authority.files("first").0));
}

#[test]
fn sessions_are_resumed_at_any_worker_and_after_a_reload() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let config = http(&authority.sign("a", &["a.example"]), &[&[server.addr]]);
    let router = Router::with(&config, 3, |_| {});
    for tls12 in [true, false] {
        let config = Arc::new(authority.client_config(tls12));
        let mut first = TlsClient::connect(router.addr(), "a.example", &config).unwrap();
        assert_eq!(first.get("k").body, "s:");
        assert_eq!(first.session().conn.handshake_kind(), Some(HandshakeKind::Full));
        for round in 0..6 {
            if round == 3 {
                router.handle.reload_certificates().unwrap();
            }
            let mut next = TlsClient::connect(router.addr(), "a.example", &config).unwrap();
            assert_eq!(next.get("k").body, "s:");
            assert_eq!(next.session().conn.handshake_kind(), Some(HandshakeKind::Resumed));
        }
    }
}

#[test]
fn new_certificates_are_shown_without_a_connection_dropped_and_bad_ones_are_not() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let (cert, key) = authority.files("a");
    let mut old = authority.connect(router.addr(), "a.example");
    let before = old.shown();
    assert_eq!(old.get("k").body, "s:");

    std::fs::write(&key, "not a key").unwrap();
    let errors = router.handle.reload_certificates().unwrap_err();
    let [error] = &errors[..] else { panic!("{errors:?}") };
    assert!(error.to_string().starts_with(&format!("service \"s\": {}: ", key.display())), "{error}");
    assert_eq!(authority.connect(router.addr(), "a.example").shown(), before);

    authority.sign("a", &["a.example"]);
    router.handle.reload_certificates().unwrap();
    assert_eq!(old.get("k").body, "s:", "it goes on");
    let mut new = authority.connect(router.addr(), "a.example");
    assert_ne!(new.shown(), before);
    assert_eq!(new.shown(), first_in(&cert));
    assert_eq!(new.get("k").body, "s:");
}

#[test]
fn a_router_with_unusable_certificates_does_not_start() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let text = http(&authority.sign("a", &["a.example"]), &[&[server.addr]]);
    let (cert, key) = authority.files("a");
    authority.sign("b", &["b.example"]);
    std::fs::copy(authority.files("b").1, &key).unwrap();
    let config = router::Config::parse(&text, "t".as_ref(), router::Surroundings::default()).unwrap();
    let error = router::start(&config, router::Options::new()).err().unwrap().to_string();
    let says = format!("service \"s\": {}: the key is not that of the certificate in", key.display());
    assert!(error.contains(&says) && error.contains(&*cert.to_string_lossy()), "{error}");
}

#[test]
fn redis_speaks_under_tls_too() {
    let authority = Authority::new();
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            peer.send(&format!("+{}\r\n", args.join("-")));
        }
    });
    let more = format!("tls = [{}]", authority.sign("a", &["a.example"]));
    let router = Router::start(&service("redis", &more, &[&[server.addr]]));
    let mut client = authority.connect(router.addr(), "a.example");
    // Far more than fits into any buffer on the way, so that both directions stall and go on.
    const COMMANDS: usize = 20_000;
    let value = "v".repeat(500);
    let text: String = (0..COMMANDS).map(|at| command(&["SET", &format!("k{at}"), &value])).collect();
    let mut replies = Vec::new();
    let session = client.session();
    session.sock.set_nonblocking(true).unwrap();
    let (mut sent, start) = (0, Instant::now());
    let mut moved = start;
    let expected: usize = (0..COMMANDS).map(|at| format!("+SET-k{at}-{value}\r\n").len()).sum();
    while replies.len() < expected {
        let goes_on = moved.elapsed() < PATIENCE && start.elapsed() < 6 * PATIENCE;
        assert!(goes_on, "{} of {expected} bytes came", replies.len());
        let before = (sent, replies.len());
        let mut space = [0; 16 * 1024];
        let upto = text.len().min(sent + 100_000);
        match session.write(&text.as_bytes()[sent..upto]) {
            Ok(len) => sent += len,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        match session.read(&mut space) {
            Ok(len) => replies.extend_from_slice(&space[..len]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        if (sent, replies.len()) != before {
            moved = Instant::now();
        }
    }
    let replies = String::from_utf8(replies).unwrap();
    for (at, line) in replies.split_terminator("\r\n").enumerate() {
        assert_eq!(line, format!("+SET-k{at}-{value}"));
    }
}

#[test]
fn large_bodies_pass_both_ways_whoever_is_slow() {
    const LEN: usize = 6 << 20;
    let body: String = (0..LEN).map(|at| char::from(b'a' + (at / 7919 % 26) as u8)).collect();
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let mut client = authority.connect(router.addr(), "a.example");
    client.send(post("k", &body));
    thread::sleep(Duration::from_millis(300)); // the answer fills everything on the way meanwhile
    let response = read_response(&mut client.reader, "POST").unwrap();
    assert!(response.body.strip_prefix("s:").is_some_and(|echo| echo == body));
    assert_eq!(client.get("k").body, "s:", "and the connection goes on");
}

#[test]
fn who_sends_much_right_behind_the_handshake_is_heard() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let config = Arc::new(authority.client_config(false));
    for _ in 0..5 {
        let mut stream = TcpStream::connect(router.addr()).unwrap();
        let name = "a.example".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(config.clone(), name).unwrap();
        while session.is_handshaking() {
            while session.wants_write() {
                session.write_tls(&mut stream).unwrap();
            }
            session.read_tls(&mut stream).unwrap();
            session.process_new_packets().unwrap();
        }
        // The handshake's last message and whole records of 16 KiB come in one piece.
        let body = "b".repeat(40_000);
        session.writer().write_all(post("k", &body).as_bytes()).unwrap();
        let mut bytes = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut bytes).unwrap();
        }
        stream.write_all(&bytes).unwrap();
        let mut reader = BufReader::new(rustls::StreamOwned::new(session, stream));
        let response = read_response(&mut reader, "POST").unwrap();
        assert!(response.body.strip_prefix("s:").is_some_and(|echo| echo == body));
    }
}

#[test]
fn an_interim_answer_and_the_final_one_stay_apart() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let mut client = authority.connect(router.addr(), "a.example");
    for _ in 0..3 {
        client.send(
            "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        );
        assert_eq!(read_response(&mut client.reader, "POST").unwrap().status, 100);
        client.send("ab");
        assert_eq!(read_response(&mut client.reader, "POST").unwrap().body, "s:ab");
    }
}

#[test]
fn who_ends_a_session_without_saying_so_is_no_complete_request() {
    // A body that ends with its sender's connection does not exist in requests; a short one is cut off.
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let mut client = authority.connect(router.addr(), "a.example");
    client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 10\r\n\r\nabc");
    client.session().sock.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_response(&mut client.reader, "POST").is_none());
    eventually("nobody is left", || router.stats().clients == 0);
}

#[test]
fn garbage_instead_of_a_hello_gets_an_alert_and_harms_nobody() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let mut neighbour = authority.connect(router.addr(), "a.example");
    let texts: [(&[u8], bool); 4] = [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", true),
        // To a message that would have 16 MiB the library says nothing.
        (b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff", false),
        (b"\x16\x03\x01\xff\xff\x01", true),
        (&[0xff; 100], true),
    ];
    for (text, alert) in texts {
        let mut client = Client::connect(router.addr());
        client.send(text);
        let mut answer = Vec::new();
        client.stream.read_to_end(&mut answer).unwrap();
        assert_eq!(matches!(answer[..], [0x15, 3, _, 0, 2, 2, _]), alert, "to {text:?}: {answer:?}");
        assert!(alert || answer.is_empty(), "{answer:?}");
        assert_eq!(neighbour.get("k").body, "s:");
    }
    eventually("all are counted", || router.stats().handshakes_failed == texts.len() as u64);
    assert_eq!(server.seen().len(), texts.len());
}

#[test]
fn handshakes_that_take_too_long_or_too_much_are_ended() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let config = http(&authority.sign("a", &["a.example"]), &[&[server.addr]]);
    let router = Router::with(&config, 1, |limits| limits.handshake = Duration::from_millis(300));
    let start = Instant::now();
    let mut silent = Client::connect(router.addr());
    let mut slow = Client::connect(router.addr());
    slow.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"); // a hello that never goes on
    assert!(silent.is_closed() && slow.is_closed());
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(5));

    // A hello of 60,000 bytes, in whole records: it would be buffered to its end.
    let mut long = Client::connect(router.addr());
    let mut text = Vec::new();
    for record in 0..3 {
        text.extend_from_slice(&[0x16, 3, 1, 0x40, 0]);
        let mut fragment = vec![0; 0x4000];
        if record == 0 {
            fragment[..6].copy_from_slice(&[1, 0, 0xea, 0x60, 3, 3]);
        }
        text.extend_from_slice(&fragment);
    }
    let _ = long.stream.write_all(&text); // it may hang up in the middle
    eventually("it is hung up on", || router.stats().handshakes_failed == 3);
    assert_eq!(authority.connect(router.addr(), "a.example").get("k").body, "s:");
}

#[test]
fn so_many_handshakes_at_once_and_no_more() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let config = http(&authority.sign("a", &["a.example"]), &[&[server.addr]]);
    let router = Router::with(&config, 1, |limits| limits.handshakes = 2);
    let held: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(router.addr()).unwrap()).collect();
    eventually("both are in", || router.stats().accepted == 2);
    assert!(Client::connect(router.addr()).is_closed());
    assert_eq!(router.stats().shed, 1);
    drop(held);
    eventually("there is room again", || router.stats().handshakes_failed == 2);
    assert_eq!(authority.connect(router.addr(), "a.example").get("k").body, "s:");
}

#[test]
fn a_router_that_stops_ends_sessions_in_order() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let router = one(&authority, &server);
    let mut client = authority.connect(router.addr(), "a.example");
    assert_eq!(client.get("k").body, "s:");
    let _silent = TcpStream::connect(router.addr()).unwrap();
    eventually("both are in", || router.stats().clients == 2);
    let handle = router.handle.clone();
    let start = Instant::now();
    handle.shutdown(Duration::from_secs(5));
    assert!(start.elapsed() < Duration::from_secs(2), "nobody is waited for long");
    assert!(
        client.reader.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::UnexpectedEof)
            || client.rest().unwrap().is_empty()
    );
}

#[test]
fn servers_are_told_where_a_request_came_from_if_they_are_to_know() {
    let (authority, server) = (Authority::new(), FakeServer::echo("s"));
    let list = [server.addr];
    let key = "key = \"header:x-key\"";
    let lines = |head: &str| -> Vec<String> {
        let forwarded = |line: &&str| line.to_ascii_lowercase().starts_with("x-forwarded");
        head.lines().filter(forwarded).map(Into::into).collect()
    };
    let said =
        "X-Forwarded-For: 192.0.2.1\r\nx-forwarded-for: 192.0.2.2, 192.0.2.3\r\nX-Forwarded-Proto: spdy\r\n";
    let ask = format!("GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n{said}\r\n");

    let router = Router::start(&service("http", &format!("{key}\nforwarded = true"), &[&list]));
    let mut client = router.client();
    client.get("k");
    assert_eq!(lines(&server.seen()[0]), ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"]);
    client.send(&ask);
    client.response();
    let both = "X-Forwarded-For: 192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1";
    assert_eq!(lines(&server.seen()[1]), [both, "X-Forwarded-Proto: http"]);

    // Nor does it pass in a spelling that many servers read as the same.
    let under = "X_Forwarded_For: 192.0.2.9\r\nX_Forwarded-Proto: https\r\n";
    client.send(ask.replace(said, under));
    client.response();
    let seen = server.seen().remove(2);
    assert!(!seen.contains("X_Forwarded") && !seen.contains("192.0.2.9"), "{seen}");
    assert_eq!(lines(&seen), ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"]);

    let tls = format!("tls = {}", authority.sign("a", &["a.example"]));
    let router = Router::start(&service("http", &format!("{key}\nforwarded = true\n{tls}"), &[&list]));
    authority.connect(router.addr(), "a.example").get("k");
    assert_eq!(lines(&server.seen()[3]), ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https"]);

    let router =
        Router::start(&service("http", &format!("{key}\nforwarded = true\naccept_proxy = true"), &[&list]));
    let mut client = router.client();
    let mut header = Vec::new();
    router_proto::proxy::write("[2001:db8::7]:9".parse().unwrap(), router.addr(), &mut header);
    client.send(&header);
    client.get("k");
    assert_eq!(lines(&server.seen()[4]), ["X-Forwarded-For: 2001:db8::7", "X-Forwarded-Proto: http"]);

    // Nobody asked for it: what the client says goes on as it is.
    let router = Router::start(&service("http", key, &[&list]));
    let mut client = router.client();
    client.send(&ask);
    client.response();
    assert_eq!(lines(&server.seen()[5]).len(), 3);
}
