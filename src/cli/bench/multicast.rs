//! `bench multicast`: messages between the members of a group, each a process of its own.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use membership::{Class, Delivered, Deliveries, Membership, Node, clock::now_ns};
use rustix::{
    process::Signal,
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::cli::{
    Failure, Outcome, complain, events, exit,
    flags::Time,
    node::Stops,
    proc::{Proc, Said},
    scratch::Scratch,
};

/// Messages of one group, whose members are processes of their own: how many a second, what CPU time each costs all processes
/// together, and how long it takes from sending to the sender's own delivery.
///
/// One at a time for the latency, then with a window, from one sender (that does not lead) and from all.
#[derive(Args)]
pub(crate) struct Multicast {
    /// How many members.
    #[arg(long, value_name = "N", default_value_t = 3)]
    members: usize,
    /// Bytes of a message; may be given several times.
    #[arg(long = "size", value_name = "BYTES", default_values_t = [64, 1024, 16 << 10])]
    sizes: Vec<usize>,
    /// How many of its own messages a sender has under way.
    #[arg(long, value_name = "N", default_value_t = 100)]
    window: usize,
    /// The class of the messages.
    #[arg(long, value_enum, default_value_t = Kind::Ordered)]
    class: Kind,
    /// How long each measurement takes.
    #[arg(long = "for", value_name = "DUR", default_value = "3s")]
    duration: Time,
    /// How often each is repeated; medians are printed.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::cli::at_least_one)]
    times: usize,
    /// The key of the members: what they say is sealed.
    #[arg(long, env = "PHALANX_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Meanwhile another process joins the group and goes again, over and over, by turns told to and killed: how long senders
    /// are blocked by each change, beside what two processes that do nothing else need to wake each other meanwhile.
    #[arg(long)]
    changes: bool,
}

/// One member of the group of `bench multicast`.
#[derive(Args)]
pub(crate) struct MulticastMember {
    #[arg(long)]
    name: String,
    #[arg(long)]
    rendezvous: membership::Rendezvous,
    #[arg(long)]
    members: usize,
    #[arg(long)]
    size: usize,
    /// 0 for a member that only listens.
    #[arg(long)]
    window: usize,
    #[arg(long, value_enum)]
    class: Kind,
    #[arg(long)]
    duration: Time,
    /// Takes what is delivered until it is told to end.
    #[arg(long)]
    guest: bool,
    #[arg(long, env = "PHALANX_SECRET_FILE")]
    secret_file: Option<PathBuf>,
}

/// How messages are delivered.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// In the order of their sender.
    Fifo,
    /// In one order for all.
    Ordered,
    /// In one order for all, once all hold them.
    Safe,
}

impl Kind {
    fn class(self) -> Class {
        match self {
            Self::Fifo => Class::Fifo,
            Self::Ordered => Class::Ordered,
            Self::Safe => Class::Safe,
        }
    }
}

/// What one run gave.
struct Measured {
    per_second: f64,
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
    /// How long each member was blocked when somebody came, and when somebody went, in milliseconds.
    blocked_ms: [Vec<f64>; 2],
    /// How long two idle threads took to wake each other meanwhile, there and back, in milliseconds.
    woken_ms: Vec<f64>,
}

/// How long members may take to find each other, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// What comes before counting: connections get warm.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long whoever comes and goes stays.
const STAY: Duration = Duration::from_millis(100);
/// How often two idle threads wake each other.
const IDLE: Duration = Duration::from_millis(5);
/// What members report of how long they were blocked, and how that is called.
const BLOCKED: [(&str, &str); 2] = [("came_ms", "comes"), ("went_ms", "goes")];

