//! The trace: records for the checker, written by a thread of its own.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufWriter, Write},
    ops::{Deref, DerefMut},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    thread::{self, JoinHandle, Thread},
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
pub(crate) struct Tracer(Arc<Book>);

struct Book {
    pen: Mutex<Pen>,
    /// The one that writes.
    writes: OnceLock<Thread>,
}

/// Numbers and stamps the records: whoever holds it writes next.
pub(crate) struct Pen {
    waiting: VecDeque<Record>,
    /// The thread sleeps until something waits.
    asleep: bool,
    /// Nothing is recorded any more.
    finished: bool,
    thread: Option<JoinHandle<()>>,
    lost: Counter,
    writer: Option<NodeId>,
    /// The writer said that it is over: what its other threads still do for it counts for nobody.
    over: bool,
    seq: u64,
    /// The clock as of when the pen was taken.
    now: Instant,
}

/// The pen in somebody's hand.
pub(crate) struct Held<'a> {
    book: &'a Book,
    /// There until it is put down.
    pen: Option<MutexGuard<'a, Pen>>,
}

impl Deref for Held<'_> {
    type Target = Pen;
    fn deref(&self) -> &Pen {
        self.pen.as_deref().expect("it is held")
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Pen {
        self.pen.as_deref_mut().expect("it is held")
    }
}

impl Drop for Held<'_> {
    /// The thread that writes is woken once the pen is put down, so that it does not wait for that as well.
    fn drop(&mut self) {
        let Some(mut pen) = self.pen.take() else { return };
        let wake = (pen.finished || !pen.waiting.is_empty()) && std::mem::take(&mut pen.asleep);
        drop(pen);
        if let Some(thread) = self.book.writes.get().filter(|_| wake) {
            thread.unpark();
        }
    }
}

impl Tracer {
    /// Begins a file anew.
    pub(crate) fn create(path: &Path, lost: Counter) -> io::Result<Self> {
        let file = File::create(path)?;
        let pen = Pen {
            waiting: VecDeque::new(),
            asleep: false,
            finished: false,
            thread: None,
            lost,
            writer: None,
            over: false,
            seq: 0,
            now: Instant::ZERO,
        };
        let book = Arc::new(Book { pen: Mutex::new(pen), writes: OnceLock::new() });
        let (shown, opened) = (path.display().to_string(), Arc::clone(&book));
        let thread = thread::Builder::new().name("phalanx-trace".into()).spawn(move || {
            if let Err(error) = write(file, &opened) {
                lock(&opened.pen).finished = true;
                tracing::error!(%error, file = shown, "the trace ends here: it cannot be written");
            }
        })?;
        book.writes.get_or_init(|| thread.thread().clone());
        lock(&book.pen).thread = Some(thread);
        Ok(Self(book))
    }

    /// From now on records are those of this incarnation, which numbers them anew.
    pub(crate) fn begin(&self, id: NodeId) {
        let mut pen = lock(&self.0.pen);
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
    pub(crate) fn pen(&self) -> Held<'_> {
        let mut pen = lock(&self.0.pen);
        pen.now = clock::now();
        Held { book: &self.0, pen: Some(pen) }
    }

    /// Takes a record, as of now. Never waits but for other records.
    pub(crate) fn record(&self, event: Event) {
        self.pen().record(event);
    }

    /// Waits until everything is in the file. Nothing is recorded any more.
    pub(crate) fn finish(&self) {
        let thread = {
            let mut pen = self.pen();
            pen.finished = true;
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
        if self.over || self.finished && self.thread.is_none() {
            return;
        }
        self.seq += 1;
        let src = self.writer.map_or(Source::Harness, |id| Source::Process(id.into()));
        if self.finished || self.waiting.len() == WAITING {
            self.lost.inc();
            return;
        }
        self.waiting.push_back(Record { v: VERSION, src, seq: self.seq, t: self.now.as_nanos(), event });
    }

    /// As [`record`](Pen::record), unless another incarnation writes by now.
    pub(crate) fn record_as(&mut self, id: NodeId, event: Event) {
        if self.writer == Some(id) {
            self.record(event);
        }
    }

    /// Records what an application did in this incarnation's name, if it is still that which `event` is about.
    pub(crate) fn record_own(&mut self, event: impl FnOnce(NodeId) -> Option<Event>) {
        if let Some(event) = self.writer.filter(|_| !self.over).and_then(event) {
            self.record(event);
        }
    }
}

fn write(file: File, book: &Book) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, file);
    let mut batch = VecDeque::new();
    loop {
        let finished = {
            let mut pen = lock(&book.pen);
            std::mem::swap(&mut pen.waiting, &mut batch);
            pen.asleep = batch.is_empty();
            pen.finished
        };
        if !batch.is_empty() {
            for record in batch.drain(..) {
                serde_json::to_writer(&mut out, &record)?;
                out.write_all(b"\n")?;
            }
            continue;
        }
        // Nothing more waits: what was written is worth seeing.
        out.flush()?;
        if finished {
            return Ok(());
        }
        thread::park();
    }
}
