//! Framed MessagePack-RPC: what is found in a message is what others find in it, however its bytes come in.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use membership_types::{Instant, Rng};
use proptest::{collection::vec, prelude::*};
use rmpv::Value;
use router_proto::frames::*;

fn framed(message: &[u8]) -> Vec<u8> {
    [&u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut message = Vec::new();
    rmpv::encode::write_value(&mut message, value).unwrap();
    framed(&message)
}

fn request(method: &str, params: Vec<Value>) -> Value {
    Value::Array(vec![0.into(), 7.into(), method.into(), Value::Array(params)])
}

fn map(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect())
}

fn paths(list: &[&str]) -> KeyPaths {
    KeyPaths::compile(list.iter().copied()).unwrap()
}

fn scan(frame: &[u8], paths: &KeyPaths) -> Result<Option<Request>, FrameError> {
    RequestScanner::default().scan(frame, MAX_FRAME, Some(paths))
}

/// The key's bytes.
fn key(frame: &[u8], paths: &KeyPaths) -> Result<Option<Vec<u8>>, KeyError> {
    let request = scan(frame, paths).unwrap().expect("a whole request");
    Ok(request.key?.map(|key| key.bytes(frame, &mut [0; 24]).to_vec()))
}

/// Keys decide where data lies: a change here moves them.
#[test]
fn golden_keys() {
    let first = paths(&["msgpack:/params/0"]);
    for (param, expected) in [
        (&b"\xa3abc"[..], Some(&b"abc"[..])),
        (b"\xd9\x03abc", Some(b"abc")),
        (b"\xc4\x03abc", Some(b"abc")),
        (b"\xc4\x02\x00\xff", Some(b"\x00\xff")),
        (b"\x2a", Some(b"42")),
        (b"\xcc\x2a", Some(b"42")),
        (b"\xd3\x00\x00\x00\x00\x00\x00\x00\x2a", Some(b"42")),
        (b"\x00", Some(b"0")),
        (b"\xff", Some(b"-1")),
        (b"\xd0\xff", Some(b"-1")),
        (b"\xd1\xff\x00", Some(b"-256")),
        (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", Some(b"-9223372036854775808")),
        (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", Some(b"18446744073709551615")),
        (b"\xa0", None),
        (b"\xc4\x00", None),
        (b"\xc0", None),
    ] {
        let frame = framed(&[b"\x94\x00\x01\xa3get\x91", param].concat());
        assert_eq!(key(&frame, &first).unwrap().as_deref(), expected, "{}", param.escape_ascii());
    }
    for param in [&b"\xc2"[..], b"\xca\x00\x00\x00\x00", b"\x90", b"\x80", b"\xd4\x01\x00"] {
        let frame = framed(&[b"\x94\x00\x01\xa3get\x91", param].concat());
        assert_eq!(key(&frame, &first), Err(KeyError::Kind), "{}", param.escape_ascii());
    }
}

#[test]
fn golden_messages() {
    let mut out = vec![];
    push_request(&mut out, 0x0102_0304, b"\xa3get\x91\x2a", None);
    assert_eq!(out, b"\0\0\0\x0d\x94\x00\xce\x01\x02\x03\x04\xa3get\x91\x2a");
    out.clear();
    let stamp = Stamp { deadline_ms: Some(250), epoch: Some(9), partition: Some("7"), update: Some(true) };
    push_request(&mut out, 1, b"\xa1p\x90", Some(&stamp));
    let read = scan(&out, &paths(&["msgpack:/params/0"])).unwrap().unwrap();
    assert_eq!(Stamp::read(&out[read.stamp.clone()]), Ok(stamp));
    assert_eq!((read.deadline_ms, read.msgid, read.key), (Some(250), 1, Ok(None)));
    assert_eq!((&out[read.method], &out[read.body]), (&b"p"[..], &b"\xa1p\x90"[..]));
    out.clear();
    push_response(&mut out, 7, b"\xc0\xa2ok");
    assert_eq!(out, b"\0\0\0\x0b\x94\x01\xce\0\0\0\x07\xc0\xa2ok");
    let complaint = Complaint {
        verdict: Verdict::NotLeader,
        error: &"ask the leader",
        service: Some("s"),
        partition: None,
        epoch: Some(70_000),
        leader: Some(&"127.0.0.1:1"),
    };
    out.clear();
    push_complaint(&mut out, 7, &complaint);
    let response = ResponseScanner::default().scan(&out, MAX_FRAME).unwrap().unwrap();
    let error = &out[response.error.unwrap()];
    let read = Refusal::read(error).unwrap();
    assert_eq!(
        (read.verdict, read.epoch, read.leader),
        (Verdict::NotLeader, Some(70_000), Some("127.0.0.1:1"))
    );
    let value = rmpv::decode::read_value(&mut &error[..]).unwrap();
    assert_eq!(
        value,
        map(&[
            ("phalanx", "not-leader".into()),
            ("error", "ask the leader".into()),
            ("service", "s".into()),
            ("partition", Value::Nil),
            ("retry", true.into()),
            ("epoch", 70_000.into()),
            ("leader", "127.0.0.1:1".into()),
        ])
    );
}

#[test]
fn an_application_s_own_error_is_never_taken_for_a_refusal() {
    let bytes = |value: &Value| encoded(value)[4..].to_vec();
    for own in [
        Value::from("not-leader"),
        map(&[("error", "x".into()), ("phalanx", "not-leader".into())]),
        map(&[("phalanx", "no-leader".into())]),
        map(&[("phalanx", 1.into())]),
        map(&[]),
        Value::Array(vec!["phalanx".into(), "not-leader".into()]),
    ] {
        assert_eq!(Refusal::read(&bytes(&own)), None, "{own}");
    }
    assert!(Refusal::read(&bytes(&map(&[("phalanx", "busy".into())]))).is_some());
}

#[test]
fn keys_are_found_on_their_paths_and_nowhere_else() {
    let user = map(&[("id", 5.into()), ("user", map(&[("a/b", "deep".into()), ("~", "tilde".into())]))]);
    let call = request("get", vec!["first".into(), user, Value::Array(vec![1.into(), "in".into()])]);
    let frame = encoded(&call);
    for (path, expected) in [
        ("/0", Some("first")),
        ("/1/id", Some("5")),
        ("/1/user/a~1b", Some("deep")),
        ("/1/user/~0", Some("tilde")),
        ("/2/1", Some("in")),
        ("/2/2", None),
        ("/3", None),
        ("/0/x", None),
        ("/1/nobody", None),
    ] {
        let found = key(&frame, &paths(&[&format!("msgpack:/params{path}")])).unwrap();
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
    }
    // The first path that has a key counts.
    let list = ["msgpack:/params/9", "msgpack:/params/2/1", "msgpack:/params/0"];
    assert_eq!(key(&frame, &paths(&list)).unwrap().as_deref(), Some(&b"in"[..]));
    // A number in a path is a name where there is a map.
    let frame = encoded(&request("get", vec![map(&[("0", "zero".into())])]));
    assert_eq!(key(&frame, &paths(&["msgpack:/params/0/0"])).unwrap().as_deref(), Some(&b"zero"[..]));
}

#[test]
fn what_two_readers_may_read_differently_is_refused() {
    let user = paths(&["msgpack:/params/0/user"]);
    // The second one lies far behind the first 64 KiB.
    let far = Value::Binary(vec![0; 100_000]);
    let twice = map(&[("user", "a".into()), ("data", far.clone()), ("user", "b".into())]);
    assert_eq!(key(&encoded(&request("get", vec![twice])), &user), Err(KeyError::Twice));
    let elsewhere = map(&[("user", "a".into()), ("x", map(&[("user", 1.into()), ("user", 2.into())]))]);
    assert_eq!(key(&encoded(&request("get", vec![elsewhere])), &user), Ok(Some(b"a".to_vec())));
    let behind = map(&[("data", far), ("user", "a".into())]);
    assert_eq!(key(&encoded(&request("get", vec![behind])), &user), Err(KeyError::TooFar));
}

#[test]
fn what_is_no_message_is_refused() {
    let first = paths(&["msgpack:/params/0"]);
    let get = b"\x94\x00\x01\xa3get\x91\x01";
    let deep = |levels| [&b"\x94\x00\x01\xa3get"[..], &vec![0x91; levels], b"\x01"].concat();
    assert!(scan(&framed(&deep(MAX_DEPTH)), &first).is_ok());
    for (message, error) in [
        (b"".to_vec(), FrameError::Short),
        (b"\x01".to_vec(), FrameError::NotAMessage),
        (b"\x93\x00\x01\xa3get".to_vec(), FrameError::NotAMessage),
        (b"\x93\x02\xa3get\x90".to_vec(), FrameError::Notification),
        (b"\x94\x01\x01\xc0\xc0".to_vec(), FrameError::Type(1)),
        (b"\x94\x03\x01\xa3get\x90".to_vec(), FrameError::Type(3)),
        (b"\x94\x00\xff\xa3get\x90".to_vec(), FrameError::MsgId),
        (b"\x94\x00\xcf\0\0\0\x01\0\0\0\0\xa3get\x90".to_vec(), FrameError::MsgId),
        (b"\x94\x00\x01\xc4\x01g\x90".to_vec(), FrameError::Method),
        (b"\x94\x00\x01\xa0\x90".to_vec(), FrameError::Method),
        ([&b"\x94\x00\x01\xda\x01\x00"[..], &[b'm'; 256], b"\x90"].concat(), FrameError::Method),
        (b"\x94\x00\x01\xa3get\x80".to_vec(), FrameError::Params),
        (b"\x94\x00\x01\xa3get\x92\x01".to_vec(), FrameError::Short),
        (b"\x94\x00\x01\xa3get\x91\xa5abc".to_vec(), FrameError::Short),
        (b"\x94\x00\x01\xa3get\x91\xdd\xff\xff\xff\xff".to_vec(), FrameError::Short),
        (b"\x94\x00\x01\xa3get\x91\xdf\xff\xff\xff\xff".to_vec(), FrameError::Short),
        (b"\x94\x00\x01\xa3get\x91\xc6\xff\xff\xff\xff".to_vec(), FrameError::Short),
        ([&get[..], b"\x01"].concat(), FrameError::Trailing),
        (b"\x94\x00\x01\xa3get\x91\xc1".to_vec(), FrameError::Reserved),
        (deep(MAX_DEPTH + 1), FrameError::TooDeep),
        (b"\x95\x00\x01\xa3get\x91\x01".to_vec(), FrameError::Short),
        (b"\x95\x00\x01\xa3get\x91\x01\x01".to_vec(), FrameError::Stamp),
        (b"\x95\x00\x01\xa3get\x91\x01\x80\x80".to_vec(), FrameError::Stamp),
        (b"\x95\x00\x01\xa3get\x91\x01\x81\xabdeadline_ms\xa1x".to_vec(), FrameError::Stamp),
    ] {
        let mut frame = framed(&message);
        // What follows is another frame's.
        frame.extend_from_slice(&framed(get));
        assert_eq!(scan(&frame, &first), Err(error), "{}", message.escape_ascii());
    }
    assert_eq!(
        RequestScanner::default().scan(&framed(get), 8, None),
        Err(FrameError::TooLong { len: 9, max: 8 })
    );
    let respond = |message: &[u8]| ResponseScanner::default().scan(&framed(message), MAX_FRAME);
    assert_eq!(respond(get), Err(FrameError::Type(0)));
    assert_eq!(respond(b"\x93\x02\xa3get\x90"), Err(FrameError::Type(2)));
    assert_eq!(respond(b"\x95\x01\x01\xc0\xc0\x80"), Err(FrameError::NotAMessage));
    assert_eq!(respond(b"\x94\x01\x01\xc0\xc0\xc0"), Err(FrameError::Trailing));
    assert_eq!(respond(b"\x94\x01\x01\xc0"), Err(FrameError::Short));
}

/// Any value, as others write it.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-200i64..70_000).prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        vec(any::<u8>(), 0..300).prop_map(Value::Binary),
        (any::<i8>(), vec(any::<u8>(), 0..20)).prop_map(|(kind, data)| Value::Ext(kind, data)),
    ];
    leaf.prop_recursive(5, 60, 20, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..20).prop_map(Value::Array),
            vec(("[a-c]{1,2}".prop_map(Value::from), inner.clone()), 0..6).prop_map(Value::Map),
            vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
        ]
    })
}

