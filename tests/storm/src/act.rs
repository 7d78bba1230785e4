//! A command that acts all the time, and the resource that it acts on: a file that takes whatever is written to it. So only the
//! fuse of its wrapper keeps a leader's writes from coming after its successor's.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::Context;
use membership_types::trace::{Event, Group, Lin, Process, Record, Source, Tok, VERSION};

use crate::{now_ns, plan::Role};

/// The resource's name in traces.
const RESOURCE: &str = "file";
const EVERY: Duration = Duration::from_millis(2);

/// What the wrapper runs: writes its token again and again, for ever.
pub fn run(file: &Path) -> anyhow::Result<()> {
    let word =
        |name| env::var(name).with_context(|| format!("{name} is not set: this runs under `phalanx run`"));
    let (token, lineage) = (word("PHALANX_TOKEN")?, word("PHALANX_LINEAGE")?);
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    loop {
        // One write, so that lines stay whole, in the order in which the kernel takes them.
        file.write_all(format!("{} {token} {lineage}\n", now_ns()).as_bytes())?;
        thread::sleep(EVERY);
    }
}

/// What the resource took, as the records of its trace. `leaders` says who began to lead, under which token.
pub fn records(file: &Path, leaders: &BTreeMap<(String, u64), Process>) -> anyhow::Result<Vec<Record>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let mut records: Vec<Record> = Vec::new();
    let mut at = 0;
    for (seq, line) in (1..).zip(text.lines()) {
        let parts: Vec<&str> = line.split(' ').collect();
        let [t, token, lineage] = parts[..] else { anyhow::bail!("{}: no write: {line}", file.display()) };
        let (t, token): (u64, u64) = (t.parse()?, token.parse()?);
        // It took them in this order; who was slow to write has the older stamp.
        at = t.max(at);
        let p = leaders.get(&(lineage.to_owned(), token)).copied();
        let event = Event::Effect {
            r: RESOURCE.into(),
            g: Group::Name(Role::Exclusive.group().into()),
            lin: Some(Lin::from(lineage)),
            tok: Tok(0, token, 0),
            // Who was killed at once may not have come to say that it leads.
            p: p.unwrap_or(Process(0, 0)),
            op: "write".into(),
            ok: true,
        };
        records.push(Record { v: VERSION, src: Source::Resource(RESOURCE.into()), seq, t: at, event });
    }
    Ok(records)
}
