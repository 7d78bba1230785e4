//! How long commands may wait for company before they are written: at most a fifth of a millisecond, which tokio's timers,
//! in milliseconds, cannot say. One timer of the kernel for each worker, which runs only while something waits.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use router_proto::pipelined::Pipeline;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{
    io::{AsyncWrite, Interest, unix::AsyncFd},
    net::TcpStream,
};

use super::LocalWaker;

/// Between two looks at those who wait: who is seen by two of them has waited long enough.
const LOOK: Duration = Duration::from_micros(100);

/// A worker's short timer, and those who wait for it.
pub(crate) struct Pace {
    timer: AsyncFd<OwnedFd>,
    running: Cell<bool>,
    held: RefCell<Vec<Rc<Hold>>>,
}

/// One connection whose commands may have to wait.
#[derive(Default)]
pub(crate) struct Hold {
    /// Whether something waits.
    waits: Cell<bool>,
    /// Whether one look has seen it waiting.
    seen: Cell<bool>,
    overdue: Cell<bool>,
    /// Whether it is in the list.
    listed: Cell<bool>,
    /// The task that writes.
    pub waker: LocalWaker,
}

impl Hold {
    /// Whether what waits has done so long enough.
    pub fn is_overdue(&self) -> bool {
        self.overdue.get()
    }

    /// Nothing waits any more.
    pub fn end(&self) {
        self.waits.set(false);
        self.overdue.set(false);
    }

    /// Writes what may be written. Returns whether the socket takes no more; an error means that it failed.
    pub fn write<T>(
        &self,
        pipeline: &mut Pipeline<T>,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Result<bool, ()> {
        loop {
            let bytes = pipeline.writable(self.is_overdue());
            if bytes.is_empty() {
                return Ok(false);
            }
            self.end();
            match Pin::new(&mut *stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(len)) if len > 0 => pipeline.wrote(len),
                Poll::Ready(_) => return Err(()),
                Poll::Pending => return Ok(true),
            }
        }
    }
}

impl Pace {
    /// # Errors
    /// The kernel has no timer left for this process.
    pub fn new() -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "unsound for what may close or change its descriptor; an OwnedFd does not"
        )]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self { timer, running: Cell::new(false), held: RefCell::default() })
    }

    /// Something begins to wait, unless something does already: its task is woken in time.
    pub fn hold(&self, hold: &Rc<Hold>) {
        if hold.waits.replace(true) {
            return;
        }
        hold.seen.set(false);
        if !hold.listed.replace(true) {
            self.held.borrow_mut().push(Rc::clone(hold));
        }
        self.start();
    }

    fn start(&self) {
        if !self.running.replace(true) {
            let once = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
            let never = Timespec { tv_sec: 0, tv_nsec: 0 };
            let time = Itimerspec { it_interval: never, it_value: once };
            if let Err(error) = timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &time) {
                // Nobody may wait for a timer that does not come.
                tracing::warn!(%error, "cannot set a timer: commands are not gathered");
                self.running.set(false);
                self.held.borrow_mut().drain(..).for_each(|hold| Self::due(&hold));
            }
        }
    }

    fn due(hold: &Hold) {
        hold.listed.set(false);
        hold.overdue.set(hold.waits.get());
        hold.waker.wake();
    }

    /// Looks at those who wait, for ever.
    pub async fn run(&self) {
        loop {
            match self.timer.readable().await {
                // An expired timer stays readable until it is set anew; the next expiry is told all the same,
                // for tokio is told of changes.
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => return tracing::error!(%error, "the runtime has no more events"),
            }
            self.running.set(false);
            self.held.borrow_mut().retain(|hold| {
                if !hold.waits.get() {
                    hold.listed.set(false);
                    return false;
                }
                if !hold.seen.replace(true) {
                    return true;
                }
                Self::due(hold);
                false
            });
            if !self.held.borrow().is_empty() {
                self.start();
            }
        }
    }
}
