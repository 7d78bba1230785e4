//! A member of one group that prints what happens, one JSON object on a line.
//!
//! ```text
//! cargo run -p membership --example member -- g name=a rendezvous=file:/tmp/towers
//! ```
//!
//! Options, each `key=value`: `name`, `listen`, `rendezvous` (repeatable), `expect` (founders), `alone-after` (milliseconds),
//! `lease` (milliseconds), `admin`, `trace`. The end of standard input, or a line `leave`, is a graceful leave;
//! `step-down` gives up the first rank.

use std::{error::Error, io::Write, time::Duration};

use membership::{Bootstrap, Event, Membership, Node, What};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let level = std::env::var("LOG")
        .ok()
        .and_then(|l| l.parse().ok())
        .unwrap_or(tracing_subscriber::filter::LevelFilter::WARN);
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let group = args.next().ok_or("usage: member GROUP [key=value …]")?;
    let mut builder = Node::builder();
    for arg in args {
        let (key, value) = arg.split_once('=').ok_or("options are key=value")?;
        let millis = || value.parse().map(Duration::from_millis);
        builder = match key {
            "name" => builder.name(value),
            "listen" => builder.listen(value.parse()?),
            "rendezvous" => builder.rendezvous(value.parse()?),
            "expect" => builder.bootstrap(Bootstrap::Expect(value.parse()?)),
            "alone-after" => builder.bootstrap(Bootstrap::AloneAfter(millis()?)),
            "lease" => builder.lease(millis()?),
            "admin" => builder.admin(value.parse()?),
            "trace" => builder.trace(value),
            _ => return Err(format!("unknown option {key}").into()),
        };
    }
    let node = builder.start().await?;
    let member = node.join(&group, None).await?;
    let mut events = member.events();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut reading = true;
    loop {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(event) => print(&event)?,
                None => return Ok(()),
            },
            line = lines.next_line(), if reading => {
                let line = line?;
                reading = line.as_deref().is_some_and(|line| line != "leave");
                obey(line.as_deref().unwrap_or("leave"), &node, &member);
            }
        }
    }
}

/// Carries a command out while events go on being printed.
fn obey(command: &str, node: &Node, member: &Membership) {
    let (node, member) = (node.clone(), member.clone());
    match command {
        "leave" => {
            tokio::spawn(async move { node.leave().await });
        }
        "step-down" => {
            tokio::spawn(async move { member.step_down().await });
        }
        other => eprintln!("no such command: {other}"),
    }
}

fn print(event: &Event) -> std::io::Result<()> {
    let mut line = what(&event.what, event);
    line["node"] = json!(*event.name);
    line["at_ns"] = json!(event.at_ns);
    line["group"] = json!(event.group.as_ref().map(|g| g.as_str()));
    writeln!(std::io::stdout(), "{line}")
}

fn what(what: &What, event: &Event) -> Value {
    match what {
        What::Started { listen, .. } => {
            json!({ "event": "started", "id": event.node.to_string(), "listen": listen.to_string() })
        }
        What::View(view) => json!({
            "event": "view",
            "view": view.id.get(),
            "prev": view.prev.get(),
            "rank": view.rank_of(event.node).map(|r| r.get()),
            "leader": view.leader().map(|l| &*l.name),
            "members": view.members.iter().map(|m| &*m.name).collect::<Vec<_>>(),
        }),
        What::Leading { token, lineage } => {
            json!({ "event": "leading", "token": token.get(), "lineage": lineage.to_string() })
        }
        What::NotLeading { token, why, until_ns, .. } => {
            json!({ "event": "not_leading", "token": token.get(), "why": why.as_str(), "until_ns": until_ns })
        }
        What::ClusterView(view) => {
            json!({ "event": "cluster", "view": view.id.get(), "nodes": view.members.len() })
        }
        What::Blocked { why } => json!({ "event": "blocked", "why": why }),
        What::Removed { view, why } => json!({ "event": "removed", "view": view.get(), "why": why }),
        What::Dissolved { into, .. } => json!({ "event": "dissolved", "into": into.to_string() }),
        other => {
            json!({ "event": format!("{other:?}").split([' ', '{']).next().unwrap_or_default().to_lowercase() })
        }
    }
}
