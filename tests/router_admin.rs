//! A router without a node has an admin API of its own: what it serves, what it counts, and the order to reload.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use phalanx::{Membership, Node};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use common::{Dir, phalanx};

struct Router {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for Router {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Router {
    fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    fn start_with(config: &str, more: &[&str]) -> Self {
        let mut child = phalanx()
            .args(["router", "--json", "--workers", "2", "--config", config, "--admin", "127.0.0.1:0"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary can be started");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, out }
    }

    /// The next event of this kind.
    fn event(&mut self, name: &str) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).expect("a line") > 0, "no {name}");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if event["event"] == name {
                return event;
            }
        }
    }
}

/// Says this to a server and gives the status and the body of what comes back.
fn http(addr: &str, request: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).expect("it listens");
    let host = if headers.contains("host:") { String::new() } else { format!("host: {addr}\r\n") };
    write!(stream, "{request} HTTP/1.1\r\n{host}connection: close\r\n{headers}\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("HTTP");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

fn json_of(addr: &str, path: &str) -> Value {
    let (status, body) = http(addr, &format!("GET {path}"), "");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Answers every request with two bytes.
fn server() -> String {
    server_that_says("ok")
}

/// Answers every request with these two bytes.
fn server_that_says(said: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|len| len > 0) {
                    if line == "\r\n" {
                        let _gone = (&stream).write_all(
                            format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{said}").as_bytes(),
                        );
                    }
                    line.clear();
                }
            });
        }
    });
    addr
}

