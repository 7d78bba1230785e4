//! Redis through the router, as it should go: against servers that do as they are told, and against real
//! ones.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{process::Command, thread, time::Duration};

use common::{real::*, *};

#[test]
fn commands_find_their_keys_on_real_servers() {
    let Some((servers, router)) = cluster() else { return };
    let mut client = router.client();
    for n in 0..200 {
        assert_eq!(client.command(&["SET", &format!("key{n}"), &format!("value{n}")]), "+OK\r\n");
    }
    for n in 0..200 {
        assert_eq!(client.command(&["get", &format!("key{n}")]), bulk(&format!("value{n}")));
    }
    let sizes: Vec<String> =
        servers.iter().map(|server| Client::connect(server.addr).command(&["DBSIZE"])).collect();
    assert!(sizes.iter().all(|size| size[1..].trim().parse::<u32>().unwrap() > 20), "{sizes:?}");
    // One command of each type, wrong ones included: the server's own errors pass.
    for (args, reply) in [
        (&["HSET", "h", "f", "v", "g", "w"][..], ":2\r\n".into()),
        (&["HGETALL", "h"], array(&["f", "v", "g", "w"])),
        (&["RPUSH", "l", "a", "b"], ":2\r\n".into()),
        (&["LRANGE", "l", "0", "-1"], array(&["a", "b"])),
        (&["ZADD", "z", "1", "a"], ":1\r\n".into()),
        (&["ZRANGE", "z", "0", "-1", "WITHSCORES"], array(&["a", "1"])),
        (&["TYPE", "z"], "+zset\r\n".into()),
        (&["OBJECT", "ENCODING", "l"], bulk("listpack")),
        (&["INCR", "h"], "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n".into()),
        (&["SET", "x", "1", "BADOPTION"], "-ERR syntax error\r\n".into()),
        (&["GET", "missing"], bulk("nil")),
        (&["GET"], "-ERR wrong number of arguments for 'get' command\r\n".into()),
        (
            &["NOSUCH", "l", "0"],
            "-ERR unknown command 'NOSUCH', with args beginning with: 'l' '0' \r\n".into(),
        ),
    ] {
        let got = client.command(args);
        let listpack =
            got.replace("$7\r\nziplist", "$8\r\nlistpack").replace("$9\r\nquicklist", "$8\r\nlistpack");
        assert_eq!(listpack, reply, "{args:?}");
    }
}

#[test]
fn commands_over_many_keys_are_split_and_put_together() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    let keys: Vec<String> = (0..500).map(|n| format!("k{n}")).collect();
    let mut mset = vec!["MSET"];
    for (n, key) in keys.iter().enumerate() {
        if n % 3 != 0 {
            mset.extend([key.as_str(), key.as_str()]);
        }
    }
    assert_eq!(client.command(&mset), "+OK\r\n");
    let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    let values: Vec<&str> =
        keys.iter().enumerate().map(|(n, key)| if n % 3 == 0 { "nil" } else { key.as_str() }).collect();
    assert_eq!(client.command(&mget), array(&values));
    assert_eq!(client.command(&["EXISTS", "k0", "k1", "k2", "k1"]), ":3\r\n");
    assert_eq!(client.command(&["DEL", "k0", "k1", "k2", "k3", "k4"]), ":3\r\n");
    assert_eq!(client.command(&["UNLINK", "k5", "k1"]), ":1\r\n");
    assert_eq!(client.command(&["TOUCH", "k7", "k8", "k9"]), ":2\r\n");
    assert_eq!(
        client.command(&["MSET", "a", "1", "b"]),
        "-ERR wrong number of arguments for 'mset' command\r\n"
    );
    assert_eq!(client.command(&["MGET"]), "-ERR wrong number of arguments for 'mget' command\r\n");
    // The sum of a part's failure: an element that is an error, in its place.
    client.command(&["RPUSH", "list", "x"]);
    assert_eq!(client.command(&["MGET", "k7", "list", "k8"]), array(&["k7", "nil", "k8"]));
}

