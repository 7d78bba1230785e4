//! Stories that users can run by name: what happens is fixed, and so is what must come of it; delays, clocks and the instant of
//! each fault come from the seed. The checker sees each of them as it sees any other run.

use std::{collections::BTreeSet, time::Duration};

use membership_types::{Instant, Lineage, Rng, ViewId};

use crate::{
    network::Cut,
    params::{Ending, Params},
    world::{Action, World},
};

/// What becomes of a story: why it cannot go on, if it cannot.
type Told = Result<(), String>;

/// A story with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario(usize);

struct Script {
    name: &'static str,
    about: &'static str,
    /// How many machines there are unless somebody says so, and how few and how many there may be.
    nodes: (usize, usize, usize),
    /// What the run is like, where that is not drawn.
    shape: fn(&mut Params),
    play: fn(&mut World) -> Told,
}

/// More machines than this are more than anybody has tried.
pub const MOST_NODES: usize = 2000;

const SCRIPTS: [Script; 10] = [
    Script {
        name: "all-at-once",
        about: "all machines start at the same instant, and end in one view within 8",
        nodes: (300, 2, MOST_NODES),
        shape: |p| (p.groups, p.core_size) = (1, 5),
        play: all_at_once,
    },
    Script {
        name: "rack-lost",
        about: "machines in 4 racks; all of one die at the same instant: one view",
        nodes: (12, 12, 200),
        shape: |p| (p.racks, p.core_size) = (Some(4), 5),
        play: |w| domain_lost(w, "rack", 4),
    },
    Script {
        name: "power-lost",
        about: "the same with one of 3 power units, which feed machines in all racks",
        nodes: (12, 12, 200),
        shape: |p| (p.racks, p.powers, p.core_size) = (Some(4), Some(3), 5),
        play: |w| domain_lost(w, "power unit", 3),
    },
    Script {
        name: "even-split",
        about: "4 machines fall into two halves: with the witness's word one goes on, the other one is blocked",
        nodes: (4, 4, 4),
        shape: |p| (p.slots, p.witness, p.core_size) = (4, true, 4),
        play: even_split,
    },
    Script {
        name: "cold-restart",
        about: "everything dies at once and starts again, with wrong clocks: ids go on above those on disk",
        nodes: (5, 3, 50),
        shape: |p| (p.slots, p.durable) = (p.nodes as u16, true),
        play: cold_restart,
    },
    Script {
        name: "deaf-coordinator",
        about: "the coordinator goes on speaking and hears nothing: another one is in its place, and it is out",
        nodes: (5, 3, 50),
        shape: |_| {},
        play: deaf_coordinator,
    },
    Script {
        name: "one-way-link",
        about: "the coordinator does not hear one member, which hears it: that one is out, and nobody else",
        nodes: (5, 3, 50),
        shape: |_| {},
        play: one_way_link,
    },
    Script {
        name: "partial-partition",
        about: "two members do not reach each other, and everybody else does: nobody is out",
        nodes: (5, 4, 50),
        shape: |_| {},
        play: partial_partition,
    },
    Script {
        name: "coordinator-cut-from-one",
        about: "the coordinator and a member do not reach each other, and everybody else does: that member is out",
        nodes: (5, 4, 50),
        shape: |_| {},
        play: coordinator_cut_from_one,
    },
    Script {
        name: "leader-killed-every-second",
        about: "whoever leads is killed every second, 20 times, on one host: there is always another one",
        nodes: (5, 3, 20),
        shape: |p| {
            p.hosts = vec![0; p.nodes];
            p.multicast = vec![true; 3];
        },
        play: leader_killed_every_second,
    },
];

