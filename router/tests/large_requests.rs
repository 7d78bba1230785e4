//! Large commands of all clients together take no more room than there is; those that find none wait, and go on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use common::{speech::Speech, *};
use router::Limits;

const LARGE: usize = 3 << 20;

/// One large command at a time.
fn narrow(limits: &mut Limits) {
    patient(limits);
    limits.requests_in_all = 4 << 20;
}

/// An update of so many bytes.
fn large(speech: Speech, key: &str, len: usize) -> Vec<u8> {
    let value = "v".repeat(len);
    match speech {
        Speech::Redis => command(&["SET", key, &value]).into(),
        _ => format!("set {key} 0 0 {len}\r\n{value}\r\n").into(),
    }
}

fn small(speech: Speech, client: &mut Client) -> String {
    speech.ask(client, false, "small")
}

fn reply(speech: Speech, client: &mut Client) -> String {
    if speech == Speech::Redis { client.reply() } else { client.line() }
}

fn well(speech: Speech, reply: &str, key: &str) -> bool {
    speech.answered(reply, key).is_some()
}

/// Sends in the background: it may take until there is room.
fn send(client: &Client, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut stream = client.stream.try_clone().unwrap();
    thread::spawn(move || stream.write_all(&bytes).unwrap())
}

#[test]
fn many_large_commands_take_turns() {
    for speech in [Speech::Redis, Speech::Memcached] {
        let server = speech.server("a", || ());
        let router = Router::with(&speech.config("", &[&[server.addr]]), 1, narrow);
        let addr: SocketAddr = router.addr();
        let clients: Vec<_> = (0..6)
            .map(|who| {
                thread::spawn(move || {
                    let mut client = Client::connect(addr);
                    for n in 0..3 {
                        let key = format!("{who}.{n}");
                        // Some are larger than all the room.
                        let len = if who == 0 { 5 << 20 } else { LARGE };
                        let sent = send(&client, large(speech, &key, len));
                        let said = reply(speech, &mut client);
                        assert!(well(speech, &said, &key), "{speech:?}: {said}");
                        sent.join().unwrap();
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

#[test]
fn who_never_ends_a_large_command_keeps_the_others_waiting_no_longer_than_a_stall() {
    for speech in [Speech::Redis, Speech::Memcached] {
        let server = speech.server("a", || ());
        let router = Router::with(&speech.config("", &[&[server.addr]]), 1, |limits| {
            narrow(limits);
            limits.stall = Duration::from_millis(500);
        });
        let mut slow = router.client();
        slow.send(&large(speech, "slow", LARGE)[..LARGE / 2]);
        eventually("it is heard", || router.stats().clients == 1);
        thread::sleep(Duration::from_millis(100));
        let (mut other, mut third) = (router.client(), router.client());
        let sent = send(&other, large(speech, "k", LARGE));
        let said = small(speech, &mut third);
        assert!(well(speech, &said, "small"), "what is small needs no room: {said}");
        let said = reply(speech, &mut other);
        assert!(well(speech, &said, "k"), "{speech:?}: {said}");
        sent.join().unwrap();
        assert!(slow.is_closed());
    }
}

#[test]
fn room_is_held_until_the_answer() {
    for speech in [Speech::Redis, Speech::Memcached] {
        let answers = Arc::new(AtomicBool::new(false));
        let may = Arc::clone(&answers);
        let server = speech.server("a", move || {
            while !may.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        });
        let router = Router::with(&speech.config("", &[&[server.addr]]), 1, narrow);
        let (mut one, mut two) = (router.client(), router.client());
        let first = send(&one, large(speech, "one", LARGE));
        eventually("it arrives", || server.seen().len() == 1);
        let second = send(&two, large(speech, "two", LARGE));
        thread::sleep(Duration::from_millis(300));
        assert_eq!(router.stats().requests, 1, "{speech:?}: there is no room for the other one");
        answers.store(true, Ordering::SeqCst);
        for (client, key) in [(&mut one, "one"), (&mut two, "two")] {
            let said = reply(speech, client);
            assert!(well(speech, &said, key), "{speech:?}: {said}");
        }
        first.join().unwrap();
        second.join().unwrap();
    }
}

#[test]
fn commands_that_grow_bit_by_bit_do_not_wait_for_each_other_for_ever() {
    // Each of them is larger than the room, and how large is not known before it has come.
    let server = FakeServer::start(|peer| {
        while peer.command().is_some() {
            peer.send("+OK\r\n");
        }
    });
    let router = Router::with(&redis(&[&[server.addr]]), 1, |limits| {
        patient(limits);
        limits.requests_in_all = 512 << 10;
    });
    let addr = router.addr();
    let clients: Vec<_> = (0..4)
        .map(|who| {
            thread::spawn(move || {
                let mut client = Client::connect(addr);
                let key = format!("{{{who}}}");
                let pairs = [key, "v".repeat(50)];
                let words: Vec<&str> = ["MSET"]
                    .into_iter()
                    .chain(pairs.iter().map(String::as_str).cycle().take(20_000))
                    .collect();
                let text = command(&words);
                assert!(text.len() > 512 << 10);
                let mut stream = client.stream.try_clone().unwrap();
                let sent = thread::spawn(move || {
                    for piece in text.as_bytes().chunks(16 << 10) {
                        stream.write_all(piece).unwrap();
                        thread::sleep(Duration::from_millis(1));
                    }
                });
                assert_eq!(client.reply(), "+OK\r\n");
                sent.join().unwrap();
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}
