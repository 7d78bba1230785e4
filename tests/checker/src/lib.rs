//! Judges traces: which predicates of the specification hold, and which events prove that one does not.
//!
//! A trace is what the simulator, tests with real processes, or nodes in production say happened: the records of
//! [`membership_types::trace`]. `SPEC.md` beside this crate states every predicate. A [`Checker`] sees the records one
//! by one, in order of time, keeps what it needs and no more, and gives a [`Report`] at the end.
//!
//! ```
//! use checker::{Checker, Outcome, Predicate};
//!
//! let trace = r#"
//! {"v":1,"src":"h","seq":1,"t":0,"ev":"Cfg","lease":1000000000,"rho":0.01}
//! {"v":1,"src":"p:1.a","seq":1,"t":5,"ev":"Install","p":[1,10],"lin":"c0","vid":7,"members":[[2,11]],"prev":0}
//! {"v":1,"src":"h","seq":2,"t":9,"ev":"End"}
//! "#;
//! let mut checker = Checker::new();
//! for line in trace.lines().filter(|line| !line.is_empty()) {
//!     checker.observe(&serde_json::from_str(line)?);
//! }
//! let report = checker.finish();
//! assert_eq!(report.verdict(Predicate::GM1).outcome, Outcome::Fail); // it is not in the view that it installs
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! # Map
//!
//! `intake.rs` decides whether a trace is evidence; `book.rs` gathers what was judged and found; `report.rs` is what
//! comes out; `read.rs` reads files. Views: `views.rs` (GM1, GM2, GM4), `chain.rs` (GM5, GM7, GM8), `quorum.rs` (GM6, GM6a),
//! `floors.rs` (GM2n), `reasons.rs` (GM9, LV7), `sponsors.rs` (GM10). Messages: `multicast.rs` (VS1 to VS14, LV2, LV4). Leaders: `title.rs` (GM3, LD1),
//! `reigns.rs` (LD2, GM11), `fences.rs` (LD3, LD5), `zombie.rs` (LD4), `silence.rs` (GM12). After faults: `calm.rs` (LV1, LV3, LV5,
//! LV9), `accuracy.rs` (LV6), `apart.rs` (LV8). Who may do what: `orders.rs` (SE3), `names.rs` (SE5). `terms.rs` is what the run promises.
#![forbid(unsafe_code)]

mod accuracy;
mod apart;
mod book;
mod calm;
mod chain;
mod fences;
mod floors;
mod intake;
mod multicast;
mod names;
mod orders;
mod quorum;
mod read;
mod reasons;
mod reigns;
mod report;
mod silence;
mod sponsors;
mod terms;
mod title;
mod views;
mod zombie;

use std::collections::{HashMap, HashSet};

use membership_types::trace::{self, Event, Group, LinkState, Process, Record, Source, Tok};

pub use read::{MAX_LINE, Merged, ReadError, check_files, check_input, read_files};
pub use report::{Invalid, Outcome, Predicate, Report, Verdict, Witness};

use accuracy::Accuracy;
use book::{At, Book, Grp, Lin};
use calm::{Liveness, Scene};
use fences::{Answers, Claim, Fences};
use floors::Floors;
use intake::Intake;
use multicast::{Entry, Multicasts};
use names::Names;
use orders::Orders;
use quorum::{Core, Quorum};
use reasons::Reasons;
use reigns::{Close, Reigns, Title};
use silence::Silence;
use sponsors::Sponsors;
use terms::Terms;
use title::Titles;
use views::{Told, Views};
use zombie::Zombies;

/// For what is looked up with every record, and never gone through: an order would cost more than it is worth.
type Map<K, V> = HashMap<K, V, foldhash::fast::FixedState>;
type Set<T> = HashSet<T, foldhash::fast::FixedState>;

/// Judges one trace, record by record.
///
/// Records come in order of time; those of one source in order of their numbers. A trace that breaks the rules of
/// intake (a hole in the numbers, no `Cfg` first, and so on) is no evidence: nothing after that point is looked at.
#[derive(Default)]
pub struct Checker {
    intake: Intake,
    book: Book,
    terms: Option<Terms>,
    views: Views,
    floors: Floors,
    quorum: Quorum,
    titles: Titles,
    reigns: Reigns,
    zombies: Zombies,
    silence: Silence,
    fences: Fences,
    answers: Answers,
    liveness: Liveness,
    accuracy: Accuracy,
    reasons: Reasons,
    multicasts: Multicasts,
    orders: Orders,
    names: Names,
    sponsors: Sponsors,
    last: Option<At>,
}