impl Scenario {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SCRIPTS.len()).map(Self)
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|scenario| scenario.name() == name)
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.script().name
    }

    /// What happens, and what must come of it.
    pub fn about(self) -> &'static str {
        self.script().about
    }

    /// How few machines it may have, and how many.
    pub fn nodes(self) -> (usize, usize) {
        let (_, least, most) = self.script().nodes;
        (least, most)
    }

    fn script(self) -> &'static Script {
        &SCRIPTS[self.0]
    }

    pub(crate) fn params(self, rng: &mut Rng, nodes: Option<usize>) -> Params {
        let mut params = Params::plain(rng, nodes.unwrap_or(self.script().nodes.0));
        (self.script().shape)(&mut params);
        params
    }

    pub(crate) fn play(self, world: &mut World) {
        world.story = Some(Story::default());
        let lease = world.lease();
        world.push(world.now + lease, Action::Ask);
        if let Err(why) = (self.script().play)(world) {
            world.expect(false, || why);
        }
    }
}

/// What happened, for people; and what should have, and did not.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) lines: Vec<(u64, String)>,
    pub(crate) unmet: Vec<String>,
    /// Views of the cluster that somebody installed.
    views: BTreeSet<(Lineage, ViewId)>,
}

impl Story {
    pub(crate) fn installed(&mut self, lineage: Option<Lineage>, view: ViewId) {
        self.views.extend(lineage.map(|lineage| (lineage, view)));
    }
}

fn all_at_once(w: &mut World) -> Told {
    let began = w.start_all();
    // Who is the one to found must have asked everybody, and asks 16 in each heartbeat.
    let patience = 40 + w.params.nodes as u64 / 100;
    w.until_one_view(patience)?;
    let (nodes, views, took) = (w.params.nodes, w.views_installed(), w.since(began));
    w.tell(format!("{nodes} machines are in one view after {took}; there were {views} views"));
    w.expect(views <= 8, || format!("{views} views until all were in one"));
    Ok(())
}

/// All machines of one of so many racks, or power units, die at the same instant.
fn domain_lost(w: &mut World, what: &str, domains: usize) -> Told {
    w.start_and_settle()?;
    let lost = w.rng.below(domains as u64) as usize;
    let machines: Vec<usize> = (0..w.params.nodes).filter(|m| m % domains == lost).collect();
    let coordinator = w.coordinator()?;
    let led = w.processes[coordinator].machine % domains == lost;
    let with = if led { "the coordinator's" } else { "not the coordinator's" };
    w.tell(format!("{what} {lost} is lost, {with}: {} machines die", machines.len()));
    let (began, before) = (w.now, w.views_installed());
    for machine in &machines {
        if let Some(p) = w.process_on(*machine) {
            w.crash(p, "killed");
        }
    }
    w.until_one_view(8)?;
    let (views, took) = (w.views_installed() - before, w.since(began));
    w.tell(format!("the others are in one view after {took}; views: {views}"));
    w.expect(views == 1, || format!("{views} views for one {what}"));
    w.run_for_leases(3);
    let (began, before) = (w.now, w.views_installed());
    machines.iter().for_each(|machine| w.start(*machine));
    w.until_one_view(8)?;
    let (views, took) = (w.views_installed() - before, w.since(began));
    w.tell(format!("they are back after {took}; views: {views}"));
    w.expect(views <= 3, || format!("{views} views for those who came back at the same instant"));
    Ok(())
}

