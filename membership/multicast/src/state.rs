//! State transfer: who comes to a group whose members keep a common state gets it from one of them.
//!
//! A member is *whole* (what the application holds is the state after all messages that it was told) or *lacking* (it
//! waits for a state; what it is to be told waits with it). Members say which when a view closes, so everybody knows who
//! is whole in the next one: of the whole members those who come from the highest view. All others are lacking, whatever
//! they hold.
//!
//! Who lacks asks a whole member, one that does not lead where there is one. That one asks its application, in the order
//! of what it is told, and so knows after which messages the state is: so many of each sender in this view. That is the
//! *label*; who gets the state leaves out what it reflects, and is told the rest. Since views are virtually synchronous
//! the label means the same to both. A giver that is gone is replaced by another one, with a later label. One whose
//! application takes long says again and again that it is at work: so who asked knows a state that is being made from a request
//! that was lost, and the state is made once.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};

use core::time::Duration;

use bytes::Bytes;
use membership_types::{Instant, NodeId, ViewId};

use crate::{
    frame::{Frame, Standing, Transfer},
    give::Giving,
    machine::{Config, Message, Multicast, Output, View},
    plant::Plant,
};

/// After so many chunks the receiver says what has come.
const SAID_AFTER: u64 = 16;
/// What is said again and again is said so often before somebody gives up.
const SAID_TIMES: u32 = 4;
/// So many windows of messages wait for a state before senders do.
const PENDING: u64 = 16;
/// Patience is doubled so often at most.
const DOUBLED: u32 = 10;

/// A member's part in the transfer of state.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Keeper {
    pub(crate) whole: bool,
    /// The application holds what every member begins with.
    initial: bool,
    /// Members of the installed view who are whole, as far as we know.
    holders: Vec<NodeId>,
    /// Who said that it is whole in a view that we have not installed yet.
    early: BTreeMap<NodeId, ViewId>,
    /// The view from which on we have everything that is to be told.
    base: ViewId,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    /// The label of the state that we got: so many messages of that view it reflects.
    label: Option<(ViewId, Vec<u64>)>,
    asking: Option<Asking>,
    attempts: u64,
    /// So many givers in a row were at work for too long.
    slow: u32,
    /// When we said that we have no room.
    waiting_said: Option<Instant>,
    /// We lead, want to go on without the state, and wait for these to say that they have not got it either.
    keeping: Option<BTreeSet<NodeId>>,
    /// The leader of a view that we have not installed yet asks for that.
    early_lost: Option<(NodeId, ViewId)>,
    /// What others ask that come from a view that we have not installed yet.
    pub(crate) asked: BTreeMap<NodeId, (u64, ViewId, u64)>,
    pub(crate) giving: BTreeMap<NodeId, Giving>,
    /// How often we asked our application for its state: so an answer to an earlier request is known, though it is for a member that
    /// left and came back since.
    pub(crate) requests: u64,
}

/// What a lacking member is to be told once it has the state.
#[derive(Clone, Debug, PartialEq, Hash)]
enum Pending {
    /// A view; and of each member, once it is closed, how many messages were told in it.
    Install {
        view: View,
        came_along: Vec<NodeId>,
        told: Vec<u64>,
    },
    Message {
        rank: usize,
        count: u64,
        message: Message,
    },
}

/// A state that we wait for.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Asking {
    giver: NodeId,
    id: u64,
    label: Option<(ViewId, Vec<u64>)>,
    /// The label has come over the connection that there is now: the chunks that follow belong to it.
    labelled: bool,
    chunks: Vec<Bytes>,
    complete: bool,
    /// Since when nothing has come, not even that the giver is at work.
    since: Instant,
    /// Since when nothing of the state has come.
    begun: Instant,
}

