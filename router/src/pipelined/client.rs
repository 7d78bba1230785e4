//! One client: its commands in, its replies out in their order.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use router_proto::pipelined::{Reorder, Seq};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Dialect, Service, Taken};
use crate::{
    access::Tally,
    worker::{ClientStream, Deadline, MOST_INPUT, Placements, linger},
};

/// How many commands of a client may be under way before its first reply.
const FIRST: usize = 64;

fn follow(usual: &mut usize, len: usize) {
    *usual = if len > *usual { len } else { *usual - (*usual - len) / 16 };
}

/// What servers' tasks see of a client: where its replies go.
pub(crate) struct Client<D: Dialect> {
    /// As it was configured when what is under way came in.
    service: RefCell<Rc<Service<D>>>,
    /// What the protocol keeps of it.
    pub session: D::Session,
    /// For the access log.
    pub tally: Tally,
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
    /// The clone of each RACS that it stays with, where clients do.
    pub placements: Placements,
}

#[derive(Default)]
struct State {
    reorder: Reorder,
    /// Replies whose turn it is; those before `sent` are with the kernel.
    out: Vec<u8>,
    sent: usize,
    /// Bytes of commands without reply.
    owed: usize,
    /// How large replies have been lately: the largest counts at once, and is forgotten over some dozens.
    usual: usize,
    /// Its task waits for replies to come before it goes on, shown or not.
    held: bool,
    /// The client has gone, or is being sent away: replies are thrown away.
    gone: bool,
}

impl State {
    fn unread(&self) -> usize {
        self.out.len() - self.sent + self.reorder.kept()
    }

    /// Bytes that the replies to what is under way may have.
    fn expected(&self) -> usize {
        self.reorder.len().saturating_mul(self.usual)
    }
}

impl<D: Dialect> Client<D> {
    fn new(service: &Rc<Service<D>>, stream: &ClientStream) -> Self {
        Self {
            tally: Tally::new(stream, &service.worker.clock),
            session: D::session(service),
            service: RefCell::new(Rc::clone(service)),
            state: RefCell::default(),
            waker: RefCell::default(),
            placements: Placements::default(),
        }
    }

    /// The service as what is under way knows it.
    pub fn service(&self) -> Rc<Service<D>> {
        Rc::clone(&self.service.borrow())
    }

    /// The same, if it logs.
    pub fn logged(&self) -> Option<Rc<Service<D>>> {
        let service = self.service.borrow();
        service.log.is_some().then(|| Rc::clone(&service))
    }

    /// Whether nobody reads this client's replies any more.
    pub fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    /// Whether every command has its reply.
    pub fn is_answered(&self) -> bool {
        self.state.borrow().reorder.is_empty()
    }

    /// Takes the next place in the order of replies.
    pub fn open(&self) -> Seq {
        Tally::add(&self.tally.commands);
        self.state.borrow_mut().reorder.open()
    }

    pub fn owe(&self, len: usize) {
        self.state.borrow_mut().owed += len;
    }

    pub fn pay(&self, len: usize) {
        self.state.borrow_mut().owed -= len;
    }

    /// Puts a reply into its place; wakes the client if it is its turn.
    pub fn fill(&self, seq: Seq, reply: &[u8], most_unread: usize) {
        let mut state = self.state.borrow_mut();
        if state.gone {
            return;
        }
        let State { reorder, out, usual, held, .. } = &mut *state;
        let before = out.len();
        let len = reply.len();
        follow(usual, len.max(1)); // 0 says that nothing is known yet
        let service = self.service.borrow();
        service.unread.set(service.unread.get() + len);
        reorder.fill(seq, reply, out);
        // A reply that is not shown to the client may be all that its task waits for.
        let turn = before == 0 && (!out.is_empty() || (len == 0 && *held));
        if state.unread() > most_unread {
            state.gone = true;
        }
        if turn || state.gone {
            drop(state);
            self.wake();
        }
    }

    /// Appends what was not asked for, after the replies that are due. Cuts the client off if it leaves more unread
    /// than this.
    pub fn tell(&self, message: &[u8], most_unread: usize) {
        if !self.is_gone() {
            let seq = self.state.borrow_mut().reorder.open();
            self.fill(seq, message, most_unread);
        }
    }

    /// Ends its connection at once.
    pub fn cut(&self) {
        self.state.borrow_mut().gone = true;
        self.wake();
    }

