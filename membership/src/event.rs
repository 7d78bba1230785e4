//! What a node tells those who embed it: one stream of events, the current state first, then every change.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use membership_proto::{ClusterView, WhyNot};
use membership_sync::LeaderCell;
use membership_types::{GroupName, Lineage, NodeId, Rank, Token, ViewId};
use pubsub::{Bus, Delivery, Subscription, TryNextError};

use crate::{clock, replica::Standing};

/// A ranked view of a group, with names for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The group.
    pub group: GroupName,
    /// The lineage in which the ids have a meaning.
    pub lineage: Lineage,
    /// The view's id; [`ViewId::NONE`] in what observers are told of a group without members.
    pub id: ViewId,
    /// The group's view before it; [`ViewId::NONE`] for a group that begins (again).
    pub prev: ViewId,
    /// The fencing token of the present reign.
    pub token: Token,
    /// In rank order: the first leads.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node that it lives on.
    pub node: NodeId,
    /// The node's name; where two nodes of the cluster have the same one, `name#id`.
    pub name: Arc<str>,
    /// Where the member serves, if it said so.
    pub endpoint: Option<Arc<str>>,
}

impl View {
    /// The member of rank 0.
    pub fn leader(&self) -> Option<&Member> {
        self.members.first()
    }

    /// The rank of the member on this node.
    pub fn rank_of(&self, node: NodeId) -> Option<Rank> {
        self.members.iter().position(|m| m.node == node).map(Rank::at)
    }
}

/// Something that happened at this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// This node's name; where another node of the cluster has the same one, `name#id`.
    pub name: Arc<str>,
    /// This node's incarnation at that time.
    pub node: NodeId,
    /// `CLOCK_BOOTTIME` in nanoseconds: after it happened, and before anything was done about it.
    pub at_ns: u64,
    /// The group, for [`What::View`], [`What::Leading`], [`What::NotLeading`], [`What::State`] and [`What::Out`].
    pub group: Option<GroupName>,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum What {
    /// An incarnation of the node begins: at the start, and after each removal. It looks for a cluster.
    Started {
        /// Where it listens.
        listen: SocketAddr,
        /// Where its admin API listens.
        admin: Option<SocketAddr>,
    },
    /// A cluster does not admit the node, for this reason. It goes on asking.
    Refused {
        /// The reason.
        why: String,
    },
    /// The node installed a view of the cluster. The first one means that it has joined.
    ClusterView(Arc<ClusterView>),
    /// The node has no lease any more: it leads nothing, and no view changes at it, until [`What::Unblocked`].
    Blocked {
        /// What it lacks.
        why: String,
    },
    /// The node has a lease (again).
    Unblocked,
    /// The cluster has removed this incarnation of the node.
    Removed {
        /// By which view.
        view: ViewId,
        /// Why.
        why: String,
    },
    /// The node's cluster dissolved into another one, or the node gave up a blocked one for that.
    Dissolved {
        /// The lineage that goes on.
        into: Lineage,
        /// The groups in which the node was: what they acknowledged in the lineage that ends is lost.
        lost: Arc<[GroupName]>,
    },
    /// The node could go no further in its cluster, and begins anew.
    StartOver {
        /// Why.
        why: String,
    },
    /// The node has stopped; nothing follows.
    Ended {
        /// Why, in words: `left`, or what prevented that.
        why: String,
    },
    /// A view of the group.
    View(Arc<View>),
    /// From now on this node leads the group, while [`Leadership::is_current`](crate::Leadership::is_current).
    Leading {
        /// The reign's token, which goes with every effect.
        token: Token,
        /// The lineage, which goes with every token.
        lineage: Lineage,
    },
    /// This node does not lead the group any more. After a lapse of its lease this is the first event of the group.
    NotLeading {
        /// The token that it had.
        token: Token,
        /// The lineage.
        lineage: Lineage,
        /// Why.
        why: WhyNot,
        /// `CLOCK_BOOTTIME` in nanoseconds after which nothing could be done under the token.
        until_ns: u64,
    },
    /// The application is late to say that it lives: the node leads nothing, and leaves its groups, until [`What::Unstuck`].
    Stuck {
        /// For how long nothing was heard of it.
        why: String,
    },
    /// The application lives: the node joins its groups again.
    Unstuck,
    /// Where the group's state is, for a [`Replica`](crate::Replica) with a data directory: told whenever that changes.
    State {
        /// As [`Replica::standing`](crate::Replica::standing) says.
        standing: Standing,
    },
    /// This node is no member of the group any more.
    Out {
        /// It left on request; otherwise its incarnation is over, and the next one joins the group again.
        left: bool,
    },
    /// The subscriber was too slow, and changes were dropped. The current state follows; forget everything else.
    Missed {
        /// How many changes.
        count: u64,
    },
}

