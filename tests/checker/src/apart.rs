//! LV8: where some of the living never reach each other, enough who do have one view, and it stays.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::Process;

use crate::{
    book::{At, Book, Evidence, Grp, Lin},
    calm::{Calm, Liveness, Scene},
    quorum::Outlook,
    report::Predicate,
};

/// With more pairs than this nobody looks for a clique.
const MOST_PAIRS: usize = 12;

impl Liveness {
    /// LV8, at `since`. From then on it must stay.
    pub(crate) fn check_apart(&mut self, book: &mut Book, scene: Scene<'_>, since: u64) {
        let Some(calm) = &mut self.calm else { return };
        if calm.apart.is_empty() || calm.apart.len() > MOST_PAIRS {
            return book.idle(Predicate::LV8, "all of the living reach each other, or hardly any");
        }
        let homes: BTreeSet<Lin> = calm.living.iter().filter_map(|p| scene.views.home(*p)).collect();
        // Where ids are set aside in directories those of a lineage wait for the slots that have done so for it, and so for
        // those of them who were in it before.
        let counts = |lin: Lin, p: Process| !scene.terms.durable() || calm.homes.get(&p) == Some(&lin);
        let can = |lin: Lin, who: &BTreeSet<Process>| {
            scene.quorum.can_decide(lin, who, None) == Some(Outlook::Can)
                && calm.holds_slots(scene.terms, |p| who.contains(&p) && counts(lin, p))
        };
        let cliques = calm.cliques();
        // Only one that everybody may choose as the quorum is sure to come about.
        let sure = |lin: &Lin| cliques.iter().all(|clique| can(*lin, clique));
        if !homes.iter().any(sure) {
            return book.idle(Predicate::LV8, "no quorum reaches all of itself");
        }
        book.judged(Predicate::LV8);
        let mut seats: BTreeMap<(Lin, u64), (BTreeSet<Process>, At)> = BTreeMap::new();
        for p in &calm.living {
            let Some(lin) = scene.views.home(*p) else { continue };
            let Some(seat) = scene.views.seat(*p, lin, Grp::CLUSTER) else { continue };
            seats.entry((lin, seat.vid)).or_insert_with(|| (BTreeSet::new(), seat.at)).0.insert(*p);
        }
        let holds = |((lin, _), (who, _)): (&(Lin, u64), &(BTreeSet<Process>, At))| {
            cliques.iter().any(|clique| can(*lin, &clique.intersection(who).copied().collect()))
        };
        if seats.iter().any(holds) {
            calm.stays = Some(since);
            return;
        }
        let mut evidence: Vec<Evidence> = seats
            .iter()
            .map(|((_, vid), (who, at))| (*at, format!("{} have view {vid}", who.len())))
            .collect();
        evidence.push(calm.told());
        let what = format!(
            "no quorum that reaches all of itself has one view, {} ns after GST",
            since - calm.gst().t
        );
        book.violated(Predicate::LV8, what, evidence);
    }
}

impl Calm {
    /// Do all of the living reach each other, if by way of others?
    pub(crate) fn is_connected(&self) -> bool {
        if self.apart.is_empty() {
            return true;
        }
        let mut left: BTreeSet<u64> = self.living.iter().map(|p| p.0).collect();
        let mut reached: Vec<u64> = left.pop_first().into_iter().collect();
        while let Some(from) = reached.pop() {
            let is_apart = |to: u64| self.apart.iter().any(|pair| *pair == (from, to) || *pair == (to, from));
            let next: Vec<u64> = left.iter().copied().filter(|to| !is_apart(*to)).collect();
            next.iter().for_each(|to| _ = left.remove(to));
            reached.extend(next);
        }
        left.is_empty()
    }

    /// The largest sets of the living that all reach each other: of each pair that does not, one is left out.
    fn cliques(&self) -> Vec<BTreeSet<Process>> {
        let mut out: BTreeSet<BTreeSet<u64>> = BTreeSet::from([BTreeSet::new()]);
        for (a, b) in &self.apart {
            let with = |set: &BTreeSet<u64>, node: u64| {
                let mut set = set.clone();
                set.insert(node);
                set
            };
            out = out
                .iter()
                .flat_map(|set| match set.contains(a) || set.contains(b) {
                    true => vec![set.clone()],
                    false => vec![with(set, *a), with(set, *b)],
                })
                .collect();
        }
        out.iter().map(|set| self.living.iter().filter(|p| !set.contains(&p.0)).copied().collect()).collect()
    }
}
