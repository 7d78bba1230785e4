//! The connections of the bulk thread: one with each node with which we share a group.
//!
//! The node with the smaller id makes it. Units on it: a length of four bytes, a kind, the number by which the sender knows
//! the group, then what the kind says. Numbers are least significant byte first. A number is declared, with the group's name
//! and lineage, before it is used. Payloads are not copied but into the buffer of a connection, and large ones not even there,
//! unless they are sealed. What waits is sealed when it can be written, many units to a record. Parts of a state go when nothing
//! else waits: they may be many, and views close and messages are acknowledged meanwhile.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{self, IoSlice},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use membership_multicast::{Frame, FrameError, OPTIONAL, Transfer};
use membership_types::{GroupName, Lineage, NodeId};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{net::TcpStream, sync::Notify};

use crate::{
    session::{Scratch, Session},
    wire::MAX_FRAME,
};

/// Payloads up to this size are copied, so that many of them go out together.
const COPIED: usize = 4096;
/// How many pieces go out in one write.
const PIECES: usize = 64;
/// About how many bytes are sealed at a time: four records.
const BATCH: usize = 4 * 65519;
/// A connection for which more than this waits is broken off: whoever is behind learns what it missed on the next one.
pub(super) const WAITING: usize = 256 << 20;
/// How many groups a peer may have declared at a time.
const DECLARED: usize = 1 << 20;

/// Two nodes that connect with each other at the same time do so within this.
const A_MOMENT: Duration = Duration::from_secs(3);

const DECLARE: u8 = 1;
const RETIRE: u8 = 2;
const FRAME: u8 = 3;
/// Bytes of a unit's length; of its kind and number.
const LENGTH: usize = 4;
const HEAD: usize = 5;

/// What came in makes no sense, or is too much.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Nonsense {
    #[error("a unit of {0} bytes exceeds the limit of {MAX_FRAME} bytes, or is too short to be one")]
    Size(usize),
    #[error("a unit has the unknown kind {0}")]
    Kind(u8),
    #[error("a group is declared in a way that means nothing")]
    Declaration,
    #[error("a frame of a group that was not declared")]
    Undeclared,
    #[error("more than {DECLARED} groups are declared")]
    TooMany,
    #[error("a frame does not decode: {0}")]
    Frame(FrameError),
}

/// What is in a unit.
pub(crate) enum Unit {
    Declare(u32, GroupName, Lineage),
    Retire(u32),
    Frame(u32, Frame),
    /// Something that only newer builds know, and that may be left out.
    Unknown,
}

/// Takes the next unit from what came in, once all of it is here.
pub(crate) fn next_unit(buffer: &mut BytesMut) -> Result<Option<Unit>, Nonsense> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else { return Ok(None) };
    let size = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if !(HEAD..=MAX_FRAME).contains(&size) {
        return Err(Nonsense::Size(size));
    }
    if buffer.len() < LENGTH + size {
        return Ok(None);
    }
    buffer.advance(LENGTH);
    let mut unit = buffer.split_to(size).freeze();
    let (kind, number) = (unit.get_u8(), unit.get_u32_le());
    match kind {
        FRAME => match Frame::decode(unit) {
            Ok(frame) => Ok(Some(Unit::Frame(number, frame))),
            Err(FrameError::Unknown) => Ok(Some(Unit::Unknown)),
            Err(error) => Err(Nonsense::Frame(error)),
        },
        RETIRE if unit.is_empty() => Ok(Some(Unit::Retire(number))),
        DECLARE if unit.len() > 16 => {
            let lineage = Lineage::from((unit.get_u64_le(), unit.get_u64_le()));
            let name = std::str::from_utf8(&unit).ok().and_then(|name| GroupName::new(name).ok());
            Ok(Some(Unit::Declare(number, name.ok_or(Nonsense::Declaration)?, lineage)))
        }
        DECLARE | RETIRE => Err(Nonsense::Declaration),
        OPTIONAL.. => Ok(Some(Unit::Unknown)),
        other => Err(Nonsense::Kind(other)),
    }
}

