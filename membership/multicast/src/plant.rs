//! Deliberate bugs, one at a time, to see that the simulator and the checker find them.
//!
//! Built only with the feature `plant` and chosen at run time; without it every question is answered "no" at
//! compile time.

/// A planted bug. Its name is what `phalanx sim --plant NAME` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plant {
    /// A member delivers what it holds at the closing of a view, without asking the others for what it lacks.
    CloseAlone,
    /// A view is closed before all who come along are known to hold everything.
    CloseUnsettled,
    /// A safe message is delivered as soon as it has a place.
    SafeIsOrdered,
    /// A safe message is delivered once all hold its bytes, whether they know its place or not.
    SafeWithoutPlace,
    /// A member goes on sending while a view closes.
    SendWhileClosing,
    /// What comes for a view that is not installed yet is thrown away.
    ForgetEarlyFrames,
    /// At the closing every member delivers its own messages without a place first.
    CloseOwnFirst,
    /// After a reconnection nothing is said again.
    ForgetLost,
    /// The closing follows the first answers to the newest view, although a later one replaced them.
    KeepStaleSync,
    /// Fragments are forgotten once they are delivered, whether the others hold them or not.
    ForgetUnstable,
    /// Who gets the state is told again what it reflects.
    ForgetLabel,
    /// Who gets the state takes it before all that it reflects has come.
    TakeStateEarly,
    /// Places that come after a member told what it holds count, also those that nobody who comes along had told of.
    LatePlaces,
    /// In a large view the first member does not pass on again what a broken connection lost.
    ForgetWords,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::CloseAlone,
        Self::CloseUnsettled,
        Self::SafeIsOrdered,
        Self::SafeWithoutPlace,
        Self::SendWhileClosing,
        Self::ForgetEarlyFrames,
        Self::CloseOwnFirst,
        Self::ForgetLost,
        Self::KeepStaleSync,
        Self::ForgetUnstable,
        Self::ForgetLabel,
        Self::TakeStateEarly,
        Self::LatePlaces,
        Self::ForgetWords,
    ];

    /// Too rare for the simulator: a scenario shows that it is found.
    pub const RARE: [Self; 2] = [Self::TakeStateEarly, Self::ForgetWords];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::CloseAlone => "close-alone",
            Self::CloseUnsettled => "close-unsettled",
            Self::SafeIsOrdered => "safe-is-ordered",
            Self::SafeWithoutPlace => "safe-without-place",
            Self::SendWhileClosing => "send-while-closing",
            Self::ForgetEarlyFrames => "forget-early-frames",
            Self::CloseOwnFirst => "close-own-first",
            Self::ForgetLost => "forget-lost",
            Self::KeepStaleSync => "keep-stale-sync",
            Self::ForgetUnstable => "forget-unstable",
            Self::ForgetLabel => "forget-label",
            Self::TakeStateEarly => "take-state-early",
            Self::LatePlaces => "late-places",
            Self::ForgetWords => "forget-words",
        }
    }
}
