//! Framed MessagePack-RPC through a running router: every answer is for its request, whatever servers do.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{BufRead, Read},
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use common::{
    Client, FakeServer, PATIENCE, Peer, Router, eventually, grouped, nobody, patient, service, view,
};
use rmpv::Value;

const READS: &str = "key = \"msgpack:/params/0\"\nread_methods = [\"get\"]";

fn frames(racs: &[&[SocketAddr]]) -> String {
    service("frames", READS, racs)
}

fn framed(value: &Value) -> Vec<u8> {
    let mut message = Vec::new();
    rmpv::encode::write_value(&mut message, value).unwrap();
    [&u32::try_from(message.len()).unwrap().to_be_bytes(), &message[..]].concat()
}

fn call(id: u32, method: &str, params: &[Value]) -> Vec<u8> {
    framed(&Value::Array(vec![0.into(), id.into(), method.into(), Value::Array(params.to_vec())]))
}

fn call_in(ms: u32, id: u32, method: &str, key: &str) -> Vec<u8> {
    let stamp = Value::Map(vec![("deadline_ms".into(), ms.into())]);
    let params = Value::Array(vec![key.into()]);
    framed(&Value::Array(vec![0.into(), id.into(), method.into(), params, stamp]))
}

fn answer(id: u32, error: Value, result: Value) -> Vec<u8> {
    framed(&Value::Array(vec![1.into(), id.into(), error, result]))
}

fn read(reader: &mut impl BufRead) -> Option<Vec<Value>> {
    let mut len = [0; 4];
    reader.read_exact(&mut len).ok()?;
    let mut message = vec![0; u32::from_be_bytes(len) as usize];
    reader.read_exact(&mut message).ok()?;
    let value = rmpv::decode::read_value(&mut &message[..]).unwrap();
    let Value::Array(list) = value else { panic!("{value}") };
    Some(list)
}

/// What a server sees of a request.
#[derive(Debug)]
struct Seen {
    id: u32,
    method: String,
    params: Vec<Value>,
    stamp: Option<Value>,
}

fn seen(peer: &mut Peer) -> Option<Seen> {
    let list = read(&mut peer.reader)?;
    let [kind, id, method, Value::Array(params), stamp @ ..] = &list[..] else { panic!("{list:?}") };
    assert_eq!(kind.as_u64(), Some(0));
    let id = u32::try_from(id.as_u64().unwrap()).unwrap();
    let method = method.as_str().unwrap().to_owned();
    peer.note(format!("{method} {}", params[0]));
    Some(Seen { id, method, params: params.clone(), stamp: stamp.first().cloned() })
}

/// Answers every request with its name, the method and the first parameter.
fn echo(name: &'static str) -> FakeServer {
    FakeServer::start(move |peer| {
        while let Some(Seen { id, params, .. }) = seen(peer) {
            let result = format!("{name}:{}", params[0].as_str().unwrap());
            peer.send_bytes(&answer(id, Value::Nil, result.into()));
        }
    })
}

trait Calls {
    /// The next answer: its id, and error or result.
    fn answer(&mut self) -> (u32, Result<Value, Value>);
    fn call(&mut self, method: &str, key: &str) -> Result<Value, Value>;
}

impl Calls for Client {
    fn answer(&mut self) -> (u32, Result<Value, Value>) {
        let list = read(&mut self.reader).expect("an answer");
        let [kind, id, error, result] = &list[..] else { panic!("{list:?}") };
        assert_eq!(kind.as_u64(), Some(1));
        let outcome = if error.is_nil() { Ok(result.clone()) } else { Err(error.clone()) };
        (u32::try_from(id.as_u64().unwrap()).unwrap(), outcome)
    }

    fn call(&mut self, method: &str, key: &str) -> Result<Value, Value> {
        self.send(call(77, method, &[key.into()]));
        let (id, outcome) = self.answer();
        assert_eq!(id, 77);
        outcome
    }
}

fn field<'a>(map: &'a Value, name: &str) -> &'a Value {
    let pairs = map.as_map().unwrap_or_else(|| panic!("{map}"));
    &pairs.iter().find(|(key, _)| key.as_str() == Some(name)).unwrap_or_else(|| panic!("{map}")).1
}

