//! One client's connection: heads in, attempts at servers, responses out, in the order of the requests.

use std::{
    cell::Cell,
    mem::MaybeUninit,
    ops::Range,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use membership_types::Instant;
use router_proto::{
    extract::BodySearch,
    http::{HeadScan, Method, Refusal, Version},
    racs::{Access, Tried},
};
use tokio::{io::AsyncWrite, net::TcpStream};

use super::{
    HttpService, NotRouted, Place, Request, Target, Told,
    answer::{Answer, Kind},
    exchange::{Exchange, Failure, Fault, Head, Interim, Transfer},
    hedge::{Sent, Winner},
    lane::Left,
};
use crate::worker::{
    Buf, ClientStream, Deadline, InFlight, LAST_CHANCE, MOST_INPUT, SERVERS_FULL, Server, TOO_MANY, Tunnel,
    linger,
};

/// Room for a read.
pub(super) const ROOM: usize = 4 * 1024;

pub(super) struct Connection {
    pub(super) service: Rc<HttpService>,
    pub(super) client: ClientStream,
    pub(super) deadline: Deadline,
    /// From the client.
    pub(super) input: Buf,
    /// The request as it goes to the server; then the head of its response.
    pub(super) outgoing: Buf,
    /// From the server.
    incoming: Buf,
    pub(super) interim: Interim,
    /// Lines that tell the client where its request was routed.
    pub(super) labels: Vec<u8>,
    /// Lines that make the client come back to the same clone.
    pub(super) placed: Vec<u8>,
    /// For the access log.
    pub(super) told: Told,
    /// For keys in bodies.
    pub(super) search: BodySearch,
}

const TOO_MANY_RETRIES: &str =
    "connections to the partition's servers fail, and too many requests are being sent again";

/// Why there is no further request.
enum End {
    /// The client has nothing more to say, or need not be told.
    Gone,
    /// Another process goes on.
    Bequest,
    Refused(Refusal),
    TimedOut,
}

/// Whether the client's connection goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Request,
    /// Hang up once everything written has arrived.
    Close,
    /// Hang up so that the client notices: a response is incomplete.
    Cut,
    /// Nothing: whatever followed the last response is over.
    Over,
}

impl Next {
    pub fn persistent(persistent: bool) -> Self {
        if persistent { Self::Request } else { Self::Close }
    }
}

impl Connection {
    pub fn new(service: Rc<HttpService>, client: ClientStream) -> Self {
        let deadline = Deadline::new(&service.worker.clock);
        let (input, outgoing, incoming, interim) = Default::default();
        let search = BodySearch::new(service.limits.body_key);
        let (labels, placed) = Default::default();
        Self {
            service,
            client,
            deadline,
            input,
            outgoing,
            incoming,
            interim,
            labels,
            placed,
            search,
            told: Told::default(),
        }
    }

    /// What the client has said already.
    pub fn after(mut self, input: &[u8]) -> Self {
        self.input.extend(input, &self.service.worker.buffers);
        self
    }

    pub async fn serve(mut self) {
        let mut served = false;
        loop {
            let next = match self.head(served).await {
                Ok(place) => self.request(place).await,
                Err(End::Gone) => return,
                Err(End::Bequest) => {
                    let (service, input) = (&self.service, self.input.bytes());
                    let whom = (&*service.name, HttpService::PROTOCOL);
                    return service.worker.bequeath(whom, &self.client, Vec::new(), input);
                }
                Err(End::Refused(refusal)) => {
                    self.service.begin_malformed(&mut self.told, self.input.bytes());
                    self.refuse(Kind::Refused(refusal), None, false, false).await
                }
                Err(End::TimedOut) => {
                    self.service.begin_malformed(&mut self.told, self.input.bytes());
                    self.refuse(Kind::Timeout("the head took too long"), None, false, false).await
                }
            };
            served = true;
            let buffers = &self.service.worker.buffers;
            self.outgoing.free(buffers);
            self.incoming.free(buffers);
            self.input.rest(buffers);
            match next {
                Next::Request => {}
                Next::Over => return,
                Next::Close => {
                    self.input.clear();
                    return linger(&mut self.client, &self.deadline, &self.service.worker.clock).await;
                }
                Next::Cut => {
                    // With a plain end, a client could take a body that ends with the connection for whole.
                    self.client.reset_on_drop();
                    return;
                }
            }
        }
    }

