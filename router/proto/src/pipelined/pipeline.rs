//! One connection to a server, shared by many clients: commands in the order sent, each kept until answered.

use alloc::{collections::VecDeque, vec::Vec};

/// How far a command got before its connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Not whole: the server cannot have executed it, for it never saw its end.
    Not,
    /// Whole: nobody knows whether it was executed.
    Perhaps,
}

/// A command that a failed connection leaves behind.
#[derive(Debug)]
pub struct Flight<'a, T> {
    /// Whose it is.
    pub tag: T,
    /// The command as it was sent, or would have been.
    pub command: &'a [u8],
    /// How far it got.
    pub sent: Sent,
}

/// How many batches may be unanswered before further commands are held back.
///
/// A server answers the commands of one connection one after the other, so what is sent behind two unanswered
/// batches only waits there instead of here. Two and not one, so that a server has its next batch already when
/// it has answered one.
const BATCHES: usize = 2;
/// A batch of this many commands or bytes waits for no more of them: the system calls are spread thin already.
const ENOUGH: usize = 32;
const ENOUGH_BYTES: usize = 16 * 1024;

/// Answered bytes are cut off when there are this many of them.
const WORTHWHILE: usize = 64 * 1024;

#[derive(Clone, Debug)]
struct Pending<T> {
    tag: T,
    len: u32,
}

/// The outbound bytes of one connection, and whom each reply is for.
///
/// Commands stay in the buffer until they are answered, so that a failed connection gives them back without a
/// second copy having been kept.
#[derive(Clone, Debug)]
pub struct Pipeline<T> {
    bytes: Vec<u8>,
    /// Where the oldest unanswered command starts.
    head: usize,
    /// What has been written to the connection ends here.
    written: usize,
    /// Where each of the last batches ends; those that end at or before `head` are answered.
    ends: [usize; BATCHES],
    /// Commands behind the last batch.
    gathered: usize,
    /// How many commands had no reply at once, lately.
    peak: usize,
    pending: VecDeque<Pending<T>>,
}

/// What the commands that are in no batch yet wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathering {
    /// Nothing: there are none, or they may go.
    Done,
    /// A reply to what was sent before.
    Reply,
    /// Further commands, but not for long.
    Company,
}

impl<T> Default for Pipeline<T> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            head: 0,
            written: 0,
            ends: [0; BATCHES],
            gathered: 0,
            peak: 0,
            pending: VecDeque::new(),
        }
    }
}

impl<T> Pipeline<T> {
    /// Appends a command; `tag` comes back with its reply.
    pub fn push(&mut self, command: &[u8], tag: T) {
        self.bytes.extend_from_slice(command);
        let len = u32::try_from(command.len()).expect("commands are limited far below 4 GiB");
        self.pending.push_back(Pending { tag, len });
        self.gathered += 1;
        self.peak = self.peak.max(self.pending.len());
    }

    /// How many commands have no reply yet.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether every command has its reply.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// What the commands that are in no batch yet wait for.
    ///
    /// Where many clients wait for this server at once, each with one command under way, a command that went
    /// alone would cost both sides a system call for a few bytes, and the server would hardly have begun when
    /// the next one comes. So they gather until they are half of what was lately under way at once: one half is
    /// with the server while the other one gathers. A client that is alone waits for nobody.
    pub fn gathering(&self) -> Gathering {
        if self.gathered == 0 {
            Gathering::Done
        } else if self.ends.iter().all(|end| *end > self.head) {
            Gathering::Reply
        } else if self.gathered >= (self.peak / 2).min(ENOUGH)
            || self.bytes.len() - self.last() >= ENOUGH_BYTES
        {
            Gathering::Done
        } else {
            Gathering::Company
        }
    }

    /// The bytes to write now: the rest of a batch that was begun, or a new batch of all that has gathered, if
    /// it need not wait; `overdue` says that it has waited for company long enough.
    pub fn writable(&mut self, overdue: bool) -> &[u8] {
        let last = self.last();
        if self.written < last {
            return &self.bytes[self.written..last];
        }
        match self.gathering() {
            Gathering::Reply => return &[],
            Gathering::Company if !overdue => return &[],
            _ if self.gathered == 0 => return &[],
            _ => {}
        }
        let free = self.ends.iter_mut().find(|end| **end <= self.head).expect("not waiting for a reply");
        *free = self.bytes.len();
        self.gathered = 0;
        self.peak = self.pending.len().max(self.peak - self.peak.div_ceil(16));
        &self.bytes[self.written..]
    }

