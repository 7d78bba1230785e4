//! What a router passes on must mean to every server what it meant to the router: as many requests, with the same methods,
//! targets, bodies and ends. Who reads a stream otherwise lets a stranger smuggle a request past one of the two.
//!
//! # Map
//!
//! [`payloads`] makes streams of requests: those that have made parsers disagree, and mutations of them; [`families`] those of which
//! public collections consist, by kind. [`reading`] is what the
//! router's parser reads in one, and the bytes that go on. [`peers`] are other parsers, in the servers that they are made for:
//! hyper, llhttp (in Node, strict and lenient), h11, nginx and HAProxy. [`compare`] gives them what goes on.
#![forbid(unsafe_code)]

pub mod families;
pub mod payloads;
pub mod peers;
pub mod reading;

use std::{collections::BTreeMap, fmt, thread};

use peers::{Answer, Peer};
use reading::{Part, Reading};

/// What came of giving peers what goes on.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many streams there were.
    pub streams: u64,
    /// How many requests in them go on.
    pub requests: u64,
    /// How many streams have something that is refused.
    pub refused: u64,
    /// What peers made of the requests.
    pub peers: BTreeMap<&'static str, Counts>,
    /// Where one read something else than the router did.
    pub disagreements: Vec<Disagreement>,
}

/// What one peer made of the requests that go on.
#[derive(Debug, Default)]
pub struct Counts {
    /// Read as the router reads them.
    pub same: u64,
    /// Streams that it refused at some point, after requests that it read the same way: it is stricter than the router.
    pub stricter: u64,
    /// Some of those, as they were passed on.
    pub examples: Vec<Vec<u8>>,
}

/// A peer read something else.
#[derive(Debug)]
pub struct Disagreement {
    /// Who.
    pub peer: &'static str,
    /// What a client sent.
    pub stream: Vec<u8>,
    /// What the router read in a part of it, and passes on.
    pub part: Part,
    /// What the peer said.
    pub answer: Answer,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} disagrees.\n  sent:   {}", self.peer, self.stream.escape_ascii())?;
        writeln!(f, "  passed: {}\n  router: {:?}", self.part.forwarded.escape_ascii(), self.part.requests)?;
        write!(f, "  peer:   {:?}", self.answer)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} streams, {} with a part that is refused; {} requests go on",
            self.streams, self.refused, self.requests
        )?;
        for (peer, counts) in &self.peers {
            writeln!(f, "{peer}: {} streams read the same way, {} refused", counts.same, counts.stricter)?;
            if f.alternate() {
                for example in &counts.examples {
                    writeln!(f, "  refused: {}", example.escape_ascii())?;
                }
            }
        }
        for disagreement in self.disagreements.iter().take(10) {
            writeln!(f, "{disagreement}")?;
        }
        write!(f, "{} disagreements", self.disagreements.len())
    }
}

/// Reads each stream as the router does, and lets every peer read what goes on of it.
///
/// # Panics
/// If a peer is gone.
pub fn compare(peers: &[Peer], streams: &[Vec<u8>]) -> Outcome {
    let readings: Vec<Reading> = streams.iter().map(|stream| Reading::of(stream)).collect();
    let refused = readings.iter().filter(|reading| reading.refused.is_some()).count() as u64;
    let parts: Vec<(&[u8], &Part)> = (streams.iter().zip(&readings))
        .flat_map(|(stream, reading)| reading.parts.iter().map(move |part| (&stream[..], part)))
        .collect();
    let requests = parts.iter().map(|(_, part)| part.requests.len() as u64).sum();
    let mut outcome = Outcome { streams: streams.len() as u64, requests, refused, ..Outcome::default() };
    let ask = |peer: &Peer| parts.iter().map(|(_, part)| peer.ask(&part.forwarded, part.last)).collect();
    let answers: Vec<Vec<Answer>> = thread::scope(|scope| {
        let threads: Vec<_> = peers.iter().map(|peer| scope.spawn(move || ask(peer))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the peer answers")).collect()
    });
    for (peer, answers) in peers.iter().zip(answers) {
        let counts = outcome.peers.entry(peer.name).or_default();
        for ((stream, part), answer) in parts.iter().zip(answers) {
            match answer.judge(part) {
                Verdict::Same => counts.same += 1,
                Verdict::Stricter => {
                    counts.stricter += 1;
                    if counts.stricter.is_power_of_two() {
                        counts.examples.push(part.forwarded.clone());
                    }
                }
                Verdict::Other => outcome.disagreements.push(Disagreement {
                    peer: peer.name,
                    stream: stream.to_vec(),
                    part: (*part).clone(),
                    answer,
                }),
            }
        }
    }
    outcome
}

/// How what a peer read compares to what it should have read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same requests.
    Same,
    /// The same ones up to one that it refused, after which it read nothing more.
    Stricter,
    /// Anything else.
    Other,
}
