//! Frames on a connection: a length of four bytes, most significant first, then one value in MessagePack.

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
/// Bytes of the length.
pub(crate) const LENGTH: usize = 4;

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

/// Cuts a stream of bytes into frames. It holds one frame at most, besides one read.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: BytesMut,
    max: usize,
}

impl Frames {
    pub(crate) fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), max }
    }

    /// Where bytes are added that came in.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The payload of the next frame, once all of it is here.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Garbage> {
        let Some(head) = self.buffer.first_chunk::<LENGTH>() else { return Ok(None) };
        let size = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if size > self.max {
            return Err(Garbage::TooLarge { size, max: self.max });
        }
        if self.buffer.len() < LENGTH + size {
            return Ok(None);
        }
        self.buffer.advance(LENGTH);
        Ok(Some(self.buffer.split_to(size).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Msg {
        Msg::Refused("no".into())
    }

    fn frames(bytes: &[u8]) -> Frames {
        Frames { buffer: bytes.into(), max: 100 }
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
