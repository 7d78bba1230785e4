//! Attempts to make two readers disagree on where a message ends, or to whom it is addressed. Every row must
//! be refused, for the reason given: a request that is refused for another reason is one typo away from
//! passing.

use router_proto::http::{ChunkedScanner, HeadScan, MAX_HEAD, Method, Refusal, RequestHead, ResponseHead};

fn request(bytes: &[u8]) -> Result<(), Refusal> {
    match HeadScan::default().request(bytes)? {
        None => panic!("incomplete: {:?}", String::from_utf8_lossy(bytes)),
        Some(place) => RequestHead::parse(&bytes[place]).map(drop),
    }
}

fn response(bytes: &[u8]) -> Result<(), Refusal> {
    let end = HeadScan::default().response(bytes)?.expect("complete");
    ResponseHead::parse(&bytes[..end], Method::Get).map(drop)
}

fn chunked(bytes: &[u8]) -> Result<(), Refusal> {
    let advance = ChunkedScanner::default().advance(bytes)?;
    assert!(advance.done, "incomplete: {:?}", String::from_utf8_lossy(bytes));
    Ok(())
}

const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\n";

#[test]
fn smuggled_requests_are_refused_for_the_right_reason() {
    use Refusal::*;
    // After the request line and Host; the head's end is added.
    let fields: &[(&str, Refusal)] = &[
        // Two framings.
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", TwoFramings),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", TwoFramings),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", TwoFramings),
        ("Content-Length: 4\r\nContent-Length: 5\r\n", RepeatedContentLength),
        ("Content-Length: 4\r\nContent-Length: 4\r\n", RepeatedContentLength),
        ("content-length: 4\r\nX: y\r\nCONTENT-LENGTH: 0\r\n", RepeatedContentLength),
        ("Content-Length: 4, 4\r\n", ContentLength),
        ("Content-Length: 4,5\r\n", ContentLength),
        // Lengths that some read as numbers.
        ("Content-Length: +4\r\n", ContentLength),
        ("Content-Length: -1\r\n", ContentLength),
        ("Content-Length: 0x4\r\n", ContentLength),
        ("Content-Length: 4 \u{b}\r\n", FieldValue),
        ("Content-Length: 4a\r\n", ContentLength),
        ("Content-Length: 4.0\r\n", ContentLength),
        ("Content-Length: 1_0\r\n", ContentLength),
        ("Content-Length: 4 4\r\n", ContentLength),
        ("Content-Length:\r\n", ContentLength),
        ("Content-Length: \u{ff14}\r\n", ContentLength),
        ("Content-Length: 18446744073709551616\r\n", ContentLength),
        ("Content-Length: 99999999999999999999999\r\n", ContentLength),
        // Transfer codings that some read as chunked and some do not.
        ("Transfer-Encoding: chunked, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked, identity\r\n", TransferEncoding),
        ("Transfer-Encoding: identity\r\n", TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunkedx\r\n", TransferEncoding),
        ("Transfer-Encoding: Chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: \"chunked\"\r\n", TransferEncoding),
        // A lenient llhttp takes the tab for a part of the name, and waits for the connection's end.
        ("Transfer-Encoding: chunked\t\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked \r\n", TransferEncoding),
        ("Transfer-Encoding: chunked;q=1\r\n", TransferEncoding),
        ("Transfer-Encoding:\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n", TransferEncoding),
        ("Transfer-Encoding: \u{b}chunked\r\n", FieldValue),
        ("Transfer-Encoding: chunked\u{0}\r\n", FieldValue),
        ("Transfer-Encoding: cow\r\nContent-Length: 4\r\n", TransferEncoding),
        // Names that some read as the framing fields.
        ("Transfer-Encoding : chunked\r\n", SpaceBeforeColon),
        ("Content-Length\t: 4\r\n", SpaceBeforeColon),
        ("Transfer_Encoding: chunked\r\n", FieldName),
        ("Content_Length: 4\r\n", FieldName),
        ("Transfer-Encoding\u{0}: chunked\r\n", FieldName),
        ("Transfer\u{e9}Encoding: chunked\r\n", FieldName),
        ("(Content-Length): 4\r\n", FieldName),
        (": 4\r\n", FieldName),
        ("Content-Length 4\r\n", FieldName),
        // Lines that some see as one and some as two.
        ("X: a\r\n Content-Length: 4\r\n", ObsFold),
        ("X: a\r\n\tTransfer-Encoding: chunked\r\n", ObsFold),
        ("Transfer-Encoding:\r\n chunked\r\n", ObsFold),
        ("X: a\nContent-Length: 4\r\n", BareLf),
        ("X: a\rContent-Length: 4\r\n", BareCr),
        ("X: a\r\r\nContent-Length: 4\r\n", BareCr),
        ("X: a\u{0}b\r\n", FieldValue),
        ("X: a\u{7f}b\r\n", FieldValue),
        ("X: a\u{1b}[2J\r\n", FieldValue),
        // Addresses.
        ("Host: other\r\n", RepeatedHost),
        ("host: h\r\n", RepeatedHost),
        // Hop-by-hop fields that would change what the next hop reads.
        ("Connection: content-length\r\nContent-Length: 4\r\n", Connection),
        ("Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", Connection),
        ("Connection: Host\r\n", Connection),
        ("Connection: a b\r\n", Connection),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", Upgrade),
        ("Upgrade: h2c, websocket\r\nConnection: Upgrade\r\n", Upgrade),
        ("Expect: 100-continue, x\r\nContent-Length: 4\r\n", Expect),
        ("Expect: 200-ok\r\n", Expect),
    ];
    assert!(fields.len() >= 40);
    for (lines, reason) in fields {
        let bytes = format!("{POST}{lines}\r\n");
        assert_eq!(request(bytes.as_bytes()), Err(*reason), "{lines:?}");
    }
}

