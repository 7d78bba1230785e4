//! Inventories that lose power, all at once: with data directories nothing that was acknowledged is lost, and without them that
//! is said.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, has, needs, run, stderr};
use ports::free_port;
use serde_json::Value;

struct Cluster {
    dir: Dir,
    ports: Vec<u16>,
    admins: Vec<u16>,
    clones: BTreeMap<usize, Proc>,
    kept: bool,
    lease: &'static str,
    /// So many files may each have open, at first and at most.
    files: Option<(u32, u32)>,
    /// Whose disk is small.
    small: Option<usize>,
}

impl Cluster {
    fn new(size: usize, kept: bool) -> Self {
        let ports = || (0..size).map(|_| free_port()).collect();
        let (dir, clones) = (Dir::new(), BTreeMap::new());
        let lease = "500ms";
        Self { dir, ports: ports(), admins: ports(), clones, kept, lease, files: None, small: None }
    }

    fn data(&self, n: usize) -> String {
        self.dir.file(&format!("data-{n}"))
    }

    /// Where the items are.
    fn state(&self, n: usize) -> String {
        format!("{}/state", self.data(n))
    }

    fn start(&mut self, n: usize, more: &[&str]) {
        fs::create_dir_all(self.dir.file("rdv")).expect("a directory");
        let rendezvous = format!("file:{}", self.dir.file("rdv"));
        let (serve, name, data) = (format!("127.0.0.1:{}", self.ports[n]), format!("n{n}"), self.data(n));
        let (admin, size) = (format!("127.0.0.1:{}", self.admins[n]), self.ports.len().to_string());
        let mut args =
            vec!["inventory", "--group", "stock", "--serve", &serve, "--name", &name, "--admin", &admin];
        args.extend(["--rendezvous", &rendezvous, "--bootstrap", "alone-after=300ms", "--lease", self.lease]);
        if self.kept {
            args.extend(["--data-dir", &data, "--directories", &size]);
        }
        args.extend(more);
        let clone = match self.files {
            _ if self.small == Some(n) => {
                fs::create_dir_all(&data).expect("a directory");
                let mut command = Command::new("unshare");
                let script = "mount -t tmpfs -o size=512k none \"$1\" && shift && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script, "sh", &data, env!("CARGO_BIN_EXE_phalanx")]);
                command.arg("--json").args(&args);
                Proc::of(command)
            }
            Some(files) => Proc::start_with_files(files, &args),
            None => Proc::start(&args),
        };
        self.clones.insert(n, clone);
    }

    /// All of them at the same moment.
    fn power_loss(&mut self) {
        let pids: Vec<String> = self.clones.values().map(|p| p.pid().to_string()).collect();
        let killed = Command::new("kill").arg("-KILL").args(&pids).status().expect("kill can be run");
        assert!(killed.success(), "kill {pids:?}");
        for (_, mut clone) in std::mem::take(&mut self.clones) {
            clone.end();
        }
    }

    fn until_kept(&mut self, n: usize, here: u64) {
        let clone = self.clones.get_mut(&n).expect("it runs");
        clone.until("the state", |e| e["event"] == "state" && e["here"].as_u64() >= Some(here));
    }

