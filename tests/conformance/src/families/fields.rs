//! Fields that are hidden from one of two readers.

use super::{BOTH, Hidden, POST, hide, hide_all, request, texts, with_bytes};
use crate::payloads::{SMUGGLED, latin};

pub(super) fn single_bytes() -> Vec<Vec<u8>> {
    hide_all(with_bytes(&[
        "?{n}: {v}",
        "{n}?: {v}",
        "{n}:?{v}",
        "{n}: ?{v}",
        "{n}: {v}?",
        "{n}: {v} ?",
        "X-{n}?{n}: {v}",
    ]))
}

pub(super) fn two_bytes() -> Vec<Vec<u8>> {
    hide_all(with_bytes(&["?{n}?: {v}", "?{n}:?{v}", "?{n}: {v}?", "{n}?:?{v}", "{n}?: {v}?", "{n}:?{v}?"]))
}

pub(super) fn between_lines() -> Vec<Vec<u8>> {
    let lines = [
        "X: X?{n}: {v}",
        "X: X\r?{n}: {v}",
        "X: X?\n{n}: {v}",
        "{n}: {v}?X: X",
        "{n}: {v}\r?X: X",
        "{n}: {v}?\nX: X",
    ];
    hide_all(with_bytes(&lines))
}

pub(super) fn names() -> Vec<Vec<u8>> {
    let variants = |name: &str| -> Vec<Vec<u8>> {
        let (one, other) = name.split_once('-').unwrap_or((name, ""));
        let latin = |text: String| text.chars().map(|c| u32::from(c) as u8).collect::<Vec<u8>>();
        let mut all: Vec<Vec<u8>> =
            ["_", " ", "", "\\", "--", "\u{ad}", "\u{96}", "\t", ".", "%2d", "\0", "-\r\n", "-\r\n "]
                .iter()
                .map(|joint| latin(format!("{one}{joint}{other}")))
                .collect();
        let first = &name[..1];
        all.push(name.to_uppercase().into_bytes());
        all.push(name.to_lowercase().into_bytes());
        all.push(format!("{}{}", first.to_lowercase(), name[1..].to_uppercase()).into_bytes());
        all.push(
            name.chars()
                .enumerate()
                .map(
                    |(at, c)| if at % 2 == 0 { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() } as u8,
                )
                .collect(),
        );
        // A letter in another way: percent-encoded, with an accent, doubled, gone.
        for at in [1, 4, name.len() - 1] {
            let (before, letter, after) = (&name[..at], name.as_bytes()[at], &name[at + 1..]);
            all.push(format!("{before}%{letter:02x}{after}").into_bytes());
            all.push(latin(format!("{before}\u{82}{after}")));
            all.push(latin(format!("{before}\u{e9}{after}")));
            all.push(format!("{before}{after}").into_bytes());
            all.push(format!("{before}\r{}{after}", letter as char).into_bytes());
        }
        all
    };
    let mut all = Vec::new();
    for hidden in BOTH {
        let name = String::from_utf8_lossy(hidden.name()).into_owned();
        for variant in variants(&name) {
            all.extend(hide(hidden, &[&variant, &b": {v}"[..]].concat()));
        }
    }
    all.extend(hide_all(texts(&[
        "{n} x: {v}",
        "{n}:{v}",
        "{n} {v}",
        "{n}\t{v}",
        "{n}",
        "{n}`{v} : {v}",
        ":{n}: {v}",
        "{n}:: {v}",
        "{n}=: {v}",
        "({n}): {v}",
        "X-{n}: {v}",
        "{n}-X: {v}",
        "Proxy-{n}: {v}",
        "Content-Encoding: {v}",
        "TE: {v}",
        ": x\r\n{n}: {v}",
        ":\r\n{n}: {v}",
        "{n}:",
    ])));
    all
}

