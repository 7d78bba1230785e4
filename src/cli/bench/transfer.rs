//! `bench transfer`: how fast a member that is new gets the group's state, while the group goes on.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use hyper::body::Bytes;
use membership::{Class, Delivered, Node, clock::now_ns};
use rustix::process::Signal;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};

use crate::cli::{
    Failure, Outcome, events, exit,
    flags::Size,
    proc::{Proc, Said},
    scratch::Scratch,
};

/// Two processes hold a state and multicast to each other; a third joins. Measured from its asking to be a member until it
/// holds the state, beside the floor of this machine: as many bytes over one TCP connection on loopback, into memory that is
/// kept.
#[derive(Args)]
pub(crate) struct Transfer {
    /// The state; each of the three processes holds it.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = state)]
    size: Size,
    /// How often; medians are printed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::cli::at_least_one)]
    times: usize,
    /// How many messages a second each of the two multicasts meanwhile.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    messages: u32,
    /// The key of the members: what they say is sealed.
    #[arg(long, env = "PHALANX_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// One member of the group of `bench transfer`.
#[derive(Args)]
pub(crate) struct TransferMember {
    #[arg(long)]
    name: String,
    #[arg(long)]
    rendezvous: membership::Rendezvous,
    /// 0 for the one that gets the state.
    #[arg(long)]
    holds: Size,
    #[arg(long)]
    messages: u32,
    #[arg(long, env = "PHALANX_SECRET_FILE")]
    secret_file: Option<PathBuf>,
}

/// The pieces in which the state is given.
const PIECE: usize = 1 << 20;
/// Of each message that is multicast meanwhile.
const MESSAGE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(120);

/// A state that fits in memory three times.
fn state(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if (1..=16 << 30).contains(&size.0) { Ok(size) } else { Err("give 1B to 16GiB".into()) }
}

/// What one transfer gave.
struct Measured {
    floor_ms: f64,
    took_ms: f64,
    /// The longest that a member waited meanwhile for what it multicast, in milliseconds.
    longest_ms: f64,
}

impl Transfer {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        let mut runs = Vec::new();
        for _ in 0..self.times {
            let size = self.size.0;
            let floor_ms = tokio::task::spawn_blocking(move || floor(size));
            let floor_ms = floor_ms.await.context("measuring the floor")??;
            let dir = Scratch::new("bench")?;
            runs.push(self.once(floor_ms, dir.path()).await?);
        }
        let median = |of: fn(&Measured) -> f64| super::median(&runs, of);
        let (floor, took) = (median(|m| m.floor_ms), median(|m| m.took_ms));
        let (share, longest) = (median(|m| m.floor_ms / m.took_ms), median(|m| m.longest_ms));
        let mib = self.size.0 as f64 / f64::from(1 << 20);
        let object = json!({
            "event": "transfer", "bytes": self.size.0, "took_ms": took, "floor_ms": floor, "of_floor": share,
            "longest_message_ms": longest, "sealed": self.secret_file.is_some(), "runs": runs.len(),
        });
        let text = format!(
            "{}: state received after {took:.0} ms, {:.0} MiB/s; floor, the same over a TCP connection: {floor:.0} ms, \
             {:.0} MiB/s; {:.0} % of it; the longest wait for a message meanwhile: {longest:.1} ms (medians of {} runs)",
            self.size,
            mib / took * 1e3,
            mib / floor * 1e3,
            share * 100.0,
            runs.len()
        );
        events::line(&if json { object.to_string() } else { text });
        Ok(0)
    }

    async fn once(&self, floor_ms: f64, dir: &Path) -> Result<Measured, Failure> {
        let (said, heard) = mpsc::channel(4096);
        let mut heard = Heard { said: heard, kept: Vec::new() };
        let start = |who: usize, holds: usize| {
            let mut args = vec![
                "bench".to_owned(),
                "transfer-member".to_owned(),
                format!("--name=n{who}"),
                format!("--rendezvous=file:{}", dir.display()),
                format!("--holds={}", Size(holds)),
                format!("--messages={}", self.messages),
            ];
            args.extend(self.secret_file.iter().map(|file| format!("--secret-file={}", file.display())));
            Proc::start(&args, who, said.clone())
        };
        let mut procs = Vec::new();
        for who in 0..2 {
            procs.push(start(who, self.size.0)?);
            heard.until(who, "ready").await?;
        }
        procs.push(start(2, 0)?);
        let received = heard.until(2, "received").await?;
        if received["bytes"].as_u64() != Some(self.size.0 as u64) {
            return Err(Failure::new(exit::FAILED, format!("not the whole state was received: {received}")));
        }
        for proc in &procs[..2] {
            proc.signal(Signal::TERM);
        }
        let mut longest_ms = 0.0_f64;
        for who in 0..2 {
            longest_ms =
                longest_ms.max(heard.until(who, "waited").await?["longest_ms"].as_f64().unwrap_or(f64::NAN));
        }
        procs[2].signal(Signal::TERM);
        for proc in &mut procs {
            timeout(PATIENCE, proc.gone())
                .await
                .map_err(|_| Failure::new(exit::FAILED, "a member stays"))??;
        }
        Ok(Measured { floor_ms, took_ms: received["took_ms"].as_f64().unwrap_or(f64::NAN), longest_ms })
    }
}

