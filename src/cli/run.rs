//! `run`: an unmodified server as a member of a group.

use std::{
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use backplane::{ChildSpec, Fuse, Output, PortProbe, SpawnError, Task};
use clap::Args;
use membership::{GroupName, JoinError, Leadership, Membership, Node};
use tokio::{sync::watch, time::Instant};

use super::{
    Failure, Outcome, at_least_one, events, exit,
    flags::Time,
    fuse::{Wrapped, Wrapper},
    health::{self, Check, Patience},
    hooks::{self, Gate, Hooks},
    lock::{Exclusive, told_early},
    node::{LEAVE_LIMIT, Stops},
    output,
};

/// Runs an unmodified server as a member of a group: `phalanx run --group G --endpoint ADDR -- CMD…`
///
/// Starts CMD, joins GROUP once its port answers, leaves when it exits, and stops it on TERM. All that CMD starts ends with this
/// wrapper, also when that is killed with SIGKILL, and daemons too; CMD itself must stay in the foreground. With --exclusive CMD
/// runs only while this node leads GROUP. The exit code is CMD's own; 5 if --exclusive and the leadership was lost. If standard
/// output is lost, because its reader went away or a disk is full, CMD goes on serving, nothing more is told, and the exit code is 1
/// where it would have been 0. A reader that only stalls holds up nothing, and hears at last how many events it missed.
///
/// CMD and hooks find PHALANX_GROUP and PHALANX_NODE in their environment, hooks also PHALANX_ROLE, PHALANX_VIEW and
/// PHALANX_LINEAGE, --on-lead and an exclusive CMD PHALANX_TOKEN (send it along with each effect), --on-follow PHALANX_LEADER and
/// PHALANX_LEADER_ENDPOINT (also _HOST and _PORT).
///
/// Example: phalanx run --group kv-a --endpoint 127.0.0.1:6401 --rendezvous file:/tmp/rdv -- redis-server --port 6401
#[derive(Args)]
pub(crate) struct Run {
    /// The group to join.
    #[arg(long, short)]
    group: String,
    /// Where CMD serves; routers forward to it. Of a name the first address at the start counts, and is what others are told.
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Run CMD only while this node leads the group, once. It is killed with all that it started before another one can lead.
    #[arg(long, conflicts_with_all = ["health", "on_lead", "on_follow"])]
    exclusive: bool,
    /// Whether CMD does its work: tcp:HOST:PORT, http:HOST:PORT/PATH (200 to 399), redis:HOST:PORT (PING) or exec:COMMAND (exits
    /// with 0). While it does not, this node is out of the group; then it comes back as the last.
    #[arg(long, value_name = "CHECK")]
    health: Option<Check>,
    /// How often that is asked; 1ms to 8760h.
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = some_time)]
    health_every: Time,
    /// How long an answer may take; 1ms to 8760h.
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = some_time)]
    health_timeout: Time,
    /// After how many failures in a row it is unhealthy.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    health_failures: usize,
    /// After how many successes in a row it is healthy again.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    health_successes: usize,
    /// What to run when this node comes to lead, with `sh -c`. It is killed when the lead is lost, before another one can have it.
    /// If it fails this node steps down.
    #[arg(long, value_name = "COMMAND")]
    on_lead: Option<OsString>,
    /// What to run when another node leads, with `sh -c`; also when that changes.
    #[arg(long, value_name = "COMMAND")]
    on_follow: Option<OsString>,
    /// How long these two may take; 1ms to 8760h. One runs at a time, and if the role changes meanwhile only the newest counts.
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = some_time)]
    hook_timeout: Time,
    /// How long CMD may take until its port answers; 1ms to 8760h.
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = some_time)]
    start_timeout: Time,
    #[command(flatten)]
    wrapped: Wrapped,
}

/// A duration in which something can happen.
fn some_time(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    let fits = time.0 >= Duration::from_millis(1);
    if fits { Ok(time) } else { Err(format!("`{text}` is too short: give 1ms to 8760h")) }
}

