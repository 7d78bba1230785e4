//! The routing proxy: `request -> extract key -> pmap -> RACS -> pick clone (l2P) -> forward`.
//!
//! A [`Config`] says which services are served where, how their keys are partitioned, and which clones hold
//! each partition. [`start`] serves them on worker threads, one per core; the [`RouterHandle`] feeds them the
//! views of groups and stops them.
//!
//! What a client can rely on:
//!
//! * Every request goes to the RACS that the map assigns its key to, or is refused. A sick server changes the
//!   clone that is chosen, never the partition.
//! * An update is sent once. If its server fails before it answers, the client is told that the outcome is
//!   unknown; an update that provably did not reach a server waits for the next leader, for a while.
//! * A read whose server fails is repeated on another clone, unless part of its response was passed on
//!   already.
//! * The k-th response on a connection belongs to the k-th request.
#![forbid(unsafe_code)]

mod access;
mod checks;
mod config;
mod frames;
pub mod handover;
mod hot;
mod http;
mod latency;
mod limits;
mod listen;
mod memcached;
mod pipelined;
mod placement;
mod redis;
mod router;
pub mod rpc;
mod stats;
mod table;
mod tcp;
mod tls;
mod worker;

pub use checks::ServerHealth;
pub use config::{Config, ConfigError, Place, Surroundings};
pub use latency::Latency;
pub use limits::Limits;
pub use membership_types::Weight;
pub use router::view::{RacsView, ServiceView};
pub use router::{Options, ReloadError, Reloaded, RouterHandle, Serving, StartError, start};
pub use router_proto::hot::{HotKey, HotKeys};
pub use stats::{Measured, ResponseStats, ServerStats, ServiceStats};
pub use table::{CloneAt, GroupClones, UpdateError};
pub use tls::CertificateError;
