//! HTTP/1.1 as a router must read it: where a message ends, what it asks, and which of its bytes go on.
//!
//! Nothing is repaired. Two readers who disagree on where a message ends let a stranger smuggle a request
//! past one of them, so whatever RFC 9112 calls malformed, and whatever it merely tolerates, is refused with
//! a typed [`Refusal`]. Heads are described by offsets and forwarded as slices of the bytes that came in,
//! minus the fields that concern one hop only.

mod answers;
mod chunked;
mod deadline;
mod fields;
mod framing;
mod head;

pub use answers::{Answers, Doubt, Listener, Read};
pub use chunked::{Advance, ChunkedScanner};
pub use deadline::Notation;
pub(crate) use fields::is_token;
pub use fields::{Field, Fields, Span};
pub use framing::Body;
pub use head::{HeadScan, Method, RequestHead, ResponseHead, Version};

/// The longest head, request line and blank line included, in bytes.
pub const MAX_HEAD: usize = 32 * 1024;

/// The most fields in a head.
pub const MAX_FIELDS: usize = 100;

/// Why a message was refused. None of its bytes may go on, and its connection ends: nobody can say where the
/// next message starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The first byte cannot start a request.
    #[error("this is not HTTP")]
    NotHttp,
    /// A request of HTTP/0.9: a line without a version.
    #[error("HTTP/0.9 is not served; use HTTP/1.1")]
    Http09,
    /// The preface of HTTP/2 with prior knowledge.
    #[error("HTTP/2 is not built yet; use HTTP/1.1")]
    Http2,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// The request line is not `method SP target SP version CRLF`.
    #[error("malformed request line")]
    RequestLine,
    /// The status line is not `version SP status SP reason CRLF`.
    #[error("malformed status line")]
    StatusLine,
    /// The target has bytes that no target may have, or none of the four forms.
    #[error("malformed request target")]
    Target,
    /// The head is longer than [`MAX_HEAD`].
    #[error("the head is longer than 32 KiB")]
    HeadTooLong,
    /// The head has more than [`MAX_FIELDS`] fields.
    #[error("the head has more than 100 fields")]
    TooManyFields,
    /// A line ends in LF without CR.
    #[error("a line ends in a bare LF")]
    BareLf,
    /// A CR is not followed by LF.
    #[error("a CR is not followed by LF")]
    BareCr,
    /// A field goes on in the next line.
    #[error("a field is folded over two lines")]
    ObsFold,
    /// White space between a field's name and its colon.
    #[error("white space before a colon")]
    SpaceBeforeColon,
    /// A field's name is empty or has bytes that no name may have, or it imitates a framing field.
    #[error("malformed field name")]
    FieldName,
    /// A field's value has NUL or another control character.
    #[error("a field's value has a control character")]
    FieldValue,
    /// `Content-Length` is not a number in digits.
    #[error("Content-Length is not a number")]
    ContentLength,
    /// `Content-Length` is given twice, equal or not.
    #[error("Content-Length is given more than once")]
    RepeatedContentLength,
    /// Both `Content-Length` and `Transfer-Encoding`.
    #[error("both Content-Length and Transfer-Encoding")]
    TwoFramings,
    /// `Transfer-Encoding` is not exactly `chunked`, or is given twice.
    #[error("Transfer-Encoding is not exactly \"chunked\"")]
    TransferEncoding,
    /// `Transfer-Encoding` in a message of HTTP/1.0, which has none.
    #[error("Transfer-Encoding in HTTP/1.0")]
    TransferEncodingIn10,
    /// A request of HTTP/1.1 without `Host`.
    #[error("Host is missing")]
    MissingHost,
    /// `Host` is given twice.
    #[error("Host is given more than once")]
    RepeatedHost,
    /// `Host` is not a host with an optional port.
    #[error("malformed Host")]
    Host,
    /// The target names another authority than `Host`.
    #[error("the request target and Host disagree")]
    HostMismatch,
    /// `Connection` is malformed, too long, or names a field that frames or addresses the message.
    #[error("Connection is malformed, or names a field that does not concern one hop only")]
    Connection,
    /// `Expect` wants something other than `100-continue`.
    #[error("an expectation other than 100-continue")]
    Expect,
    /// The request wants to change the protocol of its connection, in a way that leaves doubt.
    #[error(
        "protocols are changed (Upgrade) by GET without body, to one protocol, on a connection that goes on"
    )]
    Upgrade,
    /// The request wants a tunnel.
    #[error("CONNECT is not served: this is no proxy to other hosts")]
    Connect,
    /// A chunk's size is not 1 to 15 hexadecimal digits.
    #[error("malformed chunk size")]
    ChunkSize,
    /// A chunk extension is malformed or too long.
    #[error("malformed or oversized chunk extension")]
    ChunkExtension,
    /// A chunk's data is not followed by CRLF.
    #[error("a chunk does not end in CRLF")]
    ChunkEnd,
    /// The trailer section is malformed, too long, or has a field that frames or addresses a message.
    #[error("malformed, oversized or forbidden trailer field")]
    Trailer,
    /// The field that says how long the client waits is given twice, or is no time.
    #[error(
        "the deadline is no time as its field has it (milliseconds in digits; grpc-timeout: digits and a unit), or is given more than once"
    )]
    Deadline,
    /// What holds the key is given twice, so which one the server reads is anybody's guess.
    #[error("the key is given more than once")]
    RepeatedKey,
    /// The path holds the key and has `.` or `..` segments, so the server may read another key out of it.
    #[error("the path holds the key and has a . or .. segment")]
    DotSegment,
    /// The key has a `%` that is not followed by two hexadecimal digits.
    #[error("the key has a malformed percent-encoding")]
    KeyEncoding,
    /// The key in the query has a `+`, which is a space to some servers.
    #[error("the key in the query has a +, which some servers take for a space: write %2B or %20")]
    KeyPlus,
    /// A `;` makes another key to servers that take it for a separator.
    #[error("a ; stands where some servers take it for the end of the key: write %3B")]
    KeySeparator,
    /// The key in a body or token is not text, or half a character.
    #[error("the key is not valid text")]
    KeyText,
    /// The key in a body or token is longer than [`MAX_KEY`](crate::extract::MAX_KEY).
    #[error("the key is longer than 4 KiB")]
    KeyTooLong,
    /// The key is not within that part of the body in which it is looked for.
    #[error("the key is not within the first part of the body, in which it must be")]
    KeyTooFar,
    /// The body is read for its key, and `Content-Type` is given twice or malformed.
    #[error("Content-Type is malformed, or given more than once")]
    ContentType,
    /// The body is read for its key, and is compressed or in another encoding than UTF-8.
    #[error("the body holds the key, and is compressed or not in UTF-8: send it plain")]
    BodyEncoding,
    /// The body is read for its key, and is not JSON.
    #[error("the body holds the key, and is not JSON as Content-Type says")]
    JsonBody,
    /// The body is read for its key, and is nested too deep.
    #[error("the body holds the key, and is nested deeper than 64 levels")]
    JsonDepth,
    /// The body is read for its key, and is malformed, or servers read it in different ways.
    #[error("the body holds the key, and is not strict multipart/form-data as Content-Type says")]
    MultipartBody,
    /// The bearer token holds the key, and its claims cannot be read.
    #[error("the bearer token holds the key, and its claims are not JSON in base64url")]
    Token,
    /// A response that says "switching protocols" to a request that did not ask for it, or asked for another one.
    #[error("the server switches to a protocol that was not asked for")]
    UnaskedUpgrade,
}

impl Refusal {
    /// The status that tells the client: 400, or 413, 415, 417, 431 and 501 where those say it better.
    pub const fn status(self) -> u16 {
        match self {
            Self::Upgrade | Self::Connect => 501,
            Self::KeyTooFar => 413,
            Self::BodyEncoding => 415,
            Self::Expect => 417,
            Self::HeadTooLong | Self::TooManyFields => 431,
            _ => 400,
        }
    }
}
