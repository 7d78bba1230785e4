//! Which request is this? The trace that it belongs to (`traceparent`), and an id of its own (`X-Request-Id`).
//!
//! Source: W3C Trace Context, Recommendation of 23 November 2021, and its level 2 for the flag `random`. What a
//! client says is believed if it is exactly what the specification allows; else a new trace begins, and what the
//! client said of the old one (`tracestate`) stays behind.

use crate::http::RequestHead;

/// The fields that are the router's to say, in lower case.
const PARENT: &[u8] = b"traceparent";
const STATE: &[u8] = b"tracestate";
const REQUEST: &[u8] = b"x-request-id";

/// The flags that are known: whether the caller may have recorded the request, and whether the trace's id is random.
const SAMPLED: u8 = 0x01;
const RANDOM: u8 = 0x02;

/// The ids of one request, as they go on to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    parent: Parent,
    request: RequestId,
}

impl Ids {
    /// New ones, for a request that brings none. Of a hundred so many are marked as recorded.
    pub fn new(draw: &mut Draw, sampled_percent: u32) -> Self {
        Self { parent: Parent::new(draw, sampled_percent), request: RequestId::new(draw) }
    }

    /// Those of a request: what it brings is kept where it is as it should be, the rest is new. What is not kept, or is
    /// said anew, stays behind. The id of the caller is always a new one: it names the way from here to the server.
    pub fn of(parsed: &mut RequestHead, head: &[u8], draw: &mut Draw, sampled_percent: u32) -> Self {
        let fields = parsed.fields();
        let parent = only(fields.values(head, PARENT)).and_then(Parent::parse);
        let request = only(fields.values(head, REQUEST)).and_then(RequestId::parse);
        parsed.keep_back(head, PARENT);
        parsed.keep_back(head, REQUEST);
        if parent.is_none() {
            parsed.keep_back(head, STATE);
        }
        let parent = match parent {
            Some(parent) => Parent { caller: draw.not_zero(), ..parent },
            None => Parent::new(draw, sampled_percent),
        };
        Self { parent, request: request.unwrap_or_else(|| RequestId::new(draw)) }
    }

    /// The trace and its caller.
    pub fn parent(&self) -> &Parent {
        &self.parent
    }

    /// The request's own id.
    pub fn request(&self) -> &str {
        self.request.text()
    }
}

/// The only one, if there is one only.
fn only<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    values.next().filter(|_| values.next().is_none())
}

/// A trace, and who calls within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    trace: u128,
    caller: u64,
    flags: u8,
}

impl Parent {
    /// How long it is when written.
    pub const LEN: usize = 55;

    /// A trace that begins here. Of a hundred so many are marked as recorded.
    pub fn new(draw: &mut Draw, sampled_percent: u32) -> Self {
        let trace = u128::from(draw.not_zero()) << 64 | u128::from(draw.next());
        let sampled = (trace as u32 as u64 * 100) >> 32 < u64::from(sampled_percent);
        Self { trace, caller: draw.not_zero(), flags: RANDOM | if sampled { SAMPLED } else { 0 } }
    }

    /// Reads a field's value. Of a version that is not known what version 00 knows counts, as the specification asks.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(Self::LEN)?;
        let [v1, v2, b'-', ids @ .., b'-', f1, f2] = known else { return None };
        let version = hex(&[*v1, *v2])?;
        if version == 0xff || !(rest.is_empty() || version > 0 && rest[0] == b'-') {
            return None;
        }
        let (trace, caller) = (&ids[..32], &ids[33..]);
        if ids[32] != b'-' {
            return None;
        }
        let (trace, caller) = (hex(trace)?, hex(caller)?);
        let flags = hex(&[*f1, *f2])? as u8 & (SAMPLED | RANDOM);
        (trace != 0 && caller != 0).then_some(Self { trace, caller: caller as u64, flags })
    }

    /// The field's value.
    pub fn write(&self) -> [u8; Self::LEN] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut out[3..35], self.trace);
        write_hex(&mut out[36..52], self.caller.into());
        write_hex(&mut out[53..], self.flags.into());
        out
    }

    /// The trace's id.
    pub fn trace(&self) -> u128 {
        self.trace
    }

    /// The id of who calls: of a request on its way to a server, the router.
    pub fn caller(&self) -> u64 {
        self.caller
    }

    /// Whether it is marked as recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Digits in lower case, at most 32 of them.
fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn write_hex(out: &mut [u8], mut value: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

/// A request's own id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    text: [u8; Self::LONGEST],
    len: u8,
}

impl RequestId {
    /// Longer ones are replaced.
    pub const LONGEST: usize = 128;

    /// A new one: 128 random bits.
    pub fn new(draw: &mut Draw) -> Self {
        let mut text = [0; Self::LONGEST];
        write_hex(&mut text[..32], u128::from(draw.next()) << 64 | u128::from(draw.next()));
        Self { text, len: 32 }
    }

    /// Takes one that a client made: letters, digits and `-._~+/=:@`, so that it means the same wherever it is written.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=:@".contains(byte);
        if !(1..=Self::LONGEST).contains(&value.len()) || !value.iter().all(sane) {
            return None;
        }
        let mut text = [0; Self::LONGEST];
        text[..value.len()].copy_from_slice(value);
        Some(Self { text, len: value.len() as u8 })
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.text[..self.len.into()]).expect("checked to be ASCII")
    }
}

