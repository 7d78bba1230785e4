//! How a router takes over from one that runs, and gives way to the next.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
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

/// Where this process asks for the sockets of the one before it, and is asked by the one after.
pub(super) struct Place {
    path: PathBuf,
}

fn failure(error: HandoverError) -> Failure {
    Failure::new(exit::USAGE, format!("--upgrade-socket: {error}"))
}

/// Asks whoever waits there.
pub(super) async fn find(path: &Path) -> Result<Option<Predecessor>, Failure> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Predecessor::find(&path)).await?.map_err(failure)
}

/// The socket of an admin API at this address, if the process before has it.
pub(super) fn admin_of(predecessor: Option<&mut Predecessor>, addr: SocketAddr) -> Option<TcpListener> {
    predecessor?.beside(ADMIN, addr)
}

impl Place {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// From now on another process may take over; who does so comes once.
    pub fn open(
        self,
        router: &RouterHandle,
        admin: Option<TcpListener>,
        successors: mpsc::Sender<Successor>,
    ) -> Result<(), Failure> {
        let mut handover = Handover::listen(&self.path).map_err(failure)?;
        if let Some(socket) = admin {
            handover = handover.with(ADMIN, socket);
        }
        let router = router.clone();
        let waits = thread::Builder::new().name("router-upgrade".into()).spawn(move || {
            match handover.wait(&router) {
                Ok(successor) => {
                    let _ends = successors.blocking_send(successor); // where the process ends anyway
                }
                Err(error) => tracing::error!(%error, "no process can take over from this one any more"),
            }
        });
        waits.map_err(|error| Failure::new(exit::FAILED, format!("cannot start a thread: {error}")))?;
        Ok(())
    }
}
