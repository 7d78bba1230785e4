//! The data directory: what a node remembers when its machine lost power.
//!
//! | name | is |
//! | --- | --- |
//! | `lock` | locked by the one process that uses the directory; says which, for people |
//! | `floor` | view ids up to here may have been given: see `membership_proto::Floor` |
//! | `state` | a directory of its own: what the inventory keeps (`replica/store.rs`) |
//! | `witness` | what this node recorded as a witness for others: see `witness/memory.rs` |
//!
//! A file is replaced by writing another one, syncing it, renaming it, and syncing the directory: a reader finds the old
//! one or the new one, whole. What cannot be read is never overwritten: it is for people to decide what it is worth. Nothing is
//! opened through a link, which could lead to a file of somebody else.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use membership_proto::Floor;
use membership_types::{Ballot, Lineage, NodeId, ViewId};
use rustix::fs::{FlockOperation, flock};

/// A process that is about to end may still hold the directory.
const HANDOVER: Duration = Duration::from_secs(3);
/// How long after a failed write it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// No file of ours but a state is longer.
const LONGEST: u64 = 4096;
const LOCK: &str = "lock";
const FLOOR: &str = "floor";
const OURS: [&str; 5] = [LOCK, FLOOR, "floor.new", "state", WITNESS];
/// Below it the node is a witness for others.
pub(crate) const WITNESS: &str = "witness";
const FIRST_LINE: &str = "phalanx floor 1";
/// What our lock files begin with.
const HELD_BY: &str = "process ";

/// A data directory that this process alone uses.
pub(crate) struct DataDir {
    path: PathBuf,
    cluster: String,
    /// What was found in it.
    pub(crate) floor: Option<Floor>,
    lock: Arc<File>,
}

impl DataDir {
    /// Takes the directory for this process, and reads what is in it. Where it does not exist it is made. What is wrong, and
    /// what to do about it, is told in words; nothing was changed then.
    pub(crate) fn open(path: &Path, cluster: &str, name: &str) -> Result<Self, String> {
        let lock = take_over(path, &OURS, &[FLOOR], &format!("node {name}"))?;
        let floor = read_floor(path, cluster)?;
        Ok(Self { path: path.to_owned(), cluster: cluster.to_owned(), floor, lock: Arc::new(lock) })
    }

    /// Starts to write floors as they are asked for, on a thread of its own, since disks may hang; each one that is on disk
    /// is told. Where several wait, only the last is written: it is above the others.
    pub(crate) fn run(self, mut done: impl FnMut(Floor) + Send + 'static) -> io::Result<Disk> {
        let wanted = Arc::new(Wanted::default());
        let Self { path, cluster, lock, .. } = self;
        let (held, next) = (Arc::clone(&lock), Arc::clone(&wanted));
        thread::Builder::new().name("phalanx-disk".into()).spawn(move || {
            let _held = held;
            write_floors(&path, &cluster, &next, &mut done);
        })?;
        Ok(Disk { wanted, _lock: lock })
    }
}

/// The way to the thread that writes. The directory is free once this is dropped and the last write is over.
pub(crate) struct Disk {
    wanted: Arc<Wanted>,
    _lock: Arc<File>,
}

impl Disk {
    /// Has a floor written.
    pub(crate) fn set_aside(&self, floor: Floor) {
        if Arc::strong_count(&self.wanted) == 1 {
            tracing::error!("the thread that writes to the data directory is gone");
        }
        self.wanted.lock().floor = Some(floor);
        self.wanted.changed.notify_one();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.wanted.lock().no_more = true;
        self.wanted.changed.notify_one();
    }
}

/// What is to be written next: one place, in which each floor takes that of the one before, since it is above it.
#[derive(Default)]
struct Wanted {
    next: Mutex<Next>,
    changed: Condvar,
}

#[derive(Default)]
struct Next {
    floor: Option<Floor>,
    no_more: bool,
}

