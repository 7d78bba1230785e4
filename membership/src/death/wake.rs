//! The thread of this process that holds its life lines and watches those of its neighbours.
//!
//! One thread for all, for as long as the process lives: what others are told by its end is the end of the process. It
//! never waits for anybody but in [`Bell::sleep`], and nobody waits for it. When a line is cut it looks at the threads of
//! that process, again and again for a while, and says what it found. Whatever is missing for that (an older kernel, a
//! sandbox, a hidden `/proc`), the pidfd remains.

use std::{
    io,
    sync::{Mutex, OnceLock, PoisonError, mpsc::sync_channel},
    thread,
    time::{Duration, Instant},
};

use membership_sync::{Bell, Cut, LifeLine, LifeLines, WATCHED_AT_ONCE, sleep_exactly};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use tokio::sync::oneshot;

use super::threads::{Seen, Threads};

/// Pauses between two looks at a process whose line is cut grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));
/// Then its pidfd has to tell. Most often the thread ended alone, or is inside a system call that takes long.
const LONGEST: Duration = Duration::from_millis(100);

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
    /// On its way to the thread.
    new: Mutex<Vec<Watched>>,
}

struct Watched {
    line: LifeLine,
    threads: Threads,
    tell: oneshot::Sender<Woken>,
    looking: Option<Looking>,
}

/// A line is cut: we look at the process's threads.
#[derive(Clone, Copy)]
struct Looking {
    next: Instant,
    pause: Duration,
    until: Instant,
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
            let life = Life { lines, bell: Bell::default(), new: Mutex::default() };
            life.bell.sleep(life.bell.heard(), [], Some(Duration::ZERO))?;
            // An imprecise sleep is a late look, and nothing worse.
            let _imprecise = sleep_exactly();
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
    /// Watches a line. The threads must be those of the process that holds it.
    pub(super) fn watch(&self, line: LifeLine, threads: Threads) -> Waking {
        let (tell, told) = oneshot::channel();
        let watched = Watched { line, threads, tell, looking: None };
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        self.bell.ring();
        Waking(told)
    }

    fn watch_for_ever(&self) {
        let mut all: Vec<Watched> = Vec::new();
        loop {
            // Before the list is read: who puts something on it rings afterwards.
            let heard = self.bell.heard();
            all.append(&mut self.new.lock().unwrap_or_else(PoisonError::into_inner));
            all.retain(|watched| !watched.tell.is_closed());
            let mut next = None;
            let mut at = 0;
            while let Some(watched) = all.get_mut(at) {
                match watched.look() {
                    Ok(due) => {
                        next = [next, due].into_iter().flatten().min();
                        at += 1;
                    }
                    Err(woken) => {
                        // Nobody may wait for it any more.
                        let _unheard = all.swap_remove(at).tell.send(woken);
                    }
                }
            }
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
    fn look(&mut self) -> Result<Option<Instant>, Woken> {
        let looking = match self.looking {
            Some(looking) => looking,
            None => match self.line.is_cut() {
                Cut::Whole => return Ok(None),
                Cut::TakenBack => return Err(Woken::Ended),
                Cut::Cut => {
                    let now = Instant::now();
                    Looking { next: now, pause: PAUSES.0, until: now + LONGEST }
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
        self.looking = Some(Looking { next, pause, ..looking });
        Ok(Some(next))
    }
}
