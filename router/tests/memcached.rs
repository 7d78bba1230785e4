//! memcached through the router, as it should go: against servers that do as they are told, and against real
//! ones.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use common::*;

/// A real memcached on a free port. Killed at the end of the test.
struct RealServer {
    child: Child,
    addr: SocketAddr,
}

impl RealServer {
    /// `None` where there is no memcached: then the test is skipped, or fails where servers are required.
    fn start() -> Option<Self> {
        let addr = nobody();
        let port = addr.port().to_string();
        let spawned = Command::new("memcached")
            // It refuses to run as root without being told so.
            .args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-m", "64", "-t", "1", "-u", "root"])
            .stdout(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                skip("memcached", &error);
                return None;
            }
        };
        eventually("memcached listens", || std::net::TcpStream::connect(addr).is_ok());
        Some(Self { child, addr })
    }
}

fn skip(program: &str, error: &std::io::Error) {
    assert!(std::env::var_os("PHALANX_REQUIRE_SERVERS").is_none(), "{program}: {error}");
    println!("SKIPPED: {program} cannot be started: {error}");
}

impl Drop for RealServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three real servers, each a RACS, and the router before them.
fn cluster() -> Option<(Vec<RealServer>, Router)> {
    let servers: Vec<RealServer> = (0..3).map(|_| RealServer::start()).collect::<Option<_>>()?;
    let racs: Vec<[SocketAddr; 1]> = servers.iter().map(|server| [server.addr]).collect();
    let racs: Vec<&[SocketAddr]> = racs.iter().map(|racs| &racs[..]).collect();
    let router = Router::start(&memcached(&racs));
    Some((servers, router))
}

fn set(key: &str, value: &str) -> String {
    format!("set {key} 0 0 {}\r\n{value}\r\n", value.len())
}

fn value(key: &str, value: &str) -> String {
    format!("VALUE {key} 0 {}\r\n{value}\r\n", value.len())
}

/// Answers every command over keys with a value for each, every other one with `STORED`.
fn echo() -> FakeServer {
    FakeServer::start(|peer| {
        while let Some(text) = peer.text() {
            let mut words = text.split(' ');
            match words.next() {
                Some("get") => {
                    let values: String = words.map(|key| value(key, key)).collect();
                    peer.send(&(values + "END\r\n"));
                }
                Some("mg" | "ms") => peer.send("HD\r\n"),
                Some("flush_all") => peer.send("OK\r\n"),
                _ => peer.send("STORED\r\n"),
            }
        }
    })
}

