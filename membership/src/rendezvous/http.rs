//! The provider `http://HOST:PORT/PATH`: a registry that some node keeps (see `registrar.rs`), as its clients use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request,
    client::conn::http1::{SendRequest, handshake},
    header::{CONTENT_TYPE, ETAG, HOST, HeaderName, IF_MATCH, IF_NONE_MATCH},
};
use hyper_util::rt::TokioIo;
use membership_types::NodeId;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    clock::now_ns,
    rendezvous::{
        finder::Report,
        fixed::Lookup,
        is_reachable,
        proof::{self, Trust},
        registrar::Entry,
    },
    secret::Wallet,
    wire::shown,
};

/// The path at which nodes keep registries.
pub(crate) const PATH: &str = "/v1/rendezvous";
/// How often the registry is read by a node that is in no view, and by one that is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1500));
/// How often our own entries are renewed.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How long all questions of one round may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long all addresses of a registry together are tried, and each at the least: one that swallows what is sent to it must
/// not take the time of the others.
const CONNECTING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(250));
/// How long a founder waits for a registry that is about to begin, or that has just begun.
const START: Duration = Duration::from_secs(15);
/// How long the address of a silent holder of a slot is tried.
const TRY: Duration = Duration::from_secs(2);
/// The largest answer.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// Where a registry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRegistry {
    /// Its host; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path of the registry, without a slash at its end.
    pub path: String,
    /// Believe no answer that is not proved with the cluster's secret, not even the first one.
    pub proof: bool,
}

impl fmt::Display for HttpRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proof = if self.proof { "?proof=required" } else { "" };
        write!(f, "http://{}{}{proof}", self.authority(), self.path)
    }
}

impl HttpRegistry {
    /// Is it on this host, so that nobody is on the way to it?
    pub(crate) fn is_here(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// As it is written in URLs and in the header `Host`.
    pub(crate) fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// A node's own entries in a registry.
pub(crate) struct Client {
    at: HttpRegistry,
    trust: Trust,
    cluster: String,
    key: String,
    name: String,
    addr: SocketAddr,
    /// One conversation at a time: what is taken away is not written again by another one.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    withdrawn: bool,
    /// The slot that we hold, with its ETag.
    slot: Option<(u16, String)>,
    renewed: Option<(NodeId, u64)>,
    /// It was said that another one holds our slot too.
    slot_lost: bool,
    lookup: Lookup,
    /// The last list, with its ETag.
    list: Option<(String, BTreeSet<SocketAddr>)>,
}

static CLIENTS: AtomicU64 = AtomicU64::new(0);

#[derive(Deserialize)]
pub(crate) struct Listed {
    nodes: Vec<SocketAddr>,
    slots: BTreeMap<u16, Held>,
}

#[derive(Deserialize)]
pub(crate) struct Held {
    entry: Entry,
    stale: bool,
}

impl Listed {
    /// Where nodes may be found.
    pub(crate) fn addresses(self) -> BTreeSet<SocketAddr> {
        self.nodes.into_iter().filter(|addr| is_reachable(*addr)).collect()
    }

    /// Who holds slots below `count`, for a message to people.
    pub(crate) fn holders(&self, count: u16) -> String {
        let held = self.slots.range(..count).take(20).map(|(_, held)| held.shown());
        held.collect::<Vec<_>>().join("; ")
    }
}

impl Held {
    fn shown(&self) -> String {
        let silent = if self.stale { ", silent: DELETE its slot if it is gone for good" } else { "" };
        format!("{} at {}{silent}", shown(&self.entry.name), self.entry.addr)
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn read<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|e| io::Error::other(format!("no answer of a registry: {e}")))
    }

    fn etag(&self) -> io::Result<String> {
        self.etag.clone().ok_or_else(|| io::Error::other("the registry's answer has no ETag"))
    }

    /// What it says that went wrong.
    pub(crate) fn error(&self) -> io::Error {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let why = self.read::<Refusal>().map_or_else(|_| String::new(), |r| format!(": {}", r.error));
        let why = shown(&why);
        let hint = if self.status == 404 { "; nodes keep registries at /v1/rendezvous" } else { "" };
        io::Error::other(format!("the registry answered {}{why}{hint}", self.status))
    }
}

/// An open connection.
struct Connection<'a> {
    client: &'a Client,
    sender: SendRequest<Full<Bytes>>,
    /// Ends with this.
    _driver: JoinSet<()>,
}

