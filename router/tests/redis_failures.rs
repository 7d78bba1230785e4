//! Redis when servers fail: what is sent again, what waits, and what the client is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::*;

/// Answers every command with its name and the command's last argument.
fn echo(name: &'static str) -> FakeServer {
    FakeServer::start(move |peer| {
        while let Some(args) = peer.command() {
            let text = format!("{name}:{}", args.last().unwrap());
            peer.send(&format!("${}\r\n{text}\r\n", text.len()));
        }
    })
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

const UNKNOWN: &str = "-ERR phalanx: outcome unknown: the server failed with this update under way\r\n";

#[test]
fn reads_move_to_another_clone_and_updates_are_not_repeated() {
    // Takes four commands, answers the first, and dies.
    let dying = FakeServer::start(|peer| {
        for _ in 0..4 {
            peer.command();
        }
        peer.send("$3\r\none\r\n");
    });
    let well = echo("b");
    let router = Router::start(
        &(redis(&[&[dying.addr, well.addr]]) + "\n")
            .replace("[service.pmap]", "reads = \"leader\"\n[service.pmap]"),
    );
    let mut client = router.client();
    client.send(
        command(&["GET", "1"])
            + &command(&["SET", "k", "2"])
            + &command(&["SET", "k", "3"])
            + &command(&["SET", "k", "4"]),
    );
    assert_eq!(client.reply(), "$3\r\none\r\n", "what was answered is answered");
    assert_eq!([client.reply(), client.reply(), client.reply()], [UNKNOWN, UNKNOWN, UNKNOWN]);
    assert_eq!(well.seen(), Vec::<String>::new());
    assert_eq!(router.stats().unknown, 3);

    let dying = FakeServer::start(|peer| {
        peer.command();
        peer.send("$100\r\nhalf a repl");
    });
    let router = Router::start(&redis(&[&[dying.addr, well.addr]]));
    for n in 0..20 {
        let n = n.to_string();
        assert_eq!(router.client().command(&["GET", &n]), bulk(&format!("b:{n}")));
    }
}

#[test]
fn a_clone_that_is_well_again_gets_its_share_of_reads_again() {
    let answers = |name: &'static str| {
        move |peer: &mut Peer| {
            while peer.command().is_some() {
                peer.send(&format!("+{name}\r\n"));
            }
        }
    };
    let (mut a, b) = (FakeServer::start(answers("a")), FakeServer::start(answers("b")));
    let addr = a.addr;
    let router = Router::with(&redis(&[&[b.addr, addr]]), 1, |limits| {
        limits.avoid = Duration::from_millis(10);
    });
    let mut client = router.client();
    let mut ask = |times| {
        client.send(command(&["GET", "k"]).repeat(times));
        (0..times).filter(|_| client.reply() == "+a\r\n").count()
    };
    assert!((0..200).any(|_| ask(1) > 0));
    a.kill();
    assert!((0..200).all(|_| ask(1) == 0));
    let _a = FakeServer::start_at(addr, answers("a"));
    // Many in a row: if each had to prove anew that it lives, there would be one a second. And at once, since then what
    // is in flight counts, and not who happens to be slow on a busy machine.
    eventually("it gets reads again", || ask(200) > 20);
}

#[test]
fn replies_stay_in_order_when_reads_are_repeated() {
    // Answers three commands of each connection and hangs up: every batch is cut somewhere.
    let flaky = FakeServer::start(|peer| {
        for _ in 0..3 {
            let Some(args) = peer.command() else { return };
            peer.send(&bulk(&format!("x:{}", args[1])));
        }
    });
    let well = echo("x");
    let router = Router::start(&redis(&[&[flaky.addr, well.addr]]));
    let mut client = router.client();
    for round in 0..30 {
        client.send((0..20).map(|n| command(&["GET", &format!("{round}.{n}")])).collect::<String>());
        for n in 0..20 {
            assert_eq!(client.reply(), bulk(&format!("x:{round}.{n}")));
        }
    }
}

