//! Who must leave a group because its other members wait for it.
//!
//! Somebody who takes nothing, or whose connection with another member is broken, holds up the whole group. Each says of whom it
//! waits; of two who blame each other (the connection between them is broken) the junior goes, else who is blamed by two, or
//! twice by one: by then it would have blamed the other, if it had reason to.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use membership_types::{GroupName, Instant, NodeId};

use super::Office;
use crate::{acceptor::Acceptor, ctx::Ctx};

/// How many complaints are remembered; beyond that the oldest go.
const MOST: usize = 4096;

/// Who blamed whom, when last and how often.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(super) struct Complaints(BTreeMap<(GroupName, NodeId, NodeId), (Instant, u32)>);

impl Complaints {
    fn note(&mut self, ctx: &Ctx, key: (GroupName, NodeId, NodeId)) {
        let lasts = (20 * ctx.lease()).max(Duration::from_secs(15));
        self.0.retain(|_, (at, _)| ctx.now - *at < lasts);
        if self.0.len() >= MOST {
            let oldest = self.0.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            oldest.map(|key| self.0.remove(&key));
        }
        let (at, times) = self.0.entry(key).or_insert((ctx.now, 0));
        *at = ctx.now;
        *times += 1;
    }
}

impl Office {
    /// `from` waits for `node`: who must go, if that is clear?
    pub(crate) fn judge_behind(
        &mut self,
        ctx: &Ctx,
        acceptor: &Acceptor,
        from: NodeId,
        group: &GroupName,
        node: NodeId,
    ) -> Option<NodeId> {
        let view = acceptor.state.group(group)?;
        let (mine, its) = (view.rank_of(from)?, view.rank_of(node)?);
        if from == node {
            return None;
        }
        self.complaints.note(ctx, (group.clone(), from, node));
        let all = &self.complaints.0;
        let mutual = all.contains_key(&(group.clone(), node, from));
        let of_node: Vec<u32> = all
            .iter()
            .filter(|((g, _, n), _)| g == group && *n == node)
            .map(|(_, (_, times))| *times)
            .collect();
        let goes = match mutual {
            true if mine > its => from,
            true => node,
            false if of_node.len() > 1 || of_node.iter().sum::<u32>() > 1 => node,
            false => return None,
        };
        self.complaints.0.retain(|(g, by, n), _| g != group || (*by != goes && *n != goes));
        Some(goes)
    }
}
