//! Proof of death on one host: a process that is gone is known to be gone at once, without waiting for a lease.
//!
//! That two processes share a host is shown, and not inferred from addresses or names. Each listens on a local socket
//! with an unguessable name, which it tells over its connections with other nodes. Whoever connects to it exchanges
//! memory with it: each side makes a piece of anonymous memory and hands it over (only processes on one kernel can), then
//! writes a random number into its own; the number that a side finds in the other's memory goes back over the connection
//! between the *nodes*. When our own number comes back from a node, that node's process is the one at the other end of
//! the local socket, and the kernel's handle of that process (its pidfd, which no later process can inherit) is a handle
//! of the node's process.
//!
//! A readable pidfd says that the whole process is gone: all its threads, so every incarnation that lived in it. But it
//! says so only after the kernel has freed the memory of the dead, 70 ms for each GiB. So with its pidfd each side also
//! gives the other a *life line* (`membership_sync::LifeLines`), which the kernel cuts before. That is only a wake-up, as a
//! thread may end alone; the proof is that all threads of the process are exiting ([`threads`]). One thread per process
//! waits for wake-ups and looks ([`wake`]), away from the processors where processes end ([`turn`]); the pidfd goes on being watched and proves the death where that fails.
//!
//! What acts for a node may be more than its process: a wrapper's death leaves its children. So a wrapper that runs them
//! under a fuse also gives a handle of the fuse ([`Tree`]), and its death is proved once both are gone; a wrapper that cannot
//! say when its children are gone says so, and its lease is waited out.
//!
//! That connections break, or that nobody listens any more, proves nothing. An incarnation that ends within a living
//! process is no death: its pidfd stays silent.

mod threads;
mod turn;
mod wake;
mod whom;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::net as unix,
    },
    rc::Rc,
    sync::{Arc, Once},
    time::Duration,
};

use membership_proto::ClusterView;
use membership_sync::{Deadline, GivenLine, LifeLine, LifeLines};
use membership_types::NodeId;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{pread, pwrite},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
    process::{PidfdFlags, getpid, getuid, pidfd_open},
    thread::gettid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use self::{
    threads::{Threads, pid_of},
    wake::{Life, Waking, Woken},
    whom::to_meet,
};
use crate::{clock, metrics::Counts, transport::Transport};

/// How long one attempt to show that two processes share a host may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pauses before the attempts: the other side may not know of our connection yet.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(2)];
/// After this a node that came into a view meets others.
const SETTLED: Duration = Duration::from_millis(50);
/// How many strangers are met on the local socket at once.
const MEETINGS: usize = 64;
/// How many processes are watched.
const WATCHED: usize = 4096;
/// A node that was never in a view, or is in none any more, is watched for this long.
const KEPT: Duration = Duration::from_secs(60);
/// On the local socket: a node id, the number of a life line, and what of the following comes with it besides the shared
/// memory and a pidfd, in this order.
const CARD: usize = 20;
/// The memory of life lines.
const LINE: u32 = 1;
/// A pidfd of the fuse, under which others act for the node.
const TREE: u32 = 2;
/// Memory in which the fuse says last that nobody is left.
const LAST_WORD: u32 = 4;
/// Something to hold until the fuse is dead.
const HOLD: u32 = 8;
/// Others act for the node, and nobody can say when they are gone.
const UNKNOWN: u32 = 16;
const DESCRIPTORS: usize = 6;
/// How many life lines a neighbour is given. It uses one; which one, only it knows if we met more than once.
const LINES_PER_NODE: usize = 4;

/// The processes on this host that are watched. A cheap handle; lives on the control thread.
#[derive(Clone)]
pub(crate) struct Neighbours(Rc<Inner>);

struct Inner {
    listener: RefCell<Option<unix::UnixListener>>,
    /// Nodes that may be on this host, that we connected to, and that were not met.
    not_met: RefCell<BTreeMap<NodeId, String>>,
    /// Those of the view whom this node is to meet.
    wanted: RefCell<BTreeSet<NodeId>>,
    stage: Cell<Stage>,
    /// The control thread is to go before others; and whether it does because of that.
    preferred: Cell<Option<bool>>,
    /// Those that others may watch.
    lines: Option<&'static LifeLines>,
    acts: Acts,
    awaited: RefCell<Vec<Awaited>>,
    watched: RefCell<BTreeMap<NodeId, Watch>>,
}

