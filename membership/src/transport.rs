//! Connections: who is reached over which one, and what happens to those that do not belong.
//!
//! Everything here lives on the control thread. Sending never waits: each connection has a bounded queue which loses its
//! oldest frames, because the protocol says everything again that must arrive. Receiving waits for the machine. Large frames
//! go in pieces, and others go first: a heartbeat does not wait until a state of many MiB has gone through a slow link.

mod link;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use membership_proto::{Dest, Floor, Msg, witness::Answer};
use membership_types::{NodeId, trace::Event};
use prometheus_client::metrics::gauge::Gauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::spawn_local,
    time::timeout,
};

use self::link::Link;
pub(crate) use self::link::WAITING_FRAMES;
use crate::{
    bulk::Bulk,
    clock,
    death::Neighbours,
    handshake::{self, Hello, Met, Refusal, Seen},
    metrics::Counts,
    secret::Wallet,
    session::{Corrupt, Scratch, Session},
    trace::Tracer,
    wire::{self, Frame, FrameRef, Frames, Garbage, MAX_FRAME, MAX_STATE},
};

/// Connections that have not introduced themselves yet. One more displaces the oldest of them.
const STRANGERS: usize = 256;
/// Connections with one incarnation: each side may have made one, and another while the first was breaking.
const LINKS_PER_NODE: usize = 4;
/// So many bytes at most wait in the kernel before it takes more: whatever is there goes before the next heartbeat.
const UNSENT: u32 = 64 * 1024;
/// A frame of more bytes than this is decoded by another thread.
const DECODED_ELSEWHERE: usize = 1024 * 1024;
/// Frames that wait for a connection that is being made.
const WAITING_FOR_DIAL: usize = 64;
/// How long a stranger may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(3);
/// An unused connection is closed after this.
const IDLE: Duration = Duration::from_secs(60);
/// Pauses after failed attempts to connect double from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(500));
/// The pause after one of the two nodes refused the other.
const REJECTED_PAUSE: Duration = Duration::from_secs(2);
/// How many addresses are remembered that nobody wants to reach at the moment.
const REMEMBERED: usize = 4096;
/// The same complaint about the same host is logged once in this time.
const QUIET: Duration = Duration::from_secs(30);

/// What comes in from the surroundings, for the control loop.
pub(crate) enum Arrived {
    /// The data directory has this floor.
    IsSetAside(Floor),
    /// What the witness said.
    Witness(Answer),
    /// A message that reached the incarnation `to`.
    Message { to: NodeId, from: NodeId, msg: Msg },
    /// Proof of a death on this host, and what it is.
    Dead(NodeId, &'static str),
    /// The addresses that rendezvous gives.
    Addresses {
        /// The addresses.
        addresses: Vec<SocketAddr>,
        /// Every provider has answered at least once.
        complete: bool,
    },
}

/// All connections of a node. A cheap handle.
#[derive(Clone)]
pub(crate) struct Transport(Rc<Net>);

struct Net {
    me: RefCell<Rc<Hello>>,
    wallet: Wallet,
    /// Beginnings of connections made to us.
    seen: RefCell<Seen>,
    links: RefCell<BTreeMap<NodeId, Vec<Rc<Link>>>>,
    dials: RefCell<HashMap<SocketAddr, Dial>>,
    strangers: RefCell<VecDeque<Rc<Notify>>>,
    arrived: mpsc::Sender<Arrived>,
    neighbours: Option<Neighbours>,
    /// Takes the connections that are for what groups say.
    bulk: Bulk,
    tracer: RefCell<Option<Tracer>>,
    counts: Counts,
    complaints: RefCell<HashMap<(&'static str, IpAddr), u64>>,
    /// How long to try to connect, and how long bytes may stay unconfirmed.
    patience: Duration,
    /// Connections whose tasks run.
    open: Cell<usize>,
    closed: Notify,
}

/// An address that we wanted to reach.
#[derive(Default)]
struct Dial {
    state: DialState,
    failures: u32,
    not_before: u64,
}

#[derive(Default)]
enum DialState {
    #[default]
    Idle,
    /// Frames wait, each for whom it is meant if not for whoever answers.
    Busy(VecDeque<(Option<NodeId>, Bytes)>),
    Up(Rc<Link>),
}

impl Transport {
    /// Connections of the incarnation `me`. What arrives goes into the queue.
    pub(crate) fn new(
        me: Hello,
        wallet: Wallet,
        lease: Duration,
        arrived: mpsc::Sender<Arrived>,
        neighbours: Option<Neighbours>,
        bulk: Bulk,
        counts: Counts,
    ) -> Self {
        let net = Rc::new(Net {
            me: RefCell::new(Rc::new(me)),
            wallet,
            seen: RefCell::default(),
            links: RefCell::default(),
            dials: RefCell::default(),
            strangers: RefCell::default(),
            arrived,
            neighbours,
            bulk,
            tracer: RefCell::default(),
            counts,
            complaints: RefCell::default(),
            patience: patience(lease),
            open: Cell::new(0),
            closed: Notify::new(),
        });
        if let Some(neighbours) = &net.neighbours {
            neighbours.serve(Transport(Rc::clone(&net)));
        }
        let weak = Rc::downgrade(&net);
        spawn_local(async move {
            loop {
                tokio::time::sleep(IDLE / 4).await;
                let Some(net) = weak.upgrade() else { return };
                net.tidy();
            }
        });
        Self(net)
    }

