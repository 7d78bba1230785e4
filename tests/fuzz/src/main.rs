//! Throws mutations at everything that parses, for as long as one likes; or writes the corpus anew.

use std::{env, fs, io, process::ExitCode, time::Instant};

use fuzz::{TARGETS, Target, corpus, folder, hunt, samples};
use membership_types::Rng;

const USAGE: &str = "give `corpus` (writes the samples of all targets), `TARGET|all [EXECUTIONS [SEED]]`, \
                     or `forge [TRIES [SEED]]`";

fn main() -> io::Result<ExitCode> {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).map_or(Ok(default), |text| text.parse::<u64>());
    let name = args.first().map_or("", String::as_str);
    if name == "corpus" {
        return write_corpus().map(|()| ExitCode::SUCCESS);
    }
    if name == "forge" {
        return match (number(1, 1_000_000), number(2, 1)) {
            (Ok(tries), Ok(seed)) => Ok(forge(tries, seed)),
            _ => {
                eprintln!("{USAGE}");
                Ok(ExitCode::from(2))
            }
        };
    }
    let chosen: Vec<Target> = TARGETS.into_iter().filter(|t| name == "all" || t.name == name).collect();
    let (Ok(tries), Ok(seed)) = (number(1, 10_000_000), number(2, 1)) else {
        eprintln!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    if chosen.is_empty() {
        eprintln!("{USAGE}; targets: {}", TARGETS.map(|t| t.name).join(", "));
        return Ok(ExitCode::from(2));
    }
    let mut code = ExitCode::SUCCESS;
    for target in chosen {
        let seeds: Vec<Vec<u8>> = corpus(target.name)?.into_iter().map(|(_, bytes)| bytes).collect();
        let started = Instant::now();
        let found = hunt(target, &seeds, tries, &mut Rng::seeded(seed));
        let rate = tries as f64 / started.elapsed().as_secs_f64();
        match found {
            Ok(()) => println!("{}: {tries} executions, {rate:.0} a second, nothing found", target.name),
            Err(input) => {
                let file = format!("found-{}", target.name);
                fs::write(&file, &input)?;
                println!("{}: panics on what is in {file}: {}", target.name, input.escape_ascii());
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Somebody without the keys: nothing is accepted, or this panics.
fn forge(tries: u64, seed: u64) -> ExitCode {
    let started = Instant::now();
    let forged = membership::fuzz::forge(tries, seed);
    println!("in memory: {} forgeries in {:?}, none accepted: {forged:?}", forged.tried(), started.elapsed());
    let started = Instant::now();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let outcome = runtime.block_on(fuzz::forge::against_nodes(tries / 50, seed));
    println!(
        "against nodes: {} connections in {:?}, none accepted: {outcome:#?}",
        outcome.tried,
        started.elapsed()
    );
    ExitCode::SUCCESS
}

/// Samples are numbered; what was found has a name, and stays.
fn write_corpus() -> io::Result<()> {
    for target in TARGETS {
        let folder = folder(target.name);
        fs::create_dir_all(&folder)?;
        for (n, bytes) in samples(target.name).iter().enumerate() {
            fs::write(folder.join(format!("{n:03}")), bytes)?;
        }
    }
    Ok(())
}
