//! What is held on disks, as ledgers know it, and what they say to each other about it.

use std::collections::BTreeSet;

use bytes::Bytes;
use membership_types::NodeId;
use serde::{Deserialize, Serialize};

/// A data directory. Never copied into another one that is in use. Those up to [`MOST`] are places that no directory has taken
/// yet.
pub(crate) type DirId = u64;

/// Terms and positions are below this.
pub(crate) const BOUND: u64 = 1 << 62;
/// The most directories of one group.
pub(crate) const MOST: usize = 255;

/// How far a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) term: u64,
    pub(crate) pos: u64,
}

/// What is on a disk once something was written there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of which history. Places of two histories say nothing about each other.
    pub(crate) history: u64,
    pub(crate) place: Place,
    pub(crate) promised: u64,
}

impl Mark {
    /// Once all of this is on disk.
    pub(super) fn of(held: Option<&Held>, promised: u64) -> Self {
        let (history, place) = held.map_or((0, Place::default()), |held| (held.history, held.place));
        Self { history, place, promised }
    }
}

/// The directories that count, and those before a change that is not settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holders {
    pub(crate) now: Vec<DirId>,
    pub(crate) before: Option<Vec<DirId>>,
}

impl Holders {
    /// Is it true of a majority; while a change is not settled, of the majorities before and after it?
    pub(crate) fn majority(&self, has: impl Fn(DirId) -> bool) -> bool {
        let most = |of: &[DirId]| 2 * of.iter().filter(|dir| has(**dir)).count() > of.len();
        most(&self.now) && self.before.as_deref().is_none_or(most)
    }

    /// The highest position that a majority has reached.
    pub(super) fn reached(&self, at: impl Fn(DirId) -> u64) -> u64 {
        let highest = |of: &[DirId]| {
            let mut all: Vec<u64> = of.iter().map(|dir| at(*dir)).collect();
            all.sort_unstable();
            // The lowest of the highest majority.
            all.get(all.len().saturating_sub(all.len() / 2 + 1)).copied().unwrap_or(0)
        };
        highest(&self.now).min(self.before.as_deref().map_or(u64::MAX, highest))
    }

    pub(crate) fn is_sound(&self) -> bool {
        let unique = |of: &[DirId]| of.iter().collect::<BTreeSet<_>>().len() == of.len();
        let fits = |of: &[DirId]| !of.is_empty() && of.len() <= MOST && unique(of);
        fits(&self.now) && self.before.as_deref().is_none_or(fits)
    }
}

/// A history that somebody holds, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// A group that begins with nothing, or by an operator's order, begins a new one.
    pub(crate) history: u64,
    pub(crate) place: Place,
    pub(crate) holders: Holders,
    /// How many commands it has: with none, nobody was ever told that something is done.
    pub(crate) commands: u64,
}

/// What is written to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A command of a member. It has a position, as all have but promises.
    Command { from: NodeId, command: Bytes },
    /// A view, in the encoding of the shell.
    View(Bytes),
    /// A term begins.
    Term(u64),
    /// Other directories count from now on, once that is settled.
    Holders(Vec<DirId>),
    /// The last such change is on the disks of both majorities.
    Settled,
    /// Nothing of an older term is said to be on disk from now on.
    Promise(u64),
}

impl Held {
    /// A history that begins, in one directory.
    #[cfg(feature = "fuzz")]
    pub(crate) fn begin(dir: DirId) -> Self {
        let holders = Holders { now: vec![dir], before: None };
        Self { history: 1, place: Place::default(), holders, commands: 0 }
    }

    /// What an entry does to it. False if it cannot follow.
    pub(crate) fn follow(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Promise(_) => return true,
            Entry::Command { .. } => self.commands += 1,
            Entry::View(_) => {}
            Entry::Term(term) if *term > self.place.term => self.place.term = *term,
            Entry::Holders(now) if self.holders.before.is_none() => {
                let before = std::mem::replace(&mut self.holders.now, now.clone());
                self.holders.before = Some(before);
            }
            Entry::Settled if self.holders.before.is_some() => self.holders.before = None,
            Entry::Term(_) | Entry::Holders(_) | Entry::Settled => return false,
        }
        self.place.pos += 1;
        self.is_sound()
    }

    pub(crate) fn is_sound(&self) -> bool {
        let Place { term, pos } = self.place;
        term.max(pos).max(self.commands) < BOUND && self.holders.is_sound()
    }
}

/// What a member has when nobody is known to have the group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    pub(crate) view: u64,
    pub(crate) dir: DirId,
    pub(crate) held: Option<Held>,
    pub(crate) promised: u64,
    /// Random: names a history that begins.
    pub(crate) nonce: u64,
    /// So many directories the group is to begin with.
    pub(crate) expected: u64,
    /// An operator says that what is missing is not to be waited for.
    pub(crate) accept: bool,
}

/// What ledgers say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Say {
    Hold(Hold),
    /// The term is promised, on disk.
    Vote {
        view: u64,
        term: u64,
    },
    /// So far the directory has it all on disk.
    Synced {
        dir: DirId,
        place: Place,
        promised: u64,
        /// Of which history: this may be heard late, where the group goes on with another one. Builds before this one do not
        /// say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        history: Option<u64>,
    },
    Holders {
        term: u64,
        was: Vec<DirId>,
        now: Vec<DirId>,
    },
    Settled {
        term: u64,
        now: Vec<DirId>,
    },
}

impl Say {
    /// What changes ledgers has a place in the one order; what only tells of a disk needs none.
    pub(crate) fn is_ordered(&self) -> bool {
        !matches!(self, Self::Synced { .. })
    }
}

/// What goes with a state that is given to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The view that the state reflects.
    pub(crate) view: u64,
    /// The group's state; otherwise nobody is known to have that.
    pub(crate) whole: Option<Held>,
    pub(crate) holds: Vec<(NodeId, Hold)>,
    pub(crate) dirs: Vec<(NodeId, DirId)>,
    pub(crate) synced: Vec<(DirId, u64)>,
}
