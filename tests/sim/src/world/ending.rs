//! The end of a run: what is mended, what stays broken, and who must get along from then on.

use std::collections::BTreeSet;

use membership_types::trace::{Event, Process as P, Source};

use super::{Action, World};
use crate::{network::Cut, params::Ending, process::Process};

impl World {
    /// Faults end here; what the ending wants broken stays broken, everything else is mended and restarted.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        self.calm_ns = self.now;
        self.ambush = None;
        self.disks_hang_until = 0;
        self.witness.gone_until = 0;
        self.witness.cut.clear();
        self.network.manners.calm();
        let victim = match self.params.ending {
            Ending::AllWell | Ending::CoreLost => None,
            _ => self.target(),
        };
        let places: BTreeSet<usize> = self.places().into_iter().collect();
        for a in &places {
            for b in &places {
                self.heal(*a, *b);
            }
        }
        // Links of places where nothing is any more.
        for a in 0..self.next_place {
            for b in 0..self.next_place {
                self.heal(a, b);
            }
        }
        for p in 0..self.processes.len() {
            self.resume(p);
        }
        for (p, input) in std::mem::take(&mut self.in_the_making) {
            self.push(self.now + 1_000_000, Action::Deliver { p, input });
        }
        for machine in 0..self.params.nodes {
            let victims = victim.is_some_and(|v| self.processes[v].machine == machine);
            if !victims || self.params.ending != Ending::OneDown {
                self.push(self.now + 1_000_000, Action::Start { machine });
            }
        }
        if let Some(v) = victim.filter(|v| !self.processes[*v].is_gone()) {
            self.break_for_good(v);
        }
        if self.params.ending == Ending::CoreLost {
            self.lose_the_core();
        }
    }

    fn break_for_good(&mut self, v: usize) {
        let place = self.processes[v].place;
        let others: Vec<usize> = (0..self.next_place).filter(|o| *o != place).collect();
        let forever = u64::MAX / 4;
        match self.params.ending {
            Ending::OneDown => {
                self.crash(v, "killed");
                self.forget_starts(self.processes[v].machine);
            }
            Ending::OneStopped => self.stop(v),
            Ending::OneDeaf => others.iter().for_each(|o| self.cut(*o, place, Cut::Lose, forever)),
            Ending::OneMute => others.iter().for_each(|o| self.cut(place, *o, Cut::Lose, forever)),
            Ending::OneIsolated => others.iter().for_each(|o| {
                self.cut(*o, place, Cut::Lose, forever);
                self.cut(place, *o, Cut::Lose, forever);
            }),
            Ending::TwoApart => {
                // Somebody else who is where its node's number says.
                let there =
                    |w: &Self, o: &usize| w.process_on(*o).is_some_and(|p| w.processes[p].place == *o);
                let others: Vec<usize> =
                    (0..self.params.nodes).filter(|o| *o != place && there(self, o)).collect();
                let other = self
                    .rng
                    .pick(&others)
                    .copied()
                    .filter(|_| there(self, &place) && place < self.params.nodes);
                let Some(other) = other else { return };
                self.mark("two processes never reach each other again");
                for (a, b) in [(place, other), (other, place)] {
                    self.cut(a, b, Cut::Lose, forever);
                }
                self.apart = Some((place, other));
                return;
            }
            Ending::AllWell | Ending::CoreLost => {}
        }
        self.outcast.insert(place);
    }

    /// Most of the core dies at once and is never restarted.
    fn lose_the_core(&mut self) {
        let coordinators: Vec<usize> =
            self.up().into_iter().filter(|p| self.processes[*p].cluster.is_coordinator()).collect();
        let Some(c) = coordinators.first() else { return };
        let core = self.processes[*c].cluster.core().to_vec();
        let doomed = core.len() / 2 + 1;
        for id in core.into_iter().take(doomed) {
            if let Some(p) = self.by_id.get(&id).copied() {
                let machine = self.processes[p].machine;
                self.crash(p, "killed");
                self.forget_starts(machine);
            }
        }
    }

    /// A machine stays down, whatever was planned for it.
    fn forget_starts(&mut self, machine: usize) {
        let starts = |action: &Action| match action {
            Action::Start { machine: m } | Action::Flap { machine: m, .. } => *m == machine,
            _ => false,
        };
        self.queue.retain(|action| !starts(action));
    }

    /// Says who is up and connected, and that no fault comes any more.
    pub(crate) fn declare_stable(&mut self) {
        // Who was stopped for good may have been killed by an earlier fault: who runs in its place is as well as any other.
        let is_connected =
            |p: &Process| !self.outcast.contains(&p.place) || self.params.ending == Ending::OneStopped;
        let core: Vec<P> =
            self.processes.iter().filter(|p| p.is_up() && is_connected(p)).map(|p| p.id.into()).collect();
        let node = |place: usize| core.iter().find(|p| p.0 == place as u64).copied();
        let apart = self.apart.and_then(|(a, b)| node(a).zip(node(b))).into_iter().collect();
        let witness = self.params.witness.then(|| self.witness.keeper.epoch().to_string());
        self.record(Source::Harness, Event::Gst { core, apart, witness });
    }

    pub(crate) fn finish(&mut self) {
        for p in 0..self.processes.len() {
            if !self.processes[p].is_gone() {
                let id = self.processes[p].id;
                self.record(Source::Process(id.into()), Event::End {});
            }
        }
        self.record(Source::Harness, Event::End {});
    }
}
