//! Where in a request the key is: extractors compiled from configuration, tried in order.
//!
//! | extractor | the key is |
//! | --- | --- |
//! | `header:NAME` | the field's value, as it is written |
//! | `path:/items/{key}/*`, `path:POST /items/{key}` | a segment of the path, percent-decoded |
//! | `query:NAME` | a parameter of the query, percent-decoded |
//! | `cookie:NAME` | a cookie's value, as it is written |
//! | `host` | the name in `Host`, in lower case, without port |
//! | `jwt:CLAIM`, `jwt:/POINTER` | a claim of the bearer token in `Authorization`, whose signature is not verified |
//! | `json:/POINTER` | a text, number or truth value in a body of `application/json` or `…+json` |
//! | `form:NAME` | a field in a body of `application/x-www-form-urlencoded` |
//! | `multipart:NAME` | a field in a body of `multipart/form-data` |
//!
//! The key decides which partition a request goes to, so it must be the one that the server reads. Where
//! servers read differently (the same name twice, be it with `_` for a `-`; a `+` in a query) the request is
//! refused. Bodies are read only as far as the key, so there a second one behind it goes unseen: the first
//! counts. `only-json:`, `only-form:` and `only-multipart:` read the body to its end, and refuse a second one.
//!
//! Names and keys are compared as they are: a JSON number counts as it is written (`1` is not `1.0`), and a
//! server that takes `ID` for `id` reads more than the router does.

mod body;
mod head;
mod json;
mod jwt;
mod multipart;
mod no_key;
mod pairs;
mod parameters;
mod path;

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};

use crate::http::{Refusal, RequestHead, is_token};
pub use body::BodySearch;
use body::ContentType;
pub(crate) use head::cookies;
use json::Pointer;
pub use no_key::NoKey;
use path::Template;

/// The longest key that is collected from a body or a token, in bytes.
pub const MAX_KEY: usize = 4096;

/// How the key is found in a request of HTTP: one extractor after the other, until one finds a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Extract(Box<[Extractor]>);

#[derive(Clone, Debug, PartialEq)]
enum Extractor {
    /// The name, in lower case.
    Header(Box<[u8]>),
    Path(Template),
    Query(Box<[u8]>),
    Cookie(Box<[u8]>),
    Host,
    Jwt(Pointer),
    Json {
        pointer: Pointer,
        only: bool,
    },
    Form {
        name: Box<[u8]>,
        only: bool,
    },
    Multipart {
        name: Box<[u8]>,
        only: bool,
    },
}

/// What came of looking for the key in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search<'a> {
    /// This is the key.
    Key(&'a [u8]),
    /// There is none.
    NoKey,
    /// It may be in the body: go on with the [`BodySearch`].
    InBody,
}

/// What an extractor that follows a body wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    More,
    /// It has its key.
    Done,
}

