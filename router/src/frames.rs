//! Framed MessagePack-RPC: requests of all clients of a worker share one connection to each server, under ids of that
//! connection's own, and are answered in any order.
//!
//! As on the Redis side, a client's task reads requests and hands each to the connection of its server; that one's task
//! writes what has gathered, reads answers, and puts each into its client's buffer.

mod client;
mod local;
mod upstream;
mod waiting;

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    task::Waker,
    time::Duration,
};

use membership_sync::Reader;
use membership_types::Instant;
use router_proto::{
    PartitionId, PhysicalId, RacsId,
    extract::NoKey,
    frames::{self, Complaint, Digits, KeyPaths, Refusal, Request, Stamp, Verdict},
    racs::{Access, Policy, Tried},
};

use client::Client;
pub(crate) use client::{Frames, too_many_clients};
use local::Local;
pub(crate) use local::{LocalAnswer, LocalCall, serve_locals};
pub(crate) use upstream::Upstream;

use crate::{
    access::{AccessLog, Line, Tally, What, Word},
    config::{Protocol, Service},
    stats::Counters,
    table::Table,
    worker::{
        Admission, ClientStream, ClientTask, Clients, Copies, Hedges, Placements, Rival, SERVERS_FULL,
        Server, Stopwatch, Succession, TOO_MANY, Target, Unanswered, Waiting, Waits, Worker,
    },
};

/// How many connections may fail under one request.
const MAX_FAILURES: u8 = 3;

const TOO_MANY_RETRIES: &str =
    "connections to the partition's servers fail, and too many requests are being sent again";

/// How often a request follows what servers say of who leads, before it waits for a view.
const MAX_HINTS: u8 = 2;

/// One service on one worker.
pub(crate) struct FramesService {
    worker: Rc<Worker>,
    name: Box<str>,
    policy: Policy,
    hedges: Hedges,
    pub admission: Admission,
    paths: KeyPaths,
    no_key: NoKey,
    reads: Box<[Box<[u8]>]>,
    stamp: bool,
    table: RefCell<Reader<Table>>,
    /// Requests that nobody may take yet.
    waiting: Waiting<Tag>,
    /// The names of the RACS, for the log.
    names: Box<[Box<str>]>,
    clients: Clients,
    /// Bytes of large requests that are under way, and clients that wait with theirs.
    held: Cell<usize>,
    crowd: RefCell<Vec<Waker>>,
    pub counters: Rc<Counters>,
    pub log: Option<AccessLog>,
    pub succession: Succession<Self>,
}

/// Whom an answer is for, and what is needed to send the request again.
pub(crate) struct Tag {
    service: Rc<FramesService>,
    caller: Caller,
    partition: PartitionId,
    racs: RacsId,
    access: Access,
    /// Connections that have failed under it.
    failures: u8,
    /// How often it followed a hint, and the latest.
    hints: u8,
    hint: Option<PhysicalId>,
    tried: Tried,
    /// Whether a second clone was asked because the server that this copy is with is silent.
    hedged: bool,
    /// Until when the client waits.
    until: Instant,
    /// Until when it may wait for a leader; set when it first has to.
    wait_until: Instant,
    /// Its method, and its last server, for the access log.
    method: Word,
    server: Option<SocketAddr>,
    /// How long its server takes, if that is measured.
    timed: Option<Stopwatch>,
    /// When it came in, and when it was last sent.
    began: Instant,
    sent: Instant,
    /// Its share of the room for large requests.
    _held: Option<Held>,
}

/// Who asked.
enum Caller {
    /// A client's connection: the client's own id, and bytes of the request.
    Client { client: Rc<Client>, msgid: u32, len: usize },
    /// A task of this process.
    Local(Local),
    /// Either, of a read that several servers were asked for.
    Shared(Rc<Copies<Caller>>),
}

