//! The server's side of a lane: requests out, answers in, and what becomes of requests when the lane ends.

use std::{
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use router_proto::{
    http::{Answers, Doubt},
    pipelined::{Flight, Gathering},
};
use tokio::net::TcpStream;

use super::{Lane, Left, Size, State, Tag, Turn, Waiter};
use crate::worker::{Deadline, Inbox, READ, Worker};

/// A lane that has given fewer answers when its server ends it is not worth its costs.
const WORTHWHILE: u64 = 100;
/// Nor is one that has given fewer for each request that it leaves to be sent again.
const WORTH_ONE_LEFT: u64 = 10;

/// Starts to connect, within this time.
pub(super) fn start(lane: &Rc<Lane>, connecting: Duration) {
    let task = Task {
        deadline: Deadline::new(&lane.worker.clock),
        lane: Rc::clone(lane),
        inbox: Inbox::new(),
        answers: Answers::default(),
        size: Size::default(),
        mode: Mode::Shared,
        count: 0,
        afresh: false,
        pace: Pace::Idle,
        comes_last: false,
        left: 0,
        keep: lane.worker.limits.pool_idle,
    };
    tokio::task::spawn_local(task.run(connecting));
}

struct Task {
    lane: Rc<Lane>,
    deadline: Deadline,
    inbox: Inbox,
    answers: Answers,
    size: Size,
    mode: Mode,
    /// How many answers have come.
    count: u64,
    /// Whether what is under way came in when nothing was, on a connection that had been used before, and nothing has
    /// been answered since: the server may have closed it for want of use.
    afresh: bool,
    pace: Pace,
    /// Whether it has let all others go first that had something to do.
    comes_last: bool,
    /// How many still wait for a server that was silent: the oldest.
    left: usize,
    /// How long to keep the connection without use.
    keep: Duration,
}

/// Who may use the lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    /// The server was silent for too long: only those are left who may not be sent again.
    Silent,
    /// One large or slow answer has it for itself.
    Exclusive,
}

/// What the deadline is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Nothing is under way.
    Idle,
    /// The next head, or the end of the answer in hand.
    Next,
    /// Something has just come: it is to be set anew.
    Moved,
}

/// How a lane ends.
#[derive(Debug)]
enum End {
    /// No connection could be made.
    Refused,
    /// Nobody needs it any more.
    Idle,
    /// The server ended it in an orderly way, before it began with what is still under way.
    Closed,
    /// An answer ends with the connection, as it may.
    Unshared,
    Failed,
}

impl Task {
    async fn run(mut self, connecting: Duration) {
        let end = match self.connect(connecting).await {
            None => End::Refused,
            Some(mut stream) => std::future::poll_fn(|cx| self.poll(&mut stream, cx)).await,
        };
        self.end(&end);
    }

    /// Whoever sends something to this server from now on takes another connection.
    fn detach(&self) {
        self.lane.server.lane.forget(&self.lane);
    }

    /// As above, and for this long that is one of its own.
    fn rest(&self, time: Duration) {
        self.detach();
        self.lane.server.lane.rests_until.set(self.lane.worker.clock.now().after(time));
    }

    fn end(&mut self, end: &End) {
        let (server, worker) = (&self.lane.server, &self.lane.worker);
        let (now, avoid) = (worker.clock.now(), worker.limits.avoid);
        let left = match end {
            End::Refused if self.lane.retired.get() => Left::Unbegun,
            End::Refused => {
                server.refused(now, avoid);
                Left::Refused
            }
            // Who has it for itself is told by its end, as on a connection of its own.
            End::Failed if self.mode == Mode::Exclusive => Left::Unbegun,
            End::Failed => {
                server.failed(now, avoid);
                Left::Failed
            }
            End::Idle | End::Closed | End::Unshared => Left::Unbegun,
        };
        match end {
            End::Failed | End::Unshared => self.rest(worker.limits.lane_rest),
            End::Closed if self.count < self.worthwhile() => self.rest(worker.limits.lane_rest),
            _ => self.detach(),
        }
        self.give_up(left);
    }

    fn worthwhile(&self) -> u64 {
        let left = self.lane.pipeline.try_borrow().map_or(0, |pipeline| pipeline.len() as u64);
        WORTHWHILE.max(WORTH_ONE_LEFT * left)
    }

    fn give_up(&self, left: Left) {
        let Ok(mut pipeline) = self.lane.pipeline.try_borrow_mut() else { return };
        pipeline.fail(|Flight { tag, .. }| {
            if let Some(waiter) = tag.waiter {
                waiter.leave(left);
            }
        });
    }

