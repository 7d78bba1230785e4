//! A long run under steady load, while servers are killed, the configuration changes each second, and the router itself stands
//! still now and then.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use membership_types::Rng;

use crate::{
    field::{Field, Holds, MORTAL},
    honest::{Crowd, Seen, Speaks},
};

/// How often the configuration changes.
const RELOAD: Duration = Duration::from_secs(1);
/// How long the router gets no processor now and then: longer than a connection to a server may take to be made.
const STALL: Duration = Duration::from_millis(1_200);
/// How long clients ask before what the router holds is looked at for the first time, and how long everything rests before each
/// look: connections that nobody uses any more have ended then.
const WARM: Duration = Duration::from_secs(3);
const REST: Duration = Duration::from_secs(3);
/// Connections to servers that are kept for later requests are as many as were needed at once, and may be so many more at one
/// time than at another.
const SLACK: u64 = 15;

/// What came of it.
#[derive(Debug)]
pub struct Soak {
    /// What the clients saw.
    pub seen: Seen,
    /// How often a server was killed.
    pub kills: u64,
    /// How often the configuration changed.
    pub reloads: u64,
    /// Why it did not, where it did not.
    pub refused: Vec<String>,
    /// Updates that ran twice, or not at all though the client was told so.
    pub wrong: Vec<String>,
    /// The router's memory, sampled.
    pub resident: Vec<u64>,
    /// What the router held without clients, after a short load and after the long one.
    pub held: (Holds, Holds),
}

impl Soak {
    /// The median of the memory in the second quarter of the run, and in the last.
    pub fn grown(&self) -> (u64, u64) {
        let quarter = self.resident.len() / 4;
        let median = |part: &[u64]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part.get(part.len() / 2).copied().unwrap_or(0)
        };
        (median(&self.resident[quarter..2 * quarter]), median(&self.resident[3 * quarter..]))
    }

    /// Whether nothing failed, no update ran twice, memory is flat, to a fiftieth and a MiB, and nothing was left behind.
    pub fn is_good(&self) -> bool {
        let (early, late) = self.grown();
        let (before, after) = self.held;
        self.seen.failed == 0
            && self.refused.is_empty()
            && self.wrong.is_empty()
            && late <= early + early / 50 + (1 << 20)
            && after.clients == 0
            && after.tasks <= before.tasks + SLACK
            && after.files <= before.files + SLACK
    }
}

impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (early, late) = self.grown();
        let Seen { took, answered, unknown, failed, why, .. } = &self.seen;
        writeln!(
            f,
            "{} requests answered {answered:?}, {unknown} updates unknown, {failed} failed {why:?}",
            took.len()
        )?;
        writeln!(
            f,
            "half of them in {:?}, 99.9 % in {:?}",
            self.seen.per_mille(500),
            self.seen.per_mille(999)
        )?;
        writeln!(f, "{} kills, {} reloads, refused: {:?}", self.kills, self.reloads, self.refused)?;
        let first = &self.wrong[..self.wrong.len().min(5)];
        writeln!(f, "of {} updates {} went wrong {first:?}", self.seen.told.len(), self.wrong.len())?;
        let ends =
            [self.resident.first(), self.resident.last()].map(|size| size.copied().unwrap_or(0) / 1024);
        writeln!(
            f,
            "the router's memory: {} KiB at the begin, {} KiB in the second quarter, {} KiB in the last, {} KiB at the end",
            ends[0],
            early / 1024,
            late / 1024,
            ends[1]
        )?;
        write!(f, "held without clients, before {:?} and after {:?}", self.held.0, self.held.1)
    }
}

/// Steady load on all services for so long, each client asking so often, while a server is killed and started again about every `pace`, and the
/// configuration changes.
pub fn soak(binary: &Path, time: Duration, every: Duration, pace: Duration, seed: u64) -> Soak {
    let mut field = Field::start(binary);
    let crowd = Crowd {
        services: Speaks::ALL.map(|speaks| (speaks, field.service(speaks))).into(),
        clients: 8,
        every,
        updates: true,
        stay: 500,
    };
    let early = crowd.ask(WARM);
    thread::sleep(REST);
    let before = field.holds();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let trouble = thread::spawn(move || {
        let (mut rng, mut kills, mut resident) = (Rng::seeded(seed), 0, Vec::new());
        let (mut reloads, mut refused) = (0, Vec::new());
        let (mut kill, mut reload) = (Instant::now() + pace, Instant::now() + RELOAD);
        while !stopped.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(100).min(pace / 4));
            resident.push(field.router.resident());
            if Instant::now() >= kill {
                kills += 1;
                let stall = if kills % 5 == 0 { STALL } else { Duration::ZERO };
                field.bounce(rng.below(MORTAL as u64) as usize, stall, Duration::from_millis(rng.below(300)));
                kill = Instant::now() + pace;
            }
            if Instant::now() >= reload {
                reloads += 1;
                refused.extend(field.reload(reloads).err());
                reload += RELOAD;
            }
        }
        (field, kills, resident, reloads, refused)
    });
    let mut seen = crowd.ask(time);
    stop.store(true, Ordering::SeqCst);
    let (mut field, kills, resident, reloads, refused) = trouble.join().expect("servers come back");
    // As it was at the begin.
    let refused = refused.into_iter().chain(field.reload(0).err()).collect();
    seen.failed += early.failed;
    seen.why.extend(early.why);
    seen.told.extend(early.told);
    let wrong = field.judge(&seen.told);
    thread::sleep(REST);
    let held = (before, field.holds());
    Soak { seen, kills, reloads, refused, wrong, resident, held }
}
