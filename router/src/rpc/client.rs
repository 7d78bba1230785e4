//! A client that routes by itself: the worker of a router, whose clients are tasks of this process.

use std::{
    fmt, io,
    marker::PhantomData,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use router_proto::frames::{MAX_FRAME, Refusal, Stamp, Verdict, push_request};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    config::{Config, Protocol},
    frames::{LocalAnswer, LocalCall},
    router::{Options, lock, seed},
    table::{GroupClones, Publisher, UpdateError},
    worker::{self, Control, DoorEntry, DoorId, Entrance, Entry, Lineup, Opening, ServiceSetup, Setup},
};

/// A client of one service that knows its partition map: every request goes straight to a server of the RACS that holds its key.
///
/// It is a router without a socket in front, on a thread of its own: what it does with requests whose server fails, or of which no leader is
/// known, are the rules of the router, because it is the same code. So an update is sent once, unless a server says that it has done
/// nothing; a read is repeated on another clone.
///
/// Clones are the same client; it ends with the last of them, and with it what is under way.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    calls: mpsc::Sender<LocalCall>,
    control: mpsc::UnboundedSender<Control>,
    publisher: Mutex<Publisher>,
    /// Places for requests that are under way.
    places: Arc<Semaphore>,
}

/// Why a client did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The configuration has no service of this name.
    #[error("there is no service {name:?} in the configuration: there are {known}")]
    UnknownService {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The service speaks another protocol.
    #[error("the service {0:?} does not speak frames: give one with protocol = \"frames\"")]
    NotFrames(String),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a request has no result, and what happened to the data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request cannot be carried out as it is: it has no key, too many bytes, an unknown method. Nothing was done.
    #[error("{0}")]
    Refused(String),
    /// Nobody could take it in time. Nothing was done: it may be tried again.
    #[error("{0}")]
    Unavailable(String),
    /// Its time was over before an answer came, and it has changed nothing.
    #[error("the time for the request is over, and nothing was changed")]
    Late,
    /// It may have been carried out, or not.
    #[error("{0}")]
    Unknown(String),
    /// The server carried it out, or tried to, and says this.
    #[error("{0}")]
    Failed(ServerError),
    /// The request was carried out, and its result is of another form than expected.
    #[error("the result cannot be read: {0}")]
    Result(#[source] rmp_serde::decode::Error),
}

/// An error of the application: a MessagePack value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError(Vec<u8>);

impl ServerError {
    /// The error as a value.
    ///
    /// # Errors
    /// It is of another form.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, rmp_serde::decode::Error> {
        rmp_serde::from_slice(&self.0)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.read::<String>() {
            Ok(text) => f.write_str(&text),
            Err(_) => write!(f, "an error of the application, of {} bytes", self.0.len()),
        }
    }
}

impl Client {
    /// A client of the service of this name. Where the service listens does not matter: nobody does here.
    ///
    /// Of the options only the limits matter: at most [`Limits::pipeline`](crate::Limits::pipeline) requests are under way at once, further
    /// ones wait. RACS that follow groups have nobody until [`Client::update_group`] says who is there.
    ///
    /// # Errors
    /// See [`ClientError`]; nothing was started.
    pub fn start(config: &Config, service: &str, options: Options) -> Result<Self, ClientError> {
        let Some(at) = config.services.iter().position(|known| *known.name == *service) else {
            let known: Vec<&str> = config.services().collect();
            return Err(ClientError::UnknownService { name: service.into(), known: known.join(", ") });
        };
        let service = Arc::clone(&config.services[at]);
        if !matches!(service.protocol, Protocol::Frames { .. }) {
            return Err(ClientError::NotFrames(service.name.to_string()));
        }
        let publisher = Publisher::new(&Config { services: vec![Arc::clone(&service)], listens: Vec::new() });
        let (table, held) = (publisher.services()[0].reader(), Arc::clone(&publisher.services()[0].held));
        let most = options.limits.pipeline.clamp(1, Semaphore::MAX_PERMITS);
        // Never full: a request has its place first.
        let (calls, within) = mpsc::channel(most);
        let (control, receiver) = mpsc::unbounded_channel();
        let door = DoorEntry {
            id: DoorId(0),
            service: 0,
            entrance: Entrance::default(),
            socket: Some(Opening::Within(within)),
        };
        let services = vec![Entry::New(ServiceSetup { service, table, held, log: None })];
        let setup = Setup {
            workers: 1,
            limits: options.limits,
            seed: seed(0),
            lineup: Lineup { services, doors: vec![door] },
            open: true,
            control: receiver,
        };
        let thread = thread::Builder::new().name("rpc-client".into()).spawn(move || {
            if let Err(error) = worker::run(setup) {
                tracing::error!(%error, "client failed");
            }
        });
        thread.map_err(ClientError::Thread)?;
        let (publisher, places) = (Mutex::new(publisher), Arc::new(Semaphore::new(most)));
        Ok(Self { shared: Arc::new(Shared { calls, control, publisher, places }) })
    }

