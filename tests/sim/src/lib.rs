//! The deterministic simulator: real membership machines, virtual time, a hostile network, faults; then calm.
//!
//! One seed replays one run byte for byte. A run has a phase of faults, in which safety is judged, and then calm, in
//! which everyone who is up and connected must get along. The checker sees every record as it is made.
//!
//! # Map
//!
//! `params.rs` draws what a run looks like, `scenario.rs` has those that are told and not drawn; `world.rs` is the event loop
//! (`world/lives.rs`: how processes begin and end, `world/apps.rs`: what applications do, `world/ambush.rs`: faults that wait for the
//! worst moment, `world/ending.rs`: how a run ends), `queue.rs` what it does next; `network.rs` and `faults.rs` (its kinds,
//! and faults of links, in `faults/`) are what goes wrong; `script.rs` leaves some of that out, and `shrink.rs` as much as it can; `process.rs` and `clock.rs` are what runs;
//! `rooms.rs` is multicast; `recorder.rs` feeds the checker; `report.rs` sums runs up; `plant.rs` names the deliberate bugs.
//!
//! Source of the method: FoundationDB's simulation (Zhou et al., SIGMOD 2021, section 4) and swarm testing (Groce et
//! al., ISSTA 2012): every run has some kinds of fault switched off.
#![forbid(unsafe_code)]

mod clock;
mod faults;
mod network;
mod params;
mod plant;
mod process;
mod queue;
mod recorder;
mod report;
mod rooms;
mod scenario;
mod script;
mod shrink;
mod world;

use std::{
    collections::{BTreeSet, HashMap},
    io::Write,
    rc::Rc,
};

use membership_types::Rng;

pub use faults::{Kind, UnknownKind};
pub use plant::Plant;
pub use report::{MARKERS, Run, Totals};
pub use scenario::{MOST_NODES, Scenario};
pub use script::Fault;
pub use shrink::{Shrunk, Step, shrink};

use params::{Ending, Params};
use recorder::Recorder;
use script::{Recording, Script};
use world::{Action, World};

/// For what is looked up at every step, and never gone through: an order would cost more than it is worth.
type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Machines from the start, [`MOST_NODES`] at most; random within 3 to 7 if not given.
    pub nodes: Option<usize>,
    /// Simulated hours of faults; a minute if not given.
    pub hours: Option<f64>,
    /// The kinds of fault to draw from; there may be none.
    pub kinds: Vec<Kind>,
    /// A deliberate bug in every node; only where built with the feature `plant`.
    pub plant: Option<Plant>,
    /// Compute the hash of the trace?
    pub hash: bool,
    /// Leave out the faults of these numbers, from 1; 0 is what stays broken when calm begins.
    pub skip: BTreeSet<usize>,
    /// Calm begins at this simulated nanosecond, if it does not begin earlier.
    pub calm_ns: Option<u64>,
    /// What happens is not drawn: it is this story.
    pub scenario: Option<Scenario>,
}

impl Default for Options {
    fn default() -> Self {
        let (skip, calm_ns, scenario) = (BTreeSet::new(), None, None);
        let kinds = Kind::ALL.to_vec();
        Self { nodes: None, hours: None, kinds, plant: None, hash: false, skip, calm_ns, scenario }
    }
}

/// Runs one seed. Records go to `file` too, one JSON object a line, if it is given. Where faults are left out it runs twice:
/// first with all of them, to know what it follows.
pub fn run(seed: u64, options: &Options, file: Option<Box<dyn Write + Send>>) -> Run {
    if options.skip.is_empty() {
        return play(seed, options, file, Script::default()).0;
    }
    let (_, recording) = record(seed, options);
    play(seed, options, file, Script::following(&recording, options.skip.clone())).0
}

/// Runs one seed with all its faults, to be followed.
fn record(seed: u64, options: &Options) -> (Run, Rc<Recording>) {
    let whole = Options { hash: false, skip: BTreeSet::new(), calm_ns: None, ..options.clone() };
    let (run, recording) = play(seed, &whole, None, Script::recording());
    (run, Rc::new(recording))
}

fn play(
    seed: u64,
    options: &Options,
    file: Option<Box<dyn Write + Send>>,
    script: Script,
) -> (Run, Recording) {
    let mut rng = Rng::seeded(seed);
    let mut params = match options.scenario {
        Some(scenario) => scenario.params(&mut rng, options.nodes),
        None => Params::draw(&mut rng, options.nodes, options.hours, &options.kinds),
    };
    if options.skip.contains(&0) {
        params.ending = Ending::AllWell;
    }
    let recorder = Recorder::new(file, options.hash);
    let mut world = World::new(rng, params, recorder, options.plant);
    world.script = script;
    match options.scenario {
        Some(scenario) => scenario.play(&mut world),
        None => with_faults(&mut world, options),
    }
    world.calm_down();
    let lease = world.params.lease.as_nanos() as u64;
    // A story ends well, if it does.
    let settled = world.now + if options.scenario.is_some() { 4 } else { 26 } * lease;
    world.run_until(settled);
    world.declare_stable();
    let end = world.now + 20 * lease;
    world.run_until(end);
    world.finish();
    Run::of(seed, world)
}

/// Starts all machines, and injects faults for as long as the run has them.
fn with_faults(world: &mut World, options: &Options) {
    let lease = world.params.lease.as_nanos() as u64;
    // Half of the runs start everybody at the same instant.
    let together = world.rng.chance(500);
    for machine in 0..world.params.nodes {
        let at = if together { world.now } else { world.now + world.rng.below(2 * lease) };
        world.push(at, Action::Start { machine });
    }
    let first = world.rng.between(lease / 2, 5 * lease);
    world.push(world.now + first, Action::Fault);
    world.push(world.now + lease, Action::Ask);
    let calm = options.calm_ns.unwrap_or(u64::MAX);
    let faults_end = (world.now + world.params.faults_for).min(calm);
    world.run_until(faults_end);
    // Rare draws leave a run with too little to say; it goes on until it has enough.
    let mut patience = 100;
    while patience > 0
        && !options.kinds.is_empty()
        && world.now < calm
        && (world.drawn.values().sum::<u64>() < 5 || world.drawn.len() < 2 || world.views < 3)
    {
        let missing = options.kinds.iter().copied().find(|k| !world.drawn.contains_key(k));
        if let Some(kind) = missing.filter(|_| world.drawn.len() < 2) {
            world.inject(Some(kind));
        }
        let until = (world.now + 2 * lease).min(calm);
        world.run_until(until);
        patience -= 1;
    }
}
