//! What members say to each other, and how it is written: a kind byte, then fixed-width little-endian fields, then
//! payload to the end. One frame is one length-delimited unit of the connection.

use alloc::vec::Vec;

use bytes::{Buf, BufMut, Bytes};
use membership_types::{NodeId, ViewId};

/// How a message is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// In the order of its sender, as soon as it comes.
    Fifo,
    /// In one order for all.
    Ordered,
    /// In one order for all (the same as [`Class::Ordered`]), and only once every member holds it: the only class on
    /// which something may be promised to the outside.
    Safe,
}

impl Class {
    /// The word that events and options carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Ordered => "ordered",
            Self::Safe => "safe",
        }
    }

    /// Has it a place in the sequence?
    pub fn is_sequenced(self) -> bool {
        self != Self::Fifo
    }

    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Fifo),
            1 => Some(Self::Ordered),
            2 => Some(Self::Safe),
            _ => None,
        }
    }
}

/// A message, or a fragment of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Data {
    /// The view in which it was sent.
    pub view: ViewId,
    /// The sender's rank there.
    pub rank: u16,
    /// The fragment's number among those of its sender in this view, from 1.
    pub number: u64,
    /// The message's class.
    pub class: Class,
    /// It is the message's last fragment.
    pub last: bool,
    /// The bytes.
    pub payload: Bytes,
}

/// The next `count` sequenced messages of the member of rank `rank`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The sender's rank.
    pub rank: u16,
    /// How many of its messages, at least 1.
    pub count: u32,
}

/// The leader gives the messages of these runs the places from `first` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// The view.
    pub view: ViewId,
    /// The place of the first message, from 1.
    pub first: u64,
    /// Whose messages, in order.
    pub runs: Vec<Run>,
}

/// What a member holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The view.
    pub view: ViewId,
    /// Of each rank: all fragments up to this number.
    pub held: Vec<u64>,
    /// All messages up to this place of the sequence, and their places.
    pub seq: u64,
    /// The connection is new: whatever goes beyond this may have been lost.
    pub again: bool,
}

/// A member's contribution to the closing of its last view: the same to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sync {
    /// The view to go to.
    pub view: ViewId,
    /// The last view that the member installed; [`ViewId::NONE`] for who comes new.
    pub last: ViewId,
    /// The view that it installed before that.
    pub prev: ViewId,
    /// What it holds of each rank of `last`.
    pub held: Vec<u64>,
    /// How far it knows the sequence of `last`.
    pub seq: u64,
    /// How many messages it has multicast in all views.
    pub sent: u64,
    /// Who came along with it from `prev` to `last`.
    pub trans: Vec<NodeId>,
}

/// How a view was closed: for a member that was overtaken in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// The view that was installed ...
    pub view: ViewId,
    /// ... with these members ...
    pub members: Vec<NodeId>,
    /// ... after this one.
    pub last: ViewId,
    /// Delivered in `last`: of each of its ranks, fragments up to this number.
    pub held: Vec<u64>,
    /// How far the sequence of `last` is known.
    pub seq: u64,
    /// Who came along.
    pub trans: Vec<NodeId>,
    /// How many messages each member of `view` had multicast before it.
    pub sent: Vec<u64>,
}

/// What members of a group say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each says what its content says")]
pub enum Frame {
    Data(Data),
    Order(Order),
    Ack(Ack),
    Sync(Sync),
    Cut(Cut),
}

/// The bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It ends too early.
    #[error("the frame ends too early")]
    Short,
    /// More follows than belongs to it.
    #[error("bytes follow the frame")]
    Long,
    /// A field has a value that means nothing.
    #[error("a field of the frame has no meaning")]
    Value,
}

const DATA: u8 = 1;
const ORDER: u8 = 2;
const ACK: u8 = 3;
const SYNC: u8 = 4;
const CUT: u8 = 5;
const LAST: u8 = 0b100;
const CLASS: u8 = 0b011;

impl Frame {
    /// The view that the frame is about: for those that lead to a view, that one.
    pub fn view(&self) -> ViewId {
        match self {
            Self::Data(data) => data.view,
            Self::Order(order) => order.view,
            Self::Ack(ack) => ack.view,
            Self::Sync(sync) => sync.view,
            Self::Cut(cut) => cut.view,
        }
    }

