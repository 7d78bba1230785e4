//! Keys as commands name them: plain, or in base64.

/// The longest key, as it is written in a command.
pub const MAX_KEY: usize = 250;

/// Whether this can be a key: 1 to 250 bytes, no control characters, no space.
pub(super) fn is_key(key: &[u8]) -> bool {
    (1..=MAX_KEY).contains(&key.len()) && key.iter().all(|&byte| byte > b' ' && byte != 0x7f)
}

/// Decodes a key in base64 into `out` and returns what it stands for: so the server stores it, and the same
/// key written plainly is the same. `None` if it is not base64, in whole quartets, with its padding.
pub fn decode<'a>(key: &[u8], out: &'a mut [u8; MAX_KEY]) -> Option<&'a [u8]> {
    if key.is_empty() || !key.len().is_multiple_of(4) || key.len() > MAX_KEY {
        return None;
    }
    let digits = key.strip_suffix(b"==").or(key.strip_suffix(b"=")).unwrap_or(key);
    let (mut len, mut bits, mut held) = (0, 0u32, 0);
    for &byte in digits {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out[len] = (bits >> held) as u8;
            len += 1;
        }
    }
    Some(&out[..len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_memcached_decodes_it() {
        let mut out = [0; MAX_KEY];
        for (written, key) in [
            (&b"YQ=="[..], Some(&b"a"[..])),
            (b"YR==", Some(b"a")), // bits that do not count: memcached stores it under `a`, too
            (b"YWI=", Some(b"ab")),
            (b"YWJj", Some(b"abc")),
            (b"AP8NCg==", Some(b"\x00\xff\r\n")),
            (b"+/+/", Some(b"\xfb\xff\xbf")),
            (b"", None),
            (b"YQ", None),
            (b"YQ=", None),
            (b"Y===", None),
            (b"====", None),
            (b"YQ==YQ==", None), // memcached would stop at the first padding
            (b"Y Q=", None),
            (b"Y-_Q", None),
        ] {
            assert_eq!(decode(written, &mut out), key, "{written:?}");
        }
        assert_eq!(decode(&[b'A'; 248], &mut out).map(<[u8]>::len), Some(186));
        assert_eq!(decode(&[b'A'; 252], &mut out), None);
    }

    #[test]
    fn keys() {
        for key in [&b"a"[..], b"{}[]:/\\\"'", "schl\u{fc}ssel".as_bytes(), &[b'x'; 250]] {
            assert!(is_key(key), "{key:?}");
        }
        for key in [&b""[..], b"a b", b"a\0", b"a\tb", b"\x7f", b"a\r", &[b'x'; 251]] {
            assert!(!is_key(key), "{key:?}");
        }
    }
}
