//! `bench route`: what it costs to have a router between clients and servers.

use std::{
    iter,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep_until,
};

use self::{
    contender::{Contender, Router, Task},
    layout::{Layout, Places},
    load::Load,
    speech::Protocol,
};
use super::name_of;
use crate::cli::{Failure, Outcome, complain, events, exit, flags::Time, node::Stops, scratch::Scratch};

mod contender;
mod layout;
mod load;
mod server;
mod speech;

/// Clients ask servers that answer at once: by turns directly, which is the floor, and through routers. How many
/// requests are answered a second, how long that takes, and how much CPU time of the router each costs.
///
/// A client sends so many requests, and more when it has their answers. No two that are under way have the same key,
/// and each answer must be that of its key: exit code 1 if one was not, or did not come. Clients and servers are
/// threads of this process, as many as the router has workers; each router is a process of its own. Of every
/// measurement the median of all rounds is printed, but of the longest times the longest.
///
/// Example: phalanx bench route --protocol redis --in-flight 32 --by phalanx,nutcracker
#[derive(Args)]
pub(crate) struct Route {
    /// What clients and servers speak.
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    protocol: Protocol,
    /// The routers, in the order of each round. All but phalanx must be installed: nginx or haproxy (http), nutcracker
    /// (redis, memcached).
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_values = ["phalanx"])]
    by: Vec<Contender>,
    /// How many clients, each on a connection of its own; 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 64)]
    clients: usize,
    /// How many requests a client sends at once; 1 to 1000, of http 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    in_flight: usize,
    /// How many keys there are; at least as many as requests can be under way, at most 10000000.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    keys: usize,
    /// How many servers the keys are spread over; 1 to 100.
    #[arg(long, value_name = "N", default_value_t = 3)]
    servers: usize,
    /// Worker threads (nginx: processes) of each router, but nutcracker has one; 1 to 256.
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,
    /// Who runs on which cores [default: pinned where there are enough, else free].
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// How long each measurement takes; 100ms to 1h.
    #[arg(long = "for", value_name = "DUR", default_value = "5s")]
    duration: Time,
    /// How many rounds.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::cli::at_least_one)]
    times: usize,
}

/// What comes before counting: connections are made, caches get warm.
const WARM_UP: Duration = Duration::from_millis(300);
/// How many bytes clients and servers have room for when they read.
const ROOM: usize = 64 << 10;

/// What one measurement gave.
struct Measured {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    longest_us: f64,
    /// Of the router, for each request; none without one.
    cpu_us: Option<f64>,
    errors: u64,
}

impl Route {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        self.check()?;
        let places = Places::new(self.layout, self.workers)?;
        let stops = Stops::new()?;
        // Who closes the terminal wants no routers left behind either.
        let mut hangup = signal(SignalKind::hangup())?;
        let measured = tokio::select! {
            measured = stops.unless(self.measure(&places, json)) => measured?,
            _ = hangup.recv() => None,
        };
        measured.ok_or_else(|| Failure::new(exit::FAILED, "ended before all rounds were measured"))
    }

    fn check(&self) -> Result<(), Failure> {
        let Self { clients, in_flight, keys, servers, workers, .. } = *self;
        let least = clients.saturating_mul(in_flight);
        let wrong = if !(1..=1000).contains(&clients) {
            format!("--clients {clients}: give 1 to 1000")
        } else if !(1..=1000).contains(&in_flight) {
            format!("--in-flight {in_flight}: give 1 to 1000")
        } else if self.protocol == Protocol::Http && in_flight > 1 {
            format!("--in-flight {in_flight}: a client of http sends one request at a time")
        } else if !(least..=10_000_000).contains(&keys) {
            format!("--keys {keys}: give {least} to 10000000, for so many requests can be under way")
        } else if !(1..=100).contains(&servers) {
            format!("--servers {servers}: give 1 to 100")
        } else if !(1..=256).contains(&workers) {
            format!("--workers {workers}: give 1 to 256")
        } else if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.duration.0) {
            "--for: give 100ms to 1h".to_owned()
        } else {
            return self.by.iter().try_for_each(|contender| contender.check(self.protocol));
        };
        Err(Failure::usage(wrong))
    }

    async fn measure(&self, places: &Places, json: bool) -> Outcome {
        let dir = Scratch::new("bench")?;
        places.take()?;
        let servers = server::start(self.protocol.speech(), self.servers, self.workers)?;
        let task = Task {
            protocol: self.protocol,
            servers: &servers,
            workers: self.workers,
            dir: dir.path(),
            places,
        };
        // The first one is nobody: clients ask servers directly.
        let all = iter::once(None).chain(self.by.iter().copied().map(Some));
        let mut all: Vec<(Option<Contender>, Vec<Measured>)> = all.map(|who| (who, Vec::new())).collect();
        for _ in 0..self.times {
            for (who, runs) in &mut all {
                let router = match *who {
                    Some(contender) => Some(Router::start(contender, &task).await?),
                    None => None,
                };
                runs.push(self.once(&servers, router.as_ref()).await?);
                if let Some(router) = router {
                    router.end().await?;
                }
            }
        }
        let about = json!({
            "protocol": name_of(&self.protocol), "layout": name_of(&places.layout), "clients": self.clients,
            "in_flight": self.in_flight, "keys": self.keys, "servers": self.servers, "workers": self.workers,
        });
        for (who, runs) in &all {
            print(&about, *who, runs, &all[0].1, json);
        }
        if let Some((_, ours)) = all.iter().find(|(who, _)| *who == Some(Contender::Phalanx)) {
            for (peer, theirs) in &all {
                if let Some(peer) = peer.filter(|peer| *peer != Contender::Phalanx) {
                    print_ratios(&name_of(&peer), ours, theirs, json);
                }
            }
        }
        let errors: u64 = all.iter().flat_map(|(_, runs)| runs).map(|run| run.errors).sum();
        let summary = json!({"event": "summary", "errors": errors});
        let text = format!("{errors} requests had no answer, or another's");
        events::line(&if json { summary.to_string() } else { text });
        Ok(if errors > 0 { exit::FAILED } else { 0 })
    }

    /// Has clients ask for a while.
    async fn once(&self, servers: &[SocketAddr], router: Option<&Router>) -> Result<Measured, Failure> {
        let begin = Instant::now() + WARM_UP;
        let end = begin + self.duration.0;
        let load = Load {
            protocol: self.protocol,
            targets: router.map_or_else(|| servers.to_vec(), |router| vec![router.at]),
            clients: self.clients,
            in_flight: self.in_flight,
            keys: self.keys as u32,
            threads: self.workers,
            begin,
            end,
        };
        let asking = tokio::task::spawn_blocking(move || load.run());
        let cpu_us = || router.map(Router::cpu_us).transpose();
        sleep_until(begin.into()).await;
        let before = cpu_us()?;
        sleep_until(end.into()).await;
        let after = cpu_us()?;
        let seen = asking.await.context("asking")??;
        for why in &seen.why {
            complain(format_args!("{}: {why}", router.map_or("directly", |router| &router.name)));
        }
        Ok(Measured {
            per_second: seen.answered as f64 / self.duration.0.as_secs_f64(),
            p50_us: seen.times.quantile(0.5),
            p99_us: seen.times.quantile(0.99),
            longest_us: seen.times.longest(),
            cpu_us: after.zip(before).map(|(after, before)| (after - before) / seen.answered.max(1) as f64),
            errors: seen.errors,
        })
    }
}

