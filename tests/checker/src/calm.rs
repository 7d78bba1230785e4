//! What must happen once faults are over: LV1 the living agree on the view of the living, LV3 every group has one
//! leader, LV5 the crashed are out, LV9 who cannot decide says so and is silent; and GM11 where any node may found:
//! after a while one lineage acts.
//!
//! The calm lasts from `GST` until `End`, or until the harness does again what a calm excludes. The *living* are those
//! that `GST` lists. An incarnation that ends by itself (because it was removed before the calm, or goes over to another
//! lineage) is replaced in that list by the next one of its node.

use std::collections::{BTreeMap, BTreeSet};

use membership_types::trace::Process;

use crate::{
    book::{At, Book, Evidence, Grp, Lin, list},
    quorum::{Outlook, Quorum},
    reigns::{Reigns, Title},
    report::Predicate,
    terms::Terms,
    views::Views,
};

/// What liveness is judged by, besides the calm itself.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) terms: &'a Terms,
    pub(crate) views: &'a Views,
    pub(crate) quorum: &'a Quorum,
    pub(crate) reigns: &'a Reigns,
}

/// A calm that has begun.
#[derive(Debug)]
pub(crate) struct Calm {
    gst: At,
    pub(crate) living: BTreeSet<Process>,
    /// Pairs of nodes of theirs that never reach each other.
    pub(crate) apart: BTreeSet<(u64, u64)>,
    /// The epoch of the witness, if all the living reach it.
    witness: Option<Box<str>>,
    /// The lineage of each of the living when it began.
    pub(crate) homes: BTreeMap<Process, Lin>,
    /// Living incarnations that ended by themselves and have no successor yet.
    vacant: BTreeSet<u64>,
    /// When it was over, and why.
    over: Option<(u64, &'static str)>,
    /// The bounds that have not been reached yet, latest first.
    due: Vec<(u64, Due)>,
    /// Since when no view may be installed any more.
    settled: Option<u64>,
    /// The same, where some of the living never reach each other.
    pub(crate) stays: Option<u64>,
    /// Lineages that must be silent.
    lost: BTreeSet<Lin>,
    /// Since when only one lineage may act, and which one does.
    one_lineage: bool,
    acting: Option<(Lin, At, Title)>,
}

/// What is judged when a bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// LV5.
    Exclusion,
    /// LV9.
    Blocked,
    /// LV8.
    Apart,
    /// LV1.
    Agreement,
    /// LV3.
    Leaders,
    /// GM11 between lineages of which each was founded alone.
    OneLineage,
}

/// How a process stands to the primary component, by its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has a view, and has not said whether it has a lease.
    Installed,
    Primary,
    Lost,
    Evicted,
}

/// All that liveness depends on.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    pub(crate) calm: Option<Calm>,
    /// Who is gone: since when, and whether by itself.
    crashed: BTreeMap<Process, (At, bool)>,
    /// Who left the cluster of its own will.
    leavers: BTreeSet<Process>,
    /// Who left a group and did not join it again.
    out_of: BTreeSet<(Process, Grp)>,
    standing: BTreeMap<Process, (Standing, At)>,
    /// Processes that were heard of.
    known: BTreeSet<Process>,
    /// Does the trace tell of leases that are valid again? Then an `Install` alone does not claim one.
    tells_primary: bool,
}

