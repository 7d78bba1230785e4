//! Plain TCP: each connection goes as a whole to one clone, chosen by where it comes from or by its first
//! bytes; then bytes pass both ways as they come.
//!
//! Nobody can tell what a connection carries, so it counts as an update: with `updates = "leader"` it goes to
//! the leader, waits for one, and is cut once somebody else leads, so that its client comes to the new one.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
};

use membership_sync::Reader;
use membership_types::Instant;
use router_proto::{
    PartitionId, PhysicalId, RacsId,
    extract::NoKey,
    health::Said,
    proxy,
    racs::{Access, Circumstances, Pick, Policy, Tried},
    tls_hello::HelloScan,
};
use tokio::net::TcpStream;

use crate::{
    access::{AccessLog, Line, What},
    config::{Protocol, Service, TcpKey},
    limits::Limits,
    stats::Counters,
    table::Table,
    worker::{
        Admission, Buf, ClientStream, Deadline, InFlight, Server, Succession, Tunnel, TunnelEnded as Ended,
        Worker,
    },
};

/// Room for a read of the bytes that hold the key.
const ROOM: usize = 4 * 1024;

/// One TCP service on one worker.
pub(crate) struct TcpService {
    worker: Rc<Worker>,
    limits: Limits,
    policy: Policy,
    pub admission: Admission,
    key: TcpKey,
    no_key: NoKey,
    /// For each RACS, whether its servers are told where a client connected from.
    send_proxy: Box<[bool]>,
    table: RefCell<Reader<Table>>,
    /// How many connections wait for each RACS.
    waiting: Box<[Cell<usize>]>,
    /// How many connections want to know of new tables.
    present: Cell<usize>,
    /// Counts the changes of tables.
    changes: Cell<u64>,
    pub counters: Rc<Counters>,
    pub log: Option<AccessLog>,
    pub succession: Succession<Self>,
}

/// Serves one client until it or its server has had enough.
pub(crate) async fn serve(service: Rc<TcpService>, stream: ClientStream) {
    let deadline = Deadline::new(&service.worker.clock);
    let _present = Counted::new(&service.present);
    let (began, went) = (service.worker.clock.now(), Went::default());
    Connection { service: &service, client: stream, deadline, input: Buf::default(), began, went }
        .serve()
        .await;
}

/// Counted as long as it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(cell: &'a Cell<usize>) -> Self {
        cell.set(cell.get() + 1);
        Self(cell)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl TcpService {
    pub fn new(
        worker: &Rc<Worker>,
        service: &Service,
        mut table: Reader<Table>,
        log: Option<AccessLog>,
    ) -> Self {
        let Protocol::Tcp { key, no_key } = &service.protocol else {
            unreachable!("only services of this protocol come here");
        };
        table.load();
        Self {
            worker: Rc::clone(worker),
            limits: worker.limits(service),
            policy: worker.policy(service),
            admission: worker.admission(service),
            key: *key,
            no_key: *no_key,
            send_proxy: service.racs.iter().map(|racs| racs.send_proxy).collect(),
            table: RefCell::new(table),
            waiting: service.racs.iter().map(|_| Cell::new(0)).collect(),
            present: Cell::new(0),
            changes: Cell::new(0),
            counters: worker.counters(&service.name),
            log,
            succession: Succession::default(),
        }
    }

    /// Wakes everyone who waits for a view, or whose leader may not lead any more.
    pub fn tables_changed(&self) {
        self.changes.set(self.changes.get() + 1);
        if self.present.get() > 0 {
            self.worker.clock.wake_all();
        }
    }

    /// How many connections wait for a view.
    pub fn waiting(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.get() as u64).sum()
    }

    /// Whether the newest table has this server.
    pub fn has_server(&self, id: PhysicalId) -> bool {
        self.table.borrow_mut().load().has_server(id)
    }

    /// Chooses where a connection goes; the error says why nowhere.
    fn pick(&self, racs: RacsId, tried: &Tried) -> Result<Rc<Server>, Pick> {
        let mut table = self.table.borrow_mut();
        let table = table.load();
        let worker = &*self.worker;
        let now = worker.clock.now();
        let at = Circumstances { policy: self.policy, l2p: &table.l2p, loads: &worker.servers, now };
        match table.racs(racs).pick(Access::Update, at, worker.random(), tried) {
            Pick::Clone(clone) => {
                let logical = table.l2p.get(clone);
                let server = worker.servers.get(logical.physical, logical.addr);
                if self.policy.leader_only(Access::Update) && server.refused_until() > now {
                    return Err(Pick::Wait);
                }
                Ok(server)
            }
            nowhere => Err(nowhere),
        }
    }

    /// Whether what a connection carries belongs to another server now.
    fn is_deposed(&self, racs: RacsId, server: PhysicalId) -> bool {
        self.policy.leader_only(Access::Update)
            && self.table.borrow_mut().load().is_led_by_another(racs, server)
    }
}

