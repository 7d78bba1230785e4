//! A node without a view: it looks for a cluster, or founds one.
//!
//! Rendezvous gives addresses; [`Probe`]s say who listens there and where it stands. An active cluster is joined. If
//! there is none:
//!
//! * `alone-after(d)`: once some seeker has looked for d, the smallest node id among the seekers that hear each other
//!   founds, and the others join it.
//! * `expect(n)`: founders hold numbered slots. The holder of the lowest slot asks the others to pledge themselves to
//!   the lineage that it is about to found; a majority of all slots must, each fresh (in no view, and pledged to nobody
//!   else). Any two majorities share a slot, so a second lineage can only come from restarted processes, and those
//!   answer for their slot only when they are older than any authority that their predecessors supported.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::{net::SocketAddr, time::Duration};

use membership_types::{
    Ballot, Instant, Lineage, LogIndex, NodeId, ViewId,
    trace::{Event, Group},
};

use crate::{
    acceptor::Acceptor,
    config::Bootstrap,
    ctx::{Ctx, Dest, End, Output},
    entry::{Command, Entry},
    meeting::Forced,
    member::Member,
    msg::{ClusterMsg, Heartbeat, Join, Msg, Probe, Standing, Tail},
    office::{Office, Won},
    plant::Plant,
    quorum::Deaths,
    spread,
    state::{State, Terms},
    view::NodeInfo,
    witness,
};

/// How many nodes a seeker probes in one round. Where there are more they take turns: else n processes that start at once
/// would send n^2 probes in every round, and hear nothing for noise.
const PROBES_A_ROUND: usize = 16;

/// The same in the first round of one that never founds: one answer is enough for it, and many keep it, and those who give them,
/// from what it came for. And of one whom those that it could leave the founding to do not hear.
const PROBES_AT_FIRST: usize = 4;

/// The same once it hears, and is heard by, somebody whom it may leave the founding to, or a member; and its rounds come half as
/// often.
const PROBES_WHEN_GUIDED: usize = 2;

/// So many of those are probed in every round, besides: the first of them may not hear us.
const GUIDES: usize = 4;

/// Another node that we heard of late.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Heard {
    info: NodeInfo,
    at: Instant,
    /// When it last answered us: who only speaks, and hears nothing, is no cluster to join.
    answered_at: Option<Instant>,
    standing: Standing,
}

impl Heard {
    fn hears_us(&self, ctx: &Ctx) -> bool {
        self.answered_at.is_some_and(|at| Seeking::is_recent(ctx, at))
    }

    fn is_active_and_hears_us(&self, ctx: &Ctx) -> bool {
        matches!(self.standing, Standing::Member { active: true, .. }) && self.hears_us(ctx)
    }
}

/// A pledge to found a lineage together.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Pledged {
    lineage: Lineage,
    to: NodeId,
    at: Instant,
}

/// Our own attempt to found a lineage.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Founding {
    lineage: Lineage,
    since: Instant,
    pledges: BTreeMap<NodeId, NodeInfo>,
    highest: ViewId,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Seeking {
    heard: BTreeMap<NodeId, Heard>,
    next_probe: Instant,
    pledged: Option<Pledged>,
    founding: Option<Founding>,
    /// Since when a majority of the slots has been heard.
    majority_since: Option<Instant>,
    last_refusal: Option<String>,
    /// The highest id that other seekers know of: a lineage that is founded here begins above.
    floors: ViewId,
    /// Whom we have probed, where that takes more than one round.
    asked: BTreeSet<SocketAddr>,
    /// Where the next turn of probes begins.
    turn: usize,
    /// All addresses were probed before this round.
    asked_all: bool,
    /// Who was asked to admit us since this round began: each answer to a probe may name the same coordinator.
    joining: BTreeSet<NodeId>,
}

/// What comes out of seeking.
pub(crate) enum Found {
    /// A lineage to be a member of.
    Member(Box<Member>),
    /// The end of this incarnation.
    End(End),
}

