//! Nodes that hold a key: what `tests/node` says of nodes holds for them too, and strangers get nothing.

#[path = "../node/groups.rs"]
mod groups;
#[allow(dead_code, reason = "some of it is for tests of tests/node alone")]
#[path = "../node/harness.rs"]
mod harness;
mod links;
#[path = "../node/multicast.rs"]
mod multicast;
mod proxy;
#[path = "../node/replica.rs"]
mod replica;
mod rotation;

/// Nodes of the harness hold a key.
const SEALED: bool = true;
