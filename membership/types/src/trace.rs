//! What happened, as records that one checker judges: from the simulator, from tests with real processes,
//! from production.
//!
//! One record is one JSON object on a line. `Cfg` comes first and `End` last; `seq` grows by one per
//! source, so that a lost record is seen. The predicates over these records are in `tests/checker/SPEC.md`.
//!
//! ```text
//! {"v":1,"src":"h","seq":7,"t":81200000,"ev":"Link","a":3,"b":1,"state":"cut"}
//! {"v":1,"src":"p:1.9f2","seq":41,"t":81930211,"ev":"Install","p":[1,2546],"g":0,"lin":"c0","vid":12,
//!  "members":[[1,2546],[2,77]],"prev":11,"trans":[[1,2546]]}
//! ```

use alloc::{borrow::Cow, boxed::Box, collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Ballot, GroupName, Lineage, NodeId, Token, ViewId, id::hex};

/// The version of the record format.
pub const VERSION: u8 = 1;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub v: u8,
    /// Who says so.
    pub src: Source,
    /// Grows by one with every record of this source, from 0 or 1.
    pub seq: u64,
    /// Nanoseconds on the run's one clock: virtual time in the simulator, `CLOCK_BOOTTIME` in processes.
    pub t: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Who emits a record. Fault events are believed only from the harness, outcomes only from clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// `h`: the harness, which injects faults.
    Harness,
    /// `p:NODE.INC`: a process under test.
    Process(Process),
    /// `c:ID`: a client.
    Client(Arc<str>),
    /// `r:ID`: a resource that checks tokens.
    Resource(Arc<str>),
}

/// The text names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a source: expected h, p:NODE.INC (decimal node, hexadecimal incarnation), c:ID or r:ID")]
pub struct ParseSourceError;

impl FromStr for Source {
    type Err = ParseSourceError;
    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        if text == "h" {
            return Ok(Self::Harness);
        }
        match text.split_once(':') {
            Some(("p", id)) => {
                let (node, inc) = id.split_once('.').ok_or(ParseSourceError)?;
                let node = node.parse().map_err(|_| ParseSourceError)?;
                let inc = u64::from_str_radix(inc, 16).map_err(|_| ParseSourceError)?;
                Ok(Self::Process(Process(node, inc)))
            }
            Some(("c", id)) if !id.is_empty() => Ok(Self::Client(id.into())),
            Some(("r", id)) if !id.is_empty() => Ok(Self::Resource(id.into())),
            _ => Err(ParseSourceError),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = ParseSourceError;
    fn try_from(text: String) -> Result<Self, ParseSourceError> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        alloc::format!("{source}")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Harness => f.write_str("h"),
            Self::Process(p) => write!(f, "p:{}.{:x}", p.0, p.1),
            Self::Client(id) => write!(f, "c:{id}"),
            Self::Resource(id) => write!(f, "r:{id}"),
        }
    }
}

/// A process instance, written `[node, inc]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process(pub u64, pub u64);

impl From<NodeId> for Process {
    fn from(id: NodeId) -> Self {
        Self(u64::from(id.node()), id.inc())
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.0, self.1)
    }
}

/// A group in a trace: 0 is the cluster; a group is named by its name (or a number, in traces of others).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Group {
    /// By number; 0 is the cluster itself.
    Number(u64),
    /// By name.
    Name(Arc<str>),
}

impl Group {
    /// The cluster, group 0.
    pub const CLUSTER: Self = Self::Number(0);
}

impl Default for Group {
    fn default() -> Self {
        Self::CLUSTER
    }
}

impl From<&GroupName> for Group {
    fn from(name: &GroupName) -> Self {
        Self::Name(name.as_str().into())
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(0) => f.write_str("cluster"),
            Self::Number(n) => write!(f, "group {n}"),
            Self::Name(name) => write!(f, "group {name}"),
        }
    }
}

/// A token as `[lineage number, view, sub]`; the lineage travels beside it, so the first part is 0 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tok(pub u64, pub u64, pub u64);

impl Tok {
    /// The view in which the reign began.
    pub const fn vid(self) -> u64 {
        self.1
    }
}

impl From<Token> for Tok {
    fn from(token: Token) -> Self {
        Self(0, token.get(), 0)
    }
}

/// A message as `[node, inc, n]`: its sender, and its number among the sender's messages to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mid(pub u64, pub u64, pub u64);

impl Mid {
    /// The sender.
    pub const fn sender(self) -> Process {
        Process(self.0, self.1)
    }
}

