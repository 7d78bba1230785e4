//! View-synchronous multicast: VS1-VS14 while messages come, LV2 and LV4 after the faults.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use membership_types::trace::{Digest, Mid, Process};

use crate::{
    Map, Set,
    book::{At, Book, Evidence, Grp, Lin, list},
    report::Predicate,
    terms::Terms,
};

/// How many views of one group are remembered.
const KEPT: usize = 64;

/// A message as it was sent.
#[derive(Clone, Debug)]
struct Sent {
    vid: u64,
    class: Class,
    h: Digest,
    at: At,
    /// The highest place that its sender had delivered in the view.
    after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Fifo,
    Ordered,
    Safe,
}

/// What a process delivered in one view, and how it left it.
#[derive(Clone, Debug, Default)]
struct Stay {
    vid: u64,
    at: Option<At>,
    set: Set<Mid>,
    /// The sequenced ones, in order.
    sequence: Vec<Mid>,
    /// The last place.
    place: u64,
    /// Sent in this view.
    own: Vec<Mid>,
    blocked: Option<At>,
}

/// What every process that leaves a view must have delivered there, and why.
#[derive(Clone, Debug)]
struct Must {
    predicate: Predicate,
    by: Process,
    at: At,
}

impl Stay {
    /// Places come one after the other.
    fn step(&mut self, book: &mut Book, told: Told<'_>, place: u64) {
        let Told { p, vid, mid, at, .. } = told;
        book.judged(Predicate::VS11);
        if place != self.place + 1 {
            let what =
                format!("{p} delivers {mid} at place {place} of view {vid}, after place {}", self.place);
            book.violated(Predicate::VS11, what, vec![(at, says(p, "delivers", mid, vid))]);
        }
        self.place = place;
    }
}

/// The sequence of one view: by place, and by message with who said so.
type Places = (Map<u64, Mid>, Map<Mid, (u64, Process, At)>);

/// Who installed a view, from which one, and with whom.
type Came = (Process, u64, Vec<Process>, At);

/// What is known of one view.
#[derive(Debug, Default)]
struct Known {
    /// Who left it for its successor, and for which, with what it had delivered.
    closed: Vec<(Process, u64, Arc<Stay>)>,
    must: Map<Mid, Must>,
    /// Which message has which place, and who said so.
    places: Places,
    /// Who installed it: from which one, with whom.
    installs: Vec<Came>,
    /// What applications held when it began, as the first one said.
    state: Option<(Process, Box<str>, At)>,
}

/// One group of one lineage.
#[derive(Debug, Default)]
struct Room {
    sent: Map<Mid, Sent>,
    stays: BTreeMap<Process, Stay>,
    known: BTreeMap<u64, Known>,
    /// There is multicast in this group.
    active: bool,
}

/// An install, with its names made short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) p: Process,
    pub(crate) vid: u64,
    pub(crate) prev: u64,
    pub(crate) members: &'a [Process],
    pub(crate) trans: &'a [Process],
    pub(crate) at: At,
}

/// A message that was sent, delivered or found stable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) p: Process,
    pub(crate) vid: u64,
    pub(crate) mid: Mid,
    pub(crate) h: &'a Digest,
    pub(crate) at: At,
}

/// What an application holds when a view begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State<'a> {
    pub(crate) p: Process,
    pub(crate) vid: u64,
    pub(crate) digest: &'a str,
    pub(crate) at: At,
}

/// All groups, and what is expected of the living.
#[derive(Debug, Default)]
pub(crate) struct Multicasts {
    rooms: BTreeMap<(Lin, Grp), Room>,
    core: BTreeSet<Process>,
    /// Who has no lease: nothing safe reaches it.
    blocked: BTreeSet<Process>,
    /// Who asked to be in a group no longer.
    leaving: BTreeSet<(Process, Grp)>,
    /// What was delivered and nobody is known to have sent: a violation, unless its sender's last records are lost.
    unsent: Vec<(Mid, String, (At, String))>,
    /// Whose last records may be lost.
    cut_short: BTreeSet<Process>,
    /// From when on what is sent must arrive.
    settled: Option<u64>,
    /// Messages that must have arrived by then, in order of time.
    due: VecDeque<(u64, (Lin, Grp), Mid)>,
    /// Who may wait for the closing of a view: all whose stay is blocked.
    closing: BTreeSet<((Lin, Grp), Process)>,
}

