//! `router`: the routing proxy, fed with the views of the groups that its configuration names.

use std::{
    collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, thread::available_parallelism,
    time::Duration,
};

use clap::Args;
use membership::{Node, View, What};
use router::{CloneAt, Config, GroupClones, Options, RouterHandle, Surroundings};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Failure, Outcome, events, exit, files,
    flags::{NodeFlags, read},
    node::{Stops, not_joined, start},
};

/// The routing proxy.
///
/// Routes requests by their key to the right clone while membership changes. Static servers need no rendezvous; a RACS
/// with `group =` does.
///
/// A changed configuration is not taken over while it runs: HUP says so in the log, and the router serves on (HUP also has keys and
/// certificates read again, those of services included). Stop it with TERM, and start it again.
///
/// If standard output is lost, because its reader went away or a disk is full, the router goes on serving, and exits with 1 at its
/// end where output was lost.
///
/// Example: phalanx router --config router.toml --rendezvous file:/tmp/rdv
#[derive(Args)]
pub(crate) struct Router {
    /// The configuration (TOML): services, partition maps, servers; node settings may stand in it too.
    #[arg(long, env = "PHALANX_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The configuration's text.
    #[arg(skip)]
    text: String,
    /// Worker threads, 1 to 256 [default: one per core].
    #[arg(long, value_name = "N", value_parser = workers)]
    workers: Option<usize>,
    /// Only say whether the configuration is right.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    node: NodeFlags,
}

/// More threads than cores only wait for each other; each has connections of its own to every server.
const MOST_WORKERS: usize = 256;

fn workers(text: &str) -> Result<usize, String> {
    let wrong = || format!("`{text}` is no number of worker threads: give 1 to {MOST_WORKERS}");
    text.parse().ok().filter(|n| (1..=MOST_WORKERS).contains(n)).ok_or_else(wrong)
}

/// How long requests in flight may take when the router stops.
const DRAIN: Duration = Duration::from_secs(5);

impl Router {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.text = read(&self.config)?;
        self.node = std::mem::take(&mut self.node).or_text(&self.text, &self.config, &["service"])?;
        Ok(self.node.log)
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let follows_groups = !self.node.rendezvous.is_empty();
        let surroundings =
            Surroundings { follows_groups, others_keys: &NodeFlags::KEYS, numeric_only: false };
        let config = Config::parse(&self.text, &self.config, surroundings)
            .map_err(|e| Failure::usage(e.to_string()))?;
        if self.check {
            config.check_certificates().map_err(|e| Failure::usage(e.to_string()))?;
            let services: Vec<&str> = config.services().collect();
            let text = json!({"event": "checked", "services": services}).to_string();
            events::line(&if json { text } else { format!("{}: right", self.config.display()) });
            return Ok(0);
        }
        let stops = Stops::new()?;
        let hangups = signal(SignalKind::hangup())?;
        let workers = self.workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
        let mut options = Options::new().workers(workers);
        // Each client may take a connection to a server, too.
        let most = files::for_clients() / (2 * workers);
        options.limits.clients = options.limits.clients.min(most.max(1));
        let router = router::start(&config, options).map_err(|e| Failure::new(exit::USAGE, e.to_string()))?;
        tokio::spawn(heed_hangups(hangups, self.config, router.clone()));
        let mut serving = Vec::new();
        for at in router.serving() {
            let (service, listen) = (&at.service, at.listen);
            let object = json!({"event": "serving", "service": service, "listen": listen});
            let text = if json { object.to_string() } else { format!("{service} is served on {listen}") };
            serving.push(text);
        }
        // It serves whether anybody reads this or not.
        tokio::spawn(async move {
            for text in serving {
                let _unread = events::say(text).await;
            }
        });
        let groups: Vec<String> = config.groups().into_iter().map(Into::into).collect();
        let node = if follows_groups {
            let Some(node) = stops.unless(start(self.node, false, true)).await? else { return Ok(0) };
            Some(node)
        } else {
            None
        };
        let late = async {
            match &node {
                Some(node) => not_joined(node).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = feed(node.as_ref(), &router, &groups) => outcome,
            failure = late => Err(failure),
            () = stops.told() => Ok(()),
        };
        tokio::task::spawn_blocking(move || router.shutdown(DRAIN)).await?;
        if let Some(node) = node {
            node.leave().await;
        }
        outcome.map(|()| 0)
    }
}

/// HUP asks to take over a changed configuration, and new certificates. The former cannot be done yet, and is no reason to end.
async fn heed_hangups(mut hangups: Signal, config: PathBuf, router: RouterHandle) {
    while hangups.recv().await.is_some() {
        tracing::warn!(config = %config.display(), "HUP: a router that runs cannot take over a changed configuration yet, it \
            goes on with the old one; stop it with TERM and start it again (`phalanx router --check` says whether the new one \
            is right)");
        let router = router.clone();
        // Files may lie on something slow.
        let read = tokio::task::spawn_blocking(move || router.reload_certificates()).await;
        for error in read.map(Result::err).unwrap_or_default().unwrap_or_default() {
            tracing::error!("{error}; clients are shown what was read before");
        }
    }
}

/// Passes the groups' views on to the router, until the node stops.
async fn feed(node: Option<&Node>, router: &RouterHandle, groups: &[String]) -> Result<(), Failure> {
    let Some(node) = node else { return std::future::pending().await };
    let mut events = node.all_events();
    let mut observers = Vec::new();
    for group in groups {
        observers.push(node.observe(group).await.map_err(|e| Failure::usage(e.to_string()))?);
    }
    let mut views: BTreeMap<String, Arc<View>> = BTreeMap::new();
    let mut ready = false;
    while let Some(event) = events.next().await {
        if let (What::View(view), Some(group)) = (&event.what, &event.group) {
            views.insert(group.to_string(), view.clone());
            tell(router, group.as_str(), view, ready);
        }
        // Without a valid lease our views may be old: reads go on from the last map, updates wait.
        let is_ready = node.status().is_ready();
        if is_ready != ready {
            ready = is_ready;
            for (group, view) in &views {
                tell(router, group, view, ready);
            }
        }
    }
    Ok(())
}

fn tell(router: &RouterHandle, group: &str, view: &View, ready: bool) {
    let mut clones = Vec::new();
    for member in &view.members {
        let Some(endpoint) = &member.endpoint else { continue };
        match endpoint.parse::<SocketAddr>() {
            Ok(addr) => clones.push((member.node, CloneAt::new(&member.name, addr))),
            Err(_) => {
                tracing::warn!("{group}: the endpoint {endpoint} of {} is no IP:PORT: left out", member.name)
            }
        }
    }
    let leads = view.leader().map(|leader| leader.node);
    let leader = clones.iter().position(|(node, _)| ready && leads == Some(*node));
    let clones = clones.into_iter().map(|(_, clone)| clone).collect();
    let clones = GroupClones { epoch: view.id.get(), leader, clones };
    if let Err(error) = router.update_group(group, &clones) {
        tracing::warn!("{group}: {error}");
    }
}
