//! Second attempts at reads whose server is silent: how many there may be, and what becomes of the copies.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use membership_types::Instant;
use router_proto::{
    RacsId,
    health::Budget,
    racs::{Access, Circumstances, Pick, Policy, Tried},
};

use super::{Server, Worker};
use crate::table::Table;

/// So many second attempts are possible however few requests there are.
const RESERVE: u32 = 20;

/// A server is taken for hung after so many times the time after which other clones are asked.
pub(crate) const HUNG: u32 = 4;

/// How many reads of a service may be sent to a second clone.
pub(crate) struct Hedges {
    /// In a hundred; 0 is never.
    percent: u32,
    budget: RefCell<Budget>,
}

impl Hedges {
    pub fn new(percent: u32) -> Self {
        Self { percent, budget: RefCell::new(Budget::new(percent, RESERVE)) }
    }

    /// Whether there are any.
    pub fn are_on(&self) -> bool {
        self.percent > 0
    }

    /// A read was sent for the first time.
    pub fn earn(&self) {
        self.budget.borrow_mut().earn();
    }

    /// Takes one, if there is one.
    pub fn spend(&self, now: Instant) -> bool {
        self.are_on() && self.budget.borrow_mut().spend(now)
    }

    /// As [`Hedges::spend`]; if there is none, what this server has long been silent about is charged as what is sent
    /// again when a server fails.
    pub fn spend_for(&self, now: Instant, hung: Option<&Server>) -> bool {
        self.spend(now) || self.are_on() && hung.is_some_and(|server| server.may_retry(now))
    }

    /// A sound clone to ask, too, that has room.
    pub fn rival(
        &self,
        worker: &Worker,
        table: &Table,
        read: &Unanswered<'_>,
        has_room: impl FnOnce(&Server) -> bool,
    ) -> Rival {
        let Unanswered { policy, access, racs, mut tried, silent, hung } = *read;
        // A session may have its state with one clone alone.
        let bound = policy.leader_only(Access::Read) || policy.sticks(Access::Read);
        if access != Access::Read || bound || !self.are_on() {
            return Rival::None;
        }
        if !tried.add(silent.id) && !tried.contains(silent.id) {
            return Rival::None;
        }
        let now = worker.clock.now();
        let at = Circumstances { policy, l2p: &table.l2p, loads: &worker.servers, now };
        let Pick::Clone(clone) = table.racs(racs).pick(access, at, worker.random(), &tried) else {
            return Rival::None;
        };
        let logical = table.l2p.get(clone);
        let server = worker.servers.get(logical.physical, logical.addr);
        if !has_room(&server) || server.avoid_until() > now {
            return Rival::None;
        }
        if !self.spend_for(now, hung.then_some(silent)) {
            return Rival::Later;
        }
        server.chosen(now);
        Rival::Server(server)
    }
}

/// A read about which its server says nothing.
pub(crate) struct Unanswered<'a> {
    pub policy: Policy,
    pub access: Access,
    pub racs: RacsId,
    /// Whom it was sent to before, in vain.
    pub tried: Tried,
    pub silent: &'a Server,
    /// Whether it has been silent for long.
    pub hung: bool,
}

/// Whether another clone may be asked.
pub(crate) enum Rival {
    Server(Rc<Server>),
    /// Perhaps once more reads have been sent.
    Later,
    None,
}

/// What the copies of one read have in common: `owner` is taken by the first that is answered, so the answers to
/// all others reach nobody.
pub(crate) struct Copies<T> {
    owner: RefCell<Option<T>>,
    under_way: Cell<u32>,
}

impl<T> Copies<T> {
    /// For a read that is under way once, whose owner is still to come.
    pub fn begin() -> Rc<Self> {
        Rc::new(Self { owner: RefCell::new(None), under_way: Cell::new(1) })
    }

    /// Whose it is.
    pub fn own(&self, owner: T) {
        self.owner.replace(Some(owner));
    }

    /// There is one more.
    pub fn add(&self) {
        self.under_way.set(self.under_way.get() + 1);
    }

    /// Whether one of them has been answered.
    pub fn is_over(&self) -> bool {
        self.owner.borrow().is_none()
    }

    /// One is answered: for whom, if it is the first.
    pub fn take(&self) -> Option<T> {
        self.owner.borrow_mut().take()
    }

    /// Looks at the owner, as long as none is answered.
    pub fn owner<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.owner.borrow().as_ref().map(look)
    }

    /// The server of one has failed. Whether that matters to nobody, because another is answered or under way; else
    /// this one is the last, and still counts.
    pub fn lost(&self) -> bool {
        let others = self.under_way.get() - 1;
        let matters = others == 0 && !self.is_over();
        if !matters {
            self.under_way.set(others);
        }
        !matters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_counts_and_only_the_last_failure() {
        let copies = Copies::begin();
        copies.own("client");
        copies.add();
        copies.add();
        assert!(copies.lost() && copies.lost());
        assert!(!copies.lost() && !copies.lost(), "the last may be sent again, and again");
        copies.add();
        assert_eq!(copies.owner(|owner| owner.len()), Some(6));
        assert_eq!((copies.take(), copies.take()), (Some("client"), None));
        assert!(copies.is_over() && copies.lost() && copies.lost());
    }
}
