//! GM12: who has lost the primary component is silent until it is back.

use std::collections::BTreeMap;

use membership_types::trace::{Mid, Process};

use crate::{
    book::{At, Book},
    reigns::Title,
    report::Predicate,
};

/// Who may not act, and since when.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    silent: BTreeMap<Process, (At, &'static str)>,
}

impl Silence {
    /// `NoPrimary`, `LeaseEnd` or `Evicted`.
    pub(crate) fn begin(&mut self, book: &mut Book, p: Process, at: At, why: &'static str) {
        book.judged(Predicate::GM12);
        self.silent.entry(p).or_insert((at, why));
    }

    /// The next `Install`, or `Primary`.
    pub(crate) fn end(&mut self, p: Process) {
        self.silent.remove(&p);
    }

    /// A process says that nothing was done in a reign after `until`.
    pub(crate) fn check_end(&self, book: &mut Book, title: Title, acted: At, until: u64, at: At) {
        if acted.t > until && acted.t < at.t {
            let said = format!("{} until {until} ns", title.tell(book, "has led"));
            let evidence = vec![(acted, title.tell(book, "acts")), (at, said)];
            let what = format!("{} acts {} ns after its lease ended", title.p, acted.t - until);
            book.violated(Predicate::GM12, what, evidence);
        }
    }

    /// A process says that a message is safe.
    pub(crate) fn check_stable(&self, book: &mut Book, p: Process, mid: Mid, at: At) {
        let Some((since, why)) = self.silent.get(&p) else { return };
        let evidence = vec![(*since, format!("{p} {why}")), (at, format!("{p} finds message {mid} stable"))];
        book.violated(Predicate::GM12, format!("{p} finds {mid} stable although it {why}"), evidence);
    }

    /// A process leads, or acts as leader.
    pub(crate) fn check(&self, book: &mut Book, title: Title, at: At, verb: &str) {
        let Some((since, why)) = self.silent.get(&title.p) else { return };
        let evidence = vec![(*since, format!("{} {why}", title.p)), (at, title.tell(book, verb))];
        book.violated(Predicate::GM12, format!("{} {verb} although it {why}", title.p), evidence);
    }
}
