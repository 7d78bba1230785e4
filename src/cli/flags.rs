//! The flags of every command that starts a node, from the command line, the environment, and a TOML file, in this order.

use std::{
    fmt,
    fs::File,
    io::Read,
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, builder::BoolishValueParser};
use membership::{Bootstrap, Node, NodeBuilder, Rendezvous, StartError, Witness};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::Failure;

/// A duration, written `300ms`, `2s` or `1m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

impl Time {
    /// No duration on a command line is longer: a year.
    const MAX: Duration = Duration::from_secs(8760 * 3600);
}

impl FromStr for Time {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration: write it like 300ms, 2s or 1m");
        let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(at);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let time = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        if time > Self::MAX {
            return Err(format!("`{text}` is too long: no duration may exceed 8760h, a year"));
        }
        Ok(Self(time))
    }
}

/// A number of bytes, written `512KiB`, `100MiB` or `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl Size {
    /// More than any machine that these are for.
    const MAX: usize = 1 << 40;
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size: write it like 512KiB, 100MiB or 1GiB");
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let shift = match unit {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<usize>().map_err(|_| wrong())?.checked_mul(1 << shift);
        let fits = bytes.filter(|bytes| *bytes <= Self::MAX);
        fits.map(Self).ok_or_else(|| format!("`{text}` is too much: give at most 1024GiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

/// `expect=N`, `alone-after=DUR` or `join`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Founding(pub(crate) Bootstrap);

impl FromStr for Founding {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no way to begin: give expect=N, alone-after=DUR or join");
        Ok(Self(match text.split_once('=') {
            None if text == "join" => Bootstrap::Join,
            Some(("expect", n)) => Bootstrap::Expect(n.parse().map_err(|_| wrong())?),
            Some(("alone-after", d)) => Bootstrap::AloneAfter(d.parse::<Time>()?.0),
            _ => return Err(wrong()),
        }))
    }
}

/// `yes` or `no`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct YesNo(pub(crate) bool);

impl FromStr for YesNo {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "yes" | "true" => Ok(Self(true)),
            "no" | "false" => Ok(Self(false)),
            _ => Err(format!("`{text}` is neither yes nor no")),
        }
    }
}

fn from_text<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

fn many_from_text<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(
    d: D,
) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text or a list of texts")]
    enum Texts {
        One(String),
        Many(Vec<String>),
    }
    let texts = match Texts::deserialize(d)? {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label(String, String);

impl FromStr for Label {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is no label: give KEY=VALUE"))?;
        Ok(Self(key.into(), value.into()))
    }
}

