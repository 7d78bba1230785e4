//! A connection to one server that one client has for itself: what waits, watches or listens cannot share one.
//!
//! Its server is the leader of one RACS, from the beginning to the end. When the leader is another one, or the
//! connection fails, it ends: what was watched counts as changed, who listened is cut off, since messages may be
//! lost, and nothing is sent again. What has to be answered at once counts for the limits of what is under way, and
//! its server's silence counts against the server, as anywhere; not so what may wait, for however long: that keeps a
//! server from nothing.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use membership_types::Instant;
use router_proto::{
    RacsId,
    pipelined::Seq,
    racs::Access,
    resp::{Heard, Proto, ReplyScanner, heard},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Client, Note, Redis, RedisService};
use crate::{
    pipelined::{Dialect, Failure, Says, connect},
    worker::{Deadline, End, Held, InFlight, LocalWaker, READ, Server, Worker},
};

/// A connection to one server that one client has for itself.
pub(super) struct Private {
    service: Rc<RedisService>,
    client: Weak<Client>,
    pub racs: RacsId,
    pub proto: Proto,
    /// Whether what comes are messages and answers to subscriptions.
    listening: bool,
    server: RefCell<Option<Rc<Server>>>,
    state: RefCell<State>,
    waker: LocalWaker,
}

#[derive(Default)]
struct State {
    out: Vec<u8>,
    /// Of `out`, what the kernel has.
    written: usize,
    /// Bytes that were in `out` before what is in it now.
    before: usize,
    expected: VecDeque<Expected>,
    /// Keys are watched there: it must not end for being idle.
    watching: bool,
    /// It ends once everything has its reply.
    finishing: bool,
    /// It ends now, in this way.
    aborted: Option<End>,
    ended: bool,
}

/// A command without reply.
struct Expected {
    whom: Whom,
    access: Access,
    /// How many replies there are, of which the last one counts.
    replies: u32,
    /// Length of the command, and where it ends in all that is sent.
    len: usize,
    end: usize,
    /// How long the server may wait before it answers, zero is for ever; none if it has to answer at once.
    patience: Option<Duration>,
    /// Unless it may wait, or is about messages.
    counted: Option<Counted>,
    /// Its room, if it is a large one.
    _held: Option<Rc<Held>>,
}

/// A command that is one of those under way of its service, and of its server once it is on its way there.
struct Counted {
    service: Rc<RedisService>,
    in_flight: Option<InFlight>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.service.admission.leave();
    }
}

/// The connection, as its task has it.
struct Line {
    server: Rc<Server>,
    stream: TcpStream,
    scanner: ReplyScanner,
    /// The beginning of a reply.
    rest: Vec<u8>,
    deadline: Deadline,
    /// Whether the deadline is that of a connection that nobody uses.
    idle: bool,
    /// Since when the server has been asked something that it has to answer at once, and said nothing; and when that
    /// counts against it.
    silent_since: Option<Instant>,
    silence: Deadline,
}

impl Line {
    /// The server has said something.
    fn heard(&mut self) {
        self.deadline.disarm();
        self.silent_since = None;
        self.silence.disarm();
    }
}

/// Whom a reply is for.
pub(super) enum Whom {
    /// For the client, in its place.
    Place(Seq),
    /// One of several answers that are needed before the client gets one.
    Confirmation(Rc<Confirmation>),
}

/// What a client is told once all servers concerned have agreed.
pub(super) struct Confirmation {
    pub seq: Seq,
    pub text: RefCell<Vec<u8>>,
    pub missing: Cell<usize>,
}

impl Private {
    /// Starts to connect to the leader of this RACS, whoever that is. Commands may be pushed at once. `None` if there
    /// are too many such connections.
    pub fn start(client: &Rc<Client>, racs: RacsId, listening: bool) -> Option<Rc<Self>> {
        let service = client.service();
        let mut all = service.dialect.privates.borrow_mut();
        if all.len() >= service.limits().private {
            return None;
        }
        let private = Rc::new(Self {
            service: Rc::clone(&service),
            client: Rc::downgrade(client),
            racs,
            proto: client.session.proto(),
            listening,
            server: RefCell::default(),
            state: RefCell::default(),
            waker: LocalWaker::default(),
        });
        all.push(Rc::downgrade(&private));
        drop(all);
        tokio::task::spawn_local(Rc::clone(&private).run());
        Some(private)
    }

