//! One connection to a server, shared by many clients: requests under ids of its own, each kept until it is answered.

use alloc::vec::Vec;
use core::ops::Range;

use membership_types::Instant;

use super::write::{Stamp, push_request};

/// Room that an answered request leaves behind for the next one.
const KEPT: usize = 4 * 1024;
/// Written bytes are cut off when there are this many of them.
const WORTHWHILE: usize = 64 * 1024;

/// An answer to a request that was not sent, was answered before, or never existed. Nothing on this connection can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unasked;

/// Whose answer came.
#[derive(Debug)]
pub enum Answered<T> {
    /// The owner of this tag's.
    To(T),
    /// Nobody's any more: the request had been given up.
    Nobody,
}

/// A request that a failed connection leaves behind.
#[derive(Debug)]
pub struct Left<T> {
    /// Whose it is.
    pub tag: T,
    /// Method and parameters.
    pub body: Vec<u8>,
    /// Whether it was written whole, so that the server may have carried it out.
    pub sent: bool,
}

/// Requests under way on one connection, and the bytes that are to be written to it.
///
/// An id is a place in a table, and how often the place was used: an answer that comes twice, or late, names a use that is over.
#[derive(Clone, Debug)]
pub struct Calls<T> {
    places: Vec<Place<T>>,
    free: Vec<u16>,
    out: Vec<u8>,
    /// What has been written of `out`.
    written: usize,
    /// Position in the connection's stream at which `out` begins.
    base: u64,
    /// Requests without answer, those that were given up among them.
    under_way: usize,
}

#[derive(Clone, Debug)]
struct Place<T> {
    uses: u16,
    state: State<T>,
    /// Kept between uses, for its memory.
    body: Vec<u8>,
    /// Where the request begins and ends in the connection's stream.
    start: u64,
    end: u64,
    due: Instant,
}

#[derive(Clone, Debug)]
enum State<T> {
    Free,
    Waits(T),
    GivenUp,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), out: Vec::new(), written: 0, base: 0, under_way: 0 }
    }
}

impl<T> Calls<T> {
    /// Most requests under way at once.
    pub const MAX: usize = 1 << 16;

    /// How many requests have no answer yet.
    pub fn len(&self) -> usize {
        self.under_way
    }

    /// Whether every request has its answer.
    pub fn is_empty(&self) -> bool {
        self.under_way == 0
    }

