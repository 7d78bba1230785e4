//! How views follow each other: GM5 no fork, GM7 no skip and no return, GM8 rank is order of joining.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

use membership_types::trace::Process;

use crate::{
    book::{At, Book, Evidence, Grp, Lin, list},
    report::Predicate,
    views::{Told, View},
};

/// How many links are remembered; as many as views.
const KEPT: usize = 4096;

/// How many steps are remembered for each member and group.
const STEPS_KEPT: usize = 16;

/// The links between the views of one group in one lineage.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// The installed successor of each view.
    next: BTreeMap<u64, u64>,
    /// The view that has no predecessor.
    root: Option<u64>,
    /// Who was in the cluster and is not any more: since which view.
    gone: BTreeMap<Process, (u64, At)>,
    /// Views that were installed: the chain is judged once per view, not once per process.
    seen: BTreeSet<u64>,
}

/// What members want, as far as steps between views are judged by it.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    wills: BTreeMap<(Process, Grp), Will>,
    /// The first step of a cluster view in which somebody is missing who had not asked to leave.
    pub(crate) exclusion: Option<Exclusion>,
    /// Everybody whom steps between cluster views excluded, and who has not been looked at yet.
    pub(crate) excluded: Vec<Exclusion>,
    /// The same for everybody who came in.
    pub(crate) arrived: Vec<Arrival>,
}

#[derive(Debug, Default)]
struct Will {
    /// How often the member asked to leave (or to step down).
    asked: u64,
    /// What came of it in each lineage: two may have admitted the member, who went to one of them.
    left: BTreeMap<Lin, Done>,
    /// The same for being found at a lower rank. Who moved, and was removed later without asking, may be seen moving after
    /// that by somebody who was stopped meanwhile.
    moved: BTreeMap<Lin, Done>,
}

#[derive(Debug, Default)]
struct Done {
    /// How often the member was seen leaving, or moving.
    count: u64,
    /// The latest steps in which it was: after the first view, up to the second. A step that spans several views shows the
    /// same leaving as one of the smaller steps.
    steps: VecDeque<(u64, u64)>,
}

impl Wills {
    /// A member asks to leave, or to step down.
    pub(crate) fn leave(&mut self, p: Process, group: Grp) {
        self.wills.entry((p, group)).or_default().asked += 1;
    }

    /// Had it asked for what the step from a view to another one shows: that it left, or that it moved?
    fn spend(&mut self, p: Process, (lin, group): (Lin, Grp), (from, to): (u64, u64), moved: bool) -> bool {
        let Some(will) = self.wills.get_mut(&(p, group)) else { return false };
        let done = if moved { will.moved.entry(lin) } else { will.left.entry(lin) }.or_default();
        if let Some(known) = done.steps.iter_mut().find(|(a, b)| from < *b && *a < to) {
            *known = (known.0.max(from), known.1.min(to));
            return true;
        }
        if done.count == will.asked {
            return false;
        }
        done.count += 1;
        done.steps.push_back((from, to));
        if done.steps.len() > STEPS_KEPT {
            done.steps.pop_front();
        }
        true
    }
}

/// Somebody is out of the cluster who had not asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Exclusion {
    pub(crate) who: Process,
    /// Who else was in the view before.
    pub(crate) others: Vec<Process>,
    pub(crate) evidence: Vec<Evidence>,
}

/// Somebody is in a cluster view who was not in the one before.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) who: Process,
    pub(crate) lin: Lin,
    pub(crate) vid: u64,
    /// The entry that made the view.
    pub(crate) idx: Option<u64>,
    pub(crate) evidence: Vec<Evidence>,
}

impl Arrival {
    /// When the view was first heard of.
    pub(crate) fn at(&self) -> At {
        self.evidence[0].0
    }

    fn of(book: &Book, who: Process, lin: Lin, vid: u64, view: &View) -> Self {
        let evidence = vec![(view.at, view.tell(book, vid, Grp::CLUSTER))];
        Self { who, lin, vid, idx: view.idx, evidence }
    }
}

