//! How many records a second the checker judges, and how many it reads and judges.
//!
//! `cargo run --release -p checker --example throughput -- TRACE…` measures with real traces, read once and judged until
//! a few seconds are over. Without arguments it makes a trace of its own: a cluster of five with a hundred groups, in
//! which leaders act, clients ask and members come and go.

use std::{
    hint::black_box,
    path::PathBuf,
    time::{Duration, Instant},
};

use checker::{Checker, check_files, read_files};
use membership_types::trace::{
    Bal, Cfg, Event, Group, Lin, LinkState, Process, Record, Source, Tok, VERSION,
};

const TURNS: u64 = 2000;
const GROUPS: u64 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let records =
        if files.is_empty() { made_up() } else { read_files(&files)?.collect::<Result<Vec<Record>, _>>()? };
    let per_second = measure(records.len(), || {
        let mut checker = Checker::new();
        for record in &records {
            checker.observe(record);
        }
        let report = checker.finish();
        assert!(files.is_empty() <= !report.failed(), "{report}");
        black_box(report);
    });
    println!("judged: {per_second:.2} M records/s");
    if !files.is_empty() {
        let per_second = measure(records.len(), || {
            black_box(check_files(&files).expect("it was readable just now"));
        });
        println!("read and judged: {per_second:.2} M records/s");
    }
    Ok(())
}

/// Millions of records a second: the best of all rounds in three seconds.
fn measure(records: usize, mut round: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    let all = Instant::now();
    while all.elapsed() < Duration::from_secs(3) || best == Duration::MAX {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed());
    }
    records as f64 / best.as_secs_f64() / 1e6
}

fn made_up() -> Vec<Record> {
    let mut trace = Trace::default();
    let cfg = Cfg {
        lease: 1_000_000_000,
        rho: 0.01,
        hb: 100_000_000,
        bootstrap: None,
        slots: Vec::new(),
        core: Some(5),
        durable: false,
        witness: false,
        bounds: Default::default(),
    };
    trace.say(Source::Harness, Event::Cfg(cfg));
    trace.say(Source::Harness, Event::Link { a: 1, b: 2, state: LinkState::Loss, par: None });
    let members: Vec<Process> = (1..=5).map(|n| Process(n, 7)).collect();
    trace.say(
        Source::Process(members[0]),
        Event::Core { lin: "c0".into(), idx: 1, members: members.clone(), warrant: None },
    );
    let mut vid = 0;
    let mut leaders: Vec<Option<(Process, Tok)>> = vec![None; GROUPS as usize];
    let mut cluster = 0;
    for turn in 0..TURNS {
        // A new view of the cluster, with two joiners in turn.
        let mut now = members.clone();
        now.push(Process(6 + turn % 2, turn));
        vid += 1;
        for p in &members[..3] {
            let (lin, digest) = ("c0".into(), format!("{turn:032x}").into());
            let accept = Event::Accept {
                p: *p,
                lin,
                idx: turn + 1,
                ballot: Bal(1, members[0]),
                digest,
                core: None,
                epoch: None,
            };
            trace.say(Source::Process(*p), accept);
        }
        trace.install(Group::CLUSTER, vid, cluster, Some(turn + 1), &now);
        cluster = vid;
        // One group has a new view, and its leadership moves.
        let at = turn % GROUPS;
        let g = Group::Name(format!("g{at}").into());
        let rotated: Vec<Process> = (0..5).map(|n| members[((n + turn / GROUPS) % 5) as usize]).collect();
        if let Some((p, tok)) = leaders[at as usize].take() {
            let (g, lin, why) = (g.clone(), Some("c0".into()), "step-down".into());
            trace.say(Source::Process(p), Event::LeadEnd { p, g: g.clone(), lin, tok, why, until: None });
            trace.say(Source::Process(p), Event::Leave { p, g });
        }
        vid += 1;
        trace.install(g.clone(), vid, 0, None, &rotated);
        let (p, tok) = (rotated[0], Tok(0, vid, 0));
        trace.say(Source::Process(p), Event::LeadStart { p, g, lin: Some("c0".into()), tok });
        leaders[at as usize] = Some((p, tok));
        // All leaders act.
        for (at, leader) in leaders.iter().enumerate() {
            let Some((p, tok)) = *leader else { continue };
            let (g, lin, op) = (Group::Name(format!("g{at}").into()), Some(Lin::from("c0")), "w");
            let act = Event::LeadAct { p, g: g.clone(), lin: lin.clone(), tok, op: op.into() };
            trace.say(Source::Process(p), act);
            let effect = Event::Effect {
                r: "db".into(),
                g: g.clone(),
                lin: lin.clone(),
                tok,
                p,
                op: op.into(),
                ok: true,
            };
            trace.say(Source::Resource("db".into()), effect);
            if (at as u64 + turn).is_multiple_of(7) {
                trace.say(Source::Client("c".into()), Event::WhoLeads { c: "c".into(), g, lin, p, tok });
            }
        }
    }
    trace.say(Source::Harness, Event::End {});
    trace.records
}

#[derive(Default)]
struct Trace {
    records: Vec<Record>,
    seqs: std::collections::BTreeMap<Source, u64>,
    now: u64,
}

impl Trace {
    fn say(&mut self, src: Source, event: Event) {
        let seq = self.seqs.entry(src.clone()).or_insert(0);
        *seq += 1;
        self.now += 10_000;
        self.records.push(Record { v: VERSION, src, seq: *seq, t: self.now, event });
    }

    fn install(&mut self, g: Group, vid: u64, prev: u64, idx: Option<u64>, members: &[Process]) {
        for p in members {
            let (g, lin, members) = (g.clone(), Lin::from("c0"), members.to_vec());
            let event =
                Event::Install { p: *p, g, lin, vid, members, prev, trans: Vec::new(), idx, snap: false };
            self.say(Source::Process(*p), event);
        }
    }
}
