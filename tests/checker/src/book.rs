//! What all predicate families write into: names made short, and findings.

use std::fmt::Write as _;

use membership_types::trace::{self, Group, Process, Source, Tok};

use crate::{
    Map,
    report::{Outcome, Predicate, Verdict, Witness},
};

/// A source, by order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SourceId(pub(crate) u32);

/// Which record it was: small enough to be kept with every fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) t: u64,
    pub(crate) src: SourceId,
    pub(crate) seq: u64,
}

/// A lineage, by order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lin(u32);

impl Lin {
    pub(crate) const FIRST: Self = Self(0);
}

/// A group, by order of appearance; the cluster is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Grp(u32);

impl Grp {
    pub(crate) const CLUSTER: Self = Self(0);
}

/// So many groups are looked through one by one.
const FEW: usize = 4;

/// Lineages and groups as small numbers, and back.
#[derive(Debug)]
pub(crate) struct Names {
    lins: Map<trace::Lin, Lin>,
    groups: Map<Group, Grp>,
    group_names: Vec<Group>,
    lin_names: Vec<trace::Lin>,
    /// The latest lineage that was asked for: mostly there is one.
    latest: Lin,
}

impl Names {
    fn new() -> Self {
        let groups = Map::from_iter([(Group::CLUSTER, Grp::CLUSTER)]);
        let (lins, group_names, lin_names) = (Map::default(), vec![Group::CLUSTER], Vec::new());
        Self { lins, groups, group_names, lin_names, latest: Lin::FIRST }
    }

    pub(crate) fn lin(&mut self, name: &trace::Lin) -> Lin {
        if self.lin_names.get(self.latest.0 as usize) == Some(name) {
            return self.latest;
        }
        if let Some(lin) = self.lins.get(name) {
            self.latest = *lin;
            return *lin;
        }
        let lin = Lin(u32::try_from(self.lin_names.len()).expect("fewer than 2^32 lineages"));
        self.lins.insert(name.clone(), lin);
        self.lin_names.push(name.clone());
        lin
    }

    pub(crate) fn group(&mut self, group: &Group) -> Grp {
        // Asked with most records: where there are few, that is faster than any table.
        let few = self.group_names.iter().take(FEW);
        if let Some(at) = few.zip(0..).find(|(name, _)| *name == group).map(|(_, at)| at) {
            return Grp(at);
        }
        if let Some(grp) = self.groups.get(group) {
            return *grp;
        }
        let grp = Grp(u32::try_from(self.group_names.len()).expect("fewer than 2^32 groups"));
        self.groups.insert(group.clone(), grp);
        self.group_names.push(group.clone());
        grp
    }

    pub(crate) fn group_name(&self, grp: Grp) -> String {
        self.group_names[grp.0 as usize].to_string()
    }

    pub(crate) fn lin_name(&self, lin: Lin) -> &trace::Lin {
        &self.lin_names[lin.0 as usize]
    }
}

/// An event of a proof, not yet with its source's name.
pub(crate) type Evidence = (At, String);

/// A violation.
pub(crate) struct Finding {
    pub(crate) explanation: String,
    pub(crate) evidence: Vec<Evidence>,
}

#[derive(Default)]
struct Docket {
    judged: u64,
    first: Option<Finding>,
    violations: u64,
    /// Why nothing more is judged.
    waived: Option<String>,
    /// Why nothing was judged, where the family knows.
    idle: Option<String>,
}

/// What was judged, and what was found.
pub(crate) struct Book {
    pub(crate) names: Names,
    /// One for each predicate, in the order of their declaration, which is that of [`Predicate::ALL`].
    dockets: [Docket; Predicate::ALL.len()],
}

impl Default for Book {
    fn default() -> Self {
        Self { names: Names::new(), dockets: std::array::from_fn(|_| Docket::default()) }
    }
}

impl Book {
    fn docket(&mut self, predicate: Predicate) -> &mut Docket {
        &mut self.dockets[predicate as usize]
    }

    /// Something that could have violated the predicate was looked at.
    pub(crate) fn judged(&mut self, predicate: Predicate) {
        self.docket(predicate).judged += 1;
    }

    /// The predicate is violated. Only the first violation is kept with its proof.
    pub(crate) fn violated(
        &mut self,
        predicate: Predicate,
        explanation: impl Into<String>,
        evidence: Vec<Evidence>,
    ) {
        let docket = self.docket(predicate);
        docket.judged += 1;
        if docket.waived.is_some() {
            return;
        }
        docket.violations += 1;
        if docket.first.is_none() {
            docket.first = Some(Finding { explanation: explanation.into(), evidence });
        }
    }

    /// From here on the predicate is not claimed.
    pub(crate) fn waive(&mut self, predicate: Predicate, why: impl Into<String>) {
        self.docket(predicate).waived.get_or_insert(why.into());
    }

    /// Says why a predicate was not judged, in case it was not.
    pub(crate) fn idle(&mut self, predicate: Predicate, why: impl Into<String>) {
        self.docket(predicate).idle.get_or_insert(why.into());
    }

    /// The verdicts; a run that is no evidence passes nothing.
    pub(crate) fn verdicts(self, sources: &[Source], valid: bool) -> Vec<Verdict> {
        let verdict = |(predicate, docket): (Predicate, Docket)| {
            let Docket { judged, first, violations, waived, idle } = docket;
            if let Some(Finding { mut explanation, mut evidence }) = first {
                if violations > 1 {
                    let _ = write!(explanation, " (and {} more)", violations - 1);
                }
                evidence.sort_by_key(|(at, _)| *at);
                evidence.dedup_by_key(|(at, _)| *at);
                evidence.truncate(Verdict::MAX_WITNESS);
                let witness = evidence
                    .into_iter()
                    .map(|(at, text)| Witness {
                        src: sources[at.src.0 as usize].clone(),
                        seq: at.seq,
                        t: at.t,
                        text,
                    })
                    .collect();
                return Verdict { predicate, outcome: Outcome::Fail, witness, explanation };
            }
            let (outcome, explanation) = if let Some(why) = waived {
                (Outcome::NotExercised, format!("waived: {why}"))
            } else if judged == 0 {
                let nothing = "nothing in the trace could have violated it";
                (Outcome::NotExercised, idle.unwrap_or_else(|| nothing.into()))
            } else if valid {
                (Outcome::Pass, format!("{} (judged {judged} times)", predicate.claim()))
            } else {
                (Outcome::NotExercised, "the run is invalid".into())
            };
            Verdict { predicate, outcome, witness: Vec::new(), explanation }
        };
        Predicate::ALL.into_iter().zip(self.dockets).map(verdict).collect()
    }
}

/// Members in rank order, for people. Long lists are cut.
pub(crate) fn list(members: &[Process]) -> String {
    const SHOWN: usize = 12;
    let mut text = String::from("[");
    for (at, member) in members.iter().take(SHOWN).enumerate() {
        let comma = if at > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{member}");
    }
    if members.len() > SHOWN {
        let _ = write!(text, ", and {} more", members.len() - SHOWN);
    }
    text.push(']');
    text
}

/// A token, for people: the view, and the other parts only where they are used.
pub(crate) fn token(tok: Tok) -> String {
    match tok {
        Tok(0, vid, 0) => format!("token {vid}"),
        Tok(lin, vid, sub) => format!("token {lin}.{vid}.{sub}"),
    }
}
