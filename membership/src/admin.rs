//! The admin API: HTTP for operators, probes and dashboards, on a thread of its own.

mod bare;
mod browsers;
mod groups;
mod page;
mod places;
mod stream;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::Future,
    io,
    net::{IpAddr, TcpListener},
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use membership_proto::entry::LEVEL;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::timeout,
};

pub use bare::AdminApi;
pub(crate) use places::{Place, Places};
pub(crate) use stream::STREAMS;

use browsers::is_of_a_page;
use stream::{Life, Stream};

use crate::{
    clock::now,
    event::standing_json,
    handshake::Versions,
    metrics::Metrics,
    node::{Command, Shared, lock},
    rendezvous::{
        MAX_BODY, Question, REGISTRY_PATH,
        proof::{self, Proved, Told},
    },
    secret::Credentials,
    status::Status,
    witness,
};

/// How long what the last events say may take to be sent when the node stops.
const FAREWELL: Duration = Duration::from_millis(300);
/// What happens to the node, as it happens.
const EVENTS_PATH: &str = "/v1/events";
/// The groups that the node knows.
const GROUPS_PATH: &str = "/v1/groups";
/// Where an operator gives up a lineage.
const FORCE_PATH: &str = "/v1/force-new";
/// A header that no page of another site may set without asking first.
const OPERATOR: &str = "x-phalanx-operator";
/// The longest request head, in bytes.
const HEAD: usize = 16 * 1024;
/// The longest body, in bytes.
const BODY: usize = 64 * 1024;
/// How long a client may take for its head, and then for its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may live, and how long that of a client who follows the events may be full: whoever wants more connects again.
const LIFE: Duration = Duration::from_secs(300);

/// A request to a route that a caller added.
#[derive(Clone, Debug)]
pub struct AdminRequest {
    /// The method, in capitals.
    pub method: String,
    /// The whole path, which begins with the route's prefix.
    pub path: String,
    /// What follows the question mark, if there is one.
    pub query: Option<String>,
    /// The body; at most 64 KiB.
    pub body: Vec<u8>,
}

/// The answer to it.
#[derive(Clone, Debug)]
pub struct AdminResponse {
    /// The HTTP status.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

impl AdminResponse {
    /// A JSON answer.
    pub fn json(status: u16, body: &Value) -> Self {
        Self { status, content_type: "application/json", body: body.to_string().into_bytes() }
    }

    /// `{"error": …}`.
    pub fn error(status: u16, error: impl Into<String>) -> Self {
        Self::json(status, &serde_json::json!({ "error": error.into() }))
    }
}

/// What comes of something that may take a while.
type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handler = Arc<dyn Fn(AdminRequest) -> Later<AdminResponse> + Send + Sync>;
type Source<T> = Arc<dyn Fn() -> Later<T> + Send + Sync>;

/// A route that a caller added.
#[derive(Clone)]
struct Route {
    handler: Handler,
    /// Whether it changes something, which only an operator on this host may.
    changes: bool,
}

/// What callers add to a node's admin API. A cheap handle.
#[derive(Clone)]
pub struct Extensions {
    routes: Arc<Mutex<BTreeMap<String, Route>>>,
    metrics: Arc<Metrics>,
    more_metrics: Arc<Mutex<Vec<Source<String>>>>,
    standing: Arc<Mutex<BTreeMap<String, Source<Value>>>>,
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.routes).keys()).finish()
    }
}

