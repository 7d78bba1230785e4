//! `bench`: the project's own benchmarks. Each prints its percentiles and the floor that was measured in the same run.

use clap::{Args, Subcommand};

use super::Outcome;

mod takeover;

/// The project's own benchmarks.
#[derive(Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand)]
enum Which {
    /// From a leader's end to the next one's beginning: killed, leaving, stopped.
    Takeover(takeover::Takeover),
}

impl Bench {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        match self.which {
            Which::Takeover(takeover) => takeover.run(json).await,
        }
    }
}
