//! Providers with which a node registers itself, and which give out founder slots under `expect(n)`.

use std::{io, net::SocketAddr, sync::Arc};

use membership_types::NodeId;
use tokio::task::spawn_blocking;

use crate::{
    rendezvous::{
        Rendezvous,
        file::{self, Directory},
        finder::Report,
        http::{self, Client},
    },
    secret::Wallet,
};

/// Uses a directory where that may wait: it may be on a file server that does not answer.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)
}

/// A registry that is in use. A cheap handle.
#[derive(Clone)]
pub(crate) enum Registry {
    File(Arc<Directory>),
    Http(Arc<Client>),
}

impl Registry {
    /// The registry of this provider, if it has one.
    pub(crate) async fn open(
        provider: &Rendezvous,
        wallet: &Wallet,
        cluster: &str,
        name: &str,
        addr: SocketAddr,
        id: NodeId,
    ) -> io::Result<Option<Self>> {
        match provider {
            Rendezvous::File(dir) => {
                let (dir, cluster, name) = (dir.clone(), cluster.to_owned(), name.to_owned());
                let directory = aside(move || Directory::open(&dir, &cluster, &name, addr, id)).await??;
                Ok(Some(Self::File(Arc::new(directory))))
            }
            Rendezvous::Http(at) => {
                let client = Client::new(at, wallet, cluster, name, addr, id);
                Ok(Some(Self::Http(Arc::new(client))))
            }
            Rendezvous::Static(_) | Rendezvous::Dns(_) | Rendezvous::Local(_) => Ok(None),
        }
    }

    /// Takes one of `count` founder slots. `None` if all are taken.
    pub(crate) async fn take_slot(&self, count: u16, id: NodeId) -> io::Result<Option<u16>> {
        match self {
            Self::File(directory) => {
                let directory = Arc::clone(directory);
                aside(move || directory.take_slot(count, id)).await?
            }
            Self::Http(client) => client.take_slot(count, id).await,
        }
    }

    /// Who holds the slots, for a message to people.
    pub(crate) async fn holders(&self, count: u16) -> String {
        match self {
            Self::File(directory) => {
                let directory = Arc::clone(directory);
                let unknown = |error| format!("somebody unknown: {error}");
                aside(move || directory.holders(count)).await.unwrap_or_else(unknown)
            }
            Self::Http(client) => client.holders(count).await,
        }
    }

    /// Registers the node and reports who else is registered, for as long as the control thread lives.
    pub(crate) async fn run(self, report: Report) {
        match self {
            Self::File(directory) => file::run(directory, report).await,
            Self::Http(client) => http::run(client, report).await,
        }
    }

    /// Takes away what was registered, and gives back the slot.
    pub(crate) async fn withdraw(&self) {
        match self {
            Self::File(directory) => {
                let directory = Arc::clone(directory);
                if let Err(error) = aside(move || directory.withdraw()).await {
                    tracing::warn!(%error, "what was registered stays behind");
                }
            }
            Self::Http(client) => client.withdraw().await,
        }
    }
}
