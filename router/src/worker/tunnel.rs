//! Bytes both ways between a client and a server, whatever they mean, until both have said that they are done.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{io::AsyncWrite, net::TcpStream};

use super::{Buf, ClientStream, Deadline, Worker, buffer::Readable};

/// Room for a read: what a buffer of the pool has.
const ROOM: usize = super::buffer::SIZE;

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Both sides were done, and all that they had said has been passed on.
    Done,
    /// One of the two failed, or nothing moved for too long.
    Failed,
    /// It was not wanted any more.
    Cut,
}

/// A client and a server that talk to each other. Unless both are done when it goes, both see a reset: a
/// stream that was cut off must not pass for a whole one.
pub(crate) struct Tunnel<'a> {
    worker: &'a Worker,
    client: &'a mut ClientStream,
    server: &'a mut TcpStream,
    up: Pipe,
    down: Pipe,
    done: bool,
}

/// One direction.
struct Pipe {
    buf: Buf,
    /// The sender has said that it is done.
    ended: bool,
    /// And the receiver knows.
    told: bool,
}

impl<'a> Tunnel<'a> {
    /// `up` is to reach the server before anything else the client says, `down` the client.
    pub fn new(
        worker: &'a Worker,
        client: &'a mut ClientStream,
        server: &'a mut TcpStream,
        up: Buf,
        down: Buf,
    ) -> Self {
        let pipe = |buf| Pipe { buf, ended: false, told: false };
        Self { worker, client, server, up: pipe(up), down: pipe(down), done: false }
    }

    /// Passes bytes on until both sides are done, one fails, nothing moves for `idle`, or `unwanted` says so,
    /// which is asked whenever the task is woken.
    pub async fn run(mut self, deadline: &Deadline, idle: Duration, unwanted: impl Fn() -> bool) -> Ended {
        deadline.arm(idle);
        let ended = std::future::poll_fn(|cx| {
            if unwanted() {
                return Poll::Ready(Ended::Cut);
            }
            let buffers = &self.worker.buffers;
            let mut moved = false;
            let up = self.up.poll(self.client, self.server, cx, buffers, &mut moved);
            let down = self.down.poll(self.server, self.client, cx, buffers, &mut moved);
            match (up, down) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(Ended::Failed),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Done),
                _ => {}
            }
            if moved {
                deadline.arm(idle);
            }
            if deadline.passed(cx) { Poll::Ready(Ended::Failed) } else { Poll::Pending }
        })
        .await;
        self.done = ended == Ended::Done;
        ended
    }
}

impl Pipe {
    /// Passes on whatever can be, one buffer at a time: nothing is read before what was read has left.
    fn poll(
        &mut self,
        from: &mut impl Readable,
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        buffers: &super::buffer::Buffers,
        moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.buf.is_empty() {
                let len = ready!(Pin::new(&mut *to).poll_write(cx, self.buf.bytes()))?;
                if len == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buf.consume(len);
                *moved = true;
            }
            if self.told {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                self.buf.free(buffers);
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.told = true;
                continue;
            }
            self.ended = ready!(self.buf.poll_read(from, cx, ROOM, buffers))? == 0;
            *moved = true;
        }
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        self.up.buf.free(&self.worker.buffers);
        self.down.buf.free(&self.worker.buffers);
        if !self.done {
            self.client.reset_on_drop();
            let _ = self.server.set_zero_linger(); // one that has failed already is reset as it is
        }
    }
}
