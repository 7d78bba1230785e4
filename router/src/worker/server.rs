//! What one worker knows of the physical servers, whatever maps name them: load, failures, connections.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    ops::Range,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use membership_types::Instant;
use router_proto::{
    choice::Latency,
    health::{Budget, Health, Said, Usual},
    l2p::{Loads, PhysicalId},
};
use tokio::net::TcpStream;

use super::Clock;
use crate::{
    frames,
    http::LaneSlot,
    latency::Histogram,
    memcached::Memcached,
    pipelined::Lanes,
    redis::Redis,
    stats::{Class, Count, Counters, Responses, ServerStats},
};

/// Of the requests to a server, this share may be sent again when it fails; and so many however few there are.
const RETRIES_PERCENT: u32 = 10;
const RETRIES_RESERVE: u32 = 100;

/// One physical server, as one worker sees it.
pub(crate) struct Server {
    pub id: PhysicalId,
    pub addr: SocketAddr,
    in_flight: Cell<u32>,
    requests: Count,
    failures: Count,
    responses: Responses,
    times: Histogram,
    health: RefCell<Health>,
    retries: RefCell<Budget>,
    /// When it was first chosen or came back; `None` before.
    well_since: Cell<Option<Instant>>,
    /// Whether active checks say so.
    down: Cell<bool>,
    latency: Cell<Latency>,
    /// Of the requests that are timed.
    usual: RefCell<Usual>,
    /// The tick in which a request there was timed last.
    timed: Cell<Instant>,
    refused_until: Cell<Instant>,
    /// Unused connections for HTTP; the one used last is taken first.
    idle: RefCell<Vec<Idle>>,
    /// The connection that reads of its HTTP clients share, where they do.
    pub lane: LaneSlot,
    /// The connections that Redis clients of this worker share.
    pub redis: Lanes<Redis>,
    /// The connection that all clients of its services of frames share on this worker.
    pub frames: RefCell<Option<Rc<frames::Upstream>>>,
    /// The same for memcached clients.
    pub memcached: Lanes<Memcached>,
}

struct Idle {
    stream: TcpStream,
    until: Instant,
}

impl Server {
    fn new(id: PhysicalId, addr: SocketAddr) -> Self {
        Self {
            id,
            addr,
            in_flight: Cell::new(0),
            requests: Count::default(),
            failures: Count::default(),
            responses: Responses::default(),
            times: Histogram::default(),
            health: RefCell::default(),
            retries: RefCell::new(Budget::new(RETRIES_PERCENT, RETRIES_RESERVE)),
            well_since: Cell::new(None),
            down: Cell::new(false),
            latency: Cell::default(),
            usual: RefCell::default(),
            timed: Cell::new(Instant::ZERO),
            refused_until: Cell::new(Instant::ZERO),
            idle: RefCell::default(),
            lane: LaneSlot::default(),
            redis: Lanes::default(),
            frames: RefCell::default(),
            memcached: Lanes::default(),
        }
    }

    /// Notes that requests go there: the count is taken back by [`Server::settle`]. `now` is the coarse clock's.
    ///
    /// Gives a stopwatch for [`Server::took`] if this request is to be timed: one in each tick of the clock,
    /// so that under load hardly a request pays for it.
    pub fn engage(&self, now: Instant) -> Option<Stopwatch> {
        self.in_flight.set(self.in_flight.get() + 1);
        self.requests.add(1);
        if self.timed.replace(now) == now {
            return None;
        }
        if self.well_since.get().is_none() {
            self.well_since.set(Some(now));
        }
        Some(Stopwatch(std::time::Instant::now()))
    }

    /// Notes how long a request took that was timed, up to the start of its answer.
    pub fn took(&self, now: Instant, stopwatch: &Stopwatch) {
        let elapsed = stopwatch.0.elapsed();
        let mut latency = self.latency.get();
        latency.measure(now, elapsed);
        self.latency.set(latency);
        self.usual.borrow_mut().answered(elapsed);
    }

    /// How long it may say nothing about what it was asked before that counts against it; at least `shortest`.
    pub fn patience(&self, shortest: Duration) -> Duration {
        self.usual.borrow().patience(shortest)
    }

    /// It has said nothing for that long about what it was asked at `since`; unless it answered elsewhere, it is
    /// taken for hung.
    pub fn silent(&self, since: Instant, now: Instant, avoid: Duration) {
        if self.answered_at() <= since {
            self.failed(now, avoid);
        }
    }

