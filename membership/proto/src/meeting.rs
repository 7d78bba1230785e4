//! Other lineages: two clusters of one name that meet become one.
//!
//! Rendezvous probing never stops. Of two active lineages the younger dissolves; halves of one lineage never do, they
//! just hear of each other again. A node whose lineage is blocked goes over to an active one after a while, or (where
//! anybody may found) begins anew, or (under `expect(n)`) goes over to a younger one even if that is blocked too: a
//! majority of the slots has founded it since, and may need just this node.
//!
//! An operator may give up a blocked lineage for a new one, founded from one node's state. The old one then ends wherever it
//! meets the new one, although it is the elder; see [`outlives`].

use alloc::{boxed::Box, collections::BTreeMap, format, string::String, vec::Vec};

use membership_types::{
    Instant, Lineage, ViewId,
    trace::{Event, lin},
};

use crate::{
    config::Bootstrap,
    ctx::{Ctx, Dest, End},
    member::Member,
    msg::{ClusterMsg, Probe, Standing},
    plant::Plant,
    seeking::new_lineage,
    view::NodeInfo,
};

/// How many lineages that were given up are remembered.
const SUPERSEDED_KEPT: usize = 16;

/// The lineage to be founded by the node from which an operator forced it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forced {
    /// The new lineage.
    pub lineage: Lineage,
    /// Those that it takes the place of, the latest first.
    pub supersedes: Vec<Lineage>,
    /// It numbers its views above this.
    pub highest: ViewId,
}

/// How many addresses a blocked node probes in one round; and one that has just come, so that others know it.
const PROBES_WHEN_BLOCKED: usize = 8;
/// How many one probes that has just come where there are many.
const PROBES_WHEN_NEW: usize = 2;
/// More addresses than this are many.
const MANY: usize = 16;

/// Does lineage `a` go on where the two meet? With each come those that operators gave up for it.
///
/// Whoever was given up for the other one ends. Else the one for which more was given up goes on, and of equals the elder: an
/// order without circles, since of three that meet at once none may end for the next one all around.
fn outlives(a: (Lineage, &[Lineage]), b: (Lineage, &[Lineage])) -> bool {
    if a.1.contains(&b.0) || b.1.contains(&a.0) {
        return a.1.contains(&b.0);
    }
    (b.1.len(), a.0) < (a.1.len(), b.0)
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Other {
    contact: NodeInfo,
    last_view: ViewId,
    /// When it was last heard.
    heard_at: Instant,
    /// It was active then.
    active: bool,
    /// An operator gave up ours for it.
    supersedes_ours: bool,
}

/// What a member knows of other lineages.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Meeting {
    others: BTreeMap<Lineage, Other>,
    next_probe: Instant,
    /// We have probed before.
    is_known: bool,
    /// When we last asked somebody of another lineage whether it hears us.
    asked_at: Instant,
}

