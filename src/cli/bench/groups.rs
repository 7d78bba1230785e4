//! `bench groups`: what it costs to be in many groups: joining them all, and taking all of them over from a killed leader.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use clap::Args;
use membership::{GroupName, Node, Rendezvous, What, clock::now_ns};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::cli::{
    Failure, Outcome, events, exit,
    proc::{Proc, Said},
};

/// Two processes, each a member of the same groups: how long until the second is in all of them, and from SIGKILL of the first,
/// which leads them all, until the second leads the last one. Beside it, what a group costs in memory.
#[derive(Args)]
pub(crate) struct Groups {
    /// How many groups; may be given several times.
    #[arg(long = "groups", value_name = "N", default_values_t = [1, 10, 100, 1000, 10_000])]
    counts: Vec<usize>,
    /// How often each; medians are printed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::cli::at_least_one)]
    times: usize,
}

/// One process of `bench groups`.
#[derive(Args)]
pub(crate) struct GroupsMember {
    #[arg(long)]
    name: String,
    #[arg(long)]
    rendezvous: Rendezvous,
    #[arg(long)]
    groups: usize,
    /// How many members each group has in the end.
    #[arg(long)]
    members: usize,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// What one run gave, in milliseconds and bytes.
struct Measured {
    join: f64,
    takeover: f64,
    bytes: f64,
}

impl Groups {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        for count in &self.counts {
            if !(1..=100_000).contains(count) {
                return Err(Failure::usage(format!("--groups {count}: give 1 to 100000")));
            }
            let mut runs = Vec::new();
            for n in 0..self.times {
                let dir =
                    std::env::temp_dir().join(format!("phalanx-bench-{}-g{count}-{n}", std::process::id()));
                std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
                let run = once(*count, &dir).await;
                if let Err(error) = std::fs::remove_dir_all(&dir) {
                    eprintln!("phalanx: {} stays behind: {error}", dir.display());
                }
                runs.push(run?);
            }
            let median = |of: fn(&Measured) -> f64| super::median(&runs, of);
            let (join, takeover, bytes) = (median(|m| m.join), median(|m| m.takeover), median(|m| m.bytes));
            let object = json!({
                "event": "groups", "groups": count, "join_ms": join, "takeover_ms": takeover,
                "bytes_per_group": bytes.round(), "runs": runs.len(),
            });
            let text = format!(
                "{count} groups: joined in {join:.2} ms, the last one taken over after {takeover:.2} ms, {bytes:.0} bytes each \
                 (medians of {} runs)",
                runs.len()
            );
            events::line(&if json { object.to_string() } else { text });
        }
        Ok(0)
    }
}

async fn once(groups: usize, dir: &std::path::Path) -> Result<Measured, Failure> {
    let (said, mut heard) = mpsc::channel(4096);
    let start = |who: usize| {
        let args = [
            "bench".to_owned(),
            "groups-member".to_owned(),
            format!("--name=n{who}"),
            format!("--rendezvous=file:{}", dir.display()),
            format!("--groups={groups}"),
            format!("--members={}", who + 1),
        ];
        Proc::start(&args, who, said.clone())
    };
    let mut first = start(0)?;
    until(&mut heard, 0, "led").await?;
    let mut second = start(1)?;
    let joined = until(&mut heard, 1, "joined").await?;
    // The core fills, and leases are renewed.
    sleep(Duration::from_millis(2500)).await;
    let killed = now_ns();
    first.signal(Signal::KILL);
    first.gone().await?;
    let led = until(&mut heard, 1, "led").await?;
    second.signal(Signal::TERM);
    if timeout(PATIENCE, second.gone()).await.is_err() {
        second.signal(Signal::KILL);
    }
    let at = led["at_ns"].as_u64().unwrap_or_default();
    Ok(Measured {
        join: joined["took_ms"].as_f64().unwrap_or_default(),
        takeover: at.saturating_sub(killed) as f64 / 1e6,
        bytes: joined["bytes"].as_f64().unwrap_or_default() / groups as f64,
    })
}

async fn until(heard: &mut mpsc::Receiver<Said>, who: usize, what: &str) -> Result<Value, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let slow =
        || Failure::new(exit::FAILED, format!("member {who} has not {what} all groups in {PATIENCE:?}"));
    loop {
        let said = timeout_at(deadline, heard.recv()).await.map_err(|_| slow())?.ok_or_else(slow)?;
        if said.who == who && said.event["event"] == what {
            return Ok(said.event);
        }
    }
}

/// Bytes of memory of this process that are in use.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    pages * 4096
}

impl GroupsMember {
    pub(crate) async fn run(self) -> Outcome {
        let node = Node::builder().name(&self.name).rendezvous(self.rendezvous.clone()).start().await;
        let node = node.map_err(crate::cli::flags::start_failure)?;
        let mut stops = crate::cli::join::Stops::new()?;
        node.joined().await.map_err(|e| Failure::new(exit::FAILED, e.to_string()))?;
        sleep(Duration::from_millis(200)).await;
        let mut told = node.all_events();
        let before = resident();
        let began = now_ns();
        let mut memberships = Vec::with_capacity(self.groups);
        let (mut complete, mut led): (BTreeSet<GroupName>, BTreeSet<GroupName>) = Default::default();
        let joining = async {
            for n in 0..self.groups {
                memberships.push(node.join(&format!("g{n}"), None).await);
            }
            std::future::pending::<()>().await;
        };
        let following = async {
            while let Some(event) = told.next().await {
                let Some(group) = event.group else { continue };
                let is_complete =
                    |what: &What| matches!(what, What::View(v) if v.members.len() == self.members);
                if is_complete(&event.what) && complete.insert(group.clone()) && complete.len() == self.groups
                {
                    let took = now_ns().saturating_sub(began) as f64 / 1e6;
                    let bytes = resident().saturating_sub(before);
                    let object = json!({"event": "joined", "took_ms": took, "bytes": bytes});
                    events::line(&object.to_string());
                }
                let leads = matches!(event.what, What::Leading { .. });
                if leads && led.insert(group) && led.len() == self.groups {
                    events::line(&json!({"event": "led", "at_ns": now_ns()}).to_string());
                }
            }
        };
        tokio::select! {
            () = joining => {}
            () = following => {}
            () = stops.next() => {}
        }
        node.leave().await;
        Ok(0)
    }
}
