//! A router that runs goes over to another configuration: nobody notices who need not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::*;
use router::{Config, ReloadError, Reloaded, RouterHandle, Surroundings};

fn parse(text: &str) -> Config {
    let surroundings = Surroundings { follows_groups: true, ..Surroundings::default() };
    Config::parse(text, "test.toml".as_ref(), surroundings).unwrap()
}

fn reload(router: &Router, text: &str) -> Reloaded {
    router.handle.reload(&parse(text)).unwrap()
}

/// The services' names.
fn names(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// A service with everything that tests change.
fn one(
    name: &str,
    listen: SocketAddr,
    protocol: &str,
    more: &str,
    partitions: u32,
    servers: &[SocketAddr],
) -> String {
    let list: Vec<String> = servers.iter().map(|addr| format!("\"{addr}\"")).collect();
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"{protocol}\"\n{more}\n\
         [service.pmap]\nstyle = \"slots\"\npartitions = {partitions}\n\
         [[service.racs]]\nname = \"r\"\nservers = [{}]\n",
        list.join(", ")
    )
}

const KEY: &str = "key = \"header:x-key\"";

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn where_is(handle: &RouterHandle, service: &str) -> SocketAddr {
    handle.serving().into_iter().find(|serving| serving.service == service).unwrap().listen
}

#[test]
fn services_come_change_and_go_and_what_stays_is_not_touched() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let kept = one("kept", any(), "http", KEY, 4, &[a.addr]);
    let router = Router::with(&(kept.clone() + &one("old", any(), "http", KEY, 4, &[a.addr])), 2, |_| {});
    let (at, old) = (router.addr(), where_is(&router.handle, "old"));
    let (mut client, mut leaver) = (router.client(), Client::connect(old));
    assert_eq!((client.get("k").body.as_str(), leaver.get("k").body.as_str()), ("a:", "a:"));

    let told = reload(&router, &(kept.clone() + &one("new", any(), "http", KEY, 4, &[b.addr])));
    assert_eq!((names(&told.added), names(&told.removed)), (vec!["new"], vec!["old"]));
    assert_eq!((names(&told.changed), names(&told.unchanged)), (vec![], vec!["kept"]));
    assert!(leaver.is_closed(), "whoever is connected to a service that goes is sent away");
    eventually("nobody listens", || TcpStream::connect(old).is_err());
    assert_eq!(Client::connect(where_is(&router.handle, "new")).get("k").body, "b:");
    assert_eq!(client.get("k").body, "a:");

    let told = reload(&router, &kept.replace(&a.addr.to_string(), &b.addr.to_string()));
    assert_eq!((names(&told.changed), names(&told.removed)), (vec!["kept"], vec!["new"]));
    assert_eq!(client.get("k").body, "b:", "clients that are connected are served as the new one says");
    assert_eq!(router.addr(), at, "any free port stays the same one");
    assert_eq!(router.client().get("k").body, "b:");
    assert_eq!(router.stats().requests, 4, "the service counts on");
}

#[test]
fn a_request_under_way_ends_as_it_began() {
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let gate2 = gate.clone();
    let slow = FakeServer::start(move |peer| {
        while peer.request().is_some() {
            drop(gate2.lock().unwrap());
            peer.respond("slow");
        }
    });
    let quick = FakeServer::echo("quick");
    let router = Router::start(&http(&[&[slow.addr]]));
    let mut client = router.client();
    client.send(post("k", "x") + &post("k", "y"));
    eventually("it arrives", || slow.seen().len() == 1);
    reload(&router, &http(&[&[quick.addr], &[quick.addr]]));
    thread::sleep(Duration::from_millis(1_200)); // longer than anything is kept that nobody holds
    drop(held);
    assert_eq!([client.response().body, client.response().body], ["slow", "quick:y"]);
    assert_eq!(slow.seen().len(), 1);
}