#[test]
fn updates_wait_in_order_for_the_next_leader() {
    let (mut old, new) = (echo("old"), echo("new"));
    let router = Router::start(&grouped("redis", ""));
    router.handle.update_group("g", &view(7, Some(0), &[old.addr, new.addr])).unwrap();
    let mut client = router.client();
    assert_eq!(client.command(&["SET", "k", "0"]), bulk("old:0"));
    // So these find nobody who listens, and wait.
    router.sees_the_end_of(&mut old);
    let mut clients: Vec<Client> = (0..5).map(|_| router.client()).collect();
    for (id, client) in clients.iter_mut().enumerate() {
        client.send((0..20).map(|n| command(&["SET", "k", &format!("{id}.{n}")])).collect::<String>());
    }
    eventually("all wait", || router.stats().waited == 100);
    // A further one must not overtake them.
    clients[0].send(command(&["SET", "k", "0.20"]));
    eventually("it waits, too", || router.stats().waited == 101);
    router.handle.update_group("g", &view(9, Some(0), &[new.addr])).unwrap();
    for (id, client) in clients.iter_mut().enumerate() {
        for n in 0..20 + usize::from(id == 0) {
            assert_eq!(client.reply(), bulk(&format!("new:{id}.{n}")));
        }
    }
    // What the server saw of each client is in that client's order.
    for id in 0..5 {
        let of_client: Vec<String> =
            new.seen().into_iter().filter(|seen| seen.contains(&format!(" {id}."))).collect();
        let in_order: Vec<String> = (0..of_client.len()).map(|n| format!("SET k {id}.{n}")).collect();
        assert_eq!(of_client, in_order);
    }
}

#[test]
fn waiting_is_bounded_in_time_and_number() {
    let wait = Duration::from_secs(2);
    once_within(wait + Duration::from_millis(300), || {
        let router = Router::with(&grouped("redis", ""), 1, |limits| {
            (limits.wait, limits.waiting) = (wait, 3);
        });
        router.handle.update_group("g", &view(7, None, &[])).unwrap();
        let mut client = router.client();
        let start = Instant::now();
        client.send(command(&["SET", "a", "1"]).repeat(3));
        eventually("three wait", || router.stats().waited == 3);
        assert_eq!(
            router.client().command(&["SET", "a", "1"]),
            "-TRYAGAIN phalanx: too many commands wait for a leader; nothing was done\r\n"
        );
        assert!(router.stats().waiting == 3 && client.has_nothing(), "and they wait on");
        for _ in 0..3 {
            assert_eq!(
                client.reply(),
                "-TRYAGAIN phalanx: the partition's RACS has no leader; nothing was done\r\n"
            );
        }
        let took = start.elapsed();
        assert!(took >= wait, "{took:?}");
        assert_eq!(router.stats().unavailable, 4);
        took
    });
}

#[test]
fn a_static_leader_that_comes_back_gets_the_updates_that_waited() {
    let addr = nobody();
    let router = Router::start(&redis(&[&[addr]]));
    let mut client = router.client();
    client.send(command(&["SET", "k", "1"]) + &command(&["SET", "k", "2"]));
    thread::sleep(Duration::from_millis(300));
    let server = FakeServer::start_at(addr, |peer| {
        while peer.command().is_some() {
            peer.send("+back\r\n");
        }
    });
    assert_eq!([client.reply(), client.reply()], ["+back\r\n", "+back\r\n"]);
    assert_eq!(server.seen(), ["SET k 1", "SET k 2"]);
}

