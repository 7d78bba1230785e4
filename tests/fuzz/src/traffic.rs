//! What passes through a router: where messages end must not depend on how their bytes come in, and what goes on must mean the
//! same to its next reader.

use std::{collections::BTreeSet, mem, ops::ControlFlow};

use membership_types::Rng;
use router_proto::{
    extract::{BodySearch, Extract, Search},
    frames::{
        KeyPaths, Refusal as Refused, RequestScanner, ResponseScanner, Stamp, push_request, push_response,
    },
    http::{Answers, Body, ChunkedScanner, HeadScan, Listener, Method, Refusal, RequestHead, ResponseHead},
    key::tagged,
    pmap::{PartitionId, RacsId},
    racs::Access,
    resp::{
        Args, Connection, Cursor, Facts, Family, Finished, Gather, Heard, Keys, Limits, Proto, ReplyScanner,
        Scan, Scanner, Split, Spread, Transaction, answer, heard, lookup, pattern_tag,
    },
};

/// Reads a stream that comes in at once, in equal pieces, and in pieces of any size. All must come to the same.
pub(crate) fn however_it_is_cut<T: PartialEq + std::fmt::Debug>(
    cut: u8,
    stream: &[u8],
    read: impl Fn(&[&[u8]]) -> T,
) {
    let whole = read(&[stream]);
    let equal: Vec<&[u8]> = stream.chunks(1 + usize::from(cut % 16)).collect();
    assert_eq!(read(&equal), whole, "in pieces of {}", 1 + cut % 16);
    let (mut rng, mut rest, mut pieces) = (Rng::seeded(cut.into()), stream, Vec::new());
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rng.between(1, rest.len().min(64) as u64) as usize);
        pieces.push(piece);
        rest = more;
    }
    assert_eq!(read(&pieces), whole, "in pieces of any size, drawn from {cut}");
}

/// What was read of a stream: messages, and whether it ended in one that is refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Read<M, E> {
    pub messages: Vec<M>,
    refused: Option<E>,
}

/// Reads messages off a buffer that grows. `next` gives one with its length, if it is there.
pub(crate) fn messages<M, E>(
    pieces: &[&[u8]],
    mut next: impl FnMut(&[u8]) -> Result<Option<(M, usize)>, E>,
) -> Read<M, E> {
    let (mut buffer, mut messages) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match next(&buffer) {
                Ok(Some((message, len))) => {
                    messages.push(message);
                    buffer.drain(..len);
                }
                Ok(None) => break,
                Err(refused) => return Read { messages, refused: Some(refused) },
            }
        }
    }
    Read { messages, refused: None }
}

/// A part of a stream of HTTP.
#[derive(Debug, PartialEq)]
enum Part {
    /// A head, as it goes on, and its key.
    Head(Vec<u8>, Option<Vec<u8>>),
    /// A body ended here.
    End(u64),
}

/// What comes next in a stream of HTTP.
enum Next {
    Head(HeadScan),
    Length { left: u64, passed: u64 },
    Chunked { scanner: ChunkedScanner, passed: u64 },
    UntilClose,
}

impl Next {
    fn after(body: Body) -> Self {
        match body {
            Body::None => Self::Head(HeadScan::default()),
            Body::Length(left) => Self::Length { left, passed: 0 },
            Body::Chunked => Self::Chunked { scanner: ChunkedScanner::default(), passed: 0 },
            Body::UntilClose => Self::UntilClose,
        }
    }

    /// Passes what belongs to a body. Gives how much that is, and the part that ends with it.
    fn body(&mut self, input: &[u8]) -> Result<(usize, Option<Part>), Refusal> {
        let (len, passed, done) = match self {
            Self::Head(_) => return Ok((0, None)),
            Self::UntilClose => return Ok((input.len(), None)),
            Self::Length { left, passed } => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= len as u64;
                *passed += len as u64;
                (len, *passed, *left == 0)
            }
            Self::Chunked { scanner, passed } => {
                let advance = scanner.advance(input)?;
                assert!(advance.len <= input.len() && (advance.done || advance.len == input.len()));
                *passed += advance.len as u64;
                (advance.len, *passed, advance.done)
            }
        };
        let part = done.then_some(Part::End(passed));
        if done {
            *self = Self::Head(HeadScan::default());
        }
        Ok((len, part))
    }
}

