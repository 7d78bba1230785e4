//! Where keys are, through a running router: heads, bodies that are read only as far as the key, and requests
//! without any.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::*;

/// A router over two arrays of one server each, by a table: key "a" is the first's, all others the second's.
fn by_table(more: &str, a: &FakeServer, b: &FakeServer, adjust: impl FnOnce(&mut router::Limits)) -> Router {
    let config = service("http", more, &[&[a.addr], &[b.addr]]).replace(
        "style = \"slots\"\npartitions = 16",
        "style = \"table\"\ntable = [{ key = \"a\", racs = \"r0\" }]\ndefault = \"r1\"",
    );
    Router::with(&config, 1, adjust)
}

fn request(target: &str, fields: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len())
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn every_extractor_finds_the_key_that_the_table_knows() {
    let (a, b) = (FakeServer::echo("A"), FakeServer::echo("B"));
    // {"sub":"a"}
    let token = "Authorization: Bearer e30.eyJzdWIiOiJhIn0.c2ln\r\n";
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let parts = "Content-Type: multipart/form-data; boundary=x\r\n";
    let part =
        |id: &str| format!("--x\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n{id}\r\n--x--\r\n");
    for (key, target, fields, body) in [
        ("query:id", "/?id=a", "", ""),
        ("cookie:id", "/", "Cookie: z=1; id=a\r\n", ""),
        ("path:POST /items/{key}", "/items/a", "", ""),
        ("jwt:sub", "/", token, ""),
        ("json:/user/id", "/", JSON, r#"{"user":{"id":"a"}}"#),
        ("form:id", "/", form, "x=1&id=a"),
        ("multipart:id", "/", parts, &part("a")),
        ("host", "/", "", ""),
    ] {
        let router = by_table(&format!("key = \"{key}\"\nexpose = true"), &a, &b, |_| {});
        let mut client = router.client();
        if key == "host" {
            client.send("GET / HTTP/1.1\r\nHost: A:8080\r\n\r\n");
        } else {
            client.send(request(target, fields, body));
        }
        let response = client.response();
        assert_eq!((response.status, &*response.body), (200, &*format!("A:{body}")), "{key}");
        assert_eq!(response.field("x-phalanx-partition"), Some("a"), "{key}");
        let (target, fields) =
            (target.replace("=a", "=b").replace("/a", "/b"), fields.replace("id=a", "id=b"));
        let fields = fields.replace("eyJzdWIiOiJhIn0", "eyJzdWIiOiJiIn0"); // {"sub":"b"}
        let body = if key.starts_with("multi") {
            part("b")
        } else {
            body.replace("\"a\"", "\"b\"").replace("=a", "=b")
        };
        client.send(request(&target, &fields, &body));
        let response = client.response();
        assert_eq!((response.status, &*response.body), (200, &*format!("B:{body}")), "{key}");
        assert_eq!(response.field("x-phalanx-partition"), Some("default"), "{key}");
    }
}

#[test]
fn a_body_is_read_as_far_as_its_key_and_streamed_from_there() {
    let (a, b) = (FakeServer::echo("A"), FakeServer::start(|_| {}));
    let router = by_table("key = \"json:/id\"", &a, &b, |_| {});
    let mut client = router.client();
    // The server must have the beginning while the rest is not even written.
    let (first, rest) = ("{\"x\":[1,2],\"id\":\"a\",\"y\":\"", "y".repeat(300_000) + "\"}");
    let len = first.len() + rest.len();
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {len}\r\n{JSON}\r\n"));
    for byte in first.as_bytes().chunks(3) {
        client.send(byte);
        std::thread::sleep(Duration::from_millis(1));
    }
    eventually("the server has the head", || a.seen().len() == 1);
    client.send(&rest);
    assert_eq!(client.response().body, format!("A:{first}{rest}"));

    // The same in chunks, with a key that two of them share.
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{JSON}\r\n"));
    for piece in ["{\"i", "d\":\"", "a", "\"}"] {
        client.send(format!("{:x};x=y\r\n{piece}\r\n", piece.len()));
        std::thread::sleep(Duration::from_millis(2));
    }
    client.send("0\r\nX-Sum: 1\r\n\r\n");
    assert_eq!(client.response().body, "A:{\"id\":\"a\"}");
    assert_eq!(b.connections(), 0);
}

#[test]
fn who_waits_for_a_hundred_gets_it_when_the_body_must_be_read() {
    let (a, b) = (FakeServer::echo("A"), FakeServer::echo("B"));
    let router = by_table("key = [\"header:x-key\", \"json:/id\"]", &a, &b, |_| {});
    let mut client = router.client();
    let body = "{\"id\":\"a\"}";
    let expect = format!("Content-Length: {}\r\nExpect: 100-continue\r\n{JSON}\r\n", body.len());
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{expect}"));
    assert_eq!(client.response().status, 100);
    assert_eq!(a.seen().len(), 0, "nobody knows yet where to");
    client.send(body);
    assert_eq!(client.response().body, format!("A:{body}"), "and no second 100 came before");
    // With the key in the head, or with the body sent unasked, it is as ever.
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nX-Key: b\r\n{expect}"));
    assert_eq!(client.response().status, 100);
    client.send(body);
    assert_eq!(client.response().body, format!("B:{body}"));
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{expect}{body}"));
    let response = client.response();
    assert_eq!((response.status, response.body), (200, format!("A:{body}")));
    client.send(request("/", JSON, body));
    assert_eq!(client.response().body, format!("A:{body}"), "the connection is in step");
}

#[test]
fn bodies_without_a_key_are_told_so_and_nobody_reads_on_for_ever() {
    let (a, b) = (FakeServer::echo("A"), FakeServer::echo("B"));
    let router = by_table("key = \"json:/id\"", &a, &b, |limits| limits.body_key = 4096);
    let mut client = router.client();
    client.send(request("/", JSON, "{\"x\":1}"));
    let response = client.response();
    assert_eq!(
        (response.status, response.json()["error"].as_str().unwrap()),
        (400, "the request has no key")
    );
    client.send(request("/", JSON, "{\"id\":\"a\"}"));
    assert_eq!(client.response().status, 200, "the connection went on");
    client.send(request("/", "", "{\"id\":\"a\"}"));
    assert_eq!(client.response().status, 400, "nobody said that it was JSON");

    for (fields, body, status, says) in [
        (JSON, "{\"id\"".to_owned(), 400, "not JSON"),
        (JSON, format!("{{\"x\":\"{}\",\"id\":1}}", "x".repeat(4096)), 413, "not within the first part"),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", "x".into(), 415, "compressed"),
    ] {
        let mut client = router.client();
        client.send(request("/", fields, &body));
        let response = client.response();
        assert_eq!(response.status, status, "{fields}");
        assert!(response.body.contains(says), "{}", response.body);
        assert!(client.is_closed());
    }
    let hasty = by_table("key = \"json:/id\"", &a, &b, |limits| limits.head = Duration::from_millis(200));
    let mut slow = hasty.client();
    slow.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n{JSON}\r\n{{"));
    let response = slow.response();
    assert_eq!((response.status, response.json()["retry"].as_bool()), (408, Some(true)));
    assert!(slow.is_closed());
    // The framing is judged before anything goes on.
    let mut client = router.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{JSON}\r\n2\r\n{{}}x"));
    assert_eq!(client.response().status, 400);
    assert_eq!(a.seen().len() + b.seen().len(), 1);
}

#[test]
fn what_was_read_of_a_body_is_sent_again_to_the_next_clone() {
    let broken = FakeServer::start(|peer| {
        peer.head();
    });
    let well = FakeServer::echo("W");
    let router = Router::start(&service("http", "key = \"json:/id\"", &[&[broken.addr, well.addr]]));
    let body = "{\"id\":1}";
    let ask = || {
        let mut client = router.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n{JSON}\r\n"));
        std::thread::sleep(Duration::from_millis(2));
        client.send(body);
        assert_eq!(client.response().body, format!("W:{body}"));
    };
    (0..8).for_each(|_| ask());
    // Whom a request goes to first is drawn.
    eventually("the broken one was tried", || {
        ask();
        broken.connections() > 0
    });
}

#[test]
fn requests_without_a_key_go_where_the_configuration_says() {
    let servers: Vec<FakeServer> = ["0", "1", "2", "3"].map(FakeServer::echo).into();
    let addrs: Vec<_> = servers.iter().map(|server| [server.addr]).collect();
    let racs: Vec<&[_]> = addrs.iter().map(|addr| &addr[..]).collect();
    let start = |no_key: &str| {
        let more = format!("key = \"header:x-key\"\nexpose = true\nno_key = \"{no_key}\"");
        Router::start(&service("http", &more, &racs))
    };
    let partition = |response: Response| response.field("x-phalanx-partition").unwrap().to_owned();

    let source = start("source");
    let of = |client: &mut Client| partition(client.get(""));
    let first = of(&mut source.client());
    for _ in 0..5 {
        assert_eq!(of(&mut source.client()), first, "one address, one partition");
        assert_eq!(partition(source.client().post("", "x")), first, "updates too");
    }

    let scatter = start("scatter");
    let mut client = scatter.client();
    let partitions: BTreeSet<String> = (0..60).map(|_| of(&mut client)).collect();
    assert!(partitions.len() > 8, "{partitions:?}");
    let refused = client.post("", "x");
    assert_eq!((refused.status, refused.json()["retry"].as_bool()), (400, Some(false)));
    assert_eq!(
        partition(scatter.client().get("key")),
        partition(source.client().get("key")),
        "keys are as ever"
    );
}
