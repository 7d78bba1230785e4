//! Protocols whose clients send commands ahead: commands of all clients of a worker share one connection to
//! each server, and one client's replies leave in the order of its commands.
//!
//! A client's task reads commands and appends each to the pipeline of its server; the server's task, which
//! runs after all clients that had input in this turn of the loop, writes them in one go, reads replies, and
//! puts each into its place in its client's order. So a batch of commands from many clients costs one write
//! and one read per server, and one of each per client.
//!
//! What commands and replies look like is a [`Dialect`]'s business.
//!
//! | file | one idea |
//! | --- | --- |
//! | `client.rs` | a client's replies are in the order of its commands |
//! | `upstream.rs` | the connection to one server that all clients share |
//! | `tag.rs` | what is known of a command that is under way |
//! | `waiting.rs` | what becomes of commands that wait for a leader |
//! | `spare.rs` | room that commands use one after another |

mod client;
mod spare;
mod tag;
mod upstream;
mod waiting;

use std::{cell::RefCell, io, net::SocketAddr, ops::Range, rc::Rc, time::Duration};

use membership_sync::Reader;
use membership_types::Instant;
use router_proto::{
    PhysicalId, RacsId,
    health::Said,
    pipelined::{Reorder, Seq},
    racs::{Access, Circumstances, Pick, Policy, Tried, Updates},
};

pub(crate) use spare::Spare;
pub(crate) use tag::Tag;
pub(crate) use upstream::{Upstream, connect};

use crate::{
    access::{AccessLog, Line, Tally, What},
    config,
    limits::Limits,
    stats::{Class, Counters},
    table::Table,
    worker::{
        Admission, Client, ClientStream, ClientTask, Clients, Dialogue, Hedges, Rival, Room, SERVERS_FULL,
        Server, Succession, TOO_MANY, Target, Unanswered, Waiting, Waits, Worker,
    },
};

/// One protocol: where its commands and replies end, where commands go, how replies combine.
pub(crate) trait Dialect: Dialogue<Service = Service<Self>, UnderWay = Reorder> {
    /// How its replies are called where one is none.
    const NAME: &'static str;
    /// What a client hears that is not served at all.
    const TOO_MANY_CLIENTS: &'static [u8];

    /// What is kept of a server's output between two reads.
    type Replies: Default;
    /// What must be known of a command when its reply comes.
    type Note: Copy;
    /// The replies to the parts of one command, until all are there.
    type Gather;

    /// The name of a command, for the access log: nothing that could be a key.
    fn name(command: &[u8]) -> &[u8];

    /// How many connections to each server the clients of a service share: one for each way in which servers may
    /// be talked to.
    const LANES: usize = 1;

    /// For one service on one worker.
    fn new(service: &config::Service, limits: &Limits) -> Self;

    /// Some service has a new table; or so it may be.
    fn tables_changed(_service: &Service<Self>) {}

    /// The length of the reply to this command at the start of `input`; `None` while bytes are missing.
    fn scan_reply(
        replies: &mut Self::Replies,
        note: Self::Note,
        command: &[u8],
        input: &[u8],
    ) -> Result<Option<usize>, ()>;

    /// What this whole reply says of its command, and its server.
    fn says(note: Self::Note, reply: &[u8]) -> Says;

    /// Whether a reply to a command with this note may begin before the command was sent whole.
    fn begins_early(_note: Self::Note) -> bool {
        false
    }

    /// What the client gets to see of a reply: all of it, a part, or nothing.
    fn shown(_note: Self::Note, reply: &[u8]) -> &[u8] {
        reply
    }

    /// Takes the reply to one part. Once all are there it appends to `whole` what the client gets, and returns
    /// true.
    fn gather(gather: &mut Self::Gather, part: u16, reply: &[u8], whole: &mut Vec<u8>) -> bool;

    /// Appends an error of the router's own.
    fn push_failure(out: &mut Vec<u8>, failure: Failure);

    /// The connections to this server that clients of this protocol and worker share.
    fn lanes(server: &Server) -> &Lanes<Self>;

    /// Which of them a command with this note takes.
    fn lane(_note: Self::Note) -> usize {
        0
    }

    /// What a server has to be told first on this lane, if anything; it gives one reply.
    fn greeting(&self, _lane: usize) -> Vec<u8> {
        Vec::new()
    }

    /// What became of that, once its reply is whole; an error if that does not let us in.
    fn welcome(_reply: &[u8]) -> io::Result<bool> {
        Ok(true)
    }
}

