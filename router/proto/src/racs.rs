//! One RACS: ranked clones, who of them acts as leader, and which clone a request goes to.

use alloc::{boxed::Box, vec::Vec};
use core::{num::NonZeroU32, time::Duration};

use membership_types::{Instant, Rank};

use crate::{
    choice::choose,
    l2p::{L2p, Loads, LogicalId, PhysicalId},
    pmap::Epoch,
    sticky::CloneTag,
};

/// A reliable array of cloned servers, as of one view.
#[derive(Clone, Debug)]
pub struct Racs {
    name: Box<str>,
    /// In rank order.
    clones: Box<[LogicalId]>,
    leader: Option<Rank>,
    epoch: Epoch,
}

/// What a request does to the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It changes nothing, so any clone may answer it and repeating it harms nobody.
    Read,
    /// It may change data, so it is sent once.
    Update,
}

/// Who answers reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reads {
    /// The better of two clones drawn at random: see [`crate::choice`].
    #[default]
    LeastLoaded,
    /// The leader.
    Leader,
    /// The clone that the client was with last, as long as it is well; else as for least-loaded reads.
    Sticky,
}

/// Who takes updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Updates {
    /// The leader.
    #[default]
    Leader,
    /// Any clone, chosen as for reads that do not go to the leader: for servers without state of their own.
    Any,
}

/// How clones are chosen for the two kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// Who answers reads.
    pub reads: Reads,
    /// Who takes updates.
    pub updates: Updates,
    /// How long the share of a server grows that is new or well again.
    pub slow_start: Duration,
    /// How many requests a server may have in flight before no more are sent there; any number if `None`.
    pub most_in_flight: Option<NonZeroU32>,
}

impl Policy {
    /// Whether requests of this kind go to the leader alone.
    pub fn leader_only(self, access: Access) -> bool {
        match access {
            Access::Read => self.reads == Reads::Leader,
            Access::Update => self.updates == Updates::Leader,
        }
    }

    /// Whether requests of this kind stay with the clone that the client was with.
    pub fn sticks(self, access: Access) -> bool {
        self.reads == Reads::Sticky && !self.leader_only(access)
    }
}

/// What a choice is made from, besides the RACS itself.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a, L> {
    /// How the service wants clones chosen.
    pub policy: Policy,
    /// Which physical server stands for which clone.
    pub l2p: &'a L2p,
    /// What is known of the physical servers.
    pub loads: &'a L,
    /// The time.
    pub now: Instant,
}

/// The servers that a request has been to in vain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    servers: [Option<PhysicalId>; Self::MAX],
}

impl Tried {
    /// How many servers one request may go to.
    pub const MAX: usize = 3;

    /// Notes a failed attempt. Returns whether another one is allowed.
    pub fn add(&mut self, server: PhysicalId) -> bool {
        if let Some(free) = self.servers.iter_mut().find(|tried| tried.is_none()) {
            *free = Some(server);
        }
        self.servers.iter().any(Option::is_none)
    }

