//! The checker bites: one event of a good history dropped, doubled, swapped or relabelled must be noticed.
//!
//! Without new numbers the intake notices almost everything. With new numbers a mutant is a history that somebody might
//! really have recorded; those that break a promise must be violations, not merely invalid.

mod common;

use common::{A, B, C, D, LIN, Story, group, judge, life, numbered};

use checker::{Invalid, Outcome, Predicate};
use membership_types::trace::{Bal, Digest, Event, Mid, Process, Record, Source, Tok};

#[test]
fn the_unchanged_life_is_good() {
    let report = judge(&life());
    assert!(!report.failed(), "{report}");
    // It is rich enough that nearly everything was judged.
    let idle: Vec<Predicate> =
        report.verdicts.iter().filter(|v| v.outcome != Outcome::Pass).map(|v| v.predicate).collect();
    let of_multicast =
        |p: &Predicate| p.name().starts_with("VS") || matches!(p, Predicate::LV2 | Predicate::LV4);
    let idle: Vec<Predicate> = idle.into_iter().filter(|p| !of_multicast(p)).collect();
    assert_eq!(
        idle,
        [Predicate::GM2n, Predicate::GM11, Predicate::LV6, Predicate::LV8, Predicate::LV9, Predicate::SE3],
        "{report}"
    );
}

#[test]
fn lost_doubled_and_swapped_records_are_noticed() {
    let life = life();
    for at in 0..life.len() {
        let last_of_source = !life[at + 1..].iter().any(|r| r.src == life[at].src);
        let mut doubled = life.clone();
        doubled.insert(at, life[at].clone());
        assert!(judge(&doubled).failed(), "record {at} twice: {:?}", life[at]);
        let mut dropped = life.clone();
        dropped.remove(at);
        // What a source might have said after its last record cannot be missed, except the harness's End.
        if !last_of_source || life[at].src == Source::Harness {
            assert!(judge(&dropped).failed(), "without record {at}: {:?}", life[at]);
        }
        if at + 1 < life.len() {
            let mut swapped = life.clone();
            swapped.swap(at, at + 1);
            assert!(judge(&swapped).invalid.is_some(), "records {at} and {} swapped", at + 1);
        }
    }
}

