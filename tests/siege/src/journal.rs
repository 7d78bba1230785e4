//! Which updates servers have carried out: a file that all of them write to, so that it outlives whoever is killed.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
};

/// Where a server writes the nonces of the updates that it carries out, if it does.
#[derive(Debug)]
pub struct Journal(Option<File>);

impl Journal {
    /// Opens it to write behind what others have written, and while they do.
    ///
    /// # Panics
    /// It cannot be opened.
    pub fn open(path: Option<&Path>) -> Self {
        let open = |path| OpenOptions::new().create(true).append(true).open(path).expect("a file of our own");
        Self(path.map(open))
    }

    /// Whether there is one.
    pub const fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// An update has been carried out. A server says so before it answers.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn ran(&self, nonce: &str) {
        if let Some(mut file) = self.0.as_ref() {
            // In one write, so that lines of several processes do not mix.
            file.write_all(format!("{nonce}\n").as_bytes()).expect("a file of our own");
        }
    }
}

/// What a client was told of its update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was carried out.
    Done,
    /// Nothing for sure.
    Unknown,
}

/// What is wrong with updates, by what servers have written and clients were told of each nonce: one that ran twice, or that is done
/// and has not run.
///
/// # Panics
/// The file cannot be read.
pub fn judge(path: &Path, told: &HashMap<String, Told>) -> Vec<String> {
    let text = fs::read_to_string(path).expect("servers have written");
    let mut ran: HashMap<&str, u64> = HashMap::new();
    for nonce in text.lines() {
        *ran.entry(nonce).or_default() += 1;
    }
    let twice = ran.iter().filter(|(_, times)| **times > 1);
    let twice = twice.map(|(nonce, times)| format!("{nonce} ran {times} times: {:?}", told.get(*nonce)));
    let never = told.iter().filter(|(nonce, told)| **told == Told::Done && !ran.contains_key(nonce.as_str()));
    twice.chain(never.map(|(nonce, _)| format!("{nonce} is done and never ran"))).collect()
}
