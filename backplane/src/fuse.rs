//! Commands under a *fuse*: a tiny process between a wrapper and all that it starts, which ends them in time even if the
//! wrapper cannot.

mod launch;
mod process;
mod spec;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, ErrorKind},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net as unix, process::ExitStatusExt},
    },
    process::ExitStatus,
    sync::Arc,
    thread,
    time::Duration,
};

use membership_sync::Deadline;
use rustix::{
    io::{Errno, fcntl_dupfd_cloexec, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, recv, sendmsg, socketpair,
    },
    process::{Pid, Signal, WaitId, WaitIdOptions, geteuid, waitid},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::UnixStream,
    sync::oneshot,
    time::timeout,
};

pub use self::process::fuse_main;
use self::{
    process::{DESCRIPTORS, ENDED, LATE, LEFT, READY, STARTED, TO_GROUP},
    spec::Order,
};
use crate::{ChildSpec, SpawnError, spawner};

/// What keeps a fuse's processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containment {
    /// A pid namespace, of which the fuse is the first process: the kernel ends all of it with the fuse, and ends the fuse
    /// last.
    Namespace,
    /// The same inside a user namespace, for those who are not root. Set-user-id programs do not work in it.
    UserNamespace,
    /// Orphans come to the fuse, which kills them. Nothing is left of them when it ends by itself; who kills the fuse itself
    /// sets the orphans free.
    Subreaper,
}

impl Containment {
    const ALL: [Self; 3] = [Self::Namespace, Self::UserNamespace, Self::Subreaper];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::UserNamespace => "user-namespace",
            Self::Subreaper => "subreaper",
        }
    }

    /// The one that is written so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|how| how.name() == name)
    }

    /// From the best to the one that works everywhere. Root can become others inside, which a user namespace would prevent.
    fn to_try() -> &'static [Self] {
        if geteuid().is_root() { &[Self::Namespace, Self::Subreaper] } else { &Self::ALL }
    }
}

/// The fuse's first process, as its wrapper knows it.
#[derive(Clone, Debug)]
struct Root {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    how: Containment,
    deadline: Arc<Deadline>,
}

impl Root {
    /// Waits until it has ended, and with it all that ran under it. An error if that cannot be known.
    async fn ended(&self) -> io::Result<()> {
        // A copy of its own: several wait for it at a time, and one number can be watched only once.
        let pidfd = self.pidfd.try_clone()?;
        // SAFETY: the descriptor is owned, is the same in every call of `as_raw_fd`, and stays open while it is registered.
        #[allow(unsafe_code, reason = "there is no safe constructor")]
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        let _ended = pidfd.readable().await?;
        if self.how == Containment::Subreaper && !Deadline::is_gone(self.deadline.memory())? {
            return Err(what_is_left());
        }
        Ok(())
    }
}

/// A running fuse, and the right to start commands under it. When it is dropped, all of them are killed.
#[derive(Debug)]
pub struct Fuse {
    control: OwnedFd,
    root: Root,
    why_not_better: Option<io::Error>,
    /// The namespace's mounts, which the last process in it would have to free.
    mounts: Option<Arc<OwnedFd>>,
}

