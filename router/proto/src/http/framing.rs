//! Where a message's body ends (RFC 9112, 6.3), decided from fields that leave no doubt.

use super::{
    Refusal, Version,
    fields::{Fields, Span, is_token, same_name},
};

/// How a message's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk and the trailer section.
    Chunked,
    /// When the sender closes: responses only.
    UntilClose,
}

/// What a head's fields say about the message and its connection.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub length: Option<u64>,
    pub chunked: bool,
    pub host: Option<usize>,
    pub close: bool,
    pub keep_alive: bool,
    pub keep_alive_timeout_s: Option<u32>,
    /// Whether `Connection` says that `Upgrade` is meant for this hop.
    pub upgrade: bool,
    pub offer: Offer,
    pub expects_continue: bool,
}

/// What `Upgrade` offers, or says was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Offer {
    #[default]
    Nothing,
    /// HTTP/2 in clear text. To ignore that is every server's right, and clients that offer it expect that.
    H2c,
    /// One protocol, at this place.
    One(Span),
    /// Several, or something malformed.
    Unclear,
}

impl Offer {
    fn add(&mut self, head: &[u8], value: Span) {
        let text = value.of(head);
        let mut parts = text.splitn(2, |&byte| byte == b'/');
        let is_protocol = parts.all(|part| !part.is_empty() && part.iter().copied().all(is_token));
        *self = match self {
            Self::Nothing if same_name(text, b"h2c") => Self::H2c,
            Self::Nothing if is_protocol => Self::One(value),
            _ => Self::Unclear,
        };
    }
}

/// The most names that one head's `Connection` fields may have, so that matching them stays cheap.
const MAX_CONNECTION_NAMES: usize = 32;

/// Reads every field that frames the message or concerns this hop only, and drops the latter.
pub(super) fn read(
    head: &[u8],
    fields: &mut Fields,
    version: Version,
    request: bool,
) -> Result<Said, Refusal> {
    let mut said = Said::default();
    let mut connection_names = 0;
    let mut names_fields = false;
    for at in 0..fields.len() {
        let field = fields.get(at);
        let (name, value) = (field.name.of(head), field.value.of(head));
        // The length alone tells almost all fields apart from the few that matter here.
        match name.len() {
            2 if same_name(name, b"te") => fields.drop_field(at),
            4 if request && same_name(name, b"host") => match said.host {
                None => said.host = Some(at),
                Some(_) => return Err(Refusal::RepeatedHost),
            },
            6 if request && same_name(name, b"expect") => {
                if !same_name(value, b"100-continue") {
                    return Err(Refusal::Expect);
                }
                said.expects_continue = version == Version::Http11;
                fields.drop_field(at);
            }
            7 if same_name(name, b"upgrade") => {
                said.offer.add(head, field.value);
                fields.drop_field(at);
            }
            10 if same_name(name, b"keep-alive") => {
                said.keep_alive_timeout_s = timeout(value);
                fields.drop_field(at);
            }
            10 if same_name(name, b"connection") => {
                fields.drop_field(at);
                for token in super::fields::elements(value) {
                    connection_names += 1;
                    if connection_names > MAX_CONNECTION_NAMES || !token.iter().copied().all(is_token) {
                        return Err(Refusal::Connection);
                    }
                    if same_name(token, b"close") {
                        said.close = true;
                    } else if same_name(token, b"keep-alive") {
                        said.keep_alive = true;
                    } else if same_name(token, b"upgrade") {
                        said.upgrade = true;
                    } else {
                        names_fields = true;
                    }
                }
            }
            14 if same_name(name, b"content-length") => {
                let length = digits(value).ok_or(Refusal::ContentLength)?;
                if said.length.replace(length).is_some() {
                    return Err(Refusal::RepeatedContentLength);
                }
            }
            17 if same_name(name, b"transfer-encoding") => {
                // Names of codings compare without case, but not every server does, and some take a tab behind
                // one for a part of it: only the spelling on which all agree passes.
                let ends_there = head[field.value.end()..].starts_with(b"\r\n");
                if value != b"chunked" || !ends_there || said.chunked {
                    return Err(Refusal::TransferEncoding);
                }
                said.chunked = true;
            }
            // Gateways that turn names into variables read these as the fields they imitate.
            14 if imitates(name, b"content", b"length") => return Err(Refusal::FieldName),
            17 if imitates(name, b"transfer", b"encoding") => return Err(Refusal::FieldName),
            14 if same_name(name, b"http2-settings") => fields.drop_field(at),
            16 if same_name(name, b"proxy-connection") => fields.drop_field(at),
            18 if same_name(name, b"proxy-authenticate") => fields.drop_field(at),
            19 if same_name(name, b"proxy-authorization") => fields.drop_field(at),
            _ => {}
        }
    }
    if names_fields {
        drop_what_connection_names(head, fields)?;
    }
    if said.chunked && said.length.is_some() {
        return Err(Refusal::TwoFramings);
    }
    if said.chunked && version == Version::Http10 {
        return Err(Refusal::TransferEncodingIn10);
    }
    Ok(said)
}

fn drop_what_connection_names(head: &[u8], fields: &mut Fields) -> Result<(), Refusal> {
    for at in 0..fields.len() {
        let field = fields.get(at);
        if !same_name(field.name.of(head), b"connection") {
            continue;
        }
        for token in super::fields::elements(field.value.of(head)) {
            if ![&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|option| same_name(token, option)) {
                fields.drop_named(head, token)?;
            }
        }
    }
    Ok(())
}

/// Whether a name is these two words with anything between that some gateway takes for a hyphen: `_`, `.`, `~`.
fn imitates(name: &[u8], one: &[u8], other: &[u8]) -> bool {
    let (first, rest) = name.split_at(one.len());
    same_name(first, one) && !rest[0].is_ascii_alphanumeric() && same_name(&rest[1..], other)
}

/// A number written in ASCII digits and nothing else.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// The `timeout` of a `Keep-Alive` field, in seconds.
fn timeout(value: &[u8]) -> Option<u32> {
    super::fields::elements(value)
        .find_map(|element| element.strip_prefix(b"timeout="))
        .and_then(digits)
        .and_then(|seconds| u32::try_from(seconds).ok())
}
