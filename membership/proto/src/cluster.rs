//! The machine: one node's membership, from its start to the end of its incarnation.

use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};
use core::net::SocketAddr;

use membership_types::{
    GroupName, Instant, Lineage, Machine, NodeId, Rng, ViewId,
    trace::{Event, Group},
};

use crate::{
    acceptor::{Acceptor, Offer},
    config::Config,
    ctx::{Ctx, Dest, End, Output, WhyNot, release},
    entry::GroupWish,
    floor::{Durable, Floor},
    meeting::Forced,
    member::{Member, Parting},
    msg::{ClusterMsg, Msg, Probe, Tail},
    plant::Plant,
    quorum::{Share, share},
    seeking::{self, Found, Seeking},
    state::State,
    view::ClusterView,
    witness::{Answer, Epoch},
};

/// What comes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A message from another node.
    Message {
        /// Who sent it; the transport vouches for that.
        from: NodeId,
        /// What it says.
        msg: Msg,
    },
    /// Addresses at which nodes of the cluster may be found; replaces those given before.
    Rendezvous {
        /// The addresses.
        addresses: Vec<SocketAddr>,
        /// Every provider has answered at least once. Before that nobody founds alone: there may be a cluster.
        complete: bool,
    },
    /// Proof, from this very host, that a node is dead: its process can run no more code.
    ProvedDead {
        /// Who is dead.
        node: NodeId,
        /// What the proof is, for the trace.
        how: &'static str,
    },
    /// The application wants something of a group.
    Wish(GroupWish),
    /// Begin or end to observe a group.
    Observe {
        /// The group.
        group: GroupName,
        /// Begin?
        begin: bool,
    },
    /// A view of a group whose members multicast is installed: all that was sent before it is delivered.
    Installed {
        /// The group.
        group: GroupName,
        /// The view.
        view: ViewId,
    },
    /// A member of a group, in which this node is one, too, makes the others wait for too long.
    Behind {
        /// The group.
        group: GroupName,
        /// Who stays behind.
        node: NodeId,
    },
    /// The data directory has what [`Output::SetAside`] asked for.
    IsSetAside(Floor),
    /// What the witness said to [`Output::AskWitness`], now or long ago.
    Witness(Answer),
    /// An operator gives up this node's blocked lineage: found a new one from this node. Answered by
    /// [`Output::NotForced`], or by an end that says with what to begin again.
    ForceNew,
    /// Leave the cluster.
    LeaveCluster,
}

#[derive(Clone, Debug, PartialEq, Hash)]
enum Phase {
    Seeking(Box<Seeking>),
    Member(Box<Member>),
    Ended,
}

/// One node's membership as a pure machine; see the crate's documentation for the map.
///
/// It ends with [`Output::Ended`]; after that it ignores everything, and whoever still wants to take part makes a new
/// machine with a fresh [`NodeId`] and [`Cluster::highest`] of this one.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Cluster {
    ctx: Ctx,
    phase: Phase,
}

impl Cluster {
    /// A node that starts at `now`. `highest` is the highest view id that an earlier incarnation of this process knew
    /// of ([`ViewId::NONE`] if there was none).
    pub fn new(config: Config, now: Instant, rng: Rng, highest: ViewId) -> Self {
        let ctx = Ctx::new(config, now, rng, highest);
        let phase = Phase::Seeking(Box::new(Seeking::new(&ctx)));
        Self { ctx, phase }
    }

    /// The node has a data directory, which remembers this, if anything. Its [`NodeInfo`](crate::NodeInfo) must say so.
    #[must_use]
    pub fn with_floor(mut self, floor: Option<Floor>) -> Self {
        debug_assert!(self.ctx.config.me.keeps_floor, "others must know");
        self.ctx.durable = Some(Durable::new(floor));
        self
    }

    /// The node has the data directory of this one, which ended in the same process. What that had asked for may not be written
    /// yet: what is asked for now comes after it, and must not be below.
    #[must_use]
    pub fn with_floor_of(mut self, before: &Self) -> Self {
        self.ctx.durable.clone_from(&before.ctx.durable);
        self
    }

    /// Founds the lineage for which an operator gave up the one before. To be called first, after
    /// [`with_floor`](Self::with_floor) or [`with_floor_of`](Self::with_floor_of) only.
    #[must_use]
    pub fn with_forced(mut self, forced: Forced) -> Self {
        let member = seeking::found_forced(&mut self.ctx, forced);
        self.phase = Phase::Member(Box::new(member));
        self
    }

