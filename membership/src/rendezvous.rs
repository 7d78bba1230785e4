//! How a starting process finds the cluster.
//!
//! A provider gives addresses at which nodes may be found, and may give founder slots. Several may be used at once.

pub(crate) mod announce;
pub(crate) mod ask;
mod dns;
pub(crate) mod file;
mod finder;
mod fixed;
pub(crate) mod http;
pub(crate) mod proof;
pub(crate) mod registrar;
mod registry;
mod udp;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

pub use ask::HttpRegistry;
pub(crate) use ask::PATH as REGISTRY_PATH;
pub use dns::DnsName;
pub(crate) use finder::{Finder, Steering};
pub(crate) use fixed::Lookup;
pub(crate) use registrar::{MAX_BODY, Question, Registrar};
pub(crate) use registry::Registry;
pub use udp::LocalNetwork;

/// Can others connect there, as far as an address says? What comes from others is asked that before it counts.
pub(crate) fn is_reachable(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let everybody = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !everybody && addr.port() > 0
}

/// A provider of addresses, as it is configured.
///
/// Written `static:HOST:PORT,HOST:PORT,…`, `file:DIR`, `dns:NAME[:PORT][?server=ADDR]`,
/// `multicast:GROUP:PORT[?interface=IP]`, `broadcast:PORT[?interface=IP]` or `http://HOST:PORT/v1/rendezvous[?proof=required]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rendezvous {
    /// A fixed list of `host:port`. Host names are looked up now and then. Under `expect(n)` the first n are the founder
    /// slots, and a node's slot is the place of its own address among them.
    Static(Vec<String>),
    /// A directory in which every node writes a file about itself, and takes it away when it leaves. It must be on a file
    /// system with working locks. Under `expect(n)` a node takes the first slot whose lock is free.
    File(PathBuf),
    /// A name in the DNS, asked for again and again. It gives no founder slots.
    Dns(DnsName),
    /// Calls to all nodes of a local network. It gives no founder slots.
    Local(LocalNetwork),
    /// A registry that some node keeps on its admin API. Under `expect(n)` a node takes a slot by compare-and-set.
    Http(HttpRegistry),
}

/// All providers, as a message says what would be right.
const FORMS: &str = "static:HOST:PORT,HOST:PORT or file:DIR or dns:NAME[:PORT] or multicast:GROUP:PORT or \
                     broadcast:PORT or http://HOST:PORT/v1/rendezvous";

/// The text names no rendezvous provider that this build has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRendezvousError {
    /// It begins with no scheme at all, or an unknown one.
    #[error("{0:?} is no rendezvous: give {FORMS}")]
    Unknown(String),
    /// The scheme exists, but this build does not have it.
    #[error("rendezvous {0}: is not built yet: give {FORMS}")]
    NotBuilt(String),
    /// An item of the static list is no address.
    #[error("{0:?} in a static: list is no address: give HOST:PORT, or [V6]:PORT")]
    Address(String),
    /// Nothing follows the scheme.
    #[error("{0} lacks a value: give {FORMS}")]
    Empty(String),
    /// What follows the scheme cannot work.
    #[error("{text}: {problem}")]
    Value {
        /// The whole text.
        text: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl FromStr for Rendezvous {
    type Err = ParseRendezvousError;

    fn from_str(text: &str) -> Result<Self, ParseRendezvousError> {
        let (scheme, rest) =
            text.split_once(':').ok_or_else(|| ParseRendezvousError::Unknown(text.to_owned()))?;
        let wrong = |problem: String| ParseRendezvousError::Value { text: text.to_owned(), problem };
        match scheme {
            "static" | "file" | "dns" | "multicast" | "broadcast" | "http" if rest.trim().is_empty() => {
                Err(ParseRendezvousError::Empty(text.to_owned()))
            }
            "static" => {
                let items = rest.split(',').map(str::trim);
                items.map(checked_address).collect::<Result<_, _>>().map(Self::Static)
            }
            "file" => Ok(Self::File(PathBuf::from(rest))),
            "dns" => dns_name(rest).map(Self::Dns).map_err(wrong),
            "multicast" => multicast(rest).map(Self::Local).map_err(wrong),
            "broadcast" => broadcast(rest).map(Self::Local).map_err(wrong),
            "http" => http_registry(rest).map(Self::Http).map_err(wrong),
            "https" => Err(ParseRendezvousError::NotBuilt(scheme.to_owned())),
            _ => Err(ParseRendezvousError::Unknown(text.to_owned())),
        }
    }
}

/// The one parameter that may follow a value: `VALUE?KEY=PARAMETER`.
fn parameter<'a>(text: &'a str, key: &str, like: &str) -> Result<(&'a str, Option<&'a str>), String> {
    let Some((value, query)) = text.split_once('?') else { return Ok((text, None)) };
    match query.split_once('=') {
        Some((found, parameter)) if found == key => Ok((value, Some(parameter))),
        _ => Err(format!("`?{query}` is not known here: only ?{key}={like} may follow")),
    }
}

