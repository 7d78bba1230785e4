//! What a worker asks of a service, whatever that speaks.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use membership_sync::Reader;
use router_proto::PhysicalId;
use tokio::net::TcpStream;

use super::{ClientStream, Dialogue, Present, Succession, Waits, Worker};
use crate::{
    access::{AccessLog, Line, What},
    config::{Protocol, Service},
    frames::{Frames, FramesService},
    http::HttpService,
    memcached::{Memcached, MemcachedService},
    pipelined::{self, Dialect},
    redis::{Redis, RedisService},
    stats::Counters,
    table::Table,
    tcp::TcpService,
};

/// The protocol's side of a service on one worker.
#[derive(Clone)]
pub(super) enum Front {
    Http(Rc<HttpService>),
    Redis(Rc<RedisService>),
    Frames(Rc<FramesService>),
    Memcached(Rc<MemcachedService>),
    Tcp(Rc<TcpService>),
}

/// What is asked of all of them in the same words.
macro_rules! ask {
    ($front:expr, $service:ident => $what:expr) => {
        match $front {
            Front::Http($service) => $what,
            Front::Redis($service) => $what,
            Front::Frames($service) => $what,
            Front::Memcached($service) => $what,
            Front::Tcp($service) => $what,
        }
    };
}

impl Front {
    /// Requests are logged to `log`.
    pub fn new(worker: &Rc<Worker>, service: &Service, table: Reader<Table>, log: Option<AccessLog>) -> Self {
        match &service.protocol {
            Protocol::Http { .. } => Self::Http(Rc::new(HttpService::new(worker, service, table, log))),
            Protocol::Redis => Self::Redis(RedisService::start(worker, service, table, log)),
            Protocol::Frames { .. } => Self::Frames(FramesService::start(worker, service, table, log)),
            Protocol::Memcached => Self::Memcached(MemcachedService::start(worker, service, table, log)),
            Protocol::Tcp { .. } => Self::Tcp(Rc::new(TcpService::new(worker, service, table, log))),
        }
    }

    /// Another configuration of the service takes this one's place, or none does. Where the protocol is
    /// another one, who is connected cannot stay.
    pub fn give_way(&self, next: Option<&Self>) {
        match (self, next) {
            (Self::Http(service), Some(Self::Http(next))) => service.succession.pass_to(next),
            (Self::Redis(service), Some(Self::Redis(next))) => service.succession.pass_to(next),
            (Self::Frames(service), Some(Self::Frames(next))) => service.succession.pass_to(next),
            (Self::Memcached(service), Some(Self::Memcached(next))) => service.succession.pass_to(next),
            (Self::Tcp(service), Some(Self::Tcp(next))) => service.succession.pass_to(next),
            // What passes bytes goes on until its ends do.
            (Self::Tcp(_), _) => {}
            (front, _) => ask!(front, service => service.succession.end()),
        }
    }

    /// What has taken this one's place in the end, itself if nothing has.
    pub fn newest(&self) -> Self {
        fn last<S>(first: &Rc<S>, succession: impl Fn(&S) -> &Succession<S>) -> Rc<S> {
            let mut at = first;
            while let Some(next) = succession(at).next() {
                at = next;
            }
            Rc::clone(at)
        }
        match self {
            Self::Http(service) => Self::Http(last(service, |service| &service.succession)),
            Self::Redis(service) => Self::Redis(last(service, |service| &service.succession)),
            Self::Frames(service) => Self::Frames(last(service, |service| &service.succession)),
            Self::Memcached(service) => Self::Memcached(last(service, |service| &service.succession)),
            Self::Tcp(service) => Self::Tcp(last(service, |service| &service.succession)),
        }
    }

    /// Whether anybody but the list of services holds it.
    pub fn is_held(&self) -> bool {
        ask!(self, service => Rc::strong_count(service)) > 1
    }

    pub fn counters(&self) -> &Rc<Counters> {
        ask!(self, service => &service.counters)
    }

    fn log(&self) -> Option<&AccessLog> {
        ask!(self, service => service.log.as_ref())
    }

    /// Hands over what was logged.
    pub fn flush_log(&self) {
        self.log().into_iter().for_each(AccessLog::tick);
    }

    /// Logs a client that was not served.
    pub fn log_unserved(&self, client: SocketAddr, error: &str) {
        let Some(log) = self.log() else { return };
        let end = "refused";
        let what = What::Connection { commands: 0, refused: 0, failed: 0, received: 0, sent: 0, end };
        let (took, error) = (Duration::ZERO, Some(error));
        log.note_some(&Line { client, what, partition: None, server: None, attempts: 0, error, took });
    }

    /// How many requests wait for a view.
    pub fn waiting(&self) -> u64 {
        ask!(self, service => service.waiting())
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> u64 {
        ask!(self, service => service.admission.under_way())
    }

    pub fn tables_changed(&self) {
        ask!(self, service => service.tables_changed());
    }

    /// Whether its newest table has this server.
    pub fn has_server(&self, id: PhysicalId) -> bool {
        ask!(self, service => service.has_server(id))
    }

    /// Begins to serve a client. Each protocol has tasks of its own kind: one that could hold any of them would
    /// be as large as the largest, for every client.
    pub fn start(self, stream: ClientStream, guard: Present) {
        match self {
            Self::Http(service) => start(guard, move || crate::http::serve(service, stream)),
            Self::Redis(service) => start(guard, move || pipelined::serve(service, stream)),
            Self::Frames(service) => start(guard, move || crate::frames::serve(service, stream)),
            Self::Memcached(service) => start(guard, move || pipelined::serve(service, stream)),
            Self::Tcp(service) => start(guard, move || crate::tcp::serve(service, stream)),
        }
    }

    /// As [`Front::start`], for a client of whom something is known already.
    pub fn resume(self, stream: ClientStream, guard: Present, session: Vec<u8>, input: Vec<u8>) {
        match self {
            Self::Http(service) => start(guard, move || crate::http::resume(service, stream, input)),
            Self::Redis(service) => start(guard, move || pipelined::resume(service, stream, session, input)),
            Self::Frames(service) => start(guard, move || crate::frames::resume(service, stream, input)),
            Self::Memcached(service) => {
                start(guard, move || pipelined::resume(service, stream, session, input));
            }
            // Connections of plain TCP have no place between two requests: nobody hands them over.
            Self::Tcp(_) => {}
        }
    }

    /// As the configuration calls it.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Http(_) => HttpService::PROTOCOL,
            Self::Redis(_) => Redis::PROTOCOL,
            Self::Frames(_) => Frames::PROTOCOL,
            Self::Memcached(_) => Memcached::PROTOCOL,
            Self::Tcp(_) => "tcp",
        }
    }

    /// Tells a client that there are too many, if that can be said at once.
    pub fn shed(&self, stream: &TcpStream) {
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

/// Serves a client in a task.
fn start<F: Future<Output = ()> + 'static>(guard: Present, begin: impl FnOnce() -> F + 'static) {
    tokio::task::spawn_local(async move {
        // Begun in here: a future that is moved into another one takes its room twice.
        begin().await;
        drop(guard);
    });
}
