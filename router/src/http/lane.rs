//! The connection to one server that reads of many clients share (`pipeline = N`): up to N of them are on their way
//! there at once, and the k-th answer is the k-th request's.
//!
//! A client's task appends the head of its request to the lane and waits; the lane's task, which runs after all
//! clients that had input in this turn of the loop, writes what has gathered, reads answers, and puts each into its
//! client's hands in the form in which the client gets it. So the system calls towards servers are shared by all
//! requests of a batch.
//!
//! Everything here is a read and in memory as a whole, so a lane may be given up at any time: whoever has not got a
//! byte of an answer yet goes another way, on a connection of its own.

mod client;
mod task;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use membership_types::Instant;
use router_proto::{
    http::{Body, Listener, Method, RequestHead, ResponseHead},
    pipelined::{Gathering, Pipeline},
};

use crate::{
    config::Service,
    limits::Limits,
    worker::{Buf, Buffers, Hold, LocalWaker, Server, Worker},
};

/// How many waiters a service keeps for later requests.
const KEPT: usize = 1024;

/// What a worker has of lanes to one server.
#[derive(Default)]
pub(crate) struct LaneSlot {
    lane: RefCell<Option<Rc<Lane>>>,
    /// Until when there is none: the last one ended in a way that cost more than it saved.
    rests_until: Cell<Instant>,
}

impl LaneSlot {
    /// A lane with room for one request more, if the server may have one. If it is a new one, its connection is made within
    /// `connecting`.
    fn take(
        &self,
        worker: &Rc<Worker>,
        server: &Rc<Server>,
        most: usize,
        connecting: Duration,
    ) -> Option<Rc<Lane>> {
        if let Some(lane) = &*self.lane.borrow() {
            return (lane.pipeline.borrow().len() < most).then(|| Rc::clone(lane));
        }
        if self.rests_until.get() > worker.clock.now() {
            return None;
        }
        let lane = Rc::new(Lane {
            server: Rc::clone(server),
            pipeline: RefCell::default(),
            worker: Rc::clone(worker),
            hold: Rc::default(),
            told: Cell::new(false),
            patience: Cell::new(Duration::ZERO),
            response: Cell::new(Duration::ZERO),
            stall: Cell::new(Duration::ZERO),
            silent_since: Cell::new(None),
            retired: Cell::new(false),
        });
        task::start(&lane, connecting);
        *self.lane.borrow_mut() = Some(Rc::clone(&lane));
        Some(lane)
    }

    /// Nobody is to be sent there any more. What is under way ends.
    pub fn retire(&self) {
        if let Some(lane) = self.lane.take() {
            lane.retired.set(true);
            lane.hold.waker.wake();
        }
    }

    fn forget(&self, lane: &Rc<Lane>) {
        self.lane.borrow_mut().take_if(|current| Rc::ptr_eq(current, lane));
    }
}

/// Requests on their way to one server.
pub(super) struct Lane {
    server: Rc<Server>,
    pipeline: RefCell<Pipeline<Tag>>,
    worker: Rc<Worker>,
    /// Wakes the task, and knows how long requests have waited for company.
    hold: Rc<Hold>,
    /// Whether the task knows already that there is something to write.
    told: Cell<bool>,
    /// For how long the server may be silent.
    patience: Cell<Duration>,
    /// The longest times, of the services that have sent something since it had nothing to answer, for an answer to begin and to go on.
    response: Cell<Duration>,
    stall: Cell<Duration>,
    /// Since when the server has been silent, until one of those who left for that has told of it.
    silent_since: Cell<Option<Instant>>,
    /// No request comes any more.
    retired: Cell<bool>,
}

impl Lane {
    /// A request of a service with these limits is about to come.
    fn allow(&self, limits: &Limits) {
        let empty = self.pipeline.borrow().is_empty();
        for (longest, time) in [(&self.response, limits.response), (&self.stall, limits.stall)] {
            longest.set(if empty { time } else { longest.get().max(time) });
        }
    }

    /// Appends a request.
    fn push(&self, head: &[u8], tag: Tag) {
        let mut pipeline = self.pipeline.borrow_mut();
        pipeline.push(head, tag);
        match pipeline.gathering() {
            Gathering::Done if !self.told.replace(true) => self.hold.waker.wake(),
            Gathering::Company => self.worker.pace.hold(&self.hold),
            _ => {}
        }
    }
}

/// Whom an answer is for.
struct Tag {
    /// `None` once nobody waits for it.
    waiter: Option<Rc<Waiter>>,
    method: Method,
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No byte of an answer may be shown yet.
    Waiting,
    /// What there is of its answer may be shown; more follows.
    Begun,
    /// All of its answer is there.
    Whole,
    /// There is no answer, and another way may be tried.
    Left(Left),
    /// The rest of its answer does not come.
    Broken,
}

/// Why there is no answer on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No connection could be made.
    Refused,
    /// The connection failed, or what came on it could not be believed.
    Failed,
    /// The server had not begun with this request when the lane ended; that it is sent again costs nothing.
    Unbegun,
    /// The server is silent. That the request is sent again has been paid for.
    Silent,
}

/// What is known of an answer whose head has come.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    status: u16,
    /// Whether the client's connection goes on.
    persistent: bool,
}

