//! `top`: what a node knows of its cluster, again and again.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io::{self, IsTerminal},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{Outcome, events, flags::Time, node::Stops, operate};

/// A live overview, asked at a node's admin API.
///
/// It shows members and their ranks, the coordinator, what is left of the node's lease, groups and their leaders, and how much
/// happens in a second. On a terminal it is drawn anew each time, as much of it as there is room for; else each table follows the
/// one before. A node of the core shows all groups, others those that they are in or observe. A node that does not answer any
/// more is asked again. It ends on INT or TERM. With --json each line is one object, with the members and groups as /v1/view and
/// /v1/groups give them.
///
/// Example: phalanx top --admin 127.0.0.1:7070
#[derive(Args)]
pub(crate) struct Top {
    /// The node's admin API.
    #[arg(long, env = "PHALANX_ADMIN", value_name = "ADDR")]
    admin: SocketAddr,
    /// How often the node is asked; 100ms to 1h.
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = pause)]
    interval: Time,
    /// Show it once, and end. What happens in a second is not known then.
    #[arg(long)]
    once: bool,
}

fn pause(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    let fits = (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&time.0);
    if fits { Ok(time) } else { Err("give 100ms to 1h".into()) }
}

/// What is counted: how it is called here, and in `/metrics`.
const RATES: [(&str, &str); 7] = [
    ("sent", "phalanx_messages_sent_total"),
    ("received", "phalanx_messages_received_total"),
    ("multicast", "phalanx_multicast_sent_total"),
    ("delivered", "phalanx_multicast_delivered_total"),
    ("leases", "phalanx_lease_extensions_total"),
    ("cluster_views", "phalanx_cluster_views_total"),
    ("group_views", "phalanx_group_views_total"),
];

/// What the node said at one time.
struct Sample {
    at: Instant,
    /// What was counted until then.
    counts: BTreeMap<&'static str, f64>,
    status: Value,
    view: Value,
    groups: Value,
}

/// Rows and columns of the terminal; `None` where everything is shown.
type Room = Option<(usize, usize)>;

impl Top {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        let stops = Stops::new()?;
        let draws = io::stdout().is_terminal() && !json && !self.once;
        let mut ticks = interval(self.interval.0);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before: Option<Sample> = None;
        let mut first = true;
        loop {
            tokio::select! {
                biased;
                () = stops.told() => return Ok(0),
                _ = ticks.tick() => {}
            }
            let (admin, room) = (self.admin, if draws { room() } else { None });
            let asked = spawn_blocking(move || Sample::take(admin, room.map(|(rows, _)| rows)));
            let Some(taken) = stops.unless(async { Ok(asked.await.context("asking the node")?) }).await?
            else {
                return Ok(0);
            };
            let text = match (taken, json) {
                (Err(error), _) if first => return Err(error.into()),
                (Err(error), true) => {
                    json!({ "event": "top", "admin": admin, "error": format!("{error:#}") }).to_string()
                }
                (Err(error), false) => plain(&format!("{error:#}")),
                (Ok(sample), _) => {
                    let rates = before.as_ref().and_then(|before| sample.rates_since(before));
                    let text = if json {
                        sample.to_json(admin, rates.as_ref()).to_string()
                    } else {
                        sample.table(rates.as_ref(), room)
                    };
                    before = Some(sample);
                    text
                }
            };
            let text = match (draws, first || json) {
                (true, _) => redraw(&text),
                (false, true) => text,
                (false, false) => format!("\n{text}"),
            };
            first = false;
            if !events::say(text).await || self.once {
                return Ok(0);
            }
        }
    }
}

impl Sample {
    /// Asks the node. Where there is room for so many rows, for no more groups than that.
    fn take(admin: SocketAddr, rows: Option<usize>) -> anyhow::Result<Self> {
        let groups = match rows {
            Some(rows) => operate::get(admin, &format!("/v1/groups?limit={}", rows.max(1)))?,
            None => operate::get(admin, "/v1/groups")?,
        };
        Ok(Self {
            at: Instant::now(),
            counts: counts(&operate::text(admin, "/metrics")?),
            status: operate::get(admin, "/v1/status")?,
            view: operate::get(admin, "/v1/view")?,
            groups,
        })
    }

