//! The node's groups: what applications want of them, what is known of them, and how the node leads them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use membership_proto::{GroupView, GroupWish, Input, Kind, Part, SharedView, WhyNot};
use membership_sync::LeaderCell;
use membership_types::{GroupName, Instant, Lineage, NodeId, Token, ViewId};
use tokio::sync::oneshot;

use super::Driver;
use crate::{
    channel::Mailbox,
    clock,
    event::{Event, Lead, Member, Said, Topic, View, What},
    node::lock,
    replica::Standing,
    status::GroupStatus,
};

/// One group at this node.
#[derive(Default)]
pub(super) struct Slot {
    wanted: Option<Wanted>,
    /// Handles of observers.
    observers: BTreeSet<u64>,
    view: Option<Arc<View>>,
    /// The event that told of it.
    view_event: Option<Arc<Event>>,
    /// Is the node a member, by that view?
    member: bool,
    acting: Option<Acting>,
    last_end: Option<Arc<Event>>,
    /// How the group's state stands that is kept on disk, and the event that told of it.
    state: Option<Box<(Standing, Arc<Event>)>>,
    /// Told when the node is no member any more.
    left: Vec<oneshot::Sender<()>>,
    /// The bulk thread knows of the group.
    bulk: bool,
    /// When the death of the leader before us was proved, until we lead.
    since_death: Option<Instant>,
    /// Told when a view comes that is newer than this one.
    stepped_down: Vec<(Option<ViewId>, oneshot::Sender<()>)>,
}

/// An application wants the node to be a member.
struct Wanted {
    endpoint: Option<Box<str>>,
    handle: u64,
    /// Others waited for this member, and it stepped out: when it comes back, and how long it was away.
    away: Option<(Instant, Duration)>,
    mailbox: Option<Arc<Mailbox>>,
    leaving: Leaving,
    /// Stepping down waits for the first view.
    steps_down: bool,
}

impl Wanted {
    /// Who takes messages joins groups that have them.
    fn kind(&self) -> Kind {
        if self.mailbox.is_some() { Kind::Multicast } else { Kind::Plain }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// As soon as the node is a member: a wish that overtakes the joining would leave nobody knowing how it ended.
    Once,
    Asked,
    /// Others wait for this member: it comes back.
    SteppedOut,
}

/// The machine says that the node leads.
struct Acting {
    lead: Lead,
    /// The event that told of it; `None` while the lease has lapsed before the machine noticed.
    told: Option<Arc<Event>>,
}

/// How long who stepped out stays away, at first and at most.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Who has not been asked to step out for so long begins with the short time again.
const FORGIVEN: Duration = Duration::from_secs(300);

impl Driver {
    // ---- wishes -----------------------------------------------------------------------------------------------------

    pub(super) fn join(
        &mut self,
        group: GroupName,
        endpoint: Option<Box<str>>,
        handle: u64,
        mailbox: Option<Arc<Mailbox>>,
    ) {
        if self.stopping.is_some() {
            mailbox.iter().for_each(|mailbox| mailbox.end());
            return;
        }
        let slot = self.groups.entry(group.clone()).or_default();
        let goes_on = slot.wanted.as_ref().is_some_and(|w| matches!(w.leaving, Leaving::No | Leaving::Once));
        let again = slot.wanted.as_ref().filter(|_| goes_on).is_some_and(|w| w.endpoint == endpoint);
        let is_new = mailbox.is_some();
        let mailbox = mailbox.or_else(|| slot.wanted.as_mut().and_then(|w| w.mailbox.take()));
        if !goes_on && slot.bulk {
            // Who left and comes back is a new member, whether it heard in between that it was out or not.
            self.bulk.out(group.clone(), false);
        }
        if let Some(mailbox) = mailbox.clone().filter(|_| is_new) {
            slot.bulk = true;
            self.bulk.open(group.clone(), mailbox);
        }
        let wanted = slot.wanted.insert(Wanted {
            endpoint: endpoint.clone(),
            handle,
            away: None,
            mailbox,
            leaving: Leaving::No,
            steps_down: false,
        });
        let kind = wanted.kind();
        // Whoever waits for the end of the membership that this one replaces waits no longer.
        slot.left.clear();
        if !again {
            self.inputs.push_back(Input::Wish(GroupWish::Join { group, endpoint, kind }));
        }
    }

