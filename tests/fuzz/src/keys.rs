//! Keys in bodies and heads, and the cookies of sessions: what is found must not depend on how the bytes come in, and must be what
//! a reader of the whole finds.

use data_encoding::BASE64URL_NOPAD;
use router_proto::{
    extract::{BodySearch, Extract, MAX_KEY, Search},
    http::{Notation, Refusal, RequestHead},
    sticky::Session,
    trace::{Draw, Ids, Parent},
};
use serde_json::Value;

use crate::traffic::however_it_is_cut;

const POINTERS: [&str; 4] = ["/id", "/user/id", "/a/1/b", "/0/~0~1"];

/// The key that these extractors find in a body of this type that comes in pieces.
fn search(extract: &Extract, content: &str, pieces: &[&[u8]]) -> Result<Option<Vec<u8>>, Refusal> {
    let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Type: {content}\r\n\r\n");
    let request = RequestHead::parse(head.as_bytes()).expect("well-formed");
    let mut body = BodySearch::new(4096);
    match extract.search(&request, head.as_bytes(), &mut Vec::new(), &mut body)? {
        Search::InBody => {}
        other => panic!("{other:?} without a look at the body"),
    }
    for piece in pieces {
        if body.feed(extract, piece)? {
            return Ok(body.key().map(<[u8]>::to_vec));
        }
    }
    body.finish(extract)?;
    Ok(body.key().map(<[u8]>::to_vec))
}

/// As [`search`], with this one extractor and the whole body, which must come to the same in any pieces.
fn found(spec: &str, content: &str, cut: u8, body: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    let extract = Extract::compile([spec]).expect("well-formed");
    // Which of two faults is seen first may depend on the cuts. That there is one must not.
    however_it_is_cut(cut, body, |pieces| search(&extract, content, pieces).map_err(drop));
    let found = search(&extract, content, &[body]);
    if let Ok(Some(key)) = &found {
        assert!(!key.is_empty() && key.len() <= MAX_KEY);
    }
    found
}

/// A body of JSON: the key is what serde_json finds at the pointer.
pub(crate) fn json(data: &[u8]) {
    let Some((cut, body)) = data.split_first() else { return };
    let pointer = POINTERS[usize::from(cut % 4)];
    let first = found(&format!("json:{pointer}"), "application/json", *cut, body);
    let only = found(&format!("only-json:{pointer}"), "application/json", *cut, body);
    if let (Ok(first), Ok(only)) = (&first, &only) {
        assert_eq!(first, only, "there is only one");
    }
    as_serde_reads(body, pointer, only);
}

/// A reader that makes a tree finds the same key in a document.
fn as_serde_reads(document: &[u8], pointer: &str, key: Result<Option<Vec<u8>>, Refusal>) {
    match (serde_json::from_slice::<Value>(document), key) {
        (Ok(tree), Ok(key)) => match tree.pointer(pointer) {
            None | Some(Value::Null | Value::Array(_) | Value::Object(_)) => assert_eq!(key, None),
            Some(Value::String(text)) => {
                assert_eq!(key, (!text.is_empty()).then(|| text.as_bytes().to_vec()));
            }
            Some(Value::Bool(truth)) => assert_eq!(key, Some(truth.to_string().into_bytes())),
            Some(Value::Number(_)) => {
                let key = String::from_utf8(key.expect("a number is a key")).expect("digits");
                key.parse::<f64>().expect("a number");
            }
        },
        (Ok(_), Err(refusal)) => assert!(
            matches!(
                refusal,
                Refusal::RepeatedKey | Refusal::JsonDepth | Refusal::KeyTooLong | Refusal::KeyTooFar
            ),
            "{refusal}: {}",
            document.escape_ascii()
        ),
        // Text that the key is not in is not judged as text, and numbers not by their size.
        (Err(error), Ok(_)) => {
            let why = error.to_string();
            let spared = ["surrogate", "unicode", "hex escape", "out of range", "escape"];
            assert!(spared.iter().any(|spared| why.contains(spared)), "{why}: {}", document.escape_ascii());
        }
        (Err(_), Err(_)) => {}
    }
}

/// A form: the key is the value of the only pair of that name.
pub(crate) fn form(data: &[u8]) {
    let Some((cut, body)) = data.split_first() else { return };
    let content = "application/x-www-form-urlencoded";
    let first = found("form:id", content, *cut, body);
    let Ok(only) = found("only-form:id", content, *cut, body) else { return };
    assert_eq!(first.as_ref(), Ok(&only), "there is only one");
    let mut values = body.split(|byte| *byte == b'&').filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (decoded(&pair[..equals])? == b"id").then(|| pair.get(equals + 1..).unwrap_or_default())
    });
    let value = values.next().map(|value| decoded(value).expect("a malformed one is refused"));
    assert!(values.next().is_none());
    assert_eq!(only, value.filter(|value| !value.is_empty()));
}

fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    decoded_but(text, b' ')
}

/// As [`decoded`], where a plus is this.
fn decoded_but(text: &[u8], plus: u8) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        out.push(match byte {
            b'+' => plus,
            b'%' => {
                let (digits, more) = rest.split_at_checked(2)?;
                rest = more;
                let digit = |at: usize| (digits[at] as char).to_digit(16);
                (digit(0)? << 4 | digit(1)?) as u8
            }
            other => *other,
        });
    }
    Some(out)
}

/// A form in parts: the key stands in the body, between a head and a delimiter.
pub(crate) fn multipart(data: &[u8]) {
    let Some((cut, body)) = data.split_first() else { return };
    let content = "multipart/form-data; boundary=x-y";
    let first = found("multipart:id", content, *cut, body);
    let only = found("only-multipart:id", content, *cut, body);
    if let Ok(Some(key)) = &first {
        let whole = [b"\r\n\r\n", key.as_slice(), b"\r\n--x-y"].concat();
        assert!(body.windows(whole.len()).any(|window| window == whole), "{}", body.escape_ascii());
    }
    if let Ok(only) = only {
        assert_eq!(first, Ok(only), "there is only one");
    }
}

/// A session's cookie: what is understood is written again.
pub(crate) fn session(data: &[u8]) {
    if let Some(session) = Session::parse(data) {
        let written = session.to_string();
        assert!(written.as_bytes().eq_ignore_ascii_case(data));
        assert_eq!(Session::parse(written.as_bytes()), Some(session));
    }
}

/// The key in a head, with these extractors, if it is one, and the data are in one line of it.
fn in_head(specs: &[&str], head: &str, data: &[u8], end: &str) -> Option<Result<Option<Vec<u8>>, Refusal>> {
    if data.contains(&b'\n') {
        return None;
    }
    let head = [head.as_bytes(), data, end.as_bytes()].concat();
    let request = RequestHead::parse(&head).ok()?;
    let extract = Extract::compile(specs.iter().copied()).expect("well-formed");
    let (mut scratch, mut body) = (Vec::new(), BodySearch::new(0));
    Some(match extract.search(&request, &head, &mut scratch, &mut body) {
        Ok(Search::Key(key)) => {
            assert!(!key.is_empty());
            Ok(Some(key.to_vec()))
        }
        Ok(Search::NoKey) => Ok(None),
        Ok(Search::InBody) => unreachable!("there is none"),
        Err(refusal) => Err(refusal),
    })
}

const HEAD_ENDS: &str = " HTTP/1.1\r\nHost: h\r\n\r\n";

/// A query: the key is the value of the only pair of that name, whichever separators a server knows.
pub(crate) fn query(data: &[u8]) {
    let Some(Ok(key)) = in_head(&["query:id"], "GET /x?", data, HEAD_ENDS) else { return };
    for separators in [&b"&"[..], b"&;"] {
        let pairs = data.split(|byte| separators.contains(byte));
        let mut values = pairs.filter_map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (decoded(&pair[..equals])? == b"id").then(|| pair.get(equals + 1..).unwrap_or_default())
        });
        let value = values.next().map(|value| decoded(value).expect("a malformed one is refused"));
        assert!(values.next().is_none(), "there is only one: {}", data.escape_ascii());
        assert_eq!(key, value.filter(|value| !value.is_empty()), "{}", data.escape_ascii());
    }
}

/// A path: the key is the segment that a server finds there, also one that drops dots first.
pub(crate) fn path(data: &[u8]) {
    let templates = ["path:/items/{key}/*", "path:POST /other/{key}", "path:/v1/*/{key}"];
    let Some(Ok(key)) = in_head(&templates, "GET /", data, HEAD_ENDS) else { return };
    let path = data.split(|byte| *byte == b'?').next().unwrap_or_default();
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let written = match segments[..] {
        [b"items", written, ..] => Some(written),
        [b"v1", _, written] => Some(written),
        _ => None,
    };
    let plain = written.map(|written| decoded_but(written, b'+').expect("a malformed one is refused"));
    assert_eq!(key, plain.filter(|plain| !plain.is_empty()), "{}", data.escape_ascii());
    if key.is_some() {
        let dots = |segment: &&[u8]| matches!(decoded(segment).as_deref(), Some(b"." | b".."));
        assert!(!segments.iter().any(dots), "{}", data.escape_ascii());
    }
}

