//! `secret`: a fresh key for `--secret-file`.

use clap::Args;
use serde_json::json;

use super::{Outcome, events};

/// Prints a fresh key for the --secret-file of all nodes of a cluster.
///
/// A new cluster:  (umask 077; phalanx secret > cluster.secret), then the same file to all nodes.
///
/// Another key without a pause: append the line of a new one to the file at all nodes, then make that line the first at all
/// nodes, then remove the old one at all; after each step send HUP to all nodes (kill -HUP).
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Secret {}

impl Secret {
    pub(crate) fn run(self, json: bool) -> Outcome {
        let secret = membership::Secret::generate()?;
        events::line(&if json { json!({"secret": secret}).to_string() } else { secret });
        Ok(0)
    }
}
