//! What members say to each other, and how it is written: a kind byte, then fixed-width little-endian fields, then
//! payload to the end. One frame is one length-delimited unit of the connection.

use alloc::{boxed::Box, vec::Vec};

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
    /// Has it the group's state?
    pub standing: Standing,
    /// What it holds of each rank of `last`.
    pub held: Vec<u64>,
    /// How far it knows the sequence of `last`.
    pub seq: u64,
    /// How many messages it has multicast in all views.
    pub sent: u64,
    /// Who came along with it from `prev` to `last`.
    pub trans: Vec<NodeId>,
}

/// What members of a large view said, passed on by the first one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    /// The view that all of it is about.
    pub view: ViewId,
    /// To these, of older builds, everybody says its own.
    pub direct: Vec<NodeId>,
    /// Who said what.
    pub words: Vec<(NodeId, Sync)>,
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
    /// Who has the group's state.
    pub holders: Vec<NodeId>,
}

/// What a member has of the group's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It keeps none.
    None,
    /// What its application holds is the group's state.
    Whole,
    /// It waits for it.
    Lacking,
}

/// What members say about the group's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transfer {
    /// Give me the state.
    Ask {
        /// Which of the asker's requests.
        id: u64,
        /// The asker has all messages since it installed this view.
        base: ViewId,
        /// Chunks before this one have come already.
        from: u64,
    },
    /// The state that follows is as of after these messages.
    Label {
        /// Which request.
        id: u64,
        /// The giver's view.
        view: ViewId,
        /// How many messages of each of its ranks are reflected.
        taken: Vec<u64>,
    },
    /// A part of the state.
    Chunk {
        /// Which request.
        id: u64,
        /// Which part, from 1.
        number: u64,
        /// It is the last one.
        last: bool,
        /// The bytes.
        payload: Bytes,
    },
    /// All chunks up to this one have come.
    Got {
        /// Which request.
        id: u64,
        /// The last one.
        number: u64,
    },
    /// I have no state to give.
    Refuse {
        /// Which request.
        id: u64,
    },
    /// I have the state.
    Have {
        /// In this view.
        view: ViewId,
    },
    /// The leader of this view wants to go on without the state: has anybody got it?
    Lost {
        /// The view.
        view: ViewId,
    },
    /// I have not, and take it from nobody else in this view.
    Pledge {
        /// The view.
        view: ViewId,
    },
    /// The request has come, and the application is at work on it: nothing to be sent is there yet.
    Making {
        /// Which request.
        id: u64,
    },
    /// What I am told waits for the state, which is on its way; nothing more fits. To those who wait for me.
    Waiting {
        /// In this view.
        view: ViewId,
    },
}

/// What members of a group say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each says what its content says")]
pub enum Frame {
    Data(Data),
    Order(Order),
    Ack(Ack),
    Sync(Box<Sync>),
    Cut(Box<Cut>),
    Transfer(Transfer),
    Said(Box<Said>),
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
    /// A newer build says something here that may be left out.
    #[error("a frame of a kind that only newer builds know")]
    Unknown,
}

/// Kinds from this one on may be skipped by who does not know them. Others are sent only to who does.
pub const OPTIONAL: u8 = 128;

