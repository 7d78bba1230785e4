//! Clients that ask in an orderly way, check what they get, and say how long it took.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    journal::Told,
    message::{self, Frame},
};

/// Longer than a request may take before it is taken for lost: updates wait for a leader.
const PATIENCE: Duration = Duration::from_secs(15);

/// What honest clients have seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How long each request took that was answered as it should be.
    pub took: Vec<Duration>,
    /// How many of them there were, by service.
    pub answered: BTreeMap<&'static str, u64>,
    /// Updates of which nobody knows whether they were carried out.
    pub unknown: u64,
    /// What was said of each update, by its nonce.
    pub told: HashMap<String, Told>,
    /// Requests that were refused, broke off or took too long; the first few, in words.
    pub failed: u64,
    /// The first few failures, in words.
    pub why: Vec<String>,
}

impl Seen {
    /// How long all but so many per thousand took at most.
    pub fn per_mille(&self, per_mille: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get((took.len() * per_mille / 1000).min(took.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.why.len() < 5 {
            self.why.push(why);
        }
    }
}

/// What became of one request.
enum Answer {
    Good,
    Unknown,
}

/// What clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http,
    /// Redis' protocol.
    Redis,
    /// memcached's text protocol.
    Memcached,
    /// MessagePack-RPC in frames.
    Frames,
    /// Redis' protocol, through a service of plain TCP.
    Tcp,
}

impl Speaks {
    /// All, in the order of services.
    pub const ALL: [Self; 5] = [Self::Http, Self::Redis, Self::Memcached, Self::Frames, Self::Tcp];

    /// As services and configurations call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Redis => "redis",
            Self::Memcached => "memcached",
            Self::Frames => "frames",
            Self::Tcp => "tcp",
        }
    }

    /// After how many requests a client comes anew at the latest: nobody else can end a connection of plain TCP between two.
    const fn stay(self) -> u64 {
        if matches!(self, Self::Tcp) { 50 } else { u64::MAX }
    }
}

/// Whom and how many.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// The services.
    pub services: Vec<(Speaks, SocketAddr)>,
    /// How many clients each gets.
    pub clients: usize,
    /// How often each client asks.
    pub every: Duration,
    /// Whether a tenth of the requests are updates.
    pub updates: bool,
    /// After how many requests each client comes anew.
    pub stay: u64,
}

impl Crowd {
    /// Asks for so long. Runs on the thread that calls it.
    pub fn ask(&self, time: Duration) -> Seen {
        let until = Instant::now() + time;
        self.ask_until(move || Instant::now() >= until)
    }

    /// The same, until it is over.
    pub fn ask_until(&self, over: impl Fn() -> bool + 'static) -> Seen {
        /// How often clients have come: no two requests have the same nonce.
        static TIMES: AtomicU64 = AtomicU64::new(0);
        let times = TIMES.fetch_add(1, Ordering::SeqCst);
        let seen = Rc::new(RefCell::new(Seen::default()));
        let over = Rc::new(over);
        let result = Rc::clone(&seen);
        let all = self.clients * self.services.len();
        crate::block_on(async move {
            let clients = (0..all).map(|id| {
                let (seen, over) = (Rc::clone(&seen), Rc::clone(&over));
                let service = self.services[id % self.services.len()];
                let ways = (self.every, self.updates, self.stay);
                let first = self.every.mul_f64(id as f64 / all as f64);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(first).await;
                    one((times, id), service, ways, &*over, &seen).await;
                })
            });
            for client in clients.collect::<Vec<_>>() {
                client.await.expect("no client panics");
            }
        });
        result.take()
    }
}

