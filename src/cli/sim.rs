//! `sim`: runs of the simulator.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{BufWriter, Write},
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    str::FromStr,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;

use serde_json::json;
use sim::{Fault, Kind, MOST_NODES, Options, Plant, Run, Scenario, Shrunk, Totals, UnknownKind};

use super::{Failure, Outcome, complain, events, exit, flags::Time};

/// Runs the membership protocol under a hostile network, stops and crashes, from seeds. One seed replays one run byte for
/// byte. Exit code 1 on a violation, or if a rare path was never taken in 100 seeds or more.
///
/// Example: phalanx sim --seeds 2000; phalanx sim --seed 17 --trace run.jsonl; phalanx sim --seed 17 --shrink;
/// phalanx sim --scenario rack-lost --seeds 20; phalanx sim --scenario all-at-once --nodes 2000
#[derive(Args)]
pub(crate) struct Sim {
    /// Machines per run, up to 2000 [default: random, 3 to 7; those of the scenario]. Where there are more than 12, only seven
    /// are in groups.
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// The first seed [default: random, and printed].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How many seeds.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// How many seeds at a time, each in a thread of its own; what is printed does not depend on it [default: one for each
    /// core].
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Simulated hours of faults per seed, 0 to 1000 [default: a minute].
    #[arg(long, value_name = "H")]
    hours: Option<f64>,
    /// The kinds of fault to draw from, separated by commas, or `none` [default: all].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    faults: Vec<Drawn>,
    /// Not what is drawn, but the scenario of this name, in which more is asked for than the predicates; `list` tells them. Delays,
    /// clocks and instants come from the seed.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["hours", "faults", "shrink", "skip_faults", "calm_at"])]
    scenario: Option<String>,
    /// Write the trace here; with one seed.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A deliberate bug in every node, to see that it is found; `list` names them (feature `plant`).
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
    /// Look for the fewest faults with which the seed still fails, print them, and how to replay them; with --seed.
    #[arg(long, requires = "seed", conflicts_with_all = ["trace", "skip_faults", "calm_at"])]
    shrink: bool,
    /// How long to look for them.
    #[arg(long, value_name = "DUR", default_value = "2m", requires = "shrink")]
    shrink_for: Time,
    /// Leave these faults of the run out, like 0,3-9; 0 is what stays broken when calm begins. The others come when they
    /// came, and as they came as far as there is the same to be hit.
    #[arg(long, value_name = "LIST", default_value = "")]
    skip_faults: Numbers,
    /// Calm begins after so much simulated time at the latest.
    #[arg(long, value_name = "DUR", value_parser = nanoseconds)]
    calm_at: Option<u64>,
}

/// A kind of fault to draw from, or `none`.
#[derive(Clone, Copy)]
struct Drawn(Option<Kind>);

impl FromStr for Drawn {
    type Err = UnknownKind;
    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        if name == "none" { Ok(Self(None)) } else { name.parse().map(|kind| Self(Some(kind))) }
    }
}

/// At most this many numbers: no run has more faults.
const MAX_NUMBERS: usize = 10_000_000;

/// Numbers, written `0,3-9`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers(BTreeSet<usize>);

