//! Until when what acts under a lease may go on, in memory that the fuse of those processes shares with their wrapper.
//!
//! The wrapper writes, and may be stopped at any time; the fuse reads, and needs nobody for that. Once all that it watched
//! over is gone the fuse says so here, for those who watch the fuse.
#![allow(unsafe_code, reason = "a shared mapping, which no safe interface offers")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{
        MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
    },
    io::pread,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// What lies in the memory. All zero is "over, and not known to be gone".
#[repr(C)]
struct Words {
    until: AtomicU64,
    gone: AtomicU64,
}

/// A deadline that two processes share, in nanoseconds of `CLOCK_BOOTTIME`.
pub struct Deadline {
    memory: OwnedFd,
    words: NonNull<Words>,
}

// SAFETY: the mapping is owned by this value alone, stays as long as it, and holds atomics only.
unsafe impl Send for Deadline {}
// SAFETY: as above; through `&Deadline` there is only `&Words`, which threads may share.
unsafe impl Sync for Deadline {}

impl Deadline {
    /// A deadline that has passed.
    ///
    /// # Errors
    /// If the kernel gives no shared memory.
    pub fn new() -> io::Result<Self> {
        let memory = memfd_create("phalanx-deadline", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        fchmod(&memory, Mode::RUSR | Mode::WUSR)?;
        ftruncate(&memory, size_of::<Words>() as u64)?;
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::open(memory)
    }

    /// The deadline in memory that came from another process.
    ///
    /// # Errors
    /// If it is not memory of a deadline.
    pub fn open(memory: OwnedFd) -> io::Result<Self> {
        // Memory that shrinks under a mapping would kill the reader.
        let sealed = fcntl_get_seals(&memory)?.contains(SealFlags::SHRINK);
        if !sealed || fstat(&memory)?.st_size < size_of::<Words>() as i64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no memory of a deadline"));
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without an address hint the kernel maps fresh addresses and touches no others.
        let words =
            unsafe { mmap(ptr::null_mut(), size_of::<Words>(), access, MapFlags::SHARED, &memory, 0) }?;
        let words = NonNull::new(words.cast()).expect("without a hint the kernel never maps address zero");
        Ok(Self { memory, words })
    }

    /// The memory, to hand to the other process.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// When it is. Relaxed, here and below: a lone number, compared with a clock, from which nothing else is concluded.
    pub fn until(&self) -> u64 {
        self.words().until.load(Ordering::Relaxed)
    }

    /// Moves it. To an earlier time only together with a word to the fuse, which sleeps until the one that it has read.
    pub fn set(&self, until: u64) {
        self.words().until.store(until, Ordering::Relaxed);
    }

    /// All that the fuse watched over is gone: its last word, to those who find it dead.
    pub fn set_gone(&self) {
        self.words().gone.store(1, Ordering::Relaxed);
    }

    /// Whether that was said. Asked once the process that would have said it is dead: the kernel orders the two.
    ///
    /// # Errors
    /// If this is no such memory.
    pub fn is_gone(memory: BorrowedFd<'_>) -> io::Result<bool> {
        let mut gone = [0; size_of::<u64>()];
        let read = pread(memory, &mut gone, size_of::<u64>() as u64)?;
        Ok(read == gone.len() && u64::from_ne_bytes(gone) == 1)
    }

    fn words(&self) -> &Words {
        // SAFETY: mapped, readable and writable until `self` is dropped, aligned to a page, and it cannot shrink.
        unsafe { self.words.as_ref() }
    }
}

impl std::fmt::Debug for Deadline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deadline").field("until", &self.until()).finish_non_exhaustive()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our mapping, and no reference from `words` outlives `self`. An error could only mean
        // that the range is wrong; leaking it is then the lesser harm.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), size_of::<Words>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_writes_the_other_one_reads() {
        let ours = Deadline::new().expect("memory");
        assert_eq!((ours.until(), Deadline::is_gone(ours.memory()).expect("memory")), (0, false));
        let theirs = Deadline::open(ours.memory().try_clone_to_owned().expect("a copy")).expect("the same");
        ours.set(17);
        theirs.set_gone();
        assert_eq!((theirs.until(), Deadline::is_gone(ours.memory()).expect("memory")), (17, true));
    }

    #[test]
    fn other_memory_is_refused() {
        let open = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
        ftruncate(&open, 4096).expect("memory");
        assert!(Deadline::open(open).is_err(), "it can be cut short");
        let empty = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
        fcntl_add_seals(&empty, SealFlags::SHRINK).expect("sealed");
        assert!(!Deadline::is_gone(empty.as_fd()).expect("readable"), "it says nothing");
        assert!(Deadline::open(empty).is_err(), "it is too small");
    }
}