    /// Waits for a whole head, which is left in `input`.
    async fn head(&mut self, served: bool) -> Result<Range<usize>, End> {
        let worker = &*Rc::clone(&self.service.worker);
        let mut scan = HeadScan::default();
        let mut started = !self.input.is_empty();
        let mut last_chance = false;
        let limits = &self.service.limits;
        self.deadline.arm(if started { limits.head } else { limits.idle });
        std::future::poll_fn(|cx| {
            // The next request is served as the newest configuration says.
            while let Some(next) = self.service.succession.next() {
                let next = Rc::clone(next);
                self.service = next;
                self.search = BodySearch::new(self.service.limits.body_key);
                if !started && !last_chance {
                    self.deadline.arm(self.service.limits.idle);
                }
            }
            loop {
                match scan.request(self.input.bytes()) {
                    Ok(Some(place)) => return Poll::Ready(Ok(place)),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Err(End::Refused(refusal))),
                }
                match self.input.poll_read(&mut self.client, cx, ROOM, &worker.buffers) {
                    Poll::Ready(Ok(len)) if len > 0 => {
                        if !started {
                            started = true;
                            self.deadline.arm(self.service.limits.head);
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(End::Gone)),
                    Poll::Pending => break,
                }
            }
            if worker.may_bequeath(&self.client) && self.input.len() <= MOST_INPUT {
                return Poll::Ready(Err(End::Bequest));
            }
            // Who speaks TLS cannot be handed over, but need not be sent away between two requests either: the next answer says
            // that it is the last.
            let hurry = !worker.gives_way() || self.service.succession.has_ended();
            if self.service.sends_away(&self.client) && !started && hurry {
                if served {
                    return Poll::Ready(Err(End::Gone));
                }
                if !last_chance {
                    last_chance = true;
                    self.deadline.arm(LAST_CHANCE);
                }
            }
            if self.deadline.passed(cx) {
                return Poll::Ready(Err(if started { End::TimedOut } else { End::Gone }));
            }
            Poll::Pending
        })
        .await
    }

    /// Serves the request whose head lies at `place` of `input`.
    async fn request(&mut self, place: Range<usize>) -> Next {
        let service = Rc::clone(&self.service);
        let buffers = &service.worker.buffers;
        self.labels.clear();
        self.placed.clear();
        let end = place.end;
        let head = &self.input.bytes()[place];
        let (search, told) = (&mut self.search, &mut self.told);
        let mut request = match service.prepare(head, &self.client, search, told, &mut self.outgoing) {
            Ok(request) => request,
            Err(NotRouted::Malformed(refusal)) => {
                return self.refuse(Kind::Refused(refusal), None, false, false).await;
            }
            Err(NotRouted::NoKey { persistent, head_only }) => {
                self.input.consume(end);
                return self.refuse(Kind::NoKey, None, persistent, head_only).await;
            }
        };
        self.input.consume(end);
        let head_len = self.outgoing.len();
        let mut upload = Transfer::new(request.body);
        if request.searching
            && let Err(said) = self.route_by_body(&service, &mut request, &mut upload).await
        {
            let Some((kind, persistent)) = said else {
                service.counters.refused.add(1);
                return Next::Cut;
            };
            return self.refuse(kind, None, persistent, request.method == Method::Head).await;
        }
        let clock = &service.worker.clock;
        let began = service.counters.begin(request.partition, clock);
        if let Err(refusal) = upload.admit(&self.input) {
            return self.refuse(Kind::Refused(refusal), Some(&request), false, false).await;
        }
        // What has come of the body rides with the head, and can be sent again with it.
        self.outgoing.extend(&self.input.bytes()[..upload.admitted], buffers);
        self.input.consume(upload.admitted);
        upload.admitted = 0;
        self.input.rest(buffers);
        let admitted = service.admission.admit();
        let next = match &admitted {
            Some(_) => self.attempts(&service, &request, head_len, &mut upload).await,
            None => self.overloaded(&request, &upload, TOO_MANY).await,
        };
        drop(admitted);
        service.counters.end(began, clock);
        service.log(&self.client, began, &mut self.told, Some(request.partition));
        next
    }

