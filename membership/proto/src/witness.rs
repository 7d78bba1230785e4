//! The witness: who breaks the tie between two halves of a core.
//!
//! Exactly half of a core may go on without the other half only if that one cannot do the same (`quorum.rs`). Where there
//! is no witness the half with the core's senior is preferred. Where there is one, the half that it *recorded* first, and
//! no other: a record is written once, is kept under the entry that put the core in force, and says nothing about any
//! other core.
//!
//! * A witness has an *epoch*, made when its memory was first used: one that lost its memory has another epoch, and
//!   answers no claim under an older one. The entry that puts a core in force names the epoch under which halves of that
//!   core are recorded; a core without one is never decided by half of it.
//! * Core members ask now and then which epoch there is, and whether their core was claimed. A coordinator whose core
//!   cannot be claimed any more (other epoch, or a half was recorded and all came back) has the same core put in force
//!   anew, under a fresh entry.
//! * A half claims only when all else is there: the others' leases have lapsed, and all of it answered since.
//!
//! Questions and answers may be lost, late and repeated: an answer tells what is written, and that never changes.

use alloc::{collections::BTreeMap, vec::Vec};
use core::{fmt, num::ParseIntError, str::FromStr};

use membership_types::{
    Instant, Lineage, LogIndex, NodeId,
    trace::{Event, Process, lin},
};
use serde::{Deserialize, Serialize};

use crate::{
    ctx::{Ctx, Output},
    member::Member,
    plant::Plant,
};

/// So many records are remembered: those of the core in force, of one to come, and a few of old ones.
const RECORDS_KEPT: usize = 16;

/// What a witness's memory is called: another one for each memory that began empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(u64);

impl Epoch {
    /// From a random number.
    pub const fn new(random: u64) -> Self {
        Self(random)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ParseIntError;
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// Where a half of a core is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Warrant {
    /// The entry that put the core in force.
    pub core: LogIndex,
    /// In which memory.
    pub epoch: Epoch,
}

/// What a node asks the witness, about a core of its lineage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The lineage.
    pub lineage: Lineage,
    /// The entry that put the core in force.
    pub core: LogIndex,
    /// Record these, in order of their ids, unless others are recorded; only in a memory of this epoch.
    pub claim: Option<(Epoch, Vec<NodeId>)>,
}

/// What the witness says: what it has now, written durably, after it did what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The lineage that was asked about.
    pub lineage: Lineage,
    /// The core.
    pub core: LogIndex,
    /// What its memory is called.
    pub epoch: Epoch,
    /// What is recorded for that core, if anything.
    pub record: Option<Vec<NodeId>>,
}

/// A witness's memory for one cluster, as a value: what a real one does with files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keeper {
    epoch: Epoch,
    records: BTreeMap<(Lineage, LogIndex), Vec<NodeId>>,
    /// It writes records again.
    #[cfg(feature = "plant")]
    pub overwrites: bool,
}

impl Keeper {
    /// One that knows nothing.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            records: BTreeMap::new(),
            #[cfg(feature = "plant")]
            overwrites: false,
        }
    }

    /// What its memory is called.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Does what it is asked.
    pub fn answer(&mut self, question: Question) -> Answer {
        let Question { lineage, core, claim } = question;
        if let Some((epoch, half)) = claim
            && epoch == self.epoch
        {
            #[cfg(feature = "plant")]
            if self.overwrites {
                self.records.remove(&(lineage, core));
            }
            self.records.entry((lineage, core)).or_insert(half);
        }
        let record = self.records.get(&(lineage, core)).cloned();
        Answer { lineage, core, epoch: self.epoch, record }
    }
}

/// What a node knows of the witness.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(crate) struct Witness {
    /// The epoch that it told last.
    pub(crate) epoch: Option<Epoch>,
    records: BTreeMap<(Lineage, Warrant), Vec<NodeId>>,
    /// When it was last asked what it has.
    looked: Option<Instant>,
    /// Before that nothing is claimed again.
    next_claim: Instant,
}

impl Ctx {
    /// Which of two halves of a core may go on, as far as it is about which of them, and not about whether the other one
    /// has stopped: what holds for this half cannot hold for the other.
    pub(crate) fn is_preferred(
        &self,
        lineage: Lineage,
        core: &[NodeId],
        warrant: Option<Warrant>,
        half: &[NodeId],
    ) -> bool {
        if self.planted(Plant::AnyHalf) {
            return true;
        }
        let senior = core.first().is_some_and(|senior| half.contains(senior));
        if !self.config.terms.witness {
            return senior;
        }
        if senior && self.planted(Plant::WitnessOrSenior) {
            return true;
        }
        let Some(warrant) = warrant.map(|warrant| self.compared(warrant)) else { return false };
        let record = self.witness.records.get(&(lineage, warrant));
        record.is_some_and(|record| *record == sorted(half) || self.planted(Plant::AnyRecord))
    }