#[test]
fn commands_find_their_keys_on_real_servers() {
    let Some((servers, router)) = cluster() else { return };
    let mut client = router.client();
    for n in 0..200 {
        assert_eq!(client.ask(&set(&format!("key{n}"), &format!("value{n}"))), "STORED\r\n");
    }
    for n in 0..200 {
        let (key, text) = (format!("key{n}"), format!("value{n}"));
        assert_eq!(client.ask(&format!("get {key}\r\n")), value(&key, &text) + "END\r\n");
    }
    for server in &servers {
        let stats = Client::connect(server.addr).ask("stats\r\n");
        let items = stats.lines().find_map(|line| line.strip_prefix("STAT curr_items ")).unwrap();
        assert!(items.parse::<u32>().unwrap() > 20, "{items} of 200 keys");
    }
    for (text, reply) in [
        ("add key1 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("add new 0 0 1\r\nx\r\n", "STORED\r\n"),
        ("replace nobody 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("append new 7 7 1\r\ny\r\n", "STORED\r\n"),
        ("prepend new 7 7 1\r\nw\r\n", "STORED\r\n"),
        ("get new\r\n", "VALUE new 0 3\r\nwxy\r\nEND\r\n"),
        ("cas nobody 0 0 1 5\r\nx\r\n", "NOT_FOUND\r\n"),
        ("cas new 0 0 1 1\r\nx\r\n", "EXISTS\r\n"),
        ("set flags 4294967295 0 0\r\n\r\n", "STORED\r\n"),
        ("get flags\r\n", "VALUE flags 4294967295 0\r\n\r\nEND\r\n"),
        ("set n 0 0 2\r\n10\r\n", "STORED\r\n"),
        ("incr n 5\r\n", "15\r\n"),
        ("decr n 7\r\n", "8\r\n"),
        ("get n\r\n", "VALUE n 0 2\r\n8 \r\nEND\r\n"),
        ("incr new 1\r\n", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
        ("incr nobody 1\r\n", "NOT_FOUND\r\n"),
        ("touch n 100\r\n", "TOUCHED\r\n"),
        ("touch nobody 100\r\n", "NOT_FOUND\r\n"),
        ("gat 100 n new nobody\r\n", "VALUE n 0 2\r\n8 \r\nVALUE new 0 3\r\nwxy\r\nEND\r\n"),
        ("delete n\r\n", "DELETED\r\n"),
        ("delete n 0\r\n", "NOT_FOUND\r\n"),
        ("set gone 0 -1 1\r\nx\r\n", "STORED\r\n"),
        ("get gone\r\n", "END\r\n"),
        ("get  key1   nobody \r\n", "VALUE key1 0 6\r\nvalue1\r\nEND\r\n"),
        ("get key1\n", "VALUE key1 0 6\r\nvalue1\r\nEND\r\n"),
        ("set key1 0 0 1\nx\r\n", "STORED\r\n"),
        ("verbosity 1\r\n", "OK\r\n"),
        ("get\r\n", "ERROR\r\n"),
        ("bget x\r\n", "ERROR\r\n"),
        ("\r\n", "ERROR\r\n"),
        ("incr key1 x\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
        ("delete key1 5\r\n", "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"),
        ("shutdown\r\n", "ERROR: shutdown not enabled\r\n"),
        ("slabs automove 0\r\n", "CLIENT_ERROR phalanx: this command concerns one server: send it there\r\n"),
        ("flush_all\r\n", "OK\r\n"),
        ("get key1 key2 key3 key4 key5 key6\r\n", "END\r\n"),
    ] {
        assert_eq!(client.ask(text), reply, "{text:?}");
    }
    let unique = {
        client.ask(&set("u", "1"));
        let reply = client.ask("gets u\r\n");
        reply.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(client.ask(&format!("cas u 0 0 1 {unique}\r\n2\r\n")), "STORED\r\n");
    assert_eq!(client.ask(&format!("cas u 0 0 1 {unique}\r\n2\r\n")), "EXISTS\r\n");
}

#[test]
fn meta_commands_are_routed_by_their_keys() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    for (text, reply) in [
        ("mn\r\n", "MN\r\n"),
        ("ms foo 3 T0 F5 c\r\nbar\r\n", "HD c"),
        ("mg foo v f k O77\r\n", "VA 3 f5 kfoo O77\r\nbar\r\n"),
        ("get foo\r\n", "VALUE foo 5 3\r\nbar\r\nEND\r\n"),
        ("mg foo\r\n", "HD\r\n"),
        ("mg missing v O9\r\n", "EN"),
        // The same key, in base64.
        ("mg Zm9v b v k\r\n", "VA 3 kfoo\r\nbar\r\n"),
        ("ms AAEC 1 b\r\nx\r\n", "HD\r\n"),
        ("mg AAEC b v k\r\n", "VA 1 kAAEC b\r\nx\r\n"),
        ("mg AAE b v\r\n", "CLIENT_ERROR error decoding key\r\n"),
        ("ma n\r\n", "NF\r\n"),
        ("ma n N0 J13 v\r\n", "VA 2\r\n13\r\n"),
        ("ma n D7 v t\r\n", "VA 2 t-1\r\n20\r\n"),
        ("ma n MD D100 v\r\n", "VA 1\r\n0\r\n"),
        ("mg viv v N30 t\r\n", "VA 0 t30 W\r\n\r\n"),
        ("mg viv v\r\n", "VA 0 Z\r\n\r\n"),
        ("ms foo 1 ME\r\nx\r\n", "NS\r\n"),
        ("ms foo 2 MA\r\nxy\r\n", "HD\r\n"),
        ("ms foo 2 C1\r\nxy\r\n", "EX\r\n"),
        ("ms nobody 2 C1\r\nxy\r\n", "NF\r\n"),
        ("mg foo s\r\n", "HD s5\r\n"),
        ("me foo\r\n", "ME foo exp="),
        ("me nobody\r\n", "EN\r\n"),
        ("md foo I T30\r\n", "HD\r\n"),
        ("mg foo\r\n", "HD X W\r\n"),
        ("md foo O1 k\r\n", "HD O1 kfoo\r\n"),
        ("md foo O1\r\n", "NF O1\r\n"),
        ("mg foo v v\r\n", "CLIENT_ERROR invalid or duplicate flag\r\n"),
        ("mg foo bx\r\n", "CLIENT_ERROR invalid or duplicate flag\r\n"),
        // The server refuses it, the data do not become commands.
        ("ms foo 5 Mxx\r\nmn mn\r\n", "CLIENT_ERROR incorrect length for M token\r\n"),
        ("ms foo 2 Z\r\nmn\r\n", "CLIENT_ERROR invalid flag\r\n"),
        ("mg\r\n", "CLIENT_ERROR bad command line format\r\n"),
        ("mx foo\r\n", "ERROR\r\n"),
        ("mn\r\n", "MN\r\n"),
    ] {
        let got = client.ask(text);
        assert!(got.starts_with(reply), "{text:?}: {got:?} instead of {reply:?}");
    }
}

#[test]
fn what_is_not_to_be_answered_is_not() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    for n in 0..50 {
        client.send(format!(
            "set a{n} 0 0 1 noreply\r\nx\r\nincr a{n} 1 noreply\r\ndelete none noreply\r\n\
             delete none 0 noreply\r\ntouch a{n} 0 noreply\r\nadd a{n} 0 0 1 noreply\r\nx\r\n\
             cas a{n} 0 0 1 1 noreply\r\nx\r\nverbosity 0 noreply\r\nappend a{n} 0 0 2 noreply\r\nyz\r\n"
        ));
        // Quiet: no EN, no HD of ms and md, nothing at all of ma.
        client.send(format!(
            "mg missing{n} v q\r\nmg a{n} q k v\r\nms b{n} 1 q T0\r\n1\r\nma b{n} q v\r\nmd b{n} q\r\n\
             md b{n} q O5\r\nms b{n} 1 q MR\r\n1\r\nmn\r\n"
        ));
        assert_eq!(client.text(), format!("VA 3 ka{n}\r\nxyz\r\n"));
        assert_eq!([client.line(), client.line(), client.line()], ["NF O5\r\n", "NS\r\n", "MN\r\n"]);
    }
    client.send("flush_all noreply\r\nget a1 a2 a3 a4 a5\r\n");
    assert_eq!(client.text(), "END\r\n");
    client.send("delete noreply\r\nincr k 1 1 noreply\r\nset k 0 0 1 noreply\r\nx\r\nquit\r\nget k\r\n");
    assert_eq!(client.line(), "NOT_FOUND\r\n", "the key may be called so");
    assert!(client.is_closed(), "after quit nothing is answered");
    assert_eq!(router.client().ask("get k\r\n"), value("k", "x") + "END\r\n");
}

#[test]
fn values_of_many_keys_come_in_the_order_of_the_keys() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    for n in (0..2000).step_by(3) {
        client.send(format!("set k{n} 0 0 4 noreply\r\n{n:04}\r\n"));
    }
    let keys: Vec<String> = (0..2000).rev().map(|n| format!("k{n}")).collect();
    let expected: String =
        (0..2000).rev().filter(|n| n % 3 == 0).map(|n| value(&format!("k{n}"), &format!("{n:04}"))).collect();
    for name in ["get", "gat 0"] {
        assert_eq!(client.ask(&format!("{name} {}\r\n", keys.join(" "))), expected.clone() + "END\r\n");
    }
    // Twice the same key: twice its value.
    let twice = [value("k0", "0000"), value("k3", "0003"), value("k0", "0000")].concat();
    assert_eq!(client.ask("get k0 k3 k1 k0\r\n"), twice + "END\r\n");
    assert_eq!(client.ask("get k1 k2 k4 k5 k7 k8\r\n"), "END\r\n");
    // A line of almost a megabyte, with a key that is too long at its end.
    let long = format!("get {}", "key/ ".repeat(200_000));
    assert_eq!(client.ask(&format!("{long}\r\n")), "END\r\n");
    assert_eq!(
        client.ask(&format!("{long}{}\r\n", "x".repeat(251))),
        "CLIENT_ERROR bad command line format\r\n"
    );
    client.send(long.repeat(2));
    assert_eq!(client.line(), "CLIENT_ERROR line too long\r\n");
    assert!(client.is_closed());
}

#[test]
fn memccapable_is_content() {
    let Some((_servers, router)) = cluster() else { return };
    let port = router.addr().port().to_string();
    match Command::new("memccapable").args(["-h", "127.0.0.1", "-p", &port, "-a", "-v"]).output() {
        Ok(output) => {
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(text.contains("All tests passed"), "{text}");
            assert!(text.matches("[pass]").count() >= 27, "{text}");
        }
        Err(error) => skip("memccapable", &error),
    }
}

/// Each client has keys of its own and knows what it wrote last, so whatever belongs to another one shows.
#[test]
fn every_client_of_many_gets_its_own_replies_on_real_servers() {
    let Some((_servers, router)) = cluster() else { return };
    let addr = router.addr();
    let clients: Vec<_> = (0..8)
        .map(|id| {
            thread::spawn(move || {
                let mut client = Client::connect(addr);
                for round in 0..30 {
                    let (mut batch, mut expected) = (String::new(), String::new());
                    for n in 0..40 {
                        let (key, text) = (format!("{id}:{n}"), format!("{id}.{round}.{n}"));
                        batch += &set(&key, &text);
                        expected += "STORED\r\n";
                        batch += &format!("get {key}\r\n");
                        expected += &(value(&key, &text) + "END\r\n");
                        batch += &format!("mg {key} v O{id}.{n}\r\nmg none v q\r\n");
                        expected += &format!("VA {} O{id}.{n}\r\n{text}\r\n", text.len());
                        if n % 10 == 0 {
                            let other = format!("{id}:0");
                            batch += &format!("mn\r\nnosuch\r\nget {key} {other} missing\r\n");
                            let first = value(&other, &format!("{id}.{round}.0"));
                            expected += &format!("MN\r\nERROR\r\n{}{first}END\r\n", value(&key, &text));
                            batch += &format!("set {key} 0 0 1 noreply\r\nx\r\nappend {key} 0 0 1\r\ny\r\n");
                            expected += "STORED\r\n";
                            batch += &set(&key, &text);
                            expected += "STORED\r\n";
                        }
                    }
                    client.send(&batch);
                    let mut got = String::new();
                    while got.len() < expected.len() {
                        got += &client.text();
                    }
                    assert_eq!(got, expected);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}

/// As above, while one of two servers is killed and comes back, again and again: a reply is the right one or
/// says that there is none, and nothing was counted twice.
#[test]
fn nobody_gets_the_reply_of_another_while_servers_die() {
    let (Some(steady), Some(mut mortal)) = (RealServer::start(), RealServer::start()) else { return };
    let router = Router::start(&memcached(&[&[steady.addr], &[mortal.addr]]));
    let addr = router.addr();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|id| {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut client = Client::connect(addr);
                let (mut right, mut failed, mut counted) = (0, 0, vec![]);
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let keys: Vec<String> = (0..10).map(|n| format!("{id}:{n}:{round}")).collect();
                    let mut batch = String::new();
                    for key in &keys {
                        batch += &set(key, key);
                        batch += &format!("get {key}\r\n");
                        batch += &format!("mg {key} v O{key}\r\n");
                        batch += &format!("ma c{key} N0 J1 v\r\n");
                    }
                    batch += &format!("get {}\r\n", keys.join(" "));
                    client.send(&batch);
                    for key in &keys {
                        let stored = client.text();
                        let failure = stored.starts_with("SERVER_ERROR phalanx: ");
                        assert!(stored == "STORED\r\n" || failure, "{stored}");
                        let got = client.text();
                        let failure = got == "END\r\n" || got.starts_with("SERVER_ERROR phalanx: ");
                        assert!(got == value(key, key) + "END\r\n" || failure, "{key}: {got}");
                        right += u32::from(!failure);
                        failed += u32::from(failure);
                        let meta = client.text();
                        let failure = meta.starts_with("EN") || meta.starts_with("SERVER_ERROR phalanx: ");
                        assert!(
                            meta == format!("VA {} O{key}\r\n{key}\r\n", key.len()) || failure,
                            "{key}: {meta}"
                        );
                        // Each counter is counted once.
                        let count = client.text();
                        let failure = count.starts_with("SERVER_ERROR phalanx: ");
                        assert!(count == "VA 1\r\n1\r\n" || failure, "{key}: {count}");
                        counted.push((key.clone(), !failure));
                    }
                    let all = client.text();
                    assert!(
                        all.starts_with("SERVER_ERROR phalanx: ")
                            || all.strip_suffix("END\r\n").is_some_and(|values| {
                                let mut rest = values;
                                keys.iter().for_each(|key| {
                                    rest = rest.strip_prefix(&*value(key, key)).unwrap_or(rest);
                                });
                                rest.is_empty()
                            }),
                        "{all}"
                    );
                }
                (right, failed, counted)
            })
        })
        .collect();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(150));
        mortal.child.kill().unwrap();
        mortal.child.wait().unwrap();
        thread::sleep(Duration::from_millis(100));
        let port = mortal.addr.port().to_string();
        mortal.child = Command::new("memcached")
            .args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-t", "1", "-u", "root"])
            .spawn()
            .unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let (mut right, mut failed, mut counted) = (0, 0, vec![]);
    for client in clients {
        let one = client.join().unwrap();
        (right, failed) = (right + one.0, failed + one.1);
        counted.extend(one.2);
    }
    eventually("the last one came back", || std::net::TcpStream::connect(mortal.addr).is_ok());
    let (mut lost, mut direct) = (0, [Client::connect(steady.addr), Client::connect(mortal.addr)]);
    for (key, told) in &counted {
        let found = direct.each_mut().map(|server| server.ask(&format!("mg c{key} v\r\n")));
        let times = found.iter().filter(|found| *found == "VA 1\r\n1\r\n").count();
        let none = found.iter().filter(|found| *found == "EN\r\n").count();
        assert!(times + none == 2 && times <= 1, "{key}: {found:?}");
        lost += usize::from(*told && times == 0);
    }
    // Only one of them was killed, with what it had.
    assert!(lost < counted.len() * 3 / 4, "{lost} of {} are nowhere", counted.len());
    assert!(right > 100 && failed > 0, "{right} right, {failed} failed: nothing was tried");
}

#[test]
fn large_values_pass_in_both_directions_and_larger_ones_are_refused() {
    let server = FakeServer::start(|peer| {
        let mut stored = String::new();
        while let Some(text) = peer.text() {
            if text.starts_with("get ") {
                peer.send(&(value("big", &stored) + "END\r\n"));
            } else {
                stored = text.split_once('|').unwrap().1.to_owned();
                peer.send("STORED\r\n");
            }
        }
    });
    let router = Router::with(&memcached(&[&[server.addr]]), 1, |limits| limits.value = 8 << 20);
    let mut client = router.client();
    for size in [0, 1, 60_000, 70_000, 3_000_000, 8 << 20] {
        let text = "v".repeat(size);
        assert_eq!(client.ask(&set("big", &text)), "STORED\r\n");
        assert!(client.ask("get big\r\n") == value("big", &text) + "END\r\n", "{size} bytes");
    }
    let seen = server.seen().len();
    // The data are thrown away, whatever they look like, and the client goes on.
    let data = "delete big\r\n".repeat(800_000);
    assert_eq!(client.ask(&set("big", &data)), "SERVER_ERROR object too large for cache\r\n");
    client.send(format!("set big 0 0 {} noreply\r\n{data}\r\n", data.len()));
    assert_eq!(
        client.ask(&format!("ms big {} q\r\n{data}\r\n", data.len())),
        "SERVER_ERROR object too large for cache\r\n"
    );
    let key = "k".repeat(251);
    assert_eq!(client.ask(&set(&key, "delete big")), "CLIENT_ERROR bad command line format\r\n");
    assert_eq!(client.ask("set a\tb 0 0 1\r\nx\r\n"), "CLIENT_ERROR bad command line format\r\n");
    assert_eq!(client.ask("set a 0 0 1 2 3\r\nx\r\n"), "CLIENT_ERROR bad command line format\r\n");
    assert_eq!(client.ask("set a 01 0 1\r\nx\r\n"), "CLIENT_ERROR bad command line format\r\n");
    assert_eq!(client.ask("mn\r\n"), "MN\r\n");
    assert_eq!(server.seen().len(), seen, "nothing of this reached the server");
}

#[test]
fn where_the_next_command_starts_must_be_beyond_doubt() {
    let server = echo();
    let router = Router::start(&memcached(&[&[server.addr]]));
    for (text, reply) in [
        ("set a 0 0 abc\r\nflush_all\r\n", "CLIENT_ERROR bad command line format\r\n"),
        ("set a 0 0\r\nflush_all\r\n", "CLIENT_ERROR bad command line format\r\n"),
        ("set a 0 0 -1\r\nflush_all\r\n", "CLIENT_ERROR bad command line format\r\n"),
        ("set a 0 0 2147483646\r\nflush_all\r\n", "CLIENT_ERROR bad command line format\r\n"),
        ("ms a S5\r\nflush_all\r\n", "CLIENT_ERROR bad command line format\r\n"),
        ("set a 0 0 1\r\nflush_all\r\n", "CLIENT_ERROR bad data chunk\r\n"),
        ("set a 0 0 3\r\nabc\nflush_all\r\n", "CLIENT_ERROR bad data chunk\r\n"),
        ("POST / HTTP/1.1\r\nHost: h\r\n\r\nflush_all\r\n", "ERROR\r\n"),
        ("\u{80}", "SERVER_ERROR phalanx: the binary protocol is not spoken here: use the text protocol\r\n"),
    ] {
        let mut client = router.client();
        client.send("get due\r\n");
        let bytes: Vec<u8> = text.chars().map(|c| c as u8).collect();
        client.send(&bytes);
        assert_eq!(client.text(), value("due", "due") + "END\r\n", "{text:?}");
        assert_eq!(client.line(), reply, "{text:?}");
        assert!(client.is_closed(), "{text:?}");
    }
    assert!(server.seen().iter().all(|seen| seen == "get due"), "{:?}", server.seen());
}

#[test]
fn the_router_answers_what_concerns_the_connection() {
    let server = echo();
    let router = Router::start(&memcached(&[&[server.addr]]));
    let mut client = router.client();
    assert!(client.ask("version\r\n").starts_with("VERSION 0."));
    assert_eq!(client.ask("version foo bar\r\n"), "ERROR\r\n");
    let stats = client.ask("stats\r\n");
    assert!(
        stats.contains("STAT curr_connections 1\r\n") && stats.contains("STAT phalanx_local 2\r\n"),
        "{stats}"
    );
    assert_eq!(client.ask("stats items\r\n"), "END\r\n");
    assert!(client.ask("stats reset\r\n").starts_with("CLIENT_ERROR phalanx: "));
    assert_eq!(server.connections(), 0);
    client.send("get a\r\nversion\r\nget b c\r\nmn\r\nquit\r\n");
    assert_eq!(client.text(), value("a", "a") + "END\r\n");
    assert!(client.line().starts_with("VERSION"));
    assert_eq!(client.text(), value("b", "b") + &value("c", "c") + "END\r\n");
    assert_eq!(client.line(), "MN\r\n");
    assert!(client.is_closed());
}

#[test]
fn commands_go_on_as_they_came_but_for_what_keeps_replies_back() {
    let server = echo();
    let router = Router::start(&memcached(&[&[server.addr]]));
    let mut client = router.client();
    client.send(
        "set a 1 2 3 noreply\r\nabc\r\nms a 2 T5 q O7\r\nxy\r\nmg a q v\r\nmg a v q\r\nflush_all 0 noreply\r\n\
         get b\r\nget a b\r\nmn\r\n",
    );
    eventually("they arrive", || server.seen().len() >= 6);
    let seen = server.seen();
    assert_eq!(
        seen[..6],
        ["set a 1 2 3|abc", "ms a 2 T5 O7|xy", "mg a v", "mg a v", "flush_all 0", "get b"].map(String::from)
    );
}

#[test]
fn a_command_that_breaks_off_reaches_nobody() {
    let server = echo();
    let router =
        Router::with(&memcached(&[&[server.addr]]), 1, |limits| limits.stall = Duration::from_millis(200));
    let whole = set("key", "value");
    for len in 1..whole.len() {
        router.client().send(&whole[..len]);
    }
    // One that is never ended is not kept for ever either.
    let mut slow = router.client();
    slow.send(&whole[..20]);
    assert!(slow.is_closed());
    eventually("they are gone", || router.stats().clients == 0);
    assert_eq!(server.seen(), Vec::<String>::new());
    // In pieces, but whole; on a busy machine they take their time.
    let router = Router::start(&memcached(&[&[server.addr]]));
    let mut client = router.client();
    for byte in whole.repeat(3).bytes() {
        client.send([byte]);
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!([client.line(), client.line(), client.line()], ["STORED\r\n"; 3]);
    assert_eq!(server.seen(), ["set key 0 0 5|value"; 3]);
}

#[test]
fn a_client_that_wants_no_replies_is_not_held_up() {
    // More than may be under way at once, all of it without a reply; and it may hang up at once.
    let server = echo();
    let router = Router::start(&memcached(&[&[server.addr]]));
    let mut client = router.client();
    client.send("set k 0 0 1 noreply\r\nx\r\n".repeat(5000) + "mn\r\n");
    assert_eq!(client.line(), "MN\r\n");
    let mut going = router.client();
    going.send("set k 0 0 1 noreply\r\nx\r\n".repeat(500));
    going.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(going.is_closed());
    assert_eq!(server.seen().len(), 5500);
    eventually("both are gone", || router.stats().clients == 1);
}
