//! Every predicate passes the good traces of its directory under `golden/` and fails the bad ones.
//!
//! `good-*` must pass, `bad-*` must fail with a witness, `idle-*` must not be judged. A bad trace violates nothing else,
//! save what its name lists after a `+`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use checker::{Outcome, Predicate, Report, check_files};

fn traces_of(predicate: Predicate) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(predicate.name());
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths
}

fn failed(report: &Report) -> BTreeSet<&str> {
    report.failures().map(|verdict| verdict.predicate.name()).collect()
}

/// What is wrong with a report on a golden trace.
fn complaint(predicate: Predicate, name: &str, report: &Report) -> Option<String> {
    if let Some(invalid) = &report.invalid {
        return Some(format!("is invalid: {invalid}"));
    }
    let verdict = report.verdict(predicate);
    let (kind, rest) = name.split_once('-').expect("golden traces are named good-, bad- or idle-");
    let also = rest.trim_end_matches(".jsonl").split('+').skip(1);
    let expected: BTreeSet<&str> = match kind {
        "bad" => also.chain([predicate.name()]).collect(),
        _ => BTreeSet::new(),
    };
    let outcome = match kind {
        "good" => Outcome::Pass,
        "bad" => Outcome::Fail,
        "idle" => Outcome::NotExercised,
        _ => return Some("is neither good nor bad nor idle".into()),
    };
    if verdict.outcome != outcome || failed(report) != expected {
        return Some(format!("is judged:\n{report}"));
    }
    (outcome == Outcome::Fail && verdict.witness.is_empty()).then(|| "has no witness".into())
}

#[test]
fn every_golden_trace_is_judged_as_its_name_says() {
    let mut wrong = Vec::new();
    for predicate in Predicate::ALL {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for path in traces_of(predicate) {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let report = check_files(&[&path]).unwrap_or_else(|error| panic!("{error}"));
            if let Some(complaint) = complaint(predicate, &name, &report) {
                wrong.push(format!("{predicate}/{name} {complaint}"));
            }
            *kinds.entry(name.split('-').next().unwrap_or_default().into()).or_default() += 1;
        }
        let count = |kind| kinds.get(kind).copied().unwrap_or(0);
        if count("good") < 1 || count("bad") < 2 {
            wrong.push(format!("{predicate} has {} good and {} bad traces", count("good"), count("bad")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn no_directory_lacks_a_predicate() {
    let known: BTreeSet<&str> = Predicate::ALL.iter().map(|p| p.name()).collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for entry in fs::read_dir(golden).expect("golden traces exist") {
        let name = entry.expect("readable").file_name();
        assert!(known.contains(&*name.to_string_lossy()), "{name:?} is no predicate");
    }
}
