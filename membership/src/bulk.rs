//! The bulk thread: what members of groups say to each other, on a thread and on connections of its own, so that no amount
//! of it delays a heartbeat.
//!
//! The control thread tells it of views; applications leave messages in their mailboxes; frames come in. All of that goes
//! into the machine of the group, and at the end of each turn, when nothing more waits to be read, what came together is
//! answered together: places are given, acknowledgements sent, connections written, applications woken, once each.

mod connect;
mod desk;
pub(crate) mod links;
mod room;
mod whom;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use bytes::BytesMut;
use membership_multicast::{Config, Frame, Input, Multicast, Output, View as RoomView};
use membership_proto::Kind;
use membership_sync::NodeLease;
use membership_types::{GroupName, Instant, Lineage, Machine, NodeId, ViewId};
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

pub(crate) use self::desk::Bulk;
use self::{
    connect::{Broken, Crowd, FEW, dial, link},
    desk::{Accepted, News},
    links::{Links, Nonsense, Unit, WAITING, next_unit},
    room::Room,
    whom::{Peers, Wanted, Whom},
};
use crate::{
    channel::{Delivered, Mailbox, Message, SendError, StateRequest},
    clock,
    event::View,
    handshake::{Hello, Versions},
    metrics::{Counts, Tally},
    node::lock,
    secret::Wallet,
    trace::{Pen, Tracer},
};

/// How many views of a group are remembered until they are installed.
const VIEWS: usize = 64;
/// How many groups may be heard of before membership tells of them.
const UNKNOWN: usize = 4096;
/// How often connections and groups that are of no use are looked for.
const TIDY: Duration = Duration::from_secs(10);
/// How often queues are measured.
const LOOK: Duration = Duration::from_secs(1);
/// What is left of connections when the node stops has this long to be written.
const FAREWELL: Duration = Duration::from_millis(300);

/// Starts the thread, which ends with [`Bulk::stop`].
pub(crate) fn spawn(
    bulk: Bulk,
    me: Hello,
    wallet: Wallet,
    lease: NodeLease,
    term: Duration,
    tracer: Option<Tracer>,
    counts: Counts,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let body = move || {
        let hub = Hub::new(bulk.clone(), me, wallet, lease, term, tracer, counts);
        LocalSet::new().block_on(&runtime, run(Rc::new(RefCell::new(hub)), bulk.clone()));
        bulk.0.finished.notify_one();
    };
    thread::Builder::new().name("phalanx-bulk".into()).spawn(body).map(drop)
}

type Shared = Rc<RefCell<Hub>>;

async fn run(hub: Shared, bulk: Bulk) {
    let turn = Rc::clone(&hub.borrow().turn);
    let mut tidy = tokio::time::interval(TIDY);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = hub.borrow().timers.first().map(|(at, _)| *at - clock::now());
        tokio::select! {
            () = bulk.0.wake.notified() => {
                if !take_inbox(&hub, &bulk) {
                    break;
                }
                hub.borrow_mut().turn();
            }
            () = turn.notified() => hub.borrow_mut().turn(),
            () = sleep(due.unwrap_or_default()), if due.is_some() => hub.borrow_mut().on_time(),
            _ = look.tick() => hub.borrow().look(),
            _ = tidy.tick() => hub.borrow_mut().tidy(),
        }
    }
    hub.borrow_mut().end();
    let written = async {
        while !hub.borrow().is_written() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    // What cannot be written by then is the loss of a process that stops.
    let _in_time = timeout(FAREWELL, written).await;
    hub.borrow_mut().links.clear();
}

/// Takes what waits. False if the thread is to end.
fn take_inbox(hub: &Shared, bulk: &Bulk) -> bool {
    let inbox = bulk.take();
    if let Some((me, lease)) = inbox.begin {
        hub.borrow_mut().begin(me, lease);
    }
    if let Some(addresses) = inbox.addresses {
        hub.borrow_mut().set_addresses(addresses);
    }
    for (group, news) in inbox.groups {
        hub.borrow_mut().on_news(group, news);
    }
    for mailbox in inbox.ready {
        mailbox.heard();
        hub.borrow_mut().on_ready(&mailbox);
    }
    for accepted in inbox.accepted {
        let Accepted { stream, met } = accepted;
        match TcpStream::from_std(stream) {
            Ok(stream) => link(hub, stream, met, false),
            Err(error) => tracing::debug!(%error, "a connection for bulk cannot be used"),
        }
    }
    if inbox.again {
        hub.borrow_mut().all_dirty();
    }
    let wanted = hub.borrow_mut().missing();
    let is_crowd = wanted.iter().filter(|(wanted, _)| !wanted.first).count() > FEW;
    for (wanted, addr) in wanted {
        let crowd = (is_crowd && !wanted.first).then(|| Rc::clone(&hub.borrow().crowd));
        spawn_local(dial(Rc::clone(hub), wanted, addr, crowd));
    }
    !inbox.stop
}

