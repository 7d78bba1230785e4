//! What workers route by: one immutable table per service, replaced as a whole when a view changes.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use membership_sync::{Reader, Snapshot};
use membership_types::{Rank, Weight};
use router_proto::{
    Epoch, L2p, PhysicalId, Pmap, Racs, RacsId,
    l2p::{Logical, Physicals},
};

use crate::{
    checks::Target,
    config::{Config, Service, Source},
};

/// The clones of a group as one of its views lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupClones {
    /// The view's id. Older views than the last one fed are ignored.
    pub epoch: u64,
    /// Position in `clones` of the member that acts as leader; `None` while nobody may.
    pub leader: Option<usize>,
    /// The members that answer requests, in rank order.
    pub clones: Vec<CloneAt>,
}

/// One clone: its name, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneAt {
    /// As its group knows it.
    pub name: String,
    /// The address that requests are sent to.
    pub addr: SocketAddr,
    /// How much of the load it takes beside the others.
    pub weight: Weight,
    /// Where it is, if that is known.
    pub zone: Option<String>,
}

impl CloneAt {
    /// One of weight 1 in no zone.
    pub fn new(name: &str, addr: SocketAddr) -> Self {
        Self { name: name.into(), addr, weight: Weight::default(), zone: None }
    }
}

/// Why a group's view was not taken over. The tables are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// No RACS of the configuration follows this group.
    #[error("no RACS follows this group")]
    UnknownGroup,
    /// The leader is none of the clones.
    #[error("the leader is none of the {0} clones")]
    Leader(usize),
    /// A newer view was taken over before; this one is history.
    #[error("view {0} was taken over before, which is newer")]
    Stale(u64),
}

/// All that a request needs: the partition of its key, the RACS that holds it, and its clones' addresses.
#[derive(Debug)]
pub(crate) struct Table {
    pub pmap: Arc<Pmap>,
    pub l2p: L2p,
    racs: Vec<Racs>,
}

impl Table {
    pub fn racs(&self, id: RacsId) -> &Racs {
        &self.racs[id.get() as usize]
    }

    /// Whether any clone of any RACS is there.
    pub fn has_server(&self, id: PhysicalId) -> bool {
        self.l2p.iter().any(|logical| logical.physical == id)
    }

    /// Whether another server than this one leads. While nobody does, nobody else can have been told anything.
    pub fn is_led_by_another(&self, id: RacsId, server: PhysicalId) -> bool {
        self.racs(id).leader().is_some_and(|leader| self.l2p.get(leader).physical != server)
    }
}

/// Builds tables and publishes them. One per router.
pub(crate) struct Publisher {
    physicals: Physicals,
    services: Vec<Published>,
    /// Configurations that were replaced, as long as requests are under way by them: they hear of views too.
    retired: Vec<Published>,
    /// The newest view of each group that is followed.
    views: BTreeMap<Box<str>, GroupClones>,
}

/// One configuration of one service.
pub(crate) struct Published {
    pub service: Arc<Service>,
    /// What each RACS consists of, as of its newest view.
    racs: Vec<GroupClones>,
    snapshot: Snapshot<Table>,
    /// Shared with every worker that still routes by it.
    pub held: Arc<()>,
}

impl Published {
    /// A reader of its tables, for one worker.
    pub fn reader(&self) -> Reader<Table> {
        self.snapshot.reader()
    }

    /// What each RACS consists of, in the order of the configuration.
    pub fn clones(&self) -> &[GroupClones] {
        &self.racs
    }

    fn follows(&self, group: &str) -> bool {
        self.service.racs.iter().any(|racs| matches!(&racs.source, Source::Group(name) if **name == *group))
    }

    /// Takes over a group's view in every RACS that follows it. Gives the id of a newer one, if there was one.
    fn update(&mut self, group: &str, clones: &GroupClones, physicals: &mut Physicals) -> Option<u64> {
        let (mut changed, mut newer) = (false, None);
        for (racs, current) in self.service.racs.iter().zip(&mut self.racs) {
            if !matches!(&racs.source, Source::Group(name) if **name == *group) {
                continue;
            }
            if clones.epoch < current.epoch {
                newer = Some(current.epoch);
            } else if clones != current {
                *current = clones.clone();
                changed = true;
            }
        }
        if changed {
            self.snapshot.publish(Arc::new(build(&self.service, &self.racs, physicals)));
        }
        newer
    }
}

