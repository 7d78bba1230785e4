//! Where a thread gets its turn, and when.
//!
//! The last thread of a dying process stays on its processor until the kernel has freed the memory of all of them: half a
//! millisecond for a small process, 70 ms for each GiB. The scheduler wakes a thread where it ran before, or where its waker
//! runs, and does not always see that this one is occupied and another one idle. So whoever watches a death keeps off the
//! processors where that goes on. And whoever acts first when somebody dies asks for short slices, as the control thread of each
//! node does, for which others wait: with these they run before the dying go on (EEVDF: the less a thread asks for, the sooner its
//! virtual deadline; Stoica and Abdel-Wahab 1995). They get no more of the processors for it, and no privileges are needed. Where
//! something here fails, the scheduler's choice stands.
//!
//! The seniors of a view have more to do than others: of a hundred nodes the coordinator answers a thousand heartbeats a second, and
//! the core stores what it decides. Where all threads of a crowded host want to run each gets the same, and then all leases end
//! because one thread had no turn. So the control threads of seniors go before others, where that is allowed (as those of
//! Corosync do, which asks for a real-time class).
//!
//! What a thread was allowed before it is allowed again. The kernel takes that for a wish from then on: processors that a cpuset
//! gets only later are not used by these two threads.

use std::io;

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The shortest slice that the scheduler knows.
const SHORT: u64 = 100_000;
/// The priority of who goes before others: between two who always have something to do it gets nine of ten turns.
const PREFERRED: i32 = -10;
/// The one that all have who have asked for none.
const USUAL: u64 = 0;

/// Lets another thread of this process, which sleeps, go on where the calling thread runs: `wake` is called to wake it.
pub(super) fn wake_here(thread: Pid, wake: impl FnOnce()) {
    let allowed = sched_getaffinity(Some(thread)).ok();
    let here = sched_getcpu();
    let placed = allowed.filter(|allowed| allowed.is_set(here) && allowed.count() > 1).filter(|_| {
        let mut only = CpuSet::new();
        only.set(here);
        sched_setaffinity(Some(thread), &only).is_ok()
    });
    wake();
    if let Some(allowed) = placed {
        // It has its place; from now on it may go where it likes. Nothing can be done if it has ended meanwhile.
        let _ended = sched_setaffinity(Some(thread), &allowed);
    }
}

/// Keeps the calling thread off the processor on which it runs, until this is dropped.
pub(super) struct Elsewhere(CpuSet);

impl Elsewhere {
    /// None if there is no other one.
    pub(super) fn go() -> Option<Self> {
        let allowed = sched_getaffinity(None).ok()?;
        let mut others = allowed;
        others.unset(sched_getcpu());
        if others.count() == 0 || others.count() == allowed.count() {
            return None;
        }
        sched_setaffinity(None, &others).ok()?;
        Some(Self(allowed))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // What was allowed before is allowed again, unless somebody took it away meanwhile.
        let _taken_away = sched_setaffinity(None, &self.0);
    }
}

/// A thread of this process is to run at once when it is woken, or like others. Kernels before Linux 6.12, sandboxes, and threads
/// under another policy than the usual one do without.
pub(super) fn set_prompt(thread: Pid, prompt: bool) {
    let slice = if prompt { SHORT } else { USUAL };
    if let Err(error) = set_slice(thread, slice) {
        tracing::debug!(%error, "the scheduler does not take a slice");
    }
}

/// The calling thread, and nobody whom it starts, goes before others of usual priority, or does so no more. Only who is privileged,
/// or was given a limit for that (RLIMIT_NICE), may say so; others do without. True if that changed anything.
pub(super) fn set_preferred(preferred: bool) -> bool {
    set_nice(preferred).unwrap_or_else(|error| {
        tracing::debug!(%error, "the control thread of a senior keeps the usual priority");
        false
    })
}

