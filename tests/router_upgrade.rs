//! A router is replaced by another process while clients are served: nobody is refused, nobody is dropped.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::{Dir, PATIENCE, Proc, needs, phalanx, run, stderr};
use ports::free_port;
use router::handover::Predecessor;
use siege::{
    honest::{Crowd, Seen, Speaks},
    server,
};

/// Two clones of each protocol.
fn servers() -> Vec<[SocketAddr; 4]> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    (0..2).map(|_| server::start([any; 4])).collect()
}

/// A service of this protocol. Plain TCP goes to the servers that speak Redis.
fn service(name: &str, speaks: Speaks, port: u16, servers: &[[SocketAddr; 4]]) -> String {
    let column = Speaks::ALL.iter().position(|one| *one == speaks).expect("one of all");
    let column = if speaks == Speaks::Tcp { 1 } else { column };
    let list: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server[column])).collect();
    let more = match speaks {
        Speaks::Http => "key = \"header:x-key\"",
        Speaks::Frames => "key = \"msgpack:/params/0\"\nread_methods = [\"get\"]",
        Speaks::Tcp => "key = \"source\"",
        Speaks::Redis | Speaks::Memcached => "",
    };
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"{}\"\n{more}\n[service.pmap]\nstyle = \"slots\"\n\
         partitions = 16\n[[service.racs]]\nname = \"r\"\nservers = [{}]\n",
        speaks.name(),
        list.join(", ")
    )
}

/// One service of each protocol, and where.
fn all(servers: &[[SocketAddr; 4]]) -> (String, Vec<(Speaks, SocketAddr)>) {
    let services: Vec<(Speaks, u16)> = Speaks::ALL.map(|speaks| (speaks, free_port())).into();
    let text =
        services.iter().map(|(speaks, port)| service(speaks.name(), *speaks, *port, servers)).collect();
    (text, services.into_iter().map(|(speaks, port)| (speaks, ([127, 0, 0, 1], port).into())).collect())
}

fn start(config: &str, socket: &str, more: &[&str]) -> Proc {
    let args = ["router", "--config", config, "--upgrade-socket", socket];
    Proc::start(&[&args, more].concat())
}

/// Clients that ask until they are told to stop: some for ever on one connection, some on a new one each time.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

impl Load {
    fn begin(services: &[(Speaks, SocketAddr)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let crowd = |stay, stop: &Arc<AtomicBool>| {
            let every = Duration::from_millis(10);
            let crowd = Crowd { services: services.into(), clients: 3, every, updates: true, stay };
            let stop = Arc::clone(stop);
            thread::spawn(move || crowd.ask_until(move || stop.load(Ordering::SeqCst)))
        };
        let clients = vec![crowd(u64::MAX, &stop), crowd(1, &stop)];
        Self { stop, clients }
    }

    /// Ends it. Nothing may have failed.
    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for seen in
            self.clients.into_iter().map(|clients| clients.join().expect("every answer is for who asked"))
        {
            println!("{:?}, worst {:?}", seen.answered, seen.per_mille(1000));
            assert!(
                seen.failed == 0 && seen.unknown == 0,
                "{} failed, {} unknown: {:?}",
                seen.failed,
                seen.unknown,
                seen.why
            );
            assert!(seen.answered.values().all(|answered| *answered > 50), "{:?}", seen.answered);
        }
    }
}

fn until_it_exists(file: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !Path::new(file).exists() {
        assert!(Instant::now() < deadline, "{file} does not appear");
        thread::sleep(Duration::from_millis(1));
    }
}

fn pause() {
    thread::sleep(Duration::from_millis(400));
}

#[test]
fn many_upgrades_in_a_row_fail_no_request_and_close_no_connection() {
    let dir = Dir::new();
    let servers = servers();
    let (text, services) = all(&servers);
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let mut router = start(&config, &socket, &["--workers", "2"]);
    router.until_event("serving");
    until_it_exists(&socket);
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o600);
    let load = Load::begin(&services);
    pause();
    for workers in ["2", "1", "4", "3", "1", "2", "2", "3"] {
        let mut next = start(&config, &socket, &["--workers", workers]);
        assert_eq!(next.until_event("took_over")["from"], router.pid());
        assert_eq!(router.until_event("gave_way")["to"], next.pid());
        assert_eq!(router.end(), Some(0));
        router = next;
        pause();
    }
    load.end();
    router.signal("TERM");
    assert_eq!(router.end(), Some(0));
}

/// Reads one line.
fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    line
}

