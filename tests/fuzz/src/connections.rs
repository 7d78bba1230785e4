//! What comes before a protocol's first byte: who a connection is for, and which server its client wants.

use std::net::{IpAddr, SocketAddr};

use router_proto::{
    proxy::{self, MAX_HEADER, Scan},
    tls_hello::{HelloError, HelloScan},
};
use rustls::server::Acceptor;

use crate::traffic::however_it_is_cut;

/// A PROXY header: who reads no more than is missing comes to the same, and has nothing to put back.
pub(crate) fn proxy_header(data: &[u8]) {
    let whole = proxy::parse(data);
    for cut in 0..=data.len().min(MAX_HEADER) {
        match (proxy::parse(&data[..cut]), whole) {
            (Ok(Scan::Missing(missing)), Ok(Scan::Whole { len, .. })) => {
                assert!(missing > 0 && cut + missing <= len, "asks for what is the client's");
            }
            (Ok(Scan::Missing(missing)), _) => assert!(missing > 0 && cut + missing <= MAX_HEADER),
            (done, whole) => {
                assert_eq!(done, whole, "a further byte changes nothing");
                assert!(!matches!(done, Ok(Scan::Whole { len, .. }) if len != cut), "seen too late: {cut}");
                break;
            }
        }
    }
    let Ok(Scan::Whole { proxied, len }) = whole else { return };
    assert!((16..=MAX_HEADER).contains(&len));
    let Some((source, destination)) = proxied.ends else { return };
    let mut written = Vec::new();
    proxy::write(source, destination, &mut written);
    let Ok(Scan::Whole { proxied: again, len }) = proxy::parse(&written) else {
        panic!("{} is not read again", written.escape_ascii())
    };
    let plain = |(source, destination): (SocketAddr, SocketAddr)| {
        [source, destination].map(|end| -> (IpAddr, u16) { (end.ip().to_canonical(), end.port()) })
    };
    assert_eq!(len, written.len());
    assert_eq!(again.ends.map(plain), Some(plain((source, destination))));
}

/// A TLS hello: the same name however it is cut, and the one that rustls reads.
pub(crate) fn tls_hello(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let read = |pieces: &[&[u8]]| {
        let mut scan = HelloScan::default();
        for piece in pieces {
            if let Some(hello) = scan.advance(piece)? {
                return Ok(Some(hello));
            }
        }
        Ok::<_, HelloError>(None)
    };
    however_it_is_cut(*cut, stream, read);
    let ours = read(&[stream]);
    let mut acceptor = Acceptor::default();
    let mut rest = stream;
    while !rest.is_empty() {
        // It reads about 4 KiB at a time.
        if acceptor.read_tls(&mut rest).is_err() {
            return;
        }
        let Ok(accepted) = acceptor.accept() else { return };
        let Some(accepted) = accepted else { continue };
        let hello = accepted.client_hello();
        match (hello.server_name(), ours) {
            (Some(theirs), Ok(Some(ours))) => {
                assert_eq!(ours.server_name.as_deref(), Some(theirs), "{}", stream.escape_ascii());
            }
            // An address is no name of a host; rustls passes over it.
            (None, Ok(Some(ours))) => {
                let address = ours.server_name.is_none_or(|name| name.parse::<IpAddr>().is_ok());
                assert!(address, "{}", stream.escape_ascii());
            }
            // Stricter, as where a list has something behind its first name.
            (_, Err(_)) => {}
            (_, Ok(None)) => panic!("it is whole: {}", stream.escape_ascii()),
        }
        return;
    }
}
