//! One walk over a message's bytes: where it ends, and where its method, parameters and key lie.

use core::{fmt, ops::Range};

use super::{
    path::{KeyPaths, PathSet},
    value::{Head, Kind, Reserved},
    write::Stamp,
};

/// The longest message, in bytes.
pub const MAX_FRAME: usize = 16 << 20;
/// The longest name of a method, in bytes.
pub const MAX_METHOD: usize = 255;
/// How many values may lie in each other.
pub const MAX_DEPTH: usize = 32;
/// Where a key ends at the latest, in bytes from the beginning of its frame.
pub const MAX_KEY_END: usize = 64 << 10;
/// The longest fifth element of a request, in bytes.
const MAX_STAMP: usize = 1024;

/// Bytes of a frame's length.
const PREFIX: usize = 4;

/// The bytes are no message. Whoever sent them is not heard any further: nobody can say what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than the limit.
    #[error("a message of {len} bytes: give at most {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The message is not an array of the right length.
    #[error(
        "not MessagePack-RPC: a message is an array, [0, msgid, method, params] or [1, msgid, error, result]"
    )]
    NotAMessage,
    /// The message is of another type than can be told here.
    #[error("a message of type {0} does not belong here")]
    Type(u64),
    /// A request without answer.
    #[error(
        "notifications are not taken, because nobody could tell what became of them: send requests (type 0)"
    )]
    Notification,
    /// The id is not one.
    #[error("the msgid is not a number from 0 to 2^32 - 1")]
    MsgId,
    /// The method is not a name.
    #[error("the method is not a text of 1 to 255 bytes")]
    Method,
    /// The parameters are not an array.
    #[error("the params are not an array")]
    Params,
    /// The fifth element is not what it may be.
    #[error("the fifth element is not a map of texts to values, or longer than 1024 bytes")]
    Stamp,
    /// A value ends behind the end of the frame, or is missing.
    #[error("a value is longer than the frame that it is in")]
    Short,
    /// The frame goes on behind its message.
    #[error("there is more in the frame than one message")]
    Trailing,
    /// The byte 0xc1, which MessagePack never uses.
    #[error("the byte 0xc1 is not MessagePack")]
    Reserved,
    /// More values in each other than the limit.
    #[error("more than 32 values lie in each other")]
    TooDeep,
}

impl From<Reserved> for FrameError {
    fn from(Reserved: Reserved) -> Self {
        Self::Reserved
    }
}

/// Why a well-formed request has no key that one could go by. Its connection can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A map on the way to the key has the same name twice: the server might read the other one.
    #[error("a map on the way to the key has a name twice")]
    Twice,
    /// It is none of the types of keys.
    #[error("the key is not a text, bytes or an integer")]
    Kind,
    /// It lies too far behind.
    #[error("the key does not end within the first 65536 bytes of the frame")]
    TooFar,
}

/// A key, as it lies in its frame.
///
/// A text and bytes are the key as they are; an integer, however it is encoded, is the key that its decimal digits are. So 42
/// and "42" are one key, and the same as in other protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Text or bytes: where they are.
    Bytes(Range<usize>),
    /// An integer.
    Integer(i128),
}

/// Room for the digits of a key that is an integer.
pub type Digits = [u8; 24];

impl Key {
    /// The bytes that stand for the key.
    pub fn bytes<'a>(&self, frame: &'a [u8], digits: &'a mut Digits) -> &'a [u8] {
        struct Cursor<'a>(&'a mut Digits, usize);
        impl fmt::Write for Cursor<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0[self.1..self.1 + text.len()].copy_from_slice(text.as_bytes());
                self.1 += text.len();
                Ok(())
            }
        }
        match self {
            Self::Bytes(range) => &frame[range.clone()],
            Self::Integer(number) => {
                let mut cursor = Cursor(digits, 0);
                // 64 bits have twenty digits at most, and a sign.
                let _ = fmt::write(&mut cursor, format_args!("{number}"));
                let len = cursor.1;
                &digits[..len]
            }
        }
    }
}

/// A whole request. Ranges are offsets from the first byte of its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes of the frame, its length included.
    pub len: usize,
    /// The client's own number for it.
    pub msgid: u32,
    /// The method's name.
    pub method: Range<usize>,
    /// The parameters: an array.
    pub params: Range<usize>,
    /// Method and parameters, as they go on.
    pub body: Range<usize>,
    /// The fifth element, empty if there is none. [`Stamp::read`] reads it.
    pub stamp: Range<usize>,
    /// How long the client waits for the answer, in milliseconds, if it says so.
    pub deadline_ms: Option<u32>,
    /// The first key that was found; `None` if there is none, or no paths were given. An empty one counts as none.
    pub key: Result<Option<Key>, KeyError>,
}

