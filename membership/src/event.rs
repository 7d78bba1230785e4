//! What a node tells those who embed it: one stream of events, the current state first, then every change.

mod json;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use membership_proto::{ClusterView, GroupView, SharedView, WhyNot};
use membership_sync::LeaderCell;
use membership_types::{GroupName, Lineage, NodeId, Rank, Token, ViewId};
use pubsub::{Bus, Delivery, Subscription, TryNextError};

pub(crate) use json::standing_json;

use crate::{clock, node::lock, replica};

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
        standing: replica::Standing,
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
#[derive(Clone, Debug)]
pub(crate) struct Said {
    /// What is new; nothing in what is kept for those who come later.
    pub(crate) event: Option<Arc<Event>>,
    pub(crate) state: State,
}

/// What a late subscriber is told of a topic.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// The node's own events that are current, in order.
    Node(Box<[Arc<Event>]>),
    Group(Standing),
}

/// How the node stands in a group. There may be very many: what can be made when somebody asks is not kept.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The last view that is known.
    pub(crate) view: Option<SharedView>,
    /// When that was told.
    pub(crate) view_at: u64,
    /// Is the node a member, by that view?
    pub(crate) member: bool,
    /// The machine says that the node leads.
    pub(crate) lead: Option<Lead>,
    /// When that was told; 0 if it was not, because the lease has lapsed before the machine noticed.
    pub(crate) lead_at: u64,
    pub(crate) speaker: Arc<Speaker>,
    /// What few groups have.
    pub(crate) more: Option<Box<More>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct More {
    /// The node's last reign, once it is over.
    pub(crate) last_end: Option<Ended>,
    /// How the group's state stands that is kept on disk, and the event that told of it.
    pub(crate) kept: Option<Box<(replica::Standing, Arc<Event>)>>,
}

/// A node as events name it.
#[derive(Debug)]
pub(crate) struct Speaker {
    pub(crate) name: Arc<str>,
    pub(crate) node: NodeId,
}

/// The end of a reign.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) token: Token,
    pub(crate) lineage: Lineage,
    pub(crate) why: WhyNot,
    pub(crate) until_ns: u64,
    pub(crate) at_ns: u64,
    pub(crate) speaker: Arc<Speaker>,
}

impl Speaker {
    pub(crate) fn event(&self, at_ns: u64, group: Option<GroupName>, what: What) -> Event {
        Event { name: Arc::clone(&self.name), node: self.node, at_ns, group, what }
    }
}

impl Ended {
    fn event(&self, group: &GroupName) -> Event {
        let Self { token, lineage, why, until_ns, .. } = *self;
        let what = What::NotLeading { token, lineage, why, until_ns };
        self.speaker.event(self.at_ns, Some(group.clone()), what)
    }
}

impl Standing {
    /// In a group of which nothing is known yet.
    pub(crate) fn new(speaker: Arc<Speaker>) -> Self {
        Self { view: None, view_at: 0, member: false, lead: None, lead_at: 0, speaker, more: None }
    }

    /// How the node leads the group, if it was told so.
    pub(crate) fn told_lead(&self) -> Option<&Lead> {
        self.lead.as_ref().filter(|_| self.lead_at > 0)
    }

    pub(crate) fn last_end(&self) -> Option<&Ended> {
        self.more.as_ref()?.last_end.as_ref()
    }

    pub(crate) fn kept(&self) -> Option<&(replica::Standing, Arc<Event>)> {
        self.more.as_ref()?.kept.as_deref()
    }

    /// The events that make it up, in order.
    fn events(&self, group: &GroupName, names: &Names) -> Vec<Event> {
        let said = |at_ns, what| self.speaker.event(at_ns, Some(group.clone()), what);
        let view = self.view.as_ref().map(|view| said(self.view_at, What::View(Arc::new(names.view(view)))));
        let kept = self.kept().map(|(_, event)| Event::clone(event));
        let leading = |lead: &Lead| {
            said(self.lead_at, What::Leading { token: lead.reign().token, lineage: lead.reign().lineage })
        };
        view.into_iter().chain(kept).chain(self.told_lead().map(leading)).collect()
    }
}

impl Said {
    /// How the node stands in the group that this is about.
    pub(crate) fn standing(&self) -> Option<&Standing> {
        match &self.state {
            State::Group(standing) => Some(standing),
            State::Node(_) => None,
        }
    }

    /// How the node leads that group, if it was told so.
    pub(crate) fn lead(&self) -> Option<&Lead> {
        self.standing()?.told_lead()
    }
}

/// The names of nodes as they are shown: those of the present cluster view, and of the one before.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<Mutex<[Shown; 2]>>);

type Shown = BTreeMap<NodeId, Arc<str>>;

impl Names {
    /// There is another cluster view.
    pub(crate) fn set(&self, names: Shown) {
        let mut known = lock(&self.0);
        known.swap(0, 1);
        known[0] = names;
    }

    /// A group's view, with names for people.
    pub(crate) fn view(&self, view: &GroupView) -> View {
        let known = lock(&self.0);
        let name = |node: NodeId| known.iter().find_map(|names| names.get(&node)).cloned();
        let member = |member: &membership_proto::Member| Member {
            node: member.node,
            name: name(member.node).unwrap_or_else(|| member.node.to_string().into()),
            endpoint: member.endpoint.as_deref().map(Arc::from),
        };
        View {
            group: view.group.clone(),
            lineage: view.lineage,
            id: view.id,
            prev: view.prev,
            token: view.token,
            members: view.members.iter().map(member).collect(),
        }
    }
}

/// A reign of this node. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Lead(Arc<Reign>);

pub(crate) struct Reign {
    pub(crate) cell: LeaderCell,
    pub(crate) token: Token,
    pub(crate) lineage: Lineage,
}

