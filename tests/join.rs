//! Groups of real processes: ranks, succession, leaving, stopping, strangers.

mod common;

use std::{io::Write, net::TcpStream};

use common::{Dir, Proc, assert_no_overlap};
use phalanx::membership;
use serde_json::Value;

fn names(view: &Value) -> Vec<&str> {
    view["members"].as_array().expect("members").iter().filter_map(Value::as_str).collect()
}

fn now_ns() -> u64 {
    membership::clock::now_ns()
}

/// `n` members, all of which see each other.
fn group_of(n: usize, dir: &Dir, more: &[&str]) -> Vec<Proc> {
    let start = |i: usize| Proc::join("g", &format!("n{i}"), &dir.rendezvous(), more);
    together((0..n).map(start).collect())
}

/// The same, founded by the first one: of two that found clusters the one that gives way dissolves, and `--once` ends it.
fn group_founded_by_one(n: usize, dir: &Dir, more: &[&str]) -> Vec<Proc> {
    let start = |i: usize, more: &[&str]| Proc::join("g", &format!("n{i}"), &dir.rendezvous(), more);
    let mut procs = vec![start(0, more)];
    procs[0].until_event("leading");
    let joins = [more, &["--bootstrap", "join"]].concat();
    procs.extend((1..n).map(|i| start(i, &joins)));
    together(procs)
}

/// Waits until all of them see each other.
fn together(mut procs: Vec<Proc>) -> Vec<Proc> {
    let n = procs.len();
    let views: Vec<Value> = procs.iter_mut().map(|p| p.until_members(n)).collect();
    for view in &views {
        assert_eq!(names(view), names(&views[0]), "everyone sees the same ranks");
        assert_eq!(view["view"], views[0]["view"]);
    }
    procs
}

