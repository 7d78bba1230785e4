//! Mutations of well-made bytes: no coverage leads them, so they stay near to what is understood.

use membership_types::Rng;

/// Where lengths, counts and numbers go wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];
/// Texts that mean something to somebody.
const WORDS: [&[u8]; 34] = [
    b"\"",
    b"\\u0000",
    b"{",
    b"}",
    b"[[",
    b"]]",
    b"=",
    b":",
    b",",
    b"\n",
    b"?",
    b"-",
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"18446744073709551616",
    b"null",
    b"true",
    b"\xff",
    b"\xc3\xa9",
    b"[::1]:",
    b"\r\n",
    b"\r",
    b" ",
    b";",
    b"*",
    b"$-1\r\n",
    b"*1000000\r\n",
    b"%2e",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: x-key\r\n",
    b"\n\n",
];
/// Longer inputs show nothing more, and are slow.
const MAX: usize = 1 << 14;

/// Puts a mutation of one of the seeds into `input`.
pub(crate) fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    input.clear();
    input.extend_from_slice(rng.pick(seeds).map_or(&[], |seed| seed));
    for _ in 0..rng.between(1, 6) {
        once(input, seeds, rng);
    }
    input.truncate(MAX);
}

fn once(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(input.len() as u64 + 1) as usize;
    let end = (at + rng.between(1, 16) as usize).min(input.len());
    match rng.below(10) {
        0 | 1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = rng.next_u64() as u8;
            }
        }
        3 | 4 => {
            let edge = *rng.pick(&EDGES).expect("not empty");
            let edge = edge.wrapping_add(rng.below(3)).wrapping_sub(1);
            let width = 1 << rng.below(4);
            let bytes = if rng.chance(500) { edge.to_le_bytes() } else { edge.swap_bytes().to_le_bytes() };
            let bytes = if bytes[0] == 0 { &bytes[8 - width..] } else { &bytes[..width] };
            for (to, from) in input.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
        5 => drop(input.drain(at..end)),
        6 => {
            let part = input[at..end].to_vec();
            for _ in 0..rng.between(1, 3) {
                input.splice(at..at, part.iter().copied());
            }
        }
        7 => {
            let word = *rng.pick(&WORDS).expect("not empty");
            let replaced = if rng.chance(500) { at..at } else { at..end };
            input.splice(replaced, word.iter().copied());
        }
        8 => {
            // The rest of another one.
            let Some(other) = rng.pick(seeds) else { return };
            let from = rng.below(other.len() as u64 + 1) as usize;
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.truncate(at),
    }
}