impl Multicast {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        if !(2..=64).contains(&self.members) {
            return Err(Failure::usage(format!("--members {}: give 2 to 64", self.members)));
        }
        for size in &self.sizes {
            let floor = tokio::task::spawn_blocking({
                let size = *size;
                move || floor(size)
            });
            let floor = floor.await.context("measuring the floor")??;
            let object = json!({"event": "floor", "size": size, "p50_us": floor.0, "p99_us": floor.1});
            let text = format!(
                "{size} B, floor: there and back over a TCP connection, p50 {:.0} us, p99 {:.0} us",
                floor.0, floor.1
            );
            events::line(&if json { object.to_string() } else { text });
            for (senders, window) in [(1, 1), (1, self.window), (self.members, self.window)] {
                let mut runs = Vec::new();
                for _ in 0..self.times {
                    let dir = Scratch::new("bench")?;
                    runs.push(self.once(*size, senders, window, dir.path()).await?);
                }
                let median = |of: fn(&Measured) -> f64| super::median(&runs, of);
                let (rate, cpu) = (median(|m| m.per_second), median(|m| m.cpu_us));
                let (p50, p99) = (median(|m| m.p50_us), median(|m| m.p99_us));
                let object = json!({
                    "event": "multicast", "size": size, "senders": senders, "window": window, "members": self.members,
                    "class": self.class.class().as_str(), "per_second": rate.round(), "cpu_us_per_message": cpu,
                    "sealed": self.secret_file.is_some(), "latency_us_p50": p50, "latency_us_p99": p99, "runs": runs.len(),
                });
                let text = format!(
                    "{size} B, {senders} of {} send, {window} under way: {:.1} thousand/s, {cpu:.2} us of CPU a message in all \
                     processes, latency p50 {p50:.0} us, p99 {p99:.0} us (medians of {} runs)",
                    self.members,
                    rate / 1e3,
                    runs.len()
                );
                events::line(&if json { object.to_string() } else { text });
                for (n, (_, change)) in BLOCKED.iter().enumerate() {
                    let blocked = runs.iter().flat_map(|run| run.blocked_ms[n].iter().copied()).collect();
                    super::print(&format!("senders blocked when a member {change}"), blocked, json);
                }
                let all = runs.iter().flat_map(|run| run.blocked_ms.iter().flatten().copied()).collect();
                super::print("senders blocked by a change of the view", all, json);
                let woken = runs.iter().flat_map(|run| run.woken_ms.iter().copied()).collect();
                super::print("floor: two idle threads wake each other, there and back", woken, json);
            }
        }
        Ok(0)
    }

    /// What a member is started with.
    fn member(&self, name: &str, size: usize, window: usize, dir: &Path) -> Vec<String> {
        let mut args = vec![
            "bench".to_owned(),
            "multicast-member".to_owned(),
            format!("--name={name}"),
            format!("--rendezvous=file:{}", dir.display()),
            format!("--members={}", self.members),
            format!("--size={size}"),
            format!("--window={window}"),
            format!("--class={}", self.class.class().as_str()),
            format!("--duration={}ms", self.duration.0.as_millis()),
        ];
        args.extend(self.secret_file.iter().map(|file| format!("--secret-file={}", file.display())));
        args
    }

    async fn once(
        &self,
        size: usize,
        senders: usize,
        window: usize,
        dir: &Path,
    ) -> Result<Measured, Failure> {
        let (said, mut heard) = mpsc::channel(4096);
        let mut procs = Vec::new();
        for who in 0..self.members {
            let window = if who + senders >= self.members { window } else { 0 };
            let args = self.member(&format!("n{who}"), size, window, dir);
            procs.push(Proc::start(&args, who, said.clone())?);
            // In this order they join: the last ones do not lead.
            let ready = async {
                while let Some(Said { event, .. }) = heard.recv().await {
                    if event["event"] == "joined" {
                        return true;
                    }
                }
                false
            };
            if !timeout(PATIENCE, ready).await.unwrap_or(false) {
                return Err(Failure::new(exit::FAILED, format!("member {who} did not join")));
            }
        }
        let _changes = self.changes.then(|| Changes::begin(self.member("guest", size, 0, dir)));
        let idle = self.changes.then(Idle::begin).transpose()?;
        let mut results: Vec<Value> = Vec::new();
        let deadline = Instant::now() + self.duration.0 + PATIENCE;
        while results.len() < self.members {
            let missing = || Failure::new(exit::FAILED, "a member gave no result".to_owned());
            let said =
                timeout_at(deadline, heard.recv()).await.map_err(|_| missing())?.ok_or_else(missing)?;
            if said.event["event"] == "measured" {
                results.push(said.event);
            }
        }
        for proc in &mut procs {
            proc.gone().await?;
        }
        let woken_ms = match idle {
            Some(idle) => {
                tokio::task::spawn_blocking(|| idle.end()).await.context("measuring the floor")??
            }
            None => Vec::new(),
        };
        let number = |key: &'static str| results.iter().filter_map(move |r| r[key].as_f64());
        let per_second: f64 = number("per_second").sum();
        let delivered = number("delivered").fold(0.0, f64::max).max(1.0);
        let worst = |key| number(key).fold(0.0, f64::max);
        Ok(Measured {
            per_second,
            cpu_us: number("cpu_us").sum::<f64>() / delivered,
            p50_us: worst("p50_us"),
            p99_us: worst("p99_us"),
            blocked_ms: BLOCKED.map(|(key, _)| {
                let blocked = results.iter().filter_map(|r| r[key].as_array());
                blocked.flatten().filter_map(Value::as_f64).collect()
            }),
            woken_ms,
        })
    }
}