/// The verdict of an error, which must be complete.
fn verdict(error: &Value) -> &str {
    assert_eq!(error.as_map().unwrap()[0].0.as_str(), Some("phalanx"), "{error}");
    assert!(!field(error, "error").as_str().unwrap().is_empty());
    assert_eq!(field(error, "service").as_str(), Some("s"));
    let verdict = field(error, "phalanx").as_str().unwrap();
    let retry = !["refused", "unknown"].contains(&verdict);
    assert_eq!(field(error, "retry").as_bool(), Some(retry), "{error}");
    verdict
}

#[test]
fn a_key_has_its_server_and_answers_have_their_own_order() {
    // Answers the last of four first.
    let backwards = |name: &'static str| {
        FakeServer::start(move |peer| {
            let mut kept = vec![];
            while let Some(one) = seen(peer) {
                kept.push(one);
                if kept.len() == 4 {
                    for Seen { id, params, .. } in kept.drain(..).rev() {
                        let result = Value::Array(vec![name.into(), params[0].clone(), params[1].clone()]);
                        peer.send_bytes(&answer(id, Value::Nil, result));
                    }
                }
            }
        })
    };
    let (a, b) = (backwards("a"), backwards("b"));
    let router = Router::start(&frames(&[&[a.addr], &[b.addr]]));
    // Clients that use the same ids do not meet.
    let mut clients: Vec<Client> = (0..4).map(|_| router.client()).collect();
    let mut placed = std::collections::HashMap::new();
    for round in 0..40u32 {
        for (who, client) in (0u32..).zip(&mut clients) {
            let nonce = Value::from(u64::from(round) << 8 | u64::from(who));
            client.send(call(round, "put", &[format!("key{round}").into(), nonce]));
        }
        for (who, client) in (0u32..).zip(&mut clients) {
            let (id, result) = client.answer();
            let Ok(Value::Array(result)) = result else { panic!("{result:?}") };
            assert_eq!(id, round);
            assert_eq!(result[1].as_str(), Some(&*format!("key{round}")));
            assert_eq!(result[2].as_u64(), Some(u64::from(round) << 8 | u64::from(who)));
            let server = result[0].as_str().unwrap().to_owned();
            assert_eq!(*placed.entry(round).or_insert(server.clone()), server);
        }
    }
    assert!(placed.values().any(|name| name == "a") && placed.values().any(|name| name == "b"));
}

#[test]
fn one_that_is_slow_holds_up_no_other() {
    let slow = FakeServer::start(|peer| {
        let mut kept = None;
        while let Some(Seen { id, method, params, .. }) = seen(peer) {
            if method == "slow" {
                kept = Some(id);
                continue;
            }
            peer.send_bytes(&answer(id, Value::Nil, params[0].clone()));
            if method == "release" {
                peer.send_bytes(&answer(kept.unwrap(), Value::Nil, "at last".into()));
            }
        }
    });
    let router = Router::start(&frames(&[&[slow.addr]]));
    let mut client = router.client();
    client.send(call(1, "slow", &["k".into()]));
    for n in 2..100 {
        client.send(call(n, "put", &[n.to_string().into()]));
        assert_eq!(client.answer(), (n, Ok(n.to_string().into())));
    }
    client.send(call(100, "release", &["k".into()]));
    assert_eq!(client.answer(), (100, Ok("k".into())));
    assert_eq!(client.answer(), (1, Ok("at last".into())));
}

#[test]
fn what_a_server_says_is_passed_on_as_it_is() {
    let error = Value::Map(vec![("code".into(), 7.into()), ("phalanx".into(), "not-leader".into())]);
    let (error2, result) = (error.clone(), Value::Ext(5, vec![1, 2, 3]));
    let result2 = result.clone();
    let server = FakeServer::start(move |peer| {
        while let Some(Seen { id, method, stamp, params }) = seen(peer) {
            assert_eq!(stamp, None, "no stamps unless asked for");
            assert_eq!(params, ["k".into(), Value::F32(1.5)]);
            match &*method {
                "fail" => peer.send_bytes(&answer(id, error2.clone(), Value::Nil)),
                _ => peer.send_bytes(&answer(id, Value::Nil, result2.clone())),
            }
        }
    });
    let router = Router::start(&frames(&[&[server.addr]]));
    let mut client = router.client();
    client.send(call(1, "fail", &["k".into(), Value::F32(1.5)]));
    assert_eq!(client.answer(), (1, Err(error)));
    client.send(call(u32::MAX, "fine", &["k".into(), Value::F32(1.5)]));
    assert_eq!(client.answer(), (u32::MAX, Ok(result)));
}