impl Seeking {
    pub(crate) fn new(ctx: &Ctx) -> Self {
        Self {
            heard: BTreeMap::new(),
            next_probe: ctx.now,
            pledged: None,
            founding: None,
            majority_since: None,
            last_refusal: None,
            floors: ViewId::NONE,
            asked: BTreeSet::new(),
            turn: 0,
            asked_all: true,
            joining: BTreeSet::new(),
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next_probe
    }

    /// There are new addresses: no need to wait for the next round.
    pub(crate) fn probe_now(&mut self, ctx: &Ctx) {
        self.next_probe = ctx.now;
    }

    fn is_recent(ctx: &Ctx, at: Instant) -> bool {
        ctx.now - at <= ctx.config.heartbeat * 5
    }

    fn recent(&self, ctx: &Ctx) -> impl Iterator<Item = &Heard> {
        let (now, window) = (ctx.now, ctx.config.heartbeat * 5);
        self.heard.values().filter(move |h| now - h.at <= window)
    }

    fn standing(&self, ctx: &Ctx, to: Dest) -> Standing {
        let heard = || self.recent(ctx).map(|h| &h.info);
        // Whoever gets it looks for itself only: all that are heard are many, where many probe each other. But nobody may have
        // said that this is its address, and be heard.
        let hears: Vec<NodeId> = match to {
            Dest::Node(id, _) => heard().filter(|info| info.id == id).map(|info| info.id).collect(),
            Dest::Addr(addr) if heard().any(|info| info.addr == addr) => {
                heard().filter(|info| info.addr == addr).map(|info| info.id).collect()
            }
            Dest::Addr(_) => heard().map(|info| info.id).collect(),
        };
        Standing::Seeking {
            waited: ctx.now - ctx.started,
            hears,
            may_found_alone: ctx.config.me.eligible
                && ctx.asked_around
                && matches!(ctx.config.bootstrap, Bootstrap::AloneAfter(_)),
            highest: ctx.highest_or_floor().max(self.floors),
        }
    }

    fn probe(&self, ctx: &mut Ctx, to: Dest, answer: bool) {
        let probe = Probe { info: ctx.config.me.clone(), standing: self.standing(ctx, to), answer };
        ctx.probe(to, probe);
    }

    /// The regular round of a seeker.
    pub(crate) fn on_due(&mut self, ctx: &mut Ctx) -> Option<Found> {
        if ctx.now < self.next_probe {
            return None;
        }
        let own = ctx.config.me.addr;
        let addresses: Vec<SocketAddr> = ctx.rendezvous.iter().copied().filter(|a| *a != own).collect();
        let mut targets: Vec<(SocketAddr, Dest)> = addresses.iter().map(|a| (*a, Dest::Addr(*a))).collect();
        let given: BTreeSet<SocketAddr> = addresses.iter().copied().collect();
        let others = self.recent(ctx).filter(|h| !given.contains(&h.info.addr));
        targets.extend(others.map(|h| (h.info.addr, Dest::Node(h.info.id, Some(h.info.addr)))));
        let begins = self.asked.is_empty() && self.heard.is_empty();
        let few = ctx.config.bootstrap == Bootstrap::Join && begins && targets.len() > PROBES_AT_FIRST;
        self.next_probe = ctx.now.after(ctx.config.heartbeat / if few { 4 } else { 1 });
        if few {
            // Not the same ones for all who come.
            let first = ctx.me().inc() % targets.len() as u64;
            targets.rotate_left(first as usize);
            self.take_turns(ctx, &mut targets, PROBES_AT_FIRST);
        } else if targets.len() > PROBES_A_ROUND {
            if self.take_turns(ctx, &mut targets, PROBES_A_ROUND) {
                self.next_probe = ctx.now.after(ctx.config.heartbeat * 2);
            }
        } else {
            self.asked_all = true;
        }
        for (_, dest) in targets {
            self.probe(ctx, dest, true);
        }
        self.heard.retain(|_, h| Self::is_recent(ctx, h.at));
        if self.pledged.as_ref().is_some_and(|p| ctx.now - p.at > ctx.lease()) {
            self.pledged = None;
        }
        self.ask_to_join(ctx);
        self.try_to_found(ctx)
    }

    /// Leaves those to be probed whose turn it is: who may found in our stead or has a cluster, then who was never asked,
    /// then the others one after the other. True if there is anybody of the first kind who hears us.
    fn take_turns(&mut self, ctx: &Ctx, targets: &mut Vec<(SocketAddr, Dest)>, most: usize) -> bool {
        let by_slot = matches!(ctx.config.bootstrap, Bootstrap::Expect(_));
        let rank = |info: &NodeInfo| (if by_slot { info.slot.unwrap_or(u16::MAX) } else { 0 }, info.id);
        let me = rank(&ctx.config.me);
        let mut guides: Vec<_> = self
            .recent(ctx)
            .filter_map(|h| match &h.standing {
                Standing::Member { active, .. } => {
                    Some(((!active, 0, h.info.id), h.info.addr, h.hears_us(ctx)))
                }
                Standing::Seeking { may_found_alone, .. } => {
                    let (slot, id) = rank(&h.info);
                    let may_found = if by_slot { h.info.slot.is_some() } else { *may_found_alone };
                    (may_found && (slot, id) < me).then_some(((true, slot, id), h.info.addr, h.hears_us(ctx)))
                }
            })
            .collect();
        guides.sort_unstable();
        guides.truncate(GUIDES);
        let is_guide = |addr: &SocketAddr| guides.iter().any(|(_, guide, _)| guide == addr);
        let is_guided = guides.iter().any(|(_, _, hears_us)| *hears_us);
        let count = match (guides.is_empty(), is_guided) {
            (true, _) => most,
            (false, false) => PROBES_AT_FIRST,
            (false, true) => PROBES_WHEN_GUIDED,
        };
        self.asked_all = targets.iter().all(|(addr, _)| self.asked.contains(addr));
        let all: BTreeSet<SocketAddr> = targets.iter().map(|(addr, _)| *addr).collect();
        self.asked.retain(|addr| all.contains(addr));
        let (mut now, others): (Vec<_>, Vec<_>) = targets.drain(..).partition(|(addr, _)| is_guide(addr));
        let (known, fresh): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(addr, _)| self.asked.contains(addr));
        let begin = self.turn.checked_rem(known.len()).unwrap_or(0);
        let in_turn = known[begin..].iter().chain(&known[..begin]);
        now.extend(fresh.iter().chain(in_turn).take(count).copied());
        self.turn = begin + count.saturating_sub(fresh.len());
        self.asked.extend(now.iter().map(|(addr, _)| *addr));
        *targets = now;
        is_guided
    }