/// A process that joins the group and goes again, over and over, until this is dropped.
struct Changes(tokio::task::JoinHandle<()>);

impl Drop for Changes {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Changes {
    /// `args`: what a member is started with.
    fn begin(mut args: Vec<String>) -> Self {
        args.push("--guest".to_owned());
        Self(tokio::spawn(async move {
            for n in 0.. {
                if let Err(error) = come_and_go(n, &args).await {
                    complain(format_args!("who comes and goes: {error}"));
                    sleep(STAY).await;
                }
            }
        }))
    }
}

/// Killed every other time.
async fn come_and_go(n: usize, args: &[String]) -> Result<(), Failure> {
    let (said, mut heard) = mpsc::channel(64);
    let mut guest = Proc::start(args, n, said)?;
    let comes = async {
        while let Some(Said { event, .. }) = heard.recv().await {
            if event["event"] == "joined" {
                return;
            }
        }
    };
    timeout(PATIENCE, comes)
        .await
        .map_err(|_| Failure::new(exit::FAILED, format!("no view in {PATIENCE:?}")))?;
    sleep(STAY).await;
    guest.signal(if n.is_multiple_of(2) { Signal::TERM } else { Signal::KILL });
    guest.gone().await
}

/// Two threads that do nothing but wake each other now and then: what the machine makes of that while others keep it busy.
struct Idle {
    over: Arc<AtomicBool>,
    threads: [std::thread::JoinHandle<std::io::Result<Vec<f64>>>; 2],
}

impl Idle {
    fn begin() -> Result<Self, Failure> {
        let (mut near, mut far) = pair()?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let echo = std::thread::spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() {
                far.write_all(&byte)?;
            }
            Ok(Vec::new())
        });
        let asks = std::thread::spawn(move || {
            let mut times = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                std::thread::sleep(IDLE);
                let begin = now_ns();
                near.write_all(&[1])?;
                near.read_exact(&mut [0])?;
                times.push((now_ns() - begin) as f64 / 1e6);
            }
            Ok(times)
        });
        Ok(Self { over, threads: [asks, echo] })
    }

    /// Milliseconds from waking the other one to being woken by it.
    fn end(self) -> Result<Vec<f64>, Failure> {
        self.over.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for thread in self.threads {
            let ended = thread.join().map_err(|_| Failure::new(exit::FAILED, "a thread ended".to_owned()))?;
            times.extend(ended?);
        }
        Ok(times)
    }
}

fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

impl MulticastMember {
    pub(crate) async fn run(self) -> Outcome {
        let mut builder = Node::builder().name(&self.name).rendezvous(self.rendezvous.clone());
        if let Some(file) = &self.secret_file {
            builder = builder.secret_file(file);
        }
        let node = builder.start().await.map_err(crate::cli::flags::start_failure)?;
        let (group, mut deliveries) =
            node.join_multicast("bench", None).await.map_err(|e| Failure::usage(e.to_string()))?;
        if self.guest {
            return be_guest(&node, &mut deliveries).await;
        }
        let mut told = false;
        let mut members;
        loop {
            match deliveries.next().await {
                Some(Delivered::View { view, .. }) => {
                    if !std::mem::replace(&mut told, true) {
                        events::line(&json!({"event": "joined"}).to_string());
                    }
                    members = view.members.len();
                    if members >= self.members {
                        break;
                    }
                }
                Some(_) => {}
                None => return Err(Failure::new(exit::FAILED, "the node stopped")),
            }
        }
        sleep(Duration::from_millis(500)).await;
        let result = self.measure(&group, &mut deliveries, members).await?;
        events::line(&result.to_string());
        // Others may still be measuring: whoever goes early would change their view.
        let rest = async { while deliveries.next().await.is_some() {} };
        let _over = timeout(Duration::from_millis(500), rest).await;
        node.leave().await;
        Ok(0)
    }

