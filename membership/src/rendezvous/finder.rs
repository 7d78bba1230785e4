//! Asks all providers again and again, and tells the control loop what they say.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use membership_types::NodeId;
use tokio::{
    net::lookup_host,
    sync::{Notify, mpsc},
    task::{spawn_blocking, spawn_local},
    time::timeout,
};

use crate::{
    rendezvous::{Registry, Rendezvous},
    transport::Arrived,
};

/// How often providers are asked by a node that is in no view, and by one that is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often files are renewed.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How often host names are looked up, and how long that may take.
const LOOKUP: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// All providers of a node.
pub(crate) struct Finder {
    fixed: BTreeSet<SocketAddr>,
    names: Vec<String>,
    registries: Vec<(String, Arc<Registry>)>,
}

/// Steers a running finder.
#[derive(Clone)]
pub(crate) struct Steering(Rc<State>);

struct State {
    id: Cell<NodeId>,
    seeking: Cell<bool>,
    changed: Notify,
    registries: Vec<(String, Arc<Registry>)>,
}

impl Steering {
    /// The node is a new incarnation.
    pub(crate) fn set_id(&self, id: NodeId) {
        self.0.id.set(id);
        self.0.changed.notify_one();
    }

    /// Is the node in no view?
    pub(crate) fn set_seeking(&self, seeking: bool) {
        if self.0.seeking.replace(seeking) != seeking && seeking {
            self.0.changed.notify_one();
        }
    }

    /// Takes away what was registered.
    pub(crate) async fn withdraw(&self) {
        for (_, registry) in &self.0.registries {
            let registry = Arc::clone(registry);
            if let Err(error) = spawn_blocking(move || registry.withdraw()).await {
                tracing::warn!(%error, "what was registered stays behind");
            }
        }
    }
}

impl Finder {
    pub(crate) fn new(providers: &[Rendezvous], registries: Vec<(String, Arc<Registry>)>) -> Self {
        let mut finder = Self { fixed: BTreeSet::new(), names: Vec::new(), registries };
        for provider in providers {
            if let Rendezvous::Static(items) = provider {
                for item in items {
                    match item.parse() {
                        Ok(addr) => {
                            finder.fixed.insert(addr);
                        }
                        Err(_) => finder.names.push(item.clone()),
                    }
                }
            }
        }
        finder
    }

    /// Asks for as long as the control thread lives.
    pub(crate) fn run(self, id: NodeId, arrived: mpsc::Sender<Arrived>) -> Steering {
        let state = Rc::new(State {
            id: Cell::new(id),
            seeking: Cell::new(true),
            changed: Notify::new(),
            registries: self.registries.clone(),
        });
        let looked_up = Rc::new(RefCell::new(BTreeSet::new()));
        if !self.names.is_empty() {
            spawn_local(look_up(self.names.clone(), Rc::clone(&looked_up), Rc::clone(&state)));
        }
        let steering = Steering(Rc::clone(&state));
        spawn_local(async move {
            let mut told: Option<Vec<SocketAddr>> = None;
            let mut renewed: Option<(NodeId, u64)> = None;
            loop {
                let mut addresses = self.fixed.clone();
                addresses.extend(looked_up.borrow().iter());
                let id = state.id.get();
                let now = crate::clock::now_ns();
                let renew = renewed.is_none_or(|(of, at)| of != id || now - at >= RENEWAL.as_nanos() as u64);
                if renew {
                    renewed = Some((id, now));
                }
                for (url, registry) in &self.registries {
                    match ask(Arc::clone(registry), renew.then_some(id)).await {
                        Ok(found) => addresses.extend(found),
                        Err(error) => tracing::warn!(%error, url, "a rendezvous provider does not answer"),
                    }
                }
                let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
                if told.as_ref() != Some(&addresses) {
                    tracing::debug!(?addresses, "rendezvous");
                    told = Some(addresses.clone());
                    if arrived.send(Arrived::Addresses(addresses)).await.is_err() {
                        return;
                    }
                }
                let pause = if state.seeking.get() { PAUSES.0 } else { PAUSES.1.min(RENEWAL) };
                // A change cuts the pause short.
                let _changed = timeout(pause, state.changed.notified()).await;
            }
        });
        steering
    }
}

/// Files are read off the control thread: a directory may be on a server that does not answer.
async fn ask(registry: Arc<Registry>, renew: Option<NodeId>) -> io::Result<Vec<SocketAddr>> {
    let asked = spawn_blocking(move || {
        if let Some(id) = renew {
            registry.renew(id)?;
        }
        registry.read()
    });
    asked.await.map_err(io::Error::other)?
}

async fn look_up(names: Vec<String>, looked_up: Rc<RefCell<BTreeSet<SocketAddr>>>, state: Rc<State>) {
    loop {
        let mut found = BTreeSet::new();
        for name in &names {
            match timeout(LOOKUP.1, lookup_host(name)).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                // Not in the list yet, perhaps: an empty answer is no error, and is asked again.
                Ok(Err(error)) => tracing::debug!(name, %error, "a rendezvous host is not found yet"),
                Err(_) => tracing::debug!(name, "a rendezvous host was not looked up in time"),
            }
        }
        if !found.is_empty() && *looked_up.borrow() != found {
            *looked_up.borrow_mut() = found;
            state.changed.notify_one();
        }
        tokio::time::sleep(if looked_up.borrow().is_empty() { Duration::from_secs(1) } else { LOOKUP.0 })
            .await;
    }
}
