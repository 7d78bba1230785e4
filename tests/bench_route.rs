//! `bench route`: every protocol is asked directly and through routers; answers are right, and failures are counted.

mod common;

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use common::{Dir, PATIENCE, Proc, has, phalanx, run, stderr, stdout};

/// One short round, in lines.
fn measure(protocol: &str, more: &[&str]) -> Vec<Value> {
    let short = ["--json", "bench", "route", "--protocol", protocol, "--for", "500ms", "--times", "1"];
    let output = run(&[&short, more].concat());
    assert_eq!(output.status.code(), Some(0), "{protocol}: {}", stderr(&output));
    let lines = stdout(&output);
    lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The line is of this event, and these of its values are more than nothing.
fn check(line: &Value, event: &str, protocol: &str, more_than_nothing: &[&str]) {
    assert_eq!(line["event"], event, "{line}");
    assert_eq!((&line["protocol"], &line["errors"], &line["runs"]), (&protocol.into(), &0.into(), &1.into()));
    let always = ["per_second", "latency_us_p50", "latency_us_p99", "latency_us_longest", "clients", "keys"];
    for key in always.iter().chain(more_than_nothing) {
        assert!(line[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {line}");
    }
    let quantiles = ["latency_us_p50", "latency_us_p99", "latency_us_longest"];
    assert!(quantiles.map(|key| line[key].as_f64()).is_sorted(), "{line}");
}

const OF_ROUTERS: [&str; 2] = ["cpu_us_per_request", "of_floor"];

fn phalanx_routes(protocol: &str, in_flight: &str) {
    let lines = measure(protocol, &["--in-flight", in_flight, "--clients", "8", "--keys", "2000"]);
    let [floor, route, summary] = &lines[..] else { panic!("{lines:#?}") };
    check(floor, "floor", protocol, &["servers", "workers"]);
    check(route, "route", protocol, &OF_ROUTERS);
    assert_eq!((&route["by"], &route["clients"]), (&"phalanx".into(), &8.into()));
    assert_eq!(route["in_flight"].to_string(), in_flight);
    assert_eq!((&summary["event"], &summary["errors"]), (&"summary".into(), &0.into()));
}

#[test]
fn http_is_measured() {
    phalanx_routes("http", "1");
}

#[test]
fn redis_is_measured() {
    phalanx_routes("redis", "16");
}

#[test]
fn memcached_is_measured() {
    phalanx_routes("memcached", "16");
}

#[test]
fn frames_are_measured() {
    phalanx_routes("frames", "16");
}

/// Others are measured in the same rounds, and Phalanx is compared with each.
fn beside(protocol: &str, peers: &[&str]) {
    if !peers.iter().all(|peer| has(peer)) {
        return;
    }
    let lines = measure(protocol, &["--by", &format!("phalanx,{}", peers.join(",")), "--layout", "free"]);
    check(&lines[0], "floor", protocol, &[]);
    let routes = &lines[1..][..1 + peers.len()];
    for (line, name) in routes.iter().zip(["phalanx"].iter().chain(peers)) {
        check(line, "route", protocol, &OF_ROUTERS);
        assert_eq!((&line["by"], &line["layout"]), (&(*name).into(), &"free".into()));
    }
    let ratios = &lines[2 + peers.len()..][..peers.len()];
    for (line, name) in ratios.iter().zip(peers) {
        assert_eq!((&line["event"], &line["to"]), (&"ratio".into(), &(*name).into()));
        for key in ["per_second", "cpu_us_per_request", "latency_us_p50", "latency_us_p99"] {
            assert!(line[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {line}");
        }
    }
    assert_eq!(lines.len(), 3 + 2 * peers.len());
}

#[test]
fn routers_of_http_are_measured_beside_it() {
    beside("http", &["nginx", "haproxy"]);
}

#[test]
fn a_router_of_redis_and_memcached_is_measured_beside_it() {
    beside("redis", &["nutcracker"]);
    beside("memcached", &["nutcracker"]);
}

/// The process that this one has started and of which this is true, once there is one.
fn child(of: &str, fits: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().find(|pid| fits(pid)) {
            return pid.to_owned();
        }
        assert!(Instant::now() < deadline, "process {of} has no such child");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_router_that_dies_under_it_is_an_error_and_no_end() {
    let mut bench = Proc::start(&["bench", "route", "--for", "2s", "--times", "1", "--clients", "20"]);
    // Until it is a router it has one thread, and all files of the process that starts it. One that is asked has a
    // socket of each client, and one to a server.
    let more_than = |count, pid: &str, what| {
        fs::read_dir(format!("/proc/{pid}/{what}")).is_ok_and(|entries| entries.count() > count)
    };
    let asked = |pid: &str| more_than(1, pid, "task") && more_than(20, pid, "fd");
    let router = child(&bench.pid().to_string(), asked);
    let killed = Command::new("kill").args(["-KILL", &router]).status();
    assert!(killed.expect("kill can be run").success());
    let route = bench.until_event("route");
    assert!(route["errors"].as_u64().is_some_and(|errors| errors >= 20), "one of each client: {route}");
    assert_eq!(bench.until_event("summary")["errors"], route["errors"]);
    assert_eq!(bench.end(), Some(1));
}

#[test]
fn who_ends_it_ends_all_that_it_has_started() {
    if !has("nginx") {
        return;
    }
    let dir = Dir::new();
    let mut command = phalanx();
    // It would go on for days.
    command.args(["--json", "bench", "route", "--by", "nginx", "--for", "2s", "--times", "100000"]);
    command.env("TMPDIR", dir.path());
    let mut bench = Proc::of(command);
    let worker = child(&child(&bench.pid().to_string(), |_| true), |_| true);
    bench.signal("TERM");
    assert_eq!(bench.end(), Some(1));
    assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 0, "its files are gone");
    let deadline = Instant::now() + PATIENCE;
    // An orphan that has ended is there until somebody asks for it.
    let runs = |stat: &String| !stat.contains(") Z ");
    while let Some(stat) = fs::read_to_string(format!("/proc/{worker}/stat")).ok().filter(runs) {
        assert!(Instant::now() < deadline, "a worker goes on: {stat}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_can() {
    for (args, says) in [
        (&["--by", "traefik"][..], &["--by", "traefik", "haproxy", "nutcracker"][..]),
        (&["--by", "nutcracker"], &["--by nutcracker", "http", "phalanx, nginx, haproxy"]),
        (&["--by", "nginx", "--protocol", "redis"], &["--by nginx", "redis", "phalanx, nutcracker"]),
        (&["--in-flight", "2"], &["--in-flight 2", "one request at a time"]),
        (&["--keys", "63"], &["--keys 63", "give 64 to"]),
        (&["--clients", "0"], &["--clients 0", "1 to 1000"]),
        (&["--servers", "0"], &["--servers 0", "1 to 100"]),
        (&["--workers", "256", "--layout", "pinned"], &["--layout pinned", "257 cores"]),
        (&["--for", "99ms"], &["--for", "100ms to 1h"]),
        (&["--times", "0"], &["--times", "at least 1"]),
    ] {
        let output = run(&[&["bench", "route"], args].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        for part in says {
            assert!(text.contains(part), "{args:?} should say {part:?}: {text}");
        }
    }
}
