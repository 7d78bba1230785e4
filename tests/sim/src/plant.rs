//! The deliberate bugs of all cores under one set of names.

/// A planted bug in one of the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// In the agreement on views and leaders.
    Membership(membership_proto::Plant),
    /// In the multicast inside groups.
    Multicast(membership_multicast::Plant),
}

impl Plant {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let membership = membership_proto::Plant::ALL.into_iter().map(Self::Membership);
        membership.chain(membership_multicast::Plant::ALL.into_iter().map(Self::Multicast))
    }

    /// Is this one to be found by the simulator? Those that are too rare have scenarios of their own.
    pub fn is_simulated(self) -> bool {
        !matches!(self, Self::Multicast(plant) if membership_multicast::Plant::RARE.contains(&plant))
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Membership(plant) => plant.name(),
            Self::Multicast(plant) => plant.name(),
        }
    }

    #[cfg(feature = "plant")]
    pub(crate) fn of_membership(self) -> Option<membership_proto::Plant> {
        match self {
            Self::Membership(plant) => Some(plant),
            Self::Multicast(_) => None,
        }
    }

    #[cfg(feature = "plant")]
    pub(crate) fn of_multicast(self) -> Option<membership_multicast::Plant> {
        match self {
            Self::Multicast(plant) => Some(plant),
            Self::Membership(_) => None,
        }
    }
}
