//! GM2n: where founders keep floors on disk, a later lineage numbers all its views above all of an earlier one.

use membership_types::trace;

use crate::{
    book::{At, Book, Evidence, Lin},
    report::Predicate,
    views::Told,
};

/// The ids that one lineage gave.
#[derive(Debug)]
struct Ids {
    lin: Lin,
    lowest: (u64, At),
    highest: (u64, At),
}

/// All lineages, in the order in which somebody first had a view of them.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    /// Is it promised at all?
    pub(crate) promised: bool,
    lineages: Vec<Ids>,
    /// An operator forced a lineage: it goes on without a majority of the slots.
    forced: bool,
}

impl Floors {
    /// An operator forces a lineage.
    pub(crate) fn forced(&mut self, book: &mut Book) {
        self.forced = true;
        if self.promised {
            book.waive(Predicate::GM2n, "an operator forced a lineage".to_owned());
        }
    }

    /// A process installs a view.
    pub(crate) fn installed(&mut self, book: &mut Book, told: &Told<'_>) {
        if !self.promised || self.forced {
            return;
        }
        let new = (told.vid, told.at);
        let known = self.lineages.iter().position(|ids| ids.lin == told.lin);
        let at = known.unwrap_or_else(|| {
            self.lineages.push(Ids { lin: told.lin, lowest: new, highest: new });
            self.lineages.len() - 1
        });
        let ids = &mut self.lineages[at];
        ids.lowest = ids.lowest.min(new);
        ids.highest = ids.highest.max(new);
        if self.lineages.len() > 1 && known.is_none() {
            book.judged(Predicate::GM2n);
        }
        let (earlier, rest) = self.lineages.split_at(at);
        let later = rest.iter().skip(1);
        for (first, second) in earlier.iter().map(|e| (e, &rest[0])).chain(later.map(|l| (&rest[0], l))) {
            let (high, low) = (first.highest, second.lowest);
            if high.0 < low.0 {
                continue;
            }
            let (a, b) = (book.names.lin_name(first.lin), book.names.lin_name(second.lin));
            let tell = |(vid, at): (u64, At), lin: &trace::Lin| -> Evidence {
                (at, format!("view {vid} of lineage {lin} is installed"))
            };
            let evidence = vec![tell(high, a), tell(low, b)];
            let what =
                format!("lineage {b} has a view {} and lineage {a}, which is older, view {}", low.0, high.0);
            book.violated(Predicate::GM2n, what, evidence);
            return;
        }
    }
}
