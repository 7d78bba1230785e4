//! Request and response heads: found in a growing buffer, parsed once, described by offsets.

use core::mem::MaybeUninit;

use super::{
    Body, MAX_HEAD, Refusal,
    fields::{Fields, Parsed, Span, is_taken_for, is_token},
    framing::{self, Offer},
};

/// Finds the end of a head in a buffer that grows; looks at every byte once, however it is cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScan {
    /// Where the head starts: 2 after a stray CRLF, else 0.
    start: usize,
    /// Where the line in hand starts.
    line: usize,
    /// How far the line in hand has been searched for its end.
    searched: usize,
}

impl HeadScan {
    /// Looks for the end of a request's head in `input`, which starts where the head does and only grows
    /// between calls. Returns the head's place, blank line included; `None` while bytes are missing.
    ///
    /// One empty line before the request line is passed over, as RFC 9112 (2.2) asks of servers.
    ///
    /// # Errors
    /// What no further byte can mend: not HTTP, another version, a bare LF, too long.
    pub fn request(&mut self, input: &[u8]) -> Result<Option<core::ops::Range<usize>>, Refusal> {
        if self.line == 0 && self.start == 0 {
            match input {
                [b'\r', b'\n', ..] => *self = Self { start: 2, line: 2, searched: 2 },
                [b'\r'] => return Ok(None),
                _ => {}
            }
        }
        if self.line == self.start && input.get(self.start).is_some_and(|&first| !is_token(first)) {
            return Err(Refusal::NotHttp);
        }
        let first_line_open = self.line == self.start;
        let found = self.end(input)?;
        if first_line_open && self.line > self.start {
            let lf = memchr::memchr(b'\n', &input[self.start..]).unwrap_or_default();
            version_of(&input[self.start..self.start + lf.saturating_sub(1)])?;
        }
        Ok(found.map(|end| self.start..end))
    }

    /// Looks for the end of a response's head; as [`HeadScan::request`], but without stray lines.
    ///
    /// # Errors
    /// A bare LF, or a head too long.
    pub fn response(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        self.end(input)
    }

    fn end(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(lf) = memchr::memchr(b'\n', &input[self.searched..]) {
            let lf = self.searched + lf;
            if lf == self.line || input[lf - 1] != b'\r' {
                return Err(Refusal::BareLf);
            }
            if lf + 1 - self.start > MAX_HEAD {
                return Err(Refusal::HeadTooLong);
            }
            if lf - 1 == self.line {
                self.searched = lf + 1;
                return Ok(Some(lf + 1));
            }
            self.line = lf + 1;
            self.searched = lf + 1;
        }
        self.searched = input.len();
        if input.len() - self.start >= MAX_HEAD { Err(Refusal::HeadTooLong) } else { Ok(None) }
    }
}

/// Judges a request line, without its CRLF, by its last word.
fn version_of(line: &[u8]) -> Result<(), Refusal> {
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
        return Ok(());
    }
    let word = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    Err(match word {
        b"HTTP/2.0" if line == b"PRI * HTTP/2.0" => Refusal::Http2,
        word if word.starts_with(b"HTTP/") => Refusal::Version,
        _ if line.iter().filter(|&&byte| byte == b' ').count() <= 1 && !line.contains(&b'\r') => {
            Refusal::Http09
        }
        _ => Refusal::RequestLine,
    })
}

/// The methods that the router tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "RFC 9110 documents them")]
pub enum Method {
    Get,
    Head,
    Options,
    Trace,
    Post,
    Put,
    Patch,
    Delete,
    Connect,
    /// Any other.
    Other,
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether the method changes nothing (RFC 9110, 9.2.1), so that any clone may answer it, twice if need
    /// be.
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }
}

/// The two versions that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0: no chunks, and connections close unless told otherwise.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    const fn of(minor: u8) -> Self {
        if minor == 0 { Self::Http10 } else { Self::Http11 }
    }
}

/// A request's head: what it asks, how its body ends, and which of its bytes go on.
#[derive(Debug)]
pub struct RequestHead {
    fields: Fields,
    method: Method,
    /// The target as written.
    target: Span,
    /// The target's path and query: the target itself, unless it is in absolute form.
    path_and_query: Span,
    version: Version,
    body: Body,
    persistent: bool,
    expects_continue: bool,
    upgrade: Option<Span>,
}

