//! Groups and requests: who may carry out updates, and where requests go, as the views of groups say.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use membership::{GroupError, Leadership, Membership, Node, View, What};
use router::{
    CloneAt, GroupClones,
    rpc::{LeaderHint, Office},
};

/// The office of a group's leader: with it a server carries out updates only while its node leads the group.
///
/// It is asked before each update; leadership may end right afterwards. What leaves the process carries the token, and who
/// must be sure asks [`Leadership::is_current`] again. With a [`Replica`](crate::Replica) nothing is lost or doubled either way.
pub struct Leads {
    group: Membership,
    leadership: Arc<Mutex<Option<Leadership>>>,
    follower: tokio::task::AbortHandle,
}

impl Leads {
    /// The office of this group's leader. It holds the membership.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn of(group: &Membership) -> Self {
        let leadership = Arc::new(Mutex::new(None));
        let (member, current) = (group.clone(), Arc::clone(&leadership));
        let follower = tokio::spawn(async move {
            // It ends with the membership.
            while let Ok(leadership) = member.until_leader().await {
                *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(leadership.clone());
                leadership.lost().await;
            }
        });
        Self { group: group.clone(), leadership, follower: follower.abort_handle() }
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Office for Leads {
    fn token(&self) -> Option<u64> {
        let leadership = self.leadership.lock().unwrap_or_else(PoisonError::into_inner);
        leadership.as_ref()?.token().map(|token| token.get())
    }

    fn hint(&self) -> LeaderHint {
        let Some(view) = self.group.view() else { return LeaderHint::default() };
        let leader = view.leader().and_then(|leader| leader.endpoint.as_deref().map(Into::into));
        LeaderHint { epoch: Some(view.id.get()), leader }
    }
}

/// Feeds a client that routes by itself, or a router, with the views of these groups, until the node stops: `tell` is given each
/// of them as [`Client::update_group`](router::rpc::Client::update_group) and
/// [`RouterHandle::update_group`](router::RouterHandle::update_group) take it.
///
/// While the node has no valid lease its views may be old, so nobody is said to lead. Members without an endpoint of the form
/// `IP:PORT` are left out.
///
/// # Errors
/// [`GroupError`]; nobody was fed.
pub async fn follow<G: AsRef<str>>(
    node: &Node,
    groups: impl IntoIterator<Item = G>,
    mut tell: impl FnMut(&str, &GroupClones),
) -> Result<(), GroupError> {
    let mut events = node.all_events();
    let mut observers = Vec::new();
    for group in groups {
        observers.push(node.observe(group.as_ref()).await?);
    }
    let mut views: BTreeMap<String, Arc<View>> = BTreeMap::new();
    let mut is_ready = false;
    while let Some(event) = events.next().await {
        if let (What::View(view), Some(group)) = (&event.what, &event.group)
            && observers.iter().any(|observer| observer.group() == group)
        {
            tell(group.as_str(), &clones(node, view, is_ready));
            views.insert(group.to_string(), Arc::clone(view));
        }
        let ready = node.status().is_ready();
        if ready != is_ready {
            is_ready = ready;
            views.iter().for_each(|(group, view)| tell(group, &clones(node, view, is_ready)));
        }
    }
    Ok(())
}

/// A view as a router sees it: members that have an endpoint of the form `IP:PORT`, in rank order, each in the zone and
/// with the weight of its node; while the node has no valid lease nobody leads.
pub fn clones(node: &Node, view: &View, is_ready: bool) -> GroupClones {
    let mut clones = Vec::new();
    let mut leader = None;
    for (rank, member) in view.members.iter().enumerate() {
        let addr: Option<SocketAddr> = member.endpoint.as_deref().and_then(|endpoint| endpoint.parse().ok());
        let Some(addr) = addr else { continue };
        if rank == 0 && is_ready {
            leader = Some(clones.len());
        }
        let (zone, weight) = (node.zone_of(member.node), node.weight_of(member.node));
        let zone = zone.map(|zone| (*zone).into());
        clones.push(CloneAt { name: member.name.to_string(), addr, weight, zone });
    }
    GroupClones { epoch: view.id.get(), leader, clones }
}