impl Liveness {
    /// `GST`.
    pub(crate) fn begin(
        &mut self,
        scene: Scene<'_>,
        core: &[Process],
        apart: &[(Process, Process)],
        witness: Option<Box<str>>,
        at: At,
    ) {
        let Scene { terms, views, .. } = scene;
        let alive = |p: &&Process| !self.crashed.contains_key(*p) && !self.leavers.contains(*p);
        let living: BTreeSet<Process> = core.iter().filter(alive).copied().collect();
        self.known.extend(&living);
        let homes = living.iter().filter_map(|p| Some((*p, views.home(*p)?))).collect();
        let after = |bound: u64| at.t.saturating_add(bound);
        let mut due = vec![
            (after(terms.b6()), Due::Exclusion),
            (after(terms.b6()), Due::Blocked),
            (after(terms.b1()), Due::Agreement),
            (after(terms.b1()), Due::Apart),
            (after(terms.b1().saturating_add(terms.led_after())), Due::Leaders),
        ];
        if terms.alone() || !views.forced.is_empty() {
            due.push((after(terms.b9()), Due::OneLineage));
        }
        due.sort_by_key(|(t, _)| std::cmp::Reverse(*t));
        self.calm = Some(Calm {
            gst: at,
            living,
            apart: apart.iter().map(|(a, b)| (a.0, b.0)).collect(),
            witness,
            homes,
            vacant: BTreeSet::new(),
            over: None,
            due,
            settled: None,
            stays: None,
            lost: BTreeSet::new(),
            one_lineage: false,
            acting: None,
        });
    }

    /// The harness does what a calm excludes.
    pub(crate) fn disturb(&mut self, t: u64, what: &'static str) {
        if let Some(calm) = &mut self.calm {
            calm.over.get_or_insert((t, what));
        }
    }

    /// A process starts. In a calm only a node whose incarnation ended by itself goes on with the next one.
    pub(crate) fn start(&mut self, p: Process, at: At) {
        let of_node = self.crashed.range(Process(p.0, 0)..=Process(p.0, u64::MAX));
        let latest = of_node.max_by_key(|(_, (gone, _))| *gone);
        if !latest.is_some_and(|(_, (_, by_itself))| *by_itself) {
            self.disturb(at.t, "a process was started");
        }
        self.hear_of(p);
    }

    /// A process speaks as a member or a seeker. One that is new since the calm began may be the next incarnation of a
    /// living node.
    pub(crate) fn hear_of(&mut self, p: Process) {
        if !self.known.insert(p) {
            return;
        }
        let Some(calm) = self.calm.as_mut().filter(|calm| calm.over.is_none()) else { return };
        if calm.vacant.remove(&p.0) {
            calm.living.insert(p);
            return;
        }
        let before = calm.living.range(Process(p.0, 0)..=Process(p.0, u64::MAX)).next().copied();
        if let Some(before) = before {
            calm.living.remove(&before);
            calm.living.insert(p);
        }
    }

    /// A process is gone; `by_itself` if that was no fault.
    pub(crate) fn crash(&mut self, p: Process, by_itself: bool, at: At) {
        self.known.insert(p);
        self.crashed.entry(p).or_insert((at, by_itself));
        self.standing.remove(&p);
        if !by_itself {
            self.disturb(at.t, "a process crashed");
        }
        if let Some(calm) = &mut self.calm
            && calm.living.remove(&p)
            && !self.leavers.contains(&p)
        {
            calm.vacant.insert(p.0);
        }
    }

    pub(crate) fn leave(&mut self, p: Process, group: Grp, at: At) {
        if group != Grp::CLUSTER {
            self.out_of.insert((p, group));
            return;
        }
        self.leavers.insert(p);
        self.disturb(at.t, "a process left");
    }

    pub(crate) fn join(&mut self, p: Process, group: Grp) {
        self.out_of.remove(&(p, group));
        self.hear_of(p);
    }

    /// A process installs a cluster view.
    pub(crate) fn install(&mut self, book: &mut Book, p: Process, vid: u64, at: At) {
        self.hear_of(p);
        let standing = self.standing.entry(p).or_insert((Standing::Installed, at));
        if standing.0 != Standing::Primary {
            *standing = (Standing::Installed, at);
        }
        let Some(calm) = self.calm.as_ref().filter(|calm| calm.over.is_none()) else { return };
        if let Some(since) = calm.stays.filter(|_| calm.living.contains(&p)) {
            let late = at.t - calm.gst.t;
            let what = format!("{p} installs view {vid}, {late} ns after GST; all was settled at {since} ns");
            let evidence = vec![calm.told(), (at, format!("{p} installs view {vid}"))];
            book.violated(Predicate::LV8, what, evidence);
        }
        if let Some(since) = calm.settled.filter(|_| calm.living.contains(&p)) {
            let late = at.t - calm.gst.t;
            let what = format!("{p} installs view {vid}, {late} ns after GST; all was settled at {since} ns");
            let evidence = vec![calm.told(), (at, format!("{p} installs view {vid}"))];
            book.violated(Predicate::LV1, what, evidence);
        }
    }

