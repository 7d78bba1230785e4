//! Agreement on views: GM1 self-inclusion, GM2 ids grow at each process, GM4 one list per id.
//!
//! It keeps the views that others judge by: those of each lineage and group, and where each process stands.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::Process;

use crate::{
    Map,
    book::{At, Book, Grp, Lin, list},
    chain::{Chain, Wills},
    report::Predicate,
};

/// How many views of one group are kept. Who is further behind than that is not judged by them.
const KEPT: usize = 4096;

/// A view as it was first told.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) members: Vec<Process>,
    pub(crate) prev: u64,
    pub(crate) idx: Option<u64>,
    pub(crate) at: At,
    pub(crate) by: Process,
    /// Somebody installed it; else it is known from observers only.
    pub(crate) installed: bool,
}

impl View {
    pub(crate) fn tell(&self, book: &Book, vid: u64, group: Grp) -> String {
        let (p, of) = (self.by, book.names.group_name(group));
        let verb = if self.installed { "installs" } else { "learns" };
        format!("{p} {verb} view {vid} of {of} {} after {}", list(&self.members), self.prev)
    }
}

/// What a process says about a view, with its names made short.
#[derive(Clone, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) p: Process,
    pub(crate) lin: Lin,
    pub(crate) group: Grp,
    pub(crate) vid: u64,
    pub(crate) members: &'a [Process],
    pub(crate) prev: u64,
    pub(crate) idx: Option<u64>,
    pub(crate) snap: bool,
    pub(crate) at: At,
}

/// Where a process stands in a group: its latest install.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) vid: u64,
    pub(crate) at: At,
    /// The latest installed view in which the process was not the first member, 0 if there is none.
    pub(crate) not_first: u64,
}

/// All views of a group in one lineage.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) views: BTreeMap<u64, View>,
    pub(crate) chain: Chain,
}

/// All views, and where every process stands.
#[derive(Debug, Default)]
pub(crate) struct Views {
    histories: BTreeMap<(Lin, Grp), History>,
    seats: Map<(Process, Lin, Grp), Seat>,
    /// All groups that somebody is in, the cluster left out.
    groups: BTreeSet<Grp>,
    watched: Map<(Process, Lin, Grp), (u64, At)>,
    homes: Map<Process, Lin>,
    /// Nodes that were first in the first cluster view of a lineage.
    founders: BTreeSet<u64>,
    pub(crate) wills: Wills,
    /// Lineages that an operator forced; founder slots count no more in them.
    pub(crate) forced: BTreeSet<Lin>,
}

impl Views {
    /// A process installs a view.
    pub(crate) fn install(&mut self, book: &mut Book, told: &Told<'_>) {
        let Told { p, lin, group, vid, members, at, .. } = *told;
        book.judged(Predicate::GM1);
        if !members.contains(&p) {
            let view = self.tell(book, told, "installs");
            book.violated(Predicate::GM1, format!("{p} installs a view that it is not in"), vec![(at, view)]);
        }
        let before = self.seats.get(&(p, lin, group)).copied();
        self.check_growth(book, told, before);
        self.check_agreement(book, told, true);
        let history = self.histories.entry((lin, group)).or_default();
        let before_it = before.map(|seat| (seat.vid, seat.at));
        history.chain.installed(book, &history.views, &mut self.wills, told, before_it);
        let first = members.first() == Some(&p);
        let not_first = if first { before.map_or(0, |seat| seat.not_first) } else { vid };
        self.seats.insert((p, lin, group), Seat { vid, at, not_first });
        if group != Grp::CLUSTER {
            self.groups.insert(group);
        } else {
            self.homes.insert(p, lin);
            if told.prev == 0 {
                self.founders.extend(members.first().map(|founder| founder.0));
            }
        }
    }

    /// An observer learns a view. It may learn the same one again after it ceased to observe for a while.
    pub(crate) fn watch(&mut self, book: &mut Book, told: &Told<'_>) {
        let key = (told.p, told.lin, told.group);
        let installed = self.seats.get(&key).copied();
        let again = self.watched.get(&key).is_some_and(|(vid, _)| *vid == told.vid);
        if !again {
            self.check_growth(book, told, installed);
        }
        self.check_agreement(book, told, false);
        self.watched.insert(key, (told.vid, told.at));
    }