    /// Writes all of the frame but the payload of a [`Frame::Data`], which comes right after.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(data) => {
                out.put_u8(DATA);
                out.put_u8(data.class as u8 | if data.last { LAST } else { 0 });
                out.put_u16_le(data.rank);
                out.put_u64_le(data.view.get());
                out.put_u64_le(data.number);
            }
            Self::Order(order) => {
                out.put_u8(ORDER);
                out.put_u64_le(order.view.get());
                out.put_u64_le(order.first);
                for run in &order.runs {
                    out.put_u16_le(run.rank);
                    out.put_u32_le(run.count);
                }
            }
            Self::Ack(ack) => {
                out.put_u8(ACK);
                out.put_u8(u8::from(ack.again));
                out.put_u64_le(ack.view.get());
                out.put_u64_le(ack.seq);
                put_numbers(out, &ack.held);
            }
            Self::Sync(sync) => {
                out.put_u8(SYNC);
                for field in [sync.view.get(), sync.last.get(), sync.prev.get(), sync.seq, sync.sent] {
                    out.put_u64_le(field);
                }
                put_numbers(out, &sync.held);
                put_nodes(out, &sync.trans);
            }
            Self::Cut(cut) => {
                out.put_u8(CUT);
                for field in [cut.view.get(), cut.last.get(), cut.seq] {
                    out.put_u64_le(field);
                }
                put_numbers(out, &cut.held);
                put_numbers(out, &cut.sent);
                put_nodes(out, &cut.trans);
                put_nodes(out, &cut.members);
            }
        }
    }

    /// The payload that follows the head.
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Data(data) => &data.payload,
            _ => &[],
        }
    }

    /// Writes the whole frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_head(out);
        out.extend_from_slice(self.payload());
    }

    /// Reads one frame, which is all of `bytes`. A payload is not copied.
    ///
    /// # Errors
    /// [`FrameError`]; nothing is allocated for more than the bytes that are there.
    pub fn decode(mut bytes: Bytes) -> Result<Self, FrameError> {
        let frame = match u8_of(&mut bytes)? {
            DATA => {
                let flags = u8_of(&mut bytes)?;
                if flags & !(LAST | CLASS) != 0 {
                    return Err(FrameError::Value);
                }
                let class = Class::from_bits(flags & CLASS).ok_or(FrameError::Value)?;
                let rank = u16_of(&mut bytes)?;
                let view = view_of(&mut bytes)?;
                let number = u64_of(&mut bytes)?;
                let last = flags & LAST != 0;
                return Ok(Self::Data(Data { view, rank, number, class, last, payload: bytes }));
            }
            ORDER => {
                let view = view_of(&mut bytes)?;
                let first = u64_of(&mut bytes)?;
                let mut runs = Vec::with_capacity(bytes.len() / 6);
                while bytes.has_remaining() {
                    let run = Run { rank: u16_of(&mut bytes)?, count: u32_of(&mut bytes)? };
                    if run.count == 0 {
                        return Err(FrameError::Value);
                    }
                    runs.push(run);
                }
                Self::Order(Order { view, first, runs })
            }
            ACK => {
                let again = match u8_of(&mut bytes)? {
                    0 => false,
                    1 => true,
                    _ => return Err(FrameError::Value),
                };
                let view = view_of(&mut bytes)?;
                let seq = u64_of(&mut bytes)?;
                Self::Ack(Ack { view, held: numbers_of(&mut bytes)?, seq, again })
            }
            SYNC => {
                let (view, last, prev) = (view_of(&mut bytes)?, view_of(&mut bytes)?, view_of(&mut bytes)?);
                let (seq, sent) = (u64_of(&mut bytes)?, u64_of(&mut bytes)?);
                let (held, trans) = (numbers_of(&mut bytes)?, nodes_of(&mut bytes)?);
                Self::Sync(Sync { view, last, prev, held, seq, sent, trans })
            }
            CUT => {
                let (view, last) = (view_of(&mut bytes)?, view_of(&mut bytes)?);
                let seq = u64_of(&mut bytes)?;
                let (held, sent) = (numbers_of(&mut bytes)?, numbers_of(&mut bytes)?);
                let (trans, members) = (nodes_of(&mut bytes)?, nodes_of(&mut bytes)?);
                Self::Cut(Cut { view, members, last, held, seq, trans, sent })
            }
            _ => return Err(FrameError::Value),
        };
        if bytes.has_remaining() { Err(FrameError::Long) } else { Ok(frame) }
    }
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    out.put_u16_le(u16::try_from(numbers.len()).expect("fewer than 2^16 members"));
    for number in numbers {
        out.put_u64_le(*number);
    }
}