struct Hub {
    me: Rc<Hello>,
    wallet: Wallet,
    lease: NodeLease,
    /// How long a lease is.
    term: Duration,
    bulk: Bulk,
    tracer: Option<Tracer>,
    counts: Counts,
    tally: Tally,
    addresses: BTreeMap<NodeId, SocketAddr>,
    keys: HashMap<GroupName, u32>,
    rooms: HashMap<u32, Room>,
    next_key: u32,
    /// How many messages this incarnation has sent in groups that it is in no more.
    sent: HashMap<GroupName, u64>,
    links: Links,
    whom: Whom,
    crowd: Rc<Crowd>,
    /// Peers of builds that take nothing that was passed on.
    plain: BTreeSet<NodeId>,
    /// Rooms that something happened to since the last turn.
    dirty: Vec<u32>,
    timers: BTreeSet<(Instant, u32)>,
    turn: Rc<Notify>,
}

impl Hub {
    fn new(
        bulk: Bulk,
        me: Hello,
        wallet: Wallet,
        lease: NodeLease,
        term: Duration,
        tracer: Option<Tracer>,
        counts: Counts,
    ) -> Self {
        Self {
            me: Rc::new(Hello { bulk: true, ..me }),
            wallet,
            lease,
            term,
            bulk,
            tracer,
            links: Links::new(counts.bulk_links.clone()),
            counts,
            tally: Tally::default(),
            addresses: BTreeMap::new(),
            keys: HashMap::new(),
            rooms: HashMap::new(),
            next_key: 1,
            sent: HashMap::new(),
            whom: Whom::default(),
            crowd: Rc::new(Crowd::new()),
            plain: BTreeSet::new(),
            dirty: Vec::new(),
            timers: BTreeSet::new(),
            turn: Rc::default(),
        }
    }

    /// A new incarnation: what there was is over.
    fn begin(&mut self, me: Hello, lease: NodeLease) {
        self.me = Rc::new(me);
        self.lease = lease;
        self.links.clear();
        self.whom = Whom::default();
        self.crowd = Rc::new(Crowd::new());
        self.plain.clear();
        self.addresses.clear();
        self.timers.clear();
        self.dirty.clear();
        self.sent.clear();
        self.keys.clear();
        let rooms = std::mem::take(&mut self.rooms);
        for mut room in rooms.into_values() {
            let Some(mailbox) = room.mailbox.take() else { continue };
            let was_in = room.machine.lineage().is_some();
            let key = self.room(&room.group);
            let fresh = self.rooms.get_mut(&key).expect("just made");
            if mailbox.state {
                // What the application holds may be that of a member that is gone.
                fresh.initial = !was_in && room.initial;
                fresh.machine.keep_state(fresh.initial);
                fresh.machine.ask_after(room.machine.asked());
            }
            fresh.delivered = std::mem::take(&mut room.delivered);
            if was_in {
                fresh.delivered.push(Delivered::Out { left: false });
            }
            fresh.mailbox = Some(mailbox);
            self.soil(key);
        }
    }

