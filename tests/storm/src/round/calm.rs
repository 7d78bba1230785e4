//! The calm after a storm, what is left broken in it, the end, and the verdict on all that was written.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, BufWriter, Write as _},
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use anyhow::Context;
use membership_types::trace::{Cfg, Event, LinkState, Process, Record, Source};

use super::{PATIENCE, Round, faults::Action};
use crate::{
    act, client,
    hosts::Harm,
    now_ns,
    plan::{Ending, Role},
    proc::Proc,
    tally::{failovers, overlaps},
};

impl Round<'_> {
    /// Mends everything, but for what the ending leaves broken, and waits until all must agree.
    pub(super) fn calm(&mut self) -> anyhow::Result<()> {
        for Reverse(due) in std::mem::take(&mut self.queue).into_vec() {
            match due.action {
                Action::Feed(_) | Action::Loosen(_) | Action::Open(_) | Action::Retire(_) => self.act(due)?,
                _ => {}
            }
        }
        let whole = self.hosts.heal_all()?;
        self.tell(&whole, Some(LinkState::Ok));
        let stopped: Vec<usize> = self.procs.keys().copied().collect();
        for who in stopped {
            self.go_on(who)?;
        }
        let gone = |r: &Self| r.procs.values().all(|p| !p.leaving);
        if !self.run_until(self.after(PATIENCE), gone)? && !self.shared.stopping() {
            self.kill_slow_leavers()?;
        }
        for place in 0..self.plan.nodes {
            if self.procs.values().all(|p| p.place != place) {
                self.start(place)?;
            }
        }
        let told = |r: &Self| r.procs.values().all(|p| p.id.is_some());
        if !self.run_until(self.after(PATIENCE), told)? && !self.shared.stopping() {
            self.wrong.push("a process does not say that it has started".into());
        }
        // The faults at the end fall on a cluster that is whole, or nearly.
        self.run_until(self.after(self.leases(5.0)), |_| false)?;
        self.read_back()?;
        let outcast = self.break_for_good()?;
        self.end_clones_in_vain(&outcast)?;
        let lasts = self.b9() + self.leases(4.0) + Duration::from_secs(1);
        for attempt in 1..=3 {
            // Whoever has just rejoined has told of it by then.
            self.run_until(self.after(self.leases(1.0)), |_| false)?;
            self.shared.stall.store(0, Relaxed);
            let living = self.procs.iter().filter(|(who, _)| !outcast.contains(who));
            let core: Vec<Process> = living.filter_map(|(_, p)| p.id).collect();
            let at = self.records.len();
            let apart = self.apart_pairs(&core);
            self.record(Event::Gst { core, apart, witness: None });
            self.run_until(self.after(lasts), |_| false)?;
            let stall = Duration::from_nanos(self.shared.stall.load(Relaxed));
            if self.shared.stopping() || stall < self.plan.lease / 3 {
                break;
            }
            // Nothing can be said of how long processes take that do not run.
            self.shared.log(&format!("the machine stood still for {stall:?} in the calm: attempt {attempt}"));
            self.records.remove(at);
            self.tally.calms_not_judged += 1;
        }
        if self.plan.expect && !self.undecided {
            for proc in outcast.iter().filter_map(|who| self.procs.get(who)) {
                if proc.leads.is_some() && proc.stopped_at.is_none() && !self.shared.stopping() {
                    self.wrong.push(format!("{} is cut off from most, and leads", proc.name));
                }
            }
        }
        Ok(())
    }

    /// Who of these never reach each other.
    fn apart_pairs(&self, core: &[Process]) -> Vec<(Process, Process)> {
        let Some((a, b)) = self.apart else { return Vec::new() };
        let on = |host: usize| {
            let there = self.procs.values().filter(move |p| self.plan.hosts[p.place] == host);
            there.filter_map(|p| p.id).filter(|p| core.contains(p))
        };
        on(a).flat_map(|p| on(b).map(move |q| (p, q))).collect()
    }

    /// Clones that cannot lead, because most of their directories are not among the living, go before the calm: a group that
    /// waits for its state has no leader.
    fn end_clones_in_vain(&mut self, outcast: &BTreeSet<usize>) -> anyhow::Result<()> {
        let clones: Vec<usize> =
            self.procs.iter().filter(|(_, p)| p.role == Role::Clone).map(|(who, _)| *who).collect();
        let living = clones.iter().filter(|who| !outcast.contains(who)).count();
        if 2 * living > self.plan.count(Role::Clone) && self.apart.is_none() {
            return Ok(());
        }
        for who in clones {
            self.kill(who)?;
        }
        Ok(())
    }

    fn kill_slow_leavers(&mut self) -> anyhow::Result<()> {
        let slow: Vec<usize> = self.procs.iter().filter(|(_, p)| p.leaving).map(|(who, _)| *who).collect();
        for who in slow {
            let proc = &self.procs[&who];
            self.wrong.push(format!("{} does not leave: see {}", proc.name, proc.log.display()));
            self.kill(who)?;
        }
        Ok(())
    }

    /// Who is not among those that must get along.
    fn break_for_good(&mut self) -> anyhow::Result<BTreeSet<usize>> {
        let mut rng = self.rng.split();
        let all: Vec<usize> = self.procs.keys().copied().collect();
        // Often the one whose loss hurts most.
        let leader = self.leader().filter(|_| rng.chance(500));
        let Some(who) = leader.or_else(|| rng.pick(&all).copied()) else { return Ok(BTreeSet::new()) };
        let host = self.plan.hosts[self.procs[&who].place];
        let mut side = vec![host];
        match self.plan.ending {
            Ending::AllWell => return Ok(BTreeSet::new()),
            Ending::OneDown => {
                self.kill(who)?;
                return Ok(BTreeSet::new());
            }
            Ending::OneStopped => {
                self.pause(who)?;
                return Ok(BTreeSet::from([who]));
            }
            Ending::MostDown => {
                for who in all.iter().take(all.len() / 2 + 1) {
                    self.kill(*who)?;
                }
                return Ok(BTreeSet::new());
            }
            Ending::MinorityCutOff => {
                let on = |side: &[usize]| {
                    self.procs.values().filter(|p| side.contains(&self.plan.hosts[p.place])).count()
                };
                for host in self.all_hosts() {
                    let more: Vec<usize> = side.iter().copied().chain([host]).collect();
                    if !side.contains(&host) && 2 * on(&more) < self.procs.len() {
                        side = more;
                    }
                }
            }
            Ending::TwoApart => {
                let others: Vec<usize> =
                    self.used_hosts().into_iter().filter(|other| *other != host).collect();
                let Some(other) = rng.pick(&others).copied() else { return Ok(BTreeSet::new()) };
                let links = vec![(Harm::Cut, host, other), (Harm::Cut, other, host)];
                self.apart = Some((host, other));
                self.tell(&links, None);
                self.hosts.harm(&links)?;
                return Ok(BTreeSet::new());
            }
            Ending::OneIsolated | Ending::OneDeaf | Ending::OneMute => {}
        }
        let mut links = self.between(&side);
        match self.plan.ending {
            Ending::OneDeaf => links.retain(|(_, _, to)| *to == host),
            Ending::OneMute => links.retain(|(_, from, _)| *from == host),
            _ => {}
        }
        let of_side = |p: &Proc| side.contains(&self.plan.hosts[p.place]);
        let mut outcast: BTreeSet<usize> =
            self.procs.iter().filter(|(_, p)| of_side(p)).map(|(who, _)| *who).collect();
        match (2 * outcast.len()).cmp(&self.procs.len()) {
            Ordering::Less => {}
            // Then it is the others that are cut off.
            Ordering::Greater => outcast = all.into_iter().filter(|who| !outcast.contains(who)).collect(),
            // One half may go on, or none.
            Ordering::Equal => (outcast, self.undecided) = (all.into_iter().collect(), true),
        }
        self.tell(&links, None);
        self.hosts.harm(&links)?;
        Ok(outcast)
    }

    /// Is everything there that was acknowledged?
    fn read_back(&mut self) -> anyhow::Result<()> {
        let Some(client) = self.client.take() else { return Ok(()) };
        let written = client.stop()?;
        self.tally.updates += written.count;
        if self.shared.stopping() {
            return Ok(());
        }
        match client::check(self.hosts.outside()?, self.clones(), written, self.b1())? {
            Some(wrong) => self.wrong.extend(wrong),
            None => self.tally.not_read += 1,
        }
        Ok(())
    }

    /// All leave.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        self.read_back()?;
        let stalled = Duration::from_nanos(self.shared.worst.load(Relaxed));
        self.tally.longest_stall_ms = self.tally.longest_stall_ms.max(stalled.as_secs_f64() * 1e3);
        self.awaited = None;
        let whole = self.hosts.heal_all()?;
        self.tell(&whole, Some(LinkState::Ok));
        let all: Vec<usize> = self.procs.keys().copied().collect();
        if self.shared.stopping() {
            self.procs.clear();
            return Ok(());
        }
        for who in all {
            self.go_on(who)?;
            self.retire(who)?;
        }
        if !self.run_until(self.after(PATIENCE), |r| r.procs.is_empty())? && !self.shared.stopping() {
            self.kill_slow_leavers()?;
        }
        Ok(())
    }

    pub(super) fn judge(mut self, began: u64) -> anyhow::Result<Vec<String>> {
        let mut out = BufWriter::new(fs::File::create(self.dir.join("harness.jsonl"))?);
        let cfg = Event::Cfg(self.terms()?);
        let last = (now_ns(), Event::End {});
        let events = [(began, cfg)].into_iter().chain(std::mem::take(&mut self.records)).chain([last]);
        for (seq, (t, event)) in (1..).zip(events) {
            serde_json::to_writer(&mut out, &Record { v: 1, src: Source::Harness, seq, t, event })?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        drop(out);
        self.traces.insert(0, self.dir.join("harness.jsonl"));
        let acts = act::records(&self.acts(), &self.titles)?;
        if !acts.is_empty() {
            self.tally.acts += acts.len() as u64;
            let file = self.dir.join("acts.jsonl");
            let lines: Result<Vec<String>, _> = acts.iter().map(serde_json::to_string).collect();
            fs::write(&file, lines?.join("\n") + "\n")?;
            self.traces.push(file);
        }
        let mut wrong = std::mem::take(&mut self.wrong);
        match checker::check_files(&self.traces) {
            Ok(report) => {
                self.tally.judge(&report);
                if report.failed() {
                    let text = report.to_string();
                    let told = |line: &&str| line.contains(" fail ") || line.starts_with([' ', 'i']);
                    wrong.extend(text.lines().filter(told).map(str::to_owned));
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
        wrong.extend(overlaps(&mut self.reigns, self.plan.expect));
        for entry in
            fs::read_dir(&self.dir)?.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "log"))
        {
            let text = fs::read_to_string(entry.path())?;
            if text.contains("panicked at") {
                wrong.push(format!("a panic: see {}", entry.path().display()));
            }
        }
        self.tally.views += self.views.len() as u64;
        self.tally.messages += self.counts.messages.load(Relaxed);
        self.tally.failovers += failovers(&self.reigns);
        Ok(wrong)
    }

    /// The terms of the run: what the nodes say, with the bounds that hold on this machine.
    fn terms(&self) -> anyhow::Result<Cfg> {
        let first = |path: &PathBuf| {
            let line = BufReader::new(fs::File::open(path).ok()?).lines().next()?.ok()?;
            match serde_json::from_str::<Record>(&line).ok()?.event {
                Event::Cfg(cfg) => Some(cfg),
                _ => None,
            }
        };
        let mut cfg = self.traces.iter().find_map(first).context("no trace begins with its terms")?;
        if self.plan.expect {
            cfg.slots = self.slots.iter().copied().collect();
            cfg.durable = self.plan.durable;
        }
        let bounds = [("B1", self.b1()), ("B6", self.b6()), ("B9", self.b9())];
        cfg.bounds = bounds.map(|(name, time)| (name.to_owned(), time.as_nanos() as u64)).into();
        for (name, leases) in [("B2", 4.0), ("B4", 8.0), ("delta", 1.0)] {
            let time = self.leases(leases).max(Duration::from_secs(2));
            cfg.bounds.insert(name.to_owned(), time.as_nanos() as u64);
        }
        // One reason is enough to be removed, and each thing that happens is worth two views; as in the simulator.
        for (name, count) in [("k", 1), ("c", 2), ("m", 4)] {
            cfg.bounds.insert(name.to_owned(), count);
        }
        Ok(cfg)
    }
}