    /// Answers with what `write` appends.
    pub fn answer<T>(&self, seq: Seq, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut reply = Vec::new();
        let written = write(&mut reply);
        self.fill(seq, &reply, usize::MAX);
        written
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A client's task.
pub(super) struct Task<D: Dialect> {
    service: Rc<Service<D>>,
    client: Rc<Client<D>>,
    stream: ClientStream,
    deadline: Deadline,
    commands: D::Commands,
    /// Input that is not dispatched yet: an incomplete command, or commands beyond what may be under way at
    /// once.
    rest: Vec<u8>,
    /// Whether `rest` may start with a whole command.
    backlog: bool,
    /// The next command waits until every earlier one has its reply.
    draining: bool,
    /// No more input is wanted: what is under way ends, then the connection does.
    closing: bool,
    /// It was sent away for what it said.
    refused: bool,
    /// Why it ends.
    end: &'static str,
}

impl<D: Dialect> Task<D> {
    pub fn new(service: Rc<Service<D>>, stream: ClientStream) -> Self {
        let deadline = Deadline::new(&service.worker.clock);
        Self {
            client: Rc::new(Client::new(&service, &stream)),
            service,
            stream,
            deadline,
            commands: D::Commands::default(),
            rest: Vec::new(),
            backlog: false,
            draining: false,
            closing: false,
            refused: false,
            end: "router",
        }
    }

    /// What the client has said already.
    pub fn after(mut self, session: &[u8], input: Vec<u8>) -> Self {
        D::heard(&self.client, session);
        (self.backlog, self.rest) = (!input.is_empty(), input);
        self
    }

    pub async fn serve(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        if self.refused && !self.client.state.borrow().gone {
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
        self.client.state.borrow_mut().held = false;
        loop {
            if self.poll_write(cx).is_err() {
                self.end = "client";
                return Poll::Ready(());
            }
            if self.client.state.borrow().gone {
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
                let mut state = self.client.state.borrow_mut();
                if state.reorder.is_empty() && state.out.is_empty() {
                    return Poll::Ready(());
                }
                state.held = true;
                break;
            }
            let blocked = D::is_blocked(&self.client);
            if blocked && self.rest.len() < super::READ {
                match self.poll_ahead(cx) {
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => {
                        self.end = "client";
                        return Poll::Ready(());
                    }
                    Poll::Pending => {}
                }
            }
            if blocked || !self.may_go_on(self.rest.len()) {
                self.client.state.borrow_mut().held = true;
                break;
            }
            if self.backlog {
                self.dispatch_rest();
                continue;
            }
            match self.poll_read(cx) {
                Poll::Ready(true) => {}
                // The client may only have shut down its sending side: it gets the replies that it still
                // waits for.
                Poll::Ready(false) => (self.closing, self.end) = (true, "client"),
                Poll::Pending => break,
            }
        }
        // Progress disarms it: a client that neither reads its replies nor ends its command is cut off in the
        // end.
        let waits = self.backlog || D::is_blocked(&self.client);
        let stuck = !self.client.state.borrow().out.is_empty() || !(self.rest.is_empty() || waits);
        if stuck && !self.deadline.is_armed() {
            self.deadline.arm(self.service.worker.limits.stall);
        }
        if self.deadline.passed(cx) {
            self.end = "stalled";
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Goes over to the newest configuration of the service once nothing is under way: a client's commands
    /// are answered in order, so all of them are routed by one configuration.
    fn succeed(&mut self) {
        while let Some(next) = self.service.succession.next() {
            let state = self.client.state.borrow();
            if !(state.reorder.is_empty() && state.out.is_empty() && D::may_move(&self.client)) {
                return;
            }
            let next = Rc::clone(next);
            *self.client.service.borrow_mut() = Rc::clone(&next);
            drop(state);
            self.service = next;
        }
    }

    /// Whether the client is to pass to another process before its next command, of which so much has come. Who speaks TLS
    /// cannot, and has to go; but not before it had an answer.
    fn leaves(&self, ahead: usize) -> bool {
        self.service.worker.gives_way()
            && ahead <= MOST_INPUT
            && D::is_between(&self.commands)
            && D::may_move(&self.client)
            && !(self.stream.is_tls() && self.client.state.borrow().usual == 0)
    }

    fn is_answered(&self) -> bool {
        let state = self.client.state.borrow();
        state.reorder.is_empty() && state.out.is_empty()
    }

    fn bequeath(&self) {
        let service = &self.service;
        let session = D::told(&self.client);
        service.worker.bequeath((&service.name, D::PROTOCOL), &self.stream, session, &self.rest);
    }

    /// Whether a further command may be under way; so much of what follows has come.
    fn may_go_on(&self, ahead: usize) -> bool {
        let moves = self.service.succession.next().is_some() && D::may_move(&self.client);
        if moves || self.leaves(ahead) {
            return false;
        }
        let limits = &self.service.worker.limits;
        let state = self.client.state.borrow();
        let (unread, expected) = (state.unread(), state.expected());
        // Where nothing is known of its replies yet, a client begins with a few commands.
        let pipeline = if state.usual == 0 { limits.pipeline.min(FIRST) } else { limits.pipeline };
        let share = limits.backlog / 4;
        let crowded = self.service.unread.get() > limits.unread_in_all;
        (!self.draining || state.reorder.is_empty())
            && state.reorder.len() < pipeline
            && state.owed < limits.backlog
            && unread < limits.backlog
            && (expected < limits.backlog || state.reorder.is_empty())
            && !(crowded && (unread > share || expected > share))
    }

    /// Writes as many replies as the socket takes. An error means that nobody reads them.
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
            state.out.shrink_to(super::READ);
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

    /// Reads once, for later. False means that the client has nothing more to say.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = self.service.scratch.borrow_mut();
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
        if rest.is_empty() {
            rest.shrink_to(super::READ);
        }
        self.rest = rest;
    }

    /// Dispatches the commands at the start of `input`, as many as may be under way. Returns how many bytes
    /// they have.
    fn dispatch(&mut self, input: &[u8]) -> usize {
        let mut done = 0;
        self.backlog = false;
        while done < input.len() && !self.closing {
            if !self.may_go_on(input.len() - done) {
                self.backlog = true;
                break;
            }
            self.draining = false;
            match D::take(&self.service, &self.client, &mut self.commands, &input[done..]) {
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
                    return input.len();
                }
            }
        }
        done
    }
}

impl<D: Dialect> Drop for Task<D> {
    fn drop(&mut self) {
        D::left(&self.client);
        if let Some(log) = &self.service.log {
            self.client.tally.end(log, &self.stream, &self.service.worker.clock, self.end);
        }
        let mut state = self.client.state.borrow_mut();
        self.service.unread.set(self.service.unread.get() - state.unread());
        // Replies to what is under way come later, to nobody.
        *state = State { gone: true, owed: state.owed, ..State::default() };
    }
}
