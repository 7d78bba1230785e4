//! More requests than servers can answer: some are answered, in the time that is promised, and the others hear at
//! once that they are too many. None is lost, and none is done in secret.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeServer, Router, command, eventually, service,
    speech::{ALL, Speech},
    view,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Works on one request at a time, `each` long, and notes how long each took indeed.
fn slow(speech: Speech, name: &'static str, each: Duration, took: &Arc<Mutex<Vec<Duration>>>) -> FakeServer {
    let (one, took) = (Mutex::new(()), Arc::clone(took));
    speech.server(name, move || {
        let _turn = one.lock().unwrap();
        let start = Instant::now();
        thread::sleep(each);
        took.lock().unwrap().push(start.elapsed());
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Whether the answer says, in the protocol's own way, that nothing was done and that the client may try again.
fn is_refusal(speech: Speech, reply: &str) -> bool {
    let text = match speech {
        Speech::Http => {
            assert!(reply.starts_with("503 Some(\"1\")") && reply.contains("\"retry\":true"), "{reply}");
            reply
        }
        Speech::Redis => reply.strip_prefix("-TRYAGAIN phalanx: ").unwrap_or_default(),
        Speech::Memcached => reply.strip_prefix("SERVER_ERROR phalanx: ").unwrap_or_default(),
        Speech::Frames => {
            assert!(reply.contains("\"phalanx\": \"busy\"") && reply.contains("\"retry\": true"), "{reply}");
            reply
        }
    };
    text.contains("as many requests under way as they may")
        || text.contains("too many requests are under way")
}

/// Two servers that answer 50 requests a second each, and forty clients without patience. What their answers may take
/// is told by what this machine needs at the same time for others that wait for nothing.
fn overload(speech: Speech, limit: &str, most: usize) {
    let turns = Arc::default();
    let servers = [slow(speech, "a", MS(20), &turns), slow(speech, "b", MS(20), &turns)];
    let addrs = [servers[0].addr, servers[1].addr];
    let router = Router::start(&speech.config(&format!("{limit}\nhedge = \"off\"\n"), &[&addrs]));
    let quick = speech.server("quick", || {});
    let unlimited = Router::start(&speech.config("", &[&[quick.addr]]));
    let over = AtomicBool::new(false);
    let (outcomes, beside): (Vec<(bool, Duration)>, Vec<Duration>) = thread::scope(|scope| {
        let one = |id: usize| {
            let mut client = router.client();
            scope.spawn(move || {
                let mut outcomes = vec![];
                for n in 0..12 {
                    let (key, start) = (format!("{id}.{n}"), Instant::now());
                    let reply = speech.ask(&mut client, !(id + n).is_multiple_of(3), &key);
                    let answered = speech.answered(&reply, &key).is_some();
                    assert!(answered || is_refusal(speech, &reply), "{reply}");
                    outcomes.push((answered, start.elapsed()));
                    if !answered {
                        thread::sleep(MS(20));
                    }
                }
                outcomes
            })
        };
        let threads: Vec<_> = (0..40).map(one).collect();
        let mut client = unlimited.client();
        let over = &over;
        let beside = scope.spawn(move || {
            let mut times = vec![];
            while !over.load(Ordering::SeqCst) {
                let start = Instant::now();
                assert_eq!(speech.read(&mut client, "k"), "quick");
                times.push(start.elapsed());
                thread::sleep(MS(5));
            }
            times
        });
        let joined: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        (joined.into_iter().flat_map(Result::unwrap).collect(), beside.join().unwrap())
    });
    let times = |answered| -> Vec<Duration> {
        outcomes.iter().filter(|one| one.0 == answered).map(|one| one.1).collect()
    };
    let (answered, refused) = (times(true), times(false));
    let stats = router.stats();
    assert!(answered.len() > 12 && refused.len() > 40, "{} {}", answered.len(), refused.len());
    let (count, worst) = (answered.len(), answered.iter().max().unwrap());
    let (beside, turn) = (median(beside), median(turns.lock().unwrap().clone()));
    let (typical, refusal) = (median(answered.clone()), median(refused.clone()));
    println!(
        "{speech:?} {limit}: {count} answered, median {typical:?}, worst {worst:?}; {} refused, median {refusal:?}; \
         turns of {turn:?}, others answered in {beside:?}",
        refused.len(),
    );
    // Without limit all forty would be there at once, and wait for twenty turns or, if they are updates, twice that.
    assert!(typical < (turn + beside) * most as u32 + MS(150), "{typical:?}, turns of {turn:?}");
    assert!(refusal < MS(20) + beside, "{refusal:?}, others answered in {beside:?}");
    assert_eq!(stats.overloaded as usize, refused.len());
    assert_eq!((stats.unavailable, stats.unknown, stats.in_flight), (0, 0, 0));
    // Each server saw what was answered, once.
    assert_eq!(servers[0].seen().len() + servers[1].seen().len(), count);
    // When the load is gone, everybody is served.
    let mut client = router.client();
    assert!((0..10).all(|n| speech.answered(&speech.ask(&mut client, n & 1 == 0, "k"), "k").is_some()));
}

#[test]
fn a_server_gets_no_more_than_it_may_have() {
    for speech in ALL {
        overload(speech, "max_in_flight_per_server = 4", 4);
    }
}

#[test]
fn a_service_takes_no_more_than_it_may_have() {
    for speech in ALL {
        overload(speech, "max_in_flight = 6", 6);
    }
}

#[test]
fn a_queue_for_a_leader_is_as_long_as_the_service_says() {
    for speech in ALL {
        let router = Router::start(&speech.grouped("max_waiting = 2\n"));
        router.handle.update_group("g", &view(7, None, &[])).unwrap();
        let server = speech.server("a", || {});
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..2)
                .map(|n| {
                    let router = &router;
                    scope.spawn(move || speech.ask(&mut router.client(), false, &format!("w{n}")))
                })
                .collect();
            eventually("two wait", || router.stats().waiting == 2);
            let start = Instant::now();
            let reply = speech.ask(&mut router.client(), false, "k");
            assert!(speech.answered(&reply, "k").is_none() && reply.contains("wait for a leader"), "{reply}");
            assert!(start.elapsed() < MS(1000));
            router.handle.update_group("g", &view(8, Some(0), &[server.addr])).unwrap();
            for (n, one) in waiting.into_iter().enumerate() {
                speech.whose(&one.join().unwrap(), &format!("w{n}"));
            }
        });
    }
}

