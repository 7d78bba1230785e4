//! Whether a server listens: the simplest sign of life that every TCP server gives.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The connection was refused, or there is no way to the address.
    #[error("nothing listens at {address}")]
    Refused {
        /// Where it was tried.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No answer came in time: the server's queue of connections is full, or packets are dropped.
    #[error("{address} did not accept a connection within {limit:?}")]
    Silent {
        /// Where it was tried.
        address: SocketAddr,
        /// How long it was tried.
        limit: Duration,
    },
}

/// Asks again and again whether a TCP server accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct PortProbe {
    address: SocketAddr,
    limit: Duration,
}

impl PortProbe {
    /// A probe of `address`. A server that has not accepted after `limit` counts as failed: shorter notices
    /// more quickly, and takes a busy server for a dead one more often.
    pub fn new(address: SocketAddr, limit: Duration) -> Self {
        Self { address, limit }
    }

    /// Connects once, and hangs up. Cancel-safe.
    ///
    /// # Errors
    /// [`ProbeError`] if no connection came about within the limit.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn check(&self) -> Result<(), ProbeError> {
        let Self { address, limit } = *self;
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) if is_connected_to_itself(&stream) => {
                let source = io::Error::from(io::ErrorKind::ConnectionRefused);
                Err(ProbeError::Refused { address, source })
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(ProbeError::Refused { address, source }),
            Err(_) => Err(ProbeError::Silent { address, limit }),
        }
    }
}

/// Without a listener, a connection to a local port of the ephemeral range may be given that very port as its
/// own source, and TCP then connects it to itself. Probing often enough, one gets there.
fn is_connected_to_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(local), Ok(peer)) if local == peer)
}

/// Waits until something listens at `address`: probes at once, then `every` so often, until the `deadline`.
///
/// It says nothing of *what* listens there. Select it against [`Child::wait`](crate::Child::wait), or a child
/// that failed at start is waited for in vain. Cancel-safe.
///
/// # Errors
/// The last [`ProbeError`] at the deadline.
///
/// # Panics
/// Outside of a tokio runtime with I/O and time enabled.
pub async fn wait_for_port(
    address: SocketAddr,
    every: Duration,
    deadline: Instant,
) -> Result<(), ProbeError> {
    loop {
        let begun = Instant::now();
        // Not longer than a second at a time: a connection whose first packet was dropped would be retried no
        // sooner either.
        let limit = every.max(Duration::from_secs(1)).min(deadline - begun);
        let failed = match PortProbe::new(address, limit).check().await {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        if begun + every >= deadline {
            sleep_until(deadline).await;
            return Err(failed);
        }
        sleep_until(begun + every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::net::{TcpListener, TcpSocket};

    const LIMIT: Duration = Duration::from_secs(5);

    /// At an address that nobody else takes once it is gone.
    async fn listener() -> (TcpListener, SocketAddr) {
        let address = ports::nobody();
        (TcpListener::bind(address).await.unwrap(), address)
    }

    #[tokio::test]
    async fn a_probe_tells_a_listener_from_none_again_and_again() {
        let (listener, address) = listener().await;
        let probe = PortProbe::new(address, LIMIT);
        for _ in 0..3 {
            probe.check().await.expect("it listens");
        }
        drop(listener);
        for _ in 0..3 {
            assert!(matches!(probe.check().await, Err(ProbeError::Refused { .. })));
        }
    }

    #[tokio::test]
    async fn a_socket_connected_to_itself_is_no_listener() {
        // What the kernel may do to a probe by chance, done on purpose: source and destination are one port.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        let itself = socket.connect(address).await.expect("nothing listens, and yet it connects");
        assert!(is_connected_to_itself(&itself));

        let (_listener, address) = listener().await;
        assert!(!is_connected_to_itself(&TcpStream::connect(address).await.unwrap()));
    }

    #[tokio::test]
    async fn waiting_ends_when_the_port_opens() {
        let address = ports::nobody();
        let opens_later = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            TcpListener::bind(address).await.expect("the port is still free")
        };
        let waiting = wait_for_port(address, Duration::from_millis(5), Instant::now() + LIMIT);
        let (up, _listener) = tokio::join!(waiting, opens_later);
        up.expect("it opened");
    }

    #[tokio::test]
    async fn waiting_ends_at_the_deadline_with_the_reason() {
        let address = ports::nobody();
        let deadline = Instant::now() + Duration::from_millis(60);
        let failed = wait_for_port(address, Duration::from_millis(25), deadline).await.unwrap_err();
        assert!(matches!(failed, ProbeError::Refused { .. }), "{failed}");
        assert!(Instant::now() >= deadline);
    }

    #[tokio::test]
    async fn a_server_that_does_not_accept_does_not_hold_the_wait_past_its_deadline() {
        // Its queue of connections is full: further ones are neither accepted nor refused.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            filling.push(stream.unwrap());
        }
        let deadline = Instant::now() + Duration::from_millis(50);
        let failed = wait_for_port(address, Duration::from_millis(10), deadline).await.unwrap_err();
        assert!(matches!(failed, ProbeError::Silent { .. }), "{failed}");
        assert!(Instant::now() < deadline + LIMIT);
    }
}
