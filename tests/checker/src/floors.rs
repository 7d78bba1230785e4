//! GM2n: where founders keep floors on disk, no view id is given in two lineages, and the tokens of a group grow from one to another.

use std::collections::BTreeMap;

use crate::{
    book::{At, Book, Evidence, Grp, Lin},
    reigns::Title,
    report::Predicate,
    views::Told,
};

/// Whose each id is, and how high the tokens are.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    /// Is it promised at all?
    pub(crate) promised: bool,
    /// Are no ids given twice? Where the slots can be halved two lineages may give the same ids, while neither may act.
    pub(crate) unique: bool,
    /// For each id the lineage that was first seen to give it.
    given: BTreeMap<u64, (Lin, At)>,
    /// For each group the highest token that somebody led with, in each lineage.
    led: BTreeMap<Grp, BTreeMap<Lin, (u64, At)>>,
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
        if !self.promised || !self.unique || self.forced {
            return;
        }
        let (lin, at) = *self.given.entry(told.vid).or_insert((told.lin, told.at));
        if lin != told.lin {
            let (first, second) = (book.names.lin_name(lin), book.names.lin_name(told.lin));
            let tell = |lin| format!("view {} of lineage {lin} is installed", told.vid);
            let evidence: Vec<Evidence> = vec![(at, tell(first)), (told.at, tell(second))];
            let what = format!("lineages {first} and {second} both have a view {}", told.vid);
            book.violated(Predicate::GM2n, what, evidence);
        }
    }

    /// A process begins to lead a group.
    pub(crate) fn leads(&mut self, book: &mut Book, title: Title, at: At) {
        if !self.promised || self.forced {
            return;
        }
        let led = self.led.entry(title.group).or_default();
        let token = title.tok.vid();
        let others = led.iter().filter(|(lin, _)| **lin != title.lin);
        let highest = others.map(|(lin, (token, at))| (*token, *lin, *at)).max_by_key(|(token, ..)| *token);
        let own = led.entry(title.lin).or_insert((token, at));
        if token > own.0 {
            *own = (token, at);
        }
        let Some((before, lin, then)) = highest else { return };
        book.judged(Predicate::GM2n);
        if before >= token {
            let (first, second) = (book.names.lin_name(lin), book.names.lin_name(title.lin));
            let tell = |lin, token| {
                format!("somebody leads the group in lineage {lin} with a token of view {token}")
            };
            let evidence = vec![(then, tell(first, before)), (at, tell(second, token))];
            let what = format!(
                "a token of view {token} in lineage {second} comes after one of view {before} in {first}"
            );
            book.violated(Predicate::GM2n, what, evidence);
        }
    }
}
