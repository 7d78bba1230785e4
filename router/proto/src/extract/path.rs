//! Keys in paths: templates, with a method in front or without.

use alloc::{boxed::Box, string::ToString, vec::Vec};

use super::ExtractError;
use crate::http::{Refusal, is_token};

/// A path pattern: literal segments, `{key}` once, `*` for one segment, or, at the end, for any rest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template {
    /// The only method that it matches, if it has one.
    method: Option<Box<[u8]>>,
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
    /// Compiles `/items/{key}/*`, or `POST /items/{key}`.
    pub fn compile(template: &str) -> Result<Self, ExtractError> {
        let wrong = |problem| ExtractError::Template { template: template.to_string(), problem };
        let (method, path) = match template.split_once(' ') {
            Some((method, path)) => (Some(method), path),
            None => (None, template),
        };
        // Methods are case-sensitive, and nobody has one in lower case.
        if method.is_some_and(|method| {
            method.is_empty() || !method.bytes().all(|b| is_token(b) && !b.is_ascii_lowercase())
        }) {
            return Err(wrong("has a method that is none: write it in capitals, such as POST /items/{key}"));
        }
        let rest = path.strip_prefix('/').ok_or(wrong("must start with /, such as /items/{key}/*"))?;
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
        let method = method.map(|method| method.as_bytes().into());
        Ok(Self { method, segments: segments.into(), any_rest })
    }

    /// The part of the path that stands for the key, as it is written.
    pub fn key<'a>(&self, method: &[u8], path: &'a [u8]) -> Result<Option<&'a [u8]>, Refusal> {
        if self.method.as_ref().is_some_and(|only| **only != *method) {
            return Ok(None);
        }
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

/// Decodes `%41`.
pub(super) fn decode(key: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
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
