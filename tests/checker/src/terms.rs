//! What a run promises: its timing, its founding rule and the bounds of the liveness predicates.

use membership_types::trace::Cfg;

/// The run's terms: the harness's, else those of the first record.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    cfg: Cfg,
}

impl Terms {
    pub(crate) fn new(cfg: Cfg) -> Self {
        Self { cfg }
    }

    pub(crate) fn lease(&self) -> u64 {
        self.cfg.lease
    }

    /// L(1+rho): whoever held a lease at the beginning of so long a time does not hold it at the end.
    pub(crate) fn lapsed_after(&self) -> u64 {
        let stretched = self.cfg.lease as f64 * (1.0 + self.cfg.rho);
        stretched.ceil() as u64
    }

    /// Does the clock factor stay within the drift that leases allow for?
    pub(crate) fn tolerates_rate(&self, factor: f64) -> bool {
        (factor - 1.0).abs() <= self.cfg.rho + 1e-9
    }

    /// May any node found, so that the guarantees hold per lineage only?
    pub(crate) fn alone(&self) -> bool {
        self.cfg.bootstrap.as_deref().is_some_and(|b| b.starts_with("alone-after"))
    }

    /// Do all founder slots set ids aside on disk?
    pub(crate) fn durable(&self) -> bool {
        self.cfg.durable && !self.alone()
    }

    /// Is there a witness, which says which of two halves of a core may go on?
    pub(crate) fn witness(&self) -> bool {
        self.cfg.witness
    }

    /// The founder slots, by node number; empty where they are not told or not used.
    pub(crate) fn slots(&self) -> &[u64] {
        if self.alone() { &[] } else { &self.cfg.slots }
    }

    /// The bound `name`, or so many leases.
    fn bound(&self, name: &str, leases: u64) -> u64 {
        let given = self.cfg.bounds.get(name).copied();
        given.unwrap_or_else(|| self.cfg.lease.saturating_mul(leases))
    }

    /// B1: from GST until the living agree on the view of the living.
    pub(crate) fn b1(&self) -> u64 {
        self.bound("B1", 20)
    }

    /// B2: from the sending of a message until it is delivered.
    pub(crate) fn b2(&self) -> u64 {
        self.bound("B2", 4)
    }

    /// B4: how long the closing of a view may last.
    pub(crate) fn b4(&self) -> u64 {
        self.bound("B4", 8)
    }

    /// B6: from a crash (or GST, if later) until nobody's view has the crashed, or until the blocked say so.
    pub(crate) fn b6(&self) -> u64 {
        self.bound("B6", 6)
    }

    /// B9: from GST until lineages that have met are one.
    pub(crate) fn b9(&self) -> u64 {
        self.bound("B9", 60)
    }

    /// k: how many must suspect one whom a view excludes.
    pub(crate) fn suspects(&self) -> Option<u64> {
        self.cfg.bounds.get("k").copied()
    }

    /// c and m: how many views a fault, a join or a leave may cost, and how many may come for each node without another one.
    pub(crate) fn economy(&self) -> Option<(u64, u64)> {
        self.cfg.bounds.get("c").copied().zip(self.cfg.bounds.get("m").copied())
    }

    /// L(1+rho)+delta: what a leader may take until it acts, once all agree.
    pub(crate) fn led_after(&self) -> u64 {
        self.lapsed_after().saturating_add(self.bound("delta", 1))
    }
}
