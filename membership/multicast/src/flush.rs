//! From one view to the next: everybody who comes along delivers the same messages before it installs.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    string::String,
    vec::Vec,
};

use membership_types::{
    Instant, Lineage, NodeId, ViewId,
    trace::{Event, Process},
};

use crate::{
    frame::{Ack, Cut, Frame, Order, Standing, Sync},
    machine::{Installed, Multicast, Output, View},
    order::up_to,
    plant::Plant,
    state::Keeper,
    store::{Holds, Store},
};

/// Views have no more members.
pub(crate) const MEMBERS: usize = 1 << 16;

/// A view that is to be installed.
#[derive(Clone, Hash)]
pub(crate) struct Flush {
    pub(crate) view: View,
    /// What we told everybody.
    pub(crate) own: Sync,
    /// Since when we wait.
    pub(crate) begun: Instant,
    /// When we last looked for whom.
    pub(crate) since: Instant,
    /// How much we held then.
    pub(crate) held: u64,
    /// What each member of the view told us.
    syncs: BTreeMap<NodeId, Sync>,
    decision: Option<Decision>,
    /// We told those who come along that we hold everything up to the cut.
    told: bool,
    waiting: Waiting,
}

/// Frames that cannot be taken yet. Bounded by the windows of the members, since we acknowledge nothing.
#[derive(Clone, Default, Hash)]
struct Waiting {
    /// Of the view to come and of those in which we were overtaken, from members who have installed them.
    early: VecDeque<(NodeId, Frame)>,
    /// Of the closing view: they came after we told what we hold.
    late: VecDeque<Frame>,
}

/// What a closing view waits for.
pub(crate) enum Awaited {
    /// That these say what they hold.
    Word(Vec<NodeId>),
    /// A cut, from members who have installed a view in which another one was overtaken.
    Cut,
    /// Messages that others hold, from these.
    Messages(Vec<NodeId>),
    /// That these have all messages, too.
    Others(Vec<NodeId>),
}

impl Flush {
    /// What we wait for, if there is an installed view to be closed.
    pub(crate) fn awaits(&self, me: NodeId, current: Option<&Installed>) -> Awaited {
        let missing: Vec<NodeId> = self.missing().collect();
        if !missing.is_empty() {
            return Awaited::Word(missing);
        }
        let (Some(decision), Some(current)) = (&self.decision, current) else { return Awaited::Cut };
        let (cut, store, members) = (&decision.cut, &current.store, &current.view.members);
        if store.reaches(cut) {
            let lacks = |m: &&NodeId| **m != me && !self.has_all(current, cut, **m);
            return Awaited::Others(decision.trans.iter().filter(lacks).copied().collect());
        }
        let ranks = members.iter().zip(&cut.held).enumerate();
        let mut from: BTreeSet<NodeId> = ranks
            .filter(|(rank, (_, end))| store.held(*rank) < **end)
            .filter_map(|(rank, (source, end))| {
                self.giver(decision, *source, &|s| s.held.get(rank) == Some(end))
            })
            .collect();
        if store.known() < cut.seq {
            from.extend(self.giver(decision, members[0], &|s| s.seq == cut.seq));
        }
        Awaited::Messages(from.into_iter().collect())
    }

    /// From whom those get the messages of this member who lack some: from itself, or else from the first one who has them.
    fn giver(&self, decision: &Decision, source: NodeId, has: &dyn Fn(&Sync) -> bool) -> Option<NodeId> {
        if decision.trans.contains(&source) {
            return Some(source);
        }
        decision.trans.iter().copied().find(|m| self.syncs.get(m).is_some_and(has))
    }

    /// The members who said nothing yet.
    fn missing(&self) -> impl Iterator<Item = NodeId> {
        self.view.members.iter().copied().filter(|m| !self.syncs.contains_key(m))
    }

    /// Is a member known to hold everything up to the cut?
    fn has_all(&self, current: &Installed, cut: &Holds, member: NodeId) -> bool {
        let said = self.syncs.get(&member).is_some_and(|s| covers(&s.held, s.seq, cut));
        let known = current.view.rank(member).map(|rank| current.store.known_of(rank));
        said || known.is_some_and(|k| covers(&k.held, k.seq, cut))
    }

