//! What a server is told of its role: commands that run when it comes to lead, or to follow another one.
//!
//! One command at a time. If the role changes meanwhile, the newest one counts: those in between are left out. What runs for
//! the lead is killed when the lead is lost, before anybody else can have it.

use std::{ffi::OsString, sync::Arc, time::Duration};

use backplane::{ChildSpec, Fuse};
use membership::{Events, GroupName, Lineage, Membership, Node, NodeId, Token, What};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::{
    complain,
    fuse::{Keeper, end_without_leaving},
    run::{spawn, variables},
};

/// The commands, each given to `sh -c`.
#[derive(Clone)]
pub(crate) struct Hooks {
    pub(crate) on_lead: Option<OsString>,
    pub(crate) on_follow: Option<OsString>,
    pub(crate) limit: Duration,
    pub(crate) gate: Arc<Gate>,
}

/// What a command runs for.
#[derive(Clone, PartialEq)]
enum Role {
    None,
    Lead(Token, Lineage),
    /// Under this member, which serves here, if it said so.
    Follow(NodeId, Arc<str>, Option<Arc<str>>),
}

/// Closed before the group is left: who leaves says that it has stopped, so what runs for the lead must be gone by then.
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    /// Held while something runs for the lead.
    busy: Mutex<()>,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { open: watch::Sender::new(true), busy: Mutex::new(()) })
    }

    /// When this returns, nothing runs for the lead, and nothing will.
    pub(crate) async fn close(&self) {
        self.open.send_replace(false);
        drop(self.busy.lock().await);
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }
}

/// How long is waited before a command that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Who failed before leads for that long before it steps down, and twice as long each time; so often doubled at most.
const DOUBLED: u32 = 5;

/// Runs the commands until the node has stopped.
pub(crate) async fn follow(
    hooks: Hooks,
    node: Node,
    membership: Membership,
    fuse: Arc<Fuse>,
    lease: Duration,
) {
    let (tell, mut roles) = watch::channel(Role::None);
    let observer = observe(node.all_events(), membership.group().clone(), tell);
    let worker = async {
        let (mut done, mut failures) = (Role::None, 0_u32);
        loop {
            let role = roles.borrow_and_update().clone();
            let mut again = Duration::MAX;
            if role != done {
                done = Role::None;
                match run(&hooks, &role, &node, &membership, &fuse, lease).await {
                    Ok(true) => {
                        if matches!(role, Role::Lead(..)) {
                            failures = 0;
                        }
                        done = role;
                    }
                    Ok(false) => {}
                    Err(why) => {
                        complain(why);
                        let others = membership.view().is_some_and(|view| view.members.len() > 1);
                        again = AGAIN;
                        if matches!(role, Role::Lead(..)) && others && *roles.borrow() == role {
                            // Somebody else may be able to. But if nobody is, the lead does not go round and round.
                            let pause = match failures {
                                0 => Duration::ZERO,
                                n => AGAIN * (1 << (n - 1).min(DOUBLED)),
                            };
                            failures += 1;
                            match timeout(pause, roles.changed()).await {
                                Ok(Ok(())) => continue,
                                Ok(Err(_)) => return,
                                Err(_) => {}
                            }
                            membership.step_down().await;
                        }
                    }
                }
            }
            if let Ok(Err(_)) = timeout(again, roles.changed()).await {
                return;
            }
        }
    };
    tokio::join!(observer, worker);
}

/// Tells the role after each event.
async fn observe(mut events: Events, group: GroupName, tell: watch::Sender<Role>) {
    let mut leads = false;
    while let Some(event) = events.next().await {
        if event.group.as_ref() != Some(&group) {
            continue;
        }
        let role = match &event.what {
            What::Leading { token, lineage } => {
                leads = true;
                Role::Lead(*token, *lineage)
            }
            What::NotLeading { .. } => {
                leads = false;
                Role::None
            }
            What::View(view) => match view.leader() {
                _ if leads => continue,
                Some(leader) if leader.node != event.node && view.rank_of(event.node).is_some() => {
                    Role::Follow(leader.node, Arc::clone(&leader.name), leader.endpoint.clone())
                }
                // About to lead, or out.
                _ => Role::None,
            },
            What::Out { .. } => Role::None,
            _ => continue,
        };
        tell.send_if_modified(|told| std::mem::replace(told, role.clone()) != role);
    }
}

