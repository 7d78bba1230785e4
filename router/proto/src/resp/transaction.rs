//! A transaction while it is written: the router keeps its commands, and sends all of them at once.
//!
//! So clients in a transaction can share a connection, as nothing of another one comes between; nothing has been
//! done before `EXEC`; and a transaction is either sent whole or not at all.

use alloc::vec::Vec;

use crate::{pmap::PartitionId, racs::Access};

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

/// The commands so far.
#[derive(Clone, Debug)]
pub struct Transaction {
    bytes: Vec<u8>,
    commands: u32,
    partition: Option<PartitionId>,
    access: Access,
    refused: bool,
    /// Whether keys are watched, so that it is sent even if there is nothing in it.
    watching: bool,
}

/// What `EXEC` finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// A command was refused, so nothing is sent.
    Refused,
    /// To be sent at once, for as many replies, of which the last one is the transaction's.
    Send {
        /// `MULTI`, the commands, `EXEC`.
        bytes: Vec<u8>,
        /// How many replies that gives.
        replies: u32,
        /// Where the keys are; `None` if there are none.
        partition: Option<PartitionId>,
        /// Whether data may change.
        access: Access,
    },
    /// There was no command.
    Empty,
}

impl Default for Transaction {
    fn default() -> Self {
        Self {
            bytes: MULTI.into(),
            commands: 0,
            partition: None,
            access: Access::Read,
            refused: false,
            watching: false,
        }
    }
}

impl Transaction {
    /// One that hangs on keys that are watched in this partition.
    pub fn watching(partition: PartitionId) -> Self {
        Self { partition: Some(partition), watching: true, ..Self::default() }
    }

    /// Takes a command; `partition` is that of its keys, if it has any. Returns whether all keys so far are in one
    /// partition: if not, or if there would be more than `most` bytes, the command is refused.
    pub fn queue(
        &mut self,
        command: &[u8],
        partition: Option<PartitionId>,
        access: Access,
        most: usize,
    ) -> Result<(), &'static str> {
        if let (Some(one), Some(other)) = (self.partition, partition)
            && one != other
        {
            self.refuse();
            return Err("CROSSSLOT Keys in request don't hash to the same slot");
        }
        if self.bytes.len() + command.len() > most {
            self.refuse();
            return Err("ERR phalanx: the transaction is above its limit, `transaction` in [service.limits]");
        }
        self.partition = self.partition.or(partition);
        if access == Access::Update {
            self.access = Access::Update;
        }
        if !self.refused {
            self.bytes.extend_from_slice(command);
            self.commands += 1;
        }
        Ok(())
    }

    /// Notes that a command was refused: nothing will be sent.
    pub fn refuse(&mut self) {
        self.refused = true;
        self.bytes = Vec::new();
    }

    /// Ends it.
    pub fn finish(mut self) -> Finished {
        if self.refused {
            return Finished::Refused;
        }
        if self.commands == 0 && !self.watching {
            return Finished::Empty;
        }
        self.bytes.extend_from_slice(EXEC);
        Finished::Send {
            bytes: self.bytes,
            replies: self.commands + 2,
            partition: self.partition,
            access: self.access,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_whole_to_one_partition_or_not_at_all() {
        let (a, b) = (PartitionId::new(1), PartitionId::new(2));
        let mut all = Transaction::default();
        all.queue(b"<ping>", None, Access::Read, 100).unwrap();
        all.queue(b"<get>", Some(a), Access::Read, 100).unwrap();
        let mut crossed = all.clone();
        let mut large = all.clone();
        assert_eq!(
            all.clone().finish(),
            Finished::Send {
                bytes: [MULTI, b"<ping><get>", EXEC].concat(),
                replies: 4,
                partition: Some(a),
                access: Access::Read
            }
        );
        all.queue(b"<set>", Some(a), Access::Update, 100).unwrap();
        all.queue(b"<get>", Some(a), Access::Read, 100).unwrap();
        assert!(matches!(all.finish(), Finished::Send { access: Access::Update, replies: 6, .. }));
        assert!(crossed.queue(b"<get>", Some(b), Access::Read, 100).unwrap_err().starts_with("CROSSSLOT"));
        crossed.queue(b"<get>", Some(a), Access::Read, 100).unwrap();
        assert_eq!(crossed.finish(), Finished::Refused);
        assert!(large.queue(&[b'x'; 80], None, Access::Read, 100).is_err());
        assert_eq!(large.finish(), Finished::Refused);
        assert_eq!(Transaction::default().finish(), Finished::Empty);
        let watching = Transaction::watching(a);
        assert!(
            matches!(watching.clone().finish(), Finished::Send { replies: 2, .. }),
            "what is watched decides"
        );
        assert!(watching.clone().queue(b"<get>", Some(b), Access::Read, 100).is_err());
    }
}
