//! Which of several clones that may all answer gets a request: requests in flight first, latency second.
//!
//! Two clones are drawn, each as often as its weight says, and the one with fewer requests in flight for its
//! weight is taken; where that is the same, the one that lately answered sooner, and one request more is made up
//! for by answers in less than half the time, but only among clones with the same share (Mitzenmacher, "The Power of
//! Two Choices in Randomized Load Balancing", 2001). What is compared is what this worker has sent itself: it
//! is never stale, costs no probe, and grows at once when a server hangs. Latency alone does not; but it tells
//! servers apart where each worker has little in flight, and so sees none of the load that others put on them.
//! `examples/choice` simulates this beside other ways to choose.
//!
//! Clones near the router come first while they are not overloaded (`spills`), and a server that is new or
//! back again gets a growing share of its weight (`Candidate::share`).

use core::time::Duration;

use membership_types::Instant;

use crate::{
    l2p::{Loads, LogicalId, PhysicalId},
    racs::{Circumstances, Reads},
};

/// The share of a clone of weight 1 that is not new.
const WHOLE: u64 = 256;
/// The least share that a clone starts with: a tenth.
const LEAST: u64 = WHOLE / 10;
/// Requests in flight for each weight that clones near the router may always have, before any request goes to
/// clones farther away.
const SLACK: u64 = 16;

/// Differences between latencies up to this many nanoseconds do not count, unless one is twice the other.
const CHANCE: u64 = 250_000;

/// How soon a server answers, as one worker saw it: a moving average that is forgotten when nothing is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    ns: u64,
    measured: Instant,
}

impl Latency {
    /// What is not measured again for this long counts half.
    const HALF_LIFE: Duration = Duration::from_secs(1);

    /// Takes in that an answer took `time` to begin.
    pub fn measure(&mut self, now: Instant, time: Duration) {
        let new = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, 1 << 40);
        let fresh = self.ns > 0 && now <= self.measured.after(Self::HALF_LIFE);
        self.ns = if fresh { (self.ns * 7 + new).div_ceil(8) } else { new };
        self.measured = now;
    }

    /// The average in nanoseconds; less the longer ago it was measured, so that a slow server gets another
    /// chance; 0 if nothing is known.
    pub fn at(self, now: Instant) -> u64 {
        let since = now.as_nanos().saturating_sub(self.measured.as_nanos());
        self.ns.checked_shr((since / Self::HALF_LIFE.as_nanos() as u64).min(64) as u32).unwrap_or(0)
    }
}

/// A clone that may be chosen, and what counts for it.
#[derive(Clone, Copy)]
struct Candidate {
    clone: LogicalId,
    near: bool,
    share: u64,
    in_flight: u64,
    server: PhysicalId,
}

impl Candidate {
    fn of<L: Loads>(clone: LogicalId, at: &Circumstances<'_, L>) -> Self {
        let logical = at.l2p.get(clone);
        let server = logical.physical;
        Self {
            clone,
            near: logical.near,
            share: u64::from(logical.weight.get())
                * ramp(at.loads.well_since(server), at.now, at.policy.slow_start),
            in_flight: u64::from(at.loads.in_flight(server)),
            server,
        }
    }

    /// Whether it is the better choice than the other one.
    fn beats<L: Loads>(&self, other: &Self, at: &Circumstances<'_, L>) -> bool {
        // In-flight by weight, multiplied out: at the one with the smaller share a request counts for more.
        let (mine, others) = (self.in_flight * other.share, other.in_flight * self.share);
        let gap = mine.abs_diff(others);
        // Where weights differ, or one is new, latency would have its way whenever all are idle.
        // And where a client stays with its clone, what is fast at this moment says little.
        if self.share != other.share || gap > self.share || at.policy.reads == Reads::Sticky {
            return mine < others;
        }
        let latency = |one: &Self| at.loads.latency(one.server, at.now);
        let (my_latency, others_latency) = (latency(self), latency(other));
        // Whether an answer takes more than `times / part` as long elsewhere, as far as both are known.
        let sooner = |here: u64, there: u64, times, part| here > 0 && here * times < there * part;
        if gap == 0 {
            // A small difference between latencies is chance.
            sooner(my_latency, others_latency, 2, 1)
                || (sooner(my_latency, others_latency, 5, 4) && others_latency - my_latency > CHANCE)
        } else if mine < others {
            !sooner(others_latency, my_latency, 2, 1)
        } else {
            sooner(my_latency, others_latency, 2, 1)
        }
    }
}

/// The part of its weight that a server gets which has been well since then: it grows evenly from a tenth to
/// all of it.
fn ramp(well_since: Instant, now: Instant, slow_start: Duration) -> u64 {
    let full = slow_start.as_nanos() as u64;
    let age = now.as_nanos().saturating_sub(well_since.as_nanos());
    if age >= full {
        WHOLE
    } else {
        (u128::from(WHOLE) * u128::from(age) / u128::from(full)).max(LEAST as u128) as u64
    }
}

/// The clones of one zone together.
#[derive(Default)]
struct Together {
    share: u64,
    in_flight: u64,
}

