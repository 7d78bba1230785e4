//! Writing traces in tests: who says what, one after the other.

#![allow(dead_code, reason = "not every test uses everything")]

use std::collections::BTreeMap;

use checker::{Checker, Report};
use membership_types::trace::{
    Bal, Cfg, Event, Group, Lin, LinkState, Process, Record, Source, Tok, VERSION,
};

pub const MS: u64 = 1_000_000;
pub const A: Process = Process(1, 10);
pub const B: Process = Process(2, 11);
pub const C: Process = Process(3, 12);
pub const D: Process = Process(4, 13);
pub const LIN: &str = "c0";

/// A trace in the making. Every record is a millisecond after the one before it.
#[derive(Clone, Default)]
pub struct Story {
    pub records: Vec<Record>,
    now: u64,
}

impl Story {
    /// Begins with terms: a lease of a second.
    pub fn new() -> Self {
        Self::default().harness(Event::Cfg(Cfg {
            lease: 1000 * MS,
            rho: 0.01,
            hb: 100 * MS,
            bootstrap: None,
            slots: Vec::new(),
            core: Some(3),
            durable: false,
            witness: false,
            bounds: [("k", 1), ("c", 3), ("m", 4)].map(|(name, n)| (name.to_string(), n)).into(),
        }))
    }

    /// Nothing happens until then, in milliseconds.
    pub fn at(mut self, ms: u64) -> Self {
        self.now = ms * MS;
        self
    }

    pub fn say(mut self, src: Source, event: Event) -> Self {
        self.records.push(Record { v: VERSION, src, seq: 0, t: self.now, event });
        self.now += MS;
        self
    }

    pub fn harness(self, event: Event) -> Self {
        self.say(Source::Harness, event)
    }

    pub fn process(self, p: Process, event: Event) -> Self {
        self.say(Source::Process(p), event)
    }

    /// Everybody in the view installs it.
    pub fn view(mut self, g: &str, vid: u64, prev: u64, idx: Option<u64>, members: &[Process]) -> Self {
        for p in members {
            self = self.install(*p, g, vid, prev, idx, members);
        }
        self
    }

    pub fn install(
        self,
        p: Process,
        g: &str,
        vid: u64,
        prev: u64,
        idx: Option<u64>,
        members: &[Process],
    ) -> Self {
        let (g, lin, members, snap) = (group(g), LIN.into(), members.to_vec(), prev != 0 && p.1 > 90);
        self.process(p, Event::Install { p, g, lin, vid, members, prev, trans: Vec::new(), idx, snap })
    }

    /// P meets Q, which proves to be the node of this name.
    pub fn meets(self, p: Process, q: Process, name: &str) -> Self {
        self.process(p, Event::Auth { p, q, name: Some(name.into()) })
    }

    /// The two accept an entry under the ballot of the first of them.
    pub fn decide(self, idx: u64, round: u64, by: [Process; 2]) -> Self {
        let accept = |p| Event::Accept {
            p,
            lin: LIN.into(),
            idx,
            ballot: Bal(round, by[0]),
            digest: format!("{idx:032x}").into(),
            core: None,
            epoch: None,
        };
        self.process(by[0], accept(by[0])).process(by[1], accept(by[1]))
    }

    /// All of these learn the core.
    pub fn core(mut self, idx: u64, members: &[Process], learners: &[Process]) -> Self {
        for p in learners {
            self = self
                .process(*p, Event::Core { lin: LIN.into(), idx, members: members.to_vec(), warrant: None });
        }
        self
    }

    pub fn lead(self, p: Process, vid: u64) -> Self {
        let (lin, tok) = (Some(LIN.into()), Tok(0, vid, 0));
        self.process(p, Event::LeadStart { p, g: group("kv"), lin, tok })
    }

    /// The leader acts, the resource agrees.
    pub fn act(self, p: Process, vid: u64) -> Self {
        let (g, lin, tok, op) = (group("kv"), Some(Lin::from(LIN)), Tok(0, vid, 0), "w");
        let act = Event::LeadAct { p, g: g.clone(), lin: lin.clone(), tok, op: op.into() };
        let effect = Event::Effect { r: "db".into(), g, lin, tok, p, op: op.into(), ok: true };
        self.process(p, act).say(Source::Resource("db".into()), effect)
    }

