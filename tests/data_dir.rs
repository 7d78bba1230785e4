//! What survives when every process of a cluster is down at once: tokens that grow, and nothing that was given twice.
#![cfg(feature = "cli")]

use std::{fs, process::Stdio, time::Duration};

mod common;
use common::{Dir, Proc, phalanx, run, stderr};
use ports::free_port;

/// Five founders with a directory each, or none.
struct Cluster {
    dir: Dir,
    list: String,
    ports: Vec<u16>,
    durable: bool,
    lease: &'static str,
}

impl Cluster {
    fn new(n: usize, durable: bool) -> Self {
        let ports: Vec<u16> = (0..n).map(|_| free_port()).collect();
        let list: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        // Longer than a busy machine keeps a healthy process waiting.
        let lease = "2s";
        Self { dir: Dir::new(), list: format!("static:{}", list.join(",")), ports, durable, lease }
    }

    fn data_dir(&self, n: usize) -> String {
        self.dir.file(&format!("data-{n}"))
    }

    fn start(&self, n: usize, how: &str) -> Proc {
        let (listen, name, data) =
            (format!("127.0.0.1:{}", self.ports[n]), format!("n{n}"), self.data_dir(n));
        let mut args = vec!["--listen", &listen, "--bootstrap", how, "--lease", self.lease];
        if self.durable {
            args.extend(["--data-dir", &data]);
        }
        Proc::join("g", &name, &self.list, &args)
    }
}

/// The checksum that files of a data directory end with.
fn sum(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    data_encoding::HEXLOWER.encode(&digest.as_ref()[..16])
}

fn kill_all(procs: &mut [Proc]) {
    for p in procs.iter() {
        p.signal("KILL");
    }
    for p in procs {
        p.end();
    }
}

/// Every token that anybody led under, of one generation of processes.
fn tokens(procs: &mut [Proc]) -> Vec<u64> {
    let events = procs.iter_mut().flat_map(|p| p.drain().to_vec());
    let leading = events.filter(|event| event["event"] == "leading");
    leading.map(|event| event["token"].as_u64().expect("a token")).collect()
}

/// Ten times everybody is killed; in between only a majority comes back. The clock alone would do, so the first floors are
/// set far above it.
#[test]
fn tokens_grow_over_ten_cold_restarts_far_above_the_wall_clock() {
    let mut cluster = Cluster::new(5, true);
    // Whoever founds waits half of one for those who do not come back; who loses it for a moment leads again.
    cluster.lease = "1s";
    let mut highest = 1_u64 << 51; // The clock comes to that in seventeen years.
    let text = |view: u64| {
        let body = format!(
            "phalanx floor 1\ncluster default\nview {view}\nlineage 5 {:016x}\nballot 1 1 {:016x}\n",
            7, 7
        );
        format!("{body}sum {}\n", sum(&body))
    };
    for n in 0..3 {
        fs::create_dir_all(cluster.data_dir(n)).expect("a directory");
        fs::write(format!("{}/floor", cluster.data_dir(n)), text(highest)).expect("writable");
    }
    for round in 0..10 {
        // Any three of five: two of them at least have seen what was given last.
        let who: Vec<usize> =
            if round == 0 { (0..5).collect() } else { (0..5).map(|i| (i + round) % 5).take(3).collect() };
        let mut procs: Vec<Proc> = who.iter().map(|n| cluster.start(*n, "expect=5")).collect();
        let size = procs.len();
        for p in &mut procs {
            p.until_members(size);
        }
        let first = procs.iter().position(|p| {
            p.seen.iter().any(|e| e["rank"] == 0 && e["members"].as_array().map(Vec::len) == Some(size))
        });
        procs[first.expect("somebody has rank 0")].first_event("leading");
        kill_all(&mut procs);
        let given = tokens(&mut procs);
        let lowest = given.iter().min().expect("somebody led");
        assert!(*lowest > highest, "round {round}: token {lowest} after {highest}");
        highest = *given.iter().max().expect("somebody led");
    }
}

