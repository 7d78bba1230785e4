//! What nodes say to each other.
//!
//! Messages may be lost, delayed, doubled and reordered: each carries what makes a late one harmless (lineage,
//! ballot, index, the sender's clock reading that an answer echoes), and everything that must arrive is repeated
//! until it is answered.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::time::Duration;

use membership_types::{Ballot, GroupName, Instant, Lineage, LogIndex, NodeId, ViewId};
use serde::{Deserialize, Serialize};

use crate::{
    entry::{Entry, GroupWish},
    floor::Floor,
    quorum::Deaths,
    state::{State, Terms},
    view::{ClusterDelta, ClusterView, NodeInfo, SharedView, Why},
};

/// A message between two nodes of one cluster name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Msg {
    /// "This is me, and this is where I stand." Rendezvous, for ever: seekers find clusters with it, clusters
    /// each other.
    Probe(Box<Probe>),
    /// "Admit me." To any member; one that does not coordinate answers with a [`Msg::Probe`] that says who does.
    Join(Box<Join>),
    /// "You cannot be admitted", and why, for people.
    Refused(String),
    /// A founder asks the holders of the slots to found this lineage with it.
    AskPledge {
        /// The lineage to be.
        lineage: Lineage,
        /// On what terms.
        terms: Terms,
    },
    /// A fresh slot holder agrees, and until this pledge lapses pledges itself to nobody else.
    Pledge {
        /// The lineage to be.
        lineage: Lineage,
        /// Who pledges, its slot included.
        info: Box<NodeInfo>,
        /// The highest view id it ever heard of.
        highest: ViewId,
        /// Does it know that there is a witness? Builds from before there were any know of none.
        #[serde(default)]
        witness: bool,
    },
    /// Everything that happens within one lineage.
    In(Lineage, ClusterMsg),
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Probe {
    /// Who speaks.
    pub info: NodeInfo,
    /// Its standing.
    pub standing: Standing,
    /// Does it want an answer?
    pub answer: bool,
}

/// A node is without a view, or in a lineage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// Without a view.
    Seeking {
        /// How long it has been looking.
        waited: Duration,
        /// Of whom it heard of late, those that this may reach.
        hears: Vec<NodeId>,
        /// May it found on its own after a while?
        may_found_alone: bool,
        /// The highest view id it ever heard of.
        highest: ViewId,
    },
    /// In a lineage.
    Member {
        /// The lineage.
        lineage: Lineage,
        /// Does it hold a valid lease?
        active: bool,
        /// Whom it follows as coordinator.
        coordinator: Option<NodeInfo>,
        /// The last view id that it knows of.
        last_view: ViewId,
        /// The lineages that were given up for this one.
        #[serde(default)]
        supersedes: Vec<Lineage>,
    },
}

/// A wish to be admitted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Join {
    /// Who wants to join.
    pub info: NodeInfo,
    /// The lease that it was configured with; must be the cluster's.
    pub lease: Duration,
    /// View ids up to here were used where it comes from: the cluster raises its own above them first.
    pub highest: ViewId,
    /// What its data directory remembers; of another lineage, this cluster raises its ids above that, too.
    pub floor: Option<Floor>,
    /// Its wishes about groups, so that it is admitted and joins in one entry.
    pub wishes: Vec<(u64, GroupWish)>,
    /// Groups that it wants to observe.
    pub observes: Vec<GroupName>,
    /// The feature level that it understands.
    #[serde(default)]
    pub level: u16,
    /// Was it configured with a witness? As the lease, that must be as in the cluster.
    #[serde(default)]
    pub witness: bool,
}

