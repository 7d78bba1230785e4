//! What waits, watches or listens: through the router as against a server, and nobody else notices.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{real::*, *};
use router::{Config, Surroundings};

fn words(line: &str) -> String {
    command(&line.split(' ').collect::<Vec<_>>())
}

fn say(client: &mut Client, line: &str) -> String {
    client.send(words(line));
    client.reply()
}

/// Sends all at once, and returns the replies.
fn batch(client: &mut Client, lines: &[&str]) -> Vec<String> {
    client.send(lines.iter().map(|line| words(line)).collect::<String>());
    lines.iter().map(|_| client.reply()).collect()
}

const CROSSED: &str = "-CROSSSLOT Keys in request don't hash to the same slot\r\n";

/// How many clients wait on these servers.
fn blocked(servers: &[RealServer]) -> usize {
    let one = |server: &RealServer| -> usize {
        let info = say(&mut Client::connect(server.addr), "INFO clients");
        let line = info.lines().find_map(|line| line.strip_prefix("blocked_clients:")).unwrap();
        line.parse().unwrap()
    };
    servers.iter().map(one).sum()
}

#[test]
fn who_waits_holds_up_nobody_and_gets_what_comes() {
    let Some((servers, router)) = cluster() else { return };
    let (mut waiter, mut other) = (router.client(), router.client());
    for round in 0..10 {
        let (key, value) = (format!("q{round}"), format!("v{round}"));
        waiter.send(
            words(&format!("SET before{round} 1")) + &words(&format!("BLPOP {key} 0")) + &words("ECHO after"),
        );
        eventually("it waits", || blocked(&servers) == 1);
        assert_eq!(say(&mut other, &format!("GET {key}x")), "$-1\r\n");
        assert_eq!(say(&mut other, &format!("RPUSH {key} {value}")), ":1\r\n");
        assert_eq!(waiter.reply(), "+OK\r\n");
        assert_eq!(waiter.reply(), array(&[&key, &value]));
        assert_eq!(waiter.reply(), bulk("after"));
    }
    assert_eq!(say(&mut other, "BLPOP a b c d e f g 0"), CROSSED);
    assert_eq!(say(&mut other, "RPUSH {t}l 1 2 3"), ":3\r\n");
    assert_eq!(batch(&mut other, &["BLMOVE {t}l {t}m LEFT RIGHT 0", "LRANGE {t}m 0 -1"])[1], array(&["1"]));
    assert_eq!(say(&mut other, "BLMPOP 0.1 1 {t}l LEFT"), format!("*2\r\n{}{}", bulk("{t}l"), array(&["2"])));
    assert_eq!(say(&mut other, "BLPOP {t}l x"), "-ERR timeout is not a float or out of range\r\n");
    // Inside a transaction nothing waits.
    assert_eq!(batch(&mut other, &["MULTI", "BLPOP {t}none 0", "EXEC"])[2], "*1\r\n*-1\r\n");
    // A stream: what does not block shares a connection, what does has one.
    waiter.send(words("XREAD BLOCK 0 STREAMS s $"));
    eventually("it waits", || blocked(&servers) == 1);
    assert_eq!(say(&mut other, "XREAD STREAMS s 0"), "*-1\r\n");
    say(&mut other, "XADD s 1-1 f v");
    assert!(waiter.reply().contains("1-1"));
    assert!(say(&mut other, "XREAD COUNT 1 STREAMS s 0").contains("1-1"));
}

