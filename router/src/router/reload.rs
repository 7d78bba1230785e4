//! What a configuration changes in a router that runs: which services, and which listening sockets.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use super::{ReloadError, Serving, StartError};
use crate::{
    config::{Config, Service},
    listen,
    worker::DoorId,
};

/// What a reload has changed. The names of services, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Served from now on.
    pub added: Vec<String>,
    /// Served in another way, or at another address, from now on.
    pub changed: Vec<String>,
    /// Not served any more.
    pub removed: Vec<String>,
    /// As before.
    pub unchanged: Vec<String>,
}

/// An address at which the router listens.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub id: DoorId,
    pub service: Box<str>,
    /// The address as the configuration has it.
    pub configured: SocketAddr,
    /// The address with the port that was chosen.
    pub listen: SocketAddr,
}

/// The sockets of an address that another process has listened on so far.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub service: Box<str>,
    pub configured: SocketAddr,
    pub sockets: Vec<TcpListener>,
}

impl Door {
    pub fn serving(&self) -> Serving {
        Serving { service: self.service.to_string(), listen: self.listen }
    }

    /// Whether this is where the service is to listen. Any free port is one service's own; every other
    /// address passes from service to service with its socket.
    fn is_for(&self, service: &Service) -> bool {
        is_for(&self.service, self.configured, service)
    }
}

fn is_for(owner: &str, configured: SocketAddr, service: &Service) -> bool {
    configured == service.listen && (service.listen.port() != 0 || *owner == *service.name)
}

/// The doors of a configuration: one for each service, in their order.
pub(super) struct Doors {
    pub all: Vec<Door>,
    /// The sockets of those that are new, for each worker.
    pub sockets: Vec<Option<Vec<Vec<TcpListener>>>>,
}

impl Doors {
    /// Opens what is not open yet, here or where it is inherited from. If that fails nothing is.
    pub fn open(
        config: &Config,
        old: &[Door],
        inherited: &mut Vec<Inherited>,
        workers: usize,
        next: &mut u64,
    ) -> Result<Self, StartError> {
        let mut doors = Self { all: Vec::new(), sockets: Vec::new() };
        for (number, service) in config.services.iter().enumerate() {
            let name = service.name.clone();
            if let Some(door) = old.iter().find(|door| door.is_for(service)) {
                doors.all.push(Door { service: name, ..door.clone() });
                doors.sockets.push(None);
                continue;
            }
            let failed = |error: io::Error| StartError::Listen {
                place: config.listens.get(number).cloned(),
                service: name.to_string(),
                listen: service.listen,
                error,
            };
            let known = inherited.iter().position(|one| is_for(&one.service, one.configured, service));
            let sockets = match known {
                Some(at) => inherited.swap_remove(at).sockets,
                None => listen::shared(service.listen, workers).map_err(failed)?,
            };
            let listen = sockets[0].local_addr().map_err(failed)?;
            let sockets = listen::deal(sockets, workers).map_err(failed)?;
            *next += 1;
            doors.all.push(Door { id: DoorId(*next), service: name, configured: service.listen, listen });
            doors.sockets.push(Some(sockets));
        }
        Ok(doors)
    }
}

/// Compares two configurations.
pub(super) fn changes(old: &[Arc<Service>], new: &[Arc<Service>]) -> Reloaded {
    let mut told = Reloaded::default();
    for service in new {
        let before = old.iter().find(|before| before.name == service.name);
        let list = match before {
            None => &mut told.added,
            Some(before) if before == service => &mut told.unchanged,
            Some(_) => &mut told.changed,
        };
        list.push(service.name.to_string());
    }
    let gone = old.iter().filter(|before| !new.iter().any(|service| service.name == before.name));
    told.removed = gone.map(|service| service.name.to_string()).collect();
    told
}

/// An address that only this router holds in another form cannot be bound beside it.
pub(super) fn why(error: StartError, doors: &[Door]) -> ReloadError {
    if let StartError::Listen { place, service, listen, error: cause } = &error
        && cause.kind() == io::ErrorKind::AddrInUse
        && let Some(door) = doors.iter().find(|door| door.listen.port() == listen.port())
    {
        let (place, service) = (place.clone(), service.clone());
        return ReloadError::Overlap { place, service, listen: *listen, holder: door.listen };
    }
    ReloadError::Start(error)
}
