//! A node within a lineage: what it was told, the lease it holds, the groups it acts for.
//!
//! Everything that a node believes about views comes by [`Update`]s from the coordinator, also at core members and at
//! the coordinator itself: one path, whoever the node is.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use membership_types::{
    Ballot, GroupName, Instant, Lineage, LogIndex, NodeId, Token, ViewId,
    trace::{Event, Group, Process, lin},
};

use crate::{
    acceptor::Acceptor,
    ctx::{Ctx, Dest, End, Output, Part, WhyNot},
    entry::GroupWish,
    meeting::Meeting,
    msg::{ClusterMsg, Grant, Heartbeat, Hello, Update},
    office::Office,
    plant::Plant,
    quorum::Deaths,
    takeover::Takeover,
    view::{ClusterView, Kind, NodeInfo, SharedView, Why},
};

/// How many groups are named in a message that others wait for.
const SHORT_HELLO: usize = 64;

/// A group that this node is in, or observes.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Known {
    view: SharedView,
    /// The ballot under which we first heard of this view.
    ballot: Ballot,
    /// The token under which we act, if we do.
    acting: Option<Token>,
    /// The last token under which we acted.
    acted_before: Option<Token>,
    /// The last view that is installed, where members multicast.
    installed: ViewId,
}

/// The lease that this node holds.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Lease {
    until: Instant,
    /// The highest ballot that renewed it.
    ballot: Option<Ballot>,
    /// We act as holders; false once we noticed that it ran out.
    held: bool,
}

/// A coordinator that committed its own removal, and has yet to hear that others know.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Parting {
    pub(crate) end: End,
    pub(crate) ballot: Ballot,
    /// Who of the core after us has committed our removal.
    pub(crate) confirmed: BTreeSet<NodeId>,
    pub(crate) next_word: Instant,
    pub(crate) until: Instant,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Member {
    pub(crate) lineage: Lineage,
    /// The highest ballot that is known to have won; its node coordinates.
    pub(crate) following: Ballot,
    pub(crate) view: ClusterView,
    pub(crate) core: Vec<NodeId>,
    seen: LogIndex,
    /// What we know does not fit what we are told: everything must be told again.
    start_over: bool,
    groups: BTreeMap<GroupName, Known>,
    /// The groups that this node is first in and does not act for.
    to_lead: BTreeSet<GroupName>,
    lease: Lease,
    /// The coordinator's clock in its last grant under this ballot, and whether we are bound by that grant.
    heard: Option<(Instant, bool)>,
    /// When the coordinator last showed that it hears us, or first appeared. One that speaks but is deaf is as good as
    /// silent.
    pub(crate) heard_at: Instant,
    /// The end of our own last stall, if we had one.
    pub(crate) stall_end: Option<Instant>,
    next_heartbeat: Instant,
    hello_due: bool,
    hello_sent_at: Instant,
    /// Since when we have held no lease.
    pub(crate) blocked_since: Instant,
    /// The same, whatever views came meanwhile.
    pub(crate) unleased_since: Instant,
    said_blocked: bool,
    pub(crate) leaving: bool,
    /// We leave because a newer process has our address.
    replaced: bool,
    pub(crate) parting: Option<Parting>,
    pub(crate) acceptor: Option<Acceptor>,
    pub(crate) deaths: Deaths,
    pub(crate) takeover: Takeover,
    pub(crate) office: Option<Office>,
    pub(crate) meeting: Meeting,
}

impl Member {
    pub(crate) fn new(ctx: &Ctx, lineage: Lineage, following: Ballot) -> Self {
        Self {
            lineage,
            following,
            view: ClusterView { id: ViewId::NONE, prev: ViewId::NONE, members: Vec::new() },
            core: Vec::new(),
            seen: LogIndex::ZERO,
            start_over: false,
            groups: BTreeMap::new(),
            to_lead: BTreeSet::new(),
            lease: Lease { until: Instant::ZERO, ballot: None, held: false },
            heard: None,
            heard_at: ctx.now,
            stall_end: None,
            next_heartbeat: ctx.now,
            hello_due: true,
            hello_sent_at: Instant::ZERO,
            blocked_since: ctx.now,
            unleased_since: ctx.now,
            said_blocked: false,
            leaving: false,
            replaced: false,
            parting: None,
            acceptor: None,
            deaths: Deaths::default(),
            takeover: Takeover::default(),
            office: None,
            meeting: Meeting::new(ctx),
        }
    }

