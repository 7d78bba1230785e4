//! Two nodes that part, with and without a witness.
#![cfg(feature = "cli")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

mod common;
use common::{Dir, PATIENCE, Proc, assert_no_overlap, phalanx, run, stderr, stdout};
use ports::free_port;
use serde_json::Value;

/// Longer than a busy machine keeps a healthy process waiting.
const LEASE: Duration = Duration::from_secs(2);
const HEARTBEAT: &str = "50ms";
/// Ten heartbeats.
const MOMENT: Duration = Duration::from_millis(500);
/// What a node answers for its slot counts once it is as old as a lease, and was asked since.
const RIPE: Duration = Duration::from_secs(4);

/// Passes on what comes at one port to another, until it is cut.
struct Road {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Road {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let road = Self { port: listener.local_addr().expect("bound").port(), cut: Arc::default() };
        let cut = Arc::clone(&road.cut);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if !cut.load(SeqCst)
                    && let Ok(far) = TcpStream::connect(("127.0.0.1", port))
                {
                    let (back, forth) =
                        (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
                    for (mut from, mut to) in [(near, far), (forth, back)] {
                        let cut = Arc::clone(&cut);
                        thread::spawn(move || carry(&mut from, &mut to, &cut));
                    }
                }
            }
        });
        road
    }
}

/// What comes while the road is cut is lost, and the connection with it.
fn carry(from: &mut TcpStream, to: &mut TcpStream, cut: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    let mut buffer = [0; 4096];
    while !cut.load(SeqCst) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => break,
            Err(error)
                if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                break;
            }
            _ => {}
        }
    }
    for end in [from, to] {
        // It may be over already.
        let _over = end.shutdown(std::net::Shutdown::Both);
    }
}

/// Two founders that reach each other by two roads only.
struct Pair {
    roads: [Road; 2],
    ports: [u16; 2],
    procs: Vec<Proc>,
}

impl Pair {
    fn start(more: &[&str]) -> Self {
        let ports = [free_port(), free_port()];
        let roads = ports.map(Road::to);
        let mut pair = Self { roads, ports, procs: Vec::new() };
        for n in 0..2 {
            let node = pair.node(n, more);
            pair.procs.push(node);
        }
        pair.procs.iter_mut().for_each(|p| drop(p.until_members(2)));
        pair
    }

    fn node(&self, n: usize, more: &[&str]) -> Proc {
        let list = self.roads.each_ref().map(|road| format!("127.0.0.1:{}", road.port));
        let (rendezvous, listen) =
            (format!("static:{}", list.join(",")), format!("127.0.0.1:{}", self.ports[n]));
        let lease = format!("{}ms", LEASE.as_millis());
        let args =
            ["--listen", &listen, "--advertise", &list[n], "--bootstrap", "expect=2", "--lease", &lease];
        let args = [&args[..], &["--heartbeat", HEARTBEAT, "--admin", "127.0.0.1:0"], more].concat();
        Proc::join("g", &format!("n{n}"), &rendezvous, &args)
    }

    fn cut(&self) {
        self.roads.iter().for_each(|road| road.cut.store(true, SeqCst));
    }

    fn mend(&self) {
        self.roads.iter().for_each(|road| road.cut.store(false, SeqCst));
    }

    /// Who leads, and who does not, once both have a lease of a core of two, of which halves can be recorded if they ever
    /// can.
    fn senior_and_junior(&mut self, witnessed: bool) -> [usize; 2] {
        for n in 0..2 {
            until_status(&self.procs[n], |status| {
                let whole = status["core"].as_array().is_some_and(|core| core.len() == 2);
                let epochs = &status["witness"];
                let agreed =
                    epochs["epoch_of_core"].is_string() && epochs["epoch_of_core"] == epochs["epoch"];
                status["ready"] == true && whole && agreed == witnessed
            });
        }
        // All slots have been answered for a while, too.
        thread::sleep(RIPE);
        let leads = |p: &mut Proc| p.leads_since().is_some();
        let senior = self.procs.iter_mut().position(leads).expect("one leads");
        [senior, 1 - senior]
    }
}

