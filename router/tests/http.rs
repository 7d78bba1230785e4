//! HTTP through the router, as it should go.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{io::Read, thread, time::Duration};

use common::*;

#[test]
fn a_key_always_reaches_the_racs_that_holds_it() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let router = Router::with(&http(&[&[a.addr], &[b.addr]]), 2, |_| {});
    let mut seen = [0, 0];
    for n in 0..100 {
        let key = format!("key{n}");
        let first = router.client().get(&key);
        let server = first.field("x-phalanx-server").unwrap().to_owned();
        let expected = if first.body == "a:" { a.addr } else { b.addr };
        assert_eq!(server, expected.to_string());
        assert_eq!(first.field("x-phalanx-epoch"), Some("1"));
        seen[usize::from(first.body == "b:")] += 1;
        let again = router.client().post(&key, "body");
        assert_eq!(again.body, format!("{}body", first.body));
        assert_eq!(again.field("x-phalanx-partition"), first.field("x-phalanx-partition"));
    }
    assert!(seen[0] > 10 && seen[1] > 10, "{seen:?}");
    assert_eq!(router.stats().requests, 200);
}

#[test]
fn heads_go_on_without_the_fields_of_one_hop_and_nothing_is_added() {
    let server = FakeServer::start(|peer| {
        while peer.request().is_some() {
            peer.send(
                "HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n\
                 Content-Length: 2\r\n\r\nok",
            );
        }
    });
    let router = Router::start(&service("http", "key = \"path:/items/{key}/*\"", &[&[server.addr]]));
    let mut client = router.client();
    client.send(
        "GET http://h/items/k%20?q=1 HTTP/1.1\r\nHost: h\r\nTE: x\r\nConnection: X-Mine\r\nX-Mine: 1\r\n\
         A: b\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.head, "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(server.seen(), ["GET /items/k%20?q=1 HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n"]);
}

#[test]
fn bodies_of_every_framing_pass_in_both_directions() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let body = String::from_utf8(request.body).unwrap();
            if request.head.starts_with("POST /chunked") {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for piece in body.as_bytes().chunks(1000) {
                    peer.send(&format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap()));
                }
                peer.send("0\r\nX-Trailer: t\r\n\r\n");
            } else if request.head.starts_with("POST /close") {
                peer.send(&format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
                return;
            } else {
                peer.respond(&body);
            }
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    for size in [0, 1, 100, 5_000, 16_383, 16_384, 40_000, 3_000_000] {
        let body: String = (0..size).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
        for path in ["/length", "/chunked", "/close"] {
            let mut client = router.client();
            let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n");
            let (expected, body) = (body.clone(), body.clone());
            let mut sender = client.stream.try_clone().unwrap();
            let sending = thread::spawn(move || {
                use std::io::Write;
                // With its length, then in chunks; the second only if the first leaves the connection open.
                sender.write_all(format!("{head}Content-Length: {size}\r\n\r\n{body}").as_bytes()).unwrap();
                if path != "/close" {
                    let mut text = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
                    for piece in body.as_bytes().chunks(700) {
                        text +=
                            &format!("{:x};x=y\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap());
                    }
                    sender.write_all((text + "0\r\n\r\n").as_bytes()).unwrap();
                }
            });
            let response = client.try_response().unwrap_or_else(|| panic!("{size} bytes by {path}"));
            assert_eq!(response.status, 200);
            assert!(response.body == expected, "{size} bytes by {path}");
            if path != "/close" {
                assert!(client.response().body == expected, "{size} bytes by {path}, chunked");
                assert_eq!(response.field("connection"), None);
            } else {
                assert_eq!(response.field("connection"), Some("close"));
            }
            sending.join().unwrap();
        }
    }
}

#[test]
fn responses_without_body_do_not_make_the_client_wait() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            match request.head.split(' ').next().unwrap() {
                "HEAD" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
                "GET" => peer.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
                _ => peer.send("HTTP/1.1 204 No Content\r\n\r\n"),
            }
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..3 {
        for (method, status) in [("HEAD", 200), ("GET", 304), ("DELETE", 204)] {
            client.send(format!("{method} / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n"));
            assert_eq!(client.try_response_to(method).unwrap().status, status);
        }
    }
    assert_eq!(server.connections(), 1, "the server's connection was used again each time");
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    // The first server is slow: a router that let the second answer early would swap the responses.
    let delayed = |name: &'static str, delay| {
        FakeServer::start(move |peer| {
            while let Some(request) = peer.request() {
                thread::sleep(Duration::from_millis(delay));
                peer.respond(&format!("{name}:{}", String::from_utf8_lossy(&request.body)));
            }
        })
    };
    let (slow, quick) = (delayed("s", 10), delayed("q", 0));
    let router = Router::start(&http(&[&[slow.addr], &[quick.addr]]));
    let mut client = router.client();
    let requests: String = (0..60).map(|n| post(&format!("k{n}"), &n.to_string())).collect();
    client.send(requests);
    let bodies: Vec<String> = (0..60).map(|_| client.response().body).collect();
    for (n, body) in bodies.iter().enumerate() {
        assert_eq!(body[2..], n.to_string());
    }
    assert!(
        bodies.iter().any(|body| body.starts_with('s')) && bodies.iter().any(|body| body.starts_with('q'))
    );
}

