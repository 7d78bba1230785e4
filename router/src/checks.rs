//! Active checks: one thread asks every server of the services that want it whether it is well, and tells the
//! workers when that changes.
//!
//! What follows from it is the worker's: clones that are down are avoided while others are left. Neither the
//! partition map nor the leader of updates depends on it. Where a server is checked for several services it is
//! down if one of them says so.

mod ask;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, SystemTime},
};

use membership_types::Rng;
use router_proto::PhysicalId;
use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    config::Checks,
    router::{lock, seed},
    worker::Control,
};

/// How many servers are asked at once.
const AT_ONCE: usize = 64;

/// What active checks say of one server of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerHealth {
    /// The service that it is checked for.
    pub service: String,
    /// Its address.
    pub addr: SocketAddr,
    /// Whether requests go there. True until checks have said otherwise.
    pub up: bool,
    /// Since when that is so.
    pub since: SystemTime,
    /// How many checks there were.
    pub checks: u64,
    /// What the last check that failed found, whether the server is up again or not.
    pub last_error: Option<String>,
}

/// A server that is to be checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub service: Box<str>,
    pub server: PhysicalId,
    pub addr: SocketAddr,
    pub checks: Arc<Checks>,
}

type Key = (Box<str>, PhysicalId);

impl Target {
    fn key(&self) -> Key {
        (self.service.clone(), self.server)
    }

    fn is(&self, (service, server): &Key) -> bool {
        self.service == *service && self.server == *server
    }
}

/// Has servers checked. Its thread starts with the first of them, and ends with this.
pub(crate) struct Checker {
    board: Arc<Board>,
    running: Option<(mpsc::UnboundedSender<Vec<Target>>, thread::JoinHandle<()>)>,
}

/// What is known, and whom to tell.
struct Board {
    known: Mutex<Known>,
    workers: Vec<mpsc::UnboundedSender<Control>>,
}

type Known = BTreeMap<Key, Entry>;

struct Entry {
    target: Target,
    health: ServerHealth,
    tally: Tally,
}

impl Checker {
    pub fn new(workers: &[mpsc::UnboundedSender<Control>]) -> Self {
        let board = Board { known: Mutex::default(), workers: workers.to_vec() };
        Self { board: Arc::new(board), running: None }
    }

