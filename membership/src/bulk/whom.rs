//! Whom a node connects with for what groups say.
//!
//! In a group of few members everybody connects with everybody, and the node with the smaller id does it. Where there are more
//! than [`MANY`], with the first two: the first one passes on what the others say about closings and gives places, and the second one is the next
//! to do so. Any other one is connected with once something is to be said to it, by whoever has something to say. So a hundred nodes that come
//! together make two hundred connections and not five thousand.

use std::collections::{BTreeMap, BTreeSet};

use membership_multicast::MANY;
use membership_types::NodeId;

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

    /// Does this one connect with that one, or the other way round, whether anything is to be said or not?
    fn are_to_meet(&self, me: NodeId, peer: NodeId) -> bool {
        self.first.is_none_or(|first| first.contains(&me) || first.contains(&peer))
    }
}

/// What this node knows of its connections besides those that there are.
#[derive(Default)]
pub(super) struct Whom {
    /// Somebody tries to connect with them.
    dialing: BTreeSet<NodeId>,
    /// In groups of many, whom something was to be said to, or who has connected with us: was there a connection?
    needed: BTreeMap<NodeId, bool>,
    /// Since peers were looked for without a connection, some may have come to be without one, or can be reached now.
    pub(super) look_again: bool,
}

/// Somebody to connect with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) peer: NodeId,
    /// Every member of some group is to meet it.
    pub(super) first: bool,
    /// After a while, if it has not done so by then: there was a connection, and it has the smaller id.
    pub(super) later: bool,
}

impl Whom {
    /// Something is to be said to a member with whom there is no connection. True if that is news.
    pub(super) fn need(&mut self, me: NodeId, peers: &Peers, peer: NodeId) -> bool {
        if peers.are_to_meet(me, peer) || self.needed.contains_key(&peer) {
            return false;
        }
        self.needed.insert(peer, false);
        self.look_again = true;
        true
    }

    /// There is a connection.
    pub(super) fn linked(&mut self, peer: NodeId) {
        self.needed.insert(peer, true);
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
                let needed = self.needed.get(&peer).copied();
                let one = match peers.are_to_meet(me, peer) {
                    true if me < peer => Wanted { peer, first: true, later: false },
                    false if needed.is_some() => {
                        Wanted { peer, first: false, later: peer < me && needed == Some(true) }
                    }
                    _ => continue,
                };
                let known = wanted.entry(peer).or_insert(one);
                known.first |= one.first;
                known.later &= one.later;
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

    fn missing(whom: &mut Whom, me: u32, peers: &Peers) -> Vec<(u32, bool, bool)> {
        whom.look_again = true;
        let found = whom.missing(node(me), [peers].into_iter(), |_| true);
        for wanted in &found {
            whom.gave_up(wanted.peer);
        }
        found.iter().map(|w| (w.peer.node(), w.first, w.later)).collect()
    }

    #[test]
    fn of_few_everybody_meets_everybody() {
        let members: Vec<NodeId> = (0..MANY as u32).map(node).collect();
        let mut whom = Whom::default();
        let found = missing(&mut whom, 5, &Peers::new(node(5), &members));
        assert_eq!(found, (6..MANY as u32).map(|n| (n, true, false)).collect::<Vec<_>>());
    }

    #[test]
    fn of_many_everybody_meets_the_first_two_and_others_when_something_is_to_be_said() {
        // The first two are 40 and 3.
        let members: Vec<NodeId> = [40, 3].into_iter().chain(4..30).map(node).collect();
        let peers = |me| Peers::new(node(me), &members);
        let mut whom = Whom::default();
        assert_eq!(missing(&mut whom, 5, &peers(5)), [(40, true, false)], "3 connects with 5");
        assert_eq!(missing(&mut whom, 3, &peers(3)).len(), 27, "with all");
        assert_eq!(missing(&mut whom, 40, &peers(40)), [], "all connect with 40");
        assert!(!whom.need(node(5), &peers(5), node(3)), "they meet anyway");
        assert!(whom.need(node(5), &peers(5), node(4)) && whom.need(node(5), &peers(5), node(9)));
        assert!(!whom.need(node(5), &peers(5), node(9)), "known");
        let all = [(4, false, false), (9, false, false), (40, true, false)];
        assert_eq!(missing(&mut whom, 5, &peers(5)), all, "whichever id is smaller");
        whom.linked(node(4));
        whom.linked(node(9));
        let all = [(4, false, true), (9, false, false), (40, true, false)];
        assert_eq!(missing(&mut whom, 5, &peers(5)), all, "4 has lost the connection, too");
        whom.tidy(&[node(4)].into());
        assert_eq!(missing(&mut whom, 5, &peers(5)), [(4, false, true), (40, true, false)]);
    }
}
