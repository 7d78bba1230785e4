//! How long a service waits, and how much it keeps, where that is not as the router does.

use std::time::Duration;

use toml::Spanned;

use super::{
    Protocol,
    check::{Checked, wrong},
    raw,
    servers::{duration, size},
};
use crate::limits::Limits;

/// What a service says of its limits; see [`Limits`] for what each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnLimits {
    head: Option<Duration>,
    idle: Option<Duration>,
    connect: Option<Duration>,
    response: Option<Duration>,
    stall: Option<Duration>,
    tunnel: Option<Duration>,
    wait: Option<Duration>,
    body_key: Option<usize>,
    value: Option<usize>,
    command: Option<usize>,
    transaction: Option<usize>,
}

impl OwnLimits {
    /// These limits, with what the service says in their place.
    pub fn over(&self, limits: &Limits) -> Limits {
        // The largest value passes in both directions.
        let whole = self.value.map_or(0, |value| value + AROUND);
        Limits {
            head: self.head.unwrap_or(limits.head),
            idle: self.idle.unwrap_or(limits.idle),
            connect: self.connect.unwrap_or(limits.connect),
            response: self.response.unwrap_or(limits.response),
            stall: self.stall.unwrap_or(limits.stall),
            tunnel: self.tunnel.unwrap_or(limits.tunnel),
            wait: self.wait.unwrap_or(limits.wait),
            body_key: self.body_key.unwrap_or(limits.body_key),
            value: self.value.unwrap_or(limits.value),
            command: self.command.unwrap_or(limits.command.max(whole)),
            transaction: self.transaction.unwrap_or(limits.transaction),
            unread: limits.unread.max(whole),
            ..limits.clone()
        }
    }
}

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
/// Whoever wants to wait for ever waits a day: what has vanished must be noticed some time.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a command or a reply has around its value, and more.
const AROUND: usize = 1 << 20;

pub(super) fn limits(written: Option<&Spanned<raw::Limits>>, protocol: &Protocol) -> Checked<OwnLimits> {
    let Some(written) = written else { return Ok(OwnLimits::default()) };
    let raw = written.get_ref();
    let with = |name: &str, written: &Spanned<String>, protocols: &[&str]| {
        if protocols.is_empty() || protocols.contains(&protocol.name()) {
            return Ok(());
        }
        let (own, of) = (protocol.name(), protocols.join(", "));
        wrong(written, format!("`{name}` is no limit of {own}: leave it out; it is for {of}"))
    };
    let time = |name, written: &Option<Spanned<String>>, protocols: &[&str], least, most| {
        let Some(written) = written else { return Ok(None) };
        with(name, written, protocols)?;
        duration(written, least, most).map(Some)
    };
    let bytes = |name, written: &Option<Spanned<String>>, protocols: &[&str], least, most| {
        let Some(written) = written else { return Ok(None) };
        with(name, written, protocols)?;
        size(written, least, most).map(Some)
    };
    let requests = &["http", "redis", "memcached", "frames"];
    let own = OwnLimits {
        head: time("head", &raw.head, &["http", "tcp"], MS(100), S(600))?,
        idle: time("idle", &raw.idle, &["http"], MS(100), DAY)?,
        connect: time("connect", &raw.connect, &[], MS(20), S(60))?,
        response: time("response", &raw.response, requests, MS(100), DAY)?,
        stall: time("stall", &raw.stall, requests, MS(100), DAY)?,
        tunnel: time("tunnel", &raw.tunnel, &["http", "tcp"], MS(100), 7 * DAY)?,
        wait: time("wait", &raw.wait, &[], MS(20), S(600))?,
        body_key: bytes("body_key", &raw.body_key, &["http"], 1 << 10, 16 << 20)?,
        value: bytes("value", &raw.value, &["redis", "memcached"], 1 << 10, 512 << 20)?,
        command: bytes("command", &raw.command, &["redis"], 64 << 10, 1 << 30)?,
        transaction: bytes("transaction", &raw.transaction, &["redis"], 1 << 10, 1 << 30)?,
    };
    if let (Some(written), Some(command), Some(value)) = (&raw.command, own.command, own.value)
        && command < value
    {
        let message =
            "`command` is less than `value`, which no command could hold then: give more, or leave it out";
        return wrong(written, message);
    }
    Ok(own)
}
