//! A second clone is asked when the first is silent; and only then, only for reads, and not often.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::*;

/// Takes requests, and answers with its name and the path as long as it is `well`, after `pause`.
fn moody(name: &'static str, well: &Arc<AtomicBool>, pause: Duration) -> FakeServer {
    let well = Arc::clone(well);
    FakeServer::start(move |peer| {
        while let Some(request) = peer.request() {
            thread::sleep(pause);
            if well.load(Ordering::SeqCst) {
                peer.respond(&format!("{name} {}", request.head.split(' ').nth(1).unwrap()));
            }
        }
    })
}

fn always() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

fn get(client: &mut Client, path: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n"));
    client.response()
}

#[test]
fn a_read_about_which_a_server_is_silent_is_answered_by_another() {
    let mood = Arc::new(AtomicBool::new(false));
    let (hung, well) = (moody("a", &mood, Duration::ZERO), FakeServer::echo("b"));
    // Long enough that the one that is well is hardly ever taken for silent, too.
    let after = Duration::from_millis(200);
    let router = Router::with(&http(&[&[hung.addr, well.addr]]), 1, |limits| limits.hedge_after = after);
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        let start = Instant::now();
        let response = router.client().get("k");
        assert_eq!((response.status, response.body.as_str()), (200, "b:"));
        assert_eq!(response.field("x-phalanx-server"), Some(&*well.addr.to_string()));
        longest = longest.max(start.elapsed());
    }
    let hedged = router.stats().hedged;
    eventually("each of these was at the silent one", || hung.seen().len() as u64 == hedged);
    assert!((1..10).contains(&hedged), "{hedged} of 100 went to the silent one");
    assert!(longest >= after && longest < PATIENCE / 5, "{longest:?}");
    // Once it answers again it is used again.
    mood.store(true, Ordering::SeqCst);
    // By many at once: one alone asks whoever was quick lately until that is forgotten, which takes the longer the longer it hung.
    let ask = || get(&mut router.client(), "/x").body == "a /x";
    eventually("the server that is well again gets requests", || {
        thread::scope(|scope| {
            let asked: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().any(|one| one.join().unwrap())
        })
    });
}

#[test]
fn a_server_that_is_well_again_is_used_by_a_client_that_is_alone_too() {
    let mood = Arc::new(AtomicBool::new(false));
    // Its silence is forgotten by halves: the sooner the slower the other one is.
    let well = moody("b", &always(), Duration::from_millis(1));
    let hung = moody("a", &mood, Duration::ZERO);
    let router = Router::start(&http(&[&[hung.addr, well.addr]]));
    let mut client = router.client();
    eventually("it was silent", || {
        assert_eq!(get(&mut client, "/x").status, 200);
        !hung.seen().is_empty()
    });
    mood.store(true, Ordering::SeqCst);
    eventually("it gets requests again", || get(&mut client, "/x").body == "a /x");
}

#[test]
fn updates_wait_for_their_server() {
    let (hung, well) = (moody("a", &Arc::new(AtomicBool::new(false)), Duration::ZERO), FakeServer::echo("b"));
    let router = Router::with(&http(&[&[hung.addr, well.addr]]), 1, |limits| {
        limits.response = Duration::from_millis(300);
    });
    assert_eq!(router.client().post("k", "x").status, 502, "nobody knows what became of it");
    assert_eq!((hung.seen().len(), well.seen().len(), router.stats().hedged), (1, 0, 0));
}

#[test]
fn hedging_can_be_turned_off() {
    let slow = Duration::from_millis(100);
    let (a, b) = (moody("a", &always(), slow), moody("b", &always(), slow));
    let config = service("http", "key = \"header:x-key\"\nhedge = \"off\"", &[&[a.addr, b.addr]]);
    let router = Router::start(&config);
    let mut client = router.client();
    for _ in 0..10 {
        get(&mut client, "/x");
    }
    assert_eq!((a.seen().len() + b.seen().len(), router.stats().hedged), (10, 0));
}

#[test]
fn where_all_are_slow_few_are_asked_twice() {
    let slow = Duration::from_millis(60);
    let (a, b) = (moody("a", &always(), slow), moody("b", &always(), slow));
    let router = Router::start(&http(&[&[a.addr, b.addr]]));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = router.client();
                (0..40).for_each(|_| assert_eq!(get(&mut client, "/x").status, 200));
            });
        }
    });
    let (seen, hedged) = (a.seen().len() + b.seen().len(), router.stats().hedged);
    // Twenty and two a second are possible however few requests there are.
    assert!(hedged <= 20 + 16 + 2 * 10 && seen <= 320 + hedged as usize, "{seen} seen, {hedged} hedged");
}

#[test]
fn whoever_loses_is_heard_by_nobody() {
    let (a, b) = (
        moody("a", &always(), Duration::from_millis(45)),
        FakeServer::start(|peer| {
            while let Some(request) = peer.request() {
                thread::sleep(Duration::from_millis(if peer.number % 2 == 0 { 70 } else { 1 }));
                peer.respond(&format!("b {}", request.head.split(' ').nth(1).unwrap()));
            }
        }),
    );
    let config = service("http", "key = \"header:x-key\"\nhedge = \"50%\"", &[&[a.addr, b.addr]]);
    let hedged = || {
        let router = Router::start(&config);
        thread::scope(|scope| {
            for client in 0..8 {
                let router = &router;
                scope.spawn(move || {
                    let mut connection = router.client();
                    for n in 0..30 {
                        let path = format!("/{client}-{n}");
                        let body = get(&mut connection, &path).body;
                        assert!(body.ends_with(&format!(" {path}")), "{body} for {path}");
                    }
                });
            }
        });
        router.stats().hedged
    };
    // What is slow at first is soon usual, and on a busy machine before anybody was asked twice.
    assert!((0..20).any(|_| hedged() > 0));
}