    /// The room of a group, made if there is none.
    fn room(&mut self, group: &GroupName) -> u32 {
        if let Some(key) = self.keys.get(group) {
            return *key;
        }
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1).max(1);
        let mut config = Config::new(self.me.node, group.clone());
        config.trace = self.tracer.is_some();
        let sent = self.sent.remove(group).unwrap_or(0);
        let room = Room {
            key,
            group: group.clone(),
            machine: Multicast::new(config, clock::now(), sent),
            mailbox: None,
            views: VecDeque::new(),
            current: None,
            peers: Peers::default(),
            delivered: Vec::new(),
            batch: VecDeque::new(),
            to_tell: None,
            fences: VecDeque::new(),
            early: Vec::new(),
            initial: false,
            dirty: false,
            held: false,
            throttled: false,
            due: None,
        };
        self.keys.insert(group.clone(), key);
        self.rooms.insert(key, room);
        key
    }

    fn remove_room(&mut self, key: u32) {
        let Some(room) = self.rooms.remove(&key) else { return };
        self.keys.remove(&room.group);
        if let Some(due) = room.due {
            self.timers.remove(&(due, key));
        }
        if room.machine.sent() > 0 {
            self.sent.insert(room.group.clone(), room.machine.sent());
        }
        self.links.retire(key);
    }

    /// Something happened: the room gets its part of the next turn.
    fn soil(&mut self, key: u32) {
        if let Some(room) = self.rooms.get_mut(&key)
            && !std::mem::replace(&mut room.dirty, true)
        {
            self.dirty.push(key);
            self.turn.notify_one();
        }
    }

    fn all_dirty(&mut self) {
        let keys: Vec<u32> = self.rooms.keys().copied().collect();
        for key in keys {
            self.soil(key);
        }
    }

    fn on_news(&mut self, group: GroupName, news: News) {
        let key = self.room(&group);
        if let Some(left) = news.out {
            self.feed(key, Input::Out);
            if let Some(room) = self.rooms.get_mut(&key) {
                room.views.clear();
                room.current = None;
                room.peers = Peers::default();
                let ends = room.mailbox.as_ref().filter(|_| left).cloned();
                if room.mailbox.is_some() {
                    room.delivered.push(Delivered::Out { left });
                }
                if let Some(mailbox) = ends {
                    mailbox.deliver(&mut room.delivered);
                    mailbox.end();
                    room.mailbox = None;
                }
            }
        }
        if let Some(mailbox) = news.open
            && let Some(room) = self.rooms.get_mut(&key)
        {
            if mailbox.state {
                room.initial = true;
                room.machine.keep_state(true);
            }
            if let Some(before) = room.mailbox.replace(mailbox) {
                before.deliver(&mut room.delivered);
                before.end();
            }
            if let Some(view) = room.current.clone() {
                room.delivered.push(Delivered::View { view, came_along: Vec::new() });
            }
            room.throttled = false;
            self.feed(key, Input::Throttle(false));
        }
        let count = news.views.len();
        for (at, (view, kind)) in news.views.into_iter().enumerate() {
            self.on_view(key, view, kind, at + 1 < count);
        }
        if self.rooms.get(&key).is_some_and(Room::is_idle) {
            self.remove_room(key);
        } else {
            self.soil(key);
        }
    }

    /// A view that was overtaken while this thread was busy is not closed: each would cost all members a round.
    fn on_view(&mut self, key: u32, view: Arc<View>, kind: Kind, overtaken: bool) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        if kind == Kind::Plain {
            // Views and leaders only: nothing is to be closed before one is installed.
            if let Some(mailbox) = &room.mailbox {
                mailbox.refuse(Some(SendError::Plain));
                room.current = Some(Arc::clone(&view));
                room.delivered.push(Delivered::View { view, came_along: Vec::new() });
            }
            return;
        }
        if let Some(mailbox) = &room.mailbox {
            mailbox.refuse(None);
        }
        let members: Box<[NodeId]> = view.members.iter().map(|m| m.node).collect();
        room.peers = Peers::new(self.me.node, &members);
        let plain: Vec<NodeId> = self.plain.iter().copied().filter(|p| room.peers.contains(*p)).collect();
        self.whom.look_again = true;
        let begins = view.prev == ViewId::NONE;
        let told = RoomView { id: view.id, lineage: view.lineage, members, begins };
        if room.views.len() == VIEWS {
            room.views.pop_front();
        }
        room.views.push_back(view);
        for peer in plain {
            self.feed(key, Input::Plain(peer));
        }
        if !overtaken || begins {
            self.feed(key, Input::View(told));
        }
    }

    fn on_ready(&mut self, mailbox: &Arc<Mailbox>) {
        if let Some(key) = self.keys.get(&mailbox.group).copied() {
            self.soil(key);
        }
    }

    fn set_addresses(&mut self, addresses: BTreeMap<NodeId, SocketAddr>) {
        self.addresses = addresses;
        self.whom.look_again = true;
    }

    /// Whom to connect with, of those that can be reached.
    fn missing(&mut self) -> Vec<(Wanted, SocketAddr)> {
        let absent = |peer| !self.links.has(peer) && self.addresses.contains_key(&peer);
        let found = self.whom.missing(self.me.node, self.rooms.values().map(|room| &room.peers), absent);
        found.into_iter().filter_map(|wanted| Some((wanted, *self.addresses.get(&wanted.peer)?))).collect()
    }

    /// Is more than half of a lease left?
    fn has_fresh_lease(&self) -> bool {
        let left = self.lease.until().saturating_sub(clock::now().as_nanos());
        left > self.term.as_nanos() as u64 / 2
    }

    fn is_wanted(&self, as_who: &Rc<Hello>, peer: NodeId) -> bool {
        Rc::ptr_eq(&self.me, as_who)
            && self.addresses.contains_key(&peer)
            && self.rooms.values().any(|room| room.peers.contains(peer))
    }

    fn on_linked(&mut self, peer: NodeId, speaks: Versions) {
        self.whom.linked(peer);
        let is_plain = Versions::OURS.common(speaks).is_none_or(|common| !Versions::passes_on(common));
        if is_plain {
            self.plain.insert(peer);
        }
        let keys: Vec<u32> =
            self.rooms.values().filter(|r| r.peers.contains(peer)).map(|room| room.key).collect();
        for key in keys {
            if is_plain {
                self.feed(key, Input::Plain(peer));
            }
            self.feed(key, Input::Linked(peer));
        }
    }

    fn unlink(&mut self, peer: NodeId, epoch: u64) {
        if self.links.get(peer, epoch).is_some() {
            self.lose(peer);
        }
    }

    /// A connection that may still be needed ends.
    fn lose(&mut self, peer: NodeId) {
        self.links.remove(peer);
        self.whom.look_again = true;
        self.bulk.0.wake.notify_one();
    }

    /// Everything that came in on a connection. Gives how long to wait for more, if not for ever. Nothing is taken on one that is
    /// over, so nothing more may be read on it.
    fn on_bytes(
        &mut self,
        peer: NodeId,
        epoch: u64,
        came: &mut BytesMut,
    ) -> Result<Option<Duration>, Broken> {
        let Some(link) = self.links.get(peer, epoch) else { return Err(Broken::Over) };
        let now = clock::now();
        link.session.open(now, came, &mut link.plain, &self.counts)?;
        let patience = link.session.patience(now);
        let mut plain = std::mem::take(&mut link.plain);
        let outcome = self.on_units(peer, epoch, &mut plain);
        if let Some(link) = self.links.get(peer, epoch) {
            // What is not sealed goes on where more of it is read.
            *(if link.session.is_open() { came } else { &mut link.plain }) = plain;
        }
        outcome?;
        Ok(patience)
    }

    fn on_units(&mut self, peer: NodeId, epoch: u64, buffer: &mut BytesMut) -> Result<(), Nonsense> {
        if buffer.is_empty() {
            return Ok(());
        }
        let tracer = self.tracer.clone();
        let mut pen = tracer.as_ref().map(Tracer::pen);
        let now = pen.as_ref().map_or_else(clock::now, |pen| pen.now());
        // The room that the last frame was for is out of the table while frames for it come one after the other.
        let mut open: Option<(u32, Lineage, Room)> = None;
        let mut outcome = Ok(());
        loop {
            match next_unit(buffer) {
                Ok(None) => break,
                Ok(Some(Unit::Frame(number, frame))) => {
                    if open.as_ref().is_none_or(|(of, ..)| *of != number) {
                        self.put_back(open.take());
                        let Some(link) = self.links.get(peer, epoch) else { break };
                        let Some((group, lineage)) = link.heard.get(&number).cloned() else {
                            outcome = Err(Nonsense::Undeclared);
                            break;
                        };
                        open = self.take_room(&group, &frame).map(|room| (number, lineage, room));
                    }
                    let Some((_, lineage, room)) = &mut open else { continue };
                    self.tally.frames += 1;
                    room.machine.handle(now, Input::Frame(peer, *lineage, frame));
                    self.drain(room, pen.as_deref_mut());
                }
                Ok(Some(Unit::Declare(number, group, lineage))) => {
                    self.put_back(open.take());
                    outcome = self.links.declare(peer, number, group, lineage);
                }
                Ok(Some(Unit::Retire(number))) => {
                    self.put_back(open.take());
                    if let Some(link) = self.links.get(peer, epoch) {
                        link.heard.remove(&number);
                    }
                }
                Ok(Some(Unit::Unknown)) => {
                    self.counts.unknown.inc();
                }
                Err(nonsense) => outcome = Err(nonsense),
            }
            if outcome.is_err() {
                break;
            }
        }
        self.put_back(open);
        outcome
    }

    /// A room for frames that came. One that membership has not told of yet is made for what leads to a first view.
    fn take_room(&mut self, group: &GroupName, frame: &Frame) -> Option<Room> {
        let key = match self.keys.get(group) {
            Some(key) => *key,
            None => {
                let unknown = self.rooms.values().filter(|r| r.is_idle()).take(UNKNOWN).count();
                if !matches!(frame, Frame::Sync(_) | Frame::Said(_)) || unknown == UNKNOWN {
                    return None;
                }
                self.room(group)
            }
        };
        self.rooms.remove(&key)
    }

    fn put_back(&mut self, open: Option<(u32, Lineage, Room)>) {
        if let Some((_, _, room)) = open {
            let key = room.key;
            self.rooms.insert(key, room);
            self.soil(key);
        }
    }

    fn feed(&mut self, key: u32, input: Input) {
        let Some(mut room) = self.rooms.remove(&key) else { return };
        self.step(&mut room, |machine, now| machine.handle(now, input));
        self.rooms.insert(key, room);
        self.soil(key);
    }

    /// Has the machine of a room that is out of the table do something, and carries out what it wants.
    fn step(&mut self, room: &mut Room, act: impl FnOnce(&mut Multicast, Instant)) {
        let tracer = self.tracer.clone();
        let mut pen = tracer.as_ref().map(Tracer::pen);
        let now = pen.as_ref().map_or_else(clock::now, |pen| pen.now());
        act(&mut room.machine, now);
        self.drain(room, pen.as_deref_mut());
    }

    /// Carries out what a machine wants.
    fn drain(&mut self, room: &mut Room, mut pen: Option<&mut Pen>) {
        while let Some(output) = room.machine.poll_output() {
            match output {
                Output::Send(to, frame) => self.post(room, [to], &frame),
                Output::SendAll(all, frame) => {
                    let me = self.me.node;
                    self.post(room, all.iter().copied().filter(|to| *to != me), &frame);
                }
                Output::Deliver(message) => {
                    self.tally.delivered(message.class, message.payload.len());
                    if room.mailbox.is_some() {
                        room.delivered.push(Delivered::Message(Message {
                            view: message.view,
                            from: message.from,
                            class: message.class,
                            seq: message.place,
                            payload: message.payload,
                        }));
                    }
                }
                Output::Block(_) => room.tell(Delivered::Block),
                Output::Install { view, came_along } => {
                    let installed = room.installed(&view);
                    room.current = Some(Arc::clone(&installed));
                    room.tell(Delivered::View { view: installed, came_along });
                }
                Output::Behind(node) => {
                    if !self.links.has(node) && self.whom.need(self.me.node, &room.peers, node) {
                        self.bulk.0.wake.notify_one();
                    }
                    // Among many two connect only now that there is something to be said.
                    if self.whom.is_being_met(&room.peers, node) {
                        continue;
                    }
                    tracing::warn!(group = %room.group, %node, why = room.machine.waits_for(), "a member stays behind");
                    self.counts.behind.inc();
                    lock(&self.bulk.0.told).behind.insert((room.group.clone(), node));
                    self.bulk.0.tell.notify_one();
                }
                Output::Trace(event) => {
                    if let Some(pen) = &mut pen {
                        pen.record_as(self.me.node, event);
                    }
                }
                Output::Ready(view) => room.to_tell = Some(view),
                Output::StateRequest { to, id } => {
                    self.counts.asked.inc();
                    if let Some(mailbox) = room.mailbox.clone() {
                        room.delivered.push(Delivered::StateRequest(StateRequest::new(to, id, mailbox)));
                    }
                }
                Output::StateReceived(pieces) => {
                    self.counts.states.inc();
                    room.tell(Delivered::StateReceived(pieces));
                }
                Output::StateLost(view) => {
                    self.counts.state_lost.inc();
                    tracing::error!(group = %room.group, %view, "the group's state is lost: nobody in this view has it");
                    room.tell(Delivered::StateLost { view });
                }
                Output::Given(_) | Output::Mark(_) => {}
            }
        }
    }

    fn post(&mut self, room: &Room, to: impl IntoIterator<Item = NodeId>, frame: &Frame) {
        let Some(lineage) = room.machine.lineage() else { return };
        let (me, whom) = (self.me.node, &mut self.whom);
        let mut is_news = false;
        let absent = |peer| is_news |= whom.need(me, &room.peers, peer);
        self.links.post((room.key, &room.group, lineage), to, frame, absent);
        if is_news {
            self.bulk.0.wake.notify_one();
        }
    }

    /// Everything that waited has been read: now answers are given, once for all.
    fn turn(&mut self) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(mut room) = self.rooms.remove(&key) else { continue };
            room.dirty = false;
            let again = self.turn_of(&mut room);
            self.rooms.insert(key, room);
            if again {
                self.soil(key);
            }
        }
        self.tally.tell(&self.counts);
        for (peer, error) in self.links.write_all() {
            tracing::debug!(%peer, %error, "a connection for bulk broke");
            self.lose(peer);
        }
    }

    /// True if it has more to do at once.
    fn turn_of(&mut self, room: &mut Room) -> bool {
        let tracer = self.tracer.clone();
        let mut pen = tracer.as_ref().map(Tracer::pen);
        let now = pen.as_ref().map_or_else(clock::now, |pen| pen.now());
        let lapsed = || now.as_nanos() >= self.lease.until();
        // The second time: an extension since the first look has either seen that somebody waits, or is seen now.
        let held = lapsed() && {
            self.bulk.0.held.swap(true, Ordering::AcqRel);
            lapsed()
        };
        if std::mem::replace(&mut room.held, held) != held {
            room.machine.handle(now, Input::Hold(held));
        }
        let (mut took, mut left) = (false, false);
        if let Some(mailbox) = room.mailbox.clone()
            && room.machine.installed().is_some()
            && !room.machine.is_blocked()
        {
            (took, left) = room.take_from(&mailbox, now, &mut self.tally);
        }
        if let Some(mailbox) = room.mailbox.clone() {
            room.take_wishes(&mailbox, now, held);
        }
        room.machine.handle(now, Input::Drained);
        self.drain(room, pen.as_deref_mut());
        room.pass_fences();
        drop(pen);
        if let Some(mailbox) = room.mailbox.clone() {
            if took {
                mailbox.has_room();
            }
            let full = if room.delivered.is_empty() {
                room.throttled && mailbox.is_full()
            } else {
                mailbox.deliver(&mut room.delivered)
            };
            if std::mem::replace(&mut room.throttled, full) != full {
                self.step(room, |machine, now| machine.handle(now, Input::Throttle(full)));
            }
            if room.machine.backlog() == 0 {
                mailbox.is_drained();
            }
        }
        let ready = room.mailbox.as_ref().is_none_or(|mailbox| mailbox.is_ready());
        if let Some(view) = room.to_tell.take_if(|_| ready) {
            lock(&self.bulk.0.told).installed.insert(room.group.clone(), (self.me.node, view));
            self.bulk.0.tell.notify_one();
        }
        let due = room.machine.poll_timeout();
        if due != room.due {
            if let Some(before) = room.due {
                self.timers.remove(&(before, room.key));
            }
            self.timers.extend(due.map(|at| (at, room.key)));
            room.due = due;
        }
        // Who is alone has room again already: nobody else's word will come.
        left && room.machine.has_room()
    }

    fn on_time(&mut self) {
        let now = clock::now();
        while let Some((at, key)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, key));
            let Some(mut room) = self.rooms.remove(&key) else { continue };
            room.due = None;
            self.step(&mut room, Multicast::handle_timeout);
            self.rooms.insert(key, room);
            self.soil(key);
        }
        self.turn();
    }

    /// Tells how much waits.
    fn look(&self) {
        let bytes = i64::try_from(self.links.most_waiting()).unwrap_or(i64::MAX);
        let queue = [("queue", "bulk_bytes")];
        self.counts.queue.get_or_create(&queue).set(bytes);
        self.counts.queue_limit.get_or_create(&queue).set(WAITING as i64);
    }

    /// Now and then: closes connections that nobody needs, forgets groups that nobody told of.
    fn tidy(&mut self) {
        let needed: BTreeSet<NodeId> =
            self.rooms.values().flat_map(|room| room.peers.all().iter().copied()).collect();
        self.whom.tidy(&needed);
        self.plain.retain(|peer| needed.contains(peer) || self.links.has(*peer));
        for peer in self.links.peers() {
            // Who made the connection may be ahead of us, in a view that we have not heard of.
            if !needed.contains(&peer) && self.links.is_ours(peer) {
                self.links.remove(peer);
            }
        }
        let idle: Vec<u32> = self.rooms.values().filter(|r| r.is_idle() && !r.dirty).map(|r| r.key).collect();
        for key in idle {
            self.remove_room(key);
        }
    }

    /// The node stops: nobody waits for anything any more.
    fn end(&mut self) {
        self.turn();
        for room in self.rooms.values_mut() {
            if let Some(mailbox) = room.mailbox.take() {
                mailbox.deliver(&mut room.delivered);
                mailbox.end();
            }
        }
    }

    fn is_written(&self) -> bool {
        self.links.is_written()
    }
}

