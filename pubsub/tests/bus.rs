//! The bus as its subscribers see it. An event is a number that grows by one with every publication, so that
//! a lost, repeated or reordered one shows.

use std::{
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use pubsub::{
    Bus,
    Delivery::{self, Change, Current, Gap},
    Subscription, Topics, TryNextError,
};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

fn limit(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("a limit is not zero")
}

fn drain<K: Ord + Clone, E: Clone>(subscription: &mut Subscription<K, E>) -> Vec<Delivery<K, E>> {
    std::iter::from_fn(|| subscription.try_next().ok()).collect()
}

/// Follows one topic and insists that nothing is missing: a gap says exactly how much was.
struct Follower {
    last: Option<u64>,
    after_gap: Option<u64>,
    gaps: usize,
}

impl Follower {
    fn new() -> Self {
        Self { last: None, after_gap: None, gaps: 0 }
    }

    fn take(&mut self, delivery: Delivery<&'static str, u64>) -> u64 {
        match delivery {
            Current { event, .. } => {
                match (self.last, self.after_gap.take()) {
                    (None, None) => {}
                    (Some(last), Some(missed)) => assert_eq!(event, last + missed, "the gap told the truth"),
                    (last, missed) => panic!("current {event} after {last:?} and a gap of {missed:?}"),
                }
                self.last = Some(event);
            }
            Change { event, .. } => {
                assert_eq!(self.after_gap, None, "the current value comes before changes");
                assert!(self.last.is_none_or(|last| event == last + 1), "{event} after {:?}", self.last);
                self.last = Some(event);
            }
            Gap { missed, current } => {
                assert_eq!(current, 1);
                // A further gap may come before the current value was taken: they add up.
                self.after_gap = Some(self.after_gap.unwrap_or(0) + missed);
                self.gaps += 1;
            }
        }
        self.last.unwrap_or(0)
    }
}

#[test]
fn a_subscriber_between_two_publications_sees_the_current_value_then_the_next() {
    // The classic loss: reading the state and then following changes misses what happens in between.
    let bus = Bus::new();
    bus.publish("g", 1);
    bus.publish("g", 2);
    let mut subscription = bus.subscribe("g");
    bus.publish("g", 3);
    let seen = drain(&mut subscription);
    assert_eq!(seen, [Current { topic: "g", event: 2 }, Change { topic: "g", event: 3 }]);
    assert_eq!(bus.current(&"g"), Some(3));
}

#[test]
fn a_subscriber_of_a_topic_without_a_value_sees_its_first_one_as_a_change() {
    let bus = Bus::new();
    let mut subscription = bus.subscribe("g");
    assert_eq!(subscription.try_next(), Err(TryNextError::Empty));
    bus.publish("other", 1);
    bus.publish("g", 2);
    assert_eq!(drain(&mut subscription), [Change { topic: "g", event: 2 }]);
}

#[test]
fn a_pattern_follows_topics_that_come_later_too_and_all_in_one_order() {
    let bus = Bus::new();
    bus.publish("view/a", 1);
    bus.publish("config/x", 2);
    let mut views = bus.subscribe(Topics::matching(|topic: &&str| topic.starts_with("view/")));
    let mut all = bus.subscribe(Topics::all());
    bus.publish("view/b", 3);
    bus.publish("view/a", 4);
    bus.publish("config/y", 5);
    assert_eq!(
        drain(&mut views),
        [
            Current { topic: "view/a", event: 1 },
            Change { topic: "view/b", event: 3 },
            Change { topic: "view/a", event: 4 }
        ]
    );
    let order: Vec<_> = drain(&mut all)
        .into_iter()
        .map(|delivery| match delivery {
            Current { event, .. } | Change { event, .. } => event,
            Gap { .. } => panic!("nothing was missed"),
        })
        .collect();
    assert_eq!(order, [2, 1, 3, 4, 5], "values by topic, then changes by time");
}

#[test]
fn several_topics_are_followed_by_name_in_one_order_and_nothing_else_is() {
    let bus = Bus::new();
    bus.publish("b", 1);
    bus.publish("c", 2);
    let mut some = bus.subscribe(Topics::of(["c", "a", "b", "c"]));
    bus.publish("d", 3);
    bus.publish("c", 4);
    bus.publish("a", 5);
    bus.publish("b", 6);
    let expected = [
        Current { topic: "b", event: 1 },
        Current { topic: "c", event: 2 },
        Change { topic: "c", event: 4 },
        Change { topic: "a", event: 5 },
        Change { topic: "b", event: 6 },
    ];
    assert_eq!(drain(&mut some), expected);
    bus.retire(&"c", 7);
    bus.publish("c", 8);
    assert_eq!(drain(&mut some), [Change { topic: "c", event: 7 }, Change { topic: "c", event: 8 }]);
}

#[test]
fn who_follows_several_topics_and_misses_changes_gets_the_values_of_all_of_them_once() {
    let bus = Bus::new();
    let mut some = bus.subscribe_within(limit(2), Topics::of(["a", "b", "none"]));
    for event in 0..3 {
        bus.publish("a", event);
        bus.publish("other", event);
    }
    bus.publish("b", 3);
    let caught_up =
        [Gap { missed: 4, current: 2 }, Current { topic: "a", event: 2 }, Current { topic: "b", event: 3 }];
    assert_eq!(drain(&mut some), caught_up);
    // And once more where the end of the bus does it.
    for event in 4..7 {
        bus.publish("a", event);
    }
    drop(bus);
    let last =
        [Gap { missed: 3, current: 2 }, Current { topic: "a", event: 6 }, Current { topic: "b", event: 3 }];
    assert_eq!(drain(&mut some), last);
    assert_eq!(some.try_next(), Err(TryNextError::Closed));
}

#[test]
fn a_dropped_subscription_of_several_topics_leaves_none_of_them_behind() {
    let bus = Bus::new();
    let token = Arc::new(());
    let some = bus.subscribe(Topics::of(["a", "b"]));
    bus.publish("a", Arc::clone(&token));
    bus.publish("b", Arc::clone(&token));
    assert_eq!(Arc::strong_count(&token), 5);
    drop(some);
    assert_eq!(Arc::strong_count(&token), 3, "only the current values are left");
    bus.publish("a", Arc::new(()));
    bus.publish("b", Arc::new(()));
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn subscribers_that_race_with_publications_see_a_contiguous_sequence_from_their_first() {
    // A subscription that takes the value and registers for changes in two steps loses or repeats one here.
    const LAST: u64 = 10_000;
    let bus = Bus::new();
    bus.publish("g", 0);
    let start = Barrier::new(4);
    let subscribe_again_and_again = || {
        start.wait();
        let mut seen = 0;
        while seen < LAST {
            let mut subscription = bus.subscribe_within(limit(LAST as usize), "g");
            let mut follower = Follower::new();
            let first = follower.take(block_on(subscription.next()).expect("the bus is open"));
            while follower.last < Some(LAST.min(first + 20)) {
                follower.take(block_on(subscription.next()).expect("the bus is open"));
            }
            assert_eq!(follower.gaps, 0, "there was room for all");
            assert!(first >= seen, "a later subscription begins no earlier");
            seen = first;
        }
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(subscribe_again_and_again);
        }
        start.wait();
        for n in 1..=LAST {
            bus.publish("g", n);
            if n % 8 == 0 {
                thread::yield_now(); // or all is published before the others had their turn
            }
        }
    });
}

