//! The connection to one server that all clients of a worker share.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use membership_types::Instant;
use router_proto::{
    RacsId,
    pipelined::{Flight, Gathering, Pipeline, Sent},
    racs::Access,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Dialect, Failure, MAX_FAILURES, Says, Service, TOO_MANY_RETRIES, Tag};
use crate::{
    limits::Limits,
    worker::{
        Clock, Deadline, End, HUNG, Hold, Inbox, READ, Rival, SERVERS_FULL, Server, Stopwatch, Target, Waits,
        Worker,
    },
};

/// Commands on their way to one server, and whom their replies are for.
pub(crate) struct Upstream<D: Dialect> {
    server: Rc<Server>,
    pipeline: RefCell<Pipeline<Tag<D>>>,
    worker: Rc<Worker>,
    /// Wakes the task, and knows how long commands have waited for company.
    hold: Rc<Hold>,
    /// Whether the task knows already that there is something to write.
    told: Cell<bool>,
    /// The command that is timed, and how many come before its reply, its own included.
    timed: RefCell<Option<(Stopwatch, usize)>>,
    /// How long the server may be silent about what is under way, as the configuration had it that sent the last command.
    patience: Cell<Duration>,
    /// Nobody will send anything here any more.
    retired: Cell<bool>,
}

impl<D: Dialect> Upstream<D> {
    /// Starts to connect. Commands may be pushed at once.
    pub(super) fn start(
        worker: &Rc<Worker>,
        server: &Rc<Server>,
        limits: &Limits,
        greeting: Vec<u8>,
    ) -> Rc<Self> {
        let upstream = Rc::new(Self {
            server: Rc::clone(server),
            pipeline: RefCell::default(),
            worker: Rc::clone(worker),
            hold: Rc::default(),
            told: Cell::new(false),
            timed: RefCell::default(),
            patience: Cell::new(limits.response),
            retired: Cell::new(false),
        });
        let task = Task {
            worker: Rc::clone(worker),
            upstream: Rc::clone(&upstream),
            deadline: Deadline::new(&worker.clock),
            inbox: Inbox::new(),
            replies: D::Replies::default(),
            greeting,
            since: worker.clock.now(),
            looked: 0,
            blamed: 0,
        };
        tokio::task::spawn_local(task.run(limits.connect));
        upstream
    }

    /// Appends a command; it is written at the end of this turn of the loop, or once there is an answer to what
    /// was written before. The server may be silent about it for as long as `response`.
    pub(super) fn push(&self, command: &[u8], tag: Tag<D>, response: Duration) {
        self.patience.set(response);
        let stopwatch = self.server.engage(self.worker.clock.now());
        let mut pipeline = self.pipeline.borrow_mut();
        pipeline.push(command, tag);
        if let Some(stopwatch) = stopwatch
            && self.timed.borrow().is_none()
        {
            self.timed.replace(Some((stopwatch, pipeline.len())));
        }
        match pipeline.gathering() {
            Gathering::Done if !self.told.replace(true) => self.hold.waker.wake(),
            Gathering::Company => self.worker.pace.hold(&self.hold),
            _ => {}
        }
    }

    /// A reply to a command of this service and for this RACS has come.
    fn answered(&self, service: &Service<D>, racs: RacsId, says: Says) {
        self.server.settle();
        self.server.responded(&service.counters, says.class());
        // What an answer says of its command is between the server and the client: that there is one shows that it lives.
        let said = service.judge(says, racs, &self.server);
        self.server.answered(self.worker.clock.now(), said, self.worker.limits.avoid);
        let mut timed = self.timed.borrow_mut();
        if let Some((_, before)) = &mut *timed {
            *before -= 1;
        }
        if let Some((stopwatch, _)) = timed.take_if(|(_, before)| *before == 0) {
            self.server.took(self.worker.clock.now(), &stopwatch);
        }
    }

    /// No table has the server any more: ends the connection once nothing is under way, at once if it is not
    /// made yet.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.hold.waker.wake();
    }
}

struct Task<D: Dialect> {
    worker: Rc<Worker>,
    upstream: Rc<Upstream<D>>,
    deadline: Deadline,
    inbox: Inbox,
    replies: D::Replies,
    greeting: Vec<u8>,
    /// When it was last heard, while it is to say something.
    since: Instant,
    /// For how many of the commands under way other clones need not be asked any more, and for how many it was blamed.
    looked: usize,
    blamed: usize,
}