impl RequestHead {
    /// Parses a whole head, as [`HeadScan::request`] found it.
    ///
    /// # Errors
    /// The first thing found wrong with it. Every rule of this module's introduction is checked here.
    pub fn parse(head: &[u8]) -> Result<Self, Refusal> {
        let mut space: Parsed<'_> = [MaybeUninit::uninit(); _];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, &mut space) {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Ok(_) => return Err(Refusal::RequestLine),
            // The line's last word was judged when the line was complete; if the parser finds no version
            // where it expects one, there is a word too many.
            Err(httparse::Error::Version) => {
                return Err(refusal(head, httparse::Error::Token, Refusal::RequestLine));
            }
            Err(error) => return Err(refusal(head, error, Refusal::RequestLine)),
        }
        let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Refusal::RequestLine);
        };
        let method = Method::of(method);
        let version = Version::of(minor);
        let mut fields = Fields::of(head, parsed.headers);
        let said = framing::read(head, &mut fields, version, true)?;

        let target = Span::within(head, target.as_bytes());
        let (path_and_query, authority) = split_target(head, target, method)?;
        let host = said.host.map(|at| fields.get(at).value.of(head));
        match (host, authority) {
            (None, _) if version == Version::Http11 => return Err(Refusal::MissingHost),
            (Some(host), _) if !is_authority(host) => return Err(Refusal::Host),
            (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority.of(head)) => {
                return Err(Refusal::HostMismatch);
            }
            _ => {}
        }
        if method == Method::Connect {
            return Err(Refusal::Connect);
        }
        let body = match said.length {
            _ if said.chunked => Body::Chunked,
            Some(length) if length > 0 => Body::Length(length),
            _ => Body::None,
        };
        // HTTP/1.0 knows no such thing (RFC 9110, 7.8).
        let upgrade = match said.offer {
            Offer::One(protocol) if said.upgrade && version == Version::Http11 => {
                if method != Method::Get || body != Body::None || said.close {
                    return Err(Refusal::Upgrade);
                }
                Some(protocol)
            }
            Offer::Unclear if said.upgrade && version == Version::Http11 => return Err(Refusal::Upgrade),
            _ => None,
        };
        let persistent = !said.close && (version == Version::Http11 || said.keep_alive);
        let expects_continue = said.expects_continue && body != Body::None;
        Ok(Self {
            fields,
            method,
            target,
            path_and_query,
            version,
            body,
            persistent,
            expects_continue,
            upgrade,
        })
    }

    /// The method.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// The method, as it is written.
    pub fn method_name<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[..self.target.start() - 1]
    }

    /// The version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// How the body ends.
    pub const fn body(&self) -> Body {
        self.body
    }

    /// Whether the client means to send further requests on its connection.
    pub const fn persistent(&self) -> bool {
        self.persistent
    }

    /// Whether the client waits for `100 Continue` before it sends the body. The router answers that itself;
    /// the field does not go on.
    pub const fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// The protocol that the client wants to speak from here on, if it does. The fields that say so do not go
    /// on: they are the router's to say.
    pub fn upgrade<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        self.upgrade.map(|protocol| protocol.of(head))
    }

    /// The fields.
    pub const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Keeps back the fields of this name, which is given in lower case, and those that a server may take for them: what they
    /// say goes on in the router's words.
    pub fn keep_back(&mut self, head: &[u8], name: &[u8]) {
        for at in 0..self.fields.len() {
            if is_taken_for(self.fields.get(at).name.of(head), name) {
                self.fields.drop_field(at);
            }
        }
    }

    /// The path, without query; `*` for `OPTIONS *`, empty for an absolute target without path.
    pub fn path<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let target = self.path_and_query.of(head);
        &target[..memchr::memchr(b'?', target).unwrap_or(target.len())]
    }

    /// The query, without its question mark; empty if there is none.
    pub fn query<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let target = self.path_and_query.of(head);
        memchr::memchr(b'?', target).map_or(b"", |mark| &target[mark + 1..])
    }

    /// The plan for the next hop: these slices in this order, then whatever lines the router adds, then CRLF.
    ///
    /// They are the head as it came, with an absolute target cut down to path and query, and without the
    /// fields that concern one hop only. The body's framing goes on as it is.
    pub fn forward<'a>(&'a self, head: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let path = self.path_and_query.of(head);
        let root: &[u8] = if matches!(path.first(), Some(b'/' | b'*')) { b"" } else { b"/" };
        let line = [&head[..self.target.start()], root, path, &head[self.target.end()..self.fields.start()]];
        line.into_iter().chain(self.fields.kept(head))
    }
}

