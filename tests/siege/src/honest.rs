//! Clients that ask in an orderly way, check what they get, and say how long it took.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};

/// Longer than a request may take before it is taken for lost: updates wait for a leader.
const PATIENCE: Duration = Duration::from_secs(15);

/// What honest clients have seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How long each request took that was answered as it should be.
    pub took: Vec<Duration>,
    /// Updates of which nobody knows whether they were carried out.
    pub unknown: u64,
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

/// Whom and how many.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// The HTTP service.
    pub http: SocketAddr,
    /// The Redis service.
    pub redis: SocketAddr,
    /// How many clients each gets.
    pub clients: usize,
    /// How often each client asks.
    pub every: Duration,
    /// Whether a tenth of the requests are updates.
    pub updates: bool,
}

impl Crowd {
    /// Asks for so long. Runs on the thread that calls it.
    pub fn ask(self, time: Duration) -> Seen {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let until = Instant::now() + time;
        let result = Rc::clone(&seen);
        crate::block_on(async move {
            let clients = (0..self.clients * 2).map(|id| {
                let seen = Rc::clone(&seen);
                tokio::task::spawn_local(async move { self.one(id, until, &seen).await })
            });
            for client in clients.collect::<Vec<_>>() {
                client.await.expect("no client panics");
            }
        });
        result.take()
    }

    async fn one(self, id: usize, until: Instant, seen: &RefCell<Seen>) {
        let redis = id % 2 == 1;
        let addr = if redis { self.redis } else { self.http };
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::time::sleep(self.every.mul_f64(id as f64 / (2 * self.clients) as f64)).await;
        let (mut stream, mut number) = (None, 0_u64);
        while Instant::now() < until {
            ticks.tick().await;
            number += 1;
            let update = self.updates && number.is_multiple_of(10);
            let nonce = format!("n{id}.{number}");
            let started = Instant::now();
            let asked = timeout(PATIENCE, async {
                if stream.is_none() {
                    let fresh = TcpStream::connect(addr).await?;
                    fresh.set_nodelay(true)?;
                    stream = Some(BufReader::new(fresh));
                }
                let stream = stream.as_mut().expect("just connected");
                if redis {
                    ask_redis(stream, update, &nonce).await
                } else {
                    ask_http(stream, update, &nonce).await
                }
            });
            let answer = asked.await;
            let mut seen = seen.borrow_mut();
            match answer {
                Ok(Ok(Answer::Good)) => seen.took.push(started.elapsed()),
                Ok(Ok(Answer::Unknown)) => seen.unknown += 1,
                Ok(Err(error)) => {
                    seen.fail(format!("{nonce}: {error}"));
                    stream = None;
                }
                Err(_) => {
                    seen.fail(format!("{nonce}: no answer in {PATIENCE:?}"));
                    stream = None;
                }
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
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&line).trim().to_owned();
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
