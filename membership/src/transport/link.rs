//! A connection with a node that has introduced itself: what waits for it, and in which order that goes.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use bytes::{Bytes, BytesMut};
use membership_types::NodeId;
use tokio::sync::Notify;

use crate::{
    clock,
    handshake::{Hello, Versions},
    wire::{self, MAX_FRAME, MAX_STATE, PIECE},
};

/// Frames and bytes that wait for a connection.
pub(crate) const WAITING_FRAMES: usize = 4096;
const WAITING_BYTES: usize = MAX_STATE + 2 * MAX_FRAME;
/// How many bytes go out in one write.
const BATCH: usize = 256 * 1024;

/// A connection with a node that has introduced itself.
pub(super) struct Link {
    pub(super) peer: Hello,
    /// The incarnation of ours that it was made with.
    pub(super) me: NodeId,
    queue: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    /// What goes in pieces, and whether some of the first one has gone. Always empty where the peer takes none.
    large: RefCell<VecDeque<Bytes>>,
    begun: Cell<bool>,
    /// Something waits, or the connection is to be closed.
    wake: Notify,
    pub(super) closing: Cell<bool>,
    pub(super) used: Cell<u64>,
}

impl Link {
    pub(super) fn new(peer: Hello, me: NodeId) -> Self {
        Self {
            peer,
            me,
            queue: RefCell::default(),
            bytes: Cell::new(0),
            large: RefCell::default(),
            begun: Cell::new(false),
            wake: Notify::new(),
            closing: Cell::new(false),
            used: Cell::new(clock::now_ns()),
        }
    }

    /// The version of the protocol that both sides speak.
    pub(super) fn version(&self) -> u8 {
        Versions::OURS.common(self.peer.speaks).unwrap_or(0)
    }

    /// The largest frame that goes over it, either way.
    pub(super) fn largest(&self) -> usize {
        Versions::largest(self.version())
    }

    /// Queues a frame; the oldest ones go where there is no room. Gives how many.
    pub(super) fn post(&self, frame: Bytes) -> u64 {
        self.used.set(clock::now_ns());
        self.wake.notify_one();
        if frame.len() > PIECE && Versions::takes_pieces(self.version()) {
            return self.post_large(frame.slice(wire::LENGTH..));
        }
        let mut queue = self.queue.borrow_mut();
        let mut lost = 0;
        self.bytes.set(self.bytes.get() + frame.len());
        queue.push_back(frame);
        while queue.len() > WAITING_FRAMES || self.bytes.get() > WAITING_BYTES && queue.len() > 1 {
            let Some(oldest) = queue.pop_front() else { break };
            self.bytes.set(self.bytes.get() - oldest.len());
            lost += 1;
        }
        lost
    }

    /// Queues what goes in pieces. What has begun goes on; of the others the oldest go where there is no room.
    fn post_large(&self, frame: Bytes) -> u64 {
        let mut large = self.large.borrow_mut();
        large.push_back(frame);
        let mut lost = 0;
        while large.len() > 1 && large.iter().map(Bytes::len).sum::<usize>() > WAITING_BYTES {
            large.remove(usize::from(self.begun.get()));
            lost += 1;
        }
        lost
    }

    /// Adds the next piece of what is large.
    fn add_piece(&self, batch: &mut BytesMut) {
        let mut large = self.large.borrow_mut();
        let Some(first) = large.front_mut() else { return };
        let (head, piece) = wire::next_piece(first);
        batch.extend_from_slice(&head);
        batch.extend_from_slice(&piece);
        let ends = first.is_empty();
        self.begun.set(!ends);
        if ends {
            large.pop_front();
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.borrow().len() + self.large.borrow().len()
    }

    /// What is to be written next; `None` once the connection is to be closed and nothing waits.
    pub(super) async fn batch(&self) -> Option<BytesMut> {
        loop {
            let mut batch = BytesMut::new();
            while let Some(frame) = {
                let mut queue = self.queue.borrow_mut();
                let fits = queue.front().is_some_and(|f| batch.is_empty() || batch.len() + f.len() <= BATCH);
                if fits { queue.pop_front() } else { None }
            } {
                self.bytes.set(self.bytes.get() - frame.len());
                batch.extend_from_slice(&frame);
            }
            self.add_piece(&mut batch);
            if !batch.is_empty() {
                return Some(batch);
            }
            if self.closing.get() {
                return None;
            }
            self.wake.notified().await;
        }
    }

    /// No more frames; what waits is still written.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.wake.notify_one();
    }

    /// Nothing more is written. Gives how many frames are lost with it.
    pub(super) fn cut(&self) -> usize {
        self.closing.set(true);
        let lost = self.waiting();
        drop((self.queue.take(), self.large.take()));
        lost
    }
}
