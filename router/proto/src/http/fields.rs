//! A head's fields as offsets, and which of them go on to the next hop.

use core::mem::MaybeUninit;

use super::{MAX_FIELDS, Refusal};

/// A stretch of a head, as offsets from its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// From `start` up to, not including, `end`; both at most [`MAX_HEAD`](super::MAX_HEAD).
    pub(super) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= super::MAX_HEAD);
        Self { start: start as u16, end: end as u16 }
    }

    /// Where `part` lies in `head`, of which it is a slice.
    pub(super) fn within(head: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr().addr() - head.as_ptr().addr();
        Self::new(start, start + part.len())
    }

    /// Its first offset.
    pub const fn start(self) -> usize {
        self.start as usize
    }

    /// The offset behind its last byte.
    pub const fn end(self) -> usize {
        self.end as usize
    }

    /// Its bytes; `head` is what it was parsed from.
    pub fn of(self, head: &[u8]) -> &[u8] {
        &head[self.start()..self.end()]
    }
}

/// One field line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Field {
    /// The name, as it was written.
    pub name: Span,
    /// The value, without the white space around it.
    pub value: Span,
}

/// The fields of one head.
#[derive(Debug)]
pub struct Fields {
    list: [Field; MAX_FIELDS],
    len: usize,
    /// Bit i: field i concerns this hop only and does not go on.
    dropped: u128,
    /// Where the blank line starts.
    end: u16,
}

/// Room for the parser's own view of the fields.
pub(super) type Parsed<'b> = [MaybeUninit<httparse::Header<'b>>; MAX_FIELDS];

impl Fields {
    pub(super) fn of(head: &[u8], parsed: &[httparse::Header<'_>]) -> Self {
        let mut list = [Field::default(); MAX_FIELDS];
        for (field, header) in list.iter_mut().zip(parsed) {
            let name = Span::within(head, header.name.as_bytes());
            // The parser gives an empty value a place of its own choosing.
            let value = if header.value.is_empty() {
                Span::new(name.end(), name.end())
            } else {
                Span::within(head, header.value)
            };
            *field = Field { name, value };
        }
        Self { list, len: parsed.len(), dropped: 0, end: Span::new(0, head.len() - 2).end }
    }

    /// Every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Field> {
        self.list[..self.len].iter()
    }

    /// The values of the fields of this name, which is given in lower case.
    pub fn values<'h>(&self, head: &'h [u8], name: &[u8]) -> impl Iterator<Item = &'h [u8]> {
        self.iter().filter(|field| same_name(field.name.of(head), name)).map(|field| field.value.of(head))
    }

    /// The names and values of the fields that a server may take for this one, whose name is given in lower case: many
    /// (CGI, WSGI) know no difference between a hyphen and an underscore.
    pub fn taken_for<'h>(&self, head: &'h [u8], name: &[u8]) -> impl Iterator<Item = (&'h [u8], &'h [u8])> {
        let all = self.iter().map(|field| (field.name.of(head), field.value.of(head)));
        all.filter(|(written, _)| is_taken_for(written, name))
    }

    /// Whether a field of this name, which is given in lower case, stays behind.
    pub fn stays_behind(&self, head: &[u8], name: &[u8]) -> bool {
        let mut at = 0..self.len;
        at.any(|at| self.dropped >> at & 1 == 1 && same_name(self.list[at].name.of(head), name))
    }

    pub(super) fn get(&self, at: usize) -> Field {
        self.list[..self.len][at]
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn drop_field(&mut self, at: usize) {
        self.dropped |= 1 << at;
    }

    /// Drops the fields that `Connection` names.
    ///
    /// # Errors
    /// It names one that frames or addresses the message: whoever sends that wants the next hop to read
    /// another message than this one does.
    pub(super) fn drop_named(&mut self, head: &[u8], name: &[u8]) -> Result<(), Refusal> {
        const NOT_OF_ONE_HOP: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"host"];
        if NOT_OF_ONE_HOP.iter().any(|forbidden| same_name(name, forbidden)) {
            return Err(Refusal::Connection);
        }
        for at in 0..self.len {
            if self.list[at].name.of(head).eq_ignore_ascii_case(name) {
                self.drop_field(at);
            }
        }
        Ok(())
    }

    /// The field lines that go on, as few slices as possible, in order; the blank line is not among them.
    pub fn kept<'a>(&'a self, head: &'a [u8]) -> Kept<'a> {
        Kept { fields: self, head, at: 0 }
    }

    fn line_start(&self, at: usize) -> usize {
        if at < self.len { self.list[at].name.start() } else { self.end as usize }
    }

    /// Where the first field line, or the blank line, starts.
    pub(super) fn start(&self) -> usize {
        self.line_start(0)
    }
}

/// See [`Fields::kept`].
#[derive(Debug)]
pub struct Kept<'a> {
    fields: &'a Fields,
    head: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Kept<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        // Fields from `at` on: skip the dropped, then take the run of kept ones.
        let rest = self.fields.dropped >> self.at;
        let from = self.at + rest.trailing_ones() as usize;
        if from >= self.fields.len {
            return None;
        }
        let run = (self.fields.dropped >> from).trailing_zeros() as usize;
        self.at = self.fields.len.min(from + run);
        Some(&self.head[self.fields.line_start(from)..self.fields.line_start(self.at)])
    }
}

/// Whether a name as written is `lower`, which is in lower case.
pub(super) fn same_name(written: &[u8], lower: &[u8]) -> bool {
    written.eq_ignore_ascii_case(lower)
}

/// Whether a server may take a name as written for `lower`, which is in lower case.
pub(super) fn is_taken_for(written: &[u8], lower: &[u8]) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    written.len() == lower.len() && written.iter().zip(lower).all(|(a, b)| plain(*a) == plain(*b))
}

/// Whether this byte may stand in a method or a field name (RFC 9110, 5.6.2).
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// The elements of a comma-separated list, without the white space around them; empty ones are left out.
pub(super) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}
