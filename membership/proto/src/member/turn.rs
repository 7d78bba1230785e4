//! A turn of a member: what follows from a message or from time, until nothing more does.

use alloc::{boxed::Box, collections::BTreeSet};

use membership_types::{Instant, NodeId, trace::Event};

use super::{Member, Parting};
use crate::{
    acceptor::{Acceptor, Offer},
    ctx::{Ctx, Dest, End, Output, WhyNot},
    msg::{ClusterMsg, Msg, Probe, Tail},
    plant::Plant,
    quorum::{Share, share},
};

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

    pub(crate) fn next_deadline(&self, ctx: &Ctx) -> Instant {
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

    pub(crate) fn phase_name(&self) -> &'static str {
        match (&self.office, self.takeover.is_candidate()) {
            (_, true) => "candidate",
            (Some(office), _) => office.phase_name(),
            (None, _) if !self.is_installed() => "founding",
            (None, _) if self.leaving || self.parting.is_some() => "leaving",
            (None, _) => "member",
        }
    }

    /// Somebody wants to be admitted.
    pub(crate) fn on_join(&mut self, ctx: &mut Ctx, from: NodeId, join: crate::msg::Join) {
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

    pub(crate) fn on_cluster_msg(&mut self, ctx: &mut Ctx, from: NodeId, msg: ClusterMsg) -> Option<End> {
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
            ClusterMsg::SetAside { ballot, view, given } => {
                ctx.set_aside_above(self.lineage, ballot, view, given);
            }
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
