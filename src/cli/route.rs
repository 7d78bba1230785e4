//! `router`: the routing proxy, fed with the views of the groups that its configuration names.

mod admin;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::available_parallelism,
    time::Duration,
};

use clap::Args;
use membership::{AdminApi, Event, Node, Observer, View, What};
use router::{CloneAt, Config, GroupClones, Options, Reloaded, RouterHandle, Serving, Surroundings};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{
    Failure, Outcome, events, exit, files,
    flags::{self, NodeFlags, read},
    node::{Stops, not_joined, start},
};

/// The routing proxy.
///
/// Routes requests by their key to the right clone while membership changes. Static servers need no rendezvous; a RACS
/// with `group =` does.
///
/// On HUP, or where the admin API is told so (POST /v1/reload), the configuration is read again, and taken over without a request being dropped: services are matched by name. One with a
/// mistake leaves the running one in place, and the log says why. Settings of the node stay; keys and certificates are read
/// again on HUP, those of services included.
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
        // From now on one does not end the process.
        let hangups = signal(SignalKind::hangup())?;
        let workers = self.workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
        let mut options = Options::new().workers(workers);
        // Each client may take a connection to a server, too.
        let most = files::for_clients() / (2 * workers);
        options.limits.clients = options.limits.clients.min(most.max(1));
        let router = router::start(&config, options).map_err(|e| Failure::new(exit::USAGE, e.to_string()))?;
        announce(router.serving(), json);
        let api = self.node.admin.filter(|_| !follows_groups);
        let insecure = self.node.insecure == Some(true);
        let node = if follows_groups {
            let Some(node) = stops.unless(start(self.node, false, true)).await? else { return Ok(0) };
            Some(node)
        } else {
            None
        };
        // Without a node it is ours alone.
        let api =
            api.map(|addr| AdminApi::start(addr, insecure)).transpose().map_err(flags::start_failure)?;
        let (order, orders) = mpsc::channel(1);
        let extensions = node.as_ref().map(Node::extensions).or(api.as_ref().map(AdminApi::extensions));
        if let Some(extensions) = extensions {
            admin::serve(extensions, &router, order);
        }
        if let Some(at) = node.as_ref().and_then(Node::admin_addr).or(api.as_ref().map(AdminApi::addr)) {
            let object = json!({"event": "admin", "listen": at});
            let text = if json { object.to_string() } else { format!("the admin API is served on {at}") };
            tokio::spawn(async move { events::say(text).await });
        }
        let late = async {
            match &node {
                Some(node) => not_joined(node).await,
                None => std::future::pending().await,
            }
        };
        let groups = config.groups().into_iter().map(Into::into).collect();
        let file = File { path: self.config, text: self.text, follows_groups };
        let mut running = Running {
            router: router.clone(),
            node: node.clone(),
            file,
            json,
            observers: BTreeMap::new(),
            views: BTreeMap::new(),
            ready: false,
        };
        let outcome = tokio::select! {
            outcome = running.run(groups, hangups, orders) => outcome,
            failure = late => Err(failure),
            () = stops.told() => Ok(()),
        };
        if let Some(api) = &api {
            api.set_ready(false);
        }
        tokio::task::spawn_blocking(move || router.shutdown(DRAIN)).await?;
        if let Some(node) = node {
            node.leave().await;
        }
        outcome.map(|()| 0)
    }
}

/// Says where services are served. It serves whether anybody reads this or not.
fn announce(serving: Vec<Serving>, json: bool) {
    let line = move |Serving { service, listen }: Serving| {
        let object = json!({"event": "serving", "service": service, "listen": listen});
        if json { object.to_string() } else { format!("{service} is served on {listen}") }
    };
    tokio::spawn(async move {
        for serving in serving {
            let _unread = events::say(line(serving)).await;
        }
    });
}

/// The configuration's file, as it was last taken over.
struct File {
    path: PathBuf,
    text: String,
    follows_groups: bool,
}

impl File {
    /// Reads it again. Gives its text too.
    fn again(&self) -> Result<(String, Config), Failure> {
        let text = read(&self.path)?;
        NodeFlags::default().or_text(&text, &self.path, &["service"])?;
        let surroundings = Surroundings {
            follows_groups: self.follows_groups,
            others_keys: &NodeFlags::KEYS,
            numeric_only: false,
        };
        let config =
            Config::parse(&text, &self.path, surroundings).map_err(|e| Failure::usage(e.to_string()))?;
        Ok((text, config))
    }

    /// The node's settings in which this text differs: they cannot be taken over.
    fn differs(&self, text: &str) -> Vec<String> {
        let settings = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
        let (old, new) = (settings(&self.text), settings(text));
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).filter(|key| *key != "service").collect();
        keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
    }
}

