//! Clients that say how long they wait: that long and no longer, and servers know.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    Client, FakeServer, Response, Router, eventually, grouped, once_within, patient, service, view,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn config(field: &str, racs: &[&[SocketAddr]]) -> String {
    service("http", &format!("key = \"header:x-key\"\ndeadline = \"header:{field}\""), racs)
}

/// Answers after `pause`, with its name.
fn slow(name: &'static str, pause: Duration) -> FakeServer {
    FakeServer::start(move |peer| {
        while peer.request().is_some() {
            thread::sleep(pause);
            peer.respond(name);
        }
    })
}

/// Answers nothing.
fn silent() -> FakeServer {
    FakeServer::start(|peer| while peer.request().is_some() {})
}

fn ask(client: &mut Client, method: &str, fields: &str) -> (Response, Duration) {
    let start = Instant::now();
    let len = if method == "POST" { "Content-Length: 1\r\n" } else { "" };
    let body = if method == "POST" { "x" } else { "" };
    client.send(format!("{method} / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n{len}{fields}\r\n{body}"));
    (client.response(), start.elapsed())
}

/// What a server was told of this field, each time.
fn told(server: &FakeServer, field: &str) -> Vec<String> {
    let value = |head: &String| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(name, _)| name.eq_ignore_ascii_case(field)).map(|(_, value)| value.trim().to_owned())
    };
    server.seen().iter().filter_map(value).collect()
}

fn is_late(response: &Response) {
    assert_eq!(response.status, 504, "{}", response.body);
    let body = response.json();
    assert!(body["error"].as_str().unwrap().contains("deadline has passed, and nothing was changed"));
    assert_eq!(body["retry"], true);
}

#[test]
fn a_read_ends_with_its_deadline_and_what_became_of_an_update_is_unknown() {
    const FIELD: &str = "X-Request-Timeout";
    const GIVEN: u64 = 400;
    let well = Arc::new(AtomicBool::new(false));
    let answers = well.clone();
    let server = FakeServer::start(move |peer| {
        while peer.request().is_some() {
            if answers.load(Ordering::SeqCst) {
                peer.respond("a");
            }
        }
    });
    let router = Router::start(&config(FIELD, &[&[server.addr]]));
    let mut client = router.client();
    let mut asked = 0;
    // The answer, how long it took, and how much of the time was lost before the server was told what was left.
    let mut ask_in = |method: &str, field: &str, given: u64| {
        let (response, took) = ask(&mut client, method, &format!("{field}: {given}\r\n"));
        asked += 1;
        eventually("the server is told", || told(&server, FIELD).len() == asked);
        let left: u64 = told(&server, FIELD).last().unwrap().parse().unwrap();
        assert!(left <= given, "{left} of {given}");
        (response, took, MS(given - left))
    };
    // Of 260 ms that it may take longer, 100 may be lost on the way.
    let late = |took: Duration, lost: Duration| {
        assert!(took >= MS(GIVEN), "{took:?}");
        (took - MS(GIVEN)).max(lost + MS(160))
    };
    let (mut reads, mut updates) = (0, 0);
    once_within(MS(260), || {
        let (response, took, lost) = ask_in("GET", "x-request-timeout", GIVEN);
        is_late(&response);
        reads += 1;
        late(took, lost)
    });
    once_within(MS(260), || {
        let (response, took, lost) = ask_in("POST", FIELD, GIVEN);
        assert_eq!((response.status, &response.json()["retry"]), (502, &false.into()));
        assert!(response.body.contains("outcome unknown"), "{}", response.body);
        updates += 1;
        late(took, lost)
    });
    // The connection goes on, and so do requests whose time suffices, or that say none.
    well.store(true, Ordering::SeqCst);
    once_within(MS(100), || {
        let (response, _, lost) = ask_in("GET", FIELD, 5000);
        assert_eq!(response.body, "a");
        lost
    });
    assert_eq!(ask(&mut client, "GET", "").0.body, "a");
    assert_eq!((router.stats().unavailable, router.stats().unknown), (reads, updates));
    let times = told(&server, FIELD);
    assert_eq!(times.len(), asked, "nothing is said where the client says nothing: {times:?}");
}

#[test]
fn a_time_is_bounded_by_the_limit_and_written_as_its_field_has_it() {
    let server = slow("a", Duration::ZERO);
    let router = Router::start(&config("grpc-timeout", &[&[server.addr]]));
    let mut client = router.client();
    for time in ["2S", "1500000u", "100H"] {
        assert_eq!(ask(&mut client, "GET", &format!("grpc-timeout: {time}\r\n")).0.status, 200);
    }
    let times = told(&server, "grpc-timeout");
    for (time, given) in times.iter().zip([2000, 1500, 30_000]) {
        let left: u64 = time.strip_suffix('m').unwrap().parse().unwrap();
        assert!(left <= given && left + 500 > given, "{left} of {given}");
    }
    assert_eq!(times.len(), 3);
}