    /// Claims a core for this half of it, unless it is known to whom it is given, or was asked just now.
    pub(crate) fn claim(&mut self, lineage: Lineage, warrant: Option<Warrant>, half: &[NodeId]) {
        let Some(warrant) = warrant.filter(|_| self.config.terms.witness) else { return };
        let warrant = self.compared(warrant);
        if self.now < self.witness.next_claim || self.witness.records.contains_key(&(lineage, warrant)) {
            return;
        }
        // Where there is another memory now, the right one may yet come back; that is not worth much noise.
        let other = self.witness.epoch.is_some_and(|epoch| epoch != warrant.epoch);
        self.witness.next_claim = self.now.after(if other { self.lease() } else { self.config.heartbeat });
        self.mark("half of a core asks the witness");
        let claim = Some((warrant.epoch, sorted(half)));
        self.push(Output::AskWitness(Question { lineage, core: warrant.core, claim }));
    }

    /// With which epoch a record must have been made to count.
    fn compared(&self, warrant: Warrant) -> Warrant {
        let present = self.witness.epoch.filter(|_| self.planted(Plant::IgnoreEpoch));
        Warrant { epoch: present.unwrap_or(warrant.epoch), ..warrant }
    }

    /// The witness answers.
    pub(crate) fn on_witness(&mut self, answer: Answer) {
        let Answer { lineage, core, epoch, record } = answer;
        if self.witness.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            self.mark("the witness has another memory");
        }
        let Some(record) = record else { return };
        let key = (lineage, Warrant { core, epoch });
        if self.witness.records.contains_key(&key) {
            return;
        }
        self.trace(|_| Event::Witness {
            lin: lin(lineage),
            core: core.get(),
            epoch: alloc::format!("{epoch}"),
            half: record.iter().map(|id| Process::from(*id)).collect(),
        });
        self.witness.records.insert(key, record);
        if self.witness.records.len() > RECORDS_KEPT {
            // Of an older core, or another lineage; if it is needed after all it is asked for again.
            let oldest = self.witness.records.keys().find(|known| **known != key).copied();
            oldest.map(|oldest| self.witness.records.remove(&oldest));
        }
    }

    /// Was a half of this core recorded? Then no other one ever is.
    pub(crate) fn is_claimed(&self, lineage: Lineage, warrant: Warrant) -> bool {
        self.witness.records.contains_key(&(lineage, warrant))
    }
}

impl Member {
    /// Core members look now and then what the witness has; the coordinator, who must act on it, more often.
    pub(crate) fn look_at_witness(&mut self, ctx: &mut Ctx) {
        if ctx.now < self.next_look(ctx) {
            return;
        }
        let Some(acceptor) = &self.acceptor else { return };
        ctx.witness.looked = Some(ctx.now);
        let core = acceptor.state.warrant.map_or(acceptor.state.index, |warrant| warrant.core);
        ctx.push(Output::AskWitness(Question { lineage: self.lineage, core, claim: None }));
    }

    /// When that is.
    pub(crate) fn next_look(&self, ctx: &Ctx) -> Instant {
        let looks = ctx.config.terms.witness
            && self.is_installed()
            && self.acceptor.as_ref().is_some_and(|a| a.state.core.contains(&ctx.me()));
        if !looks {
            return Instant::MAX;
        }
        let pause = ctx.lease() * if self.office.is_some() { 1 } else { 4 };
        ctx.witness.looked.map_or(Instant::ZERO, |at| at.after(pause))
    }
}

/// Why one who has a witness, or not, cannot come to one who has none, or one.
pub(crate) fn disagreement(comes: bool, stays: bool) -> Option<&'static str> {
    match (comes, stays) {
        (true, false) => Some(
            "the cluster has no witness, and this node has one: start it without --witness (a cluster has one from its \
             founding on, or never)",
        ),
        (false, true) => {
            Some("the cluster has a witness, and this node has none: start it with the cluster's --witness")
        }
        _ => None,
    }
}

/// Halves are compared and written by ids.
fn sorted(half: &[NodeId]) -> Vec<NodeId> {
    let mut half = half.to_vec();
    half.sort_unstable();
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_record_is_written_once_and_only_in_the_memory_that_was_meant() {
        let (lineage, core) = (Lineage::new(1, 1), LogIndex::new(7));
        let half = |n: u32| vec![NodeId::new(n, 1)];
        let claim =
            |epoch: u64, n: u32| Question { lineage, core, claim: Some((Epoch::new(epoch), half(n))) };
        let mut keeper = Keeper::new(Epoch::new(5));
        assert_eq!(keeper.answer(claim(4, 1)).record, None, "another memory");
        assert_eq!(keeper.answer(claim(5, 1)).record, Some(half(1)));
        assert_eq!(keeper.answer(claim(5, 2)).record, Some(half(1)), "the first");
        assert_eq!(keeper.answer(Question { lineage, core, claim: None }).record, Some(half(1)));
        let other = Question { core: core.next(), ..claim(5, 2) };
        assert_eq!(keeper.answer(other).record, Some(half(2)), "another core");
        assert_eq!("0000000000000005".parse(), Ok(keeper.epoch()));
        assert_eq!(alloc::format!("{}", keeper.epoch()), "0000000000000005");
    }
}
