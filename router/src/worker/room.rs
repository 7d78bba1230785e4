//! Room for large requests: what all clients of a service on one worker hold of them is bounded.
//!
//! A request of a protocol whose requests are in memory as a whole takes its room before it is read, and keeps it until it is answered.
//! Where there is none its client waits, and nothing more is read of it. Whoever came first of all that hold room, or wait for it, gets
//! what it wants in any case: so one is always under way, however large it is and however many smaller ones come, and where how
//! large one is becomes known bit by bit, of many who want more one goes on.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    task::{Context, Waker},
};

use super::READ;

/// Requests beyond so many bytes need room.
const LARGE: usize = READ;

/// The room of one service on one worker.
pub(crate) struct Room {
    most: usize,
    taken: Cell<usize>,
    /// Who holds some, or waits for it, by when they came.
    holders: RefCell<BTreeSet<u64>>,
    next: Cell<u64>,
    /// Clients that wait for some, and how often all such were woken.
    crowd: RefCell<Vec<Waker>>,
    woken: Cell<u64>,
}

/// What a request holds; nothing as long as it waits.
pub(crate) struct Held {
    room: Rc<Room>,
    number: u64,
    len: Cell<usize>,
}

/// What the request that is being read of one client holds.
#[derive(Default)]
pub(crate) struct Share {
    held: Option<Rc<Held>>,
    /// In which crowd its client waits, by how often that was woken.
    waits: Option<u64>,
}

impl Room {
    /// For so many bytes.
    pub fn new(most: usize) -> Rc<Self> {
        let (taken, holders, next, crowd, woken) = Default::default();
        Rc::new(Self { most, taken, holders, next, crowd, woken })
    }

    /// A place behind all who came before, with no room yet.
    fn enlist(self: &Rc<Self>) -> Held {
        let number = self.next.get();
        self.next.set(number + 1);
        self.holders.borrow_mut().insert(number);
        Held { room: Rc::clone(self), number, len: Cell::new(0) }
    }

    fn has(&self, len: usize) -> bool {
        self.taken.get().checked_add(len).is_some_and(|all| all <= self.most)
    }
}

