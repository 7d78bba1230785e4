//! Whom a change wakes, where all of it happens on one thread.

use std::{
    cell::RefCell,
    task::{Context, Waker},
};

/// The task that waits for a change, if one does.
#[derive(Default)]
pub(crate) struct LocalWaker(RefCell<Option<Waker>>);

impl LocalWaker {
    /// The task that is asked now is the one to wake, instead of any before it.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.0.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    pub fn wake(&self) {
        if let Some(waker) = &*self.0.borrow() {
            waker.wake_by_ref();
        }
    }
}
