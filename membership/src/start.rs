//! From a configuration to running threads: every rule is checked here, before anything runs.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use membership_proto::{Bootstrap, Config, NodeInfo};
use membership_sync::Snapshot;
use membership_types::NodeId;
use socket2::SockRef;
use tokio::{
    net::lookup_host,
    sync::{Notify, Semaphore, mpsc, watch},
};

use crate::{
    admin::{self, Extensions, STREAMS},
    bulk::Bulk,
    clock,
    control::{self, Setup},
    death::{Acts, Door},
    disk::{self, DataDir},
    error::StartError,
    event::{Names, NodeBus},
    labels::{self, Labels},
    metrics::Metrics,
    node::{Node, NodeBuilder, Shared},
    rendezvous::{Finder, Registrar, Registry, Rendezvous},
    secret::{Source, Wallet},
    status::Status,
    trace::Tracer,
    watchdog::Pats,
    witness::{Stores, Witness},
};

/// How many commands of applications wait for the control thread; then they wait themselves.
const COMMANDS: usize = 256;
/// How long all members must have run builds of a higher feature level before it is agreed on.
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// How many connections wait in the kernel to be accepted, as far as that allows it. Where there is no room for one more, whoever
/// made it tries again after a second: a stranger in a hurry must not do that to a node that starts.
const BACKLOG: i32 = 4096;
/// How long host names of founder slots are looked up.
const LOOKUP: Duration = Duration::from_secs(5);

/// Where an admin API listens: there, on this socket if one is given.
pub(crate) fn admin_listener(
    addr: SocketAddr,
    insecure: bool,
    given: Option<TcpListener>,
) -> Result<TcpListener, StartError> {
    if !insecure && !addr.ip().is_loopback() {
        let problem = format!(
            "{addr} is reachable from other machines, and the admin API authenticates nobody, whatever \
             --secret-file or --tls-ca say: give a loopback address, and reach it through ssh -L, or --insecure \
             where the network itself is trusted"
        );
        return Err(StartError::setting("admin", problem));
    }
    match given {
        Some(listener) => Ok(listener),
        None => listen("admin", addr),
    }
}

pub(crate) async fn start(builder: NodeBuilder) -> Result<Node, StartError> {
    check_names(&builder)?;
    let limits = Duration::from_millis(10)..=Duration::from_secs(3600);
    if let Some(limit) = builder.watchdog.filter(|limit| !limits.contains(limit)) {
        return Err(StartError::setting(
            "watchdog",
            format!("{limit:?} is no limit for it: give 10ms to 1h"),
        ));
    }
    check_credentials(&builder)?;
    check_proofs(&builder)?;
    let source = builder.credentials();
    let wallet = Wallet::open(source)
        .map_err(|source| StartError::Secret { place: builder.credentials().place(), source })?;
    let proved = builder.credentials().is_some();
    if !proved && !builder.insecure && !builder.listen.ip().is_loopback() {
        let problem = format!(
            "{} is reachable from other machines, and nothing authenticates who connects: give all nodes the same \
             --secret-file (`phalanx secret` prints what belongs in it), or each a certificate (--tls-ca, --tls-cert, \
             --tls-key), or a loopback address, or --insecure where the network itself is trusted",
            builder.listen
        );
        return Err(StartError::setting("listen", problem));
    }
    for warning in in_the_open(&builder).iter().map(String::as_str).chain(in_vain(&builder)) {
        tracing::warn!("{warning}");
    }
    let data_dir = data_dir(&builder).await?;
    let listener = listen("listen", builder.listen)?;
    let listen = listener.local_addr().map_err(StartError::System)?;
    let advertise = advertised(&builder, listen)?;
    let given = builder.admin_socket.as_deref().map(TcpListener::try_clone).transpose();
    let given = given.map_err(StartError::System)?;
    let admin = match builder.admin {
        None => None,
        Some(addr) => {
            let listener = admin_listener(addr, builder.insecure, given)?;
            let addr = listener.local_addr().map_err(StartError::System)?;
            Some((listener, addr))
        }
    };
    let name = name(&builder);
    let place = || builder.credentials().place();
    wallet.belongs_to(&name, advertise).map_err(|source| StartError::Secret { place: place(), source })?;
    let id = fresh_id(&name)?;
    let registries = open_registries(&builder, &wallet, &name, advertise, id).await?;
    let status = Snapshot::new(Arc::new(Status::begin(id)));
    let bus = NodeBus::new();
    let admin_addr = admin.as_ref().map(|(_, addr)| *addr);
    let shared = share(&builder, wallet, &name, [listen, advertise], admin_addr, &bus, &status)?;
    // Before any founder slot is taken: it may be this node that keeps the registry of slots.
    if let Some((listener, _)) = admin {
        admin::serve(listener, Arc::clone(&shared)).map_err(StartError::System)?;
    }
    let mut unfinished = Unfinished(Some(Arc::clone(&shared)));
    let slot = founder_slot(&builder, advertise, id, &registries).await;
    // Whatever fails from here on gives the slot back.
    let started = slot.and_then(|slot| {
        let me = NodeInfo {
            id,
            name: name.as_str().into(),
            addr: advertise,
            eligible: builder.core,
            slot,
            keeps_floor: builder.data_dir.is_some(),
            domains: labels::domains(&builder.labels),
            load_weight: labels::weight(&builder.labels).map(|weight| weight.get().into()),
        };
        let config = configuration(&builder, me)?;
        run(&builder, config, listener, &shared, bus, status, (registries.clone(), data_dir))
    });
    if started.is_err() {
        for (_, registry) in &registries {
            registry.withdraw().await;
        }
    } else {
        unfinished.0 = None;
    }
    started
}

