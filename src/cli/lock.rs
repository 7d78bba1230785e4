//! `lock`, and `run --exclusive`: a command that runs only while its node leads.

use std::{net::SocketAddr, time::Duration};

use backplane::{ChildSpec, Task};
use clap::Args;
use membership::{GroupName, JoinError, Leadership, Membership, What};
use tokio::time::{Instant, timeout};

use super::{
    Failure, Outcome, events, exit,
    fuse::{Keeper, Wrapped, Wrapper, end_without_leaving},
    node::Stops,
    output,
    run::{code_of, spawn, variables},
};

/// Runs CMD once this node leads GROUP, and only while it does: `phalanx lock GROUP -- CMD…`
///
/// Of all that wait for the same group the senior runs, then the next. If leadership is lost while CMD runs, CMD and all that it
/// started are killed before anybody else can lead, also when this process was stopped or killed; the exit code is then 5.
/// Otherwise it is CMD's own; 3 if no cluster took this node in, 4 if it was removed while it waited.
///
/// CMD finds PHALANX_TOKEN in its environment, which grows with each leader: send it along with each effect. Also
/// PHALANX_GROUP, PHALANX_VIEW, PHALANX_LINEAGE and PHALANX_NODE. TERM stops CMD in order, then the lock is released.
///
/// Example: phalanx lock nightly --rendezvous file:/tmp/rdv -- ./backup.sh
#[derive(Args)]
pub(crate) struct Lock {
    /// The group.
    group: String,
    #[command(flatten)]
    wrapped: Wrapped,
}

impl Lock {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.group.parse::<GroupName>().map_err(|error| Failure::usage(error.to_string()))?;
        self.wrapped.configure()
    }

    pub(crate) async fn run(mut self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        self.wrapped.warn_if_alone();
        let started = stops.unless(self.wrapped.start()).await?;
        let (wrapper, mut spec) = started.ok_or_else(told_early)?;
        // As if a shell had started it.
        (spec.input, spec.own_group) = (true, false);
        let exclusive = Exclusive { wrapper, group: self.group, serves: None, once: true, prints: json };
        exclusive.run(spec, stops, json).await
    }
}

/// A command that runs while its node leads, once.
pub(crate) struct Exclusive {
    pub(crate) wrapper: Wrapper,
    pub(crate) group: String,
    /// Where it serves, as others are told, and how long it may take until its port answers.
    pub(crate) serves: Option<(String, SocketAddr, Duration)>,
    /// Is a removal while it waits the end? Otherwise it waits again.
    pub(crate) once: bool,
    /// Are events printed?
    pub(crate) prints: bool,
}

/// Told to end before it began.
pub(crate) fn told_early() -> Failure {
    Failure::new(exit::FAILED, "told to end before the command could begin")
}

/// How it came to an end.
enum End {
    /// With this code.
    Ended(u8),
    Lost,
    Failed(Failure),
}

impl Exclusive {
    pub(crate) async fn run(self, mut spec: ChildSpec, stops: Stops, json: bool) -> Outcome {
        let Self { wrapper, group, serves, once, prints } = self;
        let printer = prints.then(|| tokio::spawn(events::print_all(wrapper.node.all_events(), json)));
        spec.bound = true;
        if json {
            spec.output = backplane::Output::Stderr;
        }
        let membership =
            wrapper.node.join(&group, None).await.map_err(|error| Failure::usage(error.to_string()))?;
        let leadership = tokio::select! {
            leads = wait(&wrapper, &membership, once) => leads,
            () = stops.told() => Ok(None),
        };
        let end = match leadership {
            Err(failure) => End::Failed(failure),
            Ok(None) => End::Failed(told_early()),
            Ok(Some(leadership)) => guarded(&wrapper, &membership, leadership, spec, serves, &stops).await,
        };
        // Whatever the end was, nothing acts any more when others are told.
        drop(membership);
        wrapper.end().await?;
        if let Some(printer) = printer {
            // What nobody reads by then is lost, which is said at the end.
            let _unread = timeout(output::PATIENCE, printer).await;
        }
        match end {
            End::Ended(code) => Ok(code),
            End::Failed(failure) => Err(failure),
            End::Lost => Err(Failure::new(
                exit::LOST,
                format!("the leadership of {group} was lost while the command ran: it was killed"),
            )),
        }
    }
}

/// Waits for the lead.
async fn wait(wrapper: &Wrapper, membership: &Membership, once: bool) -> Result<Option<Leadership>, Failure> {
    let mut events = wrapper.node.events();
    match wrapper.node.joined().await {
        Ok(()) => {}
        Err(error @ JoinError::Timeout { .. }) => {
            return Err(Failure::new(exit::NOT_JOINED, error.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    // A cluster that dissolves into another one takes its members along.
    let removed = async {
        while let Some(event) = events.next().await {
            if let (What::Removed { view, why }, true) = (event.what, once) {
                return format!("removed from the cluster by view {view} while waiting: {why}");
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        leads = membership.until_leader() => Ok(Some(leads?)),
        why = removed => Err(Failure::new(exit::REMOVED, why)),
    }
}

/// Runs the command under the leadership.
async fn guarded(
    wrapper: &Wrapper,
    membership: &Membership,
    leadership: Leadership,
    mut spec: ChildSpec,
    serves: Option<(String, SocketAddr, Duration)>,
    stops: &Stops,
) -> End {
    let _keeper = Keeper::new(leadership.clone(), wrapper.fuse.deadline().clone(), wrapper.lease);
    spec.env.extend(variables(&wrapper.node, membership, Some(&leadership)));
    let mut task = match spawn(&wrapper.fuse, spec).await {
        Ok(task) => task,
        Err(failure) => return End::Failed(failure),
    };
    let mut lost = std::pin::pin!(leadership.lost());
    if let Some((endpoint, at, limit)) = serves {
        let deadline = Instant::now() + limit;
        let every = Duration::from_millis(20);
        tokio::select! {
            biased;
            _ = &mut lost => return killed(&mut task).await,
            end = task.wait() => return ended(end),
            () = stops.told() => return stopped(&mut task, &mut lost).await,
            ready = backplane::wait_for_port(at, every, deadline) => {
                if let Err(error) = ready {
                    let _stopped = stopped(&mut task, &mut lost).await;
                    return End::Failed(Failure::new(exit::FAILED, error.to_string()));
                }
            }
        }
        // Routers may send requests from now on. An error says that the node has stopped, which ends the leadership.
        let _stopped = wrapper.node.join(membership.group().as_str(), Some(endpoint)).await;
    }
    tokio::select! {
        biased;
        end = task.wait() => ended(end),
        _ = &mut lost => killed(&mut task).await,
        () = stops.told() => stopped(&mut task, &mut lost).await,
    }
}

fn ended(end: std::io::Result<backplane::TaskEnd>) -> End {
    match end {
        Ok(end) if end.late => End::Lost,
        Ok(end) => End::Ended(code_of(end.status)),
        Err(error) => end_without_leaving(&error),
    }
}

async fn killed(task: &mut Task) -> End {
    task.kill();
    task.wait().await.unwrap_or_else(|error| end_without_leaving(&error));
    End::Lost
}

/// In order, unless the leadership is lost meanwhile.
async fn stopped(task: &mut Task, lost: &mut (impl Future<Output = membership::Lost> + Unpin)) -> End {
    let end = tokio::select! {
        biased;
        end = task.stop() => Some(end),
        _ = lost => None,
    };
    match end {
        Some(end) => ended(end),
        None => killed(task).await,
    }
}
