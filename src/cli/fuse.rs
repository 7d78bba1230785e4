//! Wrappers: a node for which others act, all of them under a fuse, and the fuse itself.

use std::{
    convert::Infallible, ffi::OsString, mem::take, path::PathBuf, process::abort, sync::Arc, time::Duration,
};

use backplane::{ChildSpec, Containment, fuse_main};
use clap::Args;
use membership::{Deadline, Leadership, Node, Tree};
use tokio::task::JoinHandle;

use super::{
    Failure, Outcome, complain, files,
    flags::{NodeFlags, Time},
    node::start_built,
    output,
};

/// The process between a wrapper and what it starts; wrappers start it themselves.
#[derive(Args)]
pub(crate) struct FuseCommand {
    control: i32,
    deadline: i32,
    how: String,
}

impl FuseCommand {
    pub(crate) fn run(self) -> Outcome {
        let never: Infallible = fuse_main(self.control, self.deadline, &self.how)?;
        match never {}
    }
}

/// `auto`, or a kind of fuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How(Option<Containment>);

impl std::str::FromStr for How {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match Containment::named(text) {
            _ if text == "auto" => Ok(Self(None)),
            Some(how) => Ok(Self(Some(how))),
            None => Err("give auto, namespace, user-namespace or subreaper".into()),
        }
    }
}

// What `run` and `lock` have in common. (A doc comment would take the place of theirs.)
#[derive(Args)]
pub(crate) struct Wrapped {
    /// How long CMD has between TERM and KILL when this is told to end; up to 8760h.
    #[arg(long, value_name = "DUR", default_value = "10s")]
    grace: Time,
    /// What keeps all together that CMD starts: namespace (a pid namespace; needs root), user-namespace, subreaper, or auto,
    /// the first of these that this process may have.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    fuse: How,
    /// A TOML file with these settings.
    #[arg(long, env = "PHALANX_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Wrapped {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    /// Says so if what may run only once may run elsewhere at the same time.
    pub(crate) fn warn_if_alone(&self) {
        if self.node.rendezvous.is_empty() {
            complain(
                "no --rendezvous: no other node finds this one, so nobody else is kept from running this at the same time",
            );
        }
    }

    /// Starts the node, and says what it is to run. Once.
    pub(crate) async fn start(&mut self) -> Result<(Wrapper, ChildSpec), Failure> {
        let wrapper = Wrapper::start(take(&mut self.node), self.fuse).await?;
        let mut spec = ChildSpec::new(take(&mut self.command));
        spec.grace = self.grace.0;
        Ok((wrapper, spec))
    }
}

/// A node for which its children act, under its fuse.
pub(crate) struct Wrapper {
    pub(crate) node: Node,
    pub(crate) fuse: Arc<backplane::Fuse>,
    pub(crate) lease: Duration,
}

impl Wrapper {
    /// The fuse first, because neighbours want a handle of it as soon as they meet the node.
    async fn start(flags: NodeFlags, how: How) -> Result<Self, Failure> {
        let program: Vec<OsString> = ["/proc/self/exe", "fuse"].map(Into::into).into();
        let fuse = backplane::Fuse::start(program, how.0).await.map_err(|error| {
            let kind = how.0.map_or("", Containment::name);
            Failure::from(anyhow::Error::new(error).context(format!("no {kind} fuse for what this starts")))
        })?;
        files::raise_limit();
        let mut tree = Tree::new(Arc::clone(fuse.pidfd()));
        if fuse.containment() == Containment::Subreaper {
            tree = tree.with_last_word(Arc::clone(fuse.deadline()));
            if let Some(error) = fuse.why_not_better() {
                complain(format_args!(
                    "no pid namespace for what this starts ({error}): if its fuse (process {}) is killed too, orphans may \
                     live on, and others wait until the lease ends",
                    fuse.id()
                ));
            }
        }
        if let Some(mounts) = fuse.mounts() {
            tree = tree.holding(Arc::clone(mounts));
        }
        // A lease that ends while children go on would let others lead too soon; the end of this process ends them first.
        std::panic::set_hook(Box::new(|info| {
            complain(info);
            output::finish(Duration::from_millis(100));
            abort();
        }));
        let lease = flags.lease();
        let reads_again = flags.reads_again();
        let node = start_built(flags.builder(true).acts_through(tree), reads_again).await?;
        Ok(Self { node, fuse: Arc::new(fuse), lease })
    }

    /// Ends all that runs under the fuse, then leaves.
    pub(crate) async fn end(self) -> Result<(), Failure> {
        self.fuse.end().await.unwrap_or_else(|error| end_without_leaving(&error));
        self.node.leave().await;
        Ok(())
    }
}

/// Something that acts for this node may still run. So it must not leave, or step down: the process ends, and others wait until its
/// lease is over.
pub(crate) fn end_without_leaving(error: &std::io::Error) -> ! {
    complain(format_args!("{error}: this node ends without leaving, and the others wait for its lease"));
    // Nothing that acts waits for this: a thread that is new writes it, which a busy machine may keep waiting.
    output::finish(Duration::from_secs(1));
    std::process::exit(super::exit::FAILED.into())
}

/// A trace says that a command runs in every so manieth turn, a few times a lease.
const SAYS_EVERY: u64 = 5;

/// Moves the fuse's deadline on for as long as a leadership lasts; the one that was set last stays when this is dropped.
pub(crate) struct Keeper(JoinHandle<()>);

impl Keeper {
    pub(crate) fn new(leadership: Leadership, deadline: Arc<Deadline>, lease: Duration) -> Self {
        // What has to be killed must be gone when the lease ends; renewals come long before that.
        let margin =
            (lease / 8).clamp(Duration::from_millis(2), Duration::from_millis(250)).as_nanos() as u64;
        let every = (lease / 20).clamp(Duration::from_millis(1), Duration::from_millis(100));
        let keep = move |says: bool| match leadership.until_ns() {
            Some(until) => {
                deadline.set(until.saturating_sub(margin));
                if says {
                    // For the trace: what runs under the fuse acts all the time.
                    leadership.act("run");
                }
            }
            None => deadline.set(0),
        };
        // Before the first command asks.
        keep(true);
        Self(tokio::spawn(async move {
            for turn in 1u64.. {
                tokio::time::sleep(every).await;
                keep(turn.is_multiple_of(SAYS_EVERY));
            }
        }))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}