fn name(builder: &NodeBuilder) -> String {
    let given = builder.name.clone();
    given.unwrap_or_else(|| format!("{}-{}", host_name(), std::process::id()))
}

/// Takes the data directory, if there is one. It may be waited for.
async fn data_dir(builder: &NodeBuilder) -> Result<Option<DataDir>, StartError> {
    let Some(path) = builder.data_dir.clone() else { return Ok(None) };
    let (cluster, name) = (builder.cluster.clone(), name(builder));
    let opened = tokio::task::spawn_blocking(move || DataDir::open(&path, &cluster, &name)).await;
    let opened = opened.map_err(|error| StartError::System(io::Error::other(error)))?;
    opened.map(Some).map_err(StartError::DataDir)
}

/// A start that fails, or is given up, ends the admin API too.
struct Unfinished(Option<Arc<Shared>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.finished.send_replace(true);
        }
    }
}

/// What handles and threads of the node share.
fn share(
    builder: &NodeBuilder,
    wallet: Wallet,
    name: &str,
    [listen, advertise]: [SocketAddr; 2],
    admin: Option<SocketAddr>,
    bus: &NodeBus,
    status: &Snapshot<Status>,
) -> Result<Arc<Shared>, StartError> {
    let metrics = Arc::new(Metrics::new());
    let mark = random().map_err(StartError::System)?;
    let registrar = Registrar::new(mark, clock::now(), &builder.cluster, advertise);
    Ok(Arc::new(Shared {
        cluster: builder.cluster.clone(),
        listen,
        advertise,
        admin,
        data_dir: builder.data_dir.clone(),
        witness_at: builder.witness.clone(),
        witness: Arc::default(),
        stores: builder.data_dir.as_deref().map(|dir| Stores::new(dir.join(disk::WITNESS), &builder.cluster)),
        name: name.into(),
        join_timeout: builder.join_timeout,
        labels: builder.labels.clone(),
        bootstrap: match builder.bootstrap {
            Bootstrap::Expect(n) => format!("expect={n}"),
            Bootstrap::AloneAfter(after) => format!("alone-after={after:?}"),
            Bootstrap::Join => "join".to_owned(),
        },
        guarantees: match builder.bootstrap {
            Bootstrap::AloneAfter(_) => "per lineage: any node may found a cluster (alone-after)",
            Bootstrap::Expect(_) | Bootstrap::Join => "per cluster",
        },
        tracer: OnceLock::new(),
        bus: Mutex::new(Some(bus.clone())),
        status: status.reader(),
        names: Names::default(),
        labels_of_nodes: Labels::default(),
        pats: builder.watchdog.map(Pats::new),
        extensions: Extensions::new(Arc::clone(&metrics)),
        registrar: Arc::new(Mutex::new(registrar)),
        streams: Arc::new(Semaphore::new(STREAMS)),
        metrics,
        bulk: Bulk::default(),
        wallet,
        dropped: Mutex::default(),
        wake: Notify::new(),
        commands: OnceLock::new(),
        finished: watch::Sender::new(false),
    }))
}