    /// Whether no further request can be sent.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.places.len() == Self::MAX
    }

    /// Appends a request; `tag` comes back with its answer, or once it is `due`.
    ///
    /// # Panics
    /// If [`Calls::is_full`].
    pub fn push(&mut self, body: &[u8], stamp: Option<&Stamp<'_>>, due: Instant, tag: T) {
        let at = self.free.pop().unwrap_or_else(|| {
            let at = u16::try_from(self.places.len()).expect("the table is not full");
            self.places.push(Place { uses: 0, state: State::Free, body: Vec::new(), start: 0, end: 0, due });
            at
        });
        let place = &mut self.places[usize::from(at)];
        let id = u32::from(place.uses) << 16 | u32::from(at);
        place.start = self.base + self.out.len() as u64;
        push_request(&mut self.out, id, body, stamp);
        place.state = State::Waits(tag);
        place.body.extend_from_slice(body);
        place.end = self.base + self.out.len() as u64;
        place.due = due;
        self.under_way += 1;
    }

    /// The bytes to write next.
    pub fn unwritten(&self) -> &[u8] {
        &self.out[self.written..]
    }

    /// Notes that the first `len` of [`Calls::unwritten`] were written.
    ///
    /// # Panics
    /// If there were not as many.
    pub fn wrote(&mut self, len: usize) {
        self.written += len;
        assert!(self.written <= self.out.len(), "more written than there was");
        if self.written == self.out.len() || self.written >= WORTHWHILE && self.written >= self.out.len() / 2
        {
            self.base += self.written as u64;
            self.out.drain(..self.written);
            self.written = 0;
            if self.out.is_empty() {
                self.out.shrink_to(WORTHWHILE);
            }
        }
    }

    /// Takes off the request that was sent under this id. What it said is moved to `body`.
    ///
    /// # Errors
    /// No such request was written whole and waits for an answer.
    pub fn answered(&mut self, id: u32, body: &mut Vec<u8>) -> Result<Answered<T>, Unasked> {
        let written = self.base + self.written as u64;
        let at = id as u16;
        let place = self.places.get_mut(usize::from(at)).ok_or(Unasked)?;
        let is_free = matches!(place.state, State::Free);
        if is_free || place.uses != (id >> 16) as u16 || place.end > written {
            return Err(Unasked);
        }
        // The memory goes round: what is left behind is used by the next request in this place.
        core::mem::swap(&mut place.body, body);
        place.body.clear();
        place.body.shrink_to(KEPT);
        place.uses = place.uses.wrapping_add(1);
        self.free.push(at);
        self.under_way -= 1;
        match core::mem::replace(&mut place.state, State::Free) {
            State::Waits(tag) => Ok(Answered::To(tag)),
            State::GivenUp | State::Free => Ok(Answered::Nobody),
        }
    }

    /// Shows every request that waits for its answer: whose it is, method and parameters.
    pub fn waiting(&mut self, mut each: impl FnMut(&mut T, &[u8])) {
        for place in &mut self.places {
            if let State::Waits(tag) = &mut place.state {
                each(tag, &place.body);
            }
        }
    }

    /// Gives up every request that is due, and hands it to `each`. One of which nothing was written is not sent any more; the answer
    /// to any other may still come, for nobody. Returns when the next one is due.
    pub fn expire(&mut self, now: Instant, mut each: impl FnMut(Left<T>)) -> Instant {
        let written = self.base + self.written as u64;
        let mut next = Instant::MAX;
        let mut unsent = Vec::new();
        for (at, place) in (0..).zip(&mut self.places) {
            if !matches!(place.state, State::Waits(_)) {
                continue;
            }
            if place.due > now {
                next = next.min(place.due);
                continue;
            }
            let sent = place.start < written;
            let State::Waits(tag) = core::mem::replace(&mut place.state, State::GivenUp) else { continue };
            if !sent {
                unsent.push(place.start..place.end);
                place.state = State::Free;
                place.uses = place.uses.wrapping_add(1);
                self.free.push(at);
                self.under_way -= 1;
            }
            each(Left { tag, body: core::mem::take(&mut place.body), sent });
        }
        self.cut(unsent);
        next
    }

    /// Takes unwritten requests out of what is to be written.
    fn cut(&mut self, mut ranges: Vec<Range<u64>>) {
        if ranges.is_empty() {
            return;
        }
        ranges.sort_unstable_by_key(|range| range.start);
        let index = |position: u64| (position - self.base) as usize;
        let mut out = Vec::with_capacity(self.out.len());
        let mut from = self.base;
        for range in &ranges {
            out.extend_from_slice(&self.out[index(from)..index(range.start)]);
            from = range.end;
        }
        out.extend_from_slice(&self.out[index(from)..]);
        self.out = out;
        // How much is gone before the end of each range.
        let mut sum = 0;
        let gone: Vec<(u64, u64)> = ranges
            .iter()
            .map(|range| {
                sum += range.end - range.start;
                (range.end, sum)
            })
            .collect();
        for place in &mut self.places {
            let before = gone.partition_point(|(end, _)| *end <= place.start);
            if let Some((_, len)) = before.checked_sub(1).map(|at| gone[at]) {
                place.start -= len;
                place.end -= len;
            }
        }
    }

    /// Takes off every request, in the order in which they were pushed, because the connection has failed.
    pub fn fail(&mut self, mut each: impl FnMut(Left<T>)) {
        let written = self.base + self.written as u64;
        let mut left: Vec<Place<T>> = core::mem::take(&mut self.places);
        left.sort_by_key(|place| place.end);
        for Place { state, body, end, .. } in left {
            if let State::Waits(tag) = state {
                each(Left { tag, body, sent: end <= written });
            }
        }
        *self = Self::default();
    }
}
