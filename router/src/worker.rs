//! One worker: an OS thread with its own runtime, listeners, clients and connections to servers.
//!
//! Nothing on the path of a request is shared with another thread but the table's snapshot. The runtime is
//! tokio's `LocalRuntime` and not a `LocalSet`: waking a task of a `LocalSet` from the I/O driver wakes the
//! set through the runtime's eventfd, one system call per turn of the loop.

mod buffer;
mod clock;
mod entrance;
mod linger;
mod pace;
mod placements;
mod server;
mod stream;
mod tunnel;

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use membership_sync::Reader;
use membership_types::Rng;
use router_proto::PhysicalId;
use tokio::{net::TcpStream, sync::mpsc, sync::oneshot};

pub(crate) use buffer::{Buf, Buffers};
pub(crate) use clock::{Clock, Deadline, DeadlineId};
pub(crate) use entrance::Entrance;
pub(crate) use linger::linger;
pub(crate) use pace::{Hold, Pace};
pub(crate) use placements::Placements;
pub(crate) use server::{InFlight, Server, Stopwatch};
pub(crate) use stream::ClientStream;
pub(crate) use tunnel::Tunnel;

use crate::{
    config::{Protocol, Service},
    frames::{FramesService, LocalCall, serve_locals},
    http::HttpService,
    limits::Limits,
    memcached::{Memcached, MemcachedService},
    pipelined::{self, Dialect},
    redis::{Redis, RedisService},
    stats::{Counters, ServiceStats},
    table::Table,
    tcp::TcpService,
};

/// What all services of one worker share.
pub(crate) struct Worker {
    pub limits: Limits,
    pub clock: Rc<Clock>,
    pub pace: Rc<Pace>,
    pub buffers: Buffers,
    pub servers: server::Servers,
    random: RefCell<Rng>,
    draining: Cell<bool>,
    clients: Cell<usize>,
    /// How many lanes to each server are taken by services.
    lanes: Cell<usize>,
    /// Of the clients, how many are still at the entrance.
    handshakes: Cell<usize>,
}

impl Worker {
    /// Whether the router is going down: what is under way ends, nothing new begins.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Takes so many lanes for a service, and returns the first.
    pub fn take_lanes(&self, count: usize) -> usize {
        let first = self.lanes.get();
        self.lanes.set(first + count);
        first
    }

    /// 64 random bits, for choices that need no secrecy.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }
}

/// What a worker is started with.
pub(crate) struct Setup {
    pub limits: Limits,
    pub seed: u64,
    pub services: Vec<ServiceSetup>,
    pub control: mpsc::UnboundedReceiver<Control>,
}

pub(crate) struct ServiceSetup {
    pub service: Arc<Service>,
    /// Where clients come from.
    pub door: Door,
    pub table: Reader<Table>,
}

/// Where the clients of a service come from.
pub(crate) enum Door {
    /// What they must do first is beside it.
    Network(TcpListener, Entrance),
    /// They are tasks of this process. Only frames are served so.
    Within(mpsc::Receiver<LocalCall>),
}

/// What a worker is told.
pub(crate) enum Control {
    /// Some service has a new table.
    TablesChanged,
    /// Active checks found that a server is down, or up again.
    Health { server: PhysicalId, addr: SocketAddr, up: bool },
    /// Say what you have counted.
    Stats(oneshot::Sender<Vec<ServiceStats>>),
    /// Finish what is under way, then end; after this long end anyway.
    Shutdown(Duration),
}

/// The protocol's side of a service on one worker.
#[derive(Clone)]
enum Front {
    Http(Rc<HttpService>),
    Redis(Rc<RedisService>),
    Frames(Rc<FramesService>),
    Memcached(Rc<MemcachedService>),
    Tcp(Rc<TcpService>),
}

impl Front {
    fn counters(&self) -> &Counters {
        match self {
            Self::Http(service) => &service.counters,
            Self::Redis(service) => &service.counters,
            Self::Frames(service) => &service.counters,
            Self::Memcached(service) => &service.counters,
            Self::Tcp(service) => &service.counters,
        }
    }

    fn tables_changed(&self) {
        match self {
            Self::Http(service) => service.tables_changed(),
            Self::Redis(service) => service.tables_changed(),
            Self::Frames(service) => service.tables_changed(),
            Self::Memcached(service) => service.tables_changed(),
            Self::Tcp(service) => service.tables_changed(),
        }
    }