const DATA: u8 = 1;
const ORDER: u8 = 2;
const ACK: u8 = 3;
const SYNC: u8 = 4;
const CUT: u8 = 5;
const ASK: u8 = 6;
const LABEL: u8 = 7;
const CHUNK: u8 = 8;
const GOT: u8 = 9;
const REFUSE: u8 = 10;
const HAVE: u8 = 11;
const LOST: u8 = 12;
const PLEDGE: u8 = 13;
/// From here on what who does not know it does without.
const MAKING: u8 = OPTIONAL;
const WAITING: u8 = OPTIONAL + 1;
const SAID: u8 = OPTIONAL + 2;
const NEWER: u8 = OPTIONAL + 3;
/// More bytes of words than that are in no frame, unless one word alone has them.
const LARGEST: usize = 4 << 20;
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
            Self::Said(said) => said.view,
            Self::Transfer(
                Transfer::Label { view, .. }
                | Transfer::Have { view }
                | Transfer::Lost { view }
                | Transfer::Pledge { view }
                | Transfer::Waiting { view },
            ) => *view,
            Self::Transfer(Transfer::Ask { base, .. }) => *base,
            Self::Transfer(_) => ViewId::NONE,
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
                put_sync(out, sync);
            }
            Self::Said(said) => {
                put_view(out, SAID, said.view);
                put_nodes(out, &said.direct);
                let mut before: Option<&Sync> = None;
                for (member, sync) in &said.words {
                    put_node(out, *member);
                    let same_held = before.is_some_and(|b| b.held == sync.held);
                    let same_trans = before.is_some_and(|b| b.trans == sync.trans);
                    out.put_u8(u8::from(same_held) | u8::from(same_trans) << 1);
                    put_sync_fields(out, sync);
                    if !same_held {
                        put_numbers(out, &sync.held);
                    }
                    if !same_trans {
                        put_nodes(out, &sync.trans);
                    }
                    before = Some(sync);
                }
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
                put_nodes(out, &cut.holders);
            }
            Self::Transfer(transfer) => encode_transfer(transfer, out),
        }
    }

    /// The payload that follows the head.
    pub fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Data(data) => Some(&data.payload),
            Self::Transfer(Transfer::Chunk { payload, .. }) => Some(payload),
            _ => None,
        }
    }

    /// Writes the whole frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_head(out);
        out.extend_from_slice(self.payload().map_or(&[], |payload| payload));
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
            SYNC => Self::Sync(Box::new(sync_of(&mut bytes)?)),
            SAID => {
                let (view, direct) = (view_of(&mut bytes)?, nodes_of(&mut bytes)?);
                let words = words_of(&mut bytes, view)?;
                Self::Said(Box::new(Said { view, direct, words }))
            }
            CUT => {
                let (view, last) = (view_of(&mut bytes)?, view_of(&mut bytes)?);
                let seq = u64_of(&mut bytes)?;
                let (held, sent) = (numbers_of(&mut bytes)?, numbers_of(&mut bytes)?);
                let (trans, members) = (nodes_of(&mut bytes)?, nodes_of(&mut bytes)?);
                let holders = nodes_of(&mut bytes)?;
                Self::Cut(Box::new(Cut { view, members, last, held, seq, trans, sent, holders }))
            }
            ASK => {
                let (id, base, from) = (u64_of(&mut bytes)?, view_of(&mut bytes)?, number_of(&mut bytes)?);
                Self::Transfer(Transfer::Ask { id, base, from })
            }
            LABEL => {
                let (id, view) = (u64_of(&mut bytes)?, view_of(&mut bytes)?);
                Self::Transfer(Transfer::Label { id, view, taken: numbers_of(&mut bytes)? })
            }
            CHUNK => {
                let last = match u8_of(&mut bytes)? {
                    0 => false,
                    1 => true,
                    _ => return Err(FrameError::Value),
                };
                let (id, number) = (u64_of(&mut bytes)?, number_of(&mut bytes)?);
                return Ok(Self::Transfer(Transfer::Chunk { id, number, last, payload: bytes }));
            }
            GOT => Self::Transfer(Transfer::Got { id: u64_of(&mut bytes)?, number: number_of(&mut bytes)? }),
            REFUSE => Self::Transfer(Transfer::Refuse { id: u64_of(&mut bytes)? }),
            HAVE => Self::Transfer(Transfer::Have { view: view_of(&mut bytes)? }),
            LOST => Self::Transfer(Transfer::Lost { view: view_of(&mut bytes)? }),
            PLEDGE => Self::Transfer(Transfer::Pledge { view: view_of(&mut bytes)? }),
            MAKING => Self::Transfer(Transfer::Making { id: u64_of(&mut bytes)? }),
            WAITING => Self::Transfer(Transfer::Waiting { view: view_of(&mut bytes)? }),
            NEWER.. => return Err(FrameError::Unknown),
            _ => return Err(FrameError::Value),
        };
        if bytes.has_remaining() { Err(FrameError::Long) } else { Ok(frame) }
    }
}

