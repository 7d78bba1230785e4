//! Servers that die and come back all the time, under clients who judge what they get.
#![allow(dead_code, reason = "every test uses a part")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use membership_types::Rng;

use crate::common::{journal::*, *};

const FOR: Duration = Duration::from_secs(2);

/// What all clients of a test share.
pub struct Field<const N: usize> {
    pub addr: SocketAddr,
    /// Answers of whatever kind.
    pub answers: Counts<1>,
    pub counts: Counts<N>,
    pub journal: Arc<Journal>,
    stop: AtomicBool,
}

impl<const N: usize> Field<N> {
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// What came of it.
pub struct Outcome<const N: usize> {
    pub counts: [u64; N],
    /// How often connections were cut or a server died.
    pub kills: u64,
    /// Updates that were done, were not, and of which nobody knows.
    pub updates: [usize; 3],
}

/// Two RACS of two servers each, and a router before them.
pub struct Setup<C, S> {
    pub seed: u64,
    /// Writes a configuration with these RACS.
    pub config: C,
    /// Starts a server, which says in the journal what it carries out.
    pub start: S,
    /// How many answers clients get between one trouble and the next, however long they take: so that the share of what
    /// fails does not depend on how busy this machine is.
    pub pace: u64,
}

impl<C: Fn(&[&[SocketAddr]]) -> String, S: Fn(SocketAddr, &Arc<Journal>) -> FakeServer + Send + 'static>
    Setup<C, S>
{
    /// Runs `client` on several threads with trouble all the while, until the time is up and what they have counted is
    /// `enough`; then judges what became of their updates.
    pub fn run<const N: usize>(
        self,
        client: impl Fn(&mut Rng, u64, &Field<N>) + Send + Sync + 'static,
        enough: impl Fn(&[u64; N]) -> bool,
    ) -> Outcome<N> {
        let Self { seed, config, start, pace } = self;
        let journal = Arc::new(Journal::default());
        let servers: Vec<FakeServer> = (0..4).map(|_| start(nobody(), &journal)).collect();
        let addrs: Vec<_> = servers.iter().map(|server| server.addr).collect();
        let config = config(&[&addrs[..2], &addrs[2..]]);
        let router = Router::with(&config, 2, |limits| limits.wait = PATIENCE / 2);
        let (stop, kills) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let field = Arc::new(Field {
            addr: router.addr(),
            answers: Counts::default(),
            counts: Counts::default(),
            journal: journal.clone(),
            stop: AtomicBool::new(false),
        });
        let servers_journal = journal.clone();
        let start = move |addr| start(addr, &servers_journal);
        let (answers, over) = (field.clone(), stop.clone());
        let calm = move |answered: &mut u64| {
            let until = *answered + pace;
            while *answered < until && !over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
                [*answered] = answers.answers.get();
            }
        };
        let trouble = trouble(seed, calm, stop.clone(), kills.clone(), servers, start);
        let client = Arc::new(client);
        let clients: Vec<_> = (0..6u64)
            .map(|id| {
                let (client, field) = (client.clone(), field.clone());
                thread::spawn(move || client(&mut Rng::seeded(seed + id), id, &field))
            })
            .collect();
        let is_enough = || kills.get()[0] > 50 && enough(&field.counts.get());
        for_at_least(FOR, || is_enough() || clients.iter().any(thread::JoinHandle::is_finished));
        field.stop.store(true, Ordering::SeqCst);
        clients.into_iter().for_each(|client| client.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        let _servers = trouble.join().unwrap();
        let (counts, [kills]) = (field.counts.get(), kills.get());
        assert!(is_enough(), "the test must have tested something: {kills} kills, {counts:?}");
        let updates = journal.judge().unwrap();
        Outcome { counts, kills, updates }
    }
}

/// Cuts connections and kills and restarts servers at random until told to stop; counts how often.
fn trouble(
    seed: u64,
    mut calm: impl FnMut(&mut u64) + Send + 'static,
    stop: Arc<AtomicBool>,
    kills: Arc<Counts<1>>,
    mut servers: Vec<FakeServer>,
    start: impl Fn(SocketAddr) -> FakeServer + Send + 'static,
) -> thread::JoinHandle<Vec<FakeServer>> {
    thread::spawn(move || {
        let (mut rng, mut answered) = (Rng::seeded(seed), 0);
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(rng.between(1, 30)));
            calm(&mut answered);
            let at = rng.below(servers.len() as u64) as usize;
            if rng.chance(500) {
                servers[at].cut();
            } else {
                servers[at].kill();
                thread::sleep(Duration::from_millis(rng.between(0, 20)));
                servers[at] = start(servers[at].addr);
            }
            kills.add(0);
        }
        servers
    })
}
