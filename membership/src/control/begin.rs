//! How the control thread begins, and each incarnation on it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::TcpListener,
    sync::Arc,
    thread,
    time::Duration,
};

use membership_proto::{Cluster, Config};
use membership_sync::{NodeLease, Snapshot};
use membership_types::{
    Instant, Rng, ViewId,
    trace::{Cfg, Event as TraceEvent},
};
use tokio::{sync::mpsc, task::LocalSet};

use super::{ARRIVALS, Driver, FAREWELL};
use crate::{
    bulk::{self, Bulk},
    clock,
    control::deaths::Deaths,
    death::{self, Door, Neighbours},
    disk::DataDir,
    error::StartError,
    event::{NodeBus, Speaker, What},
    handshake::{Hello, Versions},
    node::{Command, Shared, lock},
    panic::Guarded,
    rendezvous::Finder,
    start,
    status::Status,
    trace::Tracer,
    transport::{Arrived, Transport},
    witness::{Asker, Witness},
};

const SECOND: Duration = Duration::from_secs(1);

/// All that a control thread begins with.
pub(crate) struct Setup {
    pub(crate) shared: Arc<Shared>,
    pub(crate) bus: NodeBus,
    pub(crate) status: Snapshot<Status>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) config: Config,
    pub(crate) listener: TcpListener,
    pub(crate) finder: Finder,
    pub(crate) door: Option<Door>,
    pub(crate) tracer: Option<Tracer>,
    pub(crate) data_dir: Option<DataDir>,
    pub(crate) witness: Option<Witness>,
    pub(crate) bulk: Bulk,
    pub(crate) rejoin: bool,
    /// Does a panic end the lease?
    pub(crate) guard: bool,
}

/// Starts the control thread. When this returns, the node has begun.
pub(crate) fn spawn(setup: Setup) -> Result<(), StartError> {
    // Wherever this ends early, the admin API ends too.
    let finished = Finished(Arc::clone(&setup.shared));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(4)
        .build()
        .map_err(StartError::System)?;
    let lease = NodeLease::new()?;
    let seed = start::random().map_err(StartError::System)?;
    let (begun, has_begun) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        // Declared first, dropped last: whatever happens, handles learn that the node has stopped.
        let _finished = finished;
        // Heartbeats, and whoever takes over, wait for what is done here; that is short.
        death::run_promptly();
        LocalSet::new().block_on(&runtime, async move {
            let (driver, arrivals, commands) = match Driver::new(setup, lease, Rng::seeded(seed)) {
                Ok(parts) => parts,
                Err(error) => {
                    let _waiting = begun.send(Err(error));
                    return;
                }
            };
            let _waiting = begun.send(Ok(()));
            driver.run(arrivals, commands).await;
        });
        runtime.shutdown_timeout(FAREWELL);
    };
    thread::Builder::new().name("phalanx-control".into()).spawn(body).map_err(StartError::System)?;
    let gone = || StartError::System(std::io::Error::other("the control thread ended at once"));
    has_begun.recv().map_err(|_| gone())?.map_err(StartError::System)
}

/// Ends the bulk thread, the node's streams and waits, also where the control thread panicked, or did not come to run.
struct Finished(Arc<Shared>);

impl Drop for Finished {
    fn drop(&mut self) {
        // Mostly it has ended already.
        self.0.bulk.end();
        // In this order: who has seen the end of the streams finds the node stopped.
        let bus = lock(&self.0.bus).take();
        self.0.finished.send_replace(true);
        drop(bus);
    }
}

