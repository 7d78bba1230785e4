//! Commands as clients send them: a line, for some of them followed by data.

use core::ops::Range;

use super::{
    Hush, Kind, Note,
    key::is_key,
    line::{Words, is_time, number},
    meta,
};
use crate::racs::Access;

/// How large a command may be. Nothing is reserved ahead of the bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value that may be stored, in bytes. Below 2^31.
    pub value: usize,
    /// Longest line of a command over many keys, in bytes. Below 2^31.
    pub line: usize,
}

impl Default for Limits {
    /// 64 MiB a value, 1 MiB a line.
    fn default() -> Self {
        Self { value: 64 << 20, line: 1 << 20 }
    }
}

/// The longest line of any other command: memcached hangs up on lines that are not much longer.
pub(super) const MAX_LINE: usize = 1024;

/// The most bytes of data that memcached lets a line announce.
pub(super) const MAX_DATA: u64 = i32::MAX as u64 - 2;

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Bytes are missing.
    Incomplete,
    /// So many bytes are data of a command that was refused.
    Skipped(usize),
    /// So many bytes are a command, or its line if it is refused.
    Request(usize, Request),
}

/// A command, as offsets from its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// It has one key, which decides where it goes.
    One(One),
    /// It has several.
    Many(Keys),
    /// It goes to every RACS.
    Everywhere {
        /// What must be known when replies come.
        note: Note,
        /// What does not go to the servers.
        cut: Range<usize>,
    },
    /// The router answers it.
    Local(Local),
    /// The router refuses it with this line.
    Refused {
        /// The whole line.
        line: &'static [u8],
        /// Whether its client wants to see that.
        hush: Hush,
    },
}

/// A command with one key. It goes on as it is, without the bytes that would keep its reply back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct One {
    /// Where its key is.
    pub key: Range<usize>,
    /// Whether the key is written in base64.
    pub binary: bool,
    /// Whether it changes data.
    pub access: Access,
    /// What must be known when its reply comes.
    pub note: Note,
    /// What does not go to the server; mostly nothing.
    pub cut: Range<usize>,
}

/// A command over several keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Where its name, and its expiration time if it has one, end.
    pub(super) head: usize,
    /// Where the last key ends.
    pub(super) end: usize,
    /// Whether it changes data.
    pub access: Access,
    /// What must be known when its reply comes.
    pub note: Note,
}

impl Keys {
    /// The keys, in their order; `command` is what was scanned.
    pub fn of<'a>(&self, command: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        Words::from(&command[..self.end], self.head)
    }
}

/// A command that the router answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// `mn`: all before it is answered.
    Noop,
    /// `version`.
    Version,
    /// `verbosity`: taken, without effect.
    Verbosity(Hush),
    /// `stats`.
    Stats,
    /// `stats` of something that the router does not have.
    NoStats,
    /// `quit`.
    Quit,
}

/// Nobody can say where the next command starts, or the client speaks another protocol: its connection ends,
/// after this line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The first byte is that of the binary protocol.
    #[error("SERVER_ERROR phalanx: the binary protocol is not spoken here: use the text protocol")]
    Binary,
    /// The line is longer than the limit.
    #[error("CLIENT_ERROR line too long")]
    LineTooLong,
    /// How much data follows cannot be said.
    #[error("CLIENT_ERROR bad command line format")]
    Length,
    /// The data are not followed by CRLF.
    #[error("CLIENT_ERROR bad data chunk")]
    DataEnd,
    /// It is a request of HTTP: what follows may be what a web page wants to be taken for commands.
    #[error("ERROR")]
    Http,
}

/// What a line is refused with.
pub(super) mod refusal {
    pub const UNKNOWN: &[u8] = b"ERROR\r\n";
    pub const FORMAT: &[u8] = b"CLIENT_ERROR bad command line format\r\n";
    pub const TIME: &[u8] = b"CLIENT_ERROR invalid exptime argument\r\n";
    pub const DELTA: &[u8] = b"CLIENT_ERROR invalid numeric delta argument\r\n";
    pub const DELETE: &[u8] = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n";
    pub const TOO_LARGE: &[u8] = b"SERVER_ERROR object too large for cache\r\n";
    pub const SHUTDOWN: &[u8] = b"ERROR: shutdown not enabled\r\n";
    pub const ONE_SERVER: &[u8] =
        b"CLIENT_ERROR phalanx: this command concerns one server: send it there\r\n";
    pub const STATS: &[u8] = b"CLIENT_ERROR phalanx: the router's statistics cannot be reset or dumped\r\n";
    pub const FLAG: &[u8] = b"CLIENT_ERROR invalid or duplicate flag\r\n";
    pub const FLAGS: &[u8] = b"CLIENT_ERROR options flags are too long\r\n";
    pub const DECODE: &[u8] = b"CLIENT_ERROR error decoding key\r\n";
}

