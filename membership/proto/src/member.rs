//! A node within a lineage: what it was told, and the lease it holds.
//!
//! Everything that a node believes about views comes by [`Update`]s from the coordinator, also at core members and at
//! the coordinator itself: one path, whoever the node is.

mod groups;
mod turn;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use membership_types::{
    Ballot, GroupName, Instant, Lineage, LogIndex, NodeId, ViewId,
    trace::{Event, Group, Process, lin},
};

use self::groups::Known;
use crate::{
    acceptor::Acceptor,
    ctx::{Ctx, Dest, End, Output, WhyNot},
    meeting::Meeting,
    msg::{ClusterMsg, Grant, Heartbeat, Hello, Update},
    office::Office,
    plant::Plant,
    quorum::Deaths,
    takeover::Takeover,
    view::{ClusterView, NodeInfo, Why},
};

/// How many groups are named in a message that others wait for.
const SHORT_HELLO: usize = 64;

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
    /// Who said that it leaves: it leads nothing any more, and wants no office that somebody else can have.
    pub(crate) leavers: BTreeSet<NodeId>,
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
            leavers: BTreeSet::new(),
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
            self.say_leave(ctx);
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
            floor: ctx.floor_in(self.lineage),
            foreign: ctx.foreign_floor(self.lineage),
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
        let from = update.ballot.node;
        let knows = |a: &Acceptor| a.state.index >= update.index && !a.state.view.contains(from);
        if from != ctx.me() && self.acceptor.as_ref().is_some_and(knows) {
            // The coordinator is out, and waits to hear that we know. We may be gone ourselves before it says so again.
            let beat = Box::new(self.heartbeat(ctx));
            ctx.reply(from, self.lineage, ClusterMsg::Heartbeat(beat));
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
        let stays = || {
            let mut before: Vec<NodeId> = old.members.iter().map(|n| n.id).collect();
            before.sort_unstable();
            let stays = |id: &NodeId| before.binary_search(id).is_ok();
            view.members.iter().map(|n| n.id).filter(stays).map(Process::from).collect()
        };
        ctx.trace(|p| Event::Install {
            p,
            g: Group::CLUSTER,
            lin: lin(lineage),
            vid: view.id.get(),
            members: view.members.iter().map(|n| n.id.into()).collect(),
            prev: view.prev.get(),
            trans: stays(),
            idx: Some(at.get()),
            snap,
        });
        ctx.push(Output::ClusterView(view.clone()));
        self.deaths.keep(|id| self.view.contains(id));
        self.leavers.retain(|id| self.view.contains(*id));
    }

    /// The coordinator is about to remove us although we speak: a newer process has our address. Stops for good, and
    /// from now on asks to be let go, in case this coordinator does not live to do it.
    pub(crate) fn on_stop(&mut self, ctx: &mut Ctx, from: NodeId) {
        ctx.mark("a node is told to stop");
        self.stop_leading_all(ctx, WhyNot::Removed);
        self.replaced = true;
        if ctx.config.acts_elsewhere {
            // They end a moment after they are told, and we cannot say when. There will be no more leases: the last is waited out.
            return;
        }
        self.leaving = true;
        ctx.reply(from, self.lineage, ClusterMsg::Stopped);
    }

    /// Leaves the cluster: stops acting first, then says so until it is out.
    pub(crate) fn leave(&mut self, ctx: &mut Ctx) -> Option<End> {
        self.stop_leading_all(ctx, WhyNot::Leave);
        self.leaving = true;
        self.leavers.insert(ctx.me());
        ctx.trace(|p| Event::Leave { p, g: Group::CLUSTER });
        if self.is_last_to_leave(ctx) {
            return Some(End::Left);
        }
        let me = ctx.me();
        match (&mut self.office, &self.acceptor) {
            (Some(office), Some(acceptor)) => office.on_leave(ctx, acceptor, &self.deaths, me),
            _ => self.say_leave(ctx),
        }
        None
    }

    /// The coordinator is to let us go. It may be about to go itself: whoever comes after it shall know, too.
    fn say_leave(&self, ctx: &mut Ctx) {
        self.to_coordinator(ctx, ClusterMsg::Leave);
        let me = ctx.me();
        for id in self.core.iter().filter(|id| **id != self.following.node && **id != me) {
            if let Some(info) = self.node(*id) {
                ctx.send(info, self.lineage, ClusterMsg::Leave);
            }
        }
    }

    /// Somebody leaves, and we are not in office.
    pub(crate) fn hear_of_leave(&mut self, ctx: &Ctx, from: NodeId) {
        if self.view.contains(from) && from != ctx.me() && self.leavers.insert(from) {
            // Fewer may come before us now.
            self.takeover.turn_comes_anew();
        }
    }

    /// We leave, and there is nobody left who could let us go.
    pub(crate) fn is_last_to_leave(&self, ctx: &Ctx) -> bool {
        let others = || self.view.members.iter().filter(|node| node.id != ctx.me());
        self.leaving && !self.replaced && self.is_installed() && !others().any(|node| node.eligible)
    }

    /// A newer process has the address of this coordinator: it stops acting, commits its own removal, and goes.
    pub(crate) fn make_room(&mut self, ctx: &mut Ctx) {
        ctx.mark("a coordinator makes room for a newer process at its address");
        self.stop_leading_all(ctx, WhyNot::Removed);
        self.leaving = true;
        self.replaced = true;
        if let Some(office) = &mut self.office {
            office.remove(ctx, &self.deaths, ctx.me(), Why::Replaced);
            if ctx.config.acts_elsewhere {
                office.not_removed_before(ctx.me(), self.lease.until);
            } else {
                office.on_stopped(ctx.me());
            }
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