impl Keeper {
    pub(crate) fn new(initial: bool) -> Self {
        Self {
            whole: false,
            initial,
            holders: Vec::new(),
            early: BTreeMap::new(),
            base: ViewId::NONE,
            pending: VecDeque::new(),
            pending_bytes: 0,
            label: None,
            asking: None,
            attempts: 0,
            slow: 0,
            waiting_said: None,
            keeping: None,
            early_lost: None,
            asked: BTreeMap::new(),
            giving: BTreeMap::new(),
            requests: 0,
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        if self.whole { Standing::Whole } else { Standing::Lacking }
    }

    /// The member is none any more: what its application holds is not followed.
    pub(crate) fn out(&mut self) {
        *self = Self { attempts: self.attempts, requests: self.requests, ..Self::new(false) };
    }

    /// Membership says a first view.
    pub(crate) fn begin(&mut self, view: &View, me: NodeId) {
        self.whole |= view.begins && (self.initial || view.rank(me) == Some(0));
        self.initial = false;
    }

    /// Does the state that we got reflect this message already?
    fn reflects(&self, rank: usize, count: u64, message: &Message) -> bool {
        let of_view = self.label.as_ref().filter(|(view, _)| self.whole && *view == message.view);
        of_view.is_some_and(|(_, taken)| taken.get(rank).is_some_and(|taken| count <= *taken))
    }

    /// Can a state of this view be taken, now or once it is installed?
    fn can_take(&self, view: ViewId, current: ViewId) -> bool {
        let of_view = |p: &Pending| matches!(p, Pending::Install { view: v, .. } if v.id == view);
        view > current || self.pending.iter().any(of_view)
    }

    /// Until when the giver may say nothing, and until when it may say that it is at work and give nothing.
    fn gives_up(&self, config: &Config) -> Option<(Instant, Instant)> {
        let asking = self.asking.as_ref().filter(|a| !a.complete)?;
        let patience = config.patience * (1 << self.slow.min(DOUBLED));
        Some((asking.since.after(config.behind_after), asking.begun.after(patience)))
    }
}

impl Multicast {
    /// Has this member the state of the group? True where there is none.
    pub fn is_whole(&self) -> bool {
        self.keeper.as_ref().is_none_or(|k| k.whole)
    }

    /// Tells the application, or has it wait for the state.
    pub(crate) fn tell_message(&mut self, rank: usize, count: u64, message: Message) {
        let forgets = self.planted(Plant::ForgetLabel);
        match &mut self.keeper {
            Some(keeper) if keeper.reflects(rank, count, &message) && !forgets => {
                self.mark("a state reflects messages that come after it");
            }
            Some(keeper) if !keeper.whole => {
                keeper.pending_bytes += message.payload.len() as u64 + 64;
                keeper.pending.push_back(Pending::Message { rank, count, message });
            }
            _ => self.push(Output::Deliver(message)),
        }
    }

    /// A view is installed: who is whole in it? `trans`: those who came along with us.
    pub(crate) fn tell_install(
        &mut self,
        view: View,
        trans: Vec<NodeId>,
        holders: Vec<NodeId>,
        said: Standing,
    ) {
        let (id, me) = (view.id, self.config.me);
        let Some(keeper) = &mut self.keeper else {
            self.push(Output::Install { view, came_along: trans });
            return self.push(Output::Ready(id));
        };
        let with_holders = holders.iter().any(|holder| trans.contains(holder));
        let was_whole = keeper.whole;
        keeper.whole &= with_holders || holders.is_empty() || holders.contains(&me);
        keeper.holders = holders;
        let early = core::mem::take(&mut keeper.early);
        keeper.holders.extend(early.iter().filter(|(n, v)| **v == id && view.contains(**n)).map(|(n, _)| *n));
        keeper.early = early.into_iter().filter(|(_, v)| *v > id).collect();
        keeper.keeping = None;
        let lost = keeper.early_lost.take_if(|(_, v)| *v <= id);
        keeper.giving.retain(|member, _| view.contains(*member));
        keeper.asked.retain(|member, _| view.contains(*member));
        if keeper.whole {
            keeper.holders.push(me);
            self.push(Output::Install { view, came_along: trans });
            self.push(Output::Ready(id));
            if said != Standing::Whole {
                self.say_whole();
            }
            self.answer_deferred();
            return self.answer_lost(lost);
        }
        keeper.label = None;
        keeper.giving.clear();
        let asked = core::mem::take(&mut keeper.asked);
        if was_whole || !with_holders {
            keeper.base = id;
            keeper.pending.clear();
            keeper.pending_bytes = 0;
            keeper.asking = None;
        }
        keeper.pending.push_back(Pending::Install { view, came_along: trans, told: Vec::new() });
        for (member, (id, ..)) in asked {
            self.push(Output::Send(member, Frame::Transfer(Transfer::Refuse { id })));
        }
        self.go_on_asking();
        self.answer_lost(lost);
    }