#[test]
fn an_update_that_waits_for_a_leader_hears_of_the_next_view_whatever_was_reloaded_meanwhile() {
    let server = FakeServer::echo("a");
    let text = grouped("http", "key = \"header:x-key\"");
    let router = Router::start(&text);
    router.handle.update_group("g", &view(7, None, &[server.addr])).unwrap();
    let mut waiter = router.client();
    waiter.send(post("k", "x"));
    eventually("it waits", || router.stats().waited == 1);
    for partitions in 17..20 {
        reload(&router, &text.replace("partitions = 16", &format!("partitions = {partitions}")));
    }
    assert_eq!(router.client().get("k").body, "a:", "what is known of the group is known to the new one");
    thread::sleep(Duration::from_millis(1_200));
    router.handle.update_group("g", &view(8, Some(0), &[server.addr])).unwrap();
    assert_eq!(waiter.response().body, "a:x");
}

#[test]
fn a_socket_passes_to_whichever_service_has_its_address_now() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let (left, right) = (nobody(), nobody());
    let text = |first: &str, second: &str| {
        one(first, left, "http", KEY, 4, &[a.addr]) + &one(second, right, "http", KEY, 4, &[b.addr])
    };
    let router = Router::with(&text("one", "two"), 2, |_| {});
    // They are in the queues of both addresses, or accepted: nobody may be reset.
    let mut clients: Vec<Client> = (0..40).map(|at| Client::connect([left, right][at % 2])).collect();
    let told = reload(&router, &text("two", "one"));
    assert_eq!(names(&told.changed), ["two", "one"]);
    assert_eq!((where_is(&router.handle, "two"), where_is(&router.handle, "one")), (left, right));
    for (at, client) in clients.iter_mut().enumerate() {
        let body = client.get("k").body;
        // Who was accepted is served by the service that it came for, which is at the other address now.
        assert!(body == "a:" || body == "b:", "{at}: {body}");
    }
    assert_eq!(
        (Client::connect(left).get("k").body, Client::connect(right).get("k").body),
        ("a:".into(), "b:".into())
    );

    reload(&router, &(one("three", left, "http", KEY, 4, &[b.addr])));
    assert_eq!(Client::connect(left).get("k").body, "b:");
}

#[test]
fn it_is_all_or_nothing() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let kept = one("kept", any(), "http", KEY, 4, &[a.addr]);
    let router = Router::with(&kept, 2, |_| {});
    let before = router.handle.serving();
    let other = nobody();
    let wrong = kept.replace(&a.addr.to_string(), &b.addr.to_string())
        + &one("new", other, "http", KEY, 4, &[b.addr])
        + &one("taken", taken.local_addr().unwrap(), "http", KEY, 4, &[b.addr]);
    let error = router.handle.reload(&parse(&wrong)).unwrap_err();
    assert!(matches!(error, ReloadError::Start(_)) && error.to_string().contains("\"taken\""), "{error}");
    assert_eq!(router.handle.serving(), before);
    assert!(TcpStream::connect(other).is_err(), "nobody listens there");
    assert_eq!(router.client().get("k").body, "a:");

    let wildcard = SocketAddr::new("0.0.0.0".parse().unwrap(), other.port());
    reload(&router, &one("kept", other, "http", KEY, 4, &[a.addr]));
    let error = router.handle.reload(&parse(&one("kept", wildcard, "http", KEY, 4, &[a.addr]))).unwrap_err();
    assert!(error.to_string().contains("reload first without the one"), "{error}");
    assert_eq!(router.client().get("k").body, "a:");

    router.handle.shutdown(Duration::ZERO);
    assert!(matches!(router.handle.reload(&parse(&kept)), Err(ReloadError::Stopped(_))));
}

#[test]
fn another_protocol_at_the_same_address_sends_away_who_spoke_the_old_one() {
    let server = FakeServer::start(|peer| {
        while peer.command().is_some() {
            peer.send("+redis\r\n");
        }
    });
    let (web, at) = (FakeServer::echo("web"), nobody());
    let router = Router::with(&one("s", at, "http", KEY, 4, &[web.addr]), 2, |_| {});
    let mut client = router.client();
    assert_eq!(client.get("k").body, "web:");
    reload(&router, &one("s", at, "redis", "", 4, &[server.addr]));
    assert!(client.is_closed());
    let mut client = router.client();
    assert_eq!(client.command(&["GET", "k"]), "+redis\r\n");
    reload(&router, &one("s", at, "http", KEY, 4, &[web.addr]));
    assert!(client.is_closed());
    assert_eq!(router.client().get("k").body, "web:");
}

