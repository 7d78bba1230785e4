//! The one thread that forks.
//!
//! The parent-death signal (`PR_SET_PDEATHSIG`) is sent when the *thread* that forked ends, not when its
//! process does. A runtime's threads come and go, so they must not fork: children would die with an idle
//! worker. This thread is started with the first child and ends with the process.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal},
};
use tokio::sync::oneshot;

use crate::{Child, ChildSpec, Output, SpawnError};

pub(crate) type Job = Box<dyn FnOnce() + Send>;

static SPAWNER: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);

/// Has the spawner start a child. Cancel-safe: the answer to nobody is dropped, and so the child in it
/// killed.
pub(crate) async fn spawn(spec: ChildSpec) -> Result<Child, SpawnError> {
    let program = spec.command.first().cloned().ok_or(SpawnError::NoCommand)?;
    let (answer, child) = oneshot::channel();
    let job = move || drop(answer.send(start(&spec)));
    submit(Box::new(job)).map_err(|source| SpawnError::System { command: program, source })?;
    child.await.expect("the spawner answers every job")
}

pub(crate) fn submit(job: Job) -> io::Result<()> {
    let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    let jobs = match &mut *spawner {
        Some(jobs) => jobs,
        none => {
            let (jobs, inbox) = mpsc::channel();
            thread::Builder::new().name("spawner".into()).spawn(move || serve(inbox))?;
            none.insert(jobs)
        }
    };
    jobs.send(job).map_err(|_| io::Error::other("the spawner thread has ended"))
}

fn serve(inbox: mpsc::Receiver<Job>) {
    for job in inbox {
        // A panic must not end this thread: every child would die. Who waits for the job's answer panics
        // instead.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

fn start(spec: &ChildSpec) -> Result<Child, SpawnError> {
    let (program, arguments) = spec.command.split_first().ok_or(SpawnError::NoCommand)?;
    if let Some(dir) = &spec.dir
        && !dir.is_dir()
    {
        // Asked beforehand, because a failed chdir and a failed exec give the same error.
        return Err(SpawnError::NoDirectory(dir.clone()));
    }
    let refused = |source| SpawnError::System { command: program.clone(), source };
    let mut command = Command::new(program);
    command.args(arguments).envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.stdin(if spec.input { Stdio::inherit() } else { Stdio::null() });
    command.stdout(output(spec.output).map_err(refused)?);
    if spec.own_group {
        command.process_group(0);
    }
    if let Some(dir) = &spec.dir {
        command.current_dir(dir);
    }
    die_with_wrapper(&mut command, getpid());
    let child = command.spawn().map_err(|error| explain(program, spec.dir.as_deref(), error))?;
    Child::adopt(child, spec.grace).map_err(refused)
}

/// What a child's standard output is.
pub(crate) fn output(output: Output) -> io::Result<OwnedFd> {
    match output {
        Output::Inherit => io::stdout().as_fd().try_clone_to_owned(),
        Output::Stderr => io::stderr().as_fd().try_clone_to_owned(),
        Output::Null => Ok(File::options().write(true).open("/dev/null")?.into()),
    }
}

/// Makes the kernel kill the child when the thread that is about to fork it ends.
#[allow(unsafe_code, reason = "what runs between fork and exec is unsafe by nature")]
fn die_with_wrapper(command: &mut Command, wrapper: Pid) {
    let between_fork_and_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The wrapper may have died before the line above; then no signal will come, and we are somebody
        // else's.
        if getppid() == Some(wrapper) { Ok(()) } else { Err(io::Error::from(Errno::SRCH)) }
    };
    // SAFETY: the closure makes two system calls and builds an error from a number. It neither allocates nor
    // locks nor touches memory that another thread may have left half-written.
    unsafe { command.pre_exec(between_fork_and_exec) };
}

/// What the kernel's number means for this command.
pub(crate) fn explain(program: &OsStr, dir: Option<&Path>, source: io::Error) -> SpawnError {
    let command = program.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => {
            let names_a_file = program.as_encoded_bytes().contains(&b'/');
            if names_a_file && dir.unwrap_or(Path::new("")).join(program).exists() {
                SpawnError::NoInterpreter(command)
            } else {
                SpawnError::NotFound(command)
            }
        }
        Some(Errno::ACCESS) => SpawnError::NotExecutable(command),
        _ => SpawnError::System { command, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_whose_wrapper_died_before_it_was_bound_does_not_run() {
        // The race between fork and prctl: the child finds another parent than the one that forked it.
        let mut command = Command::new("true");
        die_with_wrapper(&mut command, Pid::INIT);
        let refused = command.spawn().map(|mut child| child.wait()).expect_err("init is not our parent");
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::SRCH));
    }

    #[test]
    fn a_panic_does_not_end_the_thread_on_which_every_child_depends() {
        let (jobs, inbox) = mpsc::channel();
        let spawner = thread::spawn(move || serve(inbox));
        let (ran, outcome) = mpsc::channel();
        let panics: Job = Box::new(|| panic!("on purpose"));
        let reports: Job = Box::new(move || ran.send(()).expect("the test waits"));
        jobs.send(panics).expect("it listens");
        jobs.send(reports).expect("it listens");
        outcome.recv().expect("the second job ran");
        drop(jobs);
        assert!(spawner.join().is_ok());
    }
}
