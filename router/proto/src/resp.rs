//! The Redis protocol (RESP2 and RESP3) as a router must read it: where commands and replies end, which key decides,
//! and how a command over many keys is split by server.
//!
//! Nothing is decoded into objects: commands and replies are byte ranges that are copied once into the buffer
//! they leave from.

mod command;
mod connection;
mod cursor;
mod find;
mod local;
mod reply;
mod request;
mod split;
mod spread;
mod subscribe;
mod table;
mod transaction;

pub use command::{
    Channels, Command, Family, Keys, Local, MAX_NAME, Patience, Spread, Step, commands, lookup,
};
pub use connection::{Connection, Password, Proto, greeting};
pub use cursor::Cursor;
pub use find::{Find, Found, Malformed, pattern_tag};
pub use local::{After, Facts, answer};
pub use reply::{ReplyError, ReplyScanner};
pub use request::{Args, Limits, ProtocolError, Scan, Scanner, TooLarge};
pub use split::{Gather, Split};
pub use subscribe::{Heard, Subscriptions, heard, push_subscribe};
pub use transaction::{Finished, Transaction};

/// Whether a reply is an error: of either version of the protocol, or a long one of RESP3.
pub fn is_error(reply: &[u8]) -> bool {
    matches!(reply.first(), Some(b'-' | b'!'))
}

/// Whether a reply says that its server can serve nobody now: it still reads its data, has lost its master, or its
/// cluster is not whole. Nothing was done then.
pub fn cannot_serve(reply: &[u8]) -> bool {
    let name = reply.split(|byte| matches!(byte, b' ' | b'\r')).next();
    matches!(name, Some(b"-LOADING" | b"-MASTERDOWN" | b"-CLUSTERDOWN"))
}

/// Appends an integer in decimal.
fn push_number(out: &mut alloc::vec::Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a header line such as `*3\r\n`.
fn push_header(out: &mut alloc::vec::Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    push_number(out, number);
    out.extend_from_slice(b"\r\n");
}

/// Appends a bulk string.
fn push_bulk(out: &mut alloc::vec::Vec<u8>, text: &[u8]) {
    push_header(out, b'$', text.len() as u64);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Where the bytes of the bulk that starts at `at` begin and end, if it has fewer than 100 of them, which nearly all have, and
/// is there whole with the line end behind it. Anything else wants a closer look.
#[inline]
fn short_bulk(input: &[u8], at: usize) -> Option<(usize, usize)> {
    let digit = |byte: u8| usize::from(byte - b'0');
    let (start, len) = match *input.get(at..at + 5)? {
        [b'$', ones @ b'0'..=b'9', b'\r', b'\n', _] => (at + 4, digit(ones)),
        [b'$', tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n'] => {
            (at + 5, 10 * digit(tens) + digit(ones))
        }
        _ => return None,
    };
    let end = start + len;
    (input.get(end..end + 2)? == b"\r\n").then_some((start, end))
}

/// Appends an error reply: `-`, the text with line ends made harmless, CRLF.
pub fn push_error(out: &mut alloc::vec::Vec<u8>, text: core::fmt::Arguments<'_>) {
    struct OneLine<'a>(&'a mut alloc::vec::Vec<u8>);
    impl core::fmt::Write for OneLine<'_> {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            self.0.extend(text.bytes().map(|byte| if byte < b' ' { b' ' } else { byte }));
            Ok(())
        }
    }
    out.push(b'-');
    // Writing to a vector cannot fail, and a value that cannot print itself leaves a shorter line.
    let _ = core::fmt::write(&mut OneLine(out), text);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cannot_serve_now_is_told_from_a_command_that_fails() {
        for reply in [
            &b"-LOADING Redis is loading the dataset in memory\r\n"[..],
            b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
            b"-CLUSTERDOWN The cluster is down\r\n",
            b"-LOADING\r\n",
        ] {
            assert!(is_error(reply) && cannot_serve(reply));
        }
        for reply in [
            &b"-ERR LOADING\r\n"[..],
            b"-LOADINGS x\r\n",
            b"-WRONGTYPE x\r\n",
            b"-\r\n",
            b"!8\r\nLOADING x\r\n",
        ] {
            assert!(is_error(reply) && !cannot_serve(reply));
        }
        for reply in [&b"+LOADING x\r\n"[..], b"$8\r\n-LOADING\r\n", b"*1\r\n-LOADING x\r\n", b":-1\r\n", b""]
        {
            assert!(!is_error(reply) && !cannot_serve(reply));
        }
    }
}