/// Changes that no true history allows, for each event. `before` and `after` are the rest of the history.
fn relabelled(record: &Record, before: &[Record], after: &[Record]) -> Vec<(&'static str, Event)> {
    let mut mutants = Vec::new();
    match record.event.clone() {
        Event::Install { p, g, lin, vid, members, prev, trans, idx, snap } => {
            let install = |vid, members: &[Process], prev, idx| Event::Install {
                p,
                g: g.clone(),
                lin: lin.clone(),
                vid,
                members: members.to_vec(),
                prev,
                trans: trans.clone(),
                idx,
                snap,
            };
            let others: Vec<Process> = members.iter().copied().filter(|q| *q != p).chain([D]).collect();
            mutants.push(("GM1: not in it", install(vid, &others, prev, idx)));
            let same = |r: &&Record| matches!(&r.event, Event::Install { vid: v, .. } if *v == vid);
            let known = before.iter().chain(after).find(same).is_some();
            let cluster = idx.is_some();
            if known {
                let mut longer = members.clone();
                longer.push(D);
                mutants.push(("GM4: one more", install(vid, &longer, prev, idx)));
                let reversed: Vec<Process> = members.iter().rev().copied().collect();
                mutants.push(("GM4: other order", install(vid, &reversed, prev, idx)));
            }
            if known && cluster {
                mutants.push(("GM4: other predecessor", install(vid, &members, prev + 1, idx)));
                mutants.push(("GM4: other entry", install(vid, &members, prev, Some(1000))));
            }
            if cluster {
                mutants.push(("GM5: other id", install(vid + 1000, &members, prev, idx)));
            }
            let earlier = |r: &Record| matches!(&r.event, Event::Install { p: q, g: h, vid, .. } if *q == p && *h == g && *vid > 0);
            if before.iter().any(earlier) {
                mutants.push(("GM2: an old id", install(1, &members, 0, idx)));
            }
        }
        Event::LeadStart { p, g, lin, tok } => {
            let other = if p == B { C } else { B };
            let start = |p, lin: &str, tok| Event::LeadStart { p, g: g.clone(), lin: Some(lin.into()), tok };
            mutants.push(("LD1: another one", start(other, LIN, tok)));
            mutants.push(("GM3: in another lineage", start(p, "c1", tok)));
            mutants.push(("LD1: token to come", start(p, LIN, Tok(0, tok.1 + 1000, 0))));
            drop(lin);
        }
        Event::LeadAct { p, g, tok, op, .. } => {
            let other = if p == B { C } else { B };
            let act = |p, lin: &str, tok| Event::LeadAct {
                p,
                g: g.clone(),
                lin: Some(lin.into()),
                tok,
                op: op.clone(),
            };
            mutants.push(("LD1: another one acts", act(other, LIN, tok)));
            mutants.push(("LD1: acts in another lineage", act(p, "c1", tok)));
            mutants.push(("LD1: acts under another token", act(p, LIN, Tok(0, tok.1 - 1, 0))));
        }
        Event::LeadEnd { p, g, tok, why, until, .. } => {
            let end = |tok, until| {
                let (g, lin, why) = (g.clone(), Some(LIN.into()), why.clone());
                Event::LeadEnd { p, g, lin, tok, why, until }
            };
            mutants.push(("LD1: ends what it never began", end(Tok(0, tok.1 + 1, 0), until)));
            mutants.push(("GM12: ended before it acted", end(tok, Some(1))));
            if p == A {
                mutants.push(("LD2: ended too late", end(tok, None)));
            }
        }
        Event::Effect { r, g, lin, tok, p, op, .. } if before.iter().any(is_effect) => {
            let tok = Tok(0, tok.1 - 10, 0);
            mutants.push(("LD3: a lower token", Event::Effect { r, g, lin, tok, p, op, ok: true }));
        }
        Event::WhoLeads { c, g, lin, p, tok } => {
            let told = |p, tok| Event::WhoLeads { c: c.clone(), g: g.clone(), lin: lin.clone(), p, tok };
            mutants.push(("LD5: another one", told(D, tok)));
            mutants.push(("LD5: a token never started", told(p, Tok(0, tok.1 + 1, 0))));
        }
        Event::Accept { p, lin, idx, ballot, digest, .. } => {
            let accept = |p, idx, ballot, digest: &str| Event::Accept {
                p,
                lin: lin.clone(),
                idx,
                ballot,
                digest: digest.into(),
                core: None,
                epoch: None,
            };
            mutants.push(("GM6a: another entry", accept(p, idx, ballot, "x")));
            // Other entries make no view of the cluster, or half of their core suffices.
            if [1, 3].contains(&idx) {
                mutants.push(("GM6: another ballot", accept(p, idx, Bal(ballot.0 + 1, ballot.1), &digest)));
                mutants.push(("GM6: another position", accept(p, idx + 1000, ballot, &digest)));
            }
        }
        Event::Core { lin, idx, members, warrant } => {
            let mut fewer = members;
            fewer.pop();
            mutants.push(("GM6: another core", Event::Core { lin, idx, members: fewer, warrant }));
        }
        Event::Auth { p, q, name: Some(name) } => {
            let met = |q, name: &str| Event::Auth { p, q, name: Some(name.into()) };
            // The first one is met twice.
            if q.0 == A.0 {
                mutants.push(("SE5: another name", met(q, "x")));
            }
            if q != A {
                mutants.push(("SE5: another one", met(Process(q.0, 77), &name)));
                mutants.push(("GM10: another one", met(Process(q.0, 77), &name)));
            }
        }
        Event::Leave { g, .. } => mutants.push(("GM8: another one leaves", Event::Leave { p: C, g })),
        Event::Gst { core, .. } => {
            let gst = |core| Event::Gst { core, apart: Vec::new(), witness: None };
            mutants.push(("LV1: one less", gst(core[1..].to_vec())));
            mutants.push(("LV1: one more", gst(core.iter().copied().chain([D]).collect())));
        }
        _ => {}
    }
    mutants
}

fn is_effect(record: &Record) -> bool {
    matches!(record.event, Event::Effect { .. })
}

/// Who says it, after a change.
fn speaker(event: &Event, src: &Source) -> Source {
    match (event, src) {
        (
            Event::LeadStart { p, .. } | Event::LeadAct { p, .. } | Event::Leave { p, .. },
            Source::Process(_),
        ) => Source::Process(*p),
        _ => src.clone(),
    }
}

