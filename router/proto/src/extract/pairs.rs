//! `name=value&name=value`: queries, and bodies of `application/x-www-form-urlencoded`.

use alloc::vec::Vec;

use super::{Step, push};
use crate::http::Refusal;

/// Follows the pairs through any cuts, until the one of a name is found.
///
/// Names and values are percent-decoded. Some servers take a `;` for a separator, too: it is refused where that
/// would make another key.
#[derive(Clone, Debug)]
pub(super) struct PairScan {
    /// Whether a `+` means a space, as in forms. In a query it does for some servers only, so there it is
    /// refused in the key.
    plus_is_space: bool,
    /// Whether everything is read, to see that the name comes only once.
    only: bool,
    seen: bool,
    state: State,
    percent: Percent,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Within a name, of which so much is the name that is looked for; `None` if it is another one.
    Name { same: Option<usize>, after_semicolon: bool },
    /// Within the value of the name.
    Key,
    /// Within another value.
    Other,
}

/// Where in `%41`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Percent {
    No,
    First,
    Second(u8),
}

const START: State = State::Name { same: Some(0), after_semicolon: false };

impl PairScan {
    pub const fn query() -> Self {
        Self { plus_is_space: false, only: true, seen: false, state: START, percent: Percent::No }
    }

    pub const fn form(only: bool) -> Self {
        Self { plus_is_space: true, only, seen: false, state: START, percent: Percent::No }
    }

    /// Reads on. The value goes to `key`, which stays empty if there is none.
    pub fn feed(&mut self, name: &[u8], data: &[u8], key: &mut Vec<u8>) -> Result<Step, Refusal> {
        let mut at = 0;
        while at < data.len() {
            if matches!(self.state, State::Other) {
                let Some(len) = memchr::memchr2(b'&', b';', &data[at..]) else { break };
                at += len;
            }
            match data[at] {
                b'&' => {
                    self.end(name)?;
                    if self.seen && !key.is_empty() && !self.only {
                        return Ok(Step::Done);
                    }
                    self.state = START;
                }
                b';' => self.semicolon(name)?,
                byte => self.byte(name, byte, key)?,
            }
            at += 1;
        }
        Ok(Step::More)
    }

    /// The pairs are over.
    pub fn finish(&mut self, name: &[u8]) -> Result<(), Refusal> {
        self.end(name)
    }

    /// A pair has ended.
    fn end(&mut self, name: &[u8]) -> Result<(), Refusal> {
        match self.state {
            State::Key if self.percent != Percent::No => return Err(Refusal::KeyEncoding),
            // A name without a value.
            State::Name { .. } => self.named(name)?,
            State::Key | State::Other => {}
        }
        self.percent = Percent::No;
        Ok(())
    }

    /// A name has ended: decides whether its value is the key.
    fn named(&mut self, name: &[u8]) -> Result<(), Refusal> {
        let State::Name { same, after_semicolon } = self.state else { return Ok(()) };
        let is_key = same == Some(name.len()) && self.percent == Percent::No;
        self.percent = Percent::No;
        self.state = if is_key { State::Key } else { State::Other };
        match is_key {
            true if after_semicolon => Err(Refusal::KeySeparator),
            true if core::mem::replace(&mut self.seen, true) => Err(Refusal::RepeatedKey),
            _ => Ok(()),
        }
    }

    fn semicolon(&mut self, name: &[u8]) -> Result<(), Refusal> {
        match self.state {
            State::Name { same, .. } if same == Some(name.len()) && self.percent == Percent::No => {
                return Err(Refusal::KeySeparator);
            }
            State::Key => return Err(Refusal::KeySeparator),
            State::Name { .. } | State::Other => {}
        }
        self.percent = Percent::No;
        self.state = State::Name { same: Some(0), after_semicolon: true };
        Ok(())
    }

    fn byte(&mut self, name: &[u8], byte: u8, key: &mut Vec<u8>) -> Result<(), Refusal> {
        if byte == b'=' && matches!(self.state, State::Name { .. }) {
            return self.named(name);
        }
        let digit = (byte as char).to_digit(16).map(|digit| digit as u8);
        let decoded = match (self.percent, digit, byte) {
            (Percent::No, _, b'%') => {
                self.percent = Percent::First;
                return Ok(());
            }
            (Percent::No, _, b'+') if self.plus_is_space => Some(b' '),
            (Percent::No, _, b'+') if matches!(self.state, State::Key) => return Err(Refusal::KeyPlus),
            (Percent::No, _, byte) => Some(byte),
            (Percent::First, Some(digit), _) => {
                self.percent = Percent::Second(digit);
                return Ok(());
            }
            (Percent::Second(first), Some(digit), _) => {
                self.percent = Percent::No;
                Some(first << 4 | digit)
            }
            // Malformed: no reader makes the name of it, and of the key nobody knows what they make.
            (_, None, _) => None,
        };
        match &mut self.state {
            State::Name { same, .. } => {
                let seen = same.filter(|&seen| decoded.is_some() && name.get(seen).copied() == decoded);
                *same = seen.map(|seen| seen + 1);
                if decoded.is_none() {
                    self.percent = Percent::No;
                }
                Ok(())
            }
            State::Key => push(key, &[decoded.ok_or(Refusal::KeyEncoding)?]),
            State::Other => Ok(()),
        }
    }
}