/// What is at the end of a path, as a person would look for it; an error if a name is there twice on the way.
fn look<'a>(value: &'a Value, steps: &[String]) -> Result<Option<&'a Value>, ()> {
    let Some((step, rest)) = steps.split_first() else { return Ok(Some(value)) };
    match value {
        Value::Array(list) => match step.parse::<usize>().ok().and_then(|at| list.get(at)) {
            Some(next) => look(next, rest),
            None => Ok(None),
        },
        Value::Map(pairs) => {
            let named: Vec<&Value> = pairs
                .iter()
                .filter(|(name, _)| name.as_str() == Some(step))
                .map(|(_, value)| value)
                .collect();
            match named[..] {
                [] => Ok(None),
                [next] => look(next, rest),
                _ => Err(()),
            }
        }
        _ => Ok(None),
    }
}

fn expected(params: &Value, steps: &[String]) -> Result<Option<Vec<u8>>, KeyError> {
    let found = look(params, steps).map_err(|()| KeyError::Twice)?;
    Ok(match found {
        None | Some(Value::Nil) => None,
        Some(Value::String(text)) => Some(text.as_bytes().to_vec()),
        Some(Value::Binary(bytes)) => Some(bytes.clone()),
        Some(Value::Integer(number)) => Some(number.to_string().into_bytes()),
        Some(_) => return Err(KeyError::Kind),
    }
    .filter(|key| !key.is_empty()))
}

