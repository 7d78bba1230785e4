//! How a starting process finds the cluster.
//!
//! A provider gives addresses at which nodes may be found, and may give founder slots. Several may be used at once.

mod finder;
mod registry;

use std::{fmt, path::PathBuf, str::FromStr};

pub(crate) use finder::{Finder, Steering};
pub(crate) use registry::Registry;

/// A provider of addresses, as it is configured.
///
/// Written `static:HOST:PORT,HOST:PORT,…` or `file:DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rendezvous {
    /// A fixed list of `host:port`. Host names are looked up now and then. Under `expect(n)` the first n are the founder
    /// slots, and a node's slot is the place of its own address among them.
    Static(Vec<String>),
    /// A directory in which every node writes a file about itself, and takes it away when it leaves. It must be on a file
    /// system with working locks. Under `expect(n)` a node takes the first slot whose lock is free.
    File(PathBuf),
}

/// The text names no rendezvous provider that this build has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRendezvousError {
    /// It begins with no scheme at all, or an unknown one.
    #[error("{0:?} is no rendezvous: give static:HOST:PORT,HOST:PORT or file:DIR")]
    Unknown(String),
    /// The scheme exists, but this build does not have it.
    #[error("rendezvous {0}: is not built yet: this build has static: and file:")]
    NotBuilt(String),
    /// An item of the static list is no address.
    #[error("{0:?} in a static: list is no address: give HOST:PORT, or [V6]:PORT")]
    Address(String),
    /// Nothing follows the scheme.
    #[error("{0} lacks a value: give static:HOST:PORT,HOST:PORT or file:DIR")]
    Empty(String),
}

impl FromStr for Rendezvous {
    type Err = ParseRendezvousError;

    fn from_str(text: &str) -> Result<Self, ParseRendezvousError> {
        let (scheme, rest) =
            text.split_once(':').ok_or_else(|| ParseRendezvousError::Unknown(text.to_owned()))?;
        match scheme {
            "static" | "file" if rest.trim().is_empty() => Err(ParseRendezvousError::Empty(text.to_owned())),
            "static" => {
                let items = rest.split(',').map(str::trim);
                items.map(checked_address).collect::<Result<_, _>>().map(Self::Static)
            }
            "file" => Ok(Self::File(PathBuf::from(rest))),
            "dns" | "multicast" | "broadcast" | "http" | "https" => {
                Err(ParseRendezvousError::NotBuilt(scheme.to_owned()))
            }
            _ => Err(ParseRendezvousError::Unknown(text.to_owned())),
        }
    }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendezvous_survives_its_text() {
        for text in ["static:a:1,b.example:2,[::1]:3,10.0.0.1:4", "file:/run/x"] {
            assert_eq!(text.parse::<Rendezvous>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_built_or_not_an_address_is_refused_with_what_would_be_right() {
        let error = |text: &str| text.parse::<Rendezvous>().expect_err(text).to_string();
        assert!(error("dns:x:1").contains("not built yet"));
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
        ] {
            assert!(bad.parse::<Rendezvous>().is_err(), "{bad}");
        }
    }
}
