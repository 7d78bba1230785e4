//! Keys in bodies: all extractors that fit a request's body follow it at once, until it is decided which of
//! them, in the order of the configuration, has the key.

use alloc::vec::Vec;

use super::{
    Extract, Extractor, Step,
    json::JsonScan,
    multipart::MultipartScan,
    pairs::PairScan,
    parameters::{Parameters, split},
};
use crate::http::{Body, Refusal, RequestHead};

/// The search for the key of one request in its body. Kept for the next one, it need not allocate again.
#[derive(Clone, Debug)]
pub struct BodySearch {
    scans: Vec<Scan>,
    /// How many of them follow the body in hand.
    used: usize,
    /// The key that another extractor found in the head, behind those of the body in their order.
    fallback: Vec<u8>,
    /// How many bytes of a body are looked at.
    most: usize,
    /// How many more of the body in hand.
    left: usize,
}

#[derive(Clone, Debug)]
struct Scan {
    /// Its extractor's position.
    extractor: usize,
    kind: Kind,
    key: Vec<u8>,
    /// What came of it, once it is over.
    outcome: Option<Result<(), Refusal>>,
}

#[derive(Clone, Debug)]
enum Kind {
    Json(JsonScan),
    Form(PairScan),
    Multipart(MultipartScan),
}

/// What a request's `Content-Type` says, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) enum ContentType<'a> {
    Json,
    Form,
    Multipart { boundary: &'a [u8] },
    Other,
}

impl<'a> ContentType<'a> {
    /// Reads it off a request with a body in which a key may be.
    pub fn of(request: &RequestHead, head: &'a [u8]) -> Result<Self, Refusal> {
        let fields = request.fields();
        let mut types = fields.values(head, b"content-type");
        if request.body() == Body::None {
            return Ok(Self::Other);
        }
        let Some(value) = types.next() else { return Ok(Self::Other) };
        if types.next().is_some() {
            return Err(Refusal::ContentType);
        }
        let (kind, parameters) = split(value);
        let is = |name: &[u8]| kind.eq_ignore_ascii_case(name);
        let json = is(b"application/json")
            || kind.len() > 5 && kind[kind.len() - 5..].eq_ignore_ascii_case(b"+json");
        let found = if json {
            Self::Json
        } else if is(b"application/x-www-form-urlencoded") {
            Self::Form
        } else if is(b"multipart/form-data") {
            Self::Multipart { boundary: b"" }
        } else {
            return Ok(Self::Other);
        };
        let mut bounded = None;
        for parameter in Parameters(parameters) {
            let (name, value) = parameter.ok_or(Refusal::ContentType)?;
            if name.eq_ignore_ascii_case(b"boundary") && bounded.replace(value).is_some() {
                return Err(Refusal::ContentType);
            }
            if name.eq_ignore_ascii_case(b"charset") && !value.eq_ignore_ascii_case(b"utf-8") {
                return Err(Refusal::BodyEncoding);
            }
        }
        // The server would not see what the router went by.
        if fields.stays_behind(head, b"content-type") || fields.stays_behind(head, b"content-encoding") {
            return Err(Refusal::Connection);
        }
        if fields.values(head, b"content-encoding").any(|coding| !coding.eq_ignore_ascii_case(b"identity")) {
            return Err(Refusal::BodyEncoding);
        }
        match (found, bounded) {
            (Self::Multipart { .. }, Some(boundary)) => Ok(Self::Multipart { boundary }),
            (Self::Multipart { .. }, None) => Err(Refusal::ContentType),
            (found, _) => Ok(found),
        }
    }
}

impl BodySearch {
    /// For searches in the first `most` bytes of bodies.
    pub const fn new(most: usize) -> Self {
        Self { scans: Vec::new(), used: 0, fallback: Vec::new(), most, left: most }
    }

    /// Forgets the last request.
    pub(super) fn restart(&mut self) {
        (self.used, self.left) = (0, self.most);
        self.fallback.clear();
    }

    /// Gives up most of its memory, and what it has found: its client may be idle for long.
    pub fn rest(&mut self) {
        /// What most keys need.
        const KEPT: usize = 64;
        for scan in &mut self.scans {
            scan.key.clear();
            scan.key.shrink_to(KEPT);
            if matches!(scan.kind, Kind::Multipart(_)) {
                scan.kind = Kind::Form(PairScan::form(false));
            }
        }
        self.used = 0;
        self.fallback.clear();
        self.fallback.shrink_to(KEPT);
    }

