//! The provider `static:`: a list of addresses; host names in it are looked up now and then.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};

use crate::rendezvous::finder::Report;

/// How long a lookup may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often names are looked up while none was found, and after that.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

pub(crate) async fn run(items: Vec<String>, mut report: Report) {
    let fixed: BTreeSet<SocketAddr> = items.iter().filter_map(|item| item.parse().ok()).collect();
    let names: Vec<String> = items.into_iter().filter(|item| item.parse::<SocketAddr>().is_err()).collect();
    if names.is_empty() {
        return report.found(fixed);
    }
    let begun = Instant::now();
    let mut known = false;
    loop {
        let mut found = BTreeSet::new();
        for name in &names {
            match timeout(PATIENCE, lookup_host(name)).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                // Not in the list yet, perhaps: an empty answer is no error, and is asked again.
                Ok(Err(error)) => tracing::debug!(name, %error, "a rendezvous host is not found yet"),
                Err(_) => tracing::debug!(name, "a rendezvous host was not looked up in time"),
            }
        }
        if !found.is_empty() {
            known = true;
            report.found(found.union(&fixed).copied().collect());
        } else if !known {
            report.so_far(fixed.clone());
            if begun.elapsed() >= PATIENCE {
                report.failed(&"none of its host names is found");
            }
        }
        report.pause(if known { PAUSES.1 } else { PAUSES.0 }).await;
    }
}