impl Together {
    fn add(&mut self, one: &Candidate) {
        self.share += one.share;
        self.in_flight += one.in_flight;
    }
}

/// Whether clones near the router have so much to do that those farther away get their part: more than twice
/// as many requests in flight for their weight as those have, and [`SLACK`] more.
fn spills(near: &Together, far: &Together) -> bool {
    let allowed =
        2 * u128::from(far.in_flight) * u128::from(WHOLE) + u128::from(SLACK) * u128::from(far.share);
    u128::from(near.in_flight) * u128::from(far.share) * u128::from(WHOLE) > allowed * u128::from(near.share)
}

/// Arrays with up to this many clones are looked at once; larger ones several times, because nothing is allocated.
const FEW: usize = 8;

/// Chooses among the eligible clones; `None` if there are none.
pub(crate) fn choose<L: Loads>(
    clones: &[LogicalId],
    eligible: impl Fn(LogicalId) -> bool,
    at: &Circumstances<'_, L>,
    random: u64,
) -> Option<LogicalId> {
    let mut candidates =
        clones.iter().filter(|&&clone| eligible(clone)).map(|&clone| Candidate::of(clone, at));
    if clones.len() > FEW {
        return better_of_two(candidates, at, random);
    }
    let mut few = [const { None }; FEW];
    few.iter_mut().zip(&mut candidates).for_each(|(place, one)| *place = Some(one));
    better_of_two(few.iter().map_while(|place| *place), at, random)
}

fn better_of_two<L: Loads>(
    candidates: impl Iterator<Item = Candidate> + Clone,
    at: &Circumstances<'_, L>,
    random: u64,
) -> Option<LogicalId> {
    let (mut near, mut far) = (Together::default(), Together::default());
    candidates.clone().for_each(|one| if one.near { near.add(&one) } else { far.add(&one) });
    let only_near = near.share > 0 && far.share > 0 && !spills(&near, &far);
    let share = near.share + if only_near { 0 } else { far.share };
    let admitted = candidates.filter(|one| one.near || !only_near);
    let first = draw(admitted.clone(), share, random & 0xffff_ffff)?;
    let others = admitted.filter(|one| one.clone != first.clone);
    match draw(others, share - first.share, random >> 32) {
        Some(second) if second.beats(&first, at) => Some(second.clone),
        _ => Some(first.clone),
    }
}