/// Why an extractor cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// No extractor at all.
    #[error("no extractor: give at least one, such as \"header:x-key\" or \"path:/items/{{key}}/*\"")]
    Empty,
    /// The same twice.
    #[error("{0:?} is listed twice: list each place once")]
    Repeated(String),
    /// None that is known.
    #[error(
        "unknown extractor {0:?}: use header:NAME, path:/TEMPLATE, query:NAME, cookie:NAME, host, jwt:CLAIM, \
         json:/POINTER, form:NAME or multipart:NAME"
    )]
    Unknown(String),
    /// The header concerns one connection or the framing of one message.
    #[error("the header {0:?} cannot be a key: it concerns one connection or one message's framing")]
    OneHop(Box<str>),
    /// The name of the header is not one.
    #[error("{0:?} is not a header name: use letters, digits and hyphens")]
    HeaderName(String),
    /// The name of a parameter, cookie, claim or field is not one.
    #[error("{spec:?} has no name that can be looked for: {hint}")]
    Name {
        /// The extractor.
        spec: String,
        /// What would be right.
        hint: &'static str,
    },
    /// The JSON pointer is malformed.
    #[error("the JSON pointer {pointer:?} {problem}")]
    Pointer {
        /// The pointer.
        pointer: String,
        /// What is wrong, and what would be right.
        problem: &'static str,
    },
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
    /// The first one that is unknown, malformed or there before.
    pub fn compile<'a>(specs: impl IntoIterator<Item = &'a str>) -> Result<Self, ExtractError> {
        let mut list = Vec::new();
        for spec in specs {
            let extractor = Extractor::compile(spec)?;
            if list.contains(&extractor) {
                return Err(ExtractError::Repeated(spec.into()));
            }
            list.push(extractor);
        }
        if list.is_empty() { Err(ExtractError::Empty) } else { Ok(Self(list.into())) }
    }

    /// Looks for the key of this request in its head. Empty keys count as none.
    ///
    /// The key is a slice of `head` unless it had to be decoded, then of `scratch`. So `/items/a%62` and a
    /// header `ab` name the same key. Where the body must be read first, `body` is made ready for it; it
    /// keeps what later extractors find in the head.
    ///
    /// # Errors
    /// The key is ambiguous: the server might read another one out of the same request.
    pub fn search<'a>(
        &self,
        request: &RequestHead,
        head: &'a [u8],
        scratch: &'a mut Vec<u8>,
        body: &mut BodySearch,
    ) -> Result<Search<'a>, Refusal> {
        body.restart();
        let mut content = None;
        let mut found = None;
        for (at, extractor) in self.0.iter().enumerate() {
            if extractor.is_of_body() {
                let content = match content {
                    Some(content) => content,
                    None => *content.insert(ContentType::of(request, head)?),
                };
                body.follow(at, extractor, content)?;
                continue;
            }
            scratch.clear();
            found = extractor.in_head(request, head, scratch)?;
            if found.is_some() {
                break;
            }
        }
        let key = found.map(|found| match found {
            head::Found::AsWritten(key) => key,
            head::Found::Decoded => scratch.as_slice(),
        });
        Ok(match key {
            key if body.is_needed() => {
                body.fall_back(key.unwrap_or_default());
                Search::InBody
            }
            Some(key) => Search::Key(key),
            None => Search::NoKey,
        })
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
        let (kind, rest) = spec.split_once(':').unwrap_or((spec, ""));
        let (kind, only) = kind.strip_prefix("only-").map_or((kind, false), |kind| (kind, true));
        match (kind, only) {
            ("header", false) => {
                let valid = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                if rest.is_empty() || !valid {
                    return Err(ExtractError::HeaderName(rest.into()));
                }
                if ONE_HOP.iter().any(|field| field.eq_ignore_ascii_case(rest)) {
                    return Err(ExtractError::OneHop(rest.into()));
                }
                Ok(Self::Header(rest.to_ascii_lowercase().into_bytes().into()))
            }
            ("path", false) => Template::compile(rest).map(Self::Path),
            ("query", false) => Ok(Self::Query(parameter(spec, rest)?)),
            ("cookie", false) => {
                if rest.is_empty() || !rest.bytes().all(is_token) {
                    let hint = "cookie: is followed by letters, digits, hyphens and the like";
                    return Err(ExtractError::Name { spec: spec.into(), hint });
                }
                Ok(Self::Cookie(rest.as_bytes().into()))
            }
            ("host", false) if spec == "host" => Ok(Self::Host),
            ("jwt", false) if rest.starts_with('/') => Ok(Self::Jwt(pointer(rest)?)),
            ("jwt", false) if rest.is_empty() => {
                let hint = "jwt: is followed by a claim, such as jwt:sub, or a JSON pointer to one";
                Err(ExtractError::Name { spec: spec.into(), hint })
            }
            ("jwt", false) => Ok(Self::Jwt(Pointer::member(rest))),
            ("json", only) => Ok(Self::Json { pointer: pointer(rest)?, only }),
            ("form", only) => Ok(Self::Form { name: parameter(spec, rest)?, only }),
            ("multipart", only) => Ok(Self::Multipart { name: parameter(spec, rest)?, only }),
            _ => Err(ExtractError::Unknown(spec.into())),
        }
    }

    const fn is_of_body(&self) -> bool {
        matches!(self, Self::Json { .. } | Self::Form { .. } | Self::Multipart { .. })
    }
}

