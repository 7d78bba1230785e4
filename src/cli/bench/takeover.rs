//! `bench takeover`: how long a group is without a leader.
//!
//! Five processes on this host are members of one group. Again and again its leader is killed, told to leave, or stopped;
//! what counts is the time from the signal until the next leader says `leading`. A fresh process takes the place of each
//! that is gone. No two reigns may overlap.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use membership::clock::now_ns;
use rustix::process::Signal;
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use crate::cli::{
    Failure, Outcome, complain, events, exit,
    flags::{Size, Time},
    proc::{Proc, Said},
    scratch::Scratch,
};

/// Times from a leader's end to the next one's beginning, beside the floor of this machine: from SIGKILL to the end of
/// the victim's TCP connections.
#[derive(Args)]
pub(crate) struct Takeover {
    /// How often the leader is killed.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = crate::cli::at_least_one)]
    times: usize,
    /// How often it is told to leave [default: a third of --times].
    #[arg(long, value_name = "N")]
    leaves: Option<usize>,
    /// How often it is stopped and continued, for 0.5, 1, 3 and 10 leases in turn [default: a thirtieth of --times].
    #[arg(long, value_name = "N")]
    stops: Option<usize>,
    /// How many members the group has.
    #[arg(long, value_name = "N", default_value_t = 5)]
    nodes: usize,
    /// The members send each other messages: the next one leads only once the last view is closed behind it.
    #[arg(long)]
    multicast: bool,
    /// The lease; 20ms to 60s.
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = lease)]
    lease: String,
    /// Each member writes a trace as well, which costs time.
    #[arg(long)]
    traced: bool,
    /// How much memory each member holds, and uses for nothing: the kernel takes 70 ms to free a GiB of a dead process.
    #[arg(long, value_name = "SIZE", default_value = "0B", value_parser = ballast)]
    ballast: Size,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A lease that nodes will take, as it was written.
fn lease(text: &str) -> Result<String, String> {
    let Time(lease) = text.parse()?;
    let fits = (Duration::from_millis(20)..=Duration::from_secs(60)).contains(&lease);
    if fits { Ok(text.into()) } else { Err("give 20ms to 60s".into()) }
}

/// So much memory, and no more than makes sense.
fn ballast(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.0 <= 64 << 30 {
        Ok(size)
    } else {
        Err("give at most 64GiB, and mind that each member takes it".into())
    }
}

/// A reign as its leader told it, or as it was cut short by a kill.
struct Reign {
    who: usize,
    from: u64,
    until: Option<u64>,
}

struct Fleet {
    dir: PathBuf,
    lease: String,
    ballast: Size,
    multicast: bool,
    traced: bool,
    said: mpsc::Sender<Said>,
    heard: mpsc::Receiver<Said>,
    procs: BTreeMap<usize, Proc>,
    next: usize,
    /// How many members each process sees.
    sees: BTreeMap<usize, usize>,
    reigns: Vec<Reign>,
    /// The first event of the group after a process was continued.
    awaiting_first: Option<usize>,
    wrong: Vec<String>,
}

