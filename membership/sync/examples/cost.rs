//! What the cells cost on this machine: `cargo run --release -p membership-sync --example cost`.

use std::{hint::black_box, sync::Arc, time::Instant};

use membership_sync::{LeaderCell, LeaseMemoryError, NodeLease, PartitionGate, Snapshot};

fn main() -> Result<(), LeaseMemoryError> {
    let lease = NodeLease::new()?;
    let cell = LeaderCell::new(lease.clone());
    lease.extend(u64::MAX);
    cell.lead(17);
    let start = Instant::now(); // CLOCK_MONOTONIC costs what CLOCK_BOOTTIME does
    let clock = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    measure("is_current, without the clock", || black_box(&cell).is_current(17, || 1));
    measure("is_current, with the clock", || black_box(&cell).is_current(17, clock));
    measure("the clock alone", clock);

    let snapshot = Snapshot::new(Arc::new(7_u64));
    let mut reader = snapshot.reader();
    measure("snapshot load, unchanged", || *black_box(&mut reader).load());
    let mut changing = Snapshot::new(Arc::new(7_u64));
    let mut reader = changing.reader();
    measure("snapshot publish and load", || {
        changing.publish(Arc::new(8_u64));
        *reader.load()
    });

    let gate = PartitionGate::open();
    measure("gate enter and leave", || black_box(&gate).enter().is_some());
    Ok(())
}

/// The best of several rounds, which is what the code costs when nothing else runs.
fn measure<T>(what: &str, mut once: impl FnMut() -> T) {
    const CALLS: u32 = 1_000_000;
    let best = (0..20)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..CALLS {
                black_box(once());
            }
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!("{what:<32} {:6.1} ns", best.as_secs_f64() * 1e9 / f64::from(CALLS));
}