    pub(crate) fn primary(&mut self, book: &mut Book, views: &Views, p: Process, at: At) {
        self.tells_primary = true;
        self.standing.insert(p, (Standing::Primary, at));
        let Some((calm, _)) = self.lost_calm(views, p) else { return };
        let what = format!("{p} says it is in the primary component, which has lost its quorum");
        let evidence = vec![calm.told(), (at, format!("{p} has a valid lease again"))];
        book.violated(Predicate::LV9, what, evidence);
    }

    pub(crate) fn no_primary(&mut self, p: Process, at: At) {
        self.standing.insert(p, (Standing::Lost, at));
    }

    pub(crate) fn evicted(&mut self, p: Process, at: At) {
        self.standing.insert(p, (Standing::Evicted, at));
    }

    /// The calm in which this process's lineage must be silent, if it must.
    fn lost_calm(&self, views: &Views, p: Process) -> Option<(&Calm, Lin)> {
        let calm = self.calm.as_ref().filter(|calm| calm.over.is_none() && !calm.lost.is_empty())?;
        let home = views.home(p)?;
        (calm.living.contains(&p) && calm.lost.contains(&home)).then_some((calm, home))
    }

    /// A process leads, or acts as leader.
    pub(crate) fn act(&mut self, book: &mut Book, title: Title, at: At, verb: &str) {
        let Some(calm) = self.calm.as_mut().filter(|calm| calm.over.is_none()) else { return };
        if !calm.living.contains(&title.p) {
            return;
        }
        if calm.lost.contains(&title.lin) {
            let what = format!("{} {verb} although its lineage has lost its quorum", title.p);
            let evidence = vec![calm.told(), (at, title.tell(book, verb))];
            book.violated(Predicate::LV9, what, evidence);
        }
        if !calm.one_lineage {
            return;
        }
        book.judged(Predicate::GM11);
        match calm.acting {
            None => calm.acting = Some((title.lin, at, title)),
            Some((lin, then, other)) if lin != title.lin => {
                let (a, b) = (book.names.lin_name(lin), book.names.lin_name(title.lin));
                let what = format!("lineages {a} and {b} both act, long after they could have met");
                let evidence =
                    vec![calm.told(), (then, other.tell(book, "leads")), (at, title.tell(book, verb))];
                book.violated(Predicate::GM11, what, evidence);
            }
            Some(_) => {}
        }
    }

    /// Time has come to `t`: judges what was due before.
    pub(crate) fn time(&mut self, book: &mut Book, scene: Scene<'_>, t: u64) {
        while let Some(calm) = self.calm.as_mut().filter(|calm| calm.over.is_none())
            && calm.due.last().is_some_and(|(due, _)| *due < t)
            && let Some((since, due)) = calm.due.pop()
        {
            self.judge(book, scene, since, due);
        }
    }

    /// The run is over at `now`.
    pub(crate) fn finish(&mut self, book: &mut Book, scene: Scene<'_>, now: u64) {
        self.time(book, scene, now.saturating_add(1));
        let all = [Predicate::LV1, Predicate::LV3, Predicate::LV5, Predicate::LV8, Predicate::LV9];
        let Some(calm) = &self.calm else {
            all.iter().for_each(|p| book.idle(*p, "no GST: the trace does not say when faults were over"));
            return;
        };
        match calm.over {
            Some((t, what)) => {
                let why = format!("{what} {} ns after GST, before the bound", t - calm.gst.t);
                all.iter().for_each(|p| book.idle(*p, why.clone()));
            }
            None if !calm.due.is_empty() => {
                let why = format!("the trace ends {} ns after GST, before the bound", now - calm.gst.t);
                all.iter().for_each(|p| book.idle(*p, why.clone()));
            }
            None => {
                self.check_excluded(book, scene, now.saturating_sub(scene.terms.b6()));
            }
        }
    }