#[test]
fn a_request_in_pieces_is_the_same_request() {
    let server = FakeServer::echo("a");
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for byte in post("k", "hello").bytes() {
        client.send([byte]);
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(client.response().body, "a:hello");
    assert_eq!(server.seen(), ["POST /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 5\r\n\r\n"]);
}

#[test]
fn trailers_arrive_both_ways() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let body = String::from_utf8(request.body).unwrap();
            peer.note(format!("{body} {}", request.trailers));
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
            let chunk = format!("{:x}\r\n{body}\r\n", body.len());
            let chunks = if body.is_empty() { String::new() } else { chunk };
            peer.send(&format!("{chunks}0\r\nX-Sum: {}\r\nX-More: 2\r\n\r\n", body.len()));
        }
    });
    for more in ["", "pipeline = 32\n"] {
        let text = http(&[&[server.addr]]).replace("servers = ", &format!("{more}servers = "));
        let router = Router::start(&text);
        let mut client = router.client();
        for n in 0..4 {
            let body = format!("{n}{}", "x".repeat(n * 10_000));
            let method = if n % 2 == 0 { "POST" } else { "GET" };
            let head =
                format!("{method} /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send(format!("{head}{:x}\r\n{body}\r\n0\r\nX-Sum: 5\r\nX-Empty:\r\n\r\n", body.len()));
            let response = client.response();
            assert_eq!((response.status, &response.body), (200, &body));
            assert_eq!(response.trailers, format!("X-Sum: {}\r\nX-More: 2\r\n", body.len()));
            let seen = server.seen().pop().unwrap();
            assert_eq!(seen, format!("{body} X-Sum: 5\r\nX-Empty:\r\n"));
        }
        // A read without a body may share its connection.
        client.send("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 0\r\n\r\n".repeat(2));
        for _ in 0..2 {
            let response = client.response();
            assert_eq!((response.status, response.trailers.as_str()), (200, "X-Sum: 0\r\nX-More: 2\r\n"));
        }
    }
}

