//! HTTP when servers fail: what is sent again, what waits, and what the client is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use common::*;

/// Takes a request and dies before its response is whole.
fn dies_after(part_of_response: &'static str) -> FakeServer {
    FakeServer::start(move |peer| {
        if peer.request().is_some() {
            peer.send(part_of_response);
        }
    })
}

#[test]
fn a_read_whose_server_dies_is_answered_by_another_clone() {
    for part in ["", "HT", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"] {
        let (dying, well) = (dies_after(part), FakeServer::echo("b"));
        let router = Router::start(&http(&[&[dying.addr, well.addr]]));
        for n in 0..20 {
            let response = router.client().get(&format!("k{n}"));
            assert_eq!((response.status, response.body.as_str()), (200, "b:"), "after {part:?}");
            assert_eq!(response.field("x-phalanx-server"), Some(&*well.addr.to_string()));
        }
        assert!(dying.seen().len() < 20, "a clone just seen failing is avoided");
        assert_eq!(router.stats().retried, dying.seen().len() as u64);
    }
}

#[test]
fn servers_that_all_fail_are_not_asked_ever_more_often() {
    let (a, b) = (dies_after(""), dies_after(""));
    let router = Router::start(&http(&[&[a.addr, b.addr]]));
    let mut client = router.client();
    for _ in 0..1000 {
        assert_eq!(client.get("k").status, 503);
    }
    let seen = a.seen().len() + b.seen().len();
    // A tenth more, besides a hundred for each server (and ten a second) that are allowed in any case.
    assert!((1000..1100 + 2 * 100 + 2 * 10 * 10).contains(&seen), "{seen}");
}

#[test]
fn an_update_whose_server_dies_is_not_sent_again() {
    for part in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let (dying, well) = (dies_after(part), FakeServer::echo("b"));
        let router = Router::start(&http(&[&[dying.addr, well.addr]]));
        let mut client = router.client();
        let response = client.post("k", "pay");
        assert_eq!(response.status, 502);
        assert!(response.json()["error"].as_str().unwrap().starts_with("outcome unknown"));
        assert_eq!((&response.json()["retry"], &response.json()["service"]), (&false.into(), &"s".into()));
        assert_eq!(response.json()["partition"].as_str(), response.field("x-phalanx-partition"));
        assert_eq!((dying.seen().len(), well.seen().len()), (1, 0), "once, and nowhere else");
        assert_eq!(router.stats().unknown, 1);
        assert_eq!(client.get("k").body, "b:", "the client's connection goes on");
    }
}

#[test]
fn a_response_that_breaks_off_is_broken_for_the_client_too() {
    for part in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ] {
        let dying = dies_after(part);
        let router = Router::start(&http(&[&[dying.addr, FakeServer::echo("b").addr]]));
        let mut client = router.client();
        client.send(post("k", ""));
        assert!(client.try_response().is_none(), "{part:?}");
    }
}