impl Driver {
    #[allow(clippy::type_complexity, reason = "what run() takes")]
    fn new(
        setup: Setup,
        lease: NodeLease,
        mut rng: Rng,
    ) -> std::io::Result<(Self, mpsc::Receiver<Arrived>, mpsc::Receiver<Command>)> {
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        let Setup {
            shared,
            bus,
            status,
            commands,
            config,
            listener,
            finder,
            door,
            tracer,
            data_dir,
            witness,
            bulk,
            rejoin,
            guard,
        } = setup;
        let floor = data_dir.as_ref().map(|dir| dir.floor);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let me = Hello {
            cluster: shared.cluster.clone(),
            node: config.me.id,
            name: config.me.name.to_string(),
            addr: config.me.addr,
            lineage: None,
            near: door.as_ref().map(|door| door.name.clone()),
            bulk: false,
            speaks: Versions::OURS,
        };
        let counts = shared.metrics.count.clone();
        let wallet = shared.wallet.clone();
        let means = wallet.get().means();
        counts.sealed.get_or_create(&[("by", means.unwrap_or("nothing"))]).set(means.is_some().into());
        let term = config.terms.lease;
        let (on_bulk, purse) = (lease.clone(), wallet.clone());
        bulk::spawn(bulk.clone(), me.clone(), purse, on_bulk, term, tracer.clone(), counts.clone())?;
        let neighbours = door.map(Neighbours::new);
        let transport =
            Transport::new(me, wallet, term, arrived.clone(), neighbours, bulk.clone(), counts.clone());
        transport.set_tracer(tracer.clone());
        transport.accept(listener);
        let disk = data_dir.map(|dir| {
            let arrived = arrived.clone();
            // It fails when the node has stopped, and then nobody waits for it.
            dir.run(move |floor| drop(arrived.blocking_send(Arrived::IsSetAside(floor))))
        });
        let disk = disk.transpose()?;
        let asker = |at: &Witness| {
            let (standing, arrived) = (Arc::clone(&shared.witness), arrived.clone());
            // As above.
            let told = move |answer| drop(arrived.blocking_send(Arrived::Witness(answer)));
            Asker::start(at, &shared.wallet, &shared.cluster, standing, counts.clone(), told)
        };
        let witness = witness.as_ref().map(asker).transpose()?;
        let steering = finder.run(config.me.id, arrived);
        let mut machine =
            Cluster::new(config.clone(), clock::now(), Rng::seeded(rng.next_u64()), ViewId::NONE);
        if let Some(floor) = floor {
            machine = machine.with_floor(floor);
        }
        let speaker = Speaker { name: Arc::clone(&shared.name), node: config.me.id };
        let speaker = Arc::new(speaker);
        let mut driver = Self {
            shared,
            bus,
            status,
            counts,
            config,
            machine,
            rng,
            transport,
            bulk,
            steering,
            tracer,
            disk,
            witness,
            forcing: None,
            rejoin,
            guard,
            _guarded: guard.then(|| Guarded::new(lease.clone())),
            lease,
            lease_until: Instant::ZERO,
            suspended: false,
            revoked: false,
            speaker,
            view: None,
            blocked: None,
            groups: BTreeMap::new(),
            leads: false,
            away: BTreeSet::new(),
            addresses: (Vec::new(), false),
            deaths: Deaths::default(),
            blocked_since: None,
            answered: Instant::ZERO,
            leased: None,
            own_state: Vec::new(),
            inputs: VecDeque::new(),
            end: None,
            late: false,
            changed: true,
            stopping: None,
            over: None,
        };
        driver.begun();
        driver.pump();
        Ok((driver, arrivals, commands))
    }

    /// An incarnation begins: the first thing that anybody hears of it.
    pub(super) fn begun(&mut self) {
        self.counts.incarnations.inc();
        let id = self.config.me.id;
        self.set_names(BTreeMap::from([(id, Arc::clone(&self.shared.name))]));
        if let Some(tracer) = &self.tracer {
            tracer.begin(id);
            tracer.record(TraceEvent::Cfg(Cfg {
                lease: self.config.terms.lease.as_nanos() as u64,
                rho: self.config.terms.drift.stretched(SECOND).saturating_sub(SECOND).as_nanos() as f64 / 1e9,
                hb: self.config.heartbeat.as_nanos() as u64,
                bootstrap: self.shared.bootstrap.split('=').next().map(str::to_owned),
                slots: Vec::new(),
                core: Some(u64::from(self.config.terms.core_size)),
                // Whether all founders have data directories, only a harness can tell.
                durable: false,
                witness: self.config.terms.witness,
                bounds: BTreeMap::new(),
            }));
        }
        let shared = &self.shared;
        tracing::info!(name = &*shared.name, %id, listen = %shared.listen, cluster = shared.cluster, "node started");
        self.say(What::Started { listen: self.shared.listen, admin: self.shared.admin });
    }
}