#[test]
fn what_is_served_and_counted_can_be_asked_and_a_changed_file_taken_over() {
    let dir = Dir::new();
    let server = server();
    let text = format!(
        "[[service]]\nname = \"shop/web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\nkey = \"header:x-key\"\n\
         [service.pmap]\nstyle = \"slots\"\npartitions = 4\n[[service.racs]]\nname = \"a\"\nservers = [\"{server}\"]\n\
         [service.health]\ncheck = \"tcp\"\n"
    );
    let config = dir.write("router.toml", &text);
    let mut router = Router::start(&config);
    let mut at = |name: &str| router.event(name)["listen"].as_str().expect("an address").to_owned();
    let (service, admin) = (at("serving"), at("admin"));
    for _ in 0..5 {
        assert_eq!(http(&service, "GET /x", "x-key: k\r\n"), (200, "ok".into()));
    }

    assert_eq!(http(&admin, "GET /healthz", "").0, 200);
    assert_eq!(http(&admin, "GET /readyz", "").0, 200);
    let services = json_of(&admin, "/v1/services");
    let one = &services["services"][0];
    assert_eq!(
        (&one["name"], &one["protocol"], &one["listen"]),
        (&json!("shop/web"), &json!("http"), &json!(service))
    );
    assert_eq!((&one["racs"][0]["epoch"], &one["racs"][0]["clones"][0]["leader"]), (&json!(1), &json!(true)));
    let pmap = json_of(&admin, "/v1/services/shop/web/pmap");
    assert_eq!(pmap["partitions"][3], json!({ "name": "3", "racs": "a" }));
    assert_eq!(http(&admin, "GET /v1/services/nothing/pmap", "").0, 404);
    let status = json_of(&admin, "/v1/status");
    let told = &status["router"]["services"][0];
    assert_eq!(
        (&told["requests"], &told["latency"]["count"], &told["busiest"][0]["requests"]),
        (&json!(5), &json!(5), &json!(5))
    );
    let physical = &status["router"]["servers"][0];
    assert_eq!(
        (&physical["addr"], &physical["in_flight"], &physical["requests"], &physical["circuit"]),
        (&json!(server), &json!(0), &json!(5), &json!("closed"))
    );
    assert_eq!((&told["in_flight"], &told["overloaded"]), (&json!(0), &json!(0)));
    let classes = json!({ "1xx": 0, "2xx": 5, "3xx": 0, "4xx": 0, "5xx": 0 });
    assert_eq!(physical["responses"], json!({ "shop/web": classes }));
    let hottest = &told["hot_keys"][0];
    assert_eq!(
        (&hottest["key"], &hottest["requests"], &hottest["share"]),
        (&Value::Null, &json!(5), &json!(1.0))
    );
    assert_eq!(hottest["id"].as_str().map(str::len), Some(16));
    let hot = json_of(&admin, "/v1/services/shop/web/hot");
    assert_eq!((&hot["requests"], &hot["partitions"][0]["keys"][0]), (&json!(5), hottest));
    assert_eq!(http(&admin, "GET /v1/services/nothing/hot", "").0, 404);
    let checked = &status["router"]["checked"][0];
    assert_eq!((&checked["addr"], &checked["up"]), (&json!(server), &json!(true)));

    let (_, metrics) = http(&admin, "GET /metrics", "");
    for line in [
        "phalanx_router_requests_total{service=\"shop/web\"} 5".to_owned(),
        "phalanx_router_request_seconds_count{service=\"shop/web\"} 5".to_owned(),
        "phalanx_router_request_seconds_bucket{service=\"shop/web\",le=\"+Inf\"} 5".to_owned(),
        format!("phalanx_router_server_requests_total{{server=\"{server}\"}} 5"),
        format!(
            "phalanx_router_server_responses_total{{service=\"shop/web\",server=\"{server}\",class=\"2xx\"}} 5"
        ),
        "phalanx_router_workers 2".to_owned(),
        "phalanx_router_handshakes_failed_total{service=\"shop/web\"} 0".to_owned(),
        format!("phalanx_router_server_up{{service=\"shop/web\",server=\"{server}\"}} 1"),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is missing in {metrics}");
    }
    assert!(metrics.contains("phalanx_router_partition_requests_total{service=\"shop/web\",partition="));
    let hot =
        metrics.lines().find(|line| line.starts_with("phalanx_router_hot_key_share{")).expect("a hot key");
    assert!(
        hot.starts_with("phalanx_router_hot_key_share{service=\"shop/web\",rank=\"1\",partition="),
        "{hot}"
    );
    assert!(hot.ends_with(" 1") && !hot.contains("key=\""), "keys are hidden unless asked for: {hot}");
    assert!(metrics.ends_with("# EOF\n") && !metrics.contains("phalanx_cluster_views"), "{metrics}");
    let explained = include_str!("../ARCHITECTURE.md");
    for family in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().expect("a name");
        assert!(explained.contains(&format!("`{name}`")), "{name} is missing in ARCHITECTURE.md");
    }

    let operator = "x-phalanx-operator: 1\r\ncontent-length: 0\r\n";
    assert_eq!(http(&admin, "GET /v1/reload", operator).0, 405);
    assert_eq!(http(&admin, "POST /v1/reload", "content-length: 0\r\n").0, 403, "a page could say so");
    assert_eq!(http(&admin, "POST /v1/reload", &format!("{operator}origin: http://127.0.0.1\r\n")).0, 403);
    assert_eq!(http(&admin, "GET /v1/status", "host: evil.example\r\n").0, 403);
    dir.write("router.toml", &text.replace("partitions = 4", "partitions = 0"));
    let (status, why) = http(&admin, "POST /v1/reload", operator);
    assert!(status == 409 && why.contains("router.toml:8: 0 partitions"), "{status} {why}");
    dir.write("router.toml", &text.replace("partitions = 4", "partitions = 6"));
    let (status, told) = http(&admin, "POST /v1/reload", operator);
    assert!(status == 200 && told.contains("\"changed\":[\"shop/web\"]"), "{status} {told}");
    assert_eq!(json_of(&admin, "/v1/services/shop/web")["partitions"], 6);
    let shown = text.replace("key = ", "hot_keys = \"shown\"\nkey = ");
    dir.write("router.toml", &shown);
    assert_eq!(http(&admin, "POST /v1/reload", operator).0, 200);
    assert_eq!(http(&service, "GET /x", "x-key: a\"b\\'\r\n").0, 200);
    let (_, metrics) = http(&admin, "GET /metrics", "");
    let quoted = r#"key="a\\\"b\\\\\\'"} 1"#;
    assert!(metrics.contains(quoted), "{quoted} is missing in {metrics}");
    let hot = json_of(&admin, "/v1/services/shop/web/hot");
    assert_eq!(hot["partitions"][0]["keys"][0]["key"], json!(r#"a\"b\\\'"#));
    assert_eq!(http(&service, "GET /x", "x-key: k\r\n").0, 200);

    let pid = router.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    assert_eq!(router.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn an_admin_api_for_all_the_world_is_refused() {
    let dir = Dir::new();
    let config = dir.write(
        "router.toml",
        "[[service]]\nname = \"s\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\n[service.pmap]\nstyle = \"slots\"\n\
         partitions = 8\n[[service.racs]]\nname = \"a\"\nservers = [\"127.0.0.1:1\"]\n",
    );
    let output = common::run(&["router", "--config", &config, "--admin", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("ssh -L"), "{}", common::stderr(&output));
}

/// Two members of the group `g` on nodes with such a label, each with what its server says.
fn members(
    dir: &Dir,
    runtime: &Runtime,
    key: &str,
    members: [(&str, &'static str); 2],
) -> Vec<(Membership, Node)> {
    let member = |(value, said)| {
        let at = server_that_says(said);
        let node = Node::builder().rendezvous(dir.rendezvous().parse().expect("a place"));
        let node = node.label(key, value).lease(Duration::from_secs(5));
        runtime.block_on(async {
            let node = node.start().await.expect("it starts");
            (node.join("g", Some(at)).await.expect("it joins"), node)
        })
    };
    members.into_iter().map(member).collect()
}

/// A router of that group once it has heard of both members and of who leads; where it serves, and what it knows
/// of them.
fn router_of_members(dir: &Dir, more: &[&str]) -> (Router, String, Vec<Value>) {
    // Where a server is slow to answer, another one would be asked, too.
    let text = "[[service]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\nkey = \"header:x-key\"\n\
         hedge = \"off\"\n[service.pmap]\nstyle = \"slots\"\npartitions = 4\n[[service.racs]]\nname = \"a\"\ngroup = \"g\"\n";
    let config = dir.write("router.toml", text);
    let rendezvous = dir.rendezvous();
    let mut router =
        Router::start_with(&config, &[more, &["--rendezvous", &rendezvous, "--lease", "5s"]].concat());
    let mut at = |name: &str| router.event(name)["listen"].as_str().expect("an address").to_owned();
    let (service, admin) = (at("serving"), at("admin"));
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        let services = json_of(&admin, "/v1/services");
        let clones = services["services"][0]["racs"][0]["clones"].as_array().cloned().unwrap_or_default();
        if clones.len() == 2 && clones[0]["leader"] == true {
            return (router, service, clones);
        }
        assert!(Instant::now() < deadline, "it hears of the group: {services}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn members_in_the_zone_of_the_router_are_asked_first() {
    let (dir, runtime) = (Dir::new(), Runtime::new().expect("threads"));
    let members = members(&dir, &runtime, "zone", [("eu1", "e1"), ("eu2", "e2")]);
    let (_router, service, clones) = router_of_members(&dir, &["--label", "zone=eu2"]);
    let mut zones: Vec<&str> = clones.iter().filter_map(|clone| clone["zone"].as_str()).collect();
    let leader = if zones[0] == "eu1" { "e1" } else { "e2" };
    zones.sort_unstable();
    assert_eq!(zones, ["eu1", "eu2"]);
    for _ in 0..30 {
        assert_eq!(http(&service, "GET /x", "x-key: k\r\n"), (200, "e2".into()));
    }
    // Who leads is not a matter of place.
    assert_eq!(http(&service, "POST /x", "x-key: k\r\ncontent-length: 0\r\n"), (200, leader.into()));
    drop(members);
}

#[test]
fn members_get_reads_by_the_weight_of_their_nodes() {
    let (dir, runtime) = (Dir::new(), Runtime::new().expect("threads"));
    let members = members(&dir, &runtime, "weight", [("1", "w1"), ("1000", "w2")]);
    let (_router, service, clones) = router_of_members(&dir, &[]);
    let mut weights: Vec<_> = clones.iter().filter_map(|clone| clone["weight"].as_u64()).collect();
    let leader = if weights[0] == 1 { "w1" } else { "w2" };
    weights.sort_unstable();
    assert_eq!(weights, [1, 1000]);
    let light = (0..100).filter(|_| http(&service, "GET /x", "x-key: k\r\n").1 == "w1").count();
    assert!(light < 10, "1 in 1001 is for the light one, not {light} in 100");
    // Nor is who leads one of weight.
    assert_eq!(http(&service, "POST /x", "x-key: k\r\ncontent-length: 0\r\n"), (200, leader.into()));

    // Who routes by itself is told the same.
    let (tell, told) = mpsc::channel();
    let node = members[0].1.clone();
    let _fed = runtime.spawn(async move {
        let fed = phalanx::follow(&node, ["g"], |_, clones| {
            let weights: Vec<_> = clones.clones.iter().map(|clone| u64::from(clone.weight.get())).collect();
            let _heard_enough = tell.send(weights);
        });
        fed.await
    });
    let of_router: Vec<_> = clones.iter().filter_map(|clone| clone["weight"].as_u64()).collect();
    while told.recv_timeout(common::PATIENCE).expect("a view with both") != of_router {}
}
