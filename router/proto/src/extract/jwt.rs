//! A claim of the JSON Web Token (RFC 7519) in `Authorization: Bearer`.
//!
//! The token's signature is **not verified**, and neither are its times: the claim only chooses the partition,
//! as a header would. Whoever may see what is in that partition is the server's to say.

use alloc::vec::Vec;

use super::json::{JsonScan, Pointer};
use crate::http::Refusal;

/// The claim goes to `key`, which stays empty if there is none. The value is that of the field `Authorization`;
/// other schemes and tokens without three parts have no claims.
pub(super) fn claim(pointer: &Pointer, authorization: &[u8], key: &mut Vec<u8>) -> Result<(), Refusal> {
    let Some((scheme, token)) = authorization.split_at_checked(b"Bearer ".len()) else { return Ok(()) };
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Ok(());
    }
    let mut parts = token.trim_ascii().split(|&byte| byte == b'.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Ok(());
    };
    let mut scan = JsonScan::new(true);
    let mut plain = [0; 48];
    for piece in claims.chunks(64) {
        let len = decode(piece, &mut plain)?;
        scan.feed(pointer, &plain[..len], key).map_err(as_token)?;
    }
    scan.finish().map_err(as_token)
}

fn as_token(refusal: Refusal) -> Refusal {
    if refusal == Refusal::JsonBody { Refusal::Token } else { refusal }
}

/// Decodes up to 64 characters of base64url without padding (RFC 4648, 5). Returns how many bytes they are.
fn decode(text: &[u8], out: &mut [u8; 48]) -> Result<usize, Refusal> {
    let mut len = 0;
    for quad in text.chunks(4) {
        let mut bits = 0u32;
        for &char in quad {
            let six = match char {
                b'A'..=b'Z' => char - b'A',
                b'a'..=b'z' => char - b'a' + 26,
                b'0'..=b'9' => char - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return Err(Refusal::Token),
            };
            bits = bits << 6 | u32::from(six);
        }
        // So many bits more than whole bytes, which must be zero.
        let spare = match quad.len() {
            4 => 0,
            3 => 2,
            2 => 4,
            _ => return Err(Refusal::Token),
        };
        if bits & ((1 << spare) - 1) != 0 {
            return Err(Refusal::Token);
        }
        let bytes = (bits >> spare).to_be_bytes();
        let count = quad.len() - 1;
        out[len..len + count].copy_from_slice(&bytes[4 - count..]);
        len += count;
    }
    Ok(len)
}