impl<D: Dialect> Task<D> {
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
        D::lanes(&self.upstream.server).forget(&self.upstream);
    }

    /// Makes the connection, within this time.
    async fn connect(&mut self, limit: Duration) -> Option<TcpStream> {
        self.wait();
        let greeting = std::mem::take(&mut self.greeting);
        let mut connecting = pin!(connect::<D>(self.upstream.server.addr, &greeting));
        let upstream = Rc::clone(&self.upstream);
        let connected = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                if let Err(error) = &result
                    && error.kind() == io::ErrorKind::PermissionDenied
                {
                    tracing::warn!(server = %upstream.server.addr, %error, "a server does not let us in");
                }
                return Poll::Ready(result.ok());
            }
            upstream.hold.waker.register(cx);
            let given_up = self.is_given_up(limit, cx);
            if given_up || upstream.retired.get() { Poll::Ready(None) } else { Poll::Pending }
        });
        let stream = connected.await?;
        self.heard();
        Some(stream)
    }

    fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        let upstream = Rc::clone(&self.upstream);
        upstream.hold.waker.register(cx);
        upstream.told.set(false);
        loop {
            let Ok(full) = upstream.hold.write(&mut upstream.pipeline.borrow_mut(), stream, cx) else {
                // What has arrived is still worth reading: replies that came before the connection failed.
                let _ = self.poll_replies(stream, cx);
                return Poll::Ready(End::Failed);
            };
            if let Poll::Ready(end) = self.poll_replies(stream, cx) {
                return Poll::Ready(end);
            }
            // Replies make room for what was held back.
            match upstream.pipeline.borrow().gathering() {
                Gathering::Done if !full && !upstream.pipeline.borrow().is_written() => continue,
                Gathering::Company => self.worker.pace.hold(&upstream.hold),
                _ => {}
            }
            break;
        }
        if upstream.pipeline.borrow().is_empty() {
            self.deadline.disarm();
            if upstream.retired.get() {
                return Poll::Ready(End::Idle);
            }
        } else if !self.deadline.is_armed() {
            self.wait();
        }
        let given_up = self.is_given_up(self.upstream.patience.get(), cx);
        if given_up { Poll::Ready(End::Failed) } else { Poll::Pending }
    }

    /// The server is to say something from now on.
    fn wait(&mut self) {
        self.since = self.worker.clock.now();
        self.deadline.arm(self.upstream.server.patience(self.worker.limits.hedge_after));
    }

    /// The server has said something.
    fn heard(&mut self) {
        self.deadline.disarm();
        (self.looked, self.blamed) = (0, 0);
    }

    /// Whether the server has said nothing for `limit`. Before that, it counts against it, and other clones are asked
    /// for reads, again and again as commands come.
    fn is_given_up(&mut self, limit: Duration, cx: &Context<'_>) -> bool {
        while self.deadline.passed(cx) {
            let (now, until) = (self.worker.clock.now(), self.since.after(limit));
            if now >= until {
                return true;
            }
            let patience = self.upstream.server.patience(self.worker.limits.hedge_after);
            self.look(now, patience);
            self.deadline.arm(patience.min(until - now));
        }
        false
    }

    /// Asks other clones for reads about which the server is silent. Its own answers may still come: they are taken
    /// off in their turn, as ever, and the first one counts.
    fn look(&mut self, now: Instant, patience: Duration) {
        let Upstream { server, pipeline, .. } = &*self.upstream;
        let mut pipeline = pipeline.borrow_mut();
        if pipeline.len() > self.blamed {
            self.blamed = pipeline.len();
            server.silent(self.since, now, self.worker.limits.avoid);
        }
        let hung = now >= self.since.after(patience * HUNG);
        let mut spent = false;
        pipeline.latest(self.looked, |tag, command| {
            if !spent && !tag.is_hedged() {
                let service = tag.client.service();
                match service.rival(tag, server, hung) {
                    Rival::Server(rival) => {
                        service.counters.hedged.add(1);
                        service.push(&rival, command, tag.copy(server.id));
                    }
                    Rival::Later => spent = true,
                    Rival::None => {}
                }
            }
            self.looked += usize::from(!spent);
        });
    }

    /// Reads and delivers until nothing more is there.
    fn poll_replies(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if !ready!(self.inbox.poll_read(stream, cx)) {
                let idle = self.upstream.pipeline.borrow().is_empty();
                return Poll::Ready(if idle { End::Idle } else { End::Failed });
            }
            // Any byte is progress; the next look re-arms if replies are missing.
            self.heard();
            let Self { upstream, replies, worker, .. } = self;
            let delivered = self.inbox.deliver(|bytes| deliver(upstream, replies, bytes, &worker.clock));
            if delivered.is_err() {
                let server = self.upstream.server.addr;
                tracing::warn!(%server, "a server's reply is not {}, or was not asked for", D::NAME);
                return Poll::Ready(End::Failed);
            }
        }
    }

    /// Decides about every command without reply: reads go to another clone, updates that the server cannot
    /// have executed to whoever leads, and of the rest nobody knows.
    fn hand_back(&mut self, refused: bool) {
        let mut left: Vec<(Tag<D>, Box<[u8]>, Sent)> = Vec::new();
        self.upstream
            .pipeline
            .borrow_mut()
            .fail(|Flight { tag, command, sent }| left.push((tag, command.into(), sent)));
        let mut to_wait = Vec::new();
        for (mut tag, command, sent) in left {
            self.upstream.server.settle();
            if tag.lost() {
                continue;
            }
            let service = tag.client.service();
            if tag.client.is_gone() && tag.access == Access::Read {
                service.admission.leave();
                continue;
            }
            if sent == Sent::Perhaps && tag.access == Access::Update {
                service.counters.unknown.add(1);
                let why = "the server failed with this update under way";
                tag.failed(&command, Some(self.upstream.server.addr), why);
                tag.deliver_failure(command.len(), Failure::Unknown(why));
                continue;
            }
            // A leader that cannot be reached is waited for; any other server is one of a few that are tried.
            let leader_only = service.policy.leader_only(tag.access);
            let free = refused && leader_only;
            if !free && !self.upstream.server.may_retry(self.worker.clock.now()) {
                service.unavailable(tag, &command, TOO_MANY_RETRIES);
                continue;
            }
            service.counters.retried.add(1);
            tag.hedged = false;
            tag.failures += u8::from(!free);
            let more = !refused || tag.tried.add(self.upstream.server.id) || leader_only;
            if tag.failures >= MAX_FAILURES || !more {
                service.unavailable(tag, &command, "connections to the partition's servers fail");
                continue;
            }
            match service.pick(&tag) {
                Target::Server(server) => service.push(&server, &command, tag),
                Target::Exhausted => {
                    service.unavailable(tag, &command, "no clone of the partition's RACS answers");
                }
                Target::Full => service.overloaded(tag, &command, SERVERS_FULL),
                Target::Wait => to_wait.push((tag, command)),
            }
        }
        Service::wait_again(to_wait);
    }
}

