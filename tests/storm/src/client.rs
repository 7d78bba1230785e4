//! A client of the inventory: it writes, and remembers what was acknowledged; at last it reads whether all of that is there.
//!
//! Each key has one writer, which writes growing numbers one after the other, and gives a key up once it does not know whether a
//! write was done: so the last acknowledged number is the least that may be found.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;

use crate::hosts::Door;

/// Keys that are written to at a time.
const KEYS: usize = 8;
/// How long a connection may take, and an answer.
const CONNECT: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_secs(6);
/// Between rounds in which nobody took anything.
const PAUSE: Duration = Duration::from_millis(5);

/// What was written.
#[derive(Default)]
pub struct Written {
    /// The last number that was acknowledged, by key.
    acked: BTreeMap<String, u64>,
    pub count: u64,
}

/// A client at work.
pub struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Written>>,
}

impl Client {
    /// Begins to write, from a host of its own, to whichever of these leads.
    pub fn start(door: Door, clones: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let work = move || {
            door.enter()?;
            Ok(write(&clones, &stops))
        };
        let thread = thread::Builder::new().name("client".into()).spawn(work)?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) -> anyhow::Result<Written> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }
}

fn write(clones: &[SocketAddr], stop: &AtomicBool) -> Written {
    let mut written = Written::default();
    let mut keys: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
    let (mut next_key, mut number, mut leader) = (KEYS, 0u64, 0);
    while !stop.load(Relaxed) {
        number += 1;
        let at = number as usize % KEYS;
        let key = keys[at].clone();
        match put(clones[leader], &key, number) {
            Outcome::Done => {
                written.acked.insert(key, number);
                written.count += 1;
            }
            Outcome::NotDone => {
                leader = (leader + 1) % clones.len();
                thread::sleep(PAUSE);
            }
            Outcome::Unknown => {
                keys[at] = format!("k{next_key}");
                next_key += 1;
                leader = (leader + 1) % clones.len();
            }
        }
    }
    written
}

enum Outcome {
    Done,
    NotDone,
    Unknown,
}

fn put(clone: SocketAddr, key: &str, number: u64) -> Outcome {
    let Ok(stream) = TcpStream::connect_timeout(&clone, CONNECT) else { return Outcome::NotDone };
    match ask(stream, "PUT", key, &number.to_string()) {
        Ok((200, _)) => Outcome::Done,
        // Only these say that nothing was done.
        Ok((503 | 507, _)) => Outcome::NotDone,
        _ => Outcome::Unknown,
    }
}

/// The status and the body of the answer.
fn ask(mut stream: TcpStream, method: &str, key: &str, body: &str) -> io::Result<(u16, Value)> {
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    let length = body.len();
    let head =
        format!("{method} /items/{key} HTTP/1.1\r\nhost: i\r\nconnection: close\r\ncontent-length: {length}");
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
    status.zip(body).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Reads every key from one of these, for so long at most. What was acknowledged and is not there, as text; `None` if nobody
/// answers for all.
pub fn check(
    door: Door,
    clones: Vec<SocketAddr>,
    written: Written,
    patience: Duration,
) -> anyhow::Result<Option<Vec<String>>> {
    let work = move || {
        door.enter()?;
        let deadline = Instant::now() + patience;
        let mut wrong = Vec::new();
        for (key, acked) in written.acked {
            let read = loop {
                let answers = clones.iter().find_map(|clone| read(*clone, &key));
                if answers.is_some() || Instant::now() >= deadline {
                    break answers;
                }
                thread::sleep(PAUSE);
            };
            match read {
                None => return Ok(None),
                Some(number) if number >= acked => {}
                Some(number) => wrong.push(format!("{key} was acknowledged as {acked}, and is {number}")),
            }
        }
        Ok(Some(wrong))
    };
    thread::spawn(work).join().map_err(|_| anyhow::anyhow!("the client panicked")).context("reading")?
}

/// The number that a key has; 0 if it has none.
fn read(clone: SocketAddr, key: &str) -> Option<u64> {
    let stream = TcpStream::connect_timeout(&clone, CONNECT).ok()?;
    match ask(stream, "GET", key, "") {
        Ok((200, body)) => match &body["value"] {
            Value::Null => Some(0),
            value => value.as_str()?.parse().ok(),
        },
        _ => None,
    }
}