/// `//HOST:PORT[/PATH][?proof=required]`.
fn http_registry(text: &str) -> Result<HttpRegistry, String> {
    let (text, proof) = parameter(text, "proof", "required")?;
    if let Some(other) = proof.filter(|proof| *proof != "required") {
        return Err(format!("proof={other} is not known: give proof=required, or leave it out"));
    }
    let like = "http://HOST:PORT/v1/rendezvous";
    let rest = text.strip_prefix("//").ok_or_else(|| format!("give {like}"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let at = checked_address(authority).map_err(|_| format!("{authority:?} is no HOST:PORT: give {like}"))?;
    let (host, port) = at.rsplit_once(':').unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._~-".contains(&b);
    if !path.bytes().all(plain) || path.len() > 256 {
        return Err(format!(
            "{path:?} is no path of a registry, which nodes keep at {REGISTRY_PATH}: give {like}"
        ));
    }
    let path = match path.trim_end_matches('/') {
        "" => REGISTRY_PATH,
        path => path,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(HttpRegistry { host, port: checked_port(port)?, path: path.to_owned(), proof: proof.is_some() })
}

/// `GROUP:PORT[?interface=IP]`.
fn multicast(text: &str) -> Result<LocalNetwork, String> {
    let (at, interface) = interface(text)?;
    let (group, port) = at.split_once(':').ok_or("give multicast:GROUP:PORT")?;
    match group.parse::<Ipv4Addr>() {
        Ok(group) if group.is_multicast() => {
            Ok(LocalNetwork { group: Some(group), port: checked_port(port)?, interface })
        }
        _ => {
            Err(format!("{group:?} is no multicast group: give one out of 224.0.0.0/4, such as 239.255.70.1"))
        }
    }
}

/// `PORT[?interface=IP]`.
fn broadcast(text: &str) -> Result<LocalNetwork, String> {
    let (port, interface) = interface(text)?;
    Ok(LocalNetwork { group: None, port: checked_port(port)?, interface })
}

fn interface(text: &str) -> Result<(&str, Option<Ipv4Addr>), String> {
    let (text, interface) = parameter(text, "interface", "IP")?;
    let parse = |ip: &str| match ip.parse::<Ipv4Addr>() {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() => Ok(ip),
        _ => Err(format!("{ip:?} is no interface: give its own IPv4 address, such as interface=10.0.0.7")),
    };
    Ok((text, interface.map(parse).transpose()?))
}

fn checked_port(text: &str) -> Result<u16, String> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{text:?} is no port: give a number from 1 to 65535"))
}

/// `NAME[:PORT][?server=ADDR]`.
fn dns_name(text: &str) -> Result<DnsName, String> {
    let (text, server) = parameter(text, "server", "IP:PORT")?;
    let server = server.map(|addr| match addr.parse::<SocketAddr>() {
        Ok(addr) if addr.port() > 0 => Ok(addr),
        _ => Err(format!("{addr:?} is no DNS server: give server=IP:PORT, or server=[V6]:PORT")),
    });
    let (name, port) = match text.split_once(':') {
        None => (text, None),
        Some((name, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (name, Some(port)),
            _ => {
                let way_out = "give NAME:PORT, or NAME alone for SRV records";
                return Err(format!("{port:?} is no port: {way_out} (for a fixed address there is static:)"));
            }
        },
    };
    if !dns::is_name(name) {
        let way_out = "give a host name (for a fixed address there is static:HOST:PORT)";
        return Err(format!("{name:?} is no name in the DNS: {way_out}"));
    }
    Ok(DnsName { name: name.to_owned(), port, server: server.transpose()? })
}

/// `host:port`, where the port is a number above 0 and the host is not empty.
fn checked_address(item: &str) -> Result<String, ParseRendezvousError> {
    let bad = || ParseRendezvousError::Address(item.to_owned());
    let (host, port) = item.rsplit_once(':').ok_or_else(bad)?;
    let port_is_fine = port.parse::<u16>().is_ok_and(|port| port > 0);
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_is_fine = if bracketed {
        item.parse::<std::net::SocketAddrV6>().is_ok()
    } else {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    if port_is_fine && host_is_fine { Ok(item.to_owned()) } else { Err(bad()) }
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(items) => write!(f, "static:{}", items.join(",")),
            Self::File(dir) => write!(f, "file:{}", dir.display()),
            Self::Dns(DnsName { name, port, server }) => {
                write!(f, "dns:{name}")?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))?;
                server.map_or(Ok(()), |server| write!(f, "?server={server}"))
            }
            Self::Http(at) => at.fmt(f),
            Self::Local(LocalNetwork { group, port, interface }) => {
                match group {
                    Some(group) => write!(f, "multicast:{group}:{port}")?,
                    None => write!(f, "broadcast:{port}")?,
                }
                interface.map_or(Ok(()), |interface| write!(f, "?interface={interface}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendezvous_survives_its_text() {
        for text in [
            "static:a:1,b.example:2,[::1]:3,10.0.0.1:4",
            "file:/run/x",
            "dns:nodes.example:7000",
            "dns:_phalanx._tcp.example.",
            "dns:nodes:7000?server=127.0.0.1:5353",
            "dns:nodes?server=[::1]:53",
            "multicast:239.1.2.3:7000",
            "multicast:239.1.2.3:7000?interface=10.0.0.1",
            "http://reg.example:7070/v1/rendezvous",
            "http://[::1]:7070/x/y",
            "http://reg.example:7070/v1/rendezvous?proof=required",
            "broadcast:7000",
            "broadcast:7000?interface=127.0.0.1",
        ] {
            assert_eq!(text.parse::<Rendezvous>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_built_or_not_an_address_is_refused_with_what_would_be_right() {
        let error = |text: &str| text.parse::<Rendezvous>().expect_err(text).to_string();
        assert!(error("https://x:1/").contains("not built yet"));
        let bare: Rendezvous = "http://x:1/".parse().expect("valid");
        assert_eq!(bare.to_string(), "http://x:1/v1/rendezvous");
        assert!(error("http://x/").contains("HOST:PORT"));
        assert!(error("dns:x:port").contains("NAME:PORT"));
        assert!(error("dns:127.0.0.1:5").contains("static:"));
        assert!(error("dns:x:1?servers=1.1.1.1:53").contains("?server=IP:PORT"));
        assert!(error("dns:x:1?server=dns.example").contains("server=IP:PORT"));
        assert!(error("gossip:x").contains("static:"));
        assert!(error("nonsense").contains("file:DIR"));
        assert!(error("file:").contains("lacks a value"));
        for bad in [
            "static:",
            "static:a",
            "static:a:0",
            "static:a:99999",
            "static::1",
            "static:a:1,,b:2",
            "static:a b:1",
            "dns:",
            "dns:.",
            "dns:a..b:1",
            "dns:x:0",
            "dns:x y:1",
            "http:",
            "http://",
            "http://x",
            "http://x:0/",
            "http://:1/",
            "http://user@x:1/",
            "http://x:1/a b",
            "http://x:1/v1?x=1",
            "http://x:1/v1?proof=no",
            "http://x:1/v1?proof",
            "multicast:7000",
            "multicast:10.0.0.1:7000",
            "multicast:[ff02::1]:7000",
            "multicast:239.1.2.3:0",
            "multicast:239.1.2.3:7000?interface=eth0",
            "broadcast:",
            "broadcast:x",
            "broadcast:0",
            "broadcast:7000?server=10.0.0.1",
            "dns::1",
            "dns:[::1]:1",
            &format!("dns:{}", "x".repeat(64)),
            &format!("dns:{}", "x.".repeat(200)),
        ] {
            assert!(bad.parse::<Rendezvous>().is_err(), "{bad}");
        }
    }
}