    pub(super) fn leave(&mut self, group: GroupName, done: Option<oneshot::Sender<()>>) {
        let Some(slot) = self.groups.get_mut(&group) else { return };
        let Some(wanted) = &mut slot.wanted else { return };
        slot.left.extend(done);
        match (wanted.leaving, slot.member) {
            (Leaving::Asked, _) => {}
            // It has said so already.
            (Leaving::SteppedOut, true) => wanted.leaving = Leaving::Asked,
            (Leaving::SteppedOut, false) => {
                wanted.leaving = Leaving::Asked;
                self.tell_out(&group, true);
            }
            (_, false) => wanted.leaving = Leaving::Once,
            (_, true) => {
                wanted.leaving = Leaving::Asked;
                self.inputs.push_back(Input::Wish(GroupWish::Leave { group }));
            }
        }
    }

    pub(super) fn step_down(&mut self, group: GroupName, done: oneshot::Sender<()>) {
        let Some(slot) = self.groups.get_mut(&group) else { return };
        let Some(wanted) = &mut slot.wanted else { return };
        slot.stepped_down.push((slot.view.as_ref().filter(|_| slot.member).map(|v| v.id), done));
        if slot.member {
            self.inputs.push_back(Input::Wish(GroupWish::StepDown { group }));
        } else {
            wanted.steps_down = true;
        }
    }

    pub(super) fn observe(&mut self, group: GroupName, handle: u64) {
        let slot = self.groups.entry(group.clone()).or_default();
        let first = slot.observers.is_empty();
        slot.observers.insert(handle);
        if first {
            self.inputs.push_back(Input::Observe { group, begin: true });
        }
    }

    pub(super) fn handle_dropped(&mut self, group: GroupName, handle: u64) {
        let Some(slot) = self.groups.get_mut(&group) else { return };
        if slot.observers.remove(&handle) && slot.observers.is_empty() {
            self.inputs.push_back(Input::Observe { group: group.clone(), begin: false });
            if !slot.member && slot.wanted.is_none() {
                // Nobody wants to hear of it any more; who still holds a stream is told that this is the end.
                let event = self.event(Some(group.clone()), What::Out { left: true });
                self.tell_group(&group, Arc::new(event));
            }
        } else if slot.wanted.as_ref().is_some_and(|w| w.handle == handle) {
            self.leave(group, None);
        }
    }

    /// Others of the group wait for this member: it leaves, and comes back after a while that doubles each time.
    pub(super) fn step_out(&mut self, group: &GroupName) {
        let Some(wanted) = self.groups.get_mut(group).filter(|s| s.member).and_then(|s| s.wanted.as_mut())
        else {
            return;
        };
        if wanted.leaving != Leaving::No {
            return;
        }
        let recent = wanted.away.filter(|(at, _)| clock::now() - *at < FORGIVEN);
        let away = recent.map_or(AWAY.0, |(_, before)| (2 * before).clamp(AWAY.0, AWAY.1));
        tracing::warn!(%group, ?away, "others wait for this member: it leaves the group for a while");
        wanted.leaving = Leaving::SteppedOut;
        wanted.away = Some((clock::now().after(away), away));
        self.away.insert(group.clone());
        self.inputs.push_back(Input::Wish(GroupWish::Leave { group: group.clone() }));
    }

