//! The thread of this process that holds its life lines and watches those of its neighbours.
//!
//! One thread for all, for as long as the process lives: what others are told by its end is the end of the process. It
//! never waits for anybody but in [`Bell::sleep`], and nobody waits for it. When a line is cut it looks at the threads of
//! that process, again and again for a while, and says what it found. Whatever is missing for that (an older kernel, a
//! sandbox, a hidden `/proc`), the pidfd remains.

use std::{
    io,
    num::NonZeroU64,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::{Duration, Instant},
};

use membership_sync::{Bell, Cut, LifeLine, LifeLines, WATCHED_AT_ONCE};
use rustix::{
    process::{PidfdFlags, getpid, pidfd_open},
    thread::{Pid, gettid},
};
use tokio::sync::oneshot;

use super::{
    threads::{Seen, Threads},
    turn::{self, Elsewhere},
};

/// Pauses between two looks at a process whose line is cut grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));
/// How long one waits with its first look that others on this host need less than their own.
const COURTESY: Duration = Duration::from_millis(3);
/// Then its pidfd has to tell: the thread ended alone, or another one is inside a system call that takes long.
const LONGEST: Duration = Duration::from_secs(1);

/// What comes of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// All threads of the process are exiting.
    Exiting,
    /// The line was cut, but not all threads were seen exiting.
    InVain,
    /// The line cannot be watched any more.
    Ended,
}

/// What this process has to do with life lines.
pub(super) struct Life {
    /// The lines that it can give.
    pub(super) lines: &'static LifeLines,
    bell: Bell,
    /// Others on this host look first: what they see is told to this process before it needs it.
    courteous: AtomicBool,
    /// This process is among those who act first.
    prompt: AtomicBool,
    /// The thread.
    thread: Pid,
    /// On its way to the thread.
    new: Mutex<Vec<Watched>>,
}

struct Watched {
    line: LifeLine,
    threads: Threads,
    tell: oneshot::Sender<Woken>,
    /// The thread that waits for that.
    waits: Pid,
    looking: Option<Looking>,
}

/// A line is cut: we look at the process's threads.
#[derive(Clone, Copy)]
struct Looking {
    next: Instant,
    pause: Duration,
    until: Instant,
    seen_alive: bool,
}

/// Tells what comes of a watch, which ends when this is dropped.
pub(super) struct Waking(oneshot::Receiver<Woken>);

impl Waking {
    pub(super) async fn woken(&mut self) -> Woken {
        (&mut self.0).await.unwrap_or(Woken::Ended)
    }
}

impl Drop for Waking {
    fn drop(&mut self) {
        self.0.close();
        if let Some(life) = life() {
            life.bell.ring();
        }
    }
}

/// Begins with the first call, which says once what is missing, if anything is.
pub(super) fn life() -> Option<&'static Life> {
    static LIFE: OnceLock<Option<&'static Life>> = OnceLock::new();
    *LIFE.get_or_init(|| match begin() {
        Ok(life) => Some(life),
        Err(error) => {
            super::only_by_pidfd(&error);
            None
        }
    })
}

fn begin() -> io::Result<&'static Life> {
    // What is read of ourselves must make sense before anything is proved by it.
    let own = Threads::of(&pidfd_open(getpid(), PidfdFlags::empty())?)?;
    if own.look()? != Seen::Nothing {
        return Err(io::Error::other("/proc does not show the threads of this process as they are"));
    }
    let (begun, has_begun) = sync_channel(1);
    let body = move || {
        let life = LifeLines::hold().and_then(|lines| {
            let (bell, new) = (Bell::default(), Mutex::default());
            let (courteous, prompt) = (AtomicBool::new(false), AtomicBool::new(false));
            let life = Life { lines, bell, courteous, prompt, thread: gettid(), new };
            life.bell.sleep(life.bell.heard(), [], Some(Duration::ZERO))?;
            // It wakes up when it said, and not 50 us later. If that cannot be had, a look comes late, and nothing worse.
            let _imprecise = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            Ok(&*Box::leak(Box::new(life)))
        });
        let watches = life.as_ref().ok().copied();
        let _waiting = begun.send(life);
        if let Some(life) = watches {
            life.watch_for_ever();
        }
    };
    thread::Builder::new().name("phalanx-life".into()).spawn(body)?;
    has_begun.recv().map_err(|_| io::Error::other("the thread that holds life lines ended at once"))?
}

impl Life {
    /// Watches a line, for the calling thread. The threads must be those of the process that holds it.
    pub(super) fn watch(&self, line: LifeLine, threads: Threads) -> Waking {
        let (tell, told) = oneshot::channel();
        let watched = Watched { line, threads, tell, waits: gettid(), looking: None };
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        self.bell.ring();
        Waking(told)
    }

    /// How long this process leaves the processors to others when somebody dies.
    pub(super) fn courtesy(&self) -> Option<Duration> {
        self.courteous.load(Ordering::Relaxed).then_some(COURTESY)
    }

    /// Do others on this host have to act first when somebody dies? Then this process leaves them the processors.
    pub(super) fn set_courteous(&self, courteous: bool) {
        self.courteous.store(courteous, Ordering::Relaxed);
    }