impl Checker {
    /// A checker that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next record.
    pub fn observe(&mut self, record: &Record) {
        let opens = matches!(record.event, Event::Cfg(_));
        let Record { v, src, seq, t, event } = record;
        let Some(at) = self.intake.admit(*v, src, *seq, *t, opens) else { return };
        if !self.intake.trust(record) {
            return;
        }
        if self.last.is_none_or(|last| last.t < at.t) {
            self.time(at.t);
        }
        self.last = Some(at);
        match event {
            Event::Cfg(cfg) => {
                self.intake.open(src);
                if self.terms.is_none() || *src == Source::Harness {
                    let terms = Terms::new(cfg.clone());
                    self.reigns.one_lineage_at_a_time = !terms.alone();
                    self.floors.promised = terms.durable();
                    self.floors.unique = !terms.slots().len().is_multiple_of(2);
                    self.quorum.witnessed = terms.witness();
                    self.terms = Some(terms);
                }
            }
            Event::End {} => self.intake.close(src),
            Event::Start { .. }
            | Event::Crash { .. }
            | Event::Pause { .. }
            | Event::Resume { .. }
            | Event::Starve { .. }
            | Event::Lack { .. }
            | Event::Link { .. }
            | Event::Clock { .. }
            | Event::Gst { .. } => self.harness(event, at),
            Event::LeadStart { .. }
            | Event::LeadAct { .. }
            | Event::LeadEnd { .. }
            | Event::Effect { .. }
            | Event::WhoLeads { .. } => self.leadership(event, at),
            _ => self.membership(event, if let Source::Process(p) = src { Some(*p) } else { None }, at),
        }
    }

    /// Time has come to `t`.
    fn time(&mut self, t: u64) {
        self.quorum.time(&mut self.book, t);
        self.sponsors.time(&mut self.book, &self.quorum, t);
        self.answers.time(&mut self.book, t);
        if let Some(terms) = &self.terms {
            let (views, quorum, reigns) = (&self.views, &self.quorum, &self.reigns);
            self.liveness.time(&mut self.book, Scene { terms, views, quorum, reigns }, t);
            self.multicasts.time(&mut self.book, terms, t);
        }
    }

    fn harness(&mut self, event: &Event, at: At) {
        match event {
            Event::Start { p } => {
                self.accuracy.start(*p);
                self.reasons.start(self.terms.as_ref(), *p, at);
                self.liveness.start(*p, at);
            }
            Event::Crash { p, how } => {
                self.intake.excuse(*p);
                if how == "SIGKILL" {
                    self.multicasts.cut_short(*p);
                    self.sponsors.cut_short(*p, at);
                    self.reasons.cut_short(*p, at);
                }
                // Who ends its incarnation itself has not been hit by anything.
                let by_itself = how.starts_with("ended");
                self.accuracy.crash(*p, by_itself);
                self.reasons.crash(*p, by_itself, at);
                // Nobody can tell when it would have noticed that its lease was over, had it run until then; and the
                // records of its last instant may be incomplete.
                let [before, last] = self.intake.heard(*p).unwrap_or_default();
                let close = Close::Unknown(if last < at.t { last } else { before });
                for title in self.reigns.open_of(*p) {
                    self.reigns.close(&mut self.book, title, close, at);
                }
                self.liveness.crash(*p, by_itself, at);
            }
            Event::Pause { p } => {
                self.accuracy.fault("a process was stopped");
                self.reasons.pause(self.terms.as_ref(), at);
                self.liveness.disturb(at.t, "a process was stopped");
                self.multicasts.disturb();
                self.zombies.pause(*p, at);
            }
            Event::Resume { p } => {
                self.reasons.mended(at);
                let lapsed = self.terms.as_ref().map_or(u64::MAX, Terms::lapsed_after);
                self.zombies.resume(&mut self.book, &self.reigns, *p, at, lapsed);
            }
            // A node that heartbeats ten times a lease must do with a fifth of a processor.
            Event::Starve { quota, .. } => {
                if *quota < 0.2 {
                    self.accuracy.fault("a process was starved");
                    self.reasons.fault(self.terms.as_ref(), at);
                }
                self.liveness.disturb(at.t, "a process was starved");
                self.multicasts.disturb();
            }
            Event::Lack { .. } => {
                self.accuracy.fault("a process lacked memory or files");
                self.reasons.fault(self.terms.as_ref(), at);
                self.liveness.disturb(at.t, "a process lacked memory or files");
                self.multicasts.disturb();
            }
            Event::Link { a, b, state, .. } if *state != LinkState::Ok => {
                self.reasons.loses((*a, *b), *state == LinkState::Loss);
                self.accuracy.fault("a link was disturbed");
                self.reasons.fault(self.terms.as_ref(), at);
                self.liveness.disturb(at.t, "a link was disturbed");
                self.multicasts.disturb();
            }
            Event::Link { a, b, .. } => {
                self.reasons.loses((*a, *b), false);
                self.reasons.mended(at);
            }
            Event::Clock { p, kind, par } => self.clock(*p, kind, *par, at),
            Event::Gst { core, apart, witness } => {
                let Some(terms) = &self.terms else { return };
                let (views, quorum, reigns) = (&self.views, &self.quorum, &self.reigns);
                let witness = witness.as_deref().map(Into::into);
                self.liveness.begin(Scene { terms, views, quorum, reigns }, core, apart, witness, at);
                if apart.is_empty() {
                    self.multicasts.begin(core, at.t.saturating_add(terms.b1()));
                } else {
                    self.accuracy.fault("some never reach each other");
                    self.multicasts.disturb();
                }
            }
            _ => {}
        }
    }

