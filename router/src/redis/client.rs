//! One client: its commands in, its replies out in their order.

use std::{
    cell::RefCell,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use router_proto::resp::{self, After, Args, ProtocolError, Reorder, Scan, Scanner, Seq};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::RedisService;
use crate::worker::{ClientStream, Deadline, linger};

/// How many commands of a client may be under way before its first reply.
const FIRST: usize = 64;

/// For a client that is not served at all; Redis' own words.
pub(crate) const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

fn follow(usual: &mut usize, len: usize) {
    *usual = if len > *usual { len } else { *usual - (*usual - len) / 16 };
}

/// What servers' tasks see of a client: where its replies go.
pub(super) struct Client {
    pub service: Rc<RedisService>,
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
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

impl Client {
    fn new(service: &Rc<RedisService>) -> Self {
        Self { service: Rc::clone(service), state: RefCell::default(), waker: RefCell::default() }
    }

    /// Whether nobody reads this client's replies any more.
    pub fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    /// Takes the next place in the order of replies.
    pub fn open(&self) -> Seq {
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
        let State { reorder, out, usual, .. } = &mut *state;
        let before = out.len();
        let len = reply.len();
        follow(usual, len);
        self.service.unread.set(self.service.unread.get() + len);
        reorder.fill(seq, reply, out);
        let turn = before == 0 && !out.is_empty();
        if state.unread() > most_unread {
            state.gone = true;
        }
        if turn || state.gone {
            drop(state);
            self.wake();
        }
    }

    /// Answers with an error of the router's own.
    pub fn fail(&self, seq: Seq, text: fmt::Arguments<'_>) {
        let mut reply = Vec::new();
        resp::push_error(&mut reply, text);
        self.fill(seq, &reply, usize::MAX);
    }

    /// Answers with what `write` appends.
    pub fn answer(&self, seq: Seq, write: impl FnOnce(&mut Vec<u8>) -> After) -> After {
        let mut reply = Vec::new();
        let after = write(&mut reply);
        self.fill(seq, &reply, usize::MAX);
        after
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A client's task.
pub(super) struct Task {
    service: Rc<RedisService>,
    client: Rc<Client>,
    stream: ClientStream,
    deadline: Deadline,
    scanner: Scanner,
    args: Args,
    /// Input that is not dispatched yet: an incomplete command, or commands beyond what may be under way at
    /// once.
    rest: Vec<u8>,
    /// Whether `rest` may start with a whole command.
    backlog: bool,
    /// No more input is wanted: what is under way ends, then the connection does.
    closing: bool,
    /// It was sent away for what it said.
    refused: bool,
}

impl Task {
    pub fn new(service: Rc<RedisService>, stream: ClientStream) -> Self {
        let deadline = Deadline::new(&service.worker.clock);
        Self {
            client: Rc::new(Client::new(&service)),
            service,
            stream,
            deadline,
            scanner: Scanner::default(),
            args: Args::default(),
            rest: Vec::new(),
            backlog: false,
            closing: false,
            refused: false,
        }
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
        loop {
            if self.poll_write(cx).is_err() || self.client.state.borrow().gone {
                return Poll::Ready(());
            }
            self.closing |= self.service.worker.is_draining();
            if self.closing {
                let state = self.client.state.borrow();
                if state.reorder.is_empty() && state.out.is_empty() {
                    return Poll::Ready(());
                }
                break;
            }
            if !self.may_go_on() {
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
                Poll::Ready(false) => self.closing = true,
                Poll::Pending => break,
            }
        }
        // Progress disarms it: a client that neither reads its replies nor ends its command is cut off in the
        // end.
        let stuck = !self.client.state.borrow().out.is_empty() || !(self.rest.is_empty() || self.backlog);
        if stuck && !self.deadline.is_armed() {
            self.deadline.arm(self.service.worker.limits.stall);
        }
        if self.deadline.passed(cx) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether a further command may be under way.
    fn may_go_on(&self) -> bool {
        let limits = &self.service.worker.limits;
        let state = self.client.state.borrow();
        let (unread, expected) = (state.unread(), state.expected());
        // Where nothing is known of its replies yet, a client begins with a few commands.
        let pipeline = if state.usual == 0 { limits.pipeline.min(FIRST) } else { limits.pipeline };
        let share = limits.backlog / 4;
        let crowded = self.service.unread.get() > limits.unread_in_all;
        state.reorder.len() < pipeline
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
            if !self.may_go_on() {
                self.backlog = true;
                break;
            }
            let next = &input[done..];
            match self.scanner.scan(next, &mut self.args, &self.service.limits) {
                Ok(Scan::Incomplete) => break,
                Ok(Scan::Empty(len)) => done += len,
                Ok(Scan::Command(len)) => {
                    self.closing =
                        self.service.dispatch(&self.client, &next[..len], &self.args) == After::Close;
                    done += len;
                }
                Ok(Scan::Inline(len)) => {
                    self.inline(&next[..len]);
                    done += len;
                }
                Err(error) => {
                    self.refuse(error);
                    return input.len();
                }
            }
        }
        done
    }

    /// A person at a terminal may say `PING` and `QUIT`.
    fn inline(&mut self, line: &[u8]) {
        let Some(name) = (!self.args.is_empty()).then(|| self.args.get(line, 0)) else { return };
        match resp::lookup(name).map(|command| command.keys) {
            Some(resp::Keys::None(_)) => {
                self.closing = self.service.dispatch(&self.client, line, &self.args) == After::Close;
            }
            _ => {
                self.service.counters.refused.add(1);
                let text =
                    format_args!("ERR phalanx: inline commands are not routed: send arrays of bulk strings");
                self.client.fail(self.client.open(), text);
            }
        }
    }

    fn refuse(&mut self, error: ProtocolError) {
        self.service.counters.refused.add(1);
        self.client.fail(self.client.open(), format_args!("ERR {error}"));
        self.closing = true;
        self.refused = true;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut state = self.client.state.borrow_mut();
        self.service.unread.set(self.service.unread.get() - state.unread());
        // Replies to what is under way come later, to nobody.
        *state = State { gone: true, owed: state.owed, ..State::default() };
    }
}
