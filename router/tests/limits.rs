//! What a service says of its limits counts, for it alone, whatever the router's are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Read,
    thread,
    time::{Duration, Instant},
};

use common::{
    speech::{ALL, Speech},
    *,
};
use router::{Config, Surroundings};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn with(config: &str, limits: &str) -> String {
    format!("{config}\n[service.limits]\n{limits}\n")
}

/// A server that takes so long to answer.
fn slow(speech: Speech, ms: u64) -> FakeServer {
    speech.server("a", move || thread::sleep(MS(ms)))
}

#[test]
fn each_limit_has_a_range_and_a_protocol() {
    let server = [nobody()];
    let good = |protocol: &str| {
        let key = match protocol {
            "http" => "key = \"header:x-key\"",
            "frames" => "key = \"msgpack:/params/0\"",
            "tcp" => "key = \"sni\"",
            _ => "",
        };
        service(protocol, key, &[&server])
    };
    let parse = |text: &str| Config::parse(text, "router.toml".as_ref(), Surroundings::default());
    let times = "connect = \"20ms\"\nwait = \"10m\"\n";
    let all = "response = \"24h\"\nstall = \"1h\"\n";
    for (protocol, limits) in [
        ("http", "head = \"3s\"\nidle = \"5m\"\ntunnel = \"168h\"\nbody_key = \"1MiB\"\n"),
        ("redis", "value = \"512MiB\"\ncommand = \"1GiB\"\ntransaction = \"64MiB\"\n"),
        ("memcached", "value = \"512MiB\"\n"),
        ("frames", ""),
    ] {
        parse(&with(&good(protocol), &format!("{times}{all}{limits}"))).expect(protocol);
    }
    parse(&with(&good("tcp"), &format!("{times}head = \"1s\"\ntunnel = \"1.5h\""))).expect("tcp");
    parse(&with(&good("tcp"), "")).expect("or nothing at all");
    for (protocol, limit, says) in [
        ("http", "respond = \"1s\"", "unknown field `respond`, expected one of `head`, `idle`"),
        ("http", "response = \"0s\"", "\"0s\" is out of bounds: give 100ms to 24h"),
        ("http", "response = \"25h\"", "\"25h\" is out of bounds: give 100ms to 24h"),
        ("http", "response = \"none\"", "\"none\" is no time: write it like 500ms, 2s, 1m or 1h"),
        ("http", "response = 30", "invalid type: integer `30`"),
        ("http", "tunnel = \"169h\"", "give 100ms to 168h"),
        ("http", "body_key = \"1GiB\"", "\"1GiB\" is out of bounds: give 1KiB to 16MiB"),
        ("http", "body_key = \"1MB\"", "\"1MB\" is no size: write it like 512KiB, 8MiB or 1GiB"),
        ("http", "value = \"1MiB\"", "`value` is no limit of http: leave it out; it is for "),
        ("redis", "idle = \"1m\"", "`idle` is no limit of redis: leave it out; it is for http"),
        ("redis", "body_key = \"1MiB\"", "`body_key` is no limit of redis"),
        ("memcached", "head = \"1s\"", "`head` is no limit of memcached: leave it out; it is for http, tcp"),
        ("frames", "tunnel = \"1s\"", "`tunnel` is no limit of frames"),
        ("tcp", "response = \"1s\"", "`response` is no limit of tcp"),
        ("tcp", "stall = \"1s\"", "`stall` is no limit of tcp"),
        ("redis", "value = \"513MiB\"", "\"513MiB\" is out of bounds: give 1KiB to 512MiB"),
        ("redis", "value = \"2MiB\"\ncommand = \"1MiB\"", "`command` is less than `value`"),
        (
            "memcached",
            "command = \"1MiB\"",
            "`command` is no limit of memcached: leave it out; it is for redis",
        ),
        ("tcp", "wait = \"1ms\"", "\"1ms\" is out of bounds: give 20ms to 10m"),
    ] {
        let text = with(&good(protocol), limit);
        let error = parse(&text).expect_err(limit);
        assert_eq!(error.line(), Some(text.lines().count()), "{limit}: {error}");
        assert!(error.message().contains(says), "{limit}: {error}");
    }
}

