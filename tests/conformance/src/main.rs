//! Lets other parsers read what the router passes on, for as long as one likes.

use std::{env, fs, io, process::ExitCode};

use conformance::{compare, families::FAMILIES, payloads, peers};
use membership_types::Rng;

const USAGE: &str = "give how many streams to draw (100000) and a seed (1); or --files and files, each of which is a stream; or --families";
/// How many streams are made at a time.
const BATCH: u64 = 5_000;

fn main() -> io::Result<ExitCode> {
    let args: Vec<String> = env::args().skip(1).collect();
    let (peers, missing) = peers::start();
    missing.iter().for_each(|why| eprintln!("{why}"));
    if args.first().is_some_and(|arg| arg == "--files") {
        let streams: io::Result<Vec<Vec<u8>>> = args[1..].iter().map(fs::read).collect();
        return Ok(judge(&peers, &streams?));
    }
    if args.first().is_some_and(|arg| arg == "--families") {
        let judged = FAMILIES.iter().map(|family| {
            println!("{}:", family.name);
            judge(&peers, &(family.streams)())
        });
        let bad = judged.filter(|code| *code == ExitCode::FAILURE).count();
        return Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let number = |at: usize, default: u64| args.get(at).map_or(Ok(default), |text| text.parse::<u64>());
    let (Ok(count), Ok(seed)) = (number(0, 100_000), number(1, 1)) else {
        eprintln!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    if judge(&peers, &payloads::classics()) == ExitCode::FAILURE {
        return Ok(ExitCode::FAILURE);
    }
    let (mut rng, mut drawn) = (Rng::seeded(seed), 0);
    while drawn < count {
        let streams: Vec<Vec<u8>> = (0..BATCH.min(count - drawn)).map(|_| payloads::draw(&mut rng)).collect();
        drawn += streams.len() as u64;
        if judge(&peers, &streams) == ExitCode::FAILURE {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn judge(peers: &[peers::Peer], streams: &[Vec<u8>]) -> ExitCode {
    let outcome = compare(peers, streams);
    println!("{outcome:#}");
    if outcome.disagreements.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