impl Publisher {
    /// Starts with what the configuration says: static RACS have their servers, groups nobody yet.
    pub fn new(config: &Config) -> Self {
        let (services, retired, views) = Default::default();
        let mut publisher = Self { physicals: Physicals::default(), services, retired, views };
        publisher.take_over(config);
        publisher
    }

    /// The services, in the order of the configuration.
    pub fn services(&self) -> &[Published] {
        &self.services
    }

    /// Goes over to another configuration. Services that it does not change keep their tables, groups that it
    /// goes on following their views.
    pub fn take_over(&mut self, config: &Config) {
        let mut old = std::mem::take(&mut self.services);
        for service in &config.services {
            let same = old.iter().position(|published| published.service == *service);
            let published = same.map(|at| old.swap_remove(at)).unwrap_or_else(|| {
                let racs = service.racs.iter().map(|racs| initial(&racs.source, &self.views));
                let racs: Vec<GroupClones> = racs.collect();
                let table = build(service, &racs, &mut self.physicals);
                let (service, held) = (Arc::clone(service), Arc::default());
                Published { service, racs, snapshot: Snapshot::new(Arc::new(table)), held }
            });
            self.services.push(published);
        }
        self.retired.extend(old);
        self.forget();
        let services = &self.services;
        self.views.retain(|group, _| services.iter().any(|published| published.follows(group)));
    }

    /// Forgets what no worker holds any more.
    fn forget(&mut self) {
        self.retired.retain(|published| Arc::strong_count(&published.held) > 1);
    }

    /// The servers that are to be checked, as of the newest tables: each once for each service.
    pub fn targets(&self) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        for Published { service, snapshot, .. } in &self.services {
            let Some(checks) = &service.checks else { continue };
            for logical in snapshot.reader().load().l2p.iter() {
                let target = Target {
                    service: service.name.clone(),
                    server: logical.physical,
                    addr: logical.addr,
                    checks: Arc::clone(checks),
                };
                if !targets.contains(&target) {
                    targets.push(target);
                }
            }
        }
        targets
    }

    /// Takes over a group's view in every RACS that follows the group.
    pub fn update_group(&mut self, group: &str, clones: &GroupClones) -> Result<(), UpdateError> {
        if clones.leader.is_some_and(|leader| leader >= clones.clones.len()) {
            return Err(UpdateError::Leader(clones.clones.len()));
        }
        self.forget();
        for published in &mut self.retired {
            published.update(group, clones, &mut self.physicals);
        }
        let (mut followed, mut newer) = (false, None);
        for published in self.services.iter_mut().filter(|published| published.follows(group)) {
            followed = true;
            newer = newer.or(published.update(group, clones, &mut self.physicals));
        }
        match newer {
            _ if !followed => Err(UpdateError::UnknownGroup),
            Some(epoch) => Err(UpdateError::Stale(epoch)),
            None => {
                self.views.insert(group.into(), clones.clone());
                Ok(())
            }
        }
    }
}

fn initial(source: &Source, views: &BTreeMap<Box<str>, GroupClones>) -> GroupClones {
    match source {
        Source::Group(group) => {
            let nobody = || GroupClones { epoch: 0, leader: None, clones: vec![] };
            views.get(group).cloned().unwrap_or_else(nobody)
        }
        Source::Servers(servers) => {
            GroupClones { epoch: Epoch::FIRST.get(), leader: Some(0), clones: servers.clone() }
        }
    }
}