/// Room that a large request takes, until it is answered.
struct Held {
    service: Rc<FramesService>,
    len: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.service.held.set(self.service.held.get() - self.len);
        for waker in self.service.crowd.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// Serves one client until it or the router has had enough.
pub(crate) async fn serve(service: Rc<FramesService>, stream: ClientStream) {
    ClientTask::<Frames>::new(service, stream).serve().await;
}

/// As [`serve`], for a client that another process had; its next request begins so.
pub(crate) async fn resume(service: Rc<FramesService>, stream: ClientStream, input: Vec<u8>) {
    ClientTask::<Frames>::new(service, stream).after(&[], input).serve().await;
}

impl FramesService {
    pub fn start(
        worker: &Rc<Worker>,
        service: &Service,
        mut table: Reader<Table>,
        log: Option<AccessLog>,
    ) -> Rc<Self> {
        let Protocol::Frames { paths, no_key, reads, stamp } = &service.protocol else {
            unreachable!("only services of this protocol come here");
        };
        let counters = worker.counters(&service.name);
        let partitions = table.load().pmap.len().get() as usize;
        counters.partitions(partitions);
        counters.hot.watch(service.hot_keys, partitions);
        let admission = worker.admission(service);
        Rc::new(Self {
            worker: Rc::clone(worker),
            name: service.name.clone(),
            policy: worker.policy(service),
            waiting: Waiting::new(worker, service.racs.len(), admission.waiting, &counters),
            admission,
            hedges: Hedges::new(service.hedge),
            paths: paths.clone(),
            no_key: *no_key,
            reads: reads.clone(),
            stamp: *stamp,
            table: RefCell::new(table),
            names: service.racs.iter().map(|racs| racs.name.clone()).collect(),
            clients: Clients::default(),
            held: Cell::new(0),
            crowd: RefCell::default(),
            counters,
            log,
            succession: Succession::default(),
        })
    }

    /// Whether the newest table has this server.
    pub fn names(&self, id: PhysicalId) -> bool {
        self.table.borrow_mut().load().l2p.iter().any(|logical| logical.physical == id)
    }

    fn now(&self) -> Instant {
        self.worker.clock.now()
    }

    /// Takes room for a large request; `None` while there is none. One always finds room.
    fn hold(self: &Rc<Self>, len: usize) -> Option<Held> {
        let held = self.held.get();
        if held > 0 && held + len > self.worker.limits.requests_in_all {
            return None;
        }
        self.held.set(held + len);
        Some(Held { service: Rc::clone(self), len })
    }

    /// Routes one request.
    fn dispatch(self: &Rc<Self>, caller: Caller, frame: &[u8], request: &Request, held: Option<Held>) {
        caller.begin();
        let method = &frame[request.method.clone()];
        let access =
            if self.reads.iter().any(|read| **read == *method) { Access::Read } else { Access::Update };
        let place = {
            let mut table = self.table.borrow_mut();
            let pmap = &table.load().pmap;
            let partition = match &request.key {
                Ok(Some(key)) => {
                    let mut digits = Digits::default();
                    let key = key.bytes(frame, &mut digits);
                    let partition = pmap.locate(key);
                    self.counters.hot.note(partition, key);
                    Ok(partition)
                }
                Ok(None) => {
                    let source = caller.source();
                    self.no_key.partition(access, source, self.worker.random(), pmap.len()).ok_or(None)
                }
                Err(error) => Err(Some(*error)),
            };
            partition.map(|partition| (partition, pmap.racs(partition)))
        };
        let (partition, racs) = match place {
            Ok(place) => place,
            Err(error) => {
                self.counters.refused.add(1);
                let why = error.map_or_else(|| "the request has no key".into(), |error| error.to_string());
                if let Caller::Client { client, .. } = &caller {
                    Tally::add(&client.tally.refused);
                    self.note(client, method, None, None, 0, Some(&why), Duration::ZERO);
                }
                return self.complain(caller, None, Verdict::Refused, &why);
            }
        };
        let began = self.counters.begin(partition, &self.worker.clock);
        let until = match request.deadline_ms {
            None => Instant::MAX,
            Some(ms) => {
                self.worker.clock.refresh();
                self.now().after(Duration::from_millis(ms.into()))
            }
        };
        let tag = Tag {
            service: Rc::clone(self),
            caller,
            partition,
            racs,
            access,
            failures: 0,
            hints: 0,
            hint: None,
            tried: Tried::default(),
            hedged: false,
            until,
            wait_until: Instant::MAX,
            method: if self.log.is_some() { Word::of(method) } else { Word::default() },
            server: None,
            timed: None,
            began,
            sent: began,
            _held: held,
        };
        self.send(tag, &frame[request.body.clone()]);
    }

    /// Sends a request that has just come in. Where others wait for the same leader it queues behind them.
    fn send(self: &Rc<Self>, tag: Tag, body: &[u8]) {
        if !self.admission.enter() {
            return tag.overloaded(TOO_MANY);
        }
        if tag.access == Access::Read {
            self.hedges.earn();
        }
        if self.policy.leader_only(tag.access) && !self.waiting.is_empty(tag.racs) {
            self.wait(tag, body.into());
            return;
        }
        match self.pick(&tag) {
            Target::Server(server) => self.push(&server, body, tag),
            Target::Wait => self.wait(tag, body.into()),
            Target::Full => tag.overloaded(SERVERS_FULL),
            Target::Exhausted => tag.unavailable("no clone of the partition's RACS answers"),
        }
    }

