//! Keys in bodies: before a request can be routed, its body is read as far as the key.

use std::task::Poll;

use router_proto::http::{MAX_HEAD, Refusal};

use super::{
    HttpService, Request,
    answer::Kind,
    connection::{Connection, ROOM},
    exchange::{Interim, Transfer},
};

/// Why the body was not read so far.
enum Unread {
    Refused(Refusal),
    Gone,
    TimedOut,
}

impl Connection {
    /// Finds the key in the body, and so where the request goes. The error is what the client is told, and
    /// whether its connection can go on; nothing if it is gone.
    pub(super) async fn route_by_body(
        &mut self,
        service: &HttpService,
        request: &mut Request,
        upload: &mut Transfer,
    ) -> Result<(), Option<(Kind, bool)>> {
        let read = self.find_key(service, request, upload).await;
        let placed = read.is_ok() && service.place(request, self.search.key(), self.client.source());
        self.search.rest();
        match read {
            Ok(()) if placed => Ok(()),
            Ok(()) => Err(Some((Kind::NoKey, request.persistent && upload.is_over()))),
            Err(Unread::Refused(refusal)) => Err(Some((Kind::Refused(refusal), false))),
            Err(Unread::TimedOut) => {
                Err(Some((Kind::Timeout("the body took too long to bring its key"), false)))
            }
            Err(Unread::Gone) => Err(None),
        }
    }

    /// Reads the body until it is known what the key is, and no further than the read that brings it. What has
    /// been read stands behind the head in `outgoing` then, and can be sent again with it.
    ///
    /// A client that waits for `100 Continue` is told so, if its body must be read.
    async fn find_key(
        &mut self,
        service: &HttpService,
        request: &mut Request,
        upload: &mut Transfer,
    ) -> Result<(), Unread> {
        let limits = &service.limits;
        let buffers = &service.worker.buffers;
        // The framing of chunks may add to the data, within limits of its own.
        let most = MAX_HEAD + 2 * limits.body_key;
        self.interim = if request.expects_continue { Interim::go_on() } else { Interim::default() };
        self.deadline.arm(limits.head);
        let found = std::future::poll_fn(|cx| {
            loop {
                let mut over = Ok(false);
                let search = &mut self.search;
                let admitted = upload.admit_data(&self.input, |data| {
                    if over == Ok(false) {
                        over = search.feed(&service.extract, data);
                    }
                });
                self.outgoing.extend(&self.input.bytes()[..upload.admitted], buffers);
                self.input.consume(upload.admitted);
                upload.admitted = 0;
                match admitted.and(over) {
                    Err(refusal) => return Poll::Ready(Err(Unread::Refused(refusal))),
                    Ok(true) => return Poll::Ready(Ok(())),
                    Ok(false) if upload.is_over() => {
                        let finished = self.search.finish(&service.extract);
                        return Poll::Ready(finished.map_err(Unread::Refused));
                    }
                    Ok(false) if self.outgoing.len() > most => {
                        return Poll::Ready(Err(Unread::Refused(Refusal::KeyTooFar)));
                    }
                    Ok(false) => {}
                }
                let polled = match self.interim.poll_say(&mut self.client, cx) {
                    Poll::Ready(true) => self.input.poll_read(&mut self.client, cx, ROOM, buffers),
                    other => other.map(|_gone| Ok(0)),
                };
                match polled {
                    Poll::Ready(Ok(len)) if len > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Unread::Gone)),
                    Poll::Pending if self.deadline.passed(cx) => {
                        return Poll::Ready(Err(Unread::TimedOut));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        request.expects_continue &= !self.interim.is_begun();
        found
    }
}
