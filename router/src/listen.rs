//! Listening sockets: one per worker on one port, and that port for this process alone.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 4096;

/// Opens `count` sockets that listen on `addr` and share its connections.
///
/// `SO_REUSEPORT` lets any number of sockets of one user listen on one port, those of another process
/// included: a second router on the same port would silently take half of the first one's connections. So the
/// first socket is bound and listens *without* it, which the kernel refuses if anybody is on the port; only
/// then is it opened to the others, which are bound with it. A second router fails at its own first socket,
/// at whatever instant it starts.
///
/// # Errors
/// Whatever the kernel says, `AddrInUse` above all.
pub(crate) fn shared(addr: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let first = socket(addr)?;
    first.bind(&addr.into())?;
    first.listen(BACKLOG)?;
    first.set_reuse_port(true)?;
    let first: std::net::TcpListener = first.into();
    let addr = first.local_addr()?; // port 0 has become a number
    let mut all = vec![first];
    for _ in 1..count {
        let next = socket(addr)?;
        next.set_reuse_port(true)?;
        next.bind(&addr.into())?;
        next.listen(BACKLOG)?;
        all.push(next.into());
    }
    Ok(all)
}

/// Deals sockets out to so many workers. None is left out: who waits in the queue of a socket that nobody accepts at waits for
/// ever. Where there are fewer than workers some share one, rather than that new ones are opened: those would have queues of
/// their own from the first moment on, and whoever is in them is lost if this process does not come to serve.
///
/// # Errors
/// Too many files are open.
pub(crate) fn deal(
    sockets: Vec<std::net::TcpListener>,
    workers: usize,
) -> io::Result<Vec<Vec<std::net::TcpListener>>> {
    let mut dealt: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for worker in sockets.len()..workers {
        dealt[worker].push(sockets[worker % sockets.len()].try_clone()?);
    }
    for (at, socket) in sockets.into_iter().enumerate() {
        dealt[at % workers].push(socket);
    }
    Ok(dealt)
}

fn socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // So that a restarted router need not wait until its old connections have left TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, net::TcpStream};

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_port_in_use_is_refused_however_it_is_used() {
        // The trap: with SO_REUSEPORT on every socket the second of these would succeed.
        for count in [1, 2] {
            let held = shared(any(), count).unwrap();
            let addr = held[0].local_addr().unwrap();
            for second in [1, 2] {
                assert_eq!(shared(addr, second).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            }
        }
        let addr = ports::nobody();
        let plain = std::net::TcpListener::bind(addr).unwrap();
        assert_eq!(shared(addr, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(plain);
        shared(addr, 2).unwrap();
    }

    #[test]
    fn a_wildcard_address_takes_the_port_of_the_others() {
        let held = shared(any(), 2).unwrap();
        let port = held[0].local_addr().unwrap().port();
        let wildcard = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
        assert_eq!(shared(wildcard, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn every_socket_is_dealt_to_somebody_and_everybody_gets_one() {
        for (count, workers, dealt) in [(1, 3, [1, 1, 1]), (3, 3, [1, 1, 1]), (4, 3, [2, 1, 1])] {
            let sockets = deal(shared(any(), count).unwrap(), workers).unwrap();
            assert_eq!(sockets.iter().map(Vec::len).collect::<Vec<_>>(), dealt);
        }
        assert_eq!(deal(shared(any(), 5).unwrap(), 1).unwrap()[0].len(), 5);
    }

    #[test]
    fn all_sockets_get_connections() {
        let listeners = shared(any(), 3).unwrap();
        let addr = listeners[0].local_addr().unwrap();
        let clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let mut hit = HashSet::new();
        let mut accepted = 0;
        while accepted < clients.len() {
            for (at, listener) in listeners.iter().enumerate() {
                match listener.accept() {
                    Ok(_) => {
                        accepted += 1;
                        hit.insert(at);
                    }
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }
        assert_eq!(hit.len(), 3);
    }
}