#[test]
fn servers_are_told_where_a_request_was_routed_if_they_are_to_be() {
    let (sender, stamps) = mpsc::channel();
    let sender = Mutex::new(sender);
    let server = FakeServer::start(move |peer| {
        while let Some(Seen { id, stamp, .. }) = seen(peer) {
            sender.lock().unwrap().send(stamp.expect("a stamp")).unwrap();
            peer.send_bytes(&answer(id, Value::Nil, Value::Nil));
        }
    });
    let router = Router::start(&grouped("frames", &format!("{READS}\nstamp = true")));
    router.handle.update_group("g", &view(42, Some(0), &[server.addr])).unwrap();
    let mut client = router.client();
    client.call("put", "abc").unwrap();
    let stamp = stamps.recv().unwrap();
    assert_eq!(field(&stamp, "epoch").as_u64(), Some(42));
    assert_eq!(field(&stamp, "update").as_bool(), Some(true));
    // xxh3("abc") lies in slot 7 of 16.
    assert_eq!(field(&stamp, "partition").as_str(), Some("7"));
    assert_eq!(stamp.as_map().unwrap().len(), 3, "no deadline was given");
    client.send(call_in(5000, 2, "get", "abc"));
    client.answer().1.unwrap();
    let stamp = stamps.recv().unwrap();
    assert_eq!(field(&stamp, "update").as_bool(), Some(false));
    let left = field(&stamp, "deadline_ms").as_u64().unwrap();
    assert!((1000..=5000).contains(&left), "{left}");
}

#[test]
fn requests_without_key_are_refused_and_the_connection_goes_on() {
    let server = echo("a");
    let router = Router::start(&service(
        "frames",
        "key = [\"msgpack:/params/0/user\", \"msgpack:/params/1\"]",
        &[&[server.addr]],
    ));
    let mut client = router.client();
    let twice = Value::Map(vec![("user".into(), "a".into()), ("user".into(), "b".into())]);
    for params in
        [vec![], vec!["a".into()], vec!["a".into(), "".into()], vec![twice], vec![1.into(), 1.5.into()]]
    {
        client.send(call(9, "m", &params));
        let (id, outcome) = client.answer();
        let error = outcome.unwrap_err();
        assert_eq!((id, verdict(&error)), (9, "refused"), "{params:?}");
        assert!(field(&error, "partition").is_nil());
    }
    assert_eq!(server.seen(), Vec::<String>::new());
    client.send(call(1, "m", &["x".into(), "key".into()]));
    assert_eq!(client.answer(), (1, Ok("a:x".into())));
    assert_eq!(router.stats().refused, 5);
    let somewhere =
        Router::start(&service("frames", &format!("{READS}\nno_key = \"partition:3\""), &[&[server.addr]]));
    let mut client = somewhere.client();
    client.send(call(1, "m", &[Value::Nil]));
    eventually("it goes to that partition's server", || server.seen().last().unwrap() == "m nil");
}

#[test]
fn who_speaks_nonsense_is_told_why_and_sent_away() {
    let server = echo("a");
    let router = Router::start(&frames(&[&[server.addr]]));
    let rows: [(&[u8], Option<u32>, &str); 7] = [
        (b"\0\0\0\x06\x93\x02\xa1m\x91\x01", None, "notifications are not taken"),
        (b"\x01\0\0\x01", None, "a message of 16777217 bytes: give at most 16777216"),
        (b"GET / HTTP/1.1\r\n\r\n", None, "a message of"),
        (b"\0\0\0\x05hello", None, "not MessagePack-RPC"),
        (b"\0\0\0\x05\x94\x01\x01\xc0\xc0", None, "type 1 does not belong here"),
        (b"\0\0\0\x06\x94\x00\x09\xa1m\xc0", None, "params are not an array"),
        (b"\0\0\0\x07\x94\x00\x09\xa1m\x91\xc1", Some(9), "0xc1"),
    ];
    for (bytes, id, why) in rows {
        let mut client = router.client();
        client.send([&call(5, "get", &["k".into()]), bytes].concat());
        // What was asked before is answered; in which order does not matter.
        let mut answers: Vec<Vec<Value>> = vec![];
        while let Some(list) = read(&mut client.reader) {
            answers.push(list);
        }
        assert_eq!(answers.len(), 2, "{why}: {answers:?}");
        let at = answers.iter().position(|list| list.get(1) != Some(&5.into())).unwrap();
        let told = answers.remove(at);
        let error = match id {
            Some(id) => {
                assert_eq!(told[1].as_u64(), Some(id.into()));
                told[2].clone()
            }
            None => {
                assert_eq!((told[0].as_u64(), told[1].as_str()), (Some(2), Some("phalanx.error")));
                told[2].as_array().unwrap()[0].clone()
            }
        };
        assert_eq!(verdict(&error), "refused");
        assert!(field(&error, "error").as_str().unwrap().contains(why), "{error}");
        assert_eq!(answers[0][3].as_str(), Some("a:k"));
    }
    assert_eq!(router.stats().refused, 7);
}

