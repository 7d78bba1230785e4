//! Nothing that anybody writes into a trace makes the checker panic, hang, or take memory without bound.

mod common;

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use checker::{Checker, Invalid, MAX_LINE, Outcome, Predicate, ReadError, check_files, read_files};
use common::{A, B, C, MS, group, judge, life};
use membership_types::trace::{Bal, Cfg, Event, Lin, LinkState, Process, Record, Source, Tok, VERSION};
use proptest::prelude::*;

/// A file that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("checker-{}-{number}.jsonl", std::process::id()));
        fs::write(&path, bytes).expect("the temporary directory is writable");
        Self(path)
    }

    fn of(records: &[Record]) -> Self {
        Self::new(lines(records).as_bytes())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn lines(records: &[Record]) -> String {
    records.iter().map(|r| serde_json::to_string(r).expect("serialises") + "\n").collect()
}

fn paths(files: &[Scratch]) -> Vec<&PathBuf> {
    files.iter().map(|file| &file.0).collect()
}

#[test]
fn files_of_several_sources_are_one_trace() {
    let life = life();
    let mut sources: Vec<Source> = life.iter().map(|r| r.src.clone()).collect();
    sources.sort();
    sources.dedup();
    // The harness first: it tells the terms.
    let files: Vec<Scratch> = sources
        .iter()
        .map(|src| Scratch::of(&life.iter().filter(|r| r.src == *src).cloned().collect::<Vec<_>>()))
        .collect();
    let merged: Vec<Record> = read_files(&paths(&files)).expect("opens").map(|r| r.expect("reads")).collect();
    assert_eq!(merged, life);
    assert_eq!(check_files(&paths(&files)).expect("reads"), judge(&life));
}

#[test]
fn unreadable_input_is_told_by_file_and_line() {
    let missing = PathBuf::from("/nonexistent/trace.jsonl");
    let error = check_files(&[&missing]).expect_err("there is no such file");
    assert!(matches!(error, ReadError::Open { .. }) && error.to_string().contains("trace.jsonl"), "{error}");

    let good = lines(&life());
    let first = good.lines().next().expect("it has lines").to_string();
    for (what, says) in [
        ("nonsense", "expected ident"),
        ("{\"v\":1}", "missing field"),
        ("{\"v\":1,\"src\":\"h\",\"seq\":2,\"t\":5,\"ev\":\"Sing\"}", "unknown variant `Sing`"),
        ("{\"v\":1,\"src\":\"x\",\"seq\":2,\"t\":5,\"ev\":\"End\"}", "not a source"),
        ("\u{1}\u{2}", "expected value"),
    ] {
        let file = Scratch::new(format!("{first}\n\n{what}\n").as_bytes());
        let error = check_files(&[&file.0]).expect_err(what);
        let text = error.to_string();
        assert!(text.contains(&format!("{}:3: ", file.0.display())) && text.contains(says), "{text}");
    }
    let file = Scratch::new(&[first.as_bytes(), b"\n\xff\xfe\n"].concat());
    assert!(matches!(check_files(&[&file.0]), Err(ReadError::Record { line: 2, .. })));
}

#[test]
fn a_huge_line_is_refused_and_a_long_one_is_not() {
    let long = " ".repeat(MAX_LINE - 2000);
    let padded = lines(&life()).replacen("{\"v\":1", &format!("{{{long}\"v\":1"), 1);
    let file = Scratch::new(padded.as_bytes());
    assert!(!check_files(&[&file.0]).expect("reads").failed());
    let file = Scratch::new(&[b"{\"v\":1,\"src\":\"".as_slice(), &vec![b'x'; MAX_LINE + 10]].concat());
    let error = check_files(&[&file.0]).expect_err("too long");
    assert!(matches!(error, ReadError::Long { line: 1, .. }), "{error}");
    let deep = "[".repeat(100_000);
    let file = Scratch::new(deep.as_bytes());
    assert!(check_files(&[&file.0]).is_err());
}

#[test]
fn a_trace_that_breaks_off_is_truncated_and_says_where() {
    let text = lines(&life());
    // In the middle of a line, at the end of a line, and before the last record.
    for length in [text.len() - 20, text.trim_end().rfind('\n').expect("many lines") + 1] {
        let file = Scratch::new(&text.as_bytes()[..length]);
        let report = check_files(&[&file.0]).expect("reads");
        let Some(Invalid::Truncated { place: Some(place), .. }) = &report.invalid else {
            panic!("{report}");
        };
        assert!(place.starts_with(&format!("{}:", file.0.display())), "{place}");
        assert_eq!(report.exit_code(), 2);
        assert!(report.verdicts.iter().all(|v| v.outcome != Outcome::Pass), "{report}");
    }
    let nothing = Scratch::new(b"");
    assert_eq!(check_files(&[&nothing.0]).expect("reads").invalid, Some(Invalid::Empty));
}

#[test]
fn a_killed_process_may_leave_half_a_line() {
    let life = life();
    let of = |src: &Source| life.iter().filter(|r| r.src == *src).cloned().collect::<Vec<_>>();
    // The process opened a trace of its own, and was killed while it wrote its last record.
    let cfg = life[0].event.clone();
    let own = Record { v: VERSION, src: Source::Process(B), seq: 1, t: 0, event: cfg };
    let install = Event::Install {
        p: B,
        g: group(""),
        lin: "c0".into(),
        vid: 5,
        members: vec![B],
        prev: 0,
        trans: Vec::new(),
        idx: None,
        snap: false,
    };
    let said = Record { v: VERSION, src: Source::Process(B), seq: 2, t: 3 * MS, event: install };
    let text = lines(&[own, said]) + "{\"v\":1,\"src\":\"p:2.b\",\"se";
    let process = Scratch::new(text.as_bytes());
    let end = of(&Source::Harness).pop().expect("it ends");
    let crash = Event::Crash { p: B, how: "killed".into() };
    let harness = |crashes: bool| {
        let mut records = vec![life[0].clone()];
        if crashes {
            records.push(Record {
                v: VERSION,
                src: Source::Harness,
                seq: 2,
                t: 9 * MS,
                event: crash.clone(),
            });
        }
        records.push(Record { seq: records.len() as u64 + 1, ..end.clone() });
        Scratch::of(&records)
    };
    let report = check_files(&[&harness(true).0, &process.0]).expect("reads");
    assert!(!report.failed(), "{report}");
    let report = check_files(&[&harness(false).0, &process.0]).expect("reads");
    let text = report.to_string();
    assert!(text.contains("p:2.b has no End") && text.contains(":3 breaks off"), "{text}");
}

#[test]
fn whose_trace_breaks_off_is_not_said_to_lead_on() {
    let cfg = life()[0].event.clone();
    let g = || group("kv");
    let lead = |p, vid: u64| {
        let lin = "c0".to_string();
        let (members, prev, trans) = (vec![p], 0, Vec::new());
        let install = Event::Install {
            p,
            g: g(),
            lin: lin.as_str().into(),
            vid,
            members,
            prev,
            trans,
            idx: None,
            snap: false,
        };
        [install, Event::LeadStart { p, g: g(), lin: Some(lin.into()), tok: Tok(0, vid, 0) }]
    };
    let file = |p, events: Vec<Event>, from: u64| {
        let records = events.into_iter().enumerate().map(|(at, event)| {
            let at = at as u64;
            Record { v: VERSION, src: Source::Process(p), seq: at + 1, t: (from + at) * MS, event }
        });
        Scratch::of(&records.collect::<Vec<_>>())
    };
    let killed = file(A, [vec![cfg.clone()], lead(A, 5).to_vec()].concat(), 1);
    let next = file(B, [vec![cfg], lead(B, 6).to_vec(), vec![Event::End {}]].concat(), 9);
    let report = check_files(&[&killed.0, &next.0]).expect("reads");
    assert!(report.invalid.is_some(), "{report}");
    assert_eq!(report.failures().count(), 0, "{report}");
}

#[test]
fn a_report_is_text_and_json() {
    let mut records = life();
    let at = records.iter().position(|r| matches!(r.event, Event::LeadStart { .. })).expect("somebody leads");
    records.remove(at);
    let report = judge(&common::numbered(records));
    let text = report.to_string();
    assert!(text.contains("LD1  fail") && text.contains("which it never started"), "{text}");
    assert!(text.contains("GM4  pass") && text.contains("GM11 not-exercised"), "{text}");
    let json = serde_json::to_value(&report).expect("serialises");
    let verdicts = json["verdicts"].as_array().expect("a list");
    let ld1 = verdicts.iter().find(|v| v["predicate"] == "LD1").expect("it is there");
    assert_eq!(ld1["verdict"], "fail");
    assert!(ld1["witness"][0]["src"].is_string() && ld1["witness"][0]["seq"].is_u64(), "{ld1}");
    assert!(text.lines().count() < 200);
}

#[test]
fn witnesses_are_short_and_point_to_records() {
    let mut records = life();
    for record in &mut records {
        if let Event::Accept { digest, p, .. } = &mut record.event {
            *digest = format!("{p}").into();
        }
    }
    let report = judge(&records);
    let verdict = report.verdict(Predicate::GM6a);
    assert_eq!(verdict.outcome, Outcome::Fail);
    for verdict in report.failures() {
        assert!(verdict.witness.len() <= checker::Verdict::MAX_WITNESS);
        for witness in &verdict.witness {
            let found =
                records.iter().any(|r| (&r.src, r.seq, r.t) == (&witness.src, witness.seq, witness.t));
            assert!(found, "{witness}");
        }
    }
}

/// A record from a few random numbers: a small world, so that events have to do with each other.
fn random_record(
    n: &[u8; 12],
    src_seq: &mut std::collections::BTreeMap<Source, u64>,
    now: &mut u64,
) -> Record {
    let who = |byte: u8| [A, B, C, Process(1, 11), Process(u64::MAX, u64::MAX)][usize::from(byte) % 5];
    let (p, q) = (who(n[1]), who(n[2]));
    let g = [group(""), group("kv"), group("fs")][usize::from(n[3]) % 3].clone();
    let lin: Lin = ["c0", "c1"][usize::from(n[4]) % 2].into();
    let id = |byte: u8| [0, 1, 2, 3, 4, 5, 6, u64::MAX - 1, u64::MAX][usize::from(byte) % 9];
    let members: Vec<Process> = (0..n[5] % 5).map(|i| who(n[6].wrapping_add(i))).collect();
    let tok = Tok(0, id(n[7]), u64::from(n[8] % 2));
    let maybe = (!n[9].is_multiple_of(3)).then(|| lin.clone());
    let event = match n[0] % 27 {
        0 => Event::Cfg(Cfg {
            lease: [1, 1000 * MS, u64::MAX][usize::from(n[1]) % 3],
            rho: [0.0, 0.01, f64::NAN, 9.0][usize::from(n[2]) % 4],
            hb: id(n[3]),
            bootstrap: [None, Some("alone-after".into()), Some("?".into())][usize::from(n[4]) % 3].clone(),
            slots: vec![1, 2, u64::MAX],
            core: None,
            durable: false,
            witness: false,
            bounds: [("B1", n[5]), ("B9", n[6]), ("k", n[7]), ("c", n[8]), ("m", n[9])]
                .map(|(name, n)| (name.to_string(), id(n)))
                .into(),
        }),
        1 => Event::Start { p },
        2 => Event::Crash { p, how: ["killed", "ended"][usize::from(n[3]) % 2].into() },
        3 => Event::Pause { p },
        4 => Event::Resume { p },
        5 => Event::Link { a: id(n[2]), b: id(n[3]), state: LinkState::Cut, par: None },
        6 => Event::Clock { p, kind: "rate".into(), par: Some(f64::from(n[4])) },
        7 => {
            let apart = members.windows(2).map(|w| (w[0], w[1])).take(usize::from(n[7] % 3)).collect();
            Event::Gst { core: members, apart, witness: None }
        }
        8 => Event::End {},
        9 => Event::Join { p, g, lin: maybe },
        10 => Event::Leave { p, g },
        11..=13 => Event::Install {
            p,
            g,
            lin,
            vid: id(n[7]),
            members,
            prev: id(n[8]),
            trans: Vec::new(),
            idx: (n[9].is_multiple_of(2)).then(|| id(n[10])),
            snap: n[11].is_multiple_of(4),
        },
        14 => Event::Watch { p, g, lin: maybe, vid: id(n[7]), members, prev: id(n[8]) },
        15 => Event::Evicted { p, vid: id(n[7]) },
        16 => Event::Suspect { p, q, why: "".into() },
        17 => Event::NoPrimary { p },
        18 => Event::Primary { p },
        19 => Event::Core { lin, idx: id(n[7]), members, warrant: None },
        20 => Event::Accept {
            p,
            lin,
            idx: id(n[7]),
            ballot: Bal(id(n[8]), q),
            digest: format!("{}", n[9] % 2).into(),
            core: None,
            epoch: None,
        },
        21 => Event::Proof { p, q, how: "".into(), leased: n[9].is_multiple_of(2) },
        22 => Event::LeadStart { p, g, lin: maybe, tok },
        23 => Event::LeadAct { p, g, lin: maybe, tok, op: "".into() },
        24 => {
            let until = (n[10].is_multiple_of(2)).then(|| id(n[11]));
            Event::LeadEnd { p, g, lin: maybe, tok, why: "".into(), until }
        }
        25 => {
            Event::Effect { r: "r".into(), g, lin: maybe, tok, p, op: "".into(), ok: n[9].is_multiple_of(2) }
        }
        _ => Event::WhoLeads { c: "c".into(), g, lin: maybe, p, tok },
    };
    let src = match (&event, n[11] % 16) {
        (_, 0) => Source::Process(q),
        (Event::Effect { .. }, _) => Source::Resource("r".into()),
        (Event::WhoLeads { .. }, _) => Source::Client("c".into()),
        (Event::End {}, 1..8) => Source::Process(p),
        _ => Source::Harness,
    };
    let seq = src_seq.entry(src.clone()).or_insert(0);
    *seq += 1;
    *now = now.saturating_add([0, 1, MS, 400 * MS, 30_000 * MS, u64::MAX / 4][usize::from(n[10]) % 6]);
    Record { v: VERSION, src, seq: *seq, t: *now, event }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_makes_it_panic(numbers in proptest::collection::vec(any::<[u8; 12]>(), 0..120)) {
        let (mut seqs, mut now) = (std::collections::BTreeMap::from([(Source::Harness, 1)]), 0);
        let mut checker = Checker::new();
        checker.observe(&life()[0]);
        for n in &numbers {
            checker.observe(&random_record(n, &mut seqs, &mut now));
        }
        let report = checker.finish();
        prop_assert_eq!(report.verdicts.len(), Predicate::ALL.len());
        for verdict in &report.verdicts {
            prop_assert_eq!(verdict.outcome == Outcome::Fail, !verdict.witness.is_empty(), "{}", verdict);
        }
        prop_assert!(!report.to_string().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = lines(&life()).into_bytes();
        for (at, byte) in noise {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let file = Scratch::new(&bytes);
        if let Ok(report) = check_files(&[&file.0]) {
            prop_assert_eq!(report.verdicts.len(), Predicate::ALL.len());
        }
    }
}