#[test]
fn time_limits_of_commands_are_their_own() {
    let Some(server) = RealServer::start() else { return };
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| {
        limits.response = Duration::from_millis(300);
        limits.stall = Duration::from_millis(300);
    });
    let mut client = router.client();
    let start = Instant::now();
    // Half a command behind it is no reason to cut it off.
    client.send(words("BLPOP none 1.2") + "*1\r\n$4\r\n");
    assert_eq!(client.reply(), "*-1\r\n");
    assert!((1200..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    client.send("PING\r\n");
    assert_eq!(client.reply(), "+PONG\r\n");
}

#[test]
fn who_leaves_while_it_waits_takes_nothing_with_it() {
    let Some((servers, router)) = cluster() else { return };
    for half in [false, true] {
        let mut waiter = router.client();
        waiter.send(words("BLPOP list 0") + &words("SET smuggled 1"));
        eventually("it waits", || blocked(&servers) == 1);
        if half {
            waiter.stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(waiter.is_closed());
        }
        drop(waiter);
        eventually("it waits no more", || blocked(&servers) == 0);
    }
    let mut client = router.client();
    assert_eq!(
        batch(&mut client, &["RPUSH list a", "LLEN list", "EXISTS smuggled"]),
        [":1\r\n", ":1\r\n", ":0\r\n"]
    );
}

/// More than is read ahead of what waits must not hide that its client has gone.
#[test]
fn who_leaves_with_much_behind_what_waits_is_noticed() {
    let Some((servers, router)) = cluster() else { return };
    let behind = words("GET a").repeat(10_000);
    // All of it is read, or as much as is read ahead.
    for behind in [behind.clone(), words("GET a").repeat(14_000)] {
        let mut waiter = router.client();
        waiter.send(words("BLPOP list 0") + &behind);
        eventually("it waits", || blocked(&servers) == 1);
        drop(waiter);
        eventually("it waits no more", || blocked(&servers) == 0);
    }
    let mut waiter = router.client();
    waiter.send(words("BLPOP list 0") + &behind);
    eventually("it waits", || blocked(&servers) == 1);
    thread::sleep(Duration::from_millis(1200)); // it is looked after, and not taken for gone
    let mut client = router.client();
    assert_eq!(say(&mut client, "RPUSH list a"), ":1\r\n");
    assert_eq!(waiter.reply(), array(&["list", "a"]));
    assert!((0..10_000).all(|_| waiter.reply() == "$-1\r\n"));
}

/// Commands over the client's own connection and over shared ones keep their order.
#[test]
fn transactions_with_and_without_watched_keys_keep_their_order() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    for n in 0..200 {
        let set = format!("SET {{t}}z {n}");
        let lines =
            ["WATCH {t}q", "MULTI", "GET {t}q", "EXEC", "MULTI", &set, "EXEC", "WATCH {t}q", "GET {t}z"];
        let replies = batch(&mut client, &lines);
        assert_eq!(replies[8], bulk(&n.to_string()), "{replies:?}");
        let lines = ["INCR {t}c", "EXEC", "MULTI", "INCR {t}c", "EXEC"];
        let replies = batch(&mut client, &[&["UNWATCH", "WATCH {t}w", "MULTI"], &lines[..]].concat());
        let counted = |n: usize| format!("*1\r\n:{n}\r\n");
        assert_eq!([&replies[4], &replies[7]], [&counted(2 * n + 1), &counted(2 * n + 2)]);
    }
    let mut client = router.client();
    client.send(words("HELLO 3"));
    assert!(client.reply().starts_with('%'));
    for n in 0..100 {
        let channel = format!("c{n}");
        client.send(words(&format!("SUBSCRIBE {channel}")) + &words("MULTI"));
        client.send(words(&format!("PUBLISH {channel} m")) + &words("EXEC"));
        // The message itself comes before the end of the transaction, or behind it.
        let replies: Vec<String> = (0..5).map(|_| client.reply()).collect();
        assert!(replies[0].contains("subscribe") && replies.contains(&"*1\r\n:1\r\n".into()), "{replies:?}");
    }
}

/// Between two commands, nothing hangs on a connection that was needed before.
#[test]
fn who_had_a_connection_of_its_own_goes_over_to_another_configuration() {
    let (Some(old), Some(new)) = (RealServer::start(), RealServer::start()) else { return };
    let router = Router::start(&redis(&[&[old.addr]]));
    let before: [&[&str]; 3] =
        [&["BLPOP q 0.01"], &["WATCH x", "MULTI", "GET x", "EXEC"], &["WATCH x", "UNWATCH"]];
    let mut clients = before.map(|lines| {
        let mut client = router.client();
        batch(&mut client, lines);
        client
    });
    let config =
        Config::parse(&redis(&[&[new.addr]]), "test.toml".as_ref(), Surroundings::default()).unwrap();
    router.handle.reload(&config).unwrap();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(say(client, &format!("RPUSH l{n} v")), ":1\r\n");
        assert_eq!(say(client, &format!("BLPOP l{n} 0")), array(&[&format!("l{n}"), "v"]));
        assert_eq!(batch(client, &["WATCH y", "MULTI", &format!("SET y {n}"), "EXEC"])[3], "*1\r\n+OK\r\n");
    }
    let mut direct = Client::connect(new.addr);
    assert_eq!(say(&mut direct, "GET y"), bulk("2"));
    assert_eq!(say(&mut Client::connect(old.addr), "DBSIZE"), ":0\r\n");
}

