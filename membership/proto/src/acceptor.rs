//! A core member's memory: what it promised, what it accepted, what it knows to be committed, and to whom it
//! granted authority until when.
//!
//! The log is decided one entry at a time: an entry is proposed only once all before it are committed, so a member
//! holds a committed prefix (as a [`State`]) and at most one undecided entry after it. Nodes about to join the core
//! keep the same memory; they are bound by it, and counted only once they are in the core.
//!
//! Source: the acceptor of Lamport, "Paxos Made Simple", 2001, section 2.2, once per log index; the grant is the
//! leader lease of Gray and Cheriton, SOSP 1989.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::time::Duration;

use membership_types::{
    Ballot, Instant, LogIndex, NodeId,
    trace::{Event, lin},
};

use crate::{
    ctx::Ctx,
    entry::Entry,
    msg::Tail,
    plant::Plant,
    quorum::Deaths,
    state::{Change, State},
    view::ClusterDelta,
};

/// How many committed commands are kept for those who are behind, and how many bytes of them: what they get is one message.
/// Beyond that they get the whole state.
const RECENT_COMMANDS: usize = 2048;
const RECENT_BYTES: usize = 2 << 20;

/// A committed entry, its index, and the change of the cluster view that it made.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Logged {
    pub(crate) entry: Arc<Entry>,
    pub(crate) index: LogIndex,
    pub(crate) cluster: Option<Box<ClusterDelta>>,
}

/// Authority that this member granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Given {
    pub(crate) to: Option<NodeId>,
    /// As this member measures it; never earlier than the holder believes.
    pub(crate) until: Instant,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Acceptor {
    pub(crate) promised: Ballot,
    pub(crate) state: State,
    /// The entry accepted after the committed prefix, and under which ballot it was accepted last.
    pub(crate) accepted: Option<(Ballot, Arc<Entry>)>,
    pub(crate) given: Given,
    pub(crate) recent: VecDeque<Logged>,
    recent_commands: usize,
    recent_bytes: usize,
}

/// What became of an entry offered to an acceptor.
#[derive(Debug, PartialEq)]
pub(crate) enum Offer {
    /// It is stored under this ballot (or was committed before).
    Accepted,
    /// A higher ballot was promised.
    Refused(Ballot),
    /// Entries before it are missing here.
    Behind,
}

impl Acceptor {
    pub(crate) fn new(ctx: &mut Ctx, promised: Ballot, state: State) -> Self {
        let given = Given { to: None, until: Instant::ZERO };
        let this = Self {
            promised,
            state,
            accepted: None,
            given,
            recent: VecDeque::new(),
            recent_commands: 0,
            recent_bytes: 0,
        };
        this.trace_core(ctx);
        ctx.set_aside(this.state.lineage, promised, this.state.last_view);
        this
    }

    /// May this member promise to `candidate` now, or does its grant to another bind it? If so, how long still. A holder
    /// that is out of the view has ceased to act before that was agreed.
    pub(crate) fn bound(&self, ctx: &Ctx, candidate: NodeId, deaths: &Deaths) -> Option<Duration> {
        let holder = self.given.to?;
        let free = holder == candidate
            || !self.state.view.contains(holder)
            || ctx.now >= self.given.until
            || deaths.contains(holder)
            || ctx.planted(Plant::PromiseEarly);
        (!free).then(|| self.given.until - ctx.now)
    }

