//! In a large view what members say about its closing is passed on by the first one.
//!
//! A member tells all others what it holds. In a view of a hundred that is ten thousand frames, on five thousand connections,
//! before anybody has said anything of its own. So where there are many a member tells the first of them, which tells
//! everybody what it was told, many words in a frame: two frames for each member, and no connections but those with it. A word is the
//! same whoever brings it. It may come before messages that its author sent earlier; those count for the closing up to the cut, whenever
//! they come. If the first member is gone, there is a newer view, with another first one.
//!
//! Older builds neither pass on words nor take those that were: to them, and where one of them is first, everybody says its
//! own. A member learns from the connection who they are, and the first one from all.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use membership_types::{Lineage, NodeId};

use crate::{
    frame::{Frame, Said, Sync},
    machine::{Multicast, Output, View},
    plant::Plant,
};

/// Views with more members than that have what is said about their closing passed on.
pub const MANY: usize = 16;
/// About how many bytes of words go in one frame.
const WORDS: usize = 64 << 10;
/// Views have no more members.
const MEMBERS: usize = 1 << 16;

/// What the first member of a large view was told about it.
#[derive(Clone, Hash)]
pub(crate) struct Relay {
    view: View,
    words: BTreeMap<NodeId, Sync>,
    /// Whose words nobody was told yet.
    fresh: BTreeSet<NodeId>,
}

impl Multicast {
    /// Is what is said about a view with so many members passed on?
    pub(crate) fn is_relayed(&self, members: &[NodeId]) -> bool {
        members.len() > self.config.relay_above
    }

    /// Membership says a view: if we are the first one, and there are many, others tell us.
    pub(crate) fn relay(&mut self, view: &View) {
        if self.relay.as_ref().is_some_and(|relay| relay.view.id >= view.id) {
            return;
        }
        let is_ours = self.is_relayed(&view.members) && view.members.first() == Some(&self.config.me);
        self.relay = is_ours.then(|| {
            let heard = self.early.iter().filter(|(m, (lineage, s))| {
                *lineage == view.lineage && s.view == view.id && view.contains(**m)
            });
            let words: BTreeMap<_, _> = heard.map(|(m, (_, s))| (*m, s.clone())).collect();
            Relay { view: view.clone(), fresh: words.keys().copied().collect(), words }
        });
    }

    /// A member told us something that others are to know.
    pub(crate) fn keep_word(&mut self, from: NodeId, sync: &Sync) {
        let Some(relay) = &mut self.relay else { return };
        let is_new = relay.words.get(&from).is_none_or(|before| before.last < sync.last);
        if relay.view.id == sync.view && relay.view.contains(from) && is_new {
            relay.words.insert(from, sync.clone());
            relay.fresh.insert(from);
        }
    }

    /// Tells everybody what was not told yet.
    pub(crate) fn pass_words_on(&mut self) {
        let Some(relay) = &mut self.relay else { return };
        let fresh = core::mem::take(&mut relay.fresh);
        if fresh.is_empty() {
            return;
        }
        let members = relay.view.members.clone();
        for said in self.words(|member| fresh.contains(&member)) {
            self.push(Output::SendAll(members.clone(), Frame::Said(said)));
        }
        self.mark("what members say is passed on");
    }

    /// Who has a new connection may have lost what we passed on.
    pub(crate) fn pass_all_on(&mut self, peer: NodeId) {
        if self.planted(Plant::ForgetWords) {
            return;
        }
        if self.relay.as_ref().is_some_and(|relay| relay.view.contains(peer)) {
            for said in self.words(|member| member != peer) {
                self.push(Output::Send(peer, Frame::Said(said)));
            }
        }
    }

    /// What these said, so many to a frame that none is too large.
    #[allow(clippy::vec_box, reason = "as frames hold them")]
    fn words(&self, whose: impl Fn(NodeId) -> bool) -> Vec<Box<Said>> {
        let Some(relay) = &self.relay else { return Vec::new() };
        let direct: Vec<NodeId> = self.plain.iter().copied().filter(|m| relay.view.contains(*m)).collect();
        let empty = || Box::new(Said { view: relay.view.id, direct: direct.clone(), words: Vec::new() });
        let (mut all, mut bytes) = (Vec::new(), WORDS);
        for (member, sync) in relay.words.iter().filter(|(member, _)| whose(**member)) {
            if bytes >= WORDS {
                all.push(empty());
                bytes = 0;
            }
            let Some(said) = all.last_mut() else { continue };
            said.words.push((*member, sync.clone()));
            bytes += 64 + 8 * sync.held.len() + 12 * sync.trans.len();
        }
        all
    }

    /// Tells everybody what we hold.
    pub(crate) fn say(&mut self, members: &[NodeId], own: &Sync) {
        let word = || Frame::Sync(Box::new(own.clone()));
        let first = members.first().copied().unwrap_or(self.config.me);
        if !self.is_relayed(members) || first == self.config.me || self.plain.contains(&first) {
            return self.push(Output::SendAll(members.into(), word()));
        }
        let plain = members.iter().filter(|m| self.plain.contains(m) && **m != self.config.me);
        let to: Vec<NodeId> = core::iter::once(first).chain(plain.copied()).collect();
        for member in to {
            self.push(Output::Send(member, word()));
        }
    }

    /// This member's build takes only what others say themselves, and passes nothing on.
    pub(crate) fn on_plain(&mut self, member: NodeId) {
        if !self.plain.insert(member) || member == self.config.me {
            return;
        }
        let flush = self.flush.as_ref().map(|f| (f.view.members.clone(), f.own.clone()));
        let closed = self.closed.as_ref().zip(self.current.as_ref());
        let closed = closed.map(|(closed, current)| (current.view.members.clone(), closed.own.clone()));
        let Some((members, own)) = flush.or(closed) else { return };
        if !self.is_relayed(&members) || !members.contains(&member) {
            return;
        }
        self.mark("a member of an older build is told by everybody");
        if members.first() == Some(&member) {
            self.push(Output::SendAll(members, Frame::Sync(Box::new(own))));
            return;
        }
        if members.first() == Some(&self.config.me) {
            // The others learn from us who that is.
            let direct = self.plain.iter().copied().filter(|m| members.contains(m)).collect();
            let said = Said { view: own.view, direct, words: Vec::new() };
            self.push(Output::SendAll(members, Frame::Said(Box::new(said))));
        }
        self.push(Output::Send(member, Frame::Sync(Box::new(own))));
    }

    /// The first member of a view passes on what others said.
    pub(crate) fn on_said(&mut self, from: NodeId, said: Said) {
        if self.config.relay_above == usize::MAX {
            return;
        }
        for member in said.direct {
            self.on_plain(member);
        }
        let first = |view: &View| view.id == said.view && view.members.first() != Some(&from);
        if self.newest_view().is_some_and(first) {
            return;
        }
        for (member, sync) in said.words {
            if member != self.config.me {
                self.hear(member, sync, false);
            }
        }
        self.try_close();
    }

    /// The same before we have a view.
    pub(crate) fn hear_all_early(&mut self, lineage: Lineage, said: Said) {
        if self.config.relay_above == usize::MAX {
            return;
        }
        for (member, sync) in said.words {
            if self.early.len() < MEMBERS && member != self.config.me {
                self.hear_early(member, lineage, sync);
            }
        }
    }
}