#[derive(Default)]
struct Asked<'a> {
    if_match: Option<&'a str>,
    if_none_match: Option<&'a str>,
    entry: Option<&'a Entry>,
}

impl Connection<'_> {
    async fn ask(&mut self, method: Method, path: &str, asked: Asked<'_>) -> io::Result<Answer> {
        let at = &self.client.at;
        let body =
            asked.entry.map_or_else(Bytes::new, |entry| serde_json::to_vec(entry).expect("plain").into());
        let path = format!("{}/{}{path}", at.path, self.client.cluster);
        let (if_match, if_none_match) = (asked.if_match, asked.if_none_match);
        let whole =
            proof::Asked { method: method.as_str(), path: &path, if_match, if_none_match, body: &body };
        let proved = self.client.trust.ask(whole)?;
        let mut request = Request::builder()
            .method(&method)
            .uri(&path)
            .header(HOST, at.authority())
            .header(CONTENT_TYPE, "application/json");
        let proof = proved.as_ref().map(|(_, proof)| proof.as_str());
        let named = HeaderName::from_static(proof::HEADER);
        for (name, value) in [(IF_MATCH, if_match), (IF_NONE_MATCH, if_none_match), (named, proof)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body)).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(io::Error::other)?;
        let response = self.sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let header = |name: &HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (etag, proof) = (header(&ETAG), header(&HeaderName::from_static(proof::HEADER)));
        let body =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
        let body = body.to_bytes();
        let told = proof::Told { status, etag: etag.as_deref(), body: &body };
        self.client.trust.believe(proved.as_ref().map(|(proved, _)| proved), proof.as_deref(), told)?;
        Ok(Answer { status, etag, body })
    }

    async fn list(&mut self) -> io::Result<Listed> {
        let answer = self.ask(Method::GET, "", Asked::default()).await?;
        if answer.status == 200 { answer.read() } else { Err(answer.error()) }
    }

    /// Tries to put our entry into a slot. `None` if somebody else was faster.
    async fn put_slot(
        &mut self,
        slot: u16,
        entry: &Entry,
        expected: Option<&str>,
    ) -> io::Result<Option<String>> {
        let asked = Asked {
            if_match: expected,
            if_none_match: expected.is_none().then_some("*"),
            entry: Some(entry),
        };
        let answer = self.ask(Method::PUT, &format!("/slots/{slot}"), asked).await?;
        match answer.status {
            200 | 201 => answer.etag().map(Some),
            // It may have been us, if the answer to that was lost.
            412 if answer.read::<Held>().is_ok_and(|held| held.entry.key == entry.key) => {
                answer.etag().map(Some)
            }
            409 | 412 => Ok(None),
            503 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Err(answer.error()),
        }
    }
}

impl Client {
    pub(crate) fn new(
        at: &HttpRegistry,
        wallet: &Wallet,
        cluster: &str,
        name: &str,
        addr: SocketAddr,
        id: NodeId,
    ) -> Self {
        Self {
            at: at.clone(),
            trust: Trust::new(wallet, at.proof),
            cluster: cluster.to_owned(),
            key: format!("{id}.{}", CLIENTS.fetch_add(1, Ordering::Relaxed)),
            name: name.to_owned(),
            addr,
            state: Mutex::default(),
        }
    }

    fn entry(&self, id: NodeId) -> Entry {
        let (key, name) = (self.key.clone(), self.name.clone());
        Entry { key, id: id.to_string(), name, addr: self.addr, held: false }
    }