/// Draws the bits of ids: xoshiro256++ (Blackman and Vigna, 2018). Its 256 bits of state keep apart what many
/// routers draw, which a generator with one word of state does not. Ids that nobody can guess are not promised.
#[derive(Clone, Debug)]
pub struct Draw([u64; 4]);

impl Draw {
    /// From a seed, of which not all words may be 0.
    pub fn seeded(seed: [u64; 4]) -> Self {
        Self(if seed == [0; 4] { [1; 4] } else { seed })
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let drawn = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        drawn
    }

    /// 0 names nobody.
    fn not_zero(&mut self) -> u64 {
        self.next().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String, vec::Vec};
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<Parent> {
        Parent::parse(text.as_bytes())
    }

    #[test]
    fn a_parent_is_what_the_specification_says_and_nothing_else() {
        let good = parse(GOOD).unwrap();
        assert_eq!(
            (good.trace, good.caller, good.flags),
            (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331, 1)
        );
        assert_eq!(good.write(), GOOD.as_bytes());
        assert!(good.is_sampled());
        // Flags that nobody knows are not passed on; of later versions what version 00 knows counts.
        assert_eq!(parse(&GOOD.replace("-01", "-fe")).unwrap().flags, 2);
        assert_eq!(parse(&format!("cc{}-more", &GOOD[2..])), Some(good));
        assert_eq!(parse(&format!("cc{}", &GOOD[2..])), Some(good));
        let zero = "0".repeat(32);
        for bad in [
            "",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &format!("{GOOD}-more"),
            &format!("{GOOD} "),
            &format!("cc{}.more", &GOOD[2..]),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0x", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &zero),
            &GOOD.replace("b7ad6b7169203331", &zero[..16]),
            &GOOD.replace("b7ad", "b7a-"),
            &GOOD.replace("19c-", "19ca"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    fn ids(fields: &str) -> (Ids, String) {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let mut parsed = RequestHead::parse(head.as_bytes()).unwrap();
        let ids = Ids::of(&mut parsed, head.as_bytes(), &mut Draw::seeded([1, 2, 3, 4]), 100);
        let left: Vec<u8> = parsed.forward(head.as_bytes()).flatten().copied().collect();
        (ids, String::from_utf8(left).unwrap())
    }

    #[test]
    fn what_a_client_brings_is_kept_if_it_is_sane_and_else_made_anew() {
        let good = parse(GOOD).unwrap();
        let (kept, left) =
            ids(&format!("TraceParent: {GOOD}\r\ntracestate: a=b\r\nx-request-ID: 7f-3/a\r\n"));
        assert_eq!(
            (kept.parent.trace, kept.parent.flags, kept.request()),
            (good.trace, good.flags, "7f-3/a")
        );
        assert!(kept.parent.caller != good.caller && kept.parent.caller != 0);
        assert_eq!(left, "GET / HTTP/1.1\r\nHost: h\r\ntracestate: a=b\r\n");

        // What servers may take for either is not passed on beside it.
        let under = format!("traceparent: {GOOD}\r\nX_Request_Id: evil\r\nx-request-id: 7f\r\n");
        let (kept, left) = ids(&under);
        assert_eq!((kept.parent.trace, kept.request()), (good.trace, "7f"));
        assert_eq!(left, "GET / HTTP/1.1\r\nHost: h\r\n");

        let twice = format!("traceparent: {GOOD}\r\ntraceparent: {GOOD}\r\n");
        let long = format!("X-Request-Id: {}\r\n", "x".repeat(129));
        for bad in [
            &twice,
            &long,
            "traceparent: 00-x\r\n",
            "X-Request-Id: a\r\nX-Request-Id: b\r\n",
            "x-request-id: a b\r\n",
            "",
        ] {
            let (new, left) = ids(&format!("{bad}tracestate: a=b\r\n"));
            assert_eq!(left, "GET / HTTP/1.1\r\nHost: h\r\n", "the state of another trace stays behind");
            assert!(new.parent.trace != good.trace && new.parent.is_sampled());
            assert_eq!(
                (new.request().len(), parse(core::str::from_utf8(&new.parent.write()).unwrap())),
                (32, Some(new.parent))
            );
        }
    }

    #[test]
    fn so_many_new_traces_are_marked_as_recorded_and_no_two_are_the_same() {
        let mut draw = Draw::seeded([9, 9, 9, 9]);
        for percent in [0, 10, 50, 100] {
            let all: Vec<Parent> = (0..10_000).map(|_| Parent::new(&mut draw, percent)).collect();
            let sampled = all.iter().filter(|parent| parent.is_sampled()).count();
            assert!(sampled.abs_diff(percent as usize * 100) < 200, "{sampled} at {percent} %");
            assert!(matches!((percent, sampled), (0, 0) | (1..100, _) | (100, 10_000)));
            let distinct: std::collections::BTreeSet<u128> = all.iter().map(|parent| parent.trace).collect();
            assert_eq!(distinct.len(), all.len());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_is_taken_is_written_so(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            at in 0..55usize, byte in any::<u8>()
        ) {
            let _either = (Parent::parse(&bytes), RequestId::parse(&bytes));
            let mut near = GOOD.as_bytes().to_vec();
            near[at] = byte;
            if let Some(parent) = Parent::parse(&near) {
                let written = parent.write();
                prop_assert_eq!(&written[2..53], &near[2..53]);
                prop_assert_eq!(Parent::parse(&written), Some(parent));
            }
        }
    }
}
