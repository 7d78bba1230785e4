//! What a member of a replicated state keeps in a directory: the state as of some position, and a log of what came after it.
//!
//! | name | is |
//! | --- | --- |
//! | `lock` | locked by the one process that uses the directory; says which, for people |
//! | `state` | the last snapshot: a head that says of what, and the application's bytes |
//! | `log` | what was delivered after it, in frames; each is on disk before the next one is begun |
//! | `log.next` | while a snapshot is being made: what was delivered after it; `log` says at its end that it goes on there |
//! | `state.next` | that snapshot, until it takes the place of `state`, and then `log.next` that of `log` |
//! | `state.new`, `log.new`, `….next.new` | on their way; they mean nothing after a crash |
//!
//! A snapshot has a number, and so does the log that follows it: of a crash between the two renames an older log is left, which
//! the snapshot reflects or which it has replaced. Since at most one frame is not on disk when power fails, whatever is
//! wrong with a frame that another one follows is damage, and not a crash: that is refused. Each log has a random seed, with
//! which its checksums begin: so nobody can write a command in which there is such a frame.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use membership_types::NodeId;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ledger::{BOUND, DirId, Entry, Held, MOST, Mark, Place};
use crate::disk;

pub(crate) const STATE: &str = "state";
pub(crate) const LOG: &str = "log";
const NEXT_STATE: &str = "state.next";
const NEXT_LOG: &str = "log.next";
const ALL: [&str; 9] =
    ["lock", STATE, LOG, NEXT_STATE, NEXT_LOG, "state.new", "log.new", "state.next.new", "log.next.new"];
const STATE_MAGIC: &[u8; 16] = b"phalanx state 1\n";
/// Logs of version 1 had no seed. No release wrote them; they are refused.
const LOG_MAGIC: &[u8; 16] = b"phalanx log 2\n\0\n";
const FRAME_MAGIC: u32 = 0x5048_4c58;
/// Of a log: the magic, its number, its seed, and a checksum of these.
const LOG_HEAD: usize = 40;
/// Of a frame: the magic, the length of the body, its index, its checksum, and a checksum of these.
const FRAME_HEAD: usize = 32;
/// So many bytes of entries are put on disk together, and whatever the last of them has.
pub(crate) const TOGETHER: usize = 4 << 20;
/// What comes before a snapshot is no longer.
const LONGEST_HEAD: usize = 64 << 10;
/// A log that is longer than this, and than twice its snapshot, is followed by a new snapshot.
const LONG: u64 = 16 << 20;

// ---- files ----------------------------------------------------------------------------------------------------------

/// The few things that are done to files. What a call has done is on disk once it, or the next `sync`, has returned.
pub(crate) trait Files: Send {
    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// A new file in the place of an old one, whole or not at all.
    fn replace(&mut self, name: &str, parts: &[&[u8]]) -> io::Result<()>;
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// What was appended is on disk.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// All after this length is gone, on disk.
    fn cut(&mut self, name: &str, length: u64) -> io::Result<()>;
    /// A file takes the place of another one, on disk.
    fn rename(&mut self, name: &str, to: &str) -> io::Result<()>;
    /// There is no such file, or none any more.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// The same directory, for another thread.
    fn another(&self) -> Box<dyn Files>;
    /// Where it is, for people.
    fn path(&self, name: &str) -> PathBuf;
}

/// Those of a directory.
pub(crate) struct Dir {
    path: PathBuf,
    log: Option<(String, File)>,
    lock: Arc<File>,
}

impl Dir {
    /// Takes the directory for this process.
    pub(crate) fn open(path: &Path, who: &str) -> Result<Self, String> {
        let lock = disk::take_over(path, &ALL, &[STATE], who)?;
        Ok(Self { path: path.to_owned(), log: None, lock: Arc::new(lock) })
    }

