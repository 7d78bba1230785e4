//! What the router's own parser reads in a stream, and the bytes that it passes on.

use std::fmt;

use router_proto::http::{Body, ChunkedScanner, HeadScan, Refusal, RequestHead, Version};

/// One request, as anybody should read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target in origin form, or `*`.
    pub target: String,
    /// The body, without chunks around it.
    pub body: Vec<u8>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} with \"{}\"", self.method, self.target, self.body.escape_ascii())
    }
}

/// What the router reads in a stream.
#[derive(Debug, Default)]
pub struct Reading {
    /// The whole requests, and what goes on of them.
    pub parts: Vec<Part>,
    /// Why it reads no further, if not because the stream ends.
    pub refused: Option<Refusal>,
}

/// Requests that may go on together on one connection.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The requests.
    pub requests: Vec<Request>,
    /// What goes on of them.
    pub forwarded: Vec<u8>,
    /// Whether the server closes the connection after the last of them, as after one of HTTP/1.0.
    pub last: bool,
}

impl Reading {
    /// Reads a stream.
    pub fn of(stream: &[u8]) -> Self {
        let (mut reading, mut rest) = (Self::default(), stream);
        loop {
            match reading.next(rest) {
                Ok(Some((len, goes_on))) => {
                    rest = &rest[len..];
                    if !goes_on {
                        return reading;
                    }
                }
                Ok(None) => return reading,
                Err(refusal) => {
                    reading.refused = Some(refusal);
                    return reading;
                }
            }
        }
    }

    /// All requests.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.parts.iter().flat_map(|part| &part.requests)
    }

    /// Reads a request: how long it is, and whether the connection goes on. `None` if it is not whole.
    fn next(&mut self, input: &[u8]) -> Result<Option<(usize, bool)>, Refusal> {
        let Some(place) = HeadScan::default().request(input)? else { return Ok(None) };
        let head = &input[place.clone()];
        let parsed = RequestHead::parse(head)?;
        let rest = &input[place.end..];
        let (len, body) = match parsed.body() {
            Body::Length(len) => match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
                Some(body) => (body.len(), body.to_vec()),
                None => return Ok(None),
            },
            Body::Chunked => {
                let advance = ChunkedScanner::default().advance(rest)?;
                if !advance.done {
                    return Ok(None);
                }
                (advance.len, unchunked(&rest[..advance.len]))
            }
            Body::None | Body::UntilClose => (0, Vec::new()),
        };
        let forwarded = parsed.forward(head).collect::<Vec<_>>().concat();
        let mut words = forwarded.split(|byte| *byte == b' ');
        let mut word = || String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        if self.parts.last().is_none_or(|part| part.last) {
            self.parts.push(Part::default());
        }
        if let Some(part) = self.parts.last_mut() {
            part.requests.push(Request { method: word(), target: word(), body });
            part.forwarded.extend_from_slice(&forwarded);
            part.forwarded.extend_from_slice(b"\r\n");
            part.forwarded.extend_from_slice(&rest[..len]);
            part.last = parsed.version() == Version::Http10;
        }
        Ok(Some((place.end + len, parsed.persistent())))
    }
}

/// The data of a chunked body that the scanner has passed.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let digits = body.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = str::from_utf8(&body[..digits]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let line = body.windows(2).position(|end| end == b"\r\n");
        let (Some(size), Some(line)) = (size, line) else { unreachable!("the scanner has passed it") };
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&body[line + 2..line + 2 + size]);
        body = &body[line + 2 + size + 2..];
    }
}
