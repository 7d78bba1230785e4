//! Bodies of `multipart/form-data` (RFC 7578): the content of one named part.
//!
//! Readers of these bodies disagree on much, so whatever leaves room for it is refused: lines that end in LF
//! alone, text before the first boundary, a boundary that goes on, quotation marks behind backslashes.

use alloc::vec::Vec;

use super::{
    Step,
    parameters::{Parameters, split},
    push,
};
use crate::http::{Refusal, is_token};

/// The longest boundary that RFC 2046 (5.1.1) allows.
const MAX_BOUNDARY: usize = 70;
/// The longest line in a part's head, in bytes.
const MAX_LINE: usize = 1024;
/// The most lines in a part's head.
const MAX_LINES: u8 = 16;

/// Follows the parts through any cuts, until the one of a name is found.
#[derive(Clone, Debug)]
pub(super) struct MultipartScan {
    /// LF, two hyphens and the boundary; a CR comes before.
    delimiter: Vec<u8>,
    /// Whether everything is read, to see that the name comes only once.
    only: bool,
    seen: bool,
    state: State,
    /// How much of the delimiter has been matched; what it stands for has not been passed on.
    matched: usize,
    /// Whether a CR came before that, or comes last: it belongs to a delimiter, or to the content.
    cr: bool,
    /// Whether the LF that was matched is none: a line begins because a head has just ended, or the body begun.
    no_lf: bool,
    part: Part,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the first boundary.
    Start,
    /// Behind a boundary.
    Boundary,
    /// Behind a boundary and a CR.
    BoundaryCr,
    /// Behind a boundary and a hyphen.
    BoundaryHyphen,
    /// In the head of a part.
    Head,
    /// In the content of a part.
    Content,
    /// Behind the last boundary.
    End,
}

/// What is known of the part in hand.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    lines: u8,
    /// Whether it has a `Content-Disposition`.
    named: bool,
    /// Whether it is the one that is looked for.
    is_key: bool,
    /// Whether it has a file name.
    is_file: bool,
    /// Whether its content must be decoded.
    encoded: bool,
}