#[test]
fn what_is_no_time_is_refused_and_no_time_is_no_request() {
    let server = slow("a", Duration::ZERO);
    let router = Router::start(&config("X-Request-Timeout", &[&[server.addr]]));
    for wrong in ["", "soon", "-1", "1.5", "1s", "12345678901", "5\r\nX-Request-Timeout: 5"] {
        let (response, _) = ask(&mut router.client(), "GET", &format!("X-Request-Timeout: {wrong}\r\n"));
        assert_eq!(response.status, 400, "{wrong:?}");
        assert!(response.body.contains("the deadline is no time"), "{}", response.body);
    }
    let mut client = router.client();
    for method in ["GET", "POST"] {
        is_late(&ask(&mut client, method, "X-Request-Timeout: 0\r\n").0);
    }
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn who_waits_for_a_leader_waits_no_longer_than_the_client() {
    let text = grouped("http", "key = \"header:x-key\"\ndeadline = \"header:x-t\"");
    let router = Router::start(&text);
    router.handle.update_group("g", &view(7, None, &[])).unwrap();
    once_within(MS(1500), || {
        let (response, took) = ask(&mut router.client(), "POST", "X-T: 200\r\n");
        is_late(&response);
        assert!(took >= MS(200), "{took:?}");
        took
    });
    // A deadline that is met changes nothing, and tells the server what is left.
    let server = slow("a", Duration::ZERO);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&mut router.client(), "POST", "X-T: 5000\r\n").0.status);
        eventually("it waits", || router.stats().waiting == 1);
        thread::sleep(MS(150));
        router.handle.update_group("g", &view(8, Some(0), &[server.addr])).unwrap();
        assert_eq!(waiting.join().unwrap(), 200);
    });
    let left: u64 = told(&server, "x-t")[0].parse().unwrap();
    assert!((1000..=4850).contains(&left), "{left}");
}

#[test]
fn nothing_is_begun_after_the_deadline() {
    once_within(MS(880), a_read_of_servers_that_hang_up_ends_with_its_deadline);
}

/// Returns how long that took.
fn a_read_of_servers_that_hang_up_ends_with_its_deadline() -> Duration {
    // Each takes a request, and hangs up after a while.
    let dying = || {
        FakeServer::start(|peer| {
            peer.request();
            thread::sleep(MS(270));
        })
    };
    let servers = [dying(), dying(), dying()];
    let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    let text = config("x-t", &[&addrs]).replace("[service.pmap]", "hedge = \"off\"\n[service.pmap]");
    let router = Router::start(&text);
    let (response, took) = ask(&mut router.client(), "GET", "X-T: 420\r\n");
    is_late(&response);
    assert!(took >= MS(420), "{took:?}");
    thread::sleep(MS(450));
    let seen: usize = servers.iter().map(|server| server.seen().len()).sum();
    assert!((1..=2).contains(&seen), "{seen}");
    took
}

#[test]
fn a_second_clone_is_asked_in_time_and_told_what_is_left() {
    let (silent, well) = (silent(), slow("well", Duration::ZERO));
    let router = Router::start(&config("x-t", &[&[silent.addr, well.addr]]));
    eventually("both are asked", || {
        let (response, _) = ask(&mut router.client(), "GET", "X-T: 2000\r\n");
        assert_eq!(response.body, "well");
        router.stats().hedged > 0
    });
    eventually("the silent one has heard it", || !told(&silent, "x-t").is_empty());
    let left = |server| told(server, "x-t").last().unwrap().parse::<u64>().unwrap();
    // On a busy machine it may have been the other way round.
    assert!(left(&well).abs_diff(left(&silent)) >= 15, "{} and {}", left(&well), left(&silent));
}

#[test]
fn a_server_about_which_nothing_but_deadlines_is_known_is_avoided() {
    // Too short to tell silence from slowness, each on its own; long enough for a busy machine.
    let (silent, well) = (silent(), slow("well", Duration::ZERO));
    let router = Router::with(&config("x-t", &[&[silent.addr, well.addr]]), 1, patient);
    let mut late = 0;
    for _ in 0..100 {
        late += usize::from(ask(&mut router.client(), "GET", "X-T: 300\r\n").0.status == 504);
    }
    assert!((1..30).contains(&late), "{late} of 100 were sent where nobody answers");
}
