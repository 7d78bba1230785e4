//! What parses bytes of others, as plain functions: nothing that comes in may make one panic or disagree with itself. And
//! well-made bytes to begin with.

mod forge;
mod kept;

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::BytesMut;
use data_encoding::HEXLOWER;
use membership_multicast::Frame as GroupFrame;
use membership_proto::{Floor, Msg};
use membership_types::{Ballot, GroupName, Instant, Lineage, NodeId, Rng, ViewId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
};

use crate::{
    admin::{self, AdminResponse},
    bulk::links::{Unit, next_unit},
    death, disk,
    handshake::{self, Hello, Met, Refusal, Versions, said},
    metrics::Counts,
    node::Node,
    rendezvous::{
        self, Question, Registrar,
        announce::{Announcer, Notice},
        ask, http,
        proof::{NONCE, Proved, Told},
    },
    secret::{Credentials, Secret},
    session::{Agreeing, CORRUPT, PROOF, REKEY, Scratch, Session},
    wire::{self, Frame, FrameRef, Frames, MAX_FRAME, MAX_GREETING},
    witness,
};

pub use forge::{Forged, forge};
pub use kept::{kept_state, kept_states};

/// The payload of a frame between nodes: what is understood can be said, and is understood the same.
pub fn wire_frame(data: &[u8]) {
    if let Ok(Frame::Msg(msg)) = wire::decode::<Frame>(data) {
        let again = wire::encode(&FrameRef::Msg(&msg), MAX_FRAME).expect("it was no larger");
        let again: Frame = wire::decode(&again[4..]).expect("our own frame");
        assert!(matches!(again, Frame::Msg(again) if again == msg), "{msg:?} changes on the wire");
    }
}

/// What a node says of itself on the local socket, with the descriptors that come along.
pub fn card(data: &[u8]) {
    death::meddle_with_card(data);
}

/// Well-made ones.
pub fn cards() -> Vec<Vec<u8>> {
    death::cards()
}

/// The floor of a data directory; and the same with a checksum to it that fits. What is understood is written the same way.
pub fn floor_file(data: &[u8]) {
    let Ok(body) = std::str::from_utf8(data) else { return assert!(disk::from_text(data).is_err()) };
    let body = body.rsplit_once("sum ").map_or(body, |(body, _)| body);
    let fits = format!("{body}sum {}\n", disk::checksum(body.as_bytes()));
    for text in [data, fits.as_bytes()] {
        if let Ok((cluster, floor)) = disk::from_text(text) {
            assert_eq!(disk::to_text(&cluster, floor).as_bytes(), text);
        }
    }
}

/// Well-made ones.
pub fn floor_files() -> Vec<Vec<u8>> {
    let floor = |n: u64| Floor {
        view: ViewId::new(n << 22),
        lineage: Lineage::new(n, u64::MAX - n),
        ballot: Ballot { round: n, node: NodeId::new(7, n) },
    };
    let files = [("phalanx", 0), ("a-b_c.d", 1), ("phalanx", 200_000_000)];
    files.into_iter().map(|(cluster, n)| disk::to_text(cluster, floor(n)).into_bytes()).collect()
}

/// A stream of frames, in pieces: the same frames come out however it is cut.
pub fn wire_stream(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let read = |piece: usize| {
        let mut frames = Frames::new(MAX_GREETING);
        let mut got = Vec::new();
        for piece in stream.chunks(piece) {
            frames.buffer().extend_from_slice(piece);
            loop {
                match frames.next() {
                    Ok(Some(payload)) => {
                        assert!(payload.len() <= MAX_GREETING);
                        got.push(Ok(payload));
                    }
                    Ok(None) => break,
                    Err(garbage) => {
                        got.push(Err(garbage.to_string()));
                        return got;
                    }
                }
            }
        }
        got
    };
    assert!(read(1 + usize::from(*cut)) == read(stream.len().max(1)), "frames depend on how they are cut");
}