    /// Plants a bug in this node.
    #[cfg(feature = "plant")]
    pub fn plant(&mut self, plant: Option<Plant>) {
        self.ctx.plant = plant;
    }

    /// The highest view id that this node knows of.
    pub fn highest(&self) -> ViewId {
        self.ctx.highest
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.ctx.me()
    }

    /// The lineage that the node is in.
    pub fn lineage(&self) -> Option<Lineage> {
        self.member().map(|m| m.lineage)
    }

    /// The cluster view that the node has installed.
    pub fn view(&self) -> Option<&ClusterView> {
        self.member().map(|m| &m.view).filter(|v| v.id != ViewId::NONE)
    }

    /// The core as far as the node has been told.
    pub fn core(&self) -> &[NodeId] {
        self.member().map_or(&[], |m| &m.core)
    }

    /// The feature level that all members agreed on, if the node keeps the log.
    pub fn level(&self) -> Option<u16> {
        self.member()?.acceptor.as_ref().map(|a| a.state.level)
    }

    /// The coordinator that the node follows.
    pub fn coordinator(&self) -> Option<NodeId> {
        self.member().map(|m| m.following.node)
    }

    /// Does the node hold the coordinator's office?
    pub fn is_coordinator(&self) -> bool {
        self.member().is_some_and(|m| m.office.is_some())
    }

    /// Until when the node's lease lasts, if it holds one.
    pub fn lease_until(&self) -> Option<Instant> {
        self.member().and_then(Member::lease_deadline)
    }

    /// Until when the node as coordinator may believe that nobody has replaced it, if it is in office.
    pub fn authority(&self) -> Option<Instant> {
        let member = self.member()?;
        let (office, acceptor) = (member.office.as_ref()?, member.acceptor.as_ref()?);
        Some(office.authority(&self.ctx, acceptor, &member.deaths))
    }

    /// The highest ballot that the node promised, if it keeps the log.
    pub fn promised(&self) -> Option<membership_types::Ballot> {
        self.member()?.acceptor.as_ref().map(|a| a.promised)
    }

    /// What the node knows to be committed, if it keeps the log.
    pub fn committed(&self) -> Option<&State> {
        self.member()?.acceptor.as_ref().map(|a| &a.state)
    }

    /// What the witness calls its memory, as far as it told this node.
    pub fn epoch(&self) -> Option<Epoch> {
        self.ctx.witness.epoch
    }