/// The medians of all rounds, beside the direct ones of the same rounds.
fn print(about: &Value, who: Option<Contender>, runs: &[Measured], direct: &[Measured], json: bool) {
    let median = |of: fn(&Measured) -> f64| super::median(runs, of);
    let (rate, p50, p99) = (median(|m| m.per_second), median(|m| m.p50_us), median(|m| m.p99_us));
    let longest = runs.iter().map(|m| m.longest_us).fold(0.0, f64::max);
    let errors: u64 = runs.iter().map(|m| m.errors).sum();
    let mut object = json!({
        "event": "floor", "per_second": rate.round(), "latency_us_p50": p50, "latency_us_p99": p99,
        "latency_us_longest": longest, "errors": errors, "runs": runs.len(),
    });
    let mut what = "directly, the floor".to_owned();
    if let Some(who) = who {
        let (name, cpu) = (name_of(&who), median(|m| m.cpu_us.unwrap_or_default()));
        let of_floor = ratio(runs, direct, |m| m.per_second);
        what = format!("{name}, {:.0} % of the floor, {cpu:.2} us of CPU a request", of_floor * 100.0);
        (object["event"], object["by"]) = ("route".into(), name.into());
        (object["cpu_us_per_request"], object["of_floor"]) = (cpu.into(), of_floor.into());
    }
    if let (Value::Object(object), Value::Object(about)) = (&mut object, about) {
        object.extend(about.clone());
    }
    let text = format!(
        "{what}: {:.1} thousand/s, p50 {p50:.0} us, p99 {p99:.0} us, longest {longest:.0} us, {errors} errors (medians of {} runs)",
        rate / 1e3,
        runs.len()
    );
    events::line(&if json { object.to_string() } else { text });
}

/// These measurements as multiples of those of the same rounds: the median.
fn ratio(these: &[Measured], those: &[Measured], of: fn(&Measured) -> f64) -> f64 {
    let rounds: Vec<_> = these.iter().zip(those).collect();
    super::median(&rounds, |(this, that)| of(this) / of(that))
}

fn print_ratios(peer: &str, ours: &[Measured], theirs: &[Measured], json: bool) {
    let ratio = |of: fn(&Measured) -> f64| ratio(ours, theirs, of);
    let (rate, cpu) = (ratio(|m| m.per_second), ratio(|m| m.cpu_us.unwrap_or_default()));
    let (p50, p99) = (ratio(|m| m.p50_us), ratio(|m| m.p99_us));
    let object = json!({
        "event": "ratio", "to": peer, "per_second": rate, "cpu_us_per_request": cpu, "latency_us_p50": p50,
        "latency_us_p99": p99,
    });
    let text =
        format!("phalanx to {peer}: rate {rate:.2}, CPU a request {cpu:.2}, p50 {p50:.2}, p99 {p99:.2}");
    events::line(&if json { object.to_string() } else { text });
}