    /// Notes that a request is no longer there.
    pub fn settle(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// Notes that a request is about to go there for the first time.
    pub fn chosen(&self, now: Instant) {
        self.health.borrow_mut().chosen(now);
        self.retries.borrow_mut().earn();
    }

    /// Counts an answer to a request of this service.
    pub fn responded(&self, service: &Counters, class: Class) {
        self.responses.add(service, class);
    }

    /// Notes that an answer came to a request that could have gone to any clone; `error` says that it was one of the
    /// server's own.
    pub fn compared(&self, now: Instant, error: bool) {
        self.health.borrow_mut().compared(now, error);
    }

    /// Notes that an answer came.
    pub fn answered(&self, now: Instant, said: Said, avoid: Duration) {
        let mut health = self.health.borrow_mut();
        let was_avoided = health.avoid_until() > Instant::ZERO;
        health.answered(now, said, avoid);
        if was_avoided && health.avoid_until() == Instant::ZERO {
            self.well_since.set(Some(now));
        }
    }

    /// When the last answer came.
    pub fn answered_at(&self) -> Instant {
        self.health.borrow().answered_at()
    }

    /// Until when other clones are to be preferred.
    pub fn avoid_until(&self) -> Instant {
        if self.down.get() { Instant::MAX } else { self.health.borrow().avoid_until() }
    }

    /// Active checks found that it is down, or up again. Unused connections to one that is down are ended.
    pub fn found(&self, now: Instant, up: bool) {
        if self.down.replace(!up) && up {
            self.well_since.set(Some(now));
        }
        if !up {
            self.idle.borrow_mut().clear();
            self.lane.retire();
        }
    }

    /// Measures a request that was sent then and is answered now.
    pub fn measured(&self, sent: Instant, clock: &Clock) {
        self.times.record(clock.fine().as_nanos().saturating_sub(sent.as_nanos()));
    }

    /// What this worker has counted; `service` knows the services' names.
    fn read(&self, now: Instant, service: impl Fn(u32) -> Option<String>) -> ServerStats {
        ServerStats {
            addr: self.addr,
            requests: self.requests.get(),
            failures: self.failures.get(),
            in_flight: self.in_flight.get().into(),
            idle: self.idle.borrow().len() as u64,
            avoided_by: (self.avoid_until() > now).into(),
            open_by: (self.down.get() || self.health.borrow().is_open(now)).into(),
            half_open_by: (!self.down.get() && self.health.borrow().is_half_open(now)).into(),
            latency: self.times.read(),
            responses: self.responses.read(service),
        }
    }

    /// Notes that a connection or a request there just failed, or that it is silent.
    pub fn failed(&self, now: Instant, avoid: Duration) {
        self.failures.add(1);
        self.health.borrow_mut().failed(now, avoid);
    }

    /// Notes that a client's time was over before an answer came.
    pub fn missed(&self, now: Instant, avoid: Duration) {
        self.health.borrow_mut().missed(now, avoid);
    }

    /// Notes that no connection can be made: nobody needs to try for a while.
    pub fn refused(&self, now: Instant, avoid: Duration) {
        self.failed(now, avoid);
        self.refused_until.set(now.after(avoid));
    }

    /// Notes how a connection there ended.
    pub fn ended(&self, end: End, now: Instant, avoid: Duration) {
        match end {
            End::Refused => self.refused(now, avoid),
            End::Failed => self.failed(now, avoid),
            End::Idle => {}
        }
    }

    /// Whether a request that failed there may be sent again; if so, that is one less to come.
    pub fn may_retry(&self, now: Instant) -> bool {
        self.retries.borrow_mut().spend(now)
    }

    /// Until when attempts to connect are pointless.
    pub fn refused_until(&self) -> Instant {
        self.refused_until.get()
    }

    /// Takes the unused connection that was used last, if one is alive. Ends those that are not.
    ///
    /// Whether the server closed it costs no system call: its FIN was reported with the other events, and a
    /// connection on which nothing was reported is pending. Where something was reported a read tells.
    pub fn take_idle(&self) -> Option<TcpStream> {
        loop {
            let Idle { stream, .. } = self.idle.borrow_mut().pop()?;
            if is_quiet(&stream) {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection for later requests.
    pub fn keep(&self, stream: TcpStream, until: Instant, most: usize) {
        if self.down.get() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= most {
            idle.remove(0);
        }
        idle.push(Idle { stream, until });
    }

    /// Ends unused connections that are too old or that the server has closed.
    fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|idle| idle.until > now && is_quiet(&idle.stream));
    }
}

/// Whether neither bytes nor an end nor an error have arrived on a connection that should be silent.
fn is_quiet(stream: &TcpStream) -> bool {
    match stream.poll_read_ready(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => true,
        // The last read may have filled its buffer exactly, so that tokio thinks there is more.
        Poll::Ready(Ok(())) => {
            matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        }
        Poll::Ready(Err(_)) => false,
    }
}

/// How a connection to a server ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// None could be made, or not in time.
    Refused,
    /// It failed, or the server was silent for too long, or spoke nonsense; or is not the right one any more.
    Failed,
    /// Nothing was under way.
    Idle,
}

/// Runs since a request went to its server.
pub(crate) struct Stopwatch(std::time::Instant);

/// A request on its way to a server and back.
pub(crate) struct InFlight {
    server: Rc<Server>,
    stopwatch: Option<Stopwatch>,
}

impl InFlight {
    pub fn to(server: &Rc<Server>, now: Instant) -> Self {
        Self { stopwatch: server.engage(now), server: Rc::clone(server) }
    }

