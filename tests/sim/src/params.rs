//! What one seed's run looks like: drawn at random, so that every run stresses another mixture.

use std::{collections::BTreeSet, time::Duration};

use membership_multicast::MANY;
use membership_types::Rng;

use crate::{faults::Kind, network::Manners};

/// How the run ends: what is still broken when calm begins and everyone else must get along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Everything is healed and restarted.
    AllWell,
    /// One machine stays down.
    OneDown,
    /// One process hears nothing, but is heard.
    OneDeaf,
    /// One process hears, but is not heard.
    OneMute,
    /// One process is cut off.
    OneIsolated,
    /// Two processes never reach each other again; all others reach both.
    TwoApart,
    /// One process stays stopped.
    OneStopped,
    /// Most of the core goes down at once, for good.
    CoreLost,
}

impl Ending {
    /// What stays broken, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AllWell => "everything is mended",
            Self::OneDown => "one machine stays down",
            Self::OneDeaf => "one process hears nothing",
            Self::OneMute => "one process is not heard",
            Self::OneIsolated => "one process stays cut off",
            Self::TwoApart => "two processes stay cut from each other",
            Self::OneStopped => "one process stays stopped",
            Self::CoreLost => "most of the core dies for good",
        }
    }
}

/// The run's make-up.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// How many machines there are from the start.
    pub(crate) nodes: usize,
    /// How many may be added by join storms.
    pub(crate) extra: usize,
    /// Which host each machine is on; processes on one host can prove each other's death.
    pub(crate) hosts: Vec<usize>,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) core_size: u16,
    /// Founder slots; 0 where anybody may found.
    pub(crate) slots: u16,
    pub(crate) alone_after: Duration,
    /// Machines that may not sit in the core.
    pub(crate) ineligible: Vec<usize>,
    pub(crate) groups: usize,
    /// How many zones the machines are in, if they say so.
    pub(crate) zones: Option<usize>,
    /// How many racks.
    pub(crate) racks: Option<usize>,
    /// How many power units feed them.
    pub(crate) powers: Option<usize>,
    /// Members of these groups multicast.
    pub(crate) multicast: Vec<bool>,
    /// Members of these groups keep a common state, where they multicast.
    pub(crate) stateful: Vec<bool>,
    /// In groups with more members what is said about closings is passed on by the first one.
    pub(crate) relay_above: usize,
    /// Some builds take nothing that is passed on.
    pub(crate) plain: bool,
    /// How many messages an application sends at once, at most.
    pub(crate) burst: u64,
    pub(crate) kinds: Vec<Kind>,
    /// The mean pause between faults, in nanoseconds.
    pub(crate) fault_every: u64,
    /// How long faults are injected.
    pub(crate) faults_for: u64,
    pub(crate) manners: Manners,
    pub(crate) ending: Ending,
    /// The largest deviation of a clock, in parts per million.
    pub(crate) drift_ppm: u64,
    /// Founder slots have data directories; and no wall clock is any good.
    pub(crate) durable: bool,
    /// Machines whose first process is of a build from before the present feature level.
    pub(crate) old: BTreeSet<usize>,
    /// There is a witness.
    pub(crate) witness: bool,
    /// How long all must understand a feature level before it is agreed on.
    pub(crate) raise_after: Duration,
}

impl Params {
    /// The make-up, for people.
    pub(crate) fn summary(&self) -> String {
        let hosts = self.hosts.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let founding = match self.slots {
            0 => "anybody founds".to_owned(),
            slots => format!("{slots} slots found"),
        };
        let Manners { delay_min, delay_max, loss_per_mille, double_per_mille, reorders } = self.manners;
        format!(
            "{} machines on hosts {hosts}, lease {:?}, heartbeat {:?}, core of {}, {founding}, {} groups, clocks off by \
             up to {} ppm{}; messages take {} to {} us, {loss_per_mille} in 1000 are lost, {double_per_mille} doubled{}",
            self.nodes,
            self.lease,
            self.heartbeat,
            self.core_size,
            self.groups,
            self.drift_ppm,
            if self.witness { ", a witness" } else { "" },
            delay_min / 1000,
            delay_max / 1000,
            if reorders { ", reordered" } else { "" },
        )
    }

