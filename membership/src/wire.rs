//! Frames on a connection: a length of four bytes, most significant first, then one value in MessagePack.
//!
//! A large frame may come in pieces, each with a length of its own, and whole frames between them. The two highest bits of a length
//! say so. So what is small and urgent does not wait for what is large.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use membership_proto::Msg;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

/// The largest frame between nodes that know each other, but for what follows. The protocol cuts what it says into less, wherever
/// it can.
pub(crate) const MAX_FRAME: usize = 8 * 1024 * 1024;
/// The largest frame to nodes that take it: the whole state, for who keeps the log and is behind.
pub(crate) const MAX_STATE: usize = 64 * 1024 * 1024;
/// The largest message of a stranger.
pub(crate) const MAX_GREETING: usize = 4 * 1024;
/// How deep values of a message are nested, at most.
const DEPTH: usize = 64;
/// Room that a larger frame took is given back after it.
const KEPT: usize = 64 * 1024;
/// Bytes of the length.
pub(crate) const LENGTH: usize = 4;
/// Frames larger than this are cut into pieces of this size, for who takes them.
pub(crate) const PIECE: usize = 32 * 1024;
/// In a length: a piece of a frame follows, and it is the last one.
const PART: u32 = 1 << 31;
const LAST: u32 = 1 << 30;

/// What travels on a connection after the introduction.
#[derive(Debug, Deserialize)]
pub(crate) enum Frame {
    /// A message of the protocol.
    Msg(Msg),
    /// The number that the sender found in memory shared with the receiver.
    Shown([u8; 16]),
}

/// The same, to be written.
#[derive(Debug, Serialize)]
#[serde(rename = "Frame")]
pub(crate) enum FrameRef<'a> {
    Msg(&'a Msg),
    Shown([u8; 16]),
}

/// What came in is no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Garbage {
    #[error("a frame of {size} bytes exceeds the limit of {max} bytes")]
    TooLarge { size: usize, max: usize },
    #[error("a frame does not decode: {0}")]
    Undecodable(String),
    #[error("a frame has {0} bytes too many")]
    Trailing(usize),
}

/// Words of others, as people may be shown them: they steer no terminal, and do not fill it.
pub(crate) fn shown(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(256).collect()
}

/// Encodes one frame. The error gives the size that was too large: nothing would take it.
pub(crate) fn encode<T: Serialize>(value: &T, max: usize) -> Result<Bytes, usize> {
    let mut out = vec![0; LENGTH];
    rmp_serde::encode::write_named(&mut out, value)
        .expect("our own types encode, and a Vec takes everything");
    let size = out.len() - LENGTH;
    match u32::try_from(size) {
        Ok(length) if size <= max => {
            out[..LENGTH].copy_from_slice(&length.to_be_bytes());
            Ok(out.into())
        }
        _ => Err(size),
    }
}

/// Decodes what is within a frame, all of it.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Garbage> {
    let mut decoder = rmp_serde::Deserializer::new(io::Cursor::new(payload));
    let value = T::deserialize(&mut decoder).map_err(|e| Garbage::Undecodable(shown(&e.to_string())))?;
    let consumed = usize::try_from(decoder.position()).unwrap_or(usize::MAX);
    match payload.len().checked_sub(consumed) {
        Some(0) => Ok(value),
        rest => Err(Garbage::Trailing(rest.unwrap_or(0))),
    }
}

/// The same, or `None` if it says something that only newer builds know: well made, and with a variant that is unknown here.
/// To skip it is to lose a message, which the protocol bears; what must be understood is sent only to who understands it.
pub(crate) fn decode_known<T: DeserializeOwned>(payload: &[u8]) -> Result<Option<T>, Garbage> {
    let garbage = match decode(payload) {
        Ok(value) => return Ok(Some(value)),
        Err(garbage) => garbage,
    };
    let mut decoder = rmp_serde::Deserializer::new(io::Cursor::new(payload));
    decoder.set_max_depth(DEPTH);
    let whole = IgnoredAny::deserialize(&mut decoder).is_ok()
        && usize::try_from(decoder.position()).is_ok_and(|at| at == payload.len());
    match &garbage {
        // So serde words it, and there is no other way to tell.
        Garbage::Undecodable(why) if whole && why.starts_with("unknown variant ") => Ok(None),
        _ => Err(garbage),
    }
}

