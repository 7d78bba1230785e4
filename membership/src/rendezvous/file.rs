//! The provider `file:DIR`: every node writes a file about itself, and reads those of the others.
//!
//! Below `DIR/CLUSTER`, `nodes/` has one file for each node: renewed every second or two, taken away when the node leaves.
//! One that was not renewed for long is ignored, and at last removed by whoever sees it; age is measured between the times
//! that the file system itself gave to files, so clocks need not agree. `slots/0` to `slots/n-1` are the founder slots
//! under `expect(n)`: a node holds one by a lock on its file, which the kernel gives back when the process dies. So a slot
//! has one holder at most, and a restarted process finds one. A lock says nothing about a file that somebody removed or put
//! another one in the place of, and a file server may forget locks: so the holder looks again whenever it renews its file,
//! locks what is there then, and complains if another one has done so.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use membership_types::NodeId;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    clock::now_ns,
    disk::{is_at, try_lock},
    node::lock,
    rendezvous::{finder::Report, is_reachable},
    wire::shown,
};

/// How often the directory is read by a node that is in no view, and by one that is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1500));
/// How often our own file is renewed.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How long the file system may take to answer before that is said.
const PATIENCE: Duration = Duration::from_secs(2);

/// A file that is so much older than our own is of a node that is gone.
const STALE: Duration = Duration::from_secs(10);
/// And one that is so much older is removed.
const REMOVED: Duration = Duration::from_secs(60);
/// The largest file that is read.
const MAX_FILE: u64 = 4096;
/// How often a slot is tried whose file is exchanged while it is locked.
const RACES: usize = 8;
/// How many files are looked at.
const MAX_FILES: usize = 10_000;

/// What a node writes about itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) addr: SocketAddr,
}

/// A directory in which nodes find each other.
#[derive(Debug)]
pub(crate) struct Directory {
    nodes: PathBuf,
    slots: PathBuf,
    /// The name of our own file: fresh for every start of a process.
    own: String,
    name: String,
    addr: SocketAddr,
    slot: Mutex<Option<Slot>>,
    /// Nothing is written any more. Held while something is.
    withdrawn: Mutex<bool>,
}

/// A founder slot that we hold.
#[derive(Debug)]
struct Slot {
    number: u16,
    file: File,
    /// It was said that another one holds it too.
    lost: bool,
}

static DIRECTORIES: AtomicU64 = AtomicU64::new(0);