/// How far a node is in its view.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is in none: no proof of it is worth anything, and the exchange with each neighbour would delay it.
    Out,
    /// It came a moment ago.
    Settling,
    Settled,
}

/// A number that must come back from a node.
struct Awaited {
    from: NodeId,
    number: [u8; 16],
    shown: oneshot::Sender<()>,
}

struct Watch {
    task: AbortHandle,
    since: u64,
    /// What it may watch of us.
    given: Vec<GivenLine>,
}

/// The processes other than its own that act for a node, all under one process that outlives them: their fuse.
#[derive(Clone, Debug)]
pub struct Tree {
    fuse: Arc<OwnedFd>,
    last_word: Option<Arc<Deadline>>,
    hold: Option<Arc<OwnedFd>>,
}

impl Tree {
    /// A tree that is gone once its fuse is, because the kernel ends it so: the fuse is the first process of a pid namespace.
    /// `fuse` is its pidfd.
    pub fn new(fuse: Arc<OwnedFd>) -> Self {
        Self { fuse, last_word: None, hold: None }
    }

    /// The end of the fuse proves nothing unless it says last, in this memory, that nobody is left.
    pub fn with_last_word(mut self, memory: Arc<Deadline>) -> Self {
        self.last_word = Some(memory);
        self
    }

    /// Neighbours hold this until the fuse is dead, so that the dying need not free it.
    pub fn holding(mut self, hold: Arc<OwnedFd>) -> Self {
        self.hold = Some(hold);
        self
    }
}

/// Who acts for this node.
#[derive(Clone, Debug, Default)]
pub(crate) enum Acts {
    /// This process, and nobody else.
    #[default]
    Itself,
    /// These, too.
    Through(Tree),
    /// Others, too, and nobody can say when they are gone.
    Unknown,
}

/// Who acts for another node.
#[derive(Debug)]
enum TheirActs {
    Itself,
    Through { fuse: OwnedFd, last_word: Option<OwnedFd>, hold: Option<Held> },
    Unknown,
}

/// Letting go of it may take milliseconds, for which the control thread has no time.
#[derive(Debug)]
struct Held(Option<OwnedFd>);

impl Drop for Held {
    fn drop(&mut self) {
        let held = self.0.take();
        // Without a thread it is dropped here, late as that may be.
        let _refused = std::thread::Builder::new().name("phalanx-release".into()).spawn(move || drop(held));
    }
}

/// What a process at the other end of the local socket gives of itself.
struct Card {
    node: NodeId,
    memory: OwnedFd,
    pidfd: OwnedFd,
    /// The memory of its life lines, and the number of ours.
    line: Option<(OwnedFd, u32)>,
    acts: TheirActs,
}

/// A node whose process is known.
struct Met {
    node: NodeId,
    pidfd: OwnedFd,
    line: Option<(OwnedFd, u32)>,
    acts: TheirActs,
    given: Option<GivenLine>,
}

/// Where processes on this host can meet this one: a local socket whose name nobody can guess.
pub(crate) struct Door {
    /// What other nodes are told.
    pub(crate) name: String,
    listener: unix::UnixListener,
    lines: Option<&'static LifeLines>,
    acts: Acts,
}

impl Door {
    pub(crate) fn open(acts: Acts) -> io::Result<Self> {
        let name = format!("phalanx-{:032x}", u128::from_le_bytes(random()?));
        let addr = unix::SocketAddr::from_abstract_name(&name)?;
        let listener = unix::UnixListener::bind_addr(&addr)?;
        listener.set_nonblocking(true)?;
        // Here, so that the control thread need not wait for the thread that begins with it.
        let life = wake::life();
        // Of no use where our death proves nothing.
        let lines = life.filter(|_| !matches!(acts, Acts::Unknown)).map(|life| life.lines);
        Ok(Self { name, listener, lines, acts })
    }
}