    /// Its answer begins.
    pub fn answered(&self, now: Instant) {
        if let Some(stopwatch) = &self.stopwatch {
            self.server.took(now, stopwatch);
        }
    }

    /// Where it is.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.server.settle();
    }
}

/// All servers that this worker has had to do with, by id.
#[derive(Default)]
pub(crate) struct Servers(RefCell<Vec<Option<Rc<Server>>>>);

impl Servers {
    /// The server of this id; a new one if this worker has not met it.
    pub fn get(&self, id: PhysicalId, addr: SocketAddr) -> Rc<Server> {
        let mut servers = self.0.borrow_mut();
        if servers.len() <= id.index() {
            servers.resize_with(id.index() + 1, || None);
        }
        Rc::clone(servers[id.index()].get_or_insert_with(|| Rc::new(Server::new(id, addr))))
    }

    /// What this worker has counted of each; `service` knows the services' names.
    pub fn read(&self, now: Instant, service: impl Fn(u32) -> Option<String>) -> Vec<ServerStats> {
        self.0.borrow().iter().flatten().map(|server| server.read(now, &service)).collect()
    }

    /// Ends unused connections to servers that no table names any more.
    pub fn abandon(&self, named: impl Fn(PhysicalId) -> bool) {
        for server in self.0.borrow().iter().flatten().filter(|server| !named(server.id)) {
            server.idle.borrow_mut().clear();
            server.lane.retire();
            server.redis.retire();
            if let Some(upstream) = &*server.frames.borrow() {
                upstream.retire();
            }
            server.memcached.retire();
        }
    }

    /// Ends the connections that have these lanes, once nothing is under way there. Whoever takes one of the lanes from now on
    /// gets another connection.
    pub fn retire_lanes(&self, lanes: Range<usize>) {
        for server in self.0.borrow().iter().flatten() {
            server.redis.retire_some(lanes.clone());
            server.memcached.retire_some(lanes.clone());
        }
    }

    /// Ends unused connections that are too old or closed, and forgets servers that no table names any more.
    pub fn sweep(&self, now: Instant, named: impl Fn(PhysicalId) -> bool) {
        self.abandon(&named);
        for place in &mut *self.0.borrow_mut() {
            let Some(server) = place else { continue };
            if named(server.id) {
                server.sweep(now);
            } else {
                // A count of one is this list's own: nobody is on the way there.
                if Rc::strong_count(server) == 1 {
                    *place = None;
                }
            }
        }
    }

    fn with<T>(&self, id: PhysicalId, read: impl FnOnce(&Server) -> T) -> Option<T> {
        self.0.borrow().get(id.index()).and_then(|server| server.as_deref().map(read))
    }
}

impl Loads for Servers {
    fn in_flight(&self, server: PhysicalId) -> u32 {
        self.with(server, |server| server.in_flight.get()).unwrap_or(0)
    }

    fn avoid_until(&self, server: PhysicalId) -> Instant {
        self.with(server, Server::avoid_until).unwrap_or(Instant::ZERO)
    }

    fn is_down(&self, server: PhysicalId) -> bool {
        self.with(server, |server| server.down.get()).unwrap_or(false)
    }

    fn stands_out(&self, server: PhysicalId, other: PhysicalId, now: Instant) -> bool {
        let judge = |server: &Server| {
            self.with(other, |other| server.health.borrow().stands_out(&other.health.borrow(), now))
        };
        self.with(server, judge).flatten().unwrap_or(false)
    }

    fn latency(&self, server: PhysicalId, now: Instant) -> u64 {
        self.with(server, |server| server.latency.get().at(now)).unwrap_or(0)
    }

    fn well_since(&self, server: PhysicalId) -> Instant {
        // One that this worker has never met is new.
        self.with(server, |server| Some(server.well_since.get()?.max(server.avoid_until())))
            .flatten()
            .unwrap_or(Instant::MAX)
    }
}