/// A router that runs, and what it is fed with.
struct Running {
    router: RouterHandle,
    node: Option<Node>,
    file: File,
    json: bool,
    observers: BTreeMap<String, Observer>,
    views: BTreeMap<String, Arc<View>>,
    ready: bool,
}

impl Running {
    /// Passes the groups' views on to the router, until the node stops, and goes over to a changed configuration when it is told to.
    async fn run(
        &mut self,
        groups: Vec<String>,
        mut hangups: Signal,
        mut orders: mpsc::Receiver<admin::Order>,
    ) -> Result<(), Failure> {
        let mut events = self.node.as_ref().map(Node::all_events);
        self.observe(&groups).await?;
        loop {
            let next = async {
                match &mut events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = next => match event {
                    Some(event) => self.heed(&event),
                    None => return Ok(()),
                },
                Some(()) = hangups.recv() => {
                    // Whoever sent it reads the log.
                    let _told = self.reload().await;
                    self.reload_certificates().await;
                }
                // None where there is no admin API.
                Some(order) = orders.recv() => {
                    let told = self.reload().await.map(|told| reloaded_json(&told));
                    let _gone = order.send(told);
                }
            }
        }
    }

    async fn observe(&mut self, groups: &[String]) -> Result<(), Failure> {
        let Some(node) = &self.node else { return Ok(()) };
        for group in groups {
            if !self.observers.contains_key(group) {
                let observer = node.observe(group).await.map_err(|e| Failure::usage(e.to_string()))?;
                self.observers.insert(group.clone(), observer);
            }
        }
        Ok(())
    }

    fn heed(&mut self, event: &Event) {
        if let (What::View(view), Some(group)) = (&event.what, &event.group) {
            self.views.insert(group.to_string(), view.clone());
            if self.observers.contains_key(group.as_str()) {
                tell(&self.router, group.as_str(), view, self.ready);
            }
        }
        // Without a valid lease our views may be old: reads go on from the last map, updates wait.
        let is_ready = self.node.as_ref().is_some_and(|node| node.status().is_ready());
        if is_ready != self.ready {
            self.ready = is_ready;
            self.tell_all();
        }
    }

    fn tell_all(&self) {
        for (group, view) in self.views.iter().filter(|(group, _)| self.observers.contains_key(*group)) {
            tell(&self.router, group, view, self.ready);
        }
    }

    /// Goes over to the configuration that is in the file now; says what came of it, in the log and as an event.
    async fn reload(&mut self) -> Result<Reloaded, String> {
        let before = self.router.serving();
        let outcome = self.take_over().await.map_err(|failure| failure.to_string());
        match &outcome {
            Ok(told) => {
                let Reloaded { added, changed, removed, unchanged, .. } = told;
                tracing::info!(?added, ?changed, ?removed, ?unchanged, "the configuration was taken over");
                announce(
                    self.router.serving().into_iter().filter(|at| !before.contains(at)).collect(),
                    self.json,
                );
            }
            Err(why) => {
                let config = self.file.path.display();
                tracing::error!(%config, "the configuration was not taken over, the router goes on as before: {why}");
            }
        }
        if self.json {
            let object = match &outcome {
                Ok(told) => reloaded_json(told),
                Err(why) => json!({"event": "not_reloaded", "why": why}),
            };
            tokio::spawn(async move { events::say(object.to_string()).await });
        }
        outcome
    }

    /// Reads the certificates of services again. Files may lie on something slow.
    async fn reload_certificates(&self) {
        let router = self.router.clone();
        let read = tokio::task::spawn_blocking(move || router.reload_certificates()).await;
        for error in read.map(Result::err).unwrap_or_default().unwrap_or_default() {
            tracing::error!("{error}; clients are shown what was read before");
        }
    }

    async fn take_over(&mut self) -> Result<Reloaded, Failure> {
        let (text, config) = self.file.again()?;
        let groups: Vec<String> = config.groups().into_iter().map(Into::into).collect();
        self.observe(&groups).await?;
        let router = self.router.clone();
        let reloaded = tokio::task::spawn_blocking(move || router.reload(&config)).await?;
        let told = reloaded.map_err(|error| Failure::new(exit::FAILED, error.to_string()))?;
        self.observers.retain(|group, _| groups.contains(group));
        self.views.retain(|group, _| groups.contains(group));
        // Views of groups that the router did not follow before may have come already.
        self.tell_all();
        let differs = self.file.differs(&text);
        if !differs.is_empty() {
            tracing::warn!(
                "the settings {} are read at the start only: stop the router with TERM and start it again",
                differs.join(", ")
            );
        }
        self.file.text = text;
        Ok(told)
    }
}

fn reloaded_json(told: &Reloaded) -> Value {
    let Reloaded { added, changed, removed, unchanged, .. } = told;
    json!({"event": "reloaded", "added": added, "changed": changed, "removed": removed, "unchanged": unchanged})
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
