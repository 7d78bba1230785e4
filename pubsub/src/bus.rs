//! The bus: topics, their current values, and who follows them.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use crate::{
    Delivery, Subscription,
    subscription::{Pushed, Queue, Scope},
};

/// How many changes wait for a subscriber unless [`Bus::subscribe_within`] says otherwise.
pub const DEFAULT_LIMIT: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Which topics a subscription follows. A plain topic converts into it.
pub enum Topics<K> {
    /// These topics, whether they have values yet or not. However many topics and subscriptions there are, they are found
    /// by their names.
    Of(Vec<K>),
    /// Every topic of which the function says so, now and in future. It is asked once per topic that gets a
    /// value, under the bus's lock: it must depend on nothing but the topic, and not use the bus.
    Matching(Box<dyn Fn(&K) -> bool + Send + Sync>),
}

impl<K> Topics<K> {
    /// Every topic, now and in future.
    pub fn all() -> Self {
        Self::matching(|_| true)
    }

    /// These topics.
    pub fn of(topics: impl IntoIterator<Item = K>) -> Self {
        Self::Of(topics.into_iter().collect())
    }

    /// Every topic of which `pattern` says so; see [`Topics::Matching`].
    pub fn matching(pattern: impl Fn(&K) -> bool + Send + Sync + 'static) -> Self {
        Self::Matching(Box::new(pattern))
    }
}

impl<K> From<K> for Topics<K> {
    fn from(topic: K) -> Self {
        Self::of([topic])
    }
}

/// Publishes events under topics `K` to everyone who follows them. A cheap handle: clones are one bus.
///
/// All publications of one bus are in one order, and every subscription sees them in it. When the last handle
/// is dropped, subscriptions end after what they still hold.
pub struct Bus<K: Ord + Clone, E: Clone> {
    shared: Arc<Shared<K, E>>,
}

pub(crate) struct Shared<K: Ord + Clone, E: Clone>(Mutex<State<K, E>>);

pub(crate) struct State<K, E> {
    next_id: u64,
    topics: BTreeMap<K, Topic<K, E>>,
    patterns: BTreeMap<u64, Pattern<K, E>>,
}

/// Kept while it has a value or someone follows it by name.
struct Topic<K, E> {
    current: Option<E>,
    /// By subscription id. While the topic has a value, whoever matches it by a pattern is in here too, so
    /// that publishing asks no pattern.
    followers: Followers<K, E>,
}

/// Sorted by subscription id, and never empty. A topic has few, mostly none, and there may be very many topics: a tree for each would
/// cost more than all else, and room for a list, too.
type Followers<K, E> = Option<Box<Vec<(u64, Arc<Queue<K, E>>)>>>;

struct Pattern<K, E> {
    matches: Box<dyn Fn(&K) -> bool + Send + Sync>,
    queue: Arc<Queue<K, E>>,
}

impl<K: Ord + Clone, E: Clone> Bus<K, E> {
    /// A bus without topics.
    pub fn new() -> Self {
        let state = State { next_id: 0, topics: BTreeMap::new(), patterns: BTreeMap::new() };
        Self { shared: Arc::new(Shared(Mutex::new(state))) }
    }

    /// Makes `event` the topic's current value and tells everyone who follows it.
    ///
    /// Never waits for a subscriber: the price is one push for each of the topic's followers.
    pub fn publish(&self, topic: K, event: E) {
        self.publish_with(topic, event.clone(), event);
    }

    /// Tells everyone who follows the topic of a `change`, and makes `current` its current value: what is kept for those who
    /// come later need not carry what they do not need.
    pub fn publish_with(&self, topic: K, change: E, current: E) {
        let mut after = AfterUnlock::default();
        let mut state = self.shared.lock();
        let State { topics, patterns, .. } = &mut *state;
        if topics.get(&topic).is_none_or(|known| known.current.is_none()) {
            let matching: Vec<_> = patterns.iter().filter(|(_, pattern)| (pattern.matches)(&topic)).collect();
            let known = topics.entry(topic.clone()).or_default();
            for (&id, pattern) in matching {
                known.add(id, &pattern.queue);
            }
        }
        let known = topics.get_mut(&topic).expect("the topic was just made sure of");
        known.tell(&topic, &change, &mut after);
        after.replaced = known.current.replace(current);
        after.told = Some(change);
    }

