//! A command that goes to several servers, as its keys live there or because it concerns all: one command per
//! server, one reply out of theirs.

use alloc::{string::String, vec, vec::Vec};

use super::{
    Args, Cursor, Family, Spread, push_error, push_header,
    reply::{ReplyScanner, length, short_value},
    spread,
};
use crate::pmap::RacsId;

/// The parts of one command over many keys at a time, in room that is used again and again.
#[derive(Clone, Debug, Default)]
pub struct Split {
    parts: Vec<Part>,
    used: usize,
    /// Which part each key is in.
    part_of: Vec<u16>,
    /// The part of the keys of each RACS; `NONE` if it has none.
    part_of_racs: Vec<u16>,
}

#[derive(Clone, Debug)]
struct Part {
    racs: RacsId,
    keys: usize,
    text: Vec<u8>,
}

const NONE: u16 = u16::MAX;

impl Split {
    /// Splits a command, as it was scanned, by where its keys are among so many RACS: fewer than 2^16. Looks at
    /// each key twice, however many RACS there are.
    ///
    /// Returns the RACS that has all of them, if one has: then the command goes there as it is, and there are no
    /// parts.
    ///
    /// # Panics
    /// If the arguments do not come out even: see [`Family::keys`].
    pub fn split(
        &mut self,
        command: &[u8],
        args: &Args,
        family: Family,
        racs: usize,
        mut locate: impl FnMut(&[u8]) -> RacsId,
    ) -> Option<RacsId> {
        let keys = family.keys(args).expect("the caller has seen that they come out even");
        let step = family.step();
        self.used = 0;
        self.part_of.clear();
        self.part_of_racs.clear();
        self.part_of_racs.resize(racs, NONE);
        for key in 0..keys {
            let id = locate(args.get(command, 1 + key * step));
            let part = match self.part_of_racs[id.get() as usize] {
                NONE => self.open(id),
                part => part,
            };
            self.parts[usize::from(part)].keys += 1;
            self.part_of.push(part);
        }
        if let [only] = &self.parts[..self.used] {
            return Some(only.racs);
        }
        for part in &mut self.parts[..self.used] {
            push_header(&mut part.text, b'*', (1 + part.keys * step) as u64);
            part.text.extend_from_slice(args.raw(command, 0..1));
        }
        for (key, &part) in self.part_of.iter().enumerate() {
            let at = 1 + key * step;
            self.parts[usize::from(part)].text.extend_from_slice(args.raw(command, at..at + step));
        }
        None
    }

    fn open(&mut self, racs: RacsId) -> u16 {
        if self.used == self.parts.len() {
            self.parts.push(Part { racs, keys: 0, text: Vec::new() });
        }
        let part = &mut self.parts[self.used];
        (part.racs, part.keys) = (racs, 0);
        part.text.clear();
        let at = u16::try_from(self.used).ok().filter(|at| *at != NONE);
        let at = at.expect("a service has fewer than 2^16 RACS");
        self.part_of_racs[racs.get() as usize] = at;
        self.used += 1;
        at
    }

    /// The parts: where each goes, and its text.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (RacsId, &[u8])> {
        self.parts[..self.used].iter().map(|part| (part.racs, &part.text[..]))
    }

    /// Gives memory back that only a large command needed, after each command: looks only at what it used.
    pub fn shrink(&mut self) {
        self.part_of.shrink_to(4096);
        let most = KEPT / self.used.max(1);
        for part in &mut self.parts[..self.used] {
            part.text.clear();
            part.text.shrink_to(most);
        }
    }
}

/// Bytes that all parts together, or a [`Gather`], may hold on to between two commands.
const KEPT: usize = 64 * 1024;

/// The replies to the parts of one command, until all are there; in room that is used again and again.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    how: How,
    /// Of each key, in the order of the keys: which part it went to.
    parts: Vec<u16>,
    /// The replies, in the order in which they came.
    bytes: Vec<u8>,
    /// Where each part's reply is in `bytes`.
    replies: Vec<Option<(usize, usize)>>,
    missing: usize,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Keys(Family),
    /// With random bits, for a choice.
    All(Spread, u64),
    /// One reply of the RACS that is being walked, of so many.
    Scan(Cursor, u32),
}

impl Default for How {
    fn default() -> Self {
        Self::Keys(Family::Mget)
    }
}

impl Gather {
    /// Waits for the replies to these parts of a command.
    pub fn keys(&mut self, family: Family, split: &Split) {
        self.start(How::Keys(family), split.used);
        self.parts.extend_from_slice(&split.part_of);
    }

    /// Waits for `count` replies to the same command. `random` is 64 fresh random bits.
    pub fn all(&mut self, spread: Spread, count: u16, random: u64) {
        self.start(How::All(spread, random), count.into());
    }

    /// Waits for the reply to one step of a walk over so many RACS.
    pub fn scan(&mut self, cursor: Cursor, racs: u32) {
        self.start(How::Scan(cursor, racs), 1);
    }

    fn start(&mut self, how: How, count: usize) {
        self.how = how;
        self.parts.clear();
        self.bytes.clear();
        self.shrink(); // of one whose replies never came all
        self.replies.clear();
        self.replies.resize(count, None);
        self.missing = count;
    }

    /// Takes the reply to one part. Returns whether all are there.
    ///
    /// # Panics
    /// If the part has its reply already.
    pub fn put(&mut self, part: u16, reply: &[u8]) -> bool {
        let start = self.bytes.len();
        if start == 0 {
            // The others will be about as long; but one long reply says nothing.
            self.bytes.reserve(reply.len().saturating_mul(self.missing).min(KEPT));
        }
        self.bytes.extend_from_slice(reply);
        let before = self.replies[usize::from(part)].replace((start, self.bytes.len()));
        assert!(before.is_none(), "a second reply for one part");
        self.missing -= 1;
        self.missing == 0
    }

