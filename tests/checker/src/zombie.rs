//! LD4: who slept through its lease does not go on leading as if nothing had happened.
//!
//! It may lead again under the same token, once it has started it anew, and only if nobody else led in between.

use std::collections::BTreeMap;

use membership_types::trace::Process;

use crate::{
    book::{At, Book, token},
    reigns::{Reigns, Title},
    report::Predicate,
};

/// Who sleeps, and who slept for longer than a lease.
#[derive(Debug, Default)]
pub(crate) struct Zombies {
    asleep: BTreeMap<Process, At>,
    /// The latest pause: its begin and its end.
    naps: BTreeMap<Process, (At, At)>,
    /// The latest pause that outlasted a lease: its begin and its end.
    overslept: BTreeMap<Process, (At, At)>,
}

impl Zombies {
    pub(crate) fn pause(&mut self, p: Process, at: At) {
        self.asleep.entry(p).or_insert(at);
    }

    /// `lapsed_after` is how long no lease can last.
    pub(crate) fn resume(&mut self, book: &mut Book, reigns: &Reigns, p: Process, at: At, lapsed_after: u64) {
        let Some(since) = self.asleep.remove(&p) else { return };
        self.naps.insert(p, (since, at));
        if at.t - since.t > lapsed_after {
            self.overslept.insert(p, (since, at));
            if !reigns.open_of(p).is_empty() {
                book.judged(Predicate::LD4);
            }
        }
    }

    /// Since when the process has done nothing, if it is stopped at `t` or is continued at that very instant.
    pub(crate) fn asleep_since(&self, p: Process, t: u64) -> Option<u64> {
        let woken = || self.naps.get(&p).filter(|(_, to)| to.t == t).map(|(since, _)| since.t);
        self.asleep.get(&p).map(|since| since.t).or_else(woken)
    }

    /// `LeadStart`, before it is noted: a token from before the pause may be started again only if nobody else led.
    pub(crate) fn start(&self, book: &mut Book, reigns: &Reigns, title: Title, at: At) {
        let Some(slept) = self.overslept.get(&title.p) else { return };
        let held_before = reigns.get(title).is_some_and(|reign| reign.first <= slept.0);
        if held_before && let Some((next, began)) = reigns.successor(title) {
            let mut evidence = pause(title.p, *slept);
            evidence.push((began, next.tell(book, "begins to lead")));
            evidence.push((at, title.tell(book, "begins to lead")));
            let what = format!(
                "{} starts {} from before its pause again, although {} has led since",
                title.p,
                token(title.tok),
                next.p
            );
            book.violated(Predicate::LD4, what, evidence);
        }
    }

    /// `LeadAct`: the reign must have been started since the pause began.
    pub(crate) fn act(&self, book: &mut Book, reigns: &Reigns, title: Title, at: At) {
        let Some(slept) = self.overslept.get(&title.p) else { return };
        let Some(reign) = reigns.get(title) else { return };
        if reign.start <= slept.0 {
            let mut evidence = pause(title.p, *slept);
            evidence.push((reign.start, title.tell(book, "begins to lead")));
            evidence.push((at, title.tell(book, "acts")));
            let what = format!(
                "{} slept for {} ns and acts under {}, which it started before",
                title.p,
                slept.1.t - slept.0.t,
                token(title.tok)
            );
            book.violated(Predicate::LD4, what, evidence);
        }
    }
}

fn pause(p: Process, (from, to): (At, At)) -> Vec<(At, String)> {
    vec![(from, format!("{p} is stopped")), (to, format!("{p} is continued"))]
}
