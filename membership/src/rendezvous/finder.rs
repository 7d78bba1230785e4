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
    task::{JoinHandle, spawn_blocking, spawn_local},
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
/// How long a registry may take to answer before that is said, and asking others goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often that is said again.
const REPEAT: Duration = Duration::from_secs(30);
/// When it is said that no host name was found.
const COMPLAINT: Duration = Duration::from_secs(5);
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
            let mut told = None;
            let mut renewed: Option<(NodeId, u64)> = None;
            let mut asked: Vec<Asked> = self.registries.iter().map(|_| Asked::default()).collect();
            let begun = crate::clock::now_ns();
            let mut complained = false;
            loop {
                let mut addresses = self.fixed.clone();
                addresses.extend(looked_up.borrow().iter());
                let id = state.id.get();
                let now = crate::clock::now_ns();
                let renew = renewed.is_none_or(|(of, at)| of != id || now - at >= RENEWAL.as_nanos() as u64);
                if renew {
                    renewed = Some((id, now));
                }
                for ((url, registry), asked) in self.registries.iter().zip(&mut asked) {
                    match asked.ask(registry, renew.then_some(id)).await {
                        Ok(()) => asked.complained = None,
                        // Said once in a while, not ten times a second.
                        Err(error)
                            if asked.complained.is_none_or(|at| now - at > REPEAT.as_nanos() as u64) =>
                        {
                            asked.complained = Some(now);
                            tracing::warn!(%error, url, "a rendezvous provider does not answer");
                        }
                        Err(_) => {}
                    }
                    addresses.extend(&asked.found);
                }
                let found_names = self.names.is_empty() || !looked_up.borrow().is_empty();
                let complete = found_names && asked.iter().all(|a| a.answered);
                if !found_names && !complained && now - begun >= COMPLAINT.as_nanos() as u64 {
                    complained = true;
                    let names = self.names.join(", ");
                    tracing::warn!(
                        names,
                        "no rendezvous host is found: the node founds no cluster before one is"
                    );
                }
                let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
                let news = (addresses, complete);
                if told.as_ref() != Some(&news) {
                    let (addresses, complete) = news.clone();
                    tracing::debug!(?addresses, complete, "rendezvous");
                    told = Some(news);
                    if arrived.send(Arrived::Addresses { addresses, complete }).await.is_err() {
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

/// Whether our own entry was written, and what the others' say.
type Answer = (io::Result<()>, io::Result<Vec<SocketAddr>>);

/// What became of asking one registry.
#[derive(Default)]
struct Asked {
    /// A question without an answer: a directory may be on a server that does not answer. There is one at a time.
    open: Option<JoinHandle<Answer>>,
    /// The last answer.
    found: Vec<SocketAddr>,
    /// It has answered.
    answered: bool,
    /// When it was last said that it does not.
    complained: Option<u64>,
}

impl Asked {
    /// Asks, off the control thread, or goes on waiting for the answer to the last question.
    async fn ask(&mut self, registry: &Arc<Registry>, renew: Option<NodeId>) -> io::Result<()> {
        let open = self.open.get_or_insert_with(|| {
            let registry = Arc::clone(registry);
            spawn_blocking(move || {
                let written = renew.map_or(Ok(()), |id| registry.renew(id));
                (written, registry.read())
            })
        });
        let answer =
            timeout(PATIENCE, &mut *open).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        self.open = None;
        let (written, found) = answer.map_err(io::Error::other)?;
        self.found = found?;
        written?;
        self.answered = true;
        Ok(())
    }
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
