//! What a node counts. `ARCHITECTURE.md` has the table.
//!
//! Nothing here costs anything for each message of a group: the bulk thread adds them up and tells them once a turn.

use std::{
    fmt,
    sync::{Mutex, atomic::AtomicU64},
    time::Duration,
};

use membership_multicast::Class;
use membership_proto::Why;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, text::encode},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::node::lock;

/// A node's counters, and the registry in which callers may register their own.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    pub(crate) count: Counts,
}

/// One for each value of a label.
pub(crate) type By<M> = Family<[(&'static str, &'static str); 1], M>;
pub(crate) type ByVersion = Family<[(&'static str, u32); 1], Gauge>;
type Fraction = Counter<f64, AtomicU64>;

/// Durations, from a tenth of a millisecond to a minute and a half.
#[derive(Clone, Debug)]
pub(crate) struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.0001, 2.0, 21)))
    }
}

impl Seconds {
    pub(crate) fn observe(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

impl EncodeMetric for Seconds {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// How a member's going is counted.
pub(crate) fn cause(why: Why) -> &'static str {
    match why {
        Why::Left => "leave",
        Why::Dead => "proved_death",
        Why::Silent => "lapse",
        Why::Replaced => "replaced",
    }
}

/// Messages and their bytes by class, and frames, to be added to the counters now and then.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) frames: u64,
    sent: [(u64, u64); 3],
    delivered: [(u64, u64); 3],
}

impl Tally {
    pub(crate) fn sent(&mut self, class: Class, bytes: usize) {
        let (messages, of) = &mut self.sent[class as usize];
        *messages += 1;
        *of += bytes as u64;
    }

    pub(crate) fn delivered(&mut self, class: Class, bytes: usize) {
        let (messages, of) = &mut self.delivered[class as usize];
        *messages += 1;
        *of += bytes as u64;
    }

    /// Tells what came together.
    pub(crate) fn tell(&mut self, counts: &Counts) {
        if self.frames > 0 {
            counts.frames.inc_by(std::mem::take(&mut self.frames));
        }
        for class in [Class::Fifo, Class::Ordered, Class::Safe] {
            let label = [("class", class.as_str())];
            let add = |now: &mut (u64, u64), messages: &By<Counter>, bytes: &By<Counter>| {
                if now.0 > 0 {
                    messages.get_or_create(&label).inc_by(now.0);
                    bytes.get_or_create(&label).inc_by(now.1);
                    *now = (0, 0);
                }
            };
            let at = class as usize;
            add(&mut self.sent[at], &counts.multicast, &counts.multicast_bytes);
            add(&mut self.delivered[at], &counts.delivered, &counts.delivered_bytes);
        }
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $text:literal, $help:literal;)*) => {
        /// Each is shared with the registry.
        #[derive(Clone, Default)]
        pub(crate) struct Counts { $(pub(crate) $name: $kind,)* }

        #[cfg(test)]
        const NAMES: &[&str] = &[$($text,)*];

        impl Counts {
            fn register(&self, registry: &mut Registry) {
                $(registry.register($text, $help, self.$name.clone());)*
            }
        }
    };
}