impl Lead {
    pub(crate) fn new(cell: LeaderCell, token: Token, lineage: Lineage) -> Self {
        Self(Arc::new(Reign { cell, token, lineage }))
    }

    pub(crate) fn reign(&self) -> &Reign {
        &self.0
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lead")
            .field("token", &self.0.token)
            .field("lineage", &self.0.lineage)
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
    names: Names,
    pending: VecDeque<Event>,
    /// Groups that the reader believes this node to lead.
    leading: BTreeMap<GroupName, Token>,
    /// The node's name and id as of the last event. There is one from the beginning: every stream follows the node's own
    /// topic, which always has a value.
    speaker: Option<(Arc<str>, NodeId)>,
}

impl Events {
    /// `None` for a node that has stopped.
    pub(crate) fn new(subscription: Option<NodeSubscription>, names: Names) -> Self {
        Self { subscription, names, pending: VecDeque::new(), leading: BTreeMap::new(), speaker: None }
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
            Delivery::Change { event: said, .. } => {
                if let Some(event) = &said.event {
                    self.give(Event::clone(event));
                }
            }
            Delivery::Current { topic, event: said } => match (&said.state, topic) {
                (State::Group(standing), Topic::Group(group)) => self.take_standing(&group, standing),
                (State::Node(events), _) => events.iter().for_each(|event| self.give(Event::clone(event))),
                (State::Group(_), Topic::Node) => {}
            },
            Delivery::Gap { missed, .. } => {
                if let Some((name, node)) = self.speaker.clone() {
                    let what = What::Missed { count: missed };
                    self.give(Event { name, node, at_ns: clock::now_ns(), group: None, what });
                }
            }
        }
    }

    fn take_standing(&mut self, group: &GroupName, standing: &Standing) {
        // After a gap: a reign that ended unseen is ended first.
        if let Some(token) = self.leading.get(group).copied()
            && standing.told_lead().map(|lead| lead.reign().token) != Some(token)
            && let Some(end) = standing.last_end()
        {
            self.give(end.event(group));
        }
        for event in standing.events(group, &self.names) {
            let known = matches!(&event.what, What::Leading { token, .. }
                if self.leading.get(group) == Some(token));
            if !known {
                self.give(event);
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

    /// The group's state after it: the view with this id, and whether the node leads by now, or did.
    #[derive(Clone, Copy)]
    struct After {
        view: u64,
        leads: bool,
        ended: bool,
    }

    fn say(bus: &NodeBus, event: Event, after: After) {
        let lineage = Lineage::new(1, 1);
        let speaker = Arc::new(Speaker { name: Arc::clone(&event.name), node: event.node });
        let view = GroupView { token: token(), ..GroupView::empty(group(), lineage, ViewId::NONE) };
        let view = GroupView { id: ViewId::new(after.view), ..view };
        let lead = after.leads.then(|| {
            let lease = NodeLease::new().expect("a page");
            Lead::new(LeaderCell::new(lease), token(), lineage)
        });
        let (why, until_ns, at_ns) = (WhyNot::Lease, 5, 1);
        let end = Ended { token: token(), lineage, why, until_ns, at_ns, speaker: Arc::clone(&speaker) };
        let last_end = Some(end).filter(|_| after.ended);
        let standing = Standing {
            view: Some(view.into()),
            view_at: 1,
            member: true,
            lead,
            lead_at: 1,
            speaker,
            more: Some(Box::new(More { last_end, kept: None })),
        };
        let state = match event.group {
            Some(_) => State::Group(standing),
            None => State::Node([Arc::new(event.clone())].into()),
        };
        let topic = event.group.clone().map_or(Topic::Node, Topic::Group);
        let kept = Arc::new(Said { event: None, state: state.clone() });
        bus.publish_with(topic, Arc::new(Said { event: Some(Arc::new(event)), state }), kept);
    }

    fn follow(bus: &NodeBus, limit: usize) -> Events {
        let limit = NonZeroUsize::new(limit).expect("not zero");
        Events::new(Some(bus.subscribe_within(limit, Topics::all())), Names::default())
    }

    fn drain(events: &mut Events) -> Vec<What> {
        std::iter::from_fn(|| events.try_next()).map(|event| event.what).collect()
    }

    fn bus() -> NodeBus {
        let bus = NodeBus::new();
        say(&bus, event(None, What::Unblocked), After { view: 0, leads: false, ended: false });
        say(&bus, leading(), After { view: 7, leads: true, ended: false });
        bus
    }

    #[test]
    fn a_late_reader_begins_with_the_state_and_not_with_what_is_over() {
        let bus = bus();
        assert_eq!(drain(&mut follow(&bus, 9)), [What::Unblocked, viewed(7).what, leading().what]);
        say(&bus, ended(), After { view: 7, leads: false, ended: true });
        assert_eq!(drain(&mut follow(&bus, 9)), [What::Unblocked, viewed(7).what]);
    }

    #[test]
    fn a_reader_that_missed_the_end_of_a_reign_is_told_it_before_any_later_view() {
        let bus = bus();
        let mut slow = follow(&bus, 1);
        drain(&mut slow);
        say(&bus, ended(), After { view: 7, leads: false, ended: true });
        say(&bus, viewed(8), After { view: 8, leads: false, ended: true });
        let expected = [What::Missed { count: 2 }, What::Unblocked, ended().what, viewed(8).what];
        assert_eq!(drain(&mut slow), expected);
    }

    #[test]
    fn a_reader_that_missed_changes_of_a_reign_that_goes_on_is_not_told_twice_that_it_began() {
        let bus = bus();
        let mut slow = follow(&bus, 1);
        drain(&mut slow);
        for id in [8, 9] {
            say(&bus, viewed(id), After { view: id, leads: true, ended: false });
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
