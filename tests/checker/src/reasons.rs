//! GM9: nobody is excluded without a reason; LV7: views are as few as what happened explains.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use membership_types::trace::Process;

use crate::{
    book::{At, Book, Lin},
    chain::Exclusion,
    report::Predicate,
    terms::Terms,
};

/// How many starts of a node within so many leases explain views.
const STARTS: usize = 8;
const WINDOW: u64 = 16;

/// Why somebody may be excluded, and what views were made for.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    /// Who is gone, or asked to leave.
    gone: BTreeSet<Process>,
    /// Who suspects whom, as far as that was not withdrawn.
    suspects: BTreeMap<Process, BTreeSet<Process>>,
    /// Real processes that were killed, and when: their last records may not have reached their traces.
    killed: Vec<(Process, u64)>,
    /// Exclusions without a reason: they count unless somebody who may have had one was killed just then.
    unexplained: Vec<(Exclusion, String)>,
    /// Incarnations that ended by themselves, by node: their successors come of no will but the service's own.
    ended: BTreeSet<u64>,
    nodes: BTreeSet<u64>,
    running: BTreeSet<Process>,
    causes: u64,
    /// How many views a cause explains.
    c: u64,
    /// How many views they explain.
    explained: u64,
    /// When each node's latest starts were.
    starts: BTreeMap<u64, VecDeque<u64>>,
    /// Links that lose some of what is said, a fault that goes on.
    lossy: BTreeSet<(u64, u64)>,
    last_cause: Option<At>,
    last_pause: Option<u64>,
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

    pub(crate) fn cut_short(&mut self, p: Process, at: At) {
        self.killed.push((p, at.t));
    }

    pub(crate) fn leave(&mut self, p: Process, at: At) {
        self.gone.insert(p);
        self.cause(self.explains(p), at);
    }

    pub(crate) fn start(&mut self, terms: Option<&Terms>, p: Process, at: At) {
        self.c = terms.and_then(Terms::economy).unwrap_or_default().0;
        self.harness = true;
        self.nodes.insert(p.0);
        // It may take over the address of one that still runs and must be removed.
        let over = self.running.range(Process(p.0, 0)..=Process(p.0, u64::MAX)).count() as u64;
        self.running.insert(p);
        if self.ended.remove(&p.0) {
            return;
        }
        let starts = self.starts.entry(p.0).or_default();
        starts.push_back(at.t);
        let long_ago = at.t.saturating_sub(terms.map_or(0, |t| t.lease().saturating_mul(WINDOW)));
        while starts.front().is_some_and(|t| *t < long_ago) || starts.len() > STARTS + 1 {
            starts.pop_front();
        }
        self.cause(self.explains(p) + over, at);
    }

    pub(crate) fn crash(&mut self, p: Process, by_itself: bool, at: At) {
        self.running.remove(&p);
        let asked = !self.gone.insert(p);
        if by_itself {
            let another = self.running.range(Process(p.0, 0)..=Process(p.0, u64::MAX)).next().is_some();
            if !asked && !another {
                self.ended.insert(p.0);
            }
        } else {
            self.ended.remove(&p.0);
            self.cause(self.explains(p), at);
        }
    }

    /// How many views it explains that this process goes.
    fn explains(&self, p: Process) -> u64 {
        u64::from(self.starts.get(&p.0).is_none_or(|starts| starts.len() <= STARTS))
    }

    /// Somebody is stopped. All who are at one instant are one fault.
    pub(crate) fn pause(&mut self, terms: Option<&Terms>, at: At) {
        match self.last_pause.replace(at.t) == Some(at.t) {
            true => self.mended(at),
            false => self.fault(terms, at),
        }
    }

    /// A fault that is neither a start nor an end.
    pub(crate) fn fault(&mut self, terms: Option<&Terms>, at: At) {
        self.c = terms.and_then(Terms::economy).unwrap_or_default().0;
        self.cause(1, at);
    }

    fn cause(&mut self, explains: u64, at: At) {
        self.causes += 1;
        self.explained = self.explained.saturating_add(explains.saturating_mul(self.c));
        self.mended(at);
    }

    /// A link begins, or ceases, to lose messages.
    pub(crate) fn loses(&mut self, link: (u64, u64), loses: bool) {
        match loses {
            true => self.lossy.insert(link),
            false => self.lossy.remove(&link),
        };
    }

    /// Something was mended: that may take views, but is no fault of its own.
    pub(crate) fn mended(&mut self, at: At) {
        self.last_cause = Some(at);
        self.since_cause = 0;
    }

    /// GM9, where a step between two views shows that somebody is out.
    pub(crate) fn excluded(&mut self, book: &mut Book, terms: Option<&Terms>, out: &Exclusion) {
        let Some(k) = terms.and_then(Terms::suspects) else {
            return book.idle(Predicate::GM9, "Cfg does not say how many must suspect (k)");
        };
        book.judged(Predicate::GM9);
        let by = self.suspects.get(&out.who).map_or(0, BTreeSet::len) as u64;
        let needed = k.min(out.others.len() as u64);
        if by >= needed || self.gone.contains(&out.who) {
            return;
        }
        let what = format!(
            "{} is excluded, and neither left nor crashed; {by} of at least {needed} suspect it",
            out.who
        );
        self.unexplained.push((out.clone(), what));
    }

    /// The trace ends.
    pub(crate) fn finish(&mut self, book: &mut Book, lease: u64) {
        for (out, what) in std::mem::take(&mut self.unexplained) {
            let at = out.evidence.iter().map(|(at, _)| at.t).max().unwrap_or_default();
            let lost = |(p, t): &(Process, u64)| out.others.contains(p) && t.abs_diff(at) <= lease;
            if !self.killed.iter().any(lost) {
                book.violated(Predicate::GM9, what, out.evidence);
            }
        }
    }

    /// LV7, when a cluster view is installed.
    pub(crate) fn view(&mut self, book: &mut Book, terms: Option<&Terms>, lin: Lin, vid: u64, at: At) {
        let further = !self.views.is_empty();
        let last = self.views.entry(lin).or_default();
        if vid <= *last {
            return;
        }
        // Where several lineages are founded, each node may have to be admitted by another one once more.
        if *last == 0 && further {
            self.explained = self.explained.saturating_add(self.nodes.len() as u64);
        }
        *last = vid;
        self.made += 1;
        self.since_cause += 1;
        let Some((_, m)) = terms.and_then(Terms::economy) else {
            return book.idle(Predicate::LV7, "Cfg does not say how many views are too many (c, m)");
        };
        if !self.harness {
            return book.idle(Predicate::LV7, "no harness tells of faults and starts");
        }
        book.judged(Predicate::LV7);
        let nodes = self.nodes.len() as u64;
        let (most, most_since) =
            (self.explained.saturating_add(1), m.saturating_mul(nodes).saturating_add(1));
        let what = if self.made > most {
            format!("{} views, where {} faults, joins and leaves explain {most}", self.made, self.causes)
        } else if self.since_cause > most_since && self.lossy.is_empty() {
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