impl Neighbours {
    pub(crate) fn new(door: Door) -> Self {
        let Door { name: _, listener, lines, acts } = door;
        let listener = RefCell::new(Some(listener));
        Self(Rc::new(Inner {
            listener,
            not_met: RefCell::default(),
            wanted: RefCell::default(),
            stage: Cell::new(Stage::Out),
            preferred: Cell::new(None),
            lines,
            acts,
            awaited: RefCell::default(),
            watched: RefCell::default(),
        }))
    }

    /// The coordinator of a view and its heir act first when somebody dies. If `me` is one of them, it is to run at once when
    /// that happens. If both are on this host, and none is `me`, they need nothing of this process, and it does not compete
    /// with them for a moment. And seniors have more to do than others, always.
    pub(crate) fn act_by_rank(&self, me: NodeId, view: &ClusterView) {
        let first_of = |many| view.members.iter().take(many).map(|node| node.id);
        let nodes: Vec<NodeId> = first_of(2).collect();
        let here = |node: &NodeId| *node != me && self.is_watched(*node);
        if let Some(life) = wake::life() {
            life.set_courteous(!nodes.is_empty() && nodes.iter().all(here));
            life.set_prompt(nodes.contains(&me));
        }
        self.set_preferred(first_of(whom::SENIORS).any(|node| node == me));
    }

