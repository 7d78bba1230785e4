//! How long requests take: a histogram of fixed buckets, two for each doubling.

use std::{cell::Cell, time::Duration};

/// Bounds in nanoseconds are `LEAST << k` and one and a half times that, up to 34 s.
const LEAST: u64 = 1 << 13;
const DOUBLINGS: usize = 22;
const BUCKETS: usize = 2 * DOUBLINGS + 1;

/// A worker's own histogram: nobody else writes or reads it.
pub(crate) struct Histogram {
    /// The last one is for what is above all bounds.
    counts: [Cell<u64>; BUCKETS + 1],
    sum_ns: Cell<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { Cell::new(0) }; BUCKETS + 1], sum_ns: Cell::new(0) }
    }
}

impl Histogram {
    /// Counts a request that took so long.
    pub fn record(&self, ns: u64) {
        let count = &self.counts[bucket(ns)];
        count.set(count.get() + 1);
        self.sum_ns.set(self.sum_ns.get().saturating_add(ns));
    }

    pub fn read(&self) -> Latency {
        let counts = self.counts.each_ref().map(Cell::get);
        Latency { counts, sum: Duration::from_nanos(self.sum_ns.get()) }
    }
}

/// The first bucket whose bound is no less.
fn bucket(ns: u64) -> usize {
    if ns <= LEAST {
        return 0;
    }
    let below = ns - 1;
    let doubling = below.ilog2();
    let half = (below >> (doubling - 1)) & 1;
    let at = 2 * (doubling - LEAST.ilog2()) as usize + 1 + half as usize;
    at.min(BUCKETS)
}

/// How long requests took: how many fell into each bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    counts: [u64; BUCKETS + 1],
    sum: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [0; BUCKETS + 1], sum: Duration::ZERO }
    }
}

impl Latency {
    /// Each bucket's upper bound and how many requests took as long or less; the last one has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let mut below = 0;
        self.counts.iter().enumerate().map(move |(at, count)| {
            below += count;
            (bound(at), below)
        })
    }

    /// How many requests there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long all of them took.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// What this share of the requests did not exceed, to half a doubling; `None` if there were none, or if they
    /// took longer than the last bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = share * self.count() as f64;
        let (bound, _) = self.buckets().find(|(_, below)| *below > 0 && *below as f64 >= wanted)?;
        bound
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }
}

fn bound(at: usize) -> Option<Duration> {
    let doubled = LEAST << (at / 2);
    let ns = if at.is_multiple_of(2) { doubled } else { doubled + doubled / 2 };
    (at < BUCKETS).then(|| Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_that_takes_it() {
        let bounds: Vec<u64> =
            (0..BUCKETS).map(|at| u64::try_from(bound(at).unwrap().as_nanos()).unwrap()).collect();
        assert!(bounds.is_sorted_by(|a, b| a < b));
        assert!(bounds[0] == 8_192 && bounds[BUCKETS - 1] > 34_000_000_000, "{bounds:?}");
        for (at, bound) in bounds.iter().enumerate() {
            assert_eq!((bucket(*bound), bucket(bound + 1)), (at, at + 1), "{bound}");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS));
    }

    #[test]
    fn quantiles_are_bounds_and_workers_add_up() {
        let (one, other) = (Histogram::default(), Histogram::default());
        (0..90).for_each(|_| one.record(10_000));
        (0..10).for_each(|_| other.record(1_000_000));
        let mut all = one.read();
        all.merge(&other.read());
        assert_eq!((all.count(), all.sum()), (100, Duration::from_micros(10_900)));
        assert_eq!(all.quantile(0.5), Some(Duration::from_nanos(12_288)));
        assert_eq!(all.quantile(0.9), Some(Duration::from_nanos(12_288)));
        assert_eq!(all.quantile(0.99), Some(Duration::from_nanos(1_048_576)));
        assert_eq!(all.buckets().last(), Some((None, 100)));
        assert_eq!(Latency::default().quantile(0.5), None);
    }
}