impl Takeover {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        if !(2..=50).contains(&self.nodes) {
            return Err(Failure::usage(format!("--nodes {}: give 2 to 50", self.nodes)));
        }
        let dir = Scratch::new("bench")?;
        self.measure(dir.path(), json).await
    }

    async fn measure(&self, dir: &std::path::Path, json: bool) -> Outcome {
        let floor = floor(self.times.clamp(5, 30), self.ballast).await?;
        let (said, heard) = mpsc::channel(4096);
        let mut fleet = Fleet {
            dir: dir.to_owned(),
            lease: self.lease.clone(),
            ballast: self.ballast,
            multicast: self.multicast,
            traced: self.traced,
            said,
            heard,
            procs: BTreeMap::new(),
            next: 0,
            sees: BTreeMap::new(),
            reigns: Vec::new(),
            awaiting_first: None,
            wrong: Vec::new(),
        };
        for _ in 0..self.nodes {
            fleet.start()?;
        }
        // A cluster that has just been founded has a core of one.
        fleet.until_complete(self.nodes).await?;
        sleep(Duration::from_secs(1)).await;
        let mut killed = Vec::new();
        for n in 0..self.times {
            fleet.until_complete(self.nodes).await?;
            killed.push(fleet.kill_leader().await?);
            fleet.start()?;
            if n % 50 == 49 {
                complain(format_args!("{} of {} kills", n + 1, self.times));
            }
        }
        let mut left = Vec::new();
        for _ in 0..self.leaves.unwrap_or(self.times.div_ceil(3)) {
            fleet.until_complete(self.nodes).await?;
            left.push(fleet.leader_leaves().await?);
            fleet.start()?;
        }
        let Time(lease) = self.lease.parse().map_err(Failure::usage)?;
        let (mut stopped, mut stops) = (Vec::new(), 0);
        for _ in 0..self.stops.unwrap_or(self.times.div_ceil(30)) {
            fleet.until_complete(self.nodes).await?;
            let pause = lease.mul_f64([0.5, 1.0, 3.0, 10.0][stops % 4]);
            stopped.extend(fleet.stop_leader(pause, lease).await?);
            stops += 1;
        }
        fleet.until_complete(self.nodes).await?;
        fleet.check_reigns();
        super::print("SIGKILL to the end of a connection", floor, json);
        super::print("SIGKILL of the leader to the next `leading`", killed, json);
        super::print("SIGTERM of the leader to the next `leading`", left, json);
        super::print("SIGSTOP of the leader to the next `leading`", stopped, json);
        let overlaps = fleet.wrong.len();
        for text in &fleet.wrong {
            complain(text);
        }
        let failovers = fleet.reigns.windows(2).filter(|pair| pair[0].who != pair[1].who).count();
        let summary = json!({
            "event": "summary", "overlaps": overlaps, "failovers": failovers, "stops": stops, "lease": self.lease,
            "nodes": self.nodes, "ballast": self.ballast.0,
        });
        let text = format!(
            "{overlaps} reigns overlapped in {failovers} failovers, with {stops} stops of 0.5 to 10 leases"
        );
        events::line(&if json { summary.to_string() } else { text });
        Ok(if overlaps > 0 { exit::FAILED } else { 0 })
    }
}

/// From SIGKILL of a server of that size to the end of a connection with it, on loopback, in milliseconds.
pub(super) async fn floor(times: usize, ballast: Size) -> Result<Vec<f64>, Failure> {
    let (said, _heard) = mpsc::channel(16);
    let mut measured = Vec::new();
    for _ in 0..times {
        let at = ports::nobody().to_string();
        let args = ["server", "--listen", &at, "--hold", &ballast.to_string()].map(Into::into);
        let mut server = Proc::start(&args, 0, said.clone())?;
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect(&at).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        };
        // Let the server take the connection first.
        sleep(Duration::from_millis(20)).await;
        let killed = now_ns();
        server.signal(Signal::KILL);
        let mut byte = [0];
        // An end and a reset are both the news that counts.
        let _ = stream.read(&mut byte).await;
        measured.push((now_ns() - killed) as f64 / 1e6);
        server.gone().await?;
    }
    Ok(measured)
}

impl Fleet {
    fn start(&mut self) -> Result<(), Failure> {
        let who = self.next;
        self.next += 1;
        let (name, rendezvous) = (format!("n{who}"), format!("file:{}", self.dir.display()));
        let args =
            ["join", "g", "--no-stdin", "--name", &name, "--rendezvous", &rendezvous, "--lease", &self.lease];
        let mut args: Vec<String> = args.map(Into::into).into();
        if !self.multicast {
            args.push("--plain".into());
        }
        args.extend(["--hold".into(), self.ballast.to_string()]);
        if self.traced {
            args.extend(["--trace".into(), self.dir.join(format!("n{who}.jsonl")).display().to_string()]);
        }
        self.procs.insert(who, Proc::start(&args, who, self.said.clone())?);
        Ok(())
    }

    fn leader(&self) -> Option<usize> {
        let reign = self.reigns.iter().rev().find(|reign| reign.until.is_none())?;
        Some(reign.who)
    }

    /// Takes one event in. Returns who began to lead with it, and when.
    async fn hear(&mut self, deadline: Instant) -> Result<Option<(usize, u64)>, Failure> {
        let slow = || Failure::new(exit::FAILED, format!("nothing happened for {PATIENCE:?}"));
        let said = timeout_at(deadline, self.heard.recv()).await.map_err(|_| slow())?.ok_or_else(slow)?;
        Ok(self.take_in(said))
    }

