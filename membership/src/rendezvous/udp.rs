//! The providers `multicast:` and `broadcast:`: the sockets by which nodes of a local network call each other.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use membership_types::Rng;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::{
    clock::now,
    rendezvous::{
        announce::{Announcer, MAX_DATAGRAM},
        finder::Report,
    },
    start,
};

/// The pause after a socket could not be had, or failed.
const RETRY: Duration = Duration::from_secs(1);
/// How many datagrams are read in one turn, and the pause after a full turn: a flood is left to the kernel to drop.
const TURN: (usize, Duration) = (32, Duration::from_millis(20));

/// Where nodes call each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNetwork {
    /// The multicast group; `None` to broadcast.
    pub group: Option<Ipv4Addr>,
    /// The port, which all nodes of a host share.
    pub port: u16,
    /// The address of the interface; without it that of the node's own address, if that is of this host.
    pub interface: Option<Ipv4Addr>,
}

impl LocalNetwork {
    /// Why a node with this address must not be announced there.
    pub(crate) fn problem(&self, own: SocketAddr) -> Option<String> {
        let interface = self.interface.filter(|interface| !interface.is_loopback())?;
        own.ip().is_loopback().then(|| {
            format!(
                "nobody beyond {interface} can connect to {own}: give --listen an address of that network, or \
                 interface=127.0.0.1 for this host alone"
            )
        })
    }

    fn open(&self, own: SocketAddr) -> io::Result<Sockets> {
        let interface = match (self.interface, own.ip()) {
            (Some(interface), _) => interface,
            // Whoever listens on one network is looked for there.
            (None, IpAddr::V4(ip)) if udp()?.bind(&SocketAddr::from((ip, 0)).into()).is_ok() => ip,
            (None, _) => Ipv4Addr::UNSPECIFIED,
        };
        let listens = udp()?;
        listens.set_reuse_address(true)?;
        // Bound to where the calls go it hears nothing else: no other group, and nobody beyond the local network.
        let to = SocketAddrV4::new(self.group.unwrap_or(Ipv4Addr::BROADCAST), self.port);
        listens.bind(&to.into())?;
        let speaks = udp()?;
        // The kernel sends from the interface that the socket is bound to, broadcasts too.
        speaks.bind(&SocketAddrV4::new(interface, 0).into())?;
        speaks.set_ttl_v4(1)?;
        if let Some(group) = self.group {
            listens.set_multicast_all_v4(false)?;
            listens.join_multicast_v4(&group, &interface)?;
            speaks.set_multicast_if_v4(&interface)?;
            speaks.set_multicast_loop_v4(true)?;
            speaks.set_multicast_ttl_v4(1)?;
        } else {
            speaks.set_broadcast(true)?;
        }
        Ok(Sockets {
            listens: UdpSocket::from_std(listens.into())?,
            speaks: UdpSocket::from_std(speaks.into())?,
            to: to.into(),
        })
    }
}

fn udp() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

struct Sockets {
    listens: UdpSocket,
    speaks: UdpSocket,
    to: SocketAddr,
}

pub(crate) async fn run(network: LocalNetwork, cluster: String, own: SocketAddr, mut report: Report) {
    // Randomness only spreads answers over time.
    let rng = Rng::seeded(start::random().unwrap_or_else(|_| crate::clock::now_ns()));
    let mut announcer = Announcer::new(&cluster, report.id(), own, now(), rng);
    loop {
        let failed = match network.open(own) {
            Ok(sockets) => call(&sockets, &mut announcer, &mut report).await,
            Err(error) => error,
        };
        report.failed(&failed);
        report.pause(RETRY).await;
    }
}

/// Calls, and hears others, until a socket fails.
async fn call(sockets: &Sockets, announcer: &mut Announcer, report: &mut Report) -> io::Error {
    loop {
        announcer.set_standing(now(), report.id(), report.seeking());
        while let Some(datagram) = announcer.speak(now()) {
            match sockets.speaks.send_to(&datagram, sockets.to).await {
                Ok(_) => announcer.sent(now()),
                Err(error) => return error,
            }
        }
        if announcer.complete(now()) {
            report.found(announcer.found());
        } else {
            report.so_far(announcer.found());
        }
        let pause = announcer.due(now()) - now();
        let full = tokio::select! {
            () = report.pause(pause) => false,
            ready = sockets.listens.readable() => match ready.and_then(|()| hear(sockets, announcer)) {
                Ok(full) => full,
                Err(error) => return error,
            },
        };
        if full {
            tokio::time::sleep(TURN.1).await;
        }
    }
}

/// Reads what has come. Tells whether there may be more.
fn hear(sockets: &Sockets, announcer: &mut Announcer) -> io::Result<bool> {
    // One more byte than allowed: what is longer is cut off, and noticed.
    let mut buffer = [0; MAX_DATAGRAM + 1];
    for _ in 0..TURN.0 {
        match sockets.listens.try_recv_from(&mut buffer) {
            Ok((len, from)) => announcer.hear(now(), from.ip(), &buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
