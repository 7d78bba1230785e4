//! What a round looks like: drawn from its seed, so that every round stresses another mixture.

use std::time::Duration;

use clap::ValueEnum;
use membership_types::Rng;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Somebody is killed, and started again a while later.
    Kill,
    /// A leader is killed.
    KillLeader,
    /// A leader is killed, and whoever succeeds it, twice or three times.
    KillRow,
    /// All are killed and started again.
    KillAll,
    /// Somebody is stopped for 0.5, 1, 3 or 10 leases.
    Stop,
    /// A leader is stopped.
    StopLeader,
    /// All are stopped.
    StopAll,
    /// Somebody is not heard by some, or does not hear them.
    OneWay,
    /// The same again and again, now this way, now that way.
    Flap,
    /// Some pairs of hosts do not reach each other, while others reach both.
    Partial,
    /// The hosts are parted into two, evenly or not.
    Split,
    /// One host is cut off.
    Isolate,
    /// The host of a leader is cut off.
    IsolateLeader,
    /// One host loses four of ten packets.
    Loss,
    /// Somebody gets 5 to 20 % of a processor.
    Starve,
    /// Somebody gets hardly any more memory; the kernel may kill it for that.
    Squeeze,
    /// Somebody can open no more files, connections among them.
    Files,
    /// All that may still be started start at once, and leave after a while.
    JoinStorm,
    /// Somebody leaves, and comes back.
    Leave,
    /// A leader steps down.
    StepDown,
}

/// What a place runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A member of a group that says things to it.
    Member,
    /// A clone of an inventory, which keeps its items on disk.
    Clone,
    /// A command that runs while its node leads a group.
    Exclusive,
}

impl Role {
    /// The group of those who have it.
    pub fn group(self) -> &'static str {
        match self {
            Self::Member => "g",
            Self::Clone => "items",
            Self::Exclusive => "alone",
        }
    }
}

/// How nodes show that they belong to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    None,
    Secret,
    Certificates,
}

/// By how often the studies of real failures name them.
const WEIGHTS: [(Kind, u64); 20] = [
    (Kind::Kill, 100),
    (Kind::KillLeader, 130),
    (Kind::KillRow, 50),
    (Kind::KillAll, 8),
    (Kind::Stop, 70),
    (Kind::StopLeader, 130),
    (Kind::StopAll, 25),
    (Kind::OneWay, 60),
    (Kind::Flap, 25),
    (Kind::Partial, 60),
    (Kind::Split, 60),
    (Kind::Isolate, 70),
    (Kind::IsolateLeader, 70),
    (Kind::Loss, 30),
    (Kind::Starve, 30),
    (Kind::Squeeze, 30),
    (Kind::Files, 30),
    (Kind::JoinStorm, 30),
    (Kind::Leave, 50),
    (Kind::StepDown, 30),
];

impl Kind {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What is still broken when the calm begins, in which everybody else must get along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    AllWell,
    OneDown,
    OneStopped,
    OneIsolated,
    OneDeaf,
    OneMute,
    MinorityCutOff,
    MostDown,
    /// Two hosts never reach each other; all others reach both.
    TwoApart,
}

const ENDINGS: [(Ending, u64); 9] = [
    (Ending::AllWell, 400),
    (Ending::OneDown, 100),
    (Ending::OneStopped, 80),
    (Ending::OneIsolated, 100),
    (Ending::OneDeaf, 80),
    (Ending::OneMute, 60),
    (Ending::MinorityCutOff, 100),
    (Ending::MostDown, 80),
    (Ending::TwoApart, 100),
];

pub struct Plan {
    pub seed: u64,
    /// On which host each place is; those on one host can prove each other's death.
    pub hosts: Vec<usize>,
    /// How many of the places are there from the start.
    pub nodes: usize,
    pub lease: Duration,
    /// Founder slots and a fixed list, instead of a directory and anybody.
    pub expect: bool,
    /// The members do not multicast.
    pub plain: bool,
    /// What each place runs.
    pub roles: Vec<Role>,
    pub keys: Keys,
    /// All founders have data directories.
    pub durable: bool,
    pub kinds: Vec<Kind>,
    pub fault_every: Duration,
    pub storm: Duration,
    pub send_every: Duration,
    pub ending: Ending,
    pub burn: usize,
}

/// What the command line fixes.
pub struct Fixed {
    pub nodes: Option<usize>,
    pub most: usize,
    pub lease: Option<Duration>,
    pub kinds: Vec<Kind>,
    pub storm: Option<Duration>,
    /// No faults: so many busy threads for each processor instead.
    pub burn: usize,
}

/// How many places join storms have.
pub const EXTRA: usize = 3;

