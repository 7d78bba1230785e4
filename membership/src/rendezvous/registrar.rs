//! What a node keeps for others: the registry of the provider `http:`, as a value without clock or socket.
//!
//! Below its path, for each cluster:
//!
//! | path | what |
//! | --- | --- |
//! | `CLUSTER` | GET: the addresses of all nodes, and the holders of founder slots |
//! | `CLUSTER/nodes/KEY` | GET, PUT, DELETE: one node; forgotten when it was not renewed for [`TTL`] |
//! | `CLUSTER/slots/N` | GET, PUT, DELETE: the holder of a founder slot |
//!
//! (`CLUSTER/witness/LINEAGE/CORE` is below the same path, and durable: see `witness/memory.rs`.)
//!
//! All have an ETag. PUT and DELETE obey `If-Match` and `If-None-Match: *`; a PUT of a slot must have one of them: that is
//! compare-and-set.
//!
//! A slot is *not* free because its holder was silent: the holder may be cut off from us alone, and still count as a
//! founder for the others. It changes hands only by compare-and-set, to the same address, or once it was not renewed for
//! [`TTL`]; whoever takes such a one must have found that nobody listens at the holder's address. A registry that has
//! just begun may have forgotten holders: for [`GRACE`] it gives slots only to who says that it held them before.
//!
//! Nobody is asked who it is but by `proof.rs`, which covers our own cluster alone, so strangers may take places. That of our own cluster is nobody else's. When all others are taken,
//! the cluster goes of which nothing was heard for the longest time, and for [`FORGOTTEN`] at least: then this registry is one
//! that has forgotten holders, and clusters that come to it from then on begin with [`GRACE`].

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use membership_types::Instant;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{rendezvous::is_reachable, start::is_cluster_name};

/// How long a node is listed that does not renew its entry.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// How long a fresh registry waits for those who held slots in the last one.
pub(crate) const GRACE: Duration = Duration::from_secs(4);
/// A cluster of which nothing was heard for so long makes room for another one.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// The largest body of a request.
pub(crate) const MAX_BODY: usize = 1024;
/// Besides our own.
const MAX_CLUSTERS: usize = 16;
const MAX_NODES: usize = 4096;
const MAX_SLOTS: u16 = 1000;
const MAX_KEY: usize = 64;
const MAX_NAME: usize = 128;

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What is different for every start of a process.
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) addr: SocketAddr,
    /// Of a slot: it held this one before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) held: bool,
}

impl Entry {
    /// As it travels.
    pub(crate) fn written(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts, an address and a sign")
    }
}

/// A request: what counts of it. The path is the one below the registry's own, but where it is proved: there it is whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Question<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) if_match: Option<&'a str>,
    pub(crate) if_none_match: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) body: Value,
}

impl Answer {
    fn error(status: u16, error: impl Into<String>) -> Self {
        Self { status, etag: None, body: json!({ "error": error.into() }) }
    }
}

/// All clusters.
#[derive(Debug)]
pub(crate) struct Registrar {
    began: Instant,
    /// Different for every registry, so that no ETag means anything to another one.
    mark: u64,
    version: u64,
    purged: Instant,
    clusters: BTreeMap<String, Cluster>,
    /// Clusters made room for others: whoever comes may have been forgotten.
    forgot: bool,
    /// The node that keeps this registry is always listed in its own cluster.
    own: (String, SocketAddr),
}

#[derive(Debug)]
struct Cluster {
    began: Instant,
    /// When anybody of it was heard last.
    heard: Instant,
    nodes: BTreeMap<String, Kept>,
    slots: BTreeMap<u16, Kept>,
    /// Grows with every change of what is listed.
    version: u64,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    renewed: Instant,
    version: u64,
}

impl Kept {
    fn is_stale(&self, now: Instant) -> bool {
        now - self.renewed > TTL
    }
}

impl Registrar {
    /// A fresh one; `mark` is random.
    pub(crate) fn new(mark: u64, now: Instant, cluster: &str, own: SocketAddr) -> Self {
        let own = (cluster.to_owned(), own);
        let clusters = BTreeMap::new();
        Self { began: now, mark, version: 0, purged: now, clusters, forgot: false, own }
    }

