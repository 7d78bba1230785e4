//! How much of its own a sender has under way: about what others take in a few milliseconds.
//!
//! What is under way when a view closes has to come to everybody before the next one is installed, and meanwhile all senders
//! wait. So a sender measures how long it takes from sending something, while its window is used, until everybody is known to
//! hold that: a *round*. If that is much longer than the shortest one, messages stand in queues, where they win nothing:
//! the window shrinks in proportion. Else it grows by a step for each round that used all of it. So those who send at the same
//! time come to have equal shares. (The shortest round is forgotten after a while, for ways change: then the window shrinks once,
//! to see how long a round is without a queue of one's own.)

use core::time::Duration;

use membership_types::{Instant, ViewId};

/// So long queues may make a round.
const QUEUED: Duration = Duration::from_millis(3);
/// The shortest round is looked for anew after this time.
const FORGET: Duration = Duration::from_secs(30);
/// Of the largest window: the first one, the smallest, and the step.
const FIRST: u64 = 4;
const LEAST: u64 = 16;
const STEP: u64 = 64;

#[derive(Clone, Debug, Hash)]
pub(crate) struct Pace {
    most: u64,
    window: u64,
    /// The shortest round of late, and since when that is measured.
    shortest: Option<(Duration, Instant)>,
    round: Option<Round>,
}

/// From sending a fragment until everybody holds it.
#[derive(Clone, Debug, Hash)]
struct Round {
    view: ViewId,
    number: u64,
    begun: Instant,
    /// There was no room for more.
    full: bool,
}

impl Pace {
    /// `most`: no window is larger.
    pub(crate) fn new(most: u64) -> Self {
        Self { most, window: most / FIRST, shortest: None, round: None }
    }

    /// How many bytes may be under way.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Fragments up to this number are sent in a view, and so many bytes are under way now.
    pub(crate) fn sent(&mut self, now: Instant, view: ViewId, number: u64, under_way: u64) {
        let full = under_way >= self.window;
        match &mut self.round {
            Some(round) if round.view == view => round.full |= full,
            // Little says nothing about much.
            _ if under_way < self.window / 2 => self.round = None,
            _ => self.round = Some(Round { view, number, begun: now, full }),
        }
    }

    /// Everybody holds the fragments up to this number.
    pub(crate) fn held(&mut self, now: Instant, view: ViewId, number: u64) {
        let Some(round) = self.round.take_if(|r| r.view == view && r.number <= number) else { return };
        let took = now - round.begun;
        let (shortest, since) = *self.shortest.get_or_insert((took, now));
        if now >= since.after(FORGET) {
            self.shortest = None;
            self.window = self.most / LEAST;
            return;
        }
        self.shortest = Some((shortest.min(took), since));
        // Where the way is long a closing takes long, queues or not.
        let good = shortest.min(took) + QUEUED.max(shortest / 2);
        if took > good {
            let part = u128::from(self.window) * good.as_nanos() / took.as_nanos();
            let part = u64::try_from(part).unwrap_or(self.window);
            self.window = part.max(self.window / 2).max(self.most / LEAST);
        } else if round.full {
            self.window = (self.window + self.most / STEP).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 4 << 20;
    const VIEW: ViewId = ViewId::new(1);

    /// Rounds of one who always has more to send. `took`: how long one takes, in microseconds, with a window of so many bytes.
    fn rounds(pace: &mut Pace, now: &mut Instant, count: u64, took: impl Fn(u64) -> u64) {
        for number in 1..=count {
            let window = pace.window();
            pace.sent(*now, VIEW, number, window);
            *now = now.after(Duration::from_micros(took(window)));
            pace.held(*now, VIEW, number);
        }
    }

    #[test]
    fn a_way_without_a_queue_is_used_as_far_as_may_be() {
        let (mut pace, mut now) = (Pace::new(MOST), Instant::from_nanos(1));
        rounds(&mut pace, &mut now, 100, |window| 300 + window / 2000);
        assert_eq!(pace.window(), MOST);
        // However long it is.
        let (mut pace, mut now) = (Pace::new(MOST), Instant::from_nanos(1));
        rounds(&mut pace, &mut now, 100, |window| 80_000 + window / 2000);
        assert_eq!(pace.window(), MOST);
    }

    #[test]
    fn what_would_stand_in_queues_is_not_sent() {
        // 100 bytes in a microsecond, besides a round of half a millisecond.
        let took = |window| 500 + window / 100;
        let (mut pace, mut now) = (Pace::new(MOST), Instant::from_nanos(1));
        rounds(&mut pace, &mut now, 20, |window| 500 + window / 10_000);
        for _ in 0..200 {
            rounds(&mut pace, &mut now, 20, took);
            assert!((MOST / LEAST..MOST / 4).contains(&pace.window()), "{}", pace.window());
        }
        assert!(took(pace.window()) < 6_000, "{} us", took(pace.window()));
    }

    #[test]
    fn who_sends_little_is_not_judged_by_the_queues_of_others() {
        let (mut pace, mut now) = (Pace::new(MOST), Instant::from_nanos(1));
        rounds(&mut pace, &mut now, 10, |_| 300);
        let before = pace.window();
        for number in 11..100 {
            pace.sent(now, VIEW, number, before / 3);
            now = now.after(Duration::from_millis(40));
            pace.held(now, VIEW, number);
        }
        assert_eq!(pace.window(), before);
    }
}
