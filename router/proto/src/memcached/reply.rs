//! Replies as servers send them: only their ends are sought, their bytes pass as they are.

use super::{
    Kind, is_error,
    line::{Words, number},
};

/// The server does not speak memcached's protocol, or not in answer to the command that it should answer. The
/// connection ends: which reply belongs to which command is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The line is none of those that the command may have for an answer.
    #[error("a reply does not fit its command")]
    Kind,
    /// A value is not of a key that the command asked for, or not in their order.
    #[error("a reply has a value that was not asked for")]
    Key,
    /// A length is not a number, or beyond every limit.
    #[error("a reply has a malformed length")]
    Length,
    /// A line is too long, does not end in CRLF, or data are not followed by it.
    #[error("a reply does not end in CRLF")]
    End,
}

/// The longest value that a server may send: the most that memcached can be told to store.
const MAX_VALUE: u64 = 1 << 30;
/// The longest line. memcached's own are shorter than 1,024 bytes.
const MAX_LINE: usize = 2048;

/// Finds the end of one reply in a buffer that grows.
#[derive(Clone, Debug, Default)]
pub struct ReplyScanner {
    /// Offset of the next line from the reply's first byte. May lie beyond the input: data are skipped at
    /// once.
    at: usize,
    /// Where to go on searching for the end of the line in hand.
    searched: usize,
    /// Offset of the key in the command that the next value may have; 0 before the first value.
    key_at: usize,
}

impl ReplyScanner {
    /// Looks for a whole reply to `command`, which is of this kind, at the start of `input` and returns its
    /// length; `None` while bytes are missing. Until then `input` may move in memory and grow, but its bytes
    /// stay. Afterwards the scanner is ready for the next reply.
    ///
    /// # Errors
    /// See [`ReplyError`]; the scanner is of no further use.
    pub fn scan(&mut self, kind: Kind, command: &[u8], input: &[u8]) -> Result<Option<usize>, ReplyError> {
        loop {
            let Some(lf) = self.line_end(input)? else { return Ok(None) };
            let line = &input[self.at..lf - 1];
            let next = lf + 1;
            let data = match kind {
                Kind::Values | Kind::TouchedValues => match line.strip_prefix(b"VALUE ") {
                    Some(value) => Some(self.value(command, value)?),
                    None if line == b"END" => None,
                    // An error takes the place of the whole reply, never of its rest.
                    None if self.at == 0 => error(kind, line)?,
                    None => return Err(ReplyError::Kind),
                },
                _ => single(kind, line)?,
            };
            let Some(data) = data else {
                *self = Self::default();
                return Ok(Some(next));
            };
            let end = next + data;
            match input.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some(_) => return Err(ReplyError::End),
                None => {
                    // The line is read again next time; it is short. So is the look for its key.
                    self.searched = lf;
                    return Ok(None);
                }
            }
            self.at = end + 2;
            self.searched = self.at;
            if matches!(kind, Kind::Values | Kind::TouchedValues) {
                self.pass(command);
            } else {
                let len = self.at;
                *self = Self::default();
                return Ok(Some(len));
            }
        }
    }

    /// Reads `<key> <flags> <bytes> [<cas unique>]` and returns the length of the data.
    fn value(&mut self, command: &[u8], value: &[u8]) -> Result<usize, ReplyError> {
        if self.key_at == 0 {
            self.key_at = keys_at(command);
        }
        let mut words = value.split(|&byte| byte == b' ');
        let key = words.next().unwrap_or_default();
        // Values come in the order of their keys, without those that are not there.
        let mut keys = Words::from(command.trim_ascii_end(), self.key_at);
        loop {
            match keys.next_at() {
                Some((at, asked)) if asked == key => {
                    self.key_at = at;
                    break;
                }
                Some(_) => {}
                None => return Err(ReplyError::Key),
            }
        }
        let (flags, bytes, unique) = (words.next(), words.next(), words.next());
        let sound = flags.is_some_and(|flags| number(flags, u32::MAX.into()).is_some())
            && unique.is_none_or(|unique| number(unique, u64::MAX).is_some())
            && words.next().is_none();
        let bytes = bytes.and_then(|bytes| number(bytes, MAX_VALUE)).filter(|_| sound);
        Ok(bytes.ok_or(ReplyError::Length)? as usize)
    }

    /// The key at `key_at` has had its value.
    fn pass(&mut self, command: &[u8]) {
        let mut keys = Words::from(command, self.key_at);
        keys.next();
        self.key_at = keys.at();
    }

    /// The offset of the LF that ends the line in hand.
    fn line_end(&mut self, input: &[u8]) -> Result<Option<usize>, ReplyError> {
        let from = self.searched.max(self.at);
        let rest = input.get(from..).unwrap_or_default();
        match memchr::memchr(b'\n', rest) {
            Some(lf)
                if from + lf > self.at && input[from + lf - 1] == b'\r' && from + lf - self.at < MAX_LINE =>
            {
                Ok(Some(from + lf))
            }
            Some(_) => Err(ReplyError::End),
            None if input.len() >= self.at + MAX_LINE => Err(ReplyError::End),
            None => {
                self.searched = input.len();
                Ok(None)
            }
        }
    }
}