#[test]
fn a_server_that_closed_an_idle_connection_makes_no_error() {
    let server = FakeServer::start(|peer| {
        if let Some(request) = peer.request() {
            peer.respond(&String::from_utf8_lossy(&request.body));
        }
        // Closes after each response without having said so.
        let _ = peer.stream.shutdown(std::net::Shutdown::Both);
        peer.note("closed".into());
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    let closed = || server.seen().iter().filter(|seen| *seen == "closed").count();
    for n in 0..50 {
        let body = n.to_string();
        let response = if n % 5 > 0 {
            // Sometimes at once, so that the end of the connection is still on its way: a read is then
            // repeated.
            thread::sleep(Duration::from_millis(n % 3));
            client.get("k")
        } else {
            eventually("all have closed", || closed() == server.connections());
            router.stats(); // By the time that it answers, it has heard of that.
            client.post("k", &body)
        };
        assert_eq!(response.status, 200, "request {n}");
    }
    assert_eq!(router.stats().unavailable, 0);
}

#[test]
fn a_read_on_a_connection_that_closes_under_it_is_repeated_on_a_fresh_one() {
    // The server takes the second request of each connection, and hangs up instead of answering it.
    let server = FakeServer::start(|peer| {
        if peer.request().is_some() {
            peer.respond("ok");
        }
        peer.request();
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..10 {
        assert_eq!(client.get("k").body, "ok");
    }
    assert!(
        server.seen().len() >= 18,
        "each but the first and last was taken twice: {}",
        server.seen().len()
    );
    // The same under an update: nobody knows, and it is not repeated.
    let before = server.seen().iter().filter(|head| head.starts_with("POST")).count();
    assert_eq!(client.post("k", "x").status, 502);
    assert_eq!(server.seen().iter().filter(|head| head.starts_with("POST")).count(), before + 1);
}

#[test]
fn when_no_clone_answers_the_client_hears_at_once() {
    let router = Router::start(&http(&[&[nobody(), nobody()]]));
    let mut client = router.client();
    let start = Instant::now();
    for _ in 0..3 {
        let response = client.get("k");
        assert_eq!((response.status, response.field("retry-after")), (503, Some("1")));
        assert_eq!(response.json()["retry"], true);
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(router.stats().unavailable, 3);
}

#[test]
fn updates_wait_for_the_next_leader() {
    once_within(Duration::from_millis(500), updates_that_wait_go_at_once);
}

/// Has updates wait for a leader; returns how long all of them took once there was one, which is less than to the next look.
fn updates_that_wait_go_at_once() -> Duration {
    let (mut old, new) = (FakeServer::echo("old"), FakeServer::echo("new"));
    let config = grouped("http", "key = \"header:x-key\"\nexpose = true");
    let router = Arc::new(Router::with(&config, 2, |_| {}));
    router.handle.update_group("g", &view(7, Some(0), &[old.addr, new.addr])).unwrap();
    assert_eq!(router.client().post("k", "1").body, "old:1");
    old.kill();
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let router = router.clone();
            thread::spawn(move || {
                let start = Instant::now();
                let response = router.client().post("k", &n.to_string());
                (response.body, response.head, start.elapsed())
            })
        })
        .collect();
    eventually("all wait", || router.stats().waited == 20);
    thread::sleep(Duration::from_millis(100));
    router.handle.update_group("g", &view(9, Some(0), &[new.addr])).unwrap();
    let released = Instant::now();
    for (n, thread) in waiting.into_iter().enumerate() {
        let (body, head, waited) = thread.join().unwrap();
        assert_eq!(body, format!("new:{n}"));
        assert!(
            head.contains("x-phalanx-epoch: 9\r\n") && head.contains("x-phalanx-server: n0\r\n"),
            "{head}"
        );
        assert!(waited > Duration::from_millis(90));
    }
    let took = released.elapsed();
    assert_eq!(new.seen().len(), 20);
    took
}

#[test]
fn updates_wait_while_nobody_leads_and_reads_do_not() {
    let server = FakeServer::echo("a");
    let wait = Duration::from_secs(2);
    let router = Router::with(&grouped("http", "key = \"header:x-key\""), 1, |limits| {
        (limits.wait, limits.waiting) = (wait, 2);
    });
    router.handle.update_group("g", &view(7, None, &[server.addr])).unwrap();
    assert_eq!(router.client().get("k").body, "a:");
    let start = Instant::now();
    let mut clients = [router.client(), router.client()];
    clients.iter_mut().for_each(|client| client.send(post("k", "x")));
    eventually("both wait", || router.stats().waited == 2);
    // No more than two: the third is refused at once.
    let response = router.client().post("k", "x");
    assert_eq!(response.json()["error"], "too many requests wait for a leader");
    assert!(router.stats().waiting == 2 && clients.iter().all(Client::has_nothing), "and they wait on");
    for mut client in clients {
        let response = client.response();
        assert_eq!((response.status, response.field("retry-after")), (503, Some("1")));
        assert_eq!(response.json()["error"], "the partition's RACS has no leader");
        assert_eq!(response.json()["retry"], true);
    }
    assert!(start.elapsed() >= wait);
    assert_eq!(server.seen().len(), 1, "only the read came so far");
}

#[test]
fn a_static_leader_that_comes_back_gets_the_updates_that_waited() {
    // No view will ever come: the router has to look again by itself.
    let addr = nobody();
    let router = Router::start(&http(&[&[addr]]));
    let mut client = router.client();
    client.send(post("k", "x"));
    thread::sleep(Duration::from_millis(300));
    let _server = FakeServer::start_at(addr, |peer| {
        while peer.request().is_some() {
            peer.respond("back");
        }
    });
    assert_eq!(client.response().body, "back");
}

#[test]
fn reads_may_be_bound_to_the_leader() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let router = Router::start(&grouped("http", "key = \"header:x-key\"\nreads = \"leader\""));
    router.handle.update_group("g", &view(7, Some(1), &[a.addr, b.addr])).unwrap();
    for n in 0..20 {
        assert_eq!(router.client().get(&n.to_string()).body, "b:");
    }
    let stateless = Router::start(&grouped("http", "key = \"header:x-key\"\nupdates = \"any\""));
    stateless.handle.update_group("g", &view(7, None, &[a.addr, b.addr])).unwrap();
    let bodies: Vec<String> = (0..40).map(|_| stateless.client().post("k", "").body).collect();
    assert!(bodies.iter().any(|body| body == "a:") && bodies.iter().any(|body| body == "b:"));
}

#[test]
fn a_silent_server_is_given_up() {
    let silent = || FakeServer::start(|peer| while peer.request().is_some() {});
    let (silent, well) = (silent(), FakeServer::echo("b"));
    let config = service("http", "key = \"header:x-key\"\nhedge = \"off\"", &[&[silent.addr, well.addr]]);
    let response = Duration::from_secs(2);
    let router = Router::with(&config, 1, |limits| limits.response = response);
    let (start, mut asked) = (Instant::now(), 0);
    eventually("one of them went to the silent one", || {
        assert_eq!(router.client().get("k").body, "b:");
        asked += 1;
        asked >= 10 && !silent.seen().is_empty()
    });
    assert!(start.elapsed() >= response);
    assert_eq!(router.client().post("k", "x").status, 502);
}

#[test]
fn responses_that_are_not_http_are_not_passed_on() {
    let garbage = [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\nX: y\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ];
    for text in garbage {
        let server = FakeServer::start(move |peer| {
            while peer.request().is_some() {
                peer.send(text);
            }
        });
        let router = Router::start(&http(&[&[server.addr]]));
        let mut client = router.client();
        let response = client.get("k");
        assert_eq!((response.status, &response.json()["retry"]), (502, &true.into()), "{text:?}");
        let response = client.post("k", "x");
        assert_eq!((response.status, &response.json()["retry"]), (502, &false.into()), "{text:?}");
        assert_eq!(server.connections(), 2, "a connection in doubt is not used again");
    }
}

#[test]
fn what_a_server_sends_unasked_is_nobodys_response() {
    // Two responses to one request: the second must not answer the next request.
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let body = String::from_utf8(request.body).unwrap();
            let len = body.len();
            let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{body}{poison}"));
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for n in 0..20 {
        if n % 2 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
        let response = client.post("k", &n.to_string());
        assert!(response.status == 502 || response.body == n.to_string(), "{response:?}");
    }
}

#[test]
fn slow_heads_and_idle_clients_are_sent_away() {
    let server = FakeServer::echo("a");
    let router = Router::with(&http(&[&[server.addr]]), 1, |limits| {
        limits.head = Duration::from_millis(200);
    });
    once_within(Duration::from_millis(600), || {
        let start = Instant::now();
        let mut slow = router.client();
        let mut sender = slow.stream.try_clone().unwrap();
        let drip = thread::spawn(move || {
            use std::io::Write;
            for byte in b"GET / HTTP/1.1\r\nHost: h\r\nX-Key: abcdefghijklmnopqrstuvwxyz" {
                if sender.write_all(&[*byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(slow.response().status, 408);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(200), "{took:?}");
        assert!(slow.is_closed());
        drip.join().unwrap();
        took
    });
    assert!(server.seen().is_empty());

    let router = Router::with(&http(&[&[server.addr]]), 1, |limits| {
        limits.idle = Duration::from_millis(400);
    });
    let mut asked = 0;
    once_within(Duration::from_millis(800), || {
        let start = Instant::now();
        let mut idle = router.client();
        assert_eq!(idle.get("k").status, 200);
        assert!(idle.is_closed(), "closed without a word");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(380), "{took:?}");
        asked += 1;
        assert_eq!(server.seen().len(), asked);
        took
    });
}

#[test]
fn a_client_that_goes_away_takes_nothing_with_it() {
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let gate2 = gate.clone();
    let server = FakeServer::start(move |peer| {
        while peer.request().is_some() {
            drop(gate2.lock().unwrap());
            peer.respond(&"x".repeat(100_000));
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    for _ in 0..5 {
        let mut client = router.client();
        client.send(post("k", "x"));
    }
    eventually("they arrive", || server.seen().len() == 5);
    drop(held);
    eventually("they are gone", || router.stats().clients == 0);
    assert_eq!(router.client().get("k").body.len(), 100_000);
}

#[test]
fn a_server_is_known_by_its_address_however_the_views_change() {
    // Requests under way survive a view that no longer has their server.
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let slow = FakeServer::start(move |peer| {
        while peer.request().is_some() {
            let _ = released.lock().unwrap().recv();
            peer.respond("slow");
        }
    });
    let next = FakeServer::echo("next");
    let router = Router::start(&grouped("http", "key = \"header:x-key\""));
    router.handle.update_group("g", &view(7, Some(0), &[slow.addr])).unwrap();
    let mut client = router.client();
    client.send(post("k", "x"));
    eventually("it arrives", || slow.seen().len() == 1);
    router.handle.update_group("g", &view(8, Some(0), &[next.addr])).unwrap();
    assert_eq!(router.client().post("k", "y").body, "next:y");
    thread::sleep(Duration::from_millis(1100)); // the sweep runs
    release.send(()).unwrap();
    assert_eq!(client.response().body, "slow");
}

#[test]
fn slow_is_not_stuck() {
    // Bytes come in time, but the whole takes longer than the time in which some byte must come.
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len()));
            for byte in request.body {
                thread::sleep(Duration::from_millis(150));
                peer.send(std::str::from_utf8(&[byte]).unwrap());
            }
        }
    });
    let router = Router::with(&http(&[&[server.addr]]), 1, |limits| {
        limits.response = Duration::from_millis(1500);
        limits.stall = Duration::from_millis(1500);
    });
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 12\r\n\r\n");
    for byte in b"hello, world" {
        thread::sleep(Duration::from_millis(150));
        client.send([*byte]);
    }
    assert_eq!(client.response().body, "hello, world");
    // A client that stops in the middle is stuck, and its server is not to blame.
    client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 12\r\n\r\nhello");
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (408, Some("close")));
    assert_eq!(router.stats().unknown, 0);
}

#[test]
fn a_view_frees_requests_from_a_leader_that_does_not_even_refuse() {
    // Without the view this takes as long as a connection may take, for which no client here waits.
    let (dark, _held) = black_hole();
    let new = FakeServer::echo("new");
    let router = Router::with(&grouped("http", "key = \"header:x-key\""), 1, |limits| {
        limits.connect = 6 * PATIENCE;
    });
    router.handle.update_group("g", &view(7, Some(0), &[dark])).unwrap();
    let mut clients: Vec<Client> = (0..3).map(|_| router.client()).collect();
    clients.iter_mut().for_each(|client| client.send(post("k", "x")));
    eventually("all are on their way there", || router.stats().in_flight == 3);
    router.handle.update_group("g", &view(9, Some(0), &[new.addr])).unwrap();
    for mut client in clients {
        assert_eq!(client.response().body, "new:x");
    }
}

#[test]
fn who_says_that_it_cannot_serve_is_avoided_while_half_of_the_clones_are_left() {
    const GOOD: &str = "200 OK";
    const BAD: &str = "503 Service Unavailable";
    let with = |status: &'static str| {
        FakeServer::start(move |peer| {
            while peer.request().is_some() {
                peer.send(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
            }
        })
    };
    // Where the circuit is open after some time, in which one `opens` or not, and how many of 300 answers are good then.
    let run = |statuses: &[&'static str], opens: bool| {
        let servers: Vec<FakeServer> = statuses.iter().map(|status| with(status)).collect();
        let addrs: Vec<std::net::SocketAddr> = servers.iter().map(|server| server.addr).collect();
        let config = service("http", "key = \"header:x-key\"\nhedge = \"off\"", &[&addrs]);
        let router = Router::with(&config, 1, |limits| limits.avoid = Duration::from_secs(600));
        let mut client = router.client();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let open = || {
            let measured = runtime.block_on(router.handle.measured());
            let open =
                |addr| measured.servers.iter().any(|server| server.addr == addr && server.open_by == 1);
            addrs.iter().map(|addr| open(*addr)).collect::<Vec<bool>>()
        };
        // One that was slow for once is asked less often for a while: enough answers of each take as long as they take.
        let start = Instant::now();
        let few = |(server, status): (&FakeServer, &&str)| *status != GOOD && server.seen().len() < 5;
        while (servers.iter().zip(statuses).any(few) || (opens && open().iter().all(|open| !open)))
            && start.elapsed() < PATIENCE
        {
            client.get("k");
        }
        let good = (0..300).filter(|_| client.get("k").status == 200).count();
        (good, open())
    };
    let (good, open) = run(&[BAD, GOOD, GOOD], true);
    assert_eq!((good, open), (300, vec![true, false, false]), "five in a row are enough");
    let (_, open) = run(&[BAD, BAD, GOOD], true);
    assert_eq!(open.iter().filter(|open| **open).count(), 1, "one of the bad ones stays");
    assert!(!open[2], "{open:?}");
    let (_, open) = run(&[BAD, BAD], true);
    assert_eq!(open.iter().filter(|open| **open).count(), 1, "not all");
    // What is the request's fault as likely as the server's counts once the others have shown that it is not.
    const ODD: &str = "500 Internal Server Error";
    let (_, open) = run(&[ODD, GOOD, GOOD], true);
    assert_eq!(open, [true, false, false]);
    let (_, open) = run(&[ODD, ODD, ODD], false);
    assert_eq!(open, [false, false, false], "then it is the requests");
    let (_, open) = run(&[ODD, ODD, GOOD], true);
    assert_eq!(open.iter().filter(|open| **open).count(), 1, "one of them stays");
    assert!(!open[2], "{open:?}");
    let (_, open) = run(&["501 Not Implemented", GOOD, GOOD], false);
    assert_eq!(open, [false, false, false], "that is for ever, and says nothing of its health");
}

/// Fails at once whatever is for it to fail by this rule, and takes its time to answer all else.
fn failing(fails: impl Fn(&str) -> bool + Send + Sync + 'static) -> FakeServer {
    FakeServer::start(move |peer| {
        while let Some(request) = peer.request() {
            if fails(&request.head) {
                peer.send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
            } else {
                thread::sleep(Duration::from_millis(5));
                peer.respond("well");
            }
        }
    })
}

#[test]
fn a_clone_that_fails_fast_does_not_draw_the_reads() {
    // It has the fewest requests in flight, and answers soonest.
    for shared in ["", "\npipeline = 8"] {
        let clones = [failing(|_| true), failing(|_| false), failing(|_| false)];
        let text = http(&[&clones.each_ref().map(|clone| clone.addr)]);
        let router = Router::with(&text.replace("\nservers", &format!("{shared}\nservers")), 1, patient);
        // How many of the reads of so many clients fail.
        let ask = |times: usize| {
            thread::scope(|scope| {
                let each = || {
                    let mut client = router.client();
                    (0..times).filter(|_| client.get("k").status == 500).count()
                };
                let clients: Vec<_> = (0..16).map(|_| scope.spawn(each)).collect();
                clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
            })
        };
        eventually("it is found out", || {
            ask(10);
            router.server_stats(clones[0].addr).avoided_by == 1
        });
        let failed = ask(100);
        assert!(failed < 16 * 100 / 20, "{failed} of 1600 failed");
        let avoided = |at: usize| router.server_stats(clones[at].addr).avoided_by;
        assert_eq!((avoided(1), avoided(2)), (0, 0));

        // Updates are its own, whatever it says to them.
        let before = clones[0].seen().len();
        assert_eq!(router.client().post("k", "x").status, 500);
        assert_eq!(clones[0].seen().len(), before + 1);
    }
}

#[test]
fn no_clone_is_avoided_for_requests_that_fail_everywhere_or_that_others_do_not_get() {
    let poison = |head: &str| head.starts_with("GET /poison ") || head.starts_with("POST ");
    let clones = [failing(poison), failing(poison), failing(poison)];
    let addrs = clones.each_ref().map(|clone| clone.addr);
    let avoided =
        |router: &Router| addrs.iter().map(|addr| router.server_stats(*addr).avoided_by).sum::<u64>();
    let ask = |router: &Router, requests: &str, times: usize| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = router.client();
                    for _ in 0..times {
                        for request in requests.split_inclusive("\r\n\r\n") {
                            client.send(request);
                            client.response();
                        }
                    }
                });
            }
        });
    };
    const POISON: &str = "GET /poison HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n";
    const GOOD: &str = "GET /good HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n";
    const UPDATE: &str = "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 0\r\n\r\n";
    let router = Router::with(&http(&[&addrs]), 1, patient);
    ask(&router, POISON, 100);
    assert_eq!(avoided(&router), 0, "all fail alike");
    ask(&router, &(POISON.repeat(3) + GOOD), 30);
    assert_eq!(avoided(&router), 0, "all fail alike, and not always");

    // Updates go to the leader alone: that most of its answers are errors is no wonder.
    let router = Router::with(&http(&[&addrs]), 1, patient);
    ask(&router, &(UPDATE.repeat(5) + GOOD), 40);
    assert_eq!(avoided(&router), 0, "the others get no updates");

    // Clients that stay have all their poison for one clone.
    let sticky = http(&[&addrs]).replace("[service.pmap]", "reads = \"sticky\"\n[service.pmap]");
    let router = Router::with(&sticky, 1, patient);
    let cookie = router.client().get("k").field("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let mine = POISON.replace("Host", &format!("Cookie: {cookie}\r\nHost"));
    ask(&router, &(mine + GOOD), 50);
    assert_eq!(avoided(&router), 0, "the others get none of it");
}
