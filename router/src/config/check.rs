//! From what is written to what can be served.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use membership_types::GroupName;
use router_proto::{
    Pmap,
    extract::{Extract, NoKey},
    frames::{KeyPaths, MAX_METHOD},
    pmap::PartitionId,
    racs::{Policy, Reads, Updates},
};
use toml::{Spanned, de::DeTable};

use super::{Auth, Protocol, RacsConfig, Service, Source, Surroundings, connections, raw, servers::duration};

/// More requests than this fit nowhere.
const MOST_REQUESTS: u32 = 10_000_000;

/// The longest time over which a server's share may grow.
const SLOWEST_START: Duration = Duration::from_secs(3600);

/// What is wrong, and where in the text.
pub(super) struct Mistake {
    pub at: Option<usize>,
    pub message: String,
}

pub(super) type Checked<T> = Result<T, Mistake>;

pub(super) fn mistake<T>(at: Range<usize>, message: impl Into<String>) -> Checked<T> {
    Err(Mistake { at: Some(at.start), message: message.into() })
}

/// Refuses with a message about this value.
pub(super) fn wrong<T, V>(value: &Spanned<V>, message: impl Into<String>) -> Checked<T> {
    mistake(value.span(), message)
}

impl From<toml::de::Error> for Mistake {
    fn from(error: toml::de::Error) -> Self {
        Self { at: error.span().map(|span| span.start), message: error.message().into() }
    }
}

/// The services, and where in the text the address of each is.
pub(super) fn config(text: &str, surroundings: Surroundings<'_>) -> Checked<(Vec<Arc<Service>>, Vec<usize>)> {
    for key in DeTable::parse(text)?.get_ref().keys() {
        let name = key.get_ref();
        if name != "service" && !surroundings.others_keys.contains(&&**name) {
            return mistake(key.span(), format!("unknown key `{name}`: services are written [[service]]"));
        }
    }
    let file: raw::File = toml::from_str(text)?;
    if file.service.is_empty() {
        return Err(Mistake { at: None, message: "no service: write at least one [[service]]".into() });
    }
    let mut services: Vec<Arc<Service>> = Vec::new();
    for written in &file.service {
        let service = service(written, surroundings)?;
        let raw = written.get_ref();
        if services.iter().any(|other| other.name == service.name) {
            return wrong(&raw.name, format!("two services are named {:?}: names must differ", service.name));
        }
        if let Some(other) = services.iter().find(|other| overlap(other.listen, service.listen)) {
            let message = format!(
                "service {:?} listens on {} already, which takes {}: give each service a port of its own",
                other.name, other.listen, service.listen
            );
            return wrong(&raw.listen, message);
        }
        services.push(Arc::new(service));
    }
    let listens = file.service.iter().map(|written| written.get_ref().listen.span().start).collect();
    Ok((services, listens))
}

fn service(written: &Spanned<raw::Service>, surroundings: Surroundings<'_>) -> Checked<Service> {
    let raw = written.get_ref();
    let name = name(&raw.name)?;
    let listen = address(&raw.listen, surroundings)?;
    let racs = raw.racs.iter().map(|racs| self::racs(racs, surroundings)).collect::<Checked<Vec<_>>>()?;
    if racs.is_empty() {
        return wrong(written, "the service has no RACS: write at least one [[service.racs]]");
    }
    for (at, one) in racs.iter().enumerate() {
        if racs[..at].iter().any(|other| other.name == one.name) {
            let message = format!("two RACS of this service are named {:?}: names must differ", one.name);
            return wrong(&raw.racs[at].get_ref().name, message);
        }
    }
    let pmap = super::pmap::pmap(&raw.pmap, &racs)?;
    let protocol = protocol(written, &pmap)?;
    if let (Some(hedge), Protocol::Tcp { .. }) = (&raw.hedge, &protocol) {
        let message = "`hedge` does not apply to tcp: nobody knows what a connection does";
        return wrong(hedge, message);
    }
    let hedge = hedge(raw.hedge.as_ref())?;
    let (tls, accept_proxy) = (connections::tls(raw.tls.as_ref())?, raw.accept_proxy);
    let forwarded = connections::forwarded(raw.forwarded.as_ref(), &raw.protocol)?;
    let trace = connections::trace(raw.trace.as_ref(), &raw.protocol)?;
    connections::send_proxy(raw, &protocol)?;
    connections::shared(raw, &protocol)?;
    let auth = match &raw.auth {
        Some(auth) if matches!(protocol, Protocol::Redis) => super::auth::auth(auth)?,
        Some(auth) => return wrong(auth, "`auth` applies to redis alone: leave it out"),
        None => Auth::default(),
    };
    let slow_start = raw.slow_start.as_ref().map(|time| duration(time, Duration::ZERO, SLOWEST_START));
    let policy = Policy {
        reads: reads(raw.reads.as_ref())?,
        updates: updates(raw.updates.as_ref())?,
        slow_start: slow_start.transpose()?.unwrap_or_default(),
        ..Policy::default()
    };
    let access_log = super::access::access_log(raw.access_log.as_ref(), &protocol)?;
    let hot_keys = super::access::hot_keys(raw.hot_keys.as_ref(), &protocol)?;
    let checks = raw.health.as_ref().map(super::health::checks).transpose()?;
    let zone = raw.zone.as_ref().map(self::name).transpose()?;
    let limits = super::limits::limits(raw.limits.as_ref(), &protocol)?;
    Ok(Service {
        name,
        listen,
        tls,
        accept_proxy,
        forwarded,
        trace,
        protocol,
        policy,
        hedge,
        deadline: connections::deadline(raw)?,
        max_in_flight: most(raw.max_in_flight.as_ref(), 1)?,
        max_in_flight_per_server: most(raw.max_in_flight_per_server.as_ref(), 1)?,
        max_waiting: most(raw.max_waiting.as_ref(), 0)?,
        limits,
        checks,
        zone,
        expose: raw.expose,
        access_log,
        hot_keys,
        auth,
        pmap: Arc::new(pmap),
        racs,
    })
}

