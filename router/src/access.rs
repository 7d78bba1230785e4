//! Access logs: one JSON object a line.
//!
//! Of HTTP each request has a line, also one that was refused. Where clients send commands by the hundred thousand
//! a second, a line for each would serve nobody: there each connection has one at its end, with counts,
//! and those commands that failed or were slow; of the others, as many as are asked for.
//!
//! A worker formats into memory of its own and hands it over when there is a lot, or after a moment; one thread
//! writes. Whatever the disk does, no worker waits for it: when it does not keep up lines are lost, and counted.
//! What may be secret is not in a line: neither queries, nor bodies, nor keys by themselves (a path is, as it came).

mod line;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use membership_types::Instant;

pub(crate) use line::{Line, PATH, TEXT, What, Word};

use crate::{
    config,
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
    to: Mutex<Option<File>>,
}

impl LogFile {
    fn open(path: &str) -> io::Result<Self> {
        Ok(Self { path: path.into(), to: Mutex::new(opened(path)?) })
    }

    fn reopen(&self) {
        match opened(&self.path) {
            Ok(file) => *self.to.lock().unwrap_or_else(PoisonError::into_inner) = file,
            Err(error) => {
                tracing::error!(path = &*self.path, %error, "an access log cannot be opened again: the old file is written on");
            }
        }
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        match &mut *self.to.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.write_all(text),
            None => io::stderr().write_all(text),
        }
    }
}

fn opened(path: &str) -> io::Result<Option<File>> {
    if path == "-" {
        return Ok(None);
    }
    OpenOptions::new().append(true).create(true).open(Path::new(path)).map(Some)
}

type Batch = (Arc<LogFile>, Vec<u8>);

/// All access logs of a router, and the thread that writes them.
#[derive(Default)]
pub(crate) struct Logs {
    files: BTreeMap<Box<str>, Arc<LogFile>>,
    writer: Option<(SyncSender<Batch>, Receiver<()>)>,
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
            let (sender, batches) = sync_channel(WAITING);
            let (end, ended) = channel();
            let write = move || {
                write_all(&batches);
                drop(end);
            };
            let started = thread::Builder::new().name("router-log".into()).spawn(write);
            started.map_err(|error| ("its thread".to_owned(), error))?;
            self.writer = Some((sender, ended));
        }
        self.files.extend(fresh);
        Ok(())
    }

    /// Closes what none of these paths names, and opens the others again: somebody may have moved them.
    pub fn keep<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        let paths: Vec<&str> = paths.collect();
        self.files.retain(|path, _| paths.contains(&&**path));
        self.files.values().for_each(|file| file.reopen());
    }

    /// For one service on one worker.
    pub fn handle(&self, path: &str) -> Option<LogHandle> {
        let (sender, _) = self.writer.as_ref()?;
        Some(LogHandle { file: Arc::clone(self.files.get(path)?), sender: sender.clone() })
    }

    /// Waits for what was handed over to be written. No worker may hold a handle any more.
    pub fn end(&mut self) {
        if let Some((sender, ended)) = self.writer.take() {
            drop(sender);
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("the end of an access log could not be written in time");
            }
        }
    }
}

fn write_all(batches: &Receiver<Batch>) {
    let mut failing = false;
    while let Ok((file, text)) = batches.recv() {
        match file.write(&text) {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(path = &*file.path, %error, "an access log cannot be written: lines are lost");
                }
            }
        }
    }
}

/// What a worker is given to log with.
pub(crate) struct LogHandle {
    file: Arc<LogFile>,
    sender: SyncSender<Batch>,
}

/// One service's access log on one worker.
pub(crate) struct AccessLog {
    handle: LogHandle,
    service: Box<str>,
    lines: RefCell<Vec<u8>>,
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
        let batch = (Arc::clone(&self.handle.file), std::mem::take(&mut *lines));
        if let Err(error) = self.handle.sender.try_send(batch) {
            let (std::sync::mpsc::TrySendError::Full((_, text))
            | std::sync::mpsc::TrySendError::Disconnected((_, text))) = error;
            *lines = text;
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
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

    #[test]
    fn a_disk_that_stalls_holds_up_nobody_and_costs_lines() {
        let (sender, batches) = sync_channel(1);
        let file = Arc::new(LogFile { path: "-".into(), to: Mutex::new(None) });
        let asked = config::AccessLog { file: "-".into(), slow: Duration::MAX, every: 1 };
        let counters = Rc::<Counters>::default();
        let log = AccessLog::new(LogHandle { file, sender }, "s", &asked, Rc::clone(&counters));
        let line = Line {
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
        };
        (0..3_000).for_each(|_| log.note(&line));
        let noted = 3_000 - counters.unlogged.get();
        assert!((900..1_100).contains(&noted), "{noted}: a batch, and as much as may be kept");
        let first = batches.recv().unwrap().1;
        log.flush();
        log.note(&line);
        assert_eq!(3_000 - counters.unlogged.get(), noted, "there is room again");
        assert!(first.len() >= BATCH && batches.recv().unwrap().1.len() >= KEPT);
    }

    #[test]
    fn what_failed_or_was_slow_is_logged_and_one_in_so_many_of_the_others_and_never_a_flood() {
        let (sender, batches) = sync_channel(4);
        let file = Arc::new(LogFile { path: "-".into(), to: Mutex::new(None) });
        let asked = config::AccessLog { file: "-".into(), slow: Duration::from_millis(100), every: 10 };
        let counters = Rc::<Counters>::default();
        let log = AccessLog::new(LogHandle { file, sender }, "s", &asked, Rc::clone(&counters));
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
        let lines = batches.iter().map(|(_, text)| text.iter().filter(|byte| **byte == b'\n').count());
        assert_eq!((lines.sum::<usize>(), counters.unlogged.get()), (400, 200));
    }
}