impl Fuse {
    /// Starts a fuse as the best kind that this process may have, or as this one.
    ///
    /// `program` is a program and its first arguments, for instance `/proc/self/exe` and a word; three more follow, to give to
    /// [`fuse_main`].
    ///
    /// # Errors
    /// If there can be none; nothing is left behind.
    pub async fn start(program: Vec<OsString>, how: Option<Containment>) -> io::Result<Self> {
        if !launch::is_path(&program) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a fuse's program needs a path"));
        }
        let (answer, started) = oneshot::channel();
        let job = move || {
            let mut refused = None;
            let kinds = how.as_ref().map_or(Containment::to_try(), std::slice::from_ref);
            for how in kinds {
                match begin(&program, *how) {
                    Ok(mut fuse) => {
                        fuse.why_not_better = refused;
                        // If nobody waits any more, it is dropped.
                        let _unwanted = answer.send(Ok(fuse));
                        return;
                    }
                    // The first refusal is the one that says what would have to change.
                    Err(error) => refused = Some(refused.unwrap_or(error)),
                }
            }
            let _unwanted = answer.send(Err(refused.unwrap_or_else(|| Errno::INVAL.into())));
        };
        spawner::submit(Box::new(job)).await?;
        started.await.map_err(|_| io::Error::other("the spawner thread has ended"))?
    }

    /// What keeps its processes together.
    pub fn containment(&self) -> Containment {
        self.root.how
    }

    /// Why it is no better one, if it is not.
    pub fn why_not_better(&self) -> Option<&io::Error> {
        self.why_not_better.as_ref()
    }

    /// The fuse's process number. For people to read.
    pub fn id(&self) -> i32 {
        self.root.pid.as_raw_nonzero().get()
    }

    /// A descriptor of the fuse, readable once it has ended.
    pub fn pidfd(&self) -> &Arc<OwnedFd> {
        &self.root.pidfd
    }

    /// What neighbours may hold until the fuse has ended, so that the dying need not free it: freeing it takes milliseconds.
    pub fn mounts(&self) -> Option<&Arc<OwnedFd>> {
        self.mounts.as_ref()
    }

    /// When commands that are [`bound`](ChildSpec::bound) must be gone; it has passed unless it is set. An end before the one
    /// that was set last takes effect when that one comes, or with [`Task::kill`].
    pub fn deadline(&self) -> &Arc<Deadline> {
        &self.root.deadline
    }

    /// Runs a command under the fuse. When this returns, the program itself is running.
    ///
    /// Cancel-safe: dropping the future kills what it may have started.
    ///
    /// # Errors
    /// [`SpawnError`] says what is wrong with the command, or what the kernel refused. Nothing runs then.
    pub async fn spawn(&self, spec: ChildSpec) -> Result<Task, SpawnError> {
        let program = spec.command.first().cloned().ok_or(SpawnError::NoCommand)?;
        if let Some(dir) = spec.dir.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(SpawnError::NoDirectory(dir.clone()));
        }
        let refused = |source| SpawnError::System { command: program.clone(), source };
        let order = Order::encode(&spec).map_err(refused)?;
        let mut socket = self.send(&spec).map_err(refused)?;
        let lost = |_| refused(io::Error::other("the fuse has ended"));
        socket.write_all(&order).await.map_err(lost)?;
        match socket.read_u8().await.map_err(lost)? {
            STARTED => {
                let root = self.root.clone();
                Ok(Task {
                    socket,
                    root,
                    own_group: spec.own_group,
                    grace: spec.grace,
                    end: None,
                    left: false,
                })
            }
            _ => {
                let error = io::Error::from_raw_os_error(socket.read_i32_le().await.map_err(lost)?);
                Err(spawner::explain(&program, spec.dir.as_deref(), error))
            }
        }
    }

    /// Ends the fuse, and returns once all that ran under it is gone. Nothing can be started under it any more.
    ///
    /// # Errors
    /// If its end cannot be watched, or if it could not see whether all is gone.
    pub async fn end(&self) -> io::Result<()> {
        // An error says that it has ended already.
        let _ended = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
        self.root.ended().await
    }

    /// Hands the other end of a socket to the fuse, with what the command reads and writes.
    fn send(&self, spec: &ChildSpec) -> io::Result<UnixStream> {
        let (ours, theirs) = unix::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let input =
            if spec.input { fcntl_dupfd_cloexec(io::stdin(), 3)? } else { File::open("/dev/null")?.into() };
        let output = spawner::output(spec.output)?;
        let descriptors = [theirs.as_fd(), input.as_fd(), output.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.control, &[io::IoSlice::new(&[0])], &mut ancillary, flags)?;
        UnixStream::from_std(ours)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // The end of `control` ends the fuse. That takes a moment, during which a runtime's thread must not wait: a thread of
        // its own reaps. If there is none to be had, a dead entry in the process table remains until this process ends.
        let pidfd = Arc::clone(&self.root.pidfd);
        let reap = move || retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
        let _ = thread::Builder::new().name("reaper".into()).spawn(reap);
    }
}