    /// Tells everyone who follows the topic its `last` event, and forgets it: later subscribers do not get
    /// it.
    ///
    /// False, and nobody is told, if the topic has no value. A subscriber that missed it in a gap sees that
    /// the topic is not among the current values that follow the gap.
    pub fn retire(&self, topic: &K, last: E) -> bool {
        let mut after = AfterUnlock::default();
        let mut state = self.shared.lock();
        let State { topics, patterns, .. } = &mut *state;
        let Some(known) = topics.get_mut(topic).filter(|known| known.current.is_some()) else {
            return false;
        };
        known.tell(topic, &last, &mut after);
        after.replaced = known.current.take();
        known.keep(|id| !patterns.contains_key(&id));
        if known.followers.is_none() {
            topics.remove(topic);
        }
        true
    }

    /// The topic's current value.
    pub fn current(&self, topic: &K) -> Option<E> {
        self.shared.lock().topics.get(topic).and_then(|known| known.current.clone())
    }

    /// What `take` makes of the topics that have a value, in their order. It is called under the bus's lock, and must not use
    /// the bus.
    pub fn collect<T, C: FromIterator<T>>(&self, take: impl FnMut((&K, &E)) -> Option<T>) -> C {
        let state = self.shared.lock();
        let valued = state.topics.iter().filter_map(|(topic, known)| Some((topic, known.current.as_ref()?)));
        valued.filter_map(take).collect()
    }

    /// Follows one topic (give it) or many (give [`Topics`]), with room for [`DEFAULT_LIMIT`] changes.
    pub fn subscribe(&self, topics: impl Into<Topics<K>>) -> Subscription<K, E> {
        self.subscribe_within(DEFAULT_LIMIT, topics)
    }

    /// As [`Bus::subscribe`], with room for `limit` changes: a larger one forgives longer pauses of the
    /// subscriber, and costs as much memory once it pauses.
    pub fn subscribe_within(&self, limit: NonZeroUsize, topics: impl Into<Topics<K>>) -> Subscription<K, E> {
        let queue = Arc::new(Queue::new(limit));
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        let scope = match topics.into() {
            Topics::Of(topics) => state.follow(id, &queue, topics),
            Topics::Matching(matches) => {
                let valued = state.topics.iter_mut().filter(|(_, known)| known.current.is_some());
                let matching: Vec<_> = valued.filter(|(topic, _)| matches(topic)).collect();
                for (_, known) in matching {
                    known.add(id, &queue);
                }
                state.patterns.insert(id, Pattern { matches, queue: Arc::clone(&queue) });
                Scope::Matching
            }
        };
        queue.start(state.current_for(id, &scope));
        Subscription::new(id, scope, queue, Arc::downgrade(&self.shared))
    }
}

impl<K: Ord + Clone, E: Clone> Clone for Bus<K, E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Ord + Clone, E: Clone> Default for Bus<K, E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, E> Default for Topic<K, E> {
    fn default() -> Self {
        Self { current: None, followers: None }
    }
}

impl<K, E> Topic<K, E> {
    fn followers(&self) -> &[(u64, Arc<Queue<K, E>>)] {
        self.followers.as_deref().map_or(&[], Vec::as_slice)
    }

    fn place(&self, id: u64) -> Result<usize, usize> {
        self.followers().binary_search_by_key(&id, |(id, _)| *id)
    }

    fn add(&mut self, id: u64, queue: &Arc<Queue<K, E>>) {
        if let Err(place) = self.place(id) {
            let followers = self.followers.get_or_insert_default();
            if followers.len() < 4 {
                followers.reserve_exact(1);
            }
            followers.insert(place, (id, Arc::clone(queue)));
        }
    }

