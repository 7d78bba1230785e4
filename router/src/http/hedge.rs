//! A second attempt at a read whose server is silent for unusually long: another clone is asked too, and who
//! answers first is heard.
//!
//! Source: Dean and Barroso, "The Tail at Scale", 2013 (hedged requests). Only for requests that change nothing
//! and are in memory as a whole; at most a few in a hundred, so that a slow service gets no load that matters.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use membership_types::Instant;
use router_proto::http::{HeadScan, Method};
use tokio::{io::AsyncWrite, net::TcpStream};

use super::exchange;
use crate::worker::{Buf, InFlight, Server, Worker};

/// What became of waiting for a response's head.
pub(super) enum Sent {
    /// It is there, with so many bytes.
    Answered(usize),
    /// The server has not said a byte in the time that was given.
    Silent,
}

/// Whose answer was first.
pub(super) enum Winner {
    First,
    Rival,
}

/// The second attempt.
pub(super) struct Rival {
    pub server: Rc<Server>,
    pub in_flight: InFlight,
    /// Lines that tell the client where its request was routed.
    pub labels: Vec<u8>,
    link: Link,
    sent: usize,
    incoming: Buf,
    scan: HeadScan,
    interims: u32,
}

enum Link {
    Connecting(Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>),
    Up(TcpStream),
    /// It failed, or its answer was taken.
    Gone,
}

impl Rival {
    /// An attempt at `server`, which has got nothing yet.
    pub fn new(server: Rc<Server>, labels: Vec<u8>, now: Instant) -> Self {
        let link = match server.take_idle() {
            Some(stream) => Link::Up(stream),
            None => Link::Connecting(Box::pin(TcpStream::connect(server.addr))),
        };
        let in_flight = InFlight::to(&server, now);
        let (incoming, scan) = Default::default();
        Self { server, in_flight, labels, link, sent: 0, incoming, scan, interims: 0 }
    }

    /// Sends `request` and waits for the head of its response: the connection and the head's length. `None`
    /// means that this attempt failed; then it stays so.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        request: &[u8],
        method: Method,
        worker: &Worker,
    ) -> Poll<Option<(TcpStream, usize)>> {
        let head = ready!(self.poll_answer(cx, request, method, worker));
        match (head, std::mem::replace(&mut self.link, Link::Gone)) {
            (Some(len), Link::Up(stream)) => Poll::Ready(Some((stream, len))),
            _ => Poll::Ready(None),
        }
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        request: &[u8],
        method: Method,
        worker: &Worker,
    ) -> Poll<Option<usize>> {
        if let Link::Connecting(connecting) = &mut self.link {
            let connected = ready!(connecting.as_mut().poll(cx));
            match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => self.link = Link::Up(stream),
                Err(_) => {
                    self.server.refused(worker.clock.now(), worker.limits.avoid);
                    return Poll::Ready(None);
                }
            }
        }
        let Link::Up(stream) = &mut self.link else { return Poll::Ready(None) };
        while self.sent < request.len() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &request[self.sent..])) {
                Ok(len) if len > 0 => self.sent += len,
                _ => return Poll::Ready(None),
            }
        }
        let (incoming, buffers) = (&mut self.incoming, &worker.buffers);
        let head =
            // Nobody hears its hints: it may yet be the loser.
            exchange::poll_head(cx, stream, incoming, &mut self.scan, &mut self.interims, method, buffers, None);
        head.map(Result::ok)
    }

    /// What came from the server.
    pub fn incoming(&mut self) -> &mut Buf {
        &mut self.incoming
    }
}