impl Plan {
    pub fn draw(seed: u64, fixed: &Fixed, can: &[Kind]) -> (Self, Rng) {
        let mut rng = Rng::seeded(seed);
        let sizes: Vec<usize> =
            [3, 3, 3, 4, 5, 5, 5, 6, 7, 9].into_iter().filter(|n| *n <= fixed.most).collect();
        let nodes = *rng.pick(&sizes).unwrap_or(&3);
        let nodes = fixed.nodes.unwrap_or(nodes);
        let places = nodes + EXTRA;
        let shared = rng.chance(333);
        let hosts = (0..places).map(|p| if shared { rng.below(3) as usize } else { p }).collect();
        let lease = *rng.pick(&[300, 300, 300, 500, 1000]).unwrap_or(&300);
        let lease = fixed.lease.unwrap_or(Duration::from_millis(lease));
        let storm = Duration::from_secs(rng.between(20, 45));
        let mut plan = Self {
            seed,
            hosts,
            nodes,
            lease,
            expect: rng.chance(600),
            plain: rng.chance(200),
            roles: vec![Role::Member; places],
            keys: weighted(&mut rng, &[(Keys::None, 200), (Keys::Secret, 500), (Keys::Certificates, 300)]),
            durable: rng.chance(400),
            kinds: Vec::new(),
            fault_every: lease.mul_f64(rng.between(5, 80) as f64 / 10.0).max(Duration::from_millis(200)),
            storm: fixed.storm.unwrap_or(storm),
            send_every: Duration::from_millis(rng.between(4, 60)),
            ending: weighted(&mut rng, &ENDINGS),
            burn: fixed.burn,
        };
        if fixed.burn > 0 {
            plan.nodes = fixed.nodes.unwrap_or(5);
            plan.hosts = (0..plan.nodes + EXTRA).collect();
            plan.lease = fixed.lease.unwrap_or(Duration::from_secs(1));
            (plan.expect, plan.plain, plan.durable) = (true, false, false);
            plan.roles = vec![Role::Member; plan.nodes + EXTRA];
            plan.storm = fixed.storm.unwrap_or(Duration::from_secs(60));
            return (plan, rng);
        }
        plan.cast(&mut rng);
        // Some kinds are off in every round, so that the others are not drowned.
        let given = !fixed.kinds.is_empty();
        let all: Vec<Kind> = WEIGHTS.iter().map(|(kind, _)| *kind).collect();
        let from = if given { &fixed.kinds } else { &all };
        let may = |kind: &Kind| can.contains(kind) || ![Kind::Starve, Kind::Squeeze].contains(kind);
        plan.kinds = from.iter().copied().filter(|kind| may(kind) && (rng.chance(600) || given)).collect();
        if plan.kinds.is_empty() {
            plan.kinds.push(Kind::KillLeader);
        }
        (plan, rng)
    }

    /// Gives most clusters clones and commands beside their members, on any places.
    fn cast(&mut self, rng: &mut Rng) {
        let (clones, commands) = match self.nodes {
            0..=2 => (0, 0),
            3 => *rng.pick(&[(0, 0), (0, 2), (3, 0)]).unwrap_or(&(0, 0)),
            4 => *rng.pick(&[(0, 2), (3, 0)]).unwrap_or(&(0, 0)),
            5 => *rng.pick(&[(0, 0), (3, 0), (3, 2), (0, 2)]).unwrap_or(&(0, 0)),
            _ => *rng.pick(&[(3, 2), (3, 2), (0, 0)]).unwrap_or(&(0, 0)),
        };
        let mut places: Vec<usize> = (0..self.nodes).collect();
        for at in (1..places.len()).rev() {
            places.swap(at, rng.below(at as u64 + 1) as usize);
        }
        let roles = [(Role::Clone, clones), (Role::Exclusive, commands)];
        let roles = roles.into_iter().flat_map(|(role, count)| std::iter::repeat_n(role, count));
        for (place, role) in places.into_iter().zip(roles) {
            self.roles[place] = role;
        }
        // Founders have directories all or none.
        self.durable |= clones > 0;
    }

    /// How many of the places that are there from the start have this role.
    pub fn count(&self, role: Role) -> usize {
        self.roles[..self.nodes].iter().filter(|other| **other == role).count()
    }

    pub fn some_kind(&self, rng: &mut Rng) -> Kind {
        let weights: Vec<(Kind, u64)> =
            WEIGHTS.into_iter().filter(|(kind, _)| self.kinds.contains(kind)).collect();
        weighted(rng, &weights)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts = self.hosts.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let founding = if self.expect { "founder slots" } else { "anybody founds" };
        if self.burn > 0 {
            let (nodes, lease, storm, burn) = (self.nodes, self.lease, self.storm, self.burn);
            return write!(
                f,
                "{nodes} nodes, lease {lease:?}, no faults but {burn} busy threads a processor for {storm:?}"
            );
        }
        let plain = if self.plain { ", plain members" } else { "" };
        let keys = match self.keys {
            Keys::None => "",
            Keys::Secret => ", a secret",
            Keys::Certificates => ", certificates",
        };
        let durable = if self.durable { ", data directories" } else { "" };
        let (clones, commands) = (self.count(Role::Clone), self.count(Role::Exclusive));
        let roles = if clones + commands > 0 {
            format!(", {clones} of them clones and {commands} with a command")
        } else {
            String::new()
        };
        write!(
            f,
            "{} nodes and {EXTRA} more on hosts {hosts}, lease {:?}, {founding}{plain}{keys}{durable}{roles}, a fault each {:?} or so for {:?}, then {:?}",
            self.nodes, self.lease, self.fault_every, self.storm, self.ending
        )
    }
}

fn weighted<T: Copy>(rng: &mut Rng, items: &[(T, u64)]) -> T {
    let mut at = rng.below(items.iter().map(|(_, weight)| weight).sum());
    for (item, weight) in items {
        if at < *weight {
            return *item;
        }
        at -= weight;
    }
    items[0].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_weight_and_a_seed_always_gives_the_same_round() {
        for kind in Kind::value_variants() {
            assert!(WEIGHTS.iter().any(|(other, _)| other == kind), "{kind:?}");
        }
        let fixed = Fixed { nodes: None, most: 7, lease: None, kinds: Vec::new(), storm: None, burn: 0 };
        for seed in 0..200 {
            let ((a, mut x), (b, mut y)) = (Plan::draw(seed, &fixed, &[]), Plan::draw(seed, &fixed, &[]));
            assert_eq!(a.to_string(), b.to_string());
            assert!((3..=7).contains(&a.nodes) && a.hosts.len() == a.nodes + EXTRA);
            assert_eq!(a.some_kind(&mut x), b.some_kind(&mut y));
            assert!(a.count(Role::Clone) == 0 || a.count(Role::Clone) == 3 && a.durable);
        }
    }
}
