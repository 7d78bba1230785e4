//! The command line: what each command takes, and what it exits with.

// They panic where nobody can be told: see `complain` and `events`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

use std::{
    env,
    ffi::OsStr,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod bench;
mod check;
mod demo;
mod events;
mod files;
mod flags;
mod fuse;
mod health;
mod hooks;
mod inventory;
mod join;
mod lock;
mod node;
mod operate;
mod output;
mod proc;
mod route;
mod run;
mod scratch;
mod secret;
mod server;
mod sim;
mod top;

/// Exit codes, as the README lists them.
pub(crate) mod exit {
    /// What was checked is wrong, or a failure not named here.
    pub(crate) const FAILED: u8 = 1;
    /// Usage or configuration.
    pub(crate) const USAGE: u8 = 2;
    /// Could not join in time.
    pub(crate) const NOT_JOINED: u8 = 3;
    /// Removed from the cluster.
    pub(crate) const REMOVED: u8 = 4;
    /// Lost the lead while a command ran under it.
    pub(crate) const LOST: u8 = 5;
}

/// Why a command ends without success: what to print, and what to exit with.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    pub(crate) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(exit::USAGE, text)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(exit::FAILED, format!("{:#}", error.into()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a command comes to: its exit code.
pub(crate) type Outcome = Result<u8, Failure>;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PHALANX_COMMIT"), ")");

/// Services that are partitioned and replicated: ranked groups with leaders, a router that follows them, unmodified
/// servers as members. No outside coordination server.
#[derive(Parser)]
#[command(name = "phalanx", version = VERSION, max_term_width = 100)]
struct Cli {
    /// Print JSON, one object a line, on standard output.
    #[arg(long, global = true)]
    json: bool,
    /// What to log on standard error: error, warn, info, debug or trace [default: warn].
    #[arg(long, global = true, value_name = "LEVEL", env = "PHALANX_LOG")]
    log: Option<tracing::Level>,
    /// Be killed when the process that started this one dies.
    #[arg(long, global = true, hide = true)]
    die_with_parent: bool,
    /// Hold so much memory, and use it for nothing: benchmarks kill big processes.
    #[arg(long, global = true, hide = true, value_name = "SIZE")]
    hold: Option<flags::Size>,
    #[command(subcommand)]
    command: Command,
}

/// What has no description here has a longer one at its own type.
#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    /// A plain node: it may sit in the core and serves the admin API.
    Agent(join::Agent),
    Join(join::Join),
    /// A node that observes GROUP and prints its views.
    Watch(join::Watch),
    Run(Box<run::Run>),
    Lock(Box<lock::Lock>),
    Router(route::Router),
    /// How a node stands, asked at its admin API.
    Status(operate::Status),
    /// The cluster's view, or a group's, asked at a node's admin API.
    View(operate::View),
    Top(top::Top),
    #[command(name = "force-new")]
    ForceNew(operate::ForceNew),
    Secret(secret::Secret),
    /// The simulator: hostile runs of the membership protocol, judged by the checker.
    Sim(sim::Sim),
    Check(check::Check),
    /// The project's own benchmarks.
    Bench(bench::Bench),
    Inventory(inventory::Inventory),
    #[command(hide = true)]
    Server(server::Server),
    #[command(hide = true)]
    Fuse(fuse::FuseCommand),
}

/// A count that cannot be 0.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("give at least 1".into()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("`{text}` is no count")),
    }
}

impl Command {
    /// Takes what the flags leave open from the configuration file, if the command has one. It is read once, for it may be a
    /// pipe. Returns what to log, if that is said.
    fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        match self {
            Self::Agent(agent) => agent.configure(),
            Self::Join(join) => join.configure(),
            Self::Inventory(inventory) => inventory.configure(),
            Self::Watch(watch) => watch.configure(),
            Self::Run(run) => run.configure(),
            Self::Lock(lock) => lock.configure(),
            Self::Router(router) => router.configure(),
            _ => Ok(None),
        }
    }
}

/// Variables of the environment that are set to nothing count as not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

fn parse() -> Result<Cli, clap::Error> {
    let mut command = without_empty_variables(Cli::command());
    let matches = command.try_get_matches_from_mut(env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let mut cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            return match error.print() {
                Err(lost) if lost.kind() != io::ErrorKind::BrokenPipe => {
                    failed(&Failure::new(exit::FAILED.max(code), format!("standard output: {lost}")))
                }
                _ => ExitCode::from(code),
            };
        }
    };
    let level = match cli.command.configure() {
        Ok(in_file) => cli.log.or(in_file).unwrap_or(tracing::Level::WARN),
        Err(failure) => return failed(&failure),
    };
    let log =
        tracing_subscriber::fmt().with_max_level(level).with_writer(|| output::Stderr).with_target(false);
    // A log that cannot be written ends nobody.
    log.log_internal_errors(false).init();
    if cli.die_with_parent
        && let Err(error) =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        return failed(&Failure::new(exit::FAILED, format!("--die-with-parent: {error}")));
    }
    // What wrappers start keeps the limit that it was given: they raise their own once it has a fuse.
    if !matches!(cli.command, Command::Run(_) | Command::Lock(_) | Command::Fuse(_)) {
        files::raise_limit();
    }
    // Not zeros, for which the kernel need not give memory.
    let held = vec![1_u8; cli.hold.map_or(0, |size| size.0)];
    std::hint::black_box(&held);
    let json = cli.json;
    let outcome = match cli.command {
        Command::Demo(demo) => block_on(demo.run(json)),
        Command::Agent(agent) => block_on(agent.run(json)),
        Command::Join(join) => block_on(join.run(json)),
        Command::Watch(watch) => block_on(watch.run(json)),
        Command::Run(run) => block_on(run.run(json)),
        Command::Lock(lock) => block_on(lock.run(json)),
        Command::Router(router) => block_on(router.run(json)),
        Command::Status(status) => status.run(json),
        Command::View(view) => view.run(json),
        Command::Top(top) => block_on(top.run(json)),
        Command::ForceNew(force) => force.run(json),
        Command::Secret(secret) => secret.run(json),
        Command::Sim(sim) => sim.run(json),
        Command::Check(check) => check.run(json),
        Command::Bench(bench) => block_on(bench.run(json)),
        Command::Inventory(inventory) => block_on(inventory.run(json)),
        Command::Server(server) => block_on(server.run()),
        Command::Fuse(fuse) => fuse.run(),
    };
    drop(held);
    let code = outcome.unwrap_or_else(|failure| {
        complain(&failure);
        failure.code
    });
    output::finish(output::PATIENCE);
    ExitCode::from(if events::lost() { code.max(exit::FAILED) } else { code })
}

/// Says on standard error what is wrong, and goes on if even this cannot be written.
pub(crate) fn complain(what: impl fmt::Display) {
    // One piece: what does not fit into a queue is missing as a whole.
    let _unread = output::Stderr.write_all(format!("phalanx: {what}\n").as_bytes());
}

fn failed(failure: &Failure) -> ExitCode {
    complain(failure);
    ExitCode::from(failure.code)
}

fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    output::begin()?;
    let outcome = runtime.block_on(command);
    // A command that was told to end while it began waits for no disk.
    runtime.shutdown_background();
    outcome
}