impl MultipartScan {
    /// A scan of a body with this boundary; `None` if it cannot be one.
    pub fn new(boundary: &[u8], only: bool) -> Option<Self> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(byte);
        if boundary.is_empty() || boundary.len() > MAX_BOUNDARY || !boundary.iter().all(allowed) {
            return None;
        }
        Some(Self {
            delimiter: [b"\n--", boundary].concat(),
            only,
            seen: false,
            state: State::Start,
            matched: 1,
            cr: true,
            no_lf: true,
            part: Part::default(),
            line: Vec::new(),
        })
    }

    /// Reads on. The content goes to `key`, which stays empty if there is none.
    pub fn feed(&mut self, name: &[u8], data: &[u8], key: &mut Vec<u8>) -> Result<Step, Refusal> {
        let mut at = 0;
        while at < data.len() {
            if self.state == State::Content && self.matched == 0 {
                let len = memchr::memchr(b'\n', &data[at..]).unwrap_or(data.len() - at);
                if len > 0 {
                    self.content(&data[at..at + len], key)?;
                    at += len;
                }
                if at < data.len() {
                    (self.matched, self.no_lf) = (1, false);
                    at += 1;
                }
                continue;
            }
            let byte = data[at];
            match self.state {
                State::Start if byte != self.delimiter[self.matched] => return Err(Refusal::MultipartBody),
                State::Content if byte != self.delimiter[self.matched] => {
                    self.mismatch(key)?;
                    continue; // the byte is looked at again, as content
                }
                State::Start | State::Content => {
                    self.matched += 1;
                    if self.matched == self.delimiter.len() {
                        if !self.cr {
                            return Err(Refusal::MultipartBody);
                        }
                        (self.matched, self.cr) = (0, false);
                        self.state = State::Boundary;
                        if self.part.is_key && !key.is_empty() && !self.only {
                            return Ok(Step::Done);
                        }
                        self.part = Part::default();
                    }
                }
                State::Boundary => {
                    self.state = match byte {
                        b'\r' => State::BoundaryCr,
                        b'-' => State::BoundaryHyphen,
                        _ => return Err(Refusal::MultipartBody),
                    }
                }
                State::BoundaryCr if byte == b'\n' => self.state = State::Head,
                State::BoundaryHyphen if byte == b'-' => self.state = State::End,
                State::BoundaryCr | State::BoundaryHyphen => return Err(Refusal::MultipartBody),
                State::Head => self.head(name, byte)?,
                State::End if b"\r\n".contains(&byte) => {}
                State::End => return Err(Refusal::MultipartBody),
            }
            at += 1;
        }
        Ok(Step::More)
    }

    /// The body is over.
    pub fn finish(&self) -> Result<(), Refusal> {
        if self.state == State::End { Ok(()) } else { Err(Refusal::MultipartBody) }
    }

    /// Content without LF, and without a delimiter.
    fn content(&mut self, bytes: &[u8], key: &mut Vec<u8>) -> Result<(), Refusal> {
        let held = core::mem::replace(&mut self.cr, bytes.ends_with(b"\r"));
        if !self.part.is_key {
            return Ok(());
        }
        if held {
            push(key, b"\r")?;
        }
        push(key, &bytes[..bytes.len() - usize::from(self.cr)])
    }

    /// What looked like a delimiter is content.
    fn mismatch(&mut self, key: &mut Vec<u8>) -> Result<(), Refusal> {
        let held = core::mem::take(&mut self.cr);
        let matched = core::mem::take(&mut self.matched);
        if self.part.is_key {
            if held {
                push(key, b"\r")?;
            }
            push(key, &self.delimiter[usize::from(self.no_lf)..matched])?;
        }
        Ok(())
    }

    /// A byte of a part's head.
    fn head(&mut self, name: &[u8], byte: u8) -> Result<(), Refusal> {
        if byte != b'\n' {
            if self.line.len() == MAX_LINE {
                return Err(Refusal::MultipartBody);
            }
            self.line.push(byte);
            return Ok(());
        }
        let line = core::mem::take(&mut self.line);
        let read = self.line_ended(name, &line);
        self.line = line;
        self.line.clear();
        read
    }

    fn line_ended(&mut self, name: &[u8], line: &[u8]) -> Result<(), Refusal> {
        let line = line.strip_suffix(b"\r").ok_or(Refusal::MultipartBody)?;
        if line.is_empty() {
            if !self.part.named {
                return Err(Refusal::MultipartBody);
            }
            if self.part.is_key {
                if self.part.is_file || self.part.encoded {
                    return Err(Refusal::MultipartBody);
                }
                if core::mem::replace(&mut self.seen, true) {
                    return Err(Refusal::RepeatedKey);
                }
            }
            // A boundary right here would be one for some readers only, so it is looked for.
            (self.state, self.matched, self.cr, self.no_lf) = (State::Content, 1, false, true);
            return Ok(());
        }
        self.part.lines += 1;
        let colon = memchr::memchr(b':', line).ok_or(Refusal::MultipartBody)?;
        let (field, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let controls = line.iter().any(|&byte| byte < b' ' && byte != b'\t');
        if field.is_empty() || !field.iter().copied().all(is_token) || controls {
            return Err(Refusal::MultipartBody);
        }
        if self.part.lines > MAX_LINES {
            return Err(Refusal::MultipartBody);
        }
        if field.eq_ignore_ascii_case(b"content-disposition") {
            if core::mem::replace(&mut self.part.named, true) {
                return Err(Refusal::MultipartBody);
            }
            self.disposition(name, value)?;
        } else if field.eq_ignore_ascii_case(b"content-transfer-encoding") {
            let plain = [&b"7bit"[..], b"8bit", b"binary"];
            self.part.encoded |= !plain.iter().any(|plain| value.eq_ignore_ascii_case(plain));
        }
        Ok(())
    }

    fn disposition(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let (kind, parameters) = split(value);
        if !kind.eq_ignore_ascii_case(b"form-data") {
            return Err(Refusal::MultipartBody);
        }
        let mut named = false;
        for parameter in Parameters(parameters) {
            let (field, value) = parameter.ok_or(Refusal::MultipartBody)?;
            if field.eq_ignore_ascii_case(b"name") {
                if core::mem::replace(&mut named, true) || value.contains(&b'\\') {
                    return Err(Refusal::MultipartBody);
                }
                self.part.is_key = value == name;
            } else if field.eq_ignore_ascii_case(b"name*") {
                return Err(Refusal::MultipartBody);
            } else if field.eq_ignore_ascii_case(b"filename") || field.eq_ignore_ascii_case(b"filename*") {
                self.part.is_file = true;
            }
        }
        if named { Ok(()) } else { Err(Refusal::MultipartBody) }
    }
}
