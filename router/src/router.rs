//! Starting, feeding and stopping a router.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    checks::{Checker, ServerHealth, Target},
    config::Config,
    limits::Limits,
    listen,
    stats::ServiceStats,
    table::{GroupClones, Publisher, UpdateError},
    tls::{CertificateError, Terminators},
    worker::{self, Control, Door, Entrance, ServiceSetup, Setup},
};

/// How a router runs, besides what it routes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Worker threads; one per core if `None`.
    pub workers: Option<usize>,
    /// How long it waits and how much it keeps.
    pub limits: Limits,
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of worker threads (at least one is started).
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// Where a service is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The service's name.
    pub service: String,
    /// The address, with the port that was chosen if the configuration said 0.
    pub listen: SocketAddr,
}

/// Why a router did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("service {service:?} cannot listen on {listen}: {error}{hint}", hint = in_use(.error))]
    Listen {
        /// The service.
        service: String,
        /// The address.
        listen: SocketAddr,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// A certificate or its key cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A thread cannot be started.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[source] io::Error),
}

fn in_use(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        ": stop whoever listens there, or choose another port"
    } else {
        ""
    }
}

/// A running router: feed it views, ask what it has counted, stop it.
///
/// Clones are the same router. It runs until [`RouterHandle::shutdown`], or until the last handle is dropped,
/// which ends it at once.
#[derive(Clone)]
pub struct RouterHandle {
    shared: Arc<Shared>,
}

struct Shared {
    serving: Vec<Serving>,
    publisher: Mutex<Publisher>,
    terminators: Terminators,
    workers: Vec<mpsc::UnboundedSender<Control>>,
    checker: Mutex<Checker>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// Starts a router: binds every address, then serves on its own threads.
///
/// Needs no runtime around it, and does not care if there is one.
///
/// # Errors
/// See [`StartError`]; a port in use by anybody, another router included, is refused.
///
/// # Examples
/// ```
/// use router::{Config, Options, Surroundings};
///
/// let text = r#"
///     [[service]]
///     name = "cache"
///     listen = "127.0.0.1:0"
///     protocol = "redis"
///     pmap = { style = "slots", partitions = 16 }
///     racs = [{ name = "a", servers = ["127.0.0.1:6379"] }]
/// "#;
/// let config = Config::parse(text, "router.toml".as_ref(), Surroundings::default())?;
/// let router = router::start(&config, Options::new().workers(1))?;
/// println!("redis-cli -p {}", router.serving()[0].listen.port());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn start(config: &Config, options: Options) -> Result<RouterHandle, StartError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let count = options.workers.unwrap_or(cores).max(1);
    let publisher = Publisher::new(config);
    let terminators = Terminators::of(config, &Terminators::default())?;

    let mut serving = Vec::new();
    let mut setups: Vec<Vec<ServiceSetup>> = (0..count).map(|_| Vec::new()).collect();
    for (at, service) in config.services.iter().enumerate() {
        let failed =
            |error| StartError::Listen { service: service.name.to_string(), listen: service.listen, error };
        let listeners = listen::shared(service.listen, count).map_err(failed)?;
        let listen = listeners[0].local_addr().map_err(failed)?;
        serving.push(Serving { service: service.name.to_string(), listen });
        let entrance = Entrance { tls: terminators.get(&service.name), accept_proxy: service.accept_proxy };
        for (setup, listener) in setups.iter_mut().zip(listeners) {
            let table = publisher.readers().swap_remove(at);
            let door = Door::Network(listener, entrance.clone());
            setup.push(ServiceSetup { service: Arc::clone(service), door, table });
        }
    }