    /// Another node says where it stands.
    pub(crate) fn on_probe(&mut self, ctx: &mut Ctx, probe: Probe) -> Option<Found> {
        if probe.info.id == ctx.me() {
            return None;
        }
        if probe.answer {
            self.probe(ctx, Dest::Node(probe.info.id, Some(probe.info.addr)), false);
        }
        let first = !self.heard.contains_key(&probe.info.id);
        let member = matches!(probe.standing, Standing::Member { .. });
        if let Standing::Seeking { highest, .. } = &probe.standing {
            self.floors = self.floors.max(*highest);
        }
        let id = probe.info.id;
        let before = self.heard.get(&id).and_then(|h| h.answered_at);
        let answered_at = if probe.answer { before } else { Some(ctx.now) };
        let first_answer = before.is_none() && answered_at.is_some();
        self.heard.insert(id, Heard { info: probe.info, at: ctx.now, answered_at, standing: probe.standing });
        if (first || first_answer) && member {
            self.ask_others_to_join(ctx);
        }
        if first { self.try_to_found(ctx) } else { None }
    }

    /// Asks the coordinators that we heard of to admit us: those of active lineages that hear us, else all. (Who is blocked may
    /// need just this node, and those who are active may not admit it: they are preferred for a while only.)
    pub(crate) fn ask_to_join(&mut self, ctx: &mut Ctx) {
        self.joining.clear();
        self.ask_others_to_join(ctx);
    }

    /// The same, as far as they were not asked in this round.
    fn ask_others_to_join(&mut self, ctx: &mut Ctx) {
        if self.pledged.is_some() {
            return;
        }
        let mut to: BTreeMap<NodeId, (NodeInfo, Lineage)> = BTreeMap::new();
        let prefers = ctx.now - ctx.started < ctx.config.give_up;
        let some_active = prefers && self.recent(ctx).any(|heard| heard.is_active_and_hears_us(ctx));
        for heard in self.recent(ctx) {
            if let Standing::Member { lineage, coordinator, active, .. } = &heard.standing
                && (*active || !some_active)
            {
                let relayed = ctx.planted(Plant::RelayJoins);
                let info = coordinator.as_ref().filter(|_| !relayed).unwrap_or(&heard.info);
                to.insert(info.id, (info.clone(), *lineage));
            }
        }
        for (info, lineage) in to.into_values() {
            if !self.joining.insert(info.id) {
                continue;
            }
            let join = Join {
                info: ctx.config.me.clone(),
                lease: ctx.lease(),
                highest: ctx.highest.max(ctx.foreign_floor(lineage)),
                floor: ctx.durable.as_ref().and_then(|durable| durable.synced),
                wishes: ctx.wishes.first(),
                observes: ctx.observes.iter().cloned().collect(),
                level: ctx.config.level,
                witness: ctx.config.terms.witness,
            };
            ctx.push(Output::Send(Dest::Node(info.id, Some(info.addr)), Msg::Join(Box::new(join))));
        }
    }

