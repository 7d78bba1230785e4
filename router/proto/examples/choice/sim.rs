//! Clones that serve requests of several workers, in simulated time, and ways to choose among them.
//!
//! Each clone has threads that serve one request each, first come, first served; how long one takes is drawn
//! from an exponential distribution. Arrivals are Poisson. Every way sees the same servers and the same seed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use membership_types::{Instant, Rank, Rng};
use router_proto::{
    Epoch, L2p, LogicalId, PhysicalId, Racs,
    choice::Latency,
    l2p::{Loads, Logical, Physicals},
    racs::{Access, Circumstances, Pick, Policy, Tried},
};

/// One microsecond of simulated time.
const US: u64 = 1000;
/// Between a worker and a server, in each direction.
const WIRE: u64 = 50 * US;
/// What a request takes at a server of ordinary speed, on average.
const WORK: u64 = 1000 * US;
/// Threads of each server.
const THREADS: usize = 8;

/// A way to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Any.
    Random,
    /// One after the other.
    RoundRobin,
    /// The one of two with fewer requests in flight.
    TwoChoices,
    /// What the router does: the one of two with fewer in flight; of equal ones the faster.
    Router,
    /// Of all the one with the fewest in flight.
    Least,
    /// The one of two with the lower product of in-flight and an average of latency that jumps to each peak
    /// and decays over 10 s (Finagle, Linkerd).
    PeakEwma,
    /// Probes tell in-flight and latency at the servers: of those that are not among the busiest sixth the
    /// fastest is taken, else the one with the fewest in flight (Wydrowski et al., "Load is not what you should
    /// balance: Introducing Prequal", NSDI 2024); three probes for each request, a pool of 16.
    Prequal,
}

impl Way {
    pub const ALL: [Self; 7] = [
        Self::Random,
        Self::RoundRobin,
        Self::TwoChoices,
        Self::Least,
        Self::PeakEwma,
        Self::Prequal,
        Self::Router,
    ];
}

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub clones: usize,
    pub workers: usize,
    /// Load as a part of what all clones can do.
    pub load: f64,
    /// By how much the last clone is slower than the others, all the time.
    pub slow: f64,
    /// By how much a clone is slower while something else runs on its machine: each clone now and then, for
    /// 300 ms of 3 s.
    pub antagonist: f64,
    /// Whether the last clone answers nothing from 3 s to 4 s.
    pub hang: bool,
}

impl Scenario {
    pub const ALL: [Self; 5] = [
        Self { name: "equal clones", ..Self::PLAIN },
        Self { name: "one clone 3 times slower", slow: 3.0, ..Self::PLAIN },
        Self { name: "antagonists: 4 times slower, a tenth of the time", antagonist: 4.0, ..Self::PLAIN },
        Self {
            name: "antagonists, 32 workers with little each",
            antagonist: 4.0,
            workers: 32,
            ..Self::PLAIN
        },
        Self { name: "one clone hangs for 1 s of 10", hang: true, ..Self::PLAIN },
    ];

    pub const PLAIN: Self =
        Self { name: "", clones: 5, workers: 4, load: 0.7, slow: 1.0, antagonist: 1.0, hang: false };
}

/// How long requests took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

/// What one worker knows of one server.
#[derive(Clone, Copy, Default)]
struct Known {
    in_flight: u32,
    latency: Latency,
    /// The coarse tick in which a request was timed last.
    timed: u64,
    /// Peak EWMA, in nanoseconds, and when it was updated.
    peak: (f64, u64),
}

impl Known {
    fn peak(&mut self, now: u64, new: Option<f64>) -> f64 {
        const TAU: f64 = 10e9;
        let (old, at) = self.peak;
        let kept = (-((now - at) as f64) / TAU).exp();
        let value = match new {
            Some(new) if new > old => new,
            Some(new) => old * kept + new * (1.0 - kept),
            None => old * kept,
        };
        if new.is_some() {
            self.peak = (value, now);
        }
        value
    }
}

/// An answer to a probe.
#[derive(Clone, Copy)]
struct Probe {
    server: usize,
    in_flight: u32,
    latency: u64,
    at: u64,
    uses: u32,
}

#[derive(Default)]
struct Worker {
    known: Vec<Known>,
    next: usize,
    probes: VecDeque<Probe>,
    /// In-flight counts that probes told lately.
    seen: VecDeque<u32>,
    /// Whether the worst probe is removed next, or the oldest.
    worst_next: bool,
}

struct View<'a>(&'a [Known]);

impl Loads for View<'_> {
    fn in_flight(&self, server: PhysicalId) -> u32 {
        self.0[server.index()].in_flight
    }
    fn avoid_until(&self, _: PhysicalId) -> Instant {
        Instant::ZERO
    }
    fn latency(&self, server: PhysicalId, now: Instant) -> u64 {
        self.0[server.index()].latency.at(now)
    }
}

