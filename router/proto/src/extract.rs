//! Where in a request the key is: extractors compiled from configuration, tried in order.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};

use crate::http::{Refusal, RequestHead};

/// How the key is found in a request of HTTP: one extractor after the other, until one finds a key.
#[derive(Clone, Debug)]
pub struct Extract(Box<[Extractor]>);

#[derive(Clone, Debug)]
enum Extractor {
    /// The name, in lower case.
    Header(Box<[u8]>),
    Path(Template),
}

/// Why an extractor cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// No extractor at all.
    #[error("no extractor: give at least one, such as \"header:x-key\" or \"path:/items/{{key}}/*\"")]
    Empty,
    /// An extractor that is planned.
    #[error("the extractor {0:?} is not built yet: use header:NAME or path:/TEMPLATE")]
    NotBuilt(String),
    /// Something else.
    #[error("unknown extractor {0:?}: use header:NAME or path:/TEMPLATE")]
    Unknown(String),
    /// The header concerns one connection or the framing of one message.
    #[error("the header {0:?} cannot be a key: it concerns one connection or one message's framing")]
    OneHop(Box<str>),
    /// The name of the header is not one.
    #[error("{0:?} is not a header name: use letters, digits and hyphens")]
    HeaderName(String),
    /// The path template cannot match as it stands.
    #[error("the path template {template:?} {problem}")]
    Template {
        /// The template.
        template: String,
        /// What is wrong, and what would be right.
        problem: &'static str,
    },
}

impl Extract {
    /// Compiles a list of extractors, such as `["header:x-key", "path:/items/{key}/*"]`.
    ///
    /// # Errors
    /// The first one that is unknown, not built yet, or malformed.
    pub fn compile<'a>(specs: impl IntoIterator<Item = &'a str>) -> Result<Self, ExtractError> {
        let list = specs.into_iter().map(Extractor::compile).collect::<Result<Box<[_]>, _>>()?;
        if list.is_empty() { Err(ExtractError::Empty) } else { Ok(Self(list)) }
    }

    /// The key of this request, or `None` if it has none. Empty keys count as none.
    ///
    /// The key is a slice of `head` unless it had to be decoded, then of `scratch`. Keys in paths are
    /// percent-decoded, so that `/items/a%62` and a header `ab` name the same key.
    ///
    /// # Errors
    /// The key is ambiguous: the server might read another one out of the same request.
    pub fn key<'a>(
        &self,
        request: &RequestHead,
        head: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, Refusal> {
        for extractor in &self.0 {
            let found = match extractor {
                Extractor::Header(name) => {
                    let mut values = request.fields().values(head, name);
                    let first = values.next();
                    if values.next().is_some() {
                        return Err(Refusal::RepeatedKey);
                    }
                    // The server would not see what the router went by.
                    if first.is_some() && request.fields().stays_behind(head, name) {
                        return Err(Refusal::Connection);
                    }
                    first
                }
                Extractor::Path(template) => template.key(request.path(head))?,
            };
            let encoded = matches!(extractor, Extractor::Path(_));
            match found {
                None | Some(b"") => {}
                Some(key) if encoded && key.contains(&b'%') => {
                    decode(key, scratch)?;
                    return Ok(Some(scratch));
                }
                Some(key) => return Ok(Some(key)),
            }
        }
        Ok(None)
    }
}

/// Fields that end at this hop, or say how a message is framed.
const ONE_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Extractor {
    fn compile(spec: &str) -> Result<Self, ExtractError> {
        match spec.split_once(':') {
            Some(("header", name)) => {
                let valid = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                if name.is_empty() || !valid {
                    return Err(ExtractError::HeaderName(name.into()));
                }
                if ONE_HOP.iter().any(|field| field.eq_ignore_ascii_case(name)) {
                    return Err(ExtractError::OneHop(name.into()));
                }
                Ok(Self::Header(name.to_ascii_lowercase().into_bytes().into()))
            }
            Some(("path", template)) => Template::compile(template).map(Self::Path),
            Some(("query" | "cookie" | "json", _)) => Err(ExtractError::NotBuilt(spec.into())),
            _ => Err(ExtractError::Unknown(spec.into())),
        }
    }
}

/// A path pattern: literal segments, `{key}` once, `*` for one segment, or, at the end, for any rest.
#[derive(Clone, Debug)]
struct Template {
    segments: Box<[Segment]>,
    any_rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Key,
    Any,
}

impl Template {
    fn compile(template: &str) -> Result<Self, ExtractError> {
        let wrong = |problem| ExtractError::Template { template: template.to_string(), problem };
        let rest = template.strip_prefix('/').ok_or(wrong("must start with /, such as /items/{key}/*"))?;
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            segments.push(match segment {
                "{key}" => Segment::Key,
                "*" => Segment::Any,
                "." | ".." => {
                    return Err(wrong("has a . or .. segment, which no request may have: leave it out"));
                }
                "" => return Err(wrong("has an empty segment: leave out the double or trailing /")),
                literal if literal.contains(['{', '}', '*', '?', '#', '%']) => {
                    return Err(wrong("has a segment that is neither plain text, nor {key}, nor *"));
                }
                literal => Segment::Literal(literal.as_bytes().into()),
            });
        }
        match segments.iter().filter(|segment| **segment == Segment::Key).count() {
            1 => {}
            0 => return Err(wrong("has no {key}: put it where the key is")),
            _ => return Err(wrong("has more than one {key}: keep one")),
        }
        let any_rest = segments.last() == Some(&Segment::Any);
        if any_rest {
            segments.pop();
        }
        Ok(Self { segments: segments.into(), any_rest })
    }

    fn key<'a>(&self, path: &'a [u8]) -> Result<Option<&'a [u8]>, Refusal> {
        let Some(rest) = path.strip_prefix(b"/") else { return Ok(None) };
        let mut parts = rest.split(|&byte| byte == b'/');
        let mut key = None;
        for segment in &self.segments {
            let Some(part) = parts.next() else { return Ok(None) };
            match segment {
                Segment::Literal(literal) if **literal != *part => return Ok(None),
                Segment::Literal(_) | Segment::Any => {}
                Segment::Key => key = Some(part),
            }
        }
        if !self.any_rest && parts.next().is_some() {
            return Ok(None);
        }
        // Only now that the path would match: other paths may look as they like.
        if rest.split(|&byte| byte == b'/').any(is_dot_segment) {
            return Err(Refusal::DotSegment);
        }
        Ok(key)
    }
}

