//! The kinds of faults, and their names.

use std::str::FromStr;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A process dies; a new incarnation starts later.
    Crash,
    /// A process dies in the middle of what it says, in a chosen phase of the protocol.
    KillInPhase,
    /// Everybody dies at once and starts again.
    RestartAll,
    /// A process is stopped and continued.
    Pause,
    /// Every process is stopped at once and continued.
    PauseAll,
    /// Connections break: what is under way is lost.
    Break,
    /// Links become slow.
    Delay,
    /// Links are cut in one direction.
    OneWay,
    /// The network falls into two parts.
    Partition,
    /// Some pairs cannot reach each other, though others reach both.
    Partial,
    /// One process is cut off from all others.
    Isolate,
    /// Several new processes start at the same instant.
    JoinStorm,
    /// A new process takes over the address of one that still runs elsewhere.
    Replace,
    /// A process leaves as it should, and comes back later.
    Leave,
    /// The network splits when some process is in the middle of something.
    SplitInPhase,
    /// A coordinator dies, and whoever asks to succeed it is heard no more from then on.
    MuteHeir,
    /// A core member loses its coordinator, and when the core is changed for that, the network splits along the change.
    SplitCore,
    /// Links of one process are cut in one direction again and again, as long as they are whole in between.
    FlipFlop,
    /// One process loses four fifths of what it says and hears.
    Lossy,
    /// Processes reach only their neighbours in a ring, or only one in the middle.
    Topology,
    /// Links hold everything back, and release it all at once.
    Jam,
    /// A coordinator dies, and whoever comes after it, and whoever comes after that.
    KillSuccessors,
    /// Several processes of one rack die at the same instant, and nobody can prove it.
    LoseRack,
    /// Several processes leave at the same instant.
    LeaveStorm,
    /// A process starts and goes, again and again.
    Flap,
    /// The network splits, or most of a core dies, and an operator gives up what is blocked.
    ForceNew,
    /// Nobody, or one process, reaches the witness.
    WitnessGone,
    /// The witness loses its memory, perhaps while the network is split.
    WitnessForgets,
    /// A host is suspended: its interval clock goes on, and its timers only once it is awake again.
    Suspend,
    /// A host's wall clock is set ahead or back by an hour, perhaps several times.
    WallClock,
    /// Some of what goes over a process's links is changed on the way: whoever gets that closes the connection.
    Corrupt,
    /// A machine's disk is full for a while: nothing can be written to its data directory.
    DiskFull,
}

impl Kind {
    /// What happens to the witness, where there is one.
    pub(crate) const OF_WITNESS: [Self; 2] = [Self::WitnessGone, Self::WitnessForgets];

    /// What runs have since then; drawn apart, so that the others are what they were.
    pub(crate) const LATER: [Self; 4] = [Self::Suspend, Self::WallClock, Self::Corrupt, Self::DiskFull];

    /// All of them.
    pub const ALL: [Self; 32] = [
        Self::Crash,
        Self::KillInPhase,
        Self::RestartAll,
        Self::Pause,
        Self::PauseAll,
        Self::Break,
        Self::Delay,
        Self::OneWay,
        Self::Partition,
        Self::Partial,
        Self::Isolate,
        Self::JoinStorm,
        Self::Replace,
        Self::Leave,
        Self::SplitInPhase,
        Self::MuteHeir,
        Self::SplitCore,
        Self::FlipFlop,
        Self::Lossy,
        Self::Topology,
        Self::Jam,
        Self::KillSuccessors,
        Self::LoseRack,
        Self::LeaveStorm,
        Self::Flap,
        Self::ForceNew,
        Self::WitnessGone,
        Self::WitnessForgets,
        Self::Suspend,
        Self::WallClock,
        Self::Corrupt,
        Self::DiskFull,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::KillInPhase => "kill-in-phase",
            Self::RestartAll => "restart-all",
            Self::Pause => "pause",
            Self::PauseAll => "pause-all",
            Self::Break => "break",
            Self::Delay => "delay",
            Self::OneWay => "one-way",
            Self::Partition => "partition",
            Self::Partial => "partial",
            Self::Isolate => "isolate",
            Self::JoinStorm => "join-storm",
            Self::Replace => "replace",
            Self::Leave => "leave",
            Self::SplitInPhase => "split-in-phase",
            Self::MuteHeir => "mute-heir",
            Self::SplitCore => "split-core",
            Self::FlipFlop => "flip-flop",
            Self::Lossy => "lossy",
            Self::Topology => "topology",
            Self::Jam => "jam",
            Self::KillSuccessors => "kill-successors",
            Self::LoseRack => "lose-rack",
            Self::LeaveStorm => "leave-storm",
            Self::Flap => "flap",
            Self::ForceNew => "force-new",
            Self::WitnessGone => "witness-gone",
            Self::WitnessForgets => "witness-forgets",
            Self::Suspend => "suspend",
            Self::WallClock => "wall-clock",
            Self::Corrupt => "corrupt",
            Self::DiskFull => "disk-full",
        }
    }
}

/// The text names no kind of fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such kind of fault; there are: {}", Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|k| k.name() == name).ok_or(UnknownKind)
    }
}
