//! Parameters of a field's value: `form-data; name="id"`, `multipart/form-data; boundary=x`.

use crate::http::is_token;

/// A value and the parameters behind it, from the first `;` on.
pub(super) fn split(value: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b';', value).unwrap_or(value.len());
    (value[..end].trim_ascii(), &value[end..])
}

/// `; name=value; name="value"`, each with its value out of quotation marks; `None` where it is malformed, or
/// could be read in two ways.
pub(super) struct Parameters<'a>(pub &'a [u8]);

impl<'a> Iterator for Parameters<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = core::mem::take(&mut self.0).trim_ascii();
        if rest.is_empty() {
            return None;
        }
        Some(self.parameter(rest))
    }
}

impl<'a> Parameters<'a> {
    fn parameter(&mut self, rest: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let rest = rest.strip_prefix(b";")?.trim_ascii_start();
        let (name, rest) = rest.split_at(memchr::memchr(b'=', rest)?);
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return None;
        }
        let rest = &rest[1..];
        let (value, rest) = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let (value, rest) = quoted.split_at(memchr::memchr(b'"', quoted)?);
                if value.ends_with(b"\\") {
                    return None;
                }
                (value, &rest[1..])
            }
            None => {
                let (value, rest) = split(rest);
                if value.is_empty() || !value.iter().copied().all(is_token) {
                    return None;
                }
                (value, rest)
            }
        };
        self.0 = rest;
        Some((name, value))
    }
}
