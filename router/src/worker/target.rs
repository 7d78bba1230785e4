//! Where a request goes. HTTP, which has more to say of it than its server, picks by itself (`http.rs`).

use std::rc::Rc;

use router_proto::{
    RacsId,
    racs::{Access, Circumstances, Pick, Policy, Tried},
    sticky::CloneTag,
};

use super::{Placements, Server, Worker};
use crate::table::Table;

/// Where a request goes.
pub(crate) enum Target {
    Server(Rc<Server>),
    /// Nowhere before the RACS' next view.
    Wait,
    /// Nowhere now: the servers have enough.
    Full,
    /// Nowhere any more.
    Exhausted,
}

impl Worker {
    /// Where a request for this RACS goes that was sent to `tried` before, in vain. Where clients stick to a clone,
    /// `placements` say with which this one is, and will.
    pub fn pick(
        &self,
        table: &Table,
        policy: Policy,
        (racs, access): (RacsId, Access),
        tried: &Tried,
        placements: Option<&Placements>,
    ) -> Target {
        let now = self.clock.now();
        let at = Circumstances { policy, l2p: &table.l2p, loads: &self.servers, now };
        let before = placements.and_then(|placements| placements.of(racs));
        match table.racs(racs).pick_again(before, access, at, self.random(), tried) {
            Pick::Clone(clone) => {
                let logical = table.l2p.get(clone);
                if let Some(placements) = placements.filter(|_| policy.sticks(access)) {
                    placements.note(racs, CloneTag::of(logical));
                }
                let server = self.servers.get(logical.physical, logical.addr);
                if policy.leader_only(access) && server.refused_until() > now {
                    return Target::Wait;
                }
                server.chosen(now);
                Target::Server(server)
            }
            Pick::Wait => Target::Wait,
            Pick::Full => Target::Full,
            Pick::Exhausted => Target::Exhausted,
        }
    }
}
