//! Membership as a pure machine: agreed, ranked views of a cluster and of its groups, with one acting leader each.
//!
//! Nodes agree on one log of entries, decided by a small **core** of them under numbered ballots (Paxos, one entry at a
//! time); whatever was committed is applied by one deterministic [`State`](state::State), and every node is told what
//! concerns it. The **coordinator** (the winner of the highest ballot, normally rank 0) holds *authority* from a quorum
//! of the core for one lease at a time and passes leases on; a node acts for a group only while it is rank 0 of the
//! group's view and its lease lasts. So a leader that is cut off has stopped before anybody else begins.
//!
//! # Map
//!
//! | file | idea |
//! | --- | --- |
//! | `cluster.rs` | the machine: inputs, dispatch |
//! | `seeking.rs` | a node without a view: find a cluster, or found one |
//! | `member.rs`, `member/turn.rs` | a node in a view: updates, lease; what follows from a message or from time |
//! | `member/groups.rs` | its groups, and which of them it acts for |
//! | `takeover.rs` | how a core member becomes coordinator |
//! | `acceptor.rs` | a core member's promises, accepted entry, grants |
//! | `office.rs`, `office/` | the coordinator: authority, proposals, removals, telling |
//! | `meeting.rs` | other lineages: dissolve, give up, be given up by an operator |
//! | `spread.rs` | who sits in the core: seniors, spread over failure domains |
//! | `floor.rs` | view ids set aside on disk |
//! | `quorum.rs` | which sets of core members may decide |
//! | `witness.rs` | who breaks the tie between two halves of a core |
//! | `state.rs`, `entry.rs`, `view.rs` | what is agreed on |
//! | `msg.rs`, `config.rs`, `ctx.rs` | messages, configuration, effects |
//! | `plant.rs` | deliberate bugs for testing the tests |
//! | `scenes.rs`, `scenes/rules.rs` | tests: one node, and by hand what others say to it; what each rule is for |
//!
//! `ARCHITECTURE.md` argues why each guarantee holds.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod acceptor;
mod cluster;
pub mod config;
mod ctx;
pub mod entry;
mod floor;
mod meeting;
mod member;
pub mod msg;
mod office;
pub mod plant;
pub mod quorum;
#[cfg(test)]
mod scenes;
mod seeking;
mod spread;
pub mod state;
mod takeover;
pub mod view;
pub mod witness;

pub use cluster::{Cluster, Input};
pub use config::{Bootstrap, Config, ConfigError};
pub use ctx::{Dest, End, Output, Part, WhyNot};
pub use entry::GroupWish;
pub use floor::Floor;
pub use meeting::Forced;
pub use msg::Msg;
pub use plant::Plant;
pub use spread::Domains;
pub use state::Terms;
pub use view::{ClusterView, GroupView, Kind, Member, NodeInfo, SharedView, Why};