/// Where the keys of a command over keys start: behind its name, and behind the time of `gat` and `gats`.
fn keys_at(command: &[u8]) -> usize {
    let mut words = Words::from(command, 0);
    if words.next().is_some_and(|name| name.starts_with(b"ga")) {
        words.next();
    }
    words.at()
}

/// A reply of one line, perhaps with data; returns their length.
fn single(kind: Kind, line: &[u8]) -> Result<Option<usize>, ReplyError> {
    let code = match line {
        [_, _] => line,
        [_, _, b' ', ..] => &line[..2],
        _ => &[],
    };
    let fits = match kind {
        Kind::Values | Kind::TouchedValues => false,
        Kind::Stored => matches!(line, b"STORED" | b"NOT_STORED" | b"EXISTS" | b"NOT_FOUND"),
        Kind::Deleted => matches!(line, b"DELETED" | b"NOT_FOUND"),
        Kind::Touched => matches!(line, b"TOUCHED" | b"NOT_FOUND"),
        // A number that got shorter may have spaces behind it.
        Kind::Number => line == b"NOT_FOUND" || number(line.trim_ascii_end(), u64::MAX).is_some(),
        Kind::Ok => line == b"OK",
        Kind::MetaGet => matches!(code, b"HD" | b"EN"),
        Kind::MetaSet => matches!(code, b"HD" | b"NS" | b"EX" | b"NF"),
        Kind::MetaDelete => matches!(code, b"HD" | b"NF" | b"EX" | b"NS"),
        Kind::MetaArithmetic => matches!(code, b"HD" | b"NF" | b"NS" | b"EX"),
        Kind::MetaDebug => matches!(code, b"ME" | b"EN"),
    };
    if fits {
        return Ok(None);
    }
    if code == b"VA" && matches!(kind, Kind::MetaGet | Kind::MetaArithmetic) {
        let bytes = line.get(3..).and_then(|rest| rest.split(|&byte| byte == b' ').next());
        let bytes = bytes.and_then(|bytes| number(bytes, MAX_VALUE)).ok_or(ReplyError::Length)?;
        return Ok(Some(bytes as usize));
    }
    error(kind, line)
}

/// One of memcached's errors, where the command can have it for an answer.
fn error(kind: Kind, line: &[u8]) -> Result<Option<usize>, ReplyError> {
    // What the router passes on is well formed, so a server that knows the command calls it no error of the
    // client's; a server that does so may take the data for commands, and answer those too.
    let known = !matches!(
        kind,
        Kind::TouchedValues
            | Kind::Touched
            | Kind::MetaGet
            | Kind::MetaSet
            | Kind::MetaDelete
            | Kind::MetaArithmetic
            | Kind::MetaDebug
    );
    let doubtful =
        (known && line.starts_with(b"ERROR")) || (kind == Kind::Stored && line.starts_with(b"CLIENT_ERROR"));
    if is_error(line) && !doubtful { Ok(None) } else { Err(ReplyError::Kind) }
}