/// A whole response. Ranges are offsets from the first byte of its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Bytes of the frame, its length included.
    pub len: usize,
    /// Which request it answers.
    pub msgid: u32,
    /// The error; `None` if all went well.
    pub error: Option<Range<usize>>,
    /// The result.
    pub result: Range<usize>,
    /// Error and result, as they go on.
    pub body: Range<usize>,
}

/// The length that a frame says its message has, once that is there.
fn message_end(input: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let Some(prefix) = input.first_chunk::<PREFIX>() else { return Ok(None) };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > max { Err(FrameError::TooLong { len, max }) } else { Ok(Some(PREFIX + len)) }
}

/// Reads values of known kinds one after the other.
struct Fields<'a> {
    input: &'a [u8],
    at: usize,
    end: usize,
}

impl Fields<'_> {
    /// The next value's head, and that of text whole; `None` if bytes are missing.
    fn next(&mut self) -> Result<Option<(Kind, Range<usize>)>, FrameError> {
        let seen = self.input.len().min(self.end);
        let Some(head) = Head::read(&self.input[self.at.min(seen)..seen])? else {
            return if seen == self.end { Err(FrameError::Short) } else { Ok(None) };
        };
        let payload = self.at + head.size;
        // Only text is asked for here besides heads.
        let end = if head.kind == Kind::Str { payload.saturating_add(head.payload) } else { payload };
        if end > self.end {
            return Err(FrameError::Short);
        }
        if end > seen && head.payload <= MAX_METHOD {
            return Ok(None);
        }
        self.at = end;
        Ok(Some((head.kind, payload..end)))
    }
}

/// What stands before parameters or error, once all of it is there.
#[derive(Clone, Debug)]
struct Envelope {
    msgid: u32,
    method: Range<usize>,
    /// Where what is behind it begins.
    body: usize,
    fields: u32,
}

fn envelope(input: &[u8], end: usize, wanted: u64) -> Result<Option<Envelope>, FrameError> {
    let mut fields = Fields { input, at: PREFIX, end };
    let mut next = || fields.next();
    let Some((kind, _)) = next()? else { return Ok(None) };
    let Kind::Array(count @ (3..=5)) = kind else { return Err(FrameError::NotAMessage) };
    match next()? {
        None => return Ok(None),
        Some((Kind::Uint(2), _)) if wanted == 0 => return Err(FrameError::Notification),
        Some((Kind::Uint(kind), _)) if kind != wanted => return Err(FrameError::Type(kind)),
        Some((Kind::Uint(_), _)) if count == 4 || (count, wanted) == (5, 0) => {}
        Some(_) => return Err(FrameError::NotAMessage),
    }
    let msgid = match next()? {
        None => return Ok(None),
        Some((Kind::Uint(id), _)) => u32::try_from(id).map_err(|_| FrameError::MsgId)?,
        Some(_) => return Err(FrameError::MsgId),
    };
    let mut method = 0..0;
    if wanted == 0 {
        method = match next()? {
            None => return Ok(None),
            Some((Kind::Str, name)) if (1..=MAX_METHOD).contains(&name.len()) => name,
            Some(_) => return Err(FrameError::Method),
        };
    }
    let body = fields.at;
    if wanted == 0 {
        match fields.next()? {
            None => return Ok(None),
            Some((Kind::Array(_), _)) => {}
            Some(_) => return Err(FrameError::Params),
        }
    }
    Ok(Some(Envelope { msgid, method, body, fields: count }))
}

/// A container that the walk is inside of.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    /// Values that have not begun yet; of a map, keys and values.
    left: u64,
    /// Values of an array that have begun.
    index: u32,
    is_map: bool,
    /// Paths that lead here.
    paths: PathSet,
    /// Paths that go on through the next value of this map.
    chosen: PathSet,
    /// Paths whose name this map has had.
    seen: PathSet,
}

/// Walks over one value, however the bytes come in.
#[derive(Clone, Debug)]
struct Walker {
    depth: usize,
    stack: [Level; MAX_DEPTH],
    found: [Option<Result<Key, KeyError>>; KeyPaths::MAX],
    twice: bool,
}

impl Default for Walker {
    fn default() -> Self {
        Self {
            depth: 0,
            stack: [Level::default(); MAX_DEPTH],
            found: [const { None }; KeyPaths::MAX],
            twice: false,
        }
    }
}

