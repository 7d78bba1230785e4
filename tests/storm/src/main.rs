//! Storms: real processes on hosts of their own, real faults from one seed, and one checker that judges what all have written.
//!
//! Each round is a cluster of its own, with a make-up and faults drawn from its seed ([`plan`]); after its storm comes a calm in
//! which all must agree ([`round`]). Rounds have successive seeds, so each can be played again alone. What happens at which
//! instant is not determined by the seed: a failing round is likely, not certain, to fail again.
#![forbid(unsafe_code)]

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};

mod act;
mod client;
mod hosts;
mod keys;
mod plan;
mod proc;
mod quota;
mod round;
mod tally;

use hosts::Hosts;
use plan::{EXTRA, Fixed, Kind, Plan};
use quota::Quotas;
use round::Round;
use tally::Tally;

/// Real nodes under real faults: killed, stopped, cut off, starved; judged by the checker.
///
/// Needs root (network namespaces, nftables, control groups) and the programs ip, nft, unshare and nsenter. Leaves nothing
/// behind but the traces of failed rounds. Exit code 1 if anything was wrong.
#[derive(Parser)]
struct Args {
    /// How long; the last round is played to its end.
    #[arg(long = "for", value_name = "DUR", default_value = "90s", value_parser = time)]
    length: Duration,
    /// So many rounds instead.
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// The first round's seed; the others follow [default: random].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// So many nodes in every round [default: 3 to 7, more often 3 and 5].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=50))]
    nodes: Option<u64>,
    /// The lease in every round [default: 300ms to 1s].
    #[arg(long, value_name = "DUR", value_parser = time)]
    lease: Option<Duration>,
    /// How long faults come in every round [default: 20s to 45s].
    #[arg(long, value_name = "DUR", value_parser = time)]
    storm: Option<Duration>,
    /// Only these kinds of fault.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    faults: Vec<Kind>,
    /// No faults, but so many busy threads for each processor; nobody may be suspected or removed.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=64))]
    burn: u64,
    /// The binary under test [default: phalanx, beside this program].
    #[arg(long, value_name = "FILE")]
    phalanx: Option<PathBuf>,
    /// What the nodes log, into files beside their traces.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
    /// Where the traces of failed rounds are kept [default: the directory for temporary files].
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Say which faults are injected when.
    #[arg(long, short)]
    verbose: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// Be a command under a wrapper: write into this file, for ever.
    #[arg(long, hide = true, value_name = "FILE")]
    act: Option<PathBuf>,
}

/// What all rounds share.
pub struct Shared {
    phalanx: String,
    /// This program, which is also the command of wrappers.
    storm: String,
    level: String,
    quotas: Option<Quotas>,
    verbose: bool,
    stop: Arc<AtomicBool>,
    /// For how many nanoseconds this program did not run although it was to: since that was last set to 0, and ever.
    stall: Arc<AtomicU64>,
    worst: Arc<AtomicU64>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn log(&self, text: &str) {
        if self.verbose {
            let ns = now_ns();
            eprintln!("{}.{:03} {text}", ns / 1_000_000_000, ns / 1_000_000 % 1000);
        }
    }
}