    /// Looks whether the application still stands still, or does by now.
    pub(super) fn watch_application(&mut self) {
        let Some(pats) = self.shared.pats.as_ref().filter(|_| self.stopping.is_none()) else { return };
        let late = pats.is_late();
        if late == self.late {
            return;
        }
        self.late = late;
        if late {
            let why = format!("nothing was heard of the application for {:?}", pats.limit());
            tracing::error!(why, "the application stands still: the node leaves its groups");
            let groups: Vec<GroupName> = self.groups.keys().cloned().collect();
            groups.iter().for_each(|group| self.step_out_late(group));
            self.say(What::Stuck { why });
            return;
        }
        tracing::warn!("the application lives: the node joins its groups again");
        self.say(What::Unstuck);
        for (group, slot) in &mut self.groups {
            let Some(wanted) = slot.wanted.as_mut() else { continue };
            if wanted.leaving == Leaving::SteppedOut && wanted.away.is_none() {
                wanted.away = Some((clock::now(), Duration::ZERO));
                self.away.insert(group.clone());
            }
        }
        self.rejoin_due(clock::now());
    }

    /// The application stands still: out of the group until it lives.
    fn step_out_late(&mut self, group: &GroupName) {
        let Some(wanted) = self.groups.get_mut(group).filter(|s| s.member).and_then(|s| s.wanted.as_mut())
        else {
            return;
        };
        if wanted.leaving == Leaving::No {
            (wanted.leaving, wanted.away) = (Leaving::SteppedOut, None);
            self.inputs.push_back(Input::Wish(GroupWish::Leave { group: group.clone() }));
        }
    }

    /// When the next one who stepped out comes back.
    pub(super) fn next_rejoin(&self) -> Option<Instant> {
        if self.late {
            return None;
        }
        let away = |slot: &Slot| {
            let wanted = slot.wanted.as_ref().filter(|w| w.leaving == Leaving::SteppedOut)?;
            (!slot.member).then_some(wanted.away?.0)
        };
        self.away.iter().filter_map(|group| away(self.groups.get(group)?)).min()
    }

    pub(super) fn rejoin_due(&mut self, now: Instant) {
        if self.late {
            return;
        }
        for group in self.away.clone() {
            let Some(slot) = self.groups.get_mut(&group) else {
                self.away.remove(&group);
                continue;
            };
            let Some(wanted) = slot.wanted.as_mut().filter(|w| w.leaving == Leaving::SteppedOut) else {
                self.away.remove(&group);
                continue;
            };
            if slot.member || wanted.away.is_none_or(|(at, _)| at > now) {
                continue;
            }
            wanted.leaving = Leaving::No;
            self.away.remove(&group);
            let endpoint = wanted.endpoint.clone();
            let kind = wanted.kind();
            if slot.bulk {
                self.bulk.out(group.clone(), false);
            }
            self.inputs.push_back(Input::Wish(GroupWish::Join { group, endpoint, kind }));
        }
    }

    /// A fresh incarnation wants what the last one wanted.
    pub(super) fn wish_again(&mut self) {
        for (group, slot) in &mut self.groups {
            if let Some(wanted) = slot.wanted.as_mut() {
                if wanted.leaving == Leaving::SteppedOut {
                    wanted.leaving = Leaving::No;
                }
                let (group, endpoint, kind) = (group.clone(), wanted.endpoint.clone(), wanted.kind());
                self.inputs.push_back(Input::Wish(GroupWish::Join { group, endpoint, kind }));
            }
            if !slot.observers.is_empty() {
                self.inputs.push_back(Input::Observe { group: group.clone(), begin: true });
            }
        }
    }

    // ---- views ------------------------------------------------------------------------------------------------------