fn says(p: Process, what: &str, mid: Mid, vid: u64) -> String {
    format!("{p} {what} message {mid} in view {vid}")
}

impl Multicasts {
    fn room(&mut self, key: (Lin, Grp)) -> &mut Room {
        self.rooms.entry(key).or_default()
    }

    /// `Install` of a view of a group.
    pub(crate) fn install(&mut self, book: &mut Book, key: (Lin, Grp), entry: Entry<'_>) {
        let Entry { p, vid, prev, at, .. } = entry;
        let room = self.room(key);
        let before = room.stays.remove(&p).filter(|stay| prev != 0 && stay.vid == prev);
        let stay = Stay { vid, at: Some(at), ..Stay::default() };
        room.stays.insert(p, stay);
        self.closing.remove(&(key, p));
        let room = self.room(key);
        if let Some(before) = before
            && room.active
        {
            room.close(book, entry, before);
        }
        room.came_along(book, entry);
        room.forget();
    }

    /// `Mcast`.
    pub(crate) fn mcast(&mut self, book: &mut Book, key: (Lin, Grp), told: Told<'_>, cls: &str) {
        let Told { p, vid, mid, h, at } = told;
        let class = match cls {
            "fifo" | "causal" => Class::Fifo,
            "safe" => Class::Safe,
            _ => Class::Ordered,
        };
        let settled = self.settled.filter(|t| *t <= at.t && self.core.contains(&p)).is_some();
        let room = self.room(key);
        room.active = true;
        let stay = room.stays.get_mut(&p);
        book.judged(Predicate::VS4b);
        let wrong = match &stay {
            None => Some((format!("{p} sends without having installed a view"), None)),
            Some(s) if s.vid != vid => {
                Some((format!("{p} has view {} and sends in view {vid}", s.vid), s.at))
            }
            Some(s) => s.blocked.map(|b| (format!("{p} sends in view {vid}, which closes"), Some(b))),
        };
        if let Some((what, since)) = wrong {
            let mut evidence: Vec<Evidence> = vec![(at, says(p, "sends", mid, vid))];
            evidence.extend(since.map(|s| (s, format!("{p} has its view, or blocks"))));
            book.violated(Predicate::VS4b, what, evidence);
        }
        let after = stay.as_ref().map_or(0, |s| s.place);
        if let Some(stay) = stay {
            stay.own.push(mid);
        }
        room.sent.insert(mid, Sent { vid, class, h: h.clone(), at, after });
        if settled {
            self.due.push_back((at.t, key, mid));
        }
    }

    /// `Block`.
    pub(crate) fn block(&mut self, key: (Lin, Grp), p: Process, at: At) {
        let room = self.room(key);
        room.active = true;
        if let Some(stay) = room.stays.get_mut(&p) {
            stay.blocked.get_or_insert(at);
            self.closing.insert((key, p));
        }
    }

    /// `Leave` and `Join`: what a process that is on its way out waits for is nobody's business.
    pub(crate) fn wish(&mut self, p: Process, group: Grp, to_leave: bool) {
        if to_leave {
            self.leaving.insert((p, group));
        } else {
            self.leaving.remove(&(p, group));
        }
    }

