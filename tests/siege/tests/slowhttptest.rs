//! slowhttptest's four modes against a router, with honest clients beside it: by its own probe the service stays available, and
//! nothing of theirs fails.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use siege::{
    field::Field,
    honest::{Crowd, Speaks},
};

/// One at a time: each is to be seen by itself.
static TURN: Mutex<()> = Mutex::new(());

/// One mode, for some seconds.
fn survives(mode: &[&str], path: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    siege::more_files();
    let field = Field::start(Path::new(env!("CARGO_BIN_EXE_siege")));
    let url = format!("http://{}/items/7{path}", field.service(Speaks::Http));
    let attacker = Command::new("slowhttptest")
        .args(mode)
        .args(["-c", "200", "-r", "100", "-l", "5", "-i", "2", "-p", "3", "-u", &url])
        .stdout(Stdio::piped())
        .spawn();
    let attacker = match attacker {
        Ok(attacker) => attacker,
        Err(error) => {
            assert!(std::env::var_os("PHALANX_REQUIRE_SERVERS").is_none(), "slowhttptest: {error}");
            println!("SKIPPED: slowhttptest cannot be started: {error}");
            return;
        }
    };
    thread::sleep(Duration::from_millis(500));
    let every = Duration::from_millis(10);
    let services = [Speaks::Http, Speaks::Redis].map(|speaks| (speaks, field.service(speaks)));
    let crowd = Crowd { services: services.into(), clients: 4, every, updates: true, stay: u64::MAX };
    let seen = crowd.ask(Duration::from_secs(4));
    let output = attacker.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    let says =
        |what: &str| said.lines().any(|line| line.contains("service available") && line.contains(what));
    assert!(says("YES") && !says("NO"), "{mode:?}: {said}");
    println!("{mode:?}: 99 % of {} in {:?}", seen.took.len(), seen.per_mille(990));
    assert!(seen.failed == 0 && seen.took.len() > 40, "{mode:?}: {seen:?}");
}

#[test]
fn slow_heads() {
    survives(&["-H", "-x", "24"], "/x");
}

#[test]
fn slow_bodies() {
    survives(&["-B", "-s", "8192", "-x", "10"], "/x");
}

#[test]
fn slow_readers() {
    survives(&["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3"], "/big");
}

#[test]
fn many_ranges() {
    survives(&["-R", "-a", "10", "-b", "3000"], "/big");
}
