//! The provider `file:DIR`: every node writes a file about itself, and reads those of the others.
//!
//! Below `DIR/CLUSTER`, `nodes/` has one file for each node: renewed every second or two, taken away when the node leaves.
//! One that was not renewed for long is ignored, and at last removed by whoever sees it; age is measured between the times
//! that the file system itself gave to files, so clocks need not agree. `slots/0` to `slots/n-1` are the founder slots
//! under `expect(n)`: a node holds one by a lock on its file, which the kernel gives back when the process dies. So a slot
//! has one holder at most, and a restarted process finds one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use membership_types::NodeId;
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    clock::now_ns,
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
    slot: Mutex<Option<File>>,
    /// Nothing is written any more. Held while something is.
    withdrawn: Mutex<bool>,
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
            fs::create_dir_all(dir)?;
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
            let path = self.slots.join(number.to_string());
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    // Who it is, for people; the lock alone counts.
                    write_over(&file, &self.entry(id))?;
                    *lock(&self.slot) = Some(file);
                    return Ok(Some(number));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Who holds the slots, for a message to people.
    pub(crate) fn holders(&self, count: u16) -> String {
        let holders = (0..count).filter_map(|number| read(&self.slots.join(number.to_string())));
        let names: Vec<String> = holders.take(20).map(|entry| shown(&entry.name)).collect();
        names.join(", ")
    }

    /// Writes, or renews, what others read about us: all of it or nothing.
    pub(crate) fn renew(&self, id: NodeId) -> io::Result<()> {
        let withdrawn = lock(&self.withdrawn);
        if *withdrawn {
            return Ok(());
        }
        let fresh = self.nodes.join(format!(".{}", self.own));
        fs::write(&fresh, self.entry(id))?;
        fs::rename(&fresh, self.nodes.join(&self.own))
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
            let _emptied = slot.set_len(0);
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

fn write_over(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
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
}
