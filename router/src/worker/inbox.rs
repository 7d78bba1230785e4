//! What a server says over a connection that clients share, read in batches.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::READ;

/// Room for one read, and what is left of those before.
#[derive(Default)]
pub(crate) struct Inbox {
    /// The first `fresh` bytes have just come.
    scratch: Box<[u8]>,
    fresh: usize,
    /// An incomplete answer, and nothing that is still in `scratch`.
    rest: Vec<u8>,
}

impl Inbox {
    pub fn new() -> Self {
        Self { scratch: vec![0; READ].into(), fresh: 0, rest: Vec::new() }
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads once. False means that nothing comes any more: the server has ended the connection, or it failed.
    pub fn poll_read(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<bool> {
        let mut buffer = ReadBuf::new(&mut self.scratch);
        let read = ready!(Pin::new(stream).poll_read(cx, &mut buffer));
        self.fresh = buffer.filled().len();
        Poll::Ready(read.is_ok() && self.fresh > 0)
    }

    /// Shows all that has come to `deliver`, which says how many bytes of it are dealt with; the others are kept.
    pub fn deliver<E>(&mut self, deliver: impl FnOnce(&[u8]) -> Result<usize, E>) -> Result<(), E> {
        let fresh = &self.scratch[..self.fresh];
        if self.rest.is_empty() {
            let done = deliver(fresh)?;
            self.rest.extend_from_slice(&fresh[done..]);
        } else {
            self.rest.extend_from_slice(fresh);
            let done = deliver(&self.rest)?;
            self.rest.drain(..done);
            if done > 0 {
                self.rest.shrink_to(READ);
            }
        }
        Ok(())
    }
}