/// What waits to be written.
#[derive(Default)]
struct Outbox {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// Units that go when nothing else waits: what comes before the payload, and the payload.
    later: VecDeque<(Bytes, Bytes)>,
    /// Records that the connection did not take whole.
    sealed: BytesMut,
}

impl Outbox {
    fn post(&mut self, kind: u8, number: u32, head: &[u8], payload: &Bytes) {
        let size = HEAD + head.len() + payload.len();
        self.tail.put_u32_le(u32::try_from(size).expect("units are far smaller"));
        self.tail.put_u8(kind);
        self.tail.put_u32_le(number);
        self.tail.put_slice(head);
        if payload.len() <= COPIED {
            self.tail.put_slice(payload);
        } else {
            self.pieces.push_back(self.tail.split().freeze());
            self.pieces.push_back(payload.clone());
        }
        self.bytes += LENGTH + size;
    }

    /// As [`post`](Outbox::post), for what others may overtake.
    fn post_later(&mut self, kind: u8, number: u32, head: &[u8], payload: &Bytes) {
        let size = HEAD + head.len() + payload.len();
        let mut before = BytesMut::with_capacity(LENGTH + HEAD + head.len());
        before.put_u32_le(u32::try_from(size).expect("units are far smaller"));
        before.put_u8(kind);
        before.put_u32_le(number);
        before.put_slice(head);
        self.later.push_back((before.freeze(), payload.clone()));
        self.bytes += LENGTH + size;
    }

    /// What is to be written next stands in `pieces`. False if that is nothing.
    fn gather(&mut self) -> bool {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        let mut bytes = 0;
        while self.pieces.len() < PIECES && bytes < BATCH && (bytes > 0 || self.pieces.is_empty()) {
            let Some((before, payload)) = self.later.pop_front() else { break };
            bytes += before.len() + payload.len();
            self.pieces.extend([before, payload].into_iter().filter(|piece| !piece.is_empty()));
        }
        !self.pieces.is_empty()
    }

    /// Writes what the connection takes. True if nothing waits any more.
    fn write(
        &mut self,
        stream: &TcpStream,
        session: &mut Session,
        scratch: &mut Scratch,
    ) -> io::Result<bool> {
        loop {
            if !self.gather() && self.sealed.is_empty() {
                return Ok(true);
            }
            let written = match session.is_open() {
                true => self.write_open(stream)?,
                false => self.write_sealed(stream, session, scratch)?,
            };
            if !written {
                return Ok(false);
            }
        }
    }

