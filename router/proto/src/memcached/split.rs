//! A command over many keys whose keys live on several servers: one command per server, one reply out of
//! theirs.

use alloc::{string::String, vec::Vec};

use super::{
    is_error,
    line::{Words, number},
    push_error,
    request::{Keys, MAX_LINE},
};
use crate::{pmap::RacsId, racs::Access};

/// The longest line of one part of a `get`: some hundreds of keys, so that nobody waits long behind it.
const MAX_PART: usize = 16 * 1024;

/// The parts of one command at a time, in room that is used again and again.
#[derive(Clone, Debug, Default)]
pub struct Split {
    parts: Vec<Part>,
    used: usize,
    /// Which part each key is in.
    part_of: Vec<u16>,
    /// The part that further keys of a RACS go to; `NONE` if there is none yet.
    open: Vec<u16>,
}

#[derive(Clone, Debug)]
struct Part {
    racs: RacsId,
    text: Vec<u8>,
}

const NONE: u16 = u16::MAX;

impl Split {
    /// Splits a command by where its keys are, among so many RACS.
    ///
    /// # Errors
    /// There would be 65,535 parts or more.
    pub fn split(
        &mut self,
        command: &[u8],
        keys: &Keys,
        racs: usize,
        mut locate: impl FnMut(&[u8]) -> RacsId,
    ) -> Result<(), TooManyParts> {
        self.used = 0;
        self.part_of.clear();
        self.open.clear();
        self.open.resize(racs, NONE);
        let head = &command[..keys.head];
        // memcached hangs up on any other long line.
        let most = if command.starts_with(b"get") { MAX_PART } else { MAX_LINE };
        for key in keys.of(command) {
            let id = locate(key);
            let open = &mut self.open[id.get() as usize];
            let full = |part: &Part| part.text.len() + 1 + key.len() + 2 > most;
            if *open == NONE || full(&self.parts[usize::from(*open)]) {
                if self.used == usize::from(NONE) {
                    return Err(TooManyParts);
                }
                if self.used == self.parts.len() {
                    self.parts.push(Part { racs: id, text: Vec::new() });
                }
                let part = &mut self.parts[self.used];
                part.racs = id;
                part.text.clear();
                part.text.extend_from_slice(head);
                *open = self.used as u16;
                self.used += 1;
            }
            let text = &mut self.parts[usize::from(*open)].text;
            text.push(b' ');
            text.extend_from_slice(key);
            self.part_of.push(*open);
        }
        for part in &mut self.parts[..self.used] {
            part.text.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// The parts: where each goes, and its text.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (RacsId, &[u8])> {
        self.parts[..self.used].iter().map(|part| (part.racs, &part.text[..]))
    }

    /// Gives memory back that only a large command needed.
    pub fn shrink(&mut self) {
        if self.part_of.capacity() > 4096 {
            *self = Self::default();
        }
    }
}

/// A command has keys in too many places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyParts;

/// The replies to the parts of one command, until all are there; in room that is used again and again.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    /// The keys, one space before each; empty if the command goes everywhere.
    keys: Vec<u8>,
    /// Which part each key is in.
    part_of: Vec<u16>,
    /// The replies, in the order in which they came.
    bytes: Vec<u8>,
    /// Where each part's reply, or what is left of it, is in `bytes`.
    replies: Vec<(usize, usize)>,
    missing: usize,
    /// Whether the command changes data.
    update: bool,
}

/// What some updates' answers begin with, as errors of the router's do.
const OURS: &str = "SERVER_ERROR phalanx: ";
/// Follows that where one part of an update was done and another one was not.
const PARTLY: &str = "a part of it was done: ";

impl Gather {
    /// Waits for the replies to these parts of a command.
    pub fn values(&mut self, command: &[u8], keys: &Keys, split: &Split) {
        self.start(split.used, keys.access == Access::Update);
        self.keys.extend_from_slice(&command[keys.head..keys.end]);
        self.part_of.extend_from_slice(&split.part_of);
    }

    /// Waits for so many times `OK`.
    pub fn oks(&mut self, count: usize) {
        self.start(count, true);
    }

