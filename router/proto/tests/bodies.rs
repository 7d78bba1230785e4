//! Keys in bodies: found where a reader of the whole body finds them, however the body is cut, and with nothing
//! but a refusal for bodies that readers read in different ways.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use membership_types::Rng;
use proptest::{collection::vec, prelude::*};
use router_proto::{
    extract::{BodySearch, Extract, MAX_KEY, Search},
    http::{Refusal, RequestHead},
};
use serde_json::{Map, Value, json};

const JSON: &str = "Content-Type: application/json\r\n";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";
const MULTIPART: &str = "Content-Type: multipart/form-data; boundary=\"x-y\"\r\n";
const LIMIT: usize = 64 << 10;

type Found = Result<Option<String>, Refusal>;

/// The key of a request with these fields and this body, which comes in pieces. An answer "done" counts.
fn key_of(specs: &[&str], fields: &str, pieces: &[&[u8]]) -> Found {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let head = format!("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n{fields}\r\n", len.max(1));
    let request = RequestHead::parse(head.as_bytes()).unwrap();
    let extract = Extract::compile(specs.iter().copied()).unwrap();
    let mut body = BodySearch::new(LIMIT);
    let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    match extract.search(&request, head.as_bytes(), &mut vec![], &mut body)? {
        Search::Key(key) => return Ok(Some(text(key))),
        Search::NoKey => return Ok(None),
        Search::InBody => {}
    }
    for piece in pieces {
        if body.feed(&extract, piece)? {
            return Ok(body.key().map(text));
        }
    }
    body.finish(&extract)?;
    Ok(body.key().map(text))
}

fn whole(specs: &[&str], fields: &str, body: &str) -> Found {
    key_of(specs, fields, &[body.as_bytes()])
}

fn key(text: &str) -> Found {
    Ok(Some(text.into()))
}

/// As [`key_of`]; also byte by byte and in pieces of any size, which must come to the same.
fn however_cut(specs: &[&str], fields: &str, body: &[u8], seed: u64) -> Found {
    let found = key_of(specs, fields, &[body]);
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(key_of(specs, fields, &bytes), found, "byte by byte: {}", body.escape_ascii());
    let (mut rng, mut rest, mut pieces) = (Rng::seeded(seed), body, vec![]);
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rng.between(1, rest.len().min(40) as u64) as usize);
        pieces.push(piece);
        rest = more;
    }
    assert_eq!(key_of(specs, fields, &pieces), found, "cut from {seed}: {}", body.escape_ascii());
    found
}

#[test]
fn json_pointers_lead_through_objects_and_arrays() {
    let doc = r#" { "a" : [ 10, {"b/c": "deep", "~": "tilde"}, [ "x" ] ], "user": {"id": 42, "n": -1.5e+3, "t": true,
        "f": false, "z": null, "e": "", "o": {}, "l": [ ] }, "": "empty name", "0": "zero" } "#;
    for (spec, found) in [
        ("json:/user/id", key("42")),
        ("json:/user/n", key("-1.5e+3")),
        ("json:/user/t", key("true")),
        ("json:/user/f", key("false")),
        ("json:/a/0", key("10")),
        ("json:/a/1/b~1c", key("deep")),
        ("json:/a/1/~0", key("tilde")),
        ("json:/a/2/0", key("x")),
        ("json:/", key("empty name")),
        ("json:/0", key("zero")),
        ("json:/user/z", Ok(None)),
        ("json:/user/e", Ok(None)),
        ("json:/user/o", Ok(None)),
        ("json:/user/l", Ok(None)),
        ("json:/user", Ok(None)),
        ("json:/a/01", Ok(None)),
        ("json:/a/-", Ok(None)),
        ("json:/a/3", Ok(None)),
        ("json:/a/b", Ok(None)),
        ("json:/id", Ok(None)),
        ("json:/user/id/x", Ok(None)),
    ] {
        assert_eq!(however_cut(&[spec], JSON, doc.as_bytes(), 1), found, "{spec}");
        assert_eq!(whole(&[&format!("only-{spec}")], JSON, doc), found, "{spec}");
    }
}

