//! What is claimed of the choice among clones, by the simulation of `examples/choice`. It is seeded, so these
//! figures are the same everywhere.

#[path = "../examples/choice/sim.rs"]
#[allow(dead_code, reason = "the example shows more of it")]
mod sim;

use sim::{Outcome, Scenario, Way};

fn run(scenario: Scenario, way: Way) -> Outcome {
    sim::run(scenario, way, 5, 1)
}

#[test]
fn among_equal_clones_latency_does_no_harm() {
    let [plain, ..] = Scenario::ALL;
    let (router, two) = (run(plain, Way::Router), run(plain, Way::TwoChoices));
    assert!(router.p99 < two.p99 * 1.05 && router.p50 < two.p50 * 1.05, "{router:?} {two:?}");
}

#[test]
fn a_clone_that_is_slower_gets_less_to_do() {
    let [_, slow, ..] = Scenario::ALL;
    let (router, two, turns) =
        (run(slow, Way::Router), run(slow, Way::TwoChoices), run(slow, Way::RoundRobin));
    assert!(router.p99 < two.p99 * 0.9, "{router:?} {two:?}");
    assert!(router.p99 < turns.p99 / 100.0, "{router:?} {turns:?}");
}

#[test]
fn where_each_worker_has_little_in_flight_latency_tells_who_is_slow() {
    let [_, _, _, many, _] = Scenario::ALL;
    let (router, two) = (run(many, Way::Router), run(many, Way::TwoChoices));
    assert!(router.p99 < two.p99 * 0.6, "{router:?} {two:?}");
}

#[test]
fn what_is_in_flight_tells_at_once_who_hangs() {
    let [.., hang] = Scenario::ALL;
    let (router, random) = (run(hang, Way::Router), run(hang, Way::Random));
    assert!(router.p99 < 10.0 && random.p99 > 500.0, "{router:?} {random:?}");
}