/// Tells the target's forms apart: returns its path and query, and the authority of an absolute target.
fn split_target(head: &[u8], target: Span, method: Method) -> Result<(Span, Option<Span>), Refusal> {
    let bytes = target.of(head);
    if bytes.iter().any(|&byte| !(0x21..=0x7e).contains(&byte) || byte == b'#') {
        return Err(Refusal::Target);
    }
    let scheme_len = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| bytes.len() >= scheme.len() && bytes[..scheme.len()].eq_ignore_ascii_case(scheme))
        .map(<[u8]>::len);
    match (bytes, scheme_len) {
        _ if method == Method::Connect => Ok((target, None)),
        ([b'/', ..], _) => Ok((target, None)),
        (b"*", _) if method == Method::Options => Ok((target, None)),
        (_, Some(scheme_len)) => {
            let start = target.start() + scheme_len;
            let len = bytes[scheme_len..].iter().take_while(|byte| !b"/?".contains(byte)).count();
            let authority = Span::new(start, start + len);
            if len == 0 || !is_authority(authority.of(head)) {
                return Err(Refusal::Target);
            }
            Ok((Span::new(authority.end(), target.end()), Some(authority)))
        }
        _ => Err(Refusal::Target),
    }
}

/// Whether this can be a host with an optional port (RFC 9110, 7.2); user names are not served.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', ..] => match memchr::memchr(b']', text) {
            Some(close) => text.split_at(close + 1),
            None => return false,
        },
        _ => text.split_at(memchr::memchr(b':', text).unwrap_or(text.len())),
    };
    let host_ok = match host {
        [b'[', inner @ .., b']'] => {
            !inner.is_empty() && inner.iter().all(|b| b.is_ascii_hexdigit() || b":.".contains(b))
        }
        name => name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(b)),
    };
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host_ok && port_ok
}

/// A response's head: what it says, how its body ends, and which of its bytes go on.
#[derive(Debug)]
pub struct ResponseHead {
    fields: Fields,
    status: u16,
    body: Body,
    persistent: bool,
    keep_alive_timeout_s: Option<u32>,
}

impl ResponseHead {
    /// Parses a whole head, as [`HeadScan::response`] found it; `to` is the method of the request it answers.
    ///
    /// # Errors
    /// The first thing found wrong with it. The connection it came from ends.
    pub fn parse(head: &[u8], to: Method) -> Result<Self, Refusal> {
        Self::parse_to(head, to, None)
    }

    /// As [`ResponseHead::parse`], for a request that asked to speak another protocol, `asked`: the response may
    /// say that this begins now, if it names the same one.
    ///
    /// # Errors
    /// As there.
    pub fn parse_upgrade(head: &[u8], asked: &[u8]) -> Result<Self, Refusal> {
        Self::parse_to(head, Method::Get, Some(asked))
    }