impl Directory {
    /// Uses `dir` for a cluster; makes what is missing.
    pub(crate) fn open(
        dir: &Path,
        cluster: &str,
        name: &str,
        addr: SocketAddr,
        own: NodeId,
    ) -> io::Result<Self> {
        let below = dir.join(cluster);
        let (nodes, slots) = (below.join("nodes"), below.join("slots"));
        for dir in [&nodes, &slots] {
            // For our user alone: whoever may read a slot's file may lock it, and so hold the slot.
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| denied(dir, error))?;
        }
        // Two nodes of one process, and two processes after each other, never share a file.
        let own = format!("{own}.{}", DIRECTORIES.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            nodes,
            slots,
            own,
            name: name.to_owned(),
            addr,
            slot: Mutex::new(None),
            withdrawn: Mutex::new(false),
        })
    }

    /// Takes the first free one of `count` slots, until the process ends or [`Directory::withdraw`]. `None` if all are
    /// taken.
    pub(crate) fn take_slot(&self, count: u16, id: NodeId) -> io::Result<Option<u16>> {
        for number in 0..count {
            if let Some(file) = self.lock_slot(number)? {
                self.say_who(&file, id);
                *lock(&self.slot) = Some(Slot { number, file, lost: false });
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Who it is, for people. The lock alone counts, so a full disk takes no slot from us.
    fn say_who(&self, file: &File, id: NodeId) {
        if let Err(error) = write_over(file, &self.entry(id)) {
            tracing::warn!(%error, "the file of our founder slot does not say who holds it");
        }
    }

    fn slot_path(&self, number: u16) -> PathBuf {
        self.slots.join(number.to_string())
    }

    /// Locks the file of a slot. `None` if somebody else has.
    fn lock_slot(&self, number: u16) -> io::Result<Option<File>> {
        let path = self.slot_path(number);
        for _ in 0..RACES {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(|error| denied(&path, error))?;
            if !try_lock(&file)? {
                return Ok(None);
            }
            // Who comes next opens what has the name by then: another file would have another lock.
            if is_at(&file, &path)? {
                return Ok(Some(file));
            }
        }
        let (path, races) = (path.display(), RACES);
        Err(io::Error::other(format!(
            "{path} was another file {races} times in a row: leave the directory to nodes"
        )))
    }

    /// Is the slot that we took still ours? One whose file is gone, or not locked any more, is taken again if it is free.
    fn keep_slot(&self, id: NodeId) -> io::Result<bool> {
        let mut slot = lock(&self.slot);
        let Some(slot) = &mut *slot else { return Ok(true) };
        let number = slot.number;
        if is_at(&slot.file, &self.slot_path(number))? && try_lock(&slot.file)? {
            slot.lost = false;
            return Ok(true);
        }
        if let Some(file) = self.lock_slot(number)? {
            self.say_who(&file, id);
            *slot = Slot { number, file, lost: false };
            tracing::warn!(
                slot = number,
                "the file of our founder slot was gone or replaced: it is locked again"
            );
            return Ok(true);
        }
        if !slot.lost {
            slot.lost = true;
            let what = "another node holds the same founder slot: stop one of the two, and start it with --bootstrap join";
            tracing::error!(slot = number, "{what}");
        }
        Ok(false)
    }

    /// Who holds the slots, for a message to people.
    pub(crate) fn holders(&self, count: u16) -> String {
        let holders = (0..count).filter_map(|number| read(&self.slot_path(number)));
        let names: Vec<String> = holders.take(20).map(|entry| shown(&entry.name)).collect();
        names.join(", ")
    }

    /// Writes, or renews, what others read about us: all of it or nothing. And looks after the slot.
    pub(crate) fn renew(&self, id: NodeId) -> io::Result<()> {
        let withdrawn = lock(&self.withdrawn);
        if *withdrawn {
            return Ok(());
        }
        // Whether the one works must not hang on the other.
        let kept = self.keep_slot(id);
        let fresh = self.nodes.join(format!(".{}", self.own));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&fresh)?.write_all(&self.entry(id))?;
        fs::rename(&fresh, self.nodes.join(&self.own))?;
        kept.map(|_| ())
    }

    /// The addresses of all nodes that are not known to be gone.
    pub(crate) fn read(&self) -> io::Result<Vec<SocketAddr>> {
        let newest = fs::metadata(self.nodes.join(&self.own)).and_then(|m| m.modified());
        let mut addresses = Vec::new();
        for entry in fs::read_dir(&self.nodes)?.take(MAX_FILES) {
            let Ok(entry) = entry else { continue };
            let age = entry.metadata().ok().and_then(|m| age(&newest, m.modified().ok()?));
            if age.is_some_and(|age| age > REMOVED) {
                // Somebody else may have done it.
                let _gone = fs::remove_file(entry.path());
                continue;
            }
            let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
            if hidden || age.is_some_and(|age| age > STALE) {
                continue;
            }
            if let Some(entry) = read(&entry.path()) {
                addresses.push(entry.addr);
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// Takes away what was written, and gives back the slot.
    pub(crate) fn withdraw(&self) {
        *lock(&self.withdrawn) = true;
        for name in [self.own.clone(), format!(".{}", self.own)] {
            if let Err(error) = fs::remove_file(self.nodes.join(&name))
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, file = name, "a rendezvous file stays behind: it will be ignored when it is old");
            }
        }
        if let Some(slot) = lock(&self.slot).take() {
            // The content is for people; closing gives the lock back whatever comes of this.
            let _emptied = slot.file.set_len(0);
        }
    }

    fn entry(&self, id: NodeId) -> Vec<u8> {
        let entry = Entry { id: id.to_string(), name: self.name.clone(), addr: self.addr };
        serde_json::to_vec(&entry).expect("strings and an address")
    }
}

/// Writes our file and reads those of the others, again and again, off the control thread: the directory may be on a file
/// server that does not answer.
pub(crate) async fn run(directory: Arc<Directory>, mut report: Report) {
    let mut renewed: Option<(NodeId, u64)> = None;
    loop {
        let (id, now) = (report.id(), now_ns());
        let renew = renewed.is_none_or(|(of, at)| of != id || now - at >= RENEWAL.as_nanos() as u64);
        let asked = Arc::clone(&directory);
        let mut open = spawn_blocking(move || {
            let written = if renew { asked.renew(id) } else { Ok(()) };
            (written, asked.read())
        });
        // One question at a time, however long it takes.
        let answer = loop {
            match timeout(PATIENCE, &mut open).await {
                Ok(answer) => break answer,
                Err(_) => report.failed(&"no answer of the file system in 2 s"),
            }
        };
        match answer {
            Ok((Ok(()), Ok(found))) => {
                if renew {
                    renewed = Some((id, now));
                }
                report.found(found.into_iter().collect());
            }
            // Others may be found although they do not find us.
            Ok((Err(error), Ok(found))) => {
                report.so_far(found.into_iter().collect());
                report.failed(&error);
            }
            Ok((_, Err(error))) => report.failed(&error),
            Err(error) => report.failed(&error),
        }
        report.pause(if report.seeking() { PAUSES.0 } else { PAUSES.1 }).await;
    }
}

fn age(newest: &io::Result<SystemTime>, modified: SystemTime) -> Option<Duration> {
    newest.as_ref().ok()?.duration_since(modified).ok()
}

fn read(path: &Path) -> Option<Entry> {
    let mut text = Vec::new();
    // Whatever lies there: opening a pipe, or reading a device, must not hold us up.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.take(MAX_FILE).read_to_end(&mut text).ok()?;
    parse(&text)
}

/// What another node wrote, if it is just that.
pub(crate) fn parse(text: &[u8]) -> Option<Entry> {
    let entry: Entry = serde_json::from_slice(text).ok()?;
    is_reachable(entry.addr).then_some(entry)
}

/// The same error, with what would be right where another user made it.
fn denied(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != ErrorKind::PermissionDenied {
        return error;
    }
    let path = path.display();
    io::Error::new(error.kind(), format!("{path}: {error}; run all nodes that share it as one user"))
}

fn write_over(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    fn directory(dir: &Path, port: u16) -> Directory {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        Directory::open(dir, "c", "n", addr, NodeId::new(1, port.into())).expect("a directory")
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("phalanx-registry-{name}-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn nodes_find_each_other_until_they_withdraw_or_are_old() {
        let dir = scratch("nodes");
        let (a, b) = (directory(&dir, 1), directory(&dir, 2));
        a.renew(NodeId::new(1, 1)).expect("written");
        b.renew(NodeId::new(1, 2)).expect("written");
        assert_eq!(a.read().expect("read"), [a.addr, b.addr]);
        let old = File::open(b.nodes.join(&b.own)).expect("there");
        old.set_modified(SystemTime::now() - Duration::from_secs(30)).expect("ours");
        assert_eq!(a.read().expect("read"), [a.addr], "stale");
        b.renew(NodeId::new(1, 2)).expect("written");
        assert_eq!(a.read().expect("read").len(), 2);
        b.withdraw();
        assert_eq!(a.read().expect("read"), [a.addr]);
        fs::write(a.nodes.join("junk"), b"{").expect("written");
        let nowhere = br#"{"id":"1.1","name":"n","addr":"0.0.0.0:1"}"#;
        fs::write(a.nodes.join("nowhere"), nowhere).expect("written");
        let pipe = a.nodes.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("made");
        assert_eq!(a.read().expect("read"), [a.addr], "what does not parse is ignored");
        fs::remove_dir_all(&dir).expect("ours");
    }

    #[test]
    fn each_slot_has_one_holder_and_is_free_again_when_that_is_gone() {
        let dir = scratch("slots");
        let nodes: Vec<Directory> = (1..=3).map(|port| directory(&dir, port)).collect();
        let id = NodeId::new(1, 1);
        let taken: Vec<_> = nodes.iter().map(|n| n.take_slot(2, id).expect("locks work")).collect();
        assert_eq!(taken, [Some(0), Some(1), None]);
        assert_eq!(nodes[2].holders(2), "n, n");
        let strange = br#"{"id":"1.1","name":"\u001b[2Jn","addr":"10.0.0.1:1"}"#;
        fs::write(nodes[0].slots.join("1"), strange).expect("written");
        assert_eq!(nodes[2].holders(2), "n, [2Jn", "a name steers no terminal");
        nodes[0].withdraw();
        nodes[0].renew(id).expect("nothing is done");
        assert!(nodes[2].read().expect("read").is_empty(), "withdrawn for good");
        assert_eq!(nodes[2].take_slot(2, id).expect("locks work"), Some(0));
        fs::remove_dir_all(&dir).expect("ours");
    }

    #[test]
    fn what_is_made_is_for_its_user_alone() {
        let dir = scratch("modes");
        let node = directory(&dir, 1);
        assert_eq!(node.take_slot(1, NodeId::new(1, 1)).expect("locks work"), Some(0));
        node.renew(NodeId::new(1, 1)).expect("written");
        let below = [dir.clone(), dir.join("c"), node.nodes.clone(), node.slots.clone()];
        for path in below.into_iter().chain([node.slot_path(0), node.nodes.join(&node.own)]) {
            let mode = fs::metadata(&path).expect("made").mode();
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        }
        fs::remove_dir_all(&dir).expect("ours");
    }

    #[test]
    fn a_slot_whose_holder_cannot_be_written_down_is_held_all_the_same() {
        let dir = scratch("full");
        let (a, b) = (directory(&dir, 1), directory(&dir, 2));
        std::os::unix::fs::symlink("/dev/full", a.slot_path(0)).expect("made");
        assert_eq!(a.take_slot(1, NodeId::new(1, 1)).expect("locks work"), Some(0));
        assert_eq!(b.take_slot(1, NodeId::new(1, 2)).expect("locks work"), None);
        fs::remove_dir_all(&dir).expect("ours");
    }

    #[test]
    fn a_holder_whose_file_is_gone_replaced_or_unlocked_locks_it_again_or_knows_that_another_one_has() {
        let dir = scratch("lost");
        let (a, b) = (directory(&dir, 1), directory(&dir, 2));
        let id = NodeId::new(1, 1);
        let file = a.slot_path(0);
        let forget = || flock(&lock(&a.slot).as_ref().expect("held").file, FlockOperation::Unlock);
        assert_eq!(a.take_slot(1, id).expect("locks work"), Some(0));
        assert!(a.keep_slot(id).expect("readable"));
        // Who was there first notices, and has it for itself again.
        let remove = || fs::remove_file(&file).expect("ours");
        let replace =
            || fs::write(dir.join("x"), "").and_then(|()| fs::rename(dir.join("x"), &file)).expect("ours");
        for lose in [&remove as &dyn Fn(), &replace, &|| forget().expect("a lock")] {
            lose();
            a.renew(id).expect("written");
            assert_eq!(b.take_slot(1, id).expect("locks work"), None, "it is locked again");
        }
        // Who was there too late says so, for as long as that is so.
        for lose in [&remove as &dyn Fn(), &|| forget().expect("a lock")] {
            lose();
            assert_eq!(b.take_slot(1, id).expect("locks work"), Some(0));
            assert!(!a.keep_slot(id).expect("readable") && !a.keep_slot(id).expect("readable"));
            assert!(lock(&a.slot).as_ref().expect("held").lost, "it was said");
            assert!(b.keep_slot(id).expect("readable"), "it is the holder");
            *lock(&b.slot) = None;
            assert!(a.keep_slot(id).expect("readable"), "nobody else holds it any more");
            assert!(!lock(&a.slot).as_ref().expect("held").lost);
        }
        fs::remove_dir_all(&dir).expect("ours");
        assert!(a.renew(id).is_err());
    }
}