#[test]
fn an_answer_may_take_as_long_as_its_service_says() {
    for speech in ALL {
        let server = slow(speech, 500);
        let config = speech.config("hedge = \"off\"", &[&[server.addr]]);
        let long = Router::with(&with(&config, "response = \"10s\""), 1, |limits| limits.response = MS(100));
        for read in [true, false] {
            let reply = speech.ask(&mut long.client(), read, "k");
            assert!(speech.answered(&reply, "k").is_some(), "{speech:?}: {reply}");
        }
        let short = Router::start(&with(&config, "response = \"100ms\""));
        let reply = speech.ask(&mut short.client(), false, "k");
        assert_eq!(speech.answered(&reply, "k"), None, "{speech:?}: {reply}");
        assert_eq!(short.stats().unknown, 1, "{speech:?}");
    }
}

#[test]
fn an_answer_on_a_shared_connection_may_take_as_long_too() {
    // The slow one has a lane to itself in the end, and its server is silent in the middle of the answer.
    let server = FakeServer::start(|peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
            thread::sleep(MS(500));
            peer.send("cd");
        }
    });
    let config = service("http", "key = \"header:x-key\"", &[&[server.addr]])
        .replace("\nservers", "\npipeline = 8\nservers");
    let router = Router::with(&with(&config, "stall = \"10s\""), 1, |limits| limits.stall = MS(100));
    assert_eq!(router.client().get("k").body, "abcd");
    let router = Router::start(&with(&config, "stall = \"100ms\""));
    let mut client = router.client();
    client.send("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n");
    assert!(client.try_response().is_none(), "cut in the middle");
}

#[test]
fn events_may_be_as_far_apart_as_their_service_says() {
    let server = FakeServer::start(|peer| {
        peer.request();
        peer.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: 1\n\n",
        );
        thread::sleep(MS(500));
        peer.send("data: 2\n\n");
    });
    for (stall, events) in [("10s", 2), ("100ms", 1)] {
        let own = format!("stall = \"{stall}\"");
        let router = Router::with(&with(&http(&[&[server.addr]]), &own), 1, |limits| limits.stall = MS(250));
        let mut client = router.client();
        client.send("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n");
        let mut text = vec![];
        let _cut = client.reader.read_to_end(&mut text); // with a reset, where it is
        assert_eq!(String::from_utf8(text).unwrap().matches("data: ").count(), events, "{stall}");
    }
}

