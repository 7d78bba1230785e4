//! Whom a node connects with for what groups say.
//!
//! In a group of few members everybody connects with everybody, and the node with the smaller id does it. Where there are more
//! than [`MANY`], with the first two: the first one passes on what the others say about closings and gives places, and the second one is the next
//! to do so. Any other one is connected with once something is to be said to it, by whoever has something to say. So a hundred nodes that come
//! together make two hundred connections and not five thousand, until somebody multicasts: then all say to all what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use membership_multicast::MANY;
use membership_types::NodeId;

/// Two members often have something to say to each other at the same time: the one with the larger id gives the other one so long to
/// connect.
const COURTESY: Duration = Duration::from_millis(20);
/// So long where there was a connection, since that ended for both.
const AGAIN: Duration = Duration::from_millis(250);

/// Among many it may take so long until all have connected who have something to say.
const MEETING: Duration = Duration::from_secs(15);

/// The others of a group's newest view.
#[derive(Default)]
pub(super) struct Peers {
    all: Vec<NodeId>,
    /// Where there are many, the first two, who may be ourselves.
    first: Option<[NodeId; 2]>,
}

impl Peers {
    /// Of these members, in rank order.
    pub(super) fn new(me: NodeId, members: &[NodeId]) -> Self {
        let first = members.first_chunk().filter(|_| members.len() > MANY).copied();
        Self { all: members.iter().copied().filter(|node| *node != me).collect(), first }
    }

    pub(super) fn all(&self) -> &[NodeId] {
        &self.all
    }

    pub(super) fn contains(&self, peer: NodeId) -> bool {
        self.all.contains(&peer)
    }

    /// Is one of the two among the first of many?
    fn is_with_first(&self, me: NodeId, peer: NodeId) -> bool {
        self.first.is_some_and(|first| first.contains(&me) || first.contains(&peer))
    }

    /// Does this one connect with that one, or the other way round, whether anything is to be said or not?
    fn are_to_meet(&self, me: NodeId, peer: NodeId) -> bool {
        self.first.is_none() || self.is_with_first(me, peer)
    }
}

/// What this node knows of its connections besides those that there are.
#[derive(Default)]
pub(super) struct Whom {
    /// Somebody tries to connect with them.
    dialing: BTreeSet<NodeId>,
    /// In groups of many, whom something was to be said to, or who has connected with us.
    needed: BTreeMap<NodeId, Need>,
    /// Since peers were looked for without a connection, some may have come to be without one, or can be reached now.
    pub(super) look_again: bool,
}

/// Somebody is to be spoken to.
struct Need {
    /// Since when for the first time, however often the connection was made anew.
    since: Instant,
    /// There was a connection.
    met: bool,
}

/// Somebody to connect with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) peer: NodeId,
    /// One of the two is among the first of many: what is said about closings goes that way.
    pub(super) first: bool,
    /// After so long, if it has not done so by then.
    pub(super) after: Duration,
}

impl Whom {
    /// Something is to be said to a member with whom there is no connection, or it is waited for. True if that is news, and somebody has
    /// to connect.
    pub(super) fn need(&mut self, me: NodeId, peers: &Peers, peer: NodeId) -> bool {
        if self.needed.contains_key(&peer) {
            return false;
        }
        self.needed.insert(peer, Need { since: Instant::now(), met: false });
        self.look_again = true;
        !peers.are_to_meet(me, peer)
    }

    /// There is a connection.
    pub(super) fn linked(&mut self, peer: NodeId) {
        self.needed.entry(peer).or_insert(Need { since: Instant::now(), met: true }).met = true;
    }

    /// Among many: is it so short a time since the two had first something to say to each other that they may not have come to it yet?
    pub(super) fn is_being_met(&self, peers: &Peers, peer: NodeId) -> bool {
        let is_new = |need: &Need| need.since.elapsed() < MEETING;
        peers.first.is_some() && self.needed.get(&peer).is_some_and(is_new)
    }

    /// Nobody tries to reach it any more.
    pub(super) fn gave_up(&mut self, peer: NodeId) {
        self.dialing.remove(&peer);
        self.look_again = true;
    }

