//! Ports at which nobody listens, for tests and benchmarks that must name a port before a process takes it, or an
//! address that stays dead.
//!
//! Whoever binds port 0, reads what it got and lets go of it has a port that the next one to bind port 0 may be given,
//! or the next connection: in a process with a hundred tests that happens. The system gives away ports from a range of
//! its own ([`ip_local_port_range`], 32768 and up unless it is set), so the ports here come from below that range, and
//! none is given twice by one process.
//!
//! [`ip_local_port_range`]: https://docs.kernel.org/networking/ip-sysctl.html

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// The lowest port that is given, and how many there are: all lie below the range of the system.
const FIRST: u16 = 10_000;
const COUNT: u32 = 22_000;

/// How far the ports of one process lie apart that follow each other: no factor of `COUNT`, so that all are visited.
const STEP: u32 = 13;

/// How far the first ports of two processes lie apart whose ids follow each other.
const APART: u32 = 97;

/// A port that nobody has bound on any address of this machine, neither for TCP nor for UDP. A process is given another
/// one each time, until it has been given all.
///
/// # Panics
///
/// If all are taken.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = process::id().wrapping_mul(APART) % COUNT;
    let next = || start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT * STEP;
    let mut ports = (0..COUNT).map(|_| FIRST + (next() % COUNT) as u16);
    ports.find(|port| is_free(*port)).expect("not all ports are taken")
}

/// An address on loopback at which nobody listens, with a port from [`free_port`].
///
/// # Panics
///
/// As [`free_port`].
pub fn nobody() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

fn is_free(port: u16) -> bool {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, io::ErrorKind, net::TcpStream};

    use super::*;

    #[test]
    fn ports_are_free_and_given_once_also_to_threads_that_ask_at_the_same_time() {
        let ask = || (0..200).map(|_| free_port()).collect::<Vec<_>>();
        let asking: Vec<_> = (0..4).map(|_| std::thread::spawn(ask)).collect();
        let given: Vec<u16> = asking.into_iter().flat_map(|thread| thread.join().expect("gives")).collect();
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), 800);
        assert!(given.iter().all(|port| (10_000..32_000).contains(port)), "{given:?}");
        for port in given {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("free");
        }
    }

    #[test]
    fn whoever_binds_any_port_is_given_another_one() {
        let dead = nobody();
        let held: Vec<_> = (0..500).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        assert!(held.iter().all(|held| held.local_addr().expect("bound") != dead));
        let refused = TcpStream::connect(dead).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_port_that_somebody_has_is_not_given() {
        let tcp = free_port();
        let held = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), tcp)).expect("free");
        assert!(!is_free(tcp));
        drop(held);
        let udp = free_port();
        let _held = UdpSocket::bind((Ipv4Addr::LOCALHOST, udp)).expect("free");
        assert!(is_free(tcp) && !is_free(udp));
    }
}