    /// The addresses of all nodes of a cluster.
    pub(crate) fn addresses(&self, cluster: &str, now: Instant) -> Vec<SocketAddr> {
        let nodes = self.clusters.get(cluster).into_iter().flat_map(|c| c.nodes.values());
        let mut found: Vec<SocketAddr> =
            nodes.filter(|kept| !kept.is_stale(now)).map(|kept| kept.entry.addr).collect();
        found.extend((self.own.0 == cluster).then_some(self.own.1));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Answers a request.
    pub(crate) fn handle(&mut self, now: Instant, question: Question<'_>) -> Answer {
        if now - self.purged >= Duration::from_secs(1) {
            self.purge(now);
        }
        let Question { path, .. } = question;
        let mut parts = path.trim_matches('/').split('/');
        let cluster = parts.next().unwrap_or_default();
        let rest: Vec<&str> = parts.collect();
        if !is_cluster_name(cluster) {
            return Answer::error(404, "give the name of a cluster: PATH/CLUSTER");
        }
        match rest[..] {
            [] => self.list(now, cluster, question),
            ["nodes", key] if is_key(key) => self.entry(now, cluster, Place::Node(key), question),
            ["slots", slot] => match slot.parse::<u16>() {
                Ok(slot) if slot < MAX_SLOTS => self.entry(now, cluster, Place::Slot(slot), question),
                _ => Answer::error(404, format!("a slot is a number below {MAX_SLOTS}")),
            },
            _ => {
                Answer::error(404, "there are PATH/CLUSTER, PATH/CLUSTER/nodes/KEY and PATH/CLUSTER/slots/N")
            }
        }
    }

    fn list(&self, now: Instant, cluster: &str, question: Question<'_>) -> Answer {
        if question.method != "GET" {
            return Answer::error(405, "a cluster can only be read: GET");
        }
        let known = self.clusters.get(cluster);
        let etag = self.etag(known.map_or(0, |c| c.version));
        if question.if_none_match == Some(&*etag) {
            return Answer { status: 304, etag: Some(etag), body: Value::Null };
        }
        let slots: BTreeMap<u16, Value> = known
            .into_iter()
            .flat_map(|c| &c.slots)
            .map(|(slot, kept)| (*slot, json!({ "entry": kept.entry, "stale": kept.is_stale(now) })))
            .collect();
        let body = json!({ "nodes": self.addresses(cluster, now), "slots": slots });
        Answer { status: 200, etag: Some(etag), body }
    }

    fn entry(&mut self, now: Instant, cluster: &str, place: Place<'_>, question: Question<'_>) -> Answer {
        let current = self.clusters.get(cluster).and_then(|c| c.get(place));
        let current = current.filter(|kept| matches!(place, Place::Slot(_)) || !kept.is_stale(now));
        let etag = current.map(|kept| self.etag(kept.version));
        let shown =
            current.map_or(Value::Null, |kept| json!({ "entry": kept.entry, "stale": kept.is_stale(now) }));
        let matches = question.if_match.is_none_or(|wanted| Some(wanted) == etag.as_deref())
            && question.if_none_match.is_none_or(|unwanted| {
                etag.is_none() || unwanted != "*" && Some(unwanted) != etag.as_deref()
            });
        match question.method {
            "GET" if current.is_none() => Answer::error(404, "there is no such entry"),
            "GET" if !matches => Answer { status: 304, etag, body: Value::Null },
            "GET" => Answer { status: 200, etag, body: shown },
            "PUT" | "DELETE" if !matches => Answer { status: 412, etag, body: shown },
            "DELETE" if current.is_none() => Answer::error(404, "there is no such entry"),
            "DELETE" => {
                self.change(cluster, |c| c.remove(place));
                Answer { status: 200, etag: None, body: json!({}) }
            }
            "PUT" => {
                let entry = match read(question.body) {
                    Ok(entry) => entry,
                    Err(problem) => return Answer::error(400, problem),
                };
                if let Some(refusal) = self.refusal(now, cluster, place, current, &entry, question) {
                    if refusal.status == 503 {
                        // So that this comes to an end.
                        self.begin(now, cluster);
                    }
                    return refusal;
                }
                self.put(now, cluster, place, entry)
            }
            _ => Answer::error(405, "there are GET, PUT and DELETE"),
        }
    }

    /// Why an entry may not be put there, though what it expects is there.
    fn refusal(
        &self,
        now: Instant,
        cluster: &str,
        place: Place<'_>,
        current: Option<&Kept>,
        entry: &Entry,
        question: Question<'_>,
    ) -> Option<Answer> {
        let known = self.clusters.get(cluster);
        if known.is_none() && !self.has_room(now, cluster) {
            let why = format!("there are {MAX_CLUSTERS} clusters here, and no place for more");
            return Some(Answer::error(507, why));
        }
        match place {
            Place::Node(key) if key != entry.key => {
                Some(Answer::error(400, "the key of the entry is not that of its path"))
            }
            Place::Node(_) if current.is_none() && known.is_some_and(|c| c.nodes.len() >= MAX_NODES) => {
                Some(Answer::error(507, format!("a cluster has at most {MAX_NODES} nodes here")))
            }
            // Any other If-None-Match compares with nothing that counts.
            Place::Slot(_) if question.if_match.is_none() && question.if_none_match != Some("*") => {
                let way_out = "If-None-Match: * takes a free one, If-Match: ETAG one that is held";
                Some(Answer::error(428, format!("a slot is taken by compare-and-set: {way_out}")))
            }
            Place::Slot(_) => match current {
                Some(kept) if kept.entry.addr != entry.addr && !kept.is_stale(now) => {
                    Some(Answer::error(409, "its holder is alive"))
                }
                None if !entry.held && self.may_have_forgotten(now, known) => {
                    let why = "the registry has just begun: those who held slots before come first";
                    Some(Answer::error(503, why))
                }
                _ => None,
            },
            Place::Node(_) => None,
        }
    }

    /// May somebody else hold slots of this cluster, of which we do not know any more?
    fn may_have_forgotten(&self, now: Instant, known: Option<&Cluster>) -> bool {
        let begins = |since| now - since < GRACE;
        begins(self.began) || self.forgot && known.is_none_or(|cluster| begins(cluster.began))
    }

    fn has_room(&self, now: Instant, cluster: &str) -> bool {
        let others = self.clusters.keys().filter(|name| **name != self.own.0).count();
        cluster == self.own.0 || others < MAX_CLUSTERS || self.silent(now).is_some()
    }

    /// The cluster of which nothing was heard for the longest time, if that is long.
    fn silent(&self, now: Instant) -> Option<String> {
        let others = self.clusters.iter().filter(|(name, _)| **name != self.own.0);
        let heard = others.map(|(name, cluster)| (cluster.heard, name)).min()?;
        (now - heard.0 >= FORGOTTEN).then(|| heard.1.clone())
    }

    /// Gives the cluster a place, if it has none: there must be room.
    fn begin(&mut self, now: Instant, cluster: &str) {
        if self.clusters.contains_key(cluster) {
            return;
        }
        let others = self.clusters.keys().filter(|name| **name != self.own.0).count();
        if cluster != self.own.0
            && others >= MAX_CLUSTERS
            && let Some(silent) = self.silent(now)
        {
            tracing::warn!(
                cluster = silent,
                "a cluster of which nothing was heard for long makes room in the registry"
            );
            self.clusters.remove(&silent);
            self.forgot = true;
        }
        let fresh =
            Cluster { began: now, heard: now, nodes: BTreeMap::new(), slots: BTreeMap::new(), version: 0 };
        self.clusters.insert(cluster.to_owned(), fresh);
    }

    fn put(&mut self, now: Instant, cluster: &str, place: Place<'_>, entry: Entry) -> Answer {
        let entry = Entry { held: false, ..entry };
        self.begin(now, cluster);
        let known = self.clusters.get_mut(cluster).and_then(|c| {
            c.heard = now;
            c.get_mut(place)
        });
        if let Some(kept) = known.filter(|kept| kept.entry == entry) {
            // It is only renewed.
            let came_back = matches!(place, Place::Node(_)) && kept.is_stale(now);
            kept.renewed = now;
            let version = kept.version;
            if came_back {
                self.change(cluster, |_| {});
            }
            return Answer { status: 200, etag: Some(self.etag(version)), body: json!({}) };
        }
        let version = self.version + 1;
        self.change(cluster, |c| c.put(place, Kept { entry, renewed: now, version }));
        Answer { status: 201, etag: Some(self.etag(version)), body: json!({}) }
    }

    fn change(&mut self, cluster: &str, change: impl FnOnce(&mut Cluster)) {
        self.version += 1;
        if let Some(known) = self.clusters.get_mut(cluster) {
            known.version = self.version;
            change(known);
        }
    }

    /// Forgets nodes that were silent for long, and clusters of which nothing is left.
    fn purge(&mut self, now: Instant) {
        self.purged = now;
        for cluster in self.clusters.values_mut() {
            let before = cluster.nodes.len();
            cluster.nodes.retain(|_, kept| !kept.is_stale(now));
            if cluster.nodes.len() != before {
                self.version += 1;
                cluster.version = self.version;
            }
        }
        // Of one that has just begun there may be more to come.
        self.clusters.retain(|_, cluster| {
            !cluster.nodes.is_empty() || !cluster.slots.is_empty() || now - cluster.began < GRACE * 2
        });
    }

    fn etag(&self, version: u64) -> String {
        format!("\"{:x}-{version:x}\"", self.mark)
    }
}

/// Where an entry lies.
#[derive(Clone, Copy)]
enum Place<'a> {
    Node(&'a str),
    Slot(u16),
}

impl Cluster {
    fn get(&self, place: Place<'_>) -> Option<&Kept> {
        match place {
            Place::Node(key) => self.nodes.get(key),
            Place::Slot(slot) => self.slots.get(&slot),
        }
    }