impl Walker {
    /// Goes on from `at`, which it moves; `end` is that of the frame. Returns whether the value is over. Once it is, the walker
    /// is ready for the next one, but for what it found.
    fn walk(
        &mut self,
        input: &[u8],
        at: &mut usize,
        end: usize,
        paths: Option<&KeyPaths>,
    ) -> Result<bool, FrameError> {
        let seen = input.len().min(end);
        loop {
            while self.depth > 0 && self.stack[self.depth - 1].left == 0 {
                self.depth -= 1;
                if self.depth == 0 {
                    return Ok(true);
                }
            }
            let Some(head) = Head::read(&input[(*at).min(seen)..seen])? else {
                return if seen == end { Err(FrameError::Short) } else { Ok(false) };
            };
            let payload = *at + head.size;
            let after = payload.saturating_add(head.payload);
            if after > end {
                return Err(FrameError::Short);
            }
            let mut mask = 0;
            if let Some(paths) = paths {
                if self.depth == 0 {
                    mask = paths.all();
                } else {
                    let level = &mut self.stack[self.depth - 1];
                    let is_name = level.is_map && level.left.is_multiple_of(2);
                    if level.paths == 0 {
                        // Nobody looks for anything here.
                    } else if !level.is_map {
                        mask = paths.through_index(level.paths, self.depth - 1, level.index);
                    } else if !is_name {
                        mask = level.chosen;
                    } else if head.kind == Kind::Str {
                        if after > seen {
                            return Ok(false);
                        }
                        level.chosen =
                            paths.through_name(level.paths, self.depth - 1, &input[payload..after]);
                        self.twice |= level.chosen & level.seen != 0;
                        level.seen |= level.chosen;
                    } else {
                        level.chosen = 0;
                    }
                }
                let ending = if mask == 0 { 0 } else { paths.ending(mask, self.depth) };
                if ending != 0 {
                    self.note(ending, key(head.kind, payload..after));
                }
            }
            *at = after;
            if let Some(level) = self.depth.checked_sub(1).map(|at| &mut self.stack[at]) {
                level.left -= 1;
                level.index = level.index.wrapping_add(1);
            }
            let (left, is_map) = match head.kind {
                Kind::Array(count) => (u64::from(count), false),
                Kind::Map(pairs) => (2 * u64::from(pairs), true),
                _ if self.depth == 0 => return Ok(true),
                _ => continue,
            };
            // Each value has a byte at least.
            if left > (end - after) as u64 {
                return Err(FrameError::Short);
            }
            let level = self.stack.get_mut(self.depth).ok_or(FrameError::TooDeep)?;
            *level = Level { left, is_map, paths: mask, ..Level::default() };
            self.depth += 1;
        }
    }

    fn note(&mut self, ending: PathSet, key: Option<Result<Key, KeyError>>) {
        for (path, found) in self.found.iter_mut().enumerate() {
            if ending & (1 << path) != 0 {
                found.clone_from(&key);
            }
        }
    }

    /// What was found, by the order of the paths.
    fn key(&self) -> Result<Option<Key>, KeyError> {
        if self.twice {
            return Err(KeyError::Twice);
        }
        self.found.iter().find_map(|found| found.clone()).transpose()
    }
}

/// The key that a value is; `None` if it counts as none.
fn key(kind: Kind, place: Range<usize>) -> Option<Result<Key, KeyError>> {
    if place.end > MAX_KEY_END {
        return Some(Err(KeyError::TooFar));
    }
    match kind {
        Kind::Nil => None,
        Kind::Str | Kind::Bin if place.is_empty() => None,
        Kind::Str | Kind::Bin => Some(Ok(Key::Bytes(place))),
        Kind::Uint(number) => Some(Ok(Key::Integer(number.into()))),
        Kind::Int(number) => Some(Ok(Key::Integer(number.into()))),
        Kind::Bool(_) | Kind::Float | Kind::Ext | Kind::Array(_) | Kind::Map(_) => Some(Err(KeyError::Kind)),
    }
}

/// Walks over one value that is in memory as a whole. Returns where it ends; `None` if it does not.
pub(super) fn skip(input: &[u8], mut at: usize) -> Option<usize> {
    let over = Walker::default().walk(input, &mut at, input.len(), None);
    (over == Ok(true)).then_some(at)
}

/// Finds requests in a buffer that grows. Resumes where it stopped, so that a large one that comes in many pieces is walked
/// over once.
#[derive(Clone, Debug, Default)]
pub struct RequestScanner(Progress);

/// Finds responses in a buffer that grows, as [`RequestScanner`] does requests.
#[derive(Clone, Debug, Default)]
pub struct ResponseScanner(Progress);

