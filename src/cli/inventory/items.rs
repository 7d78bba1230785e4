//! What all clones of an inventory hold, and how it is written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

/// How many items there may be.
const MOST: usize = 100_000;
/// How many requests are remembered, to be answered again.
const REMEMBERED: usize = 100_000;
/// How often an item can have been written, at most.
const MOST_WRITES: u64 = 1 << 53;

/// An item, and how often it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) value: String,
    pub(crate) version: u64,
}

/// What all clones hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Items {
    pub(crate) items: BTreeMap<String, Item>,
    /// Requests that were applied, with the version that each made; the oldest are forgotten.
    pub(crate) requests: BTreeMap<String, u64>,
    pub(crate) order: VecDeque<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) request: Option<String>,
}

/// What became of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Done { version: u64, repeated: bool },
    Full,
}

impl Items {
    /// As a snapshot.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("items are texts and numbers")
    }

    /// Out of a snapshot. The error says why it is none that any clone can have made: one that goes on with it would
    /// differ from the others, or end.
    pub(crate) fn read(snapshot: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(snapshot).map_err(|e| e.to_string())?;
        let order: BTreeSet<&String> = read.order.iter().collect();
        if order.len() != read.order.len() || !order.into_iter().eq(read.requests.keys()) {
            return Err("its requests and their order do not fit together".to_owned());
        }
        if read.items.len() > MOST || read.order.len() > REMEMBERED {
            return Err("it has more than any clone keeps".to_owned());
        }
        if read.items.values().any(|item| item.version > MOST_WRITES) {
            return Err("nothing can have been written so often".to_owned());
        }
        Ok(read)
    }

    pub(crate) fn write(&mut self, write: Write) -> Written {
        if let Some(version) = write.request.as_ref().and_then(|id| self.requests.get(id)) {
            return Written::Done { version: *version, repeated: true };
        }
        if self.items.len() >= MOST && !self.items.contains_key(&write.key) {
            return Written::Full;
        }
        let item = self.items.entry(write.key).or_insert_with(|| Item { value: String::new(), version: 0 });
        item.value = write.value;
        item.version += 1;
        let version = item.version;
        if let Some(id) = write.request {
            self.requests.insert(id.clone(), version);
            self.order.push_back(id);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.requests.remove(&oldest);
            }
        }
        Written::Done { version, repeated: false }
    }
}
