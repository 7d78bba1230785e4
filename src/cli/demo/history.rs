//! Are reads and updates linearizable? Judged for each key while they happen.
//!
//! Each key is written by one client, which writes 1, 2, 3 and so on, and writes on only once it knows that the last one was
//! done. Then a history is linearizable exactly if every read gives a number that is (1) not below the last one that was
//! acknowledged before the read began, (2) not below what any read gave that ended before it began, (3) not above the last
//! one that was begun before the read ended (the conditions of an atomic register of a single writer: L. Lamport, "On
//! interprocess communication", 1986).

use std::collections::HashMap;

/// What is known of each key.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    keys: HashMap<u64, Key>,
    /// Reads that did not show an update that had been acknowledged.
    pub(crate) lost: u64,
    /// Reads that went back behind an earlier read, or showed what nobody had written.
    pub(crate) impossible: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Key {
    begun: u64,
    acknowledged: u64,
    /// The highest that a read has given.
    seen: u64,
}

/// What a read that begins now must give at least.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    acknowledged: u64,
    seen: u64,
}

impl History {
    /// The key's writer begins to write the next number. `None` while it does not know what became of the last one.
    pub(crate) fn begin_write(&mut self, key: u64) -> Option<u64> {
        let key = self.keys.entry(key).or_default();
        if key.begun > key.acknowledged {
            return None;
        }
        key.begun += 1;
        Some(key.begun)
    }

    /// The write that was begun last is acknowledged.
    pub(crate) fn acknowledge(&mut self, key: u64) {
        let key = self.keys.entry(key).or_default();
        key.acknowledged = key.begun;
    }

    /// The write that was begun last was certainly not done.
    pub(crate) fn take_back(&mut self, key: u64) {
        let key = self.keys.entry(key).or_default();
        key.begun = key.acknowledged;
    }

    pub(crate) fn begin_read(&mut self, key: u64) -> Floor {
        let Key { acknowledged, seen, .. } = *self.keys.entry(key).or_default();
        Floor { acknowledged, seen }
    }

    /// A read gave this number.
    pub(crate) fn end_read(&mut self, key: u64, floor: Floor, value: u64) {
        let key = self.keys.entry(key).or_default();
        if value < floor.acknowledged {
            self.lost += 1;
        } else if value < floor.seen || value > key.begun {
            self.impossible += 1;
        }
        key.seen = key.seen.max(value);
    }

    /// Keys that were written.
    pub(crate) fn written(&self) -> Vec<u64> {
        self.keys.iter().filter(|(_, key)| key.acknowledged > 0).map(|(key, _)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(times: u64) -> History {
        let mut history = History::default();
        for n in 1..=times {
            assert_eq!(history.begin_write(7), Some(n));
            history.acknowledge(7);
        }
        history
    }

    #[test]
    fn a_read_shows_what_was_acknowledged_before_it_or_later() {
        let mut history = written(2);
        let early = history.begin_read(7);
        assert_eq!(history.begin_write(7), Some(3));
        assert_eq!(history.begin_write(7), None, "one at a time");
        history.end_read(7, early, 3);
        history.end_read(7, early, 2);
        assert_eq!((history.lost, history.impossible), (0, 0), "both while the third was under way");
        let later = history.begin_read(7);
        history.end_read(7, later, 2);
        assert_eq!((history.lost, history.impossible), (0, 1), "3 was seen before this began");
        history.end_read(7, later, 1);
        assert_eq!((history.lost, history.impossible), (1, 1), "2 was acknowledged before this began");
        history.end_read(7, later, 4);
        assert_eq!((history.lost, history.impossible), (1, 2), "nobody wrote 4");
    }

    #[test]
    fn what_was_not_done_may_be_done_again() {
        let mut history = written(1);
        assert_eq!(history.begin_write(7), Some(2));
        history.take_back(7);
        let floor = history.begin_read(7);
        history.end_read(7, floor, 2);
        assert_eq!(history.impossible, 1);
        assert_eq!(history.begin_write(7), Some(2));
        assert_eq!(history.written(), [7]);
    }
}