    /// What happened in a second since then; `None` if it is another process that answers now.
    fn rates_since(&self, before: &Self) -> Option<BTreeMap<&'static str, f64>> {
        let seconds = (self.at - before.at).as_secs_f64();
        let rate = |(name, count): (&&'static str, &f64)| {
            let more = count - before.counts.get(name).copied().unwrap_or(0.0);
            (more >= 0.0).then(|| (*name, more / seconds))
        };
        self.counts.iter().map(rate).collect()
    }

    fn margin_ms(&self) -> Option<f64> {
        let until = self.status["lease_until_ns"].as_u64().filter(|until| *until > 0)?;
        let now = self.status["now_ns"].as_u64()?;
        Some((until as f64 - now as f64) / 1e6)
    }

    fn to_json(&self, admin: SocketAddr, rates: Option<&BTreeMap<&'static str, f64>>) -> Value {
        let status = &self.status;
        let mut object = json!({
            "event": "top",
            "admin": admin,
            "at_ns": status["now_ns"],
            "lease_margin_ms": self.margin_ms(),
            "rates": rates,
            "members": self.view["members"],
            "groups": self.groups,
        });
        for key in [
            "node",
            "id",
            "cluster",
            "phase",
            "ready",
            "blocked",
            "lineage",
            "view",
            "rank",
            "nodes",
            "coordinator",
            "core",
            "leading",
        ] {
            object[key] = status[key].clone();
        }
        object
    }

    /// The table, cut to the room that there is.
    fn table(&self, rates: Option<&BTreeMap<&'static str, f64>>, room: Room) -> String {
        let status = &self.status;
        let text = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => plain(text),
            other => other.to_string(),
        };
        let mut lines = vec![
            format!(
                "{} of cluster {}: {}, view {}, rank {} of {}, coordinator {}",
                text(&status["node"]),
                text(&status["cluster"]),
                text(&status["phase"]),
                text(&status["view"]),
                text(&status["rank"]),
                text(&status["nodes"]),
                text(&status["coordinator"]),
            ),
            match (status["blocked"].as_str(), self.margin_ms()) {
                (Some(why), _) => format!("BLOCKED: {}", plain(why)),
                (None, Some(margin)) => format!("lease: {margin:.0} ms left"),
                (None, None) => "lease: none".to_owned(),
            },
        ];
        let mut line = "each second:".to_owned();
        for (name, _) in RATES {
            let rate = rates.and_then(|rates| rates.get(name));
            let rate = rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
            write!(line, " {} {rate}", name.replace('_', " ")).expect("a String takes everything");
        }
        lines.extend([line, String::new()]);

        let members = self.view["members"].as_array().map_or(&[][..], Vec::as_slice);
        let mut rows = vec![["RANK", "NODE", "ADDRESS", "ROLE"].map(str::to_owned).to_vec()];
        for member in members {
            let is = |key: &str, word: &'static str| (member[key] == true).then_some(word);
            let roles = [is("coordinator", "coordinator"), is("core", "core"), is("self", "asked")];
            rows.push(vec![
                text(&member["rank"]),
                text(&member["node"]),
                text(&member["addr"]),
                roles.into_iter().flatten().collect::<Vec<_>>().join(", "),
            ]);
        }
        // Groups have at least half of what is left.
        let left = room.map_or(usize::MAX, |(rows, _)| rows.saturating_sub(lines.len() + 3));
        lines.extend(cut(aligned(&rows), left / 2, "more members"));

        lines.push(String::new());
        lines.push(match (self.groups["known"].as_str(), self.groups["why"].as_str()) {
            (Some("all"), _) => format!("all groups, as of entry {} of the log", self.groups["index"]),
            (_, why) => format!("not all groups: {}", plain(why.unwrap_or("why is not told"))),
        });
        let groups = self.groups["groups"].as_array().map_or(&[][..], Vec::as_slice);
        let mut rows =
            vec![["GROUP", "VIEW", "TOKEN", "LEADER", "HERE", "MEMBERS"].map(str::to_owned).to_vec()];
        for group in groups {
            let here = match (&group["leading"], &group["rank"]) {
                (Value::Bool(true), _) => "leads".to_owned(),
                (_, Value::Null) => "-".to_owned(),
                (_, rank) => format!("rank {rank}"),
            };
            let members = group["members"].as_array().map_or(&[][..], Vec::as_slice);
            let members: Vec<String> = members.iter().map(|member| text(&member["node"])).collect();
            rows.push(vec![
                text(&group["group"]),
                text(&group["view"]),
                text(&group["token"]),
                text(&group["leader"]),
                here,
                members.join(" "),
            ]);
        }
        let mut table = aligned(&rows);
        if self.groups["next"].is_string() && room.is_none() {
            table.push("... and more groups".to_owned());
        }
        let left = room.map_or(usize::MAX, |(rows, _)| rows.saturating_sub(lines.len() + 1));
        lines.extend(cut(table, left, "more groups"));
        if let Some((rows, columns)) = room {
            lines.truncate(rows);
            lines = lines.iter().map(|line| line.chars().take(columns).collect()).collect();
        }
        lines.join("\n")
    }
}