    /// What the node is busy with, for those who inject faults at the worst moment.
    pub fn phase_name(&self) -> &'static str {
        match &self.phase {
            Phase::Seeking(_) => "seeking",
            Phase::Ended => "ended",
            Phase::Member(m) => m.phase_name(),
        }
    }

    fn member(&self) -> Option<&Member> {
        match &self.phase {
            Phase::Member(member) => Some(member),
            _ => None,
        }
    }

    /// Takes note of the time, and of what time alone has brought about, before anything else.
    fn wake(&mut self, now: Instant) {
        // A clock that seems to go back stands still.
        let now = now.max(self.ctx.now);
        let due = self.poll_timeout();
        self.ctx.now = now;
        if let Phase::Member(member) = &mut self.phase {
            member.notice_lapse(&mut self.ctx);
            let lease = self.ctx.lease();
            member.stall_end = member.stall_end.filter(|end| now - *end <= lease);
            let late = due.map_or(core::time::Duration::ZERO, |due| now - due);
            if late > self.ctx.lease() / 4 {
                member.stall_end = Some(now);
                if let Some(office) = &mut member.office {
                    office.stalled(now);
                }
            }
        }
    }

    /// After every input: whatever follows from it.
    fn settle(&mut self) {
        let Self { ctx, phase } = self;
        let end = match phase {
            Phase::Member(member) => member.settle(ctx),
            _ => None,
        };
        if let Some(end) = end {
            self.end(end);
        }
    }

    fn end(&mut self, end: End) {
        if let Phase::Member(member) = &mut self.phase {
            let why = if end == End::Left { WhyNot::Leave } else { WhyNot::Removed };
            member.stop_leading_all(&mut self.ctx, why);
            self.ctx.highest = self.ctx.highest.max(member.view.id);
        }
        self.phase = Phase::Ended;
        self.ctx.push(Output::Ended(end));
    }

    fn found(&mut self, found: Option<Found>) {
        match found {
            None => {}
            Some(Found::Member(member)) => self.phase = Phase::Member(member),
            Some(Found::End(end)) => self.end(end),
        }
    }

    fn on_message(&mut self, from: NodeId, msg: Msg) {
        let Self { ctx, phase } = self;
        match phase {
            Phase::Ended => {}
            Phase::Seeking(seeking) => {
                let found = match msg {
                    Msg::Probe(probe) => seeking.on_probe(ctx, *probe),
                    Msg::AskPledge { lineage, terms } => {
                        seeking.on_ask_pledge(ctx, from, lineage, &terms);
                        None
                    }
                    Msg::Pledge { lineage, info, highest, witness } => {
                        seeking.on_pledge(ctx, lineage, *info, highest, witness)
                    }
                    Msg::Refused(why) => {
                        seeking.on_refused(ctx, why);
                        None
                    }
                    Msg::In(lineage, msg) => seeking.on_cluster_msg(ctx, from, lineage, msg),
                    Msg::Join(_) => None,
                };
                self.found(found);
            }
            Phase::Member(member) => match msg {
                Msg::Probe(probe) => member.on_probe(ctx, *probe),
                Msg::Join(join) => member.on_join(ctx, from, *join),
                Msg::In(lineage, msg) if lineage == member.lineage => {
                    if let Some(end) = member.on_cluster_msg(ctx, from, msg) {
                        self.end(end);
                    }
                }
                Msg::AskPledge { lineage, terms } if ctx.planted(Plant::FoundWithStaleSlots) => {
                    let mut seeking = Seeking::new(ctx);
                    member.stop_leading_all(ctx, WhyNot::Removed);
                    seeking.on_ask_pledge(ctx, from, lineage, &terms);
                    self.phase = Phase::Seeking(Box::new(seeking));
                }
                Msg::In(..) | Msg::Refused(_) | Msg::AskPledge { .. } | Msg::Pledge { .. } => {}
            },
        }
    }

    fn force_new(&mut self) {
        let Self { ctx, phase } = self;
        let forced = match phase {
            Phase::Member(member) => member.force_new(ctx),
            _ => Err("this node is in no lineage that could be given up: it looks for a cluster".into()),
        };
        match forced {
            Ok(forced) => self.end(End::Forced(forced)),
            Err(why) => self.ctx.push(Output::NotForced(why)),
        }
    }

    fn on_wish(&mut self, wish: GroupWish) {
        let (left, joins) = match wish {
            GroupWish::Join { .. } => (false, true),
            GroupWish::Leave { .. } => (true, false),
            GroupWish::StepDown { .. } => (true, true),
        };
        self.ctx.wishes.push(wish.clone());
        if let Phase::Member(member) = &mut self.phase {
            member.on_wish(&mut self.ctx, &wish);
        }
        if left {
            self.ctx.trace(|p| Event::Leave { p, g: Group::from(wish.group()) });
        }
        if joins {
            self.ctx.trace(|p| Event::Join { p, g: Group::from(wish.group()), lin: None });
        }
    }
}

