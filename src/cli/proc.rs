//! Other processes of this very binary, whose events are read from their standard output.

use std::{path::Path, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use super::Failure;

/// A child process with a name; killed when dropped.
pub(crate) struct Proc {
    child: Child,
    pid: Option<Pid>,
}

/// An event that a named process printed.
pub(crate) struct Said {
    pub(crate) who: usize,
    pub(crate) event: Value,
}

impl Proc {
    /// Starts `phalanx ARGS --json`; what it prints goes to `said` under the number `who`.
    pub(crate) fn start(args: &[String], who: usize, said: mpsc::Sender<Said>) -> Result<Self, Failure> {
        let exe = std::env::current_exe()?;
        Self::start_exe(&exe, args, who, said)
    }

    fn start_exe(exe: &Path, args: &[String], who: usize, said: mpsc::Sender<Said>) -> Result<Self, Failure> {
        let mut command = Command::new(exe);
        command.args(["--json", "--die-with-parent"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        // Ctrl-C at a terminal is meant for us: we stop them in order.
        command.process_group(0);
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(out) = child.stdout.take() {
            tokio::spawn(async move {
                let mut lines = BufReader::new(out).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    // Lines that are no JSON are a child's own chatter.
                    if let Ok(event) = serde_json::from_str(&line)
                        && said.send(Said { who, event }).await.is_err()
                    {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, pid })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.map_or(0, |pid| pid.as_raw_nonzero().get())
    }

    /// Sends a signal; nothing happens if the process is gone already.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // It may have ended by itself in the meantime.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it is gone.
    pub(crate) async fn gone(&mut self) -> Result<(), Failure> {
        self.child.wait().await?;
        self.pid = None;
        Ok(())
    }
}
