//! One process takes over from another: listening sockets, then clients, without anybody being refused or dropped.
//!
//! The running process waits at a Unix socket ([`Handover`]). A new one asks it there ([`Predecessor`]) and is given the listening
//! sockets themselves, so that nobody who waits in their queues is lost. It begins with them without accepting anybody; if it
//! fails at that it ends, and nothing has happened. Once it accepts it says so; from then on the old one ([`Successor`]) passes
//! each client on, connection and all, as soon as the client is between two requests, and ends when nobody is left.

mod place;
mod wire;

use std::{
    fmt, io,
    mem::replace,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, connect};
use tokio::runtime::Runtime;

use crate::{
    config::Config,
    router::{self, Inherited, Options, RouterHandle, StartError},
    worker::{Guest, Origin},
};
use place::{Place, unix_socket};
use wire::{FILES, Line, Message, PATIENCE, Peer, VERSION, borrowed};

/// How long it is waited until what failed for want of something is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long somebody who came at the wrong time may take to say so.
const MOMENT: Duration = Duration::from_secs(1);
/// How long a new process may take until it serves. A node of it may have to join a cluster first.
const START: Duration = Duration::from_secs(300);

/// What somebody is told who comes while another one takes over.
const LATE: &str = "another process has just taken over from it: start this one again, if it is still wanted";
const HUNG_UP: &str =
    "it hung up; another process may have taken over from it: start this one again, if it is still wanted";

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
        "{path}: {} that waits there is of another user ({uid}): ask for a place where only this user may write", Named(*.pid)
    )]
    Stranger {
        /// The socket.
        path: String,
        /// The process, if it has a number here.
        pid: Option<i32>,
        /// Its user.
        uid: u32,
    },
    /// The running process does not hand over.
    #[error("{} that runs does not hand over: {why}", Named(*.pid))]
    Refused {
        /// The process, if it has a number here.
        pid: Option<i32>,
        /// Why.
        why: String,
    },
}

/// A process, as messages name it.
struct Named(Option<i32>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "the process {pid}"),
            None => f.write_str("the process (it has no number here, as in another container)"),
        }
    }
}

/// Where a process that runs waits for one that takes over.
#[derive(Debug)]
pub struct Handover {
    place: Place,
    beside: Vec<(String, TcpListener)>,
}

/// A process that serves, and takes the clients over.
#[derive(Debug)]
pub struct Successor {
    line: Line,
    pid: Option<i32>,
}

/// A process that serves so far, and what it listens on.
#[derive(Debug)]
pub struct Predecessor {
    line: Line,
    pid: Option<i32>,
    doors: Vec<Inherited>,
    beside: Vec<(String, TcpListener)>,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> HandoverError {
    let path = path.display().to_string();
    move |error| HandoverError::Socket { path, error }
}

/// Tries until it succeeds: what was missing, descriptors for instance, may be there in a moment.
fn insist<T>(mut what: impl FnMut() -> io::Result<T>) -> T {
    let mut told = false;
    loop {
        match what() {
            Ok(done) => return done,
            Err(error) => {
                if !replace(&mut told, true) {
                    tracing::warn!(%error, "no process can take over from this one at the moment: it is tried again");
                }
                thread::sleep(AGAIN);
            }
        }
    }
}

/// Tells whoever is there why nothing comes of it.
fn refuse(line: &Line, why: String) -> io::Result<()> {
    line.say(&Message::Refused { why: why.clone() }, &[])?;
    Err(io::Error::other(why))
}

fn nonsense<T>() -> io::Result<T> {
    Err(io::Error::other("it said something else than expected"))
}

impl Handover {
    /// Makes the socket for `path`, where only this user may connect. Nobody finds it before [`Handover::wait`], or before this
    /// router serves in place of another one ([`Predecessor::relieve`]). Links are followed, as by who connects. What is left of
    /// the socket at the end of the process does no harm.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn prepare(path: &Path) -> Result<Self, HandoverError> {
        let place = Place::make(path).map_err(failed(path))?;
        Ok(Self { place, beside: Vec::new() })
    }

    /// Passes another listening socket on, too.
    #[must_use]
    pub fn with(mut self, name: &str, socket: TcpListener) -> Self {
        self.beside.push((name.into(), socket));
        self
    }

    /// Lets others find it.
    fn show(&mut self) {
        if let Err(error) = self.place.show() {
            tracing::error!(%error, "the upgrade socket cannot be put in its place: no process can take over from this one");
        }
    }

    fn accept(&self) -> io::Result<Line> {
        Ok(Line(accept_with(&self.place.socket, SocketFlags::CLOEXEC)?))
    }