/// What the other side of a new connection says, to both who made it and who was called, where there is a key and where
/// there is none. A key lets in nobody who does not answer to what was said just now.
pub fn greeting(data: &[u8]) {
    let me = hello(1);
    let sealed = Credentials::Secret(secret());
    for with in [&Credentials::None, &sealed] {
        for answers in [false, true] {
            match met(data, &me, with, answers) {
                Ok(met) => {
                    assert!(met.session.is_open() && matches!(with, Credentials::None));
                    assert!(met.hello.cluster == me.cluster && met.hello.node != me.node);
                    assert!(data.ends_with(&met.rest));
                }
                Err(refusal) => {
                    let why = refusal.to_string();
                    assert!(why.len() < 1600 && !why.chars().any(char::is_control), "{why}");
                }
            }
        }
    }
}

/// What becomes of us if all this comes from the other side, and nothing after it.
fn met(said: &[u8], me: &Hello, with: &Credentials, answers: bool) -> Result<Met, Refusal> {
    within(async {
        let mut stream = tokio::io::join(said, tokio::io::sink());
        if answers {
            handshake::respond(&mut stream, me, with, &mut |_| true).await
        } else {
            handshake::initiate(&mut stream, me, with).await
        }
    })
}

/// What is sealed in a handshake by somebody who holds the key: it means what it means in the open.
pub fn sealed_greeting(data: &[u8]) {
    let Some((side, greeting)) = data.split_first() else { return };
    let greeting = &greeting[..greeting.len().min(MAX_GREETING - 64)];
    let (me, answers) = (hello(1), side % 2 == 1);
    let in_the_open = met(&said::open(greeting), &me, &Credentials::None, answers);
    match (in_the_open, within(met_sealed(greeting, &me, answers))) {
        (Ok(open), Ok(sealed)) => {
            assert!(open.hello == sealed.hello && !sealed.session.is_open() && sealed.rest.is_empty());
        }
        (Err(open), Err(sealed)) => assert_eq!(open.to_string(), sealed.to_string()),
        (open, sealed) => panic!("in the open {:?}, sealed {:?}", open.err(), sealed.err()),
    }
}

async fn met_sealed(greeting: &[u8], me: &Hello, answers: bool) -> Result<Met, Refusal> {
    let secret = secret();
    let with = &Credentials::Secret(secret.clone());
    let key = secret.first();
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
    let other = async move {
        if answers {
            let (mut agreeing, first) = Agreeing::begin(key, &said::bound(key), greeting);
            theirs.write_all(&said::sealed(key, &first)).await.ok()?;
            agreeing.hear(&said::next(&mut theirs).await?).ok()?;
            let mut proof = Scratch::default();
            agreeing.agreed().seal_proof(&mut proof);
            theirs.write_all(proof.bytes()).await.ok()
        } else {
            let first = said::next(&mut theirs).await?;
            let (mut agreeing, _) = Agreeing::answer(key, &said::bound(key), &first).ok()?;
            theirs.write_all(&said::sealed(key, &agreeing.say(greeting))).await.ok()?;
            // It is heard to its end.
            theirs.read(&mut [0; PROOF]).await.ok().map(drop)
        }
    };
    let us = async move {
        if answers {
            handshake::respond(&mut ours, me, with, &mut |_| true).await
        } else {
            handshake::initiate(&mut ours, me, with).await
        }
    };
    tokio::join!(us, other).0
}

/// Both ends of a sealed connection, between which somebody meddles who lacks the keys.
struct Meddled {
    one: Session,
    two: Session,
    /// Records of earlier on the same connection.
    old: Vec<Vec<u8>>,
}

impl Meddled {
    fn new() -> Self {
        let (secret, head) = (secret(), b"head");
        let key = secret.first();
        let (mut one, first) = Agreeing::begin(key, head, &[]);
        let (mut two, _) = Agreeing::answer(key, head, &first).expect("the same key");
        one.hear(&two.say(&[])).expect("the same key");
        Self { one: one.agreed(), two: two.agreed(), old: vec![vec![0, 16]] }
    }
}

