//! Plain TCP: where a connection goes, and that its bytes arrive, all of them or visibly not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/tls.rs"]
mod tls;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{Client, FakeServer, PATIENCE, Peer, Router, eventually, grouped, nobody, view};
use router_proto::proxy;
use tls::{Authority, TlsClient};

/// Two RACS: keys up to "m" belong to the first.
fn config(key: &str, more: &str, servers: [&[SocketAddr]; 2]) -> String {
    let [a, b] =
        servers.map(|list| list.iter().map(|addr| format!("\"{addr}\"")).collect::<Vec<_>>().join(", "));
    let send = if more.contains("accept_proxy") { "send_proxy = true" } else { "" };
    format!(
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nkey = \"{key}\"\n{more}\n\
         [service.pmap]\nstyle = \"ranges\"\nranges = [{{ from = \"\", racs = \"a\" }}, {{ from = \"m\", racs = \"b\" }}]\n\
         [[service.racs]]\nname = \"a\"\nservers = [{a}]\n{send}\n[[service.racs]]\nname = \"b\"\nservers = [{b}]\n{send}\n"
    )
}

/// Says its name, then gives back whatever comes, until the client is done; then says goodbye.
fn echo(name: &'static str) -> FakeServer {
    FakeServer::start(move |peer| {
        peer.send(name);
        repeat(peer);
        peer.send("bye");
        let _ = peer.stream.shutdown(Shutdown::Write);
    })
}

fn repeat(peer: &mut Peer) {
    let mut space = [0; 8192];
    while let Ok(len @ 1..) = peer.reader.read(&mut space) {
        if peer.stream.write_all(&space[..len]).is_err() {
            return;
        }
    }
}

fn both(key: &str, more: &str) -> ([FakeServer; 2], Router) {
    let servers = [echo("A"), echo("B")];
    let text = config(key, more, [&[servers[0].addr], &[servers[1].addr]]);
    (servers, Router::start(&text))
}

fn rest(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

fn is_reset(client: &mut Client) -> bool {
    let mut all = Vec::new();
    client.reader.read_to_end(&mut all).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// What a TLS client says first.
fn hello(name: Option<&str>) -> Vec<u8> {
    let mut config = Authority::new().client_config(false);
    config.enable_sni = name.is_some();
    let name = name.unwrap_or("x").to_owned().try_into().unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    session.write_tls(&mut out).unwrap();
    out
}

#[test]
fn bytes_pass_both_ways_and_each_side_ends_when_it_likes() {
    let (_servers, router) = both("source", "");
    let mut client = router.client();
    client.send("x");
    let mut two = [0; 2];
    client.reader.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"Ax", "the loopback address sorts before m");
    client.send("more");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    client.reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "morebye", "the server says the last word after the client is done");
    eventually("nobody is left", || router.stats().clients == 0);
    assert_eq!((router.stats().requests, router.stats().unavailable), (1, 0));
}

#[test]
fn a_server_may_be_done_first() {
    let server = FakeServer::start(|peer| {
        peer.send("done");
        peer.stream.shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        let _ = peer.reader.read_to_string(&mut all);
        peer.note(all);
    });
    let router = Router::start(&config("source", "", [&[server.addr], &[nobody()]]));
    let client = router.client();
    assert_eq!(rest(&client.stream).unwrap(), b"done");
    (&client.stream).write_all(b"and yet I go on").unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
    eventually("the server has it all", || server.seen() == ["and yet I go on"]);
    eventually("nobody is left", || router.stats().clients == 0);
}

#[test]
fn much_passes_both_ways_at_once_whoever_is_slow() {
    const LEN: usize = 8 << 20;
    let (_servers, router) = both("source", "");
    let client = router.client();
    let text: Vec<u8> = (0..LEN).map(|at| (at / 251 + at) as u8).collect();
    let mut up = client.stream.try_clone().unwrap();
    let sent = text.clone();
    let sender = thread::spawn(move || {
        up.write_all(&sent).unwrap();
        up.shutdown(Shutdown::Write).unwrap();
    });
    // Until now everything on the way back fills up, and the way there with it.
    thread::sleep(Duration::from_millis(300));
    let all = rest(&client.stream).unwrap();
    sender.join().unwrap();
    assert_eq!(all.len(), LEN + 4);
    assert!(all[1..=LEN] == text[..] && &all[LEN + 1..] == b"bye");
}

