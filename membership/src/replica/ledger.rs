//! Who holds what of a replicated state on disk: what may be acknowledged, and who goes on after everybody was down.
//!
//! All members are told the same in the same order (virtual synchrony), so each has a ledger, and all ledgers agree. Time is
//! cut into *terms*, as in Raft: a term begins when a majority of the holders promised it, on disk, and nobody's log that
//! they had seen is newer than the one that it goes on from. Inside a term everything delivered has a position. So of two
//! logs the one with the higher (term, position) has everything that the other one had acknowledged.
//!
//! A pure machine: it owns no file and no connection.

mod choose;
mod held;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use membership_types::NodeId;

use self::choose::{Found, another_history, choose, may_drop};
pub(crate) use self::held::{BOUND, DirId, Entry, Held, Hold, Holders, MOST, Mark, Meta, Place, Say};

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
            on_disk: Mark::of(held.as_ref(), promised),
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
        Mark::of(self.held.as_ref(), self.promised)
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

#[cfg(test)]
mod tests;
