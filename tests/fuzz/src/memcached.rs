//! What passes through a router of memcached: the same commands and replies however they are cut, and what goes on means the
//! same to its next reader.

use router_proto::{
    RacsId,
    memcached::{
        Gather, Hush, Keys, Kind, Limits, Note, ProtocolError, ReplyScanner, Request, Scan, Scanner, Split,
    },
};

use crate::traffic::{however_it_is_cut, messages};

/// Limits that short inputs reach.
const TIGHT: Limits = Limits { value: 64, line: 512 };

/// What a client of memcached sends. Of the data of refused commands only how many there are is the same however they are cut.
pub(crate) fn commands(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    however_it_is_cut(*cut, stream, |pieces| {
        let (mut scanner, mut skipped) = (Scanner::default(), 0);
        let mut read = messages(pieces, |input| {
            Ok::<_, ProtocolError>(match scanner.scan(input, &TIGHT)? {
                Scan::Incomplete => None,
                Scan::Skipped(len) => {
                    skipped += len;
                    Some((None, len))
                }
                Scan::Request(len, request) => {
                    passed_on(&input[..len], &request);
                    Some((Some((skipped, input[..len].to_vec(), request)), len))
                }
            })
        });
        read.messages.retain(Option::is_some);
        (read, skipped)
    });
}

/// A server reads of a command what the router read.
fn passed_on(command: &[u8], request: &Request) {
    match request {
        Request::One(one) => {
            let mut sent = command.to_vec();
            sent.drain(one.cut.clone());
            match Scanner::default().scan(&sent, &TIGHT) {
                Ok(Scan::Request(len, Request::One(again))) => {
                    assert_eq!(len, sent.len(), "{}", sent.escape_ascii());
                    assert_eq!(sent[again.key.clone()], command[one.key.clone()]);
                    assert_eq!(again.note, Note { hush: Hush::Nothing, ..one.note });
                    assert_eq!((again.binary, again.access), (one.binary, one.access));
                    assert!(again.cut.is_empty());
                }
                other => panic!("{}: {other:?}", sent.escape_ascii()),
            }
        }
        Request::Many(keys) => {
            let mut split = Split::default();
            split.split(command, keys, 3, place).expect("a short line has few keys");
            let mut found: Vec<Vec<&[u8]>> = vec![Vec::new(); 3];
            for (racs, text) in split.parts() {
                let part = &mut found[racs.get() as usize];
                match Scanner::default().scan(text, &TIGHT) {
                    Ok(Scan::Request(len, Request::One(one))) if len == text.len() => {
                        assert_eq!((one.note, one.access), (keys.note, keys.access));
                        part.push(&text[one.key]);
                    }
                    Ok(Scan::Request(len, Request::Many(again))) if len == text.len() => {
                        assert_eq!((again.note, again.access), (keys.note, keys.access));
                        part.extend(again.of(text));
                    }
                    other => panic!("{}: {other:?}", text.escape_ascii()),
                }
            }
            for (racs, found) in (0..).zip(found) {
                let racs = RacsId::new(racs);
                assert!(
                    keys.of(command).filter(|key| place(key) == racs).eq(found),
                    "{}",
                    command.escape_ascii()
                );
            }
        }
        _ => {}
    }
}

/// Where a key is: on one of three.
fn place(key: &[u8]) -> RacsId {
    RacsId::new(u32::from(key[key.len() - 1]) % 3)
}

const KINDS: [Kind; 12] = [
    Kind::Values,
    Kind::TouchedValues,
    Kind::Stored,
    Kind::Deleted,
    Kind::Touched,
    Kind::Number,
    Kind::Ok,
    Kind::MetaGet,
    Kind::MetaSet,
    Kind::MetaDelete,
    Kind::MetaArithmetic,
    Kind::MetaDebug,
];

/// What servers of memcached answer. The first byte says to which kind of command, and how the bytes come in; replies to a
/// command over keys answer the parts of one command in turn, and make one reply to the whole.
pub(crate) fn replies(data: &[u8]) {
    const WHOLE: &[u8] = b"get a b c d b a\r\n";
    let Some((first, stream)) = data.split_first() else { return };
    let kind = KINDS[usize::from(*first) % KINDS.len()];
    let keys = whole(WHOLE);
    let mut split = Split::default();
    split.split(WHOLE, &keys, 3, place).expect("few keys");
    let parts: Vec<&[u8]> = split.parts().map(|(_, text)| text).collect();
    let read = |pieces: &[&[u8]]| {
        let (mut scanner, mut count) = (ReplyScanner::default(), 0);
        messages(pieces, |input| {
            let reply = scanner.scan(kind, parts[count % parts.len()], input)?;
            Ok::<_, router_proto::memcached::ReplyError>(reply.map(|len| {
                count += 1;
                (input[..len].to_vec(), len)
            }))
        })
    };
    however_it_is_cut(first / KINDS.len() as u8, stream, read);
    if kind != Kind::Values {
        return;
    }
    for replies in read(&[stream]).messages.chunks_exact(parts.len()) {
        let mut gather = Gather::default();
        gather.values(WHOLE, &keys, &split);
        for (part, reply) in (0..).zip(replies) {
            assert_eq!(gather.put(part, reply), usize::from(part) + 1 == parts.len());
        }
        let mut out = Vec::new();
        gather.write(&mut out);
        let scan = ReplyScanner::default().scan(kind, WHOLE, &out);
        assert_eq!(scan, Ok(Some(out.len())), "{}", out.escape_ascii());
    }
}

fn whole(command: &[u8]) -> Keys {
    match Scanner::default().scan(command, &TIGHT) {
        Ok(Scan::Request(_, Request::Many(keys))) => keys,
        other => unreachable!("{other:?}"),
    }
}
