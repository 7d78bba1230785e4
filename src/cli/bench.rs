//! `bench`: the project's own benchmarks. Each prints its percentiles and the floor that was measured in the same run.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{Outcome, events};

mod groups;
mod join;
mod multicast;
mod route;
mod takeover;
mod transfer;

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
    /// From the start of many processes at once to one ranked view.
    Join(join::Join),
    /// What many groups cost: joining them all, and taking them over.
    Groups(groups::Groups),
    #[command(hide = true)]
    GroupsMember(groups::GroupsMember),
    /// Messages between the members of a group: how many, at what cost, how late.
    Multicast(multicast::Multicast),
    #[command(hide = true)]
    MulticastMember(multicast::MulticastMember),
    /// What a router costs between clients and servers, beside others.
    Route(route::Route),
    /// How fast a new member gets the group's state.
    Transfer(transfer::Transfer),
    #[command(hide = true)]
    TransferMember(transfer::TransferMember),
}

/// What a flag's value is called.
fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The middle one of what each of some runs measured.
fn median<T>(runs: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut all: Vec<f64> = runs.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

impl Bench {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        match self.which {
            Which::Takeover(takeover) => takeover.run(json).await,
            Which::Join(join) => join.run(json).await,
            Which::Groups(groups) => groups.run(json).await,
            Which::GroupsMember(member) => member.run().await,
            Which::Multicast(multicast) => multicast.run(json).await,
            Which::MulticastMember(member) => member.run().await,
            Which::Route(route) => route.run(json).await,
            Which::Transfer(transfer) => transfer.run(json).await,
            Which::TransferMember(member) => member.run().await,
        }
    }
}

/// Prints percentiles, in milliseconds, of times that are not at hand.
fn print_quantiles(what: &str, p50: f64, p99: f64, json: bool) {
    let object = json!({"event": "times", "what": what, "p50_ms": p50, "p99_ms": p99});
    let text = format!("{what}: p50 {p50:.3} ms, p99 {p99:.3} ms");
    events::line(&if json { object.to_string() } else { text });
}

/// Prints percentiles of times in milliseconds.
fn print(what: &str, mut times: Vec<f64>, json: bool) {
    if times.is_empty() {
        return;
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let (n, p50, p99, max) = (times.len(), at(0.5), at(0.99), at(1.0));
    let object = json!({"event": "times", "what": what, "n": n, "p50_ms": p50, "p99_ms": p99, "max_ms": max});
    let text = format!("{what}: p50 {p50:.2} ms, p99 {p99:.2} ms, longest {max:.2} ms ({n} times)");
    events::line(&if json { object.to_string() } else { text });
}
