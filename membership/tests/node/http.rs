//! Nodes that find each other by a registry that one of them keeps.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use membership::{Bootstrap, JoinError, Node, NodeBuilder};
use ports::nobody;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{PATIENCE, leave, loopback, one_view, quiet, secret, together, view, within};

const ALONE: Bootstrap = Bootstrap::AloneAfter(Duration::from_millis(300));

/// A node of another cluster that keeps the registry.
async fn agent(admin: SocketAddr) -> (Node, SocketAddr) {
    let builder = quiet("agent").cluster("agents").bootstrap(ALONE).admin(admin);
    let node = builder.start().await.expect("starts");
    let admin = node.admin_addr().expect("asked for");
    (node, admin)
}

fn builder(name: &str, registry: SocketAddr) -> NodeBuilder {
    let url = format!("http://{registry}/v1/rendezvous").parse().expect("valid");
    quiet(name).rendezvous(url).bootstrap(ALONE)
}

fn slots(node: &Node) -> Vec<Option<u16>> {
    node.status().view.as_ref().expect("joined").members.iter().map(|n| n.slot).collect()
}

/// One request as any client may make it. Gives status, ETag and body.
async fn request(registry: SocketAddr, what: &str, headers: &str, body: &Value) -> (u16, String, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{what} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(registry).await.expect("listens");
    stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).await.expect("written");
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap_or_default();
    (status, etag.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn entry(addr: SocketAddr) -> Value {
    json!({ "key": "ghost", "id": "1.1", "name": "ghost", "addr": addr, "held": true })
}

#[tokio::test]
async fn nodes_that_start_at_once_end_in_the_cluster_of_the_agent_that_keeps_the_registry() {
    let keeper = quiet("keeper").bootstrap(ALONE).admin(loopback()).start().await.expect("starts");
    let registry = keeper.admin_addr().expect("asked for");
    let mut nodes = together(4, |n| builder(&format!("n{n}"), registry)).await;
    nodes.push(keeper);
    one_view(&nodes).await;
    leave(nodes).await;
}

#[tokio::test]
async fn founder_slots_are_taken_once_and_one_founder_too_many_is_refused() {
    let (agent, registry) = agent(loopback()).await;
    let founder = |n: usize| builder(&format!("n{n}"), registry).bootstrap(Bootstrap::Expect(3));
    let nodes = together(3, founder).await;
    one_view(&nodes).await;
    assert_eq!(slots(&nodes[0]), [Some(0), Some(1), Some(2)]);
    let error = founder(3).start().await.expect_err("refused");
    assert!(error.is_configuration() && error.to_string().contains("--bootstrap join"), "{error}");
    assert!(error.to_string().contains("n1 at 127.0.0.1:"), "{error}");
    let joiner = builder("joiner", registry).bootstrap(Bootstrap::Join).start().await.expect("starts");
    within("joined", joiner.joined()).await.expect("joins");
    within("leaving", nodes[0].leave()).await;
    let heir = founder(4).start().await.expect("a slot is free again");
    within("joined", heir.joined()).await.expect("joins");
    leave(nodes.into_iter().chain([heir, joiner, agent])).await;
}

#[tokio::test]
async fn a_founder_may_keep_the_registry_itself() {
    let registry = nobody();
    let founder = |n: usize| {
        let founder = builder(&format!("n{n}"), registry).bootstrap(Bootstrap::Expect(3));
        if n == 0 { founder.admin(registry) } else { founder }
    };
    let nodes = together(3, founder).await;
    one_view(&nodes).await;
    let (_, _, listed) = request(registry, "GET /v1/rendezvous/default", "", &Value::Null).await;
    assert_eq!(listed["nodes"].as_array().map(Vec::len), Some(3), "{listed}");
    leave(nodes).await;
}

#[tokio::test]
async fn without_the_agent_nodes_go_on_and_they_tell_the_next_one_what_it_must_know() {
    let (first, registry) = agent(loopback()).await;
    let nodes = together(3, |n| builder(&format!("n{n}"), registry).bootstrap(Bootstrap::Expect(3))).await;
    one_view(&nodes).await;
    leave([first]).await;
    // The cluster works as before: groups form, leaders lead.
    let mut members = Vec::new();
    for node in &nodes {
        members.push(node.join("g", None).await.expect("runs"));
    }
    within("a view of all", view(&mut members[2].views(), |v| v.members.len() == 3)).await;
    let (second, registry) = agent(registry).await;
    let late = builder("late", registry).bootstrap(Bootstrap::Join).start().await.expect("starts");
    within("joined", late.wait_joined(PATIENCE)).await.expect("finds those who registered again");
    // Nobody else gets their slots, not even at once.
    let error = builder("x", registry).bootstrap(Bootstrap::Expect(3)).start().await.expect_err("refused");
    assert!(error.to_string().contains("--bootstrap join"), "{error}");
    leave(nodes.into_iter().chain([late, second])).await;
}

#[tokio::test]
async fn the_slot_of_a_silent_holder_is_taken_only_if_nobody_listens_at_its_address() {
    let (agent, registry) = agent(loopback()).await;
    let alive = TcpListener::bind("127.0.0.1:0").expect("a port");
    let alive = alive.local_addr().map(|addr| (alive, addr)).expect("bound");
    let slot = "PUT /v1/rendezvous/default/slots/0";
    let (status, etag, _) = request(registry, slot, "if-none-match: *\r\n", &entry(alive.1)).await;
    assert_eq!(status, 201);
    let founder = |name| builder(name, registry).bootstrap(Bootstrap::Expect(1)).start();
    let error = founder("a").await.expect_err("somebody listens there");
    assert!(error.to_string().contains("ghost"), "{error}");
    let (status, ..) = request(registry, slot, "", &entry(nobody())).await;
    assert_eq!(status, 428, "only by compare-and-set");
    let gone = format!("DELETE{}", slot.trim_start_matches("PUT"));
    let (status, ..) = request(registry, &gone, &format!("if-match: {etag}\r\n"), &Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(request(registry, slot, "if-none-match: *\r\n", &entry(nobody())).await.0, 201);
    let heir = within("it waits until the holder is silent for long", founder("b")).await.expect("takes it");
    within("founded", heir.joined()).await.expect("founds");
    assert_eq!(slots(&heir), [Some(0)]);
    leave([heir, agent]).await;
}

#[tokio::test]
async fn nobody_founds_before_the_registry_has_answered_but_another_provider_may_lead_to_a_cluster() {
    let registry = nobody();
    let waiting = builder("waiting", registry).start().await.expect("starts");
    assert!(matches!(waiting.wait_joined(Duration::from_secs(2)).await, Err(JoinError::Timeout { .. })));
    let addrs = [nobody(), nobody()];
    let list = || format!("static:{},{}", addrs[0], addrs[1]).parse().expect("valid");
    let founder = quiet("founder").bootstrap(ALONE).listen(addrs[0]).rendezvous(list());
    let founder = founder.start().await.expect("starts");
    within("founded", founder.joined()).await.expect("founds");
    let both = builder("both", registry).listen(addrs[1]).rendezvous(list()).start().await.expect("starts");
    within("joined", both.joined()).await.expect("by the list");
    // Now it answers. Whichever lineage is the elder one: they become one.
    let (agent, _) = agent(registry).await;
    within("joined", waiting.wait_joined(PATIENCE)).await.expect("joins or founds, and meets");
    one_view(&[waiting.clone(), founder.clone(), both.clone()]).await;
    leave([waiting, both, founder, agent]).await;
}

#[tokio::test]
async fn a_registry_answers_strangers_in_json_and_keeps_out_what_is_none_of_its_business() {
    let (agent, registry) = agent(loopback()).await;
    let nobody = Value::Null;
    for (what, expected) in [
        ("GET /v1/rendezvous", 404),
        ("GET /v1/rendezvous/a%2Fb", 404),
        ("GET /v1/rendezvous/c/nodes/k", 404),
        ("POST /v1/rendezvous/c/nodes/k", 405),
        ("PUT /v1/rendezvous/c/nodes/k", 400),
        ("GET /v1/rendezvousx", 404),
    ] {
        let (status, _, body) = request(registry, what, "", &nobody).await;
        assert_eq!(status, expected, "{what}: {body}");
        assert!(body["error"].is_string(), "{what}: {body}");
    }
    let huge = json!({ "key": "k", "id": "1.1", "name": "x".repeat(2000), "addr": "127.0.0.1:1" });
    assert_eq!(request(registry, "PUT /v1/rendezvous/c/nodes/k", "", &huge).await.0, 413);
    let (status, _, list) = request(registry, "GET /v1/rendezvous/agents", "", &nobody).await;
    assert_eq!((status, &list["nodes"]), (200, &json!([agent.listen_addr()])));
    leave([agent]).await;
}

#[tokio::test]
async fn a_web_page_writes_nothing_into_a_registry() {
    let (agent, registry) = agent(loopback()).await;
    let (node, slot) = ("/v1/rendezvous/default/nodes/ghost", "/v1/rendezvous/default/slots/0");
    let ours = entry(nobody());
    assert_eq!(request(registry, &format!("PUT {node}"), "", &ours).await.0, 201);
    assert_eq!(request(registry, &format!("PUT {slot}"), "if-none-match: *\r\n", &ours).await.0, 201);
    let before = request(registry, "GET /v1/rendezvous/default", "", &Value::Null).await;
    for page in ["origin: http://evil.example\r\n", "origin: null\r\n", "sec-fetch-site: same-origin\r\n"] {
        let others = json!({ "key": "page", "id": "1.1", "name": "page", "addr": nobody() });
        for (what, headers, body) in [
            (format!("PUT {node}"), "", &ours),
            ("PUT /v1/rendezvous/default/nodes/page".to_owned(), "", &others),
            ("PUT /v1/rendezvous/default/slots/1".to_owned(), "if-none-match: *\r\n", &others),
            (format!("DELETE {node}"), "", &Value::Null),
            (format!("DELETE {slot}"), "", &Value::Null),
        ] {
            let (status, _, answer) = request(registry, &what, &format!("{page}{headers}"), body).await;
            assert_eq!(status, 403, "{what} with {page}: {answer}");
            assert!(answer["error"].as_str().is_some_and(|why| why.contains("web page")), "{answer}");
        }
    }
    let after = request(registry, "GET /v1/rendezvous/default", "", &Value::Null).await;
    assert_eq!((before.1, before.2), (after.1, after.2), "nothing was changed");
    assert_eq!(request(registry, &format!("DELETE {slot}"), "", &Value::Null).await.0, 200, "people may");
    leave([agent]).await;
}

/// Somebody on the way: whoever asks is told that nobody holds a slot, and then that the slot is its own.
async fn liar() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(loopback()).await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    read.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&read).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() < length.map_or(0, |n| n.parse().expect("a number")) {
                        continue;
                    }
                    let (status, body) = match head.starts_with("PUT") {
                        true => ("201 Created", "{}"),
                        false => ("200 OK", r#"{"nodes":[],"slots":{}}"#),
                    };
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\netag: \"1-1\"\r\ncontent-length: {length}\r\n\r\n{body}"
                    );
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                    read.clear();
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_founder_that_wants_proofs_takes_a_slot_of_who_has_the_secret_and_of_nobody_else() {
    let founder = |registry: SocketAddr, query: &str| {
        let url = format!("http://{registry}/v1/rendezvous{query}").parse().expect("valid");
        quiet("founder").secret(secret(1)).rendezvous(url).bootstrap(Bootstrap::Expect(1))
    };
    let agent = |secret| async move {
        let agent = quiet("agent").cluster("agents").secret(secret).bootstrap(ALONE).admin(loopback());
        let agent = agent.start().await.expect("starts");
        (agent.admin_addr().expect("asked for"), agent)
    };
    let ((with, one), (without, other)) = (agent(secret(1)).await, agent(secret(2)).await);
    let liar = liar().await;
    // Who does not ask for proofs believes both, as it must where agents do not have the secret.
    for (registry, query) in [(with, "?proof=required"), (with, ""), (without, ""), (liar, "")] {
        let node = within("a slot", founder(registry, query).start()).await.expect("takes the slot");
        within("founded", node.joined()).await.expect("founds");
        leave([node]).await;
    }
    let (a, b) =
        tokio::join!(founder(without, "?proof=required").start(), founder(liar, "?proof=required").start(),);
    for refused in [a, b] {
        let why = refused.expect_err("nothing proves that the slot is its own").to_string();
        assert!(why.contains("no proof") && why.contains("--secret-file"), "{why}");
    }
    // A wrong proof is refused, whoever sends it.
    let zeros = |n| "0".repeat(n);
    let key = format!("x-phalanx-proof: {}.{}.{}\r\n", zeros(16), zeros(32), zeros(64));
    assert_eq!(
        request(with, "GET /v1/rendezvous/default", &key, &Value::Null).await.0,
        200,
        "a key of others"
    );
    let (status, _, why) =
        request(with, "GET /v1/rendezvous/default", "x-phalanx-proof: x\r\n", &Value::Null).await;
    assert_eq!(status, 401, "{why}");
    leave([one, other]).await;
}