    fn write_sealed(
        &mut self,
        stream: &TcpStream,
        session: &mut Session,
        scratch: &mut Scratch,
    ) -> io::Result<bool> {
        while !self.sealed.is_empty() {
            match stream.try_write(&self.sealed) {
                Ok(written) => self.sealed.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        while !self.pieces.is_empty() {
            scratch.clear();
            while scratch.bytes().len() < BATCH
                && let Some(piece) = self.pieces.front_mut()
            {
                let part = piece.split_to(piece.len().min(BATCH));
                if piece.is_empty() {
                    self.pieces.pop_front();
                }
                self.bytes -= part.len();
                session.seal(&part, scratch);
            }
            let mut rest = scratch.bytes();
            while !rest.is_empty() {
                match stream.try_write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.sealed = BytesMut::from(rest);
                        return Ok(false);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }

    fn write_open(&mut self, stream: &TcpStream) -> io::Result<bool> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            match stream.try_write_vectored(&slices[..count]) {
                Ok(mut written) => {
                    self.bytes -= written;
                    while written > 0 {
                        let Some(first) = self.pieces.front_mut() else { break };
                        if first.len() > written {
                            first.advance(written);
                            break;
                        }
                        written -= first.len();
                        self.pieces.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A connection with a node.
pub(crate) struct Link {
    /// Tells it from an earlier one with the same node.
    pub(crate) epoch: u64,
    /// When this node made it, if the peer has not.
    made: Option<Instant>,
    stream: Rc<TcpStream>,
    outbox: Outbox,
    /// How bytes travel.
    pub(crate) session: Session,
    /// What came out of records and is no whole unit yet.
    pub(crate) plain: BytesMut,
    /// The writing task waits for the connection.
    blocked: bool,
    wake: Rc<Notify>,
    /// The connection ends: tasks on it stop.
    pub(crate) ended: Rc<Notify>,
    /// Numbers that the peer knows from us, and in which lineage.
    declared: HashMap<u32, Lineage>,
    /// What the peer's numbers mean.
    pub(crate) heard: HashMap<u32, (GroupName, Lineage)>,
    /// Something was posted since the last write.
    dirty: bool,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Links {
    links: BTreeMap<NodeId, Link>,
    /// Shows how many there are.
    count: Gauge,
    epochs: u64,
    dirty: Vec<NodeId>,
    head: Vec<u8>,
    /// Where records are made, of all connections.
    scratch: Scratch,
}

impl Links {
    pub(crate) fn new(count: Gauge) -> Self {
        Self { count, ..Self::default() }
    }

    /// A new connection replaces the one before. `by_us`: this node made it.
    pub(crate) fn insert(
        &mut self,
        peer: NodeId,
        stream: Rc<TcpStream>,
        session: Session,
        by_us: bool,
    ) -> &Link {
        self.remove(peer);
        self.epochs += 1;
        let link = Link {
            epoch: self.epochs,
            made: by_us.then(Instant::now),
            stream,
            outbox: Outbox::default(),
            session,
            plain: BytesMut::new(),
            blocked: false,
            wake: Rc::default(),
            ended: Rc::default(),
            declared: HashMap::new(),
            heard: HashMap::new(),
            dirty: false,
        };
        self.count.inc();
        self.links.entry(peer).or_insert(link)
    }

    /// The connection ends.
    pub(crate) fn remove(&mut self, peer: NodeId) {
        if let Some(link) = self.links.remove(&peer) {
            self.count.dec();
            link.ended.notify_waiters();
            link.wake.notify_one();
        }
    }

    pub(crate) fn clear(&mut self) {
        for peer in self.peers() {
            self.remove(peer);
        }
    }

    pub(crate) fn peers(&self) -> Vec<NodeId> {
        self.links.keys().copied().collect()
    }

    pub(crate) fn has(&self, peer: NodeId) -> bool {
        self.links.contains_key(&peer)
    }

    /// Did this node make the connection?
    pub(crate) fn is_ours(&self, peer: NodeId) -> bool {
        self.links.get(&peer).is_some_and(|link| link.made.is_some())
    }

    /// Did this node make the connection a moment ago?
    pub(crate) fn was_just_made(&self, peer: NodeId) -> bool {
        self.links.get(&peer).and_then(|link| link.made).is_some_and(|at| at.elapsed() < A_MOMENT)
    }

    /// The connection, if it is still the one of this epoch.
    pub(crate) fn get(&mut self, peer: NodeId, epoch: u64) -> Option<&mut Link> {
        self.links.get_mut(&peer).filter(|link| link.epoch == epoch)
    }

    /// Notes what a peer's number means.
    pub(crate) fn declare(
        &mut self,
        peer: NodeId,
        number: u32,
        group: GroupName,
        lineage: Lineage,
    ) -> Result<(), Nonsense> {
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        link.heard.insert(number, (group, lineage));
        if link.heard.len() > DECLARED { Err(Nonsense::TooMany) } else { Ok(()) }
    }

    /// Queues a frame of a group for all of these nodes with which there is a connection. Whoever has none, which goes to `absent`,
    /// is told again once there is one.
    pub(crate) fn post(
        &mut self,
        (number, group, lineage): (u32, &GroupName, Lineage),
        to: impl IntoIterator<Item = NodeId>,
        frame: &Frame,
        mut absent: impl FnMut(NodeId),
    ) {
        self.head.clear();
        frame.encode_head(&mut self.head);
        let (none, payload) = (Bytes::new(), frame.payload());
        let payload = payload.unwrap_or(&none);
        for peer in to {
            let Some(link) = self.links.get_mut(&peer) else {
                absent(peer);
                continue;
            };
            if link.declared.insert(number, lineage) != Some(lineage) {
                let mut declaration = Vec::with_capacity(16 + group.as_str().len());
                let (founded_s, random) = lineage.into();
                declaration.put_u64_le(founded_s);
                declaration.put_u64_le(random);
                declaration.put_slice(group.as_str().as_bytes());
                link.outbox.post(DECLARE, number, &declaration, &Bytes::new());
            }
            if matches!(frame, Frame::Transfer(Transfer::Chunk { .. })) {
                link.outbox.post_later(FRAME, number, &self.head, payload);
            } else {
                link.outbox.post(FRAME, number, &self.head, payload);
            }
            if !std::mem::replace(&mut link.dirty, true) {
                self.dirty.push(peer);
            }
        }
    }

    /// A number means nothing any more.
    pub(crate) fn retire(&mut self, number: u32) {
        for (peer, link) in &mut self.links {
            if link.declared.remove(&number).is_some() {
                // Not before what was said under this number.
                link.outbox.post_later(RETIRE, number, &[], &Bytes::new());
                if !std::mem::replace(&mut link.dirty, true) {
                    self.dirty.push(*peer);
                }
            }
        }
    }

    /// Writes what was posted. Gives the nodes whose connection broke.
    pub(crate) fn write_all(&mut self) -> Vec<(NodeId, io::Error)> {
        let mut broken = Vec::new();
        for peer in std::mem::take(&mut self.dirty) {
            let Some(link) = self.links.get_mut(&peer) else { continue };
            link.dirty = false;
            if link.outbox.bytes > WAITING {
                broken.push((peer, io::Error::other("too much waits for it")));
            } else if !link.blocked {
                match link.outbox.write(&link.stream, &mut link.session, &mut self.scratch) {
                    Ok(true) => {}
                    Ok(false) => {
                        link.blocked = true;
                        link.wake.notify_one();
                    }
                    Err(error) => broken.push((peer, error)),
                }
            }
        }
        broken
    }

    /// The connection takes bytes again. `Ok(true)` if nothing waits any more.
    pub(crate) fn write(&mut self, peer: NodeId, epoch: u64) -> io::Result<bool> {
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.epoch == epoch) else {
            return Ok(true);
        };
        let done = link.outbox.write(&link.stream, &mut link.session, &mut self.scratch)?;
        link.blocked = !done;
        Ok(done)
    }

    /// How many bytes wait for the connection for which most wait.
    pub(crate) fn most_waiting(&self) -> usize {
        self.links.values().map(|link| link.outbox.bytes + link.outbox.sealed.len()).max().unwrap_or(0)
    }

    /// Does nothing wait to be written?
    pub(crate) fn is_written(&self) -> bool {
        self.links.values().all(|link| link.outbox.bytes == 0 && link.outbox.sealed.is_empty())
    }

    /// What wakes the writing task of a connection.
    pub(crate) fn wake_of(&mut self, peer: NodeId, epoch: u64) -> Option<Rc<Notify>> {
        self.get(peer, epoch).map(|link| Rc::clone(&link.wake))
    }
}

#[cfg(test)]
mod tests {
    use membership_multicast::{Ack, Class, Data};
    use membership_types::ViewId;

    use super::*;

    fn data(payload: &[u8]) -> Frame {
        let payload = Bytes::copy_from_slice(payload);
        Frame::Data(Data {
            view: ViewId::new(9),
            rank: 1,
            number: 2,
            class: Class::Safe,
            last: true,
            payload,
        })
    }

    fn written(outbox: &mut Outbox) -> BytesMut {
        let mut written = BytesMut::new();
        while outbox.gather() {
            written.extend(outbox.pieces.drain(..).flatten());
        }
        written
    }

    fn post(outbox: &mut Outbox, frame: &Frame) {
        let mut head = Vec::new();
        frame.encode_head(&mut head);
        outbox.post(FRAME, 7, &head, frame.payload().unwrap_or(&Bytes::new()));
    }

    #[test]
    fn units_come_out_as_they_went_in_however_they_are_cut() {
        let ack = Frame::Ack(Ack { view: ViewId::new(9), held: vec![1, 2], seq: 3, again: false });
        let frames = [data(b"small"), data(&[5; 3 * COPIED]), ack, data(b"")];
        let mut outbox = Outbox::default();
        for frame in &frames {
            post(&mut outbox, frame);
        }
        let bytes = outbox.bytes;
        let all = written(&mut outbox);
        assert_eq!(all.len(), bytes);
        for cut in (0..all.len()).step_by(97) {
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            for part in [&all[..cut], &all[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(unit) = next_unit(&mut buffer).expect("makes sense") {
                    let Unit::Frame(7, frame) = unit else { panic!("another unit") };
                    got.push(frame);
                }
            }
            assert_eq!(got, frames, "{cut}");
        }
    }

    #[test]
    fn parts_of_a_state_wait_for_all_else_and_come_in_order() {
        let ack = || Frame::Ack(Ack { view: ViewId::new(9), held: vec![1, 2], seq: 3, again: false });
        let chunk = |number| {
            let payload = Bytes::from(vec![number as u8; 60_000]);
            Frame::Transfer(Transfer::Chunk { id: 1, number, last: number == 20, payload })
        };
        let mut outbox = Outbox::default();
        for number in 1..=20 {
            let (mut head, chunk) = (Vec::new(), chunk(number));
            chunk.encode_head(&mut head);
            outbox.post_later(FRAME, 7, &head, chunk.payload().expect("it has one"));
        }
        outbox.post_later(RETIRE, 7, &[], &Bytes::new());
        assert!(outbox.gather());
        // Some are on their way, and now there is something else.
        let mut all: BytesMut = outbox.pieces.drain(..).flatten().collect();
        post(&mut outbox, &ack());
        all.extend(written(&mut outbox));
        assert_eq!(all.len(), outbox.bytes);
        let (mut next, mut at) = (1, 0);
        while let Some(unit) = next_unit(&mut all).expect("makes sense") {
            match unit {
                Unit::Frame(7, frame) if frame == chunk(next) => next += 1,
                Unit::Frame(7, frame) if frame == ack() => at = next,
                Unit::Retire(7) => assert_eq!(next, 21, "after all"),
                _ => panic!("another unit"),
            }
        }
        assert!((2..8).contains(&at) && next == 21, "an acknowledgement before part {at} of {next}");
    }

    #[test]
    fn what_only_newer_builds_know_is_skipped_and_what_follows_is_read() {
        let unit = |kind: u8, rest: &[u8]| {
            let size = u32::try_from(HEAD + rest.len()).expect("small").to_le_bytes();
            [&size[..], &[kind], &7_u32.to_le_bytes(), rest].concat()
        };
        let mut outbox = Outbox::default();
        post(&mut outbox, &data(b"known"));
        let all =
            [unit(200, b"a unit"), unit(FRAME, &[u8::MAX, 1, 2]), written(&mut outbox).to_vec()].concat();
        let mut buffer = BytesMut::from(&all[..]);
        for _ in 0..2 {
            assert!(matches!(next_unit(&mut buffer), Ok(Some(Unit::Unknown))));
        }
        assert!(matches!(next_unit(&mut buffer), Ok(Some(Unit::Frame(7, frame))) if frame == data(b"known")));
        for wrong in [unit(OPTIONAL - 1, b""), unit(FRAME, &[OPTIONAL - 1])] {
            assert!(next_unit(&mut BytesMut::from(&wrong[..])).is_err());
        }
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        let mut rng = membership_types::Rng::seeded(1);
        for _ in 0..5000 {
            let mut bytes: Vec<u8> = (0..rng.below(64)).map(|_| rng.next_u64() as u8).collect();
            if bytes.len() > LENGTH && rng.chance(900) {
                let size = u32::try_from(bytes.len() - LENGTH).expect("small");
                bytes[..LENGTH].copy_from_slice(&size.to_le_bytes());
                bytes[LENGTH] %= 5;
            }
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next_unit(&mut buffer) {}
        }
        let mut huge = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(next_unit(&mut huge), Err(Nonsense::Size(_))));
    }
}
