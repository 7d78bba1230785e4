//! Which keys are hot: a sketch of a few requests of each worker.
//!
//! Of the first thousand requests of a minute all are counted, then one in 64, which stands for as many: so a service with little
//! to do is told of exactly, and one with much pays a subtraction for each request. How many are passed over is
//! random, because clients that send the same batch again and again would otherwise always be looked at in the same place.

use std::cell::{Cell, RefCell};

use membership_types::Rng;
use router_proto::{PartitionId, hot::HotKeys};

/// So many requests of a minute are all counted.
const ALL: u32 = 1000;
/// Of the others one in so many.
const EVERY: u64 = 64;

/// What is known, and told, of the keys of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nothing.
    Off,
    /// That there are hot ones, in which partition, and how hot: a key may be a person's name.
    #[default]
    Hidden,
    /// Their first bytes, too.
    Shown,
}

/// The hot keys of one service on one worker.
pub(crate) struct Hot {
    watch: Cell<Watch>,
    /// How many requests are passed over before the next one is counted.
    skip: Cell<u32>,
    /// For how many it stands.
    weight: Cell<u64>,
    /// How many were counted in this minute.
    counted: Cell<u32>,
    random: RefCell<Rng>,
    keys: RefCell<HotKeys>,
}

impl Default for Hot {
    fn default() -> Self {
        let (counted, keys) = Default::default();
        let random = RefCell::new(Rng::seeded(crate::router::seed(0)));
        Self { watch: Cell::new(Watch::Off), skip: Cell::new(0), weight: Cell::new(1), counted, random, keys }
    }
}

impl Hot {
    /// From now on so much is to be known, of so many partitions. What was counted otherwise is forgotten.
    pub fn watch(&self, watch: Watch, partitions: usize) {
        if self.watch.replace(watch) != watch || self.keys.borrow().partitions() != partitions {
            self.keys.replace(if watch == Watch::Off {
                HotKeys::default()
            } else {
                HotKeys::new(partitions)
            });
            self.counted.set(0);
            self.weight.set(1);
            self.skip.set(0);
        }
    }

    /// A request asks for this key.
    #[inline]
    pub fn note(&self, partition: PartitionId, key: &[u8]) {
        match self.skip.get().checked_sub(1) {
            Some(left) => self.skip.set(left),
            None => self.count(partition, key),
        }
    }

    #[cold]
    fn count(&self, partition: PartitionId, key: &[u8]) {
        let watch = self.watch.get();
        if watch == Watch::Off {
            self.skip.set(u32::MAX);
            return;
        }
        self.keys.borrow_mut().note(partition, key, self.weight.get(), watch == Watch::Shown);
        let counted = self.counted.get() + 1;
        self.counted.set(counted);
        if counted >= ALL {
            // One in EVERY on average.
            self.skip.set(self.random.borrow_mut().below(2 * EVERY - 1) as u32);
            self.weight.set(EVERY);
        }
    }

    /// A minute has passed.
    pub fn minute(&self) {
        self.keys.borrow_mut().halve();
        self.counted.set(0);
        self.weight.set(1);
        self.skip.set(0);
    }

    pub fn read(&self) -> HotKeys {
        self.keys.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use router_proto::KeyHash;

    #[test]
    fn few_requests_are_counted_exactly_and_many_are_estimated_whatever_their_rhythm() {
        let hot = Hot::default();
        let (a, b) = (PartitionId::new(0), PartitionId::new(1));
        hot.note(a, b"before anybody asked");
        hot.watch(Watch::Shown, 2);
        (0..300).for_each(|_| hot.note(a, b"x"));
        assert_eq!((hot.read().total(), hot.read().top(1)[0].count), (300, 300));
        // A batch of 64 that comes again and again: a fixed step would always meet the same one.
        for _ in 0..10_000 {
            hot.note(b, b"first");
            (0..63).for_each(|at: u32| hot.note(a, &at.to_be_bytes()));
        }
        let read = hot.read();
        let all = 640_300.0;
        assert!((read.total() as f64 / all - 1.0).abs() < 0.1, "{}", read.total());
        let first = read.top_of(b, 1)[0];
        assert_eq!(first.hash, KeyHash::of(b"first"));
        // 156 samples are expected: within five deviations.
        assert!((first.count as f64 - 10_000.0).abs() < 4_000.0, "{first:?}");
        hot.minute();
        assert!(hot.read().total() <= read.total() / 2);
    }

    #[test]
    fn nothing_is_known_where_nothing_is_asked_and_nothing_shown_that_was_to_be_hidden() {
        let hot = Hot::default();
        let at = PartitionId::new(0);
        hot.watch(Watch::Off, 2);
        (0..10).for_each(|_| hot.note(at, b"x"));
        assert_eq!(hot.read(), HotKeys::default());
        hot.watch(Watch::Hidden, 2);
        (0..10).for_each(|_| hot.note(at, b"x"));
        assert_eq!((hot.read().top(1)[0].prefix, hot.read().total()), (None, 10));
        hot.watch(Watch::Shown, 2);
        assert_eq!(hot.read().total(), 0);
        hot.note(at, b"x");
        hot.watch(Watch::Hidden, 2);
        assert_eq!(hot.read().top(1), [], "what was shown before is forgotten");
    }
}
