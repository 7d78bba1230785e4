//! The ids of requests: who is told which.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::BTreeSet, fs};

use common::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced(more: &str, server: &FakeServer) -> Router {
    Router::start(&service("http", &format!("key = \"header:x-key\"\n{more}"), &[&[server.addr]]))
}

/// The values of a field in a head.
fn values(head: &str, name: &str) -> Vec<String> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.into()).collect()
}

fn ask(router: &Router, fields: &str) -> Response {
    let mut client = router.client();
    client.send(format!("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n{fields}\r\n"));
    client.response()
}

#[test]
fn a_clients_trace_goes_on_with_another_parent_and_its_request_id_as_it_is() {
    let server = FakeServer::echo("a");
    let router = traced("trace = \"0%\"", &server);
    assert_eq!(
        ask(&router, &format!("traceparent: {PARENT}\r\ntracestate: v=1\r\nX-Request-ID: r-1\r\n")).status,
        200
    );
    let head = server.seen().remove(0);
    let [parent] = &values(&head, "traceparent")[..] else { panic!("{head}") };
    assert_eq!((&parent[..36], &parent[52..]), (&PARENT[..36], "-01"));
    assert_ne!(parent[36..52], PARENT[36..52]);
    assert_eq!(
        (values(&head, "x-request-id"), values(&head, "tracestate")),
        (vec!["r-1".into()], vec!["v=1".into()])
    );
}

#[test]
fn what_is_missing_or_malformed_is_made_anew_and_differs_from_request_to_request() {
    let server = FakeServer::echo("a");
    let router = traced("trace = \"100%\"", &server);
    let two = format!("traceparent: {PARENT}\r\n").repeat(2);
    for fields in ["", "traceparent: 00-zz\r\ntracestate: v=1\r\n", &two, "X-Request-Id: a\"b\r\n"] {
        assert_eq!(ask(&router, fields).status, 200);
    }
    let (mut traces, mut requests) = (BTreeSet::new(), BTreeSet::new());
    for head in server.seen() {
        let (parent, request) = (values(&head, "traceparent"), values(&head, "x-request-id"));
        assert_eq!((parent.len(), request.len(), values(&head, "tracestate").len()), (1, 1, 0), "{head}");
        assert!(
            parent[0].starts_with("00-") && parent[0].ends_with("-03") && parent[0].len() == 55,
            "{head}"
        );
        assert_ne!(parent[0][3..35], PARENT[3..35]);
        assert!(request[0].len() == 32 && request[0].bytes().all(|b| b.is_ascii_hexdigit()));
        traces.insert(parent[0].clone());
        requests.insert(request[0].clone());
    }
    assert_eq!((traces.len(), requests.len()), (4, 4));
}

#[test]
fn without_it_both_fields_pass_as_they_come() {
    let server = FakeServer::echo("a");
    for more in ["", "trace = \"off\""] {
        let router = traced(more, &server);
        assert_eq!(ask(&router, "traceparent: nonsense\r\nX-Request-Id: a b\r\n").status, 200);
        assert_eq!(ask(&router, "").status, 200);
        let heads = server.seen.lock().unwrap().split_off(0);
        assert_eq!(
            (values(&heads[0], "traceparent"), values(&heads[0], "x-request-id")),
            (vec!["nonsense".into()], vec!["a b".into()])
        );
        assert!(!heads[1].contains("trace") && !heads[1].to_lowercase().contains("request-id"));
    }
}

#[test]
fn the_routers_own_answers_and_the_access_log_name_the_request() {
    let dir = std::env::temp_dir().join(format!("phalanx-trace-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("access.log");
    let more = format!("key = \"header:x-key\"\ntrace = \"0%\"\naccess_log = {:?}", file.to_str().unwrap());
    let router = Router::start(&service("http", &more, &[&[nobody()]]));
    let answer = ask(&router, &format!("traceparent: {PARENT}\r\nX-Request-ID: r-1\r\n"));
    assert_eq!(
        (answer.status, answer.field("x-request-id"), &answer.json()["request_id"]),
        (503, Some("r-1"), &"r-1".into())
    );
    // What is no request at all has an id, too, and it is not the one of the request before.
    let mut client = router.client();
    client.send("GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Request-Id: r-2\r\n\r\nGET /\r\n\r\n");
    assert_eq!(client.response().field("x-request-id"), Some("r-2"));
    let refused = client.response();
    assert_eq!((refused.status, refused.field("x-request-id").unwrap().len()), (400, 32));
    // Nor is one without a key.
    let mut client = router.client();
    client.send("GET /x HTTP/1.1\r\nHost: h\r\nX-Request-Id: r-3\r\n\r\n");
    let refused = client.response();
    assert_eq!((refused.status, &refused.json()["request_id"]), (400, &"r-3".into()));
    drop(router);
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&first["trace_id"], &first["request_id"]), (&PARENT[3..35].into(), &"r-1".into()));
}
