//! Unmodified redis-servers as members, a router in front, and Redis's own clients through it.

mod common;

use std::process::{Command, Output};

use common::{Dir, Proc, has};
use ports::free_port;

/// Longer than a busy machine keeps a healthy process waiting: who lives serves.
const LEASE: [&str; 2] = ["--lease", "3s"];

struct Kv {
    router: Proc,
    clones: Vec<Proc>,
    port: String,
    _dir: Dir,
}

/// Two arrays of three clones, and the router; complete when it returns.
fn start() -> Kv {
    let dir = Dir::new();
    let rendezvous = dir.rendezvous();
    let mut clones = Vec::new();
    for group in ["kv-a", "kv-b"] {
        for n in 0..3 {
            let port = free_port().to_string();
            let (name, at) = (format!("{group}{n}"), format!("127.0.0.1:{port}"));
            let args =
                ["run", "--group", group, "--endpoint", &at, "--name", &name, "--rendezvous", &rendezvous];
            let args = [&args[..], &LEASE].concat();
            let server = ["--", "redis-server", "--port", &port, "--save", "", "--bind", "127.0.0.1"];
            clones.push(Proc::start(&[&args[..], &server].concat()));
        }
    }
    for clone in &mut clones {
        clone.until_members(3);
    }
    let text = "[[service]]\nname = \"kv\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"redis\"\nreads = \"leader\"\n\
                [service.pmap]\nstyle = \"slots\"\npartitions = 64\n\
                [[service.racs]]\nname = \"a\"\ngroup = \"kv-a\"\n[[service.racs]]\nname = \"b\"\ngroup = \"kv-b\"\n";
    let config = dir.write("router.toml", text);
    let mut router =
        Proc::start(&[&["router", "--config", &config, "--rendezvous", &rendezvous], &LEASE[..]].concat());
    let listen = router.until_event("serving")["listen"].as_str().expect("an address").to_owned();
    let port = listen.rsplit(':').next().expect("a port").to_owned();
    let kv = Kv { router, clones, port, _dir: dir };
    kv.until_ok("set", "warm", "up");
    for key in 0..64 {
        kv.until_ok("set", &format!("k{key}"), "0");
    }
    kv
}

impl Kv {
    fn cli(&self, args: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &self.port]).args(args).output().expect("redis-cli runs");
        text(&output)
    }

    /// Repeats an update until it is taken.
    fn until_ok(&self, command: &str, key: &str, value: &str) {
        let deadline = std::time::Instant::now() + common::PATIENCE;
        loop {
            let answer = self.cli(&[command, key, value]);
            if answer == "OK" {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{command} {key}: {answer}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The clone that leads this array.
    fn leader(&mut self, array: usize) -> usize {
        let clones = self.clones.iter_mut().enumerate().skip(array * 3).take(3);
        let leading = clones.filter_map(|(i, clone)| Some((clone.leads_since()?, i)));
        leading.max().expect("somebody leads").1
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn redis_clients_work_through_the_router_and_survive_deaths() {
    if !has("redis-server") || !has("redis-cli") || !has("redis-benchmark") {
        return;
    }
    let mut kv = start();
    assert_eq!(kv.cli(&["set", "apple", "1"]), "OK");
    assert_eq!(kv.cli(&["get", "apple"]), "1");
    assert_eq!(kv.cli(&["mset", "pear", "2", "plum", "3", "fig", "4"]), "OK");
    assert_eq!(kv.cli(&["mget", "apple", "fig", "none", "plum"]), "1\n4\n\n3");
    assert_eq!(kv.cli(&["del", "apple", "pear", "none"]), "2");
    assert!(kv.cli(&["save"]).contains("is refused"));

    let args = ["-p", &kv.port, "-t", "set,get,mset", "-P", "16", "-n", "20000", "-q", "-r", "1000"];
    let bench = Command::new("redis-benchmark").args(args).output().expect("redis-benchmark runs");
    assert!(bench.status.success() && !text(&bench).to_lowercase().contains("error"), "{}", text(&bench));

    // A clone that does not lead dies: no read fails.
    let leader = kv.leader(0);
    let follower = (0..3).find(|i| *i != leader).expect("there are three");
    kv.cli(&["set", "plum", "3"]);
    kv.clones[follower].signal("KILL");
    for _ in 0..50 {
        assert_eq!(kv.cli(&["get", "plum"]), "3");
    }

    // Leaders die: updates resume at the next rank, for every key.
    for array in 0..2 {
        let leader = kv.leader(array);
        kv.clones[leader].signal("KILL");
    }
    for key in 0..64 {
        kv.until_ok("set", &format!("k{key}"), "1");
    }
    kv.router.signal("TERM");
    assert_eq!(kv.router.end(), Some(0));
}

#[test]
fn a_server_dies_with_its_wrapper_and_a_wrapper_exits_as_its_server() {
    let dir = Dir::new();
    let port = free_port();
    let at = format!("127.0.0.1:{port}");
    let exe = env!("CARGO_BIN_EXE_phalanx");
    let args = ["run", "--group", "g", "--endpoint", &at, "--rendezvous", &dir.rendezvous()];
    let server = ["--", exe, "server", "--listen", &at];
    let mut wrapper = Proc::start(&[&args[..], &server].concat());
    wrapper.until_event("leading");
    assert!(std::net::TcpStream::connect(&at).is_ok());
    wrapper.signal("KILL");
    wrapper.end();
    let deadline = std::time::Instant::now() + common::PATIENCE;
    while std::net::TcpStream::connect(&at).is_ok() {
        assert!(std::time::Instant::now() < deadline, "the server outlives its wrapper");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output =
        common::run(&["run", "--group", "g", "--rendezvous", &dir.rendezvous(), "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7));
}