    /// Sends a request again of which a server said that it had done nothing.
    fn send_again(self: &Rc<Self>, tag: Tag, body: Vec<u8>) {
        match self.pick(&tag) {
            Target::Server(server) => self.push(&server, &body, tag),
            Target::Full => tag.overloaded(SERVERS_FULL),
            Target::Wait | Target::Exhausted => self.wait(tag, body.into()),
        }
    }

    fn pick(&self, tag: &Tag) -> Target {
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let mut clones = table.racs(tag.racs).clones().iter().map(|clone| table.l2p.get(*clone));
        if let Some(hinted) = tag.hint
            && let Some(logical) = clones.find(|logical| logical.physical == hinted)
        {
            return Target::Server(self.worker.servers.get(logical.physical, logical.addr));
        }
        let (asked, placements) = ((tag.racs, tag.access), tag.caller.placements());
        self.worker.pick(table, self.policy, asked, &tag.tried, placements)
    }

    /// A sound clone to ask, too, about a read that `silent` says nothing about; `hung` says that it has for long.
    fn rival(&self, tag: &Tag, silent: &Server, hung: bool) -> Rival {
        if tag.caller.is_gone() || tag.until <= self.now() {
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
        let has_room =
            |server: &Server| !server.frames.borrow().as_ref().is_some_and(|upstream| upstream.is_full());
        self.hedges.rival(&self.worker, self.table.borrow_mut().load(), &read, has_room)
    }

    /// Hands a request to its server's connection.
    fn push(&self, server: &Rc<Server>, body: &[u8], mut tag: Tag) {
        tag.sent = self.worker.clock.fine();
        tag.server = Some(server.addr);
        let now = self.now();
        if tag.until <= now {
            return tag.late();
        }
        let current = server.frames.borrow().clone();
        let upstream = match current {
            Some(upstream) if upstream.is_full() => {
                return tag.unavailable("as many requests as can be are under way to the server");
            }
            Some(upstream) => upstream,
            None => {
                let upstream = Upstream::start(&self.worker, server);
                *server.frames.borrow_mut() = Some(Rc::clone(&upstream));
                upstream
            }
        };
        let due = tag.until.min(now.after(self.worker.limits.response));
        if !self.stamp {
            return upstream.push(body, None, due, tag);
        }
        let mut name = [0; 128];
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let left = (tag.until != Instant::MAX).then(|| (tag.until - now).as_millis());
        let stamp = Stamp {
            deadline_ms: left.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX)),
            epoch: Some(table.racs(tag.racs).epoch().get()),
            partition: print(&mut name, format_args!("{}", table.pmap.name(tag.partition))),
            update: Some(tag.access == Access::Update),
        };
        upstream.push(body, Some(&stamp), due, tag);
    }

    /// Logs a request, if requests are logged.
    #[expect(clippy::too_many_arguments, reason = "a line has so many columns")]
    fn note(
        &self,
        client: &Client,
        name: &[u8],
        at: Option<(PartitionId, RacsId)>,
        server: Option<SocketAddr>,
        attempts: u32,
        error: Option<&str>,
        took: Duration,
    ) {
        let Some(log) = &self.log else { return };
        let mut table = self.table.borrow_mut();
        let partition = at.map(|(partition, _)| table.load().pmap.name(partition));
        let partition = partition.as_ref().map(|name| name as &dyn fmt::Display);
        let client = client.tally.source;
        let racs = at.map(|(_, racs)| &*self.names[racs.get() as usize]);
        let what = What::Command { name, racs };
        log.note_some(&Line { client, what, partition, server, attempts, error, took });
    }

    /// Tells a client why there is no result.
    fn complain(
        &self,
        caller: Caller,
        partition: Option<PartitionId>,
        verdict: Verdict,
        error: &dyn fmt::Display,
    ) {
        let mut table = self.table.borrow_mut();
        let pmap = &table.load().pmap;
        let name = partition.map(|partition| pmap.name(partition));
        let complaint = Complaint {
            verdict,
            error,
            service: Some(&self.name),
            partition: name.as_ref().map(|name| name as &dyn fmt::Display),
            epoch: None,
            leader: None,
        };
        caller.complain(&complaint);
    }
}

/// Prints into room that is there already; `None` if it does not suffice.
fn print<'a>(room: &'a mut [u8], text: fmt::Arguments<'_>) -> Option<&'a str> {
    use std::io::Write;
    let mut rest = &mut *room;
    rest.write_fmt(text).ok()?;
    let left = rest.len();
    let len = room.len() - left;
    str::from_utf8(&room[..len]).ok()
}