/// Reads a stream of heads and bodies. `head` finds and judges a head: how it goes on, its key, its body, and its length.
fn http(
    pieces: &[&[u8]],
    mut head: impl FnMut(&mut HeadScan, &[u8]) -> Result<Option<(Part, Body, usize)>, Refusal>,
) -> (Vec<Part>, bool) {
    let (mut buffer, mut parts, mut next) = (Vec::new(), Vec::new(), Next::after(Body::None));
    let mut step = |buffer: &mut Vec<u8>, next: &mut Next| -> Result<ControlFlow<()>, Refusal> {
        if let Next::Head(scan) = next {
            let Some((part, body, len)) = head(scan, buffer)? else { return Ok(ControlFlow::Break(())) };
            parts.push(part);
            buffer.drain(..len);
            *next = Next::after(body);
        }
        let (len, part) = next.body(buffer)?;
        buffer.drain(..len);
        parts.extend(part);
        let goes_on = matches!(next, Next::Head(_)) && !buffer.is_empty();
        Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    };
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match step(&mut buffer, &mut next) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                // Which of two faults is seen first may depend on the cuts. That there is one must not.
                Err(_) => return (parts, true),
            }
        }
    }
    (parts, false)
}

/// What a client sends on a connection: the same requests, with the same bodies and keys, however it is cut; and the server reads
/// out of what goes on what the router read.
pub(crate) fn requests(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let extract =
        Extract::compile(["header:x-key", "path:/items/{key}/*", "query:q", "cookie:c", "jwt:sub", "host"]);
    let extract = extract.expect("well-formed");
    let key = |request: &RequestHead, head: &[u8]| {
        let (mut scratch, mut body) = (Vec::new(), BodySearch::new(0));
        extract.search(request, head, &mut scratch, &mut body).map(|found| match found {
            Search::Key(key) => Some(key.to_vec()),
            Search::NoKey => None,
            Search::InBody => unreachable!("no extractor looks there"),
        })
    };
    let read = |scan: &mut HeadScan, input: &[u8]| {
        let Some(place) = scan.request(input)? else { return Ok(None) };
        let head = &input[place.clone()];
        let request = RequestHead::parse(head)?;
        let found = key(&request, head)?;
        let forwarded = request.forward(head).collect::<Vec<_>>().concat();
        let again = [&forwarded[..], b"\r\n"].concat();
        let reread = RequestHead::parse(&again).expect("what goes on is well-formed");
        assert_eq!((reread.body(), reread.method()), (request.body(), request.method()), "two readers");
        assert_eq!(key(&reread, &again).as_ref(), Ok(&found), "the server sees another key");
        let ends = HeadScan::default().request(&again).map(|place| place.map(|place| place.end));
        assert_eq!(ends, Ok(Some(again.len())), "the server sees another end");
        Ok(Some((Part::Head(forwarded, found), request.body(), place.end)))
    };
    however_it_is_cut(*cut, stream, |pieces| http(pieces, read));
}

/// What a server answers on a connection, to requests of one method.
pub(crate) fn responses(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let to = [Method::Get, Method::Head, Method::Post, Method::Other][usize::from(cut >> 6)];
    let read = |scan: &mut HeadScan, input: &[u8]| {
        let Some(end) = scan.response(input)? else { return Ok(None) };
        let head = &input[..end];
        let mut response = ResponseHead::parse(head, to)?;
        let forwarded = response.forward(head).collect::<Vec<_>>().concat();
        let again = [&forwarded[..], b"\r\n"].concat();
        let reread = ResponseHead::parse(&again, to).expect("what goes on is well-formed");
        assert_eq!((reread.body(), reread.status()), (response.body(), response.status()), "two readers");
        response.reserve(head, b"x-phalanx-");
        let exposed = response.forward(head).collect::<Vec<_>>().concat();
        let names = |text: &[u8]| text.to_ascii_lowercase().windows(12).any(|w| w == b"\r\nx-phalanx-");
        assert!(!names(&exposed), "a server speaks in the router's name");
        Ok(Some((Part::Head(forwarded, None), response.body(), end)))
    };
    however_it_is_cut(cut & 63, stream, |pieces| http(pieces, read));
}

/// Statuses and bodies of answers.
#[derive(Default)]
struct Answered(Vec<(u16, Vec<u8>)>);

