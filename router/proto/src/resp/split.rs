//! A command that goes to several servers, as its keys live there or because it concerns all: one command per
//! server, one reply out of theirs.

use alloc::{string::String, vec::Vec};

use super::{
    Args, Cursor, Family, Spread, push_error, push_header,
    reply::{ReplyScanner, length, short_value},
    spread,
};

/// The part of a split command that goes to one server.
#[derive(Clone, Copy, Debug)]
pub struct SubCommand<'a> {
    command: &'a [u8],
    args: &'a Args,
    family: Family,
}

impl<'a> SubCommand<'a> {
    /// Parts of this command, as it was scanned.
    pub const fn of(command: &'a [u8], args: &'a Args, family: Family) -> Self {
        Self { command, args, family }
    }

    /// How many keys the whole command has, or `None` if its arguments do not come out even.
    pub fn keys(&self) -> Option<usize> {
        let (rest, step) = (self.args.len() - 1, self.family.step());
        (rest > 0 && rest.is_multiple_of(step)).then_some(rest / step)
    }

    /// The key at this position, from 0.
    ///
    /// # Panics
    /// If there is none.
    pub fn key(&self, at: usize) -> &'a [u8] {
        self.args.get(self.command, 1 + at * self.family.step())
    }

    /// Appends the sub-command of `part`: that of the keys whose entry in `parts` says so, in their order.
    pub fn write(&self, parts: &[u16], part: u16, out: &mut Vec<u8>) {
        let step = self.family.step();
        out.reserve(self.command.len());
        let count = parts.iter().filter(|&&of| of == part).count();
        push_header(out, b'*', (1 + count * step) as u64);
        out.extend_from_slice(self.args.raw(self.command, 0));
        for (at, _) in parts.iter().enumerate().filter(|&(_, &of)| of == part) {
            for arg in 0..step {
                out.extend_from_slice(self.args.raw(self.command, 1 + at * step + arg));
            }
        }
    }
}

/// Bytes that a [`Gather`] may hold on to between two commands.
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
    /// Waits for `count` replies; `parts` says which part each key belongs to.
    pub fn keys(&mut self, family: Family, parts: &[u16], count: u16) {
        debug_assert!(parts.iter().all(|&part| part < count));
        self.start(How::Keys(family), count);
        self.parts.extend_from_slice(parts);
    }

    /// Waits for `count` replies to the same command. `random` is 64 fresh random bits.
    pub fn all(&mut self, spread: Spread, count: u16, random: u64) {
        self.start(How::All(spread, random), count);
    }

    /// Waits for the reply to one step of a walk over so many RACS.
    pub fn scan(&mut self, cursor: Cursor, racs: u32) {
        self.start(How::Scan(cursor, racs), 1);
    }

    fn start(&mut self, how: How, count: u16) {
        self.how = how;
        self.parts.clear();
        self.bytes.clear();
        self.shrink(); // of one whose replies never came all
        self.replies.clear();
        self.replies.resize(count.into(), None);
        self.missing = count.into();
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

fn write_array(parts: &[u16], replies: &[&[u8]], out: &mut Vec<u8>) {
    let mut elements: Vec<Elements<'_>> = (0u16..)
        .zip(replies)
        .map(|(part, reply)| {
            let keys = parts.iter().filter(|&&of| of == part).count();
            Elements::of(reply).filter(|elements| elements.count == keys as u64).unwrap_or_default()
        })
        .collect();
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
