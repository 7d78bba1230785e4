//! The trace: records for the checker, written by a thread of its own.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use membership_types::{
    Instant, NodeId,
    trace::{Event, Record, Source, VERSION},
};
use prometheus_client::metrics::counter::Counter;

use crate::{clock, node::lock};

/// How many records wait for the file. What finds no room is lost, and its number with it, so that a checker sees it.
const WAITING: usize = 1 << 16;

/// Takes a node's records, from all of its threads. A cheap handle.
#[derive(Clone)]
pub(crate) struct Tracer(Arc<Mutex<Pen>>);

/// Numbers and stamps the records: whoever holds it writes next.
pub(crate) struct Pen {
    records: Option<SyncSender<Record>>,
    thread: Option<JoinHandle<()>>,
    lost: Counter,
    writer: Option<NodeId>,
    /// The writer said that it is over: what its other threads still do for it counts for nobody.
    over: bool,
    seq: u64,
    /// The clock as of when the pen was taken.
    now: Instant,
}

impl Tracer {
    /// Begins a file anew.
    pub(crate) fn create(path: &Path, lost: Counter) -> io::Result<Self> {
        let file = File::create(path)?;
        let (records, receiver) = sync_channel(WAITING);
        let shown = path.display().to_string();
        let thread = thread::Builder::new().name("phalanx-trace".into()).spawn(move || {
            if let Err(error) = write(file, &receiver) {
                tracing::error!(%error, file = shown, "the trace ends here: it cannot be written");
            }
        })?;
        let (records, thread) = (Some(records), Some(thread));
        let pen = Pen { records, thread, lost, writer: None, over: false, seq: 0, now: Instant::ZERO };
        Ok(Self(Arc::new(Mutex::new(pen))))
    }

    /// From now on records are those of this incarnation, which numbers them anew.
    pub(crate) fn begin(&self, id: NodeId) {
        let mut pen = lock(&self.0);
        pen.writer = Some(id);
        pen.over = false;
        pen.seq = 0;
    }

    /// This incarnation is over: nothing is recorded any more before the next one begins.
    pub(crate) fn end(&self) {
        let mut pen = self.pen();
        pen.record(Event::End {});
        pen.over = true;
    }

    /// Takes the pen: until it is put down, no other thread records anything, so that what is concluded from its reading
    /// of the clock is recorded before what others conclude from later ones.
    pub(crate) fn pen(&self) -> MutexGuard<'_, Pen> {
        let mut pen = lock(&self.0);
        pen.now = clock::now();
        pen
    }

    /// Takes a record, as of now. Never waits but for other records.
    pub(crate) fn record(&self, event: Event) {
        self.pen().record(event);
    }

    /// Waits until everything is in the file. Nothing is recorded any more.
    pub(crate) fn finish(&self) {
        let thread = {
            let mut pen = lock(&self.0);
            pen.records = None;
            pen.thread.take()
        };
        if let Some(thread) = thread {
            // The thread reports its own errors; it does not panic.
            let _joined = thread.join();
        }
    }
}

impl Pen {
    /// The clock as of when the pen was taken.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Records something as of when the pen was taken. Never waits.
    pub(crate) fn record(&mut self, event: Event) {
        let Some(records) = self.records.as_ref().filter(|_| !self.over) else { return };
        self.seq += 1;
        let src = self.writer.map_or(Source::Harness, |id| Source::Process(id.into()));
        let record = Record { v: VERSION, src, seq: self.seq, t: self.now.as_nanos(), event };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = records.try_send(record) {
            self.lost.inc();
        }
    }

    /// As [`record`](Pen::record), unless another incarnation writes by now.
    pub(crate) fn record_as(&mut self, id: NodeId, event: Event) {
        if self.writer == Some(id) {
            self.record(event);
        }
    }
}

fn write(file: File, records: &Receiver<Record>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, file);
    while let Ok(first) = records.recv() {
        let mut next = Some(first);
        while let Some(record) = next {
            serde_json::to_writer(&mut out, &record)?;
            out.write_all(b"\n")?;
            next = records.try_recv().ok();
        }
        // Nothing more waits: what was written is worth seeing.
        out.flush()?;
    }
    out.flush()
}
