//! A client's side of the conversation: its input is read and dispatched as far as it may be, answers are written.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Client, ClientService, Dialogue, READ, State, Taken, UnderWay};
use crate::worker::{ClientStream, Deadline, LAST_CHANCE, MOST_INPUT, linger};

/// How often it is looked whether a client has gone whose input is not read.
const LOOK: Duration = Duration::from_secs(1);

/// How many requests of a client may be under way before its first answer.
const FIRST: usize = 64;

/// A client's task.
pub(crate) struct ClientTask<P: Dialogue> {
    service: Rc<P::Service>,
    client: Rc<Client<P>>,
    stream: ClientStream,
    deadline: Deadline,
    input: P::Input,
    /// Input that is not dispatched yet: an incomplete request, or requests beyond what may be under way at once.
    rest: Vec<u8>,
    /// Whether `rest` may start with a whole request.
    backlog: bool,
    /// The next request waits until every earlier one has its answer.
    draining: bool,
    /// Whether anything was read of it.
    heard: bool,
    /// It was not heard yet, and has to be soon.
    hurried: bool,
    /// The deadline is only there to look whether the client has gone.
    looks: bool,
    /// No more input is wanted: what is under way ends, then the connection does.
    closing: bool,
    /// It was sent away for what it said.
    refused: bool,
    /// Why it ends.
    end: &'static str,
}

impl<P: Dialogue> ClientTask<P> {
    pub fn new(service: Rc<P::Service>, stream: ClientStream) -> Self {
        let deadline = Deadline::new(&service.worker().clock);
        Self {
            client: Rc::new(Client::new(&service, &stream)),
            service,
            stream,
            deadline,
            input: P::Input::default(),
            rest: Vec::new(),
            backlog: false,
            draining: false,
            heard: false,
            hurried: false,
            looks: false,
            closing: false,
            refused: false,
            end: "router",
        }
    }

    /// What another process told of the client, and what the client has said already.
    pub fn after(mut self, session: &[u8], input: Vec<u8>) -> Self {
        P::heard(&self.client, session);
        (self.backlog, self.rest) = (!input.is_empty(), input);
        self
    }

