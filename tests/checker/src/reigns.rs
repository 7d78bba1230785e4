//! Reigns as intervals of time: LD2 a reign is over before the next one begins, GM11 lineages do not lead at once.
//!
//! A reign lasts from `LeadStart` until the instant that `LeadEnd` gives (which may have been written later), or until
//! a process that crashed was last heard of before. Whether an interval reached into another one is judged when its end
//! is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use membership_types::trace::{Process, Tok};

use crate::{
    book::{At, Book, Evidence, Grp, Lin, token},
    report::Predicate,
};

/// How many reigns of one group are remembered at least.
const KEPT: usize = 4096;

/// One who leads, for which group, under which token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Title {
    pub(crate) group: Grp,
    pub(crate) lin: Lin,
    pub(crate) tok: Tok,
    pub(crate) p: Process,
}

impl Title {
    pub(crate) fn tell(&self, book: &Book, verb: &str) -> String {
        let (of, under) = (book.names.group_name(self.group), token(self.tok));
        format!("{} {verb} for {of} under {under}", self.p)
    }
}

/// A reign so far. The same token may be started again after a lease ran out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reign {
    pub(crate) first: At,
    /// Its latest start.
    pub(crate) start: At,
    start_no: u64,
    pub(crate) open: bool,
    pub(crate) last_act: Option<At>,
}

/// What happened in one group.
#[derive(Debug, Default)]
struct Stage {
    reigns: BTreeMap<(Lin, Tok, Process), Reign>,
    /// Starts, oldest first; those before the oldest open reign are forgotten.
    starts: VecDeque<(At, Title)>,
    forgotten: u64,
    last_act: Option<(At, Title)>,
}

/// How an interval came to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Close {
    /// `LeadEnd`: nothing was done after the instant.
    Said(u64),
    /// Nobody knows: nothing is held against it after its last act or this instant, if that is later.
    Unknown(u64),
}

/// All reigns of all groups.
#[derive(Debug, Default)]
pub(crate) struct Reigns {
    stages: BTreeMap<Grp, Stage>,
    open: BTreeSet<(Process, Grp, Lin, Tok)>,
    /// Is GM11 judged by intervals?
    pub(crate) one_lineage_at_a_time: bool,
    /// Lineages that an operator forced: that nobody led elsewhere was for the operator to know.
    pub(crate) forced: BTreeSet<Lin>,
}

impl Reigns {
    pub(crate) fn get(&self, title: Title) -> Option<&Reign> {
        self.stages.get(&title.group)?.reigns.get(&(title.lin, title.tok, title.p))
    }

    /// Another process's reign under a higher token of the same lineage, if one has begun.
    pub(crate) fn successor(&self, title: Title) -> Option<(Title, At)> {
        let Title { group, lin, tok, p } = title;
        let after = self.stages.get(&group)?.reigns.range((lin, tok, Process(u64::MAX, u64::MAX))..);
        let mut same_lineage = after.take_while(|((l, _, _), _)| *l == lin);
        let found = same_lineage.find(|((_, _, q), _)| *q != p);
        found.map(|((lin, tok, p), reign)| (Title { group, lin: *lin, tok: *tok, p: *p }, reign.first))
    }

    /// `LeadStart`.
    pub(crate) fn start(&mut self, book: &mut Book, title: Title, at: At) {
        self.check_not_succeeded(book, title, at, "begins to lead");
        let stage = self.stages.entry(title.group).or_default();
        if let Some((acted, of)) = stage.last_act
            && acted.t >= at.t
            && (of.lin, of.p != title.p) == (title.lin, true)
            && of.tok < title.tok
        {
            let evidence = vec![(acted, of.tell(book, "acts")), (at, title.tell(book, "begins to lead"))];
            let what = format!("{} begins at the instant at which {} still acts", title.p, of.p);
            book.violated(Predicate::LD2, what, evidence);
        }
        let mut others = stage.reigns.iter().filter(|((_, _, p), _)| *p != title.p);
        if others.any(|((lin, tok, _), _)| *lin == title.lin && *tok < title.tok) {
            book.judged(Predicate::LD2);
        }
        let rival = |lin: Lin| lin != title.lin && !self.forced.contains(&lin);
        let others_led = stage.reigns.keys().any(|(lin, _, _)| rival(*lin));
        if self.one_lineage_at_a_time && others_led && !self.forced.contains(&title.lin) {
            book.judged(Predicate::GM11);
        }
        let number = stage.forgotten + stage.starts.len() as u64;
        stage.starts.push_back((at, title));
        let new = Reign { first: at, start: at, start_no: number, open: true, last_act: None };
        let reign = stage.reigns.entry((title.lin, title.tok, title.p)).or_insert(new);
        if !reign.open {
            (reign.start, reign.start_no, reign.open) = (at, number, true);
        }
        self.open.insert((title.p, title.group, title.lin, title.tok));
        stage.forget();
    }

