//! Which clone of each RACS a client's connection is with, for protocols whose clients cannot remember it.

use std::cell::RefCell;

use router_proto::{RacsId, sticky::CloneTag};

/// At most one for each RACS of a service; nothing where clients do not stick.
#[derive(Default)]
pub(crate) struct Placements(RefCell<Vec<(RacsId, CloneTag)>>);

impl Placements {
    /// The clone of this RACS that the client was with last.
    pub fn of(&self, racs: RacsId) -> Option<CloneTag> {
        self.0.borrow().iter().find(|(known, _)| *known == racs).map(|(_, clone)| *clone)
    }

    /// Notes which clone of this RACS the client is with.
    pub fn note(&self, racs: RacsId, clone: CloneTag) {
        let mut placed = self.0.borrow_mut();
        match placed.iter_mut().find(|(known, _)| *known == racs) {
            Some((_, known)) => *known = clone,
            None => placed.push((racs, clone)),
        }
    }
}
