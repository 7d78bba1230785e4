//! Agreement on the log: GM6 a quorum accepted what makes a view before anybody installed it, GM6a no position of
//! the log is decided twice.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::{Bal, Process};

use crate::{
    book::{At, Book, Evidence, Lin, list},
    report::Predicate,
};

/// How many positions of each log are kept. Views are installed by somebody right after their entry is decided, so
/// that nothing is judged by entries so old.
const KEPT: usize = 65_536;

/// One entry under one ballot, and who accepted it.
#[derive(Debug)]
struct Vote {
    ballot: Bal,
    digest: Box<str>,
    by: BTreeMap<Process, At>,
}

impl Vote {
    fn tell(&self, idx: u64) -> impl Iterator<Item = Evidence> + '_ {
        let Bal(round, node) = self.ballot;
        self.by.iter().map(move |(p, at)| {
            (*at, format!("{p} accepts {} at entry {idx} under ballot {round} of {node}", self.digest))
        })
    }
}

#[derive(Debug, Default)]
struct Position {
    votes: Vec<Vote>,
    /// The vote by which the entry is known to be decided.
    decided: Option<usize>,
    /// The view that the entry made, and who installed it first.
    made: Option<(u64, At)>,
}

#[derive(Debug, Default)]
struct Log {
    positions: BTreeMap<u64, Position>,
    /// The core in force from each entry on.
    cores: BTreeMap<u64, (Core, At)>,
}

/// The entry that put a core in force, and the epoch of the witness under which halves of it are recorded.
type Warrant = (u64, Box<str>);

/// Who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    pub(crate) members: Vec<Process>,
    pub(crate) warrant: Option<Warrant>,
}

impl Log {
    fn core_at(&self, idx: u64) -> Option<&(Core, At)> {
        self.cores.range(..=idx).next_back().map(|(_, core)| core)
    }
}

/// A first install that no quorum is known for yet; judged once its instant is over, because records of one instant
/// have no order.
#[derive(Debug)]
struct Pending {
    lin: Lin,
    idx: u64,
    vid: u64,
    by: Process,
    at: At,
}

/// An entry's position, and the core that it puts in force, if it does.
type Stored = (u64, Option<Core>);

/// The logs of all lineages, and the proofs of death.
#[derive(Debug, Default)]
pub(crate) struct Quorum {
    logs: BTreeMap<Lin, Log>,
    /// Proofs that came to somebody who held a lease: (prover, dead).
    proofs: BTreeMap<(Process, Process), At>,
    pending: Vec<Pending>,
    /// The latest core that each process told, by the entry from which it is in force.
    told: BTreeMap<(Lin, Process), u64>,
    /// The latest entry that each process stored, with the core that it puts in force, where it changes the core.
    stored: BTreeMap<(Lin, Process), Stored>,
    /// There is a witness.
    pub(crate) witnessed: bool,
    /// What it recorded.
    records: BTreeMap<(Lin, Warrant), (BTreeSet<Process>, At)>,
}

/// Whether processes can decide; what is worse is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outlook {
    Can,
    /// It rests on what the witness has.
    Unknown,
    Cannot,
}

/// How a set of processes relates to a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Majority,
    /// Exactly half, and it has the senior (the witness's record, where there is one), or a leased proof that one of the
    /// other half is dead.
    GoodHalf,
    /// Exactly half, and the witness has recorded none so far, as far as the trace tells.
    OpenHalf,
    TooFew,
}

