//! The fuse itself: a process that does nothing but end others in time. No threads, no runtime.
//!
//! The *root* is the first process of a pid namespace, so whatever ends it ends everybody in it. Where there is none it
//! inherits every orphan below it (it is a subreaper), and when its wrapper is gone it kills until nobody is left. For each
//! command it makes a *branch*, a subreaper too, which starts the command and ends with all that came of it: when
//! the command has ended, when the wrapper says so or is gone, or when the deadline passes. A branch that is killed before
//! leaves what it had started to the root, which cannot tell it from what belongs to others: then the root ends everything.
//!
//! To kill a tree only own children are killed, again and again: they cannot be mistaken for others, because their numbers
//! stay taken until they are waited for, and the children of the dead become ours before the dead can be waited for. So
//! when there is no child left, nobody is left.
#![allow(unsafe_code, reason = "fork, signal masks and descriptors by number")]

use std::{
    fs::read_to_string,
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
    ptr,
    thread::sleep,
    time::{Duration, Instant},
};

use membership_sync::Deadline;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, FdFlags, fcntl_setfd, retry_on_intr},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send},
    process::{
        self, Pid, Signal, WaitOptions, getpid, getppid, kill_process, kill_process_group,
        set_child_subreaper, set_parent_process_death_signal, setsid,
    },
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
        timerfd_create, timerfd_settime,
    },
};

use super::{Containment, launch::FAILED, spec::Order};

/// What the root says once it watches.
pub(super) const READY: u8 = b'R';
/// What a branch says once the command runs.
pub(super) const STARTED: u8 = b'S';
/// What a branch says last: how it ended ([`LATE`], [`LEFT`]), and the command's status as the kernel gives it.
pub(super) const ENDED: u8 = b'X';
/// The deadline ended it.
pub(super) const LATE: u8 = 1;
/// Whether all is gone could not be seen.
pub(super) const LEFT: u8 = 2;
/// In a byte to a branch: the signal is for the command's whole group.
pub(super) const TO_GROUP: u8 = 0x80;
/// With each order: a socket, standard input and standard output.
pub(super) const DESCRIPTORS: usize = 3;

/// Without /proc nobody knows whom to kill. So long is waited for those who end by themselves, or for /proc to come back.
const BLIND: Duration = Duration::from_secs(5);

/// Runs a fuse with the arguments that [`Fuse::start`](crate::Fuse::start) gave to this process, and never returns. For the
/// program that was named there, before it starts any thread.
///
/// # Errors
/// If this process was not started so.
pub fn fuse_main(control: RawFd, deadline: RawFd, how: &str) -> io::Result<std::convert::Infallible> {
    let how = Containment::named(how)
        .ok_or_else(|| io::Error::other("a fuse is started by phalanx itself, and by nobody else"))?;
    // Checked, because anybody can call this program so.
    for descriptor in [control, deadline] {
        // SAFETY: a number is asked about, and nothing is done by it if it is none.
        let found = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
        if found < 0 || descriptor <= 2 {
            return Err(io::Error::other("a fuse is started by phalanx itself, and by nobody else"));
        }
    }
    // SAFETY: both are open, and the wrapper gave them to this process for nothing else.
    let (control, deadline) = unsafe { (OwnedFd::from_raw_fd(control), OwnedFd::from_raw_fd(deadline)) };
    for descriptor in [&control, &deadline] {
        fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    }
    let deadline = Deadline::open(deadline)?;
    // Nothing but KILL ends a fuse, and no key of a terminal stops it.
    let (before, signals) = take_signals()?;
    set_child_subreaper(Some(getpid()))?;
    children().map_err(|error| {
        let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
        // If nobody listens, the wrapper is dead.
        let _unheard = send(&control, &[FAILED, a, b, c, d], SendFlags::NOSIGNAL);
        io::Error::other(format!(
            "/proc cannot be read ({error}): mount it, so that what a command starts can be ended"
        ))
    })?;
    send(&control, &[READY], SendFlags::NOSIGNAL)?;
    root(&control, &deadline, &before, &signals);
    if how == Containment::Subreaper {
        // Else there is no last word, and others wait until the lease ends.
        if end_children(None).1 {
            deadline.set_gone();
        }
    }
    leave()
}

