//! The network between places: delays, losses, cuts.
//!
//! A place is where a process runs. Every ordered pair of places is a directed link. Messages of one link keep their
//! order, as those of a connection do, unless the run reorders; a cut link either loses what is sent (the connection
//! broke) or holds it and releases it all at once when it heals (as a kernel's send buffer does).

use std::collections::{BTreeMap, BTreeSet};

use membership_types::Rng;

/// What a directed link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Messages are lost.
    Lose,
    /// Messages wait for the heal.
    Hold,
}

impl Cut {
    /// What happens to what is said, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lose => "is lost",
            Self::Hold => "comes late",
        }
    }
}

/// What becomes of one message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives at these times (twice, if it is doubled).
    Arrives(Vec<u64>),
    /// It waits for the heal.
    Held,
    /// It is lost.
    Lost,
}

/// How unruly a run's network is; drawn once per seed.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    pub(crate) delay_min: u64,
    pub(crate) delay_max: u64,
    pub(crate) loss_per_mille: u64,
    pub(crate) double_per_mille: u64,
    pub(crate) reorders: bool,
}

impl Manners {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let wild = rng.chance(400);
        let slowest = if rng.chance(200) { 40_000_000 } else { 4_000_000 };
        Self {
            delay_min: rng.between(10_000, 200_000),
            delay_max: rng.between(300_000, slowest),
            loss_per_mille: if wild { rng.below(60) } else { 0 },
            double_per_mille: if wild { rng.below(60) } else { 0 },
            reorders: wild && rng.chance(500),
        }
    }

    pub(crate) fn calm(&mut self) {
        self.loss_per_mille = 0;
        self.double_per_mille = 0;
        self.delay_max = self.delay_max.min(4_000_000);
    }
}

/// How much a lossy link loses.
const LOSSY_PER_MILLE: u64 = 800;

/// After what time a stream sends again what was lost, the first time.
const RETRY_AFTER: u64 = 20_000_000;

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) manners: Manners,
    cuts: BTreeMap<(usize, usize), Cut>,
    slow: BTreeMap<(usize, usize), u64>,
    lossy: BTreeSet<(usize, usize)>,
    last: BTreeMap<(usize, usize), u64>,
    rng: Rng,
}

impl Network {
    pub(crate) fn new(manners: Manners, rng: Rng) -> Self {
        Self {
            manners,
            cuts: BTreeMap::new(),
            slow: BTreeMap::new(),
            lossy: BTreeSet::new(),
            last: BTreeMap::new(),
            rng,
        }
    }

    /// The directed link loses or holds what is sent from now on.
    pub(crate) fn cut(&mut self, from: usize, to: usize, how: Cut) {
        self.cuts.insert((from, to), how);
    }

    /// The directed link takes this much longer.
    pub(crate) fn slow_down(&mut self, from: usize, to: usize, by: u64) {
        self.slow.insert((from, to), by);
    }

    /// The directed link loses four messages of five.
    pub(crate) fn lose_most(&mut self, from: usize, to: usize) {
        self.lossy.insert((from, to));
    }

    /// The directed link is as it should be.
    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        self.cuts.remove(&(from, to));
        self.slow.remove(&(from, to));
        self.lossy.remove(&(from, to));
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    pub(crate) fn is_faulty(&self, from: usize, to: usize) -> bool {
        let link = (from, to);
        self.is_cut(from, to) || self.slow.contains_key(&link) || self.lossy.contains(&link)
    }

    /// Draws what becomes of a message sent at `now`.
    pub(crate) fn send(&mut self, now: u64, from: usize, to: usize) -> Fate {
        match self.cuts.get(&(from, to)) {
            Some(Cut::Lose) => return Fate::Lost,
            Some(Cut::Hold) => return Fate::Held,
            None => {}
        }
        if from != to && self.rng.chance(self.manners.loss_per_mille) {
            return Fate::Lost;
        }
        if self.lossy.contains(&(from, to)) && self.rng.chance(LOSSY_PER_MILLE) {
            return Fate::Lost;
        }
        let mut times = vec![self.arrival(now, from, to)];
        if from != to && self.rng.chance(self.manners.double_per_mille) {
            times.push(self.arrival(now, from, to));
        }
        Fate::Arrives(times)
    }

    /// Draws what becomes of a part of a stream, which a network does not lose, double or reorder by itself.
    pub(crate) fn send_in_order(&mut self, now: u64, from: usize, to: usize) -> Fate {
        match self.cuts.get(&(from, to)) {
            Some(Cut::Lose) => Fate::Lost,
            Some(Cut::Hold) => Fate::Held,
            None => {
                // What a stream loses is sent again, later and later.
                let mut late = 0;
                while self.lossy.contains(&(from, to)) && late < 5 && self.rng.chance(LOSSY_PER_MILLE) {
                    late += 1;
                }
                let retries = if late == 0 { 0 } else { RETRY_AFTER << (late - 1) };
                Fate::Arrives(vec![self.arrival(now, from, to) + retries])
            }
        }
    }

    /// When a message that leaves now arrives.
    pub(crate) fn arrival(&mut self, now: u64, from: usize, to: usize) -> u64 {
        let (min, max) = (self.manners.delay_min, self.manners.delay_max.max(self.manners.delay_min));
        // Most are fast; a few take their time.
        let delay = if self.rng.chance(900) {
            self.rng.between(min, min + (max - min) / 8)
        } else {
            self.rng.between(min, max)
        };
        let at = now + delay + self.slow.get(&(from, to)).copied().unwrap_or(0);
        if self.manners.reorders {
            return at;
        }
        let last = self.last.entry((from, to)).or_insert(0);
        *last = at.max(*last + 1);
        *last
    }
}