    async fn connect(&self, lookup: &mut Lookup) -> io::Result<Connection<'_>> {
        let addresses = lookup.run(&self.at.authority()).await?;
        let stream = connect(&addresses).await?;
        let (there, here) = (stream.peer_addr()?.ip(), stream.local_addr()?.ip());
        if self.addr.ip().is_loopback() && !there.is_loopback() && there != here {
            let way_out = "give --listen or --advertise an address by which other hosts reach this node";
            return Err(io::Error::other(format!("{} means nothing to other hosts: {way_out}", self.addr)));
        }
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            // What breaks is seen by who waits for an answer.
            let _broken = driver.await;
        });
        Ok(Connection { client: self, sender, _driver: tasks })
    }

    /// Takes a founder slot: the one of our address, else a free one, else one whose holder is proved to be gone.
    pub(crate) async fn take_slot(&self, count: u16, id: NodeId) -> io::Result<Option<u16>> {
        let until = Instant::now() + START;
        loop {
            let attempt = timeout(PATIENCE + TRY * 2, self.try_slots(count, id)).await;
            match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(slot) => return Ok(slot),
                Err(error) if Instant::now() >= until => return Err(error),
                // It has just begun, or is about to.
                Err(error) => tracing::debug!(%error, "the registry gives no founder slot yet"),
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    async fn try_slots(&self, count: u16, id: NodeId) -> io::Result<Option<u16>> {
        let mut state = self.state.lock().await;
        let mut connection = self.connect(&mut state.lookup).await?;
        let mut slots = connection.list().await?.slots;
        slots.retain(|slot, _| *slot < count);
        let own = slots.iter().find(|(_, held)| held.entry.addr == self.addr).map(|(slot, _)| *slot);
        let free: Vec<u16> = (0..count).filter(|slot| !slots.contains_key(slot)).collect();
        let mut taken = None;
        if let Some(slot) = own {
            taken = self.take_over(&mut connection, slot, id).await?;
        }
        for slot in free {
            if taken.is_none() {
                let etag = connection.put_slot(slot, &self.entry(id), None).await?;
                taken = etag.map(|etag| (slot, etag));
            }
        }
        if taken.is_none() {
            let gone = gone(&slots).await;
            for slot in &gone {
                if taken.is_none() && slots[slot].stale {
                    taken = self.take_over(&mut connection, *slot, id).await?;
                }
            }
            if taken.is_none() && !gone.is_empty() {
                return Err(io::Error::other("a holder of a slot is gone, but was heard of a moment ago"));
            }
        }
        let slot = taken.as_ref().map(|(slot, _)| *slot);
        state.slot = taken;
        Ok(slot)
    }

    /// Takes a slot that is held by a former process at our address, or by one that is gone.
    async fn take_over(
        &self,
        connection: &mut Connection<'_>,
        slot: u16,
        id: NodeId,
    ) -> io::Result<Option<(u16, String)>> {
        let current = connection.ask(Method::GET, &format!("/slots/{slot}"), Asked::default()).await?;
        let expected = match current.status {
            404 => None,
            200 => Some(current.etag()?),
            _ => return Err(current.error()),
        };
        let etag = connection.put_slot(slot, &self.entry(id), expected.as_deref()).await?;
        Ok(etag.map(|etag| (slot, etag)))
    }

    /// Who holds the slots, for a message to people.
    pub(crate) async fn holders(&self, count: u16) -> String {
        let listed = async { self.connect(&mut self.state.lock().await.lookup).await?.list().await };
        let Ok(Ok(listed)) = timeout(PATIENCE, listed).await else { return "unknown nodes".to_owned() };
        listed.holders(count)
    }

    /// Renews what is ours if it is time, and reads what others have registered. Gives both outcomes.
    async fn round(&self, id: NodeId) -> io::Result<(io::Result<()>, BTreeSet<SocketAddr>)> {
        let mut state = self.state.lock().await;
        if state.withdrawn {
            return Ok((Ok(()), BTreeSet::new()));
        }
        let mut connection = self.connect(&mut state.lookup).await?;
        let now = now_ns();
        let mut written = Ok(());
        if state.renewed.is_none_or(|(of, at)| of != id || now - at >= RENEWAL.as_nanos() as u64) {
            written = self.renew(&mut connection, &mut state, id).await;
            if written.is_ok() {
                state.renewed = Some((id, now));
            }
        }
        let known = state.list.as_ref().map(|(etag, _)| etag.clone());
        let asked = Asked { if_none_match: known.as_deref(), ..Asked::default() };
        let answer = connection.ask(Method::GET, "", asked).await?;
        match (answer.status, &state.list) {
            (304, Some((_, list))) => Ok((written, list.clone())),
            (200, _) => {
                let list = answer.read::<Listed>()?.addresses();
                state.list = answer.etag.map(|etag| (etag, list.clone()));
                Ok((written, list))
            }
            _ => Err(answer.error()),
        }
    }

    async fn renew(&self, connection: &mut Connection<'_>, state: &mut State, id: NodeId) -> io::Result<()> {
        let entry = self.entry(id);
        let asked = Asked { entry: Some(&entry), ..Asked::default() };
        let answer = connection.ask(Method::PUT, &format!("/nodes/{}", self.key), asked).await?;
        if !matches!(answer.status, 200 | 201) {
            return Err(answer.error());
        }
        let Some((slot, etag)) = &mut state.slot else { return Ok(()) };
        if let Some(renewed) = connection.put_slot(*slot, &entry, Some(etag)).await? {
            *etag = renewed;
            return Ok(());
        }
        // A registry that has begun anew has forgotten it.
        let held = Entry { held: true, ..entry };
        if let Some(renewed) = connection.put_slot(*slot, &held, None).await? {
            *etag = renewed;
            state.slot_lost = false;
            tracing::info!(slot, "the registry is told again that we hold a founder slot");
        } else if !state.slot_lost {
            state.slot_lost = true;
            let what = "another node holds the same founder slot: stop one of the two, and start it with --bootstrap join";
            tracing::error!(slot, "{what}");
        }
        Ok(())
    }

    /// Takes away what was registered.
    pub(crate) async fn withdraw(&self) {
        let gone = async {
            let mut state = self.state.lock().await;
            state.withdrawn = true;
            let slot = state.slot.take();
            if slot.is_none() && state.renewed.is_none() {
                return Ok(());
            }
            let mut connection = self.connect(&mut state.lookup).await?;
            let node = format!("/nodes/{}", self.key);
            connection.ask(Method::DELETE, &node, Asked::default()).await?;
            if let Some((slot, etag)) = slot {
                let asked = Asked { if_match: Some(&etag), ..Asked::default() };
                connection.ask(Method::DELETE, &format!("/slots/{slot}"), asked).await?;
            }
            io::Result::Ok(())
        };
        if let Ok(Err(error)) | Err(error) = timeout(PATIENCE, gone).await.map_err(io::Error::from) {
            tracing::debug!(%error, "what was registered stays behind: it will be ignored when it is old");
        }
    }
}

/// Connects with the first of these addresses that answers.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let share = CONNECTING.0 / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let each = share.max(CONNECTING.1);
    let mut problem = io::Error::other("its name has no address");
    for addr in addresses {
        match timeout(each, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => problem = error,
            Err(_) => problem = io::Error::other(format!("{addr} does not answer in {each:?}")),
        }
    }
    Err(problem)
}

