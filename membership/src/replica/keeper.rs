//! A replicated state on disk: carries out what the ledger says, with the group's messages, the application, and a thread that
//! writes.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use membership_multicast::Class;
use membership_types::{GroupName, Lineage, NodeId, Rng, Token, ViewId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    Copied, HEAD, NOBODY, Next, ProposeError, ReplicatedState, Shared, Standing, Waiting, give,
    ledger::{Entry, Held, Ledger, Mark, Meta, Output, Say, Verdict},
    store::{Dir, Head, STATE, Snapshot, Store, TOGETHER, put_entry, replayed},
};
use crate::{
    channel::{Delivered, SendError, StateRequest},
    event::{Member, View},
    node::{Command, lock},
};

/// What could not be said is tried again after this time at the latest.
pub(super) const AGAIN: Duration = Duration::from_millis(20);
/// So many bytes wait for the disk before nothing more is taken from the group, whose other members then wait, too.
const BEHIND: usize = 64 << 20;
/// How often is looked whether a snapshot is written.
const LOOK: Duration = Duration::from_millis(20);
/// Too many files are open: after this time some may not be any more.
const FULL: Duration = Duration::from_millis(200);
/// What an entry costs besides its bytes.
const COST: usize = 64;
/// A state is said to all in pieces of this size.
const PIECE: usize = 1 << 20;
/// Kinds of what ledgers say, where commands have their number.
const SAY: u64 = 1;
const STREAM: u64 = 2;
/// What a state begins with that goes with a ledger.
const META: &[u8; 8] = b"phx-kept";

/// How far a member is, for those who wait.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) standing: Standing,
    /// The state came from elsewhere so often.
    era: u64,
    applied: u64,
    committed: u64,
    pub(super) over: bool,
}

impl Progress {
    pub(super) fn new(kept: bool) -> Self {
        let waits = || Standing::Waiting { why: "this member is in no view of the group yet".into() };
        let standing = if kept { waits() } else { Standing::Memory };
        Self { standing, era: 0, applied: 0, committed: 0, over: false }
    }

    fn is_whole(&self) -> bool {
        matches!(self.standing, Standing::Memory | Standing::Kept { .. })
    }
}

impl<S: ReplicatedState> Shared<S> {
    pub(super) fn is_whole(&self) -> bool {
        self.progress.borrow().is_whole()
    }

    /// Waits until this member has the group's state. False if it never will.
    pub(super) async fn until_whole(&self) -> bool {
        let mut progress = self.progress.subscribe();
        let seen =
            progress.wait_for(|p| p.over || p.is_whole() || matches!(p.standing, Standing::Refused { .. }));
        seen.await.is_ok_and(|p| p.is_whole())
    }

    /// Waits until all that is applied here by now is on the disks of a majority. False if that is not known any more.
    pub(super) async fn on_disk(&self) -> bool {
        let mut progress = self.progress.subscribe();
        let (era, applied) = {
            let now = progress.borrow();
            if now.standing == Standing::Memory {
                return true;
            }
            (now.era, now.applied)
        };
        let seen = progress.wait_for(|p| p.over || p.era != era || !p.is_whole() || p.committed >= applied);
        seen.await.is_ok_and(|p| p.era == era && p.is_whole() && p.committed >= applied)
    }

    /// Says where the state is: in the status, as an event, and in the log.
    pub(super) async fn tell(&self, standing: Standing) {
        let group = self.membership.group();
        match &standing {
            Standing::Waiting { why } => tracing::warn!(%group, why, "the group's state is not known"),
            Standing::Kept { here, of, enough: true } => {
                tracing::info!(%group, here, of, "the group's state is here, and on disk");
            }
            Standing::Kept { here, of, .. } => {
                tracing::warn!(%group, here, of, "too few data directories are here: no command is answered until more are");
            }
            // Who loses it has said so, and who gives up says it.
            Standing::Memory | Standing::Lost | Standing::Refused { .. } => {}
        }
        self.progress.send_modify(|progress| progress.standing = standing.clone());
        let command = Command::State { group: group.clone(), standing };
        // A node that has stopped has nobody to tell.
        let _stopped = self.membership.node().inner.commands.send(command).await;
    }
}

