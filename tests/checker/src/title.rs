//! By what right a process leads: GM3 it has a view of the group, LD1 its token names its own reign in that view.

use std::collections::BTreeMap;

use membership_types::trace::{Process, Tok};

use crate::{
    book::{At, Book, Grp, Lin, token},
    reigns::{Reigns, Title},
    report::Predicate,
    views::{Seat, Views},
};

/// How many tokens of one group are remembered.
const KEPT: usize = 4096;

/// Who started which token first.
#[derive(Debug, Default)]
pub(crate) struct Titles {
    owners: BTreeMap<(Lin, Grp), BTreeMap<Tok, (Process, At)>>,
}

impl Titles {
    /// `LeadStart`.
    pub(crate) fn start(&mut self, book: &mut Book, views: &Views, title: Title, at: At) {
        let Title { group, lin, tok, p } = title;
        book.judged(Predicate::GM3);
        book.judged(Predicate::LD1);
        let owners = self.owners.entry((lin, group)).or_default();
        let (owner, since) = *owners.entry(tok).or_insert((p, at));
        if owners.len() > KEPT {
            owners.pop_first();
        }
        if owner != p {
            let theirs = Title { p: owner, ..title };
            let evidence =
                vec![(since, theirs.tell(book, "begins to lead")), (at, title.tell(book, "begins to lead"))];
            book.violated(
                Predicate::LD1,
                format!("{owner} and {p} both lead under {}", token(tok)),
                evidence,
            );
        }
        let Some(seat) = views.seat(p, lin, group) else {
            let of = book.names.group_name(group);
            let what = format!("{p} leads {of} without having installed a view of it");
            book.violated(Predicate::GM3, what, vec![(at, title.tell(book, "begins to lead"))]);
            return;
        };
        check_rank(book, views, title, *seat, at, "begins to lead");
        let begun = views.view(lin, group, tok.vid());
        if let Some(view) = begun.filter(|view| view.members.first() != Some(&p)) {
            let evidence =
                vec![(view.at, view.tell(book, tok.vid(), group)), (at, title.tell(book, "begins to lead"))];
            let what = format!("{p} leads under the id of view {}, in which it is not the first", tok.vid());
            book.violated(Predicate::LD1, what, evidence);
        }
    }

    /// `LeadAct`.
    pub(crate) fn act(&self, book: &mut Book, views: &Views, reigns: &Reigns, title: Title, at: At) {
        book.judged(Predicate::LD1);
        let Title { group, lin, p, .. } = title;
        if !reigns.get(title).is_some_and(|reign| reign.open) {
            not_going_on(book, reigns, title, at, "acts");
        } else if let Some(seat) = views.seat(p, lin, group) {
            check_rank(book, views, title, *seat, at, "acts");
        }
    }

    /// `LeadEnd`.
    pub(crate) fn end(&self, book: &mut Book, reigns: &Reigns, title: Title, at: At) {
        if !reigns.get(title).is_some_and(|reign| reign.open) {
            not_going_on(book, reigns, title, at, "ends its reign");
        }
    }
}

/// Only what was started can be acted under, or ended.
fn not_going_on(book: &mut Book, reigns: &Reigns, title: Title, at: At, verb: &str) {
    let begun = reigns.get(title).map(|reign| (reign.start, title.tell(book, "begins to lead")));
    let what = match begun {
        None => format!("{} {verb} under {}, which it never started", title.p, token(title.tok)),
        Some(_) => format!("{} {verb} under {}, which it has ended", title.p, token(title.tok)),
    };
    let evidence = begun.into_iter().chain([(at, title.tell(book, verb))]).collect();
    book.violated(Predicate::LD1, what, evidence);
}

/// The token is not newer than the member's view, and the member is first in every view that it installed since.
fn check_rank(book: &mut Book, views: &Views, title: Title, seat: Seat, at: At, verb: &str) {
    let Title { group, lin, tok, p } = title;
    let vid = tok.vid();
    // Asked each time that somebody acts: text is made only where something is wrong.
    if vid <= seat.vid && vid > seat.not_first {
        return;
    }
    let of = book.names.group_name(group);
    let (wrong, view) = if vid > seat.vid {
        (format!("{p} has view {} of {of} and {verb} under the newer {}", seat.vid, token(tok)), seat.vid)
    } else {
        let (not_first, under) = (seat.not_first, token(tok));
        (format!("{p} is not the first in view {not_first} of {of} and {verb} under {under}"), not_first)
    };
    let mut evidence = vec![(at, title.tell(book, verb))];
    if view == seat.vid {
        evidence.push((seat.at, format!("{p} installs view {view} of {of}")));
    }
    evidence.extend(views.view(lin, group, view).map(|v| (v.at, v.tell(book, view, group))));
    book.violated(Predicate::LD1, wrong, evidence);
}
