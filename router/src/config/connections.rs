//! What a service's connections are: under TLS, passed on by somebody, or all that is known of a service.

use toml::Spanned;

use router_proto::{
    Pmap,
    extract::{Extract, NoKey},
};

use super::{
    Protocol, TcpKey, TlsFiles,
    check::{Checked, no_key, wrong},
    raw,
};

pub(super) fn tls(written: Option<&Spanned<raw::Certificates>>) -> Checked<Vec<TlsFiles>> {
    let Some(written) = written else { return Ok(vec![]) };
    let list = written.get_ref().list();
    if list.is_empty() {
        return wrong(written, "`tls` has no certificate: give at least one, or leave it out for no TLS");
    }
    for raw::Certificate { cert, key } in list {
        if cert.is_empty() || key.is_empty() {
            return wrong(
                written,
                "`tls` has an empty file name: give cert = \"chain.pem\", key = \"key.pem\"",
            );
        }
    }
    Ok(list.iter().map(|pair| TlsFiles { cert: (&pair.cert).into(), key: (&pair.key).into() }).collect())
}

pub(super) fn tcp(written: &Spanned<raw::Service>, pmap: &Pmap) -> Checked<Protocol> {
    let raw = written.get_ref();
    let Some(written_key) = &raw.key else {
        return wrong(written, "`key` is missing: tcp needs source, sni or bytes:OFFSET+LEN");
    };
    let specs: Vec<&str> = written_key.get_ref().iter().collect();
    let [spec] = specs[..] else {
        return wrong(written_key, "tcp has one key: give source, sni or bytes:OFFSET+LEN");
    };
    let key = match spec.strip_prefix("bytes:") {
        Some(place) => bytes_key(place),
        None if spec == "source" => Some(TcpKey::Source),
        None if spec == "sni" => Some(TcpKey::Sni),
        None => {
            let message = format!("unknown key {spec:?} of tcp: use source, sni or bytes:OFFSET+LEN");
            return wrong(written_key, message);
        }
    };
    let Some(key) = key else {
        let message = format!(
            "{spec:?} is no place in the first {MOST_FIRST_BYTES} bytes: write it as bytes:4+8, which are eight \
             behind the first four"
        );
        return wrong(written_key, message);
    };
    if let Some(no_key) = &raw.no_key
        && key == TcpKey::Source
    {
        return wrong(no_key, "`no_key` does not apply to the key source: every client has an address");
    }
    if let Some(reads) = &raw.reads {
        return wrong(
            reads,
            "`reads` does not apply to tcp: nobody can tell what a connection carries, so `updates` decides",
        );
    }
    if raw.expose {
        return wrong(written, "`expose` does not apply to tcp: there is nowhere to say it");
    }
    let otherwise = no_key(raw.no_key.as_ref(), pmap)?;
    if let (NoKey::Scatter, Some(written)) = (otherwise, &raw.no_key) {
        let message = "`no_key = \"scatter\"` does not apply to tcp: nobody could say afterwards where an update \
                       went; use reject, source or partition:NAME";
        return wrong(written, message);
    }
    Ok(Protocol::Tcp { key, no_key: otherwise })
}

/// How far into a connection its key may be, so that little of it is held back.
const MOST_FIRST_BYTES: usize = 4096;

fn bytes_key(place: &str) -> Option<TcpKey> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<usize>().ok())?;
    let (offset, len) = place.split_once('+')?;
    let (offset, len) = (number(offset)?, number(len)?);
    let end = offset.checked_add(len)?;
    (len > 0 && end <= MOST_FIRST_BYTES).then_some(TcpKey::Bytes { offset, len })
}

/// Who shares connections to servers cannot say whom one is for.
pub(super) fn send_proxy(raw: &raw::Service, protocol: &Protocol) -> Checked<()> {
    let mut asked = raw.racs.iter().filter_map(|racs| racs.get_ref().send_proxy.as_ref());
    match asked.find(|asked| *asked.get_ref()) {
        Some(asked) if !matches!(protocol, Protocol::Tcp { .. }) => {
            let shared = raw.protocol.get_ref();
            let message = format!(
                "`send_proxy` does not apply to {shared}: clients share the connections to its servers; it is \
                 for protocol = \"tcp\""
            );
            wrong(asked, message)
        }
        _ => Ok(()),
    }
}

