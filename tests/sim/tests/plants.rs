//! Every deliberate bug is found: a checker that finds nothing proves nothing.

use std::{
    panic::catch_unwind,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use sim::{Kind, Options, Plant};

/// Within so many seeds, under all kinds of fault. Most are found within 50.
const SEEDS: u64 = 1000;

/// In how many seeds, and under which faults a bug is looked for. What only a rare mixture shows gets more of them, or that mixture
/// alone.
fn wanted(plant: Plant) -> (u64, Vec<Kind>) {
    let under = |names: &[&str]| -> Vec<Kind> {
        names.iter().map(|name| name.parse().expect("a kind of fault")).collect()
    };
    match plant.name() {
        // One of a thousand, of these.
        "late-places" => (4 * SEEDS, under(&["lossy", "delay", "crash"])),
        "unripe-slots" => (4 * SEEDS, under(&["replace", "split-core", "crash", "leave"])),
        // One of a thousand of all: who waits in vain is mostly removed before long.
        "forget-unstable" => (6 * SEEDS, Kind::ALL.to_vec()),
        // Under all kinds one of a thousand: who is waited for in vain is removed before long.
        "forget-lost" => (SEEDS, under(&["break"])),
        "safe-without-place" => (SEEDS, under(&["lossy"])),
        "relay-joins" => (SEEDS, under(&["partial", "crash"])),
        "win-in-old-core" => (SEEDS, under(&["split-core", "crash"])),
        "force-the-same" | "force-by-itself" => (SEEDS, under(&["force-new", "partition"])),
        _ => (SEEDS, Kind::ALL.to_vec()),
    }
}

/// A seed that shows it: the checker complains, or an assertion in the protocols.
fn hunt(plant: Plant) -> Option<u64> {
    let (seeds, kinds) = wanted(plant);
    let options = Options { kinds, plant: Some(plant), ..Options::default() };
    let (next, found, at) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let look = || {
        while !found.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            if catch_unwind(|| sim::run(seed, &options, None).failed()).unwrap_or(true) {
                at.store(seed, Ordering::Relaxed);
                found.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(look);
        }
    });
    found.into_inner().then(|| at.into_inner())
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for plant in Plant::all().filter(|plant| plant.is_simulated()) {
        match hunt(plant) {
            Some(seed) => println!("found at seed {seed}: {}", plant.name()),
            None => missed.push(plant.name()),
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
