//! The configuration of one node's membership; checked once, here.

use alloc::vec::Vec;
use core::time::Duration;

use membership_types::Drift;

use crate::{entry::LEVEL, state::Terms, view::NodeInfo};

/// How a node that finds no cluster goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bootstrap {
    /// `expect(n)`: n founder slots; the first view needs a majority of them, and so does authority for ever.
    Expect(u16),
    /// `alone-after(d)`: after d without meeting a cluster the smallest node id among the seekers that hear each
    /// other founds one. For development: the guarantees then hold per lineage only.
    AloneAfter(Duration),
    /// Never found, only join.
    Join,
}

/// A configuration that cannot be wrong; made by [`Config::new`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Who this node is.
    pub me: NodeInfo,
    /// What to do when there is no cluster.
    pub bootstrap: Bootstrap,
    /// What a lineage founded by this node agrees on; a lineage that it joins must have the same lease.
    pub terms: Terms,
    /// How often the node speaks to the coordinator, and the coordinator's clock tick.
    pub heartbeat: Duration,
    /// How long a candidate waits for each rank before its own; longer than one round of promises takes.
    pub step: Duration,
    /// How long a node of a blocked lineage waits before it goes over to another lineage.
    pub give_up: Duration,
    /// Seconds since the start of 2020 by the wall clock at the instant 0 of the node's interval clock. It
    /// begins the view ids of a new lineage and decides nothing else.
    pub epoch_s: u64,
    /// A lineage begins its view ids at the second of its founding times 2 to this power: ids of later lineages are higher as
    /// long as a lineage makes fewer views than that a second, and no wall clock is set back.
    pub id_bits: u32,
    /// How many view ids a data directory sets aside at once; a restart of the whole cluster skips about as many.
    pub id_block: u64,
    /// Do other processes act for this node? They end when its leases do, and not at the moment in which it is told to stop.
    pub acts_elsewhere: bool,
    /// Emit trace events?
    pub trace: bool,
    /// The feature level that this build understands; less only to try how builds of several levels get on.
    pub level: u16,
    /// How long all members must have understood a higher feature level before this node, as coordinator, has it agreed on:
    /// a time in which the last upgrade can still be taken back. `None` for never.
    pub raise_after: Option<Duration>,
}

/// A value is out of its range; the text says which, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// See the text.
    #[error("lease {0:?} is out of range: give 20ms to 60s; longer = fewer false removals, slower takeover")]
    Lease(Duration),
    /// See the text.
    #[error("heartbeat {heartbeat:?} is out of range: give 1ms up to a third of the lease ({lease:?})")]
    Heartbeat {
        /// What was asked for.
        heartbeat: Duration,
        /// The lease.
        lease: Duration,
    },
    /// See the text.
    #[error("2^{0} view ids a second are out of range: give at most 2^22, so that they last for 60 years")]
    IdBits(u32),
    /// See the text.
    #[error("a block of {0} view ids is out of range: give 4 to 2^32")]
    IdBlock(u64),
    /// See the text.
    #[error("core size {0} is out of range: give 1 to 15; 5 survives two losses at once")]
    CoreSize(u16),
    /// See the text.
    #[error("expect={0} is out of range: give the number of founders, 1 to 1000")]
    Expect(u16),
    /// See the text.
    #[error("alone-after={0:?} is out of range: give 10ms to 1h")]
    AloneAfter(Duration),
    /// See the text.
    #[error("this node is not one of the {expect} founders: {reason}; start it with --bootstrap join")]
    NoSlot {
        /// How many founder slots there are.
        expect: u16,
        /// Why it has none.
        reason: &'static str,
    },
}

impl Config {
    /// A node with this lease and otherwise usual values: heartbeat lease/10, core of 5, drift 0.5 %.
    ///
    /// # Errors
    /// A [`ConfigError`] names the value, its range, and what gets worse when it grows.
    pub fn new(me: NodeInfo, bootstrap: Bootstrap, lease: Duration) -> Result<Self, ConfigError> {
        let slots = if let Bootstrap::Expect(n) = bootstrap { n } else { 0 };
        let terms = Terms {
            lease,
            drift: Drift::DEFAULT,
            core_size: 5,
            slots,
            durable: false,
            witness: false,
            supersedes: Vec::new(),
        };
        Self {
            me,
            bootstrap,
            terms,
            heartbeat: lease / 10,
            step: lease / 20,
            give_up: lease * 10,
            epoch_s: 0,
            id_bits: 22,
            id_block: 1 << 20,
            acts_elsewhere: false,
            trace: false,
            level: LEVEL,
            raise_after: None,
        }
        .checked()
    }

    /// The same configuration, every rule checked (fields may have been changed since [`Config::new`]).
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn checked(self) -> Result<Self, ConfigError> {
        let lease = self.terms.lease;
        if !(Duration::from_millis(20)..=Duration::from_secs(60)).contains(&lease) {
            return Err(ConfigError::Lease(lease));
        }
        if !(Duration::from_millis(1)..=lease / 3).contains(&self.heartbeat) {
            return Err(ConfigError::Heartbeat { heartbeat: self.heartbeat, lease });
        }
        if self.id_bits > 22 {
            return Err(ConfigError::IdBits(self.id_bits));
        }
        if !(4..=1 << 32).contains(&self.id_block) {
            return Err(ConfigError::IdBlock(self.id_block));
        }
        if !(1..=15).contains(&self.terms.core_size) {
            return Err(ConfigError::CoreSize(self.terms.core_size));
        }
        match self.bootstrap {
            Bootstrap::Expect(n) if !(1..=1000).contains(&n) => return Err(ConfigError::Expect(n)),
            Bootstrap::Expect(n) => {
                let reason = match self.me.slot {
                    Some(slot) if slot < n => None,
                    Some(_) => Some("its slot number is not below the number of slots"),
                    None => Some(
                        "its address is not among the first ones of the static list, or every slot is taken",
                    ),
                };
                if let Some(reason) = reason {
                    return Err(ConfigError::NoSlot { expect: n, reason });
                }
            }
            Bootstrap::AloneAfter(d)
                if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&d) =>
            {
                return Err(ConfigError::AloneAfter(d));
            }
            Bootstrap::AloneAfter(_) | Bootstrap::Join => {}
        }
        Ok(self)
    }
}