#[test]
fn what_was_watched_and_changed_stops_the_transaction() {
    let Some((_servers, router)) = cluster() else { return };
    let (mut client, mut other) = (router.client(), router.client());
    let untouched =
        ["SET {t}a 1", "WATCH {t}a", "GET {t}a", "GET elsewhere", "MULTI", "INCR {t}a", "EXEC", "GET {t}a"];
    for _ in 0..20 {
        let replies = batch(&mut client, &untouched);
        assert_eq!(
            replies,
            [
                "+OK\r\n",
                "+OK\r\n",
                "$1\r\n1\r\n",
                "$-1\r\n",
                "+OK\r\n",
                "+QUEUED\r\n",
                "*1\r\n:2\r\n",
                "$1\r\n2\r\n"
            ]
        );
    }
    assert_eq!(batch(&mut client, &["WATCH {t}a", "WATCH {t}b"]), ["+OK\r\n", "+OK\r\n"]);
    assert_eq!(say(&mut client, "WATCH c"), CROSSED);
    assert_eq!(say(&mut other, "SET {t}a 7"), "+OK\r\n");
    assert_eq!(
        batch(&mut client, &["MULTI", "SET {t}a 8", "EXEC", "GET {t}a"])[2..],
        ["*-1\r\n", "$1\r\n7\r\n"]
    );
    // After that nothing is watched.
    assert_eq!(batch(&mut client, &["MULTI", "SET {t}a 8", "EXEC"])[2], "*1\r\n+OK\r\n");
    for end in ["UNWATCH", "DISCARD"] {
        say(&mut client, "WATCH {t}a");
        if end == "DISCARD" {
            say(&mut client, "MULTI");
        }
        assert_eq!(say(&mut client, end), "+OK\r\n");
        say(&mut other, "SET {t}a 9");
        assert_eq!(batch(&mut client, &["MULTI", "GET {t}a", "EXEC"])[2], "*1\r\n$1\r\n9\r\n", "{end}");
    }
    // An empty transaction tells whether anything changed.
    assert_eq!(batch(&mut client, &["WATCH {t}a", "MULTI", "EXEC"])[2], "*0\r\n");
    say(&mut client, "WATCH {t}a");
    say(&mut other, "SET {t}a 10");
    assert_eq!(batch(&mut client, &["MULTI", "EXEC"])[1], "*-1\r\n");
    // One that was refused ends the watch, too.
    say(&mut client, "WATCH {t}a");
    let replies = batch(&mut client, &["MULTI", "SET far 1", "EXEC"]);
    assert_eq!(replies[1], CROSSED);
    assert!(replies[2].starts_with("-EXECABORT"));
    say(&mut other, "SET {t}a 11");
    assert_eq!(batch(&mut client, &["MULTI", "GET {t}a", "EXEC"])[2], "*1\r\n$2\r\n11\r\n");
    assert_eq!(
        batch(&mut client, &["WATCH {t}a", "MULTI", "WATCH {t}a"])[2],
        "-ERR WATCH inside MULTI is not allowed\r\n"
    );
    assert_eq!(say(&mut client, "RESET"), "+RESET\r\n");
    assert_eq!(say(&mut client, "EXEC"), "-ERR EXEC without MULTI\r\n");
}

fn confirmed(kind: &str, name: &str, count: u32) -> String {
    format!("*3\r\n{}{}:{count}\r\n", bulk(kind), bulk(name))
}