    /// What leases can stand is no fault; beyond that, nothing that rests on clocks is claimed any more.
    fn clock(&mut self, p: Process, kind: &str, par: Option<f64>, at: At) {
        let within = match kind {
            "rt_jump" => true,
            "rate" => par.zip(self.terms.as_ref()).is_some_and(|(rate, terms)| terms.tolerates_rate(rate)),
            _ => false,
        };
        if within {
            return;
        }
        let why = format!("the interval clock of {p} was tampered with at {} ns", at.t);
        for predicate in [Predicate::LD2, Predicate::LD4, Predicate::GM11] {
            self.book.waive(predicate, why.clone());
        }
        self.accuracy.fault("a clock was tampered with");
        self.reasons.fault(self.terms.as_ref(), at);
        self.liveness.disturb(at.t, "a clock was tampered with");
    }

    fn membership(&mut self, event: &Event, by: Option<Process>, at: At) {
        match event {
            Event::Join { p, g, .. } => {
                let group = self.book.names.group(g);
                self.liveness.join(*p, group);
                self.multicasts.wish(*p, group, false);
            }
            Event::Leave { p, g } => {
                let group = self.book.names.group(g);
                self.views.wills.leave(*p, group);
                self.multicasts.wish(*p, group, true);
                self.liveness.leave(*p, group, at);
                if group == Grp::CLUSTER {
                    self.reasons.leave(*p, at);
                }
            }
            Event::Install { p, g, lin, vid, members, prev, trans, idx, snap } => {
                let (p, lin, group) = (*p, self.book.names.lin(lin), self.book.names.group(g));
                let (vid, prev, idx, snap) = (*vid, *prev, *idx, *snap);
                let told = Told { p, lin, group, vid, members, prev, idx, snap, at };
                self.views.install(&mut self.book, &told);
                for out in std::mem::take(&mut self.views.wills.excluded) {
                    self.reasons.excluded(&mut self.book, self.terms.as_ref(), &out);
                }
                for new in std::mem::take(&mut self.views.wills.arrived) {
                    self.sponsors.arrived(new);
                }
                self.floors.installed(&mut self.book, &told);
                if group == Grp::CLUSTER {
                    let heard = |q: Process| self.intake.heard(q).is_some();
                    self.names.installed(&mut self.book, p, members, heard, at);
                    self.reasons.view(&mut self.book, self.terms.as_ref(), lin, vid, at);
                    if let Some(idx) = idx {
                        self.quorum.installed(&mut self.book, lin, idx, vid, p, at);
                    }
                    self.silence.end(p);
                    self.accuracy.install();
                    self.liveness.install(&mut self.book, p, vid, at);
                } else {
                    let entry = Entry { p, vid, prev, members, trans, at };
                    self.multicasts.install(&mut self.book, (lin, group), entry);
                }
            }
            Event::Mcast { p, g, lin, vid, mid, cls, h } => {
                let key = (self.book.names.lin(lin), self.book.names.group(g));
                let told = multicast::Told { p: *p, vid: *vid, mid: *mid, h, at };
                self.multicasts.mcast(&mut self.book, key, told, cls);
            }
            Event::Deliver { p, g, lin, vid, mid, h, tseq } => {
                let key = (self.book.names.lin(lin), self.book.names.group(g));
                let told = multicast::Told { p: *p, vid: *vid, mid: *mid, h, at };
                self.multicasts.deliver(&mut self.book, key, told, *tseq);
            }
            Event::Stable { p, g, lin, vid, mid } => {
                let key = (self.book.names.lin(lin), self.book.names.group(g));
                let told = multicast::Told { p: *p, vid: *vid, mid: *mid, h: &trace::Digest::Own(0), at };
                self.silence.check_stable(&mut self.book, *p, *mid, at);
                self.multicasts.stable(&mut self.book, key, told);
            }
            Event::AppState { p, g, lin, vid, digest } => {
                let key = (self.book.names.lin(lin), self.book.names.group(g));
                let told = multicast::State { p: *p, vid: *vid, digest, at };
                self.multicasts.app_state(&mut self.book, key, told);
            }
            Event::Block { p, g, lin, .. } => {
                let key = (self.book.names.lin(lin), self.book.names.group(g));
                self.multicasts.block(key, *p, at);
            }
            Event::Watch { p, g, lin, vid, members, prev } => {
                let (p, lin, group) = (*p, self.lineage(*p, lin.as_ref()), self.book.names.group(g));
                let (vid, prev) = (*vid, *prev);
                let told = Told { p, lin, group, vid, members, prev, idx: None, snap: false, at };
                self.views.watch(&mut self.book, &told);
            }
            Event::Evicted { p, .. } => {
                self.silence.begin(&mut self.book, *p, at, "was evicted");
                self.liveness.evicted(*p, at);
            }
            Event::Suspect { p, q, why } => {
                self.accuracy.suspect(*p, *q, why, at);
                self.reasons.suspect(*p, *q);
            }
            Event::Unsuspect { p, q } => self.reasons.unsuspect(*p, *q),
            Event::Admin { p, op, who } => self.orders.taken(&mut self.book, *p, op, who, at),
            Event::Auth { p, q, name } => {
                self.sponsors.met(*p, *q, at);
                if let Some(name) = name {
                    self.names.met(&mut self.book, *p, *q, name, at);
                }
            }
            Event::Force { p, lin, .. } => {
                self.orders.forced(&mut self.book, *p, at);
                let new = self.book.names.lin(lin);
                self.views.forced.insert(new);
                self.reigns.forced.insert(new);
                self.floors.forced(&mut self.book);
            }
            Event::NoPrimary { p } => {
                self.silence.begin(&mut self.book, *p, at, "lost the primary component");
                self.liveness.no_primary(*p, at);
                self.multicasts.primary(*p, false);
            }
            Event::LeaseEnd { p } => self.silence.begin(&mut self.book, *p, at, "lost its lease"),
            Event::Primary { p } => {
                self.silence.end(*p);
                self.multicasts.primary(*p, true);
                self.liveness.primary(&mut self.book, &self.views, *p, at);
            }
            Event::Core { lin, idx, members, warrant } => {
                let lin = self.book.names.lin(lin);
                let warrant = warrant.as_ref().map(|(core, epoch)| (*core, epoch.as_str().into()));
                let core = Core { members: members.clone(), warrant };
                self.quorum.core(&mut self.book, lin, *idx, core, by, at);
            }
            Event::Witness { lin, core, epoch, half } => {
                let lin = self.book.names.lin(lin);
                self.quorum.recorded(&mut self.book, lin, (*core, epoch.as_str().into()), half, at);
            }
            Event::Accept { p, lin, idx, ballot, digest, core, epoch } => {
                let lin = self.book.names.lin(lin);
                let warrant = epoch.as_deref().map(|epoch| (*idx, epoch.into()));
                let core = core.as_ref().map(|members| Core { members: members.clone(), warrant });
                self.quorum.stored(lin, *idx, *p, core);
                self.quorum.accept(&mut self.book, lin, *idx, *ballot, digest, *p, at);
            }
            Event::Proof { p, q, leased, .. } => self.quorum.proof(*p, *q, *leased, at),
            _ => {}
        }
    }

