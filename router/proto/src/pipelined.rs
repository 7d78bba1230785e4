//! What protocols share whose clients send commands ahead and get one reply to each, in order: commands of
//! many clients on one connection to a server, and one client's replies from many servers.

mod pipeline;
mod reorder;

pub use pipeline::{Flight, Gathering, Pipeline, Sent};
pub use reorder::{Reorder, Seq};
