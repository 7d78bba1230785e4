//! One process takes over from another: listening sockets, then clients, without anybody being refused or dropped.
//!
//! The running process waits at a Unix socket ([`Handover`]). A new one asks it there ([`Predecessor`]) and is given the listening
//! sockets themselves, so that nobody who waits in their queues is lost. It begins with them without accepting anybody; if it
//! fails at that it ends, and nothing has happened. Once it accepts it says so; from then on the old one ([`Successor`]) passes
//! each client on, connection and all, as soon as the client is between two requests, and ends when nobody is left.

mod wire;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt::socket_peercred,
};

use crate::{
    config::Config,
    router::{self, Inherited, Options, RouterHandle, StartError},
    worker::{Guest, Origin},
};
use wire::{FILES, Line, Message, VERSION, borrowed};

/// How long the other side may take for an answer that it has at hand.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a new process may take until it serves. A node of it may have to join a cluster first.
const START: Duration = Duration::from_secs(300);

/// Why nothing is taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The socket cannot be used.
    #[error("{path}: {error}")]
    Socket {
        /// The socket.
        path: String,
        /// What the operating system says.
        #[source]
        error: io::Error,
    },
    /// Somebody else waits there, whom nobody should trust.
    #[error(
        "{path}: the process {pid} that waits there is of another user ({uid}): ask for a place where only this user may write"
    )]
    Stranger {
        /// The socket.
        path: String,
        /// The process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// The running process does not hand over.
    #[error("the running process {pid} does not hand over: {why}")]
    Refused {
        /// The process.
        pid: i32,
        /// Why.
        why: String,
    },
}

/// Where a process that runs waits for one that takes over.
#[derive(Debug)]
pub struct Handover {
    socket: OwnedFd,
    beside: Vec<(String, TcpListener)>,
}

/// A process that serves, and takes the clients over.
#[derive(Debug)]
pub struct Successor {
    line: Line,
    pid: i32,
}

/// A process that serves so far, and what it listens on.
#[derive(Debug)]
pub struct Predecessor {
    line: Line,
    pid: i32,
    doors: Vec<Inherited>,
    beside: Vec<(String, TcpListener)>,
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> HandoverError {
    let path = path.display().to_string();
    move |error| HandoverError::Socket { path, error }
}

impl Handover {
    /// Waits at `path`, where only this user may connect. Whoever waited there before is not found any more. What is left of the
    /// socket at the end of the process does no harm.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(path: &Path) -> Result<Self, HandoverError> {
        let make = || {
            if fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
                return Err(io::Error::other("something is there that is no socket: give another place"));
            }
            let socket = unix_socket()?;
            let mut fresh = path.as_os_str().to_owned();
            fresh.push(format!(".{}", std::process::id()));
            // Of an earlier process of this number.
            let _ = fs::remove_file(&fresh);
            bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
            listen(&socket, 8)?;
            // At every moment somebody is found there.
            fs::rename(&fresh, path)?;
            Ok(Self { socket, beside: Vec::new() })
        };
        make().map_err(failed(path))
    }

    /// Passes another listening socket on, too.
    #[must_use]
    pub fn with(mut self, name: &str, socket: TcpListener) -> Self {
        self.beside.push((name.into(), socket));
        self
    }

    /// Waits until a new process serves on this router's sockets. Whoever fails at that, and strangers, are told in the log.
    ///
    /// # Errors
    /// Nobody can be accepted.
    pub fn wait(self, router: &RouterHandle) -> io::Result<Successor> {
        loop {
            let line = match accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(line) => Line(line),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            let peer = socket_peercred(&line.0)?;
            let (pid, uid) = (peer.pid.as_raw_nonzero().get(), peer.uid);
            if uid != rustix::process::geteuid() && !uid.is_root() {
                tracing::warn!(
                    pid,
                    uid = uid.as_raw(),
                    "a process of another user wants to take over: it is not heard"
                );
                continue;
            }
            match self.offer(&line, router) {
                Ok(()) => return Ok(Successor { line, pid }),
                Err(why) => tracing::warn!(
                    pid,
                    "a process wanted to take over, and does not, this one goes on: {why}"
                ),
            }
        }
    }

    fn offer(&self, line: &Line, router: &RouterHandle) -> io::Result<()> {
        line.set_patience(Some(PATIENCE))?;
        match line.hear()? {
            Some((Message::Hello { version: VERSION }, _)) => {}
            Some((Message::Hello { version }, _)) => {
                let why = format!(
                    "it speaks version {VERSION} of the handover, not {version}: stop it, and start the new one"
                );
                line.say(&Message::Refused { why }, &[])?;
                return Err(io::Error::other(format!("it speaks version {version} of the handover")));
            }
            Some(_) => return Err(io::Error::other("it said something else than expected")),
            None => return Err(io::Error::other("it said nothing")),
        }
        for Inherited { service, configured, sockets } in router.sockets() {
            for some in sockets.chunks(FILES) {
                line.say(&Message::Door { service: service.clone(), configured }, &borrowed(some))?;
            }
        }
        for (name, socket) in &self.beside {
            line.say(&Message::Beside { name: name.clone() }, &borrowed(&[socket]))?;
        }
        line.say(&Message::Doors, &[])?;
        line.set_patience(Some(START))?;
        match line.hear()? {
            Some((Message::Serving, _)) => Ok(()),
            Some(_) => Err(io::Error::other("it said something else than expected")),
            None => Err(io::Error::other("it ended before it served")),
        }
    }
}