    /// `Deliver`.
    pub(crate) fn deliver(&mut self, book: &mut Book, key: (Lin, Grp), told: Told<'_>, place: Option<u64>) {
        let Told { p, vid, mid, h, at } = told;
        let room = self.room(key);
        room.active = true;
        // Text is made only where something is wrong: nothing else is told so often.
        let delivers = || (at, says(p, "delivers", mid, vid));
        book.judged(Predicate::VS1);
        let Some(sent) = room.sent.get(&mid) else {
            // Its sender may have been killed before it wrote that: the message counts all the same.
            if let Some(stay) = room.stays.get_mut(&p).filter(|stay| stay.vid == vid) {
                stay.set.insert(mid);
                if let Some(place) = place {
                    stay.step(book, told, place);
                    room.known.entry(vid).or_default().place(book, told, place);
                }
            }
            self.unsent.push((mid, format!("{p} delivers {mid}, which nobody sent"), delivers()));
            return;
        };
        let (sent_at, sent_in, class, after) = (sent.at, sent.vid, sent.class, sent.after);
        let sends = || (sent_at, says(mid.sender(), "sends", mid, sent_in));
        if sent.h != *h {
            let what = format!("{mid} changed on its way to {p}");
            book.violated(Predicate::VS1, what, vec![sends(), delivers()]);
            return;
        }
        book.judged(Predicate::VS4);
        if sent_in != vid {
            let what = format!("{mid} was sent in view {sent_in} and is delivered in view {vid}");
            book.violated(Predicate::VS4, what, vec![sends(), delivers()]);
        }
        book.judged(Predicate::VS3);
        let Some(stay) = room.stays.get_mut(&p).filter(|stay| stay.vid == vid) else {
            let what = format!("{p} delivers {mid} in view {vid}, which is not its view");
            book.violated(Predicate::VS3, what, vec![sends(), delivers()]);
            return;
        };
        book.judged(Predicate::VS2);
        if !stay.set.insert(mid) {
            book.violated(Predicate::VS2, format!("{p} delivers {mid} twice"), vec![delivers()]);
            return;
        }
        // VS8: what the sender sent before it in the view was delivered before it.
        book.judged(Predicate::VS8);
        let before = mid.2.checked_sub(1).map(|n| Mid(mid.0, mid.1, n));
        let lacks = before.filter(|before| !stay.set.contains(before));
        let earlier = lacks.and_then(|b| room.sent.get(&b).filter(|s| s.vid == vid).map(|s| (b, s.at)));
        if let Some((earlier, then)) = earlier {
            let what = format!("{p} delivers {mid} before {earlier}, which its sender sent earlier");
            let evidence = vec![(then, says(mid.sender(), "sends", earlier, vid)), sends(), delivers()];
            book.violated(Predicate::VS8, what, evidence);
        }
        if class != Class::Fifo {
            stay.sequence.push(mid);
        }
        if let Some(place) = place {
            stay.step(book, told, place);
            book.judged(Predicate::VS9);
            if place <= after {
                let what = format!(
                    "{mid} has place {place}, and its sender had delivered place {after} before it sent it"
                );
                book.violated(Predicate::VS9, what, vec![sends(), delivers()]);
            }
            room.known.entry(vid).or_default().place(book, told, place);
        } else if class == Class::Safe
            && let Some(known) = room.known.get(&vid).filter(|known| known.must.contains_key(&mid))
            && let Some((other, q, then)) = known.places.1.get(&mid).copied()
        {
            let what =
                format!("{q} delivered the safe {mid} at place {other} of view {vid}, {p} without a place");
            let evidence = vec![(then, says(q, "delivers", mid, vid)), delivers()];
            book.violated(Predicate::VS11, what, evidence);
        }
        if class == Class::Safe {
            room.known.entry(vid).or_default().must(book, told, Predicate::VS12);
        }
    }

    /// `Stable`.
    pub(crate) fn stable(&mut self, book: &mut Book, key: (Lin, Grp), told: Told<'_>) {
        self.room(key).known.entry(told.vid).or_default().must(book, told, Predicate::VS13);
    }

    /// `AppState`.
    pub(crate) fn app_state(&mut self, book: &mut Book, key: (Lin, Grp), told: State<'_>) {
        let State { p, vid, digest, at } = told;
        let known = self.room(key).known.entry(vid).or_default();
        let Some((q, first, then)) = &known.state else {
            known.state = Some((p, digest.into(), at));
            return;
        };
        book.judged(Predicate::VS14);
        if **first != *digest {
            let what = format!("{p} and {q} begin view {vid} with different states");
            let holds = |p: &Process, digest: &str| format!("{p} begins view {vid} with the state {digest}");
            let evidence = vec![(*then, holds(q, first)), (at, holds(&p, digest))];
            book.violated(Predicate::VS14, what, evidence);
        }
    }

    // ---- after the faults -------------------------------------------------------------------------------------------

    /// `GST`: what the living send from `settled` on must arrive.
    pub(crate) fn begin(&mut self, core: &[Process], settled: u64) {
        self.core = core.iter().copied().collect();
        self.settled = Some(settled);
    }

    /// The process has lost the primary component, or has it again.
    pub(crate) fn primary(&mut self, p: Process, again: bool) {
        if again {
            self.blocked.remove(&p);
        } else {
            self.blocked.insert(p);
        }
    }