impl fmt::Display for Mid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.sender(), self.2)
    }
}

/// A ballot as `[round, [node, inc]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bal(pub u64, pub Process);

impl From<Ballot> for Bal {
    fn from(ballot: Ballot) -> Self {
        Self(ballot.round, ballot.node.into())
    }
}

/// What a run promises: timing, founding rule and the bounds of the liveness predicates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cfg {
    /// The lease L, in nanoseconds.
    pub lease: u64,
    /// The bound on clock drift, as a fraction.
    pub rho: f64,
    /// The heartbeat interval, in nanoseconds.
    #[serde(default)]
    pub hb: u64,
    /// `expect` when founding needs a majority of slots, `alone-after` where any node may found after a while
    /// (then S1-S8 hold per lineage only). Absent means `expect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<String>,
    /// The founder slots under `expect`, by node number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<u64>,
    /// How many members the core has (K).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u64>,
    /// Founder slots have data directories, in which ids are set aside before they are given.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub durable: bool,
    /// There is a witness.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub witness: bool,
    /// Bounds B1..B9 in nanoseconds, by name; what is absent follows from the lease. Also the plain numbers `k`, `c`, `m`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bounds: BTreeMap<String, u64>,
}

/// Every event of the vocabulary that this build emits or judges.
///
/// `P` in a name's comment is the process that the event is about; for taps it is the emitter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ev")]
#[allow(missing_docs, reason = "field names are the vocabulary of SPEC.md; the variants say what they mean")]
pub enum Event {
    // Harness.
    /// The run's configuration; the first record.
    Cfg(Cfg),
    /// A process instance starts.
    Start { p: Process },
    /// A process instance is gone for good.
    Crash { p: Process, how: Cow<'static, str> },
    /// A process is stopped (SIGSTOP, freezer) ...
    Pause { p: Process },
    /// ... and continued.
    Resume { p: Process },
    /// A process gets this part of a processor, until it is told otherwise or for a while.
    Starve { p: Process, quota: f64 },
    /// A process lacks something for a while: memory, or room for open files.
    Lack { p: Process, what: Cow<'static, str> },
    /// The directed link from node `a` to node `b` changes.
    Link {
        a: u64,
        b: u64,
        state: LinkState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        par: Option<String>,
    },
    /// A clock is tampered with, or its rate is told.
    Clock {
        p: Process,
        kind: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        par: Option<f64>,
    },
    /// Global stabilisation time: from here on no fault is injected. `core` lists who is up and connected; `apart` pairs of
    /// them that never reach each other, in one direction at least.
    #[serde(rename = "GST")]
    Gst {
        core: Vec<Process>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        apart: Vec<(Process, Process)>,
        /// The epoch of the witness, if all in `core` reach it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        witness: Option<String>,
    },
    /// The last record; a trace without it is truncated.
    End {},

    // Membership taps.
    /// P asks to join the cluster (`g` 0) or a group.
    Join {
        p: Process,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
    },
    /// P leaves the cluster or a group of its own will (step-down is `Leave`, then `Join`).
    Leave {
        p: Process,
        #[serde(default)]
        g: Group,
    },
    /// P installs a view. `idx` is the log entry that made it; `snap` says it came by a snapshot, so that
    /// `prev` is the view's, not P's own.
    Install {
        p: Process,
        #[serde(default)]
        g: Group,
        lin: Lin,
        vid: u64,
        members: Vec<Process>,
        prev: u64,
        #[serde(default)]
        trans: Vec<Process>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        idx: Option<u64>,
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        snap: bool,
    },
    /// An observer P learns a view of a group that it is not in.
    Watch {
        p: Process,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
        vid: u64,
        members: Vec<Process>,
        prev: u64,
    },
    /// P learns that it was removed.
    Evicted { p: Process, vid: u64 },
    /// P takes the order `op` of somebody at the IP address `who`.
    Admin { p: Process, op: String, who: String },
    /// P met Q on a connection, and Q showed the cluster's key: by a certificate that says that it is the node of this name, or
    /// by the secret.
    Auth {
        p: Process,
        q: Process,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// An operator gives up the lineage `from` of P for the new one `lin`.
    Force { p: Process, from: Lin, lin: Lin },
    /// P suspects Q.
    Suspect { p: Process, q: Process, why: Cow<'static, str> },
    /// P withdraws a suspicion.
    Unsuspect { p: Process, q: Process },
    /// P has no valid lease any more: it is silent until its next `Install` or `Primary`.
    NoPrimary { p: Process },
    /// P's lease is valid again, in the same view.
    Primary { p: Process },
    /// The core in force from entry `idx` on, by rank (the first is its senior).
    Core {
        lin: Lin,
        idx: u64,
        members: Vec<Process>,
        /// Where a witness records halves of it: the entry that put it in force, and the epoch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warrant: Option<(u64, String)>,
    },
    /// The witness has recorded this half of the core that entry `core` put in force, under this epoch.
    Witness { lin: Lin, core: u64, epoch: String, half: Vec<Process> },
    /// P, a core member, accepts the entry `digest` at `idx` under `ballot`.
    Accept {
        p: Process,
        lin: Lin,
        idx: u64,
        ballot: Bal,
        digest: Box<str>,
        /// The core that the entry puts in force, if it changes the core.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        core: Option<Vec<Process>>,
        /// Under which epoch a witness will record halves of that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
    },
    /// P promises to accept nothing below `ballot`.
    Promise { p: Process, lin: Lin, ballot: Bal },
    /// P grants the coordinator `to` authority until `until` (run's clock, as the granter bounds it).
    Grant { p: Process, to: Process, until: u64 },
    /// P has proof that Q is dead. `leased`: P held an unexpired lease when the proof came.
    Proof {
        p: Process,
        q: Process,
        how: Cow<'static, str>,
        #[serde(default)]
        leased: bool,
    },
    /// P's lease ran out.
    LeaseEnd { p: Process },

    // Multicast.
    /// P sends a message to the group, in its view `vid`.
    Mcast {
        p: Process,
        #[serde(default)]
        g: Group,
        lin: Lin,
        vid: u64,
        mid: Mid,
        cls: Cow<'static, str>,
        h: Digest,
    },
    /// P delivers a message in its view `vid`, at place `tseq` of the view's sequence, if it has one.
    Deliver {
        p: Process,
        #[serde(default)]
        g: Group,
        lin: Lin,
        vid: u64,
        mid: Mid,
        h: Digest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tseq: Option<u64>,
    },
    /// P knows that every member holds a message.
    Stable {
        p: Process,
        #[serde(default)]
        g: Group,
        lin: Lin,
        vid: u64,
        mid: Mid,
    },
    /// The state of P's application before any message of view `vid`, in a few words.
    AppState {
        p: Process,
        #[serde(default)]
        g: Group,
        lin: Lin,
        vid: u64,
        digest: Box<str>,
    },
    /// P sends nothing more until it installs a view: `vid`, or a later one.
    Block {
        p: Process,
        #[serde(default)]
        g: Group,
        lin: Lin,
        vid: u64,
    },

    // Leadership.
    /// P begins to act for the group under a token.
    LeadStart {
        p: Process,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
        tok: Tok,
    },
    /// P acted as leader.
    LeadAct {
        p: Process,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
        tok: Tok,
        #[serde(default)]
        op: Cow<'static, str>,
    },
    /// P stopped acting; nothing was done under the token after `until`, if that is given.
    LeadEnd {
        p: Process,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
        tok: Tok,
        why: Cow<'static, str>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
    },
    /// A resource was asked to act under a token, and did (`ok`) or refused.
    Effect {
        r: Arc<str>,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
        tok: Tok,
        p: Process,
        #[serde(default)]
        op: Cow<'static, str>,
        ok: bool,
    },
    /// A client asked who leads, and was told `p` under `tok`.
    WhoLeads {
        c: Arc<str>,
        #[serde(default)]
        g: Group,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lin: Option<Lin>,
        p: Process,
        tok: Tok,
    },
}

/// What a directed link does to messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words say it")]
pub enum LinkState {
    Ok,
    Cut,
    Loss,
    Delay,
    Dup,
    Reorder,
    Corrupt,
}

/// A lineage in a trace. It is a word there; those of our own making are kept as what they mean, so that records cost no
/// text before they are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lin {
    /// Written as [`Lineage`]s are.
    Own(Lineage),
    /// Any other word.
    Word(Box<str>),
}

/// What stands for the bytes of a message, in a trace: a word, kept as [`Lin`] is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// Written with 16 hexadecimal digits.
    Own(u64),
    /// Any other word.
    Word(Box<str>),
}

impl From<&str> for Lin {
    fn from(word: &str) -> Self {
        word.parse().map_or_else(|_| Self::Word(word.into()), Self::Own)
    }
}

impl From<&str> for Digest {
    fn from(word: &str) -> Self {
        let own = if word.len() == 16 { hex(word) } else { None };
        own.map_or_else(|| Self::Word(word.into()), Self::Own)
    }
}

impl fmt::Display for Lin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(lineage) => lineage.fmt(f),
            Self::Word(word) => f.write_str(word),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(number) => write!(f, "{number:016x}"),
            Self::Word(word) => f.write_str(word),
        }
    }
}

