//! Places for connections. Where all are taken, who asks for nothing makes room: a few silent clients must not keep a probe, or
//! those whose registry or witness this is, from an answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::node::lock;

/// How many connections are served at once.
const CONNECTIONS: usize = 64;

/// All of them.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    idle: Arc<Mutex<Idle>>,
}

/// Connections on which no request is being answered, those first that asked longest ago.
#[derive(Default)]
struct Idle {
    turns: u64,
    /// Somebody waits for a place, and there was no idle one: the next one is it.
    wanted: bool,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

impl Idle {
    /// The one that asked longest ago makes room, or the next one that is idle.
    fn make_room(&mut self) {
        match self.waiting.pop_first() {
            Some((_, oldest)) => oldest.notify_one(),
            None => self.wanted = true,
        }
    }
}

/// That of one connection, until this is dropped.
pub(crate) struct Place {
    idle: Arc<Mutex<Idle>>,
    /// Under which it is among the idle ones, if it is.
    turn: AtomicU64,
    makes_room: Arc<Notify>,
    _taken: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self { free: Arc::new(Semaphore::new(CONNECTIONS)), idle: Arc::default() }
    }

    /// One for a connection that was made. It is waited for only while requests are answered on all others.
    pub(crate) async fn take(&self) -> Place {
        let free = Arc::clone(&self.free);
        let taken = match Arc::clone(&free).try_acquire_owned() {
            Ok(taken) => Some(taken),
            Err(_) => {
                lock(&self.idle).make_room();
                // An error would say that there are no places any more, but there are.
                let taken = free.acquire_owned().await.ok();
                lock(&self.idle).wanted = false;
                taken
            }
        };
        let (idle, makes_room) = (Arc::clone(&self.idle), Arc::new(Notify::new()));
        let place = Place { idle, turn: AtomicU64::new(0), makes_room, _taken: taken };
        place.waits();
        place
    }
}

impl Place {
    /// No request is being answered.
    pub(super) fn waits(&self) {
        let mut idle = lock(&self.idle);
        if std::mem::take(&mut idle.wanted) {
            self.makes_room.notify_one();
        }
        idle.turns += 1;
        let turn = idle.turns;
        idle.waiting.insert(turn, Arc::clone(&self.makes_room));
        self.turn.store(turn, Relaxed);
    }

    /// One is, and maybe for long.
    pub(super) fn serves(&self) {
        lock(&self.idle).waiting.remove(&self.turn.load(Relaxed));
    }

    /// Waits until somebody else needs the place more.
    pub(super) async fn makes_room(&self) {
        self.makes_room.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.serves();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_asked_longest_ago_makes_room_and_whoever_is_served_does_not() {
        let places = Places::new();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            held.push(places.take().await);
        }
        held[0].serves();
        held[1].serves();
        held[1].waits();
        let makes_room = async {
            held[2].makes_room().await;
            drop(held.remove(2));
            held
        };
        let (next, mut held) = tokio::join!(places.take(), makes_room);
        next.serves();
        for place in &held[2..] {
            place.serves();
        }
        assert_eq!(lock(&places.idle).waiting.len(), 1, "the one that asked a moment ago");
        held.remove(1).serves();
        assert!(timeout(Duration::from_millis(1), places.take()).await.is_ok(), "it is gone");
        held.push(next);
        held.push(places.take().await);
        held.last().expect("it is there").serves();
        assert!(timeout(Duration::from_millis(1), places.take()).await.is_err(), "all are served");
        let is_answered = async {
            tokio::task::yield_now().await;
            held[0].waits();
            held[0].makes_room().await;
            drop(held.swap_remove(0));
        };
        let _next = tokio::join!(places.take(), is_answered);
    }
}