    fn leadership(&mut self, event: &Event, at: At) {
        match event {
            Event::LeadStart { p, g, lin, tok } => {
                let title = self.title(*p, g, lin.as_ref(), *tok);
                self.titles.start(&mut self.book, &self.views, title, at);
                self.silence.check(&mut self.book, title, at, "begins to lead");
                self.zombies.start(&mut self.book, &self.reigns, title, at);
                self.reigns.start(&mut self.book, title, at);
                self.answers.start(&mut self.book, title.group, title.lin, title.tok, title.p, at);
                self.floors.leads(&mut self.book, title, at);
                self.liveness.act(&mut self.book, title, at, "begins to lead");
            }
            Event::LeadAct { p, g, lin, tok, .. } => {
                let title = self.title(*p, g, lin.as_ref(), *tok);
                self.titles.act(&mut self.book, &self.views, &self.reigns, title, at);
                self.silence.check(&mut self.book, title, at, "acts");
                self.zombies.act(&mut self.book, &self.reigns, title, at);
                self.reigns.act(&mut self.book, title, at);
                self.liveness.act(&mut self.book, title, at, "acts");
            }
            Event::LeadEnd { p, g, lin, tok, until, .. } => {
                let title = self.title(*p, g, lin.as_ref(), *tok);
                self.titles.end(&mut self.book, &self.reigns, title, at);
                if let Some(until) = *until
                    && let Some(acted) = self.reigns.get(title).filter(|r| r.open).and_then(|r| r.last_act)
                {
                    self.silence.check_end(&mut self.book, title, acted, until, at);
                }
                self.reigns.close(&mut self.book, title, Close::Said(until.unwrap_or(at.t)), at);
            }
            Event::Effect { g, lin, tok, p, ok, .. } => {
                let claim = self.claim(*p, g, lin.as_ref(), *tok, at);
                self.fences.effect(&mut self.book, claim, *ok);
            }
            Event::WhoLeads { g, lin, p, tok, .. } => {
                let claim = self.claim(*p, g, lin.as_ref(), *tok, at);
                self.answers.answer(&mut self.book, claim);
            }
            _ => {}
        }
    }