#[cfg(test)]
mod tests {
    use membership_multicast::{Ack, Standing, Sync};
    use membership_types::Token;

    use super::*;
    use crate::{event::Member, metrics::Metrics, secret::Source};

    fn hub(bulk: &Bulk) -> Hub {
        let (wallet, lease) =
            (Wallet::open(Source::None).expect("nothing to be read"), NodeLease::new().expect("memory"));
        let counts = Metrics::new().count.clone();
        Hub::new(bulk.clone(), Hello::sample(0), wallet, lease, Duration::from_secs(1), None, counts)
    }

    #[test]
    fn groups_that_this_node_is_in_alone_take_no_place_of_those_that_it_hears_of() {
        let bulk = Bulk::default();
        let mut hub = hub(&bulk);
        let group = |number: usize| GroupName::new(&format!("g{number}")).expect("a name");
        for number in 0..=UNKNOWN {
            let mailbox = Mailbox::new(group(number), false, true, bulk.clone());
            hub.on_news(group(number), News { open: Some(mailbox), ..News::default() });
        }
        let sync = Frame::Sync(Box::new(Sync {
            view: ViewId::new(1),
            last: ViewId::NONE,
            prev: ViewId::NONE,
            standing: Standing::None,
            held: Vec::new(),
            seq: 0,
            sent: 0,
            trans: Vec::new(),
        }));
        let other = Frame::Ack(Ack { view: ViewId::new(1), held: Vec::new(), seq: 0, again: false });
        let heard = GroupName::new("heard").expect("a name");
        assert!(hub.take_room(&heard, &other).is_none(), "it leads to no first view");
        for number in 0..UNKNOWN {
            let name = GroupName::new(&format!("other{number}")).expect("a name");
            let room = hub.take_room(&name, &sync).expect("there is room");
            hub.rooms.insert(room.key, room);
        }
        assert!(hub.take_room(&heard, &sync).is_none(), "so many are enough");
    }