    /// Takes over a view of a group, as [`RouterHandle::update_group`](crate::RouterHandle::update_group) does.
    ///
    /// # Errors
    /// See [`UpdateError`]; then nothing has changed.
    pub fn update_group(&self, group: &str, clones: &GroupClones) -> Result<(), UpdateError> {
        lock(&self.shared.publisher).update_group(group, clones)?;
        let _ = self.shared.control.send(Control::TablesChanged); // a thread that has ended needs to be told nothing
        Ok(())
    }

    /// Sends a request and waits for its result. `params` are a tuple, or whatever else is written as an array; the key is among them.
    ///
    /// Dropping the future withdraws nothing once the request is on its way: an update may still be carried out.
    ///
    /// # Errors
    /// See [`CallError`], which says what happened to the data.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &(impl Serialize + ?Sized),
    ) -> Result<T, CallError> {
        self.request(method, params).send().await
    }

    /// A request that may be given a deadline before it is sent.
    pub fn request<T: DeserializeOwned>(&self, method: &str, params: &(impl Serialize + ?Sized)) -> Call<T> {
        let mut body = Vec::new();
        let written = write_body(&mut body, method, params);
        Call { client: self.clone(), body: written.map(|()| body), within: None, result: PhantomData }
    }
}

/// Method and parameters, as they stand in a message.
fn write_body(
    body: &mut Vec<u8>,
    method: &str,
    params: &(impl Serialize + ?Sized),
) -> Result<(), rmp_serde::encode::Error> {
    rmp_serde::encode::write(body, method)?;
    rmp_serde::encode::write_named(body, params)
}

/// A request that was not sent yet.
#[must_use = "nothing is sent before send()"]
pub struct Call<T> {
    client: Client,
    body: Result<Vec<u8>, rmp_serde::encode::Error>,
    within: Option<Duration>,
    result: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Call<T> {
    /// How long the result is waited for, from [`Call::send`] on. The server is told what is left of it if `stamp = true`.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// Sends it, and waits. See [`Client::call`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn send(self) -> Result<T, CallError> {
        let Self { client, body, within, .. } = self;
        let body = body.map_err(|error| CallError::Refused(format!("the params: {error}")))?;
        if body.len() > MAX_FRAME - 64 {
            return Err(CallError::Refused(format!("{} bytes of params: give at most 16 MiB", body.len())));
        }
        let begun = tokio::time::Instant::now();
        let places = Arc::clone(&client.shared.places).acquire_owned();
        let place = match within {
            None => places.await,
            Some(within) => tokio::time::timeout(within, places).await.map_err(|_| CallError::Late)?,
        };
        let ended = |_| CallError::Unavailable("the client has ended; nothing was done".into());
        let place = place.map_err(|_| ended(()))?;
        // Rounded up: nobody is to hear that it is late before it is.
        let left = within.map(|within| within.saturating_sub(begun.elapsed()).as_nanos().div_ceil(1_000_000));
        let stamp = left
            .map(|ms| Stamp { deadline_ms: Some(u32::try_from(ms).unwrap_or(u32::MAX)), ..Stamp::default() });
        let mut frame = Vec::with_capacity(body.len() + 32);
        push_request(&mut frame, 0, &body, stamp.as_ref());
        let (answer, answered) = oneshot::channel();
        client.shared.calls.send(LocalCall { frame, answer, place }).await.map_err(|_| ended(()))?;
        let lost =
            |_| CallError::Unknown("outcome unknown: the client ended with this request under way".into());
        read(answered.await.map_err(lost)?)
    }
}

fn read<T: DeserializeOwned>(answer: LocalAnswer) -> Result<T, CallError> {
    let said = |verdict, text: String| match verdict {
        Verdict::Refused => CallError::Refused(text),
        Verdict::Late => CallError::Late,
        Verdict::Unknown => CallError::Unknown(text),
        Verdict::Unavailable | Verdict::NotLeader | Verdict::Busy | Verdict::Stopping => {
            CallError::Unavailable(text)
        }
    };
    let body = answer.map_err(|(verdict, text)| said(verdict, text))?;
    match body.split_first() {
        Some((&NIL, result)) => rmp_serde::from_slice(result).map_err(CallError::Result),
        _ => {
            // The last byte is the result, nil.
            let error = body.strip_suffix(&[NIL]).unwrap_or(&body);
            Err(match Refusal::read(error) {
                Some(refusal) => said(refusal.verdict, refusal.error.into()),
                None => CallError::Failed(ServerError(error.into())),
            })
        }
    }
}

/// How nil is written.
const NIL: u8 = 0xc0;
