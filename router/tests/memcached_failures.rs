//! memcached when servers fail: what is sent again, what waits, and what the client is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::*;

fn set(key: &str, value: &str) -> String {
    format!("set {key} 0 0 {}\r\n{value}\r\n", value.len())
}

fn value(key: &str, value: &str) -> String {
    format!("VALUE {key} 0 {}\r\n{value}\r\n", value.len())
}

/// Answers a `get` with values that say this name, everything else with `STORED`.
fn answer(name: &str, text: &str) -> String {
    let mut words = text.split(' ');
    if words.next() == Some("get") {
        words.map(|key| value(key, name)).collect::<String>() + "END\r\n"
    } else {
        "STORED\r\n".into()
    }
}

fn echo(name: &'static str) -> FakeServer {
    FakeServer::start(move |peer| {
        while let Some(text) = peer.text() {
            peer.send(&answer(name, &text));
        }
    })
}

const UNKNOWN: &str =
    "SERVER_ERROR phalanx: outcome unknown: the server failed with this update under way\r\n";

#[test]
fn reads_move_to_another_clone_and_updates_are_not_repeated() {
    // Takes five commands, answers the first, and dies.
    let dying = FakeServer::start(|peer| {
        for _ in 0..5 {
            peer.text();
        }
        peer.send("VALUE 1 0 1\r\na\r\nEND\r\n");
    });
    let well = echo("b");
    let router = Router::start(
        &memcached(&[&[dying.addr, well.addr]])
            .replace("[service.pmap]", "reads = \"leader\"\n[service.pmap]"),
    );
    let mut client = router.client();
    client.send(format!(
        "get 1\r\n{}set k 0 0 1 noreply\r\nx\r\ngat 0 k\r\nmg k v T0\r\nmn\r\n",
        set("k", "2")
    ));
    assert_eq!(client.text(), value("1", "a") + "END\r\n", "what was answered is answered");
    // Who wants no reply gets none, whatever became of it.
    assert_eq!([client.line(), client.line(), client.line()], [UNKNOWN, UNKNOWN, UNKNOWN]);
    assert_eq!(client.line(), "MN\r\n");
    assert_eq!(well.seen(), Vec::<String>::new());
    assert_eq!(router.stats().unknown, 4);

    let dying = FakeServer::start(|peer| {
        peer.text();
        peer.send("VALUE k 0 100\r\nhalf a val");
    });
    let router = Router::start(&memcached(&[&[dying.addr, well.addr]]));
    for _ in 0..20 {
        assert_eq!(router.client().ask("get k\r\n"), value("k", "b") + "END\r\n");
    }
}

#[test]
fn replies_stay_in_order_when_reads_are_repeated() {
    // Answers three commands of each connection and hangs up: every batch is cut somewhere.
    let flaky = FakeServer::start(|peer| {
        for _ in 0..3 {
            let Some(text) = peer.text() else { return };
            peer.send(&answer("x", &text));
        }
    });
    let well = echo("x");
    let router = Router::start(&memcached(&[&[flaky.addr, well.addr]]));
    let mut client = router.client();
    for round in 0..30 {
        client.send((0..20).map(|n| format!("get {round}.{n}\r\n")).collect::<String>());
        for n in 0..20 {
            assert_eq!(client.text(), value(&format!("{round}.{n}"), "x") + "END\r\n");
        }
    }
}

#[test]
fn updates_wait_in_order_for_the_next_leader() {
    let (mut old, new) = (echo("old"), echo("new"));
    let router = Router::start(&grouped("memcached", ""));
    router.handle.update_group("g", &view(7, Some(0), &[old.addr, new.addr])).unwrap();
    let mut client = router.client();
    assert_eq!(client.ask(&set("k", "0")), "STORED\r\n");
    router.sees_the_end_of(&mut old);
    let mut clients: Vec<Client> = (0..5).map(|_| router.client()).collect();
    for (id, client) in clients.iter_mut().enumerate() {
        let quiet = |n| if n % 2 == 0 { " noreply" } else { "" };
        client.send((0..20).map(|n| format!("set {id}.{n} 0 0 1{}\r\nx\r\n", quiet(n))).collect::<String>());
    }
    eventually("all wait", || router.stats().waited == 100);
    router.handle.update_group("g", &view(9, Some(0), &[new.addr])).unwrap();
    for client in &mut clients {
        assert!((0..10).all(|_| client.line() == "STORED\r\n"));
        assert_eq!(client.ask("mn\r\n"), "MN\r\n", "no reply more than were asked for");
    }
    // What the server saw of each client is in that client's order.
    for id in 0..5 {
        let of_client: Vec<String> =
            new.seen().into_iter().filter(|seen| seen.contains(&format!(" {id}."))).collect();
        let in_order: Vec<String> = (0..20).map(|n| format!("set {id}.{n} 0 0 1|x")).collect();
        assert_eq!(of_client, in_order);
    }
}