/// Most requests on one shared connection: those behind one that takes long wait for it.
const MOST_SHARED: usize = 256;

/// How many requests may be under way on one shared connection.
pub(super) fn pipeline(written: &Spanned<i64>) -> Checked<usize> {
    match usize::try_from(*written.get_ref()) {
        Ok(most @ 1..=MOST_SHARED) => Ok(most),
        _ => {
            let message = format!(
                "pipeline = {}: give how many reads may be under way on one connection to a server, 1 to \
                 {MOST_SHARED}, or leave it out so that each has a connection of its own",
                written.get_ref()
            );
            wrong(written, message)
        }
    }
}

/// Only HTTP has connections that may be shared or not.
pub(super) fn shared(raw: &raw::Service, protocol: &Protocol) -> Checked<()> {
    match raw.racs.iter().find_map(|racs| racs.get_ref().pipeline.as_ref()) {
        Some(asked) if !matches!(protocol, Protocol::Http { .. }) => {
            let name = protocol.name();
            let why = if name == "tcp" {
                "nobody can tell its requests apart"
            } else {
                "its clients share connections as it is"
            };
            wrong(asked, format!("`pipeline` does not apply to {name}: {why}; leave it out"))
        }
        _ => Ok(()),
    }
}

/// Only HTTP has fields in which to say it.
pub(super) fn forwarded(written: Option<&Spanned<bool>>, protocol: &Spanned<String>) -> Checked<bool> {
    match written {
        Some(asked) if *asked.get_ref() && protocol.get_ref() != "http" => {
            wrong(asked, format!("`forwarded` does not apply to {}: it has no fields", protocol.get_ref()))
        }
        asked => Ok(asked.is_some_and(|asked| *asked.get_ref())),
    }
}

/// The share of new traces that are marked as recorded, in per cent; none where requests have no ids.
pub(super) fn trace(written: Option<&Spanned<String>>, protocol: &Spanned<String>) -> Checked<Option<u32>> {
    let Some(written) = written else { return Ok(None) };
    if protocol.get_ref() != "http" {
        let message = format!("`trace` does not apply to {}: it has no fields", protocol.get_ref());
        return wrong(written, message);
    }
    match written.get_ref().as_str() {
        "off" => Ok(None),
        text => match text.strip_suffix('%').and_then(|n| n.parse().ok()).filter(|n| *n <= 100) {
            Some(percent) => Ok(Some(percent)),
            None => wrong(
                written,
                format!(
                    "trace = {text:?}: give the share of new traces to be marked as recorded, 0% to 100%, or off"
                ),
            ),
        },
    }
}

/// The header in which requests say how long their clients wait.
pub(super) fn deadline(raw: &raw::Service) -> Checked<Option<Box<str>>> {
    /// What the router writes itself, and what every server or the search for a key reads.
    const TAKEN: [&str; 7] = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "traceparent",
        "x-request-id",
        "host",
        "authorization",
        "cookie",
    ];
    let Some(written) = &raw.deadline else { return Ok(None) };
    let spec = written.get_ref().as_str();
    match raw.protocol.get_ref().as_str() {
        "http" => {}
        "frames" => {
            let message =
                "`deadline` does not apply to frames: a request's fifth element says it, as deadline_ms";
            return wrong(written, message);
        }
        other => {
            return wrong(written, format!("`deadline` does not apply to {other}: requests cannot say one"));
        }
    }
    let same = |one: &str, other: &str| one.replace('_', "-").eq_ignore_ascii_case(&other.replace('_', "-"));
    let is_key = raw.key.iter().any(|keys| keys.get_ref().iter().any(|key| same(key, spec)));
    // What may hold a key concerns the whole way, and so may a deadline.
    match spec.strip_prefix("header:") {
        Some(name)
            if Extract::compile([spec]).is_ok()
                && !is_key
                && !TAKEN.iter().any(|taken| same(taken, name)) =>
        {
            Ok(Some(name.into()))
        }
        _ => wrong(
            written,
            format!(
                "deadline = {spec:?}: name a header that is for this alone, such as \"header:X-Request-Timeout\" \
                 (milliseconds) or \"header:grpc-timeout\""
            ),
        ),
    }
}
