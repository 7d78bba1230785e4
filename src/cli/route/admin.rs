//! What `router` adds to the admin API: metrics, what is served where, and the order to read the configuration again.

mod hot;

use std::{fmt::Write, time::UNIX_EPOCH};

use membership::{AdminResponse, Extensions};
use router::{
    Latency, Measured, ResponseStats, RouterHandle, ServerHealth, ServerStats, ServiceStats, ServiceView,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

/// An order to go over to what is in the configuration's file now; what came of it is said here.
pub(super) type Order = oneshot::Sender<Result<Value, String>>;

/// Services with more partitions are not counted by partition in the metrics: too many series.
const PARTITIONS: usize = 256;
/// So many of the busiest partitions are in the status.
const BUSIEST: usize = 10;

/// Adds the router's part.
pub(super) fn serve(extensions: &Extensions, router: &RouterHandle, orders: mpsc::Sender<Order>) {
    let of = router.clone();
    extensions.metrics(move || {
        let router = of.clone();
        async move { text(&router.measured().await, &router.services(), &router.health()) }
    });
    let of = router.clone();
    extensions.status("router", move || {
        let router = of.clone();
        async move { standing(&router.measured().await, &router.services(), &router.health()) }
    });
    let of = router.clone();
    extensions.question("/v1/services", move |request| {
        let router = of.clone();
        async move {
            if request.method != "GET" && request.method != "HEAD" {
                return AdminResponse::error(405, "only GET and HEAD are allowed here");
            }
            let below = request.path.strip_prefix("/v1/services").unwrap_or_default();
            // A service may be called so itself.
            if let Some(name) = below.trim_matches('/').strip_suffix("/hot")
                && let Some(one) = router.services().iter().find(|service| service.name == name)
            {
                return AdminResponse::json(200, &hot::of(one, &router.measured().await));
            }
            services(&router.services(), below)
        }
    });
    extensions.action("/v1/reload", move |_| {
        let orders = orders.clone();
        async move {
            let (told, outcome) = oneshot::channel();
            if orders.send(told).await.is_err() {
                return AdminResponse::error(503, "the router is going down");
            }
            match outcome.await {
                Ok(Ok(told)) => AdminResponse::json(200, &told),
                Ok(Err(why)) => AdminResponse::error(409, why),
                Err(_) => AdminResponse::error(503, "the router is going down"),
            }
        }
    });
}

fn services(services: &[ServiceView], below: &str) -> AdminResponse {
    let below = below.trim_matches('/');
    if below.is_empty() {
        let list: Vec<Value> = services.iter().map(service).collect();
        return AdminResponse::json(200, &json!({ "services": list }));
    }
    // Names may have slashes.
    let (name, pmap) = match below.strip_suffix("/pmap") {
        Some(name) => (name, true),
        None => (below, false),
    };
    match services.iter().find(|service| service.name == name) {
        None => AdminResponse::error(404, format!("there is no service {name:?} here; see /v1/services")),
        Some(one) if pmap => AdminResponse::json(200, &self::pmap(one)),
        Some(one) => AdminResponse::json(200, &service(one)),
    }
}

fn service(service: &ServiceView) -> Value {
    let racs = service.racs.iter().map(|racs| {
        let clones: Vec<Value> = racs
            .clones
            .iter()
            .enumerate()
            .map(|(rank, clone)| {
                json!({
                    "rank": rank,
                    "name": clone.name,
                    "addr": clone.addr.to_string(),
                    "weight": clone.weight.get(),
                    "zone": clone.zone,
                    "leader": racs.leader == Some(rank),
                })
            })
            .collect();
        json!({ "name": racs.name, "group": racs.group, "epoch": racs.epoch, "clones": clones })
    });
    json!({
        "name": service.name,
        "listen": service.listen.to_string(),
        "protocol": service.protocol,
        "partitions": service.partitions.len(),
        "racs": racs.collect::<Vec<_>>(),
    })
}

fn pmap(service: &ServiceView) -> Value {
    let partition =
        |(name, racs): &(String, usize)| json!({ "name": name, "racs": service.racs[*racs].name });
    let partitions: Vec<Value> = service.partitions.iter().map(partition).collect();
    json!({ "service": service.name, "epoch": service.epoch, "partitions": partitions })
}

fn standing(measured: &Measured, views: &[ServiceView], health: &[ServerHealth]) -> Value {
    let services = measured.services.iter().map(|stats| {
        let view = views.iter().find(|view| view.name == stats.service);
        let mut told = view.map_or_else(|| json!({ "name": stats.service }), service);
        let mut busiest: Vec<(usize, u64)> = stats.partitions.iter().copied().enumerate().collect();
        busiest.sort_by_key(|(_, requests)| std::cmp::Reverse(*requests));
        let name = |at: usize| view.and_then(|view| view.partitions.get(at)).map(|(name, _)| name.as_str());
        let busiest: Vec<Value> = busiest
            .into_iter()
            .take(BUSIEST)
            .filter(|(_, requests)| *requests > 0)
            .map(|(at, requests)| json!({ "partition": name(at), "requests": requests }))
            .collect();
        told["clients"] = stats.clients.into();
        told["requests"] = stats.requests.into();
        told["waiting"] = stats.waiting.into();
        told["in_flight"] = stats.in_flight.into();
        told["unavailable"] = stats.unavailable.into();
        told["overloaded"] = stats.overloaded.into();
        told["unknown"] = stats.unknown.into();
        told["latency"] = latency(&stats.latency);
        told["busiest"] = busiest.into();
        told["hot_keys"] = hot::hottest(view, &stats.hot, BUSIEST);
        told
    });
    let servers = measured.servers.iter().map(|server| {
        json!({
            "addr": server.addr.to_string(),
            "in_flight": server.in_flight,
            "idle": server.idle,
            "circuit": circuit(server),
            "avoided_by": server.avoided_by,
            "requests": server.requests,
            "failures": server.failures,
            "responses": responses(server),
            "latency": latency(&server.latency),
        })
    });
    let checked = health.iter().map(|one| {
        let since = one.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "service": one.service,
            "addr": one.addr.to_string(),
            "up": one.up,
            "since_unix_s": since.as_secs(),
            "checks": one.checks,
            "last_error": one.last_error,
        })
    });
    json!({
        "workers": measured.workers,
        "workers_silent": measured.silent,
        "services": services.collect::<Vec<_>>(),
        "servers": servers.collect::<Vec<_>>(),
        "checked": checked.collect::<Vec<_>>(),
    })
}

