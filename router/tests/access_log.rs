//! What the access log says of requests, and what it costs nobody.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{fs, path::Path, time::Duration};

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
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
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