impl Chain {
    /// A process installs a view; `before` is its own previous one. `views` has the view already.
    pub(crate) fn installed(
        &mut self,
        book: &mut Book,
        views: &BTreeMap<u64, View>,
        wills: &mut Wills,
        told: &Told<'_>,
        before: Option<(u64, At)>,
    ) {
        if told.group == Grp::CLUSTER {
            self.check_no_skip(book, views, told, before);
        }
        if !self.seen.insert(told.vid) {
            return;
        }
        if self.seen.len() > KEPT {
            self.seen.pop_first();
        }
        let Some(view) = views.get(&told.vid) else { return };
        self.check_link(book, views, told.group, told.vid, view);
        if told.group == Grp::CLUSTER {
            self.check_no_return(book, told, view);
            if view.prev == 0 {
                let founders = view.members.iter();
                wills.arrived.extend(founders.map(|who| Arrival::of(book, *who, told.lin, told.vid, view)));
            }
        }
        let step = |chain: &mut Self, book: &mut Book, wills: &mut Wills, from: u64, to: u64| {
            if let (Some(old), Some(new)) = (views.get(&from), views.get(&to)) {
                chain.step(book, wills, (told.lin, told.group), (from, old), (to, new));
            }
        };
        step(self, book, wills, view.prev, told.vid);
        // The next view may have been installed before this one was heard of.
        let next = self.next.get(&told.vid).copied();
        let later = views
            .range((Excluded(told.vid), Unbounded))
            .find(|(_, v)| v.prev == told.vid)
            .map(|(vid, _)| *vid);
        if let Some(next) = next.or(later) {
            step(self, book, wills, told.vid, next);
        }
    }

    /// GM7, first half: nobody passes over a cluster view, except by a snapshot that says so.
    fn check_no_skip(
        &self,
        book: &mut Book,
        views: &BTreeMap<u64, View>,
        told: &Told<'_>,
        before: Option<(u64, At)>,
    ) {
        let Some((before, then)) = before else { return };
        if told.snap {
            return;
        }
        book.judged(Predicate::GM7);
        if told.prev == before {
            return;
        }
        let Told { p, vid, prev, .. } = *told;
        let mut evidence = vec![
            (then, format!("{p} installs view {before}")),
            (told.at, format!("{p} installs view {vid}, which follows view {prev}")),
        ];
        evidence.extend(views.get(&prev).map(|skipped| (skipped.at, skipped.tell(book, prev, told.group))));
        let what = format!("{p} goes from view {before} to view {vid}, which follows view {prev}");
        book.violated(Predicate::GM7, what, evidence);
    }

    /// GM7, second half: an excluded incarnation stays out.
    fn check_no_return(&self, book: &mut Book, told: &Told<'_>, view: &View) {
        let back = |p: &&Process| self.gone.get(*p).is_some_and(|(vid, _)| *vid < told.vid);
        let Some(p) = view.members.iter().find(back) else { return };
        let (out, at) = self.gone[p];
        let evidence = vec![
            (at, format!("view {out} is the first without {p}")),
            (view.at, view.tell(book, told.vid, told.group)),
        ];
        let what = format!("{p} is out since view {out} and in view {} again", told.vid);
        book.violated(Predicate::GM7, what, evidence);
    }

