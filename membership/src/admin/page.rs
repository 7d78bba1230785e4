//! `/`: a page for browsers, which shows what the other paths say. It is one file, asks nobody else for anything, and its browser
//! is told to run and load nothing but what is in it.

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Full;
use hyper::{
    Response,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("page.html");

/// The page, and what a browser may do with it.
pub(super) fn page() -> Response<Full<Bytes>> {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'",
        mark("script"),
        mark("style"),
    );
    let mut response = Response::new(Full::new(Bytes::from_static(PAGE.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::try_from(policy).expect("printable"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// By which a browser knows the content of the page's one element of this kind.
fn mark(element: &str) -> String {
    let begin = format!("<{element}>");
    let (_, rest) = PAGE.split_once(&begin).expect("it is there");
    let (content, _) = rest.split_once(&format!("</{element}>")).expect("it ends");
    format!("sha256-{}", BASE64.encode(digest(&SHA256, content.as_bytes()).as_ref()))
}