#[test]
fn expect_continue_is_answered_by_the_router() {
    let server = FakeServer::echo("a");
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..2 {
        client.send(
            "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        let interim = client.response();
        assert_eq!((interim.status, interim.body.as_str()), (100, ""));
        client.send("hello");
        assert_eq!(client.response().body, "a:hello");
    }
    assert!(server.seen().iter().all(|head| !head.contains("Expect")));
    // Who does not wait for it does not get it.
    client.send(
        "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert_eq!(client.response().body, "a:hello");
}

#[test]
fn interim_responses_of_servers_are_passed_on_to_clients_that_know_them() {
    let server = FakeServer::start(|peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\nConnection: close, x-hop\r\n");
            peer.send("X-Hop: 1\r\nX-Phalanx-Server: me\r\nContent-Length: 5\r\n\r\n");
            thread::sleep(Duration::from_millis(20));
            peer.send("HTTP/1.1 102 Processing\r\n\r\n");
            peer.respond("ok");
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 1\r\n\r\nx");
        // 100 is said by the router itself, to those who ask for it.
        let hints = client.response();
        assert_eq!((hints.status, hints.body.as_str()), (103, ""));
        assert_eq!(hints.field("link"), Some("x"));
        for gone in ["connection", "x-hop", "x-phalanx-server", "content-length"] {
            assert_eq!(hints.field(gone), None, "{gone}");
        }
        assert_eq!(client.response().status, 102);
        let response = client.response();
        assert_eq!((response.status, response.body.as_str()), (200, "ok"));
    }
    let mut old = router.client();
    for _ in 0..2 {
        old.send("GET / HTTP/1.0\r\nX-Key: k\r\nConnection: keep-alive\r\n\r\n");
        let response = old.response();
        assert_eq!((response.status, response.body.as_str()), (200, "ok"));
    }
}

#[test]
fn interim_responses_stay_in_order_around_a_body_that_is_waited_for() {
    let server = FakeServer::start(|peer| {
        while let Some(head) = peer.head() {
            let hints = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "l".repeat(3000));
            peer.send(&hints.repeat(3));
            let mut body = [0; 5];
            if peer.reader.read_exact(&mut body).is_err() {
                return;
            }
            peer.send(&hints);
            peer.respond(if head.contains("X-Key") { "ok" } else { "no" });
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..20 {
        client.send(
            "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        let mut early: Vec<u16> = (0..4).map(|_| client.response().status).collect();
        early.sort_unstable();
        assert_eq!(early, [100, 103, 103, 103]);
        client.send("hello");
        assert_eq!(client.response().status, 103);
        let response = client.response();
        assert_eq!((response.status, response.body.as_str()), (200, "ok"));
    }
}

#[test]
fn interim_responses_are_few_and_short_and_come_to_an_end() {
    let server = FakeServer::start(|peer| {
        while let Some(head) = peer.head() {
            let (count, len) = if head.contains("/many") { (9, 1) } else { (8, 6000) };
            let one = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "l".repeat(len));
            peer.send(&one.repeat(count));
            peer.respond("ok");
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    // Too many of them are no answer. A read may be asked again, and is refused as often.
    let mut client = router.client();
    client.send("POST /many HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 0\r\n\r\n");
    let last = (0..9).map(|_| client.response()).find(|response| response.status >= 200).unwrap();
    assert_eq!(last.status, 502);
    // What does not fit while others wait for the client is left out, and the response comes all the same.
    let mut client = router.client();
    for _ in 0..3 {
        client.send("GET /long HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n");
        let hints = (0..9).take_while(|_| client.response().status == 103).count();
        assert!((2..=8).contains(&hints), "{hints}");
    }
}

#[test]
fn a_server_may_answer_while_it_still_reads() {
    // It sends back each piece as it comes: a router that finished one direction before the other would hang.
    let server = FakeServer::start(|peer| {
        let Some(_head) = peer.head() else { return };
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n");
        let mut piece = [0; 5000];
        for _ in 0..100 {
            peer.reader.read_exact(&mut piece).unwrap();
            peer.send(std::str::from_utf8(&piece).unwrap());
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 500000\r\n\r\n");
    let mut head = String::new();
    for n in 0..100u8 {
        let piece = [b'a' + n % 26; 5000];
        client.send(piece);
        if n == 0 {
            head = read_head(&mut client.reader).unwrap();
        }
        let mut back = [0; 5000];
        client.reader.read_exact(&mut back).unwrap();
        assert_eq!(back, piece, "piece {n}");
    }
    assert!(
        head.contains("Connection: close"),
        "it could not know that the request would come to its end: {head}"
    );
    assert!(client.is_closed());
}

#[test]
fn an_early_refusal_of_a_large_body_reaches_the_client() {
    let server = FakeServer::start(|peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
            thread::sleep(Duration::from_millis(300)); // and does not read on
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nContent-Length: 100000\r\n\r\n0123456789");
    let response = client.response();
    assert_eq!((response.status, response.body.as_str()), (413, "big"));
    assert_eq!(response.field("connection"), Some("close"));
    assert!(client.is_closed());
    // What was left of the body must not become the next request of anybody.
    assert_eq!(router.client().get("k").status, 413);
    assert_eq!(server.connections(), 2, "a connection with half a request on it is not used again");
}

#[test]
fn old_clients_and_old_servers() {
    let server = FakeServer::start(|peer| {
        while let Some(request) = peer.request() {
            let old = request.head.contains("X-Key: old");
            let version = if old { "HTTP/1.0" } else { "HTTP/1.1" };
            peer.send(&format!("{version} 200 OK\r\nContent-Length: 2\r\n\r\nok"));
            if old {
                return;
            }
        }
    });
    let router = Router::start(&service("http", "key = \"header:x-key\"", &[&[server.addr]]));
    // HTTP/1.0 closes unless asked not to.
    let mut client = router.client();
    client.send("GET / HTTP/1.0\r\nX-Key: k\r\n\r\n");
    assert_eq!(client.response().head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
    assert!(client.is_closed());
    let mut client = router.client();
    for _ in 0..3 {
        client.send("GET / HTTP/1.0\r\nX-Key: k\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(
            client.response().head,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n"
        );
    }
    // A server of HTTP/1.0 closes after each response; its client does not notice.
    let mut client = router.client();
    for _ in 0..3 {
        assert_eq!(client.get("old").head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    }
}

#[test]
fn connection_close_is_honoured_on_both_sides() {
    let server = FakeServer::start(|peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..3 {
        let response = client.get("k");
        assert_eq!((response.body.as_str(), response.field("connection")), ("ok", None));
    }
    assert_eq!(server.connections(), 3);
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().field("connection"), Some("close"));
    assert!(client.is_closed());
    assert!(server.seen().iter().all(|head| !head.contains("close")), "what concerns one hop stays behind");
}

#[test]
fn a_request_without_key_is_refused_or_goes_where_the_configuration_says() {
    let (a, b) = (FakeServer::echo("a"), FakeServer::echo("b"));
    let router = Router::start(&http(&[&[a.addr], &[b.addr]]));
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status, 400);
    assert_eq!(
        response.json(),
        serde_json::json!({
            "error": "the request has no key", "service": "s", "partition": null, "retry": false
        })
    );
    assert_eq!(client.get("k").status, 200, "the connection goes on");
    assert_eq!(router.stats().refused, 1);

    let config = service(
        "http",
        "key = \"header:x-key\"\nno_key = \"partition:7\"\nexpose = true",
        &[&[a.addr], &[b.addr]],
    );
    let router = Router::start(&config);
    let mut client = router.client();
    for _ in 0..5 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.response().field("x-phalanx-partition"), Some("7"));
    }
}

#[test]
fn smuggling_attempts_reach_no_server() {
    let server = FakeServer::echo("a");
    let router = Router::start(&http(&[&[server.addr]]));
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n";
    let start = "POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n";
    let attempts = [
        format!("{start}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{start}Content-Length: 0\r\nContent-Length: 50\r\n\r\n{smuggled}"),
        format!("{start}Content-Length: +0\r\n\r\n{smuggled}"),
        format!("{start}Transfer-Encoding: xchunked\r\n\r\n{smuggled}"),
        format!("{start}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{start}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{start}X: y\nContent-Length: 50\r\n\r\n{smuggled}"),
        format!("{start}Connection: content-length\r\nContent-Length: 50\r\n\r\n{smuggled}"),
        format!("{start}Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{smuggled}"),
        format!("{start}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{smuggled}"),
        format!("{start}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nX-Key: k\r\n\r\n{smuggled}"),
        format!("GET http://other/ HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Key: l\r\n\r\n{smuggled}"),
        format!("GET /\r\n{smuggled}"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{smuggled}"),
        format!("\u{16}\u{3}\u{1}garbage{smuggled}"),
        format!("{start}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n{smuggled}"),
    ];
    for attempt in &attempts {
        let mut client = router.client();
        client.send(attempt);
        let response = client.response();
        let expected = if attempt.contains("websocket") { 501 } else { 400 };
        assert_eq!(response.status, expected, "{attempt:?}");
        assert_eq!(response.field("connection"), Some("close"));
        assert_eq!(response.json()["retry"], false);
        assert!(client.is_closed(), "{attempt:?}");
    }
    assert_eq!(server.seen(), Vec::<String>::new(), "nothing of it may reach a server");
    assert_eq!(router.stats().refused, attempts.len() as u64);
}

#[test]
fn a_body_that_turns_out_malformed_on_its_way_ends_both_connections() {
    let server = FakeServer::start(|peer| while peer.request().is_some() {});
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    eventually("the head arrives", || !server.seen().is_empty());
    client.send("zz\r\n");
    let response = client.response();
    assert_eq!((response.status, response.json()["error"].as_str()), (400, Some("malformed chunk size")));
    assert!(client.is_closed());
}

#[test]
fn what_the_router_says_of_itself_no_server_can_fake() {
    let server = FakeServer::start(|peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nX-Phalanx-Server: evil\r\nx-phalanx-other: x\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let router = Router::start(&http(&[&[server.addr]]));
    let response = router.client().get("k");
    let own: Vec<&str> =
        response.head.lines().filter(|l| l.to_lowercase().starts_with("x-phalanx")).collect();
    assert_eq!(own.len(), 3, "partition, server and epoch: {own:?}");
    assert!(!response.head.contains("evil"), "{}", response.head);
}

#[test]
fn a_head_beyond_the_limit_is_told_apart_from_a_wrong_one() {
    let server = FakeServer::echo("a");
    let router = Router::start(&http(&[&[server.addr]]));
    let mut client = router.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Long: {}\r\n\r\n", "x".repeat(70_000)));
    assert_eq!(client.response().status, 431);
}
