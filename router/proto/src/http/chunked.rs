//! The chunked body (RFC 9112, 7.1): finds and validates its end as the bytes pass, without copying them.

use super::{
    Refusal,
    fields::{is_token, same_name},
};

/// The longest extension of one chunk, in bytes; nobody uses them, and long ones only make parsers work.
const MAX_EXTENSION: u16 = 128;
/// How many bytes of extensions a body may have beyond 16 a chunk and what its data outweighs.
const MAX_EXCESS: u64 = 4096;
/// The longest trailer section, in bytes.
const MAX_TRAILER: u16 = 4096;
/// The longest name of a trailer field, in bytes.
const MAX_NAME: usize = 64;

/// Follows a chunked body through any cuts. Bytes that it has passed may go on as they are.
#[derive(Clone, Debug)]
pub struct ChunkedScanner {
    state: State,
    /// Size of the chunk in hand: its bytes still to come once its data has begun.
    left: u64,
    /// Bytes of the extension in hand.
    extension: u16,
    /// Bytes of extensions that no data has made up for.
    excess: u64,
    trailer: u16,
    name: [u8; MAX_NAME],
    name_len: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Within a size, after this many digits.
    Size {
        digits: u8,
    },
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Line,
    Name,
    Value,
    ValueLf,
    LastLf,
    Done,
}

/// How far a scan came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Bytes of the input that belong to the body.
    pub len: usize,
    /// Whether the body ends with them.
    pub done: bool,
}

impl Default for ChunkedScanner {
    fn default() -> Self {
        let state = State::Size { digits: 0 };
        Self { state, left: 0, extension: 0, excess: 0, trailer: 0, name: [0; MAX_NAME], name_len: 0 }
    }
}

impl ChunkedScanner {
    /// Passes over as much of `input`, which continues where the last call ended, as belongs to the body.
    ///
    /// # Errors
    /// The body is malformed. Nothing of `input` may go on.
    pub fn advance(&mut self, input: &[u8]) -> Result<Advance, Refusal> {
        self.advance_data(input, |_| {})
    }

    /// As [`ChunkedScanner::advance`]; gives every stretch of data in `input` to `data`.
    ///
    /// # Errors
    /// As there, when some data may have been given.
    pub fn advance_data(&mut self, input: &[u8], mut data: impl FnMut(&[u8])) -> Result<Advance, Refusal> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let skipped = self.left.min((input.len() - at) as u64);
                self.left -= skipped;
                data(&input[at..at + skipped as usize]);
                at += skipped as usize;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(input[at])?;
            at += 1;
        }
        Ok(Advance { len: at, done: self.state == State::Done })
    }

    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match self.state {
            State::Size { digits } => match (byte as char).to_digit(16) {
                // 15 digits are below 2^60, far beyond any body, and cannot overflow.
                Some(digit) if digits < 15 => {
                    self.left = self.left << 4 | u64::from(digit);
                    Ok(State::Size { digits: digits + 1 })
                }
                None if digits > 0 && byte == b'\r' => Ok(State::SizeLf),
                None if digits > 0 && byte == b';' => {
                    self.extension = 0;
                    Ok(State::Extension)
                }
                _ => Err(Refusal::ChunkSize),
            },
            State::Extension => {
                self.extension += 1;
                match byte {
                    b'\r' => {
                        let weight = self.excess + u64::from(self.extension);
                        self.excess = weight.saturating_sub(16 + self.left);
                        if self.excess > MAX_EXCESS {
                            Err(Refusal::ChunkExtension)
                        } else {
                            Ok(State::SizeLf)
                        }
                    }
                    _ if self.extension > MAX_EXTENSION => Err(Refusal::ChunkExtension),
                    b'\t' | b' '..=b'~' | 0x80.. => Ok(State::Extension),
                    _ => Err(Refusal::ChunkExtension),
                }
            }
            State::SizeLf if byte == b'\n' => Ok(if self.left == 0 { State::Line } else { State::Data }),
            State::SizeLf => Err(Refusal::ChunkSize),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { digits: 0 }),
            State::DataCr | State::DataLf => Err(Refusal::ChunkEnd),
            State::LastLf if byte == b'\n' => Ok(State::Done),
            State::LastLf => Err(Refusal::Trailer),
            State::Line | State::Name | State::Value | State::ValueLf => self.trailer_step(byte),
            State::Data | State::Done => unreachable!("advance does not step here"),
        }
    }

    fn trailer_step(&mut self, byte: u8) -> Result<State, Refusal> {
        self.trailer += 1;
        if self.trailer > MAX_TRAILER {
            return Err(Refusal::Trailer);
        }
        match (self.state, byte) {
            (State::Line, b'\r') => Ok(State::LastLf),
            (State::Line, _) if is_token(byte) => {
                self.name[0] = byte;
                self.name_len = 1;
                Ok(State::Name)
            }
            (State::Name, b':') => {
                let name = &self.name[..self.name_len as usize];
                // A server that adds trailers to the fields would be told a second framing, or another
                // address.
                let forbidden =
                    [&b"content-length"[..], b"transfer-encoding", b"host", b"connection", b"trailer"];
                if forbidden.iter().any(|forbidden| same_name(name, forbidden)) {
                    return Err(Refusal::Trailer);
                }
                Ok(State::Value)
            }
            (State::Name, _) if is_token(byte) && (self.name_len as usize) < MAX_NAME => {
                self.name[self.name_len as usize] = byte;
                self.name_len += 1;
                Ok(State::Name)
            }
            (State::Value, b'\r') => Ok(State::ValueLf),
            (State::Value, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::Value),
            (State::ValueLf, b'\n') => Ok(State::Line),
            _ => Err(Refusal::Trailer),
        }
    }
}
