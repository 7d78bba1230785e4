//! Measures what a router makes of slow, silent and too many clients.

use std::{env, process::ExitCode, time::Duration};

use siege::{Role, command, field::this_binary, more_files, soak};

const USAGE: &str = "give `slow [CLIENTS [CONNECTIONS-A-SECOND [SECONDS]]]` (what 2000 slow clients and a flood of 1000 do to honest \
                     ones), `idle [CLIENTS]` (what 10000 silent ones cost), or `soak [SECONDS [SEED [MS]]]` (1800 of steady \
                     load on all protocols, servers killed, the configuration changed each second; each of 40 clients asks every 25 ms)";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(role) = Role::parse(&args) {
        role.play();
        return ExitCode::SUCCESS;
    }
    more_files();
    let number = |at: usize, default: u64| args.get(at).map_or(Some(default), |text| text.parse().ok());
    let (Some(one), Some(two), Some(three)) = (number(1, 0), number(2, 0), number(3, 0)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let or = |number: u64, default: u64| if number > 0 { number } else { default };
    let good = match args.first().map(String::as_str) {
        Some("slow") => {
            let time = Duration::from_secs(or(three, 8));
            let slow = command::slow(&this_binary(), or(one, 2000) as usize, or(two, 1000) as usize, 5, time);
            println!("{slow}");
            let (before, with) = slow.per_mille(990);
            with <= before * 2 && slow.failed() == 0
        }
        Some("idle") => {
            let idle = command::idle(&this_binary(), or(one, 10_000) as usize);
            println!("bytes for each silent client, before it asked for anything and after: {idle:?}");
            [idle.http.0, idle.http.1, idle.redis.0, idle.redis.1].iter().all(|each| *each <= 4096)
        }
        Some("soak") => {
            let time = Duration::from_secs(or(one, 1800));
            let every = Duration::from_millis(or(three, 25));
            let soak = soak::soak(&this_binary(), time, every, Duration::from_secs(2), or(two, 1));
            println!("{soak}");
            soak.is_good()
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
