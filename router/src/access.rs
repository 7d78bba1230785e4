//! Access logs: one JSON object a line for each request that was routed.
//!
//! A worker formats into memory of its own and hands it over when there is a lot, or after a moment; one thread
//! writes. Whatever the disk does, no worker waits for it: when it does not keep up lines are lost, and counted.
//! What may be secret is not in a line: neither queries, nor bodies, nor keys by themselves (a path is, as it came).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use router_proto::trace::Ids;

/// So many bytes are handed over at once; a worker keeps this much more at most while the thread does not take it.
const BATCH: usize = 32 * 1024;
const KEPT: usize = 1024 * 1024;
/// Batches that wait for the disk.
const WAITING: usize = 64;
/// No path is longer in a line, in bytes.
const PATH: usize = 1024;
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
}

/// What is known of a request at its end.
pub(crate) struct Line<'a> {
    pub client: SocketAddr,
    pub method: &'a [u8],
    /// Without its query.
    pub path: &'a [u8],
    pub ids: Option<&'a Ids>,
    pub partition: &'a dyn fmt::Display,
    /// The server of the last attempt.
    pub server: Option<SocketAddr>,
    pub attempts: u32,
    /// None if the client got no answer.
    pub status: Option<u16>,
    pub received: u64,
    pub sent: u64,
    pub took: Duration,
}

impl AccessLog {
    pub fn new(handle: LogHandle, service: &str) -> Self {
        Self { handle, service: service.into(), lines: RefCell::default() }
    }

    /// Logs a request. Returns false if there is no room.
    pub fn note(&self, line: &Line<'_>) -> bool {
        let mut lines = self.lines.borrow_mut();
        if lines.len() >= KEPT {
            return false;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        write_line(&mut lines, &self.service, now, line);
        let full = lines.len() >= BATCH;
        drop(lines);
        if full {
            self.flush();
        }
        true
    }

    /// Hands over what there is, if the thread takes it.
    pub fn flush(&self) {
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

fn write_line(out: &mut Vec<u8>, service: &str, now: Duration, line: &Line<'_>) {
    // Writing to memory cannot fail.
    let _ =
        write!(out, "{{\"time\":\"{}\",\"service\":\"{service}\",\"client\":\"{}\"", Time(now), line.client);
    out.extend_from_slice(b",\"method\":\"");
    push_escaped(out, line.method);
    out.extend_from_slice(b"\",\"path\":\"");
    push_escaped(out, &line.path[..line.path.len().min(PATH)]);
    let _ = write!(out, "\",\"partition\":\"{}\",\"server\":", line.partition);
    let _ = match line.server {
        Some(server) => write!(out, "\"{server}\""),
        None => write!(out, "null"),
    };
    let _ = write!(out, ",\"attempts\":{},\"status\":", line.attempts);
    let _ = match line.status {
        Some(status) => write!(out, "{status}"),
        None => write!(out, "null"),
    };
    if let Some(ids) = line.ids {
        let _ = write!(
            out,
            ",\"trace_id\":\"{:032x}\",\"request_id\":\"{}\"",
            ids.parent().trace(),
            ids.request()
        );
    }
    let (received, sent, took) = (line.received, line.sent, line.took.as_micros());
    let _ = writeln!(out, ",\"bytes_in\":{received},\"bytes_out\":{sent},\"duration_us\":{took}}}");
}

/// Text inside a JSON string; bytes that are no ASCII stand for themselves as Latin-1.
fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            _ => {
                let _ = write!(out, "\\u{byte:04x}");
            }
        }
    }
}

/// A time since 1970, as RFC 3339 has it, in UTC.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant's civil_from_days, for days since 1970-01-01.
        let z = days + 719_468;
        let era = z / 146_097;
        let of_era = z % 146_097;
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let ms = self.0.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_799, "2000-02-29T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
            (1_795_372_800, "2026-11-22T18:40:00.007Z"),
        ] {
            assert_eq!(Time(Duration::new(seconds, 7_000_000)).to_string(), text);
        }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_a_client_says() {
        let mut out = Vec::new();
        let line = Line {
            client: "127.0.0.1:9".parse().unwrap(),
            method: b"GET",
            ids: None,
            path: b"/a\"b\\c\x01\xff",
            partition: &7,
            server: None,
            attempts: 0,
            status: None,
            received: 1,
            sent: 2,
            took: Duration::from_millis(3),
        };
        write_line(&mut out, "s", Duration::ZERO, &line);
        let text = std::str::from_utf8(&out).unwrap();
        assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            (&value["path"], &value["status"]),
            (&"/a\"b\\c\u{1}\u{ff}".into(), &serde_json::Value::Null)
        );
        assert_eq!((&value["partition"], &value["duration_us"]), (&"7".into(), &3_000.into()));
    }

    #[test]
    fn a_disk_that_stalls_holds_up_nobody_and_costs_lines() {
        let (sender, batches) = sync_channel(1);
        let file = Arc::new(LogFile { path: "-".into(), to: Mutex::new(None) });
        let log = AccessLog::new(LogHandle { file, sender }, "s");
        let line = Line {
            client: "127.0.0.1:9".parse().unwrap(),
            method: b"GET",
            ids: None,
            path: &[b'x'; 1000],
            partition: &0,
            server: None,
            attempts: 1,
            status: Some(200),
            received: 0,
            sent: 0,
            took: Duration::ZERO,
        };
        let noted = (0..3_000).filter(|_| log.note(&line)).count();
        assert!((900..1_100).contains(&noted), "{noted}: a batch, and as much as may be kept");
        let first = batches.recv().unwrap().1;
        log.flush();
        assert!(log.note(&line), "there is room again");
        assert!(first.len() >= BATCH && batches.recv().unwrap().1.len() >= KEPT);
    }
}