    async fn connect(&mut self, limit: Duration) -> Option<TcpStream> {
        self.deadline.arm(limit);
        let mut connecting = pin!(TcpStream::connect(self.lane.server.addr));
        let (lane, deadline) = (&self.lane, &self.deadline);
        let stream = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.ok());
            }
            lane.hold.waker.register(cx);
            if deadline.passed(cx) || lane.retired.get() { Poll::Ready(None) } else { Poll::Pending }
        });
        let stream = stream.await?;
        stream.set_nodelay(true).ok()?;
        Some(stream)
    }

    fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        let lane = Rc::clone(&self.lane);
        lane.hold.waker.register(cx);
        // Clients first: what they send meanwhile leaves with this batch, and what the server sends comes with one read.
        self.comes_last = !self.comes_last;
        if self.comes_last {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        lane.told.set(false);
        loop {
            if self.mode == Mode::Exclusive {
                return self.poll_exclusive(stream, cx);
            }
            let Ok(full) = lane.hold.write(&mut lane.pipeline.borrow_mut(), stream, cx) else {
                // What has arrived is still worth reading: answers that came before the connection failed.
                return Poll::Ready(match self.poll_answers(stream, cx) {
                    Poll::Ready(end) => end,
                    Poll::Pending => self.broken(),
                });
            };
            if let Poll::Ready(end) = self.poll_answers(stream, cx) {
                return Poll::Ready(end);
            }
            if self.mode == Mode::Exclusive {
                continue;
            }
            // Answers make room for what was held back.
            match lane.pipeline.borrow().gathering() {
                Gathering::Done if !full && !lane.pipeline.borrow().is_written() => continue,
                Gathering::Company => lane.worker.pace.hold(&lane.hold),
                _ => {}
            }
            break;
        }
        self.look_at_deadline(cx)
    }

    fn look_at_deadline(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.lane.pipeline.borrow().is_empty() {
            if self.lane.retired.get() || self.mode == Mode::Silent {
                return Poll::Ready(End::Idle);
            }
            if self.pace != Pace::Idle {
                self.pace = Pace::Idle;
                self.deadline.arm(self.keep);
            }
            return if self.deadline.passed(cx) { Poll::Ready(End::Idle) } else { Poll::Pending };
        }
        if self.mode == Mode::Shared && self.pace != Pace::Next {
            if self.pace == Pace::Idle {
                self.afresh = self.count > 0;
            }
            self.pace = Pace::Next;
            self.deadline.arm(self.lane.patience.get());
        }
        if !self.deadline.passed(cx) {
            return Poll::Pending;
        }
        match self.mode {
            Mode::Shared if self.answers.is_within() => {
                self.hand_over();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Mode::Shared => self.silent(cx),
            Mode::Silent | Mode::Exclusive => {
                self.spare();
                Poll::Ready(End::Failed)
            }
        }
    }

    /// The server says nothing. Who may be sent again goes elsewhere; the others wait as long as anybody would.
    fn silent(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let (server, worker) = (&self.lane.server, &self.lane.worker);
        self.rest(worker.limits.avoid);
        let now = worker.clock.now();
        // What was answered last may have been noted a moment later.
        self.lane.silent_since.set(Some(now.before(self.lane.patience.get() / 2)));
        // The newest first: the oldest have the best prospects here.
        for tag in self.lane.pipeline.borrow_mut().tags_mut().rev() {
            if server.may_retry(now) {
                release(tag, Left::Silent);
            } else {
                self.left += 1;
            }
        }
        if self.left == 0 {
            return Poll::Ready(End::Idle);
        }
        self.mode = Mode::Silent;
        self.deadline.arm(self.lane.response.get());
        self.deadline.passed(cx);
        Poll::Pending
    }

    /// The answer in hand is too large to be kept, or all are, or too slow to be waited for: it has the connection for itself.
    fn hand_over(&mut self) {
        self.rest(self.lane.worker.limits.avoid);
        self.mode = Mode::Exclusive;
        self.spare();
        // What has come of it is shown now: the rest may be long in coming, as that of a stream of events.
        if let Some(waiter) = self.lane.pipeline.borrow().front().and_then(|tag| tag.waiter.as_ref()) {
            waiter.turn(State::Begun);
        }
        self.deadline.arm(self.lane.stall.get());
    }

    /// Sends everybody elsewhere but the oldest: the server answers in order, so it has not begun with them, and what
    /// is wrong is wrong with one answer.
    fn spare(&self) {
        self.lane.pipeline.borrow_mut().tags_mut().skip(1).for_each(|tag| release(tag, Left::Unbegun));
    }

    /// Passes one answer on, no faster than its client takes it.
    fn poll_exclusive(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        let lane = Rc::clone(&self.lane);
        let waiter = lane.pipeline.borrow().front().and_then(|tag| tag.waiter.clone());
        let Some(waiter) = waiter else { return Poll::Ready(End::Idle) };
        if waiter.gone.get() {
            return Poll::Ready(End::Idle);
        }
        if waiter.out.borrow().len() >= READ {
            // How long the client may take is its own task's business.
            self.deadline.disarm();
            return Poll::Pending;
        }
        if !self.deadline.is_armed() {
            self.deadline.arm(lane.stall.get());
        }
        match self.poll_read(stream, cx) {
            Poll::Ready(Some(end)) => Poll::Ready(end),
            Poll::Ready(None) => {
                self.deadline.disarm();
                // Its client comes first.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending if self.deadline.passed(cx) => Poll::Ready(End::Idle),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads and delivers until nothing more is there, or one answer takes the lane.
    fn poll_answers(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        while self.mode != Mode::Exclusive {
            if let Some(end) = ready!(self.poll_read(stream, cx)) {
                return Poll::Ready(end);
            }
        }
        Poll::Pending
    }

    /// Reads once and delivers what came.
    fn poll_read(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if !ready!(self.inbox.poll_read(stream, cx)) {
            return Poll::Ready(Some(self.broken()));
        }
        let mut inbox = std::mem::take(&mut self.inbox);
        let delivered = inbox.deliver(|bytes| self.deliver(bytes));
        self.inbox = inbox;
        Poll::Ready(delivered.err())
    }

    /// Delivers the answers at the start of `input`. Returns how many bytes are dealt with.
    fn deliver(&mut self, input: &[u8]) -> Result<usize, End> {
        let lane = Rc::clone(&self.lane);
        let mut done = 0;
        while done < input.len() {
            let oldest = lane.pipeline.borrow().oldest().map(|(tag, _)| (tag.method, tag.waiter.clone()));
            let Some((method, waiter)) = oldest else {
                return Err(self.doubt("an answer to nothing that it was asked"));
            };
            let was_within = self.answers.is_within();
            let waiter = waiter.filter(|waiter| !waiter.gone.get());
            let mut turn = Turn {
                waiter: waiter.as_deref(),
                worker: &lane.worker,
                size: &mut self.size,
                keep_alive_s: &mut None,
            };
            let read = match self.answers.read(&input[done..], method, &mut turn) {
                Ok(read) => read,
                Err(doubt) => {
                    let end = self.doubt(&doubt);
                    return Err(if doubt == Doubt::UntilClose { End::Unshared } else { end });
                }
            };
            let keep_alive_s = *turn.keep_alive_s;
            if let Some(seconds) = keep_alive_s {
                // Stop a second before it does.
                let announced = Duration::from_secs(u64::from(seconds).saturating_sub(1));
                self.keep = announced.min(lane.worker.limits.pool_idle);
            }
            done += read.len;
            let Some(persistent) = read.whole else {
                if self.answers.is_within() {
                    self.within(waiter.as_deref(), was_within, &lane.worker);
                }
                break;
            };
            self.count += 1;
            self.afresh = false;
            self.pace = Pace::Moved;
            lane.pipeline.borrow_mut().answered();
            self.left = self.left.saturating_sub(1);
            if let Some(waiter) = waiter {
                waiter.turn(State::Whole);
            }
            if self.mode == Mode::Exclusive || (self.mode == Mode::Silent && self.left == 0) {
                return Err(End::Idle);
            }
            if !persistent {
                return Err(End::Closed);
            }
        }
        Ok(done)
    }

    /// A part of an answer has come.
    fn within(&mut self, waiter: Option<&Waiter>, was_within: bool, worker: &Worker) {
        if !was_within {
            self.pace = Pace::Moved;
        }
        let (limits, size) = (&worker.limits, self.size.bytes);
        // What is small is shown whole or not at all, as long as others wait too: until then it can still come from
        // elsewhere.
        let begins = size > limits.lane_held as u64 || self.mode == Mode::Exclusive;
        if let Some(waiter) = waiter
            && (begins || waiter.state.get() == State::Begun)
        {
            waiter.turn(State::Begun);
        }
        // Nor do many that wait for their clients become more than is kept for all of them.
        let full = waiter.is_some_and(|waiter| waiter.held.get() > limits.unread_in_all);
        if self.mode != Mode::Exclusive && (full || size > limits.lane_answer as u64) {
            self.hand_over();
        }
    }

    /// What came cannot be believed.
    fn doubt(&self, why: &(impl std::fmt::Display + ?Sized)) -> End {
        let server = self.lane.server.addr;
        tracing::warn!(%server, "requests that share a connection go on without it: {why}");
        self.spare();
        End::Failed
    }

    /// The connection has ended.
    fn broken(&self) -> End {
        if self.lane.pipeline.borrow().is_empty() {
            End::Idle
        } else if self.afresh && self.inbox.is_empty() && !self.answers.is_within() {
            End::Closed
        } else {
            self.spare();
            End::Failed
        }
    }
}

/// Nobody waits for this answer any more.
fn release(tag: &mut Tag, left: Left) {
    if let Some(waiter) = tag.waiter.take() {
        waiter.leave(left);
    }
}

impl Drop for Task {
    /// Only a panic, or the end of the router, leaves requests behind: nobody would ever answer them.
    fn drop(&mut self) {
        self.detach();
        self.give_up(Left::Failed);
    }
}
