//! The machine: what comes in and goes out, and what a member does inside a view.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use core::{
    hash::{Hash, Hasher},
    time::Duration,
};

use bytes::Bytes;
use membership_types::{
    GroupName, Instant, Lineage, Machine, NodeId, ViewId,
    trace::{Digest, Event, Group, Lin, Mid, Process, lin},
};

use crate::{
    flush::{Closed, Flush},
    frame::{Ack, Class, Frame, Order, Sync},
    meet::Coming,
    pace::Pace,
    plant::Plant,
    relay::{MANY, Relay},
    slow::Lag,
    state::Keeper,
    store::{Ready, Store, cost},
};

/// Such a part of a largest window is acknowledged as soon as all has been read that has come.
const ACK_AT_ONCE: u64 = 8;
/// And such a part soon: senders with small windows wait for that.
const ACK_SOON: u64 = 32;
/// That soon.
const SOON: Duration = Duration::from_millis(1);

/// What a member is told once.
#[derive(Clone, Debug, Hash)]
pub struct Config {
    /// This member's node.
    pub me: NodeId,
    /// The group.
    pub group: GroupName,
    /// How many bytes of its own a member may have under way at most that not everybody holds. Beyond that it waits, and
    /// earlier where that would take long.
    pub window: u64,
    /// The most bytes of one fragment.
    pub fragment: usize,
    /// An acknowledgement that nobody waits for is sent after this time.
    pub ack_after: Duration,
    /// Who makes others wait for longer than this is reported as [`Output::Behind`].
    pub behind_after: Duration,
    /// Members go on for so long in the view that they have, while who is new in the next one is not there yet.
    pub meet_within: Duration,
    /// A giver of state of which nothing comes but that it is at work is waited for so long, and twice as long each time; and so
    /// long others wait for who has no room for more before its state comes.
    pub patience: Duration,
    /// In views with more members the first one passes on what the others say about the closing (usually [`MANY`]). `usize::MAX`: as
    /// older builds do, which take nothing that was passed on either.
    pub relay_above: usize,
    /// Emit records for the trace.
    pub trace: bool,
}

impl Config {
    /// The usual values for this member.
    pub fn new(me: NodeId, group: GroupName) -> Self {
        Self {
            me,
            group,
            window: 4 << 20,
            fragment: 64 << 10,
            ack_after: Duration::from_millis(20),
            behind_after: Duration::from_secs(5),
            meet_within: Duration::from_millis(500),
            patience: Duration::from_secs(60),
            relay_above: MANY,
            trace: false,
        }
    }

    /// Does it take what was passed on?
    pub(crate) fn takes_words(&self) -> bool {
        self.relay_above != usize::MAX
    }
}

/// A view of the group: its members in rank order. The first sequences.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The view's id.
    pub id: ViewId,
    /// The lineage in which the id means something.
    pub lineage: Lineage,
    /// The members in rank order.
    pub members: Box<[NodeId]>,
    /// The group begins (again) with this view.
    pub begins: bool,
}

impl View {
    pub(crate) fn rank(&self, node: NodeId) -> Option<usize> {
        self.members.iter().position(|m| *m == node)
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }
}

/// What may come in.
#[derive(Clone, Debug)]
pub enum Input {
    /// Membership says the group's next view, with this member in it. One that was overtaken may have been left out.
    View(View),
    /// Membership says that this node is no member any more. It may become one again, as a new one.
    Out,
    /// The application multicasts this. It is sent as soon as a view is installed and there is room.
    Multicast(Class, Bytes),
    /// A frame came from a node that sent it in this lineage: ids of views are unique in one lineage only.
    Frame(NodeId, Lineage, Frame),
    /// There is a new connection with this node: what was sent before may have been lost.
    Linked(NodeId),
    /// This node's build takes only what others say themselves, and passes nothing on: its connection says so.
    Plain(NodeId),
    /// All that had come was handed in: now is the time to give places and to acknowledge.
    Drained,
    /// The application takes nothing for now: others are not told that we hold more, and will wait.
    Throttle(bool),
    /// The node has no lease (any more, or it has one again): without one, nothing safe is delivered.
    Hold(bool),
    /// A part of the state that a member asked for: [`Output::StateRequest`] names it.
    State {
        /// Who asked.
        to: NodeId,
        /// Which request to the application.
        id: u64,
        /// The bytes.
        bytes: Bytes,
        /// Nothing follows.
        last: bool,
    },
    /// The application gives nothing (more) of a state that a member asked for: [`Output::StateRequest`] names it.
    NoState {
        /// Who asked.
        to: NodeId,
        /// Which request to the application.
        id: u64,
    },
    /// After [`Output::StateLost`], at the leader: what its application holds is the group's state from now on.
    Keep,
}