/// The flags. What is not given has the node's own default.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[command(next_help_heading = "The node")]
pub(crate) struct NodeFlags {
    /// The cluster's name; nodes of other names are turned away [default: default].
    #[arg(long, env = "PHALANX_CLUSTER", value_name = "NAME")]
    cluster: Option<String>,
    /// This node's name, for people [default: host-pid].
    #[arg(long, env = "PHALANX_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where to listen for other nodes; port 0 is any free one [default: 127.0.0.1:0].
    #[arg(long, env = "PHALANX_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where other nodes reach this one, if that differs.
    #[arg(long, env = "PHALANX_ADVERTISE", value_name = "ADDR")]
    advertise: Option<SocketAddr>,
    /// How to find the cluster: static:HOST:PORT,… or file:DIR or dns:NAME[:PORT][?server=ADDR] (without a port: SRV
    /// records), multicast:GROUP:PORT[?interface=IP], broadcast:PORT[?interface=IP] or
    /// http://HOST:PORT/v1/rendezvous[?proof=required] (any node's --admin address; required: its answers must be proved with
    /// the secret that both have); may be repeated.
    #[arg(long, env = "PHALANX_RENDEZVOUS", value_name = "URL", value_delimiter = ';')]
    #[serde(deserialize_with = "many_from_text")]
    pub(crate) rendezvous: Vec<Rendezvous>,
    /// What to do where there is no cluster: expect=N, alone-after=DUR (10ms to 1h) or join
    /// [default: alone-after=1s].
    #[arg(long, env = "PHALANX_BOOTSTRAP", value_name = "HOW")]
    #[serde(deserialize_with = "from_text")]
    bootstrap: Option<Founding>,
    /// How long a node may act without hearing from the core; longer is calmer, shorter fails over faster; 20ms to 60s
    /// [default: 1s].
    #[arg(long, env = "PHALANX_LEASE", value_name = "DUR")]
    #[serde(deserialize_with = "from_text")]
    lease: Option<Time>,
    /// How often nodes speak; 1ms to a third of the lease [default: a tenth of it].
    #[arg(long, env = "PHALANX_HEARTBEAT", value_name = "DUR")]
    #[serde(deserialize_with = "from_text")]
    heartbeat: Option<Time>,
    /// A label of this node, KEY=VALUE; may be repeated (in PHALANX_LABEL with `;` between them). The core is spread over different
    /// zone= (of a dc=), rack= and power=. Routers prefer members of their zone=, and give each reads by its weight=,
    /// 1 to 1000.
    #[arg(long, env = "PHALANX_LABEL", value_name = "K=V", value_delimiter = ';')]
    #[serde(deserialize_with = "many_from_text")]
    label: Vec<Label>,
    /// The file with the cluster's keys, the same at all nodes: 1 to 4 lines, as `phalanx secret` prints them, not readable
    /// by everybody. Connections between nodes are then authenticated and sealed, others are refused. The first key is used,
    /// all are accepted; on HUP the file is read again.
    #[arg(long, env = "PHALANX_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Instead of a secret: the authorities that sign for nodes of the cluster (PEM). Connections between nodes are then TLS 1.3;
    /// each side shows a certificate that is for its --name, or for the address that it advertises. On HUP the three files are
    /// read again.
    #[arg(long, env = "PHALANX_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate of this node (PEM), for both serverAuth and clientAuth.
    #[arg(long, env = "PHALANX_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key to it (PEM), not readable by everybody.
    #[arg(long, env = "PHALANX_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Listen beyond loopback without authentication.
    #[arg(long, env = "PHALANX_INSECURE", value_name = "YES|NO", value_parser = BoolishValueParser::new())]
    #[arg(hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "yes")]
    pub(crate) insecure: Option<bool>,
    /// Where to serve the admin API (HTTP: status, groups, events, metrics, and a page for browsers), and the registry for others'
    /// --rendezvous http:.
    #[arg(long, env = "PHALANX_ADMIN", value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// A directory of this node's own, in which it remembers which tokens may have been given: after the whole cluster
    /// was down they go on growing, whatever the wall clocks say. Under expect=N give all founders one.
    #[arg(long, env = "PHALANX_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Who says which half of the core may go on where it splits into two: file:DIR (storage that all nodes share) or
    /// http://HOST:PORT/v1/rendezvous[?proof=required] (an agent elsewhere, with --data-dir; required: as above); the same at all nodes, from the founding on.
    /// Without one it is the half with the core's senior: of two nodes always the elder.
    #[arg(long, env = "PHALANX_WITNESS", value_name = "URL")]
    #[serde(deserialize_with = "from_text")]
    witness: Option<Witness>,
    /// May this node sit in the core that decides? yes or no; a cluster without any such node alive decides nothing [default: no for
    /// watch and router, else yes].
    #[arg(long, env = "PHALANX_CORE", value_name = "YES|NO")]
    #[serde(deserialize_with = "from_text")]
    core: Option<YesNo>,
    /// How long a node of a blocked cluster waits before it goes over to an active one that it hears; up to 8760h. Where it hears
    /// none it stays (under alone-after=DUR it begins anew after DUR) [default: 10 leases].
    #[arg(long, env = "PHALANX_GIVE_UP", value_name = "DUR")]
    #[serde(deserialize_with = "from_text")]
    give_up: Option<Time>,
    /// Exit with 3 if no cluster took this node in by then; up to 8760h [default: 30s].
    #[arg(long, env = "PHALANX_JOIN_TIMEOUT", value_name = "DUR")]
    #[serde(deserialize_with = "from_text")]
    join_timeout: Option<Time>,
    /// Write a trace for `phalanx check` to this file.
    #[arg(long, env = "PHALANX_TRACE", value_name = "FILE")]
    trace: Option<PathBuf>,
    /// What to log; on the command line this is a flag of every command.
    #[arg(skip)]
    #[serde(deserialize_with = "from_text")]
    pub(crate) log: Option<tracing::Level>,
}

/// No configuration file is longer, in bytes.
const LONGEST: u64 = 16 << 20;

/// The text of a configuration file, which may be a pipe.
pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::usage(format!("--config {}: {why}", file.display()));
    let mut text = String::new();
    let opened = File::open(file);
    let size = opened.and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
    match size.map_err(|error| wrong(error.to_string()))? as u64 {
        0..=LONGEST => Ok(text),
        _ => {
            Err(wrong(format!("that is no configuration: give a TOML file of at most {} MiB", LONGEST >> 20)))
        }
    }
}

impl NodeFlags {
    /// The keys of a configuration file.
    pub(crate) const KEYS: [&'static str; 22] = [
        "cluster",
        "name",
        "listen",
        "advertise",
        "rendezvous",
        "bootstrap",
        "lease",
        "heartbeat",
        "label",
        "secret-file",
        "tls-ca",
        "tls-cert",
        "tls-key",
        "insecure",
        "admin",
        "data-dir",
        "witness",
        "core",
        "give-up",
        "join-timeout",
        "trace",
        "log",
    ];

