//! Deadlines of requests: how long their clients wait, and what servers are told of that.

use std::time::Duration;

use membership_types::Instant;
use router_proto::http::{Notation, Refusal, RequestHead};

use crate::worker::{Buf, Clock, Worker};

/// The field that says how long a client waits.
pub(super) struct DeadlineField {
    /// In lower case.
    name: Box<[u8]>,
    notation: Notation,
}

/// The deadline of one request.
#[derive(Clone, Copy)]
pub(super) struct Due {
    pub at: Instant,
    notation: Notation,
    /// Where the time that is left stands in the head.
    place: usize,
}

impl DeadlineField {
    pub fn new(name: &str) -> Self {
        let name = name.to_ascii_lowercase().into_bytes();
        Self { notation: Notation::of(&name), name: name.into() }
    }

    /// Until when the client waits, if it says so: `most` at most. The field stays behind, and is written anew by [`Due::write`].
    pub fn read(
        &self,
        parsed: &mut RequestHead,
        head: &[u8],
        most: Duration,
        clock: &Clock,
    ) -> Result<Option<Due>, Refusal> {
        let mut values = parsed.fields().values(head, &self.name);
        let Some(value) = values.next() else { return Ok(None) };
        let time = self.notation.read(value).filter(|_| values.next().is_none());
        drop(values);
        let time = time.ok_or(Refusal::Deadline)?.min(most);
        parsed.keep_back(head, &self.name);
        // The coarse clock may be a tick behind: that would be taken off.
        clock.refresh();
        Ok(Some(Due { at: clock.now().after(time), notation: self.notation, place: 0 }))
    }

    /// Tells the server, in the same field, how much is left; for now there is only room for it.
    pub fn write(&self, due: &mut Due, outgoing: &mut Buf, worker: &Worker) {
        outgoing.extend(&self.name, &worker.buffers);
        outgoing.extend(b": ", &worker.buffers);
        due.place = outgoing.len();
        outgoing.extend(&due.notation.write(Duration::ZERO), &worker.buffers);
        outgoing.extend(b"\r\n", &worker.buffers);
    }
}

impl Due {
    /// Writes down what is left of the time, in a head of which nothing is on its way.
    pub fn tell(&self, outgoing: &mut Buf, clock: &Clock) {
        clock.refresh();
        outgoing.overwrite(self.place, &self.notation.write(self.at - clock.now()));
    }
}