    fn judge(&mut self, book: &mut Book, scene: Scene<'_>, since: u64, due: Due) {
        let Some(calm) = &mut self.calm else { return };
        // Lineages that meet only now may take longer than one that goes on.
        let mut homes: BTreeSet<Lin> = calm.homes.values().copied().collect();
        homes.extend(calm.living.iter().filter_map(|p| scene.views.home(*p)));
        let merged = calm.gst.t.saturating_add(scene.terms.b9());
        let later = match due {
            Due::Agreement | Due::Exclusion | Due::Apart => merged,
            Due::Leaders => merged.saturating_add(scene.terms.led_after()),
            Due::Blocked | Due::OneLineage => since,
        };
        if homes.len() > 1 && since < later {
            calm.due.push((later, due));
            calm.due.sort_by_key(|(t, _)| std::cmp::Reverse(*t));
            return;
        }
        match due {
            Due::Exclusion => {
                let gst = calm.gst.t;
                self.check_excluded(book, scene, gst);
            }
            Due::Blocked => self.check_blocked(book, scene),
            Due::Agreement => self.check_agreement(book, scene, since),
            Due::Apart => self.check_apart(book, scene, since),
            Due::Leaders => self.check_leaders(book, scene),
            // Who never hear of each other cannot agree on one.
            Due::OneLineage => calm.one_lineage = calm.is_connected(),
        }
    }

    /// Must the living get along? If not, says why.
    fn outlook(&self, scene: Scene<'_>) -> Result<&Calm, String> {
        let calm = self.calm.as_ref().ok_or("no GST")?;
        let Scene { terms, views, .. } = scene;
        if calm.living.is_empty() {
            return Err("nobody lives".into());
        }
        if !calm.apart.is_empty() {
            return Err("some of the living never reach each other".into());
        }
        let homes: BTreeSet<Lin> = calm.living.iter().filter_map(|p| views.home(*p)).collect();
        let decide: Vec<Lin> =
            homes.iter().copied().filter(|lin| calm.decides(scene, *lin) == Some(true)).collect();
        // Under `expect` a lineage needs a majority of the founder slots besides its quorum; so do founders.
        let has_slots = |lin: Option<Lin>| {
            lin.is_some_and(|lin| views.forced.contains(&lin))
                || calm.holds_slots(terms, |p| views.home(p) == lin)
        };
        let by_slots = !terms.slots().is_empty();
        let can_found = has_slots(None) && calm.seekers(views).any(|p| by_slots || views.may_found(p));
        if decide.iter().any(|lin| has_slots(Some(*lin))) || can_found {
            return Ok(calm);
        }
        if homes.is_empty() && has_slots(None) {
            return Err("nobody of the living is known to be able to found".into());
        }
        if !decide.is_empty() || homes.is_empty() {
            return Err("nobody holds a majority of the founder slots".into());
        }
        if homes.iter().any(|lin| calm.decides(scene, *lin).is_none()) {
            return Err("the trace does not tell the core, or whom the witness lets go on".into());
        }
        Err("the living have lost the quorum".into())
    }