    /// From now on who is met is traced.
    pub(crate) fn set_tracer(&self, tracer: Option<Tracer>) {
        *self.0.tracer.borrow_mut() = tracer;
    }

    /// Accepts connections for as long as the control thread lives.
    pub(crate) fn accept(&self, listener: TcpListener) {
        let net = Rc::clone(&self.0);
        spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        net.counts.accepted.inc();
                        spawn_local(Rc::clone(&net).welcome(stream, from));
                    }
                    Err(error) => {
                        // Most often too many open files: waiting is all that helps.
                        net.complain("accept", IpAddr::from([0, 0, 0, 0]), || {
                            tracing::warn!(%error, "cannot accept connections");
                        });
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }

    /// Sends a message once, as far as that is possible now.
    pub(crate) fn send(&self, to: Dest, msg: &Msg) {
        match wire::encode(&FrameRef::Msg(msg), MAX_STATE) {
            Ok(frame) => self.0.send(to, frame),
            Err(size) => self.0.too_large(size, MAX_STATE),
        }
    }

    /// The incarnation that others are told of.
    pub(crate) fn me(&self) -> NodeId {
        self.0.me.borrow().node
    }

    /// How we introduce ourselves.
    pub(crate) fn hello(&self) -> Hello {
        Hello::clone(&self.0.me.borrow())
    }

    /// Tells a node over a connection that exists which number was found in memory shared with it. False without one.
    pub(crate) fn send_shown(&self, to: NodeId, number: [u8; 16]) -> bool {
        let Some(link) = self.0.link_with(to) else { return false };
        let frame = wire::encode(&FrameRef::Shown(number), MAX_FRAME).expect("sixteen bytes fit");
        self.0.post(&link, frame);
        true
    }

    /// Is there a connection with this incarnation?
    pub(crate) fn is_linked(&self, node: NodeId) -> bool {
        self.0.link_with(node).is_some()
    }

    /// How many frames wait for the connection for which most wait.
    pub(crate) fn longest_queue(&self) -> usize {
        let links = self.0.links.borrow();
        links.values().flatten().map(|link| link.waiting()).max().unwrap_or(0)
    }

    /// Tells the control loop of a death.
    pub(crate) async fn report_dead(&self, node: NodeId, how: &'static str) {
        self.0.counts.proofs.inc();
        // The queue is closed only when the node stops.
        let _stopping = self.0.arrived.send(Arrived::Dead(node, how)).await;
    }

