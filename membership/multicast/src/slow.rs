//! Who makes others wait: timed from the first message that it does not take, and reported, so that it is removed from the group
//! and the group does not wait for it.

use alloc::vec::Vec;

use membership_types::{Instant, NodeId, ViewId};

use crate::{
    flush::Awaited,
    machine::{Multicast, Output},
};

/// A member makes us wait.
#[derive(Clone, Copy, Hash)]
pub(crate) struct Lag {
    /// Since when.
    begun: Instant,
    /// When it last took something, or said why not.
    at: Instant,
    /// What it held of ours then.
    held: u64,
}

impl Multicast {
    /// Who makes us wait for too long is reported, again and again while that lasts.
    pub(crate) fn watch_the_slow(&mut self) {
        let (now, after) = (self.now, self.config.behind_after);
        let (mut behind, mut is_long) = (Vec::new(), false);
        let passes_on = self.flush.as_ref().and_then(|flush| self.passes_on(&flush.view.members));
        let is_first_of_many = passes_on.is_none()
            && self.flush.as_ref().is_some_and(|flush| {
                self.is_relayed(&flush.view.members) && flush.view.members.first() == Some(&self.config.me)
            });
        if let Some(flush) = &mut self.flush {
            is_long = now >= flush.since.after(after);
            if is_long {
                flush.since = now;
                // The others leave it to the first of many to name who says nothing: it does so again before long.
                if is_first_of_many {
                    flush.since = now.before(after - after / 5);
                }
                let current = self.current.as_ref();
                let held = current.map_or(0, |c| c.store.holds().held.iter().sum::<u64>() + c.store.known());
                let comes = core::mem::replace(&mut flush.held, held) < held;
                behind = match flush.awaits(self.config.me, current) {
                    Awaited::Word(nodes) => match passes_on {
                        None => nodes,
                        // It knows who says nothing, or is the one.
                        Some(first) if nodes.contains(&first) => Vec::from([first]),
                        Some(first) if now >= flush.begun.after(4 * after) => Vec::from([first]),
                        Some(_) => Vec::new(),
                    },
                    Awaited::Messages(nodes) if !comes => nodes,
                    // They may wait for messages themselves, which are on their way, or name another one.
                    Awaited::Others(nodes) if now >= flush.begun.after(self.config.patience) => nodes,
                    _ => Vec::new(),
                };
            }
        } else if let Some(current) = &mut self.current {
            let full = current.store.unstable() > 0;
            let me = current.view.rank(self.config.me).unwrap_or(0);
            let own = current.store.held(me);
            for (rank, lagging) in current.lagging.iter_mut().enumerate() {
                let held = current.store.known_of(rank).held[me];
                let lags = full && rank != me && held < own;
                match lagging {
                    _ if !lags => *lagging = None,
                    Some(lag) if lag.held == held => {
                        if now >= lag.at.after(after) {
                            lag.at = now;
                            behind.push(current.view.members[rank]);
                        }
                    }
                    _ => *lagging = Some(Lag { begun: now, at: now, held }),
                }
            }
        }
        if is_long {
            self.bring_all_along();
        }
        for node in behind {
            self.mark("a member that stays behind is reported");
            self.push(Output::Behind(node));
        }
    }

    /// A member takes nothing because its state is on its way: that is waited for, for a while.
    pub(crate) fn on_waiting(&mut self, from: NodeId, view: ViewId) {
        let (now, patience) = (self.now, self.config.patience);
        let Some(current) = self.current.as_mut().filter(|c| c.view.id == view) else { return };
        let Some(rank) = current.view.rank(from) else { return };
        if let Some(Some(lag)) = current.lagging.get_mut(rank)
            && now < lag.begun.after(patience)
        {
            lag.at = now;
            self.mark("a member is waited for because its state is on its way");
        }
    }

    /// Is there something under way, and nobody timed for it yet?
    pub(crate) fn is_unwatched(&self) -> bool {
        let current = self.current.as_ref().filter(|_| self.flush.is_none());
        current.is_some_and(|c| c.store.unstable() > 0 && c.lagging.iter().all(Option::is_none))
    }

    pub(crate) fn watch_at(&self) -> Option<Instant> {
        let after = self.config.behind_after;
        if let Some(flush) = &self.flush {
            return Some(flush.since.after(after));
        }
        let current = self.current.as_ref().filter(|c| c.store.unstable() > 0)?;
        let since = current.lagging.iter().flatten().map(|lag| lag.at).min();
        Some(since.unwrap_or(self.now).after(after))
    }
}
