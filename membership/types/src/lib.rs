//! The words of Phalanx as types.
//!
//! A **node** is one running process ([`NodeId`], fresh at every start). A **view** is a numbered,
//! ranked list of members ([`ViewId`], [`Rank`]); `members[0]` leads. Every protocol is a pure
//! [`Machine`]: time ([`Instant`]) and input go in, effects come out. What happened is said in
//! [`trace`] events, which one checker judges wherever they come from.
//!
//! Nothing here reads a clock, opens a socket or draws a random number.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod id;
pub mod machine;
pub mod rng;
pub mod time;
pub mod trace;
pub mod weight;

pub use id::{
    Ballot, GroupName, InvalidGroupName, Lineage, LogIndex, NodeId, ParseLineageError, ParseNodeIdError,
    Rank, Token, ViewId,
};
pub use machine::Machine;
pub use rng::Rng;
pub use time::{Drift, Instant};
pub use weight::Weight;