    /// Which processes on this host are watched.
    pub(crate) fn neighbours(&self) -> Option<&Neighbours> {
        self.0.neighbours.as_ref()
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// The lineage that new connections are told of.
    pub(crate) fn set_lineage(&self, lineage: Option<membership_types::Lineage>) {
        let mut me = self.0.me.borrow_mut();
        if me.lineage != lineage {
            *me = Rc::new(Hello { lineage, ..Hello::clone(&me) });
        }
    }

    /// A new incarnation: connections of the old one are closed once what waits has been written.
    pub(crate) fn renew(&self, node: NodeId) {
        {
            let mut me = self.0.me.borrow_mut();
            *me = Rc::new(Hello { node, lineage: None, ..Hello::clone(&me) });
        }
        self.close_all();
    }

    fn close_all(&self) {
        let links = std::mem::take(&mut *self.0.links.borrow_mut());
        for link in links.into_values().flatten() {
            link.close();
        }
        self.0.dials.borrow_mut().retain(|_, dial| matches!(dial.state, DialState::Busy(_)));
    }

    /// Closes everything; waits a moment until what waits has been written.
    pub(crate) async fn shutdown(&self, patience: Duration) {
        self.close_all();
        let closed = async {
            while self.0.open.get() > 0 {
                self.0.closed.notified().await;
            }
        };
        if timeout(patience, closed).await.is_err() {
            tracing::debug!(open = self.0.open.get(), "connections are cut");
        }
    }
}

impl Net {
    fn link_with(&self, node: NodeId) -> Option<Rc<Link>> {
        let links = self.links.borrow();
        links.get(&node)?.iter().find(|link| !link.closing.get()).cloned()
    }

    fn too_large(&self, size: usize, limit: usize) {
        self.counts.dropped.inc();
        self.complain("too large", IpAddr::from([0, 0, 0, 0]), || {
            tracing::error!(
                size,
                limit,
                "a message is too large to be sent: the cluster has too many groups, or members of groups"
            );
        });
    }

    fn post(&self, link: &Link, frame: Bytes) {
        let largest = link.largest();
        if frame.len() > wire::LENGTH + largest {
            return self.too_large(frame.len() - wire::LENGTH, largest);
        }
        self.counts.sent.inc();
        self.counts.dropped.inc_by(link.post(frame));
    }

    fn send(self: &Rc<Self>, to: Dest, frame: Bytes) {
        match to {
            Dest::Node(node, addr) => match (self.link_with(node), addr) {
                (Some(link), _) => self.post(&link, frame),
                (None, Some(addr)) => self.send_to(addr, Some(node), frame),
                (None, None) => {
                    self.counts.undeliverable.inc();
                }
            },
            Dest::Addr(addr) => self.send_to(addr, None, frame),
        }
    }

    /// Over the connection to an address, which is made if there is none.
    fn send_to(self: &Rc<Self>, addr: SocketAddr, meant_for: Option<NodeId>, frame: Bytes) {
        let mut dials = self.dials.borrow_mut();
        let dial = dials.entry(addr).or_default();
        match &mut dial.state {
            DialState::Up(link) if !link.closing.get() => {
                let link = Rc::clone(link);
                drop(dials);
                if meant_for.is_none_or(|node| node == link.peer.node) {
                    self.post(&link, frame);
                } else {
                    // Another incarnation listens there now.
                    self.counts.undeliverable.inc();
                }
            }
            DialState::Busy(queue) => {
                if queue.len() == WAITING_FOR_DIAL {
                    queue.pop_front();
                    self.counts.dropped.inc();
                }
                queue.push_back((meant_for, frame));
            }
            DialState::Idle | DialState::Up(_) if clock::now_ns() < dial.not_before => {
                self.counts.dropped.inc();
            }
            DialState::Idle | DialState::Up(_) => {
                dial.state = DialState::Busy(VecDeque::from([(meant_for, frame)]));
                spawn_local(Rc::clone(self).dial(addr));
            }
        }
    }