fn even_split(w: &mut World) -> Told {
    w.start_and_settle()?;
    let mut places = w.places();
    places.sort_unstable();
    let other = places[1 + w.rng.below(3) as usize];
    let side: Vec<bool> = places.iter().map(|place| *place != places[0] && *place != other).collect();
    let before = w.views_installed();
    let lease = w.lease();
    w.split_by(&places, &side, 8 * lease, Cut::Lose);
    let halves = |wanted: bool| -> Vec<usize> {
        let of = places.iter().zip(&side).filter(|(_, side)| **side == wanted);
        of.map(|(place, _)| *place).collect()
    };
    let halves = [halves(false), halves(true)];
    w.tell(format!("machines {:?} and {:?} do not reach each other any more", halves[0], halves[1]));
    let goes_on = |w: &World, half: &[usize]| {
        let of_two = |p: usize| w.processes[p].cluster.view().is_some_and(|view| view.members.len() == 2);
        half.iter().all(|m| w.process_on(*m).is_some_and(|p| of_two(p) && w.holds_lease(p)))
    };
    let began = w.now;
    w.run_until_that(6, "one half goes on", |w| halves.iter().any(|half| goes_on(w, half)))?;
    let took = w.since(began);
    let blocked =
        |w: &World, half: &[usize]| half.iter().all(|m| w.process_on(*m).is_none_or(|p| !w.holds_lease(p)));
    for (half, rest) in [(0, 1), (1, 0)] {
        if goes_on(w, &halves[half]) {
            w.tell(format!("{:?} go on after {took}", halves[half]));
            let ok = blocked(w, &halves[rest]);
            w.expect(ok, || format!("{:?} are not blocked although the others go on", halves[rest]));
        }
    }
    w.run_until(began + 8 * lease - 1);
    let views = w.views_installed() - before;
    w.expect(views == 1, || format!("{views} views while the network was split"));
    w.until_one_view(8)?;
    w.tell("all are in one view again".into());
    Ok(())
}

fn cold_restart(w: &mut World) -> Told {
    w.start_and_settle()?;
    let highest = |w: &World| w.processes.iter().map(|p| p.cluster.highest()).max();
    let before = highest(w);
    for p in w.up() {
        w.crash(p, "killed");
    }
    w.tell("everything dies".into());
    w.run_for_leases(1);
    let began = w.start_all();
    w.until_one_view(12)?;
    let (after, took) = (w.one_view().map(|(_, view)| view), w.since(began));
    w.tell(format!("all are in one view {took} after they started again"));
    w.expect(after > before, || format!("view {after:?} follows {before:?}"));
    Ok(())
}

fn deaf_coordinator(w: &mut World) -> Told {
    w.start_and_settle()?;
    let (old, before) = (w.coordinator()?, w.views_installed());
    let (place, machine) = (w.processes[old].place, w.processes[old].machine);
    w.tell(format!("machine {machine}, which coordinates, hears nobody for 6 leases"));
    let (began, lease) = (w.now, w.lease());
    for other in w.places() {
        if other != place {
            w.cut(other, place, Cut::Lose, 6 * lease);
        }
    }
    let others_agree = move |w: &World| {
        w.up().iter().filter(|p| w.processes[**p].place != place).all(|p| {
            let process = &w.processes[*p];
            w.holds_lease(*p) && process.cluster.view().is_some_and(|v| v.node(w.processes[old].id).is_none())
        })
    };
    w.run_until_that(5, "another one coordinates without the deaf one", others_agree)?;
    let (took, views) = (w.since(began), w.views_installed() - before);
    w.tell(format!("the others go on without it after {took}; views: {views}"));
    w.expect(views == 1, || format!("{views} views for one deaf coordinator"));
    let leads = !w.processes[old].app.leads.is_empty() && w.holds_lease(old);
    w.expect(!leads, || "the deaf one still leads".into());
    w.run_until(began + 6 * lease - 1);
    w.until_one_view(8)?;
    w.tell("all are in one view again".into());
    Ok(())
}

fn one_way_link(w: &mut World) -> Told {
    w.start_and_settle()?;
    let member = w.some_member()?;
    let (from, to) = (w.processes[member].place, w.processes[w.coordinator()?].place);
    w.tell(format!("machine {to}, which coordinates, does not hear machine {from} for 6 leases"));
    w.one_is_out(member, |w, lease| w.cut(from, to, Cut::Lose, 6 * lease))
}

fn coordinator_cut_from_one(w: &mut World) -> Told {
    w.start_and_settle()?;
    let member = w.some_member()?;
    let (a, b) = (w.processes[member].place, w.processes[w.coordinator()?].place);
    w.tell(format!("machine {b}, which coordinates, and machine {a} do not reach each other for 6 leases"));
    w.one_is_out(member, |w, lease| w.cut_both(a, b, Cut::Lose, 6 * lease))
}