    fn names(&self, id: PhysicalId) -> bool {
        match self {
            Self::Http(service) => service.names(id),
            Self::Redis(service) => service.names(id),
            Self::Frames(service) => service.names(id),
            Self::Memcached(service) => service.names(id),
            Self::Tcp(service) => service.names(id),
        }
    }

    async fn serve(self, stream: ClientStream) {
        match self {
            Self::Http(service) => crate::http::serve(service, stream).await,
            Self::Redis(service) => pipelined::serve(service, stream).await,
            Self::Frames(service) => crate::frames::serve(service, stream).await,
            Self::Memcached(service) => pipelined::serve(service, stream).await,
            Self::Tcp(service) => crate::tcp::serve(service, stream).await,
        }
    }

    /// Tells a client that there are too many, if that can be said at once.
    fn shed(&self, stream: &TcpStream) {
        let text: &[u8] = match self {
            Self::Http(_) => crate::http::TOO_MANY_CLIENTS,
            Self::Redis(_) => Redis::TOO_MANY_CLIENTS,
            Self::Frames(_) => &crate::frames::too_many_clients(),
            Self::Memcached(_) => Memcached::TOO_MANY_CLIENTS,
            // Whatever was said could be taken for the server's.
            Self::Tcp(_) => return,
        };
        let _ = stream.try_write(text);
    }
}

/// Runs a worker on this thread until it is told to shut down.
///
/// # Errors
/// The runtime or a listener cannot be set up.
pub(crate) fn run(setup: Setup) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(work(setup))
}

async fn work(setup: Setup) -> io::Result<()> {
    let Setup { limits, seed, services, mut control } = setup;
    let worker = Rc::new(Worker {
        limits,
        clock: Rc::new(Clock::new()),
        pace: Rc::new(Pace::new()?),
        buffers: Buffers::default(),
        servers: server::Servers::default(),
        random: RefCell::new(Rng::seeded(seed)),
        draining: Cell::new(false),
        clients: Cell::new(0),
        lanes: Cell::new(0),
        handshakes: Cell::new(0),
    });
    let clock = Rc::clone(&worker.clock);
    tokio::task::spawn_local(async move { clock.run().await });
    let pace = Rc::clone(&worker.pace);
    tokio::task::spawn_local(async move { pace.run().await });

    let mut fronts = Vec::new();
    for ServiceSetup { service, door, table } in services {
        let front = match &service.protocol {
            Protocol::Http { .. } => Front::Http(Rc::new(HttpService::new(&worker, &service, table))),
            Protocol::Redis => Front::Redis(RedisService::start(&worker, &service, table)),
            Protocol::Frames { .. } => Front::Frames(FramesService::start(&worker, &service, table)),
            Protocol::Memcached => Front::Memcached(MemcachedService::start(&worker, &service, table)),
            Protocol::Tcp { .. } => Front::Tcp(Rc::new(TcpService::new(&worker, &service, table))),
        };
        match (door, &front) {
            (Door::Network(listener, entrance), _) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tokio::task::spawn_local(accept(Rc::clone(&worker), listener, front.clone(), entrance));
            }
            (Door::Within(calls), Front::Frames(service)) => {
                tokio::task::spawn_local(serve_locals(Rc::clone(service), calls));
            }
            (Door::Within(_), _) => unreachable!("only frames are served to this process"),
        }
        fronts.push((service.name.clone(), front));
    }
    tokio::task::spawn_local(sweep(
        Rc::clone(&worker),
        fronts.iter().map(|(_, front)| front.clone()).collect(),
    ));

    let tables_changed = || {
        worker.servers.abandon(|id| fronts.iter().any(|(_, front)| front.names(id)));
        fronts.iter().for_each(|(_, front)| front.tables_changed());
    };
    let health = |server, addr, up| worker.servers.get(server, addr).found(worker.clock.now(), up);
    let grace = loop {
        match control.recv().await {
            Some(Control::TablesChanged) => tables_changed(),
            Some(Control::Health { server, addr, up }) => health(server, addr, up),
            Some(Control::Stats(reply)) => {
                let stats = fronts.iter().map(|(name, front)| front.counters().read(name)).collect();
                let _ = reply.send(stats); // whoever asked may have gone
            }
            Some(Control::Shutdown(grace)) => break grace,
            // Every handle is gone: nobody can feed views or stop this worker in an orderly way.
            None => break Duration::ZERO,
        }
    };
    worker.draining.set(true);
    worker.clock.wake_all();
    let deadline = Deadline::new(&worker.clock);
    deadline.arm(grace);
    let drained = std::future::poll_fn(|cx| {
        let passed = deadline.passed(cx);
        while let Poll::Ready(message) = control.poll_recv(cx) {
            match message {
                Some(Control::TablesChanged) => tables_changed(),
                Some(Control::Health { server, addr, up }) => health(server, addr, up),
                Some(Control::Stats(_)) => {}
                Some(Control::Shutdown(_)) => return Poll::Ready(false),
                None => break,
            }
        }
        if worker.clients.get() == 0 {
            return Poll::Ready(true);
        }
        if passed { Poll::Ready(false) } else { Poll::Pending }
    });
    // The last client to go wakes nobody; the deadlines' ticks do, soon enough.
    let ticks = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            worker.clock.wake(deadline.id());
        }
    };
    let drained = race(drained, ticks).await;
    tracing::info!(drained, clients = worker.clients.get(), "worker ends");
    Ok(())
}

