//! Builds of two versions in one cluster: the previous one, built from its commit, and this one.

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, run, stderr, stdout};
use phalanx::membership;
use serde_json::Value;

/// The last commit that speaks version 2 alone and knows no feature levels.
const PREVIOUS: &str = "c07d1595f094a9349d9c198daba4af8c2207849d";

/// The binary of that commit, built once, whichever test asks first. `None` where that is not possible and need not be.
fn previous() -> Option<PathBuf> {
    static BUILD: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILD.get_or_init(build_previous).clone()
}

/// Builds it, or says why it does not.
fn build_previous() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = Path::new(env!("CARGO_BIN_EXE_phalanx")).ancestors().nth(2).expect("target/PROFILE/phalanx");
    let home = home.join("previous").join(&PREVIOUS[..12]);
    let binary = home.join("phalanx");
    if binary.exists() {
        return Some(binary);
    }
    let ran = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    let git = || {
        let mut git = Command::new("git");
        git.current_dir(root).stderr(Stdio::null());
        git
    };
    if !ran(git().args(["cat-file", "-e", &format!("{PREVIOUS}^{{commit}}")])) {
        let required = ["CI", "PHALANX_REQUIRE_SERVERS"].iter().any(|name| std::env::var_os(name).is_some());
        assert!(!required, "the history has no commit {PREVIOUS}: fetch all of it, for CI is set");
        println!("SKIPPED: the history has no commit {PREVIOUS}, of which the previous build is made");
        return None;
    }
    let tree = home.join("tree");
    std::fs::create_dir_all(&tree).expect("a directory in target");
    let archive = home.join("tree.tar");
    assert!(ran(git().args(["archive", "-o"]).arg(&archive).arg(PREVIOUS)), "git archive");
    assert!(ran(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&tree)), "tar");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&tree).args(["build", "--locked", "--bin", "phalanx"]);
    cargo.env("CARGO_TARGET_DIR", home.join("target")).env_remove("RUSTFLAGS");
    // It is quicker built: nobody debugs it, and it neither simulates nor judges.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "none");
    for unused in ["sim", "checker"] {
        cargo.args(["--config", &format!("profile.dev.package.{unused}.opt-level=0")]);
    }
    assert!(ran(&mut cargo), "the previous build cannot be built");
    // The last step, so that whoever finds it finds all of it.
    std::fs::rename(home.join("target/debug/phalanx"), &binary).expect("it was just built");
    Some(binary)
}

/// Members of one group of a cluster, each with a trace of its own.
struct Fleet {
    dir: Dir,
    traces: Vec<String>,
}

impl Fleet {
    fn new() -> Self {
        Self { dir: Dir::new(), traces: Vec::new() }
    }

    /// Starts a member. The first one founds the cluster, and leads; the others only join it, for of two that found one each the
    /// one that gives way ends.
    fn start(&mut self, binary: &Path, name: &str) -> Proc {
        let trace = self.dir.file(&format!("{name}.jsonl"));
        let rendezvous = self.dir.rendezvous();
        let args = ["join", "g", "--name", name, "--rendezvous", &rendezvous, "--trace", &trace, "--once"];
        // Builds that do not know what the label means bear it. A busy machine may keep a process waiting for a while.
        let args = [&args[..], &["--label", "weight=3", "--lease", "5s"]].concat();
        let founds = self.traces.is_empty();
        let how: &[&str] = if founds { &[] } else { &["--bootstrap", "join"] };
        let mut proc = Proc::start_of(binary, &[&args, how].concat());
        if founds {
            proc.until_event("leading");
        }
        self.traces.push(trace);
        proc
    }

    /// Notes for the checker that a process was killed just now, which explains why its trace ends.
    fn killed(&mut self, trace: &str) {
        let text = std::fs::read_to_string(trace).expect("a trace");
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own = records.into_iter().find(|record| record["p"].is_array()).expect("it says who it is");
        let at = membership::clock::now_ns();
        let record = serde_json::json!({
            "v": own["v"], "src": "h", "seq": 1, "t": at, "ev": "Crash", "p": own["p"], "how": "SIGKILL",
        });
        let file = self.dir.write("harness.jsonl", &format!("{record}\n"));
        self.traces.push(file);
    }

    fn judge(&self) {
        let traces: Vec<&str> = self.traces.iter().map(String::as_str).collect();
        let checked = run(&[&["check"], &traces[..]].concat());
        assert!(checked.status.success(), "{}{}", stdout(&checked), stderr(&checked));
    }
}

/// Everybody sends, and reads what others sent, for a while.
fn load(fleet: &mut [Proc], round: &str, messages: usize) {
    for n in 0..messages {
        for (who, proc) in fleet.iter_mut().enumerate() {
            proc.say(&format!("{} {round}-{who}-{n}", ["send-safe", "send", "send-fifo"][n % 3]));
        }
    }
}