/// A refusal, and whether the client said that it does not want to hear of it.
pub(super) struct Refused(pub &'static [u8], pub Hush);

impl Refused {
    pub const fn loudly(line: &'static [u8]) -> Self {
        Self(line, Hush::Nothing)
    }
}

/// A command, and how many bytes of data follow its line, the CRLF not counted.
pub(super) struct Line {
    pub request: Result<Request, Refused>,
    pub data: Option<usize>,
}

/// Finds commands in a buffer that grows. Resumes where it stopped, so that a long line and a large value
/// that come in many pieces are walked once.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Where to go on searching for the end of the line.
    searched: usize,
    /// How many bytes the command in hand has, once its line is known.
    wants: usize,
    /// How much of a refused command's data is still to come, CRLF included.
    skip: usize,
}

impl Scanner {
    /// Looks for a whole command at the start of `input`. Between calls that answer [`Scan::Incomplete`] the
    /// input may move in memory and grow, but its bytes stay.
    ///
    /// # Errors
    /// See [`ProtocolError`]; the scanner is of no further use.
    pub fn scan(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, ProtocolError> {
        if self.skip > 0 {
            return self.skip(input);
        }
        if input.len() < self.wants {
            return Ok(Scan::Incomplete);
        }
        match input.first() {
            None => return Ok(Scan::Incomplete),
            Some(0x80) => return Err(ProtocolError::Binary),
            Some(_) => {}
        }
        let most = if long(input) { limits.line } else { MAX_LINE };
        let Some(lf) = memchr::memchr(b'\n', &input[self.searched..]).map(|lf| self.searched + lf) else {
            self.searched = input.len();
            return if input.len() < most { Ok(Scan::Incomplete) } else { Err(ProtocolError::LineTooLong) };
        };
        if lf >= most {
            return Err(ProtocolError::LineTooLong);
        }
        let line = input[..lf].strip_suffix(b"\r").unwrap_or(&input[..lf]);
        let Line { request, data } = line_of(line)?;
        let next = lf + 1;
        match (request, data) {
            (Ok(request), None) => {
                self.searched = 0;
                Ok(Scan::Request(next, request))
            }
            (Ok(request), Some(data)) if data <= limits.value => {
                let end = next + data;
                match input.get(end..end + 2) {
                    None => {
                        // The line is read again when all is there; it is short.
                        self.searched = lf;
                        self.wants = end + 2;
                        Ok(Scan::Incomplete)
                    }
                    Some(b"\r\n") => {
                        *self = Self::default();
                        Ok(Scan::Request(end + 2, request))
                    }
                    Some(_) => Err(ProtocolError::DataEnd),
                }
            }
            (refused, data) => {
                *self = Self { skip: data.map_or(0, |data| data + 2), ..Self::default() };
                let Refused(line, hush) = match refused {
                    Err(refused) => refused,
                    Ok(Request::One(one)) if one.note.hush == Hush::Everything => {
                        Refused(refusal::TOO_LARGE, Hush::Everything)
                    }
                    Ok(_) => Refused::loudly(refusal::TOO_LARGE),
                };
                Ok(Scan::Request(next, Request::Refused { line, hush }))
            }
        }
    }

    /// How many bytes the command in hand needs at least, as far as is known: room worth having.
    pub fn wants(&self, input: &[u8]) -> usize {
        self.wants.max(input.len() + 1)
    }

    /// Whether data of a refused command are still to come, whose begin is not in the input any more: another scanner
    /// would take them for commands.
    pub const fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    fn skip(&mut self, input: &[u8]) -> Result<Scan, ProtocolError> {
        let data = (self.skip - 2).min(input.len());
        if data > 0 {
            self.skip -= data;
            return Ok(Scan::Skipped(data));
        }
        match input.get(..2) {
            None => Ok(Scan::Incomplete),
            Some(b"\r\n") => {
                self.skip = 0;
                Ok(Scan::Skipped(2))
            }
            Some(_) => Err(ProtocolError::DataEnd),
        }
    }
}

/// Whether the line may be long: it has many keys.
fn long(input: &[u8]) -> bool {
    matches!(input, [b'g', b'e' | b'a', b't', ..])
}

/// What a line says.
fn line_of(line: &[u8]) -> Result<Line, ProtocolError> {
    let mut words = Words::from(line, 0);
    let Some((_, name)) = words.next_at() else {
        return Ok(Line { request: Err(Refused::loudly(refusal::UNKNOWN)), data: None });
    };
    let request = match name {
        b"get" | b"gets" => keys(line, words, Access::Read, Kind::Values),
        b"set" | b"add" | b"replace" | b"append" | b"prepend" => return store(line, words, false),
        b"cas" => return store(line, words, true),
        b"gat" | b"gats" => match words.next() {
            Some(time) if is_time(time) => keys(line, words, Access::Update, Kind::TouchedValues),
            Some(_) => Err(Refused::loudly(refusal::TIME)),
            None => Err(Refused::loudly(refusal::UNKNOWN)),
        },
        b"mg" | b"md" | b"ma" | b"me" => meta::command(name[1], line, words),
        b"ms" => return meta::store(words),
        b"mn" => Ok(Request::Local(Local::Noop)),
        b"delete" => delete(line, words),
        b"incr" | b"decr" => change(line, words, Kind::Number),
        b"touch" => change(line, words, Kind::Touched),
        b"flush_all" => flush(line, words),
        b"version" if words.next().is_none() => Ok(Request::Local(Local::Version)),
        b"verbosity" => verbosity(line, words),
        b"stats" => match words.next() {
            None => Ok(Request::Local(Local::Stats)),
            Some(b"settings" | b"items" | b"slabs" | b"sizes" | b"conns" | b"threads") => {
                Ok(Request::Local(Local::NoStats))
            }
            Some(_) => Err(Refused::loudly(refusal::STATS)),
        },
        b"quit" if words.next().is_none() => Ok(Request::Local(Local::Quit)),
        b"shutdown" => Err(Refused::loudly(refusal::SHUTDOWN)),
        b"cache_memlimit" | b"debugtime" | b"extstore" | b"lru" | b"lru_crawler" | b"misbehave"
        | b"refresh_certs" | b"slabs" | b"watch" => Err(Refused::loudly(refusal::ONE_SERVER)),
        _ if words.last().is_some_and(|word| word.starts_with(b"HTTP/")) => return Err(ProtocolError::Http),
        _ => Err(Refused::loudly(refusal::UNKNOWN)),
    };
    Ok(Line { request, data: None })
}

/// How many words after a command's name are looked at; one more than any command has.
const MAX_ARGS: usize = 6;

/// The words after a command's name.
struct Args<'a> {
    words: [&'a [u8]; MAX_ARGS],
    /// How many there were; perhaps more than are kept.
    len: usize,
    /// Where the first one starts.
    at: usize,
    hush: Hush,
    /// What does not go to a server: that the client wants no reply.
    cut: Range<usize>,
}

impl<'a> Args<'a> {
    /// Takes all words that are left. After `least` words `noreply` may be the last one.
    fn of(line: &[u8], mut rest: Words<'a>, least: usize) -> Self {
        let mut args = Self { words: [&[]; MAX_ARGS], len: 0, at: 0, hush: Hush::Nothing, cut: 0..0 };
        let mut from = rest.at();
        while let Some((at, word)) = rest.next_at() {
            if args.len == 0 {
                args.at = at;
            }
            if word == b"noreply" && args.len >= least && { rest }.next().is_none() {
                args.hush = Hush::Everything;
                args.cut = from..line.len();
                break;
            }
            if let Some(place) = args.words.get_mut(args.len) {
                *place = word;
            }
            args.len += 1;
            from = rest.at();
        }
        args
    }