    fn log(&mut self, name: &str) -> io::Result<&mut File> {
        if self.log.as_ref().is_none_or(|(of, _)| of != name) {
            let file = disk::open(OpenOptions::new().append(true), &self.path.join(name))?;
            self.log = Some((name.to_owned(), file));
        }
        self.log.as_mut().map(|(_, file)| file).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Files for Dir {
    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let opened = disk::open(OpenOptions::new().read(true), &self.path.join(name));
        match opened.and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(&mut self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let (file, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let mut out = disk::open(OpenOptions::new().write(true).create(true).truncate(true), &new)?;
        for part in parts {
            out.write_all(part)?;
        }
        out.sync_all()?;
        fs::rename(&new, &file)?;
        self.log = None;
        File::open(&self.path)?.sync_all()
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.log(name)?.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.log(name)?.sync_data()
    }

    fn cut(&mut self, name: &str, length: u64) -> io::Result<()> {
        let log = self.log(name)?;
        log.set_len(length)?;
        log.sync_all()
    }

    fn rename(&mut self, name: &str, to: &str) -> io::Result<()> {
        let dir = File::open(&self.path)?;
        fs::rename(self.path.join(name), self.path.join(to))?;
        self.log = None;
        dir.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn another(&self) -> Box<dyn Files> {
        Box::new(Self { path: self.path.clone(), log: None, lock: Arc::clone(&self.lock) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

// ---- the snapshot ---------------------------------------------------------------------------------------------------

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Its number, which the log after it has, too.
    pub(crate) number: u64,
    pub(crate) cluster: String,
    pub(crate) group: String,
    pub(crate) dir: DirId,
    pub(crate) promised: u64,
    pub(crate) held: Option<Held>,
    /// Of the application's bytes.
    length: u64,
    sum: u64,
}

fn state_head(head: &Head) -> Vec<u8> {
    let head = rmp_serde::to_vec_named(head).expect("texts and numbers");
    let mut bytes = STATE_MAGIC.to_vec();
    bytes.put_u32_le(u32::try_from(head.len()).expect("a few KiB"));
    bytes.put_u64_le(xxh3_64_with_seed(&head, 0));
    bytes.extend_from_slice(&head);
    bytes
}

/// Reads a snapshot. The error says what is wrong with it.
pub(crate) fn read_state(mut bytes: Bytes) -> Result<(Head, Bytes), String> {
    if bytes.len() < 28 || !bytes.starts_with(STATE_MAGIC) {
        let other = bytes.starts_with(b"phalanx state ");
        return Err(
            if other { "it is of another version of phalanx" } else { "it does not begin like one" }.into()
        );
    }
    bytes.advance(16);
    let (length, sum) = (bytes.get_u32_le() as usize, bytes.get_u64_le());
    if length > LONGEST_HEAD || length > bytes.len() {
        return Err("it is too short".into());
    }
    let head = bytes.split_to(length);
    if xxh3_64_with_seed(&head, 0) != sum {
        return Err("the checksum of its head is wrong".into());
    }
    let head: Head = rmp_serde::from_slice(&head).map_err(|e| format!("its head is not understood: {e}"))?;
    if head.length != bytes.len() as u64 || head.sum != xxh3_64_with_seed(&bytes, head.number) {
        return Err("its checksum is wrong".into());
    }
    if head.promised >= BOUND || head.held.as_ref().is_some_and(|held| !held.is_sound()) {
        return Err("its head makes no sense".into());
    }
    Ok((head, bytes))
}

// ---- the log --------------------------------------------------------------------------------------------------------

fn log_head(number: u64, seed: u64) -> [u8; LOG_HEAD] {
    let mut head = [0; LOG_HEAD];
    head[..16].copy_from_slice(LOG_MAGIC);
    head[16..24].copy_from_slice(&number.to_le_bytes());
    head[24..32].copy_from_slice(&seed.to_le_bytes());
    let sum = xxh3_64_with_seed(&head[..32], 0);
    head[32..].copy_from_slice(&sum.to_le_bytes());
    head
}

fn frame_head(body: &[u8], seed: u64, index: u64) -> [u8; FRAME_HEAD] {
    let mut head = [0; FRAME_HEAD];
    head[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    head[4..8].copy_from_slice(&u32::try_from(body.len()).expect("bounded").to_le_bytes());
    head[8..16].copy_from_slice(&index.to_le_bytes());
    head[16..24].copy_from_slice(&xxh3_64_with_seed(body, seed).to_le_bytes());
    let sum = xxh3_64_with_seed(&head[..24], seed);
    head[24..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The body of the frame that begins here, if it is whole and one of this log: not before `index`.
fn frame(bytes: &[u8], seed: u64, index: u64) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD)?;
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    if head[..4] != FRAME_MAGIC.to_le_bytes() || word(24) != xxh3_64_with_seed(&head[..24], seed) {
        return None;
    }
    let body = rest.get(..(word(0) >> 32) as usize)?;
    let fits = word(8) >= index && word(16) == xxh3_64_with_seed(body, seed);
    fits.then_some((word(8), body))
}

/// What is in a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) number: u64,
    /// What its checksums begin with.
    pub(crate) seed: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) frames: u64,
    /// It goes on in another file.
    pub(crate) continued: bool,
    /// So many of its bytes count: what comes after them was being written when the power failed.
    pub(crate) end: usize,
}

/// Reads a log. The error says what is wrong with it: more than a crash leaves behind.
pub(crate) fn read_log(bytes: &Bytes) -> Result<Log, String> {
    if bytes.len() < LOG_HEAD || bytes[..16] != LOG_MAGIC[..] {
        let other = bytes.starts_with(b"phalanx log ") && !bytes.starts_with(b"phalanx log 2\n");
        return Err(
            if other { "it is of another version of phalanx" } else { "it does not begin like one" }.into()
        );
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (number, seed) = (word(16), word(24));
    if bytes[..LOG_HEAD] != log_head(number, seed) {
        return Err("the checksum of its head is wrong".into());
    }
    let mut log = Log { number, seed, entries: Vec::new(), frames: 0, continued: false, end: LOG_HEAD };
    while let Some((index, body)) = frame(&bytes[log.end..], seed, log.frames)
        && index == log.frames
    {
        let wrong = |why: &str| format!("what it says at byte {} is not understood: {why}", log.end);
        if log.continued {
            return Err(wrong("it goes on elsewhere"));
        }
        if body == [CONTINUED] {
            log.continued = true;
        } else {
            read_entries(bytes.slice_ref(body), &mut log.entries).map_err(wrong)?;
        }
        log.end += FRAME_HEAD + body.len();
        log.frames += 1;
    }
    let rest = &bytes[log.end..];
    let magic = FRAME_MAGIC.to_le_bytes();
    let later = (0..rest.len()).filter(|at| rest[*at..].starts_with(&magic));
    if let Some(at) = later.into_iter().find(|at| frame(&rest[*at..], seed, log.frames).is_some()) {
        let (from, to) = (log.end, log.end + at);
        return Err(format!("the bytes from {from} to {to} are damaged, and whole records follow them"));
    }
    Ok(log)
}

const COMMAND: u8 = 1;
const VIEW: u8 = 2;
const TERM: u8 = 3;
const HOLDERS: u8 = 4;
const SETTLED: u8 = 5;
const PROMISE: u8 = 6;
/// The only thing in the last frame of a log that goes on in `log.next`. (Builds that do not know it refuse such a log.)
const CONTINUED: u8 = 7;

/// Writes an entry to the body of a frame.
pub(crate) fn put_entry(entry: &Entry, out: &mut BytesMut) {
    let put_bytes = |out: &mut BytesMut, bytes: &[u8]| {
        out.put_u32_le(u32::try_from(bytes.len()).expect("bounded by what members send"));
        out.put_slice(bytes);
    };
    match entry {
        Entry::Command { from, command } => {
            out.put_u8(COMMAND);
            out.put_u32_le(from.node());
            out.put_u64_le(from.inc());
            put_bytes(out, command);
        }
        Entry::View(view) => {
            out.put_u8(VIEW);
            put_bytes(out, view);
        }
        Entry::Term(term) => {
            out.put_u8(TERM);
            out.put_u64_le(*term);
        }
        Entry::Holders(now) => {
            out.put_u8(HOLDERS);
            out.put_u16_le(u16::try_from(now.len()).expect("a few"));
            now.iter().for_each(|dir| out.put_u64_le(*dir));
        }
        Entry::Settled => out.put_u8(SETTLED),
        Entry::Promise(term) => {
            out.put_u8(PROMISE);
            out.put_u64_le(*term);
        }
    }
}

pub(crate) fn read_entries(mut body: Bytes, into: &mut Vec<Entry>) -> Result<(), &'static str> {
    while body.has_remaining() {
        into.push(read_entry(&mut body)?);
    }
    Ok(())
}

fn read_entry(body: &mut Bytes) -> Result<Entry, &'static str> {
    let short = |_| "a record is too short";
    let bytes = |body: &mut Bytes| {
        let length = body.try_get_u32_le().map_err(short)? as usize;
        if length > body.len() { Err("a record is too short") } else { Ok(body.split_to(length)) }
    };
    let term = |body: &mut Bytes| {
        let term = body.try_get_u64_le().map_err(short)?;
        if term < BOUND { Ok(term) } else { Err("there is no such term") }
    };
    Ok(match body.try_get_u8().map_err(short)? {
        COMMAND => {
            let (node, inc) = (body.try_get_u32_le().map_err(short)?, body.try_get_u64_le().map_err(short)?);
            if inc >= NodeId::INC_BOUND {
                return Err("a node has no such id");
            }
            Entry::Command { from: NodeId::new(node, inc), command: bytes(body)? }
        }
        VIEW => Entry::View(bytes(body)?),
        TERM => Entry::Term(term(body)?),
        HOLDERS => {
            let count = usize::from(body.try_get_u16_le().map_err(short)?);
            if count > MOST {
                return Err("so many directories cannot count");
            }
            let dirs: Result<Vec<u64>, _> =
                (0..count).map(|_| body.try_get_u64_le().map_err(short)).collect();
            Entry::Holders(dirs?)
        }
        SETTLED => Entry::Settled,
        PROMISE => Entry::Promise(term(body)?),
        _ => return Err("a record is of a kind that this version does not know"),
    })
}

// ---- both -----------------------------------------------------------------------------------------------------------

/// What was found in a directory.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) head: Head,
    pub(crate) state: Bytes,
    pub(crate) entries: Vec<Entry>,
}

/// The directory of one member, which writes to it.
pub(crate) struct Store {
    files: Box<dyn Files>,
    head: Head,
    log: u64,
    seed: u64,
    frames: u64,
    /// Where the log goes on.
    file: &'static str,
}

/// A snapshot that is made while the log goes on.
pub(crate) struct Snapshot {
    files: Box<dyn Files>,
    head: Head,
}

impl Snapshot {
    /// Writes it. It counts once it is [finished](Store::finish).
    pub(crate) fn write(&mut self, state: &[Bytes]) -> io::Result<Head> {
        self.head.measure(state);
        let head = state_head(&self.head);
        let mut parts = vec![&head[..]];
        parts.extend(state.iter().map(|piece| &piece[..]));
        self.files.replace(NEXT_STATE, &parts)?;
        Ok(self.head.clone())
    }
}

impl Head {
    fn measure(&mut self, state: &[Bytes]) {
        let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(self.number);
        state.iter().for_each(|piece| hash.update(piece));
        self.length = state.iter().map(|piece| piece.len() as u64).sum();
        self.sum = hash.digest();
    }
}

impl Store {
    /// Reads what there is, or begins. `fresh`: the id of a directory that is empty. The error says what is wrong and what to
    /// do; nothing was changed then.
    pub(crate) fn open(
        mut files: Box<dyn Files>,
        (cluster, group): (&str, &str),
        fresh: DirId,
    ) -> Result<(Self, Found), String> {
        let path = |files: &dyn Files, name| files.path(name).display().to_string();
        let damaged = |at: &str, why: String| {
            format!(
                "{at} is damaged ({why}); nothing was changed. Put a copy of the directory back; or, if there is none, move \
                 it away: this member then gets the state from the others, if they have it"
            )
        };
        let unreadable = |at: &str, e: io::Error| format!("{at} cannot be read: {e}; nothing was changed");
        let (at, log_at) = (path(&*files, STATE), path(&*files, LOG));
        let state = files.read(STATE).map_err(|e| unreadable(&at, e))?;
        let log = files.read(LOG).map_err(|e| unreadable(&log_at, e))?;
        let next_at = path(&*files, NEXT_LOG);
        let next = files.read(NEXT_LOG).map_err(|e| unreadable(&next_at, e))?;
        let Some(state) = state else {
            if log.is_some_and(|log| !log.is_empty()) {
                return Err(damaged(&at, "it is missing, and there is a log".into()));
            }
            let (cluster, group) = (cluster.to_owned(), group.to_owned());
            let (length, sum) = (0, xxh3_64_with_seed(b"", 1));
            let head = Head { number: 1, cluster, group, dir: fresh, promised: 0, held: None, length, sum };
            let mut store = Self { files, head: head.clone(), log: 0, seed: 0, frames: 0, file: LOG };
            store.begin(&[]).map_err(|e| format!("{at} cannot be written: {e}"))?;
            return Ok((store, Found { head, state: Bytes::new(), entries: Vec::new() }));
        };
        let (head, state) = read_state(state.into()).map_err(|why| damaged(&at, why))?;
        if (&*head.cluster, &*head.group) != (cluster, group) {
            let (c, g) = (&head.cluster, &head.group);
            return Err(format!(
                "{at} is of group {g:?} of cluster {c:?}, and this member of group {group:?} of cluster {cluster:?}: give \
                 the directory of this one, or an empty one"
            ));
        }
        // Where it never was, the power failed before it was.
        let log = log.or_else(|| (head.number == 1).then(|| log_head(0, 0).to_vec()));
        let mut bytes = Bytes::from(log.ok_or_else(|| damaged(&log_at, "it is missing".into()))?);
        let mut log = read_log(&bytes).map_err(|why| damaged(&log_at, why))?;
        let next = next.map(Bytes::from).map(|bytes| (read_log(&bytes), bytes));
        let mut store =
            Self { files, head, log: log.end as u64, seed: log.seed, frames: log.frames, file: LOG };
        let head = store.head.clone();
        let written =
            |done: io::Result<()>, at: &str| done.map_err(|e| format!("{at} cannot be written: {e}"));
        let mut before = Vec::new();
        if log.number < head.number {
            // The power failed between two renames.
            match next {
                Some((Ok(next), next_bytes)) if log.continued && next.number == head.number => {
                    written(store.files.rename(NEXT_LOG, LOG), &log_at)?;
                    (log, bytes) = (next, next_bytes);
                }
                _ => {
                    written(store.begin_log(), &log_at)?;
                    written(store.files.remove(NEXT_LOG), &next_at)?;
                    return Ok((store, Found { head, state, entries: Vec::new() }));
                }
            }
        } else if log.continued {
            // The power failed before the snapshot was there.
            let (next, next_bytes) = next.ok_or_else(|| damaged(&next_at, "it is missing".into()))?;
            let next = next.map_err(|why| damaged(&next_at, why))?;
            if next.number != head.number + 1 {
                return Err(damaged(&next_at, "it does not follow the log".into()));
            }
            store.file = NEXT_LOG;
            let first = std::mem::replace(&mut log, next);
            (log.number, before) = (first.number, first.entries);
            bytes = next_bytes;
        } else {
            // It was made, and nothing was written to it.
            written(store.files.remove(NEXT_LOG), &next_at)?;
        }
        written(store.files.remove(NEXT_STATE), &next_at)?;
        (store.log, store.seed, store.frames) = (log.end as u64, log.seed, log.frames);
        let log_at = path(&*store.files, store.file);
        log.entries.splice(0..0, before);
        if log.number > head.number {
            return Err(damaged(&at, "it is older than the log".into()));
        }
        let mut held = head.held.clone();
        for (n, entry) in log.entries.iter().enumerate() {
            let follows = match (&mut held, entry) {
                (_, Entry::Promise(_)) => true,
                (Some(held), entry) => held.follow(entry),
                (None, _) => false,
            };
            if !follows {
                return Err(damaged(&log_at, format!("record {n} cannot follow those before it")));
            }
        }
        if log.end < bytes.len() {
            let (cut, path) = (bytes.len() - log.end, &log_at);
            tracing::warn!(
                path,
                cut,
                "the end of the log was being written when this process ended: it is cut off"
            );
            let done = store.files.cut(store.file, log.end as u64);
            done.map_err(|e| format!("{log_at} cannot be written: {e}"))?;
        }
        Ok((store, Found { head, state, entries: log.entries }))
    }

    /// Puts these entries on disk, together.
    pub(crate) fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let head = frame_head(body, self.seed, self.frames);
        self.files.append(self.file, &head)?;
        self.files.append(self.file, body)?;
        self.files.sync(self.file)?;
        self.log += (FRAME_HEAD + body.len()) as u64;
        self.frames += 1;
        Ok(())
    }

    /// Is the log so long that a snapshot should take its place?
    pub(crate) fn is_long(&self) -> bool {
        !self.is_between() && self.log > LONG.max(2 * self.head.length)
    }

    /// Does the log go on in another file, until a snapshot is there?
    pub(crate) fn is_between(&self) -> bool {
        self.file == NEXT_LOG
    }

    /// From here on the log goes on in another file: so a snapshot can be made of what was there until now.
    pub(crate) fn go_on(&mut self, held: Held, promised: u64) -> io::Result<Snapshot> {
        let number = self.head.number + 1;
        let seed = crate::start::random()?;
        self.files.replace(NEXT_LOG, &[&log_head(number, seed)])?;
        self.append(&[CONTINUED])?;
        (self.file, self.log, self.seed, self.frames) = (NEXT_LOG, LOG_HEAD as u64, seed, 0);
        let head = Head { number, promised, held: Some(held), ..self.head.clone() };
        Ok(Snapshot { files: self.files.another(), head })
    }

    /// That snapshot is written: it takes the place of the one before, unless another one has. May be called again if it fails.
    pub(crate) fn finish(&mut self, head: &Head) -> io::Result<()> {
        let before = self.head.number;
        if !self.is_between() || !(before..=before + 1).contains(&head.number) {
            return self.files.remove(NEXT_STATE);
        }
        if head.number > before {
            self.files.rename(NEXT_STATE, STATE)?;
            self.head = head.clone();
        }
        self.files.rename(NEXT_LOG, LOG)?;
        self.file = LOG;
        Ok(())
    }

    /// Puts a snapshot in the place of what there is.
    pub(crate) fn save(&mut self, held: Held, promised: u64, state: &[Bytes]) -> io::Result<()> {
        // A log that goes on elsewhere has the next number already.
        let number = self.head.number + 2;
        self.head = Head { number, promised, held: Some(held), ..self.head.clone() };
        self.head.measure(state);
        let pieces: Vec<&[u8]> = state.iter().map(|piece| &piece[..]).collect();
        self.begin(&pieces)
    }

    fn begin(&mut self, state: &[&[u8]]) -> io::Result<()> {
        let head = state_head(&self.head);
        let mut parts = vec![&head[..]];
        parts.extend(state);
        self.files.replace(STATE, &parts)?;
        self.begin_log()
    }

    fn begin_log(&mut self) -> io::Result<()> {
        self.seed = crate::start::random()?;
        self.files.replace(LOG, &[&log_head(self.head.number, self.seed)])?;
        (self.log, self.frames) = (LOG_HEAD as u64, 0);
        if std::mem::replace(&mut self.file, LOG) == NEXT_LOG {
            self.files.remove(NEXT_LOG)?;
        }
        Ok(())
    }
}

/// As they are on disk.
#[cfg(feature = "fuzz")]
pub(crate) fn sealed_state(head: &Head, state: &[u8]) -> Vec<u8> {
    let (length, sum) = (state.len() as u64, xxh3_64_with_seed(state, head.number));
    [&state_head(&Head { length, sum, ..head.clone() }), state].concat()
}

/// As they are on disk: each of these a frame.
#[cfg(feature = "fuzz")]
pub(crate) fn sealed_log(bodies: &[Bytes]) -> Vec<u8> {
    let (number, seed) = (1, 5);
    let mut log = log_head(number, seed).to_vec();
    for (index, body) in bodies.iter().enumerate() {
        log.extend(frame_head(body, seed, index as u64));
        log.extend_from_slice(body);
    }
    log
}

#[cfg(feature = "fuzz")]
impl Head {
    pub(crate) fn of(held: Held) -> Self {
        let (cluster, group, held) = ("c".into(), "g".into(), Some(held));
        Self { number: 1, cluster, group, dir: 1, promised: 0, held, length: 0, sum: 0 }
    }
}

/// How far entries that follow a snapshot go.
pub(crate) fn replayed(head: &Head, entries: &[Entry]) -> (Option<Held>, Mark) {
    let mut held = head.held.clone();
    let mut promised = head.promised;
    for entry in entries {
        match (entry, &mut held) {
            (Entry::Promise(term), _) => promised = promised.max(*term),
            (entry, Some(held)) => {
                held.follow(entry);
            }
            (_, None) => {}
        }
    }
    let (history, place) = held.as_ref().map_or((0, Place::default()), |held| (held.history, held.place));
    (held, Mark { history, place, promised })
}

#[cfg(test)]
mod tests;
