//! `inventory`: a replicated store of items over HTTP, which the demo clones. `GET /items/K` reads, `PUT /items/K` writes.
//!
//! Every clone holds all items of its array. An update goes to the leader, which proposes it to all; it is acknowledged once
//! all clones hold it. A read may go to any clone: it waits until that clone has applied everything that was acknowledged
//! anywhere, and so sees it. An update may carry an `x-request-id`; one that was applied already is answered again, and not
//! applied twice.
//!
//! With `--data-dir` it is acknowledged only once a majority of the clones' directories has it on disk, too.

mod items;

use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hasher},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use membership::{
    Copied, Leadership, NodeId, ProposeError, Replica, ReplicaBuilder, ReplicaError, ReplicatedState,
    Standing,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use self::items::{Items, Write, Written};
use super::{
    Failure, Outcome, events, files,
    flags::NodeFlags,
    node::{LEAVE_LIMIT, Stops, not_joined, start},
    output,
    run::resolve,
};

/// A replicated inventory over HTTP: one clone of an array, whose group is the array's name.
///
/// GET /items/KEY reads, PUT /items/KEY writes (at the leader; an x-request-id makes it safe to repeat).
///
/// With --data-dir the items are kept in DIR/state, too: what is acknowledged is on the disks of a majority of the clones, and
/// is there again after all of them lost power. Without it, it lives as long as one clone does that has it.
///
/// Example, three times: phalanx inventory --group stock --serve 127.0.0.1:0 --rendezvous file:/tmp/rdv
#[derive(Args)]
pub(crate) struct Inventory {
    /// Where to serve; port 0 stands for any free one.
    #[arg(long, value_name = "ADDR")]
    serve: SocketAddr,
    /// Where routers and clients reach that; needed where --serve is for all interfaces. Port 0 stands for its port [default: as
    /// --serve].
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// The array of clones that it belongs to; every answer names it.
    #[arg(long, value_name = "NAME", default_value = "inventory")]
    group: String,
    /// With --data-dir: with how many clones' directories the array is to begin. While those that are there are empty, none
    /// begins with nothing before more than half of so many are there [default: N of --bootstrap expect=N; needed without that].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    directories: Option<u64>,
    /// With --data-dir: go on with what this clone's directory has, although most of the directories that hold the items are
    /// missing. What only those have is given up, and they are refused when they come back.
    #[arg(long)]
    accept_stale_state: bool,
    /// A TOML file with these settings.
    #[arg(long, env = "PHALANX_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeFlags,
}

/// The longest value.
const LONGEST: usize = 64 << 10;
/// The longest key, and the longest name of a request.
const LONGEST_NAME: usize = 512;
const LOST: &str = "the items are lost: the clones that had them are gone";
/// How long a read waits for this clone to catch up, and an update for its body, and then for its fate.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many connections are served at once, if so many files may be open; the next ones wait in the listen queue.
const CONNECTIONS: usize = 1024;
/// How long a connection may wait for the head of a request: longer than a router keeps it for the next one.
const IDLE: Duration = Duration::from_secs(60);
/// The longest request head, in bytes.
const HEAD: usize = 16 * 1024;
/// Between attempts to accept connections when that fails.
const PAUSE: Duration = Duration::from_millis(200);

impl ReplicatedState for Items {
    type Answer = Option<Written>;

    fn apply(&mut self, _from: NodeId, command: &[u8]) -> Option<Written> {
        Some(self.write(serde_json::from_slice(command).ok()?))
    }

    fn snapshot(&self) -> Bytes {
        self.bytes().into()
    }

    fn copy(&self) -> Copied {
        let copy = self.clone();
        Box::new(move || copy.snapshot())
    }

    fn fingerprint(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.bytes());
        Some(hasher.finish())
    }

    fn restore(&mut self, snapshot: &[Bytes]) -> Result<(), String> {
        *self = Self::read(&snapshot.concat())?;
        Ok(())
    }
}

/// What requests are answered with.
struct Clone {
    array: String,
    replica: Replica<Items>,
    leadership: watch::Receiver<Option<Leadership>>,
}

impl Inventory {
    pub(crate) fn configure(&mut self) -> Result<Option<tracing::Level>, Failure> {
        self.node.complete(self.config.as_deref())
    }