pub(super) fn folds() -> Vec<Vec<u8>> {
    hide_all(texts(&[
        "{n}:\r\n {v}",
        "{n}:\r\n\t{v}",
        "{n}:\n {v}",
        "{n}:\r {v}",
        "{n}: \n\u{b}{v}",
        "{n}:\r\n \r\n {v}",
        "{n}\r\n : {v}",
        "{n}\n : {v}",
        "{n}\r\n\t: {v}",
        "X: y\r\n {n}: {v}",
        "X: y\r\n\t{n}: {v}",
        " {n}: {v}",
        "\t{n}: {v}",
        "X:\r\n {n}: {v}",
        "X: y\r\n\r{n}: {v}",
        "{n}: {v}\r\n ",
        "{n}: {v}\r\n x",
        "{n}:\r\n\r\n {v}",
        "{n}: x\r\n {v}",
        "\r\n {n}: {v}",
    ]))
}

pub(super) fn codings() -> Vec<Vec<u8>> {
    [
        "\"chunked\"",
        "'chunked'",
        "chunk",
        "chunke",
        "chunkedd",
        "xchunked",
        "x-chunked",
        "Chunked",
        "CHUNKED",
        "cHuNkEd",
        "chunked;q=1",
        "chunked; a=b",
        "chunked, identity",
        "identity, chunked",
        "identity, chunked, identity",
        "chunked, chunked",
        "gzip, chunked",
        "chunked, gzip",
        "x, chunked",
        "chunked, x",
        "x chunked y",
        "chunked x",
        "x chunked",
        ",chunked",
        "chunked,",
        ", chunked",
        ",",
        "",
        "identity",
        "gzip",
        "blah",
        "null",
        "true",
        "1",
        "ch\u{96}nked",
        "ch\u{fffd}nked",
        "chun\u{212a}ed",
        "chun\u{17f}ed",
        "%63hunked",
        "=?iso-8859-1?B?Y2h1bmtlZA==?=",
        "=?UTF-8?Q?chunked?=",
        "\\x63hunked",
        "chunked\u{a0}",
        "\u{a0}chunked",
        "\u{85}chunked\u{85}",
        "\u{feff}chunked",
        "chu nked",
        "chu\tnked",
        "chu\0nked",
        "(x)chunked",
        "chunked(x)",
        "chunked\\",
        "{chunked}",
        "[chunked]",
    ]
    .iter()
    .flat_map(|coding| hide(Hidden::Coding, &latin(&format!("Transfer-Encoding: {coding}"))))
    .collect()
}

pub(super) fn lengths() -> Vec<Vec<u8>> {
    let forms = [
        "+{v}",
        "-{v}",
        "0{v}",
        "00000000000{v}",
        "0 {v}",
        "{v} 0",
        "{v}e0",
        "{v}.0",
        "{v}.",
        "0, {v}",
        "{v}, 0",
        "{v},{v}",
        "{v}, {v}",
        "0,{v}",
        ",{v}",
        "{v},",
        "0x{v}",
        "0X{v}",
        "0o{v}",
        "0b{v}",
        "{v}h",
        "{v}Z",
        "{v} Z",
        "{v}_0",
        "{v}\u{a0}",
        "\u{a0}{v}",
        "\u{85}{v}",
        "\u{ff11}{v}",
        "\"{v}\"",
        "'{v}'",
        "{v};a=b",
        "{v}\0",
        "\0{v}",
        "({v})",
        "{v}(x)",
        "%3{v}",
        "{v}-0",
        "{v}+0",
        "{v}*1",
        "1{v}",
        "",
        "0",
        "-0",
        "+0",
        "00",
        "-1",
        "-48",
        "4294967296",
        "18446744073709551616",
        "18446744073709551615",
        "9223372036854775808",
        "99999999999999999999999",
        "NaN",
        "null",
        "Infinity",
        "chunked",
    ];
    let mut all: Vec<Vec<u8>> = forms
        .iter()
        .flat_map(|form| hide(Hidden::Length, &latin(&format!("Content-Length: {form}"))))
        .collect();
    // An overflow that comes to the length itself.
    for bits in [8, 16, 32] {
        let text = format!("Content-Length: {}", (1_u64 << bits) + SMUGGLED.len() as u64);
        all.push(request(POST, text.as_bytes(), SMUGGLED.as_bytes()));
    }
    let wrapped = u128::from(u64::MAX) + 1 + SMUGGLED.len() as u128;
    all.push(request(POST, format!("Content-Length: {wrapped}").as_bytes(), SMUGGLED.as_bytes()));
    // Nothing announced, and a request behind it.
    all.push(request(POST, b"Content-Length: 0\r\nConnection:keep-alive", SMUGGLED.as_bytes()));
    all
}

