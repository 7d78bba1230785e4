//! Room that commands use one after another.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// How many are kept for later commands.
const KEPT: usize = 256;

/// Values that are expensive to make and are used again once nobody holds them.
pub(crate) struct Spare<T> {
    /// The one used longest ago is at the front. Those that nobody else holds are free.
    kept: RefCell<VecDeque<Rc<RefCell<T>>>>,
}

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self { kept: RefCell::default() }
    }
}

impl<T: Default> Spare<T> {
    /// One that nobody uses, in whatever state it was left.
    pub fn take(&self) -> Rc<RefCell<T>> {
        let mut kept = self.kept.borrow_mut();
        for _ in 0..kept.len().min(4) {
            let oldest = kept.pop_front().expect("there are some");
            kept.push_back(Rc::clone(&oldest));
            // This one and the list's.
            if Rc::strong_count(&oldest) == 2 {
                return oldest;
            }
        }
        let fresh = Rc::<RefCell<T>>::default();
        if kept.len() < KEPT {
            kept.push_back(Rc::clone(&fresh));
        }
        fresh
    }
}
