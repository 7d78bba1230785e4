//! Who holds what of a replicated state on disk: what may be acknowledged, and who goes on after everybody was down.
//!
//! All members are told the same in the same order (virtual synchrony), so each has a ledger, and all ledgers agree. Time is
//! cut into *terms*, as in Raft: a term begins when a majority of the holders promised it, on disk, and nobody's log that
//! they had seen is newer than the one that it goes on from. Inside a term everything delivered has a position. So of two
//! logs the one with the higher (term, position) has everything that the other one had acknowledged.
//!
//! A pure machine: it owns no file and no connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use membership_types::NodeId;
use serde::{Deserialize, Serialize};

/// A data directory. Never copied into another one that is in use. Those up to [`MOST`] are places that no directory has taken
/// yet.
pub(crate) type DirId = u64;

/// Terms and positions are below this.
pub(crate) const BOUND: u64 = 1 << 62;
/// The most directories of one group.
pub(crate) const MOST: usize = 255;

/// How far a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) term: u64,
    pub(crate) pos: u64,
}

/// What is on a disk once something was written there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of which history. Places of two histories say nothing about each other.
    pub(crate) history: u64,
    pub(crate) place: Place,
    pub(crate) promised: u64,
}

/// The directories that count, and those before a change that is not settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holders {
    pub(crate) now: Vec<DirId>,
    pub(crate) before: Option<Vec<DirId>>,
}

impl Holders {
    /// Is it true of a majority; while a change is not settled, of the majorities before and after it?
    pub(crate) fn majority(&self, has: impl Fn(DirId) -> bool) -> bool {
        let most = |of: &[DirId]| 2 * of.iter().filter(|dir| has(**dir)).count() > of.len();
        most(&self.now) && self.before.as_deref().is_none_or(most)
    }

    /// The highest position that a majority has reached.
    fn reached(&self, at: impl Fn(DirId) -> u64) -> u64 {
        let highest = |of: &[DirId]| {
            let mut all: Vec<u64> = of.iter().map(|dir| at(*dir)).collect();
            all.sort_unstable();
            // The lowest of the highest majority.
            all.get(all.len().saturating_sub(all.len() / 2 + 1)).copied().unwrap_or(0)
        };
        highest(&self.now).min(self.before.as_deref().map_or(u64::MAX, highest))
    }

    pub(crate) fn is_sound(&self) -> bool {
        let unique = |of: &[DirId]| of.iter().collect::<BTreeSet<_>>().len() == of.len();
        let fits = |of: &[DirId]| !of.is_empty() && of.len() <= MOST && unique(of);
        fits(&self.now) && self.before.as_deref().is_none_or(fits)
    }
}

/// A history that somebody holds, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// A group that begins with nothing, or by an operator's order, begins a new one.
    pub(crate) history: u64,
    pub(crate) place: Place,
    pub(crate) holders: Holders,
    /// How many commands it has: with none, nobody was ever told that something is done.
    pub(crate) commands: u64,
}

/// What is written to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A command of a member. It has a position, as all have but promises.
    Command { from: NodeId, command: Bytes },
    /// A view, in the encoding of the shell.
    View(Bytes),
    /// A term begins.
    Term(u64),
    /// Other directories count from now on, once that is settled.
    Holders(Vec<DirId>),
    /// The last such change is on the disks of both majorities.
    Settled,
    /// Nothing of an older term is said to be on disk from now on.
    Promise(u64),
}

impl Held {
    /// A history that begins, in one directory.
    #[cfg(feature = "fuzz")]
    pub(crate) fn begin(dir: DirId) -> Self {
        let holders = Holders { now: vec![dir], before: None };
        Self { history: 1, place: Place::default(), holders, commands: 0 }
    }

