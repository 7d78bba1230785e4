//! View ids set aside on disk, so that nobody who restarts gives one of them again.
//!
//! A node with a data directory keeps a *floor* there: a view id that no cluster founded from this directory begins at
//! or below, and in which lineage it is in use. The coordinator gives an id only once enough directories of the core (under
//! `expect(n)`, where all founders have one: of the founder slots) have set it aside for its lineage. Floors rise by whole
//! blocks, and half a block ahead of need, so that no view change waits for a disk. A directory has each id for one lineage only.

use alloc::vec::Vec;

use membership_types::{Ballot, Lineage, ViewId};
use serde::{Deserialize, Serialize};

use crate::ctx::{Ctx, Output};

/// What a data directory remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Floor {
    /// Ids up to here may have been given.
    pub view: ViewId,
    /// In this lineage: it numbers its views above all floors that were brought to it.
    pub lineage: Lineage,
    /// The highest ballot known there when this was written, for people.
    pub ballot: Ballot,
}

impl Floor {
    /// What it is worth to a coordinator of this lineage. What was set aside for another one keeps nobody from giving ids that are in
    /// use there. (Which of two that were founded at once is the older one, nobody knows: clocks differ.)
    pub(crate) fn counts_in(&self, lineage: Lineage) -> ViewId {
        if self.lineage == lineage { self.view } else { ViewId::NONE }
    }
}

/// A node's floor: what is on disk, and what is on its way there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Durable {
    pub(crate) synced: Option<Floor>,
    asked: Option<Floor>,
}

impl Durable {
    pub(crate) fn new(synced: Option<Floor>) -> Self {
        Self { synced, asked: synced }
    }
}

impl Ctx {
    /// Ids up to this one are in use in this lineage: has more of them set aside where half a block is not left.
    pub(crate) fn set_aside(&mut self, lineage: Lineage, ballot: Ballot, used: ViewId) {
        self.set_aside_above(lineage, ballot, used, used);
    }

    /// The same where ids up to `used` are about to be in use, and those up to `given` are, or never will be. What is set aside for
    /// another lineage, or soon will be, may be given there: so nothing above `given` may be.
    pub(crate) fn set_aside_above(&mut self, lineage: Lineage, ballot: Ballot, used: ViewId, given: ViewId) {
        if self.foreign_floor(lineage) > given {
            return self.mark("what is set aside for another lineage is not set aside here");
        }
        let block = self.config.id_block;
        let Some(durable) = &mut self.durable else { return };
        let asked = durable.asked.map_or(0, |floor| floor.view.get());
        let same = durable.asked.is_some_and(|floor| floor.lineage == lineage);
        if same && used.get().saturating_add(block / 2) <= asked {
            return;
        }
        let view = used.get().saturating_add(block).max(asked).min(ViewId::BOUND - 1);
        let floor = Floor { view: ViewId::new(view), lineage, ballot };
        if durable.asked.is_some_and(|before| before.view == floor.view && before.lineage == lineage) {
            return; // All ids that there are.
        }
        durable.asked = Some(floor);
        self.push(Output::SetAside(floor));
    }

    /// The floor is on disk.
    pub(crate) fn is_set_aside(&mut self, floor: Floor) {
        if let Some(durable) = &mut self.durable
            && durable.synced.is_none_or(|before| before.view <= floor.view)
        {
            durable.synced = Some(floor);
        }
    }

    /// Up to where our own directory has set ids aside for this lineage.
    pub(crate) fn floor_in(&self, lineage: Lineage) -> ViewId {
        let synced = self.durable.as_ref().and_then(|durable| durable.synced);
        synced.map_or(ViewId::NONE, |floor| floor.counts_in(lineage))
    }

    /// Up to where it has set ids aside for another lineage, or soon will have.
    pub(crate) fn foreign_floor(&self, lineage: Lineage) -> ViewId {
        let asked = self.durable.as_ref().and_then(|durable| durable.asked);
        asked.filter(|floor| floor.lineage != lineage).map_or(ViewId::NONE, |floor| floor.view)
    }

    /// Ids up to here may have been given, or may yet be by way of what is on its way to the disk, as far as we know: a lineage
    /// that we found begins above.
    pub(crate) fn highest_or_floor(&self) -> ViewId {
        let asked = self.durable.as_ref().and_then(|durable| durable.asked);
        self.highest.max(asked.map_or(ViewId::NONE, |floor| floor.view))
    }
}

/// Up to where ids are set aside by enough of those who keep a floor: by a majority of `of` places, or by all keepers
/// where they are fewer than that (the rest keeps nothing, and nothing is promised for it). No bound without keepers.
pub(crate) fn bound(mut floors: Vec<ViewId>, of: usize) -> Option<ViewId> {
    let enough = (of / 2 + 1).min(floors.len());
    floors.sort_unstable_by(|a, b| b.cmp(a));
    floors.get(enough.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_majority_must_have_set_an_id_aside_or_all_where_few_keep_floors() {
        let floors = |ids: &[u64]| ids.iter().map(|id| ViewId::new(*id)).collect::<Vec<_>>();
        assert_eq!(bound(floors(&[9, 3, 7, 1, 5]), 5), Some(ViewId::new(5)));
        assert_eq!(bound(floors(&[9, 3]), 5), Some(ViewId::new(3)));
        assert_eq!(bound(floors(&[9, 3]), 2), Some(ViewId::new(3)));
        assert_eq!(bound(floors(&[4]), 1), Some(ViewId::new(4)));
        assert_eq!(bound(vec![], 5), None);
    }

    #[test]
    fn what_was_set_aside_for_another_lineage_counts_for_nothing() {
        let ballot = Ballot { round: 1, node: membership_types::NodeId::new(1, 1) };
        let floor = Floor { view: ViewId::new(500), lineage: Lineage::new(2, 2), ballot };
        let counts =
            [Lineage::new(3, 1), floor.lineage, Lineage::new(1, 9)].map(|l| floor.counts_in(l).get());
        assert_eq!(counts, [0, 500, 0]);
    }
}