    /// LV1.
    fn check_agreement(&mut self, book: &mut Book, scene: Scene<'_>, since: u64) {
        let calm = match self.outlook(scene) {
            Ok(calm) => calm,
            Err(why) => return book.idle(Predicate::LV1, why),
        };
        book.judged(Predicate::LV1);
        let mut agreed: Option<(Lin, u64, Process, At)> = None;
        let mut wrong: Option<(String, Vec<Evidence>)> = None;
        for p in &calm.living {
            let standing = self.standing.get(p).map(|(standing, _)| *standing);
            let home = scene.views.home(*p);
            let seat = home.and_then(|lin| scene.views.seat(*p, lin, Grp::CLUSTER).map(|seat| (lin, seat)));
            let Some((lin, seat)) = seat.filter(|_| standing != Some(Standing::Evicted)) else {
                wrong = Some((format!("{p} has no view of the cluster"), Vec::new()));
                break;
            };
            let view = scene.views.view(lin, Grp::CLUSTER, seat.vid);
            let members: BTreeSet<Process> =
                view.into_iter().flat_map(|v| v.members.iter().copied()).collect();
            if view.is_some() && members != calm.living {
                let extra: Vec<Process> = members.difference(&calm.living).copied().collect();
                let missing: Vec<Process> = calm.living.difference(&members).copied().collect();
                let what = format!(
                    "{p} has view {}, which lacks {} and has {} besides the living",
                    seat.vid,
                    list(&missing),
                    list(&extra)
                );
                wrong = Some((what, vec![(seat.at, format!("{p} installs view {}", seat.vid))]));
                break;
            }
            let (first_lin, vid, q, at) = *agreed.get_or_insert((lin, seat.vid, *p, seat.at));
            if (first_lin, vid) != (lin, seat.vid) {
                let what = format!("{q} has view {vid} and {p} has view {}", seat.vid);
                let evidence = vec![
                    (at, format!("{q} installs view {vid} of lineage {}", book.names.lin_name(first_lin))),
                    (
                        seat.at,
                        format!("{p} installs view {} of lineage {}", seat.vid, book.names.lin_name(lin)),
                    ),
                ];
                wrong = Some((what, evidence));
                break;
            }
        }
        if let Some((what, mut evidence)) = wrong {
            evidence.push(calm.told());
            book.violated(Predicate::LV1, format!("{what}, {} ns after GST", since - calm.gst.t), evidence);
        }
        if let Some(calm) = &mut self.calm {
            calm.settled = Some(since);
        }
    }

    /// LV3.
    fn check_leaders(&self, book: &mut Book, scene: Scene<'_>) {
        let calm = match self.outlook(scene) {
            Ok(calm) => calm,
            Err(why) => return book.idle(Predicate::LV3, why),
        };
        let Scene { views, reigns, .. } = scene;
        let mut members: BTreeMap<Grp, Vec<(Process, At)>> = BTreeMap::new();
        for p in &calm.living {
            let Some(home) = views.home(*p) else { continue };
            for (group, seat) in views.groups_of(*p, home) {
                let history = views.history(home, group);
                let last = history.and_then(|history| history.views.last_key_value());
                let stays = last.is_some_and(|(_, view)| view.members.contains(p));
                if stays && !self.out_of.contains(&(*p, group)) {
                    members.entry(group).or_default().push((*p, seat.at));
                }
            }
        }
        for (group, members) in members {
            book.judged(Predicate::LV3);
            let leads = |title: &Title| title.group == group && calm.living.contains(&title.p);
            let leaders: Vec<Title> = reigns.open().filter(leads).collect();
            let of = book.names.group_name(group);
            let mut evidence = vec![calm.told()];
            match leaders[..] {
                [_] => continue,
                [] => {
                    evidence.extend(members.iter().map(|(p, at)| (*at, format!("{p} is in {of}"))));
                    book.violated(Predicate::LV3, format!("nobody leads {of}"), evidence);
                }
                [a, b, ..] => {
                    let began = |t: Title| reigns.get(t).map(|r| (r.start, t.tell(book, "begins to lead")));
                    evidence.extend([a, b].into_iter().filter_map(began));
                    book.violated(Predicate::LV3, format!("{} and {} both lead {of}", a.p, b.p), evidence);
                }
            }
        }
    }