/// A message within a lineage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClusterMsg {
    /// Node to coordinator, every heartbeat interval: "I live; I heard your grant."
    Heartbeat(Box<Heartbeat>),
    /// Coordinator to node: the answer to a heartbeat, and a lease.
    Grant(Grant),
    /// Anyone who is no coordinator, to one who takes it for that: "follow this ballot".
    Follow {
        /// The highest ballot known.
        ballot: Ballot,
    },

    /// A candidate asks for promises to accept nothing below its ballot.
    Ask(Box<Ask>),
    /// A core member promises, and says all that it knows.
    Promise(Box<Promise>),
    /// A core member cannot promise, or cannot accept, under this ballot.
    Refuse {
        /// The ballot that was refused.
        ballot: Ballot,
        /// The highest ballot that it promised.
        promised: Ballot,
        /// How long its own grant to another binds it still, as it will measure it.
        wait: Duration,
    },

    /// The coordinator proposes an entry. All before `index` is committed.
    Append {
        /// The coordinator's ballot.
        ballot: Ballot,
        /// The entry's position.
        index: LogIndex,
        /// The entry.
        entry: Arc<Entry>,
        /// The coordinator's clock; the answer echoes it.
        sent: Instant,
    },
    /// A node stored the entry under this ballot.
    Accepted {
        /// The ballot.
        ballot: Ballot,
        /// The position.
        index: LogIndex,
        /// What [`ClusterMsg::Append`] had in `sent`.
        echo: Instant,
    },
    /// The entry proposed at this index under this ballot is committed.
    Commit {
        /// The ballot.
        ballot: Ballot,
        /// The position.
        index: LogIndex,
    },
    /// "I lack what is before this; I have committed this far."
    Behind {
        /// The last entry that the sender knows to be committed.
        commit: LogIndex,
    },
    /// Committed entries, or the whole state, for one who is behind.
    CatchUp {
        /// The sender's ballot.
        ballot: Ballot,
        /// What is committed.
        tail: Tail,
    },

    /// A candidate to a core member that has no log yet: what is committed as far as the candidate knows.
    Log(Box<State>),
    /// Coordinator to node, a seeker too: view ids up to here are needed, and too few data directories have set them
    /// aside.
    SetAside {
        /// The coordinator's ballot.
        ballot: Ballot,
        /// The highest of them.
        view: ViewId,
        /// Ids up to here are given, or never will be: what a directory has below is its own affair. Builds from before do not
        /// tell it.
        #[serde(default)]
        given: ViewId,
    },
    /// Coordinator to node: what has been committed that concerns it.
    Update(Box<Update>),
    /// "You are no member since this view."
    Removed {
        /// The cluster view without the node.
        view: ViewId,
        /// The index at which the sender knows that.
        index: LogIndex,
        /// Why.
        why: Why,
    },
    /// A node's wishes about groups that it has not seen applied, in order.
    Wishes(Vec<(u64, GroupWish)>),
    /// Begin or end to observe a group.
    Observe {
        /// The group.
        group: GroupName,
        /// Begin?
        begin: bool,
    },
    /// Another member of a group makes the sender wait for too long.
    StaysBehind {
        /// The group.
        group: GroupName,
        /// Who stays behind.
        node: NodeId,
    },
    /// Coordinator to a member: others of the group wait for you; leave it, and come back as a junior.
    StepOut {
        /// The group.
        group: GroupName,
    },
    /// The node leaves the cluster; it has stopped acting for every group.
    Leave,
    /// Coordinator to a node that it is about to remove: stop acting for every group, for ever.
    Stop,
    /// The node has stopped.
    Stopped,
    /// Proofs of death, and who held a lease when they came.
    Dead(Deaths),
    /// A member tells the coordinator of another lineage that is active.
    Met {
        /// The other lineage.
        lineage: Lineage,
        /// Somebody there.
        contact: Box<NodeInfo>,
        /// The highest view id known there.
        last_view: ViewId,
        /// The lineages that were given up for it.
        #[serde(default)]
        supersedes: Vec<Lineage>,
    },
}

/// A node's sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The ballot that it follows.
    pub ballot: Ballot,
    /// Its own clock; the answer echoes it, and a lease counts from it.
    pub sent: Instant,
    /// The coordinator's clock in the last grant that it heard under this ballot.
    pub echo: Option<Instant>,
    /// Is the node bound by that grant as a granter of authority (root of the chain)?
    pub rooted: bool,
    /// How far it has been told what concerns it.
    pub seen: LogIndex,
    /// How far it has committed the log, if it keeps one.
    pub commit: Option<LogIndex>,
    /// Does it answer for its founder slot? Only once its incarnation is older than any authority its
    /// predecessor in the slot may have supported.
    pub slot: bool,
    /// Up to where its data directory has set view ids aside for this lineage.
    #[serde(default)]
    pub floor: ViewId,
    /// Up to where it has, or soon will have, for another one: it can set nothing aside here before ids are above that.
    #[serde(default)]
    pub foreign: ViewId,
    /// All that a coordinator must know to begin (or begin again) to tell it things.
    pub hello: Option<Hello>,
    /// The feature level that it understands. Builds from before there were levels do not tell it.
    #[serde(default)]
    pub level: u16,
    /// Was its answer for its slot ever one of those of a majority?
    #[serde(default)]
    pub confirmed: bool,
}

