//! What applications do: they act where they lead, change their minds, and ask who leads.

use std::sync::Arc;

use membership_proto::{GroupWish, Input};
use membership_types::{
    GroupName, Lineage, Token,
    trace::{Event, Group, Process as P, Source},
};

use super::{Action, World, group};
use crate::{
    process::{GROUPS, Incoming},
    rooms::index_of,
};

impl World {
    pub(super) fn run_app(&mut self, p: usize) {
        if self.processes[p].is_gone() {
            return;
        }
        self.act(p);
        if self.processes[p].is_up() {
            self.talk(p);
            if self.is_wild() && self.rng.chance(25) {
                self.change_mind(p);
            }
        }
        let lease = self.params.lease.as_nanos() as u64;
        let next = self.rng.between(lease / 6, lease / 2);
        self.push(self.now + next, Action::App { p });
    }

    /// Does, for every group that it leads, what only the leader may: each time it checks first.
    pub(super) fn act(&mut self, p: usize) {
        let process = &self.processes[p];
        let (id, lineage) = (process.id, process.cluster.lineage());
        if !process.is_up() || process.clock.local(self.now) >= process.app.lease {
            return;
        }
        let Some(lineage) = lineage else { return };
        for group in 0..GROUPS {
            let Some(token) = self.processes[p].app.leads.get(group).copied() else { continue };
            let g = Group::from(&self.names[group]);
            let lin = Some(membership_types::trace::lin(lineage));
            let act = Event::LeadAct {
                p: id.into(),
                g: g.clone(),
                lin: lin.clone(),
                tok: token.into(),
                op: "w".into(),
            };
            self.record(Source::Process(id.into()), act);
            let seen = self.resources.get(group).copied();
            let ok = seen.is_none_or(|(t, l)| token > t || token == t && lineage == l);
            if ok {
                self.resources.insert(group, (token, lineage));
            } else {
                self.mark("a resource refuses a token");
            }
            let r = Arc::clone(&self.resource_names[group]);
            let effect =
                Event::Effect { r: r.clone(), g, lin, tok: token.into(), p: id.into(), op: "w".into(), ok };
            self.record(Source::Resource(r), effect);
        }
    }

    /// The application steps down, leaves a group, or joins it again.
    pub(super) fn change_mind(&mut self, p: usize) {
        if !self.may_be_in_groups(self.processes[p].machine) {
            return;
        }
        let groups: Vec<GroupName> = (0..self.params.groups).map(group).collect();
        let Some(group) = self.rng.pick(&groups).cloned() else { return };
        let leads = self.processes[p].app.leads.get(index_of(&group)).is_some();
        let member = self.processes[p].app.wants.contains(&group);
        let wish = match (member, leads, self.rng.below(3)) {
            (true, true, 0..2) | (true, false, 0) => GroupWish::StepDown { group },
            (true, ..) => {
                self.processes[p].app.wants.remove(&group);
                GroupWish::Leave { group }
            }
            (false, ..) => {
                self.processes[p].app.wants.insert(group.clone());
                return self.join(p, group, None);
            }
        };
        self.step(p, Incoming::Cluster(Input::Wish(wish)));
    }

    /// A client asks a process that acts as leader; it is told the token.
    pub(super) fn ask_who_leads(&mut self) {
        let acting: Vec<(P, Token, Lineage)> = self
            .processes
            .iter()
            .filter(|p| p.is_up() && p.clock.local(self.now) < p.app.lease)
            .filter_map(|p| Some((p.id.into(), *p.app.leads.get(0)?, p.cluster.lineage()?)))
            .collect();
        if let Some((p, token, lineage)) = self.rng.pick(&acting).copied() {
            let c: Arc<str> = "1".into();
            let lin = Some(membership_types::trace::lin(lineage));
            let answer =
                Event::WhoLeads { c: c.clone(), g: Group::from(&self.names[0]), lin, p, tok: token.into() };
            self.record(Source::Client(c), answer);
        }
        let next = self.rng.between(100_000_000, 900_000_000);
        self.push(self.now + next, Action::Ask);
    }
}
