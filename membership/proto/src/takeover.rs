//! Takeover by rank: how a core member becomes coordinator when the present one is lost.
//!
//! 1. Somebody is *lost* as coordinator once its death is proved, it has left, or our own grant to it has lapsed. The lowest living rank of the core asks at once; rank r waits r steps first.
//! 2. It asks the core to promise its ballot. A member promises only when it is not bound to another any more, and
//!    tells all it knows: what is committed, the one entry that it accepted after that, and how long leases that rest
//!    on its grants may last.
//! 3. The ballot is won with a quorum of the core in force, and, if the undecided entry to be adopted changes the core,
//!    of that core too. The winner takes [`Office`](crate::office::Office) and finishes that entry first.
//! 4. Who is refused for a higher ballot gives way, and tries again after a random, doubling pause, for ever.
//!
//! Source: Lamport, "Paxos Made Simple", 2001, section 2.2 (phase 1); the succession by rank is that of ranked group
//! views, Birman and Joseph, "Exploiting Virtual Synchrony in Distributed Systems", SOSP 1987.

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};
use core::time::Duration;

use membership_types::{Ballot, Instant, LogIndex, NodeId};

use crate::{
    acceptor::Acceptor,
    ctx::Ctx,
    entry::Entry,
    member::Member,
    msg::{Ask, ClusterMsg, Promise},
    office::{Office, Promiser, Won},
    plant::Plant,
    quorum::{Core, Share, share},
};

/// The longest pause between two attempts is this many steps.
const LONGEST_PAUSE: u32 = 16;