/// What the disk's thread is told.
pub(super) enum Order {
    Append(Entry, Mark, usize),
    /// A snapshot in the place of all that there is.
    Save(Held, Mark, Copied),
    /// One of what was appended until now, while more is.
    GoOn(Held, Mark, Copied),
}

/// What it says.
pub(super) enum Said {
    /// Everything up to here is on disk; so many bytes less wait.
    Synced(Mark, usize),
    Saved(Mark),
    /// The snapshot that was made meanwhile is on disk, or was not needed.
    WentOn,
    /// The log is long enough for a snapshot.
    Long,
    Failed(String),
}

enum Letter {
    Say(Say),
    Piece { view: u64, last: bool, piece: Bytes },
}

pub(super) struct Keeper<S: ReplicatedState> {
    ledger: Ledger,
    orders: mpsc::Sender<Order>,
    said: UnboundedReceiver<Said>,
    /// Bytes that wait for the disk.
    waiting: usize,
    /// What the group could not take yet. Bounded: a few words in each view, one state, and one word about the disk.
    unsaid: VecDeque<Letter>,
    /// Who waits until a command is on enough disks.
    answers: VecDeque<(u64, Waiting<S>, S::Answer)>,
    view: Option<Arc<View>>,
    saving: bool,
    era: u64,
    committed: u64,
    told: Option<Standing>,
}

impl<S: ReplicatedState> Keeper<S> {
    /// Takes the directory, and has the application restore what is in it. Waits for the disk.
    pub(super) fn open(
        path: &Path,
        (cluster, group, node): (String, String, String),
        wishes: (u64, bool),
        state: &mut S,
    ) -> Result<Self, String> {
        let random = || crate::start::random().map_err(|e| format!("no random numbers: {e}"));
        let files = Dir::open(path, &format!("node {node}, group {group}"))?;
        let (mut store, found) = Store::open(Box::new(files), (&cluster, &group), random()? | 1 << 63)?;
        let at = path.join(STATE);
        let refused = |why: String| {
            let at = at.display();
            format!(
                "{at} cannot be restored: {why}; it was written by another program, or by another version of this one"
            )
        };
        if found.head.held.is_some() {
            state.restore(std::slice::from_ref(&found.state)).map_err(refused)?;
        }
        for entry in &found.entries {
            match entry {
                Entry::Command { from, command } => drop(state.apply(*from, command)),
                Entry::View(bytes) => {
                    let view = read_view(bytes).ok_or_else(|| refused("a view is not understood".into()))?;
                    state.installed(&view);
                }
                Entry::Term(_) | Entry::Holders(_) | Entry::Settled | Entry::Promise(_) => {}
            }
        }
        let (held, mark) = replayed(&found.head, &found.entries);
        if let Some(held) = held.as_ref().filter(|_| store.is_between()) {
            // The process ended while a snapshot was made.
            store
                .save(held.clone(), mark.promised, &[state.snapshot()])
                .map_err(|e| format!("{} cannot be written: {e}", at.display()))?;
        }
        let mut rng = Rng::seeded(random()?);
        let ledger = Ledger::new(found.head.dir, held, mark.promised, wishes, move || rng.next_u64());
        let (orders, ordered) = mpsc::channel();
        let (says, said) = unbounded_channel();
        let thread = thread::Builder::new().name("phalanx-state".into());
        thread
            .spawn(move || write(store, &ordered, &says))
            .map_err(|e| format!("no thread that writes: {e}"))?;
        Ok(Self {
            ledger,
            orders,
            said,
            waiting: 0,
            unsaid: VecDeque::new(),
            answers: VecDeque::new(),
            view: None,
            saving: false,
            era: 0,
            committed: 0,
            told: None,
        })
    }

