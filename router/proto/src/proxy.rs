//! The PROXY protocol, version 2: who a connection is for, said by whoever passes it on.
//!
//! Its header comes before everything else on a connection. Whoever reads one believes it, so it is only read
//! where the configuration says that such headers come, and there it must come: a client that could leave it
//! out, or send one where none is expected, could choose its own address.
//!
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy Technologies, 2.2 (the binary header).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
/// The longest header that is read, in bytes: addresses of any kind and some extensions.
pub const MAX_HEADER: usize = 536;

const CRC32C: u8 = 0x03;
const SSL: u8 = 0x20;

/// Why a header was refused. Nothing behind it can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// It does not start as such a header does.
    #[error("no PROXY header of version 2")]
    NotV2,
    /// Neither LOCAL nor PROXY.
    #[error("unknown version or command in the PROXY header")]
    Command,
    /// Neither TCP over IP, nor a unix socket, nor left open.
    #[error("the PROXY header names neither TCP nor a unix socket")]
    Family,
    /// The header is longer than [`MAX_HEADER`].
    #[error("the PROXY header is longer than 536 bytes")]
    TooLong,
    /// The header ends before its addresses do.
    #[error("the PROXY header is too short for its addresses")]
    Addresses,
    /// The extensions do not fill the header exactly.
    #[error("malformed extension of the PROXY header")]
    Extension,
    /// The checksum is wrong.
    #[error("the PROXY header's checksum is wrong")]
    Checksum,
}

/// What a header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proxied {
    /// Where the client connected from, and to. `None` if the sender speaks for itself (a health check) or the
    /// client had no IP address: then the connection's own ends count.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// Whether the client speaks TLS to the sender.
    pub tls: bool,
}

/// How far the reading of a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// At least so many bytes are missing; none of them belongs to what follows the header.
    Missing(usize),
    /// The header is whole.
    Whole {
        /// What it says.
        proxied: Proxied,
        /// Its length in bytes.
        len: usize,
    },
}

/// Reads the header at the start of `input`. Whoever reads no more than what is missing has nothing to put
/// back.
///
/// # Errors
/// What no further byte can mend.
pub fn parse(input: &[u8]) -> Result<Scan, ProxyError> {
    if input.iter().zip(&SIGNATURE).any(|(byte, expected)| byte != expected) {
        return Err(ProxyError::NotV2);
    }
    let Some((fixed, rest)) = input.split_first_chunk::<FIXED>() else {
        return Ok(Scan::Missing(FIXED - input.len()));
    };
    let local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Command),
    };
    let body_len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let len = FIXED + body_len;
    if len > MAX_HEADER {
        return Err(ProxyError::TooLong);
    }
    // How long the addresses are. What a sender that speaks for itself says of them does not matter.
    let addresses_len = match fixed[13] {
        _ if local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return Err(ProxyError::Family),
    };
    if body_len < addresses_len {
        return Err(ProxyError::Addresses);
    }
    let Some(body) = rest.get(..body_len) else { return Ok(Scan::Missing(len - input.len())) };
    if local {
        return Ok(Scan::Whole { proxied: Proxied::default(), len });
    }
    let (addresses, extensions) = body.split_at(addresses_len);
    let tls = read_extensions(&input[..len], extensions)?;
    // Where the family is open the rest may be anything: extensions, or nothing.
    Ok(Scan::Whole { proxied: Proxied { ends: ends(addresses), tls }, len })
}

fn ends(addresses: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (source, destination, ports): (IpAddr, IpAddr, &[u8]) = match addresses.len() {
        12 => {
            let (source, rest) = addresses.split_first_chunk::<4>()?;
            let (destination, ports) = rest.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), ports)
        }
        36 => {
            let (source, rest) = addresses.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), ports)
        }
        _ => return None,
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2))))
}

