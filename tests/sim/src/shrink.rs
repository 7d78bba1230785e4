//! Makes the schedule of a failing run small: leaves faults out while the same predicate still fails.
//!
//! Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002 (delta debugging).

use std::{collections::BTreeSet, rc::Rc};

use crate::{Options, Run, play, record, script::Recording, script::Script};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Runs until now.
    pub runs: u64,
    /// Faults in the smallest schedule found, with what stays broken when calm begins.
    pub faults: usize,
    /// When calm begins in it, in simulated nanoseconds.
    pub calm_ns: u64,
}

/// The smallest schedule found.
#[derive(Debug)]
pub struct Shrunk {
    /// What fails.
    pub failure: &'static str,
    /// The run with that schedule.
    pub run: Run,
    /// The options that replay it.
    pub options: Options,
    /// How many faults struck at first, with what stayed broken when calm began.
    pub before: usize,
    /// How many are left.
    pub left: BTreeSet<usize>,
    /// How many runs it took.
    pub runs: u64,
    /// Does it need each fault that is left? Otherwise time ran out.
    pub minimal: bool,
}

/// Looks for a small schedule with which this seed still fails as it does with all its faults. `go_on` hears how far it is
/// before each run, and may end it. `None` if nothing fails.
pub fn shrink(seed: u64, options: &Options, go_on: &mut dyn FnMut(Step) -> bool) -> Option<Shrunk> {
    let (run, recording) = record(seed, options);
    let failure = *run.failures().first()?;
    let mut left: BTreeSet<usize> = run.schedule.iter().filter(|f| f.struck).map(|f| f.number).collect();
    left.insert(0);
    let all: BTreeSet<usize> = (0..=run.schedule.len()).collect();
    // The same run, whatever the caller has left out already.
    let (before, calm_ns) = (left.len(), run.calm_ns);
    let mut search =
        Search { seed, options, recording, failure, all, left, calm_ns, run, runs: 1, over: false, go_on };
    search.drop_faults();
    search.shorten();
    // A shorter run may do without what the longer one needed.
    search.drop_faults();
    let options = search.options_for(&search.left, search.calm_ns);
    let Search { left, run, runs, over, .. } = search;
    Some(Shrunk { failure, run, options, before, left, runs, minimal: !over })
}

struct Search<'a> {
    seed: u64,
    options: &'a Options,
    recording: Rc<Recording>,
    failure: &'static str,
    all: BTreeSet<usize>,
    /// The smallest schedule that fails, when calm begins in it, and its run.
    left: BTreeSet<usize>,
    calm_ns: u64,
    run: Run,
    runs: u64,
    /// There is no more time.
    over: bool,
    go_on: &'a mut dyn FnMut(Step) -> bool,
}

impl Search<'_> {
    /// Halves first, then ever smaller parts, until no single fault can go.
    fn drop_faults(&mut self) {
        let mut parts = 1;
        while !self.left.is_empty() && !self.over {
            let faults: Vec<usize> = self.left.iter().copied().collect();
            let size = faults.len().div_ceil(parts);
            // The later ones first: whatever comes after the failure has no part in it.
            let dropped = faults.rchunks(size).any(|part| {
                let rest = faults.iter().filter(|f| !part.contains(f)).copied().collect();
                self.try_one(rest, self.calm_ns)
            });
            match (dropped, size) {
                (true, _) => parts = (parts - 1).max(1),
                (false, 1) => return,
                (false, _) => parts = (2 * parts).min(faults.len()),
            }
        }
    }

    /// Lets calm begin as early as possible, but not before the last fault that is left.
    fn shorten(&mut self) {
        let last = self.run.schedule.iter().filter(|f| f.struck).map(|f| f.at_ns).max();
        // Too early is no use: nobody has met anybody by then.
        let mut low = last.unwrap_or(0) + 1_000_000;
        if low >= self.calm_ns || self.try_one(self.left.clone(), low) {
            return;
        }
        // A tenth of a second is short enough.
        while self.calm_ns > low + 100_000_000 && !self.over {
            let middle = low + (self.calm_ns - low) / 2;
            if !self.try_one(self.left.clone(), middle) {
                low = middle;
            }
        }
    }

    /// Does it fail with these faults alone? Then that is the smallest one.
    fn try_one(&mut self, left: BTreeSet<usize>, calm_ns: u64) -> bool {
        let step = Step { runs: self.runs, faults: self.left.len(), calm_ns: self.calm_ns };
        self.over |= !(self.go_on)(step);
        if self.over {
            return false;
        }
        self.runs += 1;
        let options = self.options_for(&left, calm_ns);
        let script = Script::following(&self.recording, options.skip.clone());
        let (run, _) = play(self.seed, &options, None, script);
        let fails = run.failures().contains(&self.failure);
        if fails {
            (self.left, self.calm_ns, self.run) = (left, calm_ns, run);
        }
        fails
    }

    fn options_for(&self, left: &BTreeSet<usize>, calm_ns: u64) -> Options {
        let skip = self.all.difference(left).copied().collect();
        Options { skip, calm_ns: Some(calm_ns), hash: false, ..self.options.clone() }
    }
}
