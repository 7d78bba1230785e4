//! Buffers that a worker's connections take while bytes are pending, and give back when they are idle.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::ClientStream;

/// What one connection usually needs: a request with its head and a small body.
pub(crate) const SIZE: usize = 16 * 1024;
/// How many free buffers a worker keeps.
const KEPT: usize = 1024;

/// A worker's free buffers.
#[derive(Default)]
pub(crate) struct Buffers(RefCell<Vec<Box<[u8]>>>);

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; SIZE].into())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut free = self.0.borrow_mut();
        if buffer.len() == SIZE && free.len() < KEPT {
            free.push(buffer);
        }
    }
}

/// Bytes between two ends: filled at one, consumed at the other. Holds no memory until it is filled.
#[derive(Default)]
pub(crate) struct Buf {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buf {
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "more consumed than there was");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Gives the memory back if there is nothing in it.
    pub fn rest(&mut self, buffers: &Buffers) {
        if self.is_empty() {
            self.free(buffers);
        }
    }

    /// Gives the memory back, whatever is in it.
    pub fn free(&mut self, buffers: &Buffers) {
        self.clear();
        if !self.data.is_empty() {
            buffers.give(std::mem::take(&mut self.data));
        }
    }

    /// Makes room for at least `len` more bytes.
    pub fn reserve(&mut self, len: usize, buffers: &Buffers) {
        if self.data.len() - self.end >= len {
            return;
        }
        if self.data.is_empty() && len <= SIZE {
            self.data = buffers.take();
            return;
        }
        let held = self.len();
        if self.data.len() - held >= len {
            self.data.copy_within(self.start..self.end, 0);
        } else {
            let mut larger = vec![0; (held + len).next_power_of_two().max(SIZE)].into_boxed_slice();
            larger[..held].copy_from_slice(self.bytes());
            buffers.give(std::mem::replace(&mut self.data, larger));
        }
        (self.start, self.end) = (0, held);
    }

    pub fn extend(&mut self, bytes: &[u8], buffers: &Buffers) {
        self.reserve(bytes.len(), buffers);
        self.data[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Writes over what is there.
    pub fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        let at = self.start + at;
        assert!(at + bytes.len() <= self.end, "there is not so much");
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads once into the free room, of which there is at least `room`. Zero bytes mean that the peer is
    /// done.
    pub fn poll_read(
        &mut self,
        stream: &mut impl Readable,
        cx: &mut Context<'_>,
        room: usize,
        buffers: &Buffers,
    ) -> Poll<io::Result<usize>> {
        if self.data.is_empty() {
            // No memory while there is nothing to read.
            std::task::ready!(stream.poll_read_ready(cx))?;
        }
        self.reserve(room, buffers);
        let mut free = ReadBuf::new(&mut self.data[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut free) {
            Poll::Ready(Ok(())) => {
                let len = free.filled().len();
                self.end += len;
                Poll::Ready(Ok(len))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // Fresh connections are taken for readable until the first read tells otherwise.
                self.rest(buffers);
                Poll::Pending
            }
        }
    }
}

/// What a buffer can be filled from.
pub(crate) trait Readable: AsyncRead + Unpin {
    /// Whether a read may find something; takes no memory to find out.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Readable for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
}

impl Readable for ClientStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
}
