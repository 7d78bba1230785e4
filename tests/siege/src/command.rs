//! The measurements.

use std::{
    fmt,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    attack::Kind,
    field::{Field, Process},
    honest::{Crowd, Seen, Speaks},
};

/// What honest clients notice of attackers.
#[derive(Debug)]
pub struct Slow {
    /// What they saw before, and with the attackers.
    pub rounds: Vec<(Seen, Seen)>,
    /// How large the router was before, and at its largest.
    pub resident: (u64, u64),
}

impl Slow {
    /// The median of what so many per thousand took at most, before and with the attackers.
    pub fn per_mille(&self, per_mille: usize) -> (Duration, Duration) {
        let median = |of: fn(&(Seen, Seen)) -> &Seen| {
            let mut all: Vec<Duration> =
                self.rounds.iter().map(|round| of(round).per_mille(per_mille)).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        (median(|round| &round.0), median(|round| &round.1))
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.rounds.iter().map(|(before, with)| before.failed + with.failed).sum()
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, per_mille) in [("half", 500), ("99 %", 990), ("99.9 %", 999)] {
            let (before, with) = self.per_mille(per_mille);
            let ratio = with.as_secs_f64() / before.as_secs_f64();
            writeln!(f, "{what}: {before:?} before, {with:?} with the attackers: {ratio:.2} times")?;
        }
        let asked: usize = self.rounds.iter().map(|(before, with)| before.took.len() + with.took.len()).sum();
        let why: Vec<&String> =
            self.rounds.iter().flat_map(|round| round.0.why.iter().chain(&round.1.why)).collect();
        writeln!(f, "{asked} requests, {} failed {why:?}", self.failed())?;
        write!(f, "the router: {} KiB before, {} KiB at most", self.resident.0 / 1024, self.resident.1 / 1024)
    }
}

/// Honest clients without and with attackers, in turns: `count` slow ones of all kinds, and `flood` connections a second.
pub fn slow(binary: &Path, count: usize, flood: usize, rounds: usize, time: Duration) -> Slow {
    let field = Field::start(binary);
    let crowd = Crowd {
        services: [Speaks::Http, Speaks::Redis].map(|speaks| (speaks, field.service(speaks))).into(),
        clients: 8,
        every: Duration::from_millis(5),
        updates: false,
        stay: u64::MAX,
    };
    crowd.ask(time.min(Duration::from_secs(1)));
    let before = field.router.resident();
    let mut slow = Slow { rounds: Vec::new(), resident: (before, before) };
    for _ in 0..rounds {
        let calm = crowd.ask(time);
        let slow_kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Flood);
        let mut attackers: Vec<Process> = slow_kinds.map(|kind| field.attack(kind, count / 5)).collect();
        attackers.push(field.attack(Kind::Flood, flood));
        // Until all of them are there.
        thread::sleep(Duration::from_millis(1500));
        let with = crowd.ask(time);
        slow.resident.1 = slow.resident.1.max(field.router.resident());
        slow.rounds.push((calm, with));
        drop(attackers);
        thread::sleep(Duration::from_millis(500));
    }
    slow
}

/// What clients cost that are connected and silent, in bytes each.
#[derive(Debug)]
pub struct Idle {
    /// Of HTTP: before they have asked for anything, and after.
    pub http: (u64, u64),
    /// Of Redis.
    pub redis: (u64, u64),
}

/// Connects so many clients to each service, and looks at the router's memory.
pub fn idle(binary: &Path, count: usize) -> Idle {
    let one = |redis: bool| {
        let field = Field::start(binary);
        let (addr, ask): (SocketAddr, &[u8]) = if redis {
            (field.service(Speaks::Redis), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
        } else {
            (field.service(Speaks::Http), b"GET /x HTTP/1.1\r\nHost: h\r\nX-Key: k\r\nX-Nonce: k\r\n\r\n")
        };
        let connect = |count: usize| -> Vec<TcpStream> {
            (0..count).map(|_| TcpStream::connect(addr).expect("it listens")).collect()
        };
        let ask = |clients: &mut [TcpStream]| {
            for client in clients {
                client.write_all(ask).expect("it takes it");
                assert!(client.read(&mut [0; 256]).expect("it answers") > 0);
            }
        };
        // What the first ones cost is not theirs alone.
        let mut first = connect(50);
        ask(&mut first);
        thread::sleep(Duration::from_millis(200));
        let (before, files) = (field.router.resident(), field.router.files());
        let mut clients = connect(count);
        // Until all of them are there.
        let begun = Instant::now();
        while field.router.files() < files + count {
            assert!(begun.elapsed() < Duration::from_secs(30), "it accepts them");
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(200));
        let silent = field.router.resident();
        ask(&mut clients);
        thread::sleep(Duration::from_millis(200));
        let asked = field.router.resident();
        let each = |after: u64| after.saturating_sub(before) / count as u64;
        (each(silent), each(asked))
    };
    Idle { http: one(false), redis: one(true) }
}
