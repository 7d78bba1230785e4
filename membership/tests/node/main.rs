//! Nodes as applications see them: real sockets, real threads, real processes.
//!
//! Nothing here asserts how long anything takes; every wait is bounded generously instead, because a shared machine may
//! stall any process for seconds.

mod admin;
mod authority;
mod certificates;
mod dns;
mod giver;
mod groups;
mod harness;
mod http;
mod local;
mod multicast;
mod process;
mod replica;
mod starts;
mod strangers;

/// Whether nodes of the harness hold a key: the tests of `tests/sealed`, some of which are these, say yes.
const SEALED: bool = false;
mod watchdog;
