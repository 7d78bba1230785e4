//! A simulated process: one membership machine, its clock, and an application that acts when it leads.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
};

use membership_multicast::{Class, Frame, Input as RoomInput, Message, Multicast};
use membership_proto::{Cluster, Input, NodeInfo};
use membership_types::{GroupName, Instant, Lineage, Machine, NodeId, Token};

use crate::clock::Clock;

/// Runs have no more groups.
pub(crate) const GROUPS: usize = 3;

/// Something for each group that has it, by the group's number.
#[derive(Clone, Debug)]
pub(crate) struct ByGroup<T>([Option<T>; GROUPS]);

impl<T> Default for ByGroup<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| None))
    }
}

impl<T> ByGroup<T> {
    pub(crate) fn get(&self, group: usize) -> Option<&T> {
        self.0[group].as_ref()
    }

    pub(crate) fn get_mut(&mut self, group: usize) -> Option<&mut T> {
        self.0[group].as_mut()
    }

    pub(crate) fn insert(&mut self, group: usize, item: T) {
        self.0[group] = Some(item);
    }

    pub(crate) fn remove(&mut self, group: usize) {
        self.0[group] = None;
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// What a process does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs.
    Up,
    /// It is stopped (SIGSTOP); what reaches it waits.
    Paused,
    /// Its incarnation is over, by a crash or by itself.
    Gone,
}

/// The application on a process: it wants to be in groups, and acts for those that it leads.
#[derive(Clone, Debug, Default)]
pub(crate) struct App {
    /// The groups that it joins, again after every restart.
    pub(crate) wants: BTreeSet<GroupName>,
    /// The groups that it observes.
    pub(crate) observes: BTreeSet<GroupName>,
    /// What it may act for, as the machine's outputs said.
    pub(crate) leads: ByGroup<Token>,
    /// Until when, on the process's clock.
    pub(crate) lease: Instant,
}

/// What reaches a process.
#[derive(Clone, Debug)]
pub(crate) enum Incoming {
    /// For its membership machine.
    Cluster(Input),
    /// A frame of a group's multicast.
    Frame { from: NodeId, group: usize, lineage: Lineage, frame: Frame },
    /// For its part in a group with multicast.
    Room(usize, RoomInput),
    /// There is a new connection for multicast with another process.
    Linked(NodeId),
    /// All that came for a group was handed in.
    Drained(usize),
    /// The process's timers.
    Timers,
}

pub(crate) struct Process {
    pub(crate) id: NodeId,
    /// Which of the run's machines it is (the node part of its id).
    pub(crate) machine: usize,
    /// Where it is in the network.
    pub(crate) place: usize,
    /// Processes on one host can prove each other's death.
    pub(crate) host: usize,
    pub(crate) info: NodeInfo,
    pub(crate) clock: Clock,
    pub(crate) cluster: Cluster,
    pub(crate) app: App,
    pub(crate) life: Life,
    /// It crashed, so that its host's other processes have proof.
    pub(crate) crashed: bool,
    /// Its host went to sleep at this instant, with its timers.
    pub(crate) suspended_at: Option<u64>,
    /// Who has spoken to it on a connection, by their numbers: a shell asks everybody for the key first, and notes that it did.
    pub(crate) met: BTreeSet<usize>,
    /// The last death that it heard of was one on another host.
    pub(crate) attested: bool,
    /// What arrived while it was paused.
    pub(crate) inbox: VecDeque<Incoming>,
    /// What follows from what it does now.
    pub(crate) next: VecDeque<Incoming>,
    /// Its part in groups with multicast.
    pub(crate) rooms: ByGroup<Room>,
    /// When its machines want to be woken: membership, then its part in each group.
    pub(crate) dues: [Option<Instant>; 1 + GROUPS],
    /// Which of them had something to do since that was asked, one bit each.
    pub(crate) moved: u8,
    /// The earliest wake-up that is scheduled.
    pub(crate) wake_at: Option<u64>,
    /// For what it is scheduled, on the process's clock.
    pub(crate) wake_due: Instant,
    /// It was killed in the middle of its outputs: this many more come out.
    pub(crate) fuse: Option<u64>,
}

impl Process {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.info.addr
    }

    /// The earliest instant at which one of its machines wants to be woken. Only those are asked that had something to do.
    pub(crate) fn due(&mut self) -> Option<Instant> {
        let moved = std::mem::take(&mut self.moved);
        if moved & 1 != 0 {
            self.dues[0] = self.cluster.poll_timeout();
        }
        for group in 0..GROUPS {
            if moved & (2 << group) != 0 {
                self.dues[1 + group] = self.rooms.get(group).and_then(|room| room.machine.poll_timeout());
            }
        }
        self.dues.iter().flatten().min().copied()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life == Life::Up
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.life == Life::Gone
    }
}

/// A process's part in a group with multicast.
pub(crate) struct Room {
    pub(crate) machine: Multicast,
    /// It is going to be told that all was handed in.
    pub(crate) draining: bool,
    /// Its application takes nothing for now.
    pub(crate) throttled: bool,
    /// It was told that the node has no lease.
    pub(crate) held: bool,
    /// What its application makes of all that it is told, if the group keeps a state.
    pub(crate) state: Option<State>,
}

/// The state of an application: what was said in one order, and in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) chain: u64,
    pub(crate) sum: u64,
    /// It was just received: it may be that of the middle of a view.
    pub(crate) fresh: bool,
}

impl State {
    pub(crate) fn apply(&mut self, message: &Message) {
        let fold = |hash: u64, bytes: &[u8]| {
            bytes
                .iter()
                .fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
        };
        let node = fold(0xcbf2_9ce4_8422_2325, &u64::from(message.from.node()).to_le_bytes());
        let hash = fold(fold(node, &message.from.inc().to_le_bytes()), &message.payload);
        if message.class == Class::Fifo {
            self.sum = self.sum.wrapping_add(hash);
        } else {
            self.chain = (self.chain ^ hash).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(7);
        }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        [self.chain.to_le_bytes(), self.sum.to_le_bytes()].concat()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Self { chain: number(0)?, sum: number(8)?, fresh: true })
    }
}
