//! What one worker has learned about one server from the requests it sent there: whether others are to be
//! preferred, how often requests may be sent again, and when silence is worth a second attempt elsewhere.
//!
//! Nothing here decides where a key lives, nor who leads: it only chooses among clones.

use core::time::Duration;

use membership_types::Instant;

/// The longest time that a server is avoided for before it is tried again.
const LONGEST: Duration = Duration::from_secs(10);
/// How long an attempt at a server that was avoided may take before another one is made.
const TRIAL: Duration = Duration::from_secs(1);
/// How many answers in a row may say that the server cannot serve.
const MOST_ERRORS: u32 = 5;

/// Whether a server is to be avoided: passive outlier detection with half-open probing.
///
/// A server that fails is avoided for a time that doubles while it goes on failing. When that time is over one
/// request may try it; others follow only once that one is answered.
#[derive(Clone, Debug, Default)]
pub struct Health {
    avoid_until: Instant,
    /// Times that it was avoided since it last answered.
    times: u32,
    /// Whether a request has been let through to try it.
    on_trial: bool,
    /// Answers in a row that were errors of the server.
    errors: u32,
    answered_at: Instant,
}

impl Health {
    /// Until when other clones are to be preferred.
    pub fn avoid_until(&self) -> Instant {
        self.avoid_until
    }

    /// Whether it failed and has not answered since, but its time is over: one request tries it, or will.
    pub fn is_half_open(&self, now: Instant) -> bool {
        self.times > 0 && (self.on_trial || self.avoid_until <= now)
    }

    /// Whether no request goes there while another clone is left.
    pub fn is_open(&self, now: Instant) -> bool {
        self.avoid_until > now && !self.on_trial
    }

    /// When the last answer came.
    pub fn answered_at(&self) -> Instant {
        self.answered_at
    }

    /// A request goes there. If the server has failed since it last answered, that is the one that tries it.
    pub fn chosen(&mut self, now: Instant) {
        if self.times > 0 && self.avoid_until <= now {
            self.on_trial = true;
            self.avoid_until = now.after(TRIAL);
        }
    }

    /// A connection or a request failed, or there was silence. `avoid` is how long the server is avoided the
    /// first time.
    pub fn failed(&mut self, now: Instant, avoid: Duration) {
        // Requests that were under way together fail together: that is one failure.
        if self.avoid_until > now && !self.on_trial {
            return;
        }
        let time = avoid.saturating_mul(1 << self.times.min(16)).min(LONGEST.max(avoid));
        *self = Self {
            avoid_until: now.after(time),
            times: self.times.saturating_add(1),
            answered_at: self.answered_at,
            ..Self::default()
        };
    }

    /// The client's time was over before an answer came. That may be the client's fault; but where it is all that
    /// happens, the server is avoided.
    pub fn missed(&mut self, now: Instant, avoid: Duration) {
        self.errors += 1;
        if self.errors >= MOST_ERRORS || self.on_trial {
            self.failed(now, avoid);
        }
    }

    /// An answer came; `error` says that it was one of the server itself (HTTP 502 to 504). Who gives nothing
    /// but such answers is avoided, too.
    pub fn answered(&mut self, now: Instant, error: bool, avoid: Duration) {
        self.answered_at = now;
        if !error {
            // The usual case: nothing to be written.
            if self.times > 0 || self.errors > 0 {
                *self = Self { answered_at: now, ..Self::default() };
            }
            return;
        }
        self.missed(now, avoid);
    }
}

/// How often requests may be sent again: a share of those that were sent once, and a few a second beyond it.
///
/// Without such a bound a server that fails under load gets more load for it. It is charged when a second
/// attempt is decided, not when it is made.
#[derive(Clone, Debug)]
pub struct Budget {
    /// In hundredths of an attempt.
    left: u32,
    /// Hundredths that each request adds.
    percent: u32,
    /// Attempts that are possible at the start; a tenth of them comes back each second.
    reserve: u32,
    refilled_at: Instant,
}

impl Budget {
    /// The most attempts that can be saved up.
    const MOST: u32 = 10_000;

    /// `percent` of the requests may be sent again; and however few there are, `reserve` of them, of which a
    /// tenth comes back each second.
    pub const fn new(percent: u32, reserve: u32) -> Self {
        Self { left: reserve * 100, percent, reserve, refilled_at: Instant::ZERO }
    }

    /// A request was sent for the first time.
    pub fn earn(&mut self) {
        self.left = (self.left + self.percent).min(Self::MOST * 100);
    }