#[test]
fn reads_go_to_the_clone_that_has_room() {
    for speech in ALL {
        let held = Arc::new(Mutex::new(()));
        let guard = held.lock().unwrap();
        let gate = Arc::clone(&held);
        let (full, free) =
            (speech.server("full", move || drop(gate.lock().unwrap())), speech.server("free", || {}));
        let config =
            speech.config("max_in_flight_per_server = 1\nhedge = \"off\"\n", &[&[full.addr, free.addr]]);
        let router = Router::start(&config);
        thread::scope(|scope| {
            let update = scope.spawn(|| speech.ask(&mut router.client(), false, "u"));
            eventually("the leader is busy", || full.seen().len() == 1);
            let mut client = router.client();
            for n in 0..20 {
                assert_eq!(speech.read(&mut client, &n.to_string()), "free");
            }
            let reply = speech.ask(&mut client, false, "other");
            assert!(is_refusal(speech, &reply), "nobody stands in for the leader: {reply}");
            drop(guard);
            speech.whose(&update.join().unwrap(), "u");
        });
        assert!(!full.seen().iter().any(|seen| seen.contains("other")), "a refused update is never sent");
    }
}

/// A server that takes every update of Redis' and memcached's here, and keeps whoever asks it for `held` waiting,
/// and who wants to wait for ever.
fn taker(redis: bool, held: &Arc<Mutex<()>>) -> FakeServer {
    let held = Arc::clone(held);
    FakeServer::start(move |peer| {
        if !redis {
            while peer.text().is_some() {
                peer.send("OK\r\n");
            }
            return;
        }
        while let Some(args) = peer.command() {
            match args[0].as_str() {
                "DEL" => peer.send(&format!(":{}\r\n", args.len() - 1)),
                "MGET" => peer.send(&format!("*{}\r\n{}", args.len() - 1, "$-1\r\n".repeat(args.len() - 1))),
                "INCR" => {
                    drop(held.lock().unwrap());
                    peer.send(":1\r\n");
                }
                "BLPOP" => {}
                _ => peer.send("+OK\r\n"),
            }
        }
    })
}

#[test]
fn a_command_in_parts_is_let_in_as_a_whole_or_not_at_all() {
    let held = Arc::new(Mutex::new(()));
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let with_keys = |name: &str, value: bool| {
        let mut words = vec![name];
        for key in &keys {
            words.push(key);
            words.extend(value.then_some("v"));
        }
        command(&words)
    };
    for limit in [1, 2u64] {
        let servers = [true; 3].map(|redis| taker(redis, &held));
        let racs: Vec<_> = servers.iter().map(|server| vec![server.addr]).collect();
        let racs: Vec<_> = racs.iter().map(|racs| &racs[..]).collect();
        let router = Router::start(&service("redis", &format!("max_in_flight = {limit}"), &racs));
        let mut client = router.client();
        // The limit is less than their parts are.
        for (text, reply) in [
            (with_keys("DEL", false), ":20\r\n"),
            (with_keys("MSET", true), "+OK\r\n"),
            (command(&["FLUSHALL"]), "+OK\r\n"),
        ] {
            client.send(&text);
            assert_eq!(client.reply(), reply);
        }
        client.send(with_keys("MGET", false));
        assert!(client.reply().starts_with("*20\r\n$-1\r\n"));
        // Others have all the room there is.
        let guard = held.lock().unwrap();
        let mut others: Vec<_> = (0..limit).map(|_| router.client()).collect();
        others.iter_mut().for_each(|other| other.send(command(&["INCR", "n"])));
        eventually("they are under way", || router.stats().in_flight == limit);
        let seen = || servers.iter().map(|server| server.seen().len()).sum::<usize>();
        eventually("one has it", || servers.iter().any(|server| server.seen().contains(&"INCR n".into())));
        let before = seen();
        for text in [
            with_keys("DEL", false),
            with_keys("MSET", true),
            command(&["FLUSHALL"]),
            command(&["SCAN", "0"]),
        ] {
            client.send(&text);
            let reply = client.reply();
            assert_eq!(reply, "-TRYAGAIN phalanx: too many requests are under way; nothing was done\r\n");
        }
        assert!(seen() < before + limit as usize, "of these nothing was sent");
        assert_eq!(router.stats().overloaded, 4);
        drop(guard);
        others.iter_mut().for_each(|other| assert_eq!(other.reply(), ":1\r\n"));
        eventually("all is over", || router.stats().in_flight == 0);
    }
    let servers = [false; 3].map(|redis| taker(redis, &held));
    let racs: Vec<_> = servers.iter().map(|server| vec![server.addr]).collect();
    let racs: Vec<_> = racs.iter().map(|racs| &racs[..]).collect();
    let router = Router::start(&service("memcached", "max_in_flight = 2", &racs));
    let mut client = router.client();
    client.send("flush_all\r\n");
    assert_eq!(client.line(), "OK\r\n");
}

