//! Which faults a run injects: all that are drawn, or those of a recorded run but for some.
//!
//! Faults and everything else draw from one generator, so a fault that is left out would shift all that is drawn after it.
//! So a run that leaves some out follows the recording of the run that has them all: where the n-th fault is due, and again
//! after it, the generator is set to where it was there. What is drawn for a fault, and when the next one comes, is then as
//! it was, whether the ones before were injected or not.

use std::{collections::BTreeSet, rc::Rc};

use membership_types::Rng;

use crate::faults::Kind;

/// A fault that was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number in the run, from 1.
    pub number: usize,
    /// When, in simulated nanoseconds.
    pub at_ns: u64,
    /// Its kind.
    pub kind: Kind,
    /// Was it injected, and was something there to be hit?
    pub struck: bool,
    /// What was hit, how, and for how long.
    pub notes: Vec<String>,
}

/// What was drawn in a run, and from where.
#[derive(Debug)]
pub(crate) struct Recording(Vec<Recorded>);

#[derive(Debug)]
struct Recorded {
    before: Rng,
    after: Rng,
    struck: bool,
}

/// What a run follows, and writes down.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// How many faults were drawn.
    number: usize,
    follows: Option<(Rc<Recording>, BTreeSet<usize>)>,
    /// Written down only where somebody wants to know: a long run has many faults.
    writes: bool,
    recorded: Vec<Recorded>,
    faults: Vec<Fault>,
    /// The fault that what is noted now belongs to.
    current: Option<usize>,
}

impl Script {
    /// Writes down what is drawn.
    pub(crate) fn recording() -> Self {
        Self { writes: true, ..Self::default() }
    }

    /// Follows a recording, but does not inject the faults of these numbers.
    pub(crate) fn following(recording: &Rc<Recording>, skip: BTreeSet<usize>) -> Self {
        Self { follows: Some((Rc::clone(recording), skip)), ..Self::recording() }
    }

    /// The next fault is about to be drawn.
    pub(crate) fn begin(&mut self, rng: &mut Rng) {
        self.number += 1;
        if let Some(known) = self.known() {
            *rng = known.before.clone();
        }
        if self.writes {
            self.recorded.push(Recorded { before: rng.clone(), after: rng.clone(), struck: false });
        }
    }

    /// It is of this kind. False if it is not to be injected.
    pub(crate) fn drawn(&mut self, at_ns: u64, kind: Kind) -> bool {
        if self.writes {
            self.current = Some(self.faults.len());
            let (number, notes) = (self.number, Vec::new());
            self.faults.push(Fault { number, at_ns, kind, struck: false, notes });
        }
        // What the recorded run did not have is not wanted either.
        !self.follows.as_ref().is_some_and(|(_, skip)| skip.contains(&self.number) || self.known().is_none())
    }

    /// Did this fault strike in the recorded run?
    pub(crate) fn struck_there(&self) -> bool {
        self.known().is_some_and(|known| known.struck)
    }

    /// All was drawn for it.
    pub(crate) fn end(&mut self, rng: &mut Rng, struck: bool) {
        if let Some(known) = self.known() {
            *rng = known.after.clone();
        }
        if let Some(last) = self.recorded.last_mut() {
            (last.after, last.struck) = (rng.clone(), struck);
        }
        if let Some(fault) = self.current.take().and_then(|current| self.faults.get_mut(current)) {
            fault.struck = struck;
        }
    }

    /// The fault that is injected just now, for what it does later.
    pub(crate) fn current(&self) -> Option<usize> {
        self.current
    }

    /// What is noted now belongs to this fault.
    pub(crate) fn set_current(&mut self, fault: Option<usize>) {
        self.current = fault;
    }

    /// What a fault did.
    pub(crate) fn note(&mut self, fault: Option<usize>, note: impl FnOnce() -> String) {
        if let Some(fault) = fault.and_then(|fault| self.faults.get_mut(fault)) {
            fault.notes.push(note());
        }
    }

    pub(crate) fn finish(self) -> (Recording, Vec<Fault>) {
        (Recording(self.recorded), self.faults)
    }

    fn known(&self) -> Option<&Recorded> {
        self.follows.as_ref()?.0.0.get(self.number - 1)
    }
}