/// A token: the key is the claim that a reader of its middle part finds.
pub(crate) fn token(data: &[u8]) {
    let Some((which, token)) = data.split_first() else { return };
    let pointer = POINTERS[usize::from(which % 4)];
    let (head, end) = ("GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer ", "\r\n\r\n");
    let Some(key) = in_head(&[&format!("jwt:{pointer}")], head, token, end) else { return };
    let parts: Vec<&[u8]> = token.trim_ascii().split(|byte| *byte == b'.').collect();
    let [_, claims, _] = parts[..] else { return assert_eq!(key, Ok(None)) };
    match BASE64URL_NOPAD.decode(claims) {
        Ok(claims) => as_serde_reads(&claims, pointer, key),
        Err(error) => assert!(key.is_err(), "{error}: {}", token.escape_ascii()),
    }
}

/// What a body is said to be: the key is found by the one reader that it is for.
pub(crate) fn content_type(data: &[u8]) {
    let before = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Type: ";
    let head = [before, data, b"\r\n\r\n"].concat();
    if data.contains(&b'\n') {
        return;
    }
    let Ok(request) = RequestHead::parse(&head) else { return };
    let extract = Extract::compile(["json:/id", "form:id", "multipart:id"]).expect("well-formed");
    let (mut scratch, mut body) = (Vec::new(), BodySearch::new(4096));
    let Ok(Search::InBody) = extract.search(&request, &head, &mut scratch, &mut body) else { return };
    let lower = data.to_ascii_lowercase();
    let mut boundaries: Vec<&[u8]> = Vec::new();
    for at in (0..data.len()).filter(|at| lower[*at..].starts_with(b"boundary=")) {
        let value = &data[at + b"boundary=".len()..];
        boundaries.push(until(b';', value).trim_ascii());
        boundaries.push(until(b'"', value.get(1..).unwrap_or_default()));
    }
    let part = |boundary: &&[u8]| {
        let name = &b"\r\nContent-Disposition: form-data; name=id\r\n\r\n7\r\n--"[..];
        [b"--", *boundary, name, *boundary, b"--"].concat()
    };
    let kinds = [br#"{"id":7}"#.to_vec(), b"id=7".to_vec()];
    let found = |text: Vec<u8>| {
        let mut body = body.clone();
        let search =
            body.feed(&extract, &text).and_then(|over| if over { Ok(()) } else { body.finish(&extract) });
        search.is_ok() && body.key() == Some(b"7")
    };
    let readers = kinds.into_iter().map(found).filter(|found| *found).count();
    let in_parts = boundaries.iter().map(part).any(found);
    assert_eq!(readers + usize::from(in_parts), 1, "{}", data.escape_ascii());
}

fn until(end: u8, text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == end).next().unwrap_or_default()
}

/// The ids of a request with these fields: what goes on can be read in one way, and what was sane is kept.
pub(crate) fn ids(data: &[u8]) {
    let head = [&b"GET / HTTP/1.1\r\nHost: h\r\n"[..], data, b"\r\n"].concat();
    let Ok(mut parsed) = RequestHead::parse(&head) else { return };
    let own =
        |name: &[u8]| -> Vec<Vec<u8>> { parsed.fields().values(&head, name).map(<[u8]>::to_vec).collect() };
    let (parents, requests) = (own(b"traceparent"), own(b"x-request-id"));
    let ids = Ids::of(&mut parsed, &head, &mut Draw::seeded([1, 2, 3, 4]), 50);
    let said = match &parents[..] {
        [one] => Parent::parse(one),
        _ => None,
    };
    if let Some(said) = said {
        assert_eq!((said.trace(), said.is_sampled()), (ids.parent().trace(), ids.parent().is_sampled()));
        assert_ne!(said.caller(), ids.parent().caller());
    }
    assert_eq!(
        Parent::parse(&ids.parent().write()),
        Some(*ids.parent()),
        "what goes on is what it should be"
    );
    assert!(requests.len() == 1 && requests[0] == ids.request().as_bytes() || ids.request().len() == 32);
    let left: Vec<u8> =
        [&parsed.forward(&head).flatten().copied().collect::<Vec<u8>>()[..], b"\r\n"].concat();
    let left_parsed = RequestHead::parse(&left).expect("what goes on is a head");
    let gone = |name: &[u8]| left_parsed.fields().values(&left, name).next().is_none();
    assert!(gone(b"traceparent") && gone(b"x-request-id") && (said.is_some() || gone(b"tracestate")));
}

/// How long a client waits, as it says: what is told to the server means the same, to a millisecond.
pub(crate) fn deadline(data: &[u8]) {
    for field in [&b"grpc-timeout"[..], b"x-request-timeout-ms"] {
        let notation = Notation::of(field);
        let Some(time) = notation.read(data) else { continue };
        let written = notation.write(time);
        let again = notation.read(written.trim_ascii_start()).expect("what is told can be read");
        assert_eq!(again.as_millis(), time.as_millis().min(99_999_999), "{}", data.escape_ascii());
    }
}
