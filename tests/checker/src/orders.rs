//! SE3: what only an operator may do follows from an operator's order, and orders are taken from the node's own host only.

use std::{collections::BTreeMap, net::IpAddr};

use membership_types::trace::Process;

use crate::{
    book::{At, Book},
    report::Predicate,
};

/// The order to give up a lineage.
const FORCE: &str = "force-new";

/// The latest order to each process that nothing came of yet.
#[derive(Debug, Default)]
pub(crate) struct Orders(BTreeMap<Process, At>);

impl Orders {
    /// A process takes an order.
    pub(crate) fn taken(&mut self, book: &mut Book, p: Process, op: &str, who: &str, at: At) {
        if op == FORCE {
            self.0.insert(p, at);
        }
        book.judged(Predicate::SE3);
        if !who.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) {
            let what = format!("{p} takes an order of {who}, which is not its own host");
            book.violated(Predicate::SE3, what, vec![(at, format!("{p} takes the order {op} of {who}"))]);
        }
    }

    /// A process gives up its lineage.
    pub(crate) fn forced(&mut self, book: &mut Book, p: Process, at: At) {
        book.judged(Predicate::SE3);
        if self.0.remove(&p).is_none() {
            let what = format!("{p} gives up its lineage, and nobody has told it to");
            book.violated(Predicate::SE3, what, vec![(at, format!("{p} gives up its lineage"))]);
        }
    }
}