/// A message to the application.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The view in which it was sent and is delivered.
    pub view: ViewId,
    /// The sender.
    pub from: NodeId,
    /// Its class.
    pub class: Class,
    /// Its place in the view's sequence, from 1; `None` for class fifo, and where the view closed before it had one.
    pub place: Option<u64>,
    /// The bytes.
    pub payload: Bytes,
}

/// What goes out.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send this to a node.
    Send(NodeId, Frame),
    /// Send this to all others of these: members of the view in which it is (for [`Frame::Sync`] and [`Frame::Said`]: to which
    /// it leads).
    SendAll(Box<[NodeId]>, Frame),
    /// Deliver this.
    Deliver(Message),
    /// The view closes: nothing is sent until the next one is installed.
    Block(ViewId),
    /// The view is installed. `came_along`: those who come from the same view as we do, in rank order.
    Install {
        /// The view.
        view: View,
        /// The transitional set.
        came_along: Vec<NodeId>,
    },
    /// The application has all that belongs to this view: a leader may act in it.
    Ready(ViewId),
    /// A member needs the state as of now, after all that was delivered before this. It is given by [`Input::State`], or
    /// [`Input::NoState`] says that it is not: until then the member is told that it is being made.
    StateRequest {
        /// Who asks.
        to: NodeId,
        /// Which request this is, of all to this application.
        id: u64,
    },
    /// The receiver has taken some of the state that is given to it.
    Given(NodeId),
    /// The group's state as of some earlier message, in pieces; what follows it is delivered next.
    StateReceived(Vec<Bytes>),
    /// Nobody in this view has the group's state.
    StateLost(ViewId),
    /// This member makes the others wait for too long: it should be removed.
    Behind(NodeId),
    /// A record for the trace.
    Trace(Event),
    /// Something worth testing happened; only while tracing.
    Mark(&'static str),
}

/// A member of a group with multicast.
#[derive(Clone)]
pub struct Multicast {
    pub(crate) config: Config,
    pub(crate) now: Instant,
    pub(crate) out: VecDeque<Output>,
    /// The view that is installed.
    pub(crate) current: Option<Installed>,
    /// The newest view, while it is not installed.
    pub(crate) flush: Option<Flush>,
    /// A newer one, for which none is closed yet.
    pub(crate) coming: Option<Coming>,
    /// The view before the installed one, while others may lack something of it.
    pub(crate) closed: Option<Closed>,
    /// What members said about views that we have not heard of yet, in their lineage.
    pub(crate) early: BTreeMap<NodeId, (Lineage, Sync)>,
    /// Who has a new connection with us since the view began to close: what it sent for the next one may be lost.
    pub(crate) relinked: BTreeSet<NodeId>,
    /// Of large views of which we are the first: what we pass on.
    pub(crate) relays: BTreeMap<ViewId, Relay>,
    /// Whose build takes nothing that is passed on.
    pub(crate) plain: BTreeSet<NodeId>,
    /// What waits to be sent, and its bytes.
    waiting: VecDeque<(Class, Bytes)>,
    waiting_bytes: u64,
    /// How many messages were sent, in all views.
    pub(crate) sent: u64,
    throttled: bool,
    held: bool,
    lineage: Option<Lineage>,
    pace: Pace,
    ack_at: Option<Instant>,
    pub(crate) keeper: Option<Keeper>,
    #[cfg(feature = "plant")]
    plant: Option<Plant>,
}