#[test]
fn waiting_is_bounded_in_time_and_number() {
    let wait = Duration::from_secs(2);
    once_within(wait + Duration::from_millis(600), || {
        let router = Router::with(&grouped("memcached", ""), 1, |limits| {
            (limits.wait, limits.waiting) = (wait, 3);
        });
        router.handle.update_group("g", &view(7, None, &[])).unwrap();
        let mut client = router.client();
        let start = Instant::now();
        client.send(set("a", "1").repeat(3));
        eventually("three wait", || router.stats().waited == 3);
        assert_eq!(
            router.client().ask(&set("a", "1")),
            "SERVER_ERROR phalanx: too many commands wait for a leader; nothing was done\r\n"
        );
        assert!(router.stats().waiting == 3 && client.has_nothing(), "and they wait on");
        for _ in 0..3 {
            let expected = "SERVER_ERROR phalanx: the partition's RACS has no leader; nothing was done\r\n";
            assert_eq!(client.line(), expected);
        }
        let took = start.elapsed();
        assert!(took >= wait, "{took:?}");
        took
    });
}

#[test]
fn a_command_over_many_keys_fails_as_a_whole() {
    let well = echo("well");
    let router = Router::with(&memcached(&[&[well.addr], &[nobody()], &[well.addr]]), 1, |limits| {
        limits.wait = Duration::from_millis(200);
    });
    let mut client = router.client();
    let keys: Vec<String> = (0..30).map(|n| format!("k{n}")).collect();
    let found: Vec<&String> =
        keys.iter().filter(|key| client.ask(&format!("get {key}\r\n")).ends_with("END\r\n")).collect();
    assert!(found.len() > 10 && found.len() < 30, "{found:?}");
    // A miss would be a lie about the keys of the RACS that does not answer.
    let all = client.ask(&format!("get {}\r\n", keys.join(" ")));
    assert!(all.starts_with("SERVER_ERROR phalanx: ") && all.ends_with("; nothing was done\r\n"), "{all}");
    let some: Vec<&str> = found.iter().map(|key| key.as_str()).collect();
    let values: String = some.iter().map(|key| value(key, "well")).collect();
    assert_eq!(client.ask(&format!("get {}\r\n", some.join(" "))), values + "END\r\n");
    // So with what goes everywhere; one of the parts is that of the RACS nobody answers for.
    let all = client.ask("flush_all\r\n");
    assert!(all.starts_with("SERVER_ERROR phalanx: "), "{all}");
}

#[test]
fn a_server_whose_replies_do_not_fit_is_cut_off() {
    for (ask, nonsense) in [
        ("get k\r\n", "hello\r\n"),
        ("get k\r\n", "STORED\r\n"),
        ("get k\r\n", "VALUE other 0 1\r\nx\r\nEND\r\n"),
        ("get k\r\n", "VALUE k 0 1\r\nxy\r\nEND\r\n"),
        ("get k\r\n", "END\n"),
        ("get k\r\n", "ERROR Too many open connections\r\n"),
        ("mg k v\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n"),
    ] {
        let server = FakeServer::start(move |peer| {
            while peer.text().is_some() {
                peer.send(nonsense);
            }
        });
        let well = FakeServer::start(|peer| {
            while let Some(text) = peer.text() {
                peer.send(if text.starts_with("mg") { "HD\r\n" } else { "END\r\n" });
            }
        });
        let router = Router::start(&memcached(&[&[server.addr, well.addr]]));
        for _ in 0..5 {
            let reply = router.client().ask(ask);
            assert!(reply == "END\r\n" || reply == "HD\r\n", "{nonsense:?}: {reply:?}");
        }
    }
    // A second reply to one command must not answer the next.
    let server = FakeServer::start(|peer| {
        while let Some(text) = peer.text() {
            peer.send(&(answer("x", &text) + "END\r\n"));
        }
    });
    let router = Router::start(&memcached(&[&[server.addr]]));
    let mut client = router.client();
    for n in 0..20 {
        let reply = client.ask(&format!("get {n}\r\n"));
        let right = value(&n.to_string(), "x") + "END\r\n";
        assert!(reply == right || reply.starts_with("SERVER_ERROR phalanx: "), "{reply}");
    }
    // A server that takes the data for commands answers more than once.
    let server = FakeServer::start(|peer| {
        while peer.text().is_some() {
            peer.send("CLIENT_ERROR bad command line format\r\nERROR\r\n");
        }
    });
    let router = Router::start(&memcached(&[&[server.addr]]));
    assert_eq!(router.client().ask(&set("k", "v")), UNKNOWN);
}

