//! The admin API of a process without a node: what the process itself adds, and whether it is there and ready.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use http_body_util::Either;
use hyper::{Method, Request, Response, body::Incoming};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::{
    AdminResponse, Answer, Extensions, Life, Site, accept, browsers, only_read, prometheus, respond,
};
use crate::{StartError, metrics::Metrics, start};

/// An admin API without a node: `/healthz`, `/readyz`, `/metrics`, `/v1/status`, and what is added to it.
///
/// It serves on a thread of its own until this is dropped, with the limits and the protections of a node's.
pub struct AdminApi {
    bare: Arc<Bare>,
    addr: SocketAddr,
    _serves: oneshot::Sender<()>,
}

struct Bare {
    extensions: Extensions,
    ready: AtomicBool,
}

impl AdminApi {
    /// Listens on `addr`; beyond loopback only where the network is trusted (`insecure`), since it authenticates
    /// nobody.
    ///
    /// # Errors
    /// The address is not to be had, or reachable from elsewhere.
    pub fn start(addr: SocketAddr, insecure: bool) -> Result<Self, StartError> {
        Self::start_on(Self::socket(addr, insecure, None)?)
    }

    /// The socket that an admin API is served on at this address: one that another process listens on so far, if it is given.
    ///
    /// # Errors
    /// As [`AdminApi::start`].
    pub fn socket(
        addr: SocketAddr,
        insecure: bool,
        given: Option<TcpListener>,
    ) -> Result<TcpListener, StartError> {
        start::admin_listener(addr, insecure, given)
    }

    /// As [`AdminApi::start`], on such a socket.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn start_on(listener: TcpListener) -> Result<Self, StartError> {
        let addr = listener.local_addr().map_err(StartError::System)?;
        let extensions = Extensions::new(Arc::new(Metrics::bare()));
        let bare = Arc::new(Bare { extensions, ready: AtomicBool::new(true) });
        let (serves, stopped) = oneshot::channel();
        serve(listener, Arc::clone(&bare), stopped).map_err(StartError::System)?;
        Ok(Self { bare, addr, _serves: serves })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What callers add to it.
    pub fn extensions(&self) -> &Extensions {
        &self.bare.extensions
    }

    /// Says whether the process is to be asked for its work: what `/readyz` answers. It is, at first.
    pub fn set_ready(&self, ready: bool) {
        self.bare.ready.store(ready, Relaxed);
    }
}

fn serve(listener: TcpListener, bare: Arc<Bare>, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new().name("phalanx-admin".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = accept(listener, &bare) => {}
                _dropped = stopped => {}
            }
        });
    })?;
    Ok(())
}

impl Site for Bare {
    async fn told(
        self: &Arc<Self>,
        request: Request<Incoming>,
        from: IpAddr,
        _life: &Life,
    ) -> Response<Answer> {
        if let Some(refusal) = browsers::refusal(request.headers(), from) {
            return respond(refusal).map(Either::Left);
        }
        let path = request.uri().path().to_owned();
        let own = matches!(&*path, "/healthz" | "/readyz" | "/metrics" | "/v1/status");
        if own && !matches!(*request.method(), Method::GET | Method::HEAD) {
            return only_read().map(Either::Left);
        }
        let answer = match &*path {
            "/healthz" => AdminResponse::json(200, &json!({ "ok": true })),
            "/readyz" => {
                let ready = self.ready.load(Relaxed);
                let why = (!ready).then_some("it is going down");
                AdminResponse::json(if ready { 200 } else { 503 }, &json!({ "ready": ready, "why": why }))
            }
            "/metrics" => prometheus(self.extensions.all_metrics().await),
            "/v1/status" => {
                let mut status = Map::new();
                self.extensions.add_standing(&mut status).await;
                AdminResponse::json(200, &Value::Object(status))
            }
            _ => self.extensions.answer(request, &path, from).await,
        };
        respond(answer).map(Either::Left)
    }
}