    /// Somebody installed a view that another member was overtaken in: it brings that one along first.
    fn somebody_is_stale(&self) -> bool {
        let stale = |(member, a): (&NodeId, &Sync)| {
            let overtook = |b: &Sync| b.prev == a.last && b.last > a.last && b.trans.contains(member);
            a.last != ViewId::NONE && self.syncs.values().any(overtook)
        };
        self.syncs.iter().any(stale)
    }
}

/// How the installed view is closed.
#[derive(Clone, Debug, Hash)]
struct Decision {
    into: View,
    /// Who comes along, in the order of the new view; we are among them.
    trans: Vec<NodeId>,
    cut: Holds,
    /// How many messages each member of the new view had sent.
    sent: Vec<u64>,
    /// Who has the group's state.
    holders: Vec<NodeId>,
    /// All who come along are known to hold everything up to the cut.
    settled: bool,
}

/// A view that is closed, while others may lack something of it.
#[derive(Clone, Hash)]
pub(crate) struct Closed {
    /// What we told everybody before.
    pub(crate) own: Sync,
    /// Members of the new view who may not have installed it.
    pub(crate) waiting: BTreeSet<NodeId>,
    /// The old view and how it was closed; nothing for who came new. All who came along hold everything of it.
    old: Option<(ViewId, Decision)>,
}

impl Multicast {
    /// While a view closes: what that waits for, in words.
    pub fn waits_for(&self) -> Option<String> {
        let flush = self.flush.as_ref()?;
        let passes_on = self.passes_on(&flush.view.members);
        Some(match flush.awaits(self.config.me, self.current.as_ref()) {
            Awaited::Word(nodes) => match passes_on.filter(|first| !nodes.contains(first)) {
                None => format!("{} have not said what they hold", few(&nodes)),
                Some(first) => format!("[{first}] has not passed on what {} hold", few(&nodes)),
            },
            Awaited::Cut => "a member is brought along into a view that others have installed".into(),
            Awaited::Messages(nodes) => format!("messages are missing that {} hold", few(&nodes)),
            Awaited::Others(nodes) => format!("{} have not said that they hold everything", few(&nodes)),
        })
    }

    /// The installed view, if there is one, closes for this one.
    pub(crate) fn on_view(&mut self, view: View) {
        if self.newest_view().is_some_and(|newest| newest.id >= view.id) || !view.contains(self.config.me) {
            return;
        }
        let mut waiting = Waiting::default();
        if let Some(flush) = self.flush.take() {
            self.mark("a view changes during a flush");
            waiting = flush.waiting;
        } else if self.current.is_some() {
            let vid = view.id.get();
            self.trace(|p, g, lin| Event::Block { p, g, lin, vid });
            self.push(Output::Block(view.id));
        }
        let said = core::mem::take(&mut self.early);
        let matters = |(_, (lineage, s)): &(NodeId, (_, Sync))| *lineage == view.lineage && s.view >= view.id;
        let (now, later): (BTreeMap<_, _>, BTreeMap<_, _>) =
            said.into_iter().filter(matters).partition(|(_, (_, s))| s.view == view.id);
        self.early = later;
        let syncs = now.into_iter().filter(|(m, _)| view.contains(*m)).map(|(m, (_, s))| (m, s)).collect();
        self.begin(view, waiting, syncs);
    }

    /// Tells everybody what we hold.
    fn begin(&mut self, view: View, waiting: Waiting, mut syncs: BTreeMap<NodeId, Sync>) {
        let (last, prev, holds) = match &self.current {
            Some(c) => (c.view.id, c.prev, Holds { held: c.store.holds().held, seq: c.store.known() }),
            None => (ViewId::NONE, ViewId::NONE, Holds { held: Vec::new(), seq: 0 }),
        };
        let trans = self.current.as_ref().map_or_else(Vec::new, |c| c.trans.clone());
        let (held, seq, sent) = (holds.held, holds.seq, self.sent);
        let standing = self.keeper.as_ref().map_or(Standing::None, Keeper::standing);
        let own = Sync { view: view.id, last, prev, standing, held, seq, sent, trans };
        syncs.insert(self.config.me, own.clone());
        self.pass_no_older_on(view.id);
        self.say(&view.members, &own);
        let overtaken: Vec<(NodeId, Sync)> = syncs.iter().map(|(m, s)| (*m, s.clone())).collect();
        let (begun, since, held) = (self.now, self.now, 0);
        let flush = Flush { view, own, begun, since, held, syncs, decision: None, told: false, waiting };
        self.flush = Some(flush);
        if self.is_to_bring_along() {
            for (member, sync) in overtaken {
                self.bring_along(member, &sync);
            }
        }
        self.try_close();
    }

