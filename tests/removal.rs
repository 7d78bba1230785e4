//! Nodes that do not stay where they were: removed while they stood still, in a blocked cluster for longer than they wait, or
//! left behind without any node that may decide.

mod common;

use std::time::{Duration, Instant};

use common::{Dir, Proc, assert_no_overlap, run, stderr, stdout};
use serde_json::{Value, json};

/// Short, so that nobody waits for long; long enough for a busy machine.
const LEASE: &[&str] = &["--lease", "2s"];

fn at_ns(event: &Value) -> u64 {
    event["at_ns"].as_u64().expect("every event has a time")
}

/// The nodes of the cluster, as this one was told.
fn nodes_of(admin: &str) -> Vec<Value> {
    let view: Value =
        serde_json::from_str(&stdout(&run(&["view", "--admin", admin, "--json"]))).expect("JSON");
    view["members"].as_array().expect("members").clone()
}

/// The names of the core.
fn core_of(admin: &str) -> Vec<String> {
    let nodes = nodes_of(admin).into_iter().filter(|node| node["core"] == true);
    nodes.map(|node| node["node"].as_str().expect("a name").to_owned()).collect()
}

/// The admin API's address of a process that was just started with one.
fn admin_of(proc: &mut Proc) -> String {
    proc.until_event("started")["admin"].as_str().expect("an address").to_owned()
}

#[test]
fn who_was_removed_while_it_stood_still_ends_with_4_if_it_was_to_stay_once() {
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    let mut stays = Proc::join("g", "stays", &rendezvous, &[LEASE, &["--admin", "127.0.0.1:0"]].concat());
    let admin = admin_of(&mut stays);
    stays.until_event("leading");
    // Those who stand still are not needed for decisions, and begin anew only once they heard that they were removed.
    let no_core = &["--core", "no", "--bootstrap", "join"][..];
    let mut member = Proc::join("g", "member", &rendezvous, &[LEASE, no_core, &["--once"]].concat());
    stays.until_members(2);
    let watch = ["watch", "g", "--name", "watch", "--once", "--rendezvous", &rendezvous];
    let mut watch = Proc::start(&[&watch[..], LEASE, no_core].concat());
    watch.until_members(2);
    // It waits for a lead that it does not get.
    let lock = ["lock", "g", "--name", "lock", "--rendezvous", &rendezvous];
    let mut lock = Proc::start(&[&lock[..], LEASE, no_core, &["--", "true"]].concat());
    stays.until_members(3);
    for stopped in [&member, &watch, &lock] {
        stopped.signal("STOP");
    }
    stays.until_members(1);
    // The observer is in no group, but in the cluster.
    let deadline = Instant::now() + common::PATIENCE;
    while nodes_of(&admin).len() > 1 {
        assert!(Instant::now() < deadline, "they stay: {:?}", nodes_of(&admin));
        std::thread::sleep(Duration::from_millis(50));
    }
    for (who, stopped) in [("member", &mut member), ("watch", &mut watch), ("lock", &mut lock)] {
        stopped.signal("CONT");
        assert_eq!(stopped.end(), Some(4), "{who}: {:#?}", stopped.drain());
    }
    for (who, stopped) in [("member", &mut member), ("watch", &mut watch)] {
        let removed = stopped.until_event("removed");
        assert!(removed["why"].as_str().is_some_and(|why| why.contains("silent")), "{who}: {removed}");
        // Nothing of the group is told after that, and nothing begins anew.
        let before = stopped.seen.len();
        stopped.until_event("ended");
        assert_eq!(stopped.drain().len(), before + 1, "{who}: {:#?}", stopped.seen);
    }
    assert!(!stays.drain().iter().any(|e| e["event"] == "not_leading"), "{:#?}", stays.seen);
}

#[test]
fn who_was_removed_while_it_stood_still_comes_back_otherwise() {
    let dir = Dir::new();
    let mut stays = Proc::join("g", "stays", &dir.rendezvous(), LEASE);
    stays.until_event("leading");
    let more = ["--core", "no", "--bootstrap", "join"];
    let mut back = Proc::join("g", "back", &dir.rendezvous(), &[LEASE, &more].concat());
    let first = back.until_event("started")["id"].clone();
    stays.until_members(2);
    back.signal("STOP");
    stays.until_members(1);
    back.signal("CONT");
    back.until_event("removed");
    assert_ne!(back.until_event("started")["id"], first, "another incarnation");
    assert_eq!(back.until_members(2)["members"], json!(["stays", "back"]));
}

#[test]
fn of_two_that_advertise_one_address_the_elder_is_removed_and_told_what_to_do() {
    let dir = Dir::new();
    let mut stays = Proc::join("g", "stays", &dir.rendezvous(), LEASE);
    stays.until_event("leading");
    let once = [LEASE, &["--bootstrap", "join", "--once"]].concat();
    let mut elder = Proc::join("g", "elder", &dir.rendezvous(), &once);
    let address = elder.until_event("started")["listen"].as_str().expect("an address").to_owned();
    stays.until_members(2);
    let _younger =
        Proc::join("g", "younger", &dir.rendezvous(), &[&once[..], &["--advertise", &address]].concat());
    let removed = elder.until_event("removed");
    assert!(removed["why"].as_str().is_some_and(|why| why.contains("--advertise")), "{removed}");
    assert_eq!(elder.end(), Some(4));
}