/// The slots at whose holders' addresses nobody listens. Silence proves nothing; a refusal comes from the host itself.
async fn gone(slots: &BTreeMap<u16, Held>) -> BTreeSet<u16> {
    let mut attempts = JoinSet::new();
    for (slot, held) in slots {
        let (slot, addr) = (*slot, held.entry.addr);
        attempts.spawn(async move {
            let attempt = timeout(TRY, TcpStream::connect(addr)).await;
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            matches!(attempt, Ok(Err(error)) if refused(&error)).then_some(slot)
        });
    }
    attempts.join_all().await.into_iter().flatten().collect()
}

/// Registers the node and reads who else is registered, again and again.
pub(crate) async fn run(client: Arc<Client>, mut report: Report) {
    loop {
        match timeout(PATIENCE, client.round(report.id())).await {
            Ok(Ok((Ok(()), found))) => report.found(found),
            // Others may be found although they do not find us.
            Ok(Ok((Err(error), found))) => {
                report.so_far(found);
                report.failed(&error);
            }
            Ok(Err(error)) => report.failed(&error),
            Err(_) => report.failed(&format_args!("no answer in {PATIENCE:?}")),
        }
        report.pause(if report.seeking() { PAUSES.0 } else { PAUSES.1 }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// An address that answers nothing, for as long as these live: its queue is full.
    async fn silent() -> (SocketAddr, Socket, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&SockAddr::from(any)).and_then(|()| socket.listen(0)).expect("a free port");
        let addr = socket.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut crowd = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(addr)).await {
            crowd.push(stream.expect("it listens"));
            assert!(crowd.len() < 16, "its queue does not fill");
        }
        (addr, socket, crowd)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_leaves_time_for_the_next_one() {
        let (silent, _socket, _crowd) = silent().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let answers = listener.local_addr().expect("bound");
        let stream = timeout(PATIENCE, connect(&[silent, answers])).await.expect("in time");
        assert_eq!(stream.expect("connected").peer_addr().expect("connected"), answers);
        let why = timeout(PATIENCE, connect(&[silent])).await.expect("in time").expect_err("nobody answers");
        assert!(why.to_string().contains("does not answer"), "{why}");
    }
}