    fn get_mut(&mut self, place: Place<'_>) -> Option<&mut Kept> {
        match place {
            Place::Node(key) => self.nodes.get_mut(key),
            Place::Slot(slot) => self.slots.get_mut(&slot),
        }
    }

    fn put(&mut self, place: Place<'_>, kept: Kept) {
        match place {
            Place::Node(key) => self.nodes.insert(key.to_owned(), kept),
            Place::Slot(slot) => self.slots.insert(slot, kept),
        };
    }

    fn remove(&mut self, place: Place<'_>) {
        match place {
            Place::Node(key) => self.nodes.remove(key),
            Place::Slot(slot) => self.slots.remove(&slot),
        };
    }
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn read(body: &[u8]) -> Result<Entry, String> {
    if body.len() > MAX_BODY {
        return Err(format!("an entry has at most {MAX_BODY} bytes"));
    }
    let like = r#"{"key":"…","id":"…","name":"…","addr":"IP:PORT"}"#;
    let entry: Entry = serde_json::from_slice(body).map_err(|e| format!("{e}: an entry is {like}"))?;
    let addr = entry.addr;
    if !is_reachable(addr) {
        return Err(format!("{addr} is no address that others can connect to"));
    }
    let fine = is_key(&entry.key) && entry.id.len() <= MAX_KEY && entry.name.len() <= MAX_NAME;
    let fine = fine && !entry.name.chars().any(char::is_control);
    if fine {
        Ok(entry)
    } else {
        Err(format!("a key or a name is too long, or has strange characters: {like}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn registrar() -> Registrar {
        Registrar::new(7, Instant::ZERO, "own", SocketAddr::from(([10, 0, 0, 99], 1)))
    }

    fn at(s: u64) -> Instant {
        Instant::from_nanos(s * 1_000_000_000)
    }

    fn entry(n: u8) -> Entry {
        let addr = SocketAddr::from(([10, 0, 0, n], 7000));
        Entry { key: format!("k{n}"), id: format!("1.{n}"), name: format!("n{n}"), addr, held: false }
    }

    fn body(entry: &Entry) -> Vec<u8> {
        entry.written()
    }

    fn get(r: &mut Registrar, s: u64, path: &str) -> Answer {
        r.handle(at(s), Question { method: "GET", path, ..Question::default() })
    }

    fn put_node(r: &mut Registrar, s: u64, n: u8) -> u16 {
        let (path, body) = (format!("/c/nodes/k{n}"), body(&entry(n)));
        r.handle(at(s), Question { method: "PUT", path: &path, body: &body, ..Question::default() }).status
    }

    fn take(r: &mut Registrar, s: u64, slot: u16, entry: &Entry, expects: Option<&str>) -> Answer {
        let (path, body) = (format!("/c/slots/{slot}"), body(entry));
        let (if_match, if_none_match) = (expects, expects.is_none().then_some("*"));
        r.handle(at(s), Question { method: "PUT", path: &path, if_match, if_none_match, body: &body })
    }

    #[test]
    fn nodes_are_listed_until_they_are_silent_and_a_list_that_did_not_change_is_not_sent_again() {
        let mut r = registrar();
        assert_eq!((put_node(&mut r, 0, 1), put_node(&mut r, 0, 2), put_node(&mut r, 5, 2)), (201, 201, 200));
        let listed = get(&mut r, 5, "/c");
        assert_eq!(listed.body["nodes"], json!(["10.0.0.1:7000", "10.0.0.2:7000"]));
        let again = Question {
            method: "GET",
            path: "/c",
            if_none_match: listed.etag.as_deref(),
            ..Question::default()
        };
        assert_eq!(r.handle(at(6), again).status, 304);
        let after = r.handle(at(11), again);
        assert_eq!((after.status, &after.body["nodes"]), (200, &json!(["10.0.0.2:7000"])));
        let gone = Question { method: "DELETE", path: "/c/nodes/k2", ..Question::default() };
        assert_eq!((r.handle(at(11), gone).status, r.handle(at(11), gone).status), (200, 404));
        assert_eq!(get(&mut r, 11, "/c").body["nodes"], json!([]));
        assert_eq!(get(&mut r, 11, "/own").body["nodes"], json!(["10.0.0.99:1"]), "who keeps it is in it");
    }

    #[test]
    fn one_of_two_that_want_a_slot_gets_it() {
        let mut r = registrar();
        let (a, b) = (entry(1), entry(2));
        assert_eq!(take(&mut r, 1, 0, &a, None).status, 503, "others may have held it");
        assert_eq!(take(&mut r, 1, 0, &Entry { held: true, ..a.clone() }, None).status, 201);
        let refused = take(&mut r, 5, 0, &b, None);
        assert_eq!((refused.status, &refused.body["entry"]["name"]), (412, &json!("n1")));
        let held = refused.etag.expect("held");
        assert_eq!(take(&mut r, 5, 0, &b, Some(&held)).status, 409, "its holder is alive");
        assert_eq!(take(&mut r, 9, 0, &a, Some(&held)).status, 200, "renewed");
        assert_eq!(take(&mut r, 18, 0, &b, Some(&held)).status, 409, "renewed lately");
        assert_eq!(take(&mut r, 20, 0, &b, None).status, 412, "silence alone does not free it");
        let taken = take(&mut r, 20, 0, &b, Some(&held));
        assert_eq!(taken.status, 201);
        assert_eq!(
            take(&mut r, 21, 0, &a, Some(&held)).status,
            412,
            "the first holder learns that it lost it"
        );
        let restarted = Entry { key: "k9".into(), ..b.clone() };
        let etag = taken.etag.expect("held");
        assert_eq!(take(&mut r, 21, 0, &restarted, Some(&etag)).status, 201, "an address has one process");
        let gone =
            |if_match| Question { method: "DELETE", path: "/c/slots/0", if_match, ..Question::default() };
        assert_eq!(r.handle(at(21), gone(Some(&etag))).status, 412);
        assert_eq!(r.handle(at(21), gone(None)).status, 200, "people may");
        let blind = body(&a);
        let blind = Question { method: "PUT", path: "/c/slots/0", body: &blind, ..Question::default() };
        assert_eq!(r.handle(at(21), blind).status, 428);
        let vain = Question { if_none_match: Some("\"else\""), ..blind };
        assert_eq!(r.handle(at(35), vain).status, 428, "whoever compares with nothing takes nothing");
    }

    #[test]
    fn what_was_seen_at_one_registry_means_nothing_to_the_next() {
        let mut first = registrar();
        let etag = take(&mut first, 5, 0, &entry(1), None).etag.expect("taken");
        let mut second = Registrar::new(8, Instant::ZERO, "own", entry(9).addr);
        assert_eq!(take(&mut second, 5, 0, &entry(2), None).status, 201);
        assert_eq!(take(&mut second, 20, 0, &entry(1), Some(&etag)).status, 412);
    }

    #[test]
    fn numbers_and_sizes_are_bounded() {
        let mut r = registrar();
        for n in 0..=MAX_NODES {
            let entry = Entry { key: format!("n{n}"), ..entry(1) };
            let (path, body) = (format!("/c/nodes/n{n}"), body(&entry));
            let put = Question { method: "PUT", path: &path, body: &body, ..Question::default() };
            assert_eq!(r.handle(at(5), put).status, if n < MAX_NODES { 201 } else { 507 });
        }
        let mut r = registrar();
        let mut begin = |s, n| {
            let (path, body) = (format!("/c{n}/nodes/k1"), body(&entry(1)));
            r.handle(at(s), Question { method: "PUT", path: &path, body: &body, ..Question::default() })
                .status
        };
        assert!((0..MAX_CLUSTERS).all(|n| begin(5, n) == 201));
        assert_eq!(begin(5, MAX_CLUSTERS), 507);
        assert_eq!(begin(40, MAX_CLUSTERS), 201, "what is old makes room");
        let mut r = registrar();
        let long = Entry { name: "x".repeat(MAX_NAME + 1), ..entry(1) };
        let nowhere = Entry { addr: SocketAddr::from(([0, 0, 0, 0], 1)), ..entry(1) };
        let colourful = Entry { name: "\u{1b}[31m".into(), ..entry(1) };
        for (path, entry) in [
            ("/c/nodes/k1", &long),
            ("/c/nodes/k1", &colourful),
            ("/c/nodes/k1", &nowhere),
            ("/c/nodes/other", &entry(1)),
        ] {
            let body = body(entry);
            let put = Question { method: "PUT", path, body: &body, ..Question::default() };
            assert_eq!(r.handle(at(5), put).status, 400, "{path}");
        }
        for path in
            ["", "/", "/..", "/c/nodes", "/c/nodes/", "/c/nodes/a/b", "/c/slots/1000", "/c/slots/x", "/c/x"]
        {
            assert_eq!(get(&mut r, 5, path).status, 404, "{path}");
        }
        assert!(r.clusters.is_empty());
    }

    #[test]
    fn strangers_take_neither_the_place_of_our_own_cluster_nor_any_other_one_for_ever() {
        fn put(r: &mut Registrar, s: u64, path: &str, entry: &Entry) -> u16 {
            let body = body(entry);
            let free = Some("*");
            r.handle(
                at(s),
                Question { method: "PUT", path, if_match: None, if_none_match: free, body: &body },
            )
            .status
        }
        let mut r = registrar();
        let begun = |n| if n < 8 { 5 } else { 100 };
        for n in 0..MAX_CLUSTERS {
            assert_eq!(put(&mut r, begun(n), &format!("/c{n:02}/slots/0"), &entry(1)), 201);
        }
        assert_eq!(put(&mut r, 100, "/more/slots/0", &entry(1)), 507);
        assert_eq!(put(&mut r, 100, "/own/slots/0", &entry(1)), 201, "there is a place for our own");
        assert_eq!(put(&mut r, 100, "/own/nodes/k1", &entry(1)), 201);

        let hour = FORGOTTEN.as_secs();
        assert_eq!(put(&mut r, hour + 4, "/more/slots/0", &entry(1)), 507, "silence has to be long");
        assert_eq!(put(&mut r, hour + 4, "/c00/nodes/k1", &entry(1)), 201);
        assert_eq!(put(&mut r, hour + 5, "/more/slots/0", &entry(1)), 201, "the silent one makes room");
        assert!(get(&mut r, hour + 5, "/c00/slots/0").status == 200, "who has been heard stays");
        assert_eq!(get(&mut r, hour + 5, "/c01/slots/0").status, 404);
        // It comes back: who held the slot has it, and nobody else.
        assert_eq!(put(&mut r, hour + 5, "/c01/slots/0", &entry(2)), 503);
        assert_eq!(put(&mut r, hour + 8, "/c01/slots/0", &entry(2)), 503);
        assert_eq!(put(&mut r, hour + 8, "/c01/slots/0", &Entry { held: true, ..entry(1) }), 201);
        // And nobody waits for ever for who held others.
        assert_eq!(put(&mut r, hour + 9, "/c01/slots/1", &entry(2)), 201);
        assert_eq!(put(&mut r, hour + 90, "/new/slots/0", &entry(1)), 503);
        assert_eq!(put(&mut r, hour + 94, "/new/slots/0", &entry(1)), 201);
        assert_eq!(r.clusters.len(), MAX_CLUSTERS + 1);
        // Our own, which was silent as long, keeps its place.
        assert_eq!(get(&mut r, 3 * hour, "/own/slots/0").status, 200);
        for n in 0..2 * MAX_CLUSTERS {
            put(&mut r, 3 * hour, &format!("/d{n}/slots/0"), &entry(1));
        }
        assert_eq!((r.clusters.len(), r.clusters.contains_key("own")), (MAX_CLUSTERS + 1, true));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered(
            method in "GET|PUT|DELETE|POST",
            path in "(/(c|nodes|slots|[0-9]{1,6}|k1|\\PC{0,5})){0,4}",
            tag in proptest::option::of("\\*|\"7-[0-9]\"|\\PC{0,6}"),
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut r = registrar();
            put_node(&mut r, 0, 1);
            let question = Question { method: &method, path: &path, if_match: tag.as_deref(), if_none_match: None, body: &body };
            prop_assert!(r.handle(at(5), question).status >= 200);
            let question = Question { if_match: None, if_none_match: tag.as_deref(), ..question };
            prop_assert!(r.handle(at(5), question).status >= 200);
        }
    }
}