fn record(session: &mut Session, content: &[u8]) -> Vec<u8> {
    let mut out = Scratch::default();
    session.seal(content, &mut out);
    out.bytes().to_vec()
}

/// What somebody does to a stream of sealed records: take away, repeat, swap, change, add. What comes out is the beginning of
/// what went in, each record once. Where whole records are added only, and fewer than close a connection, it is all of it.
pub fn records(data: &[u8]) {
    let [cut, count, sizes @ ..] = data else { return };
    let Some((sizes, script)) = sizes.split_at_checked(1 + usize::from(count % 6)) else { return };
    thread_local! {
        static MEDDLED: RefCell<Meddled> = RefCell::new(Meddled::new());
    }
    MEDDLED.with_borrow_mut(|meddled| {
        if meddled.one.sent() > REKEY - 64 || meddled.two.sent() > REKEY - 64 {
            *meddled = Meddled::new();
        }
        let Meddled { one, two, old } = meddled;
        let first = one.sent();
        let contents: Vec<Vec<u8>> =
            sizes.iter().zip(0_u8..).map(|(size, n)| vec![n; 1 + usize::from(*size) * 3]).collect();
        let right: Vec<Vec<u8>> = contents.iter().map(|content| record(one, content)).collect();
        let mut sent = right.clone();
        for act in script.chunks_exact(3).take(64) {
            meddle(&mut sent, [act[0], act[1], act[2]], two, old);
        }
        let stream = sent.concat();
        let open = |two: &mut Session, piece: usize| {
            two.expect(first);
            let (mut came, mut plain, counts) = (BytesMut::new(), BytesMut::new(), Counts::default());
            let mut closed = None;
            for piece in stream.chunks(piece) {
                came.extend_from_slice(piece);
                closed = two.open(Instant::from_nanos(1), &mut came, &mut plain, &counts).err();
                if closed.is_some() {
                    break;
                }
            }
            (plain.to_vec(), closed, counts.replays.get(), counts.corrupt.get())
        };
        let whole = open(two, stream.len().max(1));
        assert!(open(two, 1 + usize::from(*cut)) == whole, "records depend on how they are cut");
        let (plain, closed, replays, corrupt) = whole;
        assert!(contents.concat().starts_with(&plain), "something came out that nobody sent in that order");
        // Exactly what may happen, where each piece is a record by its length.
        if sent.iter().all(|record| is_record(record)) {
            let (mut opened, mut refused) = (Vec::new(), 0);
            let mut next = 0;
            for record in &sent {
                if refused == u64::from(CORRUPT) {
                    break;
                }
                if right.get(next) == Some(record) {
                    opened.extend_from_slice(&contents[next]);
                    next += 1;
                } else {
                    refused += 1;
                }
            }
            assert!(plain == opened, "a right record does not open, or another one does");
            assert_eq!((replays + corrupt, closed.is_some()), (refused, refused == u64::from(CORRUPT)));
        }
        old.extend(right);
        old.drain(..old.len().saturating_sub(16));
    });
}

fn is_record(bytes: &[u8]) -> bool {
    bytes
        .split_first_chunk()
        .is_some_and(|(length, record)| usize::from(u16::from_be_bytes(*length)) == record.len())
}

/// One act of somebody in between.
fn meddle(sent: &mut Vec<Vec<u8>>, [act, what, how]: [u8; 3], two: &mut Session, old: &[Vec<u8>]) {
    let (what, how) = (usize::from(what), usize::from(how));
    let at = what % sent.len().max(1);
    let (to, other) = (how % (sent.len() + 1), how % sent.len().max(1));
    match act % 8 {
        0 if !sent.is_empty() => sent.insert(to, sent[at].clone()),
        1 if !sent.is_empty() => drop(sent.remove(at)),
        // One bit of it, its length too.
        2 if !sent.is_empty() && !sent[at].is_empty() => {
            let bit = how * 7 % (8 * sent[at].len());
            sent[at][bit / 8] ^= 1 << (bit % 8);
        }
        3 if !sent.is_empty() => sent.swap(at, other),
        4 if !sent.is_empty() => sent[at].truncate(how),
        5 => {
            let size = what.max(16);
            sent.insert(to, [&(size as u16).to_be_bytes()[..], &vec![how as u8; size]].concat());
        }
        // What the other side sent itself.
        6 => sent.insert(to, record(two, &[how as u8])),
        7 => sent.insert(to, old[what % old.len()].clone()),
        _ => {}
    }
}