    /// The machine learned a view of a group.
    pub(super) fn learn(&mut self, view: &SharedView, part: Part) {
        self.notice_lapse();
        self.counts.group_views.inc();
        self.count_changes(view);
        let (group, me, kind) = (view.group.clone(), self.config.me.id, view.kind);
        let view = Arc::new(self.named(view));
        let rank = view.rank_of(me);
        let slot = self.groups.entry(group.clone()).or_default();
        let was_member = slot.member;
        slot.member = rank.is_some();
        slot.view = Some(Arc::clone(&view));
        for (seen, done) in std::mem::take(&mut slot.stepped_down) {
            // Told to step down before the first view: that one comes first.
            if slot.member && seen.is_none_or(|seen| view.id <= seen) {
                slot.stepped_down.push((seen.or(Some(view.id)), done));
            } else {
                let _gone = done.send(());
            }
        }
        if let Some(wanted) = slot.wanted.as_mut().filter(|_| rank.is_some()) {
            if std::mem::take(&mut wanted.steps_down) {
                self.inputs.push_back(Input::Wish(GroupWish::StepDown { group: group.clone() }));
            }
            if wanted.leaving == Leaving::Once {
                wanted.leaving = Leaving::Asked;
                self.inputs.push_back(Input::Wish(GroupWish::Leave { group: group.clone() }));
            }
        }
        let leader = view.leader().map(|l| &*l.name);
        tracing::debug!(%group, view = %view.id, members = view.members.len(), rank = rank.map(|r| r.get()), leader, "group view");
        let event = Arc::new(self.event(Some(group.clone()), What::View(Arc::clone(&view))));
        let slot = self.groups.get_mut(&group).expect("just made");
        slot.view_event = Some(Arc::clone(&event));
        let listens = slot.wanted.as_ref().is_some_and(|w| w.mailbox.is_some());
        if part == Part::Member && (kind == Kind::Multicast || listens) {
            slot.bulk = true;
            self.bulk.view(Arc::clone(&view), kind);
        }
        self.tell_group(&group, event);
        if self.late {
            self.step_out_late(&group);
        }
        let is_out = part == Part::Left || was_member && rank.is_none();
        if is_out {
            self.out(&group);
        }
    }

    /// What a view changes against the one before it, if that is known.
    fn count_changes(&mut self, view: &GroupView) {
        let me = self.config.me.id;
        let Some(slot) = self.groups.get_mut(&view.group) else { return };
        let Some(before) = slot.view.clone().filter(|before| before.id == view.prev) else { return };
        let had = |node: NodeId| before.members.iter().any(|m| m.node == node);
        let joined = view.members.iter().filter(|m| !had(m.node)).count();
        let left = before.members.iter().filter(|m| !view.contains(m.node)).count();
        let first = before.leader().map(|l| l.node);
        let stepped_down = first.filter(|first| view.leader() != Some(*first) && view.contains(*first));
        let counted = [("join", joined), ("leave", left), ("step_down", stepped_down.iter().count())];
        for (cause, times) in counted.into_iter().filter(|(_, times)| *times > 0) {
            self.counts.group_changes.get_or_create(&[("cause", cause)]).inc_by(times as u64);
        }
        let succeeds = view.leader() == Some(me) && first != Some(me);
        slot.since_death = first.filter(|_| succeeds).and_then(|first| self.deaths.at(first));
    }

    /// A view of the group without this node is known.
    fn out(&mut self, group: &GroupName) {
        let Some(slot) = self.groups.get_mut(group) else { return };
        let asked = slot.wanted.as_ref().is_none_or(|w| w.leaving == Leaving::Asked);
        self.tell_out(group, asked);
    }

    /// The node is no member any more; if it left on request, it wants to be none.
    fn tell_out(&mut self, group: &GroupName, left: bool) {
        let event = Arc::new(self.event(Some(group.clone()), What::Out { left }));
        let Some(slot) = self.groups.get_mut(group) else { return };
        if slot.bulk {
            self.bulk.out(group.clone(), left);
        }
        if slot.observers.is_empty() {
            slot.view = None;
            slot.view_event = None;
        }
        let waiting = if left {
            slot.wanted = None;
            slot.state = None;
            std::mem::take(&mut slot.left)
        } else {
            Vec::new()
        };
        self.tell_group(group, event);
        for done in waiting {
            let _gone = done.send(());
        }
    }

