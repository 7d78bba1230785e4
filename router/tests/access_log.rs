//! What the access log says of requests, and what it costs nobody.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{fs, io::Read, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use common::*;
use router::{Config, Options, StartError, Surroundings};
use serde_json::{Value, json};

/// A directory that ends with the test.
struct Dir(std::path::PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("phalanx-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn logged(config: String, file: &Path) -> String {
    config.replacen("listen =", &format!("access_log = {:?}\nlisten =", file.display().to_string()), 1)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // The last one may be half written.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[test]
fn each_request_that_was_routed_is_a_line_without_its_query() {
    let dir = Dir::new("lines");
    let file = dir.0.join("access.log");
    let (server, gone) = (FakeServer::echo("a"), nobody());
    let text =
        logged(http(&[&[server.addr]]), &file) + &http(&[&[gone]]).replace("name = \"s\"", "name = \"t\"");
    let router = Router::with(&text, 1, |limits| limits.wait = Duration::from_millis(50));
    let mut client = router.client();
    client.send("GET /a/b?secret=1 HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n");
    let first = client.response();
    let sent = first.head.len() + first.body.len();
    client.post("k", "hello");
    eventually("they are written", || lines(&file).len() == 2);
    let [get, post] = &lines(&file)[..] else { unreachable!() };
    let time = get["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 24, "{time}");
    assert_eq!((&get["method"], &get["path"], &get["status"]), (&json!("GET"), &json!("/a/b"), &json!(200)));
    assert_eq!(
        (&get["service"], &get["server"], &get["attempts"]),
        (&json!("s"), &json!(server.addr.to_string()), &json!(1))
    );
    assert_eq!(get["partition"], json!(first.field("x-phalanx-partition").unwrap()));
    assert_eq!(get["client"], json!(client.stream.local_addr().unwrap().to_string()));
    assert_eq!(get["bytes_out"], json!(sent));
    assert_eq!(
        (&post["method"], &post["bytes_in"]),
        (&json!("POST"), &json!(common::post("k", "hello").len()))
    );
    assert!(post["duration_us"].as_u64().unwrap() < 5_000_000, "{post}");
    assert!(!fs::read_to_string(&file).unwrap().contains("secret"));

    // Somebody moves the file, and has the configuration read again: lines go to a new one.
    let moved = dir.0.join("access.log.1");
    fs::rename(&file, &moved).unwrap();
    let surroundings = Surroundings::default();
    router.handle.reload(&Config::parse(&text, "t".as_ref(), surroundings).unwrap()).unwrap();
    client.get("k");
    eventually("it is written", || lines(&file).len() == 1);
    assert_eq!(lines(&moved).len(), 2);

    // What was logged last is there when the router has ended.
    client.get("k");
    router.handle.shutdown(Duration::from_secs(5));
    assert_eq!(lines(&file).len(), 2);
}

#[test]
fn what_the_router_answers_itself_is_logged_with_its_status_and_its_attempts() {
    let dir = Dir::new("own");
    let file = dir.0.join("access.log");
    let router = Router::with(&logged(http(&[&[nobody(), nobody()]]), &file), 1, |_| {});
    assert_eq!(router.client().get("k").status, 503);
    eventually("it is written", || lines(&file).len() == 1);
    assert_eq!((&lines(&file)[0]["status"], &lines(&file)[0]["server"]), (&json!(503), &Value::Null));
}

#[test]
fn a_log_that_cannot_be_opened_is_refused_before_anything_is_served() {
    let config = logged(http(&[&[nobody()]]), Path::new("/no/such/directory/access.log"));
    let config = Config::parse(&config, "t".as_ref(), Surroundings::default()).unwrap();
    let error = router::start(&config, Options::new().workers(1)).err().unwrap();
    assert!(matches!(error, StartError::AccessLog { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/directory/access.log"), "{error}");
    let router = Router::start(&http(&[&[nobody()]]));
    assert!(router.handle.reload(&config).is_err());
}

fn pipe(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

#[test]
fn a_pipe_that_nobody_reads_is_refused_at_once() {
    let dir = Dir::new("unread");
    let file = dir.0.join("pipe");
    pipe(&file);
    let config = logged(http(&[&[nobody()]]), &file);
    let config = Config::parse(&config, "t".as_ref(), Surroundings::default()).unwrap();
    let error = router::start(&config, Options::new().workers(1)).err().unwrap().to_string();
    assert!(error.contains("a pipe that nobody reads: start its reader first"), "{error}");
    let router = Router::start(&http(&[&[nobody()]]));
    let error = router.handle.reload(&config).unwrap_err().to_string();
    assert!(error.contains("a pipe that nobody reads"), "{error}");
}

#[test]
fn a_log_that_nobody_empties_holds_up_neither_a_reload_nor_the_end() {
    let dir = Dir::new("full");
    let file = dir.0.join("pipe");
    pipe(&file);
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let reader = fs::OpenOptions::new().read(true).custom_flags(flags).open(&file).unwrap();
    let server = FakeServer::echo("a");
    let text = logged(http(&[&[server.addr]]), &file);
    let router = Router::with(&text, 1, |_| {});
    let mut client = router.client();
    let path = "x".repeat(1000);
    for _ in 0..300 {
        client.send(format!("GET /{path} HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n"));
        assert_eq!(client.response().status, 200);
    }
    let (done, ended) = std::sync::mpsc::channel();
    let handle = router.handle.clone();
    let control = std::thread::spawn(move || {
        let config = Config::parse(&text, "t".as_ref(), Surroundings::default()).unwrap();
        for _ in 0..3 {
            handle.reload(&config).unwrap();
        }
        done.send(()).unwrap();
        handle.shutdown(Duration::from_secs(1));
        done.send(()).unwrap();
    });
    ended.recv_timeout(PATIENCE).expect("the configuration is read again");
    ended.recv_timeout(PATIENCE).expect("the router ends");
    control.join().unwrap();
    drop(reader);
}

/// Whether the other side has ended the connection, in whatever way.
fn is_cut(client: &mut Client) -> bool {
    matches!(client.reader.read(&mut [0]), Ok(0) | Err(_))
}

/// The same of a service whose commands are never slow, however busy this machine is.
fn logged_if_failed(config: String, file: &Path) -> String {
    let log = format!("access_log = {{ file = {:?}, slow = \"60s\" }}", file.display().to_string());
    config.replacen("listen =", &format!("{log}\nlisten ="), 1)
}

/// The lines once there are so many.
fn wait(file: &Path, count: usize) -> Vec<Value> {
    eventually("they are written", || lines(file).len() >= count);
    let all = lines(file);
    assert_eq!(all.len(), count, "{all:?}");
    all
}

#[test]
fn requests_that_are_refused_have_a_line_with_the_reason_and_nothing_that_is_no_request() {
    let dir = Dir::new("refused");
    let file = dir.0.join("access.log");
    let server = FakeServer::echo("a");
    let text = logged(http(&[&[server.addr]]), &file);
    let router = Router::with(&text, 1, |limits| {
        limits.clients = 1;
        limits.head = Duration::from_millis(50);
    });
    let mut client = router.client();
    client.send("GET /no/key?secret=1 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response().status, 400);
    assert_eq!(router.client().response().status, 503, "one too many");
    client.send("GET /x?secret=2 HTTP/1.1\r\nHost : h\r\nX-Key: k\r\n\r\n");
    assert_eq!(client.response().status, 400);
    drop(client);
    eventually("it has gone", || router.stats().clients == 0);
    for nonsense in
        ["GARBAGE secret\r\n\r\n", "Authorization: secret\r\n\r\n", "GET /slow HTTP/1.1\r\nX-Secret: "]
    {
        let mut client = router.client();
        client.send(nonsense);
        assert!(matches!(client.response().status, 400 | 408));
        drop(client);
        eventually("it has gone", || router.stats().clients == 0);
    }
    let all = wait(&file, 6);
    let [no_key, shed, malformed, garbage, other, slow] = &all[..] else { unreachable!() };
    assert_eq!(
        (&no_key["path"], &no_key["status"], &no_key["partition"]),
        (&json!("/no/key"), &json!(400), &Value::Null)
    );
    assert_eq!(no_key["error"], "the request has no key");
    assert_eq!((&shed["end"], &shed["error"]), (&json!("refused"), &json!("too many clients")));
    assert_eq!((&malformed["path"], &malformed["status"]), (&json!("/x"), &json!(400)));
    assert!(malformed["error"].as_str().unwrap().contains("colon"), "{malformed}");
    for unreadable in [garbage, other] {
        assert_eq!(
            (&unreadable["method"], &unreadable["path"]),
            (&Value::Null, &Value::Null),
            "{unreadable}"
        );
    }
    assert_eq!((&slow["path"], &slow["status"]), (&json!("/slow"), &json!(408)));
    assert!(!fs::read_to_string(&file).unwrap().to_lowercase().contains("secret"));
    assert_eq!(router.stats().refused, 5);
}

#[test]
fn one_request_in_so_many_is_logged_where_that_is_asked_for_but_all_that_fail() {
    let dir = Dir::new("every");
    let file = dir.0.join("access.log");
    let server = FakeServer::echo("a");
    let more = format!(
        "key = \"header:x-key\"\naccess_log = {{ file = {:?}, every = 10, slow = \"10s\" }}",
        file.to_str().unwrap()
    );
    let router = Router::start(&service("http", &more, &[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..30 {
        assert_eq!(client.get("k").status, 200);
    }
    client.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response().status, 400);
    let all = wait(&file, 4);
    assert_eq!(all.iter().filter(|line| line["status"] == 200).count(), 3);
}

#[test]
fn a_redis_client_has_a_line_at_its_end_and_commands_that_fail_have_one_each() {
    let dir = Dir::new("redis");
    let file = dir.0.join("access.log");
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            if args[0] == "INCR" {
                return;
            }
            peer.send("+OK\r\n");
        }
    });
    let router = Router::start(&logged_if_failed(redis(&[&[server.addr]]), &file));
    let mut client = router.client();
    for _ in 0..11 {
        assert_eq!(client.command(&["SET", "private", "secret"]), "+OK\r\n");
    }
    assert!(client.command(&["INCR", "private"]).starts_with("-ERR phalanx: outcome unknown"));
    assert!(client.command(&["NONSENSE", "secret"]).starts_with("-ERR unknown command"));
    assert!(client.command(&["RENAME", "private", "secret:2"]).starts_with("-CROSSSLOT"));
    let here = client.stream.local_addr().unwrap();
    drop(client);
    let all = wait(&file, 4);
    let [unknown, nonsense, crossed, end] = &all[..] else { unreachable!() };
    assert_eq!((&unknown["racs"], &unknown["server"]), (&json!("r0"), &json!(server.addr.to_string())));
    assert_eq!(
        (&unknown["command"], &unknown["error"]),
        (&json!("INCR"), &json!("the server failed with this update under way"))
    );
    assert_eq!(nonsense["error"], "ERR unknown command 'NONSENSE'");
    assert!(crossed["error"].as_str().unwrap().starts_with("CROSSSLOT"));
    assert_eq!((&end["client"], &end["end"]), (&json!(here.to_string()), &json!("client")));
    assert_eq!((&end["commands"], &end["refused"], &end["failed"]), (&json!(14), &json!(2), &json!(1)));
    assert_eq!(end["bytes_in"].as_u64(), Some(router.stats().received));
    let written = fs::read_to_string(&file).unwrap();
    assert!(!written.contains("private") && !written.contains("secret"), "{written}");
}

#[test]
fn memcached_commands_are_logged_as_configured_and_a_client_that_is_sent_away_is_one_line() {
    let dir = Dir::new("memcached");
    let file = dir.0.join("access.log");
    let server = FakeServer::start(|peer| {
        while peer.text().is_some() {
            peer.send("END\r\n");
        }
    });
    let more = format!("access_log = {{ file = {:?}, every = 5, slow = \"60s\" }}", file.to_str().unwrap());
    let router = Router::start(&service("memcached", &more, &[&[server.addr]]));
    let mut client = router.client();
    for _ in 0..10 {
        assert_eq!(client.ask("get private\r\n"), "END\r\n");
    }
    assert!(client.ask("slabs reassign 1 2\r\n").contains("ERROR"));
    drop(client);
    let all = wait(&file, 4);
    assert_eq!(all.iter().filter(|line| line["command"] == "get" && line["error"].is_null()).count(), 2);
    let refused = all.iter().find(|line| line["command"] == "slabs").unwrap();
    assert!(refused["error"].is_string(), "{refused}");
    let end = all.last().unwrap();
    assert_eq!((&end["commands"], &end["refused"], &end["end"]), (&json!(11), &json!(1), &json!("client")));
    assert!(!fs::read_to_string(&file).unwrap().contains("private"));
}

#[test]
fn a_tcp_connection_is_a_line_with_where_it_went_and_how_it_ended() {
    let dir = Dir::new("tcp");
    let file = dir.0.join("access.log");
    let server = FakeServer::echo("a");
    let text = logged(service("tcp", "key = \"bytes:0+3\"", &[&[server.addr]]), &file);
    let router = Router::start(&text);
    let mut client = router.client();
    let sent = post("k", "hello");
    client.send(&sent);
    assert_eq!(client.response().body, "a:hello");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    let mut client = router.client();
    client.send("x");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _reset = client.reader.read(&mut [0]);
    let all = wait(&file, 2);
    let [done, refused] = &all[..] else { unreachable!() };
    assert_eq!(
        (&done["server"], &done["end"], &done["attempts"]),
        (&json!(server.addr.to_string()), &json!("done"), &json!(1))
    );
    assert!(done["partition"].is_string() && done["bytes_in"] == sent.len(), "{done}");
    assert_eq!(
        (&refused["end"], &refused["error"], &refused["server"]),
        (&json!("refused"), &json!("it has no key"), &Value::Null)
    );
}

#[test]
fn a_client_that_does_not_get_through_the_entrance_is_a_line_and_a_flood_of_them_is_cut_short() {
    let dir = Dir::new("entrance");
    let file = dir.0.join("access.log");
    let server = FakeServer::echo("a");
    let text =
        logged(http(&[&[server.addr]]), &file).replacen("listen =", "accept_proxy = true\nlisten =", 1);
    let router = Router::start(&text);
    let mut client = router.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(is_cut(&mut client));
    let [line] = &wait(&file, 1)[..] else { unreachable!() };
    assert_eq!((&line["end"], &line["error"]), (&json!("refused"), &json!("no handshake, or none in time")));
    assert_eq!(line["client"], json!(client.stream.local_addr().unwrap().to_string()));
    // More than there may be lines before the next tick, and each is either written or counted.
    for _ in 0..300 {
        let mut client = router.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(is_cut(&mut client));
    }
    eventually("all are accounted for", || lines(&file).len() as u64 + router.stats().unlogged == 301);
    assert_eq!(router.stats().handshakes_failed, 301);
}

#[test]
fn a_command_that_is_slow_has_a_line_that_names_its_server() {
    let dir = Dir::new("slow");
    let file = dir.0.join("access.log");
    let server = FakeServer::start(|peer| {
        while let Some(args) = peer.command() {
            if args[0] == "STRLEN" {
                std::thread::sleep(Duration::from_millis(120));
            }
            peer.send("+OK\r\n");
        }
    });
    let router = Router::start(&logged(redis(&[&[server.addr]]), &file));
    let mut client = router.client();
    for name in ["GET", "STRLEN"] {
        assert_eq!(client.command(&[name, "private"]), "+OK\r\n");
    }
    // On a busy machine the other one may be slow, too.
    let strlen = || lines(&file).into_iter().find(|line| line["command"] == "STRLEN");
    eventually("it is written", || strlen().is_some());
    let slow = strlen().unwrap();
    assert_eq!((&slow["racs"], &slow["server"]), (&json!("r0"), &json!(server.addr.to_string())));
    assert!(slow["duration_us"].as_u64().unwrap() > 100_000 && slow["error"].is_null(), "{slow}");
}