    /// LV5, about those who were gone at `t` at the latest.
    fn check_excluded(&self, book: &mut Book, scene: Scene<'_>, t: u64) {
        let calm = match self.outlook(scene) {
            Ok(calm) => calm,
            Err(why) => return book.idle(Predicate::LV5, why),
        };
        let gone: BTreeMap<&Process, &At> =
            self.crashed.iter().map(|(p, (at, _))| (p, at)).filter(|(_, at)| at.t <= t).collect();
        if gone.is_empty() {
            return book.idle(Predicate::LV5, "nobody crashed");
        }
        for p in &calm.living {
            let Some(home) = scene.views.home(*p) else { continue };
            if self.standing.get(p).is_some_and(|(standing, _)| *standing == Standing::Evicted) {
                continue;
            }
            book.judged(Predicate::LV5);
            let cluster = scene.views.seat(*p, home, Grp::CLUSTER).map(|seat| (Grp::CLUSTER, seat));
            let groups = scene.views.groups_of(*p, home).filter(|(g, _)| !self.out_of.contains(&(*p, *g)));
            for (group, seat) in cluster.into_iter().chain(groups) {
                let Some(view) = scene.views.view(home, group, seat.vid) else { continue };
                let Some(dead) = view.members.iter().find(|q| gone.contains_key(q)) else { continue };
                let of = book.names.group_name(group);
                let what = format!("{p} still has {dead} in its view {} of {of}", seat.vid);
                let evidence = vec![
                    (*gone[dead], format!("{dead} is gone")),
                    (seat.at, format!("{p} installs view {} of {of} {}", seat.vid, list(&view.members))),
                    calm.told(),
                ];
                book.violated(Predicate::LV5, what, evidence);
                return;
            }
        }
    }

    /// LV9.
    fn check_blocked(&mut self, book: &mut Book, scene: Scene<'_>) {
        let Some(calm) = &self.calm else { return };
        let mut lost = BTreeSet::new();
        for p in &calm.living {
            let Some(home) = scene.views.home(*p) else { continue };
            if calm.decides(scene, home) != Some(false) {
                continue;
            }
            lost.insert(home);
            book.judged(Predicate::LV9);
            let Some((standing, at)) = self.standing.get(p).copied() else { continue };
            let claims =
                standing == Standing::Primary || standing == Standing::Installed && !self.tells_primary;
            if !claims {
                continue;
            }
            let mut evidence = vec![calm.told(), (at, format!("{p} says it is in the primary component"))];
            if let Some((core, known)) = scene.quorum.last_core(home) {
                evidence.push((*known, format!("the core is {}", list(&core.members))));
            }
            let what = format!("{p} does not say that it is blocked, although the quorum is lost");
            book.violated(Predicate::LV9, what, evidence);
        }
        if lost.is_empty() {
            book.idle(Predicate::LV9, "no quorum was lost for good");
        }
        if let Some(calm) = &mut self.calm {
            calm.lost = lost;
        }
    }
}

impl Calm {
    pub(crate) fn told(&self) -> Evidence {
        let living: Vec<Process> = self.living.iter().copied().collect();
        (self.gst, format!("no more faults; up and connected are {}", list(&living)))
    }

    /// The living that are in no lineage.
    fn seekers(&self, views: &Views) -> impl Iterator<Item = Process> {
        self.living.iter().copied().filter(|p| views.home(*p).is_none())
    }

    pub(crate) fn gst(&self) -> At {
        self.gst
    }

    /// Do those of the living hold a majority of the founder slots? True where slots are not used.
    pub(crate) fn holds_slots(&self, terms: &Terms, which: impl Fn(Process) -> bool) -> bool {
        let nodes: BTreeSet<u64> = self.living.iter().filter(|p| which(**p)).map(|p| p.0).collect();
        let held = terms.slots().iter().filter(|slot| nodes.contains(slot)).count();
        terms.slots().is_empty() || 2 * held > terms.slots().len()
    }

    /// Can the living decide in a lineage? `None` if the trace does not tell.
    fn decides(&self, scene: Scene<'_>, lin: Lin) -> Option<bool> {
        match scene.quorum.can_decide(lin, &self.living, self.witness.as_deref()) {
            Some(Outlook::Can) => return Some(true),
            Some(Outlook::Cannot) => return Some(false),
            Some(Outlook::Unknown) => return None,
            None => {}
        }
        let (_, view) = scene.views.history(lin, Grp::CLUSTER)?.views.last_key_value()?;
        let left = view.members.iter().filter(|p| self.living.contains(p)).count();
        (2 * left > view.members.len()).then_some(true)
    }
}
