//! Somebody without the keys who has recorded everything, and says any of it, changed or not, to a node that runs.

use membership_types::{NodeId, Rng};

use super::{BytesMut, Counts, Instant, REKEY, Scratch, Secret, hello, met, record, secret};
use crate::{
    handshake::{self, Hello, Seen, said},
    secret::Credentials,
    session::{Agreeing, Session},
    wire::{self, Frame, FrameRef, Frames, MAX_FRAME},
};

/// What became of the attempts of somebody without the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forged {
    /// Beginnings of connections that were made to the node.
    pub introductions: u64,
    /// Answers to connections that the node made.
    pub answers: u64,
    /// Records on a connection of two nodes.
    pub records: u64,
    /// Records of nodes that arrived in spite of that, each once.
    pub honest: u64,
    /// What was counted, as the node counts it.
    pub counted: u64,
    /// Connections that ended before there was anything to be judged, which nobody counts.
    pub broken: u64,
}

impl Forged {
    /// All attempts.
    pub fn tried(self) -> u64 {
        self.introductions + self.answers + self.records
    }
}

/// All that goes over the wire when two nodes meet and talk.
struct Recording {
    first: Vec<u8>,
    second: Vec<u8>,
    /// Records of who connected, the proof first; and those of the other one.
    forth: Vec<Vec<u8>>,
    back: Vec<Vec<u8>>,
}

fn shown(n: u64) -> Vec<u8> {
    let mut number = [0; 16];
    number[..8].copy_from_slice(&n.to_le_bytes());
    wire::encode(&FrameRef::Shown(number), MAX_FRAME).expect("small").to_vec()
}

/// Without a secret.
fn meet_in_the_open(one: &Hello, two: &Hello) -> Recording {
    let (first, second) = (said::open(&said::hello(one)), said::open(&said::hello(two)));
    let frames = || (0..9).map(shown).collect();
    Recording { first, second, forth: frames(), back: frames() }
}

fn meet(one: &Hello, two: &Hello, secret: &Secret) -> (Recording, Session, Session) {
    let key = secret.first();
    let (mut asks, first) = Agreeing::begin(key, &said::bound(key), &said::hello(one));
    let (mut answers, _) = Agreeing::answer(key, &said::bound(key), &first).expect("the same key");
    let second = answers.say(&said::hello(two));
    asks.hear(&second).expect("the same key");
    let (mut forth_session, mut back_session) = (asks.agreed(), answers.agreed());
    let mut proof = Scratch::default();
    forth_session.seal_proof(&mut proof);
    assert!(back_session.hear_proof(proof.bytes()));
    let mut forth = vec![proof.bytes().to_vec()];
    forth.extend((0..8).map(|n| record(&mut forth_session, &shown(n))));
    let back = (0..8).map(|n| record(&mut back_session, &shown(n))).collect();
    let (first, second) = (said::sealed(key, &first), said::sealed(key, &second));
    (Recording { first, second, forth, back }, forth_session, back_session)
}

/// Two nodes that are connected, and what arrived at the second one.
struct Link {
    one: Session,
    two: Session,
    frames: Frames,
    came: BytesMut,
    delivered: u64,
    /// The records that arrived last.
    past: Vec<Vec<u8>>,
}

impl Link {
    fn new(one: &Hello, two: &Hello, secret: &Secret) -> Self {
        let (recorded, one, mut two) = meet(one, two, secret);
        let counts = Counts::default();
        let (mut came, mut plain) = (BytesMut::new(), BytesMut::new());
        for record in &recorded.forth[1..] {
            came.extend_from_slice(record);
        }
        let opened = two.open(Instant::from_nanos(1), &mut came, &mut plain, &counts);
        assert!(opened.is_ok() && counts.corrupt.get() == 0);
        let frames = Frames::new(MAX_FRAME);
        Self { one, two, frames, came, delivered: 0, past: recorded.forth }
    }

    /// Gives the second node these bytes. True if a frame came out; it must be the one with this number.
    fn give(&mut self, bytes: &[u8], number: u64, counts: &Counts) -> bool {
        self.came.extend_from_slice(bytes);
        let _closed = self.two.open(Instant::from_nanos(1), &mut self.came, self.frames.buffer(), counts);
        let mut some = false;
        while let Some(payload) = self.frames.next().expect("what is sealed is well-made") {
            let frame = wire::decode::<Frame>(&payload).expect("what is sealed is well-made");
            let right = matches!(frame, Frame::Shown(n) if n[..8] == number.to_le_bytes()) && !some;
            assert!(right, "another frame than the one that was sent");
            some = true;
        }
        some
    }
}

