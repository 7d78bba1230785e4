//! `bench join`: how long it takes until processes that start at the same instant are one ranked group.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use clap::{Args, ValueEnum};
use membership::clock::now_ns;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

use crate::cli::{
    Failure, Outcome, complain, events, exit,
    proc::{Proc, Said},
    scratch::Scratch,
};

/// Starts processes at the same instant, again and again: with a static list and expect=N, with a directory or by multicast
/// and alone-after=1s. Measured until the last one sees all of them, beside the floor of this machine: as many processes that
/// do nothing. Then one more process joins those that are there, and leaves again, over and over, beside the floor of one
/// that does nothing. Exit code 1 if they ever end in two views.
#[derive(Args)]
pub(crate) struct Join {
    /// How often, each way.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = crate::cli::at_least_one)]
    times: usize,
    /// How many processes.
    #[arg(long, value_name = "N", default_value_t = 20)]
    nodes: usize,
    /// How they find each other.
    #[arg(long, value_name = "HOW,…", value_delimiter = ',', default_values = ["static", "file"])]
    by: Vec<How>,
    /// They are plain members, without messages.
    #[arg(long)]
    plain: bool,
    /// How often one more process joins when all are there, each time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    newcomers: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    Static,
    File,
    Multicast,
}

/// What one start came to.
struct Came {
    /// Milliseconds from the first start until the last process saw all.
    ms: f64,
    /// How many views of the group there were.
    views: usize,
    /// How long all of this took with processes that do nothing.
    floor_ms: f64,
    /// Milliseconds from the start of one more process until it saw itself among the others.
    newcomers_ms: Vec<f64>,
    /// How long a process took that does nothing, each time before that.
    newcomers_floor_ms: Vec<f64>,
}

const PATIENCE: Duration = Duration::from_secs(60);
/// Between one that came and the next.
const CALM: Duration = Duration::from_millis(300);