    fn parse_to(head: &[u8], to: Method, asked: Option<&[u8]>) -> Result<Self, Refusal> {
        let mut space: Parsed<'_> = [MaybeUninit::uninit(); _];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, head, &mut space) {
            Ok(httparse::Status::Complete(len)) if len == head.len() && !head.starts_with(b"\r\n") => {}
            Ok(_) => return Err(Refusal::StatusLine),
            Err(error) => return Err(refusal(head, error, Refusal::StatusLine)),
        }
        let (Some(minor), Some(status)) = (parsed.version, parsed.code) else {
            return Err(Refusal::StatusLine);
        };
        if !(100..600).contains(&status) {
            return Err(Refusal::StatusLine);
        }
        if status == 101 && asked.is_none() {
            return Err(Refusal::UnaskedUpgrade);
        }
        let version = Version::of(minor);
        let mut fields = Fields::of(head, parsed.headers);
        let said = framing::read(head, &mut fields, version, false)?;
        if status == 101 {
            let same = |taken: Span| asked.is_some_and(|asked| taken.of(head).eq_ignore_ascii_case(asked));
            let taken = matches!(said.offer, Offer::One(taken) if same(taken));
            // It has no body, and one that says otherwise leaves doubt where the new protocol begins.
            let framed = said.length.is_some() || said.chunked;
            if !taken || !said.upgrade || said.close || framed || version == Version::Http10 {
                return Err(Refusal::UnaskedUpgrade);
            }
        }
        let bodiless = status < 200 || status == 204 || status == 304;
        let body = match said.length {
            _ if bodiless || to == Method::Head => Body::None,
            _ if said.chunked => Body::Chunked,
            Some(0) => Body::None,
            Some(length) => Body::Length(length),
            None => Body::UntilClose,
        };
        let mut persistent = !said.close && (version == Version::Http11 || said.keep_alive);
        if status < 200 || status == 204 {
            // These have no body whatever they say, and the next reader might believe what they say.
            for at in 0..fields.len() {
                let name = fields.get(at).name.of(head);
                if name.eq_ignore_ascii_case(b"content-length")
                    || name.eq_ignore_ascii_case(b"transfer-encoding")
                {
                    fields.drop_field(at);
                }
            }
            persistent &= !said.chunked && said.length.unwrap_or(0) == 0;
        }
        persistent &= body != Body::UntilClose;
        Ok(Self { fields, status, body, persistent, keep_alive_timeout_s: said.keep_alive_timeout_s })
    }

    /// The status code.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Whether another head follows this one for the same request.
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && !self.switches()
    }

    /// Whether the protocol that was asked for begins behind this head.
    pub const fn switches(&self) -> bool {
        self.status == 101
    }

    /// How the body ends.
    pub const fn body(&self) -> Body {
        self.body
    }

    /// Whether the server means to answer further requests on this connection.
    pub const fn persistent(&self) -> bool {
        self.persistent
    }

    /// How long the server says it keeps an idle connection, in seconds.
    pub const fn keep_alive_timeout_s(&self) -> Option<u32> {
        self.keep_alive_timeout_s
    }

    /// The fields.
    pub const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Drops the fields whose names begin with `prefix`, which is in lower case: they are the router's to say.
    pub fn reserve(&mut self, head: &[u8], prefix: &[u8]) {
        for at in 0..self.fields.len() {
            let name = self.fields.get(at).name.of(head);
            if name.len() >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix) {
                self.fields.drop_field(at);
            }
        }
    }

    /// The plan for the client: these slices in this order, then whatever lines the router adds, then CRLF.
    ///
    /// The version is the router's own, HTTP/1.1, whatever the server's was.
    pub fn forward<'a>(&'a self, head: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        const VERSION: &[u8] = b"HTTP/1.1";
        [VERSION, &head[VERSION.len()..self.fields.start()]].into_iter().chain(self.fields.kept(head))
    }
}

/// Finds out what the parser stumbled over. Slow, but whoever sends such heads can wait.
#[cold]
fn refusal(head: &[u8], error: httparse::Error, start_line: Refusal) -> Refusal {
    use httparse::Error;
    let lone_cr = memchr::memchr_iter(b'\r', head).any(|cr| head.get(cr + 1) != Some(&b'\n'));
    match error {
        Error::TooManyHeaders => Refusal::TooManyFields,
        _ if lone_cr => Refusal::BareCr,
        Error::HeaderName => {
            let mut lines = head.split(|&byte| byte == b'\n').skip(1);
            let bad = lines.find(|line| {
                let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
                *line != b"\r"
                    && (name.len() == line.len() || !name.iter().copied().all(is_token) || name.is_empty())
            });
            match bad {
                Some([b' ' | b'\t', ..]) => Refusal::ObsFold,
                Some(line) => {
                    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
                    let spaced = matches!(name.last(), Some(b' ' | b'\t')) && name.len() < line.len();
                    if spaced { Refusal::SpaceBeforeColon } else { Refusal::FieldName }
                }
                None => Refusal::FieldName,
            }
        }
        Error::HeaderValue => Refusal::FieldValue,
        Error::NewLine => Refusal::BareCr,
        Error::Version => Refusal::Version,
        _ => start_line,
    }
}