impl Listener for Answered {
    fn head(&mut self, _: &[u8], parsed: &mut ResponseHead) {
        self.0.push((parsed.status(), Vec::new()));
    }

    fn body(&mut self, bytes: &[u8]) {
        self.0.last_mut().expect("a body follows a head").1.extend_from_slice(bytes);
    }
}

/// Answers on a connection that requests share: each is what stands in its place in the stream, however that is cut,
/// and behind one that leaves doubt nothing is heard.
pub(crate) fn shared_answers(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else { return };
    let to = |at: usize| if first >> (6 + at % 2) & 1 == 1 { Method::Head } else { Method::Get };
    let read = |pieces: &[&[u8]]| {
        let (mut answers, mut answered, mut done) = (Answers::default(), Answered::default(), 0);
        let (mut buffer, mut doubt) = (Vec::new(), false);
        'pieces: for piece in pieces {
            buffer.extend_from_slice(piece);
            while !buffer.is_empty() {
                let Ok(read) = answers.read(&buffer, to(done), &mut answered) else {
                    doubt = true;
                    break 'pieces;
                };
                buffer.drain(..read.len);
                let Some(goes_on) = read.whole else { break };
                assert!(!answers.is_within());
                done += 1;
                if !goes_on {
                    break 'pieces;
                }
            }
        }
        answered.0.truncate(done);
        (answered.0, doubt)
    };
    however_it_is_cut(first & 63, stream, read);
    let mut rest = stream;
    for (at, (status, body)) in read(&[stream]).0.into_iter().enumerate() {
        let parsed = loop {
            let end = HeadScan::default().response(rest).ok().flatten().expect("a head");
            let parsed = ResponseHead::parse(&rest[..end], to(at)).expect("a head");
            rest = &rest[end..];
            if !parsed.is_interim() {
                break parsed;
            }
        };
        let len = match parsed.body() {
            Body::None => 0,
            Body::Length(len) => usize::try_from(len).expect("it is in memory"),
            Body::Chunked => rest.len() - unchunked(rest).expect("it is well-formed").1,
            Body::UntilClose => panic!("nobody knows where that ends"),
        };
        assert_eq!((status, &body[..]), (parsed.status(), &rest[..len]), "{}", stream.escape_ascii());
        rest = &rest[len..];
    }
}

/// A chunked body: its data are what a reader of the whole finds, and nothing behind it is touched.
pub(crate) fn chunked_body(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let read = |pieces: &[&[u8]]| {
        let (mut scanner, mut found, mut passed) = (ChunkedScanner::default(), Vec::new(), 0);
        for piece in pieces {
            // Which of two faults is seen first may depend on the cuts. That there is one must not.
            let step = scanner.advance_data(piece, |data| found.extend_from_slice(data)).map_err(drop)?;
            passed += step.len;
            assert!(step.len <= piece.len() && (step.done || step.len == piece.len()));
            if step.done {
                return Ok::<_, ()>((passed, Some(found)));
            }
        }
        Ok((passed, None))
    };
    however_it_is_cut(*cut, stream, read);
    if let Ok((len, Some(found))) = read(&[stream]) {
        let (data, rest) = unchunked(stream).expect("it is well-formed");
        assert_eq!((data, stream.len() - rest), (found, len), "{}", stream.escape_ascii());
    }
}

/// The data of a chunked body, and how many bytes are behind it; by the book, with the whole body at hand.
fn unchunked(mut rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |rest: &[u8]| rest.windows(2).position(|end| end == b"\r\n");
    let mut data = Vec::new();
    loop {
        let (size, more) = rest.split_at(line(rest)?);
        let digits = size.split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        rest = &more[2..];
        if size == 0 {
            break;
        }
        data.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        let end = line(rest)?;
        rest = &rest[end + 2..];
        if end == 0 {
            return Some((data, rest.len()));
        }
    }
}

/// Limits that short inputs reach.
const TIGHT: Limits = Limits { args: 64, bulk: 512, command: 2048 };