    /// Is the node in a view at all? (A founder that waits for the first one is not.)
    pub(crate) fn is_installed(&self) -> bool {
        self.view.id != ViewId::NONE
    }

    pub(crate) fn holds_lease(&self, now: Instant) -> bool {
        self.lease.held && now < self.lease.until
    }

    /// What we know of a node's address.
    pub(crate) fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        let kept = || self.acceptor.as_ref().and_then(|a| a.state.view.node(id));
        self.view.node(id).or_else(kept)
    }

    pub(crate) fn coordinator(&self) -> Option<&NodeInfo> {
        self.node(self.following.node)
    }

    pub(crate) fn to_coordinator(&self, ctx: &mut Ctx, msg: ClusterMsg) {
        let to = Dest::Node(self.following.node, self.coordinator().map(|n| n.addr));
        ctx.push(Output::Send(to, crate::msg::Msg::In(self.lineage, msg)));
    }

    /// Something came from one who coordinates under `ballot`. False if a higher ballot is known to have won.
    pub(crate) fn follow(&mut self, ctx: &mut Ctx, ballot: Ballot) -> bool {
        if ballot < self.following {
            return false;
        }
        if ballot > self.following {
            self.following = ballot;
            self.heard = None;
            self.heard_at = ctx.now;
            self.hello_due = true;
        }
        if self.office.as_ref().is_some_and(|o| o.ballot < ballot) {
            self.office = None;
        }
        true
    }

    /// The coordinator's answer to a heartbeat.
    pub(crate) fn on_grant(&mut self, ctx: &mut Ctx, grant: Grant) {
        if let Some(acceptor) = &self.acceptor
            && acceptor.promised > grant.ballot
        {
            let refuse = ClusterMsg::Refuse {
                ballot: grant.ballot,
                promised: acceptor.promised,
                wait: core::time::Duration::ZERO,
            };
            ctx.reply(grant.ballot.node, self.lineage, refuse);
            return;
        }
        if !self.follow(ctx, grant.ballot) || grant.ballot.node == ctx.me() {
            return;
        }
        let hears_us = grant.echo.is_some_and(|sent| ctx.now - sent <= ctx.lease());
        if hears_us {
            self.heard_at = ctx.now;
        }
        let rooted = match &mut self.acceptor {
            Some(acceptor) if hears_us => {
                acceptor.promise(ctx, grant.ballot);
                acceptor.grant(ctx, grant.ballot.node);
                true
            }
            _ => false,
        };
        if self.heard.is_none_or(|(sent, _)| sent <= grant.sent) {
            self.heard = Some((grant.sent, rooted));
        }
        if let Some(sent) = grant.echo
            && !grant.lease.is_zero()
        {
            ctx.confirmed |= grant.slot;
            let from = if ctx.planted(Plant::LeaseFromReceipt) { ctx.now } else { sent };
            self.extend_lease(ctx, from.after(grant.lease), grant.ballot);
        }
        let told = grant.index.is_some_and(|index| index <= self.seen);
        if told {
            ctx.wishes.done(grant.wishes_done);
        } else {
            self.ask_for_the_rest(ctx);
        }
        if grant.answer {
            self.send_heartbeat(ctx);
        }
    }

    /// We were told things that did not arrive: says where we stand, at once unless that was done just now.
    fn ask_for_the_rest(&mut self, ctx: &mut Ctx) {
        self.hello_due = true;
        if ctx.now >= self.hello_sent_at.after(ctx.config.heartbeat / 2) {
            self.send_heartbeat(ctx);
        }
    }

    /// The lease lasts until then, says a coordinator with this ballot.
    pub(crate) fn extend_lease(&mut self, ctx: &mut Ctx, until: Instant, ballot: Ballot) {
        if until <= ctx.now || self.leaving {
            return;
        }
        self.lease.ballot = self.lease.ballot.max(Some(ballot));
        let regained = !self.lease.held && self.is_installed();
        if regained {
            self.lease.held = true;
            self.said_blocked = false;
            // Before other threads can act under the lease, and say so.
            ctx.trace(|p| Event::Primary { p });
        }
        if until > self.lease.until {
            self.lease.until = until;
            ctx.push(Output::Lease(until));
        }
        if regained {
            ctx.push(Output::Unblocked);
        }
        self.start_leading(ctx);
    }

    /// Notices that the lease ran out, before anything else is done.
    pub(crate) fn notice_lapse(&mut self, ctx: &mut Ctx) {
        if !self.lease.held || ctx.now < self.lease.until {
            return;
        }
        if ctx.planted(Plant::LeaseNeverLapses) {
            self.lease.until = ctx.now.after(ctx.lease());
            ctx.push(Output::Lease(self.lease.until));
            return;
        }
        self.lease.held = false;
        self.said_blocked = true;
        self.blocked_since = ctx.now; // What came while we were stopped is read before we give up.
        self.unleased_since = ctx.now;
        self.stop_leading_all(ctx, WhyNot::Lease);
        ctx.trace(|p| Event::LeaseEnd { p });
        ctx.trace(|p| Event::NoPrimary { p });
        let why = self.why_blocked(ctx);
        ctx.push(Output::Blocked(why));
    }

    /// Says once that no lease has come for as long as one lasts, where none came since the node was admitted.
    pub(crate) fn notice_want_of_lease(&mut self, ctx: &mut Ctx) {
        let waited = ctx.now - self.blocked_since;
        if self.lease.held || self.said_blocked || !self.is_installed() || waited < ctx.lease() {
            return;
        }
        self.said_blocked = true;
        ctx.trace(|p| Event::NoPrimary { p });
        let why = self.why_blocked(ctx);
        ctx.push(Output::Blocked(why));
    }

    fn why_blocked(&self, ctx: &Ctx) -> String {
        if let Some(why) = self.office.as_ref().and_then(|o| o.stuck.clone()) {
            return why;
        }
        if self.office.is_some() {
            return alloc::format!("no majority of the core of view {} answers", self.view.id);
        }
        let name = self.coordinator().map_or("unknown", |n| &n.name);
        let silence = ctx.now - self.heard_at;
        alloc::format!(
            "no lease from a majority of the core of view {}: coordinator {name} last heard {silence:.1?} ago",
            self.view.id
        )
    }

    /// Until when the lease lasts, while it is held.
    pub(crate) fn lease_deadline(&self) -> Option<Instant> {
        self.lease.held.then_some(self.lease.until)
    }

    /// The sign of life, and all that the coordinator must hear again.
    pub(crate) fn on_heartbeat_due(&mut self, ctx: &mut Ctx) {
        if ctx.now < self.next_heartbeat {
            return;
        }
        self.next_heartbeat = ctx.now.after(ctx.config.heartbeat);
        if self.office.is_some() {
            return;
        }
        self.send_heartbeat(ctx);
        let silent = ctx.now - self.heard_at > ctx.config.heartbeat * 3;
        if silent {
            self.look_for_coordinator(ctx);
        }
        if !ctx.wishes.pending.is_empty() {
            self.to_coordinator(ctx, ClusterMsg::Wishes(ctx.wishes.first()));
        }
        if self.leaving {
            self.to_coordinator(ctx, ClusterMsg::Leave);
        }
        self.report_deaths(ctx);
    }

    /// One core member may know who coordinates now.
    fn look_for_coordinator(&mut self, ctx: &mut Ctx) {
        let others: Vec<NodeId> =
            self.core.iter().copied().filter(|id| *id != ctx.me() && *id != self.following.node).collect();
        if let Some(info) = ctx.rng.pick(&others).and_then(|id| self.view.node(*id)).cloned() {
            let beat = self.heartbeat(ctx);
            ctx.send(&info, self.lineage, ClusterMsg::Heartbeat(Box::new(beat)));
        }
    }

    pub(crate) fn send_heartbeat(&mut self, ctx: &mut Ctx) {
        if self.office.is_some() || self.following.node == ctx.me() {
            return;
        }
        let beat = self.heartbeat(ctx);
        if beat.hello.is_some() {
            self.hello_due = false;
            self.hello_sent_at = ctx.now;
        }
        self.to_coordinator(ctx, ClusterMsg::Heartbeat(Box::new(beat)));
    }

    pub(crate) fn heartbeat(&self, ctx: &Ctx) -> Heartbeat {
        let (echo, rooted) = self.heard.map_or((None, false), |(sent, rooted)| (Some(sent), rooted));
        Heartbeat {
            ballot: self.following,
            sent: ctx.now,
            echo,
            rooted,
            seen: self.seen(),
            commit: self.acceptor.as_ref().map(|a| a.state.index),
            slot: ctx.config.me.slot.is_some() && ctx.is_ripe(),
            floor: ctx.floor(),
            hello: self.hello_due.then(|| self.hello(ctx)),
            level: ctx.config.level,
            confirmed: ctx.confirmed,
        }
    }

    pub(crate) fn hello(&self, ctx: &Ctx) -> Hello {
        Hello {
            groups: self.groups.iter().map(|(name, known)| (name.clone(), known.view.id)).collect(),
            observes: ctx.observes.iter().cloned().collect(),
        }
    }

    /// The same, if it is short enough to go with something that is waited for.
    pub(crate) fn short_hello(&self, ctx: &Ctx) -> Option<Hello> {
        let short = self.groups.len() + ctx.observes.len() <= SHORT_HELLO;
        (short && self.is_installed()).then(|| self.hello(ctx))
    }

    /// From where on the coordinator should tell us.
    pub(crate) fn seen(&self) -> LogIndex {
        if self.start_over { LogIndex::ZERO } else { self.seen }
    }

    /// Takes in what the coordinator tells. Returns how this node's life in the lineage ends, if it does.
    pub(crate) fn on_update(&mut self, ctx: &mut Ctx, update: Update) -> Option<End> {
        if self.parting.is_some() || !self.follow(ctx, update.ballot) {
            return None;
        }
        if let Some(acceptor) = &mut self.acceptor
            && acceptor.state.index.next() <= update.index
        {
            // What this coordinator has committed includes the entry that it proposed to us.
            acceptor.commit_accepted(ctx, update.ballot);
        }
        let first = !self.is_installed();
        if update.index < self.seen {
            return None; // Overtaken by a later one.
        }
        if let Some(full) = update.full {
            self.start_over = false;
            if full.view.id > self.view.id {
                let follows = first || full.view.prev == self.view.id;
                if !follows {
                    ctx.mark("a node installs a view from a snapshot");
                }
                let old = core::mem::replace(&mut self.view, full.view);
                self.installed(ctx, &old, full.at, !follows);
            }
        } else if update.prev > self.seen && !ctx.planted(Plant::IgnoreGap) || first {
            ctx.mark("a node notices that it missed an update");
            self.ask_for_the_rest(ctx);
            return None;
        }
        for (at, delta) in &update.deltas {
            if delta.id <= self.view.id {
                continue;
            }
            let old = self.view.clone();
            if !self.view.apply(delta) {
                if !ctx.planted(Plant::IgnoreGap) {
                    // We lack a view in between: ask for everything.
                    self.start_over = true;
                    self.ask_for_the_rest(ctx);
                    return None;
                }
                self.view.id = delta.prev;
                self.view.apply(delta);
            }
            if !self.view.contains(ctx.me()) {
                let why =
                    delta.left.iter().find(|(id, _)| *id == ctx.me()).map_or("", |(_, why)| why.as_str());
                return Some(self.out(ctx, delta.id, why));
            }
            ctx.push(Output::Change { joined: delta.joined.len(), left: delta.left.clone() });
            self.installed(ctx, &old, *at, false);
        }
        if let Some(core) = update.core {
            self.core = core;
        }
        for view in update.groups {
            self.learn(ctx, view, update.ballot);
        }
        ctx.wishes.done(update.wishes_done);
        self.seen = self.seen.max(update.index);
        if first {
            self.begin_membership(ctx);
        }
        self.start_leading(ctx);
        update.dissolved.map(|(into, last_view)| {
            ctx.highest = ctx.highest.max(last_view);
            self.stop_leading_all(ctx, WhyNot::Removed);
            End::Dissolved { into }
        })
    }

    /// The first view is here. Wishes made meanwhile go out with the next heartbeat.
    fn begin_membership(&mut self, ctx: &mut Ctx) {
        self.hello_due = true;
        self.next_heartbeat = ctx.now;
        self.unleased_since = ctx.now;
        self.blocked_since = ctx.now;
    }

    /// A view without us was committed. A coordinator is rid of its groups with this, and goes when it has handed over.
    pub(crate) fn out(&mut self, ctx: &mut Ctx, view: ViewId, why: &'static str) -> End {
        let left = self.leaving && !self.replaced;
        self.stop_leading_all(ctx, if left { WhyNot::Leave } else { WhyNot::Removed });
        if self.office.is_none() {
            ctx.trace(|p| Event::Evicted { p, vid: view.get() });
        }
        let why = if self.replaced { Why::Replaced.as_str() } else { why };
        if left { End::Left } else { End::Removed { view, why } }
    }

    /// A core member may learn from the log that it has been removed, before anybody tells it.
    pub(crate) fn check_own_removal(&mut self, ctx: &mut Ctx) -> Option<End> {
        let state = &self.acceptor.as_ref()?.state;
        if !self.is_installed() || state.index <= self.seen || state.view.contains(ctx.me()) {
            return None;
        }
        ctx.mark("a core member learns of its removal from the log");
        let (view, why) = state.removal_of(ctx.me()).unwrap_or((state.view.id, Why::Silent));
        Some(self.out(ctx, view, why.as_str()))
    }

    fn installed(&mut self, ctx: &mut Ctx, old: &ClusterView, at: LogIndex, snap: bool) {
        ctx.highest = ctx.highest.max(self.view.id);
        ctx.set_aside(self.lineage, self.following, self.view.id);
        if !self.lease.held {
            // A view is news: if no lease follows it, that is said (again).
            self.said_blocked = false;
            self.blocked_since = ctx.now;
        }
        let view = &self.view;
        let lineage = self.lineage;
        ctx.trace(|p| Event::Install {
            p,
            g: Group::CLUSTER,
            lin: lin(lineage),
            vid: view.id.get(),
            members: view.members.iter().map(|n| n.id.into()).collect(),
            prev: view.prev.get(),
            trans: view.members.iter().filter(|n| old.contains(n.id)).map(|n| n.id.into()).collect(),
            idx: Some(at.get()),
            snap,
        });
        ctx.push(Output::ClusterView(view.clone()));
        self.deaths.keep(|id| self.view.contains(id));
    }

    /// A group view is learned.
    fn learn(&mut self, ctx: &mut Ctx, view: SharedView, ballot: Ballot) {
        let me = ctx.me();
        // Who keeps the log has it already: once is enough.
        let kept = self.acceptor.as_ref().and_then(|acceptor| acceptor.state.group(&view.group));
        let view = kept.filter(|kept| **kept == view).cloned().unwrap_or(view);
        let known = self.groups.get(&view.group);
        let was_member = known.is_some_and(|k| k.view.contains(me));
        let stale = known.is_some_and(|k| view.id != ViewId::NONE && k.view.id >= view.id);
        let observed = ctx.observes.contains(&view.group);
        if stale || known.is_none() && !view.contains(me) && !observed {
            return;
        }
        let acted_before = known.and_then(|k| k.acted_before);
        let installed = known.map_or(ViewId::NONE, |k| k.installed);
        let goes_on = known.and_then(|k| k.acting).filter(|t| view.leader() == Some(me) && view.token == *t);
        if goes_on.is_none() {
            self.stop_leading(ctx, &view.group, WhyNot::View);
        }
        ctx.highest = ctx.highest.max(view.id);
        ctx.set_aside(self.lineage, ballot, view.id);
        let part = match (view.contains(me), observed, was_member) {
            (true, _, _) => Part::Member,
            (false, true, _) => Part::Observer,
            (false, false, _) => Part::Left,
        };
        self.trace_group_view(ctx, &view, part);
        if part == Part::Left {
            self.groups.remove(&view.group);
            self.to_lead.remove(&view.group);
        } else {
            if view.leader() == Some(me) && goes_on.is_none() {
                self.to_lead.insert(view.group.clone());
            } else {
                self.to_lead.remove(&view.group);
            }
            self.groups.insert(
                view.group.clone(),
                Known { view: view.clone(), ballot, acting: goes_on, acted_before, installed },
            );
        }
        ctx.push(Output::View(view, part));
    }

    fn trace_group_view(&self, ctx: &mut Ctx, view: &SharedView, part: Part) {
        let (g, lineage) = (|| Group::from(&view.group), lin(self.lineage));
        let members = || -> Vec<Process> { view.members.iter().map(|m| m.node.into()).collect() };
        let (vid, prev) = (view.id.get(), view.prev.get());
        match part {
            // Where members multicast, a view is installed when it is closed behind them.
            Part::Member if view.kind == Kind::Multicast => {}
            Part::Member => ctx.trace(|p| Event::Install {
                p,
                g: g(),
                lin: lineage,
                vid,
                members: members(),
                prev,
                trans: Vec::new(),
                idx: None,
                snap: false,
            }),
            Part::Observer if vid > 0 => {
                ctx.trace(|p| Event::Watch { p, g: g(), lin: Some(lineage), vid, members: members(), prev });
            }
            Part::Observer | Part::Left => {}
        }
    }

    /// A view of a group whose members multicast is installed.
    pub(crate) fn on_installed(&mut self, ctx: &mut Ctx, group: &GroupName, view: ViewId) {
        if let Some(known) = self.groups.get_mut(group) {
            known.installed = known.installed.max(view);
            self.start_leading(ctx);
        }
    }

    /// Another member of a group makes us wait for too long: the coordinator judges who must go.
    pub(crate) fn on_behind(&mut self, ctx: &mut Ctx, group: GroupName, node: NodeId) {
        if self.office.is_some() {
            self.judge_behind(ctx, ctx.me(), &group, node);
        } else {
            self.to_coordinator(ctx, ClusterMsg::StaysBehind { group, node });
        }
    }

    /// As coordinator: one member says that another one stays behind.
    pub(crate) fn judge_behind(&mut self, ctx: &mut Ctx, from: NodeId, group: &GroupName, node: NodeId) {
        let (Some(office), Some(acceptor)) = (&mut self.office, &self.acceptor) else { return };
        let Some(goes) = office.judge_behind(ctx, acceptor, from, group, node) else { return };
        ctx.mark("a member that stays behind is told to step out");
        if goes == ctx.me() {
            ctx.push(Output::StepOut { group: group.clone() });
        } else {
            ctx.reply(goes, self.lineage, ClusterMsg::StepOut { group: group.clone() });
        }
    }

    /// May this node act for the group now?
    fn may_lead(&self, ctx: &Ctx, known: &Known) -> bool {
        !self.leaving
            && self.holds_lease(ctx.now)
            && known.view.leader() == Some(ctx.me())
            && (known.view.kind == Kind::Plain
                || known.installed >= known.view.token.view()
                || ctx.planted(Plant::LeadUninstalled))
            && self.lease.ballot.is_some_and(|b| b >= known.ballot)
            && !self.office.as_ref().is_some_and(Office::is_dissolving)
            && (!ctx.wishes.giving_up(&known.view.group) || ctx.planted(Plant::StepDownLate))
    }

    /// Begins to act for every group for which that is allowed now.
    fn start_leading(&mut self, ctx: &mut Ctx) {
        let may = |group: &&GroupName| {
            self.groups.get(*group).is_some_and(|k| k.acting.is_none() && self.may_lead(ctx, k))
        };
        let ready: Vec<GroupName> = self.to_lead.iter().filter(may).cloned().collect();
        for group in ready {
            self.to_lead.remove(&group);
            let Some(known) = self.groups.get_mut(&group) else { continue };
            let token = known.view.token;
            known.acting = Some(token);
            if known.acted_before == Some(token) {
                ctx.mark("a leader goes on under its token after a lease gap");
            }
            known.acted_before = Some(token);
            let lineage = self.lineage;
            let begun = |p| {
                let (g, lin, tok) = (Group::from(&group), Some(lin(lineage)), token.into());
                Event::LeadStart { p, g, lin, tok }
            };
            ctx.trace(begun);
            ctx.push(Output::Leading { group, token, lineage });
        }
    }

    /// Stops acting for a group at once.
    fn stop_leading(&mut self, ctx: &mut Ctx, group: &GroupName, why: WhyNot) {
        let Some(known) = self.groups.get_mut(group) else { return };
        let Some(token) = known.acting.take() else { return };
        self.to_lead.insert(group.clone());
        let until = self.lease.until.min(ctx.now);
        let lineage = self.lineage;
        ctx.trace(|p| Event::LeadEnd {
            p,
            g: Group::from(group),
            lin: Some(lin(lineage)),
            tok: token.into(),
            why: why.as_str().into(),
            until: Some(until.as_nanos()),
        });
        ctx.push(Output::NotLeading { group: group.clone(), token, why, until });
    }

    pub(crate) fn stop_leading_all(&mut self, ctx: &mut Ctx, why: WhyNot) {
        let acting: Vec<GroupName> =
            self.groups.iter().filter(|(_, k)| k.acting.is_some()).map(|(name, _)| name.clone()).collect();
        for group in acting {
            self.stop_leading(ctx, &group, why);
        }
    }

    /// The coordinator is about to remove us although we speak: a newer process has our address. Stops for good, and
    /// from now on asks to be let go, in case this coordinator does not live to do it.
    pub(crate) fn on_stop(&mut self, ctx: &mut Ctx, from: NodeId) {
        ctx.mark("a node is told to stop");
        self.stop_leading_all(ctx, WhyNot::Removed);
        self.leaving = true;
        self.replaced = true;
        ctx.reply(from, self.lineage, ClusterMsg::Stopped);
    }

    /// The application's wish about a group; it has been noted in `ctx.wishes`.
    pub(crate) fn on_wish(&mut self, ctx: &mut Ctx, wish: &GroupWish) {
        let why = match wish {
            GroupWish::Join { .. } => None,
            GroupWish::Leave { .. } => Some(WhyNot::Leave),
            GroupWish::StepDown { .. } => Some(WhyNot::StepDown),
        };
        if let Some(why) = why
            && !ctx.planted(Plant::StepDownLate)
        {
            self.stop_leading(ctx, wish.group(), why);
        }
        match &mut self.office {
            Some(office) => {
                if let Some((op, wish)) = ctx.wishes.pending.back().cloned() {
                    office.own_wish(ctx, op, wish);
                }
            }
            // The others have been sent already; all are sent again with a heartbeat if they are not seen applied.
            None => {
                let latest = ctx.wishes.pending.back().cloned().into_iter().collect();
                self.to_coordinator(ctx, ClusterMsg::Wishes(latest));
            }
        }
    }

    /// Begins or ends to observe a group; `ctx.observes` says so already.
    pub(crate) fn on_observe(&mut self, ctx: &mut Ctx, group: GroupName, begin: bool) {
        if !begin && !self.groups.get(&group).is_some_and(|k| k.view.contains(ctx.me())) {
            self.groups.remove(&group);
            self.to_lead.remove(&group);
        }
        if self.office.is_some() {
            self.learn_own(ctx, &group);
        } else {
            self.to_coordinator(ctx, ClusterMsg::Observe { group, begin });
        }
    }

    /// The coordinator's own node reads its own state.
    fn learn_own(&mut self, ctx: &mut Ctx, group: &GroupName) {
        let Some(acceptor) = &self.acceptor else { return };
        if !ctx.observes.contains(group) {
            return;
        }
        let none = || crate::view::GroupView::empty(group.clone(), self.lineage, ViewId::NONE).into();
        let view = acceptor.state.group(group).cloned().unwrap_or_else(none);
        self.learn(ctx, view, self.following);
    }

    /// Leaves the cluster: stops acting first, then says so until it is out.
    pub(crate) fn leave(&mut self, ctx: &mut Ctx) -> Option<End> {
        self.stop_leading_all(ctx, WhyNot::Leave);
        self.leaving = true;
        ctx.trace(|p| Event::Leave { p, g: Group::CLUSTER });
        let alone = self.view.members.iter().all(|n| n.id == ctx.me());
        if alone {
            return Some(End::Left);
        }
        let me = ctx.me();
        match (&mut self.office, &self.acceptor) {
            (Some(office), Some(acceptor)) => office.on_leave(ctx, acceptor, &self.deaths, me),
            _ => self.to_coordinator(ctx, ClusterMsg::Leave),
        }
        None
    }

    /// A newer process has the address of this coordinator: it stops acting, commits its own removal, and goes.
    pub(crate) fn make_room(&mut self, ctx: &mut Ctx) {
        ctx.mark("a coordinator makes room for a newer process at its address");
        self.stop_leading_all(ctx, WhyNot::Removed);
        self.leaving = true;
        self.replaced = true;
        if let Some(office) = &mut self.office {
            office.remove(ctx, &self.deaths, ctx.me(), Why::Replaced);
            office.on_stopped(ctx.me());
        }
    }

    /// A death was proved, here (`by_us`) or by somebody else who says so.
    pub(crate) fn on_death(
        &mut self,
        ctx: &mut Ctx,
        node: NodeId,
        how: &'static str,
        said: Option<&BTreeSet<NodeId>>,
    ) {
        if node == ctx.me() || self.node(node).is_none() {
            return;
        }
        let leased = self.holds_lease(ctx.now);
        let ours = (leased || ctx.planted(Plant::LateProof)).then(|| ctx.me());
        let known = self.deaths.contains(node);
        // A proof that came when our lease had lapsed stays one of those.
        let ours = ours.filter(|_| !known);
        let news = self.deaths.note(node, said.into_iter().flatten().copied().chain(ours));
        if !news {
            return;
        }
        if !known {
            let how = how.into();
            ctx.trace(|p| Event::Proof { p, q: node.into(), how, leased });
        }
        if let Some(office) = &mut self.office {
            office.on_death(ctx, &self.deaths, node);
        } else if said.is_none() {
            // All of the core is told with each heartbeat; at once is told who has to act now.
            let acts = if node == self.following.node { self.heir() } else { Some(self.following.node) };
            if let Some(id) = acts.filter(|id| *id != ctx.me()) {
                self.tell_deaths(ctx, [id]);
            }
        }
    }

    /// Tells the coordinator and the core of the deaths that are not yet in the view.
    fn report_deaths(&self, ctx: &mut Ctx) {
        let mut to: Vec<NodeId> = self.core.clone();
        if !to.contains(&self.following.node) {
            to.push(self.following.node);
        }
        self.tell_deaths(ctx, to);
    }

    fn tell_deaths(&self, ctx: &mut Ctx, to: impl IntoIterator<Item = NodeId>) {
        if self.deaths.iter().next().is_none() {
            return;
        }
        for id in to {
            if id != ctx.me()
                && !self.deaths.contains(id)
                && let Some(info) = self.node(id)
            {
                ctx.send(info, self.lineage, ClusterMsg::Dead(self.deaths.clone()));
            }
        }
    }

    /// When something is due at this node without input.
    pub(crate) fn deadline(&self) -> Instant {
        self.lease_deadline().unwrap_or(Instant::MAX).min(self.next_heartbeat)
    }
}
