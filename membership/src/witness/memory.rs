//! What a witness remembers, on disk: so that a record is durable, and written once.
//!
//! A memory ([`Store`]) is a directory with a file for each record and one for the epoch, each written whole, synced, and then
//! given its name by a link, which fails if the name is taken: nobody ever sees half a record, and nobody writes one twice.
//! Whoever reads a record syncs the directory before it says so: the writer may not have come that far.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use membership_proto::witness::{Answer, Epoch, Question};
use membership_types::{Instant, NodeId};
use tokio::sync::Semaphore;

use super::{MAX_RECORD, read_half};
use crate::{
    clock,
    disk::{checksum, make},
    node::lock,
    start::{self, is_cluster_name},
    wire::shown,
};

/// So many requests to a registry wait for the disk.
const MAX_WAITING: usize = 8;
/// So many clusters have a witness in one registry, besides its own.
const MAX_CLUSTERS: usize = 16;
/// A memory that nobody asked for so long may make room for another cluster's. Nodes ask every lease or so.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// So many records fit into a memory. One is written where a core split into halves.
const MAX_RECORDS: usize = 10_000;
const EPOCH: &str = "epoch";
/// What names of files begin with that are being written.
const DRAFT: &str = "draft.";
/// A memory that is being removed. No cluster's name begins with a dot.
const GONE: &str = ".gone";
const FIRST_LINE: &str = "phalanx witness 1";

/// A witness's memory for one cluster: a directory.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// The epoch that is known to be on disk.
    synced: Mutex<Option<Epoch>>,
}

static WRITES: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// One in this directory. Nothing is touched before the first question.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, synced: Mutex::new(None) }
    }

    /// Does what it is asked. What it says is on disk.
    pub(crate) fn answer(&self, question: &Question) -> io::Result<Answer> {
        self.answer_if_there_is_room(question)?.ok_or_else(|| {
            let (at, lineage) = (self.dir.display(), "those of lineages that are over");
            io::Error::other(format!("{at} holds {MAX_RECORDS} records: remove {lineage}"))
        })
    }

    /// The same. `None` if a record was to be written, and there are too many.
    fn answer_if_there_is_room(&self, question: &Question) -> io::Result<Option<Answer>> {
        let Question { lineage, core, claim } = question;
        let epoch = self.epoch()?;
        let name = format!("{lineage}.{core}", core = core.get());
        let mut record = self.read(&name)?;
        if let Some((of, half)) = claim
            && *of == epoch
            && record.is_none()
        {
            // One is the epoch.
            if fs::read_dir(&self.dir)?.count() > MAX_RECORDS {
                return Ok(None);
            }
            let words: Vec<String> = half.iter().map(NodeId::to_string).collect();
            self.write_once(&name, &format!("half {}", words.join(" ")))?;
            record = self.read(&name)?;
        }
        let record = record.map(|text| half_of(&text)).transpose()?;
        if record.is_some() {
            File::open(&self.dir)?.sync_all()?;
        }
        // Somebody may have put another memory in the place of this one meanwhile.
        if self.epoch()? != epoch {
            return Err(io::Error::other("the witness's memory was replaced while it was asked"));
        }
        Ok(Some(Answer { lineage: *lineage, core: *core, epoch, record }))
    }

    /// What this memory is called; made where there is none.
    fn epoch(&self) -> io::Result<Epoch> {
        let read = match self.read(EPOCH)? {
            Some(text) => text,
            None => {
                make(&self.dir)?;
                let fresh = Epoch::new(start::random()?);
                self.write_once(EPOCH, &format!("epoch {fresh}"))?;
                self.read(EPOCH)?.ok_or(ErrorKind::NotFound)?
            }
        };
        let epoch = read.strip_prefix("epoch ").and_then(|text| text.parse().ok());
        let epoch = epoch.ok_or_else(|| self.damaged(EPOCH, "it names no epoch"))?;
        if *lock(&self.synced) != Some(epoch) {
            File::open(&self.dir)?.sync_all()?;
            *lock(&self.synced) = Some(epoch);
        }
        Ok(epoch)
    }

    /// The line of a file that counts, if there is such a file.
    fn read(&self, name: &str) -> io::Result<Option<String>> {
        let mut bytes = Vec::new();
        match File::open(self.dir.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?.take(MAX_RECORD as u64 + 1).read_to_end(&mut bytes)?,
        };
        line_of(&bytes).map(|line| Some(line.to_owned())).map_err(|why| self.damaged(name, why))
    }

    fn damaged(&self, name: &str, why: &str) -> io::Error {
        let at = self.dir.join(name);
        let (at, dir) = (at.display(), self.dir.display());
        let what = "then the witness has a new memory, and the cores that there are can be halved no more";
        io::Error::other(format!(
            "{at} is damaged ({why}); put back what was in it, or remove all of {dir}: {what}"
        ))
    }

    /// Writes a file that is there whole or not at all, unless there is one of this name.
    fn write_once(&self, name: &str, line: &str) -> io::Result<()> {
        let number = WRITES.fetch_add(1, Ordering::Relaxed);
        let draft = self.dir.join(format!("{DRAFT}{:016x}.{number}", start::random()?));
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let body = format!("{FIRST_LINE}\n{line}\n");
        let text = format!("{body}sum {}\n", checksum(body.as_bytes()));
        let linked = out
            .write_all(text.as_bytes())
            .and_then(|()| out.sync_all())
            .and_then(|()| fs::hard_link(&draft, self.dir.join(name)));
        // What was left behind by somebody who died here means nothing.
        fs::remove_file(&draft)?;
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => File::open(&self.dir)?.sync_all(),
        }
    }
}

