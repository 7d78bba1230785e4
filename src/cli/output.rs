//! Standard output and standard error behind queues, each written by a thread of its own. Whoever reads them may stall (a
//! terminal after Ctrl-S, a full pipe): that holds up the writer, and neither signals nor health checks nor leases.

use std::{
    io::{self, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::events;

/// Bytes that wait to be written; a line that is longer waits alone.
const WAITING: u32 = 1 << 20;
/// What a line costs besides its bytes.
const COST: usize = 64;
/// How long the end of a process waits for who reads what it printed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

static OUT: OnceLock<Output> = OnceLock::new();
/// Begins with the first thing that is said: most processes never do, and one thread less has to end when they are killed.
/// None where its thread cannot be had.
static ERR: OnceLock<Option<Output>> = OnceLock::new();

/// Lines that wait for their writer.
pub(crate) struct Output {
    room: Arc<Semaphore>,
    lines: mpsc::UnboundedSender<Item>,
    /// Lines that found no room since the last one that did.
    missing: AtomicU64,
}

enum Item {
    /// To be written, and the room that it takes until then.
    Line(Vec<u8>, OwnedSemaphorePermit),
    /// Dropped once all before it is written.
    Mark(Sender<()>),
}

impl Output {
    /// Has lines written by a thread, as long as `write` says so.
    fn start(name: &str, mut write: impl FnMut(&[u8]) -> bool + Send + 'static) -> io::Result<Self> {
        // Bounded by the room that each line holds.
        let (lines, mut waiting) = mpsc::unbounded_channel();
        thread::Builder::new().name(name.into()).spawn(move || {
            while let Some(item) = waiting.blocking_recv() {
                match item {
                    Item::Line(line, room) if write(&line) => drop(room),
                    Item::Line(..) => break,
                    Item::Mark(mark) => drop(mark),
                }
            }
        })?;
        let room = Arc::new(Semaphore::new(WAITING as usize));
        Ok(Self { room, lines, missing: AtomicU64::new(0) })
    }

    fn cost(line: &[u8]) -> u32 {
        u32::try_from(line.len() + COST).unwrap_or(WAITING).min(WAITING)
    }

    /// Waits for room for the line. False once nothing is written any more. A dropped future has printed all or nothing.
    pub(crate) async fn say(&self, line: Vec<u8>) -> bool {
        let room = Arc::clone(&self.room).acquire_many_owned(Self::cost(&line)).await;
        room.is_ok_and(|room| self.lines.send(Item::Line(line, room)).is_ok())
    }

    /// Has the line written if there is room. Else it is missing, which the next one that finds room says before it.
    fn offer(&self, line: &[u8]) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(Self::cost(line)) else {
            self.missing.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut text = match self.missing.swap(0, Ordering::Relaxed) {
            0 => Vec::new(),
            n => format!("phalanx: {n} lines are missing here: they were not read in time\n").into_bytes(),
        };
        text.extend_from_slice(line);
        // An error says that nobody reads.
        let _unread = self.lines.send(Item::Line(text, room));
    }

    /// Waits until nothing is written any more.
    pub(crate) async fn gone(&self) {
        self.lines.closed().await;
    }

    /// Waits until all is written. False if that did not come about by then.
    fn written(&self, until: Instant) -> bool {
        let (mark, end) = channel();
        if self.lines.send(Item::Mark(mark)).is_err() {
            return true; // Nobody reads, which was told.
        }
        let left = until.saturating_duration_since(Instant::now());
        end.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    }
}

/// From now on what is printed goes through queues.
pub(crate) fn begin() -> io::Result<()> {
    let out = Output::start("phalanx-out", events::write)?;
    // Nobody begins twice.
    let _first = OUT.set(out);
    Ok(())
}

/// Standard output, once there is a queue for it.
pub(crate) fn out() -> Option<&'static Output> {
    OUT.get()
}

/// Standard error, once there are queues.
fn err() -> Option<&'static Output> {
    OUT.get()?;
    let write = |bytes: &[u8]| {
        // A disk may have room again.
        let _lost = io::stderr().write_all(bytes);
        true
    };
    ERR.get_or_init(|| Output::start("phalanx-err", write).ok()).as_ref()
}

/// Standard error: through the queue where there is one, else directly.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match err() {
            Some(err) => err.offer(bytes),
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until what was printed is written, each for so long.
pub(crate) fn finish(patience: Duration) {
    if let Some(out) = OUT.get()
        && !out.written(Instant::now() + patience)
    {
        events::lose("nobody reads it: what was printed last is lost");
    }
    if let Some(Some(err)) = ERR.get() {
        if err.missing.load(Ordering::Relaxed) > 0 {
            err.offer(b"");
        }
        // If not, there is nobody to tell.
        let _all = err.written(Instant::now() + patience);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::sync_channel};

    use super::*;

    #[test]
    fn a_writer_that_stalls_holds_up_nobody_and_what_is_missing_is_counted() {
        let (go, stalled) = sync_channel::<()>(0);
        let wrote = Arc::new(Mutex::new(Vec::new()));
        let (to, mut first) = (Arc::clone(&wrote), true);
        let write = move |line: &[u8]| {
            if std::mem::take(&mut first) {
                stalled.recv().expect("it goes on");
            }
            to.lock().expect("nobody panics").push(String::from_utf8_lossy(line).into_owned());
            true
        };
        let output = Output::start("test", write).expect("a thread");
        let long = vec![b'x'; 1 << 18];
        (0..10).for_each(|_| output.offer(&long));
        assert!(!output.written(Instant::now() + Duration::from_millis(50)), "the writer stalls");
        go.send(()).expect("the writer waits");
        assert!(output.written(Instant::now() + Duration::from_secs(60)));
        output.offer(b"after\n");
        assert!(output.written(Instant::now() + Duration::from_secs(60)));
        let wrote = wrote.lock().expect("nobody panics");
        assert_eq!(wrote.len(), 4, "three long lines fit, and the last one");
        assert_eq!(wrote[3], "phalanx: 7 lines are missing here: they were not read in time\nafter\n");
    }

    #[test]
    fn whoever_waits_for_room_hears_that_nothing_is_written_any_more() {
        let output = Output::start("test", |_: &[u8]| false).expect("a thread");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let long = vec![b'x'; WAITING as usize];
            while output.say(long.clone()).await {}
            output.gone().await;
        });
        assert!(output.written(Instant::now() + Duration::from_secs(60)), "there is nothing to wait for");
    }
}