/// What a file with keys says. No error, and nothing else that may be logged, tells a part of it.
pub fn secret_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Secret>() {
        Ok(secret) => {
            let ids = secret.ids();
            let known = ids.split(", ").count();
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            assert_eq!(known, lines.clone().count());
            for line in lines {
                assert!(!ids.contains(line) && !format!("{secret:?}").contains(line));
            }
            assert!(secret.find(secret.first().id()).is_some());
        }
        Err(error) => {
            let told = error.to_string();
            // Words that errors use anyway are shorter.
            for line in text.lines().map(str::trim).filter(|line| line.len() >= 16) {
                assert!(!told.contains(line), "{told}");
            }
        }
    }
}

/// What a file of the provider `file:` says: an address that may be tried, and a name.
pub fn file_entry(data: &[u8]) {
    if let Some(entry) = rendezvous::file::parse(data) {
        assert!(rendezvous::is_reachable(entry.addr));
        let name = wire::shown(&entry.name);
        assert!(name.chars().count() <= 256 && !name.chars().any(char::is_control), "{name}");
        let again = serde_json::to_vec(&entry).expect("texts and an address");
        assert_eq!(rendezvous::file::parse(&again), Some(entry));
    }
}

/// What a client makes of an answer of a registry: addresses that may be tried, or a short reason.
pub fn registry_answer(data: &[u8]) {
    let Some((status, body)) = data.split_first() else { return };
    let answer = ask::Answer {
        status: [200, 304, 404, 412, 503][usize::from(*status) % 5],
        etag: None,
        body: bytes::Bytes::copy_from_slice(body),
    };
    let why = answer.error().to_string();
    assert!(why.chars().count() < 512 && !why.chars().any(char::is_control), "{why}");
    // As who asked for a slot reads it.
    let _held = answer.read::<http::Held>();
    if let Ok(listed) = answer.read::<http::Listed>() {
        let holders = listed.holders(1000);
        assert!(holders.len() < 20 * 1024 && !holders.chars().any(char::is_control), "{holders}");
        assert!(listed.addresses().into_iter().all(rendezvous::is_reachable));
    }
}

/// Requests to a registry, each a line `SECONDS METHOD PATH IF-MATCH IF-NONE-MATCH`, its body after that, and an empty line; `=`
/// is the present ETag and `-` none. A slot never changes hands while its holder is alive, nor without the ETag of who held it.
pub fn registry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut registrar = Registrar::new(7, now, "own", address(99));
    let slots = |registrar: &mut Registrar, now: Instant| {
        let answer = registrar.handle(now, Question { method: "GET", path: "/c", ..Question::default() });
        let holder = |held: &serde_json::Value| {
            (held["entry"]["addr"].as_str().map(str::to_owned), held["stale"].as_bool() == Some(true))
        };
        let slots = answer.body["slots"].as_object().into_iter().flatten();
        slots.map(|(slot, held)| (slot.clone(), holder(held))).collect::<BTreeMap<_, _>>()
    };
    for question in text.split("\n\n").take(32) {
        let (line, body) = question.split_once('\n').unwrap_or((question, ""));
        let words: Vec<&str> = line.split(' ').chain([""; 5]).collect();
        now = now.after(Duration::from_secs(words[0].parse().unwrap_or(0).min(100)));
        let (method, path) = (words[1], words[2]);
        let present = registrar.handle(now, Question { method: "GET", path, ..Question::default() }).etag;
        let condition = |word| match word {
            "-" | "" => None,
            "=" => present.as_deref(),
            other => Some(other),
        };
        let (if_match, if_none_match) = (condition(words[3]), condition(words[4]));
        let before = slots(&mut registrar, now);
        let asked = Question { method, path, if_match, if_none_match, body: body.as_bytes() };
        let answer = registrar.handle(now, asked);
        assert!((200..=599).contains(&answer.status) && answer.body.to_string().len() < 1 << 20);
        let after = slots(&mut registrar, now);
        for (slot, (holder, stale)) in &before {
            let now_held = after.get(slot).map(|(holder, _)| holder);
            if now_held == Some(holder) {
                continue;
            }
            assert!(
                (200..300).contains(&answer.status) && path.contains(slot.as_str()),
                "{line}: {before:?}"
            );
            if now_held.is_some() {
                assert!(*stale && if_match.is_some() && if_match == present.as_deref(), "{line}: {before:?}");
            } else {
                assert_eq!(method, "DELETE", "{line}");
            }
        }
        let came = after.keys().filter(|slot| !before.contains_key(*slot)).count();
        assert!(came <= 1 && (came == 0 || method == "PUT" && if_none_match == Some("*")));
    }
}

