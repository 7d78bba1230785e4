//! The router's pure core: what a request is, which partition it belongs to, and which clone should answer.
//!
//! `request -> extract key -> pmap -> RACS -> pick clone (l2P) -> forward`: everything on that line that
//! needs neither socket nor clock is here. Bytes come in as slices and are described by offsets; time and
//! randomness are arguments. Strangers' bytes become typed refusals, never panics, and are never repaired.
//!
//! | module | question it answers |
//! | --- | --- |
//! | [`key`] | what 64-bit number stands for this key? |
//! | [`pmap`] | which partition, and which RACS holds it? |
//! | [`l2p`], [`racs`], [`choice`] | which physical server stands for which clone, which clone acts now, and which of several gets this request? |
//! | [`health`] | is this server to be avoided, and may this request be sent again? |
//! | [`http`] | where does this message end, and which of its bytes go on? |
//! | [`extract`] | where in the request is the key? |
//! | [`sticky`] | which clone was this client with? |
//! | [`resp`] | the same questions for Redis commands and replies, split by partition |
//! | [`memcached`] | the same for memcached |
//! | [`proxy`], [`tls_hello`] | whom is a connection for, and which server does its client want? |
//! | [`hot`] | which keys are asked for most? |
//! | [`trace`] | which request is this, and which trace does it belong to? |
//! | [`pipelined`] | whom is this reply for, whose command was sent with those of others, and when is its turn? |
//! | [`frames`] | the same questions for framed MessagePack-RPC, answered in any order |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod choice;
pub mod extract;
pub mod frames;
pub mod health;
pub mod hot;
pub mod http;
pub mod key;
pub mod l2p;
pub mod memcached;
pub mod pipelined;
pub mod pmap;
pub mod proxy;
pub mod racs;
pub mod resp;
pub mod sticky;
pub mod tls_hello;
pub mod trace;

pub use key::KeyHash;
pub use l2p::{L2p, LogicalId, PhysicalId};
pub use pmap::{Epoch, PartitionId, Pmap, RacsId};
pub use racs::Racs;
