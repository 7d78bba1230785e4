//! `models`: searches the models of the protocol cores.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use membership_multicast::Class;
use models::{
    flush::Flush,
    search::{Found, Limits},
    suite::{self, Case},
    takeover::{Budget, Delivery, Takeover},
};

/// Tries every schedule and fault within bounds on the real protocol cores.
///
/// Says how many different states there were, how fast it went, how deep, and whether that was all. Ends with status 1 if a
/// property does not hold, and tells the steps that lead there.
#[derive(Debug, Parser)]
#[command(name = "models")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The models that must hold before every change: all of each within its bounds, in about two minutes.
    Bounded,
    /// Larger ones, one after the other; give --steps, most have no end.
    ///
    /// Example: models long --steps 20000000
    Long,
    /// Membership: takeovers, leases, leaders.
    ///
    /// Example: models takeover --nodes 3 --cuts 1 --crashes 1 --proofs 1
    Takeover(TakeoverArgs),
    /// Multicast: from one view to the next.
    ///
    /// Example: models flush --views 012/120/12 --words 0s,1o --mortal 0
    Flush(FlushArgs),
}

#[derive(Args, Clone, Copy, Debug)]
struct LimitArgs {
    /// Stop after so many steps between states.
    #[arg(long, global = true, default_value_t = 1_000_000_000)]
    steps: usize,
    /// Stop after so many seconds.
    #[arg(long, global = true, default_value_t = 3600)]
    seconds: u64,
    /// How many threads search.
    #[arg(long, global = true, default_value_t = 2)]
    threads: usize,
    /// Search breadth first: the counterexample is the shortest, and more memory is needed.
    #[arg(long, global = true)]
    breadth_first: bool,
}

#[derive(Args, Debug)]
struct TakeoverArgs {
    /// How many nodes, all of them in the core.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Messages arrive whenever they like, in any order or never; this many fit on a link. Otherwise they arrive at once and
    /// in order, but for faults.
    #[arg(long)]
    free: Option<usize>,
    /// How many thirds of a lease a run lasts; 0 for no end.
    #[arg(long, default_value_t = 0)]
    horizon: u64,
    /// How many rounds of ballots may be used up.
    #[arg(long, default_value_t = 4)]
    rounds: u64,
    #[command(flatten)]
    budget: Budget,
    /// There is a witness.
    #[arg(long)]
    witness: bool,
    /// Plant a bug (built with `--features plant`).
    #[arg(long)]
    plant: Option<String>,
}

#[derive(Args, Debug)]
struct FlushArgs {
    /// The views by their members in rank order, such as 012/12.
    #[arg(long)]
    views: String,
    /// Who says what: member and class (f, o, s), such as 0s,1o.
    #[arg(long)]
    words: String,
    /// Who may die; not in the last view.
    #[arg(long)]
    mortal: Option<usize>,
    /// How often a connection may break.
    #[arg(long, default_value_t = 0)]
    breaks: u8,
    /// Every message is sent in two pieces.
    #[arg(long)]
    pieces: bool,
    /// Members may get several frames before they answer.
    #[arg(long)]
    lazy: bool,
    /// Members go on until who is new is there.
    #[arg(long)]
    patient: bool,
    /// Plant a bug (built with `--features plant`).
    #[arg(long)]
    plant: Option<String>,
}

impl TakeoverArgs {
    fn model(&self) -> anyhow::Result<Takeover> {
        if !(1..=7).contains(&self.nodes) {
            bail!("--nodes {} is out of range: give 1 to 7", self.nodes);
        }
        if self.free == Some(0) {
            bail!("--free 0 lets no message through: give 1 or more");
        }
        let plants = membership_proto::Plant::ALL.map(|p| (p.name(), p));
        Ok(Takeover {
            nodes: self.nodes,
            delivery: self.free.map_or(Delivery::Prompt, |capacity| Delivery::Free { capacity }),
            budget: self.budget,
            witness: self.witness,
            horizon: self.horizon,
            rounds: self.rounds,
            plant: self.plant.as_deref().map(|name| plant(&plants, name)).transpose()?,
        })
    }
}

