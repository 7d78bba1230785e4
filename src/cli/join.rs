//! `join`, `watch`, `agent`: nodes that say what happens to them.

use std::{io::BufRead, path::PathBuf, pin::pin, time::Duration};

use clap::Args;
use membership::{Event, Events, JoinError, Membership, Node, What};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{Failure, Outcome, complain, events, exit, flags, flags::NodeFlags};

/// A node that is a member of GROUP; prints events, reads commands (step-down, leave) from standard input.
///
/// The events are `view`, `leading` and `not_leading`; on TERM it leaves.
///
/// Example, three times: phalanx join g --rendezvous file:/tmp/rdv --json
#[derive(Args)]
pub(crate) struct Join {
    /// The group.
    group: String,
    /// End with code 4 when the cluster removes this node, instead of joining anew.
    #[arg(long)]
    once: bool,
    /// Do not read commands (step-down, leave) from standard input; its end would mean leave.
    #[arg(long)]
    no_stdin: bool,
    /// A TOML file with these settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

/// Prints the views of a group as an observer: what it says is a hint, never authority.
#[derive(Args)]
pub(crate) struct Watch {
    /// The group.
    group: String,
    /// End with code 4 when the cluster removes this node, instead of joining anew.
    #[arg(long)]
    once: bool,
    /// A TOML file with these settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

/// A plain node: it sits in the core if needed and serves the admin API. Example: phalanx agent --admin 127.0.0.1:7070
#[derive(Args)]
pub(crate) struct Agent {
    /// A TOML file with these settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

/// INT and TERM.
pub(crate) struct Stops {
    int: Signal,
    term: Signal,
}

impl Stops {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// The next one of the two. Cancel safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

pub(crate) async fn start(flags: NodeFlags, core: bool, rejoin: bool) -> Result<Node, Failure> {
    flags.builder(core).rejoin(rejoin).start().await.map_err(flags::start_failure)
}

/// A node for which a server acts that is its child.
pub(crate) async fn start_wrapper(flags: NodeFlags) -> Result<Node, Failure> {
    flags.builder(true).rejoin(true).children_act(true).start().await.map_err(flags::start_failure)
}

impl Join {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let node = start(self.node, true, !self.once).await?;
        let membership = node.join(&self.group, None).await.map_err(|e| Failure::usage(e.to_string()))?;
        let lines = if self.no_stdin { None } else { Some(commands()) };
        let events = membership.events();
        follow(&node, events, Some(&membership), lines, self.once, json).await
    }
}

impl Watch {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let node = start(self.node, false, !self.once).await?;
        let observer = node.observe(&self.group).await.map_err(|e| Failure::usage(e.to_string()))?;
        let events = observer.events();
        follow(&node, events, None, None, self.once, json).await
    }
}

impl Agent {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let node = start(self.node, true, true).await?;
        let events = node.events();
        follow(&node, events, None, None, false, json).await
    }
}

/// Lines of standard input, read by a thread; at most a few wait.
fn commands() -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if to.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

async fn next_line(lines: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match lines {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

/// Prints events until the node has stopped: because it was told to, or (with `once`) because it was removed.
async fn follow(
    node: &Node,
    mut events: Events,
    membership: Option<&Membership>,
    mut lines: Option<mpsc::Receiver<String>>,
    once: bool,
    json: bool,
) -> Outcome {
    let mut stops = Stops::new()?;
    let (mut joining, mut leaving, mut code) = (true, false, 0);
    let mut joined = pin!(node.joined());
    let leave = |leaving: &mut bool| {
        if !std::mem::replace(leaving, true) {
            let node = node.clone();
            tokio::spawn(async move { node.leave().await });
        }
    };
    loop {
        tokio::select! {
            event = events.next() => {
                let Some(event) = event else { return Ok(code) };
                if !events::print(&event, json) {
                    leave(&mut leaving); // Nobody reads any more.
                }
                if once && was_removed(&event) {
                    code = exit::REMOVED;
                }
            }
            outcome = &mut joined, if joining && !leaving => {
                joining = false;
                if let Err(JoinError::Timeout { .. }) = &outcome {
                    let text = outcome.err().map(|e| e.to_string()).unwrap_or_default();
                    node.leave().await;
                    return Err(Failure::new(exit::NOT_JOINED, text));
                }
            }
            line = next_line(&mut lines), if !leaving => match line.as_deref().map(str::trim) {
                Some("") => {}
                Some("step-down") => {
                    if let Some(membership) = membership.cloned() {
                        tokio::spawn(async move { membership.step_down().await });
                    }
                }
                Some("leave") | None => leave(&mut leaving),
                Some(other) => {
                    let word = other.split_whitespace().next().unwrap_or_default();
                    complain(format_args!("`{word}` is no command here: give step-down or leave (send is not built yet)"));
                }
            },
            () = stops.next() => {
                if leaving {
                    std::process::exit(130);
                }
                leave(&mut leaving);
            }
        }
    }
}

fn was_removed(event: &Event) -> bool {
    matches!(event.what, What::Removed { .. } | What::Dissolved { .. } | What::StartOver { .. })
}

/// How long a process waits for its own graceful leave at most.
pub(crate) const LEAVE_LIMIT: Duration = Duration::from_secs(10);