    /// Several clients, each with a key of its own, write numbers that grow, for so long at least, and until each was told of one;
    /// gives what each was told last.
    fn load(&self, first: u64, time: Duration) -> BTreeMap<String, u64> {
        const CLIENTS: usize = 4;
        let (over, told_some) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |key: String| {
            let (ports, over, told_some) = (self.ports.clone(), Arc::clone(&over), Arc::clone(&told_some));
            thread::spawn(move || {
                let (mut told, mut at) = (0, 0);
                for n in first.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    match ask(ports[at], "PUT", &key, &n.to_string()) {
                        Some((200, _)) => {
                            told_some.fetch_add(usize::from(told == 0), Ordering::Relaxed);
                            told = n;
                        }
                        _ => at = (at + 1) % ports.len(),
                    }
                }
                (key, told)
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(|c| client(format!("k{c}"))).collect();
        thread::sleep(time);
        let deadline = Instant::now() + PATIENCE;
        while told_some.load(Ordering::Relaxed) < CLIENTS && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|c| c.join().expect("no panic")).collect()
    }

    /// What a clone has under a key.
    fn get(&self, n: usize, key: &str) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask(self.ports[n], "GET", key, "") {
                Some((200, item)) => {
                    return item["value"].as_str().map_or(0, |v| v.parse().expect("a number"));
                }
                other => assert!(Instant::now() < deadline, "n{n} does not answer: {other:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Nothing that was acknowledged is missing, at any clone.
    fn check(&self, told: &BTreeMap<String, u64>) {
        for n in self.clones.keys() {
            for (key, value) in told {
                let has = self.get(*n, key);
                assert!(has >= *value, "n{n} has {has} under {key}, and {value} was acknowledged");
            }
        }
    }
}

/// A request, with an answer in good time.
fn ask(port: u16, method: &str, key: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(8))).ok()?;
    let length = body.len();
    let head = format!(
        "{method} /items/{key} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
}

fn copy(from: &str, to: &str) {
    // What was there is not mixed with it.
    let _new = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("a directory");
    for file in fs::read_dir(from).expect("a directory") {
        let file = file.expect("an entry");
        fs::copy(file.path(), Path::new(to).join(file.file_name())).expect("a copy");
    }
}

#[test]
fn what_was_acknowledged_is_there_after_all_lost_power_whoever_comes_back_first() {
    let mut cluster = Cluster::new(3, true);
    let mut told = BTreeMap::new();
    let orders: [&[usize]; 5] = [&[0, 1, 2], &[2, 0], &[1, 2], &[0, 1, 2], &[2, 1, 0]];
    let old = cluster.dir.file("old");
    for (round, order) in orders.iter().enumerate() {
        if round == 3 {
            // A directory that was put back from a copy: it knows nothing of two rounds.
            copy(&old, &cluster.state(0));
        }
        for (n, clone) in order.iter().enumerate() {
            cluster.start(*clone, &[]);
            if round == 2 && n == 0 {
                // It lacks what was acknowledged in the round before, and one of three is not enough.
                let waits = cluster.clones.get_mut(clone).expect("it runs").until_event("state");
                assert_eq!(waits["standing"], "waiting", "{waits}");
                let (code, answer) = ask(cluster.ports[*clone], "GET", "k0", "").expect("an answer");
                assert_eq!(code, 503, "{answer}");
            }
        }
        for clone in *order {
            cluster.until_kept(*clone, order.len() as u64);
        }
        cluster.check(&told);
        let more = cluster.load(1_000_000 * (round as u64 + 1), Duration::from_secs(2));
        assert!(more.values().all(|n| *n > 0), "round {round}: nothing was acknowledged: {more:?}");
        told = more;
        cluster.power_loss();
        if round == 0 {
            copy(&cluster.state(0), &old);
        }
    }
    (0..3).for_each(|n| cluster.start(n, &[]));
    cluster.check(&told);
}

#[test]
fn a_minority_says_what_it_waits_for_and_goes_on_by_order_only() {
    let mut cluster = Cluster::new(3, true);
    (0..3).for_each(|n| cluster.start(n, &[]));
    (0..3).for_each(|n| cluster.until_kept(n, 3));
    let told = cluster.load(1, Duration::from_secs(1));
    cluster.power_loss();
    cluster.start(1, &[]);
    let waits = cluster.clones.get_mut(&1).expect("it runs").until_event("state");
    assert_eq!(waits["standing"], "waiting", "{waits}");
    let why = waits["why"].as_str().expect("a reason");
    assert!(why.contains("2 of the 3 directories") && why.contains("--accept-stale-state"), "{why}");
    let admin = format!("127.0.0.1:{}", cluster.admins[1]);
    let status = run(&["status", "--json", "--admin", &admin]);
    let status: Value =
        serde_json::from_slice(&status.stdout).unwrap_or_else(|_| panic!("{}", stderr(&status)));
    assert_eq!(status["states"]["stock"]["standing"], "waiting", "{status}");
    assert_eq!(status["leading"], Value::Array(Vec::new()), "nobody leads without the state");
    cluster.power_loss();
    cluster.start(1, &["--accept-stale-state"]);
    cluster.until_kept(1, 1);
    for (key, value) in &told {
        // It may lack what the two others acknowledged; what it has is real.
        assert!(cluster.get(1, key) <= value + 1);
    }
    let after = cluster.load(1_000_000, Duration::from_secs(1));
    assert!(after.values().all(|n| *n > 0), "{after:?}");
    // Who comes back with what was given up is refused, and keeps it.
    cluster.start(0, &[]);
    let refused = cluster.clones.get_mut(&0).expect("it runs").until_event("state");
    assert_eq!(refused["standing"], "refused", "{refused}");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("move this directory away")), "{refused}");
    cluster.clones.get_mut(&0).expect("it runs").signal("KILL");
    let gone = cluster.clones.remove(&0);
    assert!(gone.is_some_and(|mut clone| clone.end().is_none()));
    fs::remove_dir_all(cluster.state(0)).expect("it is moved away");
    cluster.start(0, &[]);
    cluster.until_kept(0, 2);
    cluster.check(&after);
}