/// The view that is installed.
#[derive(Clone, Hash)]
pub(crate) struct Installed {
    pub(crate) view: View,
    /// The view before it; [`ViewId::NONE`] if we came new.
    pub(crate) prev: ViewId,
    pub(crate) store: Store,
    /// Who came along from there.
    pub(crate) trans: Vec<NodeId>,
    /// How many messages each member had sent before, for the trace.
    pub(crate) sent: Vec<u64>,
    /// Whom we wait for, of all members.
    pub(crate) lagging: Vec<Option<Lag>>,
}

impl Installed {
    pub(crate) fn new(
        view: View,
        (prev, trans): (ViewId, Vec<NodeId>),
        store: Store,
        sent: Vec<u64>,
    ) -> Self {
        let lagging = alloc::vec![None; view.members.len()];
        Self { view, prev, trans, store, sent, lagging }
    }
}

/// All that the member may do later depends on: neither what never changes nor what it has put out.
impl Hash for Multicast {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { config, now, out: _, current, flush, coming, closed, early, relinked, .. } = self;
        (config.me, now, current, flush, coming, closed, early, relinked).hash(state);
        (&self.relays, &self.plain).hash(state);
        let Self { waiting, waiting_bytes, sent, throttled, held, lineage, pace, ack_at, .. } = self;
        (waiting, waiting_bytes, sent, throttled, held, lineage, pace, ack_at).hash(state);
    }
}

impl Multicast {
    /// A member that has no view yet. `sent`: how many messages this node has multicast in the group before, as an
    /// earlier member.
    pub fn new(config: Config, now: Instant, sent: u64) -> Self {
        Self {
            keeper: None,
            pace: Pace::new(config.window),
            config,
            now,
            out: VecDeque::new(),
            current: None,
            flush: None,
            coming: None,
            closed: None,
            early: BTreeMap::new(),
            relinked: BTreeSet::new(),
            relays: BTreeMap::new(),
            plain: BTreeSet::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sent,
            throttled: false,
            held: false,
            lineage: None,
            ack_at: None,
            #[cfg(feature = "plant")]
            plant: None,
        }
    }

    /// The members keep a common state, which who comes new gets from another one. `initial`: what this member's application
    /// holds is what every member begins with. To be said before the first view.
    pub fn keep_state(&mut self, initial: bool) {
        if self.current.is_none() && self.flush.is_none() {
            self.keeper = Some(Keeper::new(initial));
        }
    }

    /// How often the application was asked for its state: [`ask_after`](Multicast::ask_after) is told in a later incarnation.
    pub fn asked(&self) -> u64 {
        self.keeper.as_ref().map_or(0, |keeper| keeper.requests)
    }

    /// The same application was asked so often by the incarnation before, and may still be about to answer. To be said after
    /// [`keep_state`](Multicast::keep_state).
    pub fn ask_after(&mut self, requests: u64) {
        if let Some(keeper) = &mut self.keeper {
            keeper.requests = requests;
        }
    }

    /// Plants a bug.
    #[cfg(feature = "plant")]
    pub fn plant(&mut self, plant: Option<Plant>) {
        self.plant = plant;
    }

    #[cfg(feature = "plant")]
    pub(crate) fn planted(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    #[cfg(feature = "plant")]
    pub(crate) fn plant_of(&self) -> Option<Plant> {
        self.plant
    }

    #[cfg(not(feature = "plant"))]
    #[allow(clippy::unused_self, reason = "the same call in both builds")]
    pub(crate) fn planted(&self, _plant: Plant) -> bool {
        false
    }

    /// The view that is installed.
    pub fn installed(&self) -> Option<&View> {
        self.current.as_ref().map(|c| &c.view)
    }

    /// What this member holds of the installed view: of each rank all fragments up to a number, and all sequenced
    /// messages up to a place.
    pub fn holds(&self) -> Option<(Vec<u64>, u64)> {
        let holds = self.current.as_ref()?.store.holds();
        Some((holds.held, holds.seq))
    }

    /// Does a view close?
    pub fn is_blocked(&self) -> bool {
        self.flush.is_some()
    }

    /// The lineage in which this member has had views.
    pub fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    /// Bytes of our own that wait, or that not everybody holds: whoever multicasts should wait while that is more than
    /// the window.
    pub fn backlog(&self) -> u64 {
        self.waiting_bytes + self.current.as_ref().map_or(0, |c| c.store.unstable())
    }

    /// The installed view, the place up to which everything is held here, and the one up to which it is delivered. Whatever
    /// a sender knows to be safe is held by everybody.
    pub fn places(&self) -> Option<(ViewId, u64, u64)> {
        self.current.as_ref().map(|c| (c.view.id, c.store.seq(), c.store.delivered_place()))
    }

    /// Is there room for another message?
    pub fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many bytes may be sent before others have taken some.
    pub fn room(&self) -> u64 {
        self.pace.window().saturating_sub(self.backlog())
    }

    /// How many messages were sent, in all views.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.out.push_back(output);
    }

