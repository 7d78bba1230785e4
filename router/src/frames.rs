//! Framed MessagePack-RPC: requests of all clients of a worker share one connection to each server, under ids of that
//! connection's own, and are answered in any order.
//!
//! As on the Redis side, a client's task reads requests and hands each to the connection of its server; that one's task
//! writes what has gathered, reads answers, and puts each into its client's buffer.
//!
//! | file | one idea |
//! | --- | --- |
//! | `client.rs`, `local.rs` | requests of clients, and of tasks of this process |
//! | `caller.rs`, `tag.rs` | who asked; what is known of a request that is under way |
//! | `upstream.rs` | the connection to one server that all clients share |
//! | `waiting.rs` | what becomes of requests that wait for a leader |

mod caller;
mod client;
mod local;
mod tag;
mod upstream;
mod waiting;

use std::{cell::RefCell, fmt, net::SocketAddr, rc::Rc, time::Duration};

use membership_sync::Reader;
use membership_types::Instant;
use router_proto::{
    PartitionId, PhysicalId, RacsId,
    extract::NoKey,
    frames::{Complaint, Digits, KeyPaths, Request, Stamp, Verdict},
    racs::{Access, Policy, Tried},
};

use caller::Caller;
use client::Client;
pub(crate) use client::{Frames, too_many_clients};
pub(crate) use local::{LocalAnswer, LocalCall, serve_locals};
use tag::Tag;
pub(crate) use upstream::Upstream;

use crate::{
    access::{AccessLog, Line, Tally, What, Word},
    config::{Protocol, Service},
    limits::Limits,
    stats::Counters,
    table::Table,
    worker::{
        Admission, ClientStream, ClientTask, Clients, Hedges, Held, Rival, Room, SERVERS_FULL, Server,
        Succession, TOO_MANY, Target, Unanswered, Waiting, Waits, Worker,
    },
};

/// How many connections may fail under one request.
const MAX_FAILURES: u8 = 3;

const TOO_MANY_RETRIES: &str =
    "connections to the partition's servers fail, and too many requests are being sent again";

/// One service on one worker.
pub(crate) struct FramesService {
    worker: Rc<Worker>,
    name: Box<str>,
    limits: Limits,
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
    /// For large requests.
    room: Rc<Room>,
    pub counters: Rc<Counters>,
    pub log: Option<AccessLog>,
    pub succession: Succession<Self>,
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
        let limits = worker.limits(service);
        Rc::new(Self {
            worker: Rc::clone(worker),
            name: service.name.clone(),
            policy: worker.policy(service),
            waiting: Waiting::new(worker, service.racs.len(), admission.waiting, limits.wait, &counters),
            admission,
            hedges: Hedges::new(service.hedge),
            paths: paths.clone(),
            no_key: *no_key,
            reads: reads.clone(),
            stamp: *stamp,
            table: RefCell::new(table),
            names: service.racs.iter().map(|racs| racs.name.clone()).collect(),
            clients: Clients::default(),
            room: Room::new(limits.requests_in_all),
            counters,
            log,
            succession: Succession::default(),
            limits,
        })
    }

    /// Whether the newest table has this server.
    pub fn has_server(&self, id: PhysicalId) -> bool {
        self.table.borrow_mut().load().has_server(id)
    }

    fn now(&self) -> Instant {
        self.worker.clock.now()
    }

    /// Routes one request.
    fn dispatch(self: &Rc<Self>, caller: Caller, frame: &[u8], request: &Request, held: Option<Rc<Held>>) {
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
                let upstream = Upstream::start(&self.worker, server, self.limits.connect);
                *server.frames.borrow_mut() = Some(Rc::clone(&upstream));
                upstream
            }
        };
        let due = tag.until.min(now.after(self.limits.response));
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
