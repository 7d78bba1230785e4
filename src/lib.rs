//! Phalanx: ranked groups with leaders, a router that follows them, and a wrapper for unmodified servers, with no outside
//! coordination server.
//!
//! ```no_run
//! use phalanx::Node;
//!
//! # async fn tower() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().name("tower-1").rendezvous("file:/run/towers".parse()?).start().await?;
//! let group = node.join("air-traffic-control", None).await?;
//! let leadership = group.until_leader().await?;
//! while leadership.is_current() {
//!     // Only one member of the group is here at any time. What leaves this process carries leadership.token().
//! }
//! # Ok(()) }
//! ```
//!
//! [`Replica`] makes a service a replicated state machine; [`Node::join_multicast`] is what it stands on.
//!
//! [`serve`] serves requests, [`Leads`] lets the leader alone carry out updates, and a [`Client`] fed by [`follow`] finds them by
//! their keys: `examples/routed_counter.rs` has all of it.
//!
//! The crates behind it: [`membership`] (nodes, groups, leadership), [`router`] (the routing proxy as a library),
//! [`pubsub`] (the event stream inside a process), [`backplane`] (servers as child processes).
#![forbid(unsafe_code)]

mod rpc;

pub use backplane;
pub use membership::{
    self, Bootstrap, Class, Delivered, Deliveries, Event, Events, GroupName, Leadership, Membership, Node,
    NodeBuilder, NodeId, Observer, Rendezvous, Replica, ReplicaBuilder, ReplicatedState, Standing, Token,
    View, ViewId, Views, What, Witness,
};
pub use pubsub;
pub use router::{
    self,
    rpc::{CallError, Client, Failure, Reply, Request, serve},
};
pub use rpc::{Leads, clones, follow};
