//! Starting, feeding, reconfiguring and stopping a router.

mod reload;
pub(crate) mod view;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc as channel,
    },
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    access::Logs,
    checks::{Checker, ServerHealth, Target},
    config::{Config, Place, Service},
    limits::Limits,
    stats::{Measured, ServiceStats},
    table::{GroupClones, Publisher, UpdateError},
    tls::{CertificateError, Terminators},
    worker::{
        self, Control, DoorEntry, DoorId, Entrance, Entry, Guest, Heir, Lineup, Opening, ServiceSetup, Setup,
    },
};

pub(crate) use reload::Inherited;
pub use reload::Reloaded;
use reload::{Door, Doors};
use view::ServiceView;

/// How long workers may take to say what they have counted.
const ANSWER: Duration = Duration::from_secs(1);

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
    #[error("{}service {service:?} cannot listen on {listen}: {error}{}", before(.place), in_use(.error))]
    Listen {
        /// Where the address is written.
        place: Option<Place>,
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
    /// An access log cannot be written.
    #[error("the access log {path} cannot be opened: {error}")]
    AccessLog {
        /// The file.
        path: String,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a worker thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a configuration was not taken over. The router goes on as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// What a start would fail for too.
    #[error(transparent)]
    Start(StartError),
    /// The new address overlaps one that this router listens on, and that goes with this reload.
    #[error(
        "{}service {service:?} cannot listen on {listen} while this router listens on {holder}: \
         reload first without the one, then with the other",
        before(.place)
    )]
    Overlap {
        /// Where the address is written.
        place: Option<Place>,
        /// The service.
        service: String,
        /// The address that it is to have.
        listen: SocketAddr,
        /// The address that is in its way.
        holder: SocketAddr,
    },
    /// The router is going down, or a worker has failed.
    #[error("the router does not take over a configuration any more: {0}")]
    Stopped(String),
}

fn before(place: &Option<Place>) -> String {
    place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default()
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
    state: Mutex<State>,
    workers: Vec<mpsc::UnboundedSender<Control>>,
    checker: Mutex<Checker>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    /// How many clients were taken over from another process.
    adopted: AtomicUsize,
}

/// What is served now, and where.
struct State {
    publisher: Publisher,
    doors: Vec<Door>,
    logs: Logs,
    terminators: Terminators,
    /// The last number that was given to a door.
    last_door: u64,
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
    begin(config, options, &mut Vec::new(), true)
}

/// As [`start`], with sockets that another process listens on so far. Accepts nobody before [`RouterHandle::open`] unless `open`.
pub(crate) fn begin(
    config: &Config,
    options: Options,
    inherited: &mut Vec<Inherited>,
    open: bool,
) -> Result<RouterHandle, StartError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let count = options.workers.unwrap_or(cores).max(1);
    let publisher = Publisher::new(config);
    let terminators = Terminators::of(config, &Terminators::default())?;
    let mut last_door = 0;
    let mut doors = Doors::open(config, &[], inherited, count, &mut last_door)?;
    let mut logs = Logs::default();
    open_logs(&mut logs, config)?;
    let lineups = lineups(&publisher, &mut doors, &logs, &terminators, count, |_| true);

    let (mut workers, mut threads) = (Vec::new(), Vec::new());
    for (number, lineup) in lineups.into_iter().enumerate() {
        let (sender, control) = mpsc::unbounded_channel();
        // What is under way or waits over all workers stays within the limits.
        let all = options.limits.clone();
        let limits = Limits {
            waiting: all.waiting.div_ceil(count),
            in_flight: all.in_flight.div_ceil(count),
            in_flight_per_server: all.in_flight_per_server.div_ceil(count),
            ..all
        };
        let setup = Setup { limits, workers: count, seed: seed(number), lineup, open, control };
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
    let state = Mutex::new(State { publisher, doors: doors.all, logs, terminators, last_door });
    let adopted = AtomicUsize::default();
    let shared = Shared { state, workers, checker, threads: Mutex::new(threads), adopted };
    Ok(RouterHandle { shared: Arc::new(shared) })
}

/// The access logs that a configuration names.
fn paths(config: &Config) -> impl Iterator<Item = &str> {
    config.services.iter().filter_map(|service| Some(&*service.access_log.as_ref()?.file))
}

fn open_logs(logs: &mut Logs, config: &Config) -> Result<(), StartError> {
    logs.open(paths(config)).map_err(|(path, error)| StartError::AccessLog { path, error })
}