#[test]
fn an_overflow_yields_a_gap_then_the_current_values_then_changes() {
    let bus = Bus::new();
    bus.publish("a", 0);
    bus.publish("b", 100);
    let mut subscription = bus.subscribe_within(limit(3), Topics::all());
    for n in 1..=3 {
        bus.publish("a", n);
    }
    assert_eq!(drain(&mut subscription).len(), 5, "two values and three changes: just within the limit");
    for n in 4..=7 {
        bus.publish("a", n);
    }
    bus.publish("a", 8);
    assert_eq!(
        drain(&mut subscription),
        [Gap { missed: 5, current: 2 }, Current { topic: "a", event: 8 }, Current { topic: "b", event: 100 }]
    );
    bus.publish("b", 101);
    assert_eq!(drain(&mut subscription), [Change { topic: "b", event: 101 }]);
}

#[test]
fn an_overflow_while_current_values_wait_counts_changes_only() {
    // Current values that fall out are no loss: newer ones follow the gap.
    let bus = Bus::new();
    let mut subscription = bus.subscribe_within(limit(1), Topics::all());
    for n in 1..=3 {
        bus.publish("a", n);
    }
    bus.publish("b", 0);
    assert_eq!(subscription.try_next(), Ok(Gap { missed: 4, current: 2 }));
    // The two current values are still there.
    for n in 4..=6 {
        bus.publish("a", n);
    }
    assert_eq!(subscription.try_next(), Ok(Gap { missed: 3, current: 2 }));
    assert_eq!(subscription.try_next(), Ok(Current { topic: "a", event: 6 }));
}