    /// Takes what is not given from a configuration file, if there is one. Returns what to log, if that is said.
    pub(crate) fn complete(&mut self, file: Option<&Path>) -> Result<Option<tracing::Level>, Failure> {
        if let Some(file) = file {
            *self = mem::take(self).or_text(&read(file)?, file, &[])?;
        }
        Ok(self.log)
    }

    /// These flags, and what the text of a file says about those that are not given. `others` are further keys of that file.
    pub(crate) fn or_text(self, text: &str, file: &Path, others: &[&str]) -> Result<Self, Failure> {
        let at = file.display();
        let table: toml::Table = toml::from_str(text).map_err(|e| Failure::usage(format!("{at}: {e}")))?;
        for key in table.keys() {
            if !Self::KEYS.contains(&key.as_str()) && !others.contains(&key.as_str()) {
                let names = |line: &str| {
                    let line = line.trim_start_matches(['[', '"', '\'', ' ', '\t']);
                    let rest = line.strip_prefix(key.as_str());
                    rest.is_some_and(|rest| {
                        !rest.starts_with(|c: char| c.is_alphanumeric() || "_-".contains(c))
                    })
                };
                let line = text.lines().position(names).map_or(0, |l| l + 1);
                let known = Self::KEYS.join(", ");
                return Err(Failure::usage(format!("{at}:{line}: unknown key `{key}`; there are {known}")));
            }
        }
        let base: Self = toml::from_str(text).map_err(|e| Failure::usage(format!("{at}: {e}")))?;
        Ok(Self {
            cluster: self.cluster.or(base.cluster),
            name: self.name.or(base.name),
            listen: self.listen.or(base.listen),
            advertise: self.advertise.or(base.advertise),
            rendezvous: if self.rendezvous.is_empty() { base.rendezvous } else { self.rendezvous },
            bootstrap: self.bootstrap.or(base.bootstrap),
            lease: self.lease.or(base.lease),
            heartbeat: self.heartbeat.or(base.heartbeat),
            label: if self.label.is_empty() { base.label } else { self.label },
            secret_file: self.secret_file.or(base.secret_file),
            tls_ca: self.tls_ca.or(base.tls_ca),
            tls_cert: self.tls_cert.or(base.tls_cert),
            tls_key: self.tls_key.or(base.tls_key),
            insecure: self.insecure.or(base.insecure),
            admin: self.admin.or(base.admin),
            data_dir: self.data_dir.or(base.data_dir),
            witness: self.witness.or(base.witness),
            core: self.core.or(base.core),
            give_up: self.give_up.or(base.give_up),
            join_timeout: self.join_timeout.or(base.join_timeout),
            trace: self.trace.or(base.trace),
            log: self.log.or(base.log),
        })
    }

    /// Does the node use files of keys or certificates, that are read again on HUP?
    pub(crate) fn reads_again(&self) -> bool {
        self.secret_file.is_some() || self.tls_cert.is_some()
    }

    /// Where the node keeps what must outlive it.
    pub(crate) fn data_dir(&self) -> Option<&Path> {
        self.data_dir.as_deref()
    }

    /// So many nodes found the cluster, if that is said.
    pub(crate) fn founders(&self) -> Option<u64> {
        match self.bootstrap {
            Some(Founding(Bootstrap::Expect(n))) => Some(n.into()),
            _ => None,
        }
    }

    /// The lease that the node will have.
    pub(crate) fn lease(&self) -> Duration {
        self.lease.map_or(Duration::from_secs(1), |time| time.0)
    }

    /// A node with these settings; `core` where the flags do not say.
    pub(crate) fn builder(self, core: bool) -> NodeBuilder {
        let time = |time: Option<Time>| time.map(|time| time.0);
        let mut b = Node::builder()
            .core(self.core.map_or(core, |yes| yes.0))
            .insecure(self.insecure.unwrap_or(false));
        b = with(b, self.cluster, NodeBuilder::cluster);
        b = with(b, self.name, NodeBuilder::name);
        b = with(b, self.listen, NodeBuilder::listen);
        b = with(b, self.advertise, NodeBuilder::advertise);
        b = with(b, self.bootstrap.map(|how| how.0), NodeBuilder::bootstrap);
        b = with(b, time(self.lease), NodeBuilder::lease);
        b = with(b, time(self.heartbeat), NodeBuilder::heartbeat);
        b = with(b, self.admin, NodeBuilder::admin);
        b = with(b, time(self.give_up), NodeBuilder::give_up);
        b = with(b, time(self.join_timeout), NodeBuilder::join_timeout);
        b = with(b, self.secret_file, NodeBuilder::secret_file);
        b = with(b, self.data_dir, NodeBuilder::data_dir);
        b = with(b, self.witness, NodeBuilder::witness);
        b = with(b, self.tls_ca, NodeBuilder::tls_ca);
        b = with(b, self.tls_cert, NodeBuilder::tls_cert);
        b = with(b, self.tls_key, NodeBuilder::tls_key);
        b = with(b, self.trace, NodeBuilder::trace);
        for url in self.rendezvous {
            b = b.rendezvous(url);
        }
        for Label(key, value) in self.label {
            b = b.label(key, value);
        }
        b
    }
}