    pub(crate) fn on_sync(&mut self, from: NodeId, sync: Sync) {
        self.keep_word(from, &sync);
        self.hear(from, sync, true);
        self.try_close();
    }

    /// A member said something: itself, or to somebody who passed it on.
    pub(crate) fn hear(&mut self, from: NodeId, sync: Sync, itself: bool) {
        if let Some(closed) = &mut self.closed
            && sync.last >= closed.own.view
        {
            closed.waiting.remove(&from);
        }
        if let Some(flush) = self.flush.as_mut().filter(|f| f.view.id == sync.view) {
            if !flush.view.contains(from) || !fits(&sync, self.current.as_ref()) {
                return;
            }
            let before = flush.syncs.get(&from);
            let again = before == Some(&sync);
            let is_newer = before.is_none_or(|b| b.last < sync.last);
            if is_newer && !(before.is_some() && self.planted(Plant::KeepStaleSync)) {
                let flush = self.flush.as_mut().expect("just seen");
                flush.syncs.insert(from, sync.clone());
            }
            if itself || self.is_to_bring_along() {
                self.bring_along(from, &sync);
            }
            if again
                && itself
                && let Some(decision) = self.flush.as_ref().and_then(|f| f.decision.clone())
            {
                // Its connection broke: what we sent and passed on may be lost.
                self.pass_on(&decision, from, true);
            }
        } else if self.current.as_ref().is_some_and(|c| c.view.id == sync.view) {
            if itself {
                self.help_to_install(from, &sync);
            }
        } else if self.newest_view().is_none_or(|newest| newest.id < sync.view)
            && let Some(lineage) = self.lineage()
        {
            self.hear_early(from, lineage, sync);
        }
    }

    /// Keeps what a member says about a view that we have not heard of: of each member the newest.
    pub(crate) fn hear_early(&mut self, from: NodeId, lineage: Lineage, sync: Sync) {
        if self.early.len() >= MEMBERS && !self.early.contains_key(&from) {
            return;
        }
        let known = self.early.entry(from).or_insert_with(|| (lineage, sync.clone()));
        if known.0 != lineage || (known.1.view, known.1.last) < (sync.view, sync.last) {
            *known = (lineage, sync);
        }
        self.meet();
    }

    /// The view that we are about to install, or have.
    pub(crate) fn newest_view(&self) -> Option<&View> {
        self.flush.as_ref().map(|f| &f.view).or_else(|| self.current.as_ref().map(|c| &c.view))
    }

    /// A member still works on the view that we have installed: it may have lost what we said.
    fn help_to_install(&mut self, member: NodeId, sync: &Sync) {
        let Some(closed) = &self.closed else { return };
        if closed.own.view != sync.view || !closed.waiting.contains(&member) {
            return;
        }
        let own = closed.own.clone();
        self.push(Output::Send(member, Frame::Sync(Box::new(own))));
        self.bring_along(member, sync);
    }

    /// Where there are many, the first of those who have installed a view brings others along into it, and no other one: whoever
    /// is the first of all knows of none before it.
    fn is_to_bring_along(&self) -> bool {
        let (Some(flush), Some(Closed { old: Some((last, decision)), .. })) = (&self.flush, &self.closed)
        else {
            return true;
        };
        let installed = |m: &NodeId| {
            *m == self.config.me
                || flush.syncs.get(m).is_some_and(|s| s.prev == *last && s.last == decision.into.id)
        };
        !self.is_relayed(&flush.view.members)
            || flush.view.members.iter().find(|m| installed(m)) == Some(&self.config.me)
    }