    #[test]
    fn what_the_application_began_with_is_the_state_however_often_the_node_begins_anew_before_a_view() {
        let hello = |number| Hello { node: NodeId::new(0, number), ..Hello::sample(0) };
        let lease = NodeLease::new().expect("memory");
        let bulk = Bulk::default();
        let mut hub = hub(&bulk);
        hub.begin(hello(1), lease.clone());
        let group = GroupName::new("g").expect("a name");
        let mailbox = Mailbox::new(group.clone(), true, true, bulk);
        hub.on_news(group.clone(), News { open: Some(mailbox), ..News::default() });
        let is_initial = |hub: &Hub| hub.rooms[&hub.keys[&group]].initial;
        assert!(is_initial(&hub));
        for number in [2, 3] {
            hub.begin(hello(number), lease.clone());
            assert!(is_initial(&hub), "of incarnation {number}");
        }
        let id = ViewId::new(7);
        let view = View {
            group: group.clone(),
            lineage: Lineage::new(1, 1),
            id,
            prev: ViewId::NONE,
            token: Token::new(id),
            members: vec![Member { node: hub.me.node, name: "n".into(), endpoint: None }],
        };
        let news = News { views: [(Arc::new(view), Kind::Multicast)].into(), ..News::default() };
        hub.on_news(group.clone(), news);
        hub.begin(hello(4), lease);
        assert!(!is_initial(&hub), "what it holds is that of a member that is gone");
    }
}
