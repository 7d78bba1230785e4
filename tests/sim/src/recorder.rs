//! Gathers the records of a run: the checker sees each at once; a file gets them if one is wanted.

use std::io::{self, Write};

use checker::Checker;
use membership_types::trace::{Event, Record, Source, VERSION};

use crate::Map;

/// Where the records of a run go.
pub(crate) struct Recorder {
    checker: Checker,
    seqs: Map<Source, u64>,
    file: Option<Box<dyn Write + Send>>,
    failed: Option<io::Error>,
    hash: Option<Fnv>,
    pub(crate) records: u64,
}

impl Recorder {
    pub(crate) fn new(file: Option<Box<dyn Write + Send>>, hash: bool) -> Self {
        Self {
            checker: Checker::new(),
            seqs: Map::default(),
            file,
            failed: None,
            hash: hash.then(Fnv::new),
            records: 0,
        }
    }

    pub(crate) fn record(&mut self, t: u64, src: Source, event: Event) {
        let seq = match self.seqs.get_mut(&src) {
            Some(seq) => {
                *seq += 1;
                *seq
            }
            None => {
                self.seqs.insert(src.clone(), 1);
                1
            }
        };
        let record = Record { v: VERSION, src, seq, t, event };
        self.records += 1;
        self.checker.observe(&record);
        if self.file.is_none() && self.hash.is_none() {
            return;
        }
        let mut line = serde_json::to_vec(&record).expect("records have string keys only");
        line.push(b'\n');
        if let Some(hash) = &mut self.hash {
            hash.write(&line);
        }
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(&line)
        {
            self.failed.get_or_insert(error);
        }
    }

    /// The verdict, the hash of all lines, and whether the file could be written.
    pub(crate) fn finish(mut self) -> (checker::Report, Option<u64>, io::Result<()>) {
        let flushed = self.file.as_mut().map_or(Ok(()), Write::flush);
        let written = self.failed.map_or(flushed, Err);
        (self.checker.finish(), self.hash.map(|h| h.0), written)
    }
}

/// FNV-1a, so that equal traces have equal hashes on every machine.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
