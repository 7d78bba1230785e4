//! What a client has said before, as far as it changes what becomes of its commands: protocol, password,
//! transaction, channels; and which connections it has for itself.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use router_proto::{
    RacsId,
    pmap::PartitionId,
    racs::Access,
    resp::{self, After, Args, Connection, Facts, Keys, Local, Proto, Step, Transaction},
};
use serde::{Deserialize, Serialize};

use super::{
    Client, Next, Note, RedisService,
    private::{Private, Whom},
    subscribe::Listening,
    transaction::Queued,
};

/// What is kept of a client between two commands.
pub(crate) struct Session {
    /// Whether anything but the protocol makes its commands go another way than usual.
    special: Cell<bool>,
    proto: Cell<Proto>,
    pub(super) connection: RefCell<Connection>,
    pub(super) transaction: RefCell<Option<Transaction>>,
    /// The partition whose keys are watched, over the connection of its own.
    pub(super) watched: Cell<Option<PartitionId>>,
    private: RefCell<Option<Rc<Private>>>,
    pub(super) listening: RefCell<Listening>,
    /// Whether its last command went over a connection of its own.
    own: Cell<bool>,
    /// Whether its last command may wait.
    blocking: Cell<bool>,
}

impl Session {
    pub fn new(service: &RedisService) -> Self {
        let admitted = service.dialect.auth.clients.is_none();
        Self {
            special: Cell::new(!admitted),
            proto: Cell::default(),
            connection: RefCell::new(Connection::new(next_id(), admitted)),
            transaction: RefCell::default(),
            watched: Cell::default(),
            private: RefCell::default(),
            listening: RefCell::default(),
            own: Cell::default(),
            blocking: Cell::default(),
        }
    }

    /// Whether anything but the protocol makes its commands go another way than usual.
    pub fn is_special(&self) -> bool {
        self.special.get()
    }

    /// Whether it gave the password, or none is asked for (any more): then it is let in for good.
    pub fn is_admitted(&self, service: &RedisService) -> bool {
        if !self.special.get() || self.connection.borrow().admitted {
            return true;
        }
        let admitted = service.dialect.auth.clients.is_none();
        if admitted {
            self.connection.borrow_mut().admitted = true;
            self.update();
        }
        admitted
    }

    /// The protocol that the client speaks.
    pub fn proto(&self) -> Proto {
        self.proto.get()
    }

    /// Whether nothing hangs on where keys and channels are: no transaction, and nothing on a connection of its own.
    /// `answered` says that all commands have their replies.
    pub fn may_move(&self, answered: bool) -> bool {
        let waits = self.blocking.get() && !answered;
        !(waits || self.watched.get().is_some() || self.is_subscribed() || self.in_transaction())
    }

    /// It went over to another configuration, in which its own connection would lead elsewhere.
    pub fn moved(&self) {
        if let Some(private) = self.private.take() {
            private.finish();
        }
        self.own.set(false);
        self.blocking.set(false);
        self.update();
    }

    pub fn in_transaction(&self) -> bool {
        self.transaction.borrow().is_some()
    }

    /// Whether its last command may wait.
    pub fn is_blocking(&self) -> bool {
        self.blocking.get()
    }

    /// Notes that a command was refused: nothing of the transaction in hand, if any, will be done.
    pub fn spoil_transaction(&self) {
        if let Some(transaction) = &mut *self.transaction.borrow_mut() {
            transaction.refuse();
        }
    }

    /// Sees what has changed.
    pub(super) fn update(&self) {
        let connection = self.connection.borrow();
        self.proto.set(connection.proto);
        let listens = connection.proto == Proto::Resp2 && self.is_subscribed();
        let elsewhere = self.own.get() || self.blocking.get() || self.watched.get().is_some();
        self.special.set(!connection.admitted || self.in_transaction() || elsewhere || listens);
    }

    pub(super) fn is_subscribed(&self) -> bool {
        !self.listening.borrow().subscriptions.is_empty()
    }

    /// The client has gone.
    pub fn left(&self) {
        if let Some(private) = self.private.take() {
            private.leave();
        }
        self.listening.take().leave();
    }

