//! Clients that send requests ahead of their answers: how each is read, held back, answered, handed over to another
//! process, and goes over to another configuration of its service.
//!
//! A client's task reads requests and gives each to its protocol; whoever has an answer puts it into the client's
//! buffer, from where the task writes it.

mod task;

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    task::Context,
};

pub(crate) use task::ClientTask;

use super::{ClientStream, Held, LocalWaker, Placements, Succession, Worker};
use crate::{
    access::{AccessLog, Tally},
    limits::Limits,
};

/// Room for one read, from a client or a server: a batch of requests or answers.
pub(crate) const READ: usize = 64 * 1024;

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

    /// It went over. What is known of a request that has come in part may be wrong now, and so may be where the client's
    /// own connections lead.
    fn moved(_client: &Client<Self>, _input: &mut Self::Input) {}

    /// Whether the client's last request may wait at the server, so that the client may be gone before it is
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
    fn limits(&self) -> &Limits;
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
    /// The room of the request that is being taken, if it is a large one.
    held: RefCell<Option<Rc<Held>>>,
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
            held: RefCell::default(),
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

    /// Takes a request, which holds this room: whatever of it is under way afterwards holds it until that is answered.
    pub fn holding<T>(&self, held: &Option<Rc<Held>>, take: impl FnOnce() -> T) -> T {
        if held.is_none() {
            return take();
        }
        self.held.borrow_mut().clone_from(held);
        let taken = take();
        self.held.take();
        taken
    }

    /// The room of the request that is being taken, if it is a large one.
    pub fn held(&self) -> Option<Rc<Held>> {
        self.held.borrow().clone()
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
