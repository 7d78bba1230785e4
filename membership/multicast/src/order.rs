//! The sequence of a view's ordered messages: which message has which place, as runs of one sender's next ones.

use alloc::{collections::VecDeque, vec::Vec};

use crate::frame::Run;

/// What is known of a view's sequence. Places are numbered from 1.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Sequence {
    /// Runs, each with the place of its first message; without those that everybody knows.
    runs: VecDeque<(u64, Run)>,
    /// The highest place that is given.
    known: u64,
}

impl Sequence {
    /// The highest place that is given.
    pub(crate) fn known(&self) -> u64 {
        self.known
    }

    /// Takes runs from place `first` on; what is known already is skipped. False, and nothing taken, if there is a gap.
    pub(crate) fn extend(&mut self, mut first: u64, runs: &[Run]) -> bool {
        if first > self.known + 1 {
            return false;
        }
        for run in runs {
            let end = first + u64::from(run.count);
            if end > self.known + 1 {
                let count = (end - (self.known + 1)) as u32;
                self.push(Run { rank: run.rank, count });
            }
            first = end;
        }
        true
    }

    fn push(&mut self, run: Run) {
        if let Some((_, last)) = self.runs.back_mut()
            && last.rank == run.rank
            && let Some(count) = last.count.checked_add(run.count)
        {
            last.count = count;
        } else {
            self.runs.push_back((self.known + 1, run));
        }
        self.known += u64::from(run.count);
    }

    /// The sender at a place, and how many places from there on are its; `None` if the place is not known (any more).
    pub(crate) fn at(&self, place: u64) -> Option<(u16, u64)> {
        if place > self.known {
            return None;
        }
        let index = self.runs.partition_point(|(first, _)| *first <= place).checked_sub(1)?;
        let (first, run) = self.runs[index];
        let left = (first + u64::from(run.count)).checked_sub(place)?;
        Some((run.rank, left))
    }

    /// All runs after a place, up to `through`: what somebody lacks who knows the sequence up to there.
    pub(crate) fn after(&self, place: u64, through: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut next = place + 1;
        while next <= through.min(self.known) {
            let Some((rank, left)) = self.at(next) else { break };
            let count = left.min(through + 1 - next);
            runs.push(Run { rank, count: count as u32 });
            next += count;
        }
        runs
    }

    /// Everybody knows, and holds, all up to this place.
    pub(crate) fn forget(&mut self, through: u64) {
        while let Some((first, run)) = self.runs.front()
            && first + u64::from(run.count) <= through + 1
        {
            self.runs.pop_front();
        }
    }

    /// Nothing beyond this place was ever given.
    pub(crate) fn truncate(&mut self, through: u64) {
        while let Some((first, run)) = self.runs.back_mut() {
            if *first > through {
                self.runs.pop_back();
            } else {
                run.count = run.count.min((through + 1 - *first) as u32);
                break;
            }
        }
        self.known = self.known.min(through);
    }
}

/// What of these runs, which begin at place `first`, is not beyond `through`.
pub(crate) fn up_to(first: u64, runs: &[Run], through: u64) -> Vec<Run> {
    let mut left = through.saturating_add(1).saturating_sub(first);
    let fitting = runs.iter().map(|run| {
        let count = u64::from(run.count).min(left);
        left -= count;
        Run { rank: run.rank, count: count as u32 }
    });
    fitting.filter(|run| run.count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn run(rank: u16, count: u32) -> Run {
        Run { rank, count }
    }

    #[test]
    fn runs_are_cut_at_a_place() {
        let runs = [run(0, 3), run(2, 2)];
        assert_eq!(up_to(5, &runs, 4), vec![]);
        assert_eq!(up_to(5, &runs, 6), vec![run(0, 2)]);
        assert_eq!(up_to(5, &runs, 8), vec![run(0, 3), run(2, 1)]);
        assert_eq!(up_to(5, &runs, u64::MAX - 1), runs);
    }

    #[test]
    fn places_are_found_and_overlaps_skipped() {
        let mut s = Sequence::default();
        assert!(s.extend(1, &[run(0, 3), run(2, 2)]));
        assert!(!s.extend(7, &[run(1, 1)]), "a gap");
        assert!(s.extend(4, &[run(2, 2), run(1, 1)]));
        assert_eq!(s.known(), 6);
        assert_eq!(s.at(1), Some((0, 3)));
        assert_eq!(s.at(5), Some((2, 1)));
        assert_eq!(s.at(6), Some((1, 1)));
        assert_eq!(s.at(7), None);
        assert_eq!(s.after(2, 5), vec![run(0, 1), run(2, 2)]);
        s.forget(3);
        assert_eq!(s.at(3), None);
        assert_eq!(s.at(4), Some((2, 2)));
        s.truncate(4);
        assert_eq!((s.known(), s.at(4), s.at(5)), (4, Some((2, 1)), None));
    }
}
