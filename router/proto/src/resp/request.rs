//! Commands as clients send them: arrays of bulk strings, walked in place.

use alloc::vec::Vec;
use core::ops::Range;

use super::short_bulk;

/// How large a command may be. Nothing is reserved ahead of the bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most arguments, the command's name included.
    pub args: usize,
    /// Longest argument, in bytes.
    pub bulk: usize,
    /// Longest command, in bytes. Below 2^32.
    pub command: usize,
}

impl Default for Limits {
    /// 1 Mi arguments as in Redis, 64 MiB an argument, 128 MiB a command.
    fn default() -> Self {
        Self { args: 1 << 20, bulk: 64 << 20, command: 128 << 20 }
    }
}

/// The longest argument that Redis takes, in bytes: whoever announces more does not speak its protocol.
const MAX_BULK: usize = 512 << 20;

/// The longest inline command, in bytes. Only people at a terminal write them.
const MAX_INLINE: usize = 1024;

/// Where a command's arguments lie, as offsets from its first byte.
#[derive(Clone, Debug, Default)]
pub struct Args(Vec<(u32, u32)>);

impl Args {
    /// How many arguments there are, the command's name included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of an argument; `command` is what was scanned.
    ///
    /// # Panics
    /// If there is no such argument.
    pub fn get<'a>(&self, command: &'a [u8], at: usize) -> &'a [u8] {
        let (start, end) = self.0[at];
        &command[start as usize..end as usize]
    }

    /// The bytes of these arguments, at least one, with their `$len` lines and line ends, to go into another command.
    ///
    /// # Panics
    /// If there are no such arguments.
    pub fn raw<'a>(&self, command: &'a [u8], at: Range<usize>) -> &'a [u8] {
        let start = match at.start.checked_sub(1) {
            // Behind the line that says how many arguments there are.
            None => command.iter().position(|&byte| byte == b'\n').map_or(0, |lf| lf + 1),
            // Each follows the line end of the one before.
            Some(before) => self.0[before].1 as usize + 2,
        };
        &command[start..self.0[at.end - 1].1 as usize + 2]
    }

    /// Forgets the arguments, keeps the room.
    fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(1024);
    }
}

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Bytes are missing.
    Incomplete,
    /// A command of this many bytes, whose arguments are in [`Args`]: at least one.
    Command(usize),
    /// An inline command of this many bytes, line end included; its words are in [`Args`], perhaps none.
    Inline(usize),
    /// An empty array of this many bytes: Redis answers nothing to it.
    Empty(usize),
    /// So many bytes are the begin of a command that is refused for its size. The rest of it is not kept.
    TooLarge(usize, TooLarge),
    /// So many bytes are more of a command that was refused.
    Skipped(usize),
}

/// Which limit a command exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLarge {
    /// An argument of this many bytes is longer than an argument may be.
    Argument(usize),
    /// The command has at least this many bytes, and is longer than a command may be.
    Command(usize),
}

/// The client does not speak RESP. Its connection ends, for nobody can say where the next command starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The number of arguments is not one, or beyond the limit.
    #[error("Protocol error: invalid multibulk length")]
    ArgCount,
    /// An argument does not start with `$`.
    #[error("Protocol error: expected '$', got {0:?}")]
    ExpectedBulk(char),
    /// An argument's length is not a number without leading zeros, or beyond what Redis takes.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An argument is not followed by CRLF.
    #[error("Protocol error: an argument does not end in CRLF")]
    BulkEnd,
    /// An inline command is too long or has control characters.
    #[error("Protocol error: malformed inline command")]
    Inline,
}

/// Finds commands in a buffer that grows. Resumes where it stopped, so that a large command that comes in
/// many pieces is walked once.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Offset of the next header line from the command's first byte; 0 before the array's.
    at: usize,
    /// Arguments still to come.
    left: usize,
    /// Whether they belong to a command that was refused, and how many bytes of the one in hand are still to come, CRLF included.
    skipping: bool,
    skip: usize,
}

