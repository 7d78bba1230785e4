//! One client: its requests in, its answers out as they come.

use std::{
    cell::RefCell,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use router_proto::frames::{
    self, Complaint, FrameError, MAX_FRAME, RequestScanner, Verdict, push_complaint, push_notice,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Caller, FramesService, Held, READ};
use crate::{
    access::Tally,
    worker::{ClientStream, Deadline, MOST_INPUT, Placements, linger},
};

/// How many requests of a client may be under way before its first answer.
const FIRST: usize = 64;
/// Requests beyond so many bytes need room of the service's before they are read.
const LARGE: usize = READ;

/// For a client that is not served at all.
pub(crate) fn too_many_clients() -> Vec<u8> {
    let mut notice = Vec::new();
    push_notice(&mut notice, &complaint(Verdict::Busy, &"too many clients", None));
    notice
}

fn complaint<'a>(
    verdict: Verdict,
    error: &'a dyn std::fmt::Display,
    service: Option<&'a str>,
) -> Complaint<'a> {
    Complaint { verdict, error, service, partition: None, epoch: None, leader: None }
}

/// What servers' tasks see of a client: where its answers go.
pub(super) struct Client {
    /// As it was configured when what is under way came in.
    service: RefCell<Rc<FramesService>>,
    /// For the access log.
    pub tally: Tally,
    /// The clone of each RACS that it stays with, where clients do.
    pub placements: Placements,
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct State {
    /// Answers; those before `sent` are with the kernel.
    out: Vec<u8>,
    sent: usize,
    /// Requests without answer, and their bytes.
    under_way: usize,
    owed: usize,
    /// How large answers have been lately: the largest counts at once, and is forgotten over some dozens.
    usual: usize,
    /// The client has gone, or is being sent away: answers are thrown away.
    gone: bool,
}

impl State {
    fn unread(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Bytes that the answers to what is under way may have.
    fn expected(&self) -> usize {
        self.under_way.saturating_mul(self.usual)
    }
}

impl Client {
    /// Where it connected from.
    pub fn source(&self) -> IpAddr {
        self.tally.source.ip()
    }

    /// Whether nobody reads this client's answers any more.
    pub fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    /// Notes that a request of so many bytes is under way.
    pub fn owe(&self, len: usize) {
        let mut state = self.state.borrow_mut();
        state.owed += len;
        state.under_way += 1;
    }

    /// Appends the answer to a request of so many bytes; wakes the client if it is the first.
    pub fn put(&self, request_len: usize, answer: &[u8]) {
        self.append(request_len, |out| out.extend_from_slice(answer));
    }

    /// As [`Client::put`], for error and result of a server.
    pub fn put_answer(&self, request_len: usize, msgid: u32, body: &[u8]) {
        self.append(request_len, |out| frames::push_response(out, msgid, body));
    }