    let (mut workers, mut threads) = (Vec::new(), Vec::new());
    for (number, services) in setups.into_iter().enumerate() {
        let (sender, control) = mpsc::unbounded_channel();
        // All requests waiting for one RACS, over all workers, stay within the limit.
        let limits = Limits { waiting: options.limits.waiting.div_ceil(count), ..options.limits.clone() };
        let setup = Setup { limits, seed: seed(number), services, control };
        let thread = thread::Builder::new().name(format!("router-{number}")).spawn(move || {
            if let Err(error) = worker::run(setup) {
                tracing::error!(%error, "worker failed");
            }
        });
        threads.push(thread.map_err(StartError::Thread)?);
        workers.push(sender);
    }
    let mut checker = Checker::new(&workers);
    checker.look_at(publisher.targets()).map_err(StartError::Thread)?;
    let checker = Mutex::new(checker);
    let publisher = Mutex::new(publisher);
    let threads = Mutex::new(threads);
    let shared = Shared { serving, publisher, terminators, workers, checker, threads };
    Ok(RouterHandle { shared: Arc::new(shared) })
}

/// A seed that differs between workers and processes. Choices between clones need no more.
pub(crate) fn seed(worker: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(worker)
}

impl RouterHandle {
    /// The services, and where they are served.
    pub fn serving(&self) -> &[Serving] {
        &self.shared.serving
    }

    /// Takes over a view of a group: from now on requests go to its clones, and updates to its leader.
    /// Updates that wait for a leader go at once.
    ///
    /// Feed every change, the loss of the leader included; feeding the same view again changes nothing.
    ///
    /// # Errors
    /// See [`UpdateError`]; then nothing has changed.
    pub fn update_group(&self, group: &str, clones: &GroupClones) -> Result<(), UpdateError> {
        let mut publisher = lock(&self.shared.publisher);
        publisher.update_group(group, clones)?;
        self.tell(|| Control::TablesChanged);
        self.check(publisher.targets());
        Ok(())
    }

    /// Reads the files of certificates and keys again; clients that connect from now on see what is in them.
    /// Connections that exist go on. Where something is wrong the service keeps what it had, and the others
    /// are done all the same.
    ///
    /// # Errors
    /// All services whose files cannot be used, and why.
    pub fn reload_certificates(&self) -> Result<(), Vec<CertificateError>> {
        let errors = self.shared.terminators.reload();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// What was counted, one entry per service. Counters of workers that have ended are missing.
    pub async fn stats(&self) -> Vec<ServiceStats> {
        let mut replies = Vec::new();
        for worker in &self.shared.workers {
            let (sender, receiver) = oneshot::channel();
            if worker.send(Control::Stats(sender)).is_ok() {
                replies.push(receiver);
            }
        }
        let mut total: Vec<ServiceStats> = self
            .shared
            .serving
            .iter()
            .map(|serving| ServiceStats { service: serving.service.clone(), ..ServiceStats::default() })
            .collect();
        for reply in replies {
            if let Ok(stats) = reply.await {
                total.iter_mut().zip(&stats).for_each(|(total, one)| total.merge(one));
            }
        }
        total
    }

    /// What active checks say of each server, for the services that have `[service.health]`.
    pub fn health(&self) -> Vec<ServerHealth> {
        lock(&self.shared.checker).health()
    }

    /// Stops in an orderly way: accepts no more clients, finishes the requests under way (responses say
    /// `Connection: close`), closes idle connections; whatever is left after `grace` is cut. Blocks until all
    /// workers have ended; a second call, from another thread, cuts at once.
    pub fn shutdown(&self, grace: Duration) {
        self.tell(|| Control::Shutdown(grace));
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        for thread in threads {
            // A worker that panicked has said so; the others end all the same.
            let _ = thread.join();
        }
        lock(&self.shared.checker).stop();
    }

    fn check(&self, targets: Vec<Target>) {
        if let Err(error) = lock(&self.shared.checker).look_at(targets) {
            tracing::error!(%error, "servers are not checked");
        }
    }

    fn tell(&self, message: impl Fn() -> Control) {
        for worker in &self.shared.workers {
            let _ = worker.send(message()); // a worker that has ended needs to be told nothing
        }
    }
}

/// No critical section can panic half-way through a change, so a poisoned lock guards a whole value.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