/// What a client of Redis sends: the same commands however they are cut, and of those that are too large, how much there is. Each is split by server and answered as it would be.
pub(crate) fn commands(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    however_it_is_cut(*cut, stream, |pieces| {
        let (mut scanner, mut args, mut skipped) = (Scanner::default(), Args::default(), 0);
        let mut read = messages(pieces, |input| {
            Ok::<_, router_proto::resp::ProtocolError>(match scanner.scan(input, &mut args, &TIGHT)? {
                Scan::Incomplete => {
                    assert!(scanner.wants(input) > input.len(), "nothing is missing");
                    None
                }
                Scan::Empty(len) => Some((Some((skipped, None, Vec::new())), len)),
                Scan::TooLarge(len, what) => Some((Some((skipped, Some(what), Vec::new())), len)),
                Scan::Skipped(len) => {
                    skipped += len;
                    Some((None, len))
                }
                Scan::Command(len) => {
                    routed(&input[..len], &args);
                    Some((Some((skipped, None, texts(&input[..len], &args))), len))
                }
                Scan::Inline(len) => Some((Some((skipped, None, texts(&input[..len], &args))), len)),
            })
        });
        read.messages.retain(Option::is_some);
        (read, skipped)
    });
}

fn texts(command: &[u8], args: &Args) -> Vec<Vec<u8>> {
    (0..args.len()).map(|at| args.get(command, at).to_vec()).collect()
}

/// A command that is split and put together again loses nothing, and what the router answers itself is one reply.
fn routed(command: &[u8], args: &Args) {
    let Some(known) = lookup(args.get(command, 0)) else { return };
    let known = match known.keys {
        Keys::Sub(subs) if args.len() > 1 => {
            let word = args.get(command, 1);
            subs.iter().find(|sub| sub.name.as_bytes().eq_ignore_ascii_case(word)).unwrap_or(known)
        }
        _ => known,
    };
    if !known.fits(args.len()) {
        return;
    }
    let _refused = known.each_key(command, args, &mut |at| assert!(at > 0 && at < args.len()));
    for pattern in (1..args.len()).map(|at| args.get(command, at)) {
        let Some(tag) = pattern_tag(pattern) else { continue };
        let star = pattern.iter().position(|byte| *byte == b'*').expect("it is a pattern");
        for element in [&b""[..], b"x", b"{y}", b"}{z}"] {
            let key = [&pattern[..star], element, &pattern[star + 1..]].concat();
            assert_eq!(tagged(&key), tag, "{}", key.escape_ascii());
        }
    }
    match known.keys {
        Keys::None(local) => {
            for proto in [Proto::Resp2, Proto::Resp3] {
                let mut out = Vec::new();
                let mut connection = Connection { proto, ..Connection::new(7, true) };
                answer(local, command, args, &mut connection, &Facts::default(), &mut out);
                assert_eq!(ReplyScanner::default().scan(&out), Ok(Some(out.len())), "{}", out.escape_ascii());
            }
        }
        Keys::Blocking(_, _, patience) => _ = patience.of(command, args),
        Keys::Scan => {
            let Some(cursor) = Cursor::parse(args.get(command, 1), 3) else { return };
            let (mut out, mut args) = (Vec::new(), args.clone());
            cursor.write(command, &args, &mut out);
            let scan = Scanner::default().scan(&out, &mut args, &Limits::default());
            assert_eq!(scan, Ok(Scan::Command(out.len())), "{}", out.escape_ascii());
        }
        Keys::Many(family) => {
            let Some(keys) = family.keys(args) else { return };
            let key = |args: &Args, of: &[u8], at: usize| args.get(of, 1 + at * family.step()).to_vec();
            let place = |key: &[u8]| RacsId::new(key.iter().map(|b| u32::from(*b)).sum::<u32>() % 3);
            let of = |racs: RacsId| {
                (0..keys).map(|at| key(args, command, at)).filter(move |key| place(key) == racs)
            };
            let mut split = Split::default();
            if let Some(only) = split.split(command, args, family, 3, place) {
                assert_eq!(of(only).count(), keys);
                return;
            }
            let (mut together, mut places) = (0, BTreeSet::new());
            for (racs, out) in split.parts() {
                let mut args = Args::default();
                let scan = Scanner::default().scan(out, &mut args, &Limits::default());
                assert_eq!(scan, Ok(Scan::Command(out.len())), "{}", out.escape_ascii());
                together += args.len() - 1;
                let found = (0..family.keys(&args).unwrap_or(0)).map(|at| key(&args, out, at));
                assert!(of(racs).eq(found), "{}", out.escape_ascii());
                assert!(places.insert(racs), "two parts go to one place");
            }
            assert_eq!(together, args.len() - 1, "an argument is lost");
        }
        _ => {}
    }
}

