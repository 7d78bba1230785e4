//! Sessions that stay with a clone: for HTTP by a cookie that outlives the router, for Redis by the connection.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeSet, net::SocketAddr};

use common::*;

const STICKY: &str = "key = \"header:x-key\"\nreads = \"sticky\"\nexpose = true";

/// Three servers that answer with their number.
fn servers() -> [FakeServer; 3] {
    ["0", "1", "2"].map(|name| {
        FakeServer::start(move |peer| {
            while peer.request().is_some() {
                peer.send(&format!(
                    "HTTP/1.1 200 OK\r\nCache-Control: max-age=9\r\nX-Phalanx-Mine: 1\r\nContent-Length: 1\r\n\r\n{name}"
                ));
            }
        })
    })
}

fn addrs(servers: &[FakeServer]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.addr).collect()
}

fn get(client: &mut Client, key: &str, cookie: &str) -> Response {
    client.send(format!("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: {key}\r\nCookie: a=b; {cookie}\r\n\r\n"));
    client.response()
}

/// The cookie that a response sets, as the client sends it back.
fn cookie(response: &Response) -> Option<String> {
    let lines: Vec<&str> = response.head.lines().filter(|line| line.starts_with("Set-Cookie: ")).collect();
    let [line] = lines[..] else {
        assert!(lines.is_empty());
        return None;
    };
    let (cookie, attributes) = line["Set-Cookie: ".len()..].split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    assert!(cookie.starts_with("phalanx-s="), "{cookie}");
    assert!(response.head.contains("Cache-Control: private\r\n"), "no cache gives it to others");
    Some(cookie.to_owned())
}

#[test]
fn a_session_stays_with_its_clone_over_connections_and_routers() {
    let servers = servers();
    let addrs = addrs(&servers);
    let config = service("http", STICKY, &[&addrs]);
    let mut router = Router::with(&config, 1, patient);
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let first = get(&mut router.client(), "k", "");
        let session = cookie(&first).expect("a first placement");
        seen.insert(first.body.clone());
        let mut client = router.client();
        for key in ["k", "another of the same array"] {
            let again = get(&mut client, key, &session);
            assert_eq!((&again.body, cookie(&again)), (&first.body, None), "nothing has changed");
            assert!(!again.head.contains("private"));
        }
    }
    assert_eq!(seen.len(), 3, "sessions are spread");

    let first = get(&mut router.client(), "k", "");
    let session = cookie(&first).unwrap();
    router = Router::with(&config, 2, patient);
    for _ in 0..12 {
        let again = get(&mut router.client(), "k", &session);
        assert_eq!((&again.body, cookie(&again)), (&first.body, None), "another router knows it too");
    }
    // Updates go to the leader, and do not move the session.
    let mut client = router.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nCookie: {session}\r\nContent-Length: 0\r\n\r\n"
    ));
    let update = client.response();
    assert_eq!((&*update.body, cookie(&update)), ("0", None));
}

#[test]
fn a_session_whose_clone_dies_moves_once_and_stays_there() {
    let mut servers = servers();
    let addrs = addrs(&servers);
    let router = Router::with(&service("http", STICKY, &[&addrs]), 1, patient);
    let first = get(&mut router.client(), "k", "");
    let session = cookie(&first).unwrap();
    servers[first.body.parse::<usize>().unwrap()].kill();
    let moved = get(&mut router.client(), "k", &session);
    assert_eq!(moved.status, 200);
    assert_ne!(moved.body, first.body);
    let session = cookie(&moved).expect("it is told so");
    for _ in 0..10 {
        let again = get(&mut router.client(), "k", &session);
        assert_eq!((&again.body, cookie(&again)), (&moved.body, None));
    }
}

#[test]
fn a_cookie_chooses_only_among_the_clones_of_the_keys_own_array() {
    let (a, b) = (servers(), servers());
    let router = Router::with(&service("http", STICKY, &[&addrs(&a), &addrs(&b)]), 1, patient);
    let mut client = router.client();
    let server = |response: &Response| response.field("x-phalanx-server").unwrap().to_owned();
    let of = |servers: &[FakeServer], response: &Response| {
        addrs(servers).iter().any(|addr| addr.to_string() == server(response))
    };
    // Keys of both arrays.
    let keys: Vec<String> = (0..64).map(|n| format!("k{n}")).collect();
    let in_a = keys.iter().find(|key| of(&a, &client.get(key))).unwrap();
    let in_b = keys.iter().find(|key| of(&b, &client.get(key))).unwrap();
    let first = get(&mut client, in_a, "");
    let session = cookie(&first).unwrap();
    let other = get(&mut client, in_b, &session);
    assert!(of(&b, &other), "the session's clone is none of this array's");
    let both = cookie(&other).expect("a placement in the second array, too");
    for (key, response) in [(in_a, &first), (in_b, &other)] {
        let again = get(&mut client, key, &both);
        assert_eq!((server(&again), cookie(&again)), (server(response), None), "one cookie for both");
    }
    // Half of the first array's tag, or nonsense, is nobody: the client is placed anew.
    for forged in ["phalanx-s=", "phalanx-s=0123", "phalanx-s=00000000ffffffff", "phalanx-s=;x"] {
        let placed = get(&mut client, in_a, forged);
        assert!(of(&a, &placed) && cookie(&placed).is_some(), "{forged}");
    }
    let mut spoiled = both.clone();
    spoiled.pop();
    assert!(cookie(&get(&mut client, in_a, &spoiled)).is_some());
}

#[test]
fn updates_that_any_clone_may_take_stay_too_and_what_is_not_exposed_stays_the_servers() {
    let servers = servers();
    let more = "key = \"header:x-key\"\nreads = \"sticky\"\nupdates = \"any\"";
    let router = Router::with(&service("http", more, &[&addrs(&servers)]), 1, patient);
    let first = get(&mut router.client(), "k", "");
    assert_eq!(first.field("x-phalanx-mine"), Some("1"));
    let session = cookie(&first).unwrap();
    for _ in 0..10 {
        let mut client = router.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nCookie: {session}\r\nContent-Length: 0\r\n\r\n"
        ));
        let update = client.response();
        assert_eq!((&update.body, cookie(&update)), (&first.body, None));
    }
}

#[test]
fn the_routers_own_answers_set_no_cookie() {
    let router = Router::start(&service("http", STICKY, &[&[nobody(), nobody()]]));
    let response = get(&mut router.client(), "k", "");
    assert_eq!((response.status, cookie(&response)), (503, None));
}

#[test]
fn a_redis_client_reads_from_one_clone_for_as_long_as_it_is_connected() {
    let servers: Vec<FakeServer> = ["0", "1", "2"]
        .map(|name| {
            FakeServer::start(move |peer| {
                while peer.command().is_some() {
                    peer.send(&format!("$1\r\n{name}\r\n"));
                }
            })
        })
        .into();
    let config = service("redis", "reads = \"sticky\"", &[&addrs(&servers)]);
    let router = Router::with(&config, 1, patient);
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let mut client = router.client();
        let replies: BTreeSet<String> = (0..12).map(|n| client.command(&["GET", &format!("k{n}")])).collect();
        assert_eq!(replies.len(), 1, "{replies:?}");
        seen.extend(replies);
    }
    assert_eq!(seen.len(), 3, "clients are spread");
}
