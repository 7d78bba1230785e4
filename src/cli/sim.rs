//! `sim`: runs of the simulator.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use clap::Args;

use serde_json::json;
use sim::{Kind, Options, Plant, Run, Totals};

use super::{Failure, Outcome, events, exit};

/// Runs the membership protocol under a hostile network, stops and crashes, from seeds. One seed replays one run byte for
/// byte. Exit code 1 on a violation, or if a rare path was never taken in 100 seeds or more.
///
/// Example: phalanx sim --seeds 2000; phalanx sim --seed 17 --trace run.jsonl
#[derive(Args)]
pub(crate) struct Sim {
    /// Machines per run [default: random, 3 to 7].
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// The first seed [default: random, and printed].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How many seeds.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Simulated hours of faults per seed [default: a minute].
    #[arg(long, value_name = "H")]
    hours: Option<f64>,
    /// The kinds of fault to draw from, separated by commas [default: all].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    faults: Vec<Kind>,
    /// Write the trace here; with one seed.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A deliberate bug in every node, to see that it is found; `list` names them (feature `plant`).
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
}

impl Sim {
    pub(crate) fn run(self, json: bool) -> Outcome {
        if let Some(nodes) = self.nodes.filter(|n| !(1..=50).contains(n)) {
            return Err(Failure::usage(format!("--nodes {nodes}: give 1 to 50")));
        }
        if let Some(hours) = self.hours.filter(|h| !(0.0..=1000.0).contains(h)) {
            return Err(Failure::usage(format!("--hours {hours}: give up to 1000")));
        }
        if self.seeds == 0 {
            return Err(Failure::usage("--seeds 0: give at least 1"));
        }
        if self.plant.as_deref() == Some("list") {
            for plant in Plant::all() {
                events::line(plant.name());
            }
            return Ok(0);
        }
        let plant = self.plant.as_deref().map(find_plant).transpose()?;
        let kinds = if self.faults.is_empty() { Kind::ALL.to_vec() } else { self.faults.clone() };
        let options = Options { nodes: self.nodes, hours: self.hours, kinds, plant, hash: self.seeds == 1 };
        let first = match self.seed {
            Some(seed) => seed,
            None => u64::from(std::process::id()) << 20 | membership::clock::now_ns() & 0xf_ffff,
        };
        let Some(last) = first.checked_add(self.seeds - 1) else {
            return Err(Failure::usage(format!(
                "--seed {first} --seeds {}: there are not so many",
                self.seeds
            )));
        };
        eprintln!("seeds {first} to {last}");
        let started = Instant::now();
        let totals = match &self.trace {
            Some(_) if self.seeds != 1 => return Err(Failure::usage("--trace goes with one seed")),
            Some(file) => {
                let file = File::create(file)
                    .map_err(|e| Failure::usage(format!("--trace {}: {e}", file.display())))?;
                one(first, &options, Some(Box::new(BufWriter::new(file))), json)?
            }
            None if self.seeds == 1 => one(first, &options, None, json)?,
            None => many(first, self.seeds, &options, json),
        };
        let unhit = if self.seeds >= 100 { totals.unhit() } else { Vec::new() };
        let simulated_s = totals.simulated_ns as f64 / 1e9;
        let per_minute = simulated_s / 3600.0 / (started.elapsed().as_secs_f64() / 60.0);
        eprintln!("{per_minute:.1} simulated hours per minute");
        let summary = json!({
            "event": "summary", "seed": first, "seeds": totals.seeds, "events": totals.events, "faults": totals.faults,
            "views": totals.views, "simulated_s": simulated_s, "markers_unhit": unhit, "violations": totals.violations,
            "failed_seeds": totals.failed,
        });
        let text = format!(
            "{} seeds, {simulated_s:.0} s simulated, {} faults, {} views: {} violations{}",
            totals.seeds,
            totals.faults,
            totals.views,
            totals.violations,
            if unhit.is_empty() { String::new() } else { format!("; never happened: {}", unhit.join(", ")) },
        );
        events::line(&if json { summary.to_string() } else { text });
        let bad = totals.violations > 0 || !unhit.is_empty() && plant.is_none() && self.faults.is_empty();
        Ok(if bad { exit::FAILED } else { 0 })
    }
}

fn find_plant(name: &str) -> Result<Plant, Failure> {
    if !cfg!(feature = "plant") {
        return Err(Failure::usage("--plant: build with --features plant"));
    }
    let found = Plant::all().find(|p| p.name() == name);
    found.ok_or_else(|| Failure::usage(format!("--plant {name}: no such bug; --plant list names them")))
}

fn tell(run: &Run, json: bool) {
    if run.failed() {
        let mut text = format!("seed {}", run.seed);
        if let Some(at) = run.livelock {
            text.push_str(&format!("\nnodes kept each other busy without end at {at} ns"));
        }
        text.push_str(&format!("\n{}", run.report));
        if json {
            eprintln!("{text}");
        } else {
            events::line(&text);
        }
    }
}

fn one(
    seed: u64,
    options: &Options,
    file: Option<Box<dyn Write + Send>>,
    json: bool,
) -> Result<Totals, Failure> {
    let run = sim::run(seed, options, file);
    tell(&run, json);
    if let Some(hash) = run.hash {
        eprintln!("trace hash {hash:016x}");
    }
    let mut totals = Totals::default();
    totals.add(&run);
    run.written?;
    Ok(totals)
}

/// Seeds on all cores.
fn many(first: u64, seeds: u64, options: &Options, json: bool) -> Totals {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        let worker = || {
            let mut part = Totals::default();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= seeds {
                    return part;
                }
                let run = sim::run(first.wrapping_add(n), options, None);
                tell(&run, json);
                part.add(&run);
                if n % 500 == 499 {
                    eprintln!("{} of {seeds} seeds", n + 1);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => totals.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    totals
}
