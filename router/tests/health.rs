//! Active checks: who is found to be down, what follows from it, and what does not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::*;
use router::{CloneAt, Config, GroupClones, ServerHealth, Surroundings};

/// Servers that answer have much longer than they need: a busy machine makes none of them seem to be down.
const FAST: &str = "every = \"100ms\"\ntimeout = \"5s\"\nfall = 2\nrise = 2\n";

/// A service with one RACS of these servers, checked like this.
fn checked(protocol: &str, check: &str, servers: &[SocketAddr]) -> String {
    let more = if protocol == "http" { "key = \"header:x-key\"" } else { "" };
    let text = service(protocol, more, &[servers]);
    format!("{text}\n[service.health]\ncheck = \"{check}\"\n{FAST}")
}

/// The same of another service, which waits for none of them for long.
fn impatiently(protocol: &str, check: &str, servers: &[SocketAddr]) -> String {
    checked(protocol, check, servers).replace("name = \"s\"", "name = \"a\"").replace("\"5s\"", "\"200ms\"")
}

/// An HTTP server that answers checks of /health only as long as it is to be well, and requests always.
fn moody(name: &'static str) -> (FakeServer, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let server = FakeServer::start(move |peer| {
        while let Some(request) = peer.request() {
            if !request.head.starts_with("GET /health ") || is_well.load(Ordering::SeqCst) {
                peer.respond(name);
            } else {
                peer.send("HTTP/1.1 500 Sick\r\nContent-Length: 0\r\n\r\n");
            }
        }
        peer.note("closed".into());
    });
    (server, well)
}

fn health(router: &Router, addr: SocketAddr) -> ServerHealth {
    router.handle.health().into_iter().find(|health| health.addr == addr).unwrap()
}

fn becomes(router: &Router, addr: SocketAddr, up: bool) -> ServerHealth {
    eventually("the checks notice", || health(router, addr).up == up);
    // The worker was told at the same time, and hears of that before it hears this question.
    router.stats();
    health(router, addr)
}

