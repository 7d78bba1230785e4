//! Everything that parses bytes of others, each as a plain function that must not panic whatever it is given.
//!
//! # Map
//!
//! [`TARGETS`] are those functions. Three things call them: `tests/corpus.rs` on every `cargo test` (what is under `corpus/`,
//! and a bounded number of mutations of it), the binary of this crate for longer, and the targets of cargo-fuzz in `/fuzz`,
//! which see what was covered and so find more. `samples.rs` makes `corpus/` from real frames; `mutate.rs` is the mutations.
#![forbid(unsafe_code)]

mod connections;
pub mod forge;
#[path = "../../../src/cli/inventory/items.rs"]
mod items;
mod keys;
mod memcached;
mod mutate;
mod samples;
mod traffic;

use std::{
    fs, io, panic,
    path::{Path, PathBuf},
    str,
};

use bytes::Bytes;
use membership::{GroupName, Lineage, NodeId, Rendezvous};
use membership_multicast::Frame;
use membership_types::{Rng, trace::Source};
use router::{Config, Surroundings};
use router_proto::http::{Body, HeadScan, Method, ResponseHead};

use items::{Items, Write, Written};

pub use samples::samples;

/// Something that parses.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder under `corpus/`.
    pub name: &'static str,
    /// Panics only if there is a bug.
    pub run: fn(&[u8]),
    /// How many mutations `cargo test` tries: those of slow ones are fewer.
    pub tries: u64,
}

/// All of them.
pub const TARGETS: [Target; 46] = [
    Target { name: "multicast_frame", run: multicast_frame, tries: 50_000 },
    Target { name: "bulk_units", run: membership::fuzz::bulk_units, tries: 20_000 },
    Target { name: "wire_frame", run: membership::fuzz::wire_frame, tries: 50_000 },
    Target { name: "wire_stream", run: membership::fuzz::wire_stream, tries: 50_000 },
    Target { name: "greeting", run: membership::fuzz::greeting, tries: 50_000 },
    Target { name: "notice", run: membership::fuzz::notice, tries: 50_000 },
    Target { name: "trace", run: trace, tries: 10_000 },
    Target { name: "names", run: names, tries: 50_000 },
    Target { name: "router_config", run: router_config, tries: 20_000 },
    Target { name: "sealed_greeting", run: membership::fuzz::sealed_greeting, tries: 3_000 },
    Target { name: "records", run: membership::fuzz::records, tries: 10_000 },
    Target { name: "secret_file", run: membership::fuzz::secret_file, tries: 20_000 },
    Target { name: "file_entry", run: membership::fuzz::file_entry, tries: 20_000 },
    Target { name: "registry", run: membership::fuzz::registry, tries: 5_000 },
    Target { name: "registry_answer", run: membership::fuzz::registry_answer, tries: 20_000 },
    Target { name: "proof", run: membership::fuzz::proof, tries: 20_000 },
    Target { name: "witness", run: membership::fuzz::witness, tries: 20_000 },
    Target { name: "admin", run: admin, tries: 2_000 },
    Target { name: "http_requests", run: traffic::requests, tries: 20_000 },
    Target { name: "http_responses", run: traffic::responses, tries: 20_000 },
    Target { name: "shared_answers", run: traffic::shared_answers, tries: 20_000 },
    Target { name: "chunked_body", run: traffic::chunked_body, tries: 20_000 },
    Target { name: "resp_commands", run: traffic::commands, tries: 20_000 },
    Target { name: "resp_replies", run: traffic::replies, tries: 20_000 },
    Target { name: "resp_transactions", run: traffic::transactions, tries: 20_000 },
    Target { name: "proxy_header", run: connections::proxy_header, tries: 20_000 },
    Target { name: "tls_hello", run: connections::tls_hello, tries: 10_000 },
    Target { name: "json_key", run: keys::json, tries: 20_000 },
    Target { name: "form_key", run: keys::form, tries: 20_000 },
    Target { name: "multipart_key", run: keys::multipart, tries: 20_000 },
    Target { name: "query_key", run: keys::query, tries: 20_000 },
    Target { name: "path_key", run: keys::path, tries: 20_000 },
    Target { name: "token_key", run: keys::token, tries: 20_000 },
    Target { name: "content_type", run: keys::content_type, tries: 20_000 },
    Target { name: "session_cookie", run: keys::session, tries: 20_000 },
    Target { name: "request_ids", run: keys::ids, tries: 20_000 },
    Target { name: "deadline_field", run: keys::deadline, tries: 20_000 },
    Target { name: "memcached_commands", run: memcached::commands, tries: 20_000 },
    Target { name: "memcached_replies", run: memcached::replies, tries: 20_000 },
    Target { name: "frame_requests", run: traffic::frame_requests, tries: 20_000 },
    Target { name: "frame_responses", run: traffic::frame_responses, tries: 20_000 },
    Target { name: "card", run: membership::fuzz::card, tries: 10_000 },
    Target { name: "floor_file", run: membership::fuzz::floor_file, tries: 20_000 },
    Target { name: "kept_state", run: membership::fuzz::kept_state, tries: 20_000 },
    Target { name: "inventory", run: inventory, tries: 20_000 },
    Target { name: "inventory_command", run: inventory_command, tries: 20_000 },
];

/// A frame of a group's multicast: what is understood is written the same way.
pub fn multicast_frame(data: &[u8]) {
    if let Ok(frame) = Frame::decode(Bytes::copy_from_slice(data)) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(again, data, "{frame:?}");
    }
}