    fn try_to_found(&mut self, ctx: &mut Ctx) -> Option<Found> {
        if ctx.now < ctx.looks_until {
            return None;
        }
        match ctx.config.bootstrap {
            Bootstrap::Join => None,
            Bootstrap::AloneAfter(after) => self.found_alone(ctx, after),
            Bootstrap::Expect(slots) => self.found_with_slots(ctx, slots),
        }
    }

    fn found_alone(&mut self, ctx: &mut Ctx, after: Duration) -> Option<Found> {
        if !ctx.config.me.eligible || !ctx.asked_around || !self.asked_all {
            return None;
        }
        let mut longest = ctx.now - ctx.started;
        // A blocked cluster may yet recover, but it is not waited for for ever.
        let patience_over = longest >= after + ctx.lease() * 3;
        for heard in self.recent(ctx) {
            match &heard.standing {
                Standing::Member { active, .. } => {
                    if heard.hears_us(ctx) && (*active || !patience_over) {
                        return None;
                    }
                }
                Standing::Seeking { waited, hears, may_found_alone: true, .. } => {
                    let mutual = hears.contains(&ctx.me());
                    if mutual && heard.info.id < ctx.me() {
                        return None;
                    }
                    longest = longest.max(*waited);
                }
                Standing::Seeking { .. } => {}
            }
        }
        if longest < after {
            return None;
        }
        ctx.mark("a node founds alone");
        let me = ctx.config.me.clone();
        let highest = ctx.highest_or_floor().max(self.floors);
        let lineage = new_lineage(ctx, highest);
        Some(Found::Member(Box::new(found(ctx, lineage, [me].into(), highest))))
    }

    fn found_with_slots(&mut self, ctx: &mut Ctx, slots: u16) -> Option<Found> {
        let own = ctx.config.me.slot?;
        let active = |h: &Heard| h.is_active_and_hears_us(ctx);
        let pledged_elsewhere = self.pledged.as_ref().is_some_and(|p| p.to != ctx.me());
        if self.recent(ctx).any(active) && !ctx.planted(Plant::FoundWithStaleSlots) || pledged_elsewhere {
            self.founding = None;
            return None;
        }
        // Whoever does not hear us can neither found with us nor be waited for.
        let fresh = |h: &&Heard| {
            matches!(&h.standing, Standing::Seeking { hears, .. } if hears.contains(&ctx.me()))
                || ctx.planted(Plant::FoundWithStaleSlots)
        };
        let mut holders: Vec<(u16, NodeInfo)> =
            self.recent(ctx).filter(fresh).filter_map(|h| Some((h.info.slot?, h.info.clone()))).collect();
        holders.push((own, ctx.config.me.clone()));
        holders.sort_by_key(|(slot, info)| (*slot, info.id));
        holders.dedup_by_key(|(slot, _)| *slot);
        let majority = usize::from(slots) / 2 + 1;
        if holders.len() < majority || holders.first().is_some_and(|(slot, _)| *slot < own) {
            self.majority_since = None;
            self.founding = None;
            return None;
        }
        let since = *self.majority_since.get_or_insert(ctx.now);
        // The rest may be about to come: one view for all is worth a little patience.
        let complete = holders.len() == usize::from(slots);
        if !complete && ctx.now - since < ctx.lease() / 2 {
            return None;
        }
        if self.founding.as_ref().is_none_or(|f| ctx.now - f.since > ctx.lease()) {
            let highest = ctx.highest_or_floor().max(self.floors);
            let lineage = new_lineage(ctx, highest);
            let me = ctx.config.me.clone();
            self.pledged = Some(Pledged { lineage, to: me.id, at: ctx.now });
            let pledges = BTreeMap::from([(me.id, me)]);
            self.founding = Some(Founding { lineage, since: ctx.now, pledges, highest });
        }
        let (lineage, terms) = (self.founding.as_ref()?.lineage, ctx.config.terms.clone());
        for (_, info) in holders {
            if info.id != ctx.me() {
                let to = Dest::Node(info.id, Some(info.addr));
                ctx.push(Output::Send(to, Msg::AskPledge { lineage, terms: terms.clone() }));
            }
        }
        self.check_pledges(ctx, slots)
    }

