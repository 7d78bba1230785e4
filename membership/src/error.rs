//! What can go wrong when a node is started and used.

use std::{io, net::SocketAddr, path::PathBuf};

use membership_proto::ConfigError;
use membership_sync::LeaseMemoryError;
use membership_types::{GroupName, InvalidGroupName};

use crate::secret::SecretError;

/// The node was not started; nothing is left running and nothing registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A time, a size or the founding rule is out of its range; the text names it and what would be right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A setting cannot work.
    #[error("--{flag}: {problem}")]
    Setting {
        /// The setting, by the name of its flag on the command line.
        flag: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The keys of the cluster cannot be used.
    #[error("{place}: {source}")]
    Secret {
        /// The flag, and the file.
        place: String,
        /// What is wrong, and what would be right.
        source: SecretError,
    },
    /// The address cannot be listened on, most often because another process does.
    #[error("--{flag}: cannot listen on {addr}: {source}")]
    Listen {
        /// `listen` or `admin`.
        flag: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The data directory cannot be used; nothing in it was changed.
    #[error("--data-dir: {0}")]
    DataDir(String),
    /// A rendezvous provider could not be used at all.
    #[error("--rendezvous {url}: {source}")]
    Rendezvous {
        /// The provider, as it was configured.
        url: String,
        /// Why not.
        source: io::Error,
    },
    /// The trace file cannot be written.
    #[error("--trace {}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no memory for the lease.
    #[error(transparent)]
    Lease(#[from] LeaseMemoryError),
    /// The operating system gave no thread, no random number or no event queue.
    #[error("the operating system refused what a node needs: {0}")]
    System(#[source] io::Error),
}

impl StartError {
    /// Is the configuration to be corrected (exit code 2 of the command line), rather than the surroundings?
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Setting { .. } | Self::Secret { .. } | Self::DataDir(_))
    }

    pub(crate) fn setting(flag: &'static str, problem: impl Into<String>) -> Self {
        Self::Setting { flag, problem: problem.into() }
    }
}

/// The node is in no view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// No view came in time. The node goes on trying.
    #[error("did not join a cluster within {waited:?}{}", why.as_deref().map_or(String::new(), |w| format!(": {w}")))]
    Timeout {
        /// How long was waited.
        waited: std::time::Duration,
        /// The last reason that a cluster gave for not admitting the node, or what the node waits for.
        why: Option<String>,
    },
    /// The node has stopped: it left, or was removed and does not rejoin.
    #[error("the node has stopped")]
    Stopped,
}

/// The group cannot be used; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The name is no group name.
    #[error(transparent)]
    Name(#[from] InvalidGroupName),
    /// The node has stopped: it left, or was removed and does not rejoin.
    #[error("the node has stopped")]
    Stopped,
    /// All members and routers are told the endpoint: it is to be short.
    #[error(
        "an endpoint of {size} bytes exceeds the limit of {} bytes: give HOST:PORT",
        crate::Node::MAX_ENDPOINT
    )]
    Endpoint {
        /// Its size in bytes.
        size: usize,
    },
    /// The node is a member already, and messages have one reader: leave first, or drop that membership.
    #[error("this node is a member of {0} already: leave it before it is joined with multicast")]
    InUse(GroupName),
}

/// There will be no leadership any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotMember {
    /// The node left the group.
    #[error("the node has left the group")]
    Left,
    /// The node has stopped: it left the cluster, or was removed and does not rejoin.
    #[error("the node has stopped")]
    Stopped,
    /// Only of [`Membership::until_caught_up`](crate::Membership::until_caught_up): the node may be a member still.
    #[error("nobody takes what is delivered to this member: its Deliveries were dropped")]
    Unread,
}
