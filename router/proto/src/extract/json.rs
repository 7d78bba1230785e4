//! A JSON pointer (RFC 6901), found in a document as its bytes pass.
//!
//! There is no tree: the scanner knows how deep it is, which of the open containers lie on the way, and what
//! may come next. Strings that do not matter are skipped at the speed of a search for their end. It stops at
//! the key, so of two equal names on the way **the first counts**, although most servers take the last one; a
//! second one that comes before the key was found is refused. With `only` the whole document is read instead
//! and a second one is refused wherever it stands.

use alloc::{boxed::Box, string::String, vec::Vec};

use super::{Step, push};
use crate::http::Refusal;

/// The deepest nesting that is followed: one bit for each level.
const MAX_DEPTH: u32 = 64;

/// Where in a document the key is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pointer(Box<[Token]>);

#[derive(Clone, Debug, PartialEq)]
struct Token {
    name: Box<str>,
    /// The element that it names in an array; a name that is no number names none.
    index: Option<u32>,
}

impl Pointer {
    /// Reads the notation of RFC 6901. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix('/').ok_or("must start with /, such as /user/id")?;
        let tokens: Vec<Token> = rest.split('/').map(Self::token).collect::<Result<_, _>>()?;
        if tokens.len() >= MAX_DEPTH as usize {
            return Err("is deeper than 63 names");
        }
        Ok(Self(tokens.into()))
    }

    /// The pointer to a member of the document itself.
    pub fn member(name: &str) -> Self {
        Self([Token { name: name.into(), index: None }].into())
    }

    fn token(written: &str) -> Result<Token, &'static str> {
        let mut name = String::with_capacity(written.len());
        let mut parts = written.split('~');
        name.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let mut chars = part.chars();
            match chars.next() {
                Some('0') => name.push('~'),
                Some('1') => name.push('/'),
                _ => return Err("has a ~ that is neither ~0 (for ~) nor ~1 (for /)"),
            }
            name.push_str(chars.as_str());
        }
        let canonical = name == "0" || !name.starts_with(['0', '+']);
        let index = if canonical { name.parse().ok() } else { None };
        Ok(Token { name: name.into(), index })
    }
}

/// Follows one document through any cuts.
#[derive(Clone, Debug)]
pub(super) struct JsonScan {
    state: State,
    text: Text,
    /// Whether the whole document is read.
    only: bool,
    /// How many containers are open.
    open: u32,
    /// Bit i: the open container at depth i is an object.
    objects: u64,
    /// How many of the open containers, from the outermost, lie on the way to the key.
    path: u32,
    /// Bit i: the container at depth i, which lies on the way, has had the member that the pointer names.
    seen: u64,
    /// The position of the element in hand, in an array that lies on the way.
    index: u32,
    /// Whether the value that comes next lies on the way.
    matched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a value.
    Value,
    /// Before a value or the end of an array.
    FirstElement,
    /// Before a name or the end of an object.
    FirstName,
    /// Before a name.
    Name,
    /// Within a string.
    Text,
    Colon,
    /// Behind a value.
    After,
    Number {
        at: Number,
        key: bool,
    },
    Literal {
        word: Word,
        at: u8,
        key: bool,
    },
    /// Behind the document.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    True,
    False,
    Null,
}

impl Word {
    const fn text(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }
}

/// Where in a number (RFC 8259, 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Int,
    Dot,
    Frac,
    E,
    Sign,
    Exp,
}

impl Number {
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus | Self::Int, b'0'..=b'9') => Self::Int,
            (Self::Zero | Self::Int, b'.') => Self::Dot,
            (Self::Dot | Self::Frac, b'0'..=b'9') => Self::Frac,
            (Self::Zero | Self::Int | Self::Frac, b'e' | b'E') => Self::E,
            (Self::E, b'+' | b'-') => Self::Sign,
            (Self::E | Self::Sign | Self::Exp, b'0'..=b'9') => Self::Exp,
            _ => return None,
        })
    }

    /// Reads on as far as the number goes. Returns how far that is.
    fn run(mut self, data: &[u8]) -> (usize, Self) {
        let mut len = 0;
        while let Some(next) = data.get(len).and_then(|&byte| self.next(byte)) {
            self = next;
            len += 1;
        }
        (len, self)
    }

    const fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Int | Self::Frac | Self::Exp)
    }
}