    pub(crate) fn trace(&mut self, event: impl FnOnce(Process, Group, Lin) -> Event) {
        if self.config.trace {
            let lineage = self.lineage.map(lin).unwrap_or_default();
            let event = event(self.config.me.into(), Group::from(&self.config.group), lineage);
            self.push(Output::Trace(event));
        }
    }

    pub(crate) fn mark(&mut self, what: &'static str) {
        if self.config.trace {
            self.push(Output::Mark(what));
        }
    }

    // ---- inside a view ----------------------------------------------------------------------------------------------

    /// Sends what waits, while there is room.
    pub(crate) fn send_waiting(&mut self) {
        if self.waiting.is_empty() || self.flush.is_some() && !self.planted(Plant::SendWhileClosing) {
            return;
        }
        let Some(mut current) = self.current.take() else { return };
        while current.store.unstable() < self.pace.window()
            && let Some((class, payload)) = self.waiting.pop_front()
        {
            self.waiting_bytes -= cost(&payload);
            self.sent += 1;
            let (vid, n) = (current.view.id.get(), self.sent);
            let h = if self.config.trace { digest(&payload) } else { Digest::default() };
            self.trace(|p, g, lin| Event::Mcast {
                mid: Mid(p.0, p.1, n),
                p,
                g,
                lin,
                vid,
                cls: class.as_str().into(),
                h,
            });
            let mut rest = payload;
            loop {
                let piece = rest.split_to(rest.len().min(self.config.fragment));
                let data = current.store.send(class, rest.is_empty(), piece);
                self.push(Output::SendAll(current.view.members.clone(), Frame::Data(data)));
                if rest.is_empty() {
                    break;
                }
            }
            self.pace.sent(self.now, current.view.id, current.store.own(), current.store.unstable());
        }
        self.current = Some(current);
    }

