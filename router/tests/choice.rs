//! Which clone answers: weights, zones, and servers that are new.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use common::*;
use router::{CloneAt, GroupClones};

/// A service with one RACS whose clones and settings are written out.
fn config(settings: &str, racs: &str) -> String {
    format!(
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\nkey = \"header:x-key\"\n{settings}\n\
         pmap = {{ style = \"slots\", partitions = 4 }}\nracs = [{{ name = \"a\", {racs} }}]\n"
    )
}

fn hits(router: &Router, requests: usize) -> BTreeMap<String, usize> {
    let mut client = router.client();
    let mut hits = BTreeMap::new();
    for n in 0..requests {
        *hits.entry(client.get(&format!("k{n}")).body).or_default() += 1;
    }
    hits
}

fn of(hits: &BTreeMap<String, usize>, name: &str) -> usize {
    hits.get(name).copied().unwrap_or(0)
}

/// Answers after a while, so that chance does not make one look faster than the other.
fn steady(name: &'static str, time: Duration) -> FakeServer {
    FakeServer::start(move |peer| {
        while peer.request().is_some() {
            thread::sleep(time);
            peer.respond(name);
        }
    })
}

#[test]
fn clones_take_reads_by_their_weights() {
    let time = Duration::from_millis(5);
    let (light, heavy) = (steady("light", time), steady("heavy", time));
    let racs = format!("servers = [\"{}\", {{ addr = \"{}\", weight = 9 }}]", light.addr, heavy.addr);
    let router = Router::start(&config("", &racs));
    // Many at once: of idle clones the one that happens to be faster would do.
    let all: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..10).map(|_| scope.spawn(|| hits(&router, 30))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let sum = |name| all.iter().map(|hits| of(hits, name)).sum::<usize>();
    assert!(sum("heavy") > 200 && sum("light") > 0, "{all:?}");
}

#[test]
fn of_two_idle_clones_the_faster_one_answers_and_the_other_gets_another_chance() {
    let (fast, slow) = (steady("fast", Duration::ZERO), steady("slow", Duration::from_millis(40)));
    let racs = format!("servers = [\"{}\", \"{}\"]", slow.addr, fast.addr);
    // Else the fast one would be asked, too, whenever the slow one is.
    let router = Router::start(&config("hedge = \"off\"", &racs));
    let hits = hits(&router, 200);
    assert!((1..40).contains(&of(&hits, "slow")), "{hits:?}");
}

#[test]
fn clones_of_the_routers_zone_are_preferred_while_they_live() {
    let (mut near, far) = (FakeServer::echo("near"), FakeServer::echo("far"));
    let racs = format!(
        "servers = [{{ addr = \"{}\", zone = \"us\" }}, {{ addr = \"{}\", zone = \"eu\" }}]",
        far.addr, near.addr
    );
    // Of one that is silent for a moment the far one would be asked, too.
    let router = Router::with(&config("zone = \"eu\"", &racs), 1, patient);
    assert_eq!(of(&hits(&router, 100), "near:"), 100);
    near.kill();
    assert_eq!(of(&hits(&router, 20), "far:"), 20);
}

#[test]
fn a_clone_that_joins_a_group_starts_with_a_small_share() {
    let (old, new) = (steady("old", Duration::ZERO), steady("new", Duration::ZERO));
    let router = Router::start(&config("slow_start = \"2s\"", "group = \"g\""));
    let tell = |epoch, servers: &[SocketAddr]| {
        let clone = |(at, addr): (usize, &SocketAddr)| CloneAt::new(&format!("n{at}"), *addr);
        let clones = servers.iter().enumerate().map(clone).collect();
        router.handle.update_group("g", &GroupClones { epoch, leader: Some(0), clones }).unwrap();
    };
    tell(1, &[old.addr]);
    assert_eq!(of(&hits(&router, 20), "old"), 20);
    thread::sleep(Duration::from_millis(2100));
    tell(2, &[old.addr, new.addr]);
    // About a tenth; on a busy machine it is more by the time that these are answered.
    let first = hits(&router, 12);
    assert!(of(&first, "new") < 8, "{first:?}");
    eventually("the new one has its share", || of(&hits(&router, 50), "new") > 15);
}