    fn set_preferred(&self, preferred: bool) {
        match (self.0.preferred.get(), preferred) {
            (None, true) => self.0.preferred.set(Some(turn::set_preferred(true))),
            (Some(done), false) => {
                if done {
                    turn::set_preferred(false);
                }
                self.0.preferred.set(None);
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Meets whoever connects, for as long as the control thread lives.
    pub(crate) fn serve(&self, transport: Transport) {
        let Some(listener) = self.0.listener.take() else { return };
        let neighbours = self.clone();
        spawn_local(async move {
            let listener = match UnixListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::warn!(%error, "deaths on this host cannot be proved: leases are waited out");
                    return;
                }
            };
            let places = Arc::new(Semaphore::new(MEETINGS));
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        // Beyond the limit connections are closed; who is honest tries again.
                        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                        let (neighbours, transport) = (neighbours.clone(), transport.clone());
                        spawn_local(async move {
                            neighbours.attempt(stream, None, &transport).await;
                            drop(place);
                        });
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
    }

    /// This node is in no view any more.
    pub(crate) fn out_of_view(&self) {
        self.set_preferred(false);
        self.0.stage.set(Stage::Out);
        self.0.wanted.take();
        self.0.not_met.take();
    }

    /// This view is installed: meets those of it that are to be met and were not.
    pub(crate) fn in_view(&self, view: &ClusterView, transport: &Transport) {
        self.0.wanted.replace(to_meet(view, transport.me()));
        if self.0.stage.get() == Stage::Out {
            self.0.stage.set(Stage::Settling);
            let (neighbours, transport) = (self.clone(), transport.clone());
            let crowd = whom::spread(view);
            spawn_local(async move {
                // What begins with the view goes first; and not all of very many do this at once.
                let random = u128::from_le_bytes(random().unwrap_or_default());
                let turn = Duration::from_nanos((random % (crowd.as_nanos() + 1)) as u64);
                tokio::time::sleep(SETTLED + turn).await;
                if neighbours.0.stage.get() == Stage::Settling {
                    neighbours.0.stage.set(Stage::Settled);
                    neighbours.meet_wanted(&transport);
                }
            });
        }
        self.meet_wanted(transport);
    }

    fn is_wanted(&self, node: NodeId) -> bool {
        self.0.stage.get() == Stage::Settled && self.0.wanted.borrow().contains(&node)
    }

    fn meet_wanted(&self, transport: &Transport) {
        let not_met = self.0.not_met.take();
        for (node, name) in not_met {
            self.meet(transport, node, name);
        }
    }

    /// A node that we connected to says that its process can be met at `name`. If that is on another host, nothing is
    /// there.
    pub(crate) fn meet(&self, transport: &Transport, node: NodeId, name: String) {
        if !self.is_wanted(node) {
            let mut not_met = self.0.not_met.borrow_mut();
            if not_met.len() < WATCHED {
                not_met.insert(node, name);
            }
            return;
        }
        let Ok(addr) = unix::SocketAddr::from_abstract_name(&name) else { return };
        if self.is_watched(node) {
            return;
        }
        let (neighbours, transport) = (self.clone(), transport.clone());
        spawn_local(async move {
            for pause in PAUSES {
                tokio::time::sleep(pause).await;
                if neighbours.is_watched(node) || !transport.is_linked(node) {
                    return;
                }
                // A local connection is made at once, or refused.
                let stream = unix::UnixStream::connect_addr(&addr).and_then(|stream| {
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream)
                });
                match stream {
                    Ok(stream) => neighbours.attempt(stream, Some(node), &transport).await,
                    Err(error) => {
                        tracing::trace!(%node, %error, "not on this host");
                        return;
                    }
                }
            }
        });
    }

    async fn attempt(&self, stream: UnixStream, expected: Option<NodeId>, transport: &Transport) {
        match timeout(ATTEMPT, self.exchange(stream, expected, transport)).await {
            Ok(Ok(met)) => self.watch(met, transport),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a process on this host could not be shown to be a node")
            }
            Err(_) => tracing::debug!("a process on this host did not show in time that it is a node"),
        }
    }

    /// Both sides do the same. Gives the node at the other end of the local socket, and what tells of its process.
    async fn exchange(
        &self,
        mut stream: UnixStream,
        expected: Option<NodeId>,
        transport: &Transport,
    ) -> io::Result<Met> {
        let peer = stream.peer_cred()?;
        if peer.uid() != getuid().as_raw() {
            return Err(refused("it runs as another user"));
        }
        let me = transport.me();
        let memory = memfd_create("phalanx-number", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, 16)?;
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let given = self.0.lines.and_then(|lines| Some((lines.memory(), lines.give()?)));
        let line = given.as_ref().map(|(memory, line)| (*memory, line.number()));
        send_card(&stream, me, memory.as_fd(), own.as_fd(), line, &self.0.acts).await?;
        let Card { node, memory: their_memory, pidfd: sent_pidfd, line, acts } =
            receive_card(&stream).await?;
        if expected.is_some_and(|expected| expected != node) {
            return Err(refused("it is another incarnation by now"));
        }
        let pidfd = match peer_pidfd(&stream) {
            Ok(pidfd) => pidfd,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EINVAL)) => {
                checked_pidfd(sent_pidfd, peer.pid())?
            }
            Err(error) => return Err(error),
        };
        // Only now, with the other's memory in hand and ours in the other's: what is read is shared, and no copy.
        let number: [u8; 16] = random()?;
        let (shown, came_back) = oneshot::channel();
        let waiting = Awaiting { neighbours: self, number };
        self.0.awaited.borrow_mut().push(Awaited { from: node, number, shown });
        pwrite(&memory, &number, 0)?;
        stream.write_all(&[1]).await?;
        stream.read_exact(&mut [0]).await?;
        let mut found = [0; 16];
        if pread(&their_memory, &mut found, 0)? != found.len() {
            return Err(refused("it shares no memory"));
        }
        // The connection between the nodes may still be on its last step.
        while !transport.send_shown(node, found) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        came_back.await.map_err(|_| refused("it was given up"))?;
        drop(waiting);
        if transport.me() != me {
            return Err(refused("this node is another incarnation by now"));
        }
        Ok(Met { node, pidfd, line, acts, given: given.map(|(_, line)| line) })
    }

    /// A node says which number it found in the memory that we share with it.
    pub(crate) fn on_shown(&self, from: NodeId, number: [u8; 16]) {
        let mut awaited = self.0.awaited.borrow_mut();
        if let Some(at) = awaited.iter().position(|a| a.from == from && a.number == number) {
            // The attempt may have timed out.
            let _given_up = awaited.swap_remove(at).shown.send(());
        }
    }

    fn is_watched(&self, node: NodeId) -> bool {
        self.0.watched.borrow().contains_key(&node)
    }

    /// From now on the death of the process is a proof of the node's.
    fn watch(&self, met: Met, transport: &Transport) {
        let Met { node, pidfd, line, acts, given } = met;
        let mut watched = self.0.watched.borrow_mut();
        if let Some(watch) = watched.get_mut(&node) {
            // It may have taken the line of this meeting, and not that of the other one.
            watch.given.extend(given.filter(|_| watch.given.len() < LINES_PER_NODE));
            return;
        }
        if watched.len() == WATCHED {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    "more than {WATCHED} nodes on this host: the leases of the others are waited out"
                )
            });
            return;
        }
        tracing::debug!(%node, "shown to be on this host: its death will be proved");
        let waking = line.and_then(|(memory, number)| match follow(&pidfd, memory.as_fd(), number) {
            Ok(waking) => waking,
            Err(error) => {
                only_by_pidfd(&error);
                None
            }
        });
        if let TheirActs::Unknown = acts {
            tracing::debug!(%node, "others act for it, and their end cannot be proved: its lease is waited out");
        }
        let (neighbours, transport) = (self.clone(), transport.clone());
        transport.counts().neighbours.inc();
        let task = spawn_local(async move {
            match proof(pidfd, waking, acts, transport.counts()).await {
                Ok(how) => {
                    tracing::debug!(%node, how, "its process is dead");
                    transport.report_dead(node, how).await;
                }
                Err(error) => tracing::warn!(%node, %error, "a process on this host cannot be watched"),
            }
            if neighbours.0.watched.borrow_mut().remove(&node).is_some() {
                transport.counts().neighbours.dec();
            }
        });
        let given = given.into_iter().collect();
        watched.insert(node, Watch { task: task.abort_handle(), since: clock::now_ns(), given });
    }

    /// Ends watches of nodes that are long gone from the view.
    pub(crate) fn keep(&self, transport: &Transport, is_member: impl Fn(NodeId) -> bool) {
        let now = clock::now_ns();
        self.0.watched.borrow_mut().retain(|node, watch| {
            let keep = is_member(*node) || now.saturating_sub(watch.since) < KEPT.as_nanos() as u64;
            if !keep {
                watch.task.abort();
                transport.counts().neighbours.dec();
            }
            keep
        });
        // Who is connected may be about to come.
        self.0.not_met.borrow_mut().retain(|node, _| is_member(*node) || transport.is_linked(*node));
    }
}

