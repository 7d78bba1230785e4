//! Which versions of the protocol two builds speak, and why they may have none in common.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::{MAX_FRAME, MAX_STATE};

/// The versions of the protocol that a build speaks: between two nodes, the highest that both speak counts.
///
/// 2. Whatever is not understood ends the connection.
/// 3. Messages of unknown kinds are skipped and counted.
/// 4. Frames may be as large as a large cluster's state.
/// 5. They may come in pieces.
/// 6. The first member of a large group's view passes on what the others say about its closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    pub(crate) min: u8,
    pub(crate) max: u8,
}

impl Versions {
    pub(crate) const OURS: Self = Self { min: 2, max: 6 };

    /// The largest frame that a node with this version takes.
    pub(crate) fn largest(common: u8) -> usize {
        if common >= 4 { MAX_STATE } else { MAX_FRAME }
    }

    /// Does such a node take frames in pieces?
    pub(crate) fn takes_pieces(common: u8) -> bool {
        common >= 5
    }

    /// Does such a node pass on what members say, and take what was?
    pub(crate) fn passes_on(common: u8) -> bool {
        common >= 6
    }

    /// Of builds that do not say it.
    pub(super) fn before() -> Self {
        Self { min: 2, max: 2 }
    }

    /// The version that two nodes use.
    pub(crate) fn common(self, other: Self) -> Option<u8> {
        let max = self.max.min(other.max);
        (max >= self.min.max(other.min)).then_some(max)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "versions {} to {}", self.min, self.max)
    }
}

/// Why two nodes cannot talk, as seen by one of them.
pub(super) fn no_common(theirs: Versions, ours: Versions) -> String {
    let older = if theirs.max < ours.max { "the other side" } else { "this node" };
    format!(
        "the other side speaks {theirs} of the protocol, this node {ours}, none of which both do: start {older} with a newer build; \
         where builds lie that far apart, go through one in between"
    )
}
