//! Threads that must have their turn soon: those that keep the node in the cluster, and that prove deaths.
//!
//! They sleep nearly always and work for some ten microseconds. Yet the processor that they wake up on may be busy for a
//! millisecond, of all moments when a neighbour dies: the kernel frees the memory of the dead there. Who asks for shorter
//! turns gets them sooner (since Linux 6.12), and takes no larger share.

use std::{io, num::NonZeroU64};

/// The shortest turn that the kernel gives, in nanoseconds.
const TURN: u64 = 100_000;

/// Of the kernel's `sched/types.h`, its first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Short turns for the calling thread, which also wakes up when it said, and not 50 us later. What the kernel does not know,
/// it does not do: all this costs is time.
pub(crate) fn prompt() {
    if let Err(error) = short_turns().and(precise_sleep()) {
        tracing::debug!(%error, "this thread has its turn when others have theirs");
    }
}

fn precise_sleep() -> io::Result<()> {
    Ok(rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?)
}

fn short_turns() -> io::Result<()> {
    let mut now = attributes()?;
    // Whoever chose another class for this process knows why.
    if now.policy == libc::SCHED_OTHER as u32 {
        now.runtime = TURN;
        // SAFETY: `now` has the size that it says, and is only read. Zero is the calling thread.
        #[allow(unsafe_code, reason = "no safe interface to this system call exists")]
        let status = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const now, 0) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn attributes() -> io::Result<Attributes> {
    let mut now = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: `now` is valid for writing as many bytes as the call is told. Zero is the calling thread.
    #[allow(unsafe_code, reason = "no safe interface to this system call exists")]
    let status = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size, 0) };
    if status == 0 { Ok(now) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_thread_keeps_its_class_and_its_share() {
        std::thread::spawn(|| {
            let before = attributes().expect("Linux 3.14");
            prompt();
            let after = attributes().expect("Linux 3.14");
            assert_eq!((after.policy, after.nice), (before.policy, before.nice));
            // Zero where the kernel does not know of turns.
            assert!(after.runtime == TURN || after.runtime == 0, "{}", after.runtime);
        })
        .join()
        .expect("no panic");
    }
}