#[test]
fn without_directories_a_new_lineage_begins_at_the_wall_clock() {
    let cluster = Cluster::new(3, false);
    let mut before = (0, String::new());
    for _ in 0..2 {
        let mut procs: Vec<Proc> = (0..3).map(|n| cluster.start(n, "expect=3")).collect();
        procs.iter_mut().for_each(|p| drop(p.until_members(3)));
        let seen = procs.iter().flat_map(|p| &p.seen);
        let rank_0 = seen.filter(|e| e["event"] == "view" && e["rank"] == 0).count();
        assert!(rank_0 > 0);
        let leader = procs.iter().position(|p| {
            p.seen.iter().any(|e| e["rank"] == 0 && e["members"].as_array().map(Vec::len) == Some(3))
        });
        let leading = procs[leader.expect("a leader")].first_event("leading");
        let token = leading["token"].as_u64().expect("a token");
        let lineage = leading["lineage"].as_str().expect("a lineage").to_owned();
        assert!(token > before.0 && lineage != before.1, "{token} of {lineage} after {before:?}");
        before = (token, lineage);
        kill_all(&mut procs);
        // The clock is read in seconds.
        std::thread::sleep(Duration::from_millis(1100));
    }
}

#[test]
fn one_process_uses_a_directory_and_the_next_is_told_which() {
    let cluster = Cluster::new(1, true);
    let mut first = cluster.start(0, "alone-after=100ms");
    first.until_members(1);
    let data = cluster.data_dir(0);
    let second = run(&["join", "g", "--no-stdin", "--data-dir", &data]);
    let said = stderr(&second);
    assert_eq!(second.status.code(), Some(2), "{said}");
    assert!(
        said.contains(&format!("process {} (node n0)", first.pid())) && said.contains("--data-dir"),
        "{said}"
    );
    kill_all(std::slice::from_mut(&mut first));
    // Free at once.
    let mut third = cluster.start(0, "alone-after=100ms");
    third.until_members(1);
}

#[test]
fn a_damaged_floor_is_refused_with_what_to_do_and_left_as_it_is() {
    let cluster = Cluster::new(1, true);
    let mut node = cluster.start(0, "alone-after=100ms");
    node.until_event("leading");
    kill_all(std::slice::from_mut(&mut node));
    let file = format!("{}/floor", cluster.data_dir(0));
    let mut text = fs::read(&file).expect("it was written before anybody led");
    text.truncate(text.len() / 2);
    fs::write(&file, &text).expect("writable");
    let refused = run(&["agent", "--data-dir", &cluster.data_dir(0)]);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("is damaged") && said.contains(&format!("mv {file} {file}.damaged")), "{said}");
    assert_eq!(fs::read(&file).expect("still there"), text);
    let of_another = run(&["agent", "--cluster", "other", "--data-dir", "/proc"]);
    assert_eq!(of_another.status.code(), Some(2), "{}", stderr(&of_another));
}

/// A single node that comes back to a living cluster does not disturb its leader: what it had set aside was for this lineage.
#[test]
fn a_restart_of_one_node_leaves_the_reign_alone() {
    let cluster = Cluster::new(3, true);
    let mut procs: Vec<Proc> = (0..3).map(|n| cluster.start(n, "expect=3")).collect();
    procs.iter_mut().for_each(|p| drop(p.until_members(3)));
    let ranks = |p: &Proc| p.seen.iter().rev().find(|e| e["event"] == "view").map(|e| e["rank"].clone());
    let leader = procs.iter().position(|p| ranks(p) == Some(0.into())).expect("a leader");
    let last = procs.iter().position(|p| ranks(p) == Some(2.into())).expect("a junior");
    procs[leader].first_event("leading");
    procs[last].signal("KILL");
    procs[last].end();
    procs[last] = cluster.start(last, "expect=3");
    procs[last].until_members(3);
    let seen = procs[leader].drain();
    let ended = seen.iter().filter(|e| e["event"] == "not_leading").count();
    assert_eq!(ended, 0, "{seen:#?}");
}

/// The command line says that there is such a flag.
#[test]
fn help_names_the_flag() {
    let help = phalanx().args(["agent", "--help"]).stdin(Stdio::null()).output().expect("it runs");
    assert!(String::from_utf8_lossy(&help.stdout).contains("--data-dir <DIR>"));
}
