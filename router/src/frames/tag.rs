//! What is known of a request that is under way, and what becomes of it.

use std::{fmt, net::SocketAddr, rc::Rc, time::Duration};

use membership_types::Instant;
use router_proto::{
    PartitionId, PhysicalId, RacsId,
    frames::{Refusal, Verdict},
    racs::{Access, Tried},
};

use super::{Caller, FramesService};
use crate::{
    access::{Tally, Word},
    worker::{Copies, Held, Server, Stopwatch, Target, Waits},
};

/// How often a request follows what servers say of who leads, before it waits for a view.
const MAX_HINTS: u8 = 2;

/// Whom an answer is for, and what is needed to send the request again.
pub(crate) struct Tag {
    pub(super) service: Rc<FramesService>,
    pub(super) caller: Caller,
    pub(super) partition: PartitionId,
    pub(super) racs: RacsId,
    pub(super) access: Access,
    /// Connections that have failed under it.
    pub(super) failures: u8,
    /// How often it followed a hint, and the latest.
    pub(super) hints: u8,
    pub(super) hint: Option<PhysicalId>,
    pub(super) tried: Tried,
    /// Whether a second clone was asked because the server that this copy is with is silent.
    pub(super) hedged: bool,
    /// Until when the client waits.
    pub(super) until: Instant,
    /// Until when it may wait for a leader; set when it first has to.
    pub(super) wait_until: Instant,
    /// Its method, and its last server, for the access log.
    pub(super) method: Word,
    pub(super) server: Option<SocketAddr>,
    /// How long its server takes, if that is measured.
    pub(super) timed: Option<Stopwatch>,
    /// When it came in, and when it was last sent.
    pub(super) began: Instant,
    pub(super) sent: Instant,
    /// Its share of the room for large requests.
    pub(super) _held: Option<Rc<Held>>,
}

impl Tag {
    /// Another copy of a read, for another server than the one that is silent about it.
    pub(super) fn copy(&mut self, silent: PhysicalId) -> Self {
        let copies = match &self.caller {
            Caller::Shared(copies) => Rc::clone(copies),
            _ => {
                let copies = Copies::begin();
                copies.own(std::mem::replace(&mut self.caller, Caller::Shared(Rc::clone(&copies))));
                copies
            }
        };
        copies.add();
        self.hedged = true;
        let mut tried = self.tried;
        tried.add(silent);
        Self {
            service: Rc::clone(&self.service),
            caller: Caller::Shared(copies),
            hedged: false,
            tried,
            timed: None,
            _held: self._held.clone(),
            ..*self
        }
    }

    /// Its connection failed, or its answer says nothing: whether that matters to nobody, because of a copy.
    pub(super) fn lost(&self) -> bool {
        matches!(&self.caller, Caller::Shared(copies) if copies.lost())
    }

    /// Logs it if it failed or was slow, or if it is its turn. Tasks of this process know themselves what they ask.
    pub(super) fn note(&self, error: Option<&dyn fmt::Display>) {
        if error.is_none() && self.service.log.is_none() {
            return;
        }
        let Some(client) = self.caller.client() else { return };
        if error.is_some() {
            Tally::add(&client.tally.failed);
        }
        let Some(log) = &self.service.log else { return };
        let now = self.service.worker.clock.fine().as_nanos();
        let took = Duration::from_nanos(now.saturating_sub(self.began.as_nanos()));
        if log.wants(error.is_some(), took) {
            let attempts =
                u32::from(self.failures) + u32::from(self.hints) + u32::from(self.server.is_some());
            let (at, error) = (Some((self.partition, self.racs)), error.map(ToString::to_string));
            let (method, error) = (self.method.bytes(), error.as_deref());
            self.service.note(&client, method, at, self.server, attempts, error, took);
        }
    }

    /// The server's answer: error and result.
    pub(super) fn deliver(self, body: &[u8]) {
        if self.caller.is_over() {
            return;
        }
        self.note(None);
        self.service.admission.leave();
        self.service.counters.end(self.began, &self.service.worker.clock);
        self.caller.answer(body);
    }

    pub(super) fn complain(self, verdict: Verdict, error: &dyn fmt::Display) {
        self.note(Some(error));
        let Self { service, caller, partition, began, .. } = self;
        service.admission.leave();
        service.counters.end(began, &service.worker.clock);
        service.complain(caller, Some(partition), verdict, error);
    }

    /// Nobody can take the request, and nothing was done.
    pub(super) fn unavailable(self, why: &str) {
        self.service.counters.unavailable.add(1);
        self.complain(Verdict::Unavailable, &format_args!("{why}; nothing was done"));
    }

    /// Too many requests are under way, and nothing was done.
    pub(super) fn overloaded(self, why: &str) {
        self.service.counters.overloaded.add(1);
        self.complain(Verdict::Busy, &format_args!("{why}; nothing was done"));
    }

    /// Nobody knows whether the update was carried out.
    pub(super) fn unknown(self, why: &str) {
        self.service.counters.unknown.add(1);
        self.complain(Verdict::Unknown, &format_args!("outcome unknown: {why}"));
    }

    /// The client's time is over, and nothing was changed.
    pub(super) fn late(self) {
        self.service.counters.unavailable.add(1);
        self.complain(Verdict::Late, &"the time for the request is over, and nothing was changed");
    }

    /// A server's answer that says that nothing was done, and why.
    pub(super) fn refused(mut self, server: &Server, request: Vec<u8>, answer: &[u8], refusal: Refusal<'_>) {
        if self.lost() {
            return;
        }
        let service = Rc::clone(&self.service);
        let leader_only = service.policy.leader_only(self.access);
        match refusal.verdict {
            Verdict::NotLeader if leader_only => {
                self.hint = None;
                if let Some(leader) = refusal.leader.and_then(|leader| leader.parse().ok())
                    && self.hints < MAX_HINTS
                {
                    self.hints += 1;
                    // Only servers of the RACS are asked: health and hints change the clone, never the partition.
                    let mut table = service.table.borrow_mut();
                    let table = table.load();
                    let mut clones = table.racs(self.racs).clones().iter().map(|clone| table.l2p.get(*clone));
                    self.hint = clones.find(|clone| clone.addr == leader).map(|clone| clone.physical);
                    self.hint.take_if(|hint| *hint == server.id);
                }
                service.counters.retried.add(1);
                match self.hint {
                    Some(_) => service.send_again(self, request),
                    None => service.wait(self, request.into()),
                }
            }
            Verdict::Stopping if leader_only => {
                service.counters.retried.add(1);
                self.hint = None;
                service.wait(self, request.into());
            }
            Verdict::Stopping | Verdict::Busy if !leader_only && self.tried.add(server.id) => {
                match service.pick(&self) {
                    Target::Server(next) if server.may_retry(service.now()) => {
                        service.counters.retried.add(1);
                        service.push(&next, &request, self);
                    }
                    Target::Server(_) | Target::Wait | Target::Full | Target::Exhausted => {
                        self.deliver(answer)
                    }
                }
            }
            _ => self.deliver(answer),
        }
    }
}