#[test]
fn messages_reach_those_who_subscribed_wherever_they_are_published() {
    let Some((_servers, router)) = cluster() else { return };
    let (mut listener, mut speaker) = (router.client(), router.client());
    listener.send(words("SUBSCRIBE c1 c2 c3 c4 c5"));
    for n in 1..=5 {
        assert_eq!(listener.reply(), confirmed("subscribe", &format!("c{n}"), n));
    }
    assert_eq!(say(&mut listener, "PSUBSCRIBE d*"), confirmed("psubscribe", "d*", 6));
    assert_eq!(say(&mut listener, "SSUBSCRIBE s1"), confirmed("ssubscribe", "s1", 1));
    let get = say(&mut listener, "GET a");
    assert!(get.starts_with("-ERR Can't execute 'get': only (P|S)SUBSCRIBE"), "{get}");
    assert_eq!(say(&mut listener, "PING"), "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    for n in 0..50 {
        let (c, d) = (format!("c{}", n % 5 + 1), format!("d{n}"));
        assert_eq!(say(&mut speaker, &format!("PUBLISH {c} {n}")), ":1\r\n");
        assert_eq!(
            listener.reply(),
            format!("*3\r\n{}{}{}", bulk("message"), bulk(&c), bulk(&n.to_string()))
        );
        assert_eq!(say(&mut speaker, &format!("PUBLISH {d} {n}")), ":1\r\n");
        let expected =
            format!("*4\r\n{}{}{}{}", bulk("pmessage"), bulk("d*"), bulk(&d), bulk(&n.to_string()));
        assert_eq!(listener.reply(), expected);
    }
    assert_eq!(say(&mut speaker, "SPUBLISH s1 x"), ":1\r\n");
    assert_eq!(listener.reply(), format!("*3\r\n{}{}{}", bulk("smessage"), bulk("s1"), bulk("x")));
    assert_eq!(say(&mut speaker, "PUBLISH nobody x"), ":0\r\n");
    assert_eq!(say(&mut speaker, "PUBSUB NUMPAT"), ":1\r\n");
    assert_eq!(say(&mut speaker, "PUBSUB CHANNELS"), array(&["c1", "c2", "c3", "c4", "c5"]));
    assert_eq!(
        say(&mut speaker, "PUBSUB NUMSUB c1 x"),
        format!("*4\r\n{}:1\r\n{}:0\r\n", bulk("c1"), bulk("x"))
    );
    // Back to other commands, one by one and all at once.
    assert_eq!(say(&mut listener, "UNSUBSCRIBE c1 none"), confirmed("unsubscribe", "c1", 5));
    assert_eq!(listener.reply(), confirmed("unsubscribe", "none", 5));
    assert_eq!(say(&mut listener, "PUNSUBSCRIBE"), confirmed("punsubscribe", "d*", 4));
    assert_eq!(say(&mut listener, "SUNSUBSCRIBE"), confirmed("sunsubscribe", "s1", 0));
    listener.send(words("UNSUBSCRIBE") + &words("SET x 1") + &words("UNSUBSCRIBE"));
    for n in 2..=5 {
        assert_eq!(listener.reply(), confirmed("unsubscribe", &format!("c{n}"), 5 - n));
    }
    assert_eq!(listener.reply(), "+OK\r\n");
    assert_eq!(listener.reply(), confirmed("unsubscribe", "nil", 0));
    eventually("nobody listens", || say(&mut speaker, "PUBSUB CHANNELS") == "*0\r\n");
    assert_eq!(say(&mut listener, "SUBSCRIBE again"), confirmed("subscribe", "again", 1));
    assert_eq!(say(&mut listener, "RESET"), "+RESET\r\n");
    assert_eq!(say(&mut listener, "GET x"), bulk("1"));
    eventually("nobody listens", || say(&mut speaker, "PUBSUB CHANNELS") == "*0\r\n");
}