    /// A founder asks us to found a lineage with it.
    pub(crate) fn on_ask_pledge(&mut self, ctx: &mut Ctx, from: NodeId, lineage: Lineage, terms: &Terms) {
        let free = self.pledged.as_ref().is_none_or(|p| p.lineage == lineage);
        // Whether all founders have data directories is known when all have pledged themselves.
        let durable = terms.durable;
        let same = *terms == Terms { durable, ..ctx.config.terms.clone() };
        if let Some(refusal) = witness::disagreement(terms.witness, ctx.config.terms.witness) {
            ctx.push(Output::Send(Dest::Node(from, None), Msg::Refused(refusal.into())));
        }
        if ctx.config.me.slot.is_none() || !free || !same {
            return;
        }
        self.pledged = Some(Pledged { lineage, to: from, at: ctx.now });
        self.founding = None;
        let pledge = Msg::Pledge {
            lineage,
            info: Box::new(ctx.config.me.clone()),
            highest: ctx.highest_or_floor().max(self.floors),
            witness: terms.witness,
        };
        ctx.push(Output::Send(Dest::Node(from, None), pledge));
    }

    /// A slot holder pledges itself to us.
    pub(crate) fn on_pledge(
        &mut self,
        ctx: &mut Ctx,
        lineage: Lineage,
        info: NodeInfo,
        highest: ViewId,
        witness: bool,
    ) -> Option<Found> {
        let Bootstrap::Expect(slots) = ctx.config.bootstrap else { return None };
        if witness != ctx.config.terms.witness {
            return None; // Of a build that does not know what it agreed to.
        }
        let founding = self.founding.as_mut().filter(|f| f.lineage == lineage)?;
        founding.highest = founding.highest.max(highest);
        founding.pledges.insert(info.id, info);
        self.check_pledges(ctx, slots)
    }

    fn check_pledges(&mut self, ctx: &mut Ctx, slots: u16) -> Option<Found> {
        let founding = self.founding.as_ref()?;
        let mut founders: Vec<NodeInfo> = founding.pledges.values().cloned().collect();
        founders.sort_by_key(|info| info.slot);
        founders.dedup_by_key(|info| info.slot);
        let enough = founders.len() > usize::from(slots) / 2;
        let patient = ctx.now - founding.since < ctx.config.heartbeat * 2;
        if !enough || patient && founders.len() < usize::from(slots) {
            return None;
        }
        let (lineage, highest) = (founding.lineage, founding.highest);
        ctx.mark(if founders.len() < usize::from(slots) {
            "a majority of the slots founds"
        } else {
            "all slots found together"
        });
        Some(Found::Member(Box::new(found(ctx, lineage, founders, highest))))
    }

    /// A message from within a lineage reaches us while we have no view: a welcome, the founding, or our removal.
    pub(crate) fn on_cluster_msg(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        lineage: Lineage,
        msg: ClusterMsg,
    ) -> Option<Found> {
        let pledged_to = self.pledged.as_ref().map(|p| p.lineage);
        let elsewhere = pledged_to.is_some_and(|l| l != lineage);
        match msg {
            ClusterMsg::Update(update) if !elsewhere => {
                let full = update.full.as_ref()?;
                if !full.view.contains(ctx.me()) {
                    return None;
                }
                ctx.config.terms = full.terms.clone();
                let mut member = Member::new(ctx, lineage, update.ballot);
                match member.on_update(ctx, *update) {
                    Some(end) => Some(Found::End(end)),
                    None => Some(Found::Member(Box::new(member))),
                }
            }
            ClusterMsg::CatchUp { ballot, tail: Tail::State(state) }
                if pledged_to == Some(lineage)
                    && state.lineage == lineage
                    && state.index == LogIndex::ZERO
                    && ballot.node == from =>
            {
                let mut member = Member::new(ctx, lineage, ballot);
                member.acceptor = Some(Acceptor::new(ctx, ballot, *state));
                Some(Found::Member(Box::new(member)))
            }
            ClusterMsg::SetAside { ballot, view, given } if !elsewhere => {
                ctx.set_aside_above(lineage, ballot, view, given);
                // A founder that is not in the core is told nothing else before the lineage is founded.
                if pledged_to == Some(lineage) {
                    ctx.reply(
                        from,
                        lineage,
                        ClusterMsg::Heartbeat(Box::new(beat_of_founder(ctx, lineage, ballot))),
                    );
                }
                None
            }
            // We are in a core without knowing: the founding did not reach us, and its coordinator is gone or deaf.
            ClusterMsg::Ask(_) if !elsewhere => {
                ctx.reply(from, lineage, ClusterMsg::Behind { commit: LogIndex::ZERO });
                None
            }
            ClusterMsg::Log(state)
                if !elsewhere
                    && state.lineage == lineage
                    && state.core.contains(&ctx.me())
                    && state.view.contains(ctx.me()) =>
            {
                ctx.mark("a core member gets its first log from a candidate");
                ctx.config.terms = state.terms.clone();
                let lowest = Ballot { round: 0, node: ctx.me() };
                let mut member = Member::new(ctx, lineage, lowest);
                member.acceptor = Some(Acceptor::new(ctx, lowest, *state));
                Some(Found::Member(Box::new(member)))
            }
            ClusterMsg::Removed { view, why, .. } => {
                Some(Found::End(End::Removed { view, why: why.as_str() }))
            }
            _ => None,
        }
    }