#[test]
fn a_silent_server_is_given_up() {
    let silent = FakeServer::start(|peer| while peer.text().is_some() {});
    let well = echo("b");
    let router = Router::with(&memcached(&[&[silent.addr, well.addr]]), 1, |limits| {
        limits.response = Duration::from_secs(2);
    });
    for _ in 0..10 {
        assert_eq!(router.client().ask("get k\r\n"), value("k", "b") + "END\r\n");
    }
    assert_eq!(router.client().ask(&set("k", "v")), UNKNOWN);
}

#[test]
fn clients_beyond_the_limit_are_told_in_memcacheds_words_and_draining_ends_the_others() {
    let well = FakeServer::start(|peer| {
        while let Some(text) = peer.text() {
            thread::sleep(Duration::from_millis(100));
            peer.send(&answer("b", &text));
        }
    });
    let router = Router::with(&memcached(&[&[well.addr]]), 1, |limits| limits.clients = 2);
    let (mut busy, mut idle) = (router.client(), router.client());
    assert_eq!(idle.ask("mn\r\n"), "MN\r\n");
    busy.send(set("a", "1") + "set a 0 0 1 noreply\r\nx\r\nget a\r\n");
    eventually("it is under way", || !well.seen().is_empty());
    assert_eq!(router.client().line(), "ERROR Too many open connections\r\n");
    let handle = router.handle.clone();
    let down = thread::spawn(move || handle.shutdown(PATIENCE));
    assert!(idle.is_closed());
    assert_eq!(busy.line(), "STORED\r\n");
    assert_eq!(busy.text(), value("a", "b") + "END\r\n", "what was under way ends");
    assert!(busy.is_closed());
    down.join().unwrap();
}

#[test]
fn a_clone_that_cannot_serve_is_avoided_and_not_for_what_it_says_of_an_object() {
    let run = |said: &'static str| {
        let refusing = FakeServer::start(move |peer| {
            while peer.text().is_some() {
                peer.send(said);
            }
        });
        let well = FakeServer::start(|peer| {
            while let Some(text) = peer.text() {
                thread::sleep(Duration::from_millis(1));
                peer.send(&answer("b", &text));
            }
        });
        let router = Router::with(&memcached(&[&[refusing.addr, well.addr]]), 1, |limits| {
            patient(limits);
            limits.avoid = Duration::from_secs(600);
        });
        let mut client = router.client();
        let heard: Vec<String> = (0..200).map(|n| client.ask(&format!("get {n}\r\n"))).collect();
        assert_eq!(client.ask(&set("k", "x")), said, "an update is its leader's");
        assert!(!well.seen().iter().any(|seen| seen.starts_with("set")));
        let good =
            heard.iter().zip(0..).filter(|(heard, n)| **heard == value(&n.to_string(), "b") + "END\r\n");
        (good.count(), router.server_stats(refusing.addr).avoided_by)
    };
    assert_eq!(run("SERVER_ERROR backend is away\r\n"), (200, 1));
    for said in
        ["SERVER_ERROR object too large for cache\r\n", "SERVER_ERROR out of memory storing object\r\n"]
    {
        let (good, avoided_by) = run(said);
        assert_eq!(avoided_by, 0, "{said}");
        assert!(good < 200, "{said}");
    }
}