fn build(service: &Service, clones: &[GroupClones], physicals: &mut Physicals) -> Table {
    let mut l2p = L2p::default();
    let racs = service.racs.iter().zip(clones).map(|(racs, view)| {
        let ids = view.clones.iter().map(|clone| {
            let physical = physicals.id_of(clone.addr);
            // Where the router itself is nowhere, all clones are as near.
            let near = service.zone.as_deref().is_none_or(|zone| clone.zone.as_deref() == Some(zone));
            let name = printable(&clone.name);
            l2p.add(Logical { name, physical, addr: clone.addr, weight: clone.weight, near })
        });
        let ids = ids.collect();
        Racs::new(&racs.name, ids, view.leader.map(Rank::at), Epoch::new(view.epoch))
    });
    let racs = racs.collect();
    Table { pmap: Arc::clone(&service.pmap), l2p, racs }
}

/// A name as it may stand in a header: members choose theirs freely.
fn printable(name: &str) -> Box<str> {
    let shown = name.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' });
    shown.take(256).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Surroundings;

    fn config() -> Config {
        let text = r#"
            [[service]]
            name = "s"
            listen = "127.0.0.1:0"
            protocol = "redis"
            pmap = { style = "slots", partitions = 4 }
            racs = [{ name = "a", group = "g" }, { name = "b", servers = ["127.0.0.1:1", "127.0.0.1:2"] }]
        "#;
        Config::parse(text, "t".as_ref(), Surroundings { follows_groups: true, ..Surroundings::default() })
            .unwrap()
    }

    fn view(epoch: u64, leader: Option<usize>, ports: &[u16]) -> GroupClones {
        let clone = |port: &u16| CloneAt::new(&format!("n{port}"), ([127, 0, 0, 1], *port).into());
        GroupClones { epoch, leader, clones: ports.iter().map(clone).collect() }
    }

    #[test]
    fn a_view_replaces_the_clones_and_keeps_what_is_known_of_a_server() {
        let mut publisher = Publisher::new(&config());
        let mut reader = publisher.services()[0].reader();
        let a = RacsId::new(0);
        assert!(reader.load().racs(a).clones().is_empty());
        assert_eq!(
            reader.load().racs(RacsId::new(1)).leader().map(|id| reader.cached().l2p.get(id).addr.port()),
            Some(1)
        );

        publisher.update_group("g", &view(7, Some(0), &[2, 3])).unwrap();
        let table = reader.load();
        let shared = table.l2p.get(table.racs(a).leader().unwrap()).physical;
        assert_eq!(
            shared,
            table.l2p.get(table.racs(RacsId::new(1)).clones()[1]).physical,
            "one address, one server"
        );
        assert_eq!(table.racs(a).epoch(), Epoch::new(7));

        publisher.update_group("g", &view(9, Some(1), &[3, 2])).unwrap();
        let table = reader.load();
        assert_eq!(
            table.l2p.get(table.racs(a).leader().unwrap()).physical,
            shared,
            "its id survives the change"
        );
    }

    #[test]
    fn names_cannot_end_a_header_line() {
        assert_eq!(&*printable("node 1\r\nx-admin: yes\u{e9}"), "node_1__x-admin:_yes_");
    }

    #[test]
    fn old_views_and_strange_ones_change_nothing() {
        let mut publisher = Publisher::new(&config());
        let mut reader = publisher.services()[0].reader();
        publisher.update_group("g", &view(7, Some(0), &[2, 3])).unwrap();
        let version = {
            reader.load();
            reader.version()
        };
        assert_eq!(publisher.update_group("g", &view(6, Some(0), &[3])), Err(UpdateError::Stale(7)));
        assert_eq!(publisher.update_group("h", &view(8, None, &[])), Err(UpdateError::UnknownGroup));
        assert_eq!(publisher.update_group("g", &view(8, Some(2), &[2, 3])), Err(UpdateError::Leader(2)));
        assert_eq!(publisher.update_group("g", &view(7, Some(0), &[2, 3])), Ok(()), "the same view again");
        reader.load();
        assert_eq!(reader.version(), version);
        // The same view may lose its leader: its lease ran out before the next view is known.
        publisher.update_group("g", &view(7, None, &[2, 3])).unwrap();
        assert_eq!(reader.load().racs(RacsId::new(0)).leader(), None);
    }
}