/// The connections to one server that clients share. Those of different services are apart: they may have different
/// passwords.
pub(crate) struct Lanes<D: Dialect>(RefCell<Vec<Option<Rc<Upstream<D>>>>>);

impl<D: Dialect> Default for Lanes<D> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<D: Dialect> Lanes<D> {
    /// Nobody will send anything there any more.
    pub fn retire(&self) {
        self.0.borrow().iter().flatten().for_each(|upstream| upstream.retire());
    }

    /// The same of these lanes alone, which others may take from now on.
    pub fn retire_some(&self, lanes: Range<usize>) {
        let mut all = self.0.borrow_mut();
        for upstream in all.iter_mut().take(lanes.end).skip(lanes.start).filter_map(Option::take) {
            upstream.retire();
        }
    }

    fn forget(&self, upstream: &Rc<Upstream<D>>) {
        for lane in &mut *self.0.borrow_mut() {
            lane.take_if(|current| Rc::ptr_eq(current, upstream));
        }
    }
}

/// What a reply says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// It is no error.
    Well,
    /// An error that is about the command.
    Error,
    /// An error that any command would meet: the server cannot serve.
    CannotServe,
}

impl Says {
    /// What is counted of it.
    pub fn class(self) -> Class {
        Class::of_reply(self != Self::Well)
    }
}

