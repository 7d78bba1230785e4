//! Processes that find each other by what an agent keeps, or by calling each other.

mod common;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{Proc, phalanx};
use ports::free_port;
use serde_json::Value;

/// An agent, and the registry that it keeps.
fn agent(more: &[&str]) -> (Proc, String) {
    let mut agent = Proc::start(&[&["agent", "--admin", "127.0.0.1:0"], more].concat());
    let admin = agent.until_event("started")["admin"].as_str().expect("an address").to_owned();
    (agent, format!("http://{admin}/v1/rendezvous"))
}

fn names(view: &Value) -> Vec<&str> {
    view["members"].as_array().expect("members").iter().filter_map(Value::as_str).collect()
}

#[test]
fn twenty_at_once_by_the_registry_of_an_agent_or_by_multicast() {
    let (agent, registry) = agent(&[]);
    for rendezvous in [registry, format!("multicast:239.255.70.9:{}", free_port())] {
        let mut procs: Vec<Proc> =
            (0..20).map(|i| Proc::join("g", &format!("n{i}"), &rendezvous, &["--lease", "5s"])).collect();
        let views: Vec<Value> = procs.iter_mut().map(|p| p.until_members(20)).collect();
        assert!(views.iter().all(|v| names(v) == names(&views[0])), "{rendezvous}");
    }
    drop(agent);
}

#[test]
fn a_founder_that_was_killed_gets_a_slot_again_when_it_is_started_anew() {
    let (_agent, registry) = agent(&["--cluster", "agents"]);
    let founder = |name: &str| Proc::join("g", name, &registry, &["--bootstrap", "expect=3"]);
    let mut procs = ["a", "b", "c"].map(founder);
    for proc in &mut procs {
        proc.until_members(3);
    }
    procs[2].signal("KILL");
    procs[2].end();
    // Of the three slots one has a holder that nothing is heard of any more.
    let mut again = founder("d");
    let view = again.until_members(3);
    let mut members = names(&view);
    members.sort_unstable();
    assert_eq!(members, ["a", "b", "d"]);
}

#[test]
fn the_log_says_which_provider_gave_an_address() {
    let (agent, registry) = agent(&[]);
    let listen = agent.seen[0]["listen"].as_str().expect("an address").to_owned();
    let fixed = format!("static:{listen}");
    let mut child = phalanx()
        .args(["--log", "info", "join", "g", "--no-stdin", "--rendezvous", &registry, "--rendezvous", &fixed])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
    for _ in 0..2 {
        let line = lines.find(|line| line.contains("gave an address")).expect("it says so before it ends");
        assert!(line.contains(&listen) && (line.contains(&registry) || line.contains(&fixed)), "{line}");
    }
    // It may be gone already.
    let _gone = child.kill();
    let _gone = child.wait();
}
