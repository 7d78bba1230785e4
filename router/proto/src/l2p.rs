//! The l2P map: logical servers (clones as RACS know them) to physical ones (addresses that answer).
//!
//! Many logical servers may share one physical server. What is learnt about a server (requests in flight, a
//! failure just seen) belongs to the physical one, is kept under its [`PhysicalId`], and so survives every
//! change of the maps.

use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};
use core::{net::SocketAddr, num::NonZeroU32};

use membership_types::{Instant, Weight};

/// One logical server of a service: its position in that service's [`L2p`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogicalId(u32);

/// One physical server of this process, for as long as the process lives. Ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalId(NonZeroU32);

impl PhysicalId {
    /// The number, dense from 0: an index for whoever keeps state per physical server.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Gives out [`PhysicalId`]s: one per address, for ever the same.
#[derive(Clone, Debug, Default)]
pub struct Physicals(BTreeMap<SocketAddr, PhysicalId>);

impl Physicals {
    /// The id of the server at this address; a new one if it was never heard of.
    pub fn id_of(&mut self, addr: SocketAddr) -> PhysicalId {
        let next = u32::try_from(self.0.len() + 1).ok().and_then(NonZeroU32::new);
        let next = PhysicalId(next.expect("fewer than 2^32 servers in one process's life"));
        *self.0.entry(addr).or_insert(next)
    }
}

/// One logical server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logical {
    /// The clone's name, as its RACS knows it.
    pub name: Box<str>,
    /// The server that stands for it.
    pub physical: PhysicalId,
    /// Where that server listens.
    pub addr: SocketAddr,
    /// How much of the load it takes beside the others.
    pub weight: Weight,
    /// Whether it is to be preferred, because it is in the router's own zone.
    pub near: bool,
}

impl Logical {
    /// One of weight 1, as near as all others.
    pub fn new(name: &str, physical: PhysicalId, addr: SocketAddr) -> Self {
        Self { name: name.into(), physical, addr, weight: Weight::default(), near: true }
    }
}

/// The l2P map of one service: immutable once built.
#[derive(Clone, Debug, Default)]
pub struct L2p(Vec<Logical>);

impl L2p {
    /// Adds a logical server.
    pub fn add(&mut self, logical: Logical) -> LogicalId {
        let id = LogicalId(u32::try_from(self.0.len()).expect("fewer than 2^32 clones in one service"));
        self.0.push(logical);
        id
    }

    /// The logical server with this id.
    ///
    /// # Panics
    /// If the id is of another map.
    pub fn get(&self, id: LogicalId) -> &Logical {
        &self.0[id.0 as usize]
    }

    /// Every logical server.
    pub fn iter(&self) -> impl Iterator<Item = &Logical> {
        self.0.iter()
    }
}

/// What whoever forwards requests knows of the physical servers; answers for unknown ones are "idle, fine".
pub trait Loads {
    /// Requests sent and not yet answered.
    fn in_flight(&self, server: PhysicalId) -> u32;

    /// Until when other clones are to be preferred, because this server was just seen failing.
    fn avoid_until(&self, server: PhysicalId) -> Instant;

    /// Whether checks say that it is down; then it is to be avoided for ever.
    fn is_down(&self, _server: PhysicalId) -> bool {
        false
    }

    /// Whether far more of its answers are errors than of this other server's, at the same time.
    fn stands_out(&self, _server: PhysicalId, _other: PhysicalId, _now: Instant) -> bool {
        false
    }

    /// How soon it answers, in nanoseconds; 0 if that is unknown.
    fn latency(&self, _server: PhysicalId, _now: Instant) -> u64 {
        0
    }

    /// Since when it has been known, and was not down or avoided.
    fn well_since(&self, _server: PhysicalId) -> Instant {
        Instant::ZERO
    }
}
