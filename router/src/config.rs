//! The router's configuration: TOML, checked once, at the door.
//!
//! Every mistake is reported with file, line, what is wrong and what would be right. A [`Config`] that exists
//! can be served; what may still fail is the machine (a port in use).

mod access;
mod auth;
mod check;
mod connections;
mod health;
mod limits;
mod pmap;
mod raw;
mod servers;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::hot::Watch;
use crate::tls::{CertificateError, Terminators};
pub(crate) use auth::Auth;
use router_proto::{
    Pmap,
    extract::{Extract, NoKey},
    frames::KeyPaths,
    racs::Policy,
};

pub(crate) use health::{Check, Checks};
pub(crate) use limits::OwnLimits;

use crate::table::CloneAt;

/// A configuration that can be served.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) services: Vec<Arc<Service>>,
    /// Where the address of each of them is written; nothing where nothing was read.
    pub(crate) listens: Vec<Place>,
}

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<Path>,
    line: usize,
}

impl Place {
    /// The file, as it was named.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line, from 1.
    pub fn line(&self) -> usize {
        self.line
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What a configuration is checked against, besides itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surroundings<'a> {
    /// Whether this process follows groups (it has a rendezvous): without, `group =` names nobody.
    pub follows_groups: bool,
    /// Top-level keys of the same file that somebody else reads.
    pub others_keys: &'a [&'a str],
    /// Whether host names are refused rather than looked up.
    pub numeric_only: bool,
}

/// One service: an address, a protocol, a partition map, and the RACS behind it. Equal ones need not be told
/// that the file was read again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub name: Box<str>,
    pub listen: SocketAddr,
    /// Certificates that clients are shown; without any they speak plainly.
    pub tls: Vec<TlsFiles>,
    /// Whether connections begin with a header of the PROXY protocol.
    pub accept_proxy: bool,
    /// Whether servers are told in fields where requests came from.
    pub forwarded: bool,
    /// Whether requests have ids; how many new traces in a hundred are marked as recorded.
    pub trace: Option<u32>,
    pub protocol: Protocol,
    pub policy: Policy,
    /// The header in which requests say how long their clients wait.
    pub deadline: Option<Box<str>>,
    /// How many in a hundred reads may be sent to a second clone when the first is silent.
    pub hedge: u32,
    /// Most requests under way, and most at one server, and most that wait for one RACS; the router's limits where it
    /// does not say.
    pub max_in_flight: Option<u32>,
    pub max_in_flight_per_server: Option<u32>,
    pub max_waiting: Option<u32>,
    /// How long it waits and how much it keeps, where that is not as the router does.
    pub limits: OwnLimits,
    /// How its servers are checked; not at all if `None`.
    pub checks: Option<Arc<Checks>>,
    /// Where the router is: clones there are preferred.
    pub zone: Option<Box<str>>,
    /// Whether responses say which partition, server and epoch they came from.
    pub expose: bool,
    /// Passwords, where the protocol has them.
    pub auth: Auth,
    pub access_log: Option<AccessLog>,
    /// What is told of the keys that are asked for most.
    pub hot_keys: Watch,
    pub pmap: Arc<Pmap>,
    pub racs: Vec<RacsConfig>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Protocol {
    Http {
        extract: Extract,
        /// Where requests without a key go.
        no_key: NoKey,
    },
    Redis,
    Frames {
        paths: KeyPaths,
        /// Where requests without a key go.
        no_key: NoKey,
        /// The methods that change nothing.
        reads: Box<[Box<[u8]>]>,
        /// Whether servers are told partition, view and deadline.
        stamp: bool,
    },
    Memcached,
    Tcp {
        key: TcpKey,
        /// Where connections without a key go.
        no_key: NoKey,
    },
}

/// What a TCP connection is placed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpKey {
    /// The client's address, as text.
    Source,
    /// The name of the server that a TLS client asks for.
    Sni,
    /// So many bytes behind the first `offset` that the client says.
    Bytes { offset: usize, len: usize },
}

