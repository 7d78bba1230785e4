//! LV6: in a run without faults nobody is suspected, and nobody is excluded who did not leave.

use std::collections::BTreeMap;

use membership_types::trace::Process;

use crate::{
    book::{At, Book},
    chain::Wills,
    report::Predicate,
};

/// Whether anything went wrong that excuses a suspicion.
#[derive(Debug, Default)]
pub(crate) struct Accuracy {
    fault: Option<&'static str>,
    suspicion: Option<(At, String)>,
    installs: bool,
    /// How many processes of each node run, as the harness tells.
    running: BTreeMap<u64, u64>,
}

impl Accuracy {
    /// A process starts. A second one of a node takes over its address, which is a fault.
    pub(crate) fn start(&mut self, p: Process) {
        let running = self.running.entry(p.0).or_default();
        *running += 1;
        if *running > 1 {
            self.fault("an address was taken over");
        }
    }

    pub(crate) fn crash(&mut self, p: Process, by_itself: bool) {
        if !by_itself {
            self.fault("a process crashed");
        }
        if let Some(running) = self.running.get_mut(&p.0) {
            *running = running.saturating_sub(1);
        }
    }

    /// Something happened that excuses suspicions.
    pub(crate) fn fault(&mut self, what: &'static str) {
        self.fault.get_or_insert(what);
    }

    pub(crate) fn suspect(&mut self, p: Process, q: Process, why: &str, at: At) {
        if self.suspicion.is_none() {
            self.suspicion = Some((at, format!("{p} suspects {q}: {why}")));
        }
    }

    pub(crate) fn install(&mut self) {
        self.installs = true;
    }

    /// The run is over.
    pub(crate) fn finish(self, book: &mut Book, wills: &Wills) {
        if let Some(fault) = self.fault {
            return book.idle(Predicate::LV6, format!("the run may have had faults: {fault}"));
        }
        if self.installs {
            book.judged(Predicate::LV6);
        }
        if let Some((at, text)) = self.suspicion {
            book.violated(Predicate::LV6, "a suspicion without a fault", vec![(at, text)]);
        }
        if let Some(exclusion) = &wills.exclusion {
            let what = format!("{} is excluded without a fault", exclusion.who);
            book.violated(Predicate::LV6, what, exclusion.evidence.clone());
        }
    }
}