/// Takes the next piece from a frame that is encoded, with what goes before it.
pub(crate) fn next_piece(rest: &mut Bytes) -> ([u8; LENGTH], Bytes) {
    let piece = rest.split_to(rest.len().min(PIECE));
    let last = if rest.is_empty() { LAST } else { 0 };
    let length = u32::try_from(piece.len()).expect("a piece is small");
    ((length | PART | last).to_be_bytes(), piece)
}

/// Cuts a stream of bytes into frames. It holds one frame at most, besides one that comes in pieces and one read.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: BytesMut,
    /// What has come of a frame in pieces.
    large: BytesMut,
    max: usize,
    /// A large frame was in the buffer.
    grown: bool,
}

impl Frames {
    pub(crate) fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), large: BytesMut::new(), max, grown: false }
    }

    /// Where bytes are added that came in.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        if self.grown && self.buffer.is_empty() {
            (self.buffer, self.grown) = (BytesMut::new(), false);
        }
        &mut self.buffer
    }

    /// The payload of the next frame, once all of it is here.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Garbage> {
        loop {
            let Some(head) = self.buffer.first_chunk::<LENGTH>() else { return Ok(None) };
            let head = u32::from_be_bytes(*head);
            let (part, last) = (head & PART != 0, head & LAST != 0);
            let flags = if part { PART | LAST } else { 0 };
            let size = usize::try_from(head & !flags).unwrap_or(usize::MAX);
            let whole = if part { size.saturating_add(self.large.len()) } else { size };
            if whole > self.max {
                return Err(Garbage::TooLarge { size: whole, max: self.max });
            }
            if self.buffer.len() < LENGTH + size {
                return Ok(None);
            }
            self.grown |= size > KEPT;
            self.buffer.advance(LENGTH);
            let payload = self.buffer.split_to(size);
            if !part {
                return Ok(Some(payload.freeze()));
            }
            self.large.extend_from_slice(&payload);
            if last {
                return Ok(Some(std::mem::take(&mut self.large).freeze()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Msg {
        Msg::Refused("no".into())
    }

    fn frames(bytes: &[u8]) -> Frames {
        Frames { buffer: bytes.into(), large: BytesMut::new(), max: 100, grown: false }
    }

    #[test]
    fn room_for_a_large_frame_is_given_back_once_nothing_is_in_it() {
        let large = encode(&FrameRef::Msg(&Msg::Refused("x".repeat(1 << 20))), MAX_FRAME).expect("it fits");
        let mut frames = Frames::new(MAX_FRAME);
        frames.buffer().extend_from_slice(&large);
        frames.buffer().extend_from_slice(&[0, 0]);
        drop(frames.next().expect("no garbage").expect("a frame"));
        assert_eq!(&frames.buffer()[..], [0, 0], "the next one has begun");
        frames.buffer().extend_from_slice(&[0, 0]);
        drop(frames.next().expect("no garbage").expect("an empty frame"));
        assert_eq!(frames.buffer().capacity(), 0);
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let one = encode(&FrameRef::Msg(&refused()), MAX_FRAME).expect("small");
        let two = encode(&FrameRef::Shown([7; 16]), MAX_FRAME).expect("small");
        let all = [&one[..], &two[..]].concat();
        for cut in 0..all.len() {
            let mut frames = frames(&all[..cut]);
            let mut got = Vec::new();
            for rest in [&[], &all[cut..]] {
                frames.buffer.extend_from_slice(rest);
                while let Some(payload) = frames.next().expect("no garbage") {
                    got.push(decode::<Frame>(&payload).expect("decodes"));
                }
            }
            assert!(
                matches!(&got[..], [Frame::Msg(msg), Frame::Shown([7, ..])] if *msg == refused()),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_frame_in_pieces_comes_out_whole_and_others_before_it() {
        let words = "x".repeat(3 * PIECE);
        let large = encode(&FrameRef::Msg(&Msg::Refused(words.clone())), MAX_FRAME).expect("fits");
        let small = encode(&FrameRef::Shown([7; 16]), MAX_FRAME).expect("small");
        let (mut all, mut rest) = (Vec::new(), large.slice(LENGTH..));
        while !rest.is_empty() {
            let (head, piece) = next_piece(&mut rest);
            all.extend_from_slice(&head);
            all.extend_from_slice(&piece);
            all.extend_from_slice(&small);
        }
        for cut in (0..all.len()).step_by(101) {
            let mut frames = Frames::new(MAX_FRAME);
            let mut got = Vec::new();
            for part in [&all[..cut], &all[cut..]] {
                frames.buffer().extend_from_slice(part);
                while let Some(payload) = frames.next().expect("no garbage") {
                    got.push(decode::<Frame>(&payload).expect("decodes"));
                }
            }
            let [Frame::Shown(_), Frame::Shown(_), Frame::Shown(_), Frame::Msg(msg), Frame::Shown(_)] =
                &got[..]
            else {
                panic!("{} frames", got.len())
            };
            assert!(*msg == Msg::Refused(words.clone()), "{cut}");
        }
        let mut frames = Frames::new(2 * PIECE);
        frames.buffer().extend_from_slice(&all);
        let refused = loop {
            match frames.next() {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert!(matches!(refused, Err(Garbage::TooLarge { .. })), "all pieces together count");
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_by_its_length_alone() {
        assert!(matches!(
            frames(&101_u32.to_be_bytes()).next(),
            Err(Garbage::TooLarge { size: 101, max: 100 })
        ));
        assert_eq!(encode(&"x".repeat(200), 100), Err(202));
    }

    #[test]
    fn what_only_newer_builds_know_is_skipped_and_garbage_is_not() {
        #[derive(Serialize)]
        enum Newer {
            Invitation { from: u8, deep: Vec<Vec<u8>> },
            Msg(NewerMsg),
        }
        #[derive(Serialize)]
        enum NewerMsg {
            Rumour(String),
            Probe(u8),
        }
        let bytes = |newer: &Newer| encode(newer, MAX_FRAME).expect("small")[LENGTH..].to_vec();
        let unknown =
            [Newer::Invitation { from: 1, deep: vec![vec![2]] }, Newer::Msg(NewerMsg::Rumour("r".into()))];
        for newer in &unknown {
            let bytes = bytes(newer);
            assert!(matches!(decode_known::<Frame>(&bytes), Ok(None)));
            assert!(decode_known::<Frame>(&bytes[..bytes.len() - 1]).is_err(), "cut short");
            assert!(decode_known::<Frame>(&[&bytes[..], &[0]].concat()).is_err(), "and more");
        }
        // A known variant with another content is no newer kind.
        assert!(decode_known::<Frame>(&bytes(&Newer::Msg(NewerMsg::Probe(1)))).is_err());
        let deep = [&b"\x81\xa1x"[..], &[0x91; 10_000], &[0]].concat();
        assert!(decode_known::<Frame>(&deep).is_err(), "deeper than anything is");
    }

    #[test]
    fn nonsense_and_leftovers_are_garbage_and_never_panic() {
        let mut rng = membership_types::Rng::seeded(1);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..rng.below(64)).map(|_| rng.next_u64() as u8).collect();
            let _ = decode::<Frame>(&bytes);
        }
        let mut good = encode(&FrameRef::Msg(&refused()), MAX_FRAME).expect("small")[LENGTH..].to_vec();
        good.push(0);
        assert!(matches!(decode::<Frame>(&good), Err(Garbage::Trailing(1))));
        good.truncate(good.len() - 2);
        assert!(matches!(decode::<Frame>(&good), Err(Garbage::Undecodable(_))));
    }
}