/// What is logged of requests, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessLog {
    /// `-` is standard error.
    pub file: Box<str>,
    /// What takes so long has a line in any case.
    pub slow: Duration,
    /// Of the others, one in so many; none if 0.
    pub every: u32,
}

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate, then whoever signed it, in PEM.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Protocol {
    /// As the configuration calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Redis => "redis",
            Self::Frames { .. } => "frames",
            Self::Memcached => "memcached",
            Self::Tcp { .. } => "tcp",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RacsConfig {
    pub name: Box<str>,
    pub source: Source,
    /// Whether its servers are told where a client connected from.
    pub send_proxy: bool,
    /// How many reads of a worker may be under way on one connection to a server; 0 if each has one of its own.
    pub pipeline: usize,
}

/// Where a RACS' clones come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// From the views of this group.
    Group(Box<str>),
    /// From the configuration; the first leads.
    Servers(Vec<CloneAt>),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first mistake found; nothing was started.
    pub fn load(path: &Path, surroundings: Surroundings<'_>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.into(),
            line: None,
            message: format!("cannot be read: {error}"),
        })?;
        Self::parse(&text, path, surroundings)
    }

    /// Checks a text; `file` is what messages call it. Host names are resolved here, once.
    ///
    /// # Errors
    /// The first mistake found.
    ///
    /// # Examples
    /// ```
    /// use router::{Config, Surroundings};
    ///
    /// let text = r#"
    ///     [[service]]
    ///     name = "inventory"
    ///     listen = "127.0.0.1:0"
    ///     protocol = "http"
    ///     key = "header:x-key"
    ///     [service.pmap]
    ///     style = "slots"
    ///     partitions = 64
    ///     [[service.racs]]
    ///     name = "a"
    ///     servers = ["127.0.0.1:9001", "127.0.0.1:9002"] # the first leads
    /// "#;
    /// let config = Config::parse(text, "router.toml".as_ref(), Surroundings::default())?;
    /// assert_eq!(config.services().collect::<Vec<_>>(), ["inventory"]);
    ///
    /// let typo = text.replace("partitions", "partition");
    /// let error = Config::parse(&typo, "router.toml".as_ref(), Surroundings::default()).unwrap_err();
    /// assert!(error.to_string().starts_with("router.toml:9: unknown field `partition`"));
    /// # Ok::<(), router::ConfigError>(())
    /// ```
    pub fn parse(text: &str, file: &Path, surroundings: Surroundings<'_>) -> Result<Self, ConfigError> {
        let line = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        let (services, listens) = check::config(text, surroundings).map_err(|mistake| ConfigError {
            file: file.into(),
            line: mistake.at.map(line),
            message: mistake.message,
        })?;
        let file: Arc<Path> = file.into();
        let place = |at| Place { file: Arc::clone(&file), line: line(at) };
        Ok(Self { services, listens: listens.into_iter().map(place).collect() })
    }

    /// Says where the router is, for services that do not say so themselves: they prefer clones of this zone.
    #[must_use]
    pub fn in_zone(mut self, zone: &str) -> Self {
        for service in self.services.iter_mut().filter(|service| service.zone.is_none()) {
            Arc::make_mut(service).zone = Some(zone.into());
        }
        self
    }

    /// Reads the certificates and keys that services name, as a start does.
    ///
    /// # Errors
    /// The first one that cannot be used.
    pub fn check_certificates(&self) -> Result<(), CertificateError> {
        Terminators::of(self, &Terminators::default()).map(drop)
    }

    /// The names of the services, in the order of the file.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| &*service.name)
    }

    /// The names of the groups whose views must be fed to the router, each once.
    pub fn groups(&self) -> Vec<&str> {
        let racs = self.services.iter().flat_map(|service| &service.racs);
        let mut groups: Vec<&str> = racs
            .filter_map(|racs| match &racs.source {
                Source::Group(group) => Some(&**group),
                Source::Servers(_) => None,
            })
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// The configuration cannot be served. Nothing was started or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    message: String,
}

impl ConfigError {
    /// The file, as it was named.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line, from 1; `None` where the mistake has none (an unreadable file, nothing in it).
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// What is wrong, and what would be right.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

impl std::error::Error for ConfigError {}