/// What was counted, by the names of [`RATES`]; all values of a label together.
fn counts(text: &str) -> BTreeMap<&'static str, f64> {
    let mut counts: BTreeMap<&'static str, f64> = RATES.iter().map(|(name, _)| (*name, 0.0)).collect();
    for line in text.lines() {
        let Some((name, count)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or_default();
        if let Some((name, _)) = RATES.iter().find(|(_, metric)| *metric == name)
            && let (Some(sum), Ok(count)) = (counts.get_mut(name), count.parse::<f64>())
        {
            *sum += count;
        }
    }
    counts
}

/// Rows with columns below each other.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// At most so many lines, the last of which says how many are missing.
fn cut(mut lines: Vec<String>, most: usize, what: &str) -> Vec<String> {
    if lines.len() > most {
        lines.truncate(most.saturating_sub(1));
        lines.push(format!("... and {what}"));
    }
    lines
}

/// Without what a terminal would obey: names and reasons come from elsewhere.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Over what was drawn before: each line to its end, and nothing below.
fn redraw(text: &str) -> String {
    // The end of the last line comes from who prints it.
    format!("\x1b[H{}\x1b[K\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// How much of the terminal there is; the last row is left to the cursor.
fn room() -> Room {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    Some(size.map_or((23, 80), |size| (usize::from(size.ws_row) - 1, usize::from(size.ws_col))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(groups: usize) -> Sample {
        let group = |n: usize| {
            json!({ "group": format!("g{n}"), "view": 7, "token": 7, "leader": "a", "rank": null, "leading": false,
                    "members": [{ "node": "a" }, { "node": "b" }] })
        };
        Sample {
            at: Instant::now(),
            counts: BTreeMap::from([("sent", 10.0)]),
            status: json!({ "node": "a", "cluster": "c", "phase": "member", "view": 5, "rank": 0, "nodes": 2,
                            "coordinator": "a\u{1b}[2J", "blocked": null, "lease_until_ns": 2_500_000, "now_ns": 1_000_000 }),
            view: json!({ "members": [
                { "rank": 0, "node": "a", "addr": "10.0.0.1:1", "core": true, "coordinator": true, "self": true },
                { "rank": 1, "node": "a-long-name", "addr": "10.0.0.2:1", "core": false, "coordinator": false, "self": false },
            ] }),
            groups: json!({ "known": "all", "index": 9, "next": null, "groups": (0..groups).map(group).collect::<Vec<_>>() }),
        }
    }

    #[test]
    fn all_of_it_is_shown_in_columns_where_nobody_says_how_much_room_there_is() {
        let text = sample(30).table(None, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "a of cluster c: member, view 5, rank 0 of 2, coordinator a?[2J");
        assert!(lines[1] == "lease: 2 ms left" || lines[1] == "lease: 1 ms left", "{}", lines[1]);
        assert!(lines.contains(&"0     a            10.0.0.1:1  coordinator, core, asked"), "{text}");
        assert!(lines.contains(&"1     a-long-name  10.0.0.2:1"), "{text}");
        assert!(lines.contains(&"all groups, as of entry 9 of the log"), "{text}");
        assert!(text.ends_with("g29    7     7      a       -     a b"), "{text}");
    }

    #[test]
    fn a_terminal_gets_no_more_than_it_has_room_for() {
        for rows in [1, 5, 10, 16, 24] {
            let text = sample(100).table(None, Some((rows, 20)));
            assert!(text.lines().count() <= rows, "{rows}: {text}");
            assert!(text.lines().all(|line| line.chars().count() <= 20), "{text}");
        }
        assert!(sample(100).table(None, Some((24, 80))).ends_with("... and more groups"));
        assert_eq!(redraw("a\nb"), "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
    }

    #[test]
    fn rates_are_of_all_values_of_a_label_and_not_of_another_process() {
        let text = "# HELP x y\nphalanx_multicast_sent_total{class=\"safe\"} 3\nphalanx_multicast_sent_total{class=\"fifo\"} 4\n\
                    phalanx_multicast_sent_bytes_total{class=\"fifo\"} 99\nphalanx_messages_sent_total 5\n# EOF\n";
        let counts = counts(text);
        assert_eq!((counts["multicast"], counts["sent"], counts["received"]), (7.0, 5.0, 0.0));
        let (before, mut after) = (sample(0), sample(0));
        after.at = before.at + Duration::from_secs(2);
        after.counts = BTreeMap::from([("sent", 30.0)]);
        assert_eq!(after.rates_since(&before), Some(BTreeMap::from([("sent", 10.0)])));
        after.counts = BTreeMap::from([("sent", 3.0)]);
        assert_eq!(after.rates_since(&before), None, "it counts from the beginning");
    }
}