impl Wanted {
    /// What is in it is whole whenever the lock is free.
    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is to be written next, once there is something, or nobody wants anything any more.
    fn take(&self) -> Option<Floor> {
        let idle = |next: &mut Next| next.floor.is_none() && !next.no_more;
        let next = self.changed.wait_while(self.lock(), idle);
        next.unwrap_or_else(PoisonError::into_inner).floor.take()
    }

    /// The same if `failed` could not be written: after a while that is tried again, unless nobody waits for it any more.
    fn take_instead_of(&self, failed: Floor) -> Option<Floor> {
        let idle = |next: &mut Next| next.floor.is_none() && !next.no_more;
        let waited = self.changed.wait_timeout_while(self.lock(), AGAIN, idle);
        let (mut next, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let again = Some(failed).filter(|_| !next.no_more);
        next.floor.take().or(again)
    }
}

fn write_floors(path: &Path, cluster: &str, wanted: &Wanted, done: &mut dyn FnMut(Floor)) {
    let mut next = wanted.take();
    while let Some(floor) = next {
        next = match write_durably(path, FLOOR, to_text(cluster, floor).as_bytes()) {
            Ok(()) => {
                done(floor);
                wanted.take()
            }
            Err(error) => {
                let path = path.display();
                tracing::error!(%error, %path, "the data directory cannot be written to: views can be made only as long as \
                    the ids last that were set aside before");
                wanted.take_instead_of(floor)
            }
        };
    }
}

/// Makes the directory where it is missing, and takes it for this process. One that has other things in it than `ours` is left
/// alone, unless it was used before: then it has something of what is `known`, or our lock.
pub(crate) fn take_over(path: &Path, ours: &[&str], known: &[&str], who: &str) -> Result<File, String> {
    let at = path.display();
    make(path).map_err(|e| {
        format!("{at} is no directory, and cannot be made one: {e}; give one that this user may write to")
    })?;
    let strangers = strangers(path, ours).map_err(|e| format!("{at} cannot be read: {e}"))?;
    let known = has_our_lock(path)? || known.iter().any(|name| path.join(name).exists());
    if let Some(stranger) = strangers.filter(|_| !known) {
        let stranger = stranger.display();
        return Err(format!("{at} holds other things ({stranger}): give a directory of its own"));
    }
    take(path, who)
}

/// Opens a file of ours.
pub(crate) fn open(options: &mut OpenOptions, file: &Path) -> io::Result<File> {
    // A pipe of this name would hold us up.
    let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::InvalidInput, "it is no file"))
    }
}

/// Is there a lock file of ours? An empty one says nothing: it is new, or the power failed. One of somebody else is refused,
/// since taking the directory would overwrite it.
fn has_our_lock(path: &Path) -> Result<bool, String> {
    let file = path.join(LOCK);
    let at = file.display();
    let mut text = Vec::new();
    let opened = open(OpenOptions::new().read(true), &file);
    match opened.and_then(|file| file.take(LONGEST).read_to_end(&mut text)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("{at} cannot be read: {error}; give a directory of its own")),
        Ok(_) => {}
    }
    let is_empty = text.iter().all(|byte| *byte == 0);
    if !is_empty && !text.starts_with(HELD_BY.as_bytes()) {
        return Err(format!("{at} was not written by phalanx: give a directory of its own"));
    }
    Ok(!is_empty)
}