#[test]
fn a_damaged_directory_is_refused_with_what_to_do() {
    let mut cluster = Cluster::new(1, true);
    cluster.start(0, &[]);
    cluster.until_kept(0, 1);
    let told = cluster.load(1, Duration::from_secs(1));
    cluster.power_loss();
    let file = format!("{}/log", cluster.state(0));
    let whole = fs::read(&file).expect("a log");
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    fs::write(&file, &damaged).expect("writable");
    let (serve, data) = (format!("127.0.0.1:{}", cluster.ports[0]), cluster.data(0));
    let args =
        ["inventory", "--group", "stock", "--serve", &serve, "--data-dir", &data, "--directories", "1"];
    let refused = run(&args);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("{file} is damaged")) && said.contains("move it away"), "{said}");
    assert_eq!(fs::read(&file).expect("still there"), damaged);
    fs::write(&file, [&whole[..], b"torn"].concat()).expect("writable");
    cluster.start(0, &[]);
    cluster.check(&told);
    let of_another = run(&["inventory", "--serve", "127.0.0.1:0", "--directories", "2"]);
    assert!(stderr(&of_another).contains("--data-dir"), "{}", stderr(&of_another));
}

/// The last one with the items dies while another one waits for them.
#[test]
fn without_a_directory_it_is_said_that_the_state_is_lost() {
    let mut cluster = Cluster::new(2, false);
    // Others, so that the cluster goes on.
    fs::create_dir_all(cluster.dir.file("rdv")).expect("a directory");
    let rendezvous = format!("file:{}", cluster.dir.file("rdv"));
    let mut others: Vec<Proc> =
        ["a", "b", "c"].map(|name| Proc::join("others", name, &rendezvous, &["--lease", "500ms"])).into();
    others.iter_mut().for_each(|other| drop(other.until_members(3)));
    cluster.start(0, &[]);
    let value = "x".repeat(60 << 10);
    cluster.clones.get_mut(&0).expect("it runs").until_event("leading");
    for n in 0..800 {
        // On a busy machine it may be without a lease for a moment: then nothing is done.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, answer) = ask(cluster.ports[0], "PUT", &format!("k{n}"), &value).expect("an answer");
            if code == 200 {
                break;
            }
            assert!(code == 503 && Instant::now() < deadline, "{code} {answer}");
            thread::sleep(Duration::from_millis(20));
        }
    }
    cluster.start(1, &[]);
    let second = cluster.clones.get_mut(&1).expect("it runs");
    second.until_members(2);
    cluster.clones[&0].signal("KILL");
    let second = cluster.clones.get_mut(&1).expect("it runs");
    let lost = second.until_event("state");
    assert_eq!(lost["standing"], "lost", "{lost}");
    let (code, answer) = ask(cluster.ports[1], "GET", "k0", "").expect("an answer");
    assert!(
        code == 503 && answer["error"].as_str().is_some_and(|why| why.contains("lost")),
        "{code} {answer}"
    );
}

