//! What becomes of requests that wait for a leader, once there is another view.

use std::rc::Rc;

use membership_types::Instant;
use router_proto::RacsId;

use super::{FramesService, Tag};
use crate::worker::{SERVERS_FULL, Target, Waiting, WaitingEntry, Waits};

impl Waits for FramesService {
    type Tag = Tag;

    fn of(tag: &Tag) -> Rc<Self> {
        Rc::clone(&tag.service)
    }

    fn queues(&self) -> &Waiting<Tag> {
        &self.waiting
    }

    fn turn(tag: &mut Tag) -> (RacsId, &mut Instant) {
        (tag.racs, &mut tag.wait_until)
    }

    fn crowded_out(&self, tag: Tag, _request: &[u8]) {
        tag.unavailable("too many requests wait for a leader");
    }

    fn tables_changed(self: &Rc<Self>) {
        self.waiting.each(|WaitingEntry { mut tag, request }| {
            // Nothing was sent, and the servers may be other ones now, or well again.
            (tag.tried, tag.hint) = Default::default();
            let now = self.now();
            match self.pick(&tag) {
                _ if tag.until <= now => tag.late(),
                Target::Server(_) if tag.wait_until <= now => {
                    tag.unavailable("no server of the partition's RACS says that it leads");
                }
                Target::Server(server) => self.push(&server, &request, tag),
                Target::Full => tag.overloaded(SERVERS_FULL),
                Target::Wait | Target::Exhausted if tag.wait_until > now => {
                    return Some(WaitingEntry { tag, request });
                }
                Target::Wait | Target::Exhausted => tag.unavailable("the partition's RACS has no leader"),
            }
            None
        });
    }
}
