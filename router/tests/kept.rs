//! What the router has learned of a server is kept when the map changes: by a view, or by a reload.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use common::*;
use router::{Config, Surroundings};

/// A router that follows a group of these servers, the second of which leads, and that can be made to change its map.
struct Changing {
    router: Router,
    servers: [SocketAddr; 2],
    /// How often it has changed.
    times: u32,
}

impl Changing {
    fn start(servers: [SocketAddr; 2], adjust: impl FnOnce(&mut router::Limits)) -> Self {
        let changing = Self { router: Router::with(&text(0), 1, adjust), servers, times: 0 };
        changing.view();
        changing
    }

    fn view(&self) {
        let view = view(1 + u64::from(self.times), Some(1), &self.servers);
        self.router.handle.update_group("g", &view).unwrap();
    }

    /// Another view, and another map of partitions, in turns.
    fn change(&mut self) {
        self.times += 1;
        if self.times.is_multiple_of(2) {
            let surroundings = Surroundings { follows_groups: true, ..Surroundings::default() };
            let config = Config::parse(&text(self.times), "t".as_ref(), surroundings).unwrap();
            self.router.handle.reload(&config).unwrap();
        } else {
            self.view();
        }
    }
}

fn text(times: u32) -> String {
    let text = grouped("http", "key = \"header:x-key\"");
    text.replace("partitions = 16", &format!("partitions = {}", 4 + times))
}

#[test]
fn a_server_that_failed_is_avoided_across_changes_of_the_map() {
    let (mut a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let mut changing = Changing::start([a.addr, b.addr], |limits| limits.avoid = 60 * PATIENCE);
    a.kill();
    let mut client = changing.router.client();
    eventually("it is avoided", || {
        assert_eq!(client.get("k").body, "b:");
        changing.router.stats().retried > 0
    });
    let a = FakeServer::start_at(a.addr, |peer| while peer.request().is_some() {});
    for _ in 0..8 {
        changing.change();
        let failures = changing.router.server_stats(a.addr);
        assert_eq!((failures.open_by, failures.failures), (1, 1), "after {} changes", changing.times);
        for n in 0..10 {
            assert_eq!(client.get(&format!("k{n}")).body, "b:");
        }
    }
    assert_eq!(a.seen(), Vec::<String>::new());
}

#[test]
fn a_server_that_is_slow_is_known_as_such_across_changes_of_the_map() {
    let slow = FakeServer::start(|peer| {
        while peer.request().is_some() {
            thread::sleep(Duration::from_millis(200));
            peer.respond("slow");
        }
    });
    let quick = FakeServer::echo("quick");
    let mut changing = Changing::start([slow.addr, quick.addr], patient);
    let mut client = changing.router.client();
    eventually("both are known", || {
        client.get("k");
        !slow.seen().is_empty() && quick.seen().len() > 10
    });
    let before = slow.seen().len();
    for _ in 0..40 {
        changing.change();
        client.get("k");
    }
    // If nothing were known after a change, every other one of the requests would go there.
    let after = slow.seen().len() - before;
    assert!(after < 8, "{after} of 40");
}

/// A server that takes each request and dies.
fn dying() -> FakeServer {
    FakeServer::start(|peer| drop(peer.request()))
}

#[test]
fn what_may_be_sent_again_is_not_more_after_a_change_of_the_map() {
    let (dying, well) = (dying(), FakeServer::echo("well"));
    let mut changing = Changing::start([dying.addr, well.addr], |limits| {
        patient(limits);
        limits.avoid = Duration::ZERO;
    });
    let (start, mut client) = (Instant::now(), changing.router.client());
    for most in (40..=400).step_by(40) {
        while dying.seen().len() < most {
            client.get("k");
        }
        changing.change();
    }
    // A hundred at first, ten more each second, and one for each ten that go there.
    let (retried, seconds) = (changing.router.stats().retried, 1 + start.elapsed().as_secs());
    assert!(retried >= 100, "{retried}: nothing was sent again");
    assert!(retried <= 100 + 400 / 10 + 10 * seconds + 5, "{retried} in {seconds} s");
}