#[test]
fn a_server_that_speaks_nonsense_or_unasked_is_cut_off() {
    let well = echo("b");
    let rows: [fn(u32) -> Vec<u8>; 8] = [
        |id| answer(id + 1, Value::Nil, "unasked".into()),
        |id| [answer(id, Value::Nil, "b:k".into()), answer(id, Value::Nil, "twice".into())].concat(),
        |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        |_| b"\0\0\0\0".to_vec(),
        |id| call(id, "m", &[]),
        |_| b"\0\0\0\x05\x94\x01\xc0\xc0\xc0".to_vec(),
        |id| {
            let mut long = answer(id, Value::Nil, "b:k".into());
            long[3] += 1;
            long.push(0xc0);
            long
        },
        |_| b"\xff\xff\xff\xff".to_vec(),
    ];
    for (row, nonsense) in rows.into_iter().enumerate() {
        let server = FakeServer::start(move |peer| {
            while let Some(one) = seen(peer) {
                peer.send_bytes(&nonsense(one.id));
            }
        });
        let router = Router::start(&frames(&[&[server.addr, well.addr]]));
        let mut client = router.client();
        for _ in 0..5 {
            assert_eq!(client.call("get", "k"), Ok("b:k".into()), "row {row}");
        }
        eventually("the server was asked", || {
            client.call("get", "k").unwrap();
            server.connections() > 0 || row == 1
        });
        let outcome = client.call("put", "k");
        assert!(outcome == Ok("b:k".into()) || verdict(&outcome.unwrap_err()) == "unknown", "row {row}");
    }
}

#[test]
fn reads_move_to_another_clone_and_updates_are_not_repeated() {
    // Takes four updates, answers one, and dies; dies of any read.
    let dying = FakeServer::start(|peer| {
        let mut ids = vec![];
        while let Some(Seen { id, method, .. }) = seen(peer) {
            ids.push(id);
            if method == "get" {
                return;
            }
            if ids.len() == 4 {
                peer.send_bytes(&answer(ids[2], Value::Nil, "a".into()));
                return;
            }
        }
    });
    let well = echo("b");
    let router = Router::start(&frames(&[&[dying.addr, well.addr]]));
    let mut client = router.client();
    client.send((0..4).flat_map(|n| call(n, "put", &["k".into()])).collect::<Vec<u8>>());
    let mut outcomes: Vec<_> = (0..4).map(|_| client.answer()).collect();
    outcomes.sort_by_key(|(id, _)| *id);
    for (id, outcome) in outcomes {
        match id {
            2 => assert_eq!(outcome, Ok("a".into())),
            _ => assert_eq!(verdict(&outcome.unwrap_err()), "unknown"),
        }
    }
    assert_eq!(well.seen(), Vec::<String>::new());
    assert_eq!(router.stats().unknown, 3);
    for n in 0..40 {
        let key = n.to_string();
        assert_eq!(client.call("get", &key), Ok(format!("b:{key}").into()));
    }
    assert_eq!(router.stats().unknown, 3);
}

#[test]
fn an_update_that_was_not_sent_whole_is_sent_to_the_next_leader() {
    // A request that no socket buffer takes, to a server that never reads: it cannot have been carried out.
    let deaf = FakeServer::start(|peer| {
        thread::sleep(Duration::from_millis(300));
        peer.reset();
    });
    let new = FakeServer::start(|peer| {
        while let Some(Seen { id, params, .. }) = seen(peer) {
            let Value::Binary(bytes) = &params[1] else { panic!() };
            peer.send_bytes(&answer(id, Value::Nil, bytes.len().into()));
        }
    });
    let router = Router::start(&grouped("frames", READS));
    router.handle.update_group("g", &view(7, Some(0), &[deaf.addr, new.addr])).unwrap();
    let mut client = router.client();
    let bytes = Value::Binary(vec![7; 15 << 20]);
    client.send(call(1, "put", &["k".into(), bytes]));
    eventually("the old leader is there", || deaf.connections() >= 1);
    router.handle.update_group("g", &view(9, Some(1), &[deaf.addr, new.addr])).unwrap();
    assert_eq!(client.answer(), (1, Ok((15 << 20).into())));
}

