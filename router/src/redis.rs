//! The Redis side: commands of all clients of a worker share one pipelined connection to each server.
//!
//! A client's task reads commands and appends each to the pipeline of its server; the server's task, which
//! runs after all clients that had input in this turn of the loop, writes them in one go, reads replies, and
//! puts each into its place in its client's order. So a batch of commands from many clients costs one write
//! and one read per server, and one of each per client.

mod client;
mod upstream;
mod waiting;

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
};

use membership_sync::Reader;
use membership_types::Instant;
use router_proto::{
    PhysicalId, RacsId,
    key::tagged,
    racs::{Access, Circumstances, Pick, Policy, Tried},
    resp::{self, After, Args, Family, Gather, Keys, Seq, SubCommand},
};

pub(crate) use client::TOO_MANY_CLIENTS;
use client::{Client, Task};
pub(crate) use upstream::Upstream;
use waiting::Waiting;

use crate::{
    config::Service,
    stats::Counters,
    table::Table,
    worker::{ClientStream, Server, Worker},
};

/// Room for one read, from a client or a server: a batch of commands or replies.
const READ: usize = 64 * 1024;

/// One Redis service on one worker.
pub(crate) struct RedisService {
    worker: Rc<Worker>,
    policy: Policy,
    table: RefCell<Reader<Table>>,
    /// Commands that nobody may take yet, for each RACS.
    waiting: Vec<RefCell<Waiting>>,
    /// Whether somebody looks after them.
    attended: Cell<bool>,
    /// What every read goes into. It is looked at before anybody else reads, and only the rest of an
    /// incomplete command or reply is kept; so idle connections hold no buffer.
    scratch: RefCell<Box<[u8]>>,
    limits: resp::Limits,
    /// Bytes of replies that clients have not read.
    unread: Cell<usize>,
    pub counters: Counters,
}

/// Whom a reply is for, and what is needed to send its command again.
struct Tag {
    client: Rc<Client>,
    seq: Seq,
    /// For a part of a split command: where its reply goes.
    part: Option<(Rc<RefCell<Gather>>, u16)>,
    racs: RacsId,
    access: Access,
    /// Connections that have failed under this command.
    failures: u8,
    tried: Tried,
    /// Until when it may wait for a leader; set when it first has to.
    wait_until: Instant,
}

/// How many connections may fail under one command.
const MAX_FAILURES: u8 = 3;

/// Where a command goes.
enum Target {
    Server(Rc<Server>),
    /// Nowhere before the RACS' next view.
    Wait,
    /// Nowhere any more.
    Exhausted,
}

/// Serves one client until it or the router has had enough.
pub(crate) async fn serve(service: Rc<RedisService>, stream: ClientStream) {
    Task::new(service, stream).serve().await;
}

impl RedisService {
    pub fn start(worker: &Rc<Worker>, service: &Service, mut table: Reader<Table>) -> Rc<Self> {
        table.load();
        Rc::new(Self {
            worker: Rc::clone(worker),
            policy: service.policy,
            table: RefCell::new(table),
            waiting: service.racs.iter().map(|_| RefCell::default()).collect(),
            attended: Cell::new(false),
            scratch: RefCell::new(vec![0; READ].into()),
            limits: resp::Limits::default(),
            unread: Cell::new(0),
            counters: Counters::default(),
        })
    }

    /// Whether the newest table has this server.
    pub fn names(&self, id: PhysicalId) -> bool {
        self.table.borrow_mut().load().l2p.iter().any(|logical| logical.physical == id)
    }

    /// Routes one command, whose arguments are given, or answers it. Returns whether the client goes on.
    fn dispatch(self: &Rc<Self>, client: &Rc<Client>, command: &[u8], args: &Args) -> After {
        let seq = client.open();
        let name = args.get(command, 0);
        let Some(known) = resp::lookup(name) else {
            let name: String = String::from_utf8_lossy(name).chars().take(64).collect();
            let name = name.to_lowercase();
            self.counters.refused.add(1);
            client.fail(seq, format_args!("ERR phalanx: command '{name}' is not routed yet"));
            return After::Continue;
        };
        match known.keys {
            Keys::One { at, access } if args.len() >= known.min_args => {
                let key = tagged(args.get(command, at));
                let racs = {
                    let mut table = self.table.borrow_mut();
                    let table = table.load();
                    table.pmap.racs(table.pmap.locate(key))
                };
                self.counters.requests.add(1);
                self.send(Tag::new(client, seq, racs, access), command);
            }
            Keys::Many(family) if args.len() >= known.min_args => {
                let sub = SubCommand::of(command, args, family);
                match sub.keys() {
                    Some(keys) => self.dispatch_many(client, seq, family, sub, keys, command),
                    None => self.wrong_args(client, seq, known.name),
                }
            }
            Keys::None(local) => {
                self.counters.local.add(1);
                return client.answer(seq, |out| resp::answer(local, command, args, out));
            }
            Keys::One { .. } | Keys::Many(_) => self.wrong_args(client, seq, known.name),
        }
        After::Continue
    }

    fn wrong_args(&self, client: &Client, seq: Seq, name: &str) {
        self.counters.refused.add(1);
        client.fail(seq, format_args!("ERR wrong number of arguments for '{name}' command"));
    }

