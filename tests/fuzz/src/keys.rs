//! Keys in bodies, and the cookies of sessions: what is found must not depend on how the bytes come in, and must be what a
//! reader of the whole body finds.

use router_proto::{
    extract::{BodySearch, Extract, MAX_KEY, Search},
    http::{Refusal, RequestHead},
    sticky::Session,
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
    match (serde_json::from_slice::<Value>(body), only) {
        (Ok(document), Ok(key)) => match document.pointer(pointer) {
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
            body.escape_ascii()
        ),
        // Text that the key is not in is not judged as text, and numbers not by their size.
        (Err(error), Ok(_)) => {
            let why = error.to_string();
            let spared = ["surrogate", "unicode", "hex escape", "out of range", "escape"];
            assert!(spared.iter().any(|spared| why.contains(spared)), "{why}: {}", body.escape_ascii());
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
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        out.push(match byte {
            b'+' => b' ',
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
