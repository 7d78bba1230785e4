//! Ranked views: of the cluster and of its groups.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    hash::{Hash, Hasher},
    net::SocketAddr,
};

use membership_types::{GroupName, Lineage, NodeId, Rank, Token, ViewId};
use serde::{Deserialize, Serialize};

use crate::spread::Domains;

/// What everyone knows about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id, fresh at every start.
    pub id: NodeId,
    /// Its name, for people; several nodes may share one.
    pub name: Box<str>,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// May it sit in the core?
    pub eligible: bool,
    /// The founder slot that it holds under `expect(n)`.
    pub slot: Option<u16>,
    /// Has it a data directory, which sets view ids aside?
    #[serde(default)]
    pub keeps_floor: bool,
    /// In which failure domains it is.
    #[serde(default)]
    pub domains: Domains,
    /// How much of the load of its groups it asks for beside others, where it says so. Nothing is decided by it
    /// here, and it need not be in the range of a [`Weight`](membership_types::Weight).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_weight: Option<u32>,
}

impl NodeInfo {
    /// How many bytes it may take in a message, at most.
    pub fn weight(&self) -> usize {
        let Domains { zone, rack, power } = &self.domains;
        let words: usize = [zone, rack, power].into_iter().flatten().map(|word| word.len()).sum();
        256 + self.name.len() + words
    }
}

/// What was added later counts only where it says something: digests of entries stay what they were in older builds.
/// A weight never does: older builds pass it on to nobody, and nothing hangs on it.
impl Hash for NodeInfo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { id, name, addr, eligible, slot, keeps_floor, domains, load_weight: _ } = self;
        (id, name, addr, eligible, slot, domains).hash(state);
        if *keeps_floor {
            keeps_floor.hash(state);
        }
    }
}

/// The ranked list of all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterView {
    /// The view's id.
    pub id: ViewId,
    /// The cluster view before it; [`ViewId::NONE`] for the first.
    pub prev: ViewId,
    /// In rank order.
    pub members: Vec<NodeInfo>,
}

impl ClusterView {
    /// The node with this id, if it is a member.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.members.iter().find(|n| n.id == id)
    }

    /// Is this node a member?
    pub fn contains(&self, id: NodeId) -> bool {
        self.node(id).is_some()
    }

    /// The node's rank, if it is a member.
    pub fn rank_of(&self, id: NodeId) -> Option<Rank> {
        self.members.iter().position(|n| n.id == id).map(Rank::at)
    }

    /// Applies a successor's delta. False, and nothing changed, if the delta does not follow this view.
    pub fn apply(&mut self, delta: &ClusterDelta) -> bool {
        if delta.prev != self.id || delta.id <= self.id {
            return false;
        }
        self.members.retain(|n| !delta.left.iter().any(|(id, _)| *id == n.id));
        self.members.extend(delta.joined.iter().cloned());
        self.prev = delta.prev;
        self.id = delta.id;
        true
    }
}

/// How one cluster view differs from the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterDelta {
    /// The new view's id.
    pub id: ViewId,
    /// The view that it follows.
    pub prev: ViewId,
    /// New members, in rank order, after everybody else.
    pub joined: Vec<NodeInfo>,
    /// Who is out, and why.
    pub left: Vec<(NodeId, Why)>,
}

/// Why a node ceased to be a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Why {
    /// It said so.
    Left,
    /// Its death was proved.
    Dead,
    /// It was silent, or deaf, for longer than a lease.
    Silent,
    /// A newer process has taken its address.
    Replaced,
}

impl Why {
    /// The reason in words for people and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Dead => "proved dead",
            Self::Silent => "silent for longer than the lease",
            Self::Replaced => {
                "replaced by a newer process at its address; if both are to live, give each its own --listen or --advertise"
            }
        }
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node that it lives on.
    pub node: NodeId,
    /// Where it serves, if it serves at all: what a router forwards to.
    pub endpoint: Option<Box<str>>,
}

/// What the members of a group are to each other. The first member decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// They have views and a leader.
    #[default]
    Plain,
    /// They multicast to each other, too: a view counts once it is installed, and its leader acts no earlier.
    Multicast,
}

/// The ranked list of a group's members. `members[0]` leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupView {
    /// The group.
    pub group: GroupName,
    /// The lineage in which the ids have a meaning.
    pub lineage: Lineage,
    /// The view's id; [`ViewId::NONE`] stands for "no such group".
    pub id: ViewId,
    /// The group's view before it; [`ViewId::NONE`] for a group that begins (again).
    pub prev: ViewId,
    /// The fencing token of the present reign: the view in which `members[0]` became first.
    pub token: Token,
    /// In rank order; empty once the last member is gone.
    pub members: Vec<Member>,
    /// What its members are to each other.
    pub kind: Kind,
}

impl GroupView {
    /// How many bytes it may take in a message, at most.
    pub fn weight(&self) -> usize {
        let members = self.members.iter().map(|m| 64 + m.endpoint.as_ref().map_or(0, |e| e.len()));
        192 + self.group.as_str().len() + members.sum::<usize>()
    }

    /// The view of a group that has no member.
    pub fn empty(group: GroupName, lineage: Lineage, prev: ViewId) -> Self {
        Self {
            group,
            lineage,
            id: ViewId::NONE,
            prev,
            token: Token::new(ViewId::NONE),
            members: Vec::new(),
            kind: Kind::Plain,
        }
    }

    /// The member of rank 0.
    pub fn leader(&self) -> Option<NodeId> {
        self.members.first().map(|m| m.node)
    }

    /// Does a member live on this node?
    pub fn contains(&self, id: NodeId) -> bool {
        self.members.iter().any(|m| m.node == id)
    }

    /// The rank of the member on this node.
    pub fn rank_of(&self, id: NodeId) -> Option<Rank> {
        self.members.iter().position(|m| m.node == id).map(Rank::at)
    }
}

/// A group view as it is passed around: shared, never changed.
pub type SharedView = Arc<GroupView>;