#[derive(Default)]
struct Server {
    busy: usize,
    /// Who waits, and since when.
    queue: VecDeque<Job>,
    in_flight: u32,
    /// In-flight at arrival, and time here, of the last requests.
    lately: VecDeque<(u32, u64)>,
}

impl Server {
    /// What a probe is told: what requests took that came when as many were in flight, or nearly.
    fn estimate(&self) -> u64 {
        let near = |(in_flight, _): &(u32, u64)| in_flight.abs_diff(self.in_flight);
        let least = self.lately.iter().map(near).min().unwrap_or(0);
        let mut times: Vec<u64> =
            self.lately.iter().filter(|one| near(one) <= least + 1).map(|one| one.1).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    worker: usize,
    server: usize,
    sent: u64,
    arrived: u64,
    in_flight_then: u32,
    timed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client asks a worker.
    Request,
    /// A request reaches its server.
    Arrive(Job),
    /// A server has served it.
    Done(Job),
    /// Its answer reaches the worker.
    Answer(Job),
    /// A probe reaches a server, and comes back.
    Probe(usize, usize),
    Probed(usize, usize, u32, u64),
}

struct Sim {
    scenario: Scenario,
    way: Way,
    rng: Rng,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    workers: Vec<Worker>,
    servers: Vec<Server>,
    racs: Racs,
    l2p: L2p,
    took: Vec<u64>,
}

/// Simulates so many seconds; the first is not counted.
pub fn run(scenario: Scenario, way: Way, seconds: u64, seed: u64) -> Outcome {
    let (mut l2p, mut physicals) = (L2p::default(), Physicals::default());
    let clones: Vec<LogicalId> = (0..scenario.clones)
        .map(|at| {
            let addr = SocketAddr::from(([10, 0, 0, 1], 9000 + at as u16));
            l2p.add(Logical::new("clone", physicals.id_of(addr), addr))
        })
        .collect();
    let known = vec![Known::default(); scenario.clones];
    let mut sim = Sim {
        scenario,
        way,
        rng: Rng::seeded(seed),
        now: 0,
        events: BinaryHeap::new(),
        order: 0,
        workers: (0..scenario.workers)
            .map(|_| Worker { known: known.clone(), ..Worker::default() })
            .collect(),
        servers: (0..scenario.clones).map(|_| Server::default()).collect(),
        racs: Racs::new("a", clones, Some(Rank::LEADER), Epoch::FIRST),
        l2p,
        took: Vec::new(),
    };
    sim.after(0, Event::Request);
    while let Some(Reverse((at, _, event))) = sim.events.pop()
        && at < seconds * 1_000_000 * US
    {
        sim.now = at;
        sim.step(event);
    }
    // What hangs at the end has taken at least so long.
    let now = sim.now;
    let stuck = sim.servers.iter().flat_map(|server| &server.queue).map(|job| now - job.sent);
    sim.took.extend(stuck);
    sim.took.sort_unstable();
    let at = |part: f64| sim.took[(sim.took.len() as f64 * part) as usize] as f64 / 1e6;
    Outcome { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
}

impl Sim {
    fn after(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + time, self.order, event)));
    }

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n as u64) as usize
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        (-(1.0 - unit).ln() * mean) as u64
    }

    /// How much longer than usual a request takes that is begun now.
    fn slowness(&self, server: usize) -> f64 {
        let Scenario { clones, slow, antagonist, .. } = self.scenario;
        let mut factor = if server + 1 == clones { slow } else { 1.0 };
        // Each in turn, out of step with the others.
        let (cycle, offset) = (3_000_000 * US, server as u64 * 617_000 * US);
        if (self.now + offset) % cycle < cycle / 10 {
            factor *= antagonist;
        }
        factor
    }

    /// Until when it does nothing.
    fn hangs(&self, server: usize) -> Option<u64> {
        let (from, to) = (3_000_000 * US, 4_000_000 * US);
        let hangs =
            self.scenario.hang && server + 1 == self.scenario.clones && (from..to).contains(&self.now);
        hangs.then_some(to)
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Request => {
                let Scenario { clones, load, slow, .. } = self.scenario;
                let capacity = (clones as f64 - 1.0 + 1.0 / slow) * THREADS as f64 / WORK as f64;
                let next = self.exponential(1.0 / (capacity * load));
                self.after(next, Event::Request);
                let worker = self.below(self.scenario.workers);
                let server = self.choose(worker);
                let known = &mut self.workers[worker].known[server];
                known.in_flight += 1;
                // As the router does: one in each tick of 20 ms.
                let tick = 1 + self.now / (20_000 * US);
                let timed = std::mem::replace(&mut known.timed, tick) != tick;
                let job = Job { worker, server, sent: self.now, arrived: 0, in_flight_then: 0, timed };
                self.after(WIRE, Event::Arrive(job));
                if self.way == Way::Prequal {
                    for _ in 0..3 {
                        let server = self.below(clones);
                        self.after(WIRE, Event::Probe(worker, server));
                    }
                }
            }
            Event::Arrive(mut job) => {
                let server = &mut self.servers[job.server];
                (job.arrived, job.in_flight_then) = (self.now, server.in_flight);
                server.in_flight += 1;
                if server.busy < THREADS {
                    self.begin(job);
                } else {
                    server.queue.push_back(job);
                }
            }
            Event::Done(job) => {
                if let Some(until) = self.hangs(job.server) {
                    self.after(until - self.now, event);
                    return;
                }
                self.after(WIRE, Event::Answer(job));
                let server = &mut self.servers[job.server];
                server.busy -= 1;
                server.in_flight -= 1;
                server.lately.push_back((job.in_flight_then, self.now - job.arrived));
                if server.lately.len() > 32 {
                    server.lately.pop_front();
                }
                if let Some(next) = server.queue.pop_front() {
                    self.begin(next);
                }
            }
            Event::Answer(job) => {
                let (now, time) = (self.now, self.now - job.sent);
                if now > 1_000_000 * US {
                    self.took.push(time);
                }
                let known = &mut self.workers[job.worker].known[job.server];
                known.in_flight -= 1;
                known.peak(now, Some(time as f64));
                if job.timed {
                    known.latency.measure(Instant::from_nanos(now), Duration::from_nanos(time));
                }
            }
            Event::Probe(worker, server) => {
                // A server that hangs answers no probes either.
                if self.hangs(server).is_none() {
                    let (in_flight, latency) =
                        (self.servers[server].in_flight, self.servers[server].estimate());
                    self.after(WIRE, Event::Probed(worker, server, in_flight, latency));
                }
            }
            Event::Probed(worker, server, in_flight, latency) => {
                let at = self.now;
                let worker = &mut self.workers[worker];
                worker.probes.push_back(Probe { server, in_flight, latency, at, uses: 0 });
                worker.seen.push_back(in_flight);
                if worker.probes.len() > 16 {
                    worker.probes.pop_front();
                }
                if worker.seen.len() > 64 {
                    worker.seen.pop_front();
                }
            }
        }
    }

    fn begin(&mut self, job: Job) {
        self.servers[job.server].busy += 1;
        let time = self.exponential(WORK as f64 * self.slowness(job.server));
        self.after(time, Event::Done(job));
    }

    fn choose(&mut self, worker: usize) -> usize {
        let (clones, random, now) = (self.scenario.clones, self.rng.next_u64(), self.now);
        let one = (random & 0xffff_ffff) as usize % clones;
        let two = (one + 1 + (random >> 32) as usize % (clones - 1)) % clones;
        let Sim { workers, racs, l2p, .. } = self;
        let worker = &mut workers[worker];
        let in_flight = |at: usize| worker.known[at].in_flight;
        match self.way {
            Way::Random => one,
            Way::RoundRobin => {
                worker.next = (worker.next + 1) % clones;
                worker.next
            }
            Way::TwoChoices => {
                if in_flight(two) < in_flight(one) {
                    two
                } else {
                    one
                }
            }
            Way::Least => {
                (0..clones).map(|at| (one + at) % clones).min_by_key(|&at| in_flight(at)).expect("some")
            }
            Way::PeakEwma => {
                let mut cost = |at: usize| {
                    let known = &mut worker.known[at];
                    known.peak(now, None) * f64::from(known.in_flight + 1)
                };
                if cost(two) < cost(one) { two } else { one }
            }
            Way::Prequal => worker.by_probes(now).unwrap_or(one),
            Way::Router => {
                let loads = View(&worker.known);
                let at = Circumstances {
                    policy: Policy::default(),
                    l2p,
                    loads: &loads,
                    now: Instant::from_nanos(now),
                };
                match racs.pick(Access::Read, at, random, &Tried::default()) {
                    Pick::Clone(clone) => l2p.get(clone).physical.index(),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

impl Worker {
    fn by_probes(&mut self, now: u64) -> Option<usize> {
        // Probes grow old after a second, and are used up: each may serve about as often as needed to have one.
        self.probes.retain(|probe| probe.at + 1_000_000 * US > now && probe.uses < 2);
        let mut sorted: Vec<u32> = self.seen.iter().copied().collect();
        sorted.sort_unstable();
        let hot = sorted.get(sorted.len() * 84 / 100).copied().unwrap_or(u32::MAX).max(1);
        let rank = |probe: &Probe| {
            if probe.in_flight >= hot { (1, u64::from(probe.in_flight)) } else { (0, probe.latency) }
        };
        let best = (0..self.probes.len()).min_by_key(|&at| rank(&self.probes[at]))?;
        let probe = &mut self.probes[best];
        probe.uses += 1;
        probe.in_flight += 1;
        let server = probe.server;
        // One goes with each request: in turn the worst and the oldest.
        self.worst_next = !self.worst_next;
        if self.probes.len() > 8 {
            let worst = (0..self.probes.len()).max_by_key(|&at| rank(&self.probes[at])).unwrap_or(0);
            self.probes.remove(if self.worst_next { worst } else { 0 });
        }
        Some(server)
    }
}