/// Our part in finding a coordinator.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Takeover {
    /// When we ask for promises, if nothing happens before.
    at: Option<Instant>,
    /// That is our turn by rank, and not the end of a pause.
    by_rank: bool,
    /// How often we lost since there was a coordinator.
    attempts: u32,
    /// The highest round seen anywhere.
    round: u64,
    candidate: Option<Candidate>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Candidate {
    ballot: Ballot,
    promises: BTreeMap<NodeId, Promised>,
    asked_at: Instant,
    next_ask: Instant,
    /// The core when we began; only for a planted bug.
    old_core: Vec<NodeId>,
    /// Since when nothing but the rule for a lone half keeps us from winning, so that the half must answer anew.
    alone_from: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Promised {
    accepted: Option<(Ballot, Arc<Entry>)>,
    /// When leases that rest on the promiser's grants have lapsed, on our clock.
    horizon: Instant,
    promiser: Promiser,
}

impl Takeover {
    /// There is a coordinator: no need for us.
    pub(crate) fn called_off(&mut self) {
        self.at = None;
        self.by_rank = false;
        self.attempts = 0;
        self.candidate = None;
    }

    /// Who comes before us is to be counted again.
    pub(crate) fn turn_comes_anew(&mut self) {
        if core::mem::take(&mut self.by_rank) {
            self.at = None;
        }
    }

    /// Do we ask for promises?
    pub(crate) fn is_candidate(&self) -> bool {
        self.candidate.is_some()
    }

    /// When we act without input.
    pub(crate) fn deadline(&self) -> Instant {
        let ask = self.candidate.as_ref().map(|c| c.next_ask);
        ask.into_iter().chain(self.at).min().unwrap_or(Instant::MAX)
    }

    /// Another ballot is on its way: let it try before we do, and longer each time that it ends a candidacy of ours.
    ///
    /// Who needs half of a core waits before it asks the witness. If both of two asked in turn, each would begin anew before the
    /// other one had come so far, without end. A core of which there can be halves is known beforehand; whether one that is about
    /// to come into force has any, only whom we give way to may know: that it ended a candidacy counts as a sign of it.
    fn give_way(&mut self, ctx: &mut Ctx, round: u64, position: u32, halves: bool) {
        self.round = self.round.max(round);
        if self.candidate.take().is_some() {
            self.attempts = self.attempts.saturating_add(1);
        }
        let waits = ctx.config.terms.witness && (halves || self.attempts > 0);
        let least = if waits { ctx.config.heartbeat * 4 } else { Duration::ZERO };
        let steps = (2 << self.attempts.min(3)).min(LONGEST_PAUSE);
        let pause = ctx.config.step * (steps + position);
        let jitter = ctx.rng.below(pause.as_nanos() as u64 / 2 + 1);
        self.at = Some(ctx.now.after(least + pause / 2 + Duration::from_nanos(jitter)));
        self.by_rank = false;
    }
}

impl Member {
    /// Since when there has been no coordinator to wait for, if so.
    fn coordinator_lost_at(&self, ctx: &Ctx) -> Option<Instant> {
        let acceptor = self.acceptor.as_ref()?;
        let coordinator = self.following.node;
        let given = acceptor.given;
        if self.deaths.contains(coordinator) || !acceptor.state.view.contains(coordinator) {
            return Some(ctx.now);
        }
        let bound_until = if given.to == Some(coordinator) { given.until } else { Instant::ZERO };
        let lost_at = self.after_listening(ctx, bound_until.max(self.heard_at.after(ctx.granter_lease())));
        (ctx.now >= lost_at).then_some(lost_at)
    }

    /// Who was stopped hears first what was said meanwhile, and takes nobody for lost until then; but one whose loop is late
    /// again and again waits for no more than a lease.
    fn after_listening(&self, ctx: &Ctx, lost_at: Instant) -> Instant {
        let listened = self.stall_end.map_or(Instant::ZERO, |end| end.after(ctx.config.heartbeat * 3));
        lost_at.max(listened.min(lost_at.after(ctx.lease())))
    }

    /// When the coordinator may be lost, if nothing is heard until then.
    pub(crate) fn takeover_deadline(&self, ctx: &Ctx) -> Instant {
        if self.office.is_some() || !self.is_in_core(ctx) {
            return self.takeover.deadline();
        }
        let given = self.acceptor.as_ref().map_or(Instant::ZERO, |a| a.given.until);
        let lost_at = self.after_listening(ctx, given.max(self.heard_at.after(ctx.granter_lease())));
        let next = if lost_at > ctx.now { lost_at } else { Instant::MAX };
        self.takeover.deadline().min(next)
    }

    fn is_in_core(&self, ctx: &Ctx) -> bool {
        self.is_installed() && self.acceptor.as_ref().is_some_and(|a| a.state.core.contains(&ctx.me()))
    }

    /// How many living core members come before us: the seniors among those who stay; and for one that is leaving all of those,
    /// and the seniors among those who leave as well.
    fn position(&self, ctx: &Ctx) -> u32 {
        let Some(acceptor) = &self.acceptor else { return 0 };
        let core = &acceptor.state.core;
        let before_us = |at: usize, id: &NodeId| {
            let senior = core.iter().position(|id| *id == ctx.me()).is_none_or(|own| at < own);
            match (self.leaving, self.leavers.contains(id)) {
                (true, false) => *id != ctx.me(),
                (false, true) => false,
                _ => senior,
            }
        };
        let others = core.iter().enumerate();
        let others = others.filter(|(_, id)| **id != self.following.node && !self.deaths.contains(**id));
        others.filter(|(at, id)| before_us(*at, id)).count() as u32
    }

    /// Has the core in force two halves?
    fn has_halves(&self) -> bool {
        self.acceptor.as_ref().is_some_and(|a| a.state.core.len().is_multiple_of(2))
    }

    /// Who asks first, now that the coordinator's end is proved; nobody if its silence is all that there is.
    pub(crate) fn heir(&self) -> Option<NodeId> {
        let (state, last) = (&self.acceptor.as_ref()?.state, self.following.node);
        let proved = self.deaths.contains(last) || !state.view.contains(last);
        let mut living = state.core.iter().filter(|id| **id != last && !self.deaths.contains(**id));
        if !proved {
            return None;
        }
        let senior = living.clone().next();
        living.find(|id| !self.leavers.contains(id)).or(senior).copied()
    }

    /// Looks whether it is our turn.
    pub(crate) fn check_takeover(&mut self, ctx: &mut Ctx) {
        if self.office.is_none() {
            if !self.is_in_core(ctx) {
                self.takeover.at = None;
                self.takeover.by_rank = false;
                self.takeover.candidate = None;
                return;
            }
            let Some(lost_at) = self.coordinator_lost_at(ctx) else {
                // There is one after all. If it needs our promise, it asks for it.
                self.takeover.called_off();
                return;
            };
            if self.takeover.candidate.is_none() && self.takeover.at.is_none() {
                let wait = ctx.config.step * self.position(ctx);
                self.takeover.at = Some(lost_at.after(wait));
                self.takeover.by_rank = true;
            }
        }
        if self.takeover.at.is_some_and(|at| ctx.now >= at) {
            self.takeover.at = None;
            self.takeover.by_rank = false;
            self.start_candidacy(ctx);
        } else if let Some(candidate) = &self.takeover.candidate
            && ctx.now >= candidate.next_ask
        {
            self.ask(ctx);
            self.check_win(ctx); // Time alone may have made a half good enough.
        }
    }

    /// Promises our own new ballot and asks for those of others. A coordinator does this too, while in office, when a
    /// core member has promised a higher ballot to one that cannot win: only a higher one still brings it back.
    fn start_candidacy(&mut self, ctx: &mut Ctx) {
        let me = ctx.me();
        let left = self.own_left(ctx);
        let Some(acceptor) = &mut self.acceptor else { return };
        if let Some(wait) = acceptor.bound(ctx, me, &self.deaths) {
            self.takeover.at = Some(ctx.now.after(wait));
            self.takeover.by_rank = false;
            return;
        }
        let round = self.takeover.round.max(acceptor.promised.round).max(self.following.round) + 1;
        let ballot = Ballot { round, node: me };
        acceptor.promise(ctx, ballot);
        let commit = acceptor.state.index;
        let own = Promised {
            accepted: acceptor.accepted.clone(),
            horizon: ctx.now.after(ctx.config.terms.drift.granter_waits(left)),
            promiser: Promiser { asked: Instant::MAX, commit, ..Promiser::default() },
        };
        let promises = BTreeMap::from([(me, own)]);
        let old_core = acceptor.state.core.clone();
        self.takeover.round = round;
        self.takeover.candidate = Some(Candidate {
            ballot,
            promises,
            asked_at: ctx.now,
            next_ask: ctx.now,
            old_core,
            alone_from: None,
        });
        self.ask(ctx);
        self.check_win(ctx);
    }

    /// How long leases may last that rest on our own grants, or on our own authority.
    fn own_left(&self, ctx: &Ctx) -> Duration {
        let given = self.acceptor.as_ref().map_or(Duration::ZERO, |a| a.left(ctx.now));
        let authority = match (&self.office, &self.acceptor) {
            (Some(office), Some(acceptor)) => office.granted_until(ctx, acceptor, &self.deaths) - ctx.now,
            _ => Duration::ZERO,
        };
        given.max(authority)
    }

    /// The end of the last lease that we gave some of these from an office: who is in one goes on giving leases while it asks for
    /// a higher ballot, and they may last longer than what it knew of when it began to ask.
    fn given_to(&self, to: impl Fn(NodeId) -> bool) -> Instant {
        self.office.as_ref().map_or(Instant::ZERO, |office| office.given_to(to))
    }

    fn ask(&mut self, ctx: &mut Ctx) {
        let Some(acceptor) = &self.acceptor else { return };
        let Some(candidate) = &mut self.takeover.candidate else { return };
        candidate.asked_at = ctx.now;
        candidate.next_ask = ctx.now.after(ctx.config.step);
        let mut cores = acceptor.state.core.clone();
        for promised in candidate.promises.values() {
            cores.extend(promised.accepted.iter().filter_map(|(_, e)| e.core.as_ref()).flatten());
        }
        cores.sort_unstable();
        cores.dedup();
        let question = ClusterMsg::Ask(Box::new(Ask {
            ballot: candidate.ballot,
            commit: acceptor.state.index,
            sent: ctx.now,
            deaths: self.deaths.clone(),
        }));
        for id in cores {
            if id != ctx.me()
                && !self.deaths.contains(id)
                && let Some(info) = acceptor.state.view.node(id)
            {
                ctx.send(info, self.lineage, question.clone());
            }
        }
    }

    /// A candidate's question.
    pub(crate) fn on_ask(&mut self, ctx: &mut Ctx, from: NodeId, ask: Ask) {
        if ask.ballot.node != from {
            return;
        }
        for (node, witnesses) in ask.deaths.iter() {
            self.on_death(ctx, node, "attested by a candidate", Some(witnesses));
        }
        let (position, lineage, heir) = (self.position(ctx), self.lineage, self.heir() == Some(from));
        let halves = self.has_halves();
        let (seen, hello) = (self.seen(), self.short_hello(ctx));
        let Some(acceptor) = &mut self.acceptor else {
            if self.core.contains(&ctx.me()) {
                // The founding did not reach us; the candidate has a log to begin with.
                ctx.reply(from, lineage, ClusterMsg::Behind { commit: LogIndex::ZERO });
            }
            return;
        };
        if !acceptor.state.view.contains(from) {
            if let Some((view, why)) = acceptor.state.removal_of(from) {
                ctx.mark("a removed candidate is told so");
                let index = acceptor.state.index;
                ctx.reply(from, lineage, ClusterMsg::Removed { view, index, why });
            }
            return;
        }
        let refuse = |acceptor: &Acceptor, wait| ClusterMsg::Refuse {
            ballot: ask.ballot,
            promised: acceptor.promised,
            wait,
        };
        if ask.ballot < acceptor.promised {
            let refusal = refuse(acceptor, Duration::ZERO);
            ctx.reply(from, lineage, refusal);
            return;
        }
        self.takeover.round = self.takeover.round.max(ask.ballot.round);
        let in_office = match &self.office {
            Some(office) => office.binds_until(ctx, acceptor, &self.deaths) - ctx.now,
            None => Duration::ZERO,
        };
        let bound = acceptor.bound(ctx, from, &self.deaths).unwrap_or(Duration::ZERO).max(in_office);
        if !bound.is_zero() && !ctx.planted(Plant::PromiseEarly) {
            let refusal = refuse(acceptor, bound);
            ctx.reply(from, lineage, refusal);
            return;
        }
        let left = if ctx.planted(Plant::PromiseEarly) { Duration::ZERO } else { acceptor.left(ctx.now) };
        let news = ask.ballot > acceptor.promised;
        acceptor.promise(ctx, ask.ballot);
        // The heir of one whose end is proved: nobody else will ask, so we can be bound to it before it has won. But not
        // again and again: one that the others do not hear would keep us from whoever can win.
        let bind = news && heir && acceptor.given.to != Some(from);
        if bind {
            acceptor.grant(ctx, from);
        }
        let promise = Promise {
            ballot: ask.ballot,
            echo: ask.sent,
            sent: ctx.now,
            commit: acceptor.state.index,
            tail: acceptor.tail_after(ask.commit),
            accepted: acceptor.accepted.clone(),
            left,
            bound: bind,
            slot: ctx.config.me.slot.is_some() && ctx.is_ripe(),
            confirmed: ctx.confirmed,
            seen,
            hello,
            floor: ctx.floor_in(lineage),
            deaths: self.deaths.clone(),
        };
        ctx.reply(from, lineage, ClusterMsg::Promise(Box::new(promise)));
        self.office = None;
        if news {
            // Once per ballot: one that asks for ever may be deaf.
            self.takeover.give_way(ctx, ask.ballot.round, position, halves);
        }
    }

    /// A core member promises.
    pub(crate) fn on_promise(&mut self, ctx: &mut Ctx, from: NodeId, promise: Promise) {
        let Some(acceptor) = &mut self.acceptor else { return };
        let mut promiser = Promiser {
            clock: promise.sent,
            asked: promise.echo,
            bound: promise.bound.then_some(promise.echo),
            slot: promise.slot,
            confirmed: promise.confirmed,
            floor: promise.floor,
            commit: promise.commit,
            seen: promise.seen,
            hello: promise.hello,
        };
        let Some(candidate) = &mut self.takeover.candidate else {
            if let Some(office) = self.office.as_mut().filter(|office| office.ballot == promise.ballot) {
                office.on_late_promise(ctx, acceptor, &self.deaths, from, promiser);
            }
            return;
        };
        if promise.ballot != candidate.ballot {
            return;
        }
        if let Some(tail) = promise.tail {
            ctx.mark("a candidate learns committed entries from a promise");
            let before = acceptor.state.index;
            acceptor.catch_up(ctx, tail);
            if acceptor.state.index > before {
                self.office = None; // Others committed what this office does not know.
            }
        }
        if promise.commit > acceptor.state.index {
            return; // What we lack did not come with it; the next question says where we stand.
        }
        // Who promised grants nothing to others any more: what it said first about leases stays true.
        let horizon = ctx.now.after(ctx.config.terms.drift.granter_waits(promise.left));
        let before = candidate.promises.get(&from);
        promiser.bound = promiser.bound.max(before.and_then(|p| p.promiser.bound));
        let promised = Promised {
            accepted: promise.accepted,
            horizon: before.map_or(horizon, |p| p.horizon.min(horizon)),
            promiser,
        };
        candidate.promises.insert(from, promised);
        let deaths: Vec<_> = promise.deaths.iter().map(|(n, w)| (n, w.clone())).collect();
        for (node, witnesses) in deaths {
            self.on_death(ctx, node, "attested by a core member", Some(&witnesses));
        }
        self.check_win(ctx);
    }

    /// A core member cannot promise, or cannot accept from us.
    pub(crate) fn on_refuse(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        ballot: Ballot,
        promised: Ballot,
        wait: Duration,
    ) {
        let (position, halves) = (self.position(ctx), self.has_halves());
        self.takeover.round = self.takeover.round.max(promised.round);
        if let Some(candidate) = &mut self.takeover.candidate
            && candidate.ballot == ballot
        {
            if promised > ballot {
                ctx.mark("a candidate gives way to a higher ballot");
                self.takeover.give_way(ctx, promised.round, position, halves);
            } else if !wait.is_zero() {
                candidate.next_ask = ctx.now.after(wait.max(ctx.config.step).min(ctx.lease()));
            }
            return;
        }
        let of_core = self.acceptor.as_ref().is_some_and(|a| a.state.core.contains(&from));
        let in_office = self.office.as_ref().is_some_and(|o| o.ballot == ballot);
        if in_office && of_core && promised > ballot && self.takeover.candidate.is_none() {
            self.start_candidacy(ctx);
        }
    }

    /// The witness has answered.
    pub(crate) fn check_candidacy(&mut self, ctx: &mut Ctx) {
        if self.takeover.is_candidate() {
            self.check_win(ctx);
        }
    }

    /// Has our candidate won? Then it takes office.
    fn check_win(&mut self, ctx: &mut Ctx) {
        let Some(won) = self.won(ctx) else { return };
        self.mark_victory(ctx, &won);
        let Some(acceptor) = &mut self.acceptor else { return };
        let before = self.office.take();
        self.takeover.called_off();
        self.following = won.ballot;
        if ctx.planted(Plant::ReuseViewId) {
            acceptor.state.last_view = acceptor.state.view.id;
        }
        let mut office = Office::take(ctx, acceptor, &self.deaths, won);
        if let Some(before) = before {
            office.inherit(before);
        }
        for (op, wish) in ctx.wishes.all() {
            office.own_wish(ctx, *op, wish.clone());
        }
        if self.leaving {
            office.on_leave(ctx, acceptor, &self.deaths, ctx.config.me.id);
        }
        for id in &self.leavers {
            office.on_leave(ctx, acceptor, &self.deaths, *id);
        }
        // What we were told by the predecessor may lag behind what we know as core member.
        let hello = self.hello(ctx);
        let rest =
            office.rest_for(self.acceptor.as_ref().expect("it is there"), ctx.me(), self.seen(), &hello);
        office.to_self.push_back(rest);
        self.office = Some(office);
    }

    fn mark_victory(&self, ctx: &mut Ctx, won: &Won) {
        ctx.mark(if self.office.is_some() {
            "a coordinator wins a higher ballot of its own"
        } else if self.deaths.contains(self.following.node) {
            "takeover after a proof of death"
        } else if self.acceptor.as_ref().is_some_and(|a| !a.state.view.contains(self.following.node)) {
            "takeover after a coordinator left"
        } else {
            "takeover after a lease lapsed"
        });
        if won.promisers.values().any(|promiser| promiser.bound.is_some()) {
            ctx.mark("a heir has authority from the promises on");
        }
        if won.undecided.is_some() {
            ctx.mark("a winner finishes its predecessor's entry");
        }
        if won.undecided.as_ref().is_some_and(|e| e.core.is_some()) {
            ctx.mark("a winner finishes a change of the core");
        }
        if !won.without.is_empty() {
            ctx.mark("half of a core goes on alone");
        }
        if won.horizon > ctx.now {
            ctx.mark("a takeover before the predecessor's leases lapsed");
        }
    }

    /// The terms of victory, once the promises suffice.
    fn won(&mut self, ctx: &mut Ctx) -> Option<Won> {
        let acceptor = self.acceptor.as_ref()?;
        let candidate = self.takeover.candidate.as_ref()?;
        let state = &acceptor.state;
        let win_in_old_core = ctx.planted(Plant::WinInOldCore);
        if !state.core.contains(&ctx.me()) && !win_in_old_core {
            self.takeover.candidate = None;
            return None;
        }
        let latest = candidate.promises.values().filter(|p| p.promiser.commit == state.index);
        let undecided = latest.filter_map(|p| p.accepted.clone()).max_by_key(|(ballot, _)| *ballot);
        let undecided = undecided.map(|(_, entry)| entry).filter(|_| !ctx.planted(Plant::AdoptNothing));
        let mut horizon = candidate.promises.values().map(|p| p.horizon).max().unwrap_or(ctx.now);
        if ctx.planted(Plant::ForgetPredecessorsLeases) {
            horizon = ctx.now;
        }
        let next_core =
            undecided.as_ref().and_then(|e| Some((e.core.clone()?, e.warrant(state.index.next()))));
        let core = if win_in_old_core { candidate.old_core.clone() } else { state.core.clone() };
        let cores = [Some((core, state.warrant)), next_core.filter(|_| !win_in_old_core)];
        let mut without = Vec::new();
        for (members, warrant) in cores.into_iter().flatten() {
            let core = Core { lineage: self.lineage, members: &members, warrant };
            match share(&members, |id| candidate_has(&self.takeover, id)) {
                Share::Majority => {}
                Share::Half { with, without: others } => {
                    if self.deaths.let_half_go_on(&with, &others) {
                        ctx.mark("half of a core wins by a proof of death");
                        continue;
                    }
                    let horizon = horizon.max(self.given_to(|id| others.contains(&id)));
                    if !self.may_go_on_alone(ctx, core, &with, horizon) {
                        return None;
                    }
                    without.extend(others);
                }
                Share::Minority => return None,
            }
        }
        let candidate = self.takeover.candidate.as_ref()?;
        let predecessor = self.following.node;
        let lapsed = (predecessor != ctx.me() && !self.deaths.contains(predecessor) && horizon <= ctx.now)
            .then_some((predecessor, self.heard_at));
        Some(Won {
            ballot: candidate.ballot,
            horizon: self.office.as_ref().map_or(horizon, |office| horizon.max(office.lapses_at())),
            undecided,
            without,
            lapsed,
            promisers: candidate.promises.iter().map(|(id, p)| (*id, p.promiser.clone())).collect(),
            stored: candidate
                .promises
                .iter()
                .filter(|(_, p)| p.accepted.is_some())
                .map(|(id, _)| *id)
                .collect(),
        })
    }

    /// The rule S2 for the preferred half without a proof of death: everything that the other half may hold has lapsed,
    /// and everybody of this half answered a question that was asked after that. Asks anew where that is missing; and the
    /// witness, where nothing else is.
    fn may_go_on_alone(&mut self, ctx: &mut Ctx, core: Core<'_>, with: &[NodeId], horizon: Instant) -> bool {
        let Some(candidate) = &mut self.takeover.candidate else { return false };
        let preferred = core.prefers(ctx, with);
        if !preferred && (!ctx.config.terms.witness || core.warrant.is_none()) {
            return false;
        }
        if ctx.now < horizon {
            candidate.next_ask = candidate.next_ask.min(horizon);
            return false; // Asked again then.
        }
        let from = candidate.alone_from.filter(|from| *from >= horizon).unwrap_or(ctx.now);
        candidate.alone_from = Some(from);
        let anew = |id: &NodeId| candidate.promises.get(id).is_some_and(|p| p.promiser.asked >= from);
        let all = with.iter().all(anew);
        if !all && candidate.asked_at < from {
            candidate.next_ask = candidate.next_ask.min(ctx.now);
        }
        // Who is in office and lost the others at the same time goes first: then nothing changes for this half.
        if all && !preferred && ctx.now >= from.after(ctx.config.heartbeat * 2) {
            ctx.claim(core.lineage, core.warrant, with);
        }
        all && preferred
    }
}

fn candidate_has(takeover: &Takeover, id: NodeId) -> bool {
    takeover.candidate.as_ref().is_some_and(|c| c.promises.contains_key(&id))
}