    fn refused(&self, line: &'static [u8]) -> Result<Request, Refused> {
        Err(Refused(line, self.hush))
    }

    /// An update of the first word's key.
    fn update(self, kind: Kind) -> Result<Request, Refused> {
        let key = self.words[0];
        if !is_key(key) {
            return self.refused(refusal::FORMAT);
        }
        let (note, key) = (Note { kind, hush: self.hush }, self.at..self.at + key.len());
        Ok(Request::One(One { key, binary: false, access: Access::Update, note, cut: self.cut }))
    }
}

/// The keys of `get` and the like.
fn keys(line: &[u8], words: Words<'_>, access: Access, kind: Kind) -> Result<Request, Refused> {
    let note = Note { kind, hush: Hush::Nothing };
    let head = words.at();
    let mut rest = words;
    let Some((start, first)) = rest.next_at() else { return Err(Refused::loudly(refusal::UNKNOWN)) };
    if !is_key(first) {
        return Err(Refused::loudly(refusal::FORMAT));
    }
    let mut end = rest.at();
    if end == line.len() {
        let key = start..end;
        return Ok(Request::One(One { key, binary: false, access, note, cut: 0..0 }));
    }
    while let Some(key) = rest.next() {
        if !is_key(key) {
            return Err(Refused::loudly(refusal::FORMAT));
        }
        end = rest.at();
    }
    Ok(Request::Many(Keys { head, end, access, note }))
}

/// `<key> <flags> <exptime> <bytes> [<cas unique>] [noreply]`. The data that follow a refused line are thrown
/// away with it; memcached would take them for commands.
fn store(line: &[u8], words: Words<'_>, cas: bool) -> Result<Line, ProtocolError> {
    let usual = if cas { 5 } else { 4 };
    let args = Args::of(line, words, usual);
    let [_, flags, time, bytes, unique, _] = args.words;
    let data = number(bytes, MAX_DATA).ok_or(ProtocolError::Length)? as usize;
    let sound = args.len == usual
        && number(flags, u32::MAX.into()).is_some()
        && is_time(time)
        && (!cas || number(unique, u64::MAX).is_some());
    let request = if sound { args.update(Kind::Stored) } else { args.refused(refusal::FORMAT) };
    Ok(Line { request, data: Some(data) })
}

/// `delete <key> [0] [noreply]`: the 0 was a time once.
fn delete(line: &[u8], words: Words<'_>) -> Result<Request, Refused> {
    let args = Args::of(line, words, 1);
    match args.len {
        0 => args.refused(refusal::UNKNOWN),
        1 => args.update(Kind::Deleted),
        2 if args.words[1] == b"0" => args.update(Kind::Deleted),
        _ => args.refused(refusal::DELETE),
    }
}

/// `incr <key> <delta> [noreply]`, `decr` and `touch <key> <exptime> [noreply]`.
fn change(line: &[u8], words: Words<'_>, kind: Kind) -> Result<Request, Refused> {
    let args = Args::of(line, words, 2);
    let argument = args.words[1];
    match kind {
        _ if args.len != 2 => args.refused(refusal::UNKNOWN),
        Kind::Number if number(argument, u64::MAX).is_none() => args.refused(refusal::DELTA),
        Kind::Touched if !is_time(argument) => args.refused(refusal::TIME),
        _ => args.update(kind),
    }
}

/// `flush_all [exptime] [noreply]`.
fn flush(line: &[u8], words: Words<'_>) -> Result<Request, Refused> {
    let args = Args::of(line, words, 0);
    match args.len {
        1 if !is_time(args.words[0]) => args.refused(refusal::TIME),
        0 | 1 => {
            let note = Note { kind: Kind::Ok, hush: args.hush };
            Ok(Request::Everywhere { note, cut: args.cut })
        }
        _ => args.refused(refusal::UNKNOWN),
    }
}

/// `verbosity <level> [noreply]`.
fn verbosity(line: &[u8], words: Words<'_>) -> Result<Request, Refused> {
    let args = Args::of(line, words, 0);
    match (args.len, args.hush) {
        (1 | 2, _) | (0, Hush::Everything) => Ok(Request::Local(Local::Verbosity(args.hush))),
        _ => args.refused(refusal::UNKNOWN),
    }
}