/// How many answers of each class there were, by service.
fn responses(server: &ServerStats) -> Value {
    let of = |stats: &ResponseStats| {
        let classes = stats.by_class().map(|(class, count)| (class.to_owned(), count.into()));
        (stats.service.clone(), Value::Object(classes.collect()))
    };
    Value::Object(server.responses.iter().map(of).collect())
}

fn latency(latency: &Latency) -> Value {
    let us = |share| latency.quantile(share).map(|time| time.as_micros() as u64);
    json!({ "count": latency.count(), "p50_us": us(0.5), "p90_us": us(0.9), "p99_us": us(0.99) })
}

/// Whether requests go to this server, as circuit breakers have it: over all workers, each of which finds out for itself.
fn circuit(server: &ServerStats) -> &'static str {
    match (server.open_by, server.half_open_by) {
        (0, 0) => "closed",
        (0, _) => "half-open",
        _ => "open",
    }
}

/// Families of metrics, one after the other.
struct Families(String);

impl Families {
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    /// Service names have no characters that would have to be escaped; addresses neither.
    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    fn of<T>(&mut self, all: &[T], name: &str, kind: &str, help: &str, what: impl Fn(&T) -> (String, u64)) {
        self.begin(name, kind, help);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for one in all {
            let (labels, value) = what(one);
            self.sample(&format!("{name}{suffix}"), &labels, value);
        }
    }

    fn histogram<'a>(&mut self, name: &str, help: &str, all: impl Iterator<Item = (String, &'a Latency)>) {
        self.begin(name, "histogram", help);
        for (labels, latency) in all {
            for (bound, below) in latency.buckets() {
                let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
                self.sample(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), below);
            }
            self.sample(&format!("{name}_count"), &labels, latency.count());
            let _ = writeln!(self.0, "{name}_sum{{{labels}}} {}", latency.sum().as_secs_f64());
        }
    }
}