    /// A view is closed, and of each member so many messages were told in it.
    pub(crate) fn tell_closed(&mut self, view: ViewId, counts: Vec<u64>) {
        let pending = self.keeper.iter_mut().flat_map(|keeper| &mut keeper.pending);
        for what in pending {
            if let Pending::Install { view: of, told, .. } = what
                && of.id == view
            {
                told.clone_from(&counts);
            }
        }
    }

    fn answer_lost(&mut self, lost: Option<(NodeId, ViewId)>) {
        if let Some((leader, view)) = lost {
            self.on_lost(leader, view);
        }
    }

    /// We lack the state, in a view that is new or about which we have learned more.
    fn go_on_asking(&mut self) {
        let Some(current) = self.current.as_ref().map(|c| c.view.id) else { return };
        let Some(keeper) = &mut self.keeper else { return };
        if let Some(asking) = &keeper.asking {
            let is_there = keeper.holders.contains(&asking.giver);
            let fits = asking.label.as_ref().is_none_or(|(view, _)| keeper.can_take(*view, current));
            // What has come whole is good, whatever became of its giver.
            if fits && (is_there || asking.complete) {
                self.take_state();
                return;
            }
            if !fits {
                // Nor would be what is being made for us there.
                keeper.base = current;
            }
            self.mark("another member is asked for the state");
        }
        self.ask();
    }

    /// Asks the next member who is whole.
    fn ask(&mut self) {
        let (now, me) = (self.now, self.config.me);
        let (Some(keeper), Some(current)) = (&mut self.keeper, &self.current) else { return };
        keeper.asking = None;
        let able: Vec<NodeId> =
            keeper.holders.iter().copied().filter(|h| *h != me && current.view.contains(*h)).collect();
        let leader = current.view.members.first();
        let juniors: Vec<NodeId> = able.iter().copied().filter(|h| Some(h) != leader).collect();
        let choice = if juniors.is_empty() { able } else { juniors };
        let view = current.view.id;
        if choice.is_empty() {
            self.mark("the state is lost");
            return self.push(Output::StateLost(view));
        }
        keeper.attempts += 1;
        let rank = current.view.rank(me).unwrap_or(0) as u64;
        let giver = choice[((rank + keeper.attempts) % choice.len() as u64) as usize];
        let id = keeper.attempts;
        let base = keeper.base;
        let (label, labelled, chunks, complete) = (None, false, Vec::new(), false);
        keeper.asking = Some(Asking { giver, id, label, labelled, chunks, complete, since: now, begun: now });
        self.push(Output::Send(giver, Frame::Transfer(Transfer::Ask { id, base, from: 1 })));
    }

    fn say_whole(&mut self) {
        let Some(current) = &self.current else { return };
        let (view, all) = (current.view.id, current.view.members.clone());
        self.push(Output::SendAll(all, Frame::Transfer(Transfer::Have { view })));
    }

    /// The leader's own state is to count from now on, although nobody knows it to be the group's. First everybody says
    /// that it has not got that: somebody may have received it since the view began to close.
    pub(crate) fn keep(&mut self) {
        let me = self.config.me;
        let Some(current) = &self.current else { return };
        let leads = current.view.rank(me) == Some(0);
        let Some(keeper) = &mut self.keeper else { return };
        let is_lost = keeper.asking.is_none() && !keeper.holders.iter().any(|h| current.view.contains(*h));
        if keeper.whole || !leads || !is_lost {
            return;
        }
        let (view, all) = (current.view.id, current.view.members.clone());
        keeper.keeping = Some(all.iter().copied().filter(|m| *m != me).collect());
        self.push(Output::SendAll(all, Frame::Transfer(Transfer::Lost { view })));
        self.go_on_without();
    }

    fn go_on_without(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        if keeper.keeping.take_if(|waits| waits.is_empty()).is_some() && !keeper.whole {
            self.mark("a member goes on without the group's state");
            self.become_whole(None);
        }
    }

    /// The leader wants to go on without the state.
    fn on_lost(&mut self, leader: NodeId, view: ViewId) {
        let Some(keeper) = &mut self.keeper else { return };
        let Some(current) = self.current.as_ref().map(|c| &c.view).filter(|c| c.id >= view) else {
            // The first view of who is new may take a while, too.
            keeper.early_lost = Some((leader, view));
            return;
        };
        if current.id == view && current.rank(leader) == Some(0) {
            let answer = if keeper.whole {
                Transfer::Have { view }
            } else {
                // What may still come from elsewhere does not count any more.
                keeper.asking = None;
                Transfer::Pledge { view }
            };
            self.push(Output::Send(leader, Frame::Transfer(answer)));
        }
    }

