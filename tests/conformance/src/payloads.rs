//! Streams of requests on which parsers have disagreed, and mutations of them.

use membership_types::Rng;

/// What is hidden in bodies: no server may ever take it for a request.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\nX-Key: s\r\n\r\n";

/// Fields in which two readers may find two framings. Each goes into a request with a body that both framings can end.
const FIELDS: [&str; 96] = [
    "Content-Length: {n}\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: {n}",
    "Transfer-Encoding: chunked\r\nContent-Length: 0",
    "Transfer-Encoding: chunked",
    "transfer-encoding:chunked",
    "TRANSFER-ENCODING: chunked",
    "TrAnSfEr-EnCoDiNg: chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: Chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: CHUNKED",
    "Content-Length: {n}\r\nTransfer-Encoding : chunked",
    "Content-Length: {n}\r\nTransfer-Encoding\t: chunked",
    "Content-Length: {n}\r\n Transfer-Encoding: chunked",
    "Content-Length: {n}\r\n\tTransfer-Encoding: chunked",
    "Content-Length: {n}\r\nTransfer-Encoding:\tchunked",
    "Content-Length: {n}\r\nTransfer-Encoding:\u{b}chunked",
    "Content-Length: {n}\r\nTransfer-Encoding:\u{c}chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: \u{0}chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked\u{0}",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked\t",
    "Content-Length: {n}\r\nTransfer-Encoding:  chunked ",
    "Content-Length: {n}\r\nTransfer-Encoding: xchunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chunkedx",
    "Content-Length: {n}\r\nTransfer-Encoding: chunk",
    "Content-Length: {n}\r\nTransfer-Encoding: \"chunked\"",
    "Content-Length: {n}\r\nTransfer-Encoding: 'chunked'",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked;q=1",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked, identity",
    "Content-Length: {n}\r\nTransfer-Encoding: identity, chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: identity",
    "Content-Length: {n}\r\nTransfer-Encoding: gzip, chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: ,chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked,",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked, chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: cow\r\nTransfer-Encoding: chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow",
    "Content-Length: {n}\r\nTransfer-Encoding:\r\n chunked",
    "Content-Length: {n}\r\nTransfer-Encoding:\n chunked",
    "Content-Length: {n}\r\nTransfer-Encoding",
    "Content-Length: {n}\r\nTransfer-Encoding:",
    "Content-Length: {n}\r\nTransfer Encoding: chunked",
    "Content-Length: {n}\r\nTransfer_Encoding: chunked",
    "Content-Length: {n}\r\nTransfer-Encoding\r\n: chunked",
    "Content-Length: {n}\r\nTransfer\r-Encoding: chunked",
    "Content-Length: {n}\r\nX: y\nTransfer-Encoding: chunked",
    "Content-Length: {n}\r\nX: y\rTransfer-Encoding: chunked",
    "Content-Length: {n}\r\nX: y\r\rTransfer-Encoding: chunked",
    "Content-Length: {n}\nTransfer-Encoding: chunked",
    "Content-Length: {n}\r\n\u{ff}Transfer-Encoding: chunked",
    "Content-Length: {n}\r\nTransfer-Encoding: chun\u{212a}ed",
    "Content-Length: {n}\r\nContent-Encoding: chunked",
    "Content-Length: {n}\r\nTE: chunked",
    "Content-Length: {n}\r\nConnection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked",
    "Connection: Content-Length\r\nContent-Length: {n}",
    "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: {n}",
    "Content-Length: {n}",
    "Content-Length:{n}",
    "Content-Length: \t {n} \t",
    "content-length: {n}",
    "Content-Length: 0{n}",
    "Content-Length: 000000000000000000000000{n}",
    "Content-Length: +{n}",
    "Content-Length: -{n}",
    "Content-Length: {n}.0",
    "Content-Length: {n}e0",
    "Content-Length: 0x{n}",
    "Content-Length: {n} ",
    "Content-Length: {n} {n}",
    "Content-Length: {n},{n}",
    "Content-Length: {n}, 0",
    "Content-Length: 0, {n}",
    "Content-Length: {n};",
    "Content-Length: \"{n}\"",
    "Content-Length: {n}\u{b}",
    "Content-Length: {n}\u{0}",
    "Content-Length: \u{0}{n}",
    "Content-Length : {n}",
    "Content-Length\t: {n}",
    " Content-Length: {n}",
    "X: y\r\n Content-Length: {n}",
    "X: y\nContent-Length: {n}",
    "X: y\rContent-Length: {n}",
    "Content_Length: {n}",
    "Content Length: {n}",
    "Content-Length:\r\n {n}",
    "Content-Length: 0\r\nContent-Length: {n}",
    "Content-Length: {n}\r\nContent-Length: 0",
    "Content-Length: {n}\r\nContent-Length: {n}",
    "Content-Length: {n}\r\ncontent-length: 0",
    "Content-Length: 18446744073709551616",
    "Content-Length: 18446744073709551615",
    "Content-Length: 4294967296",
    "Content-Length:",
    "Expect: 100-continue\r\nContent-Length: {n}",
    "Expect: 100-continue\r\nTransfer-Encoding: chunked",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\nContent-Length: {n}",
    "",
];

