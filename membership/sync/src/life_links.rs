//! The list of a thread's life lines, in the form in which the kernel reads it when the thread ends.

use crate::shim::atomic::{AtomicUsize, Ordering};

/// The head as the kernel wants it: the first link, the way from a link to its word, and one that is never used.
const HEAD: usize = 3;
/// Bytes from one link to the next.
pub(crate) const STRIDE: usize = size_of::<usize>();

/// A ring of links that begins and ends at its head. Each link is the address of the next one.
///
/// One writer at a time (the caller sees to that). The reader is the kernel, in whatever moment the thread ends: whoever
/// is on the list before and after must be met, and the walk must end.
pub struct LifeLinks {
    next: Box<[AtomicUsize]>,
    base: usize,
}

impl LifeLinks {
    /// Room for so many lines, none of which is on the list.
    pub fn new(lines: usize) -> Self {
        let next: Box<[AtomicUsize]> = (0..HEAD + lines).map(|_| AtomicUsize::new(0)).collect();
        #[cfg(not(loom))]
        let base = next.as_ptr().addr();
        // The model's cells are larger than their values; only differences of addresses matter there.
        #[cfg(loom)]
        let base = 0x1000;
        // Nobody else knows of the list yet.
        next[0].store(base, Ordering::Relaxed);
        Self { next, base }
    }

    /// Where the kernel finds the head.
    pub fn head(&self) -> usize {
        self.base
    }

    /// The head's size, which the kernel asks for.
    #[cfg(not(loom))]
    pub(crate) const HEAD_SIZE: usize = HEAD * STRIDE;

    /// Words lie at the same distance from each other as links. Tells the kernel where the first one is. Before the kernel is
    /// told of the list.
    #[cfg(not(loom))]
    pub(crate) fn set_words(&self, first: usize) {
        self.next[1].store(first.wrapping_sub(self.address(0)), Ordering::Relaxed);
    }

    fn address(&self, line: usize) -> usize {
        self.base + (HEAD + line) * STRIDE
    }

    fn cell(&self, address: usize) -> &AtomicUsize {
        &self.next[(address - self.base) / STRIDE]
    }

    /// Puts a line on the list that is not on it.
    pub fn link(&self, line: usize) {
        let (head, address) = (self.cell(self.base), self.address(line));
        // Release: a walk that stands on this line since it was on the list before goes on from it, and must find the links of
        // what was put on the list meanwhile. The load is of what writers wrote, who follow each other.
        self.cell(address).store(head.load(Ordering::Relaxed), Ordering::Release);
        // Release: who finds the line finds the way on from it.
        head.store(address, Ordering::Release);
    }

    /// Takes a line off the list. Its own link stays, for a walk that has come to it already.
    pub fn unlink(&self, line: usize) {
        let address = self.address(line);
        let mut at = self.base;
        loop {
            let next = self.cell(at).load(Ordering::Relaxed);
            if next == address {
                break;
            }
            if next == self.base {
                return; // It is not on the list.
            }
            at = next;
        }
        let rest = self.cell(address).load(Ordering::Relaxed);
        // Release: the rest may have been linked by another writer, whose links must be seen with it.
        self.cell(at).store(rest, Ordering::Release);
    }

    /// Walks as the kernel does: it follows addresses, and gives up after `most` lines. For tests.
    pub fn walk(&self, most: usize) -> Option<Vec<usize>> {
        let mut met = Vec::new();
        let mut at = self.cell(self.base).load(Ordering::Acquire);
        while at != self.base {
            if met.len() == most {
                return None;
            }
            met.push((at - self.base) / STRIDE - HEAD);
            at = self.cell(at).load(Ordering::Acquire);
        }
        Some(met)
    }
}