/// The calling thread runs at once when it is woken: for threads on which others wait, and whose work is short.
pub(crate) fn run_promptly() {
    turn::set_prompt(gettid(), true);
}

/// A number is not waited for any longer than the attempt that it belongs to.
struct Awaiting<'a> {
    neighbours: &'a Neighbours,
    number: [u8; 16],
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.neighbours.0.awaited.borrow_mut().retain(|awaited| awaited.number != self.number);
    }
}

/// Watches the life line that a process gave us. None if this process can watch none.
fn follow(pidfd: &OwnedFd, memory: BorrowedFd<'_>, number: u32) -> io::Result<Option<Waking>> {
    let Some(life) = wake::life() else { return Ok(None) };
    Ok(Some(life.watch(LifeLine::watch(memory, number)?, Threads::of(pidfd)?)))
}

/// Waits for a proof that the process is dead, whichever comes first, and all that acts for it. Says which one it is.
async fn proof(
    pidfd: OwnedFd,
    waking: Option<Waking>,
    acts: TheirActs,
    counts: &Counts,
) -> io::Result<&'static str> {
    if let TheirActs::Unknown = acts {
        std::future::pending::<()>().await;
    }
    let exiting = async {
        let woken = match waking {
            Some(mut waking) => waking.woken().await,
            None => Woken::Ended,
        };
        match woken {
            Woken::Exiting => return,
            Woken::InVain => _ = counts.wakes_in_vain.inc(),
            Woken::Ended => {}
        }
        // The pidfd remains.
        std::future::pending().await
    };
    let gone = async {
        dead(pidfd).await?;
        if let Some(courtesy) = wake::life().and_then(Life::courtesy) {
            // Who has to act knows by now, or soon: what we say of it would be in the way.
            tokio::time::sleep(courtesy).await;
        }
        io::Result::Ok(())
    };
    let how = tokio::select! {
        () = exiting => "exiting",
        gone = gone => {
            gone?;
            "pidfd"
        }
    };
    if let TheirActs::Through { fuse, last_word, hold } = acts {
        dead(fuse).await?;
        if let Some(memory) = last_word
            && !Deadline::is_gone(memory.as_fd())?
        {
            return Err(refused(
                "its fuse was killed, and what it had started may live: its lease is waited out",
            ));
        }
        drop(hold);
    }
    match how {
        "exiting" => counts.proofs_by_exiting.inc(),
        _ => counts.proofs_by_pidfd.inc(),
    };
    Ok(how)
}