    /// What an entry does to it. False if it cannot follow.
    pub(crate) fn follow(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Promise(_) => return true,
            Entry::Command { .. } => self.commands += 1,
            Entry::View(_) => {}
            Entry::Term(term) if *term > self.place.term => self.place.term = *term,
            Entry::Holders(now) if self.holders.before.is_none() => {
                let before = std::mem::replace(&mut self.holders.now, now.clone());
                self.holders.before = Some(before);
            }
            Entry::Settled if self.holders.before.is_some() => self.holders.before = None,
            Entry::Term(_) | Entry::Holders(_) | Entry::Settled => return false,
        }
        self.place.pos += 1;
        self.is_sound()
    }

    pub(crate) fn is_sound(&self) -> bool {
        let Place { term, pos } = self.place;
        term.max(pos).max(self.commands) < BOUND && self.holders.is_sound()
    }
}

/// What a member has when nobody is known to have the group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    pub(crate) view: u64,
    pub(crate) dir: DirId,
    pub(crate) held: Option<Held>,
    pub(crate) promised: u64,
    /// Random: names a history that begins.
    pub(crate) nonce: u64,
    /// So many directories the group is to begin with.
    pub(crate) expected: u64,
    /// An operator says that what is missing is not to be waited for.
    pub(crate) accept: bool,
}

/// What ledgers say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Say {
    Hold(Hold),
    /// The term is promised, on disk.
    Vote {
        view: u64,
        term: u64,
    },
    /// So far the directory has it all on disk.
    Synced {
        dir: DirId,
        place: Place,
        promised: u64,
        /// Of which history: this may be heard late, where the group goes on with another one. Builds before this one do not
        /// say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        history: Option<u64>,
    },
    Holders {
        term: u64,
        was: Vec<DirId>,
        now: Vec<DirId>,
    },
    Settled {
        term: u64,
        now: Vec<DirId>,
    },
}

impl Say {
    /// What changes ledgers has a place in the one order; what only tells of a disk needs none.
    pub(crate) fn is_ordered(&self) -> bool {
        !matches!(self, Self::Synced { .. })
    }
}

/// What goes with a state that is given to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The view that the state reflects.
    pub(crate) view: u64,
    /// The group's state; otherwise nobody is known to have that.
    pub(crate) whole: Option<Held>,
    pub(crate) holds: Vec<(NodeId, Hold)>,
    pub(crate) dirs: Vec<(NodeId, DirId)>,
    pub(crate) synced: Vec<(DirId, u64)>,
}

/// What is to be done with a state that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It takes the place of what there is.
    Take,
    /// What there is stays.
    Leave,
    /// This member cannot go on with the others, for this reason.
    Refuse(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Say(Say),
    /// Write this to the log, which then goes so far.
    Write(Entry, Mark),
    /// Give everybody the application's state.
    Stream,
    /// Take over a state that came in these pieces.
    Restore(Vec<Bytes>),
    /// Write the whole state to disk: the application's, and this, which goes with it.
    Save(Held, Mark),
    /// The group's state is known, and the application has it; this view is the first thing in it.
    Whole,
    /// It is not known any more who has the state: commands that are under way have no known end.
    Unsure,
    /// Everything up to this position is on the disks of a majority.
    Committed(u64),
    /// This member cannot go on with the others, for this reason.
    Refuse(String),
}

#[derive(Clone, Debug)]
enum Phase {
    /// Nobody is known to have the group's state.
    Unsure {
        view: u64,
        holds: BTreeMap<NodeId, Hold>,
        said: bool,
        round: Option<Round>,
    },
    Whole,
}

/// All members said what they hold, and enough of it is here.
#[derive(Clone, Debug)]
struct Round {
    term: u64,
    source: DirId,
    /// What is gone on from, with the holders and the history that there will be.
    held: Held,
    /// Somebody does not hold just that.
    streams: bool,
    /// This member does not.
    lacks: bool,
    /// It begins something new, which no disk has.
    saves: bool,
    votes: BTreeSet<DirId>,
    won: bool,
    pieces: Vec<Bytes>,
}