    pub(crate) async fn run(self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        let listener = TcpListener::bind(self.serve)
            .await
            .map_err(|e| Failure::usage(format!("--serve {}: {e}", self.serve)))?;
        let endpoint = endpoint(self.endpoint.as_deref(), listener.local_addr()?)?.to_string();
        let kept = self.node.data_dir().map(|dir| dir.join("state"));
        let directories = self.directories.or(self.node.founders());
        if kept.is_none() && (self.accept_stale_state || self.directories.is_some()) {
            let why =
                "--directories and --accept-stale-state are about what is on disk: give --data-dir, too";
            return Err(Failure::usage(why));
        }
        if kept.is_some() && directories.is_none() {
            let why = "--data-dir: with how many clones' directories is the array to begin? Give --directories N (or --bootstrap \
                expect=N) at all clones: else one whose directory is empty could begin without what the others have";
            return Err(Failure::usage(why));
        }
        let started = stops.unless(start(self.node, true, true)).await?;
        let Some(node) = started else { return Ok(0) };
        let mut builder = ReplicaBuilder::new(&node, &self.group).endpoint(endpoint);
        if let (Some(dir), Some(directories)) = (kept, directories) {
            builder =
                builder.data_dir(dir).directories(directories).accept_stale_state(self.accept_stale_state);
        }
        let joined = async {
            builder.join(Items::default()).await.map_err(|e| match e {
                ReplicaError::DataDir(why) => Failure::usage(format!("--data-dir: {why}")),
                other => Failure::usage(other.to_string()),
            })
        };
        let Some(replica) = stops.unless(joined).await? else {
            node.leave().await;
            return Ok(0);
        };
        let printer = tokio::spawn(events::print_all(node.all_events(), json));
        let (lead, leadership) = watch::channel(None);
        let group = replica.membership().clone();
        let follower = tokio::spawn(async move {
            while let Ok(leadership) = group.until_leader().await {
                lead.send_replace(Some(leadership.clone()));
                leadership.lost().await;
                lead.send_replace(None);
            }
        });
        let clone = Rc::new(Clone { array: self.group, replica, leadership });
        let local = tokio::task::LocalSet::new();
        let serve = local.run_until(serve(listener, Rc::clone(&clone)));
        let outcome: Outcome = tokio::select! {
            outcome = serve => outcome,
            failure = not_joined(&node) => Err(failure),
            () = stops.told() => Ok(0),
        };
        // Out of the routers' sight first; a cluster that is blocked lets nobody out of a group.
        let _blocked = timeout(LEAVE_LIMIT / 4, clone.replica.membership().leave()).await;
        let _late = timeout(LEAVE_LIMIT / 2, node.leave()).await;
        follower.abort();
        // What nobody reads by then is lost, which is said at the end.
        let _unread = timeout(output::PATIENCE, printer).await;
        outcome
    }
}

/// What the other members and routers are told.
fn endpoint(given: Option<&str>, serves: SocketAddr) -> Result<SocketAddr, Failure> {
    match given {
        Some(given) => resolve(given, serves.port()),
        None if serves.ip().is_unspecified() => Err(Failure::usage(format!(
            "--endpoint: needed because --serve {serves} is for all interfaces: say by which address others reach it"
        ))),
        None => Ok(serves),
    }
}

async fn serve(listener: TcpListener, clone: Rc<Clone>) -> Outcome {
    let places = Arc::new(Semaphore::new(CONNECTIONS.min(files::for_clients())));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(0) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most often too many open files: waiting is all that helps.
                tracing::warn!(%error, "cannot accept connections");
                sleep(PAUSE).await;
                continue;
            }
        };
        let clone = Rc::clone(&clone);
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| answer(request, Rc::clone(&clone)));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEAD);
            if stream.set_nodelay(true).is_ok() {
                // A client that goes away is its own business.
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, clone: Rc<Clone>) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.uri().path().strip_prefix("/items/").map(str::to_owned);
    let (status, mut body) = match (request.method().clone(), key) {
        (_, None) => (StatusCode::NOT_FOUND, json!({"error": "there is only /items/KEY"})),
        (Method::GET, Some(key)) => clone.get(&key).await,
        (Method::PUT, Some(key)) => clone.put(key, request).await,
        _ => (StatusCode::METHOD_NOT_ALLOWED, json!({"error": "GET or PUT"})),
    };
    body["array"] = json!(clone.array);
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert("retry-after", hyper::header::HeaderValue::from_static("1"));
    }
    Ok(response)
}

impl Clone {
    async fn get(&self, key: &str) -> (StatusCode, Value) {
        // A clone that has just come gets the items first.
        if !matches!(timeout(PATIENCE, self.replica.until_caught_up()).await, Ok(Ok(()))) {
            let why = match self.replica.standing() {
                Standing::Waiting { why } | Standing::Refused { why } => why,
                Standing::Lost => LOST.into(),
                _ => "this clone does not know what others have acknowledged".into(),
            };
            return (StatusCode::SERVICE_UNAVAILABLE, json!({"error": why}));
        }
        let item = self.replica.read(|items| items.items.get(key).cloned());
        let (value, version) = item.map_or((None, 0), |item| (Some(item.value), item.version));
        (StatusCode::OK, json!({"key": key, "value": value, "version": version}))
    }

