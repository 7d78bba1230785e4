//! What to start, and why it could not be started.

use std::{ffi::OsString, io, path::PathBuf, time::Duration};

/// A command and how to run it.
#[derive(Clone, Debug)]
pub struct ChildSpec {
    /// The program, then its arguments. A name without a slash is looked up in `PATH`; a relative path starts
    /// from `dir`.
    pub command: Vec<OsString>,
    /// Variables to set, besides those of this process, which are inherited.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory; this process's own unless given.
    pub dir: Option<PathBuf>,
    /// Where the child's standard output goes. Its error output is ours.
    pub output: Output,
    /// Whether it reads our standard input, and not `/dev/null`. Default no.
    pub input: bool,
    /// Whether it heads a process group of its own, which then gets its signals, and not those of our terminal. Without one it
    /// is in our group, as if a shell had started it in our place. Default yes.
    pub own_group: bool,
    /// Whether it, and all that it starts, must be gone when the deadline of its [`Fuse`](crate::Fuse) passes. A
    /// [`Child`](crate::Child), which has none, ignores it. Default no.
    pub bound: bool,
    /// How long [`Child::stop`](crate::Child::stop) waits between SIGTERM and SIGKILL. Longer lets a server
    /// finish more of what it has begun, and delays whoever waits for it to be gone. Default 10 s.
    pub grace: Duration,
}

impl ChildSpec {
    /// Runs `command`, the program and its arguments, as it would run from here.
    pub fn new<S: Into<OsString>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            dir: None,
            output: Output::default(),
            input: false,
            own_group: true,
            bound: false,
            grace: Duration::from_secs(10),
        }
    }
}

/// Where a child's standard output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// To our standard output.
    #[default]
    Inherit,
    /// To our standard error: for a wrapper that prints events on its own standard output.
    Stderr,
    /// Nowhere.
    Null,
}

/// Why a child could not be started. In every case no process is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The command is empty.
    #[error("no command to run: name a program after --")]
    NoCommand,
    /// There is no such program.
    #[error("command not found: {}: install it, or give its path", .0.display())]
    NotFound(OsString),
    /// The script is there, but what its first line names is not.
    #[error("the #! line of {} names an interpreter that does not exist: install it", .0.display())]
    NoInterpreter(OsString),
    /// The file may not be executed.
    #[error("{} may not be executed: a directory, no permission (chmod +x), or mounted noexec", .0.display())]
    NotExecutable(OsString),
    /// The working directory is not there.
    #[error("no such directory to run in: {}: create it", .0.display())]
    NoDirectory(PathBuf),
    /// The kernel refused a thread, a process or a descriptor; mostly a limit (`ulimit -u`, `ulimit -n`, the
    /// pids limit of a cgroup). Trying again later may succeed.
    #[error("could not start {}", command.display())]
    System {
        /// The program.
        command: OsString,
        /// What the kernel said.
        source: io::Error,
    },
}
