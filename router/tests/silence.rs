//! Servers that fall silent on a connection that many clients share: reads are answered by other clones, updates are
//! sent once, and whatever is said late reaches nobody.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Read,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    Client, FakeServer, Router, command, eventually,
    real::RealServer,
    speech::{Speech, Speech::Memcached, Speech::Redis},
};

/// The protocols whose clients share connections.
const SHARED: [Speech; 3] = [Redis, Memcached, Speech::Frames];

/// As [`Speech::server`]; says nothing while it is not `well`.
fn server(speech: Speech, name: &'static str, well: &Arc<AtomicBool>) -> FakeServer {
    let well = Arc::clone(well);
    speech.server(name, move || {
        while !well.load(Ordering::SeqCst) {
            thread::sleep(MS(1));
        }
    })
}

fn mood(well: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(well))
}

/// How many clients ask a router with a server that falls silent, and how many one beside it whose servers never do.
const CLIENTS: usize = 16;
const BESIDE: usize = 4;

/// How long answers took, the longest first.
struct Times {
    all: Vec<Duration>,
    /// Those of the same questions at the same time where no server was silent.
    beside: Vec<Duration>,
}

/// Several clients ask one question after the other, no two alike, until they are told to stop.
fn load(router: &Router, calm: &Router, meanwhile: impl FnOnce(), ask: Ask<'_>) -> Times {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let one = |router: &Router, id: usize| {
            let (stop, mut client) = (&stop, router.client());
            scope.spawn(move || {
                let mut times = vec![];
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let start = Instant::now();
                    ask(&mut client, &format!("{id}.{n}"));
                    times.push(start.elapsed());
                }
                times
            })
        };
        let all: Vec<_> = (0..CLIENTS).map(|id| one(router, id)).collect();
        let beside: Vec<_> = (CLIENTS..CLIENTS + BESIDE).map(|id| one(calm, id)).collect();
        meanwhile();
        stop.store(true, Ordering::SeqCst);
        let [all, beside] = [all, beside].map(|threads| {
            let mut times: Vec<Duration> = threads.into_iter().flat_map(|one| one.join().unwrap()).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times
        });
        Times { all, beside }
    })
}

type Ask<'a> = &'a (dyn Fn(&mut Client, &str) + Sync);

