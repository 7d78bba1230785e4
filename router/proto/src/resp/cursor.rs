//! `SCAN` over all RACS: one after the other, under a cursor that says which.

use alloc::vec::Vec;

use super::{Args, push_bulk, push_header, split::Elements};

/// Which RACS is being walked, and how far its leader has got.
///
/// A client sees `server's cursor * number of RACS + RACS`. Zero, the beginning, is the beginning of the first;
/// and no RACS but the first is ever at zero where zero would mean the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Position of the RACS.
    pub racs: u32,
    /// As its server gave it.
    pub server: u64,
}

impl Cursor {
    /// Reads a cursor as clients send it; `None` if it is no number.
    pub fn parse(text: &[u8], racs: u32) -> Option<Self> {
        let number = number(text)?;
        let of = u64::from(racs);
        Some(Self { racs: (number % of) as u32, server: number / of })
    }

    /// The command for the server: the client's, with the server's cursor.
    pub fn write(self, command: &[u8], args: &Args, out: &mut Vec<u8>) {
        push_header(out, b'*', args.len() as u64);
        out.extend_from_slice(args.raw(command, 0..1));
        let mut digits = Vec::new();
        super::push_number(&mut digits, self.server);
        push_bulk(out, &digits);
        if args.len() > 2 {
            out.extend_from_slice(args.raw(command, 2..args.len()));
        }
    }

    /// The reply for the client: the server's, with the cursor that comes next, of so many RACS. Errors pass.
    pub fn translate(self, reply: &[u8], racs: u32, out: &mut Vec<u8>) {
        let parse = || {
            let mut elements = Elements::of(reply)?;
            let header = elements.next()?;
            let keys = elements.next()?;
            let lf = memchr::memchr(b'\n', header)?;
            let server = number(header[lf + 1..].strip_suffix(b"\r\n")?)?;
            let next = match server {
                0 if self.racs + 1 == racs => 0,
                0 => u64::from(self.racs) + 1,
                _ => server.checked_mul(racs.into())?.checked_add(self.racs.into())?,
            };
            Some((next, keys))
        };
        match parse() {
            Some((next, keys)) => {
                let mut digits = Vec::new();
                super::push_number(&mut digits, next);
                push_header(out, b'*', 2);
                push_bulk(out, &digits);
                out.extend_from_slice(keys);
            }
            None => super::split::push_failure(reply, "SCAN", out),
        }
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let canonical = text == b"0" || text.first().is_some_and(|first| (b'1'..=b'9').contains(first));
    if canonical { core::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn a_walk_visits_every_racs_once_and_ends() {
        for racs in 1..5 {
            // Each server walks 0, 7, 3 * 2^60 / racs, then ends.
            let steps = [0, 7, (3 << 60) / u64::from(racs), 0];
            let (mut text, mut seen) = (Vec::from(*b"0"), Vec::new());
            loop {
                let cursor = Cursor::parse(&text, racs).unwrap();
                seen.push((cursor.racs, cursor.server));
                let at = steps.iter().position(|&step| step == cursor.server).unwrap();
                let next = format!("{}", steps[at + 1]);
                let reply = format!("*2\r\n${}\r\n{next}\r\n*1\r\n$1\r\nk\r\n", next.len());
                let mut out = Vec::new();
                cursor.translate(reply.as_bytes(), racs, &mut out);
                let body = out.strip_prefix(b"*2\r\n$").unwrap();
                let start = memchr::memchr(b'\n', body).unwrap() + 1;
                let end = start + memchr::memchr(b'\r', &body[start..]).unwrap();
                assert_eq!(&body[end..], b"\r\n*1\r\n$1\r\nk\r\n");
                text = body[start..end].to_vec();
                if text == b"0" {
                    break;
                }
            }
            let expected: Vec<_> =
                (0..racs).flat_map(|racs| steps[..3].iter().map(move |&step| (racs, step))).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused_and_a_strange_reply_said() {
        for text in ["", "-1", "+1", "01", "x", "99999999999999999999"] {
            assert_eq!(Cursor::parse(text.as_bytes(), 3), None, "{text}");
        }
        let cursor = Cursor { racs: 1, server: 5 };
        for (reply, said) in [
            (&b"-ERR x\r\n"[..], &b"-ERR x\r\n"[..]),
            (b"+OK\r\n", b"-ERR phalanx"),
            (b"*2\r\n$20\r\n18446744073709551615\r\n*0\r\n", b"-ERR phalanx"),
            (b"*1\r\n$1\r\n0\r\n", b"-ERR phalanx"),
        ] {
            let mut out = Vec::new();
            cursor.translate(reply, 3, &mut out);
            assert!(out.starts_with(said), "{reply:?}");
        }
    }
}