/// Every mutant is a violation of the predicate that its name begins with, or of any if that is hidden by another one.
fn must_bite(name: &str, at: usize, records: Vec<Record>) {
    let report = judge(&numbered(records));
    assert_eq!(report.invalid, None, "{name}, record {at}");
    assert!(report.violations() > 0, "nothing noticed: {name}, record {at}: {:?}\n{report}", life()[at]);
    let named = name.split(':').next().unwrap_or_default();
    let hit = report.failures().any(|v| v.predicate.name() == named);
    assert!(hit, "{name}, record {at}: {:?} is noticed as\n{report}", life()[at]);
}

#[test]
fn relabelled_events_are_violations() {
    let life = life();
    let mut count = 0;
    for (at, record) in life.iter().enumerate() {
        for (name, event) in relabelled(record, &life[..at], &life[at + 1..]) {
            let mut mutant = life.clone();
            mutant[at].src = speaker(&event, &record.src);
            mutant[at].event = event;
            must_bite(name, at, mutant);
            count += 1;
        }
    }
    assert!(count > 150, "{count} mutants");
}

/// What may not be missing, and who misses it.
fn needed(record: &Record, before: &[Record], after: &[Record]) -> Option<&'static str> {
    match &record.event {
        Event::Install { p, g, idx, snap: false, .. } => {
            let same = |r: &Record| matches!(&r.event, Event::Install { p: q, g: h, snap: false, .. } if q == p && h == g);
            let between = before.iter().any(same) && after.iter().any(same);
            (between && idx.is_some()).then_some("GM7: a view is skipped")
        }
        Event::LeadStart { .. } => Some("LD1: acts without a start"),
        Event::LeadEnd { p, .. } if *p != A => Some("LD2: the first reign never ends"),
        Event::Accept { idx: 1 | 3, .. } => Some("GM6: no quorum"),
        Event::Primary { .. } if before.iter().any(|r| matches!(r.event, Event::NoPrimary { .. })) => {
            Some("GM12: acts in silence")
        }
        Event::Leave { .. } => Some("GM8: moved without asking"),
        Event::Auth { p, q, .. } if *p == A && *q != A => Some("GM10: a founder was never met"),
        Event::Auth { q: Process(1, 99), .. } => Some("GM10: who comes again was never met"),
        _ => None,
    }
}

#[test]
fn missing_events_are_violations() {
    let life = life();
    let mut count = 0;
    for (at, record) in life.iter().enumerate() {
        if let Some(name) = needed(record, &life[..at], &life[at + 1..]) {
            let mut mutant = life.clone();
            mutant.remove(at);
            must_bite(name, at, mutant);
            count += 1;
        }
    }
    assert!(count >= 12, "{count} mutants");
}

#[test]
fn repeated_events_are_violations() {
    let life = life();
    for (at, record) in life.iter().enumerate() {
        let name = match record.event {
            Event::Install { .. } => "GM2: the same view again",
            Event::LeadEnd { .. } => "LD1: ends twice",
            _ => continue,
        };
        let mut mutant = life.clone();
        mutant.insert(at, record.clone());
        must_bite(name, at, mutant);
    }
}

/// What may not change places: the events move, times stay.
fn ordered(first: &Event, second: &Event) -> Option<&'static str> {
    match (first, second) {
        (Event::Install { p, g, idx, .. }, Event::Install { p: q, g: h, .. }) if p == q && g == h => {
            Some(if idx.is_some() { "GM2: the later view first" } else { "GM2: the later group view first" })
        }
        (Event::LeadStart { p, tok, .. }, Event::LeadAct { p: q, tok: to, .. }) if (p, tok) == (q, to) => {
            Some("LD1: acts first, then begins")
        }
        (Event::LeadEnd { p, tok, .. }, Event::LeadStart { p: q, tok: next, .. }) if p != q && tok < next => {
            Some("LD2: the successor begins before the end")
        }
        (Event::Effect { tok, .. }, Event::Effect { tok: next, .. }) if tok < next => {
            Some("LD3: tokens decrease")
        }
        (Event::WhoLeads { tok, .. }, Event::WhoLeads { tok: next, .. }) if tok < next => {
            Some("LD5: answers go back")
        }
        (Event::Accept { idx: idx @ (1 | 3), .. }, Event::Install { idx: Some(of), .. }) if of == idx => {
            Some("GM6: accepted after the install")
        }
        (Event::Auth { q: Process(1, 99), .. }, Event::Accept { idx: 4, .. }) => {
            Some("GM10: met after it was admitted")
        }
        (Event::LeadStart { p, tok, .. }, Event::WhoLeads { p: q, tok: of, .. }) if (p, tok) == (q, of) => {
            Some("LD5: answered before the start")
        }
        _ => None,
    }
}