/// A metric: its name, kind and explanation, and where its value is.
type Metric<T> = (&'static str, &'static str, &'static str, fn(&T) -> u64);

/// What is counted for each service.
const BY_SERVICE: [Metric<ServiceStats>; 18] = [
    ("phalanx_router_clients", "gauge", "Clients connected", |s| s.clients),
    ("phalanx_router_clients_accepted", "counter", "Clients that were accepted", |s| s.accepted),
    ("phalanx_router_clients_shed", "counter", "Clients sent away because there were too many", |s| s.shed),
    (
        "phalanx_router_handshakes_failed",
        "counter",
        "Clients with whom no TLS session came about, or who said no PROXY header",
        |s| s.handshakes_failed,
    ),
    ("phalanx_router_requests", "counter", "Requests or commands that were routed", |s| s.requests),
    ("phalanx_router_local", "counter", "Commands that the router answered itself", |s| s.local),
    ("phalanx_router_refused", "counter", "Requests refused as malformed, or without a key", |s| s.refused),
    ("phalanx_router_retries", "counter", "Attempts beyond the first of a request", |s| s.retried),
    ("phalanx_router_hedges", "counter", "Reads sent to a second clone since the first was silent", |s| {
        s.hedged
    }),
    ("phalanx_router_waited", "counter", "Requests that had to wait for a view of their RACS", |s| s.waited),
    ("phalanx_router_waiting", "gauge", "Requests that wait for a view of their RACS", |s| s.waiting),
    ("phalanx_router_unavailable", "counter", "Requests that nobody could answer, nothing was done", |s| {
        s.unavailable
    }),
    ("phalanx_router_overloaded", "counter", "Requests refused because too many were under way", |s| {
        s.overloaded
    }),
    ("phalanx_router_in_flight", "gauge", "Requests under way", |s| s.in_flight),
    ("phalanx_router_unknown", "counter", "Updates whose outcome is unknown", |s| s.unknown),
    ("phalanx_router_unlogged", "counter", "Lines of the access log that were lost", |s| s.unlogged),
    ("phalanx_router_received_bytes", "counter", "Bytes from clients", |s| s.received),
    ("phalanx_router_sent_bytes", "counter", "Bytes to clients", |s| s.sent),
];

/// What is counted for each physical server.
const BY_SERVER: [Metric<ServerStats>; 5] = [
    ("phalanx_router_server_requests", "counter", "Attempts that went to this server", |s| s.requests),
    ("phalanx_router_server_failures", "counter", "Connections and requests that failed there", |s| {
        s.failures
    }),
    ("phalanx_router_server_in_flight", "gauge", "Requests sent and not yet answered", |s| s.in_flight),
    ("phalanx_router_server_idle_connections", "gauge", "Connections kept for later requests", |s| s.idle),
    ("phalanx_router_server_avoided", "gauge", "Workers that avoid it since it was just seen failing", |s| {
        s.avoided_by
    }),
];

/// What active checks say of each server.
const BY_CHECK: [Metric<ServerHealth>; 2] = [
    ("phalanx_router_server_up", "gauge", "1 unless active checks say that it is down", |h| h.up.into()),
    ("phalanx_router_server_checks", "counter", "Active checks of it", |h| h.checks),
];

fn text(measured: &Measured, views: &[ServiceView], health: &[ServerHealth]) -> String {
    let mut out = Families(String::new());
    let service = |stats: &ServiceStats| format!("service=\"{}\"", stats.service);
    let server = |stats: &ServerStats| format!("server=\"{}\"", stats.addr);
    for (name, kind, help, what) in BY_SERVICE {
        out.of(&measured.services, name, kind, help, |stats| (service(stats), what(stats)));
    }
    let by_service = measured.services.iter().map(|stats| (service(stats), &stats.latency));
    out.histogram(
        "phalanx_router_request_seconds",
        "From a request's head to the end of its response",
        by_service,
    );
    let name = "phalanx_router_partition_requests";
    out.begin(name, "counter", "Keys asked for, by partition, of services with at most 256");
    for stats in measured.services.iter().filter(|stats| stats.partitions.len() <= PARTITIONS) {
        let Some(view) = views.iter().find(|view| view.name == stats.service) else { continue };
        for ((partition, racs), requests) in view.partitions.iter().zip(&stats.partitions) {
            let racs = &view.racs[*racs].name;
            let labels = format!("service=\"{}\",partition=\"{partition}\",racs=\"{racs}\"", stats.service);
            out.sample(&format!("{name}_total"), &labels, *requests);
        }
    }
    for (name, kind, help, what) in BY_SERVER {
        out.of(&measured.servers, name, kind, help, |stats| (server(stats), what(stats)));
    }
    let by_server = measured.servers.iter().map(|stats| (server(stats), &stats.latency));
    out.histogram(
        "phalanx_router_server_seconds",
        "From sending a request to the end of its response",
        by_server,
    );
    let name = "phalanx_router_server_responses";
    out.begin(name, "counter", "Answers of this server, by what they say");
    for (one, stats) in
        measured.servers.iter().flat_map(|one| one.responses.iter().map(move |stats| (one, stats)))
    {
        for (class, count) in stats.by_class() {
            let labels = format!("service=\"{}\",{},class=\"{class}\"", stats.service, server(one));
            out.sample(&format!("{name}_total"), &labels, count);
        }
    }
    hot::metrics(&mut out, measured, views);
    let checked = |one: &ServerHealth| format!("service=\"{}\",server=\"{}\"", one.service, one.addr);
    for (name, kind, help, what) in BY_CHECK {
        out.of(health, name, kind, help, |one| (checked(one), what(one)));
    }
    out.begin("phalanx_router_workers", "gauge", "Worker threads");
    let _ = writeln!(out.0, "phalanx_router_workers {}", measured.workers);
    out.begin(
        "phalanx_router_tasks",
        "gauge",
        "Tasks of the workers, most of them clients and shared connections to servers",
    );
    let _ = writeln!(out.0, "phalanx_router_tasks {}", measured.tasks);
    out.begin("phalanx_router_workers_silent", "gauge", "Workers that did not say in time what they counted");
    let _ = writeln!(out.0, "phalanx_router_workers_silent {}", measured.silent);
    out.0
}
