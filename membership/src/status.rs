//! How things stand at a node, for people and dashboards.

use std::{collections::BTreeMap, sync::Arc};

use membership_proto::{ClusterView, witness::Epoch};
use membership_types::{GroupName, Lineage, NodeId, Token};

use crate::{event::View, replica::Standing};

/// A node's standing at one instant. The control thread replaces it whenever something in it changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The present incarnation.
    pub id: NodeId,
    /// What the node is busy with: `seeking`, `founding`, `member`, `candidate`, `coordinating`, `leaving`, `ended`, …
    pub phase: &'static str,
    /// The lineage that it is in.
    pub lineage: Option<Lineage>,
    /// The cluster view that it has installed.
    pub view: Option<Arc<ClusterView>>,
    /// The core as far as the node has been told.
    pub core: Vec<NodeId>,
    /// The coordinator that it follows.
    pub coordinator: Option<NodeId>,
    /// The feature level that all members agreed on, if the node keeps the log.
    pub level: Option<u16>,
    /// The epoch of the witness under which halves of the core are recorded, if the node keeps the log and there is one.
    pub epoch: Option<Epoch>,
    /// Why it has no lease, while it has none.
    pub blocked: Option<String>,
    /// The end of its lease as of the last renewal, `CLOCK_BOOTTIME` in nanoseconds; 0 without one.
    pub lease_until_ns: u64,
    /// The groups that it is in or observes.
    pub groups: Arc<BTreeMap<GroupName, GroupStatus>>,
}

/// A node's standing in one group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupStatus {
    /// The last view that it knows.
    pub view: Option<Arc<View>>,
    /// Is the node a member, by that view?
    pub member: bool,
    /// The token under which it leads, if it does.
    pub leading: Option<Token>,
    /// Where the group's state is, for a [`Replica`](crate::Replica) with a data directory.
    pub state: Option<Standing>,
}

impl Status {
    /// Of an incarnation that begins.
    pub(crate) fn begin(id: NodeId) -> Self {
        Self {
            id,
            phase: "seeking",
            lineage: None,
            view: None,
            core: Vec::new(),
            coordinator: None,
            level: None,
            epoch: None,
            blocked: None,
            lease_until_ns: 0,
            groups: Arc::default(),
        }
    }

    /// The node is in a view, and its lease is unexpired.
    pub fn is_ready(&self) -> bool {
        self.view.is_some() && self.blocked.is_none() && crate::clock::now_ns() < self.lease_until_ns
    }
}
