//! `demo`: two partitions of three clones, a router, live load, leaders killed now and then.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufWriter, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use membership::{NodeId, clock::now_ns};
use membership_types::trace::{Cfg, Event, Process, Record, Source};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep_until, timeout},
};

use super::{
    Failure, Outcome, complain, events, exit,
    flags::Time,
    node::Stops,
    proc::{Proc, Said},
    scratch::Scratch,
};

mod history;
mod load;

use load::{Counts, Load};

/// A whole array of partitioned, cloned servers on this machine: live load through a router while leaders are killed.
///
/// Starts six replicated inventory servers as members of two groups, a router in front of them, and clients; kills a leader
/// every few seconds. Exit code 1 if a read failed, an answer came from the wrong partition, an acknowledged update was lost
/// (reads and updates of each key must be linearizable), or the checker found a violation.
#[derive(Args)]
pub(crate) struct Demo {
    /// How long; up to 8760h [default: until Ctrl-C].
    #[arg(long = "for", value_name = "DUR")]
    length: Option<Time>,
    /// How often a leader is killed; 100ms to 8760h.
    #[arg(long, value_name = "DUR", default_value = "3s")]
    kill_every: Time,
}

const GROUPS: [&str; 2] = ["inventory-a", "inventory-b"];
const CLONES: usize = 3;
/// How long everything may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after a kill a fresh clone is started.
const RESTART_AFTER: Duration = Duration::from_millis(300);

/// A clone of an array's server.
struct Clone {
    proc: Proc,
    group: usize,
    id: Option<Process>,
    alive: bool,
}

struct Stage {
    dir: PathBuf,
    json: bool,
    said: mpsc::Sender<Said>,
    clones: BTreeMap<usize, Clone>,
    next: usize,
    /// Who leads each group, and under which token.
    leaders: [Option<(usize, u64)>; 2],
    members: [usize; 2],
    /// When the leader of a group was killed, if no other leads it yet.
    killed_at: [Option<u64>; 2],
    takeovers: Vec<f64>,
    kills: u64,
    admin: Value,
    harness: Harness,
}

impl Demo {
    pub(crate) async fn run(self, json: bool) -> Outcome {
        if self.kill_every.0 < Duration::from_millis(100) {
            return Err(Failure::usage("--kill-every: give 100ms to 8760h"));
        }
        let stops = Stops::new()?;
        let dir = Scratch::new("demo")?;
        fs::create_dir(dir.path().join("rendezvous"))?;
        self.play(&stops, dir.path(), json).await
    }

    async fn play(self, stops: &Stops, dir: &Path, json: bool) -> Outcome {
        let (said, mut heard) = mpsc::channel(1024);
        let mut stage = Stage {
            dir: dir.to_owned(),
            json,
            said: said.clone(),
            clones: BTreeMap::new(),
            next: 1,
            leaders: [None; 2],
            members: [0; 2],
            killed_at: [None; 2],
            takeovers: Vec::new(),
            kills: 0,
            admin: Value::Null,
            harness: Harness::new(&dir.join("harness.jsonl"))?,
        };
        for _ in 0..CLONES {
            for group in 0..GROUPS.len() {
                stage.start_clone(group)?;
            }
        }
        let mut router = stage.start_router()?;
        let address = stage.until_ready(&mut heard, stops).await?;
        let Some(address) = address else { return stage.end(router, None).await };
        let ready = json!({"event": "ready", "router": address, "admin": stage.admin});
        let try_it = format!("ready: try  curl -i http://{address}/items/7 -H 'x-key: 7'");
        events::line(&if json { ready.to_string() } else { try_it });
        let load = Load::start(address);
        let ends = self.length.map(|length| Instant::now() + length.0);
        let mut kill = interval(self.kill_every.0);
        let mut status = interval(Duration::from_secs(1));
        kill.reset();
        let mut restarts: Vec<(Instant, usize)> = Vec::new();
        let mut turn = 0;
        loop {
            let restart = restarts.first().copied();
            let never = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                said = heard.recv() => if let Some(said) = said { stage.hear(&said) },
                _ = kill.tick() => {
                    if let Some(group) = stage.kill_a_leader(turn).await? {
                        turn = group + 1;
                        restarts.push((Instant::now() + RESTART_AFTER, group));
                    }
                }
                () = sleep_until(restart.map_or(never, |(at, _)| at)) => if let Some((_, group)) = restart {
                    restarts.remove(0);
                    stage.start_clone(group)?;
                },
                _ = status.tick() => {
                    stage.show(&load.counts());
                    if events::closed() {
                        break; // Nobody reads any more.
                    }
                }
                () = sleep_until(ends.unwrap_or(never)) => if ends.is_some() { break },
                () = stops.told() => break,
            }
        }
        let counts = load.stop().await;
        router.signal(Signal::TERM);
        timeout(PATIENCE, router.gone()).await??;
        stage.end(router, Some(counts)).await
    }
}

