//! However many clients begin a large command and do not end it, the router keeps no more of them than it has room for.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Read,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::*;

const VALUE: usize = 16 << 20;

/// Bytes of this process that are in memory. Nothing else is tested in this process.
fn resident() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn unfinished_commands_of_all_clients_are_bounded_and_all_are_answered_in_the_end() {
    let text: Arc<[u8]> = command(&["SET", "k", &"v".repeat(VALUE)]).into_bytes().into();
    let len = text.len();
    let server = FakeServer::start(move |peer| {
        let mut room = vec![0; 1 << 16];
        let mut left = len;
        while let Ok(read @ 1..) = peer.reader.read(&mut room[..left.min(1 << 16)]) {
            left -= read;
            if left == 0 {
                left = len;
                peer.send("+OK\r\n");
            }
        }
    });
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| {
        patient(limits);
        limits.requests_in_all = 2 * (VALUE + (1 << 20));
    });
    let before = resident();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let written = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (text, gate, written) = (Arc::clone(&text), Arc::clone(&gate), Arc::clone(&written));
            let mut client = router.client();
            thread::spawn(move || {
                client.send(&text[..len - 1]);
                written.fetch_add(1, Ordering::SeqCst);
                let (open, changed) = &*gate;
                drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
                client.send(&text[len - 1..]);
                client.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                assert_eq!(client.reply(), "+OK\r\n");
            })
        })
        .collect();
    eventually("as many as find room have come", || written.load(Ordering::SeqCst) >= 2);
    thread::sleep(Duration::from_secs(1));
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 * VALUE, "{} MiB for two commands of 16 MiB", grown >> 20);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    clients.into_iter().for_each(|client| client.join().unwrap());
}
