//! What every part of the machine may use: who we are, what time it is, and where effects go.

use alloc::{
    boxed::Box,
    collections::{BTreeSet, VecDeque},
    string::String,
    vec::Vec,
};
use core::{
    hash::{Hash, Hasher},
    net::SocketAddr,
    time::Duration,
};

use membership_types::{
    GroupName, Instant, Lineage, NodeId, Rng, Token, ViewId,
    trace::{Event, Process},
};

use crate::{
    config::Config,
    entry::GroupWish,
    floor::{Durable, Floor},
    meeting::Forced,
    msg::{ClusterMsg, Msg},
    view::{ClusterView, NodeInfo, SharedView, Why},
    witness::{Question, Witness},
};

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dest {
    /// To this incarnation, over any connection with it, or at this address; to nobody else who listens there.
    Node(NodeId, Option<SocketAddr>),
    /// To whoever listens at this address.
    Addr(SocketAddr),
}

/// How this node relates to a group whose view it learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// It is a member.
    Member,
    /// It observes the group.
    Observer,
    /// It was a member, and is none any more.
    Left,
}

/// Why a node ceased to lead a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhyNot {
    /// Its lease ran out.
    Lease,
    /// A view came in which it is not the leader, or leads a new reign.
    View,
    /// It stepped down.
    StepDown,
    /// It leaves the group or the cluster.
    Leave,
    /// It was removed, or told to stop.
    Removed,
}

impl WhyNot {
    /// The word that events carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::View => "view",
            Self::StepDown => "step-down",
            Self::Leave => "leave",
            Self::Removed => "removed",
        }
    }
}

/// An effect of the membership machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this, once; what is lost is sent again by itself.
    Send(Dest, Msg),
    /// How the view that is installed next came about: how many joined, and who is out and why. Not told where the
    /// node missed views in between.
    Change {
        /// How many joined.
        joined: usize,
        /// Who is out, and why.
        left: Vec<(NodeId, Why)>,
    },
    /// The node installed a cluster view.
    ClusterView(ClusterView),
    /// The node learned a group view.
    View(SharedView, Part),
    /// The lease lasts until then. What may be done under a token may be done only before that instant.
    Lease(Instant),
    /// From now on this node may act for the group under the token, while its lease lasts.
    Leading {
        /// The group.
        group: GroupName,
        /// The reign's token.
        token: Token,
        /// The lineage, which goes with every token.
        lineage: Lineage,
    },
    /// The node no longer acts for the group.
    NotLeading {
        /// The group.
        group: GroupName,
        /// The reign's token.
        token: Token,
        /// Why.
        why: WhyNot,
        /// After this instant nothing could be done under the token.
        until: Instant,
    },
    /// The node makes other members of the group wait: it should leave the group, and may join it again.
    StepOut {
        /// The group.
        group: GroupName,
    },
    /// The node holds no valid lease: it is blocked, not wrong. The text says what it lacks.
    Blocked(String),
    /// The node holds a valid lease again.
    Unblocked,
    /// The node is no member any more, for the reason given: this machine is finished. Whoever still wants to take
    /// part starts again with a fresh [`NodeId`].
    Ended(End),
    /// The cluster does not admit this node, for the reason given; it goes on asking.
    Refused(String),
    /// The lineage is not given up, for this reason.
    NotForced(String),
    /// Write this to the data directory, durably, and say so with [`Input::IsSetAside`](crate::Input::IsSetAside). What is
    /// written later takes its place.
    SetAside(Floor),
    /// Ask the witness, and give back what it says with [`Input::Witness`](crate::Input::Witness); what gets no answer is
    /// asked again by itself.
    AskWitness(Question),
    /// A record for the trace.
    Trace(Event),
    /// Something worth testing happened; only while tracing.
    Mark(&'static str),
}

/// How a machine's life ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It left as it was told to.
    Left,
    /// It was removed: by which view, and why.
    Removed {
        /// The view without it.
        view: ViewId,
        /// Why.
        why: &'static str,
    },
    /// Its cluster dissolved into an elder one, or it gave up a blocked one for this.
    Dissolved {
        /// The lineage to join.
        into: Lineage,
    },
    /// An operator gave up its lineage: it begins anew with this.
    Forced(Forced),
    /// It can go no further in its lineage and begins anew.
    StartOver {
        /// Why.
        why: &'static str,
    },
}

/// The most bytes of wishes in one message, and of commands in one entry.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// What a queue had to hold once, it need not hold again: one that was long and is empty gives its memory back.
pub(crate) fn release<T>(queue: &mut VecDeque<T>) {
    const KEPT: usize = 64;
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
}

/// A node's wishes about groups that it has not yet seen applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wishes {
    last: u64,
    pub(crate) pending: VecDeque<(u64, GroupWish)>,
    /// Those among them by which a first rank is given up.
    giving_up: BTreeSet<(GroupName, u64)>,
}

impl Wishes {
    pub(crate) fn push(&mut self, wish: GroupWish) {
        self.last += 1;
        if matches!(wish, GroupWish::Leave { .. } | GroupWish::StepDown { .. }) {
            self.giving_up.insert((wish.group().clone(), self.last));
        }
        self.pending.push_back((self.last, wish));
    }

    pub(crate) fn done(&mut self, op: u64) {
        while let Some((n, wish)) = self.pending.pop_front_if(|(n, _)| *n <= op) {
            self.giving_up.remove(&(wish.group().clone(), n));
        }
        release(&mut self.pending);
    }