/// Draws one, as often as its part of `share` says; `random` has 32 bits.
fn draw(candidates: impl Iterator<Item = Candidate>, share: u64, random: u64) -> Option<Candidate> {
    let mut left = ((u128::from(share) * u128::from(random)) >> 32) as u64;
    for one in candidates {
        if left < one.share {
            return Some(one);
        }
        left -= one.share;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec::Vec};

    use crate::{
        l2p::{L2p, Logical, Physicals},
        racs::Policy,
    };
    use membership_types::{Rng, Weight};

    const NOW: Instant = Instant::from_nanos(60_000_000_000);
    const MS: u64 = 1_000_000;

    #[derive(Clone, Copy)]
    struct One {
        weight: u16,
        near: bool,
        in_flight: u32,
        latency: u64,
        well_for: Duration,
    }

    const PLAIN: One =
        One { weight: 1, near: true, in_flight: 0, latency: 0, well_for: Duration::from_secs(60) };

    struct Ones<'a>(&'a [One]);

    impl Loads for Ones<'_> {
        fn in_flight(&self, server: PhysicalId) -> u32 {
            self.0[server.index()].in_flight
        }
        fn avoid_until(&self, _: PhysicalId) -> Instant {
            Instant::ZERO
        }
        fn latency(&self, server: PhysicalId, _: Instant) -> u64 {
            self.0[server.index()].latency
        }
        fn well_since(&self, server: PhysicalId) -> Instant {
            Instant::from_nanos(NOW.as_nanos() - self.0[server.index()].well_for.as_nanos() as u64)
        }
    }

    /// How often each is chosen of 10,000 times.
    fn chosen(clones: &[One], slow_start: Duration) -> Vec<u32> {
        let (mut l2p, mut physicals) = (L2p::default(), Physicals::default());
        let add = |(at, one): (usize, &One)| {
            let addr = format!("127.0.0.1:{}", 9000 + at).parse().unwrap();
            let physical = physicals.id_of(addr);
            let weight = Weight::new(one.weight).unwrap();
            l2p.add(Logical { name: "c".into(), physical, addr, weight, near: one.near })
        };
        let ids: Vec<LogicalId> = clones.iter().enumerate().map(add).collect();
        let policy = Policy { slow_start, ..Policy::default() };
        let at = Circumstances { policy, l2p: &l2p, loads: &Ones(clones), now: NOW };
        let mut rng = Rng::seeded(3);
        let mut hits = alloc::vec![0; clones.len()];
        for _ in 0..10_000 {
            let clone = choose(&ids, |_| true, &at, rng.next_u64()).unwrap();
            hits[l2p.get(clone).physical.index()] += 1;
        }
        hits
    }

    fn about(hits: u32, expected: u32) -> bool {
        hits.abs_diff(expected) < 300
    }

    #[test]
    fn idle_clones_are_chosen_by_weight_and_busy_ones_by_their_load_for_it() {
        let three = One { weight: 3, ..PLAIN };
        let hits = chosen(&[three, PLAIN], Duration::ZERO);
        assert!(about(hits[0], 7500), "{hits:?}");
        let hits = chosen(&[One { in_flight: 6, ..three }, One { in_flight: 3, ..PLAIN }], Duration::ZERO);
        assert_eq!(hits, [10_000, 0], "2 for each weight are fewer than 3");
        let hits = chosen(&[One { in_flight: 10, ..three }, One { in_flight: 3, ..PLAIN }], Duration::ZERO);
        assert_eq!(hits, [0, 10_000]);
    }

    #[test]
    fn latency_decides_between_clones_with_the_same_load_if_it_differs_much() {
        let of = |latency_ms| One { latency: latency_ms * MS, in_flight: 2, ..PLAIN };
        assert_eq!(chosen(&[of(30), of(10)], Duration::ZERO), [0, 10_000]);
        let hits = chosen(&[of(11), of(10)], Duration::ZERO);
        assert!(about(hits[0], 5000), "{hits:?}");
        let of_ns = |latency| One { latency, ..of(0) };
        let hits = chosen(&[of_ns(400_000), of_ns(600_000)], Duration::ZERO);
        assert!(about(hits[0], 5000), "{hits:?}");
        assert_eq!(chosen(&[of_ns(200_000), of_ns(600_000)], Duration::ZERO), [10_000, 0]);
        let hits = chosen(&[of(0), of(10)], Duration::ZERO);
        assert!(about(hits[0], 5000), "of one nothing is known: {hits:?}");
        let busy = |in_flight| One { in_flight, ..of(4) };
        assert_eq!(
            chosen(&[busy(3), of(10)], Duration::ZERO),
            [10_000, 0],
            "one more, in less than half the time"
        );
        assert_eq!(chosen(&[busy(3), of(8)], Duration::ZERO), [0, 10_000], "in half the time");
        assert_eq!(chosen(&[busy(4), of(99)], Duration::ZERO), [0, 10_000], "two more: load comes first");
        assert_eq!(chosen(&[busy(3), of(0)], Duration::ZERO), [0, 10_000], "of one nothing is known");
    }

    #[test]
    fn clones_nearby_are_preferred_until_they_are_overloaded() {
        let far = One { near: false, ..PLAIN };
        let near = |in_flight| One { in_flight, ..PLAIN };
        assert_eq!(chosen(&[near(16), near(16), far], Duration::ZERO)[2], 0);
        assert!(chosen(&[near(17), near(16), far], Duration::ZERO)[2] > 5000);
        let busy = One { in_flight: 10, ..far };
        assert_eq!(chosen(&[near(36), busy], Duration::ZERO), [10_000, 0]);
        assert_eq!(chosen(&[near(37), busy], Duration::ZERO), [0, 10_000]);
        assert!(about(chosen(&[far, far], Duration::ZERO)[0], 5000), "far from everything is near enough");
    }

    #[test]
    fn the_share_of_a_new_server_grows() {
        let new = |ms| One { well_for: Duration::from_millis(ms), ..PLAIN };
        let slow = Duration::from_secs(10);
        let hits = |ms| chosen(&[PLAIN, new(ms)], slow)[1];
        assert!(about(hits(0), 900), "{}", hits(0));
        assert!(about(hits(5_000), 3333), "{}", hits(5_000));
        assert!(about(hits(10_000), 5000), "{}", hits(10_000));
        assert!(about(chosen(&[PLAIN, new(0)], Duration::ZERO)[1], 5000), "if it is to start slowly");
        assert!(about(chosen(&[new(0), new(0)], slow)[1], 5000), "all are new where the router is");
        let busy = chosen(&[One { in_flight: 9, ..PLAIN }, One { in_flight: 1, ..new(0) }], slow);
        assert_eq!(busy, [10_000, 0], "one in flight is much for a tenth");
    }

    #[test]
    fn latency_is_an_average_that_is_forgotten() {
        let at = |ms| Instant::from_nanos(ms * MS);
        let mut latency = Latency::default();
        assert_eq!(latency.at(at(1)), 0);
        latency.measure(at(1), Duration::from_millis(8));
        assert_eq!(latency.at(at(1)), 8 * MS);
        latency.measure(at(2), Duration::from_millis(16));
        assert_eq!(latency.at(at(2)), 9 * MS);
        assert_eq!(latency.at(at(1002)), 9 * MS / 2);
        assert_eq!(latency.at(at(1_000_000)), 0);
        latency.measure(at(5000), Duration::from_millis(3));
        assert_eq!(latency.at(at(5000)), 3 * MS, "what was long ago does not count");
        latency.measure(at(5001), Duration::MAX);
        assert!(latency.at(Instant::MAX) == 0 && latency.at(at(5001)) > 0);
    }
}