fn run(
    builder: &NodeBuilder,
    config: Config,
    listener: TcpListener,
    shared: &Arc<Shared>,
    bus: NodeBus,
    status: Snapshot<Status>,
    (registries, data_dir): (Vec<(String, Registry)>, Option<DataDir>),
) -> Result<Node, StartError> {
    let tracer = match &builder.trace {
        None => None,
        Some(path) => {
            let created = Tracer::create(path, shared.metrics.count.trace_lost.clone());
            let tracer = created.map_err(|source| StartError::Trace { path: path.clone(), source })?;
            Some(shared.tracer.get_or_init(|| tracer).clone())
        }
    };
    let door = match Door::open(builder.acts.clone()) {
        Ok(door) => Some(door),
        Err(error) => {
            tracing::warn!(%error, "deaths on this host cannot be proved: leases are waited out");
            None
        }
    };
    let (commands, commands_of) = mpsc::channel(COMMANDS);
    shared.commands.get_or_init(|| commands.downgrade());
    let kept = shared.admin.map(|_| Arc::clone(&shared.registrar));
    let finder = Finder::new(&builder.rendezvous, registries, &builder.cluster, config.me.addr, kept);
    control::spawn(Setup {
        shared: Arc::clone(shared),
        bus,
        status,
        commands: commands_of,
        config,
        listener,
        finder,
        door,
        tracer,
        data_dir,
        witness: builder.witness.clone(),
        bulk: shared.bulk.clone(),
        rejoin: builder.rejoin,
        guard: builder.panic_hook,
    })?;
    Ok(Node::new(Arc::clone(shared), commands))
}

/// Cluster names are parts of paths, too.
pub(crate) fn is_cluster_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.')
}

fn check_credentials(builder: &NodeBuilder) -> Result<(), StartError> {
    let tls = [("tls-ca", &builder.tls_ca), ("tls-cert", &builder.tls_cert), ("tls-key", &builder.tls_key)];
    let Some((given, _)) = tls.iter().find(|(_, file)| file.is_some()) else { return Ok(()) };
    if let Some((missing, _)) = tls.iter().find(|(_, file)| file.is_none()) {
        return Err(StartError::setting(
            missing,
            format!("needed with --{given}: the three belong together"),
        ));
    }
    if builder.secret.is_some() {
        let problem =
            "a node has certificates or a secret: leave out --secret-file, or the three --tls- flags";
        return Err(StartError::setting(given, problem));
    }
    Ok(())
}

/// Proofs are made with a secret.
fn check_proofs(builder: &NodeBuilder) -> Result<(), StartError> {
    if matches!(builder.credentials(), Source::Given(_) | Source::File(_)) {
        return Ok(());
    }
    let needs = |url: String| {
        format!("{url} needs --secret-file: a registry's answers are proved with the cluster's secret")
    };
    for provider in &builder.rendezvous {
        if matches!(provider, Rendezvous::Http(at) if at.proof) {
            return Err(StartError::setting("rendezvous", needs(provider.to_string())));
        }
    }
    match &builder.witness {
        Some(url @ Witness::Http(at)) if at.proof => {
            Err(StartError::setting("witness", needs(url.to_string())))
        }
        _ => Ok(()),
    }
}