    /// Bytes of the replies so far.
    pub fn kept(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the one reply that the client waits for.
    ///
    /// `MGET`: one element per key, in the order of the keys; where a part failed, its error stands for each
    /// of its keys. `MSET`: `OK`, or the first error. The counting ones: the sum, or the first error. Commands
    /// to all: see [`Spread`]; if one failed, its error.
    ///
    /// The error of one part says nothing about the others: where some part of an update was done all the same,
    /// the client hears that.
    ///
    /// # Panics
    /// If a reply is missing.
    pub fn write(&self, out: &mut Vec<u8>) {
        let replies = self.replies.iter().map(|reply| {
            let (start, end) = reply.expect("all replies are there");
            &self.bytes[start..end]
        });
        let replies: Vec<&[u8]> = replies.collect();
        match self.how {
            How::Scan(cursor, racs) => cursor.translate(replies[0], racs, out),
            How::All(how, random) => {
                let update = how == Spread::Same;
                spread::write(how, random, update, &replies, out);
            }
            How::Keys(Family::Mget) => write_array(&self.parts, &replies, out),
            How::Keys(Family::Mset) => {
                if !push_first_error(true, &replies, out) {
                    match replies.iter().find(|reply| **reply != b"+OK\r\n") {
                        None => out.extend_from_slice(b"+OK\r\n"),
                        Some(other) => push_failure(other, "MSET", out),
                    }
                }
            }
            How::Keys(family @ (Family::CountUpdate | Family::CountRead)) => {
                let update = family == Family::CountUpdate;
                spread::write(Spread::Sum, 0, update, &replies, out);
            }
        }
    }

    /// Gives memory back that only a large command needed.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to(KEPT);
        self.parts.shrink_to(4096);
    }
}

fn write_array<'a>(parts: &[u16], replies: &[&'a [u8]], out: &mut Vec<u8>) {
    let mut keys = vec![0; replies.len()];
    for &part in parts {
        keys[usize::from(part)] += 1;
    }
    let fitting = |(reply, keys): (&&'a [u8], u64)| {
        Elements::of(reply).filter(|elements| elements.count == keys).unwrap_or_default()
    };
    let mut elements: Vec<Elements<'_>> = replies.iter().zip(keys).map(fitting).collect();
    push_header(out, b'*', parts.len() as u64);
    for &part in parts {
        match elements[usize::from(part)].next() {
            Some(element) => out.extend_from_slice(element),
            None => push_failure(replies[usize::from(part)], "MGET", out),
        }
    }
}

/// The elements of an array reply.
#[derive(Default)]
pub(super) struct Elements<'a> {
    pub count: u64,
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    /// `None` of any other reply.
    pub fn of(reply: &'a [u8]) -> Option<Self> {
        let lf = memchr::memchr(b'\n', reply)?;
        let line = reply[..lf].strip_suffix(b"\r")?;
        // RESP3 has sets, maps and messages besides.
        let (kind, line) = line.split_first()?;
        let count = length(line).ok()??;
        let count = match kind {
            b'*' | b'~' | b'>' => count,
            b'%' => count * 2,
            _ => return None,
        };
        Some(Self { count, rest: &reply[lf + 1..] })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let scan = || ReplyScanner::default().scan(self.rest).ok().flatten();
        let len = short_value(self.rest, 0).or_else(scan)?;
        let (element, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(element)
    }
}

pub(super) fn integer(reply: &[u8]) -> Option<u64> {
    length(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?).ok().flatten()
}

/// Passes an error on as it is; says so of anything else that does not fit.
pub(super) fn push_failure(reply: &[u8], what: &str, out: &mut Vec<u8>) {
    if reply.starts_with(b"-") {
        out.extend_from_slice(reply);
    } else {
        push_error(out, format_args!("ERR phalanx: a server's reply to its part of a {what} does not fit"));
    }
}

/// Begins what the client hears of an update of which one part was done and another one was not.
const PARTLY: &str = "ERR phalanx: a part of it was done: ";

/// Appends the first error among the replies, if there is one. Of an update that says no less than what was done.
pub(super) fn push_first_error(update: bool, replies: &[&[u8]], out: &mut Vec<u8>) -> bool {
    let is_error = |reply: &&&[u8]| matches!(reply.first(), Some(b'-' | b'!'));
    let begins =
        |reply: &[u8], text: &str| reply.get(1..).is_some_and(|rest| rest.starts_with(text.as_bytes()));
    let Some(&first) = replies.iter().find(is_error) else { return false };
    let done = replies.iter().any(|reply| !is_error(&reply) || begins(reply, PARTLY));
    if update && done {
        // A bulk error has its length on a line before.
        let text = if first.starts_with(b"!") {
            first.splitn(2, |&byte| byte == b'\n').last()
        } else {
            first.get(1..)
        };
        let text = String::from_utf8_lossy(text.unwrap_or_default());
        let text = text.trim_end().trim_start_matches(PARTLY).trim_start_matches("ERR phalanx: ");
        let text = match text.strip_prefix("TRYAGAIN phalanx: ") {
            Some(text) => text.trim_end_matches("; nothing was done"),
            None => text,
        };
        let shown = text.char_indices().nth(500).map_or(text, |(end, _)| &text[..end]);
        push_error(out, format_args!("{PARTLY}{shown}"));
        return true;
    }
    // Nobody knows of one part: that the first one was not done is not all there is to say.
    let unknown = replies.iter().find(|reply| begins(reply, "ERR phalanx: outcome unknown"));
    out.extend_from_slice(unknown.filter(|_| update).unwrap_or(&first));
    true
}