    /// `LeadAct`.
    pub(crate) fn act(&mut self, book: &mut Book, title: Title, at: At) {
        self.check_not_succeeded(book, title, at, "acts");
        let stage = self.stages.entry(title.group).or_default();
        if let Some(reign) = stage.reigns.get_mut(&(title.lin, title.tok, title.p)) {
            reign.last_act = Some(at);
        }
        stage.last_act = Some((at, title));
    }

    /// LD2, where it is plain at once: a higher token of another process has begun.
    fn check_not_succeeded(&self, book: &mut Book, title: Title, at: At, verb: &str) {
        let Some((next, began)) = self.successor(title) else { return };
        let own = self.get(title).map(|reign| (reign.start, title.tell(book, "begins to lead")));
        let evidence: Vec<Evidence> = own
            .into_iter()
            .chain([(began, next.tell(book, "begins to lead")), (at, title.tell(book, verb))])
            .collect();
        let (mine, theirs) = (token(title.tok), token(next.tok));
        let what = format!("{} {verb} under {mine} after {} began under {theirs}", title.p, next.p);
        book.violated(Predicate::LD2, what, evidence);
    }

    /// `LeadEnd`, or a crash. Nothing happens if there is nothing to end.
    pub(crate) fn close(&mut self, book: &mut Book, title: Title, close: Close, at: At) {
        let Some(stage) = self.stages.get_mut(&title.group) else { return };
        let of_title = stage.reigns.get_mut(&(title.lin, title.tok, title.p));
        let Some(reign) = of_title.filter(|reign| reign.open) else { return };
        reign.open = false;
        let reign = *reign;
        self.open.remove(&(title.p, title.group, title.lin, title.tok));
        let at_least = reign.last_act.map_or(reign.start.t, |act| act.t.max(reign.start.t));
        let (end, ended) = match close {
            Close::Said(until) => (until.min(at.t), "ends its reign"),
            Close::Unknown(t) => (t, "has not ended its reign"),
        };
        let end = end.max(at_least);
        self.check_overlap(book, title, reign, end, (at, ended));
    }

    /// Did anybody begin within the interval who should not have?
    fn check_overlap(&self, book: &mut Book, title: Title, reign: Reign, end: u64, (at, ended): (At, &str)) {
        let stage = &self.stages[&title.group];
        let seen = reign.start_no.saturating_sub(stage.forgotten) as usize;
        let later = stage.starts.iter().skip(seen + 1).take_while(|(began, _)| began.t < end);
        for (began, next) in later {
            let predicate = if next.lin != title.lin {
                let forced = [title.lin, next.lin].iter().any(|lin| self.forced.contains(lin));
                if !self.one_lineage_at_a_time || forced {
                    continue;
                }
                Predicate::GM11
            } else if next.p != title.p && next.tok > title.tok {
                Predicate::LD2
            } else {
                continue;
            };
            let until = format!("{}; it could act until {end} ns", title.tell(book, ended));
            let acted =
                reign.last_act.filter(|act| act.t >= began.t).map(|act| (act, title.tell(book, "acts")));
            let evidence: Vec<Evidence> = [
                (reign.start, title.tell(book, "begins to lead")),
                (*began, next.tell(book, "begins to lead")),
                (at, until),
            ]
            .into_iter()
            .chain(acted)
            .collect();
            let (p, q) = (title.p, next.p);
            let what = match predicate {
                Predicate::GM11 => {
                    let (a, b) = (book.names.lin_name(title.lin), book.names.lin_name(next.lin));
                    format!("{p} of lineage {a} and {q} of lineage {b} lead the same group at once")
                }
                _ => format!("{q} begins {} ns before the reign of {p} is over", end - began.t),
            };
            book.violated(predicate, what, evidence);
        }
    }

    /// The open reigns of a process.
    pub(crate) fn open_of(&self, p: Process) -> Vec<Title> {
        let from = (p, Grp::CLUSTER, Lin::FIRST, Tok(0, 0, 0));
        let own = self.open.range(from..).take_while(|(q, ..)| *q == p);
        own.map(|(p, group, lin, tok)| Title { group: *group, lin: *lin, tok: *tok, p: *p }).collect()
    }

    /// All open reigns.
    pub(crate) fn open(&self) -> impl Iterator<Item = Title> + '_ {
        self.open.iter().map(|(p, group, lin, tok)| Title { group: *group, lin: *lin, tok: *tok, p: *p })
    }
}

impl Stage {
    /// Forgets starts before the oldest open reign, and reigns that ended long ago.
    fn forget(&mut self) {
        if self.starts.len() > KEPT {
            let end = self.forgotten + self.starts.len() as u64 - 1;
            let oldest = self.reigns.values().filter(|r| r.open).map(|r| r.start_no).min().unwrap_or(end);
            let drop = usize::try_from(oldest - self.forgotten).unwrap_or(usize::MAX);
            self.starts.drain(..drop);
            self.forgotten = oldest;
        }
        if self.reigns.len() > 2 * KEPT {
            let mut ended = self.reigns.len() - KEPT;
            self.reigns.retain(|_, reign| {
                let keep = reign.open || ended == 0;
                ended -= usize::from(!keep);
                keep
            });
        }
    }
}