/// Whether a server that normalises paths would drop this segment or its predecessor.
fn is_dot_segment(segment: &[u8]) -> bool {
    if segment.len() > 6 {
        return false;
    }
    let mut rest = segment;
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
    dots == 1 || dots == 2
}

fn decode(key: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    out.clear();
    let digit = |at: usize| key.get(at).and_then(|&b| (b as char).to_digit(16)).ok_or(Refusal::KeyEncoding);
    let mut at = 0;
    while at < key.len() {
        if key[at] == b'%' {
            out.push((digit(at + 1)? << 4 | digit(at + 2)?) as u8);
            at += 3;
        } else {
            out.push(key[at]);
            at += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    fn key_of(specs: &[&str], target: &str, fields: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let request = RequestHead::parse(head.as_bytes()).unwrap();
        let extract = Extract::compile(specs.iter().copied()).unwrap();
        extract.key(&request, head.as_bytes(), &mut vec![]).map(|key| key.map(<[u8]>::to_vec))
    }

    #[test]
    fn headers_in_any_case_and_the_next_extractor_where_one_finds_nothing() {
        let specs = ["header:X-Key", "path:/items/{key}/*"];
        assert_eq!(key_of(&specs, "/", "x-kEY:  k1 \r\n"), Ok(Some(b"k1".to_vec())));
        assert_eq!(key_of(&specs, "/items/k2", "X-Key:\r\n"), Ok(Some(b"k2".to_vec())));
        assert_eq!(key_of(&specs, "/other", ""), Ok(None));
        assert_eq!(key_of(&specs, "/", "x-key: a\r\nX-Key: a\r\n"), Err(Refusal::RepeatedKey));
        assert_eq!(key_of(&specs, "/", "x-key: a\r\nConnection: X-Key\r\n"), Err(Refusal::Connection));
    }

    #[test]
    fn path_templates() {
        let rest = ["path:/items/{key}/*"];
        let exact = ["path:/v1/*/{key}"];
        for (specs, target, key) in [
            (&rest, "/items/42", Some("42")),
            (&rest, "/items/42/", Some("42")),
            (&rest, "/items/42/a/b?x=/items/43", Some("42")),
            (&rest, "/items/42?x", Some("42")),
            (&rest, "/items/", None),
            (&rest, "/items", None),
            (&rest, "/items//b", None),
            (&rest, "/Items/42", None),
            (&rest, "/items/a%2Fb%62", Some("a/bb")),
            (&rest, "http://h/items/42/x", Some("42")),
            (&rest, "http://h", None),
            (&exact, "/v1/any/k", Some("k")),
            (&exact, "/v1/any/k/", None),
            (&exact, "/v1/k", None),
        ] {
            assert_eq!(key_of(specs, target, ""), Ok(key.map(|key| key.as_bytes().to_vec())), "{target}");
        }
    }

    #[test]
    fn paths_that_a_server_might_read_otherwise_are_refused() {
        let specs = ["path:/items/{key}/*"];
        for target in
            ["/items/a/../b", "/items/a/%2e%2E/b", "/items/../items/b", "/items/./b", "/items/a/.%2e"]
        {
            assert_eq!(key_of(&specs, target, ""), Err(Refusal::DotSegment), "{target}");
        }
        for target in ["/items/a%", "/items/a%2", "/items/a%zz", "/items/%+1"] {
            assert_eq!(key_of(&specs, target, ""), Err(Refusal::KeyEncoding), "{target}");
        }
        assert_eq!(key_of(&specs, "/other/../x", ""), Ok(None), "no key, so no doubt about it");
        assert_eq!(key_of(&specs, "/items/.../b", ""), Ok(Some(b"...".to_vec())));
    }

    #[test]
    fn what_cannot_be_compiled_says_what_could() {
        let compile = |spec: &str| Extract::compile([spec]).unwrap_err();
        assert_eq!(compile("query:id"), ExtractError::NotBuilt("query:id".into()));
        assert_eq!(compile("cookie:sid"), ExtractError::NotBuilt("cookie:sid".into()));
        assert_eq!(compile("json:/user/id"), ExtractError::NotBuilt("json:/user/id".into()));
        assert_eq!(compile("x-key"), ExtractError::Unknown("x-key".into()));
        assert_eq!(compile("header:"), ExtractError::HeaderName("".into()));
        assert_eq!(compile("header:Keep-Alive"), ExtractError::OneHop("Keep-Alive".into()));
        assert_eq!(compile("header:x key"), ExtractError::HeaderName("x key".into()));
        for template in
            ["items/{key}", "/items", "/{key}/{key}", "/a{key}", "/items//{key}", "/../{key}", "/"]
        {
            assert!(
                matches!(compile(&format!("path:{template}")), ExtractError::Template { .. }),
                "{template}"
            );
        }
        assert_eq!(Extract::compile([]).unwrap_err(), ExtractError::Empty);
    }
}