/// What was asked for, and does nothing with what else was asked for.
fn in_vain(builder: &NodeBuilder) -> Option<&'static str> {
    let alone = matches!(builder.bootstrap, Bootstrap::AloneAfter(_));
    (alone && builder.witness.is_some()).then_some(
        "the half of a core that the witness stops founds a cluster of its own under --bootstrap alone-after, and both \
         have leaders: give --bootstrap expect=N",
    )
}

/// What is believed although neither a secret nor certificates cover it: words of a registry on another host.
fn in_the_open(builder: &NodeBuilder) -> Vec<String> {
    let mut warnings = Vec::new();
    if !builder.credentials().is_some() {
        return warnings; // Then all is in the open, which somebody asked for.
    }
    let open = "plain HTTP, and it may answer without a proof: who sits on the way to it may tell";
    let listed = builder.rendezvous.iter().any(|provider| matches!(provider, Rendezvous::Static(_)));
    let mut registries =
        builder.rendezvous.iter().filter(|p| matches!(p, Rendezvous::File(_) | Rendezvous::Http(_)));
    if matches!(builder.bootstrap, Bootstrap::Expect(_))
        && !listed
        && let Some(url @ Rendezvous::Http(at)) = registries.next()
        && !at.is_here()
        && !at.proof
    {
        let what = "some founders that others' slots are theirs, and two clusters are founded";
        let way_out = "start its agent with the same --secret-file and append ?proof=required, name the founders with static:, \
                       or reach the registry by a way that is sealed (ssh -L, a VPN)";
        warnings.push(format!("founder slots come from {url} over {open} {what}: {way_out}"));
    }
    if let Some(url @ Witness::Http(at)) = &builder.witness
        && !at.is_here()
        && !at.proof
    {
        let what = "each half of the core that it goes on, and both have leaders";
        let way_out = "start its agent with the same --secret-file and append ?proof=required, give file: on storage that both \
                       halves reach, or reach the agent by a way that is sealed (ssh -L, a VPN)";
        warnings.push(format!("the witness is asked at {url} over {open} {what}: {way_out}"));
    }
    warnings
}

fn check_names(builder: &NodeBuilder) -> Result<(), StartError> {
    let cluster = &builder.cluster;
    if !is_cluster_name(cluster) {
        let rule = "give 1 to 64 characters out of A-Z a-z 0-9 . _ -, not beginning with a dot";
        return Err(StartError::setting("cluster", format!("{cluster:?} is no cluster name: {rule}")));
    }
    if let Some(name) = &builder.name
        && (!(1..=128).contains(&name.len()) || name.chars().any(char::is_control))
    {
        let rule = "give 1 to 128 bytes without control characters";
        return Err(StartError::setting("name", format!("{name:?} is no name for a node: {rule}")));
    }
    labels::check(&builder.labels)
}

fn listen(flag: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(addr).map_err(|source| StartError::Listen { flag, addr, source })?;
    let set = listener.set_nonblocking(true).and_then(|()| SockRef::from(&listener).listen(BACKLOG));
    set.map_err(StartError::System)?;
    Ok(listener)
}

fn advertised(builder: &NodeBuilder, listen: SocketAddr) -> Result<SocketAddr, StartError> {
    let mut addr = builder.advertise.unwrap_or(listen);
    if addr.port() == 0 {
        addr.set_port(listen.port());
    }
    if addr.ip().is_unspecified() {
        let problem = match builder.advertise {
            Some(_) => format!("{addr} is no address that others can connect to: give one of this machine"),
            None => format!(
                "needed because {listen} listens on all interfaces: say by which address others reach it"
            ),
        };
        return Err(StartError::setting("advertise", problem));
    }
    Ok(addr)
}

