//! A worker's coarse clock: one tokio timer for all deadlines of all its connections.
//!
//! Arming or moving a deadline is a store into a slot; nothing is allocated or sorted per request. Every tick
//! looks at every slot, which for ten thousand connections costs some microseconds every 20 ms.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};

use membership_types::Instant;

thread_local! {
    /// Whether this thread has slept since it last looked at the real clock.
    static SLEPT: Cell<bool> = const { Cell::new(true) };
}

/// Notes that this thread has slept. For the runtime to call.
pub(crate) fn slept() {
    SLEPT.set(true);
}

/// How often the time may be told from one look at the real clock: that costs as much as a dozen of these.
const TOLD: u32 = 8;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(20);

/// A thread that has not ticked for so long has stood still.
const STALL: Duration = Duration::from_millis(100);

/// The time, to one tick, and the deadlines.
pub(crate) struct Clock {
    zero: std::time::Instant,
    now: Cell<Instant>,
    /// What `fine` tells, and how often it was told since the last look at the real clock.
    fine: Cell<Instant>,
    told: Cell<u32>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
}

struct Slot {
    due: Instant,
    waker: Option<Waker>,
}

impl Clock {
    pub fn new() -> Self {
        // Not zero at the start, so that "avoided until zero" lies in the past.
        let now = Cell::new(Instant::from_nanos(1));
        let (told, slots, free) = Default::default();
        Self { zero: std::time::Instant::now(), fine: now.clone(), now, told, slots, free }
    }

    /// The time of the last tick.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// When `time` will have passed for certain: this clock may be one tick behind.
    pub fn after(&self, time: Duration) -> Instant {
        self.now().after(time).after(TICK)
    }

    /// The time as it was when this thread last woke, or a little later: what is measured from one to the other
    /// is right to a few requests' work, for a fraction of the price of the real clock.
    pub fn fine(&self) -> Instant {
        let told = self.told.get();
        if SLEPT.replace(false) || told >= TOLD {
            self.told.set(0);
            self.fine.set(self.real());
        } else {
            self.told.set(told + 1);
        }
        self.fine.get()
    }

    fn real(&self) -> Instant {
        let elapsed = u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Instant::from_nanos(elapsed.max(1))
    }

    /// Reads the real clock. If this thread did not get to that for long, deadlines move by that time: what a stopped process, or one
    /// without a processor, did not see cannot be held against others. One that was armed just now was armed by a clock that
    /// stood still, and would pass at once. Each time counts as one tick, though: or nothing would ever be given up by a thread that
    /// comes late to all of them.
    pub fn refresh(&self) {
        let now = self.real();
        let lost = now - self.now.replace(now);
        if lost > STALL {
            for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.due != Instant::MAX) {
                slot.due = slot.due.after(lost - TICK);
            }
        }
    }

    /// Ticks for ever.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.refresh();
            let now = self.now.get();
            for slot in &*self.slots.borrow() {
                if slot.due <= now
                    && let Some(waker) = &slot.waker
                {
                    waker.wake_by_ref();
                }
            }
        }
    }

    /// Wakes everyone who holds a deadline.
    pub fn wake_all(&self) {
        for slot in &*self.slots.borrow() {
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Wakes the task that holds this deadline.
    pub fn wake(&self, id: DeadlineId) {
        if let Some(waker) = &self.slots.borrow()[id.0].waker {
            waker.wake_by_ref();
        }
    }
}

/// Names a deadline for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeadlineId(usize);

/// One task's deadline: armed, moved and disarmed as often as it likes.
pub(crate) struct Deadline {
    clock: Rc<Clock>,
    slot: usize,
}

impl Deadline {
    pub fn new(clock: &Rc<Clock>) -> Self {
        let mut slots = clock.slots.borrow_mut();
        let slot = clock.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { due: Instant::MAX, waker: None });
            slots.len() - 1
        });
        Self { clock: Rc::clone(clock), slot }
    }

    pub fn id(&self) -> DeadlineId {
        DeadlineId(self.slot)
    }

    /// The deadline passes after `time`, to three ticks; never earlier, as long as the thread gets to its ticks.
    pub fn arm(&self, time: Duration) {
        self.arm_at(self.clock.after(time));
    }

    pub fn arm_at(&self, due: Instant) {
        self.clock.slots.borrow_mut()[self.slot].due = due;
    }

    pub fn is_armed(&self) -> bool {
        self.clock.slots.borrow()[self.slot].due != Instant::MAX
    }

    pub fn disarm(&self) {
        self.arm_at(Instant::MAX);
    }

    /// Whether the deadline has passed; if not, the task is woken when it does.
    pub fn passed(&self, cx: &Context<'_>) -> bool {
        let slot = &mut self.clock.slots.borrow_mut()[self.slot];
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        slot.due <= self.clock.now()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.clock.slots.borrow_mut()[self.slot] = Slot { due: Instant::MAX, waker: None };
        self.clock.free.borrow_mut().push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_thread_that_stood_still_holds_that_against_nobody() {
        let clock = Rc::new(Clock::new());
        clock.refresh();
        let (before, after) = (Deadline::new(&clock), Deadline::new(&clock));
        let never = Deadline::new(&clock);
        before.arm(MS(300));
        sleep(MS(400));
        // By a clock that stood still.
        after.arm(MS(300));
        clock.refresh();
        let cx = Context::from_waker(Waker::noop());
        assert!(![&before, &after, &never].iter().any(|deadline| deadline.passed(&cx)));
        assert!(clock.now() >= Instant::from_nanos(400_000_000), "the time itself is right");
        let until = clock.after(MS(300));
        while clock.now() <= until {
            sleep(MS(10));
            clock.refresh();
        }
        // On a machine so busy that it stands still here, too, they are later still.
        for _ in 0..1000 {
            if before.passed(&cx) && after.passed(&cx) {
                break;
            }
            sleep(MS(10));
            clock.refresh();
        }
        assert!(before.passed(&cx) && after.passed(&cx) && !never.passed(&cx));
    }

    #[test]
    fn a_thread_that_always_comes_late_gives_up_in_the_end() {
        let clock = Rc::new(Clock::new());
        clock.refresh();
        let deadline = Deadline::new(&clock);
        deadline.arm(MS(50));
        let cx = Context::from_waker(Waker::noop());
        let late = |_: &u32| {
            sleep(STALL + MS(10));
            clock.refresh();
            !deadline.passed(&cx)
        };
        assert_eq!(
            (0..100).take_while(late).count(),
            3,
            "two ticks and a half, and the one that it may be behind"
        );
    }
}