pub(crate) struct Ledger {
    dir: DirId,
    expected: u64,
    accept: bool,
    held: Option<Held>,
    promised: u64,
    /// What the disk said last.
    on_disk: Mark,
    promise_synced: u64,
    phase: Phase,
    view: u64,
    members: Vec<NodeId>,
    /// The directories of members, as far as they said so in this view or one before it.
    dirs: BTreeMap<NodeId, DirId>,
    /// How far each directory has it, in this term.
    synced: BTreeMap<DirId, u64>,
    committed: u64,
    /// Where the holders changed last, or a later position.
    changed_at: u64,
    /// What was proposed in this view, so that it is proposed once.
    proposed: Option<(bool, Vec<DirId>)>,
    waits: String,
    /// Only others who come, or an operator, can change that.
    stuck: bool,
    nonces: Box<dyn FnMut() -> u64 + Send>,
    out: VecDeque<Output>,
}

impl Ledger {
    /// What was found on disk. `expected`: with so many directories the group is to begin, where nobody holds anything.
    pub(crate) fn new(
        dir: DirId,
        held: Option<Held>,
        promised: u64,
        (expected, accept): (u64, bool),
        nonces: impl FnMut() -> u64 + Send + 'static,
    ) -> Self {
        Self {
            dir,
            expected: expected.max(1),
            accept,
            on_disk: mark_of(held.as_ref(), promised),
            held,
            promised,
            promise_synced: promised,
            phase: Phase::Unsure { view: 0, holds: BTreeMap::new(), said: false, round: None },
            view: 0,
            members: Vec::new(),
            dirs: BTreeMap::new(),
            synced: BTreeMap::new(),
            committed: 0,
            changed_at: 0,
            proposed: None,
            waits: "this member is in no view of the group yet".into(),
            stuck: false,
            nonces: Box::new(nonces),
            out: VecDeque::new(),
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.phase, Phase::Whole)
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Why there is no state yet, in words.
    pub(crate) fn waits_for(&self) -> &str {
        &self.waits
    }

    /// Does it take others who come, or an operator?
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck && !self.is_whole()
    }

    /// How many directories that count are in the view, and how many there are.
    pub(crate) fn here(&self) -> (usize, usize) {
        let here: BTreeSet<DirId> = self.here_dirs().collect();
        let now = self.held.as_ref().map_or(&[][..], |h| &h.holders.now);
        (now.iter().filter(|dir| here.contains(dir)).count(), now.len())
    }

    /// Enough of them are here for something to be acknowledged.
    pub(crate) fn is_enough(&self) -> bool {
        let here: BTreeSet<DirId> = self.here_dirs().collect();
        self.is_whole() && self.held.as_ref().is_some_and(|h| h.holders.majority(|dir| here.contains(&dir)))
    }

    fn here_dirs(&self) -> impl Iterator<Item = DirId> {
        self.members.iter().filter_map(|m| self.dirs.get(m)).copied()
    }

    // ---- what is delivered ------------------------------------------------------------------------------------------

    /// This member is out, or came into a view in which nobody has the state: what counts is found out anew.
    pub(crate) fn begin(&mut self) {
        if self.is_whole() {
            self.out.push_back(Output::Unsure);
        }
        self.phase = Phase::Unsure { view: 0, holds: BTreeMap::new(), said: false, round: None };
        self.synced.clear();
        self.proposed = None;
        self.waits = "this member has not heard from the others yet".into();
    }

    /// A view is installed. True if the application is to know, as of an entry that has a position.
    pub(crate) fn on_view(&mut self, id: u64, members: Vec<NodeId>, bytes: impl FnOnce() -> Bytes) -> bool {
        let is_news = id > self.view || !self.is_whole();
        self.dirs.retain(|member, _| members.contains(member));
        (self.view, self.members) = (id, members);
        self.proposed = None;
        if self.is_whole() {
            if is_news {
                self.write(Entry::View(bytes()));
            }
            self.say_synced();
            self.settle();
            return is_news;
        }
        if let Phase::Unsure { view, holds, said, round } = &mut self.phase
            && *view != id
        {
            (*view, *said, *round) = (id, false, None);
            holds.clear();
        }
        self.say_hold();
        false
    }

