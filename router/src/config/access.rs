//! What is logged of requests, and told of their keys.

use std::time::Duration;

use toml::Spanned;

use crate::hot::Watch;

use super::{
    AccessLog, Protocol,
    check::{Checked, wrong},
    raw,
    servers::duration,
};

/// What is logged in any case takes at least so long, unless said otherwise.
const SLOW: Duration = Duration::from_millis(100);
/// Nothing that is answered takes longer.
const SLOWEST: Duration = Duration::from_secs(3600);
/// Fewer lines are none.
const FEWEST: i64 = 1_000_000_000;

pub(super) fn access_log(
    written: Option<&Spanned<raw::AccessLog>>,
    protocol: &Protocol,
) -> Checked<Option<AccessLog>> {
    let Some(written) = written else { return Ok(None) };
    let raw::AccessLog { file, slow, every } = written.get_ref();
    if file.is_empty() {
        return wrong(written, "`access_log` names no file: give its path, or \"-\" for standard error");
    }
    if let Protocol::Tcp { .. } = protocol {
        let asked = slow.as_ref().map(Spanned::span).or(every.as_ref().map(Spanned::span));
        if let Some(at) = asked {
            let message = "`slow` and `every` do not apply to tcp: each connection has a line";
            return wrong(&Spanned::new(at, ()), message);
        }
    }
    let slow = slow.as_ref().map(|slow| duration(slow, Duration::from_millis(1), SLOWEST)).transpose()?;
    // A line for each request costs what a request over HTTP can bear, and a command cannot.
    let usual = if matches!(protocol, Protocol::Http { .. }) { 1 } else { 0 };
    let every = match every {
        None => usual,
        Some(every) => match u32::try_from(*every.get_ref()) {
            Ok(number) if i64::from(number) <= FEWEST => number,
            _ => {
                let message = format!(
                    "every = {}: give 1 for a line for each request, 1000 for one in a thousand, or 0 for none \
                     but of those that fail or are slow",
                    every.get_ref()
                );
                return wrong(every, message);
            }
        },
    };
    Ok(Some(AccessLog { file: file.as_str().into(), slow: slow.unwrap_or(SLOW), every }))
}

/// What is told of the keys that are asked for most. Keys may be names of people, so nothing is shown unless asked for.
pub(super) fn hot_keys(written: Option<&Spanned<String>>, protocol: &Protocol) -> Checked<Watch> {
    let is_tcp = matches!(protocol, Protocol::Tcp { .. });
    let Some(written) = written else { return Ok(if is_tcp { Watch::Off } else { Watch::Hidden }) };
    match written.get_ref().as_str() {
        "off" => Ok(Watch::Off),
        "hidden" | "shown" if is_tcp => {
            wrong(written, "`hot_keys` does not apply to tcp: its keys are addresses and names of servers")
        }
        "hidden" => Ok(Watch::Hidden),
        "shown" => Ok(Watch::Shown),
        other => wrong(
            written,
            format!(
                "hot_keys = {other:?}: use hidden (how hot, and where), shown (their first bytes, too) or off"
            ),
        ),
    }
}