/// Runs `forever` beside `main` until `main` is done.
async fn race<T>(
    main: impl Future<Output = T>,
    forever: impl Future<Output = std::convert::Infallible>,
) -> T {
    let (mut main, mut forever) = (std::pin::pin!(main), std::pin::pin!(forever));
    std::future::poll_fn(|cx| {
        let _never = forever.as_mut().poll(cx);
        main.as_mut().poll(cx)
    })
    .await
}

/// Accepts a service's clients on this worker until the router drains; then those that are already in the
/// queue.
async fn accept(worker: Rc<Worker>, listener: tokio::net::TcpListener, front: Front, entrance: Entrance) {
    let drain = Deadline::new(&worker.clock);
    loop {
        let accepted = std::future::poll_fn(|cx| {
            drain.passed(cx); // only to be woken when the router drains
            match listener.poll_accept(cx) {
                Poll::Pending if worker.is_draining() => Poll::Ready(None),
                other => other.map(Some),
            }
        });
        match accepted.await {
            None => return,
            Some(Ok((stream, source))) => admit(&worker, &front, &entrance, stream, source),
            Some(Err(error)) => {
                // Out of descriptors, most likely: pending connections stay in the queue meanwhile.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn admit(worker: &Rc<Worker>, front: &Front, entrance: &Entrance, stream: TcpStream, source: SocketAddr) {
    let counters = front.counters();
    if worker.clients.get() >= worker.limits.clients {
        counters.shed.add(1);
        if entrance.is_open() {
            front.shed(&stream);
        }
        return;
    }
    if !entrance.is_open() && worker.handshakes.get() >= worker.limits.handshakes {
        counters.shed.add(1);
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "client gone before it was served");
        return;
    }
    counters.accepted.add(1);
    let guard = Present::enter(worker, front);
    let front = front.clone();
    if !entrance.is_open() {
        let (worker, entrance) = (Rc::clone(worker), entrance.clone());
        worker.handshakes.set(worker.handshakes.get() + 1);
        tokio::task::spawn_local(async move {
            let passed = entrance.pass(&worker, stream, source).await;
            worker.handshakes.set(worker.handshakes.get() - 1);
            match passed {
                Some(stream) => front.serve(stream).await,
                None => front.counters().handshakes_failed.add(1),
            }
            drop(guard);
        });
        return;
    }
    let origin = stream::Origin { source, destination: None, tls: false };
    let stream = ClientStream::plain(stream, origin);
    tokio::task::spawn_local(async move {
        // Begun in here: a future that is moved into another one takes its room twice, for every client.
        front.serve(stream).await;
        drop(guard);
    });
}

/// A client that is being served.
struct Present {
    worker: Rc<Worker>,
    front: Front,
}

impl Present {
    fn enter(worker: &Rc<Worker>, front: &Front) -> Self {
        worker.clients.set(worker.clients.get() + 1);
        front.counters().clients.add(1);
        Self { worker: Rc::clone(worker), front: front.clone() }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.worker.clients.set(self.worker.clients.get() - 1);
        self.front.counters().clients.sub(1);
    }
}

/// Once a second ends connections that nobody will use again.
async fn sweep(worker: Rc<Worker>, fronts: Vec<Front>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        worker.servers.sweep(worker.clock.now(), |id| fronts.iter().any(|front| front.names(id)));
    }
}
