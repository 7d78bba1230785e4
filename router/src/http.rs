//! The HTTP side: one task per client connection, which owns the client's socket and, while a request is
//! under way, a connection to a server.

mod answer;
mod body_key;
mod connection;
mod deadline;
mod exchange;
mod hedge;
mod ids;
mod lane;

use std::{
    cell::{Cell, RefCell},
    fmt,
    io::Write,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use membership_sync::Reader;
use membership_types::Instant;
use router_proto::{
    PartitionId, PhysicalId, RacsId,
    extract::{BodySearch, Extract, NoKey, Search},
    health::{Said, Usual},
    http::{Body, Method, Refusal, RequestHead, Version},
    racs::{Access, Circumstances, Pick, Policy, Tried},
    sticky::{CloneTag, Session},
    trace::Ids,
};

use crate::{
    access::{AccessLog, Line, PATH, TEXT, What},
    config::{Protocol, Service},
    limits::Limits,
    stats::{Class, Counters},
    table::Table,
    worker::{
        Admission, Buf, ClientStream, Deadline, DeadlineId, Hedges, Server, Succession, Target, Worker,
    },
};

pub(crate) use answer::TOO_MANY_CLIENTS;
use deadline::{DeadlineField, Due};
use exchange::Transfer;
use hedge::Rival;
use ids::Identify;
pub(crate) use lane::LaneSlot;

/// One HTTP service on one worker.
pub(crate) struct HttpService {
    worker: Rc<Worker>,
    limits: Limits,
    name: Box<str>,
    policy: Policy,
    expose: bool,
    /// Whether servers are told where requests came from.
    forwarded: bool,
    /// Gives requests ids, where they have some.
    identify: Option<Identify>,
    /// Where requests say how long their clients wait.
    deadline: Option<DeadlineField>,
    extract: Extract,
    no_key: NoKey,
    /// The cookie that carries a client's session, where sessions stick.
    cookie: Box<str>,
    hedges: Hedges,
    pub admission: Admission,
    usual: RefCell<Usual>,
    table: RefCell<Reader<Table>>,
    /// Who waits for each RACS.
    waiting: Vec<RefCell<Vec<DeadlineId>>>,
    /// Connections that reads share, where they do.
    lanes: lane::Lanes,
    /// Counts the changes of tables, so that who waits sees one even if it was woken for something else.
    changes: Cell<u64>,
    /// How many want to know of new tables: requests that wait for a connection to be made, and tunnels.
    watching: Cell<usize>,
    pub counters: Rc<Counters>,
    pub log: Option<AccessLog>,
    pub succession: Succession<Self>,
    /// Room for keys that must be decoded.
    scratch: RefCell<Vec<u8>>,
}

/// What is needed of a request once its head is on its way.
struct Request {
    method: Method,
    version: Version,
    access: Access,
    body: Body,
    persistent: bool,
    expects_continue: bool,
    /// Until when the client waits.
    due: Option<Due>,
    /// The protocol that the client wants to go over to.
    upgrade: Option<Box<[u8]>>,
    /// Whether its answer always has the body that it speaks of, so that it may come among others' answers.
    plain: bool,
    /// Whether the key is still to be found, in the body. Until then it has no partition but the first.
    searching: bool,
    partition: PartitionId,
    racs: RacsId,
    /// Which clones the client was with, where it stays with them.
    session: Option<Session>,
}

/// What is told of a request besides its answer; kept for the next one.
#[derive(Default)]
struct Told {
    /// What it is called. In memory of its own, which idle clients of other services do not pay for.
    ids: Option<Box<Ids>>,
    method: Vec<u8>,
    path: Vec<u8>,
    server: Option<SocketAddr>,
    attempts: u32,
    status: Option<u16>,
    /// Why the router answered in its own name.
    error: Option<String>,
    /// Bytes from and to the client before it.
    received: u64,
    sent: u64,
}

/// Keeps what a line shows of a text: an idle client is not to hold more.
fn keep(kept: &mut Vec<u8>, text: &[u8], most: usize) {
    kept.clear();
    kept.extend_from_slice(&text[..text.len().min(most)]);
}

impl Told {
    /// Begins with a request.
    fn begin(&mut self, method: &[u8], path: &[u8]) {
        keep(&mut self.method, method, TEXT);
        keep(&mut self.path, path, PATH);
        (self.server, self.attempts, self.status, self.error) = (None, 0, None, None);
    }

    /// Begins with what is no request: of its first line, what cannot be anything but a method and a path.
    fn begin_malformed(&mut self, input: &[u8]) {
        let line = input.split(|byte| b"\r\n".contains(byte)).next().unwrap_or_default();
        let mut words = line.split(|byte| *byte == b' ');
        let method = words.next().unwrap_or_default();
        let path =
            words.next().and_then(|target| target.split(|byte| *byte == b'?').next()).unwrap_or_default();
        let is_request = method.iter().all(u8::is_ascii_uppercase)
            && path.starts_with(b"/")
            && path.iter().all(u8::is_ascii_graphic);
        if is_request { self.begin(method, path) } else { self.begin(b"", b"") }
    }

    /// Notes what the request is called, if requests are called anything.
    fn called(&mut self, ids: Option<Ids>) {
        match (&mut self.ids, ids) {
            (Some(kept), Some(ids)) => **kept = ids,
            (kept, ids) => *kept = ids.map(Box::new),
        }
    }

    /// Notes the status of the router's own response, and why there is none of a server.
    fn answered(&mut self, head: &[u8], error: String) {
        self.error = Some(error);
        self.status = head.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    }
}

/// Why a request is not routed.
enum NotRouted {
    Malformed(Refusal),
    NoKey {
        /// Whether the client's connection can go on.
        persistent: bool,
        /// Whether the request was HEAD.
        head_only: bool,
    },
}

/// Serves one client until it or the router has had enough.
pub(crate) async fn serve(service: Rc<HttpService>, stream: ClientStream) {
    connection::Connection::new(service, stream).serve().await;
}

/// As [`serve`], for a client that another process had; its next request begins so.
pub(crate) async fn resume(service: Rc<HttpService>, stream: ClientStream, input: Vec<u8>) {
    connection::Connection::new(service, stream).after(&input).serve().await;
}

impl HttpService {
    /// As the configuration calls it.
    pub const PROTOCOL: &'static str = "http";

    pub fn new(
        worker: &Rc<Worker>,
        service: &Service,
        mut table: Reader<Table>,
        log: Option<AccessLog>,
    ) -> Self {
        let Protocol::Http { extract, no_key } = &service.protocol else {
            unreachable!("only services of this protocol come here");
        };
        let counters = worker.counters(&service.name);
        let partitions = table.load().pmap.len().get() as usize;
        counters.partitions(partitions);
        counters.hot.watch(service.hot_keys, partitions);
        Self {
            worker: Rc::clone(worker),
            limits: worker.limits(service),
            name: service.name.clone(),
            policy: worker.policy(service),
            admission: worker.admission(service),
            expose: service.expose,
            forwarded: service.forwarded,
            identify: service.trace.map(Identify::new),
            deadline: service.deadline.as_deref().map(DeadlineField::new),
            extract: extract.clone(),
            no_key: *no_key,
            cookie: format!("phalanx-{}", service.name.replace([':', '/'], "_")).into(),
            hedges: Hedges::new(service.hedge),
            usual: RefCell::default(),
            table: RefCell::new(table),
            waiting: service.racs.iter().map(|_| RefCell::default()).collect(),
            lanes: lane::Lanes::new(service),
            changes: Cell::new(0),
            watching: Cell::new(0),
            counters,
            log,
            succession: Succession::default(),
            scratch: RefCell::default(),
        }
    }

    /// Wakes everyone who waits for a view.
    pub fn tables_changed(&self) {
        self.changes.set(self.changes.get() + 1);
        for waiting in &self.waiting {
            for id in &*waiting.borrow() {
                self.worker.clock.wake(*id);
            }
        }
        if self.watching.get() > 0 {
            self.worker.clock.wake_all();
        }
    }

    /// Whether this client is to go once it is answered: the router goes down, or this service does.
    fn sends_away(&self, client: &ClientStream) -> bool {
        self.worker.sends_away(client) || self.succession.has_ended()
    }

    /// How many requests wait for a view.
    pub fn waiting(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.borrow().len() as u64).sum()
    }

    /// Whether the newest table has this server.
    pub fn has_server(&self, id: PhysicalId) -> bool {
        self.table.borrow_mut().load().has_server(id)
    }

    /// Counts somebody who wants to know of new tables.
    fn watch(&self) -> impl Drop {
        struct Counted<'a>(&'a Cell<usize>);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.watching.set(self.watching.get() + 1);
        Counted(&self.watching)
    }

    /// Reads a whole head: finds its partition, and writes to `outgoing` what goes on of it. Where the key is in
    /// the body, `search` is made ready to find it.
    fn prepare(
        &self,
        head: &[u8],
        client: &ClientStream,
        search: &mut BodySearch,
        told: &mut Told,
        outgoing: &mut Buf,
    ) -> Result<Request, NotRouted> {
        let parsed = RequestHead::parse(head);
        let mut parsed = match parsed {
            Ok(parsed) => parsed,
            Err(refusal) => {
                self.begin_malformed(told, head);
                return Err(NotRouted::Malformed(refusal));
            }
        };
        if self.log.is_some() {
            let path = Some(parsed.path(head)).filter(|path| !path.is_empty()).unwrap_or(b"/");
            told.begin(parsed.method_name(head), path);
        }
        told.called(self.identify.as_ref().map(|identify| identify.of(&mut parsed, head)));
        let mut due = match &self.deadline {
            None => None,
            Some(field) => field
                .read(&mut parsed, head, self.limits.response, &self.worker.clock)
                .map_err(NotRouted::Malformed)?,
        };
        let upgrade = parsed.upgrade(head);
        // Nobody can tell what the other protocol carries.
        let is_read = parsed.method().is_safe() && upgrade.is_none();
        let access = if is_read { Access::Read } else { Access::Update };
        let mut request = Request {
            method: parsed.method(),
            version: parsed.version(),
            access,
            body: parsed.body(),
            persistent: parsed.persistent() && !self.sends_away(client),
            expects_continue: parsed.expects_continue(),
            due: None,
            upgrade: upgrade.map(Into::into),
            plain: self.lanes.takes(&parsed, head),
            searching: false,
            partition: PartitionId::new(0),
            racs: RacsId::new(0),
            session: self.policy.sticks(access).then(|| Session::of(&parsed, head, self.cookie.as_bytes())),
        };
        let mut scratch = self.scratch.borrow_mut();
        match self.extract.search(&parsed, head, &mut scratch, search).map_err(NotRouted::Malformed)? {
            Search::InBody => request.searching = true,
            found => {
                let key = if let Search::Key(key) = found { Some(key) } else { None };
                if !self.place(&mut request, key, client.source()) {
                    let persistent = request.persistent && parsed.body() == Body::None;
                    return Err(NotRouted::NoKey { persistent, head_only: request.method == Method::Head });
                }
            }
        }
        if self.forwarded {
            FORWARDED.iter().for_each(|name| parsed.keep_back(head, name));
        }
        for slice in parsed.forward(head) {
            outgoing.extend(slice, &self.worker.buffers);
        }
        if self.forwarded {
            self.tell_source(&parsed, head, client, outgoing);
        }
        if let (Some(field), Some(due)) = (&self.deadline, &mut due) {
            field.write(due, outgoing, &self.worker);
            request.due = Some(*due);
        }
        if let Some(ids) = &told.ids {
            ids::write(ids, outgoing, &self.worker.buffers);
        }
        if let Some(protocol) = upgrade {
            upgrade_lines(protocol).iter().for_each(|part| outgoing.extend(part, &self.worker.buffers));
        }
        outgoing.extend(b"\r\n", &self.worker.buffers);
        Ok(request)
    }

    /// What came is no request, but gets an answer: it is called something, too.
    fn begin_malformed(&self, told: &mut Told, input: &[u8]) {
        told.called(self.identify.as_ref().map(Identify::anew));
        told.begin_malformed(input);
    }

    /// Adds the client to the list of those that a request came through; says whether it speaks TLS. What the
    /// client itself says of the latter counts for nothing.
    fn tell_source(&self, parsed: &RequestHead, head: &[u8], client: &ClientStream, outgoing: &mut Buf) {
        let buffers = &self.worker.buffers;
        outgoing.extend(b"X-Forwarded-For: ", buffers);
        for before in parsed.fields().values(head, FORWARDED[0]).filter(|value| !value.is_empty()) {
            outgoing.extend(before, buffers);
            outgoing.extend(b", ", buffers);
        }
        let mut address = [0; 64];
        let mut left = &mut address[..];
        write!(left, "{}", client.source().ip().to_canonical()).expect("an address has fewer characters");
        let len = 64 - left.len();
        outgoing.extend(&address[..len], buffers);
        let proto: &[u8] = if client.is_secure() { b"https" } else { b"http" };
        [&b"\r\nX-Forwarded-Proto: "[..], proto, b"\r\n"]
            .iter()
            .for_each(|part| outgoing.extend(part, buffers));
    }

    /// Notes where a request with this key goes. Returns false if it goes nowhere, for want of a key.
    fn place(&self, request: &mut Request, key: Option<&[u8]>, source: SocketAddr) -> bool {
        let mut table = self.table.borrow_mut();
        let pmap = &table.load().pmap;
        let partition = match key {
            Some(key) => {
                let partition = pmap.locate(key);
                self.counters.hot.note(partition, key);
                Some(partition)
            }
            None if self.no_key == NoKey::Reject => None,
            None => self.no_key.partition(request.access, source.ip(), self.worker.random(), pmap.len()),
        };
        let Some(partition) = partition else { return false };
        (request.partition, request.racs) = (partition, pmap.racs(partition));
        true
    }

    /// Chooses where the next attempt goes; writes the lines to `labels` that tell the client so, if it is to
    /// know, and to `placed` those that make it come back there, if it was elsewhere.
    fn pick(&self, request: &Request, tried: &Tried, labels: &mut Vec<u8>, placed: &mut Vec<u8>) -> Target {
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let racs = table.racs(request.racs);
        let worker = &*self.worker;
        let now = worker.clock.now();
        let at = Circumstances { policy: self.policy, l2p: &table.l2p, loads: &worker.servers, now };
        let before = request.session.and_then(|session| session.clone_of(racs));
        let picked = racs.pick_again(before, request.access, at, worker.random(), tried);
        if self.expose {
            labels.clear();
            let (partition, epoch) = (table.pmap.name(request.partition), racs.epoch());
            write!(labels, "x-phalanx-partition: {partition}\r\nx-phalanx-epoch: {epoch}\r\n")
                .expect("writing to memory");
        }
        match picked {
            Pick::Clone(clone) => {
                let logical = table.l2p.get(clone);
                let server = worker.servers.get(logical.physical, logical.addr);
                if self.policy.leader_only(request.access) && server.refused_until() > now {
                    return Target::Wait;
                }
                if let Some(mut session) = request.session {
                    placed.clear();
                    let now = CloneTag::of(logical);
                    if before != Some(now) {
                        session.place(racs, now);
                        // A shared cache would hand this client's placement to all others.
                        write!(
                            placed,
                            "Set-Cookie: {}={session}; Path=/; HttpOnly; SameSite=Lax\r\n\
                             Cache-Control: private\r\n",
                            self.cookie
                        )
                        .expect("writing to memory");
                    }
                }
                if self.expose {
                    write!(labels, "x-phalanx-server: {}\r\n", logical.name).expect("writing to memory");
                }
                server.chosen(now);
                Target::Server(server)
            }
            Pick::Wait => Target::Wait,
            Pick::Full => Target::Full,
            Pick::Exhausted => Target::Exhausted,
        }
    }

    /// Notes that a server has answered this request, and what follows from the answer's status.
    fn answered(&self, request: &Request, server: &Server, status: u16) {
        server.responded(&self.counters, Class::of_status(status));
        // That something is not implemented is for ever, and no server's fault.
        let error = matches!(status, 500.. if status != 501 && status != 505);
        // What belongs to the leader, or comes from clients that stay, is not what the other clones are asked.
        let spread = !self.policy.leader_only(request.access) && !self.policy.sticks(request.access);
        let now = self.worker.clock.now();
        if spread {
            server.compared(now, error);
        }
        let said = if error { self.judge(request.racs, server, status, spread) } else { Said::Well };
        server.answered(now, said, self.limits.avoid);
    }

    /// What an error says of its server: that counts against it if enough other clones are left, and it says that the
    /// server cannot serve; or if it is one of those that `can_compare`, and others have hardly any.
    fn judge(&self, racs: RacsId, server: &Server, status: u16, can_compare: bool) -> Said {
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let (loads, now) = (&self.worker.servers, self.worker.clock.now());
        let racs = table.racs(racs);
        let at = || Circumstances { policy: self.policy, l2p: &table.l2p, loads, now };
        if can_compare && racs.stands_out(server.id, at()) {
            Said::Outlier
        } else if matches!(status, 502..=504) && racs.can_spare(server.id, at()) {
            Said::Unable
        } else {
            Said::Well
        }
    }

    /// How long to wait for a response before a second clone is asked, too; `None` if none may be.
    fn patience(&self, request: &Request, upload: &Transfer) -> Option<Duration> {
        // A session may have its state with one clone alone.
        let bound = self.policy.leader_only(Access::Read) || request.session.is_some();
        if !self.hedges.are_on() || request.access != Access::Read || bound {
            return None;
        }
        self.hedges.earn();
        (upload.is_over() && !upload.begun).then(|| self.usual.borrow().patience(self.limits.hedge_after))
    }

    /// A second attempt at a request that `first` is silent about, if there is a sound clone for it and not too
    /// many have been made.
    fn rival(&self, request: &Request, tried: &Tried, first: &Server) -> Option<Rival> {
        let now = self.worker.clock.now();
        let mut tried = *tried;
        tried.add(first.id);
        let (mut labels, mut placed) = Default::default();
        let Target::Server(server) = self.pick(request, &tried, &mut labels, &mut placed) else {
            return None;
        };
        (server.avoid_until() <= now && self.hedges.spend(now)).then(|| {
            self.counters.hedged.add(1);
            Rival::new(server, labels, now)
        })
    }

    /// Whether what a tunnel carries belongs to another server now.
    fn is_deposed(&self, racs: RacsId, server: PhysicalId) -> bool {
        self.policy.leader_only(Access::Update)
            && self.table.borrow_mut().load().is_led_by_another(racs, server)
    }

    /// Logs a request that is over, if requests are logged. One that was refused may have no partition.
    fn log(&self, client: &ClientStream, began: Instant, told: &mut Told, partition: Option<PartitionId>) {
        let before = (told.received, told.sent);
        (told.received, told.sent) = (client.received(), client.sent());
        let Some(log) = &self.log else { return };
        let took = Duration::from_nanos(self.worker.clock.fine().as_nanos().saturating_sub(began.as_nanos()));
        let failed = told.error.is_some() || told.status.is_none_or(|status| status >= 500);
        if !log.wants(failed, took) {
            return;
        }
        let mut table = self.table.borrow_mut();
        let partition = partition.map(|partition| table.load().pmap.name(partition));
        log.note(&Line {
            client: client.source(),
            what: What::Request {
                method: &told.method,
                path: &told.path,
                ids: told.ids.as_deref(),
                status: told.status,
                received: told.received - before.0,
                sent: told.sent - before.1,
            },
            partition: partition.as_ref().map(|name| name as &dyn fmt::Display),
            server: told.server,
            attempts: told.attempts,
            error: told.error.as_deref(),
            took,
        });
    }

    fn partition_name(&self, partition: PartitionId) -> String {
        self.table.borrow_mut().load().pmap.name(partition).to_string()
    }

    /// Takes a place among those who wait for a RACS; `None` if there are too many.
    fn queue(&self, racs: RacsId, deadline: &Deadline) -> Option<Place<'_>> {
        let queue = &self.waiting[racs.get() as usize];
        if queue.borrow().len() >= self.admission.waiting {
            return None;
        }
        queue.borrow_mut().push(deadline.id());
        Some(Place { queue, id: deadline.id() })
    }

    /// Waits for another table, or for the time to try the old one again. Returns false once `until` has
    /// passed.
    async fn next_try(&self, deadline: &Deadline, until: Instant) -> bool {
        let seen = self.changes.get();
        let clock = &self.worker.clock;
        deadline.arm_at(until.min(clock.now().after(self.limits.avoid)));
        std::future::poll_fn(|cx| {
            let passed = deadline.passed(cx);
            if passed || self.changes.get() != seen {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
        clock.now() < until
    }
}

/// The fields that say where a request came from.
const FORWARDED: [&[u8]; 2] = [b"x-forwarded-for", b"x-forwarded-proto"];

/// The lines that name a protocol to go over to, or that is gone over to.
fn upgrade_lines(protocol: &[u8]) -> [&[u8]; 3] {
    [b"Connection: Upgrade\r\nUpgrade: ", protocol, b"\r\n"]
}

/// A place among those who wait for a RACS.
struct Place<'a> {
    queue: &'a RefCell<Vec<DeadlineId>>,
    id: DeadlineId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.borrow_mut().retain(|id| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_keeps_no_more_of_its_last_request_than_a_line_shows() {
        let mut told = Told::default();
        told.begin(&[b'M'; 9000], &[b'/'; 30_000]);
        assert_eq!((told.method.len(), told.path.len()), (TEXT, PATH));
        assert!(told.method.capacity() + told.path.capacity() <= 2 * (TEXT + PATH));
        told.begin(b"GET", b"/");
        assert_eq!((&*told.method, &*told.path), (&b"GET"[..], &b"/"[..]));
    }
}