/// Why a command has no reply of a server.
#[derive(Clone, Copy)]
pub(crate) enum Failure {
    /// Nobody can take it, and nothing was done.
    Unavailable(&'static str),
    /// It may have been executed, or not.
    Unknown(&'static str),
}

/// One service of a protocol on one worker.
pub(crate) struct Service<D: Dialect> {
    pub worker: Rc<Worker>,
    name: Box<str>,
    limits: Limits,
    policy: Policy,
    hedges: Hedges,
    pub admission: Admission,
    /// The first of its lanes, which it has for as long as it holds the other one.
    lane: usize,
    _lanes: Rc<()>,
    pub table: RefCell<Reader<Table>>,
    /// Commands that nobody may take yet.
    waiting: Waiting<Tag<D>>,
    pub clients: Clients,
    /// For large commands.
    pub room: Rc<Room>,
    /// Where replies to parts are put together.
    whole: RefCell<Vec<u8>>,
    pub counters: Rc<Counters>,
    pub log: Option<AccessLog>,
    /// The names of the RACS, for the log.
    names: Box<[Box<str>]>,
    pub succession: Succession<Self>,
    /// What the protocol itself keeps.
    pub dialect: D,
}

/// How many connections may fail under one command.
const MAX_FAILURES: u8 = 3;

const TOO_MANY_RETRIES: &str =
    "connections to the partition's servers fail, and too many commands are being sent again";

/// Serves one client until it or the router has had enough.
pub(crate) async fn serve<D: Dialect>(service: Rc<Service<D>>, stream: ClientStream) {
    ClientTask::<D>::new(service, stream).serve().await;
}

/// As [`serve`], for a client that another process had: what that told of it, and how its next command begins.
pub(crate) async fn resume<D: Dialect>(
    service: Rc<Service<D>>,
    stream: ClientStream,
    session: Vec<u8>,
    input: Vec<u8>,
) {
    ClientTask::<D>::new(service, stream).after(&session, input).serve().await;
}

impl<D: Dialect> Service<D> {
    pub fn start(
        worker: &Rc<Worker>,
        service: &config::Service,
        mut table: Reader<Table>,
        log: Option<AccessLog>,
    ) -> Rc<Self> {
        let counters = worker.counters(&service.name);
        let partitions = table.load().pmap.len().get() as usize;
        counters.partitions(partitions);
        counters.hot.watch(service.hot_keys, partitions);
        let (lane, lanes) = worker.take_lanes(service, D::LANES);
        let admission = worker.admission(service);
        let limits = worker.limits(service);
        Rc::new(Self {
            worker: Rc::clone(worker),
            name: service.name.clone(),
            policy: worker.policy(service),
            waiting: Waiting::new(worker, service.racs.len(), admission.waiting, limits.wait, &counters),
            admission,
            hedges: Hedges::new(service.hedge),
            lane,
            _lanes: lanes,
            table: RefCell::new(table),
            clients: Clients::default(),
            room: Room::new(limits.requests_in_all),
            whole: RefCell::default(),
            counters,
            log,
            names: service.racs.iter().map(|racs| racs.name.clone()).collect(),
            succession: Succession::default(),
            dialect: D::new(service, &limits),
            limits,
        })
    }

    /// How many RACS the service has.
    pub fn racs(&self) -> usize {
        self.waiting.racs()
    }

    /// All of them.
    pub fn all_racs(&self) -> impl Iterator<Item = RacsId> {
        (0..).take(self.racs()).map(RacsId::new)
    }

    /// How long this worker has been running.
    pub fn uptime(&self) -> Duration {
        Duration::from_nanos(self.now().as_nanos())
    }

    /// A RACS drawn at random.
    pub fn any_racs(&self) -> RacsId {
        RacsId::new((self.worker.random() % self.racs() as u64) as u32)
    }

    /// 64 random bits.
    pub fn random(&self) -> u64 {
        self.worker.random()
    }

    /// Where a key that a command asks for lies. Counts it.
    pub fn locate(&self, key: &[u8]) -> RacsId {
        let mut table = self.table.borrow_mut();
        let pmap = &table.load().pmap;
        let partition = pmap.locate(key);
        self.counters.key(partition);
        self.counters.hot.note(partition, key);
        pmap.racs(partition)
    }

    /// How long it waits and how much it keeps.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the newest table has this server.
    pub fn has_server(&self, id: PhysicalId) -> bool {
        self.table.borrow_mut().load().has_server(id)
    }

    /// Sends a command that has just come in. Where others wait for the same leader it queues behind them, so
    /// that a client's updates are not overtaken by its own.
    pub fn send(self: &Rc<Self>, mut tag: Tag<D>, command: &[u8]) {
        tag.began = self.worker.clock.fine();
        tag.client.owe(command.len());
        // Of a command in parts all are let in, or none: see `admits`.
        if !self.admission.enter() && tag.part.is_none() {
            return self.overloaded(tag, command, TOO_MANY);
        }
        if tag.access == Access::Read {
            self.hedges.earn();
        }
        if self.policy.leader_only(tag.access) && !self.waiting.is_empty(tag.racs) {
            self.wait(tag, command.into());
            return;
        }
        match self.pick(&tag) {
            Target::Server(server) => self.push(&server, command, tag),
            Target::Wait => self.wait(tag, command.into()),
            Target::Full => self.overloaded(tag, command, SERVERS_FULL),
            Target::Exhausted => self.unavailable(tag, command, "no clone of the partition's RACS answers"),
        }
    }

    /// Whether a command in several parts may go on: it is let in as a whole, before any part of it is sent, and then
    /// counts as its parts. Even those may be more than the limit, or such a command would never be let in. If not, its
    /// client hears so.
    #[must_use]
    pub fn admits(&self, client: &Client<D>, seq: Seq, note: D::Note, command: &[u8]) -> bool {
        let has_room = self.admission.has_room();
        if !has_room {
            self.turn_away(client, seq, note, command, TOO_MANY);
        }
        has_room
    }

    /// As [`Service::admits`], for a command that goes to the leader of this RACS by a way of its own, where there must
    /// be room, too.
    #[must_use]
    pub fn leader_admits(
        &self,
        racs: RacsId,
        client: &Client<D>,
        seq: Seq,
        note: D::Note,
        command: &[u8],
    ) -> bool {
        if !self.admits(client, seq, note, command) {
            return false;
        }
        let is_full = {
            let mut table = self.table.borrow_mut();
            let table = table.load();
            let policy = Policy { updates: Updates::Leader, ..self.policy };
            let at = Circumstances { policy, l2p: &table.l2p, loads: &self.worker.servers, now: self.now() };
            table.racs(racs).pick(Access::Update, at, 0, &Tried::default()) == Pick::Full
        };
        if is_full {
            self.turn_away(client, seq, note, command, SERVERS_FULL);
        }
        !is_full
    }

    /// Tells a client that its command is one too many.
    fn turn_away(&self, client: &Client<D>, seq: Seq, note: D::Note, command: &[u8], why: &'static str) {
        self.counters.overloaded.add(1);
        Tally::add(&client.tally.failed);
        if let Some(log) = &self.log {
            self.note(log, client, D::name(command), None, None, 0, Some(why), Duration::ZERO);
        }
        let mut reply = Vec::new();
        D::push_failure(&mut reply, Failure::Unavailable(why));
        client.fill(seq, D::shown(note, &reply), usize::MAX);
    }

    fn pick(&self, tag: &Tag<D>) -> Target {
        let (asked, placements) = ((tag.racs, tag.access), Some(&tag.client.placements));
        self.worker.pick(self.table.borrow_mut().load(), self.policy, asked, &tag.tried, placements)
    }

    /// A sound clone to ask, too, about a read that `silent` says nothing about; `hung` says that it has for long.
    fn rival(&self, tag: &Tag<D>, silent: &Server, hung: bool) -> Rival {
        if tag.client.is_gone() {
            return Rival::None;
        }
        let read = Unanswered {
            policy: self.policy,
            access: tag.access,
            racs: tag.racs,
            tried: tag.tried,
            silent,
            hung,
        };
        self.hedges.rival(&self.worker, self.table.borrow_mut().load(), &read, |_| true)
    }

    /// What a reply says of its server: that it cannot serve counts against it if enough other clones can.
    pub fn judge(&self, says: Says, racs: RacsId, server: &Server) -> Said {
        if says != Says::CannotServe {
            return Said::Well;
        }
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let at = Circumstances {
            policy: self.policy,
            l2p: &table.l2p,
            loads: &self.worker.servers,
            now: self.now(),
        };
        if table.racs(racs).can_spare(server.id, at) { Said::Unable } else { Said::Well }
    }

    /// Sends a read to another clone, because `server` has said that it cannot serve; once, and within what may be sent
    /// again. Gives it back if that is what its client is to hear.
    fn ask_another(&self, mut tag: Tag<D>, command: &[u8], server: &Server) -> Option<Tag<D>> {
        // Another clone was asked already, and may know better.
        if tag.lost() {
            return None;
        }
        let bound = self.policy.leader_only(tag.access);
        if bound || tag.failures > 0 || tag.client.is_gone() || !tag.tried.add(server.id) {
            return Some(tag);
        }
        // Who is picked counts as chosen, and as tried if it has failed: so nothing may come between.
        if !server.may_retry(self.now()) {
            return Some(tag);
        }
        match self.pick(&tag) {
            Target::Server(next) => {
                self.counters.retried.add(1);
                tag.failures += 1;
                tag.hedged = false;
                self.push(&next, command, tag);
                None
            }
            Target::Wait | Target::Full | Target::Exhausted => Some(tag),
        }
    }

    fn push(&self, server: &Rc<Server>, command: &[u8], mut tag: Tag<D>) {
        tag.sent = self.worker.clock.fine();
        let lane = D::lane(tag.note);
        let place = self.lane + lane;
        let mut lanes = D::lanes(server).0.borrow_mut();
        if let Some(Some(upstream)) = lanes.get(place) {
            return upstream.push(command, tag, self.limits.response);
        }
        if lanes.len() <= place {
            lanes.resize_with(place + 1, || None);
        }
        let upstream = Upstream::start(&self.worker, server, &self.limits, self.dialect.greeting(lane));
        upstream.push(command, tag, self.limits.response);
        lanes[place] = Some(upstream);
    }

    /// Nobody can take the command, and nothing was done.
    fn unavailable(&self, tag: Tag<D>, command: &[u8], why: &'static str) {
        self.counters.unavailable.add(1);
        tag.failed(command, None, why);
        tag.deliver_failure(command.len(), Failure::Unavailable(why));
    }

    /// Counts a command that the router itself answers with an error, and logs it.
    pub fn refused(&self, client: &Client<D>, command: &[u8], why: &str) {
        self.counters.refused.add(1);
        Tally::add(&client.tally.refused);
        if let Some(log) = &self.log {
            // Whoever says nonsense may have said it to the wrong server: it is none of the log's business.
            let why = why.split(", with args").next().unwrap_or_default();
            self.note(log, client, D::name(command), None, None, 0, Some(why), Duration::ZERO);
        }
    }

    /// Counts a command whose client hears that nobody has answered it, and logs it.
    pub fn failed(&self, client: &Client<D>, command: &[u8], racs: RacsId, why: &str) {
        Tally::add(&client.tally.failed);
        if let Some(log) = &self.log {
            self.note(log, client, D::name(command), Some(racs), None, 1, Some(why), Duration::ZERO);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a line has so many columns")]
    fn note(
        &self,
        log: &AccessLog,
        client: &Client<D>,
        name: &[u8],
        racs: Option<RacsId>,
        server: Option<SocketAddr>,
        attempts: u32,
        error: Option<&str>,
        took: Duration,
    ) {
        let racs = racs.map(|racs| &*self.names[racs.get() as usize]);
        let what = What::Command { name, racs };
        let client = client.tally.source;
        log.note_some(&Line { client, what, partition: None, server, attempts, error, took });
    }

    /// As [`Service::unavailable`], because too many commands are under way.
    fn overloaded(&self, tag: Tag<D>, command: &[u8], why: &'static str) {
        self.counters.overloaded.add(1);
        tag.failed(command, None, why);
        tag.deliver_failure(command.len(), Failure::Unavailable(why));
    }

    fn now(&self) -> Instant {
        self.worker.clock.now()
    }
}