fn partial_partition(w: &mut World) -> Told {
    w.start_and_settle()?;
    let member = w.some_member()?;
    let coordinator = w.coordinator()?;
    let others: Vec<usize> = w.up().into_iter().filter(|p| *p != member && *p != coordinator).collect();
    let other = *w.rng.pick(&others).ok_or("there is no third machine")?;
    let (a, b) = (w.processes[member].place, w.processes[other].place);
    w.tell(format!(
        "machines {a} and {b} do not reach each other for 6 leases; the coordinator reaches both"
    ));
    let (before, lease) = (w.views_installed(), w.lease());
    w.cut_both(a, b, Cut::Lose, 6 * lease);
    w.run_for_leases(7);
    let views = w.views_installed() - before;
    w.expect(views == 0, || format!("{views} views although the coordinator reaches everybody"));
    w.tell("nobody is out".into());
    Ok(())
}

fn leader_killed_every_second(w: &mut World) -> Told {
    const KILLS: usize = 20;
    w.start_and_settle()?;
    let mut took = Vec::new();
    for _ in 0..KILLS {
        w.run_for(1_000_000_000);
        let leader = w.leader().ok_or("nobody leads")?;
        let (id, machine, at) = (w.processes[leader].id, w.processes[leader].machine, w.now);
        w.crash(leader, "killed");
        let back = w.rng.between(300_000_000, 900_000_000);
        w.push(at + back, Action::Start { machine });
        w.run_until_that(3, "somebody leads after the leader died", |w| {
            w.leader().is_some_and(|p| w.processes[p].id != id)
        })?;
        took.push(w.now - at);
    }
    took.sort_unstable();
    let ms = |ns: u64| ns as f64 / 1e6;
    let (median, worst) = (ms(took[KILLS / 2]), ms(took[KILLS - 1]));
    w.tell(format!(
        "{KILLS} leaders died; another one led after {median:.0} ms (median), {worst:.0} ms (worst)"
    ));
    w.until_one_view(8)?;
    Ok(())
}

impl World {
    pub(crate) fn tell(&mut self, line: String) {
        let now = self.now;
        if let Some(story) = &mut self.story {
            story.lines.push((now, line));
        }
    }

    /// What should hold here; what is wrong, if it does not.
    pub(crate) fn expect(&mut self, holds: bool, wrong: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(story) = self.story.as_mut().filter(|_| !holds) {
            let wrong = wrong();
            story.lines.push((now, wrong.clone()));
            story.unmet.push(wrong);
        }
    }

    fn lease(&self) -> u64 {
        self.params.lease.as_nanos() as u64
    }

    fn run_for(&mut self, ns: u64) {
        self.run_until(self.now + ns);
    }

    fn run_for_leases(&mut self, leases: u64) {
        self.run_for(leases * self.lease());
    }

    fn since(&self, began: u64) -> String {
        format!("{:.2?}", Duration::from_millis((self.now - began) / 1_000_000))
    }

    /// Starts every machine now. When that is.
    fn start_all(&mut self) -> u64 {
        for machine in 0..self.params.nodes {
            self.push(self.now, Action::Start { machine });
        }
        self.now
    }

    /// Starts every machine, waits until all is as it should be, and a random while more.
    fn start_and_settle(&mut self) -> Told {
        self.start_all();
        self.until_one_view(20)?;
        // The core grows, and spreads, one step after the other.
        self.run_for_leases(8);
        let more = self.rng.below(self.lease());
        self.run_for(more);
        Ok(())
    }

    /// Runs until this holds, so many leases at most.
    fn run_until_that(&mut self, leases: u64, what: &str, holds: impl Fn(&Self) -> bool) -> Told {
        let step = self.params.heartbeat.as_nanos() as u64 / 20;
        let end = self.now + leases * self.lease();
        while !holds(self) {
            if self.now >= end || self.livelock.is_some() {
                return Err(format!("after {leases} leases it is not so that {what}"));
            }
            self.run_for(step);
        }
        Ok(())
    }