    /// A real process was killed: its last records may not have reached its trace.
    pub(crate) fn cut_short(&mut self, p: Process) {
        self.cut_short.insert(p);
    }

    /// The trace ends.
    pub(crate) fn finish(&mut self, book: &mut Book) {
        for (mid, what, delivers) in std::mem::take(&mut self.unsent) {
            if !self.cut_short.contains(&mid.sender()) {
                book.violated(Predicate::VS1, what, vec![delivers]);
            }
        }
    }

    /// Something disturbs the calm: nothing is expected any more.
    pub(crate) fn disturb(&mut self) {
        self.settled = None;
        self.due.clear();
    }

    /// Time has come to `now`.
    pub(crate) fn time(&mut self, book: &mut Book, terms: &Terms, now: u64) {
        let Some(settled) = self.settled else { return };
        let late = self.due.partition_point(|(t, ..)| t.saturating_add(terms.b2()) <= now);
        for (_, key, mid) in self.due.drain(..late) {
            let Some(room) = self.rooms.get(&key) else { continue };
            let everybody_can = self.core.is_disjoint(&self.blocked);
            let Some(sent) = room.sent.get(&mid).filter(|_| everybody_can) else { continue };
            book.judged(Predicate::LV2);
            let there = |p: &&Process| room.stays[*p].vid == sent.vid && self.core.contains(*p);
            let lacking = room.stays.keys().filter(there).find(|p| !room.stays[*p].set.contains(&mid));
            if let Some(q) = lacking {
                let what = format!("{mid} has not reached {q} in {} ms", terms.b2() / 1_000_000);
                let evidence = vec![(sent.at, says(mid.sender(), "sends", mid, sent.vid))];
                book.violated(Predicate::LV2, what, evidence);
            }
        }
        if self.closing.is_empty() || !self.core.is_disjoint(&self.blocked) {
            return;
        }
        for (key, p) in self.closing.iter().filter(|(_, p)| self.core.contains(p)) {
            let Some(stay) = self.rooms.get_mut(key).and_then(|room| room.stays.get_mut(p)) else { continue };
            let Some(since) = stay.blocked.filter(|_| !self.leaving.contains(&(*p, key.1))) else { continue };
            if since.t.max(settled).saturating_add(terms.b4()) < now {
                book.judged(Predicate::LV4);
                let what = format!("{p} waits in view {} for its closing without end", stay.vid);
                book.violated(Predicate::LV4, what, vec![(since, format!("{p} blocks"))]);
                stay.blocked = None;
            }
        }
    }
}

impl Room {
    /// A process leaves a view for its successor.
    fn close(&mut self, book: &mut Book, entry: Entry<'_>, mut stay: Stay) {
        let Entry { p, vid, at, .. } = entry;
        let installs = (at, format!("{p} installs view {vid} after {}", stay.vid));
        book.judged(Predicate::VS7);
        if let Some(own) = stay.own.iter().find(|mid| !stay.set.contains(mid)) {
            let what = format!("{p} leaves view {} without having delivered its own {own}", stay.vid);
            let sends = self.sent.get(own).map(|s| (s.at, says(p, "sends", *own, stay.vid)));
            book.violated(Predicate::VS7, what, sends.into_iter().chain([installs.clone()]).collect());
        }
        if stay.blocked.take().is_some() {
            book.judged(Predicate::LV4);
        }
        let known = self.known.entry(stay.vid).or_default();
        known.must.values().for_each(|must| book.judged(must.predicate));
        let lacks = known.must.iter().filter(|(mid, _)| !stay.set.contains(mid));
        if let Some((mid, must)) = lacks.min_by_key(|(mid, _)| **mid) {
            lacking(book, must, *mid, stay.vid, p, at);
        }
        if let Some((q, _, theirs)) = known.closed.iter().find(|(_, into, _)| *into == vid) {
            book.judged(Predicate::VS5);
            book.judged(Predicate::VS10);
            let evidence = |text: String| {
                vec![(theirs.at.unwrap_or(at), format!("{q} has view {}", stay.vid)), (at, text)]
            };
            let odd = || theirs.set.symmetric_difference(&stay.set).min();
            if theirs.set != stay.set
                && let Some(odd) = odd()
            {
                let (has, lacks) = if stay.set.contains(odd) { (p, *q) } else { (*q, p) };
                let what = format!(
                    "{p} and {q} go from view {} to {vid}; {has} delivered {odd}, {lacks} did not",
                    stay.vid
                );
                book.violated(Predicate::VS5, what, evidence(installs.1.clone()));
            } else if let Some(at) =
                (0..stay.sequence.len()).find(|i| theirs.sequence[*i] != stay.sequence[*i])
            {
                let what = format!(
                    "{p} and {q} go from view {} to {vid}; as number {} of the sequence one delivered {}, the other {}",
                    stay.vid,
                    at + 1,
                    stay.sequence[at],
                    theirs.sequence[at]
                );
                book.violated(Predicate::VS10, what, evidence(installs.1.clone()));
            }
        }
        known.closed.push((p, vid, Arc::new(stay)));
    }

