//! Parsers that resume: whatever the cuts, the result is the same; whatever the bytes, nothing panics.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use membership_types::Rng;
use proptest::{collection::vec, prelude::*};
use router_proto::{
    extract::{BodySearch, Extract},
    http::{ChunkedScanner, HeadScan, Method, RequestHead, ResponseHead},
    resp::{Args, Limits, ReplyScanner, Scan, Scanner},
};

const REQUEST: &[u8] =
    b"POST /items/a%20b?q HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nCookie: c=d\r\nTransfer-Encoding: chunked\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: s\r\nConnection: close\r\nContent-Length: 12\r\n\r\n";
const CHUNKED: &[u8] = b"5\r\nhello\r\n10;x=\"y\"\r\n0123456789abcdef\r\n00\r\nX-Sum: 1\r\nY: \r\n\r\n";
const COMMANDS: &[u8] =
    b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$0\r\n\r\n$12\r\n*1\r\n$4\r\nQUIT\r\n*0\r\nPING a  b\r\n\
      *-1\r\n*2\r\n$3\r\nget\r\n$10\r\n0123456789\r\n";
const REPLIES: &[u8] = b"+OK\r\n-ERR x\r\n:12\r\n$-1\r\n$0\r\n\r\n$4\r\n\r\n\r\n\r\n*-1\r\n*0\r\n\
      *3\r\n:1\r\n*2\r\n$1\r\na\r\n*0\r\n+x\r\n%1\r\n+k\r\n~2\r\n#t\r\n_\r\n|1\r\n+a\r\n:1\r\n,1.5\r\n\
      (123\r\n=7\r\ntxt:abc\r\n!3\r\nERR\r\n";

/// A command's length and arguments.
type Found = (usize, Vec<Vec<u8>>);

/// All commands of a stream that arrives in these pieces, as (length, arguments); or the error and where.
fn commands(pieces: &[&[u8]]) -> Result<Vec<Found>, (usize, String)> {
    let (mut scanner, mut args, limits) = (Scanner::default(), Args::default(), Limits::default());
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let (len, with_args) = match scanner.scan(&buffer, &mut args, &limits) {
                Ok(Scan::Incomplete) => break,
                Ok(Scan::Command(len) | Scan::Inline(len)) => (len, true),
                Ok(Scan::Empty(len) | Scan::TooLarge(len, _)) => (len, false),
                Ok(Scan::Skipped(len)) => {
                    buffer.drain(..len);
                    continue;
                }
                Err(error) => return Err((found.len(), error.to_string())),
            };
            let texts = if with_args {
                (0..args.len()).map(|at| args.get(&buffer, at).to_vec()).collect()
            } else {
                vec![]
            };
            found.push((len, texts));
            buffer.drain(..len);
        }
    }
    Ok(found)
}

/// The lengths of all replies of a stream that arrives in these pieces; or the error and where.
fn replies(pieces: &[&[u8]]) -> Result<Vec<usize>, (usize, String)> {
    let (mut scanner, mut buffer, mut found) = (ReplyScanner::default(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match scanner.scan(&buffer) {
                Ok(None) => break,
                Ok(Some(len)) => {
                    found.push(len);
                    buffer.drain(..len);
                }
                Err(error) => return Err((found.len(), error.to_string())),
            }
        }
    }
    Ok(found)
}

/// Where a chunked body that arrives in these pieces ends; `None` if it does not.
fn body_end(pieces: &[&[u8]]) -> Result<Option<usize>, String> {
    let (mut scanner, mut passed) = (ChunkedScanner::default(), 0);
    for piece in pieces {
        let advance = scanner.advance(piece).map_err(|error| error.to_string())?;
        passed += advance.len;
        if advance.done {
            return Ok(Some(passed));
        }
        assert_eq!(advance.len, piece.len());
    }
    Ok(None)
}

