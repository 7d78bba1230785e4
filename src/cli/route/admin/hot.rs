//! The keys that are asked for most, as the admin API tells of them.

use std::{
    fmt::Write,
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
};

use router::{HotKey, HotKeys, Measured, ServiceView};
use serde_json::{Value, json};

use super::Families;

/// So many keys of each partition are told.
const OF_PARTITION: usize = 5;
/// So many of each service are in the metrics: each is a series.
const IN_METRICS: usize = 5;

/// `/v1/services/NAME/hot`: the keys of each partition that has hot ones.
pub(super) fn of(view: &ServiceView, measured: &Measured) -> Value {
    let stats = measured.services.iter().find(|stats| stats.service == view.name);
    let Some(hot) = stats.map(|stats| &stats.hot) else { return json!({ "service": view.name }) };
    let mut partitions: Vec<_> = hot.top(usize::MAX).into_iter().map(|key| key.partition).collect();
    partitions.sort();
    partitions.dedup();
    let partitions = partitions.into_iter().map(|partition| {
        let total = hot.total_of(partition);
        let keys = hot.top_of(partition, OF_PARTITION);
        let keys = keys.iter().map(|key| told(Some(view), key, total.unwrap_or_else(|| hot.total())));
        json!({ "partition": name(Some(view), partition.get()), "requests": total, "keys": keys.collect::<Vec<_>>() })
    });
    json!({ "service": view.name, "requests": hot.total(), "partitions": partitions.collect::<Vec<_>>() })
}

/// The hottest keys of a service, by their share of all its requests.
pub(super) fn hottest(view: Option<&ServiceView>, hot: &HotKeys, most: usize) -> Value {
    hot.top(most).iter().map(|key| told(view, key, hot.total())).collect()
}

/// Appends the hottest keys of each service.
pub(super) fn metrics(out: &mut Families, measured: &Measured, views: &[ServiceView]) {
    let family = "phalanx_router_hot_key_share";
    out.begin(family, "gauge", "Share of the requests of a service that ask for its hottest keys, estimated");
    for stats in &measured.services {
        let view = views.iter().find(|view| view.name == stats.service);
        for (rank, key) in (1..).zip(stats.hot.top(IN_METRICS)) {
            let partition = name(view, key.partition.get()).unwrap_or_default();
            let mut labels =
                format!("service=\"{}\",rank=\"{rank}\",partition=\"{partition}\"", stats.service);
            if let Some(text) = text(&key) {
                // In labels these two are escaped, and no character is that is not.
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
                let _ = write!(labels, ",key=\"{escaped}\""); // cannot fail
            }
            let share = share(key.at_least(), stats.hot.total());
            let _ = writeln!(out.0, "{family}{{{labels}}} {share}");
        }
    }
}

fn name(view: Option<&ServiceView>, partition: u32) -> Option<&str> {
    view.and_then(|view| view.partitions.get(partition as usize)).map(|(name, _)| name.as_str())
}

fn share(part: u64, all: u64) -> f64 {
    (part as f64 / all.max(1) as f64 * 1e4).round() / 1e4
}

/// One key. Where keys are hidden it has an id all the same, which is the same as long as this process runs and says nothing
/// to anybody else.
fn told(view: Option<&ServiceView>, key: &HotKey, all: u64) -> Value {
    static SALT: OnceLock<RandomState> = OnceLock::new();
    let id = SALT.get_or_init(RandomState::new).hash_one(key.hash.get());
    json!({
        "partition": name(view, key.partition.get()),
        "key": text(key),
        "id": format!("{id:016x}"),
        "requests": key.count,
        "requests_at_least": key.at_least(),
        "share": share(key.at_least(), all),
    })
}

/// What may be shown of a key: visible ASCII, all else escaped.
fn text(key: &HotKey) -> Option<String> {
    let prefix = key.prefix?;
    let more = if prefix.is_cut() { "..." } else { "" };
    Some(format!("{}{more}", prefix.bytes().escape_ascii()))
}
