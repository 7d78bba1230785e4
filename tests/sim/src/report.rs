//! What runs amount to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use checker::Report;

use crate::{
    faults::Kind,
    scenario::Story,
    script::{Fault, Recording},
    world::World,
};

/// Rare things that a large enough set of runs must have seen, or it proves little.
pub const MARKERS: [&str; 110] = [
    "a full disk takes nothing",
    "a host is suspended, and its timers are late",
    "a wall clock jumps",
    "what was changed on the way closes its connection",
    "a candidate dies",
    "a candidate gives way to a higher ballot",
    "a candidate learns committed entries from a promise",
    "a connection breaks with messages under way",
    "a coordinator dies while an entry is agreed",
    "a coordinator dies while it waits for leases to lapse",
    "a coordinator dies while its lineage dissolves",
    "a coordinator dies while the core changes",
    "a coordinator hears of a higher ballot",
    "a coordinator that is out hands over",
    "a coordinator wins a higher ballot of its own",
    "a core member is behind",
    "a death is attested to another host",
    "a deaf node that speaks is suspected",
    "a flush waits for a member that was overtaken",
    "a founder dies before the first view",
    "a joiner dies",
    "a leader goes on under its token after a lease gap",
    "a leader is stopped",
    "a leaving node dies",
    "a majority of the slots founds",
    "a member is brought along into a view that others have installed",
    "a member that was brought along goes on to a newer view",
    "a message of the next view comes before it is installed",
    "a message without a place is delivered at a closing",
    "a node is refused because it does not understand what was agreed on",
    "a newer process takes over an address",
    "a node begins anew",
    "a node founds alone",
    "a node goes over to another lineage",
    "a node installs a view from a snapshot",
    "a node is told to stop",
    "a node leaves and is let go",
    "a node notices that it missed an update",
    "a removed candidate is told so",
    "a removed node is told so",
    "a resource refuses a token",
    "a sender waits for others",
    "a state is received",
    "a member that stays behind is told to step out",
    "another member is asked for the state",
    "the state is lost",
    "a member goes on without the group's state",
    "a state reflects messages that come after it",
    "a state comes during a flush",
    "a giver of state is too slow",
    "a giver of state is at work for too long",
    "a giver says that the state is being made",
    "a state that is being made answers a later request",
    "a member is waited for because its state is on its way",
    "an application does not give its state",
    "an application takes long to make its state",
    "a suspicion is withdrawn",
    "a takeover before the predecessor's leases lapsed",
    "a view changes during a flush",
    "a winner dies before it finished its predecessor's entry",
    "a winner finishes a change of the core",
    "a winner finishes its predecessor's entry",
    "all slots found together",
    "an address moves while its old process runs on",
    "an adopted removal is waited out again",
    "every process is stopped at once",
    "frames are sent again after a reconnection",
    "half of a core decides an entry",
    "half of a core goes on alone",
    "half of a core wins by a proof of death",
    "half of a core asks the witness",
    "the same core is put in force anew for the witness",
    "the witness has another memory",
    "the witness is out of reach",
    "the witness records a half, and its answer is lost",
    "messages are passed on at a closing",
    "several nodes leave in one view",
    "silence is held for a cut",
    "takeover after a coordinator left",
    "takeover after a death on another host was attested",
    "a candidate is not heard once it has asked",
    "a heir has authority from the promises on",
    "takeover after a lease lapsed",
    "takeover after a proof of death",
    "the core is spread anew",
    "the feature level is raised",
    "two leaders die in a row",
    "a process comes and goes again and again",
    "a link fails in one direction again and again",
    "a process loses four fifths of everything",
    "links form a ring",
    "links form a star",
    "the whole network is jammed and released",
    "the links of a process are jammed and released",
    "messages held by a cut link arrive late",
    "two coordinators die in a row",
    "three coordinators die in a row",
    "several processes die at the same instant",
    "several processes leave at the same instant",
    "a process is stopped for half a lease",
    "a process is stopped for about a lease",
    "a process is stopped for three leases",
    "a process is stopped for ten leases",
    "two processes are cut from each other and a third one reaches both",
    "an idle coordinator dies",
    "a coordinator doubts that most others are gone",
    "a node that comes and goes is kept waiting",
    "two processes never reach each other again",
    "an entry waits until its view ids are set aside",
    "an operator gives up a lineage",
];