impl Successor {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends this router: it accepts nobody any more, and clients pass to the successor between two requests. Whoever cannot
    /// (TLS, tunnels, transactions) ends here, and is cut off after `grace`. Blocks until nobody is left.
    pub fn take(self, router: &RouterHandle, grace: Duration) {
        let (heir, guests) = mpsc::channel();
        let Self { line, pid } = self;
        let passes = thread::Builder::new().name("router-handover".into()).spawn(move || {
            let mut count: u64 = 0;
            for guest in guests {
                match pass(&line, guest) {
                    Ok(()) => count += 1,
                    Err(error) => tracing::warn!(pid, %error, "a client was not handed over, and is closed"),
                }
            }
            tracing::info!(pid, count, "clients were handed over");
        });
        if let Err(error) = &passes {
            tracing::error!(%error, "clients cannot be handed over, and are closed");
        }
        router.bequeath(&heir, grace);
        drop(heir);
        let _ = passes.map(thread::JoinHandle::join); // it has said what there is to say
    }
}

fn pass(line: &Line, guest: Guest) -> io::Result<()> {
    let Guest { service, protocol, origin, session, input, stream } = guest;
    let Origin { source, destination, tls } = origin;
    let client = Message::Client { service, protocol, source, destination, tls, session, input };
    line.say(&client, &borrowed(&[stream]))
}

impl Predecessor {
    /// Asks who waits at `path` for what it listens on; `None` if nobody does.
    ///
    /// # Errors
    /// Somebody does, but hands nothing over.
    pub fn find(path: &Path) -> Result<Option<Self>, HandoverError> {
        let socket = unix_socket().map_err(failed(path))?;
        let addr = SocketAddrUnix::new(path).map_err(|error| failed(path)(error.into()))?;
        match connect(&socket, &addr) {
            Ok(()) => {}
            // Nobody was there, or is any more.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(failed(path)(error.into())),
        }
        let peer = socket_peercred(&socket).map_err(|error| failed(path)(error.into()))?;
        let (pid, uid) = (peer.pid.as_raw_nonzero().get(), peer.uid);
        if uid != rustix::process::geteuid() {
            let path = path.display().to_string();
            return Err(HandoverError::Stranger { path, pid, uid: uid.as_raw() });
        }
        let mut found = Self { line: Line(socket), pid, doors: Vec::new(), beside: Vec::new() };
        found.ask().map_err(|error| HandoverError::Refused { pid, why: error.to_string() })?;
        Ok(Some(found))
    }