/// What members say.
struct Heard {
    said: mpsc::Receiver<Said>,
    /// What nobody has asked for yet.
    kept: Vec<Said>,
}

impl Heard {
    async fn until(&mut self, who: usize, what: &str) -> Result<serde_json::Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let slow = || Failure::new(exit::FAILED, format!("member {who} is not {what} after {PATIENCE:?}"));
        let fits = |said: &Said| said.who == who && said.event["event"] == what;
        loop {
            if let Some(at) = self.kept.iter().position(fits) {
                return Ok(self.kept.swap_remove(at).event);
            }
            let said = timeout_at(deadline, self.said.recv()).await.map_err(|_| slow())?.ok_or_else(slow)?;
            self.kept.push(said);
        }
    }
}

/// Milliseconds to send so many bytes over a connection between two threads, the receiver keeping all of them.
fn floor(size: usize) -> Result<f64, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let piece = vec![b'x'; PIECE];
    let began = now_ns();
    let keeper = std::thread::spawn(move || -> std::io::Result<usize> {
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let mut left = size;
        while left > 0 {
            let mut next = vec![0; left.min(PIECE)];
            far.read_exact(&mut next)?;
            left -= next.len();
            kept.push(next);
        }
        Ok(kept.len())
    });
    let mut left = size;
    while left > 0 {
        let next = left.min(PIECE);
        near.write_all(&piece[..next])?;
        left -= next;
    }
    keeper.join().map_err(|_| Failure::new(exit::FAILED, "the receiver ended"))??;
    Ok((now_ns() - began) as f64 / 1e6)
}

impl TransferMember {
    pub(crate) async fn run(self) -> Outcome {
        let mut builder = Node::builder().name(&self.name).rendezvous(self.rendezvous.clone());
        if let Some(file) = &self.secret_file {
            builder = builder.secret_file(file);
        }
        let stops = crate::cli::node::Stops::new()?;
        let state: Vec<Bytes> = pieces(self.holds.0);
        let node = builder.start().await.map_err(crate::cli::flags::start_failure)?;
        node.joined().await.map_err(|e| Failure::new(exit::FAILED, e.to_string()))?;
        let began = now_ns();
        let (group, mut deliveries) =
            node.join_with_state("bench", None).await.map_err(|e| Failure::usage(e.to_string()))?;
        let me = node.id();
        let rate = self.messages.max(1);
        let mut beat = interval(Duration::from_secs(1) / rate);
        beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut under_way = std::collections::VecDeque::new();
        let (mut longest, mut has_state, mut giving) = (0, false, tokio::task::JoinSet::new());
        loop {
            tokio::select! {
                delivered = deliveries.next() => match delivered {
                    // The first one has it from the beginning; the others get it, the second one not for the first time.
                    Some(Delivered::View { view, .. }) if !has_state && view.members.len() == 1 => {
                        has_state = true;
                        events::line(&json!({"event": "ready"}).to_string());
                    }
                    Some(Delivered::StateRequest(request)) => {
                        let state = state.clone();
                        giving.spawn(async move {
                            for piece in state {
                                if request.send(piece).await.is_err() {
                                    return;
                                }
                            }
                            // Nobody takes it any more: not our trouble.
                            let _gone = request.finish(Bytes::new()).await;
                        });
                    }
                    Some(Delivered::StateReceived(pieces)) => {
                        let took_ms = (now_ns() - began) as f64 / 1e6;
                        let bytes: usize = pieces.iter().map(Bytes::len).sum();
                        has_state = true;
                        let name = if self.holds.0 > 0 { "ready" } else { "received" };
                        events::line(&json!({"event": name, "took_ms": took_ms, "bytes": bytes}).to_string());
                    }
                    Some(Delivered::Message(message)) if message.from == me => {
                        longest = longest.max(under_way.pop_front().map_or(0, |at| now_ns() - at));
                    }
                    Some(_) => {}
                    None => return Err(Failure::new(exit::FAILED, "the node stopped")),
                },
                _ = beat.tick(), if self.holds.0 > 0 && has_state && self.messages > 0 && under_way.len() < 1000 => {
                    under_way.push_back(now_ns());
                    group.multicast(Class::Ordered, vec![b'x'; MESSAGE]).await
                        .map_err(|e| Failure::new(exit::FAILED, e.to_string()))?;
                }
                () = stops.told() => break,
            }
        }
        events::line(&json!({"event": "waited", "longest_ms": longest as f64 / 1e6}).to_string());
        node.leave().await;
        Ok(0)
    }
}

/// A state of this size.
fn pieces(size: usize) -> Vec<Bytes> {
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let mut pieces = vec![piece.clone(); size / PIECE];
    pieces.push(piece.slice(..size % PIECE));
    pieces
}
