//! What is served where, as somebody who looks at the router sees it.

use std::net::SocketAddr;

use router_proto::PartitionId;

use super::Door;
use crate::{
    config::Source,
    table::{CloneAt, Published},
};

/// One service: its address, its partitions, and its clones as of the newest views.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// As the configuration calls it.
    pub protocol: &'static str,
    /// The version of the partition map.
    pub epoch: u64,
    /// The partitions, by name, and the position of the RACS that holds each.
    pub partitions: Vec<(String, usize)>,
    /// The RACS.
    pub racs: Vec<RacsView>,
}

/// One RACS of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RacsView {
    /// Its name.
    pub name: String,
    /// The group that it follows; none if the configuration lists its servers.
    pub group: Option<String>,
    /// The view that says who is in it; 0 before there was one.
    pub epoch: u64,
    /// The position of the clone that acts as leader; none while nobody may.
    pub leader: Option<usize>,
    /// The clones, in rank order.
    pub clones: Vec<CloneAt>,
}

pub(super) fn of(published: &Published, door: &Door) -> ServiceView {
    let service = &published.service;
    let pmap = &service.pmap;
    let partitions = (0..pmap.len().get()).map(PartitionId::new);
    let racs = service.racs.iter().zip(published.clones()).map(|(racs, view)| RacsView {
        name: racs.name.to_string(),
        group: match &racs.source {
            Source::Group(group) => Some(group.to_string()),
            Source::Servers(_) => None,
        },
        epoch: view.epoch,
        leader: view.leader,
        clones: view.clones.clone(),
    });
    ServiceView {
        name: service.name.to_string(),
        listen: door.serving().listen,
        protocol: service.protocol.name(),
        epoch: pmap.epoch().get(),
        partitions: partitions.map(|id| (pmap.name(id).to_string(), pmap.racs(id).get() as usize)).collect(),
        racs: racs.collect(),
    }
}
