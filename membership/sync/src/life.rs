//! Life lines: the kernel itself says, in shared memory, that a thread has ended, before it frees the process's memory.
//!
//! One thread *holds* the lines of its process: words in shared memory that the kernel marks and wakes when the thread
//! ends, as it does for locks that a dead thread held ("robust futexes"). Each other process watches a line of its own,
//! because the kernel wakes one sleeper per word.
//!
//! A line that is cut proves no death, for a thread may end alone: it is the moment to look.
#![allow(unsafe_code, reason = "shared mappings, and system calls that no safe interface offers")]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::{
    fs::{
        MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
    },
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
    thread::{
        futex::{self, WAITERS, Wait, WaitFlags, WaitPtr, WaitvFlags},
        gettid,
    },
    time::{ClockId, Timespec, clock_gettime},
};

use crate::life_links::{LifeLinks, STRIDE};

/// How many processes can watch this one. The kernel looks at no more than 2048.
pub const LINES: usize = 1024;
/// How many lines one thread can watch at once: the kernel takes 128 words, and one of them is the bell.
pub const WATCHED_AT_ONCE: usize = 127;

/// The lines of this process, held by the thread that made them.
pub struct LifeLines {
    memory: OwnedFd,
    words: Mapping,
    held: u32,
    ring: Mutex<Ring>,
}

struct Ring {
    links: LifeLinks,
    free: Vec<u32>,
}