fn configuration(builder: &NodeBuilder, me: NodeInfo) -> Result<Config, StartError> {
    let mut config = Config::new(me, builder.bootstrap, builder.lease)?;
    if let Some(heartbeat) = builder.heartbeat {
        config.heartbeat = heartbeat;
    }
    if let Some(give_up) = builder.give_up {
        config.give_up = give_up;
    }
    config.epoch_s = clock::booted_s();
    config.trace = builder.trace.is_some();
    config.acts_elsewhere = !matches!(builder.acts, Acts::Itself);
    config.terms.witness = builder.witness.is_some();
    config.raise_after = Some(RAISE_AFTER);
    Ok(config.checked()?)
}

async fn open_registries(
    builder: &NodeBuilder,
    wallet: &Wallet,
    name: &str,
    addr: SocketAddr,
    id: NodeId,
) -> Result<Vec<(String, Registry)>, StartError> {
    let mut registries = Vec::new();
    for provider in &builder.rendezvous {
        let url = provider.to_string();
        if let Rendezvous::Local(network) = provider
            && let Some(problem) = network.problem(addr)
        {
            return Err(StartError::setting("rendezvous", format!("{url}: {problem}")));
        }
        match Registry::open(provider, wallet, &builder.cluster, name, addr, id).await {
            Ok(registry) => registries.extend(registry.map(|registry| (url, registry))),
            Err(source) => return Err(StartError::Rendezvous { url, source }),
        }
    }
    Ok(registries)
}