/// All requests of a stream that comes in these pieces; or the error and where.
fn requests(pieces: &[&[u8]], paths: &KeyPaths) -> Result<Vec<Request>, (usize, FrameError)> {
    let (mut scanner, mut buffer, mut found) = (RequestScanner::default(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(request) =
            scanner.scan(&buffer, MAX_FRAME, Some(paths)).map_err(|error| (found.len(), error))?
        {
            buffer.drain(..request.len);
            found.push(request);
        }
    }
    Ok(found)
}

fn responses(pieces: &[&[u8]]) -> Result<Vec<Response>, (usize, FrameError)> {
    let (mut scanner, mut buffer, mut found) = (ResponseScanner::default(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(response) = scanner.scan(&buffer, MAX_FRAME).map_err(|error| (found.len(), error))? {
            buffer.drain(..response.len);
            found.push(response);
        }
    }
    Ok(found)
}

fn pieces<'a>(stream: &'a [u8], rng: &mut Rng) -> Vec<&'a [u8]> {
    let (mut rest, mut pieces) = (stream, Vec::new());
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rng.between(1, rest.len().min(40) as u64) as usize);
        pieces.push(piece);
        rest = more;
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_found_is_what_others_find(
        params in vec(value(), 0..4),
        steps in vec("[a-c]{1,2}|[0-3]", 0..4),
        first in 0usize..3,
        id in any::<u32>(),
        seed in any::<u64>(),
    ) {
        let steps: Vec<String> = std::iter::once(first.to_string()).chain(steps).collect();
        let paths = paths(&[&format!("msgpack:/params/{}", steps.join("/"))]);
        let params = Value::Array(params);
        let call = Value::Array(vec![0.into(), id.into(), "m".into(), params.clone()]);
        let stream = [encoded(&call), encoded(&request("n", vec![]))].concat();
        let whole = requests(&[&stream], &paths).unwrap();
        prop_assert_eq!(whole.len(), 2);
        let one = &whole[0];
        prop_assert_eq!(one.msgid, id);
        let bytes = one.key.clone().map(|key| key.map(|key| key.bytes(&stream, &mut [0; 24]).to_vec()));
        prop_assert_eq!(bytes, expected(&params, &steps));
        prop_assert_eq!(&rmpv::decode::read_value(&mut &stream[one.params.clone()]).unwrap(), &params);
        let cut = pieces(&stream, &mut Rng::seeded(seed));
        prop_assert_eq!(requests(&cut, &paths).unwrap(), whole);
    }

    #[test]
    fn what_goes_on_means_the_same(method in "[a-z]{1,40}", params in vec(value(), 0..4), id in any::<u32>()) {
        let frame = encoded(&request(&method, params.clone()));
        let read = RequestScanner::default().scan(&frame, MAX_FRAME, None).unwrap().unwrap();
        let mut out = vec![];
        push_request(&mut out, id, &frame[read.body], None);
        let again = rmpv::decode::read_value(&mut &out[4..]).unwrap();
        prop_assert_eq!(
            again,
            Value::Array(vec![0.into(), id.into(), method.into(), Value::Array(params)])
        );
    }

    #[test]
    fn responses_are_whole_however_they_come(
        error in value(), result in value(), id in any::<u32>(), seed in any::<u64>(),
    ) {
        let answer = Value::Array(vec![1.into(), id.into(), error.clone(), result.clone()]);
        let stream = encoded(&answer).repeat(2);
        let whole = responses(&[&stream]).unwrap();
        prop_assert_eq!(whole.len(), 2);
        let one = &whole[0];
        prop_assert_eq!(one.msgid, id);
        prop_assert_eq!(one.error.is_none(), error.is_nil());
        prop_assert_eq!(rmpv::decode::read_value(&mut &stream[one.result.clone()]).unwrap(), result);
        prop_assert_eq!(responses(&pieces(&stream, &mut Rng::seeded(seed))).unwrap(), whole);
    }

    #[test]
    fn nonsense_never_panics_and_cuts_change_nothing(
        seed in any::<u64>(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        value in value(),
    ) {
        let mut stream = encoded(&request("get", vec![value.clone()])).repeat(2);
        for (at, byte) in flips {
            let at = at.index(stream.len());
            // Lengths stay small, so that something comes of them.
            if at % (stream.len() / 2) >= 3 {
                stream[at] = byte;
            }
        }
        let paths = paths(&["msgpack:/params/0/a", "msgpack:/params/0"]);
        let cut = pieces(&stream, &mut Rng::seeded(seed));
        prop_assert_eq!(requests(&cut, &paths), requests(&[&stream], &paths));
        prop_assert_eq!(responses(&cut), responses(&[&stream]));
        let _ = Refusal::read(&stream[4..]);
        let _ = Stamp::read(&stream[4..]);
    }
}