    pub async fn serve(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        if self.refused && !self.client.is_gone() {
            linger(&mut self.stream, &self.deadline, &self.service.worker().clock).await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.client.waker.register(cx);
        self.client.state.borrow_mut().held = false;
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
            let worker = self.service.worker();
            let sent_away = worker.is_draining() && !worker.gives_way();
            if sent_away || self.service.succession().has_ended() {
                self.closing |= self.heard;
                if !self.heard && !std::mem::replace(&mut self.hurried, true) {
                    self.deadline.arm(LAST_CHANCE);
                }
            }
            self.succeed();
            if self.leaves(self.rest.len()) && self.is_quiet() && !self.closing {
                self.closing = self.stream.is_tls();
                if !self.closing {
                    self.bequeath();
                    self.end = "passed on";
                    return Poll::Ready(());
                }
            }
            if self.closing {
                if self.is_quiet() {
                    return Poll::Ready(());
                }
                self.hold();
                break;
            }
            let blocked = P::is_blocked(&self.client);
            if blocked {
                let ahead = if self.is_full() { self.poll_hang_up() } else { self.poll_ahead(cx) };
                match ahead {
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => {
                        self.end = "client";
                        return Poll::Ready(());
                    }
                    Poll::Pending => {}
                }
            }
            if blocked || !self.may_go_on(self.rest.len()) {
                self.hold();
                break;
            }
            if self.backlog {
                self.dispatch_rest();
                continue;
            }
            if !P::has_room(&self.service, &mut self.input, &mut self.rest, cx) {
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
        // Progress disarms it: a client that neither reads its answers nor ends its request is cut off in the end. One
        // that has to wait for others is not to blame.
        let waits = self.backlog || crowded || P::is_blocked(&self.client);
        let stuck = !self.client.state.borrow().out.is_empty() || !(self.rest.is_empty() || waits);
        let looks = !stuck && P::is_blocked(&self.client) && self.is_full();
        if std::mem::replace(&mut self.looks, looks) {
            self.deadline.disarm();
        }
        if looks {
            self.deadline.arm(LOOK);
        } else if !stuck && !self.hurried {
            self.deadline.disarm();
        } else if !self.deadline.is_armed() {
            self.deadline.arm(self.service.limits().stall);
        }
        if self.deadline.passed(cx) {
            if stuck {
                self.end = "stalled";
            }
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Goes over to the newest configuration of the service once nothing is under way: all requests that are under way
    /// at once are routed by one configuration.
    fn succeed(&mut self) {
        while let Some(next) = self.service.succession().next() {
            if !(self.is_quiet() && P::may_move(&self.client)) {
                return;
            }
            let next = Rc::clone(next);
            *self.client.service.borrow_mut() = Rc::clone(&next);
            self.service = next;
            P::moved(&self.client, &mut self.input);
            self.backlog = !self.rest.is_empty();
        }
    }

    /// Whether the client is to pass to another process before its next request, of which so much has come. Who speaks
    /// TLS cannot, and has to go; but not before it had an answer.
    fn leaves(&self, ahead: usize) -> bool {
        self.service.worker().gives_way()
            && ahead <= MOST_INPUT
            && P::is_between(&self.input)
            && P::may_move(&self.client)
            && !(self.stream.is_tls() && self.client.state.borrow().usual == 0)
    }

    fn is_quiet(&self) -> bool {
        self.client.state.borrow().is_quiet()
    }

    /// Every answer wakes the task from now on, shown or not.
    fn hold(&self) {
        self.client.state.borrow_mut().held = true;
    }

    fn bequeath(&self) {
        let (service, session) = (&self.service, P::told(&self.client));
        service.worker().bequeath((service.name(), P::PROTOCOL), &self.stream, session, &self.rest);
    }

    /// Whether a further request may be under way; so much of what follows has come.
    fn may_go_on(&self, ahead: usize) -> bool {
        let moves = self.service.succession().next().is_some() && P::may_move(&self.client);
        if moves || self.leaves(ahead) {
            return false;
        }
        let limits = self.service.limits();
        let state = self.client.state.borrow();
        let (under_way, unread, expected) = (state.under_way.len(), state.unread(), state.expected());
        // Where nothing is known of its answers yet, a client begins with a few requests.
        let pipeline = if state.usual == 0 { limits.pipeline.min(FIRST) } else { limits.pipeline };
        let share = limits.backlog / 4;
        let crowded = self.service.clients().unread() > limits.unread_in_all;
        (!self.draining || under_way == 0)
            && under_way < pipeline
            && state.owed < limits.backlog
            && unread < limits.backlog
            && (expected < limits.backlog || under_way == 0)
            && !(crowded && (unread > share || expected > share))
    }

    /// Writes as many answers as the socket takes. An error means that nobody reads them.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        let mut state = self.client.state.borrow_mut();
        let state = &mut *state;
        while state.sent < state.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &state.out[state.sent..]) {
                Poll::Ready(Ok(len)) if len > 0 => {
                    state.sent += len;
                    self.service.clients().went(len);
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
        let mut scratch = service.clients().scratch.borrow_mut();
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
        (self.heard, self.hurried) = (true, false);
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

    /// Whether so much has come behind a command that waits that no more is read. From there on the end of the client is
    /// only seen if what the kernel holds of its words is all.
    fn is_full(&self) -> bool {
        self.rest.len() >= READ.max(self.service.limits().backlog / 4)
    }

    /// Sees whether a client whose input is not read has gone. False means that it has.
    fn poll_hang_up(&self) -> Poll<bool> {
        if self.stream.has_hung_up() { Poll::Ready(false) } else { Poll::Pending }
    }

    /// Reads once, for later. False means that the client has nothing more to say.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = self.service.clients().scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(false),
            Poll::Ready(Ok(())) => {
                self.rest.extend_from_slice(buffer.filled());
                self.backlog = true;
                Poll::Ready(!buffer.filled().is_empty())
            }
        }
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

    /// Dispatches the requests at the start of `bytes`, as many as may be under way. Returns how many bytes they have.
    fn dispatch(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.backlog = false;
        while done < bytes.len() && !self.closing {
            if !self.may_go_on(bytes.len() - done) {
                self.backlog = true;
                break;
            }
            self.draining = false;
            match P::take(&self.service, &self.client, &mut self.input, &bytes[done..]) {
                Taken::Incomplete => break,
                Taken::Bytes(len) => done += len,
                Taken::Last(len) => {
                    (self.closing, self.end) = (true, "client");
                    done += len;
                }
                Taken::Later => {
                    (self.backlog, self.draining) = (true, true);
                    break;
                }
                Taken::Refused => {
                    (self.closing, self.refused, self.end) = (true, true, "refused");
                    return bytes.len();
                }
            }
        }
        done
    }
}

impl<P: Dialogue> Drop for ClientTask<P> {
    fn drop(&mut self) {
        P::left(&self.client);
        if let Some(log) = self.service.log() {
            self.client.tally.end(log, &self.stream, &self.service.worker().clock, self.end);
        }
        let mut state = self.client.state.borrow_mut();
        self.service.clients().went(state.unread());
        // Answers to what is under way come later, to nobody.
        *state = State { gone: true, owed: state.owed, ..State::default() };
    }
}