#[test]
fn gaps_add_up_when_a_slow_subscriber_races_with_publications() {
    // Whatever the interleaving: last seen + missed = the value after the gap.
    const LAST: u64 = 20_000;
    let bus = Bus::new();
    bus.publish("g", 0);
    let mut subscription = bus.subscribe_within(limit(4), "g");
    let mut follower = Follower::new();
    // Before the race: an overflow takes it away with everything else.
    follower.take(subscription.try_next().expect("a current value"));
    thread::scope(|scope| {
        scope.spawn(|| (1..=LAST).for_each(|n| bus.publish("g", n)));
        while follower.last < Some(LAST) {
            follower.take(block_on(subscription.next()).expect("the bus is open"));
        }
    });
}

/// An event whose copies are counted.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(alive))
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_dropped_subscription_frees_what_it_held() {
    let alive = Arc::new(AtomicUsize::new(0));
    let bus = Bus::new();
    let by_name = bus.subscribe("g");
    let by_pattern = bus.subscribe(Topics::all());
    for _ in 0..10 {
        bus.publish("g", Counted::new(&alive));
    }
    assert_eq!(alive.load(Ordering::Relaxed), 21, "ten for each, and the current value");
    drop(by_name);
    assert_eq!(alive.load(Ordering::Relaxed), 11);
    drop(by_pattern);
    bus.publish("g", Counted::new(&alive));
    assert_eq!(alive.load(Ordering::Relaxed), 1);
}

#[test]
fn a_subscriber_that_never_reads_costs_a_bounded_amount_and_nobody_else_anything() {
    let alive = Arc::new(AtomicUsize::new(0));
    let bus = Bus::new();
    let _stuck = bus.subscribe_within(limit(8), "g");
    let mut prompt = bus.subscribe_within(limit(8), "g");
    for _ in 0..10_000 {
        bus.publish("g", Counted::new(&alive));
        assert!(matches!(prompt.try_next(), Ok(Change { .. })), "the prompt one has every change at once");
        assert!(alive.load(Ordering::Relaxed) <= 8 + 1, "the stuck one's limit, and the current value");
    }
}

