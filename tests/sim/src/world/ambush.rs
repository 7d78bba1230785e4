//! Faults that wait for the worst moment: for a process that is in the middle of something, for whoever takes over.

use super::{Action, World};
use crate::faults::seconds;

/// What is done to who is in the phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Strike {
    Kill,
    /// The network is split.
    Split,
    /// What it says from then on is lost; it hears everybody.
    Mute,
}

/// A fault that waits for the worst moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ambush {
    pub(crate) phase: &'static str,
    pub(crate) until: u64,
    pub(crate) strike: Strike,
    /// The fault that this belongs to, where faults are written down.
    pub(crate) fault: Option<usize>,
}

/// Coordinators that are killed as soon as they come into office.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heirs {
    pub(crate) left: u64,
    pub(crate) killed: u64,
    pub(crate) until: u64,
    pub(crate) fault: Option<usize>,
}

impl World {
    /// Strikes a process that is in the phase for which an ambush waits.
    pub(super) fn spring_ambush(&mut self, p: usize) {
        self.kill_heir(p);
        let Some(ambush) = self.ambush else { return };
        if self.calm || self.now > ambush.until {
            self.ambush = None;
        } else if self.processes[p].cluster.phase_name() == ambush.phase {
            self.ambush = None;
            let (who, at) = (self.who(p), self.now);
            self.script.note(ambush.fault, || format!("{who} is at {}", seconds(at)));
            match ambush.strike {
                Strike::Kill => self.processes[p].fuse = Some(self.rng.below(6)),
                // What it says now is on its way by then.
                Strike::Mute => self.push(self.now + 1, Action::Mute { p, fault: ambush.fault }),
                Strike::Split => {
                    // What was just sent may get through, what follows from it may not.
                    let soon = self.rng.below(4_000_000);
                    self.push(self.now + soon, Action::SplitAround { p, fault: ambush.fault });
                }
            }
        }
    }

    /// Kills a coordinator that came into office after one that was killed.
    fn kill_heir(&mut self, p: usize) {
        let Some(heirs) = &mut self.heirs else { return };
        let process = &mut self.processes[p];
        if self.calm || heirs.left == 0 || self.now > heirs.until {
            self.heirs = None;
        } else if process.cluster.is_coordinator() && process.fuse.is_none() {
            process.fuse = Some(self.rng.below(20));
            heirs.left -= 1;
            heirs.killed += 1;
            let (killed, fault, at) = (heirs.killed, heirs.fault, self.now);
            if killed == 2 {
                self.mark("two coordinators die in a row");
            } else if killed == 3 {
                self.mark("three coordinators die in a row");
            }
            let who = self.who(p);
            self.script.note(fault, || format!("{who} is killed at {}", seconds(at)));
        }
    }
}