/// What a string is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A value that does not matter.
    Pass,
    /// A name in an object that does not lie on the way.
    PassName,
    /// A name that may be the pointer's next.
    Compare,
    /// The key.
    Collect,
}

/// Where in a string.
#[derive(Clone, Copy, Debug)]
struct Text {
    purpose: Purpose,
    at: At,
    /// A surrogate that waits for its second half; 0 if none does.
    high: u16,
    /// How much of the pointer's name has been seen, if it is the same so far.
    same: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Plain,
    Escape,
    Hex { left: u8, value: u16 },
}

impl JsonScan {
    pub const fn new(only: bool) -> Self {
        Self {
            state: State::Value,
            text: Text { purpose: Purpose::Pass, at: At::Plain, high: 0, same: None },
            only,
            open: 0,
            objects: 0,
            path: 0,
            seen: 0,
            index: 0,
            matched: true,
        }
    }

    /// Reads on. The key goes to `key`, which stays empty if there is none.
    pub fn feed(&mut self, pointer: &Pointer, data: &[u8], key: &mut Vec<u8>) -> Result<Step, Refusal> {
        let mut at = 0;
        while at < data.len() {
            if self.state == State::Text {
                let (len, ended) = self.text.feed(pointer.name(self.path), &data[at..], key)?;
                at += len;
                if ended && self.string_ended(pointer, key)? {
                    return Ok(Step::Done);
                }
                continue;
            }
            let byte = data[at];
            if let State::Number { at: number, key: is_key } = self.state {
                let (len, number) = number.run(&data[at..]);
                if is_key {
                    push(key, &data[at..at + len])?;
                }
                at += len;
                self.state = State::Number { at: number, key: is_key };
                let Some(behind) = data.get(at) else { break };
                if !number.may_end() || !matches!(behind, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}') {
                    return Err(Refusal::JsonBody);
                }
                self.state = State::After;
                if is_key && !self.only {
                    return Ok(Step::Done);
                }
                continue;
            } else if let State::Literal { word, at: done, key: is_key } = self.state {
                let word_text = word.text();
                if word_text[done as usize] != byte {
                    return Err(Refusal::JsonBody);
                }
                let whole = done as usize + 1 == word_text.len();
                self.state =
                    if whole { State::After } else { State::Literal { word, at: done + 1, key: is_key } };
                if whole && is_key {
                    push(key, word_text)?;
                    if !self.only {
                        return Ok(Step::Done);
                    }
                }
            } else if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                self.structure(pointer, byte, key)?;
            }
            at += 1;
        }
        Ok(Step::More)
    }

    /// The document's bytes are over.
    pub fn finish(&self) -> Result<(), Refusal> {
        if self.open == 0 && matches!(self.state, State::After | State::End) {
            return Ok(());
        }
        // A document that is one number ends only here.
        match self.state {
            State::Number { at, .. } if self.open == 0 && at.may_end() => Ok(()),
            _ => Err(Refusal::JsonBody),
        }
    }

    /// Whether the container in hand lies on the way.
    const fn on_path(&self) -> bool {
        self.open == self.path
    }

    const fn in_object(&self) -> bool {
        self.objects >> (self.open - 1) & 1 == 1
    }

    /// A byte between values, names and strings.
    fn structure(&mut self, pointer: &Pointer, byte: u8, key: &mut Vec<u8>) -> Result<(), Refusal> {
        match (self.state, byte) {
            (State::FirstElement, b']') | (State::FirstName, b'}') => self.close(byte),
            (State::Value | State::FirstElement, _) => self.value(pointer, byte, key),
            (State::FirstName | State::Name, b'"') => {
                let compare = self.on_path();
                let purpose = if compare { Purpose::Compare } else { Purpose::PassName };
                self.text = Text { purpose, at: At::Plain, high: 0, same: compare.then_some(0) };
                self.state = State::Text;
                Ok(())
            }
            (State::Colon, b':') => {
                self.state = State::Value;
                Ok(())
            }
            (State::After, b',') if self.open > 0 => {
                if self.in_object() {
                    self.state = State::Name;
                } else {
                    if self.on_path() {
                        self.index = self.index.saturating_add(1);
                    }
                    self.element(pointer);
                    self.state = State::Value;
                }
                Ok(())
            }
            (State::After, b']' | b'}') if self.open > 0 => self.close(byte),
            _ => Err(Refusal::JsonBody),
        }
    }

    /// Decides whether the element that comes next lies on the way.
    fn element(&mut self, pointer: &Pointer) {
        self.matched = self.on_path()
            && self.seen >> (self.path - 1) & 1 == 0
            && pointer.0[self.path as usize - 1].index == Some(self.index);
        if self.matched {
            self.seen |= 1 << (self.path - 1);
        }
    }

    /// A value begins with this byte.
    fn value(&mut self, pointer: &Pointer, byte: u8, key: &mut Vec<u8>) -> Result<(), Refusal> {
        let matched = core::mem::take(&mut self.matched);
        let is_key = matched && self.path as usize == pointer.0.len();
        match byte {
            b'{' | b'[' => {
                if self.open == MAX_DEPTH {
                    return Err(Refusal::JsonDepth);
                }
                let bit = 1 << self.open;
                self.objects = if byte == b'{' { self.objects | bit } else { self.objects & !bit };
                self.open += 1;
                if matched && !is_key {
                    self.path = self.open;
                    self.seen &= !bit;
                }
                if byte == b'{' {
                    self.state = State::FirstName;
                } else {
                    // Of arrays only those on the way count their elements, and these are left for good
                    // once one of their elements is entered.
                    if self.on_path() {
                        self.index = 0;
                    }
                    self.element(pointer);
                    self.state = State::FirstElement;
                }
            }
            b'"' => {
                let purpose = if is_key { Purpose::Collect } else { Purpose::Pass };
                self.text = Text { purpose, at: At::Plain, high: 0, same: None };
                self.state = State::Text;
            }
            b't' => self.state = State::Literal { word: Word::True, at: 1, key: is_key },
            b'f' => self.state = State::Literal { word: Word::False, at: 1, key: is_key },
            b'n' => self.state = State::Literal { word: Word::Null, at: 1, key: false },
            b'-' | b'0'..=b'9' => {
                let at = match byte {
                    b'-' => Number::Minus,
                    b'0' => Number::Zero,
                    _ => Number::Int,
                };
                self.state = State::Number { at, key: is_key };
                if is_key {
                    push(key, &[byte])?;
                }
            }
            _ => return Err(Refusal::JsonBody),
        }
        Ok(())
    }

    fn close(&mut self, byte: u8) -> Result<(), Refusal> {
        if self.in_object() != (byte == b'}') {
            return Err(Refusal::JsonBody);
        }
        self.open -= 1;
        self.path = self.path.min(self.open);
        self.matched = false;
        self.state = if self.open == 0 { State::End } else { State::After };
        Ok(())
    }

    /// A string has ended. Returns whether the search has, too.
    fn string_ended(&mut self, pointer: &Pointer, key: &[u8]) -> Result<bool, Refusal> {
        self.state = match self.text.purpose {
            Purpose::Pass => State::After,
            Purpose::PassName => {
                self.matched = false;
                State::Colon
            }
            Purpose::Compare => {
                self.matched = self.text.same == Some(pointer.name(self.path).len());
                if self.matched {
                    let bit = 1 << (self.path - 1);
                    if self.seen & bit != 0 {
                        return Err(Refusal::RepeatedKey);
                    }
                    self.seen |= bit;
                }
                State::Colon
            }
            Purpose::Collect => {
                if core::str::from_utf8(key).is_err() {
                    return Err(Refusal::KeyText);
                }
                // Empty keys count as none, but a second one may still come.
                if !self.only && !key.is_empty() {
                    return Ok(true);
                }
                State::After
            }
        };
        Ok(false)
    }
}

