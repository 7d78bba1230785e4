//! What two processes say to each other when one takes over from the other: messages over a Unix socket that keeps their bounds,
//! each with the open files that belong to it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize};

/// What this build says. Fields that come later need a default; what changes the meaning of a message is another version.
pub(super) const VERSION: u32 = 1;

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
    /// The new process serves.
    Serving,
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

/// One side of a conversation.
#[derive(Debug)]
pub(super) struct Line(pub OwnedFd);

impl Line {
    /// How long [`Line::hear`] waits at most.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, patience)?)
    }

    pub fn say(&self, message: &Message, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
        if text.len() > MOST {
            return Err(io::Error::other("more is known of it than fits into a message"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !with.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("too many files for one message"));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&text)], &mut with, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                // As many files are on their way as may be: until the other side has taken some.
                Err(rustix::io::Errno::TOOMANYREFS | rustix::io::Errno::NOBUFS) => {
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