#[test]
fn swapped_events_are_violations() {
    let life = life();
    let mut count = 0;
    for at in 0..life.len() {
        for with in at + 1..life.len() {
            let Some(name) = ordered(&life[at].event, &life[with].event) else { continue };
            // Only the first of several installs comes too early.
            let install = |r: &Record| matches!(r.event, Event::Install { .. });
            if name.starts_with("GM6") && life[at..with].iter().any(install) {
                continue;
            }
            // Another reign of the same process lies between.
            if name.starts_with("LD2") && !matches!(life[at].event, Event::LeadEnd { p: B, .. }) {
                continue;
            }
            let mut mutant = life.clone();
            let (t, u) = (mutant[at].t, mutant[with].t);
            mutant.swap(at, with);
            (mutant[at].t, mutant[with].t) = (t, u);
            must_bite(name, at, mutant);
            count += 1;
        }
    }
    assert!(count > 30, "{count} mutants");
}

#[test]
fn who_speaks_for_another_one_is_not_believed() {
    let life = life();
    for at in 0..life.len() {
        let claims = [Source::Process(D), Source::Client("9".into()), Source::Resource("other".into())];
        for src in claims {
            let of_anyone = match &life[at].event {
                Event::Cfg(_) | Event::End {} => true,
                Event::Core { .. } => matches!(src, Source::Process(_)),
                _ => false,
            };
            if of_anyone {
                continue;
            }
            let mut mutant = life.clone();
            mutant[at].src = src.clone();
            let invalid = judge(&numbered(mutant)).invalid;
            assert!(matches!(invalid, Some(Invalid::Untrusted { .. })), "{src}: {:?}", life[at].event);
        }
    }
}

#[test]
fn harmless_changes_are_not_held_against_anyone() {
    let life = life();
    // Numbers may begin at 0.
    let from_zero: Vec<Record> = life.iter().cloned().map(|r| Record { seq: r.seq - 1, ..r }).collect();
    assert!(!judge(&from_zero).failed());
    // What nobody promised need not be told.
    for at in 0..life.len() {
        let optional =
            matches!(life[at].event, Event::WhoLeads { .. } | Event::Effect { .. } | Event::NoPrimary { .. });
        if optional {
            let mut mutant = life.clone();
            mutant.remove(at);
            let report = judge(&numbered(mutant));
            assert!(!report.failed(), "without {:?}:\n{report}", life[at]);
        }
    }
    // A clock that is as wrong as leases allow for.
    let mut drifting = life.clone();
    let event = Event::Clock { p: A, kind: "rate".into(), par: Some(0.991) };
    drifting.insert(10, Record { src: Source::Harness, event, ..life[10].clone() });
    let report = judge(&numbered(drifting));
    assert_eq!(report.verdict(Predicate::LD2).outcome, Outcome::Pass, "{report}");
}

#[test]
fn a_clock_beyond_the_drift_waives_what_rests_on_clocks() {
    let life = life();
    for (kind, par) in [("mono_jump", Some(30.0)), ("rate", Some(1.05)), ("rate", None)] {
        let mut mutant = life.clone();
        let event = Event::Clock { p: A, kind: kind.into(), par };
        mutant.insert(10, Record { src: Source::Harness, event, ..life[10].clone() });
        let report = judge(&numbered(mutant));
        assert!(!report.failed(), "{report}");
        for predicate in [Predicate::LD2, Predicate::LD4, Predicate::GM11] {
            let verdict = report.verdict(predicate);
            assert_eq!(verdict.outcome, Outcome::NotExercised, "{kind}: {verdict}");
            assert!(verdict.explanation.starts_with("waived"), "{verdict}");
        }
    }
}