    /// A command is delivered. False if it counts for nothing: all ledgers say the same.
    pub(crate) fn on_command(&mut self, from: NodeId, command: Bytes) -> bool {
        if self.is_whole() {
            self.write(Entry::Command { from, command });
        }
        self.is_whole()
    }

    pub(crate) fn on_say(&mut self, from: NodeId, say: Say) {
        match say {
            Say::Hold(hold) => self.on_hold(from, hold),
            Say::Vote { view, term } => self.on_vote(from, view, term),
            Say::Synced { dir, place, promised, history } => {
                self.on_synced(from, dir, (history, place), promised);
            }
            Say::Holders { term, was, now } => {
                let Some(held) = self.held.as_ref().filter(|_| self.is_whole()) else { return };
                let follows = held.place.term == term && held.holders.now == was;
                let next = Holders { now, before: None };
                if follows && held.holders.before.is_none() && next.is_sound() && was != next.now {
                    self.proposed = None;
                    self.write(Entry::Holders(next.now));
                    self.settle();
                }
            }
            Say::Settled { term, now } => {
                let Some(held) = self.held.as_ref().filter(|_| self.is_whole()) else { return };
                if held.place.term == term && held.holders.now == now && held.holders.before.is_some() {
                    self.proposed = None;
                    self.write(Entry::Settled);
                    self.settle();
                }
            }
        }
    }

    /// A piece of the state that the members go on from.
    pub(crate) fn on_piece(&mut self, from: NodeId, view: u64, last: bool, piece: Bytes) {
        let source = self.dirs.get(&from).copied();
        let Phase::Unsure { view: mine, round: Some(round), .. } = &mut self.phase else { return };
        if *mine != view || !round.won || source != Some(round.source) {
            return;
        }
        if round.lacks {
            round.pieces.push(piece);
        }
        if last {
            self.go_on();
        }
    }

    fn write(&mut self, entry: Entry) {
        match (&mut self.held, &entry) {
            (_, Entry::Promise(term)) => self.promised = *term,
            (Some(held), entry) => {
                let follows = held.follow(entry);
                debug_assert!(follows, "{entry:?}");
            }
            (None, _) => return,
        }
        if let (Entry::Holders(_), Some(held)) = (&entry, &self.held) {
            self.changed_at = held.place.pos;
        }
        let mark = self.mark();
        self.out.push_back(Output::Write(entry, mark));
    }

    /// What is on disk once all is written that was ordered.
    pub(crate) fn mark(&self) -> Mark {
        mark_of(self.held.as_ref(), self.promised)
    }

    fn save(&mut self) {
        let mark = self.mark();
        self.changed_at = mark.place.pos;
        self.out.extend(self.held.clone().map(|held| Output::Save(held, mark)));
    }

    // ---- after everybody was down -----------------------------------------------------------------------------------

    fn say_hold(&mut self) {
        let Phase::Unsure { view, said, .. } = &mut self.phase else { return };
        if *view == 0 || *said {
            return;
        }
        *said = true;
        let view = *view;
        let (nonce, held) = ((self.nonces)(), self.held.clone());
        let (dir, promised, expected, accept) = (self.dir, self.promised, self.expected, self.accept);
        let hold = Hold { view, dir, held, promised, nonce, expected, accept };
        self.out.push_back(Output::Say(Say::Hold(hold)));
    }

