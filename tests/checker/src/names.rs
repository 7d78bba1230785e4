//! SE5: where nodes have certificates, whoever is in a view has proved its name to somebody, under the number that goes with it.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::Process;

use crate::{
    book::{At, Book},
    report::Predicate,
};

/// Who proved what.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Everybody whom somebody met.
    met: BTreeSet<Process>,
    by_number: BTreeMap<u64, (String, At)>,
    by_name: BTreeMap<String, (u64, At)>,
}

impl Names {
    /// One process met another, which proved its name.
    pub(crate) fn met(&mut self, book: &mut Book, p: Process, q: Process, name: &str, at: At) {
        book.judged(Predicate::SE5);
        self.met.insert(q);
        let (known, of) = self.by_number.entry(q.0).or_insert_with(|| (name.to_owned(), at));
        let mut other = (*known != name).then(|| (*of, format!("its number is that of {known:?}")));
        let (number, of) = self.by_name.entry(name.to_owned()).or_insert((q.0, at));
        if *number != q.0 {
            other = Some((*of, format!("the name is that of node {number}")));
        }
        if let Some(other) = other {
            let what = format!("{q} has proved to be {name:?}, and {}", other.1);
            book.violated(Predicate::SE5, what, vec![other, (at, format!("{p} met {q} as {name:?}"))]);
        }
    }

    /// A process installs a view of the cluster. `heard`: are there records of a process? What others are met by is not known.
    pub(crate) fn installed(
        &mut self,
        book: &mut Book,
        p: Process,
        members: &[Process],
        heard: impl Fn(Process) -> bool,
        at: At,
    ) {
        if self.met.is_empty() || !members.iter().all(|q| heard(*q)) {
            return;
        }
        book.judged(Predicate::SE5);
        if let Some(q) = members.iter().find(|q| **q != p && !self.met.contains(q)) {
            let what = format!("{q} is in a view, and has proved its name to nobody");
            book.violated(Predicate::SE5, what, vec![(at, format!("{p} installs a view with {q}"))]);
        }
    }
}