#[test]
fn reads_fail_at_once_when_no_clone_answers() {
    let router = Router::start(&redis(&[&[nobody(), nobody()]]));
    let mut client = router.client();
    let start = Instant::now();
    for _ in 0..3 {
        assert!(client.command(&["GET", "k"]).starts_with("-TRYAGAIN phalanx: "));
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(client.command(&["PING"]), "+PONG\r\n", "the client's connection goes on");
}

#[test]
fn a_stuck_server_does_not_stop_the_replies_of_the_others() {
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let gate2 = gate.clone();
    let stuck = FakeServer::start(move |peer| {
        while let Some(args) = peer.command() {
            drop(gate2.lock().unwrap());
            peer.send(&bulk(&args[1]));
        }
    });
    let quick = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            peer.send(&bulk(&args[1]));
        }
    });
    let router = Router::start(&redis(&[&[stuck.addr], &[quick.addr]]));
    // Find out which keys live where, without touching the stuck one.
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let mut probe: Vec<Client> = keys.iter().map(|_| router.client()).collect();
    for (client, key) in probe.iter_mut().zip(&keys) {
        client.send(command(&["GET", key]));
    }
    eventually("some arrive at each", || !stuck.seen().is_empty() && !quick.seen().is_empty());
    thread::sleep(Duration::from_millis(100));
    let quick_key = quick.seen()[0].split(' ').nth(1).unwrap().to_owned();
    let stuck_key = stuck.seen()[0].split(' ').nth(1).unwrap().to_owned();

    let mut waiting = router.client();
    waiting.send(command(&["GET", &stuck_key]) + &command(&["GET", &quick_key]));
    let mut other = router.client();
    for _ in 0..100 {
        assert_eq!(other.command(&["GET", &quick_key]), bulk(&quick_key));
    }
    waiting.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(
        std::io::Read::read(&mut waiting.stream, &mut [0]).is_err(),
        "its second reply waits for its first"
    );
    drop(held);
    waiting.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!([waiting.reply(), waiting.reply()], [bulk(&stuck_key), bulk(&quick_key)]);
}

#[test]
fn a_silent_server_is_given_up() {
    let silent = FakeServer::start(|peer| while peer.command().is_some() {});
    let well = echo("b");
    let router = Router::with(&redis(&[&[silent.addr, well.addr]]), 1, |limits| {
        limits.response = Duration::from_secs(2);
    });
    for _ in 0..10 {
        assert_eq!(router.client().command(&["GET", "k"]), bulk("b:k"));
    }
    assert_eq!(router.client().command(&["SET", "k", "v"]), UNKNOWN);
}

#[test]
fn a_server_that_speaks_nonsense_or_unasked_is_cut_off() {
    for nonsense in ["hello\r\n", "+OK\n", "$3\r\nabcd\r\n", ">1\r\n+push\r\n"] {
        let server = FakeServer::start(move |peer| {
            while peer.command().is_some() {
                peer.send(nonsense);
            }
        });
        let well = echo("b");
        let router = Router::start(&redis(&[&[server.addr, well.addr]]));
        for _ in 0..5 {
            assert_eq!(router.client().command(&["GET", "k"]), bulk("b:k"), "{nonsense:?}");
        }
    }
    // A second reply to one command must not answer the next.
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            peer.send(&(bulk(&args[1]) + "+poison\r\n"));
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    for n in 0..20 {
        let n = n.to_string();
        let reply = client.command(&["GET", &n]);
        assert!(reply == bulk(&n) || reply.starts_with("-TRYAGAIN"), "{reply}");
    }
}

#[test]
fn a_client_that_does_not_read_is_held_back_and_costs_the_others_nothing() {
    let value = "v".repeat(100_000);
    let reply = bulk(&value);
    let server = FakeServer::start(move |peer| {
        while peer.command().is_some() {
            peer.send(&reply);
        }
    });
    let router =
        Router::with(&redis(&[&[server.addr]]), 1, |limits| limits.stall = Duration::from_millis(500));
    let mut lazy = router.client();
    lazy.stream.set_nonblocking(true).unwrap();
    // Asks for a gigabyte and reads nothing.
    let batch = command(&["GET", "k"]).repeat(10_000);
    let sent = std::io::Write::write(&mut lazy.stream, batch.as_bytes()).unwrap();
    assert!(sent > 10_000);
    let mut other = router.client();
    for _ in 0..20 {
        assert_eq!(other.command(&["GET", "k"]).len(), 100_011);
    }
    let asked = server.seen().len();
    assert!(asked < 1_500, "it is not asked for more than may be under way: {asked}");
    eventually("the lazy client is cut off", || router.stats().clients == 1);
}

