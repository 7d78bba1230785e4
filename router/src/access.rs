//! Access logs: one JSON object a line.
//!
//! Of HTTP each request has a line, also one that was refused. Where clients send commands by the hundred thousand
//! a second, a line for each would serve nobody: there each connection has one at its end, with counts,
//! and those commands that failed or were slow; of the others, as many as are asked for.
//!
//! A worker formats into memory of its own and hands it over when there is a lot, or after a moment; one thread
//! writes, and opens files again. Whatever the disk does, nobody waits for it: when it does not keep up lines are lost, and counted.
//! What may be secret is not in a line: neither queries, nor bodies, nor keys by themselves (a path is, as it came).

mod line;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use membership_types::Instant;
use rustix::{
    fs::OFlags,
    io::{Errno, ioctl_fionbio},
};

pub(crate) use line::{Line, PATH, TEXT, What, Word};

use crate::{
    config,
    router::lock,
    stats::Counters,
    worker::{ClientStream, Clock},
};

/// So many bytes are handed over at once; a worker keeps this much more at most while the thread does not take it.
const BATCH: usize = 32 * 1024;
const KEPT: usize = 1024 * 1024;
/// Batches that wait for the disk.
const WAITING: usize = 64;
/// Most lines about single commands and refused connections between two ticks, five of which are in a second: more
/// would be a flood that somebody could cause at will.
const COMMANDS: u32 = 200;
/// How long the end of a router waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file that lines go to, or standard error (`-`).
pub(crate) struct LogFile {
    path: Box<str>,
    /// Once lines are written, the thread that writes them alone takes this: it may hold it for as long as a disk, or who
    /// reads a pipe, stands still.
    to: Mutex<Option<File>>,
}

impl LogFile {
    fn open(path: &str) -> io::Result<Self> {
        Ok(Self { path: path.into(), to: Mutex::new(opened(path)?) })
    }

    fn reopen(&self) {
        match opened(&self.path) {
            Ok(file) => *lock(&self.to) = file,
            Err(error) => {
                tracing::error!(path = &*self.path, %error, "an access log cannot be opened again: the old file is written on");
            }
        }
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        match &mut *lock(&self.to) {
            Some(file) => file.write_all(text),
            None => io::stderr().write_all(text),
        }
    }
}

/// Opens a file without waiting: for a pipe, nobody who would read it is waited for.
fn opened(path: &str) -> io::Result<Option<File>> {
    if path == "-" {
        return Ok(None);
    }
    let at_once = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().append(true).create(true).custom_flags(at_once).open(path);
    let file = file.map_err(|error| {
        let unread = error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
            && fs::metadata(path).is_ok_and(|about| about.file_type().is_fifo());
        if unread {
            io::Error::other("it is a pipe that nobody reads: start its reader first")
        } else {
            error
        }
    })?;
    // What writes to it has time.
    ioctl_fionbio(&file, false)?;
    Ok(Some(file))
}

/// What the thread that writes is told.
enum Order {
    /// So many lines for this file.
    Write { file: Arc<LogFile>, text: Vec<u8>, lines: u64 },
    /// Some files are to be opened again.
    Look,
}

/// What the thread that writes has in common with the others.
#[derive(Default)]
struct Common {
    /// Files to be opened again before anything else is written. Held for a moment at most.
    reopen: Mutex<Vec<Arc<LogFile>>>,
    /// Lines that were logged, left their workers, and are not written.
    unwritten: AtomicU64,
}

/// All access logs of a router, and the thread that writes them. Whoever has this never waits for that thread, but at the end
/// for a while.
#[derive(Default)]
pub(crate) struct Logs {
    files: BTreeMap<Box<str>, Arc<LogFile>>,
    common: Arc<Common>,
    writer: Option<(SyncSender<Order>, Receiver<()>)>,
}

impl Logs {
    /// Opens what these paths name and is not open yet.
    ///
    /// # Errors
    /// A file cannot be opened, or the thread not be started; the path comes with it. Nothing has changed then.
    pub fn open<'a>(&mut self, paths: impl Iterator<Item = &'a str>) -> Result<(), (String, io::Error)> {
        let mut fresh = Vec::new();
        for path in paths.filter(|path| !self.files.contains_key(*path)) {
            let file = LogFile::open(path).map_err(|error| (path.to_owned(), error))?;
            fresh.push((path.into(), Arc::new(file)));
        }
        if self.writer.is_none() && !fresh.is_empty() {
            let (sender, orders) = sync_channel(WAITING);
            let (end, ended) = channel();
            let common = Arc::clone(&self.common);
            let write = move || {
                write_all(&orders, &common);
                drop(end);
            };
            let started = thread::Builder::new().name("router-log".into()).spawn(write);
            started.map_err(|error| ("its thread".to_owned(), error))?;
            self.writer = Some((sender, ended));
        }
        self.files.extend(fresh);
        Ok(())
    }

    /// Closes what none of these paths names, and has the others opened again: somebody may have moved them.
    pub fn keep<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        let paths: Vec<&str> = paths.collect();
        self.files.retain(|path, _| paths.contains(&&**path));
        let Some((sender, _)) = &self.writer else { return };
        *lock(&self.common.reopen) = self.files.values().cloned().collect();
        // If there is no room, there is another order after which it looks.
        let _told = sender.try_send(Order::Look);
    }

    /// For one service on one worker.
    pub fn handle(&self, path: &str) -> Option<LogHandle> {
        let (sender, _) = self.writer.as_ref()?;
        let (file, common) = (Arc::clone(self.files.get(path)?), Arc::clone(&self.common));
        Some(LogHandle { file, sender: sender.clone(), common })
    }

    /// Waits for what was handed over to be written, and tells what is not. No worker may hold a handle any more.
    pub fn end(&mut self) {
        let Some((sender, ended)) = self.writer.take() else { return };
        drop(sender);
        let _ended = ended.recv_timeout(PATIENCE);
        let lines = self.common.unwritten.load(Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(lines, "lines of access logs were not written, and are lost");
        }
    }
}

