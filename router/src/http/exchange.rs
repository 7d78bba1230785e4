//! One attempt at one request: bytes in both directions between a client and a server, until the response has
//! passed or the attempt has failed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use membership_types::Instant;
use router_proto::http::{Body, ChunkedScanner, HeadScan, Method, Refusal, ResponseHead, Version};
use tokio::{io::AsyncWrite, net::TcpStream};

use super::{
    Request,
    hedge::{Rival, Sent, Winner},
    upgrade_lines,
};
use crate::{
    limits::Limits,
    worker::{Buf, Buffers, ClientStream, Deadline, Worker},
};

/// Room for a read.
const ROOM: usize = 4 * 1024;
/// Body bytes up to this many are copied behind the head, so that both leave in one plain write.
const COPIED: usize = 4 * 1024;
/// Interim responses that a server may send for one request.
const MAX_INTERIM: u32 = 8;
/// Most bytes of them that wait for a client; further ones are left out, as they are only hints.
const MAX_HINTS: usize = 16 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What the client is told before its response: to go on, by the router itself; and what a server has to say.
#[derive(Default)]
pub(super) struct Interim {
    left: &'static [u8],
    begun: bool,
    /// Interim responses of servers. Once a write of them has been tried they go before all else.
    hints: Vec<u8>,
    said: usize,
    hinting: bool,
}

impl Interim {
    /// Asks the client to go on.
    pub fn go_on() -> Self {
        Self { left: CONTINUE, ..Self::default() }
    }

