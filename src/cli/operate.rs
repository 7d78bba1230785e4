//! `status` and `view`: questions to a node's admin API.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Error, anyhow, bail};
use clap::Args;
use serde_json::Value;

use super::{Outcome, events};

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
    /// The group; the cluster if not given.
    group: Option<String>,
    /// The node's admin API.
    #[arg(long, env = "PHALANX_ADMIN", value_name = "ADDR")]
    admin: SocketAddr,
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

fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let asked = || format!("asking http://{admin}{path}");
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            anyhow!("no answer from http://{admin}{path} within {} s", LIMIT.as_secs())
        }
        _ => Error::new(error).context(asked()),
    };
    let until = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&admin, LIMIT).map_err(failed)?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").map_err(failed)?;
    let answer = read(&mut stream, until).map_err(failed)?;
    let answer = String::from_utf8(answer).context("the answer is no text: is this an admin API?")?;
    let (head, body) =
        answer.split_once("\r\n\r\n").context("the answer is no HTTP: is this an admin API?")?;
    let code = head.split_whitespace().nth(1).unwrap_or_default();
    let value: Value =
        serde_json::from_str(body).with_context(|| format!("{}: the answer is no JSON", asked()))?;
    if code != "200" {
        bail!("{}: {code}: {}", asked(), value["error"].as_str().unwrap_or("no reason given"));
    }
    Ok(value)
}