fn protocol(written: &Spanned<raw::Service>, pmap: &Pmap) -> Checked<Protocol> {
    let raw = written.get_ref();
    let name = raw.protocol.get_ref().as_str();
    if name != "frames" {
        if let Some(methods) = &raw.read_methods {
            return wrong(methods, format!("`read_methods` does not apply to {name}: leave it out"));
        }
        if let Some(stamp) = &raw.stamp {
            return wrong(stamp, format!("`stamp` does not apply to {name}: leave it out"));
        }
    }
    match name {
        "http" => {
            let Some(key) = &raw.key else {
                return wrong(written, "`key` is missing: http needs one, such as key = \"header:x-key\"");
            };
            let extract = match Extract::compile(key.get_ref().iter()) {
                Ok(extract) => extract,
                Err(error) => return wrong(key, error.to_string()),
            };
            let no_key = no_key(raw.no_key.as_ref(), pmap)?;
            Ok(Protocol::Http { extract, no_key })
        }
        name @ ("redis" | "memcached") => {
            if let Some(key) = &raw.key {
                let message =
                    format!("`key` does not apply to {name}: a command says itself where its keys are");
                return wrong(key, message);
            }
            if let Some(no_key) = &raw.no_key {
                return wrong(no_key, format!("`no_key` does not apply to {name}: leave it out"));
            }
            if raw.expose {
                return wrong(written, format!("`expose` does not apply to {name}: replies have no headers"));
            }
            Ok(if name == "redis" { Protocol::Redis } else { Protocol::Memcached })
        }
        "frames" => frames(written, pmap),
        "tcp" => connections::tcp(written, pmap),
        unknown => {
            let message = format!("unknown protocol {unknown:?}: use http, redis, memcached, frames or tcp");
            wrong(&raw.protocol, message)
        }
    }
}

fn frames(written: &Spanned<raw::Service>, pmap: &Pmap) -> Checked<Protocol> {
    let raw = written.get_ref();
    let Some(key) = &raw.key else {
        let message = "`key` is missing: frames needs one, such as key = \"msgpack:/params/0\"";
        return wrong(written, message);
    };
    let paths = match KeyPaths::compile(key.get_ref().iter()) {
        Ok(paths) => paths,
        Err(error) => return wrong(key, error.to_string()),
    };
    if raw.expose {
        let message = "`expose` does not apply to frames: answers have no headers; \
                       stamp = true tells servers where a request was routed";
        return wrong(written, message);
    }
    let mut reads: Vec<Box<[u8]>> = Vec::new();
    for method in raw.read_methods.iter().flat_map(Spanned::get_ref) {
        let name = method.get_ref();
        if !(1..=MAX_METHOD).contains(&name.len()) {
            return wrong(method, format!("{name:?} is no name of a method: give 1 to {MAX_METHOD} bytes"));
        }
        if reads.iter().any(|read| **read == *name.as_bytes()) {
            return wrong(method, format!("the method {name:?} is listed twice: list each once"));
        }
        reads.push(name.as_bytes().into());
    }
    Ok(Protocol::Frames {
        paths,
        no_key: no_key(raw.no_key.as_ref(), pmap)?,
        reads: reads.into(),
        stamp: raw.stamp.as_ref().is_some_and(|stamp| *stamp.get_ref()),
    })
}

pub(super) fn no_key(written: Option<&Spanned<String>>, pmap: &Pmap) -> Checked<NoKey> {
    let Some(written) = written else { return Ok(NoKey::Reject) };
    match written.get_ref().as_str() {
        "reject" => Ok(NoKey::Reject),
        "source" => Ok(NoKey::Source),
        "scatter" => Ok(NoKey::Scatter),
        other => {
            let Some(name) = other.strip_prefix("partition:") else {
                let message =
                    format!("unknown no_key {other:?}: use reject, source, scatter or partition:NAME");
                return wrong(written, message);
            };
            match pmap.by_name(name) {
                Some(partition) => Ok(NoKey::Partition(partition)),
                None => {
                    let last = pmap.name(PartitionId::new(pmap.len().get() - 1));
                    let first = pmap.name(PartitionId::new(0));
                    wrong(
                        written,
                        format!("there is no partition {name:?}: they are named {first} to {last}"),
                    )
                }
            }
        }
    }
}