impl Join {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        if !(2..=200).contains(&self.nodes) {
            return Err(Failure::usage(format!("--nodes {}: give 2 to 200", self.nodes)));
        }
        let mut failed = 0;
        for how in &self.by {
            let name = super::name_of(how);
            let (mut times, mut floors, mut views) = (Vec::new(), Vec::new(), Vec::new());
            let (mut newcomers, mut newcomers_floors) = (Vec::new(), Vec::new());
            for n in 0..self.times {
                let dir = Scratch::new("bench")?;
                match self.once(*how, dir.path()).await {
                    Ok(came) => {
                        times.push(came.ms);
                        floors.push(came.floor_ms);
                        views.push(came.views);
                        newcomers.extend(came.newcomers_ms);
                        newcomers_floors.extend(came.newcomers_floor_ms);
                    }
                    Err(why) => {
                        complain(format_args!("{name}, {n}: {why}"));
                        failed += 1;
                    }
                }
            }
            super::print(&format!("{} processes that do nothing", self.nodes), floors, json);
            super::print(&format!("{} at once, {name}", self.nodes), times, json);
            super::print("one process that does nothing", newcomers_floors, json);
            super::print(&format!("one more than {}, {name}", self.nodes), newcomers, json);
            views.sort_unstable();
            if let (Some(least), Some(most)) = (views.first(), views.last()) {
                let object = json!({"event": "views", "what": name, "least": least, "most": most});
                let text = format!("views until all were in one: {least} to {most}");
                events::line(&if json { object.to_string() } else { text });
            }
        }
        let summary = json!({"event": "summary", "failed": failed});
        events::line(&if json { summary.to_string() } else { format!("{failed} starts failed") });
        Ok(if failed > 0 { exit::FAILED } else { 0 })
    }

    /// Starts so many processes that do nothing, and waits until they have ended.
    async fn floor(processes: usize) -> Result<f64, Failure> {
        let exe = std::env::current_exe()?;
        let started = now_ns();
        let mut children = Vec::new();
        for _ in 0..processes {
            children.push(Command::new(&exe).arg("--version").stdout(Stdio::null()).spawn()?);
        }
        for child in &mut children {
            child.wait().await?;
        }
        Ok((now_ns() - started) as f64 / 1e6)
    }

    async fn once(&self, how: How, dir: &Path) -> Result<Came, Failure> {
        let floor_ms = Self::floor(self.nodes).await?;
        let (said, mut heard) = mpsc::channel(4096);
        let ports: Vec<String> = (0..self.nodes).map(|_| ports::nobody().to_string()).collect();
        let rendezvous = match how {
            How::Static => format!("static:{}", ports.join(",")),
            How::File => format!("file:{}", dir.display()),
            How::Multicast => format!("multicast:239.255.70.9:{}", ports::free_port()),
        };
        let bootstrap =
            if how == How::Static { format!("expect={}", self.nodes) } else { "alone-after=1s".into() };
        let started = now_ns();
        let mut procs = Vec::new();
        let start = |who: usize, port: &str, bootstrap: &str| {
            let name = format!("n{who}");
            let args = ["join", "g", "--no-stdin", "--name", &name, "--listen", port];
            let more = ["--rendezvous", &rendezvous, "--bootstrap", bootstrap];
            let plain = self.plain.then_some("--plain");
            let args: Vec<String> = args.into_iter().chain(more).chain(plain).map(Into::into).collect();
            Proc::start(&args, who, said.clone())
        };
        for (who, port) in ports.iter().enumerate() {
            procs.push(start(who, port, &bootstrap)?);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut complete: BTreeMap<usize, (Value, u64)> = BTreeMap::new();
        let mut lists: BTreeMap<u64, Value> = BTreeMap::new();
        let agree = |complete: &BTreeMap<usize, (Value, u64)>| {
            let mut views = complete.values().map(|(members, _)| members);
            let first = views.next();
            views.all(|members| Some(members) == first)
        };
        // Who goes and comes back on the way comes back as a junior: then all see all in two orders, for a while.
        while complete.len() < self.nodes || !agree(&complete) {
            let slow = || {
                let in_one = if agree(&complete) { "" } else { ", not all in one view" };
                Failure::new(exit::FAILED, format!("{} of {} see all{in_one}", complete.len(), self.nodes))
            };
            let Said { who, event } =
                timeout_at(deadline, heard.recv()).await.map_err(|_| slow())?.ok_or_else(slow)?;
            if event["event"] == "view" {
                let (id, members) = (event["view"].as_u64().unwrap_or_default(), &event["members"]);
                if lists.entry(id).or_insert_with(|| members.clone()) != members {
                    return Err(Failure::new(exit::FAILED, format!("view {id} of the group has two lists")));
                }
            }
            if event["event"] == "view" && event["members"].as_array().map(Vec::len) == Some(self.nodes) {
                let at = event["at_ns"].as_u64().unwrap_or_default();
                complete.insert(who, (event["members"].clone(), at));
            }
        }
        let last = complete.values().map(|(_, at)| *at).max().unwrap_or(started);
        let (mut newcomers_ms, mut newcomers_floor_ms) = (Vec::new(), Vec::new());
        for who in (self.nodes..).take(self.newcomers) {
            // What follows from the last change is over.
            sleep(CALM).await;
            newcomers_floor_ms.push(Self::floor(1).await?);
            let (started, port) = (now_ns(), ports::nobody().to_string());
            // It is not one of those that a static list names as founders.
            let mut newcomer = start(who, &port, "join")?;
            let deadline = Instant::now() + PATIENCE;
            let slow = || Failure::new(exit::FAILED, "one more process does not get in");
            let at = loop {
                let said = timeout_at(deadline, heard.recv()).await.map_err(|_| slow())?.ok_or_else(slow)?;
                let event = said.event;
                if said.who == who
                    && event["event"] == "view"
                    && event["members"].as_array().map(Vec::len) == Some(self.nodes + 1)
                {
                    break event["at_ns"].as_u64().unwrap_or_default();
                }
            };
            newcomers_ms.push(at.saturating_sub(started) as f64 / 1e6);
            newcomer.signal(Signal::TERM);
            newcomer.gone().await?;
        }
        let ms = last.saturating_sub(started) as f64 / 1e6;
        Ok(Came { ms, views: lists.len(), floor_ms, newcomers_ms, newcomers_floor_ms })
    }
}