    /// Follows on only who is meant.
    fn keep(&mut self, stays: impl Fn(u64) -> bool) {
        if let Some(followers) = &mut self.followers {
            followers.retain(|(id, _)| stays(*id));
            if followers.is_empty() {
                self.followers = None;
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if self.place(id).is_ok() {
            self.keep(|other| other != id);
        }
    }
}

impl<K: Clone, E: Clone> Topic<K, E> {
    fn tell(&self, topic: &K, event: &E, after: &mut AfterUnlock<K, E>) {
        for (_, queue) in self.followers() {
            let change = || Delivery::Change { topic: topic.clone(), event: event.clone() };
            let Pushed { waker, fallen } = queue.push(change);
            after.wakers.extend(waker);
            after.fallen.extend(fallen);
        }
    }
}

impl<K: Ord + Clone, E: Clone> Shared<K, E> {
    /// Lock order: the bus, then a queue. Neither is held while a waker or a destructor of the user's runs.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<K, E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a dropped subscription off the bus.
    pub(crate) fn unsubscribe(&self, id: u64, scope: &Scope<K>) {
        let _pattern; // declared before the guard: dropped after it
        let mut state = self.lock();
        match scope {
            Scope::Named(topics) => {
                for topic in topics {
                    if let Some(known) = state.topics.get_mut(topic) {
                        known.remove(id);
                        if known.followers.is_none() && known.current.is_none() {
                            state.topics.remove(topic);
                        }
                    }
                }
            }
            Scope::Matching => {
                for known in state.topics.values_mut() {
                    known.remove(id);
                }
                _pattern = state.patterns.remove(&id);
            }
        }
    }
}

impl<K: Ord + Clone, E: Clone> State<K, E> {
    /// Follows these topics by name. Their values are told in the order of topics, as for patterns.
    fn follow(&mut self, id: u64, queue: &Arc<Queue<K, E>>, mut topics: Vec<K>) -> Scope<K> {
        topics.sort_unstable();
        topics.dedup();
        for topic in &topics {
            self.topics.entry(topic.clone()).or_default().add(id, queue);
        }
        Scope::Named(topics.into())
    }

    /// The current values of the topics that a subscription follows.
    pub(crate) fn current_for(&self, id: u64, scope: &Scope<K>) -> Vec<Delivery<K, E>> {
        let value = |(topic, known): (&K, &Topic<K, E>)| {
            let event = known.current.clone()?;
            Some(Delivery::Current { topic: topic.clone(), event })
        };
        match scope {
            Scope::Named(topics) => {
                let known = topics.iter().filter_map(|topic| self.topics.get_key_value(topic));
                known.filter_map(value).collect()
            }
            Scope::Matching => {
                let followed = self.topics.iter().filter(|(_, known)| known.place(id).is_ok());
                followed.filter_map(value).collect()
            }
        }
    }
}

impl<K: Ord + Clone, E: Clone> Drop for Shared<K, E> {
    /// The last handle is gone: whoever has a gap gets the last values, then every subscription ends.
    fn drop(&mut self) {
        let state = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut named: BTreeMap<u64, (Vec<K>, &Queue<K, E>)> = BTreeMap::new();
        for (topic, known) in &state.topics {
            for (id, queue) in known.followers().iter().filter(|(id, _)| !state.patterns.contains_key(id)) {
                named.entry(*id).or_insert_with(|| (Vec::new(), queue)).0.push(topic.clone());
            }
        }
        let by_name = named.into_iter().map(|(id, (topics, queue))| (id, Scope::Named(topics.into()), queue));
        let by_pattern = state.patterns.iter().map(|(&id, pattern)| (id, Scope::Matching, &*pattern.queue));
        for (id, scope, queue) in by_name.chain(by_pattern) {
            let gap = queue.catch_up(|| state.current_for(id, &scope));
            if let Some(waker) = queue.close(gap) {
                waker.wake();
            }
        }
    }
}

/// What must not happen under the lock, because it may run code of the user's: waking and dropping. Declare
/// it before the guard, so that it is dropped after it.
struct AfterUnlock<K, E> {
    wakers: Vec<Waker>,
    fallen: Vec<Delivery<K, E>>,
    replaced: Option<E>,
    told: Option<E>,
}

impl<K, E> Default for AfterUnlock<K, E> {
    fn default() -> Self {
        Self { wakers: Vec::new(), fallen: Vec::new(), replaced: None, told: None }
    }
}

impl<K, E> Drop for AfterUnlock<K, E> {
    fn drop(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}