/// More idle clients than a clone may have files: what its node needs is left.
#[test]
fn idle_clients_do_not_put_a_clone_out_of_its_group() {
    let mut cluster = Cluster::new(1, true);
    (cluster.files, cluster.lease) = (Some((100, 200)), "5s");
    cluster.start(0, &[]);
    cluster.until_kept(0, 1);
    let proc = format!("/proc/{}", cluster.clones[&0].pid());
    let limits = fs::read_to_string(format!("{proc}/limits")).expect("it runs");
    let of_files = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is listed");
    assert_eq!(of_files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["200", "200"]);
    let idle: Vec<_> =
        (0..300).map(|_| TcpStream::connect(("127.0.0.1", cluster.ports[0])).expect("it listens")).collect();
    let open = || fs::read_dir(format!("{proc}/fd")).expect("it runs").count();
    let deadline = Instant::now() + PATIENCE;
    while open() < 100 {
        assert!(Instant::now() < deadline, "only {} files are open", open());
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500));
    assert!(open() < 160, "{} files are open", open());
    let status = run(&["status", "--admin", &format!("127.0.0.1:{}", cluster.admins[0])]);
    assert_eq!(status.status.code(), Some(0), "{}", stderr(&status));
    drop(idle);
    let (code, answer) = ask(cluster.ports[0], "PUT", "k", "1").expect("an answer");
    assert_eq!(code, 200, "{answer}");
}

#[test]
fn a_clone_that_cannot_accept_connections_for_a_while_serves_on() {
    if !has("prlimit") {
        return;
    }
    let mut cluster = Cluster::new(1, false);
    cluster.start(0, &[]);
    assert_eq!(cluster.get(0, "k"), 0);
    let pid = cluster.clones[&0].pid();
    let allow = |files: u32| {
        let args = [format!("--pid={pid}"), format!("--nofile={files}:")];
        assert!(Command::new("prlimit").args(args).status().expect("it can be run").success());
    };
    allow(3);
    let waiting: Vec<_> =
        (0..3).map(|_| TcpStream::connect(("127.0.0.1", cluster.ports[0])).expect("it listens")).collect();
    thread::sleep(Duration::from_secs(1));
    allow(1024);
    drop(waiting);
    assert_eq!(cluster.get(0, "k"), 0);
}

/// A file system of its own, which takes half a MiB. Only root may make one.
fn start_on_small_disk(cluster: &mut Cluster, n: usize) -> bool {
    let root = fs::metadata("/proc/self").expect("there is a /proc").uid() == 0;
    if !needs(root, "a small file system needs root") {
        return false;
    }
    cluster.small = Some(n);
    cluster.start(n, &[]);
    true
}

#[test]
fn a_clone_whose_disk_is_full_leaves_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::new(3, true);
    cluster.start(0, &[]);
    cluster.start(1, &[]);
    if !start_on_small_disk(&mut cluster, 2) {
        return;
    }
    for n in 0..3 {
        cluster.until_kept(n, 3);
    }
    let value = |n: u64| format!("{n:0>40000}");
    let mut told = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    for n in 0..40 {
        let key = format!("k{}", n % 4);
        let put = |port: &u16| matches!(ask(*port, "PUT", &key, &value(n)), Some((200, _)));
        while !cluster.ports.iter().any(put) {
            assert!(Instant::now() < deadline, "two of three disks have room, and {key} is not taken");
        }
        told.insert(key, n);
    }
    let full = cluster.clones.get_mut(&2).expect("it runs");
    let said = full.until("the end", |e| e["event"] == "state" && e["standing"] == "refused");
    assert!(said["why"].as_str().is_some_and(|why| why.contains("No space left")), "{said}");
    cluster.clones.get_mut(&0).expect("it runs").until("a view", |e| {
        e["event"] == "view"
            && e["members"].as_array().is_some_and(|m| m.len() == 2 && !m.contains(&"n2".into()))
    });
    for (key, n) in told {
        for clone in [0, 1] {
            assert_eq!(cluster.get(clone, &key), n);
        }
    }
}