impl Quorum {
    /// A core member learns which core is in force from an entry on.
    pub(crate) fn core(
        &mut self,
        book: &mut Book,
        lin: Lin,
        idx: u64,
        core: Core,
        by: Option<Process>,
        at: At,
    ) {
        if let Some(by) = by {
            let known = self.told.entry((lin, by)).or_default();
            *known = (*known).max(idx);
        }
        let log = self.logs.entry(lin).or_default();
        let Some((known, then)) = log.cores.get(&idx) else {
            log.cores.insert(idx, (core, at));
            return;
        };
        if *known != core {
            let tell = |core: &Core| match &core.warrant {
                None => format!("the core from entry {idx} on is {}", list(&core.members)),
                Some((made, epoch)) => {
                    let members = list(&core.members);
                    format!(
                        "the core from entry {idx} on is {members}, put in force by entry {made}, epoch {epoch}"
                    )
                }
            };
            let evidence = vec![(*then, tell(known)), (at, tell(&core))];
            book.violated(Predicate::GM6, format!("two cores are in force from entry {idx} on"), evidence);
        }
    }

    /// The witness has recorded a half.
    pub(crate) fn recorded(&mut self, book: &mut Book, lin: Lin, warrant: Warrant, half: &[Process], at: At) {
        let half: BTreeSet<Process> = half.iter().copied().collect();
        let (made, epoch) = warrant.clone();
        let Some((known, then)) = self.records.get(&(lin, warrant.clone())) else {
            self.records.insert((lin, warrant), (half, at));
            return;
        };
        if *known != half {
            let tell = |half: &BTreeSet<Process>| {
                let half: Vec<Process> = half.iter().copied().collect();
                format!(
                    "the witness has recorded {} for the core of entry {made}, epoch {epoch}",
                    list(&half)
                )
            };
            let evidence = vec![(*then, tell(known)), (at, tell(&half))];
            let what = format!("two halves are recorded for the core of entry {made} under one epoch");
            book.violated(Predicate::GM6, what, evidence);
        }
    }

    /// A process has proof of another one's death.
    pub(crate) fn proof(&mut self, p: Process, q: Process, leased: bool, at: At) {
        if leased {
            self.proofs.entry((p, q)).or_insert(at);
        }
    }

    /// A core member accepts an entry.
    #[allow(clippy::too_many_arguments, reason = "the fields of one event")]
    pub(crate) fn accept(
        &mut self,
        book: &mut Book,
        lin: Lin,
        idx: u64,
        ballot: Bal,
        digest: &str,
        p: Process,
        at: At,
    ) {
        let log = self.logs.entry(lin).or_default();
        let oldest = log.positions.keys().next().copied();
        if log.positions.len() >= KEPT && oldest.is_some_and(|oldest| idx < oldest) {
            return;
        }
        let position = log.positions.entry(idx).or_default();
        let found = position.votes.iter().position(|v| v.ballot == ballot && *v.digest == *digest);
        let vote = found.unwrap_or_else(|| {
            position.votes.push(Vote { ballot, digest: digest.into(), by: BTreeMap::new() });
            position.votes.len() - 1
        });
        position.votes[vote].by.entry(p).or_insert(at);
        if found.is_none() {
            Self::check_one_entry_per_ballot(book, position, idx, vote);
        }
        let log = &self.logs[&lin];
        let majority = |core| self.share(core, lin, idx, vote) == Share::Majority;
        if log.core_at(idx).is_some_and(|(core, _)| majority(core)) {
            self.decide(book, lin, idx, vote);
        }
        let log = self.logs.entry(lin).or_default();
        if log.positions.len() > KEPT {
            log.positions.pop_first();
        }
    }

    /// A ballot belongs to one coordinator, who proposes one entry for a position.
    fn check_one_entry_per_ballot(book: &mut Book, position: &Position, idx: u64, vote: usize) {
        let new = &position.votes[vote];
        let Some(other) = position.votes.iter().find(|v| v.ballot == new.ballot && v.digest != new.digest)
        else {
            return;
        };
        let what = format!("ballot {} of {} has two entries {idx}", new.ballot.0, new.ballot.1);
        book.violated(Predicate::GM6a, what, other.tell(idx).chain(new.tell(idx)).collect());
    }

    fn share(&self, core: &Core, lin: Lin, idx: u64, vote: usize) -> Share {
        let vote = &self.logs[&lin].positions[&idx].votes[vote];
        self.share_of(core, lin, |p| vote.by.contains_key(&p))
    }

