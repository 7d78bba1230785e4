//! What the cluster agrees on: entries of the log, each a batch of commands.

use alloc::{boxed::Box, vec::Vec};
use core::hash::{Hash, Hasher};

use membership_types::{GroupName, Lineage, LogIndex, NodeId, ViewId};
use serde::{Deserialize, Serialize};

use crate::{
    view::{Kind, NodeInfo, Why},
    witness::{Epoch, Warrant},
};

/// The highest feature level of a command that this build understands. A new kind of command has a new level.
pub const LEVEL: u16 = 1;

/// More than all of a command takes in a message but its words.
const FIXED: usize = 128;

/// One change, part of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    /// The founders' first view. The first command of the first entry.
    Found,
    /// A node joins the cluster, as the junior.
    Admit(NodeInfo),
    /// A node is out of the cluster and of all its groups.
    Remove(NodeId, Why),
    /// A node's wish about a group. `op` numbers a node's wishes: each counts once.
    Group {
        /// Whose wish it is.
        node: NodeId,
        /// Its number; one that is not above the last applied is ignored.
        op: u64,
        /// The wish.
        wish: GroupWish,
    },
    /// All ids above this one, and a new view with a new token for every group: an elder cluster does this
    /// before it admits the nodes of one that dissolved into it.
    Raise(ViewId),
    /// This lineage ends; its nodes join that one.
    Dissolve(Lineage),
    /// From now on commands up to this feature level may be proposed: every member understands them, and who does not is
    /// not admitted any more.
    Level(u16),
}

impl Command {
    /// How many bytes it may take in a message, at most.
    pub fn weight(&self) -> usize {
        match self {
            Self::Admit(info) => info.weight(),
            Self::Group { wish, .. } => FIXED + wish.weight(),
            Self::Found | Self::Remove(..) | Self::Raise(_) | Self::Dissolve(_) | Self::Level(_) => FIXED,
        }
    }

    /// The feature level that whoever keeps the log must understand.
    pub fn level(&self) -> u16 {
        match self {
            Self::Found
            | Self::Admit(_)
            | Self::Remove(..)
            | Self::Group { .. }
            | Self::Raise(_)
            | Self::Dissolve(_) => 0,
            Self::Level(_) => 1,
        }
    }
}

/// What a node wants of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GroupWish {
    /// Be a member, junior to all present ones. Changes the endpoint of one who already is a member.
    Join {
        /// The group.
        group: GroupName,
        /// Where the member serves.
        endpoint: Option<Box<str>>,
        /// What the group becomes, if this is its first member.
        kind: Kind,
    },
    /// Be no member any more. The node stopped acting for the group before it asked.
    Leave {
        /// The group.
        group: GroupName,
    },
    /// Go to the last rank. The node stopped acting for the group before it asked.
    StepDown {
        /// The group.
        group: GroupName,
    },
}

impl GroupWish {
    /// How many bytes it may take in a message, at most.
    pub fn weight(&self) -> usize {
        let endpoint = match self {
            Self::Join { endpoint: Some(endpoint), .. } => endpoint.len(),
            _ => 0,
        };
        FIXED + self.group().as_str().len() + endpoint
    }

    /// The group that the wish is about.
    pub fn group(&self) -> &GroupName {
        match self {
            Self::Join { group, .. } | Self::Leave { group } | Self::StepDown { group } => group,
        }
    }
}

/// One position of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Applied in order.
    pub commands: Vec<Command>,
    /// The core in force from the next entry on, where it changes; never empty.
    pub core: Option<Vec<NodeId>>,
    /// With a core, where there is a witness: under which epoch that records halves of it. Builds that know of no witness are
    /// in no lineage that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
}

/// As it was before there were witnesses, where there is none: digests must be the same in every build.
impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { commands, core, epoch } = self;
        (commands, core).hash(state);
        if let Some(epoch) = epoch {
            epoch.hash(state);
        }
    }
}

impl Entry {
    /// How many bytes it may take in a message, at most.
    pub fn weight(&self) -> usize {
        let core = self.core.as_ref().map_or(0, Vec::len);
        FIXED + 32 * core + self.commands.iter().map(Command::weight).sum::<usize>()
    }

    /// Where the witness records halves of the core that this entry puts in force, at this index.
    pub fn warrant(&self, index: LogIndex) -> Option<Warrant> {
        self.core.as_ref().and(self.epoch).map(|epoch| Warrant { core: index, epoch })
    }

    /// A fingerprint of the entry at its index, for traces: equal entries have equal digests.
    pub fn digest(&self, index: LogIndex) -> u128 {
        let mut low = Fnv(0xcbf2_9ce4_8422_2325);
        let mut high = Fnv(0x8422_2325_cbf2_9ce4);
        (index, self).hash(&mut low);
        (self, index).hash(&mut high);
        (u128::from(high.0) << 64) | u128::from(low.0)
    }
}

/// FNV-1a: not for strangers' input, but equal in every process.
struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