#[test]
fn pipelines_of_many_clients_keep_their_order_on_real_servers() {
    let Some((_servers, router)) = cluster() else { return };
    let addr = router.addr();
    let clients: Vec<_> = (0..8)
        .map(|id| {
            thread::spawn(move || {
                let mut client = Client::connect(addr);
                for round in 0..30 {
                    let mut batch = String::new();
                    let mut expected = String::new();
                    for n in 0..40 {
                        let (key, value) = (format!("{id}:{n}"), format!("{id}.{round}.{n}"));
                        batch += &command(&["SET", &key, &value]);
                        expected += "+OK\r\n";
                        batch += &command(&["GET", &key]);
                        expected += &bulk(&value);
                        if n % 10 == 0 {
                            batch += &command(&["PING"]);
                            expected += "+PONG\r\n";
                            batch += &command(&["NOSUCH"]);
                            expected += "-ERR unknown command 'NOSUCH', with args beginning with: \r\n";
                            let other = format!("{id}:0");
                            batch += &command(&["MGET", &key, &other, "missing"]);
                            expected += &array(&[&value, &format!("{id}.{round}.0"), "nil"]);
                        }
                    }
                    client.send(&batch);
                    let mut got = String::new();
                    while got.len() < expected.len() {
                        got += &client.reply();
                    }
                    assert_eq!(got, expected);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}

#[test]
fn large_values_pass_in_both_directions() {
    let Some((_servers, router)) = cluster() else { return };
    let mut client = router.client();
    for size in [0, 1, 60_000, 70_000, 3_000_000, 20 << 20] {
        let value = "v".repeat(size);
        assert_eq!(client.command(&["SET", "big", &value]), "+OK\r\n");
        let got = client.command(&["GET", "big"]);
        assert!(got == bulk(&value), "{size} bytes");
    }
    client.send(format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n", (64 << 20) + 1));
    let reply = client.reply();
    assert!(reply.starts_with("-ERR phalanx: an argument of 67108865 bytes is above the limit"), "{reply}");
}

#[test]
fn known_clients_work() {
    let Some((_servers, router)) = cluster() else { return };
    let run = |program: &str, args: &[&str]| {
        let port = router.addr().port().to_string();
        match Command::new(program).args(["-h", "127.0.0.1", "-p", &port]).args(args).output() {
            Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
            Err(error) => {
                assert!(std::env::var_os("PHALANX_REQUIRE_SERVERS").is_none(), "{program}: {error}");
                println!("SKIPPED: {program} cannot be started: {error}");
                None
            }
        }
    };
    let Some(output) = run("redis-cli", &["SET", "a", "1"]) else { return };
    assert_eq!(output, "OK\n");
    assert_eq!(run("redis-cli", &["-2", "MGET", "a", "b"]).unwrap(), "1\n\n");
    let output =
        run("redis-benchmark", &["-n", "20000", "-P", "16", "-t", "set,get", "-r", "100", "--csv"]).unwrap();
    assert!(output.contains("\"SET\"") && output.contains("\"GET\""), "{output}");
}

#[test]
fn the_router_answers_what_concerns_the_connection() {
    let server = FakeServer::start(|peer| while peer.command().is_some() {});
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    assert_eq!(client.command(&["PING"]), "+PONG\r\n");
    assert_eq!(client.command(&["HELLO", "4"]), "-NOPROTO unsupported protocol version\r\n");
    assert_eq!(client.command(&["SELECT", "0"]), "+OK\r\n");
    client.send("PING\r\nping hello\r\n\r\nGET x\r\n");
    assert_eq!((client.reply(), client.reply()), ("+PONG\r\n".into(), bulk("hello")));
    assert_eq!(
        client.reply(),
        "-ERR phalanx: inline commands are not routed: send arrays of bulk strings\r\n"
    );
    client.send("*0\r\n*-1\r\n*-10\r\n*1\r\n$4\r\nQUIT\r\n*1\r\n$4\r\nPING\r\n");
    assert_eq!(client.reply(), "+OK\r\n", "empty arrays are not answered");
    assert!(client.is_closed(), "nothing after QUIT is");
    assert_eq!(server.connections(), 0);
}

/// What a page in a browser can have sent.
#[test]
fn commands_within_http_are_not_carried_out() {
    let server = FakeServer::start(|peer| while peer.command().is_some() {});
    let router = Router::start(&redis(&[&[server.addr]]));
    let set = command(&["SET", "pwned", "1"]);
    for (head, refusals) in
        [("POST / HTTP/1.1\r\nHost: x\r\n\r\n", 1), ("PUT / HTTP/1.1\r\nhost: x\r\n\r\n", 2)]
    {
        let mut client = router.client();
        client.send(head.to_owned() + &set);
        for _ in 0..refusals {
            assert!(client.reply().starts_with("-ERR phalanx: "));
        }
        assert!(client.is_closed());
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn what_is_not_resp_ends_the_connection_after_the_replies_that_are_due() {
    let server = FakeServer::start(|peer| {
        while peer.command().is_some() {
            thread::sleep(Duration::from_millis(50));
            peer.send("+due\r\n");
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    for garbage in
        ["*x\r\n", "*1\r\n:1\r\n", "*2\r\n$3\r\nGET\r\n$1\r\nabc\r\n", "GET\0\r\n", "*1\r\n$-5\r\n"]
    {
        let mut client = router.client();
        client.send(command(&["GET", "a"]) + garbage + &command(&["GET", "smuggled"]));
        assert_eq!(client.reply(), "+due\r\n");
        assert!(client.reply().starts_with("-ERR Protocol error: "), "{garbage:?}");
        assert!(client.is_closed());
    }
    assert!(server.seen().iter().all(|seen| seen == "GET a"));
}

#[test]
fn a_command_that_breaks_off_reaches_nobody() {
    let server = FakeServer::start(|peer| {
        while peer.command().is_some() {
            peer.send("+OK\r\n");
        }
    });
    let router =
        Router::with(&redis(&[&[server.addr]]), 1, |limits| limits.stall = Duration::from_millis(200));
    let whole = command(&["SET", "key", "value"]);
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
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    for byte in whole.repeat(3).bytes() {
        client.send([byte]);
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!([client.reply(), client.reply(), client.reply()], ["+OK\r\n"; 3]);
    assert_eq!(server.seen(), ["SET key value"; 3]);
}

#[test]
fn clients_share_one_connection_and_its_batches() {
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            peer.send(&bulk(&args[1]));
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut clients: Vec<Client> = (0..20).map(|_| router.client()).collect();
    for round in 0..20 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(command(&["GET", &format!("{round}.{n}")]).repeat(3));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            for _ in 0..3 {
                assert_eq!(client.reply(), bulk(&format!("{round}.{n}")));
            }
        }
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_client_that_goes_away_takes_only_its_own_replies_with_it() {
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            thread::sleep(Duration::from_millis(1));
            peer.send(&bulk(&args[1]));
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut staying = router.client();
    for round in 0..10 {
        let mut going = router.client();
        going.send(command(&["GET", "gone"]).repeat(10));
        staying.send((0..10).map(|n| command(&["GET", &format!("{round}.{n}")])).collect::<String>());
        drop(going);
        for n in 0..10 {
            assert_eq!(staying.reply(), bulk(&format!("{round}.{n}")));
        }
    }
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_replies() {
    let server = FakeServer::start(|peer| {
        while peer.command().is_some() {
            thread::sleep(Duration::from_millis(20));
            peer.send("+late\r\n");
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    client.send(command(&["GET", "a"]).repeat(5));
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..5 {
        assert_eq!(client.reply(), "+late\r\n");
    }
    assert!(client.is_closed());
}

#[test]
fn tags_keep_keys_together() {
    let echo = |name: &'static str| {
        FakeServer::start(move |peer| {
            while let Some(args) = peer.command() {
                let reply = if args[0] == "MGET" { array(&vec![name; args.len() - 1]) } else { bulk(name) };
                peer.send(&reply);
            }
        })
    };
    let (a, b) = (echo("a"), echo("b"));
    let router = Router::start(&redis(&[&[a.addr], &[b.addr]]));
    let mut client = router.client();
    let mut both = std::collections::HashSet::new();
    for tag in 0..20 {
        let keys: Vec<String> = (0..10).map(|n| format!("{{{tag}}}{n}")).collect();
        let mget: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
        let name = client.command(&["GET", &keys[0]]);
        both.insert(name.clone());
        assert_eq!(client.command(&mget), format!("*10\r\n{}", name.repeat(10)));
    }
    assert_eq!(both.len(), 2);
    let untouched = |seen: Vec<String>| {
        seen.iter().all(|seen| !seen.starts_with("MGET") || seen.split(' ').count() == 11)
    };
    assert!(untouched(a.seen()) && untouched(b.seen()), "what one RACS holds goes there in one piece");
}
