//! One worker: an OS thread with its own runtime, listeners, clients and connections to servers.
//!
//! Nothing on the path of a request is shared with another thread but the table's snapshot. The runtime is
//! tokio's `LocalRuntime` and not a `LocalSet`: waking a task of a `LocalSet` from the I/O driver wakes the
//! set through the runtime's eventfd, one system call per turn of the loop.
//!
//! | file | one idea |
//! | --- | --- |
//! | `services.rs`, `front.rs` | which services there are, and where clients come in; what all of them are asked |
//! | `entrance.rs`, `stream.rs` | what lies between a client's socket and its protocol |
//! | `client.rs`, `client/` | clients that send requests ahead of their answers |
//! | `room.rs` | what large requests of all clients hold |
//! | `bequest.rs`, `linger.rs` | clients that pass to another process; those that are sent away |
//! | `admission.rs`, `waiting.rs` | how many requests may be under way; those that wait for a leader |
//! | `target.rs`, `placements.rs` | where a request goes; with which clone a client stays |
//! | `hedges.rs` | second attempts at reads whose server is silent |
//! | `server.rs` | what is known of a server |
//! | `pace.rs`, `inbox.rs` | requests gather before they go to a server; what it says is read in batches |
//! | `tunnel.rs` | bytes that pass both ways |
//! | `clock.rs`, `waker.rs`, `buffer.rs` | time and deadlines; who is woken; memory that is used again |

mod admission;
mod bequest;
mod buffer;
mod client;
mod clock;
mod entrance;
mod front;
mod hedges;
mod inbox;
mod linger;
mod pace;
mod placements;
mod room;
mod server;
mod services;
mod stream;
mod target;
mod tunnel;
mod waiting;
mod waker;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::{Rc, Weak},
    sync::mpsc::Sender,
    task::Poll,
    time::Duration,
};

use membership_types::Rng;
use router_proto::{PhysicalId, racs::Policy};
use tokio::{net::TcpStream, sync::mpsc, sync::oneshot};

pub(crate) use admission::{Admission, SERVERS_FULL, TOO_MANY};
pub(crate) use bequest::{Guest, Heir, MOST_INPUT};
pub(crate) use buffer::{Buf, Buffers};
pub(crate) use client::{Client, ClientService, ClientTask, Clients, Dialogue, READ, Taken, UnderWay};
pub(crate) use clock::{Clock, Deadline, DeadlineId};
pub(crate) use entrance::Entrance;
pub(crate) use hedges::{Copies, HUNG, Hedges, Rival, Unanswered};
pub(crate) use inbox::Inbox;
pub(crate) use linger::linger;
pub(crate) use pace::{Hold, Pace};
pub(crate) use placements::Placements;
pub(crate) use room::{Held, Room, Share};
pub(crate) use server::{End, InFlight, Server, Stopwatch};
pub(crate) use services::{DoorEntry, DoorId, Entry, Lineup, Opening, ServiceSetup, Succession};
pub(crate) use stream::{ClientStream, Origin};
pub(crate) use target::Target;
pub(crate) use tunnel::{Ended as TunnelEnded, Tunnel};
pub(crate) use waiting::{Entry as WaitingEntry, Waiting, Waits};
pub(crate) use waker::LocalWaker;

use front::Front;
use services::{Door, Ledger, Services};

use crate::{
    config::{Auth, Service},
    limits::Limits,
    stats::{Counters, Measured},
};

/// How long a client of whom nothing was heard yet may take while the router drains: it may have said something already.
pub(crate) const LAST_CHANCE: Duration = Duration::from_millis(300);

/// The lanes to servers that a service has, with one set of passwords.
struct Lanes {
    service: Box<str>,
    protocol: &'static str,
    auth: Auth,
    first: usize,
    count: usize,
    /// Nobody sends anything over them any more once this is gone.
    held: Weak<()>,
}

/// What all services of one worker share.
pub(crate) struct Worker {
    /// Where a service does not say otherwise: see [`Worker::limits`].
    pub limits: Limits,
    /// How many workers there are.
    count: usize,
    pub clock: Rc<Clock>,
    pub pace: Rc<Pace>,
    pub buffers: Buffers,
    pub servers: server::Servers,
    random: RefCell<Rng>,
    /// Whether it accepts clients.
    open: Cell<bool>,
    draining: Cell<bool>,
    gives_way: Cell<bool>,
    heir: RefCell<Option<Heir>>,
    clients: Cell<usize>,
    /// Tasks that accept clients.
    accepting: Cell<usize>,
    /// Which lanes to each server are taken, by whom.
    lanes: RefCell<Vec<Lanes>>,
    /// Of the clients, how many are still at the entrance.
    handshakes: Cell<usize>,
    ledger: Ledger,
}

