//! What is known of a command that is under way, and what becomes of it.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use membership_types::Instant;
use router_proto::{
    PhysicalId, RacsId,
    pipelined::Seq,
    racs::{Access, Tried},
};

use super::{Dialect, Failure, Service};
use crate::{
    access::Tally,
    worker::{Client, Copies, Held, READ},
};

/// Whom a reply is for, and what is needed to send its command again.
pub(crate) struct Tag<D: Dialect> {
    pub(super) client: Rc<Client<D>>,
    pub(super) seq: Seq,
    pub(super) note: D::Note,
    /// For a part of a split command: where its reply goes.
    pub(super) part: Option<(Rc<RefCell<D::Gather>>, u16)>,
    pub(super) racs: RacsId,
    pub(super) access: Access,
    /// Connections that have failed under this command.
    pub(super) failures: u8,
    pub(super) tried: Tried,
    /// What it has in common with its copies, if a second clone was asked.
    pub(super) copies: Option<Rc<Copies<()>>>,
    /// Whether that was because the server that this copy is with is silent.
    pub(super) hedged: bool,
    /// Until when it may wait for a leader; set when it first has to.
    pub(super) wait_until: Instant,
    /// When it came in, and when it was last sent.
    pub(super) began: Instant,
    pub(super) sent: Instant,
    /// Its command's, if that is a large one.
    held: Option<Rc<Held>>,
}

impl<D: Dialect> Tag<D> {
    /// For a command that goes as a whole to one RACS.
    pub fn new(client: &Rc<Client<D>>, seq: Seq, note: D::Note, racs: RacsId, access: Access) -> Self {
        Self {
            client: Rc::clone(client),
            seq,
            note,
            part: None,
            racs,
            access,
            failures: 0,
            tried: Tried::default(),
            copies: None,
            hedged: false,
            wait_until: Instant::MAX,
            began: Instant::ZERO,
            sent: Instant::ZERO,
            held: client.held(),
        }
    }

    /// For one part of a command, whose replies are gathered here.
    pub fn part(self, gather: &Rc<RefCell<D::Gather>>, part: u16) -> Self {
        Self { part: Some((Rc::clone(gather), part)), ..self }
    }

    /// Another copy of a read, for another server than the one that is silent about it.
    pub(super) fn copy(&mut self, silent: PhysicalId) -> Self {
        match &self.copies {
            Some(copies) => copies.add(),
            None => {
                let copies = Copies::begin();
                copies.own(());
                copies.add();
                self.copies = Some(copies);
            }
        }
        self.hedged = true;
        let mut tried = self.tried;
        tried.add(silent);
        Self {
            client: Rc::clone(&self.client),
            part: self.part.as_ref().map(|(gather, part)| (Rc::clone(gather), *part)),
            copies: self.copies.clone(),
            held: self.held.clone(),
            hedged: false,
            tried,
            ..*self
        }
    }

    /// Whether another copy of it is answered, or a second clone is asked already.
    pub(super) fn is_hedged(&self) -> bool {
        self.hedged || self.copies.as_ref().is_some_and(|copies| copies.is_over())
    }

    /// Its connection failed: whether that matters to nobody, because of a copy.
    pub(super) fn lost(&self) -> bool {
        self.copies.as_ref().is_some_and(|copies| copies.lost())
    }

    /// Logs a command, or a part of one, that this server has just answered, if it was slow, or it is its turn.
    pub(super) fn answered(&self, command: &[u8], server: SocketAddr) {
        let Some(service) = self.client.logged() else { return };
        let Some(log) = &service.log else { return };
        // Another copy of it was answered before.
        if self.copies.as_ref().is_some_and(|copies| copies.is_over()) {
            return;
        }
        let took = self.took(&service);
        if log.wants(false, took) {
            let (name, attempts) = (D::name(command), u32::from(self.failures) + 1);
            service.note(log, &self.client, name, Some(self.racs), Some(server), attempts, None, took);
        }
    }

    /// Counts and logs a command, or a part of one, that the router has to answer.
    pub(super) fn failed(&self, command: &[u8], server: Option<SocketAddr>, why: &str) {
        Tally::add(&self.client.tally.failed);
        let Some(service) = self.client.logged() else { return };
        let Some(log) = &service.log else { return };
        let (name, attempts) = (D::name(command), u32::from(self.failures) + u32::from(server.is_some()));
        let took = self.took(&service);
        service.note(log, &self.client, name, Some(self.racs), server, attempts, Some(why), took);
    }

    /// How long it has been under way.
    pub(super) fn took(&self, service: &Service<D>) -> Duration {
        let now = service.worker.clock.fine().as_nanos();
        Duration::from_nanos(now.saturating_sub(self.began.as_nanos()))
    }

    /// Puts a reply into its place; the command had so many bytes.
    pub(super) fn deliver(self, command_len: usize, reply: &[u8]) {
        if let Some(copies) = &self.copies
            && copies.take().is_none()
        {
            return;
        }
        let service = self.client.service();
        service.admission.leave();
        let limits = service.limits();
        // Who asks for much and reads nothing is held back once that is seen. Where so many do it at once that it is
        // seen too late, they have to go before memory does.
        let overrun = service.clients.unread() > 4 * limits.unread_in_all;
        let most_unread = if overrun { limits.backlog / 16 } else { limits.unread };
        self.client.pay(command_len);
        match self.part {
            None => {
                service.counters.end(self.began, &service.worker.clock);
                self.client.fill(self.seq, D::shown(self.note, reply), most_unread);
            }
            Some((gather, part)) => {
                let mut whole = service.whole.borrow_mut();
                if D::gather(&mut gather.borrow_mut(), part, reply, &mut whole) {
                    service.counters.end(self.began, &service.worker.clock);
                    self.client.fill(self.seq, D::shown(self.note, &whole), most_unread);
                    whole.clear();
                    whole.shrink_to(READ);
                }
            }
        }
    }

    pub(super) fn deliver_failure(self, command_len: usize, failure: Failure) {
        let mut reply = Vec::new();
        D::push_failure(&mut reply, failure);
        self.deliver(command_len, &reply);
    }
}
