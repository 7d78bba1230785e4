//! What a router has counted.

use std::cell::Cell;

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

/// One service's counters on one worker.
#[derive(Default)]
pub(crate) struct Counters {
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
    pub unknown: Count,
}

impl Counters {
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
            unknown: self.unknown.get(),
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
    /// Clients with whom no TLS session came about.
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
    /// Updates whose outcome is unknown.
    pub unknown: u64,
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
        self.unknown += other.unknown;
    }
}
