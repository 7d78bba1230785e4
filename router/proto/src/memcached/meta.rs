//! Meta commands: two letters, a key, and flags.

use core::ops::Range;

use super::{
    Hush, Kind, Note,
    key::{MAX_KEY, decode, is_key},
    line::{Words, number},
    request::{Line, MAX_DATA, One, ProtocolError, Refused, Request, refusal},
};
use crate::racs::Access;

/// The most flags that memcached takes with a command; after more it would not wait for the data of `ms`.
const MAX_FLAGS: usize = 16;

/// Flags of `mg` that change nothing. With any other, known or not, it is an update.
///
/// (The first read of a stale item also wins the right to renew it; where it is repeated elsewhere nobody
/// may hear of that. The item is as stale as before, and the next writer renews it.)
const READING: &[u8] = b"bcCfhklLOPqstuv";

/// `mg`, `md`, `ma` and `me`, by their second letter; `words` are what follows.
pub(super) fn command(letter: u8, line: &[u8], mut words: Words<'_>) -> Result<Request, Refused> {
    let Some((at, key)) = words.next_at() else { return Err(Refused::loudly(refusal::FORMAT)) };
    let flags = Flags::of(words)?;
    let kind = match letter {
        b'g' => Kind::MetaGet,
        b'd' => Kind::MetaDelete,
        b'a' => Kind::MetaArithmetic,
        _ => Kind::MetaDebug,
    };
    // Versions of memcached differ in which flags of `me` they look at.
    if kind == Kind::MetaDebug && !matches!(line[at + key.len()..].trim_ascii(), b"" | b"b") {
        return Err(Refused::loudly(refusal::FORMAT));
    }
    let access = match kind {
        Kind::MetaGet if flags.only(READING) => Access::Read,
        Kind::MetaDebug => Access::Read,
        _ => Access::Update,
    };
    one(at, key, flags, access, kind)
}

/// `ms <key> <datalen> <flags>*`.
pub(super) fn store(mut words: Words<'_>) -> Result<Line, ProtocolError> {
    let Some((at, key)) = words.next_at() else { return Err(ProtocolError::Length) };
    let bytes = words.next().ok_or(ProtocolError::Length)?;
    let data = number(bytes, MAX_DATA).ok_or(ProtocolError::Length)? as usize;
    let request = Flags::of(words).and_then(|flags| one(at, key, flags, Access::Update, Kind::MetaSet));
    Ok(Line { request, data: Some(data) })
}

fn one(at: usize, key: &[u8], flags: Flags, access: Access, kind: Kind) -> Result<Request, Refused> {
    if !is_key(key) {
        return Err(Refused::loudly(refusal::FORMAT));
    }
    let binary = flags.has(b'b');
    if binary && decode(key, &mut [0; MAX_KEY]).is_none() {
        return Err(Refused::loudly(refusal::DECODE));
    }
    let hush = if flags.has(b'q') { Hush::Nominal } else { Hush::Nothing };
    let note = Note { kind, hush };
    Ok(Request::One(One { key: at..at + key.len(), binary, access, note, cut: flags.quiet }))
}

/// The flags of one command.
struct Flags {
    /// One bit for each letter that was there.
    seen: u128,
    /// Where `q` is, with the space before it.
    quiet: Range<usize>,
}

impl Flags {
    /// All words that are left. Each is a letter, and none is there twice; what follows the letter is the
    /// server's business, except where the router goes by it.
    fn of(mut words: Words<'_>) -> Result<Self, Refused> {
        let mut flags = Self { seen: 0, quiet: 0..0 };
        let mut count = 0;
        while let Some((at, word)) = words.next_at() {
            let (letter, token) = (word[0], &word[1..]);
            let sound = letter.is_ascii_alphabetic()
                && !flags.has(letter)
                && (token.is_empty() || (!matches!(letter, b'b' | b'q') && is_key(token)));
            if !sound {
                return Err(Refused::loudly(refusal::FLAG));
            }
            count += 1;
            if count > MAX_FLAGS {
                return Err(Refused::loudly(refusal::FLAGS));
            }
            flags.seen |= 1 << letter;
            if letter == b'q' {
                flags.quiet = at - 1..at + 1;
            }
        }
        Ok(flags)
    }

    fn has(&self, letter: u8) -> bool {
        self.seen >> letter & 1 == 1
    }

    /// Whether there are none but these.
    fn only(&self, letters: &[u8]) -> bool {
        letters.iter().fold(self.seen, |rest, letter| rest & !(1 << letter)) == 0
    }
}
