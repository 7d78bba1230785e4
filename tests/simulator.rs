//! A bounded set of seeds; `.ci/run` runs more of them, `phalanx sim` as many as you like.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use sim::{Kind, Options, Scenario};

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

/// A number that no fault has.
const NONE: usize = usize::MAX;

#[test]
fn a_run_that_follows_another_and_leaves_nothing_out_is_the_same() {
    for seed in [3, 17, 99] {
        let plain = Options { hash: true, ..Options::default() };
        let following = Options { skip: BTreeSet::from([NONE]), ..plain.clone() };
        let (a, b) = (sim::run(seed, &plain, None), sim::run(seed, &following, None));
        assert_eq!((a.hash, a.records, a.events, a.faults), (b.hash, b.records, b.events, b.faults));
        assert!(a.schedule.is_empty() && b.schedule.len() >= 5);
    }
}

#[test]
fn faults_that_are_left_out_do_not_happen_and_the_others_come_when_they_came() {
    for seed in [3, 17, 99] {
        let follow =
            |skip: BTreeSet<usize>| sim::run(seed, &Options { hash: true, skip, ..Options::default() }, None);
        let whole = follow(BTreeSet::from([NONE]));
        let odd: BTreeSet<usize> = (0..whole.schedule.len()).filter(|n| n % 2 == 1).collect();
        let half = follow(odd.clone());
        assert!(!half.failed() && half.hash != whole.hash && half.hash == follow(odd.clone()).hash);
        let drawn = |run: &sim::Run| -> Vec<(usize, u64, Kind)> {
            run.schedule.iter().map(|f| (f.number, f.at_ns, f.kind)).collect()
        };
        assert_eq!(drawn(&half), drawn(&whole));
        assert!(half.schedule.iter().all(|f| !(f.struck && odd.contains(&f.number))));
        assert_eq!(
            half.schedule.iter().filter(|f| f.struck).count() as u64,
            half.faults.values().sum::<u64>()
        );
        let none = follow((0..1000).collect());
        assert!(!none.failed() && none.faults.is_empty() && none.ending == "everything is mended");
    }
}

#[test]
fn calm_can_begin_earlier_and_what_does_not_fail_is_not_shrunk() {
    let early = Options { calm_ns: Some(5_000_000_000), ..Options::default() };
    assert_eq!(sim::run(3, &early, None).calm_ns, 5_000_000_000);
    assert!(sim::shrink(3, &Options::default(), &mut |_| true).is_none());
}

#[test]
fn every_scenario_ends_as_it_should() {
    // One of many machines costs as much as many of few.
    let runs: Vec<(Scenario, u64)> = Scenario::all()
        .flat_map(|scenario| {
            (0..if scenario.name() == "all-at-once" { 2 } else { 20 }).map(move |s| (scenario, s))
        })
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((scenario, seed)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let options = Options { scenario: Some(*scenario), ..Options::default() };
                    let run = sim::run(*seed, &options, None);
                    let name = scenario.name();
                    assert!(
                        !run.failed(),
                        "{name}, seed {seed}: {:?}\n{}\n{:?}",
                        run.unmet,
                        run.report,
                        run.story
                    );
                    assert!(!run.story.is_empty(), "{name} tells nothing");
                }
            });
        }
    });
}

#[test]
fn a_run_without_faults_has_none() {
    let options = Options { kinds: Vec::new(), nodes: Some(60), ..Options::default() };
    let run = sim::run(5, &options, None);
    assert!(!run.failed(), "{:?} {}, {}\n{}", run.failures(), run.ending, run.make_up, run.report);
    assert!(run.faults.is_empty() && run.views >= 60);
}