    /// Lets this extractor follow the body, if it reads such bodies.
    pub(super) fn follow(
        &mut self,
        at: usize,
        extractor: &Extractor,
        content: ContentType<'_>,
    ) -> Result<(), Refusal> {
        let kind = match (extractor, content) {
            (Extractor::Json { only, .. }, ContentType::Json) => Kind::Json(JsonScan::new(*only)),
            (Extractor::Form { only, .. }, ContentType::Form) => Kind::Form(PairScan::form(*only)),
            (Extractor::Multipart { only, .. }, ContentType::Multipart { boundary }) => {
                Kind::Multipart(MultipartScan::new(boundary, *only).ok_or(Refusal::ContentType)?)
            }
            _ => return Ok(()),
        };
        match self.scans.get_mut(self.used) {
            Some(scan) => {
                (scan.extractor, scan.kind, scan.outcome) = (at, kind, None);
                scan.key.clear();
            }
            None => self.scans.push(Scan { extractor: at, kind, key: Vec::new(), outcome: None }),
        }
        self.used += 1;
        Ok(())
    }

    /// Whether there is anything to search for.
    pub(super) const fn is_needed(&self) -> bool {
        self.used > 0
    }

    pub(super) fn fall_back(&mut self, key: &[u8]) {
        self.fallback.extend_from_slice(key);
    }

    /// Looks at what comes next of the body, without its framing. Returns whether the search is over; then
    /// [`BodySearch::key`] is what came of it. `extract` is whose search this is.
    ///
    /// The result does not depend on how the body is cut.
    ///
    /// # Errors
    /// The key is ambiguous, or cannot be found because the body is malformed, or is not within its first
    /// bytes.
    pub fn feed(&mut self, extract: &Extract, data: &[u8]) -> Result<bool, Refusal> {
        let near = &data[..data.len().min(self.left)];
        self.left -= near.len();
        for scan in &mut self.scans[..self.used] {
            if scan.outcome.is_some() {
                continue;
            }
            let key = &mut scan.key;
            let step = match (&mut scan.kind, &extract.0[scan.extractor]) {
                (Kind::Json(scan), Extractor::Json { pointer, .. }) => scan.feed(pointer, near, key),
                (Kind::Form(scan), Extractor::Form { name, .. }) => scan.feed(name, near, key),
                (Kind::Multipart(scan), Extractor::Multipart { name, .. }) => scan.feed(name, near, key),
                _ => unreachable!("a search belongs to the extractors that began it"),
            };
            scan.outcome = match step {
                Ok(Step::More) => None,
                Ok(Step::Done) => Some(Ok(())),
                Err(refusal) => Some(Err(refusal)),
            };
        }
        let over = self.is_over()?;
        if !over && near.len() < data.len() { Err(Refusal::KeyTooFar) } else { Ok(over) }
    }

    /// The body has ended.
    ///
    /// # Errors
    /// As for [`BodySearch::feed`].
    pub fn finish(&mut self, extract: &Extract) -> Result<(), Refusal> {
        for scan in &mut self.scans[..self.used] {
            if scan.outcome.is_some() {
                continue;
            }
            scan.outcome = Some(match (&mut scan.kind, &extract.0[scan.extractor]) {
                (Kind::Json(scan), _) => scan.finish(),
                (Kind::Form(scan), Extractor::Form { name, .. }) => scan.finish(name),
                (Kind::Multipart(scan), _) => scan.finish(),
                _ => unreachable!("a search belongs to the extractors that began it"),
            });
        }
        self.is_over().map(|over| debug_assert!(over))
    }

    /// The key, once the search is over; `None` if there is none.
    pub fn key(&self) -> Option<&[u8]> {
        let keys = self.scans[..self.used].iter().map(|scan| &scan.key).chain([&self.fallback]);
        keys.map(Vec::as_slice).find(|key| !key.is_empty())
    }

    /// Whether the first extractor that has a key is known, or that none has.
    fn is_over(&self) -> Result<bool, Refusal> {
        for scan in &self.scans[..self.used] {
            match scan.outcome {
                None => return Ok(false),
                Some(Err(refusal)) => return Err(refusal),
                Some(Ok(())) if !scan.key.is_empty() => return Ok(true),
                Some(Ok(())) => {}
            }
        }
        Ok(true)
    }
}
