//! What a node counts.

use std::sync::Mutex;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::node::lock;

/// A node's counters, and the registry in which callers may register their own.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    pub(crate) count: Counts,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $text:literal, $help:literal;)*) => {
        /// Each is shared with the registry.
        #[derive(Clone, Default)]
        pub(crate) struct Counts { $(pub(crate) $name: $kind,)* }

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
    blocked: Counter = "phalanx_blocked", "Times that the node was without a lease after it had one";
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
    multicast: Counter = "phalanx_multicast_sent", "Messages that this node multicast";
    delivered: Counter = "phalanx_multicast_delivered", "Messages of groups delivered at this node";
    states: Counter = "phalanx_states_received", "States of groups that this node received";
    behind: Counter = "phalanx_multicast_behind", "Times that a member of a group was reported as staying behind";
    proofs_by_exiting: Counter = "phalanx_death_proofs_by_exiting", "Deaths proved by all threads exiting, before the memory of the dead was freed";
    proofs_by_pidfd: Counter = "phalanx_death_proofs_by_pidfd", "Deaths proved by the kernel's handle of the process, once its memory was freed";
    wakes_in_vain: Counter = "phalanx_death_wakes_in_vain", "Life lines that were cut though not all threads of the process were seen exiting";
    trace_lost: Counter = "phalanx_trace_records_lost", "Trace records lost because the file was too slow";
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let count = Counts::default();
        count.register(&mut registry);
        Self { registry: Mutex::new(registry), count }
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
