//! What two processes say to each other when one takes over from the other: messages over a Unix socket that keeps their bounds,
//! each with the open files that belong to it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

/// What this build says. Fields that come later need a default; what changes the meaning of a message is another version.
pub(super) const VERSION: u32 = 2;

/// How long the other side may take for an answer that it has at hand, and for what it only has to take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of a message: of a client's next request little goes over, and its name may be long.
const MOST: usize = 128 * 1024;
/// Most files that go with a message. The kernel takes 253.
pub(super) const FILES: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// A process that wants to take over begins so.
    Hello { version: u32 },
    /// It may not.
    Refused { why: String },
    /// Sockets, or some of them, that are listened on for this service. One for each.
    Door { service: Box<str>, configured: SocketAddr },
    /// A socket that is listened on for something else.
    Beside { name: String },
    /// Those were all.
    Doors,
    /// The new process can serve, and asks for its turn.
    Serving,
    /// It has it.
    Yours,
    /// The new process serves, and the next one finds it.
    Found,
    /// A client, with its connection.
    Client {
        service: Box<str>,
        protocol: Box<str>,
        source: SocketAddr,
        destination: Option<SocketAddr>,
        tls: bool,
        session: Vec<u8>,
        input: Vec<u8>,
    },
}

/// Who is at the other side, as the kernel says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// None where its processes have no numbers here, as between containers.
    pub pid: Option<i32>,
    pub uid: u32,
}

/// What asks the kernel about peers.
pub(super) fn kernel() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_io().build()
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it takes too long")
}

/// One side of a conversation.
#[derive(Debug)]
pub(super) struct Line(pub OwnedFd);

impl Line {
    /// How long [`Line::hear`] waits at most.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, patience)?)
    }

    /// Who is at the other side. Takes the line along for a moment, as tokio wants sockets to be its own.
    pub fn peer(self, kernel: &Runtime) -> io::Result<(Self, Peer)> {
        let socket = UnixStream::from(self.0);
        socket.set_nonblocking(true)?;
        let _here = kernel.enter();
        let socket = tokio::net::UnixStream::from_std(socket)?;
        let told = socket.peer_cred()?;
        let peer = Peer { pid: told.pid().filter(|pid| *pid != 0), uid: told.uid() };
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Ok((Self(socket.into()), peer))
    }

    pub fn say(&self, message: &Message, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.say_within(PATIENCE, message, files)
    }

    /// Fails as [`io::ErrorKind::TimedOut`] if the other side does not take it so long.
    pub fn say_within(
        &self,
        patience: Duration,
        message: &Message,
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
        if text.len() > MOST {
            return Err(io::Error::other("more is known of it than fits into a message"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !with.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("too many files for one message"));
        }
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            // None at all would mean for ever, and the kernel counts up to some number only.
            let wait = left.clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60));
            set_socket_timeout(&self.0, Timeout::Send, Some(wait))?;
            match sendmsg(&self.0, &[IoSlice::new(&text)], &mut with, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => return Err(late()),
                // As many files are on their way as may be: until the other side has taken some.
                Err(rustix::io::Errno::TOOMANYREFS | rustix::io::Errno::NOBUFS) => {
                    if left.is_zero() {
                        return Err(late());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message and its files; `None` once the other side has hung up.
    pub fn hear(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut text = vec![0; MOST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let heard = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut with, RecvFlags::CMSG_CLOEXEC) {
                Ok(heard) => break heard,
                Err(rustix::io::Errno::INTR) => {}
                // It hung up before it read what it was told.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                Err(rustix::io::Errno::AGAIN) => return Err(late()),
                Err(error) => return Err(error.into()),
            }
        };
        let mut files = Vec::new();
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                files.extend(some);
            }
        }
        if heard.bytes == 0 {
            return Ok(None);
        }
        if heard.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("a message, or the files that go with it, did not fit"));
        }
        let message = rmp_serde::from_slice(&text[..heard.bytes]).map_err(io::Error::other)?;
        Ok(Some((message, files)))
    }
}

/// Files as messages take them.
pub(super) fn borrowed<T: AsFd>(files: &[T]) -> Vec<BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}