    /// VS6.
    fn came_along(&mut self, book: &mut Book, entry: Entry<'_>) {
        let Entry { p, vid, prev, members, trans, at } = entry;
        let installs = &mut self.known.entry(vid).or_default().installs;
        let with = !trans.is_empty() || installs.iter().any(|(_, _, t, _)| !t.is_empty());
        if with && self.active {
            book.judged(Predicate::VS6);
            if let Some(odd) = trans.iter().find(|q| !members.contains(q)) {
                let what = format!("{p} says that {odd} came along into view {vid}, in which it is not");
                book.violated(
                    Predicate::VS6,
                    what,
                    vec![(at, format!("{p} came along with {}", list(trans)))],
                );
            }
            for (q, theirs, their_trans, then) in
                installs.iter().filter(|(_, before, ..)| *before != 0 && prev != 0)
            {
                let together = *theirs == prev;
                if trans.contains(q) != together || their_trans.contains(&p) != together {
                    let what = format!(
                        "{p} came to view {vid} from {prev}, {q} from {theirs}; they do not agree on that"
                    );
                    let evidence = vec![
                        (*then, format!("{q} came along with {}", list(their_trans))),
                        (at, format!("{p} came along with {}", list(trans))),
                    ];
                    book.violated(Predicate::VS6, what, evidence);
                    break;
                }
            }
        }
        installs.push((p, prev, trans.to_vec(), at));
    }

    /// Old views are not judged any more.
    fn forget(&mut self) {
        let mut installed = self.known.iter().rev().filter(|(_, known)| !known.installs.is_empty());
        let Some((oldest, _)) = installed.nth(KEPT - 1) else { return };
        let oldest = *oldest;
        if self.known.keys().next() == Some(&oldest) {
            return;
        }
        self.known = self.known.split_off(&oldest);
        self.sent.retain(|_, sent| sent.vid >= oldest);
    }
}

/// One who goes on must have a message, and does not.
fn lacking(book: &mut Book, must: &Must, mid: Mid, vid: u64, p: Process, at: At) {
    let Must { predicate, by, at: then } = must;
    let what =
        format!("{p} goes on from view {vid} without {mid}, which {by} delivered as safe or found stable");
    let evidence = vec![(*then, format!("{by} relies on {mid}")), (at, format!("{p} lacks it"))];
    book.violated(*predicate, what, evidence);
}

impl Known {
    /// Everybody who leaves the view for a successor must have this message.
    fn must(&mut self, book: &mut Book, told: Told<'_>, predicate: Predicate) {
        let Told { p, vid, mid, at, .. } = told;
        book.judged(predicate);
        let must = Must { predicate, by: p, at };
        if let Some((q, ..)) = self.closed.iter().find(|(_, _, stay)| !stay.set.contains(&mid)) {
            lacking(book, &must, mid, vid, *q, at);
        }
        self.must.entry(mid).or_insert(must);
    }

    /// One place, one message.
    fn place(&mut self, book: &mut Book, told: Told<'_>, place: u64) {
        let Told { p, vid, mid, at, .. } = told;
        let (at_place, of) = &mut self.places;
        let there = *at_place.entry(place).or_insert(mid);
        let (its, q, then) = *of.entry(mid).or_insert((place, p, at));
        if there != mid || its != place {
            let what =
                format!("place {place} of view {vid} is {there}'s and {mid}'s, or {mid} has place {its} too");
            let evidence = vec![(then, says(q, "delivers", mid, vid)), (at, says(p, "delivers", mid, vid))];
            book.violated(Predicate::VS11, what, evidence);
        }
    }
}