    pub fn ask(self, p: Process, vid: u64) -> Self {
        let (g, lin, tok) = (group("kv"), Some(LIN.into()), Tok(0, vid, 0));
        self.say(Source::Client("8".into()), Event::WhoLeads { c: "8".into(), g, lin, p, tok })
    }

    pub fn stop(self, p: Process, vid: u64, until_ms: u64) -> Self {
        let (g, lin, tok) = (group("kv"), Some(LIN.into()), Tok(0, vid, 0));
        let until = Some(until_ms * MS);
        self.process(p, Event::LeadEnd { p, g, lin, tok, why: "lease".into(), until })
    }
}

/// The cluster, or a group by name.
pub fn group(name: &str) -> Group {
    if name.is_empty() { Group::CLUSTER } else { Group::Name(name.into()) }
}

/// Numbers the records of every source from 1.
pub fn numbered(mut records: Vec<Record>) -> Vec<Record> {
    let mut next: BTreeMap<Source, u64> = BTreeMap::new();
    for record in &mut records {
        let seq = next.entry(record.src.clone()).or_insert(0);
        *seq += 1;
        record.seq = *seq;
    }
    records
}

pub fn judge(records: &[Record]) -> Report {
    let mut checker = Checker::new();
    for record in records {
        checker.observe(record);
    }
    checker.finish()
}

/// The life of a cluster of three: founding, a leader that is stopped for too long and removed, its successor, a step-down,
/// the first node's return as a new incarnation, and calm.
pub fn life() -> Vec<Record> {
    let again = Process(1, 99);
    let kv = || group("kv");
    let story = Story::new()
        .harness(Event::Start { p: A })
        .harness(Event::Start { p: B })
        .harness(Event::Start { p: C })
        .meets(A, B, "b")
        .meets(A, C, "c")
        .meets(B, A, "a")
        .meets(C, A, "a")
        .core(1, &[A, B, C], &[A, B, C])
        .decide(1, 1, [A, B])
        .view("", 100, 0, Some(1), &[A, B, C])
        .process(A, Event::Primary { p: A })
        .view("kv", 101, 0, None, &[A])
        .lead(A, 101)
        .ask(A, 101)
        .act(A, 101)
        .decide(2, 1, [A, B])
        .view("kv", 102, 101, None, &[A, B, C])
        .act(A, 101)
        .process(A, Event::NoPrimary { p: A })
        .process(A, Event::Primary { p: A })
        .act(A, 101)
        .ask(A, 101)
        .at(1000)
        .harness(Event::Pause { p: A })
        .at(2500)
        .process(B, Event::Suspect { p: B, q: A, why: "silent".into() })
        .decide(3, 2, [B, C])
        .core(4, &[B, C], &[B, C])
        .view("", 103, 100, Some(3), &[B, C])
        .view("kv", 104, 102, None, &[B, C])
        .lead(B, 104)
        .act(B, 104)
        .ask(B, 104)
        .at(3000)
        .harness(Event::Resume { p: A })
        .stop(A, 101, 1900)
        .process(A, Event::NoPrimary { p: A })
        .process(A, Event::Evicted { p: A, vid: 103 })
        .harness(Event::Crash { p: A, how: "ended: removed".into() })
        .harness(Event::Start { p: again })
        .process(again, Event::Join { p: again, g: group(""), lin: None })
        .meets(B, again, "a")
        .decide(4, 2, [B, C])
        .core(5, &[B, C, again], &[B, C])
        .view("", 105, 103, Some(4), &[B, C, again])
        .decide(5, 2, [B, C])
        .view("kv", 106, 104, None, &[B, C, again])
        .stop(B, 104, 3030)
        .process(B, Event::Leave { p: B, g: kv() })
        .process(B, Event::Join { p: B, g: kv(), lin: None })
        .decide(6, 2, [B, C])
        .view("kv", 107, 106, None, &[C, again, B])
        .lead(C, 107)
        .act(C, 107)
        .ask(C, 107)
        .harness(Event::Link { a: 1, b: 2, state: LinkState::Cut, par: None })
        .harness(Event::Link { a: 1, b: 2, state: LinkState::Ok, par: None })
        .at(4000)
        .harness(Event::Gst { core: vec![again, B, C], apart: Vec::new(), witness: None })
        .act(C, 107)
        .at(30_000)
        .act(C, 107)
        .ask(C, 107)
        .harness(Event::End {});
    numbered(story.records)
}
