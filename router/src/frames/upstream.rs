//! The connection to one server that all clients of a worker share.

use std::{
    cell::{Cell, RefCell},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use membership_types::Instant;
use router_proto::{
    frames::{Answered, Calls, Left, MAX_FRAME, Refusal, ResponseScanner, Stamp},
    health::Said,
    racs::Access,
};
use tokio::{io::AsyncWrite, net::TcpStream};

use super::{FramesService, MAX_FAILURES, TOO_MANY_RETRIES, Tag};
use crate::{
    stats::Class,
    worker::{Deadline, End, HUNG, Inbox, LocalWaker, Rival, SERVERS_FULL, Server, Target, Waits, Worker},
};

/// Requests on their way to one server, and whom their answers are for.
pub(crate) struct Upstream {
    server: Rc<Server>,
    calls: RefCell<Calls<Tag>>,
    /// When the next request is due.
    due: Cell<Instant>,
    /// How long the server may be silent before nothing is expected of it: the longest time of the services that have sent something
    /// since it had nothing to answer.
    patience: Cell<Duration>,
    /// When the server was last heard, while it is to say something; and when it will be looked at whether it is
    /// silent.
    since: Cell<Instant>,
    look: Cell<Instant>,
    /// Whether something was sent since it was last looked at.
    fresh: Cell<bool>,
    waker: LocalWaker,
    /// Whether the task knows already that there is something to write.
    told: Cell<bool>,
    /// Nobody will send anything here any more.
    retired: Cell<bool>,
}

impl Upstream {
    /// Starts to connect. Requests may be pushed at once.
    pub(super) fn start(worker: &Rc<Worker>, server: &Rc<Server>, connecting: Duration) -> Rc<Self> {
        let upstream = Rc::new(Self {
            server: Rc::clone(server),
            calls: RefCell::default(),
            due: Cell::new(Instant::MAX),
            patience: Cell::default(),
            since: Cell::default(),
            look: Cell::new(Instant::MAX),
            fresh: Cell::default(),
            waker: LocalWaker::default(),
            told: Cell::new(false),
            retired: Cell::new(false),
        });
        let task = Task {
            worker: Rc::clone(worker),
            upstream: Rc::clone(&upstream),
            deadline: Deadline::new(&worker.clock),
            inbox: Inbox::new(),
            scanner: ResponseScanner::default(),
            request: Vec::new(),
            heard: worker.clock.now(),
            left: false,
        };
        tokio::task::spawn_local(task.run(connecting));
        upstream
    }

    /// Whether it carries as many requests as it can.
    pub(super) fn is_full(&self) -> bool {
        self.calls.borrow().is_full()
    }

    /// Appends a request; it is written at the end of this turn of the loop.
    pub(super) fn push(&self, body: &[u8], stamp: Option<&Stamp<'_>>, due: Instant, mut tag: Tag) {
        let worker = Rc::clone(&tag.service.worker);
        tag.timed = self.server.engage(worker.clock.now());
        let mut calls = self.calls.borrow_mut();
        let response = tag.service.limits.response;
        if calls.is_empty() {
            self.wait(&worker);
            self.patience.set(response);
        }
        self.patience.set(self.patience.get().max(response));
        self.fresh.set(true);
        calls.push(body, stamp, due, tag);
        drop(calls);
        self.due.set(self.due.get().min(due));
        if !self.told.replace(true) {
            self.waker.wake();
        }
    }

    /// The server is to say something from now on.
    fn wait(&self, worker: &Worker) {
        self.since.set(worker.clock.now());
        self.look.set(worker.clock.after(self.server.patience(worker.limits.hedge_after)));
    }

    /// No table has the server any more: ends the connection once nothing is under way, at once if it is not made yet.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.waker.wake();
    }
}

struct Task {
    worker: Rc<Worker>,
    upstream: Rc<Upstream>,
    deadline: Deadline,
    inbox: Inbox,
    scanner: ResponseScanner,
    /// What the last request that was answered had said.
    request: Vec<u8>,
    /// When the server was last heard.
    heard: Instant,
    /// Whether there were not enough second attempts for all reads when it was silent.
    left: bool,
}

impl Task {
    async fn run(mut self, connecting: Duration) {
        let end = match self.connect(connecting).await {
            None => End::Refused,
            Some(mut stream) => std::future::poll_fn(|cx| self.poll(&mut stream, cx)).await,
        };
        self.detach();
        self.upstream.server.ended(end, self.worker.clock.now(), self.worker.limits.avoid);
        self.hand_back(end == End::Refused);
    }

    /// Whoever sends something to this server from now on starts a new connection.
    fn detach(&self) {
        self.upstream.server.frames.borrow_mut().take_if(|current| Rc::ptr_eq(current, &self.upstream));
    }