#[test]
fn parts_of_a_split_command_fail_one_by_one() {
    let dying = FakeServer::start(|peer| drop(peer.command()));
    let well = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            match args[0].as_str() {
                "MGET" => {
                    peer.send(&(format!("*{}\r\n", args.len() - 1) + &"$2\r\nok\r\n".repeat(args.len() - 1)))
                }
                "MSET" => peer.send("+OK\r\n"),
                _ => peer.send(&format!(":{}\r\n", args.len() - 1)),
            }
        }
    });
    let router = Router::start(&redis(&[&[dying.addr], &[well.addr]]));
    let mut client = router.client();
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let reply = client.command(&mget);
    assert!(reply.starts_with("*20\r\n") && reply.contains("$2\r\nok\r\n"), "{reply}");
    assert!(reply.contains("-TRYAGAIN phalanx: "), "{reply}");
    let mset: Vec<&str> =
        std::iter::once("MSET").chain(keys.iter().flat_map(|key| [key.as_str(), "v"])).collect();
    let partly = UNKNOWN.replacen("phalanx: ", "phalanx: a part of it was done: ", 1);
    assert_eq!(client.command(&mset), partly);
    let del: Vec<&str> = std::iter::once("DEL").chain(keys.iter().map(String::as_str)).collect();
    assert_eq!(client.command(&del), partly);
}

#[test]
fn a_view_frees_commands_from_a_leader_that_does_not_even_refuse() {
    // Without the view this takes as long as a connection may take.
    let (dark, _held) = black_hole();
    let new = echo("new");
    let router = Router::with(&grouped("redis", ""), 1, |limits| limits.connect = Duration::from_secs(8));
    router.handle.update_group("g", &view(7, Some(0), &[dark])).unwrap();
    let start = Instant::now();
    let mut client = router.client();
    client.send((0..10).map(|n| command(&["SET", "k", &n.to_string()])).collect::<String>());
    thread::sleep(Duration::from_millis(200));
    router.handle.update_group("g", &view(9, Some(0), &[new.addr])).unwrap();
    for n in 0..10 {
        assert_eq!(client.reply(), bulk(&format!("new:{n}")));
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_client_that_is_sent_away_can_read_why() {
    let server = echo("a");
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    client.send(format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870913\r\n{}\r\n", "x".repeat(900_000)));
    assert_eq!(client.reply(), "-ERR Protocol error: invalid bulk length\r\n");
}

#[test]
fn a_client_that_reads_nothing_holds_up_neither_memory_nor_others() {
    const LARGE: usize = 200_000;
    let server = FakeServer::start(|peer| {
        let large = format!("${LARGE}\r\n{}\r\n", "x".repeat(LARGE));
        while let Some(args) = peer.command() {
            peer.send(if args[1] == "large" { &large } else { "+small\r\n" });
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut idle = router.client();
    idle.send(command(&["GET", "large"]).repeat(1000));
    eventually("it is under way", || server.seen().len() > 1);
    assert_eq!(router.client().command(&["GET", "other"]), "+small\r\n");
    thread::sleep(Duration::from_millis(500));
    // What was sent before the first reply came, what sockets hold, and a little more.
    let asked = server.seen().len();
    assert!(asked < 300, "{asked} large replies were asked for, though nobody reads them");
    for _ in 0..1000 {
        assert!(idle.reply().len() > LARGE, "all come once they are read");
    }
}

#[test]
fn many_clients_that_read_nothing_are_cut_off_before_they_take_all_memory() {
    // Each sends what any client may send before its first reply comes: only together they are too many.
    const LARGE: usize = 1 << 20;
    let server = FakeServer::start(|peer| {
        let large = format!("${LARGE}\r\n{}\r\n", "x".repeat(LARGE));
        while let Some(args) = peer.command() {
            peer.send(if args[1] == "large" { &large } else { "+small\r\n" });
        }
    });
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| limits.unread_in_all = 4 << 20);
    let mut honest = router.client();
    assert_eq!(honest.command(&["GET", "other"]), "+small\r\n");
    let greedy: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = router.client();
            client.send(command(&["GET", "large"]).repeat(40));
            client
        })
        .collect();
    assert_eq!(honest.command(&["GET", "other"]), "+small\r\n");
    eventually("most are cut off", || router.stats().clients < 5);
    assert_eq!(honest.command(&["GET", "other"]), "+small\r\n");
    drop(greedy);
}

const LOADING: &str = "-LOADING Redis is loading the dataset in memory\r\n";

/// Answers every command, at once, that it cannot serve.
fn loading() -> FakeServer {
    FakeServer::start(|peer| {
        while peer.command().is_some() {
            peer.send(LOADING);
        }
    })
}

#[test]
fn a_clone_that_cannot_serve_is_avoided_and_its_reads_are_sent_to_another() {
    // Who refuses is quick, and so has the fewest commands in flight.
    let refusing = loading();
    let well = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            thread::sleep(Duration::from_millis(2));
            peer.send(&bulk(&args[1]));
        }
    });
    let router = Router::with(&redis(&[&[refusing.addr, well.addr]]), 1, |limits| {
        patient(limits);
        limits.avoid = Duration::from_secs(600);
    });
    thread::scope(|scope| {
        for id in 0..8 {
            let mut client = router.client();
            scope.spawn(move || {
                for n in 0..50 {
                    let key = format!("{id}.{n}");
                    assert_eq!(client.command(&["GET", &key]), bulk(&key));
                }
            });
        }
    });
    let asked = refusing.seen().len();
    assert!((1..40).contains(&asked), "{asked} of 400 were sent there first");
    let stats = router.server_stats(refusing.addr);
    assert_eq!((stats.responses[0].of("error"), stats.responses[0].of("ok")), (asked as u64, 0));
    assert_eq!((stats.avoided_by, router.stats().retried), (1, asked as u64));

    // An update is its leader's, and is sent once, whatever that says.
    let mut client = router.client();
    assert_eq!(client.command(&["SET", "k", "x"]), LOADING);
    assert_eq!(refusing.seen().iter().filter(|seen| *seen == "SET k x").count(), 1);
    assert!(well.seen().iter().all(|seen| seen != "SET k x"));
}

