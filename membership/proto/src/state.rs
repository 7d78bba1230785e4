//! What the log's committed prefix means: one deterministic state machine, the same at every core member.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    vec::Vec,
};
use core::time::Duration;

use membership_types::{Drift, GroupName, Lineage, LogIndex, NodeId, Token, ViewId};
use serde::{Deserialize, Serialize};

use crate::{
    entry::{Command, Entry, GroupWish},
    view::{ClusterDelta, ClusterView, GroupView, Member, NodeInfo, SharedView, Why},
    witness::Warrant,
};

/// How many removals are remembered.
const GONE_KEPT: usize = 64;

/// What all nodes of a lineage must agree on; fixed at its founding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// The lease L.
    pub lease: Duration,
    /// The bound on clock drift.
    pub drift: Drift,
    /// How many members the core has where there are enough (K).
    pub core_size: u16,
    /// How many founder slots there are (`expect(n)`); 0 where anybody may found.
    pub slots: u16,
    /// Have all founder slots data directories? Then at least half of them set every view id aside before it is given.
    #[serde(default)]
    pub durable: bool,
    /// Is there a witness, which says which of two halves of a core may go on? Else the one with the senior may.
    #[serde(default)]
    pub witness: bool,
    /// The lineages that an operator gave up for this one, the latest first: they end where they meet it, though older.
    #[serde(default)]
    pub supersedes: Vec<Lineage>,
}

/// The cluster as of one index of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    /// The lineage.
    pub lineage: Lineage,
    /// Its terms.
    pub terms: Terms,
    /// The last entry applied.
    pub index: LogIndex,
    /// The last view id given, to the cluster or to any group.
    pub last_view: ViewId,
    /// All nodes, ranked.
    pub view: ClusterView,
    /// The core in force for the next entry, its senior first.
    pub core: Vec<NodeId>,
    /// Where the witness records halves of this core, if it can.
    #[serde(default)]
    pub warrant: Option<Warrant>,
    /// The entry that made `view`.
    pub view_at: LogIndex,
    /// The lineage into which this one dissolved, once it has.
    pub dissolved: Option<Lineage>,
    /// The feature level that all members agreed on. Builds from before there were levels do not tell it.
    #[serde(default)]
    pub level: u16,
    /// The latest removals: who, by which view, why. So that each removed node is told once it asks.
    gone: VecDeque<(NodeId, ViewId, Why)>,
    /// Members that were in an even core, and the last entry that such a core decided.
    #[serde(default)]
    of_even: BTreeMap<NodeId, LogIndex>,
    groups: BTreeMap<GroupName, Group>,
    last_op: BTreeMap<NodeId, u64>,
    groups_of: BTreeMap<NodeId, BTreeSet<GroupName>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Group {
    view: SharedView,
    changed_at: LogIndex,
}

/// What one entry changed, in the form in which nodes are told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The entry.
    pub index: LogIndex,
    /// The new cluster view, if nodes came or went.
    pub cluster: Option<ClusterDelta>,
    /// The new core, if it changed.
    pub core: Option<Vec<NodeId>>,
    /// New group views, each with those who were members just before.
    pub groups: Vec<(SharedView, Vec<NodeId>)>,
    /// Nodes whose wishes were applied (they wait for that, even where nothing changed).
    pub wished: BTreeSet<NodeId>,
}

/// Groups touched while an entry is applied; each gets one view at its end.
#[derive(Default)]
struct Touched {
    /// Members before the entry, by group.
    before: BTreeMap<GroupName, Vec<NodeId>>,
    /// Groups whose leader gave up the first rank at some point within the entry.
    reign_over: BTreeSet<GroupName>,
}

