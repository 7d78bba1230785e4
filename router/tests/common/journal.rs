//! The oracle of updates: what servers carried out of them, against what their clients were told.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// What a client was told of its update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was carried out.
    Done,
    /// It was not, and never will be.
    Nothing,
    /// Nothing for sure; so it is where the connection ends before the answer, too.
    Unknown,
}

/// Kept by all servers and clients of a test together. Each update has a nonce of its own.
#[derive(Debug, Default)]
pub struct Journal {
    ran: Mutex<HashMap<String, u64>>,
    told: Mutex<HashMap<String, Told>>,
    seen: Mutex<Vec<String>>,
}

impl Journal {
    /// A server has carried this update out. It says so before it answers, and before it dies instead.
    pub fn ran(&self, nonce: &str) {
        let mut ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
        *ran.entry(nonce.to_owned()).or_default() += 1;
    }

    /// A server has seen what must not be.
    pub fn wrong(&self, what: String) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// A client was told this of its update.
    pub fn told(&self, nonce: &str, told: Told) {
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(all.insert(nonce.to_owned(), told), None, "two updates with the nonce {nonce}");
    }

    /// Judges all updates; tells how many were done, were not, and are unknown, or the first few mistakes.
    pub fn judge(&self) -> Result<[usize; 3], String> {
        let ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (nonce, told) in &*told {
            let times = ran.get(nonce).copied().unwrap_or(0);
            let allowed = match told {
                Told::Done => 1..=1,
                Told::Nothing => 0..=0,
                Told::Unknown => 0..=1,
            };
            if !allowed.contains(&times) {
                wrong.push(format!("{nonce}, of which the client was told {told:?}, ran {times} times"));
            }
        }
        // Whoever has not waited for the answer was told nothing for sure.
        let untold = ran.iter().filter(|(nonce, times)| **times > 1 && !told.contains_key(*nonce));
        wrong.extend(untold.map(|(nonce, times)| format!("{nonce} ran {times} times")));
        if !wrong.is_empty() {
            let many = wrong.len();
            wrong.truncate(5);
            return Err(format!("{many} of {}: {wrong:?}", told.len()));
        }
        let of = |wanted| told.values().filter(|told| **told == wanted).count();
        Ok([of(Told::Done), of(Told::Nothing), of(Told::Unknown)])
    }
}