#[test]
fn a_client_that_stops_in_its_body_is_not_waited_for_as_a_server_is() {
    let server = FakeServer::echo("a");
    let own = "response = \"1h\"\nstall = \"200ms\"";
    let router = Router::start(&with(&http(&[&[server.addr]]), own));
    let mut client = router.client();
    client.send("POST /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(client.response().status, 408);
}

#[test]
fn services_that_share_a_connection_have_limits_of_their_own() {
    let server = slow(Speech::Frames, 700);
    let one = Speech::Frames.config("hedge = \"off\"", &[&[server.addr]]);
    let two = one.replace("name = \"s\"", "name = \"other\"");
    assert_ne!(one, two);
    let router = Router::start(&(with(&one, "response = \"100ms\"") + &with(&two, "response = \"10s\"")));
    let other = router.handle.serving()[1].listen;
    let asked = thread::spawn(move || Speech::Frames.ask(&mut Client::connect(other), false, "k"));
    eventually("the server has it", || !server.seen().is_empty());
    let reply = Speech::Frames.ask(&mut router.client(), false, "j");
    assert_eq!(Speech::Frames.answered(&reply, "j"), None, "{reply}");
    let reply = asked.join().unwrap();
    assert!(Speech::Frames.answered(&reply, "k").is_some(), "{reply}");
}

#[test]
fn connections_and_waiting_take_as_long_as_the_service_says() {
    let (hole, _held) = black_hole();
    for speech in ALL {
        let own = "connect = \"50ms\"\nwait = \"100ms\"";
        let start = Instant::now();
        let router = Router::with(&with(&speech.config("", &[&[hole]]), own), 1, |limits| {
            (limits.connect, limits.wait) = (MS(60_000), MS(60_000));
        });
        let reply = speech.ask(&mut router.client(), true, "k");
        assert_eq!(speech.answered(&reply, "k"), None, "{speech:?}");
        // Nobody leads the group.
        let router = Router::with(&with(&speech.grouped(""), own), 1, |limits| limits.wait = MS(60_000));
        let reply = speech.ask(&mut router.client(), false, "k");
        assert_eq!(speech.answered(&reply, "k"), None, "{speech:?}");
        assert!(start.elapsed() < PATIENCE, "{speech:?}: {:?}", start.elapsed());
    }
}

#[test]
fn clients_are_waited_for_as_long_as_the_service_says() {
    let server = FakeServer::echo("a");
    let config = service("http", "key = \"json:/id\"", &[&[server.addr]]);
    // One limit at a time: those of whom one is tested have time for the rest.
    let router = |own| Router::start(&with(&config, own));
    assert!(router("idle = \"100ms\"").client().is_closed(), "it said nothing");
    let hasty = router("head = \"100ms\"");
    let mut client = hasty.client();
    client.send("GET /x HTTP/1.1\r\n");
    assert_eq!(client.response().status, 408);
    let router = router("body_key = \"1KiB\"");
    let body = format!("{{\"x\":\"{}\",\"id\":1}}", "x".repeat(1024));
    let mut client = router.client();
    client.send(format!(
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(client.response().status, 413);

    let tcp = service("tcp", "key = \"bytes:0+4\"", &[&[server.addr]]);
    let hasty = Router::start(&with(&tcp, "head = \"100ms\""));
    let mut text = vec![];
    assert!(hasty.client().reader.read_to_end(&mut text).is_err(), "reset, for its key did not come");
    let router = Router::start(&with(&tcp, "tunnel = \"200ms\""));
    let mut client = router.client();
    client.send("GET /x HTTP/1.1\r\nHost: h\r\n");
    assert!(client.reader.read_to_end(&mut text).is_err(), "reset, for nothing moved");
    assert_eq!(server.connections(), 1);
}

#[test]
fn changed_limits_are_taken_over_by_who_is_connected() {
    let server = slow(Speech::Redis, 500);
    let config = with(&redis(&[&[server.addr]]), "response = \"10s\"");
    let router = Router::start(&config);
    let mut client = router.client();
    assert!(Speech::Redis.read(&mut client, "a") == "a");
    let reload = |text: &str| {
        let config = Config::parse(text, "test.toml".as_ref(), Surroundings::default()).unwrap();
        assert_eq!(router.handle.reload(&config).unwrap().changed.len(), 1);
    };
    // Its connection to the server goes on, too.
    reload(&config.replace("10s", "100ms"));
    assert!(Speech::Redis.ask(&mut client, false, "b").contains("unknown"));
    reload(&config);
    assert!(Speech::Redis.read(&mut client, "c") == "a");

    let server = FakeServer::echo("a");
    let config = http(&[&[server.addr]]);
    let router = Router::start(&config);
    let mut client = router.client();
    assert_eq!(client.get("k").status, 200);
    let fresh =
        Config::parse(&with(&config, "idle = \"100ms\""), "test.toml".as_ref(), Surroundings::default());
    router.handle.reload(&fresh.unwrap()).unwrap();
    assert!(client.is_closed(), "it is idle already");
}
