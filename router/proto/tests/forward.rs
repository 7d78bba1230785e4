//! What goes on to the next hop, and how bodies end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use router_proto::http::{Body, HeadScan, Method, RequestHead, ResponseHead};

fn request(text: &str) -> (RequestHead, String) {
    let place = HeadScan::default().request(text.as_bytes()).unwrap().unwrap();
    let head = &text.as_bytes()[place];
    let parsed = RequestHead::parse(head).unwrap();
    let forwarded = parsed.forward(head).collect::<Vec<_>>().concat();
    (parsed, String::from_utf8(forwarded).unwrap())
}

fn response(text: &str, to: Method) -> (ResponseHead, String) {
    let end = HeadScan::default().response(text.as_bytes()).unwrap().unwrap();
    let head = &text.as_bytes()[..end];
    let parsed = ResponseHead::parse(head, to).unwrap();
    let forwarded = parsed.forward(head).collect::<Vec<_>>().concat();
    (parsed, String::from_utf8(forwarded).unwrap())
}

#[test]
fn fields_of_one_hop_stay_behind_and_the_rest_goes_on_byte_for_byte() {
    let (head, forwarded) = request(
        "POST /a?b HTTP/1.1\r\nhOst: h\r\nConnection: keep-alive, X-Hop\r\nX-Key:  k \r\nx-hop: 1\r\n\
         Keep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Connection: close\r\nProxy-Authorization: Basic eA==\r\n\
         Upgrade: h2c\r\nExpect: 100-continue\r\nX-Last: \r\nContent-Length: 3\r\n\r\nabc",
    );
    assert_eq!(forwarded, "POST /a?b HTTP/1.1\r\nhOst: h\r\nX-Key:  k \r\nX-Last: \r\nContent-Length: 3\r\n");
    assert_eq!(head.body(), Body::Length(3));
    assert!(head.expects_continue());
    assert!(head.persistent());
}

#[test]
fn runs_of_kept_fields_are_single_slices() {
    let text = "GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\nTE: x\r\nC: 3\r\nKeep-Alive: x\r\n\r\n";
    let place = HeadScan::default().request(text.as_bytes()).unwrap().unwrap();
    let head = RequestHead::parse(&text.as_bytes()[place.clone()]).unwrap();
    let slices: Vec<_> = head.fields().kept(&text.as_bytes()[place]).collect();
    assert_eq!(slices, [&b"Host: h\r\nA: 1\r\nB: 2\r\n"[..], b"C: 3\r\n"]);
}

#[test]
fn absolute_targets_are_cut_down_to_their_path() {
    for (target, path_and_query, path) in [
        ("http://h/a/b?c", "/a/b?c", "/a/b"),
        ("http://h", "/", ""),
        ("HTTP://h?q=1", "/?q=1", ""),
        ("/a?b?c", "/a?b?c", "/a"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let (head, forwarded) = request(&text);
        assert_eq!(forwarded, format!("GET {path_and_query} HTTP/1.1\r\nHost: h\r\n"));
        assert_eq!(head.path(text.as_bytes()), path.as_bytes());
    }
}

#[test]
fn connections_persist_as_their_version_and_fields_say() {
    for (line, fields, persistent) in [
        ("GET / HTTP/1.1", "", true),
        ("GET / HTTP/1.1", "Connection: close\r\n", false),
        ("GET / HTTP/1.1", "Connection: x, CLOSE\r\n", false),
        ("GET / HTTP/1.0", "", false),
        ("GET / HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ("GET / HTTP/1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let (head, _) = request(&format!("{line}\r\nHost: h\r\n{fields}\r\n"));
        assert_eq!(head.persistent(), persistent, "{line} {fields}");
    }
}

#[test]
fn response_bodies_end_by_the_rules_in_their_order() {
    for (line, fields, to, body, persistent) in [
        ("HTTP/1.1 200 OK", "Content-Length: 5\r\n", Method::Get, Body::Length(5), true),
        ("HTTP/1.1 200 OK", "Content-Length: 0\r\n", Method::Get, Body::None, true),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n", Method::Get, Body::Chunked, true),
        ("HTTP/1.1 200 OK", "", Method::Get, Body::UntilClose, false),
        ("HTTP/1.1 200 OK", "Content-Length: 5\r\n", Method::Head, Body::None, true),
        ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n", Method::Head, Body::None, true),
        ("HTTP/1.1 200 OK", "", Method::Head, Body::None, true),
        ("HTTP/1.1 304 Not Modified", "Content-Length: 5\r\n", Method::Get, Body::None, true),
        ("HTTP/1.1 204 No Content", "", Method::Get, Body::None, true),
        ("HTTP/1.1 204 No Content", "Content-Length: 5\r\n", Method::Get, Body::None, false),
        ("HTTP/1.1 100 Continue", "", Method::Post, Body::None, true),
        ("HTTP/1.1 200", "Content-Length: 5\r\nConnection: close\r\n", Method::Get, Body::Length(5), false),
        ("HTTP/1.0 200 OK", "Content-Length: 5\r\n", Method::Get, Body::Length(5), false),
        (
            "HTTP/1.0 200 OK",
            "Content-Length: 5\r\nConnection: keep-alive\r\n",
            Method::Get,
            Body::Length(5),
            true,
        ),
    ] {
        let (head, _) = response(&format!("{line}\r\n{fields}\r\n"), to);
        assert_eq!((head.body(), head.persistent()), (body, persistent), "{line} {fields} to {to:?}");
    }
}

#[test]
fn responses_go_on_under_the_routers_own_version() {
    let (head, forwarded) = response(
        "HTTP/1.0 200 Fine\r\nServer: s\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5, max=100\r\n\
         Upgrade: h2c\r\nContent-Length: 1\r\n\r\n",
        Method::Get,
    );
    assert_eq!(forwarded, "HTTP/1.1 200 Fine\r\nServer: s\r\nContent-Length: 1\r\n");
    assert_eq!(head.keep_alive_timeout_s(), Some(5));
    let (_, forwarded) =
        response("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nA: b\r\n\r\n", Method::Get);
    assert_eq!(
        forwarded, "HTTP/1.1 204 No Content\r\nA: b\r\n",
        "a body that does not come is not announced"
    );
}