    /// Sends a command. `patience` is how long the server may wait before it answers, zero for ever; none if it has to
    /// answer at once.
    pub fn push(&self, command: &[u8], whom: Whom, access: Access, replies: u32, patience: Option<Duration>) {
        let mut held = None;
        if let Some(client) = self.client.upgrade() {
            client.owe(command.len());
            // What may wait could keep others from theirs for ever.
            held = client.held().filter(|_| patience.is_none());
        }
        let mut state = self.state.borrow_mut();
        let len = command.len();
        state.out.extend_from_slice(command);
        let end = state.before + state.out.len();
        let counted = (patience.is_none() && !self.listening).then(|| self.counted());
        state.expected.push_back(Expected {
            whom,
            access,
            replies,
            len,
            end,
            patience,
            counted,
            _held: held,
        });
        drop(state);
        self.waker.wake();
    }

    fn counted(&self) -> Counted {
        // Whether there is room was asked before; what ends a watch is let in without.
        let _room = self.service.admission.enter();
        // While the connection is made it counts for the server that leads then.
        let leads = || leader(&self.service, self.racs);
        let server = self.server.borrow().as_ref().map(Rc::clone).or_else(leads);
        let in_flight = server.map(|server| self.goes_to(&server));
        Counted { service: Rc::clone(&self.service), in_flight }
    }

    fn goes_to(&self, server: &Rc<Server>) -> InFlight {
        let now = self.service.worker.clock.now();
        server.chosen(now);
        InFlight::to(server, now)
    }

    /// Whether nothing can be sent there any more.
    pub fn has_ended(&self) -> bool {
        let state = self.state.borrow();
        state.ended || state.aborted.is_some() || state.finishing
    }

    /// Says whether keys are watched there.
    pub fn watch(&self, watching: bool) {
        self.state.borrow_mut().watching = watching;
        self.waker.wake();
    }

    /// Nobody needs it any more once everything has its reply.
    pub fn finish(&self) {
        self.state.borrow_mut().finishing = true;
        self.waker.wake();
    }

    /// The client has gone: what it sent is done, but nothing is waited for.
    pub fn leave(&self) {
        self.give_up(End::Idle);
    }

    /// Ends it if its server leads no more. What is under way, and does not wait, is waited for.
    pub fn table_changed(&self) {
        let Some(server) = self.server.borrow().as_ref().map(|server| server.id) else { return };
        if leader(&self.service, self.racs).is_none_or(|leader| leader.id != server) {
            self.give_up(End::Failed);
        }
    }

    fn give_up(&self, end: End) {
        let waits = self.state.borrow().expected.iter().any(|one| one.patience.is_some());
        if waits || self.listening {
            self.state.borrow_mut().aborted = Some(end);
            self.waker.wake();
        } else {
            self.finish();
        }
    }

    async fn run(self: Rc<Self>) {
        let guard = Ends(&self);
        let end = match self.connect().await {
            Some((server, stream)) => self.serve(server, stream).await,
            None => self.state.borrow().aborted.unwrap_or(End::Refused),
        };
        guard.0.end(end);
    }

    /// A connection to the leader, as soon as there is one and takes it.
    async fn connect(&self) -> Option<(Rc<Server>, TcpStream)> {
        let worker = &self.service.worker;
        let deadline = Deadline::new(&worker.clock);
        deadline.arm(self.service.limits().wait);
        let mut seek = pin!(self.seek());
        std::future::poll_fn(|cx| {
            self.waker.register(cx);
            let needless = {
                let state = self.state.borrow();
                state.aborted.is_some() || state.finishing && state.expected.is_empty()
            };
            if needless || deadline.passed(cx) {
                return Poll::Ready(None);
            }
            seek.as_mut().poll(cx).map(Some)
        })
        .await
    }