/// Where a head that arrives in these pieces lies.
fn head(pieces: &[&[u8]], request: bool) -> Result<Option<(usize, usize)>, String> {
    let (mut scan, mut buffer) = (HeadScan::default(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let found = match request {
            true => scan.request(&buffer).map(|found| found.map(|place| (place.start, place.end))),
            false => scan.response(&buffer).map(|found| found.map(|end| (0, end))),
        };
        if let Some(place) = found.map_err(|error| error.to_string())? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// The stream whole, cut once at every position, byte by byte, and in random pieces: all must agree.
fn all_cuts_agree<T: PartialEq + std::fmt::Debug>(stream: &[u8], parse: impl Fn(&[&[u8]]) -> T) -> T {
    let whole = parse(&[stream]);
    for at in 0..=stream.len() {
        let (left, right) = stream.split_at(at);
        assert_eq!(parse(&[left, right]), whole, "cut at {at}: {:?}", String::from_utf8_lossy(stream));
    }
    assert_eq!(parse(&stream.chunks(1).collect::<Vec<_>>()), whole, "{:?}", String::from_utf8_lossy(stream));
    let mut rng = Rng::seeded(stream.len() as u64);
    for _ in 0..20 {
        let (mut pieces, mut rest) = (vec![], stream);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rng.between(1, rest.len().min(9) as u64) as usize);
            pieces.push(piece);
            rest = more;
        }
        assert_eq!(parse(&pieces), whole, "{pieces:?}");
    }
    whole
}

#[test]
fn a_command_stream_means_the_same_however_it_is_cut() {
    let found = all_cuts_agree(COMMANDS, commands).unwrap();
    let names: Vec<_> = found.iter().map(|(_, args)| args.first().cloned().unwrap_or_default()).collect();
    assert_eq!(names, [&b"PING"[..], b"SET", b"", b"PING", b"", b"get"]);
    assert_eq!(found[1].1, [&b"SET"[..], b"", b"*1\r\n$4\r\nQUIT"], "bytes of a value are no commands");
    assert_eq!(found.iter().map(|(len, _)| len).sum::<usize>(), COMMANDS.len());
}

#[test]
fn a_reply_stream_means_the_same_however_it_is_cut() {
    let found = all_cuts_agree(REPLIES, replies).unwrap();
    assert_eq!(found.iter().sum::<usize>(), REPLIES.len());
    assert_eq!(found.len(), 14);
}

#[test]
fn a_chunked_body_ends_in_the_same_place_however_it_is_cut() {
    let mut followed = CHUNKED.to_vec();
    followed.extend_from_slice(b"GET / HTTP/1.1\r\n");
    assert_eq!(all_cuts_agree(&followed, body_end), Ok(Some(CHUNKED.len())));
}

#[test]
fn a_head_ends_in_the_same_place_however_it_is_cut() {
    for stray in [&b""[..], b"\r\n"] {
        let stream = [stray, REQUEST, CHUNKED].concat();
        let place = all_cuts_agree(&stream, |pieces| head(pieces, true)).unwrap();
        assert_eq!(place, Some((stray.len(), stray.len() + REQUEST.len())));
    }
    let stream = [RESPONSE, &b"hello"[..]].concat();
    assert_eq!(all_cuts_agree(&stream, |pieces| head(pieces, false)), Ok(Some((0, RESPONSE.len()))));
}

#[test]
fn truncation_is_never_taken_for_the_end() {
    for at in 0..REQUEST.len() {
        assert_eq!(head(&[&REQUEST[..at]], true), Ok(None), "{at}");
    }
    for at in 0..CHUNKED.len() {
        assert_eq!(body_end(&[&CHUNKED[..at]]), Ok(None), "{at}");
    }
    let whole = replies(&[REPLIES]).unwrap();
    for at in 0..REPLIES.len() {
        let found = replies(&[&REPLIES[..at]]).unwrap();
        assert_eq!(found, whole[..found.len()]);
        assert!(found.iter().sum::<usize>() <= at);
    }
}

/// Everything that reads strangers' bytes, on these.
fn read_all(bytes: &[u8]) {
    let _ = commands(&[bytes]);
    let _ = replies(&[bytes]);
    let _ = body_end(&[bytes]);
    let extract =
        Extract::compile(["header:x-key", "path:/items/{key}/*", "query:q", "cookie:c", "jwt:sub", "host"]);
    let extract = extract.unwrap();
    if let Ok(Some(place)) = HeadScan::default().request(bytes) {
        let head = &bytes[place];
        if let Ok(request) = RequestHead::parse(head) {
            let forwarded = request.forward(head).collect::<Vec<_>>().concat();
            let again = [&forwarded[..], b"\r\n"].concat();
            let reread = RequestHead::parse(&again).expect("what is forwarded is itself well-formed");
            assert_eq!(reread.body(), request.body(), "both readers see the same framing");
            let (mut scratch, mut body) = (vec![], BodySearch::new(0));
            if let Ok(key) = extract.search(&request, head, &mut scratch, &mut body) {
                let (mut scratch, mut body) = (vec![], BodySearch::new(0));
                assert_eq!(
                    extract.search(&reread, &again, &mut scratch, &mut body),
                    Ok(key),
                    "the server sees the same key"
                );
            }
        }
    }
    if let Ok(Some(end)) = HeadScan::default().response(bytes)
        && let Ok(response) = ResponseHead::parse(&bytes[..end], Method::Get)
    {
        let again = [&response.forward(&bytes[..end]).collect::<Vec<_>>().concat()[..], b"\r\n"].concat();
        let reread =
            ResponseHead::parse(&again, Method::Get).expect("what is forwarded is itself well-formed");
        assert_eq!(reread.body(), response.body());
    }
}

#[test]
fn mutated_streams_never_panic_and_cuts_never_matter() {
    let mut rng = Rng::seeded(0x5EED);
    let seeds = [REQUEST, RESPONSE, CHUNKED, COMMANDS, REPLIES];
    let spice: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"$-1\r\n",
        b"*1000000\r\n",
        b"$99999999999\r\n",
        b"-",
        b"0",
        b"f",
        b";",
        b"*",
        b"Connection: x-key\r\n",
        b"\x80",
        b"%2e",
    ];
    for round in 0..4_000 {
        let mut bytes = rng.pick(&seeds).unwrap().to_vec();
        for _ in 0..rng.between(1, 4) {
            let at = rng.below(bytes.len() as u64 + 1) as usize;
            match rng.below(5) {
                0 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => drop(bytes.splice(at..at, rng.pick(spice).unwrap().iter().copied())),
                3 => bytes.truncate(at),
                _ => {
                    let other = *rng.pick(&seeds).unwrap();
                    let from = rng.below(other.len() as u64) as usize;
                    bytes.splice(at..at, other[from..].iter().copied());
                }
            }
        }
        read_all(&bytes);
        if round % 8 == 0 {
            // A refused stream is refused at the same command or reply, for the same reason, however it is
            // cut.
            all_cuts_agree(&bytes, commands).ok();
            all_cuts_agree(&bytes, replies).ok();
            all_cuts_agree(&bytes, body_end).ok();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
    }

    #[test]
    fn written_commands_are_read_back(list in vec(vec(vec(any::<u8>(), 0..40), 1..6), 1..8), cut in 0usize..2000) {
        let mut stream = vec![];
        for args in &list {
            stream.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
            for arg in args {
                stream.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                stream.extend_from_slice(arg);
                stream.extend_from_slice(b"\r\n");
            }
        }
        let (left, right) = stream.split_at(cut.min(stream.len()));
        let found: Vec<_> = commands(&[left, right]).unwrap().into_iter().map(|(_, args)| args).collect();
        prop_assert_eq!(found, list);
    }
}
