//! Schedules of planted bugs become small, and what is left still shows the bug.

use sim::{Options, Plant, Shrunk};

fn planted(name: &str) -> Options {
    let plant = Plant::all().find(|plant| plant.name() == name).expect("such a bug");
    Options { plant: Some(plant), hash: true, ..Options::default() }
}

/// The first seed that fails, made small within so many runs.
fn shrunk(name: &str, runs: u64) -> (u64, Shrunk) {
    let options = planted(name);
    let seed = (0..200).find(|seed| sim::run(*seed, &options, None).failed()).expect("the bug is found");
    (seed, sim::shrink(seed, &options, &mut |step| step.runs < runs).expect("it fails"))
}

#[test]
fn a_few_faults_are_left_each_is_needed_and_they_replay() {
    for (name, most) in [("promise-early", 6), ("late-proof", 6), ("close-own-first", 6)] {
        let (seed, shrunk) = shrunk(name, 1000);
        assert!(shrunk.minimal, "{name}");
        assert!(shrunk.left.len() <= most && 2 * shrunk.left.len() < shrunk.before, "{name}: {shrunk:?}");
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
    let (seed, shrunk) = shrunk("promise-early", 3);
    assert!(!shrunk.minimal && shrunk.runs == 3);
    assert!(sim::run(seed, &shrunk.options, None).failures().contains(&shrunk.failure));
}
