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

/// The spans of time, in nanoseconds, for which errors are counted: a short one, so that a server with much to do is
/// soon found out, and a long one for those that have little.
const SPANS: [u64; 2] = [500_000_000, 8_000_000_000];
/// So few answers in a span say nothing.
const ENOUGH: u32 = 20;

/// What the last answers of a server said: how many, and how many of them were errors of its own (HTTP 500, say).
///
/// They are counted by spans that begin at the same moments for all servers, and the span in hand counts together
/// with the one before: so what two servers are compared by is always of the same time. Errors that requests bring about come
/// to all alike, in bursts or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Errors([Span; SPANS.len()]);

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    number: u64,
    now: Tally,
    before: Tally,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    answers: u32,
    errors: u32,
}

impl Tally {
    fn is_enough(self) -> bool {
        self.answers >= ENOUGH
    }

    /// Whether most answers were errors.
    fn is_high(self) -> bool {
        self.errors > self.answers / 2
    }

    /// Whether fewer than one answer in ten was an error.
    fn is_low(self) -> bool {
        u64::from(self.errors) * 10 < u64::from(self.answers)
    }
}

impl Span {
    /// What is there of the span with this number and the one before.
    fn at(&self, number: u64) -> Tally {
        let Self { now, before, .. } = *self;
        match number.wrapping_sub(self.number) {
            0 => Tally { answers: now.answers + before.answers, errors: now.errors + before.errors },
            1 => now,
            _ => Tally::default(),
        }
    }
}

impl Errors {
    /// An answer came.
    pub fn answered(&mut self, now: Instant, error: bool) {
        for (span, length) in self.0.iter_mut().zip(SPANS) {
            let number = now.as_nanos() / length;
            if number != span.number {
                let before = if number == span.number + 1 { span.now } else { Tally::default() };
                *span = Span { number, now: Tally::default(), before };
            }
            span.now.answers += 1;
            span.now.errors += u32::from(error);
        }
    }

    fn tallies(&self, now: Instant) -> impl Iterator<Item = Tally> {
        self.0.iter().zip(SPANS).map(move |(span, length)| span.at(now.as_nanos() / length))
    }

    /// Whether most answers of this server were errors, and fewer than a tenth of the other's at the same time. The
    /// shortest time in which both gave enough answers decides.
    pub fn are_far_above(&self, other: &Self, now: Instant) -> bool {
        let decides = self.tallies(now).zip(other.tallies(now)).find(|(a, b)| a.is_enough() && b.is_enough());
        decides.is_some_and(|(mine, others)| mine.is_high() && others.is_low())
    }

    /// Whether fewer than a tenth of this server's answers were errors, as far as there were enough.
    pub fn are_few(&self, now: Instant) -> bool {
        self.tallies(now).find(|tally| tally.is_enough()).is_some_and(Tally::is_low)
    }
}

