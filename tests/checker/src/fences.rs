//! What resources and clients see: LD3 tokens that take effect never decrease, LD5 honest answers.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::{Process, Tok};

use crate::{
    book::{At, Book, Grp, Lin, SourceId, token},
    report::Predicate,
};

/// The highest token that took effect at a resource.
#[derive(Clone, Copy, Debug)]
struct Fence {
    tok: Tok,
    p: Process,
    at: At,
}

/// What a resource or a client was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) group: Grp,
    pub(crate) lin: Lin,
    pub(crate) p: Process,
    pub(crate) tok: Tok,
    pub(crate) at: At,
}

/// The fences of all resources: one for each group and lineage that acts on one.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    fences: BTreeMap<(SourceId, Grp, Lin), Fence>,
}

impl Fences {
    /// `Effect`.
    pub(crate) fn effect(&mut self, book: &mut Book, claim: Claim, ok: bool) {
        let Claim { group, lin, p, tok, at } = claim;
        let new = Fence { tok, p, at };
        let Some(fence) = self.fences.get_mut(&(at.src, group, lin)) else {
            if ok {
                self.fences.insert((at.src, group, lin), new);
            }
            return;
        };
        book.judged(Predicate::LD3);
        if !ok {
            return;
        }
        if tok < fence.tok {
            let evidence = vec![
                (fence.at, format!("{} acts on the resource under {}", fence.p, token(fence.tok))),
                (at, format!("{p} acts on the resource under {}", token(tok))),
            ];
            let what = format!("{} takes effect after {}", token(tok), token(fence.tok));
            book.violated(Predicate::LD3, what, evidence);
        } else if tok > fence.tok {
            *fence = new;
        }
    }
}

/// What clients were told about leaders.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    started: BTreeSet<(Grp, Lin, Tok, Process)>,
    /// Groups whose starts the trace tells.
    told: BTreeSet<Grp>,
    /// The first answer about a group before any start was told. If one is told later, the answer was untrue.
    too_early: BTreeMap<Grp, Claim>,
    /// Answers with no start before them, judged once their instant is over: records of one instant have no order.
    doubtful: Vec<Claim>,
    latest: BTreeMap<(SourceId, Grp, Lin), (Tok, Process, At)>,
}

impl Answers {
    /// `LeadStart`.
    pub(crate) fn start(&mut self, book: &mut Book, group: Grp, lin: Lin, tok: Tok, p: Process, at: At) {
        let this = (group, lin, tok, p);
        self.started.insert(this);
        self.told.insert(group);
        self.doubtful.retain(|claim| claim.what() != this || claim.at.t < at.t);
        if let Some(claim) = self.too_early.remove(&group)
            && (claim.what() != this || claim.at.t < at.t)
        {
            untrue(book, claim);
        }
    }

    /// Time has come to `t`: what had no start before is untrue.
    pub(crate) fn time(&mut self, book: &mut Book, t: u64) {
        while self.doubtful.first().is_some_and(|claim| claim.at.t < t) {
            untrue(book, self.doubtful.remove(0));
        }
    }

    /// `WhoLeads`.
    pub(crate) fn answer(&mut self, book: &mut Book, claim: Claim) {
        let Claim { group, lin, p, tok, at } = claim;
        if !self.told.contains(&group) {
            self.too_early.entry(group).or_insert(claim);
        } else {
            book.judged(Predicate::LD5);
            if !self.started.contains(&claim.what()) {
                self.doubtful.push(claim);
            }
        }
        let key = (at.src, group, lin);
        let Some((before, who, then)) = self.latest.insert(key, (tok, p, at)) else { return };
        book.judged(Predicate::LD5);
        if tok < before {
            let evidence = vec![
                (then, format!("the client hears that {who} leads under {}", token(before))),
                (at, format!("the client hears that {p} leads under {}", token(tok))),
            ];
            let what = format!("answers go back from {} to {}", token(before), token(tok));
            book.violated(Predicate::LD5, what, evidence);
            self.latest.insert(key, (before, who, then));
        }
    }
}

impl Claim {
    fn what(&self) -> (Grp, Lin, Tok, Process) {
        (self.group, self.lin, self.tok, self.p)
    }
}

fn untrue(book: &mut Book, claim: Claim) {
    let (p, under) = (claim.p, token(claim.tok));
    let evidence = vec![(claim.at, format!("the client hears that {p} leads under {under}"))];
    book.violated(Predicate::LD5, format!("{p} had not begun to lead under {under}"), evidence);
}
