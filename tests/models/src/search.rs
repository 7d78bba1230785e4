//! Runs a search and says how far it came.

use std::{
    hash::Hash,
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model};

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Stop after about so many steps between states.
    pub states: usize,
    /// Stop after this time.
    pub time: Duration,
    /// How many threads search.
    pub threads: usize,
    /// Breadth first: finds the shortest counterexample, and needs more memory.
    pub breadth_first: bool,
    /// Say now and then how far it is.
    pub progress: bool,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Different states seen.
    pub unique: usize,
    /// Steps between states tried.
    pub steps: usize,
    /// The longest path.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Every state within the bounds was seen.
    pub exhausted: bool,
    /// Properties that do not hold, each with the steps that lead there.
    pub broken: Vec<(&'static str, Vec<String>)>,
    /// Situations that came about.
    pub came_about: Vec<&'static str>,
    /// Situations that should have come about and did not.
    pub missed: Vec<&'static str>,
}

/// A model that can tell its paths to people.
pub trait Story: Model {
    /// What an action in a state means.
    fn tell(&self, state: &Self::State, action: &Self::Action) -> String;

    /// How things stand in a state, if there is something to say.
    fn show(&self, state: &Self::State) -> Option<String>;
}

/// Searches a model.
pub fn search<M>(model: M, limits: Limits) -> Found
where
    M: Story + Clone + Send + Sync + 'static,
    M::State: Hash + Clone + PartialEq + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Send + Sync + 'static,
{
    let builder = model
        .clone()
        .checker()
        .threads(limits.threads)
        .target_state_count(limits.states)
        .timeout(limits.time)
        .finish_when(HasDiscoveries::AnyFailures);
    if limits.breadth_first {
        watch(model, builder.spawn_bfs(), limits)
    } else {
        watch(model, builder.spawn_dfs(), limits)
    }
}

fn watch<M, C>(model: M, mut checker: C, limits: Limits) -> Found
where
    M: Story,
    C: Checker<M>,
    M::State: Hash + Clone + PartialEq,
    M::Action: Clone + PartialEq,
{
    let started = Instant::now();
    let mut last = started;
    let handles = checker.handles();
    while handles.iter().any(|h| !h.is_finished()) {
        std::thread::sleep(Duration::from_millis(20));
        if limits.progress && last.elapsed() >= Duration::from_secs(10) {
            last = Instant::now();
            let (steps, unique) = (checker.state_count(), checker.unique_state_count());
            let rate = steps as f64 / started.elapsed().as_secs_f64();
            eprintln!("{unique} states, {steps} steps, {rate:.0} steps/s, depth {}", checker.max_depth());
        }
    }
    for handle in handles {
        handle.join().expect("a panic in a machine is a bug of it: see above");
    }
    let took = started.elapsed();
    let mut broken = Vec::new();
    let mut came_about = Vec::new();
    for (name, path) in checker.discoveries() {
        if model.property(name).expectation.discovery_is_failure() {
            let mut told = Vec::new();
            for (state, action) in path.into_vec() {
                told.extend(model.show(&state).map(|text| format!("  [{text}]")));
                told.extend(action.map(|action| model.tell(&state, &action)));
            }
            broken.push((name, told));
        } else {
            came_about.push(name);
        }
    }
    came_about.sort_unstable();
    let missed = model.properties().into_iter().filter(|p| !p.expectation.discovery_is_failure());
    let missed = missed.map(|p| p.name).filter(|name| !came_about.contains(name)).collect();
    let ended_early = checker.state_count() >= limits.states || took >= limits.time || !broken.is_empty();
    Found {
        unique: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took,
        exhausted: !ended_early,
        broken,
        came_about,
        missed,
    }
}