    async fn put(&self, key: String, request: Request<Incoming>) -> (StatusCode, Value) {
        let id = request.headers().get("x-request-id").map(|id| id.to_str().map(str::to_owned));
        let Ok(id) = id.transpose() else {
            return (
                StatusCode::BAD_REQUEST,
                json!({"error": "x-request-id: give visible ASCII characters"}),
            );
        };
        let body = match timeout(PATIENCE, Limited::new(request.into_body(), LONGEST).collect()).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, json!({"error": "64 KiB at most"})),
            Err(_) => {
                return (StatusCode::REQUEST_TIMEOUT, json!({"error": "the body did not come in time"}));
            }
        };
        let Ok(value) = String::from_utf8(body.to_bytes().into()) else {
            return (StatusCode::BAD_REQUEST, json!({"error": "values are text in UTF-8"}));
        };
        if key.len().max(id.as_ref().map_or(0, String::len)) > LONGEST_NAME {
            let why = format!("a key and an x-request-id have {LONGEST_NAME} bytes at most");
            return (StatusCode::BAD_REQUEST, json!({"error": why}));
        }
        let leads = self.leadership.borrow().as_ref().is_some_and(|leads| leads.act("put").is_some());
        if !leads {
            let why = "this clone does not lead: nothing was done";
            return (StatusCode::SERVICE_UNAVAILABLE, json!({"error": why}));
        }
        match self.replica.standing() {
            Standing::Waiting { why } | Standing::Refused { why } => {
                let why = format!("nothing was done: {why}");
                return (StatusCode::SERVICE_UNAVAILABLE, json!({"error": why}));
            }
            Standing::Lost => {
                let why = format!("nothing was done: {LOST}");
                return (StatusCode::SERVICE_UNAVAILABLE, json!({"error": why}));
            }
            Standing::Kept { here, of, enough: false } => {
                let why = format!("nothing was done: only {here} of {of} data directories are here");
                return (StatusCode::SERVICE_UNAVAILABLE, json!({"error": why}));
            }
            _ => {}
        }
        let write = Write { key, value, request: id };
        let command = serde_json::to_vec(&write).expect("texts");
        match timeout(PATIENCE, self.replica.propose(command)).await {
            Ok(Ok(Some(Written::Done { version, repeated }))) => {
                (StatusCode::OK, json!({"key": write.key, "version": version, "repeated": repeated}))
            }
            Ok(Ok(Some(Written::Full))) => (StatusCode::INSUFFICIENT_STORAGE, json!({"error": "full"})),
            Ok(Err(ProposeError::NotSent(why))) => {
                (StatusCode::SERVICE_UNAVAILABLE, json!({"error": format!("nothing was done: {why}")}))
            }
            Ok(Ok(None)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": "the update was not understood"}))
            }
            Ok(Err(why)) => (StatusCode::BAD_GATEWAY, json!({"error": why.to_string()})),
            Err(_) => (StatusCode::BAD_GATEWAY, json!({"error": "the update's fate is not known in time"})),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: &str, value: &str, request: Option<&str>) -> Vec<u8> {
        let write = Write { key: key.into(), value: value.into(), request: request.map(Into::into) };
        serde_json::to_vec(&write).expect("texts")
    }

    fn done(version: u64, repeated: bool) -> Option<Written> {
        Some(Written::Done { version, repeated })
    }

    #[test]
    fn what_is_told_of_a_clone_is_an_address_that_others_can_connect_to() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let of = |given, serves| endpoint(given, at(serves)).map_err(|failure| failure.to_string());
        assert_eq!(of(None, "10.0.0.1:80"), Ok(at("10.0.0.1:80")));
        assert_eq!(of(Some("10.0.0.2:81"), "0.0.0.0:80"), Ok(at("10.0.0.2:81")));
        assert_eq!(of(Some("10.0.0.2:0"), "0.0.0.0:80"), Ok(at("10.0.0.2:80")));
        for serves in ["0.0.0.0:80", "[::]:80"] {
            let why = of(None, serves).expect_err("nobody can connect to it");
            assert!(why.contains("--endpoint: needed"), "{why}");
            let why = of(Some(serves), serves).expect_err("nobody can connect to it");
            assert!(why.contains("give one of this machine"), "{why}");
        }
    }

    #[test]
    fn a_repeated_request_is_answered_and_not_applied_again() {
        let (mut items, me) = (Items::default(), NodeId::new(1, 1));
        assert_eq!(items.apply(me, &write("k", "1", Some("a"))), done(1, false));
        assert_eq!(items.apply(me, &write("k", "2", Some("b"))), done(2, false));
        assert_eq!(items.apply(me, &write("k", "1", Some("a"))), done(1, true));
        assert_eq!(items.items["k"].value, "2");
        assert_eq!(items.apply(me, b"nonsense"), None);
        let mut other = Items::default();
        other.restore(&[items.snapshot()]).expect("a snapshot");
        assert_eq!(other, items);
        assert_eq!(other.apply(me, &write("k", "2", Some("b"))), done(2, true));
        let impossible = [
            &b"{"[..],
            br#"{"items":{"k":{"value":"","version":18446744073709551615}},"requests":{},"order":[]}"#,
            br#"{"items":{},"requests":{"a":1},"order":[]}"#,
            br#"{"items":{},"requests":{"a":1},"order":["a","a"]}"#,
        ];
        for snapshot in impossible {
            assert!(other.restore(&[Bytes::from_static(snapshot)]).is_err());
        }
        assert_eq!(other.apply(me, &write("k", "2", Some("b"))), done(2, true), "what was there stays");
    }
}
