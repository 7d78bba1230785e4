//! In a large view what members say about its closing is passed on by the first one.
//!
//! A member tells all others what it holds. In a view of a hundred that is ten thousand frames, on five thousand connections,
//! before anybody has said anything of its own. So where there are many a member tells the first of them, which tells
//! everybody what it was told, many words in a frame: a few frames for each member, and no connections but those with it. What words
//! have in common is written once. A word is the same whoever brings it. It may come before messages that its author sent earlier;
//! those count for the closing up to the cut, whenever they come. If the first member is gone, there is a newer view, with another
//! first one.
//!
//! Older builds neither pass on words nor take those that were: to them, and where one of them is first, everybody says its
//! own. A member learns from the connection who they are, and the first one from all.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use membership_types::{Lineage, NodeId, ViewId};

use crate::{
    flush::MEMBERS,
    frame::{Frame, Said, Sync, size_of_word},
    machine::{Multicast, Output, View},
    plant::Plant,
};

/// Views with more members than that have what is said about their closing passed on.
pub const MANY: usize = 16;
/// About how many bytes of words go in one frame, as they are in memory.
const WORDS: usize = 1 << 20;

/// Of so many views at most, that follow each other while one closes, words are kept.
const VIEWS: usize = 4;

/// What the first member of a large view was told about it.
#[derive(Clone, Hash)]
pub(crate) struct Relay {
    members: Box<[NodeId]>,
    words: BTreeMap<NodeId, Sync>,
    /// Whose words nobody was told yet.
    fresh: BTreeSet<NodeId>,
}

impl Relay {
    /// What these said, so many to a frame that none is too large.
    fn words(&self, view: ViewId, plain: &BTreeSet<NodeId>, whose: impl Fn(NodeId) -> bool) -> Vec<Frame> {
        let direct: Vec<NodeId> = plain.iter().copied().filter(|m| self.members.contains(m)).collect();
        let (mut all, mut bytes) = (Vec::new(), WORDS);
        for (member, sync) in self.words.iter().filter(|(member, _)| whose(**member)) {
            if bytes >= WORDS {
                all.push(Said { view, direct: direct.clone(), words: Vec::new() });
                bytes = 0;
            }
            let Some(said) = all.last_mut() else { continue };
            said.words.push((*member, sync.clone()));
            bytes += size_of_word(sync);
        }
        all.into_iter().map(|said| Frame::Said(Box::new(said))).collect()
    }
}

impl Multicast {
    /// Is what is said about a view with so many members passed on?
    pub(crate) fn is_relayed(&self, members: &[NodeId]) -> bool {
        members.len() > self.config.relay_above
    }

    /// Who passes on what we say about a view, and what others do. Nobody, if these are few, if it is ourselves, or if it is of an
    /// older build.
    pub(crate) fn passes_on(&self, members: &[NodeId]) -> Option<NodeId> {
        let first = members.first().copied().filter(|_| self.is_relayed(members))?;
        (first != self.config.me && !self.plain.contains(&first)).then_some(first)
    }

    /// Membership says a view: if we are the first one, and there are many, others tell us. What is said about the view before goes on
    /// being passed on until we begin to close for this one.
    pub(crate) fn relay(&mut self, view: &View) {
        if self.relays.last_key_value().is_some_and(|(newest, _)| *newest >= view.id) {
            return;
        }
        let Self { plain, relays, .. } = self;
        plain.retain(|m| view.contains(*m) || relays.values().any(|relay| relay.members.contains(m)));
        if !self.is_relayed(&view.members) || view.members.first() != Some(&self.config.me) {
            return;
        }
        let heard = self
            .early
            .iter()
            .filter(|(m, (lineage, s))| *lineage == view.lineage && s.view == view.id && view.contains(**m));
        let words: BTreeMap<_, _> = heard.map(|(m, (_, s))| (*m, s.clone())).collect();
        let fresh = words.keys().copied().collect();
        self.relays.insert(view.id, Relay { members: view.members.clone(), words, fresh });
        if self.relays.len() > VIEWS {
            self.relays.pop_first();
        }
    }