    fn on_hold(&mut self, from: NodeId, hold: Hold) {
        let sound = hold.promised < BOUND && hold.held.as_ref().is_none_or(Held::is_sound);
        if hold.view != self.view || !self.members.contains(&from) || !sound {
            return;
        }
        if self.is_whole() {
            // Somebody knows of a later term: what counts is found out anew.
            self.begin();
            if let Phase::Unsure { view, .. } = &mut self.phase {
                *view = hold.view;
            }
        }
        self.dirs.insert(from, hold.dir);
        let Phase::Unsure { view, holds, .. } = &mut self.phase else { return };
        if *view == hold.view {
            holds.insert(from, hold);
            self.say_hold();
            self.look_around();
        }
    }

    /// Once everybody has said what it holds: is that enough?
    fn look_around(&mut self) {
        let Phase::Unsure { holds, round: None, .. } = &self.phase else { return };
        self.stuck = false;
        let silent = self.members.iter().filter(|m| !holds.contains_key(m)).count();
        if silent > 0 {
            self.waits = format!("{silent} members of the view have not said yet what they hold");
            return;
        }
        let holds: Vec<&Hold> = self.members.iter().map(|m| &holds[m]).collect();
        let me = self.dir;
        let found = match choose(&holds) {
            Ok(found) => found,
            Err(waits) => {
                (self.waits, self.stuck) = (waits, true);
                return;
            }
        };
        let mine = holds.iter().find(|h| h.dir == me).and_then(|h| h.held.clone());
        let history = mine.as_ref().map(|held| held.history);
        let another = |dir: DirId| {
            let of = holds.iter().find(|hold| hold.dir == dir);
            of.is_some_and(|hold| hold.held.as_ref().map(|held| held.history) != history)
        };
        if let Some(mine) = mine.filter(|m| Some(m.history) != found.from.as_ref().map(|f| f.history))
            && !may_drop(&mine, me, another)
        {
            self.waits = "the others go on with another history".into();
            self.out.push_back(Output::Refuse(another_history()));
            return;
        }
        let term = holds.iter().map(|h| h.promised.max(h.held.as_ref().map_or(0, |h| h.place.term))).max();
        let term = term.unwrap_or(0) + 1;
        let same = |hold: &Hold| {
            let key = |held: &Held| (held.history, held.place);
            hold.held.as_ref().map(key) == found.from.as_ref().map(key)
        };
        let Found { source, held, from } = &found;
        let round = Round {
            term,
            source: *source,
            held: held.clone(),
            streams: !holds.iter().all(|h| same(h)),
            lacks: !holds.iter().any(|h| h.dir == me && same(h)),
            saves: from.as_ref() != Some(held),
            votes: BTreeSet::new(),
            won: false,
            pieces: Vec::new(),
        };
        self.waits = "the directories are being asked to promise a new term".into();
        if let Phase::Unsure { round: slot, .. } = &mut self.phase {
            *slot = Some(round);
        }
        self.write(Entry::Promise(term));
    }

    fn on_vote(&mut self, from: NodeId, view: u64, term: u64) {
        let Some(dir) = self.dirs.get(&from).copied() else { return };
        let me = self.dir;
        let Phase::Unsure { view: mine, round: Some(round), .. } = &mut self.phase else { return };
        if *mine != view || round.term != term || round.won {
            return;
        }
        round.votes.insert(dir);
        round.won = round.held.holders.majority(|dir| round.votes.contains(&dir));
        if !round.won {
            return;
        }
        if !round.streams {
            return self.go_on();
        }
        if round.source == me {
            self.out.push_back(Output::Stream);
        }
        self.waits = "the newest state is on its way from the member that has it".into();
    }

    /// All have the same state: the term begins.
    fn go_on(&mut self) {
        let Phase::Unsure { round, .. } = &mut self.phase else { return };
        let Some(round) = round.take() else { return };
        self.phase = Phase::Whole;
        self.held = Some(round.held);
        self.synced.clear();
        self.committed = 0;
        self.accept = false;
        self.proposed = None;
        if round.lacks {
            self.out.push_back(Output::Restore(round.pieces));
        }
        if round.lacks || round.saves {
            self.save();
        }
        self.changed_at = self.mark().place.pos;
        self.write(Entry::Term(round.term));
        self.out.push_back(Output::Whole);
    }

