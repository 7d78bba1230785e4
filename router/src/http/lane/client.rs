//! The client's side of a lane.

use std::{pin::Pin, rc::Rc, task::Poll};

use router_proto::{
    http::{Body, Version},
    racs::Access,
};
use tokio::io::AsyncWrite;

use super::{Lane, Left, State, Tag, Waiter};
use crate::{
    http::{
        HttpService, Request,
        connection::{Connection, Next},
    },
    worker::{InFlight, Server},
};

/// Why a client's task does not go on with an answer that has begun.
enum Cut {
    /// The client has gone, or reads nothing.
    Client,
    /// The answer's end does not come.
    Server,
}

impl HttpService {
    /// The lane that this request may take to `server`, if it may take one: a plain GET, which nothing follows, whose
    /// answer can be made out among others.
    pub(in crate::http) fn lane(
        &self,
        request: &Request,
        server: &Rc<Server>,
        head_len: usize,
    ) -> Option<Rc<Lane>> {
        let most = self.lanes.most[request.racs.get() as usize];
        let limits = &self.limits;
        let fits = most > 0
            && request.plain
            && request.version == Version::Http11
            && request.body == Body::None
            && request.upgrade.is_none()
            && head_len <= limits.lane_head
            && self.lanes.held.get() <= limits.unread_in_all;
        if fits { server.lane.take(&self.worker, server, most, limits.connect) } else { None }
    }
}

impl Connection {
    /// Sends the request in `outgoing` by a lane and passes its answer on. If there is none, the request can be sent
    /// again.
    pub(in crate::http) async fn share(
        &mut self,
        service: &HttpService,
        request: &Request,
        server: &Rc<Server>,
        lane: &Lane,
    ) -> Result<Next, Left> {
        let worker = &*service.worker;
        let (clock, limits) = (&worker.clock, &service.limits);
        let (sent, sent_at) = (clock.now(), clock.fine());
        let waiter = service.lanes.waiter();
        waiter.begin(request.persistent, &self.labels, &self.placed);
        waiter.movable.set(!self.client.is_tls());
        let in_flight = InFlight::to(server, sent);
        lane.patience.set(service.usual.borrow().patience(limits.hedge_after));
        lane.allow(limits);
        let tag = Tag { waiter: Some(Rc::clone(&waiter)), method: request.method };
        lane.push(self.outgoing.bytes(), tag);
        self.told.server = Some(server.addr);
        // Until there is something to write, the lane's own deadlines hold.
        self.deadline.disarm();
        let mut noted = false;
        let ended = std::future::poll_fn(|cx| {
            waiter.waker.register(cx);
            let state = waiter.state.get();
            match state {
                State::Waiting => return Poll::Pending,
                State::Left(left) => return Poll::Ready(Err(left)),
                State::Broken => return Poll::Ready(Ok(Err(Cut::Server))),
                State::Begun | State::Whole => {}
            }
            if !noted {
                noted = true;
                let now = clock.now();
                in_flight.answered(now);
                let status = waiter.known.get().status;
                self.told.status = Some(status);
                service.answered(request, server, status);
                service.usual.borrow_mut().answered(now - sent);
            }
            let mut out = waiter.out.borrow_mut();
            let mut moved = false;
            while !out.is_empty() {
                match Pin::new(&mut self.client).poll_write(cx, out.bytes()) {
                    Poll::Ready(Ok(len)) if len > 0 => {
                        out.consume(len);
                        waiter.gone_out(len);
                        moved = true;
                    }
                    Poll::Ready(_) => return Poll::Ready(Ok(Err(Cut::Client))),
                    Poll::Pending => {
                        if moved || !self.deadline.is_armed() {
                            self.deadline.arm(limits.stall);
                        }
                        if moved {
                            lane.hold.waker.wake();
                        }
                        let stuck = self.deadline.passed(cx);
                        return if stuck { Poll::Ready(Ok(Err(Cut::Client))) } else { Poll::Pending };
                    }
                }
            }
            if state == State::Whole {
                return Poll::Ready(Ok(Ok(())));
            }
            self.deadline.disarm();
            lane.hold.waker.wake();
            Poll::Pending
        })
        .await;
        drop(in_flight);
        let persistent = waiter.known.get().persistent;
        service.lanes.give_back(waiter, worker);
        match ended {
            Ok(Ok(())) => {
                server.measured(sent_at, clock);
                Ok(Next::persistent(persistent))
            }
            Ok(Err(cut)) => {
                if let Cut::Client = cut {
                    lane.hold.waker.wake();
                }
                Ok(Next::Cut)
            }
            Err(left) => {
                // Who stays with one clone asks it again.
                let bound = service.policy.leader_only(Access::Read) || request.session.is_some();
                if left == Left::Silent
                    && !bound
                    && let Some(since) = lane.silent_since.take()
                {
                    server.silent(since, clock.now(), limits.avoid);
                }
                Err(left)
            }
        }
    }
}

impl Waiter {
    /// For another request, whose answer goes on with these lines.
    fn begin(&self, persistent: bool, labels: &[u8], placed: &[u8]) {
        self.state.set(State::Waiting);
        self.persistent.set(persistent);
        self.labelled.set(!labels.is_empty());
        let mut lines = self.lines.borrow_mut();
        lines.clear();
        lines.extend_from_slice(labels);
        lines.extend_from_slice(placed);
        self.gone.set(false);
    }
}