impl FromStr for Numbers {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| format!("`{part}` is no number and no range: write the list like 0,3-9");
        let mut numbers = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < MAX_NUMBERS);
            let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(wrong(part)) };
            if first > last {
                return Err(wrong(part));
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last == first {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

fn nanoseconds(text: &str) -> Result<u64, String> {
    let time: Time = text.parse()?;
    u64::try_from(time.0.as_nanos()).map_err(|_| format!("`{text}` is too long"))
}

impl Sim {
    pub(crate) fn run(self, json: bool) -> Outcome {
        if self.scenario.as_deref() == Some("list") {
            list_scenarios(json);
            return Ok(0);
        }
        let scenario = self.scenario.as_deref().map(find_scenario).transpose()?;
        let (least, most) = scenario.map_or((1, MOST_NODES), Scenario::nodes);
        if let Some(nodes) = self.nodes.filter(|n| !(least..=most).contains(n)) {
            let with =
                scenario.map_or(String::new(), |scenario| format!(" with --scenario {}", scenario.name()));
            return Err(Failure::usage(format!("--nodes {nodes}: give {least} to {most}{with}")));
        }
        if let Some(hours) = self.hours.filter(|h| !(0.0..=1000.0).contains(h)) {
            return Err(Failure::usage(format!("--hours {hours}: give up to 1000")));
        }
        if self.seeds == 0 {
            return Err(Failure::usage("--seeds 0: give at least 1"));
        }
        if self.plant.as_deref() == Some("list") {
            for plant in Plant::all().filter(|plant| plant.is_simulated()) {
                events::line(plant.name());
            }
            return Ok(0);
        }
        let plant = self.plant.as_deref().map(find_plant).transpose()?;
        let kinds = if self.faults.is_empty() {
            Kind::ALL.to_vec()
        } else {
            self.faults.iter().filter_map(|drawn| drawn.0).collect()
        };
        if self.seeds != 1 && (self.shrink || !self.skip_faults.0.is_empty()) {
            return Err(Failure::usage("--shrink and --skip-faults go with one seed"));
        }
        let options = Options {
            nodes: self.nodes,
            hours: self.hours,
            kinds,
            plant,
            hash: self.seeds == 1,
            skip: self.skip_faults.0.clone(),
            calm_ns: self.calm_at,
            scenario,
        };
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
        if self.shrink {
            return self.shrink(first, &options, json);
        }
        complain(format_args!("seeds {first} to {last}"));
        let started = Instant::now();
        let totals = match &self.trace {
            Some(_) if self.seeds != 1 => return Err(Failure::usage("--trace goes with one seed")),
            Some(file) => {
                let file = File::create(file)
                    .map_err(|e| Failure::usage(format!("--trace {}: {e}", file.display())))?;
                one(first, &options, Some(Box::new(BufWriter::new(file))), json)?
            }
            None if self.seeds == 1 => one(first, &options, None, json)?,
            None => many(first, self.seeds, self.jobs(), &options, json),
        };
        let unhit = if self.seeds >= 100 && scenario.is_none() { totals.unhit() } else { Vec::new() };
        let simulated_s = totals.simulated_ns as f64 / 1e9;
        let per_minute = simulated_s / 3600.0 / (started.elapsed().as_secs_f64() / 60.0);
        complain(format_args!("{per_minute:.1} simulated hours per minute"));
        let mut summary = json!({
            "event": "summary", "seed": first, "seeds": totals.seeds, "events": totals.events, "faults": totals.faults,
            "views": totals.views, "simulated_s": simulated_s, "markers_unhit": unhit, "violations": totals.violations,
            "failed_seeds": totals.failed,
        });
        if let Some(scenario) = scenario {
            summary["scenario"] = scenario.name().into();
        }
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

    fn jobs(&self) -> usize {
        let jobs = self.jobs.or_else(|| std::thread::available_parallelism().ok());
        jobs.map_or(1, NonZeroUsize::get)
    }

    fn shrink(&self, seed: u64, options: &Options, json: bool) -> Outcome {
        let started = Instant::now();
        let mut told = started;
        let found = sim::shrink(seed, options, &mut |step| {
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                let calm = step.calm_ns as f64 / 1e9;
                complain(format_args!("{} runs: {} faults, calm after {calm:.3} s", step.runs, step.faults));
            }
            started.elapsed() < self.shrink_for.0
        });
        let Some(found) = found else {
            let nothing = json!({ "event": "shrunk", "seed": seed, "fails": null });
            let text = format!("seed {seed} does not fail: there is nothing to shrink");
            events::line(&if json { nothing.to_string() } else { text });
            return Ok(0);
        };
        let replay = self.replay(seed, &found.options);
        events::line(&if json { as_json(&found, &replay).to_string() } else { as_text(&found, &replay) });
        Ok(exit::FAILED)
    }

    /// The command that runs this once more.
    fn replay(&self, seed: u64, options: &Options) -> String {
        let mut command = format!("phalanx sim --seed {seed}");
        let mut flag = |name: &str, value: String| command.push_str(&format!(" --{name} {value}"));
        if let Some(nodes) = self.nodes {
            flag("nodes", nodes.to_string());
        }
        if let Some(hours) = self.hours {
            flag("hours", hours.to_string());
        }
        if !self.faults.is_empty() {
            let name = |drawn: &Drawn| drawn.0.map_or("none", Kind::name);
            flag("faults", self.faults.iter().map(name).collect::<Vec<_>>().join(","));
        }
        if let Some(plant) = options.plant {
            flag("plant", plant.name().into());
        }
        if !options.skip.is_empty() {
            flag("skip-faults", Numbers(options.skip.clone()).to_string());
        }
        if let Some(calm) = options.calm_ns {
            // To the nanosecond, which is all that the clock of the simulator knows.
            flag("calm-at", format!("{}.{:09}s", calm / 1_000_000_000, calm % 1_000_000_000));
        }
        command
    }
}

fn struck(run: &Run) -> impl Iterator<Item = &Fault> {
    run.schedule.iter().filter(|fault| fault.struck)
}

fn as_json(found: &Shrunk, replay: &str) -> serde_json::Value {
    let run = &found.run;
    let fault =
        |f: &Fault| json!({ "number": f.number, "at_ns": f.at_ns, "kind": f.kind.name(), "notes": f.notes });
    json!({
        "event": "shrunk", "seed": run.seed, "fails": found.failure, "faults_before": found.before,
        "faults": struck(run).map(fault).collect::<Vec<_>>(), "calm_ns": run.calm_ns, "ending": run.ending,
        "runs": found.runs, "minimal": found.minimal, "replay": replay,
    })
}

fn as_text(found: &Shrunk, replay: &str) -> String {
    let run = &found.run;
    let mut text = format!("seed {}: {}\n", run.seed, run.make_up);
    for fault in struck(run) {
        let at = fault.at_ns as f64 / 1e9;
        text.push_str(&format!("{at:>10.3} s  fault {}, {}", fault.number, fault.kind.name()));
        for note in &fault.notes {
            text.push_str(&format!("\n              {note}"));
        }
        text.push('\n');
    }
    let calm = run.calm_ns as f64 / 1e9;
    text.push_str(&format!("{calm:>10.3} s  calm: {}\n", run.ending));
    for verdict in run.report.failures() {
        text.push_str(&format!("{verdict}\n"));
    }
    let minimal =
        if found.minimal { "each is needed" } else { "time ran out: --shrink-for gives more of it" };
    text.push_str(&format!(
        "{} fails with {} of {} faults, what stays broken counted in ({} runs; {minimal})\nreplay: {replay}",
        found.failure,
        found.left.len(),
        found.before,
        found.runs,
    ));
    text
}

fn find_scenario(name: &str) -> Result<Scenario, Failure> {
    let wrong = || Failure::usage(format!("--scenario {name}: no such scenario; --scenario list tells them"));
    Scenario::named(name).ok_or_else(wrong)
}

fn list_scenarios(json: bool) {
    for scenario in Scenario::all() {
        let (name, about, (least, most)) = (scenario.name(), scenario.about(), scenario.nodes());
        let line = json!({ "event": "scenario", "name": name, "about": about, "nodes": [least, most] });
        events::line(&if json { line.to_string() } else { format!("{name:<26} {about}") });
    }
}

fn find_plant(name: &str) -> Result<Plant, Failure> {
    if !cfg!(feature = "plant") {
        return Err(Failure::usage("--plant: build with --features plant"));
    }
    let found = Plant::all().find(|p| p.name() == name);
    found.ok_or_else(|| Failure::usage(format!("--plant {name}: no such bug; --plant list names them")))
}

/// What is wrong with a run, for people.
fn complaint(run: &Run) -> Option<String> {
    if !run.failed() {
        return None;
    }
    let mut text = format!("seed {}", run.seed);
    if let Some(at) = run.livelock {
        text.push_str(&format!("\nnodes kept each other busy without end at {at} ns"));
    }
    for wrong in &run.unmet {
        text.push_str(&format!("\nnot as the scenario has it: {wrong}"));
    }
    text.push_str(&format!("\n{}", run.report));
    Some(text)
}

fn tell(complaint: &str, json: bool) {
    if json {
        complain(complaint);
    } else {
        events::line(complaint);
    }
}

fn one(
    seed: u64,
    options: &Options,
    file: Option<Box<dyn Write + Send>>,
    json: bool,
) -> Result<Totals, Failure> {
    let run = sim::run(seed, options, file);
    for (at_ns, text) in &run.story {
        let line = json!({ "event": "told", "at_ns": at_ns, "text": text });
        let seconds = *at_ns as f64 / 1e9;
        events::line(&if json { line.to_string() } else { format!("{seconds:>10.3} s  {text}") });
    }
    if let Some(complaint) = complaint(&run) {
        tell(&complaint, json);
    }
    if let Some(hash) = run.hash {
        complain(format_args!("trace hash {hash:016x}"));
    }
    let mut totals = Totals::default();
    totals.add(&run);
    run.written?;
    Ok(totals)
}

/// No seed is begun that is so far ahead of the first one that runs still: what waits to be told is bounded.
const AHEAD: u64 = 1000;

/// Which seed is next, and what those amount to that are over. Told in order, whichever is over first.
#[derive(Default)]
struct Queue {
    next: u64,
    /// All before this one were told of.
    told: u64,
    waiting: BTreeMap<u64, Option<String>>,
    totals: Totals,
    /// A run panicked: no other one begins.
    broken: bool,
}

impl Queue {
    /// A run is over; gives what is wrong with it, if anything is, and with those that waited for it.
    fn over(&mut self, n: u64, complaint: Option<String>) -> Vec<String> {
        self.waiting.insert(n, complaint);
        let mut complaints = Vec::new();
        while let Some(complaint) = self.waiting.remove(&self.told) {
            self.told += 1;
            complaints.extend(complaint);
        }
        complaints
    }
}

/// Many seeds, some at a time.
fn many(first: u64, seeds: u64, jobs: usize, options: &Options, json: bool) -> Totals {
    let (queue, moved) = (Mutex::new(Queue::default()), Condvar::new());
    let lock = || -> MutexGuard<'_, Queue> { queue.lock().unwrap_or_else(PoisonError::into_inner) };
    std::thread::scope(|scope| {
        let worker = || loop {
            let too_far = |queue: &mut Queue| queue.next >= queue.told + AHEAD && !queue.broken;
            let mut guard = moved.wait_while(lock(), too_far).unwrap_or_else(PoisonError::into_inner);
            let n = guard.next;
            if n >= seeds || guard.broken {
                return;
            }
            guard.next += 1;
            drop(guard);
            let seed = first.wrapping_add(n);
            match catch_unwind(AssertUnwindSafe(|| sim::run(seed, options, None))) {
                Ok(run) => {
                    let mut guard = lock();
                    guard.totals.add(&run);
                    let before = guard.told / 500;
                    guard.over(n, complaint(&run)).iter().for_each(|complaint| tell(complaint, json));
                    if guard.told / 500 > before {
                        complain(format_args!("{} of {seeds} seeds", guard.told));
                    }
                }
                Err(panic) => {
                    complain(format_args!("seed {seed} panicked"));
                    lock().broken = true;
                    moved.notify_all();
                    resume_unwind(panic);
                }
            }
            moved.notify_all();
        };
        let threads = u64::try_from(jobs).unwrap_or(u64::MAX).min(seeds);
        (0..threads).for_each(|_| drop(scope.spawn(worker)));
    });
    let mut totals = queue.into_inner().unwrap_or_else(PoisonError::into_inner).totals;
    totals.failed.sort_unstable();
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_faults_are_read_as_they_are_written() {
        for text in ["", "0", "0,3-9", "2,4,6-7"] {
            assert_eq!(text.parse::<Numbers>().expect("a list").to_string(), text);
        }
        assert_eq!("1,2,3".parse::<Numbers>().expect("a list").to_string(), "1-3");
        for wrong in [",", "x", "3-", "9-3", "1-99999999999", "-1"] {
            let error = wrong.parse::<Numbers>().expect_err(wrong);
            assert!(error.contains("like 0,3-9"), "{error}");
        }
    }

    #[test]
    fn runs_are_told_of_in_the_order_of_their_seeds() {
        let mut queue = Queue::default();
        let text = |n: u64| Some(n.to_string());
        assert_eq!(queue.over(2, text(2)), Vec::<String>::new());
        assert_eq!(queue.over(1, None), Vec::<String>::new());
        assert_eq!(queue.over(0, text(0)), ["0", "2"]);
        assert_eq!(queue.over(3, text(3)), ["3"]);
        assert_eq!((queue.told, queue.waiting.len()), (4, 0));
    }

    #[test]
    fn times_are_kept_to_the_nanosecond() {
        for ns in [1, 999_999_999, 61_234_567_891, 3_600_000_000_001] {
            let text = format!("{}.{:09}s", ns / 1_000_000_000, ns % 1_000_000_000);
            assert_eq!(nanoseconds(&text), Ok(ns));
        }
    }
}