/// Topics of the node's bus. The node's own comes first, where current values are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Node,
    Group(GroupName),
}

/// What the bus carries: an event, and the topic's state after it.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) event: Arc<Event>,
    /// The events that make up the topic's state, in order: what a late subscriber is told.
    pub(crate) state: Box<[Arc<Event>]>,
    /// How the node leads the group, if it does.
    pub(crate) lead: Option<Lead>,
    /// The last `NotLeading` of the group.
    pub(crate) last_end: Option<Arc<Event>>,
}

/// A reign of this node.
#[derive(Clone)]
pub(crate) struct Lead {
    pub(crate) cell: Arc<LeaderCell>,
    pub(crate) token: Token,
    pub(crate) lineage: Lineage,
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lead")
            .field("token", &self.token)
            .field("lineage", &self.lineage)
            .finish_non_exhaustive()
    }
}

pub(crate) type NodeBus = Bus<Topic, Arc<Said>>;
pub(crate) type NodeSubscription = Subscription<Topic, Arc<Said>>;

/// A node's events: the current state first, then every change in the order in which it happened.
///
/// It is bounded: a reader that falls more than 8192 changes behind gets [`What::Missed`] and the then current state.
/// It ends when the node has stopped. Dropping it costs nothing and loses nothing for others.
pub struct Events {
    subscription: Option<NodeSubscription>,
    pending: VecDeque<Event>,
    /// Groups that the reader believes this node to lead.
    leading: BTreeMap<GroupName, Token>,
    /// The node's name and id as of the last event. There is one from the beginning: every stream follows the node's own
    /// topic, which always has a value.
    speaker: Option<(Arc<str>, NodeId)>,
}

impl Events {
    /// `None` for a node that has stopped.
    pub(crate) fn new(subscription: Option<NodeSubscription>) -> Self {
        Self { subscription, pending: VecDeque::new(), leading: BTreeMap::new(), speaker: None }
    }

    /// Waits for the next event; `None` once the node has stopped and everything was taken.
    ///
    /// Cancel-safe: a dropped future has taken nothing. Works in any async runtime.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Events::next`], for hand-written futures.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Poll::Ready(Some(event));
            }
            let Some(subscription) = &mut self.subscription else { return Poll::Ready(None) };
            match subscription.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(delivery)) => self.take(delivery),
                Poll::Ready(None) => self.subscription = None,
            }
        }
    }

    /// Takes the next event if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            match self.subscription.as_mut()?.try_next() {
                Ok(delivery) => self.take(delivery),
                Err(TryNextError::Empty) => return None,
                Err(TryNextError::Closed) => self.subscription = None,
            }
        }
    }

    fn take(&mut self, delivery: Delivery<Topic, Arc<Said>>) {
        match delivery {
            Delivery::Change { event: said, .. } => self.give(Event::clone(&said.event)),
            Delivery::Current { topic, event: said } => {
                // After a gap: a reign that ended unseen is ended first.
                if let Topic::Group(group) = topic
                    && let Some(token) = self.leading.get(&group).copied()
                    && said.lead.as_ref().map(|lead| lead.token) != Some(token)
                    && let Some(end) = said.last_end.clone()
                {
                    self.give(Event::clone(&end));
                }
                for event in &said.state {
                    let known = matches!((&event.what, &event.group), (What::Leading { token, .. }, Some(group))
                        if self.leading.get(group) == Some(token));
                    if !known {
                        self.give(Event::clone(event));
                    }
                }
            }
            Delivery::Gap { missed, .. } => {
                if let Some((name, node)) = self.speaker.clone() {
                    let what = What::Missed { count: missed };
                    self.give(Event { name, node, at_ns: clock::now_ns(), group: None, what });
                }
            }
        }
    }

    fn give(&mut self, event: Event) {
        self.speaker = Some((event.name.clone(), event.node));
        if let Some(group) = &event.group {
            match &event.what {
                What::Leading { token, .. } => {
                    self.leading.insert(group.clone(), *token);
                }
                What::NotLeading { .. } => {
                    self.leading.remove(group);
                }
                _ => {}
            }
        }
        self.pending.push_back(event);
    }
}

/// A group's views as they come: the current one first, then every change.
///
/// It is bounded as [`Events`] are: a reader that falls too far behind goes on with the current view.
pub struct Views {
    events: Events,
}

impl Views {
    pub(crate) fn new(events: Events) -> Self {
        Self { events }
    }

