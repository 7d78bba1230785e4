//! Requests that nobody may take yet: they wait, in order, for their RACS' next view, for a while.

use std::{rc::Rc, time::Duration};

use membership_types::Instant;

use super::{FramesService, SERVERS_FULL, Tag, Target};

/// A request that waits: method and parameters.
pub(super) struct Entry {
    tag: Tag,
    body: Box<[u8]>,
}

/// How often those who wait are looked at when no view comes.
const ROUND: Duration = Duration::from_millis(50);

/// Queues requests that a failed connection has left behind, oldest first, before those that came later.
pub(super) fn wait_again(left: Vec<(Tag, Vec<u8>)>) {
    for (tag, body) in left.into_iter().rev() {
        let service = Rc::clone(&tag.service);
        if let Some(entry) = service.admit(tag, body.into()) {
            service.waiting[entry.tag.racs.get() as usize].borrow_mut().push_front(entry);
            service.attend();
        }
    }
}

impl FramesService {
    /// Queues a request behind the others.
    pub(super) fn wait(self: &Rc<Self>, tag: Tag, body: Box<[u8]>) {
        if let Some(entry) = self.admit(tag, body) {
            self.waiting[entry.tag.racs.get() as usize].borrow_mut().push_back(entry);
            self.attend();
        }
    }

    fn admit(&self, mut tag: Tag, body: Box<[u8]>) -> Option<Entry> {
        if self.waiting[tag.racs.get() as usize].borrow().len() >= self.admission.waiting {
            tag.unavailable("too many requests wait for a leader");
            return None;
        }
        if tag.wait_until == Instant::MAX {
            self.counters.waited.add(1);
            self.worker.clock.refresh();
            tag.wait_until = self.now().after(self.worker.limits.wait);
        }
        tag.hint = None;
        Some(Entry { tag, body })
    }

    /// Sends a request again of which a server said that it had done nothing.
    pub(super) fn send_again(self: &Rc<Self>, tag: Tag, body: Vec<u8>) {
        match self.pick(&tag) {
            Target::Server(server) => self.push(&server, &body, tag),
            Target::Full => tag.overloaded(SERVERS_FULL),
            Target::Wait | Target::Exhausted => self.wait(tag, body.into()),
        }
    }

    /// Sends whatever may now be sent.
    pub fn tables_changed(self: &Rc<Self>) {
        for queue in &self.waiting {
            let waiting = queue.borrow().len();
            for _ in 0..waiting {
                let Some(mut entry) = queue.borrow_mut().pop_front() else { break };
                // Nothing was sent, and the servers may be other ones now, or well again.
                entry.tag.tried = Default::default();
                let now = self.now();
                match self.pick(&entry.tag) {
                    _ if entry.tag.until <= now => entry.tag.late(),
                    Target::Server(_) if entry.tag.wait_until <= now => {
                        entry.tag.unavailable("no server of the partition's RACS says that it leads");
                    }
                    Target::Server(server) => self.push(&server, &entry.body, entry.tag),
                    Target::Full => entry.tag.overloaded(SERVERS_FULL),
                    Target::Wait | Target::Exhausted if entry.tag.wait_until > now => {
                        queue.borrow_mut().push_back(entry);
                    }
                    Target::Wait | Target::Exhausted => {
                        entry.tag.unavailable("the partition's RACS has no leader");
                    }
                }
            }
        }
    }

    /// Sees to it that those who wait are looked at now and then until nobody does.
    fn attend(self: &Rc<Self>) {
        if self.attended.replace(true) {
            return;
        }
        let service = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while service.waiting.iter().any(|queue| !queue.borrow().is_empty()) {
                tokio::time::sleep(ROUND).await;
                service.tables_changed();
            }
            service.attended.set(false);
        });
    }
}