#[test]
fn an_update_of_which_a_part_was_done_is_not_called_undone() {
    let held = Arc::new(Mutex::new(()));
    let servers = [taker(true, &held), taker(true, &held)];
    let config = service("redis", "max_in_flight_per_server = 1", &[&[servers[0].addr], &[servers[1].addr]]);
    let router = Router::start(&config);
    let guard = held.lock().unwrap();
    let mut other = router.client();
    other.send(command(&["INCR", "n"]));
    eventually("one is busy", || servers.iter().any(|server| !server.seen().is_empty()));
    let mut client = router.client();
    assert_eq!(
        client.command(&["FLUSHALL"]),
        "-ERR phalanx: a part of it was done: the partition's servers have as many requests under way as they may\r\n"
    );
    assert!(servers.iter().any(|server| server.seen() == ["FLUSHALL"]));
    drop(guard);
    assert_eq!(other.reply(), ":1\r\n");
}

#[test]
fn commands_behind_a_watch_count_and_those_that_may_wait_do_not() {
    for limit in ["max_in_flight_per_server = 1", "max_in_flight = 1"] {
        let held = Arc::new(Mutex::new(()));
        let server = taker(true, &held);
        let router = Router::start(&service("redis", limit, &[&[server.addr]]));
        let mut waiter = router.client();
        waiter.send(command(&["BLPOP", "list", "0"]));
        eventually("it waits", || server.seen().contains(&"BLPOP list 0".into()));
        let [mut busy, mut late, mut leaver, mut other] = [(); 4].map(|()| router.client());
        for client in [&mut busy, &mut late, &mut leaver] {
            assert_eq!(client.command(&["WATCH", "n"]), "+OK\r\n");
        }
        assert_eq!(late.command(&["MULTI"]), "+OK\r\n");
        assert_eq!(late.command(&["INCR", "n"]), "+QUEUED\r\n");

        let guard = held.lock().unwrap();
        busy.send(command(&["INCR", "n"]));
        eventually("it is under way", || router.stats().in_flight == 1);
        eventually("its server has it", || server.seen().contains(&"INCR n".into()));
        for reply in [other.command(&["INCR", "n"]), other.command(&["WATCH", "n"]), late.command(&["EXEC"])]
        {
            assert!(is_refusal(Speech::Redis, &reply), "{limit}: {reply}");
        }
        assert_eq!(leaver.command(&["UNWATCH"]), "+OK\r\n", "that makes room");
        drop(guard);
        assert_eq!(busy.reply(), ":1\r\n");
        eventually("all is over", || router.stats().in_flight == 0);
        assert_eq!(other.command(&["INCR", "n"]), ":1\r\n");
        assert_eq!(late.command(&["EXEC"]), "-ERR EXEC without MULTI\r\n");
        assert!(!server.seen().contains(&"EXEC".into()), "of what was refused nothing was sent");
        assert_eq!(router.stats().overloaded, 3);
    }
}

#[test]
fn a_command_that_waits_for_its_connection_counts_once() {
    let router = Router::start(&service("redis", "max_in_flight_per_server = 1", &[&[common::nobody()]]));
    let (mut first, mut second) = (router.client(), router.client());
    first.send(command(&["WATCH", "n"]));
    eventually("it is under way", || router.stats().in_flight == 1);
    let reply = second.command(&["WATCH", "n"]);
    assert!(is_refusal(Speech::Redis, &reply) && reply.contains("as many requests"), "{reply}");
    drop(first);

    let server = taker(true, &Arc::default());
    let router = Router::start(&service("redis", "", &[&[server.addr]]));
    assert_eq!(router.client().command(&["WATCH", "n"]), "+OK\r\n");
    assert_eq!(router.server_stats(server.addr).requests, 1);
}