/// Where a node stands, for a coordinator that does not know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// The groups that it knows, as member or observer, and the last view of each.
    pub groups: Vec<(GroupName, ViewId)>,
    /// The groups that it observes.
    pub observes: Vec<GroupName>,
}

/// The coordinator's answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The coordinator's ballot.
    pub ballot: Ballot,
    /// The coordinator's clock; the next heartbeat echoes it.
    pub sent: Instant,
    /// The node's clock in the heartbeat (or promise) that is answered.
    pub echo: Option<Instant>,
    /// The lease, counted from `echo` on the node's clock; zero for none.
    pub lease: Duration,
    /// The last entry that the node should have been told of, if the coordinator knows where it stands.
    pub index: Option<LogIndex>,
    /// The number of its last wish that was applied.
    pub wishes_done: u64,
    /// Answer at once instead of at the next interval?
    pub answer: bool,
    /// The node's answer for its founder slot is one of those of a majority on which the lease rests.
    #[serde(default)]
    pub slot: bool,
}

/// A candidate's question.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// The candidate's ballot.
    pub ballot: Ballot,
    /// How far it has committed.
    pub commit: LogIndex,
    /// Its clock; the answer echoes it.
    pub sent: Instant,
    /// The deaths it can prove.
    pub deaths: Deaths,
}

/// A promise to accept nothing below `ballot`, and all that a new coordinator must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promise {
    /// The ballot.
    pub ballot: Ballot,
    /// What [`Ask`] had in `sent`.
    pub echo: Instant,
    /// The promiser's own clock.
    pub sent: Instant,
    /// How far it has committed.
    pub commit: LogIndex,
    /// What the candidate lacks of that.
    pub tail: Option<Tail>,
    /// The entry after `commit` that it accepted, and under which ballot.
    pub accepted: Option<(Ballot, Arc<Entry>)>,
    /// How long, as it measures it, authority that it granted to a predecessor may last still.
    pub left: Duration,
    /// Did it bind itself to the candidate, as a grant would have bound it, when the question came?
    #[serde(default)]
    pub bound: bool,
    /// Does it answer for its founder slot?
    #[serde(default)]
    pub slot: bool,
    /// Was its answer for its slot ever one of those of a majority?
    #[serde(default)]
    pub confirmed: bool,
    /// How far it has been told what concerns it.
    #[serde(default)]
    pub seen: LogIndex,
    /// What a coordinator must know to tell it things, unless that is long: then it comes with a heartbeat.
    #[serde(default)]
    pub hello: Option<Hello>,
    /// Up to where its data directory has set view ids aside.
    #[serde(default)]
    pub floor: ViewId,
    /// The deaths it can prove.
    pub deaths: Deaths,
}

/// The committed log from some index on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tail {
    /// The entries after the index that was asked for.
    Entries {
        /// The index before the first of them.
        after: LogIndex,
        /// In order.
        entries: Vec<Arc<Entry>>,
    },
    /// The whole state, where the entries are not kept any more.
    State(Box<State>),
}

/// What a node is told of the log: only what concerns it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Update {
    /// The coordinator's ballot.
    pub ballot: Ballot,
    /// What it must have been told already; irrelevant where `full` is there.
    pub prev: LogIndex,
    /// Up to where it knows all that concerns it after this.
    pub index: LogIndex,
    /// The whole cluster view, for a newcomer or one who missed too much.
    pub full: Option<Full>,
    /// Cluster views, one after the other, and the entries that made them.
    pub deltas: Vec<(LogIndex, ClusterDelta)>,
    /// The core, where it changed (or with `full`).
    pub core: Option<Vec<NodeId>>,
    /// The latest view of each of its groups that changed.
    pub groups: Vec<SharedView>,
    /// The number of its last wish that was applied.
    pub wishes_done: u64,
    /// The lineage into which this one dissolved, and the last view id given here.
    pub dissolved: Option<(Lineage, ViewId)>,
}

impl Update {
    /// Is all that it says known to one who knows all that concerns it up to `seen`?
    pub(crate) fn says_nothing_after(&self, seen: LogIndex) -> bool {
        let changes = self.full.is_some()
            || !self.deltas.is_empty()
            || self.core.is_some()
            || !self.groups.is_empty()
            || self.dissolved.is_some();
        self.index == seen && !changes
    }
}

/// The whole cluster view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Full {
    /// The lineage's terms.
    pub terms: Terms,
    /// The view.
    pub view: ClusterView,
    /// The entry that made it.
    pub at: LogIndex,
}