    /// Whoever was to bring others along may be unable to reach them.
    pub(crate) fn bring_all_along(&mut self) {
        let syncs = self.flush.as_ref().filter(|f| self.is_relayed(&f.view.members)).map(|f| f.syncs.clone());
        for (member, sync) in syncs.into_iter().flatten() {
            self.bring_along(member, &sync);
        }
    }

    /// If the member came from the view that we have closed, and was to come along: tells it how that was closed.
    fn bring_along(&mut self, member: NodeId, sync: &Sync) {
        let Some(Closed { old: Some((last, decision)), .. }) = &self.closed else { return };
        if sync.last != *last || !decision.trans.contains(&member) || member == self.config.me {
            return;
        }
        let cut = Cut {
            view: decision.into.id,
            members: decision.into.members.to_vec(),
            last: *last,
            held: decision.cut.held.clone(),
            seq: decision.cut.seq,
            trans: decision.trans.clone(),
            sent: decision.sent.clone(),
            holders: decision.holders.clone(),
        };
        self.mark("a member is brought along into a view that others have installed");
        self.push(Output::Send(member, Frame::Cut(Box::new(cut))));
    }

    /// Somebody installed a view that we are working on, or were overtaken in.
    pub(crate) fn on_cut(&mut self, from: NodeId, cut: Cut) {
        let (Some(flush), Some(current)) = (&mut self.flush, &self.current) else { return };
        let is_ours = cut.last == current.view.id && cut.trans.contains(&self.config.me);
        let fits = cut.held.len() == current.view.members.len() && cut.sent.len() == cut.members.len();
        let leads_on = cut.view > current.view.id && cut.view <= flush.view.id;
        let has_us = cut.members.contains(&self.config.me);
        // Our own decision about this view is the same; what we wait for to carry it out may be lost, with a connection.
        let decided = flush.decision.as_ref().is_some_and(|d| d.settled || d.into.id != cut.view);
        if decided || !flush.view.contains(from) || !is_ours || !fits || !leads_on || !has_us {
            return;
        }
        let Cut { view, members, held, seq, trans, sent, holders, .. } = cut;
        let into = View { id: view, lineage: flush.view.lineage, members: members.into(), begins: false };
        // Whoever has installed it knew that all who come along hold everything: we, too.
        let cut = Holds { held, seq };
        flush.decision = Some(Decision { into, trans, cut, sent, holders, settled: true });
        self.take_late();
        self.try_close();
    }

    /// A frame of the view that we have not installed yet.
    pub(crate) fn on_early(&mut self, from: NodeId, frame: Frame) {
        let Some(flush) = &mut self.flush else { return };
        if flush.view.contains(from) {
            flush.waiting.early.push_back((from, frame));
            self.mark("a message of the next view comes before it is installed");
        }
    }

    /// A frame of the view that closes. Nothing counts that we had not told everybody that we hold, but what is up to
    /// the cut: so those who come along hold the same, whatever else reaches one of them.
    pub(crate) fn on_late(&mut self, frame: Frame) {
        let Some(flush) = &mut self.flush else { return };
        flush.waiting.late.push_back(frame);
        if flush.decision.is_some() {
            self.take_late();
            self.try_close();
        }
    }

    fn take_late(&mut self) {
        let all_places = self.planted(Plant::LatePlaces);
        let (Some(flush), Some(current)) = (&mut self.flush, &mut self.current) else { return };
        let Some(decision) = &flush.decision else { return };
        for frame in flush.waiting.late.drain(..) {
            match frame {
                Frame::Data(data) => {
                    let end = decision.cut.held.get(usize::from(data.rank)).copied().unwrap_or(0);
                    if data.number <= end {
                        current.store.insert(&data);
                    }
                }
                Frame::Order(order) => {
                    let through = if all_places { u64::MAX } else { decision.cut.seq };
                    current.store.order(order.first, &up_to(order.first, &order.runs, through));
                }
                Frame::Ack(_) | Frame::Sync(_) | Frame::Cut(_) | Frame::Transfer(_) | Frame::Said(_) => {}
            }
        }
    }