#[test]
fn a_cancelled_wait_has_taken_nothing() {
    let bus = Bus::new();
    let mut subscription = bus.subscribe("g");
    {
        let mut waiting = pin!(subscription.next());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        bus.publish("g", 1); // wakes it, but it is dropped before it is polled again
    }
    assert_eq!(block_on(subscription.next()), Some(Change { topic: "g", event: 1 }));
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_waiting_subscriber_is_woken_by_a_publication_an_overflow_and_the_end_of_the_bus() {
    let bus = Bus::new();
    let mut subscription = bus.subscribe_within(limit(1), "g");
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut poll = || subscription.poll_next(&mut Context::from_waker(&waker));
    let wakes = || woken.0.swap(0, Ordering::Relaxed);

    assert!(poll().is_pending());
    bus.publish("g", 1);
    bus.publish("g", 2);
    assert_eq!(wakes(), 1, "one wake for one poll, however much there is");
    assert_eq!(poll(), Poll::Ready(Some(Gap { missed: 2, current: 1 })));
    assert_eq!(poll(), Poll::Ready(Some(Current { topic: "g", event: 2 })));

    assert!(poll().is_pending());
    bus.publish("other", 3);
    assert_eq!(wakes(), 0, "nothing for us");
    drop(bus);
    assert_eq!(wakes(), 1);
    assert_eq!(poll(), Poll::Ready(None));
    assert_eq!(subscription.try_next(), Err(TryNextError::Closed));
}

#[test]
fn the_end_of_the_bus_lets_a_slow_subscriber_catch_up_first() {
    // With the bus go the current values: they must be handed over before.
    let bus = Bus::new();
    let mut by_name = bus.subscribe_within(limit(1), "g");
    let mut by_pattern = bus.subscribe_within(limit(1), Topics::all());
    for n in 1..=5 {
        bus.clone().publish("g", n);
    }
    drop(bus);
    for subscription in [&mut by_name, &mut by_pattern] {
        let rest = drain(subscription);
        assert_eq!(rest, [Gap { missed: 5, current: 1 }, Current { topic: "g", event: 5 }]);
        assert_eq!(subscription.try_next(), Err(TryNextError::Closed));
    }
}

#[test]
fn a_retired_topic_says_its_last_word_and_is_forgotten() {
    // Groups come and go: a topic that nobody can ever publish again must not stay for ever.
    let bus = Bus::new();
    bus.publish("g", 1);
    let mut by_name = bus.subscribe("g");
    let mut by_pattern = bus.subscribe(Topics::all());
    assert!(bus.retire(&"g", 2));
    assert!(!bus.retire(&"g", 3), "nothing to retire");
    assert_eq!(bus.current(&"g"), None);
    for subscription in [&mut by_name, &mut by_pattern] {
        let seen = drain(subscription);
        assert_eq!(seen, [Current { topic: "g", event: 1 }, Change { topic: "g", event: 2 }]);
    }
    assert_eq!(drain(&mut bus.subscribe(Topics::all())), []);

    bus.publish("g", 4); // the name is used anew
    for subscription in [&mut by_name, &mut by_pattern] {
        assert_eq!(drain(subscription), [Change { topic: "g", event: 4 }]);
    }
}

#[test]
fn a_subscriber_that_missed_a_retirement_sees_the_topic_absent_after_the_gap() {
    let bus = Bus::new();
    bus.publish("g", 1);
    bus.publish("h", 7);
    let mut subscription = bus.subscribe_within(limit(1), Topics::all());
    bus.publish("g", 2);
    bus.retire(&"g", 3);
    assert_eq!(drain(&mut subscription), [Gap { missed: 2, current: 1 }, Current { topic: "h", event: 7 }]);
}

#[test]
fn a_retired_topic_leaves_no_memory_behind_while_a_pattern_is_followed() {
    // Routers follow all groups by a pattern, for as long as they live.
    let bus = Bus::new();
    let mut all = bus.subscribe(Topics::all());
    let topic: Arc<str> = "view/job-1".into();
    bus.publish(Arc::clone(&topic), 1);
    bus.retire(&topic, 2);
    drain(&mut all);
    assert_eq!(Arc::strong_count(&topic), 1, "ours alone");
}

#[test]
fn what_is_kept_may_be_less_than_what_is_told() {
    let bus = Bus::new();
    let mut early = bus.subscribe("g");
    bus.publish_with("g", 10, 1);
    assert_eq!(drain(&mut early), [Change { topic: "g", event: 10 }]);
    assert_eq!(drain(&mut bus.subscribe("g")), [Current { topic: "g", event: 1 }]);
    assert_eq!(bus.current(&"g"), Some(1));
}

#[test]
fn current_values_are_collected_in_the_order_of_topics() {
    let bus = Bus::new();
    let _without_value = bus.subscribe("d");
    for (topic, event) in [("c", 3), ("a", 1), ("b", 2)] {
        bus.publish(topic, event);
    }
    let odd: Vec<_> = bus.collect(|(topic, event)| (event % 2 == 1).then_some((*topic, *event)));
    assert_eq!(odd, [("a", 1), ("c", 3)]);
}