counts! {
    views: Counter = "phalanx_cluster_views", "Cluster views installed";
    group_views: Counter = "phalanx_group_views", "Group views learned";
    leases: Counter = "phalanx_lease_extensions", "Extensions of the node's lease";
    lease_margin: Seconds = "phalanx_lease_margin_seconds", "What was left of the lease when it was extended; near zero it is too short for this network";
    round_trip: Seconds = "phalanx_heartbeat_round_trip_seconds", "From sending a heartbeat to the coordinator's answer";
    coordinator_gap: Seconds = "phalanx_coordinator_change_seconds", "From the last lease of one coordinator to the first one of the next";
    takeover: Seconds = "phalanx_takeover_seconds", "From proof of a leader's death to leading in its place";
    blocked: Counter = "phalanx_blocked", "Times that the node was without a lease after it had one";
    blocked_for: Fraction = "phalanx_blocked_seconds", "Time without a lease after it had one";
    changes: By<Counter> = "phalanx_member_changes", "Changes of the cluster's members that this node learned, by cause";
    group_changes: By<Counter> = "phalanx_group_changes", "Changes of members and ranks of groups that this node learned, by cause";
    ended: By<Counter> = "phalanx_incarnations_ended", "Incarnations of this process that ended, by cause";
    stepped_out: Counter = "phalanx_groups_stepped_out", "Times that this node left a group because others waited for it";
    incarnations: Counter = "phalanx_incarnations", "Incarnations begun by this process";
    reigns: Counter = "phalanx_reigns", "Times that this node began to lead a group";
    leading: Gauge = "phalanx_leading_groups", "Groups that this node leads";
    members: Gauge = "phalanx_cluster_members", "Members of the installed cluster view";
    sent: Counter = "phalanx_messages_sent", "Messages handed to a connection";
    received: Counter = "phalanx_messages_received", "Messages received";
    unknown: Counter = "phalanx_messages_unknown", "Messages of kinds that only newer builds know, skipped";
    undeliverable: Counter = "phalanx_messages_undeliverable", "Messages for which there was no connection and no address";
    dropped: Counter = "phalanx_messages_dropped", "Messages that a full queue, or a broken connection, lost";
    dials: Counter = "phalanx_connections_dialed", "Attempts to connect to another node";
    dial_failures: Counter = "phalanx_connections_failed", "Attempts to connect that failed";
    accepted: Counter = "phalanx_connections_accepted", "Connections accepted";
    links: Gauge = "phalanx_links", "Connections with nodes that have introduced themselves";
    by_version: ByVersion = "phalanx_links_by_version", "Connections with other nodes, by the version of the protocol";
    sealed: By<Gauge> = "phalanx_links_sealed", "1 if connections between nodes are sealed, and by what";
    refused: By<Counter> = "phalanx_connections_refused", "Connections refused, by either side, by reason";
    queue: By<Gauge> = "phalanx_queue_length", "What waits in a queue: the longest one where there are several";
    queue_limit: By<Gauge> = "phalanx_queue_limit", "How much may wait in it";
    rejected: Counter = "phalanx_handshakes_rejected", "Connections refused in the handshake, by either side";
    unauthenticated: Counter = "phalanx_authentications_failed", "Connections refused, by either side, because one did not prove that it belongs to the cluster";
    replays: Counter = "phalanx_replays", "Recorded records and beginnings of connections that somebody repeated, all refused";
    corrupt: Counter = "phalanx_corrupt_records", "Records that did not open, because somebody changed or forged them";
    garbage: Counter = "phalanx_garbage", "Connections closed because of bytes that make no sense, or a frame too large";
    silent: Counter = "phalanx_handshakes_timed_out", "Connections closed because no introduction came in time";
    overrun: Counter = "phalanx_strangers_displaced", "Connections closed to make room for newer ones that had not introduced themselves";
    neighbours: Gauge = "phalanx_neighbours", "Nodes shown to be on this host whose death would be proved at once";
    proofs: Counter = "phalanx_death_proofs", "Deaths proved on this host";
    bulk_links: Gauge = "phalanx_bulk_links", "Connections for what groups say";
    frames: Counter = "phalanx_multicast_frames", "Frames of multicast received";
    multicast: By<Counter> = "phalanx_multicast_sent", "Messages that this node multicast, by class";
    multicast_bytes: By<Counter> = "phalanx_multicast_sent_bytes", "Bytes in them";
    delivered: By<Counter> = "phalanx_multicast_delivered", "Messages of groups delivered at this node, by class";
    delivered_bytes: By<Counter> = "phalanx_multicast_delivered_bytes", "Bytes in them";
    asked: Counter = "phalanx_states_asked", "Times that this node was asked for the state of a group";
    state_lost: Counter = "phalanx_states_lost", "Times that nobody in a group had its state";
    states: Counter = "phalanx_states_received", "States of groups that this node received";
    behind: Counter = "phalanx_multicast_behind", "Times that a member of a group was reported as staying behind";
    proofs_by_exiting: Counter = "phalanx_death_proofs_by_exiting", "Deaths proved by all threads exiting, before the memory of the dead was freed";
    proofs_by_pidfd: Counter = "phalanx_death_proofs_by_pidfd", "Deaths proved by the kernel's handle of the process, once its memory was freed";
    wakes_in_vain: Counter = "phalanx_death_wakes_in_vain", "Life lines that were cut though not all threads of the process were seen exiting";
    witness_answers: Counter = "phalanx_witness_answers", "Answers of the witness";
    witness_failures: Counter = "phalanx_witness_failures", "Times that the witness did not answer";
    witness_reached: Gauge = "phalanx_witness_reached", "1 if the witness answered when it was last asked";
    streams: Gauge = "phalanx_event_streams", "Clients of the admin API that follow the events";
    streams_refused: Counter = "phalanx_event_streams_refused", "Clients that were not let follow the events, because so many did already";
    events_missed: Counter = "phalanx_events_missed", "Events that clients of the admin API missed, because they were too slow";
    trace_lost: Counter = "phalanx_trace_records_lost", "Trace records lost because the file was too slow";
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let count = Counts::default();
        count.register(&mut registry);
        Self { registry: Mutex::new(registry), count }
    }

    /// Where there is no node, nothing of one is counted.
    pub(crate) fn bare() -> Self {
        Self { registry: Mutex::default(), count: Counts::default() }
    }

    pub(crate) fn with_registry<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        with(&mut lock(&self.registry))
    }

    /// In the text format that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &lock(&self.registry)).expect("a String takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_explained_and_named_as_prometheus_wants_it() {
        let explained = include_str!("../../ARCHITECTURE.md");
        for name in NAMES {
            assert!(explained.contains(&format!("`{name}`")), "{name} is missing in ARCHITECTURE.md");
            assert!(
                name.starts_with("phalanx_") && !name.ends_with("_total"),
                "{name}: the encoder adds _total"
            );
        }
    }

    #[test]
    fn what_came_together_is_told_once_by_class() {
        let metrics = Metrics::new();
        let mut tally = Tally::default();
        for bytes in [3, 4] {
            tally.sent(Class::Safe, bytes);
            tally.delivered(Class::Fifo, 10 * bytes);
            tally.frames += 1;
        }
        for _ in 0..2 {
            tally.tell(&metrics.count);
        }
        metrics.count.round_trip.observe(Duration::from_micros(300));
        let text = metrics.text();
        for line in [
            "phalanx_multicast_frames_total 2",
            "phalanx_multicast_sent_total{class=\"safe\"} 2",
            "phalanx_multicast_sent_bytes_total{class=\"safe\"} 7",
            "phalanx_multicast_delivered_total{class=\"fifo\"} 2",
            "phalanx_multicast_delivered_bytes_total{class=\"fifo\"} 70",
            "phalanx_heartbeat_round_trip_seconds_bucket{le=\"0.0004\"} 1",
            "phalanx_heartbeat_round_trip_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(!text.contains("class=\"ordered\""), "{text}");
    }
}