#[test]
fn updates_wait_in_order_for_the_next_leader() {
    let (mut old, new) = (echo("old"), echo("new"));
    let router = Router::start(&grouped("frames", READS));
    router.handle.update_group("g", &view(7, Some(0), &[old.addr, new.addr])).unwrap();
    let mut client = router.client();
    assert_eq!(client.call("put", "0"), Ok("old:0".into()));
    router.sees_the_end_of(&mut old);
    client.send((0..50).flat_map(|n| call(n, "put", &[n.to_string().into()])).collect::<Vec<u8>>());
    eventually("all wait", || router.stats().waited == 50);
    router.handle.update_group("g", &view(9, Some(0), &[new.addr])).unwrap();
    for n in 0..50 {
        assert_eq!(client.answer(), (n, Ok(format!("new:{n}").into())));
    }
    let order: Vec<String> = (0..50).map(|n| format!("put \"{n}\"")).collect();
    assert_eq!(new.seen(), order);
}

/// Refuses updates as a server of the library does that does not lead.
fn follower(leader: Option<SocketAddr>) -> FakeServer {
    FakeServer::start(move |peer| {
        while let Some(one) = seen(peer) {
            let mut error = vec![("phalanx".into(), "not-leader".into()), ("error".into(), "not me".into())];
            error.extend(leader.map(|leader| ("leader".into(), leader.to_string().into())));
            peer.send_bytes(&answer(one.id, Value::Map(error), Value::Nil));
        }
    })
}

#[test]
fn who_does_not_lead_says_who_does_and_the_router_goes_there() {
    let leader = echo("leader");
    let former = follower(Some(leader.addr));
    let router = Router::start(&grouped("frames", READS));
    router.handle.update_group("g", &view(7, Some(0), &[former.addr, leader.addr])).unwrap();
    let mut client = router.client();
    for n in 0..10 {
        assert_eq!(client.call("put", &n.to_string()), Ok(format!("leader:{n}").into()));
    }
    assert_eq!(router.stats().waited, 0);
    assert_eq!((former.seen().len(), leader.seen().len()), (10, 10));
    // A hint that leads out of the RACS is not followed: the update waits for a view.
    let stranger = echo("stranger");
    let lost = follower(Some(stranger.addr));
    let router = Router::start(&grouped("frames", READS));
    router.handle.update_group("g", &view(7, Some(0), &[lost.addr, leader.addr])).unwrap();
    let mut client = router.client();
    client.send(call(1, "put", &["k".into()]));
    eventually("it was refused a few times", || lost.seen().len() > 2);
    router.handle.update_group("g", &view(8, Some(1), &[lost.addr, leader.addr])).unwrap();
    assert_eq!(client.answer(), (1, Ok("leader:k".into())));
    assert_eq!(stranger.seen(), Vec::<String>::new());
}

