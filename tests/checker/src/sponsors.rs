//! GM10: whoever comes into a cluster view had shown its sponsor the cluster's key. The sponsor is the coordinator that first
//! proposed the entry which admits it; who finishes what a predecessor left undecided takes the predecessor's word.

use std::collections::BTreeMap;

use membership_types::trace::Process;

use crate::{
    book::{At, Book, Evidence},
    chain::Arrival,
    quorum::Quorum,
    report::Predicate,
};

/// Who met whom, and who came.
#[derive(Debug, Default)]
pub(crate) struct Sponsors {
    met: BTreeMap<Process, BTreeMap<Process, At>>,
    /// What is judged once its instant is over, because records of one instant have no order.
    pending: Vec<Arrival>,
    /// Sponsors that did not meet somebody, as far as they told, and when they proposed: it counts unless their records are cut
    /// short just then.
    unmet: Vec<(Process, u64, String, Vec<Evidence>)>,
    /// Whose last records may be missing, and since when.
    cut_short: BTreeMap<Process, u64>,
}

impl Sponsors {
    /// One process met another, which showed the key.
    pub(crate) fn met(&mut self, p: Process, q: Process, at: At) {
        self.met.entry(p).or_default().entry(q).or_insert(at);
    }

    /// The last records of a process may not have reached its trace.
    pub(crate) fn cut_short(&mut self, p: Process, at: At) {
        self.cut_short.entry(p).or_insert(at.t);
    }

    /// Somebody is in a cluster view who was not in the one before.
    pub(crate) fn arrived(&mut self, arrival: Arrival) {
        self.pending.push(arrival);
    }

    /// Time has come to `t`.
    pub(crate) fn time(&mut self, book: &mut Book, quorum: &Quorum, t: u64) {
        while self.pending.first().is_some_and(|arrival| arrival.at().t < t) {
            let arrival = self.pending.remove(0);
            self.judge(book, quorum, arrival);
        }
    }

    fn judge(&mut self, book: &mut Book, quorum: &Quorum, arrival: Arrival) {
        let Arrival { who, lin, vid, idx, mut evidence } = arrival;
        let Some((sponsor, proposed)) = idx.and_then(|idx| quorum.sponsor(lin, idx)) else { return };
        let Some(met) = self.met.get(&sponsor) else {
            return book.idle(Predicate::GM10, "nobody who admits others tells that it asks for a key");
        };
        if sponsor == who {
            return;
        }
        book.judged(Predicate::GM10);
        let late = match met.get(&who) {
            Some(at) if at.t <= proposed.t => return,
            Some(at) => Some((*at, format!("{sponsor} meets {who}"))),
            None => None,
        };
        evidence.push((proposed, format!("the entry that {sponsor} proposed is accepted")));
        let not = if late.is_some() { "before it proposed that" } else { "ever" };
        evidence.extend(late);
        let what = format!("{who} is in view {vid}, and has not shown its sponsor {sponsor} a key {not}");
        self.unmet.push((sponsor, proposed.t, what, evidence));
    }

    /// The trace ends.
    pub(crate) fn finish(&mut self, book: &mut Book, quorum: &Quorum, lease: u64) {
        self.time(book, quorum, u64::MAX);
        for (sponsor, t, what, evidence) in std::mem::take(&mut self.unmet) {
            let lost = self.cut_short.get(&sponsor).is_some_and(|killed| *killed <= t.saturating_add(lease));
            if !lost {
                book.violated(Predicate::GM10, what, evidence);
            }
        }
    }
}
