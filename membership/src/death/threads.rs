//! Proof that a process can act no more, before the kernel has freed its memory: all of its threads are exiting.
//!
//! A thread that shows the flag `PF_EXITING` runs no more code of its program and is inside no system call but its own end. A
//! process whose threads all show it is as good as gone. Threads come and go while they are read, so it takes two passes:
//! in each, every thread shows the flag, and the second lists none that the first did not. A thread that vanishes meanwhile
//! voids the pass. A process that is not there at all proves nothing.
//!
//! What the first pass opened the second one reads again: that is quicker, and a file of `/proc` stays that of the very thread for
//! which it was opened, whoever gets its number.

use std::{collections::HashMap, io, mem::MaybeUninit, os::fd::OwnedFd};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, SeekFrom, fstatfs, openat, seek},
    io::{Errno, pread},
};

/// `PF_EXITING` of the kernel's `sched.h`, in field 9 of `stat`.
const EXITING: u64 = 0x4;
/// A process with more threads is left to its pidfd.
const MOST: usize = 1024;
/// Of so many threads the files are kept from the first pass to the second.
const KEPT: usize = 64;
/// So often threads may vanish during a pass before somebody else gets a turn.
const ATTEMPTS: usize = 8;
/// What the files of `/proc` are on.
const PROC_MAGIC: u64 = 0x9fa0;

/// The threads of one process. Bound to that very process: once it is gone and its number belongs to another one, nothing
/// is found here any more.
pub(super) struct Threads(OwnedFd);

/// The threads that a pass found, by number: when each started, so that a number is not taken for the thread that had it
/// before, and what says how it stands, if that was kept.
type Found = HashMap<u64, (u64, Option<OwnedFd>)>;

/// What is read of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    exiting: bool,
    /// How many threads its process has.
    threads: u64,
    started: u64,
}

/// What is seen of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It can act no more: proved.
    Exiting,
    /// Not that.
    Nothing,
    /// It is not there any more: that is for its pidfd to judge.
    Gone,
}

/// What one pass shows.
enum Pass {
    /// A thread lives.
    Lives,
    /// The process is not there.
    Gone,
    /// Threads vanished, or not all were listed.
    Void,
    /// These, all of them exiting.
    Exiting(Found),
}

