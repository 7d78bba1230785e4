//! What parses bytes of others, as plain functions: nothing that comes in may make one panic or disagree with itself. And
//! well-made bytes to begin with.

use std::net::SocketAddr;

use bytes::BytesMut;
use membership_multicast::Frame as GroupFrame;
use membership_proto::Msg;
use membership_types::{GroupName, Instant, Lineage, NodeId, Rng};
use tokio::runtime::{Builder, Runtime};

use crate::{
    bulk::links::{Unit, next_unit},
    handshake::{self, Hello, Met, Refusal, said},
    rendezvous::announce::{Announcer, Notice},
    secret::{Credentials, Secret},
    wire::{self, Frame, FrameRef, Frames, MAX_FRAME, MAX_GREETING},
};

/// The payload of a frame between nodes: what is understood can be said, and is understood the same.
pub fn wire_frame(data: &[u8]) {
    if let Ok(Frame::Msg(msg)) = wire::decode::<Frame>(data) {
        let again = wire::encode(&FrameRef::Msg(&msg), MAX_FRAME).expect("it was no larger");
        let again: Frame = wire::decode(&again[4..]).expect("our own frame");
        assert!(matches!(again, Frame::Msg(again) if again == msg), "{msg:?} changes on the wire");
    }
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
                Err(refusal) => assert!(refusal.to_string().len() < 4 * MAX_GREETING),
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
    let greetings = (1..5).map(|n| said::hello(&hello(n))).chain([said::refusal("no")]);
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
