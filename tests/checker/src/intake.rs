//! Whether a trace is evidence at all: first and last records, numbers without a hole, and who may say what.

use std::collections::BTreeMap;

use membership_types::trace::{Cfg, Event, Process, Record, Source, VERSION};

use crate::{
    Map,
    book::{At, SourceId},
    report::Invalid,
};

#[derive(Debug)]
struct Intro {
    id: SourceId,
    last: u64,
    ended: bool,
    /// The latest two instants at which it wrote records.
    heard: [u64; 2],
}

/// Admits records one by one, and remembers what every source owes.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    sources: Map<Source, Intro>,
    names: Vec<Source>,
    now: u64,
    /// Sources that opened a trace of their own with `Cfg`, and whether it is closed. A process is filed under its
    /// node: an incarnation that follows in the same file may close what the one before it opened.
    opened: BTreeMap<Source, bool>,
    ended: bool,
    pub(crate) invalid: Option<Invalid>,
}

impl Intake {
    /// Counts the record in. `None` if the trace is no evidence (any more).
    pub(crate) fn admit(&mut self, v: u8, src: &Source, seq: u64, t: u64, opens: bool) -> Option<At> {
        if self.invalid.is_some() {
            return None;
        }
        match self.check(v, src, seq, t, opens) {
            Ok(at) => Some(at),
            Err(invalid) => {
                self.invalid = Some(invalid);
                None
            }
        }
    }

    fn check(&mut self, v: u8, src: &Source, seq: u64, t: u64, opens: bool) -> Result<At, Invalid> {
        if v != VERSION {
            return Err(Invalid::Version { src: src.clone(), seq, v });
        }
        if self.names.is_empty() && !opens {
            return Err(Invalid::NoCfg { src: src.clone(), seq });
        }
        if t < self.now {
            return Err(Invalid::Backwards { src: src.clone(), seq, t, before: self.now });
        }
        let id = match self.sources.get_mut(src) {
            Some(intro) => {
                if intro.ended {
                    return Err(Invalid::AfterEnd { src: src.clone(), seq });
                }
                if intro.last.checked_add(1) != Some(seq) {
                    return Err(Invalid::Hole { src: src.clone(), after: intro.last, found: seq });
                }
                intro.last = seq;
                if intro.heard[1] < t {
                    intro.heard = [intro.heard[1], t];
                }
                intro.id
            }
            None => {
                if seq > 1 {
                    return Err(Invalid::Hole { src: src.clone(), after: 0, found: seq });
                }
                let id = SourceId(u32::try_from(self.names.len()).expect("fewer than 2^32 sources"));
                self.names.push(src.clone());
                self.sources.insert(src.clone(), Intro { id, last: seq, ended: false, heard: [0, t] });
                id
            }
        };
        self.now = t;
        Ok(At { t, src: id, seq })
    }

    /// Who may say this: faults and time are the harness's, outcomes the clients' and resources'; a process speaks
    /// for itself only, and the harness may speak for it where it saw it from outside.
    pub(crate) fn trust(&mut self, record: &Record) -> bool {
        let (src, seq) = (&record.src, record.seq);
        let (ev, allowed) = match &record.event {
            Event::Cfg(cfg) => {
                if let Err(why) = sane(cfg) {
                    self.invalid = Some(Invalid::BadCfg { src: src.clone(), why: why.into() });
                    return false;
                }
                ("Cfg", true)
            }
            Event::End {} => ("End", true),
            Event::Start { .. } => ("Start", *src == Source::Harness),
            Event::Crash { .. } => ("Crash", *src == Source::Harness),
            Event::Pause { .. } => ("Pause", *src == Source::Harness),
            Event::Resume { .. } => ("Resume", *src == Source::Harness),
            Event::Starve { .. } => ("Starve", *src == Source::Harness),
            Event::Lack { .. } => ("Lack", *src == Source::Harness),
            Event::Link { .. } => ("Link", *src == Source::Harness),
            Event::Clock { .. } => ("Clock", *src == Source::Harness),
            Event::Gst { .. } => ("GST", *src == Source::Harness),
            Event::Join { p, .. } => ("Join", speaks_for(src, *p)),
            Event::Leave { p, .. } => ("Leave", speaks_for(src, *p)),
            Event::Install { p, .. } => ("Install", speaks_for(src, *p)),
            Event::Watch { p, .. } => ("Watch", speaks_for(src, *p)),
            Event::Evicted { p, .. } => ("Evicted", speaks_for(src, *p)),
            Event::Admin { p, .. } => ("Admin", speaks_for(src, *p)),
            Event::Auth { p, .. } => ("Auth", speaks_for(src, *p)),
            Event::Force { p, .. } => ("Force", speaks_for(src, *p)),
            Event::Suspect { p, .. } => ("Suspect", speaks_for(src, *p)),
            Event::Unsuspect { p, .. } => ("Unsuspect", speaks_for(src, *p)),
            Event::NoPrimary { p } => ("NoPrimary", speaks_for(src, *p)),
            Event::Primary { p } => ("Primary", speaks_for(src, *p)),
            Event::Core { .. } => ("Core", matches!(src, Source::Process(_) | Source::Harness)),
            Event::Witness { .. } => ("Witness", matches!(src, Source::Process(_) | Source::Harness)),
            Event::Accept { p, .. } => ("Accept", speaks_for(src, *p)),
            Event::Promise { p, .. } => ("Promise", speaks_for(src, *p)),
            Event::Grant { p, .. } => ("Grant", speaks_for(src, *p)),
            Event::Proof { p, .. } => ("Proof", speaks_for(src, *p)),
            Event::LeaseEnd { p } => ("LeaseEnd", speaks_for(src, *p)),
            Event::Mcast { p, mid, .. } => ("Mcast", speaks_for(src, *p) && mid.sender() == *p),
            Event::Deliver { p, .. } => ("Deliver", speaks_for(src, *p)),
            Event::Stable { p, .. } => ("Stable", speaks_for(src, *p)),
            Event::AppState { p, .. } => ("AppState", speaks_for(src, *p)),
            Event::Block { p, .. } => ("Block", speaks_for(src, *p)),
            Event::LeadStart { p, .. } => ("LeadStart", speaks_for(src, *p)),
            Event::LeadAct { p, .. } => ("LeadAct", speaks_for(src, *p)),
            Event::LeadEnd { p, .. } => ("LeadEnd", speaks_for(src, *p)),
            Event::Effect { r, .. } => ("Effect", matches!(src, Source::Resource(id) if id == r)),
            Event::WhoLeads { c, .. } => ("WhoLeads", matches!(src, Source::Client(id) if id == c)),
        };
        if !allowed {
            self.invalid = Some(Invalid::Untrusted { src: src.clone(), seq, ev });
        }
        allowed
    }