/// What a witness is asked (`METHOD PATH`, and a body after the line), what it answers, and what is in its files: the same when it
/// is written and read again.
pub fn witness(data: &[u8]) {
    if let Ok(half) = witness::memory::line_of(data).map(witness::memory::half_of) {
        assert!(half.is_err() || half.is_ok_and(|half| (1..=8).contains(&half.len())));
    }
    let begin = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let body = data.get(begin + 1..).unwrap_or_default();
    let Ok(Some((method, path))) = std::str::from_utf8(&data[..begin]).map(|line| line.split_once(' '))
    else {
        return;
    };
    match witness::question(method, path, body) {
        Err((status, why)) => {
            assert!([400, 404, 405].contains(&status) && !why.chars().any(char::is_control))
        }
        Ok(question) => {
            let again = format!("{}/{}", question.lineage, question.core.get());
            assert_eq!(witness::question(method, &again, body).as_ref(), Ok(&question));
            if let Some(answer) = witness::read_answer(&question, body) {
                let written = witness::written(&answer).to_string();
                assert_eq!(witness::read_answer(&question, written.as_bytes()), Some(answer));
            }
        }
    }
}

/// The header with which a request to a registry is proved: `METHOD PATH IF-MATCH IF-NONE-MATCH HEADER`, `-` for none, and the
/// body after the line. What is taken is what the key makes of just this request, and it proves no other and no answer.
pub fn proof(data: &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let body = data.get(end + 1..).unwrap_or_default();
    let Ok(line) = std::str::from_utf8(&data[..end]) else { return };
    let words: Vec<&str> = line.splitn(5, ' ').collect();
    let [method, path, if_match, if_none_match, header] = words[..] else { return };
    let there = |word| Some(word).filter(|word| *word != "-");
    let (if_match, if_none_match) = (there(if_match), there(if_none_match));
    let asked = Question { method, path, if_match, if_none_match, body };
    let secret = secret();
    let told = Told { status: 200, etag: if_match, body };
    let (fresh, _) = Proved::with([9; NONCE], &secret, asked);
    assert!(!fresh.is_proof(header, told), "the answer to another request");
    let Ok(Some(proved)) = Proved::read(&secret, header, asked) else { return };
    let nonce = header.split('.').nth(1).and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok());
    let nonce = nonce.and_then(|bytes| bytes.try_into().ok()).expect("it was read");
    assert_eq!(Proved::with(nonce, &secret, asked).1, header);
    let more = [body, b"\n"].concat();
    for other in [
        Question { method: "PATCH", ..asked },
        Question { path: "/", ..asked },
        Question { if_match: Some("\"other\""), ..asked },
        Question { if_none_match: Some("\"other\""), ..asked },
        Question { body: &more, ..asked },
    ] {
        assert!(Proved::read(&secret, header, other).is_err(), "{other:?}");
    }
    let answer = proved.answer(told);
    assert!(proved.is_proof(&answer, told) && !proved.is_proof(header, told));
    assert!(!proved.is_proof(&answer, Told { status: 201, ..told }));
    assert!(!matches!(Proved::read(&secret, &answer, asked), Ok(Some(_))), "an answer asks nothing");
}

