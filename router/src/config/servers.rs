//! What is written about servers: where they are, how much they take, and how long a time is.

use std::{fmt, time::Duration};

use membership_types::Weight;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{
    Surroundings,
    check::{Checked, address, name, wrong},
};
use crate::table::CloneAt;

/// A server as it is written: an address, or a table with more.
pub(super) struct Written {
    /// `None` if the entry itself is the address.
    addr: Option<Spanned<String>>,
    text: String,
    weight: Option<Spanned<i64>>,
    zone: Option<Spanned<String>>,
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            addr: Spanned<String>,
            weight: Option<Spanned<i64>>,
            zone: Option<Spanned<String>>,
        }

        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or { addr = \"host:port\", weight = 3, zone = \"name\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
                Ok(Written { addr: None, text: text.into(), weight: None, zone: None })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Written, A::Error> {
                let Table { addr, weight, zone } =
                    Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let text = addr.get_ref().clone();
                Ok(Written { addr: Some(addr), text, weight, zone })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

pub(super) fn servers(
    written: &Spanned<Vec<Spanned<Written>>>,
    racs: &str,
    surroundings: Surroundings<'_>,
) -> Checked<Vec<CloneAt>> {
    let mut servers: Vec<CloneAt> = Vec::new();
    for server in written.get_ref() {
        let Written { addr, text, weight, zone } = server.get_ref();
        let at = addr.as_ref().map_or(server.span(), Spanned::span);
        let addr = address(&Spanned::new(at, text.clone()), surroundings)?;
        if addr.port() == 0 {
            return wrong(server, format!("{text:?} has no port to connect to"));
        }
        if servers.iter().any(|other| other.addr == addr) {
            let message = format!("{text:?} is listed twice in RACS {racs:?}: list each clone once");
            return wrong(server, message);
        }
        let weight = weight.as_ref().map(self::weight).transpose()?.unwrap_or_default();
        let zone = zone.as_ref().map(name).transpose()?.map(Into::into);
        servers.push(CloneAt { name: text.clone(), addr, weight, zone });
    }
    if servers.is_empty() {
        return wrong(written, format!("RACS {racs:?} is empty: list at least one server"));
    }
    Ok(servers)
}

fn weight(written: &Spanned<i64>) -> Checked<Weight> {
    match Weight::new(*written.get_ref()) {
        Some(weight) => Ok(weight),
        None => wrong(written, format!("{} is no weight: give 1 to {}", written.get_ref(), Weight::MAX)),
    }
}

/// A time, written `500ms`, `2s`, `1m` or `1h`, within these bounds.
pub(super) fn duration(written: &Spanned<String>, least: Duration, most: Duration) -> Checked<Duration> {
    let text = written.get_ref();
    let Some(time) = read_duration(text) else {
        return wrong(written, format!("{text:?} is no time: write it like 500ms, 2s, 1m or 1h"));
    };
    if time < least || time > most {
        let (least, most) = (as_written(least), as_written(most));
        return wrong(written, format!("{text:?} is out of bounds: give {least} to {most}"));
    }
    Ok(time)
}

/// A time of whole milliseconds as it would be written.
fn as_written(time: Duration) -> String {
    let ms = time.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    match units.into_iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// A number of bytes, written `512KiB`, `8MiB` or `1GiB`, within these bounds.
pub(super) fn size(written: &Spanned<String>, least: usize, most: usize) -> Checked<usize> {
    let text = written.get_ref();
    let Some(size) = read_size(text) else {
        return wrong(written, format!("{text:?} is no size: write it like 512KiB, 8MiB or 1GiB"));
    };
    if size < least || size > most {
        let (least, most) = (Size(least), Size(most));
        return wrong(written, format!("{text:?} is out of bounds: give {least} to {most}"));
    }
    Ok(size)
}

fn read_size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

/// A number of bytes, shown as it would be written.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

fn read_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let ms = match unit {
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => return None,
    };
    let seconds = number.parse::<f64>().ok()? * ms / 1e3;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(read_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(read_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(read_duration("24h"), Some(Duration::from_secs(86400)));
        for wrong in ["", "5", "s", "-1s", "1d", "nans", "1e999s", "1 s x"] {
            assert_eq!(read_duration(wrong), None, "{wrong}");
        }
        for (ms, text) in [(0, "0ms"), (20, "20ms"), (1500, "1500ms"), (90_000, "90s"), (86_400_000, "24h")] {
            assert_eq!(as_written(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn sizes_are_counted_in_powers_of_two() {
        for (text, size) in
            [("0", 0), ("17B", 17), ("512KiB", 512 << 10), ("8MiB", 8 << 20), ("1GiB", 1 << 30)]
        {
            assert_eq!(read_size(text), Some(size), "{text}");
        }
        for wrong in [
            "",
            "KiB",
            "8 MiB",
            "8MB",
            "8mib",
            "-1KiB",
            "1.5MiB",
            "99999999999999999999",
            "99999999999999GiB",
        ] {
            assert_eq!(read_size(wrong), None, "{wrong}");
        }
        assert_eq!(
            [1000, 1 << 10, 3 << 20, 1 << 30].map(|size| Size(size).to_string()),
            ["1000", "1KiB", "3MiB", "1GiB"]
        );
    }
}