impl Extensions {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { routes: Arc::default(), metrics, more_metrics: Arc::default(), standing: Arc::default() }
    }

    /// Adds a route: `handler` answers requests for `prefix` and for everything below it (`prefix/…`), of any method. The
    /// longest prefix counts; the node's own paths go before. Adding a prefix again replaces its handler.
    ///
    /// The handler runs on the thread of the admin API: it should answer from memory.
    pub fn route(
        &self,
        prefix: &str,
        handler: impl Fn(&AdminRequest) -> AdminResponse + Send + Sync + 'static,
    ) {
        self.add(prefix, false, move |request| {
            let answer = handler(&request);
            async move { answer }
        });
    }

    /// The same, for a handler that has to ask others first.
    pub fn question<F: Future<Output = AdminResponse> + Send + 'static>(
        &self,
        prefix: &str,
        handler: impl Fn(AdminRequest) -> F + Send + Sync + 'static,
    ) {
        self.add(prefix, false, handler);
    }

    /// Adds a route that changes something: only a POST is answered, of a process on this host that has the header
    /// `x-phalanx-operator` and is no web page (nothing authenticates who asks).
    pub fn action<F: Future<Output = AdminResponse> + Send + 'static>(
        &self,
        path: &str,
        handler: impl Fn(AdminRequest) -> F + Send + Sync + 'static,
    ) {
        self.add(path, true, handler);
    }

    fn add<F: Future<Output = AdminResponse> + Send + 'static>(
        &self,
        prefix: &str,
        changes: bool,
        handler: impl Fn(AdminRequest) -> F + Send + Sync + 'static,
    ) {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        lock(&self.routes).insert(prefix.trim_end_matches('/').to_owned(), Route { handler, changes });
    }

    /// Lets a caller register its own metrics, which `/metrics` then shows.
    pub fn with_registry<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        self.metrics.with_registry(with)
    }

    /// Adds metrics that are gathered when `/metrics` is asked: whole families in the text format, each line ended.
    pub fn metrics<F: Future<Output = String> + Send + 'static>(
        &self,
        source: impl Fn() -> F + Send + Sync + 'static,
    ) {
        lock(&self.more_metrics).push(Arc::new(move || Box::pin(source())));
    }

    /// Adds a key to what `/v1/status` says.
    pub fn status<F: Future<Output = Value> + Send + 'static>(
        &self,
        key: &str,
        source: impl Fn() -> F + Send + Sync + 'static,
    ) {
        lock(&self.standing).insert(key.to_owned(), Arc::new(move || Box::pin(source())));
    }

    /// What `/metrics` shows of what is registered.
    pub fn metrics_text(&self) -> String {
        self.metrics.text()
    }

    /// What `/metrics` shows.
    async fn all_metrics(&self) -> String {
        const END: &str = "# EOF\n";
        let mut text = self.metrics.text();
        let sources = lock(&self.more_metrics).clone();
        text.truncate(text.trim_end_matches(END).len());
        for source in sources {
            text += &source().await;
        }
        text + END
    }

    async fn add_standing(&self, status: &mut Map<String, Value>) {
        let sources = lock(&self.standing).clone();
        for (key, source) in sources {
            status.insert(key, source().await);
        }
    }

    fn find(&self, path: &str) -> Option<Route> {
        let routes = lock(&self.routes);
        let found = routes.iter().rev().find(|(prefix, _)| below(path, prefix).is_some());
        found.map(|(_, route)| route.clone())
    }

    /// Answers on a path that is none of our own.
    async fn answer(&self, request: Request<Incoming>, path: &str, from: IpAddr) -> AdminResponse {
        let Some(route) = self.find(path) else {
            return AdminResponse::error(404, format!("there is no {path} here; see /v1/status"));
        };
        if route.changes
            && let Some(refusal) =
                not_by_operator(&request, from, "a POST with the header x-phalanx-operator")
        {
            return refusal;
        }
        match read(request).await {
            Ok(request) => (route.handler)(request).await,
            Err(refusal) => refusal,
        }
    }
}

/// Who answers what is asked on a connection.
pub(crate) trait Site: Send + Sync + 'static {
    /// The answer, refusals too.
    fn told(
        self: &Arc<Self>,
        request: Request<Incoming>,
        from: IpAddr,
        life: &Life,
    ) -> impl Future<Output = Response<Answer>> + Send;
}