    /// Waits until a new process serves on this router's sockets. Whoever fails at that, strangers, and what the operating system
    /// does not give at the moment are told in the log.
    pub fn wait(mut self, router: &RouterHandle) -> Successor {
        self.show();
        let kernel = insist(wire::kernel);
        loop {
            let line = insist(|| self.accept());
            let (line, Peer { pid, uid }) = match line.peer(&kernel) {
                Ok(known) => known,
                Err(error) => {
                    tracing::warn!(%error, "nobody can say who wants to take over: it is not heard");
                    continue;
                }
            };
            if uid != rustix::process::geteuid().as_raw() && uid != 0 {
                tracing::warn!(pid, uid, "a process of another user wants to take over: it is not heard");
                continue;
            }
            match self.offer(&line, router) {
                Ok(()) => {
                    self.send_away();
                    return Successor { line, pid };
                }
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
                    "it speaks version {VERSION} of the handover, the new one version {version}: stop it, and start the new one"
                );
                return refuse(line, why);
            }
            Some(_) => return nonsense(),
            None => return Err(io::Error::other("it said nothing")),
        }
        let doors = match router.sockets() {
            Ok(doors) => doors,
            Err(error) => return refuse(line, format!("a listening socket cannot be handed over: {error}")),
        };
        for Inherited { service, configured, sockets } in doors {
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
            Some((Message::Serving, _)) => {}
            Some(_) => return nonsense(),
            None => return Err(io::Error::other("it ended before it served")),
        }
        line.set_patience(Some(PATIENCE))?;
        line.say(&Message::Yours, &[])?;
        match line.hear() {
            Ok(Some((Message::Found, _))) => Ok(()),
            Ok(None) => Err(io::Error::other("it ended as it began to serve")),
            // It has its turn, and is slow at that.
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }

    /// Others who came to take over learn that they are late.
    fn send_away(&self) {
        let pending = || rustix::io::ioctl_fionbio(&self.place.socket, true);
        if let Err(error) = pending() {
            tracing::warn!(%error, "whoever wanted to take over, too, is hung up on");
            return;
        }
        while let Ok(line) = self.accept() {
            // What is not read takes the answer along when it is hung up.
            let told = line.set_patience(Some(MOMENT)).and_then(|()| line.hear());
            let _late = told.and_then(|_| refuse(&line, LATE.into()));
        }
    }
}