    /// Whom to connect with who is not there (`absent`), and is not being tried. Costs a look at all groups, so only
    /// what may have changed the answer makes us look: a view, addresses, something to be said, a connection or an attempt that ended.
    pub(super) fn missing<'a>(
        &mut self,
        me: NodeId,
        groups: impl Iterator<Item = &'a Peers>,
        absent: impl Fn(NodeId) -> bool,
    ) -> Vec<Wanted> {
        if !std::mem::take(&mut self.look_again) {
            return Vec::new();
        }
        let mut wanted = BTreeMap::new();
        for peers in groups {
            for peer in peers.all().iter().copied() {
                let needed = self.needed.get(&peer);
                let one = match peers.are_to_meet(me, peer) {
                    true if me < peer => {
                        Wanted { peer, first: peers.is_with_first(me, peer), after: Duration::ZERO }
                    }
                    false if needed.is_some() => {
                        let courtesy = if needed.is_some_and(|need| need.met) { AGAIN } else { COURTESY };
                        Wanted {
                            peer,
                            first: false,
                            after: if me < peer { Duration::ZERO } else { courtesy },
                        }
                    }
                    _ => continue,
                };
                let known = wanted.entry(peer).or_insert(one);
                known.first |= one.first;
                known.after = known.after.min(one.after);
            }
        }
        let found: Vec<Wanted> =
            wanted.into_values().filter(|w| absent(w.peer) && !self.dialing.contains(&w.peer)).collect();
        self.dialing.extend(found.iter().map(|w| w.peer));
        found
    }

    /// Forgets whom no group has any more.
    pub(super) fn tidy(&mut self, of_groups: &BTreeSet<NodeId>) {
        self.needed.retain(|peer, _| of_groups.contains(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u32) -> NodeId {
        NodeId::new(n, 1)
    }

    fn missing(whom: &mut Whom, me: u32, peers: &Peers) -> Vec<(u32, bool, u128)> {
        whom.look_again = true;
        let found = whom.missing(node(me), [peers].into_iter(), |_| true);
        for wanted in &found {
            whom.gave_up(wanted.peer);
        }
        found.iter().map(|w| (w.peer.node(), w.first, w.after.as_millis())).collect()
    }

    #[test]
    fn of_few_everybody_meets_everybody() {
        let members: Vec<NodeId> = (0..MANY as u32).map(node).collect();
        let mut whom = Whom::default();
        let found = missing(&mut whom, 5, &Peers::new(node(5), &members));
        assert_eq!(found, (6..MANY as u32).map(|n| (n, false, 0)).collect::<Vec<_>>());
    }

    #[test]
    fn of_many_everybody_meets_the_first_two_and_others_when_something_is_to_be_said() {
        // The first two are 40 and 3.
        let members: Vec<NodeId> = [40, 3].into_iter().chain(4..30).map(node).collect();
        let peers = |me| Peers::new(node(me), &members);
        let mut whom = Whom::default();
        assert_eq!(missing(&mut whom, 5, &peers(5)), [(40, true, 0)], "3 connects with 5");
        assert_eq!(missing(&mut whom, 3, &peers(3)).len(), 27, "with all");
        assert_eq!(missing(&mut whom, 40, &peers(40)), [], "all connect with 40");
        assert!(!whom.need(node(5), &peers(5), node(3)), "they meet anyway");
        assert!(whom.is_being_met(&peers(5), node(3)) && !whom.is_being_met(&peers(5), node(4)));
        assert!(!whom.is_being_met(&Peers::new(node(5), &members[..9]), node(3)), "few have met before");
        assert!(whom.need(node(5), &peers(5), node(4)) && whom.need(node(5), &peers(5), node(9)));
        assert!(!whom.need(node(5), &peers(5), node(9)), "known");
        let all = [(4, false, 20), (9, false, 0), (40, true, 0)];
        assert_eq!(missing(&mut whom, 5, &peers(5)), all, "whichever id is smaller");
        whom.linked(node(4));
        whom.linked(node(9));
        let all = [(4, false, 250), (9, false, 0), (40, true, 0)];
        assert_eq!(missing(&mut whom, 5, &peers(5)), all, "4 has lost the connection, too");
        whom.tidy(&[node(4)].into());
        assert_eq!(missing(&mut whom, 5, &peers(5)), [(4, false, 250), (40, true, 0)]);
    }
}