impl Held {
    /// Takes as much more as makes `len` in all. Returns whether there was so much.
    fn grow(&self, len: usize) -> bool {
        let (room, more) = (&self.room, len.saturating_sub(self.len.get()));
        if !room.has(more) && room.holders.borrow().first() != Some(&self.number) {
            return false;
        }
        room.taken.set(room.taken.get() + more);
        self.len.set(self.len.get() + more);
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let room = &self.room;
        room.taken.set(room.taken.get() - self.len.get());
        room.holders.borrow_mut().remove(&self.number);
        room.woken.set(room.woken.get() + 1);
        room.crowd.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

impl Share {
    /// Whether a request that begins with `begun`, and has at least `len` bytes, may be read on. If not, the task is woken
    /// when it may be.
    pub fn suffices(&mut self, room: &Rc<Room>, len: usize, begun: &mut Vec<u8>, cx: &Context<'_>) -> bool {
        if len <= LARGE {
            return true;
        }
        let held = self.held.get_or_insert_with(|| Rc::new(room.enlist()));
        if held.len.get() < len && !held.grow(len.next_multiple_of(READ)) {
            // After a reload that may be another one.
            let room = &held.room;
            let crowd = Some(room.woken.get());
            if self.waits != crowd {
                self.waits = crowd;
                room.crowd.borrow_mut().push(cx.waker().clone());
            }
            return false;
        }
        // Where it waits next may be another room, which was woken as often.
        self.waits = None;
        begun.reserve(len.saturating_sub(begun.len()));
        true
    }

    /// The request has come; it holds its room for as long as what is returned lives.
    pub fn take(&mut self) -> Option<Rc<Held>> {
        self.held.take()
    }

    /// It is to be read once more.
    pub fn put_back(&mut self, held: Option<Rc<Held>>) {
        self.held = held;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    const K: usize = 1 << 10;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A client, and how often it was woken.
    #[derive(Default)]
    struct Reader(Share, Arc<Woken>);

    impl Reader {
        fn wants(&mut self, room: &Rc<Room>, len: usize) -> bool {
            let waker = Waker::from(Arc::clone(&self.1));
            self.0.suffices(room, len, &mut Vec::new(), &Context::from_waker(&waker))
        }

        fn woken(&self) -> usize {
            self.1.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn who_finds_no_room_is_woken_once_there_may_be_some() {
        let room = Room::new(512 * K);
        let [mut a, mut b, mut c] = <[Reader; 3]>::default();
        assert!(a.wants(&room, 1024 * K), "one always may");
        assert!(!b.wants(&room, 65 * K) && !b.wants(&room, 65 * K));
        assert!(b.wants(&room, 64 * K), "what is small needs none");
        assert!(!c.wants(&room, 65 * K));
        let held = a.0.take();
        assert!(!c.wants(&room, 65 * K), "it is held until the answer");
        drop(held);
        assert_eq!((b.woken(), c.woken()), (1, 1));
        assert!(b.wants(&room, 65 * K) && c.wants(&room, 384 * K));
        assert_eq!(room.taken.get(), 512 * K, "in steps of 64 KiB");
        drop((b, c));
        assert_eq!((room.taken.get(), room.holders.borrow().len()), (0, 0));
    }

    #[test]
    fn of_those_who_want_more_the_one_who_came_first_gets_it() {
        let room = Room::new(512 * K);
        let [mut a, mut b] = <[Reader; 2]>::default();
        assert!(a.wants(&room, 256 * K) && b.wants(&room, 256 * K));
        assert!(!b.wants(&room, 257 * K));
        assert!(a.wants(&room, 2048 * K));
        assert_eq!(b.woken(), 0);
        drop(a);
        assert_eq!(b.woken(), 1);
        assert!(b.wants(&room, 2048 * K));
    }

    #[test]
    fn who_wants_more_than_there_is_gets_it_however_many_come_and_go() {
        let room = Room::new(512 * K);
        let mut small = Reader::default();
        assert!(small.wants(&room, 100 * K));
        let mut large = Reader::default();
        assert!(!large.wants(&room, 1024 * K));
        let mut next = Reader::default();
        assert!(next.wants(&room, 100 * K), "who comes later and finds room is not held up");
        drop(small);
        assert_eq!(large.woken(), 1);
        assert!(large.wants(&room, 1024 * K), "it came first of those who are there");
        assert!(!next.wants(&room, 200 * K));
        drop(large);
        assert_eq!(next.woken(), 1);
        assert!(next.wants(&room, 200 * K));
    }

    #[test]
    fn who_has_waited_before_is_woken_in_another_room_too() {
        let [old, new] = [Room::new(512 * K), Room::new(512 * K)];
        let [mut a, mut b, mut c] = <[Reader; 3]>::default();
        assert!(a.wants(&old, 512 * K) && !b.wants(&old, 100 * K));
        drop(a);
        assert!(b.wants(&old, 100 * K));
        drop(b.0.take());
        // The new room is woken as often as the old one was when it waited there.
        assert!(c.wants(&new, 512 * K) && !b.wants(&new, 100 * K));
        drop(c);
        assert_eq!(b.woken(), 2);
        assert!(b.wants(&new, 100 * K));
    }

    #[test]
    fn who_holds_room_of_an_older_configuration_gets_more_there() {
        let [old, new] = [Room::new(512 * K), Room::new(512 * K)];
        let [mut a, mut b] = <[Reader; 2]>::default();
        assert!(a.wants(&old, 256 * K) && b.wants(&old, 256 * K));
        assert!(!b.wants(&new, 512 * K));
        drop(a);
        assert_eq!(b.woken(), 1);
        assert!(b.wants(&new, 512 * K));
        assert_eq!((old.taken.get(), new.taken.get()), (512 * K, 0));
    }
}