impl Default for Lin {
    fn default() -> Self {
        Self::Word(Box::default())
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::Word(Box::default())
    }
}

/// What they have in common: from text, and to it.
macro_rules! word {
    ($word:ident) => {
        impl From<String> for $word {
            fn from(word: String) -> Self {
                word.as_str().into()
            }
        }

        impl Serialize for $word {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $word {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(<Cow<'_, str>>::deserialize(deserializer)?.as_ref().into())
            }
        }
    };
}

word!(Lin);
word!(Digest);

impl From<Lineage> for Lin {
    fn from(lineage: Lineage) -> Self {
        Self::Own(lineage)
    }
}

/// How a lineage is written in a trace.
pub fn lin(lineage: Lineage) -> Lin {
    lineage.into()
}

/// The number of a view, or 0 for none.
pub fn vid(view: ViewId) -> u64 {
    view.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec};

    fn record(event: Event) -> Record {
        Record { v: VERSION, src: Source::Process(Process(1, 0x9f2)), seq: 41, t: 81_930_211, event }
    }

    #[test]
    fn words_are_written_as_they_were_read() {
        let own = Lineage::new(0x1f, 7);
        assert_eq!(Lin::from(own.to_string()), Lin::Own(own));
        assert_eq!(Digest::from("00000000000000ff"), Digest::Own(255));
        let long = "11111111111111111-0000000000000007";
        for word in [
            "",
            "c0",
            "-",
            "1f-7",
            "01f-0000000000000007",
            "1F-0000000000000007",
            "1f-000000000000000G",
            long,
        ] {
            assert_eq!(Lin::from(word), Lin::Word(word.into()));
            assert_eq!(Digest::from(word), Digest::Word(word.into()));
        }
        for word in
            ["c0", "0-0000000000000000", "1f-0000000000000007", "00000000000000ff", "0x000000000000ff"]
        {
            assert_eq!(
                (Lin::from(word).to_string(), Digest::from(word).to_string()),
                (word.into(), word.into())
            );
            let json = serde_json::to_string(&Lin::from(word)).expect("JSON");
            assert_eq!(serde_json::from_str::<Lin>(&json).expect("a word"), Lin::from(word));
        }
    }

    #[test]
    fn a_record_reads_as_the_vocabulary_says() {
        let install = record(Event::Install {
            p: Process(1, 2546),
            g: Group::CLUSTER,
            lin: "c0".into(),
            vid: 12,
            members: vec![Process(1, 2546), Process(2, 77)],
            prev: 11,
            trans: vec![Process(1, 2546)],
            idx: None,
            snap: false,
        });
        let text = "{\"v\":1,\"src\":\"p:1.9f2\",\"seq\":41,\"t\":81930211,\"ev\":\"Install\",\"p\":[1,2546],\
                    \"g\":0,\"lin\":\"c0\",\"vid\":12,\"members\":[[1,2546],[2,77]],\"prev\":11,\"trans\":[[1,2546]]}";
        assert_eq!(serde_json::to_string(&install).expect("serialises"), text);
        assert_eq!(serde_json::from_str::<Record>(text).expect("parses"), install);
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_events_refused() {
        let gst = "{\"v\":1,\"src\":\"h\",\"seq\":0,\"t\":5,\"ev\":\"GST\",\"core\":[[1,1]],\"note\":\"x\"}";
        assert!(serde_json::from_str::<Record>(gst).is_ok());
        let odd = "{\"v\":1,\"src\":\"h\",\"seq\":0,\"t\":5,\"ev\":\"Sing\"}";
        assert!(serde_json::from_str::<Record>(odd).is_err());
    }

    #[test]
    fn sources_survive_their_text() {
        for text in ["h", "p:1.9f2", "c:8", "r:db"] {
            assert_eq!(text.parse::<Source>().expect(text).to_string(), text);
        }
        for bad in ["", "x", "p:1", "p:1.zz", "c:", "h:1"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_are_numbers_or_names() {
        assert_eq!(serde_json::from_str::<Group>("0").expect("number"), Group::CLUSTER);
        assert_eq!(serde_json::from_str::<Group>("\"kv\"").expect("name"), Group::Name("kv".into()));
    }
}