    /// We close for this view: what is said about those before it matters no more.
    pub(crate) fn pass_no_older_on(&mut self, view: ViewId) {
        self.relays = self.relays.split_off(&view);
    }

    /// A member told us something that others are to know.
    pub(crate) fn keep_word(&mut self, from: NodeId, sync: &Sync) {
        let Some(relay) = self.relays.get_mut(&sync.view) else { return };
        let is_new = relay.words.get(&from).is_none_or(|before| before.last < sync.last);
        if relay.members.contains(&from) && is_new {
            relay.words.insert(from, sync.clone());
            relay.fresh.insert(from);
        }
    }

    /// Tells everybody what was not told yet.
    pub(crate) fn pass_words_on(&mut self) {
        let mut all = Vec::new();
        for (view, relay) in &mut self.relays {
            let fresh = core::mem::take(&mut relay.fresh);
            if !fresh.is_empty() {
                let takes = |member: &NodeId| !self.plain.contains(member);
                let members: Box<[NodeId]> = relay.members.iter().copied().filter(takes).collect();
                let said = relay.words(*view, &self.plain, |member| fresh.contains(&member));
                all.extend(said.into_iter().map(|said| Output::SendAll(members.clone(), said)));
            }
        }
        if !all.is_empty() {
            self.mark("what members say is passed on");
        }
        self.out.extend(all);
    }

    /// Who has a new connection may have lost what we passed on.
    pub(crate) fn pass_all_on(&mut self, peer: NodeId) {
        if self.plain.contains(&peer) || self.planted(Plant::ForgetWords) {
            return;
        }
        for (view, relay) in self.relays.iter().filter(|(_, relay)| relay.members.contains(&peer)) {
            let said = relay.words(*view, &self.plain, |member| member != peer);
            self.out.extend(said.into_iter().map(|said| Output::Send(peer, said)));
        }
    }

    /// Tells everybody what we hold.
    pub(crate) fn say(&mut self, members: &[NodeId], own: &Sync) {
        let word = || Frame::Sync(Box::new(own.clone()));
        let Some(first) = self.passes_on(members) else {
            return self.push(Output::SendAll(members.into(), word()));
        };
        let plain = members.iter().filter(|m| self.plain.contains(m) && **m != self.config.me);
        let to: Vec<NodeId> = core::iter::once(first).chain(plain.copied()).collect();
        for member in to {
            self.push(Output::Send(member, word()));
        }
    }

    /// This member's build takes only what others say themselves, and passes nothing on.
    pub(crate) fn on_plain(&mut self, member: NodeId) {
        if member == self.config.me || self.plain.len() >= MEMBERS || !self.plain.insert(member) {
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
            let (direct, others): (Vec<NodeId>, Vec<NodeId>) =
                members.iter().partition(|m| self.plain.contains(m));
            let said = Said { view: own.view, direct, words: Vec::new() };
            self.push(Output::SendAll(others.into(), Frame::Said(Box::new(said))));
        }
        self.push(Output::Send(member, Frame::Sync(Box::new(own))));
    }

    /// The first member of a view passes on what others said.
    pub(crate) fn on_said(&mut self, from: NodeId, said: Said) {
        if !self.config.takes_words() {
            return;
        }
        for member in said.direct {
            self.on_plain(member);
        }
        let by_another = |view: &View| view.id == said.view && view.members.first() != Some(&from);
        if self.newest_view().is_some_and(by_another) {
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
        if !self.config.takes_words() {
            return;
        }
        for member in said.direct {
            self.on_plain(member);
        }
        for (member, sync) in said.words {
            if member != self.config.me {
                self.hear_early(member, lineage, sync);
            }
        }
    }
}