    /// Installs the view, if all that this needs is here.
    pub(crate) fn try_close(&mut self) {
        let Some(flush) = &self.flush else { return };
        if flush.decision.is_none() {
            if flush.missing().next().is_some() {
                return;
            }
            if flush.somebody_is_stale() {
                self.mark("a flush waits for a member that was overtaken");
                return;
            }
            self.decide();
        }
        if self.current.is_none() {
            return self.install();
        }
        let (Some(flush), Some(current)) = (&mut self.flush, &self.current) else { return };
        let Some(decision) = &flush.decision else { return };
        if !current.store.reaches(&decision.cut) {
            return;
        }
        let own = Holds { held: flush.own.held.clone(), seq: flush.own.seq };
        if !decision.settled && own != decision.cut && !flush.told {
            flush.told = true;
            let ack = closing_ack(current.view.id, &decision.cut);
            self.out.push_back(Output::SendAll(decision.trans.clone().into(), Frame::Ack(ack)));
        }
        let others = decision.trans.iter().filter(|m| **m != self.config.me);
        let settled =
            decision.settled || others.into_iter().all(|m| flush.has_all(current, &decision.cut, *m));
        if settled || self.planted(Plant::CloseUnsettled) {
            self.install();
        }
    }

    /// Everybody told what it holds: the cut is the most that any of those holds who come along.
    fn decide(&mut self) {
        let Some(flush) = &self.flush else { return };
        let last = flush.own.last;
        let come_along = |m: &&NodeId| last != ViewId::NONE && flush.syncs[*m].last == last;
        let trans: Vec<NodeId> = flush.view.members.iter().filter(come_along).copied().collect();
        let mut cut = Holds { held: flush.own.held.clone(), seq: flush.own.seq };
        if !self.planted(Plant::CloseAlone) {
            for sync in trans.iter().map(|m| &flush.syncs[m]) {
                cut.seq = cut.seq.max(sync.seq);
                for (most, held) in cut.held.iter_mut().zip(&sync.held) {
                    *most = (*most).max(*held);
                }
            }
        }
        let sent = flush.view.members.iter().map(|m| flush.syncs[m].sent).collect();
        // Of those who have the state, the ones that have come farthest: the others missed messages.
        let whole = || flush.view.members.iter().filter(|m| flush.syncs[*m].standing == Standing::Whole);
        let farthest = whole().map(|m| flush.syncs[m].last).max();
        let holders = whole().filter(|m| Some(flush.syncs[*m].last) == farthest).copied().collect();
        let decision = Decision { into: flush.view.clone(), trans, cut, sent, holders, settled: false };
        for member in &decision.trans {
            self.pass_on(&decision, *member, false);
        }
        if let Some(flush) = &mut self.flush {
            flush.decision = Some(decision);
        }
        self.take_late();
    }

    /// Gives a member what it lacks up to the cut of those who do not come along: the first of those who can does. What
    /// others sent before they said what they hold is under way. `again`: its connection broke.
    fn pass_on(&mut self, decision: &Decision, member: NodeId, again: bool) {
        let (Some(flush), Some(current)) = (&self.flush, &self.current) else { return };
        let (me, cut) = (self.config.me, &decision.cut);
        if member == me || decision.into.id != flush.view.id {
            return;
        }
        let Some(its) = flush.syncs.get(&member) else { return };
        let is_mine = |rank: usize, has: &dyn Fn(&Sync) -> bool| {
            let source = current.view.members[rank];
            source != me && flush.giver(decision, source, has) == Some(me)
        };
        let mut frames = Vec::new();
        for (rank, end) in cut.held.iter().copied().enumerate() {
            let after = its.held.get(rank).copied().unwrap_or(0);
            if after < end && is_mine(rank, &|s| s.held.get(rank) == Some(&end)) {
                frames.extend(current.store.fragments(rank, after, end).map(Frame::Data));
            }
        }
        if its.seq < cut.seq && is_mine(0, &|s| s.seq == cut.seq) {
            let runs = current.store.sequence().after(its.seq, cut.seq);
            frames.push(Frame::Order(Order { view: current.view.id, first: its.seq + 1, runs }));
        }
        if again && flush.told {
            frames.push(Frame::Ack(closing_ack(current.view.id, cut)));
        }
        if !frames.is_empty() {
            self.mark("messages are passed on at a closing");
        }
        for frame in frames {
            self.push(Output::Send(member, frame));
        }
    }