/// What each worker is to serve: of the services those as new that `is_new` says.
fn lineups(
    publisher: &Publisher,
    doors: &mut Doors,
    logs: &Logs,
    terminators: &Terminators,
    workers: usize,
    is_new: impl Fn(&Arc<Service>) -> bool,
) -> Vec<Lineup> {
    let one = |_| {
        let services = publisher.services().iter().map(|published| {
            let service = &published.service;
            if is_new(service) {
                let (service, table, held) =
                    (Arc::clone(service), published.reader(), Arc::clone(&published.held));
                let log = service.access_log.as_ref().and_then(|log| logs.handle(&log.file));
                Entry::New(ServiceSetup { service, table, held, log })
            } else {
                Entry::Same(service.name.clone())
            }
        });
        let all = doors.all.iter().zip(&mut doors.sockets).enumerate().map(|(service, (door, sockets))| {
            let socket = sockets.as_mut().and_then(Vec::pop).map(Opening::Network);
            let config = &publisher.services()[service].service;
            let entrance = Entrance { tls: terminators.get(&config.name), accept_proxy: config.accept_proxy };
            DoorEntry { id: door.id, service, entrance, socket }
        });
        Lineup { services: services.collect(), doors: all.collect() }
    };
    (0..workers).map(one).collect()
}

/// A seed that differs between workers and processes. Choices between clones need no more.
pub(crate) fn seed(worker: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(worker)
}

impl RouterHandle {
    /// The services, and where they are served.
    pub fn serving(&self) -> Vec<Serving> {
        lock(&self.shared.state).doors.iter().map(Door::serving).collect()
    }

    /// Goes over to another configuration while requests are under way. Services are matched by name:
    ///
    /// * What does not change goes on untouched. A listening socket whose address stays is never closed,
    ///   whichever service has it; so no connection in its queue is lost.
    /// * A changed service serves new requests as the new configuration says, those of connected clients too;
    ///   a request under way ends under the old one. Where the protocol changes, clients are sent away after
    ///   the request that is under way.
    /// * A service, or an address, that goes serves those who are in its queue; then it listens no more.
    /// * What is known of a server (requests in flight, failures, connections) stays with its address.
    ///
    /// It is all or nothing. Blocks until all workers have gone over, some milliseconds.
    ///
    /// # Errors
    /// See [`ReloadError`]; then nothing has changed, but where a worker failed.
    pub fn reload(&self, config: &Config) -> Result<Reloaded, ReloadError> {
        let mut state = lock(&self.shared.state);
        let State { publisher, doors, logs, terminators, last_door } = &mut *state;
        let workers = self.shared.workers.len();
        if self.shared.workers.iter().any(mpsc::UnboundedSender::is_closed) {
            return Err(ReloadError::Stopped("it is going down".into()));
        }
        let mut opened = Doors::open(config, doors, &mut Vec::new(), workers, last_door)
            .map_err(|error| reload::why(error, doors))?;
        open_logs(logs, config).map_err(ReloadError::Start)?;
        *terminators =
            Terminators::of(config, terminators).map_err(|error| ReloadError::Start(error.into()))?;
        let services = |publisher: &Publisher| -> Vec<Arc<Service>> {
            publisher.services().iter().map(|published| Arc::clone(&published.service)).collect()
        };
        let before = services(publisher);
        publisher.take_over(config);
        let told = reload::changes(&before, &services(publisher));
        self.check(publisher.targets());
        let lineups =
            lineups(publisher, &mut opened, logs, terminators, workers, |service| !before.contains(service));
        let (reply, replies) = channel::channel();
        for (worker, lineup) in self.shared.workers.iter().zip(lineups) {
            let _ = worker.send(Control::Lineup(lineup, reply.clone())); // one that has ended does not answer
        }
        drop(reply);
        *doors = opened.all;
        let mut answers = 0;
        for outcome in replies {
            outcome.map_err(|error| ReloadError::Stopped(format!("a socket cannot be served: {error}")))?;
            answers += 1;
        }
        if answers < workers {
            return Err(ReloadError::Stopped("it is going down".into()));
        }
        logs.keep(paths(config));
        Ok(told)
    }