/// Runs the command for a role. False if the role was lost meanwhile; an error says why it must be tried again.
async fn run(
    hooks: &Hooks,
    role: &Role,
    node: &Node,
    membership: &Membership,
    fuse: &Fuse,
    lease: Duration,
) -> Result<bool, String> {
    let (name, command) = match role {
        Role::None => return Ok(true),
        Role::Lead(..) => ("--on-lead", &hooks.on_lead),
        Role::Follow(..) => ("--on-follow", &hooks.on_follow),
    };
    let Some(command) = command else { return Ok(true) };
    let mut spec = ChildSpec::new([OsString::from("sh"), "-c".into(), command.clone()]);
    // What it prints is for people.
    spec.output = backplane::Output::Stderr;
    let (mut leadership, mut open, mut _busy) = (None, hooks.gate.open.subscribe(), None);
    match role {
        Role::Lead(token, _) => {
            _busy = Some(hooks.gate.busy.lock().await);
            if !*open.borrow_and_update() {
                return Ok(false);
            }
            // It leads already, or not any more.
            let leads = timeout(Duration::ZERO, membership.until_leader()).await;
            let Ok(Ok(leads)) = leads else { return Ok(false) };
            if leads.token() != Some(*token) {
                return Ok(false);
            }
            spec.bound = true;
            spec.env.push(("PHALANX_ROLE".into(), "lead".into()));
            leadership = Some(leads);
        }
        Role::Follow(_, leader, endpoint) => {
            spec.env.push(("PHALANX_ROLE".into(), "follow".into()));
            spec.env.push(("PHALANX_LEADER".into(), (&**leader).into()));
            let endpoint = endpoint.as_deref().unwrap_or_default();
            spec.env.push(("PHALANX_LEADER_ENDPOINT".into(), endpoint.into()));
            let (host, port) = endpoint.rsplit_once(':').unwrap_or_default();
            spec.env.push(("PHALANX_LEADER_HOST".into(), host.into()));
            spec.env.push(("PHALANX_LEADER_PORT".into(), port.into()));
        }
        Role::None => {}
    }
    spec.env.extend(variables(node, membership, leadership.as_ref()));
    let keeper = leadership.clone().map(|leads| Keeper::new(leads, Arc::clone(fuse.deadline()), lease));
    let mut task = spawn(fuse, spec).await.map_err(|failure| format!("{name}: {failure}"))?;
    let lost = async {
        match &leadership {
            Some(leadership) => tokio::select! {
                _ = leadership.lost() => {}
                // An error would say that the gate is gone, which we hold.
                _ = open.wait_for(|open| !*open) => {}
            },
            None => std::future::pending().await,
        }
    };
    let failed = |what: &str| format!("{name}: {what}");
    let left = |error: std::io::Error| match role {
        Role::Lead(..) => end_without_leaving(&error),
        _ => failed(&error.to_string()),
    };
    let end = tokio::select! {
        biased;
        end = timeout(hooks.limit, task.wait()) => Some(end),
        () = lost => None,
    };
    drop(keeper);
    match end {
        Some(Ok(Ok(end))) if end.late => Ok(false),
        Some(Ok(Ok(end))) if end.status.success() => Ok(true),
        Some(Ok(Ok(end))) => Err(failed(&end.status.to_string())),
        Some(Ok(Err(error))) => Err(left(error)),
        Some(Err(_)) => {
            task.kill();
            task.wait().await.map_err(left)?;
            Err(failed(&format!("it took longer than --hook-timeout {:?} and was killed", hooks.limit)))
        }
        None => {
            task.kill();
            task.wait().await.map_err(left)?;
            Ok(false)
        }
    }
}