impl Machine for Cluster {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        self.wake(now);
        match input {
            Input::Message { from, msg } => self.on_message(from, msg),
            Input::Rendezvous { addresses, complete } => {
                self.ctx.asked_around = complete;
                let news = addresses.iter().any(|a| !self.ctx.rendezvous.contains(a));
                self.ctx.rendezvous = addresses;
                if let Phase::Seeking(seeking) = &mut self.phase
                    && news
                {
                    seeking.probe_now(&self.ctx);
                }
            }
            Input::ProvedDead { node, how } => {
                if let Phase::Member(member) = &mut self.phase {
                    member.on_death(&mut self.ctx, node, how, None);
                }
            }
            Input::IsSetAside(floor) => {
                self.ctx.is_set_aside(floor);
                match &mut self.phase {
                    Phase::Seeking(seeking) => seeking.ask_to_join(&mut self.ctx),
                    Phase::Member(member) => member.send_heartbeat(&mut self.ctx),
                    Phase::Ended => {}
                }
            }
            Input::Witness(answer) => {
                self.ctx.on_witness(answer);
                if let Phase::Member(member) = &mut self.phase {
                    member.check_candidacy(&mut self.ctx);
                }
            }
            Input::ForceNew => self.force_new(),
            Input::Wish(wish) => self.on_wish(wish),
            Input::Installed { group, view } => {
                if let Phase::Member(member) = &mut self.phase {
                    member.on_installed(&mut self.ctx, &group, view);
                }
            }
            Input::Behind { group, node } => {
                if let Phase::Member(member) = &mut self.phase {
                    member.on_behind(&mut self.ctx, group, node);
                }
            }
            Input::Observe { group, begin } => {
                if begin {
                    self.ctx.observes.insert(group.clone());
                } else {
                    self.ctx.observes.remove(&group);
                }
                if let Phase::Member(member) = &mut self.phase {
                    member.on_observe(&mut self.ctx, group, begin);
                }
            }
            Input::LeaveCluster => {
                let end = match &mut self.phase {
                    Phase::Member(member) => member.leave(&mut self.ctx),
                    Phase::Seeking(_) => Some(End::Left),
                    Phase::Ended => None,
                };
                if let Some(end) = end {
                    self.end(end);
                }
            }
        }
        self.run_due();
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.wake(now);
        self.run_due();
    }

    fn poll_output(&mut self) -> Option<Output> {
        let output = self.ctx.out.pop_front();
        if output.is_none() {
            release(&mut self.ctx.out);
        }
        output
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Ended => None,
            Phase::Seeking(seeking) => Some(seeking.deadline()),
            Phase::Member(member) => Some(member.next_deadline(&self.ctx)),
        }
    }
}

impl Cluster {
    /// Whatever is due by now.
    fn run_due(&mut self) {
        if let Phase::Seeking(seeking) = &mut self.phase {
            let found = seeking.on_due(&mut self.ctx);
            self.found(found);
        }
        self.settle();
    }
}

impl Member {
    /// Agreement, takeover, heartbeats: all that may follow from an input or from time. Returns how this node's life in
    /// the lineage ends, if it does.
    pub(crate) fn settle(&mut self, ctx: &mut Ctx) -> Option<End> {
        if self.parting.is_some() {
            return self.check_parting(ctx);
        }
        self.check_takeover(ctx);
        if let Some(end) = self.run_office(ctx).or_else(|| self.check_own_removal(ctx)) {
            return match end {
                End::Left | End::Removed { .. } => self.hand_over(ctx, end),
                _ => Some(end),
            };
        }
        if self.is_last_to_leave(ctx) {
            ctx.mark("the last of those who leave goes");
            return Some(End::Left);
        }
        self.claim_for_lone_half(ctx);
        self.look_at_witness(ctx);
        self.notice_want_of_lease(ctx);
        self.on_heartbeat_due(ctx);
        self.on_probe_due(ctx);
        self.check_give_up(ctx)
    }

    /// Carries the office on, and tells our own node what it decided.
    fn run_office(&mut self, ctx: &mut Ctx) -> Option<End> {
        let (Some(office), Some(acceptor)) = (&mut self.office, &mut self.acceptor) else { return None };
        if office.is_deserted(ctx, acceptor, &self.deaths) {
            // It may be in force no more; whoever is, will say so when we ask for promises.
            ctx.mark("a coordinator without a quorum steps down");
            self.office = None;
            return None;
        }
        office.tick(ctx, acceptor, &self.deaths);
        office.pump(ctx, acceptor, &self.deaths);
        let authority = office.own_lease(ctx, acceptor, &self.deaths);
        // Once is enough.
        ctx.confirmed = ctx.confirmed || office.confirms_us(ctx, acceptor);
        let ballot = office.ballot;
        // An entry that a predecessor left undecided may have been in force already: whom it removes acts no more.
        // And once that is committed nothing in the office says so any more.
        let is_out = office.is_removing(ctx.me()) || !acceptor.state.view.contains(ctx.me());
        let renew = !office.is_dissolving() && !is_out;
        let updates = core::mem::take(&mut office.to_self);
        let mut end = None;
        for update in updates {
            end = end.or(self.on_update(ctx, update));
        }
        if renew {
            self.extend_lease(ctx, authority, ballot);
        } else {
            self.stop_leading_all(ctx, WhyNot::Removed);
        }
        end
    }