    /// Takes over a view of a group: from now on requests go to its clones, and updates to its leader.
    /// Updates that wait for a leader go at once.
    ///
    /// Feed every change, the loss of the leader included; feeding the same view again changes nothing.
    ///
    /// # Errors
    /// See [`UpdateError`]; then nothing has changed.
    pub fn update_group(&self, group: &str, clones: &GroupClones) -> Result<(), UpdateError> {
        let mut state = lock(&self.shared.state);
        let publisher = &mut state.publisher;
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
        let terminators = lock(&self.shared.state).terminators.clone();
        let errors = terminators.reload();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// What is served where, in the order of the configuration.
    pub fn services(&self) -> Vec<ServiceView> {
        let state = lock(&self.shared.state);
        // Doors are in the order of services.
        state.publisher.services().iter().zip(&state.doors).map(|(one, door)| view::of(one, door)).collect()
    }

    /// What was counted, one entry per service. Counters of workers that have ended are missing.
    pub async fn stats(&self) -> Vec<ServiceStats> {
        let (mut all, replies) = self.ask();
        for reply in replies {
            if let Ok(one) = reply.await {
                all.add(&one);
            }
        }
        all.services
    }

    /// All that was counted. A worker that does not answer within a second is counted as silent.
    ///
    /// Needs a tokio runtime with a timer around it.
    pub async fn measured(&self) -> Measured {
        let until = tokio::time::Instant::now() + ANSWER;
        let (mut all, replies) = self.ask();
        for reply in replies {
            match tokio::time::timeout_at(until, reply).await {
                Ok(Ok(one)) => all.add(&one),
                Ok(Err(_)) | Err(_) => all.silent += 1,
            }
        }
        all
    }

    /// Asks all workers what they have counted; what nobody has counted yet, and their answers.
    fn ask(&self) -> (Measured, Vec<oneshot::Receiver<Measured>>) {
        let ask = |worker: &mpsc::UnboundedSender<Control>| {
            let (sender, receiver) = oneshot::channel();
            let _ = worker.send(Control::Stats(sender)); // one that has ended does not answer
            receiver
        };
        let replies: Vec<_> = self.shared.workers.iter().map(ask).collect();
        let services = self.serving().into_iter();
        let services = services.map(|Serving { service, .. }| ServiceStats { service, ..Default::default() });
        let workers = replies.len();
        (Measured { services: services.collect(), workers, ..Measured::default() }, replies)
    }

    /// Begins to accept clients, where it was started without that.
    pub(crate) fn open(&self) {
        self.tell(|| Control::Open);
    }

    /// The sockets that are listened on, once more: all, or none.
    pub(crate) fn sockets(&self) -> io::Result<Vec<Inherited>> {
        let state = lock(&self.shared.state);
        let (reply, replies) = channel::channel();
        self.tell(|| Control::Sockets(reply.clone()));
        drop(reply);
        let doors = state.doors.iter();
        let nothing = |door: &Door| {
            let (service, configured) = (door.service.clone(), door.configured);
            (door.id, Inherited { service, configured, sockets: Vec::new() })
        };
        let mut all: Vec<(DoorId, Inherited)> = doors.map(nothing).collect();
        let mut answers = 0;
        for sockets in replies {
            for (id, socket) in sockets? {
                if let Some((_, door)) = all.iter_mut().find(|(door, _)| *door == id) {
                    door.sockets.push(socket.into());
                }
            }
            answers += 1;
        }
        if answers < self.shared.workers.len() {
            return Err(io::Error::other("a worker has ended"));
        }
        Ok(all.into_iter().map(|(_, door)| door).filter(|door| !door.sockets.is_empty()).collect())
    }

    /// Serves a client that another process had so far.
    pub(crate) fn adopt(&self, guest: Guest) {
        let turn = self.shared.adopted.fetch_add(1, Ordering::Relaxed);
        let worker = &self.shared.workers[turn % self.shared.workers.len()];
        let _ = worker.send(Control::Adopt(guest)); // one that has ended serves nobody
    }

    /// As [`RouterHandle::shutdown`], but clients pass to somebody else where they can, between two requests.
    pub(crate) fn bequeath(&self, heir: &Heir, grace: Duration) {
        self.end(|| Control::GiveWay(heir.clone(), grace));
    }

    /// What active checks say of each server, for the services that have `[service.health]`.
    pub fn health(&self) -> Vec<ServerHealth> {
        lock(&self.shared.checker).health()
    }

    /// Stops in an orderly way: accepts no more clients, finishes the requests under way (responses say
    /// `Connection: close`), closes idle connections; whatever is left after `grace` is cut. Blocks until all
    /// workers have ended; a second call, from another thread, cuts at once.
    pub fn shutdown(&self, grace: Duration) {
        self.end(|| Control::Shutdown(grace));
    }

    fn end(&self, order: impl Fn() -> Control) {
        self.tell(order);
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        for thread in threads {
            // A worker that panicked has said so; the others end all the same.
            let _ = thread.join();
        }
        lock(&self.shared.checker).stop();
        lock(&self.shared.state).logs.end();
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