#[test]
fn in_resp3_messages_come_beside_replies() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    say(&mut client, "HELLO 3");
    client.send(words("SUBSCRIBE c") + &words("PUBLISH c m") + &words("GET a"));
    assert_eq!(client.reply(), ">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
    let mut rest = [client.reply(), client.reply(), client.reply()];
    let place = |text| rest.iter().position(|reply| reply == text);
    assert!(place(":1\r\n") < place("_\r\n"));
    rest.sort_unstable();
    assert_eq!(rest, [":1\r\n", ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n", "_\r\n"]);
    assert!(say(&mut client, "HELLO 2").starts_with("-ERR phalanx: 'hello' is refused"));
    assert_eq!(say(&mut client, "UNSUBSCRIBE"), ">3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n");
    assert_eq!(say(&mut client, "PUBLISH c m"), ":0\r\n");
}

#[test]
fn notifications_of_keys_come_from_wherever_the_keys_are() {
    let options = ["--notify-keyspace-events", "KEA"];
    let servers: Option<Vec<_>> = (0..2).map(|_| RealServer::start_with(nobody(), &options)).collect();
    let Some(servers) = servers else { return };
    let router = Router::start(&redis(&[&[servers[0].addr], &[servers[1].addr]]));
    let (mut listener, mut client) = (router.client(), router.client());
    assert_eq!(
        say(&mut listener, "SUBSCRIBE __keyevent@0__:set"),
        confirmed("subscribe", "__keyevent@0__:set", 1)
    );
    for n in 0..20 {
        say(&mut client, &format!("SET k{n} v"));
        assert!(listener.reply().contains(&format!("\r\nk{n}\r\n")));
    }
}

#[test]
fn when_a_server_dies_those_on_it_are_told_what_that_means() {
    let Some(server) = RealServer::start() else { return };
    let addr = server.addr;
    let router = Router::with(&redis(&[&[addr]]), 1, |limits| limits.wait = Duration::from_millis(500));
    let [mut waiter, mut reader, mut watcher, mut listener] = [(); 4].map(|()| router.client());
    say(&mut watcher, "WATCH a");
    say(&mut listener, "SUBSCRIBE c");
    waiter.send(words("BLPOP none 0"));
    reader.send(words("XREAD BLOCK 0 STREAMS s $"));
    eventually("they wait", || blocked(std::slice::from_ref(&server)) == 2);
    drop(server);
    let unknown = "-ERR phalanx: outcome unknown: the server failed with this update under way\r\n";
    assert_eq!(waiter.reply(), unknown);
    let read = reader.reply();
    assert_eq!(
        read,
        "-TRYAGAIN phalanx: the connection to the partition's leader failed; nothing was done\r\n"
    );
    assert!(listener.is_closed(), "messages may be lost, and only this tells so");
    let Some(_server) = RealServer::start_with(addr, &[]) else { return };
    assert_eq!(batch(&mut watcher, &["MULTI", "SET a 1", "EXEC", "GET a"])[2..], ["*-1\r\n", "$-1\r\n"]);
    assert_eq!(batch(&mut waiter, &["RPUSH l 1", "BLPOP l 0"])[1], array(&["l", "1"]));
}

#[test]
fn a_new_leader_ends_what_hangs_on_the_old_one() {
    let servers: Option<Vec<_>> = (0..2).map(|_| RealServer::start()).collect();
    let Some(servers) = servers else { return };
    let addrs = [servers[0].addr, servers[1].addr];
    let router = Router::start(&grouped("redis", ""));
    router.handle.update_group("g", &view(7, Some(0), &addrs)).unwrap();
    let [mut waiter, mut watcher, mut listener, mut idle] = [(); 4].map(|()| router.client());
    say(&mut watcher, "WATCH a");
    say(&mut listener, "SUBSCRIBE c");
    say(&mut idle, "BLPOP none 0.01");
    waiter.send(words("BLPOP list 0"));
    eventually("it waits", || blocked(&servers) == 1);
    router.handle.update_group("g", &view(8, Some(1), &addrs)).unwrap();
    assert!(waiter.reply().contains("outcome unknown"));
    assert!(listener.is_closed());
    assert_eq!(batch(&mut watcher, &["MULTI", "SET a 1", "EXEC"])[2], "*-1\r\n");
    assert_eq!(blocked(&servers), 0);
    idle.send(words("BLPOP list 0"));
    eventually("it waits", || blocked(&servers[1..]) == 1);
    say(&mut waiter, "RPUSH list x");
    assert_eq!(idle.reply(), array(&["list", "x"]));
    // Without a leader it waits for one, for a while.
    router.handle.update_group("g", &view(9, None, &addrs)).unwrap();
    waiter.send(words("BLPOP other 0"));
    thread::sleep(Duration::from_millis(100));
    router.handle.update_group("g", &view(10, Some(0), &addrs)).unwrap();
    eventually("it waits", || blocked(&servers[..1]) == 1);
}

#[test]
fn connections_of_clients_own_are_few_and_not_for_ever() {
    let Some(server) = RealServer::start() else { return };
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| {
        limits.private = 2;
        limits.private_idle = Duration::from_secs(2);
        limits.subscriptions = 200;
    });
    let many = "-TRYAGAIN phalanx: too many clients have connections of their own; nothing was done\r\n";
    let [mut a, mut b, mut c] = [(); 3].map(|()| router.client());
    assert_eq!(say(&mut a, "WATCH x"), "+OK\r\n");
    assert_eq!(say(&mut b, "BLPOP none 0.01"), "*-1\r\n");
    assert_eq!(say(&mut c, "BLPOP none 0.01"), many);
    assert_eq!(say(&mut c, "SUBSCRIBE c"), many);
    assert_eq!(say(&mut c, "GET x"), "$-1\r\n", "it is not subscribed");
    eventually("one was kept without use for long enough", || say(&mut c, "BLPOP none 0.01") == "*-1\r\n");
    drop(a);
    eventually("the other one has gone", || say(&mut b, "SUBSCRIBE c") != many);
    let name = "n".repeat(200);
    assert_eq!(say(&mut b, &format!("SUBSCRIBE {name}")), "-ERR phalanx: too many subscriptions\r\n");
}

/// The time after which an unused connection ends once went on while a command waited there.
#[test]
fn who_waits_again_waits_as_long_as_it_said() {
    let Some(server) = RealServer::start() else { return };
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| {
        limits.private_idle = Duration::from_millis(300);
    });
    let mut client = router.client();
    assert_eq!(say(&mut client, "BLPOP none 0.01"), "*-1\r\n");
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    assert_eq!(say(&mut client, "BLPOP none 1"), "*-1\r\n");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(router.server_stats(server.addr).failures, 0);
}