fn put_nodes(out: &mut Vec<u8>, nodes: &[NodeId]) {
    out.put_u16_le(u16::try_from(nodes.len()).expect("fewer than 2^16 members"));
    for node in nodes {
        out.put_u32_le(node.node());
        out.put_u64_le(node.inc());
    }
}

fn nodes_of(bytes: &mut Bytes) -> Result<Vec<NodeId>, FrameError> {
    (0..u16_of(bytes)?).map(|_| Ok(NodeId::new(u32_of(bytes)?, u64_of(bytes)?))).collect()
}

fn numbers_of(bytes: &mut Bytes) -> Result<Vec<u64>, FrameError> {
    (0..u16_of(bytes)?).map(|_| u64_of(bytes)).collect()
}

fn u8_of(bytes: &mut Bytes) -> Result<u8, FrameError> {
    bytes.try_get_u8().map_err(|_| FrameError::Short)
}

fn u16_of(bytes: &mut Bytes) -> Result<u16, FrameError> {
    bytes.try_get_u16_le().map_err(|_| FrameError::Short)
}

fn u32_of(bytes: &mut Bytes) -> Result<u32, FrameError> {
    bytes.try_get_u32_le().map_err(|_| FrameError::Short)
}

fn u64_of(bytes: &mut Bytes) -> Result<u64, FrameError> {
    bytes.try_get_u64_le().map_err(|_| FrameError::Short)
}

fn view_of(bytes: &mut Bytes) -> Result<ViewId, FrameError> {
    let id = u64_of(bytes)?;
    if id < ViewId::BOUND { Ok(ViewId::new(id)) } else { Err(FrameError::Value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn frames() -> Vec<Frame> {
        let view = ViewId::new(77);
        let data = |class, last, payload: &'static [u8]| {
            Frame::Data(Data { view, rank: 2, number: 9, class, last, payload: Bytes::from_static(payload) })
        };
        let runs = vec![Run { rank: 0, count: 3 }, Run { rank: 4, count: 1 }];
        let trans = vec![NodeId::new(1, 5), NodeId::new(2, 6)];
        vec![
            data(Class::Fifo, true, b"hello"),
            data(Class::Safe, false, b""),
            Frame::Order(Order { view, first: 4, runs }),
            Frame::Ack(Ack { view, held: vec![1, 2, 3], seq: 5, again: true }),
            Frame::Sync(Sync {
                view,
                last: ViewId::NONE,
                prev: view,
                held: vec![],
                seq: 0,
                sent: 8,
                trans: trans.clone(),
            }),
            Frame::Cut(Cut {
                view,
                members: trans.clone(),
                last: view,
                held: vec![7, 8],
                seq: 9,
                trans,
                sent: vec![1],
            }),
        ]
    }

    fn bytes(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn what_is_written_is_read() {
        for frame in frames() {
            assert_eq!(Frame::decode(Bytes::from(bytes(&frame))), Ok(frame));
        }
    }

    #[test]
    fn pieces_of_frames_are_no_frames() {
        for frame in frames().iter().filter(|f| f.payload().is_empty()) {
            let whole = bytes(frame);
            for end in 0..whole.len() {
                match Frame::decode(Bytes::copy_from_slice(&whole[..end])) {
                    // An order has no length of its own: whole runs fewer make an order.
                    Ok(Frame::Order(shorter)) => {
                        assert!((whole.len() - end).is_multiple_of(6), "{shorter:?}")
                    }
                    Ok(other) => panic!("{other:?} from {end} bytes of {frame:?}"),
                    Err(_) => {}
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(frame) = Frame::decode(Bytes::from(noise.clone())) {
                proptest::prop_assert_eq!(bytes(&frame), noise);
            }
        }
    }
}
