//! Faults of links: cut, slow, lossy or garbled, one by one and in patterns, and mended.

use membership_types::trace::{Event, LinkState, Source};

use super::{list, seconds};
use crate::{
    network::{Cut, Network},
    world::{Action, World},
};

impl World {
    /// One direction of a process's links fails for as long as it then works, several times.
    pub(super) fn flip_flop(&mut self, lease: u64) -> bool {
        let Some(p) = self.target() else { return false };
        let place = self.processes[p].place;
        let others: Vec<usize> = self.places().into_iter().filter(|o| *o != place).collect();
        let hit = if self.rng.chance(600) {
            others
        } else {
            self.rng.pick(&others).copied().into_iter().collect::<Vec<_>>()
        };
        if hit.is_empty() {
            return false;
        }
        let phase = *self.rng.pick(&[lease / 2, lease, 3 * lease / 2, 2 * lease]).expect("not empty");
        let (deaf, rounds, how) = (self.rng.chance(500), self.rng.between(3, 6), self.some_cut());
        self.note_process(p, || {
            let heard = if deaf { "does not hear" } else { "is not heard by" };
            format!("{heard} places {} every other {}, {rounds} times", list(&hit), seconds(phase))
        });
        self.mark("a link fails in one direction again and again");
        for round in 0..rounds {
            for other in &hit {
                let (from, to) = if deaf { (*other, place) } else { (place, *other) };
                self.push(self.now + 2 * round * phase, Action::Cut { from, to, how, length: phase });
            }
        }
        true
    }

    /// Most links are cut: what is left is a ring, or a star.
    pub(super) fn reshape(&mut self, lease: u64) -> bool {
        let mut places = self.places();
        for at in (1..places.len()).rev() {
            places.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
        let n = places.len();
        let ring = n > 3 && self.rng.chance(500);
        if n < 3 {
            return false;
        }
        let (length, how) = (self.some_length(lease), self.some_cut());
        self.note(|| {
            let shape = if ring { "ring" } else { "star around the first of" };
            format!(
                "{shape} places {} for {}, what else is said {}",
                list(&places),
                seconds(length),
                how.name()
            )
        });
        self.mark(if ring { "links form a ring" } else { "links form a star" });
        for (i, a) in places.iter().enumerate() {
            for (j, b) in places.iter().enumerate().skip(i + 1) {
                let linked = if ring { j == i + 1 || i == 0 && j == n - 1 } else { i == 0 };
                if !linked {
                    self.cut_both(*a, *b, how, length);
                }
            }
        }
        true
    }

    /// Splits the network in two for a while.
    pub(super) fn split(&mut self) {
        let places = self.places();
        let side: Vec<bool> = places.iter().map(|_| self.rng.chance(500)).collect();
        self.split_somehow(&places, &side);
    }

    /// Splits the network: the process and those outside its core on one side, the others of the core on the other; or
    /// anyhow.
    pub(crate) fn split_around(&mut self, p: usize) {
        if self.rng.chance(400) {
            return self.split();
        }
        let core = self.processes[p].cluster.core().to_vec();
        let living: Vec<usize> =
            (0..self.processes.len()).filter(|q| !self.processes[*q].is_gone()).collect();
        let places: Vec<usize> = living.iter().map(|q| self.processes[*q].place).collect();
        let side: Vec<bool> =
            living.iter().map(|q| *q != p && core.contains(&self.processes[*q].id)).collect();
        self.split_somehow(&places, &side);
    }

    fn split_somehow(&mut self, places: &[usize], side: &[bool]) {
        let lease = self.params.lease.as_nanos() as u64;
        let length = self.some_length(lease);
        let how = self.some_cut();
        self.split_by(places, side, length, how);
    }

    pub(crate) fn split_by(&mut self, places: &[usize], side: &[bool], length: u64, how: Cut) {
        self.note(|| {
            let of = |wanted: bool| {
                let side = places.iter().zip(side).filter(|(_, side)| **side == wanted);
                list(&side.map(|(place, _)| *place).collect::<Vec<_>>())
            };
            format!(
                "places {} | {} for {}, what is said {}",
                of(false),
                of(true),
                seconds(length),
                how.name()
            )
        });
        for (i, a) in places.iter().enumerate() {
            for (j, b) in places.iter().enumerate() {
                if side[i] != side[j] {
                    self.cut(*a, *b, how, length);
                }
            }
        }
    }

    pub(super) fn some_cut(&mut self) -> Cut {
        if self.rng.chance(600) { Cut::Lose } else { Cut::Hold }
    }

    pub(crate) fn cut_both(&mut self, a: usize, b: usize, how: Cut, length: u64) {
        self.cut(a, b, how, length);
        self.cut(b, a, how, length);
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, how: Cut, length: u64) {
        self.disturb(from, to, length, LinkState::Cut, |network| network.cut(from, to, how));
    }

    /// The link loses four messages of five.
    pub(super) fn lose_most(&mut self, from: usize, to: usize, length: u64) {
        self.disturb(from, to, length, LinkState::Loss, |network| network.lose_most(from, to));
    }

    /// The link changes some of what is said.
    pub(super) fn garble(&mut self, from: usize, to: usize, length: u64) {
        self.disturb(from, to, length, LinkState::Corrupt, |network| network.garble(from, to));
    }

    pub(super) fn slow(&mut self, from: usize, to: usize, by: u64, length: u64) {
        self.disturb(from, to, length, LinkState::Delay, |network| network.slow_down(from, to, by));
    }

    /// One fault of a link at a time.
    fn disturb(
        &mut self,
        from: usize,
        to: usize,
        length: u64,
        state: LinkState,
        how: impl FnOnce(&mut Network),
    ) {
        if self.network.is_faulty(from, to) {
            return;
        }
        how(&mut self.network);
        self.note_link(from, to, state);
        self.push(self.now + length, Action::Heal { from, to });
    }

    /// Mends a link; what it held arrives.
    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        if !self.network.is_faulty(from, to) {
            return;
        }
        self.network.heal(from, to);
        self.note_link(from, to, LinkState::Ok);
        self.release_held(from, to);
    }

    fn note_link(&mut self, from: usize, to: usize, state: LinkState) {
        let link = Event::Link { a: from as u64, b: to as u64, state, par: None };
        self.record(Source::Harness, link);
    }
}