/// Serves the admin API on a thread of its own until the node has stopped.
pub(crate) fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new().name("phalanx-admin".into()).spawn(move || {
        runtime.block_on(async {
            let mut finished = shared.finished.subscribe();
            tokio::select! {
                () = accept(listener, &shared) => {}
                _stopped = finished.wait_for(|finished| *finished) => {}
            }
            // Who follows the events hears how it ended.
            let _in_time = timeout(FAREWELL, shared.streams.acquire_many(STREAMS as u32)).await;
        });
    })?;
    Ok(())
}

async fn accept<T: Site>(listener: TcpListener, site: &Arc<T>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the admin API cannot be served");
            return;
        }
    };
    let places = Places::new();
    loop {
        let (stream, from) = match listener.accept().await {
            // Of a socket for both families IPv4 looks like IPv6.
            Ok((stream, from)) => (stream, from.ip().to_canonical()),
            Err(error) => {
                // Most often too many open files: waiting is all that helps.
                tracing::warn!(%error, "the admin API cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (site, place) = (Arc::clone(site), places.take().await);
        tokio::spawn(async move { converse(stream, &site, from, &place).await });
    }
}

/// Answers what comes on one connection, from this address.
pub(crate) async fn converse<S: AsyncRead + AsyncWrite + Unpin, T: Site>(
    stream: S,
    site: &Arc<T>,
    from: IpAddr,
    place: &Place,
) {
    let life = Life::begin();
    let service = service_fn(|request| answer(request, site, from, &life, place));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // What goes wrong on a connection is the client's affair.
        _outcome = connection => {}
        () = life.over() => {}
        () = place.makes_room() => {}
    }
}

/// All that is known at once, or what happens from now on.
pub(crate) type Answer = Either<Full<Bytes>, Stream>;

async fn answer<T: Site>(
    request: Request<Incoming>,
    site: &Arc<T>,
    from: IpAddr,
    life: &Life,
    place: &Place,
) -> Result<Response<Answer>, Infallible> {
    place.serves();
    // Who asks so gets no body, of whatever is followed either.
    let is_head = request.method() == Method::HEAD;
    let answer = site.told(request, from, life).await;
    if is_head || matches!(answer.body(), Either::Left(_)) {
        place.waits();
    }
    Ok(answer)
}

impl Site for Shared {
    async fn told(
        self: &Arc<Self>,
        request: Request<Incoming>,
        from: IpAddr,
        life: &Life,
    ) -> Response<Answer> {
        if let Some(refusal) = browsers::refusal(request.headers(), from) {
            return respond(refusal).map(Either::Left);
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads && request.uri().path() == EVENTS_PATH {
            return match stream::follow(self, life) {
                Ok(events) => events.map(Either::Right),
                Err(refusal) => respond(refusal).map(Either::Left),
            };
        }
        whole(request, self, from).await.map(Either::Left)
    }
}

async fn whole(request: Request<Incoming>, shared: &Shared, from: IpAddr) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if path == FORCE_PATH {
        return respond(force_new(request, shared, from).await);
    }
    if let Some(below) = below(&path, REGISTRY_PATH) {
        if let Some((cluster, below)) = below.trim_matches('/').split_once("/witness/") {
            return as_witness(request, cluster, below, shared, from).await;
        }
        return registry(request, below, shared, from).await;
    }
    if is_own(&path) {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return only_read();
        }
        if path == "/" {
            return page::page();
        }
        return respond(own_answer(&path, request.uri().query(), shared).await);
    }
    respond(shared.extensions.answer(request, &path, from).await)
}

