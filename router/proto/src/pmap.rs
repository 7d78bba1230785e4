//! Partition maps: key -> partition -> RACS. Immutable once built, so a look-up is a plain read.

mod ranges;
mod slots;
mod table;

use core::{fmt, num::NonZeroU32};

pub use ranges::{RangeSpec, Ranges};
pub use slots::Slots;
pub use table::{Table, TableEntry};

/// The version of a service's partition map. Grows with every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a map that configuration alone decides.
    pub const FIRST: Self = Self(1);

    /// The epoch with this number.
    pub const fn new(epoch: u64) -> Self {
        Self(epoch)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One partition of a service: its position in the service's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(u32);

impl PartitionId {
    /// The partition at this position.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The position.
    pub const fn get(self) -> u32 {
        self.0
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One RACS of a service: its position in the service's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RacsId(u32);

impl RacsId {
    /// The RACS at this position.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The position.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Why a partition map was refused. Nothing was built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PmapError {
    /// A map without partitions places no key.
    #[error("the map has no partition; give at least 1")]
    Empty,
    /// The table names another number of partitions than it has owners.
    #[error("more than {max} partitions; give at most {max}", max = Slots::MAX)]
    TooMany,
    /// Keys below the first bound belong to nobody.
    #[error("keys below {first:?} belong to no range: the first range must have from = \"\"")]
    Gap {
        /// The first lower bound that was given.
        first: alloc::string::String,
    },
    /// A bound is not above its predecessor, so that two ranges would overlap.
    #[error(
        "range {index} starts at {from:?}, not above its predecessor's {previous:?}, so they overlap: \
         sort the ranges by from, byte by byte"
    )]
    Overlap {
        /// Position of the offending range, from 0.
        index: usize,
        /// Its lower bound.
        from: alloc::string::String,
        /// The lower bound before it.
        previous: alloc::string::String,
    },
    /// Two ranges start at the same key, so the first of them is empty.
    #[error(
        "ranges {before} and {index} both start at {from:?}, so range {before} is empty: remove one",
        before = .index - 1
    )]
    Duplicate {
        /// Position of the second of them, from 0.
        index: usize,
        /// The lower bound they share.
        from: alloc::string::String,
    },
    /// A table has a key twice.
    #[error("the key {key:?} is listed twice: list each key once")]
    DuplicateKey {
        /// Position of the second of them, from 0.
        index: usize,
        /// The key.
        key: alloc::string::String,
    },
    /// Two partitions have one name.
    #[error("two partitions are named {name:?}: names must differ")]
    DuplicateName {
        /// The name.
        name: alloc::string::String,
    },
    /// A partition is assigned to a RACS that does not exist.
    #[error("partition {partition} is assigned to RACS {racs}, but there are only {count}")]
    UnknownRacs {
        /// Position of the partition.
        partition: usize,
        /// The RACS it was assigned to.
        racs: u32,
        /// How many there are.
        count: u32,
    },
}

/// The partition map of one service at one epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Pmap {
    epoch: Epoch,
    style: Style,
}

#[derive(Clone, Debug, PartialEq)]
enum Style {
    Slots(Slots),
    Ranges(Ranges),
    Table(Table),
}

impl Pmap {
    /// A map of hash slots.
    pub const fn slots(epoch: Epoch, slots: Slots) -> Self {
        Self { epoch, style: Style::Slots(slots) }
    }

    /// A map of key ranges.
    pub const fn ranges(epoch: Epoch, ranges: Ranges) -> Self {
        Self { epoch, style: Style::Ranges(ranges) }
    }

    /// A map of keys that are listed.
    pub const fn table(epoch: Epoch, table: Table) -> Self {
        Self { epoch, style: Style::Table(table) }
    }

    /// The version of this map.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many partitions there are.
    pub fn len(&self) -> NonZeroU32 {
        match &self.style {
            Style::Slots(slots) => slots.len(),
            Style::Ranges(ranges) => ranges.len(),
            Style::Table(table) => table.len(),
        }
    }

    /// The partition of this key. Every key has exactly one. Allocates nothing.
    pub fn locate(&self, key: &[u8]) -> PartitionId {
        match &self.style {
            Style::Slots(slots) => slots.locate(key),
            Style::Ranges(ranges) => ranges.locate(key),
            Style::Table(table) => table.locate(key),
        }
    }

    /// The RACS that holds this partition.
    ///
    /// # Panics
    /// If the partition is not of this map.
    pub fn racs(&self, partition: PartitionId) -> RacsId {
        match &self.style {
            Style::Slots(slots) => slots.racs(partition),
            Style::Ranges(ranges) => ranges.racs(partition),
            Style::Table(table) => table.racs(partition),
        }
    }

    /// The partition of this name: slots are named `0` to `n-1`, ranges and listed keys as
    /// configured.
    pub fn by_name(&self, name: &str) -> Option<PartitionId> {
        match &self.style {
            Style::Slots(slots) => slots.by_name(name),
            Style::Ranges(ranges) => ranges.by_name(name),
            Style::Table(table) => table.by_name(name),
        }
    }

    /// The name of this partition, ready to print.
    ///
    /// # Panics
    /// If the partition is not of this map.
    pub fn name(&self, partition: PartitionId) -> PartitionName<'_> {
        match &self.style {
            Style::Slots(_) => PartitionName::Number(partition.get()),
            Style::Ranges(ranges) => PartitionName::Text(ranges.name(partition)),
            Style::Table(table) => PartitionName::Text(table.name(partition)),
        }
    }
}

/// A partition's name; prints without allocating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionName<'a> {
    /// A hash slot is named by its number.
    Number(u32),
    /// A range, or a key that is listed, has a name of its own.
    Text(&'a str),
}

impl fmt::Display for PartitionName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A partition's name in decimal, without sign or leading zeros; the inverse of printing the number.
fn parse_number(name: &str) -> Option<u32> {
    let canonical = name == "0" || !name.starts_with(['0', '+']);
    if canonical { name.parse().ok() } else { None }
}