impl Stage {
    fn start_clone(&mut self, group: usize) -> Result<(), Failure> {
        let who = self.next;
        self.next += 1;
        let mut args: Vec<String> =
            ["inventory", "--group", GROUPS[group], "--serve", "127.0.0.1:0"].map(Into::into).into();
        args.extend(self.node_args(&format!("{}{who}", &GROUPS[group]["inventory-".len()..])));
        if who == 1 {
            args.extend(["--admin".into(), "127.0.0.1:0".into()]);
        }
        let proc = Proc::start(&args, who, self.said.clone())?;
        self.clones.insert(who, Clone { proc, group, id: None, alive: true });
        Ok(())
    }

    fn node_args(&self, name: &str) -> Vec<String> {
        let rendezvous = format!("file:{}", self.dir.join("rendezvous").display());
        let trace = self.dir.join(format!("{name}.jsonl")).display().to_string();
        let args = ["--name", name, "--cluster", "demo", "--rendezvous", &rendezvous, "--trace", &trace];
        args.map(Into::into).into()
    }

    fn start_router(&self) -> Result<Proc, Failure> {
        let file = self.dir.join("router.toml");
        let mut text = String::from(
            "[[service]]\nname = \"inventory\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\nkey = \"path:/items/{key}\"\n\
             expose = true\n\n[service.pmap]\nstyle = \"slots\"\npartitions = 64\n",
        );
        for group in GROUPS {
            let _ = write!(text, "\n[[service.racs]]\nname = \"{group}\"\ngroup = \"{group}\"\n");
        }
        fs::write(&file, text)?;
        let mut args: Vec<String> = ["router", "--config"].map(Into::into).into();
        args.push(file.display().to_string());
        args.extend(self.node_args("router"));
        Proc::start(&args, 0, self.said.clone())
    }

    /// Waits until the router serves and both groups are complete. `None` if it was told to stop before.
    async fn until_ready(
        &mut self,
        heard: &mut mpsc::Receiver<Said>,
        stops: &Stops,
    ) -> Result<Option<SocketAddr>, Failure> {
        let (mut address, deadline) = (None, Instant::now() + PATIENCE);
        // The router is told of the views a moment after the members; one read through it shows that it was.
        while address.is_none() || self.members != [CLONES; 2] || self.leaders.iter().any(Option::is_none) {
            tokio::select! {
                said = heard.recv() => if let Some(said) = said {
                    if said.event["event"] == "serving" {
                        address = said.event["listen"].as_str().and_then(|a| a.parse().ok());
                    }
                    self.hear(&said);
                },
                () = sleep_until(deadline) => {
                    let text = format!("not ready after {PATIENCE:?}: members {:?}", self.members);
                    return Err(Failure::new(exit::FAILED, text));
                }
                () = stops.told() => return Ok(None),
            }
        }
        if let Some(address) = address {
            load::until_routed(address, deadline).await?;
        }
        Ok(address)
    }

    fn hear(&mut self, said: &Said) {
        let Said { who, event } = said;
        let Some(clone) = self.clones.get_mut(who) else { return };
        let group = clone.group;
        let at_ns = event["at_ns"].as_u64().unwrap_or_default();
        match event["event"].as_str().unwrap_or_default() {
            "started" => {
                let id = event["id"].as_str().and_then(|id| id.parse::<NodeId>().ok());
                clone.id = id.map(Process::from);
                if *who == 1 && !event["admin"].is_null() {
                    self.admin = event["admin"].clone();
                }
            }
            "view" => self.members[group] = event["members"].as_array().map_or(0, Vec::len),
            "leading" if clone.alive => {
                let token = event["token"].as_u64().unwrap_or_default();
                self.leaders[group] = Some((*who, token));
                let took =
                    self.killed_at[group].take().map(|killed| at_ns.saturating_sub(killed) as f64 / 1e6);
                self.takeovers.extend(took);
                let object = json!({
                    "event": "leader", "group": GROUPS[group], "token": token, "takeover_ms": took,
                });
                let how = took.map_or(String::new(), |ms| format!(" after {ms:.1} ms"));
                let text =
                    format!("{} is led by {}{how}", GROUPS[group], event["node"].as_str().unwrap_or("?"));
                events::line(&if self.json { object.to_string() } else { text });
            }
            "not_leading" if self.leaders[group].is_some_and(|(leader, _)| leader == *who) => {
                self.leaders[group] = None;
            }
            _ => {}
        }
    }