fn only_read() -> Response<Full<Bytes>> {
    let mut response = respond(AdminResponse::error(405, "only GET and HEAD are allowed here"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn prometheus(text: String) -> AdminResponse {
    AdminResponse {
        status: 200,
        content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
        body: text.into_bytes(),
    }
}

/// What follows a prefix that ends there, or at a slash.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Why somebody may not change anything. Nothing authenticates who asks, so it must be somebody on this host, and no page in
/// somebody's browser, which cannot send our header without being allowed to first (and see `browsers.rs`).
fn not_by_operator(request: &Request<Incoming>, from: IpAddr, instead: &str) -> Option<AdminResponse> {
    let headers = request.headers();
    if request.method() != Method::POST {
        return Some(AdminResponse::error(405, format!("only POST is allowed here: use {instead}")));
    }
    if !from.is_loopback() {
        let why = format!("only a process on this very host may do this: there, use {instead}");
        return Some(AdminResponse::error(403, why));
    }
    if is_of_a_page(headers) || !headers.contains_key(OPERATOR) {
        return Some(AdminResponse::error(403, format!("not from a web page: use {instead}")));
    }
    None
}

/// An operator gives up the lineage.
async fn force_new(request: Request<Incoming>, shared: &Shared, from: IpAddr) -> AdminResponse {
    if let Some(refusal) = not_by_operator(&request, from, "`phalanx force-new --from ADDR`") {
        return refusal;
    }
    let body = match read(request).await {
        Ok(request) => request.body,
        Err(refusal) => return refusal,
    };
    let lineage =
        serde_json::from_slice::<Value>(&body).ok().and_then(|v| v["lineage"].as_str().map(str::to_owned));
    let Some(lineage) = lineage else {
        return AdminResponse::error(
            400,
            "the body must be {\"lineage\": …}, the one that is given up; see /v1/status",
        );
    };
    let Some(commands) = shared.commands.get().and_then(|commands| commands.upgrade()) else {
        return AdminResponse::error(503, "the node has stopped, or has not begun");
    };
    let (done, outcome) = oneshot::channel();
    let sent = timeout(PATIENCE, commands.send(Command::ForceNew { lineage, from, done })).await;
    drop(commands);
    if !matches!(sent, Ok(Ok(()))) {
        return AdminResponse::error(503, "the node has stopped, or does not take commands");
    }
    match timeout(PATIENCE, outcome).await {
        Ok(Ok(Ok(lineage))) => AdminResponse::json(200, &json!({ "lineage": lineage.to_string() })),
        Ok(Ok(Err(why))) => AdminResponse::error(409, why),
        _ => AdminResponse::error(504, "the node did not say what came of it: see /v1/status"),
    }
}

/// What the header of a request proves, if anything; or why it is refused.
fn proved(
    shared: &Shared,
    from: IpAddr,
    below: &str,
    header: Option<&str>,
    asked: Question<'_>,
) -> Result<Option<Proved>, AdminResponse> {
    let Credentials::Secret(secret) = shared.wallet.get() else { return Ok(None) };
    let proved = header.map(|header| Proved::read(&secret, header, asked)).transpose();
    let proved = proved.map_err(|why| AdminResponse::error(401, why))?.flatten();
    if proved.is_none() && must_be_proved(&shared.cluster, from, asked.method, below) {
        let what = "slots and the witness of this cluster are written by who holds its secret";
        let way_out = "start the node with its --secret-file, or ask on the agent's own host";
        return Err(AdminResponse::error(401, format!("{what}: {way_out}")));
    }
    Ok(proved)
}

/// Slots and claims of our own cluster are written by who holds its secret: all its nodes do. Of other clusters' secrets we know
/// nothing. People on this host may, as they may force.
fn must_be_proved(own: &str, from: IpAddr, method: &str, below: &str) -> bool {
    let (cluster, rest) = below.trim_matches('/').split_once('/').unwrap_or_default();
    let counts = rest.starts_with("slots/") || rest.starts_with("witness/");
    cluster == own && counts && matches!(method, "PUT" | "DELETE") && !from.is_loopback()
}

/// Proves an answer, where its request was proved.
async fn with_proof(proved: Option<&Proved>, response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let Some(proved) = proved else { return response };
    let (mut head, body) = response.into_parts();
    let Ok(body) = body.collect().await.map(|body| body.to_bytes());
    let etag = head.headers.get(ETAG).and_then(|etag| etag.to_str().ok());
    let proof = proved.answer(Told { status: head.status.as_u16(), etag, body: &body });
    let proof = HeaderValue::from_str(&proof).expect("hexadecimal digits");
    head.headers.insert(proof::HEADER, proof);
    Response::from_parts(head, Full::new(body))
}

/// What this node keeps for others that look for their cluster.
async fn registry(
    request: Request<Incoming>,
    path: &str,
    shared: &Shared,
    from: IpAddr,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    // A name that is made to point here gets a page past the rules for other sites; a browser still says that it is one.
    if matches!(head.method, Method::PUT | Method::DELETE) && is_of_a_page(&head.headers) {
        return respond(AdminResponse::error(403, "a registry is written by nodes, and not from a web page"));
    }
    let body = match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return respond(AdminResponse::error(413, format!("an entry has at most {MAX_BODY} bytes")));
        }
        Err(_) => return respond(AdminResponse::error(408, "the body did not come in time")),
    };
    let header = |name: HeaderName| {
        head.headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("no text"))
    };
    let (method, if_match, if_none_match) = (head.method.as_str(), header(IF_MATCH), header(IF_NONE_MATCH));
    let question = Question { method, path, if_match, if_none_match, body: &body };
    let asked = Question { path: head.uri.path(), ..question };
    let proved = match proved(shared, from, path, header(HeaderName::from_static(proof::HEADER)), asked) {
        Ok(proved) => proved,
        Err(refusal) => return respond(refusal),
    };
    let answer = lock(&shared.registrar).handle(now(), question);
    let mut response = respond(AdminResponse::json(answer.status, &answer.body));
    if answer.status == 304 {
        *response.body_mut() = Full::default();
    }
    if let Some(etag) = answer.etag.and_then(|etag| HeaderValue::from_str(&etag).ok()) {
        response.headers_mut().insert(ETAG, etag);
    }
    with_proof(proved.as_ref(), response).await
}

