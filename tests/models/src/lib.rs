//! Model checking of the protocol cores: the real machines, and every schedule and fault within given bounds.
//!
//! The simulator takes one random path through a large space; the models try all paths through a small one. Both drive
//! the same machines.
//!
//! | file | idea |
//! | --- | --- |
//! | `takeover.rs` | membership: takeovers, leases, leaders |
//! | `takeover/world.rs`, `story.rs` | a state of it, and what must hold there; a run in words |
//! | `room.rs` | the same with a group that multicasts: takeover, lease and flush together |
//! | `flush.rs` | multicast: from one view to the next |
//! | `mark.rs` | fingerprints in which times count as distances from now |
//! | `search.rs` | runs a search and says how far it came |
//! | `suite.rs` | which models are run |
//! | `main.rs` | the command |
#![forbid(unsafe_code)]

pub mod flush;
pub mod mark;
mod room;
pub mod search;
pub mod suite;
pub mod takeover;
