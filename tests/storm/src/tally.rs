//! What came of it all: faults, views, takeovers, and predicates that were never judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use checker::{Outcome, Predicate, Report};
use serde_json::{Value, json};

use crate::plan::{Kind, Role};

/// A reign as its leader told of it.
pub struct Reign {
    pub who: usize,
    /// Whose group it is.
    pub role: Role,
    pub lineage: String,
    pub from: u64,
    pub until: Option<u64>,
}

/// Reigns of different processes that overlap, as text: the one checked by what was printed, beside the checker.
pub fn overlaps(reigns: &mut [Reign], across_lineages: bool) -> Vec<String> {
    reigns.sort_by_key(|reign| reign.from);
    let mut wrong = Vec::new();
    let mut latest: BTreeMap<(Role, &str), &Reign> = BTreeMap::new();
    for reign in reigns.iter() {
        let key = (reign.role, if across_lineages { "" } else { reign.lineage.as_str() });
        let until = |r: &Reign| r.until.unwrap_or(u64::MAX);
        if let Some(before) = latest.get(&key)
            && before.who != reign.who
            && until(before) > reign.from
        {
            wrong.push(format!(
                "process {} led until {:?}, process {} from {}",
                before.who, before.until, reign.who, reign.from
            ));
        }
        if latest.get(&key).is_none_or(|before| until(before) <= until(reign)) {
            latest.insert(key, reign);
        }
    }
    wrong
}

/// How often somebody else led next.
pub fn failovers(reigns: &[Reign]) -> u64 {
    let of = |role| {
        let own: Vec<usize> =
            reigns.iter().filter(|reign| reign.role == role).map(|reign| reign.who).collect();
        own.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
    };
    [Role::Member, Role::Clone, Role::Exclusive].map(of).iter().sum()
}

#[derive(Default)]
pub struct Tally {
    pub rounds: u64,
    pub faults: BTreeMap<Kind, u64>,
    pub processes: u64,
    pub views: u64,
    pub messages: u64,
    pub failovers: u64,
    /// Updates of inventories that were acknowledged, and whether all were found again.
    pub updates: u64,
    pub not_read: u64,
    /// Writes of commands that run while their node leads.
    pub acts: u64,
    /// Processes that the kernel killed for want of memory.
    pub out_of_memory: u64,
    /// Takeovers by cause: how many, and the longest in milliseconds.
    pub takeovers: BTreeMap<String, (u64, f64)>,
    pub judged: BTreeSet<&'static str>,
    pub failed_seeds: Vec<u64>,
    pub calms_not_judged: u64,
    pub longest_stall_ms: f64,
}

impl Tally {
    pub fn took(&mut self, cause: &str, ms: f64) {
        let entry = self.takeovers.entry(cause.to_owned()).or_default();
        *entry = (entry.0 + 1, entry.1.max(ms));
    }

    pub fn judge(&mut self, report: &Report) {
        let judged = report.verdicts.iter().filter(|v| v.outcome != Outcome::NotExercised);
        self.judged.extend(judged.map(|v| v.predicate.name()));
    }

    fn not_exercised(&self) -> Vec<&'static str> {
        Predicate::ALL.iter().map(|p| p.name()).filter(|name| !self.judged.contains(name)).collect()
    }

    pub fn to_json(&self) -> Value {
        let faults: BTreeMap<String, u64> = self.faults.iter().map(|(k, n)| (k.name(), *n)).collect();
        let takeovers: BTreeMap<&String, Value> =
            self.takeovers.iter().map(|(cause, (n, ms))| (cause, json!({"n": n, "max_ms": ms}))).collect();
        json!({
            "event": "summary", "rounds": self.rounds, "faults": faults, "processes": self.processes,
            "views": self.views, "messages": self.messages, "updates": self.updates, "not_read": self.not_read,
            "acts": self.acts, "out_of_memory": self.out_of_memory, "failovers": self.failovers,
            "takeovers": takeovers, "not_exercised": self.not_exercised(),
            "calms_not_judged": self.calms_not_judged, "longest_stall_ms": self.longest_stall_ms,
            "failed_seeds": self.failed_seeds,
        })
    }

    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} rounds, {} processes, {} views, {} messages printed, {} times another one led next\n{} updates of inventories \
             acknowledged and looked for ({} times nobody could answer), {} writes of exclusive commands, {} processes out of memory\nfaults:",
            self.rounds,
            self.processes,
            self.views,
            self.messages,
            self.failovers,
            self.updates,
            self.not_read,
            self.acts,
            self.out_of_memory
        );
        for (kind, n) in &self.faults {
            let _ = write!(text, " {} {n}", kind.name());
        }
        for (cause, (n, ms)) in &self.takeovers {
            let _ = write!(text, "\ntakeover after {cause}: longest {ms:.0} ms of {n}");
        }
        let _ = write!(text, "\nnot exercised: {}", self.not_exercised().join(" "));
        let _ = write!(text, "\nthis machine let us wait for {:.0} ms at worst", self.longest_stall_ms);
        if self.calms_not_judged > 0 {
            let _ = write!(text, "; so {} calms were not judged", self.calms_not_judged);
        }
        let _ = write!(text, "\n{} rounds failed", self.failed_seeds.len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reigns_that_overlap_are_told() {
        let role = Role::Member;
        let reign =
            |who, lineage: &str, from, until| Reign { who, role, lineage: lineage.into(), from, until };
        let good = || vec![reign(1, "a", 0, Some(5)), reign(2, "a", 5, Some(9)), reign(2, "a", 8, None)];
        assert!(overlaps(&mut good(), true).is_empty());
        let mut bad = good();
        bad.push(reign(3, "a", 20, None));
        assert_eq!(overlaps(&mut bad, true).len(), 1);
        // A long reign that covers several later ones.
        let mut bad = vec![reign(1, "a", 0, None), reign(2, "a", 5, Some(6)), reign(3, "a", 7, Some(8))];
        assert_eq!(overlaps(&mut bad, true).len(), 2);
        let mut others = bad;
        others[0].role = Role::Clone;
        assert!(overlaps(&mut others, true).is_empty(), "of another group");
        let mut apart = vec![reign(1, "a", 0, None), reign(2, "b", 5, None)];
        assert!(overlaps(&mut apart, false).is_empty());
        assert_eq!((overlaps(&mut apart, true).len(), failovers(&apart)), (1, 1));
    }
}
