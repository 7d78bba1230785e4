//! The partition map as it is written, in each of its styles.

use router_proto::{
    Epoch, Pmap, RacsId,
    pmap::{PmapError, RangeSpec, Ranges, Slots, Table, TableEntry},
};
use toml::Spanned;

use super::{
    RacsConfig,
    check::{Checked, mistake, name, wrong},
    raw,
};
use crate::placement;

pub(super) fn pmap(written: &Spanned<raw::Pmap>, racs: &[RacsConfig]) -> Checked<Pmap> {
    let raw = written.get_ref();
    let style = raw.style.get_ref().as_str();
    let belongs = match style {
        "slots" => "partitions",
        "ranges" => "ranges",
        "table" => "table",
        other => {
            return wrong(&raw.style, format!("unknown style {other:?}: use slots, ranges or table"));
        }
    };
    let stray = [
        ("partitions", raw.partitions.as_ref().map(Spanned::span), "slots"),
        ("ranges", raw.ranges.as_ref().map(Spanned::span), "ranges"),
        ("table", raw.table.as_ref().map(Spanned::span), "table"),
        ("default", raw.default.as_ref().map(Spanned::span), "table"),
    ];
    for (field, place, of) in stray {
        if let (Some(place), true) = (place, of != style) {
            let message = format!("`{field}` does not apply to style {style}: give {belongs} instead");
            return mistake(place, message);
        }
    }
    match style {
        "slots" => slots(written, racs),
        "ranges" => ranges(written, racs),
        _ => table(written, racs),
    }
}

fn slots(written: &Spanned<raw::Pmap>, racs: &[RacsConfig]) -> Checked<Pmap> {
    let Some(partitions) = &written.get_ref().partitions else {
        return wrong(written, "`partitions` is missing: say how many slots, such as partitions = 64");
    };
    let slots = u32::try_from(*partitions.get_ref()).ok().filter(|n| (1..=Slots::MAX).contains(n));
    let Some(slots) = slots else {
        let message = format!("{} partitions: give 1 to {}", partitions.get_ref(), Slots::MAX);
        return wrong(partitions, message);
    };
    let names: Vec<&str> = racs.iter().map(|racs| &*racs.name).collect();
    match Slots::new(placement::owners(slots, &names), count(racs)) {
        Ok(slots) => Ok(Pmap::slots(Epoch::FIRST, slots)),
        Err(error) => wrong(partitions, error.to_string()),
    }
}

fn ranges(written: &Spanned<raw::Pmap>, racs: &[RacsConfig]) -> Checked<Pmap> {
    let Some(written) = &written.get_ref().ranges else {
        let example = "ranges = [{ from = \"\", racs = \"a\" }]";
        return wrong(written, format!("`ranges` is missing: write them, such as {example}"));
    };
    let mut specs = Vec::new();
    for (at, range) in written.get_ref().iter().enumerate() {
        let raw = range.get_ref();
        let racs = owner(&raw.racs, racs)?;
        let name = match &raw.name {
            Some(name) => self::name(name)?.into(),
            None => at.to_string(),
        };
        specs.push(RangeSpec { from: raw.from.get_ref().clone().into_bytes(), racs, name });
    }
    match Ranges::new(specs, count(racs)) {
        Ok(ranges) => Ok(Pmap::ranges(Epoch::FIRST, ranges)),
        Err(error) => {
            let list = written.get_ref();
            let at = match error {
                PmapError::Overlap { index, .. } | PmapError::Duplicate { index, .. } => {
                    list[index].get_ref().from.span()
                }
                PmapError::Gap { .. } => list[0].get_ref().from.span(),
                _ => written.span(),
            };
            mistake(at, error.to_string())
        }
    }
}

fn table(written: &Spanned<raw::Pmap>, racs: &[RacsConfig]) -> Checked<Pmap> {
    let raw = written.get_ref();
    let Some(table) = &raw.table else {
        let example = "table = [{ key = \"eu\", racs = \"a\" }]";
        return wrong(written, format!("`table` is missing: list keys, such as {example}"));
    };
    let Some(default) = &raw.default else {
        let message = "`default` is missing: every key has an owner, so say which RACS holds those not listed, \
                       such as default = \"a\"";
        return wrong(written, message);
    };
    let default = owner(default, racs)?;
    let mut entries = Vec::new();
    for entry in table.get_ref() {
        let raw = entry.get_ref();
        let owner = owner(&raw.racs, racs)?;
        let name = match &raw.name {
            Some(name) => self::name(name)?,
            None => match name(&raw.key) {
                Ok(name) => name,
                Err(_) => {
                    let message = format!(
                        "the partition of key {:?} needs a name of its own, because this key is none: \
                         add name = \"...\", 1 to 128 characters out of A-Z a-z 0-9 . _ : / -",
                        raw.key.get_ref()
                    );
                    return wrong(&raw.key, message);
                }
            },
        };
        let key = raw.key.get_ref().clone().into_bytes();
        entries.push(TableEntry { key, racs: owner, name: name.into() });
    }
    match Table::new(entries, default, count(racs)) {
        Ok(table) => Ok(Pmap::table(Epoch::FIRST, table)),
        Err(error) => {
            let at = match &error {
                PmapError::DuplicateKey { index, .. } => table.get_ref()[*index].get_ref().key.span(),
                _ => table.span(),
            };
            mistake(at, error.to_string())
        }
    }
}

fn count(racs: &[RacsConfig]) -> u32 {
    u32::try_from(racs.len()).expect("a file has fewer than 2^32 RACS")
}

/// The RACS of this name.
fn owner(written: &Spanned<String>, racs: &[RacsConfig]) -> Checked<RacsId> {
    let found = racs.iter().position(|racs| *racs.name == **written.get_ref());
    let Some(found) = found else {
        let known: Vec<&str> = racs.iter().map(|racs| &*racs.name).collect();
        let message = format!(
            "there is no RACS {:?} in this service: there are {}",
            written.get_ref(),
            known.join(", ")
        );
        return wrong(written, message);
    };
    Ok(RacsId::new(u32::try_from(found).expect("a file has fewer than 2^32 RACS")))
}