    /// How long authority that this member granted to anybody may last still, holders that are dead or out
    /// included (what they passed on may outlive them).
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.given.until - now
    }

    pub(crate) fn promise(&mut self, ctx: &mut Ctx, ballot: Ballot) {
        debug_assert!(ballot >= self.promised, "promises only grow");
        if ballot > self.promised {
            self.promised = ballot;
            let lineage = self.state.lineage;
            ctx.trace(|p| Event::Promise { p, lin: lin(lineage), ballot: ballot.into() });
        }
    }

    /// Records a grant of authority for one lease from now.
    pub(crate) fn grant(&mut self, ctx: &mut Ctx, to: NodeId) {
        let until = self.given.until.max(ctx.now.after(ctx.granter_lease()));
        self.given = Given { to: Some(to), until };
        ctx.trace(|p| Event::Grant { p, to: to.into(), until: until.as_nanos() });
    }

    /// Stores an entry proposed at `index`. All before `index` is committed, says the proposer.
    pub(crate) fn offer(
        &mut self,
        ctx: &mut Ctx,
        ballot: Ballot,
        index: LogIndex,
        entry: Arc<Entry>,
    ) -> Offer {
        if ballot < self.promised && !ctx.planted(Plant::AcceptBelow) {
            return Offer::Refused(self.promised);
        }
        if index <= self.state.index {
            return Offer::Accepted;
        }
        if index == self.state.index.next().next() {
            // Only the entry of this very ballot is known to be the one that was committed.
            self.commit_accepted(ctx, ballot);
        }
        if index != self.state.index.next() {
            return Offer::Behind;
        }
        assert!(
            entry.commands.iter().all(|command| command.level() <= ctx.config.level),
            "nothing is proposed that a keeper of the log does not understand"
        );
        self.promise(ctx, ballot.max(self.promised));
        let news = self.accepted.as_ref().is_none_or(|(b, _)| *b != ballot);
        if news {
            let lineage = self.state.lineage;
            ctx.trace(|p| Event::Accept {
                p,
                lin: lin(lineage),
                idx: index.get(),
                ballot: ballot.into(),
                digest: alloc::format!("{:032x}", entry.digest(index)).into(),
                core: entry.core.as_ref().map(|core| core.iter().map(|id| (*id).into()).collect()),
                epoch: entry.epoch.map(|epoch| alloc::format!("{epoch}")),
            });
        }
        self.accepted = Some((ballot, entry));
        Offer::Accepted
    }

    /// Commits the undecided entry if it was accepted under exactly this ballot.
    pub(crate) fn commit_accepted(&mut self, ctx: &mut Ctx, ballot: Ballot) -> bool {
        match self.accepted.take() {
            Some((b, entry)) if b == ballot || ctx.planted(Plant::CommitAny) => {
                self.commit(ctx, entry);
                true
            }
            other => {
                self.accepted = other;
                false
            }
        }
    }

    /// Applies the next entry, known to be committed.
    pub(crate) fn commit(&mut self, ctx: &mut Ctx, entry: Arc<Entry>) -> Change {
        let change = self.state.apply(&entry);
        self.accepted = None;
        ctx.set_aside(self.state.lineage, self.promised, self.state.last_view);
        self.recent_commands += entry.commands.len() + 1;
        self.recent_bytes += entry.weight();
        // Not the views of groups: they would be kept long after newer ones.
        let cluster = change.cluster.clone().map(Box::new);
        self.recent.push_back(Logged { entry, index: change.index, cluster });
        while (self.recent_commands > RECENT_COMMANDS || self.recent_bytes > RECENT_BYTES)
            && self.recent.len() > 1
        {
            let old = self.recent.pop_front().expect("it has more than one");
            self.recent_commands -= old.entry.commands.len() + 1;
            self.recent_bytes -= old.entry.weight();
        }
        if change.core.is_some() {
            self.trace_core(ctx);
        }
        change
    }

    /// The committed entries after `after`, if they are kept.
    pub(crate) fn entries_after(&self, after: LogIndex) -> Option<impl Iterator<Item = &Logged>> {
        let missing = self.state.index.get().checked_sub(after.get())?;
        let missing = usize::try_from(missing).ok()?;
        let skip = self.recent.len().checked_sub(missing)?;
        Some(self.recent.iter().skip(skip))
    }

    /// The entries that one needs who has committed `after`; it needs the whole state where they are not kept.
    pub(crate) fn log_after(&self, after: LogIndex) -> Option<impl Iterator<Item = &Logged>> {
        // Before the first entry there is no state to apply entries to.
        if after == LogIndex::ZERO { None } else { self.entries_after(after) }
    }

    /// What one who has committed `after` lacks.
    pub(crate) fn tail_after(&self, after: LogIndex) -> Option<Tail> {
        if after >= self.state.index {
            return None;
        }
        Some(match self.log_after(after) {
            Some(entries) => Tail::Entries { after, entries: entries.map(|l| l.entry.clone()).collect() },
            None => Tail::State(Box::new(self.state.clone())),
        })
    }

    /// Takes over what is committed elsewhere. False if it does not reach back to what is known here.
    pub(crate) fn catch_up(&mut self, ctx: &mut Ctx, tail: Tail) -> bool {
        match tail {
            Tail::Entries { after, entries } => {
                if after > self.state.index {
                    return false;
                }
                let known = (self.state.index.get() - after.get()) as usize;
                let missing: Vec<_> = entries.into_iter().skip(known).collect();
                for entry in missing {
                    self.commit(ctx, entry);
                }
                true
            }
            Tail::State(state) => {
                if state.index > self.state.index {
                    self.state = *state;
                    self.accepted = None;
                    self.recent.clear();
                    self.recent_commands = 0;
                    self.recent_bytes = 0;
                    ctx.set_aside(self.state.lineage, self.promised, self.state.last_view);
                    self.trace_core(ctx);
                }
                true
            }
        }
    }

    fn trace_core(&self, ctx: &mut Ctx) {
        let state = &self.state;
        ctx.trace(|_| Event::Core {
            lin: lin(state.lineage),
            idx: state.index.next().get(),
            members: state.core.iter().map(|id| (*id).into()).collect(),
            warrant: state.warrant.map(|w| (w.core.get(), alloc::format!("{}", w.epoch))),
        });
    }
}
