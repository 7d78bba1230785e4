//! Runs all providers, each as a task of its own, and tells the control loop what they say together.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Display,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use membership_types::NodeId;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinSet, spawn_local},
    time::timeout,
};

use crate::{
    clock::{now, now_ns},
    node::lock,
    rendezvous::{Registrar, Registry, Rendezvous, dns, fixed, udp},
    transport::Arrived,
};

/// How often it is said again that a provider does not answer.
const REPEAT: Duration = Duration::from_secs(30);
/// How often a node in no view, and one in a view, looks at the registry that it keeps.
const OWN_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How many addresses one provider may give; the lowest count.
const MAX_FOUND: usize = 10_000;

/// All providers of a node.
pub(crate) struct Finder {
    providers: Vec<Rendezvous>,
    registries: Vec<(String, Registry)>,
    cluster: String,
    own: SocketAddr,
    /// The registry that this node keeps for others.
    kept: Option<Arc<Mutex<Registrar>>>,
}

/// Steers a running finder.
#[derive(Clone)]
pub(crate) struct Steering {
    standing: Rc<watch::Sender<Standing>>,
    registries: Rc<[(String, Registry)]>,
}

/// What providers must know of the node.
#[derive(Clone, Copy)]
struct Standing {
    id: NodeId,
    /// The node is in no view.
    seeking: bool,
}

impl Steering {
    /// The node is a new incarnation.
    pub(crate) fn set_id(&self, id: NodeId) {
        self.standing.send_modify(|standing| standing.id = id);
    }

    /// Is the node in no view? Whoever begins to seek asks at once.
    pub(crate) fn set_seeking(&self, seeking: bool) {
        self.standing.send_if_modified(|standing| {
            let begins = seeking && !standing.seeking;
            standing.seeking = seeking;
            begins
        });
    }

    /// Takes away what was registered.
    pub(crate) async fn withdraw(&self) {
        let mut all = JoinSet::new();
        for (_, registry) in self.registries.iter() {
            let registry = registry.clone();
            all.spawn_local(async move { registry.withdraw().await });
        }
        while all.join_next().await.is_some() {}
    }
}

impl Finder {
    /// `registries` are those of the providers that have one; `own` is the address of the node itself.
    pub(crate) fn new(
        providers: &[Rendezvous],
        registries: Vec<(String, Registry)>,
        cluster: &str,
        own: SocketAddr,
        kept: Option<Arc<Mutex<Registrar>>>,
    ) -> Self {
        Self { providers: providers.to_vec(), registries, cluster: cluster.to_owned(), own, kept }
    }

    /// Asks for as long as the control thread lives.
    pub(crate) fn run(self, id: NodeId, arrived: mpsc::Sender<Arrived>) -> Steering {
        let (standing, follow) = watch::channel(Standing { id, seeking: true });
        let all = Rc::new(All { said: RefCell::default(), changed: Notify::new() });
        let report = |url: String| {
            all.said.borrow_mut().push(Said::default());
            Report {
                place: all.said.borrow().len() - 1,
                url,
                own: self.own,
                all: Rc::clone(&all),
                standing: follow.clone(),
                seen: BTreeSet::new(),
                complained: None,
            }
        };
        for provider in &self.providers {
            let url = provider.to_string();
            match provider {
                Rendezvous::Static(items) => {
                    spawn_local(fixed::run(items.clone(), report(url)));
                }
                Rendezvous::Dns(target) => {
                    spawn_local(dns::run(target.clone(), report(url)));
                }
                Rendezvous::Local(network) => {
                    spawn_local(udp::run(*network, self.cluster.clone(), self.own, report(url)));
                }
                // These have a registry.
                Rendezvous::File(_) | Rendezvous::Http(_) => {}
            }
        }
        for (url, registry) in &self.registries {
            spawn_local(registry.clone().run(report(url.clone())));
        }
        if let Some(registrar) = self.kept {
            spawn_local(look_at_own(registrar, self.cluster, report("the registry of this node".to_owned())));
        }
        spawn_local(tell(all, arrived));
        Steering { standing: Rc::new(standing), registries: self.registries.into() }
    }
}

