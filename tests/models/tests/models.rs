//! Small models are searched to their end; larger ones are the command's part.

use std::time::Duration;

use membership_multicast::Class::{Ordered, Safe};
use stateright::Model;

use models::{
    search::{Found, Limits, Story, search},
    suite,
    takeover::{Action, Budget, Takeover},
};

const LIMITS: Limits = Limits {
    states: 10_000_000,
    time: Duration::from_secs(300),
    threads: 1,
    breadth_first: false,
    progress: false,
};

fn holds(found: &Found) {
    assert!(found.broken.is_empty() && found.missed.is_empty() && found.exhausted, "{found:#?}");
}

#[test]
fn a_cut_or_a_death_never_makes_two_leaders() {
    let cut = Budget { cuts: 1, ..Budget::default() };
    let death = Budget { crashes: 1, proofs: 1, ..Budget::default() };
    for nodes in [2, 3] {
        holds(&search(suite::takeover(nodes, death), LIMITS));
    }
    holds(&search(suite::takeover(3, cut), LIMITS));
    // Of two nodes the senior goes on alone; the other one leads at most after a heal.
    let found = search(suite::takeover(2, cut), LIMITS);
    assert!(found.broken.is_empty() && found.exhausted, "{found:#?}");
}

#[test]
fn states_that_differ_by_the_time_of_day_alone_are_one() {
    // With nothing to go wrong a cluster comes round to where it was.
    let found = search(suite::takeover(3, Budget::default()), LIMITS);
    assert!(found.exhausted && found.unique < 100, "{found:#?}");
}

#[test]
fn those_who_come_along_close_a_view_alike() {
    holds(&search(suite::flush(&[&[0, 1, 2], &[0, 1]], &[(0, Safe)], Some(2), 0), LIMITS));
    holds(&search(suite::flush(&[&[0, 1], &[1, 0]], &[(1, Ordered)], None, 1), LIMITS));
}

/// Goes one path through a model.
fn follow(model: &Takeover, path: &[Action]) {
    let mut world = model.init_states().remove(0);
    for action in path {
        let mut actions = Vec::new();
        model.actions(&world, &mut actions);
        assert!(actions.contains(action), "{action:?} is not possible: {:?}", model.show(&world));
        world = model.next_state(&world, action.clone()).expect("it is possible");
        for property in model.properties().iter().filter(|p| p.expectation.discovery_is_failure()) {
            assert!((property.condition)(model, &world), "{}: {:?}", property.name, model.show(&world));
        }
    }
}

#[test]
fn a_winner_that_adopts_its_own_removal_does_not_lead_meanwhile() {
    use Action::{Advance, Deliver, Heal, Isolate};
    // Node 2 removes node 0, and is cut off just when that is committed. Node 0 wins with the help of node 1.
    let steps = [
        (1, Advance),
        (1, Deliver(0)),
        (1, Isolate(0)),
        (2, Deliver(0)),
        (3, Advance),
        (11, Deliver(0)),
        (1, Heal),
        (1, Advance),
        (5, Deliver(0)),
        (1, Isolate(2)),
        (3, Deliver(0)),
        (3, Advance),
        (4, Deliver(0)),
    ];
    let path: Vec<Action> = steps.into_iter().flat_map(|(times, action)| vec![action; times]).collect();
    follow(&suite::takeover(3, Budget { cuts: 2, ..Budget::default() }), &path);
}