impl Worker {
    /// Whether the router is going down: what is under way ends, nothing new begins.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Takes so many lanes for a service, for as long as it holds what is returned with the first. Another
    /// configuration of it has the same ones, unless passwords have changed: what goes over a lane is let in by them.
    pub fn take_lanes(&self, service: &Service, count: usize) -> (usize, Rc<()>) {
        let mut all = self.lanes.borrow_mut();
        let protocol = service.protocol.name();
        let known = |lanes: &&mut Lanes| {
            lanes.service == service.name && lanes.protocol == protocol && lanes.auth == service.auth
        };
        if let Some(lanes) = all.iter_mut().find(known) {
            let held = lanes.held.upgrade().unwrap_or_default();
            lanes.held = Rc::downgrade(&held);
            return (lanes.first, held);
        }
        let is_free = |first: &usize| {
            all.iter().all(|other| first + count <= other.first || other.first + other.count <= *first)
        };
        let first = (0..).find(is_free).expect("there are more numbers than lanes");
        let held = Rc::default();
        let (service, auth) = (service.name.clone(), service.auth.clone());
        all.push(Lanes { service, protocol, auth, first, count, held: Rc::downgrade(&held) });
        (first, held)
    }

    /// Ends the connections of lanes that nobody holds any more; their numbers may be taken again.
    fn release_lanes(&self) {
        self.lanes.borrow_mut().retain(|lanes| {
            let held = lanes.held.strong_count() > 0;
            if !held {
                self.servers.retire_lanes(lanes.first..lanes.first + lanes.count);
            }
            held
        });
    }

    /// How many requests of a service may be under way here.
    pub fn admission(&self, service: &Service) -> Admission {
        Admission::new(service, &self.limits, self.count, &self.counters(&service.name))
    }

    /// How clones are chosen for a service here.
    pub fn policy(&self, service: &Service) -> Policy {
        admission::policy(service, &self.limits, self.count)
    }

    /// How long a service waits and how much it keeps here.
    pub fn limits(&self, service: &Service) -> Limits {
        service.limits.over(&self.limits)
    }

    /// A service's counters on this worker.
    pub fn counters(&self, service: &str) -> Rc<Counters> {
        self.ledger.of(service)
    }

    fn forget_counters(&self, service: &str) {
        self.ledger.forget(service);
    }

    /// 64 random bits, for choices that need no secrecy.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }
}

/// What a worker is started with.
pub(crate) struct Setup {
    pub limits: Limits,
    /// How many workers there are.
    pub workers: usize,
    pub seed: u64,
    pub lineup: Lineup,
    /// Whether clients are accepted at once; if not, once it is told so.
    pub open: bool,
    pub control: mpsc::UnboundedReceiver<Control>,
}

/// What a worker is told.
pub(crate) enum Control {
    /// Some service has a new table.
    TablesChanged,
    /// Active checks found that a server is down, or up again.
    Health { server: PhysicalId, addr: SocketAddr, up: bool },
    /// Serve this from now on, and say so.
    Lineup(Lineup, Sender<io::Result<()>>),
    /// Accept clients.
    Open,
    /// A client that another process had.
    Adopt(Guest),
    /// Say which sockets you listen on.
    Sockets(Sender<io::Result<Vec<(DoorId, OwnedFd)>>>),
    /// Say what you have counted.
    Stats(oneshot::Sender<Measured>),
    /// Finish what is under way, then end; after this long end anyway.
    Shutdown(Duration),
    /// The same, but clients pass to somebody else.
    GiveWay(Heir, Duration),
}

/// Runs a worker on this thread until it is told to shut down.
///
/// # Errors
/// The runtime or a listener cannot be set up.
pub(crate) fn run(setup: Setup) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().on_thread_unpark(clock::slept);
    let runtime = runtime.build_local(Default::default())?;
    runtime.block_on(work(setup))
}

