//! Starting, stopping, and the limits of a router as a whole.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::*;
use router::{Config, Options, StartError, Surroundings, UpdateError};

fn config_at(addr: &str) -> Config {
    let text = http(&[&[nobody()]]).replace("127.0.0.1:0", addr);
    Config::parse(&text, "t".as_ref(), Surroundings::default()).unwrap()
}

#[test]
fn a_second_router_cannot_take_the_port_of_the_first() {
    // With SO_REUSEPORT set carelessly it could, and would get half of the connections.
    let first = router::start(&config_at("127.0.0.1:0"), Options::new().workers(2)).unwrap();
    let addr = first.serving()[0].listen;
    let error = router::start(&config_at(&addr.to_string()), Options::new().workers(2)).err().unwrap();
    let StartError::Listen { service, listen, error: cause, .. } = &error else { panic!("{error}") };
    assert_eq!((service.as_str(), *listen, cause.kind()), ("s", addr, std::io::ErrorKind::AddrInUse));
    let said = error.to_string();
    assert!(
        said.starts_with("t:3: service \"s\" cannot listen on ") && said.contains("choose another port"),
        "{said}"
    );
    first.shutdown(Duration::ZERO);
    router::start(&config_at(&addr.to_string()), Options::new()).unwrap().shutdown(Duration::ZERO);
}

#[test]
fn a_shutdown_finishes_what_is_under_way() {
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let gate2 = gate.clone();
    let server = FakeServer::start(move |peer| {
        while peer.request().is_some() {
            drop(gate2.lock().unwrap());
            peer.respond("done");
        }
    });
    let router = Arc::new(Router::with(&http(&[&[server.addr]]), 2, |_| {}));
    let addr = router.addr();
    let mut idle: Vec<Client> = (0..4).map(|_| router.client()).collect();
    let mut busy: Vec<Client> = (0..4).map(|_| router.client()).collect();
    for client in &mut busy {
        client.send(post("k", "x") + &post("k", "second, which comes too late"));
    }
    eventually("they arrive", || server.seen().len() == 4);
    let stopping = router.clone();
    let stopper = thread::spawn(move || {
        let start = Instant::now();
        stopping.handle.shutdown(Duration::from_secs(5));
        start.elapsed()
    });
    for client in &mut idle {
        assert!(client.is_closed(), "idle clients are sent away");
    }
    eventually("nobody listens", || std::net::TcpStream::connect(addr).is_err());
    assert!(!stopper.is_finished());
    drop(held);
    for client in &mut busy {
        let response = client.response();
        assert_eq!((response.body.as_str(), response.field("connection")), ("done", Some("close")));
        assert!(client.is_closed());
    }
    assert!(stopper.join().unwrap() < Duration::from_secs(3));
    assert_eq!(server.seen().len(), 4);
}

#[test]
fn a_shutdown_finishes_redis_commands_and_cuts_what_takes_too_long() {
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            thread::sleep(Duration::from_millis(if args[1] == "slow" { 5_000 } else { 100 }));
            peer.send("+done\r\n");
        }
    });
    let router = Router::start(&redis(&[&[server.addr]]));
    let mut client = router.client();
    client.send(command(&["GET", "a"]) + &command(&["GET", "b"]));
    eventually("it arrives", || !server.seen().is_empty());
    let handle = router.handle.clone();
    let stopper = thread::spawn(move || handle.shutdown(Duration::from_secs(5)));
    assert_eq!([client.reply(), client.reply()], ["+done\r\n", "+done\r\n"]);
    assert!(client.is_closed());
    stopper.join().unwrap();

    once_within(Duration::from_secs(1), || {
        let router = Router::start(&redis(&[&[server.addr]]));
        let mut client = router.client();
        let before = server.seen().len();
        client.send(command(&["GET", "slow"]));
        eventually("it arrives", || server.seen().len() > before);
        let start = Instant::now();
        router.handle.shutdown(Duration::from_millis(200));
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(200), "{took:?}");
        assert!(client.is_closed());
        took
    });
}

#[test]
fn too_many_clients_are_told_so() {
    let server = FakeServer::echo("a");
    let router = Router::with(&http(&[&[server.addr]]), 1, |limits| limits.clients = 2);
    let mut served = [router.client(), router.client()];
    served.iter_mut().for_each(|client| assert_eq!(client.get("k").status, 200));
    let mut third = router.client();
    let response = third.response();
    assert_eq!((response.status, response.field("retry-after")), (503, Some("1")));
    assert!(third.is_closed());
    drop(served);
    eventually("they are gone", || router.stats().clients == 0);
    assert_eq!(router.client().get("k").status, 200);
    assert_eq!(router.stats().shed, 1);

    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| limits.clients = 0);
    assert_eq!(router.client().reply(), "-ERR max number of clients reached\r\n");
}

#[test]
fn views_are_taken_over_in_their_order() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let router = Router::start(&grouped("http", "key = \"header:x-key\""));
    assert_eq!(router.handle.update_group("g", &view(7, Some(0), &[a.addr])), Ok(()));
    assert_eq!(router.handle.update_group("g", &view(8, Some(0), &[b.addr])), Ok(()));
    assert_eq!(router.handle.update_group("g", &view(7, Some(0), &[a.addr])), Err(UpdateError::Stale(8)));
    assert_eq!(router.handle.update_group("h", &view(9, None, &[])), Err(UpdateError::UnknownGroup));
    assert_eq!(router.client().get("k").body, "b:");
}

#[test]
fn counters_add_up_over_workers() {
    let server = FakeServer::echo("a");
    let router = Router::with(&http(&[&[server.addr]]), 3, |_| {});
    let mut clients: Vec<Client> = (0..30).map(|_| router.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("k").status, 200);
    }
    let stats = router.stats();
    assert_eq!((stats.service.as_str(), stats.clients, stats.accepted, stats.requests), ("s", 30, 30, 30));
    // Three workers, each with its own listener: all of them get clients, and open connections of their own.
    assert!((2..=30).contains(&server.connections()), "{}", server.connections());
}
