//! Who is in the group, in which rank, and who leads: membership as a library, without any outside coordination server.
//!
//! A [`Node`] joins a cluster; on it live [`Membership`]s and [`Observer`]s of groups. Rank 0 of a group leads, under a
//! lease and a fencing token: see [`Leadership`].
//!
//! ```no_run
//! use membership::Node;
//!
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder()
//!     .name("tower-1")
//!     .rendezvous("file:/run/towers".parse()?)
//!     .start()
//!     .await?;
//! let group = node.join("air-traffic-control", None).await?;
//! let leadership = group.until_leader().await?;
//! while leadership.is_current() {
//!     // Act; every effect carries `leadership.token()`.
//! }
//! # Ok(()) }
//! ```
//!
//! # Map
//!
//! The protocol is the pure machine of `membership-proto`; this crate is the thin shell that gives it time, messages and
//! addresses, and carries out what it says.
//!
//! | file | idea |
//! | --- | --- |
//! | `node.rs`, `group.rs` | the handles that applications use; `node/builder.rs`: how a node is configured |
//! | `event.rs`, `status.rs` | what a node tells: streams of events, and how things stand |
//! | `start.rs` | from a configuration to running threads |
//! | `labels.rs` | what nodes say of themselves: what may fail together with them, and how routers choose among them |
//! | `control.rs` | the control thread: inputs to the machine, outputs of it; in `control/` how it begins and ends, and groups |
//! | `channel.rs` | messages of a group, as applications see them |
//! | `replica.rs` | a service as a replicated state machine |
//! | `replica/ledger.rs`, `store.rs`, `keeper.rs` | its state on disk: who holds what, and may go on; the files; both at work |
//! | `replica/ledger/held.rs`, `choose.rs` | what is held, and said about it; what is gone on from after everybody was down |
//! | `bulk.rs` | the bulk thread: what members of groups say to each other; its door, groups and connections in `bulk/` |
//! | `wire.rs`, `handshake.rs`, `transport.rs` | frames, introductions (and why two part: `handshake/`), connections (one of them, and what waits for it: `transport/link.rs`) |
//! | `secret.rs`, `session.rs` | keys that nodes have in common; what is sealed under them |
//! | `tls.rs` | certificates instead: one for each node |
//! | `disk.rs` | the data directory: which view ids were set aside |
//! | `death.rs` | processes on one host: showing it, and proof of death |
//! | `rendezvous.rs` | how a starting process finds the cluster: one file for each provider, `finder.rs` runs them |
//! | `rendezvous/registrar.rs` | the registry that a node keeps for others on its admin API |
//! | `rendezvous/ask.rs`, `proof.rs` | how one is asked over HTTP; how its answers are proved |
//! | `witness.rs` | who says which half of a core may go on: what it is asked in words |
//! | `witness/memory.rs`, `asker.rs` | its records, on shared storage or kept by a node for others; the thread that asks |
//! | `admin.rs`, `metrics.rs`, `trace.rs` | what operators and checkers read; groups, events and a page in `admin/`, and what pages of others must not do |
//! | `panic.rs`, `watchdog.rs` | a panic ends the lease first; an application that stands still |
//! | `fuzz.rs` | the parsers, for those who throw nonsense at them (feature `fuzz`) |
//! | `clock.rs`, `error.rs` | the one clock; what can go wrong |
//!
//! Each node has one control thread and one bulk thread, and one for each of what it has of these: admin API, trace, data
//! directory, witness, states on disk. Each process has one that holds and watches life lines. All queues are bounded; the protocol
//! sends again what was lost.

mod admin;
mod bulk;
mod channel;
pub mod clock;
mod control;
mod death;
mod disk;
mod error;
mod event;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod group;
mod handshake;
mod labels;
mod metrics;
mod node;
mod panic;
mod rendezvous;
mod replica;
mod secret;
mod session;
mod start;
mod status;
mod tls;
mod trace;
mod transport;
mod watchdog;
mod wire;
mod witness;

pub use admin::{AdminApi, AdminRequest, AdminResponse, Extensions};
pub use bytes::Bytes;
pub use channel::{Delivered, Deliveries, Fence, Message, SendError, StateRequest};
pub use death::Tree;
pub use error::{GroupError, JoinError, NotMember, StartError};
pub use event::{Event, Events, Member, View, Views, What};
pub use group::{Leadership, Lost, Membership, Observer};
pub use membership_multicast::Class;
pub use membership_proto::{Bootstrap, ClusterView, ConfigError, NodeInfo, WhyNot, witness::Epoch};
pub use membership_sync::Deadline;
pub use membership_types::{GroupName, InvalidGroupName, Lineage, NodeId, Rank, Token, ViewId, Weight};
pub use node::{Node, NodeBuilder};
pub use prometheus_client::registry::Registry;
pub use rendezvous::{DnsName, HttpRegistry, LocalNetwork, ParseRendezvousError, Rendezvous};
pub use replica::{Copied, ProposeError, Replica, ReplicaBuilder, ReplicaError, ReplicatedState, Standing};
pub use secret::{Secret, SecretError};
pub use status::{GroupStatus, Status};
pub use watchdog::Watchdog;
pub use witness::Witness;
