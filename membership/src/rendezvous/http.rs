//! The provider `http://HOST:PORT/PATH`: a registry that some node keeps (see `registrar.rs`), as its clients use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use membership_types::NodeId;
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    clock::now_ns,
    rendezvous::{
        Question,
        ask::{Connection, Far, HttpRegistry},
        finder::Report,
        fixed::Lookup,
        is_reachable,
        registrar::Entry,
    },
    secret::Wallet,
    wire::shown,
};

/// How often the registry is read by a node that is in no view, and by one that is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1500));
/// How often our own entries are renewed.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How long all questions of one round may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a founder waits for a registry that is about to begin, or that has just begun.
const START: Duration = Duration::from_secs(15);
/// How long the address of a silent holder of a slot is tried.
const TRY: Duration = Duration::from_secs(2);
/// The largest answer.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// A node's own entries in a registry.
pub(crate) struct Client {
    far: Far,
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

impl Connection<'_> {
    async fn list(&mut self) -> io::Result<Listed> {
        let answer = self.ask(Question { method: "GET", ..Question::default() }).await?;
        if answer.status == 200 { answer.read() } else { Err(answer.error()) }
    }

    /// Tries to put our entry into a slot. `None` if somebody else was faster.
    async fn put_slot(
        &mut self,
        slot: u16,
        entry: &Entry,
        expected: Option<&str>,
    ) -> io::Result<Option<String>> {
        let question = Question {
            method: "PUT",
            path: &format!("/slots/{slot}"),
            if_match: expected,
            if_none_match: expected.is_none().then_some("*"),
            body: &entry.written(),
        };
        let answer = self.ask(question).await?;
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
            far: Far::new(at, wallet, cluster, MAX_ANSWER),
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
        let stream = self.far.reach(lookup).await?;
        let (there, here) = (stream.peer_addr()?.ip(), stream.local_addr()?.ip());
        if self.addr.ip().is_loopback() && !there.is_loopback() && there != here {
            let way_out = "give --listen or --advertise an address by which other hosts reach this node";
            return Err(io::Error::other(format!("{} means nothing to other hosts: {way_out}", self.addr)));
        }
        self.far.open(stream).await
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
        let question = Question { method: "GET", path: &format!("/slots/{slot}"), ..Question::default() };
        let current = connection.ask(question).await?;
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
        let question = Question { method: "GET", if_none_match: known.as_deref(), ..Question::default() };
        let answer = connection.ask(question).await?;
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
        let (path, body) = (format!("/nodes/{}", self.key), entry.written());
        let answer = connection
            .ask(Question { method: "PUT", path: &path, body: &body, ..Question::default() })
            .await?;
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
            connection.ask(Question { method: "DELETE", path: &node, ..Question::default() }).await?;
            if let Some((slot, etag)) = slot {
                let (path, if_match) = (format!("/slots/{slot}"), Some(etag.as_str()));
                connection
                    .ask(Question { method: "DELETE", path: &path, if_match, ..Question::default() })
                    .await?;
            }
            io::Result::Ok(())
        };
        if let Ok(Err(error)) | Err(error) = timeout(PATIENCE, gone).await.map_err(io::Error::from) {
            tracing::debug!(%error, "what was registered stays behind: it will be ignored when it is old");
        }
    }
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