impl LifeLines {
    /// Lines that the calling thread holds until it ends. They stay in memory for ever, because the kernel may read them
    /// until then. The thread must use no robust mutexes of the C library: a thread has one list.
    pub fn hold() -> io::Result<&'static Self> {
        let memory = memfd_create("phalanx-life", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        fchmod(&memory, Mode::RUSR | Mode::WUSR)?;
        ftruncate(&memory, (LINES * STRIDE) as u64)?;
        let words = Mapping::new(memory.as_fd(), ProtFlags::READ | ProtFlags::WRITE)?;
        // Who gets the memory can neither write to it nor cut it short.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&memory, seals)?;
        let links = LifeLinks::new(LINES);
        links.set_words(words.start.addr().get());
        let head = ptr::without_provenance::<libc::c_void>(links.head());
        // Lower numbers first.
        let free = (0..LINES as u32).rev().collect();
        let held = gettid().as_raw_nonzero().get().cast_unsigned() | WAITERS;
        let lines: &'static Self =
            Box::leak(Box::new(Self { memory, words, held, ring: Mutex::new(Ring { links, free }) }));
        // SAFETY: the head and the links stay where they are for ever (they are boxed, and leaked above), form a ring at
        // every moment, and lead to words that stay mapped for ever.
        let status = unsafe { libc::syscall(libc::SYS_set_robust_list, head, LifeLinks::HEAD_SIZE) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(lines)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory to hand to whom a line is given.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// A line for one watcher, if there is another one.
    pub fn give(&'static self) -> Option<GivenLine> {
        let mut ring = self.ring();
        let line = ring.free.pop()?;
        // The bit says that somebody sleeps, so that watchers need not write: the kernel wakes only where it is set.
        self.words.word(line).store(self.held, Ordering::Relaxed);
        ring.links.link(line as usize);
        Some(GivenLine { lines: self, line })
    }
}

/// A line that was given to a watcher, until this is dropped.
pub struct GivenLine {
    lines: &'static LifeLines,
    line: u32,
}

impl GivenLine {
    /// Which one it is, within the memory.
    pub fn number(&self) -> u32 {
        self.line
    }
}

impl Drop for GivenLine {
    fn drop(&mut self) {
        let mut ring = self.lines.ring();
        ring.links.unlink(self.line as usize);
        let word = self.lines.words.word(self.line);
        word.store(0, Ordering::Relaxed);
        // Whoever still watches stops. Nobody sleeping there is no error.
        let _woken = futex::wake(word, futex::Flags::empty(), u32::MAX >> 1);
        // To the far end: the longer it rests, the less a late watcher can take a new line for its old one.
        ring.free.insert(0, self.line);
    }
}

/// A line of another process, watched.
pub struct LifeLine {
    words: Mapping,
    line: u32,
    whole: u32,
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The thread lives.
    Whole,
    /// The thread has ended.
    Cut,
    /// The other side took the line back.
    TakenBack,
}

impl LifeLine {
    /// The line `number` in memory that came from another process; refused if it is not memory of [`LifeLines`].
    pub fn watch(memory: BorrowedFd<'_>, number: u32) -> io::Result<Self> {
        let wrong = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if number as usize >= LINES {
            return wrong("no such life line");
        }
        // Memory that shrinks under a mapping would kill the reader.
        if !fcntl_get_seals(memory)?.contains(SealFlags::SHRINK) {
            return wrong("memory of life lines that can be cut short");
        }
        if fstat(memory)?.st_size < (LINES * STRIDE) as i64 {
            return wrong("memory of life lines that is too small");
        }
        let words = Mapping::new(memory, ProtFlags::READ)?;
        let whole = words.word(number).load(Ordering::Relaxed) & !futex::OWNER_DIED;
        Ok(Self { words, line: number, whole })
    }

    /// What it says now.
    pub fn is_cut(&self) -> Cut {
        // Relaxed: nothing else is read because of it; it is the moment to ask the kernel.
        let word = self.words.word(self.line).load(Ordering::Relaxed);
        if word & futex::OWNER_DIED != 0 {
            Cut::Cut
        } else if word == self.whole && word & !WAITERS != 0 {
            Cut::Whole
        } else {
            Cut::TakenBack
        }
    }

    fn wait(&self) -> Wait {
        wait(self.words.word(self.line), self.whole, WaitFlags::SIZE_U32)
    }
}

/// Wakes a thread that watches lines.
#[derive(Default)]
pub struct Bell(AtomicU32);

impl Bell {
    /// How often it was rung. Read it before what the ringing is about.
    pub fn heard(&self) -> u32 {
        // Acquire: what was done before the ringing is seen.
        self.0.load(Ordering::Acquire)
    }

    /// Wakes the sleeper, or keeps it from falling asleep.
    pub fn ring(&self) {
        // Release: see `heard`.
        self.0.fetch_add(1, Ordering::Release);
        // Nobody sleeping is no error.
        let _woken = futex::wake(&self.0, futex::Flags::PRIVATE, 1);
    }

    /// Sleeps until the bell was rung oftener than `heard` times, one of the lines (no more than [`WATCHED_AT_ONCE`]) is no
    /// longer whole, or so much time has passed; or for no reason.
    ///
    /// # Errors
    /// If the kernel lets nobody wait so (before Linux 5.16).
    pub fn sleep<'a>(
        &self,
        heard: u32,
        lines: impl IntoIterator<Item = &'a LifeLine>,
        longest: Option<Duration>,
    ) -> io::Result<()> {
        let mut waits = vec![wait(&self.0, heard, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE)];
        waits.extend(lines.into_iter().take(WATCHED_AT_ONCE).map(LifeLine::wait));
        let until = longest.map(|longest| {
            let now = clock_gettime(ClockId::Monotonic);
            now + Timespec::try_from(longest).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        match futex::waitv(&waits, WaitvFlags::empty(), until.as_ref(), ClockId::Monotonic) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn wait(word: &AtomicU32, value: u32, flags: WaitFlags) -> Wait {
    let mut wait = Wait::new();
    wait.val = value.into();
    wait.uaddr = WaitPtr::new(ptr::from_ref(word).cast_mut().cast());
    wait.flags = flags;
    wait
}

/// Shared memory with one word per line.
struct Mapping {
    start: NonNull<AtomicU32>,
}

// SAFETY: the mapping is owned by this value alone, stays as long as it, and holds atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above; through `&Mapping` there are only `&AtomicU32`, which threads may share.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(memory: BorrowedFd<'_>, access: ProtFlags) -> io::Result<Self> {
        // SAFETY: without an address hint the kernel maps fresh addresses and touches no others.
        let start = unsafe { mmap(ptr::null_mut(), LINES * STRIDE, access, MapFlags::SHARED, memory, 0) }?;
        let start = NonNull::new(start.cast()).expect("without a hint the kernel never maps address zero");
        Ok(Self { start })
    }

    fn word(&self, line: u32) -> &AtomicU32 {
        assert!((line as usize) < LINES, "lines are counted where they come in");
        // SAFETY: within the mapping (see above), which cannot shrink, and aligned; what is mapped read-only is only loaded
        // from.
        unsafe { self.start.byte_add(line as usize * STRIDE).as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our mapping, and no reference from `word` outlives `self`. An error could only mean
        // that the range is wrong; leaking it is then the lesser harm.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), LINES * STRIDE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc::channel, thread};

    /// Longer than anything takes that will happen at all.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Sleeps until the line says this.
    fn until(line: &LifeLine, what: Cut) {
        let bell = Bell::default();
        let end = std::time::Instant::now() + PATIENCE;
        while line.is_cut() != what {
            assert!(std::time::Instant::now() < end, "not in time: {what:?}");
            bell.sleep(bell.heard(), [line], Some(PATIENCE)).expect("Linux 5.16");
        }
    }

    #[test]
    fn every_line_is_cut_when_the_thread_that_holds_them_ends_and_each_sleeper_is_woken() {
        let ((send, lines), (end, ended)) = (channel(), channel::<()>());
        let holder = thread::spawn(move || {
            send.send(LifeLines::hold().expect("robust futexes")).expect("the test waits");
            // Until the other end is dropped.
            let _end = ended.recv();
        });
        let lines: &'static LifeLines = lines.recv().expect("sent");
        let given: Vec<GivenLine> = (0..20).map(|_| lines.give().expect("free")).collect();
        let watched: Vec<LifeLine> = given
            .iter()
            .map(|given| LifeLine::watch(lines.memory(), given.number()).expect("lines"))
            .collect();
        for line in &watched {
            assert_eq!(line.is_cut(), Cut::Whole);
        }
        thread::scope(|scope| {
            for line in &watched {
                scope.spawn(|| until(line, Cut::Cut));
            }
            drop(end);
        });
        holder.join().expect("no panic");
    }

    #[test]
    fn a_line_that_is_taken_back_wakes_its_watcher_and_is_not_cut() {
        let ((send, lines), (end, ended)) = (channel(), channel::<()>());
        let holder = thread::spawn(move || {
            send.send(LifeLines::hold().expect("robust futexes")).expect("the test waits");
            let _end = ended.recv();
        });
        let lines: &'static LifeLines = lines.recv().expect("sent");
        let (one, two) = (lines.give().expect("free"), lines.give().expect("free"));
        let watch = |given: &GivenLine| LifeLine::watch(lines.memory(), given.number()).expect("lines");
        let (first, second) = (watch(&one), watch(&two));
        thread::scope(|scope| {
            scope.spawn(|| until(&first, Cut::TakenBack));
            drop(one);
        });
        drop(end);
        holder.join().expect("no panic");
        assert_eq!(first.is_cut(), Cut::TakenBack, "nobody holds it any more");
        until(&second, Cut::Cut);
    }

    #[test]
    fn a_bell_that_rang_before_is_heard_at_once_and_time_passes_otherwise() {
        let bell = Bell::default();
        let heard = bell.heard();
        bell.ring();
        bell.sleep(heard, [], None).expect("Linux 5.16");
        bell.sleep(bell.heard(), [], Some(Duration::from_millis(1))).expect("Linux 5.16");
    }

    #[test]
    fn memory_that_is_not_made_for_life_lines_is_refused() {
        let open = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
        ftruncate(&open, (LINES * STRIDE) as u64).expect("memory");
        assert!(LifeLine::watch(open.as_fd(), 0).is_err(), "it can be cut short");
        let small = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
        fcntl_add_seals(&small, SealFlags::SHRINK).expect("sealed");
        assert!(LifeLine::watch(small.as_fd(), 0).is_err(), "it is too small");
        fcntl_add_seals(&open, SealFlags::SHRINK).expect("sealed");
        assert!(LifeLine::watch(open.as_fd(), LINES as u32).is_err(), "there is no such line");
        let line = LifeLine::watch(open.as_fd(), 0).expect("good enough");
        assert_eq!(line.is_cut(), Cut::TakenBack, "nobody holds it");
        assert!(std::fs::File::open("/dev/null").is_ok_and(|file| LifeLine::watch(file.as_fd(), 0).is_err()));
    }

    #[test]
    fn watchers_cannot_write_to_the_lines_of_others() {
        let lines = thread::spawn(|| LifeLines::hold().expect("robust futexes")).join().expect("no panic");
        assert!(rustix::io::pwrite(lines.memory(), &[1], 0).is_err());
        assert!(Mapping::new(lines.memory(), ProtFlags::READ | ProtFlags::WRITE).is_err());
    }
}