impl Threads {
    /// The threads of the process that a pidfd stands for.
    pub(super) fn of(pidfd: &OwnedFd) -> io::Result<Self> {
        let pid = pid_of(pidfd)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, format!("/proc/{pid}/task"), flags, Mode::empty())?;
        if fstatfs(&dir)?.f_type as u64 != PROC_MAGIC {
            return Err(io::Error::other("/proc is not the kernel's"));
        }
        // The number was the process's before and is its still, so it was in between: no other can have it before the
        // process is gone. What is open stays that process's.
        if pid_of(pidfd)? != pid {
            return Err(io::Error::other("the process is gone"));
        }
        Ok(Self(dir))
    }

    /// Looks at all threads.
    pub(super) fn look(&self) -> io::Result<Seen> {
        let mut before: Option<Found> = None;
        for _ in 0..ATTEMPTS {
            before = match (self.pass(before.as_ref())?, before) {
                (Pass::Lives, _) => return Ok(Seen::Nothing),
                (Pass::Gone, _) => return Ok(Seen::Gone),
                (Pass::Void, _) => None,
                (Pass::Exiting(now), Some(before)) if now.iter().all(|thread| is_of(&before, thread)) => {
                    return Ok(Seen::Exiting);
                }
                (Pass::Exiting(now), _) => Some(now),
            };
        }
        Ok(Seen::Nothing)
    }

    fn pass(&self, before: Option<&Found>) -> io::Result<Pass> {
        let Some(ids) = self.list()? else { return Ok(Pass::Gone) };
        let (mut threads, mut fewest) = (Found::with_capacity(ids.len()), u64::MAX);
        for id in ids {
            let read = match before.and_then(|before| before.get(&id)?.1.as_ref()) {
                Some(kept) => stat(kept)?.map(|stat| (stat, None)),
                None => match self.open(id)? {
                    Some(file) => stat(&file)?.map(|stat| (stat, Some(file))),
                    None => None,
                },
            };
            let Some((stat, file)) = read else { return Ok(Pass::Void) };
            if !stat.exiting {
                return Ok(Pass::Lives);
            }
            fewest = fewest.min(stat.threads);
            let kept = file.filter(|_| before.is_none() && threads.len() < KEPT);
            threads.insert(id, (stat.started, kept));
        }
        // A list may end early where a thread vanishes under it. None at all proves nothing.
        let whole = !threads.is_empty() && fewest <= threads.len() as u64;
        Ok(if whole { Pass::Exiting(threads) } else { Pass::Void })
    }

    /// The numbers of the threads; `None` if the process is gone.
    fn list(&self) -> io::Result<Option<Vec<u64>>> {
        seek(&self.0, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        let mut ids = Vec::new();
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => {
                    // The other entries are "." and "..".
                    if let Some(id) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                        ids.push(id);
                    }
                }
                Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if ids.len() > MOST {
                return Err(io::Error::other("the process has too many threads"));
            }
        }
        Ok(Some(ids))
    }

    /// What says how a thread stands; `None` if it is gone.
    fn open(&self, id: u64) -> io::Result<Option<OwnedFd>> {
        there(openat(&self.0, format!("{id}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
    }
}

/// How a thread stands now; `None` if it is gone.
fn stat(file: &OwnedFd) -> io::Result<Option<Stat>> {
    // Some 350 bytes; no field but the name has more than twenty digits.
    let mut text = [0; 2048];
    let Some(length) = there(pread(file, &mut text, 0))? else { return Ok(None) };
    let wrong =
        || io::Error::new(io::ErrorKind::InvalidData, "a thread's stat reads otherwise than expected");
    parse(&text[..length]).map(Some).ok_or_else(wrong)
}

/// What the kernel answers about a thread, unless that is gone.
fn there<T>(answer: Result<T, Errno>) -> io::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Was this thread found before?
fn is_of(before: &Found, (id, (started, _)): (&u64, &(u64, Option<OwnedFd>))) -> bool {
    before.get(id).is_some_and(|(before, _)| before == started)
}

/// The fields of `/proc/PID/task/TID/stat` that count.
fn parse(stat: &[u8]) -> Option<Stat> {
    // The name is the program's choice, and may hold brackets and blanks; nothing after it does.
    let rest = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
    let mut fields = std::str::from_utf8(rest).ok()?.split_ascii_whitespace();
    // The first one here is field 3.
    let exiting = fields.nth(9 - 3)?.parse::<u64>().ok()? & EXITING != 0;
    let threads = fields.nth(20 - 10)?.parse().ok()?;
    let started = fields.nth(22 - 21)?.parse().ok()?;
    Some(Stat { exiting, threads, started })
}

/// The number of the process that a pidfd stands for, as long as that has not been given back.
pub(super) fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    match pid {
        Some(pid) if pid > 0 => Ok(pid),
        // Zero is a process that is not seen from here, less is one that is gone.
        Some(_) => Err(io::Error::other("the process is gone, or not seen from here")),
        None => Err(io::Error::other("no handle of a process")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open},
    };

    use super::*;

    /// Longer than anything takes that will happen at all.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn pidfd(child: &Child) -> OwnedFd {
        pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("our own child")
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep exists")
    }

    fn wait_for_end(pidfd: &OwnedFd) {
        let long = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&long));
        assert_eq!(ended, Ok(1), "it ends");
    }

    #[test]
    fn a_living_process_proves_nothing_running_or_stopped() {
        let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("ourselves");
        assert_eq!(Threads::of(&own).expect("/proc").look().expect("read"), Seen::Nothing);
        let mut child = sleeper();
        let threads = Threads::of(&pidfd(&child)).expect("/proc");
        assert_eq!(threads.look().expect("read"), Seen::Nothing);
        kill_process(Pid::from_child(&child), Signal::STOP).expect("our own child");
        for _ in 0..100 {
            assert_eq!(threads.look().expect("read"), Seen::Nothing);
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    #[test]
    fn a_dead_process_is_proved_dead_until_it_is_reaped_and_then_nothing_is() {
        let mut child = sleeper();
        let pidfd = pidfd(&child);
        let threads = Threads::of(&pidfd).expect("/proc");
        child.kill().expect("our own child");
        wait_for_end(&pidfd);
        assert_eq!(threads.look().expect("read"), Seen::Exiting);
        assert_eq!(Threads::of(&pidfd).expect("still its number").look().expect("read"), Seen::Exiting);
        child.wait().expect("our own child");
        assert_eq!(threads.look().expect("read"), Seen::Gone, "absence proves nothing");
        assert!(Threads::of(&pidfd).is_err(), "the number may be another's by now");
    }

    /// Needs the right to choose the number of the next process.
    #[test]
    fn another_process_with_the_number_of_a_dead_one_is_not_judged() {
        let mut child = sleeper();
        let number = child.id();
        let pidfd = pidfd(&child);
        let threads = Threads::of(&pidfd).expect("/proc");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        let end = Instant::now() + PATIENCE;
        let mut other = loop {
            assert!(Instant::now() < end, "never got the number {number} again");
            if let Err(error) = std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()) {
                let required =
                    ["CI", "PHALANX_REQUIRE_SERVERS"].iter().any(|v| std::env::var_os(v).is_some());
                assert!(!required, "a right is missing: {error}");
                println!("SKIPPED: the number of the next process cannot be chosen: {error}");
                return;
            }
            let mut other = sleeper();
            if other.id() == number {
                break other;
            }
            other.kill().expect("our own child");
            other.wait().expect("our own child");
        };
        // A handle of the newcomer, for the end of this test.
        let newcomer = pidfd_open(Pid::from_child(&other), PidfdFlags::empty()).expect("our own child");
        other.kill().expect("our own child");
        wait_for_end(&newcomer);
        let seen = Threads::of(&newcomer).expect("/proc").look().expect("read");
        assert_eq!(seen, Seen::Exiting, "it is dead indeed");
        assert_eq!(threads.look().expect("read"), Seen::Gone, "but it is not the one that was watched");
        assert!(Threads::of(&pidfd).is_err(), "and the old handle does not lead to it");
        other.wait().expect("our own child");
    }

    #[test]
    fn a_name_full_of_brackets_and_blanks_is_read_over() {
        let tail = "R 1 2 3 4 5 4194308 7 8 9 10 11 12 13 14 15 16 3 18 777 1\n";
        let stat = parse(format!("12 (a) S 1 (b )) {tail}").as_bytes());
        assert_eq!(stat, Some(Stat { exiting: true, threads: 3, started: 777 }));
        let lives = parse(b"1 (x) S 1 2 3 4 5 4194560 7 8 9 10 11 12 13 14 15 16 3 18 777 1");
        assert!(lives.is_some_and(|stat| !stat.exiting));
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        let whole = b"12 (a) R 1 2 3 4 5 4194308 7 8 9 10 11 12 13 14 15 16 3 18 777";
        for cut in 0..whole.len() - 3 {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }
        for text in ["", ")", "1 (a) R 1 2 3 4 5 -4 7", "1 (a) \u{fffd}"] {
            assert_eq!(parse(text.as_bytes()), None);
        }
        assert_eq!(parse(b"\xff\xfe) \xff"), None);
    }
}
