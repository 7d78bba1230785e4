//! `router`: the routing proxy, fed with the views of the groups that its configuration names.

mod admin;
mod upgrade;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    thread::available_parallelism,
    time::Duration,
};

use clap::Args;
use membership::{AdminApi, Event, Member, Node, Observer, View, What};
use router::{
    Config, Options, Reloaded, RouterHandle, Serving, Surroundings,
    handover::{Handover, Predecessor, Successor},
};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use super::{
    Failure, Outcome, events, exit, files,
    flags::{self, NodeFlags, Time, read},
    node::{Stops, not_joined, start_built},
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
/// Another binary takes over without a connection being refused or dropped where it is started with the same --upgrade-socket: it
/// is given the listening sockets, then the clients, and the process before it ends with 0. Where the new one does not come to
/// serve, the old one goes on.
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
    /// Where a router that runs hands over to a new one: a Unix socket, which this process makes, and at which only its user is heard.
    /// If a router waits there already, this one takes its sockets and clients over.
    #[arg(long, value_name = "PATH")]
    upgrade_socket: Option<PathBuf>,
    /// How long requests and connections under way may take when the router stops; up to 8760h [default: 5s; 10m where another
    /// one takes over, to which most clients pass at once].
    #[arg(long, value_name = "DUR")]
    drain: Option<Time>,
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

/// How long requests in flight may take when the router stops; and where another one took over, when it is about tunnels, and
/// about clients who cannot be handed over.
const DRAIN: Duration = Duration::from_secs(5);
const LAST: Duration = Duration::from_secs(600);
/// How long the node of a router that gave way stays: longer than updates wait for a leader.
const STAYS: Duration = Duration::from_secs(6);
/// How long a router that takes over may be without the views that it needs, once its node is in the cluster.
const BLIND: Duration = Duration::from_secs(60);

impl Router {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.text = read(&self.config)?;
        self.node = std::mem::take(&mut self.node).or_text(&self.text, &self.config, &["service"])?;
        Ok(self.node.log)
    }

    pub(crate) async fn run(mut self, json: bool) -> Outcome {
        let follows_groups = !self.node.rendezvous.is_empty();
        let surroundings =
            Surroundings { follows_groups, others_keys: &NodeFlags::KEYS, numeric_only: false };
        let config = Config::parse(&self.text, &self.config, surroundings)
            .map_err(|e| Failure::usage(e.to_string()))?;
        let (admin, reads_again) = (self.node.admin.take(), self.node.reads_again());
        let insecure = self.node.insecure == Some(true);
        let builder = self.node.builder(false).rejoin(true);
        let zone = builder.zone();
        let config = placed(config, zone.as_deref());
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
        let (mut predecessor, handover) = match &self.upgrade_socket {
            Some(path) => match stops.unless(upgrade::find(path)).await? {
                Some((found, handover)) => (found, Some(handover)),
                None => return Ok(0),
            },
            None => (None, None),
        };
        let started = match &mut predecessor {
            None => router::start(&config, options),
            Some(predecessor) => predecessor.start(&config, options),
        };
        let router = started.map_err(|e| Failure::new(exit::USAGE, e.to_string()))?;
        if predecessor.is_none() {
            announce(router.serving(), json);
        }
        let mut socket = None;
        if let Some(addr) = admin {
            let given = upgrade::admin_of(predecessor.as_mut(), addr);
            socket = Some(AdminApi::socket(addr, insecure, given).map_err(flags::start_failure)?);
        }
        let again = socket.as_ref().map(TcpListener::try_clone).transpose()?;
        let (mut node, mut api) = (None, None);
        if follows_groups {
            let builder = match socket {
                Some(socket) => builder.admin_socket(socket),
                None => builder,
            };
            let Some(started) = stops.unless(start_built(builder, reads_again)).await? else { return Ok(0) };
            node = Some(started);
        } else if let Some(socket) = socket {
            // Without a node it is ours alone.
            api = Some(AdminApi::start_on(socket).map_err(flags::start_failure)?);
        }
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
        let file = File { path: self.config, text: self.text, follows_groups, zone };
        let (successor, successors) = mpsc::channel(1);
        let next = handover.map(|handover| (upgrade::with_admin(handover, again), successor));
        let drain = self.drain.map(|time| time.0);
        let mut running = Running {
            router: router.clone(),
            node: node.clone(),
            file,
            json,
            observers: BTreeMap::new(),
            views: BTreeMap::new(),
            ready: false,
            api,
            predecessor,
            next,
            gave_way: false,
            last: drain.unwrap_or(LAST),
        };
        let outcome = tokio::select! {
            outcome = running.run(groups, (hangups, orders, successors)) => outcome,
            failure = late => Err(failure),
            () = stops.told() => Ok(()),
        };
        if let Some(api) = &running.api {
            api.set_ready(false);
        }
        tokio::task::spawn_blocking(move || router.shutdown(drain.unwrap_or(DRAIN))).await?;
        if let Some(node) = node {
            node.leave().await;
        }
        outcome.map(|()| 0)
    }
}