    fn start(&mut self, count: usize, update: bool) {
        self.update = update;
        self.keys.clear();
        self.part_of.clear();
        self.bytes.clear();
        self.replies.clear();
        self.replies.resize(count, (0, 0));
        self.missing = count;
    }

    /// Takes the reply to one part. Returns whether all are there.
    ///
    /// # Panics
    /// If the part has its reply already.
    pub fn put(&mut self, part: u16, reply: &[u8]) -> bool {
        let place = &mut self.replies[usize::from(part)];
        assert!(place.1 == 0, "a second reply for one part");
        *place = (self.bytes.len(), self.bytes.len() + reply.len());
        self.bytes.extend_from_slice(reply);
        self.missing -= 1;
        self.missing == 0
    }

    /// Appends the one reply that the client waits for.
    ///
    /// The values stand in the order of the keys, as from one server. If a part failed its error is all there
    /// is: without it the keys of that part would look as if they were not there, which nobody knows, and a
    /// client might go on to store over them. Of an update of which some part was done all the same, the client hears
    /// that.
    pub fn write(&mut self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.missing, 0);
        if self.push_first_error(out) {
            return;
        }
        let Self { keys, part_of, bytes, replies, .. } = self;
        if keys.is_empty() {
            out.extend_from_slice(b"OK\r\n");
            return;
        }
        let from = out.len();
        for (key, part) in Words::from(keys, 0).zip(part_of) {
            let (start, end) = &mut replies[usize::from(*part)];
            let rest = &bytes[*start..*end];
            if !is_value_of(rest, key) {
                continue;
            }
            let Some(len) = value(rest) else { break };
            out.extend_from_slice(&rest[..len]);
            *start += len;
        }
        if replies.iter().all(|(start, end)| &bytes[*start..*end] == b"END\r\n") {
            out.extend_from_slice(b"END\r\n");
        } else {
            // The scanner of replies lets no such reply pass.
            out.truncate(from);
            push_error(out, format_args!("a server's reply to its part of a command does not fit"));
        }
    }

    /// Appends the first error, if there is one. Of an update that says no less than what was done.
    fn push_first_error(&self, out: &mut Vec<u8>) -> bool {
        let replies = || self.replies.iter().map(|&(start, end)| &self.bytes[start..end]);
        let Some(first) = replies().find(|reply| is_error(reply)) else { return false };
        let says = |reply: &[u8], text: &str| {
            reply.strip_prefix(OURS.as_bytes()).is_some_and(|rest| rest.starts_with(text.as_bytes()))
        };
        if self.update && replies().any(|reply| !is_error(reply) || says(reply, PARTLY)) {
            let text = String::from_utf8_lossy(first);
            let text = text.trim_end();
            let text = match text.strip_prefix(OURS) {
                Some(text) => text.trim_start_matches(PARTLY).trim_end_matches("; nothing was done"),
                None => text,
            };
            let shown = text.char_indices().nth(500).map_or(text, |(end, _)| &text[..end]);
            push_error(out, format_args!("{PARTLY}{shown}"));
            return true;
        }
        // Nobody knows of one part: that the first one was not done is not all there is to say.
        let unknown = replies().find(|reply| self.update && says(reply, "outcome unknown"));
        out.extend_from_slice(unknown.unwrap_or(first));
        true
    }

    /// Gives memory back that only a large command needed.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to(64 * 1024);
        self.part_of.shrink_to(4096);
        self.keys.shrink_to(64 * 1024);
    }
}

fn is_value_of(reply: &[u8], key: &[u8]) -> bool {
    let rest = reply.strip_prefix(b"VALUE ").and_then(|rest| rest.strip_prefix(key));
    rest.is_some_and(|rest| rest.starts_with(b" "))
}

/// The length of the value, line and data, at the start of a reply.
fn value(reply: &[u8]) -> Option<usize> {
    let lf = memchr::memchr(b'\n', reply)?;
    let bytes = reply[..lf].trim_ascii_end().split(|&byte| byte == b' ').nth(3)?;
    let end = lf + 1 + number(bytes, u32::MAX.into())? as usize + 2;
    (end <= reply.len()).then_some(end)
}