impl Successor {
    /// Its process id, if it has one here: none between containers.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Ends this router: it accepts nobody any more, and clients pass to the successor between two requests. Whoever cannot
    /// (TLS, tunnels, transactions) ends here, and is cut off after `grace`. Blocks until nobody is left.
    pub fn take(self, router: &RouterHandle, grace: Duration) {
        let (heir, guests) = mpsc::channel();
        let Self { line, pid } = self;
        // A new process that stands still is not waited for for ever.
        let (begun, most) = (Instant::now(), grace.saturating_add(MOMENT));
        let passes = thread::Builder::new().name("router-handover".into()).spawn(move || {
            let mut count: u64 = 0;
            for guest in guests {
                match pass(&line, guest, most.saturating_sub(begun.elapsed())) {
                    Ok(()) => count += 1,
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        tracing::warn!(pid, "the process that serves takes no client over: they are closed");
                        break;
                    }
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

fn pass(line: &Line, guest: Guest, patience: Duration) -> io::Result<()> {
    let Guest { service, protocol, origin, session, input, stream } = guest;
    let Origin { source, destination, tls } = origin;
    let client = Message::Client { service, protocol, source, destination, tls, session, input };
    line.say_within(patience, &client, &borrowed(&[stream]))
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
        let peer = |kernel: Runtime| Line(socket).peer(&kernel);
        let (line, Peer { pid, uid }) = wire::kernel().and_then(peer).map_err(failed(path))?;
        if uid != rustix::process::geteuid().as_raw() {
            let path = path.display().to_string();
            return Err(HandoverError::Stranger { path, pid, uid });
        }
        let mut found = Self { line, pid, doors: Vec::new(), beside: Vec::new() };
        found.ask().map_err(|error| HandoverError::Refused { pid, why: error.to_string() })?;
        Ok(Some(found))
    }

    fn ask(&mut self) -> io::Result<()> {
        // Another one may be about to take over: it is heard out first.
        self.line.set_patience(Some(START + PATIENCE))?;
        let hello = self.line.say(&Message::Hello { version: VERSION }, &[]);
        hello.map_err(|_| io::Error::other(HUNG_UP))?;
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
                Some(_) => return nonsense(),
                None => return Err(io::Error::other(HUNG_UP)),
            }
        }
    }

    /// Its process id, if it has one here: none between containers.
    pub fn pid(&self) -> Option<i32> {
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

    /// Begins to serve once the predecessor agrees, takes the clients over that it has, and is found at `next` in its place.
    /// Returns when this router serves.
    ///
    /// # Errors
    /// The predecessor has given up waiting, or no thread can be started. It goes on then; this process has accepted nobody.
    pub fn relieve(self, router: &RouterHandle, next: &mut Handover) -> Result<(), HandoverError> {
        let Self { line, pid, doors, beside } = self;
        // What nobody serves here is closed by the predecessor, once its queue is empty.
        drop((doors, beside));
        let refused = |error: io::Error| HandoverError::Refused { pid, why: error.to_string() };
        let (adopt, line_to_hear) = mpsc::channel();
        let adopts = router.clone();
        let adopts = move || {
            if let Ok(line) = line_to_hear.recv() {
                take_in(&line, pid, &adopts);
            }
        };
        thread::Builder::new().name("router-adoption".into()).spawn(adopts).map_err(refused)?;
        turn(&line).map_err(refused)?;
        router.open();
        next.show();
        if let Err(error) = line.say(&Message::Found, &[]).and_then(|()| line.set_patience(None)) {
            tracing::warn!(pid, %error, "the process that served so far is gone");
        }
        let _hears = adopt.send(line);
        Ok(())
    }
}

/// Asks for this process's turn. Both would serve for ever if it began without an answer.
fn turn(line: &Line) -> io::Result<()> {
    let too_late = || {
        let most = START.as_secs();
        io::Error::other(format!("it hung up before this one could serve; it waits for {most} s at most"))
    };
    line.set_patience(Some(PATIENCE))?;
    line.say(&Message::Serving, &[]).map_err(|_| too_late())?;
    match line.hear()? {
        Some((Message::Yours, _)) => Ok(()),
        Some(_) => nonsense(),
        None => Err(too_late()),
    }
}

/// Takes clients in until the predecessor has ended.
fn take_in(line: &Line, pid: Option<i32>, router: &RouterHandle) {
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
                _ => {
                    tracing::warn!(pid, "the process that served so far says something else than expected");
                }
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
}

#[cfg(test)]
mod tests {
    use std::{fs, io::IoSlice, path::PathBuf};

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendFlags, SocketType, bind, listen, sendmsg, socketpair,
        sockopt::set_socket_send_buffer_size,
    };

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

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("router-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn who_may_not_begin_before_the_other_gives_up_does_not_begin() {
        let directory = directory("late");
        let path = directory.join("socket");
        let impatient = unix_socket().unwrap();
        bind(&impatient, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&impatient, 1).unwrap();
        let hangs_up = thread::spawn(move || {
            let line = Line(accept_with(&impatient, SocketFlags::CLOEXEC).unwrap());
            assert!(matches!(line.hear().unwrap(), Some((Message::Hello { .. }, _))));
            line.say(&Message::Doors, &[]).unwrap();
        });
        let mut new = Predecessor::find(&path).unwrap().unwrap();
        let mut place = Handover::prepare(&path).unwrap();
        let (config, other) = router("127.0.0.1:0".parse().unwrap());
        let router = new.start(&config, Options::new().workers(1)).unwrap();
        hangs_up.join().unwrap();
        let error = new.relieve(&router, &mut place).unwrap_err().to_string();
        assert!(error.contains("300 s at most"), "{error}");
        drop(place);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing else is left there");
        let mut client = TcpStream::connect(router.serving()[0].listen).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        io::Write::write_all(&mut client, b"PING\r\n").unwrap();
        io::Read::read(&mut client, &mut [0]).expect_err("nobody accepts");
        router.shutdown(Duration::ZERO);
        other.shutdown(Duration::ZERO);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn who_takes_no_client_is_not_waited_for() {
        let (_, old) = router("127.0.0.1:0".parse().unwrap());
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        set_socket_send_buffer_size(&ours, 1).unwrap();
        let at = old.serving()[0].listen;
        let mut clients: Vec<_> = (0..60).map(|_| TcpStream::connect(at).unwrap()).collect();
        for client in &mut clients {
            io::Write::write_all(client, b"PING\r\n").unwrap();
            io::Read::read(client, &mut [0; 16]).unwrap();
        }
        let (done, ends) = mpsc::channel();
        thread::spawn(move || {
            Successor { line: Line(ours), pid: None }.take(&old, Duration::from_millis(100));
            done.send(())
        });
        ends.recv_timeout(Duration::from_secs(30)).expect("it ends");
        drop((theirs, clients));
    }

    #[test]
    fn whoever_talks_nonsense_gets_nothing_and_the_next_one_is_heard() {
        let directory = directory("handover");
        let path = directory.join("socket");
        assert!(Predecessor::find(&path).unwrap().is_none(), "nobody is there");
        fs::write(&path, "").unwrap();
        assert!(Handover::prepare(&path).unwrap_err().to_string().contains("no socket"));
        fs::remove_file(&path).unwrap();

        let (config, old) = router("127.0.0.1:0".parse().unwrap());
        let mut handover = Handover::prepare(&path).unwrap();
        assert!(Predecessor::find(&path).unwrap().is_none(), "it is not shown");
        handover.show();
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
        let late = connected(&path);
        late.say(&Message::Hello { version: VERSION }, &[]).unwrap();
        let mut next = Handover::prepare(&path).unwrap();
        new.relieve(&router, &mut next).unwrap();
        let successor = waits.join().unwrap();
        assert_eq!(successor.pid().map(i32::unsigned_abs), Some(std::process::id()));
        assert!(matches!(late.hear().unwrap(), Some((Message::Refused { why }, _)) if why == LATE));
        connected(&path);
        drop(next);
        successor.take(&old, Duration::from_secs(5));
        assert!(TcpStream::connect(router.serving()[0].listen).is_ok());
        assert!(Predecessor::find(&path).unwrap().is_none(), "a socket that is left over is nobody");
        router.shutdown(Duration::ZERO);
        fs::remove_dir_all(&directory).unwrap();
    }
}