/// What a node keeps as a witness for others: a memory for each cluster, below its data directory.
///
/// Nothing proves who asks, and a memory is made for whoever asks first, since a core names its epoch. So there are few, as
/// counted on the disk, where they outlive this process; one place is for the cluster of this node. When all others are taken, a
/// memory goes that nobody has asked for long, first those that never decided anything; and one that is full of records begins
/// anew. Both are as safe as any loss of a memory, because the epoch goes with all records: nodes make their cores anew under
/// the next one. Else a stranger could put the witness out of use for ever, and not only for as long as it goes on.
#[derive(Debug)]
pub(crate) struct Stores {
    inner: Arc<StoresInner>,
    /// Disks hang: no more requests wait for them than this.
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct StoresInner {
    dir: PathBuf,
    /// The cluster of this node.
    own: String,
    began: Instant,
    /// Those that were asked since then, and when they were last.
    known: Mutex<BTreeMap<String, (Arc<Store>, Instant)>>,
}

impl Stores {
    /// Below this directory, kept by a node of this cluster.
    pub(crate) fn new(dir: PathBuf, own: &str) -> Self {
        let inner = StoresInner { dir, own: own.to_owned(), began: clock::now(), known: Mutex::default() };
        Self { inner: Arc::new(inner), places: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// Does what a cluster asks; or a status and why not.
    pub(crate) async fn answer(&self, cluster: &str, question: Question) -> Result<Answer, (u16, String)> {
        if !is_cluster_name(cluster) {
            return Err((400, format!("{:?} is no cluster name", shown(cluster))));
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place
            .map_err(|_| (503, "the disk of this agent does not keep up: try again later".to_owned()))?;
        let (inner, cluster) = (Arc::clone(&self.inner), cluster.to_owned());
        let written = tokio::task::spawn_blocking(move || {
            let _place = place;
            inner.answer(&cluster, &question, clock::now())
        });
        let written = written.await.map_err(io::Error::other).flatten();
        written.map_err(|error| (500, error.to_string()))?.ok_or_else(|| {
            let at = self.inner.dir.display();
            let why = format!("this agent is the witness of {MAX_CLUSTERS} other clusters");
            (507, format!("{why}: remove the directories of those that are over, below {at}"))
        })
    }
}

impl StoresInner {
    /// Does what a cluster asks. `None` if there is no room for it.
    fn answer(&self, cluster: &str, question: &Question, now: Instant) -> io::Result<Option<Answer>> {
        let Some(full) = self.of(cluster, now)? else { return Ok(None) };
        if let Some(answer) = full.answer_if_there_is_room(question)? {
            return Ok(Some(answer));
        }
        {
            let mut known = lock(&self.known);
            // Another one may have done it.
            if known.get(cluster).is_some_and(|(store, _)| Arc::ptr_eq(store, &full)) {
                let why = "somebody fills a witness's memory with records, which no cluster does: it begins anew, and the cluster's \
                           nodes make their core anew. Let nobody but nodes reach the admin API of this agent";
                tracing::error!(cluster, "{why}");
                self.throw_away(cluster, &mut known)?;
            }
        }
        let Some(fresh) = self.of(cluster, now)? else { return Ok(None) };
        fresh.answer(question).map(Some)
    }

    /// The memory for a cluster, made if there is none yet and there is room.
    fn of(&self, cluster: &str, now: Instant) -> io::Result<Option<Arc<Store>>> {
        let mut known = lock(&self.known);
        let dir = self.dir.join(cluster);
        if !dir.try_exists()? {
            let there = self.there()?;
            known.retain(|name, _| *name == self.own || there.contains(name));
            let full = cluster != self.own && there.len() >= MAX_CLUSTERS;
            if full && !self.make_room(&there, &mut known, now)? {
                return Ok(None);
            }
            make(&dir)?;
        }
        let (store, asked) =
            known.entry(cluster.to_owned()).or_insert_with(|| (Arc::new(Store::new(dir)), now));
        *asked = now;
        Ok(Some(Arc::clone(store)))
    }

    /// The clusters, but our own, that have a memory on the disk.
    fn there(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if name != self.own && is_cluster_name(&name) && entry.file_type()?.is_dir() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes the memory that was not asked for the longest time, first of those without records. False if that is not long for
    /// any.
    fn make_room(
        &self,
        there: &[String],
        known: &mut BTreeMap<String, (Arc<Store>, Instant)>,
        now: Instant,
    ) -> io::Result<bool> {
        let mut idle = Vec::new();
        for name in there {
            let asked = known.get(name).map_or(self.began, |(_, asked)| *asked);
            if now - asked >= IDLE {
                idle.push((!is_without_records(&self.dir.join(name))?, asked, name));
            }
        }
        let Some((_, _, name)) = idle.into_iter().min() else { return Ok(false) };
        tracing::warn!(cluster = name, "a witness's memory that nobody asked for long makes room");
        self.throw_away(name, known)?;
        Ok(true)
    }

    /// Removes a memory, all at once: an epoch must not outlive a record, not even if power fails meanwhile.
    fn throw_away(&self, name: &str, known: &mut BTreeMap<String, (Arc<Store>, Instant)>) -> io::Result<()> {
        let gone = self.dir.join(GONE);
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => fs::rename(self.dir.join(name), &gone)?,
        }
        known.remove(name);
        File::open(&self.dir)?.sync_all()?;
        fs::remove_dir_all(&gone)
    }
}

/// Has it nothing but an epoch, and drafts?
fn is_without_records(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name != EPOCH && !name.as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The one line between the first and the checksum.
pub(crate) fn line_of(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.len() > MAX_RECORD {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    let (body, sum) = text.rsplit_once("sum ").ok_or("its end is missing")?;
    if sum.strip_suffix('\n') != Some(&checksum(body.as_bytes())) {
        return Err("its checksum is wrong");
    }
    let line = body.strip_prefix(FIRST_LINE).and_then(|rest| rest.strip_prefix('\n'));
    let line =
        line.and_then(|rest| rest.strip_suffix('\n')).ok_or("it is none of this version of phalanx")?;
    if line.contains('\n') { Err("it has too many lines") } else { Ok(line) }
}

/// `half ID ID …`.
pub(crate) fn half_of(line: &str) -> io::Result<Vec<NodeId>> {
    let words = line.strip_prefix("half ").map(|ids| ids.split(' ').map(str::to_owned).collect());
    words.and_then(|words: Vec<String>| read_half(&words)).ok_or_else(|| {
        io::Error::other("a record of the witness is damaged: it names no half; put back what was in it")
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use membership_types::{Lineage, LogIndex};

    use super::*;
    use crate::witness::tests::{asked, half};

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("phalanx-witness-{name}-{}", std::process::id())))
        }

        fn files(&self) -> Vec<String> {
            let names =
                fs::read_dir(&self.0).expect("a directory").map(|entry| entry.expect("readable").file_name());
            let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _gone = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn of_many_that_claim_at_once_one_is_recorded_and_all_hear_of_it_also_after_a_restart() {
        let dir = Dir::new("race");
        let epoch = Store::new(dir.0.clone()).answer(&asked(3, None)).expect("a new memory").epoch;
        let claimants: Vec<_> = (0..8)
            .map(|n| {
                let store = Store::new(dir.0.clone());
                thread::spawn(move || store.answer(&asked(3, Some((epoch, n)))).expect("writable").record)
            })
            .collect();
        let told: Vec<_> = claimants.into_iter().map(|c| c.join().expect("it ends")).collect();
        assert!(told[0].is_some() && told.iter().all(|record| *record == told[0]), "{told:?}");
        let again = Store::new(dir.0.clone());
        assert_eq!(
            again.answer(&asked(3, None)).expect("readable"),
            Answer {
                lineage: Lineage::new(5, 0xdef),
                core: LogIndex::new(3),
                epoch,
                record: told[0].clone()
            }
        );
        assert_eq!(again.answer(&asked(4, Some((epoch, 1)))).expect("another core").record, Some(half(1)));
        assert_eq!(dir.files(), ["5-0000000000000def.3", "5-0000000000000def.4", "epoch"], "no drafts");
    }

    #[test]
    fn many_that_begin_at_once_agree_on_the_epoch() {
        let dir = Dir::new("begin");
        let stores = (0..8).map(|_| Store::new(dir.0.clone()));
        let asking: Vec<_> = stores
            .map(|s| thread::spawn(move || s.answer(&asked(1, None)).expect("a new memory").epoch))
            .collect();
        let epochs: Vec<Epoch> = asking.into_iter().map(|a| a.join().expect("it ends")).collect();
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    }

    #[test]
    fn a_memory_that_was_removed_is_another_one_and_grants_no_claim_of_before() {
        let dir = Dir::new("lost");
        let store = Store::new(dir.0.clone());
        let before = store.answer(&asked(1, None)).expect("new").epoch;
        fs::remove_dir_all(&dir.0).expect("ours");
        let answer = store
            .answer(&asked(1, Some((before, 1))))
            .or_else(|_| store.answer(&asked(1, Some((before, 1)))));
        let answer = answer.expect("new again");
        assert!(answer.epoch != before && answer.record.is_none(), "{answer:?}");
    }

    #[test]
    fn damage_is_noticed_and_nothing_is_written_over_it() {
        let dir = Dir::new("damage");
        let store = || Store::new(dir.0.clone());
        let epoch = store().answer(&asked(1, None)).expect("new").epoch;
        store().answer(&asked(1, Some((epoch, 1)))).expect("writable");
        for name in ["epoch", "5-0000000000000def.1"] {
            let file = dir.0.join(name);
            let whole = fs::read(&file).expect("there");
            for cut in 0..whole.len() {
                fs::write(&file, &whole[..cut]).expect("ours");
                let why = store().answer(&asked(1, Some((epoch, 2)))).expect_err("damaged").to_string();
                assert!(why.contains("damaged") && why.contains("remove all of"), "{why}");
            }
            for at in 0..whole.len() {
                let mut other = whole.clone();
                other[at] ^= 1;
                fs::write(&file, &other).expect("ours");
                assert!(store().answer(&asked(1, None)).is_err(), "a flipped bit at {at}");
            }
            fs::write(&file, &whole).expect("ours");
        }
        assert_eq!(store().answer(&asked(1, Some((epoch, 2)))).expect("whole").record, Some(half(1)));
    }

    /// What a cluster is answered about a core; none that there is no room.
    fn of(
        stores: &Stores,
        cluster: &str,
        core: u64,
        claim: Option<(Epoch, u32)>,
        now: Instant,
    ) -> Option<Answer> {
        let store = stores.inner.of(cluster, now).expect("a directory")?;
        Some(store.answer(&asked(core, claim)).expect("a memory"))
    }

    #[test]
    fn memories_are_counted_where_they_are_kept_and_what_nobody_asks_for_long_makes_room() {
        let dir = Dir::new("many");
        let open = || Stores::new(dir.0.clone(), "own");
        let now = clock::now();
        let mut epochs = Vec::new();
        for n in 0..MAX_CLUSTERS {
            // A restart forgets none.
            let epoch = of(&open(), &format!("c{n}"), 1, None, now).expect("there is room").epoch;
            epochs.push(epoch);
        }
        assert_eq!(dir.files().len(), MAX_CLUSTERS);
        let stores = open();
        assert_eq!(of(&stores, "c3", 1, None, now).expect("it is there").epoch, epochs[3]);
        assert_eq!(of(&stores, "more", 1, None, now), None);
        assert_eq!(dir.files().len(), MAX_CLUSTERS, "nothing was made");

        // All but two are used, and one of the two has a record.
        let recorded = of(&stores, "c5", 1, Some((epochs[5], 1)), now).expect("it is there").record;
        assert_eq!(recorded, Some(half(1)));
        let later = now.after(IDLE + Duration::from_secs(60));
        for n in (0..MAX_CLUSTERS).filter(|n| ![5, 9].contains(n)) {
            assert_eq!(of(&stores, &format!("c{n}"), 1, None, later).expect("it is there").epoch, epochs[n]);
        }
        assert!(of(&stores, "more", 1, None, later).is_some());
        assert!(dir.0.join("c5").exists() && !dir.0.join("c9").exists(), "what decided nothing goes first");
        assert!(of(&stores, "c9", 1, None, later).is_some(), "then what did");
        assert_eq!(of(&stores, "c5", 1, None, later), None, "all others are used");

        // What somebody removed makes room, too, and is another memory when it comes back.
        fs::remove_dir_all(dir.0.join("more")).expect("ours");
        let answer = of(&stores, "c5", 1, Some((epochs[5], 1)), later).expect("there is room");
        assert!(answer.epoch != epochs[5] && answer.record.is_none(), "{answer:?}");
        assert_eq!(of(&stores, "more", 1, None, later), None);
    }

    #[test]
    fn strangers_do_not_take_the_place_of_our_own_cluster() {
        let dir = Dir::new("own");
        let stores = Stores::new(dir.0.clone(), "own");
        let now = clock::now();
        for n in 0..MAX_CLUSTERS {
            of(&stores, &format!("c{n}"), 1, None, now).expect("there is room");
        }
        assert_eq!(of(&stores, "more", 1, None, now), None);
        let epoch = of(&stores, "own", 1, None, now).expect("there is room").epoch;
        let later = now.after(IDLE * 2);
        for n in 0..MAX_CLUSTERS {
            of(&stores, &format!("d{n}"), 1, None, later).expect("the others make room");
        }
        assert_eq!(of(&stores, "own", 1, None, later).expect("it stays").epoch, epoch);
    }

    #[test]
    fn who_fills_a_memory_puts_the_witness_out_of_use_for_a_moment_and_not_for_ever() {
        let dir = Dir::new("fill");
        let stores = Stores::new(dir.0.clone(), "own");
        let now = clock::now();
        let ask = |core, claim| {
            stores.inner.answer("c", &asked(core, claim), now).expect("a directory").expect("room")
        };
        let before = ask(1, None).epoch;
        assert_eq!(ask(1, Some((before, 1))).record, Some(half(1)));
        for n in 1..MAX_RECORDS {
            fs::write(dir.0.join(format!("c/7-{n:016x}.1")), "").expect("ours");
        }
        let full = ask(1, Some((before, 2)));
        assert_eq!((full.epoch, full.record), (before, Some(half(1))), "what is written is told");
        // A directory that nodes share is for people to look after.
        let shared = Store::new(dir.0.join("c")).answer(&asked(2, Some((before, 2)))).expect_err("full");
        assert!(shared.to_string().contains("remove those"), "{shared}");

        let after = ask(2, Some((before, 2)));
        assert!(after.epoch != before && after.record.is_none(), "{after:?}");
        assert_eq!(ask(1, Some((before, 1))).record, None, "nothing is granted under the old epoch any more");
        assert_eq!(ask(2, Some((after.epoch, 2))).record, Some(half(2)));
        assert_eq!(dir.files(), ["c"], "nothing else stays");
    }

    #[tokio::test]
    async fn a_bad_name_and_no_room_are_two_things() {
        let dir = Dir::new("room");
        let stores = Stores::new(dir.0.clone(), "own");
        for bad in ["", ".gone", "a b", "..", &"x".repeat(65)] {
            let (status, why) = stores.answer(bad, asked(1, None)).await.expect_err("no name");
            assert!(status == 400 && why.contains("no cluster name"), "{status} {why}");
        }
        for n in 0..MAX_CLUSTERS {
            stores.answer(&format!("c{n}"), asked(1, None)).await.expect("there is room");
        }
        let (status, why) = stores.answer("more", asked(1, None)).await.expect_err("no room");
        assert!(status == 507 && why.contains(&dir.0.display().to_string()), "{status} {why}");
    }
}
