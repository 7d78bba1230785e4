//! The network between places: delays, losses, cuts.
//!
//! A place is where a process runs. Every ordered pair of places is a directed link. Messages of one link keep their
//! order, as those of a connection do, unless the run reorders; a cut link either loses what is sent (the connection
//! broke) or holds it and releases it all at once when it heals (as a kernel's send buffer does).

use membership_types::Rng;

use crate::Map;

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
    /// It arrives then; and once more, if it is doubled.
    Arrives(u64, Option<u64>),
    /// It waits for the heal.
    Held,
    /// It is lost.
    Lost,
    /// It is changed on the way: whoever gets it closes the connection.
    Changed,
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

/// How much a link changes that does so.
const CHANGED_PER_MILLE: u64 = 50;

/// After what time a stream sends again what was lost, the first time.
const RETRY_AFTER: u64 = 20_000_000;

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) manners: Manners,
    links: Map<(usize, usize), Link>,
    rng: Rng,
}

/// A directed link.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    cut: Option<Cut>,
    /// It takes this much longer.
    slow: Option<u64>,
    /// It loses four messages of five.
    lossy: bool,
    /// It changes some.
    garbles: bool,
    /// When the last message arrives.
    last: u64,
}

impl Network {
    pub(crate) fn new(manners: Manners, rng: Rng) -> Self {
        Self { manners, links: Map::default(), rng }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    /// The directed link loses or holds what is sent from now on.
    pub(crate) fn cut(&mut self, from: usize, to: usize, how: Cut) {
        self.link(from, to).cut = Some(how);
    }

    /// The directed link takes this much longer.
    pub(crate) fn slow_down(&mut self, from: usize, to: usize, by: u64) {
        self.link(from, to).slow = Some(by);
    }

    /// The directed link loses four messages of five.
    pub(crate) fn lose_most(&mut self, from: usize, to: usize) {
        self.link(from, to).lossy = true;
    }

    /// The directed link changes some of what is said.
    pub(crate) fn garble(&mut self, from: usize, to: usize) {
        self.link(from, to).garbles = true;
    }

    /// The directed link is as it should be.
    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        if let Some(link) = self.links.get_mut(&(from, to)) {
            *link = Link { last: link.last, ..Link::default() };
        }
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.cut.is_some())
    }

    pub(crate) fn is_faulty(&self, from: usize, to: usize) -> bool {
        let faulty = |link: &Link| link.cut.is_some() || link.slow.is_some() || link.lossy || link.garbles;
        self.links.get(&(from, to)).is_some_and(faulty)
    }

    /// Draws what becomes of a message sent at `now`.
    pub(crate) fn send(&mut self, now: u64, from: usize, to: usize) -> Fate {
        let Self { manners, links, rng } = self;
        let link = links.entry((from, to)).or_default();
        match link.cut {
            Some(Cut::Lose) => return Fate::Lost,
            Some(Cut::Hold) => return Fate::Held,
            None => {}
        }
        if from != to && rng.chance(manners.loss_per_mille) {
            return Fate::Lost;
        }
        if link.lossy && rng.chance(LOSSY_PER_MILLE) {
            return Fate::Lost;
        }
        if link.garbles && rng.chance(CHANGED_PER_MILLE) {
            return Fate::Changed;
        }
        let first = link.arrival(manners, rng, now);
        let doubled = from != to && rng.chance(manners.double_per_mille);
        Fate::Arrives(first, doubled.then(|| link.arrival(manners, rng, now)))
    }

    /// Draws what becomes of a part of a stream, which a network does not lose, double or reorder by itself.
    pub(crate) fn send_in_order(&mut self, now: u64, from: usize, to: usize) -> Fate {
        let Self { manners, links, rng } = self;
        let link = links.entry((from, to)).or_default();
        match link.cut {
            Some(Cut::Lose) => Fate::Lost,
            Some(Cut::Hold) => Fate::Held,
            None if link.garbles && rng.chance(CHANGED_PER_MILLE) => Fate::Changed,
            None => {
                // What a stream loses is sent again, later and later.
                let mut late = 0;
                while link.lossy && late < 5 && rng.chance(LOSSY_PER_MILLE) {
                    late += 1;
                }
                let retries = if late == 0 { 0 } else { RETRY_AFTER << (late - 1) };
                Fate::Arrives(link.arrival(manners, rng, now) + retries, None)
            }
        }
    }

    /// When a message that leaves now arrives.
    pub(crate) fn arrival(&mut self, now: u64, from: usize, to: usize) -> u64 {
        let Self { manners, links, rng } = self;
        links.entry((from, to)).or_default().arrival(manners, rng, now)
    }
}

impl Link {
    fn arrival(&mut self, manners: &Manners, rng: &mut Rng, now: u64) -> u64 {
        let (min, max) = (manners.delay_min, manners.delay_max.max(manners.delay_min));
        // Most are fast; a few take their time.
        let delay =
            if rng.chance(900) { rng.between(min, min + (max - min) / 8) } else { rng.between(min, max) };
        let at = now + delay + self.slow.unwrap_or(0);
        if manners.reorders {
            return at;
        }
        self.last = at.max(self.last + 1);
        self.last
    }
}