/// What the load says of itself. The machine may be busy, so that little is asserted of times.
fn judge(what: &str, Times { all: times, beside }: &Times, router: &Router) {
    let stats = router.stats();
    let slowest = times.len() / 100;
    let p99 = times[slowest];
    // Whenever this machine stands still one read of each client is slow: of each client as many are left out.
    let calm = beside[slowest * BESIDE / CLIENTS];
    println!(
        "{what}: {} reads, p99 {p99:?} ({calm:?} where nobody is silent), worst {:?}, {} hedged",
        times.len(),
        times[0],
        stats.hedged
    );
    assert!(stats.hedged > 0, "{what}");
    // Twenty, and two a second, are possible however few reads there are.
    let most = stats.requests as usize / 20 + 30;
    assert!(stats.hedged as usize <= most, "{what}: {} of {} hedged", stats.hedged, times.len());
    assert!(times[0] < Duration::from_secs(3), "{what}: {:?}", times[0]);
    // Who is not answered by the first asks a second one, which takes as long again.
    assert!(p99 < MS(150) + 2 * calm, "{what}: {p99:?}, {calm:?} where nobody is silent");
    assert_eq!((stats.unavailable, stats.unknown), (0, 0), "{what}");
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn reads_about_which_a_server_is_silent_are_answered_by_another() {
    for speech in SHARED {
        let hung = mood(true);
        let servers =
            [server(speech, "a", &hung), server(speech, "b", &mood(true)), server(speech, "c", &mood(true))];
        let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
        let router = Router::start(&speech.config("", &[&addrs]));
        let meanwhile = || {
            thread::sleep(MS(300));
            hung.store(false, Ordering::SeqCst);
            thread::sleep(MS(700));
            // Now it says all that nobody waits for any more.
            hung.store(true, Ordering::SeqCst);
            thread::sleep(MS(300));
        };
        let calm = Router::start(&speech.config("", &[&addrs[1..]]));
        let times = load(&router, &calm, meanwhile, &|client, nonce| {
            speech.read(client, nonce);
        });
        judge(&format!("{speech:?}"), &times, &router);
        // By many at once: one alone would ask whoever was quick lately until that is forgotten.
        let ask = || speech.read(&mut router.client(), "x") == "a";
        eventually("it is used again", || {
            thread::scope(|scope| {
                let asked: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
                asked.into_iter().any(|one| one.join().unwrap())
            })
        });
    }
}

#[test]
fn where_two_of_three_are_silent_the_third_answers() {
    for speech in SHARED {
        let servers = [
            server(speech, "a", &mood(false)),
            server(speech, "b", &mood(false)),
            server(speech, "c", &mood(true)),
        ];
        let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
        let router = Router::start(&speech.config("", &[&addrs]));
        let mut client = router.client();
        for n in 0..50 {
            assert_eq!(speech.read(&mut client, &n.to_string()), "c", "{speech:?}");
        }
        assert!(router.stats().hedged > 0);
    }
}

#[test]
fn updates_are_sent_once_however_long_their_server_is_silent() {
    for speech in SHARED {
        let hung = mood(false);
        let (leader, other) = (server(speech, "a", &hung), server(speech, "b", &mood(true)));
        let router = Router::start(&speech.config("", &[&[leader.addr, other.addr]]));
        thread::scope(|scope| {
            let updates: Vec<_> = (0..4)
                .map(|n| {
                    let mut client = router.client();
                    scope.spawn(move || speech.ask(&mut client, false, &format!("u{n}")))
                })
                .collect();
            eventually("they are there", || !leader.seen().is_empty());
            thread::sleep(MS(200));
            // Reads are answered meanwhile.
            let mut client = router.client();
            (0..20).for_each(|n| assert_eq!(speech.read(&mut client, &n.to_string()), "b"));
            hung.store(true, Ordering::SeqCst);
            for (n, update) in updates.into_iter().enumerate() {
                let reply = update.join().unwrap();
                match speech {
                    Memcached => assert_eq!(reply, "STORED\r\n"),
                    _ => assert_eq!(speech.whose(&reply, &format!("u{n}")), "a"),
                }
            }
        });
        let is_update = |seen: &&String| seen.to_lowercase().starts_with("set");
        assert_eq!(leader.seen().iter().filter(is_update).count(), 4, "{speech:?}");
        assert_eq!(other.seen().iter().filter(is_update).count(), 0, "{speech:?}");
        assert_eq!(router.stats().unknown, 0);
    }
}

#[test]
fn what_becomes_of_an_update_is_unknown_once_its_server_was_silent_for_too_long() {
    for speech in SHARED {
        let servers = [server(speech, "a", &mood(false)), server(speech, "b", &mood(true))];
        let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
        let router = Router::with(&speech.config("", &[&addrs]), 1, |limits| limits.response = MS(400));
        let mut client = router.client();
        let start = Instant::now();
        let reply = speech.ask(&mut client, false, "k");
        assert!(reply.contains("unknown"), "{reply}");
        assert!((400..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert_eq!(router.stats().unknown, 1);
        assert_eq!((servers[0].seen().len(), servers[1].seen().len()), (1, 0));
    }
}

#[test]
fn where_there_is_no_other_clone_the_limits_hold() {
    for speech in SHARED {
        let hung = mood(false);
        let alone = server(speech, "a", &hung);
        let router =
            Router::with(&speech.config("", &[&[alone.addr]]), 1, |limits| limits.response = MS(300));
        thread::scope(|scope| {
            let read = scope.spawn(|| speech.ask(&mut router.client(), true, "r"));
            let update = scope.spawn(|| speech.ask(&mut router.client(), false, "u"));
            let (read, update) = (read.join().unwrap(), update.join().unwrap());
            assert!(update.contains("unknown"), "{update}");
            assert!(!read.contains("unknown") && read.contains("phalanx"), "{read}");
        });
        assert_eq!(router.stats().hedged, 0);
        // It is asked again as soon as it is well: nobody can stand in for it.
        hung.store(true, Ordering::SeqCst);
        assert_eq!(speech.read(&mut router.client(), "x"), "a");
    }
}

#[test]
fn without_hedging_reads_wait_for_their_server() {
    for speech in SHARED {
        let hung = mood(false);
        let (a, b) = (server(speech, "a", &hung), server(speech, "b", &mood(true)));
        let router = Router::start(&speech.config("hedge = \"off\"\n", &[&[a.addr, b.addr]]));
        thread::scope(|scope| {
            let asked: Vec<_> = (0..8)
                .map(|n| {
                    let router = &router;
                    scope.spawn(move || speech.read(&mut router.client(), &format!("k{n}")))
                })
                .collect();
            eventually("one is there", || !a.seen().is_empty());
            thread::sleep(MS(150));
            hung.store(true, Ordering::SeqCst);
            assert!(asked.into_iter().any(|one| one.join().unwrap() == "a"));
        });
        assert_eq!((a.seen().len() + b.seen().len(), router.stats().hedged), (8, 0), "{speech:?}");
    }
}

#[test]
fn what_fails_again_and_again_is_sent_again_within_a_budget() {
    const READS: usize = 600;
    for speech in SHARED {
        // Each takes what comes, and hangs up.
        let dying = |_: usize| {
            FakeServer::start(move |peer| {
                let mut some = [0; 4096];
                if peer.stream.read(&mut some).is_ok_and(|len| len > 0) {
                    peer.note(String::new());
                }
            })
        };
        let servers: Vec<FakeServer> = (0..3).map(dying).collect();
        let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
        let router = Router::start(&speech.config("", &[&addrs]));
        let start = Instant::now();
        let mut client = router.client();
        for n in 0..READS {
            let reply = speech.ask(&mut client, true, &n.to_string());
            assert!(reply.contains("phalanx"), "{reply}");
        }
        let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
        let stats = router.stats();
        // Of each server a hundred, and ten a second, and a tenth of what went there: not two more for each.
        let most = 3 * (100 + 10 * seconds) + READS / 5;
        assert!((stats.retried as usize) <= most, "{speech:?}: {} sent again of {READS}", stats.retried);
        assert_eq!(stats.unavailable as usize, READS);
    }
}

#[test]
fn silence_on_a_connection_of_a_clients_own_counts_unless_the_client_may_wait() {
    let well = mood(false);
    let flag = Arc::clone(&well);
    let server = FakeServer::start(move |peer| {
        while let Some(args) = peer.command() {
            match args[0].as_str() {
                "WATCH" => peer.send("+OK\r\n"),
                "GET" => {
                    while !flag.load(Ordering::SeqCst) {
                        thread::sleep(MS(1));
                    }
                    peer.send("$-1\r\n");
                }
                "BLPOP" => {}
                _ => return,
            }
        }
    });
    // So long that nothing but the silence that is meant counts.
    let config = Redis.config("", &[&[server.addr]]);
    let router = Router::with(&config, 1, |limits| limits.hedge_after = MS(500));
    let (mut waiter, mut watcher) = (router.client(), router.client());
    waiter.send(command(&["BLPOP", "list", "0"]));
    eventually("it waits", || server.seen().contains(&"BLPOP list 0".into()));
    assert_eq!(watcher.command(&["WATCH", "k"]), "+OK\r\n");
    watcher.send(command(&["GET", "k"]));
    let stats = || router.server_stats(server.addr);
    eventually("that counts", || stats().open_by + stats().half_open_by == 1);
    assert_eq!(stats().failures, 1, "that a client waits is not held against it");
    well.store(true, Ordering::SeqCst);
    assert_eq!(watcher.reply(), "$-1\r\n");
    eventually("all is forgiven", || stats().open_by + stats().half_open_by == 0);
    // To that it hangs up.
    assert!(watcher.command(&["SET", "k", "v"]).contains("outcome unknown"));
    assert_eq!(stats().failures, 2);
}

#[test]
fn a_stopped_redis_is_not_waited_for() {
    let Some(servers) = (0..3).map(|_| RealServer::start()).collect::<Option<Vec<_>>>() else { return };
    let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    for addr in &addrs {
        let mut client = Client::connect(*addr);
        for n in 0..1000 {
            assert_eq!(client.command(&["SET", &n.to_string(), &format!("v{n}")]), "+OK\r\n");
        }
    }
    let router = Router::start(&Redis.config("", &[&addrs]));
    let meanwhile = || {
        for _ in 0..2 {
            thread::sleep(MS(400));
            servers[1].stop();
            thread::sleep(MS(600));
            servers[1].go_on();
        }
        thread::sleep(MS(400));
    };
    // Eight commands at once, some of them split over partitions; each value says which key it belongs to.
    let calm = Router::start(&Redis.config("", &[&[addrs[0], addrs[2]]]));
    let times = load(&router, &calm, meanwhile, &|client, nonce| {
        let n: usize = nonce.replace('.', "").parse().unwrap();
        let keys: Vec<String> = (0..8).map(|k| ((n + k * 111) % 1000).to_string()).collect();
        client.send(keys.iter().map(|key| command(&["GET", key])).collect::<String>());
        client.send(command(&["MGET", &keys[0], &keys[5]]));
        let value = |key: &String| format!("${}\r\nv{key}\r\n", key.len() + 1);
        for key in &keys {
            assert_eq!(client.reply(), value(key));
        }
        assert_eq!(client.reply(), format!("*2\r\n{}{}", value(&keys[0]), value(&keys[5])));
    });
    judge("stopped redis-server", &times, &router);
}
