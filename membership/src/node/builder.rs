//! How a node is configured.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use membership_proto::Bootstrap;

use super::Node;
use crate::{
    death::{Acts, Tree},
    error::StartError,
    labels,
    rendezvous::Rendezvous,
    secret::{Secret, Source},
    start,
    tls::TlsFiles,
    witness::Witness,
};

/// A node's configuration; every rule is checked by [`NodeBuilder::start`].
#[derive(Clone)]
#[must_use = "a node begins with start()"]
pub struct NodeBuilder {
    pub(crate) cluster: String,
    pub(crate) name: Option<String>,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) rendezvous: Vec<Rendezvous>,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) core: bool,
    pub(crate) give_up: Option<Duration>,
    pub(crate) join_timeout: Duration,
    pub(crate) insecure: bool,
    pub(crate) secret: Source,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) admin_socket: Option<Arc<TcpListener>>,
    pub(crate) trace: Option<PathBuf>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) witness: Option<Witness>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) rejoin: bool,
    pub(crate) panic_hook: bool,
    pub(crate) acts: Acts,
    pub(crate) watchdog: Option<Duration>,
}

impl Default for NodeBuilder {
    fn default() -> Self {
        Self {
            cluster: "default".to_owned(),
            name: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            rendezvous: Vec::new(),
            bootstrap: Bootstrap::AloneAfter(Duration::from_secs(1)),
            lease: Duration::from_secs(1),
            heartbeat: None,
            core: true,
            give_up: None,
            join_timeout: Duration::from_secs(30),
            insecure: false,
            secret: Source::None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            admin: None,
            admin_socket: None,
            trace: None,
            data_dir: None,
            witness: None,
            labels: BTreeMap::new(),
            rejoin: true,
            panic_hook: true,
            acts: Acts::Itself,
            watchdog: None,
        }
    }
}