    /// Whether all commands are with the connection.
    pub fn is_written(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Where the last batch ends.
    fn last(&self) -> usize {
        self.ends.into_iter().fold(self.head, usize::max)
    }

    /// Notes that the first `len` of [`Pipeline::writable`] were written.
    ///
    /// # Panics
    /// If there were not as many.
    pub fn wrote(&mut self, len: usize) {
        self.written += len;
        assert!(self.written <= self.bytes.len(), "more written than there was");
    }

    /// The command that the next reply answers: its tag and its bytes. `None` if no command was written whole
    /// that could be answered: the server speaks unasked.
    pub fn oldest(&self) -> Option<(&T, &[u8])> {
        let oldest = self.pending.front()?;
        let end = self.head + oldest.len as usize;
        (end <= self.written).then(|| (&oldest.tag, &self.bytes[self.head..end]))
    }

    /// The tag of the oldest command, whole or not.
    pub fn front(&self) -> Option<&T> {
        self.pending.front().map(|pending| &pending.tag)
    }

    /// The tags of all commands without reply, oldest first.
    pub fn tags_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.pending.iter_mut().map(|pending| &mut pending.tag)
    }

    /// Takes the oldest command off, because its reply is there, and returns its tag and its length. `None`
    /// if no command was written whole that could be answered: the server speaks unasked.
    pub fn answered(&mut self) -> Option<(T, usize)> {
        let len = self.pending.front()?.len as usize;
        if self.head + len > self.written {
            return None;
        }
        self.head += len;
        let tag = self.pending.pop_front()?.tag;
        if self.head == self.bytes.len() || self.head > WORTHWHILE {
            self.tidy();
        }
        Some((tag, len))
    }

    /// Shows every command without reply but the `first` oldest, oldest first.
    pub fn latest(&mut self, first: usize, mut each: impl FnMut(&mut T, &[u8])) {
        let first = first.min(self.pending.len());
        let len: usize = self.pending.range(first..).map(|pending| pending.len as usize).sum();
        let mut start = self.bytes.len() - len;
        for Pending { tag, len } in self.pending.range_mut(first..) {
            let end = start + *len as usize;
            each(tag, &self.bytes[start..end]);
            start = end;
        }
    }

    /// The connection failed: hands every unanswered command to `each`, oldest first, and starts anew.
    pub fn fail(&mut self, mut each: impl FnMut(Flight<'_, T>)) {
        let mut start = self.head;
        for Pending { tag, len } in self.pending.drain(..) {
            let end = start + len as usize;
            let sent = if end <= self.written { Sent::Perhaps } else { Sent::Not };
            each(Flight { tag, command: &self.bytes[start..end], sent });
            start = end;
        }
        self.bytes.clear();
        (self.head, self.written, self.ends, self.gathered) = (0, 0, [0; BATCHES], 0);
    }

    #[cold]
    fn tidy(&mut self) {
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(4 * WORTHWHILE);
            (self.head, self.written, self.ends) = (0, 0, [0; BATCHES]);
        } else if self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
            self.written -= self.head;
            self.ends = self.ends.map(|end| end.saturating_sub(self.head));
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};
    use membership_types::Rng;

    #[test]
    fn tags_come_back_in_order_and_bytes_leave_once() {
        let mut rng = Rng::seeded(9);
        let (mut pipeline, mut wire, mut sent, mut expected) = (Pipeline::default(), vec![], vec![], 0);
        for tag in 0..20_000u32 {
            let command = format!("command {tag};").into_bytes();
            pipeline.push(&command, tag);
            sent.extend_from_slice(&command);
            let len = rng.below(pipeline.writable(true).len() as u64 + 1) as usize;
            wire.extend_from_slice(&pipeline.writable(true)[..len]);
            pipeline.wrote(len);
            while rng.chance(650) {
                match pipeline.answered() {
                    Some((answered, _)) => {
                        assert_eq!(answered, expected);
                        expected += 1;
                    }
                    None => break,
                }
            }
            assert!(pipeline.bytes.len() < 200 * 1024);
        }
        assert_eq!(wire, sent[..wire.len()]);
        assert!(expected > 15_000, "{expected}");
    }

