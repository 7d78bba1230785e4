//! Commands that nobody may take yet: they wait, in order, for their RACS' next view, for a while.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use membership_types::Instant;

use super::{Dialect, SERVERS_FULL, Service, Tag, Target};

/// The commands that wait for one RACS.
pub(super) struct Waiting<D: Dialect>(VecDeque<Entry<D>>);

struct Entry<D: Dialect> {
    tag: Tag<D>,
    command: Box<[u8]>,
}

impl<D: Dialect> Default for Waiting<D> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<D: Dialect> Waiting<D> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How often those who wait are looked at when no view comes.
const ROUND: Duration = Duration::from_millis(50);

/// Queues commands that a failed connection has left behind, oldest first, before those that came later.
pub(super) fn wait_again<D: Dialect>(left: Vec<(Tag<D>, Box<[u8]>)>) {
    for (tag, command) in left.into_iter().rev() {
        let service = tag.client.service();
        if let Some(entry) = service.admit(tag, command) {
            service.waiting[entry.tag.racs.get() as usize].borrow_mut().0.push_front(entry);
            service.attend();
        }
    }
}

impl<D: Dialect> Service<D> {
    /// Queues a command that has just come in behind the others.
    pub(super) fn wait(self: &Rc<Self>, tag: Tag<D>, command: &[u8]) {
        if let Some(entry) = self.admit(tag, command.into()) {
            self.waiting[entry.tag.racs.get() as usize].borrow_mut().0.push_back(entry);
            self.attend();
        }
    }

    fn admit(&self, mut tag: Tag<D>, command: Box<[u8]>) -> Option<Entry<D>> {
        if self.waiting[tag.racs.get() as usize].borrow().0.len() >= self.admission.waiting {
            self.unavailable(tag, &command, "too many commands wait for a leader");
            return None;
        }
        if tag.wait_until == Instant::MAX {
            self.counters.waited.add(1);
            self.worker.clock.refresh();
            tag.wait_until = self.now().after(self.worker.limits.wait);
        }
        Some(Entry { tag, command })
    }

    /// Sends whatever may now be sent.
    pub fn tables_changed(self: &Rc<Self>) {
        D::tables_changed(self);
        for queue in &self.waiting {
            let waiting = queue.borrow().0.len();
            for _ in 0..waiting {
                let Some(mut entry) = queue.borrow_mut().0.pop_front() else { break };
                // Nothing was sent, and the servers may be other ones now, or well again.
                entry.tag.tried = Default::default();
                match self.pick(&entry.tag) {
                    Target::Server(server) => self.push(&server, &entry.command, entry.tag),
                    Target::Full => self.overloaded(entry.tag, &entry.command, SERVERS_FULL),
                    Target::Wait | Target::Exhausted if entry.tag.wait_until > self.now() => {
                        queue.borrow_mut().0.push_back(entry);
                    }
                    Target::Wait | Target::Exhausted => {
                        let why = "the partition's RACS has no leader";
                        self.unavailable(entry.tag, &entry.command, why);
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