impl Caller {
    /// Notes that the request is under way.
    fn begin(&self) {
        if let Self::Client { client, len, .. } = self {
            client.asked(*len);
        }
    }

    /// Which client it is, unless it is a task of this process, or was answered by another copy.
    fn client(&self) -> Option<Rc<Client>> {
        match self {
            Self::Client { client, .. } => Some(Rc::clone(client)),
            Self::Local(_) => None,
            Self::Shared(copies) => copies.owner(Self::client).flatten(),
        }
    }

    /// Where it comes from; what is of this process has one source, however many tasks ask.
    fn source(&self) -> IpAddr {
        match self {
            Self::Client { client, .. } => client.source(),
            // Nobody asks about those.
            Self::Local(_) | Self::Shared(_) => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// The clones that it stays with, where clients do; all tasks of this process stay with the same. Who does asks one
    /// server alone.
    fn placements(&self) -> Option<&Placements> {
        match self {
            Self::Client { client, .. } => Some(&client.placements),
            Self::Local(local) => Some(&local.placements),
            Self::Shared(_) => None,
        }
    }

    /// Whether another copy is answered.
    fn is_over(&self) -> bool {
        matches!(self, Self::Shared(copies) if copies.is_over())
    }

    /// Whether nobody waits for the answer any more.
    fn is_gone(&self) -> bool {
        match self {
            Self::Client { client, .. } => client.is_gone(),
            Self::Local(local) => local.is_gone(),
            Self::Shared(copies) => copies.owner(Self::is_gone).unwrap_or(true),
        }
    }

    /// A server's answer: error and result.
    fn answer(self, body: &[u8]) {
        match self {
            Self::Client { client, msgid, len } => client.put_answer(len, msgid, body),
            Self::Local(local) => local.answer(body),
            Self::Shared(copies) => copies.take().into_iter().for_each(|caller| caller.answer(body)),
        }
    }

    fn complain(self, complaint: &Complaint<'_>) {
        match self {
            Self::Client { client, msgid, len } => {
                let mut answer = Vec::new();
                frames::push_complaint(&mut answer, msgid, complaint);
                client.put_bytes(len, &answer);
            }
            Self::Local(local) => local.complain(complaint),
            Self::Shared(copies) => copies.take().into_iter().for_each(|caller| caller.complain(complaint)),
        }
    }
}

impl Tag {
    /// Another copy of a read, for another server than the one that is silent about it.
    fn copy(&mut self, silent: PhysicalId) -> Self {
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
            _held: None,
            ..*self
        }
    }

    /// Its connection failed, or its answer says nothing: whether that matters to nobody, because of a copy.
    fn lost(&self) -> bool {
        matches!(&self.caller, Caller::Shared(copies) if copies.lost())
    }

    /// Logs it if it failed or was slow, or if it is its turn. Tasks of this process know themselves what they ask.
    fn note(&self, error: Option<&dyn fmt::Display>) {
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
    fn deliver(self, body: &[u8]) {
        if self.caller.is_over() {
            return;
        }
        self.note(None);
        self.service.admission.leave();
        self.service.counters.end(self.began, &self.service.worker.clock);
        self.caller.answer(body);
    }

    fn complain(self, verdict: Verdict, error: &dyn fmt::Display) {
        self.note(Some(error));
        let Self { service, caller, partition, began, .. } = self;
        service.admission.leave();
        service.counters.end(began, &service.worker.clock);
        service.complain(caller, Some(partition), verdict, error);
    }

    /// Nobody can take the request, and nothing was done.
    fn unavailable(self, why: &str) {
        self.service.counters.unavailable.add(1);
        self.complain(Verdict::Unavailable, &format_args!("{why}; nothing was done"));
    }

    /// Too many requests are under way, and nothing was done.
    fn overloaded(self, why: &str) {
        self.service.counters.overloaded.add(1);
        self.complain(Verdict::Busy, &format_args!("{why}; nothing was done"));
    }

    /// Nobody knows whether the update was carried out.
    fn unknown(self, why: &str) {
        self.service.counters.unknown.add(1);
        self.complain(Verdict::Unknown, &format_args!("outcome unknown: {why}"));
    }

    /// The client's time is over, and nothing was changed.
    fn late(self) {
        self.service.counters.unavailable.add(1);
        self.complain(Verdict::Late, &"the time for the request is over, and nothing was changed");
    }

    /// A server's answer that says that nothing was done, and why.
    fn refused(mut self, server: &Server, request: Vec<u8>, answer: &[u8], refusal: Refusal<'_>) {
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