/// Requests as nodes prove them, and others.
pub fn proofs() -> Vec<Vec<u8>> {
    let entry = br#"{"key":"a","id":"1.1","name":"a","addr":"10.0.0.1:7000"}"#;
    let slot =
        Question { method: "PUT", path: "/v1/rendezvous/c/slots/0", body: entry, ..Question::default() };
    let with = |number: u8, secret: &Secret, asked: Question<'_>| {
        let (_, header) = Proved::with([number; NONCE], secret, asked);
        let Question { method, path, if_match, if_none_match, body } = asked;
        let (one, other) = (if_match.unwrap_or("-"), if_none_match.unwrap_or("-"));
        [format!("{method} {path} {one} {other} {header}\n").as_bytes(), body].concat()
    };
    let of_others =
        "1f1e1d1c1b1a191817161514131211100f0e0d0c0b0a09080706050403020100".parse().expect("a key");
    vec![
        with(1, &secret(), Question { method: "GET", path: "/v1/rendezvous/c", ..Question::default() }),
        with(2, &secret(), Question { if_none_match: Some("*"), ..slot }),
        with(3, &secret(), Question { if_match: Some("\"7-1\""), ..slot }),
        with(4, &of_others, slot),
        b"DELETE /v1/rendezvous/c/slots/0 \"7-1\" - 00..ff.0g\n".to_vec(),
    ]
}

/// What comes in on a connection with the admin API of a node that runs. Gives what it answers.
pub fn admin(data: &[u8]) -> Vec<u8> {
    thread_local! {
        static NODE: Node = {
            let node = within_io(Node::builder().name("n").admin(([127, 0, 0, 1], 0).into()).start()).expect("it starts");
            node.extensions().route("/x", |asked| AdminResponse::json(200, &serde_json::json!({ "path": asked.path })));
            // A stream of events would go on for as long as the node does.
            node.inner.shared.streams.close();
            node
        };
    }
    NODE.with(|node| {
        let mut answers = Vec::new();
        within_io(async {
            let (place, stream) = (admin::Places::new().take().await, tokio::io::join(data, &mut answers));
            admin::converse(stream, &node.inner.shared, [127, 0, 0, 1].into(), &place).await;
        });
        answers
    })
}

/// Starting a node needs the network.
fn within_io<T>(what: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(what))
}

fn within<T>(what: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(what))
}

fn secret() -> Secret {
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f".parse().expect("a key")
}

/// What came in on a connection between members of groups: the same units come out however it is cut.
pub fn bulk_units(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let read = |piece: usize| {
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for piece in stream.chunks(piece) {
            buffer.extend_from_slice(piece);
            loop {
                match next_unit(&mut buffer) {
                    Ok(Some(Unit::Declare(number, group, lineage))) => {
                        got.push(format!("declare {number} {group} {lineage}"));
                    }
                    Ok(Some(Unit::Retire(number))) => got.push(format!("retire {number}")),
                    Ok(Some(Unit::Unknown)) => got.push("unknown".into()),
                    Ok(Some(Unit::Frame(number, frame))) => {
                        let mut bytes = Vec::new();
                        frame.encode(&mut bytes);
                        got.push(format!("frame {number} {bytes:?}"));
                    }
                    Ok(None) => break,
                    Err(nonsense) => {
                        got.push(nonsense.to_string());
                        return got;
                    }
                }
            }
        }
        got
    };
    assert!(read(1 + usize::from(*cut)) == read(stream.len().max(1)), "units depend on how they are cut");
}

/// A datagram of another node of the local network.
pub fn notice(data: &[u8]) {
    if let Some(notice) = Notice::decode(data) {
        assert_eq!(Notice::decode(&notice.encode()), Some(notice));
    }
    let now = Instant::from_nanos(1);
    let mut me = Announcer::new("default", NodeId::new(1, 1), address(1), now, Rng::seeded(1));
    me.hear(now, [10, 0, 0, 9].into(), data);
    assert!(me.found().len() <= 1 && !me.found().contains(&address(1)));
    assert!(me.due(now) >= Instant::ZERO);
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 7000))
}