    /// The application knows of the view in which the term begins.
    pub(crate) fn begin_view(&mut self, bytes: Bytes) {
        self.write(Entry::View(bytes));
    }

    // ---- state that is given ----------------------------------------------------------------------------------------

    pub(crate) fn meta(&self) -> Meta {
        let holds = match &self.phase {
            Phase::Unsure { holds, .. } => holds.iter().map(|(m, h)| (*m, h.clone())).collect(),
            Phase::Whole => Vec::new(),
        };
        Meta {
            view: self.view,
            whole: self.held.clone().filter(|_| self.is_whole()),
            holds,
            dirs: self.dirs.iter().map(|(m, d)| (*m, *d)).collect(),
            synced: self.synced.iter().map(|(d, p)| (*d, *p)).collect(),
        }
    }

    /// A state came with this.
    pub(crate) fn on_meta(&mut self, meta: Meta) -> Verdict {
        let verdict = self.judge(&meta);
        self.begin();
        self.dirs = meta.dirs.into_iter().collect();
        match verdict {
            Verdict::Take => {
                self.phase = Phase::Whole;
                self.held = meta.whole;
                self.view = meta.view;
                self.synced = meta.synced.into_iter().collect();
                self.committed = 0;
                self.accept = false;
                self.save();
                self.commit();
            }
            Verdict::Leave => {
                self.phase = Phase::Unsure {
                    view: meta.view,
                    holds: meta.holds.into_iter().collect(),
                    said: false,
                    round: None,
                };
            }
            Verdict::Refuse(_) => {}
        }
        verdict
    }

    fn judge(&self, meta: &Meta) -> Verdict {
        let Some(theirs) = meta.whole.as_ref().filter(|held| held.is_sound()) else { return Verdict::Leave };
        let newer = theirs.place.term < self.promised;
        // Those who are there, and said that they have it on disk.
        let synced = |dir: DirId| meta.synced.iter().any(|(of, _)| *of == dir);
        let theirs_has = |dir: DirId| synced(dir) && meta.dirs.iter().any(|(_, of)| *of == dir);
        match &self.held {
            None if newer => Verdict::Leave,
            None => Verdict::Take,
            Some(mine) if mine.history == theirs.history => {
                if newer || mine.place > theirs.place {
                    Verdict::Leave
                } else {
                    Verdict::Take
                }
            }
            Some(mine) if may_drop(mine, self.dir, theirs_has) => Verdict::Take,
            Some(_) if theirs.commands == 0 => Verdict::Leave,
            Some(_) => Verdict::Refuse(another_history()),
        }
    }

    // ---- disks ------------------------------------------------------------------------------------------------------

    /// Everything up to here is on this member's disk.
    pub(crate) fn on_disk(&mut self, mark: Mark) {
        self.on_disk = mark;
        let promised = mark.promised;
        if promised > self.promise_synced {
            self.promise_synced = promised;
            if let Phase::Unsure { view, round: Some(round), .. } = &self.phase
                && round.term == promised
            {
                self.out.push_back(Output::Say(Say::Vote { view: *view, term: promised }));
            }
        }
        self.say_synced();
    }

    fn say_synced(&mut self) {
        let Some(held) = self.held.as_ref().filter(|_| self.is_whole()) else { return };
        // What the disk has of another history, which it had before this one was taken over, counts for nothing.
        let Mark { history, place, .. } = self.on_disk;
        if history == held.history && place.term == held.place.term {
            let (dir, promised, history) = (self.dir, self.promised, Some(history));
            self.out.push_back(Output::Say(Say::Synced { dir, place, promised, history }));
        }
    }

