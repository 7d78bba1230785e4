//! What a router has counted.
//!
//! Plain numbers of each worker, added up when somebody asks: a request pays a few additions in memory that no
//! other thread touches, and the worker's clock.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
};

use membership_types::Instant;
use router_proto::{PartitionId, hot::HotKeys};

use crate::{
    hot::Hot,
    latency::{Histogram, Latency},
    worker::Clock,
};

/// Services with more partitions have no counts by partition: half a MiB for each worker is enough.
const MOST_PARTITIONS: usize = 1 << 16;

/// A worker's own counter: nobody else writes or reads it.
#[derive(Default)]
pub(crate) struct Count(Cell<u64>);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }

    pub fn sub(&self, n: u64) {
        self.0.set(self.0.get() - n);
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// What a server's answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// 1xx to 5xx of HTTP, in this order.
    Informational,
    Successful,
    Redirection,
    ClientError,
    ServerError,
    /// Of other protocols: no error, or one.
    Fine,
    Error,
}

impl Class {
    /// As metrics call them, in their order.
    const NAMES: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "5xx", "ok", "error"];
    /// How many of them, from the first on, are HTTP's.
    const OF_HTTP: usize = 5;

    /// Of a status of HTTP, which is 100 to 599.
    pub fn of_status(status: u16) -> Self {
        match status {
            0..200 => Self::Informational,
            200..300 => Self::Successful,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }

    /// Of a reply that is an error, or none.
    pub fn of_reply(is_error: bool) -> Self {
        if is_error { Self::Error } else { Self::Fine }
    }
}

/// How many answers said what.
type Answers = [u64; Class::NAMES.len()];

/// One server's answers on one worker, by the number of the service that asked.
#[derive(Default)]
pub(crate) struct Responses(RefCell<Vec<(u32, Answers)>>);

impl Responses {
    /// An answer to a request of this service.
    pub fn add(&self, service: &Counters, class: Class) {
        let mut all = self.0.borrow_mut();
        match all.iter_mut().find(|(number, _)| *number == service.number) {
            Some((_, answers)) => answers[class as usize] += 1,
            None => {
                let mut answers = Answers::default();
                answers[class as usize] = 1;
                all.push((service.number, answers));
            }
        }
    }

    /// What was counted, by the services' names. Those that `name` does not know are forgotten.
    pub fn read(&self, name: impl Fn(u32) -> Option<String>) -> Vec<ResponseStats> {
        let mut read = Vec::new();
        self.0.borrow_mut().retain(|(number, answers)| {
            let service = name(*number);
            let known = service.is_some();
            read.extend(service.map(|service| ResponseStats { service, answers: *answers }));
            known
        });
        read
    }
}

/// One service's counters on one worker.
#[derive(Default)]
pub(crate) struct Counters {
    /// Names the service on this worker: no other has had this number.
    pub number: u32,
    /// Requests that are under way here.
    pub under_way: Rc<Cell<usize>>,
    pub clients: Count,
    pub accepted: Count,
    pub shed: Count,
    pub handshakes_failed: Count,
    pub requests: Count,
    pub local: Count,
    pub refused: Count,
    pub retried: Count,
    pub hedged: Count,
    pub waited: Count,
    pub unavailable: Count,
    pub overloaded: Count,
    pub unknown: Count,
    /// Bytes from clients, and to them.
    pub received: Count,
    pub sent: Count,
    /// Lines that the access log had no room for.
    pub unlogged: Count,
    pub latency: Histogram,
    /// The keys that are asked for most.
    pub hot: Hot,
    /// Keys asked for, by partition.
    partitions: RefCell<Box<[u64]>>,
}

impl Counters {
    /// Of a service with this number, which has had nothing yet.
    pub fn new(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// A request for a key of this partition comes in: when that was, for [`Counters::end`].
    pub fn begin(&self, partition: PartitionId, clock: &Clock) -> Instant {
        self.requests.add(1);
        self.key(partition);
        clock.fine()
    }

    /// Counts a key that a request asks for; [`Counters::begin`] does for one.
    pub fn key(&self, partition: PartitionId) {
        if let Some(count) = self.partitions.borrow_mut().get_mut(partition.get() as usize) {
            *count += 1;
        }
    }

    /// A request that came in then is answered, in whatever way.
    pub fn end(&self, began: Instant, clock: &Clock) {
        self.latency.record(clock.fine().as_nanos().saturating_sub(began.as_nanos()));
    }

    /// From now on there are so many partitions. Where there were others, they are counted anew; very many are
    /// not counted.
    pub fn partitions(&self, count: usize) {
        let count = if count > MOST_PARTITIONS { 0 } else { count };
        let mut partitions = self.partitions.borrow_mut();
        if partitions.len() != count {
            *partitions = vec![0; count].into();
        }
    }

    pub fn read(&self, service: &str) -> ServiceStats {
        ServiceStats {
            service: service.into(),
            clients: self.clients.get(),
            accepted: self.accepted.get(),
            shed: self.shed.get(),
            handshakes_failed: self.handshakes_failed.get(),
            requests: self.requests.get(),
            local: self.local.get(),
            refused: self.refused.get(),
            retried: self.retried.get(),
            hedged: self.hedged.get(),
            waited: self.waited.get(),
            unavailable: self.unavailable.get(),
            overloaded: self.overloaded.get(),
            in_flight: 0,
            unknown: self.unknown.get(),
            waiting: 0,
            received: self.received.get(),
            sent: self.sent.get(),
            unlogged: self.unlogged.get(),
            latency: self.latency.read(),
            hot: self.hot.read(),
            partitions: self.partitions.borrow().to_vec(),
        }
    }
}

/// What was counted for one service, since the start and over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceStats {
    /// The service's name.
    pub service: String,
    /// Clients connected now.
    pub clients: u64,
    /// Clients that were accepted.
    pub accepted: u64,
    /// Clients that were told that there are too many.
    pub shed: u64,
    /// Clients with whom no TLS session came about, or who did not say whom they stand for (PROXY header).
    pub handshakes_failed: u64,
    /// Requests or commands that were routed.
    pub requests: u64,
    /// Commands that the router answered itself.
    pub local: u64,
    /// Requests refused as malformed, or without a key.
    pub refused: u64,
    /// Attempts beyond a request's first.
    pub retried: u64,
    /// Reads that a second clone was asked for too, because the first was silent.
    pub hedged: u64,
    /// Requests that had to wait for a view of their RACS.
    pub waited: u64,
    /// Requests that nobody could answer; nothing was done.
    pub unavailable: u64,
    /// Requests that were refused because too many were under way; nothing was done.
    pub overloaded: u64,
    /// Requests under way now, wherever.
    pub in_flight: u64,
    /// Updates whose outcome is unknown.
    pub unknown: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Lines of the access log that were lost, because what writes it did not keep up.
    pub unlogged: u64,
    /// From a request's head to the end of its response.
    pub latency: Latency,
    /// The keys that were asked for most in the last minutes, by partition; nothing where that is not watched.
    pub hot: HotKeys,
    /// Keys asked for, by the position of their partition; none where there are more than 65 536.
    pub partitions: Vec<u64>,
}