impl<D: Dialect> Drop for Task<D> {
    /// Only a panic, or the end of the router, leaves commands behind: nobody would ever answer them, and
    /// nothing is known of them.
    fn drop(&mut self) {
        self.detach();
        let Ok(mut pipeline) = self.upstream.pipeline.try_borrow_mut() else { return };
        pipeline.fail(|Flight { tag, command, .. }| {
            self.upstream.server.settle();
            if !tag.lost() {
                tag.deliver_failure(command.len(), Failure::Unknown("the router failed"));
            }
        });
    }
}

/// A connection on which the server has been told what it has to be told first.
pub(crate) async fn connect<D: Dialect>(addr: SocketAddr, greeting: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    if greeting.is_empty() {
        return Ok(stream);
    }
    stream.write_all(greeting).await?;
    let mut reply = Vec::new();
    while !D::welcome(&reply)? {
        if reply.len() > READ || stream.read_buf(&mut reply).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(stream)
}

/// Delivers the replies at the start of `input`. Returns how many bytes they have.
fn deliver<D: Dialect>(
    upstream: &Upstream<D>,
    replies: &mut D::Replies,
    input: &[u8],
    clock: &Clock,
) -> Result<usize, ()> {
    let mut done = 0;
    while done < input.len() {
        let (reply, says, again) = {
            let pipeline = upstream.pipeline.borrow();
            match (pipeline.oldest(), pipeline.front()) {
                (Some((tag, command)), _) => {
                    let Some(len) = D::scan_reply(replies, tag.note, command, &input[done..])? else { break };
                    let reply = &input[done..done + len];
                    let says = D::says(tag.note, reply);
                    let repeat = says == Says::CannotServe && tag.access == Access::Read;
                    let again = repeat.then(|| Box::<[u8]>::from(command));
                    if again.is_none() {
                        tag.answered(command, upstream.server.addr);
                    }
                    (reply, says, again)
                }
                (None, Some(tag)) if D::begins_early(tag.note) => break,
                _ => return Err(()),
            }
        };
        let (mut tag, command_len) = upstream.pipeline.borrow_mut().answered().ok_or(())?;
        done += reply.len();
        let service = tag.client.service();
        upstream.answered(&service, tag.racs, says);
        upstream.server.measured(tag.sent, clock);
        if let Some(command) = again {
            let Some(told) = service.ask_another(tag, &command, &upstream.server) else { continue };
            told.answered(&command, upstream.server.addr);
            tag = told;
        }
        tag.deliver(command_len, reply);
    }
    Ok(done)
}
