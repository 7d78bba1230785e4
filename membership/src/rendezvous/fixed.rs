//! The provider `static:`: a list of addresses; host names in it are looked up now and then.

use std::{collections::BTreeSet, io, net::SocketAddr, time::Duration};

use tokio::{
    net::lookup_host,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::rendezvous::finder::Report;

/// How long a lookup may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often names are looked up while none was found, and after that.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Looks a host up, once at a time: the system's resolver cannot be interrupted, and questions to one that hangs must not
/// pile up.
#[derive(Debug, Default)]
pub(crate) struct Lookup(Option<JoinHandle<io::Result<Vec<SocketAddr>>>>);

impl Lookup {
    /// The addresses of `host:port`. If this is dropped the next one waits for the same answer.
    pub(crate) async fn run(&mut self, host: &str) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_owned();
        let ask = || tokio::spawn(async move { lookup_host(host).await.map(Iterator::collect) });
        let answer = self.0.get_or_insert_with(ask).await;
        self.0 = None;
        answer.map_err(io::Error::other)?
    }
}

pub(crate) async fn run(items: Vec<String>, mut report: Report) {
    let fixed: BTreeSet<SocketAddr> = items.iter().filter_map(|item| item.parse().ok()).collect();
    let names: Vec<String> = items.into_iter().filter(|item| item.parse::<SocketAddr>().is_err()).collect();
    if names.is_empty() {
        return report.found(fixed);
    }
    let begun = Instant::now();
    let mut known = false;
    let mut lookups: Vec<(String, Lookup)> =
        names.into_iter().map(|name| (name, Lookup::default())).collect();
    loop {
        let mut found = BTreeSet::new();
        for (name, lookup) in &mut lookups {
            match timeout(PATIENCE, lookup.run(name)).await {
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