/// Checks the extensions; says whether one of them tells of TLS.
fn read_extensions(header: &[u8], mut extensions: &[u8]) -> Result<bool, ProxyError> {
    let mut tls = false;
    while !extensions.is_empty() {
        let Some((&[kind, high, low], rest)) = extensions.split_first_chunk::<3>() else {
            return Err(ProxyError::Extension);
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let Some((value, rest)) = rest.split_at_checked(len) else { return Err(ProxyError::Extension) };
        match kind {
            CRC32C => {
                let Ok(sum) = <[u8; 4]>::try_from(value) else { return Err(ProxyError::Extension) };
                let at = value.as_ptr().addr() - header.as_ptr().addr();
                if crc32c(header, at) != u32::from_be_bytes(sum) {
                    return Err(ProxyError::Checksum);
                }
            }
            // A bit says whether the client spoke TLS; then a number and extensions of its own.
            SSL if len < 5 => return Err(ProxyError::Extension),
            SSL => tls |= value[0] & 1 != 0,
            _ => {}
        }
        extensions = rest;
    }
    Ok(tls)
}

/// CRC-32C of a header in which the four bytes at `zeroed` count as zero. Bit by bit: once per connection, at
/// most, and of few bytes.
fn crc32c(header: &[u8], zeroed: usize) -> u32 {
    let mut sum = u32::MAX;
    for (at, &byte) in header.iter().enumerate() {
        sum ^= u32::from(if (zeroed..zeroed + 4).contains(&at) { 0 } else { byte });
        for _ in 0..8 {
            sum = sum >> 1 ^ (0x82f6_3b78 & 0u32.wrapping_sub(sum & 1));
        }
    }
    !sum
}

/// Appends the header that tells a server where its client connected from, and to.
pub fn write(source: SocketAddr, destination: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&SIGNATURE);
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&six(from));
            out.extend_from_slice(&six(to));
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const V4: (&str, &str) = ("192.0.2.7:1234", "198.51.100.1:443");

    fn header(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend_from_slice(&[version_command, family]);
        out.extend_from_slice(&(body.len() as u16).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn ends_of((source, destination): (&str, &str)) -> (SocketAddr, SocketAddr) {
        (source.parse().unwrap(), destination.parse().unwrap())
    }

    fn whole(input: &[u8]) -> Proxied {
        match parse(input).unwrap() {
            Scan::Whole { proxied, len } => {
                assert_eq!(len, input.len());
                proxied
            }
            Scan::Missing(n) => panic!("{n} bytes missing"),
        }
    }

    #[test]
    fn what_is_written_is_read_again_byte_by_byte() {
        for (ends, read) in [
            (V4, V4),
            (("[2001:db8::1]:1", "[2001:db8::2]:65535"), ("[2001:db8::1]:1", "[2001:db8::2]:65535")),
            (("[::ffff:192.0.2.7]:1234", "198.51.100.1:443"), V4),
            (("192.0.2.7:1", "[2001:db8::2]:2"), ("[::ffff:192.0.2.7]:1", "[2001:db8::2]:2")),
        ] {
            let (source, destination) = ends_of(ends);
            let mut text = vec![];
            write(source, destination, &mut text);
            for cut in 0..text.len() {
                let Ok(Scan::Missing(n)) = parse(&text[..cut]) else { panic!("cut at {cut}") };
                assert!((1..=text.len() - cut).contains(&n), "asks for what is the client's: {n} at {cut}");
            }
            assert_eq!(whole(&text), Proxied { ends: Some(ends_of(read)), tls: false });
            text.extend_from_slice(b"GET /");
            let Ok(Scan::Whole { len, .. }) = parse(&text) else { panic!("it is whole") };
            assert_eq!(&text[len..], b"GET /");
        }
    }

    #[test]
    fn headers_as_another_program_writes_them() {
        // HAProxy 2.6 with `send-proxy-v2`, then with `send-proxy-v2-ssl-cn` and `proxy-v2-options crc32c`.
        let bytes = b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\xa8rpE";
        let ends = Some(ends_of(("127.0.0.1:43122", "127.0.0.1:28741")));
        assert_eq!(whole(bytes), Proxied { ends, tls: false });
        let mut bytes = b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00%\x7f\x00\x00\x01\x7f\x00\x00\x01\x8dvpG\
            \x03\x00\x04C\x88$\xd8 \x00\x0f\x01\x00\x00\x00\x00!\x00\x07TLSv1.3"
            .to_vec();
        let ends = Some(ends_of(("127.0.0.1:36214", "127.0.0.1:28743")));
        assert_eq!(whole(&bytes), Proxied { ends, tls: true });
        bytes[19] ^= 2;
        assert_eq!(parse(&bytes), Err(ProxyError::Checksum));
        let six =
            b"\r\n\r\n\x00\r\nQUIT\n!!\x00$\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xe2\xbapE";
        assert_eq!(whole(six).ends, Some(ends_of(("[::1]:58042", "[::1]:28741"))));
    }

    #[test]
    fn senders_that_speak_for_themselves_or_for_nobody_with_an_address() {
        assert_eq!(whole(&header(0x20, 0x00, &[])), Proxied::default());
        assert_eq!(whole(&header(0x20, 0x11, &[1; 40])), Proxied::default(), "LOCAL: the rest is ignored");
        assert_eq!(whole(&header(0x21, 0x00, &[])), Proxied::default());
        assert_eq!(whole(&header(0x21, 0x31, &[b'/'; 216])), Proxied::default());
    }

    #[test]
    fn checksums_count() {
        // The check value of the Castagnoli polynomial (CRC-32/ISCSI); then one over a header of ours.
        assert_eq!(crc32c(b"123456789", 9), 0xe306_9283);
        let mut body = vec![192, 0, 2, 7, 198, 51, 100, 1, 4, 210, 1, 187];
        body.extend_from_slice(&[0x04, 0, 2, 0, 0, CRC32C, 0, 4, 0, 0, 0, 0]);
        let mut text = header(0x21, 0x11, &body);
        assert_eq!(parse(&text), Err(ProxyError::Checksum));
        let at = text.len() - 4;
        let sum = crc32c(&text, at);
        text[at..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(whole(&text).ends, Some(ends_of(V4)));
    }

    #[test]
    fn whatever_is_not_such_a_header_is_refused_as_early_as_that_is_sure() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 4, 210, 1, 187];
        let with = |more: &[u8]| header(0x21, 0x11, &[&v4, more].concat());
        for (text, error) in [
            (b"G".to_vec(), ProxyError::NotV2),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyError::NotV2),
            (b"\r\n\r\nX".to_vec(), ProxyError::NotV2),
            (header(0x22, 0x11, &v4), ProxyError::Command),
            (header(0x11, 0x11, &v4), ProxyError::Command),
            (header(0x21, 0x12, &v4), ProxyError::Family),
            (header(0x21, 0x41, &v4), ProxyError::Family),
            (header(0x21, 0x11, &v4[..11]), ProxyError::Addresses),
            (header(0x21, 0x21, &v4), ProxyError::Addresses),
            (header(0x21, 0x11, &[0; 521])[..16].to_vec(), ProxyError::TooLong),
            (with(&[1]), ProxyError::Extension),
            (with(&[1, 0]), ProxyError::Extension),
            (with(&[1, 0, 1]), ProxyError::Extension),
            (with(&[SSL, 0, 4, 0, 0, 0, 0]), ProxyError::Extension),
            (with(&[CRC32C, 0, 3, 0, 0, 0]), ProxyError::Extension),
        ] {
            assert_eq!(parse(&text), Err(error), "{text:?}");
        }
        assert_eq!(parse(&[]), Ok(Scan::Missing(16)));
        whole(&header(0x21, 0x11, &[&v4[..], &[7, 1, 1], &[0; 257]].concat()));
    }
}