/// Ways to begin a request.
const LINES: [&str; 44] = [
    "POST /x HTTP/1.1\r\nHost: h",
    "PUT /x HTTP/1.1\r\nHost: h",
    "PATCH /x HTTP/1.1\r\nHost: h",
    "DELETE /x HTTP/1.1\r\nHost: h",
    "OPTIONS * HTTP/1.1\r\nHost: h",
    "OPTIONS /x HTTP/1.1\r\nHost: h",
    "GET /x HTTP/1.1\r\nHost: h",
    "GET /x?a=b&c=%20d HTTP/1.1\r\nHost: h",
    "GET /a/../b/./c//d HTTP/1.1\r\nHost: h",
    "GET /%2e%2e/%00/%zz HTTP/1.1\r\nHost: h",
    "GET /\"<>{}|^`\\ HTTP/1.1\r\nHost: h",
    "GET /x;y=z:@!$&'()*+,= HTTP/1.1\r\nHost: h",
    "GET // HTTP/1.1\r\nHost: h",
    "GET //evil/x HTTP/1.1\r\nHost: h",
    "GET /x?http://evil/ HTTP/1.1\r\nHost: h",
    "GET /? HTTP/1.1\r\nHost: h",
    "GET ? HTTP/1.1\r\nHost: h",
    "GET http://h HTTP/1.1\r\nHost: h",
    "GET http://h/x HTTP/1.1\r\nHost: h",
    "GET HTTP://H/x HTTP/1.1\r\nHost: h",
    "GET http://h?x HTTP/1.1\r\nHost: h",
    "GET http://evil/x HTTP/1.1\r\nHost: h",
    "GET http://h/x#y HTTP/1.1\r\nHost: h",
    "GET https://h:443/x HTTP/1.1\r\nHost: h:443",
    "GET /x HTTP/1.0",
    "GET /x HTTP/1.0\r\nHost: h\r\nConnection: keep-alive",
    "POST /x HTTP/1.0\r\nConnection: keep-alive",
    "GET /x HTTP/1.1",
    "GET /x HTTP/1.1\r\nHost: h\r\nHost: h",
    "GET /x HTTP/1.1\r\nHost:",
    "GET /x HTTP/1.1\r\nHost: [::1]:80",
    "GET /x HTTP/1.1\r\nHost: a b",
    "GET /x HTTP/1.1\nHost: h",
    "GET  /x HTTP/1.1\r\nHost: h",
    "GET /x  HTTP/1.1\r\nHost: h",
    "GET /x y HTTP/1.1\r\nHost: h",
    "GET\t/x HTTP/1.1\r\nHost: h",
    "GET /x HTTP/1.1 \r\nHost: h",
    "GET /x http/1.1\r\nHost: h",
    "GET /x HTTP/1.2\r\nHost: h",
    "GET /x HTTP/2.0\r\nHost: h",
    "GET /x\r\nHost: h",
    "HEAD /x HTTP/1.1\r\nHost: h",
    "\r\nGET /x HTTP/1.1\r\nHost: h",
];

