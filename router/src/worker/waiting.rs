//! Requests that nobody may take yet: they wait, in order, for their RACS' next view, for a while.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use membership_types::Instant;
use router_proto::RacsId;

use super::{Clock, Worker};
use crate::stats::Counters;

/// How often those who wait are looked at when no view comes.
const ROUND: Duration = Duration::from_millis(50);

/// A service whose requests may have to wait.
pub(crate) trait Waits: Sized + 'static {
    /// Whom an answer is for, and what is needed to send its request again.
    type Tag;

    /// The service of a request.
    fn of(tag: &Self::Tag) -> Rc<Self>;

    fn queues(&self) -> &Waiting<Self::Tag>;

    /// For which RACS a request waits, and until when; that is `Instant::MAX` before it first has to.
    fn turn(tag: &mut Self::Tag) -> (RacsId, &mut Instant);

    /// Too many wait already: nothing was done.
    fn crowded_out(&self, tag: Self::Tag, request: &[u8]);

    /// Sends whatever may now be sent.
    fn tables_changed(self: &Rc<Self>);

    /// How many requests wait.
    fn waiting(&self) -> u64 {
        self.queues().count()
    }

    /// Queues a request behind the others.
    fn wait(self: &Rc<Self>, tag: Self::Tag, request: Box<[u8]>) {
        self.queue(tag, request, VecDeque::push_back);
    }

    /// Queues requests that a failed connection has left behind, oldest first, before those that came later.
    fn wait_again(left: Vec<(Self::Tag, Box<[u8]>)>) {
        for (tag, request) in left.into_iter().rev() {
            Self::of(&tag).queue(tag, request, VecDeque::push_front);
        }
    }

    fn queue(
        self: &Rc<Self>,
        mut tag: Self::Tag,
        request: Box<[u8]>,
        push: fn(&mut Queue<Self::Tag>, Entry<Self::Tag>),
    ) {
        let (racs, until) = Self::turn(&mut tag);
        let Some(queue) = self.queues().admit(racs, until) else {
            return self.crowded_out(tag, &request);
        };
        push(&mut queue.borrow_mut(), Entry { tag, request });
        self.attend();
    }

    /// Sees to it that those who wait are looked at now and then until nobody does.
    fn attend(self: &Rc<Self>) {
        if self.queues().attended.replace(true) {
            return;
        }
        let service = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while service.waiting() > 0 {
                tokio::time::sleep(ROUND).await;
                service.tables_changed();
            }
            service.queues().attended.set(false);
        });
    }
}

/// The requests of one service that wait.
pub(crate) struct Waiting<T> {
    /// For each RACS.
    queues: Box<[RefCell<Queue<T>>]>,
    /// Most of them in each queue, and how long each may wait.
    most: usize,
    wait: Duration,
    clock: Rc<Clock>,
    counters: Rc<Counters>,
    /// Whether somebody looks after them.
    attended: Cell<bool>,
}

/// Who came first is in front.
type Queue<T> = VecDeque<Entry<T>>;

/// A request that waits.
pub(crate) struct Entry<T> {
    pub tag: T,
    pub request: Box<[u8]>,
}

impl<T> Waiting<T> {
    /// For so many RACS, and at most so many requests in each one's queue, each for at most `wait`.
    pub fn new(worker: &Worker, racs: usize, most: usize, wait: Duration, counters: &Rc<Counters>) -> Self {
        Self {
            queues: (0..racs).map(|_| RefCell::default()).collect(),
            most,
            wait,
            clock: Rc::clone(&worker.clock),
            counters: Rc::clone(counters),
            attended: Cell::new(false),
        }
    }

    /// How many RACS the service has.
    pub fn racs(&self) -> usize {
        self.queues.len()
    }

    fn count(&self) -> u64 {
        self.queues.iter().map(|queue| queue.borrow().len() as u64).sum()
    }

    /// Whether none waits for this RACS.
    pub fn is_empty(&self, racs: RacsId) -> bool {
        self.queues[racs.get() as usize].borrow().is_empty()
    }

    /// The queue for a request that may wait that long, unless it is full.
    fn admit(&self, racs: RacsId, until: &mut Instant) -> Option<&RefCell<Queue<T>>> {
        let queue = &self.queues[racs.get() as usize];
        if queue.borrow().len() >= self.most {
            return None;
        }
        if *until == Instant::MAX {
            self.counters.waited.add(1);
            self.clock.refresh();
            *until = self.clock.now().after(self.wait);
        }
        Some(queue)
    }

    /// Shows each that waits now to `look`, in order; what that gives back waits on.
    pub fn each(&self, mut look: impl FnMut(Entry<T>) -> Option<Entry<T>>) {
        for queue in self.queues.iter() {
            let waiting = queue.borrow().len();
            for _ in 0..waiting {
                let Some(entry) = queue.borrow_mut().pop_front() else { break };
                if let Some(entry) = look(entry) {
                    queue.borrow_mut().push_back(entry);
                }
            }
        }
    }
}
