//! The file as it is written: names and types, with the place of each value.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

#[derive(Deserialize)]
pub(super) struct File {
    #[serde(default)]
    pub service: Vec<Spanned<Service>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub name: Spanned<String>,
    pub listen: Spanned<String>,
    pub protocol: Spanned<String>,
    pub tls: Option<Spanned<Certificates>>,
    #[serde(default)]
    pub accept_proxy: bool,
    pub forwarded: Option<Spanned<bool>>,
    pub trace: Option<Spanned<String>>,
    pub key: Option<Spanned<OneOrMany>>,
    pub no_key: Option<Spanned<String>>,
    pub reads: Option<Spanned<String>>,
    pub updates: Option<Spanned<String>>,
    pub hedge: Option<Spanned<String>>,
    pub deadline: Option<Spanned<String>>,
    pub max_in_flight: Option<Spanned<i64>>,
    pub max_in_flight_per_server: Option<Spanned<i64>>,
    pub max_waiting: Option<Spanned<i64>>,
    pub limits: Option<Spanned<Limits>>,
    pub zone: Option<Spanned<String>>,
    pub slow_start: Option<Spanned<String>>,
    pub health: Option<Spanned<Health>>,
    pub read_methods: Option<Spanned<Vec<Spanned<String>>>>,
    pub stamp: Option<Spanned<bool>>,
    #[serde(default)]
    pub expose: bool,
    pub auth: Option<Spanned<Auth>>,
    pub access_log: Option<Spanned<AccessLog>>,
    pub hot_keys: Option<Spanned<String>>,
    pub pmap: Spanned<Pmap>,
    #[serde(default)]
    pub racs: Vec<Spanned<Racs>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    pub client_password_file: Option<Spanned<String>>,
    pub server_user: Option<Spanned<String>>,
    pub server_password_file: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let list = match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        };
        list.iter().map(String::as_str)
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected { cert = \"chain.pem\", key = \"key.pem\" }, or a list of those")]
pub(super) enum Certificates {
    One(Certificate),
    Many(Vec<Certificate>),
}

impl Certificates {
    pub fn list(&self) -> &[Certificate] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    pub cert: String,
    pub key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    pub check: Spanned<String>,
    pub every: Option<Spanned<String>>,
    pub timeout: Option<Spanned<String>>,
    pub fall: Option<Spanned<i64>>,
    pub rise: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub head: Option<Spanned<String>>,
    pub idle: Option<Spanned<String>>,
    pub connect: Option<Spanned<String>>,
    pub response: Option<Spanned<String>>,
    pub stall: Option<Spanned<String>>,
    pub tunnel: Option<Spanned<String>>,
    pub wait: Option<Spanned<String>>,
    pub body_key: Option<Spanned<String>>,
    pub value: Option<Spanned<String>>,
    pub command: Option<Spanned<String>>,
    pub transaction: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pmap {
    pub style: Spanned<String>,
    pub partitions: Option<Spanned<i64>>,
    pub ranges: Option<Spanned<Vec<Spanned<Range>>>>,
    pub table: Option<Spanned<Vec<Spanned<Entry>>>>,
    pub default: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    pub from: Spanned<String>,
    pub racs: Spanned<String>,
    pub name: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub key: Spanned<String>,
    pub racs: Spanned<String>,
    pub name: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Racs {
    pub name: Spanned<String>,
    pub group: Option<Spanned<String>>,
    pub servers: Option<Spanned<Vec<Spanned<super::servers::Written>>>>,
    pub send_proxy: Option<Spanned<bool>>,
    pub pipeline: Option<Spanned<i64>>,
}

/// An access log as it is written: a file, or a table with more.
pub(super) struct AccessLog {
    pub file: String,
    pub slow: Option<Spanned<String>>,
    pub every: Option<Spanned<i64>>,
}

impl<'de> Deserialize<'de> for AccessLog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            file: String,
            slow: Option<Spanned<String>>,
            every: Option<Spanned<i64>>,
        }

        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = AccessLog;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file, or { file = \"access.log\", slow = \"100ms\", every = 1000 }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<AccessLog, E> {
                Ok(AccessLog { file: text.into(), slow: None, every: None })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<AccessLog, A::Error> {
                let Table { file, slow, every } =
                    Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(AccessLog { file, slow, every })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