/// Fields that may be unusual and frame nothing.
const OTHERS: [&str; 20] = [
    "X: y",
    "X:",
    "X:y",
    "X: \t y \t ",
    "X: caf\u{e9}",
    "X: \"a\\\"b\", c",
    "X: a:b: c",
    "X: a\u{7f}b",
    "X: a\tb",
    "X-: y",
    "!#$%&'*+-.^_`|~0aA: y",
    "X_Y: z",
    "Trailer: X-Sum",
    "TE: trailers",
    "Keep-Alive: timeout=5",
    "Connection: keep-alive",
    "Connection: x-key",
    "Accept: */*\r\nAccept: text/plain",
    "Cookie: a=b; c=d",
    "Range: bytes=0-,5-1",
];

/// Chunks: how one begins, and how a body ends.
const CHUNKS: [&str; 30] = [
    "5\r\nhello\r\n",
    "05\r\nhello\r\n",
    "000000000000005\r\nhello\r\n",
    "0000000000000005\r\nhello\r\n",
    "00000000000000005\r\nhello\r\n",
    "a\r\n0123456789\r\n",
    "A\r\n0123456789\r\n",
    "5;x\r\nhello\r\n",
    "5;x=y\r\nhello\r\n",
    "5;x=\"y\"\r\nhello\r\n",
    "5;x=\"\\\r\nhello\r\n",
    "5; x = y\r\nhello\r\n",
    "5;\r\nhello\r\n",
    "5;;;\r\nhello\r\n",
    "5;\u{e9}\r\nhello\r\n",
    "5;x\nhello\r\n",
    "5 \r\nhello\r\n",
    "5\t\r\nhello\r\n",
    "5 ;x\r\nhello\r\n",
    " 5\r\nhello\r\n",
    "+5\r\nhello\r\n",
    "0x5\r\nhello\r\n",
    "5\nhello\r\n",
    "5\r\nhello\n",
    "5\r\nhello",
    "5\r\nhello\r\r\n",
    "5\r\r\nhello\r\n",
    "fffffffffffffffb\r\nhello\r\n",
    "100000005\r\nhello\r\n",
    "-5\r\nhello\r\n",
];

const ENDS: [&str; 16] = [
    "0\r\n\r\n",
    "00\r\n\r\n",
    "000000000000000\r\n\r\n",
    "0;x\r\n\r\n",
    "0\r\nX-Sum: 1\r\n\r\n",
    "0\r\nX-Sum:\r\nY: z\r\n\r\n",
    "0\r\nX-Sum: caf\u{e9}\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\n X: y\r\n\r\n",
    "0\r\nX: y\n\r\n",
    "0\n\n",
    "0\r\n\n",
    "0\r\n\r\r\n",
    "\r\n0\r\n\r\n",
];

/// What may follow a request.
pub(crate) const LAST: &str = "GET /last HTTP/1.1\r\nHost: h\r\nX-Key: l\r\n\r\n";

/// A body that ends at one place by its chunks, at another by a length of `n`: in between is what is smuggled.
fn both(fields: &str, line: &str, chunks: &str) -> Vec<u8> {
    let short = format!(
        "{line}\r\nX-Key: k\r\n{}\r\n\r\n{chunks}{SMUGGLED}{LAST}",
        fields.replace("{n}", &(chunks.len() + SMUGGLED.len()).to_string())
    );
    latin(&short)
}

/// And the other way round: the length ends the body before its first chunk does.
fn early(fields: &str, line: &str) -> Vec<u8> {
    let chunks = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    let first = chunks.find('\n').map_or(0, |at| at + 1);
    latin(&format!(
        "{line}\r\nX-Key: k\r\n{}\r\n\r\n{chunks}{LAST}",
        fields.replace("{n}", &first.to_string())
    ))
}

