//! The models that are run before every change, and those that are run now and then.

use membership_multicast::Class::{self, Fifo, Ordered, Safe};

use crate::{
    flush::Flush,
    search::{Found, Limits, search},
    takeover::{Budget, Delivery, Takeover},
};

/// A model of either kind.
#[derive(Clone, Debug)]
pub enum Case {
    /// See [`Takeover`].
    Takeover(Takeover),
    /// See [`Flush`].
    Flush(Flush),
}

impl Case {
    /// Searches it.
    pub fn search(self, limits: Limits) -> Found {
        match self {
            Self::Takeover(model) => search(model, limits),
            Self::Flush(model) => search(model, limits),
        }
    }
}

/// A cluster of so many nodes in which messages arrive at once but for these faults; time has no end.
pub fn takeover(nodes: usize, budget: Budget) -> Takeover {
    Takeover { nodes, delivery: Delivery::Prompt, budget, horizon: 0, rounds: 4, witness: false, plant: None }
}

/// The same with a witness.
pub fn witnessed(nodes: usize, budget: Budget) -> Takeover {
    Takeover { witness: true, ..takeover(nodes, budget) }
}

/// Members that go through these views and say these words.
pub fn flush(views: &[&[usize]], words: &[(usize, Class)], mortal: Option<usize>, breaks: u8) -> Flush {
    let views = views.iter().map(|v| v.to_vec()).collect();
    let words = words.to_vec();
    Flush { views, words, mortal, breaks, pieces: false, lazy: false, patient: true, plant: None }
}

const NONE: Budget = Budget {
    cuts: 0,
    holds: 0,
    crashes: 0,
    proofs: 0,
    restarts: 0,
    stalls: 0,
    step_downs: 0,
    leaves: 0,
    mutes: 0,
    forgets: 0,
    words: 0,
};

/// Those that are run before every change, each to its end.
pub fn bounded() -> Vec<(&'static str, Case)> {
    let split = Budget { cuts: 1, ..NONE };
    let death = Budget { crashes: 1, proofs: 1, ..NONE };
    let both = Budget { cuts: 1, crashes: 1, proofs: 1, ..NONE };
    let late = Takeover { horizon: 6, ..takeover(3, Budget { cuts: 1, holds: 1, ..NONE }) };
    let free = Takeover { delivery: Delivery::Free { capacity: 2 }, horizon: 5, ..takeover(2, NONE) };
    vec![
        ("2 nodes: messages whenever they like", Case::Takeover(free)),
        ("2 nodes: a cut, a death", Case::Takeover(takeover(2, both))),
        ("3 nodes: a cut, a late message", Case::Takeover(late)),
        ("3 nodes: a death, a new start", Case::Takeover(takeover(3, Budget { restarts: 1, ..death }))),
        (
            "3 nodes: a leader steps down, a death",
            Case::Takeover(takeover(3, Budget { step_downs: 1, ..death })),
        ),
        ("3 nodes: one leaves, one stands still", {
            Case::Takeover(takeover(3, Budget { leaves: 1, stalls: 1, ..NONE }))
        }),
        ("2 nodes and a witness: a cut, a death", Case::Takeover(witnessed(2, both))),
        ("2 nodes and a witness: a cut, a lost memory", {
            Case::Takeover(witnessed(2, Budget { cuts: 1, forgets: 1, ..NONE }))
        }),
        ("4 nodes and a witness: a cut", Case::Takeover(witnessed(4, split))),
        ("4 nodes: a cut", Case::Takeover(takeover(4, split))),
        ("4 nodes: a death", Case::Takeover(takeover(4, death))),
        ("flush: a member dies", Case::Flush(flush(&[&[0, 1, 2], &[0, 1]], &[(0, Safe)], Some(2), 0))),
        ("flush: the leader dies", Case::Flush(flush(&[&[0, 1, 2], &[1, 2]], &[(1, Ordered)], Some(0), 0))),
        ("flush: a view is overtaken", {
            Case::Flush(flush(&[&[0, 1], &[1, 0], &[0, 1]], &[(0, Safe), (1, Ordered)], None, 0))
        }),
        (
            "flush: a connection breaks",
            Case::Flush(flush(&[&[0, 1], &[1, 0]], &[(0, Safe), (1, Fifo)], None, 1)),
        ),
        ("flush: one comes", Case::Flush(flush(&[&[0, 1], &[0, 1, 2]], &[(0, Safe), (1, Ordered)], None, 0))),
        ("flush: one comes, and goes before it is there", {
            Case::Flush(flush(&[&[0, 1], &[0, 1, 2], &[0, 1]], &[(1, Ordered)], Some(2), 0))
        }),
    ]
}