impl Run {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        // Before a server is started that could join nothing.
        self.group.parse::<GroupName>().map_err(|error| Failure::usage(format!("--group: {error}")))?;
        self.wrapped.configure()
    }

    pub(crate) async fn run(mut self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        let endpoint = self.endpoint.as_deref().map(|at| resolve(at, 0)).transpose()?;
        if self.exclusive {
            self.wrapped.warn_if_alone();
        }
        let started = async {
            if let Some(at) = endpoint {
                free(at).await?;
            }
            self.wrapped.start().await
        };
        let (wrapper, mut spec) = stops.unless(started).await?.ok_or_else(told_early)?;
        if json {
            spec.output = Output::Stderr;
        }
        // Routers take no names.
        let serves = endpoint.map(|at| (at.to_string(), at));
        if self.exclusive {
            let serves = serves.map(|(text, at)| (text, at, self.start_timeout.0));
            let exclusive = Exclusive { wrapper, group: self.group, serves, once: false, prints: true };
            return exclusive.run(spec, stops, json).await;
        }
        let printer = tokio::spawn(events::print_all(wrapper.node.all_events(), json));
        let outcome = Box::pin(self.serve(&wrapper, spec, serves, stops)).await;
        wrapper.end().await?;
        // What nobody reads by then is lost, which is said at the end.
        let _unread = tokio::time::timeout(output::PATIENCE, printer).await;
        outcome
    }

    /// Runs the server to its end.
    async fn serve(
        &self,
        wrapper: &Wrapper,
        mut spec: ChildSpec,
        serves: Option<(String, SocketAddr)>,
        stops: Stops,
    ) -> Outcome {
        let name = spec.command.first().map(|program| program.display().to_string()).unwrap_or_default();
        spec.env.push(("PHALANX_GROUP".into(), self.group.clone().into()));
        spec.env.push(("PHALANX_NODE".into(), wrapper.node.name().into()));
        let mut server = spawn(&wrapper.fuse, spec).await?;
        if let Some((_, at)) = &serves {
            let deadline = Instant::now() + self.start_timeout.0;
            tokio::select! {
                ready = backplane::wait_for_port(*at, Duration::from_millis(20), deadline) => {
                    if let Err(error) = ready {
                        server.stop().await?;
                        return Err(Failure::new(exit::FAILED, error.to_string()));
                    }
                }
                end = server.wait() => {
                    let end = end?;
                    if end.status.success() {
                        let why = format!("{name} ended before its port {at} answered: run it in the foreground");
                        return Err(Failure::new(exit::FAILED, why));
                    }
                    return Ok(code_of(end.status));
                }
                () = stops.told() => return Ok(code_of(server.stop().await?.status)),
            }
        }
        let endpoint = serves.map(|(text, _)| text);
        let join = || wrapper.node.join(&self.group, endpoint.clone());
        let mut membership = join().await.map_err(|error| Failure::usage(error.to_string()))?;
        let gate = Gate::new();
        let _hooks = self.hooks(&gate).map(|hooks| {
            let (node, fuse) = (wrapper.node.clone(), Arc::clone(&wrapper.fuse));
            Running(tokio::spawn(hooks::follow(hooks, node, membership.clone(), fuse, wrapper.lease)))
        });
        let (tell, mut healthy) = watch::channel(true);
        let _asking = self.health.clone().map(|check| {
            let patience = Patience {
                every: self.health_every.0,
                limit: self.health_timeout.0,
                failures: self.health_failures,
                successes: self.health_successes,
            };
            Running(tokio::spawn(health::watch(check, patience, Arc::clone(&wrapper.fuse), tell)))
        });
        let (mut joining, mut joined) = (true, std::pin::pin!(wrapper.node.joined()));
        let ended = loop {
            tokio::select! {
                end = server.wait() => break Some(end?),
                outcome = &mut joined, if joining => {
                    joining = false;
                    if let Err(error @ JoinError::Timeout { .. }) = outcome {
                        server.stop().await?;
                        return Err(Failure::new(exit::NOT_JOINED, error.to_string()));
                    }
                }
                () = stops.told() => break None,
                Ok(()) = healthy.changed() => {
                    if *healthy.borrow_and_update() {
                        gate.open();
                        // An error says that the node has stopped: then the server is all that is left.
                        if let Ok(again) = join().await {
                            membership = again;
                        }
                    } else {
                        gate.close().await;
                        let membership = membership.clone();
                        let mut leaving = Box::pin(async move { membership.leave().await });
                        // The wish is what counts, before that of a server that is healthy again; nobody has to wait for the view.
                        if tokio::time::timeout(Duration::ZERO, &mut leaving).await.is_err() {
                            tokio::spawn(leaving);
                        }
                    }
                }
            }
        };
        // No hook acts on while the next leader begins.
        gate.close().await;
        let end = match ended {
            Some(end) => end,
            None => {
                // Out of the routers' sight first, then down; a cluster that is blocked lets nobody out of a group.
                let _blocked = tokio::time::timeout(LEAVE_LIMIT / 4, membership.leave()).await;
                server.stop().await?
            }
        };
        Ok(code_of(end.status))
    }

    fn hooks(&self, gate: &Arc<Gate>) -> Option<Hooks> {
        let Self { on_lead, on_follow, .. } = self;
        (on_lead.is_some() || on_follow.is_some()).then(|| Hooks {
            on_lead: on_lead.clone(),
            on_follow: on_follow.clone(),
            limit: self.hook_timeout.0,
            gate: Arc::clone(gate),
        })
    }
}

