//! Views in which somebody is new: the others go on in the view before until that one is there.
//!
//! Closing a view for somebody who is new waits for what that one says, and senders wait with it: for a process that has just
//! begun, and for its connections. But a member may hear of a view at any time, so it may act as if it had not heard of it yet.
//! That is what it does while nobody goes, and until all who are new have said that they are there, or somebody else closes, or
//! the time is over. Who is new says so as soon as it knows: it comes from no view, and waits for nobody.

use membership_types::Instant;

use crate::machine::{Multicast, View};

/// A view that we have heard of, and act as if we had not.
#[derive(Clone, Hash)]
pub(crate) struct Coming {
    view: View,
    /// For so long.
    until: Instant,
}

impl Multicast {
    /// Membership says the next view.
    pub(crate) fn hear_of(&mut self, view: View) {
        if self.coming.as_ref().is_some_and(|coming| coming.view.id >= view.id) {
            return;
        }
        let until = self.coming.take().map_or_else(|| self.now.after(self.config.meet_within), |c| c.until);
        if self.now < until && self.is_expected(&view) {
            self.mark("members go on until who is new is there");
            self.coming = Some(Coming { view, until });
        } else {
            self.on_view(view);
        }
    }

    /// Do all come along, with somebody new who has said nothing yet, and closes nobody?
    fn is_expected(&self, view: &View) -> bool {
        let Some(last) = self.newest_view() else { return false };
        let said =
            |m: &_| self.early.get(m).is_some_and(|(lin, sync)| *lin == view.lineage && sync.view >= view.id);
        last.members.iter().all(|m| view.contains(*m) && !said(m))
            && view.members.iter().any(|m| !last.contains(*m) && !said(m))
    }

    /// Something was said about views that we have not begun, or time went on.
    pub(crate) fn meet(&mut self) {
        let is_met = |c: &Coming| self.now >= c.until || !self.is_expected(&c.view);
        if self.coming.as_ref().is_some_and(is_met)
            && let Some(Coming { view, .. }) = self.coming.take()
        {
            self.on_view(view);
        }
    }

    /// When nobody who is new is waited for any more.
    pub(crate) fn meet_at(&self) -> Option<Instant> {
        self.coming.as_ref().map(|coming| coming.until)
    }
}
