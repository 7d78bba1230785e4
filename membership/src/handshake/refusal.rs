//! Why two nodes do not come together: as this one sees it ([`Refusal`]), and what the other one may know of it ([`Told`]).

use std::{io, net::IpAddr};

use super::{Hello, VERSION, Versions, versions::no_common};
use crate::{metrics::Counts, secret::KeyId, tls, wire::Garbage};

/// Why a stranger is refused, as far as it may know. Nothing proves who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Told {
    #[error(
        "it begins connections in another version of the protocol: start the older of the two nodes with a newer build"
    )]
    Version = 1,
    #[error("it requires a secret, and this node has none: start this one with its --secret-file")]
    SecretNeeded = 2,
    #[error("it has no secret: start it with the --secret-file of this node")]
    NoSecret = 3,
    #[error("it does not have the key that this node uses: give both the same --secret-file")]
    UnknownKey = 4,
    #[error("what this node sent does not open with the key of that name")]
    Unproved = 5,
    #[error("{UNLIKE}")]
    Unlike = 6,
}

/// One has certificates, and the other one has not.
const UNLIKE: &str = "the two do not authenticate nodes in the same way: start both with certificates (--tls-ca, --tls-cert, \
                      --tls-key), or both with the same --secret-file";

impl Told {
    pub(super) fn read(code: u8) -> Option<Self> {
        let all = [
            Self::Version,
            Self::SecretNeeded,
            Self::NoSecret,
            Self::UnknownKey,
            Self::Unproved,
            Self::Unlike,
        ];
        all.into_iter().find(|told| *told as u8 == code)
    }
}

/// The two do not belong together, or one of them is no node at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the connection without a word")]
    Closed,
    #[error("the other side does not speak this protocol")]
    NotPhalanx,
    #[error(
        "the other side begins with version {0} of the protocol, this node with version {VERSION}: start the older of the two \
         with a newer build"
    )]
    Version(u8),
    #[error("{}", no_common(*theirs, *ours))]
    Versions { theirs: Versions, ours: Versions },
    #[error("{0}")]
    Garbage(#[from] Garbage),
    #[error("the other side belongs to the cluster {0:?}")]
    Cluster(String),
    #[error("the other side is this very node")]
    Myself,
    #[error("refused by the other side: {0}")]
    Rejected(String),
    #[error("the other side has no secret, and this node requires one: start it with the same --secret-file")]
    NoSecret,
    #[error("the other side has a secret, and this node has none: start this node with its --secret-file")]
    SecretNeeded,
    #[error(
        "the other side uses the key {theirs}, this node accepts {ours}: give both the same --secret-file"
    )]
    UnknownKey { theirs: KeyId, ours: String },
    #[error("the other side names the key {0} and does not hold it, or somebody in between changes bytes")]
    Unproved(KeyId),
    #[error("the beginning of a connection was recorded, and is repeated")]
    Replayed,
    #[error("refused by the other side, as it seems: {0}")]
    Told(Told),
    #[error("{UNLIKE}")]
    Unlike,
    #[error("the certificate of the other side: {0}")]
    Certificate(String),
    #[error("the other side refuses the certificate of this node: {0}")]
    CertificateRefused(String),
    #[error(
        "the certificate of the other side is neither for its name, {name:?}, nor for its address, {addr}: put one of them into its \
         subject alternative names"
    )]
    NotItsOwn { name: String, addr: IpAddr },
    #[error("the other side has the certificate of {0:?}, and the id of another node")]
    NotItsId(String),
}

impl From<rustls::Error> for Refusal {
    fn from(error: rustls::Error) -> Self {
        match &error {
            rustls::Error::AlertReceived(alert) => Self::CertificateRefused(tls::explain_alert(*alert)),
            rustls::Error::NoCertificatesPresented => Self::Certificate("there is none".to_owned()),
            other => Self::Certificate(tls::explain(other)),
        }
    }
}

impl Refusal {
    /// Did one of two nodes refuse the other? Trying again soon would not help.
    pub(crate) fn is_reject(&self) -> bool {
        matches!(self.kind(), "rejected" | "unauthenticated")
    }

    /// What kind of refusal it is.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) | Self::Closed => "broken",
            Self::NotPhalanx | Self::Garbage(_) => "garbage",
            Self::Version(_)
            | Self::Versions { .. }
            | Self::Cluster(_)
            | Self::Myself
            | Self::Rejected(_) => "rejected",
            Self::Replayed => "replayed",
            Self::NoSecret
            | Self::SecretNeeded
            | Self::UnknownKey { .. }
            | Self::Unproved(_)
            | Self::Unlike
            | Self::Certificate(_)
            | Self::CertificateRefused(_)
            | Self::NotItsOwn { .. }
            | Self::NotItsId(_)
            | Self::Told(_) => "unauthenticated",
        }
    }

    /// The same in more detail, for counters.
    fn label(&self) -> &'static str {
        match self {
            Self::Io(_) | Self::Closed => "broken",
            Self::NotPhalanx => "not_phalanx",
            Self::Garbage(_) => "garbage",
            Self::Version(_) | Self::Versions { .. } | Self::Told(Told::Version) => "version",
            Self::Cluster(_) => "cluster",
            Self::Myself => "myself",
            Self::Rejected(_) => "told_so",
            Self::Replayed => "replayed",
            Self::NoSecret | Self::SecretNeeded | Self::Told(Told::SecretNeeded | Told::NoSecret) => {
                "no_secret"
            }
            Self::UnknownKey { .. } | Self::Told(Told::UnknownKey) => "unknown_key",
            Self::Unproved(_) | Self::Told(Told::Unproved) => "unproved",
            Self::Unlike | Self::Told(Told::Unlike) => "unlike",
            Self::Certificate(_) | Self::CertificateRefused(_) => "certificate",
            Self::NotItsOwn { .. } | Self::NotItsId(_) => "identity",
        }
    }

    /// Counts it as what it is.
    pub(crate) fn count(&self, counts: &Counts) {
        counts.refused.get_or_create(&[("reason", self.label())]).inc();
        match self.kind() {
            "garbage" => counts.garbage.inc(),
            "rejected" => counts.rejected.inc(),
            "replayed" => counts.replays.inc(),
            "unauthenticated" => counts.unauthenticated.inc(),
            _ => 0,
        };
    }

    /// What a stranger may know of it.
    pub(super) fn told(&self) -> Option<Told> {
        match self {
            Self::Version(_) => Some(Told::Version),
            Self::NoSecret => Some(Told::SecretNeeded),
            Self::SecretNeeded => Some(Told::NoSecret),
            Self::UnknownKey { .. } => Some(Told::UnknownKey),
            Self::Unproved(_) => Some(Told::Unproved),
            Self::Unlike => Some(Told::Unlike),
            _ => None,
        }
    }

    /// What a node is told that is known to be one, or that nothing was required of.
    pub(super) fn reason(&self, me: &Hello) -> Option<String> {
        match self {
            Self::Myself => Some("this is the very node that connects".to_owned()),
            Self::Cluster(theirs) => {
                Some(format!("this node belongs to the cluster {:?}, and not to {theirs:?}", me.cluster))
            }
            Self::Versions { theirs, ours } => Some(no_common(*ours, *theirs)),
            Self::NotItsOwn { .. } | Self::NotItsId(_) => {
                Some(self.to_string().replace("the other side", "this node"))
            }
            _ => None,
        }
    }
}