/// Who answers so many reads.
fn readers(router: &Router, requests: usize) -> Vec<String> {
    let mut client = router.client();
    let mut names: Vec<String> = (0..requests).map(|n| client.get(&format!("k{n}")).body).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_clone_that_is_down_gets_no_reads_until_it_is_well_again_but_leads_updates() {
    let ((a, a_well), (b, _)) = (moody("a"), moody("b"));
    let router = Router::start(&checked("http", "http:/health", &[a.addr, b.addr]));
    eventually("both are checked", || router.handle.health().iter().all(|health| health.checks > 1));
    eventually("both answer", || readers(&router, 20) == ["a", "b"]);
    assert_eq!(router.client().post("k", "x").body, "a");
    let closed = || a.seen().iter().filter(|seen| *seen == "closed").count();
    let checks = || a.seen().iter().filter(|seen| seen.starts_with("GET /health ")).count();

    a_well.store(false, Ordering::SeqCst);
    let down = becomes(&router, a.addr, false);
    assert_eq!(down.last_error.as_deref(), Some("status 500"));
    assert!(health(&router, b.addr).up && health(&router, b.addr).last_error.is_none());
    eventually("the unused connection is closed", || a.connections() == closed() && closed() > checks());
    assert_eq!(readers(&router, 50), ["b"]);
    assert_eq!(router.client().post("k", "x").body, "a", "who leads is not for checks to say");

    a_well.store(true, Ordering::SeqCst);
    let up = becomes(&router, a.addr, true);
    assert!(up.since > down.since);
    eventually("it answers again", || readers(&router, 20) == ["a", "b"]);
}

/// Another way to check it once made a server new, and so well, until as many checks as ever had failed.
#[test]
fn a_server_that_is_down_stays_so_when_it_is_checked_in_another_way() {
    let ((a, a_well), (b, _)) = (moody("a"), moody("b"));
    let text = checked("http", "http:/health", &[a.addr, b.addr]);
    let router = Router::start(&text);
    a_well.store(false, Ordering::SeqCst);
    let down = becomes(&router, a.addr, false);
    // So rarely that what is known now is all that is known for the rest of the test.
    let rarely = text.replace("every = \"100ms\"", "every = \"30m\"");
    let twice = rarely.replace("rise = 2", "rise = 1");
    for text in [&rarely, &twice] {
        router.handle.reload(&Config::parse(text, "t".as_ref(), Surroundings::default()).unwrap()).unwrap();
        let now = health(&router, a.addr);
        assert_eq!((now.up, now.since, &now.last_error), (false, down.since, &down.last_error));
        assert!(health(&router, b.addr).up);
        assert_eq!(readers(&router, 50), ["b"]);
    }
    // One good answer is enough by now.
    a_well.store(true, Ordering::SeqCst);
    let often = twice.replace("every = \"30m\"", "every = \"200ms\"");
    router.handle.reload(&Config::parse(&often, "t".as_ref(), Surroundings::default()).unwrap()).unwrap();
    becomes(&router, a.addr, true);
    eventually("it answers again", || readers(&router, 20) == ["a", "b"]);
}

#[test]
fn clones_that_are_all_down_are_used_all_the_same() {
    let ((a, a_well), (b, b_well)) = (moody("a"), moody("b"));
    let router = Router::start(&checked("http", "http:/health", &[a.addr, b.addr]));
    a_well.store(false, Ordering::SeqCst);
    b_well.store(false, Ordering::SeqCst);
    becomes(&router, a.addr, false);
    becomes(&router, b.addr, false);
    eventually("both answer", || readers(&router, 20) == ["a", "b"]);
    assert_eq!(router.stats().unavailable, 0);
}

#[test]
fn a_server_that_hangs_or_is_gone_is_down() {
    let silent = FakeServer::start(|peer| while peer.request().is_some() {});
    let mut gone = FakeServer::echo("gone");
    let garbled = FakeServer::start(|peer| {
        while peer.request().is_some() {
            peer.send("+PONG\r\n");
        }
    });
    let well = FakeServer::echo("well");
    gone.kill();
    let servers = [silent.addr, gone.addr, garbled.addr, well.addr];
    let text = checked("http", "http:/", &servers) + &impatiently("http", "http:/", &[silent.addr]);
    let router = Router::start(&text);
    let error = |addr| becomes(&router, addr, false).last_error.unwrap();
    assert_eq!(error(silent.addr), "no answer in 200ms");
    assert!(error(gone.addr).starts_with("cannot connect: "));
    assert_eq!(error(garbled.addr), "not HTTP: \"+PONG\"");
    assert_eq!(readers(&router, 20), ["well:"]);
    assert!(health(&router, well.addr).up);
}

#[test]
fn each_protocol_has_its_question() {
    let redis = |reply: &'static str| {
        FakeServer::start(move |peer| {
            while peer.command().is_some() {
                peer.send(reply);
            }
        })
    };
    let (well, guarded) = (redis("+PONG\r\n"), redis("-NOAUTH Authentication required.\r\n"));
    let loading = redis("-LOADING Redis is loading the dataset in memory\r\n");
    let router = Router::start(&checked("redis", "redis", &[well.addr, guarded.addr, loading.addr]));
    assert!(becomes(&router, loading.addr, false).last_error.unwrap().contains("-LOADING"));
    eventually("all are checked", || router.handle.health().iter().all(|health| health.checks > 4));
    assert!(health(&router, well.addr).up && health(&router, guarded.addr).up);
    assert_eq!(well.seen()[0], "PING");

    let memcached = |reply: &'static str| {
        FakeServer::start(move |peer| {
            use std::io::BufRead;
            let mut line = String::new();
            while peer.reader.read_line(&mut line).is_ok_and(|len| len > 0) {
                peer.note(std::mem::take(&mut line));
                peer.send(reply);
            }
        })
    };
    let (well, wrong) = (memcached("VERSION 1.6.40\r\n"), memcached("ERROR\r\n"));
    let router = Router::start(&checked("memcached", "memcached", &[well.addr, wrong.addr]));
    assert_eq!(becomes(&router, wrong.addr, false).last_error.unwrap(), "version: \"ERROR\"");
    assert!(health(&router, well.addr).up);
    assert_eq!(well.seen()[0], "version\r\n");

    let (open, mut closed) = (FakeServer::start(|_| {}), FakeServer::start(|_| {}));
    closed.kill();
    let router = Router::start(&checked("redis", "tcp", &[open.addr, closed.addr]));
    becomes(&router, closed.addr, false);
    assert!(health(&router, open.addr).up);
}