    /// The state has come, whole. It is taken once its view is installed, and all that it reflects has come to us: of somebody who is
    /// gone it may reflect what nobody else was told, nor ever will be.
    pub(crate) fn take_state(&mut self) {
        let early = self.planted(Plant::TakeStateEarly);
        let Some(keeper) = &mut self.keeper else { return };
        let Some(asking) = keeper.asking.as_ref().filter(|a| a.complete) else { return };
        let Some((view, reflected)) = &asking.label else { return };
        let closed = keeper.pending.iter().find_map(|p| match p {
            Pending::Install { view: v, told, .. } if v.id == *view => Some(told),
            _ => None,
        });
        // Else its view is not installed here yet.
        let Some(closed) = closed else { return };
        let current = self.current.as_ref();
        let open = current.filter(|c| c.view.id == *view).map(|c| c.store.taken());
        let told = open.as_ref().unwrap_or(closed);
        let has_come = told.iter().zip(reflected).all(|(told, reflected)| told >= reflected);
        if has_come || early {
            let asking = keeper.asking.take();
            self.become_whole(asking);
        } else if open.is_none() {
            keeper.base = current.map_or(keeper.base, |c| c.view.id);
            self.mark("a state reflects what nobody was told who is left");
            self.ask();
        }
    }

    fn become_whole(&mut self, state: Option<Asking>) {
        let blocked = self.flush.is_some();
        let Some(keeper) = &mut self.keeper else { return };
        keeper.whole = true;
        keeper.asking = None;
        keeper.slow = 0;
        keeper.pending_bytes = 0;
        keeper.waiting_said = None;
        keeper.holders.push(self.config.me);
        let mut pending = core::mem::take(&mut keeper.pending);
        if let Some(Asking { label: Some((label, taken)), chunks, .. }) = state {
            keeper.label = Some((label, taken));
            let before = |p: &Pending| !matches!(p, Pending::Install { view, .. } if view.id == label);
            while pending.front().is_some_and(before) {
                pending.pop_front();
            }
            self.push(Output::StateReceived(chunks));
        }
        for what in pending {
            match what {
                Pending::Install { view, came_along, .. } => self.push(Output::Install { view, came_along }),
                Pending::Message { rank, count, message } => self.tell_message(rank, count, message),
            }
        }
        if let Some(current) = &self.current {
            let view = current.view.id;
            if blocked {
                self.mark("a state comes during a flush");
                self.push(Output::Block(view));
            }
            self.push(Output::Ready(view));
        }
        self.say_whole();
        self.answer_deferred();
    }

    // ---- frames -----------------------------------------------------------------------------------------------------

    pub(crate) fn on_transfer(&mut self, from: NodeId, transfer: Transfer) {
        let now = self.now;
        let Some(keeper) = &mut self.keeper else {
            let answer = match transfer {
                Transfer::Ask { id, .. } => Transfer::Refuse { id },
                Transfer::Lost { view } => Transfer::Pledge { view },
                _ => return,
            };
            return self.push(Output::Send(from, Frame::Transfer(answer)));
        };
        let ours = keeper.asking.as_mut().filter(|a| a.giver == from && !a.complete);
        match transfer {
            Transfer::Ask { id, base, from: first } => self.on_ask(from, id, base, first),
            Transfer::Label { id, view, taken } => {
                if let Some(asking) = ours.filter(|a| a.id == id) {
                    let label = Some((view, taken));
                    if asking.label != label {
                        // Another state than the one that had begun to come.
                        asking.chunks.clear();
                    }
                    (asking.label, asking.labelled) = (label, true);
                    asking.since = now;
                    self.go_on_asking();
                }
            }
            Transfer::Chunk { id, number, last, payload } => {
                let Some(asking) = ours.filter(|a| a.id == id && a.labelled) else { return };
                if number != asking.chunks.len() as u64 + 1 {
                    return;
                }
                asking.chunks.push(payload);
                (asking.since, asking.begun) = (now, now);
                asking.complete = last;
                if last || number.is_multiple_of(SAID_AFTER) {
                    self.push(Output::Send(from, Frame::Transfer(Transfer::Got { id, number })));
                }
                if last {
                    self.take_state();
                }
            }
            Transfer::Got { id, number } => self.on_got(from, id, number),
            Transfer::Refuse { id } => {
                if ours.is_some_and(|a| a.id == id) {
                    keeper.holders.retain(|h| *h != from);
                    self.ask();
                }
            }
            Transfer::Lost { view } => self.on_lost(from, view),
            Transfer::Pledge { view } => {
                if self.current.as_ref().is_some_and(|c| c.view.id == view)
                    && let Some(waits) = &mut keeper.keeping
                {
                    waits.remove(&from);
                    self.go_on_without();
                }
            }
            Transfer::Making { id } => {
                if let Some(asking) = ours.filter(|a| a.id == id) {
                    asking.since = now;
                }
            }
            Transfer::Waiting { view } => self.on_waiting(from, view),
            Transfer::Have { view } => {
                // It needs nothing from us any more.
                keeper.giving.remove(&from);
                let current = self.current.as_ref().map(|c| c.view.id);
                if current == Some(view) {
                    if !keeper.holders.contains(&from) {
                        keeper.holders.push(from);
                    }
                    keeper.keeping = None;
                    if !keeper.whole && keeper.asking.is_none() {
                        self.ask();
                    }
                } else if current < Some(view) {
                    keeper.early.insert(from, view);
                }
            }
        }
    }

