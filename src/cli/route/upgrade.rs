//! How a router takes over from one that runs, and gives way to the next.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
};

use router::{
    RouterHandle,
    handover::{Handover, HandoverError, Predecessor, Successor},
};
use tokio::sync::mpsc;

use crate::cli::{Failure, exit};

/// What the socket of the admin API is called between two processes.
const ADMIN: &str = "admin";

fn failure(error: HandoverError) -> Failure {
    Failure::new(exit::USAGE, format!("--upgrade-socket: {error}"))
}

/// Asks whoever waits there, and makes the place where this process waits for the next one.
pub(super) async fn find(path: &Path) -> Result<(Option<Predecessor>, Handover), Failure> {
    let path = path.to_owned();
    let both = move || Ok((Predecessor::find(&path)?, Handover::prepare(&path)?));
    tokio::task::spawn_blocking(both).await?.map_err(failure)
}

/// The socket of an admin API at this address, if the process before has it.
pub(super) fn admin_of(predecessor: Option<&mut Predecessor>, addr: SocketAddr) -> Option<TcpListener> {
    predecessor?.beside(ADMIN, addr)
}

/// Where the next process comes, with what it is given.
pub(super) fn with_admin(handover: Handover, admin: Option<TcpListener>) -> Handover {
    match admin {
        Some(socket) => handover.with(ADMIN, socket),
        None => handover,
    }
}

/// Begins to serve in place of the process before.
pub(super) async fn relieve(
    predecessor: Predecessor,
    router: RouterHandle,
    mut next: Handover,
) -> Result<Handover, Failure> {
    let relieves = move || predecessor.relieve(&router, &mut next).map(|()| next);
    let failure = |error| Failure::new(exit::FAILED, format!("--upgrade-socket: {error}"));
    tokio::task::spawn_blocking(relieves).await?.map_err(failure)
}

/// From now on another process may take over; who does so comes once.
pub(super) fn open(handover: Handover, router: &RouterHandle, successors: mpsc::Sender<Successor>) {
    let router = router.clone();
    let waits = thread::Builder::new().name("router-upgrade".into()).spawn(move || {
        let _ends = successors.blocking_send(handover.wait(&router)); // where the process ends anyway
    });
    if let Err(error) = waits {
        // What serves goes on.
        tracing::error!(%error, "no thread can be started: no process can take over from this one");
    }
}
