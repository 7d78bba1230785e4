//! Which sets of core members may decide: the rule S2.
//!
//! A strict majority of the core decides. Exactly half decides in two cases that exclude each other for the
//! two halves of one core:
//!
//! * *Alone.* The half is the preferred one (it holds the core's senior; where there is a witness, it is the one that the
//!   witness recorded for this core, and the senior does not matter), and every one of its members answered a request that
//!   was sent after every lease of the other half's members had lapsed.
//! * *Proof.* A member of the other half is proved dead, and the proof came to a member of the answering half
//!   while that held an unexpired lease.
//!
//! Why they exclude each other: proof says that somebody of the first half was dead while somebody of the second
//! half held a lease; alone says that everybody of the first half was alive after all leases of the second had
//! lapsed. Both cannot be. And only one half is preferred.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use membership_types::{Lineage, NodeId};
use serde::{Deserialize, Serialize};

use crate::{ctx::Ctx, state::State, witness::Warrant};

/// A core, and where the witness records halves of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Core<'a> {
    pub(crate) lineage: Lineage,
    pub(crate) members: &'a [NodeId],
    pub(crate) warrant: Option<Warrant>,
}

impl<'a> Core<'a> {
    /// The one that decides about the next entry.
    pub(crate) fn in_force(state: &'a State) -> Self {
        Self { lineage: state.lineage, members: &state.core, warrant: state.warrant }
    }

    /// One that no entry has put in force: nothing can be recorded about it.
    pub(crate) fn to_be(lineage: Lineage, members: &'a [NodeId]) -> Self {
        Self { lineage, members, warrant: None }
    }

    /// Is this the half that may go on once the other one has stopped?
    pub(crate) fn prefers(self, ctx: &Ctx, half: &[NodeId]) -> bool {
        ctx.is_preferred(self.lineage, self.members, self.warrant, half)
    }
}

/// How a set of answers relates to a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Share {
    /// More than half: enough.
    Majority,
    /// Exactly half, these: enough only with evidence about the others.
    Half {
        /// Those who answered.
        with: Vec<NodeId>,
        /// The others.
        without: Vec<NodeId>,
    },
    /// Less than half.
    Minority,
}

/// What part of `core` satisfies `has`.
pub fn share(core: &[NodeId], has: impl Fn(NodeId) -> bool) -> Share {
    let (with, without): (Vec<NodeId>, Vec<NodeId>) = core.iter().partition(|&&id| has(id));
    if with.len() > without.len() {
        Share::Majority
    } else if with.len() == without.len() && !with.is_empty() {
        Share::Half { with, without }
    } else {
        Share::Minority
    }
}

/// Proofs of death, and who held a lease when one came to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deaths {
    dead: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Deaths {
    /// Notes that `node` is dead, known while `witnesses` held an unexpired lease. True if this is news.
    pub fn note(&mut self, node: NodeId, witnesses: impl IntoIterator<Item = NodeId>) -> bool {
        let known = self.dead.contains_key(&node);
        let seen = self.dead.entry(node).or_default();
        let before = seen.len();
        seen.extend(witnesses);
        !known || seen.len() > before
    }

    /// Is nobody proved dead?
    pub fn is_empty(&self) -> bool {
        self.dead.is_empty()
    }

    /// Is the node proved dead?
    pub fn contains(&self, node: NodeId) -> bool {
        self.dead.contains_key(&node)
    }

    /// Who held an unexpired lease when the proof of this death came to it.
    pub fn witnesses(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.dead.get(&node).into_iter().flatten().copied()
    }

    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &BTreeSet<NodeId>)> {
        self.dead.iter().map(|(node, witnesses)| (*node, witnesses))
    }

    /// Forgets all but these nodes: state is bounded by the living and the not yet removed.
    pub fn keep(&mut self, member: impl Fn(NodeId) -> bool) {
        self.dead.retain(|node, _| member(*node));
    }

    /// Case *proof*: does it let `with` go on without `without`?
    pub fn let_half_go_on(&self, with: &[NodeId], without: &[NodeId]) -> bool {
        without.iter().any(|dead| self.witnesses(*dead).any(|w| with.contains(&w)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn ids(n: u32) -> Vec<NodeId> {
        (0..n).map(|i| NodeId::new(i, 0)).collect()
    }

    #[test]
    fn majorities_halves_and_minorities() {
        for n in 0..8_u32 {
            let core = ids(n);
            for have in 0..=n {
                let got = share(&core, |id| id.node() < have);
                if 2 * have > n {
                    assert_eq!(got, Share::Majority);
                } else if 2 * have == n && n > 0 {
                    let (with, without) = core.split_at(have as usize);
                    assert_eq!(got, Share::Half { with: with.to_vec(), without: without.to_vec() });
                } else {
                    assert_eq!(got, Share::Minority, "{have} of {n}");
                }
            }
        }
    }

    #[test]
    fn a_proof_counts_only_if_a_member_of_the_half_held_a_lease_when_it_came() {
        let core = ids(4);
        let (first, second) = core.split_at(2);
        let mut deaths = Deaths::default();
        assert!(deaths.note(first[0], []));
        assert!(!deaths.let_half_go_on(second, first));
        assert!(!deaths.note(first[0], []), "no news");
        assert!(deaths.note(first[0], vec![first[1]]));
        assert!(!deaths.let_half_go_on(second, first), "a witness of the other half does not count");
        assert!(deaths.note(first[0], vec![second[1]]));
        assert!(deaths.let_half_go_on(second, first));
        deaths.keep(|_| false);
        assert!(!deaths.contains(first[0]));
    }
}
