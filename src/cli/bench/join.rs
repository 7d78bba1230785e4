//! `bench join`: how long it takes until processes that start at the same instant are one ranked group.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::Context as _;
use clap::Args;
use membership::clock::now_ns;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::cli::{
    Failure, Outcome,
    demo::free_port,
    events, exit,
    proc::{Proc, Said},
};

/// Starts processes at the same instant, again and again, in both ways to begin: a static list with expect=N, and a
/// directory with alone-after=1s. Measured until the last one sees all of them. Exit code 1 if they ever end in two views.
#[derive(Args)]
pub(crate) struct Join {
    /// How often, each way.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = crate::cli::at_least_one)]
    times: usize,
    /// How many processes.
    #[arg(long, value_name = "N", default_value_t = 20)]
    nodes: usize,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Join {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        if !(2..=100).contains(&self.nodes) {
            return Err(Failure::usage(format!("--nodes {}: give 2 to 100", self.nodes)));
        }
        let mut failed = 0;
        for how in ["static", "file"] {
            let mut times = Vec::new();
            for n in 0..self.times {
                let dir = std::env::temp_dir().join(format!("phalanx-bench-{}-{how}{n}", std::process::id()));
                fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
                match self.once(how == "static", &dir).await {
                    Ok(ms) => times.push(ms),
                    Err(why) => {
                        eprintln!("phalanx: {how}, {n}: {why}");
                        failed += 1;
                    }
                }
                if let Err(error) = fs::remove_dir_all(&dir) {
                    eprintln!("phalanx: {} stays behind: {error}", dir.display());
                }
            }
            super::print(&format!("{} at once, {how}", self.nodes), times, json);
        }
        let summary = json!({"event": "summary", "failed": failed});
        events::line(&if json { summary.to_string() } else { format!("{failed} starts failed") });
        Ok(if failed > 0 { exit::FAILED } else { 0 })
    }

    /// Milliseconds from the first start until the last process sees all.
    async fn once(&self, by_list: bool, dir: &Path) -> Result<f64, Failure> {
        let (said, mut heard) = mpsc::channel(4096);
        let mut ports = Vec::new();
        for _ in 0..self.nodes {
            ports.push(format!("127.0.0.1:{}", free_port()?));
        }
        let rendezvous =
            if by_list { format!("static:{}", ports.join(",")) } else { format!("file:{}", dir.display()) };
        let bootstrap = if by_list { format!("expect={}", self.nodes) } else { "alone-after=1s".into() };
        let started = now_ns();
        let mut procs = Vec::new();
        for (who, port) in ports.iter().enumerate() {
            let name = format!("n{who}");
            let args = ["join", "g", "--no-stdin", "--name", &name, "--listen", port];
            let more = ["--rendezvous", &rendezvous, "--bootstrap", &bootstrap];
            let args: Vec<String> = args.into_iter().chain(more).map(Into::into).collect();
            procs.push(Proc::start(&args, who, said.clone())?);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut complete: BTreeMap<usize, (Value, u64)> = BTreeMap::new();
        while complete.len() < self.nodes {
            let slow = || Failure::new(exit::FAILED, format!("{} of {} see all", complete.len(), self.nodes));
            let Said { who, event } =
                timeout_at(deadline, heard.recv()).await.map_err(|_| slow())?.ok_or_else(slow)?;
            if event["event"] == "view" && event["members"].as_array().map(Vec::len) == Some(self.nodes) {
                let at = event["at_ns"].as_u64().unwrap_or_default();
                complete.insert(who, (event["members"].clone(), at));
            }
        }
        let views: Vec<&Value> = complete.values().map(|(members, _)| members).collect();
        if views.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Failure::new(exit::FAILED, "two views of the same group"));
        }
        let last = complete.values().map(|(_, at)| *at).max().unwrap_or(started);
        Ok(last.saturating_sub(started) as f64 / 1e6)
    }
}