    /// A coordinator that is out tells the core after it, so that the next rank need not wait, and goes once a quorum of
    /// that core knows (what few know must not go with it), or after a lease.
    fn hand_over(&mut self, ctx: &mut Ctx, end: End) -> Option<End> {
        let Some(office) = self.office.take() else { return Some(end) };
        ctx.mark("a coordinator that is out hands over");
        self.parting = Some(Parting {
            end,
            ballot: office.ballot,
            confirmed: BTreeSet::new(),
            next_word: ctx.now,
            until: ctx.now.after(ctx.lease()),
        });
        self.check_parting(ctx)
    }

    fn check_parting(&mut self, ctx: &mut Ctx) -> Option<End> {
        let (Some(parting), Some(acceptor)) = (&mut self.parting, &self.acceptor) else { return None };
        let core = &acceptor.state.core;
        let known = matches!(share(core, |id| parting.confirmed.contains(&id)), Share::Majority);
        if known || core.is_empty() || ctx.now >= parting.until {
            let vid =
                acceptor.state.removal_of(ctx.me()).map_or(acceptor.state.view.id, |(view, _)| view).get();
            ctx.trace(|p| Event::Evicted { p, vid });
            return self.parting.take().map(|p| p.end);
        }
        if ctx.now >= parting.next_word {
            parting.next_word = ctx.now.after(ctx.config.heartbeat / 2);
            let (ballot, index) = (parting.ballot, acceptor.state.index);
            for id in core.iter().filter(|id| !parting.confirmed.contains(id)) {
                if let Some(info) = acceptor.state.view.node(*id) {
                    ctx.send(info, self.lineage, ClusterMsg::Commit { ballot, index });
                }
            }
        }
        None
    }

    /// As coordinator: asks the witness, where nothing but its word is missing for half of the core to go on.
    fn claim_for_lone_half(&self, ctx: &mut Ctx) {
        let (Some(office), Some(acceptor)) = (&self.office, &self.acceptor) else { return };
        for (warrant, half) in office.lone_halves(ctx, acceptor, &self.deaths) {
            ctx.claim(self.lineage, warrant, &half);
        }
    }

    fn next_deadline(&self, ctx: &Ctx) -> Instant {
        if let Some(parting) = &self.parting {
            return parting.next_word.min(parting.until);
        }
        let office = self.office.as_ref().map_or(Instant::MAX, |office| office.deadline(ctx));
        office
            .min(self.deadline())
            .min(self.takeover_deadline(ctx))
            .min(self.next_look(ctx))
            .min(self.meeting.deadline())
            .min(self.give_up_deadline(ctx))
    }