    /// From now on these are checked, and no others. What is known of those that stay remains.
    pub fn look_at(&mut self, targets: Vec<Target>) -> io::Result<()> {
        if self.running.is_none() {
            if targets.is_empty() {
                return Ok(());
            }
            let (sender, receiver) = mpsc::unbounded_channel();
            let board = Arc::clone(&self.board);
            let thread = thread::Builder::new().name("router-checks".into()).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(Default::default());
                match runtime {
                    Ok(runtime) => runtime.block_on(attend(receiver, board)),
                    Err(error) => tracing::error!(%error, "servers are not checked"),
                }
            })?;
            self.running = Some((sender, thread));
        }
        self.board.look_at(&targets);
        if let Some((sender, _)) = &self.running {
            let _ = sender.send(targets); // a thread that has ended has said so
        }
        Ok(())
    }

    /// What the checks say, ordered by service and then by when the server was first heard of.
    pub fn health(&self) -> Vec<ServerHealth> {
        lock(&self.board.known).values().map(|entry| entry.health.clone()).collect()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Checker {
    /// Checks nothing any more; what is known stays.
    pub fn stop(&mut self) {
        if let Some((sender, thread)) = self.running.take() {
            drop(sender);
            let _ = thread.join(); // one that panicked has said so
        }
    }
}

impl Board {
    /// Forgets all but these, and takes those that are new for well. One that is only checked in another way is no new one.
    fn look_at(&self, targets: &[Target]) {
        let mut known = lock(&self.known);
        let stays = |key: &Key| targets.iter().any(|target| target.is(key));
        let gone = known.iter().filter(|(key, _)| !stays(key)).map(|(_, entry)| entry.target.clone());
        for target in gone.collect::<Vec<_>>() {
            let before = is_up(&known, target.server);
            known.remove(&target.key());
            if !before && is_up(&known, target.server) {
                self.tell(&target, true);
            }
        }
        for target in targets {
            let entry = known.entry(target.key()).or_insert_with(|| Entry {
                target: target.clone(),
                health: ServerHealth {
                    service: target.service.to_string(),
                    addr: target.addr,
                    up: true,
                    since: SystemTime::now(),
                    checks: 0,
                    last_error: None,
                },
                tally: Tally::default(),
            });
            entry.target.checks = Arc::clone(&target.checks);
        }
    }

    /// Notes a check's outcome, and tells the workers if the server is up or down by it.
    fn note(&self, target: &Target, outcome: Result<(), String>) {
        let mut known = lock(&self.known);
        let before = is_up(&known, target.server);
        let Some(Entry { target: current, health, tally }) = known.get_mut(&target.key()) else { return };
        if current != target {
            return; // it is checked in another way by now
        }
        health.checks += 1;
        let changed = tally.take(outcome.is_ok(), target.checks.fall, target.checks.rise);
        if let Err(error) = outcome {
            health.last_error = Some(error);
        }
        let Some(up) = changed else { return };
        (health.up, health.since) = (up, SystemTime::now());
        let (service, server) = (&*target.service, target.addr);
        if up {
            tracing::info!(service, %server, "a server is up again");
        } else {
            let error = health.last_error.as_deref().unwrap_or_default();
            tracing::warn!(service, %server, error, "a server is down");
        }
        let after = is_up(&known, target.server);
        if before != after {
            self.tell(target, after);
        }
    }

    fn tell(&self, target: &Target, up: bool) {
        for worker in &self.workers {
            let _ = worker.send(Control::Health { server: target.server, addr: target.addr, up });
        }
    }
}

/// Whether no service finds that the server is down.
fn is_up(known: &Known, server: PhysicalId) -> bool {
    known.values().all(|entry| entry.target.server != server || entry.health.up)
}

/// Checks what it is told to, until nobody can tell it any more.
async fn attend(mut told: mpsc::UnboundedReceiver<Vec<Target>>, board: Arc<Board>) {
    let room = Rc::new(Semaphore::new(AT_ONCE));
    let mut rng = Rng::seeded(seed(0));
    let mut running: Vec<(Target, AbortHandle)> = Vec::new();
    while let Some(targets) = told.recv().await {
        running.retain(|(target, task)| {
            let stays = targets.contains(target);
            if !stays {
                task.abort();
            }
            stays
        });
        for target in targets {
            if !running.iter().any(|(other, _)| *other == target) {
                let rng = Rng::seeded(rng.next_u64());
                let task = watch(target.clone(), Arc::clone(&board), Rc::clone(&room), rng);
                running.push((target, tokio::task::spawn_local(task).abort_handle()));
            }
        }
    }
}

/// Checks one server again and again.
async fn watch(target: Target, board: Arc<Board>, room: Rc<Semaphore>, mut rng: Rng) {
    let checks = &*target.checks;
    // Many servers, or many routers, do not ask in step.
    let part =
        |rng: &mut Rng| checks.every.mul_f64(f64::from((rng.next_u64() >> 32) as u32) / 4_294_967_296.0);
    sleep(part(&mut rng)).await;
    loop {
        let Ok(permit) = room.acquire().await else { return };
        let begun = Instant::now();
        let asked = timeout(checks.timeout, ask::ask(&checks.check, &target)).await;
        drop(permit);
        let outcome = asked.unwrap_or_else(|_| Err(format!("no answer in {:?}", checks.timeout)));
        board.note(&target, outcome);
        let next = checks.every.mul_f64(0.9) + part(&mut rng).mul_f64(0.2);
        // The pause is never so short that a machine is busy with nothing but checks.
        sleep_until((begun + next).max(Instant::now() + Duration::from_millis(10))).await;
    }
}

/// Whether a server is up, as its checks went.
#[derive(Default)]
struct Tally {
    down: bool,
    /// How many in a row speak against that.
    row: u32,
}

impl Tally {
    /// Takes in one outcome. Says whether the server is up now, if that has changed.
    fn take(&mut self, well: bool, fall: u32, rise: u32) -> Option<bool> {
        if well != self.down {
            self.row = 0;
            return None;
        }
        self.row += 1;
        if self.row < if self.down { rise } else { fall } {
            return None;
        }
        *self = Self { down: !self.down, row: 0 };
        Some(!self.down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_falls_and_rises_after_so_many_in_a_row() {
        let mut tally = Tally::default();
        let text: String = "++--+---++-+++-"
            .chars()
            .map(|c| match tally.take(c == '+', 3, 2) {
                None => '.',
                Some(true) => 'U',
                Some(false) => 'D',
            })
            .collect();
        assert_eq!(text, ".......D.U.....");
    }
}