#[test]
fn who_does_not_read_its_messages_is_cut_off() {
    let Some(server) = RealServer::start() else { return };
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| limits.messages = 1 << 20);
    let (mut lazy, mut speaker) = (router.client(), router.client());
    say(&mut lazy, "SUBSCRIBE c");
    let message = "m".repeat(100_000);
    eventually("it is cut off", || say(&mut speaker, &format!("PUBLISH c {message}")) == ":0\r\n");
}

/// A server that puts what it is told into every reply, and now and then dies over it.
fn nonce_server(addr: std::net::SocketAddr, deaths: Arc<AtomicU64>) -> FakeServer {
    FakeServer::start_at(addr, move |peer| {
        let mut queued: Option<Vec<String>> = None;
        while let Some(args) = peer.command() {
            let last = args.last().unwrap().clone();
            let beat = deaths.fetch_add(1, Ordering::SeqCst);
            if beat % 197 == 196 {
                return;
            }
            let reply = match (args[0].to_uppercase().as_str(), &mut queued) {
                ("MULTI", _) => {
                    queued = Some(vec![]);
                    "+OK\r\n".into()
                }
                ("EXEC", _) => array(&queued.take().unwrap().iter().map(String::as_str).collect::<Vec<_>>()),
                (_, Some(queued)) => {
                    queued.push(last);
                    "+QUEUED\r\n".into()
                }
                ("WATCH" | "UNWATCH", _) => "+OK\r\n".into(),
                ("BLPOP", _) => {
                    thread::sleep(Duration::from_millis(beat % 5));
                    array(&[&args[1], &args[1]])
                }
                ("SUBSCRIBE", _) => {
                    confirmed("subscribe", &last, 1)
                        + &format!("*3\r\n{}{}{}", bulk("message"), bulk(&last), bulk(&last))
                }
                ("UNSUBSCRIBE", _) => confirmed("unsubscribe", &last, 0),
                _ => bulk(&last),
            };
            peer.send(&reply);
        }
    })
}

