//! Files that are cut and flipped at every byte, and a disk that forgets what was not synced.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use super::*;
use crate::{node::lock, replica::ledger::Holders};

/// What a disk may hold when the power fails: each file as it was last synced, and what was appended since.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Disk>>);

#[derive(Clone, Default)]
struct Disk {
    files: BTreeMap<String, (Vec<u8>, Vec<u8>)>,
    /// So many more calls come to their end.
    calls: Option<u32>,
    /// So many calls find that too many files are open.
    full: u32,
}

impl Memory {
    /// The power fails in one of the calls, which may have come to its end or not.
    fn call(&self) -> io::Result<std::sync::MutexGuard<'_, Disk>> {
        let mut disk = lock(&self.0);
        if let Some(calls) = &mut disk.calls {
            *calls = calls.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        }
        if let Some(less) = disk.full.checked_sub(1) {
            disk.full = less;
            return Err(io::Error::from_raw_os_error(if less % 2 == 0 {
                libc::EMFILE
            } else {
                libc::ENFILE
            }));
        }
        Ok(disk)
    }

    /// The power is back: of what was not synced, only the beginning is there, and it may be garbage.
    fn restart(&self, keeps: usize, garbage: Option<u8>) -> Self {
        let mut disk = lock(&self.0).clone();
        disk.calls = None;
        for (synced, rest) in disk.files.values_mut() {
            rest.truncate(keeps);
            if let Some(garbage) = garbage {
                rest.iter_mut().for_each(|byte| *byte = garbage);
            }
            synced.append(rest);
        }
        Self(Arc::new(Mutex::new(disk)))
    }

    fn unsynced(&self) -> usize {
        lock(&self.0).files.values().map(|(_, rest)| rest.len()).sum()
    }

    fn log(&self) -> Vec<u8> {
        lock(&self.0).files[LOG].0.clone()
    }

    fn set(&self, name: &str, bytes: &[u8]) -> Self {
        let mut disk = lock(&self.0).clone();
        disk.files.insert(name.into(), (bytes.to_vec(), Vec::new()));
        Self(Arc::new(Mutex::new(disk)))
    }
}

