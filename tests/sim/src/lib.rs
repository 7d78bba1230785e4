//! The deterministic simulator: real membership machines, virtual time, a hostile network, faults; then calm.
//!
//! One seed replays one run byte for byte. A run has a phase of faults, in which safety is judged, and then calm, in
//! which everyone who is up and connected must get along. The checker sees every record as it is made.
//!
//! # Map
//!
//! `params.rs` draws what a run looks like; `world.rs` is the event loop; `network.rs` and `faults.rs` are what goes
//! wrong; `process.rs` and `clock.rs` are what runs; `rooms.rs` is multicast; `recorder.rs` feeds the checker; `report.rs` sums runs up.
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
mod recorder;
mod report;
mod rooms;
mod world;

use std::io::Write;

use membership_types::Rng;

pub use faults::{Kind, UnknownKind};
pub use plant::Plant;
pub use report::{MARKERS, Run, Totals};

use params::Params;
use recorder::Recorder;
use world::{Action, World};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Machines from the start; random within 3 to 7 if not given.
    pub nodes: Option<usize>,
    /// Simulated hours of faults; a minute if not given.
    pub hours: Option<f64>,
    /// The kinds of fault to draw from.
    pub kinds: Vec<Kind>,
    /// A deliberate bug in every node; only where built with the feature `plant`.
    pub plant: Option<Plant>,
    /// Compute the hash of the trace?
    pub hash: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: None, hours: None, kinds: Kind::ALL.to_vec(), plant: None, hash: false }
    }
}

/// Runs one seed. Records go to `file` too, one JSON object a line, if it is given.
pub fn run(seed: u64, options: &Options, file: Option<Box<dyn Write + Send>>) -> Run {
    let mut rng = Rng::seeded(seed);
    let params = Params::draw(&mut rng, options.nodes, options.hours, &options.kinds);
    let recorder = Recorder::new(file, options.hash);
    let mut world = World::new(rng, params, recorder, options.plant);
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
    let faults_end = world.now + world.params.faults_for;
    world.run_until(faults_end);
    // Rare draws leave a run with too little to say; it goes on until it has enough.
    let mut patience = 100;
    while patience > 0
        && (world.faults.values().sum::<u64>() < 5 || world.faults.len() < 2 || world.views < 3)
    {
        let missing = options.kinds.iter().copied().find(|k| !world.faults.contains_key(k));
        if let Some(kind) = missing.filter(|_| world.faults.len() < 2)
            && world.strike(kind)
        {
            *world.faults.entry(kind).or_insert(0) += 1;
        }
        let until = world.now + 2 * lease;
        world.run_until(until);
        patience -= 1;
    }
    world.calm_down();
    let settled = world.now + 26 * lease;
    world.run_until(settled);
    world.declare_stable();
    let end = world.now + 20 * lease;
    world.run_until(end);
    world.finish();
    Run::of(seed, world)
}
