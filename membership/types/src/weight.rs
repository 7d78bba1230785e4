//! How much of the load a server takes beside others.

/// A server's part of the load, in proportion to the weights of the others: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(u16);

impl Weight {
    /// The largest.
    pub const MAX: u16 = 1000;

    /// `None` if it is 0 or too large.
    pub fn new(weight: impl TryInto<u16>) -> Option<Self> {
        let weight = weight.try_into().ok()?;
        (1..=Self::MAX).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}
