//! One client's replies: they arrive from many servers in any order and leave in the order of the commands.

use alloc::{collections::VecDeque, vec::Vec};

/// The place of one command in its client's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);

#[derive(Clone, Debug)]
enum Slot {
    /// The reply has not come.
    Open,
    /// The reply came early and lies in the stash.
    Early { start: usize, len: usize },
}

/// The replies that a client still waits for. A reply whose turn it is goes straight to the output; one that
/// comes early is kept until its turn.
#[derive(Clone, Debug, Default)]
pub struct Reorder {
    slots: VecDeque<Slot>,
    /// Sequence number of the first slot.
    first: u64,
    stash: Vec<u8>,
    /// Bytes of the stash that still wait.
    live: usize,
}

impl Reorder {
    /// Takes the next place, for a command just received.
    pub fn open(&mut self) -> Seq {
        self.slots.push_back(Slot::Open);
        Seq(self.first + self.slots.len() as u64 - 1)
    }

    /// How many replies have not left yet.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether every reply has left.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes that are kept for their turn.
    pub fn kept(&self) -> usize {
        self.live
    }

    /// Puts a reply, perhaps an empty one, in its place and appends to `out` all replies whose turn it is.
    ///
    /// # Panics
    /// If the place already has its reply: replies would go to the wrong commands.
    pub fn fill(&mut self, seq: Seq, reply: &[u8], out: &mut Vec<u8>) {
        let at = seq.0.checked_sub(self.first).expect("a reply for a command that has its reply") as usize;
        if at > 0 {
            let slot = &mut self.slots[at];
            assert!(matches!(slot, Slot::Open), "a second reply for one command");
            // An empty reply is nowhere: nothing of the stash needs to be kept for it.
            let start = if reply.is_empty() { 0 } else { self.stash.len() };
            *slot = Slot::Early { start, len: reply.len() };
            self.stash.extend_from_slice(reply);
            self.live += reply.len();
            return;
        }
        assert!(
            matches!(self.slots.pop_front(), Some(Slot::Open)),
            "a reply for a command that has its reply"
        );
        self.first += 1;
        out.extend_from_slice(reply);
        while let Some(&Slot::Early { start, len }) = self.slots.front() {
            out.extend_from_slice(&self.stash[start..start + len]);
            self.live -= len;
            self.slots.pop_front();
            self.first += 1;
        }
        self.tidy();
    }

    /// Keeps the stash from growing while it is never quite empty.
    fn tidy(&mut self) {
        const WORTHWHILE: usize = 64 * 1024;
        if self.live == 0 {
            self.stash.clear();
            self.stash.shrink_to(WORTHWHILE);
        } else if self.stash.len() > WORTHWHILE && self.live < self.stash.len() / 2 {
            let mut compact = Vec::with_capacity(self.live);
            for slot in &mut self.slots {
                if let Slot::Early { start, len } = slot
                    && *len > 0
                {
                    let from = *start;
                    *start = compact.len();
                    compact.extend_from_slice(&self.stash[from..from + *len]);
                }
            }
            self.stash = compact;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String};
    use membership_types::Rng;

    #[test]
    fn replies_leave_in_the_order_of_the_commands_however_they_come() {
        let mut rng = Rng::seeded(3);
        for _ in 0..100 {
            let (mut reorder, mut out, mut waiting) = (Reorder::default(), Vec::new(), Vec::new());
            let mut expected = String::new();
            // Some have nothing to say.
            let text = |n: u32| if n.is_multiple_of(3) { String::new() } else { format!("<{n}>") };
            for n in 0..500 {
                waiting.push((reorder.open(), n));
                expected += &text(n);
                while rng.chance(600) && !waiting.is_empty() {
                    let (seq, n) = waiting.swap_remove(rng.below(waiting.len() as u64) as usize);
                    reorder.fill(seq, text(n).as_bytes(), &mut out);
                }
            }
            for (seq, n) in waiting {
                reorder.fill(seq, text(n).as_bytes(), &mut out);
            }
            assert_eq!(String::from_utf8(out).unwrap(), expected);
            assert!(reorder.is_empty());
            assert_eq!(reorder.kept(), 0);
        }
    }

    #[test]
    fn a_stash_that_is_never_empty_does_not_grow_for_ever() {
        // Two commands are always outstanding, and the second's reply is always there first.
        let (mut reorder, mut out) = (Reorder::default(), Vec::new());
        let mut head = reorder.open();
        for _ in 0..10_000 {
            let next = reorder.open();
            let last = reorder.open();
            reorder.fill(last, &[b'x'; 100], &mut out);
            reorder.fill(head, b"+\r\n", &mut out);
            out.clear();
            head = next;
            // `last` now waits for `next` alone.
            assert!(reorder.stash.len() < 200 * 1024, "{}", reorder.stash.len());
            let filler = reorder.open();
            reorder.fill(head, b"+\r\n", &mut out);
            head = filler;
        }
    }

    #[test]
    #[should_panic(expected = "a second reply")]
    fn a_second_reply_is_a_broken_invariant() {
        let (mut reorder, mut out) = (Reorder::default(), Vec::new());
        reorder.open();
        let second = reorder.open();
        reorder.fill(second, b"+1\r\n", &mut out);
        reorder.fill(second, b"+2\r\n", &mut out);
    }
}
