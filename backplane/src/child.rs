//! A running child: its end, and how to bring it about.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{self, ExitStatus},
    thread,
    time::Duration,
};

use rustix::{
    io::retry_on_intr,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{ChildSpec, SpawnError, spawner};

/// A child process, at the head of its own process group. Dropping it kills the group.
#[derive(Debug)]
pub struct Child {
    process: process::Child,
    pidfd: OwnedFd,
    grace: Duration,
    /// Set when the child was reaped. Until then its number, and its group's, are nobody else's.
    exit: Option<ExitStatus>,
}

impl Child {
    /// Starts a child. When this returns, the program itself is running (its `exec` succeeded).
    ///
    /// Cancel-safe: dropping the future kills what it may have started.
    ///
    /// # Errors
    /// [`SpawnError`] says what is wrong with the command, or what the kernel refused. Nothing runs then.
    pub async fn spawn(spec: ChildSpec) -> Result<Self, SpawnError> {
        spawner::spawn(spec).await
    }

    /// Takes charge of a process that was just forked, and kills it if that fails.
    pub(crate) fn adopt(mut process: process::Child, grace: Duration) -> io::Result<Self> {
        // By number, which is safe here: nobody has reaped the child yet.
        match pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { process, pidfd, grace, exit: None }),
            Err(error) => {
                process.kill()?;
                process.wait()?;
                Err(error.into())
            }
        }
    }

    /// The child's process number, and its group's. For people to read: to wait or to signal, use the
    /// [pidfd](Child::pidfd).
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// A descriptor of the child, readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until the child has ended, and kills what is left of its group.
    ///
    /// Cancel-safe, and may be called again: it gives the same status.
    ///
    /// # Errors
    /// An I/O error if the end cannot be watched (out of descriptors), or was taken from us: something else
    /// in this process waits for all children, or ignores SIGCHLD.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        match self.exit {
            Some(exit) => Ok(exit),
            None => {
                self.ended().await?;
                self.reap()
            }
        }
    }

    /// Stops the child within the grace of its [`ChildSpec`]; see [`Child::stop_within`].
    ///
    /// # Errors
    /// As [`Child::stop_within`].
    pub async fn stop(&mut self) -> io::Result<ExitStatus> {
        self.stop_within(self.grace).await
    }

    /// Stops the child: SIGTERM to its group; if the child has not ended after `grace`, SIGKILL. Whatever is
    /// left of the group then is killed.
    ///
    /// When this returns, the child is gone, and the rest of its group runs no further instruction of its
    /// own. Of a child that has ended it gives the status. If the future is dropped, the child has its
    /// SIGTERM, and nothing else happens until the next call.
    ///
    /// # Errors
    /// As [`Child::wait`]; also if the child has become another user's and may not be signalled.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn stop_within(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        self.signal_group(Signal::TERM)?;
        self.signal_group(Signal::CONT)?; // a stopped process would not notice its SIGTERM
        match timeout(grace, self.ended()).await {
            Ok(ended) => ended?,
            Err(_) => {
                self.signal_group(Signal::KILL)?;
                self.ended().await?;
            }
        }
        self.reap()
    }

    /// Waits until the child has ended, and leaves it unreaped.
    #[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor, which a borrow keeps")]
    async fn ended(&self) -> io::Result<()> {
        // Registered anew for every wait, so that a child may outlive the runtime that started it.
        // SAFETY: the pidfd is open, and is neither closed nor replaced while `self` is borrowed.
        let end = unsafe { AsyncFd::register_with_interest(self.pidfd(), Interest::READABLE) }?;
        while !self.has_ended()? {
            end.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// Whether the child has ended. An error means that it is not ours to signal any more.
    fn has_ended(&self) -> io::Result<bool> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::PidFd(self.pidfd()), peek)?.is_some())
    }

    /// Signals every process of the group. Only for an unreaped child: ended or not, it keeps the number
    /// taken.
    fn signal_group(&self, signal: Signal) -> io::Result<()> {
        self.has_ended()?;
        Ok(kill_process_group(Pid::from_child(&self.process), signal)?)
    }

    /// Takes the status of a child that has ended. The rest of its group goes first: after the reaping the
    /// number may be given to others.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        self.signal_group(Signal::KILL)?;
        let exit = self.process.wait()?;
        self.exit = Some(exit);
        Ok(exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_some() || self.signal_group(Signal::KILL).is_err() {
            return;
        }
        // The end takes a moment, during which a runtime's thread must not wait: a thread of its own reaps.
        // If there is none to be had, a dead entry in the process table remains until this process ends.
        if let Ok(pidfd) = self.pidfd.try_clone() {
            let reap = move || retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
            let _ = thread::Builder::new().name("reaper".into()).spawn(reap);
        }
    }
}
