//! How the choice among clones decides about waiting: `cargo run --release -p router-proto --example choice`.
//!
//! Prints the percentiles of what requests took, in milliseconds, for each way to choose, load and scenario.
//! Results depend on nothing but the code.

mod sim;

use sim::{Scenario, Way};

fn main() {
    for scenario in Scenario::ALL {
        println!("\n{} ({} clones, {} workers)", scenario.name, scenario.clones, scenario.workers);
        println!("{:12}{:>28}{:>28}{:>28}", "load", "50 %", "70 %", "85 %");
        println!("{:12}{}", "", format!("{:>10}{:>9}{:>9}", "p50", "p99", "p99.9").repeat(3));
        for way in Way::ALL {
            print!("{:12}", format!("{way:?}"));
            for load in [0.5, 0.7, 0.85] {
                let outcome = sim::run(Scenario { load, ..scenario }, way, 10, 1);
                print!("{:10.2}{:9.2}{:9.2}", outcome.p50, outcome.p99, outcome.p999);
            }
            println!();
        }
    }
}