impl FlushArgs {
    fn model(&self) -> anyhow::Result<Flush> {
        let digit = |c: char| c.to_digit(10).map(|d| d as usize).context("a member is one digit");
        let view = |v: &str| v.chars().map(digit).collect::<anyhow::Result<Vec<usize>>>();
        let views = self.views.split('/').map(view).collect::<anyhow::Result<Vec<_>>>()?;
        let word = |word: &str| {
            let mut chars = word.chars();
            let who = digit(chars.next().context("a word is a member and a class, such as 0s")?)?;
            let class = match chars.as_str() {
                "f" => Class::Fifo,
                "o" => Class::Ordered,
                "s" => Class::Safe,
                other => bail!("'{other}' is no class: give f, o or s"),
            };
            Ok((who, class))
        };
        let words =
            self.words.split(',').filter(|w| !w.is_empty()).map(word).collect::<anyhow::Result<Vec<_>>>()?;
        let last = views.last().context("there is at least one view")?;
        if let Some(mortal) = self.mortal.filter(|m| last.contains(m)) {
            bail!("member {mortal} is in the last view: who dies there keeps it from being closed");
        }
        if views.iter().any(Vec::is_empty) {
            bail!("every view has members: give them as digits, such as 012/12");
        }
        let members = views.iter().flatten().max().map_or(0, |m| m + 1);
        if words.iter().map(|(who, _)| *who).chain(self.mortal).any(|who| who >= members) {
            bail!("every member is in some view");
        }
        let plants = membership_multicast::Plant::ALL.map(|p| (p.name(), p));
        let plant = self.plant.as_deref().map(|name| plant(&plants, name)).transpose()?;
        let (mortal, breaks, pieces, lazy) = (self.mortal, self.breaks, self.pieces, self.lazy);
        Ok(Flush { views, words, mortal, breaks, pieces, lazy, patient: self.patient, plant })
    }
}

fn plant<T: Copy>(all: &[(&str, T)], name: &str) -> anyhow::Result<T> {
    if !cfg!(feature = "plant") {
        bail!("--plant needs a build with `--features plant`");
    }
    let names = || all.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|(n, _)| *n == name).map(|(_, plant)| *plant);
    found.with_context(|| format!("no planted bug is called '{name}': there are {}", names()))
}

fn report(name: &str, found: &Found) {
    let rate = found.steps as f64 / found.took.as_secs_f64().max(1e-3);
    let all = if found.exhausted { "that is all" } else { "there may be more" };
    println!(
        "{name}: {} states, {} steps, depth {}, {:.1} s, {rate:.0} steps/s; {all}",
        found.unique,
        found.steps,
        found.depth,
        found.took.as_secs_f64()
    );
    for missed in &found.missed {
        println!("  did not come about: {missed}");
    }
    for (property, path) in &found.broken {
        println!("  does not hold: {property}");
        for step in path {
            println!("    {step}");
        }
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let LimitArgs { steps, seconds, threads, breadth_first } = cli.limits;
    let time = Duration::from_secs(seconds);
    let limits = Limits { states: steps, time, threads: threads.max(1), breadth_first, progress: true };
    let (cases, must_be_all) = match cli.command {
        Command::Bounded => (suite::bounded(), true),
        Command::Long => (suite::long(), false),
        Command::Takeover(args) => (vec![("takeover", Case::Takeover(args.model()?))], false),
        Command::Flush(args) => (vec![("flush", Case::Flush(args.model()?))], false),
    };
    let mut bad = 0;
    for (name, case) in cases {
        let found = case.search(limits);
        report(name, &found);
        let is_good = found.broken.is_empty() && (!must_be_all || found.exhausted && found.missed.is_empty());
        bad += usize::from(!is_good);
    }
    if bad > 0 {
        std::process::exit(1);
    }
    Ok(())
}
