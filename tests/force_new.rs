//! An operator gives up a lineage that lost most of its core.
#![cfg(feature = "cli")]

use std::{
    io::{Read, Write},
    net::TcpStream,
};

mod common;
use common::{Dir, Proc, run, stderr, stdout};
use ports::free_port;
use serde_json::Value;

struct Nodes {
    list: String,
    ports: Vec<u16>,
    procs: Vec<Proc>,
    dir: Dir,
}

impl Nodes {
    fn start(n: usize) -> Self {
        let ports: Vec<u16> = (0..n).map(|_| free_port()).collect();
        let list: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut nodes =
            Self { list: format!("static:{}", list.join(",")), ports, procs: Vec::new(), dir: Dir::new() };
        nodes.procs = (0..n).map(|i| nodes.node(i)).collect();
        nodes.procs.iter_mut().for_each(|p| drop(p.until_members(n)));
        nodes
    }

    fn node(&self, i: usize) -> Proc {
        let (listen, how) = (format!("127.0.0.1:{}", self.ports[i]), format!("expect={}", self.ports.len()));
        let trace = self.trace(i);
        let more = ["--listen", &listen, "--bootstrap", &how, "--lease", "2s", "--admin", "127.0.0.1:0"];
        let more = [&more[..], &["--trace", &trace]].concat();
        Proc::join("g", &format!("n{i}"), &self.list, &more)
    }

    fn trace(&self, i: usize) -> String {
        self.dir.file(&format!("n{i}.jsonl"))
    }

    /// The first in its group's view.
    fn leader(&self) -> usize {
        let rank = |p: &Proc| p.seen.iter().rev().find(|e| e["event"] == "view").map(|e| e["rank"].clone());
        self.procs.iter().position(|p| rank(p) == Some(0.into())).expect("somebody leads")
    }
}

fn admin(p: &Proc) -> String {
    let started = p.seen.iter().find(|e| e["event"] == "started").expect("it has started");
    started["admin"].as_str().expect("an admin API").to_owned()
}

fn force(p: &Proc, more: &[&str]) -> std::process::Output {
    let from = admin(p);
    run(&[&["--json", "force-new", "--from", &from], more].concat())
}

#[test]
fn survivors_of_a_lost_core_go_on_above_the_old_tokens_and_who_comes_back_joins_them() {
    let mut nodes = Nodes::start(5);
    let leader = nodes.leader();
    let old = nodes.procs[leader].first_event("leading");
    let calm = force(&nodes.procs[leader], &["--yes"]);
    assert_eq!(calm.status.code(), Some(1), "{}", stderr(&calm));
    assert!(stderr(&calm).contains("not blocked"), "{}", stderr(&calm));

    let lost: Vec<usize> = (0..5).map(|i| (leader + i) % 5).take(3).collect();
    for i in &lost {
        nodes.procs[*i].signal("KILL");
        nodes.procs[*i].end();
    }
    let (from, other) = ((leader + 3) % 5, (leader + 4) % 5);
    for i in [from, other] {
        nodes.procs[i].until_event("blocked");
    }
    let unsure = force(&nodes.procs[from], &[]);
    assert_eq!(unsure.status.code(), Some(2), "{}", stderr(&unsure));
    assert!(stderr(&unsure).contains("--yes") && stderr(&unsure).contains("At risk"), "{}", stderr(&unsure));
    // Right after it said so, leases that rest on the node's own promise may last still.
    let forced = (0..50).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        force(&nodes.procs[from], &["--yes"])
    });
    let forced = forced.into_iter().find(|out| out.status.success()).expect("a lease is over by then");
    let said: Value = serde_json::from_str(stdout(&forced).trim()).expect("one object");
    let lineage = said["lineage"].as_str().expect("a lineage").to_owned();
    assert_eq!(said["from"], old["lineage"]);

    let new = nodes.procs[from]
        .until("a token of the new lineage", |e| e["event"] == "leading" && e["lineage"] == lineage.as_str());
    assert!(new["token"].as_u64() > old["token"].as_u64(), "{new} after {old}");
    let gone = nodes.procs[other].until_event("dissolved");
    assert!(gone["into"].as_str().expect("a lineage").ends_with(&lineage), "{gone}");
    nodes.procs[other].until_members(2);
    for i in &lost {
        nodes.procs[*i] = nodes.node(*i);
    }
    for i in lost {
        nodes.procs[i].until_members(5);
    }
    let seen = nodes.procs[from].drain();
    let since = seen.iter().position(|e| *e == new).expect("it was seen");
    let changes = |e: &&Value| e["event"] == "leading" && e["token"] != new["token"];
    assert_eq!(
        seen[since..].iter().find(changes),
        None,
        "the reign of the new lineage goes on: {:#?}",
        &seen[since..]
    );
    nodes.procs[from].signal("TERM");
    nodes.procs[from].end();
    let judged = stdout(&run(&["check", &nodes.trace(from)]));
    let orders = judged.lines().find(|line| line.starts_with("SE3")).expect("a verdict");
    assert!(orders.contains("pass"), "{judged}");
}

/// The operator was wrong: those who were missing were only stopped, and are a majority.
#[test]
fn a_majority_that_comes_back_dissolves_into_the_lineage_that_took_its_place() {
    let mut nodes = Nodes::start(5);
    let leader = nodes.leader();
    let lost: Vec<usize> = (0..5).map(|i| (leader + i) % 5).take(3).collect();
    lost.iter().for_each(|i| nodes.procs[*i].signal("STOP"));
    let from = (leader + 3) % 5;
    nodes.procs[from].until_event("blocked");
    let mut tries = (0..50).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        force(&nodes.procs[from], &["--yes"])
    });
    assert!(tries.any(|out| out.status.success()), "a lease is over by then");
    lost.iter().for_each(|i| nodes.procs[*i].signal("CONT"));
    for i in &lost {
        nodes.procs[*i].until_event("dissolved");
    }
    nodes.procs[from].until_members(5);
    assert!(
        !nodes.procs[from]
            .seen
            .iter()
            .rev()
            .take_while(|e| e["event"] != "started")
            .any(|e| e["event"] == "dissolved")
    );
}

#[test]
fn a_web_page_cannot_force_anything() {
    let nodes = Nodes::start(1);
    let addr = admin(&nodes.procs[0]);
    let lineage = run(&["--json", "status", "--admin", &addr]);
    let status: Value = serde_json::from_str(stdout(&lineage).trim()).expect("JSON");
    let body = serde_json::json!({ "lineage": status["lineage"] }).to_string();
    let ask = |method: &str, host: &str, headers: &str| {
        let mut stream = TcpStream::connect(&addr).expect("it listens");
        let length = body.len();
        write!(stream, "{method} /v1/force-new HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer.split_whitespace().nth(1).expect("a status").to_owned()
    };
    let ours = "x-phalanx-operator: 1\r\n";
    assert_eq!(ask("GET", &addr, ours), "405");
    assert_eq!(ask("POST", &addr, ""), "403");
    assert_eq!(ask("POST", &addr, &format!("{ours}origin: http://evil.example\r\n")), "403");
    assert_eq!(ask("POST", &addr, &format!("{ours}sec-fetch-site: cross-site\r\n")), "403");
    assert_eq!(ask("POST", "evil.example", ours), "403");
    assert_eq!(ask("POST", "127.0.0.1.evil.example", ours), "403");
    assert_eq!(ask("POST", &addr, ours), "409", "it is not blocked, but was asked");
}
