//! Schedules of planted bugs become small, and what is left still shows the bug.

use sim::{Kind, Options, Plant, Shrunk};

fn planted(name: &str) -> Options {
    let plant = Plant::all().find(|plant| plant.name() == name).expect("such a bug");
    Options { plant: Some(plant), hash: true, ..Options::default() }
}

/// The seeds that fail, each made small within so many runs.
fn shrunk(name: &str, runs: u64) -> impl Iterator<Item = (u64, Shrunk)> {
    let options = planted(name);
    let seeds = (0..500).filter({
        let options = options.clone();
        move |seed| sim::run(*seed, &options, None).failed()
    });
    seeds
        .map(move |seed| (seed, sim::shrink(seed, &options, &mut |step| step.runs < runs).expect("it fails")))
}

#[test]
fn a_few_faults_are_left_each_is_needed_and_they_replay() {
    for name in ["promise-early", "late-proof", "close-own-first"] {
        // What no single fault can be taken out of may still be long, so one of several must do.
        let mut left = Vec::new();
        let few = shrunk(name, 1000).take(5).find(|(_, shrunk)| {
            assert!(shrunk.minimal, "{name}");
            left.push((shrunk.left.len(), shrunk.before));
            shrunk.left.len() <= 6 && 2 * shrunk.left.len() < shrunk.before
        });
        let (seed, shrunk) = few.unwrap_or_else(|| panic!("{name}: of each are left {left:?}"));
        let replay = || sim::run(seed, &Options { hash: true, ..shrunk.options.clone() }, None);
        let (one, two) = (replay(), replay());
        assert!(one.failures().contains(&shrunk.failure), "{name}");
        assert_eq!((one.hash, one.schedule), (two.hash, two.schedule));
        let struck = struck(&shrunk);
        assert!(struck.iter().all(|number| shrunk.left.contains(number)), "{name}: {struck:?}");
        for fault in &shrunk.left {
            let mut options = shrunk.options.clone();
            options.skip.insert(*fault);
            let run = sim::run(seed, &options, None);
            assert!(!run.failures().contains(&shrunk.failure), "{name}: fault {fault} is not needed");
        }
    }
}

fn struck(shrunk: &Shrunk) -> Vec<usize> {
    let struck = shrunk.run.schedule.iter().filter(|fault| fault.struck);
    struck
        .map(|fault| {
            assert!(!fault.notes.is_empty(), "nothing is said of {fault:?}");
            fault.number
        })
        .collect()
}

#[test]
fn when_time_runs_out_the_best_until_then_is_told() {
    let (seed, shrunk) = shrunk("promise-early", 3).next().expect("the bug is found");
    assert!(!shrunk.minimal && shrunk.runs == 3);
    assert!(sim::run(seed, &shrunk.options, None).failures().contains(&shrunk.failure));
}

#[test]
fn who_is_admitted_by_hearsay_is_found() {
    // Somebody must start who is not heard by the coordinator, and is by another one.
    let kinds = vec![Kind::Partial, Kind::Crash];
    let options = Options { hash: false, kinds, ..planted("relay-joins") };
    let found = (0..1000).find(|seed| sim::run(*seed, &options, None).failed()).expect("it is found");
    assert!(sim::run(found, &options, None).failures().contains(&"GM10"), "seed {found}");
}