    /// Routes a command over many keys: untouched if one RACS holds them all, else one part per RACS.
    fn dispatch_many(
        self: &Rc<Self>,
        client: &Rc<Client>,
        seq: Seq,
        family: Family,
        sub: SubCommand<'_>,
        keys: usize,
        command: &[u8],
    ) {
        self.counters.requests.add(1);
        let mut racs: Vec<RacsId> = Vec::new();
        let mut parts: Vec<u16> = Vec::with_capacity(keys);
        {
            let mut table = self.table.borrow_mut();
            let table = table.load();
            // Which part each RACS is, if any: one look per key, however many RACS there are.
            let mut part_of: Vec<Option<u16>> = vec![None; self.waiting.len()];
            for key in 0..keys {
                let id = table.pmap.racs(table.pmap.locate(tagged(sub.key(key))));
                let part = *part_of[id.get() as usize].get_or_insert_with(|| {
                    racs.push(id);
                    u16::try_from(racs.len() - 1).expect("a service has fewer than 2^16 RACS")
                });
                parts.push(part);
            }
        }
        if let [only] = racs[..] {
            self.send(Tag::new(client, seq, only, family.access()), command);
            return;
        }
        let count = u16::try_from(racs.len()).expect("checked above");
        let mut texts: Vec<Vec<u8>> = Vec::with_capacity(racs.len());
        for part in 0..count {
            let mut text = Vec::new();
            sub.write(&parts, part, &mut text);
            texts.push(text);
        }
        let gather = Rc::new(RefCell::new(Gather::new(family, parts, count)));
        for ((part, racs), text) in (0..count).zip(racs).zip(texts) {
            let part = Some((Rc::clone(&gather), part));
            self.send(Tag { part, ..Tag::new(client, seq, racs, family.access()) }, &text);
        }
    }

    /// Sends a command that has just come in. Where others wait for the same leader it queues behind them, so
    /// that a client's updates are not overtaken by its own.
    fn send(self: &Rc<Self>, tag: Tag, command: &[u8]) {
        tag.client.owe(command.len());
        let queue = &self.waiting[tag.racs.get() as usize];
        if self.policy.leader_only(tag.access) && !queue.borrow().is_empty() {
            self.wait(tag, command);
            return;
        }
        match self.pick(&tag) {
            Target::Server(server) => self.push(&server, command, tag),
            Target::Wait => self.wait(tag, command),
            Target::Exhausted => {
                self.unavailable(tag, command.len(), "no clone of the partition's RACS answers")
            }
        }
    }

    fn pick(&self, tag: &Tag) -> Target {
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let worker = &*self.worker;
        let now = worker.clock.now();
        let at = Circumstances { policy: self.policy, l2p: &table.l2p, loads: &worker.servers, now };
        match table.racs(tag.racs).pick(tag.access, at, worker.random(), &tag.tried) {
            Pick::Clone(clone) => {
                let logical = table.l2p.get(clone);
                let server = worker.servers.get(logical.physical, logical.addr);
                if self.policy.leader_only(tag.access) && server.refused_until() > now {
                    return Target::Wait;
                }
                Target::Server(server)
            }
            Pick::Wait => Target::Wait,
            Pick::Exhausted => Target::Exhausted,
        }
    }

    fn push(&self, server: &Rc<Server>, command: &[u8], tag: Tag) {
        let upstream = match &*server.redis.borrow() {
            Some(upstream) => return upstream.push(command, tag),
            None => Upstream::start(&self.worker, server),
        };
        upstream.push(command, tag);
        *server.redis.borrow_mut() = Some(upstream);
    }

    /// Nobody can take the command, and nothing was done.
    fn unavailable(&self, tag: Tag, command_len: usize, why: &str) {
        self.counters.unavailable.add(1);
        tag.deliver_error(command_len, format_args!("TRYAGAIN phalanx: {why}; nothing was done"));
    }

    fn now(&self) -> Instant {
        self.worker.clock.now()
    }
}

impl Tag {
    fn new(client: &Rc<Client>, seq: Seq, racs: RacsId, access: Access) -> Self {
        Self {
            client: Rc::clone(client),
            seq,
            part: None,
            racs,
            access,
            failures: 0,
            tried: Tried::default(),
            wait_until: Instant::MAX,
        }
    }

    /// Puts a reply into its place; the command had so many bytes.
    fn deliver(self, command_len: usize, reply: &[u8]) {
        let most_unread = self.client.service.worker.limits.unread;
        self.client.pay(command_len);
        match self.part {
            None => self.client.fill(self.seq, reply, most_unread),
            Some((gather, part)) => {
                let mut gather = gather.borrow_mut();
                if gather.put(part, reply) {
                    let mut whole = Vec::with_capacity(gather.kept());
                    gather.write(&mut whole);
                    self.client.fill(self.seq, &whole, most_unread);
                }
            }
        }
    }

    fn deliver_error(self, command_len: usize, text: fmt::Arguments<'_>) {
        let mut reply = Vec::new();
        resp::push_error(&mut reply, text);
        self.deliver(command_len, &reply);
    }
}