    /// So much waits for the disk that nothing more should be taken.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting > BEHIND
    }

    pub(super) fn has_unsaid(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// Waits for what the disk says. Cancel-safe.
    pub(super) async fn heard(&mut self) -> Said {
        let gone = || Said::Failed("the thread that writes has ended".into());
        self.said.recv().await.unwrap_or_else(gone)
    }

    /// Deals with one thing. The error says why this member cannot go on.
    pub(super) async fn step(&mut self, shared: &Shared<S>, next: Next) -> Result<(), String> {
        match next {
            Next::Delivered(delivered) => self.on_delivered(shared, delivered)?,
            Next::Disk(said) => self.on_said(shared, said)?,
            Next::Again | Next::Over => {}
        }
        self.carry_out(shared)?;
        self.talk(shared);
        self.show(shared).await;
        Ok(())
    }

    fn on_delivered(&mut self, shared: &Shared<S>, delivered: Delivered) -> Result<(), String> {
        match delivered {
            Delivered::Message(message) => {
                let from = message.from;
                match shared.command(from, message.payload) {
                    Some((NOBODY, kind, said)) => self.on_letter(from, kind, said),
                    Some((mark, number, command)) => self.on_command(shared, from, (mark, number), command),
                    None => {}
                }
            }
            Delivered::View { view, .. } => {
                let members = view.members.iter().map(|member| member.node).collect();
                if self.ledger.on_view(view.id.get(), members, || view_bytes(&view)) {
                    lock(&shared.state).installed(&view);
                    shared.show(&view);
                }
                self.view = Some(view);
            }
            Delivered::StateRequest(request) => self.give(shared, request),
            Delivered::StateReceived(pieces) => {
                let (meta, state) = read_meta(pieces).ok_or(
                    "the other members do not keep this group's state on disk, and what this directory has is not touched: \
                     give them data directories, and start first who has the state in its own (or none to this one)",
                )?;
                match self.ledger.on_meta(meta) {
                    Verdict::Take => {
                        let restored = lock(&shared.state).restore(&state);
                        restored.map_err(|why| format!("a snapshot cannot be restored: {why}"))?;
                        shared.fresh.store(true, Ordering::Relaxed);
                        self.era += 1;
                        self.committed = 0;
                    }
                    Verdict::Leave => {}
                    Verdict::Refuse(why) => return Err(why),
                }
            }
            Delivered::StateLost { .. } => {
                self.ledger.begin();
                shared.membership.keep_state();
            }
            Delivered::Out { .. } => {
                self.ledger.begin();
                shared.fail_all();
            }
            _ => {}
        }
        Ok(())
    }

    fn on_command(&mut self, shared: &Shared<S>, from: NodeId, who: (u64, u64), command: Bytes) {
        let waiting = shared.who_waits(who.0, who.1);
        if self.ledger.on_command(from, command.clone()) {
            let answer = lock(&shared.state).apply(from, &command);
            let place = self.ledger.held().map_or(0, |held| held.place.pos);
            self.answers.extend(waiting.map(|waiting| (place, waiting, answer)));
        } else if let Some(waiting) = waiting {
            let _gone = waiting.send(Err(ProposeError::Unknown));
        }
    }

    fn on_letter(&mut self, from: NodeId, kind: u64, mut said: Bytes) {
        if kind == STREAM && said.len() > 8 {
            let (view, last) = (said.get_u64_le(), said.get_u8() == 1);
            return self.ledger.on_piece(from, view, last, said);
        }
        match read_say(&said) {
            Some(say) if kind == SAY => self.ledger.on_say(from, say),
            _ => tracing::warn!(%from, "a word about data directories is not understood: it is left out"),
        }
    }

    fn on_said(&mut self, shared: &Shared<S>, said: Said) -> Result<(), String> {
        match said {
            Said::Synced(mark, bytes) => {
                self.waiting -= bytes;
                self.ledger.on_disk(mark);
            }
            Said::Saved(mark) => self.ledger.on_disk(mark),
            Said::WentOn => self.saving = false,
            Said::Long => {
                let held = self.ledger.held().filter(|_| self.ledger.is_whole() && !self.saving).cloned();
                if let Some(held) = held {
                    self.saving = true;
                    let copied = lock(&shared.state).copy();
                    self.order(Order::GoOn(held, self.ledger.mark(), copied));
                }
            }
            Said::Failed(why) => return Err(why),
        }
        Ok(())
    }

    fn save(&mut self, shared: &Shared<S>, held: Held, mark: Mark) {
        let copied = lock(&shared.state).copy();
        self.order(Order::Save(held, mark, copied));
    }

    fn order(&mut self, order: Order) {
        if let Order::Append(_, _, cost) = &order {
            self.waiting += cost;
        }
        // If the thread is gone, it has said why, or the next look at it says so.
        let _gone = self.orders.send(order);
    }

    /// What the ledger wants.
    fn carry_out(&mut self, shared: &Shared<S>) -> Result<(), String> {
        while let Some(output) = self.ledger.poll() {
            match output {
                Output::Say(say) => {
                    // Of what is said of a disk the last word counts.
                    if let (Say::Synced { .. }, Some(Letter::Say(last @ Say::Synced { .. }))) =
                        (&say, self.unsaid.back_mut())
                    {
                        *last = say;
                    } else {
                        self.unsaid.push_back(Letter::Say(say));
                    }
                }
                Output::Write(entry, mark) => {
                    let cost = COST
                        + match &entry {
                            Entry::Command { command, .. } => command.len(),
                            _ => 0,
                        };
                    self.order(Order::Append(entry, mark, cost));
                }
                Output::Stream => {
                    let mut state = lock(&shared.state).snapshot();
                    let view = self.view.as_ref().map_or(0, |view| view.id.get());
                    loop {
                        let piece = state.split_to(state.len().min(PIECE));
                        let last = state.is_empty();
                        self.unsaid.push_back(Letter::Piece { view, last, piece });
                        if last {
                            break;
                        }
                    }
                }
                Output::Restore(pieces) => {
                    let restored = lock(&shared.state).restore(&pieces);
                    restored.map_err(|why| format!("a snapshot cannot be restored: {why}"))?;
                }
                Output::Save(held, mark) => self.save(shared, held, mark),
                Output::Whole => {
                    self.era += 1;
                    self.committed = 0;
                    if let Some(view) = &self.view {
                        lock(&shared.state).installed(view);
                        self.ledger.begin_view(view_bytes(view));
                    }
                }
                Output::Unsure => {
                    for (_, waiting, _) in self.answers.drain(..) {
                        let _gone = waiting.send(Err(ProposeError::Unknown));
                    }
                }
                Output::Committed(place) => {
                    self.committed = place;
                    while self.answers.front().is_some_and(|(at, ..)| *at <= place) {
                        if let Some((_, waiting, answer)) = self.answers.pop_front() {
                            let _gone = waiting.send(Ok(answer));
                        }
                    }
                }
                Output::Refuse(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// Says what the group can take.
    fn talk(&mut self, shared: &Shared<S>) {
        while let Some(letter) = self.unsaid.front() {
            let (class, message) = written(letter);
            let outcome = shared.membership.inner.try_multicast(class, message);
            match outcome {
                Ok(()) => drop(self.unsaid.pop_front()),
                Err(SendError::Full) => return,
                // There is nobody to hear it.
                Err(_) => self.unsaid.clear(),
            }
        }
    }

    /// Gives a member that is new the state, and what the ledger knows.
    fn give(&mut self, shared: &Shared<S>, request: StateRequest) {
        let meta = meta_bytes(&self.ledger.meta());
        let whole = self.ledger.is_whole();
        let copied = || if whole { lock(&shared.state).copy() } else { Box::new(Bytes::new) };
        give(&shared.copies, request, Some(meta), copied);
    }

    /// Tells those who wait how far this member is.
    async fn show(&mut self, shared: &Shared<S>) {
        let (whole, stuck) = (self.ledger.is_whole(), self.ledger.is_stuck());
        let standing = if whole {
            let ((here, of), enough) = (self.ledger.here(), self.ledger.is_enough());
            Standing::Kept { here, of, enough }
        } else {
            Standing::Waiting { why: self.ledger.waits_for().to_owned() }
        };
        let (era, committed) = (self.era, self.committed);
        let applied = self.ledger.held().map_or(0, |held| held.place.pos);
        shared.progress.send_if_modified(|progress| {
            let before = (progress.era, progress.applied, progress.committed);
            let changes = before != (era, applied, committed) || progress.standing != standing;
            (progress.era, progress.applied, progress.committed) = (era, applied, committed);
            if progress.standing != standing {
                progress.standing = standing.clone();
            }
            changes
        });
        // What passes by itself is not told; at first nobody has said which directory it has, not even this member.
        let is_news = stuck || matches!(standing, Standing::Kept { here: 1.., .. });
        if is_news && self.told.as_ref() != Some(&standing) {
            self.told = Some(standing.clone());
            shared.tell(standing).await;
        }
        shared.membership.inner.set_ready(whole);
    }
}

/// Writes what is ordered; what has come meanwhile goes to the disk together.
pub(super) fn write(mut store: Store, orders: &mpsc::Receiver<Order>, says: &UnboundedSender<Said>) {
    let mut held_back = None;
    let mut making: Option<Making> = None;
    loop {
        if let Some(made) = making.as_ref().and_then(|made| made.try_recv().ok()) {
            making = None;
            let finished = made.and_then(|head| with_patience(|| store.finish(&head)));
            let said = finished.map_or_else(failed, |()| Said::WentOn);
            let over = matches!(said, Said::Failed(_));
            // Who is gone has left the group.
            let _gone = says.send(said);
            if over {
                return;
            }
        }
        let order = match held_back.take() {
            Some(order) => order,
            None if making.is_some() => match orders.recv_timeout(LOOK) {
                Ok(order) => order,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            },
            None => match orders.recv() {
                Ok(order) => order,
                Err(mpsc::RecvError) => return,
            },
        };
        let outcome = match order {
            Order::Save(held, mark, copied) => {
                let state = [copied()];
                let save = || store.save(held.clone(), mark.promised, &state);
                with_patience(save).map(|()| Said::Saved(mark))
            }
            Order::GoOn(..) if making.is_some() || store.is_between() => Ok(Said::WentOn),
            Order::GoOn(held, mark, copied) => {
                let gone_on = with_patience(|| store.go_on(held.clone(), mark.promised));
                match gone_on.and_then(|snapshot| make(snapshot, copied)) {
                    Ok(made) => {
                        making = Some(made);
                        continue;
                    }
                    Err(error) => Err(error),
                }
            }
            Order::Append(entry, mut mark, mut cost) => {
                let mut body = BytesMut::new();
                put_entry(&entry, &mut body);
                while body.len() < TOGETHER {
                    match orders.try_recv() {
                        Ok(Order::Append(entry, after, more)) => {
                            put_entry(&entry, &mut body);
                            (mark, cost) = (after, cost + more);
                        }
                        Ok(other) => {
                            held_back = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                with_patience(|| store.append(&body)).map(|()| Said::Synced(mark, cost))
            }
        };
        let said = outcome.unwrap_or_else(failed);
        let over = matches!(said, Said::Failed(_));
        let _gone = says.send(said);
        if over {
            return;
        }
        if store.is_long() && making.is_none() {
            let _gone = says.send(Said::Long);
        }
    }
}

/// What becomes of a snapshot that another thread makes.
type Making = mpsc::Receiver<io::Result<Head>>;

/// Makes a snapshot, and writes it, while the log goes on.
fn make(mut snapshot: Snapshot, copied: Copied) -> io::Result<Making> {
    let (tells, made) = mpsc::sync_channel(1);
    thread::Builder::new().name("phalanx-copy".into()).spawn(move || {
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(copied));
        let made = made.map_err(|_| io::Error::other("the state cannot be copied: that panicked"));
        let written = made.and_then(|state| {
            let state = [state];
            with_patience(|| snapshot.write(&state))
        });
        // Who is gone has left the group.
        let _gone = tells.send(written);
    })?;
    Ok(made)
}

fn failed(error: io::Error) -> Said {
    Said::Failed(format!(
        "the data directory cannot be written to: {error}; see that there is room, and start this member again"
    ))
}

/// That too many files are open passes: it is no reason to leave the group. (Where a file cannot be opened nothing was written to
/// it, so it may be tried again.)
fn with_patience<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let is_full = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    let mut told = false;
    loop {
        match attempt() {
            Err(error) if is_full(&error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(%error, "the data directory cannot be written to: what is proposed waits; raise the limit \
                        of open files");
                }
                thread::sleep(FULL);
            }
            outcome => return outcome,
        }
    }
}

// ---- how it is said -------------------------------------------------------------------------------------------------

fn written(letter: &Letter) -> (Class, Bytes) {
    let mut bytes = BytesMut::new();
    bytes.put_u64_le(NOBODY);
    match letter {
        Letter::Say(say) => {
            bytes.put_u64_le(SAY);
            bytes.put_slice(&say_bytes(say));
            (if say.is_ordered() { Class::Safe } else { Class::Fifo }, bytes.freeze())
        }
        Letter::Piece { view, last, piece } => {
            bytes.reserve(HEAD + piece.len());
            bytes.put_u64_le(STREAM);
            bytes.put_u64_le(*view);
            bytes.put_u8(u8::from(*last));
            bytes.put_slice(piece);
            (Class::Safe, bytes.freeze())
        }
    }
}

pub(crate) fn say_bytes(say: &Say) -> Vec<u8> {
    rmp_serde::to_vec_named(say).expect("numbers")
}

pub(crate) fn read_say(bytes: &[u8]) -> Option<Say> {
    rmp_serde::from_slice(bytes).ok()
}

pub(crate) fn meta_bytes(meta: &Meta) -> Bytes {
    let meta = rmp_serde::to_vec_named(meta).expect("numbers");
    let mut bytes = BytesMut::with_capacity(META.len() + 4 + meta.len());
    bytes.put_slice(META);
    bytes.put_u32_le(u32::try_from(meta.len()).expect("bounded by the directories"));
    bytes.put_slice(&meta);
    bytes.freeze()
}

/// What went before a state, and the state.
pub(crate) fn read_meta(pieces: Vec<Bytes>) -> Option<(Meta, Vec<Bytes>)> {
    let mut pieces: VecDeque<Bytes> = pieces.into();
    let mut first = BytesMut::new();
    loop {
        let whole =
            first.get(8..12).map(|length| 12 + u32::from_le_bytes(length.try_into().expect("four")) as usize);
        if let Some(whole) = whole.filter(|whole| *whole <= first.len()) {
            let mut first = first.freeze();
            let rest = first.split_off(whole);
            let meta = first.strip_prefix(META).and_then(|meta| rmp_serde::from_slice(&meta[4..]).ok())?;
            pieces.push_front(rest);
            return Some((meta, pieces.into()));
        }
        first.extend_from_slice(&pieces.pop_front()?);
    }
}

type Named = (NodeId, String, Option<String>);

fn view_bytes(view: &View) -> Bytes {
    let name = |m: &Member| (m.node, m.name.to_string(), m.endpoint.as_ref().map(ToString::to_string));
    let members: Vec<Named> = view.members.iter().map(name).collect();
    let all = (&view.group, view.lineage, view.id, view.prev, view.token, members);
    rmp_serde::to_vec(&all).expect("names and numbers").into()
}

pub(crate) fn read_view(bytes: &[u8]) -> Option<View> {
    type All = (GroupName, Lineage, ViewId, ViewId, Token, Vec<Named>);
    let (group, lineage, id, prev, token, members): All = rmp_serde::from_slice(bytes).ok()?;
    let member = |(node, name, endpoint): Named| Member {
        node,
        name: name.into(),
        endpoint: endpoint.map(Into::into),
    };
    let members = members.into_iter().map(member).collect();
    Some(View { group, lineage, id, prev, token, members })
}