#[test]
fn request_lines_that_leave_a_doubt_are_refused() {
    use Refusal::*;
    let lines: &[(&[u8], Refusal)] = &[
        (b"GET / HTTP/1.1\r\n\r\n", MissingHost),
        (b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", Host),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Host),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Host),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", Host),
        (b"GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", Host),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", Host),
        (b"GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n", HostMismatch),
        (b"GET http://h:81/ HTTP/1.1\r\nHost: h\r\n\r\n", HostMismatch),
        (b"GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET x HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", Target),
        (b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b"GET / x HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", RequestLine),
        (b"G\x00T / HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
        (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", NotHttp),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", NotHttp),
        (b"GET /\r\n", Http09),
        (b"GET\r\n", Http09),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", Version),
        (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", Version),
        (b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", Version),
        (b"GET / http/1.1\r\nHost: h\r\n\r\n", RequestLine),
        (b"GET / HTTP/1.10\r\nHost: h\r\n\r\n", Version),
        (b"GET / HTTP/1.1\nHost: h\r\n\r\n", BareLf),
        (b"GET / HTTP/1.1\rHost: h\r\n\r\n", RequestLine),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\n", BareLf),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncodingIn10),
        (b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", Connect),
    ];
    for (bytes, reason) in lines {
        assert_eq!(request(bytes), Err(*reason), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn heads_beyond_the_limits_are_refused_as_soon_as_they_are() {
    let many = format!("{POST}{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(request(many.as_bytes()), Err(Refusal::TooManyFields));
    let most = format!("{POST}{}\r\n", "A: b\r\n".repeat(99));
    assert_eq!(request(most.as_bytes()), Ok(()));
    let names = format!("{POST}Connection: {}\r\n\r\n", "a,".repeat(33));
    assert_eq!(request(names.as_bytes()), Err(Refusal::Connection));

    let long = format!("{POST}A: {}\r\n\r\n", "b".repeat(MAX_HEAD - POST.len() - 7));
    assert_eq!(long.len(), MAX_HEAD);
    assert_eq!(request(long.as_bytes()), Ok(()));
    let longer = format!("{POST}A: {}\r\n\r\n", "b".repeat(MAX_HEAD - POST.len() - 6));
    assert_eq!(request(longer.as_bytes()), Err(Refusal::HeadTooLong));
    // Without any line end the limit is what stops it.
    assert_eq!(HeadScan::default().request(&[b'A'; MAX_HEAD]), Err(Refusal::HeadTooLong));
    assert_eq!(HeadScan::default().request(&[b'A'; MAX_HEAD - 1]), Ok(None));
}

#[test]
fn responses_that_leave_a_doubt_are_refused() {
    use Refusal::*;
    let ok = "HTTP/1.1 200 OK\r\n";
    for (text, reason) in [
        (format!("{ok}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"), TwoFramings),
        (format!("{ok}Content-Length: 4\r\nContent-Length: 5\r\n\r\n"), RepeatedContentLength),
        (format!("{ok}Content-Length: x\r\n\r\n"), ContentLength),
        (format!("{ok}Transfer-Encoding: gzip\r\n\r\n"), TransferEncoding),
        (format!("{ok}Transfer-Encoding : chunked\r\n\r\n"), SpaceBeforeColon),
        (format!("{ok}X: a\r\n b\r\n\r\n"), ObsFold),
        (format!("{ok}X: a\nY: b\r\n\r\n"), BareLf),
        (format!("{ok}X: a\rb\r\n\r\n"), BareCr),
        (format!("{ok}X: a\0b\r\n\r\n"), FieldValue),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), TransferEncodingIn10),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".into(), UnaskedUpgrade),
        ("HTTP/2.0 200 OK\r\n\r\n".into(), Version),
        ("HTTP/1.1 2000 OK\r\n\r\n".into(), StatusLine),
        ("HTTP/1.1 20 OK\r\n\r\n".into(), StatusLine),
        ("HTTP/1.1 099 OK\r\n\r\n".into(), StatusLine),
        ("HTTP/1.1 600 OK\r\n\r\n".into(), StatusLine),
        ("HTTP/1.1  200 OK\r\n\r\n".into(), StatusLine),
        ("HTTP/1.1200 OK\r\n\r\n".into(), Version),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n".into(), StatusLine),
        ("nonsense\r\n\r\n".into(), Version),
    ] {
        assert_eq!(response(text.as_bytes()), Err(reason), "{text:?}");
    }
}

#[test]
fn chunked_bodies_that_leave_a_doubt_are_refused() {
    use Refusal::*;
    let rows: &[(&str, Refusal)] = &[
        ("\r\n0\r\n\r\n", ChunkSize),
        (" 1\r\na\r\n0\r\n\r\n", ChunkSize),
        ("1 \r\na\r\n0\r\n\r\n", ChunkSize),
        ("1\t;x\r\na\r\n0\r\n\r\n", ChunkSize),
        ("+1\r\na\r\n0\r\n\r\n", ChunkSize),
        ("-1\r\na\r\n0\r\n\r\n", ChunkSize),
        ("0x1\r\na\r\n0\r\n\r\n", ChunkSize),
        ("g\r\n", ChunkSize),
        ("1_0\r\n", ChunkSize),
        ("1\na\r\n0\r\n\r\n", ChunkSize),
        ("1\r\r\na\r\n0\r\n\r\n", ChunkSize),
        ("ffffffffffffffff\r\n", ChunkSize),
        ("10000000000000000\r\n", ChunkSize),
        ("0000000000000001\r\na\r\n0\r\n\r\n", ChunkSize),
        ("1\r\nab\r\n0\r\n\r\n", ChunkEnd),
        ("1\r\na\n0\r\n\r\n", ChunkEnd),
        ("1\r\na\rb0\r\n\r\n", ChunkEnd),
        ("1\r\na0\r\n\r\n", ChunkEnd),
        ("2\r\na\r\n0\r\n\r\n", ChunkEnd),
        ("1;x\ny\r\na\r\n0\r\n\r\n", ChunkExtension),
        ("1;\0\r\na\r\n0\r\n\r\n", ChunkExtension),
        ("0\r\n\n", Trailer),
        ("0\r\n\rX", Trailer),
        ("0\r\nX\r\n\r\n", Trailer),
        ("0\r\nX : y\r\n\r\n", Trailer),
        ("0\r\n X: y\r\n\r\n", Trailer),
        ("0\r\nX: y\n\r\n", Trailer),
        ("0\r\nX: a\0b\r\n\r\n", Trailer),
        ("0\r\nContent-Length: 4\r\n\r\n", Trailer),
        ("0\r\ntransfer-encoding: chunked\r\n\r\n", Trailer),
        ("0\r\nHOST: other\r\n\r\n", Trailer),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", Trailer),
    ];
    for (text, reason) in rows {
        assert_eq!(chunked(text.as_bytes()), Err(*reason), "{text:?}");
    }
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(200));
    assert_eq!(chunked(long.as_bytes()), Err(ChunkExtension));
    let many = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(100)).repeat(50));
    assert_eq!(chunked(many.as_bytes()), Err(ChunkExtension));
    let trailers = format!("0\r\n{}\r\n", "Name: value\r\n".repeat(400));
    assert_eq!(chunked(trailers.as_bytes()), Err(Trailer));
}

#[test]
fn what_is_only_unusual_passes() {
    for fields in [
        "Content-Length: 004\r\n",
        "Content-Length:4\r\n",
        "Content-Length: \t 4 \t\r\n",
        "transfer-encoding:chunked\r\n",
        "Connection: keep-alive, X-Own\r\nX-Own: 1\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
        "Upgrade: websocket\r\n",
        "Expect: 100-Continue\r\nContent-Length: 4\r\n",
        "X-Empty:\r\n",
        "X-Latin: caf\u{e9}\r\n",
    ] {
        assert_eq!(request(format!("{POST}{fields}\r\n").as_bytes()), Ok(()), "{fields:?}");
    }
    for line in [
        "GET http://h/ HTTP/1.1\r\nHost: H",
        "OPTIONS * HTTP/1.1\r\nHost: h",
        "GET /?a=b HTTP/1.1\r\nHost: [::1]:8080",
        "GET / HTTP/1.0\r\nX: y",
        "PURGE /x HTTP/1.1\r\nHost:",
        "\r\nGET / HTTP/1.1\r\nHost: h",
    ] {
        assert_eq!(request(format!("{line}\r\n\r\n").as_bytes()), Ok(()), "{line:?}");
    }
    for body in [
        "0\r\n\r\n",
        "A\r\n0123456789\r\n0\r\n\r\n",
        "1;a=\"b\"\r\nx\r\n0;c\r\nX-Sum: 7\r\n\r\n",
        "000\r\n\r\n",
    ] {
        assert_eq!(chunked(body.as_bytes()), Ok(()), "{body:?}");
    }
}