    fn ask(&mut self) -> io::Result<()> {
        // Another one may be about to take over: it is heard out first.
        self.line.set_patience(Some(START + PATIENCE))?;
        self.line.say(&Message::Hello { version: VERSION }, &[])?;
        loop {
            match self.line.hear()? {
                Some((Message::Door { service, configured }, sockets)) => {
                    let sockets = sockets.into_iter().map(TcpListener::from);
                    match self.doors.iter_mut().find(|door| door.service == service) {
                        Some(door) => door.sockets.extend(sockets),
                        None => {
                            self.doors.push(Inherited { service, configured, sockets: sockets.collect() })
                        }
                    }
                }
                Some((Message::Beside { name }, mut socket)) => {
                    self.beside.extend(socket.pop().map(|socket| (name, socket.into())));
                }
                Some((Message::Doors, _)) => return Ok(()),
                Some((Message::Refused { why }, _)) => return Err(io::Error::other(why)),
                Some(_) => return Err(io::Error::other("it said something else than expected")),
                None => {
                    return Err(io::Error::other("it hung up; another process may have taken over from it"));
                }
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The socket of this name and address, if it has one.
    pub fn beside(&mut self, name: &str, addr: SocketAddr) -> Option<TcpListener> {
        let is_it = |(known, socket): &(String, TcpListener)| {
            let at = socket.local_addr();
            known == name && at.is_ok_and(|at| at == addr || (addr.port() == 0 && at.ip() == addr.ip()))
        };
        let at = self.beside.iter().position(is_it)?;
        Some(self.beside.swap_remove(at).1)
    }

    /// Starts a router with the predecessor's sockets, where it has those addresses. It accepts nobody before
    /// [`Predecessor::relieve`].
    ///
    /// # Errors
    /// As of [`start`](crate::start). The predecessor goes on as before, as it does if this process ends.
    pub fn start(&mut self, config: &Config, options: Options) -> Result<RouterHandle, StartError> {
        router::begin(config, options, &mut self.doors, false)
    }

    /// Begins to serve, and takes the clients over that the predecessor has. Returns at once.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn relieve(self, router: &RouterHandle) -> io::Result<()> {
        let Self { line, pid, doors, beside } = self;
        // What nobody serves here is closed by the predecessor, once its queue is empty.
        drop((doors, beside));
        line.set_patience(None)?;
        router.open();
        let router = router.clone();
        thread::Builder::new().name("router-adoption".into()).spawn(move || {
            if let Err(error) = line.say(&Message::Serving, &[]) {
                tracing::warn!(pid, %error, "the process that served so far is gone");
            }
            let mut count: u64 = 0;
            loop {
                match line.hear() {
                    Ok(Some((client, mut sockets))) => match (client, sockets.pop()) {
                        (
                            Message::Client { service, protocol, source, destination, tls, session, input },
                            Some(socket),
                        ) => {
                            let origin = Origin { source, destination, tls };
                            let stream = TcpStream::from(socket);
                            router.adopt(Guest { service, protocol, origin, session, input, stream });
                            count += 1;
                        }
                        _ => tracing::warn!(
                            pid,
                            "the process that served so far says something else than expected"
                        ),
                    },
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(pid, %error, "a client was not taken over");
                        // Nothing more is to be heard where it is not the message that is wrong.
                        if error.raw_os_error().is_some() {
                            break;
                        }
                    }
                }
            }
            tracing::info!(pid, count, "the process that served so far has ended; clients were taken over");
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

    use super::*;
    use crate::Surroundings;

    fn router(listen: SocketAddr) -> (Config, RouterHandle) {
        let text = format!(
            "[[service]]\nname = \"s\"\nlisten = \"{listen}\"\nprotocol = \"redis\"\npmap = {{ style = \"slots\", partitions = 4 }}\n\
             racs = [{{ name = \"a\", servers = [\"127.0.0.1:1\"] }}]"
        );
        let config = Config::parse(&text, "t".as_ref(), Surroundings::default()).unwrap();
        let router = router::begin(&config, Options::new().workers(3), &mut Vec::new(), true).unwrap();
        (config, router)
    }

    fn connected(path: &Path) -> Line {
        let socket = unix_socket().unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Line(socket)
    }

    #[test]
    fn whoever_talks_nonsense_gets_nothing_and_the_next_one_is_heard() {
        let directory = std::env::temp_dir().join(format!("router-handover-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("socket");
        assert!(Predecessor::find(&path).unwrap().is_none(), "nobody is there");
        fs::write(&path, "").unwrap();
        assert!(Handover::listen(&path).unwrap_err().to_string().contains("no socket"));
        fs::remove_file(&path).unwrap();

        let (config, old) = router("127.0.0.1:0".parse().unwrap());
        let handover = Handover::listen(&path).unwrap();
        let waiting = old.clone();
        let waits = thread::spawn(move || handover.wait(&waiting));

        drop(connected(&path));
        for nonsense in [&b"\xc1"[..], b"GET / HTTP/1.1\r\n\r\n", &[0x80; 1000]] {
            let stranger = connected(&path);
            sendmsg(
                &stranger.0,
                &[IoSlice::new(nonsense)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            )
            .unwrap();
            assert!(stranger.hear().unwrap().is_none(), "it is hung up on");
        }
        let other = connected(&path);
        other.say(&Message::Hello { version: VERSION + 1 }, &[]).unwrap();
        assert!(matches!(other.hear().unwrap(), Some((Message::Refused { why }, files))
            if why.contains("version") && files.is_empty()));
        // In the wrong order.
        let hasty = connected(&path);
        hasty.say(&Message::Serving, &[]).unwrap();
        assert!(hasty.hear().unwrap().is_none());

        let mut new = Predecessor::find(&path).unwrap().unwrap();
        assert_eq!((new.doors.len(), new.doors[0].sockets.len()), (1, 3));
        let router = new.start(&config, Options::new().workers(1)).unwrap();
        assert_eq!(router.serving(), old.serving(), "any free port stays the same one");
        new.relieve(&router).unwrap();
        let successor = waits.join().unwrap().unwrap();
        assert_eq!(successor.pid().unsigned_abs(), std::process::id());
        successor.take(&old, Duration::from_secs(5));
        assert!(TcpStream::connect(router.serving()[0].listen).is_ok());
        assert!(Predecessor::find(&path).unwrap().is_none(), "a socket that is left over is nobody");
        router.shutdown(Duration::ZERO);
        fs::remove_dir_all(&directory).unwrap();
    }
}
