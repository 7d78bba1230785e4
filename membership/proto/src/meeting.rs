//! Other lineages: two clusters of one name that meet become one.
//!
//! Rendezvous probing never stops. Of two active lineages the younger dissolves; halves of one lineage never do, they
//! just hear of each other again. A node whose lineage is blocked goes over to an active one after a while, or (where
//! anybody may found) begins anew, or (under `expect(n)`) goes over to a younger one even if that is blocked too: a
//! majority of the slots has founded it since, and may need just this node.

use alloc::collections::BTreeMap;

use membership_types::{Instant, Lineage, ViewId};

use crate::{
    config::Bootstrap,
    ctx::{Ctx, Dest, End},
    member::Member,
    msg::{ClusterMsg, Probe, Standing},
    view::NodeInfo,
};

/// How many addresses a blocked node probes in one round.
const PROBES_WHEN_BLOCKED: usize = 8;

#[derive(Clone, Debug, PartialEq, Hash)]
struct Other {
    contact: NodeInfo,
    last_view: ViewId,
    /// When it was last heard.
    heard_at: Instant,
    /// It was active then.
    active: bool,
}

/// What a member knows of other lineages.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Meeting {
    others: BTreeMap<Lineage, Other>,
    next_probe: Instant,
    /// When we last asked somebody of another lineage whether it hears us.
    asked_at: Instant,
}

impl Meeting {
    pub(crate) fn new(ctx: &Ctx) -> Self {
        Self { others: BTreeMap::new(), next_probe: ctx.now, asked_at: Instant::ZERO }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next_probe
    }
}

impl Member {
    /// Where we stand, for strangers.
    pub(crate) fn standing(&self, ctx: &Ctx) -> Standing {
        Standing::Member {
            lineage: self.lineage,
            active: self.holds_lease(ctx.now) && !self.leaving,
            coordinator: self.coordinator().cloned(),
            last_view: ctx.highest.max(self.view.id),
        }
    }

    /// Probes rendezvous addresses now and then; often while blocked.
    pub(crate) fn on_probe_due(&mut self, ctx: &mut Ctx) {
        if ctx.now < self.meeting.next_probe {
            return;
        }
        let blocked = !self.holds_lease(ctx.now);
        let (pause, count) =
            if blocked { (ctx.config.heartbeat * 2, PROBES_WHEN_BLOCKED) } else { (ctx.lease(), 1) };
        let jitter = ctx.rng.below(pause.as_nanos() as u64 / 2 + 1);
        self.meeting.next_probe = ctx.now.after(pause + core::time::Duration::from_nanos(jitter));
        let standing = self.standing(ctx);
        for _ in 0..count {
            if let Some(addr) = ctx.random_address() {
                let probe = Probe { info: ctx.config.me.clone(), standing: standing.clone(), answer: true };
                ctx.probe(Dest::Addr(addr), probe);
            }
        }
        let recent = ctx.lease() * 4;
        self.meeting.others.retain(|_, other| ctx.now - other.heard_at <= recent);
    }

    /// Another node says where it stands.
    pub(crate) fn on_probe(&mut self, ctx: &mut Ctx, probe: Probe) {
        if probe.answer {
            let answer = Probe { info: ctx.config.me.clone(), standing: self.standing(ctx), answer: false };
            ctx.probe(Dest::Node(probe.info.id, Some(probe.info.addr)), answer);
        }
        let Standing::Member { lineage, active, coordinator, last_view } = probe.standing else { return };
        if lineage == self.lineage {
            // We may have lost sight of the coordinator, or have been removed: it will tell.
            let lost = !self.holds_lease(ctx.now) && self.office.is_none();
            if let Some(info) = coordinator.filter(|c| lost && c.id != ctx.me()) {
                let beat = self.heartbeat(ctx);
                ctx.send(&info, self.lineage, ClusterMsg::Heartbeat(beat.into()));
            }
        } else if !probe.answer {
            if active {
                self.met(ctx, lineage, probe.info, last_view);
            } else {
                let other = Other { contact: probe.info, last_view, heard_at: ctx.now, active };
                self.meeting.others.insert(lineage, other);
            }
        } else if active && ctx.now >= self.meeting.asked_at.after(ctx.config.heartbeat) {
            // Only one that hears us is a cluster to go over to.
            self.meeting.asked_at = ctx.now;
            let question = Probe { info: ctx.config.me.clone(), standing: self.standing(ctx), answer: true };
            ctx.probe(Dest::Node(probe.info.id, Some(probe.info.addr)), question);
        }
    }

    /// An active cluster of our name is of another lineage.
    pub(crate) fn met(&mut self, ctx: &mut Ctx, lineage: Lineage, contact: NodeInfo, last_view: ViewId) {
        if lineage == self.lineage {
            return;
        }
        let elder = lineage < self.lineage;
        let news = !self.meeting.others.contains_key(&lineage);
        self.meeting
            .others
            .insert(lineage, Other { contact: contact.clone(), last_view, heard_at: ctx.now, active: true });
        let active = self.holds_lease(ctx.now);
        let standing = self.standing(ctx);
        match &mut self.office {
            Some(office) if elder && active => office.dissolve(ctx, lineage),
            Some(_) if !elder && news => {
                // So that the younger one hears of us even if nobody there ever looks here.
                let probe = Probe { info: ctx.config.me.clone(), standing, answer: true };
                ctx.probe(Dest::Node(contact.id, Some(contact.addr)), probe);
            }
            Some(_) => {}
            None => self.to_coordinator(ctx, ClusterMsg::Met { lineage, contact, last_view }),
        }
    }

    /// Is it time to give up this lineage?
    pub(crate) fn check_give_up(&mut self, ctx: &mut Ctx) -> Option<End> {
        if self.holds_lease(ctx.now) {
            return None;
        }
        let blocked = ctx.now - self.blocked_since;
        if !self.is_installed() {
            let why = "the founding did not come about";
            return (blocked > ctx.lease() * 3).then_some(End::StartOver { why });
        }
        if blocked < ctx.lease() {
            return None;
        }
        if self.leaving && blocked >= ctx.lease() * 2 {
            return Some(End::Left); // Nobody is left to let us go.
        }
        let recent = |o: &&Other| ctx.now - o.heard_at <= ctx.lease() * 3;
        if let Some((into, other)) = self.meeting.others.iter().find(|(_, o)| o.active && recent(o)) {
            ctx.highest = ctx.highest.max(other.last_view);
            return (blocked >= ctx.config.give_up).then_some(End::Dissolved { into: *into });
        }
        match ctx.config.bootstrap {
            Bootstrap::AloneAfter(d) if blocked >= d.max(ctx.lease()) => {
                Some(End::StartOver { why: "its cluster is blocked and no other is in reach" })
            }
            _ if ctx.config.terms.slots > 0 && blocked >= ctx.config.give_up * 3 / 2 => {
                let younger = self.meeting.others.iter().rev().find(|(l, o)| **l > self.lineage && recent(o));
                younger.map(|(into, _)| {
                    ctx.mark("a node leaves a blocked lineage for a younger one");
                    End::Dissolved { into: *into }
                })
            }
            _ => None,
        }
    }

    /// When giving up may become due.
    pub(crate) fn give_up_deadline(&self, ctx: &Ctx) -> Instant {
        if self.lease_deadline().is_some() {
            return Instant::MAX;
        }
        ctx.now.after(ctx.config.heartbeat)
    }
}