fn write_all(orders: &Receiver<Order>, common: &Common) {
    let mut failing = false;
    while let Ok(order) = orders.recv() {
        let moved = std::mem::take(&mut *lock(&common.reopen));
        moved.iter().for_each(|file| file.reopen());
        let Order::Write { file, text, lines } = order else { continue };
        match file.write(&text) {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(path = &*file.path, %error, "an access log cannot be written: lines are lost");
                }
            }
        }
        common.unwritten.fetch_sub(lines, Ordering::Relaxed);
    }
}

/// What a worker is given to log with.
pub(crate) struct LogHandle {
    file: Arc<LogFile>,
    sender: SyncSender<Order>,
    common: Arc<Common>,
}

/// One service's access log on one worker.
pub(crate) struct AccessLog {
    handle: LogHandle,
    service: Box<str>,
    lines: RefCell<Vec<u8>>,
    /// How many these are.
    count: Cell<u64>,
    /// What lasts so long has a line in any case.
    slow: Duration,
    /// Of the others, one in so many; none if 0.
    every: u32,
    turn: Cell<u32>,
    /// How many lines about commands there may be before the next tick.
    left: Cell<u32>,
    counters: Rc<Counters>,
}

impl AccessLog {
    pub fn new(handle: LogHandle, service: &str, asked: &config::AccessLog, counters: Rc<Counters>) -> Self {
        Self {
            handle,
            service: service.into(),
            lines: RefCell::default(),
            count: Cell::new(0),
            slow: asked.slow,
            every: asked.every,
            turn: Cell::new(0),
            left: Cell::new(COMMANDS),
            counters,
        }
    }

    /// Whether what took so long is to have a line.
    pub fn wants(&self, failed: bool, took: Duration) -> bool {
        let turn = self.turn.get() + 1;
        let its_turn = turn == self.every;
        self.turn.set(if its_turn || self.every == 0 { 0 } else { turn });
        failed || its_turn || took >= self.slow
    }

    /// Logs. What there is no room for is counted.
    pub fn note(&self, line: &Line<'_>) {
        let mut lines = self.lines.borrow_mut();
        if lines.len() >= KEPT {
            self.counters.unlogged.add(1);
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        line::write(&mut lines, &self.service, now, line);
        self.count.set(self.count.get() + 1);
        let full = lines.len() >= BATCH;
        drop(lines);
        if full {
            self.flush();
        }
    }

    /// Logs what anybody could cause very often. What is too much is counted.
    pub fn note_some(&self, line: &Line<'_>) {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                self.note(line);
            }
            None => self.counters.unlogged.add(1),
        }
    }

    /// Hands over what there is, now and then.
    pub fn tick(&self) {
        self.left.set(COMMANDS);
        self.flush();
    }

    /// Hands over what there is, if the thread takes it.
    fn flush(&self) {
        let mut lines = self.lines.borrow_mut();
        if lines.is_empty() {
            return;
        }
        let LogHandle { file, sender, common } = &self.handle;
        let (file, text) = (Arc::clone(file), std::mem::take(&mut *lines));
        let count = self.count.take();
        // Before they can be written.
        common.unwritten.fetch_add(count, Ordering::Relaxed);
        let (TrySendError::Full(order) | TrySendError::Disconnected(order)) =
            match sender.try_send(Order::Write { file, text, lines: count }) {
                Ok(()) => return,
                Err(error) => error,
            };
        common.unwritten.fetch_sub(count, Ordering::Relaxed);
        if let Order::Write { text, .. } = order {
            *lines = text;
            self.count.set(count);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
        // There is nobody who could hand them over later.
        let lost = self.count.get();
        self.counters.unlogged.add(lost);
        self.handle.common.unwritten.fetch_add(lost, Ordering::Relaxed);
    }
}