pub(super) fn twice() -> Vec<Vec<u8>> {
    let mut all = hide_all(texts(&[
        "{n}: {v}\r\n{n}: {v}",
        "{n}: {v}\r\n{n}: x",
        "{n}: x\r\n{n}: {v}",
        "{n}: {v}\r\n{n}:",
        "{n}:\r\n{n}: {v}",
        "{n}: {v}\r\n{n} : {v}",
        "{n}: {v}\r\n {n}: {v}",
        "{n}: {v}\r\nX-{n}: x",
        "{n}: identity\r\n{n}: {v}",
        "{n}: {v}\r\n{n}: identity",
        "{n}: {v}\r\n{n}: 0",
        "{n}: 0\r\n{n}: {v}",
        "{n}: {v}\r\nX: y\r\n{n}: {v}",
        "{n}: 1\r\n{n}: {v}\r\n{n}: 2",
    ]));
    for (one, other) in [
        ("Content-Length", "content-length"),
        ("Content-Length", "Content_Length"),
        ("Content_Length", "Content-Length"),
        ("Content-Length", "Content-Length "),
        ("Content-Length ", "Content-Length"),
        ("Transfer-Encoding", "transfer-encoding"),
        ("Transfer-Encoding", "Transfer_Encoding"),
        ("Transfer-Encoding", "Transfer-Encoding "),
    ] {
        let hidden = if one.starts_with('C') { Hidden::Length } else { Hidden::Coding };
        for (first, last) in [
            ("{v}", "{v}"),
            ("{v}", "0"),
            ("0", "{v}"),
            ("{v}", "0{v}"),
            ("0{v}", "{v}"),
            ("identity", "{v}"),
        ] {
            all.extend(hide(hidden, format!("{one}: {first}\r\n{other}: {last}").as_bytes()));
        }
    }
    all
}

pub(super) fn hops() -> Vec<Vec<u8>> {
    hide_all(texts(&[
        "Connection: {n}\r\n{n}: {v}",
        "{n}: {v}\r\nConnection: {n}",
        "Connection: close, {n}\r\n{n}: {v}",
        "Connection: keep-alive, {n}\r\n{n}: {v}",
        "{n}: {v}\r\nConnection : {n}",
        "{n}: {v}\r\nConnection\t: {n}",
        "{n}: {v}\r\nconnection:{n}",
        "{n}: {v}\r\nProxy-Connection: {n}",
        "{n}: {v}\r\nConnection: X\r\nConnection: {n}",
        "{n}: {v}\r\nConnection: Host, X-Key",
        "{n}: {v}\r\nKeep-Alive: timeout=5, max=1000",
        "{n}: {v}\r\nConnection: \"{n}\"",
        "{n}: {v}\r\nConnection: {n};x",
        "{n}: {v}\r\nConnection: upgrade\r\nUpgrade: {n}",
        "{n}: {v}\r\nTrailer: {n}",
    ]))
}

pub(super) fn expectations() -> Vec<Vec<u8>> {
    hide_all(texts(&[
        "Expect: 100-continue\r\n{n}: {v}",
        "{n}: {v}\r\nExpect: 100-continue",
        "{n}: {v}\r\nExpect: x 100-continue",
        "{n}: {v}\r\nExpect: 100-continue x",
        "{n}: {v}\r\nExpect:\r\n 100-continue",
        "{n}: {v}\r\nExpect : 100-continue",
        "{n}: {v}\r\nExpect: 100-Continue",
        "{n}: {v}\r\nExpect: y=100-continue",
        "{n}: {v}\r\nExpect: 100-continue\r\nExpect: 100-continue",
        "{n}: {v}\r\nExpect: 100-continue, x",
        "{n}: {v}\r\nExpect: 200-ok",
        "{n}: {v}\r\nExpect:",
        "{n}: {v}\r\nExpect: \"100-continue\"",
        "{n}: {v}\r\nExpect: 100-continue\r\nConnection: Expect",
    ]))
}