impl Scanner {
    /// Looks for a whole command at the start of `input`. Between calls that answer [`Scan::Incomplete`] the
    /// input may move in memory and grow, but its bytes stay.
    ///
    /// # Errors
    /// See [`ProtocolError`]; the scanner is of no further use.
    pub fn scan(&mut self, input: &[u8], args: &mut Args, limits: &Limits) -> Result<Scan, ProtocolError> {
        if self.skipping {
            return self.skip(input);
        }
        if self.at == 0 {
            match input.first() {
                None => return Ok(Scan::Incomplete),
                Some(b'*') => {}
                Some(_) => return inline(input, args),
            }
            let Some((count, next)) = number(input, 1, ProtocolError::ArgCount)? else {
                return Ok(Scan::Incomplete);
            };
            args.clear();
            match count {
                Number::Negative | Number::Is(0) => return Ok(Scan::Empty(next)),
                Number::Is(count) if count <= limits.args => self.left = count,
                Number::Is(_) => return Err(ProtocolError::ArgCount),
            }
            self.at = next;
        }
        while self.left > 0 {
            if let Some((start, end)) = short_bulk(input, self.at)
                && end - start <= limits.bulk
                && end + 2 <= limits.command
            {
                args.0.push((start as u32, end as u32));
                self.at = end + 2;
                self.left -= 1;
                continue;
            }
            let Some((len, start)) = argument(input, self.at)? else { return Ok(Scan::Incomplete) };
            let end = start + len;
            let too_large = match () {
                () if len > limits.bulk => Some(TooLarge::Argument(len)),
                () if end + 2 > limits.command => Some(TooLarge::Command(end + 2)),
                () => None,
            };
            if let Some(too_large) = too_large {
                *self = Self { at: 0, left: self.left - 1, skipping: true, skip: len + 2 };
                return Ok(Scan::TooLarge(start, too_large));
            }
            match input.get(end..end + 2) {
                None => return Ok(Scan::Incomplete),
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::BulkEnd),
            }
            args.0.push((start as u32, end as u32));
            self.at = end + 2;
            self.left -= 1;
        }
        let len = self.at;
        self.at = 0;
        Ok(Scan::Command(len))
    }

    /// Whether the rest of a refused command is still to come, whose begin is not in the input any more: another scanner would take it
    /// for something else.
    pub const fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Takes the next piece of a refused command off the input: what is there of an argument, its end, or the next one's header.
    fn skip(&mut self, input: &[u8]) -> Result<Scan, ProtocolError> {
        let len = match self.skip {
            0 => {
                let Some((len, start)) = argument(input, 0)? else { return Ok(Scan::Incomplete) };
                self.left -= 1;
                self.skip = len + 2;
                return Ok(Scan::Skipped(start));
            }
            2 => match input.get(..2) {
                None => return Ok(Scan::Incomplete),
                Some(b"\r\n") => 2,
                Some(_) => return Err(ProtocolError::BulkEnd),
            },
            _ if input.is_empty() => return Ok(Scan::Incomplete),
            skip => (skip - 2).min(input.len()),
        };
        self.skip -= len;
        self.skipping = self.skip > 0 || self.left > 0;
        Ok(Scan::Skipped(len))
    }

    /// How many bytes the command in hand needs at least, as far as is known: room worth having.
    pub fn wants(&self, input: &[u8]) -> usize {
        match number(input, self.at + 1, ProtocolError::BulkLength) {
            Ok(Some((Number::Is(len), start))) if self.at > 0 => start.saturating_add(len).saturating_add(2),
            _ => input.len() + 1,
        }
    }
}

/// Reads the header of the argument at `at`: how long it is, and where it begins; `None` while bytes are missing.
fn argument(input: &[u8], at: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    match input.get(at) {
        None => return Ok(None),
        Some(b'$') => {}
        Some(&other) => return Err(ProtocolError::ExpectedBulk(other as char)),
    }
    match number(input, at + 1, ProtocolError::BulkLength)? {
        None => Ok(None),
        Some((Number::Is(len), start)) if len <= MAX_BULK => Ok(Some((len, start))),
        Some(_) => Err(ProtocolError::BulkLength),
    }
}

enum Number {
    Negative,
    Is(usize),
}

/// Reads a canonical number and its CRLF. Returns the number and the offset behind the CRLF, `None` while
/// bytes are missing.
fn number(input: &[u8], from: usize, error: ProtocolError) -> Result<Option<(Number, usize)>, ProtocolError> {
    let negative = input.get(from) == Some(&b'-');
    let from = from + usize::from(negative);
    let mut at = from;
    let mut value = 0usize;
    loop {
        match input.get(at) {
            None => return Ok(None),
            // 2^31 is beyond every limit and far from overflow.
            Some(digit @ b'0'..=b'9') if value < 1 << 31 => value = value * 10 + usize::from(digit - b'0'),
            Some(b'\r') if at > from => break,
            Some(_) => return Err(error),
        }
        at += 1;
    }
    if input[from] == b'0' && (at > from + 1 || negative) {
        return Err(error);
    }
    match input.get(at + 1) {
        None => Ok(None),
        Some(b'\n') if negative => Ok(Some((Number::Negative, at + 2))),
        Some(b'\n') => Ok(Some((Number::Is(value), at + 2))),
        Some(_) => Err(error),
    }
}

fn inline(input: &[u8], args: &mut Args) -> Result<Scan, ProtocolError> {
    let Some(lf) = memchr::memchr(b'\n', &input[..input.len().min(MAX_INLINE)]) else {
        return if input.len() >= MAX_INLINE { Err(ProtocolError::Inline) } else { Ok(Scan::Incomplete) };
    };
    let line = input[..lf].strip_suffix(b"\r").unwrap_or(&input[..lf]);
    if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(ProtocolError::Inline);
    }
    args.clear();
    let is_space = |at: usize| matches!(line[at], b' ' | b'\t');
    let mut at = 0;
    while at < line.len() {
        let word: Range<usize> = at..(at..line.len()).find(|&at| is_space(at)).unwrap_or(line.len());
        at = word.end + 1;
        if !word.is_empty() {
            args.0.push((word.start as u32, word.end as u32));
        }
    }
    Ok(Scan::Inline(lf + 1))
}