/// With what was given, if it was.
fn with<T>(
    builder: NodeBuilder,
    given: Option<T>,
    set: impl FnOnce(NodeBuilder, T) -> NodeBuilder,
) -> NodeBuilder {
    match given {
        Some(value) => set(builder, value),
        None => builder,
    }
}

/// A node that could not start, with the right exit code.
pub(crate) fn start_failure(error: StartError) -> Failure {
    let code = if error.is_configuration() { super::exit::USAGE } else { super::exit::FAILED };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_people_write_them() {
        let read = |text: &str| text.parse::<Time>().map(|t| t.0);
        assert_eq!(read("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(read("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(read("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(read("8760h"), Ok(Duration::from_secs(8760 * 3600)));
        for wrong in ["", "5", "s", "-1s", "1d", "1e400s", "nans", "8761h", "5000000000000000h"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_counted_in_powers_of_two() {
        let read = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!((read("0B"), read("17"), read("512KiB")), (Ok(0), Ok(17), Ok(512 << 10)));
        assert_eq!((read("100MiB"), read("1GiB")), (Ok(100 << 20), Ok(1 << 30)));
        assert_eq!(read(&Size(1 << 30).to_string()), Ok(1 << 30));
        for wrong in
            ["", "GiB", "1GB", "-1KiB", "1.5GiB", "1025GiB", "99999999999999999999", "20000000000GiB"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_never_ends_is_no_configuration() {
        let error = read(Path::new("/dev/zero")).expect_err("no end").to_string();
        assert!(error.contains("--config /dev/zero") && error.contains("at most 16 MiB"), "{error}");
    }

    #[test]
    fn ways_to_begin() {
        let read = |text: &str| text.parse::<Founding>().map(|f| f.0);
        assert_eq!(read("expect=5"), Ok(Bootstrap::Expect(5)));
        assert_eq!(read("alone-after=1s"), Ok(Bootstrap::AloneAfter(Duration::from_secs(1))));
        assert_eq!(read("join"), Ok(Bootstrap::Join));
        for wrong in ["expect", "expect=x", "alone-after=", "found"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_fills_in_what_flags_leave_open_and_unknown_keys_are_refused() {
        let file = Path::new("node.toml");
        let text = "lease = \"2s\"\nname = \"file\"\ninsecure = true\nlog = \"debug\"\n";
        let flags = NodeFlags { name: Some("flag".into()), insecure: Some(false), ..NodeFlags::default() };
        let flags = flags.or_text(text, file, &[]).expect("valid");
        assert_eq!((flags.name.as_deref(), flags.lease), (Some("flag"), Some(Time(Duration::from_secs(2)))));
        assert_eq!((flags.insecure, flags.log), (Some(false), Some(tracing::Level::DEBUG)));
        let wrong = |text| NodeFlags::default().or_text(text, file, &[]).expect_err(text).to_string();
        let error = wrong("name = \"x\"\nleese = \"2s\"\n");
        assert!(error.contains(":2:") && error.contains("leese"), "{error}");
        for text in
            ["lease = \"2s\"\nle = 1\n", "name = \"x\"\n \"le\" = 1\n", "lease = \"2s\"\n[le]\nlease = 1\n"]
        {
            let error = wrong(text);
            assert!(error.contains(":2: unknown key `le`"), "{error}");
        }
        let error = wrong("log = \"nope\"\n");
        assert!(error.contains("trace"), "the levels are named: {error}");
    }

    #[test]
    fn one_rendezvous_in_a_file_needs_no_list_and_a_witness_is_checked() {
        let read = |text| NodeFlags::default().or_text(text, Path::new("node.toml"), &[]);
        assert_eq!(read("rendezvous = \"file:/x\"").expect("valid").rendezvous.len(), 1);
        assert_eq!(read("rendezvous = [\"file:/x\", \"file:/y\"]").expect("valid").rendezvous.len(), 2);
        assert!(read("witness = \"file:/x\"").expect("valid").witness.is_some());
        let error = read("witness = \"dns:x\"").expect_err("no witness").to_string();
        assert!(error.contains("file:DIR"), "{error}");
        let error = read("rendezvous = 5").expect_err("a number").to_string();
        assert!(error.contains("a text or a list of texts"), "{error}");
    }
}