    async fn dial(self: Rc<Self>, addr: SocketAddr) {
        self.counts.dials.inc();
        let me = Rc::clone(&self.me.borrow());
        let attempt = async {
            let mut stream = TcpStream::connect(addr).await?;
            prepare(&stream, self.patience)?;
            let met = handshake::initiate(&mut stream, &me, &self.wallet.get()).await?;
            Ok::<_, Refusal>((stream, met))
        };
        match timeout(self.patience, attempt).await {
            Ok(Ok((stream, met))) if self.me.borrow().node == me.node => {
                let Met { hello, session, rest } = met;
                let link = self.register(&me, hello, &session);
                let waiting = {
                    let mut dials = self.dials.borrow_mut();
                    let dial = dials.entry(addr).or_default();
                    dial.failures = 0;
                    std::mem::replace(&mut dial.state, DialState::Up(Rc::clone(&link)))
                };
                if let DialState::Busy(queue) = waiting {
                    for (meant_for, frame) in queue {
                        if meant_for.is_none_or(|node| node == link.peer.node) {
                            self.post(&link, frame);
                        } else {
                            self.counts.undeliverable.inc();
                        }
                    }
                }
                if let (Some(neighbours), Some(near)) = (&self.neighbours, &link.peer.near) {
                    neighbours.meet(&Transport(Rc::clone(&self)), link.peer.node, near.clone());
                }
                self.serve(link, stream, (session, rest), addr).await;
                if let Some(dial) = self.dials.borrow_mut().get_mut(&addr)
                    && matches!(&dial.state, DialState::Up(link) if link.closing.get())
                {
                    dial.state = DialState::Idle;
                    dial.not_before = clock::now().after(PAUSES.0).as_nanos();
                }
            }
            Ok(Ok(_)) => self.dial_failed(addr, None),
            Ok(Err(refusal)) => {
                self.complain_of(&refusal, addr, "connecting");
                self.dial_failed(addr, Some(&refusal));
            }
            Err(_) => {
                self.complain("no answer", addr.ip(), || {
                    tracing::debug!(%addr, "no answer to an attempt to connect");
                });
                self.dial_failed(addr, None);
            }
        }
    }

    fn dial_failed(&self, addr: SocketAddr, refusal: Option<&Refusal>) {
        self.counts.dial_failures.inc();
        let mut dials = self.dials.borrow_mut();
        let dial = dials.entry(addr).or_default();
        if let DialState::Busy(queue) = std::mem::take(&mut dial.state) {
            self.counts.dropped.inc_by(queue.len() as u64);
        }
        let doubled = PAUSES.0.saturating_mul(1 << dial.failures.min(10)).min(PAUSES.1);
        let pause = if refusal.is_some_and(Refusal::is_reject) { REJECTED_PAUSE } else { doubled };
        dial.failures = dial.failures.saturating_add(1);
        dial.not_before = clock::now().after(pause).as_nanos();
    }

    /// A connection that was made to us.
    async fn welcome(self: Rc<Self>, mut stream: TcpStream, from: SocketAddr) {
        let displaced = Rc::new(Notify::new());
        {
            let mut strangers = self.strangers.borrow_mut();
            if strangers.len() == STRANGERS
                && let Some(oldest) = strangers.pop_front()
            {
                self.counts.overrun.inc();
                self.counts.refused.get_or_create(&[("reason", "displaced")]).inc();
                oldest.notify_one();
            }
            strangers.push_back(Rc::clone(&displaced));
        }
        let me = Rc::clone(&self.me.borrow());
        let introduction = async {
            prepare(&stream, self.patience)?;
            let mut seen = |first: &[u8]| self.seen.borrow_mut().note(first);
            handshake::respond(&mut stream, &me, &self.wallet.get(), &mut seen).await
        };
        let outcome = tokio::select! {
            outcome = timeout(INTRODUCTION, introduction) => Some(outcome),
            () = displaced.notified() => None,
        };
        self.strangers.borrow_mut().retain(|stranger| !Rc::ptr_eq(stranger, &displaced));
        match outcome {
            Some(Ok(Ok(met))) if self.me.borrow().node == me.node && met.hello.bulk => {
                let peer = met.hello.node;
                match stream.into_std().map(|stream| self.bulk.accept(stream, met)) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.counts.refused.get_or_create(&[("reason", "bulk_full")]).inc();
                        tracing::debug!(%peer, %from, "a connection for bulk is closed: too many wait already");
                    }
                    Err(error) => {
                        tracing::debug!(%peer, %from, %error, "a connection for bulk cannot be used")
                    }
                }
            }
            Some(Ok(Ok(Met { hello, session, rest }))) if self.me.borrow().node == me.node => {
                let link = self.register(&me, hello, &session);
                self.serve(link, stream, (session, rest), from).await;
            }
            Some(Ok(Ok(_))) => {}
            Some(Ok(Err(refusal))) => self.complain_of(&refusal, from, "a connection was made"),
            Some(Err(_)) => {
                self.counts.silent.inc();
                self.counts.refused.get_or_create(&[("reason", "timed_out")]).inc();
                self.complain("silent", from.ip(), || {
                    tracing::warn!(%from, "a connection is closed: no introduction came in {INTRODUCTION:?}");
                });
            }
            None => self.complain("displaced", from.ip(), || {
                tracing::warn!(%from, "a connection is closed: too many have not introduced themselves");
            }),
        }
    }