#[test]
fn a_blocked_node_goes_over_to_an_active_cluster_once_it_has_waited_and_not_before() {
    const GIVE_UP: Duration = Duration::from_secs(8);
    let (here, there) = (Dir::new(), Dir::new());
    let alone = ["--bootstrap", "alone-after=300ms"];
    // Nobody else may decide: what these two are is the core.
    let mut founder = Proc::join("g", "founder", &here.rendezvous(), &[LEASE, &alone].concat());
    founder.until_event("leading");
    let both = format!("{};{}", here.rendezvous(), there.rendezvous());
    let waits = |name: &str, give_up: &str| {
        let more = ["--bootstrap", "join", "--core", "no", "--give-up", give_up];
        Proc::join("g", name, &both, &[LEASE, &more].concat())
    };
    let mut short = waits("short", "8s");
    founder.until_members(2);
    let mut long = waits("long", "1h");
    founder.until_members(3);
    short.until_members(3);
    long.until_members(3);
    founder.signal("STOP");
    let blocked = short.until_event("blocked");
    long.until_event("blocked");
    // Another cluster of the same name, which finds only those who wait.
    let mut other = Proc::join("g", "other", &there.rendezvous(), &[LEASE, &alone].concat());
    other.until_event("leading");
    let over = short.until_event("dissolved");
    let waited = Duration::from_nanos(at_ns(&over) - at_ns(&blocked));
    // It counts from the end of its lease, of which it speaks a moment later, on a busy machine perhaps much later.
    assert!(waited >= GIVE_UP - Duration::from_secs(2), "it went over after {waited:?}");
    assert_eq!(short.until_members(2)["members"], json!(["other", "short"]));
    let last = long.drain().last().expect("it printed something").clone();
    assert_eq!(last["event"], "blocked", "it waits for an hour: {:#?}", long.seen);
    assert_no_overlap(&mut [&mut short, &mut long, &mut other], &[]);
}

#[test]
fn who_hears_nobody_stays_blocked_whatever_give_up_says_if_it_may_not_found() {
    let dir = Dir::new();
    let mut founder = Proc::join("g", "founder", &dir.rendezvous(), LEASE);
    founder.until_event("leading");
    let more = ["--bootstrap", "join", "--core", "no", "--give-up", "1s", "--admin", "127.0.0.1:0"];
    let mut alone = Proc::join("g", "alone", &dir.rendezvous(), &[LEASE, &more].concat());
    let admin = admin_of(&mut alone);
    founder.until_members(2);
    alone.until_members(2);
    founder.signal("STOP");
    alone.until_event("blocked");
    std::thread::sleep(Duration::from_secs(6));
    let last = alone.drain().last().expect("it printed something").clone();
    assert_eq!(last["event"], "blocked", "{:#?}", alone.seen);
    // Nor does an operator make it a cluster of its own: it could decide nothing there.
    let forced = run(&["force-new", "--yes", "--from", &admin]);
    assert_eq!(forced.status.code(), Some(1), "{}", stderr(&forced));
    assert!(stderr(&forced).contains("`--core yes`"), "{}", stderr(&forced));
    founder.signal("CONT");
    // Who could decide is back: either goes on with the other, or removed it and takes it in again.
    alone.until("a lease", |e| e["event"] == "unblocked" || e["event"] == "removed");
    if alone.seen.iter().any(|e| e["event"] == "removed") {
        alone.until_members(2);
    }
}

#[test]
fn without_the_only_node_that_may_decide_nobody_leads_until_another_such_comes() {
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    let agent = ["agent", "--name", "decides", "--core", "yes", "--admin", "127.0.0.1:0"];
    let mut decides = Proc::start(&[&agent[..], LEASE, &["--rendezvous", &rendezvous]].concat());
    let admin = admin_of(&mut decides);
    let follow = |name: &str| {
        let more = ["--core", "no", "--admin", "127.0.0.1:0"];
        Proc::join("g", name, &rendezvous, &[LEASE, &more].concat())
    };
    let mut first = follow("first");
    let first_admin = admin_of(&mut first);
    let led = first.until_event("leading")["token"].as_u64().expect("a token");
    let mut second = follow("second");
    first.until_members(2);
    second.until_members(2);
    // Long enough for a core to fill.
    std::thread::sleep(Duration::from_secs(2));
    for admin in [&admin, &first_admin] {
        assert_eq!(core_of(admin), ["decides"]);
    }
    decides.signal("KILL");
    decides.end();
    let end = first.until_event("not_leading");
    assert_eq!(end["why"], "lease", "{end}");
    let mut over = 0;
    for left in [&mut first, &mut second] {
        let why = left.until_event("blocked");
        assert!(why["why"].as_str().is_some_and(|why| !why.is_empty()), "{why}");
        // Under `alone-after` it does not wait for those who are gone, but it may not found either.
        over = over.max(at_ns(&left.until_event("start_over")));
    }
    std::thread::sleep(Duration::from_secs(3));
    for left in [&mut first, &mut second] {
        let since = left.drain().iter().rev().take_while(|e| e["event"] != "start_over");
        assert!(since.clone().all(|e| e["event"] == "started"), "{:#?}", since.collect::<Vec<_>>());
    }
    let agent = ["agent", "--name", "decides-next", "--rendezvous", &rendezvous];
    let _next = Proc::start(&[&agent[..], LEASE].concat());
    let mut both = [first, second];
    for left in &mut both {
        left.until_members(2);
    }
    let leads = |e: &Value| e["event"] == "leading" && at_ns(e) > over;
    let deadline = Instant::now() + common::PATIENCE;
    let again = loop {
        let found = both.iter_mut().find_map(|left| left.drain().iter().find(|e| leads(e)).cloned());
        if let Some(leading) = found {
            break leading["token"].as_u64().expect("a token");
        }
        assert!(Instant::now() < deadline, "nobody leads");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(again > led, "{again} after {led}");
    let [first, second] = &mut both;
    assert_no_overlap(&mut [first, second], &[]);
}