    fn share_of(&self, core: &Core, lin: Lin, has: impl Fn(Process) -> bool) -> Share {
        let (with, without): (Vec<Process>, Vec<Process>) = core.members.iter().partition(|p| has(**p));
        let proved = || with.iter().any(|p| without.iter().any(|q| self.proofs.contains_key(&(*p, *q))));
        if with.len() > without.len() {
            return Share::Majority;
        }
        if with.len() < without.len() || with.is_empty() {
            return Share::TooFew;
        }
        if proved() {
            return Share::GoodHalf;
        }
        if !self.witnessed {
            return if has(core.members[0]) { Share::GoodHalf } else { Share::TooFew };
        }
        let Some(warrant) = &core.warrant else { return Share::TooFew };
        match self.records.get(&(lin, warrant.clone())) {
            Some((half, _)) if half.iter().eq(BTreeSet::from_iter(&with)) => Share::GoodHalf,
            Some(_) => Share::TooFew,
            None => Share::OpenHalf,
        }
    }

    /// An entry is known to be decided.
    fn decide(&mut self, book: &mut Book, lin: Lin, idx: u64, vote: usize) {
        let Some(position) = self.logs.get_mut(&lin).and_then(|log| log.positions.get_mut(&idx)) else {
            return;
        };
        let Some(before) = position.decided else {
            position.decided = Some(vote);
            book.judged(Predicate::GM6a);
            return;
        };
        let (first, second) = (&position.votes[before], &position.votes[vote]);
        if first.digest != second.digest {
            let what = format!("entry {idx} is decided as {} and as {}", first.digest, second.digest);
            book.violated(Predicate::GM6a, what, first.tell(idx).chain(second.tell(idx)).collect());
        }
    }

    /// A process installs the cluster view that an entry made.
    pub(crate) fn installed(&mut self, book: &mut Book, lin: Lin, idx: u64, vid: u64, by: Process, at: At) {
        let Some(log) = self.logs.get_mut(&lin) else { return };
        if log.positions.keys().next().is_some_and(|oldest| idx < *oldest) && log.positions.len() >= KEPT {
            return;
        }
        let position = log.positions.entry(idx).or_default();
        match position.made {
            None => position.made = Some((vid, at)),
            Some((made, _)) if made == vid => return,
            Some((made, then)) => {
                let what = format!("entry {idx} makes view {made} and view {vid}");
                let evidence = vec![
                    (then, format!("view {made}, made by entry {idx}, is installed")),
                    (at, format!("{by} installs view {vid}, made by entry {idx}")),
                ];
                book.violated(Predicate::GM6, what, evidence);
                return;
            }
        }
        let pending = Pending { lin, idx, vid, by, at };
        if !self.settle(book, &pending) {
            self.pending.push(pending);
        }
    }

    /// Time has come to `t`: what no quorum was found for before is a violation.
    pub(crate) fn time(&mut self, book: &mut Book, t: u64) {
        while self.pending.first().is_some_and(|p| p.at.t < t) {
            let pending = self.pending.remove(0);
            self.overdue(book, &pending);
        }
    }

    /// Is there a quorum for it? True also where the trace does not say who decides.
    fn settle(&mut self, book: &mut Book, pending: &Pending) -> bool {
        let Pending { lin, idx, .. } = *pending;
        let log = &self.logs[&lin];
        let Some((core, _)) = log.core_at(idx) else { return false };
        let votes = log.positions.get(&idx).map_or(0, |p| p.votes.len());
        let shares: Vec<Share> = (0..votes).map(|vote| self.share(core, lin, idx, vote)).collect();
        let majority = shares.iter().position(|s| *s == Share::Majority);
        let halves: Vec<usize> = (0..votes).filter(|v| shares[*v] == Share::GoodHalf).collect();
        if let Some(vote) = majority.or_else(|| halves.first().copied()) {
            book.judged(Predicate::GM6);
            // Which of two halves went on cannot be told from what they accepted.
            if majority.is_some() || halves.len() == 1 {
                self.decide(book, lin, idx, vote);
            }
            return true;
        }
        false
    }