/// What this node keeps for clusters whose witness it is.
async fn as_witness(
    request: Request<Incoming>,
    cluster: &str,
    below: &str,
    shared: &Shared,
    from: IpAddr,
) -> Response<Full<Bytes>> {
    // Even a GET makes a memory where there is none.
    if is_of_a_page(request.headers()) {
        return respond(AdminResponse::error(403, "a witness is asked by nodes, and not from a web page"));
    }
    let header =
        request.headers().get(proof::HEADER).map(|proof| proof.to_str().unwrap_or("no text").to_owned());
    let AdminRequest { method, path, body, .. } = match read(request).await {
        Ok(request) => request,
        Err(refusal) => return respond(refusal),
    };
    let asked = Question { method: &method, path: &path, body: &body, ..Question::default() };
    let at = format!("{cluster}/witness/{below}");
    let proved = match proved(shared, from, &at, header.as_deref(), asked) {
        Ok(proved) => proved,
        Err(refusal) => return respond(refusal),
    };
    let answer = told_as_witness(shared, cluster, below, &method, &body).await;
    with_proof(proved.as_ref(), respond(answer)).await
}

async fn told_as_witness(
    shared: &Shared,
    cluster: &str,
    below: &str,
    method: &str,
    body: &[u8],
) -> AdminResponse {
    let Some(stores) = &shared.stores else {
        return AdminResponse::error(
            501,
            "this agent keeps nothing over a restart, so it is no witness: start it with --data-dir",
        );
    };
    let question = match witness::question(method, below, body) {
        Ok(question) => question,
        Err((status, why)) => return AdminResponse::error(status, why),
    };
    match stores.answer(cluster, question).await {
        Ok(answer) => AdminResponse::json(200, &witness::written(&answer)),
        Err((status, why)) => AdminResponse::error(status, why),
    }
}

async fn read(request: Request<Incoming>) -> Result<AdminRequest, AdminResponse> {
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().map(str::to_owned);
    let body = Limited::new(request.into_body(), BODY).collect();
    match timeout(PATIENCE, body).await {
        Ok(Ok(body)) => Ok(AdminRequest { method, path, query, body: body.to_bytes().into() }),
        Ok(Err(_)) => {
            Err(AdminResponse::error(413, format!("a body has at most {BODY} bytes, and must be whole")))
        }
        Err(_) => Err(AdminResponse::error(408, "the body did not come in time")),
    }
}