#[test]
fn a_command_says_whether_the_server_in_its_environment_is_well_and_ends_in_time() {
    let (a, b, c) = (FakeServer::echo("a"), FakeServer::echo("b"), FakeServer::echo("c"));
    let dir = std::env::temp_dir().join(format!("phalanx-check-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (script, started) = (dir.join("check"), dir.join("started"));
    // Of one the server is ill, of one the command hangs, together with what it started.
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = now ] || exit 9\ncase $PHALANX_SERVER_PORT in\n{}) exit 7;;\n\
         {}) sleep 1000 & echo $! >> {}; wait;;\nesac\n\
         [ $PHALANX_SERVICE/$PHALANX_SERVER = s/$PHALANX_SERVER_HOST:{} ]\n",
        b.addr.port(),
        c.addr.port(),
        started.display(),
        a.addr.port()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let check = format!("command:{} now", script.display());
    let text = checked("http", &check, &[a.addr, b.addr]) + &impatiently("http", &check, &[c.addr]);
    let router = Router::start(&text);
    assert!(becomes(&router, b.addr, false).last_error.unwrap().ends_with("exit status: 7"));
    assert_eq!(becomes(&router, c.addr, false).last_error.unwrap(), "no answer in 200ms");
    eventually("it is checked often", || health(&router, a.addr).checks > 2);
    assert!(health(&router, a.addr).up, "{:?}", health(&router, a.addr));
    eventually("one has hung", || std::fs::read_to_string(&started).is_ok_and(|pids| pids.ends_with('\n')));
    drop(router);
    let alive = |pid: &str| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.contains("(sleep)") && !state.contains(") Z ")
    };
    eventually("nothing is left of commands that were cut off", || {
        !std::fs::read_to_string(&started).unwrap().lines().any(alive)
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn servers_that_leave_a_group_are_checked_no_more() {
    let ((a, a_well), (b, _)) = (moody("a"), moody("b"));
    let text = grouped("http", "key = \"header:x-key\"");
    let router = Router::start(&format!("{text}\n[service.health]\ncheck = \"http:/health\"\n{FAST}"));
    let tell = |epoch, servers: &[SocketAddr]| {
        let clones = servers.iter().map(|addr| CloneAt::new("n", *addr)).collect();
        router.handle.update_group("g", &GroupClones { epoch, leader: Some(0), clones }).unwrap();
    };
    assert!(router.handle.health().is_empty());
    tell(1, &[a.addr, b.addr]);
    eventually("both are checked", || router.handle.health().len() == 2);
    a_well.store(false, Ordering::SeqCst);
    becomes(&router, a.addr, false);
    tell(2, &[b.addr]);
    eventually("one is checked", || router.handle.health().len() == 1);
    a_well.store(true, Ordering::SeqCst);
    tell(3, &[a.addr, b.addr]);
    eventually("it is a new one", || router.handle.health().len() == 2 && health(&router, a.addr).up);
    eventually("both answer", || readers(&router, 20) == ["a", "b"]);
}