    /// Draws the make-up of a run with `nodes` machines (random within 3 to 7 if not given).
    pub(crate) fn draw(rng: &mut Rng, nodes: Option<usize>, hours: Option<f64>, kinds: &[Kind]) -> Self {
        let nodes = nodes.unwrap_or_else(|| rng.between(3, 7) as usize);
        let lease = Duration::from_millis(*rng.pick(&[500, 1000, 1000, 1000, 2000]).expect("not empty"));
        let hosts = match rng.below(3) {
            0 => vec![0; nodes],
            1 => (0..nodes).collect(),
            _ => (0..nodes).map(|_| rng.below(3) as usize).collect(),
        };
        let expect = rng.chance(500);
        let slots = match expect {
            false => 0,
            true if rng.chance(700) => nodes as u16,
            true => rng.between(nodes.min(2) as u64, nodes as u64) as u16,
        };
        let chosen = choose_kinds(rng, kinds);
        let faults_for = match hours {
            Some(hours) => (hours * 3600e9) as u64,
            None => 60_000_000_000,
        };
        let endings = [
            (Ending::AllWell, 250),
            (Ending::TwoApart, 150),
            (Ending::OneDown, 120),
            (Ending::OneDeaf, 120),
            (Ending::OneMute, 80),
            (Ending::OneIsolated, 100),
            (Ending::OneStopped, 80),
            (Ending::CoreLost, 100),
        ];
        let mut ineligible = Vec::new();
        if nodes > 3 && rng.chance(250) {
            ineligible.push(rng.below(nodes as u64) as usize);
        }
        // Drawn apart, so that all else is what it was before there were levels.
        let mut apart = Rng::seeded(!rng.clone().next_u64());
        let mixed = apart.chance(300);
        let old = (0..nodes + 3).filter(|_| mixed && apart.chance(400)).collect();
        let raise_after = Duration::from_millis(apart.between(100, 10_000));
        let relay_above = if apart.chance(400) { 1 } else { MANY };
        let plain = apart.chance(250);
        let mut params = Self {
            nodes,
            extra: 3,
            hosts,
            lease,
            heartbeat: lease / *rng.pick(&[5, 10, 10]).expect("not empty"),
            core_size: *rng.pick(&[2, 3, 4, 4, 5, 5, 5, 5]).expect("not empty"),
            slots,
            alone_after: lease * rng.between(1, 3) as u32,
            ineligible,
            groups: rng.between(1, 3) as usize,
            zones: rng.chance(350).then(|| rng.between(2, 4) as usize),
            racks: None,
            powers: None,
            multicast: (0..3).map(|_| rng.chance(600)).collect(),
            stateful: (0..3).map(|_| rng.chance(700)).collect(),
            burst: *rng.pick(&[2, 6, 30]).expect("not empty"),
            kinds: chosen,
            fault_every: rng.between(800, 5_000) * 1_000_000,
            faults_for,
            manners: Manners::draw(rng),
            ending: weighted(rng, &endings),
            drift_ppm: *rng.pick(&[0, 200, 5000, 5000]).expect("not empty"),
            durable: false,
            witness: false,
            old,
            raise_after,
            relay_above,
            plain,
        };
        // From a generator of their own, so that what a seed meant before such things existed is what it means now.
        let mut later = Rng::seeded(params.fault_every ^ params.faults_for.rotate_left(32));
        if kinds.contains(&Kind::ForceNew) && (later.chance(200) || kinds.len() < Kind::ALL.len()) {
            params.kinds.push(Kind::ForceNew);
        }
        params.durable = params.slots > 0 && later.chance(400);
        if params.durable {
            params.kinds.extend([Kind::RestartAll; 2]);
        }
        let asked_for = kinds.len() < Kind::ALL.len();
        if kinds.iter().any(|kind| Kind::OF_WITNESS.contains(kind)) && (later.chance(200) || asked_for) {
            params.witness = true;
            params.kinds.extend(Kind::OF_WITNESS.iter().filter(|kind| kinds.contains(kind)));
            // Builds from before there were witnesses are in no such cluster; and halves are what it is about.
            params.old.clear();
            params.core_size = *later.pick(&[2, 2, 4, 4, params.core_size]).expect("not empty");
        }
        let more =
            Kind::LATER.into_iter().filter(|kind| kinds.contains(kind) && (asked_for || later.chance(150)));
        params.kinds.extend(more);
        params
    }
}

/// Some kinds are off in every run, so that the others are not drowned; two are on at least.
fn choose_kinds(rng: &mut Rng, allowed: &[Kind]) -> Vec<Kind> {
    // An operator's force and what happens to a witness are drawn apart.
    let apart = |kind: &Kind| {
        *kind == Kind::ForceNew || Kind::OF_WITNESS.contains(kind) || Kind::LATER.contains(kind)
    };
    let allowed: Vec<Kind> = allowed.iter().copied().filter(|kind| !apart(kind)).collect();
    let mut chosen: Vec<Kind> = allowed.iter().copied().filter(|_| rng.chance(450)).collect();
    while chosen.len() < 2.min(allowed.len()) {
        if let Some(kind) = rng.pick(&allowed).copied()
            && !chosen.contains(&kind)
        {
            chosen.push(kind);
        }
    }
    chosen
}

fn weighted<T: Copy>(rng: &mut Rng, items: &[(T, u64)]) -> T {
    let total: u64 = items.iter().map(|(_, w)| w).sum();
    let mut at = rng.below(total);
    for (item, weight) in items {
        if at < *weight {
            return *item;
        }
        at -= weight;
    }
    items[0].0
}