impl Files for Memory {
    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(lock(&self.0).files.get(name).map(|(synced, rest)| [&synced[..], rest].concat()))
    }

    fn replace(&mut self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        self.call()?.files.insert(name.into(), (parts.concat(), Vec::new()));
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call()?.files.get_mut(name).expect("there is one").1.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut disk = self.call()?;
        let (synced, rest) = disk.files.get_mut(name).expect("there is one");
        synced.append(rest);
        Ok(())
    }

    fn cut(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut disk = self.call()?;
        let (synced, rest) = disk.files.get_mut(name).expect("there is one");
        synced.append(rest);
        synced.truncate(length as usize);
        Ok(())
    }

    fn rename(&mut self, name: &str, to: &str) -> io::Result<()> {
        let mut disk = self.call()?;
        let file = disk.files.remove(name).ok_or(ErrorKind::NotFound)?;
        disk.files.insert(to.into(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.call()?.files.remove(name);
        Ok(())
    }

    fn another(&self) -> Box<dyn Files> {
        Box::new(self.clone())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/data").join(name)
    }
}

fn open(memory: &Memory) -> Result<(Store, Found), String> {
    Store::open(Box::new(memory.clone()), ("c", "g"), 7)
}

fn held(place: u64) -> Held {
    let holders = Holders { now: vec![7], before: None };
    Held { history: 5, place: Place { term: 1, pos: place }, holders, commands: place }
}

fn command(n: u8) -> Entry {
    Entry::Command { from: NodeId::new(1, 2), command: Bytes::from(vec![n; usize::from(n)]) }
}

fn body(entries: &[Entry]) -> BytesMut {
    let mut body = BytesMut::new();
    entries.iter().for_each(|entry| put_entry(entry, &mut body));
    body
}

/// A snapshot, and frames of one command each; the last one has two.
fn written() -> Memory {
    let memory = Memory::default();
    let (mut store, _) = open(&memory).expect("a new one");
    store.append(&body(&[Entry::Promise(1)])).expect("written");
    store.save(held(3), 1, &[Bytes::from_static(b"sta"), Bytes::from_static(b"te")]).expect("written");
    for n in 1..4 {
        store.append(&body(&[command(n)])).expect("written");
    }
    store.append(&body(&[command(4), command(5)])).expect("written");
    memory
}

#[test]
fn what_was_written_is_there_again() {
    let (_, found) = open(&written()).expect("whole");
    assert_eq!((&found.state[..], found.head.dir), (&b"state"[..], 7));
    assert_eq!(found.entries, (1..6).map(command).collect::<Vec<_>>());
    let (held, mark) = replayed(&found.head, &found.entries);
    assert_eq!((held.expect("something").commands, mark.place.pos, mark.promised), (8, 8, 1));
    let all = [
        command(0),
        Entry::View(Bytes::from_static(b"v")),
        Entry::Term(9),
        Entry::Holders(vec![1, 2]),
        Entry::Settled,
        Entry::Promise(3),
    ];
    let mut read = Vec::new();
    read_entries(body(&all).freeze(), &mut read).expect("our own");
    assert_eq!(read, all);
}

#[test]
fn an_end_that_was_being_written_is_cut_off_at_whatever_byte() {
    let memory = written();
    let log = memory.log();
    let whole = read_log(&log.clone().into()).expect("whole");
    let last = log.len() - (FRAME_HEAD + body(&[command(4), command(5)]).len());
    for end in last..log.len() {
        for garbage in [&[][..], &[0; 50], &[0x58, 0x4c, 0x48, 0x50, 9, 0, 0, 0]] {
            let torn = memory.set(LOG, &[&log[..end], garbage].concat());
            let (mut store, found) = open(&torn).unwrap_or_else(|why| panic!("{end}: {why}"));
            assert_eq!(found.entries, whole.entries[..3], "{end}");
            assert_eq!(torn.log().len(), last, "{end}");
            store.append(&body(&[command(9)])).expect("written");
            assert_eq!(open(&torn).expect("whole").1.entries[3], command(9));
        }
    }
}

#[test]
fn damage_in_the_middle_is_refused_and_left_as_it_is() {
    let memory = written();
    let log = memory.log();
    let last = log.len() - (FRAME_HEAD + body(&[command(4), command(5)]).len());
    for at in 0..last {
        for flip in [1, 0x80] {
            let mut other = log.clone();
            other[at] ^= flip;
            let damaged = memory.set(LOG, &other);
            let why = open(&damaged).err().unwrap_or_else(|| panic!("a flipped bit at {at}"));
            assert!(why.contains("/data/log is damaged") && why.contains("move"), "{why}");
            assert_eq!(damaged.log(), other);
        }
    }
    let state = lock(&memory.0).files[STATE].0.clone();
    for at in 0..state.len() {
        let mut other = state.clone();
        other[at] ^= 1;
        let why = open(&memory.set(STATE, &other)).err().unwrap_or_else(|| panic!("a flipped bit at {at}"));
        assert!(why.contains("/data/state is damaged"), "{why}");
        assert!(open(&memory.set(STATE, &state[..at])).is_err(), "cut at {at}");
    }
    assert!(open(&memory.set(LOG, b"")).is_err());
    let mut of_another = state;
    of_another[14] = b'2';
    let mut without_seed = log;
    without_seed[12] = b'1';
    for (name, bytes) in [(STATE, of_another), (LOG, without_seed)] {
        let why = open(&memory.set(name, &bytes)).err().expect("refused");
        assert!(why.contains("another version"), "{why}");
    }
}

/// A client that guesses the log's number, or its seed, sends a command in which there is a whole record; power fails in it.
#[test]
fn a_command_with_a_record_in_it_is_cut_off_like_others() {
    let memory = written();
    let (mut store, found) = open(&memory).expect("whole");
    let mut crafted = BytesMut::new();
    for guess in 0..100 {
        crafted.put_slice(&frame_head(b"", guess, u64::MAX));
    }
    crafted.put_slice(&[0; 50]);
    let command = Entry::Command { from: NodeId::new(1, 2), command: crafted.freeze() };
    store.append(&body(&[command])).expect("written");
    let log = memory.log();
    let (_, again) = open(&memory.set(LOG, &log[..log.len() - 1])).expect("a crash is no damage");
    assert_eq!(again.entries, found.entries);
    let seed = |memory: &Memory| read_log(&memory.log().into()).expect("whole").seed;
    assert_ne!(seed(&memory), seed(&written()), "nobody can guess it");
}

#[test]
fn a_directory_of_another_group_or_cluster_is_refused() {
    let memory = written();
    for whose in [("c", "other"), ("other", "g")] {
        let why = Store::open(Box::new(memory.clone()), whose, 7).err().expect("refused");
        assert!(why.contains("of group \"g\" of cluster \"c\""), "{why}");
    }
}

/// The power fails in every call there is, with all and with nothing of what was not synced: whatever was synced is there.
#[test]
fn what_is_on_disk_stays_there_whenever_the_power_fails() {
    for calls in 0.. {
        let memory = Memory::default();
        lock(&memory.0).calls = Some(calls);
        let mut synced = 0;
        let mut run = || -> Result<(), ()> {
            let (mut store, _) = open(&memory).map_err(drop)?;
            store.save(held(0), 1, &[]).map_err(drop)?;
            for n in 1..=6 {
                store.append(&body(&[command(n), command(n)])).map_err(drop)?;
                synced = 2 * u64::from(n);
                if n % 2 == 0 {
                    let state = Bytes::from(vec![n; 3]);
                    store.save(held(synced), 1, &[state]).map_err(drop)?;
                }
            }
            Ok(())
        };
        let ended = run();
        for keeps in 0..=memory.unsynced() {
            for garbage in [None, Some(0), Some(0xff)] {
                let (_, found) = open(&memory.restart(keeps, garbage)).expect("a crash is no damage");
                let place = replayed(&found.head, &found.entries).1.place.pos;
                assert!(place == synced || place == synced + 2, "{place} after {synced}, call {calls}");
            }
        }
        if ended.is_ok() {
            assert!(calls > 20, "all of it was tried");
            break;
        }
    }
}

/// The same while snapshots are made and the log goes on; some are overtaken by one that replaces all.
#[test]
fn what_is_on_disk_while_a_snapshot_is_made_stays_there_whenever_the_power_fails() {
    for calls in 0.. {
        let memory = Memory::default();
        lock(&memory.0).calls = Some(calls);
        let mut synced = 0;
        let mut run = || -> Result<(), ()> {
            let (mut store, _) = open(&memory).map_err(drop)?;
            store.save(held(0), 1, &[]).map_err(drop)?;
            let mut next = |store: &mut Store, n: u8| {
                store.append(&body(&[command(n), command(n)])).map_err(drop)?;
                synced += 2;
                Ok::<u64, ()>(synced)
            };
            next(&mut store, 1)?;
            for n in 2..6 {
                let at = next(&mut store, n)?;
                assert!(!store.is_between());
                let mut snapshot = store.go_on(held(at), 1).map_err(drop)?;
                next(&mut store, n)?;
                let written = snapshot.write(&[Bytes::from(vec![n; 3])]).map_err(drop)?;
                let at = next(&mut store, n)?;
                if n == 3 {
                    store.save(held(at), 1, &[]).map_err(drop)?;
                    next(&mut store, n)?;
                }
                if n != 5 {
                    store.finish(&written).map_err(drop)?;
                    next(&mut store, n)?;
                }
            }
            Ok(())
        };
        let ended = run();
        for keeps in 0..=memory.unsynced() {
            for garbage in [None, Some(0), Some(0xff)] {
                let again = memory.restart(keeps, garbage);
                let (mut store, found) = open(&again).expect("a crash is no damage");
                let (held, mark) = replayed(&found.head, &found.entries);
                let place = mark.place.pos;
                assert!(place == synced || place == synced + 2, "{place} after {synced}, call {calls}");
                // And it goes on.
                if let Some(held) = held.filter(|_| store.is_between()) {
                    store.save(held, 1, &[]).expect("written");
                }
                if found.head.held.is_some() {
                    store.append(&body(&[command(9)])).expect("written");
                    let (_, found) = open(&again).expect("whole");
                    assert_eq!(replayed(&found.head, &found.entries).1.place.pos, place + 1);
                }
            }
        }
        if ended.is_ok() {
            assert!(calls > 60, "all of it was tried");
            break;
        }
    }
}

#[test]
fn a_log_that_goes_on_elsewhere_needs_what_is_there() {
    let memory = written();
    let (mut store, _) = open(&memory).expect("whole");
    drop(store.go_on(held(8), 1).expect("written"));
    store.append(&body(&[command(6)])).expect("written");
    assert_eq!(open(&memory).expect("whole").1.entries.len(), 6);
    let without = memory.set("other", b"");
    lock(&without.0).files.remove(NEXT_LOG);
    let why = open(&without).err().expect("refused");
    assert!(why.contains("/data/log.next is damaged"), "{why}");
    let next = lock(&memory.0).files[NEXT_LOG].0.clone();
    for at in 0..LOG_HEAD {
        let mut other = next.clone();
        other[at] ^= 1;
        assert!(open(&memory.set(NEXT_LOG, &other)).is_err(), "a flipped bit at {at}");
    }
}

/// Who has no file left for a while stays in its group, and what it was told to write is written.
#[test]
fn too_many_open_files_are_waited_out() {
    use crate::replica::keeper::{Order, Said, write};
    let memory = Memory::default();
    let (store, _) = open(&memory).expect("a new one");
    lock(&memory.0).full = 3;
    let (orders, ordered) = std::sync::mpsc::channel();
    let (says, mut said) = tokio::sync::mpsc::unbounded_channel();
    orders
        .send(Order::Save(held(3), Mark::default(), Box::new(|| Bytes::from_static(b"state"))))
        .expect("room");
    orders.send(Order::Append(command(1), Mark::default(), 9)).expect("room");
    drop(orders);
    write(store, &ordered, &says);
    assert!(matches!(said.try_recv(), Ok(Said::Saved(_))));
    assert!(matches!(said.try_recv(), Ok(Said::Synced(_, 9))));
    assert!(said.try_recv().is_err());
    assert_eq!(open(&memory).expect("whole").1.entries, [command(1)]);
}

#[test]
fn files_are_those_of_a_directory_that_one_process_has() {
    let path = std::env::temp_dir().join(format!("phalanx-store-{}", std::process::id()));
    let begin = || Store::open(Box::new(Dir::open(&path, "n")?), ("c", "g"), 3);
    let (mut store, found) = begin().expect("a new directory");
    assert_eq!((found.head.dir, found.head.held), (3, None));
    let why = Dir::open(&path, "other").err().expect("it is in use");
    assert!(why.contains(&format!("process {} (n)", std::process::id())), "{why}");
    store.save(held(1), 1, &[Bytes::from_static(b"one")]).expect("written");
    store.append(&body(&[command(1)])).expect("written");
    drop(store);
    let log = fs::read(path.join(LOG)).expect("a log");
    fs::write(path.join(LOG), [&log[..], b"torn"].concat()).expect("writable");
    let (mut store, found) = begin().expect("free again");
    assert_eq!((&found.state[..], &found.entries[..]), (&b"one"[..], &[command(1)][..]));
    store.append(&body(&[command(2)])).expect("written");
    drop(store);
    assert_eq!(begin().expect("whole").1.entries.len(), 2);
    fs::remove_dir_all(&path).expect("it is ours");
}

#[test]
fn no_file_of_a_directory_is_opened_through_a_link() {
    let path = std::env::temp_dir().join(format!("phalanx-store-links-{}", std::process::id()));
    let (data, other) = (path.join("data"), path.join("other"));
    fs::create_dir_all(&data).expect("a directory");
    fs::write(&other, b"other").expect("writable");
    for name in ALL.into_iter().filter(|name| *name != "lock") {
        std::os::unix::fs::symlink(&other, data.join(name)).expect("a link");
    }
    let mut dir = Dir::open(&data, "n").expect("nobody else's");
    for name in [STATE, LOG, NEXT_STATE, NEXT_LOG] {
        assert!(dir.read(name).is_err(), "{name}");
        assert!(dir.replace(name, &[b"new"]).is_err(), "{name}");
    }
    assert!(dir.append(LOG, b"new").is_err() && dir.cut(LOG, 0).is_err());
    assert_eq!(fs::read(&other).expect("still there"), b"other");
    fs::write(data.join("thesis.tex"), b"x").expect("writable");
    for name in ["lock", "state"] {
        fs::remove_file(data.join(name)).expect("it is ours");
    }
    fs::write(data.join("lock"), b"4711").expect("writable");
    assert!(Dir::open(&data, "n").err().expect("refused").contains("lock was not written by phalanx"));
    fs::remove_dir_all(&path).expect("it is ours");
}