fn hello(n: u8) -> Hello {
    Hello {
        cluster: "default".into(),
        node: NodeId::new(n.into(), n.into()),
        name: format!("n{n}"),
        addr: address(n),
        lineage: (n > 1).then(|| Lineage::from((7, 9))),
        near: (n > 2).then(|| "near".into()),
        bulk: n > 3,
        speaks: Versions::OURS,
    }
}

/// Payloads of frames that say these.
pub fn wire_frames(messages: &[Msg]) -> Vec<Vec<u8>> {
    let frames = messages.iter().map(FrameRef::Msg).chain([FrameRef::Shown([7; 16])]);
    frames.map(|frame| wire::encode(&frame, MAX_FRAME).expect("small")[4..].to_vec()).collect()
}

/// Streams of such frames, cut in several ways.
pub fn wire_streams(messages: &[Msg]) -> Vec<Vec<u8>> {
    let frames = wire_frames(messages);
    let framed = frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat());
    let all: Vec<u8> = framed.collect();
    [0, 6, 255].into_iter().map(|cut| [&[cut], &all[..]].concat()).collect()
}

/// Greetings and refusals.
pub fn greetings() -> Vec<Vec<u8>> {
    let greetings =
        (1..5).map(|n| said::hello(&hello(n))).chain([said::refusal("no"), said::refusal("\u{1b}[2J")]);
    let opened = greetings.map(|greeting| said::open(&greeting));
    let (secret, noise) = (secret(), [7; 96]);
    opened.chain([said::sealed(secret.first(), &noise), said::refused(4), said::refused(99)]).collect()
}

/// A declared group, each of these frames, and the end of the group, cut in several ways.
pub fn units(frames: &[GroupFrame]) -> Vec<Vec<u8>> {
    let unit = |kind: u8, content: &[u8]| {
        let size = (content.len() + 5) as u32;
        [&size.to_le_bytes()[..], &[kind], &7_u32.to_le_bytes(), content].concat()
    };
    let group = GroupName::new("g/1").expect("a name");
    let mut all = unit(1, &[&[0; 16], group.as_str().as_bytes()].concat());
    for frame in frames {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        all.extend(unit(3, &bytes));
    }
    all.extend(unit(2, &[]));
    [0, 6, 255].into_iter().map(|cut| [&[cut], &all[..]].concat()).collect()
}

/// Calls of other nodes.
pub fn notices() -> Vec<Vec<u8>> {
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let addresses = [address(2), address(1), at("[::1]:1"), at("[fe80::1%3]:65535")];
    let notices = addresses.into_iter().enumerate().map(|(n, addr)| Notice {
        cluster: if n < 3 { "default".into() } else { "x".repeat(64) },
        id: NodeId::new(n as u32 + 2, n as u64),
        addr,
        asks: n % 2 == 0,
    });
    notices.map(|notice| notice.encode()).collect()
}

/// Greetings as they are sealed, for both sides.
pub fn sealed_greetings() -> Vec<Vec<u8>> {
    let greetings = (1..5).map(|n| said::hello(&hello(n))).chain([said::refusal("no")]);
    greetings.flat_map(|greeting| [[&[0], &greeting[..]].concat(), [&[1], &greeting[..]].concat()]).collect()
}

/// Acts of somebody between two nodes.
pub fn meddlings() -> Vec<Vec<u8>> {
    let acts: [&[u8]; 8] = [
        &[],
        &[0, 0, 1],
        &[1, 0, 0],
        &[2, 1, 40],
        &[3, 0, 1],
        &[5, 40, 0, 7, 3, 1],
        &[6, 0, 2, 7, 9, 0],
        &[4, 1, 9, 0, 1, 1, 2, 0, 0, 7, 0, 0],
    ];
    acts.into_iter().map(|acts| [&[6, 3, 0, 1, 100, 255], acts].concat()).collect()
}