/// What is counted of one client, for the line at its end.
pub(crate) struct Tally {
    pub source: SocketAddr,
    began: Instant,
    pub commands: Cell<u64>,
    pub refused: Cell<u64>,
    pub failed: Cell<u64>,
}

impl Tally {
    pub fn new(client: &ClientStream, clock: &Clock) -> Self {
        let (commands, refused, failed) = Default::default();
        Self { source: client.source(), began: clock.now(), commands, refused, failed }
    }

    /// One more.
    pub fn add(count: &Cell<u64>) {
        count.set(count.get() + 1);
    }

    /// The client has gone: logs what there was.
    pub fn end(&self, log: &AccessLog, client: &ClientStream, clock: &Clock, end: &'static str) {
        log.note(&Line {
            client: self.source,
            what: What::Connection {
                commands: self.commands.get(),
                refused: self.refused.get(),
                failed: self.failed.get(),
                received: client.received(),
                sent: client.sent(),
                end,
            },
            partition: None,
            server: None,
            attempts: 0,
            error: None,
            took: clock.now() - self.began,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the thread that writes is told to write.
    fn text(order: Order) -> Vec<u8> {
        let Order::Write { text, lines, .. } = order else { panic!("nothing is opened again") };
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count() as u64, lines);
        text
    }

    fn request() -> Line<'static> {
        Line {
            client: "127.0.0.1:9".parse().unwrap(),
            what: What::Request {
                method: b"GET",
                path: &[b'x'; 1000],
                ids: None,
                status: Some(200),
                received: 0,
                sent: 0,
            },
            partition: None,
            server: None,
            attempts: 1,
            error: None,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_disk_that_stalls_holds_up_nobody_and_costs_lines() {
        let (sender, batches) = sync_channel(1);
        let file = Arc::new(LogFile { path: "-".into(), to: Mutex::new(None) });
        let asked = config::AccessLog { file: "-".into(), slow: Duration::MAX, every: 1 };
        let counters = Rc::<Counters>::default();
        let log = AccessLog::new(
            LogHandle { file, sender, common: Arc::default() },
            "s",
            &asked,
            Rc::clone(&counters),
        );
        let line = request();
        (0..3_000).for_each(|_| log.note(&line));
        let noted = 3_000 - counters.unlogged.get();
        assert!((900..1_100).contains(&noted), "{noted}: a batch, and as much as may be kept");
        let first = text(batches.recv().unwrap());
        log.flush();
        log.note(&line);
        assert_eq!(3_000 - counters.unlogged.get(), noted, "there is room again");
        assert!(first.len() >= BATCH && text(batches.recv().unwrap()).len() >= KEPT);
    }

    #[test]
    fn what_nobody_takes_until_the_end_is_lost_and_counted() {
        let (sender, batches) = sync_channel(1);
        let file = Arc::new(LogFile::open("/dev/null").unwrap());
        let asked = config::AccessLog { file: "/dev/null".into(), slow: Duration::MAX, every: 1 };
        let (counters, common) = (Rc::<Counters>::default(), Arc::<Common>::default());
        let handle = LogHandle { file, sender, common: Arc::clone(&common) };
        let log = AccessLog::new(handle, "s", &asked, Rc::clone(&counters));
        (0..40).for_each(|_| log.note(&request()));
        drop(log);
        let lost = counters.unlogged.get();
        assert!((1..20).contains(&lost), "{lost}: what came after the batch that there was room for");
        assert_eq!(common.unwritten.load(Ordering::Relaxed), 40);
        write_all(&batches, &common);
        assert_eq!(common.unwritten.load(Ordering::Relaxed), lost);
    }

    #[test]
    fn what_failed_or_was_slow_is_logged_and_one_in_so_many_of_the_others_and_never_a_flood() {
        let (sender, batches) = sync_channel(4);
        let file = Arc::new(LogFile { path: "-".into(), to: Mutex::new(None) });
        let asked = config::AccessLog { file: "-".into(), slow: Duration::from_millis(100), every: 10 };
        let counters = Rc::<Counters>::default();
        let log = AccessLog::new(
            LogHandle { file, sender, common: Arc::default() },
            "s",
            &asked,
            Rc::clone(&counters),
        );
        let quick = Duration::from_millis(99);
        assert_eq!((0..100).filter(|_| log.wants(false, quick)).count(), 10);
        assert!((0..100).all(|at| log.wants(at % 2 == 0, if at % 2 == 0 { quick } else { asked.slow })));
        let line = Line {
            client: "127.0.0.1:9".parse().unwrap(),
            what: What::Command { name: b"GET", racs: None },
            partition: None,
            server: None,
            attempts: 1,
            error: None,
            took: quick,
        };
        for _ in 0..2 {
            (0..300).for_each(|_| log.note_some(&line));
            log.tick();
        }
        drop(log);
        let lines = batches.iter().map(|order| text(order).iter().filter(|byte| **byte == b'\n').count());
        assert_eq!((lines.sum::<usize>(), counters.unlogged.get()), (400, 200));
    }
}
