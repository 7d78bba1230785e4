//! The memory that threads share, and nothing else: each cell is small, lives alone and is model-checked.
//!
//! | cell | written by | read by | answers |
//! | --- | --- | --- | --- |
//! | [`LeaderCell`] under a [`NodeLease`] | the control thread | application threads | may I act now? |
//! | [`Snapshot`] | one publisher | every worker | what is the newest table? |
//! | [`PartitionGate`] | every worker | the mover | is any request still inside? |
//! | [`LifeLines`] | the kernel | other processes on the host | may this process have died? |
//! | [`Deadline`] | a wrapper | the fuse of its children | until when may they act? |
//!
//! Nothing here waits (but for a short lock, and in [`Bell::sleep`]), does I/O, or knows an async runtime. Every ordering is argued
//! beside its line. The models in `tests/loom_*.rs` name, for each claim, the step whose weakening makes the
//! model fail. To run them:
//!
//! ```text
//! RUSTFLAGS='--cfg loom' cargo test -p membership-sync --release --target-dir target/loom
//! ```
#![deny(unsafe_code)]

#[cfg(not(loom))]
mod deadline;
mod gate;
mod lease_cell;
#[cfg(not(loom))]
mod lease_page;
#[cfg(not(loom))]
mod life;
mod life_links;
mod shim;
mod snapshot;

#[cfg(not(loom))]
pub use deadline::Deadline;
pub use gate::{Inside, PartitionGate};
pub use lease_cell::{LeaderCell, LeaseMemoryError, NodeLease};
#[cfg(not(loom))]
pub use life::{Bell, Cut, GivenLine, LifeLine, LifeLines, WATCHED_AT_ONCE};
#[doc(hidden)]
pub use life_links::LifeLinks;
pub use snapshot::{Reader, Snapshot};