    fn take_in(&mut self, Said { who, event }: Said) -> Option<(usize, u64)> {
        let word = event["event"].as_str().unwrap_or_default();
        if self.awaiting_first == Some(who) && event["group"] == "g" {
            self.awaiting_first = None;
            if word != "not_leading" {
                self.wrong.push(format!("a leader that was continued said {word} before not_leading"));
            }
        }
        match word {
            "view" => {
                self.sees.insert(who, event["members"].as_array().map_or(0, Vec::len));
            }
            "removed" => {
                self.sees.remove(&who);
            }
            "leading" => {
                let from = event["at_ns"].as_u64().unwrap_or_default();
                self.reigns.push(Reign { who, from, until: None });
                return Some((who, from));
            }
            "not_leading" => self.close(who, event["until_ns"].as_u64().unwrap_or_default()),
            _ => {}
        }
        None
    }

    fn close(&mut self, who: usize, until: u64) {
        if let Some(reign) = self.reigns.iter_mut().rev().find(|r| r.who == who && r.until.is_none()) {
            reign.until = Some(until);
        }
    }

    /// Waits until every process sees the whole group, and one leads it.
    async fn until_complete(&mut self, nodes: usize) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let complete =
            |f: &Self| f.procs.keys().all(|who| f.sees.get(who) == Some(&nodes)) && f.leader().is_some();
        while !complete(self) || self.awaiting_first.is_some() {
            self.hear(deadline).await?;
        }
        // A moment of calm, so that what is measured is the takeover and not the joining.
        let calm = Instant::now() + Duration::from_millis(150);
        while Instant::now() < calm {
            if let Ok(Some(said)) = timeout_at(calm, self.heard.recv()).await {
                self.said.try_send(said)?;
                self.hear(deadline).await?;
            }
        }
        Ok(())
    }

    /// The next one that leads, other than `old`, and how long after `since` it began, in milliseconds.
    async fn next_leader(&mut self, old: usize, since: u64) -> Result<f64, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((who, at)) = self.hear(deadline).await?
                && who != old
            {
                return Ok(at.saturating_sub(since) as f64 / 1e6);
            }
        }
    }

    fn take_leader(&mut self) -> Result<(usize, Proc), Failure> {
        let none = || Failure::new(exit::FAILED, "nobody leads");
        let who = self.leader().ok_or_else(none)?;
        self.sees.remove(&who);
        Ok((who, self.procs.remove(&who).ok_or_else(none)?))
    }

    async fn kill_leader(&mut self) -> Result<f64, Failure> {
        let (who, mut proc) = self.take_leader()?;
        let at = now_ns();
        proc.signal(Signal::KILL);
        let took = self.next_leader(who, at).await?;
        self.close(who, at);
        proc.gone().await?;
        Ok(took)
    }

    async fn leader_leaves(&mut self) -> Result<f64, Failure> {
        let (who, mut proc) = self.take_leader()?;
        let at = now_ns();
        proc.signal(Signal::TERM);
        let took = self.next_leader(who, at).await?;
        proc.gone().await?;
        Ok(took)
    }

    /// Stops the leader for so long. How long it took until another one led, if that came about.
    async fn stop_leader(&mut self, pause: Duration, lease: Duration) -> Result<Option<f64>, Failure> {
        let who = self.leader().ok_or_else(|| Failure::new(exit::FAILED, "nobody leads"))?;
        let at = now_ns();
        let until = Instant::now() + pause;
        self.signal(who, Signal::STOP);
        let mut took = None;
        while let Ok(said) = timeout_at(until, self.heard.recv()).await {
            let none = || Failure::new(exit::FAILED, "we hold a sender ourselves");
            if let Some((next, from)) = self.take_in(said.ok_or_else(none)?)
                && next != who
                && took.is_none()
            {
                took = Some(from.saturating_sub(at) as f64 / 1e6);
            }
        }
        if took.is_some() {
            self.awaiting_first = Some(who);
            self.sees.remove(&who);
        }
        self.signal(who, Signal::CONT);
        // Who was on the point of taking over does so, or does not.
        let settled = Instant::now() + lease * 2;
        while let Ok(Some(said)) = timeout_at(settled, self.heard.recv()).await {
            self.take_in(said);
        }
        Ok(took)
    }

    fn signal(&self, who: usize, signal: Signal) {
        if let Some(proc) = self.procs.get(&who) {
            proc.signal(signal);
        }
    }

    fn check_reigns(&mut self) {
        self.reigns.sort_by_key(|reign| reign.from);
        for pair in self.reigns.windows(2) {
            if let [a, b] = pair
                && a.who != b.who
                && a.until.is_none_or(|until| until > b.from)
            {
                let until = a.until.map_or("for ever".into(), |ns| format!("until {ns}"));
                self.wrong.push(format!("n{} leads {until}, n{} from {}", a.who, b.who, b.from));
            }
        }
    }
}