    /// Is this process among those who act first when somebody dies? Then its thread runs at once when it is woken.
    pub(super) fn set_prompt(&self, prompt: bool) {
        if self.prompt.swap(prompt, Ordering::Relaxed) != prompt {
            turn::set_prompt(self.thread, prompt);
        }
    }

    fn watch_for_ever(&self) {
        let mut all: Vec<Watched> = Vec::new();
        let mut elsewhere = None;
        loop {
            // Before the list is read: who puts something on it rings afterwards.
            let heard = self.bell.heard();
            all.append(&mut self.new.lock().unwrap_or_else(PoisonError::into_inner));
            all.retain(|watched| !watched.tell.is_closed());
            let mut next = None;
            let mut at = 0;
            while let Some(watched) = all.get_mut(at) {
                match watched.look(self.courtesy()) {
                    Ok(due) => {
                        next = [next, due].into_iter().flatten().min();
                        at += 1;
                    }
                    Err(woken) => {
                        let Watched { tell, waits, .. } = all.swap_remove(at);
                        turn::wake_here(waits, || {
                            // Nobody may wait for it any more.
                            let _unheard = tell.send(woken);
                        });
                    }
                }
            }
            // What still lives where this thread runs is kept from ending.
            let lives = all.iter().any(|watched| watched.looking.is_some_and(|looking| looking.seen_alive));
            elsewhere = if lives { elsewhere.or_else(Elsewhere::go) } else { None };
            let mut room = WATCHED_AT_ONCE;
            let full = |watched: &mut Watched| {
                let fits = watched.looking.is_some() || room > 0;
                room -= usize::from(watched.looking.is_none() && fits);
                !fits
            };
            for left_out in all.extract_if(.., full) {
                // Its pidfd will tell. Nobody may wait for it any more.
                let _unheard = left_out.tell.send(Woken::Ended);
            }
            let lines = all.iter().filter(|watched| watched.looking.is_none()).map(|watched| &watched.line);
            let longest = next.map(|at| at.saturating_duration_since(Instant::now()));
            if let Err(error) = self.bell.sleep(heard, lines, longest) {
                // Not even sleeping works as it did: rather late proofs than a busy thread.
                super::only_by_pidfd(&error);
                all.clear();
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

impl Watched {
    /// Looks, if it is time. Gives when to look again, or what came of it.
    fn look(&mut self, courtesy: Option<Duration>) -> Result<Option<Instant>, Woken> {
        let looking = match self.looking {
            Some(looking) => looking,
            None => match self.line.is_cut() {
                Cut::Whole => return Ok(None),
                Cut::TakenBack => return Err(Woken::Ended),
                Cut::Cut => {
                    let now = Instant::now();
                    let next = now + courtesy.unwrap_or_default();
                    let looking = Looking { next, pause: PAUSES.0, until: now + LONGEST, seen_alive: false };
                    self.looking = Some(looking);
                    looking
                }
            },
        };
        let now = Instant::now();
        if now < looking.next {
            return Ok(Some(looking.next));
        }
        // Where reading fails, e.g. because descriptors are scarce, another look may work.
        match self.threads.look().unwrap_or(Seen::Nothing) {
            Seen::Exiting => return Err(Woken::Exiting),
            Seen::Gone => return Err(Woken::Ended),
            Seen::Nothing => {}
        }
        if now >= looking.until {
            return Err(Woken::InVain);
        }
        let next = Instant::now() + looking.pause;
        let pause = (looking.pause * 5 / 4).min(PAUSES.1);
        self.looking = Some(Looking { next, pause, seen_alive: true, ..looking });
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{BufRead, BufReader, Write},
        os::fd::{AsFd, AsRawFd, OwnedFd},
        process::{Child, Command, Stdio},
        sync::mpsc::channel,
    };

    use rustix::{
        event::{PollFd, PollFlags, poll},
        process::{Pid, Signal, kill_process},
    };
    use tokio::time::timeout;

    use super::*;
    use crate::{
        death::{TheirActs, proof},
        metrics::Counts,
    };

    /// Longer than anything takes that will happen at all.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Runs in children: four threads, one of which holds life lines, and so much memory. Each line of standard input ends
    /// the thread that holds the lines.
    #[test]
    fn holder() {
        let Ok(memory) = std::env::var("HOLDER_MIB") else { return };
        let held = vec![1_u8; memory.parse::<usize>().expect("a number") << 20];
        std::hint::black_box(&held);
        let ((send, lines), (end, ended)) = (channel(), channel::<()>());
        thread::spawn(move || {
            send.send(LifeLines::hold().expect("robust futexes")).expect("it waits");
            ended.recv().expect("a word, or the end of the process");
        });
        let lines: &'static LifeLines = lines.recv().expect("sent");
        let given = lines.give().expect("free");
        for _ in 0..2 {
            thread::spawn(|| thread::sleep(PATIENCE * 10));
        }
        // After the line that the test framework has begun.
        println!("\n{{{} {}", lines.memory().as_raw_fd(), given.number());
        for line in io::stdin().lines() {
            line.expect("read");
            end.send(()).expect("the thread waits");
        }
    }

    /// A child that holds life lines, one of which is ours. It is left unreaped until the end.
    struct Holder {
        child: Child,
        pidfd: OwnedFd,
        waking: Option<Waking>,
    }

    impl Holder {
        fn start(mib: usize) -> Self {
            let mut child = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "death::wake::tests::holder", "--nocapture", "--test-threads", "1"])
                .env("HOLDER_MIB", mib.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program starts");
            let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            let line = lines.map(|line| line.expect("text")).find(|line| line.starts_with('{'));
            let line = line.expect("it says where its lines are");
            let (memory, number) = line[1..].split_once(' ').expect("two numbers");
            let memory = File::open(format!("/proc/{}/fd/{memory}", child.id())).expect("our own child");
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("our own child");
            let line = LifeLine::watch(memory.as_fd(), number.parse().expect("a number")).expect("lines");
            let life = life().expect("robust futexes, and Linux 5.16");
            let waking = Some(life.watch(line, Threads::of(&pidfd).expect("/proc")));
            Self { child, pidfd, waking }
        }

        fn signal(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.child), signal).expect("our own child");
        }

        fn waking(&mut self) -> Waking {
            self.waking.take().expect("asked for once")
        }

        fn pidfd(&self) -> OwnedFd {
            self.pidfd.try_clone().expect("a copy")
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            // It may be dead already.
            let _dead = self.child.kill();
            let _reaped = self.child.wait();
        }
    }

    #[tokio::test]
    async fn a_process_of_several_threads_that_is_killed_is_proved_dead() {
        let mut holder = Holder::start(0);
        let mut waking = holder.waking();
        holder.signal(Signal::KILL);
        assert_eq!(timeout(PATIENCE, waking.woken()).await, Ok(Woken::Exiting));
    }

    /// The kernel frees memory before it says that the process is gone. A busy machine may delay us, but not every time.
    #[tokio::test]
    async fn the_death_of_a_big_process_is_proved_well_before_its_pidfd_tells() {
        let mut times = Vec::new();
        for _ in 0..5 {
            let mut holder = Holder::start(1024);
            let (pidfd, killed) = (holder.pidfd(), Instant::now());
            holder.signal(Signal::KILL);
            let gone = thread::spawn(move || {
                let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
                assert_eq!(ready, Ok(1), "it ends");
                killed.elapsed()
            });
            let woken = timeout(PATIENCE, holder.waking().woken()).await;
            let (proved, gone) = (killed.elapsed(), gone.join().expect("no panic"));
            if woken == Ok(Woken::Exiting) && proved * 2 < gone {
                return;
            }
            times.push((woken, proved, gone));
        }
        panic!("proved late each time: {times:?}");
    }

    #[tokio::test]
    async fn a_thread_that_ends_alone_proves_nothing_and_the_pidfd_remains() {
        let mut holder = Holder::start(0);
        let (pidfd, waking, counts) = (holder.pidfd(), holder.waking(), Counts::default());
        let mut proof = Box::pin(proof(pidfd, Some(waking), TheirActs::Itself, &counts));
        writeln!(holder.child.stdin.as_ref().expect("piped"), "end").expect("it reads");
        let end = Instant::now() + PATIENCE;
        while counts.wakes_in_vain.get() == 0 {
            assert!(timeout(Duration::from_millis(10), &mut proof).await.is_err(), "it lives");
            assert!(Instant::now() < end, "the line was cut");
        }
        assert!(timeout(LONGEST / 10, &mut proof).await.is_err(), "it lives still");
        holder.signal(Signal::KILL);
        let how = timeout(PATIENCE, proof).await.expect("in time").expect("watched");
        assert_eq!((how, counts.proofs_by_pidfd.get(), counts.proofs_by_exiting.get()), ("pidfd", 1, 0));
    }

    #[tokio::test]
    async fn a_stopped_process_is_not_dead_until_it_is_killed() {
        let mut holder = Holder::start(0);
        let (pidfd, waking, counts) = (holder.pidfd(), holder.waking(), Counts::default());
        let mut proof = Box::pin(proof(pidfd, Some(waking), TheirActs::Itself, &counts));
        holder.signal(Signal::STOP);
        assert!(timeout(LONGEST, &mut proof).await.is_err(), "it is stopped");
        assert_eq!(counts.wakes_in_vain.get(), 0, "its line is whole");
        holder.signal(Signal::KILL);
        timeout(PATIENCE, proof).await.expect("in time").expect("watched");
    }

    #[tokio::test]
    async fn a_watch_that_nobody_wants_any_more_ends_and_others_go_on() {
        let (mut one, mut two) = (Holder::start(0), Holder::start(0));
        drop(one.waking());
        one.signal(Signal::KILL);
        let mut waking = two.waking();
        assert!(timeout(LONGEST / 10, waking.woken()).await.is_err(), "it lives");
        two.signal(Signal::KILL);
        assert_eq!(timeout(PATIENCE, waking.woken()).await, Ok(Woken::Exiting));
    }
}