const SOON: Instant = Instant::from_nanos(10);
const LATER: Instant = Instant::from_nanos(20);
const BODY: &[u8] = b"\xa1m\x90";

/// The ids of what is to be written, which is written.
fn write_all(calls: &mut Calls<u32>) -> Vec<u32> {
    let bytes = calls.unwritten().to_vec();
    calls.wrote(bytes.len());
    requests(&[&bytes], &paths(&["msgpack:/params/0"])).unwrap().iter().map(|request| request.msgid).collect()
}

fn answered(calls: &mut Calls<u32>, id: u32) -> Result<Option<u32>, Unasked> {
    Ok(match calls.answered(id, &mut vec![])? {
        Answered::To(tag) => Some(tag),
        Answered::Nobody => None,
    })
}

#[test]
fn an_answer_goes_to_whoever_asked_and_once() {
    let mut calls = Calls::default();
    for tag in 0..3 {
        calls.push(BODY, None, LATER, tag);
    }
    assert_eq!(answered(&mut calls, 0), Err(Unasked), "nothing is written yet");
    let ids = write_all(&mut calls);
    assert_eq!(answered(&mut calls, ids[2]), Ok(Some(2)));
    assert_eq!(answered(&mut calls, ids[2]), Err(Unasked), "twice");
    assert_eq!(answered(&mut calls, ids[0]), Ok(Some(0)));
    assert_eq!(answered(&mut calls, 99), Err(Unasked), "never asked");
    calls.push(BODY, None, LATER, 3);
    let next = write_all(&mut calls);
    assert!(!ids.contains(&next[0]), "an id that was used is not used again at once");
    assert_eq!(answered(&mut calls, ids[0]), Err(Unasked));
    assert_eq!(answered(&mut calls, next[0]), Ok(Some(3)));
    assert_eq!(answered(&mut calls, ids[1]), Ok(Some(1)));
    assert!(calls.is_empty());
}