/// Waits until each of them knows that so many are in the core.
fn until_core(procs: &[Proc], size: usize) {
    let deadline = std::time::Instant::now() + common::PATIENCE;
    for proc in procs {
        let started = proc.seen.iter().find(|e| e["event"] == "started").expect("it has started");
        let admin = started["admin"].as_str().expect("an address");
        loop {
            let output = common::run(&["status", "--json", "--admin", admin]);
            let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            if status["core"].as_array().is_some_and(|core| core.len() == size) {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "not in time: {status:#}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// The process that leads now, by what all have printed.
fn leader(procs: &mut [Proc]) -> usize {
    let leading = procs.iter_mut().enumerate().filter_map(|(i, proc)| Some((proc.leads_since()?, i)));
    leading.max().expect("somebody leads").1
}

#[test]
fn the_next_rank_leads_when_the_leader_is_killed_ten_times() {
    let dir = Dir::new();
    let mut procs = group_of(4, &dir, &["--admin", "127.0.0.1:0"]);
    // A cluster that has just been founded has a core of one.
    until_core(&procs, 4);
    for round in 0..10 {
        let dead = leader(&mut procs);
        let mut killed = procs.remove(dead);
        let at = now_ns();
        killed.signal("KILL");
        let who = format!("r{round}");
        let mut successors: Vec<u64> = Vec::new();
        for proc in &mut procs {
            let view = proc.until_members(3);
            assert!(view["view"].as_u64() > Some(0));
        }
        let next = leader_after(&mut procs, at);
        successors.extend(
            procs[next].seen.iter().filter(|e| e["event"] == "leading").filter_map(|e| e["token"].as_u64()),
        );
        assert!(successors.windows(2).all(|w| w[0] <= w[1]), "tokens grow: {successors:?}");
        killed.end();
        procs.push(Proc::join("g", &who, &dir.rendezvous(), &[]));
        for proc in &mut procs {
            proc.until_members(4);
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

/// Waits until somebody has begun to lead after this instant.
fn leader_after(procs: &mut [Proc], at: u64) -> usize {
    let deadline = std::time::Instant::now() + common::PATIENCE;
    loop {
        for (i, proc) in procs.iter_mut().enumerate() {
            let begun = |e: &Value| e["event"] == "leading" && e["at_ns"].as_u64() > Some(at);
            if proc.drain().iter().any(begun) {
                return i;
            }
        }
        assert!(std::time::Instant::now() < deadline, "nobody leads");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_stopped_leader_says_first_that_it_leads_no_more() {
    let dir = Dir::new();
    let mut procs = group_of(3, &dir, &[]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let old = leader(&mut procs);
    let before = procs[old].drain().len();
    let at = now_ns();
    procs[old].signal("STOP");
    let next = leader_after(&mut procs, at);
    assert_ne!(next, old);
    procs[old].signal("CONT");
    let first = procs[old].until("an event of the group", |e| e["group"] == "g");
    assert_eq!(first["event"], "not_leading", "{:#?}", &procs[old].seen[before..]);
    let until = first["until_ns"].as_u64().expect("until_ns");
    let began = procs[next].seen.iter().rfind(|e| e["event"] == "leading").and_then(|e| e["at_ns"].as_u64());
    assert!(Some(until) <= began, "{until} is after {began:?}");
    let mut all: Vec<&mut Proc> = procs.iter_mut().collect();
    assert_no_overlap(&mut all, &[]);
}

#[test]
fn leaving_is_clean_by_command_and_by_signal() {
    let dir = Dir::new();
    let mut a = Proc::start(&["join", "g", "--name", "a", "--rendezvous", &dir.rendezvous()]);
    a.until_event("leading");
    let mut b = Proc::join("g", "b", &dir.rendezvous(), &[]);
    a.until_members(2);
    b.until_members(2);
    a.say("step-down");
    assert_eq!(a.until_event("not_leading")["why"], "step-down");
    b.until_event("leading");
    let view = a.until("the new ranks", |e| e["event"] == "view" && e["leader"] == "b");
    assert_eq!(names(&view), ["b", "a"]);
    b.signal("TERM");
    assert_eq!(b.until_event("not_leading")["why"], "leave");
    assert_eq!(b.end(), Some(0));
    a.until_event("leading");
    a.say("leave");
    assert_eq!(a.end(), Some(0));
    assert_no_overlap(&mut [&mut a, &mut b], &[]);
}

#[test]
fn what_is_sent_is_printed_by_all_in_one_order_within_the_views_that_they_share() {
    let dir = Dir::new();
    let start = |name: &str| Proc::start(&["join", "g", "--name", name, "--rendezvous", &dir.rendezvous()]);
    let mut procs: Vec<Proc> = ["a", "b", "c"].map(start).into();
    // Said before there is any view: it waits for the first one.
    procs[2].say("send early");
    let early = procs[2].until_event("message");
    assert_eq!(
        (early["text"].as_str(), early["from"].as_str(), early["class"].as_str()),
        (Some("early"), Some("c"), Some("ordered"))
    );
    for proc in &mut procs {
        if !proc.seen.iter().any(|e| e["event"] == "view" && names(e).len() == 3) {
            proc.until_members(3);
        }
    }
    for round in 0..20 {
        procs[0].say(&format!("send a {round}"));
        procs[1].say(&format!("send-safe b {round}"));
        procs[2].say(&format!("send-fifo c {round}"));
    }
    // The end of the input means leave: what was said before is heard by all.
    procs[0].say("send last words");
    procs[0].stdin.take();
    assert_eq!(procs[0].end(), Some(0));
    let mut heard = Vec::new();
    for proc in &mut procs[1..] {
        proc.until_members(2);
        let after =
            proc.seen.iter().rposition(|e| e["event"] == "view" && names(e).len() == 3).expect("seen");
        let until = proc.seen.iter().rposition(|e| e["event"] == "view").expect("seen");
        let said: Vec<Value> =
            proc.seen[after..until].iter().filter(|e| e["event"] == "message").cloned().collect();
        let of_view = |e: &Value| e["view"] == proc.seen[after]["view"];
        assert!(said.iter().all(of_view), "a message is printed within its view: {said:?}");
        heard.push(said);
    }
    let shown = |said: &[Value], class: &str| -> Vec<String> {
        let wanted = said.iter().filter(|e| (e["class"] == "fifo") == (class == "fifo"));
        wanted.map(|e| format!("{} {} {}", e["seq"], e["from"], e["text"])).collect()
    };
    assert_eq!(shown(&heard[0], "sequenced"), shown(&heard[1], "sequenced"));
    assert_eq!(shown(&heard[0], "fifo"), shown(&heard[1], "fifo"));
    assert!(heard[0].iter().any(|e| e["text"] == "last words"), "{:?}", heard[0]);
    procs[1].say("send");
    assert_eq!(procs[2].until("an empty message", |e| e["text"] == "")["from"], "b");
}

/// What is said at once, with nothing after it.
fn says(proc: &mut Proc, text: &[u8]) {
    let mut stdin = proc.stdin.take().expect("standard input is open");
    stdin.write_all(text).expect("the process reads");
}

#[test]
fn a_plain_member_sends_nothing_says_so_and_ends_with_its_input() {
    let dir = Dir::new();
    let mut a = Proc::start(&["join", "g", "--plain", "--rendezvous", &dir.rendezvous()]);
    says(&mut a, b"send x\n");
    assert_eq!(a.end(), Some(1));
    let mut b = Proc::start(&["join", "g", "--plain", "--rendezvous", &dir.rendezvous()]);
    says(&mut b, b"step-down\n");
    assert_eq!(b.end(), Some(0));
}

#[test]
fn what_comes_faster_than_it_can_be_sent_waits_and_nothing_is_lost() {
    let dir = Dir::new();
    let mut a = Proc::start(&["join", "g", "--rendezvous", &dir.rendezvous()]);
    // Far more than may wait inside of the node, and it is there before the first view.
    let text = "x".repeat(2000);
    let all: String = (0..5000).map(|n| format!("send {n} {text}\n")).collect();
    says(&mut a, all.as_bytes());
    assert_eq!(a.end(), Some(0));
    a.until("the last message", |e| e["text"].as_str().is_some_and(|text| text.starts_with("4999 ")));
    let heard = a.seen.iter().filter(|e| e["event"] == "message");
    let numbers: Vec<usize> =
        heard.filter_map(|e| e["text"].as_str()?.split_once(' ')?.0.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(0..5000), "{} of 5000", numbers.len());
}

#[test]
fn a_line_that_is_no_text_is_sent_as_it_is_and_the_next_ones_too() {
    let dir = Dir::new();
    let mut a = Proc::start(&["join", "g", "--rendezvous", &dir.rendezvous()]);
    says(&mut a, b"send caf\xe9\nsend after\n");
    assert_eq!(a.until_event("message")["text"], "caf\u{fffd}");
    assert_eq!(a.until_event("message")["text"], "after");
    assert_eq!(a.end(), Some(0));
}

#[test]
fn strangers_and_garbage_do_not_disturb() {
    let dir = Dir::new();
    let mut a = Proc::join("g", "a", &dir.rendezvous(), &[]);
    let listen = a.until_event("started")["listen"].as_str().expect("an address").to_owned();
    a.until_event("leading");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0x7f, 0xff, 0xff, 0xff, 1, 2, 3], b""] {
        let mut stream = TcpStream::connect(&listen).expect("it listens");
        // It may close on us while we write.
        let _ = stream.write_all(garbage);
    }
    let rendezvous = format!("static:{listen}");
    let mut other = Proc::start(&[
        "join",
        "g",
        "--no-stdin",
        "--cluster",
        "another",
        "--rendezvous",
        &rendezvous,
        "--bootstrap",
        "join",
        "--join-timeout",
        "1s",
    ]);
    assert_eq!(other.end(), Some(3));
    let mut b = Proc::join("g", "b", &rendezvous, &[]);
    assert_eq!(names(&b.until_members(2)), ["a", "b"]);
    a.until_members(2);
    assert!(!a.seen.iter().any(|e| e["event"] == "not_leading"));
}

#[test]
fn twenty_at_once_by_files() {
    let dir = Dir::new();
    let mut procs = group_of(20, &dir, &["--bootstrap", "alone-after=1s", "--lease", "5s"]);
    assert!(procs.iter_mut().all(|p| p.drain().iter().all(|e| e["event"] != "removed")));
}

#[test]
fn twenty_at_once_by_a_static_list() {
    let ports: Vec<u16> = (0..20).map(|_| ports::free_port()).collect();
    let addrs: Vec<String> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    let rendezvous = format!("static:{}", addrs.join(","));
    let start = |i: usize| {
        let more = ["--listen", &addrs[i], "--bootstrap", "expect=20", "--lease", "5s"];
        Proc::join("g", &format!("n{i}"), &rendezvous, &more)
    };
    let mut procs: Vec<Proc> = (0..20).map(start).collect();
    let views: Vec<Value> = procs.iter_mut().map(|p| p.until_members(20)).collect();
    assert!(views.iter().all(|v| names(v) == names(&views[0])));
}

/// The last ones were blocked once, with nobody left to let them go: until their leases had run out, and some began anew.
#[test]
fn all_that_are_told_to_end_at_once_leave_in_order_and_at_once() {
    for kind in [&[][..], &["--plain"]] {
        let dir = Dir::new();
        let more = [&["--once", "--lease", "10s", "--admin", "127.0.0.1:0"], kind].concat();
        let mut procs = group_founded_by_one(5, &dir, &more);
        until_core(&procs, 5);
        let begun = std::time::Instant::now();
        for proc in &mut procs {
            proc.signal("TERM");
        }
        let codes: Vec<Option<i32>> = procs.iter_mut().map(Proc::end).collect();
        assert_eq!(codes, [Some(0); 5], "{more:?}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(6), "{more:?}: {:?}", begun.elapsed());
    }
}