    /// Gives places, if we lead, and tells what we hold, if somebody may wait for that.
    fn drained(&mut self) {
        self.pass_words_on();
        self.send_waiting();
        self.give_places();
        self.deliver();
        self.take_state();
        if self.is_unwatched() {
            self.watch_the_slow();
        }
        let throttled = self.is_throttled();
        let Some(current) = &mut self.current else { return };
        if throttled || self.flush.is_some() || current.view.members.len() < 2 {
            return;
        }
        let store = &mut current.store;
        let (fresh, window) = (store.fresh(), self.config.window);
        if store.has_safe() && store.has_places() || fresh >= window / ACK_AT_ONCE {
            self.acknowledge();
        } else if store.has_news() {
            let after = if fresh >= window / ACK_SOON { SOON } else { self.config.ack_after };
            let at = self.now.after(after);
            self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Does the application take nothing, or wait for a state with too much behind it?
    fn is_throttled(&self) -> bool {
        self.throttled || self.has_too_much_pending()
    }

    fn give_places(&mut self) {
        if self.flush.is_some() {
            return;
        }
        let Some(current) = &mut self.current else { return };
        if current.view.members.first() != Some(&self.config.me) {
            return;
        }
        if let Some((first, runs)) = current.store.give_places() {
            let order = Order { view: current.view.id, first, runs };
            let all = current.view.members.clone();
            self.push(Output::SendAll(all, Frame::Order(order)));
        }
    }

    /// Tells all what we hold.
    pub(crate) fn acknowledge(&mut self) {
        self.ack_at = None;
        let Some(current) = &mut self.current else { return };
        let holds = current.store.acknowledged();
        let ack = Ack { view: current.view.id, held: holds.held, seq: holds.seq, again: false };
        let all = current.view.members.clone();
        self.push(Output::SendAll(all, Frame::Ack(ack)));
    }

    /// Delivers what may be delivered inside the view.
    pub(crate) fn deliver(&mut self) {
        if self.flush.is_some() {
            return;
        }
        let Some(current) = &mut self.current else { return };
        #[cfg(feature = "plant")]
        {
            current.store.plant(self.plant);
        }
        // Mostly there is nothing: then all stays where it is.
        let mut first = current.store.deliverable(self.held);
        if first.is_none() {
            return current.store.settle();
        }
        let Some(mut current) = self.current.take() else { return };
        while let Some(ready) = first.take().or_else(|| current.store.deliverable(self.held)) {
            let was_safe = ready.class == Class::Safe;
            let mid = self.hand_over(&current, ready);
            if was_safe {
                let vid = current.view.id.get();
                self.trace(|p, g, lin| Event::Stable { p, g, lin, vid, mid });
            }
        }
        current.store.settle();
        self.current = Some(current);
    }

    /// Hands a message to the application.
    pub(crate) fn hand_over(&mut self, installed: &Installed, ready: Ready) -> Mid {
        let from = installed.view.members[usize::from(ready.rank)];
        let n = installed.sent.get(usize::from(ready.rank)).copied().unwrap_or(0) + ready.count;
        let sender = Process::from(from);
        let mid = Mid(sender.0, sender.1, n);
        let (vid, tseq) = (installed.view.id.get(), ready.place);
        let h = if self.config.trace { digest(&ready.payload) } else { Digest::default() };
        self.trace(|p, g, lin| Event::Deliver { p, g, lin, vid, mid, h, tseq });
        let message = Message {
            view: installed.view.id,
            from,
            class: ready.class,
            place: ready.place,
            payload: ready.payload,
        };
        self.tell_message(usize::from(ready.rank), ready.count, message);
        mid
    }

    pub(crate) fn on_frame(&mut self, from: NodeId, frame: Frame) {
        match frame {
            Frame::Sync(sync) => return self.on_sync(from, *sync),
            Frame::Cut(cut) => return self.on_cut(from, *cut),
            Frame::Transfer(transfer) => return self.on_transfer(from, transfer),
            Frame::Said(said) => return self.on_said(from, *said),
            Frame::Data(_) | Frame::Order(_) | Frame::Ack(_) => {}
        }
        let view = frame.view();
        if self.current.as_ref().is_some_and(|c| c.view.id == view) {
            self.on_current(from, frame);
        } else if self.is_coming(view) {
            if !self.planted(Plant::ForgetEarlyFrames) {
                self.on_early(from, frame);
            }
        } else if self.current.as_ref().is_some_and(|c| c.view.id < view) {
            self.mark("a frame of a view that is not known yet");
        }
    }

    /// Is it a view that we have heard of, and not installed?
    fn is_coming(&self, view: ViewId) -> bool {
        let after = self.current.as_ref().is_none_or(|c| c.view.id < view);
        after && self.flush.as_ref().is_some_and(|f| view <= f.view.id)
    }

    /// A frame of the view that is installed, or that closes.
    fn on_current(&mut self, from: NodeId, frame: Frame) {
        let Some(current) = &mut self.current else { return };
        let Some(rank) = current.view.rank(from) else { return };
        let view = current.view.id;
        if let Some(closed) = &mut self.closed {
            // It has installed the view.
            closed.waiting.remove(&from);
            if closed.waiting.is_empty() {
                self.closed = None;
            }
        }
        match frame {
            Frame::Data(_) | Frame::Order(_) if self.flush.is_some() => self.on_late(frame),
            Frame::Data(data) => {
                current.store.insert(&data);
            }
            Frame::Order(order) => {
                if rank == 0 {
                    current.store.order(order.first, &order.runs);
                }
            }
            Frame::Ack(ack) => {
                current.store.acknowledge(rank, &ack);
                self.pace.held(self.now, view, current.store.stable());
                if ack.again {
                    self.say_again(from, &ack);
                }
                self.try_close();
            }
            Frame::Sync(_) | Frame::Cut(_) | Frame::Transfer(_) | Frame::Said(_) => {}
        }
    }

    /// A new connection: the peer told what it holds, and gets what is beyond that.
    fn say_again(&mut self, to: NodeId, ack: &Ack) {
        if self.planted(Plant::ForgetLost) {
            return;
        }
        let Some(current) = &self.current else { return };
        let Some(me) = current.view.rank(self.config.me) else { return };
        let Some(held) = ack.held.get(me).copied() else { return };
        let mut frames: Vec<Frame> = current.store.fragments(me, held, u64::MAX).map(Frame::Data).collect();
        if me == 0 && current.store.known() > ack.seq {
            // It may know more places than it holds messages for; what it knows already is skipped there.
            let runs = current.store.sequence().after(ack.seq, current.store.known());
            frames.push(Frame::Order(Order { view: current.view.id, first: ack.seq + 1, runs }));
        }
        if !frames.is_empty() {
            self.mark("frames are sent again after a reconnection");
        }
        for frame in frames {
            self.push(Output::Send(to, frame));
        }
    }

    /// Tells a member what we hold, so that it sends what goes beyond that.
    pub(crate) fn ask_again(&mut self, peer: NodeId) {
        if let Some(current) = self.current.as_ref().filter(|c| c.view.contains(peer)) {
            let holds = current.store.holds();
            let ack = Ack { view: current.view.id, held: holds.held, seq: holds.seq, again: true };
            self.push(Output::Send(peer, Frame::Ack(ack)));
        }
    }

    fn on_linked(&mut self, peer: NodeId) {
        self.state_relinked(peer);
        self.pass_all_on(peer);
        self.ask_again(peer);
        if self.flush.is_some() {
            self.relinked.insert(peer);
        }
        if let Some(flush) = &self.flush
            && flush.view.contains(peer)
        {
            let own = flush.own.clone();
            self.push(Output::Send(peer, Frame::Sync(Box::new(own))));
        }
    }
}

impl Machine for Multicast {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        self.now = now;
        match input {
            Input::View(view) => {
                self.lineage = Some(view.lineage);
                if let Some(keeper) =
                    self.keeper.as_mut().filter(|_| self.current.is_none() && self.flush.is_none())
                {
                    keeper.begin(&view, self.config.me);
                }
                self.relay(&view);
                self.hear_of(view);
            }
            Input::Out => {
                self.relays.clear();
                self.current = None;
                self.flush = None;
                self.coming = None;
                self.closed = None;
                self.ack_at = None;
                if let Some(keeper) = &mut self.keeper {
                    keeper.out();
                }
            }
            Input::Multicast(class, payload) => {
                self.waiting_bytes += cost(&payload);
                self.waiting.push_back((class, payload));
            }
            Input::Frame(from, lineage, frame) => match frame {
                // A cluster may know that we are in it before we do.
                Frame::Sync(sync) if self.lineage.is_none() => self.hear_early(from, lineage, *sync),
                Frame::Said(said) if self.lineage.is_none() => self.hear_all_early(lineage, *said),
                frame if self.lineage == Some(lineage) => self.on_frame(from, frame),
                _ => self.mark("a frame of another lineage"),
            },
            Input::Linked(peer) => self.on_linked(peer),
            Input::Plain(peer) => self.on_plain(peer),
            Input::Drained => self.drained(),
            Input::Hold(on) => {
                self.held = on;
                if !on {
                    self.drained();
                }
            }
            Input::State { to, id, bytes, last } => self.on_state(to, id, bytes, last),
            Input::NoState { to, id } => self.on_no_state(to, id),
            Input::Keep => self.keep(),
            Input::Throttle(on) => {
                self.throttled = on;
                if !on {
                    self.drained();
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_at = None;
            if !self.is_throttled() && self.flush.is_none() {
                self.acknowledge();
            }
        }
        self.meet();
        self.watch_the_slow();
        self.watch_the_giver();
        self.say_what_is_waited_for();
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [self.ack_at, self.watch_at(), self.meet_at(), self.state_at()].into_iter().flatten().min()
    }
}

/// FNV-1a of a payload, for the trace.
fn digest(payload: &[u8]) -> Digest {
    let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Digest::Own(hash)
}
