//! The node's groups: what applications want of them, what is known of them, and how the node leads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use membership_proto::{GroupView, GroupWish, Input, Kind, Part, SharedView, WhyNot};
use membership_sync::LeaderCell;
use membership_types::{GroupName, Instant, Lineage, NodeId, Token, ViewId};
use tokio::sync::oneshot;

use super::Driver;
use crate::{
    channel::Mailbox,
    clock,
    event::{Ended, Event, Lead, Said, Speaker, Standing, State, Topic, What},
    node::{Kept, Wanting},
    replica,
};

/// One group at this node. There may be very many: what few of them need is apart.
pub(super) struct Slot {
    wanted: Option<Wanted>,
    /// How the node stands in it: what is kept on the bus, once it is told.
    said: Arc<Said>,
    few: Option<Box<Few>>,
    /// The bulk thread knows of the group.
    bulk: bool,
}

/// What only few groups have, or only for a while.
#[derive(Default)]
struct Few {
    /// Handles of observers.
    observers: BTreeSet<u64>,
    /// Told when the node is no member any more.
    left: Vec<oneshot::Sender<()>>,
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
    away: Option<Box<(Instant, Duration)>>,
    mailbox: Option<Arc<Mailbox>>,
    leaving: Leaving,
    /// Stepping down waits for the first view.
    steps_down: bool,
}

impl Slot {
    fn new(speaker: &Arc<Speaker>) -> Self {
        let state = State::Group(Standing::new(Arc::clone(speaker)));
        Self { wanted: None, said: Arc::new(Said { event: None, state }), few: None, bulk: false }
    }

    fn standing(&self) -> &Standing {
        self.said.standing().expect("a slot is about a group")
    }

    /// To be changed; and told after that.
    fn standing_mut(&mut self) -> &mut Standing {
        match &mut Arc::make_mut(&mut self.said).state {
            State::Group(standing) => standing,
            State::Node(_) => unreachable!("a slot is about a group"),
        }
    }

    fn is_member(&self) -> bool {
        self.standing().member
    }

    fn is_observed(&self) -> bool {
        self.few.as_ref().is_some_and(|few| !few.observers.is_empty())
    }

    fn few(&mut self) -> &mut Few {
        self.few.get_or_insert_default()
    }

