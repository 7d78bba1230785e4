//! A server of framed MessagePack-RPC.

use std::{collections::HashSet, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};

use super::{
    connection::Connection,
    message::{Failure, Reply, Request},
};

/// Answers requests. Every asynchronous function from a [`Request`] to a result is one.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Many calls run at the same time, also of one client.
    ///
    /// It is carried through even if the client goes away meanwhile, or its time is over: an update is never cut off half-way.
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, Failure>> + Send;
}

impl<F, A> Handler for F
where
    F: Fn(Request) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Failure>> + Send,
{
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, Failure>> + Send {
        self(request)
    }
}

/// Whether this process may carry out updates.
pub trait Office: Send + Sync + 'static {
    /// The token under which this process leads at this instant; `None` if it does not. Asked before every update, so it is to be quick.
    fn token(&self) -> Option<u64>;

    /// Who leads instead, as far as this process knows: what clients are told.
    fn hint(&self) -> LeaderHint {
        LeaderHint::default()
    }
}

/// What a server that does not lead knows of who does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderHint {
    /// The view by which it goes.
    pub epoch: Option<u64>,
    /// Where that view's leader serves, as `IP:PORT`.
    pub leader: Option<String>,
}

/// What happens to requests beyond those that may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overload {
    /// They are refused at once as `busy`; nothing was done, and reads go to another clone.
    #[default]
    Refuse,
    /// They wait: nothing more is read from their connection meanwhile. One whose time is over is refused as `late`.
    Wait,
}

/// A server that is about to start. See [`serve`].
#[must_use = "nothing is served before start()"]
pub struct Serve<H> {
    listener: TcpListener,
    shared: Shared<H>,
    connections: usize,
}

/// What all connections of a server have in common.
pub(super) struct Shared<H> {
    pub handler: H,
    pub reads: HashSet<String>,
    pub office: Option<Box<dyn Office>>,
    /// Places for requests that run.
    pub places: Arc<Semaphore>,
    pub overload: Overload,
    /// How long a peer may let a message or an answer hang.
    pub stall: Duration,
}

/// A server for everybody who connects to `listener`, each of whose requests `handler` answers.
///
/// All methods are updates, until [`Serve::reads`] says otherwise.
pub fn serve<H: Handler>(listener: TcpListener, handler: H) -> Serve<H> {
    let shared = Shared {
        handler,
        reads: HashSet::new(),
        office: None,
        places: Arc::new(Semaphore::new(1024)),
        overload: Overload::default(),
        stall: Duration::from_secs(30),
    };
    Serve { listener, shared, connections: 1024 }
}

impl<H: Handler> Serve<H> {
    /// The methods that change nothing: they are answered whether this process leads or not.
    pub fn reads<M: Into<String>>(mut self, methods: impl IntoIterator<Item = M>) -> Self {
        self.shared.reads = methods.into_iter().map(Into::into).collect();
        self
    }

    /// Refuses updates as `not-leader` while this process does not hold the office: routers and clients then send them to who
    /// does. Without it every update is carried out.
    pub fn office(mut self, office: impl Office) -> Self {
        self.shared.office = Some(Box::new(office));
        self
    }

    /// How many requests run at once, over all connections, until their answers are written; at least one. 1024 unless told otherwise.
    /// Each may have up to 16 MiB.
    pub fn at_once(mut self, requests: usize) -> Self {
        self.shared.places = Arc::new(Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS)));
        self
    }

    /// What happens to requests beyond those. They are refused unless told otherwise.
    pub fn overload(mut self, overload: Overload) -> Self {
        self.shared.overload = overload;
        self
    }

    /// How many connections there may be, at least one; the next one is told so and closed. 1024 unless told otherwise. A router makes one for
    /// each of its workers.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// How long a peer may be silent within a message, or not read an answer, before it is cut off. 30 s unless told otherwise.
    pub fn stall(mut self, stall: Duration) -> Self {
        self.shared.stall = stall;
        self
    }

    /// Serves, on this runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Server {
        let (stop, stopping) = watch::channel(None);
        let addr = self.listener.local_addr();
        let accepting =
            tokio::spawn(accept(self.listener, Arc::new(self.shared), self.connections, stopping));
        Server { addr, stop, accepting }
    }
}

/// A running server. Dropped, it ends at once; handlers that run are carried through, but answer nobody.
#[derive(Debug)]
pub struct Server {
    addr: io::Result<SocketAddr>,
    stop: watch::Sender<Option<Duration>>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system said when it was asked.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.addr.as_ref().copied().map_err(|error| error.kind().into())
    }

    /// Ends in an orderly way: accepts no more connections, refuses new requests as `stopping`, so that they go elsewhere, and closes
    /// each connection once its requests are answered and it has been quiet for a moment. Returns when all are closed; whatever is left after
    /// `grace` is cut off.
    ///
    /// A member of a group leaves that first, or steps down, so that updates have somewhere to go.
    pub async fn shutdown(self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        let _ended = self.accepting.await;
    }
}

async fn accept<H: Handler>(
    listener: TcpListener,
    shared: Arc<Shared<H>>,
    most: usize,
    mut stopping: watch::Receiver<Option<Duration>>,
) {
    let mut connections = JoinSet::new();
    let grace = loop {
        tokio::select! {
            // It changes once; or the server's handle is gone.
            _ = stopping.changed() => break *stopping.borrow(),
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() >= most => Connection::<H>::turn_away(&stream),
                Ok((stream, _)) => {
                    let connection = Connection::new(Arc::clone(&shared), stopping.clone());
                    connections.spawn(connection.serve(stream));
                }
                Err(error) => {
                    // Out of descriptors, most likely: pending connections stay in the queue meanwhile.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    };
    drop(listener);
    if let Some(grace) = grace {
        let all = async { while connections.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(grace, all).await.is_ok();
        tracing::info!(in_time, "server ends");
    }
}