#[test]
fn connections_that_were_let_in_by_an_old_password_end() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (open.clone(), most.clone());
    let server = FakeServer::start(move |peer| {
        highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let mut password = String::new();
        while let Some(args) = peer.command() {
            match args[0].as_str() {
                "AUTH" => {
                    password.clone_from(&args[1]);
                    peer.send("+OK\r\n");
                }
                _ => peer.send(&format!("+{password}\r\n")),
            }
        }
        counted.fetch_sub(1, Ordering::SeqCst);
    });
    let file = std::env::temp_dir().join(format!("router-reload-{}", std::process::id()));
    let text = |n: usize| {
        std::fs::write(&file, format!("p{n}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let auth = format!("auth = {{ server_password_file = \"{}\" }}", file.display());
        one("kv", any(), "redis", &auth, 4, &[server.addr])
            + &one("other", any(), "redis", "", 4, &[server.addr])
    };
    let router = Router::with(&text(0), 1, |_| {});
    let (mut client, mut other) = (router.client(), Client::connect(where_is(&router.handle, "other")));
    for n in 1..12 {
        let text = text(n);
        reload(&router, &text);
        assert_eq!(client.command(&["GET", "k"]), format!("+p{n}\r\n"));
        assert_eq!(other.command(&["GET", "k"]), "+\r\n");
    }
    assert!(most.load(Ordering::SeqCst) > 2, "the test must have tested something");
    eventually("one for each service is left", || open.load(Ordering::SeqCst) == 2);
    // The numbers of lanes that were given back are taken again, by whoever comes.
    for n in 12..15 {
        reload(&router, &text(n));
        assert_eq!(client.command(&["GET", "k"]), format!("+p{n}\r\n"));
        assert_eq!(other.command(&["GET", "k"]), "+\r\n");
        thread::sleep(Duration::from_millis(1_200));
    }
    eventually("one for each service is left", || open.load(Ordering::SeqCst) == 2);
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn who_gave_no_password_is_let_in_once_none_is_asked_for() {
    let server = FakeServer::start(|peer| {
        while peer.command().is_some() {
            peer.send("+OK\r\n");
        }
    });
    let file = std::env::temp_dir().join(format!("router-admitted-{}", std::process::id()));
    std::fs::write(&file, "secret\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let auth = format!("auth = {{ client_password_file = \"{}\" }}", file.display());
    let router = Router::start(&one("kv", any(), "redis", &auth, 4, &[server.addr]));
    let mut clients = [router.client(), router.client()];
    for client in &mut clients {
        assert_eq!(client.command(&["GET", "k"]), "-NOAUTH Authentication required.\r\n");
    }
    reload(&router, &one("kv", any(), "redis", "", 4, &[server.addr]));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(clients[0].command(&["GET", "k"]), "+OK\r\n");
    let large = "v".repeat(100_000);
    assert_eq!(clients[1].command(&["SET", "k", &large]), "+OK\r\n", "it has the room of all others, too");
}

/// The `n`th of a series of configurations that all serve `web` and `kv` where the first one does.
fn variant(
    n: usize,
    web: SocketAddr,
    kv: SocketAddr,
    servers: &[SocketAddr],
    stores: &[SocketAddr],
) -> String {
    let expose =
        if n.is_multiple_of(2) { "key = \"header:x-key\"" } else { "key = \"header:x-key\"\nexpose = true" };
    let partitions = [4, 16, 5][n % 3];
    let rotated = |list: &[SocketAddr]| -> Vec<SocketAddr> {
        (0..list.len() - n % 2).map(|at| list[(at + n) % list.len()]).collect()
    };
    let mut text = one("web", web, "http", expose, partitions, &rotated(servers))
        + &one(
            "kv",
            kv,
            "redis",
            if n.is_multiple_of(4) { "reads = \"leader\"" } else { "" },
            partitions,
            &rotated(stores),
        );
    if n % 5 < 2 {
        text += &one("guest", any(), "http", KEY, 4, servers);
    }
    text
}

/// Asks and counts what is answered, until it is stopped.
fn http_load(id: usize, addr: SocketAddr, stop: &AtomicBool, count: &AtomicU64) {
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut client = Client::connect(addr);
        for round in 0..30 {
            let nonces: Vec<String> = (0..1 + round % 4).map(|at| format!("{id}.{answered}.{at}")).collect();
            client.send(nonces.iter().map(|nonce| post(nonce, nonce)).collect::<String>());
            for nonce in &nonces {
                let response = client.response();
                assert_eq!((response.status, response.body.as_str()), (200, format!("web:{nonce}").as_str()));
                answered = count.fetch_add(1, Ordering::SeqCst) + 1;
            }
        }
    }
}

/// As [`http_load`].
fn redis_load(id: usize, addr: SocketAddr, stop: &AtomicBool, count: &AtomicU64) {
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut client = Client::connect(addr);
        for round in 0..30 {
            let nonces: Vec<String> = (0..1 + round % 8).map(|at| format!("{id}.{answered}.{at}")).collect();
            client.send(nonces.iter().map(|nonce| command(&["SET", nonce, nonce])).collect::<String>());
            for nonce in &nonces {
                assert_eq!(client.reply(), format!("${}\r\n{nonce}\r\n", nonce.len()));
                answered = count.fetch_add(1, Ordering::SeqCst) + 1;
            }
        }
    }
}

#[test]
fn no_request_fails_while_the_configuration_changes_all_the_time() {
    let servers: Vec<FakeServer> = (0..3).map(|_| FakeServer::echo("web")).collect();
    let stores: Vec<FakeServer> = (0..3)
        .map(|_| {
            FakeServer::start(|peer| {
                while let Some(args) = peer.command() {
                    peer.send(&format!("${}\r\n{}\r\n", args[2].len(), args[2]));
                }
            })
        })
        .collect();
    let addrs = |list: &[FakeServer]| list.iter().map(|server| server.addr).collect::<Vec<_>>();
    let (servers_at, stores_at) = (addrs(&servers), addrs(&stores));
    let (web, kv) = (nobody(), nobody());
    let router = Router::with(&variant(0, web, kv, &servers_at, &stores_at), 2, |_| {});
    let stop = Arc::new(AtomicBool::new(false));
    let counts: Arc<[AtomicU64; 8]> = Arc::default();
    let clients: Vec<_> = (0..8)
        .map(|id| {
            let (stop, counts) = (stop.clone(), counts.clone());
            thread::spawn(move || match id % 2 {
                0 => http_load(id, web, &stop, &counts[id]),
                _ => redis_load(id, kv, &stop, &counts[id]),
            })
        })
        .collect();
    let start = Instant::now();
    let mut reloads = 0;
    let answered = || counts.each_ref().map(|count| count.load(Ordering::SeqCst));
    let is_enough = |reloads| reloads >= 20 && answered().iter().all(|answered| *answered > 100);
    // On a busy machine until it has come to something.
    while (start.elapsed() < Duration::from_secs(3) || !is_enough(reloads) && start.elapsed() < 6 * PATIENCE)
        && clients.iter().all(|client| !client.is_finished())
    {
        reloads += 1;
        reload(&router, &variant(reloads, web, kv, &servers_at, &stores_at));
        thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("no request fails"));
    println!("{reloads} reloads, {:?} answers", answered());
    assert!(is_enough(reloads), "{reloads} {:?}", answered());
}

/// A changed configuration once began to count at nothing: each reload let as many again through.
#[test]
fn what_is_under_way_counts_in_the_next_configuration_too() {
    let server = FakeServer::start(|peer| {
        let _ = peer.reader.read(&mut [0]); // says nothing until the client goes
    });
    let text = |partitions| {
        one("s", any(), "tcp", "key = \"source\"\nmax_in_flight = 2", partitions, &[server.addr])
    };
    let router = Router::with(&text(4), 1, |_| {});
    let under_way = || router.stats().in_flight;
    let tunnels = [Client::connect(router.addr()), Client::connect(router.addr())];
    eventually("two are under way", || under_way() == 2);
    reload(&router, &text(8));
    let mut third = TcpStream::connect(router.addr()).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    match third.read(&mut [0]) {
        Ok(0) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        Ok(_) => panic!("nobody says anything"),
    }
    assert_eq!(under_way(), 2);
    drop(tunnels);
    eventually("none is under way", || under_way() == 0);
}