/// Characters below 256 as single bytes, others in UTF-8.
pub(crate) fn latin(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// All that is known to have worked somewhere, with every byte in every place where one byte decides.
pub fn classics() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for fields in FIELDS {
        for end in ENDS {
            all.push(both(fields, LINES[0], end));
        }
        for line in [LINES[0], LINES[6], LINES[25]] {
            all.push(early(fields, line));
        }
    }
    for line in LINES {
        for fields in ["Content-Length: {n}", "Transfer-Encoding: chunked", ""] {
            all.push(both(fields, line, ENDS[0]));
        }
    }
    for other in OTHERS {
        all.push(both("Content-Length: {n}", &format!("{}\r\n{other}", LINES[0]), ENDS[0]));
    }
    for chunk in CHUNKS {
        for end in ENDS {
            all.push(both("Transfer-Encoding: chunked", LINES[0], &format!("{chunk}{end}")));
        }
    }
    // Every byte, wherever a single one decides (at `?`).
    let places = [
        "?POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST?/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "PO?ST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x?y HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST ?/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x?HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1?\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h?\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\n?Content-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent?-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length?: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length:?5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5?\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r?\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n?\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nX: a?b\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\nX?: ab\r\nContent-Length: 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nHost: h\r\n?Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding?: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:?chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked?\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n?5\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5?\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;?x\r\nhello\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello?\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0?\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: a?b\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n?X: ab\r\n\r\n",
    ];
    for place in places {
        let (before, after) = place.split_once('?').unwrap_or((place, ""));
        for byte in 0..=255_u8 {
            all.push([before.as_bytes(), &[byte], after.as_bytes(), LAST.as_bytes()].concat());
        }
    }
    all
}

/// A stream of one to three requests that are unusual here and there; sometimes with a few bytes changed.
pub fn draw(rng: &mut Rng) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..rng.between(1, 3) {
        stream.extend_from_slice(&latin(&request(rng)));
    }
    if rng.chance(250) {
        for _ in 0..rng.between(1, 3) {
            let at = rng.below(stream.len() as u64) as usize;
            match rng.below(4) {
                0 => stream[at] = rng.next_u64() as u8,
                1 => stream.insert(at, *rng.pick(b"\r\n \t:;,\0/\x7f\xff0aZ").unwrap_or(&0)),
                2 => drop(stream.remove(at)),
                _ => {
                    let end = (at + rng.between(1, 40) as usize).min(stream.len());
                    let part = stream[at..end].to_vec();
                    let to = rng.below(stream.len() as u64 + 1) as usize;
                    stream.splice(to..to, part);
                }
            }
            if stream.is_empty() {
                stream.push(b'G');
            }
        }
    }
    stream
}

fn request(rng: &mut Rng) -> String {
    fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
        rng.pick(from).copied().unwrap_or_default()
    }
    let mut text = if rng.chance(600) { LINES[rng.below(9) as usize] } else { pick(rng, &LINES) }.to_owned();
    for _ in 0..rng.below(4) {
        text += "\r\n";
        text += pick(rng, &OTHERS);
    }
    let body = match rng.below(4) {
        0 => String::new(),
        1 => SMUGGLED.into(),
        2 => "\r\n".repeat(rng.below(4) as usize),
        _ => "0123456789".repeat(rng.below(100) as usize),
    };
    match rng.below(10) {
        0..3 => text + "\r\n\r\n",
        3..6 => format!("{text}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        6..9 => {
            text += "\r\nTransfer-Encoding: chunked\r\n\r\n";
            for _ in 0..rng.below(4) {
                let usual = rng.chance(850);
                text += if usual { CHUNKS[rng.below(15) as usize] } else { pick(rng, &CHUNKS) };
            }
            if !body.is_empty() {
                text += &format!("{:x}\r\n{body}\r\n", body.len());
            }
            text + if rng.chance(850) { ENDS[rng.below(7) as usize] } else { pick(rng, &ENDS) }
        }
        _ => {
            let fields = pick(rng, &FIELDS).replace("{n}", &body.len().to_string());
            format!("{text}\r\n{fields}\r\n\r\n{body}")
        }
    }
}
