//! The measurements of this crate, short and with few clients: what they find must hold on a busy machine, too.
//! `cargo run --release -p siege -- slow`, `idle` and `soak` are the long ones.

use std::{path::Path, time::Duration};

use siege::{command, soak};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_siege"))
}

#[test]
fn a_silent_client_costs_less_than_a_page() {
    let idle = command::idle(binary(), 1000);
    println!("{idle:?}");
    for each in [idle.http.0, idle.http.1, idle.redis.0, idle.redis.1] {
        assert!((500..=4096).contains(&each), "{idle:?}");
    }
}

#[test]
fn honest_clients_hardly_notice_slow_ones_and_a_flood() {
    let slow = command::slow(binary(), 200, 200, 1, Duration::from_secs(3));
    println!("{slow}");
    let (before, with) = slow.per_mille(500);
    assert!(slow.failed() == 0 && with < before * 5 + Duration::from_millis(20), "{slow}");
    assert!(slow.rounds[0].1.took.len() > 500, "the test must have tested something: {slow}");
    // Buffers for those who send slowly, and what they do not read.
    assert!(slow.resident.1 - slow.resident.0 < 400 << 20, "{slow}");
}

#[test]
fn under_steady_load_nothing_fails_and_memory_stays_while_servers_are_killed_and_the_configuration_changes() {
    let soak =
        soak::soak(binary(), Duration::from_secs(20), Duration::from_millis(25), Duration::from_secs(1), 7);
    println!("{soak}");
    assert!(soak.is_good() && soak.kills >= 5 && soak.reloads >= 10, "{soak}");
    assert!(soak.seen.answered.values().all(|answered| *answered > 1_000), "{soak}");
    assert!(soak.seen.answered.len() == 5 && (1..soak.kills * 64).contains(&soak.seen.unknown), "{soak}");
}