async fn work(setup: Setup) -> io::Result<()> {
    let Setup { limits, workers, seed, lineup, open, mut control } = setup;
    let worker = Rc::new(Worker {
        limits,
        count: workers,
        clock: Rc::new(Clock::new()),
        pace: Rc::new(Pace::new()?),
        buffers: Buffers::default(),
        servers: server::Servers::default(),
        random: RefCell::new(Rng::seeded(seed)),
        open: Cell::new(open),
        draining: Cell::new(false),
        gives_way: Cell::new(false),
        heir: RefCell::default(),
        clients: Cell::new(0),
        accepting: Cell::new(0),
        lanes: RefCell::default(),
        handshakes: Cell::new(0),
        ledger: Ledger::default(),
    });
    let clock = Rc::clone(&worker.clock);
    tokio::task::spawn_local(async move { clock.run().await });
    let pace = Rc::clone(&worker.pace);
    tokio::task::spawn_local(async move { pace.run().await });

    let services = Rc::new(Services::default());
    services.take_over(&worker, lineup)?;
    tokio::task::spawn_local(sweep(Rc::clone(&worker), Rc::clone(&services)));
    tokio::task::spawn_local(flush(Rc::clone(&services)));

    let tables_changed = || {
        worker.servers.abandon(|id| services.name(id));
        services.tables_changed();
    };
    let health = |server, addr, up| worker.servers.get(server, addr).found(worker.clock.now(), up);
    let grace = loop {
        match control.recv().await {
            Some(Control::TablesChanged) => tables_changed(),
            Some(Control::Health { server, addr, up }) => health(server, addr, up),
            Some(Control::Lineup(lineup, reply)) => {
                let outcome = services.take_over(&worker, lineup);
                tables_changed();
                let _ = reply.send(outcome); // whoever asked may have gone
            }
            Some(Control::Stats(reply)) => {
                let mut measured = Measured::default();
                services.each(|name, front| {
                    let mut stats = front.counters().read(name);
                    stats.waiting = front.waiting();
                    stats.in_flight = front.under_way();
                    measured.services.push(stats);
                });
                measured.servers =
                    worker.servers.read(worker.clock.now(), |number| worker.ledger.name(number));
                measured.tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
                let _ = reply.send(measured); // whoever asked may have gone
            }
            Some(Control::Open) => {
                worker.open.set(true);
                worker.clock.wake_all();
            }
            Some(Control::Adopt(guest)) => adopt(&worker, &services, guest),
            Some(Control::Sockets(reply)) => drop(reply.send(services.sockets())), // whoever asked may have gone
            Some(Control::Shutdown(grace)) => break grace,
            Some(Control::GiveWay(heir, grace)) => {
                *worker.heir.borrow_mut() = Some(heir);
                worker.gives_way.set(true);
                break grace;
            }
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
                // Whoever asked hears that there is no answer.
                Some(Control::Stats(_) | Control::Lineup(..) | Control::Sockets(_)) => {}
                // A connection that cannot go on.
                Some(Control::Open | Control::Adopt(_)) => {}
                Some(Control::Shutdown(_) | Control::GiveWay(..)) => return Poll::Ready(false),
                None => break,
            }
        }
        if worker.clients.get() == 0 && worker.accepting.get() == 0 {
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

/// A task that accepts clients, from before its first turn to its end. A router that drains ends with its last client:
/// not while there are some in a queue.
struct Accepting(Rc<Worker>);

impl Accepting {
    fn begin(worker: &Rc<Worker>) -> Self {
        worker.accepting.set(worker.accepting.get() + 1);
        Self(Rc::clone(worker))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.accepting.set(self.0.accepting.get() - 1);
    }
}

/// How many clients are accepted in one turn of the loop: those that are being served come between.
const ACCEPTED_AT_ONCE: u32 = 8;

/// Accepts the clients at one door until it closes or the router drains; then those that are already in the
/// queue.
async fn accept(accepting: Accepting, listener: Rc<tokio::net::TcpListener>, door: Rc<Door>) {
    let worker = &accepting.0;
    let drain = Deadline::new(&worker.clock);
    let mut accepted_now = 0;
    loop {
        if accepted_now == ACCEPTED_AT_ONCE {
            accepted_now = 0;
            // Comes back once the runtime has looked for events.
            tokio::task::yield_now().await;
        }
        let accepted = std::future::poll_fn(|cx| {
            drain.passed(cx); // only to be woken when the router drains, or the door closes
            if !worker.open.get() {
                return if worker.is_draining() { Poll::Ready(None) } else { Poll::Pending };
            }
            match listener.poll_accept(cx) {
                Poll::Pending if worker.is_draining() || door.is_closing() => {
                    Poll::Ready(next_in_queue(&listener))
                }
                Poll::Pending => {
                    accepted_now = 0;
                    Poll::Pending
                }
                Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            }
        });
        match accepted.await {
            None => return,
            Some(Ok((stream, source))) => {
                accepted_now += 1;
                admit(worker, &door, stream, source);
            }
            Some(Err(error)) => {
                // Out of descriptors, most likely: pending connections stay in the queue meanwhile.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Whoever is in the queue by the kernel's account: tokio only knows what it was told in the last turn of the loop.
fn next_in_queue(listener: &tokio::net::TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    let accepted = match socket2::SockRef::from(listener).accept() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
        accepted => accepted,
    };
    Some(accepted.and_then(|(socket, source)| {
        socket.set_nonblocking(true)?;
        let source = source.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((TcpStream::from_std(socket.into())?, source))
    }))
}

fn admit(worker: &Rc<Worker>, door: &Door, stream: TcpStream, source: SocketAddr) {
    let (front, entrance) = (&door.front(), door.entrance());
    let counters = front.counters();
    if worker.clients.get() >= worker.limits.clients {
        counters.shed.add(1);
        if entrance.is_open() {
            front.shed(&stream);
        }
        front.log_unserved(source, "too many clients");
        return;
    }
    if !entrance.is_open() && worker.handshakes.get() >= worker.limits.handshakes {
        counters.shed.add(1);
        front.log_unserved(source, "too many clients whose handshakes are under way");
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "client gone before it was served");
        return;
    }
    counters.accepted.add(1);
    let guard = Present::enter(worker, counters);
    let front = front.clone();
    if !entrance.is_open() {
        let worker = Rc::clone(worker);
        worker.handshakes.set(worker.handshakes.get() + 1);
        tokio::task::spawn_local(async move {
            let passed = entrance.pass(&worker, stream, source).await;
            worker.handshakes.set(worker.handshakes.get() - 1);
            match passed {
                Some(stream) => {
                    let stream = stream.counted(front.counters());
                    front.start(stream, guard);
                }
                None => {
                    front.counters().handshakes_failed.add(1);
                    front.log_unserved(source, "no handshake, or none in time");
                }
            }
        });
        return;
    }
    let origin = Origin { source, destination: None, tls: false };
    let stream = ClientStream::plain(stream, origin).counted(counters);
    front.start(stream, guard);
}

/// Serves a client that another process had, between two of its requests.
fn adopt(worker: &Rc<Worker>, services: &Services, guest: Guest) {
    let Guest { service, protocol, origin, session, input, stream } = guest;
    let mut front = None;
    services.each(|name, found| {
        if *name == *service && found.protocol() == &*protocol {
            front = Some(found.clone());
        }
    });
    // Of a service that this configuration does not have: it is sent away as a reload would.
    let Some(front) = front else { return };
    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
    let stream = match stream {
        Ok(stream) => ClientStream::plain(stream, origin).counted(front.counters()),
        Err(error) => {
            tracing::warn!(%error, "a client cannot be taken over, and is closed");
            return;
        }
    };
    let guard = Present::enter(worker, front.counters());
    front.resume(stream, guard, session, input);
}

/// A client that is being served.
struct Present {
    worker: Rc<Worker>,
    counters: Rc<Counters>,
}

impl Present {
    fn enter(worker: &Rc<Worker>, counters: &Rc<Counters>) -> Self {
        worker.clients.set(worker.clients.get() + 1);
        counters.clients.add(1);
        Self { worker: Rc::clone(worker), counters: Rc::clone(counters) }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.worker.clients.set(self.worker.clients.get() - 1);
        self.counters.clients.sub(1);
    }
}

/// Once a second ends connections that nobody will use again, and forgets what nobody is served by any more; once a
/// minute forgets a half of which keys were asked for.
async fn sweep(worker: Rc<Worker>, services: Rc<Services>) {
    for second in 1u64.. {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if second % 60 == 0 {
            services.each(|_, front| front.counters().hot.minute());
        }
        services.sweep();
        worker.release_lanes();
        worker.servers.sweep(worker.clock.now(), |id| services.name(id));
    }
}

/// Hands over what was logged now and then.
async fn flush(services: Rc<Services>) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        services.flush_logs();
    }
}