#[test]
fn a_client_passes_over_with_what_it_has_said_and_a_tunnel_ends_where_it_is() {
    let dir = Dir::new();
    let servers = servers();
    let (text, services) = all(&servers);
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let mut old = start(&config, &socket, &[]);
    old.until_event("serving");
    let connect = |speaks: Speaks| {
        let (_, addr) = services.iter().find(|(one, _)| *one == speaks).expect("all are there");
        let stream = TcpStream::connect(addr).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        BufReader::new(stream)
    };
    let say = |client: &mut BufReader<TcpStream>, text: &str| {
        client.get_mut().write_all(text.as_bytes()).expect("it reads");
    };
    let (mut redis, mut http, mut memcached) =
        (connect(Speaks::Redis), connect(Speaks::Http), connect(Speaks::Memcached));
    // The protocol and a name, and half a command.
    say(&mut redis, "*4\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$7\r\nSETNAME\r\n$2\r\nme\r\n");
    assert!(line(&mut redis).starts_with('%'));
    let mut greeting = vec![0; 4096];
    let read = redis.read(&mut greeting).expect("the greeting");
    assert!(read > 10);
    say(&mut redis, "*2\r\n$3\r\nGET\r\n$4\r\nno");
    say(&mut http, "GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-No");
    say(&mut memcached, "get non");
    // Nothing has come of this one.
    let mut silent = connect(Speaks::Redis);
    // A transaction ends where it began.
    let mut transaction = connect(Speaks::Redis);
    say(&mut transaction, "*1\r\n$5\r\nMULTI\r\n");
    assert_eq!(line(&mut transaction), "+OK\r\n");
    let mut tunnel = connect(Speaks::Tcp);
    say(&mut tunnel, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n");
    assert_eq!((line(&mut tunnel), line(&mut tunnel)), ("$1\r\n".into(), "a\r\n".into()));
    thread::sleep(Duration::from_millis(200));

    let mut new = start(&config, &socket, &[]);
    new.until_event("took_over");
    old.until_event("gave_way");
    pause();
    say(&mut redis, "ce\r\n*2\r\n$6\r\nCLIENT\r\n$7\r\nGETNAME\r\n");
    let lines = [line(&mut redis), line(&mut redis), line(&mut redis), line(&mut redis)];
    assert_eq!(lines, ["$4\r\n", "noce\r\n", "$2\r\n", "me\r\n"]);
    say(&mut http, "nce: n1\r\n\r\n");
    assert_eq!(line(&mut http), "HTTP/1.1 200 OK\r\n");
    say(&mut memcached, "ce\r\n");
    assert_eq!(line(&mut memcached), "VALUE nonce 0 5\r\n");
    say(&mut silent, "*2\r\n$3\r\nGET\r\n$1\r\nb\r\n");
    assert_eq!((line(&mut silent), line(&mut silent)), ("$1\r\n".into(), "b\r\n".into()));
    // The old process is there for these two still.
    say(&mut transaction, "*1\r\n$7\r\nDISCARD\r\n");
    assert_eq!(line(&mut transaction), "+OK\r\n");
    say(&mut tunnel, "*2\r\n$3\r\nGET\r\n$1\r\nc\r\n");
    assert_eq!((line(&mut tunnel), line(&mut tunnel)), ("$1\r\n".into(), "c\r\n".into()));
    drop(tunnel);
    assert_eq!(old.end(), Some(0));
    say(&mut transaction, "*2\r\n$3\r\nGET\r\n$1\r\nd\r\n");
    assert_eq!((line(&mut transaction), line(&mut transaction)), ("$1\r\n".into(), "d\r\n".into()));
}

/// The rest of a value that was refused for its size, and is thrown away, are no commands, whoever reads it.
#[test]
fn a_value_that_is_thrown_away_ends_where_it_began() {
    let dir = Dir::new();
    let servers = servers();
    let port = free_port();
    let text = service("m", Speaks::Memcached, port, &servers) + "[service.limits]\nvalue = \"8MiB\"\n";
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let mut old = start(&config, &socket, &[]);
    old.until_event("serving");
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut client = BufReader::new(stream);
    let len = 9 << 20;
    let begin = vec![b'x'; 100_000];
    client.get_mut().write_all(format!("set big 0 0 {len}\r\n").as_bytes()).expect("it reads");
    client.get_mut().write_all(&begin).expect("it reads");
    assert_eq!(line(&mut client), "SERVER_ERROR object too large for cache\r\n");
    pause();

    let mut new = start(&config, &socket, &[]);
    new.until_event("took_over");
    old.until_event("gave_way");
    pause();
    let hidden = b"\r\nget hidden\r\n";
    client.get_mut().write_all(hidden).expect("it reads");
    client.get_mut().write_all(&vec![b'x'; len - begin.len() - hidden.len()]).expect("it reads");
    client.get_mut().write_all(b"\r\nget plain\r\n").expect("it reads");
    assert_eq!(line(&mut client), "VALUE plain 0 5\r\n");
    // It went over then.
    assert_eq!(old.end(), Some(0));
    assert_eq!((line(&mut client), line(&mut client)), ("plain\r\n".into(), "END\r\n".into()));
    client.get_mut().write_all(b"get after\r\n").expect("it reads");
    assert_eq!(line(&mut client), "VALUE after 0 5\r\n");
}

#[test]
fn a_new_router_that_fails_changes_nothing() {
    let dir = Dir::new();
    let servers = servers();
    let (text, services) = all(&servers);
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let mut old = start(&config, &socket, &["--workers", "2"]);
    old.until_event("serving");
    let load = Load::begin(&services);
    pause();

    let wrong = dir.write("wrong.toml", &text.replace("partitions", "partition"));
    let output = run(&["router", "--config", &wrong, "--upgrade-socket", &socket]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // An address that somebody else has: it is found out after the sockets have come.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let more = text.clone() + &service("more", Speaks::Http, port, &servers);
    let line = 1 + more.lines().position(|line| line.contains(&format!(":{port}\""))).expect("is written");
    let more = dir.write("more.toml", &more);
    let output = run(&["router", "--config", &more, "--upgrade-socket", &socket]);
    let says = format!("{more}:{line}: service \"more\" cannot listen on 127.0.0.1:{port}: ");
    assert!(output.status.code() == Some(2) && stderr(&output).contains(&says), "{}", stderr(&output));
    // One that dies with the sockets in its hands, twice as soon as it has them.
    for _ in 0..2 {
        let mut found = Predecessor::find(Path::new(&socket)).expect("it hands over").expect("it is there");
        assert_eq!(found.pid().map(i32::unsigned_abs), Some(old.pid()));
        let config =
            router::Config::parse(&text, "t".as_ref(), router::Surroundings::default()).expect("right");
        let held = found.start(&config, router::Options::new().workers(3)).expect("it starts");
        pause();
        drop((held, found));
    }
    pause();
    load.end();
    old.signal("TERM");
    assert_eq!(old.end(), Some(0));
}

/// Lets a Redis client ask something.
fn answers(port: u16) {
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket");
    client.write_all(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n").expect("it reads");
    let mut answer = [0; 7];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"$1\r\na\r\n");
}

#[test]
fn a_socket_behind_a_link_is_replaced_where_it_is() {
    let dir = Dir::new();
    let port = free_port();
    let config = dir.write("router.toml", &service("s", Speaks::Redis, port, &servers()));
    let (real, link) = (dir.file("real"), dir.file("link"));
    std::os::unix::fs::symlink("real", &link).expect("a link");
    let mut router = start(&config, &link, &[]);
    router.until_event("serving");
    for at in [&link, &real, &link] {
        let mut next = start(&config, at, &[]);
        next.until_event("took_over");
        assert_eq!(router.end(), Some(0));
        router = next;
        answers(port);
        assert!(fs::symlink_metadata(&link).expect("it is there").file_type().is_symlink());
    }
    let of_ours = |name: &str| name.starts_with("real.") || name.starts_with("link.");
    let names = fs::read_dir(dir.path()).expect("a directory");
    let mut names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    assert!(!names.any(|name| of_ours(&name)), "nothing is left behind");
}

#[test]
fn a_router_that_cannot_make_its_socket_takes_nothing_over_and_announces_nothing() {
    let dir = Dir::new();
    let port = free_port();
    let config = dir.write("router.toml", &service("s", Speaks::Redis, port, &servers()));
    let output = run(&["--json", "router", "--config", &config, "--upgrade-socket", &dir.file("none/up")]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!common::stdout(&output).contains("serving"), "{}", common::stdout(&output));

    // The same place, but by a name that is as long as it may be: there is no room for another one beside it.
    let room = 107 - dir.file("").len() - "/up".len();
    let long = dir.file(&"d".repeat(room));
    fs::create_dir(&long).expect("a directory");
    std::os::unix::fs::symlink(&long, dir.file("short")).expect("a link");
    let (long, short) = (format!("{long}/up"), dir.file("short/up"));
    let mut old = start(&config, &short, &[]);
    old.until_event("serving");
    let output = run(&["router", "--config", &config, "--upgrade-socket", &long]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("give a shorter one"), "{}", stderr(&output));
    answers(port);
    let mut new = start(&config, &short, &[]);
    assert_eq!(new.until_event("took_over")["from"], old.pid());
    assert_eq!(old.end(), Some(0));
    answers(port);
}

/// Lets a process have no descriptors of this number or above.
fn limit_files(process: &Proc, most: u32) {
    let status = Command::new("prlimit")
        .args([&format!("--pid={}", process.pid()), &format!("--nofile={most}:")])
        .status()
        .expect("prlimit can be run");
    assert!(status.success());
}

#[test]
fn a_router_without_descriptors_hands_over_once_it_has_some_and_never_in_part() {
    if !common::has("prlimit") {
        return;
    }
    let dir = Dir::new();
    let port = free_port();
    let config = dir.write("router.toml", &service("s", Speaks::Redis, port, &servers()));
    let socket = dir.file("upgrade");
    let mut old = start(&config, &socket, &["--workers", "3"]);
    old.until_event("serving");
    answers(port);
    until_it_exists(&socket);
    pause();
    let is_free = |n: &u32| !Path::new(&format!("/proc/{}/fd/{n}", old.pid())).exists();
    let free = (0..).find(is_free).expect("there is no end of numbers");
    // Whoever asks first has a descriptor already, as it was waited for, but there are none for the sockets that it is to be given.
    limit_files(&old, free);
    let output = run(&["router", "--config", &config, "--upgrade-socket", &socket, "--workers", "3"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("Too many open files"), "{}", stderr(&output));
    // Not even for whoever asks.
    let mut new = start(&config, &socket, &["--workers", "3"]);
    pause();
    assert!(new.drain().is_empty(), "it waits");
    limit_files(&old, 1024);
    assert_eq!(new.until_event("took_over")["from"], old.pid());
    assert_eq!(old.end(), Some(0));
    answers(port);
}

#[test]
fn processes_that_do_not_see_each_other_hand_over() {
    let hidden = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", program]);
        command
    };
    let can = common::has("unshare") && hidden("true").output().is_ok_and(|output| output.status.success());
    if !needs(can, "no PID namespaces for this user (root, unshare)") {
        return;
    }
    let dir = Dir::new();
    let port = free_port();
    let config = dir.write("router.toml", &service("s", Speaks::Redis, port, &servers()));
    let socket = dir.file("upgrade");
    let start = || {
        let mut command = hidden(env!("CARGO_BIN_EXE_phalanx"));
        command.args(["--json", "router", "--config", &config, "--upgrade-socket", &socket]);
        Proc::of(command)
    };
    let mut router = start();
    router.until_event("serving");
    for _ in 0..2 {
        let mut next = start();
        assert_eq!(next.until_event("took_over")["from"], serde_json::Value::Null);
        assert_eq!(router.until_event("gave_way")["to"], serde_json::Value::Null);
        assert_eq!(router.end(), Some(0));
        router = next;
        answers(port);
    }
}

#[test]
fn a_router_that_gave_way_reads_no_configuration_any_more() {
    let dir = Dir::new();
    let servers = servers();
    let (port, other) = (free_port(), free_port());
    let text = service("s", Speaks::Tcp, port, &servers);
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let mut old = start(&config, &socket, &[]);
    old.until_event("serving");
    let mut tunnel = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    tunnel.write_all(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n").expect("it reads");
    tunnel.read_exact(&mut [0; 7]).expect("an answer");
    let mut new = start(&config, &socket, &[]);
    new.until_event("took_over");
    old.until_event("gave_way");
    dir.write("router.toml", &(text + &service("more", Speaks::Redis, other, &servers)));
    old.signal("HUP");
    let told =
        old.until("an answer", |event| event["event"] == "not_reloaded" || event["event"] == "reloaded");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("in place of this one")), "{told}");
    TcpStream::connect(("127.0.0.1", other)).expect_err("nobody listens");
    new.signal("HUP");
    new.until_event("reloaded");
    answers(other);
    drop(tunnel);
    assert_eq!(old.end(), Some(0));
}

#[test]
fn old_and_new_may_serve_other_things() {
    let dir = Dir::new();
    let servers = servers();
    let (stays, goes, comes) = (free_port(), free_port(), free_port());
    let kept = service("kept", Speaks::Redis, stays, &servers);
    let old_text = kept.clone() + &service("gone", Speaks::Redis, goes, &servers);
    let new_text = service("come", Speaks::Redis, comes, &servers) + &kept;
    let (config, socket) = (dir.write("router.toml", &old_text), dir.file("upgrade"));
    let admin = ports::nobody().to_string();
    let mut old = start(&config, &socket, &["--admin", &admin]);
    old.until_event("serving");
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let load = Load::begin(&[(Speaks::Redis, address(stays))]);
    let mut leaver = TcpStream::connect(address(goes)).expect("it listens");
    pause();
    let mut new = start(&dir.write("new.toml", &new_text), &socket, &["--admin", &admin]);
    new.until_event("took_over");
    assert_eq!(old.end(), Some(0));
    pause();
    assert_eq!(leaver.read(&mut [0]).expect("an orderly end"), 0);
    TcpStream::connect(address(goes)).expect_err("nobody listens");
    TcpStream::connect(address(comes)).expect("the new one does");
    // The admin API is the new one's.
    let mut asks = TcpStream::connect(&admin).expect("it listens");
    asks.write_all(b"GET /v1/services HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        .expect("it reads");
    let mut told = String::new();
    asks.read_to_string(&mut told).expect("text");
    assert!(told.contains("\"come\"") && !told.contains("\"gone\""), "{told}");
    load.end();
    new.signal("TERM");
    assert_eq!(new.end(), Some(0));
}

#[test]
fn a_stranger_is_not_heard() {
    let dir = Dir::new();
    let (text, _) = all(&servers());
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let mut router = start(&config, &socket, &[]);
    router.until_event("serving");
    fs::write(dir.file("none"), "").expect("a file");
    let output = run(&["router", "--config", &config, "--upgrade-socket", &dir.file("none")]);
    assert!(stderr(&output).contains("is no socket"), "it is another place: {}", stderr(&output));
    let other = |mode: u32| {
        fs::set_permissions(&socket, fs::Permissions::from_mode(mode)).expect("it is ours");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups"]).arg(phalanx().get_program());
        command
            .args(["router", "--config", &config, "--upgrade-socket", &socket])
            .output()
            .expect("it can be run")
    };
    let can = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups"])
        .arg(phalanx().get_program())
        .arg("--version")
        .output();
    if needs(
        can.is_ok_and(|output| output.status.success()),
        "this user may not be another one (root, setpriv)",
    ) {
        let output = other(0o600);
        assert!(stderr(&output).contains("Permission denied"), "{}", stderr(&output));
        let output = other(0o666);
        assert_ne!(output.status.code(), Some(0));
        assert!(stderr(&output).contains("of another user"), "{}", stderr(&output));
    }
    router.signal("TERM");
    assert_eq!(router.end(), Some(0));
}

#[test]
fn a_router_that_follows_groups_takes_over_once_it_knows_them() {
    let dir = Dir::new();
    let (servers, port) = (servers(), free_port());
    let rendezvous = dir.rendezvous();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let member = |server: &[SocketAddr; 4]| {
        let at = server[1].to_string();
        runtime.block_on(async {
            let node = membership::Node::builder().rendezvous(rendezvous.parse().expect("a place"));
            // So long that a busy machine lets none lapse.
            let node = node.lease(Duration::from_secs(5)).start().await.expect("it starts");
            (node.join("g", Some(at)).await.expect("it joins"), node)
        })
    };
    let _members: Vec<_> = servers.iter().map(member).collect();
    let by_group = |text: String, group: &str| {
        let at = text.find("servers = ").expect("a list");
        format!("{}group = \"{group}\"\n", &text[..at])
    };
    // Of the second group nobody is a member.
    let text = by_group(service("kv", Speaks::Redis, port, &servers), "g")
        + &by_group(service("lonely", Speaks::Redis, free_port(), &servers), "empty");
    let (config, socket) = (dir.write("router.toml", &text), dir.file("upgrade"));
    let admin = ports::nobody().to_string();
    let more = ["--rendezvous", &rendezvous, "--admin", &admin, "--name", "router", "--lease", "5s"];
    let mut router = start(&config, &socket, &more);
    router.until_event("serving");
    let is_ready = || {
        let mut asks = TcpStream::connect(&admin).expect("it listens");
        asks.write_all(b"GET /v1/services HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            .expect("it reads");
        let mut told = String::new();
        asks.read_to_string(&mut told).expect("text");
        told.matches("\"leader\":true").count() == 1 && told.matches("\"addr\"").count() == 2
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_ready() {
        assert!(Instant::now() < deadline, "it hears of its group");
        pause();
    }
    let load = Load::begin(&[(Speaks::Redis, ([127, 0, 0, 1], port).into())]);
    pause();
    for _ in 0..3 {
        let mut next = start(&config, &socket, &more);
        next.until_event("took_over");
        assert!(is_ready() || is_ready(), "it knew the group before it served");
        assert_eq!(router.end(), Some(0));
        router = next;
        pause();
    }
    load.end();
    router.signal("TERM");
    assert_eq!(router.end(), Some(0));
}
