//! Ids of requests, where a service wants them.

use std::{
    cell::RefCell,
    hash::{BuildHasher, RandomState},
};

use router_proto::{
    http::RequestHead,
    trace::{Draw, Ids},
};

use crate::worker::{Buf, Buffers};

/// Gives requests their ids.
pub(super) struct Identify {
    /// How many new traces in a hundred are marked as recorded.
    sampled_percent: u32,
    /// Seeded once: drawing asks nobody.
    draw: RefCell<Draw>,
}

impl Identify {
    pub fn new(sampled_percent: u32) -> Self {
        // The keys of each are random.
        let word = |place: u64| RandomState::new().hash_one(place);
        Self { sampled_percent, draw: RefCell::new(Draw::seeded([word(0), word(1), word(2), word(3)])) }
    }

    /// For what is no request, but gets an answer.
    pub fn anew(&self) -> Ids {
        Ids::new(&mut self.draw.borrow_mut(), self.sampled_percent)
    }

    /// Those of a request. The fields that carried them stay behind; see [`write`].
    pub fn of(&self, parsed: &mut RequestHead, head: &[u8]) -> Ids {
        Ids::of(parsed, head, &mut self.draw.borrow_mut(), self.sampled_percent)
    }
}

/// Tells the server.
pub(super) fn write(ids: &Ids, outgoing: &mut Buf, buffers: &Buffers) {
    let parts: [&[u8]; 5] =
        [b"traceparent: ", &ids.parent().write(), b"\r\nX-Request-Id: ", ids.request().as_bytes(), b"\r\n"];
    parts.iter().for_each(|part| outgoing.extend(part, buffers));
}