/// A process beside this one, which may have no number here.
fn process(pid: Option<i32>) -> String {
    pid.map_or_else(|| "a process without a number here".into(), |pid| format!("process {pid}"))
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

/// The configuration of a router in this zone: services that do not say where they are are there.
fn placed(config: Config, zone: Option<&str>) -> Config {
    match zone {
        Some(zone) => config.in_zone(zone),
        None => config,
    }
}

/// The configuration's file, as it was last taken over.
struct File {
    path: PathBuf,
    text: String,
    follows_groups: bool,
    /// Where this router is.
    zone: Option<String>,
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
        Ok((text, placed(config, self.zone.as_deref())))
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
    /// The admin API of a router without a node.
    api: Option<AdminApi>,
    /// Who serves as long as this router does not.
    predecessor: Option<Predecessor>,
    /// Where the next one comes once this one serves.
    next: Option<(Handover, mpsc::Sender<Successor>)>,
    /// Whether the next one serves: what is under way is all that is left here.
    gave_way: bool,
    /// How long clients may stay that do not pass to the next one.
    last: Duration,
}

impl Running {
    /// Passes the groups' views on to the router, until the node stops or another router has taken over, and goes over to a changed
    /// configuration when it is told to.
    async fn run(
        &mut self,
        groups: Vec<String>,
        (mut hangups, mut orders, mut successors): (
            Signal,
            mpsc::Receiver<admin::Order>,
            mpsc::Receiver<Successor>,
        ),
    ) -> Result<(), Failure> {
        let mut events = self.node.as_ref().map(Node::all_events);
        if let (Some(_), Some(node)) = (&self.predecessor, &self.node) {
            // A node that is in already is told of groups without members, too. Whoever waits beside this ends it if it is not let in.
            if node.joined().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        self.observe(&groups).await?;
        let blind = tokio::time::sleep(BLIND);
        let mut blind = std::pin::pin!(blind);
        let mut taken: Option<JoinHandle<()>> = None;
        loop {
            if self.predecessor.is_none() || self.sees_all() {
                self.serve().await?;
            }
            let all_passed = async {
                match &mut taken {
                    Some(taken) => taken.await,
                    None => std::future::pending().await,
                }
            };
            let next = async {
                match &mut events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = next => match event {
                    Some(event) => self.heed(&event),
                    None if taken.is_some() => events = None,
                    None => return Ok(()),
                },
                // None where no router may take over.
                Some(successor) = successors.recv() => taken = Some(self.give_way(successor)),
                outcome = all_passed => return Ok(outcome?),
                () = &mut blind, if self.predecessor.is_some() => {
                    let why = "no view of some group that the router follows has come: the router that runs goes on";
                    return Err(Failure::new(exit::FAILED, why));
                }
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

    /// Whether the node has told of all groups: from then on requests are routed as they are where clients are now.
    fn sees_all(&self) -> bool {
        self.observers.keys().all(|group| self.views.contains_key(group))
            && (self.ready || self.node.is_none())
    }

    /// Takes clients in, if that is still to be done, and waits for the next router from then on.
    async fn serve(&mut self) -> Result<(), Failure> {
        let Some((mut next, successor)) = self.next.take() else { return Ok(()) };
        if let Some(predecessor) = self.predecessor.take() {
            let pid = predecessor.pid();
            next = upgrade::relieve(predecessor, self.router.clone(), next).await?;
            tracing::info!(pid, "this router serves in place of the one that ran before");
            announce(self.router.serving(), self.json);
            let object = json!({"event": "took_over", "from": pid});
            let text = format!("this router serves in place of {}", process(pid));
            let text = if self.json { object.to_string() } else { text };
            tokio::spawn(async move { events::say(text).await });
        }
        upgrade::open(next, &self.router, successor);
        Ok(())
    }

    /// Hands the clients over to a router that serves. That has been done once what is returned ends.
    fn give_way(&mut self, successor: Successor) -> JoinHandle<()> {
        let pid = successor.pid();
        tracing::info!(pid, "another router serves; this one passes its clients on, and ends");
        let object = json!({"event": "gave_way", "to": pid});
        let text = format!("{} serves in place of this one, which ends", process(pid));
        let text = if self.json { object.to_string() } else { text };
        tokio::spawn(async move { events::say(text).await });
        self.gave_way = true;
        // Who asks how this router does means the new one.
        self.api = None;
        if let Some(node) = self.node.clone() {
            tokio::spawn(async move {
                tokio::time::sleep(STAYS).await;
                node.leave().await;
            });
        }
        let (router, last) = (self.router.clone(), self.last);
        tokio::task::spawn_blocking(move || successor.take(&router, last))
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
                self.tell(group.as_str(), view);
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
            self.tell(group, view);
        }
    }

    fn tell(&self, group: &str, view: &View) {
        // Without a node there is no view.
        let Some(node) = &self.node else { return };
        for Member { name, endpoint, .. } in &view.members {
            if let Some(endpoint) = endpoint
                && endpoint.parse::<SocketAddr>().is_err()
            {
                tracing::warn!("{group}: the endpoint {endpoint} of {name} is no IP:PORT: left out");
            }
        }
        if let Err(error) = self.router.update_group(group, &phalanx::clones(node, view, self.ready)) {
            tracing::warn!("{group}: {error}");
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
        if self.gave_way {
            // It would open addresses again that only the next one may have.
            return Err(Failure::new(exit::FAILED, "another router serves in place of this one: ask that"));
        }
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
