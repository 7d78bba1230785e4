//! The groups of a node: what it knows of them, which of them it acts for, and its application's wishes about them.

use alloc::{boxed::Box, vec::Vec};

use membership_types::{
    Ballot, GroupName, NodeId, Token, ViewId,
    trace::{Event, Group, Process, lin},
};

use super::Member;
use crate::{
    ctx::{Ctx, Output, Part, WhyNot},
    entry::GroupWish,
    msg::ClusterMsg,
    office::Office,
    plant::Plant,
    view::{GroupView, Kind, SharedView},
};

/// A group that this node is in, or observes.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) struct Known {
    pub(super) view: SharedView,
    /// The ballot under which we first heard of this view, while no lease from it has come.
    unleased: Option<Box<Ballot>>,
    /// The last token under which we acted; one of no view if we never did.
    acted: Token,
    /// The last view that is installed, where members multicast.
    installed: ViewId,
    /// We act under the view's token.
    acting: bool,
}

impl Member {
    /// A group view is learned.
    pub(super) fn learn(&mut self, ctx: &mut Ctx, view: SharedView, ballot: Ballot) {
        let me = ctx.me();
        // Who keeps the log has it already: once is enough.
        let kept = self.acceptor.as_ref().and_then(|acceptor| acceptor.state.group(&view.group));
        let mut view = kept.filter(|kept| **kept == view).cloned().unwrap_or(view);
        if let (Some((name, _)), Some(view)) =
            (self.groups.get_key_value(&view.group), alloc::sync::Arc::get_mut(&mut view))
        {
            // Nor is its name kept twice, where it has just been read.
            view.group = name.clone();
        }
        let known = self.groups.get(&view.group);
        let was_member = known.is_some_and(|k| k.view.contains(me));
        let stale = known.is_some_and(|k| view.id != ViewId::NONE && k.view.id >= view.id);
        let observed = ctx.observes.contains(&view.group);
        if stale || known.is_none() && !view.contains(me) && !observed {
            return;
        }
        let acted = known.map_or(Token::new(ViewId::NONE), |k| k.acted);
        let installed = known.map_or(ViewId::NONE, |k| k.installed);
        let goes_on =
            known.is_some_and(|k| k.acting && view.leader() == Some(me) && view.token == k.view.token);
        if !goes_on {
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
            if view.leader() == Some(me) && !goes_on {
                self.to_lead.insert(view.group.clone());
            } else {
                self.to_lead.remove(&view.group);
            }
            // What our leases have come to, they do not fall behind again.
            let leased = self.lease.ballot.is_some_and(|leased| leased >= ballot);
            let unleased = (!leased).then(|| Box::new(ballot));
            self.groups.insert(
                view.group.clone(),
                Known { view: view.clone(), unleased, acted, installed, acting: goes_on },
            );
        }
        ctx.push(Output::View(view, part));
    }

    /// The log has come as a whole: views that the node has been told already are not kept twice.
    pub(crate) fn share_views(&mut self) {
        let Some(acceptor) = &mut self.acceptor else { return };
        for known in self.groups.values() {
            acceptor.state.share(&known.view);
        }
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
            && !self.replaced
            && self.holds_lease(ctx.now)
            && known.view.leader() == Some(ctx.me())
            && (known.view.kind == Kind::Plain
                || known.installed >= known.view.token.view()
                || ctx.planted(Plant::LeadUninstalled))
            && self.lease.ballot.is_some_and(|b| known.unleased.as_ref().is_none_or(|of| b >= **of))
            && !self.office.as_ref().is_some_and(Office::is_dissolving)
            && (!ctx.wishes.giving_up(&known.view.group) || ctx.planted(Plant::StepDownLate))
    }

    /// Begins to act for every group for which that is allowed now.
    pub(super) fn start_leading(&mut self, ctx: &mut Ctx) {
        let may =
            |group: &&GroupName| self.groups.get(*group).is_some_and(|k| !k.acting && self.may_lead(ctx, k));
        let ready: Vec<GroupName> = self.to_lead.iter().filter(may).cloned().collect();
        for group in ready {
            self.to_lead.remove(&group);
            let Some(known) = self.groups.get_mut(&group) else { continue };
            let token = known.view.token;
            known.acting = true;
            known.unleased = None;
            if known.acted == token {
                ctx.mark("a leader goes on under its token after a lease gap");
            }
            known.acted = token;
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
        if !core::mem::take(&mut known.acting) {
            return;
        }
        let token = known.view.token;
        self.to_lead.insert(known.view.group.clone());
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
            self.groups.iter().filter(|(_, k)| k.acting).map(|(name, _)| name.clone()).collect();
        for group in acting {
            self.stop_leading(ctx, &group, why);
        }
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
        let none = || GroupView::empty(group.clone(), self.lineage, ViewId::NONE).into();
        let view = acceptor.state.group(group).cloned().unwrap_or_else(none);
        self.learn(ctx, view, self.following);
    }
}