/// Starts branches until the wrapper is gone, or a branch was killed.
fn root(control: &OwnedFd, deadline: &Deadline, before: &libc::sigset_t, signals: &OwnedFd) {
    let mut branches = Vec::new();
    loop {
        let [told, died] = wait([control.as_fd(), signals.as_fd()]);
        if died {
            drain(signals);
            while let Ok(Some((pid, ended))) = process::wait(WaitOptions::NOHANG) {
                if let Some(at) = branches.iter().position(|branch| *branch == pid.as_raw_nonzero().get()) {
                    branches.swap_remove(at);
                    if ended.as_raw() != 0 {
                        return complain(format_args!(
                            "a part of the fuse was killed: all that runs under it is ended"
                        ));
                    }
                }
            }
        }
        if !told {
            continue;
        }
        match receive(control) {
            Ok(Some([socket, input, output])) => {
                // SAFETY: this process has one thread.
                match unsafe { libc::fork() } {
                    0 => branch(UnixStream::from(socket), input, output, deadline, before),
                    pid if pid > 0 => branches.push(pid),
                    _ => {} // The socket closes, and the wrapper learns it so.
                }
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// The next order; nothing if it is none. An error once the wrapper is gone.
fn receive(control: &OwnedFd) -> io::Result<Option<[OwnedFd; DESCRIPTORS]>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = match recvmsg(control, &mut parts, &mut ancillary, flags) {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok(descriptors.try_into().ok())
}

/// In a process of its own: one command, and all that comes of it.
fn branch(
    mut socket: UnixStream,
    input: OwnedFd,
    output: OwnedFd,
    deadline: &Deadline,
    before: &libc::sigset_t,
) -> ! {
    let refused = |socket: &mut UnixStream, error: io::Error| -> ! {
        let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
        // If nobody listens, the wrapper is dead.
        let _unheard = socket.write_all(&[FAILED, a, b, c, d]);
        leave()
    };
    let run = || -> io::Result<(Order, Pid)> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        set_child_subreaper(Some(getpid()))?;
        let order = Order::read(&socket)?;
        let server = start(&order, input, output, *before)?;
        // Only now: the command may have to be in the wrapper's group, where this process could be stopped. A session and not
        // only a group of our own: else the command's end may leave that group without anybody outside, within the session, and
        // the kernel then sends HUP and CONT to all in it, a stopped wrapper included.
        setsid()?;
        Ok((order, server))
    };
    let (order, server) = match run() {
        Ok(running) => running,
        Err(error) => refused(&mut socket, error),
    };
    let watched = take_signals().and_then(|(_, signals)| {
        Ok((signals, timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?))
    });
    let (signals, timer) = match watched {
        Ok(watched) => watched,
        Err(error) => {
            end_children(None);
            refused(&mut socket, error)
        }
    };
    // If nobody listens, that is noticed below.
    let _unheard = socket.write_all(&[STARTED]);
    let (mut status, mut late) = (None, false);
    while status.is_none() {
        if order.bound {
            let until = deadline.until();
            if now_ns() >= until || set(&timer, until).is_err() {
                late = true;
                break;
            }
        }
        let [told, died, _] = wait([socket.as_fd(), signals.as_fd(), timer.as_fd()]);
        if died {
            drain(&signals);
            while let Ok(Some((pid, ended))) = process::wait(WaitOptions::NOHANG) {
                if pid == server {
                    status = Some(ended.as_raw());
                }
            }
        }
        if told && status.is_none() {
            let mut byte = [0];
            match socket.read(&mut byte) {
                Ok(1) => signal(server, byte[0]),
                _ => break,
            }
        }
    }
    if status.is_none() && order.own_group {
        // At once, and not one generation after the other. Some may be gone.
        let _gone = kill_process_group(server, Signal::KILL);
    }
    let (last, all_gone) = end_children(Some(server));
    let how = if late { LATE } else { 0 } | (if all_gone { 0 } else { LEFT });
    let [a, b, c, d] = status.or(last).unwrap_or(libc::SIGKILL).to_le_bytes();
    // If nobody listens, the wrapper is dead.
    let _unheard = socket.write_all(&[ENDED, how, a, b, c, d]);
    leave()
}

fn start(order: &Order, input: OwnedFd, output: OwnedFd, signals: libc::sigset_t) -> io::Result<Pid> {
    let (program, arguments) = order.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).envs(order.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::from(input)).stdout(Stdio::from(output));
    if let Some(dir) = &order.dir {
        command.current_dir(dir);
    }
    if order.own_group {
        command.process_group(0);
    }
    let branch = getpid();
    let between_fork_and_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(branch) {
            return Err(Errno::SRCH.into());
        }
        // SAFETY: the set was filled in by the kernel, and nothing is written.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, ptr::null_mut()) };
        Ok(())
    };
    // SAFETY: the closure makes three system calls and builds an error from a number.
    unsafe { command.pre_exec(between_fork_and_exec) };
    let child = command.spawn()?;
    Ok(Pid::from_child(&child))
}

/// Passes on a signal. It may come too late, which is no error.
fn signal(server: Pid, byte: u8) {
    let Some(signal) = Signal::from_named_raw(i32::from(byte & !TO_GROUP)) else { return };
    let _gone =
        if byte & TO_GROUP == 0 { kill_process(server, signal) } else { kill_process_group(server, signal) };
}

/// Kills and waits for children until there are none. Gives the status of this one, if it is among them, and whether there are
/// none: where they cannot be listed, that is not waited for for ever.
fn end_children(server: Option<Pid>) -> (Option<i32>, bool) {
    let (mut status, mut blind_since) = (None, None::<Instant>);
    loop {
        let (known, how) = match children() {
            Ok(list) => (list, WaitOptions::empty()),
            Err(error) => {
                blind_since.get_or_insert_with(|| {
                    complain(format_args!(
                        "/proc cannot be read ({error}): the fuse cannot see what it has to end; mount /proc"
                    ));
                    Instant::now()
                });
                (server.filter(|_| status.is_none()).into_iter().collect(), WaitOptions::NOHANG)
            }
        };
        for child in known {
            // One that became another user's is waited for.
            let _not_ours = kill_process(child, Signal::KILL);
        }
        match retry_on_intr(|| process::wait(how)) {
            Ok(Some((pid, ended))) if Some(pid) == server => status = Some(ended.as_raw()),
            Ok(Some(_)) => {}
            Ok(None) if blind_since.is_some_and(|since| since.elapsed() >= BLIND) => return (status, false),
            Ok(None) => sleep(Duration::from_millis(20)),
            Err(_) => return (status, true),
        }
    }
}

/// Says so to people; there may be nobody.
fn complain(what: std::fmt::Arguments<'_>) {
    let _unheard = writeln!(io::stderr(), "phalanx: {what}");
}

/// The children of this process.
fn children() -> io::Result<Vec<Pid>> {
    let pid = |text: &str| text.parse().ok().and_then(Pid::from_raw);
    if let Ok(list) = read_to_string("/proc/thread-self/children") {
        return Ok(list.split_ascii_whitespace().filter_map(pid).collect());
    }
    // A kernel that lists no children: all that name this one as their parent, which comes second after the name.
    let me = getpid().as_raw_nonzero().to_string();
    let parent_of = |pid: Pid| -> io::Result<String> {
        let stat = read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1));
        Ok(parent.unwrap_or_default().to_owned())
    };
    // A directory that is no such list does not have this process in it.
    parent_of(getpid())?;
    let all = std::fs::read_dir("/proc")?;
    let numbers = all.flatten().filter_map(|entry| pid(entry.file_name().to_str()?));
    // Some are gone meanwhile.
    Ok(numbers.filter(|pid| parent_of(*pid).is_ok_and(|parent| parent == me)).collect())
}

