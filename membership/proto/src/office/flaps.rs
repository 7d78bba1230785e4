//! Who comes and goes too often: its admission waits, longer each time.
//!
//! Every admission and every removal is a view that all nodes install. A process that a supervisor starts again and again, or
//! whose link holds just long enough to be admitted, would keep everybody busy. It is known by its address, since each start
//! has a new id. The memory is the office's own: who takes over begins without it, and admits such a node a few times more.

use alloc::{collections::BTreeMap, vec::Vec};
use core::{
    hash::{Hash, Hasher},
    net::SocketAddr,
};

use membership_types::Instant;

use crate::ctx::Ctx;

/// How many addresses are remembered; beyond that the one that was quiet for longest goes.
const MOST: usize = 1024;
/// To go so often is nothing to speak of.
const FREE: u32 = 4;
/// The longest wait is 2 to this power, in leases.
const LONGEST: u32 = 3;
/// After so many leases without going all is forgotten.
const FORGET: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Hash)]
struct Flap {
    went: Instant,
    times: u32,
}

/// By address.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Flaps(BTreeMap<SocketAddr, Flap>);

/// Only those that wait make a difference, so that a model need not tell apart who went when.
impl Hash for Flaps {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().filter(|(_, flap)| flap.times >= FREE).collect::<Vec<_>>().hash(state);
    }
}

impl Flaps {
    /// The node at this address is out.
    pub(super) fn note(&mut self, ctx: &Ctx, addr: SocketAddr) {
        let now = ctx.now;
        self.0.retain(|_, flap| now - flap.went <= ctx.lease() * FORGET);
        if self.0.len() >= MOST {
            let quiet = self.0.iter().min_by_key(|(_, flap)| flap.went).map(|(addr, _)| *addr);
            quiet.map(|addr| self.0.remove(&addr));
        }
        let flap = self.0.entry(addr).or_insert(Flap { went: now, times: 0 });
        *flap = Flap { went: now, times: flap.times.saturating_add(1) };
    }

    /// Has whoever is at this address gone so often of late that it must wait still?
    pub(super) fn must_wait(&self, ctx: &Ctx, addr: SocketAddr) -> bool {
        let Some(flap) = self.0.get(&addr) else { return false };
        let Some(more) = flap.times.checked_sub(FREE + 1) else { return false };
        ctx.now < flap.went.after(ctx.lease() * (1 << more.min(LONGEST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Bootstrap, Config},
        spread::Domains,
        view::NodeInfo,
    };
    use core::time::Duration;
    use membership_types::{NodeId, Rng};

    fn ctx() -> Ctx {
        let me = NodeInfo {
            id: NodeId::new(1, 1),
            name: "n".into(),
            addr: addr(1),
            eligible: true,
            slot: None,
            keeps_floor: false,
            domains: Domains::default(),
            load_weight: None,
        };
        let config = Config::new(me, Bootstrap::Join, Duration::from_secs(1)).expect("valid");
        Ctx::new(config, Instant::from_nanos(1), Rng::seeded(1), membership_types::ViewId::NONE)
    }

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], n))
    }

    #[test]
    fn who_goes_too_often_waits_longer_each_time_and_is_forgiven() {
        let (mut ctx, mut flaps) = (ctx(), Flaps::default());
        let waits = |flaps: &Flaps, ctx: &mut Ctx| {
            let from = ctx.now;
            while flaps.must_wait(ctx, addr(7)) {
                ctx.now = ctx.now.after(Duration::from_millis(500));
            }
            (ctx.now - from).as_secs()
        };
        let mut all = Vec::new();
        for _ in 0..10 {
            flaps.note(&ctx, addr(7));
            all.push(waits(&flaps, &mut ctx));
        }
        assert_eq!(all, [0, 0, 0, 0, 1, 2, 4, 8, 8, 8]);
        assert!(!flaps.must_wait(&ctx, addr(8)), "another one does not wait");
        ctx.now = ctx.now.after(Duration::from_secs(17));
        flaps.note(&ctx, addr(7));
        assert!(!flaps.must_wait(&ctx, addr(7)), "all is forgotten");
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut ctx, mut flaps) = (ctx(), Flaps::default());
        for n in 0..3000 {
            ctx.now = ctx.now.after(Duration::from_millis(1));
            flaps.note(&ctx, addr(n));
        }
        assert_eq!(flaps.0.len(), MOST);
        assert!(flaps.0.contains_key(&addr(2999)) && !flaps.0.contains_key(&addr(0)));
    }
}