    fn register(&self, me: &Hello, peer: Hello, session: &Session) -> Rc<Link> {
        if let (Some(tracer), false) = (&*self.tracer.borrow(), session.is_open()) {
            // Before anything that it says is acted on.
            let name = matches!(session, Session::Certified(_)).then(|| peer.name.clone());
            let met = Event::Auth { p: me.node.into(), q: peer.node.into(), name };
            tracer.pen().record_as(me.node, met);
        }
        let link = Rc::new(Link::new(peer, me.node));
        let (peer, version) = (&link.peer, link.version());
        tracing::debug!(peer = %peer.node, name = peer.name, addr = %peer.addr, version, "connected");
        let mut links = self.links.borrow_mut();
        let known = links.entry(link.peer.node).or_default();
        if known.len() == LINKS_PER_NODE {
            known.remove(0).close();
        }
        known.push(Rc::clone(&link));
        self.counts.links.inc();
        self.by_version(&link).inc();
        self.open.set(self.open.get() + 1);
        link
    }

    /// Carries frames until the connection ends.
    async fn serve(
        &self,
        link: Rc<Link>,
        mut stream: TcpStream,
        (session, mut came): (Session, BytesMut),
        addr: SocketAddr,
    ) {
        let (mut read, mut write) = stream.split();
        let session = RefCell::new(session);
        let reading = async {
            let mut frames = Frames::new(link.largest());
            loop {
                session.borrow_mut().open(clock::now(), &mut came, frames.buffer(), &self.counts)?;
                while let Some(payload) = frames.next()? {
                    link.used.set(clock::now_ns());
                    let Some(frame) = decode(payload).await? else {
                        self.counts.unknown.inc();
                        self.complain("unknown", addr.ip(), || {
                            tracing::info!(peer = %link.peer.node, name = link.peer.name, "a newer build says what this one skips");
                        });
                        continue;
                    };
                    match frame {
                        Frame::Msg(msg) => {
                            self.counts.received.inc();
                            let arrived = Arrived::Message { to: link.me, from: link.peer.node, msg };
                            if self.arrived.send(arrived).await.is_err() {
                                return Ok(());
                            }
                        }
                        Frame::Shown(number) => {
                            if let Some(neighbours) = &self.neighbours {
                                neighbours.on_shown(link.peer.node, number);
                            }
                        }
                    }
                }
                let (is_open, patience) = {
                    let session = session.borrow();
                    (session.is_open(), session.patience(clock::now()))
                };
                // Memory grows only as bytes come in. What is not sealed needs no copy.
                let into = if is_open { frames.buffer() } else { &mut came };
                into.reserve(4096);
                let filling = read.read_buf(into);
                let filled = match patience {
                    None => filling.await?,
                    // When nothing comes in time, opening says so.
                    Some(patience) => timeout(patience, filling).await.unwrap_or(Ok(1))?,
                };
                if filled == 0 {
                    return Ok(());
                }
            }
        };
        let writing = async {
            let mut sealed = Scratch::default();
            while let Some(batch) = link.batch().await {
                if session.borrow().is_open() {
                    write.write_all(&batch).await?;
                } else {
                    sealed.clear();
                    session.borrow_mut().seal(&batch, &mut sealed);
                    write.write_all(sealed.bytes()).await?;
                }
            }
            write.shutdown().await
        };
        let outcome: Result<(), Broken> = tokio::select! {
            outcome = reading => outcome,
            outcome = writing => outcome.map_err(Broken::Io),
        };
        self.counts.dropped.inc_by(link.cut() as u64);
        self.forget(&link);
        if let Err(broken) = outcome {
            let (peer, name) = (link.peer.node, &link.peer.name);
            match broken {
                Broken::Io(error) => tracing::debug!(%peer, name, %error, "a connection broke"),
                Broken::Corrupt(corrupt) => self.complain("corrupt", addr.ip(), || {
                    tracing::warn!(%peer, name, %addr, "a connection is closed: {corrupt}");
                }),
                Broken::Garbage(garbage) => {
                    self.counts.garbage.inc();
                    self.complain("garbage", addr.ip(), || {
                        tracing::warn!(%peer, name, %addr, "a connection is closed: {garbage}");
                    });
                }
            }
        }
    }