    fn tell(&self, book: &Book, told: &Told<'_>, verb: &str) -> String {
        let of = book.names.group_name(told.group);
        format!("{} {verb} view {} of {of} {} after {}", told.p, told.vid, list(told.members), told.prev)
    }

    /// GM2.
    fn check_growth(&self, book: &mut Book, told: &Told<'_>, seat: Option<Seat>) {
        let key = (told.p, told.lin, told.group);
        let watched = self.watched.get(&key).copied();
        let Some((before, then)) = seat.map(|s| (s.vid, s.at)).max(watched) else { return };
        book.judged(Predicate::GM2);
        if before >= told.vid {
            let (p, of) = (told.p, book.names.group_name(told.group));
            let what = format!("{p} goes from view {before} of {of} to view {}", told.vid);
            let evidence = vec![
                (then, format!("{p} has view {before} of {of}")),
                (told.at, self.tell(book, told, "takes")),
            ];
            book.violated(Predicate::GM2, what, evidence);
        }
    }

    /// GM4.
    fn check_agreement(&mut self, book: &mut Book, told: &Told<'_>, installs: bool) {
        let history = self.histories.entry((told.lin, told.group)).or_default();
        let Some(known) = history.views.get_mut(&told.vid) else {
            let view = View {
                members: told.members.to_vec(),
                prev: told.prev,
                idx: told.idx,
                at: told.at,
                by: told.p,
                installed: installs,
            };
            history.views.insert(told.vid, view);
            if history.views.len() > KEPT {
                history.views.pop_first();
            }
            return;
        };
        book.judged(Predicate::GM4);
        let of_cluster = told.group == Grp::CLUSTER;
        let wrong = if known.members != told.members {
            Some("members or ranks")
        } else if of_cluster && known.prev != told.prev {
            Some("predecessors")
        } else if of_cluster && known.idx.zip(told.idx).is_some_and(|(a, b)| a != b) {
            Some("log entries")
        } else {
            None
        };
        known.installed |= installs;
        known.idx = known.idx.or(told.idx);
        if let Some(what) = wrong {
            let known = known.clone();
            let evidence = vec![
                (known.at, known.tell(book, told.vid, told.group)),
                (told.at, self.tell(book, told, "takes")),
            ];
            let (of, vid) = (book.names.group_name(told.group), told.vid);
            let explanation =
                format!("{} and {} have different {what} of view {vid} of {of}", known.by, told.p);
            book.violated(Predicate::GM4, explanation, evidence);
        }
    }

    /// The views of a group in a lineage.
    pub(crate) fn history(&self, lin: Lin, group: Grp) -> Option<&History> {
        self.histories.get(&(lin, group))
    }

    /// A view, if it is known and not forgotten.
    pub(crate) fn view(&self, lin: Lin, group: Grp, vid: u64) -> Option<&View> {
        self.history(lin, group)?.views.get(&vid)
    }

    /// The latest install of a process in a group.
    pub(crate) fn seat(&self, p: Process, lin: Lin, group: Grp) -> Option<&Seat> {
        self.seats.get(&(p, lin, group))
    }

    /// The lineage of a process's latest cluster view.
    pub(crate) fn home(&self, p: Process) -> Option<Lin> {
        self.homes.get(&p).copied()
    }

    /// Is the process's node known to be able to found? Where nobody ever founded, anybody may be.
    pub(crate) fn may_found(&self, p: Process) -> bool {
        self.founders.is_empty() || self.founders.contains(&p.0)
    }

    /// The groups that the process has had a view of in a lineage, the cluster left out.
    pub(crate) fn groups_of(&self, p: Process, lin: Lin) -> impl Iterator<Item = (Grp, &Seat)> {
        self.groups.iter().filter_map(move |group| Some((*group, self.seats.get(&(p, lin, *group))?)))
    }
}