#[test]
fn who_is_excluded_must_have_been_suspected() {
    let life = life();
    let at = life.iter().position(|r| matches!(r.event, Event::Suspect { .. })).expect("one is suspected");
    let mut unsuspected = life.clone();
    unsuspected.remove(at);
    must_bite("GM9: nobody suspects", at, numbered(unsuspected));
    let mut another = life.clone();
    another[at].event = Event::Suspect { p: B, q: C, why: "silent".into() };
    must_bite("GM9: another one is suspected", at, another);
    let mut withdrawn = life.clone();
    let event = Event::Unsuspect { p: B, q: A };
    withdrawn.insert(at + 1, Record { event, ..life[at].clone() });
    must_bite("GM9: withdrawn", at, numbered(withdrawn));
}

/// A group of three that multicasts, and loses a member.
fn talk() -> Vec<Record> {
    let g = || group("chat");
    let mid = |p: Process, n| Mid(p.0, p.1, n);
    let install = |p, vid, members: &[Process], prev, trans: &[Process]| Event::Install {
        p,
        g: g(),
        lin: LIN.into(),
        vid,
        members: members.to_vec(),
        prev,
        trans: trans.to_vec(),
        idx: None,
        snap: false,
    };
    let sends = |p, n, cls: &'static str| Event::Mcast {
        p,
        g: g(),
        lin: LIN.into(),
        vid: 7,
        mid: mid(p, n),
        cls: cls.into(),
        h: "aa".into(),
    };
    let delivers = |p, from, n, tseq| Event::Deliver {
        p,
        g: g(),
        lin: LIN.into(),
        vid: 7,
        mid: mid(from, n),
        h: "aa".into(),
        tseq,
    };
    let block = |p| Event::Block { p, g: g(), lin: LIN.into(), vid: 8 };
    let mut story = Story::new();
    for p in [A, B, C] {
        story = story.process(p, install(p, 7, &[A, B, C], 0, &[]));
    }
    story = story
        .process(A, sends(A, 1, "ordered"))
        .process(B, sends(B, 1, "safe"))
        .process(A, sends(A, 2, "fifo"));
    for p in [A, B, C] {
        story = story.process(p, delivers(p, A, 1, Some(1))).process(p, delivers(p, A, 2, None));
        story = story.process(p, delivers(p, B, 1, Some(2)));
    }
    story = story.process(B, sends(B, 2, "ordered")).process(A, block(A)).process(B, block(B));
    for p in [A, B] {
        story = story.process(p, delivers(p, B, 2, None)).process(p, install(p, 8, &[A, B], 7, &[A, B]));
    }
    numbered(story.harness(Event::End {}).records)
}

#[test]
fn every_change_of_what_was_delivered_is_noticed() {
    let talk = talk();
    let report = judge(&talk);
    assert!(!report.failed(), "{report}");
    for at in 0..talk.len() {
        let Event::Deliver { p, g, lin, vid, mid, h, tseq } = talk[at].event.clone() else { continue };
        let deliver = |vid, mid, h: &Digest, tseq| Event::Deliver {
            p,
            g: g.clone(),
            lin: lin.clone(),
            vid,
            mid,
            h: h.clone(),
            tseq,
        };
        let mutants = [
            ("VS1: other bytes", deliver(vid, mid, &"bb".into(), tseq)),
            ("VS1: another message", deliver(vid, Mid(mid.0, mid.1, 9), &h, tseq)),
            ("VS3: another view", deliver(vid + 1, mid, &h, tseq)),
            ("VS11: another place", deliver(vid, mid, &h, Some(tseq.unwrap_or(4) + 1))),
        ];
        for (name, event) in mutants {
            let mut records = talk.clone();
            records[at].event = event;
            must_bite(name, at, records);
        }
        // C goes nowhere, so that nobody misses what it lacks; but gaps in a sequence are seen.
        if p != C {
            let mut records = talk.clone();
            records.remove(at);
            must_bite("VS5: not delivered", at, numbered(records));
        }
    }
    for at in 0..talk.len() {
        if !matches!(talk[at].event, Event::Mcast { .. }) {
            continue;
        }
        let mut records = talk.clone();
        records.remove(at);
        must_bite("VS1: never sent", at, numbered(records));
    }
}