    /// Sends with a window, and takes what is delivered.
    async fn measure(
        &self,
        group: &Membership,
        deliveries: &mut Deliveries,
        mut members: usize,
    ) -> Result<Value, Failure> {
        let me = group.node().id();
        let payload = bytes(self.size);
        let mut sent: VecDeque<u64> = VecDeque::new();
        let mut latencies: Vec<u64> = Vec::new();
        let begin = Instant::now() + WARM_UP;
        let end = begin + self.duration.0;
        let (mut own, mut delivered) = (0_u64, 0_u64);
        let (mut cpu, mut blocked, mut blocked_ms) = (None, None, [Vec::new(), Vec::new()]);
        loop {
            let now = Instant::now();
            if now >= end {
                break;
            }
            if cpu.is_none() && now >= begin {
                (own, delivered) = (0, 0);
                latencies.clear();
                cpu = Some(cpu_us());
            }
            while sent.len() < self.window {
                sent.push_back(now_ns());
                let sending = group.multicast(self.class.class(), payload.clone());
                sending.await.map_err(|e| Failure::new(exit::FAILED, e.to_string()))?;
            }
            let Ok(next) = timeout_at(end, deliveries.next()).await else { break };
            let mut next = next;
            while let Some(event) = next {
                match event {
                    Delivered::Message(message) => {
                        delivered += 1;
                        if message.from == me {
                            own += 1;
                            latencies.extend(sent.pop_front().map(|at| now_ns() - at));
                        }
                    }
                    Delivered::Block => blocked = Some(now_ns()),
                    Delivered::View { view, .. } => {
                        let before = std::mem::replace(&mut members, view.members.len());
                        let times = &mut blocked_ms[usize::from(members < before)];
                        times.extend(blocked.take().map(|at| (now_ns() - at) as f64 / 1e6));
                    }
                    _ => {}
                }
                next = deliveries.try_next();
            }
        }
        let used = cpu_us() - cpu.unwrap_or_default();
        latencies.sort_unstable();
        let at = |q: f64| {
            let last = latencies.len().checked_sub(1)?;
            latencies.get((last as f64 * q).round() as usize).map(|ns| *ns as f64 / 1e3)
        };
        let mut result = json!({
            "event": "measured",
            "per_second": own as f64 / self.duration.0.as_secs_f64(),
            "delivered": delivered,
            "cpu_us": used,
            "p50_us": at(0.5),
            "p99_us": at(0.99),
        });
        for ((key, _), times) in BLOCKED.iter().zip(blocked_ms) {
            result[*key] = times.into();
        }
        Ok(result)
    }
}

/// Takes what is delivered until it is told to end.
async fn be_guest(node: &Node, deliveries: &mut Deliveries) -> Outcome {
    let stops = Stops::new()?;
    let taking = async {
        let mut told = false;
        while let Some(next) = deliveries.next().await {
            if matches!(next, Delivered::View { .. }) && !std::mem::replace(&mut told, true) {
                events::line(&json!({"event": "joined"}).to_string());
            }
        }
        Ok(())
    };
    stops.unless(taking).await?;
    node.leave().await;
    Ok(0)
}

fn bytes(size: usize) -> Vec<u8> {
    vec![b'x'; size]
}

/// The two ends of a connection.
fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// Microseconds from sending so many bytes to having them back, over a connection between two threads: median and p99.
pub(super) fn floor(size: usize) -> Result<(f64, f64), Failure> {
    let (mut near, mut far) = pair()?;
    let echo = std::thread::spawn(move || {
        let mut buffer = vec![0; size];
        while far.read_exact(&mut buffer).is_ok() && far.write_all(&buffer).is_ok() {}
    });
    let mut buffer = vec![1; size];
    let mut times = Vec::new();
    for _ in 0..2000 {
        let begin = now_ns();
        near.write_all(&buffer)?;
        near.read_exact(&mut buffer)?;
        times.push((now_ns() - begin) as f64 / 1e3);
    }
    drop(near);
    echo.join().map_err(|_| Failure::new(exit::FAILED, "the echo ended"))?;
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}