async fn one(
    (times, id): (u64, usize),
    (speaks, addr): (Speaks, SocketAddr),
    (every, updates, stay): (Duration, bool, u64),
    over: &impl Fn() -> bool,
    seen: &RefCell<Seen>,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut stream, mut number) = (None, 0_u64);
    while !over() {
        ticks.tick().await;
        number += 1;
        let update = updates && number.is_multiple_of(10);
        let nonce = format!("n{times}.{id}.{number}");
        let started = Instant::now();
        if number.is_multiple_of(stay.min(speaks.stay())) {
            stream = None;
        }
        let asked = timeout(PATIENCE, async {
            if stream.is_none() {
                let fresh = TcpStream::connect(addr).await?;
                fresh.set_nodelay(true)?;
                stream = Some(BufReader::new(fresh));
            }
            let stream = stream.as_mut().expect("just connected");
            match speaks {
                Speaks::Http => ask_http(stream, update, &nonce).await,
                Speaks::Redis | Speaks::Tcp => ask_redis(stream, update, &nonce).await,
                Speaks::Memcached => ask_memcached(stream, update, &nonce).await,
                Speaks::Frames => ask_frames(stream, update, number as u32, &nonce).await,
            }
        });
        let answer = asked.await;
        let mut seen = seen.borrow_mut();
        let name = speaks.name();
        if update {
            let told = if matches!(answer, Ok(Ok(Answer::Good))) { Told::Done } else { Told::Unknown };
            seen.told.insert(nonce.clone(), told);
        }
        match answer {
            Ok(Ok(Answer::Good)) => {
                seen.took.push(started.elapsed());
                *seen.answered.entry(name).or_default() += 1;
            }
            Ok(Ok(Answer::Unknown)) => seen.unknown += 1,
            Ok(Err(error)) => {
                seen.fail(format!("{name} {nonce}: {error}"));
                stream = None;
            }
            Err(_) => {
                seen.fail(format!("{name} {nonce}: no answer in {PATIENCE:?}"));
                stream = None;
            }
        }
    }
}

async fn ask_http(stream: &mut BufReader<TcpStream>, update: bool, nonce: &str) -> std::io::Result<Answer> {
    let (method, body) = if update { ("POST", "some body") } else { ("GET", "") };
    let text = format!(
        "{method} /x HTTP/1.1\r\nHost: h\r\nX-Key: {nonce}\r\nX-Nonce: {nonce}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body);
    match head.get(9..12) {
        Some("200") if body == nonce => Ok(Answer::Good),
        Some("200") => panic!("{nonce} got {body:?}, which was meant for another"),
        Some("502") if update => Ok(Answer::Unknown),
        _ => Err(std::io::Error::other(format!("{} {body}", head.lines().next().unwrap_or("")))),
    }
}

async fn ask_redis(stream: &mut BufReader<TcpStream>, update: bool, nonce: &str) -> std::io::Result<Answer> {
    let (name, more) = if update {
        ("SET", format!("$1\r\nk\r\n${}\r\n{nonce}\r\n", nonce.len()))
    } else {
        ("GET", format!("${}\r\n{nonce}\r\n", nonce.len()))
    };
    let text = format!("*{}\r\n$3\r\n{name}\r\n{more}", if update { 3 } else { 2 });
    stream.write_all(text.as_bytes()).await?;
    let line = message::line(stream).await?;
    let Some(length) = line.strip_prefix('$').and_then(|length| length.parse::<usize>().ok()) else {
        return match update && line.contains("outcome unknown") {
            true => Ok(Answer::Unknown),
            false => Err(std::io::Error::other(line)),
        };
    };
    let mut value = vec![0; length + 2];
    stream.read_exact(&mut value).await?;
    assert_eq!(String::from_utf8_lossy(&value[..length]), nonce, "a reply that was meant for another");
    Ok(Answer::Good)
}

async fn ask_memcached(
    stream: &mut BufReader<TcpStream>,
    update: bool,
    nonce: &str,
) -> std::io::Result<Answer> {
    let text = if update { format!("ms {nonce} 2 k\r\nof\r\n") } else { format!("get {nonce}\r\n") };
    stream.write_all(text.as_bytes()).await?;
    let line = message::line(stream).await?;
    let meant = |key: &str| assert_eq!(key, nonce, "a reply that was meant for another");
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["HD", key] if update => meant(key.strip_prefix('k').unwrap_or(key)),
        ["VALUE", key, "0", _] if !update => {
            meant(key);
            meant(&message::line(stream).await?);
            assert_eq!(message::line(stream).await?, "END");
        }
        _ if update && line.contains("outcome unknown") => return Ok(Answer::Unknown),
        _ => return Err(std::io::Error::other(line)),
    }
    Ok(Answer::Good)
}

async fn ask_frames(
    stream: &mut BufReader<TcpStream>,
    update: bool,
    id: u32,
    nonce: &str,
) -> std::io::Result<Answer> {
    let method = if update { "set" } else { "get" };
    stream.write_all(&message::request(id, method, nonce)).await?;
    let answer = Frame::read(stream).await?;
    assert_eq!(answer.id, id.into(), "an answer that was meant for another");
    match answer.failed {
        false => assert_eq!(answer.text, nonce, "an answer that was meant for another"),
        true if update && answer.text.contains("unknown") => return Ok(Answer::Unknown),
        true => return Err(std::io::Error::other(answer.text)),
    }
    Ok(Answer::Good)
}