/// Makes the directory, and those above it, where they are missing; they are still there when power fails.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if !missing.is_empty() {
        // Right at the first start; else a disk is not mounted, or the path is another one.
        tracing::warn!(path = %path.display(), "the data directory was not there: it is new, and empty");
    }
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Something in the directory that is not ours.
fn strangers(path: &Path, ours: &[&str]) -> io::Result<Option<OsString>> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != "lost+found" && !ours.iter().any(|ours| name == *ours) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Locks the directory, and says in the lock file who we are.
fn take(path: &Path, who: &str) -> Result<File, String> {
    let (at, file) = (path.display(), path.join(LOCK));
    let failed = |e: io::Error| format!("{}: {e}; give a directory that can be written to", file.display());
    let begun = Instant::now();
    let lock = loop {
        // Anew each time: whoever held it may be gone with its file.
        let opened = open(OpenOptions::new().read(true).write(true).create(true).truncate(false), &file);
        let lock = opened.map_err(failed)?;
        let locked = try_lock(&lock).map_err(|error| {
            format!("{at} cannot be locked: {error}; give a directory on a file system with locks")
        })?;
        if locked && is_at(&lock, &file).map_err(failed)? {
            break lock;
        }
        if begun.elapsed() >= HANDOVER {
            let mut holder = String::new();
            // What cannot be read is not said.
            let _unreadable = lock.take(LONGEST).read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
            return Err(format!(
                "{at} is in use by {holder}: give each node a directory of its own, or stop that one"
            ));
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = format!("{HELD_BY}{} ({who})\n", std::process::id());
    // In this order, so that it says at any moment that it is ours.
    let written = lock.write_all_at(text.as_bytes(), 0).and_then(|()| lock.set_len(text.len() as u64));
    written.map_err(failed)?;
    Ok(lock)
}

/// Locks it for whoever shares this handle. False if somebody else has; a lock that we have stays.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Is this still what the path leads to? Who comes next opens what is there by then, and another file has another lock.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_floor(path: &Path, cluster: &str) -> Result<Option<Floor>, String> {
    let file = path.join(FLOOR);
    let at = file.display();
    let mut bytes = Vec::new();
    let opened = open(OpenOptions::new().read(true), &file);
    match opened.and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{at} cannot be read: {error}; nothing was changed")),
        Ok(_) => {}
    }
    let (of, floor) = from_text(&bytes).map_err(|why| {
        format!(
            "{at} is damaged ({why}); nothing was changed. Put a copy of it back; or, if there is none, move it away \
             (mv {at} {at}.damaged): this node then knows no more than its wall clock which tokens were given, and \
             learns the rest from the nodes that it finds"
        )
    })?;
    if of != cluster {
        return Err(format!(
            "{at} is of cluster {of:?}, and this node of {cluster:?}: give the directory of this cluster, or an empty one"
        ));
    }
    Ok(Some(floor))
}

pub(crate) fn to_text(cluster: &str, floor: Floor) -> String {
    let Floor { view, lineage, ballot } = floor;
    let (seconds, random): (u64, u64) = lineage.into();
    let (round, node, inc) = (ballot.round, ballot.node.node(), ballot.node.inc());
    let mut text = format!(
        "{FIRST_LINE}\ncluster {cluster}\nview {view}\nlineage {seconds} {random:016x}\nballot {round} {node} {inc:016x}\n"
    );
    let sum = checksum(text.as_bytes());
    let _infallible = writeln!(text, "sum {sum}");
    text
}

pub(crate) fn from_text(bytes: &[u8]) -> Result<(String, Floor), &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    if text.is_empty() {
        return Err("it is empty");
    }
    if !text.starts_with(FIRST_LINE) {
        return Err("it does not begin like a floor of this version of phalanx");
    }
    let (body, sum) = text.rsplit_once("sum ").ok_or("its end is missing")?;
    if sum.strip_suffix('\n') != Some(&checksum(body.as_bytes())) {
        return Err("its checksum is wrong");
    }
    let mut lines = body.lines().skip(1);
    let mut line = |key: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(key)).ok_or("a line is missing")?;
        line.strip_prefix(' ').ok_or("a line is missing")
    };
    let cluster = line("cluster")?.to_owned();
    let view = number(line("view")?)?;
    let (seconds, random) = line("lineage")?.split_once(' ').ok_or("a number is missing")?;
    let lineage = Lineage::new(number(seconds)?, hex(random)?);
    let (round, node) = line("ballot")?.split_once(' ').ok_or("a number is missing")?;
    let (node, inc) = node.split_once(' ').ok_or("a number is missing")?;
    let ballot = Ballot { round: number(round)?, node: NodeId::new(number(node)?, hex(inc)?) };
    if view >= ViewId::BOUND {
        return Err("its view id is too high");
    }
    let floor = Floor { view: ViewId::new(view), lineage, ballot };
    // What reads the same and is written in another way was not written here.
    if to_text(&cluster, floor) != text { Err("it is not as it was written") } else { Ok((cluster, floor)) }
}

fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "a number is none")
}

fn hex(text: &str) -> Result<u64, &'static str> {
    u64::from_str_radix(text, 16).map_err(|_| "a number is none")
}

pub(crate) fn checksum(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    data_encoding::HEXLOWER.encode(&digest.as_ref()[..16])
}

/// Replaces a file; when this returns without an error, power may fail.
fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (file, new) = (dir.join(name), dir.join(format!("{name}.new")));
    let mut out = open(OpenOptions::new().write(true).create(true).truncate(true), &new)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&new, &file)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("phalanx-disk-{name}-{}", std::process::id()));
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _gone = fs::remove_dir_all(&self.0);
        }
    }

    fn floor(view: u64) -> Floor {
        let ballot = Ballot { round: 7, node: NodeId::new(3, 0xabc) };
        Floor { view: ViewId::new(view), lineage: Lineage::new(5, 0xdef), ballot }
    }

    fn problem(opened: Result<DataDir, String>) -> String {
        opened.err().expect("it must be refused")
    }

    #[test]
    fn what_was_set_aside_is_there_after_a_restart() {
        let dir = Dir::new("again");
        let opened = DataDir::open(&dir.0, "c", "n").expect("a new directory");
        assert_eq!(opened.floor, None);
        let (told, tells) = std::sync::mpsc::channel();
        let disk = opened.run(move |floor| told.send(floor).expect("we listen")).expect("a thread");
        for view in [10, 20, 30] {
            disk.set_aside(floor(view));
        }
        while tells.recv().expect("it is written") != floor(30) {}
        let busy = problem(DataDir::open(&dir.0, "c", "other"));
        assert!(busy.contains(&format!("process {} (node n)", std::process::id())), "{busy}");
        drop(disk);
        let again = DataDir::open(&dir.0, "c", "n").expect("it is free");
        assert_eq!(again.floor, Some(floor(30)));
    }

    #[test]
    fn a_disk_that_hangs_finds_one_floor_waiting_and_that_is_the_last() {
        let dir = Dir::new("hangs");
        let (told, tells) = std::sync::mpsc::channel();
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let slow = move |floor| {
            told.send(floor).expect("we listen");
            // As long as the disk hangs.
            let _go = gate.recv();
        };
        let disk = DataDir::open(&dir.0, "c", "n").expect("a new directory").run(slow).expect("a thread");
        disk.set_aside(floor(1));
        assert_eq!(tells.recv(), Ok(floor(1)));
        for view in 2..=1000 {
            disk.set_aside(floor(view));
        }
        drop(disk);
        drop(go);
        assert_eq!(tells.recv(), Ok(floor(1000)), "what waited is written although nobody asks any more");
        assert!(tells.recv().is_err(), "and nothing else");
        // The thread lets go of the directory a moment later.
        assert_eq!(DataDir::open(&dir.0, "c", "n").expect("it is free").floor, Some(floor(1000)));
    }

    #[test]
    fn every_damage_is_noticed_and_nothing_is_lost() {
        let dir = Dir::new("damage");
        drop(DataDir::open(&dir.0, "c", "n").expect("a new directory"));
        let file = dir.0.join(FLOOR);
        let whole = to_text("c", floor(123_456)).into_bytes();
        for cut in 0..whole.len() {
            fs::write(&file, &whole[..cut]).expect("writable");
            let why = problem(DataDir::open(&dir.0, "c", "n"));
            assert!(why.contains("damaged") && why.contains("mv "), "{cut}: {why}");
            assert_eq!(fs::read(&file).expect("still there"), whole[..cut], "nothing was changed");
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 1;
            fs::write(&file, &other).expect("writable");
            assert!(DataDir::open(&dir.0, "c", "n").is_err(), "a flipped bit at {at}");
        }
        fs::write(&file, vec![b'x'; 1 << 20]).expect("writable");
        assert!(problem(DataDir::open(&dir.0, "c", "n")).contains("does not begin like"));
        fs::write(&file, &whole).expect("writable");
        assert!(problem(DataDir::open(&dir.0, "d", "n")).contains("is of cluster \"c\""));
        // What a crash left of a write that did not come to its end means nothing.
        fs::write(dir.0.join("floor.new"), b"torn").expect("writable");
        assert_eq!(DataDir::open(&dir.0, "c", "n").expect("whole").floor, Some(floor(123_456)));
    }

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let dir = Dir::new("others");
        fs::create_dir_all(&dir.0).expect("a directory");
        fs::write(dir.0.join("thesis.tex"), b"x").expect("writable");
        assert!(problem(DataDir::open(&dir.0, "c", "n")).contains("thesis.tex"));
        assert!(!dir.0.join(LOCK).exists(), "nothing was made in it");
        assert!(problem(DataDir::open(&dir.0.join("thesis.tex"), "c", "n")).contains("no directory"));
    }

    #[test]
    fn a_lock_file_of_others_is_left_alone() {
        let dir = Dir::new("lock-of-others");
        fs::create_dir_all(&dir.0).expect("a directory");
        let lock = dir.0.join(LOCK);
        for stranger in [false, true] {
            if stranger {
                fs::write(dir.0.join("thesis.tex"), b"x").expect("writable");
            }
            for text in ["4711\n", "processes"] {
                fs::write(&lock, text).expect("writable");
                let why = problem(DataDir::open(&dir.0, "c", "n"));
                assert!(why.contains("lock was not written by phalanx"), "{why}");
                assert_eq!(fs::read(&lock).expect("still there"), text.as_bytes());
            }
        }
        fs::write(&lock, b"").expect("writable");
        assert!(problem(DataDir::open(&dir.0, "c", "n")).contains("thesis.tex"), "it may be anybody's");
        fs::remove_file(dir.0.join("thesis.tex")).expect("it is ours");
        drop(DataDir::open(&dir.0, "c", "n").expect("as a crash leaves it"));
        fs::write(dir.0.join("thesis.tex"), b"x").expect("writable");
        drop(DataDir::open(&dir.0, "c", "n").expect("it was used before"));
        let text = format!("process {} (node n)\n", std::process::id());
        assert_eq!(fs::read(&lock).expect("there"), text.as_bytes());
    }

    #[test]
    fn a_lock_file_that_was_replaced_while_it_was_locked_locks_nothing() {
        let dir = Dir::new("replaced");
        drop(DataDir::open(&dir.0, "c", "first").expect("a new directory"));
        let lock = dir.0.join(LOCK);
        let before = File::open(&lock).expect("there");
        assert!(try_lock(&before).expect("locks work"));
        let path = dir.0.clone();
        let waits = thread::spawn(move || take(&path, "node second"));
        thread::sleep(Duration::from_millis(100));
        fs::write(dir.0.join("new"), b"").expect("writable");
        fs::rename(dir.0.join("new"), &lock).expect("ours");
        drop(before);
        let taken = waits.join().expect("it ends").expect("nobody holds the new one");
        assert!(is_at(&taken, &lock).expect("readable"), "what it holds is what others find");
        assert!(fs::read_to_string(&lock).expect("text").contains("node second"));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = Dir::new("links");
        fs::create_dir_all(dir.0.join("data")).expect("a directory");
        let (data, other) = (dir.0.join("data"), dir.0.join("other"));
        let whole = to_text("c", floor(7)).into_bytes();
        for (name, text) in [(LOCK, &b"process 1 (node n)\n"[..]), (LOCK, &b""[..]), (FLOOR, &whole[..])] {
            fs::write(&other, text).expect("writable");
            std::os::unix::fs::symlink(&other, data.join(name)).expect("a link");
            let why = problem(DataDir::open(&data, "c", "n"));
            assert!(why.contains(&format!("{name} cannot be read")), "{why}");
            assert_eq!(fs::read(&other).expect("still there"), text);
            fs::remove_file(data.join(name)).expect("it is ours");
        }
        std::os::unix::fs::symlink(&other, data.join("floor.new")).expect("a link");
        assert!(write_durably(&data, FLOOR, b"new").is_err());
        assert_eq!(fs::read(&other).expect("still there"), whole);
    }
}
