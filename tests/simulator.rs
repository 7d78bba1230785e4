//! A bounded set of seeds; `.ci/run` runs more of them, `phalanx sim` as many as you like.

use std::sync::atomic::{AtomicU64, Ordering};

use sim::Options;

#[test]
fn seeds_are_clean() {
    const SEEDS: u64 = 300;
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    let run = sim::run(seed, &Options::default(), None);
                    assert!(!run.failed(), "seed {seed}\n{}", run.report);
                    assert!(run.faults.values().sum::<u64>() >= 5 && run.faults.len() >= 2 && run.views >= 3);
                    assert!(run.simulated_ns >= 60_000_000_000);
                }
            });
        }
    });
}

#[test]
fn one_seed_is_one_run() {
    let options = Options { hash: true, ..Options::default() };
    for seed in [3, 17, 99] {
        let (a, b) = (sim::run(seed, &options, None), sim::run(seed, &options, None));
        assert_eq!((a.hash, a.records, a.events), (b.hash, b.records, b.events));
        assert!(a.hash.is_some());
    }
}
