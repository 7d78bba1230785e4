//! How much processor time a simulated hour takes, and what a set of seeds comes to.
//!
//! `cargo run --release -p sim --example throughput -- [FIRST COUNT [NODES]]` runs seeds one after the other. With `hash` at the end
//! it prints one number for all their traces, too: it tells whether a change of the simulator or of the cores changed any run.

use std::{error::Error, fs};

use sim::Options;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let hash = words.pop_if(|word| word == "hash").is_some();
    let numbers: Vec<u64> = words.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let given = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (first, count, nodes) = (given(0, 0), given(1, 100), given(2, 5));
    let nodes = usize::try_from(nodes).ok().filter(|n| *n > 0);
    let options = Options { nodes, hash, ..Options::default() };
    let (mut ns, mut events, mut records, mut failed, mut all) = (0, 0, 0, 0, 0u64);
    let began = processor_s()?;
    for seed in first..first + count {
        let run = sim::run(seed, &options, None);
        ns += run.simulated_ns;
        events += run.events;
        records += run.records;
        failed += u64::from(run.failed());
        all = all.rotate_left(5) ^ run.hash.unwrap_or(0);
    }
    let (took, hours) = (processor_s()? - began, ns as f64 / 3600e9);
    println!(
        "{hours:.3} simulated hours, {events} events, {records} records, {failed} failed: {took:.2} s of processor time, {:.3} for \
         each hour",
        took / hours
    );
    if hash {
        println!("traces: {all:016x}");
    }
    Ok(())
}

/// What this process has had of a processor, in seconds.
fn processor_s() -> Result<f64, Box<dyn Error>> {
    const NS: &str = "/proc/self/schedstat";
    let text = fs::read_to_string(NS)?;
    let ns: u64 = text.split_whitespace().next().ok_or("nothing there")?.parse()?;
    Ok(ns as f64 / 1e9)
}