    /// Nothing is kept for what is over.
    fn tidy(&mut self) {
        let unused = |few: &mut Box<Few>| {
            few.observers.is_empty()
                && few.left.is_empty()
                && few.since_death.is_none()
                && few.stepped_down.is_empty()
        };
        self.few.take_if(unused);
    }
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
        let slot = Self::slot(&mut self.groups, &self.speaker, &group);
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
        if let Some(few) = &mut slot.few {
            few.left.clear();
        }
        if !again {
            self.inputs.push_back(Input::Wish(GroupWish::Join { group, endpoint, kind }));
        }
    }

    pub(super) fn leave(&mut self, group: GroupName, done: Option<oneshot::Sender<()>>) {
        let Some(slot) = self.groups.get_mut(&group) else { return };
        let is_member = slot.is_member();
        let Some(wanted) = &mut slot.wanted else { return };
        if let Some(done) = done {
            slot.few.get_or_insert_default().left.push(done);
        }
        match (wanted.leaving, is_member) {
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
        let is_member = slot.is_member();
        let seen = slot.standing().view.as_ref().filter(|_| is_member).map(|view| view.id);
        let Some(wanted) = &mut slot.wanted else { return };
        slot.few.get_or_insert_default().stepped_down.push((seen, done));
        if is_member {
            self.inputs.push_back(Input::Wish(GroupWish::StepDown { group }));
        } else {
            wanted.steps_down = true;
        }
    }

    pub(super) fn observe(&mut self, group: GroupName, handle: u64) {
        let slot = Self::slot(&mut self.groups, &self.speaker, &group);
        let first = !slot.is_observed();
        slot.few().observers.insert(handle);
        if first {
            self.inputs.push_back(Input::Observe { group, begin: true });
        }
    }

    pub(super) fn handle_dropped(&mut self, group: GroupName, handle: u64) {
        let Some(slot) = self.groups.get_mut(&group) else { return };
        if slot.few.as_mut().is_some_and(|few| few.observers.remove(&handle)) {
            if slot.is_observed() {
                return;
            }
            self.inputs.push_back(Input::Observe { group: group.clone(), begin: false });
            if !slot.is_member() && slot.wanted.is_none() {
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
        let Some(wanted) =
            self.groups.get_mut(group).filter(|s| s.is_member()).and_then(|s| s.wanted.as_mut())
        else {
            return;
        };
        if wanted.leaving != Leaving::No {
            return;
        }
        let recent = wanted.away.as_deref().filter(|(at, _)| clock::now() - *at < FORGIVEN);
        let away = recent.map_or(AWAY.0, |(_, before)| (*before * 2).clamp(AWAY.0, AWAY.1));
        tracing::warn!(%group, ?away, "others wait for this member: it leaves the group for a while");
        wanted.leaving = Leaving::SteppedOut;
        wanted.away = Some(Box::new((clock::now().after(away), away)));
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
                wanted.away = Some(Box::new((clock::now(), Duration::ZERO)));
                self.away.insert(group.clone());
            }
        }
        self.rejoin_due(clock::now());
    }

    /// The application stands still: out of the group until it lives.
    fn step_out_late(&mut self, group: &GroupName) {
        let Some(wanted) =
            self.groups.get_mut(group).filter(|s| s.is_member()).and_then(|s| s.wanted.as_mut())
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
            (!slot.is_member()).then_some(wanted.away.as_ref()?.0)
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
            let is_member = slot.is_member();
            let Some(wanted) = slot.wanted.as_mut().filter(|w| w.leaving == Leaving::SteppedOut) else {
                self.away.remove(&group);
                continue;
            };
            if is_member || wanted.away.as_ref().is_none_or(|away| away.0 > now) {
                continue;
            }
            wanted.leaving = Leaving::No;
            self.away.remove(&group);
            let endpoint = wanted.endpoint.clone();
            let kind = wanted.kind();
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
            if slot.is_observed() {
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
        let told = Arc::new(self.shared.names.view(view));
        let leader = told.leader().map(|l| &*l.name);
        let rank = told.rank_of(me);
        tracing::debug!(%group, view = %view.id, members = view.members.len(), rank = rank.map(|r| r.get()), leader, "group view");
        let slot = Self::slot(&mut self.groups, &self.speaker, &group);
        let was_member = slot.is_member();
        if let Some(few) = &mut slot.few {
            for (seen, done) in std::mem::take(&mut few.stepped_down) {
                // Told to step down before the first view: that one comes first.
                if rank.is_some() && seen.is_none_or(|seen| view.id <= seen) {
                    few.stepped_down.push((seen.or(Some(view.id)), done));
                } else {
                    let _gone = done.send(());
                }
            }
            slot.tidy();
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
        let listens = slot.wanted.as_ref().is_some_and(|w| w.mailbox.is_some());
        if part == Part::Member && (kind == Kind::Multicast || listens) {
            slot.bulk = true;
            self.bulk.view(Arc::clone(&told), kind);
        }
        let event = self.speaker.event(clock::now_ns(), Some(group.clone()), What::View(told));
        let speaker = Arc::clone(&self.speaker);
        let standing = slot.standing_mut();
        (standing.view, standing.view_at) = (Some(SharedView::clone(view)), event.at_ns);
        (standing.member, standing.speaker) = (rank.is_some(), speaker);
        self.tell_group(&group, Arc::new(event));
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
        let Some(before) = slot.standing().view.clone().filter(|before| before.id == view.prev) else {
            return;
        };
        let had = |node: NodeId| before.members.iter().any(|m| m.node == node);
        let joined = view.members.iter().filter(|m| !had(m.node)).count();
        let left = before.members.iter().filter(|m| !view.contains(m.node)).count();
        let first = before.leader();
        let stepped_down = first.filter(|first| view.leader() != Some(*first) && view.contains(*first));
        let counted = [("join", joined), ("leave", left), ("step_down", stepped_down.iter().count())];
        for (cause, times) in counted.into_iter().filter(|(_, times)| *times > 0) {
            self.counts.group_changes.get_or_create(&[("cause", cause)]).inc_by(times as u64);
        }
        let succeeds = view.leader() == Some(me) && first != Some(me);
        let since_death = first.filter(|_| succeeds).and_then(|first| self.deaths.at(first));
        if since_death.is_some() || slot.few.is_some() {
            slot.few().since_death = since_death;
        }
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
        if !slot.is_observed() {
            slot.standing_mut().view = None;
        }
        let waiting = if left {
            slot.wanted = None;
            if let Some(more) = &mut slot.standing_mut().more {
                more.kept = None;
            }
            slot.few.as_mut().map(|few| std::mem::take(&mut few.left))
        } else {
            None
        };
        self.tell_group(group, event);
        for done in waiting.into_iter().flatten() {
            let _gone = done.send(());
        }
    }

    /// The incarnation is over: the node is in no group, until the next one is admitted.
    pub(super) fn groups_over(&mut self) {
        let groups: Vec<GroupName> = self.groups.keys().cloned().collect();
        for group in groups {
            let Some(slot) = self.groups.get_mut(&group) else { continue };
            for (_, done) in slot.few.iter_mut().flat_map(|few| std::mem::take(&mut few.stepped_down)) {
                let _gone = done.send(());
            }
            slot.standing_mut().member = false;
            let Some(wanted) = &slot.wanted else { continue };
            let left = matches!(wanted.leaving, Leaving::Once | Leaving::Asked)
                || self.stopping.is_some()
                || self.over.is_some();
            self.tell_out(&group, left);
        }
    }

    /// What the log says of groups, if this node is of the core and so keeps it.
    pub(super) fn kept_groups(&self, wanted: Wanting) -> Option<Kept> {
        // Who was in the core once still has a log, which ends then.
        if !self.machine.core().contains(&self.config.me.id) {
            return None;
        }
        let state = self.machine.committed()?;
        let views = match wanted {
            Wanting::One(group) => state.group(&group).cloned().into_iter().collect(),
            Wanting::After(after, limit) => {
                let after = |view: &&SharedView| after.as_ref().is_none_or(|after| view.group > *after);
                state.groups().filter(after).take(limit).cloned().collect()
            }
        };
        Some(Kept { index: state.index, views })
    }

    // ---- leading ----------------------------------------------------------------------------------------------------

    pub(super) fn begin_leading(&mut self, group: GroupName, token: Token, lineage: Lineage) {
        self.notice_lapse();
        let cell = LeaderCell::new(self.lease.clone());
        let standing = Self::slot(&mut self.groups, &self.speaker, &group).standing_mut();
        (standing.lead, standing.lead_at) = (Some(Lead::new(cell, token, lineage)), 0);
        self.tell_leading(&group);
    }

    /// The lease goes on: so does what was suspended.
    pub(super) fn resume_leading(&mut self) {
        if !std::mem::take(&mut self.suspended) {
            return;
        }
        let untold = |slot: &Slot| slot.standing().lead.is_some() && slot.standing().lead_at == 0;
        let ready: Vec<GroupName> =
            self.groups.iter().filter(|(_, slot)| untold(slot)).map(|(group, _)| group.clone()).collect();
        for group in ready {
            self.tell_leading(&group);
        }
    }

    fn tell_leading(&mut self, group: &GroupName) {
        let Some(slot) = self.groups.get_mut(group) else { return };
        let Some(lead) = slot.standing().lead.clone() else { return };
        let reign = lead.reign();
        // The clock is read for the event before anybody can act.
        let what = What::Leading { token: reign.token, lineage: reign.lineage };
        let event = Arc::new(self.speaker.event(clock::now_ns(), Some(group.clone()), what));
        if event.at_ns >= self.lease_until.as_nanos() || self.revoked || self.late {
            self.suspended = true;
            return;
        }
        reign.cell.lead(reign.token.get());
        self.leads = true;
        slot.standing_mut().lead_at = event.at_ns;
        self.counts.reigns.inc();
        if let Some(since) = slot.few.as_mut().and_then(|few| few.since_death.take()) {
            slot.tidy();
            self.counts.takeover.observe(clock::now() - since);
        }
        self.counts.leading.inc();
        tracing::info!(%group, token = %reign.token, "leading");
        self.tell_group(group, event);
    }

    /// The machine says that we do not lead the group any more.
    pub(super) fn end_leading(&mut self, group: &GroupName, token: Token, why: WhyNot, until: Instant) {
        self.notice_lapse();
        let Some(slot) = self.groups.get_mut(group) else { return };
        if slot.standing().lead.as_ref().is_none_or(|lead| lead.reign().token != token) {
            return;
        }
        let standing = slot.standing_mut();
        let Some(lead) = standing.lead.take() else { return };
        // The cell may have been cleared, and the clock read, already: for the trace.
        lead.reign().cell.stop();
        let was_told = std::mem::take(&mut standing.lead_at) > 0;
        let until = if why == WhyNot::Lease { until } else { self.lease_until.min(clock::now()) };
        if was_told {
            self.tell_end(group, &lead, why, until);
        }
    }

    /// Clears the cell of a group, and gives the end of all that was possible under it.
    pub(super) fn stop_acting(&mut self, group: &GroupName) -> Instant {
        if let Some(lead) = self.groups.get(group).and_then(|slot| slot.standing().lead.as_ref()) {
            lead.reign().cell.stop();
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
                let lead = slot.standing().told_lead()?.clone();
                slot.standing_mut().lead_at = 0;
                Some((group.clone(), lead))
            })
            .collect();
        self.suspended |= !told.is_empty();
        for (_, lead) in &told {
            lead.reign().cell.stop();
        }
        for (group, lead) in told {
            self.tell_end(&group, &lead, why, until);
        }
    }

    fn tell_end(&mut self, group: &GroupName, lead: &Lead, why: WhyNot, until: Instant) {
        self.counts.leading.dec();
        let (token, lineage, until_ns) = (lead.reign().token, lead.reign().lineage, until.as_nanos());
        tracing::info!(%group, %token, why = why.as_str(), "not leading");
        let event = self.event(Some(group.clone()), What::NotLeading { token, lineage, why, until_ns });
        if let Some(slot) = self.groups.get_mut(group) {
            let (at_ns, speaker) = (event.at_ns, Arc::clone(&self.speaker));
            let ended = Ended { token, lineage, why, until_ns, at_ns, speaker };
            slot.standing_mut().more.get_or_insert_default().last_end = Some(ended);
        }
        self.tell_group(group, Arc::new(event));
    }

    /// How the group's state stands, that is kept on disk.
    pub(super) fn tell_state(&mut self, group: &GroupName, standing: replica::Standing) {
        let event = Arc::new(self.event(Some(group.clone()), What::State { standing: standing.clone() }));
        let Some(slot) = self.groups.get_mut(group).filter(|slot| slot.wanted.is_some()) else { return };
        slot.standing_mut().more.get_or_insert_default().kept =
            Some(Box::new((standing, Arc::clone(&event))));
        self.tell_group(group, event);
    }

    /// The groups in which the node is.
    pub(super) fn memberships(&self) -> Arc<[GroupName]> {
        self.groups.iter().filter(|(_, slot)| slot.is_member()).map(|(name, _)| name.clone()).collect()
    }

    // ---- telling ----------------------------------------------------------------------------------------------------

    /// The slot of a group, which begins with this if there is none.
    fn slot<'a>(
        groups: &'a mut BTreeMap<GroupName, Box<Slot>>,
        speaker: &Arc<Speaker>,
        group: &GroupName,
    ) -> &'a mut Slot {
        groups.entry(group.clone()).or_insert_with(|| Box::new(Slot::new(speaker)))
    }

    /// Tells something about a group, with the group's state after it. A group that nobody wants is forgotten with that.
    fn tell_group(&mut self, group: &GroupName, event: Arc<Event>) {
        let Some(slot) = self.groups.get(group) else { return };
        let kept = Arc::clone(&slot.said);
        let said = Arc::new(Said { event: Some(event), state: kept.state.clone() });
        let used = slot.wanted.is_some() || slot.is_member() || slot.is_observed();
        let topic = Topic::Group(group.clone());
        if used {
            self.bus.publish_with(topic, said, kept);
        } else {
            self.groups.remove(group);
            self.bus.retire(&topic, said);
        }
    }
}