/// One run's outcome.
#[derive(Debug)]
pub struct Run {
    /// The seed that replays it.
    pub seed: u64,
    /// The checker's verdict.
    pub report: Report,
    /// The hash of all records, if it was asked for.
    pub hash: Option<u64>,
    /// Whether the trace file could be written.
    pub written: io::Result<()>,
    /// Steps of the event loop.
    pub events: u64,
    /// Records of the trace.
    pub records: u64,
    /// Faults injected, by kind.
    pub faults: BTreeMap<Kind, u64>,
    /// View installations.
    pub views: u64,
    /// Simulated nanoseconds.
    pub simulated_ns: u64,
    /// Rare things that happened.
    pub marks: BTreeSet<&'static str>,
    /// When, in nanoseconds, machines kept each other busy without end; the run stopped there.
    pub livelock: Option<u64>,
    /// The faults that were drawn, injected or not; empty unless some are left out, or they were asked for.
    pub schedule: Vec<Fault>,
    /// When faults ended and calm began, in simulated nanoseconds.
    pub calm_ns: u64,
    /// What the run looks like, for people.
    pub make_up: String,
    /// What stayed broken after that, for people.
    pub ending: &'static str,
    /// What happened in a scenario, and when, in simulated nanoseconds.
    pub story: Vec<(u64, String)>,
    /// What should have come of it, and did not.
    pub unmet: Vec<String>,
}

impl Run {
    pub(crate) fn of(seed: u64, world: World) -> (Self, Recording) {
        let World {
            recorder,
            events,
            faults,
            views,
            now,
            marks,
            livelock,
            script,
            params,
            calm_ns,
            story,
            ..
        } = world;
        let Story { lines, unmet, .. } = story.unwrap_or_default();
        let records = recorder.records;
        let (report, hash, written) = recorder.finish();
        let (recording, schedule) = script.finish();
        let run = Self {
            seed,
            report,
            hash,
            written,
            events,
            records,
            faults,
            views,
            simulated_ns: now,
            marks,
            livelock,
            schedule,
            calm_ns,
            make_up: params.summary(),
            ending: params.ending.name(),
            story: lines,
            unmet,
        };
        (run, recording)
    }

    /// The names of what failed: predicates, `livelock`, `scenario`, or `trace` where that is unusable.
    pub fn failures(&self) -> Vec<&'static str> {
        let predicates = self.report.failures().map(|verdict| verdict.predicate.name());
        let livelock = self.livelock.map(|_| "livelock");
        let scenario = self.unmet.first().map(|_| "scenario");
        predicates
            .chain(livelock)
            .chain(scenario)
            .chain(self.report.invalid.as_ref().map(|_| "trace"))
            .collect()
    }

    /// Did any predicate fail, did a scenario end otherwise than it should, or is the trace itself unusable?
    pub fn failed(&self) -> bool {
        self.livelock.is_some() || !self.unmet.is_empty() || self.report.failed()
    }
}

/// Many runs' outcome.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How many runs.
    pub seeds: u64,
    /// Steps of the event loop.
    pub events: u64,
    /// Faults injected.
    pub faults: u64,
    /// View installations.
    pub views: u64,
    /// Simulated nanoseconds.
    pub simulated_ns: u64,
    /// Rare things that happened.
    pub marks: BTreeSet<&'static str>,
    /// Predicates that failed, over all runs.
    pub violations: u64,
    /// The seeds of failed runs.
    pub failed: Vec<u64>,
}

impl Totals {
    /// Adds one run.
    pub fn add(&mut self, run: &Run) {
        self.seeds += 1;
        self.events += run.events;
        self.faults += run.faults.values().sum::<u64>();
        self.views += run.views;
        self.simulated_ns += run.simulated_ns;
        self.marks.extend(&run.marks);
        if run.failed() {
            self.violations += ((run.report.violations() + run.unmet.len()) as u64).max(1);
            self.failed.push(run.seed);
        }
    }

    /// Rare things that never happened.
    pub fn unhit(&self) -> Vec<&'static str> {
        MARKERS.into_iter().filter(|m| !self.marks.contains(m)).collect()
    }
}
