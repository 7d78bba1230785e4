//! The witness, as nodes reach it: a directory that both halves share, or the registry of some agent.
//!
//! What it is for, and why it may be trusted, is told in `membership_proto::witness`. Here is where it is, and what it is asked in
//! words; `memory.rs` keeps its records, and `asker.rs` asks.

mod asker;
pub(crate) mod memory;

use std::{fmt, path::PathBuf, str::FromStr};

use membership_proto::witness::{Answer, Epoch, Question};
use membership_types::{LogIndex, NodeId};
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    asker::{Asker, Reached},
    memory::Stores,
};
use crate::rendezvous::{HttpRegistry, ParseRendezvousError, Rendezvous};

/// The largest file, body of a request, and answer.
const MAX_RECORD: usize = 4096;
/// A core has at most 15 members.
const MAX_HALF: usize = 8;

/// Where the witness is, as it is configured.
///
/// Written `file:DIR`, a directory that all nodes share, or `http://HOST:PORT/v1/rendezvous`, the registry of an agent with a
/// data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Witness {
    /// A directory on storage that survives each of the two halves.
    File(PathBuf),
    /// The registry that an agent keeps.
    Http(HttpRegistry),
}

impl FromStr for Witness {
    type Err = ParseRendezvousError;
    fn from_str(text: &str) -> Result<Self, ParseRendezvousError> {
        match text.parse()? {
            Rendezvous::File(dir) => Ok(Self::File(dir)),
            Rendezvous::Http(registry) => Ok(Self::Http(registry)),
            _ => Err(ParseRendezvousError::Value {
                text: text.to_owned(),
                problem: "that is no witness: give file:DIR, or http://HOST:PORT/v1/rendezvous".to_owned(),
            }),
        }
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(dir) => write!(f, "file:{}", dir.display()),
            Self::Http(registry) => registry.fmt(f),
        }
    }
}

fn read_half(words: &[String]) -> Option<Vec<NodeId>> {
    let half: Vec<NodeId> = words.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?;
    let ordered = half.is_sorted_by(|a, b| a < b);
    ((1..=MAX_HALF).contains(&half.len()) && ordered).then_some(half)
}

/// What travels to a registry, and back.
#[derive(Debug, Serialize, Deserialize)]
struct Words {
    epoch: String,
    half: Option<Vec<String>>,
}

impl Words {
    fn of(epoch: Epoch, half: Option<&[NodeId]>) -> Self {
        let half = half.map(|half| half.iter().map(NodeId::to_string).collect());
        Self { epoch: epoch.to_string(), half }
    }

    fn read(bytes: &[u8]) -> Option<(Epoch, Option<Vec<NodeId>>)> {
        let words: Self = serde_json::from_slice(bytes).ok()?;
        let epoch = (words.epoch.len() == 16).then(|| words.epoch.parse().ok()).flatten()?;
        let half = words.half.map(|half| read_half(&half).ok_or(())).transpose().ok()?;
        Some((epoch, half))
    }
}

/// What a request to a registry, below `CLUSTER/witness`, asks: `LINEAGE/CORE`, with a body for a claim. Or a status and why
/// not.
pub(crate) fn question(method: &str, path: &str, body: &[u8]) -> Result<Question, (u16, String)> {
    let like = r#"CLUSTER/witness/LINEAGE/CORE: GET, or PUT of {"epoch":"…","half":["ID","ID"]}"#;
    let wrong = |status: u16| (status, format!("there is {like}"));
    let (lineage, core) = path.trim_matches('/').split_once('/').ok_or_else(|| wrong(404))?;
    let lineage = lineage.parse().map_err(|_| wrong(404))?;
    let core = LogIndex::new(core.parse().map_err(|_| wrong(404))?);
    let claim = match method {
        "GET" => None,
        "PUT" => match Words::read(body) {
            Some((epoch, Some(half))) => Some((epoch, half)),
            _ => return Err(wrong(400)),
        },
        _ => return Err(wrong(405)),
    };
    Ok(Question { lineage, core, claim })
}

/// The answer to it, as a registry writes it.
pub(crate) fn written(answer: &Answer) -> serde_json::Value {
    serde_json::to_value(Words::of(answer.epoch, answer.record.as_deref())).expect("plain")
}

/// The same, as it is read.
pub(crate) fn read_answer(asked: &Question, body: &[u8]) -> Option<Answer> {
    let (epoch, record) = Words::read(body)?;
    Some(Answer { lineage: asked.lineage, core: asked.core, epoch, record })
}

#[cfg(test)]
mod tests {
    use membership_types::Lineage;

    use super::*;

    pub(super) fn half(n: u32) -> Vec<NodeId> {
        vec![NodeId::new(n, 7), NodeId::new(n + 10, 7)]
    }

    pub(super) fn asked(core: u64, claim: Option<(Epoch, u32)>) -> Question {
        let claim = claim.map(|(epoch, n)| (epoch, half(n)));
        Question { lineage: Lineage::new(5, 0xdef), core: LogIndex::new(core), claim }
    }

    #[test]
    fn requests_are_read_strictly() {
        let path = "5-0000000000000def/3";
        let body = br#"{"epoch":"00000000000000ff","half":["1.7","b.7"]}"#;
        assert_eq!(question("GET", path, b""), Ok(asked(3, None)));
        assert_eq!(question("PUT", path, body), Ok(asked(3, Some((Epoch::new(255), 1)))));
        let status = |method, path, body: &[u8]| question(method, path, body).expect_err("wrong").0;
        assert_eq!(status("DELETE", path, b""), 405);
        for wrong in
            ["", "5-def/3", "5-0000000000000def", "5-0000000000000def/x", "x/3", "5-0000000000000def/3/4"]
        {
            assert_eq!(status("GET", wrong, b""), 404, "{wrong}");
        }
        for wrong in [
            &br#"{"epoch":"00000000000000ff","half":null}"#[..],
            br#"{"epoch":"00000000000000ff","half":[]}"#,
            br#"{"epoch":"00000000000000ff","half":["b.7","1.7"]}"#,
            br#"{"epoch":"00000000000000ff","half":["1.7","1.7"]}"#,
            br#"{"epoch":"ff","half":["1.7"]}"#,
            br#"{"epoch":"00000000000000ff","half":["1.7","2.7","3.7","4.7","5.7","6.7","7.7","8.7","9.7"]}"#,
            b"[",
        ] {
            assert_eq!(status("PUT", path, wrong), 400, "{}", String::from_utf8_lossy(wrong));
        }
        for record in [None, Some(half(1))] {
            let Question { lineage, core, .. } = asked(3, None);
            let answer = Answer { lineage, core, epoch: Epoch::new(7), record };
            let written = written(&answer).to_string();
            assert_eq!(read_answer(&asked(3, None), written.as_bytes()), Some(answer));
        }
    }

    #[test]
    fn a_witness_is_written_as_a_rendezvous_is() {
        for text in ["file:/mnt/shared", "http://10.0.0.3:7070/v1/rendezvous"] {
            assert_eq!(text.parse::<Witness>().expect(text).to_string(), text);
        }
        for wrong in ["static:10.0.0.3:7070", "dns:x", "/mnt/shared", "http:x"] {
            assert!(wrong.parse::<Witness>().is_err(), "{wrong}");
        }
    }
}
