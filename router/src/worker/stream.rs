//! A client's connection, whatever lies between the protocol and the socket.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A client's connection: what protocols read requests from and write responses to.
///
/// What was accepted by a write is with the kernel: nobody needs to flush. In return, a write that was pending
/// is repeated with the same bytes (more may follow them) before anything else is written.
pub(crate) struct ClientStream {
    io: Io,
    source: SocketAddr,
}

/// An enum rather than a trait object: on the plain path it costs a branch that always goes the same way.
enum Io {
    Tcp(TcpStream),
}

impl ClientStream {
    /// Bytes pass as they are. `source` is where the client connected from.
    pub fn plain(stream: TcpStream, source: SocketAddr) -> Self {
        Self { io: Io::Tcp(stream), source }
    }

    /// Where the client connected from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Whether a read may find something; takes no memory to find out.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.io {
            Io::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Sees to it that the client sees a reset, not an end, once this is dropped.
    pub fn reset_on_drop(&self) {
        match &self.io {
            Io::Tcp(stream) => {
                let _ = stream.set_zero_linger(); // one that has failed already is reset as it is
            }
        }
    }
}

impl AsyncRead for ClientStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
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
        }
    }
}