#[test]
fn nobody_gets_what_is_another_s_however_servers_die() {
    let deaths = Arc::new(AtomicU64::new(0));
    let servers: Vec<FakeServer> = (0..3).map(|_| nonce_server(nobody(), deaths.clone())).collect();
    let addrs: Vec<_> = servers.iter().map(|server| [server.addr]).collect();
    let racs: Vec<&[_]> = addrs.iter().map(|addr| &addr[..]).collect();
    let router = Router::with(&redis(&racs), 2, |limits| limits.wait = Duration::from_secs(2));
    let (addr, stop) = (router.addr(), Arc::new(Mutex::new(false)));
    let good: Arc<Counts<5>> = Arc::default();
    let clients: Vec<_> = (0..6u64)
        .map(|id| {
            let (stop, good) = (stop.clone(), good.clone());
            thread::spawn(move || {
                let mut rng = membership_types::Rng::seeded(id);
                let (mut client, mut number) = (Client::connect(addr), 0u64);
                // What a reply may be besides the right one.
                let excused =
                    |reply: &str| reply.starts_with("-TRYAGAIN") || reply.contains("outcome unknown");
                while !*stop.lock().unwrap() {
                    number += 1;
                    let n = format!("{id}.{number}");
                    let tagged = format!("{{{n}}}");
                    let kind = rng.below(5) as usize;
                    let (text, expected): (String, Vec<String>) = match kind {
                        0 => {
                            let keys: Vec<String> = (0..5).map(|at| format!("{n}.{at}")).collect();
                            let gets = keys.iter().map(|key| words(&format!("GET {key}"))).collect();
                            (gets, keys.iter().map(|key| bulk(key)).collect())
                        }
                        1 => {
                            let lines = [
                                "MULTI".into(),
                                format!("SET {tagged} {n}"),
                                format!("GET {tagged}"),
                                "EXEC".into(),
                            ];
                            let last = array(&[&n, &tagged]);
                            let replies = ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", &last].map(str::to_owned);
                            (lines.iter().map(|line: &String| words(line)).collect(), replies.into())
                        }
                        2 => {
                            let lines = [
                                format!("WATCH {tagged}"),
                                format!("GET {tagged}x"),
                                "MULTI".into(),
                                format!("SET {tagged} {n}"),
                                "EXEC".into(),
                                format!("GET {n}"),
                            ];
                            let (value, last) = (bulk(&format!("{tagged}x")), array(&[&n]));
                            let replies = ["+OK\r\n", &value, "+OK\r\n", "+QUEUED\r\n", &last, &bulk(&n)]
                                .map(str::to_owned);
                            (lines.iter().map(|line: &String| words(line)).collect(), replies.into())
                        }
                        3 => (
                            words(&format!("BLPOP {n} 0")) + &words(&format!("GET {n}")),
                            vec![array(&[&n, &n]), bulk(&n)],
                        ),
                        _ => {
                            let message = format!("*3\r\n{}{}{}", bulk("message"), bulk(&n), bulk(&n));
                            (
                                words(&format!("SUBSCRIBE {n}")),
                                vec![confirmed("subscribe", &n, 1), message, confirmed("unsubscribe", &n, 0)],
                            )
                        }
                    };
                    client.send(&text);
                    for (at, expected) in expected.iter().enumerate() {
                        if kind == 4 && at == 2 {
                            // The server may be dead already, and so this connection.
                            let _ = std::io::Write::write_all(
                                &mut client.stream,
                                words(&format!("UNSUBSCRIBE {n}")).as_bytes(),
                            );
                        }
                        let Some(reply) = client.try_reply() else {
                            assert_eq!(kind, 4, "only who listens is cut off");
                            client = Client::connect(addr);
                            break;
                        };
                        let nil = kind == 2 && at == 4 && reply == "*-1\r\n";
                        if reply == *expected {
                            good.add(kind);
                        } else {
                            assert!(excused(&reply) || nil, "{kind}.{at}: {reply:?} instead of {expected:?}");
                        }
                    }
                }
            })
        })
        .collect();
    let died = || deaths.load(Ordering::SeqCst) / 197;
    let is_enough = || good.get().iter().all(|good| *good > 50) && died() > 5;
    for_at_least(Duration::from_secs(2), || {
        is_enough() || clients.iter().any(thread::JoinHandle::is_finished)
    });
    *stop.lock().unwrap() = true;
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(is_enough(), "the test must have tested something: {:?}, {} deaths", good.get(), died());
}
