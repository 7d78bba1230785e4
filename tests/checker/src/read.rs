//! Traces from files: JSON lines, several files merged by time.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use membership_types::trace::{Record, Source};

use crate::{Checker, Invalid, Report};

/// No line is longer than this, in bytes.
pub const MAX_LINE: usize = 4 << 20;

/// Why a file is no trace. Nothing was judged; the same files give the same error again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened.
    #[error("{}: cannot open: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be read on.
    #[error("{}:{line}: cannot read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The line is no record.
    #[error("{}:{line}: not a trace record: {why}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The line is too long.
    #[error("{}:{line}: a line of more than {MAX_LINE} bytes; records are shorter", path.display())]
    Long {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
    },
}

/// One file, read record by record.
struct Lines {
    path: PathBuf,
    input: BufReader<Box<dyn Read + Send>>,
    line: u64,
    buffer: Vec<u8>,
    /// The sources of the first and of the latest record.
    ends: Option<(Source, Source)>,
    /// The last line breaks off: its writer was stopped while it wrote.
    cut_off: bool,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Open { path: path.into(), source })?;
        Ok(Self::new(path, Box::new(file)))
    }

    fn new(path: &Path, input: Box<dyn Read + Send>) -> Self {
        let input = BufReader::with_capacity(1 << 16, input);
        Self { path: path.into(), input, line: 0, buffer: Vec::new(), ends: None, cut_off: false }
    }

    /// The next record; `None` at the end. Blank lines do not count, nor does a last line that breaks off.
    fn next(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let mut limited = self.input.by_ref().take(MAX_LINE as u64 + 1);
            limited.read_until(b'\n', &mut self.buffer).map_err(|source| ReadError::Read {
                path: self.path.clone(),
                line: self.line,
                source,
            })?;
            let whole = self.buffer.last() == Some(&b'\n');
            if self.buffer.is_empty() {
                self.line -= 1;
                return Ok(None);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ReadError::Long { path: self.path.clone(), line: self.line });
            }
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Record>(&self.buffer) {
                Ok(record) => {
                    let (_, last) = self.ends.get_or_insert_with(|| (record.src.clone(), record.src.clone()));
                    if *last != record.src {
                        *last = record.src.clone();
                    }
                    return Ok(Some(record));
                }
                Err(error) if !whole && error.is_eof() => {
                    self.cut_off = true;
                    return Ok(None);
                }
                Err(error) => {
                    let why = error.to_string();
                    // The line of the error is that of the JSON text, which is always the first.
                    let why = why.replace(" at line 1 column ", " at column ");
                    return Err(ReadError::Record { path: self.path.clone(), line: self.line, why });
                }
            }
        }
    }
}

/// The records of several files, in order of time. What is of one instant comes in the order of the files, and within a
/// file in its order.
pub struct Merged {
    files: Vec<Lines>,
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    next: Vec<Option<Record>>,
    failed: Option<ReadError>,
}

/// Opens trace files, to be read as one trace.
///
/// # Errors
/// If a file cannot be opened, or its first line is no record.
pub fn read_files<P: AsRef<Path>>(paths: &[P]) -> Result<Merged, ReadError> {
    merge(paths.iter().map(|path| Lines::open(path.as_ref())).collect::<Result<_, _>>()?)
}

fn merge(files: Vec<Lines>) -> Result<Merged, ReadError> {
    let mut merged = Merged {
        heads: BinaryHeap::with_capacity(files.len()),
        next: Vec::with_capacity(files.len()),
        files,
        failed: None,
    };
    for (at, file) in merged.files.iter_mut().enumerate() {
        let first = file.next()?;
        merged.heads.extend(first.as_ref().map(|record| Reverse((record.t, at))));
        merged.next.push(first);
    }
    Ok(merged)
}

impl Merged {
    /// Where the records of a source break off, as `file:line`.
    fn place_of(&self, src: &Source) -> Option<String> {
        let is_of =
            |file: &&Lines| file.ends.as_ref().is_some_and(|(first, last)| first == src || last == src);
        let file = self.files.iter().find(is_of)?;
        let how = if file.cut_off { " breaks off" } else { " is the last" };
        Some(format!("{}:{}{how}", file.path.display(), file.line))
    }
}

impl Iterator for Merged {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.heads.clear();
            return Some(Err(error));
        }
        let Reverse((_, at)) = self.heads.pop()?;
        let record = self.next[at].take()?;
        match self.files[at].next() {
            Ok(following) => {
                self.heads.extend(following.as_ref().map(|record| Reverse((record.t, at))));
                self.next[at] = following;
            }
            Err(error) => self.failed = Some(error),
        }
        Some(Ok(record))
    }
}

/// Judges trace files as one trace.
///
/// # Errors
/// If a file is unreadable, with the file and the line. A trace that is merely incomplete is no error but an invalid
/// report. Both are exit code 2 of a command.
pub fn check_files<P: AsRef<Path>>(paths: &[P]) -> Result<Report, ReadError> {
    judge(read_files(paths)?)
}

/// Judges one trace from wherever it comes; `name` is what errors call it.
///
/// # Errors
/// As of [`check_files`].
pub fn check_input(name: &Path, input: Box<dyn Read + Send>) -> Result<Report, ReadError> {
    judge(merge(vec![Lines::new(name, input)])?)
}

fn judge(mut merged: Merged) -> Result<Report, ReadError> {
    let mut checker = Checker::new();
    for record in merged.by_ref() {
        checker.observe(&record?);
    }
    let mut report = checker.finish();
    if let Some(Invalid::Truncated { src, place }) = &mut report.invalid {
        *place = merged.place_of(src);
    }
    Ok(report)
}
