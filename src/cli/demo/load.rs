//! Clients of the demo: reads and updates through the router, over connections that stay open.
//!
//! An update whose fate is not known is sent again with the same request id, until there is an answer.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch, task::JoinSet, time::Instant};

use super::history::History;
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
    /// Updates that had to be sent again, because nobody knew whether they had happened.
    pub(crate) repeated_updates: u64,
    /// Updates of which it never came out.
    pub(crate) unknown_updates: u64,
    /// Times that an update was refused and tried again.
    pub(crate) refused_updates: u64,
    pub(crate) history: History,
    pub(crate) wrong_partition: u64,
    /// Which array answered for each key first; it must be the same for ever.
    homes: HashMap<u64, String>,
}

pub(crate) struct Load {
    router: SocketAddr,
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
        Self { router, counts, stop, clients }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the load, and reads once more whatever was written.
    pub(crate) async fn stop(mut self) -> Counts {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
        let mut connection = None;
        let keys = self.counts().history.written();
        for key in keys {
            read(&mut connection, self.router, key, &self.counts).await;
        }
        self.counts()
    }
}

/// Waits until a read of every array's keys comes through.
pub(crate) async fn until_routed(router: SocketAddr, deadline: Instant) -> Result<(), Failure> {
    let mut connection = None;
    for key in 0..64 {
        while !matches!(ask(&mut connection, router, key, None).await, Ok(Answer { status: 200, .. })) {
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
        let key = random % KEYS;
        if random >> 32 & 3 == 0 {
            // Each key has one writer.
            update(&mut connection, router, key - key % CLIENTS + n, &counts).await;
        } else {
            read(&mut connection, router, key, &counts).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(connection: &mut Connection, router: SocketAddr, key: u64, counts: &Mutex<Counts>) {
    let floor = lock(counts).history.begin_read(key);
    let answer = ask(connection, router, key, None).await;
    let mut counts = lock(counts);
    counts.reads += 1;
    match answer {
        Ok(Answer { status: 200, array, value }) => {
            counts.answered_by(key, array);
            counts.history.end_read(key, floor, value);
        }
        Ok(Answer { status, .. }) => {
            tracing::error!("a read of key {key} was answered with {status}");
            counts.failed_reads += 1;
        }
        Err(error) => {
            tracing::error!("a read of key {key} failed: {error}");
            counts.failed_reads += 1;
        }
    }
}

/// Writes the key's next number, again and again until it is known to be done.
async fn update(connection: &mut Connection, router: SocketAddr, key: u64, counts: &Mutex<Counts>) {
    let Some(value) = lock(counts).history.begin_write(key) else { return };
    lock(counts).updates += 1;
    let deadline = Instant::now() + LIMIT;
    let mut may_be_done = false;
    loop {
        let answer = ask(connection, router, key, Some(value)).await;
        let late = Instant::now() > deadline;
        if lock(counts).note_update(key, answer, late, &mut may_be_done) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Counts {
    /// What became of an attempt to update. True if it is the last one.
    fn note_update(
        &mut self,
        key: u64,
        answer: Result<Answer, String>,
        late: bool,
        may_be_done: &mut bool,
    ) -> bool {
        match answer {
            Ok(Answer { status: 200, array, .. }) => {
                self.answered_by(key, array);
                self.history.acknowledge(key);
                return true;
            }
            Ok(Answer { status: 503, .. }) => self.refused_updates += 1,
            _ => {
                *may_be_done = true;
                self.repeated_updates += 1;
            }
        }
        if late {
            tracing::error!("an update of key {key} was not acknowledged in {LIMIT:?}");
            if *may_be_done {
                self.unknown_updates += 1;
            } else {
                self.history.take_back(key);
            }
        }
        late
    }

    fn answered_by(&mut self, key: u64, array: String) {
        if *self.homes.entry(key).or_insert_with(|| array.clone()) != array {
            self.wrong_partition += 1;
        }
    }
}

/// What the router answered.
struct Answer {
    status: u16,
    /// Which array of clones.
    array: String,
    /// The item's number; 0 for one that was never written.
    value: u64,
}

type Connection = Option<SendRequest<Full<Bytes>>>;

/// One request: a read, or an update to a number.
async fn ask(
    to: &mut Connection,
    router: SocketAddr,
    key: u64,
    update: Option<u64>,
) -> Result<Answer, String> {
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
        let body = update.map_or_else(Bytes::new, |number| Bytes::from(number.to_string()));
        let mut request = Request::builder()
            .method(if update.is_some() { "PUT" } else { "GET" })
            .uri(format!("/items/{key}"))
            .header("host", router.to_string());
        if let Some(number) = update {
            request = request.header("x-request-id", format!("{key}-{number}"));
        }
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let value = body["value"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Answer { status, array: body["array"].as_str().unwrap_or_default().to_owned(), value })
    };
    let answer = tokio::time::timeout(LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}")));
    if answer.is_err() {
        *to = None;
    }
    answer
}