fn respond(answer: AdminResponse) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        hyper::StatusCode::from_u16(answer.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

/// The node's own paths, besides those that others may change.
fn is_own(path: &str) -> bool {
    matches!(path, "/" | "/healthz" | "/readyz" | "/metrics" | "/v1/status" | "/v1/view" | EVENTS_PATH)
        || below(path, GROUPS_PATH).is_some()
}

async fn own_answer(path: &str, query: Option<&str>, shared: &Shared) -> AdminResponse {
    match path {
        "/healthz" => AdminResponse::json(200, &json!({ "ok": true })),
        "/readyz" => {
            let status = shared.status();
            let ready = status.is_ready();
            let why = match (ready, &status.blocked, &status.view) {
                (true, ..) => None,
                (false, Some(why), _) => Some(why.clone()),
                (false, None, None) => Some("in no view yet".to_owned()),
                (false, None, Some(_)) => Some("no valid lease".to_owned()),
            };
            AdminResponse::json(if ready { 200 } else { 503 }, &json!({ "ready": ready, "why": why }))
        }
        "/metrics" => prometheus(shared.extensions.all_metrics().await),
        "/v1/view" => AdminResponse::json(200, &view_json(&shared.status())),
        _ => match below(path, GROUPS_PATH).map(|below| below.strip_prefix('/').unwrap_or_default()) {
            Some("") => groups::list(shared, query).await,
            Some(name) => groups::one(shared, name).await,
            None => {
                let mut status = status_json(shared, &shared.full_status());
                if let Value::Object(status) = &mut status {
                    shared.extensions.add_standing(status).await;
                }
                AdminResponse::json(200, &status)
            }
        },
    }
}

fn status_json(shared: &Shared, status: &Status) -> Value {
    let view = status.view.as_deref();
    let by = shared.wallet.get().means();
    json!({
        "node": &*shared.name,
        "id": status.id.to_string(),
        "cluster": shared.cluster,
        "listen": shared.listen.to_string(),
        "advertise": shared.advertise.to_string(),
        "admin": shared.admin.map(|a| a.to_string()),
        "data_dir": shared.data_dir.as_ref().map(|dir| dir.display().to_string()),
        "labels": shared.labels,
        "bootstrap": shared.bootstrap,
        "guarantees": shared.guarantees,
        "phase": status.phase,
        "ready": status.is_ready(),
        "blocked": status.blocked,
        "lineage": status.lineage.map(|l| l.to_string()),
        "view": view.map(|v| v.id.get()),
        "rank": view.and_then(|v| v.rank_of(status.id)).map(|r| r.get()),
        "nodes": view.map(|v| v.members.len()),
        "coordinator": status.coordinator.map(|c| name_of(status, c)),
        "versions": { "min": Versions::OURS.min, "max": Versions::OURS.max },
        "witness": shared.witness_at.as_ref().map(|at| witness_json(shared, status, &at.to_string())),
        "level": { "agreed": status.level, "understood": LEVEL },
        "links": { "sealed": by.is_some(), "by": by },
        "core": status.core.iter().map(|id| name_of(status, *id)).collect::<Vec<_>>(),
        "lease_until_ns": status.lease_until_ns,
        "now_ns": crate::clock::now_ns(),
        "groups": status.groups.keys().map(|g| g.as_str()).collect::<Vec<_>>(),
        "states": status.groups.iter().filter_map(|(name, g)| Some((name.to_string(), standing_json(g.state.as_ref()?)))).collect::<Map<_, _>>(),
        "leading": status.groups.iter().filter(|(_, g)| g.leading.is_some()).map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
    })
}

/// The witness: what it calls its memory, what the core in force was made with, and whether it answered when it was last asked.
fn witness_json(shared: &Shared, status: &Status, at: &str) -> Value {
    let standing = lock(&shared.witness).clone();
    json!({
        "at": at,
        "epoch": standing.epoch.map(|epoch| epoch.to_string()),
        "epoch_of_core": status.epoch.map(|epoch| epoch.to_string()),
        "answers": standing.answered_ns.is_some() && standing.problem.is_none(),
        "answered_ns": standing.answered_ns,
        "problem": standing.problem,
    })
}

fn name_of(status: &Status, id: membership_types::NodeId) -> String {
    let known = status.view.as_ref().and_then(|v| v.node(id));
    known.map_or_else(|| id.to_string(), |n| n.name.to_string())
}

fn view_json(status: &Status) -> Value {
    let Some(view) = &status.view else { return json!({ "view": null, "members": [] }) };
    let members: Vec<Value> = view
        .members
        .iter()
        .enumerate()
        .map(|(rank, node)| {
            json!({
                "rank": rank,
                "node": &*node.name,
                "id": node.id.to_string(),
                "addr": node.addr.to_string(),
                "core": status.core.contains(&node.id),
                "coordinator": status.coordinator == Some(node.id),
                "self": node.id == status.id,
            })
        })
        .collect();
    json!({
        "view": view.id.get(),
        "prev": view.prev.get(),
        "lineage": status.lineage.map(|l| l.to_string()),
        "members": members,
    })
}

/// Group names may have slashes and colons, which some clients write as %2F and %3A.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|h| h.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_that_are_no_escapes_stay() {
        assert_eq!(percent_decoded("a%2Fb%3ac%"), "a/b:c%");
        assert_eq!(percent_decoded("%zz%2"), "%zz%2");
        assert_eq!(percent_decoded("%+1"), "%+1", "a number may have a sign, an escape may not");
    }

    #[test]
    fn what_is_believed_of_our_own_cluster_is_written_from_elsewhere_only_with_its_secret() {
        let far = |method, below| must_be_proved("c", IpAddr::from([10, 0, 0, 7]), method, below);
        for below in ["/c/slots/0", "/c/slots/0/", "c/witness/5-0000000000000def/1"] {
            assert!(far("PUT", below) && far("DELETE", below) && !far("GET", below), "{below}");
            assert!(!must_be_proved("c", IpAddr::from([127, 0, 0, 1]), "PUT", below), "{below}");
            assert!(!must_be_proved("d", IpAddr::from([10, 0, 0, 7]), "PUT", below), "{below}");
        }
        assert!(!far("PUT", "/c/nodes/k") && !far("PUT", "/c") && !far("PUT", ""), "what is only probed");
    }

    #[tokio::test]
    async fn the_longest_route_answers_and_neighbours_do_not() {
        let extensions = Extensions::new(Arc::new(Metrics::new()));
        for prefix in ["/v1/services", "/v1/services/kv"] {
            let body = prefix.to_owned();
            extensions.route(prefix, move |_| AdminResponse::error(200, body.clone()));
        }
        let body = async |path: &str| {
            let request =
                AdminRequest { method: "GET".into(), path: String::new(), query: None, body: Vec::new() };
            let answer = (extensions.find(path)?.handler)(request).await;
            Some(String::from_utf8(answer.body).expect("JSON"))
        };
        assert_eq!(body("/v1/services/kv/pmap").await.expect("kv"), r#"{"error":"/v1/services/kv"}"#);
        assert_eq!(body("/v1/services/other").await.expect("all"), r#"{"error":"/v1/services"}"#);
        assert_eq!(body("/v1/servicesx").await, None);
    }

    #[tokio::test]
    async fn what_callers_count_stands_before_the_end_of_the_metrics() {
        let extensions = Extensions::new(Arc::new(Metrics::bare()));
        assert_eq!(extensions.all_metrics().await, "# EOF\n");
        extensions.metrics(|| async { "# TYPE x gauge\nx 1\n".to_owned() });
        assert_eq!(extensions.all_metrics().await, "# TYPE x gauge\nx 1\n# EOF\n");
    }
}