/// Whoever registers at us is found by us.
async fn look_at_own(registrar: Arc<Mutex<Registrar>>, cluster: String, mut report: Report) {
    loop {
        report.found(lock(&registrar).addresses(&cluster, now()).into_iter().collect());
        report.pause(if report.seeking() { OWN_PAUSES.0 } else { OWN_PAUSES.1 }).await;
    }
}

/// What all providers said last.
struct All {
    said: RefCell<Vec<Said>>,
    changed: Notify,
}

#[derive(Default)]
struct Said {
    addresses: BTreeSet<SocketAddr>,
    /// It has answered once.
    answered: bool,
}

/// Tells the control loop whatever is new.
async fn tell(all: Rc<All>, arrived: mpsc::Sender<Arrived>) {
    let mut told = None;
    loop {
        let news = {
            let said = all.said.borrow();
            let addresses: BTreeSet<SocketAddr> = said.iter().flat_map(|s| &s.addresses).copied().collect();
            (addresses, said.iter().all(|s| s.answered))
        };
        if told.as_ref() != Some(&news) {
            let (addresses, complete) = news.clone();
            tracing::debug!(?addresses, complete, "rendezvous");
            told = Some(news);
            let addresses = addresses.into_iter().collect();
            if arrived.send(Arrived::Addresses { addresses, complete }).await.is_err() {
                return;
            }
        }
        all.changed.notified().await;
    }
}

/// Where one provider says what it has found.
pub(crate) struct Report {
    place: usize,
    url: String,
    own: SocketAddr,
    all: Rc<All>,
    standing: watch::Receiver<Standing>,
    /// Of these it was logged that the provider gave them.
    seen: BTreeSet<SocketAddr>,
    /// When it was last logged that the provider does not answer.
    complained: Option<u64>,
}

impl Report {
    /// The provider has answered: these are all addresses that it knows now. None is an answer too: nobody is there yet.
    pub(crate) fn found(&mut self, addresses: BTreeSet<SocketAddr>) {
        self.complained = None;
        self.say(addresses, true);
    }

    /// These addresses are known already, but there may be more before the provider has answered.
    pub(crate) fn so_far(&mut self, addresses: BTreeSet<SocketAddr>) {
        self.say(addresses, false);
    }

    fn say(&mut self, mut addresses: BTreeSet<SocketAddr>, answered: bool) {
        while addresses.len() > MAX_FOUND {
            addresses.pop_last();
        }
        if self.seen.len() > MAX_FOUND {
            self.seen.retain(|addr| addresses.contains(addr));
        }
        for addr in &addresses {
            if *addr != self.own && self.seen.insert(*addr) {
                tracing::info!(rendezvous = self.url, %addr, "a rendezvous provider gave an address");
            }
        }
        let said = &mut self.all.said.borrow_mut()[self.place];
        let answered = answered || said.answered;
        if said.answered != answered || said.addresses != addresses {
            *said = Said { addresses, answered };
            self.all.changed.notify_one();
        }
    }

    /// The provider did not answer. What it said before still holds. This is logged once in a while, not at every attempt.
    pub(crate) fn failed(&mut self, error: &dyn Display) {
        let now = now_ns();
        if self.complained.is_some_and(|at| now - at <= REPEAT.as_nanos() as u64) {
            return;
        }
        self.complained = Some(now);
        let rendezvous = &self.url;
        if self.all.said.borrow()[self.place].answered {
            tracing::warn!(%error, rendezvous, "a rendezvous provider does not answer any more");
        } else {
            let what = "a rendezvous provider does not answer: the node founds no cluster before it does";
            tracing::warn!(%error, rendezvous, "{what}");
        }
    }

    /// The present incarnation of the node.
    pub(crate) fn id(&self) -> NodeId {
        self.standing.borrow().id
    }

    /// Is the node in no view?
    pub(crate) fn seeking(&self) -> bool {
        self.standing.borrow().seeking
    }

    /// Waits, but no longer than until the node is a new incarnation, or begins to seek.
    pub(crate) async fn pause(&mut self, pause: Duration) {
        if let Ok(Err(_)) = timeout(pause, self.standing.changed()).await {
            // The node stops, and this task with it.
            std::future::pending::<()>().await;
        }
    }
}
