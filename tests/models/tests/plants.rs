//! The models can fail: they find deliberate bugs in both cores.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use membership_multicast::{Class::*, Plant as MulticastPlant};
use membership_proto::Plant;
use models::{
    flush::{self, Flush},
    search::{Limits, search},
    suite,
    takeover::{self, Budget, Takeover},
};

const LIMITS: Limits = Limits {
    states: 1_500_000,
    time: Duration::from_secs(120),
    threads: 1,
    breadth_first: false,
    progress: false,
};

/// The property that a search found not to hold.
fn broken(found: models::search::Found) -> Option<&'static str> {
    found.broken.first().map(|(name, path)| {
        assert!(!path.is_empty(), "the steps are told");
        *name
    })
}

fn takeover(nodes: usize, budget: Budget, plant: Plant) -> Option<&'static str> {
    let model = suite::takeover(nodes, budget);
    broken(search(Takeover { plant: Some(plant), ..model }, LIMITS))
}

fn flush(model: Flush, plant: MulticastPlant) -> Option<&'static str> {
    broken(search(Flush { plant: Some(plant), ..model }, LIMITS))
}

#[test]
fn bugs_in_agreement_are_found() {
    let cut = Budget { cuts: 1, ..Budget::default() };
    assert_eq!(takeover(3, cut, Plant::ReuseViewId), Some(takeover::LOG));
    assert!(matches!(takeover(2, cut, Plant::AnyHalf), Some(takeover::HISTORY | takeover::LOG)));
    let late = Budget { holds: 1, ..cut };
    assert_eq!(takeover(3, late, Plant::PromiseEarly), Some(takeover::AUTHORITY));
    let proof = Budget { crashes: 1, proofs: 1, ..late };
    assert!(matches!(takeover(2, proof, Plant::LateProof), Some(takeover::HISTORY | takeover::LOG)));
}

#[test]
fn bugs_in_the_rule_of_the_witness_are_found() {
    let found = |budget, plant| {
        let model = Takeover { plant: Some(plant), ..suite::witnessed(2, budget) };
        let broken = broken(search(model, LIMITS));
        assert!(matches!(broken, Some(takeover::HISTORY | takeover::LOG)), "{plant:?}: {broken:?}");
    };
    let cut = Budget { cuts: 1, ..Budget::default() };
    for plant in [Plant::WitnessOrSenior, Plant::AnyRecord, Plant::RecordTwice] {
        found(cut, plant);
    }
    found(Budget { forgets: 1, ..cut }, Plant::IgnoreEpoch);
}

#[test]
fn bugs_in_leases_and_leadership_are_found() {
    let cut = Budget { cuts: 1, ..Budget::default() };
    for plant in [Plant::LeaseNeverLapses, Plant::GrantNotChained, Plant::RemoveWithoutStop] {
        assert!(
            matches!(takeover(3, cut, plant), Some(takeover::OVERRULED | takeover::LEADERS)),
            "{plant:?}"
        );
    }
    let late = Budget { holds: 1, ..cut };
    assert!(matches!(
        takeover(3, late, Plant::LeaseFromReceipt),
        Some(takeover::OVERRULED | takeover::LEADERS)
    ));
    let step_down = Budget { step_downs: 1, ..Budget::default() };
    assert_eq!(takeover(3, step_down, Plant::StepDownLate), Some(takeover::OVERRULED));
}

#[test]
fn a_leader_that_does_not_wait_for_the_closing_of_views_is_found() {
    let death = Budget { crashes: 1, proofs: 1, words: 1, ..Budget::default() };
    assert_eq!(takeover(3, death, Plant::LeadUninstalled), Some(takeover::UNCLOSED));
}

#[test]
fn bugs_in_the_closing_of_views_are_found() {
    let dies = || suite::flush(&[&[0, 1, 2], &[0, 1]], &[(0, Ordered), (1, Safe), (2, Ordered)], Some(2), 0);
    let orphaned = || suite::flush(&[&[0, 1, 2], &[1, 2]], &[(0, Safe), (1, Ordered)], Some(0), 1);
    for plant in [MulticastPlant::SafeIsOrdered, MulticastPlant::SafeWithoutPlace] {
        assert_eq!(flush(dies(), plant), Some(flush::SAFE), "{plant:?}");
    }
    assert_eq!(flush(dies(), MulticastPlant::SendWhileClosing), Some(flush::OWN));
    assert_eq!(flush(orphaned(), MulticastPlant::CloseOwnFirst), Some(flush::SAME_ORDER));
    for plant in [MulticastPlant::CloseAlone, MulticastPlant::ForgetUnstable, MulticastPlant::CloseUnsettled]
    {
        assert!(flush(dies(), plant).or_else(|| flush(orphaned(), plant)).is_some(), "{plant:?}");
    }
    assert_eq!(flush(orphaned(), MulticastPlant::ForgetLost), Some(flush::STUCK));
}