#[test]
fn what_is_due_is_given_up_and_its_late_answer_is_nobody_s() {
    let mut calls = Calls::default();
    calls.push(BODY, None, SOON, 0);
    let first = write_all(&mut calls);
    calls.push(BODY, None, SOON, 1);
    calls.push(BODY, None, LATER, 2);
    calls.push(BODY, None, SOON, 3);
    calls.push(BODY, None, LATER, 4);
    let mut left = vec![];
    assert_eq!(calls.expire(SOON, |Left { tag, sent, .. }| left.push((tag, sent))), LATER);
    assert_eq!(left, [(0, true), (1, false), (3, false)]);
    // What nobody had begun to write is not written any more.
    let ids = write_all(&mut calls);
    assert_eq!(ids.len(), 2);
    assert_eq!([answered(&mut calls, ids[0]), answered(&mut calls, ids[1])], [Ok(Some(2)), Ok(Some(4))]);
    assert_eq!(answered(&mut calls, first[0]), Ok(None), "the late answer");
    assert_eq!(answered(&mut calls, first[0]), Err(Unasked));
    assert!(calls.is_empty());
}

#[test]
fn a_failed_connection_gives_back_what_it_had_in_order_and_says_how_far_it_got() {
    let mut calls = Calls::default();
    for tag in 0..5 {
        calls.push(BODY, None, LATER, tag);
    }
    let len = calls.unwritten().len() / 5;
    calls.wrote(len);
    answered(&mut calls, 0).unwrap();
    calls.push(BODY, None, LATER, 5); // takes the free place, and yet comes last
    calls.wrote(2 * len + 1); // two more, and the first byte of a third
    let mut left = vec![];
    calls.fail(|Left { tag, sent, body }| left.push((tag, sent, body)));
    let of = |tag, sent| (tag, sent, BODY.to_vec());
    assert_eq!(left, [of(1, true), of(2, true), of(3, false), of(4, false), of(5, false)]);
    assert!(calls.is_empty() && calls.unwritten().is_empty());
}