    #[test]
    fn commands_gather_while_two_batches_are_unanswered() {
        let mut pipeline = Pipeline::default();
        let push = |pipeline: &mut Pipeline<u32>, tag| pipeline.push(b"12345", tag);
        push(&mut pipeline, 0);
        assert_eq!(pipeline.writable(false).len(), 5, "who is alone waits for nobody");
        push(&mut pipeline, 1);
        push(&mut pipeline, 2);
        assert_eq!(pipeline.writable(false).len(), 5, "the first batch goes first");
        pipeline.wrote(5);
        assert_eq!(pipeline.writable(false).len(), 10);
        pipeline.wrote(10);
        push(&mut pipeline, 3);
        assert_eq!(pipeline.gathering(), Gathering::Reply);
        assert_eq!(pipeline.writable(true), b"");
        pipeline.answered().unwrap();
        assert_eq!(pipeline.gathering(), Gathering::Company, "one, where four were under way at once");
        assert_eq!(pipeline.writable(false), b"");
        push(&mut pipeline, 4);
        assert_eq!(pipeline.writable(false).len(), 10, "half of them");
        pipeline.wrote(10);
        push(&mut pipeline, 5);
        pipeline.answered().unwrap();
        assert_eq!(pipeline.gathering(), Gathering::Reply, "half of the second batch is unanswered");
        pipeline.answered().unwrap();
        assert_eq!(pipeline.gathering(), Gathering::Company);
        assert_eq!(pipeline.writable(true).len(), 5, "it has waited long enough");
        pipeline.wrote(5);
        for tag in 3..6 {
            assert_eq!(pipeline.answered(), Some((tag, 5)));
        }
        assert!(pipeline.is_empty() && pipeline.gathering() == Gathering::Done);
        // What was under way at once long ago is forgotten.
        for tag in 0..40 {
            push(&mut pipeline, tag);
            let len = pipeline.writable(true).len();
            pipeline.wrote(len);
            pipeline.answered().unwrap();
        }
        push(&mut pipeline, 0);
        assert_eq!(pipeline.gathering(), Gathering::Done);
    }

    #[test]
    fn large_commands_wait_for_no_company() {
        let mut pipeline = Pipeline::default();
        for tag in 0..100 {
            pipeline.push(b"12345", tag);
        }
        let len = pipeline.writable(true).len();
        pipeline.wrote(len);
        pipeline.push(&[0; ENOUGH_BYTES - 1], 100);
        assert_eq!(pipeline.gathering(), Gathering::Company);
        pipeline.push(b"1", 101);
        assert_eq!(pipeline.gathering(), Gathering::Done);
    }

    #[test]
    fn a_failed_connection_tells_what_the_server_may_have_seen() {
        let mut pipeline = Pipeline::default();
        for tag in 0..4 {
            pipeline.push(b"12345", tag);
        }
        pipeline.wrote(14);
        assert_eq!(pipeline.answered(), Some((0, 5)));
        let mut left = vec![];
        pipeline.fail(|flight| left.push((flight.tag, flight.command.to_vec(), flight.sent)));
        // The third is one byte short: a server that waits for that byte cannot have executed it.
        let command = b"12345".to_vec();
        assert_eq!(
            left,
            [(1, command.clone(), Sent::Perhaps), (2, command.clone(), Sent::Not), (3, command, Sent::Not)]
        );
        assert!(pipeline.is_empty() && pipeline.writable(true).is_empty());
    }

    #[test]
    fn the_latest_commands_are_shown_whether_written_or_not() {
        let mut pipeline = Pipeline::default();
        for tag in 0..5u8 {
            pipeline.push(&vec![b'0' + tag; usize::from(tag)], tag);
        }
        pipeline.wrote(4);
        pipeline.answered().unwrap();
        pipeline.answered().unwrap();
        let mut shown = vec![];
        for first in 0..5 {
            pipeline.latest(first, |tag, command| shown.push((first, *tag, command.to_vec())));
        }
        let command = |tag: u8| vec![b'0' + tag; usize::from(tag)];
        let expected: Vec<_> = [(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)]
            .into_iter()
            .map(|(first, tag)| (first, tag, command(tag)))
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_reply_before_its_command_was_sent_is_nobodys() {
        let mut pipeline = Pipeline::default();
        assert_eq!(pipeline.answered(), None::<(u32, usize)>);
        pipeline.push(b"12345", 1);
        pipeline.wrote(4);
        assert_eq!(pipeline.oldest(), None);
        assert_eq!(pipeline.answered(), None);
        pipeline.wrote(1);
        assert_eq!(pipeline.oldest(), Some((&1, &b"12345"[..])));
        assert_eq!(pipeline.answered(), Some((1, 5)));
    }
}
