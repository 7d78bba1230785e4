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
    sync::{Mutex, PoisonError},
    thread,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal},
};
use tokio::sync::{mpsc, oneshot};

use crate::{Child, ChildSpec, Output, SpawnError};

/// So many jobs may wait; who has one more waits until it finds room.
const WAITING: usize = 64;

pub(crate) type Job = Box<dyn FnOnce() + Send>;

static SPAWNER: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);

/// Has the spawner start a child. Cancel-safe: the answer to nobody is dropped, and so the child in it
/// killed.
pub(crate) async fn spawn(spec: ChildSpec) -> Result<Child, SpawnError> {
    let program = spec.command.first().cloned().ok_or(SpawnError::NoCommand)?;
    let (answer, child) = oneshot::channel();
    let job = move || drop(answer.send(start(&spec)));
    submit(Box::new(job)).await.map_err(|source| SpawnError::System { command: program, source })?;
    child.await.expect("the spawner answers every job")
}

/// Has the spawner do this. Cancel-safe: what found no room yet is not done.
pub(crate) async fn submit(job: Job) -> io::Result<()> {
    jobs()?.send(job).await.map_err(|_| io::Error::other("the spawner thread has ended"))
}

/// The way to the spawner, which is started with the first one who asks.
fn jobs() -> io::Result<mpsc::Sender<Job>> {
    let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(jobs) = &*spawner {
        return Ok(jobs.clone());
    }
    let (jobs, inbox) = mpsc::channel(WAITING);
    thread::Builder::new().name("spawner".into()).spawn(move || serve(inbox))?;
    Ok(spawner.insert(jobs).clone())
}

fn serve(mut inbox: mpsc::Receiver<Job>) {
    while let Some(job) = inbox.blocking_recv() {
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
        let (jobs, inbox) = mpsc::channel(2);
        let spawner = thread::spawn(move || serve(inbox));
        let (ran, outcome) = oneshot::channel();
        let panics: Job = Box::new(|| panic!("on purpose"));
        let reports: Job = Box::new(move || ran.send(()).expect("the test waits"));
        jobs.blocking_send(panics).expect("it listens");
        jobs.blocking_send(reports).expect("it listens");
        outcome.blocking_recv().expect("the second job ran");
        drop(jobs);
        assert!(spawner.join().is_ok());
    }

    #[tokio::test]
    async fn who_has_more_for_the_spawner_than_may_wait_waits() {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let (begun, began) = oneshot::channel();
        let first = move || {
            begun.send(()).expect("the test waits");
            // Until the test lets it go.
            let _go = gate.recv();
        };
        submit(Box::new(first)).await.expect("the first");
        began.await.expect("it runs");
        let (ran, mut all) = mpsc::unbounded_channel();
        for n in 0..WAITING {
            let ran = ran.clone();
            submit(Box::new(move || ran.send(n).expect("the test waits"))).await.expect("there is room");
        }
        let one_more = submit(Box::new(move || ran.send(WAITING).expect("the test waits")));
        tokio::pin!(one_more);
        let soon = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, &mut one_more).await.is_err(), "there is no room");
        drop(go);
        one_more.await.expect("now there is");
        for n in 0..=WAITING {
            assert_eq!(all.recv().await, Some(n), "in their order, and none is lost");
        }
    }
}