proptest! {
    /// Against a model that has no ids, no places and no buffer.
    #[test]
    fn requests_and_answers_never_cross(steps in vec((0u8..5, any::<u16>()), 1..300)) {
        let mut calls: Calls<u32> = Calls::default();
        let mut sent: Vec<(u32, u32)> = vec![]; // tag, id
        let mut pushed: Vec<u32> = vec![]; // not written yet
        let mut wire = vec![];
        for (tag, (step, n)) in (0..).zip(steps) {
            match step {
                0 | 1 => {
                    let body = [b"\xa1m\x91\xce", &u32::to_be_bytes(tag)[..]].concat();
                    let due = if step == 0 { SOON } else { LATER };
                    calls.push(&body, None, due, tag);
                    pushed.push(tag);
                }
                2 => {
                    let len = usize::from(n) % (calls.unwritten().len() + 1);
                    wire.extend_from_slice(&calls.unwritten()[..len]);
                    calls.wrote(len);
                    let first = paths(&["msgpack:/params/0"]);
                    while let Some(request) = scan(&wire, &first).unwrap() {
                        let tag = request.key.clone().unwrap().unwrap();
                        let tag: u32 =
                            std::str::from_utf8(tag.bytes(&wire, &mut [0; 24])).unwrap().parse().unwrap();
                        sent.push((tag, request.msgid));
                        pushed.retain(|other| *other != tag);
                        wire.drain(..request.len);
                    }
                }
                3 if !sent.is_empty() => {
                    let (tag, id) = sent.swap_remove(usize::from(n) % sent.len());
                    let answered = answered(&mut calls, id);
                    prop_assert!(answered == Ok(Some(tag)) || answered == Ok(None), "{:?}", answered);
                }
                4 if n % 8 == 0 => {
                    calls.expire(SOON, |Left { tag, sent, .. }| if !sent { pushed.retain(|t| *t != tag) });
                }
                _ => {}
            }
            prop_assert_eq!(calls.len(), sent.len() + pushed.len());
        }
    }
}