    fn forget(&self, link: &Rc<Link>) {
        let mut links = self.links.borrow_mut();
        if let Some(known) = links.get_mut(&link.peer.node) {
            known.retain(|other| !Rc::ptr_eq(other, link));
            if known.is_empty() {
                links.remove(&link.peer.node);
            }
        }
        self.counts.links.dec();
        self.by_version(link).dec();
        self.open.set(self.open.get() - 1);
        self.closed.notify_one();
    }

    fn by_version(&self, link: &Link) -> Gauge {
        self.counts.by_version.get_or_create_owned(&[("version", link.version().into())])
    }

    /// Now and then: closes what is not used, forgets what is not wanted.
    fn tidy(&self) {
        let now = clock::now_ns();
        let idle = IDLE.as_nanos() as u64;
        for link in self.links.borrow().values().flatten() {
            if now.saturating_sub(link.used.get()) > idle {
                link.close();
            }
        }
        let mut dials = self.dials.borrow_mut();
        if dials.len() > REMEMBERED {
            dials.retain(|_, dial| !matches!(dial.state, DialState::Idle));
        }
    }

    fn complain_of(&self, refusal: &Refusal, addr: SocketAddr, when: &'static str) {
        refusal.count(&self.counts);
        match refusal {
            Refusal::Io(_) | Refusal::Closed | Refusal::Myself => {
                tracing::debug!(%addr, %refusal, "{when}: no introduction")
            }
            _ => self.complain(refusal.kind(), addr.ip(), || tracing::warn!(%addr, "{when}: {refusal}")),
        }
    }

    /// Logs a complaint about a host, unless the same was logged just now.
    fn complain(&self, kind: &'static str, about: IpAddr, log: impl FnOnce()) {
        let mut complaints = self.complaints.borrow_mut();
        let now = clock::now_ns();
        complaints.retain(|_, at| now.saturating_sub(*at) < QUIET.as_nanos() as u64);
        if complaints.len() < REMEMBERED && !complaints.contains_key(&(kind, about)) {
            complaints.insert((kind, about), now);
            log();
        }
    }
}

/// What is large takes a while to decode: this thread has more to do.
async fn decode(payload: Bytes) -> Result<Option<Frame>, Garbage> {
    if payload.len() <= DECODED_ELSEWHERE {
        return wire::decode_known(&payload);
    }
    let decoded = tokio::task::spawn_blocking(move || wire::decode_known(&payload)).await;
    decoded.unwrap_or_else(|error| Err(Garbage::Undecodable(error.to_string())))
}

/// How long to try to connect, and (times four) how long bytes may stay unconfirmed.
pub(crate) fn patience(lease: Duration) -> Duration {
    lease.clamp(Duration::from_millis(500), Duration::from_secs(5))
}

/// No waiting for more bytes, and a dead connection is noticed.
pub(crate) fn prepare(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let alive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&alive)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_user_timeout(Some(patience.max(Duration::from_secs(2)) * 4))
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    #[error(transparent)]
    Garbage(#[from] Garbage),
}

#[cfg(test)]
mod tests;
