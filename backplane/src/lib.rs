//! How an unmodified server program runs under Phalanx: as a [`Child`] that its wrapper starts, watches and
//! stops.
//!
//! What holds for a child, whatever ends it or its wrapper:
//!
//! - It dies with the wrapper's process: the kernel kills it, also when the wrapper was killed with SIGKILL.
//!   What it has started itself is killed only where the wrapper could still do so; see below.
//! - It runs in its own process group. [`Child::stop`], the child's own end and dropping the [`Child`] kill
//!   whatever is left of the group.
//! - A process number is never used for a process that may have been replaced: signals go out only while the
//!   child is unreaped, and its end is seen through a pidfd.
//!
//! A [`Child`] does not answer for processes that leave its group (`setsid`, daemons), nor for the grandchildren of a wrapper
//! that was killed, nor for set-user-id programs, which the kernel frees from the wrapper. A [`Fuse`] does: what runs
//! under it is a [`Task`], which ends with all that it has started, also at a deadline that the wrapper does not
//! live to see. [`fuse_main`] is the program of the fuse.
//!
//! ```no_run
//! use std::time::Duration;
//! use backplane::{Child, ChildSpec, wait_for_port};
//! use tokio::time::Instant;
//!
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! let address = "127.0.0.1:6379".parse()?;
//! let (every, deadline) = (Duration::from_millis(20), Instant::now() + Duration::from_secs(5));
//! let mut child = Child::spawn(ChildSpec::new(["redis-server", "--port", "6379"])).await?;
//! tokio::select! {
//!     exit = child.wait() => println!("ended before it listened: {}", exit?),
//!     up = wait_for_port(address, every, deadline) => up?,
//! }
//! child.stop().await?;
//! # Ok(()) }
//! ```
#![deny(unsafe_code)]

mod child;
mod fuse;
mod port;
mod spawner;
mod spec;

pub use child::Child;
pub use fuse::{Containment, Fuse, Task, TaskEnd, fuse_main};
pub use port::{PortProbe, ProbeError, wait_for_port};
pub use spec::{ChildSpec, Output, SpawnError};