/// One or a few acts on bytes, or none.
fn change(bytes: &mut Vec<u8>, rng: &mut Rng, other: &[u8]) {
    for _ in 0..rng.below(3) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(6) {
            0..3 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            3 => bytes.truncate(at),
            4 => {
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + rng.below(32) as usize).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

/// Makes so many attempts against a node that has a secret: what was recorded of an earlier session of the same two nodes, of
/// another cluster, of one without a secret, of another receiver, of another incarnation of the sender or of the receiver; as it was, or with bits
/// flipped, cut, spliced, repeated, out of order.
///
/// # Panics
/// If anything of it is accepted, or if anything of what honest nodes say meanwhile is lost, changed, or accepted twice.
pub fn forge(tries: u64, seed: u64) -> Forged {
    let mut rng = Rng::seeded(seed);
    let (key, foreign) = (secret(), foreign());
    let with = Credentials::Secret(key.clone());
    let (me, other) = (hello(1), hello(2));
    let again = |of: &Hello| Hello { node: NodeId::new(of.node.node(), 77), ..of.clone() };
    let elsewhere = |of: &Hello| Hello { cluster: "elsewhere".into(), ..of.clone() };
    let talks = [
        (&other, &me, &key),
        (&me, &other, &key),
        (&other, &hello(3), &key),
        (&again(&other), &me, &key),
        (&other, &again(&me), &key),
        (&elsewhere(&other), &elsewhere(&me), &key),
        (&other, &me, &foreign),
    ];
    let mut recordings: Vec<Recording> = talks.iter().map(|(one, two, key)| meet(one, two, key).0).collect();
    recordings.push(meet_in_the_open(&other, &me));
    let mut seen = Seen::default();
    let (mut done, counts) = (Forged::default(), Counts::default());
    let mut link = Link::new(&other, &me, &key);
    let (mut number, mut since) = (100, 0);
    for _ in 0..tries {
        if rng.chance(20) {
            // So long ago that it was forgotten, or another node.
            seen = Seen::default();
        }
        let recording = rng.pick(&recordings).expect("some");
        let extra = rng.pick(&recordings).expect("some");
        match rng.below(100) {
            0..25 => {
                let mut bytes =
                    if rng.chance(900) { recording.first.clone() } else { recording.second.clone() };
                change(&mut bytes, &mut rng, &extra.first);
                let mut records: Vec<&Vec<u8>> = recording.forth.iter().collect();
                if rng.chance(300) {
                    records.rotate_left(rng.below(9) as usize);
                }
                if rng.chance(300) {
                    records = extra.forth.iter().collect();
                }
                bytes.extend(records.into_iter().take(rng.below(4) as usize).flatten());
                match within_memory(&bytes, &me, &with, &mut seen) {
                    Ok(met) => panic!("{} got in with {}", met.hello.node, bytes.escape_ascii()),
                    Err(refusal) => {
                        refusal.count(&counts);
                        done.broken += u64::from(refusal.kind() == "broken");
                    }
                }
                done.introductions += 1;
            }
            25..30 => {
                let mut bytes =
                    if rng.chance(900) { recording.second.clone() } else { recording.first.clone() };
                change(&mut bytes, &mut rng, &extra.second);
                bytes.extend(recording.back.iter().take(rng.below(3) as usize).flatten());
                match met(&bytes, &me, &with, false) {
                    Ok(met) => panic!("{} answered with {}", met.hello.node, bytes.escape_ascii()),
                    Err(refusal) => {
                        refusal.count(&counts);
                        done.broken += u64::from(refusal.kind() == "broken");
                    }
                }
                done.answers += 1;
            }
            _ => {
                // The record that is to come next is known, and kept back.
                let next = record(&mut link.one, &shown(number));
                for _ in 0..1 + rng.below(8) {
                    let mut bytes = match rng.below(6) {
                        0 => next.clone(),
                        1 => rng.pick(&link.past).expect("some").clone(),
                        2 => record(&mut link.two, &shown(number)),
                        3 => rng.pick(&extra.back).expect("some").clone(),
                        _ => rng.pick(&recording.forth).expect("some").clone(),
                    };
                    if !super::is_record(&bytes) {
                        let size = bytes.len() as u16;
                        bytes.splice(0..0, size.to_be_bytes());
                    }
                    let content = bytes.len() - 2;
                    for _ in 0..rng.between(u64::from(bytes == next), 3) {
                        let bit = rng.below(8 * content as u64) as usize;
                        bytes[2 + bit / 8] ^= 1 << (bit % 8);
                    }
                    if rng.chance(100) {
                        let size = 16 + rng.below(content as u64 - 15) as usize;
                        bytes.truncate(2 + size);
                        bytes[..2].copy_from_slice(&(size as u16).to_be_bytes());
                    }
                    if bytes == next {
                        continue;
                    }
                    assert!(!link.give(&bytes, number, &counts), "accepted: {}", bytes.escape_ascii());
                    // As if each attempt were the first one.
                    link.two.forgive();
                    done.records += 1;
                }
                assert!(link.give(&next, number, &counts), "a right record is not accepted");
                link.delivered += 1;
                link.two.forgive();
                assert!(!link.give(&next, number, &counts), "accepted twice");
                link.two.forgive();
                done.records += 1;
                link.past.push(next);
                link.past.drain(..link.past.len().saturating_sub(24));
                number += 1;
                since += 1;
            }
        }
        if since > REKEY + 100 || link.two.sent() > REKEY {
            done.honest += link.delivered;
            (link, since) = (Link::new(&other, &me, &key), 0);
        }
        if done.tried() >= tries {
            break;
        }
    }
    done.honest += link.delivered;
    done.counted = counts.unauthenticated.get()
        + counts.replays.get()
        + counts.rejected.get()
        + counts.garbage.get()
        + counts.corrupt.get();
    done
}

fn within_memory(
    bytes: &[u8],
    me: &Hello,
    with: &Credentials,
    seen: &mut Seen,
) -> Result<handshake::Met, handshake::Refusal> {
    super::within(async {
        let mut stream = tokio::io::join(bytes, tokio::io::sink());
        handshake::respond(&mut stream, me, with, &mut |first| seen.note(first)).await
    })
}

fn foreign() -> Secret {
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f".parse().expect("a key")
}