/// Waits until a member was delivered the last message of each member in this round.
fn until_heard(proc: &mut Proc, senders: usize, round: &str, messages: usize) {
    let mut missing: Vec<String> =
        (0..senders).map(|who| format!("{round}-{who}-{}", messages - 1)).collect();
    missing.retain(|text| !proc.seen.iter().any(|event| event["text"] == text.as_str()));
    while !missing.is_empty() {
        let heard =
            proc.until("messages of all", |event| missing.iter().any(|text| event["text"] == text.as_str()));
        missing.retain(|text| heard["text"] != text.as_str());
    }
}

/// What the members were delivered, by the sequence: those who were together saw the same.
fn order(proc: &Proc, round: &str) -> Vec<(u64, u64, String)> {
    let is = |event: &&Value| event["event"] == "message" && event["class"] != "fifo";
    let of = |event: &Value| {
        let text = event["text"].as_str().unwrap_or_default().to_owned();
        (event["view"].as_u64().unwrap_or(0), event["seq"].as_u64().unwrap_or(0), text)
    };
    proc.seen.iter().filter(is).map(of).filter(|(.., text)| text.starts_with(round)).collect()
}

#[test]
fn five_nodes_are_upgraded_one_after_the_other_under_load() {
    let Some(old) = previous() else { return };
    let new = PathBuf::from(env!("CARGO_BIN_EXE_phalanx"));
    let mut all = Fleet::new();
    let mut procs: Vec<Proc> = (0..5).map(|n| all.start(&old, &format!("old{n}"))).collect();
    for proc in &mut procs {
        proc.until_members(5);
    }
    const MESSAGES: usize = 60;
    for step in 0..=5 {
        let round = format!("r{step}");
        load(&mut procs, &round, MESSAGES);
        if step == 5 {
            break;
        }
        // The senior each time, which leads, and coordinates: under load, and not told beforehand the second time.
        let mut goes = procs.remove(0);
        goes.signal(if step == 1 { "KILL" } else { "TERM" });
        goes.end();
        if step == 1 {
            let trace = all.dir.file("old1.jsonl");
            all.killed(&trace);
        }
        procs.push(all.start(&new, &format!("new{step}")));
        for proc in &mut procs {
            let name = format!("new{step}");
            proc.until(&name, |event| {
                let members = event["members"].as_array();
                event["event"] == "view"
                    && members.is_some_and(|all| all.len() == 5 && all.iter().any(|m| *m == name.as_str()))
            });
        }
    }
    for proc in &mut procs {
        until_heard(proc, 5, "r5", MESSAGES);
    }
    let seen: Vec<_> = procs.iter().map(|proc| order(proc, "r5")).collect();
    assert!(
        seen[0].len() >= 5 * MESSAGES * 2 / 3 && seen.iter().all(|of| *of == seen[0]),
        "one order at all"
    );
    // One after the other: where all go at once the last ones have nobody to ask.
    for mut proc in procs.into_iter().rev() {
        proc.signal("TERM");
        assert_eq!(proc.end(), Some(0));
    }
    all.judge();
}

/// With more than 16 members this build has the first one pass on what the others say about a closing, which the previous one neither does
/// nor takes. The first one is of the previous build, then of this one.
#[test]
fn a_large_group_of_two_builds_goes_on_when_its_first_member_dies() {
    const MEMBERS: usize = 20;
    let Some(old) = previous() else { return };
    let new = PathBuf::from(env!("CARGO_BIN_EXE_phalanx"));
    let mut all = Fleet::new();
    let mut procs: Vec<Proc> = Vec::new();
    for n in 0..MEMBERS {
        procs.push(all.start(if n % 2 == 0 { &old } else { &new }, &format!("n{n}")));
        procs[n].first_event("started");
    }
    for round in ["all", "without the first one"] {
        let count = procs.len();
        for proc in &mut procs {
            proc.until_members(count);
        }
        load(&mut procs, round, 3);
        for proc in &mut procs {
            until_heard(proc, count, round, 3);
        }
        let seen: Vec<_> = procs.iter().map(|proc| order(proc, round)).collect();
        assert!(
            seen.iter().all(|of| of.len() == 2 * count && *of == seen[0]),
            "one order at all in round {round}"
        );
        if count == MEMBERS {
            let mut goes = procs.remove(0);
            goes.signal("KILL");
            goes.end();
            let trace = all.dir.file("n0.jsonl");
            all.killed(&trace);
        }
    }
    for mut proc in procs.into_iter().rev() {
        proc.signal("TERM");
        assert_eq!(proc.end(), Some(0));
    }
    all.judge();
}

#[test]
fn a_node_of_the_previous_build_joins_one_of_this_build_and_takes_over_from_it() {
    let Some(old) = previous() else { return };
    let new = PathBuf::from(env!("CARGO_BIN_EXE_phalanx"));
    let mut all = Fleet::new();
    let mut first = all.start(&new, "new");
    let mut second = all.start(&old, "old");
    second.until_members(2);
    first.until_members(2);
    // Long enough for the older one to come into the core, without which nobody could take over from a dead half of it.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        first.say("send-safe hello");
        second.until("a message", |event| event["text"] == "hello");
    }
    first.signal("TERM");
    assert_eq!(first.end(), Some(0));
    second.until_event("leading");
    assert!(begun.elapsed() < PATIENCE);
    second.signal("TERM");
    assert_eq!(second.end(), Some(0));
    all.judge();
}