/// Says once that deaths are proved as late as they can be, and why.
fn only_by_pidfd(error: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(
            %error,
            "deaths on this host are proved only once the kernel has freed the memory of the dead (70 ms for each GiB)"
        );
    });
}

/// Waits until the process is gone.
async fn dead(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is owned, is the same in every call of `as_raw_fd`, and stays open until it is dropped, which
    // happens after it was taken off the event queue.
    #[allow(unsafe_code, reason = "there is no safe constructor")]
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? };
    loop {
        let mut ready = pidfd.readable().await?;
        // Asked again, because a proof must not rest on a wake-up that may be spurious.
        let mut fds = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now))? == 1 && fds[0].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        ready.clear_ready();
    }
}

/// The handle of the process at the other end, from the kernel (Linux 6.5).
fn peer_pidfd(stream: &UnixStream) -> io::Result<OwnedFd> {
    #[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
    const SO_PEERPIDFD: libc::c_int = 0x0056;
    #[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: RawFd = -1;
    let mut size = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: the socket is open, and `fd` and `size` are valid for writing as many bytes as `size` says.
    #[allow(unsafe_code, reason = "no safe interface to this option exists")]
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut size,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has put a fresh descriptor there, which nobody else owns.
    #[allow(unsafe_code, reason = "no safe interface to this option exists")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A handle that the other side sent, for older kernels: taken if it is one, and of that very process.
fn checked_pidfd(sent: OwnedFd, peer: Option<i32>) -> io::Result<OwnedFd> {
    match (pid_of(&sent), peer) {
        (Ok(pid), Some(peer)) if pid == peer => Ok(sent),
        _ => Err(refused("it sent no handle of itself")),
    }
}

async fn send_card(
    stream: &UnixStream,
    me: NodeId,
    memory: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    line: Option<(BorrowedFd<'_>, u32)>,
    acts: &Acts,
) -> io::Result<()> {
    let mut card = [0; CARD];
    card[..4].copy_from_slice(&me.node().to_le_bytes());
    card[4..12].copy_from_slice(&me.inc().to_le_bytes());
    let mut descriptors = vec![memory, pidfd];
    let mut what = 0;
    let mut add = |bit, descriptor| {
        what |= bit;
        descriptors.push(descriptor);
    };
    if let Some((lines, number)) = line {
        card[12..16].copy_from_slice(&number.to_le_bytes());
        add(LINE, lines);
    }
    match acts {
        Acts::Itself => {}
        Acts::Through(Tree { fuse, last_word, hold }) => {
            add(TREE, fuse.as_fd());
            last_word.iter().for_each(|memory| add(LAST_WORD, memory.memory()));
            hold.iter().for_each(|held| add(HOLD, held.as_fd()));
        }
        Acts::Unknown => what |= UNKNOWN,
    }
    card[16..].copy_from_slice(&what.to_le_bytes());
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(ErrorKind::OutOfMemory.into());
            }
            Ok(sendmsg(stream, &[io::IoSlice::new(&card)], &mut ancillary, SendFlags::NOSIGNAL)?)
        })
        .await?;
    if sent == CARD { Ok(()) } else { Err(refused("it does not take a card")) }
}

async fn receive_card(stream: &UnixStream) -> io::Result<Card> {
    let mut card = [0; CARD];
    let mut fds: Vec<OwnedFd> = Vec::new();
    let received = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [io::IoSliceMut::new(&mut card)];
            let message = recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = part {
                    fds.extend(rights);
                }
            }
            Ok(message.bytes)
        })
        .await?;
    read_card(&card[..received], fds)
}