/// A task that ends with this.
struct Running(tokio::task::JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a command, with the right exit code if that fails.
pub(crate) async fn spawn(fuse: &Fuse, spec: ChildSpec) -> Result<Task, Failure> {
    fuse.spawn(spec).await.map_err(|error| {
        let wrong = matches!(error, SpawnError::NoCommand | SpawnError::NotFound(_));
        let code = if wrong { exit::USAGE } else { exit::FAILED };
        Failure::new(code, error.to_string())
    })
}

/// What a command is told of the group, and of the lead that it acts under.
pub(crate) fn variables(
    node: &Node,
    membership: &Membership,
    leadership: Option<&Leadership>,
) -> Vec<(OsString, OsString)> {
    let mut all =
        vec![("PHALANX_GROUP", membership.group().to_string()), ("PHALANX_NODE", node.name().to_owned())];
    if let Some(view) = membership.view() {
        all.push(("PHALANX_VIEW", view.id.get().to_string()));
        all.push(("PHALANX_LINEAGE", view.lineage.to_string()));
    }
    if let Some(token) = leadership.and_then(Leadership::token) {
        all.push(("PHALANX_TOKEN", token.get().to_string()));
    }
    all.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// How long an address is asked whether anybody answers there.
const PROBE: Duration = Duration::from_millis(100);

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

/// Where others reach what serves here. `port` is meant where 0 is given.
pub(crate) fn resolve(endpoint: &str, port: u16) -> Result<SocketAddr, Failure> {
    let wrong = |why: String| Failure::usage(format!("--endpoint {endpoint}: {why}; give HOST:PORT"));
    if endpoint.len() > Node::MAX_ENDPOINT {
        let size = endpoint.len();
        return Err(Failure::usage(format!("--endpoint: {size} bytes are too many; give HOST:PORT")));
    }
    let mut found = endpoint.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    let mut at = found.next().ok_or_else(|| wrong("no such host".into()))?;
    if at.port() == 0 {
        at.set_port(port);
    }
    if at.port() == 0 {
        return Err(wrong("port 0 is no place to serve".into()));
    }
    if at.ip().is_unspecified() {
        return Err(Failure::usage(format!(
            "--endpoint {endpoint}: that is no address that others can connect to: give one of this machine"
        )));
    }
    Ok(at)
}

/// The child's own code, or 128 and the signal that ended it, as shells do.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    code.and_then(|c| u8::try_from(c & 0xff).ok()).unwrap_or(exit::FAILED)
}