    async fn seek(&self) -> (Rc<Server>, TcpStream) {
        /// How often a leader is looked for.
        const ROUND: Duration = Duration::from_millis(20);
        let worker = &self.service.worker;
        let greeting = self.service.dialect.greeting(Redis::lane(self.note(1)));
        loop {
            if let Some(server) = leader(&self.service, self.racs)
                && server.refused_until() <= worker.clock.now()
            {
                let connecting = connect::<Redis>(server.addr, &greeting);
                match tokio::time::timeout(self.service.limits().connect, connecting).await {
                    Ok(Ok(stream)) => {
                        // Whoever waits for ever must hear of a server that vanishes without a word.
                        let alive = socket2::TcpKeepalive::new()
                            .with_time(Duration::from_secs(30))
                            .with_interval(Duration::from_secs(10))
                            .with_retries(3);
                        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&alive); // without, it only takes longer
                        return (server, stream);
                    }
                    Ok(Err(_)) | Err(_) => server.refused(worker.clock.now(), worker.limits.avoid),
                }
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    async fn serve(&self, server: Rc<Server>, stream: TcpStream) -> End {
        for counted in self.state.borrow_mut().expected.iter_mut().filter_map(|one| one.counted.as_mut()) {
            // Most were counted for this server when they came in.
            if counted.in_flight.as_ref().is_none_or(|to| to.server().id != server.id) {
                counted.in_flight = Some(self.goes_to(&server));
            }
        }
        self.server.replace(Some(Rc::clone(&server)));
        // It may have been another one while the connection was made.
        self.table_changed();
        let clock = &self.service.worker.clock;
        let mut line = Line {
            server,
            stream,
            scanner: ReplyScanner::default(),
            rest: Vec::new(),
            deadline: Deadline::new(clock),
            idle: false,
            silent_since: None,
            silence: Deadline::new(clock),
        };
        std::future::poll_fn(|cx| self.poll(&mut line, cx)).await
    }

    fn poll(&self, line: &mut Line, cx: &mut Context<'_>) -> Poll<End> {
        self.waker.register(cx);
        if let Some(end) = self.state.borrow().aborted {
            return Poll::Ready(end);
        }
        if self.poll_write(&mut line.stream, cx).is_err() {
            // What has arrived is still worth reading.
            let _ = self.poll_read(line, cx);
            return Poll::Ready(End::Failed);
        }
        if let Poll::Ready(end) = self.poll_read(line, cx) {
            return Poll::Ready(end);
        }
        let limits = self.service.limits();
        let state = self.state.borrow();
        let (wait, idle) = match state.expected.front() {
            Some(Expected { patience: Some(Duration::ZERO), .. }) => (None, false),
            Some(Expected { patience, .. }) => {
                (limits.response.checked_add(patience.unwrap_or_default()), false)
            }
            None if state.finishing => return Poll::Ready(End::Idle),
            None if state.watching || self.listening => (None, false),
            None => (Some(limits.private_idle), true),
        };
        let is_urgent = state.expected.front().is_some_and(|oldest| oldest.patience.is_none());
        drop(state);
        self.look(line, is_urgent, cx);
        if std::mem::replace(&mut line.idle, idle) != idle {
            line.deadline.disarm();
        }
        match wait {
            None => line.deadline.disarm(),
            Some(wait) if !line.deadline.is_armed() => line.deadline.arm(wait),
            Some(_) => {}
        }
        match line.deadline.passed(cx) {
            false => Poll::Pending,
            true => Poll::Ready(if idle { End::Idle } else { End::Failed }),
        }
    }

    /// A server that is to answer at once, and says nothing for longer than is usual, is taken for hung if it says
    /// nothing to others either. Nothing else follows: nobody can stand in for it here.
    fn look(&self, line: &mut Line, is_urgent: bool, cx: &Context<'_>) {
        if !is_urgent {
            return;
        }
        let Worker { clock, limits, .. } = &*self.service.worker;
        let since = *line.silent_since.get_or_insert_with(|| {
            line.silence.arm(line.server.patience(limits.hedge_after));
            clock.now()
        });
        if line.silence.passed(cx) {
            line.silence.disarm();
            line.server.silent(since, clock.now(), limits.avoid);
        }
    }

    fn poll_write(&self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Result<(), ()> {
        let state = &mut *self.state.borrow_mut();
        while state.written < state.out.len() {
            match Pin::new(&mut *stream).poll_write(cx, &state.out[state.written..]) {
                Poll::Ready(Ok(len)) if len > 0 => state.written += len,
                Poll::Ready(_) => return Err(()),
                Poll::Pending => return Ok(()),
            }
        }
        state.before += state.out.len();
        state.out.clear();
        state.out.shrink_to(READ);
        state.written = 0;
        Ok(())
    }

    /// Reads and delivers until nothing more is there.
    fn poll_read(&self, line: &mut Line, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut scratch = self.service.clients.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut line.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(End::Failed),
            }
            line.rest.extend_from_slice(buffer.filled());
            drop(scratch);
            line.heard();
            let mut done = 0;
            while done < line.rest.len() {
                match self.deliver(&mut line.scanner, &line.rest[done..]) {
                    Ok(Some(len)) => done += len,
                    Ok(None) => break,
                    Err(()) => {
                        tracing::warn!("a server's reply is not RESP, or was not asked for");
                        return Poll::Ready(End::Failed);
                    }
                }
            }
            line.rest.drain(..done);
            line.rest.shrink_to(READ);
        }
    }

    /// Delivers the reply or message at the start of `input`, if it is whole. Returns its length.
    fn deliver(&self, scanner: &mut ReplyScanner, input: &[u8]) -> Result<Option<usize>, ()> {
        if self.listening {
            let Some(len) = scanner.scan_pushed(input).map_err(drop)? else { return Ok(None) };
            let frame = &input[..len];
            match heard(frame) {
                Heard::Message => {
                    if let Some(client) = self.client.upgrade() {
                        client.tell(frame, self.service.limits().messages);
                    }
                }
                Heard::Confirmed => self.settle(None)?,
                Heard::Refused => self.settle(Some(frame))?,
                Heard::Strange => return Err(()),
            }
            return Ok(Some(len));
        }
        let replies = self.state.borrow().expected.front().ok_or(())?.replies;
        let Some(len) = scanner.scan_many(input, replies).map_err(drop)? else { return Ok(None) };
        self.settle(Some(Redis::shown(self.note(replies), &input[..len])))?;
        Ok(Some(len))
    }

    fn note(&self, replies: u32) -> Note {
        Note { replies, proto: self.proto }
    }

    /// Answers the oldest command, if the server has seen all of it.
    fn settle(&self, reply: Option<&[u8]>) -> Result<(), ()> {
        let expected = {
            let mut state = self.state.borrow_mut();
            let sent = state.before + state.written;
            state.expected.pop_front_if(|expected| expected.end <= sent).ok_or(())?
        };
        let Worker { clock, limits, .. } = &*self.service.worker;
        if let Some(server) = &*self.server.borrow() {
            // What is shown of a subscription that was confirmed is written elsewhere.
            let says = reply.map_or(Says::Well, |reply| Redis::says(self.note(1), reply));
            server.responded(&self.service.counters, says.class());
            server.answered(clock.now(), self.service.judge(says, self.racs, server), limits.avoid);
        }
        if let Some(Counted { in_flight: Some(in_flight), .. }) = &expected.counted {
            in_flight.answered(clock.now());
        }
        self.answer(expected, reply);
        Ok(())
    }

    fn answer(&self, expected: Expected, reply: Option<&[u8]>) {
        let Some(client) = self.client.upgrade() else { return };
        let most = self.service.limits().unread;
        client.pay(expected.len);
        match expected.whom {
            Whom::Place(seq) => client.fill(seq, reply.unwrap_or_default(), most),
            Whom::Confirmation(all) => {
                if let Some(error) = reply {
                    *all.text.borrow_mut() = error.into();
                }
                all.missing.set(all.missing.get() - 1);
                if all.missing.get() == 0 {
                    client.fill(all.seq, &all.text.borrow(), most);
                }
            }
        }
    }

    /// Tells of everything that has no reply.
    fn end(&self, end: End) {
        let (left, sent, missed, failed) = {
            let mut state = self.state.borrow_mut();
            state.ended = true;
            let missed = self.listening && end != End::Idle && !state.finishing;
            // Not one that leads no more, nor one that ends what nobody uses.
            let failed = end == End::Failed && state.aborted.is_none() && !state.expected.is_empty();
            (std::mem::take(&mut state.expected), state.before + state.written, missed, failed)
        };
        if failed && let Some(server) = &*self.server.borrow() {
            let Worker { clock, limits, .. } = &*self.service.worker;
            server.failed(clock.now(), limits.avoid);
        }
        self.service.dialect.privates.borrow_mut().retain(|other| !std::ptr::eq(other.as_ptr(), self));
        let counters = &self.service.counters;
        for expected in left {
            let failure = if expected.access == Access::Update && expected.end <= sent {
                counters.unknown.add(1);
                Failure::Unknown("the server failed with this update under way")
            } else {
                counters.unavailable.add(1);
                Failure::Unavailable(match end {
                    End::Refused => "the partition's RACS has no leader",
                    End::Failed | End::Idle => "the connection to the partition's leader failed",
                })
            };
            let (Failure::Unknown(why) | Failure::Unavailable(why)) = failure;
            if let Some(client) = self.client.upgrade() {
                self.service.failed(&client, b"", self.racs, why);
            }
            let mut text = Vec::new();
            Redis::push_failure(&mut text, failure);
            self.answer(expected, Some(&text));
        }
        // Messages may be lost from now on, and there is no other way to say so.
        if missed && let Some(client) = self.client.upgrade() {
            client.cut();
        }
    }
}

/// Ends a connection whose task is dropped half-way.
struct Ends<'a>(&'a Private);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if !self.0.state.borrow().ended {
            self.0.end(End::Failed);
        }
    }
}

fn leader(service: &RedisService, racs: RacsId) -> Option<Rc<Server>> {
    let mut table = service.table.borrow_mut();
    let table = table.load();
    let logical = table.l2p.get(table.racs(racs).leader()?);
    Some(service.worker.servers.get(logical.physical, logical.addr))
}
