//! The keys that are asked for most are known, whatever protocol they are asked in.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use router::HotKeys;

/// The hottest key's text and count, and the count of all.
fn hottest(hot: &HotKeys) -> (String, u64, u64) {
    let top = hot.top(1)[0];
    assert_eq!(hot.total_of(top.partition).map(|total| total >= top.count), Some(true));
    let text = top.prefix.map(|prefix| String::from_utf8(prefix.bytes().into()).unwrap());
    (text.unwrap_or_default(), top.count, hot.total())
}

#[test]
fn http_keys_are_counted_over_all_workers_and_hidden_unless_asked_for() {
    let server = FakeServer::echo("a");
    let shown = service("http", "key = \"header:x-key\"\nhot_keys = \"shown\"", &[&[server.addr]]);
    let hidden = http(&[&[server.addr]]);
    let off = shown.replace("shown", "off");
    for (config, told) in [(&shown, "hot"), (&hidden, "")] {
        let router = Router::with(config, 2, |_| {});
        for at in 0..30 {
            assert_eq!(router.client().get("hot").status, 200);
            assert_eq!(router.client().get(&format!("k{at}")).status, 200);
        }
        assert_eq!(hottest(&router.stats().hot), (told.into(), 30, 60));
    }
    let router = Router::start(&off);
    router.client().get("hot");
    assert_eq!(router.stats().hot, HotKeys::default());
}

#[test]
fn keys_of_redis_commands_are_counted_one_by_one_and_by_what_places_them() {
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            match args[0].as_str() {
                "MGET" => {
                    peer.send(&format!("*{}\r\n{}", args.len() - 1, "$1\r\nx\r\n".repeat(args.len() - 1)))
                }
                _ => peer.send("$1\r\nx\r\n"),
            }
        }
    });
    let router = Router::start(&service("redis", "hot_keys = \"shown\"", &[&[server.addr], &[server.addr]]));
    let mut client = router.client();
    for at in 0..10 {
        client.command(&["GET", &format!("{{user7}}.{at}")]);
        client.command(&["MGET", "a", "b", "{user7}.x"]);
    }
    assert_eq!(hottest(&router.stats().hot), ("user7".into(), 20, 40));
}

#[test]
fn keys_of_memcached_commands_are_counted_too() {
    let server = FakeServer::start(|peer| {
        while peer.text().is_some() {
            peer.send("END\r\n");
        }
    });
    let router =
        Router::start(&service("memcached", "hot_keys = \"shown\"", &[&[server.addr], &[server.addr]]));
    let mut client = router.client();
    for _ in 0..5 {
        client.ask("get hot\r\n");
        client.ask("get a b hot c\r\n");
    }
    assert_eq!(hottest(&router.stats().hot), ("hot".into(), 10, 25));
}