/// What came as a card, and the descriptors that came with it.
fn read_card(card: &[u8], fds: Vec<OwnedFd>) -> io::Result<Card> {
    let card: &[u8; CARD] =
        card.try_into().map_err(|_| refused("it does not introduce itself as nodes do"))?;
    let number = |at: usize| u32::from_le_bytes(card[at..at + 4].try_into().expect("four bytes"));
    let inc = u64::from_le_bytes(card[4..12].try_into().expect("eight bytes"));
    let mut fds = fds.into_iter();
    let whole = inc < NodeId::INC_BOUND;
    let (Some(memory), Some(pidfd), true) = (fds.next(), fds.next(), whole) else {
        return Err(refused("it does not introduce itself as nodes do"));
    };
    let what = number(16);
    let mut next = |bit| match what & bit {
        0 => Ok(None),
        _ => fds.next().map(Some).ok_or_else(|| refused("it gives less than it says")),
    };
    let line = next(LINE)?.map(|lines| (lines, number(12)));
    let (fuse, last_word, hold) = (next(TREE)?, next(LAST_WORD)?, next(HOLD)?.map(|held| Held(Some(held))));
    let acts = match fuse {
        // What we do not know of may be something else that acts.
        _ if what & !(LINE | TREE | LAST_WORD | HOLD) != 0 => TheirActs::Unknown,
        Some(fuse) => {
            // A handle of a process: others may become readable for any reason.
            pid_of(&fuse)?;
            TheirActs::Through { fuse, last_word, hold }
        }
        None => TheirActs::Itself,
    };
    Ok(Card { node: NodeId::new(number(0), inc), memory, pidfd, line, acts })
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::other(why)
}

/// For fuzzing: a byte that says how many descriptors come, and whether they are handles of a process, and then the card. Who is
/// trusted is never more than what was said.
#[cfg(feature = "fuzz")]
pub(crate) fn meddle_with_card(data: &[u8]) {
    let Some((first, card)) = data.split_first() else { return };
    let (count, processes) = (usize::from(first % 8), first & 8 != 0);
    let own = if processes { pidfd_open(getpid(), PidfdFlags::empty()).ok() } else { None };
    let own = own.map_or_else(|| std::fs::File::open("/dev/null").map(OwnedFd::from), Ok);
    let descriptors = || -> io::Result<Vec<OwnedFd>> {
        let own = own?;
        (0..count).map(|_| own.try_clone()).collect()
    };
    let Ok(descriptors) = descriptors() else { return };
    let Ok(read) = read_card(card, descriptors) else { return };
    assert!(card.len() == CARD && count >= 2 && read.node.inc() < NodeId::INC_BOUND);
    let what = u32::from_le_bytes(card[16..].try_into().expect("four bytes"));
    assert_eq!(read.line.is_some(), what & LINE != 0);
    let known = what & !(LINE | TREE | LAST_WORD | HOLD) == 0;
    match read.acts {
        TheirActs::Unknown => assert!(!known),
        TheirActs::Itself => assert!(known && what & TREE == 0),
        TheirActs::Through { last_word, hold, .. } => {
            assert!(known && processes && what & TREE != 0, "a handle of a process");
            assert_eq!((last_word.is_some(), hold.is_some()), (what & LAST_WORD != 0, what & HOLD != 0));
        }
    }
}