    /// Whether the request was there.
    pub fn contains(&self, server: PhysicalId) -> bool {
        self.servers.contains(&Some(server))
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// To this clone.
    Clone(LogicalId),
    /// Nowhere yet: the leader is unknown or was tried in vain, or the RACS has no clone at all. The next
    /// view may tell.
    Wait,
    /// Nowhere now: those who could take it have as many requests in flight as they may.
    Full,
    /// Nowhere: every clone was tried in vain.
    Exhausted,
}

impl Racs {
    /// The RACS with these clones in rank order. `epoch` is the view that says so; `leader` is the rank that
    /// may act, `None` while nobody may.
    pub fn new(name: &str, clones: Vec<LogicalId>, leader: Option<Rank>, epoch: Epoch) -> Self {
        let leader = leader.filter(|rank| (rank.get() as usize) < clones.len());
        Self { name: name.into(), clones: clones.into_boxed_slice(), leader, epoch }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its clones in rank order.
    pub fn clones(&self) -> &[LogicalId] {
        &self.clones
    }

    /// The clone that takes updates, if one may.
    pub fn leader(&self) -> Option<LogicalId> {
        self.leader.map(|rank| self.clones[rank.get() as usize])
    }

    /// The view that this is.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Chooses the clone for one attempt at a request. `random` is 64 fresh random bits.
    ///
    /// Servers that were tried are never chosen again. Servers just seen failing are avoided while another
    /// clone is left, those that are down even more; the leader is never avoided, because nobody can stand in for it.
    /// Where all others have as much in flight as they may, those to be avoided do not stand in for them.
    pub fn pick<L: Loads>(
        &self,
        access: Access,
        at: Circumstances<'_, L>,
        random: u64,
        tried: &Tried,
    ) -> Pick {
        let Circumstances { policy, l2p, loads, now } = at;
        if policy.leader_only(access) {
            return match self.leader() {
                Some(leader) if tried.contains(l2p.get(leader).physical) => Pick::Wait,
                Some(leader) if is_full(leader, &at) => Pick::Full,
                Some(leader) => Pick::Clone(leader),
                None => Pick::Wait,
            };
        }
        if self.clones.is_empty() {
            return Pick::Wait;
        }
        let untried = |clone| !tried.contains(l2p.get(clone).physical);
        if let [only] = *self.clones {
            return if untried(only) { Pick::Clone(only) } else { Pick::Exhausted };
        }
        let sound = |clone| untried(clone) && loads.avoid_until(l2p.get(clone).physical) <= now;
        let perhaps = |clone| untried(clone) && !loads.is_down(l2p.get(clone).physical);
        let picked = self.pick_of(sound, &at, random);
        let picked = picked.or_else(|| self.pick_of(perhaps, &at, random));
        // All are down: checks may be wrong, and an attempt costs less than a refusal.
        picked.or_else(|| self.pick_of(untried, &at, random)).unwrap_or(Pick::Exhausted)
    }

    /// Whether enough clones are left if this server is avoided although it answers: at least half of them, and one. Who
    /// gives bad answers is better than nobody, and better than others that have more to do than they can.
    pub fn can_spare<L: Loads>(&self, server: PhysicalId, at: Circumstances<'_, L>) -> bool {
        let sound = |clone: &&LogicalId| {
            let other = at.l2p.get(**clone).physical;
            other != server && at.loads.avoid_until(other) <= at.now
        };
        self.clones.iter().filter(sound).count() >= self.clones.len().div_ceil(2).max(1)
    }

    /// Whether far more of this server's answers are errors than those of a sound clone, and it can be spared.
    pub fn stands_out<L: Loads>(&self, server: PhysicalId, at: Circumstances<'_, L>) -> bool {
        let worse = |clone: &LogicalId| {
            let other = at.l2p.get(*clone).physical;
            other != server
                && at.loads.avoid_until(other) <= at.now
                && at.loads.stands_out(server, other, at.now)
        };
        self.clones.iter().any(worse) && self.can_spare(server, at)
    }

    /// Chooses among those that fit, if there are any.
    fn pick_of<L: Loads>(
        &self,
        fits: impl Fn(LogicalId) -> bool,
        at: &Circumstances<'_, L>,
        random: u64,
    ) -> Option<Pick> {
        let chosen = choose(&self.clones, &fits, at, random)?;
        if !is_full(chosen, at) {
            return Some(Pick::Clone(chosen));
        }
        // Rare: the better of two is full, but perhaps not all are.
        let free = choose(&self.clones, |clone| fits(clone) && !is_full(clone, at), at, random);
        Some(free.map_or(Pick::Full, Pick::Clone))
    }

    /// As [`Racs::pick`], for a client that was with the clone `session` before. It stays there, where the
    /// policy wants that, unless the clone is gone, was tried in vain, or was just seen failing.
    pub fn pick_again<L: Loads>(
        &self,
        session: Option<CloneTag>,
        access: Access,
        at: Circumstances<'_, L>,
        random: u64,
        tried: &Tried,
    ) -> Pick {
        let session = session.filter(|_| at.policy.sticks(access));
        match session.and_then(|session| self.stay(session, &at, tried)) {
            Some(clone) if is_full(clone, &at) => Pick::Full,
            Some(clone) => Pick::Clone(clone),
            None => self.pick(access, at, random, tried),
        }
    }

    fn stay<L: Loads>(
        &self,
        session: CloneTag,
        at: &Circumstances<'_, L>,
        tried: &Tried,
    ) -> Option<LogicalId> {
        let Circumstances { l2p, loads, now, .. } = *at;
        self.clones.iter().copied().find(|clone| {
            let logical = l2p.get(*clone);
            CloneTag::of(logical) == session
                && !tried.contains(logical.physical)
                && loads.avoid_until(logical.physical) <= now
        })
    }
}

fn is_full<L: Loads>(clone: LogicalId, at: &Circumstances<'_, L>) -> bool {
    let most = at.policy.most_in_flight;
    most.is_some_and(|most| at.loads.in_flight(at.l2p.get(clone).physical) >= most.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    use crate::l2p::{Logical, Physicals};
    use membership_types::Rng;

    struct Fixed {
        in_flight: Vec<u32>,
        avoid_until: Vec<Instant>,
        down: Vec<bool>,
    }

    impl Loads for Fixed {
        fn in_flight(&self, server: PhysicalId) -> u32 {
            self.in_flight[server.index()]
        }
        fn avoid_until(&self, server: PhysicalId) -> Instant {
            let down = self.down[server.index()];
            if down { Instant::MAX } else { self.avoid_until[server.index()] }
        }
        fn is_down(&self, server: PhysicalId) -> bool {
            self.down[server.index()]
        }
    }

    const NOW: Instant = Instant::from_nanos(1_000_000);

    fn circumstances<'a>(policy: Policy, l2p: &'a L2p, loads: &'a Fixed) -> Circumstances<'a, Fixed> {
        Circumstances { policy, l2p, loads, now: NOW }
    }

    fn three() -> (Racs, L2p, Fixed) {
        let mut l2p = L2p::default();
        let mut physicals = Physicals::default();
        let clones = (0..3)
            .map(|at| {
                let addr = format!("127.0.0.1:{}", 9000 + at).parse().unwrap();
                l2p.add(Logical::new(&format!("c{at}"), physicals.id_of(addr), addr))
            })
            .collect();
        let loads =
            Fixed { in_flight: vec![0; 3], avoid_until: vec![Instant::ZERO; 3], down: vec![false; 3] };
        (Racs::new("r", clones, Some(Rank::LEADER), Epoch::new(7)), l2p, loads)
    }

    fn picks(racs: &Racs, l2p: &L2p, loads: &Fixed, access: Access, tried: &Tried) -> [u32; 3] {
        let mut rng = Rng::seeded(1);
        let mut hits = [0; 3];
        for _ in 0..3000 {
            match racs.pick(access, circumstances(Policy::default(), l2p, loads), rng.next_u64(), tried) {
                Pick::Clone(clone) => hits[l2p.get(clone).physical.index()] += 1,
                other => panic!("{other:?}"),
            }
        }
        hits
    }

    #[test]
    fn equal_clones_share_reads_and_updates_stay_with_the_leader() {
        let (racs, l2p, loads) = three();
        let hits = picks(&racs, &l2p, &loads, Access::Read, &Tried::default());
        assert!(hits.iter().all(|&n| n > 800), "{hits:?}");
        assert_eq!(picks(&racs, &l2p, &loads, Access::Update, &Tried::default()), [3000, 0, 0]);
    }

    #[test]
    fn the_busiest_of_three_is_never_the_better_of_two() {
        let (racs, l2p, mut loads) = three();
        loads.in_flight = vec![5, 90, 7];
        let hits = picks(&racs, &l2p, &loads, Access::Read, &Tried::default());
        assert_eq!(hits[1], 0);
        assert!(hits[0] > hits[2], "{hits:?}");
    }

    #[test]
    fn a_server_just_seen_failing_is_avoided_until_it_is_the_last() {
        let (racs, l2p, mut loads) = three();
        loads.avoid_until[0] = NOW.after(Duration::from_millis(1));
        assert_eq!(picks(&racs, &l2p, &loads, Access::Read, &Tried::default())[0], 0);
        loads.avoid_until = vec![NOW.after(Duration::from_millis(1)); 3];
        let hits = picks(&racs, &l2p, &loads, Access::Read, &Tried::default());
        assert!(hits.iter().all(|&n| n > 800), "all avoided is as good as none: {hits:?}");
        loads.avoid_until = vec![NOW; 3];
        assert!(picks(&racs, &l2p, &loads, Access::Read, &Tried::default())[0] > 0);
    }

    #[test]
    fn a_server_that_is_down_is_the_last_resort_for_reads_and_still_the_leader_of_updates() {
        let (racs, l2p, mut loads) = three();
        loads.down[0] = true;
        let hits = |loads: &Fixed, access| picks(&racs, &l2p, loads, access, &Tried::default());
        assert_eq!(hits(&loads, Access::Read)[0], 0);
        assert_eq!(hits(&loads, Access::Update), [3000, 0, 0]);
        loads.avoid_until = vec![NOW.after(Duration::from_millis(1)); 3];
        assert_eq!(hits(&loads, Access::Read)[0], 0, "rather one that has just failed");
        loads.down = vec![true; 3];
        let all = hits(&loads, Access::Read);
        assert!(all.iter().all(|&n| n > 800), "all down is as good as none: {all:?}");
    }

    #[test]
    fn half_of_the_clones_and_at_least_one_are_not_spared() {
        let (racs, l2p, mut loads) = three();
        let physical = |at: usize| l2p.get(racs.clones()[at]).physical;
        let spare = |racs: &Racs, loads: &Fixed, at: usize| {
            racs.can_spare(physical(at), circumstances(Policy::default(), &l2p, loads))
        };
        assert!((0..3).all(|at| spare(&racs, &loads, at)));
        loads.avoid_until[1] = NOW.after(Duration::from_millis(1));
        assert_eq!([0, 1, 2].map(|at| spare(&racs, &loads, at)), [false, true, false]);
        let of = |count: usize| Racs::new("r", racs.clones()[..count].to_vec(), None, Epoch::new(8));
        loads.avoid_until[1] = NOW;
        assert!(spare(&of(2), &loads, 0) && !spare(&of(1), &loads, 0));
        loads.down[1] = true;
        assert!(!spare(&of(2), &loads, 0));
    }

    #[test]
    fn who_has_as_much_as_it_may_gets_no_more() {
        let (racs, l2p, mut loads) = three();
        let policy = Policy { most_in_flight: NonZeroU32::new(5), ..Policy::default() };
        let pick = |loads: &Fixed, access, random| {
            let picked = racs.pick(access, circumstances(policy, &l2p, loads), random, &Tried::default());
            if let Pick::Clone(clone) = picked { Ok(l2p.get(clone).physical.index()) } else { Err(picked) }
        };
        let mut rng = Rng::seeded(3);
        loads.in_flight = vec![5, 4, 7];
        assert!((0..100).all(|_| pick(&loads, Access::Read, rng.next_u64()) == Ok(1)));
        assert_eq!(pick(&loads, Access::Update, 0), Err(Pick::Full), "nobody stands in for the leader");
        loads.in_flight = vec![4, 5, 5];
        assert_eq!(pick(&loads, Access::Update, 0), Ok(0));
        loads.avoid_until[0] = NOW.after(Duration::from_millis(1));
        assert_eq!(pick(&loads, Access::Read, 0), Err(Pick::Full), "not to the one that has just failed");
        loads.avoid_until = vec![NOW.after(Duration::from_millis(1)); 3];
        assert!((0..100).all(|_| pick(&loads, Access::Read, rng.next_u64()) == Ok(0)));
        loads.in_flight = vec![5; 3];
        assert_eq!(pick(&loads, Access::Read, 0), Err(Pick::Full));
    }

    #[test]
    fn tried_servers_are_not_tried_again() {
        let (racs, l2p, loads) = three();
        let pick = |access, tried: &Tried| {
            let at = circumstances(Policy::default(), &l2p, &loads);
            racs.pick(access, at, 0x0000_0001_0000_0002, tried)
        };
        let mut tried = Tried::default();
        let mut seen = vec![];
        while let Pick::Clone(clone) = pick(Access::Read, &tried) {
            let server = l2p.get(clone).physical;
            assert!(!seen.contains(&server));
            seen.push(server);
            assert_eq!(tried.add(server), seen.len() < Tried::MAX);
        }
        assert_eq!(seen.len(), 3);
        assert_eq!(pick(Access::Read, &tried), Pick::Exhausted);
        assert_eq!(pick(Access::Update, &tried), Pick::Wait, "another view may bring another leader");
    }

    #[test]
    fn a_session_stays_with_its_clone_until_that_fails() {
        let (racs, l2p, mut loads) = three();
        let policy = Policy { reads: Reads::Sticky, ..Policy::default() };
        let stay = |racs: &Racs, loads: &Fixed, tried: &Tried, tag| {
            let clone = racs.stay(tag, &circumstances(policy, &l2p, loads), tried);
            clone.map(|clone| l2p.get(clone).physical.index())
        };
        let tags: Vec<CloneTag> = racs.clones().iter().map(|clone| CloneTag::of(l2p.get(*clone))).collect();
        loads.in_flight = vec![9, 9, 0];
        for (at, tag) in tags.iter().enumerate() {
            assert_eq!(stay(&racs, &loads, &Tried::default(), *tag), Some(at), "however busy it is");
        }
        assert_eq!(stay(&racs, &loads, &Tried::default(), CloneTag::default()), None, "never heard of");
        let mut tried = Tried::default();
        tried.add(l2p.get(racs.clones()[1]).physical);
        assert_eq!(stay(&racs, &loads, &tried, tags[1]), None);
        loads.avoid_until[0] = NOW.after(Duration::from_millis(1));
        assert_eq!(stay(&racs, &loads, &Tried::default(), tags[0]), None);
        let fewer = Racs::new("r", racs.clones()[..2].to_vec(), None, Epoch::new(8));
        assert_eq!(stay(&fewer, &loads, &Tried::default(), tags[2]), None, "gone from the view");
        assert!(policy.sticks(Access::Read) && !policy.sticks(Access::Update));
        assert!(Policy { updates: Updates::Any, ..policy }.sticks(Access::Update));
        assert!(!Policy::default().sticks(Access::Read));
    }

    #[test]
    fn without_leader_updates_wait_and_reads_go_on() {
        let (racs, l2p, loads) = three();
        let racs = Racs::new("r", racs.clones().to_vec(), None, Epoch::new(8));
        let tried = Tried::default();
        let pick =
            |racs: &Racs, access, policy| racs.pick(access, circumstances(policy, &l2p, &loads), 0, &tried);
        assert_eq!(pick(&racs, Access::Update, Policy::default()), Pick::Wait);
        assert!(matches!(pick(&racs, Access::Read, Policy::default()), Pick::Clone(_)));
        let any = Policy { updates: Updates::Any, ..Policy::default() };
        assert!(matches!(pick(&racs, Access::Update, any), Pick::Clone(_)));
        let leader = Policy { reads: Reads::Leader, ..Policy::default() };
        assert_eq!(pick(&racs, Access::Read, leader), Pick::Wait);
        let nobody = Racs::new("r", vec![], Some(Rank::LEADER), Epoch::new(9));
        assert_eq!(pick(&nobody, Access::Read, Policy::default()), Pick::Wait);
    }

    #[test]
    fn logical_servers_at_one_address_share_a_physical_one() {
        let mut physicals = Physicals::default();
        let a = physicals.id_of("127.0.0.1:1".parse().unwrap());
        let b = physicals.id_of("127.0.0.1:2".parse().unwrap());
        assert_ne!(a, b);
        assert_eq!(physicals.id_of("127.0.0.1:1".parse().unwrap()), a);
    }
}