    /// Runs until all that run have one view, of themselves, and leases.
    fn until_one_view(&mut self, leases: u64) -> Told {
        let all_back = |w: &Self| w.one_view().is_some() && w.up().iter().all(|p| w.holds_lease(*p));
        self.run_until_that(leases, "all are in one view, and have leases", all_back)
    }

    /// The view of all that run, if they have one, and it is of themselves.
    fn one_view(&self) -> Option<(Lineage, ViewId)> {
        let mut up = self.processes.iter().filter(|p| p.is_up());
        let view_of = |p: &crate::process::Process| Some((p.cluster.lineage()?, p.cluster.view()?.id));
        let first = up.next()?;
        let view = view_of(first)?;
        let mut count = 1;
        for process in up {
            count += 1;
            if view_of(process) != Some(view) {
                return None;
            }
        }
        let members = &first.cluster.view()?.members;
        let lives = |id| self.index_of(id).is_some_and(|p| self.processes[p].is_up());
        (members.len() == count && members.iter().all(|node| lives(node.id))).then_some(view)
    }

    fn views_installed(&self) -> usize {
        self.story.as_ref().map_or(0, |story| story.views.len())
    }

    fn holds_lease(&self, p: usize) -> bool {
        let process = &self.processes[p];
        let now: Instant = process.clock.local(self.now);
        process.cluster.lease_until().is_some_and(|until| now < until)
    }

    /// Who coordinates, with authority.
    fn coordinator(&self) -> Result<usize, String> {
        let up = self.up();
        let found =
            up.into_iter().find(|p| self.processes[*p].cluster.is_coordinator() && self.holds_lease(*p));
        found.ok_or_else(|| "nobody coordinates".into())
    }

    /// Who acts for the first group.
    fn leader(&self) -> Option<usize> {
        let acts = |p: &usize| self.processes[*p].app.leads.get(0).is_some() && self.holds_lease(*p);
        self.up().into_iter().find(acts)
    }

    /// Somebody who does not coordinate.
    fn some_member(&mut self) -> Result<usize, String> {
        let coordinator = self.coordinator()?;
        let others: Vec<usize> = self.up().into_iter().filter(|p| *p != coordinator).collect();
        self.rng.pick(&others).copied().ok_or_else(|| "there is nobody else".into())
    }

    /// With this fault, which lasts six leases, one member is out, by one view; the others go on.
    fn one_is_out(&mut self, member: usize, fault: impl FnOnce(&mut Self, u64)) -> Told {
        let (began, before, lease) = (self.now, self.views_installed(), self.lease());
        let (id, coordinator) = (self.processes[member].id, self.coordinator()?);
        fault(self, lease);
        let out = |w: &Self| w.processes[coordinator].cluster.view().is_some_and(|v| v.node(id).is_none());
        self.run_until_that(4, "that member is out", out)?;
        let took = self.since(began);
        self.run_until(began + 6 * lease - 1);
        let views = self.views_installed() - before;
        self.tell(format!("it is out after {took}; views until the network was whole: {views}"));
        self.expect(views == 1, || format!("{views} views for one member"));
        let stays = self.coordinator() == Ok(coordinator);
        self.expect(stays, || "another one coordinates".into());
        self.until_one_view(8)?;
        self.tell("all are in one view again".into());
        Ok(())
    }
}

impl Params {
    /// A run in which nothing is drawn but delays and clocks, and how the first ones meet.
    fn plain(rng: &mut Rng, nodes: usize) -> Self {
        let mut params = Self::draw(rng, Some(nodes), None, &[]);
        let lease = Duration::from_secs(1);
        params.lease = lease;
        params.heartbeat = lease / 10;
        params.alone_after = lease;
        params.core_size = 5;
        params.slots = if params.slots > 0 { nodes.min(5) as u16 } else { 0 };
        params.hosts = (0..nodes).collect();
        params.ineligible.clear();
        params.old.clear();
        params.zones = None;
        params.durable = false;
        params.extra = 0;
        params.multicast = vec![false; 3];
        params.kinds.clear();
        params.ending = Ending::AllWell;
        params.manners.calm();
        params
    }
}