fn encode_transfer(transfer: &Transfer, out: &mut Vec<u8>) {
    match transfer {
        Transfer::Ask { id, base, from } => {
            out.put_u8(ASK);
            out.put_u64_le(*id);
            out.put_u64_le(base.get());
            out.put_u64_le(*from);
        }
        Transfer::Label { id, view, taken } => {
            out.put_u8(LABEL);
            out.put_u64_le(*id);
            out.put_u64_le(view.get());
            put_numbers(out, taken);
        }
        Transfer::Chunk { id, number, last, .. } => {
            out.put_u8(CHUNK);
            out.put_u8(u8::from(*last));
            out.put_u64_le(*id);
            out.put_u64_le(*number);
        }
        Transfer::Got { id, number } => {
            out.put_u8(GOT);
            out.put_u64_le(*id);
            out.put_u64_le(*number);
        }
        Transfer::Refuse { id } => {
            out.put_u8(REFUSE);
            out.put_u64_le(*id);
        }
        Transfer::Have { view } => put_view(out, HAVE, *view),
        Transfer::Lost { view } => put_view(out, LOST, *view),
        Transfer::Pledge { view } => put_view(out, PLEDGE, *view),
        Transfer::Making { id } => {
            out.put_u8(MAKING);
            out.put_u64_le(*id);
        }
        Transfer::Waiting { view } => put_view(out, WAITING, *view),
    }
}

fn put_view(out: &mut Vec<u8>, kind: u8, view: ViewId) {
    out.put_u8(kind);
    out.put_u64_le(view.get());
}

fn put_sync(out: &mut Vec<u8>, sync: &Sync) {
    put_sync_fields(out, sync);
    put_numbers(out, &sync.held);
    put_nodes(out, &sync.trans);
}

fn put_sync_fields(out: &mut Vec<u8>, sync: &Sync) {
    out.put_u8(sync.standing as u8);
    for field in [sync.view.get(), sync.last.get(), sync.prev.get(), sync.seq, sync.sent] {
        out.put_u64_le(field);
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
        put_node(out, *node);
    }
}

fn put_node(out: &mut Vec<u8>, node: NodeId) {
    out.put_u32_le(node.node());
    out.put_u64_le(node.inc());
}

fn sync_of(bytes: &mut Bytes) -> Result<Sync, FrameError> {
    let sync = sync_fields_of(bytes)?;
    Ok(Sync { held: numbers_of(bytes)?, trans: nodes_of(bytes)?, ..sync })
}

/// All but the lists.
fn sync_fields_of(bytes: &mut Bytes) -> Result<Sync, FrameError> {
    let standing = match u8_of(bytes)? {
        0 => Standing::None,
        1 => Standing::Whole,
        2 => Standing::Lacking,
        _ => return Err(FrameError::Value),
    };
    let (view, last, prev) = (view_of(bytes)?, view_of(bytes)?, view_of(bytes)?);
    let (seq, sent) = (u64_of(bytes)?, u64_of(bytes)?);
    Ok(Sync { view, last, prev, standing, held: Vec::new(), seq, sent, trans: Vec::new() })
}

/// Words to the end. A list that is the same as that of the word before is not written, so a few bytes may stand for much: there is a
/// limit to it.
fn words_of(bytes: &mut Bytes, view: ViewId) -> Result<Vec<(NodeId, Sync)>, FrameError> {
    let (mut words, mut size): (Vec<(NodeId, Sync)>, usize) = (Vec::new(), 0);
    while bytes.has_remaining() {
        let (member, same) = (node_of(bytes)?, u8_of(bytes)?);
        let mut sync = sync_fields_of(bytes)?;
        let before = words.last().map(|(_, sync)| sync);
        let as_before = |bit: u8| (same & bit != 0).then(|| before.ok_or(FrameError::Value)).transpose();
        (sync.held, sync.trans) = match (as_before(1)?, as_before(2)?) {
            (None, None) => (numbers_of(bytes)?, nodes_of(bytes)?),
            (Some(b), None) => (b.held.clone(), nodes_of(bytes)?),
            (None, Some(b)) => (numbers_of(bytes)?, b.trans.clone()),
            (Some(h), Some(t)) => (h.held.clone(), t.trans.clone()),
        };
        // There is one way to write it.
        let is_same = |f: &dyn Fn(&Sync, &Sync) -> bool| before.is_some_and(|b| f(b, &sync));
        let flags =
            u8::from(is_same(&|a, b| a.held == b.held)) | u8::from(is_same(&|a, b| a.trans == b.trans)) << 1;
        size += size_of_word(&sync);
        if sync.view != view || same != flags || size > LARGEST && !words.is_empty() {
            return Err(FrameError::Value);
        }
        words.push((member, sync));
    }
    Ok(words)
}

/// About how many bytes a word has in memory.
pub(crate) fn size_of_word(sync: &Sync) -> usize {
    64 + 8 * sync.held.len() + 16 * sync.trans.len()
}