    /// The incarnation is over: the node is in no group, until the next one is admitted.
    pub(super) fn groups_over(&mut self) {
        let groups: Vec<GroupName> = self.groups.keys().cloned().collect();
        for group in groups {
            let Some(slot) = self.groups.get_mut(&group) else { continue };
            for (_, done) in std::mem::take(&mut slot.stepped_down) {
                let _gone = done.send(());
            }
            slot.member = false;
            let Some(wanted) = &slot.wanted else {
                self.show_group(&group);
                continue;
            };
            let left = matches!(wanted.leaving, Leaving::Once | Leaving::Asked)
                || self.stopping.is_some()
                || self.over.is_some();
            self.tell_out(&group, left);
        }
    }

    fn named(&self, view: &GroupView) -> View {
        let member = |member: &membership_proto::Member| Member {
            node: member.node,
            name: self.names.get(&member.node).cloned().unwrap_or_else(|| member.node.to_string().into()),
            endpoint: member.endpoint.as_deref().map(Arc::from),
        };
        View {
            group: view.group.clone(),
            lineage: view.lineage,
            id: view.id,
            prev: view.prev,
            token: view.token,
            members: view.members.iter().map(member).collect(),
        }
    }

    // ---- leading ----------------------------------------------------------------------------------------------------

    pub(super) fn begin_leading(&mut self, group: GroupName, token: Token, lineage: Lineage) {
        self.notice_lapse();
        let cell = Arc::new(LeaderCell::new(self.lease.clone()));
        let slot = self.groups.entry(group.clone()).or_default();
        slot.acting = Some(Acting { lead: Lead { cell, token, lineage }, told: None });
        self.tell_leading(&group);
    }

    /// The lease goes on: so does what was suspended.
    pub(super) fn resume_leading(&mut self) {
        if !std::mem::take(&mut self.suspended) {
            return;
        }
        let untold = |slot: &Slot| slot.acting.as_ref().is_some_and(|a| a.told.is_none());
        let ready: Vec<GroupName> =
            self.groups.iter().filter(|(_, slot)| untold(slot)).map(|(group, _)| group.clone()).collect();
        for group in ready {
            self.tell_leading(&group);
        }
    }

    fn tell_leading(&mut self, group: &GroupName) {
        let Some(acting) = self.groups.get(group).and_then(|s| s.acting.as_ref()) else { return };
        let lead = acting.lead.clone();
        // The clock is read for the event before anybody can act.
        let event =
            self.event(Some(group.clone()), What::Leading { token: lead.token, lineage: lead.lineage });
        let event = Arc::new(event);
        if event.at_ns >= self.lease_until.as_nanos() || self.revoked || self.late {
            self.suspended = true;
            return;
        }
        lead.cell.lead(lead.token.get());
        self.leads = true;
        if let Some(acting) = self.groups.get_mut(group).and_then(|s| s.acting.as_mut()) {
            acting.told = Some(Arc::clone(&event));
        }
        self.counts.reigns.inc();
        if let Some(since) = self.groups.get_mut(group).and_then(|slot| slot.since_death.take()) {
            self.counts.takeover.observe(clock::now() - since);
        }
        self.counts.leading.inc();
        tracing::info!(%group, token = %lead.token, "leading");
        self.tell_group(group, event);
    }

    /// The machine says that we do not lead the group any more.
    pub(super) fn end_leading(&mut self, group: &GroupName, token: Token, why: WhyNot, until: Instant) {
        self.notice_lapse();
        let Some(slot) = self.groups.get_mut(group) else { return };
        let Some(acting) = slot.acting.take_if(|a| a.lead.token == token) else { return };
        // The cell may have been cleared, and the clock read, already: for the trace.
        acting.lead.cell.stop();
        let until = if why == WhyNot::Lease { until } else { self.lease_until.min(clock::now()) };
        if acting.told.is_some() {
            self.tell_end(group, &acting.lead, why, until);
        }
    }

    /// Clears the cell of a group, and gives the end of all that was possible under it.
    pub(super) fn stop_acting(&mut self, group: &GroupName) -> Instant {
        if let Some(acting) = self.groups.get(group).and_then(|slot| slot.acting.as_ref()) {
            acting.lead.cell.stop();
        }
        self.lease_until.min(clock::now())
    }

