//! Real redis-servers are killed under load, and come back with all that they have done: no update was carried out twice,
//! none is missing that was answered, and none was carried out of which the client was told that nothing was done.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use common::{journal::*, real::RealServer, *};

/// Whatever a server has answered is in its file, which outlives it; and often what it has not answered yet, as it waits for
/// its disk in between.
const LOGGED: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
const CLIENTS: usize = 4;
const BATCH: usize = 20;

#[test]
fn real_servers_that_were_killed_have_done_each_update_once() {
    let start = || RealServer::start_with(nobody(), &LOGGED);
    let (Some(one), Some(other)) = (start(), start()) else { return };
    let router = Router::with(&redis(&[&[one.addr], &[other.addr]]), 2, |_| {});
    let (journal, stop, answered) = (Journal::default(), AtomicBool::new(false), AtomicU64::new(0));
    let mut servers = [one, other];
    let load = |id: usize| {
        let mut client = router.client();
        for round in 0.. {
            if stop.load(Ordering::SeqCst) {
                return round;
            }
            let nonces: Vec<String> = (0..BATCH).map(|n| nonce(id, round, n)).collect();
            client.send(nonces.iter().map(|nonce| command(&["INCR", nonce])).collect::<String>());
            for nonce in &nonces {
                let reply = client.reply();
                let told = match reply.as_str() {
                    ":1\r\n" => Told::Done,
                    reply if reply.starts_with("-ERR phalanx: outcome unknown") => Told::Unknown,
                    reply if reply.starts_with("-TRYAGAIN phalanx: ") => Told::Nothing,
                    // It is one of Redis' own, which has not finished reading its file.
                    reply if reply.starts_with("-LOADING ") => Told::Nothing,
                    other => panic!("{nonce} got {other}"),
                };
                journal.told(nonce, told);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        }
        unreachable!("rounds do not end by themselves")
    };
    let load = &load;
    let rounds: Vec<usize> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|id| scope.spawn(move || load(id))).collect();
        for kill in 0..6 {
            let before = answered.load(Ordering::SeqCst);
            eventually("load goes on", || answered.load(Ordering::SeqCst) > before + 300);
            servers[kill % 2].kill();
            thread::sleep(Duration::from_millis(10));
            servers[kill % 2].come_back(&LOGGED);
        }
        stop.store(true, Ordering::SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for server in &servers {
        let mut direct = Client::connect(server.addr);
        eventually("it has read its file", || !direct.command(&["GET", "x"]).starts_with("-LOADING "));
        for (id, rounds) in rounds.iter().enumerate() {
            for round in 0..*rounds {
                let nonces: Vec<String> = (0..BATCH).map(|n| nonce(id, round, n)).collect();
                direct.send(nonces.iter().map(|nonce| command(&["GET", nonce])).collect::<String>());
                for nonce in &nonces {
                    let reply = direct.reply();
                    let times = match reply.split_once("\r\n") {
                        Some(("$-1", _)) => 0,
                        Some((_, times)) => times.trim_end().parse().unwrap(),
                        None => panic!("{reply}"),
                    };
                    (0..times).for_each(|_| journal.ran(nonce));
                }
            }
        }
    }
    let [done, nothing, unknown] = journal.judge().unwrap();
    println!("{done} done, {nothing} not, {unknown} unknown");
    assert!(done > 1_000 && unknown > 0, "the test must have tested something");
}

fn nonce(id: usize, round: usize, n: usize) -> String {
    format!("{id}.{round}.{n}")
}