fn nodes_of(bytes: &mut Bytes) -> Result<Vec<NodeId>, FrameError> {
    (0..u16_of(bytes)?).map(|_| node_of(bytes)).collect()
}

/// An incarnation beyond the bound is no other name of a node within it.
fn node_of(bytes: &mut Bytes) -> Result<NodeId, FrameError> {
    let (node, inc) = (u32_of(bytes)?, u64_of(bytes)?);
    if inc < NodeId::INC_BOUND { Ok(NodeId::new(node, inc)) } else { Err(FrameError::Value) }
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

/// Counts of what comes one after the other begin at 1 and end far below the bound.
fn number_of(bytes: &mut Bytes) -> Result<u64, FrameError> {
    let number = u64_of(bytes)?;
    if (1..1 << 53).contains(&number) { Ok(number) } else { Err(FrameError::Value) }
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
        let sync = Sync {
            view,
            last: ViewId::NONE,
            prev: view,
            standing: Standing::Lacking,
            held: vec![],
            seq: 0,
            sent: 8,
            trans: trans.clone(),
        };
        let other = |held: Vec<u64>, trans| Sync { held, trans, ..sync.clone() };
        let words = [sync.clone(), sync.clone(), other(vec![3], vec![]), other(vec![3], trans.clone())];
        let words = (1..).map(|n| NodeId::new(n, 5)).zip(words).collect();
        vec![
            data(Class::Fifo, true, b"hello"),
            data(Class::Safe, false, b""),
            Frame::Order(Order { view, first: 4, runs }),
            Frame::Ack(Ack { view, held: vec![1, 2, 3], seq: 5, again: true }),
            Frame::Sync(Box::new(sync)),
            Frame::Said(Box::new(Said { view, direct: vec![NodeId::new(3, 7)], words })),
            Frame::Cut(Box::new(Cut {
                view,
                members: trans.clone(),
                last: view,
                held: vec![7, 8],
                seq: 9,
                trans,
                sent: vec![1],
                holders: vec![NodeId::new(1, 5)],
            })),
            Frame::Transfer(Transfer::Ask { id: 1, base: view, from: 2 }),
            Frame::Transfer(Transfer::Label { id: 1, view, taken: vec![3, 4] }),
            Frame::Transfer(Transfer::Chunk {
                id: 1,
                number: 2,
                last: true,
                payload: Bytes::from_static(b"s"),
            }),
            Frame::Transfer(Transfer::Got { id: 1, number: 2 }),
            Frame::Transfer(Transfer::Refuse { id: 1 }),
            Frame::Transfer(Transfer::Have { view }),
            Frame::Transfer(Transfer::Lost { view }),
            Frame::Transfer(Transfer::Pledge { view }),
            Frame::Transfer(Transfer::Making { id: 1 }),
            Frame::Transfer(Transfer::Waiting { view }),
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
        for frame in frames().iter().filter(|f| f.payload().is_none()) {
            let whole = bytes(frame);
            for end in 0..whole.len() {
                match Frame::decode(Bytes::copy_from_slice(&whole[..end])) {
                    // What has no length of its own: whole runs, or words, fewer make one, too.
                    Ok(Frame::Order(shorter)) => {
                        assert!((whole.len() - end).is_multiple_of(6), "{shorter:?}")
                    }
                    Ok(Frame::Said(shorter)) => {
                        assert!(bytes(&Frame::Said(shorter)) == whole[..end], "of {frame:?}")
                    }
                    Ok(other) => panic!("{other:?} from {end} bytes of {frame:?}"),
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn a_node_has_one_name_only() {
        let (view, inc) = (ViewId::new(1), NodeId::INC_BOUND - 1);
        let (held, trans) = (vec![], vec![NodeId::new(3, inc)]);
        let standing = Standing::Whole;
        let frame =
            Frame::Sync(Sync { view, last: view, prev: view, standing, held, seq: 0, sent: 0, trans }.into());
        let mut bytes = bytes(&frame);
        assert_eq!(Frame::decode(Bytes::from(bytes.clone())), Ok(frame));
        let at = bytes.len() - 8;
        bytes[at..].copy_from_slice(&(inc + 1).to_le_bytes());
        assert_eq!(Frame::decode(Bytes::from(bytes)), Err(FrameError::Value));
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