impl Pointer {
    /// The name that leads on from the container that is the `path`th on the way.
    fn name(&self, path: u32) -> &str {
        match path.checked_sub(1).and_then(|at| self.0.get(at as usize)) {
            Some(token) => &token.name,
            None => "",
        }
    }
}

/// How many bytes come before the next quotation mark or backslash.
fn plain_len(data: &[u8]) -> usize {
    /// Most strings are so short that calling for help takes longer.
    const SHORT: usize = 16;
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\');
    match data.iter().take(SHORT).position(ends) {
        Some(len) => len,
        None if data.len() <= SHORT => data.len(),
        None => SHORT + memchr::memchr2(b'"', b'\\', &data[SHORT..]).unwrap_or(data.len() - SHORT),
    }
}

impl Text {
    /// Reads on in a string. Returns how many bytes belong to it, and whether it ends with them.
    fn feed(&mut self, name: &str, data: &[u8], key: &mut Vec<u8>) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        while at < data.len() {
            let byte = data[at];
            match self.at {
                At::Plain => {
                    let len = plain_len(&data[at..]);
                    let plain = &data[at..at + len];
                    // Without branches, so that it is done for many bytes at a time.
                    if plain.iter().fold(false, |control, &byte| control | (byte < b' ')) {
                        // What comes before it is judged first, as if it had come alone.
                        let before = plain.iter().position(|&byte| byte < b' ').unwrap_or_default();
                        self.take(name, &plain[..before], key)?;
                        return Err(Refusal::JsonBody);
                    }
                    self.take(name, plain, key)?;
                    at += len;
                    if at == data.len() {
                        break;
                    }
                    at += 1;
                    if data[at - 1] == b'"' {
                        self.lone()?;
                        return Ok((at, true));
                    }
                    self.at = At::Escape;
                }
                At::Escape => {
                    at += 1;
                    let plain = match byte {
                        b'"' | b'\\' | b'/' => byte,
                        b'b' => 0x08,
                        b'f' => 0x0c,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'u' => {
                            self.at = At::Hex { left: 4, value: 0 };
                            continue;
                        }
                        _ => return Err(Refusal::JsonBody),
                    };
                    self.at = At::Plain;
                    self.take(name, &[plain], key)?;
                }
                At::Hex { left, value } => {
                    at += 1;
                    let digit = (byte as char).to_digit(16).ok_or(Refusal::JsonBody)?;
                    let value = value << 4 | digit as u16;
                    self.at = At::Hex { left: left - 1, value };
                    if left == 1 {
                        self.at = At::Plain;
                        self.unit(name, value, key)?;
                    }
                }
            }
        }
        Ok((at, false))
    }

    /// A unit of UTF-16 that was written as an escape.
    fn unit(&mut self, name: &str, unit: u16, key: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.high != 0 && (0xdc00..0xe000).contains(&unit) {
            let high = u32::from(core::mem::take(&mut self.high)) - 0xd800;
            let char = char::from_u32(0x1_0000 + (high << 10) + u32::from(unit) - 0xdc00);
            let char = char.expect("two halves make a whole");
            return self.take(name, char.encode_utf8(&mut [0; 4]).as_bytes(), key);
        }
        self.lone()?;
        match char::from_u32(unit.into()) {
            Some(char) => self.take(name, char.encode_utf8(&mut [0; 4]).as_bytes(), key),
            None => {
                self.high = unit;
                if unit < 0xdc00 { Ok(()) } else { self.lone() }
            }
        }
    }

    /// Half a character has stayed alone, if one is waiting. Servers make of it what they like.
    fn lone(&mut self) -> Result<(), Refusal> {
        if core::mem::take(&mut self.high) != 0 {
            self.same = None;
            if self.purpose == Purpose::Collect {
                return Err(Refusal::KeyText);
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, bytes: &[u8], key: &mut Vec<u8>) -> Result<(), Refusal> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.lone()?;
        match (self.purpose, self.same) {
            (Purpose::Compare, Some(seen)) => {
                let same = name.as_bytes()[seen..].starts_with(bytes);
                self.same = same.then_some(seen + bytes.len());
                Ok(())
            }
            (Purpose::Collect, _) => push(key, bytes),
            _ => Ok(()),
        }
    }
}
