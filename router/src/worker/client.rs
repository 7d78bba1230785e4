//! Clients that send requests ahead of their answers: how each is read, held back, answered, handed over to another
//! process, and goes over to another configuration of its service.
//!
//! A client's task reads requests and gives each to its protocol; whoever has an answer puts it into the client's
//! buffer, from where the task writes it.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ClientStream, Deadline, LocalWaker, MOST_INPUT, Placements, Succession, Worker, linger};
use crate::access::{AccessLog, Tally};

/// Room for one read, from a client or a server: a batch of requests or answers.
pub(crate) const READ: usize = 64 * 1024;

/// How many requests of a client may be under way before its first answer.
const FIRST: usize = 64;

/// What clients see of a protocol.
pub(crate) trait Dialogue: Sized + 'static {
    /// As the configuration calls it.
    const PROTOCOL: &'static str;

    /// One service on one worker.
    type Service: ClientService;
    /// What is kept of a client between two requests.
    type Session;
    /// What is kept of a client's input between two reads, beside its bytes.
    type Input: Default;
    /// The requests of a client that have no answer yet.
    type UnderWay: UnderWay;

    /// What is known of a client that has said nothing yet.
    fn session(service: &Self::Service) -> Self::Session;

    /// What another process has to know of a client that goes over to it between two requests.
    fn told(_client: &Client<Self>) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what was told.
    fn heard(_client: &Client<Self>, _told: &[u8]) {}

    /// Whether nothing but the input that is kept says what comes next: only then another process can go on from there.
    fn is_between(_input: &Self::Input) -> bool {
        true
    }

    /// Whether the client may go over to another configuration: nothing that it said before hangs on the old one.
    fn may_move(_client: &Client<Self>) -> bool {
        true
    }

    /// It went over. What is known of a request that has come in part may be wrong now.
    fn moved(_input: &mut Self::Input) {}

    /// Whether the client's last request may take as long as it likes, so that the client may be gone before it is
    /// answered; then it is given up.
    fn is_blocked(_client: &Client<Self>) -> bool {
        false
    }

    /// The client has gone.
    fn left(_client: &Client<Self>) {}

    /// Whether there is room for the rest of the request that `begun` is the begin of; if not, the task is woken when
    /// there may be.
    fn has_room(
        _service: &Rc<Self::Service>,
        _input: &mut Self::Input,
        _begun: &mut Vec<u8>,
        _cx: &Context<'_>,
    ) -> bool {
        true
    }

    /// Takes the next request off the start of `bytes`, which are not none, and sends or answers it.
    fn take(
        service: &Rc<Self::Service>,
        client: &Rc<Client<Self>>,
        input: &mut Self::Input,
        bytes: &[u8],
    ) -> Taken;
}

/// What became of a client's input.
pub(crate) enum Taken {
    /// Nothing yet: bytes are missing.
    Incomplete,
    /// So many bytes of it are dealt with.
    Bytes(usize),
    /// So many bytes of it are dealt with, and nothing that follows is: the client has said goodbye.
    Last(usize),
    /// Nothing yet: the request may only be taken when every earlier one has its answer.
    Later,
    /// The client is sent away for what it said.
    Refused,
}

/// What a client's task needs of its service.
pub(crate) trait ClientService: Sized {
    fn worker(&self) -> &Rc<Worker>;
    fn name(&self) -> &str;
    fn log(&self) -> Option<&AccessLog>;
    fn succession(&self) -> &Succession<Self>;
    fn clients(&self) -> &Clients;
}

/// What the clients of one service share.
pub(crate) struct Clients {
    /// What every read goes into. It is looked at before anybody else reads, and only the rest of an incomplete request
    /// or answer is kept; so idle connections hold no buffer.
    pub scratch: RefCell<Box<[u8]>>,
    /// Bytes of answers that they have not read.
    unread: Cell<usize>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { scratch: RefCell::new(vec![0; READ].into()), unread: Cell::new(0) }
    }
}

impl Clients {
    /// Bytes of answers that they have not read.
    pub fn unread(&self) -> usize {
        self.unread.get()
    }

    fn came(&self, len: usize) {
        self.unread.set(self.unread.get() + len);
    }

    fn went(&self, len: usize) {
        self.unread.set(self.unread.get() - len);
    }
}

/// Requests of one client that have no answer yet.
pub(crate) trait UnderWay: Default {
    /// How many.
    fn len(&self) -> usize;

    /// Bytes of answers that cannot be shown before others.
    fn kept(&self) -> usize;
}

