//! Small models are searched to their end; larger ones are the command's part.

use std::time::Duration;

use membership_multicast::Class::{Ordered, Safe};
use stateright::Model;

use models::{
    search::{Found, Limits, Story, search},
    suite,
    takeover::{Budget, Takeover},
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
fn views_are_closed_before_anybody_leads_and_leases_end_what_is_safe() {
    // As above, of two nodes the senior goes on.
    let found = search(suite::takeover(2, Budget { cuts: 1, words: 1, ..Budget::default() }), LIMITS);
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

/// Goes one path through a model, told as a search tells it.
fn follow(model: &Takeover, path: &[&str]) {
    let mut world = model.init_states().remove(0);
    for step in path {
        let mut actions = Vec::new();
        model.actions(&world, &mut actions);
        let action = actions.into_iter().find(|action| model.tell(&world, action) == *step);
        let action = action.unwrap_or_else(|| panic!("{step} is not possible: {:?}", model.show(&world)));
        world = model.next_state(&world, action).expect("it is possible");
        for property in model.properties().iter().filter(|p| p.expectation.discovery_is_failure()) {
            assert!((property.condition)(model, &world), "{}: {:?}", property.name, model.show(&world));
        }
    }
}

/// Where a change of the protocol makes this path impossible, a new one is found by `models takeover --nodes 3 --cuts 3` in a build
/// in which a coordinator whose removal is under way renews its own lease.
#[test]
fn a_winner_that_adopts_its_own_removal_does_not_lead_meanwhile() {
    // Node 2 removes node 0, and is cut off just when that is committed. Node 0 wins with the help of node 1.
    let path = [
        "2.1 is not heard by 1.1 any more",
        "all links carry again",
        "time goes on",
        "arrives from 1.1 to 0.1: Heartbeat",
        "0.1 is cut off",
        "arrives from 2.1 to 0.1: Heartbeat",
        "arrives from 0.1 to 1.1: Grant",
        "time goes on",
        "time goes on",
        "time goes on",
        "arrives from 1.1 to 2.1: Ask",
        "arrives from 2.1 to 1.1: Ask, Heartbeat",
        "arrives from 2.1 to 1.1: Refuse",
        "arrives from 1.1 to 2.1: Promise",
        "arrives from 1.1 to 2.1: Follow",
        "arrives from 2.1 to 1.1: Grant",
        "arrives from 1.1 to 2.1: Heartbeat",
        "arrives from 2.1 to 1.1: Grant, Grant",
        "arrives from 1.1 to 2.1: Heartbeat",
        "arrives from 2.1 to 1.1: Grant",
        "all links carry again",
        "time goes on",
        "arrives from 1.1 to 2.1: Heartbeat",
        "arrives from 2.1 to 0.1: CatchUp, Append",
        "arrives from 2.1 to 1.1: Append",
        "arrives from 2.1 to 1.1: Grant",
        "arrives from 0.1 to 2.1: Heartbeat",
        "2.1 is cut off",
        "arrives from 0.1 to 2.1: Accepted",
        "arrives from 1.1 to 2.1: Accepted",
        "arrives from 2.1 to 0.1: Grant",
        "time goes on",
        "time goes on",
        "time goes on",
        "arrives from 0.1 to 1.1: Ask",
        "arrives from 1.1 to 0.1: Promise",
        "arrives from 0.1 to 1.1: Grant, Append",
        "arrives from 1.1 to 0.1: Heartbeat",
    ];
    follow(&suite::takeover(3, Budget { cuts: 3, ..Budget::default() }), &path);
}
