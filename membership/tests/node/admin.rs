//! The admin API, as curl sees it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use membership::{AdminResponse, Bootstrap, Node};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
};

use crate::harness::{Place, leave, loopback, metric, one_view, quiet, view, within};

/// One request on a connection of its own. Gives the status, the head and the body.
async fn request(addr: SocketAddr, head: &str) -> (u16, String, String) {
    request_of(addr, head, &addr.to_string()).await
}

/// The same, of what has this name.
async fn request_of(addr: SocketAddr, head: &str, host: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).await.expect("listens");
    // A server that refuses may close before all is written.
    let _cut_short =
        stream.write_all(format!("{head}\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes()).await;
    let mut answer = Vec::new();
    within("an answer", stream.read_to_end(&mut answer)).await.expect("an answer");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

async fn get(addr: SocketAddr, path: &str) -> (u16, Value) {
    let (status, _, body) = request(addr, &format!("GET {path} HTTP/1.1")).await;
    (status, serde_json::from_str(&body).expect("JSON"))
}

async fn admin_of(place: &Place) -> (Node, SocketAddr) {
    let builder = place.builder("a").admin(loopback()).label("zone", "east");
    let node = builder.start().await.expect("starts");
    let addr = node.admin_addr().expect("asked for");
    (node, addr)
}

#[tokio::test]
async fn operators_find_out_how_things_stand() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    let member = node.join("kv/1", Some("10.0.0.1:1".into())).await.expect("runs");
    within("it leads", member.until_leader()).await.expect("a member");
    assert_eq!(get(addr, "/healthz").await, (200, json!({ "ok": true })));
    assert_eq!(get(addr, "/readyz").await.0, 200);
    let (_, status) = get(addr, "/v1/status").await;
    assert_eq!(status["node"], "a");
    assert_eq!(status["id"], node.id().to_string());
    assert_eq!(status["labels"], json!({ "zone": "east" }));
    assert_eq!(status["links"], json!({ "sealed": false, "by": null }));
    assert_eq!(status["versions"], json!({ "min": 2, "max": 6 }));
    assert_eq!(status["level"], json!({ "agreed": 0, "understood": 1 }));
    assert_eq!((&status["rank"], &status["nodes"], &status["ready"]), (&json!(0), &json!(1), &json!(true)));
    assert_eq!((&status["coordinator"], &status["leading"]), (&json!("a"), &json!(["kv/1"])));
    let (_, view) = get(addr, "/v1/view").await;
    assert_eq!(view["members"][0]["addr"], node.listen_addr().to_string());
    assert_eq!(view["view"], status["view"]);
    let (_, groups) = get(addr, "/v1/groups").await;
    assert_eq!(groups["groups"][0]["leader"], "a");
    for path in ["/v1/groups/kv/1", "/v1/groups/kv%2F1"] {
        let (code, group) = get(addr, path).await;
        assert_eq!((code, &group["members"][0]["endpoint"]), (200, &json!("10.0.0.1:1")), "{path}");
        assert_eq!(group["token"], member.view().expect("a member").token.get());
    }
    let (status, head, metrics) = request(addr, "GET /metrics HTTP/1.1").await;
    assert!(status == 200 && head.contains("text"), "{head}");
    assert!(
        metrics.contains("phalanx_leading_groups 1") && metrics.contains("# HELP phalanx_cluster_views"),
        "{metrics}"
    );
    place.judge([node]).await;
}

#[tokio::test]
async fn metrics_tell_of_leases_answers_changes_and_queues() {
    let place = Place::new();
    let (a, addr) = admin_of(&place).await;
    let b = place.node("b").await;
    one_view(&[a.clone(), b.clone()]).await;
    let of = |node: &Node| node.extensions().metrics_text();
    within("both are seen", async {
        let seen = || {
            let (a, b) = (of(&a), of(&b));
            a.contains("phalanx_member_changes_total{cause=\"join\"} 1")
                && a.contains("phalanx_links_by_version{version=\"6\"}")
                && b.contains("phalanx_queue_limit{queue=\"bulk_bytes\"}")
                && count(&b, "phalanx_heartbeat_round_trip_seconds_count") > 2
                && count(&b, "phalanx_lease_margin_seconds_count") > 2
        };
        while !seen() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let text = of(&b);
    for line in [
        "phalanx_queue_limit{queue=\"arrivals\"} 1024",
        "phalanx_links_sealed{by=\"nothing\"} 0",
        "phalanx_queue_length{queue=\"link_frames\"} ",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    leave([b]).await;
    within("its leaving is counted", async {
        while !of(&a).contains("phalanx_member_changes_total{cause=\"leave\"} 1") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(get(addr, "/healthz").await.0, 200);
    place.judge([a]).await;
}

fn count(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_allowed_is_answered_in_json() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    for (head, status) in [
        ("GET /nothing HTTP/1.1", 404),
        ("GET /v1/groups/unknown HTTP/1.1", 404),
        ("POST /v1/status HTTP/1.1\r\ncontent-length: 0", 405),
        ("DELETE /v1/groups/unknown HTTP/1.1", 405),
    ] {
        let (code, headers, body) = request(addr, head).await;
        assert_eq!(code, status, "{head}");
        assert!(headers.contains("application/json"), "{headers}");
        assert!(status != 405 || headers.contains("allow: get, head"), "{headers}");
        assert!(serde_json::from_str::<Value>(&body).expect("JSON")["error"].is_string(), "{body}");
    }
    let long = "x".repeat(40_000);
    let (code, ..) = request(addr, &format!("GET /healthz HTTP/1.1\r\nlong: {long}")).await;
    assert_eq!(code, 431, "a head without end is refused");
    assert_eq!(get(addr, "/healthz").await.0, 200, "and the API goes on");
    place.judge([node]).await;
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_point_here_reads_nothing() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    node.extensions().route("/v1/services", |_| AdminResponse::json(200, &json!({ "secret": 1 })));
    let paths = [
        "/",
        "/healthz",
        "/metrics",
        "/v1/status",
        "/v1/view",
        "/v1/groups",
        "/v1/groups/g",
        "/v1/events",
        "/v1/rendezvous/default",
        "/v1/rendezvous/default/witness/5-0000000000000def/1",
        "/v1/services",
    ];
    for path in paths {
        let (status, _, body) =
            request_of(addr, &format!("GET {path} HTTP/1.1"), &format!("evil.example:{}", addr.port())).await;
        assert_eq!(status, 403, "{path}: {body}");
        let why = serde_json::from_str::<Value>(&body).expect("JSON");
        assert_eq!(why.as_object().map(serde_json::Map::len), Some(1), "{body}");
        assert!(why["error"].as_str().is_some_and(|why| why.contains("http://127.0.0.1")), "{body}");
    }
    for host in ["localhost", "LOCALHOST:1", "[::1]:7070", "10.0.0.1"] {
        assert_eq!(request_of(addr, "GET /v1/status HTTP/1.1", host).await.0, 200, "{host}");
    }
    assert_eq!(request(addr, "GET /v1/services HTTP/1.1").await.0, 200);
    place.judge([node]).await;
}

#[tokio::test]
async fn a_node_in_no_view_is_alive_but_not_ready() {
    let node = quiet("a").bootstrap(Bootstrap::Join).admin(loopback());
    let node = node.start().await.expect("starts");
    let addr = node.admin_addr().expect("asked for");
    assert_eq!(get(addr, "/healthz").await.0, 200);
    let (code, why) = get(addr, "/readyz").await;
    assert_eq!((code, &why["ready"]), (503, &json!(false)));
    assert!(why["why"].as_str().expect("a reason").contains("no view"));
    assert_eq!(get(addr, "/v1/view").await.1["view"], Value::Null);
    within("leaving", node.leave()).await;
    within("the API ends with the node", async {
        while answers_for(addr, &node).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Does the admin API of this very node answer? Its port may be another one's by now.
async fn answers_for(addr: SocketAddr, node: &Node) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return false };
    let mut answer = Vec::new();
    let _refused =
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    let _refused = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).contains(&node.id().to_string())
}

#[tokio::test]
async fn callers_add_routes_and_metrics() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    node.extensions().route("/v1/services", |request| {
        AdminResponse::json(
            200,
            &json!({ "path": request.path, "method": request.method, "size": request.body.len() }),
        )
    });
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    counter.inc_by(7);
    node.extensions()
        .with_registry(|registry| registry.register("router_requests", "Requests", counter.clone()));
    assert_eq!(get(addr, "/v1/services/kv").await.1["path"], "/v1/services/kv");
    let (code, _, body) = request(addr, "POST /v1/services HTTP/1.1\r\ncontent-length: 0").await;
    assert!(code == 200 && body.contains("POST"), "{body}");
    assert!(request(addr, "GET /metrics HTTP/1.1").await.2.contains("router_requests_total 7"));
    let huge = format!("POST /v1/services HTTP/1.1\r\ncontent-length: {}", 1 << 20);
    let mut stream = TcpStream::connect(addr).await.expect("listens");
    stream.write_all(format!("{huge}\r\nhost: localhost\r\n\r\n").as_bytes()).await.expect("written");
    let _cut_short = stream.write_all(&vec![0; 1 << 18]).await;
    let mut answer = vec![0; 64];
    let count = within("an answer", stream.read(&mut answer)).await.expect("an answer");
    assert!(String::from_utf8_lossy(&answer[..count]).contains("413"), "{answer:?}");
    let other = place.node("b").await;
    let member = other.join("g", None).await.expect("runs");
    within("joined", view(&mut member.views(), |v| v.members.len() == 1)).await;
    place.judge([node, other]).await;
}

/// Lines that come for as long as the node goes on.
async fn follow(addr: SocketAddr) -> Lines<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(addr).await.expect("listens");
    stream.write_all(b"GET /v1/events HTTP/1.0\r\nhost: localhost\r\n\r\n").await.expect("it reads");
    BufReader::new(stream).lines()
}

/// The next event; `None` at the end.
async fn next_event(lines: &mut Lines<BufReader<TcpStream>>) -> Option<Value> {
    loop {
        let line = within("an event", lines.next_line()).await.expect("text")?;
        if let Some(data) = line.strip_prefix("data: ") {
            return Some(serde_json::from_str(data).expect("JSON"));
        }
    }
}

#[tokio::test]
async fn events_come_as_they_happen_after_the_current_state_until_the_node_has_stopped() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    let group = node.join("g", None).await.expect("runs");
    within("it leads", group.until_leader()).await.expect("a member");
    let mut same = node.all_events();
    let mut lines = follow(addr).await;
    let head = within("a head", lines.next_line()).await.expect("text").expect("a head");
    assert!(head.contains("200"), "{head}");
    let mut kinds = Vec::new();
    let mut other = None;
    loop {
        let Some(event) = next_event(&mut lines).await else { break };
        let told = loop {
            let told = within("the same event", same.next()).await.expect("the node runs");
            // Some are for applications only.
            if let Some(told) = told.to_json() {
                break told;
            }
        };
        assert_eq!(event, told);
        let kind = event["event"].as_str().expect("a kind").to_owned();
        if kind == "leading" && other.is_none() {
            assert_eq!((&event["group"], &event["node"]), (&json!("g"), &json!("a")));
            other = Some(place.node("b").await);
        }
        if event["members"] == json!(["a", "b"]) {
            assert_eq!((&*kind, &event["rank"]), ("cluster_view", &json!(0)));
            let leaver = node.clone();
            tokio::spawn(async move { leaver.leave().await });
        }
        kinds.push(kind);
    }
    let begin = ["started", "cluster_view", "view", "leading"];
    assert_eq!(kinds.iter().filter(|kind| **kind != "blocked").take(4).collect::<Vec<_>>(), begin);
    assert!(kinds.iter().any(|kind| kind == "not_leading"), "{kinds:?}");
    drop(group);
    place.judge([node, other.expect("it began")]).await;
}

#[tokio::test]
async fn so_many_clients_follow_the_events_and_others_still_get_answers() {
    const MOST: usize = 32;
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    let mut clients = Vec::new();
    for _ in 0..MOST {
        let mut lines = follow(addr).await;
        next_event(&mut lines).await.expect("the node runs");
        clients.push(lines);
    }
    let (code, why) = get(addr, "/v1/events").await;
    assert_eq!(code, 503);
    assert!(why["error"].as_str().expect("a reason").contains("32 clients"), "{why}");
    assert_eq!(get(addr, "/v1/status").await.0, 200);
    assert_eq!(metric(&node, "phalanx_event_streams"), MOST as u64);
    assert_eq!(metric(&node, "phalanx_event_streams_refused"), 1);
    clients.pop();
    within("its end is noticed", async {
        while metric(&node, "phalanx_event_streams") == MOST as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut lines = follow(addr).await;
    assert_eq!(next_event(&mut lines).await.expect("the node runs")["event"], "started");
    drop((clients, lines));
    place.judge([node]).await;
}

#[tokio::test]
async fn clients_that_say_nothing_make_room() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    let asked = Instant::now();
    let mut silent = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(addr).await.expect("listens");
        if n % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("it is there");
        }
        silent.push(stream);
    }
    // Who was answered or refused, and says nothing more, is as silent.
    let heads = [
        "GET /healthz HTTP/1.1\r\nhost: x",
        "GET /healthz HTTP/1.1\r\nhost: localhost",
        "HEAD /v1/events HTTP/1.1",
    ];
    for head in heads {
        for _ in 0..100 {
            let mut stream = TcpStream::connect(addr).await.expect("listens");
            stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.expect("it is there");
            let mut first = [0; 9];
            within("an answer", stream.read_exact(&mut first)).await.expect("an answer");
            assert_eq!(&first, b"HTTP/1.1 ");
            silent.push(stream);
        }
    }
    assert_eq!(get(addr, "/healthz").await.0, 200);
    assert!(asked.elapsed() < Duration::from_secs(9), "it waited until they were given up");
    drop(silent);
    place.judge([node]).await;
}

#[tokio::test]
async fn who_keeps_the_log_knows_all_groups_and_others_say_which_they_know() {
    let place = Place::new();
    let (a, core) = admin_of(&place).await;
    within("it joins", a.joined()).await.expect("joins");
    let b = place.builder("b").core(false).admin(loopback()).start().await.expect("starts");
    let plain = b.admin_addr().expect("asked for");
    one_view(&[a.clone(), b.clone()]).await;
    let (one, two) = (a.join("a/own", None).await, b.join("b/own", Some("10.0.0.1:1".into())).await);
    let (one, two) = (one.expect("runs"), two.expect("runs"));
    within("a leads", one.until_leader()).await.expect("a member");
    within("b leads", two.until_leader()).await.expect("a member");

    let (_, all) = get(core, "/v1/groups").await;
    assert_eq!((&all["known"], &all["next"], &all["why"]), (&json!("all"), &Value::Null, &Value::Null));
    assert!(all["index"].as_u64() > Some(0), "{all}");
    let names = |groups: &Value| -> Vec<String> {
        let groups = groups["groups"].as_array().expect("a list").iter();
        groups.map(|group| group["group"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&all), ["a/own", "b/own"]);
    let of_b = &all["groups"][1];
    assert_eq!(
        (&of_b["leader"], &of_b["rank"], &of_b["leading"]),
        (&json!("b"), &Value::Null, &json!(false))
    );
    assert_eq!(of_b["token"], two.view().expect("a member").token.get());
    assert_eq!(of_b["members"][0]["endpoint"], "10.0.0.1:1");
    assert_eq!(get(core, "/v1/groups/b/own").await.1["known"], "all");
    let (code, none) = get(core, "/v1/groups/none").await;
    assert!(code == 404 && none["error"].as_str().expect("a reason").contains("no group none"), "{none}");

    let (_, own) = get(plain, "/v1/groups").await;
    assert_eq!((&own["known"], names(&own)), (&json!("own"), vec!["b/own".to_owned()]));
    assert!(own["why"].as_str().expect("a reason").ends_with("all are known at a"), "{own}");
    assert_eq!(get(plain, "/v1/groups/b/own").await.1["known"], "own");
    let (code, unknown) = get(plain, "/v1/groups/a/own").await;
    assert!(code == 404 && unknown["error"].as_str().expect("a reason").contains("known at a"), "{unknown}");

    let (_, first) = get(core, "/v1/groups?limit=1").await;
    assert_eq!((&first["next"], names(&first)), (&json!("a/own"), vec!["a/own".to_owned()]));
    let (_, second) = get(core, "/v1/groups?limit=1&after=a%2Fown").await;
    assert_eq!((&second["next"], names(&second)), (&Value::Null, vec!["b/own".to_owned()]));
    assert_eq!(get(core, "/v1/groups?limit=0").await.0, 400);
    drop((one, two));
    place.judge([a, b]).await;
}

#[tokio::test]
async fn the_page_is_whole_and_its_browser_may_run_nothing_else_and_ask_nobody_else() {
    let place = Place::new();
    let (node, addr) = admin_of(&place).await;
    let (status, head, page) = request(addr, "GET / HTTP/1.1").await;
    assert!(status == 200 && head.contains("content-type: text/html; charset=utf-8"), "{head}");
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).expect("one");
    let mut rules: Vec<&str> = policy.split("; ").collect();
    let hashes: Vec<&str> = rules.iter().copied().filter(|rule| rule.contains("sha256-")).collect();
    assert_eq!(hashes.len(), 2, "{policy}");
    for element in ["script", "style"] {
        assert_eq!(page.matches(&format!("<{element}")).count(), 1, "one, and without attributes");
        let (_, rest) = page.split_once(&format!("<{element}>")).expect("it is there");
        let (content, _) = rest.split_once(&format!("</{element}>")).expect("it ends");
        let hash = ring::digest::digest(&ring::digest::SHA256, content.as_bytes());
        let hash = data_encoding::BASE64.encode(hash.as_ref()).to_ascii_lowercase();
        assert!(hashes.contains(&&*format!("{element}-src 'sha256-{hash}'")), "{element}: {policy}");
    }
    rules.retain(|rule| !rule.contains("sha256-"));
    let expected = [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ];
    assert_eq!(rules, expected);
    for foreign in ["http:", "https:", "//", " src=", " href=", " style=", " onload=", "innerHTML", "eval("] {
        let allowed = if foreign == "//" { page.matches("\n// ").count() } else { 0 };
        assert_eq!(page.matches(foreign).count(), allowed, "{foreign}");
    }
    for path in ["/v1/status", "/v1/view", "/v1/groups", "/v1/events"] {
        assert!(page.contains(path), "{path}");
    }
    assert_eq!(request(addr, "POST / HTTP/1.1\r\ncontent-length: 0").await.0, 405);
    place.judge([node]).await;
}