/// Blocks all signals, and gives the ones that were blocked before, and a descriptor that tells of ended children.
fn take_signals() -> io::Result<(libc::sigset_t, OwnedFd)> {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let (mut child, flags) = (MaybeUninit::uninit(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
    // SAFETY: the sets are filled in before they are read, and this process has one thread.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(child.as_mut_ptr());
        libc::sigaddset(child.as_mut_ptr(), libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let signals = libc::signalfd(-1, child.as_ptr(), flags);
        if signals < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((before.assume_init(), OwnedFd::from_raw_fd(signals)))
    }
}

/// Takes what is there, so that it does not wake us again.
fn drain(signals: &OwnedFd) {
    let mut buffer = [0; 1024];
    // It gives an error once there is nothing.
    while rustix::io::read(signals, &mut buffer).is_ok_and(|n| n > 0) {}
}

fn set(timer: &OwnedFd, until: u64) -> rustix::io::Result<()> {
    let it_value = Timespec {
        tv_sec: (until / 1_000_000_000).try_into().unwrap_or(i64::MAX),
        tv_nsec: (until % 1_000_000_000) as _,
    };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once).map(drop)
}

fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits until one of them has something to read, or has ended.
fn wait<const N: usize>(descriptors: [BorrowedFd<'_>; N]) -> [bool; N] {
    let mut fds = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    // Without time limit; an interruption is another turn.
    let _interrupted = poll(&mut fds, None);
    fds.map(|fd| !fd.revents().is_empty())
}

/// Ends this process, and runs nothing of what the standard library may still have to do in a forked copy.
fn leave() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}