    /// Kills a leader, the next group's in turn.
    async fn kill_a_leader(&mut self, turn: usize) -> Result<Option<usize>, Failure> {
        for group in [turn % 2, (turn + 1) % 2] {
            let Some((who, _)) = self.leaders[group] else { continue };
            if self.members[group] < 2 {
                continue;
            }
            let Some(clone) = self.clones.get_mut(&who) else { continue };
            let pid = clone.proc.pid();
            self.killed_at[group] = Some(now_ns());
            clone.proc.signal(Signal::KILL);
            clone.proc.gone().await?;
            clone.alive = false;
            self.kills += 1;
            self.leaders[group] = None;
            if let Some(p) = clone.id {
                self.harness.write(Event::Crash { p, how: "SIGKILL".into() })?;
            }
            let object =
                json!({"event": "killed", "group": GROUPS[group], "server": format!("#{who}"), "pid": pid});
            events::line(&if self.json {
                object.to_string()
            } else {
                format!("killed the leader of {}", GROUPS[group])
            });
            return Ok(Some(group));
        }
        Ok(None)
    }

    fn show(&self, counts: &Counts) {
        if !self.json {
            events::line(&format!(
                "members {}+{}  reads {} (failed {})  updates {} (unknown {})  kills {}",
                self.members[0],
                self.members[1],
                counts.reads,
                counts.failed_reads,
                counts.updates,
                counts.unknown_updates,
                self.kills
            ));
        }
    }

    /// Stops everything, judges the traces, and sums up.
    async fn end(mut self, router: Proc, counts: Option<Counts>) -> Outcome {
        drop(router);
        for clone in self.clones.values_mut().filter(|clone| clone.alive) {
            clone.proc.signal(Signal::TERM);
        }
        for clone in self.clones.values_mut().filter(|clone| clone.alive) {
            if timeout(Duration::from_secs(20), clone.proc.gone()).await.is_err() {
                clone.proc.signal(Signal::KILL);
            }
        }
        let Some(counts) = counts else { return Ok(0) };
        self.harness.write(Event::End {})?;
        self.harness.out.flush()?;
        let mut traces = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "jsonl") {
                traces.push(path);
            }
        }
        let violations = match checker::check_files(&traces) {
            Ok(report) => {
                if report.failed() || report.invalid.is_some() {
                    complain(&report);
                }
                // What cannot be judged is not known to be right.
                report.violations() + usize::from(report.invalid.is_some())
            }
            Err(error) => {
                complain(format_args!("the traces could not be judged: {error}"));
                1
            }
        };
        self.takeovers.sort_by(f64::total_cmp);
        let median = self.takeovers.get(self.takeovers.len() / 2).copied();
        let summary = json!({
            "event": "summary", "kills": self.kills, "reads": counts.reads, "failed_reads": counts.failed_reads,
            "updates": counts.updates, "unknown_updates": counts.unknown_updates, "refused_updates": counts.refused_updates,
            "repeated_updates": counts.repeated_updates, "wrong_partition": counts.wrong_partition,
            "lost_updates": counts.history.lost, "not_linearizable": counts.history.impossible, "takeover_ms": median, "violations": violations,
        });
        let text = format!(
            "{} leaders killed, next one after {} (median). {} reads, {} failed. {} updates: {} repeated, {} unknown, \
             {} acknowledged but lost. {} reads not linearizable, {} answers from a wrong partition. {violations} violations.",
            self.kills,
            median.map_or("-".into(), |ms| format!("{ms:.1} ms")),
            counts.reads,
            counts.failed_reads,
            counts.updates,
            counts.repeated_updates,
            counts.unknown_updates,
            counts.history.lost,
            counts.history.impossible,
            counts.wrong_partition,
        );
        events::line(&if self.json { summary.to_string() } else { text });
        let wrong =
            counts.failed_reads + counts.wrong_partition + counts.history.lost + counts.history.impossible;
        let bad = wrong > 0 || violations > 0;
        Ok(if bad { exit::FAILED } else { 0 })
    }
}

/// The demo's own part of the trace: whom it killed.
struct Harness {
    out: BufWriter<fs::File>,
    seq: u64,
}

impl Harness {
    fn new(path: &Path) -> Result<Self, Failure> {
        let mut this = Self { out: BufWriter::new(fs::File::create(path)?), seq: 0 };
        let cfg = Cfg {
            lease: 1_000_000_000,
            rho: 0.005,
            hb: 100_000_000,
            bootstrap: Some("alone-after".into()),
            slots: Vec::new(),
            core: Some(5),
            durable: false,
            witness: false,
            bounds: BTreeMap::new(),
        };
        this.write(Event::Cfg(cfg))?;
        Ok(this)
    }

    fn write(&mut self, event: Event) -> Result<(), Failure> {
        self.seq += 1;
        let record = Record { v: 1, src: Source::Harness, seq: self.seq, t: now_ns(), event };
        serde_json::to_writer(&mut self.out, &record)?;
        self.out.write_all(b"\n")?;
        self.out.flush()?;
        Ok(())
    }
}