fn pointer(pointer: &str) -> Result<Pointer, ExtractError> {
    Pointer::parse(pointer).map_err(|problem| ExtractError::Pointer { pointer: pointer.to_string(), problem })
}

/// A name as it stands in queries and forms. Names that could be written in several ways there are not looked
/// for.
fn parameter(spec: &str, name: &str) -> Result<Box<[u8]>, ExtractError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"%&+;=#\"\\".contains(&byte);
    if name.is_empty() || !name.bytes().all(plain) {
        let hint = "it is followed by visible ASCII without % & + ; = # \\ and quotation marks";
        return Err(ExtractError::Name { spec: spec.into(), hint });
    }
    Ok(name.as_bytes().into())
}

/// Collects more of a key.
fn push(key: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Refusal> {
    if key.len() + bytes.len() > MAX_KEY {
        return Err(Refusal::KeyTooLong);
    }
    key.extend_from_slice(bytes);
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
        match extract.search(&request, head.as_bytes(), &mut vec![], &mut BodySearch::new(0))? {
            Search::Key(key) => Ok(Some(key.to_vec())),
            Search::NoKey => Ok(None),
            Search::InBody => panic!("no body"),
        }
    }

    #[test]
    fn headers_in_any_case_and_the_next_extractor_where_one_finds_nothing() {
        let specs = ["header:X-Key", "path:/items/{key}/*"];
        assert_eq!(key_of(&specs, "/", "x-kEY:  k1 \r\n"), Ok(Some(b"k1".to_vec())));
        assert_eq!(key_of(&specs, "/items/k2", "X-Key:\r\n"), Ok(Some(b"k2".to_vec())));
        assert_eq!(key_of(&specs, "/other", ""), Ok(None));
        assert_eq!(key_of(&specs, "/", "x-key: a\r\nX-Key: a\r\n"), Err(Refusal::RepeatedKey));
        // What many servers read as the same name is no key by itself, and makes doubtful which one is read.
        assert_eq!(key_of(&specs, "/", "X_Key: a\r\n"), Ok(None));
        assert_eq!(key_of(&specs, "/", "X_Key: a\r\nx_key: b\r\n"), Ok(None));
        assert_eq!(key_of(&specs, "/", "x-key: a\r\nX_Key: b\r\n"), Err(Refusal::RepeatedKey));
        assert_eq!(key_of(&specs, "/", "X_Key: b\r\nx-key: a\r\n"), Err(Refusal::RepeatedKey));
        assert_eq!(key_of(&["header:x_key"], "/", "X_Key: a\r\n"), Ok(Some(b"a".to_vec())));
        assert_eq!(key_of(&["header:x_key"], "/", "X_Key: a\r\nX-Key: a\r\n"), Err(Refusal::RepeatedKey));
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
    fn templates_with_a_method_match_no_other() {
        let get = ["path:GET /items/{key}", "path:/any/{key}"];
        assert_eq!(key_of(&get, "/items/a", ""), Ok(Some(b"a".to_vec())));
        assert_eq!(key_of(&["path:POST /items/{key}"], "/items/a", ""), Ok(None));
        assert_eq!(key_of(&["path:POST /items/{key}"], "/items/a/..", ""), Ok(None));
        assert_eq!(key_of(&get, "/any/b", ""), Ok(Some(b"b".to_vec())));
    }

    #[test]
    fn queries() {
        let specs = ["query:id"];
        for (target, key) in [
            ("/x?id=7", Some("7")),
            ("/x?a=b&id=7&c", Some("7")),
            ("/x?id=a%2Bb%20c%26%3b", Some("a+b c&;")),
            ("/x?%69%64=7", Some("7")),
            ("/x?q=a+b&id=7&x=%zz;y", Some("7")),
            ("/x?id=a=b", Some("a=b")),
            ("/x?id", None),
            ("/x?id=", None),
            ("/x", None),
            ("/id=7", None),
            ("/x?ID=7&idd=1&i=2&xid=3&=4&&id2=1", None),
            ("/x?i%zd=7&id%=8&%6=1", None),
            ("http://h/x?id=7", Some("7")),
            ("http://h?id=7", Some("7")),
            ("/x?a=?id=7", None),
        ] {
            assert_eq!(key_of(&specs, target, ""), Ok(key.map(|key| key.as_bytes().to_vec())), "{target}");
        }
        for (target, refusal) in [
            ("/x?id=7&id=7", Refusal::RepeatedKey),
            ("/x?id&id=7", Refusal::RepeatedKey),
            ("/x?id=7&%69d=8", Refusal::RepeatedKey),
            ("/x?id=a+b", Refusal::KeyPlus),
            ("/x?id=a%", Refusal::KeyEncoding),
            ("/x?id=a%2&x", Refusal::KeyEncoding),
            ("/x?id=%zz", Refusal::KeyEncoding),
            ("/x?id=7;x=8", Refusal::KeySeparator),
            ("/x?a=b;id=7", Refusal::KeySeparator),
            ("/x?a;id=7", Refusal::KeySeparator),
            ("/x?id;x=8&id=7", Refusal::KeySeparator),
            ("/x?a=;id", Refusal::KeySeparator),
        ] {
            assert_eq!(key_of(&specs, target, ""), Err(refusal), "{target}");
        }
    }

    #[test]
    fn cookies() {
        let specs = ["cookie:sid"];
        for (fields, key) in [
            ("Cookie: sid=abc\r\n", Some("abc")),
            ("Cookie: a=1; sid=abc ;b=2\r\n", Some("abc")),
            ("cookie: a=1;sid=a%62=c\r\n", Some("a%62=c")),
            ("cookie: sid=\"q\"\r\n", Some("\"q\"")),
            ("cookie: SID=abc; sid2=x; sid; =y\r\n", None),
            ("cookie: sid=\r\n", None),
            ("cookie: a=1\r\ncookie: b=2\r\n", None),
        ] {
            assert_eq!(key_of(&specs, "/", fields), Ok(key.map(|key| key.as_bytes().to_vec())), "{fields}");
        }
        for (fields, refusal) in [
            ("cookie: sid=a; sid=a\r\n", Refusal::RepeatedKey),
            ("cookie: sid=a\r\ncookie: b=2\r\n", Refusal::RepeatedKey),
            ("cookie: sid=a\r\nConnection: cookie\r\n", Refusal::Connection),
        ] {
            assert_eq!(key_of(&specs, "/", fields), Err(refusal), "{fields}");
        }
    }

    #[test]
    fn hosts_in_one_spelling() {
        let host = |text: &str| {
            let head = text.as_bytes();
            let request = RequestHead::parse(head).unwrap();
            let extract = Extract::compile(["host"]).unwrap();
            let mut scratch = vec![];
            match extract.search(&request, head, &mut scratch, &mut BodySearch::new(0)).unwrap() {
                Search::Key(key) => String::from_utf8(key.to_vec()).unwrap(),
                other => format!("{other:?}"),
            }
        };
        for (written, key) in [
            ("eu.example.com", "eu.example.com"),
            ("EU.Example.com:8080", "eu.example.com"),
            ("eu.example.com.:80", "eu.example.com"),
            ("[::1]:80", "[::1]"),
            ("", "NoKey"),
            (":80", "NoKey"),
        ] {
            assert_eq!(host(&format!("GET / HTTP/1.1\r\nHost: {written}\r\n\r\n")), key, "{written}");
        }
        assert_eq!(host("GET http://Eu:80/ HTTP/1.1\r\nHost: eu:80\r\n\r\n"), "eu");
        assert_eq!(host("GET http://Eu:80/ HTTP/1.0\r\n\r\n"), "NoKey", "the server does not see it");
        assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), "NoKey");
    }

    #[test]
    fn claims_of_tokens() {
        // {"alg":"none"} . {"iss":"x","sub":"user-42","realm":{"id":7},"aud":["a"]} . signature
        const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4Iiwic3ViIjoidXNlci00MiIsInJlYWxtIjp7ImlkIjo3fSwiYXVkIjpbImEiXX0.c2ln";
        let claim = |spec: &str, value: &str| key_of(&[spec], "/", &format!("Authorization: {value}\r\n"));
        let bearer = format!("Bearer {TOKEN}");
        assert_eq!(claim("jwt:sub", &bearer), Ok(Some(b"user-42".to_vec())));
        assert_eq!(claim("jwt:/realm/id", &format!("bearer  {TOKEN}")), Ok(Some(b"7".to_vec())));
        assert_eq!(claim("jwt:/aud/0", &bearer), Ok(Some(b"a".to_vec())));
        for none in ["jwt:aud", "jwt:realm", "jwt:SUB"] {
            assert_eq!(claim(none, &bearer), Ok(None), "{none}");
        }
        for none in ["Basic dTpw", "Bearer", "Bearer opaque", "Bearer a.b.c.d.e", "Bear", ""] {
            assert_eq!(claim("jwt:sub", none), Ok(None), "{none}");
        }
        assert_eq!(key_of(&["jwt:sub"], "/", ""), Ok(None));
        for (token, refusal) in [
            ("h.e30=.s", Refusal::Token), // padding
            ("h.e31.s", Refusal::Token),  // bits that are not zero
            ("h.e.s", Refusal::Token),    // half a byte
            ("h.e+0.s", Refusal::Token),  // another alphabet
            ("h.Zm9v.s", Refusal::Token), // "foo"
            ("h..s", Refusal::Token),     // nothing
            // {"sub":1,"sub":2}
            ("h.eyJzdWIiOjEsInN1YiI6Mn0.s", Refusal::RepeatedKey),
        ] {
            assert_eq!(claim("jwt:sub", &format!("Bearer {token}")), Err(refusal), "{token}");
        }
        let twice = format!("Authorization: {bearer}\r\nAuthorization: {bearer}\r\n");
        assert_eq!(key_of(&["jwt:sub"], "/", &twice), Err(Refusal::RepeatedKey));
    }

    #[test]
    fn what_cannot_be_compiled_says_what_could() {
        let compile = |spec: &str| Extract::compile([spec]).unwrap_err();
        for spec in
            ["query:", "query:a b", "query:a%62", "cookie:", "cookie:a;b", "jwt:", "form:", "multipart:a\"b"]
        {
            assert!(matches!(compile(spec), ExtractError::Name { .. }), "{spec}");
        }
        for spec in ["json:", "json:user", "json:/a~2", "jwt:/a~", "only-json:id"] {
            assert!(matches!(compile(spec), ExtractError::Pointer { .. }), "{spec}");
        }
        for spec in ["only-header:x", "host:x", "only-host", "Query:id", "body:x", ""] {
            assert_eq!(compile(spec), ExtractError::Unknown(spec.into()));
        }
        assert_eq!(compile("x-key"), ExtractError::Unknown("x-key".into()));
        assert_eq!(compile("header:"), ExtractError::HeaderName("".into()));
        assert_eq!(compile("header:Keep-Alive"), ExtractError::OneHop("Keep-Alive".into()));
        assert_eq!(compile("header:x key"), ExtractError::HeaderName("x key".into()));
        for template in [
            "items/{key}",
            "post /items/{key}",
            " /items/{key}",
            "POST  /items/{key}",
            "/items",
            "/{key}/{key}",
            "/a{key}",
            "/items//{key}",
            "/../{key}",
            "/",
        ] {
            assert!(
                matches!(compile(&format!("path:{template}")), ExtractError::Template { .. }),
                "{template}"
            );
        }
        assert_eq!(Extract::compile([]).unwrap_err(), ExtractError::Empty);
    }
}
