//! What is written about active checks.

use std::{sync::Arc, time::Duration};

use toml::Spanned;

use super::{
    check::{Checked, wrong},
    raw,
    servers::duration,
};

/// How the servers of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checks {
    pub check: Check,
    pub every: Duration,
    pub timeout: Duration,
    /// Failures in a row after which a server is down.
    pub fall: u32,
    /// Successes in a row after which it is up again.
    pub rise: u32,
}

/// The question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// A connection can be made.
    Tcp,
    /// A GET of this path gets a status of 200 to 399.
    Http(Box<str>),
    /// PING gets PONG.
    Redis,
    /// `version` gets a version.
    Memcached,
    /// A program with these arguments ends with 0.
    Command(Box<[Box<str>]>),
}

const KINDS: &str = "tcp, http:/path, redis, memcached or command:PROGRAM ARGUMENTS";

/// Most that are counted in a row.
const MOST_IN_A_ROW: i64 = 100;

pub(super) fn checks(written: &Spanned<raw::Health>) -> Checked<Arc<Checks>> {
    let raw = written.get_ref();
    let time = |written: Option<&Spanned<String>>, default, least, most| {
        let read = |time| duration(time, Duration::from_millis(least), Duration::from_secs(most));
        written.map(read).transpose().map(|time| time.unwrap_or(Duration::from_millis(default)))
    };
    Ok(Arc::new(Checks {
        check: check(&raw.check)?,
        every: time(raw.every.as_ref(), 1000, 100, 3600)?,
        timeout: time(raw.timeout.as_ref(), 500, 10, 60)?,
        fall: in_a_row(raw.fall.as_ref(), 3)?,
        rise: in_a_row(raw.rise.as_ref(), 2)?,
    }))
}

fn in_a_row(written: Option<&Spanned<i64>>, default: u32) -> Checked<u32> {
    let Some(written) = written else { return Ok(default) };
    match *written.get_ref() {
        count @ 1..=MOST_IN_A_ROW => Ok(count as u32),
        count => wrong(written, format!("{count} in a row: give 1 to {MOST_IN_A_ROW}")),
    }
}

fn check(written: &Spanned<String>) -> Checked<Check> {
    let text = written.get_ref();
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest) {
        ("tcp", "") => Ok(Check::Tcp),
        ("redis", "") => Ok(Check::Redis),
        ("memcached", "") => Ok(Check::Memcached),
        ("http", path) => {
            if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!("{path:?} is no path to ask for: write http:/path, in printable ASCII");
                return wrong(written, message);
            }
            Ok(Check::Http(path.into()))
        }
        ("command", line) => {
            // There is no shell, so what only a shell understands is surely meant otherwise.
            if let Some(sign) = line.chars().find(|c| "'\"`\\$|&;<>*?\0".contains(*c)) {
                let message = format!(
                    "{sign:?} in a command: it is split at blanks and run without a shell; \
                     write a script, and name that"
                );
                return wrong(written, message);
            }
            let words: Box<[Box<str>]> = line.split_whitespace().map(Into::into).collect();
            if words.is_empty() {
                return wrong(written, "the command is empty: write command:PROGRAM ARGUMENTS");
            }
            Ok(Check::Command(words))
        }
        ("tcp" | "redis" | "memcached", _) => {
            let message = format!("{kind} takes nothing after it: each server is asked at its own address");
            wrong(written, message)
        }
        _ => wrong(written, format!("unknown check {text:?}: use {KINDS}")),
    }
}
