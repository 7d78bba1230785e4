//! Browsers: what the page of somebody else must not do here, though the browser that shows it runs on this host.
//!
//! The admin API believes who reaches it. A browser reaches it, too, for any page that asks it to, in two ways:
//!
//! * The page is of another site. Then the browser says so in the request, and does not show the page what is answered.
//! * The page was loaded by a name, and whoever owns that lets it point to 127.0.0.1 afterwards. For the browser both are the same
//!   site then: it shows the page all answers, and says nothing but the name, in `host`. So who asks on the loopback has to name
//!   an address or `localhost` there, which nobody can make point elsewhere.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap,
    header::{HOST, ORIGIN},
};

use super::AdminResponse;
use crate::wire::shown;

/// Did a page make it? Such a request names its origin or where it was made.
pub(super) fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| *name == ORIGIN || name.as_str().starts_with("sec-fetch-"))
}

/// Why a request that came from there is not answered, if it names this node as only a page could have been loaded. Who comes from
/// another host can do so only where the network is trusted, and names are given to that network's nodes.
pub(super) fn refusal(headers: &HeaderMap, from: IpAddr) -> Option<AdminResponse> {
    if !from.is_loopback() {
        return None;
    }
    let host = headers.get(HOST)?;
    if is_address(host.to_str().unwrap_or_default()) {
        return None;
    }
    let name = shown(&String::from_utf8_lossy(host.as_bytes()));
    Some(AdminResponse::error(
        403,
        format!(
            "{name:?} may be a name that a web page made point here: on this host ask http://127.0.0.1 or http://localhost with \
             the port (a proxy on this host must send such a Host header)"
        ),
    ))
}

/// Does a `host` header name an address, or this very host, whatever the port?
fn is_address(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    // Browsers and resolvers know both without asking anybody.
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_loopback_only_addresses_and_localhost_are_answered() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let refused = |host: &[u8], from| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.try_into().expect("a value"));
            refusal(&headers, from)
        };
        for fine in [
            "127.0.0.1:7070",
            "127.0.0.1",
            "10.0.0.3:7070",
            "[::1]:7070",
            "[::1]",
            "::1",
            "localhost",
            "LocalHost:7070",
            "localhost.:7070",
            "node.localhost:7070",
        ] {
            assert!(refused(fine.as_bytes(), here).is_none(), "{fine}");
        }
        for page in [
            "evil.example:7070",
            "evil.example",
            "127.0.0.1.evil.example:7070",
            "localhost.evil.example",
            "notlocalhost",
            "[::1].evil.example",
            "x@127.0.0.1",
            "",
            ":7070",
        ] {
            let refusal = refused(page.as_bytes(), here).expect(page);
            assert_eq!(refusal.status, 403, "{page}");
            assert!(String::from_utf8_lossy(&refusal.body).contains("http://127.0.0.1"), "{page}");
            assert!(
                refused(page.as_bytes(), [10, 0, 0, 7].into()).is_none(),
                "{page} may be a node's name there"
            );
        }
        assert!(refused(b"\xff", here).is_some());
        assert!(refusal(&HeaderMap::new(), here).is_none(), "every browser names whom it asks");
    }
}
