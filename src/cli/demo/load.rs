//! Clients of the demo: reads and updates through the router, over connections that stay open.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch, task::JoinSet, time::Instant};

use crate::cli::{Failure, exit};

const CLIENTS: u64 = 8;
const KEYS: u64 = 500;
/// How long a client waits for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);

/// What the clients saw.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) failed_reads: u64,
    pub(crate) updates: u64,
    /// Updates of which nobody knows whether they happened.
    pub(crate) unknown_updates: u64,
    /// Updates that certainly did not happen.
    pub(crate) refused_updates: u64,
    pub(crate) wrong_partition: u64,
    /// Which array answered for each key first; it must be the same for ever.
    homes: HashMap<u64, String>,
}

pub(crate) struct Load {
    counts: Arc<Mutex<Counts>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(router: SocketAddr) -> Self {
        let counts: Arc<Mutex<Counts>> = Arc::default();
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for n in 0..CLIENTS {
            clients.spawn(client(router, n, counts.clone(), stopped.clone()));
        }
        Self { counts, stop, clients }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn stop(mut self) -> Counts {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
        self.counts()
    }
}

/// Waits until a read of every array's keys comes through.
pub(crate) async fn until_routed(router: SocketAddr, deadline: Instant) -> Result<(), Failure> {
    let mut connection = None;
    for key in 0..64 {
        while !matches!(ask(&mut connection, router, key, false).await, Ok((200, _))) {
            if Instant::now() > deadline {
                return Err(Failure::new(exit::FAILED, "the router does not reach the servers"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn client(router: SocketAddr, n: u64, counts: Arc<Mutex<Counts>>, stopped: watch::Receiver<bool>) {
    let mut connection = None;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n + 1);
    while !*stopped.borrow() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (key, update) = (random % KEYS, random >> 32 & 3 == 0);
        let answer = ask(&mut connection, router, key, update).await;
        {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.note(key, update, answer);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Counts {
    fn note(&mut self, key: u64, update: bool, answer: Result<(u16, String), String>) {
        if update {
            self.updates += 1;
        } else {
            self.reads += 1;
        }
        match answer {
            Ok((200, array)) => {
                if *self.homes.entry(key).or_insert_with(|| array.clone()) != array {
                    self.wrong_partition += 1;
                }
            }
            Ok((503, _)) if update => self.refused_updates += 1,
            _ if update => self.unknown_updates += 1,
            Ok((status, _)) => {
                tracing::error!("a read of key {key} was answered with {status}");
                self.failed_reads += 1;
            }
            Err(error) => {
                tracing::error!("a read of key {key} failed: {error}");
                self.failed_reads += 1;
            }
        }
    }
}

type Connection = Option<SendRequest<Full<Bytes>>>;

/// One request; the status, and which array of clones answered.
async fn ask(
    to: &mut Connection,
    router: SocketAddr,
    key: u64,
    update: bool,
) -> Result<(u16, String), String> {
    let exchange = async {
        if to.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(router).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            *to = Some(sender);
        }
        let Some(sender) = to.as_mut() else { return Err("no connection".into()) };
        sender.ready().await.map_err(|e| e.to_string())?;
        let body = if update { Bytes::from(format!("{key}")) } else { Bytes::new() };
        let request = Request::builder()
            .method(if update { "PUT" } else { "GET" })
            .uri(format!("/items/{key}"))
            .header("host", router.to_string())
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok((status, body["array"].as_str().unwrap_or_default().to_owned()))
    };
    let answer = tokio::time::timeout(LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}")));
    if answer.is_err() {
        *to = None;
    }
    answer
}