fn set_nice(preferred: bool) -> io::Result<bool> {
    let mut attr = attributes(gettid())?;
    let (before, after) = if preferred { (0, PREFERRED) } else { (PREFERRED, 0) };
    // Whoever set it otherwise had reasons.
    if attr.sched_policy != libc::SCHED_OTHER as u32 || attr.sched_nice != before {
        return Ok(false);
    }
    attr.sched_nice = after;
    attr.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    set(gettid(), &attr).map(|()| true)
}

fn set_slice(thread: Pid, slice: u64) -> io::Result<()> {
    let mut attr = attributes(thread)?;
    if attr.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attr.sched_runtime = slice;
    set(thread, &attr)
}

fn set(thread: Pid, attr: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: `attr` is as large as it says, and the kernel only reads it.
    #[allow(unsafe_code, reason = "no safe interface to this call exists")]
    let status =
        unsafe { libc::syscall(libc::SYS_sched_setattr, thread.as_raw_pid(), std::ptr::from_ref(attr), 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How a thread is scheduled.
fn attributes(thread: Pid) -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attr = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attr` is as large as `size` says, and valid whatever the kernel writes there.
    #[allow(unsafe_code, reason = "no safe interface to this call exists")]
    let status =
        unsafe { libc::syscall(libc::SYS_sched_getattr, thread.as_raw_pid(), &raw mut attr, size, 0) };
    if status == 0 { Ok(attr) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread};

    use super::*;

    fn allowed() -> CpuSet {
        sched_getaffinity(None).expect("this thread exists")
    }

    #[test]
    fn who_is_woken_here_may_then_go_anywhere() {
        let (wake, woken) = channel::<()>();
        let (tell, told) = channel();
        let sleeper = thread::spawn(move || {
            tell.send((gettid(), allowed())).expect("it waits");
            while woken.recv().is_ok() {
                tell.send((gettid(), allowed())).expect("it waits");
            }
            allowed()
        });
        let (thread, before) = told.recv().expect("it runs");
        assert_eq!(before, allowed());
        wake_here(thread, || {
            wake.send(()).expect("it sleeps");
            // Until it has said where it may run it is kept here.
            let (_, placed) = told.recv().expect("it is awake");
            assert_eq!(placed.count(), 1);
        });
        drop(wake);
        assert_eq!(sleeper.join().expect("no panic"), before);
    }

    #[test]
    fn a_thread_that_goes_before_others_starts_none_that_does() {
        let nice = || attributes(gettid()).expect("this thread exists").sched_nice;
        let thread = thread::spawn(move || {
            let before = nice();
            set_preferred(true);
            let preferred = nice();
            let started = thread::spawn(nice).join().expect("no panic");
            set_preferred(false);
            (before, preferred, started, nice())
        });
        let (before, preferred, started, after) = thread.join().expect("no panic");
        assert!(preferred == before || preferred == PREFERRED, "not allowed, or so much");
        assert_eq!((started, after), (before, before));
    }

    #[test]
    fn elsewhere_is_another_processor_until_its_guard_is_dropped() {
        let before = allowed();
        match Elsewhere::go() {
            Some(elsewhere) => {
                assert_eq!(allowed().count() + 1, before.count());
                assert!(allowed().is_set(sched_getcpu()));
                drop(elsewhere);
            }
            None => assert_eq!(before.count(), 1),
        }
        assert_eq!(allowed(), before);
    }

    #[test]
    fn a_prompt_thread_keeps_its_priority_and_may_be_as_before() {
        let me = gettid();
        let seen = || {
            let attr = attributes(me).expect("this thread exists");
            ((attr.sched_policy, attr.sched_nice), attr.sched_runtime)
        };
        let (priority, slice) = seen();
        set_prompt(me, true);
        assert_eq!(seen().0, priority);
        // Older kernels tell no slices.
        assert!([slice, SHORT].contains(&seen().1), "{}", seen().1);
        set_prompt(me, false);
        assert_eq!(seen(), (priority, slice));
    }
}