impl State {
    /// The state before the founding entry: the founders are known, and nobody has a view yet. View ids begin above
    /// `floor`.
    pub fn before_founding(
        lineage: Lineage,
        terms: Terms,
        floor: ViewId,
        founders: Vec<NodeInfo>,
        core: Vec<NodeId>,
    ) -> Self {
        Self {
            lineage,
            terms,
            index: LogIndex::ZERO,
            last_view: floor,
            view: ClusterView { id: ViewId::NONE, prev: ViewId::NONE, members: founders },
            core,
            warrant: None,
            view_at: LogIndex::ZERO,
            dissolved: None,
            level: 0,
            gone: VecDeque::new(),
            of_even: BTreeMap::new(),
            groups: BTreeMap::new(),
            last_op: BTreeMap::new(),
            groups_of: BTreeMap::new(),
        }
    }

    /// Is there room for the view ids that this entry may need? If not, the coordinator stops for good.
    pub fn has_ids_for(&self, entry: &Entry) -> bool {
        self.ids_for(entry).is_some()
    }

    /// May this entry make a view, of the cluster or of a group? Else it gives no id.
    pub fn may_make_views(&self, entry: &Entry) -> bool {
        entry.commands.iter().any(|command| match command {
            Command::Raise(_) => !self.groups.is_empty(),
            Command::Dissolve(_) | Command::Level(_) => false,
            Command::Found | Command::Admit(_) | Command::Remove(..) | Command::Group { .. } => true,
        })
    }

    /// No view that this entry makes has an id above this one.
    pub fn ids_for(&self, entry: &Entry) -> Option<ViewId> {
        let raised = entry.commands.iter().filter_map(|c| match c {
            Command::Raise(above) => Some(above.get()),
            _ => None,
        });
        let from = raised.max().unwrap_or(0).max(self.last_view.get());
        let groups = self.groups.len() as u64 + entry.commands.len() as u64;
        from.checked_add(groups + 1).filter(|last| *last < ViewId::BOUND).map(ViewId::new)
    }

    /// Applies the next entry. Every core member that applies the same entries gets the same state.
    ///
    /// # Panics
    /// If view ids run out, which [`State::has_ids_for`] excludes before an entry is proposed.
    pub fn apply(&mut self, entry: &Entry) -> Change {
        self.index = self.index.next();
        let mut touched = Touched::default();
        let mut joined: Vec<NodeInfo> = Vec::new();
        let mut left: Vec<(NodeId, Why)> = Vec::new();
        let mut wished = BTreeSet::new();
        for command in &entry.commands {
            match command {
                Command::Found => joined.append(&mut self.view.members),
                Command::Admit(info) => {
                    if !self.view.contains(info.id) && !joined.iter().any(|n| n.id == info.id) {
                        joined.push(info.clone());
                    }
                }
                Command::Remove(node, why) => {
                    let newcomer = joined.iter().any(|n| n.id == *node);
                    joined.retain(|n| n.id != *node);
                    self.remove_from_groups(*node, &mut touched);
                    self.last_op.remove(node);
                    if self.view.contains(*node) && !newcomer && !left.iter().any(|(id, _)| id == node) {
                        left.push((*node, *why));
                    }
                }
                Command::Group { node, op, wish } => {
                    let known = self.view.contains(*node) && !left.iter().any(|(id, _)| id == node)
                        || joined.iter().any(|n| n.id == *node);
                    if known {
                        wished.insert(*node);
                        let last = self.last_op.entry(*node).or_default();
                        if *op > *last {
                            *last = *op;
                            self.apply_wish(*node, wish, &mut touched);
                        }
                    }
                }
                Command::Raise(above) => {
                    self.last_view = self.last_view.max(*above);
                    for (name, group) in &self.groups {
                        let members = group.view.members.iter().map(|m| m.node).collect();
                        touched.before.entry(name.clone()).or_insert(members);
                        touched.reign_over.insert(name.clone());
                    }
                }
                Command::Dissolve(into) => self.dissolved = Some(*into),
                Command::Level(level) => self.level = self.level.max(*level),
            }
        }
        let cluster = (!joined.is_empty() || !left.is_empty()).then(|| {
            let delta = ClusterDelta { id: self.take_view_id(), prev: self.view.id, joined, left };
            let follows = self.view.apply(&delta);
            assert!(follows, "a fresh id follows every older view");
            self.view_at = self.index;
            self.gone.extend(delta.left.iter().map(|(node, why)| (*node, delta.id, *why)));
            self.gone.drain(..self.gone.len().saturating_sub(GONE_KEPT));
            delta
        });
        if entry.core.is_some() && self.core.len().is_multiple_of(2) {
            self.of_even.extend(self.core.iter().map(|id| (*id, self.index)));
        }
        if cluster.is_some() || entry.core.is_some() {
            self.of_even.retain(|id, _| self.view.contains(*id));
        }
        let groups = self.finish_groups(touched);
        if let Some(core) = &entry.core {
            self.core.clone_from(core);
            self.warrant = entry.warrant(self.index);
        }
        Change { index: self.index, cluster, core: entry.core.clone(), groups, wished }
    }