#[test]
fn two_who_send_to_each_other_do_not_keep_a_request_for_ever() {
    let held = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
    let ring = |at: usize| {
        let held = held.clone();
        FakeServer::start(move |peer| {
            while let Some(one) = seen(peer) {
                let other = held.lock().unwrap()[1 - at];
                let error = Value::Map(vec![
                    ("phalanx".into(), "not-leader".into()),
                    ("leader".into(), other.to_string().into()),
                ]);
                peer.send_bytes(&answer(one.id, error, Value::Nil));
            }
        })
    };
    let (a, b) = (ring(0), ring(1));
    *held.lock().unwrap() = vec![a.addr, b.addr];
    let router = Router::with(&frames(&[&[a.addr, b.addr]]), 1, |limits| {
        limits.wait = Duration::from_millis(300);
    });
    let start = Instant::now();
    let error = router.client().call("put", "k").unwrap_err();
    assert_eq!(verdict(&error), "unavailable");
    assert_eq!(field(&error, "partition").as_str().map(|name| name.parse::<u32>().is_ok()), Some(true));
    assert!((300..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert!(a.seen().len() + b.seen().len() < 40, "and not as fast as they can");
}

#[test]
fn waiting_is_bounded_in_time_and_number() {
    let router = Router::with(&grouped("frames", READS), 1, |limits| {
        limits.wait = Duration::from_secs(3);
        limits.waiting = 3;
    });
    router.handle.update_group("g", &view(7, None, &[])).unwrap();
    let mut client = router.client();
    let start = Instant::now();
    client.send(call(1, "put", &["a".into()]).repeat(3));
    eventually("three wait", || router.stats().waited == 3);
    let refusal = || {
        let start = Instant::now();
        let error = router.client().call("put", "a").unwrap_err();
        assert!(field(&error, "error").as_str().unwrap().starts_with("too many requests wait"), "{error}");
        start.elapsed()
    };
    let soonest = (0..3).map(|_| refusal()).min().unwrap();
    assert!(soonest < Duration::from_millis(950), "{soonest:?}");
    assert_eq!(router.stats().waiting, 3, "the others have no answer yet");
    for _ in 0..3 {
        assert_eq!(verdict(&client.answer().1.unwrap_err()), "unavailable");
    }
    assert!((3000..7000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(router.stats().unavailable, 6);
}

#[test]
fn deadlines_are_kept_and_told_truly() {
    // Answers reads and updates only once it may.
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let gate2 = gate.clone();
    let lazy = FakeServer::start(move |peer| {
        while let Some(one) = seen(peer) {
            drop(gate2.lock().unwrap());
            peer.send_bytes(&answer(one.id, Value::Nil, "late".into()));
        }
    });
    let router = Router::start(&frames(&[&[lazy.addr]]));
    let mut client = router.client();
    let start = Instant::now();
    // Long enough that both are on their way by then.
    client.send([call_in(1000, 1, "get", "k"), call_in(1000, 2, "put", "k")].concat());
    let mut outcomes = [client.answer(), client.answer()];
    assert!((1000..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    outcomes.sort_by_key(|(id, _)| *id);
    assert_eq!(verdict(outcomes[0].1.as_ref().unwrap_err()), "late");
    assert_eq!(verdict(outcomes[1].1.as_ref().unwrap_err()), "unknown", "it may be carried out");
    // The late answers are nobody's, and harm nobody.
    drop(held);
    assert_eq!(client.call("get", "k"), Ok("late".into()));
    assert_eq!(lazy.connections(), 1);

    // One that could not be sent has changed nothing.
    let router = Router::start(&grouped("frames", READS));
    router.handle.update_group("g", &view(7, None, &[])).unwrap();
    let mut client = router.client();
    let start = Instant::now();
    client.send(call_in(100, 1, "put", "k"));
    assert_eq!(verdict(&client.answer().1.unwrap_err()), "late");
    assert!((100..4000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[test]
fn a_silent_server_is_given_up() {
    let silent = FakeServer::start(|peer| while seen(peer).is_some() {});
    let well = echo("b");
    let router = Router::with(&frames(&[&[silent.addr, well.addr]]), 1, |limits| {
        limits.response = Duration::from_secs(2);
    });
    for _ in 0..10 {
        assert_eq!(router.client().call("get", "k"), Ok("b:k".into()));
    }
    assert_eq!(verdict(&router.client().call("put", "k").unwrap_err()), "unknown");
    let dead = Router::start(&frames(&[&[nobody(), nobody()]]));
    assert_eq!(verdict(&dead.client().call("get", "k").unwrap_err()), "unavailable");
}

#[test]
fn a_server_that_is_about_to_end_or_has_enough_to_do_is_asked_no_further() {
    let refusing = |word: &'static str| {
        FakeServer::start(move |peer| {
            while let Some(one) = seen(peer) {
                let error = Value::Map(vec![("phalanx".into(), word.into()), ("error".into(), "no".into())]);
                peer.send_bytes(&answer(one.id, error, Value::Nil));
            }
        })
    };
    for word in ["stopping", "busy"] {
        let (refuses, well) = (refusing(word), echo("b"));
        let router = Router::start(&frames(&[&[refuses.addr, well.addr]]));
        let mut client = router.client();
        for _ in 0..20 {
            assert_eq!(client.call("get", "k"), Ok("b:k".into()), "{word}");
        }
        assert!(!refuses.seen().is_empty());
    }
    let busy = refusing("busy");
    let router = Router::start(&frames(&[&[busy.addr]]));
    let error = router.client().call("put", "k").unwrap_err();
    assert_eq!(field(&error, "phalanx").as_str(), Some("busy"), "the server's own words");
}

#[test]
fn large_requests_and_answers_pass_and_their_room_is_bounded() {
    const LARGE: usize = 3 << 20;
    let server = FakeServer::start(|peer| {
        while let Some(Seen { id, params, .. }) = seen(peer) {
            peer.send_bytes(&answer(id, Value::Nil, params[1].clone()));
        }
    });
    let router = Router::with(&frames(&[&[server.addr]]), 1, |limits| {
        limits.requests_in_all = 4 << 20; // one at a time
    });
    let addr = router.addr();
    let clients: Vec<_> = (0..6u8)
        .map(|who| {
            thread::spawn(move || {
                let mut client = Client::connect(addr);
                for n in 0..3u8 {
                    let bytes = Value::Binary(vec![who << 4 | n; LARGE]);
                    let frame = call(n.into(), "put", &["k".into(), bytes.clone()]);
                    let mut stream = client.stream.try_clone().unwrap();
                    let writer =
                        thread::spawn(move || std::io::Write::write_all(&mut stream, &frame).unwrap());
                    assert_eq!(client.answer(), (n.into(), Ok(bytes)));
                    writer.join().unwrap();
                }
            })
        })
        .collect();
    // One that never ends its request takes room, and is cut off in the end.
    clients.into_iter().for_each(|client| client.join().unwrap());
    let limit = Router::with(&frames(&[&[server.addr]]), 1, |limits| {
        limits.requests_in_all = 4 << 20;
        limits.stall = Duration::from_millis(1500);
    });
    let mut slow = limit.client();
    slow.send(&call(1, "put", &["k".into(), Value::Binary(vec![0; LARGE])])[..LARGE / 2]);
    thread::sleep(Duration::from_millis(50));
    let mut other = limit.client();
    let mut stream = other.stream.try_clone().unwrap();
    let frame = call(2, "put", &["k".into(), Value::Binary(vec![1; LARGE])]);
    let writer = thread::spawn(move || std::io::Write::write_all(&mut stream, &frame).unwrap());
    assert_eq!(other.answer().0, 2);
    writer.join().unwrap();
    assert!(slow.is_closed());
}

#[test]
fn a_client_that_reads_nothing_holds_up_neither_memory_nor_others() {
    const LARGE: usize = 200_000;
    let server = FakeServer::start(|peer| {
        while let Some(Seen { id, params, .. }) = seen(peer) {
            let len = if params[0].as_str() == Some("large") { LARGE } else { 1 };
            peer.send_bytes(&answer(id, Value::Nil, Value::Binary(vec![0; len])));
        }
    });
    let router = Router::start(&frames(&[&[server.addr]]));
    let mut idle = router.client();
    idle.send((0..1000).flat_map(|n| call(n, "get", &["large".into()])).collect::<Vec<u8>>());
    eventually("it is under way", || server.seen().len() > 1);
    assert!(router.client().call("get", "other").is_ok());
    thread::sleep(Duration::from_millis(500));
    let asked = server.seen().len();
    assert!(asked < 300, "{asked} large answers were asked for, though nobody reads them");
    for n in 0..1000 {
        assert_eq!(idle.answer().0, n);
    }
}

#[test]
fn shutdown_answers_what_is_under_way() {
    let lazy = FakeServer::start(|peer| {
        while let Some(one) = seen(peer) {
            thread::sleep(Duration::from_millis(200));
            peer.send_bytes(&answer(one.id, Value::Nil, "done".into()));
        }
    });
    let router = Router::start(&frames(&[&[lazy.addr]]));
    let mut client = router.client();
    client.send(call(1, "put", &["k".into()]));
    eventually("it is there", || lazy.seen().len() == 1);
    let handle = router.handle.clone();
    let stopper = thread::spawn(move || handle.shutdown(PATIENCE));
    assert_eq!(client.answer(), (1, Ok("done".into())));
    assert_eq!(client.reader.read(&mut [0]).unwrap(), 0);
    stopper.join().unwrap();
}

#[test]
fn requests_without_key_may_go_by_source_or_scatter() {
    let (a, b) = (echo("a"), echo("b"));
    let racs: [&[SocketAddr]; 2] = [&[a.addr], &[b.addr]];
    let start = |no_key| Router::start(&service("frames", &format!("{READS}\nno_key = \"{no_key}\""), &racs));
    let source = start("source");
    let first = source.client().call("get", "").unwrap();
    for _ in 0..10 {
        assert_eq!(source.client().call("set", "").unwrap(), first, "one address, one partition");
    }
    let scatter = start("scatter");
    let mut client = scatter.client();
    let seen: Vec<Value> = (0..60).map(|_| client.call("get", "").unwrap()).collect();
    assert!(seen.contains(&"a:".into()) && seen.contains(&"b:".into()), "{seen:?}");
    assert_eq!(verdict(&client.call("set", "").unwrap_err()), "refused", "an update belongs somewhere");
}

#[test]
fn a_client_reads_from_one_clone_for_as_long_as_it_is_connected() {
    let servers = ["a", "b", "c"].map(echo);
    let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    let config = service("frames", &format!("{READS}\nreads = \"sticky\""), &[&addrs]);
    let router = Router::with(&config, 1, patient);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let mut client = router.client();
        let first = client.call("get", "k").unwrap();
        for _ in 0..10 {
            assert_eq!(client.call("get", "k").unwrap(), first);
        }
        assert_eq!(client.call("set", "k").unwrap(), "a:k".into(), "updates go to the leader");
        seen.insert(first.to_string());
    }
    assert_eq!(seen.len(), 3, "clients are spread");
}

#[test]
fn requests_that_fail_are_logged_by_method_and_partition_and_each_client_at_its_end() {
    let file = std::env::temp_dir().join(format!("phalanx-frames-log-{}", std::process::id()));
    let server = FakeServer::start(|peer| {
        while let Some(Seen { id, method, .. }) = seen(peer) {
            if method == "break" {
                return;
            }
            peer.send_bytes(&answer(id, Value::Nil, "ok".into()));
        }
    });
    let more = format!("{READS}\naccess_log = {{ file = {:?}, slow = \"60s\" }}", file.to_str().unwrap());
    let router = Router::start(&service("frames", &more, &[&[server.addr]]));
    let mut client = router.client();
    assert_eq!(client.call("get", "private"), Ok("ok".into()));
    assert_eq!(field(&client.call("break", "private").unwrap_err(), "phalanx").as_str(), Some("unknown"));
    client.send(call(1, "get", &[]));
    assert_eq!(field(&client.answer().1.unwrap_err(), "phalanx").as_str(), Some("refused"));
    drop(client);
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&file).unwrap();
        // The last one may be half written.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    eventually("they are written", || lines().len() == 3);
    let all = lines();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(
        (&all[0]["command"], all[0]["server"].as_str()),
        (&"break".into(), Some(&*server.addr.to_string()))
    );
    assert!(all[0]["partition"].is_string() && all[0]["error"].as_str().unwrap().contains("outcome unknown"));
    assert_eq!((&all[1]["command"], &all[1]["error"]), (&"get".into(), &"the request has no key".into()));
    assert_eq!(
        (&all[2]["commands"], &all[2]["refused"], &all[2]["failed"]),
        (&3.into(), &1.into(), &1.into())
    );
    assert!(!text.contains("private"), "{text}");
}

#[test]
fn keys_that_are_asked_for_most_are_known_however_they_are_encoded() {
    let server = FakeServer::start(|peer| {
        while let Some(Seen { id, .. }) = seen(peer) {
            peer.send_bytes(&answer(id, Value::Nil, "ok".into()));
        }
    });
    let router =
        Router::start(&service("frames", &format!("{READS}\nhot_keys = \"shown\""), &[&[server.addr]]));
    let mut client = router.client();
    for key in [Value::from(42), "42".into(), "other".into()] {
        client.send(call(1, "get", &[key]));
        assert!(client.answer().1.is_ok());
    }
    let hot = router.stats().hot;
    assert_eq!((hot.total(), hot.top(1)[0].count, hot.top(1)[0].prefix.unwrap().bytes()), (3, 2, &b"42"[..]));
}

#[test]
fn answers_are_counted_by_whether_they_are_errors() {
    let server = FakeServer::start(|peer| {
        while let Some(Seen { id, method, .. }) = seen(peer) {
            let error = if method == "bad" { "no".into() } else { Value::Nil };
            peer.send_bytes(&answer(id, error, Value::Nil));
        }
    });
    let router = Router::start(&frames(&[&[server.addr]]));
    let mut client = router.client();
    assert_eq!(client.call("get", "k"), Ok(Value::Nil));
    (0..2).for_each(|_| assert_eq!(client.call("bad", "k"), Err("no".into())));
    let stats = &router.server_stats(server.addr).responses[0];
    assert!(stats.by_class().eq([("ok", 1), ("error", 2)]), "{stats:?}");
}