/// A transaction that a client of Redis writes: a server reads of what is sent the same commands, and nothing else.
pub(crate) fn transactions(data: &[u8]) {
    let Some((first, mut stream)) = data.split_first() else { return };
    let watched = PartitionId::new(u32::from(first % 2));
    let mut transaction = if *first < 128 { Transaction::default() } else { Transaction::watching(watched) };
    let (mut scanner, mut args, mut queued) = (Scanner::default(), Args::default(), Vec::new());
    let (mut places, mut refused, mut updates) = (BTreeSet::new(), false, false);
    if *first >= 128 {
        places.insert(watched);
    }
    while let Ok(Scan::Command(len)) = scanner.scan(stream, &mut args, &TIGHT) {
        let command = &stream[..len];
        let access = if len % 3 == 0 { Access::Update } else { Access::Read };
        let partition = (args.len() > 1).then(|| PartitionId::new(args.get(command, 1).len() as u32 % 2));
        match transaction.queue(command, partition, access, 600) {
            Ok(()) => {
                places.extend(partition);
                updates |= access == Access::Update;
                queued.push(texts(command, &args));
            }
            Err(why) => {
                assert!(
                    why.starts_with("CROSSSLOT ")
                        == partition.is_some_and(|one| !places.is_empty() && !places.contains(&one))
                );
                refused = true;
            }
        }
        stream = &stream[len..];
    }
    match transaction.finish() {
        Finished::Refused => assert!(refused),
        Finished::Empty => assert!(queued.is_empty() && *first < 128 && !refused),
        Finished::Send { bytes, replies, partition, access } => {
            assert!(!refused && places.len() < 2 && bytes.len() <= 600 + 14);
            assert_eq!((partition, access == Access::Update), (places.first().copied(), updates));
            let (mut rest, mut read) = (&bytes[..], Vec::new());
            while !rest.is_empty() {
                let scan = Scanner::default().scan(rest, &mut args, &Limits::default());
                let Ok(Scan::Command(len)) = scan else { panic!("{scan:?} in {}", bytes.escape_ascii()) };
                read.push(texts(&rest[..len], &args));
                rest = &rest[len..];
            }
            let word = |word: &[u8]| vec![word.to_vec()];
            let expected = [vec![word(b"MULTI")], queued, vec![word(b"EXEC")]].concat();
            assert_eq!((replies as usize, read), (expected.len(), expected));
        }
    }
}

/// What servers of Redis answer: the same replies however they are cut; and whatever the parts of a split command are
/// answered, its client gets one reply.
pub(crate) fn replies(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = |pieces: &[&[u8]]| {
        let mut scanner = ReplyScanner::default();
        messages(pieces, |input| {
            Ok::<_, router_proto::resp::ReplyError>(
                scanner.scan(input)?.map(|len| (input[..len].to_vec(), len)),
            )
        })
    };
    however_it_is_cut(*cut, stream, whole);
    let replies = mem::take(&mut whole(&[stream]).messages);
    let count = replies.len().min(8) as u16;
    for family in [Family::Mget, Family::Mset, Family::CountUpdate, Family::CountRead] {
        if count == 0 {
            break;
        }
        // Two keys for each.
        let words = 1 + 2 * usize::from(count) * family.step();
        let command = format!("*{words}\r\n") + &"$1\r\nk\r\n".repeat(words);
        let (mut args, mut split, mut gather) = (Args::default(), Split::default(), Gather::default());
        let scan = Scanner::default().scan(command.as_bytes(), &mut args, &Limits::default());
        assert_eq!(scan, Ok(Scan::Command(command.len())));
        let mut places = (0..u32::from(count)).cycle().map(RacsId::new);
        let mut place = |_: &[u8]| places.next().expect("it goes round");
        split.split(command.as_bytes(), &args, family, count.into(), &mut place);
        gather.keys(family, &split);
        for (part, reply) in (0..count).zip(&replies) {
            assert_eq!(gather.put(part, reply), part + 1 == count);
        }
        one_reply(&gather);
    }
    use Spread::{Channels, Concat, Every, Most, One, Same, Sum, SumByName};
    for spread in [Channels, Concat, Every, Most, One, Same, Sum, SumByName] {
        if count == 0 {
            break;
        }
        let mut gather = Gather::default();
        gather.all(spread, count, 5);
        for (part, reply) in (0..count).zip(&replies) {
            gather.put(part, reply);
        }
        one_reply(&gather);
    }
    for reply in &replies {
        let told = heard(reply);
        assert!(told != Heard::Refused || reply.starts_with(b"-"));
        assert_eq!(ReplyScanner::default().scan_pushed(reply), Ok(Some(reply.len())));
        assert_eq!(
            ReplyScanner::default().scan_many(&[&reply[..]; 3].concat(), 3),
            Ok(Some(3 * reply.len()))
        );
        let mut gather = Gather::default();
        gather.scan(Cursor { racs: 1, server: 9 }, 3);
        gather.put(0, reply);
        one_reply(&gather);
    }
}

