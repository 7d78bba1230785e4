//! A client's connection, whatever lies between the protocol and the socket.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use crate::stats::Counters;

/// A client's connection: what protocols read requests from and write responses to.
///
/// What was accepted by a write is with the kernel: nobody needs to flush. In return, a write that was pending
/// is repeated with the same bytes (more may follow them) before anything else is written.
pub(crate) struct ClientStream {
    io: Io,
    origin: Origin,
    /// Where bytes are counted, if anywhere.
    counters: Option<Rc<Counters>>,
    received: u64,
    sent: u64,
}

/// Where a client connected from, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub source: SocketAddr,
    /// Where to, if somebody else passed the connection on.
    pub destination: Option<SocketAddr>,
    /// Whether whoever passed it on speaks TLS with the client.
    pub tls: bool,
}

/// An enum rather than a trait object: on the plain path it costs a branch that always goes the same way.
enum Io {
    Tcp(TcpStream),
    Tls(Box<Tls>),
}

struct Tls {
    stream: TlsStream<Metered>,
    /// Bytes that are encrypted, of which the caller does not know yet because the kernel has not all of them.
    owed: usize,
}

impl ClientStream {
    /// Bytes pass as they are.
    pub fn plain(stream: TcpStream, origin: Origin) -> Self {
        Self { io: Io::Tcp(stream), origin, counters: None, received: 0, sent: 0 }
    }

    /// Bytes pass through a session whose handshake is over.
    pub fn tls(mut stream: TlsStream<Metered>, origin: Origin) -> Self {
        stream.get_mut().0.left = usize::MAX;
        let io = Io::Tls(Box::new(Tls { stream, owed: 0 }));
        Self { io, origin, counters: None, received: 0, sent: 0 }
    }

    /// From now on bytes are counted here, as the protocol sees them.
    pub fn counted(self, counters: &Rc<Counters>) -> Self {
        Self { counters: Some(Rc::clone(counters)), ..self }
    }

    /// Bytes that came from the client.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that went to it.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn note_written(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(len)) = written {
            self.sent += *len as u64;
            if let Some(counters) = &self.counters {
                counters.sent.add(*len as u64);
            }
        }
    }

    /// Where it came from, for whoever takes it over.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The same connection once more, as plain as it is.
    pub fn duplicate(&self) -> io::Result<std::net::TcpStream> {
        self.socket().as_fd().try_clone_to_owned().map(Into::into)
    }

    /// Where the client connected from.
    pub fn source(&self) -> SocketAddr {
        self.origin.source
    }

    /// Where the client connected from, and to; `None` if it has gone.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let destination = self.origin.destination.or_else(|| self.socket().local_addr().ok());
        Some((self.origin.source, destination?))
    }

    /// Whether TLS ends here.
    pub fn is_tls(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// Whether the client speaks TLS, which may end here or at whoever passed it on.
    pub fn is_secure(&self) -> bool {
        self.is_tls() || self.origin.tls
    }

    /// The name that the client asked for when TLS began here.
    pub fn server_name(&self) -> Option<&str> {
        match &self.io {
            Io::Tcp(_) => None,
            Io::Tls(tls) => tls.stream.get_ref().1.server_name(),
        }
    }

    fn socket(&self) -> &TcpStream {
        match &self.io {
            Io::Tcp(stream) => stream,
            Io::Tls(tls) => &tls.stream.get_ref().0.stream,
        }
    }

    /// Whether a read may find something; takes no memory to find out.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.io {
            Io::Tcp(stream) => stream.poll_read_ready(cx),
            Io::Tls(tls) => match tls.stream.get_ref() {
                // Otherwise there is something decrypted, or the end.
                (metered, session) if session.wants_read() => metered.stream.poll_read_ready(cx),
                _ => Poll::Ready(Ok(())),
            },
        }
    }

    /// Whether the client has gone, or says nothing more behind what it has said. Nobody is woken when that comes to be.
    pub fn has_hung_up(&self) -> bool {
        let mut asked = [PollFd::new(self.socket(), PollFlags::RDHUP)];
        // What cannot be asked is seen when it is read.
        poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Sees to it that the client sees a reset, not an end, once this is dropped.
    pub fn reset_on_drop(&self) {
        let _ = self.socket().set_zero_linger(); // one that has failed already is reset as it is
    }
}

impl AsyncRead for ClientStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (this, before) = (self.get_mut(), buf.filled().len());
        let read = match &mut this.io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(&mut tls.stream).poll_read(cx, buf),
        };
        let len = (buf.filled().len() - before) as u64;
        this.received += len;
        if let Some(counters) = &this.counters {
            counters.received.add(len);
        }
        read
    }
}

impl AsyncWrite for ClientStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(tls) => tls.poll_write(cx, |stream, cx| stream.poll_write(cx, buf)),
        };
        this.note_written(&written);
        written
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(tls) => tls.poll_write(cx, |stream, cx| stream.poll_write_vectored(cx, bufs)),
        };
        this.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: what was written is with the kernel.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}

impl Tls {
    /// Encrypts what `write` has, unless that was done already, and passes it to the kernel.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TlsStream<Metered>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.owed == 0 {
            self.owed = ready!(write(Pin::new(&mut self.stream), cx))?;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.owed)))
    }
}

/// A socket from which only so much is read: before a handshake is over, nobody knows whom it is for.
pub(crate) struct Metered {
    stream: TcpStream,
    left: usize,
}

impl Metered {
    pub fn new(stream: TcpStream, most: usize) -> Self {
        Self { stream, left: most }
    }

    pub fn into_inner(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            // Whoever reads goes on reading behind a handshake until a record is whole, and may do that later. A
            // handshake that is not over yet comes to its deadline: nothing else wakes it.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.left != usize::MAX {
            self.left = self.left.saturating_sub(buf.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