fn status(p: &Proc) -> Option<Value> {
    let started = p.seen.iter().find(|e| e["event"] == "started")?;
    let mut stream = TcpStream::connect(started["admin"].as_str()?).ok()?;
    write!(stream, "GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

fn until_status(p: &Proc, fits: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = status(p);
        if let Some(status) = status.as_ref().filter(|status| fits(status)) {
            return status.clone();
        }
        assert!(Instant::now() < end, "not in time: {status:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// An agent of another cluster, on whose registry the witness is.
fn keeper(data_dir: Option<&str>) -> (Proc, String) {
    keeper_with(&data_dir.map_or_else(Vec::new, |dir| vec!["--data-dir", dir]))
}

fn keeper_with(more: &[&str]) -> (Proc, String) {
    let port = free_port();
    let admin = format!("127.0.0.1:{port}");
    let args = ["agent", "--cluster", "others", "--name", "keeper", "--admin", &admin];
    let mut agent = Proc::start(&[&args[..], more].concat());
    agent.until_event("started");
    (agent, format!("http://{admin}/v1/rendezvous"))
}

/// The elder is stopped, which proves nothing: the younger leads, and the elder says first that it leads no more.
fn the_junior_goes_on(witness: &str) {
    let mut pair = Pair::start(&["--witness", witness]);
    let [senior, junior] = pair.senior_and_junior(true);
    pair.procs[senior].signal("STOP");
    pair.procs[junior].until_event("leading");
    thread::sleep(MOMENT * 2);
    pair.procs[senior].signal("CONT");
    assert_eq!(
        pair.procs[senior].until("an event of the group", |e| e["group"] == "g")["event"],
        "not_leading"
    );
    // It comes back as the junior, and the core of two has a fresh record.
    pair.procs[senior].until_members(2);
    let [now, then] = [junior, senior];
    let of = |p: &Proc| until_status(p, |s| s["core"].as_array().is_some_and(|core| core.len() == 2));
    assert_eq!(of(&pair.procs[now])["witness"]["answers"], true);
    thread::sleep(RIPE);
    pair.procs[now].signal("STOP");
    pair.procs[then].until_event("leading");
    pair.procs[now].signal("CONT");
    pair.procs[now].until_event("not_leading");
    assert_no_overlap(&mut pair.procs.iter_mut().collect::<Vec<_>>(), &[]);
}

#[test]
fn the_junior_goes_on_by_a_record_in_shared_storage() {
    let dir = Dir::new();
    the_junior_goes_on(&format!("file:{}", dir.file("shared")));
}

#[test]
fn the_junior_goes_on_by_a_record_in_the_registry_of_an_agent_that_was_restarted() {
    let dir = Dir::new();
    let (mut agent, url) = keeper(Some(&dir.file("keeper")));
    let epoch = |agent: &str| {
        let text = fs::read_to_string(dir.path().join("keeper/witness").join(agent).join("epoch"));
        text.expect("an epoch on disk")
    };
    the_junior_goes_on(&url);
    let before = epoch("default");
    agent.signal("KILL");
    agent.end();
    let (_agent, url) = keeper(Some(&dir.file("keeper")));
    the_junior_goes_on(&url);
    assert_eq!(epoch("default"), before, "it remembers");
}

#[test]
fn without_a_witness_the_junior_is_blocked_and_the_senior_goes_on() {
    let mut pair = Pair::start(&[]);
    let [senior, junior] = pair.senior_and_junior(false);
    let before = pair.procs[junior].drain().len();
    pair.cut();
    pair.procs[junior].until_event("blocked");
    thread::sleep(LEASE * 4);
    let since = &pair.procs[junior].drain()[before..];
    assert!(since.iter().all(|e| e["event"] != "leading"), "{since:#?}");
    let status = until_status(&pair.procs[senior], |status| status["ready"] == true && status["nodes"] == 1);
    assert_eq!(status["leading"], serde_json::json!(["g"]));
    assert_no_overlap(&mut pair.procs.iter_mut().collect::<Vec<_>>(), &[]);
}

#[test]
fn of_two_that_are_cut_from_each_other_one_goes_on_and_the_other_joins_it() {
    for round in 0..3 {
        let dir = Dir::new();
        let mut pair = Pair::start(&["--witness", &format!("file:{}", dir.file("shared"))]);
        pair.senior_and_junior(true);
        pair.cut();
        let end = Instant::now() + PATIENCE;
        let alone = |p: &Proc| status(p).is_some_and(|s| s["ready"] == true && s["nodes"] == 1);
        let winner = loop {
            if let Some(winner) = pair.procs.iter().position(alone) {
                break winner;
            }
            assert!(Instant::now() < end, "nobody goes on in round {round}");
            thread::sleep(Duration::from_millis(20));
        };
        let later = Instant::now() + LEASE * 3;
        while Instant::now() < later || !alone(&pair.procs[winner]) {
            assert!(!alone(&pair.procs[1 - winner]), "one of them in round {round}");
            assert!(Instant::now() < end, "the one of them does not go on in round {round}");
            thread::sleep(Duration::from_millis(20));
        }
        pair.mend();
        pair.procs[1 - winner].until_event("removed");
        pair.procs[1 - winner].until_members(2);
        assert_no_overlap(&mut pair.procs.iter_mut().collect::<Vec<_>>(), &[]);
    }
}

#[test]
fn a_witness_that_cannot_be_one_says_why_and_so_does_a_cluster_that_disagrees() {
    let (_agent, url) = keeper(None);
    let pair = Pair::start(&["--witness", &url]);
    let status = until_status(&pair.procs[0], |status| status["witness"]["problem"].is_string());
    let problem = status["witness"]["problem"].as_str().expect("a text");
    assert!(problem.contains("--data-dir"), "{problem}");
    assert_eq!(
        (&status["witness"]["at"], &status["witness"]["answers"]),
        (&url.as_str().into(), &false.into())
    );
    let list = format!("static:127.0.0.1:{}", pair.roads[0].port);
    let lease = format!("{}ms", LEASE.as_millis());
    let mut other = Proc::join("g", "other", &list, &["--bootstrap", "join", "--lease", &lease]);
    let refused = other.until_event("refused");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("--witness")), "{refused}");
    let wrong = run(&["agent", "--witness", "static:127.0.0.1:1"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("file:DIR"), "{}", stderr(&wrong));
    let help = phalanx().args(["agent", "--help"]).output().expect("the binary can be started");
    assert!(String::from_utf8_lossy(&help.stdout).contains("PHALANX_WITNESS"));
}

#[test]
fn a_web_page_makes_no_memory() {
    let dir = Dir::new();
    let (_agent, url) = keeper(Some(&dir.file("keeper")));
    let admin = url.trim_start_matches("http://").trim_end_matches("/v1/rendezvous");
    let kept = dir.path().join("keeper/witness/mine");
    let ask = |header: &str| {
        let mut stream = TcpStream::connect(admin).expect("it listens");
        let path = "/v1/rendezvous/mine/witness/5-0000000000000def/1";
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer[9..12].to_owned()
    };
    for header in ["origin: http://evil.example\r\n", "sec-fetch-site: cross-site\r\n"] {
        assert_eq!(ask(header), "403");
        assert!(!kept.exists());
    }
    assert_eq!(ask(""), "200");
    assert!(kept.exists());
}

#[test]
fn a_witness_that_must_prove_what_it_says_needs_the_secret() {
    let dir = Dir::new();
    let secret = dir.write("secret", &stdout(&run(&["secret"])));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("ours");
    let with = keeper_with(&["--data-dir", &dir.file("with"), "--secret-file", &secret]);
    let without = keeper_with(&["--data-dir", &dir.file("without")]);
    for ((_agent, url), proves) in [(with, true), (without, false)] {
        let url = format!("{url}?proof=required");
        let pair = Pair::start(&["--witness", &url, "--secret-file", &secret]);
        let status = until_status(&pair.procs[0], |status| {
            let witness = &status["witness"];
            witness["answers"] == true || witness["problem"].is_string()
        });
        assert_eq!(status["witness"]["answers"], proves, "{status}");
        assert_eq!(status["witness"]["epoch"].is_string(), proves, "{status}");
        let problem = status["witness"]["problem"].as_str().unwrap_or_default();
        assert_eq!(problem.contains("no proof"), !proves, "{problem}");
    }
    let refused = run(&["agent", "--witness", "http://127.0.0.1:1/v1/rendezvous?proof=required"]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("--secret-file"), "{}", stderr(&refused));
}