    /// Makes the connection, within this time.
    async fn connect(&mut self, limit: Duration) -> Option<TcpStream> {
        let connecting_until = self.worker.clock.now().after(limit);
        let mut connecting = pin!(TcpStream::connect(self.upstream.server.addr));
        let connected = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.ok());
            }
            self.upstream.waker.register(cx);
            self.upstream.told.set(false);
            self.expire();
            self.look();
            self.deadline.arm_at(self.upstream.due.get().min(connecting_until).min(self.upstream.look.get()));
            let passed = self.deadline.passed(cx) && self.worker.clock.now() >= connecting_until;
            if passed || self.upstream.retired.get() { Poll::Ready(None) } else { Poll::Pending }
        });
        let stream = connected.await?;
        stream.set_nodelay(true).ok()?;
        self.heard();
        Some(stream)
    }

    fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        let upstream = Rc::clone(&self.upstream);
        upstream.waker.register(cx);
        upstream.told.set(false);
        loop {
            let mut calls = upstream.calls.borrow_mut();
            let bytes = calls.unwritten();
            if bytes.is_empty() {
                break;
            }
            match Pin::new(&mut *stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(len)) if len > 0 => calls.wrote(len),
                // What has arrived is still worth reading: answers that came before the connection failed.
                Poll::Ready(_) => {
                    drop(calls);
                    let _ = self.poll_answers(stream, cx);
                    return Poll::Ready(End::Failed);
                }
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(end) = self.poll_answers(stream, cx) {
            return Poll::Ready(end);
        }
        if upstream.calls.borrow().is_empty() {
            upstream.due.set(Instant::MAX);
            upstream.look.set(Instant::MAX);
            if upstream.retired.get() {
                return Poll::Ready(End::Idle);
            }
        }
        if self.expire() {
            let server = upstream.server.addr;
            tracing::warn!(%server, "a server has answered nothing for as long as a response may take");
            return Poll::Ready(End::Failed);
        }
        self.look();
        self.deadline.arm_at(upstream.due.get().min(upstream.look.get()));
        // Only to be woken: whoever pushes a request that is due sooner wakes this task, too.
        let _not_yet = self.deadline.passed(cx);
        Poll::Pending
    }

    /// The server has said something.
    fn heard(&mut self) {
        self.heard = self.worker.clock.now();
        self.left = false;
        self.upstream.fresh.set(true);
        self.upstream.wait(&self.worker);
    }

    /// If the server has been silent for long about all that it was asked, that counts against it, and other clones are
    /// asked for reads. Its own answers may still come, under ids that nobody else gets: the first one counts.
    fn look(&mut self) {
        let Self { worker, upstream, .. } = self;
        let now = worker.clock.now();
        if upstream.look.get() > now {
            return;
        }
        let server = &upstream.server;
        let patience = server.patience(worker.limits.hedge_after);
        upstream.look.set(worker.clock.after(patience));
        let fresh = upstream.fresh.replace(false);
        if fresh {
            server.silent(upstream.since.get(), now, worker.limits.avoid);
        }
        if !fresh && !self.left {
            return;
        }
        self.left = false;
        let hung = now >= upstream.since.get().after(patience * HUNG);
        upstream.calls.borrow_mut().waiting(|tag, body| {
            if self.left || tag.hedged || tag.caller.is_over() {
                return;
            }
            let service = Rc::clone(&tag.service);
            match service.rival(tag, server, hung) {
                Rival::Server(rival) => {
                    service.counters.hedged.add(1);
                    service.push(&rival, body, tag.copy(server.id));
                }
                Rival::Later => self.left = true,
                Rival::None => {}
            }
        });
    }

    /// Gives up what is due. Returns whether the server has been silent for so long that nothing is to be expected of
    /// it.
    fn expire(&mut self) -> bool {
        let now = self.worker.clock.now();
        if self.upstream.due.get() > now {
            return false;
        }
        let mut left = Vec::new();
        let next = self.upstream.calls.borrow_mut().expire(now, |one| left.push(one));
        self.upstream.due.set(next);
        // Requests that their clients gave up before say nothing about the server.
        let too_long = left.iter().any(|Left { tag, .. }| tag.until > now);
        let mut to_wait = Vec::new();
        for Left { tag, body, sent } in left {
            self.upstream.server.settle();
            if tag.lost() {
                continue;
            }
            if tag.access == Access::Update && sent {
                tag.unknown("the server did not answer this update in time");
            } else if tag.until <= now {
                tag.late();
            } else {
                to_wait.extend(self.elsewhere(tag, body, false));
            }
        }
        FramesService::wait_again(to_wait);
        too_long && self.heard.after(self.upstream.patience.get()) <= now
    }

    /// Sends a request of which nothing was done, or whose repetition harms nobody, to another server.
    fn elsewhere(&self, mut tag: Tag, body: Vec<u8>, refused: bool) -> Option<(Tag, Box<[u8]>)> {
        let service = Rc::clone(&tag.service);
        // A leader that cannot be reached is waited for; any other server is one of a few that are tried.
        let leader_only = service.policy.leader_only(tag.access);
        let free = refused && leader_only;
        if !free && !self.upstream.server.may_retry(self.worker.clock.now()) {
            tag.unavailable(TOO_MANY_RETRIES);
            return None;
        }
        service.counters.retried.add(1);
        (tag.hint, tag.hedged) = (None, false);
        tag.failures += u8::from(!free);
        let more = tag.tried.add(self.upstream.server.id) || leader_only;
        if tag.failures >= MAX_FAILURES || !more {
            tag.unavailable("connections to the partition's servers fail");
            return None;
        }
        if leader_only {
            tag.tried = Default::default();
        }
        match service.pick(&tag) {
            Target::Server(server) => service.push(&server, &body, tag),
            Target::Exhausted => tag.unavailable("no clone of the partition's RACS answers"),
            Target::Full => tag.overloaded(SERVERS_FULL),
            Target::Wait => return Some((tag, body.into())),
        }
        None
    }

    /// Reads and delivers until nothing more is there.
    fn poll_answers(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if !ready!(self.inbox.poll_read(stream, cx)) {
                let idle = self.upstream.calls.borrow().is_empty();
                return Poll::Ready(if idle { End::Idle } else { End::Failed });
            }
            self.heard();
            let mut inbox = std::mem::take(&mut self.inbox);
            let delivered = inbox.deliver(|bytes| self.deliver(bytes));
            self.inbox = inbox;
            if let Err(error) = delivered {
                let server = self.upstream.server.addr;
                tracing::warn!(%server, error, "a server's answer cannot be believed");
                return Poll::Ready(End::Failed);
            }
        }
    }

    /// Delivers the answers at the start of `input`. Returns how many bytes they have.
    fn deliver(&mut self, input: &[u8]) -> Result<usize, String> {
        let mut done = 0;
        while done < input.len() {
            let next = &input[done..];
            let scanned = self.scanner.scan(next, MAX_FRAME).map_err(|error| error.to_string())?;
            let Some(response) = scanned else { break };
            let answered = self.upstream.calls.borrow_mut().answered(response.msgid, &mut self.request);
            let unasked = |_| format!("nobody waits for an answer under msgid {}", response.msgid);
            if let Answered::To(tag) = answered.map_err(unasked)? {
                self.upstream.server.settle();
                let (now, avoid) = (self.worker.clock.now(), self.worker.limits.avoid);
                let class = Class::of_reply(response.error.is_some());
                self.upstream.server.responded(&tag.service.counters, class);
                self.upstream.server.answered(now, Said::Well, avoid);
                if let Some(stopwatch) = &tag.timed {
                    self.upstream.server.took(self.worker.clock.now(), stopwatch);
                }
                self.upstream.server.measured(tag.sent, &self.worker.clock);
                let body = &next[response.body.clone()];
                match response.error.and_then(|error| Refusal::read(&next[error])) {
                    Some(refusal) => {
                        let request = std::mem::take(&mut self.request);
                        tag.refused(&self.upstream.server, request, body, refusal);
                    }
                    None => tag.deliver(body),
                }
            }
            done += response.len;
        }
        Ok(done)
    }

    /// Decides about every request without answer: reads go to another clone, updates that the server cannot have
    /// executed to whoever leads, and of the rest nobody knows.
    fn hand_back(&mut self, refused: bool) {
        let mut left = Vec::new();
        self.upstream.calls.borrow_mut().fail(|one| left.push(one));
        let mut to_wait = Vec::new();
        for Left { tag, body, sent } in left {
            self.upstream.server.settle();
            if tag.lost() {
                continue;
            }
            if sent && tag.access == Access::Update {
                tag.unknown("the server failed with this update under way");
            } else if tag.caller.is_gone() && tag.access == Access::Read {
                tag.service.admission.leave();
            } else {
                to_wait.extend(self.elsewhere(tag, body, refused));
            }
        }
        FramesService::wait_again(to_wait);
    }
}

impl Drop for Task {
    /// Only a panic, or the end of the router, leaves requests behind: nobody would ever answer them, and nothing is
    /// known of them.
    fn drop(&mut self) {
        self.detach();
        let Ok(mut calls) = self.upstream.calls.try_borrow_mut() else { return };
        calls.fail(|Left { tag, .. }| {
            self.upstream.server.settle();
            if !tag.lost() {
                tag.unknown("the router failed");
            }
        });
    }
}