/// The clock of the traces.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: write it like 300ms, 90s, 20m or 1h");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let number: f64 = text[..at].parse().map_err(|_| wrong())?;
    let unit = match &text[at..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let time = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
    let fits = (Duration::from_millis(1)..=Duration::from_secs(8760 * 3600)).contains(&time);
    if fits { Ok(time) } else { Err("give 1ms to 8760h".into()) }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(file) = &args.act {
        let Err(error) = act::run(file) else { return ExitCode::SUCCESS };
        eprintln!("storm --act: {error:#}");
        return ExitCode::from(1);
    }
    if !rustix::process::geteuid().is_root() {
        let required = ["CI", "PHALANX_REQUIRE_SERVERS"].iter().any(|name| std::env::var_os(name).is_some());
        println!("SKIPPED: network namespaces need root");
        return ExitCode::from(u8::from(required));
    }
    match play(&args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// How many rounds failed.
fn play(args: &Args) -> anyhow::Result<usize> {
    let phalanx = match &args.phalanx {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("phalanx"),
    };
    let hint = "build it with `cargo build --release --bin phalanx`, or name it with --phalanx";
    let phalanx = phalanx.canonicalize().with_context(|| format!("no {}: {hint}", phalanx.display()))?;
    let lease = args.lease.filter(|lease| *lease < Duration::from_millis(20));
    ensure!(lease.is_none(), "--lease: give at least 20ms");
    let fixed = Fixed {
        nodes: args.nodes.map(|n| n as usize),
        most: 7,
        lease: args.lease,
        kinds: args.faults.clone(),
        storm: args.storm,
        burn: args.burn as usize,
    };
    let quotas = Quotas::new()?;
    let mut can = Vec::new();
    if quotas.is_some() {
        can.push(Kind::Starve);
    } else {
        println!("no control groups here with a cpu controller: nobody is starved");
    }
    if quotas.as_ref().is_some_and(Quotas::has_memory) {
        can.push(Kind::Squeeze);
    } else {
        println!("no control groups here with a memory controller: nobody lacks memory");
    }
    let shared = Shared {
        phalanx: phalanx.display().to_string(),
        storm: std::env::current_exe()?.display().to_string(),
        level: args.log.clone(),
        quotas,
        verbose: args.verbose,
        stop: Arc::default(),
        stall: Arc::default(),
        worst: Arc::default(),
    };
    watch_signals(Arc::clone(&shared.stop))?;
    watch_machine(Arc::clone(&shared.stall), Arc::clone(&shared.worst));
    let mut hosts = Hosts::new(fixed.nodes.unwrap_or(fixed.most) + EXTRA)?;
    let first = args.seed.unwrap_or_else(|| now_ns() / 1000 % 1_000_000_000);
    let dir = args.keep.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("phalanx-storm-{}", std::process::id()));
    let mut tally = Tally::default();
    let ends = Instant::now() + args.length;
    for seed in first.. {
        let over = args.rounds.map_or(Instant::now() >= ends, |rounds| tally.rounds >= rounds);
        if over || shared.stopping() {
            break;
        }
        let (plan, rng) = Plan::draw(seed, &fixed, &can);
        eprintln!("seed {seed}: {plan}");
        let place = dir.join(seed.to_string());
        let round = Round::new(plan, rng, &shared, &mut hosts, &place, &mut tally)?;
        let wrong =
            round.play().with_context(|| format!("seed {seed}; its traces are in {}", place.display()))?;
        tally.rounds += 1;
        if wrong.is_empty() {
            std::fs::remove_dir_all(&place)?;
            continue;
        }
        tally.failed_seeds.push(seed);
        println!("seed {seed} FAILED; its traces are in {}", place.display());
        for line in wrong {
            println!("  {line}");
        }
        println!("  again: cargo run --release -p storm -- --rounds 1 --seed {seed}{}", again(args));
    }
    if tally.failed_seeds.is_empty() && dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    println!("{}", if args.json { tally.to_json().to_string() } else { tally.to_text() });
    Ok(tally.failed_seeds.len())
}

/// The flags that make a round what it was.
fn again(args: &Args) -> String {
    let mut text = String::new();
    if let Some(nodes) = args.nodes {
        text += &format!(" --nodes {nodes}");
    }
    for (flag, time) in [("lease", args.lease), ("storm", args.storm)] {
        if let Some(time) = time {
            text += &format!(" --{flag} {}ms", time.as_millis());
        }
    }
    if args.burn > 0 {
        text += &format!(" --burn {}", args.burn);
    }
    if !args.faults.is_empty() {
        let kinds: Vec<String> = args.faults.iter().map(|kind| kind.name()).collect();
        text += &format!(" --faults {}", kinds.join(","));
    }
    text
}

/// INT and TERM end the round that is under way; everything is cleaned up then.
fn watch_signals(stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Sees for how long this machine lets those wait that want to run.
fn watch_machine(stall: Arc<AtomicU64>, worst: Arc<AtomicU64>) {
    const NAP: Duration = Duration::from_millis(5);
    thread::spawn(move || {
        loop {
            let before = now_ns();
            thread::sleep(NAP);
            let late = (now_ns() - before).saturating_sub(NAP.as_nanos() as u64);
            stall.fetch_max(late, Ordering::Relaxed);
            worst.fetch_max(late, Ordering::Relaxed);
        }
    });
}
