//! What lies between accepting a client and its protocol's first byte: who it is, if somebody passes it on
//! (the PROXY protocol), and TLS.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use router_proto::proxy::{self, Proxied, Scan};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{
    ClientStream, Deadline, LAST_CHANCE, Worker, linger,
    stream::{Metered, Origin},
};
use crate::tls::Terminator;

/// The most that is read of a client before its handshake is over. Hellos have one or two KiB, and one read
/// may take the first request along. What is more waits in the socket; a handshake that needs more comes to its deadline.
const MOST_HANDSHAKE: usize = 16 * 1024;
/// The most bytes that wait in a session to be encrypted or sent.
const SESSION_BUFFER: usize = 32 * 1024;

/// What a service's clients must do before they are heard.
#[derive(Clone, Default)]
pub(crate) struct Entrance {
    pub tls: Option<Arc<Terminator>>,
    /// Whether each begins with a header that says who it is for.
    pub accept_proxy: bool,
}

impl Entrance {
    /// Whether there is nothing to do.
    pub fn is_open(&self) -> bool {
        self.tls.is_none() && !self.accept_proxy
    }

    /// Lets a client in; `None` if it did not do what it must, which it has been told if there is a way to say
    /// that.
    pub async fn pass(
        &self,
        worker: &Worker,
        mut stream: TcpStream,
        source: SocketAddr,
    ) -> Option<ClientStream> {
        let deadline = Deadline::new(&worker.clock);
        deadline.arm(worker.limits.handshake);
        let mut origin = Origin { source, destination: None, tls: false };
        if self.accept_proxy {
            match in_time(worker, &deadline, introduction(&mut stream)).await? {
                Ok(Proxied { ends: Some((source, destination)), tls }) => {
                    origin = Origin { source, destination: Some(destination), tls };
                }
                Ok(Proxied { ends: None, tls }) => origin.tls = tls,
                Err(error) => {
                    tracing::debug!(%source, %error, "who the client is was not said");
                    return None;
                }
            }
        }
        let Some(tls) = &self.tls else { return Some(ClientStream::plain(stream, origin)) };
        let acceptor = TlsAcceptor::from(tls.current());
        let metered = Metered::new(stream, MOST_HANDSHAKE);
        let handshake = acceptor
            .accept_with(metered, |session| session.set_buffer_limit(Some(SESSION_BUFFER)))
            .into_fallible();
        match in_time(worker, &deadline, handshake).await? {
            Ok(stream) => Some(ClientStream::tls(stream, origin)),
            Err((error, metered)) => {
                tracing::debug!(%source, %error, "TLS handshake failed");
                // So that the alert arrives.
                let mut stream = ClientStream::plain(metered.into_inner(), origin);
                linger(&mut stream, &deadline, &worker.clock).await;
                None
            }
        }
    }
}

/// Reads the PROXY header, and no byte beyond it.
async fn introduction(stream: &mut TcpStream) -> io::Result<Proxied> {
    let mut header = [0; proxy::MAX_HEADER];
    let mut len = 0;
    std::future::poll_fn(|cx| {
        loop {
            let missing = match proxy::parse(&header[..len]) {
                Ok(Scan::Whole { proxied, .. }) => return Poll::Ready(Ok(proxied)),
                Ok(Scan::Missing(missing)) => missing,
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            };
            let mut space = ReadBuf::new(&mut header[len..len + missing]);
            std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut space))?;
            match space.filled().len() {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                read => len += read,
            }
        }
    })
    .await
}

/// What comes of `step`, unless that takes too long.
async fn in_time<T>(worker: &Worker, deadline: &Deadline, step: impl Future<Output = T>) -> Option<T> {
    let mut step = pin!(step);
    let mut hurried = false;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if worker.is_draining() && !worker.gives_way() && !std::mem::replace(&mut hurried, true) {
            deadline.arm(LAST_CHANCE);
        }
        if deadline.passed(cx) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}