/// On the spawner thread.
fn begin(program: &[OsString], how: Containment) -> io::Result<Fuse> {
    let flags = SocketFlags::CLOEXEC;
    let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let deadline = Arc::new(Deadline::new()?);
    let (pid, pidfd) = launch::launch(program, how, theirs.as_fd(), deadline.memory())?;
    drop(theirs);
    let mut said = [0; 5];
    let (_, length) = retry_on_intr(|| recv(&control, &mut said, RecvFlags::empty()))?;
    if length == 0 || said[0] != READY {
        // It has ended, or is about to: nothing else closes its end.
        retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED))?;
        let [_, a, b, c, d] = said;
        return Err(match length {
            5 => io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d])),
            _ => io::Error::other("the program that was started does not act as a fuse"),
        });
    }
    let mounts = match how {
        Containment::Subreaper => None,
        // Where it may not be opened, its end takes a little longer.
        _ => File::open(format!("/proc/{}/ns/mnt", pid.as_raw_nonzero()))
            .ok()
            .map(|file| Arc::new(file.into())),
    };
    let root = Root { pid, pidfd: Arc::new(pidfd), how, deadline };
    Ok(Fuse { control, root, why_not_better: None, mounts })
}

fn what_is_left() -> io::Error {
    io::Error::other(
        "what a command had started may still run: its fuse was killed, or could not read /proc to find it; end it by hand, and \
         see that /proc is mounted",
    )
}

/// A command that runs under a fuse. Dropping it kills the command and all that it started.
#[derive(Debug)]
pub struct Task {
    socket: UnixStream,
    root: Root,
    own_group: bool,
    grace: Duration,
    end: Option<TaskEnd>,
    /// The fuse could not see whether all is gone.
    left: bool,
}

/// How a command ended, and with it all that it had started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEnd {
    /// The command's own status.
    pub status: ExitStatus,
    /// The deadline passed while it ran.
    pub late: bool,
}

impl Task {
    /// Waits until the command has ended, and all that it had started is gone: killed, if it did not end by itself.
    ///
    /// Cancel-safe, and may be called again: it gives the same.
    ///
    /// # Errors
    /// If the fuse cannot be heard any more, for another reason than its end; if it could not see whether all is gone.
    pub async fn wait(&mut self) -> io::Result<TaskEnd> {
        if self.left {
            return Err(what_is_left());
        }
        if let Some(end) = self.end {
            return Ok(end);
        }
        let mut said = [0; 6];
        let mut so_far = 0;
        // Six bytes that are written at once: they come together, or not at all.
        while so_far < said.len() {
            self.socket.readable().await?;
            match self.socket.try_read(&mut said[so_far..]) {
                Ok(0) => break,
                Ok(read) => so_far += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
        }
        let end = match said {
            [ENDED, how, ..] if so_far == said.len() && how & LEFT != 0 => {
                self.left = true;
                return Err(what_is_left());
            }
            [ENDED, how, a, b, c, d] if so_far == said.len() => TaskEnd {
                status: ExitStatus::from_raw(i32::from_le_bytes([a, b, c, d])),
                late: how & LATE != 0,
            },
            // Somebody killed the fuse, or this branch of it: then the whole fuse ends, with all that may be left of this one.
            _ => {
                self.root.ended().await?;
                TaskEnd { status: ExitStatus::from_raw(Signal::KILL.as_raw()), late: false }
            }
        };
        self.end = Some(end);
        Ok(end)
    }

    /// Sends a signal to the command's group, or to the command alone if it shares ours. Nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let Ok(number) = u8::try_from(signal.as_raw()) else { return };
        let byte = number | if self.own_group { TO_GROUP } else { 0 };
        // Nobody listens once it has ended; and a fuse does not let more than a few bytes wait.
        let _ended = self.socket.try_write(&[byte]);
    }

    /// Kills the command and all that it started, now. [`Task::wait`] tells when that is done.
    pub fn kill(&self) {
        // The end of our side says so, whatever else waits to be read.
        // An error says that the other side is gone.
        let _gone = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    /// Stops the command: TERM, and after the grace of its [`ChildSpec`] KILL. When this returns all of it is gone.
    ///
    /// # Errors
    /// As [`Task::wait`].
    pub async fn stop(&mut self) -> io::Result<TaskEnd> {
        if self.end.is_none() {
            self.signal(Signal::TERM);
            self.signal(Signal::CONT); // a stopped process would not notice its TERM
            match timeout(self.grace, self.wait()).await {
                Ok(ended) => return ended,
                Err(_) => self.kill(),
            }
        }
        self.wait().await
    }
}