    /// Forgets everything but the protocol and the password.
    fn reset(&self) {
        *self.transaction.borrow_mut() = None;
        self.watched.set(None);
        self.left();
    }

    /// The connection that its watched keys are watched on, if that has not ended.
    pub(super) fn watching(&self) -> Option<Rc<Private>> {
        self.private.borrow().clone().filter(|private| self.watched.get().is_some() && !private.has_ended())
    }

    /// Says whether keys are watched, and in which partition.
    pub(super) fn watch(&self, partition: Option<PartitionId>) {
        self.watched.set(partition);
        if let Some(private) = &*self.private.borrow() {
            private.watch(partition.is_some());
        }
    }
}

/// What another process is told of a client that it takes over. Fields that come later need a default.
#[derive(Serialize, Deserialize)]
struct Told {
    id: u64,
    resp3: bool,
    admitted: bool,
    name: Vec<u8>,
    library: [Vec<u8>; 2],
}

impl Session {
    /// What the client has said about its connection; nothing else hangs on it when it goes over to another process.
    pub fn told(&self) -> Vec<u8> {
        let Connection { id, proto, admitted, name, library } = self.connection.borrow().clone();
        let told = Told { id, resp3: proto == Proto::Resp3, admitted, name, library };
        rmp_serde::to_vec_named(&told).unwrap_or_default() // numbers and bytes can be written
    }