    fn append(&self, request_len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.borrow_mut();
        state.owed -= request_len;
        state.under_way -= 1;
        if state.gone {
            return;
        }
        let before = state.out.len();
        write(&mut state.out);
        let len = state.out.len() - before;
        state.usual = if len > state.usual { len } else { state.usual - (state.usual - len) / 16 };
        let service = self.service.borrow();
        service.unread.set(service.unread.get() + len);
        if state.unread() > service.worker.limits.unread {
            state.gone = true;
        }
        // Who is held back waits for answers, too.
        if before == 0 || state.gone {
            drop(state);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A client's task.
pub(super) struct Task {
    service: Rc<FramesService>,
    client: Rc<Client>,
    stream: ClientStream,
    deadline: Deadline,
    scanner: RequestScanner,
    /// Input that is not dispatched yet: an incomplete request, or requests beyond what may be under way at once.
    rest: Vec<u8>,
    /// Whether `rest` may start with a whole request.
    backlog: bool,
    /// Room for the large request that `rest` begins with.
    held: Option<Held>,
    /// No more input is wanted: what is under way ends, then the connection does.
    closing: bool,
    /// It was sent away for what it said.
    refused: bool,
    /// Why it ends.
    end: &'static str,
}

impl Task {
    pub fn new(service: Rc<FramesService>, stream: ClientStream) -> Self {
        let deadline = Deadline::new(&service.worker.clock);
        let client = Client {
            service: RefCell::new(Rc::clone(&service)),
            tally: Tally::new(&stream, &service.worker.clock),
            placements: Placements::default(),
            state: RefCell::default(),
            waker: RefCell::default(),
        };
        Self {
            client: Rc::new(client),
            service,
            stream,
            deadline,
            scanner: RequestScanner::default(),
            rest: Vec::new(),
            backlog: false,
            held: None,
            closing: false,
            refused: false,
            end: "router",
        }
    }

    /// What the client has said already.
    pub fn after(mut self, input: Vec<u8>) -> Self {
        (self.backlog, self.rest) = (!input.is_empty(), input);
        self
    }

    pub async fn serve(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        if self.refused && !self.client.is_gone() {
            linger(&mut self.stream, &self.deadline, &self.service.worker.clock).await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        {
            let mut waker = self.client.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        let mut crowded = false;
        loop {
            if self.poll_write(cx).is_err() {
                self.end = "client";
                return Poll::Ready(());
            }
            if self.client.is_gone() {
                self.end = "unread";
                return Poll::Ready(());
            }
            let worker = &self.service.worker;
            let sent_away = worker.is_draining() && !worker.gives_way();
            self.closing |= sent_away || self.service.succession.has_ended();
            self.succeed();
            if self.leaves(self.rest.len()) && self.is_answered() && !self.closing {
                self.closing = self.stream.is_tls();
                if !self.closing {
                    self.bequeath();
                    self.end = "passed on";
                    return Poll::Ready(());
                }
            }
            if self.closing {
                let state = self.client.state.borrow();
                if state.under_way == 0 && state.out.is_empty() {
                    return Poll::Ready(());
                }
                break;
            }
            if !self.may_go_on(self.rest.len()) {
                break;
            }
            if self.backlog {
                self.dispatch_rest();
                continue;
            }
            if !self.has_room(cx) {
                crowded = true;
                break;
            }
            match self.poll_read(cx) {
                Poll::Ready(true) => {}
                // The client may only have shut down its sending side: it gets the answers that it still waits for.
                Poll::Ready(false) => (self.closing, self.end) = (true, "client"),
                Poll::Pending => break,
            }
        }
        // Progress disarms it: a client that neither reads its answers nor ends its request is cut off in the end. One that has to
        // wait for others is not to blame.
        let unread = !self.client.state.borrow().out.is_empty();
        let stuck = unread || !(self.rest.is_empty() || self.backlog || crowded);
        if !stuck {
            self.deadline.disarm();
        } else if !self.deadline.is_armed() {
            self.deadline.arm(self.service.worker.limits.stall);
        }
        if self.deadline.passed(cx) {
            self.end = "stalled";
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Goes over to the newest configuration of the service once nothing is under way.
    fn succeed(&mut self) {
        while let Some(next) = self.service.succession.next() {
            let state = self.client.state.borrow();
            if !(state.under_way == 0 && state.out.is_empty()) {
                return;
            }
            let next = Rc::clone(next);
            *self.client.service.borrow_mut() = Rc::clone(&next);
            drop(state);
            self.service = next;
            // Keys may be elsewhere now: what has come of the next request is looked at again.
            self.scanner = RequestScanner::default();
            self.backlog = !self.rest.is_empty();
        }
    }

    /// Whether the client is to pass to another process before its next request, of which so much has come. Who speaks TLS
    /// cannot, and has to go; but not before it had an answer.
    fn leaves(&self, ahead: usize) -> bool {
        let is_new = || self.client.state.borrow().usual == 0;
        self.service.worker.gives_way() && ahead <= MOST_INPUT && !(self.stream.is_tls() && is_new())
    }

    fn is_answered(&self) -> bool {
        let state = self.client.state.borrow();
        state.under_way == 0 && state.out.is_empty()
    }

    fn bequeath(&self) {
        let service = &self.service;
        let whom = (&*service.name, FramesService::PROTOCOL);
        service.worker.bequeath(whom, &self.stream, Vec::new(), &self.rest);
    }

    /// Whether a further request may be under way; so much of what follows has come.
    fn may_go_on(&self, ahead: usize) -> bool {
        if self.service.succession.next().is_some() || self.leaves(ahead) {
            return false;
        }
        let limits = &self.service.worker.limits;
        let state = self.client.state.borrow();
        let (unread, expected) = (state.unread(), state.expected());
        // Where nothing is known of its answers yet, a client begins with a few requests.
        let pipeline = if state.usual == 0 { limits.pipeline.min(FIRST) } else { limits.pipeline };
        let share = limits.backlog / 4;
        let crowded = self.service.unread.get() > limits.unread_in_all;
        state.under_way < pipeline
            && state.owed < limits.backlog
            && unread < limits.backlog
            && (expected < limits.backlog || state.under_way == 0)
            && !(crowded && (unread > share || expected > share))
    }

    /// Whether there is room for the rest of the request that `rest` begins with.
    fn has_room(&mut self, cx: &Context<'_>) -> bool {
        let Some(len) = RequestScanner::expected(&self.rest) else { return true };
        // One that is too long is refused, for which no room is needed.
        if self.held.is_some() || len <= LARGE || len > MAX_FRAME + 4 {
            return true;
        }
        self.held = self.service.hold(len);
        if self.held.is_none() {
            self.service.crowd.borrow_mut().push(cx.waker().clone());
            return false;
        }
        self.rest.reserve_exact(len - self.rest.len());
        true
    }

    /// Writes as many answers as the socket takes. An error means that nobody reads them.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        let mut state = self.client.state.borrow_mut();
        let state = &mut *state;
        while state.sent < state.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &state.out[state.sent..]) {
                Poll::Ready(Ok(len)) if len > 0 => {
                    state.sent += len;
                    self.service.unread.set(self.service.unread.get() - len);
                    self.deadline.disarm();
                }
                Poll::Ready(_) => return Err(()),
                Poll::Pending => return Ok(()),
            }
        }
        if !state.out.is_empty() {
            state.out.clear();
            state.out.shrink_to(READ);
            state.sent = 0;
        }
        Ok(())
    }

    /// Reads once and dispatches what came. False means that the client has nothing more to say.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let service = Rc::clone(&self.service);
        let mut scratch = service.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Ready(Ok(())) => {}
        }
        let fresh = buffer.filled();
        if fresh.is_empty() {
            return Poll::Ready(false);
        }
        self.deadline.disarm();
        if self.rest.is_empty() {
            let done = self.dispatch(fresh);
            self.rest.extend_from_slice(&fresh[done..]);
        } else {
            self.rest.extend_from_slice(fresh);
            drop(scratch);
            self.dispatch_rest();
        }
        Poll::Ready(true)
    }

    fn dispatch_rest(&mut self) {
        let mut rest = std::mem::take(&mut self.rest);
        let done = self.dispatch(&rest);
        rest.drain(..done);
        if done > 0 {
            rest.shrink_to(READ);
        }
        self.rest = rest;
    }

    /// Dispatches the requests at the start of `input`, as many as may be under way. Returns how many bytes they have.
    fn dispatch(&mut self, input: &[u8]) -> usize {
        let mut done = 0;
        self.backlog = false;
        while done < input.len() {
            if !self.may_go_on(input.len() - done) {
                self.backlog = true;
                break;
            }
            let next = &input[done..];
            match self.scanner.scan(next, MAX_FRAME, Some(&self.service.paths)) {
                Ok(None) => break,
                Ok(Some(request)) => {
                    Tally::add(&self.client.tally.commands);
                    let (client, msgid, len) = (Rc::clone(&self.client), request.msgid, request.len);
                    let caller = Caller::Client { client, msgid, len };
                    self.service.dispatch(caller, &next[..request.len], &request, self.held.take());
                    done += request.len;
                }
                Err(error) => {
                    self.refuse(error);
                    return input.len();
                }
            }
        }
        done
    }

    fn refuse(&mut self, error: FrameError) {
        self.service.counters.refused.add(1);
        Tally::add(&self.client.tally.refused);
        self.service.note(&self.client, b"", None, None, 0, Some(&error.to_string()), Duration::ZERO);
        let complaint = complaint(Verdict::Refused, &error, Some(&self.service.name));
        let mut text = Vec::new();
        match self.scanner.msgid() {
            Some(msgid) => push_complaint(&mut text, msgid, &complaint),
            None => push_notice(&mut text, &complaint),
        }
        self.client.owe(0);
        self.client.put(0, &text);
        self.closing = true;
        self.refused = true;
        self.end = "refused";
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(log) = &self.service.log {
            self.client.tally.end(log, &self.stream, &self.service.worker.clock, self.end);
        }
        let mut state = self.client.state.borrow_mut();
        self.service.unread.set(self.service.unread.get() - state.unread());
        // Answers to what is under way come later, to nobody.
        let State { owed, under_way, .. } = *state;
        *state = State { gone: true, owed, under_way, ..State::default() };
    }
}