impl ServiceStats {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.clients += other.clients;
        self.accepted += other.accepted;
        self.shed += other.shed;
        self.handshakes_failed += other.handshakes_failed;
        self.requests += other.requests;
        self.local += other.local;
        self.refused += other.refused;
        self.retried += other.retried;
        self.hedged += other.hedged;
        self.waited += other.waited;
        self.unavailable += other.unavailable;
        self.overloaded += other.overloaded;
        self.in_flight += other.in_flight;
        self.unknown += other.unknown;
        self.waiting += other.waiting;
        self.received += other.received;
        self.sent += other.sent;
        self.unlogged += other.unlogged;
        self.latency.merge(&other.latency);
        self.hot.merge(&other.hot);
        // A worker that has not gone over to another map yet counts by the old one: later.
        if self.partitions.is_empty() {
            self.partitions.clone_from(&other.partitions);
        } else if self.partitions.len() == other.partitions.len() {
            self.partitions.iter_mut().zip(&other.partitions).for_each(|(count, more)| *count += more);
        }
    }
}

/// What was counted for one physical server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Attempts that went there.
    pub requests: u64,
    /// Connections and requests that failed there.
    pub failures: u64,
    /// Requests sent and not yet answered.
    pub in_flight: u64,
    /// Unused connections that are kept.
    pub idle: u64,
    /// Workers that avoid it, because it was just seen failing.
    pub avoided_by: u64,
    /// Workers whose circuit to it is open, so that none of their requests go there while another clone is left.
    pub open_by: u64,
    /// Workers whose circuit to it is half open: one request tries it.
    pub half_open_by: u64,
    /// From sending a request there to the end of its response.
    pub latency: Latency,
    /// What its answers said, for each service that has had some.
    pub responses: Vec<ResponseStats>,
}

/// What the answers of one server to the requests of one service said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseStats {
    /// The service's name.
    pub service: String,
    answers: Answers,
}

impl ResponseStats {
    /// How many answers were of each class: `1xx` to `5xx` of HTTP, `ok` and `error` of other protocols. Classes of a
    /// protocol that the service does not speak are left out.
    pub fn by_class(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let (http, others) = self.answers.split_at(Class::OF_HTTP);
        let spoken = |answers: &[u64]| answers.iter().any(|count| *count > 0);
        let (http, others) = (spoken(http), spoken(others));
        Class::NAMES
            .into_iter()
            .zip(self.answers)
            .enumerate()
            .filter(move |(at, _)| if *at < Class::OF_HTTP { http } else { others })
            .map(|(_, class)| class)
    }

    /// How many answers were of this class.
    pub fn of(&self, class: &str) -> u64 {
        self.by_class().filter(|(name, _)| *name == class).map(|(_, count)| count).sum()
    }
}

impl ServerStats {
    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.in_flight += other.in_flight;
        self.idle += other.idle;
        self.avoided_by += other.avoided_by;
        self.open_by += other.open_by;
        self.half_open_by += other.half_open_by;
        self.latency.merge(&other.latency);
        for more in &other.responses {
            match self.responses.iter_mut().find(|known| known.service == more.service) {
                Some(known) => {
                    known.answers.iter_mut().zip(more.answers).for_each(|(count, more)| *count += more)
                }
                None => self.responses.push(more.clone()),
            }
        }
    }
}

/// All that was counted, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// By service, in the order of the configuration.
    pub services: Vec<ServiceStats>,
    /// By physical server, in the order of their addresses.
    pub servers: Vec<ServerStats>,
    /// Worker threads.
    pub workers: usize,
    /// Workers that did not answer in time: what they have counted is missing.
    pub silent: usize,
    /// Tasks of the workers: one for each client, one for each shared connection to a server, and some that are always there.
    pub tasks: usize,
}

impl Measured {
    /// Adds what one worker has counted. Services that the configuration does not have are left out.
    pub(crate) fn add(&mut self, one: &Self) {
        self.tasks += one.tasks;
        for service in &one.services {
            let known = self.services.iter_mut().find(|known| known.service == service.service);
            known.into_iter().for_each(|known| known.merge(service));
        }
        for server in &one.servers {
            match self.servers.binary_search_by_key(&server.addr, |known| known.addr) {
                Ok(at) => self.servers[at].merge(server),
                Err(at) => self.servers.insert(at, server.clone()),
            }
        }
    }
}