#[derive(Clone, Debug, Default)]
struct Progress {
    envelope: Option<Envelope>,
    at: usize,
    /// Of a response: where its error ends.
    middle: usize,
    walker: Walker,
}

impl RequestScanner {
    /// Looks for a whole request of at most `max` bytes at the start of `input`, and for its key. Between calls that answer
    /// `None` the input may move in memory and grow, but its bytes stay.
    ///
    /// # Errors
    /// The first thing that is wrong; the scanner is of no use afterwards.
    pub fn scan(
        &mut self,
        input: &[u8],
        max: usize,
        paths: Option<&KeyPaths>,
    ) -> Result<Option<Request>, FrameError> {
        let Some(end) = message_end(input, max)? else { return Ok(None) };
        let Progress { envelope: known, at, walker, .. } = &mut self.0;
        let envelope = match known {
            Some(envelope) => envelope,
            None => match envelope(input, end, 0)? {
                None => return Ok(None),
                Some(envelope) => {
                    *at = envelope.body;
                    known.insert(envelope)
                }
            },
        };
        // Its parameters may be over already, and the fifth element missing.
        let params = envelope.body..{
            let over = *at > envelope.body && walker.depth == 0;
            if !over && !walker.walk(input, at, end, paths)? {
                return Ok(None);
            }
            *at
        };
        let stamp = params.end..end;
        match envelope.fields {
            4 if !stamp.is_empty() => return Err(FrameError::Trailing),
            5 if stamp.is_empty() => return Err(FrameError::Short),
            5 if stamp.len() > MAX_STAMP => return Err(FrameError::Stamp),
            _ => {}
        }
        if input.len() < end {
            return Ok(None);
        }
        let deadline_ms = match envelope.fields {
            5 => Stamp::read(&input[stamp.clone()])?.deadline_ms,
            _ => None,
        };
        // The method's head is one or two bytes before its name, or more if the client is lavish.
        let request = Request {
            len: end,
            msgid: envelope.msgid,
            body: method_head(input, envelope)..params.end,
            method: envelope.method.clone(),
            params,
            stamp,
            deadline_ms,
            key: walker.key(),
        };
        self.0 = Progress::default();
        Ok(Some(request))
    }

    /// The id of the request that is being scanned, once it is known.
    pub fn msgid(&self) -> Option<u32> {
        self.0.envelope.as_ref().map(|envelope| envelope.msgid)
    }

    /// How many bytes the frame has that is being scanned, its length included; `None` if that is not known yet.
    pub fn expected(input: &[u8]) -> Option<usize> {
        message_end(input, usize::MAX).ok().flatten()
    }
}

/// Where the head of the method's name begins.
fn method_head(input: &[u8], envelope: &Envelope) -> usize {
    // The only heads of text: a fixstr, str 8, str 16, str 32. Found from the front, because bytes before a name mean nothing
    // from behind.
    let mut fields = Fields { input, at: PREFIX, end: envelope.method.end };
    for _ in 0..3 {
        let _known = fields.next();
    }
    fields.at
}

impl ResponseScanner {
    /// Looks for a whole response of at most `max` bytes at the start of `input`, under the rules of
    /// [`RequestScanner::scan`].
    ///
    /// # Errors
    /// The first thing that is wrong; the scanner is of no use afterwards.
    pub fn scan(&mut self, input: &[u8], max: usize) -> Result<Option<Response>, FrameError> {
        let Some(end) = message_end(input, max)? else { return Ok(None) };
        let Progress { envelope: known, at, middle, walker } = &mut self.0;
        let envelope = match known {
            Some(envelope) => envelope,
            None => match envelope(input, end, 1)? {
                None => return Ok(None),
                Some(envelope) => {
                    *at = envelope.body;
                    known.insert(envelope)
                }
            },
        };
        if *middle == 0 {
            if !walker.walk(input, at, end, None)? {
                return Ok(None);
            }
            *middle = *at;
        }
        if (*at == *middle || walker.depth > 0) && !walker.walk(input, at, end, None)? {
            return Ok(None);
        }
        if *at != end {
            return Err(FrameError::Trailing);
        }
        if input.len() < end {
            return Ok(None);
        }
        let error = envelope.body..*middle;
        let response = Response {
            len: end,
            msgid: envelope.msgid,
            error: (input[error.start] != NIL).then_some(error),
            result: *middle..end,
            body: envelope.body..end,
        };
        self.0 = Progress::default();
        Ok(Some(response))
    }
}

/// How nil is written.
pub(super) const NIL: u8 = 0xc0;