    /// Waits for the next view; `None` once the node has stopped and everything was taken.
    ///
    /// Cancel-safe: a dropped future has taken nothing. Works in any async runtime.
    pub async fn next(&mut self) -> Option<Arc<View>> {
        loop {
            if let What::View(view) = self.events.next().await?.what {
                return Some(view);
            }
        }
    }

    /// Takes the next view if there is one already.
    pub fn try_next(&mut self) -> Option<Arc<View>> {
        loop {
            if let What::View(view) = self.events.try_next()?.what {
                return Some(view);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use membership_sync::NodeLease;
    use pubsub::Topics;

    use super::*;

    fn group() -> GroupName {
        GroupName::new("g").expect("a name")
    }

    fn event(group: Option<GroupName>, what: What) -> Event {
        Event { name: "a".into(), node: NodeId::new(1, 1), at_ns: 1, group, what }
    }

    fn token() -> Token {
        Token::new(ViewId::new(7))
    }

    fn leading() -> Event {
        event(Some(group()), What::Leading { token: token(), lineage: Lineage::new(1, 1) })
    }

    fn ended() -> Event {
        let lineage = Lineage::new(1, 1);
        let what = What::NotLeading { token: token(), lineage, why: WhyNot::Lease, until_ns: 5 };
        event(Some(group()), what)
    }

    fn viewed(id: u64) -> Event {
        let (id, lineage) = (ViewId::new(id), Lineage::new(1, 1));
        let view =
            View { group: group(), lineage, id, prev: ViewId::NONE, token: token(), members: Vec::new() };
        event(Some(group()), What::View(Arc::new(view)))
    }

    fn say(bus: &NodeBus, event: Event, state: Vec<Event>, last_end: Option<Event>) {
        let leads = state.iter().any(|e| matches!(e.what, What::Leading { .. }));
        let lead = leads.then(|| {
            let lease = NodeLease::new().expect("a page");
            Lead { cell: Arc::new(LeaderCell::new(lease)), token: token(), lineage: Lineage::new(1, 1) }
        });
        let topic = event.group.clone().map_or(Topic::Node, Topic::Group);
        let (event, last_end) = (Arc::new(event), last_end.map(Arc::new));
        let state = state.into_iter().map(Arc::new).collect();
        bus.publish(topic, Arc::new(Said { event, state, lead, last_end }));
    }

    fn follow(bus: &NodeBus, limit: usize) -> Events {
        let limit = NonZeroUsize::new(limit).expect("not zero");
        Events::new(Some(bus.subscribe_within(limit, Topics::all())))
    }

    fn drain(events: &mut Events) -> Vec<What> {
        std::iter::from_fn(|| events.try_next()).map(|event| event.what).collect()
    }

    fn bus() -> NodeBus {
        let bus = NodeBus::new();
        let started = event(None, What::Unblocked);
        say(&bus, started.clone(), vec![started], None);
        say(&bus, leading(), vec![viewed(7), leading()], None);
        bus
    }

    #[test]
    fn a_late_reader_begins_with_the_state_and_not_with_what_is_over() {
        let bus = bus();
        assert_eq!(drain(&mut follow(&bus, 9)), [What::Unblocked, viewed(7).what, leading().what]);
        say(&bus, ended(), vec![viewed(7)], Some(ended()));
        assert_eq!(drain(&mut follow(&bus, 9)), [What::Unblocked, viewed(7).what]);
    }

    #[test]
    fn a_reader_that_missed_the_end_of_a_reign_is_told_it_before_any_later_view() {
        let bus = bus();
        let mut slow = follow(&bus, 1);
        drain(&mut slow);
        say(&bus, ended(), vec![viewed(7)], Some(ended()));
        say(&bus, viewed(8), vec![viewed(8)], Some(ended()));
        let expected = [What::Missed { count: 2 }, What::Unblocked, ended().what, viewed(8).what];
        assert_eq!(drain(&mut slow), expected);
    }

    #[test]
    fn a_reader_that_missed_changes_of_a_reign_that_goes_on_is_not_told_twice_that_it_began() {
        let bus = bus();
        let mut slow = follow(&bus, 1);
        drain(&mut slow);
        for id in [8, 9] {
            say(&bus, viewed(id), vec![viewed(id), leading()], None);
        }
        assert_eq!(drain(&mut slow), [What::Missed { count: 2 }, What::Unblocked, viewed(9).what]);
    }

    #[test]
    fn a_stream_ends_with_the_bus_after_what_it_holds() {
        let bus = bus();
        let mut events = follow(&bus, 9);
        drop(bus);
        assert_eq!(drain(&mut events).len(), 3);
        assert!(events.subscription.is_none() && events.try_next().is_none());
    }
}
