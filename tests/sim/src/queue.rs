//! What happens next: by time, then in the order in which it was planned.

use std::{cmp::Reverse, collections::BinaryHeap};

/// What is planned. Items stay where they are put; only their places are sorted.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// The time and the number of each, as one number, and where it is.
    heap: BinaryHeap<Reverse<(u128, usize)>>,
    items: Vec<Option<T>>,
    free: Vec<usize>,
    planned: u64,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), items: Vec::new(), free: Vec::new(), planned: 0 }
    }

    /// How many were ever planned.
    pub(crate) fn planned(&self) -> u64 {
        self.planned
    }

    pub(crate) fn push(&mut self, at: u64, item: T) {
        self.planned += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.items.push(None);
            self.items.len() - 1
        });
        self.items[place] = Some(item);
        self.heap.push(Reverse((u128::from(at) << 64 | u128::from(self.planned), place)));
    }

    /// The next one that is due by `end`, and when it is.
    pub(crate) fn pop_until(&mut self, end: u64) -> Option<(u64, T)> {
        let time = |key: u128| (key >> 64) as u64;
        let Reverse((key, place)) = *self.heap.peek().filter(|Reverse((key, _))| time(*key) <= end)?;
        self.heap.pop();
        self.free.push(place);
        Some((time(key), self.items[place].take()?))
    }

    /// Forgets all but these. How many it forgot.
    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) -> usize {
        let Self { heap, items, free, .. } = self;
        let before = heap.len();
        heap.retain(|Reverse((_, place))| {
            let keeps = items[*place].as_ref().is_some_and(&keep);
            if !keeps {
                items[*place] = None;
                free.push(*place);
            }
            keeps
        });
        before - heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_and_was_planned_first_is_first() {
        let mut queue = Queue::new();
        for (at, item) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b'), (9, 'e')] {
            queue.push(at, item);
        }
        assert_eq!(queue.pop_until(4), Some((1, 'a')));
        queue.push(5, 'f');
        assert_eq!(queue.retain(|item| *item != 'd'), 1);
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop_until(8)).collect();
        assert_eq!(rest, [(3, 'b'), (5, 'c'), (5, 'f')]);
        assert_eq!((queue.pop_until(9), queue.pop_until(9)), (Some((9, 'e')), None));
        assert_eq!((queue.planned(), queue.items.len()), (6, 5), "places are used again");
    }
}