    fn on_synced(&mut self, from: NodeId, dir: DirId, (history, place): (Option<u64>, Place), promised: u64) {
        let Some(held) = self.held.as_ref().filter(|_| self.is_whole()) else { return };
        self.dirs.insert(from, dir);
        let same = history.is_none_or(|history| history == held.history);
        if same && place.term == held.place.term && promised <= place.term {
            let known = self.synced.entry(dir).or_default();
            *known = place.pos.max(*known);
            self.commit();
        }
        self.settle();
    }

    fn commit(&mut self) {
        let Some(held) = self.held.as_ref().filter(|_| self.is_whole()) else { return };
        let synced = &self.synced;
        let reached = held.holders.reached(|dir| synced.get(&dir).copied().unwrap_or(0));
        if reached > self.committed {
            self.committed = reached;
            self.out.push_back(Output::Committed(reached));
        }
    }

    /// The first member sees to it that the directories of those who are here count: a new one takes a vacant place, or that of
    /// one that is not here, or comes in addition. So there are as many as ever were here at once.
    fn settle(&mut self) {
        let Some(held) = self.held.as_ref().filter(|_| self.is_whole()) else { return };
        let leads = self.members.first().and_then(|m| self.dirs.get(m)) == Some(&self.dir);
        let all_known = self.members.iter().all(|m| self.dirs.contains_key(m));
        if !leads || !all_known {
            return;
        }
        let (term, was) = (held.place.term, held.holders.now.clone());
        let say = if held.holders.before.is_some() {
            // All up to here was acknowledged by the majorities of before and after the change, or will be.
            let here = |dir: DirId| self.synced.get(&dir).copied().unwrap_or(0);
            if held.holders.reached(here) < self.changed_at {
                return;
            }
            Say::Settled { term, now: was.clone() }
        } else {
            let here: BTreeSet<DirId> = self.here_dirs().collect();
            let Some(new) = here.iter().find(|dir| !was.contains(dir)) else { return };
            let mut now = was.clone();
            let vacant = now.iter().position(|dir| *dir <= MOST as DirId);
            match vacant.or_else(|| now.iter().position(|dir| !here.contains(dir))) {
                Some(at) => now[at] = *new,
                None => now.push(*new),
            }
            if now.len() > MOST {
                return;
            }
            Say::Holders { term, was: was.clone(), now }
        };
        let key = Some((held.holders.before.is_some(), was));
        if self.proposed != key {
            self.proposed = key;
            self.out.push_back(Output::Say(say));
        }
    }
}

fn mark_of(held: Option<&Held>, promised: u64) -> Mark {
    let (history, place) = held.map_or((0, Place::default()), |held| (held.history, held.place));
    Mark { history, place, promised }
}

fn another_history() -> String {
    "the group's state goes on from another beginning than what this directory holds: it began anew, or an operator had it \
     go on without this directory. Nothing here was changed. If what the others have is right, move this directory away; if \
     what is here is right, stop the others, move theirs away, and start those first that hold it"
        .into()
}

/// May this directory's history be dropped for another one? Those who may still hold it, and have commands of it, are too few for
/// one to have been acknowledged among them: the others hold `another`.
fn may_drop(mine: &Held, me: DirId, another: impl Fn(DirId) -> bool) -> bool {
    let may_have = |dir| dir > MOST as DirId && (dir != me || mine.commands > 0);
    !mine.holders.majority(|dir| may_have(dir) && !another(dir))
}

/// What the members go on from.
struct Found {
    source: DirId,
    /// As somebody holds it; `None` if the group begins with nothing.
    from: Option<Held>,
    /// The same, with the holders that count.
    held: Held,
}

