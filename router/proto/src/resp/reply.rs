//! Replies as servers send them: only their ends are sought, their bytes pass as they are.

use super::short_bulk;

/// The server does not speak RESP. The connection ends: which reply belongs to which command is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// A value starts with a byte that starts none, or one that is sent unasked.
    #[error("a reply starts with {0:?}")]
    Type(char),
    /// A length is not a number, or beyond every limit.
    #[error("a reply has a malformed length")]
    Length,
    /// A line does not end in CRLF, or a bulk is not followed by one.
    #[error("a reply does not end in CRLF")]
    End,
}

/// The longest bulk that a server may send: Redis' own limit.
const MAX_BULK: u64 = 512 << 20;
/// The most values that one reply may have, nested ones included.
const MAX_VALUES: u64 = 1 << 32;

/// Finds the end of one reply in a buffer that grows. Nested arrays are counted, not descended into, so depth
/// costs nothing; the types of RESP3 are passed over like their relatives.
#[derive(Clone, Debug)]
pub struct ReplyScanner {
    /// Offset of the next value from the reply's first byte. May lie beyond the input: a bulk is skipped at
    /// once.
    at: usize,
    /// Where to go on searching for the end of the line in hand.
    searched: usize,
    /// Values still to come.
    open: u64,
}

impl Default for ReplyScanner {
    fn default() -> Self {
        Self { at: 0, searched: 0, open: 1 }
    }
}

impl ReplyScanner {
    /// Looks for a whole reply at the start of `input` and returns its length; `None` while bytes are
    /// missing. Until then `input` may move in memory and grow, but its bytes stay. Afterwards the scanner is
    /// ready for the next reply.
    ///
    /// # Errors
    /// See [`ReplyError`]; the scanner is of no further use.
    pub fn scan(&mut self, input: &[u8]) -> Result<Option<usize>, ReplyError> {
        self.scan_many(input, 1)
    }

    /// The same for so many replies in a row, taken as one.
    ///
    /// # Errors
    /// See [`ReplyError`]; the scanner is of no further use.
    pub fn scan_many(&mut self, input: &[u8], replies: u32) -> Result<Option<usize>, ReplyError> {
        if self.at == 0 {
            self.open = replies.into();
        }
        self.walk(input, false)
    }

    /// Looks for a whole reply, or a message that was sent unasked, at the start of `input`.
    ///
    /// # Errors
    /// See [`ReplyError`]; the scanner is of no further use.
    pub fn scan_pushed(&mut self, input: &[u8]) -> Result<Option<usize>, ReplyError> {
        self.walk(input, true)
    }

    fn walk(&mut self, input: &[u8], pushed: bool) -> Result<Option<usize>, ReplyError> {
        while self.open > 0 {
            if let Some(next) = short_value(input, self.at) {
                (self.at, self.searched) = (next, next);
                self.open -= 1;
                continue;
            }
            let Some(&kind) = input.get(self.at) else { return Ok(None) };
            let known = matches!(
                kind,
                b'+' | b'-'
                    | b':'
                    | b'$'
                    | b'*'
                    | b','
                    | b'#'
                    | b'('
                    | b'_'
                    | b'='
                    | b'!'
                    | b'~'
                    | b'%'
                    | b'|'
            ) || pushed && kind == b'>' && self.at == 0;
            if !known {
                return Err(ReplyError::Type(kind.into()));
            }
            let Some(lf) = self.line_end(input)? else { return Ok(None) };
            let line = &input[self.at + 1..lf - 1];
            let next = lf + 1;
            self.open -= 1;
            match kind {
                b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => self.at = next,
                b'$' | b'=' | b'!' => match length(line)? {
                    None => self.at = next,
                    Some(len) if len <= MAX_BULK => {
                        let end = next + len as usize;
                        match input.get(end..end + 2) {
                            Some(b"\r\n") => self.at = end + 2,
                            Some(_) => return Err(ReplyError::End),
                            None => {
                                // The header line is read again next time; it is short.
                                self.open += 1;
                                self.searched = lf;
                                return Ok(None);
                            }
                        }
                    }
                    Some(_) => return Err(ReplyError::Length),
                },
                b'*' | b'~' | b'>' => self.values(length(line)?.unwrap_or(0), next)?,
                b'%' => self.values(pairs(line)?, next)?,
                // An attribute precedes the value that it describes.
                b'|' => self.values(pairs(line)? + 1, next)?,
                _ => unreachable!("the kind was checked"),
            }
            self.searched = self.at;
        }
        let len = self.at;
        *self = Self::default();
        Ok(Some(len))
    }

    fn values(&mut self, count: u64, next: usize) -> Result<(), ReplyError> {
        self.open += count;
        if self.open > MAX_VALUES {
            return Err(ReplyError::Length);
        }
        self.at = next;
        Ok(())
    }

    /// The offset of the LF that ends the line in hand.
    fn line_end(&mut self, input: &[u8]) -> Result<Option<usize>, ReplyError> {
        let from = self.searched.max(self.at);
        let rest = &input[from..];
        // Most lines are lengths, of a few bytes.
        let near = rest[..rest.len().min(8)].iter().position(|&byte| byte == b'\n');
        match near.or_else(|| memchr::memchr(b'\n', rest)) {
            Some(lf) if from + lf > self.at && input[from + lf - 1] == b'\r' => Ok(Some(from + lf)),
            Some(_) => Err(ReplyError::End),
            None => {
                self.searched = input.len();
                Ok(None)
            }
        }
    }
}

/// Where the value at `at` ends that a read of a key mostly gets: a short bulk, or none.
#[inline]
pub(super) fn short_value(input: &[u8], at: usize) -> Option<usize> {
    match short_bulk(input, at) {
        Some((_, end)) => Some(end + 2),
        None => input.get(at..)?.starts_with(b"$-1\r\n").then_some(at + 5),
    }
}

fn pairs(line: &[u8]) -> Result<u64, ReplyError> {
    length(line)?.ok_or(ReplyError::Length).map(|count| count * 2)
}

/// A length in digits; `None` for -1, which stands for "nothing".
pub(super) fn length(line: &[u8]) -> Result<Option<u64>, ReplyError> {
    if line == b"-1" {
        return Ok(None);
    }
    if line.is_empty() || line.len() > 10 || !line.iter().all(u8::is_ascii_digit) {
        return Err(ReplyError::Length);
    }
    Ok(Some(line.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))))
}
