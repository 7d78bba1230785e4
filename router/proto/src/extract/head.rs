//! Keys in heads: fields, paths, queries, cookies, hosts and tokens.

use alloc::vec::Vec;

use super::{Extractor, jwt, pairs::PairScan, path};
use crate::http::{Refusal, RequestHead};

/// Where a key that was found stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    /// In the head.
    AsWritten(&'a [u8]),
    /// In the scratch, which had been empty.
    Decoded,
}

impl Extractor {
    /// Looks for the key where this extractor says. Empty keys count as none.
    pub(super) fn in_head<'a>(
        &self,
        request: &RequestHead,
        head: &'a [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Option<Found<'a>>, Refusal> {
        let written = match self {
            Self::Header(name) => only_field(request, head, name)?,
            Self::Path(template) => match template.key(request.method_name(head), request.path(head))? {
                Some(key) if key.contains(&b'%') => {
                    path::decode(key, scratch)?;
                    None
                }
                key => key,
            },
            Self::Query(name) => {
                let mut pairs = PairScan::query();
                pairs.feed(name, request.query(head), scratch)?;
                pairs.finish(name)?;
                None
            }
            Self::Cookie(name) => cookie(request, head, name)?,
            Self::Host => {
                // A target may name a host, too, but that does not go on.
                let host = host(request.fields().values(head, b"host").next().unwrap_or_default());
                if host.iter().any(u8::is_ascii_uppercase) {
                    scratch.extend(host.iter().map(u8::to_ascii_lowercase));
                    None
                } else {
                    Some(host)
                }
            }
            Self::Jwt(pointer) => {
                if let Some(value) = only_field(request, head, b"authorization")? {
                    jwt::claim(pointer, value, scratch)?;
                }
                None
            }
            Self::Json { .. } | Self::Form { .. } | Self::Multipart { .. } => None,
        };
        Ok(match written {
            Some(b"") | None => (!scratch.is_empty()).then_some(Found::Decoded),
            Some(key) => Some(Found::AsWritten(key)),
        })
    }
}

/// The value of the only field of this name. Beside it there may be none that a server takes for it.
fn only_field<'a>(request: &RequestHead, head: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>, Refusal> {
    let (mut found, mut count) = (None, 0);
    for (written, value) in request.fields().taken_for(head, name) {
        count += 1;
        if written.eq_ignore_ascii_case(name) {
            found = Some(value);
        }
    }
    if found.is_some() && count > 1 {
        return Err(Refusal::RepeatedKey);
    }
    // The server would not see what the router went by.
    if found.is_some() && request.fields().stays_behind(head, name) {
        return Err(Refusal::Connection);
    }
    Ok(found)
}

/// The value of the only cookie of this name. Names are case-sensitive; quotation marks and escapes belong to
/// the value, as browsers see it.
fn cookie<'a>(request: &RequestHead, head: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>, Refusal> {
    let mut found = None;
    let mut fields = 0;
    for field in request.fields().values(head, b"cookie") {
        fields += 1;
        for (written, value) in cookies(field) {
            if written == name && found.replace(value).is_some() {
                return Err(Refusal::RepeatedKey);
            }
        }
    }
    // Browsers send one field (RFC 6265, 5.4); of several, some servers read one.
    if found.is_some() && fields > 1 {
        return Err(Refusal::RepeatedKey);
    }
    if found.is_some() && request.fields().stays_behind(head, b"cookie") {
        return Err(Refusal::Connection);
    }
    Ok(found)
}

/// The names and values in a `Cookie` field.
pub(crate) fn cookies(field: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    field.split(|&byte| byte == b';').filter_map(|pair| {
        let equals = memchr::memchr(b'=', pair)?;
        Some((pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()))
    })
}

/// The host of an authority, without port and without the dot that may end a full name.
fn host(authority: &[u8]) -> &[u8] {
    let host = match authority {
        [b'[', ..] => &authority[..memchr::memchr(b']', authority).map_or(authority.len(), |at| at + 1)],
        _ => &authority[..memchr::memchr(b':', authority).unwrap_or(authority.len())],
    };
    host.strip_suffix(b".").unwrap_or(host)
}