    /// Whether something of it was said.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// Says it. False means that the client does not listen any more.
    pub fn poll_say(&mut self, client: &mut ClientStream, cx: &mut Context<'_>) -> Poll<bool> {
        if self.hinting && !ready!(self.poll_hints(client, cx)) {
            return Poll::Ready(false);
        }
        self.begun |= !self.left.is_empty();
        while !self.left.is_empty() {
            match ready!(Pin::new(&mut *client).poll_write(cx, self.left)) {
                Ok(len) if len > 0 => self.left = &self.left[len..],
                _ => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// Passes on an interim response, if there is room for it.
    fn hint(&mut self, head: &[u8], parsed: &ResponseHead) {
        if self.hints.len() + head.len() <= MAX_HINTS {
            parsed.forward(head).for_each(|slice| self.hints.extend_from_slice(slice));
            self.hints.extend_from_slice(b"\r\n");
        }
    }

    /// What of them is not said yet. Whoever takes it says it before anything else.
    pub fn take_hints(&mut self) -> Vec<u8> {
        let mut hints = std::mem::take(&mut self.hints);
        hints.drain(..std::mem::take(&mut self.said));
        self.hinting = false;
        hints
    }

    /// Says what servers have said. False means that the client does not listen any more.
    fn poll_hints(&mut self, client: &mut ClientStream, cx: &mut Context<'_>) -> Poll<bool> {
        if self.hints.is_empty() {
            return Poll::Ready(true);
        }
        if !self.hinting && !ready!(self.poll_end(client, cx)) {
            return Poll::Ready(false);
        }
        self.hinting = true;
        while self.said < self.hints.len() {
            match ready!(Pin::new(&mut *client).poll_write(cx, &self.hints[self.said..])) {
                Ok(len) if len > 0 => self.said += len,
                _ => return Poll::Ready(false),
            }
        }
        drop(self.take_hints());
        Poll::Ready(true)
    }

    /// It need not be said any more, unless a part of it was.
    fn drop_unless_begun(&mut self) {
        if !self.begun {
            self.left = &[];
        }
    }

    /// If a part of it was said already, says the rest.
    pub fn poll_end(&mut self, client: &mut ClientStream, cx: &mut Context<'_>) -> Poll<bool> {
        if self.left.is_empty() || !self.begun { Poll::Ready(true) } else { self.poll_say(client, cx) }
    }
}

/// What is still to come of a body from its sender, and what of it may go on.
pub(super) struct Transfer {
    rest: Rest,
    /// Bytes at the front of the buffer that belong to the body and have been validated.
    pub admitted: usize,
    /// Whether bytes have left the buffer for good.
    pub begun: bool,
}

enum Rest {
    Done,
    Length(u64),
    Chunked(Box<ChunkedScanner>),
    UntilClose,
}

impl Transfer {
    pub fn new(body: Body) -> Self {
        let rest = match body {
            Body::None | Body::Length(0) => Rest::Done,
            Body::Length(len) => Rest::Length(len),
            Body::Chunked => Rest::Chunked(Box::default()),
            Body::UntilClose => Rest::UntilClose,
        };
        Self { rest, admitted: 0, begun: false }
    }

    /// Whether the whole body has been seen and passed on.
    pub fn is_over(&self) -> bool {
        self.admitted == 0 && matches!(self.rest, Rest::Done)
    }

    /// Notes that admitted bytes have left the buffer.
    fn left(&mut self, len: usize) {
        self.admitted -= len;
        self.begun |= len > 0;
    }

    /// Looks at the bytes in the buffer. Afterwards [`Transfer::admitted`] of them may go on.
    pub fn admit(&mut self, buf: &Buf) -> Result<(), Refusal> {
        self.admit_data(buf, |_| {})
    }

    /// As [`Transfer::admit`]; gives the body's bytes, without their framing, to `data`.
    pub fn admit_data(&mut self, buf: &Buf, mut data: impl FnMut(&[u8])) -> Result<(), Refusal> {
        let fresh = &buf.bytes()[self.admitted..];
        self.admitted += match &mut self.rest {
            Rest::Done => 0,
            Rest::UntilClose => {
                data(fresh);
                fresh.len()
            }
            Rest::Length(left) => {
                let len = fresh.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                data(&fresh[..len]);
                if *left == 0 {
                    self.rest = Rest::Done;
                }
                len
            }
            Rest::Chunked(scanner) => {
                let advance = scanner.advance_data(fresh, data)?;
                if advance.done {
                    self.rest = Rest::Done;
                }
                advance.len
            }
        };
        Ok(())
    }
}

/// How an attempt failed.
pub(super) enum Failure {
    /// The client is gone.
    Client,
    /// The client's body is malformed.
    Malformed(Refusal),
    /// The client does not send the body that it announced.
    SlowClient,
    /// The server failed before any byte of a response was passed on.
    Server(Fault),
    /// The server failed with its response under way; the client must see a broken connection.
    Broken,
}

/// What is known of a server's failure.
#[derive(Clone, Copy)]
pub(super) struct Fault {
    /// Whether the server may have seen the whole head, and so may have done what it says.
    pub delivered: bool,
    /// Whether anything came back.
    pub answered: bool,
    /// Whether it was too slow rather than gone.
    pub late: bool,
    /// Whether what came back was not HTTP.
    pub garbled: bool,
}

/// What a response's head says, once it has been turned into the client's.
pub(super) struct Head {
    pub status: u16,
    pub body: Body,
    /// Whether the server's connection can be used again.
    pub server_persistent: bool,
    pub keep_alive_timeout_s: Option<u32>,
    /// Whether the client's connection goes on.
    pub client_persistent: bool,
    /// Whether the request's body is still on its way to the server.
    pub upload_goes_on: bool,
    /// Whether the protocol that was asked for begins.
    pub switches: bool,
}

/// Both sides of one attempt.
pub(super) struct Exchange<'a> {
    pub worker: &'a Worker,
    pub limits: &'a Limits,
    pub deadline: &'a Deadline,
    /// Until when the client waits for the response to begin.
    pub due: Instant,
    pub client: &'a mut ClientStream,
    pub server: &'a mut TcpStream,
    /// From the client, behind the head.
    pub input: &'a mut Buf,
    /// The head and what came with it; then the response's head.
    pub outgoing: &'a mut Buf,
    /// How much of `outgoing` is the head.
    pub head_len: usize,
    /// How much of `outgoing` the server's socket has taken.
    pub sent: usize,
    pub upload: &'a mut Transfer,
    /// What is still to be said to the client before its body comes, and before its response.
    pub interim: &'a mut Interim,
    /// Whether the client may hear what servers say before their response: those of HTTP/1.0 would not understand.
    pub hints: bool,
    /// From the server.
    pub incoming: &'a mut Buf,
    pub method: Method,
    pub scan: HeadScan,
    pub interims: u32,
    /// Bytes that have been read or written, in any direction: as long as it grows, nobody is stuck.
    pub moved: u64,
}

impl Exchange<'_> {
    /// Sends the request and waits for the head of its response, which is left in `incoming` in front of what
    /// came with it. Returns the head's length, or [`Sent::Silent`] once `patience` is over without a byte of
    /// it; then it can be called again to go on waiting.
    ///
    /// `outgoing` stays as it was, so that the request can be sent again if this fails.
    pub async fn send(&mut self, mut patience: Option<Duration>) -> Result<Sent, Failure> {
        let response = self.limits.response;
        self.arm(patience.unwrap_or(response));
        std::future::poll_fn(|cx| {
            let before = self.moved;
            let requested = self.poll_request(cx);
            if self.moved > before {
                // A client that does not go on with its body is not waited for as a server is.
                let silence = if self.waits_for_client() { self.limits.stall } else { response };
                self.arm(patience.unwrap_or(silence));
            }
            let server_failed = match requested {
                Poll::Ready(Err(Upload::Client(failure))) => return Poll::Ready(Err(failure)),
                // It may have answered before it closed.
                Poll::Ready(Err(Upload::Server)) => true,
                Poll::Ready(Ok(())) | Poll::Pending => false,
            };
            loop {
                let head = self.poll_head(cx);
                if head.is_pending() && self.interim.poll_hints(self.client, cx) == Poll::Ready(false) {
                    return Poll::Ready(Err(Failure::Client));
                }
                return match head {
                    Poll::Ready(result) => Poll::Ready(result.map(Sent::Answered)),
                    Poll::Pending if server_failed => Poll::Ready(Err(self.fault(false, false))),
                    Poll::Pending if !self.deadline.passed(cx) => Poll::Pending,
                    Poll::Pending if self.worker.clock.now() >= self.due => {
                        Poll::Ready(Err(self.fault(true, false)))
                    }
                    Poll::Pending if patience.take().is_some() => {
                        if self.incoming.is_empty() {
                            return Poll::Ready(Ok(Sent::Silent));
                        }
                        self.arm(response);
                        continue;
                    }
                    Poll::Pending if self.waits_for_client() => Poll::Ready(Err(Failure::SlowClient)),
                    Poll::Pending => Poll::Ready(Err(self.fault(true, false))),
                };
            }
        })
        .await
    }

    /// Waits for whoever answers first: the server that has the request, or a second one. The loser's
    /// connection is left with `rival`; the winner is `server`, its answer in `incoming`.
    pub async fn race(&mut self, rival: &mut Rival) -> Result<(Winner, usize), Failure> {
        self.arm(self.limits.response);
        let mut first_failed = None;
        std::future::poll_fn(|cx| {
            if first_failed.is_none() {
                match self.poll_head(cx) {
                    Poll::Ready(Ok(len)) => return Poll::Ready(Ok((Winner::First, len))),
                    Poll::Ready(Err(failure)) => first_failed = Some(failure),
                    Poll::Pending => {}
                }
                if self.interim.poll_hints(self.client, cx) == Poll::Ready(false) {
                    return Poll::Ready(Err(Failure::Client));
                }
            }
            match rival.poll(cx, self.outgoing.bytes(), self.method, self.worker) {
                Poll::Ready(Some((stream, len))) => {
                    *self.server = stream;
                    std::mem::swap(self.incoming, rival.incoming());
                    self.sent = self.outgoing.len();
                    return Poll::Ready(Ok((Winner::Rival, len)));
                }
                Poll::Ready(None) => {
                    if let Some(failure) = first_failed.take() {
                        return Poll::Ready(Err(failure));
                    }
                }
                Poll::Pending => {}
            }
            if self.deadline.passed(cx) { Poll::Ready(Err(self.fault(true, false))) } else { Poll::Pending }
        })
        .await
    }

    /// The deadline passes after `time`, or when the client waits no more.
    fn arm(&self, time: Duration) {
        self.deadline.arm_at(self.worker.clock.after(time).min(self.due));
    }

    fn fault(&self, late: bool, garbled: bool) -> Failure {
        let answered = !self.incoming.is_empty() || self.interims > 0;
        Failure::Server(Fault { delivered: self.sent >= self.head_len, answered, late, garbled })
    }

    fn waits_for_client(&self) -> bool {
        self.sent == self.outgoing.len() && !self.upload.is_over() && self.upload.admitted == 0
    }

    /// Writes `outgoing`, then the rest of the body as the client sends it.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Upload>> {
        while self.sent < self.outgoing.len() {
            match ready!(Pin::new(&mut *self.server).poll_write(cx, &self.outgoing.bytes()[self.sent..])) {
                Ok(len) if len > 0 => {
                    self.sent += len;
                    self.moved += len as u64;
                }
                _ => return Poll::Ready(Err(Upload::Server)),
            }
        }
        self.poll_upload(cx)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Upload>> {
        while !self.upload.is_over() {
            if self.upload.admitted > 0 {
                let bytes = &self.input.bytes()[..self.upload.admitted];
                match ready!(Pin::new(&mut *self.server).poll_write(cx, bytes)) {
                    Ok(len) if len > 0 => {
                        self.input.consume(len);
                        self.upload.left(len);
                        self.moved += len as u64;
                    }
                    _ => return Poll::Ready(Err(Upload::Server)),
                }
                continue;
            }
            if !ready!(self.interim.poll_say(self.client, cx)) {
                return Poll::Ready(Err(Upload::Client(Failure::Client)));
            }
            if self.input.is_empty() {
                match ready!(self.input.poll_read(self.client, cx, ROOM, &self.worker.buffers)) {
                    Ok(len) if len > 0 => self.moved += len as u64,
                    _ => return Poll::Ready(Err(Upload::Client(Failure::Client))),
                }
            }
            if let Err(refusal) = self.upload.admit(self.input) {
                return Poll::Ready(Err(Upload::Client(Failure::Malformed(refusal))));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Failure>> {
        let head = poll_head(
            cx,
            self.server,
            self.incoming,
            &mut self.scan,
            &mut self.interims,
            self.method,
            &self.worker.buffers,
            self.hints.then_some(&mut *self.interim),
        );
        head.map_err(|garbled| self.fault(false, garbled))
    }

    /// Turns the response's head, the first `len` bytes of `incoming`, into the client's, which replaces the
    /// request in `outgoing`.
    pub fn turn(
        &mut self,
        len: usize,
        request: &Request,
        labels: &[u8],
        placed: &[u8],
    ) -> Result<Head, Failure> {
        let head = &self.incoming.bytes()[..len];
        let parsed = match &request.upgrade {
            None => ResponseHead::parse(head, request.method),
            Some(protocol) => ResponseHead::parse_upgrade(head, protocol),
        };
        let Ok(mut parsed) = parsed else { return Err(self.fault(false, true)) };
        if !labels.is_empty() {
            parsed.reserve(head, b"x-phalanx-");
        }
        // From here on "100 Continue" would be read as a part of the response.
        self.interim.drop_unless_begun();
        let body = parsed.body();
        let http10 = request.version == Version::Http10;
        if http10 && body == Body::Chunked {
            return Err(self.fault(false, true));
        }
        let sent = self.sent == self.outgoing.len();
        let switches = parsed.switches();
        if switches && !sent {
            return Err(self.fault(false, true));
        }
        let uploaded = sent && self.upload.is_over();
        let client_persistent = request.persistent
            && uploaded
            && body != Body::UntilClose
            && !self.worker.sends_away(self.client);
        let buffers = &self.worker.buffers;
        self.outgoing.clear();
        self.outgoing.extend(&self.interim.take_hints(), buffers);
        for slice in parsed.forward(head) {
            self.outgoing.extend(slice, buffers);
        }
        self.outgoing.extend(labels, buffers);
        self.outgoing.extend(placed, buffers);
        match (client_persistent, http10) {
            _ if switches => {
                let protocol = request.upgrade.as_deref().unwrap_or_default();
                upgrade_lines(protocol).iter().for_each(|part| self.outgoing.extend(part, buffers));
                self.outgoing.extend(b"\r\n", buffers);
            }
            (false, _) => self.outgoing.extend(b"Connection: close\r\n\r\n", buffers),
            (true, true) => self.outgoing.extend(b"Connection: keep-alive\r\n\r\n", buffers),
            (true, false) => self.outgoing.extend(b"\r\n", buffers),
        }
        // A server that never got the rest would take the next request for it.
        let server_persistent = parsed.persistent() && sent;
        let keep_alive_timeout_s = parsed.keep_alive_timeout_s();
        self.incoming.consume(len);
        // Part of the request may still be in the buffer that now holds the response: the server has answered
        // without it, and need not get it.
        let upload_goes_on = sent && !uploaded;
        let status = parsed.status();
        Ok(Head {
            status,
            body,
            server_persistent,
            keep_alive_timeout_s,
            client_persistent,
            upload_goes_on,
            switches,
        })
    }

    /// Passes the response on: the head in `outgoing`, then the body; meanwhile the rest of the request, if
    /// it goes on.
    pub async fn relay(&mut self, head: &Head) -> Result<(), Failure> {
        let stall = self.limits.stall;
        let mut download = Transfer::new(head.body);
        self.deadline.arm(stall);
        std::future::poll_fn(|cx| {
            let before = self.moved;
            if head.upload_goes_on {
                // Whether it comes to its end is seen afterwards; the response is worth having in any case.
                let _ = self.poll_upload(cx);
            }
            let result = self.poll_download(cx, &mut download);
            if result.is_pending() {
                if self.moved > before {
                    self.deadline.arm(stall);
                }
                if self.deadline.passed(cx) {
                    return Poll::Ready(Err(Failure::Broken));
                }
            }
            result
        })
        .await
    }

    fn poll_download(&mut self, cx: &mut Context<'_>, download: &mut Transfer) -> Poll<Result<(), Failure>> {
        if !ready!(self.interim.poll_end(self.client, cx)) {
            return Poll::Ready(Err(Failure::Client));
        }
        loop {
            if download.admit(self.incoming).is_err() {
                return Poll::Ready(Err(Failure::Broken));
            }
            if download.admitted > 0 && download.admitted <= COPIED && !self.outgoing.is_empty() {
                self.outgoing.extend(&self.incoming.bytes()[..download.admitted], &self.worker.buffers);
                self.incoming.consume(download.admitted);
                download.left(download.admitted);
            }
            let body = &self.incoming.bytes()[..download.admitted];
            if !self.outgoing.is_empty() || !body.is_empty() {
                let head = self.outgoing.bytes();
                let written = match (head, body) {
                    (head, []) => Pin::new(&mut *self.client).poll_write(cx, head),
                    ([], body) => Pin::new(&mut *self.client).poll_write(cx, body),
                    (head, body) => {
                        let both = [io::IoSlice::new(head), io::IoSlice::new(body)];
                        Pin::new(&mut *self.client).poll_write_vectored(cx, &both)
                    }
                };
                match ready!(written) {
                    Ok(len) if len > 0 => {
                        let of_head = len.min(self.outgoing.len());
                        self.outgoing.consume(of_head);
                        self.incoming.consume(len - of_head);
                        download.left(len - of_head);
                        self.moved += len as u64;
                    }
                    _ => return Poll::Ready(Err(Failure::Client)),
                }
                continue;
            }
            if download.is_over() {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.incoming.poll_read(self.server, cx, ROOM, &self.worker.buffers)) {
                Ok(0) if matches!(download.rest, Rest::UntilClose) => download.rest = Rest::Done,
                Ok(len) if len > 0 => self.moved += len as u64,
                _ => return Poll::Ready(Err(Failure::Broken)),
            }
        }
    }
}

/// On which side the sending of a request failed.
enum Upload {
    Client(Failure),
    Server,
}

/// Whether a head says that another one follows. 101 does not: it ends HTTP, and nobody asked for that.
fn looks_interim(head: &[u8]) -> bool {
    head.get(8..10) == Some(b" 1") && head.get(9..12) != Some(b"101")
}

/// Reads from a server until the head of its response is in `incoming`; returns the head's length. Interim ones
/// go to `hints`, if anybody may hear them. The error says whether what came was not HTTP.
#[expect(clippy::too_many_arguments, reason = "both attempts at a request read so, with what is theirs")]
pub(super) fn poll_head(
    cx: &mut Context<'_>,
    server: &mut TcpStream,
    incoming: &mut Buf,
    scan: &mut HeadScan,
    interims: &mut u32,
    method: Method,
    buffers: &Buffers,
    mut hints: Option<&mut Interim>,
) -> Poll<Result<usize, bool>> {
    loop {
        match scan.response(incoming.bytes()) {
            Err(_) => return Poll::Ready(Err(true)),
            Ok(Some(len)) if looks_interim(&incoming.bytes()[..len]) => {
                let head = &incoming.bytes()[..len];
                *interims += 1;
                let mut parsed = match ResponseHead::parse(head, method) {
                    Ok(parsed) if *interims <= MAX_INTERIM => parsed,
                    _ => return Poll::Ready(Err(true)),
                };
                // The router has told the client to continue by itself.
                if let Some(hints) = hints.as_deref_mut().filter(|_| parsed.status() != 100) {
                    parsed.reserve(head, b"x-phalanx-");
                    hints.hint(head, &parsed);
                }
                incoming.consume(len);
                *scan = HeadScan::default();
                continue;
            }
            Ok(Some(len)) => return Poll::Ready(Ok(len)),
            Ok(None) => {}
        }
        match ready!(incoming.poll_read(server, cx, ROOM, buffers)) {
            Ok(len) if len > 0 => {}
            _ => return Poll::Ready(Err(false)),
        }
    }
}