    /// How many bytes it may take in a message, at most.
    pub fn weight(&self) -> usize {
        // A group's name is there twice, and once for each of its members; nodes have counts of wishes, and were in even cores.
        let of =
            |view: &SharedView| view.weight() + 32 + (2 + view.members.len()) * view.group.as_str().len();
        let nodes = self.view.members.iter().map(|node| node.weight() + 96);
        4096 + self.core.len() * 32 + nodes.sum::<usize>() + self.groups().map(of).sum::<usize>()
    }

    /// The group's present view.
    pub fn group(&self, name: &GroupName) -> Option<&SharedView> {
        self.groups.get(name).map(|g| &g.view)
    }

    /// A view that is kept elsewhere too takes the place of one that is equal.
    pub(crate) fn share(&mut self, view: &SharedView) {
        if let Some(group) = self.groups.get_mut(&view.group).filter(|group| group.view == *view) {
            group.view = view.clone();
        }
    }

    /// All groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &SharedView> {
        self.groups.values().map(|g| &g.view)
    }

    /// The groups in which this node has a member, by name.
    pub fn groups_of(&self, node: NodeId) -> impl Iterator<Item = &SharedView> {
        self.groups_of.get(&node).into_iter().flatten().filter_map(|name| self.group(name))
    }

    /// Did the group change after `index`? True also for a group that does not exist.
    pub fn changed_since(&self, name: &GroupName, index: LogIndex) -> bool {
        self.groups.get(name).is_none_or(|g| g.changed_at > index)
    }

    /// The last entry that exactly half of a core may have decided of which this node may have been in the other half.
    pub fn maybe_unknown_to(&self, node: NodeId) -> LogIndex {
        if self.core.len().is_multiple_of(2) && self.core.contains(&node) {
            self.index
        } else {
            self.of_even.get(&node).copied().unwrap_or(LogIndex::ZERO)
        }
    }

    /// By which view the node was removed, and why, if that is not too long ago.
    pub fn removal_of(&self, node: NodeId) -> Option<(ViewId, Why)> {
        self.gone.iter().rev().find(|(id, _, _)| *id == node).map(|(_, view, why)| (*view, *why))
    }

    /// The number of the node's last applied wish.
    pub fn last_op(&self, node: NodeId) -> u64 {
        self.last_op.get(&node).copied().unwrap_or(0)
    }

    fn take_view_id(&mut self) -> ViewId {
        self.last_view = self.last_view.next().expect("ids were checked before the entry was proposed");
        self.last_view
    }

    fn apply_wish(&mut self, node: NodeId, wish: &GroupWish, touched: &mut Touched) {
        match wish {
            GroupWish::Join { group, endpoint, kind } => {
                let place = self.group(group).and_then(|v| v.members.iter().position(|m| m.node == node));
                match place {
                    None => {
                        let member = Member { node, endpoint: endpoint.clone() };
                        let view = self.edit(group, touched);
                        if view.members.is_empty() {
                            view.kind = *kind;
                        }
                        if view.members.len() < 4 {
                            // Most groups are small, and there may be very many.
                            view.members.reserve_exact(1);
                        }
                        view.members.push(member);
                        // The name that is kept already, and not another copy of it that came with this wish.
                        let name = view.group.clone();
                        self.groups_of.entry(node).or_default().insert(name);
                    }
                    Some(at) if self.groups[group].view.members[at].endpoint != *endpoint => {
                        self.edit(group, touched).members[at].endpoint.clone_from(endpoint);
                    }
                    Some(_) => {}
                }
            }
            GroupWish::Leave { group } => self.leave(node, group, touched),
            GroupWish::StepDown { group } => {
                let member =
                    self.group(group).and_then(|v| v.members.iter().find(|m| m.node == node)).cloned();
                if let Some(member) = member {
                    self.leave(node, group, touched);
                    let view = self.edit(group, touched);
                    view.members.push(member);
                    let name = view.group.clone();
                    self.groups_of.entry(node).or_default().insert(name);
                }
            }
        }
    }

    fn leave(&mut self, node: NodeId, group: &GroupName, touched: &mut Touched) {
        let Some(rank) = self.group(group).and_then(|v| v.rank_of(node)) else { return };
        if rank == membership_types::Rank::LEADER {
            touched.reign_over.insert(group.clone());
        }
        self.edit(group, touched).members.retain(|m| m.node != node);
        if let Some(groups) = self.groups_of.get_mut(&node) {
            groups.remove(group);
            if groups.is_empty() {
                self.groups_of.remove(&node);
            }
        }
    }

    fn remove_from_groups(&mut self, node: NodeId, touched: &mut Touched) {
        for group in self.groups_of.get(&node).cloned().unwrap_or_default() {
            self.leave(node, &group, touched);
        }
    }

    /// The group's view, to be changed; its members so far are noted the first time.
    fn edit(&mut self, name: &GroupName, touched: &mut Touched) -> &mut GroupView {
        let lineage = self.lineage;
        let group = self.groups.entry(name.clone()).or_insert_with(|| Group {
            view: Arc::new(GroupView::empty(name.clone(), lineage, ViewId::NONE)),
            changed_at: LogIndex::ZERO,
        });
        touched
            .before
            .entry(name.clone())
            .or_insert_with(|| group.view.members.iter().map(|m| m.node).collect());
        Arc::make_mut(&mut group.view)
    }

    /// Gives every touched group its new view; a group without members is forgotten after that.
    fn finish_groups(&mut self, touched: Touched) -> Vec<(SharedView, Vec<NodeId>)> {
        let mut changes = Vec::new();
        for (name, before) in touched.before {
            let id = self.take_view_id();
            let index = self.index;
            let Some(group) = self.groups.get_mut(&name) else { continue };
            let view = Arc::make_mut(&mut group.view);
            let new_reign = touched.reign_over.contains(&name) || before.first().copied() != view.leader();
            view.prev = view.id;
            view.id = id;
            if new_reign {
                view.token = Token::new(id);
            }
            group.changed_at = index;
            changes.push((group.view.clone(), before));
            if group.view.members.is_empty() {
                self.groups.remove(&name);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spread::Domains, view::Kind};
    use alloc::{boxed::Box, vec};
    use core::net::SocketAddr;

    fn id(n: u32) -> NodeId {
        NodeId::new(n, u64::from(n))
    }

    fn info(n: u32) -> NodeInfo {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1000 + n as u16));
        NodeInfo {
            id: id(n),
            name: "n".into(),
            addr,
            eligible: true,
            slot: None,
            keeps_floor: false,
            domains: Domains::default(),
            load_weight: None,
        }
    }

    fn group() -> GroupName {
        GroupName::new("g").expect("valid")
    }

    fn founded(n: u32) -> State {
        let terms = Terms {
            lease: Duration::from_secs(1),
            drift: Drift::DEFAULT,
            core_size: 5,
            slots: 0,
            durable: false,
            witness: false,
            supersedes: Vec::new(),
        };
        let founders = (1..=n).map(info).collect();
        let floor = ViewId::new(100);
        let mut state = State::before_founding(Lineage::new(1, 1), terms, floor, founders, vec![id(1)]);
        state.apply(&Entry { commands: vec![Command::Found], ..Entry::default() });
        state
    }

    fn wish(state: &mut State, node: u32, op: u64, wish: GroupWish) -> Change {
        let command = Command::Group { node: id(node), op, wish };
        state.apply(&Entry { commands: vec![command], ..Entry::default() })
    }

    fn join(state: &mut State, node: u32, op: u64) -> Change {
        wish(state, node, op, GroupWish::Join { group: group(), endpoint: None, kind: Kind::Plain })
    }

    #[test]
    fn ranks_are_the_order_of_joining_and_the_token_stays_with_the_leader() {
        let mut state = founded(3);
        let first = join(&mut state, 2, 1).groups[0].0.clone();
        assert_eq!(
            (first.leader(), first.token, first.prev),
            (Some(id(2)), Token::new(first.id), ViewId::NONE)
        );
        let second = join(&mut state, 1, 1).groups[0].0.clone();
        assert_eq!((second.leader(), second.token, second.prev), (Some(id(2)), first.token, first.id));
        assert!(second.id > first.id);
    }

    #[test]
    fn a_wish_counts_once_even_if_it_comes_twice() {
        let mut state = founded(1);
        join(&mut state, 1, 1);
        wish(&mut state, 1, 2, GroupWish::Leave { group: group() });
        let late = join(&mut state, 1, 1);
        assert!(late.groups.is_empty() && state.group(&group()).is_none());
        assert!(late.wished.contains(&id(1)), "the node is told all the same");
    }

    #[test]
    fn stepping_down_moves_to_the_last_rank_and_ends_the_reign_even_alone() {
        let mut state = founded(2);
        join(&mut state, 1, 1);
        let alone = wish(&mut state, 1, 2, GroupWish::StepDown { group: group() }).groups[0].0.clone();
        assert_eq!((alone.leader(), alone.token), (Some(id(1)), Token::new(alone.id)));
        join(&mut state, 2, 1);
        let second = wish(&mut state, 1, 3, GroupWish::StepDown { group: group() }).groups[0].0.clone();
        assert_eq!(second.rank_of(id(1)).map(|r| r.get()), Some(1));
        assert_eq!((second.leader(), second.token), (Some(id(2)), Token::new(second.id)));
    }

    #[test]
    fn a_nodes_death_is_one_cluster_view_and_one_view_of_each_of_its_groups() {
        let mut state = founded(3);
        for node in [3, 1, 2] {
            join(&mut state, node, 1);
        }
        let other = GroupName::new("other").expect("valid");
        wish(&mut state, 3, 2, GroupWish::Join { group: other.clone(), endpoint: None, kind: Kind::Plain });
        let change =
            state.apply(&Entry { commands: vec![Command::Remove(id(3), Why::Dead)], ..Entry::default() });
        assert_eq!(change.cluster.expect("a node left").left, vec![(id(3), Why::Dead)]);
        assert_eq!(change.groups.len(), 2);
        assert_eq!(change.groups[0].0.leader(), Some(id(1)));
        assert!(change.groups[1].0.members.is_empty());
        assert!(state.group(&other).is_none(), "a group without members is forgotten");
        let again =
            wish(&mut state, 1, 2, GroupWish::Join { group: other, endpoint: None, kind: Kind::Plain });
        assert_eq!(again.groups[0].0.prev, ViewId::NONE, "and begins again");
    }

    #[test]
    fn a_raise_gives_every_group_a_new_token_above_the_bound() {
        let mut state = founded(2);
        join(&mut state, 1, 1);
        let above = ViewId::new(5000);
        let change = state.apply(&Entry { commands: vec![Command::Raise(above)], ..Entry::default() });
        let view = &change.groups[0].0;
        assert!(view.id > above && view.token == Token::new(view.id));
    }

    #[test]
    fn ids_that_would_run_out_are_noticed_before() {
        let mut state = founded(1);
        let raise = |to| Entry { commands: vec![Command::Raise(ViewId::new(to))], ..Entry::default() };
        assert!(state.has_ids_for(&raise(ViewId::BOUND - 10)));
        assert!(!state.has_ids_for(&raise(ViewId::BOUND - 1)));
        state.last_view = ViewId::new(ViewId::BOUND - 1);
        assert!(!state.has_ids_for(&Entry::default()));
    }

    #[test]
    fn builds_that_drop_the_weight_of_a_node_have_the_same_digests() {
        let digest = |load_weight| {
            let commands = vec![Command::Admit(NodeInfo { load_weight, ..info(9) })];
            Entry { commands, ..Entry::default() }.digest(LogIndex::new(1))
        };
        assert_eq!(digest(Some(3)), digest(None));
    }

    #[test]
    fn a_node_that_joined_and_died_in_one_batch_was_never_there() {
        let mut state = founded(1);
        let commands = vec![Command::Admit(info(9)), Command::Remove(id(9), Why::Dead)];
        let change = state.apply(&Entry { commands, ..Entry::default() });
        assert_eq!(change.cluster, None);
    }

    /// How many bytes this takes in a message.
    fn written<T: Serialize>(value: &T) -> usize {
        rmp_serde::to_vec_named(value).expect("our own types encode").len()
    }

    /// The largest numbers, and words of this length.
    fn wide(n: u32, words: usize) -> NodeInfo {
        let word: Box<str> = "w".repeat(words).into();
        let text = || Some(word.clone());
        NodeInfo {
            id: NodeId::new(u32::MAX - n, u64::MAX),
            name: word.clone(),
            addr: SocketAddr::from(([0xffff; 8], u16::MAX)),
            eligible: true,
            slot: Some(u16::MAX),
            keeps_floor: true,
            domains: Domains { zone: text(), rack: text(), power: text() },
            load_weight: Some(u32::MAX),
        }
    }

    /// A cluster of so many nodes, each in all of so many groups.
    fn crowded(nodes: u32, groups: u32, words: usize) -> State {
        let mut state = founded(1);
        state.last_view = ViewId::new(1 << 52);
        let admit = (0..nodes).map(|n| Command::Admit(wide(n, words)));
        state.apply(&Entry { commands: admit.collect(), ..Entry::default() });
        for g in 0..groups {
            let group = GroupName::new(&alloc::format!("{g:0>width$}", width = words.max(6))).expect("valid");
            let endpoint = Some("e".repeat(words).into());
            let wish = GroupWish::Join { group, endpoint, kind: Kind::Multicast };
            let command = |n| Command::Group {
                node: wide(n, 0).id,
                op: u64::MAX - 100_000 + u64::from(g),
                wish: wish.clone(),
            };
            let entry = Entry { commands: (0..nodes).map(command).collect(), ..Entry::default() };
            assert!(written(&entry) <= entry.weight());
            state.apply(&entry);
        }
        state
    }

    #[test]
    fn nothing_takes_more_in_a_message_than_its_weight() {
        for words in [0, 1, 20, 31, 32, 128] {
            let entry = Entry {
                commands: vec![
                    Command::Found,
                    Command::Admit(wide(1, words)),
                    Command::Remove(wide(1, 0).id, Why::Replaced),
                    Command::Raise(ViewId::new(1 << 52)),
                    Command::Dissolve(Lineage::new(u64::MAX >> 1, u64::MAX)),
                    Command::Level(u16::MAX),
                ],
                core: Some((0..9).map(|n| wide(n, 0).id).collect()),
                epoch: Some(crate::witness::Epoch::new(u64::MAX)),
            };
            assert!(entry.commands.iter().all(|command| written(command) <= command.weight()));
            assert!(written(&entry) <= entry.weight());
            let state = crowded(7, 5, words);
            assert!(state.groups().all(|view| written(&**view) <= view.weight()));
            assert!(written(&state) <= state.weight(), "{} {}", written(&state), state.weight());
        }
        for (nodes, groups) in [(5, 10_000), (5, 20_000), (100, 1000)] {
            let state = crowded(nodes, groups, 20);
            assert!(written(&state) <= state.weight());
        }
    }
}
