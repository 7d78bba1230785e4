//! Deaths that were proved: those of nodes that may still be in a view to come, and when each proof came.

use std::collections::VecDeque;

use membership_types::{Instant, NodeId};

/// No more of them are remembered; the oldest is forgotten first.
const KEPT: usize = 1024;

/// Who is dead, in the order of the proofs.
#[derive(Default)]
pub(super) struct Deaths(VecDeque<Death>);

struct Death {
    node: NodeId,
    how: &'static str,
    at: Instant,
    /// Was the node in a view since?
    seen: bool,
}

impl Deaths {
    pub(super) fn add(&mut self, node: NodeId, how: &'static str, at: Instant) {
        if self.at(node).is_some() {
            return; // Proved in another way before.
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Death { node, how, at, seen: false });
    }

    /// When the node's death was proved.
    pub(super) fn at(&self, node: NodeId) -> Option<Instant> {
        self.0.iter().find(|death| death.node == node).map(|death| death.at)
    }

    /// A view is installed. Gives the dead in it. Who was in a view, and neither in this nor in the last one, comes no more: views
    /// of groups that tell of it are learned by then.
    pub(super) fn installed(
        &mut self,
        last: impl Fn(NodeId) -> bool,
        view: impl Fn(NodeId) -> bool,
    ) -> impl Iterator<Item = (NodeId, &'static str)> {
        for death in &mut self.0 {
            death.seen |= last(death.node) || view(death.node);
        }
        self.0.retain(|death| !death.seen || last(death.node) || view(death.node));
        self.0.iter().filter(move |death| view(death.node)).map(|death| (death.node, death.how))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        // Ids of nodes that came later may be lower.
        NodeId::new(u32::MAX - u32::try_from(number).expect("few"), number)
    }

    fn at(number: u64) -> Instant {
        Instant::from_nanos(number)
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_the_first_proof_counts() {
        let mut deaths = Deaths::default();
        for number in 0..=KEPT as u64 {
            deaths.add(node(number), "pidfd", at(number));
            deaths.add(node(number), "exiting", at(number + 1));
        }
        assert_eq!(deaths.at(node(0)), None);
        assert_eq!(deaths.at(node(1)), Some(at(1)));
        assert_eq!(deaths.at(node(KEPT as u64)), Some(at(KEPT as u64)));
    }

    #[test]
    fn the_dead_are_told_with_each_view_that_has_them_and_forgotten_after_those() {
        let mut deaths = Deaths::default();
        deaths.add(node(1), "pidfd", at(1));
        deaths.add(node(2), "pidfd", at(2));
        let nobody = |_| false;
        let has = |number| move |id| id == node(number);
        let mut told = |last: &dyn Fn(NodeId) -> bool, view: &dyn Fn(NodeId) -> bool| {
            let told: Vec<_> = deaths.installed(last, view).map(|(id, _)| id).collect();
            (told, deaths.at(node(1)).is_some(), deaths.at(node(2)).is_some())
        };
        assert_eq!(told(&nobody, &has(1)), (vec![node(1)], true, true));
        assert_eq!(told(&has(1), &has(1)), (vec![node(1)], true, true));
        assert_eq!(told(&has(1), &nobody), (vec![], true, true), "groups may tell of it yet");
        assert_eq!(told(&nobody, &nobody), (vec![], false, true), "the other one was in no view so far");
        assert_eq!(told(&nobody, &has(2)), (vec![node(2)], false, true));
    }
}