/// Out of what all members of a view hold, in rank order. The error says what is waited for.
fn choose(holds: &[&Hold]) -> Result<Found, String> {
    let mut histories: BTreeMap<u64, Vec<(&Hold, &Held)>> = BTreeMap::new();
    for hold in holds {
        if let Some(held) = &hold.held {
            histories.entry(held.history).or_default().push((hold, held));
        }
    }
    // Of each history the newest, of those that are as new the first in rank.
    let (mut known, mut dead) = (Vec::new(), Vec::new());
    let absent = |dir: DirId| dir > MOST as DirId && !holds.iter().any(|hold| hold.dir == dir);
    for (history, of) in &histories {
        let place = of.iter().map(|(_, held)| held.place).max();
        let Some((first, newest)) = of.iter().find(|(_, held)| Some(held.place) == place) else { continue };
        let here = |dir: DirId| of.iter().any(|(hold, _)| hold.dir == dir);
        let enough = newest.holders.majority(here);
        let missing = newest.holders.now.iter().filter(|dir| !here(**dir)).count();
        let accepts = of.iter().any(|(hold, _)| hold.accept);
        if !newest.holders.majority(|dir| here(dir) || absent(dir)) {
            // It was begun and not carried through: so few can have it that nothing of it was acknowledged.
            dead.push((*first, *newest));
            continue;
        }
        known.push((*history, *first, (*newest).clone(), enough, missing, accepts));
    }
    let full = known.iter().any(|(_, _, newest, ..)| newest.commands > 0);
    known.retain(|(_, _, newest, ..)| newest.commands > 0 || !full);
    if let Some((_, first, newest, ..)) = known.iter().find(|(.., enough, _, _)| *enough) {
        return Ok(Found { source: first.dir, held: newest.clone(), from: Some(newest.clone()) });
    }
    if let Some((history, first, newest, ..)) = known.iter().find(|(.., accepts)| *accepts) {
        let now = all(histories[history].iter().map(|(hold, _)| hold.dir));
        let holders = Holders { now, before: None };
        let held = Held { history: first.nonce, holders, ..newest.clone() };
        return Ok(Found { source: first.dir, held, from: Some(newest.clone()) });
    }
    if let Some((_, _, newest, _, missing, _)) = known.first() {
        let of = newest.holders.now.len();
        return Err(format!(
            "{missing} of the {of} directories that hold the group's state are not here, and the others may lack what only \
             they have: start more of the members that had them ({} must be here). If they are lost for good, start one \
             member with --accept-stale-state: what only the missing ones hold is then given up",
            of / 2 + 1
        ));
    }
    let expected = holds.iter().map(|h| h.expected).max().unwrap_or(1);
    let now = all(holds.iter().map(|h| h.dir));
    let Some(first) = holds.first() else { return Err("there is nobody".into()) };
    if (now.len() as u64) <= expected / 2 && !holds.iter().any(|h| h.accept) {
        let need = expected / 2 + 1;
        return Err(format!(
            "the directories here are empty, and so few may not begin with an empty state: {need} of {expected} must be here"
        ));
    }
    // Who comes later takes a vacant place. So a majority is one of all with which the group begins, and those who begin elsewhere
    // with nothing have not got it.
    let vacant = (1..).take((expected as usize).min(MOST).saturating_sub(now.len()));
    let holders = Holders { now: now.into_iter().chain(vacant).collect(), before: None };
    // What came to nothing is as good as nothing.
    let from = dead.first().map(|(hold, held)| (hold.dir, (*held).clone()));
    let (source, from) = from.map_or((first.dir, None), |(dir, held)| (dir, Some(held)));
    let (place, commands) = from.as_ref().map_or((Place::default(), 0), |held| (held.place, held.commands));
    Ok(Found { source, held: Held { history: first.nonce, place, holders, commands }, from })
}

/// Each once, and not too many.
fn all(dirs: impl Iterator<Item = DirId>) -> Vec<DirId> {
    dirs.collect::<BTreeSet<_>>().into_iter().take(MOST).collect()
}

#[cfg(test)]
mod tests;