/// Larger ones; most have no end that can be reached.
pub fn long() -> Vec<(&'static str, Case)> {
    let both = Budget { cuts: 1, crashes: 1, proofs: 1, ..NONE };
    let all: &[&[usize]] = &[&[0, 1, 2], &[0, 1]];
    let orphaned: &[&[usize]] = &[&[0, 1, 2], &[1, 2]];
    let overtaken: &[&[usize]] = &[&[0, 1, 2], &[1, 2, 0], &[1, 2]];
    let joined: &[&[usize]] = &[&[0, 1, 2], &[0, 1, 2, 3], &[0, 1, 3]];
    let free = Takeover { delivery: Delivery::Free { capacity: 3 }, horizon: 6, ..takeover(3, NONE) };
    let hasty = Flush { patient: false, ..flush(joined, &[(0, Ordered), (1, Safe)], Some(2), 0) };
    let lossy = Flush { lazy: true, ..flush(orphaned, &[(1, Safe)], Some(0), 1) };
    let pieces = Flush { pieces: true, ..flush(all, &[(0, Safe), (2, Ordered)], Some(2), 0) };
    vec![
        ("3 nodes: a cut, a late message", Case::Takeover(takeover(3, Budget { cuts: 1, holds: 1, ..NONE }))),
        ("3 nodes: two cuts", Case::Takeover(takeover(3, Budget { cuts: 2, ..NONE }))),
        ("3 nodes: a cut, a death", Case::Takeover(takeover(3, both))),
        ("3 nodes: a cut, a death, a late message", Case::Takeover(takeover(3, Budget { holds: 1, ..both }))),
        ("3 nodes: a cut, a death, a new start", Case::Takeover(takeover(3, Budget { restarts: 1, ..both }))),
        ("4 nodes: a cut, a death", Case::Takeover(takeover(4, both))),
        ("2 nodes that multicast: a cut, a message", {
            Case::Takeover(takeover(2, Budget { words: 1, cuts: 1, ..NONE }))
        }),
        ("3 nodes that multicast: a death, a message", {
            Case::Takeover(takeover(3, Budget { words: 1, crashes: 1, proofs: 1, ..NONE }))
        }),
        ("3 nodes that multicast: a cut, a death, two messages", {
            Case::Takeover(takeover(3, Budget { words: 2, ..both }))
        }),
        ("3 nodes: messages whenever they like", Case::Takeover(free)),
        ("2 nodes and a witness: a cut, a late message, a lost memory, one does not reach it", {
            Case::Takeover(witnessed(2, Budget { cuts: 1, holds: 1, forgets: 1, mutes: 1, ..NONE }))
        }),
        (
            "flush: a member dies",
            Case::Flush(flush(all, &[(0, Ordered), (1, Safe), (2, Ordered)], Some(2), 0)),
        ),
        ("flush: the leader dies, a connection breaks", {
            Case::Flush(flush(orphaned, &[(0, Safe), (1, Safe)], Some(0), 1))
        }),
        ("flush: a view is overtaken", Case::Flush(flush(overtaken, &[(0, Safe), (1, Ordered)], Some(0), 0))),
        ("flush: one joins", Case::Flush(flush(joined, &[(0, Ordered), (1, Safe)], Some(2), 0))),
        ("flush: one joins, and all close at once", Case::Flush(hasty)),
        ("flush: several frames at once", Case::Flush(lossy)),
        ("flush: messages in pieces", Case::Flush(pieces)),
    ]
}