    /// Goes on from there. If that cannot be read the client is as one that just came.
    pub fn heard(&self, told: &[u8]) {
        let Ok(Told { id, resp3, admitted, name, library }) = rmp_serde::from_slice(told) else { return };
        NEXT_ID.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        let proto = if resp3 { Proto::Resp3 } else { Proto::Resp2 };
        *self.connection.borrow_mut() = Connection { id, proto, admitted, name, library };
        self.update();
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A number for each client, over all workers.
fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

impl Client {
    /// Whether the next command may be sent now: over a connection of its own, or one that it shares. A command
    /// that goes another way than the one before, and one before or after which nothing else may be under way, waits
    /// until all have their replies: it would overtake them.
    pub(super) fn takes_turn(&self, own: bool, blocking: bool) -> bool {
        let session = &self.session;
        let alone = blocking || session.blocking.get() || session.own.get() != own;
        if alone && !self.is_answered() {
            return false;
        }
        session.own.set(own);
        session.blocking.set(blocking);
        session.update();
        true
    }

    /// Its own connection to the leader of this RACS; `None` if there are too many.
    pub(super) fn private(self: &Rc<Self>, racs: RacsId) -> Option<Rc<Private>> {
        let mut place = self.session.private.borrow_mut();
        if let Some(private) = &*place
            && private.racs == racs
            && private.proto == self.session.proto()
            && !private.has_ended()
        {
            return Some(Rc::clone(private));
        }
        if let Some(other) = place.take() {
            other.finish();
        }
        *place = Private::start(self, racs, false);
        place.clone()
    }
}

impl RedisService {
    /// Deals with a command of a client with which something is special; `None` if that does not concern this
    /// command.
    pub(super) fn dispatch_special(
        self: &Rc<Self>,
        client: &Rc<Client>,
        command: &[u8],
        args: &Args,
    ) -> Option<Next> {
        let session = &client.session;
        if session.is_blocking() && !client.is_answered() {
            return Some(Next::Later);
        }
        let keys = resp::lookup(args.get(command, 0)).map(|known| known.keys);
        let always = matches!(keys, Some(Keys::None(Local::Quit | Local::Reset)));
        if !session.connection.borrow().admitted {
            if always || matches!(keys, Some(Keys::None(Local::Auth | Local::Hello))) {
                return None;
            }
            self.refuse_command(client, client.open(), format_args!("NOAUTH Authentication required."));
            return Some(Next::Continue);
        }
        if session.in_transaction() {
            let steps =
                Some(Keys::Transaction(Step::Unwatch)) != keys && matches!(keys, Some(Keys::Transaction(_)));
            if always || steps {
                return None;
            }
            self.queue(client, command, args);
            return Some(Next::Continue);
        }
        if session.proto() == Proto::Resp2 && session.is_subscribed() {
            if always || matches!(keys, Some(Keys::None(Local::Ping) | Keys::Subscribe(..))) {
                return None;
            }
            let name: String = String::from_utf8_lossy(args.get(command, 0)).chars().take(64).collect();
            let text = format_args!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed \
                 in this context",
                name.to_lowercase()
            );
            self.refuse_command(client, client.open(), text);
            return Some(Next::Continue);
        }
        // These see to their turn themselves.
        if matches!(
            keys,
            Some(Keys::Transaction(_) | Keys::Subscribe(..) | Keys::Blocking(..) | Keys::None(_))
        ) {
            return None;
        }
        // What concerns the RACS with the watched keys goes where these are watched, in the order of the commands.
        if let Some(private) = session.watching()
            && let Queued::Yes(Some(partition), access) = self.queued(command, args)
            && self.racs_of(partition) == private.racs
        {
            return Some(if client.takes_turn(true, false) {
                self.counters.requests.add(1);
                let seq = client.open();
                let note = Note { replies: 1, proto: session.proto() };
                if self.leader_admits(private.racs, client, seq, note, command) {
                    private.push(command, Whom::Place(seq), access, 1, None);
                }
                Next::Continue
            } else {
                Next::Later
            });
        }
        if client.takes_turn(false, false) { None } else { Some(Next::Later) }
    }

    /// Answers a command that concerns the connection.
    pub(super) fn answer(&self, client: &Rc<Client>, local: Local, command: &[u8], args: &Args) -> Next {
        let session = &client.session;
        // What follows may go over another connection: it must not overtake what came before.
        if matches!(local, Local::Hello | Local::Reset) && !client.is_answered() {
            return Next::Later;
        }
        if local == Local::Hello && (session.is_subscribed() || session.watched.get().is_some()) {
            let text = "ERR phalanx: 'hello' is refused while channels are subscribed or keys watched";
            self.refuse_command(client, client.open(), format_args!("{text}"));
            return Next::Continue;
        }
        if local == Local::Reset {
            session.reset();
        }
        let seq = client.open();
        let facts = Facts {
            password: self.dialect.auth.clients.as_ref(),
            clients: self.counters.clients.get(),
            commands: self.counters.requests.get(),
            racs: self.racs(),
            subscribed: session.is_subscribed(),
        };
        let after = client.answer(seq, |out| {
            resp::answer(local, command, args, &mut session.connection.borrow_mut(), &facts, out)
        });
        session.update();
        match after {
            After::Continue => Next::Continue,
            After::Close => Next::Close,
        }
    }

    /// Sends a command that may wait over a connection of the client's own.
    pub(super) fn block(
        self: &Rc<Self>,
        client: &Rc<Client>,
        partition: PartitionId,
        access: Access,
        patience: std::time::Duration,
        command: &[u8],
    ) -> Next {
        if !client.takes_turn(true, true) {
            return Next::Later;
        }
        let seq = client.open();
        let racs = self.racs_of(partition);
        if client.session.watching().is_some_and(|private| private.racs != racs) {
            let text = "ERR phalanx: keys of another partition are watched: UNWATCH them first";
            self.refuse_command(client, seq, format_args!("{text}"));
            return Next::Continue;
        }
        self.counters.requests.add(1);
        match client.private(racs) {
            Some(private) => private.push(command, Whom::Place(seq), access, 1, Some(patience)),
            None => self.too_many(client, seq),
        }
        Next::Continue
    }

    /// Refuses what would need one more connection of a client's own.
    pub(super) fn too_many(&self, client: &Client, seq: router_proto::pipelined::Seq) {
        self.counters.unavailable.add(1);
        crate::access::Tally::add(&client.tally.failed);
        let text = "TRYAGAIN phalanx: too many clients have connections of their own; nothing was done";
        client.answer(seq, |out| resp::push_error(out, format_args!("{text}")));
    }
}