    fn overdue(&mut self, book: &mut Book, pending: &Pending) {
        if self.settle(book, pending) {
            return;
        }
        let Pending { lin, idx, vid, by, at } = *pending;
        let log = &self.logs[&lin];
        let Some((core, then)) = log.core_at(idx) else { return };
        let mut evidence = vec![
            (*then, format!("the core is {}", list(&core.members))),
            (at, format!("{by} installs view {vid}, made by entry {idx}")),
        ];
        let votes = log.positions.get(&idx).map_or(&[][..], |p| &p.votes);
        let in_core = |v: &Vote| v.by.keys().filter(|p| core.members.contains(p)).count();
        let best = votes.iter().max_by_key(|v| in_core(v));
        let got = best.map_or(0, in_core);
        evidence.extend(best.into_iter().flat_map(|v| v.tell(idx)));
        let all = core.members.len();
        let what = format!("view {vid} is installed, but {got} of {all} in the core accepted entry {idx}");
        book.violated(Predicate::GM6, what, evidence);
    }

    /// Who first proposed the entry that was decided at this position, and when it was first accepted from there. Who adopts an
    /// entry proposes it under a ballot of its own, which is higher. Two coordinators may also have thought of the same entry, each
    /// by itself; what the one with the lower ballot proposed may be accepted later.
    pub(crate) fn sponsor(&self, lin: Lin, idx: u64) -> Option<(Process, At)> {
        let position = self.logs.get(&lin)?.positions.get(&idx)?;
        let digest = &position.votes.get(position.decided?)?.digest;
        let proposed =
            position.votes.iter().filter(|vote| vote.digest == *digest).min_by_key(|vote| vote.ballot)?;
        Some((proposed.ballot.1, *proposed.by.values().min()?))
    }

    /// The core in force after everything that the trace tells of a lineage.
    pub(crate) fn last_core(&self, lin: Lin) -> Option<&(Core, At)> {
        self.logs.get(&lin)?.core_at(u64::MAX)
    }

    /// A process stores an entry.
    pub(crate) fn stored(&mut self, lin: Lin, idx: u64, p: Process, core: Option<Core>) {
        self.stored.insert((lin, p), (idx, core));
    }

    /// Could these processes decide in a lineage (S2), as far as the trace tells? In the latest core, in the cores that
    /// its living members know (a change that only the dead knew of cannot be finished), and in those that entries put in
    /// force which they stored and may have to finish. `reached` is the epoch of the witness, if all of them reach it.
    pub(crate) fn can_decide(
        &self,
        lin: Lin,
        living: &BTreeSet<Process>,
        reached: Option<&str>,
    ) -> Option<Outlook> {
        let (core, _) = self.last_core(lin)?;
        let log = self.logs.get(&lin)?;
        let known = |p: &Process| log.core_at(*self.told.get(&(lin, *p))?).map(|(core, _)| core);
        let ahead = |p: &Process| {
            let (idx, core) = self.stored.get(&(lin, *p))?;
            core.as_ref().filter(|_| self.told.get(&(lin, *p)).is_none_or(|told| idx >= told))
        };
        let members = || core.members.iter().filter(|p| living.contains(p));
        let cores = members().filter_map(known).chain(members().filter_map(ahead)).chain([core]);
        let outlook = |core: &Core| match self.share_of(core, lin, |p| living.contains(&p)) {
            Share::Majority | Share::GoodHalf => Outlook::Can,
            Share::TooFew => Outlook::Cannot,
            Share::OpenHalf => match (reached, &core.warrant) {
                (None, _) | (_, None) => Outlook::Unknown,
                (Some(reached), Some((_, epoch))) if **epoch == *reached => Outlook::Can,
                _ => Outlook::Cannot,
            },
        };
        cores.into_iter().map(outlook).max()
    }
}
