//! `bench`: the project's own benchmarks.
use super::Outcome;
use clap::Args;
/// To be replaced.
#[derive(Args)]
pub(crate) struct Bench {}
impl Bench {
    pub(crate) async fn run(self, _json: bool) -> Outcome {
        Ok(0)
    }
}