    /// A trace of its own begins: its source owes an `End`.
    pub(crate) fn open(&mut self, src: &Source) {
        self.opened.insert(file_of(src), false);
    }

    /// `End`.
    pub(crate) fn close(&mut self, src: &Source) {
        self.ended = true;
        self.opened.entry(file_of(src)).and_modify(|closed| *closed = true);
        if let Some(intro) = self.sources.get_mut(src) {
            intro.ended = true;
        }
    }

    /// A crash excuses the process from its `End`.
    pub(crate) fn excuse(&mut self, p: Process) {
        self.opened.entry(file_of(&Source::Process(p))).and_modify(|closed| *closed = true);
    }

    /// Does the trace of this process break off? Then nobody knows what became of it.
    pub(crate) fn breaks_off(&self, p: Process) -> bool {
        self.opened.get(&file_of(&Source::Process(p))).is_some_and(|closed| !closed)
    }

    /// The latest two instants at which a process wrote records, if there are any.
    pub(crate) fn heard(&self, p: Process) -> Option<[u64; 2]> {
        self.sources.get(&Source::Process(p)).map(|intro| intro.heard)
    }

    /// The time of the latest record.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// Does a harness tell of faults, so that their absence means something?
    pub(crate) fn has_harness(&self) -> bool {
        self.sources.contains_key(&Source::Harness)
    }

    /// All is over: who owes an `End` still?
    pub(crate) fn finish(mut self) -> (Vec<Source>, Option<Invalid>) {
        if self.invalid.is_none() {
            let open = self.opened.iter().find(|(_, closed)| !**closed).map(|(src, _)| src.clone());
            self.invalid = if self.names.is_empty() {
                Some(Invalid::Empty)
            } else if let Some(src) = open {
                Some(Invalid::Truncated { src: self.full_name(src), place: None })
            } else if !self.ended {
                Some(Invalid::Truncated { src: self.names[0].clone(), place: None })
            } else {
                None
            };
        }
        (self.names, self.invalid)
    }

    /// The latest incarnation that wrote into a process's file.
    fn full_name(&self, file: Source) -> Source {
        let of_node = self.names.iter().rev().find(|name| file_of(name) == file);
        of_node.cloned().unwrap_or(file)
    }
}

fn speaks_for(src: &Source, p: Process) -> bool {
    match src {
        Source::Process(me) => *me == p,
        Source::Harness => true,
        Source::Client(_) | Source::Resource(_) => false,
    }
}

/// All incarnations of a node write into one file, or into one after the other.
fn file_of(src: &Source) -> Source {
    match src {
        Source::Process(p) => Source::Process(Process(p.0, 0)),
        other => other.clone(),
    }
}

fn sane(cfg: &Cfg) -> Result<(), &'static str> {
    if cfg.lease == 0 {
        return Err("a lease of nothing");
    }
    if !(0.0..0.5).contains(&cfg.rho) {
        return Err("rho is not a drift between 0 and 0.5");
    }
    match cfg.bootstrap.as_deref() {
        None => Ok(()),
        Some(word) if word.starts_with("expect") || word.starts_with("alone-after") || word == "join" => {
            Ok(())
        }
        Some(_) => Err("bootstrap is neither expect nor alone-after nor join"),
    }
}
