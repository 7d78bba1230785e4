//! The node of a command: how it starts, and what ends the process around it.

use std::time::Duration;

use membership::{JoinError, Node, NodeBuilder};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Failure, exit, flags, flags::NodeFlags};

/// How long a process waits for its own graceful leave at most.
pub(crate) const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// INT and TERM: the first one tells the process to end, a second one ends it at once, whatever it does meanwhile.
pub(crate) struct Stops(watch::Receiver<bool>);

impl Stops {
    /// From now on signals are heeded. Once in a process.
    pub(crate) fn new() -> Result<Self, Failure> {
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
            };
            next().await;
            tell.send_replace(true);
            next().await;
            // The end of a wrapper is the end of whatever runs under it.
            std::process::exit(130);
        });
        Ok(Self(told))
    }

    /// Waits until the process is told to end, if it is not yet. Cancel safe.
    pub(crate) async fn told(&self) {
        let mut told = self.0.clone();
        if told.wait_for(|told| *told).await.is_err() {
            // The runtime ends.
            std::future::pending().await
        }
    }

    /// What this comes to, unless the process is told to end before.
    pub(crate) async fn unless<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Option<T>, Failure> {
        tokio::select! {
            biased;
            done = work => done.map(Some),
            () = self.told() => Ok(None),
        }
    }
}

pub(crate) async fn start(flags: NodeFlags, core: bool, rejoin: bool) -> Result<Node, Failure> {
    let reads_again = flags.reads_again();
    start_built(flags.builder(core).rejoin(rejoin), reads_again).await
}

/// Waits for the end of the time in which the node was to join (`--join-timeout`), where it has not; else for ever.
pub(crate) async fn not_joined(node: &Node) -> Failure {
    match node.joined().await {
        Err(error @ JoinError::Timeout { .. }) => Failure::new(exit::NOT_JOINED, error.to_string()),
        // In, or at its end, which others notice.
        Ok(()) | Err(_) => std::future::pending().await,
    }
}

/// As [`start`], for a node that is described already; where it has files of keys, HUP makes it read them again.
pub(crate) async fn start_built(builder: NodeBuilder, reads_again: bool) -> Result<Node, Failure> {
    // Without one, HUP ends the process as it ends others.
    let reloads = if reads_again { Some(signal(SignalKind::hangup())?) } else { None };
    let node = builder.start().await.map_err(flags::start_failure)?;
    if let Some(mut hangups) = reloads {
        let node = node.clone();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let reader = node.clone();
                match tokio::task::spawn_blocking(move || reader.reload_secret()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "keys and certificates stay as they were"),
                    Err(error) => tracing::error!(%error, "keys and certificates could not be read"),
                }
            }
        });
    }
    Ok(node)
}