    async fn attempts(
        &mut self,
        service: &HttpService,
        request: &Request,
        head_len: usize,
        upload: &mut Transfer,
    ) -> Next {
        let limits = &service.limits;
        let clock = &service.worker.clock;
        let mut tried = Tried::default();
        let (mut fresh, mut more) = (false, true);
        let (mut attempts, mut failures) = (0, 0);
        let mut may_share = true;
        if request.expects_continue && !upload.is_over() {
            self.interim = Interim::go_on();
        }
        // Until when it may wait in all, and its place among those who do.
        let (mut wait_until, mut place): (Option<Instant>, Option<Place<'_>>) = (None, None);
        // Until when the client waits. Nothing is begun after that.
        let due = request.due.map_or(Instant::MAX, |due| due.at);
        loop {
            if clock.now() >= due {
                return self.late(request, upload).await;
            }
            let server = match service.pick(request, &tried, &mut self.labels, &mut self.placed) {
                Target::Server(server) if more => server,
                Target::Full => return self.overloaded(request, upload, SERVERS_FULL).await,
                Target::Server(_) | Target::Exhausted => {
                    return self
                        .unavailable(request, upload, "no clone of the partition's RACS answers")
                        .await;
                }
                Target::Wait => {
                    if place.is_none() {
                        place = service.queue(request.racs, &self.deadline);
                        if place.is_none() {
                            let why = "too many requests wait for a leader";
                            return self.unavailable(request, upload, why).await;
                        }
                    }
                    let until = *wait_until.get_or_insert_with(|| {
                        service.counters.waited.add(1);
                        // Rare enough to look at the real clock: the thread may have been kept from its ticks.
                        clock.refresh();
                        clock.now().after(limits.wait)
                    });
                    if !service.next_try(&self.deadline, until.min(due)).await && clock.now() < due {
                        return self.unavailable(request, upload, "the partition's RACS has no leader").await;
                    }
                    // Nothing was sent, and the servers may be other ones now, or well again.
                    (tried, more) = (Tried::default(), true);
                    continue;
                }
            };
            attempts += 1;
            if attempts > 1 {
                service.counters.retried.add(1);
            }
            if may_share
                && request.due.is_none()
                && let Some(lane) = service.lane(request, &server, head_len)
            {
                (place, may_share) = (None, false);
                self.told.attempts = attempts;
                let left = match self.share(service, request, &server, &lane).await {
                    Ok(next) => return next,
                    Err(left) => left,
                };
                // Whatever became of the lane, the server may serve a connection well that is not shared.
                let charged = match left {
                    Left::Unbegun | Left::Silent => false,
                    Left::Failed => true,
                    Left::Refused => {
                        more = tried.add(server.id);
                        !service.policy.leader_only(request.access)
                    }
                };
                if charged && !server.may_retry(clock.now()) {
                    return self.unavailable(request, upload, TOO_MANY_RETRIES).await;
                }
                continue;
            }
            let (mut server, now) = (server, clock.now());
            // It counts from here on, so that many who come at once do not all go to one clone.
            let mut in_flight = InFlight::to(&server, now);
            let Some((mut stream, reused)) = self.connect(&server, fresh, request.access, due).await else {
                if clock.now() >= due {
                    continue;
                }
                server.refused(clock.now(), limits.avoid);
                more = tried.add(server.id);
                if !service.policy.leader_only(request.access) && !server.may_retry(clock.now()) {
                    return self.unavailable(request, upload, TOO_MANY_RETRIES).await;
                }
                continue;
            };
            place = None;
            let sent_at = clock.fine();
            let patience = service.patience(request, upload);
            self.told.attempts = attempts;
            if let Some(due) = &request.due {
                due.tell(&mut self.outgoing, clock);
            }
            let mut exchange = Exchange {
                worker: &service.worker,
                limits: &service.limits,
                deadline: &self.deadline,
                due,
                client: &mut self.client,
                server: &mut stream,
                input: &mut self.input,
                outgoing: &mut self.outgoing,
                head_len,
                sent: 0,
                upload,
                interim: &mut self.interim,
                hints: request.version == Version::Http11,
                incoming: &mut self.incoming,
                method: request.method,
                scan: HeadScan::default(),
                interims: 0,
                moved: 0,
            };
            let mut sent = exchange.send(patience).await;
            if let Ok(Sent::Silent) = sent {
                if server.answered_at() <= now {
                    // Not this request is slow, the server is: it has answered nobody since.
                    server.failed(clock.now(), limits.avoid);
                }
                if let Some(due) = &request.due
                    && exchange.sent == exchange.outgoing.len()
                {
                    due.tell(exchange.outgoing, clock);
                }
                sent = match service.rival(request, &tried, &server) {
                    None => exchange.send(None).await,
                    Some(mut rival) => match exchange.race(&mut rival).await {
                        Ok((winner, len)) => {
                            if let Winner::Rival = winner {
                                in_flight.answered(clock.now()); // it would have taken longer still
                                server = Rc::clone(&rival.server);
                                std::mem::swap(&mut in_flight, &mut rival.in_flight);
                                self.labels = std::mem::take(&mut rival.labels);
                            }
                            Ok(Sent::Answered(len))
                        }
                        Err(failure) => Err(failure),
                    },
                };
            }
            let turned = match sent {
                Ok(Sent::Answered(len)) => exchange.turn(len, request, &self.labels, &self.placed),
                Ok(Sent::Silent) => unreachable!("without patience it waits for the end"),
                Err(failure) => Err(failure),
            };
            self.told.server = Some(server.addr);
            if let Ok(head) = &turned {
                in_flight.answered(clock.now());
                self.told.status = Some(head.status);
                service.answered(request, &server, head.status);
                service.usual.borrow_mut().answered(clock.now() - now);
            }
            let failure = match turned {
                Ok(head) if head.switches => return self.tunnel(service, request, in_flight, stream).await,
                Ok(head) => match exchange.relay(&head).await {
                    Ok(()) => {
                        drop(in_flight);
                        server.measured(sent_at, clock);
                        if head.server_persistent && upload.is_over() && self.incoming.is_empty() {
                            self.keep(&server, stream, &head);
                        }
                        return Next::persistent(head.client_persistent);
                    }
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            drop(in_flight);
            match failure {
                Failure::Client | Failure::Broken => return Next::Cut,
                Failure::Malformed(refusal) => {
                    service.counters.refused.add(1);
                    return self.say(Kind::Refused(refusal), Some(request), false, false).await;
                }
                Failure::SlowClient => {
                    service.counters.refused.add(1);
                    return self
                        .say(Kind::Timeout("the body took too long"), Some(request), false, false)
                        .await;
                }
                Failure::Server(fault) => {
                    self.incoming.clear();
                    failures += 1;
                    let stale = reused && !fault.answered && !fault.late;
                    let late = fault.late && clock.now() >= due;
                    if late {
                        server.missed(clock.now(), limits.avoid);
                        if request.access == Access::Read || !fault.delivered {
                            return self.late(request, upload).await;
                        }
                    } else if !stale {
                        server.failed(clock.now(), limits.avoid);
                    }
                    if let Some(kind) = verdict(request, upload, fault, failures) {
                        if matches!(kind, Kind::Unknown) {
                            service.counters.unknown.add(1);
                        } else {
                            service.counters.unavailable.add(1);
                        }
                        let persistent = request.persistent && upload.is_over();
                        let head_only = request.method == Method::Head;
                        return self.say(kind, Some(request), persistent, head_only).await;
                    }
                    if !stale && !server.may_retry(clock.now()) {
                        return self.unavailable(request, upload, TOO_MANY_RETRIES).await;
                    }
                    if stale {
                        // The server closed a connection that it had no use for; it may be in the best of
                        // health.
                        fresh = true;
                    } else if request.access == Access::Read {
                        more = tried.add(server.id);
                    }
                }
            }
        }
    }

    /// A connection to a server, and whether it was used before; `None` if none can be made.
    async fn connect(
        &mut self,
        server: &Server,
        fresh: bool,
        access: Access,
        due: Instant,
    ) -> Option<(TcpStream, bool)> {
        while !fresh && let Some(stream) = server.take_idle() {
            // A read that meets a connection just closed is repeated. An update is not, so for it the kernel
            // is asked once more: what is left is the time that a FIN takes from there to here.
            if access == Access::Read || !is_closed(&stream) {
                return Some((stream, true));
            }
        }
        let worker = &self.service.worker;
        self.deadline.arm_at(worker.clock.after(self.service.limits.connect).min(due));
        let _watching = self.service.watch();
        let mut seen = self.service.changes.get();
        let mut connecting = pin!(TcpStream::connect(server.addr));
        let connected = std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.ok());
            }
            // A view that came meanwhile may say that nobody need wait for this server any more.
            let changes = self.service.changes.get();
            let given_up =
                std::mem::replace(&mut seen, changes) != changes && !self.service.has_server(server.id);
            if self.deadline.passed(cx) || given_up { Poll::Ready(None) } else { Poll::Pending }
        });
        let stream = connected.await?;
        stream.set_nodelay(true).ok()?;
        Some((stream, false))
    }

    /// The protocol that was asked for begins: from here on bytes pass as they come. What came behind the request
    /// was held back until now, since the server could have read it as another one.
    async fn tunnel(
        &mut self,
        service: &HttpService,
        request: &Request,
        to: InFlight,
        mut stream: TcpStream,
    ) -> Next {
        let worker = &*service.worker;
        let up = std::mem::take(&mut self.input);
        let mut down = std::mem::take(&mut self.outgoing);
        down.extend(self.incoming.bytes(), &worker.buffers);
        self.incoming.free(&worker.buffers);
        let _watching = service.watch();
        let seen = Cell::new(None);
        let unwanted = || {
            let changes = Some(service.changes.get());
            seen.replace(changes) != changes && service.is_deposed(request.racs, to.server().id)
        };
        let tunnel = Tunnel::new(worker, &mut self.client, &mut stream, up, down);
        tunnel.run(&self.deadline, service.limits.tunnel, unwanted).await;
        Next::Over
    }

    fn keep(&self, server: &Server, stream: TcpStream, head: &Head) {
        let worker = &self.service.worker;
        let limits = &self.service.limits;
        // The server says when it will close: stop a second before.
        let announced =
            head.keep_alive_timeout_s.map(|s| Duration::from_secs(u64::from(s).saturating_sub(1)));
        let keep = announced.map_or(limits.pool_idle, |announced| announced.min(limits.pool_idle));
        if !keep.is_zero() && !worker.is_draining() {
            server.keep(stream, worker.clock.now().after(keep), limits.pool_size);
        }
    }

    async fn unavailable(&mut self, request: &Request, upload: &Transfer, why: &'static str) -> Next {
        self.service.counters.unavailable.add(1);
        self.not_now(request, upload, why).await
    }

    /// As [`Connection::unavailable`], because too many requests are under way.
    async fn overloaded(&mut self, request: &Request, upload: &Transfer, why: &'static str) -> Next {
        self.service.counters.overloaded.add(1);
        self.not_now(request, upload, why).await
    }

    /// The client's time is over, and nothing was changed.
    async fn late(&mut self, request: &Request, upload: &Transfer) -> Next {
        self.service.counters.unavailable.add(1);
        let persistent = request.persistent && upload.is_over();
        self.say(Kind::Late, Some(request), persistent, request.method == Method::Head).await
    }

    /// Nothing was done, and the client may try again.
    async fn not_now(&mut self, request: &Request, upload: &Transfer, why: &'static str) -> Next {
        let persistent = request.persistent && upload.is_over();
        let head_only = request.method == Method::Head;
        self.say(Kind::Unavailable(why), Some(request), persistent, head_only).await
    }

    /// Answers what goes to no server, and logs it.
    async fn refuse(
        &mut self,
        kind: Kind,
        request: Option<&Request>,
        persistent: bool,
        head_only: bool,
    ) -> Next {
        let service = Rc::clone(&self.service);
        service.counters.refused.add(1);
        let began = service.worker.clock.fine();
        let next = self.say(kind, request, persistent, head_only).await;
        service.log(&self.client, began, &mut self.told, request.map(|request| request.partition));
        next
    }

    /// Answers in the router's own name.
    async fn say(
        &mut self,
        kind: Kind,
        request: Option<&Request>,
        persistent: bool,
        head_only: bool,
    ) -> Next {
        let service = &self.service;
        let persistent = persistent && !service.sends_away(&self.client);
        let partition = request.map(|request| service.partition_name(request.partition));
        let labels = if request.is_some() { &*self.labels } else { &[] };
        let answer = Answer {
            kind,
            service: &service.name,
            partition: partition.as_deref(),
            request_id: self.told.ids.as_ref().map(|ids| ids.request()),
            labels,
            close: !persistent,
            head_only,
        };
        let mut text = Vec::new();
        let error = answer.write(&mut text);
        self.told.answered(&text, error);
        // A server that failed may have said something before.
        text.splice(..0, self.interim.take_hints());
        let mut sent = 0;
        self.deadline.arm(service.limits.stall);
        let written = std::future::poll_fn(|cx| {
            match self.interim.poll_end(&mut self.client, cx) {
                Poll::Ready(true) => {}
                Poll::Pending if !self.deadline.passed(cx) => return Poll::Pending,
                _ => return Poll::Ready(false),
            }
            while sent < text.len() {
                match Pin::new(&mut self.client).poll_write(cx, &text[sent..]) {
                    Poll::Ready(Ok(len)) if len > 0 => sent += len,
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending if self.deadline.passed(cx) => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(true)
        });
        if written.await { Next::persistent(persistent) } else { Next::Cut }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let buffers = &self.service.worker.buffers;
        self.input.free(buffers);
        self.outgoing.free(buffers);
        self.incoming.free(buffers);
    }
}

/// What to tell the client after a server failed; `None` if the request may be sent again.
///
/// Once only: an update that the server may have seen whole is never sent again, and neither is anything of
/// which a part is gone from the buffer.
fn verdict(request: &Request, upload: &Transfer, fault: Fault, failures: u32) -> Option<Kind> {
    /// Connections that may fail one after the other without the server having seen the request.
    const MAX_FAILURES: u32 = 5;
    let harmless = request.access == Access::Read || !fault.delivered;
    if !harmless {
        return Some(Kind::Unknown);
    }
    if fault.garbled {
        return Some(Kind::BadGateway("the server's response is not HTTP/1.1 as it should be"));
    }
    if upload.begun {
        return Some(Kind::BadGateway("the server failed while the request's body was on its way"));
    }
    if failures >= MAX_FAILURES {
        return Some(Kind::Unavailable("connections to the partition's servers fail"));
    }
    None
}

/// Asks the kernel whether a connection has ended: tokio only knows what it was told in the last turn of the
/// loop.
fn is_closed(stream: &TcpStream) -> bool {
    let peeked = socket2::SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    !matches!(peeked, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}