#[test]
fn a_read_that_no_clone_can_serve_is_sent_to_two_and_hears_so() {
    let clones = [loading(), loading(), loading()];
    let addrs = clones.each_ref().map(|clone| clone.addr);
    // Each is asked because another refused, and none because another was silent for a moment.
    let router = Router::with(&redis(&[&addrs]), 1, patient);
    let mut client = router.client();
    let times = 50;
    (0..times).for_each(|_| assert_eq!(client.command(&["GET", "k"]), LOADING));
    let asked: usize = clones.iter().map(|clone| clone.seen().len()).sum();
    assert_eq!(asked, 2 * times);
    let avoided: u64 = addrs.iter().map(|addr| router.server_stats(*addr).avoided_by).sum();
    assert!(avoided <= 1, "more than half are left: {avoided}");

    // Alone it has all commands, and nothing is held against it.
    let alone = loading();
    let router = Router::start(&redis(&[&[alone.addr]]));
    let mut client = router.client();
    (0..times).for_each(|_| assert_eq!(client.command(&["GET", "k"]), LOADING));
    assert_eq!((alone.seen().len(), router.server_stats(alone.addr).avoided_by), (times, 0));
}

#[test]
fn a_part_of_a_read_that_its_clone_cannot_serve_is_sent_to_another() {
    let values = |args: &[String]| {
        let values: String = args[1..].iter().map(|key| bulk(key)).collect();
        format!("*{}\r\n{values}", args.len() - 1)
    };
    let well = || {
        FakeServer::start(move |peer| {
            while let Some(args) = peer.command() {
                peer.send(&values(&args));
            }
        })
    };
    let (refusing, other, elsewhere) = (loading(), well(), well());
    let router = Router::start(&redis(&[&[refusing.addr, other.addr], &[elsewhere.addr]]));
    let keys: Vec<String> = (0..10).map(|at| format!("k{at}")).collect();
    let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let mut client = router.client();
    for _ in 0..50 {
        let whole = values(&mget.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(client.command(&mget), whole);
    }
    assert!(!refusing.seen().is_empty() && !elsewhere.seen().is_empty());
}
