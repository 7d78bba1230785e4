//! The first bytes of a MessagePack value: what it is, and how many bytes or values follow.

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nil,
    Bool(bool),
    Uint(u64),
    /// Below zero.
    Int(i64),
    Float,
    Str,
    Bin,
    Ext,
    Array(u32),
    /// So many pairs.
    Map(u32),
}

/// The first bytes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: Kind,
    /// How many bytes say what it is; those of numbers are among them.
    pub size: usize,
    /// How many bytes of its own follow: of text, bytes and extensions.
    pub payload: usize,
}

/// The byte 0xc1 begins no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserved;

impl Head {
    /// Reads the head of the value that `input` starts with; `None` if bytes of it are missing.
    pub fn read(input: &[u8]) -> Result<Option<Self>, Reserved> {
        let Some(&first) = input.first() else { return Ok(None) };
        let number = |size: usize| -> Option<u64> {
            let bytes = input.get(1..=size)?;
            Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        };
        let plain = |kind, size| Some(Self { kind, size, payload: 0 });
        let raw = |kind, digits: usize, more: usize| {
            let payload = number(digits)? as usize + more;
            Some(Self { kind, size: 1 + digits, payload })
        };
        let uint = |size| plain(Kind::Uint(number(size)?), 1 + size);
        let int = |size: usize| {
            let shift = 64 - 8 * size as u32;
            let value = (number(size)? << shift).cast_signed() >> shift;
            let kind = if value < 0 { Kind::Int(value) } else { Kind::Uint(value.cast_unsigned()) };
            plain(kind, 1 + size)
        };
        let float = |size| number(size).and_then(|_| plain(Kind::Float, 1 + size));
        Ok(match first {
            0x00..=0x7f => plain(Kind::Uint(first.into()), 1),
            0x80..=0x8f => plain(Kind::Map((first & 0x0f).into()), 1),
            0x90..=0x9f => plain(Kind::Array((first & 0x0f).into()), 1),
            0xa0..=0xbf => Some(Self { kind: Kind::Str, size: 1, payload: (first & 0x1f).into() }),
            0xc0 => plain(Kind::Nil, 1),
            0xc1 => return Err(Reserved),
            0xc2 => plain(Kind::Bool(false), 1),
            0xc3 => plain(Kind::Bool(true), 1),
            0xc4 => raw(Kind::Bin, 1, 0),
            0xc5 => raw(Kind::Bin, 2, 0),
            0xc6 => raw(Kind::Bin, 4, 0),
            // The byte more is the extension's type.
            0xc7 => raw(Kind::Ext, 1, 1),
            0xc8 => raw(Kind::Ext, 2, 1),
            0xc9 => raw(Kind::Ext, 4, 1),
            0xca => float(4),
            0xcb => float(8),
            0xcc => uint(1),
            0xcd => uint(2),
            0xce => uint(4),
            0xcf => uint(8),
            0xd0 => int(1),
            0xd1 => int(2),
            0xd2 => int(4),
            0xd3 => int(8),
            0xd4..=0xd8 => Some(Self { kind: Kind::Ext, size: 1, payload: (1 << (first - 0xd4)) + 1 }),
            0xd9 => raw(Kind::Str, 1, 0),
            0xda => raw(Kind::Str, 2, 0),
            0xdb => raw(Kind::Str, 4, 0),
            0xdc => number(2).and_then(|n| plain(Kind::Array(n as u32), 3)),
            0xdd => number(4).and_then(|n| plain(Kind::Array(n as u32), 5)),
            0xde => number(2).and_then(|n| plain(Kind::Map(n as u32), 3)),
            0xdf => number(4).and_then(|n| plain(Kind::Map(n as u32), 5)),
            0xe0..=0xff => plain(Kind::Int(i64::from(first.cast_signed())), 1),
        })
    }
}
