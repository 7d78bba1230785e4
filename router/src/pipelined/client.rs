//! Clients of pipelined protocols: their commands, and replies in the order of those.

use std::rc::Rc;

use router_proto::pipelined::{Reorder, Seq};

use super::{Dialect, Service};
use crate::{
    access::{AccessLog, Tally},
    limits::Limits,
    worker::{Client, ClientService, Clients, Succession, UnderWay, Worker},
};

impl UnderWay for Reorder {
    fn len(&self) -> usize {
        self.len()
    }

    fn kept(&self) -> usize {
        self.kept()
    }
}

impl<D: Dialect> ClientService for Service<D> {
    fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn log(&self) -> Option<&AccessLog> {
        self.log.as_ref()
    }

    fn succession(&self) -> &Succession<Self> {
        &self.succession
    }

    fn limits(&self) -> &Limits {
        self.limits()
    }

    fn clients(&self) -> &Clients {
        &self.clients
    }
}

impl<D: Dialect> Client<D> {
    /// Takes the next place in the order of replies.
    pub fn open(&self) -> Seq {
        Tally::add(&self.tally.commands);
        self.begin(Reorder::open)
    }

    /// Puts a reply into its place; wakes the client if it is its turn.
    pub fn fill(&self, seq: Seq, reply: &[u8], most_unread: usize) {
        self.put(most_unread, |under_way, out| {
            under_way.fill(seq, reply, out);
            reply.len()
        });
    }

    /// Appends what was not asked for, after the replies that are due. Cuts the client off if it leaves more unread
    /// than this.
    pub fn tell(&self, message: &[u8], most_unread: usize) {
        if !self.is_gone() {
            let seq = self.begin(Reorder::open);
            self.fill(seq, message, most_unread);
        }
    }

    /// Answers with what `write` appends.
    pub fn answer<T>(&self, seq: Seq, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut reply = Vec::new();
        let written = write(&mut reply);
        self.fill(seq, &reply, usize::MAX);
        written
    }
}