fn one_reply(gather: &Gather) {
    let mut out = Vec::new();
    gather.write(&mut out);
    assert_eq!(ReplyScanner::default().scan(&out), Ok(Some(out.len())), "{}", out.escape_ascii());
}

/// The longest frame here.
const LONG_FRAME: usize = 4096;

/// What a client of framed MessagePack-RPC sends: the same requests and keys however they are cut, and so do they go on.
pub(crate) fn frame_requests(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let paths = KeyPaths::compile(["msgpack:/params/0/user", "msgpack:/params/0", "msgpack:/params/1/2"])
        .expect("well-formed");
    let scan = |scanner: &mut RequestScanner, input: &[u8]| {
        let Some(request) = scanner.scan(input, LONG_FRAME, Some(&paths)).map_err(drop)? else {
            return Ok(None);
        };
        let frame = &input[..request.len];
        let key = request.key.clone().map(|key| key.map(|key| key.bytes(frame, &mut [0; 24]).to_vec()));
        let parts =
            [&request.method, &request.params, &request.body].map(|range| frame[range.clone()].to_vec());
        Ok::<_, ()>(Some(((request.msgid, key, parts, frame[request.stamp].to_vec()), request.len)))
    };
    however_it_is_cut(*cut, stream, |pieces| {
        let mut scanner = RequestScanner::default();
        messages(pieces, |input| scan(&mut scanner, input))
    });
    for (msgid, key, parts, stamp) in
        messages(&[stream], |input| scan(&mut RequestScanner::default(), input)).messages
    {
        // Under another number, and with what the client said of it, or without.
        let said = (!stamp.is_empty()).then(|| Stamp::read(&stamp).expect("it was read before"));
        let id = msgid.wrapping_mul(0x9e37_79b9);
        let mut out = Vec::new();
        push_request(&mut out, id, &parts[2], said.as_ref());
        let again = scan(&mut RequestScanner::default(), &out)
            .expect("what goes on is well-formed")
            .expect("it is whole");
        let ((again_id, again_key, again_parts, again_stamp), len) = again;
        assert_eq!((again_id, again_key, again_parts, len), (id, key, parts, out.len()));
        if let Some(said) = said {
            assert_eq!(Stamp::read(&again_stamp).as_ref(), Ok(&said));
        }
    }
}

/// What a server of framed MessagePack-RPC answers: the same responses however they are cut, and so do they go on.
pub(crate) fn frame_responses(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let scan = |scanner: &mut ResponseScanner, input: &[u8]| {
        let Some(response) = scanner.scan(input, LONG_FRAME).map_err(drop)? else { return Ok(None) };
        let frame = &input[..response.len];
        let error = response.error.map(|range| frame[range].to_vec());
        let parts = [response.result, response.body].map(|range| frame[range].to_vec());
        Ok::<_, ()>(Some(((response.msgid, error, parts), response.len)))
    };
    however_it_is_cut(*cut, stream, |pieces| {
        let mut scanner = ResponseScanner::default();
        messages(pieces, |input| scan(&mut scanner, input))
    });
    for (msgid, error, parts) in
        messages(&[stream], |input| scan(&mut ResponseScanner::default(), input)).messages
    {
        if let Some(refused) = error.as_deref().and_then(Refused::read) {
            assert!(!refused.verdict.word().is_empty());
        }
        let id = msgid.wrapping_add(1);
        let mut out = Vec::new();
        push_response(&mut out, id, &parts[1]);
        let again = scan(&mut ResponseScanner::default(), &out);
        let len = out.len();
        assert_eq!(again, Ok(Some(((id, error, parts), len))));
    }
}
