//! The services of one worker: which configuration of each serves now, which ones are on their way out, and
//! the doors by which clients come in.
//!
//! A changed configuration is another [`Front`]: who is connected goes over to it between two requests
//! ([`Succession`]); a request under way ends where it began. A front that nobody holds any more is forgotten.

use std::{
    cell::{Cell, OnceCell, RefCell},
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    rc::{Rc, Weak},
    sync::Arc,
};

use membership_sync::Reader;
use router_proto::PhysicalId;
use tokio::sync::mpsc;

use super::{Accepting, Entrance, Front, Worker, accept};
use crate::{
    access::{AccessLog, LogHandle},
    config::Service,
    frames::{LocalCall, serve_locals},
    stats::Counters,
    table::Table,
};

/// Names a listening address of this router for as long as it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DoorId(pub u64);

/// What a worker is to serve from now on.
pub(crate) struct Lineup {
    pub services: Vec<Entry>,
    pub doors: Vec<DoorEntry>,
}

pub(crate) enum Entry {
    /// The service of this name goes on as it is.
    Same(Box<str>),
    /// A new service, or another configuration of one that is served already.
    New(ServiceSetup),
}

pub(crate) struct ServiceSetup {
    pub service: Arc<Service>,
    pub table: Reader<Table>,
    /// Shared with all who may still look at the table.
    pub held: Arc<()>,
    /// Where requests are logged, if they are.
    pub log: Option<LogHandle>,
}

/// An address, and the service (by its position) that those are for who connect there.
pub(crate) struct DoorEntry {
    pub id: DoorId,
    pub service: usize,
    /// What they must do first.
    pub entrance: Entrance,
    /// Where this worker's clients come from, where the door is a new one.
    pub socket: Option<Opening>,
}

/// Where clients come from.
pub(crate) enum Opening {
    Network(Vec<TcpListener>),
    /// They are tasks of this process. Only frames are served so.
    Within(mpsc::Receiver<LocalCall>),
}

/// What comes after one configuration of a service, for whoever still holds it.
pub(crate) struct Succession<S> {
    next: OnceCell<Rc<S>>,
    ended: Cell<bool>,
}

impl<S> Default for Succession<S> {
    fn default() -> Self {
        Self { next: OnceCell::new(), ended: Cell::new(false) }
    }
}

impl<S> Succession<S> {
    /// The configuration that took this one's place, if one did.
    pub fn next(&self) -> Option<&Rc<S>> {
        self.next.get()
    }

    /// Whether nothing comes after this: who is connected is to go once its requests are answered.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    pub(super) fn pass_to(&self, next: &Rc<S>) {
        let _first = self.next.set(Rc::clone(next)); // nothing gives way twice
    }

    pub(super) fn end(&self) {
        self.ended.set(true);
    }
}

/// An address that clients connect to.
pub(super) struct Door {
    id: DoorId,
    front: RefCell<Front>,
    entrance: RefCell<Entrance>,
    /// Whether it closes once its queue is empty.
    closing: Cell<bool>,
    /// Owned by the tasks that accept there.
    sockets: Vec<Weak<tokio::net::TcpListener>>,
}

impl Door {
    pub fn front(&self) -> Front {
        self.front.borrow().clone()
    }

    pub fn entrance(&self) -> Entrance {
        self.entrance.borrow().clone()
    }

    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }
}

struct Held {
    name: Box<str>,
    front: Front,
    _table: Arc<()>,
}

/// All services of a worker.
#[derive(Default)]
pub(super) struct Services {
    current: RefCell<Vec<Held>>,
    retired: RefCell<Vec<Held>>,
    doors: RefCell<Vec<Rc<Door>>>,
}

impl Services {
    /// Goes over to another line-up. Requests that come in from now on are served by it.
    ///
    /// # Errors
    /// A new socket cannot be served. The others are.
    pub fn take_over(&self, worker: &Rc<Worker>, lineup: Lineup) -> io::Result<()> {
        let mut old = self.current.take();
        let mut replaced = Vec::new();
        let mut current = Vec::with_capacity(lineup.services.len());
        for entry in lineup.services {
            let mut take =
                |name: &str| old.iter().position(|held| *held.name == *name).map(|at| old.swap_remove(at));
            match entry {
                Entry::Same(name) => current.extend(take(&name)),
                Entry::New(ServiceSetup { service, table, held, log }) => {
                    let log = log.zip(service.access_log.as_ref()).map(|(handle, asked)| {
                        AccessLog::new(handle, &service.name, asked, worker.counters(&service.name))
                    });
                    let front = Front::new(worker, &service, table, log);
                    if let Some(before) = take(&service.name) {
                        before.front.give_way(Some(&front));
                        replaced.push(before);
                    }
                    current.push(Held { name: service.name.clone(), front, _table: held });
                }
            }
        }
        for gone in old {
            gone.front.give_way(None);
            worker.forget_counters(&gone.name);
            replaced.push(gone);
        }
        let opened = self.doors(worker, lineup.doors, &current);
        *self.current.borrow_mut() = current;
        self.retired.borrow_mut().extend(replaced);
        // Who waits for a request, or at a door, looks again.
        worker.clock.wake_all();
        opened
    }

