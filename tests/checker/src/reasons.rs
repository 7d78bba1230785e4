//! GM9: nobody is excluded without a reason; LV7: views are as few as what happened explains.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::Process;

use crate::{
    book::{At, Book, Lin},
    chain::Exclusion,
    report::Predicate,
    terms::Terms,
};

/// Why somebody may be excluded, and what views were made for.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    /// Who is gone, or asked to leave.
    gone: BTreeSet<Process>,
    /// Who suspects whom, as far as that was not withdrawn.
    suspects: BTreeMap<Process, BTreeSet<Process>>,
    /// Incarnations that ended by themselves, by node: their successors come of no will but the service's own.
    ended: BTreeSet<u64>,
    nodes: BTreeSet<u64>,
    causes: u64,
    last_cause: Option<At>,
    views: BTreeMap<Lin, u64>,
    made: u64,
    since_cause: u64,
    harness: bool,
}

impl Reasons {
    pub(crate) fn suspect(&mut self, p: Process, q: Process) {
        self.suspects.entry(q).or_default().insert(p);
    }

    pub(crate) fn unsuspect(&mut self, p: Process, q: Process) {
        if let Some(by) = self.suspects.get_mut(&q) {
            by.remove(&p);
        }
    }

    pub(crate) fn leave(&mut self, p: Process, at: At) {
        self.gone.insert(p);
        self.cause(at);
    }

    pub(crate) fn start(&mut self, p: Process, at: At) {
        self.harness = true;
        self.nodes.insert(p.0);
        if !self.ended.remove(&p.0) {
            self.cause(at);
        }
    }

    pub(crate) fn crash(&mut self, p: Process, by_itself: bool, at: At) {
        self.gone.insert(p);
        if by_itself {
            self.ended.insert(p.0);
        } else {
            self.ended.remove(&p.0);
            self.cause(at);
        }
    }

    /// A fault, or the end of one.
    pub(crate) fn cause(&mut self, at: At) {
        self.causes += 1;
        self.mended(at);
    }

    /// Something was mended: that may take views, but is no fault of its own.
    pub(crate) fn mended(&mut self, at: At) {
        self.last_cause = Some(at);
        self.since_cause = 0;
    }

    /// GM9, where a step between two views shows that somebody is out.
    pub(crate) fn excluded(&self, book: &mut Book, terms: Option<&Terms>, out: &Exclusion) {
        let Some(k) = terms.and_then(Terms::suspects) else {
            return book.idle(Predicate::GM9, "Cfg does not say how many must suspect (k)");
        };
        book.judged(Predicate::GM9);
        let by = self.suspects.get(&out.who).map_or(0, BTreeSet::len) as u64;
        let needed = k.min(out.others);
        if by >= needed || self.gone.contains(&out.who) {
            return;
        }
        let what = format!(
            "{} is excluded, and neither left nor crashed; {by} of at least {needed} suspect it",
            out.who
        );
        book.violated(Predicate::GM9, what, out.evidence.clone());
    }

    /// LV7, when a cluster view is installed.
    pub(crate) fn view(&mut self, book: &mut Book, terms: Option<&Terms>, lin: Lin, vid: u64, at: At) {
        let last = self.views.entry(lin).or_default();
        if vid <= *last {
            return;
        }
        *last = vid;
        self.made += 1;
        self.since_cause += 1;
        let Some((c, m)) = terms.and_then(Terms::economy) else {
            return book.idle(Predicate::LV7, "Cfg does not say how many views are too many (c, m)");
        };
        if !self.harness {
            return book.idle(Predicate::LV7, "no harness tells of faults and starts");
        }
        book.judged(Predicate::LV7);
        let nodes = self.nodes.len() as u64;
        let (most, most_since) =
            (c.saturating_mul(self.causes).saturating_add(1), m.saturating_mul(nodes).saturating_add(1));
        let what = if self.made > most {
            format!("{} views, where {} faults, joins and leaves explain {most}", self.made, self.causes)
        } else if self.since_cause > most_since {
            let since = self.since_cause;
            format!("{since} views since the latest fault, join or leave; {nodes} nodes explain {most_since}")
        } else {
            return;
        };
        let mut evidence = vec![(at, format!("view {vid} is installed"))];
        evidence.extend(self.last_cause.map(|at| (at, "the latest cause for a view".to_string())));
        book.violated(Predicate::LV7, what, evidence);
    }
}