/// Well-made cards, each after what comes with it.
#[cfg(feature = "fuzz")]
pub(crate) fn cards() -> Vec<Vec<u8>> {
    let card = |first: u8, what: u32| {
        let mut bytes = vec![first];
        bytes.extend(7u32.to_le_bytes());
        bytes.extend(5u64.to_le_bytes());
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(what.to_le_bytes());
        bytes
    };
    vec![
        card(2, 0),
        card(3, LINE),
        card(8 + 4, LINE | TREE),
        card(8 + 6, LINE | TREE | LAST_WORD | HOLD),
        card(3, LINE | UNKNOWN),
        card(3, TREE),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pidfd_is_silent_while_the_process_lives_and_tells_at_once_that_it_died() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep exists");
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("our own child");
        let mut death = Box::pin(dead(pidfd));
        assert!(timeout(Duration::from_millis(50), &mut death).await.is_err(), "it lives");
        child.kill().expect("our own child");
        timeout(Duration::from_secs(10), death).await.expect("told in time").expect("watched");
        child.wait().expect("reaped after the proof: a zombie runs no code");
    }

    #[tokio::test]
    async fn the_kernel_or_else_the_other_side_gives_a_handle_of_the_process_at_the_other_end() {
        let (one, two) = UnixStream::pair().expect("a pair");
        let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("ourselves");
        let me = NodeId::new(7, 9);
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).expect("memory");
        let itself = Acts::Itself;
        send_card(&one, me, memory.as_fd(), own.as_fd(), None, &itself).await.expect("sent");
        let Card { node, pidfd: sent, line, acts, .. } = receive_card(&two).await.expect("received");
        assert!(node == me && line.is_none() && matches!(acts, TheirActs::Itself));
        let line = Some((memory.as_fd(), 7));
        send_card(&one, me, memory.as_fd(), own.as_fd(), line, &Acts::Unknown).await.expect("sent");
        let card = receive_card(&two).await.expect("received");
        assert!(card.line.is_some_and(|(_, number)| number == 7), "a life line where there is one");
        assert!(matches!(card.acts, TheirActs::Unknown));
        let fuse = Arc::new(own.try_clone().expect("a copy"));
        let tree = Tree::new(fuse).with_last_word(Arc::new(Deadline::new().expect("memory")));
        for (tree, holds) in
            [(tree.clone(), false), (tree.holding(Arc::new(memory.try_clone().expect("a copy"))), true)]
        {
            let acts = Acts::Through(tree);
            send_card(&one, me, memory.as_fd(), own.as_fd(), None, &acts).await.expect("sent");
            let TheirActs::Through { last_word, hold, .. } = receive_card(&two).await.expect("received").acts
            else {
                panic!("others act for it");
            };
            assert!(!Deadline::is_gone(last_word.expect("sent").as_fd()).expect("memory"));
            assert_eq!(hold.is_some(), holds);
        }
        let no_process = Acts::Through(Tree::new(Arc::new(memory.try_clone().expect("a copy"))));
        send_card(&one, me, memory.as_fd(), own.as_fd(), None, &no_process).await.expect("sent");
        assert!(receive_card(&two).await.is_err(), "a tree without a process");
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert!(checked_pidfd(sent.try_clone().expect("a copy"), Some(pid)).is_ok());
        assert!(checked_pidfd(sent, Some(pid + 1)).is_err(), "of another process");
        assert!(checked_pidfd(memory, Some(pid)).is_err(), "no pidfd at all");
        match peer_pidfd(&two) {
            Ok(pidfd) => assert!(checked_pidfd(pidfd, Some(pid)).is_ok()),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}"),
        }
    }

    #[tokio::test]
    async fn a_wrapper_is_dead_once_its_fuse_is_too_and_only_with_its_last_word() {
        let start = || std::process::Command::new("sleep").arg("100").spawn().expect("sleep exists");
        let handle = |child: &std::process::Child| {
            pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty()).expect("our own child")
        };
        for (last_word, said) in [(false, false), (true, true), (true, false)] {
            let (mut wrapper, mut fuse) = (start(), start());
            let word = Deadline::new().expect("memory");
            let memory = word.memory().try_clone_to_owned().expect("a copy");
            let last = last_word.then_some(memory);
            let acts = TheirActs::Through { fuse: handle(&fuse), last_word: last, hold: None };
            let counts = Counts::default();
            let mut proof = Box::pin(proof(handle(&wrapper), None, acts, &counts));
            wrapper.kill().expect("our own child");
            wrapper.wait().expect("reaped");
            assert!(timeout(Duration::from_millis(50), &mut proof).await.is_err(), "its fuse lives");
            if said {
                word.set_gone();
            }
            fuse.kill().expect("our own child");
            let proved = timeout(Duration::from_secs(10), proof).await.expect("told in time");
            assert_eq!(proved.is_ok(), said || !last_word, "{proved:?}");
            fuse.wait().expect("reaped");
        }
        let mut wrapper = start();
        let counts = Counts::default();
        let mut proof = Box::pin(proof(handle(&wrapper), None, TheirActs::Unknown, &counts));
        wrapper.kill().expect("our own child");
        wrapper.wait().expect("reaped");
        assert!(timeout(Duration::from_millis(50), &mut proof).await.is_err(), "others may act for it");
    }
}