    /// We lead nothing until the lease goes on: told before anything else.
    pub(super) fn suspend_leading(&mut self, why: WhyNot, until: Instant) {
        // Asked before all that is told, so it must not cost a walk each time.
        if !std::mem::take(&mut self.leads) {
            return;
        }
        let told: Vec<(GroupName, Lead)> = self
            .groups
            .iter_mut()
            .filter_map(|(group, slot)| {
                let acting = slot.acting.as_mut()?;
                acting.told.take()?;
                Some((group.clone(), acting.lead.clone()))
            })
            .collect();
        self.suspended |= !told.is_empty();
        for (_, lead) in &told {
            lead.cell.stop();
        }
        for (group, lead) in told {
            self.tell_end(&group, &lead, why, until);
        }
    }

    fn tell_end(&mut self, group: &GroupName, lead: &Lead, why: WhyNot, until: Instant) {
        self.counts.leading.dec();
        tracing::info!(%group, token = %lead.token, why = why.as_str(), "not leading");
        let (token, lineage, until_ns) = (lead.token, lead.lineage, until.as_nanos());
        let event =
            Arc::new(self.event(Some(group.clone()), What::NotLeading { token, lineage, why, until_ns }));
        if let Some(slot) = self.groups.get_mut(group) {
            slot.last_end = Some(Arc::clone(&event));
        }
        self.tell_group(group, event);
    }

    /// How the group's state stands, that is kept on disk.
    pub(super) fn tell_state(&mut self, group: &GroupName, standing: Standing) {
        let event = Arc::new(self.event(Some(group.clone()), What::State { standing: standing.clone() }));
        let Some(slot) = self.groups.get_mut(group).filter(|slot| slot.wanted.is_some()) else { return };
        slot.state = Some(Box::new((standing, Arc::clone(&event))));
        self.tell_group(group, event);
    }

    /// The groups in which the node is.
    pub(super) fn memberships(&self) -> Arc<[GroupName]> {
        self.groups.iter().filter(|(_, slot)| slot.member).map(|(name, _)| name.clone()).collect()
    }

    // ---- telling ----------------------------------------------------------------------------------------------------

    /// Tells something about a group, with the group's state after it. A group that nobody wants is forgotten with that.
    fn tell_group(&mut self, group: &GroupName, event: Arc<Event>) {
        let Some(slot) = self.groups.get(group) else { return };
        let acting = slot.acting.as_ref().filter(|a| a.told.is_some());
        let kept = slot.state.as_deref().map(|(_, event)| event);
        let told = acting.and_then(|a| a.told.as_ref());
        let state = slot.view_event.iter().chain(kept).chain(told).cloned().collect();
        let lead = acting.map(|a| a.lead.clone());
        let said = Arc::new(Said { event, state, lead, last_end: slot.last_end.clone() });
        let used = slot.wanted.is_some() || slot.member || !slot.observers.is_empty();
        if !used {
            self.groups.remove(group);
        }
        // Before it is told, so that who hears of it finds it there.
        self.show_group(group);
        let topic = Topic::Group(group.clone());
        if used {
            self.bus.publish(topic, said);
        } else {
            self.bus.retire(&topic, said);
        }
    }

    /// Puts how the node stands in a group where handles find it.
    fn show_group(&self, group: &GroupName) {
        let mut shown = lock(&self.shared.groups);
        let Some(slot) = self.groups.get(group) else {
            shown.remove(group);
            return;
        };
        let status = GroupStatus {
            view: slot.view.clone(),
            member: slot.member,
            leading: slot.acting.as_ref().filter(|a| a.told.is_some()).map(|a| a.lead.token),
            state: slot.state.as_deref().map(|(standing, _)| standing.clone()),
        };
        match shown.get_mut(group) {
            Some(known) => *known = status,
            None => drop(shown.insert(group.clone(), status)),
        }
    }
}