#[test]
fn a_reset_reaches_the_other_side_as_a_reset() {
    // A plain end would pass for a whole answer, or a whole upload.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let router = Router::start(&config("source", "", [&[addr], &[nobody()]]));
    let reset = |stream: &TcpStream| {
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    };
    let pair = || {
        let mut client = Client::connect(router.addr());
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        server.write_all(b"half an ans").unwrap();
        client.reader.read_exact(&mut [0; 11]).unwrap();
        client.send("half an upl");
        server.read_exact(&mut [0; 11]).unwrap();
        (client, server)
    };
    let (mut client, server) = pair();
    reset(&server);
    drop(server);
    assert!(is_reset(&mut client));

    let (client, mut server) = pair();
    reset(&client.stream);
    drop(client);
    assert!(server.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    eventually("nobody is left", || router.stats().clients == 0);
}

#[test]
fn the_name_in_a_hello_decides_and_the_hello_arrives_as_it_was() {
    let (_servers, router) = both("sni", "");
    for (name, server) in [("a.example", b'A'), ("Z.example", b'B')] {
        let hello = hello(Some(name));
        for step in [1, 7, hello.len()] {
            let mut client = router.client();
            for part in hello.chunks(step) {
                client.send(part);
            }
            client.stream.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            client.reader.read_to_end(&mut all).unwrap();
            assert_eq!(all[0], server, "{name}");
            assert!(all[1..hello.len() + 1] == hello && all.ends_with(b"bye"), "{name} in steps of {step}");
        }
    }
}

#[test]
fn without_a_name_the_policy_decides_and_garbage_goes_nowhere() {
    let (servers, router) = both("sni", "");
    for text in [&hello(None)[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x02"] {
        let mut client = router.client();
        client.send(text);
        assert!(is_reset(&mut client), "{text:?}");
    }
    eventually("they are counted", || router.stats().refused == 3);
    // Half a hello, and then the end; or nothing, for which nobody waits for long.
    let mut ended = router.client();
    ended.send(&hello(Some("a.example"))[..50]);
    ended.stream.shutdown(Shutdown::Write).unwrap();
    assert!(is_reset(&mut ended));
    let text = config("sni", "", [&[servers[0].addr], &[servers[1].addr]]);
    let hasty = Router::with(&text, 1, |limits| limits.head = Duration::from_millis(500));
    let mut slow = hasty.client();
    slow.send(&hello(Some("a.example"))[..50]);
    assert!(is_reset(&mut slow));
    assert!(servers.iter().all(|server| server.connections() == 0));

    let (_servers, router) = both("sni", "no_key = \"partition:1\"");
    let mut client = router.client();
    client.send(hello(None));
    let mut one = [0];
    client.reader.read_exact(&mut one).unwrap();
    assert_eq!(one, [b'B']);

    let (servers, router) = both("sni", "no_key = \"source\"");
    for _ in 0..3 {
        let mut client = router.client();
        client.send(hello(None));
        client.reader.read_exact(&mut one).unwrap();
    }
    let counts = servers.each_ref().map(FakeServer::connections);
    assert!(counts == [3, 0] || counts == [0, 3], "one address, one RACS: {counts:?}");
}

#[test]
fn a_key_at_a_fixed_place() {
    let (_servers, router) = both("bytes:2+3", "");
    for (text, server) in [("--abc!", b'A'), ("--zbc", b'B')] {
        for step in [1, 100] {
            let mut client = router.client();
            for part in text.as_bytes().chunks(step) {
                client.send(part);
            }
            client.stream.shutdown(Shutdown::Write).unwrap();
            let all = rest(&client.stream).unwrap();
            assert_eq!((all[0], &all[1..]), (server, format!("{text}bye").as_bytes()));
        }
    }
    let mut short = router.client();
    short.send("--ab");
    short.stream.shutdown(Shutdown::Write).unwrap();
    assert!(is_reset(&mut short));
    eventually("it is counted", || router.stats().refused == 1);
}

#[test]
fn under_tls_the_session_has_the_name() {
    let authority = Authority::new();
    let pair = authority.sign("a", &["a.example", "z.example"]);
    let (_servers, router) = both("sni", &format!("tls = {pair}"));
    for (name, server) in [("a.example", b'A'), ("z.example", b'B')] {
        let mut client = authority.connect(router.addr(), name);
        client.send("hello");
        client.session().conn.send_close_notify();
        client.session().flush().unwrap();
        let all = client.rest().unwrap();
        assert_eq!((all[0], &all[1..]), (server, &b"hellobye"[..]), "a half-closed session");
    }
    // An end that is not announced may be anybody's: the server sees a reset.
    let mut cut = authority.connect(router.addr(), "a.example");
    cut.send("hello");
    let mut six = [0; 6];
    cut.reader.read_exact(&mut six).unwrap();
    cut.session().sock.shutdown(Shutdown::Write).unwrap();
    assert!(cut.rest().is_err());
    eventually("nobody is left", || router.stats().clients == 0);
}

#[test]
fn who_passes_connections_on_says_for_whom_and_servers_are_told() {
    let (_servers, router) = both("source", "accept_proxy = true");
    let destination: SocketAddr = "198.51.100.1:443".parse().unwrap();
    for source in ["192.0.2.7:1234", "[2001:db8::7]:1234"] {
        let source: SocketAddr = source.parse().unwrap();
        let (mut header, mut sent_on) = (Vec::new(), Vec::new());
        proxy::write(source, destination, &mut header);
        proxy::write(source, destination, &mut sent_on);
        for cut in 1..=header.len() {
            let mut client = router.client();
            client.send(&header[..cut]);
            if cut % 9 == 0 {
                thread::sleep(Duration::from_millis(2)); // so that some cuts are read as such
            }
            client.send(&header[cut..]);
            client.send("text");
            client.stream.shutdown(Shutdown::Write).unwrap();
            let all = rest(&client.stream).unwrap();
            assert_eq!(all[1..], [&sent_on[..], b"textbye"].concat(), "cut at {cut}");
        }
    }
    // A sender that speaks for itself has an address of its own.
    let mut client = router.client();
    client.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let mut own = Vec::new();
    proxy::write(client.stream.local_addr().unwrap(), router.addr(), &mut own);
    assert_eq!(rest(&client.stream).unwrap()[1..], [&own[..], b"bye"].concat());
}

#[test]
fn who_does_not_say_for_whom_is_not_heard() {
    let servers = [echo("A"), echo("B")];
    let text = config("source", "accept_proxy = true", [&[servers[0].addr], &[servers[1].addr]]);
    let router = Router::with(&text, 1, |limits| limits.handshake = Duration::from_millis(300));
    let mut header = Vec::new();
    proxy::write(router.addr(), router.addr(), &mut header);
    let bad: [&[u8]; 6] = [
        b"hello",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\nhello",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        &header[..20], // and nothing more
        b"",
    ];
    for text in bad {
        let mut client = router.client();
        client.send(text);
        let heard = client.reader.read(&mut [0]);
        let reset = heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert!(reset || matches!(heard, Ok(0)), "{text:?}: {heard:?}");
    }
    eventually("all are counted", || router.stats().handshakes_failed == bad.len() as u64);
    assert!(servers.iter().all(|server| server.connections() == 0));
}

#[test]
fn a_header_comes_before_tls() {
    let authority = Authority::new();
    let more = format!("accept_proxy = true\ntls = {}", authority.sign("a", &["a.example"]));
    let (_servers, router) = both("source", &more);
    let stream = TcpStream::connect(router.addr()).unwrap();
    let mut header = Vec::new();
    proxy::write("192.0.2.7:1".parse().unwrap(), router.addr(), &mut header);
    (&stream).write_all(&header).unwrap();
    let mut client = TlsClient::over(stream, "a.example", &Arc::new(authority.client_config(false))).unwrap();
    client.send("x");
    let mut all = vec![0; 1 + header.len() + 1];
    client.reader.read_exact(&mut all).unwrap();
    assert_eq!(all[1..], [&header[..], b"x"].concat());
}

#[test]
fn a_new_leader_takes_the_old_ones_connections_by_cutting_them() {
    let (old, new) = (echo("A"), echo("B"));
    let router = Router::start(&grouped("tcp", "key = \"source\""));
    let first = |client: &mut Client| {
        let mut one = [0];
        client.reader.read_exact(&mut one).map(|()| one[0])
    };
    let all = [old.addr, new.addr];
    router.handle.update_group("g", &view(1, Some(0), &all)).unwrap();
    let mut client = router.client();
    assert_eq!(first(&mut client).unwrap(), b'A');

    // Nobody leads for a while: nobody has taken over either.
    router.handle.update_group("g", &view(1, None, &all)).unwrap();
    client.send("x");
    assert_eq!(first(&mut client).unwrap(), b'x');
    let mut waits = router.client();
    eventually("it waits", || router.stats().waited == 1);

    router.handle.update_group("g", &view(2, Some(1), &all)).unwrap();
    assert!(is_reset(&mut client), "what it says belongs to the new leader");
    assert_eq!(first(&mut waits).unwrap(), b'B');
    assert_eq!(first(&mut router.client()).unwrap(), b'B');
    // A view that changes nothing for a connection leaves it alone.
    router.handle.update_group("g", &view(3, Some(0), &[new.addr])).unwrap();
    waits.send("y");
    assert_eq!(first(&mut waits).unwrap(), b'y');
}

#[test]
fn equal_clones_share_connections_and_one_that_is_not_there_costs_nothing() {
    let servers = [echo("A"), echo("B")];
    let gone = nobody();
    let text = config("source", "updates = \"any\"", [&[servers[0].addr, gone, servers[1].addr], &[gone]]);
    let router = Router::start(&text);
    let mut clients: Vec<Client> = (0..12).map(|_| router.client()).collect();
    for client in &mut clients {
        let mut one = [0];
        client.reader.read_exact(&mut one).unwrap();
    }
    let counts = servers.each_ref().map(FakeServer::connections);
    assert_eq!(counts.iter().sum::<usize>(), 12);
    assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
    assert_eq!(router.stats().unavailable, 0);
}

#[test]
fn a_leader_that_cannot_be_reached_is_waited_for_and_then_the_client_is_told() {
    let gone = nobody();
    let text = config("source", "", [&[gone], &[gone]]);
    let router = Router::with(&text, 1, |limits| limits.wait = Duration::from_millis(700));
    let mut client = router.client();
    let start = Instant::now();
    assert!(is_reset(&mut client));
    assert!(start.elapsed() >= Duration::from_millis(700));
    eventually("it is counted", || router.stats().unavailable == 1);

    let router = Router::start(&text);
    let mut client = router.client();
    thread::sleep(Duration::from_millis(100));
    let _server = FakeServer::start_at(gone, |peer| peer.send("here"));
    let mut text = [0; 4];
    client.reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"here");
}

#[test]
fn connections_on_which_nothing_moves_are_cut_in_the_end() {
    let servers = [echo("A"), echo("B")];
    let text = config("source", "", [&[servers[0].addr], &[servers[1].addr]]);
    let router = Router::with(&text, 1, |limits| limits.tunnel = Duration::from_secs(2));
    let mut client = router.client();
    let mut last = Instant::now();
    for _ in 0..25 {
        last = Instant::now();
        client.send("x");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(is_reset(&mut client));
    let silence = last.elapsed();
    assert!(silence >= Duration::from_secs(2) && silence < PATIENCE, "{silence:?}: what moves is kept");
}

#[test]
fn a_router_that_stops_waits_for_connections_as_long_as_it_is_told_to() {
    let (_servers, router) = both("source", "");
    let mut client = router.client();
    client.send("x");
    let mut two = [0; 2];
    client.reader.read_exact(&mut two).unwrap();
    let handle = router.handle.clone();
    let stopping = thread::spawn(move || handle.shutdown(Duration::from_secs(2)));
    thread::sleep(Duration::from_millis(200));
    client.send("y");
    let mut one = [0];
    client.reader.read_exact(&mut one).unwrap();
    assert!(is_reset(&mut client), "then it is cut, visibly");
    stopping.join().unwrap();
}
