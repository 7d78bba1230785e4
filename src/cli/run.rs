//! `run`: an unmodified server as a member of a group.

use std::{
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::ExitStatus,
    time::Duration,
};

use backplane::{Child, ChildSpec, Output, PortProbe, SpawnError};
use clap::Args;
use tokio::time::Instant;

use super::{
    Failure, Outcome, events, exit,
    flags::{NodeFlags, Time},
    join::{LEAVE_LIMIT, Stops, start_wrapper},
};

/// Runs an unmodified server as a member of a group: `phalanx run --group G --endpoint ADDR -- CMD…`
///
/// Starts CMD, joins GROUP once its port answers, leaves when it exits, and stops it on TERM with all that it started.
/// Workers that CMD forks survive a SIGKILL of this wrapper, though not a TERM: run servers in the foreground that do not fork,
/// for instance nginx with `master_process off`. The exit code is CMD's own. If standard output is lost, because its reader went away
/// or a disk is full, CMD goes on serving, nothing more is told, and the exit code is 1 where it
/// would have been 0.
///
/// Example: phalanx run --group kv-a --endpoint 127.0.0.1:6401 --rendezvous file:/tmp/rdv -- redis-server --port 6401
#[derive(Args)]
pub(crate) struct Run {
    /// The group to join.
    #[arg(long, short)]
    group: String,
    /// Where CMD serves; routers forward to it.
    #[arg(long, value_name = "ADDR")]
    endpoint: Option<String>,
    /// How long CMD may take until its port answers; up to 8760h.
    #[arg(long, value_name = "DUR", default_value = "60s")]
    start_timeout: Time,
    /// How long CMD has between TERM and KILL; up to 8760h.
    #[arg(long, value_name = "DUR", default_value = "10s")]
    grace: Time,
    /// A TOML file with these settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
    /// The server and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let endpoint = self.endpoint.as_deref().map(resolve).transpose()?;
        if let Some(at) = endpoint {
            free(at).await?;
        }
        let mut stops = Stops::new()?;
        let node = start_wrapper(self.node).await?;
        let name = self.command.first().map(|program| program.display().to_string()).unwrap_or_default();
        let mut spec = ChildSpec::new(self.command);
        spec.grace = self.grace.0;
        if json {
            spec.output = Output::Stderr;
        }
        let mut child = match Child::spawn(spec).await {
            Ok(child) => child,
            Err(error) => {
                node.leave().await;
                let wrong = matches!(error, SpawnError::NoCommand | SpawnError::NotFound(_));
                let code = if wrong { exit::USAGE } else { exit::FAILED };
                return Err(Failure::new(code, error.to_string()));
            }
        };
        let printer = tokio::spawn(print_events(node.all_events(), json));
        let status = if let Some(at) = endpoint {
            let deadline = Instant::now() + self.start_timeout.0;
            tokio::select! {
                ready = backplane::wait_for_port(at, Duration::from_millis(20), deadline) => match ready {
                    Ok(()) => None,
                    Err(error) => {
                        child.stop().await?;
                        node.leave().await;
                        return Err(Failure::new(exit::FAILED, error.to_string()));
                    }
                },
                status = child.wait() => {
                    let status = status?;
                    if status.success() {
                        node.leave().await;
                        let why = format!("{name} ended before its port {at} answered: run it in the foreground");
                        return Err(Failure::new(exit::FAILED, why));
                    }
                    Some(status)
                }
                () = stops.next() => Some(child.stop().await?),
            }
        } else {
            None
        };
        let status = match status {
            Some(status) => status,
            None => {
                let endpoint = self.endpoint.filter(|_| endpoint.is_some());
                let membership =
                    node.join(&self.group, endpoint).await.map_err(|e| Failure::usage(e.to_string()))?;
                let status = tokio::select! {
                    status = child.wait() => Some(status?),
                    () = stops.next() => None,
                };
                let stop = async {
                    match status {
                        Some(status) => Ok(status),
                        None => {
                            // Out of the routers' sight first, then down.
                            let _ = tokio::time::timeout(LEAVE_LIMIT, membership.leave()).await;
                            child.stop().await
                        }
                    }
                };
                tokio::select! {
                    status = stop => status?,
                    () = stops.next() => std::process::exit(130),
                }
            }
        };
        node.leave().await;
        let _ = tokio::time::timeout(LEAVE_LIMIT, printer).await;
        Ok(code_of(status))
    }
}

/// How long an address is asked whether anybody answers there.
const PROBE: Duration = Duration::from_millis(100);

async fn print_events(mut events: membership::Events, json: bool) {
    while let Some(event) = events.next().await {
        // A wrapper goes on for its server's sake even if nobody reads this.
        let _ = events::print(&event, json);
    }
}

/// Who answers before the server is started is somebody else: requests would go there. One that is just going away gets
/// a moment.
async fn free(at: SocketAddr) -> Result<(), Failure> {
    for _ in 0..20 {
        if PortProbe::new(at, PROBE).check().await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(PROBE).await;
    }
    let why = format!("something already answers at {at}: stop it, or give another --endpoint");
    Err(Failure::new(exit::FAILED, why))
}

fn resolve(endpoint: &str) -> Result<SocketAddr, Failure> {
    let wrong = |why: String| Failure::usage(format!("--endpoint {endpoint}: {why}; give HOST:PORT"));
    let mut found = endpoint.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    let at = found.next().ok_or_else(|| wrong("no such host".into()))?;
    if at.port() == 0 { Err(wrong("port 0 is no place to serve".into())) } else { Ok(at) }
}

/// The child's own code, or 128 and the signal that ended it, as shells do.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    code.and_then(|c| u8::try_from(c & 0xff).ok()).unwrap_or(exit::FAILED)
}