    /// The lineage that is named, else the one in which the process has its views.
    fn lineage(&mut self, p: Process, named: Option<&trace::Lin>) -> Lin {
        match named {
            Some(name) => self.book.names.lin(name),
            None => self.views.home(p).unwrap_or_else(|| self.book.names.lin(&trace::Lin::default())),
        }
    }

    fn title(&mut self, p: Process, g: &Group, lin: Option<&trace::Lin>, tok: Tok) -> Title {
        let (lin, group) = (self.lineage(p, lin), self.book.names.group(g));
        Title { group, lin, tok, p }
    }

    fn claim(&mut self, p: Process, g: &Group, lin: Option<&trace::Lin>, tok: Tok, at: At) -> Claim {
        let (lin, group) = (self.lineage(p, lin), self.book.names.group(g));
        Claim { group, lin, p, tok, at }
    }

    /// The verdicts.
    pub fn finish(mut self) -> Report {
        let now = self.intake.now();
        if let Some(last) = self.last.filter(|_| self.intake.invalid.is_none()) {
            self.quorum.time(&mut self.book, u64::MAX);
            self.answers.time(&mut self.book, u64::MAX);
            if let Some(terms) = &self.terms {
                let (views, quorum, reigns) = (&self.views, &self.quorum, &self.reigns);
                self.liveness.finish(&mut self.book, Scene { terms, views, quorum, reigns }, now);
            }
            // Who was stopped and never continued may have lost its lease long ago; whose trace breaks off may be dead.
            let open: Vec<Title> = self.reigns.open().collect();
            for title in open {
                let heard = self.intake.heard(title.p).map_or(0, |heard| heard[1]);
                let lost = Some(heard).filter(|_| self.intake.breaks_off(title.p));
                let until = lost.or_else(|| self.zombies.asleep_since(title.p, now)).unwrap_or(now);
                self.reigns.close(&mut self.book, title, Close::Unknown(until), last);
            }
            self.multicasts.finish(&mut self.book);
            let lease = self.terms.as_ref().map_or(0, Terms::lease);
            self.sponsors.finish(&mut self.book, &self.quorum, lease);
            self.reasons.finish(&mut self.book, lease);
            if !self.intake.has_harness() {
                self.accuracy.fault("no harness tells of them");
            }
            self.accuracy.finish(&mut self.book, &self.views.wills);
        }
        let (sources, invalid) = self.intake.finish();
        let verdicts = self.book.verdicts(&sources, invalid.is_none());
        Report { verdicts, invalid }
    }
}