impl Meeting {
    pub(crate) fn new(ctx: &Ctx) -> Self {
        // Whoever has just come has more to do at first.
        let next_probe = ctx.now.after(ctx.config.heartbeat / 2);
        Self { others: BTreeMap::new(), next_probe, is_known: false, asked_at: Instant::ZERO }
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
            supersedes: ctx.config.terms.supersedes.clone(),
        }
    }

    /// Probes rendezvous addresses now and then; often while blocked.
    pub(crate) fn on_probe_due(&mut self, ctx: &mut Ctx) {
        if ctx.now < self.meeting.next_probe {
            return;
        }
        // Where many begin at once the first lease takes a while, and longer if all of them look elsewhere meanwhile.
        let many_are_there = ctx.rendezvous.len() > MANY;
        let is_unleased = !self.holds_lease(ctx.now);
        let is_patient = is_unleased && many_are_there && ctx.now - self.unleased_since < ctx.lease() / 2;
        let often = is_unleased && !is_patient;
        let pause = match (often, is_patient) {
            (true, _) => ctx.config.heartbeat * 2,
            (_, true) => ctx.lease() / 2,
            (false, false) => ctx.lease(),
        };
        let is_known = core::mem::replace(&mut self.meeting.is_known, true);
        let count = match (often, is_known) {
            (true, _) => PROBES_WHEN_BLOCKED,
            (false, false) if many_are_there => PROBES_WHEN_NEW,
            (false, false) => PROBES_WHEN_BLOCKED,
            (false, true) => 1,
        };
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
        let Standing::Member { lineage, active, coordinator, last_view, supersedes } = probe.standing else {
            return;
        };
        if lineage == self.lineage {
            // We may have lost sight of the coordinator, or have been removed: it will tell.
            let lost = !self.holds_lease(ctx.now) && self.office.is_none();
            if let Some(info) = coordinator.filter(|c| lost && c.id != ctx.me()) {
                let beat = self.heartbeat(ctx);
                ctx.send(&info, self.lineage, ClusterMsg::Heartbeat(beat.into()));
            }
        } else if !probe.answer {
            if active {
                if self.office.is_none() {
                    let (contact, supersedes) = (Box::new(probe.info.clone()), supersedes.clone());
                    self.to_coordinator(ctx, ClusterMsg::Met { lineage, contact, last_view, supersedes });
                }
                self.met(ctx, lineage, probe.info, last_view, supersedes);
            } else {
                let supersedes_ours = supersedes.contains(&self.lineage);
                let other =
                    Other { contact: probe.info, last_view, heard_at: ctx.now, active, supersedes_ours };
                self.meeting.others.insert(lineage, other);
            }
        } else if active && ctx.now >= self.meeting.asked_at.after(ctx.config.heartbeat) {
            // Only one that hears us is a cluster to go over to.
            self.meeting.asked_at = ctx.now;
            let question = Probe { info: ctx.config.me.clone(), standing: self.standing(ctx), answer: true };
            ctx.probe(Dest::Node(probe.info.id, Some(probe.info.addr)), question);
        }
    }

    /// An active cluster of our name is of another lineage: it was heard here, or by a member that takes us for the coordinator. If
    /// that is wrong it goes no further: two that take each other for the coordinator would pass it on for ever, and probing, which
    /// never ends, says it again.
    pub(crate) fn met(
        &mut self,
        ctx: &mut Ctx,
        lineage: Lineage,
        contact: NodeInfo,
        last_view: ViewId,
        supersedes: Vec<Lineage>,
    ) {
        if lineage == self.lineage {
            return;
        }
        let theirs: &[Lineage] = if ctx.planted(Plant::GivenUpGoesOn) { &[] } else { &supersedes };
        let supersedes_ours = theirs.contains(&self.lineage);
        let goes_on = outlives((lineage, theirs), (self.lineage, &ctx.config.terms.supersedes));
        let news = !self.meeting.others.contains_key(&lineage);
        self.meeting.others.insert(
            lineage,
            Other { contact: contact.clone(), last_view, heard_at: ctx.now, active: true, supersedes_ours },
        );
        let active = self.holds_lease(ctx.now);
        let standing = self.standing(ctx);
        match &mut self.office {
            Some(office) if goes_on && active => office.dissolve(ctx, lineage),
            Some(_) if !goes_on && news => {
                // So that the other one hears of us even if nobody there ever looks here.
                let probe = Probe { info: ctx.config.me.clone(), standing, answer: true };
                ctx.probe(Dest::Node(contact.id, Some(contact.addr)), probe);
            }
            _ => {}
        }
    }

    /// Is it time to give up this lineage?
    pub(crate) fn check_give_up(&mut self, ctx: &mut Ctx) -> Option<End> {
        if self.holds_lease(ctx.now) {
            return None;
        }
        let (blocked, unleased) = (ctx.now - self.blocked_since, ctx.now - self.unleased_since);
        if !self.is_installed() {
            let why = "the founding did not come about";
            return (blocked > ctx.lease() * 3).then_some(End::StartOver { why });
        }
        // Views without a lease are no reason to stay where others are active: nodes may be admitted here again and again.
        if unleased < ctx.lease() {
            return None;
        }
        if self.leaving && blocked >= ctx.lease() {
            return Some(End::Left); // Nobody is left to let us go.
        }
        let recent = |o: &&Other| ctx.now - o.heard_at <= ctx.lease() * 3;
        if let Some((into, other)) = self.meeting.others.iter().find(|(_, o)| o.active && recent(o)) {
            ctx.highest = ctx.highest.max(other.last_view);
            let patience = if other.supersedes_ours { ctx.lease() } else { ctx.config.give_up };
            return (unleased >= patience).then_some(End::Dissolved { into: *into });
        }
        if ctx.planted(Plant::ForceByItself) && blocked >= ctx.config.give_up {
            return self.force_new(ctx).ok().map(End::Forced);
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

    /// An operator gives up this lineage, which is blocked, for a new one founded from this node.
    ///
    /// No lease that rests on our own binding lasts any more; that there are none elsewhere the operator answers for.
    pub(crate) fn force_new(&self, ctx: &mut Ctx) -> Result<Forced, String> {
        if !self.is_installed() || self.leaving || self.parting.is_some() {
            return Err("this node is about to leave its lineage, or has not come to it yet".into());
        }
        if !ctx.config.me.eligible {
            let why = "this node may not be of the core, so a lineage with it alone could decide nothing: force from one that may, \
                       or start one that may (`--core yes`), which this one then goes over to";
            return Err(why.into());
        }
        let blocked = ctx.now - self.blocked_since;
        let bound = self.acceptor.as_ref().map_or(Instant::ZERO, |acceptor| acceptor.given.until);
        if self.holds_lease(ctx.now) {
            return Err("this node is not blocked: its cluster can decide, and needs no force".into());
        }
        // A coordinator that is about to be removed has no lease of its own, and others still have theirs from it.
        if let (Some(office), Some(acceptor)) = (&self.office, &self.acceptor) {
            let given = office.granted_until(ctx, acceptor, &self.deaths);
            if ctx.now < given {
                return Err(format!(
                    "this node coordinates its cluster, and others may have leases from it for {:.1?}: wait until they are over",
                    given - ctx.now
                ));
            }
        }
        if blocked < ctx.granter_lease() || ctx.now < bound {
            return Err(format!("this node is blocked for {blocked:.1?} only: wait until a lease is over"));
        }
        let recent = |other: &Other| other.active && ctx.now - other.heard_at <= ctx.lease() * 3;
        if let Some((lineage, _)) = self.meeting.others.iter().find(|(_, other)| recent(other)) {
            return Err(format!(
                "lineage {lineage} of this cluster is active, and this node goes over to it by itself"
            ));
        }
        // The old lineage may have gone on without us, no faster than ids are made for each second.
        let state = self.acceptor.as_ref().map_or(ViewId::NONE, |acceptor| acceptor.state.last_view);
        let known = ctx.highest_or_floor().max(self.view.id).max(state).get();
        let unseen = (blocked.as_secs() + ctx.lease().as_secs() + 2) << ctx.config.id_bits;
        let highest = ViewId::new(known.saturating_add(unseen).min(ViewId::BOUND / 2).max(known));
        let old = self.lineage;
        let lineage = if ctx.planted(Plant::ForceTheSame) { old } else { new_lineage(ctx, highest) };
        let mut supersedes = Vec::from([old]);
        supersedes.extend(ctx.config.terms.supersedes.iter().take(SUPERSEDED_KEPT - 1));
        ctx.mark("an operator gives up a lineage");
        ctx.trace(|p| Event::Force { p, from: lin(old), lin: lin(lineage) });
        Ok(Forced { lineage, supersedes, highest })
    }

    /// When giving up may become due.
    pub(crate) fn give_up_deadline(&self, ctx: &Ctx) -> Instant {
        if self.lease_deadline().is_some() {
            return Instant::MAX;
        }
        ctx.now.after(ctx.config.heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_lineages_that_meet_one_outlives_all_others() {
        let l = |n| Lineage::new(n, 0);
        // 2 and 3 took the place of 1, 4 that of 2; 5 and 6 are of others.
        let all: [(Lineage, &[Lineage]); 6] =
            [(l(1), &[]), (l(2), &[l(1)]), (l(3), &[l(1)]), (l(4), &[l(2), l(1)]), (l(5), &[]), (l(0), &[])];
        for some in 1..1_usize << all.len() {
            let met: Vec<_> = (0..all.len()).filter(|i| some >> i & 1 == 1).map(|i| all[i]).collect();
            let first = |a: &&(Lineage, &[Lineage])| met.iter().all(|b| a.0 == b.0 || outlives(**a, *b));
            assert_eq!(met.iter().filter(first).count(), 1, "{met:?}");
        }
        assert!(outlives(all[1], all[0]) && outlives(all[3], all[1]), "whoever was given up ends");
        assert!(outlives(all[1], all[2]) && outlives(all[0], all[4]), "of equals the elder stays");
    }
}