/// What servers' tasks see of a client: where its answers go.
pub(crate) struct Client<P: Dialogue> {
    /// As it was configured when what is under way came in.
    service: RefCell<Rc<P::Service>>,
    /// What the protocol keeps of it.
    pub session: P::Session,
    /// For the access log.
    pub tally: Tally,
    /// The clone of each RACS that it stays with, where clients do.
    pub placements: Placements,
    state: RefCell<State<P::UnderWay>>,
    waker: LocalWaker,
}

#[derive(Default)]
struct State<U> {
    under_way: U,
    /// Answers whose turn it is; those before `sent` are with the kernel.
    out: Vec<u8>,
    sent: usize,
    /// Bytes of requests without answer.
    owed: usize,
    /// How large answers have been lately: the largest counts at once, and is forgotten over some dozens.
    usual: usize,
    /// Its task waits for answers to come before it goes on, shown or not.
    held: bool,
    /// The client has gone, or is being sent away: answers are thrown away.
    gone: bool,
}

impl<U: UnderWay> State<U> {
    fn unread(&self) -> usize {
        self.out.len() - self.sent + self.under_way.kept()
    }

    /// Bytes that the answers to what is under way may have.
    fn expected(&self) -> usize {
        self.under_way.len().saturating_mul(self.usual)
    }

    /// Whether all answers have come, and are with the kernel.
    fn is_quiet(&self) -> bool {
        self.under_way.len() == 0 && self.out.is_empty()
    }

    fn follow(&mut self, len: usize) {
        let len = len.max(1); // 0 says that nothing is known yet
        self.usual = if len > self.usual { len } else { self.usual - (self.usual - len) / 16 };
    }
}

impl<P: Dialogue> Client<P> {
    fn new(service: &Rc<P::Service>, stream: &ClientStream) -> Self {
        Self {
            tally: Tally::new(stream, &service.worker().clock),
            session: P::session(service),
            service: RefCell::new(Rc::clone(service)),
            placements: Placements::default(),
            state: RefCell::default(),
            waker: LocalWaker::default(),
        }
    }

    /// The service as what is under way knows it.
    pub fn service(&self) -> Rc<P::Service> {
        Rc::clone(&self.service.borrow())
    }

    /// The same, if it logs.
    pub fn logged(&self) -> Option<Rc<P::Service>> {
        let service = self.service.borrow();
        service.log().is_some().then(|| Rc::clone(&service))
    }

    /// Where it connected from.
    pub fn source(&self) -> IpAddr {
        self.tally.source.ip()
    }

    /// Whether nobody reads this client's answers any more.
    pub fn is_gone(&self) -> bool {
        self.state.borrow().gone
    }

    /// Whether every request has its answer.
    pub fn is_answered(&self) -> bool {
        self.state.borrow().under_way.len() == 0
    }

    /// A request comes in: notes it among those that are under way.
    pub fn begin<R>(&self, note: impl FnOnce(&mut P::UnderWay) -> R) -> R {
        note(&mut self.state.borrow_mut().under_way)
    }

    /// Bytes of a request are kept until it is answered.
    pub fn owe(&self, len: usize) {
        self.state.borrow_mut().owed += len;
    }

    /// They are not any more.
    pub fn pay(&self, len: usize) {
        self.state.borrow_mut().owed -= len;
    }

    /// Takes in an answer: `put` appends whatever may be shown now, and says how long the answer is. Wakes the client's
    /// task if that has something to do again. Cuts the client off if it leaves more unread than this.
    pub fn put(&self, most_unread: usize, put: impl FnOnce(&mut P::UnderWay, &mut Vec<u8>) -> usize) {
        let mut state = self.state.borrow_mut();
        if state.gone {
            return;
        }
        let State { under_way, out, .. } = &mut *state;
        let before = out.len();
        let len = put(under_way, out);
        // An answer that is not shown to the client may be all that its task waits for.
        let turn = before == 0 && (!out.is_empty() || (len == 0 && state.held));
        state.follow(len);
        self.service.borrow().clients().came(len);
        if state.unread() > most_unread {
            state.gone = true;
        }
        if turn || state.gone {
            drop(state);
            self.waker.wake();
        }
    }

    /// Ends its connection at once.
    pub fn cut(&self) {
        self.state.borrow_mut().gone = true;
        self.waker.wake();
    }
}

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
            self.closing |= sent_away || self.service.succession().has_ended();
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
            if blocked && self.rest.len() < READ {
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
        if !stuck {
            self.deadline.disarm();
        } else if !self.deadline.is_armed() {
            self.deadline.arm(self.service.worker().limits.stall);
        }
        if self.deadline.passed(cx) {
            self.end = "stalled";
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
            P::moved(&mut self.input);
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
        let limits = &self.service.worker().limits;
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