    /// Is there a wish to leave the first rank of this group, not yet seen applied?
    pub(crate) fn giving_up(&self, group: &GroupName) -> bool {
        let all = (group.clone(), 0)..=(group.clone(), u64::MAX);
        self.giving_up.range(all).next().is_some()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &(u64, GroupWish)> {
        self.pending.iter()
    }

    /// The first of them: what fits into a message. The others are said when these are done.
    pub(crate) fn first(&self) -> Vec<(u64, GroupWish)> {
        let mut room = MOST_BYTES;
        let fits = |(_, wish): &&(u64, GroupWish)| {
            room = room.saturating_sub(wish.weight());
            room > 0
        };
        self.pending.iter().take_while(fits).cloned().collect()
    }
}

/// What every part may use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ctx {
    pub(crate) config: Config,
    pub(crate) now: Instant,
    pub(crate) started: Instant,
    pub(crate) rng: Rng,
    pub(crate) out: VecDeque<Output>,
    pub(crate) rendezvous: Vec<SocketAddr>,
    /// All providers of addresses have answered.
    pub(crate) asked_around: bool,
    /// Our lineage was dissolved into another one: until then we only look for that.
    pub(crate) looks_until: Instant,
    pub(crate) wishes: Wishes,
    pub(crate) observes: BTreeSet<GroupName>,
    pub(crate) highest: ViewId,
    /// What our data directory remembers, if we have one.
    pub(crate) durable: Option<Durable>,
    pub(crate) witness: Witness,
    /// Our answer for our founder slot was one of those of a majority, in the lineage that we are in.
    pub(crate) confirmed: bool,
    #[cfg(feature = "plant")]
    pub(crate) plant: Option<crate::plant::Plant>,
}

/// All that the machine may do later depends on: neither what never changes nor what it has put out.
impl Hash for Ctx {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            config,
            now,
            started,
            rng,
            out: _,
            rendezvous,
            asked_around,
            looks_until,
            wishes,
            observes,
            highest,
            durable,
            witness,
            confirmed,
            ..
        } = self;
        (
            config.me.id,
            now,
            started,
            rng,
            rendezvous,
            (asked_around, looks_until),
            wishes,
            observes,
            highest,
            durable,
            (witness, confirmed),
        )
            .hash(state);
    }
}

impl Ctx {
    pub(crate) fn new(config: Config, now: Instant, rng: Rng, highest: ViewId) -> Self {
        Self {
            config,
            now,
            started: now,
            rng,
            out: VecDeque::new(),
            rendezvous: Vec::new(),
            asked_around: false,
            looks_until: now,
            wishes: Wishes::default(),
            observes: BTreeSet::new(),
            highest,
            durable: None,
            witness: Witness::default(),
            confirmed: false,
            #[cfg(feature = "plant")]
            plant: None,
        }
    }

    pub(crate) fn me(&self) -> NodeId {
        self.config.me.id
    }

    pub(crate) fn lease(&self) -> Duration {
        self.config.terms.lease
    }

    /// L(1-rho): what a holder may trust of a full lease.
    pub(crate) fn holder_lease(&self) -> Duration {
        self.config.terms.drift.holder(self.lease())
    }

    /// How long a granter is bound by a full lease.
    pub(crate) fn granter_lease(&self) -> Duration {
        self.config.terms.drift.granter_waits(self.holder_lease())
    }

    /// This incarnation is older than anything that its predecessor may have supported.
    pub(crate) fn is_ripe(&self) -> bool {
        self.now - self.started >= self.config.terms.drift.stretched(self.granter_lease())
            || self.planted(crate::plant::Plant::UnripeSlots)
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.out.push_back(output);
    }

    pub(crate) fn send(&mut self, to: &NodeInfo, lineage: Lineage, msg: ClusterMsg) {
        self.push(Output::Send(Dest::Node(to.id, Some(to.addr)), Msg::In(lineage, msg)));
    }

    pub(crate) fn reply(&mut self, to: NodeId, lineage: Lineage, msg: ClusterMsg) {
        self.push(Output::Send(Dest::Node(to, None), Msg::In(lineage, msg)));
    }

    pub(crate) fn trace(&mut self, event: impl FnOnce(Process) -> Event) {
        if self.config.trace {
            let event = event(self.me().into());
            self.push(Output::Trace(event));
        }
    }

    /// Notes, while tracing, that a rare path was taken: a set of simulated runs must take each at some time.
    pub(crate) fn mark(&mut self, what: &'static str) {
        if self.config.trace {
            self.push(Output::Mark(what));
        }
    }

    #[cfg(feature = "plant")]
    pub(crate) fn planted(&self, plant: crate::plant::Plant) -> bool {
        self.plant == Some(plant)
    }

    #[cfg(not(feature = "plant"))]
    #[allow(clippy::unused_self, reason = "the same call in both builds")]
    pub(crate) fn planted(&self, _plant: crate::plant::Plant) -> bool {
        false
    }

    /// One of the rendezvous addresses that is not our own.
    pub(crate) fn random_address(&mut self) -> Option<SocketAddr> {
        let own = self.config.me.addr;
        let others: Vec<_> = self.rendezvous.iter().copied().filter(|a| *a != own).collect();
        self.rng.pick(&others).copied()
    }

    pub(crate) fn probe(&mut self, to: Dest, probe: crate::msg::Probe) {
        self.push(Output::Send(to, Msg::Probe(Box::new(probe))));
    }
}