/// What an answer says of the server that it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that counts against it.
    Well,
    /// That it cannot serve.
    Unable,
    /// An error, and so are far more of its answers than of another clone's.
    Outlier,
}

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
    /// What the answers said that are compared with those of other clones.
    lately: Errors,
    /// Whether it is avoided for these: then it does answer, now and then even well.
    outlier: bool,
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
            lately: self.lately,
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

    /// An answer came to a request that could have gone to any clone; `error` says that it was one of the server's own.
    pub fn compared(&mut self, now: Instant, error: bool) {
        self.lately.answered(now, error);
    }

    /// Whether an error that this server has just answered counts against it: most of its answers were errors, and hardly
    /// any of the other's. If it is on trial, this one is enough.
    pub fn stands_out(&self, other: &Self, now: Instant) -> bool {
        if self.on_trial { other.lately.are_few(now) } else { self.lately.are_far_above(&other.lately, now) }
    }

    /// An answer came. Who gives nothing but answers that say that it cannot serve is avoided, too; and at once who
    /// stands out.
    pub fn answered(&mut self, now: Instant, said: Said, avoid: Duration) {
        self.answered_at = now;
        match said {
            Said::Well => {
                // Those that were under way when it was found out tell nothing new either.
                let late = self.outlier && !self.on_trial && self.avoid_until > now;
                // The usual case: nothing to be written.
                if (self.times > 0 || self.errors > 0) && !late {
                    *self = Self { answered_at: now, lately: self.lately, ..Self::default() };
                }
            }
            Said::Unable => self.missed(now, avoid),
            Said::Outlier => {
                self.failed(now, avoid);
                self.outlier = true;
            }
        }
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
    use alloc::vec::Vec;
    use core::slice::from_ref;

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
        health.answered(at(now), Said::Well, AVOID);
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
        health.answered(at(1300), Said::Well, AVOID);
        assert_eq!(health.avoid_until(), Instant::ZERO);
    }

    #[test]
    fn some_errors_are_the_requests_fault_many_in_a_row_the_servers() {
        let mut health = Health::default();
        for _ in 0..100 {
            for _ in 0..MOST_ERRORS - 1 {
                health.answered(at(5), Said::Unable, AVOID);
            }
            assert_eq!(health.avoid_until(), Instant::ZERO);
            health.answered(at(5), Said::Well, AVOID);
        }
        for _ in 0..MOST_ERRORS {
            health.answered(at(5), Said::Unable, AVOID);
        }
        assert_eq!(health.avoid_until(), at(255));
        health.chosen(at(255));
        health.answered(at(256), Said::Unable, AVOID);
        assert_eq!(health.avoid_until(), at(756), "still no better");
    }

    #[test]
    fn deadlines_that_pass_in_a_row_count_against_the_server() {
        let mut health = Health::default();
        for _ in 0..100 {
            (1..MOST_ERRORS).for_each(|_| health.missed(at(5), AVOID));
            health.answered(at(5), Said::Well, AVOID);
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

    /// What a server answered: when, and whether that was an error.
    type History = Vec<(u64, bool)>;

    fn errors_of(history: &History) -> Errors {
        let mut errors = Errors::default();
        history.iter().for_each(|(ms, error)| errors.answered(at(*ms), *error));
        errors
    }

    /// Answers from one moment to another, one in each so many milliseconds; of ten, so many are errors.
    fn answers(from: u64, to: u64, each: usize, errors_of_ten: u64) -> History {
        (from..to).step_by(each).enumerate().map(|(n, ms)| (ms, n as u64 * 7 % 10 < errors_of_ten)).collect()
    }

    #[test]
    fn errors_are_compared_with_those_of_the_same_time() {
        let far_above = |mine: &[History], others: &[History], now| {
            errors_of(&mine.concat()).are_far_above(&errors_of(&others.concat()), at(now))
        };
        let good = |from, to| answers(from, to, 10, 0);
        let bad = |from, to| answers(from, to, 10, 10);
        assert!(far_above(&[bad(0, 200)], &[good(0, 200)], 200));
        assert!(!far_above(&[good(0, 200)], &[bad(0, 200)], 200));
        assert!(!far_above(&[bad(0, 200)], &[bad(0, 200)], 200), "then it is the requests");
        assert!(!far_above(&[answers(0, 900, 10, 4)], &[good(0, 900)], 900), "four in ten are not most");
        assert!(far_above(&[answers(0, 900, 10, 6)], &[good(0, 900)], 900));
        assert!(!far_above(&[bad(0, 900)], &[answers(0, 900, 10, 2)], 900), "two in ten are not few");
        assert!(!far_above(&[bad(0, 190)], &[good(0, 200)], 200), "19 of them are not enough");
        assert!(!far_above(&[bad(0, 200)], &[good(0, 190)], 200));
        // Who has begun to fail is found out within half a second, however long it was well.
        assert!(far_above(&[good(0, 60_000), bad(60_000, 60_500)], &[good(0, 60_500)], 60_501));
        assert!(
            !far_above(&[bad(0, 60_000), good(60_000, 60_500)], &[good(0, 60_500)], 60_501),
            "and soon forgiven"
        );
        // Where there is little to do that takes longer.
        let (few_bad, few_good) = (answers(0, 8000, 300, 10), answers(0, 8000, 400, 0));
        assert!(far_above(from_ref(&few_bad), from_ref(&few_good), 8000));
        assert!(!far_above(&[few_bad], &[few_good], 16_001), "what was long ago does not count");
        // A clone far away that had nothing to do since tells nothing of the requests of now.
        assert!(!far_above(&[good(0, 20_000), bad(20_000, 21_100)], &[good(0, 20_000)], 21_100));
    }

    #[test]
    fn errors_are_counted_as_a_list_of_all_answers_would_have_it() {
        let mut rng = membership_types::Rng::seeded(7);
        let mut judged = 0;
        for _ in 0..300 {
            // Everything about two servers is drawn; what they are asked at the same time is not the same.
            let mut draw = |below: u64| rng.next_u64() % below;
            let (end, mut histories) = (1 + draw(40_000), [History::new(), History::new()]);
            for history in &mut histories {
                let (each, mut errors, mut ms) = (1 + draw(400), draw(11), draw(1000));
                while ms < end {
                    history.push((ms, draw(10) < errors));
                    if draw(50) == 0 {
                        errors = draw(11);
                    }
                    ms += draw(2 * each);
                }
            }
            let counted = |history: &History, span: u64| {
                let from = (end / span).saturating_sub(1) * span;
                let counts = history
                    .iter()
                    .filter(|(ms, _)| (*ms * 1_000_000 + 1) / (span * 1_000_000) * span >= from);
                let (answers, errors) =
                    counts.fold((0u32, 0u32), |(all, bad), (_, e)| (all + 1, bad + u32::from(*e)));
                Tally { answers, errors }
            };
            let expected = |mine: &History, others: &History| {
                let tallies =
                    SPANS.map(|span| (counted(mine, span / 1_000_000), counted(others, span / 1_000_000)));
                let decides = tallies.into_iter().find(|(a, b)| a.answers.min(b.answers) >= 20);
                decides.is_some_and(|(a, b)| 2 * a.errors > a.answers && 10 * b.errors < b.answers)
            };
            let [a, b] = &histories;
            let far_above = |a, b| errors_of(a).are_far_above(&errors_of(b), at(end));
            assert_eq!((far_above(a, b), far_above(b, a)), (expected(a, b), expected(b, a)), "{histories:?}");
            assert!(!(far_above(a, b) && far_above(b, a)), "one of two at most");
            judged += u32::from(far_above(a, b) || far_above(b, a));
        }
        assert!(judged > 10, "{judged}");
    }

    #[test]
    fn errors_that_requests_bring_about_set_no_clone_apart() {
        let mut rng = membership_types::Rng::seeded(11);
        for round in 0..200u64 {
            // Clones get different parts of the load; some requests fail wherever they go, in bursts.
            let mut clones = [Errors::default(); 3];
            let poison = [0, 3, 60, 90, 100][round as usize % 5];
            for n in 0..3000u64 {
                let clone = [0, 0, 0, 1, 1, 2][(rng.next_u64() % 6) as usize];
                let burst = round % 2 == 0 || n / 300 % 2 == 0;
                let error = burst && rng.next_u64() % 100 < poison;
                let now = at(n * (1 + round % 20));
                clones[clone].answered(now, error);
                if error {
                    let outlier = clones.iter().any(|other| clones[clone].are_far_above(other, now));
                    assert!(!outlier, "round {round}, request {n}: {clones:?}");
                }
            }
        }
    }

    #[test]
    fn who_stands_out_is_avoided_until_a_trial_goes_well() {
        let (mut bad, mut good) = (Health::default(), Health::default());
        for ms in (0..200).step_by(10) {
            good.compared(at(ms), false);
            bad.compared(at(ms), true);
        }
        assert!(bad.stands_out(&good, at(200)) && !good.stands_out(&bad, at(200)));
        bad.answered(at(200), Said::Outlier, AVOID);
        assert_eq!(bad.avoid_until(), at(450));
        // What was under way tells nothing new, bad or good.
        bad.answered(at(210), Said::Outlier, AVOID);
        bad.answered(at(220), Said::Well, AVOID);
        assert_eq!(bad.avoid_until(), at(450));
        bad.chosen(at(450));
        assert!(bad.is_half_open(at(450)) && bad.stands_out(&good, at(460)), "one error is enough");
        bad.answered(at(460), Said::Outlier, AVOID);
        assert_eq!(bad.avoid_until(), at(960), "twice as long");
        bad.chosen(at(960));
        bad.answered(at(970), Said::Well, AVOID);
        assert_eq!(bad.avoid_until(), Instant::ZERO);
        assert!(!bad.is_half_open(at(970)));
        // A trial says nothing where the others do no better, or nothing is known of them.
        bad.failed(at(980), AVOID);
        bad.chosen(at(1230));
        (0..100).for_each(|_| good.compared(at(1230), true));
        assert!(!bad.stands_out(&good, at(1231)) && !bad.stands_out(&Health::default(), at(1231)));
    }
}