#[test]
fn escapes_spell_names_and_keys() {
    for (doc, found) in [
        (r#"{"\u0069d":"a\u0062\n\"\\\/\b\f\r\t"}"#, key("ab\n\"\\/\u{8}\u{c}\r\t")),
        (r#"{"id":"\ud83d\ude00\u00e9"}"#, key("\u{1f600}\u{e9}")),
        (r#"{"idx":1,"i":2,"id\u0000":3,"id":"\u0000"}"#, key("\0")),
        (r#"{"x":"\ud800 alone \udc00","id":1}"#, key("1")),
        (r#"{"id\ud800":1,"\ud800id":2,"id":3}"#, key("3")),
        (r#"{"id":"\ud800"}"#, Err(Refusal::KeyText)),
        (r#"{"id":"\ud800\ud800\udc00"}"#, Err(Refusal::KeyText)),
        (r#"{"id":"\ud800x"}"#, Err(Refusal::KeyText)),
        (r#"{"id":"\udc00"}"#, Err(Refusal::KeyText)),
        (r#"{"id":"\u00g0"}"#, Err(Refusal::JsonBody)),
        (r#"{"id":"\x"}"#, Err(Refusal::JsonBody)),
        (r#"{"x":"\u12","id":3}"#, Err(Refusal::JsonBody)),
        ("{\"id\":\"a\nb\"}", Err(Refusal::JsonBody)),
        ("{\"id\":\"\\ud800x\n\"}", Err(Refusal::KeyText)),
        ("{\"id\":\"\\ud800\n\"}", Err(Refusal::JsonBody)),
        ("{\"x\":\"a\nb\",\"id\":1}", Err(Refusal::JsonBody)),
    ] {
        assert_eq!(however_cut(&["json:/id"], JSON, doc.as_bytes(), 2), found, "{doc}");
    }
    assert_eq!(key_of(&["json:/id"], JSON, &[b"{\"id\":\"\xff\"}"]), Err(Refusal::KeyText));
}

#[test]
fn the_first_of_two_names_counts_unless_there_may_be_only_one() {
    let first = ["json:/a/id"];
    let only = ["only-json:/a/id"];
    for (doc, at_first, at_only) in [
        (r#"{"a":{"id":1,"id":2}}"#, key("1"), Err(Refusal::RepeatedKey)),
        (r#"{"a":{"id":1},"a":{"id":2}}"#, key("1"), Err(Refusal::RepeatedKey)),
        (r#"{"a":{"id":1},"a":3}"#, key("1"), Err(Refusal::RepeatedKey)),
        (r#"{"a":{"id":1}} {"#, key("1"), Err(Refusal::JsonBody)),
        (r#"{"a":{"id":1"#, Err(Refusal::JsonBody), Err(Refusal::JsonBody)),
        (r#"{"a":{"id":1,"#, key("1"), Err(Refusal::JsonBody)),
        // What comes before the key is seen in any case.
        (r#"{"a":{},"a":{"id":2}}"#, Err(Refusal::RepeatedKey), Err(Refusal::RepeatedKey)),
        (r#"{"a":7,"a":{"id":2}}"#, Err(Refusal::RepeatedKey), Err(Refusal::RepeatedKey)),
        (r#"{"a":{"id":null,"id":2}}"#, Err(Refusal::RepeatedKey), Err(Refusal::RepeatedKey)),
        (r#"{"a":{"id":"","\u0069d":2}}"#, Err(Refusal::RepeatedKey), Err(Refusal::RepeatedKey)),
        // Elsewhere names may repeat.
        (r#"{"b":{"id":1,"id":2},"b":[],"a":{"x":1,"x":2,"id":3}}"#, key("3"), key("3")),
        (r#"{"b":[{"a":{"id":1}},{"a":{"id":2}}],"a":{"id":3},"id":4}"#, key("3"), key("3")),
    ] {
        assert_eq!(however_cut(&first, JSON, doc.as_bytes(), 3), at_first, "{doc}");
        assert_eq!(however_cut(&only, JSON, doc.as_bytes(), 3), at_only, "{doc}");
    }
}

#[test]
fn what_is_not_json_is_refused() {
    for doc in [
        "",
        " ",
        "{",
        "[",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "[1 2]",
        "{\"a\" 1}",
        "{\"a\":}",
        "[}",
        "{]",
        "[]]",
        "[01]",
        "[1.]",
        "[.5]",
        "[+1]",
        "[1e]",
        "[-]",
        "[tru]",
        "[nulll]",
        "[NaN]",
        "// x\n{}",
        "\u{feff}{}",
        "{}x",
        "{} {}",
        "[\"\t\"]",
        "{\"a\":1 \"b\":2}",
        "[,1]",
        "{,}",
        "\"open",
        "tr",
        "1x",
        "[1x]",
        "[truex]",
        "{\"a\"}",
        "\0{}",
    ] {
        assert_eq!(however_cut(&["json:/no"], JSON, doc.as_bytes(), 4), Err(Refusal::JsonBody), "{doc:?}");
    }
    for doc in
        ["{}", "[]", "1", "-0.0E-1 ", "\"x\"", "null", "true", " [ ] ", "[[],{}]", "{\"a\":{\"no\":1}}"]
    {
        assert_eq!(however_cut(&["json:/no"], JSON, doc.as_bytes(), 4), Ok(None), "{doc:?}");
    }
    let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
    assert_eq!(whole(&["json:/no"], JSON, &deep(64)), Ok(None));
    assert_eq!(whole(&["json:/no"], JSON, &deep(65)), Err(Refusal::JsonDepth));
    let path = "/0".repeat(63);
    let doc = format!("{}7{}", "[".repeat(63), "]".repeat(63));
    assert_eq!(whole(&[&format!("json:{path}")], JSON, &doc), key("7"));
}

#[test]
fn keys_are_short_and_near() {
    let long = |n| format!("{{\"id\":\"{}\"}}", "k".repeat(n));
    assert_eq!(whole(&["json:/id"], JSON, &long(MAX_KEY)), key(&"k".repeat(MAX_KEY)));
    assert_eq!(however_cut(&["json:/id"], JSON, long(MAX_KEY + 1).as_bytes(), 5), Err(Refusal::KeyTooLong));
    // The last byte that decides is the quotation mark behind the key.
    let far = |n: usize, rest: &str| format!("{{\"x\":\"{}\",\"id\":\"1\"{rest}", "x".repeat(n - 16));
    assert_eq!(far(40, "").len(), 40);
    let rest = ",".repeat(100);
    assert_eq!(however_cut(&["json:/id"], JSON, far(LIMIT, &rest).as_bytes(), 6), key("1"));
    assert_eq!(
        however_cut(&["json:/id"], JSON, far(LIMIT + 1, &rest).as_bytes(), 6),
        Err(Refusal::KeyTooFar)
    );
    assert_eq!(however_cut(&["only-json:/id"], JSON, far(LIMIT, "}").as_bytes(), 6), Err(Refusal::KeyTooFar));
    assert_eq!(however_cut(&["only-json:/id"], JSON, far(LIMIT - 1, "}").as_bytes(), 6), key("1"));
}

#[test]
fn the_first_extractor_with_a_key_wins_wherever_it_looks() {
    let both = "Content-Type: application/json\r\nX-Key: h\r\n";
    assert_eq!(whole(&["header:x-key", "json:/id"], both, "nonsense"), key("h"), "the body is not looked at");
    assert_eq!(whole(&["json:/id", "header:x-key"], both, "{\"id\":1}"), key("1"));
    assert_eq!(whole(&["json:/id", "header:x-key"], both, "{}"), key("h"));
    assert_eq!(whole(&["json:/id", "header:x-key"], both, "nonsense"), Err(Refusal::JsonBody));
    for doc in [r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#] {
        assert_eq!(however_cut(&["json:/a", "json:/b"], JSON, doc.as_bytes(), 7), key("1"), "{doc}");
        assert_eq!(however_cut(&["json:/b", "json:/a"], JSON, doc.as_bytes(), 7), key("2"), "{doc}");
        assert_eq!(
            however_cut(&["json:/x", "json:/b", "form:b"], JSON, doc.as_bytes(), 7),
            key("2"),
            "{doc}"
        );
    }
    // A later extractor's trouble does not matter once an earlier one has the key, before it or after.
    let doc = br#"{"b":1,"b":2,"a":3}"#;
    let specs = ["json:/a", "only-json:/b"];
    assert_eq!(however_cut(&specs, JSON, doc, 8), key("3"));
    assert_eq!(however_cut(&["only-json:/b", "json:/a"], JSON, doc, 8), Err(Refusal::RepeatedKey));
}

#[test]
fn a_content_type_chooses_who_reads() {
    let specs = ["json:/id", "form:id"];
    for fields in [
        JSON,
        "content-type: APPLICATION/JSON; charset=UTF-8\r\n",
        "Content-Type: application/vnd.x+json\r\nContent-Encoding: identity\r\n",
    ] {
        assert_eq!(whole(&specs, fields, "{\"id\":1}"), key("1"), "{fields}");
    }
    for fields in
        ["", "Content-Type: text/plain\r\n", "Content-Type: application/jsonx\r\n", "Content-Type: +json\r\n"]
    {
        assert_eq!(whole(&specs, fields, "{\"id\":1}"), Ok(None), "{fields}");
    }
    assert_eq!(whole(&specs, FORM, "id=1"), key("1"));
    for (fields, refusal) in [
        ("Content-Type: application/json\r\nContent-Type: application/json\r\n", Refusal::ContentType),
        ("Content-Type: application/json; charset\r\n", Refusal::ContentType),
        ("Content-Type: application/json; charset=utf-16\r\n", Refusal::BodyEncoding),
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", Refusal::BodyEncoding),
        ("Content-Type: application/json\r\nConnection: content-type\r\n", Refusal::Connection),
    ] {
        assert_eq!(whole(&specs, fields, "{\"id\":1}"), Err(refusal), "{fields}");
        assert_eq!(whole(&["header:x-key"], fields, "{\"id\":1}"), Ok(None), "nobody reads the body");
    }
    for fields in [
        "Content-Type: multipart/form-data\r\n",
        "Content-Type: multipart/form-data; boundary=\"\"\r\n",
        "Content-Type: multipart/form-data; boundary=a; boundary=a\r\n",
        "Content-Type: multipart/form-data; boundary=\"a b\"\r\n",
    ] {
        assert_eq!(whole(&["multipart:id"], fields, ""), Err(Refusal::ContentType), "{fields}");
    }
}

#[test]
fn forms() {
    for (body, at_first, at_only) in [
        ("id=7", key("7"), key("7")),
        ("a=b&id=x+y%2Bz&c", key("x y+z"), key("x y+z")),
        ("a=b&i%64=7&", key("7"), key("7")),
        ("id=&a=b", Ok(None), Ok(None)),
        ("a=b", Ok(None), Ok(None)),
        ("id=1&id=2", key("1"), Err(Refusal::RepeatedKey)),
        ("id=&id=2", Err(Refusal::RepeatedKey), Err(Refusal::RepeatedKey)),
        ("id=1&a;id=2", key("1"), Err(Refusal::KeySeparator)),
        ("a;id=2&id=1", Err(Refusal::KeySeparator), Err(Refusal::KeySeparator)),
        ("id=%4", Err(Refusal::KeyEncoding), Err(Refusal::KeyEncoding)),
        ("id=%4&a", Err(Refusal::KeyEncoding), Err(Refusal::KeyEncoding)),
    ] {
        assert_eq!(however_cut(&["form:id"], FORM, body.as_bytes(), 9), at_first, "{body}");
        assert_eq!(however_cut(&["only-form:id"], FORM, body.as_bytes(), 9), at_only, "{body}");
    }
}

/// A part of a form as browsers write it.
fn part(name: &str, more: &str, content: &str) -> String {
    format!("--x-y\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n{content}\r\n")
}

#[test]
fn multipart_forms() {
    let end = "--x-y--\r\n";
    let file = part(
        "f",
        "; filename=\"C:\\dir\\a.txt\"\r\nContent-Type: text/plain",
        "--x-z\r\r\n\r\n--x-\n--x\r\n-",
    );
    for (body, at_first, at_only) in [
        (part("id", "", "7") + end, key("7"), key("7")),
        (file.clone() + &part("id", "", "a\r\nb\r") + end, key("a\r\nb\r"), key("a\r\nb\r")),
        (part("id", "\r\nX-Y: z", "\r\n--x-\r\n") + end, key("\r\n--x-\r\n"), key("\r\n--x-\r\n")),
        (part("id", "", "1") + &part("id", "", "2") + end, key("1"), Err(Refusal::RepeatedKey)),
        (part("id", "", "1") + "nonsense", Err(Refusal::MultipartBody), Err(Refusal::MultipartBody)),
        (part("id", "", "1") + "--x-ynonsense", key("1"), Err(Refusal::MultipartBody)),
        (part("id", "", "") + end, Ok(None), Ok(None)),
        (
            part("id", "", "") + &part("id", "", "2") + end,
            Err(Refusal::RepeatedKey),
            Err(Refusal::RepeatedKey),
        ),
        (file.clone() + end, Ok(None), Ok(None)),
        ("--x-y--".into(), Ok(None), Ok(None)),
    ] {
        assert_eq!(however_cut(&["multipart:id"], MULTIPART, body.as_bytes(), 10), at_first, "{body}");
        assert_eq!(however_cut(&["only-multipart:id"], MULTIPART, body.as_bytes(), 10), at_only, "{body}");
    }
    for body in [
        String::new(),
        part("x", "", "1"),
        "preamble\r\n".to_owned() + &part("id", "", "1") + end,
        part("x", "", "a\n--x-y") + &part("id", "", "1") + end,
        part("x", "", "a\r\n--x-yz") + &part("id", "", "1") + end,
        part("x", "", "--x-y") + &part("id", "", "1") + end,
        part("id", "; filename=\"a\"", "1") + end,
        part("id", "; name=\"b\"", "1") + end,
        part("id", "; name*=utf-8''b", "1") + end,
        part("x\\", "; y=\"; name=\"id\"", "1") + end,
        part("i\\d", "", "1") + &part("id", "", "1") + end,
        part("id", "\r\nContent-Transfer-Encoding: base64", "MQ==") + end,
        part("id", "\r\nContent-Disposition: form-data; name=\"x\"", "1") + end,
        part("id", "\r\n folded", "1") + end,
        part("x", &format!("\r\nX: {}", "x".repeat(2000)), "1") + end,
        "--x-y\r\nContent-Type: text/plain\r\n\r\n1\r\n".to_owned() + end,
        "--x-y\r\nContent-Disposition: attachment; name=\"id\"\r\n\r\n1\r\n".to_owned() + end,
        "--x-y\nContent-Disposition: form-data; name=\"id\"\r\n\r\n1\r\n".to_owned() + end,
        part("x", "", "1") + end + "more",
    ] {
        let found = however_cut(&["multipart:id"], MULTIPART, body.as_bytes(), 11);
        assert_eq!(found, Err(Refusal::MultipartBody), "{body}");
    }
}

/// Any JSON, with names that pointers are made of.
fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1e9..1e9).prop_map(|n: f64| json!(n)),
        "[a-c\"\\\\/\u{e9}\u{1f600}\n]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((name(), inner), 0..5)
                .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[ab01~/]", 1 => "(\u{e9}|a\"|\\\\n|)"]
}

fn pointer() -> impl Strategy<Value = String> {
    vec(name(), 1..4).prop_map(|names| {
        names.iter().map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1"))).collect()
    })
}

/// What the scanner must find, by a reader of the whole document.
fn oracle(document: &Value, pointer: &str) -> Option<String> {
    match document.pointer(pointer)? {
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        other => Some(other.to_string()),
    }
}

proptest! {
    #[test]
    fn json_agrees_with_serde_json(document in document(), pointer in pointer(), pretty: bool, seed: u64) {
        let text = if pretty { format!("{document:#}") } else { document.to_string() };
        let expected = Ok(oracle(&document, &pointer));
        for spec in [format!("json:{pointer}"), format!("only-json:{pointer}")] {
            prop_assert_eq!(&however_cut(&[&spec], JSON, text.as_bytes(), seed), &expected, "{} in {}", spec, text);
        }
    }

    #[test]
    fn what_is_read_to_its_end_is_json_exactly_if_serde_json_says_so(
        document in document(),
        at: prop::sample::Index,
        damage in "[\\[\\]{}:,\"\\\\ 0-9eE+.tu-]{0,2}",
        cut in 0usize..3,
        seed: u64,
    ) {
        let mut text: Vec<char> = document.to_string().chars().collect();
        let at = at.index(text.len() + 1);
        let end = text.len().min(at + cut);
        text.splice(at..end, damage.chars());
        let text: String = text.into_iter().collect();
        let ours = however_cut(&["only-json:/nobody has this name"], JSON, text.as_bytes(), seed);
        match serde_json::from_str::<Value>(&text) {
            Ok(_) => prop_assert_eq!(ours, Ok(None), "{}", text),
            // What it cannot represent is not malformed; and of escapes we judge only those that matter.
            Err(error) if error.to_string().contains("out of range") || error.to_string().contains("surrogate")
                || error.to_string().contains("hex escape") => {}
            Err(error) => prop_assert_eq!(ours, Err(Refusal::JsonBody), "{}: {}", text, error),
        }
    }

    #[test]
    fn forms_give_back_what_was_written(pairs in vec(("[a-c]{0,2}", "[ -~\u{e9}]{0,8}"), 0..6), seed: u64) {
        let encode = |text: &str| -> String {
            text.bytes().map(|byte| match byte {
                b' ' => "+".into(),
                b'a'..=b'z' => char::from(byte).to_string(),
                byte => format!("%{byte:02x}"),
            }).collect()
        };
        let body: Vec<String> = pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        let mut values = pairs.iter().filter(|(name, _)| name == "a").map(|(_, value)| value.clone());
        let expected = match (values.next(), values.next()) {
            (_, Some(_)) => Err(Refusal::RepeatedKey),
            (value, None) => Ok(value.filter(|value| !value.is_empty())),
        };
        let found = however_cut(&["only-form:a"], FORM, body.join("&").as_bytes(), seed);
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn parts_give_back_what_was_written(
        parts in vec(("[ab]", "[xz\r\n\\-]{0,12}"), 0..5),
        seed: u64,
    ) {
        let body: String = parts.iter().map(|(name, content)| part(name, "", content)).collect();
        let body = body + "--x-y--";
        let mut values = parts.iter().filter(|(name, _)| name == "a").map(|(_, value)| value.clone());
        let expected = match (values.next(), values.next()) {
            (_, Some(_)) => Err(Refusal::RepeatedKey),
            (value, None) => Ok(value.filter(|value| !value.is_empty())),
        };
        prop_assert_eq!(however_cut(&["only-multipart:a"], MULTIPART, body.as_bytes(), seed), expected);
    }

    #[test]
    fn any_bytes_come_to_the_same_however_they_are_cut(
        bytes in vec(prop::sample::select(&b"{}[]\":,\\u0a1e-+.&=;%\r\n x y\xff"[..]), 0..80),
        seed: u64,
    ) {
        let _ = however_cut(&["json:/a", "json:/0/a"], JSON, &bytes, seed);
        let _ = however_cut(&["form:a", "only-form:1"], FORM, &bytes, seed);
        let _ = however_cut(&["multipart:a"], MULTIPART, &[b"--x-y\r\n", &bytes[..]].concat(), seed);
    }
}