/// The founder slot of this node under `expect(n)`: its place in the static list, or the first free one of the registry.
async fn founder_slot(
    builder: &NodeBuilder,
    own: SocketAddr,
    id: NodeId,
    registries: &[(String, Registry)],
) -> Result<Option<u16>, StartError> {
    let Bootstrap::Expect(count) = builder.bootstrap else { return Ok(None) };
    if !(1..=1000).contains(&count) {
        return Ok(None); // The configuration's own check says what is wrong.
    }
    let listed = builder.rendezvous.iter().find_map(|provider| match provider {
        Rendezvous::Static(items) => Some(items),
        _ => None,
    });
    if let Some(items) = listed {
        if items.len() < usize::from(count) {
            let problem = format!(
                "expect={count} needs {count} addresses in the static: list, which has {}",
                items.len()
            );
            return Err(StartError::setting("bootstrap", problem));
        }
        for (slot, item) in (0..count).zip(items) {
            let is_own = match item.parse::<SocketAddr>() {
                Ok(addr) => addr == own,
                Err(_) => tokio::time::timeout(LOOKUP, lookup_host(item))
                    .await
                    .is_ok_and(|found| found.is_ok_and(|mut found| found.any(|addr| addr == own))),
            };
            if is_own {
                return Ok(Some(slot));
            }
        }
        let problem = format!(
            "{own} is not among the first {count} addresses of the static: list, which are the founders: start this node \
             with --bootstrap join, or give --listen or --advertise as it is in the list"
        );
        return Err(StartError::setting("bootstrap", problem));
    }
    if let Some((url, registry)) = registries.first() {
        let taken = registry.take_slot(count, id).await;
        return match taken.map_err(|source| StartError::Rendezvous { url: url.clone(), source })? {
            Some(slot) => Ok(Some(slot)),
            None => {
                let holders = registry.holders(count).await;
                let problem = format!(
                    "all {count} founder slots of {url} are taken (by {holders}): start this node with --bootstrap join"
                );
                Err(StartError::setting("bootstrap", problem))
            }
        };
    }
    if count == 1 {
        return Ok(Some(0)); // Alone, and nobody else to agree with.
    }
    let problem = format!(
        "expect={count} needs a --rendezvous by which founders know each other: static:, file: or http:"
    );
    Err(StartError::setting("bootstrap", problem))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// An id that no other incarnation has: a hash of the name, and fresh random bits.
pub(crate) fn fresh_id(name: &str) -> Result<NodeId, StartError> {
    Ok(NodeId::new(name_hash(name), random().map_err(StartError::System)?))
}

/// What ids of nodes of this name begin with.
pub(crate) fn name_hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// From the operating system.
pub(crate) fn random() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_connect_before_the_first_is_accepted() {
        let listener = listen("listen", ([127, 0, 0, 1], 0).into()).expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let connect = |n| {
            let stream = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(900));
            stream.unwrap_or_else(|error| panic!("the {n}th: {error}"))
        };
        let _all: Vec<_> = (0..200).map(connect).collect();
    }

    #[test]
    fn a_witness_that_keeps_nothing_together_is_warned_of() {
        let with = |how| {
            in_vain(&Node::builder().bootstrap(how).witness("file:/mnt/shared".parse().expect("valid")))
        };
        assert!(with(Bootstrap::AloneAfter(LOOKUP)).is_some_and(|why| why.contains("expect=N")));
        assert_eq!((with(Bootstrap::Expect(2)), with(Bootstrap::Join)), (None, None));
        assert_eq!(in_vain(&Node::builder().bootstrap(Bootstrap::AloneAfter(LOOKUP))), None);
    }

    #[test]
    fn what_is_believed_in_the_open_is_said_where_a_secret_may_make_one_think_otherwise() {
        let far = "http://10.0.0.3:7070/v1/rendezvous";
        let secret = || crate::Secret::generate().expect("random").parse::<crate::Secret>().expect("a key");
        let provider = |url: &str| url.parse::<Rendezvous>().expect("valid");
        let founder =
            || Node::builder().secret(secret()).bootstrap(Bootstrap::Expect(3)).rendezvous(provider(far));
        let of_slots = in_the_open(&founder());
        assert!(
            of_slots.len() == 1 && of_slots[0].contains(far) && of_slots[0].contains("static:"),
            "{of_slots:?}"
        );
        let witnessed = Node::builder().secret(secret()).witness(far.parse().expect("valid"));
        let of_witness = in_the_open(&witnessed);
        assert!(of_witness.len() == 1 && of_witness[0].contains("file:"), "{of_witness:?}");
        let certified =
            founder().witness(far.parse().expect("valid")).tls_ca("ca").tls_cert("cert").tls_key("key");
        assert_eq!(in_the_open(&certified).len(), 2);

        // Addresses are only probed; and of what is on this host, or not there at all, nothing is to be said.
        let loopback = "http://127.0.0.1:7070/v1/rendezvous";
        let proved = "http://10.0.0.3:7070/v1/rendezvous?proof=required";
        for quiet in [
            Node::builder().bootstrap(Bootstrap::Expect(3)).rendezvous(provider(far)),
            founder().bootstrap(Bootstrap::Join),
            founder().rendezvous(provider("static:10.0.0.1:1,10.0.0.2:1,10.0.0.3:1")),
            Node::builder()
                .secret(secret())
                .bootstrap(Bootstrap::Expect(3))
                .rendezvous(provider("file:/mnt/shared"))
                .rendezvous(provider(far)),
            Node::builder().secret(secret()).bootstrap(Bootstrap::Expect(3)).rendezvous(provider(loopback)),
            Node::builder().secret(secret()).witness(loopback.parse().expect("valid")),
            Node::builder()
                .secret(secret())
                .bootstrap(Bootstrap::Expect(3))
                .rendezvous(provider(proved))
                .witness(proved.parse().expect("valid")),
            Node::builder().secret(secret()).witness("file:/mnt/shared".parse().expect("valid")),
        ] {
            assert_eq!(in_the_open(&quiet), [""; 0]);
        }
        for without in [
            Node::builder().rendezvous(provider(proved)),
            Node::builder().witness(proved.parse().expect("valid")),
            Node::builder()
                .witness(proved.parse().expect("valid"))
                .tls_ca("ca")
                .tls_cert("cert")
                .tls_key("key"),
        ] {
            let why = check_proofs(&without).expect_err("proofs need a secret").to_string();
            assert!(why.contains("--secret-file"), "{why}");
        }
    }
}
