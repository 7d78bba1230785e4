//! Real processes: `sh` and `sleep` as unmodified servers. Where a wrapper has to die, this test binary is
//! started anew, with a variable that makes one of its tests the wrapper.
#![allow(clippy::unwrap_used, reason = "also in what the tests share")]

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    ops::Deref,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use backplane::{Child, ChildSpec, Output, SpawnError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, getpgid, pidfd_open},
};

/// Longer than anything here takes; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of one test's own, removed with it.
struct Scratch(PathBuf);

fn scratch(test: &str) -> Scratch {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    Scratch(dir)
}

impl Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sh(script: &str, dir: &Path) -> ChildSpec {
    ChildSpec { dir: Some(dir.to_owned()), ..ChildSpec::new(["sh", "-c", script]) }
}

/// Waits until the script has written the file (under another name, and renamed it).
async fn written(file: PathBuf) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::read_to_string(&file) {
            Ok(text) => return text,
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(error) => panic!("{}: {error}", file.display()),
        }
    }
}

/// Holds on to a process, whatever becomes of its number.
fn hold(pid: &str) -> OwnedFd {
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).expect("it runs")
}

fn ends_within(pidfd: impl AsFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

fn runs(pidfd: impl AsFd) -> bool {
    !ends_within(pidfd, Duration::ZERO)
}

/// Starts a sleeper in the background and writes its number to `sleeper`.
const SLEEPER: &str = "sleep 60 & echo $! > new; mv new sleeper;";

#[tokio::test]
async fn a_child_heads_a_group_of_its_own_and_reads_nothing() {
    // In our group it would get our terminal's signals; with our input it would eat the wrapper's commands.
    let dir = scratch("group");
    let mut child =
        Child::spawn(sh("readlink /proc/$$/fd/0 > new; mv new input; sleep 60", &dir)).await.unwrap();
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    assert_eq!(getpgid(Some(pid)).unwrap(), pid);
    assert_ne!(getpgid(None).unwrap(), pid);
    assert_eq!(written(dir.join("input")).await.trim(), "/dev/null");
    child.stop().await.unwrap();
}

#[tokio::test]
async fn a_child_runs_with_its_variables_in_its_directory_and_its_code_is_reported() {
    let dir = scratch("spec");
    let mut spec = sh("pwd > where; exit $CODE", &dir);
    spec.env = vec![(OsString::from("CODE"), OsString::from("7"))];
    let mut child = Child::spawn(spec).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    assert_eq!(child.wait().await.unwrap().code(), Some(7), "asked again, told again");
    assert_eq!(child.stop().await.unwrap().code(), Some(7), "there is nothing to stop");
    let here = fs::read_to_string(dir.join("where")).unwrap();
    assert_eq!(Path::new(here.trim()), dir.canonicalize().unwrap());
}

#[tokio::test]
async fn a_child_that_heeds_sigterm_ends_in_its_own_way() {
    let dir = scratch("heeds");
    let script = "trap 'exit 3' TERM; touch ready; while :; do sleep 0.01; done";
    let mut child = Child::spawn(sh(script, &dir)).await.unwrap();
    written(dir.join("ready")).await;
    let begun = Instant::now();
    assert_eq!(child.stop_within(PATIENCE).await.unwrap().code(), Some(3));
    assert!(begun.elapsed() < PATIENCE, "it was not waited for in vain");
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed_after_its_grace() {
    let dir = scratch("ignores");
    let script = "trap '' TERM; touch ready; while :; do sleep 0.01; done";
    let mut child = Child::spawn(sh(script, &dir)).await.unwrap();
    written(dir.join("ready")).await;
    let grace = Duration::from_millis(150);
    let begun = Instant::now();
    assert_eq!(child.stop_within(grace).await.unwrap().signal(), Some(Signal::KILL.as_raw()));
    assert!(begun.elapsed() >= grace);
}

#[tokio::test]
async fn a_suspended_child_heeds_sigterm_too() {
    // A stopped process acts on nothing but SIGKILL and SIGCONT: it would lose its chance to end in order.
    let dir = scratch("suspended");
    let script = "trap 'exit 3' TERM; kill -STOP $$; while :; do sleep 0.01; done";
    let mut child = Child::spawn(sh(script, &dir)).await.unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        assert!(Instant::now() < deadline, "it does not suspend itself");
        thread::yield_now();
    }
    assert_eq!(child.stop_within(PATIENCE).await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn stopping_kills_grandchildren() {
    // One that heeds SIGTERM, and one that does not: its grace ends with the child's own end.
    let dir = scratch("grandchildren");
    let deaf = "(trap '' TERM; touch deafened; exec sleep 60) & echo $! > new; mv new deaf;";
    let script = format!("trap 'exit 0' TERM; {SLEEPER} {deaf} while :; do sleep 0.01; done");
    let mut child = Child::spawn(sh(&script, &dir)).await.unwrap();
    let sleeper = hold(&written(dir.join("sleeper")).await);
    let deaf = hold(&written(dir.join("deaf")).await);
    written(dir.join("deafened")).await;
    assert_eq!(child.stop_within(PATIENCE).await.unwrap().code(), Some(0));
    assert!(ends_within(&sleeper, PATIENCE));
    assert!(ends_within(&deaf, PATIENCE));
}

#[tokio::test]
async fn what_a_child_leaves_behind_at_its_own_end_is_killed() {
    let dir = scratch("left-behind");
    let mut child = Child::spawn(sh(&format!("{SLEEPER} exit 4"), &dir)).await.unwrap();
    let sleeper = hold(&written(dir.join("sleeper")).await);
    assert_eq!(child.wait().await.unwrap().code(), Some(4));
    assert!(ends_within(&sleeper, PATIENCE));
}

#[tokio::test]
async fn a_dropped_child_is_killed_with_its_group_and_reaped() {
    let dir = scratch("dropped");
    let child = Child::spawn(sh(&format!("{SLEEPER} wait"), &dir)).await.unwrap();
    let sleeper = hold(&written(dir.join("sleeper")).await);
    let pidfd = child.pidfd().try_clone_to_owned().unwrap();
    let entry = PathBuf::from(format!("/proc/{}", child.id()));
    drop(child);
    assert!(ends_within(&pidfd, PATIENCE));
    assert!(ends_within(&sleeper, PATIENCE));
    let deadline = Instant::now() + PATIENCE;
    while entry.exists() {
        assert!(Instant::now() < deadline, "a dead entry remains in the process table");
        thread::yield_now();
    }
}

#[test]
fn a_child_outlives_the_thread_and_the_runtime_that_asked_for_it() {
    // The trap of the parent-death signal: it is sent when the thread that forked ends.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = thread::spawn(move || runtime().block_on(Child::spawn(ChildSpec::new(["sleep", "60"]))));
    let mut child = started.join().unwrap().unwrap();
    assert!(!ends_within(child.pidfd(), Duration::from_millis(300)), "it died with the thread");
    let exit = runtime().block_on(child.stop_within(PATIENCE)).unwrap();
    assert_eq!(exit.signal(), Some(Signal::TERM.as_raw()));
}

#[tokio::test]
async fn a_cancelled_start_leaves_no_child() {
    // The future is dropped while the spawner forks: the answer has nobody to go to.
    let dir = scratch("cancelled");
    for n in 0..20 {
        let script = format!("echo $$ > new{n}; mv new{n} pid{n}; sleep 60");
        let start = Child::spawn(sh(&script, &dir));
        let _ = tokio::time::timeout(Duration::from_micros(n * 100), start).await;
    }
    // A later start has its answer only after the spawner is done with the earlier ones.
    Child::spawn(sh("exit 0", &dir)).await.unwrap().wait().await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    for n in 0..20 {
        let Ok(pid) = fs::read_to_string(dir.join(format!("pid{n}"))) else { continue };
        let entry = PathBuf::from(format!("/proc/{}/cwd", pid.trim()));
        while fs::read_link(&entry).is_ok_and(|cwd| cwd == dir.canonicalize().unwrap()) {
            assert!(Instant::now() < deadline, "start {n} was cancelled, and its child runs");
            thread::yield_now();
        }
    }
}

#[tokio::test]
async fn a_command_that_cannot_run_is_explained() {
    async fn refusal(command: &[&str]) -> SpawnError {
        Child::spawn(ChildSpec::new(command.iter().copied())).await.map(drop).unwrap_err()
    }
    let dir = scratch("refused");
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    assert!(matches!(refusal(&[]).await, SpawnError::NoCommand));
    let missing = refusal(&["no-such-server", "--port", "1"]).await;
    assert!(matches!(missing, SpawnError::NotFound(_)));
    assert!(missing.to_string().contains("no-such-server"), "{missing}");
    assert!(matches!(refusal(&["/no/such/server"]).await, SpawnError::NotFound(_)));
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    assert!(matches!(refusal(&[&plain]).await, SpawnError::NotExecutable(_)));
    assert!(matches!(refusal(&[dir.to_str().unwrap()]).await, SpawnError::NotExecutable(_)));
    let orphan = file("orphan", "#!/no/such/interpreter\n", 0o755);
    assert!(matches!(refusal(&[&orphan]).await, SpawnError::NoInterpreter(_)));
    let nowhere = Child::spawn(sh("true", &dir.join("nowhere"))).await.map(drop);
    assert!(matches!(nowhere.unwrap_err(), SpawnError::NoDirectory(_)));
}

/// Starts this test binary anew as a wrapper that runs `role`.
fn wrapper(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "as_a_wrapper", "--nocapture"]).env("BACKPLANE_TEST_ROLE", role);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Not a test, but what [`wrapper`] runs; without a role it does nothing.
#[tokio::test]
async fn as_a_wrapper() {
    match env::var("BACKPLANE_TEST_ROLE").as_deref() {
        Ok("sleeper") => {
            let child = Child::spawn(ChildSpec::new(["sleep", "60"])).await.unwrap();
            println!("\nchild {}", child.id());
            std::future::pending::<()>().await;
        }
        Ok("speaker") => {
            let mut spec = ChildSpec::new(["echo", "said by the child"]);
            spec.output = Output::Stderr;
            Child::spawn(spec).await.unwrap().wait().await.unwrap();
        }
        _ => {}
    }
}

#[test]
fn a_wrapper_that_is_killed_takes_its_child_along() {
    // Nobody of the wrapper's is left to do it: a server would go on under a lease that has a new owner.
    let mut wrapper = wrapper("sleeper").spawn().unwrap();
    let lines = BufReader::new(wrapper.stdout.take().unwrap()).lines();
    let told = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("child ").map(str::to_owned));
    let child = hold(&told.expect("the wrapper tells its child's number"));
    assert!(runs(&child));
    wrapper.kill().unwrap();
    assert_eq!(wrapper.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    assert!(ends_within(&child, PATIENCE));
}

#[test]
fn a_childs_output_may_go_to_our_error_output() {
    let ran = wrapper("speaker").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && err.contains("said by the child"), "{err}");
    assert!(!out.contains("said by the child"), "{out}");
}
