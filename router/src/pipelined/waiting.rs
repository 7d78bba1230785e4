//! What becomes of commands that wait for a leader, once there is another view.

use std::rc::Rc;

use membership_types::Instant;
use router_proto::RacsId;

use super::{Dialect, Service, Tag};
use crate::worker::{SERVERS_FULL, Target, Waiting, WaitingEntry, Waits};

impl<D: Dialect> Waits for Service<D> {
    type Tag = Tag<D>;

    fn of(tag: &Tag<D>) -> Rc<Self> {
        tag.client.service()
    }

    fn queues(&self) -> &Waiting<Tag<D>> {
        &self.waiting
    }

    fn turn(tag: &mut Tag<D>) -> (RacsId, &mut Instant) {
        (tag.racs, &mut tag.wait_until)
    }

    fn crowded_out(&self, tag: Tag<D>, command: &[u8]) {
        self.unavailable(tag, command, "too many commands wait for a leader");
    }

    fn tables_changed(self: &Rc<Self>) {
        D::tables_changed(self);
        self.waiting.each(|WaitingEntry { mut tag, request }| {
            // Nothing was sent, and the servers may be other ones now, or well again.
            tag.tried = Default::default();
            match self.pick(&tag) {
                Target::Server(server) => self.push(&server, &request, tag),
                Target::Full => self.overloaded(tag, &request, SERVERS_FULL),
                Target::Wait | Target::Exhausted if tag.wait_until > self.now() => {
                    return Some(WaitingEntry { tag, request });
                }
                Target::Wait | Target::Exhausted => {
                    self.unavailable(tag, &request, "the partition's RACS has no leader");
                }
            }
            None
        });
    }
}