    /// Takes one further attempt, if there is one.
    pub fn spend(&mut self, now: Instant) -> bool {
        let whole = (now - self.refilled_at).as_secs();
        if whole > 0 && self.left < self.reserve * 100 {
            let refill = u32::try_from(whole).unwrap_or(u32::MAX).saturating_mul(self.reserve * 10);
            self.left = self.left.saturating_add(refill).min(self.reserve * 100);
        }
        if whole > 0 {
            self.refilled_at = now;
        }
        match self.left.checked_sub(100) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// How long answers take, as far as a second attempt is concerned: an estimate of the time within which 19 of
/// 20 come.
///
/// Source: stochastic approximation of a quantile (Robbins and Monro, 1951): up by 19 steps for an answer that
/// took longer, down by one for one that did not.
#[derive(Clone, Debug, Default)]
pub struct Usual(Duration);

impl Usual {
    /// An answer came after this time.
    pub fn answered(&mut self, after: Duration) {
        let step = (self.0 / 64).max(Duration::from_micros(100));
        if after > self.0 {
            self.0 = (self.0 + step * 19).min(after.max(self.0));
        } else {
            self.0 = self.0.saturating_sub(step);
        }
    }

    /// How long to wait for an answer before a second clone is asked: three times what 19 of 20 take, at least
    /// `shortest`.
    pub fn patience(&self, shortest: Duration) -> Duration {
        (self.0 * 3).max(shortest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AVOID: Duration = Duration::from_millis(250);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(1 + ms * 1_000_000)
    }

    #[test]
    fn who_fails_again_is_avoided_twice_as_long_and_tried_by_one() {
        let mut health = Health::default();
        let mut now = 0;
        for times in 0..10u32 {
            health.failed(at(now), AVOID);
            let avoided = (250 << times).min(10_000);
            assert_eq!(health.avoid_until(), at(now + avoided));
            assert!(health.is_open(at(now)) && health.is_half_open(at(now + avoided)));
            // Those that were under way with it tell nothing new.
            health.failed(at(now + 1), AVOID);
            assert_eq!(health.avoid_until(), at(now + avoided));
            now += avoided;
            health.chosen(at(now));
            assert!(health.avoid_until() > at(now), "the others wait for the one");
            assert!(health.is_half_open(at(now)) && !health.is_open(at(now)));
        }
        health.answered(at(now), false, AVOID);
        assert_eq!(health.avoid_until(), Instant::ZERO);
        health.failed(at(now), AVOID);
        assert_eq!(health.avoid_until(), at(now + 250), "all is forgiven");
    }

    #[test]
    fn an_attempt_that_comes_to_nothing_is_followed_by_another() {
        let mut health = Health::default();
        health.failed(at(0), AVOID);
        health.chosen(at(250));
        assert_eq!(health.avoid_until(), at(1250));
        health.chosen(at(1250));
        assert_eq!(health.avoid_until(), at(2250));
        // A request of before that is answered late shows that the server lives.
        health.answered(at(1300), false, AVOID);
        assert_eq!(health.avoid_until(), Instant::ZERO);
    }

    #[test]
    fn some_errors_are_the_requests_fault_many_in_a_row_the_servers() {
        let mut health = Health::default();
        for _ in 0..100 {
            for _ in 0..MOST_ERRORS - 1 {
                health.answered(at(5), true, AVOID);
            }
            assert_eq!(health.avoid_until(), Instant::ZERO);
            health.answered(at(5), false, AVOID);
        }
        for _ in 0..MOST_ERRORS {
            health.answered(at(5), true, AVOID);
        }
        assert_eq!(health.avoid_until(), at(255));
        health.chosen(at(255));
        health.answered(at(256), true, AVOID);
        assert_eq!(health.avoid_until(), at(756), "still no better");
    }

    #[test]
    fn deadlines_that_pass_in_a_row_count_against_the_server() {
        let mut health = Health::default();
        for _ in 0..100 {
            (1..MOST_ERRORS).for_each(|_| health.missed(at(5), AVOID));
            health.answered(at(5), false, AVOID);
        }
        assert_eq!(health.avoid_until(), Instant::ZERO);
        (0..MOST_ERRORS).for_each(|_| health.missed(at(5), AVOID));
        assert_eq!(health.avoid_until(), at(255));
    }

    #[test]
    fn attempts_are_a_share_of_the_requests() {
        let mut budget = Budget::new(10, 100);
        let now = at(0);
        assert_eq!((0..1000).filter(|_| budget.spend(now)).count(), 100);
        for _ in 0..1000 {
            budget.earn();
        }
        assert_eq!((0..1000).filter(|_| budget.spend(now)).count(), 100);
        assert_eq!((0..1000).filter(|_| budget.spend(at(3000))).count(), 30, "ten a second");
        assert_eq!((0..1000).filter(|_| budget.spend(at(3_600_000))).count(), 100, "but not for ever");
        for _ in 0..10_000_000 {
            budget.earn();
        }
        assert_eq!((0..20_000).filter(|_| budget.spend(at(3_600_000))).count(), 10_000);
    }

    #[test]
    fn patience_follows_what_is_usual() {
        let ms = Duration::from_millis;
        let mut usual = Usual::default();
        assert_eq!(usual.patience(ms(20)), ms(20));
        for n in 0..100_000u64 {
            usual.answered(ms(n % 100));
        }
        let patience = usual.patience(ms(20));
        assert!((ms(260)..ms(320)).contains(&patience), "{patience:?}");
        // One in a hundred that hangs changes little; what has become quick is soon taken for quick.
        for n in 0..10_000u64 {
            usual.answered(ms(if n % 100 == 0 { 10_000 } else { 1 }));
        }
        assert!(usual.patience(ms(20)) < ms(40), "{:?}", usual.patience(ms(20)));
    }
}