/// A trace: read, and judged as far as it goes.
pub fn trace(data: &[u8]) {
    let read = || checker::check_input("t".as_ref(), Box::new(io::Cursor::new(data.to_vec())));
    let (one, two) = (read(), read());
    match (one, two) {
        (Ok(one), Ok(two)) => assert_eq!(one.to_string(), two.to_string()),
        (one, two) => assert_eq!(one.map_err(|e| e.to_string()).err(), two.map_err(|e| e.to_string()).err()),
    }
}

/// What is written on a command line: names of groups, ids, lineages, sources of records, ways to find a cluster.
pub fn names(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(group) = text.parse::<GroupName>() {
        assert!(group.as_str() == text && text.len() <= GroupName::MAX_LEN);
    }
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(lineage) = text.parse::<Lineage>() {
        assert_eq!(lineage.to_string(), text);
    }
    if let Ok(source) = text.parse::<Source>() {
        assert_eq!(source.to_string().parse::<Source>().expect("our own text"), source);
    }
    if let Err(error) = text.parse::<Rendezvous>() {
        assert!(!error.to_string().is_empty());
    }
}

/// A configuration of the router. Names are not looked up.
pub fn router_config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for follows_groups in [false, true] {
        let surroundings = Surroundings { follows_groups, others_keys: &["cluster"], numeric_only: true };
        match Config::parse(text, "r.toml".as_ref(), surroundings) {
            Ok(config) => {
                assert_eq!(config.services().count(), config.services().filter(|n| !n.is_empty()).count())
            }
            Err(error) => assert!(error.line().is_none_or(|line| line <= 1 + text.matches('\n').count())),
        }
    }
}

/// What comes in on a connection with a node's admin API: what is answered is HTTP, and JSON where it says so.
pub fn admin(data: &[u8]) {
    let answers = membership::fuzz::admin(data);
    let Ok(Some(end)) = HeadScan::default().response(&answers) else {
        assert!(answers.is_empty(), "half an answer: {}", answers.escape_ascii());
        return;
    };
    let (head, rest) = answers.split_at(end);
    let asked = data.trim_ascii_start();
    let to = if asked.starts_with(b"HEAD ") { Method::Head } else { Method::Other };
    let answer = ResponseHead::parse(head, to).expect("an answer");
    let json = answer.fields().values(head, b"content-type").any(|kind| kind == b"application/json");
    if let (Body::Length(len), true, true) = (answer.body(), json, !rest.is_empty()) {
        let body = rest.get(..usize::try_from(len).expect("it is in memory")).expect("the whole body");
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok(), "{}", body.escape_ascii());
    }
}

/// A snapshot of an inventory, and then commands, each on a line: what is taken over can be given on, and two clones of it that
/// apply the same commands stay the same.
pub fn inventory(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Ok(mut one) = Items::read(lines.next().unwrap_or_default()) else { return };
    let mut two = Items::read(&one.bytes()).expect("what was taken over is given on");
    for line in lines {
        let write = || serde_json::from_slice::<Write>(line);
        if let (Ok(write), Ok(again)) = (write(), write()) {
            assert_eq!(one.write(write), two.write(again));
            two = Items::read(&two.bytes()).expect("a command makes no state that nobody takes over");
        }
    }
    assert!(one == two);
}

/// Commands to an inventory, each on a line: one that is repeated changes nothing.
pub fn inventory_command(data: &[u8]) {
    let mut items = Items::default();
    for line in data.split(|byte| *byte == b'\n') {
        let write = || serde_json::from_slice::<Write>(line);
        let (Ok(first), Ok(again)) = (write(), write()) else { continue };
        let (named, key) = (first.request.is_some(), first.key.clone());
        items.write(first);
        let before = items.clone();
        match items.write(again) {
            Written::Done { repeated, .. } => assert_eq!(repeated, named),
            Written::Full => panic!("so few are not too many"),
        }
        assert_eq!(items == before, named, "{key}");
    }
}

/// The corpus of a target, by name of file. That of traces has the golden ones of the checker too.
///
/// # Errors
/// If it cannot be read.
pub fn corpus(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = files(&folder(target))?;
    if target == "trace" {
        let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "checker", "golden"].iter().collect();
        for predicate in fs::read_dir(golden)? {
            files.extend(self::files(&predicate?.path())?);
        }
    }
    files.sort();
    Ok(files)
}

fn files(folder: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let read = |entry: io::Result<fs::DirEntry>| {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, fs::read(path)?))
    };
    fs::read_dir(folder)?.map(read).collect()
}

/// Where the corpus of a target is.
pub fn folder(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus", target].iter().collect()
}

/// Runs a target on so many mutations of these seeds. The error is the input on which it panicked.
///
/// # Errors
/// The first input on which it panics.
pub fn hunt(target: Target, seeds: &[Vec<u8>], tries: u64, rng: &mut Rng) -> Result<(), Vec<u8>> {
    let mut input = Vec::new();
    for _ in 0..tries {
        mutate::mutate(&mut input, seeds, rng);
        panic::catch_unwind(|| (target.run)(&input)).map_err(|_| input.clone())?;
    }
    Ok(())
}

/// Runs the target of this name, for cargo-fuzz.
///
/// # Panics
/// If there is a bug, or no such target.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|t| t.name == target);
    (found.expect("TARGETS has all targets").run)(data);
}