    /// GM5.
    fn check_link(
        &mut self,
        book: &mut Book,
        views: &BTreeMap<u64, View>,
        group: Grp,
        vid: u64,
        view: &View,
    ) {
        let of = book.names.group_name(group);
        if view.prev == 0 {
            let Some(root) = self.root.replace(vid) else { return };
            // A group that became empty begins again; the cluster begins once in a lineage.
            if group == Grp::CLUSTER {
                let what = format!("views {root} and {vid} are both the first of one lineage");
                let evidence = both(book, views, group, (root, vid), view);
                book.violated(Predicate::GM5, what, evidence);
            }
            return;
        }
        book.judged(Predicate::GM5);
        if view.prev >= vid {
            let what = format!("view {vid} of {of} follows view {}: ids do not grow", view.prev);
            book.violated(Predicate::GM5, what, vec![(view.at, view.tell(book, vid, group))]);
        }
        // A member of a group may skip views of it, so that its own previous view need not be the one before.
        if group != Grp::CLUSTER {
            return;
        }
        match self.next.insert(view.prev, vid) {
            Some(rival) if rival != vid => {
                self.next.insert(view.prev, rival);
                let what = format!("views {rival} and {vid} of {of} both follow view {}", view.prev);
                let evidence = both(book, views, group, (rival, vid), view);
                book.violated(Predicate::GM5, what, evidence);
            }
            _ if self.next.len() > KEPT => {
                self.next.pop_first();
            }
            _ => {}
        }
    }

    /// Both views of a step are known: who left, and did the others keep their order?
    fn step(
        &mut self,
        book: &mut Book,
        wills: &mut Wills,
        (lin, group): (Lin, Grp),
        (from, old): (u64, &View),
        (to, new): (u64, &View),
    ) {
        self.check_ranks(book, wills, (lin, group), (from, old), (to, new));
        if group == Grp::CLUSTER {
            let were: BTreeSet<&Process> = old.members.iter().collect();
            let fresh = new.members.iter().filter(|p| !were.contains(p));
            wills.arrived.extend(fresh.map(|who| Arrival::of(book, *who, lin, to, new)));
        }
        let remain: BTreeSet<&Process> = new.members.iter().collect();
        for who in old.members.iter().filter(|p| !remain.contains(p)) {
            let asked = wills.spend(*who, (lin, group), (from, to), false);
            if group != Grp::CLUSTER {
                continue;
            }
            self.gone.entry(*who).or_insert((to, new.at));
            let evidence = vec![(old.at, old.tell(book, from, group)), (new.at, new.tell(book, to, group))];
            let others = old.members.iter().copied().filter(|other| other != who).collect();
            let exclusion = Exclusion { who: *who, others, evidence };
            if !asked && wills.exclusion.is_none() {
                wills.exclusion = Some(exclusion.clone());
            }
            wills.excluded.push(exclusion);
        }
    }

    /// GM8: those who stay, in their old order, then everybody else. In a group a member that asked to leave since
    /// may stand among the others: it stepped down, or left and came back.
    fn check_ranks(
        &self,
        book: &mut Book,
        wills: &mut Wills,
        (lin, group): (Lin, Grp),
        (from, old): (u64, &View),
        (to, new): (u64, &View),
    ) {
        book.judged(Predicate::GM8);
        let rank: BTreeMap<&Process, usize> = old.members.iter().enumerate().map(|(r, p)| (p, r)).collect();
        let mut last = None;
        let mut staying = true;
        for member in &new.members {
            let was = rank.get(member).copied();
            staying = staying && was.is_some() && last < was;
            if staying {
                last = was;
                continue;
            }
            let Some(was) = was else { continue };
            if group != Grp::CLUSTER && wills.spend(*member, (lin, group), (from, to), true) {
                continue;
            }
            let of = book.names.group_name(group);
            let what = format!(
                "{member} had rank {was} in view {from} of {of} and comes too late in {}",
                list(&new.members)
            );
            let evidence = vec![(old.at, old.tell(book, from, group)), (new.at, new.tell(book, to, group))];
            book.violated(Predicate::GM8, what, evidence);
            return;
        }
    }
}

fn both(
    book: &Book,
    views: &BTreeMap<u64, View>,
    group: Grp,
    (rival, vid): (u64, u64),
    view: &View,
) -> Vec<Evidence> {
    let other = views.get(&rival).map(|v| (v.at, v.tell(book, rival, group)));
    other.into_iter().chain([(view.at, view.tell(book, vid, group))]).collect()
}
