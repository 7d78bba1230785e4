//! How a fuse is started: by a clone of the wrapper that becomes another program at once.
//!
//! The standard library starts no process in namespaces of its own. Between the clone and the exec only system calls are
//! made, on what was prepared before: other threads of the wrapper may have held any lock.
#![allow(unsafe_code, reason = "what runs between clone and exec is unsafe by nature")]

use std::{
    env,
    ffi::{CStr, CString, OsString, c_char},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    ptr,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, FdFlags, fcntl_setfd, write},
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Pid, Signal, getegid, geteuid, set_parent_process_death_signal},
};

use super::Containment;

/// The first byte of what the new process says if it does not become a fuse; the error's number follows.
pub(super) const FAILED: u8 = b'E';

/// All that the new process needs, so that it need not allocate.
struct Prepared<'a> {
    program: CString,
    arguments: &'a [*const c_char],
    variables: &'a [*const c_char],
    control: BorrowedFd<'a>,
    deadline: BorrowedFd<'a>,
    how: Containment,
    /// For a user namespace in which everybody is who they are outside.
    maps: [(&'static CStr, String); 3],
}

/// Starts `program` as a fuse. It says on `control` how that went. To be called on a thread that lasts as long as the
/// wrapper.
pub(super) fn launch(
    program: &[OsString],
    how: Containment,
    control: BorrowedFd<'_>,
    deadline: BorrowedFd<'_>,
) -> io::Result<(Pid, OwnedFd)> {
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
    let mut arguments: Vec<CString> = program.iter().cloned().map(text).collect::<Result<_, _>>()?;
    for descriptor in [control, deadline] {
        arguments.push(text(descriptor.as_raw_fd().to_string().into())?);
    }
    arguments.push(text(how.name().into())?);
    let variables = env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        text(name)
    });
    let variables: Vec<CString> = variables.collect::<Result<_, _>>()?;
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let prepared = Prepared {
        program: text(program.first().cloned().unwrap_or_default())?,
        arguments: &pointers(&arguments),
        variables: &pointers(&variables),
        control,
        deadline,
        how,
        maps: [
            (c"/proc/self/setgroups", "deny".to_owned()),
            (c"/proc/self/uid_map", format!("{uid} {uid} 1")),
            (c"/proc/self/gid_map", format!("{gid} {gid} 1")),
        ],
    };
    let namespaces = match how {
        Containment::Namespace => libc::CLONE_NEWPID | libc::CLONE_NEWNS,
        Containment::UserNamespace => libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS,
        Containment::Subreaper => 0,
    };
    let flags = namespaces | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    // SAFETY: without CLONE_VM and with no stack given this is a fork. The kernel writes the pidfd where the third argument
    // points, in the parent. The child only calls `become_fuse`, which never returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags as libc::c_ulong,
            ptr::null_mut::<libc::c_void>(),
            &raw mut pidfd,
            ptr::null_mut::<libc::c_void>(),
            0_usize,
        )
    };
    if pid == 0 {
        become_fuse(&prepared);
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from(Errno::INVAL))?;
    // SAFETY: the clone succeeded, so the kernel put a fresh descriptor there, which nobody else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// In the new process.
fn become_fuse(prepared: &Prepared<'_>) -> ! {
    let error = prepare(prepared).err().unwrap_or_else(|| {
        let (arguments, variables) = (prepared.arguments.as_ptr(), prepared.variables.as_ptr());
        // SAFETY: a string, and two arrays of strings that end with a null; all live on this stack's copy.
        unsafe { libc::execve(prepared.program.as_ptr(), arguments, variables) };
        Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
    });
    let [a, b, c, d] = error.raw_os_error().to_le_bytes();
    // If nobody listens, the wrapper is dead.
    let _unheard = write(prepared.control, &[FAILED, a, b, c, d]);
    // SAFETY: ends this process and runs nothing of it.
    unsafe { libc::_exit(127) }
}

/// Between clone and exec: system calls only.
fn prepare(prepared: &Prepared<'_>) -> Result<(), Errno> {
    if prepared.how == Containment::UserNamespace {
        for (file, text) in &prepared.maps {
            let file = openat(CWD, *file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            write(&file, text.as_bytes())?;
        }
    }
    if prepared.how != Containment::Subreaper {
        // The first process of a pid namespace is killed by whom it cannot see, and everybody in it with it. What stays
        // alive without its wrapper because it was cloned too late for this signal sees the end of `control`.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Process numbers in /proc must be those of the namespace. What is mounted here stays here; what is mounted outside
        // comes in.
        mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"proc", c"/proc", c"proc", flags, None)?;
    }
    for descriptor in [prepared.control, prepared.deadline] {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    Ok(())
}

/// Whether `program` may be given to [`launch`]: it is not looked up in `PATH`.
pub(super) fn is_path(program: &[OsString]) -> bool {
    program.first().is_some_and(|program| program.as_bytes().contains(&b'/'))
}