    /// There is a new connection: what was asked and said may be lost.
    pub(crate) fn state_relinked(&mut self, peer: NodeId) {
        let Some(keeper) = &mut self.keeper else { return };
        let mut frames = Vec::new();
        if let Some(asking) = keeper.asking.as_mut().filter(|a| a.giver == peer && !a.complete) {
            // What is made there may be another state by now, under the same request: its label may be lost, and come again.
            asking.labelled = false;
            let from = asking.chunks.len() as u64 + 1;
            frames.push(Transfer::Ask { id: asking.id, base: keeper.base, from });
        }
        if let Some(current) = self.current.as_ref().filter(|c| c.view.contains(peer)) {
            let view = current.view.id;
            if keeper.whole {
                frames.push(Transfer::Have { view });
            } else if keeper.keeping.as_ref().is_some_and(|waits| waits.contains(&peer)) {
                frames.push(Transfer::Lost { view });
            }
        }
        for frame in frames {
            self.push(Output::Send(peer, Frame::Transfer(frame)));
        }
    }

    /// Nothing has come for too long: somebody else is asked.
    pub(crate) fn watch_the_giver(&mut self) {
        let now = self.now;
        let Some(keeper) = &mut self.keeper else { return };
        let Some((silent, at_work)) = keeper.gives_up(&self.config) else { return };
        if now >= at_work {
            keeper.slow += 1;
            self.mark("a giver of state is at work for too long");
            self.ask();
        } else if now >= silent {
            self.mark("a giver of state is too slow");
            self.ask();
        }
    }

    /// Do too many messages wait for a state?
    pub(crate) fn has_too_much_pending(&self) -> bool {
        self.keeper.as_ref().is_some_and(|k| k.pending_bytes > PENDING * self.config.window)
    }

    fn again_after(&self) -> Duration {
        self.config.behind_after / SAID_TIMES
    }

    /// Those who wait are told why: who asked for a state that is being made, and all when there is no room for messages before
    /// a state has come.
    pub(crate) fn say_what_is_waited_for(&mut self) {
        let (now, again, is_full) = (self.now, self.again_after(), self.has_too_much_pending());
        self.say_what_is_being_made(again);
        let Some(keeper) = &mut self.keeper else { return };
        let is_due = keeper.waiting_said.is_none_or(|at| now >= at.after(again));
        let waits = is_full && keeper.asking.is_some() && is_due;
        if waits {
            keeper.waiting_said = Some(now);
        }
        if waits && let Some(current) = &self.current {
            let (view, all) = (current.view.id, current.view.members.clone());
            self.push(Output::SendAll(all, Frame::Transfer(Transfer::Waiting { view })));
        }
    }

    /// When something is due that has to do with the state.
    pub(crate) fn state_at(&self) -> Option<Instant> {
        let keeper = self.keeper.as_ref()?;
        let again = self.again_after();
        let (silent, at_work) = keeper.gives_up(&self.config).unzip();
        let making = keeper.giving.values().filter_map(Giving::is_being_made_since);
        let making = making.map(|said| said.after(again)).min();
        let is_full = self.has_too_much_pending() && keeper.asking.is_some();
        let waiting = is_full.then(|| keeper.waiting_said.map_or(self.now, |at| at.after(again)));
        [silent, at_work, making, waiting].into_iter().flatten().min()
    }
}