struct Connection<'a> {
    service: &'a TcpService,
    client: ClientStream,
    deadline: Deadline,
    /// What was read of the client to find its key; it goes to the server first.
    input: Buf,
    began: Instant,
    went: Went,
}

/// Where a connection went, for the access log.
#[derive(Default)]
struct Went {
    partition: Option<PartitionId>,
    server: Option<SocketAddr>,
    attempts: u32,
}

/// Why a connection is not passed on.
enum Refused {
    /// The client went, or was too slow.
    Gone,
    /// What it said has no key, or is not what it should be.
    Key,
    /// Nobody can take it.
    Unavailable,
    /// Too many are there.
    Overloaded,
}

impl Connection<'_> {
    async fn serve(mut self) {
        let counters = &self.service.counters;
        let admitted = self.service.admission.admit();
        let connected = match &admitted {
            Some(_) => self.connect().await,
            None => Err(Refused::Overloaded),
        };
        let (end, error) = match connected {
            Ok((server, stream, racs)) => match self.tunnel(server, stream, racs).await {
                Ended::Done => ("done", None),
                Ended::Failed => ("failed", None),
                Ended::Cut => ("cut", Some("another server leads now")),
            },
            Err(refused) => {
                // A plain end might pass for all that the server had to say.
                self.client.reset_on_drop();
                match refused {
                    Refused::Gone => ("client", None),
                    Refused::Key => {
                        counters.refused.add(1);
                        ("refused", Some("it has no key"))
                    }
                    Refused::Unavailable => {
                        counters.unavailable.add(1);
                        ("unavailable", Some("no server can take it"))
                    }
                    Refused::Overloaded => {
                        counters.overloaded.add(1);
                        ("unavailable", Some("too many connections are under way"))
                    }
                }
            }
        };
        self.log(end, error);
    }

    fn log(&self, end: &'static str, error: Option<&str>) {
        let service = self.service;
        let Some(log) = &service.log else { return };
        let mut table = service.table.borrow_mut();
        let pmap = &table.load().pmap;
        let partition = self.went.partition.map(|partition| pmap.name(partition));
        let (received, sent) = (self.client.received(), self.client.sent());
        log.note(&Line {
            client: self.client.source(),
            what: What::Connection { commands: 0, refused: 0, failed: 0, received, sent, end },
            partition: partition.as_ref().map(|name| name as &dyn fmt::Display),
            server: self.went.server,
            attempts: self.went.attempts,
            error,
            took: service.worker.clock.now() - self.began,
        });
    }

    async fn connect(&mut self) -> Result<(InFlight, TcpStream, RacsId), Refused> {
        let service = self.service;
        let racs = self.racs().await?;
        service.counters.requests.add(1);
        let limits = &service.limits;
        let clock = &service.worker.clock;
        let (mut tried, mut more, mut attempts) = (Tried::default(), true, 0);
        let (mut wait_until, mut place): (Option<Instant>, Option<Counted<'_>>) = (None, None);
        loop {
            let server = match service.pick(racs, &tried) {
                Ok(server) if more => server,
                Err(Pick::Full) => return Err(Refused::Overloaded),
                Err(Pick::Wait) => {
                    let waiting = &service.waiting[racs.get() as usize];
                    if place.is_none() && waiting.get() >= service.admission.waiting {
                        return Err(Refused::Unavailable);
                    }
                    place.get_or_insert_with(|| Counted::new(waiting));
                    let until = *wait_until.get_or_insert_with(|| {
                        service.counters.waited.add(1);
                        clock.refresh();
                        clock.now().after(limits.wait)
                    });
                    if !self.next_try(until).await {
                        return Err(Refused::Unavailable);
                    }
                    (tried, more) = (Tried::default(), true);
                    continue;
                }
                Ok(_) | Err(_) => return Err(Refused::Unavailable),
            };
            attempts += 1;
            (self.went.attempts, self.went.server) = (attempts, Some(server.addr));
            if attempts > 1 {
                service.counters.retried.add(1);
            }
            // Nothing is said before the connection is made, so another clone may be tried.
            // It counts from here on, so that many who come at once do not all go to one clone.
            let in_flight = InFlight::to(&server, clock.now());
            match self.reach(&server).await {
                Some(stream) => {
                    // Nobody can tell an answer here: that a connection can be made has to do.
                    server.answered(clock.now(), Said::Well, limits.avoid);
                    return Ok((in_flight, stream, racs));
                }
                None => {
                    server.refused(clock.now(), limits.avoid);
                    more = tried.add(server.id);
                }
            }
        }
    }

    /// Finds out which RACS the client belongs to.
    async fn racs(&mut self) -> Result<RacsId, Refused> {
        let service = self.service;
        let source = self.client.source().ip().to_canonical();
        let key: Option<Box<[u8]>> = match service.key {
            TcpKey::Source => Some(source.to_string().into_bytes().into()),
            TcpKey::Sni => self.server_name().await?.map(|name| name.into_boxed_bytes()),
            TcpKey::Bytes { offset, len } => self.first_bytes(offset, len).await?,
        };
        let mut table = service.table.borrow_mut();
        let pmap = &table.load().pmap;
        let random = service.worker.random();
        let partition = match key {
            Some(key) => Some(pmap.locate(&key)),
            None => service.no_key.partition(Access::Update, source, random, pmap.len()),
        };
        self.went.partition = partition;
        partition.map(|partition| pmap.racs(partition)).ok_or(Refused::Key)
    }

    /// The name that the client asks for: in its session, if that ends here, else in what it says first.
    async fn server_name(&mut self) -> Result<Option<Box<str>>, Refused> {
        if self.client.is_tls() {
            return Ok(self.client.server_name().map(|name| name.to_ascii_lowercase().into()));
        }
        let mut scan = HelloScan::default();
        let hello = self.read(|fresh, _| scan.advance(fresh).map_err(|_| Refused::Key)).await?;
        Ok(hello.ok_or(Refused::Key)?.server_name)
    }

    /// So many bytes behind the first ones, if the client says so many.
    async fn first_bytes(&mut self, offset: usize, len: usize) -> Result<Option<Box<[u8]>>, Refused> {
        self.read(|_, all| Ok(all.get(offset..offset + len).map(Into::into))).await
    }

    /// Reads until `look`, which sees what is fresh and all that there is, finds something. `None` if the client
    /// has nothing more to say before that.
    async fn read<T>(
        &mut self,
        mut look: impl FnMut(&[u8], &[u8]) -> Result<Option<T>, Refused>,
    ) -> Result<Option<T>, Refused> {
        let worker = &self.service.worker;
        self.deadline.arm(self.service.limits.head);
        std::future::poll_fn(|cx| {
            loop {
                match self.input.poll_read(&mut self.client, cx, ROOM, &worker.buffers) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(len)) => {
                        let all = self.input.bytes();
                        if let Some(found) = look(&all[all.len() - len..], all)? {
                            return Poll::Ready(Ok(Some(found)));
                        }
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Refused::Gone)),
                    // Until it has a server it is nobody's business that a router that stops should wait for.
                    Poll::Pending
                        if self.deadline.passed(cx) || worker.is_draining() && !worker.gives_way() =>
                    {
                        return Poll::Ready(Err(Refused::Gone));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Waits for another table, or for the time to try the old one again. Returns false once `until` has
    /// passed.
    async fn next_try(&self, until: Instant) -> bool {
        let service = self.service;
        let seen = service.changes.get();
        let clock = &service.worker.clock;
        self.deadline.arm_at(until.min(clock.now().after(service.limits.avoid)));
        std::future::poll_fn(|cx| {
            let passed = self.deadline.passed(cx);
            if passed || service.changes.get() != seen { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        clock.now() < until
    }

    /// A connection to a server; `None` if none can be made.
    async fn reach(&self, server: &Server) -> Option<TcpStream> {
        let service = self.service;
        self.deadline.arm(service.limits.connect);
        let mut seen = service.changes.get();
        let mut connecting = pin!(TcpStream::connect(server.addr));
        let connected = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.ok());
            }
            // A view that came meanwhile may say that nobody need wait for this server any more.
            let changes = service.changes.get();
            let given_up = std::mem::replace(&mut seen, changes) != changes && !service.has_server(server.id);
            if self.deadline.passed(cx) || given_up { Poll::Ready(None) } else { Poll::Pending }
        });
        let stream = connected.await?;
        stream.set_nodelay(true).ok()?;
        Some(stream)
    }

    async fn tunnel(&mut self, to: InFlight, mut stream: TcpStream, racs: RacsId) -> Ended {
        let service = self.service;
        let worker = &*service.worker;
        let mut up = std::mem::take(&mut self.input);
        if service.send_proxy[racs.get() as usize] {
            let Some((source, destination)) = self.client.ends() else { return Ended::Failed };
            let mut header = Vec::new();
            proxy::write(source, destination, &mut header);
            let mut both = Buf::default();
            both.extend(&header, &worker.buffers);
            both.extend(up.bytes(), &worker.buffers);
            up.free(&worker.buffers);
            up = both;
        }
        // The view may have changed while the connection was made, too.
        let seen = Cell::new(None);
        let unwanted = || {
            let changes = Some(service.changes.get());
            seen.replace(changes) != changes && service.is_deposed(racs, to.server().id)
        };
        let tunnel = Tunnel::new(worker, &mut self.client, &mut stream, up, Buf::default());
        tunnel.run(&self.deadline, service.limits.tunnel, unwanted).await
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.input.free(&self.service.worker.buffers);
    }
}