    /// Delivers up to the cut, and installs.
    fn install(&mut self) {
        let Some(mut flush) = self.flush.take() else { return };
        let Some(decision) = flush.decision.take() else { return };
        let into = decision.into.clone();
        let me = self.config.me;
        let is_relayed = self.is_relayed(&into.members);
        let mut prev = ViewId::NONE;
        let mut old = None;
        if let Some(mut closing) = self.current.take() {
            prev = closing.view.id;
            closing.store.truncate(&decision.cut);
            #[cfg(feature = "plant")]
            closing.store.plant(self.plant_of());
            while let Some(ready) = closing.store.closing() {
                if ready.place.is_none() && ready.class.is_sequenced() {
                    self.mark("a message without a place is delivered at a closing");
                }
                self.hand_over(&closing, ready);
            }
            self.tell_closed(prev, closing.store.taken());
            old = Some((prev, decision.clone()));
        }
        let rank = into.rank(me).expect("the view contains this member");
        let store = Store::new(into.id, into.members.len(), rank);
        self.trace(|p, g, lin| Event::Install {
            p,
            g,
            lin,
            vid: into.id.get(),
            members: into.members.iter().map(|m| Process::from(*m)).collect(),
            prev: prev.get(),
            trans: decision.trans.iter().map(|m| Process::from(*m)).collect(),
            idx: None,
            snap: false,
        });
        let said = flush.own.standing;
        let waiting = into.members.iter().copied().filter(|m| *m != me).collect();
        self.closed = Some(Closed { own: Sync { view: into.id, ..flush.own }, waiting, old });
        let overtaken = into.id != flush.view.id;
        let closes = into.id;
        let trans = decision.trans.clone();
        self.current = Some(Installed::new(into.clone(), (prev, trans), store, decision.sent));
        self.tell_install(into, decision.trans, decision.holders, said);
        if overtaken {
            // We were overtaken in it: on to the newest.
            self.mark("a member that was brought along goes on to a newer view");
            let (mine, early) = flush.waiting.early.into_iter().partition(|(_, f)| f.view() == closes);
            let mine: VecDeque<(NodeId, Frame)> = mine;
            self.begin(flush.view, Waiting { early, ..Waiting::default() }, flush.syncs);
            for (from, frame) in mine {
                self.on_frame(from, frame);
            }
            for peer in self.relinked.clone() {
                self.ask_again(peer);
            }
            return;
        }
        // Says that we have installed it. Among many nobody says so before it has something to say: until then it counts as one who
        // may need to be brought along.
        if !is_relayed {
            self.acknowledge();
        }
        self.send_waiting();
        for (from, frame) in flush.waiting.early.into_iter().filter(|(_, f)| f.view() == closes) {
            self.on_frame(from, frame);
        }
        for peer in core::mem::take(&mut self.relinked) {
            self.ask_again(peer);
        }
    }
}

/// Nodes in words, by name if they are few.
fn few(nodes: &[NodeId]) -> String {
    const NAMED: usize = 8;
    match nodes.split_at_checked(NAMED) {
        Some((named, others)) if !others.is_empty() => format!("{named:?} and {} others", others.len()),
        _ => format!("{nodes:?}"),
    }
}

/// Who comes from our view tells of as many members as that has.
fn fits(sync: &Sync, current: Option<&Installed>) -> bool {
    current.is_none_or(|c| c.view.id != sync.last || sync.held.len() == c.view.members.len())
}

fn covers(held: &[u64], seq: u64, cut: &Holds) -> bool {
    seq >= cut.seq && held.iter().zip(&cut.held).all(|(held, end)| held >= end)
}

/// Says that a member holds everything up to the cut. Its `seq` is about places alone: some may be of messages that
/// nobody holds.
fn closing_ack(view: ViewId, cut: &Holds) -> Ack {
    Ack { view, held: cut.held.clone(), seq: cut.seq, again: false }
}
