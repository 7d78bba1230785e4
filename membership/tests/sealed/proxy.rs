//! Somebody between two nodes, who sees everything they send and can change it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

/// What it does to what it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// Nothing.
    None,
    /// Changes one bit of the next record, once, and goes back to nothing.
    Flip,
    /// Passes the next record on twice, once.
    Repeat,
    /// Passes the next record on after the one that follows it, once.
    Swap,
    /// Says that the next record is longer than it is, once.
    Stretch,
    /// Passes on only half of the next record, then closes the connection, once.
    Cut,
}

/// Listens in place of a node, and passes on to it.
pub struct Proxy {
    pub addr: SocketAddr,
    next: Arc<Mutex<Mischief>>,
    /// Everything that was sent to the node at the beginning of connections.
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Proxy {
    /// Begins to listen; where to is said with [`Proxy::lead_to`].
    pub async fn listen() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        (Self { addr, next: Arc::new(Mutex::new(Mischief::None)), recorded: Arc::default() }, listener)
    }

    pub fn lead_to(&self, listener: TcpListener, node: SocketAddr) {
        let (next, recorded) = (Arc::clone(&self.next), Arc::clone(&self.recorded));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(node).await else { continue };
                let (from_near, to_near) = near.into_split();
                let (from_far, to_far) = far.into_split();
                let (one, two) = (Arc::clone(&next), Arc::clone(&next));
                tokio::spawn(pass(from_near, to_far, one, Some(Arc::clone(&recorded))));
                tokio::spawn(pass(from_far, to_near, two, None));
            }
        });
    }

    /// Does this to the next record of any connection, in whichever direction.
    pub fn does(&self, mischief: Mischief) {
        *self.next.lock().expect("no panic") = mischief;
    }

    /// Has it been done?
    pub fn is_done(&self) -> bool {
        *self.next.lock().expect("no panic") == Mischief::None
    }

    /// What connecting nodes sent first.
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        self.recorded.lock().expect("no panic").clone()
    }
}

/// Passes on what one side says: first the message of its introduction, then records.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    next: Arc<Mutex<Mischief>>,
    recorded: Option<Arc<Mutex<Vec<Vec<u8>>>>>,
) -> Option<()> {
    let mut first = vec![0; 19];
    from.read_exact(&mut first).await.ok()?;
    let mut body = vec![0; usize::from(u16::from_be_bytes([first[17], first[18]]))];
    from.read_exact(&mut body).await.ok()?;
    first.extend(body);
    to.write_all(&first).await.ok()?;
    // The empty record that proves the session belongs to the introduction.
    if recorded.is_some() {
        let proof = record(&mut from).await?;
        to.write_all(&proof).await.ok()?;
        first.extend(proof);
    }
    let mut replay = first;
    loop {
        let mut one = record(&mut from).await?;
        if let Some(recorded) = &recorded
            && !replay.is_empty()
        {
            replay.extend(&one);
            recorded.lock().expect("no panic").push(std::mem::take(&mut replay));
        }
        let mischief = std::mem::replace(&mut *next.lock().expect("no panic"), Mischief::None);
        match mischief {
            Mischief::None => {}
            Mischief::Flip => {
                let middle = one.len() / 2;
                one[middle] ^= 1;
            }
            Mischief::Repeat => to.write_all(&one).await.ok()?,
            Mischief::Swap => {
                let other = record(&mut from).await?;
                to.write_all(&other).await.ok()?;
            }
            Mischief::Stretch => one[0] ^= 0x80,
            Mischief::Cut => {
                to.write_all(&one[..one.len() / 2]).await.ok()?;
                return None;
            }
        }
        to.write_all(&one).await.ok()?;
    }
}

async fn record(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    from.read_exact(&mut length).await.ok()?;
    let mut record = vec![0; usize::from(u16::from_be_bytes(length))];
    from.read_exact(&mut record).await.ok()?;
    record.splice(0..0, length);
    Some(record)
}