    fn phase_name(&self) -> &'static str {
        match (&self.office, self.takeover.is_candidate()) {
            (_, true) => "candidate",
            (Some(office), _) => office.phase_name(),
            (None, _) if !self.is_installed() => "founding",
            (None, _) if self.leaving || self.parting.is_some() => "leaving",
            (None, _) => "member",
        }
    }

    /// Somebody wants to be admitted.
    fn on_join(&mut self, ctx: &mut Ctx, from: NodeId, join: crate::msg::Join) {
        let at_our_address = join.info.addr == ctx.config.me.addr && join.info.id == from;
        match (&mut self.office, &self.acceptor) {
            (Some(office), Some(acceptor)) => {
                office.on_join(ctx, acceptor, &self.deaths, from, join);
                if at_our_address && from != ctx.me() {
                    self.make_room(ctx);
                }
            }
            _ => {
                if ctx.planted(Plant::RelayJoins) && join.info.id == from && self.following.node != ctx.me() {
                    let to = Dest::Node(self.following.node, None);
                    ctx.push(Output::Send(to, Msg::Join(Box::new(join.clone()))));
                }
                let info = ctx.config.me.clone();
                let probe = Probe { info, standing: self.standing(ctx), answer: false };
                ctx.probe(Dest::Node(from, Some(join.info.addr)), probe);
            }
        }
    }

    fn on_cluster_msg(&mut self, ctx: &mut Ctx, from: NodeId, msg: ClusterMsg) -> Option<End> {
        match msg {
            ClusterMsg::Heartbeat(beat) => self.on_heartbeat(ctx, from, *beat),
            ClusterMsg::Grant(grant) if grant.ballot.node == from => self.on_grant(ctx, grant),
            ClusterMsg::Follow { ballot } => {
                if ballot > self.following && ballot.node != ctx.me() {
                    self.follow(ctx, ballot);
                    self.send_heartbeat(ctx);
                }
            }
            ClusterMsg::Ask(ask) => self.on_ask(ctx, from, *ask),
            ClusterMsg::Promise(promise) => self.on_promise(ctx, from, *promise),
            ClusterMsg::Refuse { ballot, promised, wait } => {
                self.on_refuse(ctx, from, ballot, promised, wait)
            }
            ClusterMsg::Append { ballot, index, entry, sent } if ballot.node == from => {
                self.on_append(ctx, from, ballot, index, entry, sent);
            }
            ClusterMsg::Accepted { ballot, index, echo } => {
                if let Some(office) = &mut self.office {
                    office.on_accepted(ctx, from, ballot, index, echo);
                }
            }
            ClusterMsg::Commit { ballot, index } if ballot.node == from => {
                self.on_commit(ctx, from, ballot, index);
            }
            ClusterMsg::Behind { commit } => {
                if let (Some(office), Some(acceptor)) = (&mut self.office, &self.acceptor) {
                    office.catch_up(ctx, acceptor, from, commit);
                } else if let (Some(parting), Some(acceptor)) = (&self.parting, &self.acceptor)
                    && let Some(tail) = acceptor.tail_after(commit)
                {
                    ctx.reply(from, self.lineage, ClusterMsg::CatchUp { ballot: parting.ballot, tail });
                } else if let Some(acceptor) = &self.acceptor
                    && self.takeover.is_candidate()
                    && commit == membership_types::LogIndex::ZERO
                {
                    ctx.reply(from, self.lineage, ClusterMsg::Log(Box::new(acceptor.state.clone())));
                }
            }
            ClusterMsg::Log(state) => {
                // One that never had a log has promised, accepted and granted nothing: it may begin with any prefix.
                if self.acceptor.is_none() && state.lineage == self.lineage && state.core.contains(&ctx.me())
                {
                    ctx.mark("a core member gets its first log from a candidate");
                    let lowest = membership_types::Ballot { round: 0, node: ctx.me() };
                    self.acceptor = Some(Acceptor::new(ctx, lowest, *state));
                }
            }
            ClusterMsg::CatchUp { ballot, tail } if ballot.node == from => {
                self.on_catch_up(ctx, ballot, tail)
            }
            ClusterMsg::SetAside { ballot, view } => ctx.set_aside(self.lineage, ballot, view),
            ClusterMsg::Update(update) if update.ballot.node == from => return self.on_update(ctx, *update),
            ClusterMsg::Removed { view, index, why } if index >= self.seen() => {
                // If this is news to a coordinator, another one is in force.
                self.office = None;
                return Some(self.out(ctx, view, why.as_str()));
            }
            ClusterMsg::Wishes(wishes) => {
                if let (Some(office), Some(acceptor)) = (&mut self.office, &self.acceptor) {
                    office.on_wishes(acceptor, from, wishes);
                }
            }
            ClusterMsg::Observe { group, begin } => {
                if let (Some(office), Some(acceptor)) = (&mut self.office, &self.acceptor) {
                    office.on_observe(ctx, acceptor, from, group, begin);
                }
            }
            ClusterMsg::StaysBehind { group, node } => self.judge_behind(ctx, from, &group, node),
            ClusterMsg::StepOut { group } if from == self.following.node => {
                ctx.push(Output::StepOut { group });
            }
            ClusterMsg::StepOut { .. } => {}
            ClusterMsg::Leave => match (&mut self.office, &self.acceptor) {
                (Some(office), Some(acceptor)) => office.on_leave(ctx, acceptor, &self.deaths, from),
                _ => self.hear_of_leave(ctx, from),
            },
            ClusterMsg::Stop => self.on_stop(ctx, from),
            ClusterMsg::Stopped => {
                if let Some(office) = &mut self.office {
                    office.on_stopped(from);
                }
            }
            ClusterMsg::Dead(deaths) => {
                for (node, witnesses) in deaths.iter() {
                    self.on_death(ctx, node, "attested by a member", Some(witnesses));
                }
            }
            ClusterMsg::Met { lineage, contact, last_view, supersedes } => {
                self.met(ctx, lineage, *contact, last_view, supersedes);
            }
            // Whoever speaks under another's ballot is not heard.
            ClusterMsg::Grant(_)
            | ClusterMsg::Append { .. }
            | ClusterMsg::Commit { .. }
            | ClusterMsg::CatchUp { .. }
            | ClusterMsg::Update(_)
            | ClusterMsg::Removed { .. } => {}
        }
        None
    }

    fn on_heartbeat(&mut self, ctx: &mut Ctx, from: NodeId, beat: crate::msg::Heartbeat) {
        if let (Some(office), Some(acceptor)) = (&mut self.office, &mut self.acceptor) {
            if let Err(crate::office::Deposed(ballot)) =
                office.on_heartbeat(ctx, acceptor, &self.deaths, from, beat)
            {
                ctx.mark("a coordinator hears of a higher ballot");
                self.office = None;
                self.follow(ctx, ballot);
            }
        } else if let (Some(parting), Some(acceptor)) = (&mut self.parting, &self.acceptor) {
            if beat.commit.is_some_and(|c| c >= acceptor.state.index) {
                parting.confirmed.insert(from);
            }
        } else {
            ctx.reply(from, self.lineage, ClusterMsg::Follow { ballot: self.following });
        }
    }

    /// A coordinator proposes an entry.
    fn on_append(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        ballot: membership_types::Ballot,
        index: membership_types::LogIndex,
        entry: alloc::sync::Arc<crate::entry::Entry>,
        sent: Instant,
    ) {
        let Some(acceptor) = &mut self.acceptor else { return };
        let valid = entry.core.as_ref().is_none_or(|core| !core.is_empty());
        if !valid {
            return;
        }
        let mut promised = acceptor.promised.max(self.following);
        if ctx.planted(Plant::AcceptBelow) {
            promised = ballot;
        }
        let offer = if ballot < promised {
            Offer::Refused(promised)
        } else {
            acceptor.offer(ctx, ballot, index, entry)
        };
        let commit = acceptor.state.index;
        let answer = match offer {
            Offer::Accepted => ClusterMsg::Accepted { ballot, index, echo: sent },
            Offer::Refused(promised) => {
                ClusterMsg::Refuse { ballot, promised, wait: core::time::Duration::ZERO }
            }
            Offer::Behind => {
                ctx.mark("a core member is behind");
                ClusterMsg::Behind { commit }
            }
        };
        if !matches!(answer, ClusterMsg::Refuse { .. }) {
            self.follow(ctx, ballot);
        }
        ctx.reply(from, self.lineage, answer);
    }

    pub(crate) fn on_commit(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        ballot: membership_types::Ballot,
        index: membership_types::LogIndex,
    ) {
        let follows = self.follow(ctx, ballot);
        let Some(acceptor) = &mut self.acceptor else { return };
        let next = acceptor.state.index.next();
        if index < next || index == next && follows && acceptor.commit_accepted(ctx, ballot) {
            if !acceptor.state.view.contains(from) {
                // The coordinator is out, and waits to hear that we know. We may follow its successor by now.
                let beat = Box::new(self.heartbeat(ctx));
                ctx.reply(from, self.lineage, ClusterMsg::Heartbeat(beat));
            }
            return;
        }
        if !follows {
            return;
        }
        let commit = acceptor.state.index;
        ctx.reply(from, self.lineage, ClusterMsg::Behind { commit });
    }

    /// The committed log, from a coordinator that wants us in the core, or because we were behind.
    fn on_catch_up(&mut self, ctx: &mut Ctx, ballot: membership_types::Ballot, tail: Tail) {
        if !self.follow(ctx, ballot) {
            return;
        }
        let all = matches!(tail, Tail::State(_));
        match (&mut self.acceptor, tail) {
            (Some(acceptor), tail) => {
                if !acceptor.catch_up(ctx, tail) {
                    let commit = acceptor.state.index;
                    ctx.reply(ballot.node, self.lineage, ClusterMsg::Behind { commit });
                }
            }
            (None, Tail::State(state)) if state.lineage == self.lineage => {
                self.acceptor = Some(Acceptor::new(ctx, ballot, *state));
            }
            (None, _) => {}
        }
        if all {
            self.share_views();
        }
        self.send_heartbeat(ctx);
    }
}
