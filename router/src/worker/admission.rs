//! How many requests of a service may be under way at once: the next one is refused, early and with nothing done.
//!
//! A plain limit, and no guess from how long answers take: what waits does so in the servers' sockets and inside the servers, where
//! nobody can take it back, so all that is left to decide is whether one more goes there. By Little's law the limit,
//! divided by how many answers come in a second, is the longest that a request waits.

use std::{cell::Cell, num::NonZeroU32, rc::Rc};

use router_proto::racs::Policy;

use crate::{config::Service, limits::Limits, stats::Counters};

/// One service's requests under way on one worker.
pub(crate) struct Admission {
    /// Shared with the configurations before and after this one: what began under them is under way all the same.
    under_way: Rc<Cell<usize>>,
    most: usize,
    /// Most that wait for one RACS.
    pub waiting: usize,
}

/// What a client hears whose request is not admitted.
pub(crate) const TOO_MANY: &str = "too many requests are under way";
/// The same, where it is the servers that have enough.
pub(crate) const SERVERS_FULL: &str = "the partition's servers have as many requests under way as they may";

impl Admission {
    /// Of the limits that the service sets, this worker takes its share.
    pub fn new(service: &Service, limits: &Limits, workers: usize, counters: &Counters) -> Self {
        let share = |set: Option<u32>, usual| set.map_or(usual, |set| (set as usize).div_ceil(workers));
        Self {
            under_way: Rc::clone(&counters.under_way),
            most: share(service.max_in_flight, limits.in_flight),
            waiting: share(service.max_waiting, limits.waiting),
        }
    }

    /// A request comes in. Returns whether it may go on; if not it [leaves](Admission::leave), too.
    #[must_use]
    pub fn enter(&self) -> bool {
        self.under_way.set(self.under_way.get() + 1);
        self.under_way.get() <= self.most
    }

    /// Whether one more request may come in.
    pub fn has_room(&self) -> bool {
        self.under_way.get() < self.most
    }

    /// A request that came in is over.
    pub fn leave(&self) {
        self.under_way.set(self.under_way.get() - 1);
    }

    /// As [`Admission::enter`], until what comes of it is dropped; `None` if it may not go on.
    pub fn admit(&self) -> Option<impl Drop + use<'_>> {
        struct Admitted<'a>(&'a Admission);
        impl Drop for Admitted<'_> {
            fn drop(&mut self) {
                self.0.leave();
            }
        }
        let may = self.enter();
        let admitted = Admitted(self);
        may.then_some(admitted)
    }

    /// How many are under way.
    pub fn under_way(&self) -> u64 {
        self.under_way.get() as u64
    }
}

/// How one worker chooses clones for this service.
pub(crate) fn policy(service: &Service, limits: &Limits, workers: usize) -> Policy {
    let set = service.max_in_flight_per_server;
    let most = set.map_or(limits.in_flight_per_server, |set| (set as usize).div_ceil(workers));
    Policy { most_in_flight: NonZeroU32::new(u32::try_from(most).unwrap_or(u32::MAX)), ..service.policy }
}