    pub(crate) fn on_refused(&mut self, ctx: &mut Ctx, why: String) {
        if self.last_refusal.as_ref() != Some(&why) {
            self.last_refusal = Some(why.clone());
            ctx.push(Output::Refused(why));
        }
    }
}

/// What a founder that is not in the core says before the lineage is founded: up to where its directory has set ids aside.
fn beat_of_founder(ctx: &Ctx, lineage: Lineage, ballot: Ballot) -> Heartbeat {
    Heartbeat {
        ballot,
        sent: ctx.now,
        echo: None,
        rooted: false,
        seen: LogIndex::ZERO,
        commit: None,
        slot: false,
        floor: ctx.floor_in(lineage),
        foreign: ctx.foreign_floor(lineage),
        hello: None,
        level: ctx.config.level,
        confirmed: ctx.confirmed,
    }
}

/// A lineage that counts as younger than those which gave ids up to `highest`, also where the wall clock was set back.
pub(crate) fn new_lineage(ctx: &mut Ctx, highest: ViewId) -> Lineage {
    let seconds = ctx.config.epoch_s + ctx.now.as_nanos() / 1_000_000_000;
    let known = highest.get() >> ctx.config.id_bits;
    Lineage::new(if known > seconds { known + 1 } else { seconds }, ctx.rng.next_u64())
}

/// Founds a lineage alone, by an operator's word. Founder slots count no more in it: most of their holders may be lost.
pub(crate) fn found_forced(ctx: &mut Ctx, forced: Forced) -> Member {
    let me = ctx.config.me.clone();
    ctx.config.terms.slots = 0;
    ctx.config.terms.supersedes = forced.supersedes;
    found(ctx, forced.lineage, [me].into(), forced.highest)
}

/// Founds a lineage with these founders, by slot order, and takes its first office.
fn found(ctx: &mut Ctx, lineage: Lineage, founders: Vec<NodeInfo>, highest: ViewId) -> Member {
    let mut terms = ctx.config.terms.clone();
    terms.durable = founders.iter().all(|info| info.keeps_floor);
    let core = spread::first(&founders, usize::from(terms.core_size)).into_iter().map(|n| n.id).collect();
    let by_clock = ViewId::new(lineage.founded_s() << ctx.config.id_bits);
    let state = State::before_founding(lineage, terms, by_clock.max(highest), founders, core);
    let ballot = Ballot { round: 1, node: ctx.me() };
    ctx.trace(|p| Event::Join { p, g: Group::CLUSTER, lin: Some(membership_types::trace::lin(lineage)) });
    let mut member = Member::new(ctx, lineage, ballot);
    let mut acceptor = Acceptor::new(ctx, ballot, state);
    let won = Won {
        ballot,
        horizon: ctx.now,
        undecided: Some(alloc::sync::Arc::new(Entry {
            commands: [Command::Found].into(),
            ..Entry::default()
        })),
        without: Vec::new(),
        lapsed: None,
        promisers: BTreeMap::new(),
        stored: Vec::new(),
    };
    // The others of the first core get the state that the first entry applies to.
    for info in acceptor.state.view.members.clone() {
        if info.id != ctx.me() && acceptor.state.core.contains(&info.id) {
            let tail = Tail::State(Box::new(acceptor.state.clone()));
            ctx.send(&info, lineage, ClusterMsg::CatchUp { ballot, tail });
        }
    }
    let mut office = Office::take(ctx, &mut acceptor, &Deaths::default(), won);
    for (op, wish) in ctx.wishes.all() {
        office.own_wish(ctx, *op, wish.clone());
    }
    member.acceptor = Some(acceptor);
    member.office = Some(office);
    member
}
