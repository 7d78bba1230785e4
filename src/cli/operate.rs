//! `status`, `view` and `force-new`: questions to a node's admin API, and an order.

use std::{
    io::{self, ErrorKind, IsTerminal, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Error, anyhow, bail};
use clap::Args;
use membership::GroupName;
use serde_json::Value;

use super::{Failure, Outcome, complain, events, exit};

/// How the node stands: its view, its lease, the groups that it is in.
#[derive(Args)]
pub(crate) struct Status {
    /// The node's admin API.
    #[arg(long, env = "PHALANX_ADMIN", value_name = "ADDR")]
    admin: SocketAddr,
}

/// The members in rank order, of the cluster or of a group.
#[derive(Args)]
pub(crate) struct View {
    /// The group; the cluster if not given. A node of the core knows all groups, others those that they are in or observe.
    group: Option<GroupName>,
    /// The node's admin API.
    #[arg(long, env = "PHALANX_ADMIN", value_name = "ADDR")]
    admin: SocketAddr,
}

/// Gives up a lineage that lost most of its core, and founds a new one from one node's state.
///
/// Only where `status` says that the node is blocked, and those who are missing do not come back. The node begins the new
/// lineage alone; other nodes of the old one join it as soon as they meet it, as new incarnations, and what comes back later
/// does, too. View ids and tokens go on above all that the node knows of.
///
/// At risk: what the missing nodes had acknowledged and this one never heard of is lost. If they are alive behind a broken
/// network, leaders of both lineages act until the two meet: make sure that they are down.
#[derive(Args)]
pub(crate) struct ForceNew {
    /// The admin API of the node to begin from: best the one with the highest view (see `phalanx view`). On its own host.
    #[arg(long, value_name = "ADDR")]
    from: SocketAddr,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

impl ForceNew {
    pub(crate) fn run(self, json: bool) -> Outcome {
        let status = get(self.from, "/v1/status")?;
        let text = |key: &str| status[key].as_str().unwrap_or("unknown").to_owned();
        let Some(lineage) = status["lineage"].as_str() else {
            bail_out("the node is in no lineage that could be given up: it looks for a cluster")?
        };
        let Some(blocked) = status["blocked"].as_str() else {
            bail_out("the node is not blocked: its cluster can decide, and needs no force")?
        };
        complain(format_args!(
            "node {} of cluster {} is blocked: {blocked}\n\
             It would give up lineage {lineage} at view {}, and found a new one alone, with the state that it has. The others join it \
             when they meet it.\n\
             At risk: what the missing nodes acknowledged and this one never heard of is lost; if they are alive, two leaders \
             act until they meet. Core: {}",
            text("node"),
            text("cluster"),
            status["view"],
            status["core"],
        ));
        if !self.yes && !confirmed()? {
            bail_out("not confirmed: nothing was changed")?;
        }
        let body = serde_json::json!({ "lineage": lineage }).to_string();
        let answer = ask(self.from, "POST", "/v1/force-new", &body)?;
        let new = answer["lineage"].as_str().unwrap_or("unknown");
        if json {
            show(&serde_json::json!({ "event": "forced", "from": lineage, "lineage": new }), true);
        } else {
            events::line(&format!("lineage {new} takes the place of {lineage}"));
        }
        Ok(0)
    }
}

fn bail_out<T>(why: &str) -> Result<T, Failure> {
    Err(Failure::new(exit::FAILED, why))
}

/// Asks the operator, at a terminal.
fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to confirm this at: give --yes to do it without being asked",
        ));
    }
    complain("Type `yes` to go on:");
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

/// How long an answer may take, all of it.
const LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may be.
const LONGEST: usize = 16 << 20;

impl Status {
    pub(crate) fn run(self, json: bool) -> Outcome {
        show(&get(self.admin, "/v1/status")?, json);
        Ok(0)
    }
}

impl View {
    pub(crate) fn run(self, json: bool) -> Outcome {
        let path = self.group.map_or("/v1/view".into(), |group| format!("/v1/groups/{group}"));
        show(&get(self.admin, &path)?, json);
        Ok(0)
    }
}

fn show(value: &Value, json: bool) {
    events::line(&if json { value.to_string() } else { format!("{value:#}") });
}

/// All that comes until the end, within bounds of time and size.
fn read(stream: &mut TcpStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > LONGEST {
            return Err(io::Error::other(format!("the answer is longer than {} MiB", LONGEST >> 20)));
        }
    }
}

pub(crate) fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Value> {
    ask(admin, "GET", path, "")
}

/// What is no JSON.
pub(crate) fn text(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let (code, text) = exchange(admin, "GET", path, "")?;
    if code != "200" {
        bail!("asking http://{admin}{path}: {code}");
    }
    Ok(text)
}

fn ask(admin: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
    let (code, text) = exchange(admin, method, path, body)?;
    let asked = format!("asking http://{admin}{path}");
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{asked}: the answer is no JSON"))?;
    if code != "200" {
        bail!("{asked}: {code}: {}", value["error"].as_str().unwrap_or("no reason given"));
    }
    Ok(value)
}

/// The status and the body of an answer.
fn exchange(admin: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<(String, String)> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            anyhow!("no answer from http://{admin}{path} within {} s", LIMIT.as_secs())
        }
        _ => Error::new(error).context(format!("asking http://{admin}{path}")),
    };
    let until = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&admin, LIMIT).map_err(failed)?;
    stream.set_write_timeout(Some(LIMIT))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\nx-phalanx-operator: 1\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .map_err(failed)?;
    let answer = read(&mut stream, until).map_err(failed)?;
    let answer = String::from_utf8(answer).context("the answer is no text: is this an admin API?")?;
    let (head, body) =
        answer.split_once("\r\n\r\n").context("the answer is no HTTP: is this an admin API?")?;
    let code = head.split_whitespace().nth(1).unwrap_or_default();
    Ok((code.to_owned(), body.to_owned()))
}