/// One request on a lane, as its client's task and the lane's see it. Of an abandoned one the lane keeps the only
/// reference, so that nothing late can reach whatever the client asks next.
struct Waiter {
    state: Cell<State>,
    /// Whether the client means to go on after this, and whether it hears where it was routed.
    persistent: Cell<bool>,
    labelled: Cell<bool>,
    /// Whether another process could take the client over.
    movable: Cell<bool>,
    /// Lines that the router adds to the head.
    lines: RefCell<Vec<u8>>,
    known: Cell<Known>,
    /// What is there of the answer, as the client gets it.
    out: RefCell<Buf>,
    /// How much of that its service has, for all such clients.
    held: Rc<Cell<usize>>,
    /// The client has gone.
    gone: Cell<bool>,
    waker: LocalWaker,
}

impl Waiter {
    fn new(held: &Rc<Cell<usize>>) -> Self {
        Self {
            held: Rc::clone(held),
            state: Cell::new(State::Waiting),
            persistent: Cell::new(false),
            labelled: Cell::new(false),
            movable: Cell::new(false),
            lines: RefCell::default(),
            known: Cell::default(),
            out: RefCell::default(),
            gone: Cell::new(false),
            waker: LocalWaker::default(),
        }
    }

    /// More of the answer.
    fn put(&self, bytes: &[u8], buffers: &Buffers) {
        self.out.borrow_mut().extend(bytes, buffers);
        self.held.set(self.held.get() + bytes.len());
    }

    /// So much has gone to the client, or to nobody.
    fn gone_out(&self, len: usize) {
        self.held.set(self.held.get() - len);
    }

    fn turn(&self, state: State) {
        self.state.set(state);
        self.waker.wake();
    }

    /// There is no answer here. If a part of it was shown, the rest cannot come from elsewhere.
    fn leave(&self, left: Left) {
        let begun = self.state.get() == State::Begun;
        self.turn(if begun { State::Broken } else { State::Left(left) });
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.gone_out(self.out.borrow().len());
    }
}

/// How large an answer is: as it says, or so far.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    bytes: u64,
    said: bool,
}

/// Writes an answer as it is read.
struct Turn<'a> {
    /// `None` if nobody waits for it.
    waiter: Option<&'a Waiter>,
    worker: &'a Worker,
    size: &'a mut Size,
    /// What the server says of how long it keeps connections.
    keep_alive_s: &'a mut Option<u32>,
}

impl Listener for Turn<'_> {
    fn head(&mut self, head: &[u8], parsed: &mut ResponseHead) {
        *self.keep_alive_s = parsed.keep_alive_timeout_s();
        *self.size = match parsed.body() {
            Body::Length(bytes) => Size { bytes, said: true },
            _ => Size::default(),
        };
        let Some(waiter) = self.waiter else { return };
        if waiter.labelled.get() {
            parsed.reserve(head, b"x-phalanx-");
        }
        let moves = waiter.movable.get() && self.worker.gives_way();
        let persistent = waiter.persistent.get() && (moves || !self.worker.is_draining());
        waiter.known.set(Known { status: parsed.status(), persistent });
        let buffers = &self.worker.buffers;
        for slice in parsed.forward(head) {
            waiter.put(slice, buffers);
        }
        waiter.put(&waiter.lines.borrow(), buffers);
        waiter.put(if persistent { b"\r\n" } else { b"Connection: close\r\n\r\n" }, buffers);
    }

    fn body(&mut self, bytes: &[u8]) {
        if !self.size.said {
            self.size.bytes += bytes.len() as u64;
        }
        if let Some(waiter) = self.waiter {
            waiter.put(bytes, &self.worker.buffers);
        }
    }
}

/// What a service on one worker has to do with lanes.
pub(super) struct Lanes {
    /// How many requests each RACS' servers may have on one; 0 for no lane.
    most: Box<[usize]>,
    waiters: RefCell<Vec<Rc<Waiter>>>,
    /// Bytes of answers that wait for clients to take them.
    held: Rc<Cell<usize>>,
}

impl Lanes {
    pub fn new(service: &Service) -> Self {
        let most = service.racs.iter().map(|racs| racs.pipeline).collect();
        Self { most, waiters: RefCell::default(), held: Rc::default() }
    }

    /// Whether this request's answer always has the body that it speaks of.
    ///
    /// Others' answers follow it. Were it HEAD, or 304 to what has a condition, a server that sends a body all the same
    /// would have that read as the next client's answer; and who may store things there says what is in it. A
    /// part of something is asked for seldom, and its length is what servers get wrong.
    pub fn takes(&self, parsed: &RequestHead, head: &[u8]) -> bool {
        let odd = |name: &[u8]| {
            let conditional = matches!(name, [b'i' | b'I', b'f' | b'F', b'-' | b'_', ..]);
            conditional || name.eq_ignore_ascii_case(b"range")
        };
        self.most.iter().any(|most| *most > 0)
            && parsed.method() == Method::Get
            && !parsed.fields().iter().any(|field| odd(field.name.of(head)))
    }

    fn waiter(&self) -> Rc<Waiter> {
        self.waiters.borrow_mut().pop().unwrap_or_else(|| Rc::new(Waiter::new(&self.held)))
    }

    /// Keeps a waiter for later, unless its lane still knows it.
    fn give_back(&self, waiter: Rc<Waiter>, worker: &Worker) {
        let mut out = waiter.out.borrow_mut();
        waiter.gone_out(out.len());
        out.free(&worker.buffers);
        drop(out);
        let mut kept = self.waiters.borrow_mut();
        if Rc::strong_count(&waiter) == 1 && kept.len() < KEPT {
            kept.push(waiter);
        } else {
            waiter.gone.set(true);
        }
    }
}
