//! The trace: records for the checker, written by a thread of its own.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use membership_types::{
    NodeId,
    trace::{Event, Record, Source, VERSION},
};
use prometheus_client::metrics::counter::Counter;

use crate::clock;

/// How many records wait for the file. What finds no room is lost, and its number with it, so that a checker sees it.
const WAITING: usize = 1 << 16;

/// How long a burst of records may last until it is in the file.
const BURST: Duration = Duration::from_millis(1);

/// Takes a node's records.
pub(crate) struct Tracer {
    records: SyncSender<Record>,
    thread: JoinHandle<()>,
    lost: Counter,
    source: Source,
    seq: u64,
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
        Ok(Self { records, thread, lost, source: Source::Harness, seq: 0 })
    }

    /// From now on records are those of this incarnation, which numbers them anew.
    pub(crate) fn begin(&mut self, id: NodeId) {
        self.source = Source::Process(id.into());
        self.seq = 0;
    }

    /// Takes a record, as of now. Never waits.
    pub(crate) fn record(&mut self, event: Event) {
        self.seq += 1;
        let record =
            Record { v: VERSION, src: self.source.clone(), seq: self.seq, t: clock::now_ns(), event };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.records.try_send(record) {
            self.lost.inc();
        }
    }

    /// Waits until everything is in the file.
    pub(crate) fn finish(self) {
        drop(self.records);
        // The thread reports its own errors; it does not panic.
        let _joined = self.thread.join();
    }
}

fn write(file: File, records: &Receiver<Record>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, file);
    while let Ok(first) = records.recv() {
        // Records come in bursts, of all moments when there is most to do: the node wakes this thread once for each burst.
        thread::sleep(BURST);
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