    fn doors(&self, worker: &Rc<Worker>, entries: Vec<DoorEntry>, services: &[Held]) -> io::Result<()> {
        let mut outcome = Ok(());
        let mut old = self.doors.take();
        let mut doors = Vec::with_capacity(entries.len());
        for DoorEntry { id, service, entrance, socket } in entries {
            let front = services[service].front.clone();
            if let Some(at) = old.iter().position(|door| door.id == id) {
                let door = old.swap_remove(at);
                *door.front.borrow_mut() = front;
                *door.entrance.borrow_mut() = entrance;
                doors.push(door);
            } else if let Some(Opening::Within(calls)) = socket {
                let Front::Frames(service) = front else {
                    unreachable!("only frames are served to this process")
                };
                tokio::task::spawn_local(serve_locals(service, calls));
            } else if let Some(Opening::Network(sockets)) = socket {
                let sockets: io::Result<Vec<_>> = sockets
                    .into_iter()
                    .map(|socket| tokio::net::TcpListener::from_std(socket).map(Rc::new))
                    .collect();
                match sockets {
                    Ok(sockets) => {
                        let door = Rc::new(Door {
                            id,
                            front: RefCell::new(front),
                            entrance: RefCell::new(entrance),
                            closing: Cell::new(false),
                            sockets: sockets.iter().map(Rc::downgrade).collect(),
                        });
                        for socket in sockets {
                            tokio::task::spawn_local(accept(
                                Accepting::begin(worker),
                                socket,
                                Rc::clone(&door),
                            ));
                        }
                        doors.push(door);
                    }
                    Err(error) => outcome = Err(error),
                }
            }
        }
        for door in old {
            // Those in its queue are for whatever the service is now.
            let newest = door.front().newest();
            *door.front.borrow_mut() = newest;
            door.closing.set(true);
        }
        *self.doors.borrow_mut() = doors;
        outcome
    }

    /// All sockets that are listened on, once more.
    pub fn sockets(&self) -> io::Result<Vec<(DoorId, OwnedFd)>> {
        let mut all = Vec::new();
        for door in &*self.doors.borrow() {
            for socket in door.sockets.iter().filter_map(Weak::upgrade) {
                all.push((door.id, socket.as_fd().try_clone_to_owned()?));
            }
        }
        Ok(all)
    }

    /// Every service that serves now.
    pub fn each(&self, mut what: impl FnMut(&str, &Front)) {
        self.current.borrow().iter().for_each(|held| what(&held.name, &held.front));
    }

    /// Hands over what was logged.
    pub fn flush_logs(&self) {
        for held in self.current.borrow().iter().chain(&*self.retired.borrow()) {
            held.front.flush_log();
        }
    }

    /// Tells all that some table has changed, those too that only finish what is under way.
    pub fn tables_changed(&self) {
        for held in self.current.borrow().iter().chain(&*self.retired.borrow()) {
            held.front.tables_changed();
        }
    }

    /// Whether anybody's table has this server.
    pub fn name(&self, id: PhysicalId) -> bool {
        let (current, retired) = (self.current.borrow(), self.retired.borrow());
        current.iter().chain(&*retired).any(|held| held.front.has_server(id))
    }

    /// Forgets those on their way out that nobody holds any more.
    pub fn sweep(&self) {
        self.retired.borrow_mut().retain(|held| held.front.is_held());
    }
}

/// A worker's counters, by service: they go on whatever its configuration becomes.
#[derive(Default)]
pub(super) struct Ledger {
    all: RefCell<Vec<(Box<str>, Rc<Counters>)>>,
    /// How many there were.
    numbers: Cell<u32>,
}

impl Ledger {
    pub fn of(&self, service: &str) -> Rc<Counters> {
        let mut all = self.all.borrow_mut();
        if let Some((_, counters)) = all.iter().find(|(name, _)| **name == *service) {
            return Rc::clone(counters);
        }
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        let counters = Rc::new(Counters::new(number));
        all.push((service.into(), Rc::clone(&counters)));
        counters
    }

    pub fn forget(&self, service: &str) {
        self.all.borrow_mut().retain(|(name, _)| **name != *service);
    }

    /// The service whose counters have this number.
    pub fn name(&self, number: u32) -> Option<String> {
        let all = self.all.borrow();
        all.iter().find(|(_, counters)| counters.number == number).map(|(name, _)| name.to_string())
    }
}