/// In per cent; 0 is never.
fn hedge(written: Option<&Spanned<String>>) -> Checked<u32> {
    let Some(written) = written else { return Ok(5) };
    let percent = match written.get_ref().as_str() {
        "off" => Some(0),
        text => text.strip_suffix('%').and_then(|n| n.parse().ok()).filter(|n| (1..=50).contains(n)),
    };
    match percent {
        Some(percent) => Ok(percent),
        None => wrong(
            written,
            format!(
                "hedge = {:?}: give the share of reads that may be sent twice, 1% to 50%, or off",
                written.get_ref()
            ),
        ),
    }
}

/// A limit of requests.
fn most(written: Option<&Spanned<i64>>, least: u32) -> Checked<Option<u32>> {
    let Some(written) = written else { return Ok(None) };
    match u32::try_from(*written.get_ref()).ok().filter(|most| (least..=MOST_REQUESTS).contains(most)) {
        Some(most) => Ok(Some(most)),
        None => {
            let message = format!("{} requests: give {least} to {MOST_REQUESTS}", written.get_ref());
            wrong(written, message)
        }
    }
}

fn reads(written: Option<&Spanned<String>>) -> Checked<Reads> {
    let Some(written) = written else { return Ok(Reads::default()) };
    match written.get_ref().as_str() {
        "least-loaded" => Ok(Reads::LeastLoaded),
        "leader" => Ok(Reads::Leader),
        "sticky" => Ok(Reads::Sticky),
        other => {
            wrong(written, format!("unknown choice {other:?} for reads: use least-loaded, leader or sticky"))
        }
    }
}

fn updates(written: Option<&Spanned<String>>) -> Checked<Updates> {
    let Some(written) = written else { return Ok(Updates::default()) };
    match written.get_ref().as_str() {
        "leader" => Ok(Updates::Leader),
        "any" => Ok(Updates::Any),
        other => wrong(
            written,
            format!("unknown choice {other:?} for updates: use leader, or any for stateless clones"),
        ),
    }
}

fn racs(written: &Spanned<raw::Racs>, surroundings: Surroundings<'_>) -> Checked<RacsConfig> {
    let raw = written.get_ref();
    let name = name(&raw.name)?;
    let source = match (&raw.group, &raw.servers) {
        (Some(group), Some(_)) => {
            return wrong(group, "both `group` and `servers`: clones come from one or the other");
        }
        (None, None) => {
            let message =
                format!("RACS {name:?} is empty: give servers = [\"host:port\"], or group = \"NAME\"");
            return wrong(written, message);
        }
        (Some(group), None) => {
            if let Err(error) = GroupName::new(group.get_ref()) {
                return wrong(group, error.to_string());
            }
            if !surroundings.follows_groups {
                let message = "`group` needs a rendezvous, and there is none: \
                               start with --rendezvous URL, or list servers";
                return wrong(group, message);
            }
            Source::Group(group.get_ref().as_str().into())
        }
        (None, Some(servers)) => Source::Servers(super::servers::servers(servers, &name, surroundings)?),
    };
    let send_proxy = raw.send_proxy.as_ref().is_some_and(|asked| *asked.get_ref());
    let pipeline = raw.pipeline.as_ref().map(connections::pipeline).transpose()?.unwrap_or_default();
    Ok(RacsConfig { name, source, send_proxy, pipeline })
}

/// The names of services, RACS and partitions appear in headers, JSON and metrics: they are as group names
/// are.
pub(super) fn name(written: &Spanned<String>) -> Checked<Box<str>> {
    match GroupName::new(written.get_ref()) {
        Ok(name) => Ok(name.as_str().into()),
        Err(_) => {
            let message = format!(
                "{:?} is no name: use 1 to 128 characters out of A-Z a-z 0-9 . _ : / -",
                written.get_ref()
            );
            wrong(written, message)
        }
    }
}

pub(super) fn address(written: &Spanned<String>, surroundings: Surroundings<'_>) -> Checked<SocketAddr> {
    let text = written.get_ref();
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    if text.starts_with(':') {
        let message = format!(
            "{text:?} has no host: write host:port, such as 127.0.0.1{text}, or 0.0.0.0{text} to listen everywhere"
        );
        return wrong(written, message);
    }
    if surroundings.numeric_only {
        return wrong(
            written,
            format!("{text:?} is no IP address with a port, and names are not looked up here"),
        );
    }
    match text.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(addr)) => Ok(addr),
        Ok(None) => wrong(written, format!("{text:?} has no address")),
        Err(error) => {
            wrong(written, format!("{text:?} is no address ({error}): write host:port or [v6]:port"))
        }
    }
}

/// Whether listening on both is impossible. Port 0 is any free one.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_host = a.ip() == b.ip()
        || (a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() != 0 && a.port() == b.port() && same_host
}
