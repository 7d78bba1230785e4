//! `bench groups`: what it costs to be in many groups: joining them all, and taking all of them over from a killed leader.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use clap::Args;
use membership::{GroupName, Membership, Node, Rendezvous, View, What, clock::now_ns};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{multicast, takeover};
use crate::cli::{
    Failure, Outcome, events, exit,
    flags::{Size, Time},
    proc::{Proc, Said},
    scratch::Scratch,
};

/// Two processes, each a member of the same groups: how long until the second is in all of them, and from SIGKILL of the first,
/// which leads them all, until the second leads the last one. Beside it what a group costs in memory, and the floor of this machine:
/// a round trip over a connection, and SIGKILL to the end of one.
#[derive(Args)]
pub(crate) struct Groups {
    /// How many groups; may be given several times.
    #[arg(long = "groups", value_name = "N", default_values_t = [1, 10, 100, 1000, 10_000])]
    counts: Vec<usize>,
    /// How often each; medians are printed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::cli::at_least_one)]
    times: usize,
    /// Then the second joins and leaves all of them for so long, over and over; 0s leaves that out.
    #[arg(long, value_name = "DUR", default_value = "2s")]
    churn: Time,
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
    #[arg(long, default_value = "0s")]
    churn: Time,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// What one run gave, in milliseconds and bytes.
struct Measured {
    join: f64,
    takeover: f64,
    bytes: f64,
    /// Joins and leaves a second.
    changes: f64,
}

impl Groups {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        // The least that a join can take, and the least for a takeover.
        let trip = tokio::task::spawn_blocking(|| multicast::floor(64));
        let (p50_us, p99_us) = trip.await.context("measuring the floor")??;
        super::print_quantiles("there and back over a connection", p50_us / 1e3, p99_us / 1e3, json);
        super::print("SIGKILL to the end of a connection", takeover::floor(10, Size(0)).await?, json);
        for count in &self.counts {
            if !(1..=100_000).contains(count) {
                return Err(Failure::usage(format!("--groups {count}: give 1 to 100000")));
            }
            let mut runs = Vec::new();
            for _ in 0..self.times {
                let dir = Scratch::new("bench")?;
                runs.push(once(*count, self.churn, dir.path()).await?);
            }
            let median = |of: fn(&Measured) -> f64| super::median(&runs, of);
            let (join, takeover, bytes) = (median(|m| m.join), median(|m| m.takeover), median(|m| m.bytes));
            let changes = median(|m| m.changes);
            let object = json!({
                "event": "groups", "groups": count, "join_ms": join, "takeover_ms": takeover,
                "bytes_per_group": bytes.round(), "joins_and_leaves_per_second": changes.round(), "runs": runs.len(),
            });
            let text = format!(
                "{count} groups: joined in {join:.2} ms, the last one taken over after {takeover:.2} ms, {bytes:.0} bytes each, \
                 {changes:.0} joins and leaves a second (medians of {} runs)",
                runs.len()
            );
            events::line(&if json { object.to_string() } else { text });
        }
        Ok(0)
    }
}

async fn once(groups: usize, churn: Time, dir: &std::path::Path) -> Result<Measured, Failure> {
    let (said, mut heard) = mpsc::channel(4096);
    let start = |who: usize| {
        let args = [
            "bench".to_owned(),
            "groups-member".to_owned(),
            format!("--name=n{who}"),
            format!("--rendezvous=file:{}", dir.display()),
            format!("--groups={groups}"),
            format!("--members={}", who + 1),
            format!("--churn={}ms", if who == 1 { churn.0.as_millis() } else { 0 }),
        ];
        Proc::start(&args, who, said.clone())
    };
    let mut first = start(0)?;
    until(&mut heard, 0, "led").await?;
    let mut second = start(1)?;
    let joined = until(&mut heard, 1, "joined").await?;
    let churned = if churn.0.is_zero() { Value::Null } else { until(&mut heard, 1, "churned").await? };
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
        changes: churned["per_second"].as_f64().unwrap_or_default(),
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

async fn joined(node: &Node, n: usize) -> Result<Membership, Failure> {
    node.join(&format!("g{n}"), None).await.map_err(|e| Failure::usage(e.to_string()))
}

/// Leaves all groups and joins them again, for so long: how many of both a second, each counted when its view is there.
async fn churn(node: &Node, groups: &mut Vec<Membership>, duration: Duration) -> Result<f64, Failure> {
    let (began, mut changes) = (Instant::now(), 0);
    while began.elapsed() < duration {
        let mut leaving: JoinSet<()> = JoinSet::new();
        let count = groups.len();
        for group in groups.drain(..) {
            leaving.spawn(async move { group.leave().await });
        }
        leaving.join_all().await;
        for n in 0..count {
            groups.push(joined(node, n).await?);
        }
        for group in &*groups {
            let mut views = group.views();
            let in_it = |view: &View| view.rank_of(node.id()).is_some();
            while let Some(view) = views.next().await
                && !in_it(&view)
            {}
        }
        changes += 2 * count;
    }
    Ok(changes as f64 / began.elapsed().as_secs_f64())
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
        let stops = crate::cli::node::Stops::new()?;
        node.joined().await.map_err(|e| Failure::new(exit::FAILED, e.to_string()))?;
        sleep(Duration::from_millis(200)).await;
        let mut told = node.all_events();
        let before = resident();
        let began = now_ns();
        let mut memberships = Vec::with_capacity(self.groups);
        let (mut complete, mut led): (BTreeSet<GroupName>, BTreeSet<GroupName>) = Default::default();
        let whole = Notify::new();
        let joining = async {
            for n in 0..self.groups {
                memberships.push(joined(&node, n).await?);
            }
            if !self.churn.0.is_zero() {
                whole.notified().await;
                let changes = churn(&node, &mut memberships, self.churn.0).await?;
                events::line(&json!({"event": "churned", "per_second": changes}).to_string());
            }
            std::future::pending::<Result<(), Failure>>().await
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
                    whole.notify_one();
                }
                let leads = matches!(event.what, What::Leading { .. });
                if leads && led.insert(group) && led.len() == self.groups {
                    events::line(&json!({"event": "led", "at_ns": now_ns()}).to_string());
                }
            }
        };
        tokio::select! {
            failed = joining => failed?,
            () = following => {}
            () = stops.told() => {}
        }
        node.leave().await;
        Ok(0)
    }
}