impl NodeBuilder {
    /// The cluster's name; default `default`. Nodes of other clusters are refused. 1 to 64 characters out of
    /// `A-Z a-z 0-9 . _ -`, not beginning with a dot.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// The node's name, for people; default host name and process id. 1 to 128 bytes without control characters. Where
    /// several nodes share one, events show `name#id`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where to listen for other nodes; default `127.0.0.1:0` (any free port). Beyond loopback only with a
    /// [`secret`](Self::secret_file), or [`insecure`](Self::insecure).
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = addr;
        self
    }

    /// The address by which others reach this node; default where it listens. Must be given where it listens on all
    /// interfaces. Port 0 stands for the port that it listens on.
    pub fn advertise(mut self, addr: SocketAddr) -> Self {
        self.advertise = Some(addr);
        self
    }

    /// One more way to find the cluster; several may be used at once. Without any, the node founds a cluster on its own.
    pub fn rendezvous(mut self, provider: Rendezvous) -> Self {
        self.rendezvous.push(provider);
        self
    }

    /// What to do when there is no cluster; default `AloneAfter` one second.
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    /// The lease, 20 ms to 60 s; default 1 s. Equal at all nodes of a cluster. Longer: fewer false removals, slower
    /// takeover from a leader that is cut off or stopped (not from one that is proved dead).
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The heartbeat interval, 1 ms up to a third of the lease; default a tenth of it.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = Some(interval);
        self
    }

    /// May this node sit in the core, which decides views? Default yes.
    pub fn core(mut self, eligible: bool) -> Self {
        self.core = eligible;
        self
    }

    /// How long a node of a blocked cluster waits before it goes over to another active one of the same name; default
    /// ten leases.
    pub fn give_up(mut self, after: Duration) -> Self {
        self.give_up = Some(after);
        self
    }

    /// How long [`Node::joined`] waits; default 30 s. The node itself goes on trying for ever.
    pub fn join_timeout(mut self, timeout: Duration) -> Self {
        self.join_timeout = timeout;
        self
    }

    /// The file with the keys of the cluster: see [`Secret`]. Every connection between nodes is then authenticated and
    /// sealed, and nodes without one of the keys are refused. [`Node::reload_secret`] reads it again. Default: no file, and
    /// nothing is authenticated.
    pub fn secret_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.secret = Source::File(file.into());
        self
    }

    /// The keys of the cluster themselves, instead of a [file](Self::secret_file).
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Source::Given(secret);
        self
    }

    /// The authorities (PEM) that sign for nodes of this cluster. Together with [`tls_cert`](Self::tls_cert) and
    /// [`tls_key`](Self::tls_key), and instead of a secret: connections between nodes are then TLS 1.3, and each side must show a
    /// certificate of these authorities that is for its name or its address. [`Node::reload_secret`] reads the files again.
    pub fn tls_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls_ca = Some(file.into());
        self
    }

    /// The certificate of this node (PEM; those between it and the authority may follow). One of its subject alternative names must
    /// be the node's name, or its advertised address.
    pub fn tls_cert(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls_cert = Some(file.into());
        self
    }

    /// The private key to it (PEM), which others than its owner and group must not be able to read.
    pub fn tls_key(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls_key = Some(file.into());
        self
    }

    pub(crate) fn credentials(&self) -> Source {
        match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (Some(ca), Some(cert), Some(key)) => {
                Source::Tls(TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
            }
            _ => self.secret.clone(),
        }
    }

    /// Allows to listen beyond loopback although nothing authenticates who connects. Default no.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// The zone that its labels say it is in, as others are told it: see [`Node::zone_of`].
    pub fn zone(&self) -> Option<String> {
        labels::domains(&self.labels).zone.map(Into::into)
    }

    /// Where to serve the admin API (HTTP); default nowhere. Beyond loopback only with [`insecure`](Self::insecure): a secret
    /// is for links between nodes, the admin API asks nobody for anything.
    pub fn admin(mut self, addr: SocketAddr) -> Self {
        self.admin = Some(addr);
        self
    }

    /// Serves the admin API on this socket, which listens already; see [`AdminApi::socket`](crate::AdminApi::socket).
    pub fn admin_socket(mut self, socket: TcpListener) -> Self {
        self.admin = socket.local_addr().ok();
        self.admin_socket = Some(Arc::new(socket));
        self
    }

    /// Where to write trace records, one JSON object on a line; the file is begun anew. Default nowhere.
    pub fn trace(mut self, path: impl Into<PathBuf>) -> Self {
        self.trace = Some(path.into());
        self
    }

    /// A directory in which the node remembers which view ids, and so which tokens, may have been given: a cluster that is
    /// founded anew after all of it was down goes on above them, whatever the wall clocks say. Under `expect` all founders
    /// should have one, for themselves; then it holds for whatever majority of them comes back. Default none: a new lineage
    /// begins at the wall clock.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Who says which half of the core may go on where it splits into two; the same at all nodes of a cluster, from its
    /// founding on. Without one it is the half with the core's senior, so of two nodes always the elder.
    pub fn witness(mut self, witness: Witness) -> Self {
        self.witness = Some(witness);
        self
    }

    /// A label of the node; shown in its status. The core is spread over nodes of different `zone`, `rack` (in a zone) and
    /// `power` unit, as far as there are such. `zone` and `weight` (1 to 1000) tell routers how to choose among a group's
    /// members: see [`Node::zone_of`] and [`Node::weight_of`].
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// What follows when this incarnation is removed, or its cluster dissolves: with `true` (the default) a fresh one
    /// that joins all groups again and observes what was observed; with `false` the node stops.
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Whether a panic of any thread of this process ends the node's lease before anything else happens (the hook that
    /// was set before is called next). The node then rejoins as a new incarnation, or stops. Default yes.
    pub fn panic_hook(mut self, install: bool) -> Self {
        self.panic_hook = install;
        self
    }

    /// Whether processes other than this one act for the node, as a wrapper's children do, and nobody can say when they are
    /// gone: its death then proves nothing, and its lease is waited out. Default no.
    pub fn children_act(mut self, act: bool) -> Self {
        self.acts = if act { Acts::Unknown } else { Acts::Itself };
        self
    }

    /// Processes other than this one act for the node, all of them in this tree: its death counts as proved once they are gone,
    /// too. Default: none.
    pub fn acts_through(mut self, tree: Tree) -> Self {
        self.acts = Acts::Through(tree);
        self
    }

    /// How long the application may be silent, 10 ms to 1 h. It says that it lives with [`Watchdog::pat`](crate::Watchdog::pat); the node's start counts
    /// as the first. An application that is late stands still although its node's heart beats: the node leads nothing any more
    /// and leaves its groups until the next pat, and comes back as their last member. Default: not watched.
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = Some(limit);
        self
    }

    /// Starts the node. It listens when this returns, and joins meanwhile: see [`Node::joined`].
    ///
    /// Must be called within a tokio runtime with its drivers enabled; the node itself runs on threads of its own, and
    /// outlives that runtime.
    ///
    /// # Errors
    /// A [`StartError`] says what is wrong. Nothing is left behind.
    pub async fn start(self) -> Result<Node, StartError> {
        start::start(self).await
    }
}
